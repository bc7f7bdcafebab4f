//! Postgres: the only place with SQL, beside what `verify` reads. A file for each table, with free functions over a pool or
//! connection; `commit`, `buying`, `together` and `credits` are the transactions over several of them. `mechanisms` are tools for
//! tables of your own.
//!
//! Statements take generic plans (`plan_cache_mode`): all of them take arrays, and planning a batch of 1,000 anew costs as
//! much as half its execution.

pub mod buying;
pub mod change_log;
pub mod checkouts;
pub mod commit;
pub mod credits;
mod error;
pub mod examples;
pub mod idempotency;
mod ledger;
pub mod mails;
pub mod mechanisms;
pub mod outbox;
mod purchases;
pub mod settled_dead_letters;
pub mod ticket_attributes;
pub mod tickets;
pub mod together;
pub mod told;
pub mod users;

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use secrecy::{ExposeSecret, SecretString};
pub use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use time::OffsetDateTime;

use crate::config;
use crate::metrics::Metrics;
pub use commit::{Answer, Command, Committer, Unit, Work, get};
pub use error::{Cause, Error};

/// A pool whose sessions carry our timeouts. Waits for the database for ever, with capped back-off, and says so.
///
/// # Errors
/// Only a URL that cannot be read.
pub async fn connect(config: &config::Database, metrics: &Metrics) -> Result<PgPool, Error> {
    let pool = pool(&config.url, config)?;
    await_answer(&pool, metrics).await;
    Ok(pool)
}

/// A pool of sessions that carry our timeouts; none is opened yet.
///
/// # Errors
/// Only a URL that cannot be read.
pub fn pool(url: &SecretString, config: &config::Database) -> Result<PgPool, Error> {
    let options: PgConnectOptions = url.expose_secret().parse().map_err(Error::Url)?;
    let milliseconds = |duration: Duration| duration.as_millis().to_string();
    let options = options.application_name("holdfast").options([
        ("statement_timeout", milliseconds(config.statement_timeout)),
        ("lock_timeout", milliseconds(config.lock_timeout)),
        (
            "idle_in_transaction_session_timeout",
            milliseconds(config.idle_in_transaction_timeout),
        ),
        ("synchronous_commit", "on".to_owned()),
        // The driver rolls back a transaction that was prepared and so has left the session: that warning is of no use.
        ("client_min_messages", "error".to_owned()),
        // Our statements take arrays: one plan suits every length, and costs no planning. It is often made while the tables
        // are still empty, so it must go by index to stay right when they have grown.
        ("plan_cache_mode", "force_generic_plan".to_owned()),
        ("enable_seqscan", "off".to_owned()),
    ]);
    Ok(PgPoolOptions::new()
        .max_connections(config.pool_size)
        .acquire_timeout(config.acquire_timeout)
        .connect_lazy_with(options))
}

/// Waits for the database for ever, with capped back-off, and says so.
pub async fn await_answer(pool: &PgPool, metrics: &Metrics) {
    let options = pool.connect_options();
    let database = options.get_database().unwrap_or_default();
    let address = format!("{}:{}/{database}", options.get_host(), options.get_port());
    let mut pauses = pauses();
    loop {
        match pool.acquire().await {
            Ok(_) => return,
            Err(error) => {
                metrics.retries.with_label_values(&["connect"]).inc();
                tracing::warn!(%address, error = &error as &dyn std::error::Error, "waiting for Postgres");
                tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
            }
        }
    }
}

/// Checks that the database answers.
///
/// # Errors
/// It does not answer.
pub async fn ping(pool: &PgPool) -> Result<(), Error> {
    sqlx::query_scalar!("select 1")
        .fetch_one(pool)
        .await
        .map(drop)
        .map_err(Error::Read)
}

/// The time by the database's clock.
///
/// # Errors
/// It does not answer.
pub async fn now(pool: &PgPool) -> Result<OffsetDateTime, Error> {
    sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#)
        .fetch_one(pool)
        .await
        .map_err(Error::Read)
}

/// Brings the tables up to date.
///
/// # Errors
/// A migration failed, or one that was applied has changed since.
pub async fn migrate(pool: &PgPool) -> Result<(), Error> {
    sqlx::migrate!("../migrations").run(pool).await.map_err(Error::Migrate)
}

/// The longest pause between two attempts at something that infrastructure made fail.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Growing pauses without end, from 50 ms to [`LONGEST_PAUSE`].
pub fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}
