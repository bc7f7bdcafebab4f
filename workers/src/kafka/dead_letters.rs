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
use time::OffsetDateTime;

use super::reader::{self, Reader};
use super::{Deliveries, Drained, Producer, broker_time, each_header, producer, send};
use crate::config;

/// How much longer than the client library tries is waited for its report.
const MARGIN: Duration = Duration::from_secs(5);

/// A record of the dead-letter topic.
#[derive(Debug, Clone)]
pub struct DeadLetterRecord {
    pub partition: i32,
    pub offset: i64,
    /// When it was written, by the broker or its writer.
    pub time: OffsetDateTime,
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

/// Reads all dead letters, each partition in order. Kafka is waited for no longer than `patience`.
///
/// # Errors
/// The topic cannot be read; what `take` returns.
pub fn each<E: From<reader::Error>>(
    config: &config::Kafka,
    patience: Duration,
    mut take: impl FnMut(DeadLetterRecord) -> Result<(), E>,
) -> Result<(), E> {
    let reader = Reader::within(patience, config)?;
    let extent = reader.written(topics::DEAD_LETTERS)?;
    reader.each(topics::DEAD_LETTERS, &extent, |message| {
        take(DeadLetterRecord::of(message))
    })
}

/// Sends the records of dead letters again.
pub struct Replayer {
    address: Box<str>,
    reader: Reader,
    producer: Producer,
    patience: Duration,
}

impl Replayer {
    /// Waits for Kafka no longer than `patience`.
    ///
    /// # Errors
    /// The client library refuses the settings.
    pub fn new(config: &config::Kafka, patience: Duration) -> Result<Self, Error> {
        let producer = producer(config)
            .set("message.max.bytes", config.admitted_record_bytes.to_string())
            .set("message.timeout.ms", patience.as_millis().to_string())
            .create_with_context(Deliveries::new(config));
        Ok(Self {
            address: config.bootstrap.as_str().into(),
            reader: Reader::within(patience, config)?,
            producer: producer.map_err(reader::Error::Client)?,
            patience,
        })
    }

    /// The original record of a dead letter; if retention has removed it from its topic, the copy in the dead letter, which lies there.
    ///
    /// # Errors
    /// A topic cannot be read; neither is there.
    pub fn record(&self, letter: &DeadLetter, partition: i32, offset: i64) -> Result<Copied, Error> {
        let origin = &letter.origin;
        let time = (origin.time.unix_timestamp_nanos() / 1_000_000) as i64;
        // A topic that was created anew has another record at this offset.
        let original = self.at(&origin.topic, origin.partition, origin.offset, Some(time))?;
        let copy = match original {
            Some(original) => Some(original),
            None => self.at(topics::DEAD_LETTERS, partition, offset, None)?,
        };
        copy.ok_or_else(|| Error::Gone {
            topic: origin.topic.clone(),
        })
    }

    /// The record at this place, if it is there, and of this time.
    fn at(&self, topic: &str, partition: i32, offset: i64, time: Option<i64>) -> Result<Option<Copied>, reader::Error> {
        let extent = self.reader.committed(topic)?;
        let (earliest, end) = extent.get(&partition).copied().unwrap_or_default();
        if !(earliest..end).contains(&offset) {
            return Ok(None);
        }
        let one = BTreeMap::from([(partition, (offset, offset + 1))]);
        let mut found = None;
        self.reader.each(topic, &one, |message| {
            if message.offset() == offset && (time.is_none() || message.timestamp().to_millis() == time) {
                found = Some(Copied::of(message));
            }
            Ok::<_, reader::Error>(())
        })?;
        Ok(found)
    }

    /// Sends a record, without Holdfast's own headers, and waits until Kafka has it.
    ///
    /// # Errors
    /// Kafka does not take it.
    pub fn send(&self, topic: &str, record: &Copied) -> Result<(), Error> {
        let failed = |source| Error::Send {
            address: self.address.clone(),
            topic: topic.to_owned(),
            source,
        };
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
        send(&self.producer, message).map_err(failed)?;
        let deliveries = self.producer.context();
        let drained = deliveries.drain(self.patience + MARGIN);
        match (drained, deliveries.take_failed().first()) {
            (Drained::Settled, None) => Ok(()),
            (_, Some(failure)) => Err(failed(KafkaError::MessageProduction(failure.code))),
            (Drained::InFlight, None) => Err(failed(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut))),
        }
    }
}

impl DeadLetterRecord {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let record = Copied::of(message);
        let headers = record.headers.iter();
        let headers = headers.map(|(name, value)| (name.as_str(), value.as_deref()));
        Self {
            partition: message.partition(),
            offset: message.offset(),
            time: broker_time(message).unwrap_or(OffsetDateTime::UNIX_EPOCH),
            says: DeadLetter::from_headers(headers).ok(),
            record,
        }
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

/// The reason why a record was not sent again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the record was not sent to {topic} of Kafka at {address}")]
    Send {
        address: Box<str>,
        topic: String,
        source: KafkaError,
    },
    #[error("the record is neither on {topic} any more nor among the dead letters: retention has removed both")]
    Gone { topic: String },
    #[error(transparent)]
    Read(#[from] reader::Error),
}
