//! The rows of refunds.

use holdfast_schemas::{CheckoutId, Price, RefundId, RefundStatus};
use sqlx::{PgConnection, PgPool};

use super::Error;
use super::session::InTime;
use crate::domain::checkout::{Checkout, Refund};

/// The name of a refund's status, in rows and metrics.
pub fn status_name(status: RefundStatus) -> &'static str {
    match status {
        RefundStatus::Pending => "pending",
        RefundStatus::Succeeded => "succeeded",
        RefundStatus::Failed => "failed",
    }
}

/// The refunds of a checkout, and the one with this id, whosever it is. The caller has locked the checkout.
pub(super) async fn known(
    connection: &mut PgConnection,
    checkout: &Checkout,
    id: Option<&RefundId>,
) -> Result<Vec<Refund>, Error> {
    let rows = sqlx::query_as!(
        Row,
        "select refund, checkout, amount, status from refunds where checkout = $1 or refund = $2 order by refund",
        checkout.id.as_str(),
        id.map(RefundId::as_str),
    );
    let rows = rows.fetch_all(connection).await.map_err(Error::Read)?;
    rows.into_iter().map(|row| row.refund(checkout)).collect()
}

/// The refunds of a checkout.
///
/// # Errors
/// The database does not answer, or a row cannot be understood.
pub async fn of(pool: &PgPool, checkout: &Checkout) -> Result<Vec<Refund>, Error> {
    let rows = sqlx::query_as!(
        Row,
        "select refund, checkout, amount, status from refunds where checkout = $1 order by written_at, refund",
        checkout.id.as_str(),
    );
    let rows = rows.fetch_all(pool).in_time(pool).await.map_err(Error::Read)?;
    rows.into_iter().map(|row| row.refund(checkout)).collect()
}

/// Writes the state of a refund.
pub(super) async fn write(connection: &mut PgConnection, refund: &Refund) -> Result<(), Error> {
    sqlx::query!(
        "insert into refunds (refund, checkout, amount, status) values ($1, $2, $3, $4)
         on conflict (refund) do update set status = excluded.status, changed_at = clock_timestamp()",
        refund.id.as_str(),
        refund.checkout.as_str(),
        refund.amount.amount(),
        status_name(refund.status),
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(Error::Write)
}

struct Row {
    refund: String,
    checkout: String,
    amount: i64,
    status: String,
}

impl Row {
    /// The refund, in the currency of this checkout.
    fn refund(self, of: &Checkout) -> Result<Refund, Error> {
        let wrong = |what: String| Error::Row {
            table: "refunds",
            key: self.refund.clone(),
            what,
        };
        Ok(Refund {
            id: RefundId::parse(&self.refund).map_err(|invalid| wrong(invalid.to_string()))?,
            checkout: CheckoutId::parse(&self.checkout).map_err(|invalid| wrong(invalid.to_string()))?,
            amount: Price::new(self.amount, of.currency()).map_err(|invalid| wrong(invalid.to_string()))?,
            status: status(&self.status).map_err(wrong)?,
        })
    }
}

fn status(name: &str) -> Result<RefundStatus, String> {
    let known = [RefundStatus::Pending, RefundStatus::Succeeded, RefundStatus::Failed];
    let named = known.into_iter().find(|known| status_name(*known) == name);
    named.ok_or_else(|| format!("status {name:?}"))
}
