//! Compare-and-set on chosen columns, and update only what changed.
//!
//! **For** tables without versions, and for writers that may pass each other as long as they change different columns.
//!
//! | I know | call |
//! | --- | --- |
//! | the values that must be there | [`explicit`] |
//! | a row as I loaded it, and the columns that must not have changed since | [`as_loaded`] |
//! | the same, for exactly the columns that I change | [`skip_if_someone_changed`] |
//! | a row as I loaded it, and as it should be | [`only_changed`] (overwrites what others wrote there meanwhile) |
//! | the same, unless someone changed what I change | [`only_changed_if_unmoved`] |
//!
//! **SQL** `$3` holds the old values; without a comparison its part is left out. A second statement (`select exists`) follows
//! when no row was touched. [`only_changed`] and [`only_changed_if_unmoved`] send nothing when nothing differs from the row
//! as it was loaded, which may itself be out of date.
//!
//! ```sql
//! update example_users t set name = n.name, version = t.version + 1, written_by = null
//! from jsonb_populate_record(null::example_users, $2) n, jsonb_populate_record(null::example_users, $3) o
//! where t.user_id = $1 and (t.name) is not distinct from (o.name)
//! returning t.user_id
//! ```
//!
//! **Errors** [`Error::Forbidden`] for a value that the table does not take.
//!
//! **Crashes** Before or during: nothing has changed. After, or with the answer lost: the repeat finds its own values, which
//! differ from the old ones, and answers [`Swap::Differs`] or [`Changed::Differs`]: **that does not prove that it was somebody
//! else**, and a value may have gone and come back in between. A caller who must know uses [`super::version`].
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), holdfast::store::mechanisms::Error> {
//! use holdfast::store::examples::User;
//! use holdfast::store::mechanisms::compare_and_set::{self, Changed};
//! use holdfast::store::mechanisms::read;
//!
//! let mut connection = pool.acquire().await.unwrap();
//! if let Some(loaded) = read::one::<User>(&mut *connection, &"ann".to_owned()).await? {
//!     let wanted = User { address: "2, New Street".to_owned(), ..loaded.clone() };
//!     match compare_and_set::only_changed_if_unmoved(&mut connection, &loaded, &wanted).await? {
//!         Changed::Changed(columns) => assert_eq!(columns, ["address"]),
//!         Changed::Unchanged => println!("she lives there already"),
//!         Changed::Differs => println!("someone was quicker: read again"),
//!         Changed::Gone => println!("there is no such user"),
//!     }
//! }
//! # Ok(()) }
//! ```

use sqlx::PgConnection;
use sqlx::types::Json;

use super::table::{list, sql};
use super::{Change, Error, Table, Values};

/// The result of a compare-and-set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    Swapped,
    /// The row has other values than the old ones; nothing was written.
    Differs,
    Gone,
}

/// The result of an update of only what changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// These columns were written.
    Changed(Vec<&'static str>),
    /// The row was wanted as it had been loaded; no statement was sent.
    Unchanged,
    /// Another writer changed what this would have changed; nothing was written.
    Differs,
    Gone,
}

/// Changes the row if these columns have these values.
pub async fn explicit<T: Table>(
    connection: &mut PgConnection,
    key: &T::Key,
    old: &Values<T>,
    change: &Change<T>,
) -> Result<Swap, Error> {
    swap(connection, key, Some(old), change).await
}

/// Changes the row if these columns have the values with which it was loaded.
pub async fn as_loaded<T: Table>(
    connection: &mut PgConnection,
    loaded: &T,
    columns: &[&'static str],
    change: &Change<T>,
) -> Result<Swap, Error> {
    let old = loaded.values().only(columns);
    swap(connection, &loaded.key(), Some(&old), change).await
}

/// Changes the row unless someone changed, since it was loaded, the columns that this changes.
pub async fn skip_if_someone_changed<T: Table>(
    connection: &mut PgConnection,
    loaded: &T,
    change: &Change<T>,
) -> Result<Swap, Error> {
    as_loaded(connection, loaded, &change.names(), change).await
}

/// Writes the columns in which `wanted` differs from `loaded`, whatever they are now.
pub async fn only_changed<T: Table>(connection: &mut PgConnection, loaded: &T, wanted: &T) -> Result<Changed, Error> {
    difference(connection, loaded, wanted, false).await
}

/// Writes the columns in which `wanted` differs from `loaded`, unless someone changed one of them since.
pub async fn only_changed_if_unmoved<T: Table>(
    connection: &mut PgConnection,
    loaded: &T,
    wanted: &T,
) -> Result<Changed, Error> {
    difference(connection, loaded, wanted, true).await
}

/// The columns in which `wanted` differs from `loaded`: those that the two above write.
pub fn changed_columns<T: Table>(loaded: &T, wanted: &T) -> Vec<&'static str> {
    wanted.values().unlike(&loaded.values()).names().collect()
}

async fn difference<T: Table>(
    connection: &mut PgConnection,
    loaded: &T,
    wanted: &T,
    compare: bool,
) -> Result<Changed, Error> {
    let new = wanted.values().unlike(&loaded.values());
    let columns: Vec<_> = new.names().collect();
    if columns.is_empty() {
        return Ok(Changed::Unchanged);
    }
    let old = compare.then(|| loaded.values().only(&columns));
    Ok(
        match swap(connection, &loaded.key(), old.as_ref(), &new.into()).await? {
            Swap::Swapped => Changed::Changed(columns),
            Swap::Differs => Changed::Differs,
            Swap::Gone => Changed::Gone,
        },
    )
}

async fn swap<T: Table>(
    connection: &mut PgConnection,
    key: &T::Key,
    old: Option<&Values<T>>,
    change: &Change<T>,
) -> Result<Swap, Error> {
    let (table, key_column) = (T::TABLE, T::KEY);
    let columns: Vec<_> = old.into_iter().flat_map(Values::names).collect();
    let unmoved = match (list("t", &columns), list("o", &columns)) {
        (now, _) if now.is_empty() => String::new(),
        (now, old) => format!("and ({now}) is not distinct from ({old})"),
    };
    let from = format!("jsonb_populate_record(null::{table}, $2) n, jsonb_populate_record(null::{table}, $3) o");
    let text = change.update("null", &from, &format!("t.{key_column} = $1 {unmoved}"));
    let updated = sqlx::query(sql(text))
        .bind(key.clone())
        .bind(Json(change.json()))
        .bind(Json(old.map(Values::json).unwrap_or_else(|| serde_json::json!({}))))
        .execute(&mut *connection)
        .await
        .map_err(Error::of(table))?;
    if updated.rows_affected() > 0 {
        return Ok(Swap::Swapped);
    }
    let text = format!("select exists (select from {table} where {key_column} = $1)");
    let exists: bool = sqlx::query_scalar(sql(text))
        .bind(key.clone())
        .fetch_one(connection)
        .await
        .map_err(Error::of(table))?;
    Ok(if exists { Swap::Differs } else { Swap::Gone })
}
