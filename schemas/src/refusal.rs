//! The reasons for which a record is dead-lettered.

use std::fmt;

use crate::reasons::reasons;
use crate::text::Invalid;

/// A record that cannot be decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refusal {
    pub reason: DeadLetterReason,
    /// The fault, its place and its mend, for the sender of the record: at most [`Self::MAX_DETAIL`] bytes, without any of its
    /// data.
    pub detail: String,
}

impl Refusal {
    /// The longest detail, in bytes.
    pub const MAX_DETAIL: usize = 1_000;

    pub fn new(reason: DeadLetterReason, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        detail.truncate(detail.floor_char_boundary(Self::MAX_DETAIL));
        Self {
            reason,
            detail: detail.replace('\0', "\u{fffd}"),
        }
    }
}

reasons! {
    /// Why a record was dead-lettered.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    DeadLetterReason
    KeyMissing "key_missing":
        "The record has no key.",
        "Set the key to the subject.";
    KeyEmpty "key_empty":
        "The key has no bytes.",
        "Set the key to the subject.";
    KeyNotUtf8 "key_not_utf8":
        "The key is not UTF-8; often it was written by a number or Avro serializer.",
        "Write the key with a string serializer.";
    KeyInvalid "key_invalid":
        "The key is longer than 255 bytes.",
        "Use a shorter key.";
    KeyMismatch "key_mismatch":
        "The key and the event's `subject` differ, byte by byte.",
        "Make both the id that the event is about.";
    Tombstone "tombstone":
        "The record has a key and no value at all (null).",
        "Send an event; to take a ticket from sale send `holdfast.ticket.withdrawn.v1`.";
    Undecodable "undecodable":
        "The value is empty, not UTF-8, not JSON, cut off, or nested more than 32 deep.",
        "Send one CloudEvent as JSON.";
    ContentMode "content_mode":
        "The value is JSON, but neither the headers nor the value make it a CloudEvent in structured or binary mode; \
         or it is a batch, or a CloudEvent in another format than JSON.",
        "Send structured mode (`content-type: application/cloudevents+json`) or binary mode (`ce_` headers), one event per \
         record.";
    UnknownType "unknown_type":
        "No event has this `type`.",
        "Use a type of this catalogue.";
    UnknownVersion "unknown_version":
        "The event is known, this version of it is not, perhaps not yet.",
        "Use a version of this catalogue, or replay the record once every gate knows the version.";
    MissingAttribute "missing_attribute":
        "One of `specversion`, `id`, `source`, `type`, `subject` and `time` is absent.",
        "Add the attribute.";
    InvalidAttribute "invalid_attribute":
        "An attribute is given twice, has the wrong kind, or is out of bounds.",
        "Mend the attribute that the detail names.";
    InvalidData "invalid_data":
        "A field of the data is missing, unknown, of the wrong kind or out of bounds.",
        "Mend the field that the detail names.";
    TooLarge "too_large":
        "The event's data take more than 262,144 bytes as JSON without blanks.",
        "Say it in several events.";
    ReservedSource "reserved_source":
        "The `source` begins with `holdfast` or `restate:`: these are the names under which Holdfast itself asks.",
        "Use a `source` of the producer's own.";
    NulCharacter "nul_character":
        "U+0000 stands in the key, an attribute or the data; the database cannot store it.",
        "Leave the character out.";
    TooOld "too_old":
        "The event is older than the time for which repeats are recognised, so that nobody can say whether it was decided.",
        "Look up what became of it, then send it anew with a new `id` and `time`.";
    TooEarly "too_early":
        "The event's `time` lies more than an hour ahead of the broker's clock, so that its repeats could be told for longer \
         than answers are kept.",
        "Set the producer's clock; what an event is about (a show's date, say) belongs into its data. Then send it anew.";
    NotAdmitted "not_admitted":
        "Kafka refuses what the gate made of the record, each time and by itself.",
        "Mend what the detail names (a limit of the admitted topic, say), then replay the record.";
    Quarantined "quarantined":
        "The event broke Holdfast itself, and an operator dropped it out of quarantine.",
        "Replay the record once what broke is mended, if it still counts.";
    IdReused "id_reused":
        "Another event with other content has had the same `source` and `id`.",
        "Send it with an `id` of its own.";
}

impl DeadLetterReason {
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let found = Self::ALL.iter().find(|reason| reason.as_str() == text);
        found.copied().ok_or(Invalid::new("is no reason for a dead letter"))
    }
}

impl fmt::Display for DeadLetterReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
