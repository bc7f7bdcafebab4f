//! Reads topics from their earliest offsets to fixed ends, without a consumer group: for verify and for operators.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::packed::{self, is_packed};
use super::{Heard, Remarks, client, heard, is_of_the_group, is_setting, looker, replicas, topic_settings};
use crate::config;

/// Longest time for which Kafka may not answer, or keep a transaction open, unless another is given.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time for one request, likewise.
const REQUEST: Duration = Duration::from_secs(10);

/// Two clients: one that reads committed records, and one that reads all.
pub struct Reader {
    /// Of Kafka, for errors.
    address: Arc<str>,
    committed: BaseConsumer<Remarks>,
    written: BaseConsumer<Remarks>,
    admin: AdminClient<Remarks>,
    /// The settings of the client that reads committed records.
    settings: ClientConfig,
    /// How long Kafka may not answer, or keep a transaction open.
    patience: Duration,
}

/// The readable offsets of one topic, by partition: from the earliest up to, not with, the end.
pub type Extent = BTreeMap<i32, (i64, i64)>;

/// The retention of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeps {
    /// The age up to which every record is kept; none when age removes nothing.
    pub age: Option<Duration>,
    /// True if records are also removed when there are too many bytes of them.
    pub bytes_are_limited: bool,
}

impl Reader {
    /// # Errors
    /// [`Error::Client`]
    pub fn new(config: &config::Kafka) -> Result<Self, Error> {
        Self::within(PATIENCE, config)
    }

    /// A reader that waits no longer than this for an answer.
    ///
    /// # Errors
    /// [`Error::Client`]
    pub fn within(patience: Duration, config: &config::Kafka) -> Result<Self, Error> {
        let settings = |isolation| {
            let mut settings = client(config);
            settings
                // The client library demands a group; this one is never joined, and has no offsets.
                .set("group.id", "holdfast.reader")
                .set("enable.auto.commit", "false")
                .set("enable.partition.eof", "true")
                .set("auto.offset.reset", "earliest")
                .set("isolation.level", isolation)
                // What is fetched at once may be many times as large unpacked, and lies in memory until it is handed over.
                .set("fetch.max.bytes", "1048576")
                .set("max.partition.fetch.bytes", "65536")
                .set("queued.max.messages.kbytes", "4096")
                // A full queue is emptied at once.
                .set("fetch.queue.backoff.ms", "10");
            settings
        };
        let remarks = || Remarks::without_group(config);
        let consumer = |settings: &ClientConfig| looker(settings, remarks()).map_err(Error::Client);
        let committed = settings("read_committed");
        Ok(Self {
            address: config.bootstrap.as_str().into(),
            committed: consumer(&committed)?,
            written: consumer(&settings("read_uncommitted"))?,
            admin: client(config).create_with_context(remarks()).map_err(Error::Client)?,
            settings: committed,
            patience,
        })
    }

    /// Reads the topic's retention, as it is set now.
    ///
    /// # Errors
    /// [`Error::Ask`], [`Error::Retention`]
    pub fn keeps(&self, topic: &str) -> Result<Keeps, Error> {
        let options = AdminOptions::new().request_timeout(Some(self.request()));
        let described = topic_settings(&self.admin, topic, &options);
        let described = described.map_err(self.unanswered(topic, Heard::default()))?;
        let limit = |name: &'static str| {
            let entry = described.get(name).and_then(|entry| entry.value.as_deref());
            let limit = entry.and_then(|value| value.parse::<i64>().ok());
            limit.ok_or_else(|| Error::Retention {
                topic: topic.to_owned(),
                name,
            })
        };
        Ok(Keeps {
            age: u64::try_from(limit("retention.ms")?).ok().map(Duration::from_millis),
            bytes_are_limited: limit("retention.bytes")? >= 0,
        })
    }

    /// The extent of the committed records at this moment.
    ///
    /// # Errors
    /// [`Error::Ask`], [`Error::NoTopic`]
    pub fn committed(&self, topic: &str) -> Result<Extent, Error> {
        self.extent(&self.committed, topic)
    }

    /// The extent of all records written at this moment, once they are known to be committed or aborted. (Kafka answers a commit
    /// before its records can be read.)
    ///
    /// # Errors
    /// [`Error::Ask`], [`Error::NoTopic`], [`Error::Transaction`]
    pub fn written(&self, topic: &str) -> Result<Extent, Error> {
        let extent = self.extent(&self.written, topic)?;
        let deadline = Instant::now() + self.patience;
        for (partition, (_, end)) in &extent {
            while self.ends(&self.committed, topic, *partition)?.1 < *end {
                if Instant::now() > deadline {
                    return Err(Error::Transaction {
                        topic: topic.to_owned(),
                        partition: *partition,
                        patience: self.patience,
                    });
                }
            }
        }
        Ok(extent)
    }

    /// Hands over every committed record of `extent`, each partition in order.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Packed`], [`Error::Silent`], and what `take` returns.
    pub fn each<E: From<Error>>(
        &self,
        topic: &str,
        extent: &Extent,
        mut take: impl FnMut(&BorrowedMessage<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |source| Error::Read {
            address: self.address.clone(),
            topic: topic.into(),
            source,
        };
        let mut open: Extent = BTreeMap::new();
        let mut assignment = TopicPartitionList::new();
        for (partition, (earliest, end)) in extent.iter().filter(|(_, (earliest, end))| earliest < end) {
            open.insert(*partition, (*earliest, *end));
            assignment
                .add_partition_offset(topic, *partition, Offset::Offset(*earliest))
                .map_err(failed)?;
        }
        self.committed.assign(&assignment).map_err(failed)?;
        let mut heard = Instant::now();
        while !open.is_empty() {
            match self.committed.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    let Some((next, end)) = open.get_mut(&message.partition()) else {
                        continue;
                    };
                    // Of one that was given up before its end.
                    if message.topic() != topic {
                        continue;
                    }
                    if message.offset() < *end {
                        take(&message)?;
                    }
                    *next = message.offset() + 1;
                    if *next >= *end {
                        open.remove(&message.partition());
                    }
                }
                // All before the end is committed or aborted, so the offsets left before it have no records.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    heard = Instant::now();
                    open.remove(&partition);
                }
                Some(Err(KafkaError::MessageConsumption(code))) if is_packed(code) => {
                    let places = open.into_iter();
                    let places = places.map(|(partition, (next, _))| (topic.to_owned(), partition, next));
                    let remarks = self.committed.context().as_ref().clone();
                    let batches = packed::name(&self.settings, remarks, places.collect()).map_err(failed)?;
                    return Err(Error::Packed { code, batches }.into());
                }
                Some(Err(error)) if is_of_the_group(&error) => {}
                // A right, for example, which only an operator mends.
                Some(Err(source)) if heard.elapsed() > self.patience || is_setting(&source) => {
                    return Err(failed(source).into());
                }
                Some(Err(error)) => tracing::warn!(%error, topic, "reading {topic} goes on"),
                None if heard.elapsed() > self.patience => {
                    let silent = Error::Silent {
                        address: self.address.clone(),
                        topic: topic.to_owned(),
                        patience: self.patience,
                    };
                    return Err(silent.into());
                }
                None => {}
            }
        }
        self.committed.unassign().map_err(failed)?;
        Ok(())
    }

    fn extent(&self, client: &BaseConsumer<Remarks>, topic: &str) -> Result<Extent, Error> {
        let replicas = replicas(client, topic, self.request());
        let count = replicas
            .map_err(|error| self.unanswered(topic, heard(client))(error))?
            .len();
        if count == 0 {
            return Err(Error::NoTopic(topic.to_owned()));
        }
        (0..)
            .take(count)
            .map(|partition| Ok((partition, self.ends(client, topic, partition)?)))
            .collect()
    }

    /// The earliest offset, and the one behind the last record.
    fn ends(&self, client: &BaseConsumer<Remarks>, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        client
            .fetch_watermarks(topic, partition, self.request())
            .map_err(|error| self.unanswered(topic, heard(client))(error))
    }

    /// Longest time for one request.
    fn request(&self) -> Duration {
        REQUEST.min(self.patience)
    }

    fn unanswered(&self, topic: &str, heard: Heard) -> impl Fn(KafkaError) -> Error {
        let (address, topic) = (self.address.clone(), Box::<str>::from(topic));
        move |source| Error::Ask {
            address: address.clone(),
            topic: topic.clone(),
            heard: heard.clone(),
            source,
        }
    }
}

/// The reason why a topic could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot make a Kafka client")]
    Client(#[source] KafkaError),
    #[error("cannot ask Kafka at {address} about {topic}{heard}: is it there, and --kafka (HOLDFAST_KAFKA) right?")]
    Ask {
        address: Arc<str>,
        topic: Box<str>,
        heard: Heard,
        source: KafkaError,
    },
    #[error("Kafka does not say how long {topic} keeps its records: its setting {name} is no number")]
    Retention { topic: String, name: &'static str },
    #[error("there is no topic {0}: `holdfast register` creates it")]
    NoTopic(String),
    #[error("a transaction on {topic}/{partition} has been open for {patience:?}: try again when it has ended")]
    Transaction {
        topic: String,
        partition: i32,
        patience: Duration,
    },
    #[error("cannot read {topic} from Kafka at {address}")]
    Read {
        address: Arc<str>,
        topic: Box<str>,
        source: KafkaError,
    },
    #[error(
        "a batch of records cannot be unpacked ({code}): {batches}. Unpacked it holds too much, or it is damaged. Once all before it \
         is decided, delete the records up to it: docs/runbook.md#a-batch-cannot-be-unpacked"
    )]
    Packed { code: RDKafkaErrorCode, batches: String },
    #[error("nothing came of {topic} for {patience:?}: is Kafka at {address} there?")]
    Silent {
        address: Arc<str>,
        topic: String,
        patience: Duration,
    },
}
