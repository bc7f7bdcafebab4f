//! What verify knows events, contents and records by: numbers of a fixed size, so that it keeps no payload.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;

use holdfast_schemas::{Event, EventData, OutcomeData};
use time::OffsetDateTime;
use uuid::Uuid;

/// A partition of a topic.
pub(super) type TopicPartition = (&'static str, i32);

/// An event, by a digest of its source and id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Cause(Uuid);

/// The first bytes of a request hash: enough to tell two contents of one id apart.
pub(super) type Digest = [u8; 16];

/// Some bytes, by a hash that is compared within one run only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint(NonZeroU64);

impl Cause {
    pub(super) fn of(source: &str, id: &str) -> Self {
        let length = (source.len() as u64).to_be_bytes();
        Self(Uuid::new_v5(
            &Uuid::nil(),
            &[&length, source.as_bytes(), id.as_bytes()].concat(),
        ))
    }
}

impl Fingerprint {
    pub(super) fn of(what: &(impl Hash + ?Sized)) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self(NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MAX))
    }

    /// Of what an outcome says: its type and data, in whichever version they were written.
    pub(super) fn of_outcome(told: &impl OutcomeData) -> Self {
        Self::of(&(told.outcome_type(), told.data().to_string()))
    }
}

/// The event's name, and its content.
pub(super) fn named<D: EventData>(event: &Event<D>) -> Option<(Cause, Digest)> {
    let cause = Cause::of(event.source.as_str(), event.id.as_str());
    Some((cause, digest(event.hash().as_bytes())?))
}

pub(super) fn digest(hash: &[u8]) -> Option<Digest> {
    hash.first_chunk().copied()
}

pub(super) fn millis(time: OffsetDateTime) -> i64 {
    (time.unix_timestamp_nanos() / 1_000_000) as i64
}
