//! Returns of orders from the shop's side: seats are taken back, and money or credits given back, as the shop says. The seats are the
//! user's no more at once; each amount is a repayment, which a step of its own makes.

use holdfast_schemas::{Credits, Price, TicketId, UserOutcome, UserRefusalReason, events, outcomes};

use super::refunds::refund_changed;
use super::transition::{movement, row};
use super::{Charges, Checkout, CreditsChange, Fact, Refund, Seats, State, Step, Transition};
use crate::domain::ledger::MovementKind;

/// What a return takes and gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returning {
    pub tickets: Vec<TicketId>,
    /// Minor units of the total's currency.
    pub money: i64,
    pub credits: i64,
    /// Whether the tickets are for sale again.
    pub resell: bool,
}

/// Something that a return gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repayment {
    pub what: Repaid,
    /// True once the provider has been asked for the refund, or the credits are returned.
    pub settled: bool,
}

/// What is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repaid {
    /// Minor units of the total's currency.
    Money(i64),
    Credits(Credits),
}

impl Checkout {
    /// The fact in an event by which the shop returns the order. `refunds`: which amounts the payment provider refunds.
    ///
    /// # Errors
    /// There is no such order, it has not these tickets, so much was not paid, or the provider never refunds the amount.
    pub fn hear_of_return(&self, asked: &events::OrderReturned, refunds: Charges) -> Result<Fact, UserRefusalReason> {
        if !matches!(self.state, State::Completed | State::Refunded) {
            return Err(UserRefusalReason::NotCompleted);
        }
        let is_unknown = |ticket: &TicketId| !self.given().any(|line| line.ticket == *ticket);
        let named = asked.tickets.as_deref().unwrap_or_default();
        if named.iter().any(is_unknown) {
            return Err(UserRefusalReason::NotInOrder);
        }
        let is_meant = |ticket: &TicketId| asked.tickets.is_none() || named.contains(ticket);
        let lines: Vec<_> = self.given().filter(|line| is_meant(&line.ticket)).collect();
        let (money_left, credits_left) = self.left();
        let left = money_left + credits_left;
        let amount = match asked.refund {
            Some(refund) if refund.currency() != self.currency() => return Err(UserRefusalReason::WrongCurrency),
            Some(refund) if refund.amount() > left => return Err(UserRefusalReason::RefundTooHigh),
            Some(refund) => refund.amount(),
            None => left.min(lines.iter().map(|line| line.price.amount()).sum()),
        };
        if lines.is_empty() && amount == 0 {
            return Err(UserRefusalReason::NothingToReturn);
        }
        let money = amount.min(money_left);
        if money > 0 {
            refunds(Price::new(money, self.currency()).expect("a part of the total"))?;
        }
        Ok(Fact::OrderReturned(Returning {
            tickets: lines.into_iter().map(|line| line.ticket.clone()).collect(),
            money,
            credits: amount - money,
            resell: asked.resell,
        }))
    }

    /// The tickets that are the buyer's.
    fn given(&self) -> impl Iterator<Item = &super::Line> {
        let is_given = self.state == State::Completed;
        self.lines.iter().filter(move |line| is_given && !line.returned)
    }

    /// The money and the credits that were paid, and not given back.
    fn left(&self) -> (i64, i64) {
        let money = self.due() - self.refunded.max(self.repaid_money());
        match self.state {
            // The rest of the credits is owed, or returned.
            State::Refunded => (money, 0),
            _ => (money, self.credits_left()),
        }
    }

    /// The money that returns give back, refunded or not.
    pub(super) fn repaid_money(&self) -> i64 {
        let money = self.repayments.iter().map(|repayment| match repayment.what {
            Repaid::Money(amount) => amount,
            Repaid::Credits(_) => 0,
        });
        money.sum()
    }

    /// The credits that were spent, and that no return gives back.
    pub(super) fn credits_left(&self) -> i64 {
        let credits = self.repayments.iter().map(|repayment| match repayment.what {
            Repaid::Credits(credits) => credits.amount(),
            Repaid::Money(_) => 0,
        });
        self.credits.map_or(0, Credits::amount) - credits.sum::<i64>()
    }

    /// True once the shop has returned a part of the order, or all of it.
    pub(super) fn was_returned(&self) -> bool {
        !self.repayments.is_empty() || self.lines.iter().any(|line| line.returned)
    }

    /// True while a repayment is to be made.
    pub fn owes_repayments(&self) -> bool {
        self.repaying().is_some()
    }

    /// The step that makes the first repayment that is open.
    pub(super) fn repaying(&self) -> Option<Step> {
        let (place, open) = self
            .repayments
            .iter()
            .enumerate()
            .find(|(_, repayment)| !repayment.settled)?;
        let number = place + 1;
        Some(match open.what {
            Repaid::Money(amount) => Step::Refund { number, amount },
            Repaid::Credits(_) => Step::RepayCredits(number),
        })
    }

    /// The repayment of this number, if it is open, and the checkout once it is settled.
    fn settling(&self, number: usize) -> Option<(Repaid, Self)> {
        if !matches!(self.state, State::Completed | State::Refunded) {
            return None;
        }
        let place = number.checked_sub(1)?;
        let open = self.repayments.get(place).filter(|repayment| !repayment.settled)?;
        let mut next = self.clone();
        next.repayments[place].settled = true;
        next.unknown_since = None;
        Some((open.what, next))
    }
}

/// The shop returns the order, as far as it is not returned before.
pub(super) fn order_returned(checkout: &Checkout, asked: Returning) -> Transition {
    if !matches!(checkout.state, State::Completed | State::Refunded) {
        return Transition::default();
    }
    let (money_left, credits_left) = checkout.left();
    let (money, credits) = (asked.money.min(money_left), asked.credits.min(credits_left));
    let given = checkout.given().map(|line| line.ticket.clone());
    let tickets: Vec<_> = given.filter(|ticket| asked.tickets.contains(ticket)).collect();
    let mut next = checkout.without(|line| tickets.contains(&line.ticket));
    let credits = Credits::new(credits).ok().filter(|credits| credits.amount() > 0);
    let repaid = [
        (money > 0).then_some(Repaid::Money(money)),
        credits.map(Repaid::Credits),
    ];
    let repaid = repaid.into_iter().flatten();
    next.repayments
        .extend(repaid.map(|what| Repayment { what, settled: false }));
    let transition = row(checkout, next);
    if transition.is_nothing() {
        return transition;
    }
    let seats = match tickets.is_empty() {
        true => Seats::Kept,
        false => Seats::Returned { resell: asked.resell },
    };
    Transition {
        outcomes: vec![UserOutcome::OrderReturned(outcomes::OrderReturned {
            checkout: checkout.id.clone(),
            tickets,
            refund: Price::new(money.max(0), checkout.currency()).expect("a part of the total"),
            credits,
            resell: asked.resell,
        })],
        seats,
        ..transition
    }
}

/// The provider was asked for the refund of a repayment, and has made this one; none where nothing was left to refund.
pub(super) fn refund_made(checkout: &Checkout, number: usize, made: Option<(Refund, Vec<Refund>)>) -> Transition {
    let Some((Repaid::Money(_), settled)) = checkout.settling(number) else {
        return Transition::default();
    };
    let heard = made.map(|(now, known)| refund_changed(&settled, now, &known, false));
    let heard = heard.unwrap_or_default();
    let next = heard.next.unwrap_or(settled);
    Transition {
        next: row(checkout, next).next,
        ..heard
    }
}

/// The credits of a repayment are returned, within the transaction that writes this.
pub(super) fn credits_repaid(checkout: &Checkout, number: usize) -> Transition {
    let Some((Repaid::Credits(credits), settled)) = checkout.settling(number) else {
        return Transition::default();
    };
    Transition {
        movements: movement(MovementKind::CreditBack, credits.amount()),
        credits: Some(CreditsChange::Repaid { number, credits }),
        ..row(checkout, settled)
    }
}
