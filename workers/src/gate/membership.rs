//! The gate's membership in its consumer group: assigned partitions, positions and committed offsets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::watcher::{PATIENCE, Watcher, has_offsets};
use super::window::Spans;
use super::{Error, ROUTES, Settings};
use crate::kafka::packed::{self, is_packed};
use crate::kafka::{self, Remarks};
use crate::lifecycle::Ready;
use crate::metrics::Metrics;

/// The largest answer that is taken, and the most that a zstd batch in it may hold. Batches are at most as large as the public
/// topics take records.
const RECEIVE_BYTES: usize = 64 << 20;

/// How often offsets are committed, in milliseconds. A commit per window cost the broker a write to disk each, and let the next
/// window wait for it; what is not committed when a process dies is read again, and repeats do no harm.
const COMMIT_EVERY_MS: &str = "1000";

/// A static member of the group: it gets its partitions back at once after a restart.
pub(super) struct Membership {
    consumer: BaseConsumer<Watcher>,
    group: String,
    /// The settings of consumers that only look.
    looking: ClientConfig,
    /// The assignment that was told to fetch nothing, by its number; any other fetches.
    paused: Option<u64>,
}

impl Membership {
    pub(super) fn join(settings: &Settings, metrics: Arc<Metrics>, ready: Ready) -> Result<Self, Error> {
        let mut config = kafka::client(&settings.kafka);
        config
            .set("group.id", &settings.gate.group)
            .set("enable.auto.offset.store", "false")
            .set("isolation.level", "read_committed")
            // Of compressed bytes: unpacked, an answer may be twenty times as large.
            .set("fetch.max.bytes", "1048576")
            .set("max.partition.fetch.bytes", "65536")
            .set("receive.message.max.bytes", RECEIVE_BYTES.to_string());
        let mut looking = config.clone();
        looking.set("enable.auto.commit", "false");
        config
            // What was stored is committed so often, before partitions are given up, and at the end.
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", COMMIT_EVERY_MS)
            .set("group.instance.id", &settings.instance)
            .set("partition.assignment.strategy", "range")
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "1000")
            // New partitions are noticed so soon.
            .set("topic.metadata.refresh.interval.ms", "5000")
            // Lost offsets mean that retention removed unread records: the gate stops with an error.
            .set("auto.offset.reset", "error")
            // The prefetched records bound the memory of a gate that is behind; short fetch intervals keep it busy.
            .set("queued.max.messages.kbytes", "4096")
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.wait.max.ms", "100")
            .set("statistics.interval.ms", "5000");
        let watcher = Watcher::new(&settings.gate.group, metrics, ready, Remarks::new(&settings.kafka));
        let consumer: BaseConsumer<Watcher> = config.create_with_context(watcher).map_err(Error::Join)?;
        let topics: Vec<&str> = ROUTES.iter().map(|route| route.public).collect();
        consumer.subscribe(&topics).map_err(Error::Join)?;
        Ok(Self {
            consumer,
            group: settings.gate.group.clone(),
            looking,
            paused: None,
        })
    }

    /// Joins anew, and reads from the last commit.
    pub(super) fn rejoin(&mut self, settings: &Settings) -> Result<(), Error> {
        let watcher = self.consumer.context();
        let (metrics, ready) = (watcher.metrics.clone(), watcher.retire());
        let former = std::mem::replace(self, Self::join(settings, metrics, ready)?);
        // The client library closes a consumer only once its last commit is answered, and Kafka may be away.
        std::thread::spawn(move || drop(former));
        Ok(())
    }

    /// Since when no broker is connected.
    pub(super) fn unconnected_since(&self) -> Option<Instant> {
        self.consumer.context().unconnected_since()
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

    /// Notes what has to be mended before the gate can go on.
    pub(super) fn waits_for(&self, what: String) {
        self.consumer.context().waits_for(what);
    }

    /// Notes that records pass.
    pub(super) fn goes_on(&self) {
        self.consumer.context().goes_on();
    }

    /// Changes with every rebalance.
    pub(super) fn rebalances(&self) -> u64 {
        self.consumer.context().rebalances()
    }

    /// Has the ends of `spans` committed before long, in the partitions that are still assigned to this member. A commit that
    /// fails costs no more than repeats after the next start.
    pub(super) fn commit(&self, spans: &Spans) {
        let stored = self
            .offsets(spans, |span| span.next)
            .and_then(|offsets| self.consumer.store_offsets(&offsets));
        if let Err(error) = stored {
            // They may have been taken from this member just now.
            self.consumer.context().not_committed(&error);
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

    /// Fetches nothing more, and gives up what was fetched ahead, so that polling brings only news of the group. Holds for the
    /// partitions that this member has now: each new assignment begins fetching.
    pub(super) fn pause(&mut self) {
        let now = self.rebalances();
        if self.paused != Some(now) {
            self.paused = Some(now);
            match self.consumer.assignment().and_then(|all| self.consumer.pause(&all)) {
                Ok(()) => tracing::info!("public topics paused until more may be sent"),
                Err(error) => tracing::warn!(%error, "cannot pause the public topics"),
            }
        }
    }

    pub(super) fn resume(&mut self) -> Result<(), Error> {
        if self.paused.take() == Some(self.rebalances()) {
            let assigned = self.consumer.assignment().map_err(Error::Consumer)?;
            self.consumer.resume(&assigned).map_err(Error::Consumer)?;
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

    /// Most errors pass by themselves and were logged; these end the gate.
    fn trouble(&self, error: KafkaError) -> Result<(), Error> {
        use RDKafkaErrorCode as Code;
        let unknown = |error| format!("which could not be found out: {error}");
        match error {
            // The client library forgets its name in the group when the session times out, while the broker may still have it: then
            // the broker takes the next commit for a rival's, and the library ends its consumer.
            KafkaError::MessageConsumptionFatal(Code::FencedInstanceId)
                if self.consumer.context().has_lost_its_session() =>
            {
                Err(Error::SessionLost(error))
            }
            KafkaError::MessageConsumptionFatal(_) => Err(Error::Consumer(error)),
            KafkaError::MessageConsumption(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                self.consumer.context().metrics.gate_offsets_lost.set(1);
                let group = self.group.clone();
                match has_offsets(&self.consumer) {
                    Ok(false) => Err(Error::OffsetsForgotten { group }),
                    _ => Err(Error::OffsetsLost {
                        group,
                        partitions: self.lost().unwrap_or_else(unknown),
                    }),
                }
            }
            // The client library would fetch the same batch again, for ever.
            KafkaError::MessageConsumption(code) if is_packed(code) => Err(Error::Packed {
                group: self.group.clone(),
                code,
                batches: self.packed().unwrap_or_else(unknown),
            }),
            KafkaError::MessageConsumption(code) if kafka::is_setting(&error) => {
                let heard = self.consumer.context().remarks().heard();
                self.waits_for(format!(
                    "{code} while the gate reads, as a member of the group {}{heard}",
                    self.group
                ));
                Ok(())
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

    /// Names the batches at which partitions stand that cannot be unpacked.
    fn packed(&self) -> KafkaResult<String> {
        let positions = self.consumer.position()?;
        let mut places = Vec::new();
        for partition in self.consumer.committed(PATIENCE)?.elements() {
            let (topic, number) = (partition.topic(), partition.partition());
            let position = positions
                .find_partition(topic, number)
                .map(|position| position.offset());
            let at = match (position, partition.offset()) {
                (Some(Offset::Offset(offset)), _) | (_, Offset::Offset(offset)) => offset,
                // It stands at its oldest record.
                _ => 0,
            };
            places.push((topic.to_owned(), number, at));
        }
        packed::name(&self.looking, self.consumer.context().remarks().clone(), places)
    }
}
