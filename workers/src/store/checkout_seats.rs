//! The rows of checkouts' tickets, which are written and read with their checkout.

use holdfast_schemas::HoldId;
use sqlx::PgConnection;

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
