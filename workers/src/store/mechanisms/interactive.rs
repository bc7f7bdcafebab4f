//! The interactive transaction: a closure in which reads decide writes, over several rows and tables, all or nothing.
//!
//! **For** rules that span rows: hold all of these seats or none, move credits from one user to another.
//!
//! The closure sees one state of the database and its own writes. When another transaction changed what it read, everything is
//! rolled back and the closure is called anew on fresh data, at most [`Attempts`] times; so it must change nothing outside.
//! Ids that it needs are drawn before, outside, so that each call uses the same.
//!
//! **SQL** `begin isolation level serializable`; each call sends its statement at once; `commit`. [`Transaction::put`] writes
//! only a row that differs from what is there:
//!
//! ```sql
//! insert into example_users as t (user_id, ..., version) select n.user_id, ..., 0 from jsonb_populate_record(null::example_users, $1) n
//! on conflict (user_id) do update set name = excluded.name, ..., version = t.version + 1, written_by = null
//! where (t.name, ...) is distinct from (excluded.name, ...) returning t.version
//! ```
//!
//! SERIALIZABLE sees only transactions that are SERIALIZABLE too. A writer of another kind is noticed when it writes a row that
//! the closure writes, not when it writes one that the closure only reads: a closure that relies on such a row puts it, changed
//! or not, which locks it.
//!
//! **Errors** The closure's own, with which everything is rolled back; [`Error::Conflict`] when no attempt is left;
//! [`Error::Unknown`] when the answer to COMMIT was lost: a repeat is safe if the closure's reads make it so, for
//! example by a row of its own that says that it is done. A closure that goes on after a failed statement does not commit ([`Error::Swallowed`]).
//!
//! **Crashes** Before or during, a closure that fails, and one that panics: nothing was written.
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), holdfast::store::mechanisms::Error> {
//! use holdfast::store::examples::User;
//! use holdfast::store::mechanisms::interactive::{self, Attempts};
//!
//! let (from, to) = ("ann".to_owned(), "bob".to_owned());
//! let moved = interactive::transact(&pool, Attempts(10), async |transaction| {
//!     let (from, to) = (transaction.get::<User>(&from).await?, transaction.get::<User>(&to).await?);
//!     let (Some(mut from), Some(mut to)) = (from, to) else { return Ok(false) };
//!     if from.credits < 5 {
//!         return Ok(false);
//!     }
//!     (from.credits, to.credits) = (from.credits - 5, to.credits + 5);
//!     transaction.put(&from).await?;
//!     transaction.put(&to).await?;
//!     Ok::<_, interactive::Error>(true)
//! })
//! .await?;
//! assert_eq!(moved.value, moved.writes.len() == 2, "all or nothing");
//! # Ok(()) }
//! ```

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool, PgTransaction};

pub use super::Error;
use super::insert::row_json;
use super::table::{has_version, list, logged, row, sql};
use super::{Table, read};
use crate::store::session::{InTime, patience, within};

/// Most calls of the closure; at least one.
#[derive(Clone, Copy, Debug)]
pub struct Attempts(pub usize);

/// A committed transaction.
#[derive(Clone, Debug)]
pub struct Committed<R> {
    /// The closure's value.
    pub value: R,
    /// The rows that were written, in order. Empty when nothing changed.
    pub writes: Vec<Written>,
    /// Calls of the closure.
    pub calls: usize,
}

/// One row that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub table: &'static str,
    pub key: serde_json::Value,
    pub what: Write,
}

/// A write to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Inserted or overwritten; with its new version if the table has versions.
    Put {
        version: Option<i64>,
    },
    Deleted,
}

/// Calls the closure in a transaction and commits what it wrote. It is `Clone`, as closures are that change nothing outside:
/// each call begins with the same.
pub async fn transact<R, E: From<Error>>(
    pool: &PgPool,
    attempts: Attempts,
    closure: impl AsyncFnOnce(&mut Transaction) -> Result<R, E> + Clone,
) -> Result<Committed<R>, E> {
    transact_with("begin isolation level serializable", pool, attempts, closure).await
}

/// As [`transact`], at READ COMMITTED: for a closure that locks each row on which it decides, or writes it against the version
/// that it read. It conflicts only with transactions on the same rows; under SERIALIZABLE, rows that lie side by side conflict
/// too.
pub async fn transact_on_locks<R, E: From<Error>>(
    pool: &PgPool,
    attempts: Attempts,
    closure: impl AsyncFnOnce(&mut Transaction) -> Result<R, E> + Clone,
) -> Result<Committed<R>, E> {
    transact_with("begin isolation level read committed", pool, attempts, closure).await
}

async fn transact_with<R, E: From<Error>>(
    begin: &'static str,
    pool: &PgPool,
    attempts: Attempts,
    closure: impl AsyncFnOnce(&mut Transaction) -> Result<R, E> + Clone,
) -> Result<Committed<R>, E> {
    let mut pauses = pauses(attempts);
    let mut calls = 1;
    loop {
        let conflict = match attempt(begin, pool, closure.clone()).await? {
            Attempt::Committed(value, writes) => return Ok(Committed { value, writes, calls }),
            Attempt::Conflict(conflict) => conflict,
        };
        let Some(pause) = pauses.next() else {
            return Err(conflict);
        };
        tokio::time::sleep(pause).await;
        calls += 1;
    }
}

enum Attempt<R, E> {
    Committed(R, Vec<Written>),
    Conflict(E),
}

async fn attempt<R, E: From<Error>>(
    begin: &'static str,
    pool: &PgPool,
    closure: impl AsyncFnOnce(&mut Transaction) -> Result<R, E>,
) -> Result<Attempt<R, E>, E> {
    let begun = pool.begin_with(begin).in_time(pool).await;
    let limit = patience(pool);
    let mut transaction = Transaction {
        sql: begun.map_err(Error::of("(begin)"))?,
        limit,
        writes: Vec::new(),
        failed: None,
        raw: false,
    };
    let answer = closure(&mut transaction).await;
    transaction.check_raw().await;
    let Transaction {
        sql, writes, failed, ..
    } = transaction;
    // After a failed statement the database would answer COMMIT with a rollback, and no error.
    let value = match (failed, answer) {
        (Some(Failure::Conflict), Err(error)) => return Ok(Attempt::Conflict(error)),
        (Some(Failure::Conflict), Ok(_)) => return Ok(Attempt::Conflict(Error::Swallowed.into())),
        (_, Err(error)) => return Err(error),
        (Some(Failure::Other), Ok(_)) => return Err(Error::Swallowed.into()),
        (None, Ok(value)) => value,
    };
    let committed = within(limit, Error::of("(commit)"), async {
        sql.commit().await.map_err(Error::of("(commit)"))
    });
    match committed.await {
        Ok(()) => Ok(Attempt::Committed(value, writes)),
        Err(conflict @ Error::Conflict(_)) => Ok(Attempt::Conflict(conflict.into())),
        Err(Error::Statement { source, .. }) if source.as_database_error().is_none() => {
            Err(Error::Unknown(source).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// The database as the closure sees it: one state, and its own writes.
pub struct Transaction {
    sql: PgTransaction<'static>,
    /// How long one answer is waited for.
    limit: Duration,
    writes: Vec<Written>,
    failed: Option<Failure>,
    /// True once own SQL was run, whose failures may have gone unseen.
    raw: bool,
}

#[derive(Clone, Copy)]
enum Failure {
    Conflict,
    Other,
}

impl Transaction {
    /// The row, if there is one.
    pub async fn get<T: Table>(&mut self, key: &T::Key) -> Result<Option<T>, Error> {
        let found = within(self.limit, Error::of(T::TABLE), read::one(&mut *self.sql, key)).await;
        self.note(found)
    }

    /// At most `limit` rows by key, after this one or from the first.
    pub async fn list<T: Table>(&mut self, after: Option<&T::Key>, limit: i64) -> Result<Vec<T>, Error> {
        let (key, row, table) = (T::KEY, row::<T>(), T::TABLE);
        let from = after.map_or(String::new(), |_| format!("where t.{key} > $2"));
        let text = format!("select {row} from {table} t {from} order by t.{key} limit $1");
        let query = sqlx::query_as(sql(text)).bind(limit);
        let query = match after {
            Some(after) => query.bind(after.clone()),
            None => query,
        };
        let found = limited(self.limit, query.fetch_all(&mut *self.sql))
            .await
            .map_err(Error::of(table));
        self.note(found)
    }

    /// Inserts the row or overwrites it. A row with the same values is left alone.
    pub async fn put<T: Table>(&mut self, row: &T) -> Result<(), Error> {
        let query = sqlx::query_scalar(sql(put::<T>())).bind(Json(row_json(row)));
        let put = limited(self.limit, query.fetch_optional(&mut *self.sql)).await;
        let put = put.map_err(Error::of(T::TABLE));
        if let Some(version) = self.note(put)? {
            self.wrote::<T>(row.key(), Write::Put { version });
        }
        Ok(())
    }

    /// Deletes the row, if there is one.
    pub async fn delete<T: Table>(&mut self, key: &T::Key) -> Result<(), Error> {
        const {
            assert!(
                T::LOG.is_none(),
                "in the log of a row that is deleted, versions would begin anew"
            )
        };
        let text = format!("delete from {} where {} = $1", T::TABLE, T::KEY);
        let query = sqlx::query(sql(text)).bind(key.clone());
        let deleted = limited(self.limit, query.execute(&mut *self.sql)).await;
        let deleted = deleted.map_err(Error::of(T::TABLE));
        if self.note(deleted)?.rows_affected() > 0 {
            self.wrote::<T>(key.clone(), Write::Deleted);
        }
        Ok(())
    }

    /// Runs own SQL in this transaction; what it writes is not listed in [`Committed::writes`]. `table` names it in errors.
    pub async fn raw<R>(
        &mut self,
        table: &'static str,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<R, sqlx::Error>,
    ) -> Result<R, Error> {
        self.raw = true;
        self.own(table, work).await
    }

    /// As [`Transaction::raw`], for SQL that hides no failure of a statement: the database is not asked before the commit whether
    /// there was one.
    pub(in crate::store) async fn own<R>(
        &mut self,
        table: &'static str,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<R, sqlx::Error>,
    ) -> Result<R, Error> {
        let done = limited(self.limit, work(&mut self.sql)).await.map_err(Error::of(table));
        self.note(done)
    }

    /// The error for a closure that finds by itself that another transaction was first: it is called anew.
    pub fn overtaken(&mut self) -> Error {
        self.failed.get_or_insert(Failure::Conflict);
        Error::Conflict(sqlx::Error::RowNotFound)
    }

    /// Checks that the database still accepts statements: one that failed unseen has ended the transaction.
    async fn check_raw(&mut self) {
        if !self.raw || self.failed.is_some() {
            return;
        }
        let answer = limited(self.limit, sqlx::query("select 1").execute(&mut *self.sql));
        if answer.await.is_err() {
            self.failed = Some(Failure::Other);
        }
    }

    fn wrote<T: Table>(&mut self, key: T::Key, what: Write) {
        self.writes.push(Written {
            table: T::TABLE,
            key: key.into(),
            what,
        });
    }

    fn note<R>(&mut self, result: Result<R, Error>) -> Result<R, Error> {
        if let Err(error) = &result {
            let failure = match error {
                Error::Conflict(_) => Failure::Conflict,
                _ => Failure::Other,
            };
            // The first failure counts: after it, every statement fails.
            self.failed.get_or_insert(failure);
        }
        result
    }
}

async fn limited<R>(
    limit: Duration,
    statement: impl Future<Output = Result<R, sqlx::Error>>,
) -> Result<R, sqlx::Error> {
    within(limit, |error| error, statement).await
}

fn put<T: Table>() -> String {
    let (table, key) = (T::TABLE, T::KEY);
    let names = [&[key], T::COLUMNS].concat();
    let (columns, values) = (names.join(", "), list("n", &names));
    let (now, new) = (list("t", T::COLUMNS), list("excluded", T::COLUMNS));
    let sets: Vec<_> = T::COLUMNS
        .iter()
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    let sets = sets.join(", ");
    let (mark, zero, raise) = match (T::MARKED, T::LOG) {
        (true, _) => (", version", ", 0", ", version = t.version + 1, written_by = null"),
        (false, Some(_)) => ("", "", ", version = t.version + 1"),
        (false, None) => ("", "", ""),
    };
    let version = if has_version::<T>() {
        "t.version"
    } else {
        "null::bigint"
    };
    let write = format!(
        "insert into {table} as t ({columns}{mark})
         select {values}{zero} from jsonb_populate_record(null::{table}, $1) n
         on conflict ({key}) do update set {sets}{raise}
         where ({now}) is distinct from ({new})"
    );
    logged::<T>(&write, T::COLUMNS, version)
}

/// Growing random pauses, so that transactions that met do not meet again: one less than the attempts.
fn pauses(attempts: Attempts) -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(2))
        .with_max_delay(Duration::from_millis(200))
        .with_jitter()
        .with_max_times(attempts.0.saturating_sub(1))
        .build()
}
