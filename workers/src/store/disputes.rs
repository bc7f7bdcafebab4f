//! The rows of disputes.

use holdfast_schemas::{CheckoutId, Currency, DisputeId, DisputeStatus, Price};
use sqlx::{PgConnection, PgPool};

use super::Error;
use super::session::InTime;
use crate::domain::checkout::{Checkout, Dispute};

/// The name of a dispute's status, in rows and metrics.
pub fn status_name(status: DisputeStatus) -> &'static str {
    match status {
        DisputeStatus::Opened => "opened",
        DisputeStatus::Won => "won",
        DisputeStatus::Lost => "lost",
    }
}

/// A dispute, locked for the rest of the transaction; none when it is not known. Its amount is in this currency.
pub(super) async fn lock(
    connection: &mut PgConnection,
    id: &DisputeId,
    currency: Currency,
) -> Result<Option<Dispute>, Error> {
    let row = sqlx::query!(
        "select checkout, amount, status from disputes where dispute = $1 for update",
        id.as_str()
    );
    let row = row.fetch_optional(connection).await.map_err(Error::Read)?;
    row.map(|row| {
        let wrong = wrong(id.as_str());
        Ok(Dispute {
            id: id.clone(),
            checkout: CheckoutId::parse(&row.checkout).map_err(|invalid| wrong(invalid.to_string()))?,
            amount: Price::new(row.amount, currency).map_err(|invalid| wrong(invalid.to_string()))?,
            status: status(&row.status).map_err(wrong)?,
        })
    })
    .transpose()
}

/// The disputes of a checkout.
///
/// # Errors
/// The database does not answer, or a row cannot be understood.
pub async fn of(pool: &PgPool, checkout: &Checkout) -> Result<Vec<Dispute>, Error> {
    let rows = sqlx::query!(
        "select dispute, amount, status from disputes where checkout = $1 order by dispute",
        checkout.id.as_str(),
    );
    let rows = rows.fetch_all(pool).in_time(pool).await.map_err(Error::Read)?;
    let rows = rows.into_iter().map(|row| {
        let wrong = wrong(&row.dispute);
        Ok(Dispute {
            id: DisputeId::parse(&row.dispute).map_err(|invalid| wrong(invalid.to_string()))?,
            checkout: checkout.id.clone(),
            amount: Price::new(row.amount, checkout.currency()).map_err(|invalid| wrong(invalid.to_string()))?,
            status: status(&row.status).map_err(wrong)?,
        })
    });
    rows.collect()
}

/// Writes the state of a dispute.
pub(super) async fn write(connection: &mut PgConnection, dispute: &Dispute) -> Result<(), Error> {
    sqlx::query!(
        "insert into disputes (dispute, checkout, amount, status) values ($1, $2, $3, $4)
         on conflict (dispute) do update set status = excluded.status",
        dispute.id.as_str(),
        dispute.checkout.as_str(),
        dispute.amount.amount(),
        status_name(dispute.status),
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(Error::Write)
}

fn status(name: &str) -> Result<DisputeStatus, String> {
    let known = [DisputeStatus::Opened, DisputeStatus::Won, DisputeStatus::Lost];
    let named = known.into_iter().find(|known| status_name(*known) == name);
    named.ok_or_else(|| format!("status {name:?}"))
}

fn wrong(dispute: &str) -> impl Fn(String) -> Error {
    move |what| Error::Row {
        table: "disputes",
        key: dispute.to_owned(),
        what,
    }
}
