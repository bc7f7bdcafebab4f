//! Where Kafka keeps the relay's mark: as the last record of a compacted topic, which outlasts any pause. Releases before that kept
//! it as offset and metadata of a consumer group, which Kafka forgets after seven idle days. The mark is still written there too,
//! in the same transaction, so that such a release can take over; whichever of both is later counts.

use std::time::{Duration, Instant};

use holdfast_schemas::topics::{RELAY_MARK, RELAY_STATE};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::batch::Mark;
use crate::config;
use crate::kafka::{self, Remarks};
use crate::transience::{self, Fault};

/// The group whose committed offset is the mark of older releases; it never has members.
pub(super) const GROUP: &str = "holdfast.relay";
/// The opaque of the mark's record. Those of a batch have their places in it.
pub(super) const OPAQUE: usize = usize::MAX;

const PARTITION: i32 = 0;
/// One key: compaction keeps the last mark.
const KEY: &[u8] = b"outbox";
/// How much of the topic's end is read first. Markers of transactions and aborted marks lie between, a committed one seldom further
/// away.
const TAIL: i64 = 100;

/// What Kafka has.
pub(super) struct Committed {
    pub mark: Option<Mark>,
    /// What it takes to commit the group's offset.
    pub group: ConsumerGroupMetadata,
}

/// The mark that Kafka has. A transaction that a predecessor left open must have ended.
pub(super) fn committed(config: &config::Kafka, patience: Duration) -> Result<Committed, Error> {
    let mut settings = kafka::client(config);
    settings
        .set("group.id", GROUP)
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true");
    let consumer = kafka::looker(&settings, Remarks::new(config)).map_err(Error::Client)?;
    for topic in [RELAY_MARK, RELAY_STATE] {
        must_exist(&consumer, topic, patience)?;
    }
    let on_topic = last(&consumer, patience)?;
    let in_group = offset(&consumer, patience)?;
    let group = consumer
        .group_metadata()
        .ok_or(KafkaError::Canceled)
        .map_err(Error::read(RELAY_STATE))?;
    Ok(Committed {
        mark: later(on_topic, in_group),
        group,
    })
}

/// The record of a mark.
pub(super) fn record(text: &str) -> BaseRecord<'_, [u8], [u8], usize> {
    BaseRecord::with_opaque_to(RELAY_MARK, OPAQUE)
        .partition(PARTITION)
        .key(KEY)
        .payload(text.as_bytes())
}

/// The offset and metadata of a mark.
pub(super) fn offsets(mark: &Mark) -> Result<TopicPartitionList, KafkaError> {
    let mut offsets = TopicPartitionList::new();
    let mut partition = offsets.add_partition(RELAY_STATE, PARTITION);
    partition.set_offset(Offset::Offset(mark.batch))?;
    partition.set_metadata(mark.metadata());
    Ok(offsets)
}

/// An older release may have worked since the topic's mark, but never without the group's.
fn later(on_topic: Option<Mark>, in_group: Option<Mark>) -> Option<Mark> {
    match (on_topic, in_group) {
        (Some(topic), Some(group)) if group.batch > topic.batch => Some(group),
        (topic, group) => topic.or(group),
    }
}

fn must_exist(consumer: &BaseConsumer<Remarks>, topic: &'static str, patience: Duration) -> Result<(), Error> {
    let metadata = consumer
        .fetch_metadata(Some(topic), patience)
        .map_err(Error::read(topic))?;
    let exists = metadata.topics().iter().any(|found| !found.partitions().is_empty());
    if exists { Ok(()) } else { Err(Error::NoTopic(topic)) }
}

/// The topic's last record.
fn last(consumer: &BaseConsumer<Remarks>, patience: Duration) -> Result<Option<Mark>, Error> {
    let (earliest, end) = consumer
        .fetch_watermarks(RELAY_MARK, PARTITION, patience)
        .map_err(Error::read(RELAY_MARK))?;
    let tail = earliest.max(end - TAIL);
    match last_from(consumer, tail, patience)? {
        None if tail > earliest => last_from(consumer, earliest, patience),
        found => Ok(found),
    }
}

fn last_from(consumer: &BaseConsumer<Remarks>, first: i64, patience: Duration) -> Result<Option<Mark>, Error> {
    let failed = Error::read(RELAY_MARK);
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
            // What only an operator mends, such as a right, is told at once.
            Some(Err(error)) if (error.rdkafka_error_code()).map(transience::kafka) == Some(Fault::Setting) => {
                return Err(Error::read(RELAY_MARK)(error));
            }
            Some(Err(error)) => tracing::debug!(%error, "reading {RELAY_MARK} goes on"),
            None => {}
        }
    }
    Err(Error::Silent(patience))
}

/// What the group has.
fn offset(consumer: &BaseConsumer<Remarks>, patience: Duration) -> Result<Option<Mark>, Error> {
    let failed = Error::read(RELAY_STATE);
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(RELAY_STATE, PARTITION);
    let committed = consumer.committed_offsets(wanted, patience).map_err(failed)?;
    let mut mark = None;
    for partition in committed.elements() {
        partition.error().map_err(Error::read(RELAY_STATE))?;
        if let Offset::Offset(batch) = partition.offset() {
            mark = Some(Mark::of_offset(batch, partition.metadata()));
        }
    }
    Ok(mark)
}

/// Why the mark cannot be read or written. It is never a row's fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka does not tell the one from the other.
    #[error(
        "there is no topic {0}, where the relay keeps its mark, or the relay is not authorized to READ it: `holdfast register` makes it, \
         deploy/kafka/acls gives the right"
    )]
    NoTopic(&'static str),
    #[error("cannot read the relay's mark on the topic {topic}")]
    Read { topic: &'static str, source: KafkaError },
    #[error(
        "Kafka refuses the relay's mark on the topic {topic}: let `holdfast register` compare it with what is wanted, and the \
         relay read and write it"
    )]
    Refused { topic: &'static str, source: KafkaError },
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
            Self::Read { source, .. } => source.rdkafka_error_code().map_or(Fault::Unknown, transience::kafka),
            Self::Silent(_) => Fault::Server,
            Self::NoTopic(_) | Self::Refused { .. } | Self::Foreign { .. } | Self::Client(_) => Fault::Setting,
        }
    }

    fn read(topic: &'static str) -> impl FnOnce(KafkaError) -> Self {
        move |source| Self::Read { topic, source }
    }

    /// A mark's record that was not delivered, if Kafka will not take it later either.
    pub(super) fn of_record(code: RDKafkaErrorCode) -> Option<Self> {
        matches!(transience::kafka(code), Fault::Destination | Fault::Content).then_some(Self::Refused {
            topic: RELAY_MARK,
            source: KafkaError::MessageProduction(code),
        })
    }

    /// A group's offset that could not be sent, if Kafka will not take it later either.
    pub(super) fn of_offset(error: KafkaError) -> Result<Self, KafkaError> {
        let fault = error.rdkafka_error_code().map(transience::kafka);
        match matches!(fault, Some(Fault::Destination | Fault::Content | Fault::Setting)) {
            true => Ok(Self::Refused {
                topic: RELAY_STATE,
                source: error,
            }),
            false => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Hash;
    use super::*;

    #[test]
    fn the_later_mark_counts_wherever_it_lies() {
        let mark = |batch| Mark {
            batch,
            hash: Hash::of([]),
            ids: vec![batch],
        };
        let found =
            |topic: Option<i64>, group: Option<i64>| later(topic.map(mark), group.map(mark)).map(|mark| mark.batch);
        assert_eq!(found(None, None), None);
        assert_eq!(found(Some(3), None), Some(3));
        assert_eq!(found(None, Some(3)), Some(3), "an older release has worked so far");
        assert_eq!(
            found(Some(3), Some(5)),
            Some(5),
            "an older release has worked in between"
        );
        assert_eq!(found(Some(5), Some(3)), Some(5));
    }
}
