//! The relay: outbox rows to Kafka, exactly once.
//!
//! It selects rows in order, produces them in one Kafka transaction, and commits with it a mark: a batch number, a hash over
//! the messages, and the row ids, as offset and metadata of a consumer group of its own. Then one statement deletes the rows
//! and notes the batch number. Whatever was cut short is resolved on the next start of a session, by comparing mark and
//! number; when they cannot both be right, a store went back in time, and the relay stops rather than guess.
//!
//! One relay works at a time: an advisory lock elects it. The transactional id keeps the outcomes safe even if two believe
//! that they hold it: Kafka then fences the older.
//!
//! Batches are as large as the path is busy: the next batch gathers for 2 ms per row of the last one, at most 200 ms, so
//! that transactions become fewer, not smaller. After a single row nothing waits.
//!
//! The relay does its SQL on the connection that holds its lock. A connection that is lost, and a frozen process whose
//! session the server ends after 20 s, lose the lock with it; the next session compares Kafka and the database anew. A
//! relay that lived on through a restore would otherwise never look.

mod batch;
mod refusal;
mod session;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::session::{Session, Step, Trouble};
use crate::config;
use crate::kafka;
use crate::metrics::Metrics;
use crate::store::PgPool;
use crate::store::outbox::{self, Leadership};

/// The settings of the relay.
#[derive(Debug, Clone)]
pub struct Settings {
    pub kafka: config::Kafka,
    pub relay: config::Relay,
}

/// Runs until `shutdown`, then finishes the batch in hand. Waits for Kafka and Postgres for as long as they are away.
///
/// # Errors
/// Only errors that an operator has to mend.
pub async fn run(
    settings: Settings,
    pool: PgPool,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let wake = Arc::new(Notify::new());
    let mut relay = Relay {
        limit: settings.relay.batch,
        settings,
        pool: pool.clone(),
        metrics: metrics.clone(),
        wake: wake.clone(),
        shutdown,
        runtime: Handle::current(),
    };
    tokio::select! {
        ended = kafka::on_thread("relay", move || relay.run()) => ended?,
        never = outbox::listen(&pool, &wake) => match never {},
        never = report(&pool, &metrics) => match never {},
    }
}

/// Keeps the gauges of the outbox true, in every relay, whether it works or waits.
async fn report(pool: &PgPool, metrics: &Metrics) -> Infallible {
    let mut interval = tokio::time::interval(Duration::from_secs(5));
    loop {
        interval.tick().await;
        match outbox::lag(pool).await {
            Ok(lag) => {
                metrics.outbox_rows.set(lag.rows);
                metrics.outbox_refused.set(lag.refused);
                metrics.outbox_oldest_seconds.set(lag.oldest_seconds);
            }
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "the outbox was not counted"),
        }
    }
}

/// Gathering time of the next batch for each row of the last one. A batch costs Kafka and the database much the same whatever
/// its size: the busier the path, the fewer and larger batches become.
const PACE_PER_ROW: Duration = Duration::from_millis(2);
/// Most latency that gathering adds.
const LONGEST_PACE: Duration = Duration::from_millis(200);
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
}

impl Relay {
    fn run(&mut self) -> Result<(), Error> {
        while let Some(leadership) = self.wait_for_leadership() {
            self.metrics.relay_leader.set(1);
            let ended = self.lead(leadership);
            self.metrics.relay_leader.set(0);
            ended?;
        }
        Ok(())
    }

    /// Waits while another relay leads, or the database is away. None on shutdown.
    fn wait_for_leadership(&self) -> Option<Leadership> {
        while !self.shutdown.is_cancelled() {
            match self.runtime.block_on(Leadership::take(&self.pool)) {
                Ok(Some(leadership)) => return Some(leadership),
                Ok(None) => {}
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "waiting for the database"),
            }
            self.wait(LOOK);
        }
        None
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
                    tracing::warn!(
                        error = &trouble as &dyn std::error::Error,
                        "the relay begins a new session"
                    );
                    self.metrics.relay_rebuilds.inc();
                }
            }
            // Kafka fences a relay that waited too long in the same way as one that was replaced: the lock tells which it was.
            if !self.runtime.block_on(leadership.holds()) {
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
        let mut session = Session::open(self, leadership)?;
        while !self.shutdown.is_cancelled() {
            match session.step(self)? {
                Step::Worked(rows) if rows < self.limit => self.wait(pace(rows)),
                Step::Worked(_) => {}
                Step::Idle => {
                    session.renew_mark(self)?;
                    self.wait_for_rows();
                }
            }
            *failures = 0;
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

/// Gathering time after a batch of so many rows. After a single row the path was idle: the next batch is sent at once.
fn pace(rows: usize) -> Duration {
    let more = u32::try_from(rows.saturating_sub(1)).unwrap_or(u32::MAX);
    PACE_PER_ROW.saturating_mul(more).min(LONGEST_PACE)
}

/// The reason why the relay stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the database went back in time: its last batch is number {database}, Kafka's is {kafka}, and the rows between do \
         not agree. Nothing was sent or deleted. Follow docs/runbook.md#the-database-went-back-in-time"
    )]
    BackInTime { database: i64, kafka: String },
    #[error("cannot make the relay's Kafka clients")]
    Client(#[source] KafkaError),
    #[error(transparent)]
    Thread(#[from] kafka::ThreadError),
}
