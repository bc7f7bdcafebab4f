//! The declaration of a table, and of changes to its columns.

use std::fmt::Debug;
use std::hash::Hash;
use std::marker::PhantomData;

use serde_json::Value as Json;
use sqlx::postgres::{PgHasArrayType, PgRow};
use sqlx::{AssertSqlSafe, Decode, Encode, FromRow, Postgres, Type};

/// A table with a primary key of one column, declared once.
///
/// ```no_run
/// use holdfast::store::mechanisms::{Column, Table, Values};
///
/// #[derive(sqlx::FromRow)]
/// struct Account {
///     id: i64,
///     owner: String,
///     labels: Vec<String>,
/// }
///
/// impl Account {
///     const OWNER: Column<Account, String> = Column::new("owner");
///     const LABELS: Column<Account, Vec<String>> = Column::new("labels");
/// }
///
/// impl Table for Account {
///     type Key = i64;
///     const TABLE: &'static str = "accounts";
///     const KEY: &'static str = "id";
///     const COLUMNS: &'static [&'static str] = &["owner", "labels"];
///
///     fn key(&self) -> i64 {
///         self.id
///     }
///
///     fn values(&self) -> Values<Account> {
///         Account::OWNER.is(self.owner.clone()).and(Account::LABELS.is(self.labels.clone()))
///     }
/// }
/// ```
pub trait Table: for<'r> FromRow<'r, PgRow> + Send + Unpin + 'static {
    type Key: Key;
    const TABLE: &'static str;
    /// The primary key's column.
    const KEY: &'static str;
    /// The other columns, at least one; those of a marked table are not named.
    const COLUMNS: &'static [&'static str];
    /// A marked table has three more columns, by which an attempt knows its own writes: `version bigint not null` (0 as
    /// inserted, raised by every update through these tools), `inserted_by text` and `written_by text`. Its rows are read
    /// with their `version`.
    const MARKED: bool = false;
    /// The table's change log, which every tool then writes in the statement that changes a row ([`super::log`]).
    const LOG: Option<&'static str> = None;

    fn key(&self) -> Self::Key;
    /// The values of [`Table::COLUMNS`].
    fn values(&self) -> Values<Self>;
}

/// The types that a primary key may have.
pub trait Key:
    Clone
    + Debug
    + Eq
    + Hash
    + Ord
    + Into<Json>
    + Send
    + Sync
    + Unpin
    + 'static
    + for<'q> Encode<'q, Postgres>
    + for<'r> Decode<'r, Postgres>
    + Type<Postgres>
    + PgHasArrayType
{
}

impl Key for String {}
impl Key for i64 {}

/// A column of `T` that holds a `V`.
pub struct Column<T, V> {
    name: &'static str,
    of: PhantomData<fn() -> (T, V)>,
}

impl<T, V: Into<Json>> Column<T, V> {
    pub const fn new(name: &'static str) -> Self {
        Self { name, of: PhantomData }
    }

    /// The column with this value.
    pub fn is(&self, value: impl Into<V>) -> Values<T> {
        Values {
            all: vec![(self.name, value.into().into())],
            of: PhantomData,
        }
    }

    /// Overwrites the column.
    pub fn set(&self, value: impl Into<V>) -> Change<T> {
        self.is(value).into()
    }

    fn change(&self, operation: Operation, value: Json) -> Change<T> {
        Change {
            all: vec![(self.name, operation, value)],
            of: PhantomData,
        }
    }
}

impl<T> Column<T, i64> {
    /// Adds to the column, in the database.
    pub fn add(&self, number: i64) -> Change<T> {
        self.change(Operation::Add, number.into())
    }
}

impl<T, E: Into<Json>> Column<T, Vec<E>> {
    /// Puts an element at the array's end, in the database.
    pub fn append(&self, element: impl Into<E>) -> Change<T> {
        self.change(Operation::Append, Json::Array(vec![element.into().into()]))
    }

    /// Puts an element at the array's end unless the array has it, in the database: safe to repeat.
    pub fn include(&self, element: impl Into<E>) -> Change<T> {
        self.change(Operation::Include, Json::Array(vec![element.into().into()]))
    }
}

/// Columns with values.
pub struct Values<T> {
    all: Vec<(&'static str, Json)>,
    of: PhantomData<fn() -> T>,
}

/// Operations on columns of a row; at least one.
pub struct Change<T> {
    all: Vec<(&'static str, Operation, Json)>,
    of: PhantomData<fn() -> T>,
}

#[derive(Clone, Copy)]
enum Operation {
    Set,
    Add,
    Append,
    Include,
}

impl<T> Values<T> {
    /// Both sets of values.
    pub fn and(mut self, more: Self) -> Self {
        self.all.extend(more.all);
        self
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.all.iter().map(|(name, _)| *name)
    }

    /// Only those of these columns.
    pub(super) fn only(mut self, names: &[&'static str]) -> Self {
        self.all.retain(|(name, _)| names.contains(name));
        self
    }

    /// Only those that `other` has otherwise, or not at all.
    pub(super) fn unlike(mut self, other: &Self) -> Self {
        self.all.retain(|value| !other.all.contains(value));
        self
    }

    pub(super) fn json(&self) -> Json {
        let all = self.all.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        Json::Object(all.collect())
    }
}

impl<T> From<Values<T>> for Change<T> {
    fn from(values: Values<T>) -> Self {
        let all = values
            .all
            .into_iter()
            .map(|(name, value)| (name, Operation::Set, value));
        Self {
            all: all.collect(),
            of: PhantomData,
        }
    }
}

impl<T: Table> Change<T> {
    /// Both changes; if both name a column, `more` wins.
    pub fn and(mut self, more: Self) -> Self {
        self.all
            .retain(|(name, ..)| !more.all.iter().any(|(other, ..)| other == name));
        self.all.extend(more.all);
        self
    }

    pub(super) fn names(&self) -> Vec<&'static str> {
        self.all.iter().map(|(name, ..)| *name).collect()
    }

    pub(super) fn json(&self) -> Json {
        let all = self
            .all
            .iter()
            .map(|(name, _, value)| ((*name).to_owned(), value.clone()));
        Json::Object(all.collect())
    }

    /// The statement that updates the rows of `t` that the condition `which` selects with the values `n` of the SQL `from`, and
    /// returns their keys. `by` is the SQL of the attempt that a marked row gets.
    pub(super) fn update(&self, by: &'static str, from: &str, which: &str) -> String {
        let (table, sets) = (T::TABLE, self.sets(by));
        let write = format!("update {table} t set {sets} from {from} where {which}");
        logged::<T>(&write, &self.names(), &format!("t.{}", T::KEY))
    }

    /// The `set` list of that update.
    pub(super) fn sets(&self, by: &'static str) -> String {
        let (names, values) = (
            self.names(),
            self.all.iter().map(|(name, operation, _)| operation.sql(name)),
        );
        let values: Vec<_> = values.collect();
        let version = match (T::MARKED, T::LOG) {
            (true, _) => Some(format!("version = t.version + 1, written_by = {by}")),
            (false, Some(_)) => {
                let (now, new) = (list("t", &names), values.join(", "));
                Some(format!("version = t.version + (({now}) is distinct from ({new}))::int"))
            }
            (false, None) => None,
        };
        let sets = names
            .iter()
            .zip(&values)
            .map(|(name, value)| format!("{name} = {value}"));
        sets.chain(version).collect::<Vec<_>>().join(", ")
    }
}

impl Operation {
    /// The new value of this column.
    fn sql(self, name: &'static str) -> String {
        match self {
            Operation::Set => format!("n.{name}"),
            Operation::Add => format!("t.{name} + n.{name}"),
            Operation::Append => format!("t.{name} || n.{name}"),
            Operation::Include => format!("t.{name} || case when t.{name} @> n.{name} then '{{}}' else n.{name} end"),
        }
    }
}

/// Completes a statement that writes these columns of `t`, so that it returns `answer` for each row. If the table has a change
/// log, the same statement writes the new versions there.
pub(super) fn logged<T: Table>(write: &str, columns: &[&'static str], answer: &str) -> String {
    let Some(log) = T::LOG else {
        return format!("{write} returning {answer}");
    };
    let key = T::KEY;
    let data: Vec<_> = columns.iter().map(|name| format!("'{name}', t.{name}")).collect();
    let data = data.join(", ");
    format!(
        "with written as ({write} returning t.{key}, t.version, jsonb_build_object({data}) as data),
         logged as (
             insert into {log} ({key}, version, data, changed_at) select {key}, version, data, clock_timestamp() from written
             on conflict ({key}, version) do nothing
         )
         select {answer} from written t"
    )
}

/// The columns of a list, each behind its table's alias: `t.name, t.credits`.
pub(super) fn list(alias: &'static str, names: &[&'static str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("{alias}.{name}")).collect();
    names.join(", ")
}

/// The columns that are read of a row of `t`.
pub(super) fn row<T: Table>() -> String {
    let version: &[_] = if has_version::<T>() { &["version"] } else { &[] };
    list("t", &[&[T::KEY], T::COLUMNS, version].concat())
}

pub(super) const fn has_version<T: Table>() -> bool {
    T::MARKED || T::LOG.is_some()
}

/// The only place where a text becomes SQL. The text consists of `&'static str`s of this folder and of declarations.
pub(super) fn sql(text: String) -> AssertSqlSafe<String> {
    AssertSqlSafe(text)
}
