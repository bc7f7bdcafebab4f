//! Version 1. Published: never edited.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Payment, ProfileValues};
use crate::money::Credits;
use crate::text::{Email, Language, Name};
use crate::version::{Wire, object};

/// A user is new, with this profile.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UserRegistered {
    pub(crate) email: Email,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) language: Option<Language>,
}

/// A user's profile gets new values, where it does not have them already.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProfileChanged {
    /// The new values; a field that is absent stays as it is.
    #[serde(deserialize_with = "object")]
    pub(crate) to: ProfileValues,
    /// The change is refused unless the profile has these values; a field that is absent may have any.
    #[serde(
        default,
        skip_serializing_if = "ProfileValues::is_empty",
        deserialize_with = "object"
    )]
    pub(crate) was: ProfileValues,
}

/// A user gets credits.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreditsAdded {
    pub(crate) amount: Credits,
}

impl Wire for UserRegistered {
    type Current = Payment;
    const TYPE: &'static str = "holdfast.user.registered.v1";
}

impl Wire for ProfileChanged {
    type Current = Payment;
    const TYPE: &'static str = "holdfast.profile.changed.v1";
}

impl Wire for CreditsAdded {
    type Current = Payment;
    const TYPE: &'static str = "holdfast.credits.added.v1";
}

impl From<UserRegistered> for Payment {
    fn from(UserRegistered { email, name, language }: UserRegistered) -> Self {
        Self::UserRegistered { email, name, language }
    }
}

impl From<ProfileChanged> for Payment {
    fn from(ProfileChanged { to, was }: ProfileChanged) -> Self {
        Self::ProfileChanged { to, was }
    }
}

impl From<CreditsAdded> for Payment {
    fn from(CreditsAdded { amount }: CreditsAdded) -> Self {
        Self::CreditsAdded { amount }
    }
}
