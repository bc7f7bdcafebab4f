//! The versioned conditional update: written only if the row still has the version that was read.
//!
//! **For** read, compute, write in a handler that is the key's one writer, such as a virtual object's. The read lies in the
//! journal (`ctx.run`), so that every retry goes by the same version, and the attempt keeps its name over retries.
//!
//! **SQL** The second statement is sent when the first touched no row.
//!
//! ```sql
//! update example_users t set credits = n.credits, version = t.version + 1, written_by = $4
//! from jsonb_populate_record(null::example_users, $2) n where t.user_id = $1 and t.version = $3
//! returning t.user_id;
//! select version, written_by = $4 from example_users where user_id = $1
//! ```
//!
//! "No row touched" does not prove that this attempt has written: the row may be gone, or another attempt may have written. The
//! mark in the row tells. Once a second write has followed, the mark of the first is gone, and the answer is
//! [`Versioned::Overtaken`]. A key with one writer never sees it; where there are others, use [`super::idempotency`].
//!
//! **Errors** [`Error::Forbidden`] for a value that the table does not take.
//!
//! **Crashes** Before or during: nothing has changed, and the repeat applies. After, or with the answer lost: the repeat finds
//! the next version with its own mark and answers [`Versioned::AlreadyMine`].
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), holdfast::store::mechanisms::Error> {
//! use holdfast::store::examples::User;
//! use holdfast::store::mechanisms::version::{self, Versioned};
//!
//! let (ann, read, mut connection) = ("ann".to_owned(), 3, pool.acquire().await.unwrap());
//! match version::update(&mut connection, &ann, read, "invocation-1", &User::CREDITS.set(15)).await? {
//!     Versioned::Applied { version } | Versioned::AlreadyMine { version } => assert_eq!(version, 4),
//!     Versioned::Conflict { found } | Versioned::Overtaken { found } => println!("read again: it has version {found}"),
//!     Versioned::Missing => println!("there is no such user"),
//! }
//! # Ok(()) }
//! ```

use sqlx::PgConnection;
use sqlx::types::Json;

use super::table::sql;
use super::{Change, Error, Table};

/// The result of a versioned update. `version` is the row's after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versioned {
    /// Written now.
    Applied {
        version: i64,
    },
    /// Written by an earlier call of this attempt.
    AlreadyMine {
        version: i64,
    },
    /// Another attempt wrote the version after the one that was read: this attempt has changed nothing.
    Conflict {
        found: i64,
    },
    /// Others have written since: the row no longer tells whether this attempt was among them.
    Overtaken {
        found: i64,
    },
    Missing,
}

/// Changes the row of a marked table if it still has the version `read`.
pub async fn update<T: Table>(
    connection: &mut PgConnection,
    key: &T::Key,
    read: i64,
    attempt: &str,
    change: &Change<T>,
) -> Result<Versioned, Error> {
    const { assert!(T::MARKED, "only a marked table has versions") };
    let (table, key_column) = (T::TABLE, T::KEY);
    let from = format!("jsonb_populate_record(null::{table}, $2) n");
    let text = change.update("$4", &from, &format!("t.{key_column} = $1 and t.version = $3"));
    let updated = sqlx::query(sql(text))
        .bind(key.clone())
        .bind(Json(change.json()))
        .bind(read)
        .bind(attempt)
        .execute(&mut *connection)
        .await
        .map_err(Error::of(table))?;
    match updated.rows_affected() {
        0 => look::<T>(connection, key, read, attempt).await,
        _ => Ok(Versioned::Applied { version: read + 1 }),
    }
}

/// Finds out why the update touched no row. A statement of its own sees rows that were committed while the update waited.
async fn look<T: Table>(
    connection: &mut PgConnection,
    key: &T::Key,
    read: i64,
    attempt: &str,
) -> Result<Versioned, Error> {
    let text = format!(
        "select version, written_by is not distinct from $2 from {} where {} = $1",
        T::TABLE,
        T::KEY
    );
    let found: Option<(i64, bool)> = sqlx::query_as(sql(text))
        .bind(key.clone())
        .bind(attempt)
        .fetch_optional(connection)
        .await
        .map_err(Error::of(T::TABLE))?;
    Ok(match found {
        None => Versioned::Missing,
        Some((found, true)) if found == read + 1 => Versioned::AlreadyMine { version: found },
        Some((found, false)) if found == read + 1 => Versioned::Conflict { found },
        Some((found, _)) => Versioned::Overtaken { found },
    })
}
