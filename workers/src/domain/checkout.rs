//! A checkout: tickets that a user holds become theirs and are paid, or nothing happens. Each step is decided here, from the
//! checkout's row alone; each may be repeated.
//!
//! The money is authorised first, then the seats are sold, then the money is captured: should the seats be gone meanwhile, the
//! authorisation is cancelled without a charge (Stripe: "place a hold on a payment method").

use std::collections::HashSet;

use holdfast_schemas::{
    CheckoutFailure, CheckoutId, Credits, Currency, DeclineCode, HoldId, PaymentId, PaymentMethod, Price, Seat, ShowId,
    TicketId, UserId, UserRefusalReason,
};
use time::{Duration, OffsetDateTime};

use super::ticket::Input;
use super::{State as TicketState, Ticket};

/// Most tickets of one checkout.
pub const MOST_TICKETS: usize = 100;

/// Time for which the creation of a payment is retried under its idempotency key: the provider keeps keys for 24 hours (Stripe).
/// Later the payment is looked up, never made again.
const KEY_LIVES: Duration = Duration::hours(23);

/// A checkout, as its row has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkout {
    pub id: CheckoutId,
    /// Raised by every step.
    pub version: i64,
    pub user: UserId,
    pub lines: Vec<Line>,
    /// Sum of the prices of the holds.
    pub total: Price,
    /// The part of the total that credits pay.
    pub credits: Option<Credits>,
    pub method: Option<PaymentMethod>,
    pub state: State,
    /// When the first of the holds ends.
    pub until: OffsetDateTime,
    /// Moment just before the first call to the payment provider.
    pub called_at: Option<OffsetDateTime>,
    pub payment: Option<PaymentId>,
    /// Since when its next step fails: the provider does not tell the payment's state, or a setting is missing.
    pub unknown_since: Option<OffsetDateTime>,
    /// True while it waits for an operator.
    pub stuck: bool,
    /// True once the seats are sold and the credits spent.
    pub sold: bool,
    /// Refunded of the captured amount, in minor units.
    pub refunded: i64,
}

/// One ticket of a checkout, with the hold and the price at its opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub ticket: TicketId,
    pub hold: HoldId,
    pub show: ShowId,
    pub seat: Option<Seat>,
    pub price: Price,
}

/// The progress of a checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Prices and seats are fixed; the provider may have been asked for a payment.
    Opened,
    /// The payment exists at the provider; no money moves yet.
    Created,
    /// The customer must confirm the payment (3-D Secure).
    Waiting,
    /// The money is authorised.
    Authorised,
    /// The seats are sold and the credits spent; the money is to be captured.
    Sold,
    /// All that was authorised, captured, sold or spent is to be given back.
    Undoing(Failure),
    /// Paid and sold.
    Completed,
    /// Paid and sold, then refunded in full; the credits that were spent are to be returned as well.
    Refunded,
    /// Ended without a sale.
    Failed(Failure),
}

/// The reason why a checkout failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: CheckoutFailure,
    /// The provider's decline code.
    pub code: Option<DeclineCode>,
}

impl From<CheckoutFailure> for Failure {
    fn from(reason: CheckoutFailure) -> Self {
        Self { reason, code: None }
    }
}

/// The next step of a checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create the payment, under the same idempotency key at each try.
    Create,
    /// Search for the payment: the provider may have forgotten the idempotency key.
    Find,
    /// Authorise the payment.
    Authorise,
    /// Retrieve the payment's state from the provider.
    Look,
    /// Wait for an event of the provider, at most until then.
    Wait(OffsetDateTime),
    /// Sell the seats and spend the credits.
    Sell,
    /// Capture the payment.
    Capture,
    /// Write `checkout.completed`.
    Complete,
    /// Cancel or refund the payment.
    GiveBack,
    /// Free the seats, return the credits and write `checkout.failed`.
    Fail,
    /// Return the credits that paid for seats which a refund freed.
    ReturnCredits,
    /// Nothing.
    End,
}

impl Checkout {
    /// The amount that the provider charges, the total without the credits, in minor units of the total's currency.
    pub fn due(&self) -> i64 {
        self.total.amount() - self.credits.map_or(0, Credits::amount)
    }

    pub fn currency(&self) -> Currency {
        self.total.currency()
    }

    /// True while the provider still knows the idempotency key, so that a repeated creation returns the same payment.
    pub fn key_lives(&self, now: OffsetDateTime) -> bool {
        self.called_at.is_some_and(|called| now - called < KEY_LIVES)
    }

    /// The next step of a checkout.
    pub fn next(&self, now: OffsetDateTime) -> Step {
        let is_late = now >= self.until;
        match &self.state {
            State::Opened if self.due() == 0 => Step::Sell,
            State::Opened if self.called_at.is_none() && is_late => Step::Look,
            State::Opened if self.called_at.is_none() || self.key_lives(now) => Step::Create,
            State::Opened => Step::Find,
            // Too late to authorise; but an earlier call may have authorised the payment.
            State::Created if is_late => Step::Look,
            State::Created => Step::Authorise,
            State::Waiting if !is_late => Step::Wait(self.until),
            State::Waiting => Step::Look,
            State::Authorised => Step::Sell,
            State::Sold if self.due() == 0 => Step::Complete,
            State::Sold => Step::Capture,
            State::Undoing(_) if self.called_at.is_some() => Step::GiveBack,
            State::Undoing(_) => Step::Fail,
            State::Refunded if self.sold && self.credits.is_some() => Step::ReturnCredits,
            State::Completed | State::Refunded | State::Failed(_) => Step::End,
        }
    }
}

/// The request for a checkout.
pub struct Wish<'a> {
    pub id: &'a CheckoutId,
    pub user: &'a UserId,
    pub tickets: &'a [TicketId],
    pub credits: Option<Credits>,
    pub method: Option<&'a PaymentMethod>,
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

/// Opens a checkout of tickets that the user holds, at the prices of the holds. `ticket` finds the row of a ticket, `bought`
/// counts the tickets of a show that the user has bought before.
///
/// # Errors
/// The rule that forbids it.
pub fn open<'t>(
    wish: &Wish<'_>,
    terms: SaleTerms,
    ticket: impl Fn(&TicketId) -> Option<&'t Ticket>,
    bought: impl Fn(&ShowId) -> i32,
    now: OffsetDateTime,
) -> Result<Checkout, UserRefusalReason> {
    use UserRefusalReason as No;
    let different: HashSet<_> = wish.tickets.iter().collect();
    match wish.tickets.len() {
        0 => return Err(No::EmptyCart),
        count if different.len() < count => return Err(No::TicketTwice),
        count if count > MOST_TICKETS => return Err(No::TooManyTickets),
        _ => {}
    }
    let held = wish.tickets.iter().map(|id| {
        let found = ticket(id).ok_or(No::NotYourHold)?;
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
    let held: Vec<(Line, OffsetDateTime)> = held.collect::<Result<_, _>>()?;
    let until = held.iter().map(|(_, until)| *until).min().ok_or(No::EmptyCart)?;
    let lines: Vec<Line> = held.into_iter().map(|(line, _)| line).collect();
    let total = total(&lines)?;
    let over = |limit: i32| {
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
    let checkout = Checkout {
        id: wish.id.clone(),
        version: 1,
        user: wish.user.clone(),
        lines,
        total,
        credits: wish.credits,
        method: wish.method.cloned(),
        state: State::Opened,
        until,
        called_at: None,
        payment: None,
        unknown_since: None,
        stuck: false,
        sold: false,
        refunded: 0,
    };
    match checkout.due() {
        0 => Ok(checkout),
        _ if !terms.provider => Err(No::NoProvider),
        _ if checkout.method.is_none() => Err(No::NoPaymentMethod),
        _ => Ok(checkout),
    }
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
pub fn shows(lines: &[Line]) -> Vec<(&ShowId, i32)> {
    let mut shows: Vec<(&ShowId, i32)> = Vec::new();
    for line in lines {
        match shows.iter_mut().find(|(show, _)| *show == &line.show) {
            Some((_, count)) => *count += 1,
            None => shows.push((&line.show, 1)),
        }
    }
    shows
}

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

#[cfg(test)]
mod tests {
    use holdfast_schemas::{EventId, Source};

    use super::*;

    const MINUTE: Duration = Duration::minutes(1);

    fn now() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::days(20_000)
    }

    fn price(amount: i64) -> Price {
        Price::new(amount, Currency::EUR).unwrap()
    }

    fn line() -> Line {
        Line {
            ticket: TicketId::parse("A1").unwrap(),
            hold: hold("1"),
            show: ShowId::parse("gala").unwrap(),
            seat: None,
            price: price(100),
        }
    }

    fn hold(number: &str) -> HoldId {
        let (source, id) = (Source::parse("shop").unwrap(), EventId::parse(number).unwrap());
        holdfast_schemas::hold_id(source.as_str(), id.as_str(), "A1")
    }

    fn user(name: &str) -> UserId {
        UserId::parse(name).unwrap()
    }

    fn ticket(state: TicketState) -> Ticket {
        Ticket {
            version: 2,
            show: ShowId::parse("gala").unwrap(),
            seat: None,
            price: price(100),
            state,
            changed_at: now(),
        }
    }

    fn held(by: &str, number: &str, until: OffsetDateTime) -> Ticket {
        ticket(TicketState::Held(crate::domain::Hold {
            id: hold(number),
            user: user(by),
            until,
        }))
    }

    fn checkout(state: State) -> Checkout {
        Checkout {
            id: CheckoutId::parse("c-1").unwrap(),
            version: 1,
            user: user("ann"),
            lines: vec![line()],
            total: price(100),
            credits: None,
            method: None,
            state,
            until: now() + MINUTE,
            called_at: None,
            payment: None,
            unknown_since: None,
            stuck: false,
            sold: false,
            refunded: 0,
        }
    }

    #[test]
    fn a_payment_is_made_within_its_keys_life_and_looked_up_afterwards() {
        let called = |ago: Duration| Checkout {
            called_at: Some(now() - ago),
            ..checkout(State::Opened)
        };
        assert_eq!(checkout(State::Opened).next(now()), Step::Create);
        assert_eq!(called(Duration::hours(22)).next(now()), Step::Create);
        assert_eq!(called(Duration::hours(23)).next(now()), Step::Find);
        assert!(called(Duration::hours(22)).key_lives(now()) && !called(Duration::hours(23)).key_lives(now()));
    }

    #[test]
    fn no_money_is_asked_for_once_a_hold_has_ended() {
        let late = now() + MINUTE;
        for state in [State::Opened, State::Created, State::Waiting] {
            assert_eq!(checkout(state.clone()).next(late), Step::Look, "{state:?}");
        }
        // It was authorised in time: the seats are sold if they are free.
        assert_eq!(checkout(State::Authorised).next(late), Step::Sell);
        assert_eq!(checkout(State::Waiting).next(now()), Step::Wait(late));
    }

    #[test]
    fn what_the_provider_was_never_asked_for_it_is_not_asked_to_give_back() {
        let failing = State::Undoing(CheckoutFailure::Cancelled.into());
        assert_eq!(checkout(failing.clone()).next(now()), Step::Fail);
        let called = Checkout {
            called_at: Some(now()),
            ..checkout(failing)
        };
        assert_eq!(called.next(now()), Step::GiveBack);
    }

    #[test]
    fn credits_that_pay_all_need_no_provider() {
        let paid = |state| Checkout {
            credits: Credits::new(100).ok(),
            ..checkout(state)
        };
        assert_eq!(paid(State::Opened).next(now()), Step::Sell);
        assert_eq!(paid(State::Sold).next(now()), Step::Complete);
        let refunded = Checkout {
            sold: true,
            ..paid(State::Refunded)
        };
        assert_eq!(refunded.next(now()), Step::ReturnCredits);
        assert_eq!(paid(State::Refunded).next(now()), Step::End);
    }

    #[test]
    fn a_seat_is_sold_out_of_its_hold_or_held_anew_where_it_is_free_and_the_same() {
        let checkout = checkout(State::Authorised);
        let sold = |ticket: &Ticket| {
            let inputs = sale(&checkout, &line(), Some(ticket), hold("anew"), now());
            inputs.map(|inputs| inputs.len())
        };
        assert_eq!(sold(&held("ann", "1", now() + MINUTE)), Some(1));
        assert_eq!(sold(&held("ann", "1", now())), Some(2), "the hold has ended");
        assert_eq!(sold(&ticket(TicketState::Available)), Some(2));
        let free = || ticket(TicketState::Available);
        let dearer = Ticket {
            price: price(101),
            ..free()
        };
        let other_seat = Ticket {
            seat: Some("Z9".parse().unwrap()),
            ..free()
        };
        let other_show = Ticket {
            show: ShowId::parse("matinee").unwrap(),
            ..free()
        };
        for another in [dearer, other_seat, other_show] {
            assert_eq!(sold(&another), None, "{another:?}");
        }
        assert_eq!(sold(&held("bob", "2", now() + MINUTE)), None);
        assert_eq!(
            sold(&held("ann", "2", now() + MINUTE)),
            None,
            "another hold of the same user"
        );
        assert_eq!(sold(&ticket(TicketState::Withdrawn)), None);
        assert!(sale(&checkout, &line(), None, hold("anew"), now()).is_none());
    }
}
