//! The settled_dead_letters table: the dead letters that operators have replayed or dropped. The topic itself is never changed.

use std::collections::HashSet;

use futures::TryStreamExt;
use sqlx::PgPool;

use super::Error;
use super::operator_log::Operator;
use super::session::InTime;

/// The ways to settle a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    Replayed,
    Dropped,
}

/// The position of the original record of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordPosition {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

/// The result of writing a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    Now,
    /// Another operator has settled it before.
    Before,
}

impl Settlement {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replayed => "replayed",
            Self::Dropped => "dropped",
        }
    }

    /// The operator's command.
    fn command(self) -> &'static str {
        match self {
            Self::Replayed => "dead-letters replay",
            Self::Dropped => "dead-letters drop",
        }
    }
}

/// The positions of all settled dead letters.
///
/// # Errors
/// [`Error::Read`]
pub async fn all(pool: &PgPool) -> Result<HashSet<RecordPosition>, Error> {
    sqlx::query_as!(
        RecordPosition,
        r#"select topic, partition, "offset" from settled_dead_letters"#
    )
    .fetch(pool)
    .try_collect()
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// The settlement of the dead letter, if there is one: `replayed` or `dropped`.
///
/// # Errors
/// [`Error::Read`]
pub async fn find(pool: &PgPool, place: &RecordPosition) -> Result<Option<String>, Error> {
    sqlx::query_scalar!(
        r#"select settlement from settled_dead_letters where topic = $1 and partition = $2 and "offset" = $3"#,
        place.topic,
        place.partition,
        place.offset
    )
    .fetch_optional(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// Writes the settlement of a dead letter, who wanted it, and what was done beyond it.
///
/// # Errors
/// [`Error::Write`]
pub async fn note(
    pool: &PgPool,
    place: &RecordPosition,
    settlement: Settlement,
    operator: Operator<'_>,
    details: Option<&str>,
) -> Result<Noted, Error> {
    let written = sqlx::query!(
        r#"with settled as (
            insert into settled_dead_letters (topic, partition, "offset", settlement) values ($1, $2, $3, $4)
            on conflict do nothing returning 1
        )
        insert into operator_log (command, subject, who, why, details) select $5, $6, $7, $8, $9 from settled"#,
        place.topic,
        place.partition,
        place.offset,
        settlement.as_str(),
        settlement.command(),
        place.to_string(),
        operator.who,
        operator.why,
        details,
    )
    .execute(pool)
    .in_time(pool)
    .await
    .map_err(Error::Write)?;
    match written.rows_affected() {
        1 => Ok(Noted::Now),
        _ => Ok(Noted::Before),
    }
}

impl std::fmt::Display for RecordPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}
