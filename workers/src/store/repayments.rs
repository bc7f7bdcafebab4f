//! The rows of repayments: what the returns of an order give back.

use holdfast_schemas::{CheckoutId, Credits};
use sqlx::PgConnection;

use super::Error;
use crate::domain::checkout::{Checkout, Repaid, Repayment};

/// The repayments of a checkout, in order.
pub(super) async fn of(connection: &mut PgConnection, checkout: &CheckoutId) -> Result<Vec<Repayment>, Error> {
    let rows = sqlx::query!(
        r#"select number, kind, amount, settled_at is not null as "settled!" from repayments where checkout = $1 order by number"#,
        checkout.as_str(),
    );
    let rows = rows.fetch_all(connection).await.map_err(Error::Read)?;
    let read = rows.into_iter().map(|row| {
        let credits = Credits::new(row.amount);
        let what = match (row.kind.as_str(), credits) {
            ("money", _) => Ok(Repaid::Money(row.amount)),
            ("credits", Ok(credits)) => Ok(Repaid::Credits(credits)),
            (kind, _) => Err(format!("{kind:?} of {}", row.amount)),
        };
        let what = what.map_err(|what| Error::Row {
            table: "repayments",
            key: format!("{checkout}/{}", row.number),
            what,
        })?;
        let settled = row.settled;
        Ok(Repayment { what, settled })
    });
    read.collect()
}

/// Writes the repayments that are new or settled. The caller has written the checkout's row.
pub(super) async fn write(connection: &mut PgConnection, from: &Checkout, to: &Checkout) -> Result<(), Error> {
    for (place, repayment) in to.repayments.iter().enumerate() {
        if from.repayments.get(place) == Some(repayment) {
            continue;
        }
        let (kind, amount) = match repayment.what {
            Repaid::Money(amount) => ("money", amount),
            Repaid::Credits(credits) => ("credits", credits.amount()),
        };
        sqlx::query!(
            "insert into repayments (checkout, number, kind, amount, settled_at)
             values ($1, $2, $3, $4, case when $5 then clock_timestamp() end)
             on conflict (checkout, number) do update set settled_at = excluded.settled_at",
            to.id.as_str(),
            i32::try_from(place + 1).unwrap_or(i32::MAX),
            kind,
            amount,
            repayment.settled,
        )
        .execute(&mut *connection)
        .await
        .map_err(Error::Write)?;
    }
    Ok(())
}
