//! Orders for whoever looks them up: the checkouts of a user or of a show with their seats, the newest first, page by page. They are
//! read as they are, and nothing is decided by them.

use holdfast_schemas::{CheckoutId, ShowId, UserId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::types::Json;
use time::OffsetDateTime;

use super::Error;
use super::session::InTime;

/// The checkouts that have seats of a show and have not given them back, or owe something of a return, the oldest first.
///
/// # Errors
/// The database does not answer.
pub async fn standing(pool: &PgPool, show: &ShowId) -> Result<Vec<CheckoutId>, Error> {
    let rows = sqlx::query_scalar!(
        "select c.checkout from checkouts c
         where c.state not in ('failed', 'refunded')
           and exists (select from checkout_seats s where s.checkout = c.checkout and s.show = $1 and (c.owes or not s.returned))
         order by c.opened_at",
        show.as_str()
    );
    let rows = rows.fetch_all(pool).in_time(pool).await.map_err(Error::Read)?;
    Ok(rows.iter().filter_map(|id| CheckoutId::parse(id).ok()).collect())
}

/// Most orders of a page.
pub const LONGEST_PAGE: u32 = 100;

/// One order. Amounts are minor units of its currency.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListedOrder {
    pub checkout: String,
    pub user: String,
    /// The state of the checkout.
    pub state: String,
    /// Whether it waits for an operator.
    pub stuck: bool,
    pub seats: Vec<OrderedSeat>,
    pub total: i64,
    pub currency: String,
    /// The part of the total that credits pay.
    pub credits: i64,
    /// Refunded of what was charged.
    pub refunded: i64,
    /// The payment provider's id of the payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment: Option<String>,
    /// Why it fails or has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The payment provider's code for the last decline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    pub opened_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub ended_at: Option<OffsetDateTime>,
}

/// A seat of an order, at the price of its hold.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct OrderedSeat {
    pub ticket: String,
    pub show: String,
    pub seat: Option<String>,
    pub price: i64,
    /// Whether it was sold, and is the buyer's no more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub returned: bool,
}

/// A part of the orders.
#[derive(Debug, Serialize, JsonSchema)]
pub struct OrderPage {
    pub orders: Vec<ListedOrder>,
    /// The last order of the page, if there may be more: give it as `before` for the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The page to read.
#[derive(Debug, Clone, Copy)]
pub struct PageRequest<'a> {
    /// The order that the page before ended with.
    pub before: Option<&'a CheckoutId>,
    /// At most [`LONGEST_PAGE`].
    pub limit: u32,
}

struct Row {
    checkout: String,
    user_id: String,
    state: String,
    total_amount: i64,
    total_currency: String,
    credits: Option<i64>,
    refunded: i64,
    payment: Option<String>,
    failure: Option<String>,
    failure_code: Option<String>,
    stuck: bool,
    opened_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
    seats: Json<Vec<OrderedSeat>>,
}

/// The orders of a user; those with seats of a show, if one is named.
///
/// # Errors
/// The database does not answer.
pub async fn of_user(
    pool: &PgPool,
    user: &UserId,
    show: Option<&ShowId>,
    page: PageRequest<'_>,
) -> Result<OrderPage, Error> {
    let rows = sqlx::query_file_as!(
        Row,
        "src/store/orders/of_user.sql",
        user.as_str(),
        show.map(ShowId::as_str),
        page.before.map(CheckoutId::as_str),
        page.rows(),
    );
    let rows = rows.fetch_all(pool).in_time(pool).await.map_err(Error::Read)?;
    Ok(page.of(rows))
}

/// The orders with seats of a show.
///
/// # Errors
/// The database does not answer.
pub async fn of_show(pool: &PgPool, show: &ShowId, page: PageRequest<'_>) -> Result<OrderPage, Error> {
    let rows = sqlx::query_file_as!(
        Row,
        "src/store/orders/of_show.sql",
        show.as_str(),
        page.before.map(CheckoutId::as_str),
        page.rows(),
    );
    let rows = rows.fetch_all(pool).in_time(pool).await.map_err(Error::Read)?;
    Ok(page.of(rows))
}

impl PageRequest<'_> {
    fn limit(self) -> u32 {
        self.limit.clamp(1, LONGEST_PAGE)
    }

    /// One more than the page has, which tells whether there is another page.
    fn rows(self) -> i64 {
        i64::from(self.limit()) + 1
    }

    fn of(self, mut rows: Vec<Row>) -> OrderPage {
        let limit = self.limit() as usize;
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| has_more).map(|row| row.checkout.clone());
        OrderPage {
            orders: rows.into_iter().map(ListedOrder::from).collect(),
            next,
        }
    }
}

impl From<Row> for ListedOrder {
    fn from(row: Row) -> Self {
        Self {
            checkout: row.checkout,
            user: row.user_id,
            state: row.state,
            stuck: row.stuck,
            seats: row.seats.0,
            total: row.total_amount,
            currency: row.total_currency,
            credits: row.credits.unwrap_or_default(),
            refunded: row.refunded,
            payment: row.payment,
            failure: row.failure,
            code: row.failure_code,
            opened_at: row.opened_at,
            ended_at: row.ended_at,
        }
    }
}
