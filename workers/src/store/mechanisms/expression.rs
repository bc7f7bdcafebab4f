//! SQL expressions instead of read-modify-write: append to an array, add to a number, of many rows in one statement.
//!
//! **For** a tag for each of these users; a bonus for all of them. Nothing is read, so nothing can have changed since, and
//! no writer's share is lost. Changes that differ by row go through [`super::batch`], expressions too.
//!
//! **SQL**
//!
//! ```sql
//! update example_users t set tags = t.tags || n.tags, version = t.version + 1, written_by = null
//! from jsonb_populate_record(null::example_users, $2) n where t.user_id = any($1) returning t.user_id
//! ```
//!
//! **Errors** [`Error::Forbidden`]: one row that does not take its new value keeps all from changing. [`Error::Conflict`]:
//! two such statements that lock the same rows in opposite order (a deadlock), one of which the database ends.
//!
//! **Crashes** Before or during: no row has changed. After, or with the answer lost: the repeat **appends again**, which only
//! an idempotency key prevents ([`super::idempotency`]). [`super::Column::include`] appends only what is not there, and may be
//! repeated as long as no writer removes elements.
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), holdfast::store::mechanisms::Error> {
//! use holdfast::store::examples::User;
//! use holdfast::store::mechanisms::expression;
//!
//! let users = ["ann".to_owned(), "bob".to_owned()];
//! let changed = expression::apply_to_all(&pool, &users, &User::TAGS.append("regular")).await?;
//! assert!(changed.len() <= 2, "those who are there");
//! # Ok(()) }
//! ```

use std::collections::HashSet;

use sqlx::PgExecutor;
use sqlx::types::Json;

use super::table::sql;
use super::{Change, Error, Table};

/// Changes each of these rows once. Returns the keys of those that exist.
pub async fn apply_to_all<T: Table>(
    executor: impl PgExecutor<'_>,
    keys: &[T::Key],
    change: &Change<T>,
) -> Result<HashSet<T::Key>, Error> {
    let (table, key) = (T::TABLE, T::KEY);
    let from = format!("jsonb_populate_record(null::{table}, $2) n");
    let text = change.update("null", &from, &format!("t.{key} = any($1)"));
    let changed: Vec<T::Key> = sqlx::query_scalar(sql(text))
        .bind(keys.to_vec())
        .bind(Json(change.json()))
        .fetch_all(executor)
        .await
        .map_err(Error::of(table))?;
    Ok(changed.into_iter().collect())
}
