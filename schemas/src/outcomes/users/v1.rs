//! Version 1. Published: never edited. (A new reason for a refusal needs a version 2 of `payment.refused`.)

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::UserTold;
use crate::money::Credits;
use crate::outcomes::told;
use crate::reasons::reasons;

told! { UserTold;
    /// The user is known.
    UserRegistered "holdfast.outcome.user.registered.v1" {};
    /// These fields of the profile have new values.
    ProfileChanged "holdfast.outcome.profile.changed.v1" { fields: Vec<ProfileField> };
    /// The user has so many credits more.
    CreditsChanged "holdfast.outcome.credits.changed.v1" { added: Credits };
    /// A rule forbids what was asked; nothing changed.
    PaymentRefused "holdfast.outcome.payment.refused.v1" { reason: UserRefusalReason };
}

/// A part of a user's profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ProfileField {
    Email,
    Name,
    Language,
}

reasons! {
    /// Why a rule forbids what was asked.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    #[schemars(inline)]
    UserRefusalReason
    UnknownUser "unknown_user": "No such user was ever registered.", "Register the user first, or mend the key.";
    AlreadyRegistered "already_registered": "The user is registered already.", "Send `profile.changed` to change the profile.";
    ProfileDiffers "profile_differs": "The profile has other values than `was` names.", "Look at the profile, and ask again with what it says now.";
    NoLoyalty "no_loyalty": "There is no loyalty database to keep credits in.", "Set `--loyalty-url` (HOLDFAST_LOYALTY_URL).";
    LoyaltyRefuses "loyalty_refuses": "The loyalty database does not take the amount.", "Look at its constraints; the log names the one.";
}

impl From<UserRegistered> for UserTold {
    fn from(UserRegistered {}: UserRegistered) -> Self {
        Self::UserRegistered
    }
}

impl From<ProfileChanged> for UserTold {
    fn from(ProfileChanged { fields }: ProfileChanged) -> Self {
        Self::ProfileChanged { fields }
    }
}

impl From<CreditsChanged> for UserTold {
    fn from(CreditsChanged { added }: CreditsChanged) -> Self {
        Self::CreditsChanged { added }
    }
}

impl From<PaymentRefused> for UserTold {
    fn from(PaymentRefused { reason }: PaymentRefused) -> Self {
        Self::PaymentRefused { reason }
    }
}
