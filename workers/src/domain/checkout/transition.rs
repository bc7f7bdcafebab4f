//! What a fact changes.

use holdfast_schemas::{Credits, Price, UserOutcome, outcomes};
use time::OffsetDateTime;

use super::{Checkout, Dispute, Refund, StuckReason};
use crate::domain::ledger::{Movement, MovementKind};

/// All that a fact changes: written together, against the version of the row that it was decided on, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transition {
    /// The row afterwards; none when it stays as it is.
    pub next: Option<Checkout>,
    pub outcomes: Vec<UserOutcome>,
    pub movements: Vec<Movement>,
    pub mails: Vec<CustomerMail>,
    pub seats: Seats,
    pub credits: Option<CreditsChange>,
    /// The new state of a refund.
    pub refund: Option<Refund>,
    /// The new state of a dispute.
    pub dispute: Option<Dispute>,
}

/// The effect on the checkout's tickets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seats {
    #[default]
    Kept,
    /// Each hold that was not lengthened before lasts at least until then.
    HeldUntil(OffsetDateTime),
    /// Those that the row afterwards has as returned, and did not before, are the user's no more, and are taken off the count of those
    /// that the user has bought. `resell`: they are for sale again, but for those that were withdrawn.
    Returned { resell: bool },
}

/// A change of the user's credits in the loyalty database. It stands if and only if the transition is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreditsChange {
    Spent(Credits),
    Returned(Credits),
    /// As the repayment of this number.
    Repaid {
        number: usize,
        credits: Credits,
    },
}

/// A mail to the customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CustomerMail {
    Completed,
    Failed,
    Refunded {
        amount: Price,
        /// All that was told to the customer as refunded, this one included, in minor units: another sum for each mail.
        so_far: i64,
        full: bool,
    },
}

/// The transition to a row, if it differs.
pub(super) fn row(checkout: &Checkout, next: Checkout) -> Transition {
    let next = Checkout {
        version: checkout.version,
        ..next
    };
    let next = (next != *checkout).then(|| Checkout {
        version: checkout.version + 1,
        ..next
    });
    Transition {
        next,
        ..Transition::default()
    }
}

pub(super) fn movement(kind: MovementKind, amount: i64) -> Vec<Movement> {
    match amount {
        0 => vec![],
        amount => vec![Movement { kind, amount }],
    }
}

/// Marks a checkout for an operator, who is told once.
pub(super) fn stuck(checkout: &Checkout, reason: StuckReason) -> Transition {
    if checkout.stuck.is_some() {
        return Transition::default();
    }
    let next = Checkout {
        stuck: Some(reason),
        ..checkout.clone()
    };
    Transition {
        outcomes: vec![UserOutcome::CheckoutStuck(outcomes::CheckoutStuck {
            checkout: checkout.id.clone(),
        })],
        ..row(checkout, next)
    }
}

impl Transition {
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// True if nothing but the checkout's row is written.
    pub fn is_row_alone(&self) -> bool {
        let alone = Self {
            next: self.next.clone(),
            ..Self::default()
        };
        *self == alone
    }
}
