//! The outbox: records that wait for the relay, in the order of their ids. The committer writes rows and notifies the
//! channel `outbox`; the relay reads and deletes them; an operator settles those that Kafka refused.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::timeout;
use uuid::Uuid;

use super::operator_log::Operator;
use super::session::InTime;
use crate::rounds::Rounds;
use crate::transience::{self, Fault};

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
    /// Seconds since it was decided, by the database's clock.
    pub age: f64,
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
        select row.id, row.topic, row.key, message, headers as "headers: Json<BTreeMap<String, String>>", value,
            extract(epoch from clock_timestamp() - written_at)::float8 as "age!"
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

/// A row as an operator knows it.
#[derive(Debug, Clone)]
pub struct WaitingRow {
    pub id: i64,
    pub topic: String,
    pub key: String,
    pub message: Uuid,
    pub written_at: OffsetDateTime,
}

/// Every row, refused ones too, in the order of their ids.
///
/// # Errors
/// [`Error::Select`]
pub async fn waiting(db: impl PgExecutor<'_>) -> Result<Vec<WaitingRow>, Error> {
    sqlx::query_as!(
        WaitingRow,
        "select id, topic, key, message, written_at from outbox order by id"
    )
    .fetch_all(db)
    .await
    .map_err(Error::Select)
}

/// Deletes rows whose records Kafka has, as an operator has found. How many there were.
///
/// # Errors
/// [`Error::Delete`]
pub async fn drop_told(db: impl PgExecutor<'_>, ids: &[i64]) -> Result<u64, Error> {
    sqlx::query!("delete from outbox where id = any($1)", ids)
        .execute(db)
        .await
        .map(|done| done.rows_affected())
        .map_err(Error::Delete)
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

/// How much waits, and how far the relay is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lag {
    pub rows: i64,
    pub refused: i64,
    /// Rows that no refused row holds back: they only wait for the relay.
    pub movable: i64,
    /// Age of the oldest row, in seconds by the database's clock; 0 when none waits.
    pub oldest_seconds: f64,
    /// The number of the last batch whose rows were deleted.
    pub batch: i64,
}

/// Measures the backlog.
///
/// # Errors
/// [`Error::Select`]
pub async fn lag(db: impl PgExecutor<'_>) -> Result<Lag, Error> {
    sqlx::query_as!(
        Lag,
        r#"with held as materialized (
            select topic, key, min(id) as id from outbox where refused is not null group by topic, key
        )
        select
            count(*) as "rows!",
            count(row.refused) as "refused!",
            count(*) filter (where held.id is null or row.id < held.id) as "movable!",
            coalesce(extract(epoch from clock_timestamp() - min(row.written_at)), 0)::float8 as "oldest_seconds!",
            (select batch from relay_state) as "batch!"
        from outbox row
        left join held on held.topic = row.topic and held.key = row.key"#
    )
    .fetch_one(db)
    .await
    .map_err(Error::Select)
}

/// A row as `holdfast admin outbox` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct ListedRow {
    pub id: i64,
    pub topic: String,
    pub key: String,
    pub message: Uuid,
    /// Why Kafka refused it; none for a row that only waits.
    pub reason: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub written_at: OffsetDateTime,
    /// Later rows of the same topic and key.
    pub behind: i64,
}

/// Which rows an operator means: those that fit all that is given.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowChoice<'a> {
    pub ids: Option<&'a [i64]>,
    pub topic: Option<&'a str>,
    pub key: Option<&'a str>,
    /// A part of the reason, in upper or lower case.
    pub reason: Option<&'a str>,
    pub since: Option<OffsetDateTime>,
    pub until: Option<OffsetDateTime>,
    /// Only rows that Kafka refused.
    pub refused: bool,
}

/// The rows that are meant, oldest first.
///
/// # Errors
/// [`Error::Select`]
pub async fn rows(pool: &PgPool, choice: RowChoice<'_>) -> Result<Vec<ListedRow>, Error> {
    sqlx::query_as!(
        ListedRow,
        r#"select id, topic, key, message, refused as reason, written_at,
            (
                select count(*) from outbox later
                where later.topic = row.topic and later.key = row.key and later.id > row.id
            ) as "behind!"
        from outbox row
        where ($1::bigint[] is null or id = any($1))
            and ($2::text is null or topic = $2)
            and ($3::text is null or key = $3)
            and ($4::text is null or position(lower($4) in lower(refused)) > 0)
            and ($5::timestamptz is null or written_at >= $5)
            and ($6::timestamptz is null or written_at < $6)
            and (refused is not null or not $7)
        order by id"#,
        choice.ids as Option<&[i64]>,
        choice.topic,
        choice.key,
        choice.reason,
        choice.since,
        choice.until,
        choice.refused,
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Select)
}

/// What a row brings to Kafka.
#[derive(Debug, Clone)]
pub struct RowContent {
    pub headers: Json<BTreeMap<String, String>>,
    pub value: Vec<u8>,
}

/// The content of a row, if it is still there.
///
/// # Errors
/// [`Error::Select`]
pub async fn content(pool: &PgPool, id: i64) -> Result<Option<RowContent>, Error> {
    sqlx::query_as!(
        RowContent,
        r#"select headers as "headers: Json<BTreeMap<String, String>>", value from outbox where id = $1"#,
        id
    )
    .fetch_optional(pool)
    .in_time(pool)
    .await
    .map_err(Error::Select)
}

/// Lets the relay try refused rows again, and notes who wanted it. The ids of those that were still refused.
///
/// # Errors
/// [`Error::Settle`]
pub async fn retry(pool: &PgPool, ids: &[i64], operator: Operator<'_>) -> Result<Vec<i64>, Error> {
    sqlx::query_scalar!(
        r#"with settled as (
            update outbox set refused = null where id = any($1) and refused is not null returning id, topic, key, message
        ),
        noted as (
            insert into operator_log (command, subject, who, why, details)
            select 'outbox retry', id::text, $2, $3, 'message ' || message || ' for ' || key || ' on ' || topic
            from settled order by id
        )
        select id as "id!" from (select id, pg_notify('outbox', '') from settled) told"#,
        ids,
        operator.who,
        operator.why,
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Settle)
}

/// Deletes refused rows for good: their records are never sent, and the later rows of their keys go on. Notes who wanted it. The ids of
/// those that were still refused.
///
/// # Errors
/// [`Error::Settle`]
pub async fn discard(pool: &PgPool, ids: &[i64], operator: Operator<'_>) -> Result<Vec<i64>, Error> {
    sqlx::query_scalar!(
        r#"with settled as (
            delete from outbox where id = any($1) and refused is not null returning id, topic, key, message
        ),
        noted as (
            insert into operator_log (command, subject, who, why, details)
            select 'outbox drop', id::text, $2, $3, 'message ' || message || ' for ' || key || ' on ' || topic
            from settled order by id
        )
        select id as "id!" from (select id, pg_notify('outbox', '') from settled) told"#,
        ids,
        operator.who,
        operator.why,
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Settle)
}

/// A relay that asks nothing for so long, being frozen or cut off, loses the lock to another one: longer than it waits for
/// any answer of Kafka, and than the pause of one that is idle.
const LEASE: &str = "set idle_session_timeout = '20s'";

/// Key of the advisory lock: a number that nothing else in this database locks.
const LEADERSHIP: i64 = i64::from_be_bytes(*b"hf.relay");

/// A session that asks for the relay's lock, and keeps its connection while another relay has it.
pub struct Candidate(RelayConnection);

/// What a candidate was answered.
pub enum Election {
    Won(Leadership),
    /// Another relay holds the lock.
    Lost(Candidate),
}

impl Candidate {
    /// Opens the session. No answer of the database is waited for longer than `limit`. `former` is a session that was given up
    /// because nothing came of it: the server may not have noticed, so it is ended, and its lock with it.
    ///
    /// # Errors
    /// [`Error::Lead`], [`Error::Silent`]
    pub async fn connect(pool: &PgPool, limit: Duration, former: Option<Backend>) -> Result<Self, Error> {
        let options = pool.connect_options();
        let (connection, backend) = within(limit, async {
            let mut connection = PgConnection::connect_with(&options).await?;
            let backend = begin(&mut connection).await?;
            if let Some(former) = former {
                end(&mut connection, former).await?;
            }
            Ok::<_, sqlx::Error>((connection, backend))
        })
        .await?
        .map_err(Error::Lead)?;
        Ok(Self(RelayConnection {
            connection,
            backend,
            limit,
            is_silent: false,
        }))
    }

    /// Takes the lock, unless another relay holds it.
    ///
    /// # Errors
    /// [`Error::Lead`], [`Error::Silent`]
    pub async fn stand(mut self) -> Result<Election, Error> {
        let taken = self.0.ask(async |connection| {
            sqlx::query_scalar!(r#"select pg_try_advisory_lock($1) as "taken!""#, LEADERSHIP)
                .fetch_one(connection)
                .await
                .map_err(Error::Lead)
        });
        Ok(match taken.await? {
            true => Election::Won(Leadership(self.0)),
            false => Election::Lost(self),
        })
    }
}

/// The right to be the one relay of this database: an advisory lock, which ends with its connection. The relay works on this
/// connection alone, so that without the lock it can neither read nor delete a row, and after a restart or a restore of the
/// database it compares again before it sends anything.
pub struct Leadership(RelayConnection);

impl Leadership {
    /// Asks the database something on the lock's connection. When no answer comes within the limit, the connection is never used
    /// again: a host or a firewall on the way may be gone, and nobody would be told.
    ///
    /// # Errors
    /// [`Error::Silent`], and what `question` returns.
    pub async fn ask<T>(
        &mut self,
        question: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.0.ask(question).await
    }

    /// True while the lock's connection lives, and with it the lock; asks the database.
    pub async fn holds(&mut self) -> bool {
        let ping = self.ask(async |connection| connection.ping().await.map_err(Error::Lead));
        ping.await.is_ok()
    }

    /// Lets the session pause and its statements take as long as an operator's command needs.
    ///
    /// # Errors
    /// [`Error::Lead`], [`Error::Silent`]
    pub async fn take_time(&mut self) -> Result<(), Error> {
        self.ask(async |connection| {
            sqlx::raw_sql("set idle_session_timeout = 0; set statement_timeout = 0")
                .execute(connection)
                .await
                .map(drop)
                .map_err(Error::Lead)
        })
        .await
    }

    /// The server's side of a connection that brought no answer.
    pub fn silent(&self) -> Option<Backend> {
        self.0.is_silent.then_some(self.0.backend)
    }

    /// Releases the lock, so that another relay need not wait for a timeout.
    ///
    /// # Errors
    /// [`Error::Lead`], [`Error::Silent`]
    pub async fn leave(self) -> Result<(), Error> {
        within(self.0.limit, self.0.connection.close())
            .await?
            .map_err(Error::Lead)
    }
}

struct RelayConnection {
    connection: PgConnection,
    backend: Backend,
    limit: Duration,
    /// An answer is missing: whatever comes next on the connection would be taken for another one.
    is_silent: bool,
}

/// The server's side of a session: a process id may return, a process id and its start do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    pid: i32,
    started_at: OffsetDateTime,
}

impl RelayConnection {
    async fn ask<T>(&mut self, question: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
        if self.is_silent {
            return Err(Error::Silent(self.limit));
        }
        // Also when the caller gives up in between.
        self.is_silent = true;
        let answer = within(self.limit, question(&mut self.connection)).await?;
        self.is_silent = false;
        answer
    }
}

async fn begin(connection: &mut PgConnection) -> Result<Backend, sqlx::Error> {
    sqlx::raw_sql(LEASE).execute(&mut *connection).await?;
    sqlx::query_as!(
        Backend,
        r#"select pid as "pid!", backend_start as "started_at!" from pg_stat_activity where pid = pg_backend_pid()"#
    )
    .fetch_one(connection)
    .await
}

async fn end(connection: &mut PgConnection, former: Backend) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "select pg_terminate_backend(pid) from pg_stat_activity where pid = $1 and backend_start = $2",
        former.pid,
        former.started_at,
    )
    .fetch_all(connection)
    .await
    .map(drop)
}

/// Waits no longer than `limit`.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Error> {
    timeout(limit, work).await.map_err(|_elapsed| Error::Silent(limit))
}

/// How long a listener may hear nothing before it asks whether it still would.
const QUIET: Duration = Duration::from_secs(10);

/// Wakes `wake` whenever rows were written, for ever; while the database is away, nobody is woken. No answer of the database is
/// waited for longer than `limit`.
pub async fn listen(pool: &PgPool, limit: Duration, wake: &Notify, rounds: &Rounds) -> Infallible {
    const RETRY: Duration = Duration::from_secs(1);
    loop {
        // Whoever is not woken asks every second instead.
        if let Err(error) = listen_once(pool, limit, wake, rounds).await {
            rounds.failed(error.fault(), &error);
        }
        // What was written meanwhile went unheard.
        wake.notify_one();
        tokio::time::sleep(RETRY).await;
    }
}

/// Listens until the connection is lost.
async fn listen_once(pool: &PgPool, limit: Duration, wake: &Notify, rounds: &Rounds) -> Result<(), Error> {
    // A listener cleans up its connection when it is dropped, which takes for ever if that has died: it must not be one of `pool`.
    let own = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(limit)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_lazy_with((*pool.connect_options()).clone());
    let mut listener = within(limit, async {
        let mut listener = PgListener::connect_with(&own).await?;
        listener.eager_reconnect(false);
        listener.listen("outbox").await?;
        Ok::<_, sqlx::Error>(listener)
    })
    .await?
    .map_err(Error::Listen)?;
    rounds.passed();
    loop {
        match timeout(QUIET, listener.try_recv()).await {
            Ok(heard) => {
                if heard.map_err(Error::Listen)?.is_none() {
                    return Ok(());
                }
                while listener.next_buffered().is_some() {}
                wake.notify_one();
            }
            Err(_quiet) => {
                let ping = sqlx::query_scalar!("select 1").fetch_one(&mut listener);
                within(limit, ping).await?.map_err(Error::Listen)?;
            }
        }
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
    #[error("cannot compare the change logs and the outbox with what was told")]
    Told(#[source] sqlx::Error),
    #[error("cannot listen for outbox rows")]
    Listen(#[source] sqlx::Error),
    #[error("the database has not answered within {0:?}: the connection is given up")]
    Silent(Duration),
}

impl Error {
    /// The fault, which decides whether it is waited out.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Silent(_) => Fault::Server,
            Error::Select(error)
            | Error::State(error)
            | Error::Delete(error)
            | Error::Refuse(error)
            | Error::Settle(error)
            | Error::Lead(error)
            | Error::Told(error)
            | Error::Listen(error) => transience::sql(error),
        }
    }
}
