//! The tickets of a checkout, which are sold or freed within the transaction that records it.

use std::time::Duration;

use holdfast_schemas::{TicketId, hold_id};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{SOURCE, id, source, took_effect};
use crate::domain::Ticket;
use crate::domain::checkout::{self, Checkout, Fact};
use crate::domain::ticket::{self, Input};
use crate::store::commit::{self, Answer, Command, Current, Stored, Unit, Work};
use crate::store::{Error, purchases, tickets};

/// Sells all seats, each out of its hold, and counts them against the limit, or does neither. Returns what came of it, and the
/// answers of the tickets.
pub(super) async fn sell(
    main: &mut PgConnection,
    checkout: &Checkout,
    limit: Option<i32>,
    retention: Duration,
) -> Result<(Fact, Vec<Answer>), Error> {
    let current = lock(main, checkout).await?;
    let sales = checkout.lines.iter().map(|line| {
        let row = current.rows.get(line.ticket.as_str());
        let anew = hold_id(SOURCE, checkout.id.as_str(), line.ticket.as_str());
        let inputs = checkout::sale(checkout, line, row, anew, current.now)?;
        Some(unit(checkout, line.ticket.clone(), inputs))
    });
    let Some(sales) = sales.collect::<Option<Vec<_>>>() else {
        return Ok((Fact::SeatsGone, vec![]));
    };
    if !purchases::add(main, &checkout.user, &checkout.shows(), limit).await? {
        return Ok((Fact::LimitReached, vec![]));
    }
    let answers = commit::within(main, &ticket::decide, retention, &sales).await?;
    match answers.iter().all(took_effect) {
        true => Ok((Fact::SeatsSold, answers)),
        false => Err(Error::Moved),
    }
}

/// Frees the tickets that the checkout holds or has bought; returns their answers.
pub(super) async fn free(
    main: &mut PgConnection,
    checkout: &Checkout,
    retention: Duration,
) -> Result<Vec<Answer>, Error> {
    let current = lock(main, checkout).await?;
    let freed = checkout.lines.iter().filter_map(|line| {
        let row = current.rows.get(line.ticket.as_str());
        let input = checkout::freeing(checkout, line, row, current.now)?;
        Some(unit(checkout, line.ticket.clone(), vec![input]))
    });
    let units: Vec<_> = freed.collect();
    commit::within(main, &ticket::decide, retention, &units).await
}

/// The tickets' rows. The lock keeps them unchanged between this read and the write: the committer passes over locked rows.
async fn lock(main: &mut PgConnection, checkout: &Checkout) -> Result<Current<Ticket>, Error> {
    tickets::lock(main, &checkout.lines).await?;
    let keys: Vec<&str> = checkout.lines.iter().map(|line| line.ticket.as_str()).collect();
    Ticket::read(main, &keys).await
}

/// Requests from a checkout to one of its tickets, each with an id of its own.
fn unit(checkout: &Checkout, ticket: TicketId, inputs: Vec<Input>) -> Unit<Ticket> {
    let work = inputs.into_iter().map(|input| {
        let what = match &input {
            Input::Sell { .. } => "sell",
            Input::Return { .. } => "return",
            Input::Release { .. } => "release",
            _ => "hold",
        };
        let of = Uuid::new_v5(&Uuid::NAMESPACE_OID, ticket.as_str().as_bytes());
        Work::Command(Command {
            source: source(),
            id: id(checkout, &format!("{what}/{of}/{}", checkout.version)),
            input,
        })
    });
    Unit {
        work: work.collect(),
        key: ticket,
    }
}
