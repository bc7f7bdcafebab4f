//! Version 1. Published: never edited.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ProfileValues, UserEvent};
use crate::list::List;
use crate::money::{Credits, Price};
use crate::text::{CheckoutId, DeclineCode, DisputeId, Email, Language, Name, PaymentId, PaymentMethod, TicketId};
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

/// A user buys tickets that they hold.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckoutRequested {
    /// An id that was never used before.
    pub(crate) checkout: CheckoutId,
    /// How what the credits leave is paid; needed where they leave something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) payment_method: Option<PaymentMethod>,
    /// So many credits are spent as part of the price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) credits: Option<Credits>,
    /// Without it, the tickets in the user's cart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tickets: Option<List<TicketId>>,
}

/// The money of a checkout is set aside at the payment provider.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PaymentAuthorized {
    pub(crate) checkout: CheckoutId,
    pub(crate) payment: PaymentId,
    pub(crate) amount: Price,
}

/// The money of a checkout is taken.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PaymentCaptured {
    pub(crate) checkout: CheckoutId,
    pub(crate) payment: PaymentId,
    pub(crate) amount: Price,
}

/// A payment came to nothing.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PaymentFailed {
    pub(crate) checkout: CheckoutId,
    pub(crate) payment: PaymentId,
    pub(crate) code: DeclineCode,
}

/// A payment was given back, wholly or in part.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PaymentRefunded {
    pub(crate) checkout: CheckoutId,
    pub(crate) payment: PaymentId,
    /// All that was given back of this payment so far.
    pub(crate) refunded: Price,
}

/// The customer's bank wants a payment back.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PaymentDisputed {
    pub(crate) checkout: CheckoutId,
    pub(crate) payment: PaymentId,
    pub(crate) dispute: DisputeId,
    /// What the bank wants back.
    pub(crate) amount: Price,
    pub(crate) status: DisputeStatus,
}

/// How a dispute stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum DisputeStatus {
    /// The money is with the bank until the dispute is decided.
    Opened,
    /// The money came back.
    Won,
    /// The money is gone.
    Lost,
}

impl Wire for UserRegistered {
    type Current = UserEvent;
    const TYPE: &'static str = "holdfast.user.registered.v1";
}

impl Wire for ProfileChanged {
    type Current = UserEvent;
    const TYPE: &'static str = "holdfast.profile.changed.v1";
}

impl Wire for CreditsAdded {
    type Current = UserEvent;
    const TYPE: &'static str = "holdfast.credits.added.v1";
}

impl Wire for CheckoutRequested {
    type Current = UserEvent;
    const TYPE: &'static str = "holdfast.checkout.requested.v1";
}

impl Wire for PaymentAuthorized {
    type Current = UserEvent;
    const TYPE: &'static str = "holdfast.payment.authorized.v1";
}

impl Wire for PaymentCaptured {
    type Current = UserEvent;
    const TYPE: &'static str = "holdfast.payment.captured.v1";
}

impl Wire for PaymentFailed {
    type Current = UserEvent;
    const TYPE: &'static str = "holdfast.payment.failed.v1";
}

impl Wire for PaymentRefunded {
    type Current = UserEvent;
    const TYPE: &'static str = "holdfast.payment.refunded.v1";
}

impl Wire for PaymentDisputed {
    type Current = UserEvent;
    const TYPE: &'static str = "holdfast.payment.disputed.v1";
}

impl From<UserRegistered> for UserEvent {
    fn from(UserRegistered { email, name, language }: UserRegistered) -> Self {
        Self::UserRegistered { email, name, language }
    }
}

impl From<ProfileChanged> for UserEvent {
    fn from(ProfileChanged { to, was }: ProfileChanged) -> Self {
        Self::ProfileChanged { to, was }
    }
}

impl From<CreditsAdded> for UserEvent {
    fn from(CreditsAdded { amount }: CreditsAdded) -> Self {
        Self::CreditsAdded { amount }
    }
}

impl From<CheckoutRequested> for UserEvent {
    fn from(
        CheckoutRequested {
            checkout,
            payment_method,
            credits,
            tickets,
        }: CheckoutRequested,
    ) -> Self {
        Self::CheckoutRequested {
            checkout,
            payment_method,
            credits,
            tickets,
        }
    }
}

impl From<PaymentAuthorized> for UserEvent {
    fn from(
        PaymentAuthorized {
            checkout,
            payment,
            amount,
        }: PaymentAuthorized,
    ) -> Self {
        Self::PaymentAuthorized {
            checkout,
            payment,
            amount,
        }
    }
}

impl From<PaymentCaptured> for UserEvent {
    fn from(
        PaymentCaptured {
            checkout,
            payment,
            amount,
        }: PaymentCaptured,
    ) -> Self {
        Self::PaymentCaptured {
            checkout,
            payment,
            amount,
        }
    }
}

impl From<PaymentFailed> for UserEvent {
    fn from(
        PaymentFailed {
            checkout,
            payment,
            code,
        }: PaymentFailed,
    ) -> Self {
        Self::PaymentFailed {
            checkout,
            payment,
            code,
        }
    }
}

impl From<PaymentRefunded> for UserEvent {
    fn from(
        PaymentRefunded {
            checkout,
            payment,
            refunded,
        }: PaymentRefunded,
    ) -> Self {
        Self::PaymentRefunded {
            checkout,
            payment,
            refunded,
        }
    }
}

impl From<PaymentDisputed> for UserEvent {
    fn from(
        PaymentDisputed {
            checkout,
            payment,
            dispute,
            amount,
            status,
        }: PaymentDisputed,
    ) -> Self {
        Self::PaymentDisputed {
            checkout,
            payment,
            dispute,
            amount,
            status,
        }
    }
}
