//! Where Kafka keeps the relay's mark: as the last record of a compacted topic, which outlasts any pause. An offset of a consumer
//! group would be forgotten after seven idle days, and costs each transaction two more round trips and three writes to disk.

use std::time::{Duration, Instant};

use holdfast_schemas::topics::RELAY_MARK;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::batch::Mark;
use crate::config;
use crate::kafka::{self, Remarks, is_of_the_group};
use crate::transience::{self, Fault};

/// The client library demands a group's name of every consumer; nothing is committed for it, and it never has members.
const GROUP: &str = "holdfast.relay";
/// The opaque of the mark's record. Those of a batch have their places in it.
pub(super) const OPAQUE: usize = usize::MAX;

const PARTITION: i32 = 0;
/// One key: compaction keeps the last mark.
const KEY: &[u8] = b"outbox";
/// How much of the topic's end is read first. Markers of transactions and aborted marks lie between, a committed one seldom further
/// away.
const TAIL: i64 = 100;

/// The mark that Kafka has. A transaction that a predecessor left open must have ended.
pub(super) fn committed(config: &config::Kafka, patience: Duration) -> Result<Option<Mark>, Error> {
    let mut settings = kafka::client(config);
    settings
        .set("group.id", GROUP)
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true");
    let consumer = kafka::looker(&settings, Remarks::new(config)).map_err(Error::Client)?;
    must_exist(&consumer, patience)?;
    last(&consumer, patience)
}

/// The record of a mark.
pub(super) fn record(text: &str) -> BaseRecord<'_, [u8], [u8], usize> {
    BaseRecord::with_opaque_to(RELAY_MARK, OPAQUE)
        .partition(PARTITION)
        .key(KEY)
        .payload(text.as_bytes())
}

fn must_exist(consumer: &BaseConsumer<Remarks>, patience: Duration) -> Result<(), Error> {
    let metadata = consumer
        .fetch_metadata(Some(RELAY_MARK), patience)
        .map_err(Error::Read)?;
    let exists = metadata.topics().iter().any(|found| !found.partitions().is_empty());
    if exists { Ok(()) } else { Err(Error::NoTopic) }
}

/// The topic's last record.
fn last(consumer: &BaseConsumer<Remarks>, patience: Duration) -> Result<Option<Mark>, Error> {
    let (earliest, end) = consumer
        .fetch_watermarks(RELAY_MARK, PARTITION, patience)
        .map_err(Error::Read)?;
    let tail = earliest.max(end - TAIL);
    match last_from(consumer, tail, patience)? {
        None if tail > earliest => last_from(consumer, earliest, patience),
        found => Ok(found),
    }
}

fn last_from(consumer: &BaseConsumer<Remarks>, first: i64, patience: Duration) -> Result<Option<Mark>, Error> {
    let failed = Error::Read;
    let mut assignment = TopicPartitionList::new();
    assignment
        .add_partition_offset(RELAY_MARK, PARTITION, Offset::Offset(first))
        .and_then(|()| consumer.assign(&assignment))
        .map_err(failed)?;
    let mut found = None;
    let mut heard = Instant::now();
    while heard.elapsed() < patience {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                heard = Instant::now();
                found = Some((message.offset(), message.payload().and_then(Mark::read)));
            }
            Some(Err(KafkaError::PartitionEOF(_))) => {
                return match found {
                    None => Ok(None),
                    Some((_, Some(mark))) => Ok(Some(mark)),
                    Some((offset, None)) => Err(Error::Foreign { offset }),
                };
            }
            Some(Err(error)) if is_of_the_group(&error) => {}
            // What only an operator mends, such as a right, is told at once.
            Some(Err(error)) if kafka::is_setting(&error) => {
                return Err(Error::Read(error));
            }
            Some(Err(error)) => tracing::debug!(%error, "reading {RELAY_MARK} goes on"),
            None => {}
        }
    }
    Err(Error::Silent(patience))
}

/// Why the mark cannot be read or written. It is never a row's fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka does not tell the one from the other.
    #[error(
        "there is no topic {RELAY_MARK}, where the relay keeps its mark, or the relay is not authorized to READ it: `holdfast register` \
         makes it, deploy/kafka/acls gives the right"
    )]
    NoTopic,
    #[error("cannot read the relay's mark on the topic {RELAY_MARK}")]
    Read(#[source] KafkaError),
    #[error(
        "Kafka refuses the relay's mark on the topic {RELAY_MARK}: let `holdfast register` compare it with what is wanted, and the \
         relay read and write it"
    )]
    Refused(#[source] KafkaError),
    #[error("the record {RELAY_MARK}/0/{offset} is no mark that this release can read: did a newer one write it?")]
    Foreign { offset: i64 },
    #[error("nothing came of the topic {RELAY_MARK} for {0:?}")]
    Silent(Duration),
    #[error("cannot make a Kafka client")]
    Client(#[source] KafkaError),
}

impl Error {
    /// The fault, which decides whether the next session may mend it.
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Read(source) => source.rdkafka_error_code().map_or(Fault::Unknown, transience::kafka),
            Self::Silent(_) => Fault::Server,
            Self::NoTopic | Self::Refused(_) | Self::Foreign { .. } | Self::Client(_) => Fault::Setting,
        }
    }

    /// A mark's record that was not delivered, if Kafka will not take it later either.
    pub(super) fn of_record(code: RDKafkaErrorCode) -> Option<Self> {
        matches!(transience::kafka(code), Fault::Destination | Fault::Content)
            .then_some(Self::Refused(KafkaError::MessageProduction(code)))
    }
}
