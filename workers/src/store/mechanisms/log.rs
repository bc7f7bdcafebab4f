//! The change log: the values of each version of a row, written in the statement that makes the version.
//!
//! **For** rows whose past will be asked for. A table that names its log in [`Table::LOG`] gets an item for each change,
//! whichever tool makes it. Its rows are read with their `version`: that of a marked table; an unmarked one has a column `version
//! bigint not null default 1`, which each change raises that changes something. A change that changes nothing leaves no item.
//! The log has the key's column, `version`, `data jsonb` (the columns that were written, as this version has them), `changed_at
//! timestamptz`, and the primary key (key, `version`). Rows that are older than the log need an item when it is created.
//!
//! **SQL** Writes, such as an appending expression:
//!
//! ```sql
//! with written as (
//!     update notes t set lines = t.lines || n.lines, version = t.version + ((t.lines) is distinct from (t.lines || n.lines))::int
//!     from jsonb_populate_record(null::notes, $2) n where t.id = any($1)
//!     returning t.id, t.version, jsonb_build_object('lines', t.lines) as data),
//! logged as (
//!     insert into notes_log (id, version, data, changed_at) select id, version, data, clock_timestamp() from written
//!     on conflict (id, version) do nothing)
//! select t.id from written t
//! ```
//!
//! [`as_of`] merges the items up to one; [`items`] lists them. Rows of a logged table are not deleted, and own SQL
//! ([`super::raw`]) writes items of its own.
//!
//! **Errors** Those of the tool that writes. Reads: [`Error::Statement`].
//!
//! **Crashes** Row and item are there, or neither; the repeat of a change that changes nothing any more writes no second item.
//!
//! ```no_run
//! # async fn example<Note: holdfast::store::mechanisms::Table<Key = i64>>(pool: sqlx::PgPool) -> Result<(), holdfast::store::mechanisms::Error> {
//! use holdfast::store::mechanisms::log::{self, Until};
//!
//! for item in log::items::<Note>(&pool, &17, Until::Now).await? {
//!     println!("{} at {}: {}", item.version, item.changed_at, item.data);
//! }
//! let first: Option<Note> = log::as_of(&pool, &17, Until::Version(1)).await?;
//! # drop(first); Ok(()) }
//! ```

use sqlx::PgExecutor;
use time::OffsetDateTime;

use super::table::{row, sql};
use super::{Error, Table};

/// One version of a row.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Item {
    pub version: i64,
    /// The columns that were written, by name, as this version has them.
    pub data: serde_json::Value,
    pub changed_at: OffsetDateTime,
}

/// The last version of a row to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Now,
    Version(i64),
    /// By the database's clock.
    Time(OffsetDateTime),
}

impl Until {
    /// The last version, or the last moment, where one is named.
    pub(in crate::store) fn bounds(self) -> (Option<i64>, Option<OffsetDateTime>) {
        match self {
            Until::Now => (None, None),
            Until::Version(version) => (Some(version), None),
            Until::Time(time) => (None, Some(time)),
        }
    }
}

/// A row's versions, oldest first.
pub async fn items<T: Table>(executor: impl PgExecutor<'_>, key: &T::Key, until: Until) -> Result<Vec<Item>, Error> {
    let (log, which) = (log::<T>(), which::<T>());
    let text = format!("select version, data, changed_at from {log} where {which} order by version");
    let (version, time) = until.bounds();
    let query = sqlx::query_as(sql(text)).bind(key.clone()).bind(version).bind(time);
    query.fetch_all(executor).await.map_err(Error::of(T::TABLE))
}

/// The row as it was; none when there was no such row yet.
pub async fn as_of<T: Table>(executor: impl PgExecutor<'_>, key: &T::Key, until: Until) -> Result<Option<T>, Error> {
    let (table, key_column, row) = (T::TABLE, T::KEY, row::<T>());
    let (log, which) = (log::<T>(), which::<T>());
    // Of fields with equal names, a JSON object keeps the last.
    let text = format!(
        "select {row}
         from (
             select jsonb_build_object('{key_column}', {key_column}, 'version', max(version))
                 || jsonb_object_agg(name, value order by version) as data
             from {log}, jsonb_each(data) as written (name, value)
             where {which}
             group by {key_column}
         ) was, jsonb_populate_record(null::{table}, was.data) t"
    );
    let (version, time) = until.bounds();
    let query = sqlx::query_as(sql(text)).bind(key.clone()).bind(version).bind(time);
    query.fetch_optional(executor).await.map_err(Error::of(T::TABLE))
}

fn log<T: Table>() -> &'static str {
    const { T::LOG.expect("only a table with a change log has a past") }
}

fn which<T: Table>() -> String {
    let key = T::KEY;
    format!("{key} = $1 and ($2::bigint is null or version <= $2) and ($3::timestamptz is null or changed_at <= $3)")
}
