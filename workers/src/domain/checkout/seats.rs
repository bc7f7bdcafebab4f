//! The tickets of a checkout: the inputs that sell each, lengthen its hold, or return it.

use holdfast_schemas::HoldId;
use time::OffsetDateTime;

use super::{Checkout, Line};
use crate::domain::ticket::Input;
use crate::domain::{State as TicketState, Ticket};

/// The inputs that sell one ticket of a checkout. If its hold has ended, and the ticket is free and still the same seat at the
/// same price, it is held anew first, with the hold id `anew`. None when it cannot be sold any more.
pub fn sale(
    checkout: &Checkout,
    line: &Line,
    ticket: Option<&Ticket>,
    anew: HoldId,
    now: OffsetDateTime,
) -> Option<Vec<Input>> {
    let ticket = ticket?;
    let sell = |hold| Input::Sell {
        user: checkout.user.clone(),
        hold,
        checkout: checkout.id.clone(),
    };
    let again = || {
        let hold = Input::Reserve {
            user: checkout.user.clone(),
            hold_for: None,
            price: None,
            hold: anew,
        };
        let is_same = (&ticket.show, &ticket.seat, ticket.price) == (&line.show, &line.seat, line.price);
        is_same.then(|| vec![hold, sell(anew)])
    };
    match &ticket.state {
        TicketState::Held(hold) if now < hold.until => {
            (hold.id == line.hold && hold.user == checkout.user).then(|| vec![sell(hold.id)])
        }
        TicketState::Held(_) | TicketState::Available => again(),
        TicketState::Sold(_) | TicketState::Withdrawn => None,
    }
}

/// The input that lengthens the hold of one ticket. None when it lasts so long anyway, or was lengthened before.
pub fn lengthening(line: &Line, ticket: Option<&Ticket>, until: OffsetDateTime) -> Option<Input> {
    match &ticket?.state {
        TicketState::Held(held) if held.may_last(line.hold, until) => Some(Input::Lengthen { hold: line.hold, until }),
        _ => None,
    }
}

/// The input that returns one ticket of a checkout that has sold it; `resell`: it is for sale again. None when the ticket is no longer the
/// checkout's.
pub fn returning(checkout: &Checkout, ticket: Option<&Ticket>, resell: bool) -> Option<Input> {
    match &ticket?.state {
        TicketState::Sold(sale) if sale.checkout == checkout.id => Some(Input::Return {
            checkout: checkout.id.clone(),
            resell,
        }),
        _ => None,
    }
}
