//! The topics, and the gate's first offsets.

use std::time::Duration;

use futures::executor::block_on;
use holdfast_schemas::topics::{DEAD_LETTERS, RELAY_STATE, RESERVATIONS, RESERVATIONS_ADMITTED, RESERVATIONS_OUTCOMES};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::report::{Finding, Line};
use super::{Error, Path, engine};
use crate::config::Config;
use crate::kafka;

/// Longest wait for one answer of Kafka.
const ANSWER: Duration = Duration::from_secs(5);

/// What was found on Kafka.
pub(super) struct Topics {
    pub(super) lines: Vec<Line>,
    pub(super) delivered: Delivered,
}

/// Whether what the engine remembers of the topic it is subscribed to can still be true. The engine drops records up to the
/// offset that it has seen, so a subscription older than its topic would lose the records of the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivered {
    /// The group's offsets lie within the topic.
    Fits,
    /// The topic is younger than the group's offsets, or the offsets are gone.
    Outlived,
}

/// Creates what is missing and compares the rest.
pub(super) async fn settle(config: &Config, path: Path) -> Result<Topics, Error> {
    let kafka = Kafka {
        config: config.clone(),
        path,
    };
    tokio::task::spawn_blocking(move || kafka.settle())
        .await
        .map_err(Error::CutOff)?
}

/// How a topic is wanted.
struct Wanted {
    name: &'static str,
    partitions: i32,
    settings: Vec<(&'static str, String)>,
    /// Why it is never given more partitions.
    stays: &'static str,
}

fn wanted(config: &Config, path: Path) -> Vec<Wanted> {
    let kafka = &config.kafka;
    let topic = |name, record_bytes: usize, stays| Wanted {
        name,
        partitions: kafka.partitions,
        settings: vec![
            ("cleanup.policy", "delete".to_owned()),
            ("retention.ms", kafka.topic_retention.as_millis().to_string()),
            ("max.message.bytes", record_bytes.to_string()),
        ],
        stays,
    };
    // The broker's clock, not a producer's, says how old a record is.
    let public = |mut topic: Wanted| {
        let setting = ("message.timestamp.type", "LogAppendTime".to_owned());
        topic.settings.push(setting);
        topic
    };
    let moves = "keys would move to other partitions while earlier records of theirs are unread: stop what writes to it, let \
                 it drain, then grow it with kafka-topics.sh";
    let sources = "producers would send keys to other partitions: stop them, let the gate drain it, then grow it with \
                   kafka-topics.sh";
    let mut topics = vec![
        public(topic(RESERVATIONS, kafka.public_record_bytes, sources)),
        public(topic(RESERVATIONS_OUTCOMES, kafka.public_record_bytes, moves)),
        public(topic(DEAD_LETTERS, kafka.admitted_record_bytes, "grow it with kafka-topics.sh if it needs to be")),
        Wanted {
            name: RELAY_STATE,
            partitions: 1,
            settings: vec![("cleanup.policy", "delete".to_owned())],
            stays: "the relay keeps its state on one partition",
        },
    ];
    if path == Path::Gate {
        topics.push(topic(RESERVATIONS_ADMITTED, kafka.admitted_record_bytes, moves));
    }
    topics
}

struct Kafka {
    config: Config,
    path: Path,
}

impl Kafka {
    fn settle(&self) -> Result<Topics, Error> {
        let client = kafka::client(&self.config.kafka);
        let admin: AdminClient<DefaultClientContext> =
            client.create().map_err(self.failed_to("make a client"))?;
        let mut lines = Vec::new();
        let mut created = Vec::new();
        for topic in wanted(&self.config, self.path) {
            let finding = self.settle_topic(&admin, &topic)?;
            if finding == Finding::Created {
                created.push(topic.name);
            }
            lines.push(Line::new(format!("topic {}", topic.name), finding));
        }
        if self.path == Path::Gate {
            lines.push(self.settle_offsets(&client)?);
        }
        let source = engine::source_topic(self.path);
        let delivered = match created.contains(&source) {
            true => Delivered::Outlived,
            false => self.delivered(&client, source)?,
        };
        Ok(Topics { lines, delivered })
    }

    fn settle_topic(&self, admin: &AdminClient<DefaultClientContext>, topic: &Wanted) -> Result<Finding, Error> {
        let found = self.partitions(admin.inner(), topic.name)?;
        if found.is_empty() {
            return match self.create(admin, topic)? {
                Finding::Created => Ok(Finding::Created),
                _somebody_was_quicker => self.compare(admin, topic),
            };
        }
        self.compare(admin, topic)
    }

    fn create(&self, admin: &AdminClient<DefaultClientContext>, topic: &Wanted) -> Result<Finding, Error> {
        let replication = TopicReplication::Fixed(self.config.kafka.replication);
        let mut new = NewTopic::new(topic.name, topic.partitions, replication);
        for (name, value) in &topic.settings {
            new = new.set(name, value);
        }
        let results = block_on(admin.create_topics([&new], &options())).map_err(self.failed_to("create topics"))?;
        match results.into_iter().next() {
            None | Some(Ok(_)) => Ok(Finding::Created),
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(Finding::AsWanted),
            Some(Err((topic, code))) => Err(Error::TopicRefused {
                address: self.config.kafka.bootstrap.clone(),
                topic,
                code,
            }),
        }
    }

    fn compare(&self, admin: &AdminClient<DefaultClientContext>, topic: &Wanted) -> Result<Finding, Error> {
        let found = self.partitions(admin.inner(), topic.name)?;
        let count = i32::try_from(found.len()).unwrap_or(i32::MAX);
        let mut differences = Vec::new();
        let mut mends = Vec::new();
        if count < topic.partitions {
            differences.push(format!("has {count} partitions, wanted {}", topic.partitions));
            mends.push(format!("It is not given more: {}.", topic.stays));
        } else if count > topic.partitions {
            differences.push(format!("has {count} partitions, wanted {}", topic.partitions));
            mends.push("Partitions cannot be taken away: set --partitions to what there is.".to_owned());
        }
        let fewest = found.iter().copied().min().unwrap_or_default();
        let replication = usize::try_from(self.config.kafka.replication).unwrap_or_default();
        if fewest < replication {
            differences.push(format!("has {fewest} replicas, wanted {replication}"));
            mends.push("Reassign its replicas with kafka-reassign-partitions.sh.".to_owned());
        }
        let settings = self.wrong_settings(admin, topic)?;
        if !settings.is_empty() {
            let set: Vec<_> = settings.iter().map(|(name, _, want)| format!("{name}={want}")).collect();
            for (name, have, want) in settings {
                differences.push(format!("has {name}={have}, wanted {want}"));
            }
            mends.push(format!(
                "kafka-configs.sh --bootstrap-server {} --alter --topic {} --add-config {}",
                self.config.kafka.bootstrap,
                topic.name,
                set.join(",")
            ));
        }
        Ok(match differences.is_empty() {
            true => Finding::AsWanted,
            false => Finding::Differs {
                how: differences.join("; "),
                mend: mends.join(" "),
            },
        })
    }

    /// Name, value and wanted value of each setting that differs.
    fn wrong_settings(
        &self,
        admin: &AdminClient<DefaultClientContext>,
        topic: &Wanted,
    ) -> Result<Vec<(&'static str, String, String)>, Error> {
        let what = "describe a topic";
        let resources = block_on(admin.describe_configs([&ResourceSpecifier::Topic(topic.name)], &options()));
        let resource = resources.map_err(self.failed_to(what))?.into_iter().next();
        let resource = resource
            .unwrap_or(Err(RDKafkaErrorCode::UnknownTopicOrPartition))
            .map_err(|code| self.failed_to(what)(KafkaError::AdminOp(code)))?;
        let have = |name| {
            let entry = resource.get(name).and_then(|entry| entry.value.clone());
            entry.unwrap_or_else(|| "nothing".to_owned())
        };
        let settings = topic.settings.iter();
        Ok(settings
            .map(|(name, want)| (*name, have(name), want.clone()))
            .filter(|(_, have, want)| have != want)
            .collect())
    }

    /// The replicas of each partition; no partition when there is no such topic.
    fn partitions<C: rdkafka::ClientContext>(
        &self,
        client: &rdkafka::client::Client<C>,
        topic: &str,
    ) -> Result<Vec<usize>, Error> {
        let metadata = client
            .fetch_metadata(Some(topic), ANSWER)
            .map_err(self.failed_to("describe a topic"))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions = found.into_iter().flat_map(|found| found.partitions());
        Ok(partitions.map(|partition| partition.replicas().len()).collect())
    }

    /// A gate that finds no offset for a partition stops, because retention may have taken records that nobody read. So the
    /// first offset of every partition is committed before the first gate starts.
    fn settle_offsets(&self, client: &ClientConfig) -> Result<Line, Error> {
        let group = &self.config.gate.group;
        let consumer = self.consumer(client, group)?;
        let mut first = TopicPartitionList::new();
        let mut partitions = Vec::new();
        for (partition, committed) in self.committed(&consumer, RESERVATIONS)? {
            if committed.is_none() {
                let (low, _) = self.bounds(&consumer, RESERVATIONS, partition)?;
                first
                    .add_partition_offset(RESERVATIONS, partition, Offset::Offset(low))
                    .map_err(self.failed_to("list offsets"))?;
                partitions.push(partition);
            }
        }
        let what = format!("offsets of the group {group}");
        if partitions.is_empty() {
            return Ok(Line::new(what, Finding::AsWanted));
        }
        match consumer.commit(&first, CommitMode::Sync) {
            Ok(()) => Ok(Line::new(what, Finding::Created)),
            Err(error) if is_busy(&error) => Err(Error::GroupActive {
                group: group.clone(),
                topic: RESERVATIONS,
                partitions,
            }),
            Err(error) => Err(self.failed_to("commit the gate's first offsets")(error)),
        }
    }

    /// Compares the offsets of the engine's group with the topic that it reads.
    fn delivered(&self, client: &ClientConfig, topic: &str) -> Result<Delivered, Error> {
        let consumer = self.consumer(client, engine::group(self.path))?;
        for (partition, committed) in self.committed(&consumer, topic)? {
            let (low, high) = self.bounds(&consumer, topic, partition)?;
            let outlived = committed.map_or(high > low, |committed| committed > high);
            if outlived {
                return Ok(Delivered::Outlived);
            }
        }
        Ok(Delivered::Fits)
    }

    fn consumer(&self, client: &ClientConfig, group: &str) -> Result<BaseConsumer, Error> {
        client
            .clone()
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .create()
            .map_err(self.failed_to("make a client"))
    }

    fn bounds(&self, consumer: &BaseConsumer, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        consumer
            .fetch_watermarks(topic, partition, ANSWER)
            .map_err(self.failed_to("tell where a partition begins and ends"))
    }

    /// The consumer's group's offset of each partition, if it has one.
    fn committed(&self, consumer: &BaseConsumer, topic: &str) -> Result<Vec<(i32, Option<i64>)>, Error> {
        let count = self.partitions(consumer.client(), topic)?.len();
        let mut asked = TopicPartitionList::new();
        for partition in (0..).take(count) {
            asked.add_partition(topic, partition);
        }
        let answered = consumer
            .committed_offsets(asked, ANSWER)
            .map_err(self.failed_to("tell the offsets of a group"))?;
        let committed = answered.elements().into_iter().map(|partition| match partition.offset() {
            Offset::Offset(offset) => (partition.partition(), Some(offset)),
            _none => (partition.partition(), None),
        });
        Ok(committed.collect())
    }

    fn failed_to(&self, what: &'static str) -> impl Fn(KafkaError) -> Error {
        let address = self.config.kafka.bootstrap.clone();
        move |source| Error::Kafka {
            address: address.clone(),
            what,
            source,
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .operation_timeout(Some(ANSWER))
        .request_timeout(Some(ANSWER))
}

/// The group has members, so only they may commit.
fn is_busy(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::RebalanceInProgress
        )
    )
}
