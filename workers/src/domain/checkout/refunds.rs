//! What follows from refunds. A refund is booked when it has succeeded, and undone when it fails, which may be days later.
//!
//! The provider tells of each refund by its id, and of the total of all. Whoever tells the total alone counts what is on its way as
//! refunded; of a refund that is known by its id that is not believed until it has succeeded.
//!
//! Refunds that have succeeded can come to more than was paid: one of them has failed since, and the report of that is late. The last is
//! written down and the checkout marked for an operator, but nothing is booked of it until the others leave room. The report that one of
//! them has failed books it, and takes the mark off; where that report never comes, `settle` does.

use holdfast_schemas::{CheckoutId, Price, RefundId, RefundStatus, UserOutcome, outcomes};

use super::transition::{movement, row, stuck};
use super::{Checkout, CreditsChange, CustomerMail, Seats, State, StuckReason, Transition};
use crate::domain::ledger::MovementKind;

/// A refund of a checkout's payment, by the provider's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    pub id: RefundId,
    pub checkout: CheckoutId,
    pub amount: Price,
    pub status: RefundStatus,
}

/// The provider reports the total of refunds, so that a stale report changes nothing. What it may count of refunds that have not
/// succeeded is taken off.
pub(super) fn refunded(checkout: &Checkout, in_all: i64, known: &[Refund], frees_seats: bool) -> Transition {
    let in_all = in_all - sum(known, RefundStatus::Pending) - sum(known, RefundStatus::Failed);
    booked(checkout, in_all, frees_seats)
}

/// The provider reports a refund: it goes forward only, from pending over succeeded to failed.
pub(super) fn refund_changed(checkout: &Checkout, now: Refund, known: &[Refund], frees_seats: bool) -> Transition {
    let before = known.iter().find(|before| before.id == now.id);
    if before.is_some_and(|before| before.status >= now.status) {
        return Transition::default();
    }
    let refund = Refund {
        amount: before.map_or(now.amount, |before| before.amount),
        ..now
    };
    let amount = refund.amount.amount();
    let others = known.iter().filter(|other| other.id != refund.id);
    let succeeded = sum(others, RefundStatus::Succeeded);
    let had_succeeded = before.is_some_and(|before| before.status == RefundStatus::Succeeded);
    let was_too_much = had_succeeded && checkout.is_too_much(succeeded + amount);
    let transition = match refund.status {
        RefundStatus::Pending => Transition::default(),
        RefundStatus::Succeeded if checkout.is_too_much(succeeded + amount) => {
            stuck(checkout, StuckReason::AmountDiffers)
        }
        RefundStatus::Succeeded => booked(checkout, succeeded + amount, frees_seats),
        RefundStatus::Failed if was_too_much && !checkout.is_too_much(succeeded) => {
            made_room(checkout, &refund, succeeded, frees_seats)
        }
        RefundStatus::Failed => failed(checkout, &refund, was_booked(checkout, &refund, succeeded)),
    };
    Transition {
        refund: Some(refund),
        ..transition
    }
}

impl Checkout {
    /// True if so much cannot be refunded in all. Of a checkout that has failed it may be told: a cancelled authorisation counts as
    /// refunded where nothing was captured.
    pub(super) fn is_too_much(&self, in_all: i64) -> bool {
        in_all > self.due() && !matches!(self.state, State::Failed(_))
    }
}

fn sum<'r>(refunds: impl IntoIterator<Item = &'r Refund>, status: RefundStatus) -> i64 {
    let those = refunds.into_iter().filter(|refund| refund.status == status);
    those.map(|refund| refund.amount.amount()).sum()
}

/// So much is refunded in all. A refund before the checkout is completed is kept in the row until then; that of a failed checkout
/// was written when it failed, and is written again only in place of one that has failed since. One in full frees the seats, if it is to:
/// but not those of an order of which the shop has returned a part, as it says itself which are free.
pub(super) fn booked(checkout: &Checkout, in_all: i64, frees_seats: bool) -> Transition {
    let most = match checkout.state {
        State::Failed(_) => checkout.refunded + checkout.undone,
        _ => checkout.due(),
    };
    let refunded = in_all.min(most);
    if refunded <= checkout.refunded {
        return Transition::default();
    }
    let owed = match checkout.state {
        State::Completed => checkout.repaid_money(),
        _ => most,
    };
    let is_mended = refunded >= owed && checkout.stuck == Some(StuckReason::RefundFailed);
    let next = Checkout {
        refunded,
        stuck: checkout.stuck.filter(|_| !is_mended),
        ..checkout.clone()
    };
    let more = refunded - checkout.refunded;
    match checkout.state {
        State::Completed if refunded == checkout.due() && frees_seats && !checkout.was_returned() => Transition {
            movements: movement(MovementKind::Refund, more),
            seats: Seats::Returned { resell: true },
            ..told(
                checkout,
                Checkout {
                    state: State::Refunded,
                    ..next.without(|_| true)
                },
            )
        },
        State::Completed | State::Refunded => Transition {
            movements: movement(MovementKind::PartialRefund, more),
            ..told(checkout, next)
        },
        // It came to nothing before: nobody is told that it does so again.
        State::Failed(_) => Transition {
            movements: movement(MovementKind::PartialRefund, more),
            ..row(
                checkout,
                Checkout {
                    undone: checkout.undone - more,
                    ..next
                },
            )
        },
        _ => row(checkout, next),
    }
}

/// The transition to a row of which more is refunded, with the outcome and the mail.
fn told(checkout: &Checkout, next: Checkout) -> Transition {
    let (so_far, full) = (next.refunded + next.undone, next.refunded == next.due());
    let more = next.refunded - checkout.refunded;
    let amount = Price::new(more, checkout.currency()).expect("a part of the total");
    Transition {
        outcomes: vec![UserOutcome::PaymentRefunded(outcomes::PaymentRefunded {
            checkout: checkout.id.clone(),
            amount,
            full,
        })],
        mails: vec![CustomerMail::Refunded { amount, so_far, full }],
        ..row(checkout, next)
    }
}

/// What was booked beyond the others that have succeeded is this one, whether it was told by its id or in a total.
fn was_booked(checkout: &Checkout, refund: &Refund, others: i64) -> i64 {
    refund.amount.amount().min((checkout.refunded - others).max(0))
}

/// A refund has failed, beside which the others, which have succeeded, were too much: now they are booked, and agree with what was paid.
fn made_room(checkout: &Checkout, refund: &Refund, others: i64, frees_seats: bool) -> Transition {
    let rest = booked(checkout, others, frees_seats);
    let booked = rest.next.clone().unwrap_or_else(|| checkout.clone());
    let after = Checkout {
        version: checkout.version,
        stuck: booked.stuck.filter(|why| *why != StuckReason::AmountDiffers),
        ..booked
    };
    let failed = failed(&after, refund, was_booked(&after, refund, others));
    Transition {
        next: failed.next.or_else(|| row(checkout, after).next),
        outcomes: [failed.outcomes, rest.outcomes].concat(),
        movements: [failed.movements, rest.movements].concat(),
        ..rest
    }
}

/// A refund has failed, of which so much was booked: that is undone. Where the seats are not the user's any more, the money that came
/// back is kept for nothing, and an operator is asked for.
fn failed(checkout: &Checkout, refund: &Refund, was_booked: i64) -> Transition {
    let is_under_way = !checkout.state.has_ended();
    let was_ended_without_seats = !is_under_way && checkout.state != State::Completed;
    if was_ended_without_seats && was_booked == 0 {
        return Transition::default();
    }
    let mut next = Checkout {
        refunded: checkout.refunded - was_booked,
        ..checkout.clone()
    };
    if is_under_way {
        // Whoever gives the money back at this moment has to ask the provider anew: the row changes in any case.
        next.version += 1;
        return Transition {
            next: Some(next),
            ..Transition::default()
        };
    }
    next.undone += was_booked;
    let mut outcomes = vec![UserOutcome::PaymentRefundFailed(outcomes::PaymentRefundFailed {
        checkout: checkout.id.clone(),
        refund: refund.id.clone(),
        amount: match was_booked {
            0 => refund.amount,
            part => Price::new(part, checkout.currency()).expect("a part of the total"),
        },
        undone: was_booked > 0,
    })];
    let is_owed = checkout.lines.iter().any(|line| line.returned) && next.refunded < checkout.repaid_money();
    if was_ended_without_seats || is_owed {
        next.stuck = Some(StuckReason::RefundFailed);
        if checkout.stuck.is_none() {
            let checkout = checkout.id.clone();
            outcomes.push(UserOutcome::CheckoutStuck(outcomes::CheckoutStuck { checkout }));
        }
    }
    Transition {
        outcomes,
        movements: movement(MovementKind::RefundFailed, was_booked),
        ..row(checkout, next)
    }
}

pub(super) fn credits_returned(checkout: &Checkout) -> Transition {
    let Some(owed) = checkout.owed_credits() else {
        return Transition::default();
    };
    let next = Checkout {
        sold: false,
        ..checkout.clone()
    };
    Transition {
        movements: movement(MovementKind::CreditBack, owed.amount()),
        credits: Some(CreditsChange::Returned(owed)),
        ..row(checkout, next)
    }
}
