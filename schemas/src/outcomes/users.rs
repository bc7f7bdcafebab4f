//! The outcomes of users, on the topic `payments.outcomes`. They carry no personal data: the User object answers requests for it.

pub(crate) mod v1;
pub(crate) mod v2;
pub(crate) mod v3;

use serde_json::Value;

use crate::stream::OutcomeData;
use crate::text::UserId;
use crate::topics;
use crate::version::{Version, newest};

newest! {
    /// An outcome of a user in its current form, whichever version it came in.
    UserOutcome {
        UserRegistered(v1::UserRegistered),
        ProfileChanged(v1::ProfileChanged),
        UserErased(v1::UserErased),
        CustomerLinked(v1::CustomerLinked),
        CreditsChanged(v1::CreditsChanged),
        CheckoutOpened(v1::CheckoutOpened),
        CheckoutActionRequired(v1::CheckoutActionRequired),
        CheckoutPaymentDeclined(v1::CheckoutPaymentDeclined),
        CheckoutCompleted(v1::CheckoutCompleted),
        CheckoutFailed(v1::CheckoutFailed),
        CheckoutStuck(v1::CheckoutStuck),
        OrderReturned(v1::OrderReturned),
        PaymentRefunded(v1::PaymentRefunded),
        PaymentRefundFailed(v1::PaymentRefundFailed),
        PaymentDisputed(v2::PaymentDisputed),
        PaymentRefused(v3::PaymentRefused),
    }
    earlier { v1::PaymentDisputed, v1::PaymentRefused, v2::PaymentRefused }
}

impl OutcomeData for UserOutcome {
    type Key = UserId;
    const TOPIC: &'static str = topics::PAYMENTS_OUTCOMES;
    const VERSIONS: &'static [Version<Self>] = Self::VERSIONS;

    fn outcome_type(&self) -> &'static str {
        self.written().type_name()
    }

    fn data(&self) -> Value {
        self.written().value()
    }

    fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::PaymentRefused(v3::PaymentRefused { reason }) => Some(reason.as_str()),
            _ => None,
        }
    }
}
