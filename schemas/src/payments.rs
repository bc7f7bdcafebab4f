//! The events of the topic `payments`, about users.

pub(crate) mod v1;
pub(crate) mod v2;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::outcomes::UserOutcome;
use crate::stream::EventData;
use crate::text::{Email, Language, Name, UserId};
use crate::topics;
use crate::version::{Version, newest};

pub use v1::RefundStatus;
pub use v2::{DisputeFunds, DisputeStatus, Emptied};

newest! {
    /// An event of a user in its current form, whichever version it came in.
    UserEvent {
        UserRegistered(v1::UserRegistered),
        ProfileChanged(v2::ProfileChanged),
        UserErased(v1::UserErased),
        CustomerLinked(v1::CustomerLinked),
        CreditsAdded(v1::CreditsAdded),
        CheckoutRequested(v1::CheckoutRequested),
        CheckoutRetried(v1::CheckoutRetried),
        CheckoutCancelled(v1::CheckoutCancelled),
        OrderReturned(v1::OrderReturned),
        PaymentAuthorized(v1::PaymentAuthorized),
        PaymentCaptured(v1::PaymentCaptured),
        PaymentFailed(v1::PaymentFailed),
        PaymentRefunded(v1::PaymentRefunded),
        PaymentRefundChanged(v1::PaymentRefundChanged),
        PaymentDisputed(v2::PaymentDisputed),
    }
    earlier { v1::ProfileChanged, v1::PaymentDisputed }
}

/// Some fields of a profile, by value; an absent field is left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct ProfileValues {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<Email>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
}

impl ProfileValues {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a field that is absent says.
pub(crate) fn yes() -> bool {
    true
}

pub(crate) fn is_yes(says: &bool) -> bool {
    *says
}

impl EventData for UserEvent {
    type Key = UserId;
    type Outcome = UserOutcome;
    const TOPIC: &'static str = topics::PAYMENTS;
    const ADMITTED: &'static str = topics::PAYMENTS_ADMITTED;
    const VERSIONS: &'static [Version<Self>] = Self::VERSIONS;

    fn newest(&self) -> (&'static str, Box<RawValue>) {
        let data = self.written();
        (data.type_name(), data.canonical())
    }
}
