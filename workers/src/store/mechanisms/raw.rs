//! The raw way out: own SQL inside an interactive transaction, and reading a large table as a stream.
//!
//! **For** statements that no tool sends: joins, `for update`, bulk statements. SQL that writes a tool's table this way must
//! raise its `version` and clear its `written_by`, as every tool does.
//!
//! Stored procedures and triggers are atomic by themselves: a call is one statement, and a trigger's writes belong to the
//! statement that fired it. They suit rules that must hold for every writer, whatever program it is. They hide writes from
//! what a tool answers ([`super::interactive::Committed::writes`] does not list them), and are changed by migrations only.
//!
//! A replica may be behind: values read from it may be shown, and must never decide a write.
//!
//! **SQL** The caller's own; a stream sends `select t.user_id, ... from example_users t order by t.user_id`.
//!
//! **Errors** As everywhere, by SQLSTATE. A stream that is read more slowly than the session's `statement_timeout` allows
//! ends with an error: then read by pages ([`super::interactive::Transaction::list`]).
//!
//! **Crashes** Own SQL takes effect with its transaction or not at all. A stream that is cut is read again from the start.
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), holdfast::store::mechanisms::Error> {
//! use futures::TryStreamExt;
//! use holdfast::store::examples::User;
//! use holdfast::store::mechanisms::interactive::{self, Attempts};
//! use holdfast::store::mechanisms::{Error, raw};
//!
//! let total = interactive::transact(&pool, Attempts(5), async |transaction| {
//!     let sum = "select coalesce(sum(credits), 0)::bigint from example_users";
//!     let total: i64 = transaction
//!         .raw("example_users", async |connection| sqlx::query_scalar(sum).fetch_one(connection).await)
//!         .await?;
//!     Ok::<_, Error>(total)
//! });
//! println!("{}", total.await?.value);
//!
//! let mut users = raw::stream::<User>(&pool);
//! while let Some(user) = users.try_next().await? {
//!     println!("{}", user.name);
//! }
//! # Ok(()) }
//! ```

use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use sqlx::PgExecutor;

use super::table::{row, sql};
use super::{Error, Table};

/// Own SQL, whose errors are told apart as those of the tools. `table` names it in errors.
pub async fn run<R>(table: &'static str, work: impl Future<Output = Result<R, sqlx::Error>>) -> Result<R, Error> {
    work.await.map_err(Error::of(table))
}

/// Every row by key, as they come: memory holds a few of them at a time. Keeps its connection until it ends or is dropped.
pub fn stream<'c, T: Table>(executor: impl PgExecutor<'c> + 'c) -> BoxStream<'c, Result<T, Error>> {
    let text = format!("select {} from {} t order by t.{}", row::<T>(), T::TABLE, T::KEY);
    let rows = sqlx::query_as(sql(text)).fetch(executor);
    rows.map_err(Error::of(T::TABLE)).boxed()
}
