//! A dead letter, judged by the record that it is about for as long as that is still there: does its reason follow from the
//! record, and does it have the record's bytes? One that lies accounts for nothing.
//!
//! There are two kinds. The gate copies the record, and sees each record by itself. A handler writes the event down as it has
//! it, in structured mode: it alone knows whether an id was used before, and where it is subscribed to a public topic without
//! a gate, it judges a record by its key and value alone.

use holdfast_schemas::{
    DeadLetter, DeadLetterReason as Reason, Event, EventData, Record, dead_letter, decode, decode_delivery,
};
use time::OffsetDateTime;

use super::identity::{Cause, Digest, Fingerprint, millis, named};
use super::terms::{CLOCK_SKEW, Terms};
use crate::kafka::RecordHeader;

/// Bytes of a dead letter beside its record, with some to spare.
const BESIDE_RECORD_BYTES: usize = 8_192;

/// A record as it lies on a topic.
#[derive(Debug, Clone)]
pub(super) struct Original<'a> {
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    /// None in place of one whose name is not UTF-8.
    pub(super) headers: Vec<Option<RecordHeader<'a>>>,
    /// The broker's time.
    pub(super) at: OffsetDateTime,
}

/// The claim of a dead letter about its record.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) reason: Reason,
    /// When it was written, in milliseconds.
    pub(super) at: i64,
    /// The broker's time of its record, in milliseconds.
    origin_at: i64,
    contents: Contents,
}

/// The part of its record that a dead letter has.
#[derive(Debug)]
enum Contents {
    /// Nothing: it was too large.
    LeftOut,
    /// A copy, or something else.
    Copy(Fingerprint),
    /// Also the copy of a record whose only header says structured mode.
    ByHandler {
        copy: Fingerprint,
        value: Fingerprint,
        event: Option<(Cause, Digest)>,
    },
}

/// The record's evidence about its dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Evidence {
    /// It is about another record, which lay there before the topic was made anew.
    Elsewhere,
    Follows,
    /// The reason follows if the id was used for another content before.
    IfReused(Cause, Digest),
    /// The reason follows if nobody knew the type then.
    IfUnknownThen(&'static str),
    Lies(String),
}

impl Original<'_> {
    pub(super) fn decode<D: EventData>(&self) -> Result<Event<D>, Reason> {
        let headers: Option<Vec<_>> = self.headers.iter().copied().collect();
        let record = Record {
            key: self.key,
            value: self.value,
            headers: headers.ok_or(Reason::InvalidAttribute)?,
        };
        decode(&record).map_err(|refusal| refusal.reason)
    }

    /// Of all that it came with: what Holdfast adds to a dead letter is left out, here as there.
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&(self.key, self.value, self.others_headers()))
    }

    fn others_headers(&self) -> Vec<Option<RecordHeader<'_>>> {
        let is_own = |header: &Option<RecordHeader<'_>>| header.is_some_and(|(name, _)| dead_letter::is_own(name));
        self.headers.iter().copied().filter(|header| !is_own(header)).collect()
    }

    fn bytes(&self) -> usize {
        let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let headers = self.headers.iter().flatten();
        let headers = headers.map(|(name, value)| name.len() + length(*value));
        length(self.key) + length(self.value) + headers.sum::<usize>()
    }

    /// The reason for which a handler without a gate refuses it, if it does.
    fn refused_by_handler<D: EventData>(&self) -> Option<Reason> {
        match decode_delivery::<D>(self.value.unwrap_or_default()) {
            Err(refusal) => Some(refusal.reason),
            Ok(events) => events.iter().find_map(|event| match event {
                Err(undecoded) => Some(undecoded.refusal.reason),
                Ok(event) => (Some(named_by(event)) != self.key).then_some(Reason::KeyMismatch),
            }),
        }
    }
}

fn named_by<D: EventData>(event: &Event<D>) -> &[u8] {
    use holdfast_schemas::Key as _;
    event.subject.as_str().as_bytes()
}

impl Claim {
    /// `record` is the dead letter's own, `says` what its headers say.
    pub(super) fn new<D: EventData>(says: &DeadLetter, record: &Original<'_>) -> Self {
        let at = millis(record.at);
        let contents = match &record.others_headers()[..] {
            [] if record.key.is_none() && record.value.is_none() => Contents::LeftOut,
            [Some(("content-type", Some(media_type)))] if media_type.starts_with(b"application/cloudevents+json") => {
                Contents::ByHandler {
                    copy: record.fingerprint(),
                    value: Fingerprint::of(&record.value),
                    event: event_in::<D>(record.value),
                }
            }
            _ => Contents::Copy(record.fingerprint()),
        };
        Self {
            reason: says.reason,
            at,
            origin_at: millis(says.origin.time),
            contents,
        }
    }

    /// Compares with the record, and with the event that it decodes to.
    pub(super) fn judge<D: EventData>(
        &self,
        record: &Original<'_>,
        decoded: &Result<Event<D>, Reason>,
        terms: &Terms,
    ) -> Evidence {
        if self.origin_at != millis(record.at) {
            return Evidence::Elsewhere;
        }
        if !self.has(record, decoded, terms) {
            return Evidence::Lies("has other bytes than the record".to_owned());
        }
        match decoded {
            Ok(event) => self.about_sound(record, event, terms),
            Err(reason) => self.about_unsound::<D>(record, *reason),
        }
    }

    /// True if it has the record, or the event in it.
    fn has<D: EventData>(&self, record: &Original<'_>, decoded: &Result<Event<D>, Reason>, terms: &Terms) -> bool {
        match &self.contents {
            Contents::LeftOut => {
                let is_too_large = record.bytes() + BESIDE_RECORD_BYTES > terms.letter_bytes;
                is_too_large || record.bytes() == 0 || self.reason == Reason::NotAdmitted
            }
            Contents::Copy(copy) => *copy == record.fingerprint(),
            Contents::ByHandler { copy, value, event } => {
                let named = decoded.as_ref().ok().and_then(named);
                *copy == record.fingerprint()
                    || *value == Fingerprint::of(&record.value)
                    || event.is_some() && (*event == named || *event == event_in::<D>(record.value))
            }
        }
    }

    fn about_sound<D: EventData>(&self, record: &Original<'_>, event: &Event<D>, terms: &Terms) -> Evidence {
        match self.reason {
            Reason::TooOld => {
                let age = self.at - millis(event.time.min(record.at));
                match age > terms.idempotency_retention - CLOCK_SKEW {
                    true => Evidence::Follows,
                    false => Evidence::Lies(format!(
                        "says too_old, but was written when the event was {} s old",
                        age / 1_000
                    )),
                }
            }
            Reason::IdReused => match named(event) {
                Some((cause, digest)) => Evidence::IfReused(cause, digest),
                None => self.lies("the event has no hash"),
            },
            Reason::TooEarly => match event.check_time(record.at) {
                Err(_) => Evidence::Follows,
                Ok(()) => self.lies("its time is not ahead of the broker's"),
            },
            // The broker's word, or an operator's, which the record does not show.
            Reason::NotAdmitted | Reason::Quarantined => Evidence::Follows,
            Reason::UnknownType | Reason::UnknownVersion => Evidence::IfUnknownThen(event.event_type()),
            Reason::KeyMissing
            | Reason::KeyEmpty
            | Reason::KeyNotUtf8
            | Reason::KeyInvalid
            | Reason::KeyMismatch
            | Reason::Tombstone
            | Reason::Undecodable
            | Reason::ContentMode
            | Reason::MissingAttribute
            | Reason::InvalidAttribute
            | Reason::InvalidData
            | Reason::TooLarge
            | Reason::ReservedSource
            | Reason::NulCharacter => match self.is_refused_by_handler::<D>(record) {
                true => Evidence::Follows,
                false => self.lies("the record is a sound event"),
            },
        }
    }

    fn about_unsound<D: EventData>(&self, record: &Original<'_>, reason: Reason) -> Evidence {
        if self.reason == reason || self.is_refused_by_handler::<D>(record) {
            return Evidence::Follows;
        }
        self.lies(&format!("what is wrong with the record is {reason}"))
    }

    fn is_refused_by_handler<D: EventData>(&self, record: &Original<'_>) -> bool {
        matches!(self.contents, Contents::ByHandler { .. }) && record.refused_by_handler::<D>() == Some(self.reason)
    }

    fn lies(&self, truth: &str) -> Evidence {
        Evidence::Lies(format!("says {}, but {truth}", self.reason))
    }
}

fn event_in<D: EventData>(value: Option<&[u8]>) -> Option<(Cause, Digest)> {
    match &decode_delivery::<D>(value?).ok()?[..] {
        [Ok(event)] => named(event),
        _ => None,
    }
}
