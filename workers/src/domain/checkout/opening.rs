//! The opening of a checkout.

use std::collections::{HashMap, HashSet};

use holdfast_schemas::{
    CheckoutId, Credits, Currency, PaymentMethod, Price, ShowId, TicketId, Traceparent, UserId, UserOutcome,
    UserRefusalReason, outcomes,
};
use time::{Duration, OffsetDateTime};

use super::{Checkout, Line, Seats, State, Transition};
use crate::domain::{Hold, State as TicketState, Ticket};

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
    pub trace: Option<&'a Traceparent>,
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

/// Whether the payment provider charges, or refunds, an amount; else the reason why it never does.
pub type Charges = fn(Price) -> Result<(), UserRefusalReason>;

/// The settings of the installation that the rules need.
#[derive(Clone, Copy, Debug)]
pub struct SaleTerms {
    /// Which amounts the payment provider charges, if there is one.
    pub charges: Option<Charges>,
    /// Which amounts it refunds.
    pub refunds: Charges,
    /// The currency that credits can pay, if there is a loyalty database.
    pub credits: Option<Currency>,
    /// The most tickets of one show that one user may have.
    pub show_limit: Option<i32>,
    /// A refund in full, made by hand at the provider, frees the seats.
    pub refund_frees_seats: bool,
    /// The time for which holds last at least when a checkout opens.
    pub hold: Duration,
}

/// The rows that a request for a checkout is decided on.
#[derive(Default)]
pub struct Stock {
    pub tickets: HashMap<String, Ticket>,
    /// The tickets of each show that the user has bought before. Only a limit asks for them.
    pub bought: HashMap<String, i32>,
    /// The user's credits, where some are to be spent and the loyalty database tells. A hint: the sale takes what is there then.
    pub credits: Option<i64>,
    /// Another checkout buys one of the tickets' holds.
    pub under_way: bool,
    /// The money for the tickets' shows goes to different accounts at the provider.
    pub accounts_differ: bool,
}

impl Checkout {
    /// The first state of a checkout for which nobody pays yet.
    pub(crate) fn new(id: &CheckoutId, user: &UserId, lines: Vec<Line>, total: Price, until: OffsetDateTime) -> Self {
        Self {
            id: id.clone(),
            version: 1,
            user: user.clone(),
            lines,
            total,
            credits: None,
            method: None,
            attempt: 0,
            state: State::Opened,
            until,
            called_at: None,
            payment: None,
            ask_at: None,
            unknown_since: None,
            stuck: None,
            sold: false,
            refunded: 0,
            undone: 0,
            repayments: vec![],
            trace: None,
        }
    }
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
    let at_least = now + terms.hold;
    let (lines, holds): (Vec<Line>, Vec<&Hold>) = held(wish, &stock.tickets, now)?.into_iter().unzip();
    let is_short = |hold: &&Hold| hold.may_last(hold.id, at_least);
    let ends = holds
        .iter()
        .map(|hold| if is_short(hold) { at_least } else { hold.until });
    let until = ends.min().ok_or(No::EmptyCart)?;
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
            Some(_) if stock.credits.is_some_and(|there| there < credits.amount()) => {
                return Err(No::CreditsMissing);
            }
            Some(_) => {}
        }
    }
    let mut checkout = Checkout {
        credits: wish.credits,
        method: wish.method.cloned(),
        trace: wish.trace.cloned(),
        ..Checkout::new(wish.id, wish.user, lines, total, until)
    };
    checkout.called_at = (checkout.due() > 0).then_some(now);
    if checkout.due() > 0 {
        let charges = terms.charges.ok_or(No::NoProvider)?;
        let due = Price::new(checkout.due(), checkout.currency()).map_err(|_| No::TotalTooHigh)?;
        charges(due)?;
        if checkout.method.is_none() {
            return Err(No::NoPaymentMethod);
        }
        if stock.accounts_differ {
            return Err(No::AccountsDiffer);
        }
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
        seats: match holds.iter().any(is_short) {
            true => Seats::HeldUntil(at_least),
            false => Seats::Kept,
        },
        ..Transition::default()
    })
}

/// The tickets that the request is about, each with the user's hold.
fn held<'s>(
    wish: &Wish<'_>,
    tickets: &'s HashMap<String, Ticket>,
    now: OffsetDateTime,
) -> Result<Vec<(Line, &'s Hold)>, UserRefusalReason> {
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
            price: hold.price.unwrap_or(found.price),
            returned: false,
        };
        Ok((line, hold))
    });
    held.collect()
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
pub fn shows<'l>(lines: impl IntoIterator<Item = &'l Line>) -> Vec<(&'l ShowId, i32)> {
    let mut shows: Vec<(&ShowId, i32)> = Vec::new();
    for line in lines {
        match shows.iter_mut().find(|(show, _)| *show == &line.show) {
            Some((_, count)) => *count += 1,
            None => shows.push((&line.show, 1)),
        }
    }
    shows
}
