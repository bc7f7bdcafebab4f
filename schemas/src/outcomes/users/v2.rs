//! Version 2. Published: never edited.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{UserOutcome, v1};
use crate::money::Price;
use crate::payments::{DisputeFunds, DisputeStatus};
use crate::reasons::earlier_reasons;
use crate::text::{CheckoutId, DisputeId};
use crate::version::wire;

wire! { UserOutcome;
    /// The customer's bank asks about a payment, wants money back, has taken or returned it, or has decided.
    PaymentDisputed "holdfast.outcome.payment.disputed.v2" {
        checkout: CheckoutId,
        dispute: DisputeId,
        amount: Price,
        status: DisputeStatus,
        /// Where the money is; absent while nothing was taken.
        #[serde(default, skip_serializing_if = "Option::is_none")] funds: Option<DisputeFunds>
    };
    /// A rule forbids what was asked; nothing changed.
    PaymentRefused "holdfast.outcome.payment.refused.v2" { reason: UserRefusalReason };
}

impl From<v1::PaymentDisputed> for UserOutcome {
    fn from(told: v1::PaymentDisputed) -> Self {
        let (status, funds) = told.status.today();
        Self::PaymentDisputed(PaymentDisputed {
            checkout: told.checkout,
            dispute: told.dispute,
            amount: told.amount,
            status,
            funds: Some(funds),
        })
    }
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
    AccountsDiffer "accounts_differ": "The tickets are of shows whose money goes to different accounts at the payment provider.";
    TotalTooHigh "total_too_high": "The prices together are more than 10^12 minor units.";
    ShowLimit "show_limit": "The user would have more tickets of a show than one user may.";
    CreditsTooMany "credits_too_many": "More credits are to be spent than the tickets cost.";
    CreditsCurrency "credits_currency": "Credits cannot pay for tickets of this currency.";
    NoPaymentMethod "no_payment_method": "Something is left to pay, but no payment method is named.";
    CreditsMissing "credits_missing": "The user has fewer credits than are to be spent.";
    BelowMinimum "below_minimum": "What is left to pay is less than the payment provider charges.";
    AmountNotSupported "amount_not_supported": "The payment provider cannot charge what is left to pay.";
    NoProvider "no_provider": "There is no payment provider to pay by.";
}
