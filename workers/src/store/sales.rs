//! A show's sales for whoever looks them up: its tickets by status, and what its seats brought in.

use holdfast_schemas::ShowId;
use serde::Serialize;
use sqlx::PgPool;

use super::Error;
use super::session::InTime;

/// The sales of a show.
#[derive(Debug, Serialize)]
pub struct ShowSales {
    pub show: String,
    pub available: i64,
    /// Holds that are over count until their ticket is freed.
    pub held: i64,
    pub sold: i64,
    pub withdrawn: i64,
    pub currencies: Vec<CurrencySales>,
}

/// The orders with seats of the show in one currency. Amounts are its minor units.
#[derive(Debug, Serialize)]
pub struct CurrencySales {
    pub currency: String,
    /// Seats that are sold.
    pub seats: i64,
    /// The prices of these seats, whether money or credits paid them.
    pub revenue: i64,
    /// Seats that were sold, and given back.
    pub returned_seats: i64,
    /// The prices of those.
    pub returned: i64,
    /// Refunded in part, of orders that stand and have seats of this show alone.
    pub refunded_in_part: i64,
    /// Refunded in part, of orders that stand and have seats of other shows too: nobody knows of which seat.
    pub refunded_in_part_of_mixed: i64,
}

/// The sales of a show; nothing of it when no ticket of it was ever listed.
///
/// # Errors
/// The database does not answer.
pub async fn of(pool: &PgPool, show: &ShowId) -> Result<ShowSales, Error> {
    let statuses = sqlx::query!(
        r#"select count(*) filter (where status = 'available') as "available!", count(*) filter (where status = 'held') as "held!",
                  count(*) filter (where status = 'sold') as "sold!", count(*) filter (where status = 'withdrawn') as "withdrawn!"
           from tickets where show = $1"#,
        show.as_str(),
    );
    let tickets = statuses.fetch_one(pool).in_time(pool).await.map_err(Error::Read)?;
    let currencies = sqlx::query_file_as!(CurrencySales, "src/store/sales/by_currency.sql", show.as_str());
    let currencies = currencies.fetch_all(pool).in_time(pool).await.map_err(Error::Read)?;
    Ok(ShowSales {
        show: show.to_string(),
        available: tickets.available,
        held: tickets.held,
        sold: tickets.sold,
        withdrawn: tickets.withdrawn,
        currencies,
    })
}
