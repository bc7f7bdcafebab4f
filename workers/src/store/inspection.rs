//! What an operator asks of a database beside its rows: who is let in, what server it is, whether the tables are whole, and what stands
//! still there. For `holdfast doctor`.

use std::time::Duration;

use sqlx::{FromRow, PgPool};
use time::OffsetDateTime;

use super::Error;
use super::migrate::{self, MIGRATOR};
use super::session::InTime;

/// A database as a session of ours finds it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// As `server_version_num` has it: 180004 is 18.4.
    pub version: i32,
    pub now: OffsetDateTime,
    pub user: String,
    /// The version of TLS; none without it.
    pub encryption: Option<String>,
    pub max_prepared_transactions: i32,
    /// How many transactions ago the oldest row was written that is not frozen: PostgreSQL stops at two thousand million.
    pub frozen_age: i64,
    /// On disk, as PostgreSQL writes it for people.
    pub size: String,
}

/// What stands still.
#[derive(Debug, Clone, FromRow)]
pub struct Standing {
    pub kind: String,
    pub count: i64,
    pub since: Option<OffsetDateTime>,
    /// Which they are, as far as that is short.
    pub which: Option<String>,
}

/// # Errors
/// It does not answer.
pub async fn facts(pool: &PgPool) -> Result<Facts, Error> {
    let (version, now, user, encryption, max_prepared_transactions, frozen_age, size) = sqlx::query_as(
        "select current_setting('server_version_num')::int, clock_timestamp(), current_user::text,
                (select version from pg_stat_ssl where pid = pg_backend_pid() and ssl),
                current_setting('max_prepared_transactions')::int,
                (select greatest(age(datfrozenxid), mxid_age(datminmxid))::bigint from pg_database where datname = current_database()),
                pg_size_pretty(pg_database_size(current_database()))",
    )
    .fetch_one(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)?;
    Ok(Facts {
        version,
        now,
        user,
        encryption,
        max_prepared_transactions,
        frozen_age,
        size,
    })
}

/// The migrations of this release that are not applied, by version.
///
/// # Errors
/// The database does not answer, or its tables are for later releases alone.
pub async fn pending(pool: &PgPool) -> Result<Vec<i64>, Error> {
    migrate::check(pool).await.map_err(Error::Migrate)?;
    let made: bool = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(pool)
        .in_time(pool)
        .await
        .map_err(Error::Read)?;
    let applied: Vec<i64> = match made {
        true => sqlx::query_scalar("select version from _sqlx_migrations where success")
            .fetch_all(pool)
            .in_time(pool)
            .await
            .map_err(Error::Read)?,
        false => Vec::new(),
    };
    let known = MIGRATOR.iter().map(|migration| migration.version);
    Ok(known.filter(|version| !applied.contains(version)).collect())
}

/// The indexes of our tables that were left unfinished; no statement uses them.
///
/// # Errors
/// The database does not answer.
pub async fn invalid_indexes(pool: &PgPool) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(
        "select indexrelid::regclass::text from pg_index
         where not indisvalid and indrelid in (select oid from pg_class where relnamespace = current_schema()::regnamespace)
         order by 1",
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// What waits for an operator, or longer than it should, by kind, each with a count of 0 where nothing does. Of the
/// transactions those that are open for longer than `long_open`.
///
/// # Errors
/// The database does not answer, or a right is missing.
pub async fn standing(pool: &PgPool, long_open: Duration) -> Result<Vec<Standing>, Error> {
    sqlx::query_as(include_str!("inspection/standing.sql"))
        .bind(long_open)
        .fetch_all(pool)
        .in_time(pool)
        .await
        .map_err(Error::Read)
}
