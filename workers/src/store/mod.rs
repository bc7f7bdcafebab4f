//! Postgres: the only place with SQL, beside what `verify` reads. A file for each table, with free functions over a pool or
//! connection; `commit`, `buying`, `together` and `credits` are the transactions over several of them. `mechanisms` are tools for
//! tables of your own.
//!
//! Statements take generic plans (`plan_cache_mode`): all of them take arrays, and planning a batch of 1,000 anew costs as
//! much as half its execution. What is sent for each event takes its arrays apart in a select list, not by one `unnest` of them all
//! in `from`, where each array fills a tuplestore of its own: for a single unit the committer's statement took twice the CPU time.

pub mod buying;
pub mod change_log;
mod checkout_seats;
pub mod checkouts;
pub mod commit;
pub mod credits;
pub mod disputes;
mod error;
pub mod examples;
pub mod foresight;
pub mod grants;
pub mod idempotency;
pub mod inspection;
mod ledger;
pub mod loyalty;
pub mod mails;
pub mod mechanisms;
pub mod migrate;
pub mod operator_log;
pub mod orders;
pub mod outbox;
pub mod outcome_log;
pub mod progress;
mod purchases;
pub mod quarantine;
pub mod recovery;
pub mod refunds;
mod repayments;
pub mod rotation;
pub mod sales;
mod session;
pub mod settled_dead_letters;
pub mod ticket_attributes;
pub mod tickets;
pub mod together;
pub mod users;

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
pub use sqlx::PgPool;
use time::OffsetDateTime;

pub use commit::{Answer, Command, Committer, Unit, Work, get};
pub use error::{Cause, Error};
pub use session::{address, await_answer, connect, connect_within, ping, pool, reach};
use session::{in_time, on_session};

/// The time by the database's clock.
///
/// # Errors
/// It does not answer.
pub async fn now(pool: &PgPool) -> Result<OffsetDateTime, Error> {
    in_time(
        pool,
        sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(pool),
    )
    .await
    .map_err(Error::Read)
}

/// Brings the tables up to date. Answers how many migrations were missing.
///
/// # Errors
/// A migration failed, one that was applied has changed since, or a later release has taken away what this one reads.
pub async fn migrate(pool: &PgPool) -> Result<usize, Error> {
    migrate::run(pool).await.map_err(Error::Migrate)
}

/// The longest pause between two attempts at something that infrastructure made fail.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Pauses between attempts.
pub type Pauses = ExponentialBackoff;

/// Growing pauses without end, from 50 ms to [`LONGEST_PAUSE`].
pub fn pauses() -> Pauses {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}
