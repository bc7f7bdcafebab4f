//! What the gate's consumer is told beside records: which partitions it has, how it stands with the brokers, and whether its
//! partitions move.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::statistics::{Partition, Statistics};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use rdkafka::types::RDKafkaRespErr;

use super::ROUTES;
use crate::kafka::{self, Remarks};
use crate::lifecycle::Ready;
use crate::metrics::Metrics;

/// How long the broker may take to answer a question about offsets, or the client to move to another one.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A partition with records to read that has not moved for so long stands still.
const STALLED: Duration = Duration::from_secs(60);

const STAND_STILL: &str = "docs/runbook.md#a-partition-stands-still";

/// The name under which the client library logs that a session with the group has timed out.
const SESSION_LOST: &str = "SESSTMOUT";

/// Takes news of the group and of the brokers.
pub(super) struct Watcher {
    group: String,
    pub(super) metrics: Arc<Metrics>,
    remarks: Remarks,
    ready: Ready,
    /// Changes with every rebalance.
    rebalances: AtomicU64,
    /// The coordinator of the group was silent for longer than a session lasts.
    session_lost: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The group has said which partitions are this member's, be it none.
    joined: bool,
    /// A broker is connected.
    connected: bool,
    /// Since when none is, once it was seen.
    unconnected_since: Option<Instant>,
    /// The committed offset of each partition, and since when it has been that.
    moved: HashMap<(String, i32), (i64, Instant)>,
    stalled: usize,
    /// What has to be mended, such as a right, and when it was last heard of.
    waits_for: Option<(Instant, String)>,
    /// Likewise for the offsets, which are committed beside the path.
    not_committed: Option<(Instant, String)>,
}

/// What has to be mended is believed for so long without being heard of again; a partition that stands still is told of then.
const MENDED: Duration = STALLED;

impl Watcher {
    pub(super) fn new(group: &str, metrics: Arc<Metrics>, ready: Ready, remarks: Remarks) -> Self {
        ready(Err(String::new()));
        Self {
            group: group.to_owned(),
            metrics,
            remarks,
            ready,
            rebalances: AtomicU64::new(0),
            session_lost: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    pub(super) fn remarks(&self) -> &Remarks {
        &self.remarks
    }

    pub(super) fn rebalances(&self) -> u64 {
        self.rebalances.load(Ordering::Relaxed)
    }

    /// The way to tell whether the gate can do its work, for the next watcher; this one tells no more that it can.
    pub(super) fn retire(&self) -> Ready {
        self.note(|state| state.joined = false);
        self.ready.clone()
    }

    pub(super) fn unconnected_since(&self) -> Option<Instant> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.unconnected_since
    }

    pub(super) fn has_lost_its_session(&self) -> bool {
        self.session_lost.load(Ordering::Relaxed)
    }

    pub(super) fn waits_for(&self, what: String) {
        self.note(|state| state.waits_for = Some((Instant::now(), what)));
    }

    pub(super) fn goes_on(&self) {
        self.note(|state| state.waits_for = None);
    }

    /// Notes that offsets were not committed, and what has to be mended before they can be.
    pub(super) fn not_committed(&self, error: &KafkaError) {
        if kafka::is_setting(error) {
            let what = format!("{error}: the offsets of the group {}", self.group);
            self.note(|state| state.not_committed = Some((Instant::now(), what)));
        }
        tracing::warn!(%error, "offsets not committed; their records are read again after a restart");
        self.metrics.gate_commit_errors.inc();
    }

    /// Notes news, and tells whether the gate can do its work.
    fn note(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        state.waits_for.take_if(|(at, _)| at.elapsed() > MENDED);
        state.not_committed.take_if(|(at, _)| at.elapsed() > MENDED);
        let is_able = state.joined && state.connected && state.stalled == 0;
        (self.ready)(match state.waits_for.as_ref().or(state.not_committed.as_ref()) {
            Some((_, what)) => Err(what.clone()),
            None if is_able => Ok(()),
            None => Err(self.remarks.heard().text().unwrap_or_default().to_owned()),
        });
    }

    /// Takes the partitions that the group gave, none of them paused: what was paused before was another assignment.
    fn take(&self, consumer: &BaseConsumer<Self>, partitions: &mut TopicPartitionList) -> KafkaResult<()> {
        if let Err(error) = begin_new(consumer, partitions) {
            tracing::warn!(%error, "cannot find out whether partitions are new to the group");
        }
        consumer.assign(partitions)?;
        consumer.resume(partitions)
    }
}

/// Partitions that were added to a topic begin at their oldest record. They are new when the group has offsets, so that it
/// has not lost them all by being away, but none of these, and nothing of them is gone.
fn begin_new(consumer: &BaseConsumer<Watcher>, partitions: &mut TopicPartitionList) -> KafkaResult<()> {
    let committed = consumer.committed_offsets(partitions.clone(), PATIENCE)?;
    let without = committed
        .elements()
        .into_iter()
        .filter(|partition| !is_committed(partition));
    let without: Vec<_> = without
        .map(|partition| (partition.topic().to_owned(), partition.partition()))
        .collect();
    if without.is_empty() || !has_offsets(consumer)? {
        return Ok(());
    }
    for (topic, partition) in without {
        let (oldest, _) = consumer.fetch_watermarks(&topic, partition, PATIENCE)?;
        if oldest == 0 {
            tracing::info!(topic, partition, "a new partition is read from its oldest record");
            partitions.set_partition_offset(&topic, partition, Offset::Offset(oldest))?;
        }
    }
    Ok(())
}

/// Whether the group has an offset of any partition of the public topics. Kafka forgets all of them together.
pub(super) fn has_offsets(consumer: &BaseConsumer<Watcher>) -> KafkaResult<bool> {
    let mut all = TopicPartitionList::new();
    for route in ROUTES {
        let metadata = consumer.fetch_metadata(Some(route.public), PATIENCE)?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        for partition in partitions {
            all.add_partition(route.public, partition.id());
        }
    }
    let committed = consumer.committed_offsets(all, PATIENCE)?;
    Ok(committed.elements().iter().any(is_committed))
}

fn is_committed(partition: &TopicPartitionListElem<'_>) -> bool {
    matches!(partition.offset(), Offset::Offset(_))
}

impl ClientContext for Watcher {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == SESSION_LOST {
            self.session_lost.store(true, Ordering::Relaxed);
        }
        self.remarks.log(level, facility, message);
        self.note(|_| {});
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.remarks.error(error, reason);
        self.note(|_| {});
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.remarks.generate_oauth_token(config)
    }

    fn stats(&self, statistics: Statistics) {
        let waits = self.metrics.gate_waiting.get() == 1;
        let now = Instant::now();
        self.note(|state| {
            state.connected = statistics.brokers.values().any(|broker| broker.state == "UP");
            let since = state.unconnected_since.unwrap_or(now);
            state.unconnected_since = (!state.connected).then_some(since);
            let mut moved = HashMap::new();
            let mut stalled = Vec::new();
            for (name, topic) in &statistics.topics {
                let lag: i64 = topic
                    .partitions
                    .values()
                    .map(|partition| partition.consumer_lag.max(0))
                    .sum();
                self.metrics.gate_lag_records.with_label_values(&[name]).set(lag);
                for partition in topic.partitions.values().filter(|partition| is_behind(partition)) {
                    let key = (name.clone(), partition.partition);
                    let before = state
                        .moved
                        .get(&key)
                        .filter(|(committed, _)| *committed == partition.committed_offset);
                    let since = before.filter(|_| !waits).map_or(now, |(_, since)| *since);
                    if now - since > STALLED {
                        stalled.push(format!("{name}/{}", partition.partition));
                    }
                    moved.insert(key, (partition.committed_offset, since));
                }
            }
            if !stalled.is_empty() {
                let partitions = stalled.join(" ");
                tracing::error!(
                    partitions,
                    "partitions stand still although they have records: {STAND_STILL}"
                );
            }
            self.metrics.gate_stalled_partitions.set(stalled.len() as i64);
            (state.moved, state.stalled) = (moved, stalled.len());
        });
    }
}

/// Whether a partition of ours has something left: not all of it is fetched, or what was handed over is not committed yet. (The
/// end alone does not say it: what transactions leave there is no record.)
fn is_behind(partition: &Partition) -> bool {
    let is_ours = partition.fetch_state == "active";
    is_ours && (partition.next_offset < partition.ls_offset || partition.app_offset > partition.committed_offset)
}

impl ConsumerContext for Watcher {
    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        match result {
            Ok(()) => self.note(|state| state.not_committed = None),
            // Nothing was stored since the last time.
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
            Err(error) => self.not_committed(&error),
        }
    }

    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        self.rebalances.fetch_add(1, Ordering::Relaxed);
        let names = names(partitions);
        let done = match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let taken = self.take(consumer, partitions);
                tracing::info!(partitions = %names, "partitions assigned");
                self.note(|state| (state.joined, state.connected) = (true, true));
                taken
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                tracing::info!(partitions = %names, "partitions revoked");
                consumer.unassign()
            }
            other => {
                tracing::warn!(?other, "rebalance failed");
                consumer.unassign()
            }
        };
        if let Err(error) = done {
            tracing::error!(%error, partitions = %names, "the group's decision cannot be followed");
        }
    }
}

fn names(partitions: &TopicPartitionList) -> String {
    let name = |partition: &TopicPartitionListElem<'_>| format!("{}/{}", partition.topic(), partition.partition());
    partitions.elements().iter().map(name).collect::<Vec<_>>().join(" ")
}
