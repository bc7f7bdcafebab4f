//! The relay: outbox rows to Kafka, exactly once.
//!
//! It selects rows in order and produces them in one Kafka transaction, together with a mark: a batch number, a hash over the
//! messages, and the row ids, as a record of a compacted topic. Then one statement deletes the rows and notes the batch number.
//! Whatever was cut short is resolved on the next start of a session, by comparing mark and number; when they cannot both be
//! right, a store went back in time, and the relay stops rather than guess.
//!
//! One relay works at a time: an advisory lock elects it. The transactional id keeps the outcomes safe even if two believe
//! that they hold it: Kafka then fences the older.
//!
//! Batches are as large as the path is busy: the next one gathers while Kafka writes and marks the last. Waiting by the clock
//! beyond that (2 ms per row, at most 200 ms) made batches larger and the path no faster. Two transactional ids in turn, so that one
//! batch is written while the last is marked, made more and smaller transactions: the path was no faster, and Kafka busier by a
//! fifth. What a transaction costs is the partitions that it touches: the client library sends a request for each, and Kafka answers
//! them one after the other and marks each. So outcome topics have few (`--outcome-partitions`).
//!
//! The relay does its SQL on the connection that holds its lock. A connection that is lost, and a frozen process whose
//! session the server ends after 20 s, lose the lock with it; the next session compares Kafka and the database anew. A
//! relay that lived on through a restore would otherwise never look.

pub mod acceptance;
mod batch;
mod mark;
mod movement;
pub mod recovery;
mod refusal;
pub mod retelling;
mod session;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_schemas::topics::RELAY_MARK;
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::movement::Movement;
use self::session::{ProducerSession, Step, Trouble};
use crate::config::{self, Config};
use crate::kafka;
use crate::lifecycle::Readiness;
use crate::metrics::Metrics;
use crate::rounds::Rounds;
use crate::store::PgPool;
use crate::store::outbox::{self, Backend, Candidate, Election, Leadership};

/// The settings of the relay.
#[derive(Debug, Clone)]
pub struct Settings {
    pub kafka: config::Kafka,
    pub relay: config::Relay,
    /// Longest time one statement may take; the server ends it then.
    pub statement_timeout: Duration,
}

impl Settings {
    pub fn new(config: &Config) -> Self {
        Self {
            kafka: config.kafka.clone(),
            relay: config.relay.clone(),
            statement_timeout: config.database.statement_timeout,
        }
    }

    /// How long an answer of the database is waited for: the server answers within the statement's limit, or not at all.
    fn patience(&self) -> Duration {
        self.statement_timeout + MARGIN
    }
}

/// What an answer of the database may need on its way, beyond the statement's own limit.
const MARGIN: Duration = Duration::from_secs(5);

/// The name under which `/readyz` speaks of the relay.
pub const PART: &str = "relay";

/// What Kafka and the database say of the last batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    Agree { batch: i64 },
    NoMark { database: i64 },
    Disagree { database: i64, kafka: i64 },
}

/// Compares Kafka's mark with the database, beside a relay that may be at work.
///
/// # Errors
/// One of them does not answer, or the topic of the mark is missing.
pub async fn agreement(settings: &config::Kafka, pool: &PgPool) -> Result<Agreement, Trouble> {
    let before = outbox::batch(pool).await?;
    let settings = settings.clone();
    let read = kafka::on_thread("doctor", move || mark::committed(&settings, MARGIN));
    let mark = read.await.map_err(Error::from)??;
    let after = outbox::batch(pool).await?;
    Ok(match mark {
        None if after == 0 => Agreement::Agree { batch: 0 },
        None => Agreement::NoMark { database: after },
        // Kafka is one ahead while a batch leaves the outbox.
        Some(mark) if (before..=after + 1).contains(&mark.batch) => Agreement::Agree { batch: mark.batch },
        Some(mark) => Agreement::Disagree {
            database: after,
            kafka: mark.batch,
        },
    })
}

/// Runs until `shutdown`, then finishes the batch under way. Waits for Kafka and Postgres for as long as they are away.
///
/// # Errors
/// Only errors that an operator has to mend.
pub async fn run(
    settings: Settings,
    pool: PgPool,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let patience = settings.patience();
    let rounds = |part| Rounds::new(part, &readiness, &metrics);
    let wake = Arc::new(Notify::new());
    let mut relay = Relay {
        limit: settings.relay.batch,
        settings,
        pool: pool.clone(),
        metrics: metrics.clone(),
        wake: wake.clone(),
        shutdown,
        runtime: Handle::current(),
        given_up: None,
        standing: rounds("relay (lock)"),
        sessions: rounds("relay (session)"),
    };
    let (listening, counting) = (rounds("relay (listen)"), rounds("relay (count)"));
    tokio::select! {
        ended = kafka::on_thread("relay", move || relay.run()) => ended?,
        never = outbox::listen(&pool, patience, &wake, &listening) => match never {},
        never = report(&pool, patience, &metrics, &readiness, &counting) => match never {},
    }
}

/// Keeps the gauges of the outbox and the relay's readiness true, in every relay, whether it works or waits. The relay is ready
/// unless rows wait and none has moved for longer than a statement may take.
async fn report(
    pool: &PgPool,
    patience: Duration,
    metrics: &Metrics,
    readiness: &Readiness,
    rounds: &Rounds,
) -> Infallible {
    let mut interval = tokio::time::interval(Duration::from_secs(5));
    let mut movement = Movement::default();
    let mut moves = true;
    loop {
        interval.tick().await;
        let counted = timeout(patience, outbox::lag(pool)).await;
        let lag = match counted.unwrap_or(Err(outbox::Error::Silent(patience))) {
            Ok(lag) => lag,
            Err(error) => {
                rounds.failed(error.fault(), &error);
                continue;
            }
        };
        rounds.passed();
        metrics.outbox_rows.set(lag.rows);
        metrics.outbox_refused.set(lag.refused);
        metrics.outbox_movable.set(lag.movable);
        metrics.outbox_oldest_seconds.set(lag.oldest_seconds);
        let moved = movement.still_for(&lag, Instant::now()) <= patience;
        match (moves, moved) {
            (true, false) => tracing::error!(
                rows = lag.movable,
                batch = lag.batch,
                "rows wait and none moves: this relay or the one that leads is stuck"
            ),
            (false, true) => tracing::info!(rows = lag.movable, batch = lag.batch, "rows move again"),
            _ => {}
        }
        moves = moved;
        readiness.set(PART, moves);
    }
}

/// Longest wait of an idle relay for a notification, before it reads the outbox by itself.
const LOOK: Duration = Duration::from_secs(1);

struct Relay {
    settings: Settings,
    pool: PgPool,
    metrics: Arc<Metrics>,
    wake: Arc<Notify>,
    shutdown: CancellationToken,
    runtime: Handle,
    /// Rows in the next batch; fewer while the relay searches for a row that Kafka refuses.
    limit: usize,
    /// The server's side of a session that brought no answer.
    given_up: Option<Backend>,
    /// The tries to get the lock.
    standing: Rounds,
    /// The sessions.
    sessions: Rounds,
}

impl Relay {
    fn run(&mut self) -> Result<(), Error> {
        while let Some(leadership) = self.wait_for_leadership() {
            self.metrics.relay_leader.set(1);
            let ended = self.lead(leadership);
            self.metrics.relay_leader.set(0);
            // From here on it is for the relay that leads to say what fails.
            self.sessions.passed();
            ended?;
        }
        Ok(())
    }

    /// Waits while another relay leads, or the database is away, with one connection all the while. None on shutdown.
    fn wait_for_leadership(&mut self) -> Option<Leadership> {
        let mut waiting = None;
        while !self.shutdown.is_cancelled() {
            match self.stand(waiting.take()) {
                Ok(election) => {
                    self.standing.passed();
                    match election {
                        Election::Won(leadership) => return Some(leadership),
                        Election::Lost(candidate) => waiting = Some(candidate),
                    }
                }
                Err(error) => self.standing.failed(error.fault(), &error),
            }
            self.wait(LOOK);
        }
        None
    }

    fn stand(&mut self, candidate: Option<Candidate>) -> Result<Election, outbox::Error> {
        let (runtime, patience) = (&self.runtime, self.settings.patience());
        let candidate = match candidate {
            Some(candidate) => candidate,
            None => runtime.block_on(Candidate::connect(&self.pool, patience, self.given_up))?,
        };
        self.given_up = None;
        runtime.block_on(candidate.stand())
    }

    /// Works until shutdown, or until the lock is lost.
    fn lead(&mut self, mut leadership: Leadership) -> Result<(), Error> {
        tracing::info!("this is the relay now");
        let mut failures = 0;
        loop {
            match self.work(&mut leadership, &mut failures) {
                Ok(()) => break,
                Err(Trouble::Stop(error)) => return Err(error),
                Err(trouble) => {
                    self.sessions.failed(trouble.fault(), &trouble);
                    self.metrics.relay_rebuilds.inc();
                }
            }
            // Kafka fences a relay that waited too long in the same way as one that was replaced: the lock tells which it was.
            if !self.runtime.block_on(leadership.holds()) {
                self.given_up = leadership.silent();
                tracing::warn!("another relay may lead: waiting for the lock");
                return Ok(());
            }
            self.wait(Duration::from_millis(100 << failures.min(6)).min(Duration::from_secs(5)));
            failures += 1;
        }
        if let Err(error) = self.runtime.block_on(leadership.leave()) {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "the lock ends with its connection"
            );
        }
        Ok(())
    }

    /// Runs one session with Kafka, until shutdown or an error.
    fn work(&mut self, leadership: &mut Leadership, failures: &mut u32) -> Result<(), Trouble> {
        if self.shutdown.is_cancelled() {
            return Ok(());
        }
        let mut session = ProducerSession::open(self, leadership)?;
        while !self.shutdown.is_cancelled() {
            match session.step(self)? {
                Step::Worked { rows, marked } if rows < self.limit => {
                    self.wait(marked.saturating_duration_since(Instant::now()));
                }
                Step::Worked { .. } => {}
                Step::Idle => self.wait_for_rows(),
            }
            *failures = 0;
            self.sessions.passed();
        }
        Ok(())
    }

    fn wait(&self, duration: Duration) {
        self.runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(duration) => {}
                () = self.shutdown.cancelled() => {}
            }
        });
    }

    fn wait_for_rows(&self) {
        self.runtime.block_on(async {
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
                () = self.shutdown.cancelled() => {}
            }
        });
    }
}

/// The reason why the relay stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the database went back in time: its last batch is number {database}, Kafka's is {kafka}, and the rows between do \
         not agree. Nothing was sent or deleted. Follow docs/runbook.md#the-database-went-back-in-time"
    )]
    BackInTime { database: i64, kafka: i64 },
    #[error(
        "Kafka went back in time: its last batch is number {kafka}, the database's is {database}, so outcomes that were told are \
         missing. Nothing was sent or deleted. Follow docs/runbook.md#kafka-went-back-in-time"
    )]
    KafkaBackInTime { database: i64, kafka: i64 },
    #[error(
        "Kafka has no mark of the relay on the topic {RELAY_MARK}, and the database's last batch is number {database}. Nothing was \
         sent or deleted. Follow docs/runbook.md#kafka-has-no-mark-of-the-relay"
    )]
    NoMark { database: i64 },
    #[error("cannot make the relay's Kafka clients")]
    Client(#[source] KafkaError),
    #[error(transparent)]
    Thread(#[from] kafka::ThreadError),
}
