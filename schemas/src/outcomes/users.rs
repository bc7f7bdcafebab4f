//! The outcomes of users, on the topic `payments.outcomes`. They carry no personal data: the User object answers requests for it.

mod v1;

use serde_json::Value;

use super::write;
use crate::money::{Credits, Price};
use crate::payments::DisputeStatus;
use crate::stream::OutcomeData;
use crate::text::{CheckoutId, DeclineCode, DisputeId, PaymentId, TicketId, UserId};
use crate::topics;
use crate::version::{Version, Wire};

pub use v1::{CheckoutFailure, ProfileField, UserRefusalReason};

/// An outcome of a user in its current form, whichever version it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserOutcome {
    /// The user is registered.
    UserRegistered,
    /// These fields of the profile have new values.
    ProfileChanged { fields: Vec<ProfileField> },
    /// The user got these credits.
    CreditsChanged { added: Credits },
    /// The user buys these tickets: their prices are fixed, and no other user gets them meanwhile.
    CheckoutOpened {
        checkout: CheckoutId,
        tickets: Vec<TicketId>,
        total: Price,
        credits: Option<Credits>,
    },
    /// The tickets are the user's, and paid.
    CheckoutCompleted {
        checkout: CheckoutId,
        total: Price,
        credits: Option<Credits>,
        payment: Option<PaymentId>,
    },
    /// The checkout failed: no money was kept, no ticket sold.
    CheckoutFailed {
        checkout: CheckoutId,
        reason: CheckoutFailure,
        code: Option<DeclineCode>,
    },
    /// A step of the checkout fails for too long, so that the payment's state is unknown: an operator has to settle it.
    CheckoutStuck { checkout: CheckoutId },
    /// Money of a completed checkout was refunded; a full refund returns the tickets.
    PaymentRefunded {
        checkout: CheckoutId,
        amount: Price,
        full: bool,
    },
    /// The customer's bank opened a dispute, or has decided it.
    PaymentDisputed {
        checkout: CheckoutId,
        dispute: DisputeId,
        amount: Price,
        status: DisputeStatus,
    },
    /// A rule forbids the request; nothing changed.
    PaymentRefused { reason: UserRefusalReason },
}

impl OutcomeData for UserOutcome {
    type Key = UserId;
    const TOPIC: &'static str = topics::PAYMENTS_OUTCOMES;
    const VERSIONS: &'static [Version<Self>] = &[
        Version::of::<v1::UserRegistered>(),
        Version::of::<v1::ProfileChanged>(),
        Version::of::<v1::CreditsChanged>(),
        Version::of::<v1::CheckoutOpened>(),
        Version::of::<v1::CheckoutCompleted>(),
        Version::of::<v1::CheckoutFailed>(),
        Version::of::<v1::CheckoutStuck>(),
        Version::of::<v1::PaymentRefunded>(),
        Version::of::<v1::PaymentDisputed>(),
        Version::of::<v1::PaymentRefused>(),
    ];

    fn outcome_type(&self) -> &'static str {
        match self {
            Self::UserRegistered => v1::UserRegistered::TYPE,
            Self::ProfileChanged { .. } => v1::ProfileChanged::TYPE,
            Self::CreditsChanged { .. } => v1::CreditsChanged::TYPE,
            Self::CheckoutOpened { .. } => v1::CheckoutOpened::TYPE,
            Self::CheckoutCompleted { .. } => v1::CheckoutCompleted::TYPE,
            Self::CheckoutFailed { .. } => v1::CheckoutFailed::TYPE,
            Self::CheckoutStuck { .. } => v1::CheckoutStuck::TYPE,
            Self::PaymentRefunded { .. } => v1::PaymentRefunded::TYPE,
            Self::PaymentDisputed { .. } => v1::PaymentDisputed::TYPE,
            Self::PaymentRefused { .. } => v1::PaymentRefused::TYPE,
        }
    }

    fn data(&self) -> Value {
        match self.clone() {
            Self::UserRegistered => write(v1::UserRegistered {}),
            Self::ProfileChanged { fields } => write(v1::ProfileChanged { fields }),
            Self::CreditsChanged { added } => write(v1::CreditsChanged { added }),
            Self::CheckoutOpened {
                checkout,
                tickets,
                total,
                credits,
            } => write(v1::CheckoutOpened {
                checkout,
                tickets,
                total,
                credits,
            }),
            Self::CheckoutCompleted {
                checkout,
                total,
                credits,
                payment,
            } => write(v1::CheckoutCompleted {
                checkout,
                total,
                credits,
                payment,
            }),
            Self::CheckoutFailed { checkout, reason, code } => write(v1::CheckoutFailed { checkout, reason, code }),
            Self::CheckoutStuck { checkout } => write(v1::CheckoutStuck { checkout }),
            Self::PaymentRefunded { checkout, amount, full } => write(v1::PaymentRefunded { checkout, amount, full }),
            Self::PaymentDisputed {
                checkout,
                dispute,
                amount,
                status,
            } => write(v1::PaymentDisputed {
                checkout,
                dispute,
                amount,
                status,
            }),
            Self::PaymentRefused { reason } => write(v1::PaymentRefused { reason }),
        }
    }

    fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::PaymentRefused { reason } => Some(reason.as_str()),
            _ => None,
        }
    }
}
