//! Version 1. Published: never edited.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ProfileValues;
use crate::list::List;
use crate::money::{Credits, Price};
use crate::text::{
    CheckoutId, CustomerId, DeclineCode, DisputeId, Email, Language, Name, PaymentId, PaymentMethod, RefundId, TicketId,
};
use crate::version::{object, wire};

wire! { UserEvent;
    /// A user is new, with this profile.
    UserRegistered "holdfast.user.registered.v1" {
        email: Email,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<Name>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        language: Option<Language>
    };
    /// A user's profile gets new values, where it does not have them already.
    ProfileChanged "holdfast.profile.changed.v1" {
        /// The new values; a field that is absent stays as it is.
        #[serde(deserialize_with = "object")]
        to: ProfileValues,
        /// The change is refused unless the profile has these values; a field that is absent may have any.
        #[serde(
            default,
            skip_serializing_if = "ProfileValues::is_empty",
            deserialize_with = "object"
        )]
        was: ProfileValues
    };
    /// A user's address, name and language are to be forgotten; their id, tickets and money stay.
    UserErased "holdfast.user.erased.v1" {};
    /// A user is a customer at the payment provider, where payment methods may be kept: payments from now on are made for that
    /// customer.
    CustomerLinked "holdfast.customer.linked.v1" {
        /// Without it, the user is none any more.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        customer: Option<CustomerId>
    };
    /// A user gets credits.
    CreditsAdded "holdfast.credits.added.v1" {
        amount: Credits
    };
    /// A user buys tickets that they hold.
    CheckoutRequested "holdfast.checkout.requested.v1" {
        /// An id that was never used before.
        checkout: CheckoutId,
        /// How what the credits leave is paid; needed where they leave something.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        payment_method: Option<PaymentMethod>,
        /// So many credits are spent as part of the price.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        credits: Option<Credits>,
        /// Without it, the tickets in the user's cart.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tickets: Option<List<TicketId>>
    };
    /// A buyer gives another payment method, as the last one was declined.
    CheckoutRetried "holdfast.checkout.retried.v1" {
        checkout: CheckoutId,
        payment_method: PaymentMethod
    };
    /// A buyer gives a checkout up.
    CheckoutCancelled "holdfast.checkout.cancelled.v1" {
        checkout: CheckoutId
    };
    /// The shop takes seats of a completed order back, or gives some of its money back, or both.
    OrderReturned "holdfast.order.returned.v1" {
        checkout: CheckoutId,
        /// The tickets that are the buyer's no more; without it, all that still are; none when the list is empty.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tickets: Option<List<TicketId>>,
        /// So much is given back, of the money first and then of the credits; without it, what the tickets cost, as far as it was not
        /// given back before. An amount of 0 gives nothing back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refund: Option<Price>,
        /// Whether the tickets are for sale again; without it, they are.
        #[serde(default = "crate::payments::yes", skip_serializing_if = "crate::payments::is_yes")]
        resell: bool
    };
    /// The money of a checkout is set aside at the payment provider.
    PaymentAuthorized "holdfast.payment.authorized.v1" {
        checkout: CheckoutId,
        payment: PaymentId,
        amount: Price
    };
    /// The money of a checkout is taken.
    PaymentCaptured "holdfast.payment.captured.v1" {
        checkout: CheckoutId,
        payment: PaymentId,
        amount: Price
    };
    /// A payment came to nothing.
    PaymentFailed "holdfast.payment.failed.v1" {
        checkout: CheckoutId,
        payment: PaymentId,
        code: DeclineCode
    };
    /// A payment was given back, wholly or in part.
    PaymentRefunded "holdfast.payment.refunded.v1" {
        checkout: CheckoutId,
        payment: PaymentId,
        /// All that was given back of this payment so far.
        refunded: Price
    };
    /// One refund of a payment was asked for, has succeeded, or has failed.
    PaymentRefundChanged "holdfast.payment.refund_changed.v1" {
        checkout: CheckoutId,
        payment: PaymentId,
        refund: RefundId,
        /// What this refund gives back.
        amount: Price,
        status: RefundStatus
    };
    /// The customer's bank wants a payment back.
    PaymentDisputed "holdfast.payment.disputed.v1" {
        checkout: CheckoutId,
        payment: PaymentId,
        dispute: DisputeId,
        /// What the bank wants back.
        amount: Price,
        status: DisputeStatus
    };
}

/// How a refund stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum RefundStatus {
    /// The money is on its way.
    Pending,
    /// The money was given back.
    Succeeded,
    /// The money did not reach the customer: it is the shop's again.
    Failed,
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
