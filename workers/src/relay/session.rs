//! One session of the relay's transactional producer: it begins by comparing Kafka with the database, and ends with the first
//! error that is not about a record.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, PurgeConfig};

use super::batch::{Comparison, Hash, Mark, compare, fitting};
use super::mark;
use super::refusal::{Culprits, KafkaRefusal};
use super::{Error, Relay};
use crate::crash::{self, Point};
use crate::kafka::{self, Deliveries, Drained, FailedDelivery, Heard, Producer};
use crate::metrics::Stage;
use crate::store::outbox::{self, Leadership, Row};
use crate::traces;
use crate::transience::{self, Fault};

/// The transactional id that all relays share.
const TRANSACTIONAL_ID: &str = "holdfast.relay";
/// Longest wait for an answer of Kafka before the call is repeated.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest time for which a retriable call is repeated, and for which records may stay unacknowledged. Kafka aborts a
/// transaction after 10 s.
const PATIENCE: Duration = Duration::from_secs(12);

/// Kafka answers a commit before it has marked each partition of the transaction, which is one more record on each. A transaction
/// that begins meanwhile is turned away, and the client library comes back 20 ms later. Marking takes no longer than writing did,
/// so the next batch gathers for as long, and at most for this.
const LONGEST_MARKING: Duration = Duration::from_millis(50);

pub(super) struct ProducerSession<'a> {
    /// Every statement is sent on the lock's connection.
    leadership: &'a mut Leadership,
    producer: Producer,
    /// Number of the last batch, the same in Kafka and in the database.
    batch: i64,
}

/// The result of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A batch left the outbox, of so many rows, or the search for a refused row made progress. Kafka marks its transaction until
    /// about then.
    Worked {
        rows: usize,
        marked: Instant,
    },
    Idle,
}

impl<'a> ProducerSession<'a> {
    /// Aborts the transaction that a predecessor left open, then settles its last batch.
    pub(super) fn open(relay: &Relay, leadership: &'a mut Leadership) -> Result<Self, Trouble> {
        let (mut session, mark) = Self::begin_with(relay, leadership)?;
        session.batch = settle(relay, session.leadership, session.batch, mark)?;
        tracing::info!(batch = session.batch, "the relay's session is open");
        Ok(session)
    }

    /// Ends whatever transaction a predecessor left open. The session, as far as the database is, and the mark that Kafka has.
    pub(super) fn begin_with(relay: &Relay, leadership: &'a mut Leadership) -> Result<(Self, Option<Mark>), Trouble> {
        let producer = producer(relay)?;
        persist(relay, || producer.init_transactions(ANSWER)).map_err(doing(&producer, "starting transactions"))?;
        let mark = mark::committed(&relay.settings.kafka, PATIENCE)?;
        let batch = leadership.ask(async |connection| outbox::batch(connection).await);
        let batch = relay.runtime.block_on(batch)?;
        let session = Self {
            leadership,
            producer,
            batch,
        };
        Ok((session, mark))
    }

    pub(super) fn leadership(&mut self) -> &mut Leadership {
        self.leadership
    }

    /// The number of the last batch that the database knows.
    pub(super) fn batch(&self) -> i64 {
        self.batch
    }

    /// Has Kafka agree with the database.
    pub(super) fn accept(&mut self, relay: &Relay) -> Result<(), Trouble> {
        let mark = Mark::accepted(self.batch);
        self.begin()?;
        kafka::send(&self.producer, mark::record(&mark.text())).map_err(self.doing("producing a mark"))?;
        self.not_refused(&self.acknowledged()?)?;
        self.commit(relay).map_err(self.doing("committing a mark"))
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
        let (selected, begun) = (Instant::now(), traces::now());
        if let Some(refusal) = self.publish(relay, &rows)? {
            return self.refuse(relay, &rows, &refusal);
        }
        let published = selected.elapsed();
        let marked = Instant::now() + published.min(LONGEST_MARKING);
        let told = relay.metrics.outcome_seconds.with_label_values(&["told"]);
        for row in &rows {
            relay.metrics.took(Stage::Written, row.age);
            relay.metrics.took(Stage::Relayed, published.as_secs_f64());
            told.observe((row.age + published.as_secs_f64()).max(0.0));
            traces::told(&row.topic, &row.key, &row.value, row.age, rows.len(), begun);
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
        Ok(Step::Worked {
            rows: rows.len(),
            marked,
        })
    }

    fn select(&mut self, relay: &Relay) -> Result<Vec<Row>, Trouble> {
        let limit = i64::try_from(relay.limit.max(1)).unwrap_or(i64::MAX);
        let select = self
            .leadership
            .ask(async |connection| outbox::select(connection, limit).await);
        let mut rows = relay.runtime.block_on(select)?;
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        rows.truncate(fitting(&ids));
        Ok(rows)
    }

    /// One transaction: the rows' records and the mark. The refusal, if Kafka takes one of the rows never.
    fn publish(&mut self, relay: &Relay, rows: &[Row]) -> Result<Option<KafkaRefusal>, Trouble> {
        let mark = Mark {
            batch: self.batch + 1,
            hash: Hash::of(rows.iter().map(|row| row.message)),
            ids: rows.iter().map(|row| row.id).collect(),
        };
        self.begin()?;
        if let Some(refusal) = self.produce(rows, &mark.text())? {
            return Ok(Some(refusal));
        }
        if crash::again(Point::RelayProduced) {
            self.abort(relay)?;
            return self.publish(relay, rows);
        }
        crash::here(Point::RelayProduced);
        match self.commit(relay) {
            Ok(()) => Ok(None),
            Err(error) => match KafkaRefusal::of_transaction(&error) {
                Some(refusal) => Ok(Some(refusal)),
                None => Err(self.doing("committing a batch")(error)),
            },
        }
    }

    fn begin(&self) -> Result<(), Trouble> {
        self.producer
            .begin_transaction()
            .map_err(self.doing("beginning a batch"))
    }

    /// Sends the records of the rows and of the mark, and waits until Kafka has them all.
    fn produce(&self, rows: &[Row], mark: &str) -> Result<Option<KafkaRefusal>, Trouble> {
        for (place, row) in rows.iter().enumerate() {
            if let Err(error) = kafka::send(&self.producer, record(place, row)) {
                return match KafkaRefusal::of_one(place, &error) {
                    Some(refusal) => Ok(Some(refusal)),
                    None => Err(self.doing("producing a batch")(error)),
                };
            }
        }
        kafka::send(&self.producer, mark::record(mark)).map_err(self.doing("producing a mark"))?;
        let (of_mark, of_rows): (Vec<FailedDelivery>, Vec<FailedDelivery>) = self
            .acknowledged()?
            .into_iter()
            .partition(|failure| failure.record == mark::OPAQUE);
        // A record that is refused takes the others of its transaction with it, the mark's among them.
        match (KafkaRefusal::among(&of_rows), of_rows.first()) {
            (Some(refusal), _) => Ok(Some(refusal)),
            (None, Some(failure)) => {
                let denies = |failure: &&FailedDelivery| failure.code == RDKafkaErrorCode::TopicAuthorizationFailed;
                let denied = of_rows.iter().find(denies).and_then(|failure| rows.get(failure.record));
                Err(match denied {
                    Some(row) => Trouble::Denied {
                        topic: row.topic.clone(),
                    },
                    None => self.doing("producing a batch")(KafkaError::MessageProduction(failure.code)),
                })
            }
            (None, None) => self.not_refused(&of_mark).map(|()| None),
        }
    }

    /// Waits until every record that was sent is delivered or failed; those that failed.
    fn acknowledged(&self) -> Result<Vec<FailedDelivery>, Trouble> {
        let deliveries = self.producer.context();
        let drained = kafka::drain(&self.producer, PATIENCE);
        let failures = deliveries.take_failed();
        match drained {
            Drained::InFlight if failures.is_empty() => Err(Trouble::Unacknowledged),
            _ => Ok(failures),
        }
    }

    /// What became of the mark's record.
    fn not_refused(&self, failures: &[FailedDelivery]) -> Result<(), Trouble> {
        let Some(failure) = failures.first() else {
            return Ok(());
        };
        Err(match mark::Error::of_record(failure.code) {
            Some(refused) => refused.into(),
            None => self.doing("producing a mark")(KafkaError::MessageProduction(failure.code)),
        })
    }

    /// An error of this step, with what the client has heard besides: it names only there what ended a transaction.
    fn doing(&self, step: &'static str) -> impl FnOnce(KafkaError) -> Trouble {
        doing(&self.producer, step)
    }

    fn commit(&mut self, relay: &Relay) -> KafkaResult<()> {
        persist(relay, || self.producer.commit_transaction(ANSWER))
    }

    fn delete(&mut self, relay: &Relay, rows: &[Row]) -> Result<(), Trouble> {
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        let batch = self.batch + 1;
        let mut delete = || {
            let delete = self
                .leadership
                .ask(async |connection| outbox::delete(connection, &ids, batch).await);
            relay.runtime.block_on(delete)
        };
        delete()?;
        if crash::again(Point::RelayDeleted) {
            delete()?;
        }
        self.batch = batch;
        Ok(())
    }

    /// Marks the rows that Kafka refuses, so that their keys wait and all others go on. Not knowing which, it tries smaller
    /// batches until one of a single row is refused.
    fn refuse(&mut self, relay: &mut Relay, rows: &[Row], refusal: &KafkaRefusal) -> Result<Step, Trouble> {
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
            let refuse = self
                .leadership
                .ask(async |connection| outbox::refuse(connection, &ids, &reason).await);
            relay.runtime.block_on(refuse)?;
            relay.limit = relay.settings.relay.batch;
        }
        self.abort(relay)?;
        Ok(Step::Worked {
            rows: 0,
            marked: Instant::now(),
        })
    }

    fn abort(&self, relay: &Relay) -> Result<(), Trouble> {
        // An abort with records in flight would wait for them in vain.
        self.producer.purge(PurgeConfig::default().queue().inflight());
        if kafka::drain(&self.producer, PATIENCE) == Drained::InFlight {
            return Err(Trouble::Unacknowledged);
        }
        self.producer.context().take_failed();
        persist(relay, || self.producer.abort_transaction(ANSWER)).map_err(self.doing("aborting a batch"))
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

/// Compares Kafka with the number of the database's last batch and deletes what Kafka already has. The number of the last batch.
fn settle(relay: &Relay, leadership: &mut Leadership, database: i64, mark: Option<Mark>) -> Result<i64, Trouble> {
    let kafka = match compare(database, mark) {
        Comparison::Agreement => return Ok(database),
        Comparison::NoMark => {
            relay.metrics.relay_back_in_time.set(1);
            return Err(Trouble::Stop(Error::NoMark { database }));
        }
        Comparison::OneAhead(mark) => {
            let messages = leadership.ask(async |connection| outbox::messages(connection, &mark.ids).await);
            let messages = relay.runtime.block_on(messages)?;
            if messages.len() == mark.ids.len() && Hash::of(messages) == mark.hash {
                tracing::info!(
                    batch = mark.batch,
                    rows = mark.ids.len(),
                    "deleting rows that Kafka has"
                );
                let delete = leadership.ask(async |connection| outbox::delete(connection, &mark.ids, mark.batch).await);
                relay.runtime.block_on(delete)?;
                return Ok(mark.batch);
            }
            mark.batch
        }
        Comparison::Disagreement(mark) => mark.batch,
    };
    relay.metrics.relay_back_in_time.set(1);
    Err(Trouble::Stop(match kafka < database {
        true => Error::KafkaBackInTime { database, kafka },
        false => Error::BackInTime { database, kafka },
    }))
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
    config
        .create_with_context(Deliveries::new(&relay.settings.kafka))
        .map_err(Error::Client)
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
pub enum Trouble {
    #[error("Kafka failed while {doing}{heard}")]
    Kafka {
        doing: &'static str,
        heard: Heard,
        source: KafkaError,
    },
    #[error("Kafka denies the relay the right to WRITE to the topic {topic}")]
    Denied { topic: String },
    #[error("Kafka did not acknowledge records in time")]
    Unacknowledged,
    #[error(transparent)]
    Mark(#[from] mark::Error),
    #[error(transparent)]
    Outbox(#[from] outbox::Error),
    /// A proof asked for the repeat.
    #[error("a step is done again")]
    Repeated,
    #[error(transparent)]
    Stop(#[from] Error),
}

impl Trouble {
    /// The fault, which decides whether the next session may mend it.
    pub(super) fn fault(&self) -> Fault {
        match self {
            Trouble::Kafka { heard, source, .. } => {
                let code = source.rdkafka_error_code();
                (heard.fault()).unwrap_or_else(|| code.map_or(Fault::Unknown, transience::kafka))
            }
            Trouble::Denied { .. } => Fault::Setting,
            Trouble::Mark(error) => error.fault(),
            Trouble::Outbox(error) => error.fault(),
            Trouble::Unacknowledged | Trouble::Repeated => Fault::Server,
            Trouble::Stop(_) => Fault::Setting,
        }
    }
}

fn doing(producer: &Producer, doing: &'static str) -> impl FnOnce(KafkaError) -> Trouble {
    move |source| Trouble::Kafka {
        doing,
        heard: producer.context().heard(),
        source,
    }
}
