//! What follows from disputes. A dispute has its status, which the bank decides, and its money, which moves when the provider says
//! so: an inquiry takes none, and a dispute that is lost may have taken none yet.

use holdfast_schemas::{CheckoutId, DisputeFunds, DisputeId, DisputeStatus, Price, UserOutcome, outcomes};

use super::transition::movement;
use super::{Checkout, Transition};
use crate::domain::ledger::{Movement, MovementKind};

/// A dispute of a checkout's payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    pub id: DisputeId,
    pub checkout: CheckoutId,
    pub amount: Price,
    pub status: DisputeStatus,
    /// Where the money is; none while nothing was taken. In a report: what it says of money, if anything.
    pub funds: Option<DisputeFunds>,
}

impl Dispute {
    /// True if the bank has taken the money, and decided for the customer.
    pub fn has_lost_money(&self) -> bool {
        (self.status, self.funds) == (DisputeStatus::Lost, Some(DisputeFunds::Withdrawn))
    }
}

/// Reports come late, twice and in any order: status and money each go forward only. The amount at which the money was taken
/// stands.
pub(super) fn disputed(checkout: &Checkout, now: Dispute, before: Option<Dispute>) -> Transition {
    let dispute = match &before {
        None => now,
        Some(before) => Dispute {
            amount: if before.funds.is_some() {
                before.amount
            } else {
                now.amount
            },
            status: later(before.status, now.status),
            funds: before.funds.max(now.funds),
            ..now
        },
    };
    if before
        .as_ref()
        .is_some_and(|before| (before.status, before.funds) == (dispute.status, dispute.funds))
    {
        return Transition::default();
    }
    Transition {
        outcomes: vec![UserOutcome::PaymentDisputed(outcomes::PaymentDisputed {
            checkout: checkout.id.clone(),
            dispute: dispute.id.clone(),
            amount: dispute.amount,
            status: dispute.status,
            funds: dispute.funds,
        })],
        movements: movements(before.as_ref(), &dispute),
        dispute: Some(dispute),
        ..Transition::default()
    }
}

/// A decision stands. An inquiry may become a dispute, also after it was closed.
fn later(before: DisputeStatus, now: DisputeStatus) -> DisputeStatus {
    match before {
        DisputeStatus::Won | DisputeStatus::Lost => before,
        _ => before.max(now),
    }
}

/// The ledger gets what was not booked before, in the order in which it must have happened.
fn movements(before: Option<&Dispute>, now: &Dispute) -> Vec<Movement> {
    let had = before.and_then(|before| before.funds);
    let was_lost = had.is_some() && before.is_some_and(|before| before.status == DisputeStatus::Lost);
    let is_back = now.funds == Some(DisputeFunds::Reinstated);
    let kinds = [
        (had.is_none() && now.funds.is_some(), MovementKind::Dispute),
        (is_back && had < now.funds && !was_lost, MovementKind::DisputeWon),
        (is_back && had < now.funds && was_lost, MovementKind::DisputeRegained),
        (
            now.funds == Some(DisputeFunds::Withdrawn) && now.status == DisputeStatus::Lost && !was_lost,
            MovementKind::DisputeLost,
        ),
    ];
    let due = kinds.into_iter().filter(|(is_due, _)| *is_due);
    due.flat_map(|(_, kind)| movement(kind, now.amount.amount())).collect()
}
