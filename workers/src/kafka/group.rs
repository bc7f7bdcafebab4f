//! A consumer group, seen by somebody who is not in it: how far it has read a topic, and who its members are. As long as it has
//! none, whoever may read in it may commit its offsets.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use time::OffsetDateTime;

use super::{Heard, Remarks, client, committed, heard, looker, replicas};
use crate::config;
use crate::transience::{self, Fault};

/// A client that asks about one group, and is never a member.
pub struct Group {
    /// Of Kafka, for errors.
    address: Box<str>,
    name: String,
    consumer: BaseConsumer<Remarks>,
    /// Longest wait for one answer.
    patience: Duration,
}

impl Group {
    /// # Errors
    /// The client library refuses the settings.
    pub fn new(config: &config::Kafka, name: &str, patience: Duration) -> Result<Self, Error> {
        let mut settings = client(config);
        settings.set("group.id", name).set("enable.auto.commit", "false");
        let address: Box<str> = config.bootstrap.as_str().into();
        let made = looker(&settings, Remarks::new(config)).map_err(|source| Error {
            address: address.clone(),
            what: "make a client".into(),
            heard: Heard::default(),
            source,
        });
        Ok(Self {
            consumer: made?,
            address,
            name: name.to_owned(),
            patience,
        })
    }

    /// The offset that it has committed in each partition of a topic, if it has one. No partitions when there is no such topic.
    ///
    /// # Errors
    /// Kafka does not answer, or this user may not look.
    pub fn committed(&self, topic: &str) -> Result<Vec<(i32, Option<i64>)>, Error> {
        let replicas = replicas(&self.consumer, topic, self.patience);
        let partitions = replicas.map_err(self.failed_to(format!("describe {topic}")))?.len();
        committed(&self.consumer, topic, partitions, self.patience)
            .map_err(self.failed_to(format!("tell the offsets of the group {}", self.name)))
    }

    /// The earliest offset of a partition, and the one behind its last record.
    ///
    /// # Errors
    /// Kafka does not answer, or this user may not look.
    pub fn bounds(&self, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        self.consumer
            .fetch_watermarks(topic, partition, self.patience)
            .map_err(self.failed_to(format!("tell where {topic}/{partition} begins and ends")))
    }

    /// The first record of each partition that was written at this moment or later; the partition's end where there is none.
    ///
    /// # Errors
    /// Kafka does not answer, or this user may not look.
    pub fn since(&self, topic: &str, at: OffsetDateTime) -> Result<BTreeMap<i32, i64>, Error> {
        let failed = self.failed_to(format!("tell where a moment lies in {topic}"));
        // What is below 0 means something else to Kafka.
        let at = Offset::Offset((at.unix_timestamp_nanos() / 1_000_000).max(0) as i64);
        let mut first = BTreeMap::new();
        let mut asked = TopicPartitionList::new();
        for (partition, _) in self.committed(topic)? {
            // Known before it is asked: what is written meanwhile lies behind it.
            first.insert(partition, self.bounds(topic, partition)?.1);
            asked.add_partition_offset(topic, partition, at).map_err(&failed)?;
        }
        let found = self.consumer.offsets_for_times(asked, self.patience).map_err(&failed)?;
        for found in found.elements() {
            found.error().map_err(&failed)?;
            if let Offset::Offset(offset) = found.offset() {
                first.insert(found.partition(), offset);
            }
        }
        Ok(first)
    }

    /// Names its members.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn members(&self) -> Result<Vec<String>, Error> {
        let listed = self
            .consumer
            .fetch_group_list(Some(&self.name), self.patience)
            .map_err(self.failed_to(format!("tell the members of the group {}", self.name)))?;
        let members = listed.groups().iter().flat_map(|group| group.members());
        let named = members.map(|member| {
            let host = member.client_host().trim_start_matches('/');
            format!("{} at {host}", member.id())
        });
        Ok(named.collect())
    }

    /// Commits offsets, each with its topic and partition.
    ///
    /// # Errors
    /// Kafka does not answer, this user may not do so, or the group has members ([`Error::is_busy`]).
    pub fn commit<'t>(&self, offsets: impl IntoIterator<Item = (&'t str, i32, i64)>) -> Result<(), Error> {
        let failed = self.failed_to(format!("commit offsets of the group {}", self.name));
        let mut list = TopicPartitionList::new();
        for (topic, partition, offset) in offsets {
            list.add_partition_offset(topic, partition, Offset::Offset(offset))
                .map_err(&failed)?;
        }
        self.consumer.commit(&list, CommitMode::Sync).map_err(&failed)
    }

    fn failed_to(&self, what: String) -> impl Fn(KafkaError) -> Error {
        move |source| Error {
            address: self.address.clone(),
            what: what.as_str().into(),
            heard: heard(&self.consumer),
            source,
        }
    }
}

/// What Kafka could not do.
#[derive(Debug, thiserror::Error)]
#[error("Kafka at {address} could not {what}{heard}")]
pub struct Error {
    pub address: Box<str>,
    pub what: Box<str>,
    pub heard: Heard,
    pub source: KafkaError,
}

impl Error {
    /// True for Kafka's answer that the group has members, so that only they may commit.
    pub fn is_busy(&self) -> bool {
        self.source.rdkafka_error_code().map(transience::kafka) == Some(Fault::Rival)
    }
}
