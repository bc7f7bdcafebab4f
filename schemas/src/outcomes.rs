//! The outcomes: the answers to events, and the data of each type in its newest version.

pub(crate) mod tickets;
pub(crate) mod users;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::identity::OutcomeId;
use crate::moment;
use crate::stream::OutcomeData;
use crate::text::{EventId, Invalid, Source};
use crate::trace::Traceparent;
use crate::version::Object;

pub use tickets::v2::{RefusalReason, ReservationRefused};
pub use tickets::{TicketOutcome, v1::*};
pub use users::v2::PaymentDisputed;
pub use users::v3::{PaymentRefused, UserRefusalReason};
pub use users::{UserOutcome, v1::*};

/// One outcome, as on the outcome topic. Its `source` is always [`OUTCOME_SOURCE`].
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome<T: OutcomeData> {
    pub id: OutcomeId,
    pub subject: T::Key,
    pub time: OffsetDateTime,
    /// Counts the outcomes of one subject without a gap; 0 for a refusal where there is no such subject.
    pub sequence: i64,
    /// Raised when the database was restored; consumers order by generation, then sequence.
    pub generation: i64,
    /// The event that it answers.
    pub causation_source: Source,
    pub causation_id: EventId,
    pub traceparent: Traceparent,
    pub data: T,
}

/// The answer to one event, kept in its idempotency record, so that a repeat gets the same again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Reply {
    /// In order; none when the event changed nothing.
    pub outcomes: Vec<ReplyOutcome>,
}

/// One outcome within a [`Reply`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ReplyOutcome {
    #[serde(rename = "type")]
    pub outcome_type: String,
    pub sequence: i64,
    pub data: Value,
}

impl Reply {
    /// The reason for which the event was refused, if its last outcome is a refusal.
    pub fn refusal(&self) -> Option<&str> {
        let last = self.outcomes.last()?;
        last.outcome_type
            .contains(".refused.")
            .then(|| last.data.get("reason")?.as_str())?
    }
}

/// The `source` of every outcome.
pub const OUTCOME_SOURCE: &str = "holdfast";

impl<T: OutcomeData> Outcome<T> {
    /// A CloudEvent in structured mode.
    pub fn to_json(&self) -> Vec<u8> {
        self.to_json_with(&self.data.data())
    }

    /// As [`Self::to_json`], for a caller who has the data's JSON already.
    pub fn to_json_with(&self, data: &Value) -> Vec<u8> {
        let data = serde_json::value::to_raw_value(data).expect("JSON can be written");
        self.enveloped(self.data.outcome_type(), data)
    }

    /// As [`Self::to_json`], with type and data as they were told once, perhaps by an earlier release in an earlier version.
    ///
    /// # Errors
    /// The data is no JSON.
    pub fn to_json_as_told(&self, outcome_type: &str, data: &str) -> Result<Vec<u8>, Invalid> {
        let data = RawValue::from_string(data.to_owned());
        let data = data.map_err(|error| Invalid::new(format!("is no JSON: {error}")))?;
        Ok(self.enveloped(outcome_type, data))
    }

    fn enveloped(&self, outcome_type: &str, data: Box<RawValue>) -> Vec<u8> {
        let envelope = Envelope {
            specversion: "1.0".to_owned(),
            id: self.id,
            source: OUTCOME_SOURCE.to_owned(),
            outcome_type: outcome_type.to_owned(),
            subject: self.subject.clone(),
            time: self.time,
            sequence: self.sequence,
            generation: self.generation,
            causationsource: self.causation_source.clone(),
            causationid: self.causation_id.clone(),
            traceparent: self.traceparent.to_string(),
            datacontenttype: "application/json".to_owned(),
            data,
        };
        serde_json::to_vec(&envelope).expect("texts, numbers and JSON that was read can be written")
    }

    /// Reads what [`Self::to_json`] of this or an earlier release wrote.
    pub fn from_json(json: &[u8]) -> Result<Self, Invalid> {
        let Object::<Envelope<T::Key>>(envelope) =
            serde_json::from_slice(json).map_err(|error| Invalid::new(format!("is no outcome: {error}")))?;
        if envelope.source != OUTCOME_SOURCE {
            return Err(Invalid::new("is no outcome: source is not holdfast"));
        }
        let data = T::read(&envelope.outcome_type, envelope.data.get())?;
        Ok(Self {
            id: envelope.id,
            subject: envelope.subject,
            time: envelope.time,
            sequence: envelope.sequence,
            generation: envelope.generation,
            causation_source: envelope.causationsource,
            causation_id: envelope.causationid,
            traceparent: Traceparent::parse(&envelope.traceparent)?,
            data,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope<K> {
    specversion: String,
    id: OutcomeId,
    source: String,
    #[serde(rename = "type")]
    outcome_type: String,
    subject: K,
    #[serde(with = "moment")]
    time: OffsetDateTime,
    sequence: i64,
    generation: i64,
    causationsource: Source,
    causationid: EventId,
    traceparent: String,
    datacontenttype: String,
    data: Box<RawValue>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn an_outcome_reads_back() {
        let time = datetime!(2030-01-31 19:30:00.123456 UTC);
        let user: crate::UserId = "ann".parse().unwrap();
        let hold = crate::hold_id("shop", "1", "A-1");
        let outcome = Outcome {
            id: crate::outcome_id("shop", "1", "A-1", 0),
            subject: "A-1".parse().unwrap(),
            time,
            sequence: 2,
            generation: 1,
            causation_source: "shop".parse().unwrap(),
            causation_id: "1".parse().unwrap(),
            traceparent: Traceparent::derive("shop", "1"),
            data: TicketOutcome::TicketHeld(crate::outcomes::TicketHeld {
                user,
                hold,
                until: time,
            }),
        };
        let data = outcome.data.data().to_string();
        let again = outcome.to_json_as_told("holdfast.outcome.ticket.held.v1", &data);
        assert_eq!(again, Ok(outcome.to_json()));
        assert!(outcome.to_json_as_told("holdfast.outcome.ticket.held.v1", "{").is_err());
        assert_eq!(Outcome::from_json(&outcome.to_json()), Ok(outcome));
    }

    #[test]
    fn every_refusal_reason_is_written_as_it_is_named() {
        for reason in RefusalReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
            assert_eq!(RefusalReason::parse(reason.as_str()), Ok(*reason));
        }
    }
}
