//! The rows of disputes.

use holdfast_schemas::{CheckoutId, Currency, DisputeFunds, DisputeId, DisputeStatus, Price};
use sqlx::{PgConnection, PgPool};

use super::Error;
use super::session::InTime;
use crate::domain::checkout::{Checkout, Dispute};

/// The name of a dispute's status, in rows and metrics.
pub fn status_name(status: DisputeStatus) -> &'static str {
    match status {
        DisputeStatus::Inquiry => "inquiry",
        DisputeStatus::Closed => "closed",
        DisputeStatus::Opened => "opened",
        DisputeStatus::Won => "won",
        DisputeStatus::Lost => "lost",
    }
}

/// The name of where a dispute's money is, in rows.
pub fn funds_name(funds: Option<DisputeFunds>) -> &'static str {
    match funds {
        None => "untouched",
        Some(DisputeFunds::Withdrawn) => "withdrawn",
        Some(DisputeFunds::Reinstated) => "reinstated",
    }
}

/// A dispute, locked for the rest of the transaction; none when it is not known. Its amount is in this currency.
pub(super) async fn lock(
    connection: &mut PgConnection,
    id: &DisputeId,
    currency: Currency,
) -> Result<Option<Dispute>, Error> {
    let row = sqlx::query_as!(
        Row,
        "select dispute, checkout, amount, status, funds from disputes where dispute = $1 for update",
        id.as_str()
    );
    let row = row.fetch_optional(connection).await.map_err(Error::Read)?;
    row.map(|row| row.dispute(currency)).transpose()
}

/// The disputes of a checkout.
///
/// # Errors
/// The database does not answer, or a row cannot be understood.
pub async fn of(pool: &PgPool, checkout: &Checkout) -> Result<Vec<Dispute>, Error> {
    let rows = sqlx::query_as!(
        Row,
        "select dispute, checkout, amount, status, funds from disputes where checkout = $1 order by dispute",
        checkout.id.as_str(),
    );
    let rows = rows.fetch_all(pool).in_time(pool).await.map_err(Error::Read)?;
    let rows = rows.into_iter().map(|row| row.dispute(checkout.currency()));
    rows.collect()
}

/// Writes the state of a dispute.
pub(super) async fn write(connection: &mut PgConnection, dispute: &Dispute) -> Result<(), Error> {
    sqlx::query!(
        "insert into disputes (dispute, checkout, amount, status, funds) values ($1, $2, $3, $4, $5)
         on conflict (dispute) do update set amount = excluded.amount, status = excluded.status, funds = excluded.funds",
        dispute.id.as_str(),
        dispute.checkout.as_str(),
        dispute.amount.amount(),
        status_name(dispute.status),
        funds_name(dispute.funds),
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(Error::Write)
}

struct Row {
    dispute: String,
    checkout: String,
    amount: i64,
    status: String,
    funds: Option<String>,
}

impl Row {
    fn dispute(self, currency: Currency) -> Result<Dispute, Error> {
        let wrong = |what: String| Error::Row {
            table: "disputes",
            key: self.dispute.clone(),
            what,
        };
        let status = status(&self.status).map_err(wrong)?;
        Ok(Dispute {
            id: DisputeId::parse(&self.dispute).map_err(|invalid| wrong(invalid.to_string()))?,
            checkout: CheckoutId::parse(&self.checkout).map_err(|invalid| wrong(invalid.to_string()))?,
            amount: Price::new(self.amount, currency).map_err(|invalid| wrong(invalid.to_string()))?,
            status,
            funds: match self.funds.as_deref() {
                Some(name) => funds(name).map_err(wrong)?,
                None => funds_by_status(status),
            },
        })
    }
}

fn status(name: &str) -> Result<DisputeStatus, String> {
    let known = [
        DisputeStatus::Inquiry,
        DisputeStatus::Closed,
        DisputeStatus::Opened,
        DisputeStatus::Won,
        DisputeStatus::Lost,
    ];
    let named = known.into_iter().find(|known| status_name(*known) == name);
    named.ok_or_else(|| format!("status {name:?}"))
}

fn funds(name: &str) -> Result<Option<DisputeFunds>, String> {
    let known = [None, Some(DisputeFunds::Withdrawn), Some(DisputeFunds::Reinstated)];
    let named = known.into_iter().find(|known| funds_name(*known) == name);
    named.ok_or_else(|| format!("funds {name:?}"))
}

/// An earlier release, which wrote no more than the status, took the money for taken from the beginning on.
fn funds_by_status(status: DisputeStatus) -> Option<DisputeFunds> {
    match status {
        DisputeStatus::Inquiry | DisputeStatus::Closed => None,
        DisputeStatus::Opened | DisputeStatus::Lost => Some(DisputeFunds::Withdrawn),
        DisputeStatus::Won => Some(DisputeFunds::Reinstated),
    }
}
