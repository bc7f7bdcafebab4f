//! The outbox: records that wait for the relay, in the order of their ids. The committer writes rows and notifies the
//! channel `outbox`; the relay reads and deletes them; an operator settles those that Kafka refused.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use sqlx::postgres::PgListener;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use tokio::sync::Notify;
use uuid::Uuid;

/// One record that waits for Kafka.
#[derive(Debug, Clone)]
pub struct Row {
    pub id: i64,
    pub topic: String,
    pub key: String,
    /// Identity of the record, whatever its row id: outcome id, or an id derived from a dead letter's origin.
    pub message: Uuid,
    pub headers: Json<BTreeMap<String, String>>,
    pub value: Vec<u8>,
}

/// The oldest rows that may be sent: a refused row holds back itself and the later rows of its topic and key.
///
/// # Errors
/// [`Error::Select`]
pub async fn select(db: impl PgExecutor<'_>, limit: i64) -> Result<Vec<Row>, Error> {
    sqlx::query_as!(
        Row,
        // The refused rows by themselves, once, and then the rows in order: by this statement the plan does not depend on what the
        // planner believes of a table that it mostly sees empty.
        r#"with refused as materialized (
            select topic, key, min(id) as id from outbox where refused is not null group by topic, key
        )
        select row.id, row.topic, row.key, message, headers as "headers: Json<BTreeMap<String, String>>", value
        from outbox row
        left join refused on refused.topic = row.topic and refused.key = row.key
        where refused.id is null or row.id < refused.id
        order by row.id
        limit $1"#,
        limit
    )
    .fetch_all(db)
    .await
    .map_err(Error::Select)
}

/// The message ids of the given rows, in the order of row ids; rows that do not exist are left out.
///
/// # Errors
/// [`Error::Select`]
pub async fn messages(db: impl PgExecutor<'_>, ids: &[i64]) -> Result<Vec<Uuid>, Error> {
    sqlx::query_scalar!("select message from outbox where id = any($1) order by id", ids)
        .fetch_all(db)
        .await
        .map_err(Error::Select)
}

/// The number of the last batch whose rows were deleted; 0 before the first.
///
/// # Errors
/// [`Error::State`]
pub async fn batch(db: impl PgExecutor<'_>) -> Result<i64, Error> {
    sqlx::query_scalar!("select batch from relay_state")
        .fetch_one(db)
        .await
        .map_err(Error::State)
}

/// Deletes the rows of batch number `batch` and notes the number, in one statement: both, or neither when a row is gone
/// or the batch before is another one.
///
/// # Errors
/// [`Error::Delete`]
pub async fn delete(db: impl PgExecutor<'_>, ids: &[i64], batch: i64) -> Result<(), Error> {
    sqlx::query!(
        r#"with
            deleted as (delete from outbox where id = any($1) returning id),
            raised as (update relay_state set batch = $2::bigint where batch = $2::bigint - 1 returning batch)
        select check_rows('outbox', cardinality($1::bigint[]), (select count(*) from deleted))
            and check_rows('relay_state', 1, (select count(*) from raised)) as "checked!""#,
        ids,
        batch
    )
    .fetch_one(db)
    .await
    .map(|_| ())
    .map_err(Error::Delete)
}

/// Marks rows that Kafka refused, so that their keys wait and all others go on.
///
/// # Errors
/// [`Error::Refuse`]
pub async fn refuse(db: impl PgExecutor<'_>, ids: &[i64], reason: &str) -> Result<(), Error> {
    sqlx::query!(
        "update outbox set refused = $2 where id = any($1) and refused is null",
        ids,
        reason
    )
    .execute(db)
    .await
    .map(|_| ())
    .map_err(Error::Refuse)
}

/// The backlog of the outbox.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lag {
    pub rows: i64,
    pub refused: i64,
    /// Age of the oldest row, in seconds by the database's clock; 0 when none waits.
    pub oldest_seconds: f64,
}

/// Measures the backlog.
///
/// # Errors
/// [`Error::Select`]
pub async fn lag(db: impl PgExecutor<'_>) -> Result<Lag, Error> {
    sqlx::query_as!(
        Lag,
        r#"select
            count(*) as "rows!",
            count(refused) as "refused!",
            coalesce(extract(epoch from clock_timestamp() - min(written_at)), 0)::float8 as "oldest_seconds!"
        from outbox"#
    )
    .fetch_one(db)
    .await
    .map_err(Error::Select)
}

/// A row that Kafka refused.
#[derive(Debug, Clone)]
pub struct Refused {
    pub id: i64,
    pub topic: String,
    pub key: String,
    pub message: Uuid,
    pub reason: String,
    pub written_at: OffsetDateTime,
    /// Later rows of the same topic and key, which wait for this one.
    pub waiting: i64,
}

/// The rows that Kafka refused, oldest first.
///
/// # Errors
/// [`Error::Select`]
pub async fn refused(db: impl PgExecutor<'_>) -> Result<Vec<Refused>, Error> {
    sqlx::query_as!(
        Refused,
        r#"select id, topic, key, message, refused as "reason!", written_at,
            (
                select count(*) from outbox later
                where later.topic = row.topic and later.key = row.key and later.id > row.id
            ) as "waiting!"
        from outbox row
        where refused is not null
        order by id"#
    )
    .fetch_all(db)
    .await
    .map_err(Error::Select)
}

/// The result of an operator's command for one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    Done,
    /// No refused row has this id.
    NotRefused,
}

/// Lets the relay try a refused row again.
///
/// # Errors
/// [`Error::Settle`]
pub async fn retry(db: impl PgExecutor<'_>, id: i64) -> Result<Settled, Error> {
    let settled = sqlx::query!(
        "with freed as (update outbox set refused = null where id = $1 and refused is not null returning id)
        select pg_notify('outbox', '') from freed",
        id
    )
    .fetch_optional(db)
    .await;
    settled
        .map(|row| row.map_or(Settled::NotRefused, |_| Settled::Done))
        .map_err(Error::Settle)
}

/// Deletes a refused row for good: its record is never sent, and the later rows of its key go on.
///
/// # Errors
/// [`Error::Settle`]
pub async fn discard(db: impl PgExecutor<'_>, id: i64) -> Result<Settled, Error> {
    let settled = sqlx::query!(
        "with gone as (delete from outbox where id = $1 and refused is not null returning id)
        select pg_notify('outbox', '') from gone",
        id
    )
    .fetch_optional(db)
    .await;
    settled
        .map(|row| row.map_or(Settled::NotRefused, |_| Settled::Done))
        .map_err(Error::Settle)
}

/// The leadership among the relays of this database: an advisory lock, which ends with its connection. The relay uses this
/// connection alone, so that without the lock it can neither read nor delete a row, and after a restart or a restore of the
/// database it compares batch numbers again before it sends anything.
pub struct Leadership(PgConnection);

/// A relay that sends no statement for so long, being frozen or cut off, loses the lock to another one: longer than it waits
/// for any answer of Kafka, and than its pause when it is idle.
const LEASE: &str = "set idle_session_timeout = '20s'";

/// Key of the advisory lock: a number that nothing else in this database locks.
const LEADERSHIP: i64 = i64::from_be_bytes(*b"hf.relay");

impl Leadership {
    /// Takes the lock, unless another relay holds it.
    ///
    /// # Errors
    /// [`Error::Lead`]
    pub async fn take(pool: &PgPool) -> Result<Option<Self>, Error> {
        let mut connection = pool.acquire().await.map_err(Error::Lead)?.detach();
        let taken = sqlx::query_scalar!(r#"select pg_try_advisory_lock($1) as "taken!""#, LEADERSHIP)
            .fetch_one(&mut connection)
            .await
            .map_err(Error::Lead)?;
        sqlx::raw_sql(LEASE)
            .execute(&mut connection)
            .await
            .map_err(Error::Lead)?;
        Ok(taken.then_some(Self(connection)))
    }

    /// The connection that holds the lock.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.0
    }

    /// True while the lock's connection lives, and with it the lock; asks the database.
    pub async fn holds(&mut self) -> bool {
        self.0.ping().await.is_ok()
    }

    /// Releases the lock, so that another relay need not wait for a timeout.
    ///
    /// # Errors
    /// [`Error::Lead`]
    pub async fn leave(self) -> Result<(), Error> {
        self.0.close().await.map_err(Error::Lead)
    }
}

/// Notifies `wake` whenever rows were written, for ever; not while the database is away.
pub async fn listen(pool: &PgPool, wake: &Notify) -> Infallible {
    const RETRY: Duration = Duration::from_secs(1);
    loop {
        if let Err(error) = listen_once(pool, wake).await {
            tracing::debug!(%error, "cannot listen for outbox rows; asking every second instead");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn listen_once(pool: &PgPool, wake: &Notify) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen("outbox").await?;
    loop {
        // A lost connection may have lost notifications too: it wakes as well.
        listener.try_recv().await?;
        while listener.next_buffered().is_some() {}
        wake.notify_one();
    }
}

/// The statement that failed, with the database's error as the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the outbox")]
    Select(#[source] sqlx::Error),
    #[error("cannot read relay_state")]
    State(#[source] sqlx::Error),
    #[error("cannot delete outbox rows that Kafka has")]
    Delete(#[source] sqlx::Error),
    #[error("cannot mark outbox rows that Kafka refused")]
    Refuse(#[source] sqlx::Error),
    #[error("cannot settle a refused outbox row")]
    Settle(#[source] sqlx::Error),
    #[error("cannot take or give back the relay's lock")]
    Lead(#[source] sqlx::Error),
}
