//! Version 3. Published: never edited. (A new reason for a refusal needs a version 4 of `payment.refused`.)

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{UserOutcome, v1, v2};
use crate::reasons::reasons;
use crate::version::wire;

wire! { UserOutcome;
    /// A rule forbids what was asked; nothing changed.
    PaymentRefused "holdfast.outcome.payment.refused.v3" { reason: UserRefusalReason };
}

impl From<v1::PaymentRefused> for UserOutcome {
    fn from(v1::PaymentRefused { reason }: v1::PaymentRefused) -> Self {
        known(reason.as_str())
    }
}

impl From<v2::PaymentRefused> for UserOutcome {
    fn from(v2::PaymentRefused { reason }: v2::PaymentRefused) -> Self {
        known(reason.as_str())
    }
}

/// A refusal by the name that an earlier version gave its reason.
fn known(name: &str) -> UserOutcome {
    let mut known = UserRefusalReason::ALL.iter().copied();
    let reason = known.find(|known| known.as_str() == name);
    let reason = reason.expect("no reason was ever dropped");
    UserOutcome::PaymentRefused(PaymentRefused { reason })
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
    CartFull "cart_full": "The cart holds as many tickets as one user may have in it.", "Buy those first, or take one out.";
    UnknownCheckout "unknown_checkout": "The user has no such checkout.", "Mend the checkout's id, or the key.";
    PaymentDiffers "payment_differs": "The checkout is paid by another payment.", "Mend the payment's id.";
    WrongCurrency "wrong_currency": "The amount is not in the checkout's currency.", "Mend the currency.";
    CheckoutIdUsed "checkout_id_used": "A checkout with this id was opened before.", "Give each checkout an id of its own.";
    EmptyCart "empty_cart": "There is nothing to buy.", "Hold tickets first, by the cart or by `reservation.requested`.";
    TicketTwice "ticket_twice": "A ticket is named twice.", "Name each ticket once.";
    TooManyTickets "too_many_tickets": "A checkout takes no more than 100 tickets.", "Ask for several checkouts.";
    NotYourHold "not_your_hold": "The user does not hold one of the tickets, or not any more.", "Hold it again, or leave it out.";
    CheckoutUnderWay "checkout_under_way": "One of the tickets is being bought by another checkout.", "Wait for that checkout's outcome.";
    CurrenciesDiffer "currencies_differ": "The tickets have prices in several currencies.", "Ask for a checkout for each currency.";
    AccountsDiffer "accounts_differ": "The tickets are of shows whose money goes to different accounts at the payment provider.", "Ask for a checkout for each account.";
    TotalTooHigh "total_too_high": "The prices together are more than 10^12 minor units.", "Ask for several checkouts.";
    ShowLimit "show_limit": "The user would have more tickets of a show than one user may.", "Leave some out.";
    CreditsTooMany "credits_too_many": "More credits are to be spent than the tickets cost.", "Spend fewer.";
    CreditsCurrency "credits_currency": "Credits cannot pay for tickets of this currency.", "Leave the credits out.";
    NoPaymentMethod "no_payment_method": "Something is left to pay, but no payment method is named.", "Name one in `payment_method`.";
    CreditsMissing "credits_missing": "The user has fewer credits than are to be spent.", "Spend fewer.";
    BelowMinimum "below_minimum": "What is left to pay is less than the payment provider charges.", "Spend fewer credits, or enough to pay all.";
    AmountNotSupported "amount_not_supported": "The payment provider cannot charge what is left to pay.", "Spend other credits, or list the tickets at prices that it can charge.";
    NoProvider "no_provider": "There is no payment provider to pay by.", "Set `--provider-url` (HOLDFAST_PROVIDER_URL).";
    NotCompleted "not_completed": "The checkout is not completed, so that there is no order to return.", "Wait for its outcome, or cancel it.";
    NotInOrder "not_in_order": "One of the tickets is not the order's, or was returned before.", "Leave it out.";
    RefundTooHigh "refund_too_high": "More is to be given back than is left of what was paid.", "Look at the order, and give less back.";
    NothingToReturn "nothing_to_return": "There is neither a ticket to take back nor anything to give back.", "Look at the order: it was returned before.";
}
