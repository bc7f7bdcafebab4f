//! Version 1. Published: never edited.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::money::{Credits, Price};
use crate::payments::v1::DisputeStatus;
use crate::reasons::{earlier_reasons, reasons};
use crate::text::{CheckoutId, DeclineCode, DisputeId, Invalid, PaymentId, RefundId, TicketId};
use crate::version::wire;

wire! { UserOutcome;
    /// The user is known.
    UserRegistered "holdfast.outcome.user.registered.v1" {};
    /// These fields of the profile have new values.
    ProfileChanged "holdfast.outcome.profile.changed.v1" { fields: Vec<ProfileField> };
    /// Nothing is kept of the user's address, name and language but what the topics hold until their retention ends.
    UserErased "holdfast.outcome.user.erased.v1" {};
    /// A user is another customer at the payment provider than before, or none.
    CustomerLinked "holdfast.outcome.customer.linked.v1" {
        /// Whether the user is one now.
        linked: bool
    };
    /// The user has so many credits more.
    CreditsChanged "holdfast.outcome.credits.changed.v1" { added: Credits };
    /// The user buys these tickets: their prices stand, and nobody else gets them meanwhile.
    CheckoutOpened "holdfast.outcome.checkout.opened.v1" {
        checkout: CheckoutId,
        tickets: Vec<TicketId>,
        /// What the tickets cost together.
        total: Price,
        /// The part of it that credits pay.
        #[serde(default, skip_serializing_if = "Option::is_none")] credits: Option<Credits>
    };
    /// The customer must confirm the payment (3-D Secure): the buyer's page asks `Checkout/{checkout}/action` for what it needs.
    CheckoutActionRequired "holdfast.outcome.checkout.action_required.v1" {
        checkout: CheckoutId,
        payment: PaymentId,
        /// Without a confirmation the checkout fails then.
        #[serde(with = "crate::moment")] #[schemars(with = "crate::moment::Moment")] until: OffsetDateTime
    };
    /// The payment was declined. Another payment method may be given (`checkout.retried`) as long as the holds last.
    CheckoutPaymentDeclined "holdfast.outcome.checkout.payment_declined.v1" {
        checkout: CheckoutId,
        /// What the payment provider says to it.
        #[serde(default, skip_serializing_if = "Option::is_none")] code: Option<DeclineCode>,
        /// Without another payment method the checkout fails then.
        #[serde(with = "crate::moment")] #[schemars(with = "crate::moment::Moment")] until: OffsetDateTime
    };
    /// The tickets are the user's, and paid.
    CheckoutCompleted "holdfast.outcome.checkout.completed.v1" {
        checkout: CheckoutId,
        /// What the tickets cost together.
        total: Price,
        /// The part of it that credits paid.
        #[serde(default, skip_serializing_if = "Option::is_none")] credits: Option<Credits>,
        /// The payment of the rest, if there was one.
        #[serde(default, skip_serializing_if = "Option::is_none")] payment: Option<PaymentId>
    };
    /// The checkout came to nothing: no money was kept, no ticket sold.
    CheckoutFailed "holdfast.outcome.checkout.failed.v1" {
        checkout: CheckoutId,
        reason: CheckoutFailure,
        /// What the payment provider says to it.
        #[serde(default, skip_serializing_if = "Option::is_none")] code: Option<DeclineCode>
    };
    /// Nobody knows what became of the payment: an operator is asked for.
    CheckoutStuck "holdfast.outcome.checkout.stuck.v1" { checkout: CheckoutId };
    /// The shop took tickets of an order back, or gives some of what was paid back, or both.
    OrderReturned "holdfast.outcome.order.returned.v1" {
        checkout: CheckoutId,
        /// The tickets that are the user's no more.
        tickets: Vec<TicketId>,
        /// So much of the money is given back; `payment.refunded` tells when it is.
        refund: Price,
        /// So many of the credits are given back.
        #[serde(default, skip_serializing_if = "Option::is_none")] credits: Option<Credits>,
        /// Whether the tickets are for sale again.
        resell: bool
    };
    /// Money of a completed checkout was given back; with all of it the tickets.
    PaymentRefunded "holdfast.outcome.payment.refunded.v1" {
        checkout: CheckoutId,
        /// So much this time.
        amount: Price,
        /// Whether nothing is left: then the tickets are for sale again, unless the shop has decided otherwise.
        full: bool
    };
    /// A refund has failed: the money is the shop's again, and is still owed to the customer.
    PaymentRefundFailed "holdfast.outcome.payment.refund_failed.v1" {
        checkout: CheckoutId,
        refund: RefundId,
        /// So much does the customer not get.
        amount: Price,
        /// Whether the money was told as given back before, by `payment.refunded` or `checkout.failed`.
        undone: bool
    };
    /// The customer's bank wants money back, or has decided.
    PaymentDisputed "holdfast.outcome.payment.disputed.v1" {
        checkout: CheckoutId,
        dispute: DisputeId,
        amount: Price,
        status: DisputeStatus
    };
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

earlier_reasons! {
    /// Why a rule forbids what was asked.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    #[schemars(inline)]
    UserRefusalReason
    UnknownUser "unknown_user": "No such user was ever registered.";
    AlreadyRegistered "already_registered": "The user is registered already.";
    ProfileDiffers "profile_differs": "The profile has other values than `was` names.";
    NoLoyalty "no_loyalty": "There is no loyalty database to keep credits in.";
    LoyaltyRefuses "loyalty_refuses": "The loyalty database does not take the amount.";
    CartFull "cart_full": "The cart holds as many tickets as one user may have in it.";
    UnknownCheckout "unknown_checkout": "The user has no such checkout.";
    PaymentDiffers "payment_differs": "The checkout is paid by another payment.";
    WrongCurrency "wrong_currency": "The amount is not in the checkout's currency.";
    CheckoutIdUsed "checkout_id_used": "A checkout with this id was opened before.";
    EmptyCart "empty_cart": "There is nothing to buy.";
    TicketTwice "ticket_twice": "A ticket is named twice.";
    TooManyTickets "too_many_tickets": "A checkout takes no more than 100 tickets.";
    NotYourHold "not_your_hold": "The user does not hold one of the tickets, or not any more.";
    CheckoutUnderWay "checkout_under_way": "One of the tickets is being bought by another checkout.";
    CurrenciesDiffer "currencies_differ": "The tickets have prices in several currencies.";
    TotalTooHigh "total_too_high": "The prices together are more than 10^12 minor units.";
    ShowLimit "show_limit": "The user would have more tickets of a show than one user may.";
    CreditsTooMany "credits_too_many": "More credits are to be spent than the tickets cost.";
    CreditsCurrency "credits_currency": "Credits cannot pay for tickets of this currency.";
    NoPaymentMethod "no_payment_method": "Something is left to pay, but no payment method is named.";
    NoProvider "no_provider": "There is no payment provider to pay by.";
}

reasons! {
    /// Why a checkout came to nothing.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    #[schemars(inline)]
    CheckoutFailure
    Declined "declined": "The payment provider declined the payment.", "Pay in another way; `code` says what the provider gave as its reason.";
    NotConfirmed "not_confirmed": "The customer did not confirm the payment before the holds ended.", "Try again.";
    SeatsGone "seats_gone": "One of the tickets was no longer the user's to buy.", "Hold other tickets.";
    ShowLimitReached "show_limit_reached": "The user would have more tickets of a show than one user may.", "Leave some out.";
    CreditsMissing "credits_missing": "The user had fewer credits than were to be spent.", "Spend fewer.";
    NotCaptured "not_captured": "The payment provider did not hand over money that it had set aside.", "Try again.";
    Cancelled "cancelled": "It was cancelled.", "Try again.";
    Abandoned "abandoned": "It was killed, or its state was lost.", "Try again.";
    Misconfigured "misconfigured": "The payment provider did not take our requests. Only earlier releases gave up for that; now the checkout waits.", "Try again.";
    Settled "settled": "An operator gave it up.", "Ask the operator.";
}

impl CheckoutFailure {
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let found = Self::ALL.iter().find(|reason| reason.as_str() == text);
        found.copied().ok_or(Invalid::new("is no reason for a failure"))
    }
}
