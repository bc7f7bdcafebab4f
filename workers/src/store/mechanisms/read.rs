//! Plain reads: by one key, or by many keys in one statement.
//!
//! **For** showing a row, and for decisions whose write notices that the row has moved ([`super::version`],
//! [`super::compare_and_set`]). A shared handler may read: it does not queue behind the writes of its key. When a later
//! branch of a durable handler depends on what was read, read inside `ctx.run`: a retry then goes by the same value.
//!
//! **SQL** `select t.user_id, ... from example_users t where t.user_id = $1` (`= any($1)` for many).
//!
//! **Errors** [`Error::Statement`]; a key that no text can be (U+0000) is [`Error::Forbidden`].
//!
//! **Crashes** Nothing is written: before, during or after the statement, or with its answer lost, read again. The value may be
//! older than a write in flight.
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), holdfast::store::mechanisms::Error> {
//! use holdfast::store::examples::User;
//! use holdfast::store::mechanisms::read;
//!
//! let ann: Option<User> = read::one(&pool, &"ann".to_owned()).await?;
//! let both = read::many::<User>(&pool, &["ann".to_owned(), "bob".to_owned()]).await?;
//! assert!(both.len() <= 2);
//! # Ok(()) }
//! ```

use std::collections::HashMap;

use sqlx::PgExecutor;

use super::table::{row, sql};
use super::{Error, Table};

/// The row, if there is one.
pub async fn one<T: Table>(executor: impl PgExecutor<'_>, key: &T::Key) -> Result<Option<T>, Error> {
    let text = format!("select {} from {} t where t.{} = $1", row::<T>(), T::TABLE, T::KEY);
    sqlx::query_as(sql(text))
        .bind(key.clone())
        .fetch_optional(executor)
        .await
        .map_err(Error::of(T::TABLE))
}

/// Those rows that there are, by key.
pub async fn many<T: Table>(executor: impl PgExecutor<'_>, keys: &[T::Key]) -> Result<HashMap<T::Key, T>, Error> {
    let text = format!("select {} from {} t where t.{} = any($1)", row::<T>(), T::TABLE, T::KEY);
    let rows: Vec<T> = sqlx::query_as(sql(text))
        .bind(keys.to_vec())
        .fetch_all(executor)
        .await
        .map_err(Error::of(T::TABLE))?;
    Ok(rows.into_iter().map(|row| (row.key(), row)).collect())
}
