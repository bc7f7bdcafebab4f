//! The opening of a checkout.

use std::collections::{HashMap, HashSet};

use holdfast_schemas::{
    CheckoutId, Credits, Currency, PaymentMethod, Price, ShowId, TicketId, UserId, UserOutcome, UserRefusalReason,
    outcomes,
};
use time::OffsetDateTime;

use super::{Checkout, Line, State, Transition};
use crate::domain::{State as TicketState, Ticket};

/// Most tickets of one checkout.
pub const MOST_TICKETS: usize = 100;

/// The request for a checkout.
pub struct Wish<'a> {
    pub id: &'a CheckoutId,
    pub user: &'a UserId,
    /// Absent: all tickets in the cart.
    pub named: Option<&'a [TicketId]>,
    pub cart: &'a [TicketId],
    pub credits: Option<Credits>,
    pub method: Option<&'a PaymentMethod>,
}

impl Wish<'_> {
    pub fn tickets(&self) -> &[TicketId] {
        self.named.unwrap_or(self.cart)
    }

    /// True if an open checkout can come from this request, where its other data are the same: the tickets that it did not name
    /// have left the cart.
    pub fn is_met_by(&self, checkout: &Checkout) -> bool {
        let is_bought = |ticket: &TicketId| checkout.lines.iter().any(|line| line.ticket == *ticket);
        self.named.is_some() || self.cart.iter().all(is_bought)
    }
}

/// The settings of the installation that the rules need.
#[derive(Clone, Copy, Debug)]
pub struct SaleTerms {
    /// True if there is a payment provider.
    pub provider: bool,
    /// The currency that credits can pay, if there is a loyalty database.
    pub credits: Option<Currency>,
    /// The most tickets of one show that one user may have.
    pub show_limit: Option<i32>,
}

/// The rows that a request for a checkout is decided on.
#[derive(Default)]
pub struct Stock {
    pub tickets: HashMap<String, Ticket>,
    /// The tickets of each show that the user has bought before.
    pub bought: HashMap<String, i32>,
    /// Another checkout buys one of the tickets' holds.
    pub under_way: bool,
}

/// Opens a checkout of tickets that the user holds, at the prices of the holds.
///
/// # Errors
/// The rule that forbids it.
pub fn open(
    wish: &Wish<'_>,
    terms: SaleTerms,
    stock: &Stock,
    now: OffsetDateTime,
) -> Result<Transition, UserRefusalReason> {
    use UserRefusalReason as No;
    let (lines, until) = held(wish, &stock.tickets, now)?;
    let total = total(&lines)?;
    let over = |limit: i32| {
        let bought = |show: &ShowId| stock.bought.get(show.as_str()).copied().unwrap_or(0);
        shows(&lines)
            .into_iter()
            .any(|(show, count)| bought(show) + count > limit)
    };
    if terms.show_limit.is_some_and(over) {
        return Err(No::ShowLimit);
    }
    if let Some(credits) = wish.credits {
        match terms.credits {
            None => return Err(No::NoLoyalty),
            Some(currency) if currency != total.currency() => return Err(No::CreditsCurrency),
            Some(_) if credits.amount() > total.amount() => return Err(No::CreditsTooMany),
            Some(_) => {}
        }
    }
    let mut checkout = Checkout {
        id: wish.id.clone(),
        version: 1,
        user: wish.user.clone(),
        lines,
        total,
        credits: wish.credits,
        method: wish.method.cloned(),
        attempt: 0,
        state: State::Opened,
        until,
        called_at: None,
        payment: None,
        unknown_since: None,
        stuck: None,
        sold: false,
        refunded: 0,
        undone: 0,
    };
    checkout.called_at = (checkout.due() > 0).then_some(now);
    match checkout.due() {
        0 => {}
        _ if !terms.provider => return Err(No::NoProvider),
        _ if checkout.method.is_none() => return Err(No::NoPaymentMethod),
        _ => {}
    }
    if stock.under_way {
        return Err(No::CheckoutUnderWay);
    }
    let told = UserOutcome::CheckoutOpened(outcomes::CheckoutOpened {
        checkout: checkout.id.clone(),
        tickets: checkout.lines.iter().map(|line| line.ticket.clone()).collect(),
        total,
        credits: checkout.credits,
    });
    Ok(Transition {
        next: Some(checkout),
        outcomes: vec![told],
        ..Transition::default()
    })
}

/// The tickets that the request is about, each held by the user, and the moment when the first of the holds ends.
fn held(
    wish: &Wish<'_>,
    tickets: &HashMap<String, Ticket>,
    now: OffsetDateTime,
) -> Result<(Vec<Line>, OffsetDateTime), UserRefusalReason> {
    use UserRefusalReason as No;
    let different: HashSet<_> = wish.tickets().iter().collect();
    match wish.tickets().len() {
        count if different.len() < count => return Err(No::TicketTwice),
        count if count > MOST_TICKETS => return Err(No::TooManyTickets),
        _ => {}
    }
    let held = wish.tickets().iter().map(|id| {
        let found = tickets.get(id.as_str()).ok_or(No::NotYourHold)?;
        let TicketState::Held(hold) = &found.state else {
            return Err(No::NotYourHold);
        };
        if hold.user != *wish.user || hold.until <= now {
            return Err(No::NotYourHold);
        }
        let line = Line {
            ticket: id.clone(),
            hold: hold.id,
            show: found.show.clone(),
            seat: found.seat.clone(),
            price: found.price,
        };
        Ok((line, hold.until))
    });
    let (lines, ends): (Vec<Line>, Vec<OffsetDateTime>) = held.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    let until = ends.into_iter().min().ok_or(No::EmptyCart)?;
    Ok((lines, until))
}

fn total(lines: &[Line]) -> Result<Price, UserRefusalReason> {
    let currency = lines.first().ok_or(UserRefusalReason::EmptyCart)?.price.currency();
    if lines.iter().any(|line| line.price.currency() != currency) {
        return Err(UserRefusalReason::CurrenciesDiffer);
    }
    // At most 100 prices of at most 10^12 each: far from the bounds of the type.
    let sum = lines.iter().map(|line| line.price.amount()).sum();
    Price::new(sum, currency).map_err(|_| UserRefusalReason::TotalTooHigh)
}

/// Number of tickets of each show, in order.
pub(super) fn shows(lines: &[Line]) -> Vec<(&ShowId, i32)> {
    let mut shows: Vec<(&ShowId, i32)> = Vec::new();
    for line in lines {
        match shows.iter_mut().find(|(show, _)| *show == &line.show) {
            Some((_, count)) => *count += 1,
            None => shows.push((&line.show, 1)),
        }
    }
    shows
}
