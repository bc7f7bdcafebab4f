//! The tickets of a checkout, which are sold, returned or held for longer within the transaction that records it.

use holdfast_schemas::{EventId, ShowId, Source, TicketId, hold_id};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{SOURCE, id, source, took_effect};
use crate::domain::Ticket;
use crate::domain::checkout::{self, Checkout, Fact, Line};
use crate::domain::ticket::{self, Input};
use crate::store::commit::{self, Answer, Command, Unit, Work};
use crate::store::{Error, purchases, tickets};

/// Sells all seats, each out of its hold, and counts them against the limit, or does neither. Returns what came of it, and the
/// answers of the tickets.
pub(super) async fn sell(
    main: &mut PgConnection,
    checkout: &Checkout,
    limit: Option<i32>,
) -> Result<(Fact, Vec<Answer>), Error> {
    let current = tickets::lock(main, &keys(&checkout.lines)).await?;
    let sales = checkout.lines.iter().map(|line| {
        // A seat in quarantine is not sold: the checkout fails, and gives back what was authorised.
        let row = current.free(line.ticket.as_str());
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
    let answers = commit::on_locked(main, &ticket::decide, current, &sales).await?;
    match answers.iter().all(took_effect) {
        true => Ok((Fact::SeatsSold, answers)),
        false => Err(Error::Moved),
    }
}

/// Lengthens the holds of a checkout that opens, where they end before then and were not lengthened before; yields the answers of
/// their tickets.
pub(super) async fn lengthen(
    main: &mut PgConnection,
    checkout: &Checkout,
    until: OffsetDateTime,
) -> Result<Vec<Answer>, Error> {
    let current = tickets::lock(main, &keys(&checkout.lines)).await?;
    let lengthened = checkout.lines.iter().filter_map(|line| {
        let row = current.rows.get(line.ticket.as_str());
        let input = checkout::lengthening(line, row, until)?;
        Some(unit(checkout, line.ticket.clone(), vec![input]))
    });
    let units: Vec<_> = lengthened.collect();
    let answers = commit::on_locked(main, &ticket::decide, current, &units).await?;
    // A hold has ended since the checkout was decided on.
    match answers.iter().all(took_effect) {
        true => Ok(answers),
        false => Err(Error::Moved),
    }
}

/// Takes these tickets that the checkout has sold back, those in quarantine too, and puts them on sale again if they are to be resold and
/// were not withdrawn; yields their answers.
pub(super) async fn take_back(
    main: &mut PgConnection,
    checkout: &Checkout,
    lines: &[Line],
    resell: bool,
) -> Result<Vec<Answer>, Error> {
    let current = tickets::lock(main, &keys(lines)).await?;
    let returned = lines.iter().filter_map(|line| {
        let row = current.rows.get(line.ticket.as_str());
        let input = checkout::returning(checkout, row, resell)?;
        Some(unit(checkout, line.ticket.clone(), vec![input]))
    });
    let units: Vec<_> = returned.collect();
    commit::on_locked(main, &ticket::decide, current, &units).await
}

/// Takes these tickets off sale, since their show is cancelled, whoever holds them; those that are sold stay so. Yields the answers.
pub(super) async fn call_off(
    main: &mut PgConnection,
    show: &ShowId,
    tickets: &[TicketId],
) -> Result<Vec<Answer>, Error> {
    let keys: Vec<_> = tickets.iter().map(TicketId::as_str).collect();
    let current = tickets::lock(main, &keys).await?;
    let units = tickets.iter().filter_map(|ticket| {
        let row = current.rows.get(ticket.as_str()).filter(|row| row.show == *show)?;
        let of = |text: &str| Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes());
        let id = format!("{}/{}/{}", of(show.as_str()), of(ticket.as_str()), row.version);
        let command = Command {
            source: Source::parse("holdfast/Show").expect("a short name"),
            id: EventId::parse(&id).expect("two UUIDs and a number are short"),
            input: Input::CallOff,
            trace: None,
        };
        Some(Unit {
            key: ticket.clone(),
            work: vec![Work::Command(command)],
        })
    });
    let units: Vec<_> = units.collect();
    commit::on_locked(main, &ticket::decide, current, &units).await
}

fn keys(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.ticket.as_str()).collect()
}

/// Requests from a checkout to one of its tickets, each with an id of its own.
fn unit(checkout: &Checkout, ticket: TicketId, inputs: Vec<Input>) -> Unit<Ticket> {
    let work = inputs.into_iter().map(|input| {
        let what = match &input {
            Input::Sell { .. } => "sell",
            Input::Return { .. } => "return",
            Input::Lengthen { .. } => "lengthen",
            _ => "hold",
        };
        let of = Uuid::new_v5(&Uuid::NAMESPACE_OID, ticket.as_str().as_bytes());
        Work::Command(Command {
            source: source(),
            id: id(checkout, &format!("{what}/{of}/{}", checkout.version)),
            input,
            trace: checkout.trace.clone(),
        })
    });
    Unit {
        work: work.collect(),
        key: ticket,
    }
}
