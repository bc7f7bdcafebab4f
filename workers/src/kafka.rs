//! Shared by every Kafka client of Holdfast: the settings, the partitioner, the wait for acknowledgements, and the reader of
//! headers.
//!
//! A thread of each producer waits for Kafka's acknowledgements and wakes the caller. The client library's `poll` counts in
//! whole milliseconds: asked to wait for less, it spins, which took a tenth of the machine from the path.

pub mod dead_letters;
pub mod group;
pub mod packed;
pub mod publisher;
pub mod reader;
mod remarks;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Headers, Message};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use time::OffsetDateTime;

pub use self::remarks::{Heard, Remarks};
use crate::config;
use crate::transience::{self, Fault};

/// Settings of every client.
pub fn client(config: &config::Kafka) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.bootstrap)
        .set("client.id", "holdfast")
        .set("socket.nagle.disable", "true")
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.max.ms", "1000");
    for (name, value) in config.security.properties() {
        client.set(name, value);
    }
    client
}

/// A consumer that is in no group; it asks, or reads what it is told to.
///
/// # Errors
/// The client library refuses the settings.
pub fn looker(settings: &ClientConfig, remarks: Remarks) -> KafkaResult<BaseConsumer<Remarks>> {
    let consumer = settings.create_with_context(remarks)?;
    // A token for the login is asked for, and handed over, in a poll and nowhere else.
    heard(&consumer);
    Ok(consumer)
}

/// When Kafka stamped a record: none where it has no stamp, or one beyond the calendar, as of a producer that counts microseconds.
pub fn broker_time(message: &impl Message) -> Option<OffsetDateTime> {
    let millis = message.timestamp().to_millis()?;
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok()
}

/// What a consumer that is seldom polled has heard of its connections.
pub fn heard(consumer: &BaseConsumer<Remarks>) -> Heard {
    // Nothing is assigned, so that only remarks come.
    while let Some(Err(error)) = consumer.poll(Duration::ZERO) {
        tracing::debug!(%error, "a consumer that only asks");
    }
    consumer.context().heard()
}

/// Whether a consumer that is given its partitions has heard that it may not join its group, which it does not do. The client
/// library demands the name of a group, and asks who coordinates it.
pub fn is_of_the_group(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
}

/// Whether only an operator mends it, such as a right that is missing.
pub fn is_setting(error: &KafkaError) -> bool {
    error.rdkafka_error_code().map(transience::kafka) == Some(Fault::Setting)
}

/// Number of replicas of each partition of a topic; nothing when there is no such topic.
///
/// # Errors
/// What Kafka answers; without the right to DESCRIBE, `TopicAuthorizationFailed`.
pub fn replicas(consumer: &BaseConsumer<Remarks>, topic: &str, patience: Duration) -> KafkaResult<Vec<usize>> {
    let metadata = consumer.fetch_metadata(Some(topic), patience)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let refused = found.and_then(|found| found.error()).map(RDKafkaErrorCode::from);
    if let Some(code @ RDKafkaErrorCode::TopicAuthorizationFailed) = refused {
        return Err(KafkaError::MetadataFetch(code));
    }
    let partitions = found.into_iter().flat_map(|found| found.partitions());
    Ok(partitions.map(|partition| partition.replicas().len()).collect())
}

/// The offset that the consumer's group has committed in each of so many partitions of a topic, if it has one.
///
/// # Errors
/// What Kafka answers.
pub fn committed(
    consumer: &BaseConsumer<Remarks>,
    topic: &str,
    partitions: usize,
    patience: Duration,
) -> KafkaResult<Vec<(i32, Option<i64>)>> {
    let mut asked = TopicPartitionList::new();
    for partition in (0..).take(partitions) {
        asked.add_partition(topic, partition);
    }
    let answered = consumer.committed_offsets(asked, patience)?;
    let committed = answered
        .elements()
        .into_iter()
        .map(|partition| match partition.offset() {
            Offset::Offset(offset) => (partition.partition(), Some(offset)),
            _none => (partition.partition(), None),
        });
    Ok(committed.collect())
}

/// The settings of a topic.
///
/// # Errors
/// What Kafka answers; without the right to DESCRIBE_CONFIGS, `TopicAuthorizationFailed`.
pub fn topic_settings(
    admin: &AdminClient<Remarks>,
    topic: &str,
    options: &AdminOptions,
) -> KafkaResult<ConfigResource> {
    let described = block_on(admin.describe_configs([&ResourceSpecifier::Topic(topic)], options))?;
    let described = described.into_iter().next();
    let settings = described.unwrap_or(Err(RDKafkaErrorCode::UnknownTopicOrPartition));
    // An `AdminOp` would not tell its code.
    let settings = settings.map_err(KafkaError::Global)?;
    // A refusal gets lost in the client library, and then looks like a topic without settings.
    match settings.entries.is_empty() {
        true => Err(KafkaError::Global(RDKafkaErrorCode::TopicAuthorizationFailed)),
        false => Ok(settings),
    }
}

/// How long a producer waits for more records before it sends a request, in milliseconds. What is sent together is handed over in
/// one go, so that it needs no longer; the library's own 5 ms were the greater part of the way of a lone event.
const LINGER_MS: &str = "0.5";

/// Settings of every producer. Keys go to the partition that a Java client would choose; batches are compressed, so that a
/// record which a compressed batch brought in below a topic's limit also goes out below one.
pub fn producer(config: &config::Kafka) -> ClientConfig {
    let mut producer = client(config);
    producer
        .set("partitioner", "murmur2_random")
        .set("compression.type", "lz4")
        .set("enable.idempotence", "true")
        .set("linger.ms", LINGER_MS);
    producer
}

/// A producer whose acknowledgements arrive on a thread of their own. (To poll by hand for less than a millisecond would keep
/// a core busy: the client library counts in whole ones.)
pub type Producer = ThreadedProducer<Deliveries>;

/// The delivery reports of one producer. A record's opaque is any number by which its sender knows it.
#[derive(Debug)]
pub struct Deliveries {
    remarks: Remarks,
    counts: Mutex<Counts>,
    /// Notified when all records sent are settled.
    all_settled: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    sent: usize,
    /// Delivered or failed.
    settled: usize,
    failed: Vec<FailedDelivery>,
}

/// A record that was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedDelivery {
    /// The record's opaque.
    pub record: usize,
    pub code: RDKafkaErrorCode,
}

impl Deliveries {
    pub fn new(config: &config::Kafka) -> Self {
        Self {
            remarks: Remarks::new(config),
            counts: Mutex::default(),
            all_settled: Condvar::new(),
        }
    }

    /// What the producer has heard of its connections.
    pub fn heard(&self) -> Heard {
        self.remarks.heard()
    }

    /// Waits until every record sent is delivered or failed, at most `limit`. The producer's own `flush`, which
    /// `commit_transaction` calls too, would wait in steps of 100 ms.
    pub fn drain(&self, limit: Duration) -> Drained {
        let in_flight = |counts: &mut Counts| counts.settled < counts.sent;
        let waited = self.all_settled.wait_timeout_while(self.counts(), limit, in_flight);
        match waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            true => Drained::InFlight,
            false => Drained::Settled,
        }
    }

    /// Takes the failures seen since they were last taken.
    pub fn take_failed(&self) -> Vec<FailedDelivery> {
        std::mem::take(&mut self.counts().failed)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Deliveries {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.remarks.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.remarks.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.remarks.generate_oauth_token(config)
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, record: usize) {
        let mut counts = self.counts();
        if let Err((error, _)) = result {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            counts.failed.push(FailedDelivery { record, code });
        }
        counts.settled += 1;
        if counts.settled == counts.sent {
            self.all_settled.notify_all();
        }
    }
}

/// Waits until every record sent is delivered or failed and the client library has its reports back, at most `limit`. A commit
/// that finds one missing waits for it in a step of 100 ms, which a report that is about to be given back does not cut short.
pub fn drain(producer: &Producer, limit: Duration) -> Drained {
    let start = Instant::now();
    let drained = producer.client().context().drain(limit);
    // The thread that has told of the last record is a moment away from giving its report back.
    while producer.in_flight_count() > 0 && start.elapsed() < limit {
        std::thread::sleep(Duration::from_micros(20));
    }
    drained
}

/// Hands a record to `producer`, waiting while its queue is full.
///
/// # Errors
/// The record was refused before it was sent.
pub fn send(producer: &Producer, record: BaseRecord<'_, [u8], [u8], usize>) -> Result<(), KafkaError> {
    let deliveries = producer.client().context();
    deliveries.counts().sent += 1;
    let mut record = record;
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => record = back,
            Err((error, _)) => {
                deliveries.counts().sent -= 1;
                return Err(error);
            }
        }
        producer.poll(Duration::from_millis(1));
    }
}

/// The result of [`Deliveries::drain`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Drained {
    Settled,
    InFlight,
}

/// A record's headers, by name and value.
pub type RecordHeaders<'a> = Vec<RecordHeader<'a>>;

/// One of a record's headers.
pub type RecordHeader<'a> = (&'a str, Option<&'a [u8]>);

/// The headers of a record in their order; `None` when a header's name is not UTF-8, which the client library can carry but
/// not read: it panics.
pub fn headers<M: Message>(record: &M) -> Option<RecordHeaders<'_>> {
    each_header(record).collect()
}

/// As [`headers`], with `None` in place of each whose name is not UTF-8.
pub fn each_header<M: Message>(record: &M) -> impl Iterator<Item = Option<RecordHeader<'_>>> {
    let headers = record.headers();
    let count = headers.map_or(0, Headers::count);
    (0..count).map(move |place| {
        let header = catch_unwind(AssertUnwindSafe(|| headers?.try_get(place)));
        let header = header.ok().flatten()?;
        Some((header.key, header.value))
    })
}

/// Runs `work`, which blocks, on a thread of its own. (A runtime that ends waits for its own blocking threads, and Kafka
/// can keep one busy for as long as it is away.)
///
/// # Errors
/// The thread could not be started, or `work` panicked.
pub async fn on_thread<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ThreadError> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            if done.send(work()).is_err() {
                tracing::debug!(name, "nobody waits for the thread any more");
            }
        })
        .map_err(|source| ThreadError::Start { name, source })?;
    result.await.map_err(|_| ThreadError::Panicked { name })
}

/// A thread gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    #[error("cannot start the thread {name}")]
    Start { name: &'static str, source: std::io::Error },
    #[error("the thread {name} panicked; its message is in the log above")]
    Panicked { name: &'static str },
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rdkafka::message::{Header, OwnedHeaders, OwnedMessage, Timestamp};

    use super::*;

    fn record(headers: Option<OwnedHeaders>) -> OwnedMessage {
        OwnedMessage::new(
            None,
            None,
            "reservations".into(),
            Timestamp::NotAvailable,
            0,
            0,
            headers,
        )
    }

    #[test]
    fn a_record_without_headers_has_none() {
        assert_eq!(headers(&record(None)), Some(vec![]));
    }

    #[test]
    fn headers_keep_their_order_and_repeats_and_missing_values() {
        let given = OwnedHeaders::new()
            .insert(Header {
                key: "b",
                value: Some("1"),
            })
            .insert(Header {
                key: "a",
                value: None::<&str>,
            })
            .insert(Header {
                key: "b",
                value: Some(""),
            });
        let expected: Vec<(&str, Option<&[u8]>)> = vec![("b", Some(b"1")), ("a", None), ("b", Some(b""))];
        assert_eq!(headers(&record(Some(given))), Some(expected));
    }

    #[test]
    fn a_stamp_beyond_the_calendar_is_none() {
        let stamped = |timestamp| {
            let record = OwnedMessage::new(None, None, "reservations".into(), timestamp, 0, 0, None);
            broker_time(&record).map(OffsetDateTime::unix_timestamp)
        };
        assert_eq!(stamped(Timestamp::CreateTime(1_900_000_000_000)), Some(1_900_000_000));
        for none in [
            Timestamp::CreateTime(1_900_000_000_000_000),
            Timestamp::LogAppendTime(i64::MAX),
            Timestamp::NotAvailable,
        ] {
            assert_eq!(stamped(none), None, "{none:?}");
        }
    }

    /// The broker is the client library's own: what is proven is when the library has a report back.
    #[test]
    fn what_is_drained_has_given_its_reports_back() {
        let cli = config::Cli::parse_from(["holdfast", "--kafka", "127.0.0.1:1", "gate"]);
        let config = cli.config.kafka;
        let mut settings = producer(&config);
        settings.set("test.mock.num.brokers", "1");
        let producer: Producer = settings.create_with_context(Deliveries::new(&config)).unwrap();
        for _ in 0..300 {
            send(
                &producer,
                BaseRecord::with_opaque_to("outcomes", 0)
                    .key(&b"A"[..])
                    .payload(&b"1"[..]),
            )
            .unwrap();
            assert_eq!(drain(&producer, Duration::from_secs(30)), Drained::Settled);
            assert_eq!(producer.in_flight_count(), 0);
        }
    }

    #[test]
    fn every_setting_is_one_that_the_client_library_knows() {
        let cli = config::Cli::parse_from(["holdfast", "--kafka", "127.0.0.1:1", "gate"]);
        let config = cli.config.kafka;
        let made: Result<Producer, _> = producer(&config).create_with_context(Deliveries::new(&config));
        assert!(made.is_ok());
        if let Err(error) = reader::Reader::new(&config) {
            panic!("{}", crate::error::chain(&error));
        }
    }
}
