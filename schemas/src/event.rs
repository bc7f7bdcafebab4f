//! An event: a CloudEvent that was decoded and checked.

use std::fmt;

use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::moment;
use crate::refusal::{DeadLetterReason, Refusal};
use crate::stream::{EventData, Key};
use crate::text::{EventId, Source};
use crate::trace::Traceparent;

/// An event. `(source, id)` names it; the same pair with another [`hash`](Self::hash) is another event that reuses the id.
#[derive(Debug, Clone, PartialEq)]
pub struct Event<A: EventData> {
    pub source: Source,
    pub id: EventId,
    /// The time of the event, by its producer; UTC, in the years 1970 to 9999.
    pub time: OffsetDateTime,
    /// The producer's trace, or one that follows from source and id.
    pub traceparent: Traceparent,
    /// The subject, which is the key of its record.
    pub subject: A::Key,
    /// The position of its record on the public topic; none for an event that did not come through the gate.
    pub origin: Option<Origin>,
    pub data: A,
    content: Content,
}

/// The position and the time of a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// The broker's time, in milliseconds.
    pub time: OffsetDateTime,
}

impl<A: EventData> Event<A> {
    /// The most bytes of data, in canonical JSON. With its attributes an event is far smaller than any record may be.
    pub const MAX_DATA_BYTES: usize = 256 * 1024;
    /// How far the event's time may lie ahead of the broker's clock.
    pub const MAX_AHEAD: Duration = Duration::HOUR;

    /// An event that did not come from Kafka, in the newest version of its type. `time` is taken to the nearest one that can
    /// be written (years 1970 to 9999).
    pub fn new(
        source: Source,
        id: EventId,
        time: OffsetDateTime,
        traceparent: Option<Traceparent>,
        subject: A::Key,
        data: A,
    ) -> Self {
        let (event_type, wire) = data.newest();
        let content = Content::new(event_type, &subject, wire).or_earlier(&data, &subject);
        Self::assemble(source, id, moment::clamp(time), traceparent, subject, data, content)
    }

    pub(crate) fn assemble(
        source: Source,
        id: EventId,
        time: OffsetDateTime,
        traceparent: Option<Traceparent>,
        subject: A::Key,
        data: A,
        content: Content,
    ) -> Self {
        let traceparent = traceparent.unwrap_or_else(|| Traceparent::derive(source.as_str(), id.as_str()));
        Self {
            source,
            id,
            time,
            traceparent,
            subject,
            origin: None,
            data,
            content,
        }
    }

    /// The CloudEvents `type`, in the version that the producer chose.
    pub fn event_type(&self) -> &'static str {
        self.content.event_type
    }

    /// Equal for equal type, subject and data, however they were written.
    pub fn hash(&self) -> &RequestHash {
        &self.content.hash
    }

    /// Whether this is the event's hash. What did not come from Kafka has one in each version that can say it: its producer chose none,
    /// and an earlier release wrote it in the newest version of its time.
    pub fn has_hash(&self, hash: &[u8]) -> bool {
        let mut hashes = std::iter::once(&self.content.hash).chain(&self.content.earlier);
        hashes.any(|known| known.as_bytes() == hash)
    }

    /// Fails when the data take more than [`Self::MAX_DATA_BYTES`].
    pub fn check_size(&self) -> Result<(), Refusal> {
        let bytes = self.content.data.get().len();
        match bytes <= Self::MAX_DATA_BYTES {
            true => Ok(()),
            false => Err(Refusal::new(
                DeadLetterReason::TooLarge,
                format!(
                    "data: take {bytes} bytes; at most {} are taken, say it in several events",
                    Self::MAX_DATA_BYTES
                ),
            )),
        }
    }

    /// Fails when the event's time lies more than [`Self::MAX_AHEAD`] ahead of `clock`, the broker's where there is one. The
    /// answer to an event is kept for as long as its time allows repeats: one far ahead would be kept for ever.
    pub fn check_time(&self, clock: OffsetDateTime) -> Result<(), Refusal> {
        match self.time - clock <= Self::MAX_AHEAD {
            true => Ok(()),
            false => Err(Refusal::new(
                DeadLetterReason::TooEarly,
                "time: more than an hour ahead of the broker's clock; set the producer's clock, or, if it is the moment that \
                 the event is about, put it into the data, and send the event anew",
            )),
        }
    }

    /// Approximate size of the event as JSON, in bytes.
    pub fn size(&self) -> usize {
        400 + self.source.as_str().len()
            + self.id.as_str().len()
            + self.subject.as_str().len()
            + self.content.data.get().len()
    }

    /// A CloudEvent in structured mode, in the producer's version. It decodes to this event.
    pub fn to_json(&self) -> Vec<u8> {
        let envelope = Envelope {
            specversion: "1.0",
            id: self.id.as_str(),
            source: self.source.as_str(),
            event_type: self.content.event_type,
            subject: self.subject.as_str(),
            time: moment::format(self.time),
            traceparent: self.traceparent.as_str(),
            origintopic: self.origin.as_ref().map(|origin| origin.topic.as_str()),
            originpartition: self.origin.as_ref().map(|origin| origin.partition),
            originoffset: self.origin.as_ref().map(|origin| origin.offset.to_string()),
            origintime: self.origin.as_ref().map(|origin| moment::format(origin.time)),
            datacontenttype: "application/json",
            data: &self.content.data,
        };
        serde_json::to_vec(&envelope).expect("texts, numbers and JSON that was read can be written")
    }
}

/// Type and data as the producer versioned them.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    event_type: &'static str,
    /// In canonical JSON.
    data: Box<RawValue>,
    hash: RequestHash,
    /// In earlier versions, where nobody chose this one.
    earlier: Vec<RequestHash>,
}

impl Content {
    /// `data` must be canonical.
    pub(crate) fn new(event_type: &'static str, subject: &impl Key, data: Box<RawValue>) -> Self {
        let hash = RequestHash::of(event_type, subject, &data);
        Self {
            event_type,
            data,
            hash,
            earlier: Vec::new(),
        }
    }

    /// With the hashes in the earlier versions that say the same.
    fn or_earlier<A: EventData>(mut self, data: &A, subject: &A::Key) -> Self {
        let kind = |event_type: &'static str| event_type.rsplit_once('.').map(|(kind, _version)| kind);
        let others = A::VERSIONS
            .iter()
            .filter(|version| version.name != self.event_type && kind(version.name) == kind(self.event_type));
        let same = others.filter_map(|version| {
            let read = (version.read)(self.data.get()).ok()?;
            (read.current == *data).then(|| RequestHash::of(version.name, subject, &read.canonical))
        });
        self.earlier = same.collect();
        self
    }
}

/// The hash covers the rest.
impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

/// The hash of an event's content in 33 bytes: a tag that names the way of hashing, then the hash.
///
/// Tag 1 is SHA-256 of the canonical JSON (RFC 8785) of `{"data":…,"subject":…,"type":…}`, without trace, time and origin.
/// A tag stays computable for as long as its hashes are kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestHash([u8; 33]);

impl RequestHash {
    pub fn as_bytes(&self) -> &[u8; 33] {
        &self.0
    }

    /// The hash of a request from within the product, by the same rule.
    pub fn of_request(kind: &str, subject: &impl Key, data: &serde_json::Value) -> Self {
        let data = serde_json_canonicalizer::to_string(data).expect("JSON values have text keys");
        Self::of(
            kind,
            subject,
            &RawValue::from_string(data).expect("JSON that was written can be read"),
        )
    }

    /// Canonical JSON orders members by name, and its parts are canonical: the whole is their concatenation.
    fn of(event_type: &str, subject: &impl Key, data: &RawValue) -> Self {
        let subject = serde_json::to_string(subject).expect("a text can be written");
        let mut hash = Sha256::new();
        for part in [
            r#"{"data":"#,
            data.get(),
            r#","subject":"#,
            &subject,
            r#","type":""#,
            event_type,
            r#""}"#,
        ] {
            hash.update(part);
        }
        let mut tagged = [1; 33];
        tagged[1..].copy_from_slice(&hash.finalize());
        Self(tagged)
    }
}

impl fmt::Debug for RequestHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    #[serde(rename = "type")]
    event_type: &'static str,
    subject: &'a str,
    time: String,
    traceparent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    origintopic: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    originpartition: Option<i32>,
    /// As text: a CloudEvents number has 32 bits, an offset 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    originoffset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origintime: Option<String>,
    datacontenttype: &'static str,
    data: &'a RawValue,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reservations::TicketEvent;
    use serde_json::{Value, json};
    use time::macros::datetime;

    fn requested(user: &str) -> Event<TicketEvent> {
        let data = TicketEvent::ReservationRequested(crate::events::ReservationRequested {
            user: user.parse().unwrap(),
            hold_for: Some(60),
            price: None,
        });
        let time = datetime!(2030-01-31 19:30 UTC);
        Event::new(
            "shop".parse().unwrap(),
            "1".parse().unwrap(),
            time,
            None,
            "A-\u{e9}\"\n1".parse().unwrap(),
            data,
        )
    }

    #[test]
    fn the_hash_is_that_of_the_canonical_json_of_type_subject_and_data() {
        let whole = json!({
            "type": "holdfast.reservation.requested.v2",
            "subject": "A-\u{e9}\"\n1",
            "data": {"user": "ann", "hold_for": 60.0},
        });
        let expected = Sha256::digest(serde_json_canonicalizer::to_vec(&whole).unwrap());
        assert_eq!(requested("ann").hash().as_bytes()[0], 1);
        assert_eq!(requested("ann").hash().as_bytes()[1..], expected[..]);
        assert_ne!(requested("ann").hash(), requested("bob").hash());
    }

    #[test]
    fn a_request_has_a_hash_in_each_version_that_can_say_it() {
        let asked = requested("ann");
        let earlier = |user: &str| {
            let data = json!({ "user": user, "hold_for": 60 });
            RequestHash::of_request("holdfast.reservation.requested.v1", &asked.subject, &data)
        };
        assert!(asked.has_hash(asked.hash().as_bytes()));
        assert!(asked.has_hash(earlier("ann").as_bytes()));
        assert!(!asked.has_hash(earlier("bob").as_bytes()));

        let TicketEvent::ReservationRequested(mut priced) = asked.data.clone() else {
            panic!("{asked:?}");
        };
        priced.price = Some(serde_json::from_value(json!({ "amount": 1_000, "currency": "EUR" })).unwrap());
        let priced = Event::new(
            asked.source.clone(),
            asked.id.clone(),
            asked.time,
            None,
            asked.subject.clone(),
            TicketEvent::ReservationRequested(priced),
        );
        assert!(!priced.has_hash(earlier("ann").as_bytes()), "version 1 has no price");
    }

    #[test]
    fn an_offset_beyond_32_bits_is_written_as_text() {
        let mut event = requested("ann");
        let time = datetime!(2030-01-31 19:31 UTC);
        event.origin = Some(Origin {
            topic: "reservations".into(),
            partition: 7,
            offset: 1 << 40,
            time,
        });
        let json: Value = serde_json::from_slice(&event.to_json()).unwrap();
        assert_eq!(json["originoffset"], "1099511627776");
        assert_eq!(json["originpartition"], 7);
    }

    #[test]
    fn an_event_made_of_an_absurd_number_or_time_can_still_be_written() {
        let data = TicketEvent::ReservationRequested(crate::events::ReservationRequested {
            user: "ann".parse().unwrap(),
            hold_for: Some(i64::MAX),
            price: None,
        });
        let time = datetime!(-3000-01-01 00:00 UTC);
        let event = Event::new(
            "a".parse().unwrap(),
            "1".parse().unwrap(),
            time,
            None,
            "A".parse().unwrap(),
            data,
        );
        let json: Value = serde_json::from_slice(&event.to_json()).unwrap();
        assert_eq!(json["time"], "1970-01-01T00:00:00Z");
        assert_eq!(json["data"]["hold_for"], 9_007_199_254_740_991_i64);
    }
}
