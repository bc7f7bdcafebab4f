//! The tickets of a checkout: the inputs that sell each, or free it.

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

/// The input that frees one ticket of a checkout that failed: it releases the hold or returns the sale. None when the ticket
/// is no longer the checkout's.
pub fn freeing(checkout: &Checkout, line: &Line, ticket: Option<&Ticket>, now: OffsetDateTime) -> Option<Input> {
    match &ticket?.state {
        TicketState::Held(hold) if hold.id == line.hold && now < hold.until => Some(Input::Release {
            user: checkout.user.clone(),
            hold: line.hold,
        }),
        TicketState::Sold(sale) if sale.checkout == checkout.id => Some(Input::Return {
            checkout: checkout.id.clone(),
        }),
        _ => None,
    }
}
