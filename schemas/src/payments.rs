//! The events of the topic `payments`, about users.

pub(crate) mod v1;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::list::List;
use crate::money::{Credits, Price};
use crate::outcomes::UserOutcome;
use crate::stream::EventData;
use crate::text::{
    CheckoutId, DeclineCode, DisputeId, Email, Language, Name, PaymentId, PaymentMethod, TicketId, UserId,
};
use crate::topics;
use crate::version::{Version, write};

pub use v1::DisputeStatus;

/// An event of a user in its current form, whichever version it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserEvent {
    /// A user is new, with this profile.
    UserRegistered {
        email: Email,
        name: Option<Name>,
        language: Option<Language>,
    },
    /// The profile gets these values, if it has those that `was` names.
    ProfileChanged { to: ProfileValues, was: ProfileValues },
    /// The user gets credits.
    CreditsAdded { amount: Credits },
    /// The user buys tickets that they hold, at the prices of the holds.
    CheckoutRequested {
        checkout: CheckoutId,
        payment_method: Option<PaymentMethod>,
        credits: Option<Credits>,
        /// Absent: those in the user's cart.
        tickets: Option<List<TicketId>>,
    },
    /// From the payment provider: the money of a checkout is authorised.
    PaymentAuthorized {
        checkout: CheckoutId,
        payment: PaymentId,
        amount: Price,
    },
    /// From the payment provider: the money of a checkout is captured.
    PaymentCaptured {
        checkout: CheckoutId,
        payment: PaymentId,
        amount: Price,
    },
    /// From the payment provider: a payment failed.
    PaymentFailed {
        checkout: CheckoutId,
        payment: PaymentId,
        code: DeclineCode,
    },
    /// From the payment provider: a payment was refunded, with the total of its refunds so far.
    PaymentRefunded {
        checkout: CheckoutId,
        payment: PaymentId,
        refunded: Price,
    },
    /// From the payment provider: the customer's bank disputes a payment, or has decided.
    PaymentDisputed {
        checkout: CheckoutId,
        payment: PaymentId,
        dispute: DisputeId,
        amount: Price,
        status: DisputeStatus,
    },
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

impl EventData for UserEvent {
    type Key = UserId;
    type Outcome = UserOutcome;
    const TOPIC: &'static str = topics::PAYMENTS;
    const ADMITTED: &'static str = topics::PAYMENTS_ADMITTED;
    const VERSIONS: &'static [Version<Self>] = &[
        Version::of::<v1::UserRegistered>(),
        Version::of::<v1::ProfileChanged>(),
        Version::of::<v1::CreditsAdded>(),
        Version::of::<v1::CheckoutRequested>(),
        Version::of::<v1::PaymentAuthorized>(),
        Version::of::<v1::PaymentCaptured>(),
        Version::of::<v1::PaymentFailed>(),
        Version::of::<v1::PaymentRefunded>(),
        Version::of::<v1::PaymentDisputed>(),
    ];

    fn newest(&self) -> (&'static str, Box<RawValue>) {
        match self.clone() {
            Self::UserRegistered { email, name, language } => write(v1::UserRegistered { email, name, language }),
            Self::ProfileChanged { to, was } => write(v1::ProfileChanged { to, was }),
            Self::CreditsAdded { amount } => write(v1::CreditsAdded { amount }),
            Self::CheckoutRequested {
                checkout,
                payment_method,
                credits,
                tickets,
            } => write(v1::CheckoutRequested {
                checkout,
                payment_method,
                credits,
                tickets,
            }),
            Self::PaymentAuthorized {
                checkout,
                payment,
                amount,
            } => write(v1::PaymentAuthorized {
                checkout,
                payment,
                amount,
            }),
            Self::PaymentCaptured {
                checkout,
                payment,
                amount,
            } => write(v1::PaymentCaptured {
                checkout,
                payment,
                amount,
            }),
            Self::PaymentFailed {
                checkout,
                payment,
                code,
            } => write(v1::PaymentFailed {
                checkout,
                payment,
                code,
            }),
            Self::PaymentRefunded {
                checkout,
                payment,
                refunded,
            } => write(v1::PaymentRefunded {
                checkout,
                payment,
                refunded,
            }),
            Self::PaymentDisputed {
                checkout,
                payment,
                dispute,
                amount,
                status,
            } => write(v1::PaymentDisputed {
                checkout,
                payment,
                dispute,
                amount,
                status,
            }),
        }
    }
}
