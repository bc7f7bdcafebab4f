//! The dead-letter topic, for operators: reading it, and sending a record again.
//!
//! A dead letter is without its bytes when the original came in compressed and fits no record of `dead-letters` even so:
//! then reason and origin stand alone, and the detail says it. Otherwise it would stop its partition.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_schemas::{DeadLetter, dead_letter, topics};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _};

use super::reader::{self, Reader};
use super::{Deliveries, Drained, Producer, each_header, producer, send};
use crate::config;

/// Longest wait for an acknowledgement.
const PATIENCE: Duration = Duration::from_secs(30);

/// A record of the dead-letter topic.
#[derive(Debug, Clone)]
pub struct DeadLetterRecord {
    pub partition: i32,
    pub offset: i64,
    /// The content of its headers. None for the record of a direct subscription that has no origin.
    pub says: Option<DeadLetter>,
    pub record: Copied,
}

/// A copy of a record's key, value and headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Reads all dead letters, each partition in order.
///
/// # Errors
/// The topic cannot be read; what `take` returns.
pub fn each<E: From<reader::Error>>(
    config: &config::Kafka,
    mut take: impl FnMut(DeadLetterRecord) -> Result<(), E>,
) -> Result<(), E> {
    let reader = Reader::new(config)?;
    let extent = reader.written(topics::DEAD_LETTERS)?;
    reader.each(topics::DEAD_LETTERS, &extent, |message| {
        let record = Copied::of(message);
        let headers = record.headers.iter();
        let headers = headers.map(|(name, value)| (name.as_str(), value.as_deref()));
        take(DeadLetterRecord {
            partition: message.partition(),
            offset: message.offset(),
            says: DeadLetter::from_headers(headers).ok(),
            record,
        })
    })
}

/// The original record of a dead letter, if it is still on its topic.
///
/// # Errors
/// The topic cannot be read.
pub fn original(config: &config::Kafka, letter: &DeadLetter) -> Result<Option<Copied>, reader::Error> {
    let reader = Reader::new(config)?;
    let origin = &letter.origin;
    let extent = reader.committed(&origin.topic)?;
    let (earliest, end) = extent.get(&origin.partition).copied().unwrap_or_default();
    if !(earliest..end).contains(&origin.offset) {
        return Ok(None);
    }
    let one = BTreeMap::from([(origin.partition, (origin.offset, origin.offset + 1))]);
    let mut found = None;
    reader.each(&origin.topic, &one, |message| {
        // A topic that was created anew has another record at this offset.
        let time = (origin.time.unix_timestamp_nanos() / 1_000_000) as i64;
        if message.offset() == origin.offset && message.timestamp().to_millis() == Some(time) {
            found = Some(Copied::of(message));
        }
        Ok::<_, reader::Error>(())
    })?;
    Ok(found)
}

/// Sends a record, without Holdfast's own headers, and waits until Kafka has it.
///
/// # Errors
/// [`Error`]
pub fn resend(config: &config::Kafka, topic: &str, record: &Copied) -> Result<(), Error> {
    let failed = |source| Error::Send {
        address: config.bootstrap.as_str().into(),
        topic: topic.to_owned(),
        source,
    };
    let producer: Producer = producer(config)
        .set("message.max.bytes", config.admitted_record_bytes.to_string())
        .set("message.timeout.ms", PATIENCE.as_millis().to_string())
        .create_with_context(Deliveries::new(config))
        .map_err(failed)?;
    let own = record.headers.iter().filter(|(name, _)| !dead_letter::is_own(name));
    let headers = own.fold(OwnedHeaders::new(), |headers, (key, value)| {
        let value = value.as_deref();
        headers.insert(Header { key, value })
    });
    let mut message = BaseRecord::with_opaque_to(topic, 0).headers(headers);
    if let Some(key) = &record.key {
        message = message.key(key.as_slice());
    }
    if let Some(value) = &record.value {
        message = message.payload(value.as_slice());
    }
    send(&producer, message).map_err(failed)?;
    let deliveries = producer.context();
    let drained = deliveries.drain(PATIENCE + Duration::from_secs(5));
    match (drained, deliveries.take_failed().first()) {
        (Drained::Settled, None) => Ok(()),
        (_, Some(failure)) => Err(failed(KafkaError::MessageProduction(failure.code))),
        (Drained::InFlight, None) => Err(failed(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut))),
    }
}

impl Copied {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let owned = |bytes: &[u8]| bytes.to_vec();
        // One whose name is not UTF-8 is left out: it is why the record could not be taken.
        let headers = each_header(message).flatten();
        Self {
            key: message.key().map(owned),
            value: message.payload().map(owned),
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.map(owned)))
                .collect(),
        }
    }
}

/// The reason why a record could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the record was not sent to {topic} of Kafka at {address}")]
    Send {
        address: Box<str>,
        topic: String,
        source: KafkaError,
    },
}
