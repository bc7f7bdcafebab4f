//! What is told of users, on the topic `payments.outcomes`. No personal data: who wants to know more asks the User object.

mod v1;

use serde_json::Value;

use super::write;
use crate::money::Credits;
use crate::stream::Told;
use crate::text::UserId;
use crate::topics;
use crate::version::{Version, Wire};

pub use v1::{ProfileField, UserRefusalReason};

/// What is told, in its current form, whichever version it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserTold {
    /// The user is known.
    UserRegistered,
    /// These fields of the profile have new values.
    ProfileChanged { fields: Vec<ProfileField> },
    /// The user has so many credits more.
    CreditsChanged { added: Credits },
    /// A rule forbids what was asked; nothing changed.
    PaymentRefused { reason: UserRefusalReason },
}

impl Told for UserTold {
    type Key = UserId;
    const TOPIC: &'static str = topics::PAYMENTS_OUTCOMES;
    const VERSIONS: &'static [Version<Self>] = &[
        Version::of::<v1::UserRegistered>(),
        Version::of::<v1::ProfileChanged>(),
        Version::of::<v1::CreditsChanged>(),
        Version::of::<v1::PaymentRefused>(),
    ];

    fn outcome_type(&self) -> &'static str {
        match self {
            Self::UserRegistered => v1::UserRegistered::TYPE,
            Self::ProfileChanged { .. } => v1::ProfileChanged::TYPE,
            Self::CreditsChanged { .. } => v1::CreditsChanged::TYPE,
            Self::PaymentRefused { .. } => v1::PaymentRefused::TYPE,
        }
    }

    fn data(&self) -> Value {
        match self.clone() {
            Self::UserRegistered => write(v1::UserRegistered {}),
            Self::ProfileChanged { fields } => write(v1::ProfileChanged { fields }),
            Self::CreditsChanged { added } => write(v1::CreditsChanged { added }),
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
