//! One session of the relay's transactional producer: it begins by comparing Kafka with the database, and ends with the first
//! error that is not about a record.

use std::time::{Duration, Instant};

use holdfast_schemas::topics;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, PurgeConfig};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::batch::{Comparison, Hash, Mark, compare, fitting};
use super::refusal::{Culprits, Refusal};
use super::{Error, Relay};
use crate::crash::{self, Point};
use crate::kafka::{self, Deliveries, Drained, Producer};
use crate::store::outbox::{self, Leadership, Row};

/// The transactional id that all relays share.
const TRANSACTIONAL_ID: &str = "holdfast.relay";
/// The group whose committed offset is the mark; it never has members.
const GROUP: &str = "holdfast.relay";
/// The mark's partition.
const PARTITION: i32 = 0;
/// How long Kafka may take to answer before the call is made again.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest time for which a retriable call is repeated, and for which records may stay unacknowledged. Kafka aborts a
/// transaction after 10 s.
const PATIENCE: Duration = Duration::from_secs(12);
/// Kafka forgets the offsets of a group without members after 7 days.
const RENEW: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) struct Session<'a> {
    /// Every statement is sent on the lock's connection.
    leadership: &'a mut Leadership,
    producer: Producer,
    group: ConsumerGroupMetadata,
    /// Number of the last batch, the same in Kafka and in the database.
    batch: i64,
    /// When this session last committed a mark.
    marked_at: Option<Instant>,
}

/// The result of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// This many rows left the outbox, or the search for a refused row made progress.
    Worked(usize),
    Idle,
}

impl<'a> Session<'a> {
    /// Aborts the transaction that a predecessor left open, then settles its last batch.
    pub(super) fn open(relay: &Relay, leadership: &'a mut Leadership) -> Result<Self, Trouble> {
        let producer = producer(relay)?;
        persist(relay, || producer.init_transactions(ANSWER)).map_err(doing("starting transactions"))?;
        let (mark, group) = committed_mark(relay)?;
        let batch = settle(relay, leadership, mark)?;
        tracing::info!(batch, "the relay's session is open");
        Ok(Self {
            leadership,
            producer,
            group,
            batch,
            marked_at: None,
        })
    }

    /// Brings the next rows to Kafka, then deletes them.
    pub(super) fn step(&mut self, relay: &mut Relay) -> Result<Step, Trouble> {
        let start = Instant::now();
        let mut rows = self.select(relay)?;
        if crash::again(Point::RelaySelected) {
            rows = self.select(relay)?;
        }
        if rows.is_empty() {
            return Ok(Step::Idle);
        }
        crash::here(Point::RelaySelected);
        if let Some(refusal) = self.publish(relay, &rows)? {
            return self.refuse(relay, &rows, &refusal);
        }
        crash::here(Point::RelayCommitted);
        if crash::again(Point::RelayCommitted) {
            return Err(Trouble::Repeated);
        }
        self.delete(relay, &rows)?;
        crash::here(Point::RelayDeleted);
        relay.limit = (relay.limit * 2).min(relay.settings.relay.batch);
        relay.metrics.relay_rows.inc_by(rows.len() as u64);
        relay.metrics.relay_batch_rows.observe(rows.len() as f64);
        relay.metrics.relay_batch_seconds.observe(start.elapsed().as_secs_f64());
        Ok(Step::Worked(rows.len()))
    }

    /// Commits the mark once more if this session has not for a day, so that Kafka does not forget it.
    pub(super) fn renew_mark(&mut self, relay: &Relay) -> Result<(), Trouble> {
        if self.marked_at.is_some_and(|marked| marked.elapsed() < RENEW) {
            return Ok(());
        }
        let mark = Mark {
            batch: self.batch,
            hash: Hash::of([]),
            ids: Vec::new(),
        };
        self.begin()?;
        self.send_mark(relay, &mark)
            .and_then(|()| self.commit(relay))
            .map_err(doing("renewing the mark"))
    }

    fn select(&mut self, relay: &Relay) -> Result<Vec<Row>, Trouble> {
        let limit = i64::try_from(relay.limit.max(1)).unwrap_or(i64::MAX);
        let select = outbox::select(self.leadership.connection(), limit);
        let mut rows = relay.runtime.block_on(select)?;
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        rows.truncate(fitting(&ids));
        Ok(rows)
    }

    /// One transaction: the rows' records and the mark. The refusal, if Kafka takes one of them never.
    fn publish(&mut self, relay: &Relay, rows: &[Row]) -> Result<Option<Refusal>, Trouble> {
        self.begin()?;
        if let Some(refusal) = self.produce(rows)? {
            return Ok(Some(refusal));
        }
        if crash::again(Point::RelayProduced) {
            self.abort(relay)?;
            return self.publish(relay, rows);
        }
        crash::here(Point::RelayProduced);
        let mark = Mark {
            batch: self.batch + 1,
            hash: Hash::of(rows.iter().map(|row| row.message)),
            ids: rows.iter().map(|row| row.id).collect(),
        };
        let committed = self.send_mark(relay, &mark).and_then(|()| {
            if crash::again(Point::RelayOffsetsSent) {
                self.send_mark(relay, &mark)?;
            }
            crash::here(Point::RelayOffsetsSent);
            self.commit(relay)
        });
        match committed {
            Ok(()) => Ok(None),
            Err(error) => match Refusal::of_transaction(&error) {
                Some(refusal) => Ok(Some(refusal)),
                None => Err(doing("committing a batch")(error)),
            },
        }
    }

    fn begin(&self) -> Result<(), Trouble> {
        self.producer.begin_transaction().map_err(doing("beginning a batch"))
    }

    /// Sends the rows' records and waits until Kafka has them all.
    fn produce(&self, rows: &[Row]) -> Result<Option<Refusal>, Trouble> {
        for (place, row) in rows.iter().enumerate() {
            if let Err(error) = kafka::send(&self.producer, record(place, row)) {
                return match Refusal::of_one(place, &error) {
                    Some(refusal) => Ok(Some(refusal)),
                    None => Err(doing("producing a batch")(error)),
                };
            }
        }
        let deliveries = self.producer.context();
        let drained = deliveries.drain(PATIENCE);
        let failures = deliveries.take_failed();
        match (Refusal::among(&failures), failures.first(), drained) {
            (Some(refusal), _, _) => Ok(Some(refusal)),
            (None, Some(failure), _) => Err(doing("producing a batch")(KafkaError::MessageProduction(failure.code))),
            (None, None, Drained::InFlight) => Err(Trouble::Unacknowledged),
            (None, None, Drained::Settled) => Ok(None),
        }
    }

    fn send_mark(&self, relay: &Relay, mark: &Mark) -> KafkaResult<()> {
        let mut offsets = TopicPartitionList::new();
        let mut partition = offsets.add_partition(topics::RELAY_STATE, PARTITION);
        partition.set_offset(Offset::Offset(mark.batch))?;
        partition.set_metadata(mark.metadata());
        persist(relay, || {
            self.producer.send_offsets_to_transaction(&offsets, &self.group, ANSWER)
        })
    }

    fn commit(&mut self, relay: &Relay) -> KafkaResult<()> {
        persist(relay, || self.producer.commit_transaction(ANSWER))?;
        self.marked_at = Some(Instant::now());
        Ok(())
    }

    fn delete(&mut self, relay: &Relay, rows: &[Row]) -> Result<(), Trouble> {
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        let mut delete = || {
            let delete = outbox::delete(self.leadership.connection(), &ids, self.batch + 1);
            relay.runtime.block_on(delete)
        };
        delete()?;
        if crash::again(Point::RelayDeleted) {
            delete()?;
        }
        self.batch += 1;
        Ok(())
    }

    /// Marks the rows that Kafka refuses, so that their keys wait and all others go on. Not knowing which, it tries smaller
    /// batches until one of a single row is refused.
    fn refuse(&mut self, relay: &mut Relay, rows: &[Row], refusal: &Refusal) -> Result<Step, Trouble> {
        let refused: Vec<&Row> = match (&refusal.culprits, rows) {
            (Culprits::Known(places), _) => places.iter().map(|place| &rows[*place]).collect(),
            (Culprits::Unknown, [row]) => vec![row],
            (Culprits::Unknown, _) => vec![],
        };
        for row in &refused {
            tracing::error!(
                id = row.id,
                topic = row.topic,
                key = row.key,
                code = %refusal.code,
                "Kafka refused an outbox row: its key waits; see `holdfast admin outbox list`"
            );
        }
        if refused.is_empty() {
            relay.limit = (rows.len() / 2).max(1);
        } else {
            let ids: Vec<i64> = refused.iter().map(|row| row.id).collect();
            let reason = refusal.code.to_string();
            let refuse = outbox::refuse(self.leadership.connection(), &ids, &reason);
            relay.runtime.block_on(refuse)?;
            relay.limit = relay.settings.relay.batch;
        }
        self.abort(relay)?;
        Ok(Step::Worked(0))
    }

    fn abort(&self, relay: &Relay) -> Result<(), Trouble> {
        // An abort with records in flight would wait for them in vain.
        self.producer.purge(PurgeConfig::default().queue().inflight());
        let deliveries = self.producer.context();
        if deliveries.drain(PATIENCE) == Drained::InFlight {
            return Err(Trouble::Unacknowledged);
        }
        deliveries.take_failed();
        persist(relay, || self.producer.abort_transaction(ANSWER)).map_err(doing("aborting a batch"))
    }
}

fn record(place: usize, row: &Row) -> BaseRecord<'_, [u8], [u8], usize> {
    let headers = row.headers.iter().fold(OwnedHeaders::new(), |headers, (name, value)| {
        headers.insert(Header {
            key: name,
            value: Some(value),
        })
    });
    BaseRecord::with_opaque_to(&row.topic, place)
        .key(row.key.as_bytes())
        .payload(row.value.as_slice())
        .headers(headers)
}

/// The offset and metadata that Kafka has, and what it takes to commit others.
fn committed_mark(relay: &Relay) -> Result<(Option<(i64, String)>, ConsumerGroupMetadata), Trouble> {
    let mut config = kafka::client(&relay.settings.kafka);
    config.set("group.id", GROUP).set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().map_err(Error::Client)?;
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(topics::RELAY_STATE, PARTITION);
    let committed = consumer
        .committed_offsets(wanted, PATIENCE)
        .map_err(doing("reading the mark"))?;
    let mut mark = None;
    for partition in committed.elements() {
        partition.error().map_err(doing("reading the mark"))?;
        if let Offset::Offset(batch) = partition.offset() {
            mark = Some((batch, partition.metadata().to_owned()));
        }
    }
    let group = consumer
        .group_metadata()
        .ok_or(KafkaError::Canceled)
        .map_err(doing("reading the mark"))?;
    Ok((mark, group))
}

/// Compares Kafka with the database and deletes what Kafka already has. The number of the last batch.
fn settle(relay: &Relay, leadership: &mut Leadership, kafka: Option<(i64, String)>) -> Result<i64, Trouble> {
    let database = relay.runtime.block_on(outbox::batch(leadership.connection()))?;
    let marked = kafka.as_ref().map(|(batch, metadata)| (*batch, metadata.as_str()));
    match compare(database, marked) {
        Comparison::Agreement => return Ok(database),
        Comparison::OneAhead(mark) => {
            let messages = outbox::messages(leadership.connection(), &mark.ids);
            let messages = relay.runtime.block_on(messages)?;
            if messages.len() == mark.ids.len() && Hash::of(messages) == mark.hash {
                tracing::info!(
                    batch = mark.batch,
                    rows = mark.ids.len(),
                    "deleting rows that Kafka has"
                );
                let delete = outbox::delete(leadership.connection(), &mark.ids, mark.batch);
                relay.runtime.block_on(delete)?;
                return Ok(mark.batch);
            }
        }
        Comparison::Disagreement => {}
    }
    relay.metrics.relay_back_in_time.set(1);
    let kafka = kafka.map_or("none".to_owned(), |(batch, _)| batch.to_string());
    Err(Trouble::Stop(Error::BackInTime { database, kafka }))
}

fn producer(relay: &Relay) -> Result<Producer, Error> {
    let mut config = kafka::producer(&relay.settings.kafka);
    config
        .set("transactional.id", TRANSACTIONAL_ID)
        .set("transaction.timeout.ms", "10000")
        .set("message.timeout.ms", "9000")
        // The client reports a missing topic as such before the other time-outs.
        .set("topic.metadata.propagation.max.ms", "4000")
        .set(
            "message.max.bytes",
            relay.settings.kafka.admitted_record_bytes.to_string(),
        );
    config.create_with_context(Deliveries::default()).map_err(Error::Client)
}

/// Repeats a call for as long as Kafka's error is retriable.
fn persist(relay: &Relay, call: impl Fn() -> KafkaResult<()>) -> KafkaResult<()> {
    let start = Instant::now();
    loop {
        match call() {
            Err(KafkaError::Transaction(error))
                if error.is_retriable() && start.elapsed() < PATIENCE && !relay.shutdown.is_cancelled() =>
            {
                tracing::debug!(%error, "Kafka asks for the call again");
                relay.wait(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

/// The errors that end a session. The next session mends all but [`Trouble::Stop`]: it compares first.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("Kafka failed while {doing}")]
    Kafka { doing: &'static str, source: KafkaError },
    #[error("Kafka did not acknowledge records in time")]
    Unacknowledged,
    #[error(transparent)]
    Outbox(#[from] outbox::Error),
    /// A proof asked for the repeat.
    #[error("a step is done again")]
    Repeated,
    #[error(transparent)]
    Stop(#[from] Error),
}

fn doing(doing: &'static str) -> impl FnOnce(KafkaError) -> Trouble {
    move |source| Trouble::Kafka { doing, source }
}
