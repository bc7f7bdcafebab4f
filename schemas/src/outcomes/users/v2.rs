//! Version 2. Published: never edited.

use super::{UserOutcome, v1};
use crate::money::Price;
use crate::payments::{DisputeFunds, DisputeStatus};
use crate::text::{CheckoutId, DisputeId};
use crate::version::wire;

wire! { UserOutcome;
    /// The customer's bank asks about a payment, wants money back, has taken or returned it, or has decided.
    PaymentDisputed "holdfast.outcome.payment.disputed.v2" {
        checkout: CheckoutId,
        dispute: DisputeId,
        amount: Price,
        status: DisputeStatus,
        /// Where the money is; absent while nothing was taken.
        #[serde(default, skip_serializing_if = "Option::is_none")] funds: Option<DisputeFunds>
    };
}

impl From<v1::PaymentDisputed> for UserOutcome {
    fn from(told: v1::PaymentDisputed) -> Self {
        let (status, funds) = told.status.today();
        Self::PaymentDisputed(PaymentDisputed {
            checkout: told.checkout,
            dispute: told.dispute,
            amount: told.amount,
            status,
            funds: Some(funds),
        })
    }
}
