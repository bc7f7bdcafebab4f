//! The events about checkouts: which they are, and what a report of the payment provider tells.

use holdfast_schemas::{CheckoutId, DisputeId, DisputeStatus, PaymentId, Price, UserEvent, UserRefusalReason, events};

use super::{Checkout, Dispute, Fact, State};

/// The matter of an event about a checkout.
#[derive(Clone, Copy, Debug)]
pub enum Matter<'e> {
    /// A user asks for a checkout.
    Requested(&'e events::CheckoutRequested),
    /// Its buyer gives another payment method.
    Retried(&'e events::CheckoutRetried),
    /// Its buyer gives it up.
    Cancelled(&'e events::CheckoutCancelled),
    Reported(ProviderReport<'e>),
}

/// A report of the payment provider about a checkout's payment.
#[derive(Clone, Copy, Debug)]
pub struct ProviderReport<'e> {
    pub checkout: &'e CheckoutId,
    pub payment: &'e PaymentId,
    pub what: Reported<'e>,
}

/// The content of a report.
#[derive(Clone, Copy, Debug)]
pub enum Reported<'e> {
    /// The payment was authorised, with this amount, or failed.
    Progress(Option<Price>),
    Captured(Price),
    /// So much was refunded in all.
    Refunded(Price),
    Disputed {
        dispute: &'e DisputeId,
        amount: Price,
        status: DisputeStatus,
    },
}

impl<'e> Matter<'e> {
    /// None for an event that is about no checkout.
    pub fn of(event: &'e UserEvent) -> Option<Self> {
        let (checkout, payment, what) = match event {
            UserEvent::CheckoutRequested(requested) => return Some(Matter::Requested(requested)),
            UserEvent::CheckoutRetried(retried) => return Some(Matter::Retried(retried)),
            UserEvent::CheckoutCancelled(cancelled) => return Some(Matter::Cancelled(cancelled)),
            UserEvent::PaymentAuthorized(told) => {
                (&told.checkout, &told.payment, Reported::Progress(Some(told.amount)))
            }
            UserEvent::PaymentCaptured(told) => (&told.checkout, &told.payment, Reported::Captured(told.amount)),
            UserEvent::PaymentFailed(told) => (&told.checkout, &told.payment, Reported::Progress(None)),
            UserEvent::PaymentRefunded(told) => (&told.checkout, &told.payment, Reported::Refunded(told.refunded)),
            UserEvent::PaymentDisputed(told) => {
                let disputed = Reported::Disputed {
                    dispute: &told.dispute,
                    amount: told.amount,
                    status: told.status,
                };
                (&told.checkout, &told.payment, disputed)
            }
            _ => return None,
        };
        Some(Matter::Reported(ProviderReport {
            checkout,
            payment,
            what,
        }))
    }

    pub fn checkout(&self) -> &'e CheckoutId {
        match self {
            Matter::Requested(requested) => &requested.checkout,
            Matter::Retried(retried) => &retried.checkout,
            Matter::Cancelled(cancelled) => &cancelled.checkout,
            Matter::Reported(report) => report.checkout,
        }
    }
}

impl Checkout {
    /// The fact that a report brings. None about a payment under way: reports come late, twice and in any order, so they only
    /// make the driver ask the provider, and compare. `known`: the dispute that the report names, if it was heard of before.
    ///
    /// # Errors
    /// The report is about another payment or another checkout's dispute, or in another currency. The payment is unknown here
    /// while the provider's answer is on its way.
    pub fn hear(&self, report: &ProviderReport<'_>, known: Option<Dispute>) -> Result<Option<Fact>, UserRefusalReason> {
        let is_anothers = known.as_ref().is_some_and(|known| known.checkout != self.id);
        if is_anothers || self.payment.as_ref().is_some_and(|ours| ours != report.payment) {
            return Err(UserRefusalReason::PaymentDiffers);
        }
        let (amount, fact) = match report.what {
            Reported::Progress(amount) => (amount, None),
            Reported::Captured(amount) => {
                let differs = self.state == State::Completed && amount.amount() != self.due();
                (Some(amount), differs.then_some(Fact::AmountDiffers))
            }
            Reported::Refunded(refunded) if refunded.amount() > self.due() => {
                let may_be = !matches!(self.state, State::Failed(_));
                (Some(refunded), may_be.then_some(Fact::AmountDiffers))
            }
            Reported::Refunded(refunded) => {
                let in_all = refunded.amount();
                (Some(refunded), Some(Fact::Refunded { in_all }))
            }
            Reported::Disputed {
                dispute,
                amount,
                status,
            } => {
                let now = Dispute {
                    id: dispute.clone(),
                    checkout: self.id.clone(),
                    amount,
                    status,
                };
                (Some(amount), Some(Fact::Disputed { now, before: known }))
            }
        };
        match amount {
            Some(amount) if amount.currency() != self.currency() => Err(UserRefusalReason::WrongCurrency),
            _ => Ok(fact),
        }
    }
}
