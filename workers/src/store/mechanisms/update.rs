//! Plain updates: the last writer wins; a relative update adds in the database, so that no other writer's share is lost.
//!
//! **For** values that anyone may overwrite, and for counters. When the new value depends on what was read, use
//! [`super::version`] or [`super::compare_and_set`].
//!
//! **SQL**
//!
//! ```sql
//! update example_users t set credits = t.credits + n.credits, version = t.version + 1, written_by = null
//! from jsonb_populate_record(null::example_users, $2) n where t.user_id = $1 returning t.user_id
//! ```
//!
//! **Errors** [`Error::Forbidden`] for a value that the table does not take.
//!
//! **Crashes** Before or during: nothing has changed. After, or with the answer lost: the repeat of a `set` overwrites what
//! others wrote meanwhile; the repeat of an `add` **adds again**, which only an idempotency key prevents
//! ([`super::idempotency`]).
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), holdfast::store::mechanisms::Error> {
//! use holdfast::store::examples::User;
//! use holdfast::store::mechanisms::update::{self, Update};
//!
//! let change = User::NAME.set("Ann").and(User::CREDITS.add(5));
//! assert_eq!(update::apply(&pool, &"ann".to_owned(), &change).await?, Update::Updated);
//! # Ok(()) }
//! ```

use sqlx::PgExecutor;
use sqlx::types::Json;

use super::table::sql;
use super::{Change, Error, Table};

/// The result of an update by key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    Updated,
    Missing,
}

/// Changes the row, whatever its values.
pub async fn apply<T: Table>(executor: impl PgExecutor<'_>, key: &T::Key, change: &Change<T>) -> Result<Update, Error> {
    let (table, key_column) = (T::TABLE, T::KEY);
    let from = format!("jsonb_populate_record(null::{table}, $2) n");
    let text = change.update("null", &from, &format!("t.{key_column} = $1"));
    let updated = sqlx::query(sql(text))
        .bind(key.clone())
        .bind(Json(change.json()))
        .execute(executor)
        .await
        .map_err(Error::of(table))?;
    Ok(match updated.rows_affected() {
        0 => Update::Missing,
        _ => Update::Updated,
    })
}
