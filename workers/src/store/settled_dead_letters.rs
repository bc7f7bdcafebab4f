//! The settled_dead_letters table: the dead letters that operators have replayed or dropped. The topic itself is never changed.
//!
//! A dead letter is known by the place of its record. After Kafka was put back or lost, another record may lie there: what was settled
//! before that was written says nothing about it.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::PgPool;
use time::OffsetDateTime;

use super::Error;
use super::operator_log::Operator;
use super::session::InTime;

/// What the clocks of Kafka and the database may differ by.
const SKEW: Duration = Duration::from_secs(5);

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

/// The settled dead letters.
#[derive(Debug)]
pub struct SettledLetters(HashMap<RecordPosition, OffsetDateTime>);

impl SettledLetters {
    /// # Errors
    /// [`Error::Read`]
    pub async fn read(pool: &PgPool) -> Result<Self, Error> {
        let rows = sqlx::query!(r#"select topic, partition, "offset", settled_at from settled_dead_letters"#)
            .fetch_all(pool)
            .in_time(pool)
            .await
            .map_err(Error::Read)?;
        let settled = rows.into_iter().map(|row| {
            let place = RecordPosition {
                topic: row.topic,
                partition: row.partition,
                offset: row.offset,
            };
            (place, row.settled_at)
        });
        Ok(Self(settled.collect()))
    }

    /// Whether the dead letter about this record, which was written then, is settled.
    pub fn have(&self, place: &RecordPosition, written_at: OffsetDateTime) -> bool {
        self.0
            .get(place)
            .is_some_and(|settled_at| written_at <= *settled_at + SKEW)
    }
}

/// The settlement of the dead letter about this record, which was written then, if there is one: `replayed` or `dropped`.
///
/// # Errors
/// [`Error::Read`]
pub async fn find(pool: &PgPool, place: &RecordPosition, written_at: OffsetDateTime) -> Result<Option<String>, Error> {
    sqlx::query_scalar!(
        r#"select settlement from settled_dead_letters
           where topic = $1 and partition = $2 and "offset" = $3 and settled_at >= $4"#,
        place.topic,
        place.partition,
        place.offset,
        written_at - SKEW,
    )
    .fetch_optional(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// Writes the settlement of the dead letter about this record, which was written then, who wanted it, and what was done beyond it.
///
/// # Errors
/// [`Error::Write`]
pub async fn note(
    pool: &PgPool,
    place: &RecordPosition,
    written_at: OffsetDateTime,
    settlement: Settlement,
    operator: Operator<'_>,
    details: Option<&str>,
) -> Result<Noted, Error> {
    let written = sqlx::query!(
        r#"with settled as (
            insert into settled_dead_letters (topic, partition, "offset", settlement) values ($1, $2, $3, $4)
            on conflict (topic, partition, "offset") do update set settlement = excluded.settlement, settled_at = excluded.settled_at
                where settled_dead_letters.settled_at < $10
            returning 1
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
        written_at - SKEW,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_settled_before_a_record_was_written_is_about_another() {
        let place = RecordPosition {
            topic: "reservations".to_owned(),
            partition: 3,
            offset: 17,
        };
        let at = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(60);
        let settled = SettledLetters(HashMap::from([(place.clone(), at)]));
        let minute = Duration::from_secs(60);
        assert!(settled.have(&place, at - minute) && settled.have(&place, at + SKEW));
        assert!(!settled.have(&place, at + minute));
        assert!(!settled.have(&RecordPosition { offset: 18, ..place }, at));
    }
}
