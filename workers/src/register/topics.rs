//! The topics, and the gate's first offsets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use holdfast_schemas::topics::{
    DEAD_LETTERS, LEDGER_ENTRIES, PAYMENTS, PAYMENTS_ADMITTED, PAYMENTS_OUTCOMES, RELAY_MARK, RESERVATIONS,
    RESERVATIONS_ADMITTED, RESERVATIONS_OUTCOMES,
};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use time::OffsetDateTime;

use super::report::{Finding, PartReport};
use super::{Error, Path};
use crate::config::Config;
use crate::kafka::group::Group;
use crate::kafka::{self, Heard, Remarks, on_thread};

/// Longest wait for one answer of Kafka.
const ANSWER: Duration = Duration::from_secs(5);

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Creates the topics that are missing, and names them.
pub(super) async fn create(config: &Config, path: Path) -> Result<Vec<&'static str>, Error> {
    let kafka = Kafka::new(config);
    on_thread("register", move || kafka.create(&wanted(&kafka.config, path))).await?
}

/// Compares the topics with the wanted state, and commits the gate's first offsets.
pub(super) async fn compare(config: &Config, path: Path, created: &[&'static str]) -> Result<Vec<PartReport>, Error> {
    let kafka = Kafka::new(config);
    let created = created.to_vec();
    on_thread("register", move || {
        let mut lines = kafka.compare(&wanted(&kafka.config, path), &created)?;
        if path == Path::Gate {
            lines.push(kafka.settle_offsets()?);
        }
        Ok(lines)
    })
    .await?
}

/// Compares the topics and the gate's offsets with the wanted state, and changes nothing.
pub(super) async fn inspect(config: &Config, path: Path) -> Result<Vec<PartReport>, Error> {
    let kafka = Kafka::new(config);
    on_thread("register", move || {
        let topics = wanted(&kafka.config, path);
        let missing = kafka.missing(&topics)?;
        let (missing, there): (Vec<_>, Vec<_>) = topics.into_iter().partition(|topic| missing.contains(&topic.name));
        let missing = missing
            .iter()
            .map(|topic| PartReport::new(format!("topic {}", topic.name), Finding::missing()));
        let mut lines: Vec<_> = missing.collect();
        lines.extend(kafka.compare(&there, &[])?);
        if path == Path::Gate && there.iter().any(|topic| topic.name == RESERVATIONS) {
            let unread = kafka.without_offset()?;
            let finding = match unread.is_empty() {
                true => Finding::AsWanted,
                false => Finding::missing(),
            };
            lines.push(PartReport::new(
                format!("offsets of the group {}", kafka.config.gate.group),
                finding,
            ));
        }
        Ok(lines)
    })
    .await?
}

/// True if the offsets of Restate's `group` fit the topic. They do not once the topic was created anew or truncated: then
/// Restate would drop records, whose offsets it believes to have seen.
pub(super) async fn fits(config: &Config, group: &str, topic: &'static str) -> Result<bool, Error> {
    let kafka = Kafka::new(config);
    let group = group.to_owned();
    on_thread("register", move || kafka.fits(&group, topic)).await?
}

/// Whether anybody has read the topic in this group.
pub(super) async fn is_read(config: &Config, group: &str, topic: &'static str) -> Result<bool, Error> {
    let kafka = Kafka::new(config);
    let group = group.to_owned();
    on_thread("register", move || {
        let committed = kafka.group(&group)?.committed(topic)?;
        Ok(committed.iter().any(|(_, committed)| committed.is_some()))
    })
    .await?
}

/// Whether anybody is a member of this group, or becomes one within `limit`.
pub(super) async fn has_members(config: &Config, group: &str, limit: Duration) -> Result<bool, Error> {
    let kafka = Kafka::new(config);
    let group = group.to_owned();
    on_thread("register", move || {
        let group = kafka.group(&group)?;
        let until = Instant::now() + limit;
        loop {
            if !group.members()?.is_empty() {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    })
    .await?
}

/// Has a group that nobody reads in begin with the records that were written since then.
pub(super) async fn begin(
    config: &Config,
    group: &str,
    topic: &'static str,
    since: OffsetDateTime,
) -> Result<(), Error> {
    let kafka = Kafka::new(config);
    let group = group.to_owned();
    on_thread("register", move || {
        let group = kafka.group(&group)?;
        let first = group.since(topic, since)?.into_iter();
        Ok(group.commit(first.map(|(partition, offset)| (topic, partition, offset)))?)
    })
    .await?
}

/// Has a group that nobody reads in begin at these offsets, by partition.
pub(super) async fn begin_at(
    config: &Config,
    group: &str,
    topic: &'static str,
    offsets: BTreeMap<i32, i64>,
) -> Result<(), Error> {
    let kafka = Kafka::new(config);
    let group = group.to_owned();
    on_thread("register", move || {
        let first = offsets.into_iter();
        let first = first.map(|(partition, offset)| (topic, partition, offset));
        Ok(kafka.group(&group)?.commit(first)?)
    })
    .await?
}

/// The wanted state of a topic.
pub(super) struct Wanted {
    pub(super) name: &'static str,
    pub(super) partitions: i32,
    /// What to do about more partitions than that.
    fewer: &'static str,
    pub(super) settings: Vec<(&'static str, String)>,
    /// Why it is never given more partitions here, and what to do first for who wants more.
    stays: &'static str,
}

pub(super) fn wanted(config: &Config, path: Path) -> Vec<Wanted> {
    let kafka = &config.kafka;
    let topic = |name, record_bytes: usize, stays| Wanted {
        name,
        partitions: kafka.partitions,
        fewer: "set --partitions to what there is",
        settings: vec![
            ("cleanup.policy", "delete".to_owned()),
            ("retention.ms", kafka.topic_retention.as_millis().to_string()),
            ("max.message.bytes", record_bytes.to_string()),
            (MIN_INSYNC_REPLICAS, min_insync_replicas(kafka.replication).to_string()),
        ],
        stays,
    };
    // The broker's clock, not a producer's, stamps the records.
    let public = |mut topic: Wanted| {
        let setting = ("message.timestamp.type", "LogAppendTime".to_owned());
        topic.settings.push(setting);
        topic
    };
    // The broker packs anew whatever producers send, in the one codec whose batches the gate's client bounds while it unpacks them.
    let source = |name, stays| {
        let mut topic = public(topic(name, kafka.public_record_bytes, stays));
        topic.settings.push(("compression.type", "zstd".to_owned()));
        topic
    };
    let outcomes = "keys would move to other partitions while earlier outcomes of theirs are unread, and it works as it is, \
                    whatever the other topics have. Stop the relay, let its consumers read it all";
    let outcome = |name| Wanted {
        partitions: kafka.outcome_partitions,
        fewer: "set --outcome-partitions to what there is",
        ..public(topic(name, kafka.public_record_bytes, outcomes))
    };
    let sources = "producers would send keys to other partitions while earlier records of theirs are unread. Stop the \
                   producers, let the gates read it all (holdfast_gate_lag_records is 0)";
    let admitted = "keys would move to other partitions while earlier records of theirs are unread, and it works as it is, \
                    whatever the public topic has. Stop the gates, let the engine read it all";
    let letters = "no promise depends on where a dead letter lies, and it works as it is. Any time will do";
    let mut topics = vec![
        source(RESERVATIONS, sources),
        outcome(RESERVATIONS_OUTCOMES),
        source(PAYMENTS, sources),
        outcome(PAYMENTS_OUTCOMES),
        outcome(LEDGER_ENTRIES),
        public(topic(DEAD_LETTERS, kafka.admitted_record_bytes, letters)),
        Wanted {
            name: RELAY_MARK,
            partitions: 1,
            fewer: "the relay uses the first alone",
            // Only the last record counts: small segments let compaction take the others soon.
            settings: vec![
                ("cleanup.policy", "compact".to_owned()),
                ("segment.bytes", (16 << 20).to_string()),
                (MIN_INSYNC_REPLICAS, min_insync_replicas(kafka.replication).to_string()),
            ],
            stays: "the relay keeps its mark on one partition",
        },
    ];
    if path == Path::Gate {
        topics.push(topic(RESERVATIONS_ADMITTED, kafka.admitted_record_bytes, admitted));
        topics.push(topic(PAYMENTS_ADMITTED, kafka.admitted_record_bytes, admitted));
    }
    topics
}

struct Kafka {
    config: Config,
    client: ClientConfig,
}

impl Kafka {
    fn new(config: &Config) -> Self {
        Self {
            config: config.clone(),
            client: kafka::client(&config.kafka),
        }
    }

    fn create(&self, topics: &[Wanted]) -> Result<Vec<&'static str>, Error> {
        let missing = self.missing(topics)?;
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let missing: Vec<_> = topics.iter().filter(|topic| missing.contains(&topic.name)).collect();
        let new: Vec<_> = missing.iter().map(|topic| self.new_topic(topic)).collect();
        let results =
            block_on(self.admin()?.create_topics(&new, &options())).map_err(self.failed_to("create topics"))?;
        for result in results {
            match result {
                // Another `register` may have been first.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => {
                    let address = self.config.kafka.bootstrap.clone();
                    return Err(Error::TopicRefused { address, topic, code });
                }
            }
        }
        Ok(missing.into_iter().map(|topic| topic.name).collect())
    }

    /// The names of those that are not there.
    fn missing(&self, topics: &[Wanted]) -> Result<Vec<&'static str>, Error> {
        let looker = self.looker()?;
        let mut missing = Vec::new();
        for topic in topics {
            if self.replicas(&looker, topic.name)?.is_empty() {
                missing.push(topic.name);
            }
        }
        Ok(missing)
    }

    /// The partitions of the public topics that the gate's group has no offset for.
    fn without_offset(&self) -> Result<Vec<(&'static str, i32)>, Error> {
        let group = self.group(&self.config.gate.group)?;
        let mut without = Vec::new();
        for topic in [RESERVATIONS, PAYMENTS] {
            let committed = group.committed(topic)?.into_iter();
            without.extend(
                committed
                    .filter(|(_, committed)| committed.is_none())
                    .map(|(partition, _)| (topic, partition)),
            );
        }
        Ok(without)
    }

    fn new_topic<'a>(&self, topic: &'a Wanted) -> NewTopic<'a> {
        let replication = TopicReplication::Fixed(self.config.kafka.replication);
        let new = NewTopic::new(topic.name, topic.partitions, replication);
        let settings = topic.settings.iter();
        settings.fold(new, |new, (name, value)| new.set(name, value))
    }

    fn compare(&self, topics: &[Wanted], created: &[&str]) -> Result<Vec<PartReport>, Error> {
        let (admin, looker) = (self.admin()?, self.looker()?);
        let findings = topics.iter().map(|topic| {
            let finding = match created.contains(&topic.name) {
                true => Finding::Created,
                false => self.compare_topic(&admin, &looker, topic)?,
            };
            Ok(PartReport::new(format!("topic {}", topic.name), finding))
        });
        findings.collect()
    }

    fn compare_topic(
        &self,
        admin: &AdminClient<Remarks>,
        looker: &BaseConsumer<Remarks>,
        topic: &Wanted,
    ) -> Result<Finding, Error> {
        let replicas = self.replicas(looker, topic.name)?;
        let (count, wanted) = (replicas.len(), topic.partitions as usize);
        let mut differences = Vec::new();
        let mut mends = Vec::new();
        if count != wanted {
            differences.push(format!("has {count} partitions, wanted {wanted}"));
            mends.push(match count < wanted {
                true => format!(
                    "It is not given more: {}; then kafka-topics.sh --bootstrap-server {} --alter --topic {} --partitions {wanted}.",
                    topic.stays, self.config.kafka.bootstrap, topic.name
                ),
                false => format!("Partitions cannot be taken away: {}.", topic.fewer),
            });
        }
        let (fewest, wanted) = (
            replicas.into_iter().min().unwrap_or(0),
            self.config.kafka.replication as usize,
        );
        if fewest < wanted {
            differences.push(format!("has {fewest} replicas, wanted {wanted}"));
            mends.push("Add replicas with kafka-reassign-partitions.sh.".to_owned());
        }
        let mut settings = self.wrong_settings(admin, topic)?;
        settings.retain(|(name, have, want)| *name != MIN_INSYNC_REPLICAS || !suffices(have, want, fewest));
        if !settings.is_empty() {
            let set: Vec<_> = settings
                .iter()
                .map(|(name, _, want)| format!("{name}={want}"))
                .collect();
            let settings = settings.iter();
            differences.extend(settings.map(|(name, have, want)| format!("has {name}={have}, wanted {want}")));
            mends.push(format!(
                "kafka-configs.sh --bootstrap-server {} --alter --topic {} --add-config {}",
                self.config.kafka.bootstrap,
                topic.name,
                set.join(",")
            ));
        }
        if differences.is_empty() {
            return Ok(Finding::AsWanted);
        }
        Ok(Finding::Differs {
            how: differences.join("; "),
            mend: mends.join(" "),
        })
    }

    /// Name, value and wanted value of each setting that differs.
    fn wrong_settings(
        &self,
        admin: &AdminClient<Remarks>,
        topic: &Wanted,
    ) -> Result<Vec<(&'static str, String, String)>, Error> {
        let what = format!("describe the settings of {}", topic.name);
        let settings = kafka::topic_settings(admin, topic.name, &options()).map_err(self.failed_to(&what))?;
        let have = |name| {
            let entry = settings.get(name).and_then(|entry| entry.value.clone());
            entry.unwrap_or_else(|| "nothing".to_owned())
        };
        let settings = topic.settings.iter();
        Ok(settings
            .map(|(name, want)| (*name, have(name), want.clone()))
            .filter(|(_, have, want)| have != want)
            .collect())
    }

    fn admin(&self) -> Result<AdminClient<Remarks>, Error> {
        let made = self.client.create_with_context(Remarks::new(&self.config.kafka));
        made.map_err(self.failed_to("make a client"))
    }

    /// Number of replicas of each partition; nothing when there is no such topic.
    fn replicas(&self, looker: &BaseConsumer<Remarks>, topic: &str) -> Result<Vec<usize>, Error> {
        kafka::replicas(looker, topic, ANSWER).map_err(self.failed_by(looker, &format!("describe {topic}")))
    }

    /// Commits the first offset of every partition before the first gate starts: a gate that finds no offset for a partition
    /// stops, because retention may have removed records that no gate has read.
    fn settle_offsets(&self) -> Result<PartReport, Error> {
        let name = &self.config.gate.group;
        let group = self.group(name)?;
        let mut first = Vec::new();
        // So the gates see it too: what has no offset in a group that has some, and lost no record, was added to its topic.
        let mut group_reads = false;
        // What retention had taken before: nobody can say any more whether the group had read it.
        let mut passed_over = Vec::new();
        for topic in [RESERVATIONS, PAYMENTS] {
            for (partition, committed) in group.committed(topic)? {
                if committed.is_some() {
                    group_reads = true;
                    continue;
                }
                let (low, _) = group.bounds(topic, partition)?;
                first.push((topic, partition, low));
                if low > 0 {
                    passed_over.push(format!("{topic}/{partition} begins at {low}"));
                }
            }
        }
        let partitions = || {
            let partitions = first.iter();
            let partitions = partitions.map(|(topic, partition, _)| format!("{topic}/{partition}"));
            partitions.collect::<Vec<_>>().join(", ")
        };
        let what = format!("offsets of the group {name}");
        if first.is_empty() {
            return Ok(PartReport::new(what, Finding::AsWanted));
        }
        match group.commit(first.iter().copied()) {
            Ok(()) if passed_over.is_empty() => Ok(PartReport::new(what, Finding::Created)),
            Ok(()) => {
                let before = format!(
                    "{}, the oldest record left. What retention had removed before is lost, unless it had been read by a group whose \
                     offsets Kafka has forgotten: docs/runbook.md#the-gates-offsets-were-lost",
                    passed_over.join(", ")
                );
                tracing::warn!(group = name, "{before}");
                Ok(PartReport::new(what, Finding::Changed { before }))
            }
            Err(error) if error.is_busy() && group_reads && passed_over.is_empty() => {
                let before = format!(
                    "{} were added: the gates that run begin them at their oldest record",
                    partitions()
                );
                Ok(PartReport::new(what, Finding::Changed { before }))
            }
            Err(error) if error.is_busy() => Err(Error::GroupActive {
                group: name.clone(),
                partitions: partitions(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    fn fits(&self, group: &str, topic: &str) -> Result<bool, Error> {
        let group = self.group(group)?;
        let committed = group.committed(topic)?.into_iter();
        let partitions = committed.map(|(partition, committed)| {
            let (low, high) = group.bounds(topic, partition)?;
            Ok(Partition { committed, low, high })
        });
        Ok(fit(&partitions.collect::<Result<Vec<_>, Error>>()?))
    }

    fn group(&self, name: &str) -> Result<Group, Error> {
        Ok(Group::new(&self.config.kafka, name, ANSWER)?)
    }

    /// A client that only asks about topics.
    fn looker(&self) -> Result<BaseConsumer<Remarks>, Error> {
        let made = kafka::looker(&self.client, Remarks::new(&self.config.kafka));
        made.map_err(self.failed_to("make a client"))
    }

    fn failed_to(&self, what: &str) -> impl Fn(KafkaError) -> Error {
        let (address, what): (Box<str>, Box<str>) = (self.config.kafka.bootstrap.as_str().into(), what.into());
        move |source| Error::Kafka {
            address: address.clone(),
            what: what.clone(),
            heard: Heard::default(),
            source,
        }
    }

    fn failed_by(&self, looker: &BaseConsumer<Remarks>, what: &str) -> impl Fn(KafkaError) -> Error {
        let (address, what): (Box<str>, Box<str>) = (self.config.kafka.bootstrap.as_str().into(), what.into());
        move |source| Error::Kafka {
            address: address.clone(),
            what: what.clone(),
            heard: kafka::heard(looker),
            source,
        }
    }
}

/// A partition, and how far a group has read it.
struct Partition {
    committed: Option<i64>,
    low: i64,
    high: i64,
}

/// Whether a group has read this topic, and not one that was there before. Partitions that a topic is given later are its last
/// ones: that nobody has read them yet says nothing.
fn fit(partitions: &[Partition]) -> bool {
    let is_empty = |partition: &Partition| partition.high == partition.low;
    let Some(last) = partitions.iter().rposition(|partition| partition.committed.is_some()) else {
        return partitions.iter().all(is_empty);
    };
    partitions[..=last].iter().all(|partition| {
        let reached = partition.committed.map(|committed| committed <= partition.high);
        reached.unwrap_or_else(|| is_empty(partition))
    })
}

/// How many replicas must have a record before it counts as written.
const MIN_INSYNC_REPLICAS: &str = "min.insync.replicas";

/// All but one: a broker that is away holds nothing up, and what was acknowledged outlives the next one that is lost.
fn min_insync_replicas(replication: i32) -> i32 {
    (replication - 1).max(1)
}

/// Whether a topic with so many replicas is as durable as wanted, and still takes records while a broker is away.
fn suffices(have: &str, want: &str, replicas: usize) -> bool {
    match (have.parse::<usize>(), want.parse::<usize>()) {
        (Ok(have), Ok(want)) => have >= want && (have < replicas || have == 1),
        _ => false,
    }
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .operation_timeout(Some(ANSWER))
        .request_timeout(Some(ANSWER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_fits_its_topic_also_when_the_topic_was_given_partitions() {
        let topic = |partitions: &[(Option<i64>, i64, i64)]| {
            let partitions = partitions.iter();
            let partitions = partitions.map(|&(committed, low, high)| Partition { committed, low, high });
            fit(&partitions.collect::<Vec<_>>())
        };
        assert!(topic(&[(None, 0, 0), (None, 7, 7)]), "nothing was ever written");
        assert!(topic(&[(Some(5), 0, 9), (None, 0, 0)]), "it lags");
        assert!(
            topic(&[(Some(5), 0, 9), (None, 0, 3), (None, 0, 1)]),
            "two partitions are new"
        );
        assert!(
            !topic(&[(Some(5), 0, 4), (Some(1), 0, 1)]),
            "the topic is shorter than what was read"
        );
        assert!(!topic(&[(None, 0, 4), (Some(1), 0, 1)]), "nobody read an old partition");
        assert!(!topic(&[(None, 0, 4), (None, 0, 0)]), "nobody read anything");
    }

    #[test]
    fn a_topic_takes_records_while_a_broker_is_away_and_keeps_them_when_one_is_lost() {
        assert_eq!([1, 2, 3, 5].map(min_insync_replicas), [1, 1, 2, 4]);
        for (have, want, replicas) in [("1", "1", 1), ("1", "1", 2), ("2", "2", 3), ("2", "1", 3)] {
            assert!(suffices(have, want, replicas), "{have} of {replicas}, wanted {want}");
        }
        for (have, want, replicas) in [("2", "1", 1), ("1", "2", 3), ("3", "2", 3), ("nothing", "1", 1)] {
            assert!(!suffices(have, want, replicas), "{have} of {replicas}, wanted {want}");
        }
    }
}
