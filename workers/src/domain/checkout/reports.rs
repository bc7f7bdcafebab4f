//! The events about checkouts: which they are, and what a report of the payment provider tells.

use holdfast_schemas::{
    CheckoutId, DisputeFunds, DisputeId, DisputeStatus, PaymentId, Price, RefundId, RefundStatus, UserEvent,
    UserRefusalReason, events,
};

use super::{Checkout, Dispute, Fact, Refund, State};

/// The matter of an event about a checkout.
#[derive(Clone, Copy, Debug)]
pub enum Matter<'e> {
    /// A user asks for a checkout.
    Requested(&'e events::CheckoutRequested),
    /// Its buyer gives another payment method.
    Retried(&'e events::CheckoutRetried),
    /// Its buyer gives it up.
    Cancelled(&'e events::CheckoutCancelled),
    /// The shop returns the order.
    Returned(&'e events::OrderReturned),
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
    /// How one refund stands.
    RefundChanged {
        refund: &'e RefundId,
        amount: Price,
        status: RefundStatus,
    },
    Disputed {
        dispute: &'e DisputeId,
        amount: Price,
        status: DisputeStatus,
        funds: Option<DisputeFunds>,
    },
}

/// What is known of the refunds and disputes that a report may be about, read under the checkout's lock.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The refunds of the checkout, and the one that the report names.
    pub refunds: Vec<Refund>,
    /// The dispute that the report names, if it was heard of before.
    pub dispute: Option<Dispute>,
    /// The setting: a refund in full frees the seats.
    pub frees_seats: bool,
}

impl<'e> Matter<'e> {
    /// None for an event that is about no checkout.
    pub fn of(event: &'e UserEvent) -> Option<Self> {
        let (checkout, payment, what) = match event {
            UserEvent::CheckoutRequested(requested) => return Some(Matter::Requested(requested)),
            UserEvent::CheckoutRetried(retried) => return Some(Matter::Retried(retried)),
            UserEvent::CheckoutCancelled(cancelled) => return Some(Matter::Cancelled(cancelled)),
            UserEvent::OrderReturned(returned) => return Some(Matter::Returned(returned)),
            UserEvent::PaymentAuthorized(told) => {
                (&told.checkout, &told.payment, Reported::Progress(Some(told.amount)))
            }
            UserEvent::PaymentCaptured(told) => (&told.checkout, &told.payment, Reported::Captured(told.amount)),
            UserEvent::PaymentFailed(told) => (&told.checkout, &told.payment, Reported::Progress(None)),
            UserEvent::PaymentRefunded(told) => (&told.checkout, &told.payment, Reported::Refunded(told.refunded)),
            UserEvent::PaymentRefundChanged(told) => {
                let changed = Reported::RefundChanged {
                    refund: &told.refund,
                    amount: told.amount,
                    status: told.status,
                };
                (&told.checkout, &told.payment, changed)
            }
            UserEvent::PaymentDisputed(told) => {
                let disputed = Reported::Disputed {
                    dispute: &told.dispute,
                    amount: told.amount,
                    status: told.status,
                    funds: told.funds,
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
            Matter::Returned(returned) => &returned.checkout,
            Matter::Reported(report) => report.checkout,
        }
    }
}

impl Checkout {
    /// The fact that a report brings. None about a payment under way: reports come late, twice and in any order, so they only
    /// make the driver ask the provider, and compare.
    ///
    /// # Errors
    /// The report is about another payment or another checkout's refund or dispute, or in another currency. The payment is unknown
    /// here while the provider's answer is on its way.
    pub fn hear(&self, report: &ProviderReport<'_>, known: Known) -> Result<Option<Fact>, UserRefusalReason> {
        let Known {
            refunds,
            dispute,
            frees_seats,
        } = known;
        let owners = refunds.iter().map(|refund| &refund.checkout);
        let mut owners = owners.chain(dispute.iter().map(|dispute| &dispute.checkout));
        let is_anothers = owners.any(|owner| *owner != self.id);
        if is_anothers || self.payment.as_ref().is_some_and(|ours| ours != report.payment) {
            return Err(UserRefusalReason::PaymentDiffers);
        }
        let (amount, fact) = match report.what {
            Reported::Progress(amount) => (amount, None),
            Reported::Captured(amount) => {
                let differs = self.state == State::Completed && amount.amount() != self.due();
                (Some(amount), differs.then_some(Fact::AmountDiffers))
            }
            Reported::Refunded(refunded) => (Some(refunded), self.hear_of_refunds(refunded, refunds, frees_seats)),
            Reported::RefundChanged { refund, amount, status } => {
                let now = Refund {
                    id: refund.clone(),
                    checkout: self.id.clone(),
                    amount,
                    status,
                };
                let changed = Fact::RefundChanged {
                    now,
                    known: refunds,
                    frees_seats,
                };
                (Some(amount), Some(changed))
            }
            Reported::Disputed {
                dispute: id,
                amount,
                status,
                funds,
            } => {
                let now = Dispute {
                    id: id.clone(),
                    checkout: self.id.clone(),
                    amount,
                    status,
                    funds,
                };
                (Some(amount), Some(Fact::Disputed { now, before: dispute }))
            }
        };
        match amount {
            Some(amount) if amount.currency() != self.currency() => Err(UserRefusalReason::WrongCurrency),
            _ => Ok(fact),
        }
    }

    fn hear_of_refunds(&self, refunded: Price, known: Vec<Refund>, frees_seats: bool) -> Option<Fact> {
        let in_all = refunded.amount();
        match in_all > self.due() {
            true => self.is_too_much(in_all).then_some(Fact::AmountDiffers),
            false => Some(Fact::Refunded {
                in_all,
                known,
                frees_seats,
            }),
        }
    }
}
