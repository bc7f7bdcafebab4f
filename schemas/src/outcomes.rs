//! The outcomes on the topic `reservations.outcomes`: what became of what was asked.

pub(crate) mod v1;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::identity::{HoldId, OutcomeId};
use crate::moment;
use crate::money::Price;
use crate::text::{CheckoutId, EventId, Invalid, Seat, ShowId, Source, TicketId, UserId};
use crate::trace::Traceparent;
use crate::version::{Object, Version, Wire};

pub use v1::RefusalReason;

/// One outcome, as the world is told it. Its `source` is always [`Outcome::SOURCE`].
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub id: OutcomeId,
    pub subject: TicketId,
    pub time: OffsetDateTime,
    /// Counts the outcomes of one subject without a gap; 0 for the refusal of a ticket that there is none of.
    pub sequence: i64,
    /// Rises when the database was put back; consumers order by generation, then sequence.
    pub generation: i64,
    /// The event that it answers.
    pub causation_source: Source,
    pub causation_id: EventId,
    pub traceparent: Traceparent,
    pub data: Told,
}

/// What is told, in its current form, whichever version it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The ticket is for sale, at these terms.
    TicketListed {
        show: ShowId,
        seat: Option<Seat>,
        price: Price,
    },
    /// The terms of the ticket are now these.
    TicketChanged {
        show: ShowId,
        seat: Option<Seat>,
        price: Price,
    },
    /// The ticket is held for the user until then.
    TicketHeld {
        user: UserId,
        hold: HoldId,
        until: OffsetDateTime,
    },
    /// The user gave the hold back; the ticket is for sale again.
    TicketReleased { user: UserId, hold: HoldId },
    /// The hold is over; the ticket is for sale again.
    TicketExpired { user: UserId, hold: HoldId },
    /// The ticket is the user's.
    TicketSold { user: UserId, checkout: CheckoutId },
    /// The sale is undone; the ticket is for sale again.
    TicketReturned { user: UserId, checkout: CheckoutId },
    /// The ticket is no longer for sale.
    TicketWithdrawn,
    /// A rule forbids what was asked; nothing changed.
    ReservationRefused { reason: RefusalReason },
}

/// Every version that can be read; a new one is a module and a line.
pub(crate) const VERSIONS: &[Version<Told>] = &[
    Version::of::<v1::TicketListed>(),
    Version::of::<v1::TicketChanged>(),
    Version::of::<v1::TicketHeld>(),
    Version::of::<v1::TicketReleased>(),
    Version::of::<v1::TicketExpired>(),
    Version::of::<v1::TicketSold>(),
    Version::of::<v1::TicketReturned>(),
    Version::of::<v1::TicketWithdrawn>(),
    Version::of::<v1::ReservationRefused>(),
];

/// What one event was answered: kept with it, so that a repeat gets the same again.
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

impl ReplyOutcome {
    pub fn new(told: &Told, sequence: i64) -> Self {
        Self {
            outcome_type: told.outcome_type().to_owned(),
            sequence,
            data: told.data(),
        }
    }
}

impl Told {
    /// The CloudEvents `type`, in the newest version.
    pub fn outcome_type(&self) -> &'static str {
        match self {
            Self::TicketListed { .. } => v1::TicketListed::TYPE,
            Self::TicketChanged { .. } => v1::TicketChanged::TYPE,
            Self::TicketHeld { .. } => v1::TicketHeld::TYPE,
            Self::TicketReleased { .. } => v1::TicketReleased::TYPE,
            Self::TicketExpired { .. } => v1::TicketExpired::TYPE,
            Self::TicketSold { .. } => v1::TicketSold::TYPE,
            Self::TicketReturned { .. } => v1::TicketReturned::TYPE,
            Self::TicketWithdrawn => v1::TicketWithdrawn::TYPE,
            Self::ReservationRefused { .. } => v1::ReservationRefused::TYPE,
        }
    }

    /// The data, in the newest version.
    pub fn data(&self) -> Value {
        match self.clone() {
            Self::TicketListed { show, seat, price } => write(v1::TicketListed { show, seat, price }),
            Self::TicketChanged { show, seat, price } => write(v1::TicketChanged { show, seat, price }),
            Self::TicketHeld { user, hold, until } => write(v1::TicketHeld { user, hold, until }),
            Self::TicketReleased { user, hold } => write(v1::TicketReleased { user, hold }),
            Self::TicketExpired { user, hold } => write(v1::TicketExpired { user, hold }),
            Self::TicketSold { user, checkout } => write(v1::TicketSold { user, checkout }),
            Self::TicketReturned { user, checkout } => write(v1::TicketReturned { user, checkout }),
            Self::TicketWithdrawn => write(v1::TicketWithdrawn {}),
            Self::ReservationRefused { reason } => write(v1::ReservationRefused { reason }),
        }
    }

    /// Reads the data of an outcome of this type, in whichever version.
    pub fn read(outcome_type: &str, data: &str) -> Result<Told, Invalid> {
        let version = VERSIONS.iter().find(|version| version.name == outcome_type);
        let version = version.ok_or(Invalid::new("is an outcome of a type or version not known here"))?;
        Ok((version.read)(data).map_err(Invalid::new)?.current)
    }
}

fn write<W: Wire>(wire: W) -> Value {
    serde_json::to_value(wire).expect("wire types have text keys and whole numbers, which JSON can always write")
}

impl Outcome {
    pub const SOURCE: &str = "holdfast";

    /// A CloudEvent in structured mode.
    pub fn to_json(&self) -> Vec<u8> {
        let data = serde_json::value::to_raw_value(&self.data.data()).expect("JSON can be written");
        let envelope = Envelope {
            specversion: "1.0".to_owned(),
            id: self.id,
            source: Self::SOURCE.to_owned(),
            outcome_type: self.data.outcome_type().to_owned(),
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
    pub fn from_json(json: &[u8]) -> Result<Outcome, Invalid> {
        let Object::<Envelope>(envelope) =
            serde_json::from_slice(json).map_err(|error| Invalid::new(format!("is no outcome: {error}")))?;
        if envelope.source != Self::SOURCE {
            return Err(Invalid::new("is no outcome: source is not holdfast"));
        }
        let data = Told::read(&envelope.outcome_type, envelope.data.get())?;
        Ok(Outcome {
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
struct Envelope {
    specversion: String,
    id: OutcomeId,
    source: String,
    #[serde(rename = "type")]
    outcome_type: String,
    subject: TicketId,
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
        let user: UserId = "ann".parse().unwrap();
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
            data: Told::TicketHeld {
                user,
                hold,
                until: time,
            },
        };
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
