//! The gate's membership in its consumer group: assigned partitions, positions and committed offsets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::window::Spans;
use super::{Error, ROUTES, Settings};
use crate::kafka;
use crate::metrics::Metrics;

/// How long the broker may take to answer a question about offsets, or the client to move to another one.
const PATIENCE: Duration = Duration::from_secs(10);

/// A static member of the group: it gets its partitions back at once after a restart.
pub(super) struct Membership {
    consumer: BaseConsumer<Watcher>,
    group: String,
    /// Told to fetch nothing until [`Membership::resume`].
    paused: bool,
}

impl Membership {
    pub(super) fn join(settings: &Settings, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let mut config = kafka::client(&settings.kafka);
        config
            .set("group.id", &settings.gate.group)
            .set("group.instance.id", &settings.instance)
            .set("partition.assignment.strategy", "range")
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "1000")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // Lost offsets mean records gone unseen: stop and say so.
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            // What is fetched ahead bounds the memory of a gate that is behind; asking again soon keeps it fed.
            .set("queued.max.messages.kbytes", "4096")
            .set("fetch.max.bytes", "4194304")
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.wait.max.ms", "100")
            .set("statistics.interval.ms", "5000");
        let watcher = Watcher {
            rebalances: AtomicU64::new(0),
            metrics,
        };
        let consumer: BaseConsumer<Watcher> = config.create_with_context(watcher).map_err(Error::Join)?;
        let topics: Vec<&str> = ROUTES.iter().map(|route| route.public).collect();
        consumer.subscribe(&topics).map_err(Error::Join)?;
        Ok(Self {
            consumer,
            group: settings.gate.group.clone(),
            paused: false,
        })
    }

    /// The next record, waiting for it at most `timeout`. Rebalances happen in this call and nowhere else. None does not mean
    /// that the time is over, since other events of the group may end the wait early.
    pub(super) fn poll(&self, timeout: Duration) -> Result<Option<BorrowedMessage<'_>>, Error> {
        match self.consumer.poll(timeout) {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(message)),
            Some(Err(error)) => self.trouble(error).map(|()| None),
        }
    }

    /// Changes with every rebalance.
    pub(super) fn rebalances(&self) -> u64 {
        self.consumer.context().rebalances.load(Ordering::Relaxed)
    }

    /// Commits the ends of `spans` in the partitions that are still assigned to this member, and waits for the answer. A commit
    /// that fails costs no more than repeats after the next start.
    pub(super) fn commit(&self, spans: &Spans) {
        let committed = self
            .offsets(spans, |span| span.next)
            .and_then(|offsets| match offsets.count() {
                0 => Ok(()),
                _ => self.consumer.commit(&offsets, CommitMode::Sync),
            });
        if let Err(error) = committed {
            tracing::warn!(%error, "offsets not committed; their records are read again after a restart");
            self.consumer.context().metrics.gate_commit_errors.inc();
        }
    }

    /// Seeks back to the beginnings of `spans` in the partitions that are still assigned to this member; the other members read
    /// theirs from the last commit.
    pub(super) fn go_back(&self, spans: &Spans) -> Result<(), Error> {
        let offsets = self.offsets(spans, |span| span.first).map_err(Error::GoBack)?;
        if offsets.count() == 0 {
            return Ok(());
        }
        let moved = self
            .consumer
            .seek_partitions(offsets, PATIENCE)
            .map_err(Error::GoBack)?;
        moved
            .elements()
            .iter()
            .try_for_each(|partition| partition.error())
            .map_err(Error::GoBack)
    }

    /// Fetches nothing more, and gives up what was fetched ahead, so that polling brings only news of the group.
    pub(super) fn pause(&mut self) {
        if !self.paused {
            self.paused = true;
            let done = self.consumer.assignment().and_then(|all| self.consumer.pause(&all));
            if let Err(error) = done {
                tracing::warn!(%error, "cannot pause the public topics");
            }
        }
    }

    pub(super) fn resume(&mut self) -> Result<(), Error> {
        if self.paused {
            let assigned = self.consumer.assignment().map_err(Error::Consumer)?;
            self.consumer.resume(&assigned).map_err(Error::Consumer)?;
            self.paused = false;
        }
        Ok(())
    }

    fn offsets(&self, spans: &Spans, offset: impl Fn(&super::window::Span) -> i64) -> KafkaResult<TopicPartitionList> {
        let assigned = self.consumer.assignment()?;
        let mut offsets = TopicPartitionList::new();
        for ((topic, partition), span) in spans {
            if assigned.find_partition(topic, *partition).is_some() {
                offsets.add_partition_offset(topic, *partition, Offset::Offset(offset(span)))?;
            }
        }
        Ok(offsets)
    }

    /// Most errors pass by themselves and were logged; two end the gate.
    fn trouble(&self, error: KafkaError) -> Result<(), Error> {
        match error {
            KafkaError::MessageConsumptionFatal(_) => Err(Error::Consumer(error)),
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                self.consumer.context().metrics.gate_offsets_lost.set(1);
                Err(Error::OffsetsLost {
                    group: self.group.clone(),
                    partitions: self
                        .lost()
                        .unwrap_or_else(|error| format!("which could not be found out: {error}")),
                })
            }
            _ => Ok(()),
        }
    }

    /// Names the partitions whose committed offset is not among those that Kafka still has.
    fn lost(&self) -> KafkaResult<String> {
        let mut lost = Vec::new();
        for partition in self.consumer.committed(PATIENCE)?.elements() {
            let (topic, number) = (partition.topic(), partition.partition());
            let (oldest, end) = self.consumer.fetch_watermarks(topic, number, PATIENCE)?;
            match partition.offset() {
                Offset::Offset(offset) if (oldest..=end).contains(&offset) => {}
                Offset::Offset(offset) => lost.push(format!(
                    "{topic}/{number} (committed {offset}, Kafka has {oldest} to {end})"
                )),
                _ => lost.push(format!(
                    "{topic}/{number} (nothing committed, Kafka has {oldest} to {end})"
                )),
            }
        }
        Ok(lost.join(", "))
    }
}

/// Hears what the client tells beside records.
struct Watcher {
    rebalances: AtomicU64,
    metrics: Arc<Metrics>,
}

impl ClientContext for Watcher {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "Kafka consumer of the gate");
    }

    fn stats(&self, statistics: Statistics) {
        for (name, topic) in &statistics.topics {
            let lag: i64 = topic
                .partitions
                .values()
                .map(|partition| partition.consumer_lag.max(0))
                .sum();
            self.metrics.gate_lag_records.with_label_values(&[name]).set(lag);
        }
    }
}

impl ConsumerContext for Watcher {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.rebalances.fetch_add(1, Ordering::Relaxed);
        match rebalance {
            Rebalance::Assign(partitions) => tracing::info!(partitions = %names(partitions), "partitions assigned"),
            Rebalance::Revoke(partitions) => tracing::info!(partitions = %names(partitions), "partitions revoked"),
            Rebalance::Error(error) => tracing::warn!(%error, "rebalance failed"),
        }
    }
}

fn names(partitions: &TopicPartitionList) -> String {
    let name = |partition: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
        format!("{}/{}", partition.topic(), partition.partition())
    };
    partitions.elements().iter().map(name).collect::<Vec<_>>().join(" ")
}
