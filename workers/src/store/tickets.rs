//! The tickets table.

use std::collections::HashMap;

use holdfast_schemas::{CheckoutId, HoldId, Price, Seat, ShowId, TicketId, UserId};
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Error;
use crate::domain::{Hold, Sale, State, Ticket};

/// A row as the table has it.
pub(super) struct Row {
    pub(super) ticket: String,
    version: i64,
    show: String,
    seat: Option<String>,
    price_amount: i64,
    price_currency: String,
    status: String,
    hold: Option<Uuid>,
    holder: Option<String>,
    held_until: Option<OffsetDateTime>,
    checkout: Option<String>,
    changed_at: OffsetDateTime,
}

/// A plain read: it never waits for writers and may be older than a write in flight.
pub async fn get(pool: &PgPool, ticket: &TicketId) -> Result<Option<Ticket>, Error> {
    let row = sqlx::query_as!(
        Row,
        "select ticket, version, show, seat, price_amount, price_currency, status, hold, holder, held_until, checkout, changed_at
         from tickets where ticket = $1",
        ticket.as_str(),
    )
    .fetch_optional(pool)
    .await
    .map_err(Error::Read)?;
    row.map(parse).transpose()
}

/// A hold whose moment has come.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Due {
    pub ticket: TicketId,
    pub hold: HoldId,
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
}

/// The database's clock, and the holds that are due by it, oldest first, after the place `after` in that order.
pub async fn due(
    pool: &PgPool,
    after: Option<(OffsetDateTime, TicketId)>,
    limit: i64,
) -> Result<(OffsetDateTime, Vec<Due>), Error> {
    let (until, ticket) = after.unzip();
    let rows = sqlx::query!(
        r#"select clock.now as "now!", due.ticket as "ticket?", due.hold as "hold?", due.held_until as "held_until?"
           from (select clock_timestamp() as now) clock
           left join lateral (
               select ticket, hold, held_until from tickets
               where status = 'held' and held_until <= clock.now
                 and ($1::timestamptz is null or (held_until, ticket) > ($1, $2))
               order by held_until, ticket
               limit $3
           ) due on true
           order by due.held_until, due.ticket"#,
        until,
        ticket.as_ref().map(TicketId::as_str),
        limit,
    )
    .fetch_all(pool)
    .await
    .map_err(Error::Read)?;
    let now = rows.first().map_or(OffsetDateTime::UNIX_EPOCH, |row| row.now);
    let mut due = Vec::new();
    for row in rows {
        if let (Some(ticket), Some(hold), Some(until)) = (row.ticket, row.hold, row.held_until) {
            let ticket = parse_column(&ticket, || TicketId::parse(&ticket))?;
            due.push(Due {
                ticket,
                hold: HoldId(hold),
                until,
            });
        }
    }
    Ok((now, due))
}

/// The current rows of a batch, with the clock and the generation to decide by.
pub(super) struct Current {
    pub(super) now: OffsetDateTime,
    pub(super) generation: i64,
    pub(super) tickets: HashMap<String, Ticket>,
}

pub(super) async fn read(pool: &PgPool, tickets: &[&str]) -> Result<Current, Error> {
    let rows = sqlx::query!(
        r#"select clock.now as "now!", clock.generation as "generation!",
                  t.ticket as "ticket?", t.version as "version?", t.show as "show?", t.seat, t.price_amount as "price_amount?",
                  t.price_currency as "price_currency?", t.status as "status?", t.hold, t.holder, t.held_until, t.checkout,
                  t.changed_at as "changed_at?"
           from (select clock_timestamp() as now, (select max(generation) from generations) as generation) clock
           left join tickets t on t.ticket = any($1)"#,
        tickets as _,
    )
    .fetch_all(pool)
    .await
    .map_err(Error::Read)?;
    let mut current = Current {
        now: OffsetDateTime::UNIX_EPOCH,
        generation: 0,
        tickets: HashMap::with_capacity(rows.len()),
    };
    for row in rows {
        (current.now, current.generation) = (row.now, row.generation);
        if let (
            Some(ticket),
            Some(version),
            Some(show),
            Some(price_amount),
            Some(price_currency),
            Some(status),
            Some(changed_at),
        ) = (
            row.ticket,
            row.version,
            row.show,
            row.price_amount,
            row.price_currency,
            row.status,
            row.changed_at,
        ) {
            let row = Row {
                ticket: ticket.clone(),
                version,
                show,
                seat: row.seat,
                price_amount,
                price_currency,
                status,
                hold: row.hold,
                holder: row.holder,
                held_until: row.held_until,
                checkout: row.checkout,
                changed_at,
            };
            current.tickets.insert(ticket, parse(row)?);
        }
    }
    Ok(current)
}

fn parse(row: Row) -> Result<Ticket, Error> {
    let key = row.ticket;
    let state = match (row.status.as_str(), row.hold, row.holder, row.held_until, row.checkout) {
        ("available", None, None, None, None) => State::Available,
        ("withdrawn", None, None, None, None) => State::Withdrawn,
        ("held", Some(hold), Some(user), Some(until), None) => State::Held(Hold {
            id: HoldId(hold),
            user: parse_column(&key, || UserId::try_from(user))?,
            until,
        }),
        ("sold", Some(hold), Some(user), None, Some(checkout)) => State::Sold(Sale {
            hold: HoldId(hold),
            user: parse_column(&key, || UserId::try_from(user))?,
            checkout: parse_column(&key, || CheckoutId::try_from(checkout))?,
        }),
        (status, ..) => {
            let what = format!("its columns do not fit the status {status:?}");
            return Err(Error::Row {
                table: "tickets",
                key,
                what,
            });
        }
    };
    Ok(Ticket {
        version: row.version,
        show: parse_column(&key, || ShowId::try_from(row.show))?,
        seat: row
            .seat
            .map(|seat| parse_column(&key, || Seat::try_from(seat)))
            .transpose()?,
        price: parse_column(&key, || Price::parse(row.price_amount, &row.price_currency))?,
        state,
        changed_at: row.changed_at,
    })
}

fn parse_column<T, E: std::fmt::Display>(key: &str, parse: impl FnOnce() -> Result<T, E>) -> Result<T, Error> {
    parse().map_err(|error| Error::Row {
        table: "tickets",
        key: key.to_owned(),
        what: error.to_string(),
    })
}

/// The name of a state in the status column.
pub(super) fn status(state: &State) -> &'static str {
    match state {
        State::Available => "available",
        State::Held(_) => "held",
        State::Sold(_) => "sold",
        State::Withdrawn => "withdrawn",
    }
}
