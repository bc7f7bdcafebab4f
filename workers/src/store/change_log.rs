//! The change logs, one for each kind of row: what each version of a ticket said, and which event caused it. Written by [`super::commit`] in the
//! statement that changes the ticket; never changed, never deleted.

use holdfast_schemas::{TicketId, TicketTold, Told};
use sqlx::PgPool;
use time::OffsetDateTime;

use super::Error;

/// One version of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub version: i64,
    pub told: TicketTold,
    /// `source` and `id` of the event that caused it.
    pub cause: (String, String),
    pub changed_at: OffsetDateTime,
}

/// Up to which of a ticket's changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Now,
    Version(i64),
    /// By the database's clock.
    Time(OffsetDateTime),
}

/// A ticket's changes, oldest first.
///
/// # Errors
/// [`Error::Read`]; [`Error::Row`] for a row that no release wrote.
pub async fn of_ticket(pool: &PgPool, ticket: &TicketId, until: Until) -> Result<Vec<Change>, Error> {
    let (version, time) = match until {
        Until::Now => (None, None),
        Until::Version(version) => (Some(version), None),
        Until::Time(time) => (None, Some(time)),
    };
    let rows = sqlx::query!(
        "select version, type, data::text as \"data!\", cause_source, cause_id, changed_at from ticket_change_log
         where ticket = $1 and ($2::bigint is null or version <= $2) and ($3::timestamptz is null or changed_at <= $3)
         order by version",
        ticket.as_str(),
        version,
        time,
    )
    .fetch_all(pool)
    .await
    .map_err(Error::Read)?;
    let changes = rows.into_iter().map(|row| {
        let told = TicketTold::read(&row.r#type, &row.data).map_err(|invalid| Error::Row {
            table: "ticket_change_log",
            key: ticket.to_string(),
            what: format!("version {}: {invalid}", row.version),
        })?;
        Ok(Change {
            version: row.version,
            told,
            cause: (row.cause_source, row.cause_id),
            changed_at: row.changed_at,
        })
    });
    changes.collect()
}
