//! Version 2. Published: never edited.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ProfileValues, UserEvent, v1};
use crate::money::Price;
use crate::text::{CheckoutId, DisputeId, PaymentId};
use crate::version::{object, wire};

wire! { UserEvent;
    /// A user's profile gets new values, and loses some, where it is not so already.
    ProfileChanged "holdfast.profile.changed.v2" {
        /// The new values; a field that is absent stays as it is.
        #[serde(deserialize_with = "object")]
        to: ProfileValues,
        /// The fields that are emptied; one that has a new value besides gets that.
        #[serde(default, skip_serializing_if = "Emptied::is_none", deserialize_with = "object")]
        emptied: Emptied,
        /// The change is refused unless the profile has these values; a field that is absent may have any.
        #[serde(
            default,
            skip_serializing_if = "ProfileValues::is_empty",
            deserialize_with = "object"
        )]
        was: ProfileValues
    };
    /// The customer's bank asks about a payment, or wants it back.
    PaymentDisputed "holdfast.payment.disputed.v2" {
        checkout: CheckoutId,
        payment: PaymentId,
        dispute: DisputeId,
        /// What the bank wants back.
        amount: Price,
        status: DisputeStatus,
        /// The money that this event says has moved.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        funds: Option<DisputeFunds>
    };
}

/// How a dispute stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum DisputeStatus {
    /// The bank only asks: an inquiry takes no money.
    Inquiry,
    /// The inquiry came to nothing. The bank may still dispute the payment.
    Closed,
    /// The bank has yet to decide.
    Opened,
    /// The bank has decided for the shop.
    Won,
    /// The bank has decided for the customer.
    Lost,
}

/// The money of a dispute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum DisputeFunds {
    /// The bank has taken it.
    Withdrawn,
    /// The bank has taken it, and given it back.
    Reinstated,
}

/// Fields of a profile that are to hold nothing. An address is only emptied by erasing the user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Emptied {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub name: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub language: bool,
}

impl Emptied {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl From<v1::ProfileChanged> for UserEvent {
    fn from(v1::ProfileChanged { to, was }: v1::ProfileChanged) -> Self {
        let emptied = Emptied::default();
        Self::ProfileChanged(ProfileChanged { to, emptied, was })
    }
}

impl From<v1::PaymentDisputed> for UserEvent {
    fn from(told: v1::PaymentDisputed) -> Self {
        let (status, funds) = told.status.today();
        Self::PaymentDisputed(PaymentDisputed {
            checkout: told.checkout,
            payment: told.payment,
            dispute: told.dispute,
            amount: told.amount,
            status,
            funds: Some(funds),
        })
    }
}

impl v1::DisputeStatus {
    /// In version 1 the status says where the money is.
    pub(crate) fn today(self) -> (DisputeStatus, DisputeFunds) {
        match self {
            Self::Opened => (DisputeStatus::Opened, DisputeFunds::Withdrawn),
            Self::Won => (DisputeStatus::Won, DisputeFunds::Reinstated),
            Self::Lost => (DisputeStatus::Lost, DisputeFunds::Withdrawn),
        }
    }
}
