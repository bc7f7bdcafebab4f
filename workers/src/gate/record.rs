//! What the gate makes of a record as the client library hands it over.

use std::time::Duration;

use holdfast_schemas::{DeadLetterReason, Event, EventData, Origin, Record, Refusal};
use rdkafka::message::{BorrowedMessage, Message};
use time::OffsetDateTime;

use super::window;
use crate::kafka;

/// The event that a gate would admit of this record, or why it would admit none.
///
/// # Errors
/// It would be a dead letter.
pub fn admit<A: EventData>(
    message: &BorrowedMessage<'_>,
    now: OffsetDateTime,
    retention: Duration,
) -> Result<Event<A>, Refusal> {
    let origin = origin(A::TOPIC, message, now);
    window::check(&readable(message)?, &origin, now, retention)
}

/// Where a record lies on its topic, and since when; now, if it does not say.
pub fn origin(topic: &str, message: &BorrowedMessage<'_>, now: OffsetDateTime) -> Origin {
    Origin {
        topic: topic.to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        time: kafka::broker_time(message).unwrap_or(now),
    }
}

/// The record, if its headers can be read.
pub(super) fn readable<'m>(message: &'m BorrowedMessage<'_>) -> Result<Record<'m>, Refusal> {
    let headers = kafka::headers(message).ok_or_else(|| {
        Refusal::new(
            DeadLetterReason::InvalidAttribute,
            "headers: a name is not UTF-8; write header names in UTF-8",
        )
    })?;
    Ok(Record {
        key: message.key(),
        value: message.payload(),
        headers,
    })
}
