//! The tickets table.

use std::collections::HashMap;

use futures::future::BoxFuture;
use holdfast_schemas::{CheckoutId, HoldId, Price, Seat, ShowId, TicketId, UserId};
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Error;
use super::change_log::{LoggedChange, Until, read_changes};
use super::commit::{Beside, Current, KeyedRow, Stored, WriteSet};
use super::session::InTime;
use crate::domain::{Hold, Sale, State, Ticket};

/// A row of the table, if there is one, beside the clock, the generation, and which of the keys are in quarantine.
struct Row {
    now: OffsetDateTime,
    generation: i64,
    quarantined: Option<Json<HashMap<String, String>>>,
    ticket: Option<String>,
    version: Option<i64>,
    show: Option<String>,
    seat: Option<String>,
    price_amount: Option<i64>,
    price_currency: Option<String>,
    status: Option<String>,
    hold: Option<Uuid>,
    holder: Option<String>,
    held_until: Option<OffsetDateTime>,
    checkout: Option<String>,
    lengthened: Option<Uuid>,
    priced: Option<Uuid>,
    hold_price: Option<i64>,
    off_sale: Option<Uuid>,
    changed_at: Option<OffsetDateTime>,
}

/// Locks the rows of these tickets for the rest of the transaction, always in the same order, and reads them. The committer passes
/// over locked rows.
pub(super) async fn lock(connection: &mut PgConnection, tickets: &[&str]) -> Result<Current<Ticket>, Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"with locked as materialized (
               select ticket, version, show, seat, price_amount, price_currency, status, hold, holder, held_until, checkout, lengthened, priced, hold_price, off_sale, changed_at
               from tickets where ticket = any($1) order by ticket for no key update
           )
           -- The clock is read once they are locked.
           select clock.now as "now!", clock.generation as "generation!",
                  clock.quarantined as "quarantined: Json<HashMap<String, String>>",
                  t.ticket as "ticket?", t.version as "version?", t.show as "show?", t.seat,
                  t.price_amount as "price_amount?", t.price_currency as "price_currency?", t.status as "status?",
                  t.hold, t.holder, t.held_until, t.checkout, t.lengthened, t.priced, t.hold_price, t.off_sale, t.changed_at as "changed_at?"
           from (select clock_timestamp() as now, (select max(generation) from generations) as generation,
                        (select json_object_agg(q.key, q.kind) from quarantined_keys q
                         where q.topic = 'reservations' and q.key = any($1)) as quarantined
                 from (select count(*) from locked) as waited) clock
           left join locked t on true"#,
        tickets as &[&str],
    );
    let rows = rows.fetch_all(connection).await.map_err(Error::Read)?;
    Current::of(rows, beside, parse)
}

/// A hold that is due.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Due {
    pub ticket: TicketId,
    pub hold: HoldId,
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
}

/// The database's clock, and the holds that are due by it, oldest first, after the place `after` in that order. Those of tickets in
/// quarantine wait with them.
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
                 and not exists (select from quarantined_keys q where q.topic = 'reservations' and q.key = ticket)
               order by held_until, ticket
               limit $3
           ) due on true
           order by due.held_until, due.ticket"#,
        until,
        ticket.as_ref().map(TicketId::as_str),
        limit,
    )
    .fetch_all(pool)
    .in_time(pool)
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

/// A hold of a user, live or due.
#[derive(Clone, Debug, Serialize)]
pub struct UserHold {
    pub ticket: String,
    pub hold: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    pub show: String,
    pub seat: Option<String>,
}

/// The holds of a user, those that end first at the head.
///
/// # Errors
/// The database does not answer.
pub async fn held_by(pool: &PgPool, user: &UserId) -> Result<Vec<UserHold>, Error> {
    sqlx::query_as!(
        UserHold,
        r#"select ticket, hold as "hold!", held_until as "until!", show, seat from tickets
           where status = 'held' and holder = $1 order by held_until, ticket"#,
        user.as_str()
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// The tickets of a show that are for sale or held.
///
/// # Errors
/// The database does not answer.
pub async fn for_sale(pool: &PgPool, show: &ShowId) -> Result<Vec<TicketId>, Error> {
    let rows = sqlx::query_scalar!(
        "select ticket from tickets where show = $1 and status in ('available', 'held') order by ticket",
        show.as_str()
    );
    let rows = rows.fetch_all(pool).in_time(pool).await.map_err(Error::Read)?;
    let tickets = rows
        .iter()
        .map(|ticket| parse_column(ticket, || TicketId::parse(ticket)));
    tickets.collect()
}

/// The table's own columns, in a batch.
#[derive(Default)]
pub struct TicketColumns<'a> {
    show: Vec<Option<&'a str>>,
    seat: Vec<Option<&'a str>>,
    price_amount: Vec<Option<i64>>,
    price_currency: Vec<Option<&'static str>>,
    status: Vec<Option<&'static str>>,
    hold: Vec<Option<Uuid>>,
    holder: Vec<Option<&'a str>>,
    held_until: Vec<Option<OffsetDateTime>>,
    checkout: Vec<Option<&'a str>>,
    lengthened: Vec<Option<Uuid>>,
    priced: Vec<Option<Uuid>>,
    hold_price: Vec<Option<i64>>,
    off_sale: Vec<Option<Uuid>>,
}

impl Stored for Ticket {
    type Columns<'a> = TicketColumns<'a>;

    fn push<'a>(columns: &mut TicketColumns<'a>, row: Option<&'a Ticket>) {
        let (hold, holder, held_until, checkout) = match row.map(|row| &row.state) {
            None | Some(State::Available | State::Withdrawn) => (None, None, None, None),
            Some(State::Held(hold)) => (Some(hold.id), Some(&hold.user), Some(hold.until), None),
            Some(State::Sold(sale)) => (Some(sale.hold), Some(&sale.user), None, Some(&sale.checkout)),
        };
        let seat = row.and_then(|row| row.seat.as_ref());
        columns.show.push(row.map(|row| row.show.as_str()));
        columns.seat.push(seat.map(|seat| seat.as_str()));
        columns.price_amount.push(row.map(|row| row.price.amount()));
        columns.price_currency.push(row.map(|row| row.price.currency().code()));
        columns.status.push(row.map(|row| status(&row.state)));
        columns.hold.push(hold.map(|hold| hold.0));
        columns.holder.push(holder.map(|holder| holder.as_str()));
        columns.held_until.push(held_until);
        columns.checkout.push(checkout.map(|checkout| checkout.as_str()));
        let held = row.and_then(|row| match &row.state {
            State::Held(hold) => Some(hold),
            _ => None,
        });
        let hold_price = held.and_then(|hold| hold.price);
        let id_if = |is: bool| held.filter(|_| is).map(|hold| hold.id.0);
        columns.lengthened.push(id_if(held.is_some_and(|hold| hold.lengthened)));
        columns.priced.push(id_if(hold_price.is_some()));
        columns.hold_price.push(hold_price.map(|price| price.amount()));
        let off_sale = row.and_then(|row| match &row.state {
            State::Sold(sale) if sale.off_sale => Some(sale.hold.0),
            _ => None,
        });
        columns.off_sale.push(off_sale);
    }

    fn read<'c>(
        connection: &'c mut PgConnection,
        keys: &'c [&'c str],
    ) -> BoxFuture<'c, Result<Current<Ticket>, Error>> {
        Box::pin(async move {
            let rows = sqlx::query_as!(
                Row,
                r#"select clock.now as "now!", clock.generation as "generation!",
                          clock.quarantined as "quarantined: Json<HashMap<String, String>>",
                          t.ticket as "ticket?", t.version as "version?", t.show as "show?", t.seat,
                          t.price_amount as "price_amount?", t.price_currency as "price_currency?", t.status as "status?",
                          t.hold, t.holder, t.held_until, t.checkout, t.lengthened, t.priced, t.hold_price, t.off_sale, t.changed_at as "changed_at?"
                   from (select clock_timestamp() as now, (select max(generation) from generations) as generation,
                                (select json_object_agg(q.key, q.kind) from quarantined_keys q
                                 where q.topic = 'reservations' and q.key = any($1)) as quarantined) clock
                   left join tickets t on t.ticket = any($1)"#,
                keys as _,
            );
            let rows = rows.fetch_all(connection).await.map_err(Error::Read)?;
            Current::of(rows, beside, parse)
        })
    }

    fn write<'c, 'a: 'c>(
        connection: &'c mut PgConnection,
        writes: &'c WriteSet<'a>,
        columns: &'c TicketColumns<'a>,
    ) -> BoxFuture<'c, Result<Vec<i32>, Error>> {
        Box::pin(async move {
            let written = sqlx::query_file!(
                "src/store/tickets/write.sql",
                &writes.unit.ordinal,
                &writes.unit.key as _,
                &writes.unit.read_version as _,
                &writes.unit.version as _,
                &writes.unit.decided_at,
                &writes.unit.records,
                &writes.unit.changes,
                &writes.unit.messages,
                &writes.record.ordinal,
                &writes.record.source as _,
                &writes.record.id as _,
                &writes.record.topic as _,
                &writes.record.hash as _,
                &writes.record.reply,
                &writes.record.aged_from,
                &writes.change.ordinal,
                &writes.change.version,
                &writes.change.outcome,
                &writes.change.outcome_type as _,
                &writes.change.data as _,
                &writes.change.source as _,
                &writes.change.id as _,
                &writes.message.ordinal,
                &writes.message.topic as _,
                &writes.message.id,
                &writes.message.headers as _,
                &writes.message.value as _,
                &columns.show as _,
                &columns.seat as _,
                &columns.price_amount as _,
                &columns.price_currency as _,
                &columns.status as _,
                &columns.hold as _,
                &columns.holder as _,
                &columns.held_until as _,
                &columns.checkout as _,
                &columns.lengthened as _,
                &columns.priced as _,
                &columns.hold_price as _,
                &columns.off_sale as _,
            );
            let written = written.fetch_one(connection).await.map_err(Error::Write)?;
            Ok(written.passed)
        })
    }

    fn changes<'c>(
        pool: &'c PgPool,
        key: &'c TicketId,
        until: Until,
    ) -> BoxFuture<'c, Result<Vec<LoggedChange<Ticket>>, Error>> {
        Box::pin(async move { read_changes!(pool, key.as_str(), until, log "ticket_change_log", key "ticket") })
    }
}

fn beside(row: &mut Row) -> Beside {
    Beside {
        now: row.now,
        generation: row.generation,
        quarantined: row.quarantined.take(),
    }
}

fn parse(row: Row) -> Result<KeyedRow<Ticket>, Error> {
    let (
        Some(key),
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
    )
    else {
        return Ok(None);
    };
    let state = match (status.as_str(), row.hold, row.holder, row.held_until, row.checkout) {
        ("available", None, None, None, None) => State::Available,
        ("withdrawn", None, None, None, None) => State::Withdrawn,
        ("held", Some(hold), Some(user), Some(until), None) => State::Held(Hold {
            id: HoldId(hold),
            user: parse_column(&key, || UserId::try_from(user))?,
            until,
            lengthened: row.lengthened == Some(hold),
            price: row
                .hold_price
                .filter(|_| row.priced == Some(hold))
                .map(|amount| parse_column(&key, || Price::parse(amount, &price_currency)))
                .transpose()?,
        }),
        ("sold", Some(hold), Some(user), None, Some(checkout)) => State::Sold(Sale {
            hold: HoldId(hold),
            user: parse_column(&key, || UserId::try_from(user))?,
            checkout: parse_column(&key, || CheckoutId::try_from(checkout))?,
            off_sale: row.off_sale == Some(hold),
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
    let ticket = Ticket {
        version,
        show: parse_column(&key, || ShowId::try_from(show))?,
        seat: row
            .seat
            .map(|seat| parse_column(&key, || Seat::try_from(seat)))
            .transpose()?,
        price: parse_column(&key, || Price::parse(price_amount, &price_currency))?,
        state,
        changed_at,
    };
    Ok(Some((key, ticket)))
}

fn parse_column<T, E: std::fmt::Display>(key: &str, parse: impl FnOnce() -> Result<T, E>) -> Result<T, Error> {
    parse().map_err(|error| Error::Row {
        table: "tickets",
        key: key.to_owned(),
        what: error.to_string(),
    })
}

/// The name of a state in the status column.
fn status(state: &State) -> &'static str {
    match state {
        State::Available => "available",
        State::Held(_) => "held",
        State::Sold(_) => "sold",
        State::Withdrawn => "withdrawn",
    }
}
