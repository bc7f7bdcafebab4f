//! The ledger: every movement of money or credits, as lines that add up to zero. Written in the transaction that causes it.

use sqlx::PgConnection;
use uuid::Uuid;

use super::Error;
use crate::domain::checkout::Checkout;
use crate::domain::ledger::Movement;

/// Writes one movement of a checkout under this id.
pub(super) async fn write(
    connection: &mut PgConnection,
    id: Uuid,
    checkout: &Checkout,
    movement: Movement,
) -> Result<(), Error> {
    let Movement { kind, amount } = movement;
    let (to, from) = kind.accounts();
    sqlx::query!(
        "insert into ledger (movement, checkout, kind, account, amount, currency)
         values ($1, $2, $3, $4, $6, $7), ($1, $2, $3, $5, -$6, $7)",
        id,
        checkout.id.as_str(),
        kind.as_str(),
        to,
        from,
        amount,
        checkout.currency().code(),
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(Error::Write)
}
