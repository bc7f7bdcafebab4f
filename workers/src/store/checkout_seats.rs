//! The rows of checkouts' tickets, which are written and read with their checkout.

use holdfast_schemas::{HoldId, TicketId};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::Error;

/// True if a checkout buys one of these holds.
pub(super) async fn under_way(connection: &mut PgConnection, holds: &[HoldId]) -> Result<bool, Error> {
    let holds: Vec<_> = holds.iter().map(|hold| hold.0).collect();
    let found = sqlx::query_scalar!(
        "select 1 as one from checkout_seats where open and hold = any($1)",
        &holds
    )
    .fetch_optional(connection)
    .await
    .map_err(Error::Read)?;
    Ok(found.is_some())
}

/// A hold that has not ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LiveHold {
    pub hold: HoldId,
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    /// True while a checkout buys its ticket.
    pub under_way: bool,
}

/// Those of these tickets' holds that have not ended.
pub(super) async fn live(connection: &mut PgConnection, holds: &[(&TicketId, HoldId)]) -> Result<Vec<LiveHold>, Error> {
    let (tickets, holds): (Vec<_>, Vec<_>) = holds.iter().map(|(ticket, hold)| (ticket.as_str(), hold.0)).unzip();
    let rows = sqlx::query!(
        r#"select t.hold as "hold!", t.held_until as "until!",
                  exists (select from checkout_seats s where s.open and s.hold = t.hold) as "under_way!"
           from tickets t
           where t.ticket = any($1) and t.hold = any($2) and t.status = 'held' and t.held_until > clock_timestamp()"#,
        &tickets as &[&str],
        &holds,
    );
    let rows = rows.fetch_all(connection).await.map_err(Error::Read)?;
    let live = rows.into_iter().map(|row| LiveHold {
        hold: HoldId(row.hold),
        until: row.until,
        under_way: row.under_way,
    });
    Ok(live.collect())
}
