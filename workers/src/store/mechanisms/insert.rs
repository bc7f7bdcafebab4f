//! Insert once: the first caller wins, and each caller learns whether it was the first.
//!
//! **For** registering something under a key of the caller's choice.
//!
//! **SQL** One statement. The conflict's `where` says what counts as mine, and the statement touches a row if it inserted one
//! or met mine; it sees rows that were committed while it waited, which a `select` after `do nothing` in the same statement
//! would not.
//!
//! ```sql
//! insert into example_users as t (user_id, ..., version, inserted_by, written_by)
//! select n.user_id, ..., 0, $2, $2 from jsonb_populate_record(null::example_users, $1) n
//! on conflict (user_id) do update set user_id = t.user_id where t.inserted_by = $2 returning t.user_id
//! ```
//!
//! **Errors** [`Error::Forbidden`] for a row that the table does not take.
//!
//! **Crashes** Before or during: nothing is there, and the repeat inserts. After, or with the answer lost: the repeat of the
//! same attempt finds its own row and answers [`Insert::Inserted`] again, also when the row was updated since. Deleted
//! meanwhile, it is inserted anew.
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool, ann: holdfast::store::examples::User) -> Result<(), holdfast::store::mechanisms::Error> {
//! use holdfast::store::mechanisms::insert::{self, Insert};
//!
//! match insert::once_by(&pool, &ann, "invocation-1").await? {
//!     Insert::Inserted => println!("welcome"),
//!     Insert::Present => println!("the name is taken"),
//! }
//! # Ok(()) }
//! ```

use sqlx::PgExecutor;
use sqlx::types::Json;

use super::table::{list, logged, sql};
use super::{Error, Table};

/// The writer of the row that is there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// Mine: inserted by this call, or by an earlier one that was the same.
    Inserted,
    /// Another writer's.
    Present,
}

/// Inserts the row. A row with the same content counts as mine: right as long as no writer updates it before the last retry.
pub async fn once<T: Table>(executor: impl PgExecutor<'_>, row: &T) -> Result<Insert, Error> {
    let (here, new) = (list("t", T::COLUMNS), list("excluded", T::COLUMNS));
    let mine = format!("({here}) is not distinct from ({new})");
    insert(executor, row, None, &mine).await
}

/// Inserts the row into a marked table. Mine is a row that this attempt inserted; an attempt keeps its name over retries
/// (an invocation's id, for example).
pub async fn once_by<T: Table>(executor: impl PgExecutor<'_>, row: &T, attempt: &str) -> Result<Insert, Error> {
    const { assert!(T::MARKED, "only a marked table knows who inserted a row") };
    insert(executor, row, Some(attempt), "t.inserted_by = $2").await
}

async fn insert<T: Table>(
    executor: impl PgExecutor<'_>,
    row: &T,
    attempt: Option<&str>,
    mine: &str,
) -> Result<Insert, Error> {
    let (table, key) = (T::TABLE, T::KEY);
    let names = [&[key], T::COLUMNS].concat();
    let (columns, values) = (names.join(", "), list("n", &names));
    let (marks, by) = if T::MARKED {
        (", version, inserted_by, written_by", ", 0, $2::text, $2::text")
    } else {
        ("", "")
    };
    let write = format!(
        "insert into {table} as t ({columns}{marks})
         select {values}{by} from jsonb_populate_record(null::{table}, $1) n
         on conflict ({key}) do update set {key} = t.{key} where {mine}"
    );
    let text = logged::<T>(&write, T::COLUMNS, &format!("t.{key}"));
    let mut query = sqlx::query(sql(text)).bind(Json(row_json(row)));
    if T::MARKED {
        query = query.bind(attempt);
    }
    let touched = query.execute(executor).await.map_err(Error::of(table))?;
    Ok(match touched.rows_affected() {
        0 => Insert::Present,
        _ => Insert::Inserted,
    })
}

/// A whole row, its key included.
pub(super) fn row_json<T: Table>(row: &T) -> serde_json::Value {
    let mut json = row.values().json();
    json[T::KEY] = row.key().into();
    json
}
