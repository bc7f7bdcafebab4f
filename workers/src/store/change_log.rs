//! The change logs, one for each kind of row: the outcome of each version, and the event that caused it. [`super::commit`] writes
//! them in the statement that changes the row; they are never changed and never deleted.

use holdfast_schemas::OutcomeData;
use time::OffsetDateTime;

use super::Error;
pub use super::mechanisms::log::Until;
use crate::domain::{Entity, OutcomeOf};

/// One version of an entity.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedChange<E: Entity> {
    pub version: i64,
    pub told: OutcomeOf<E>,
    /// `source` and `id` of the event that caused it.
    pub cause: (String, String),
    pub changed_at: OffsetDateTime,
}

/// A row of any log.
pub(super) struct Row {
    pub(super) version: i64,
    pub(super) outcome_type: String,
    pub(super) data: String,
    pub(super) cause_source: String,
    pub(super) cause_id: String,
    pub(super) changed_at: OffsetDateTime,
}

impl Row {
    /// # Errors
    /// [`Error::Row`] for a row of the table `log` that no release wrote.
    pub(super) fn parse<E: Entity>(self, log: &'static str, key: &str) -> Result<LoggedChange<E>, Error> {
        let told = OutcomeOf::<E>::read(&self.outcome_type, &self.data).map_err(|invalid| Error::Row {
            table: log,
            key: key.to_owned(),
            what: format!("version {}: {invalid}", self.version),
        })?;
        Ok(LoggedChange {
            version: self.version,
            told,
            cause: (self.cause_source, self.cause_id),
            changed_at: self.changed_at,
        })
    }
}

/// Reads one table's log, oldest first, by a statement put together from literals so that it is checked when the program is built.
macro_rules! read_changes {
    ($pool:expr, $key:expr, $until:expr, log $log:literal, key $column:literal) => {{
        let (version, time) = $until.bounds();
        let rows = sqlx::query_as!(
            crate::store::change_log::Row,
            "select version, type as outcome_type, data::text as \"data!\", cause_source, cause_id, changed_at from "
                + $log
                + " where "
                + $column
                + " = $1 and ($2::bigint is null or version <= $2) and ($3::timestamptz is null or changed_at <= $3)
                   order by version",
            $key,
            version,
            time,
        )
        .fetch_all($pool);
        let rows = crate::store::session::in_time($pool, rows)
        .await
        .map_err(crate::store::Error::Read)?;
        rows.into_iter().map(|row| row.parse($log, $key)).collect()
    }};
}
pub(super) use read_changes;
