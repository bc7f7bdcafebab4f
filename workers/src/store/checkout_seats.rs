//! The rows of checkouts' tickets, in the order of the request.

use holdfast_schemas::{CheckoutId, HoldId, Invalid, Price, Seat, ShowId, TicketId};
use sqlx::PgConnection;

use super::Error;
use crate::domain::checkout::{Checkout, Line};

/// The tickets of a checkout, whose prices are in this currency.
pub(super) async fn of(
    connection: &mut PgConnection,
    checkout: &CheckoutId,
    currency: &str,
) -> Result<Vec<Line>, Error> {
    let seats = sqlx::query!(
        "select ticket, hold, show, seat, price_amount from checkout_seats where checkout = $1 order by place",
        checkout.as_str(),
    )
    .fetch_all(connection)
    .await
    .map_err(Error::Read)?;
    let lines = seats.into_iter().map(|seat| {
        Ok::<_, Invalid>(Line {
            ticket: TicketId::parse(&seat.ticket)?,
            hold: HoldId(seat.hold),
            show: ShowId::parse(&seat.show)?,
            seat: seat.seat.as_deref().map(Seat::parse).transpose()?,
            price: Price::parse(seat.price_amount, currency)?,
        })
    });
    lines.collect::<Result<_, _>>().map_err(|invalid| Error::Row {
        table: "checkout_seats",
        key: checkout.to_string(),
        what: invalid.to_string(),
    })
}

/// Writes the tickets of a new checkout. False when one of its holds is being bought by another checkout: the transaction must
/// not be committed.
pub(super) async fn insert(connection: &mut PgConnection, checkout: &Checkout) -> Result<bool, Error> {
    let lines = &checkout.lines;
    let tickets: Vec<_> = lines.iter().map(|line| line.ticket.as_str()).collect();
    let holds: Vec<_> = lines.iter().map(|line| line.hold.0).collect();
    let shows: Vec<_> = lines.iter().map(|line| line.show.as_str()).collect();
    let seats: Vec<_> = lines.iter().map(|line| line.seat.as_ref().map(Seat::as_str)).collect();
    let prices: Vec<_> = lines.iter().map(|line| line.price.amount()).collect();
    let inserted = sqlx::query!(
        "insert into checkout_seats (checkout, place, ticket, hold, show, seat, price_amount)
         select $1, place, ticket, hold, show, seat, price
         from unnest($2::text[], $3::uuid[], $4::text[], $5::text[], $6::bigint[])
              with ordinality u (ticket, hold, show, seat, price, place)
         on conflict do nothing",
        checkout.id.as_str(),
        &tickets as &[&str],
        &holds,
        &shows as &[&str],
        &seats as &[Option<&str>],
        &prices,
    )
    .execute(connection)
    .await
    .map_err(Error::Write)?;
    Ok(inserted.rows_affected() == lines.len() as u64)
}

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

/// Lets other checkouts buy the holds: this one has ended.
pub(super) async fn close(connection: &mut PgConnection, checkout: &Checkout) -> Result<(), Error> {
    sqlx::query!(
        "update checkout_seats set open = false where checkout = $1 and open",
        checkout.id.as_str()
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(Error::Write)
}
