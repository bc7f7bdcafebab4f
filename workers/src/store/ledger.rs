//! The ledger: every movement of money or credits, as lines that add up to zero. Written in the transaction that causes it.

use holdfast_schemas::{CheckoutId, Price};
use sqlx::PgConnection;
use uuid::Uuid;

use super::Error;

/// The kinds of movements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The provider captured the money.
    Capture,
    /// Credits paid a part.
    Credit,
    /// Credits were returned.
    CreditBack,
    /// The money was refunded, all that was left of it.
    Refund,
    /// A part of the money was refunded; the seat stays sold.
    PartialRefund,
    /// The customer's bank opened a dispute and withdrew the money until it decides.
    Dispute,
    /// The dispute was won: the money came back.
    DisputeWon,
    /// The dispute was lost: the money is gone.
    DisputeLost,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Credit => "credit",
            Self::CreditBack => "credit_back",
            Self::Refund => "refund",
            Self::PartialRefund => "partial_refund",
            Self::Dispute => "dispute",
            Self::DisputeWon => "dispute_won",
            Self::DisputeLost => "dispute_lost",
        }
    }

    /// The account that gets the amount, and the one that it comes from.
    const fn accounts(self) -> (&'static str, &'static str) {
        match self {
            Self::Capture => ("provider", "sales"),
            Self::Credit => ("credits", "sales"),
            Self::CreditBack => ("sales", "credits"),
            Self::Refund => ("sales", "provider"),
            Self::PartialRefund => ("refunds", "provider"),
            Self::Dispute => ("disputes", "provider"),
            Self::DisputeWon => ("provider", "disputes"),
            Self::DisputeLost => ("losses", "disputes"),
        }
    }
}

/// Writes one movement under this id; none for an amount of 0.
pub(super) async fn write(
    connection: &mut PgConnection,
    movement: Uuid,
    checkout: &CheckoutId,
    kind: Kind,
    amount: Price,
) -> Result<(), Error> {
    if amount.amount() == 0 {
        return Ok(());
    }
    let (to, from) = kind.accounts();
    sqlx::query!(
        "insert into ledger (movement, checkout, kind, account, amount, currency)
         values ($1, $2, $3, $4, $6, $7), ($1, $2, $3, $5, -$6, $7)",
        movement,
        checkout.as_str(),
        kind.as_str(),
        to,
        from,
        amount.amount(),
        amount.currency().code(),
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(Error::Write)
}
