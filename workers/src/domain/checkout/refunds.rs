//! What follows from refunds and disputes.

use holdfast_schemas::{DisputeStatus, Price, UserOutcome, outcomes};

use super::transition::{movement, row};
use super::{Checkout, CreditsChange, CustomerMail, Dispute, Purchases, Seats, State, Transition};
use crate::domain::ledger::MovementKind;

/// The provider reports the total of refunds, so that a stale report changes nothing. A refund before the checkout is completed
/// is kept in the row until then; that of a failed checkout was written when it failed.
pub(super) fn refunded(checkout: &Checkout, in_all: i64) -> Transition {
    let so_far = in_all.min(checkout.due());
    if so_far <= checkout.refunded {
        return Transition::default();
    }
    let full = so_far == checkout.due();
    let state = match checkout.state {
        State::Refunded | State::Failed(_) => return Transition::default(),
        State::Completed if full => State::Refunded,
        _ => checkout.state.clone(),
    };
    let next = Checkout {
        refunded: so_far,
        state,
        ..checkout.clone()
    };
    if checkout.state != State::Completed {
        return row(checkout, next);
    }
    let more = so_far - checkout.refunded;
    let amount = Price::new(more, checkout.currency()).expect("a part of the total");
    let freed = (Seats::Returned, Purchases::TakenOff);
    let (seats, purchases) = if full { freed } else { Default::default() };
    Transition {
        outcomes: vec![UserOutcome::PaymentRefunded(outcomes::PaymentRefunded {
            checkout: checkout.id.clone(),
            amount,
            full,
        })],
        movements: movement(
            if full {
                MovementKind::Refund
            } else {
                MovementKind::PartialRefund
            },
            more,
        ),
        mails: vec![CustomerMail::Refunded { amount, so_far, full }],
        seats,
        purchases,
        ..row(checkout, next)
    }
}

/// A dispute is opened, then won or lost; a stale report changes nothing. The amount that was booked when it was opened stands.
pub(super) fn disputed(checkout: &Checkout, now: Dispute, before: Option<Dispute>) -> Transition {
    let is_news = match before.as_ref().map(|before| before.status) {
        None => true,
        Some(DisputeStatus::Opened) => now.status != DisputeStatus::Opened,
        Some(DisputeStatus::Won | DisputeStatus::Lost) => false,
    };
    if !is_news {
        return Transition::default();
    }
    let dispute = Dispute {
        amount: before.as_ref().map_or(now.amount, |before| before.amount),
        ..now
    };
    let amount = dispute.amount.amount();
    let opened = match before {
        None => movement(MovementKind::Dispute, amount),
        Some(_) => vec![],
    };
    let decided = match dispute.status {
        DisputeStatus::Opened => vec![],
        DisputeStatus::Won => movement(MovementKind::DisputeWon, amount),
        DisputeStatus::Lost => movement(MovementKind::DisputeLost, amount),
    };
    Transition {
        outcomes: vec![UserOutcome::PaymentDisputed(outcomes::PaymentDisputed {
            checkout: checkout.id.clone(),
            dispute: dispute.id.clone(),
            amount: dispute.amount,
            status: dispute.status,
        })],
        movements: [opened, decided].concat(),
        dispute: Some(dispute),
        ..Transition::default()
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
