//! The payment provider: the calls to it and the meaning of its answers, in terms that belong to no provider. No other module
//! calls it. [`stripe`] is the one adapter.
//!
//! A payment is created first and authorised in a second call, so that its id is known before any money can move: whichever
//! answer is lost after that, [`Provider::get`] tells the payment's state. An answer is one of these:
//!
//! | answer | what it tells the caller |
//! | --- | --- |
//! | `Ok` | what the payment is now |
//! | [`Error::Declined`] | no money moved, and a retry would move none |
//! | [`Error::Conflict`] | nothing changed: the payment is past this step, or not yet at it |
//! | [`Error::NotFound`] | the provider has no such payment |
//! | [`Error::Refused`] | nothing changed, and the call as it is will be refused again |
//! | [`Error::KeyUsed`] | an earlier call made the payment with other parameters: look with [`Provider::find`] |
//! | [`Error::Misconfigured`] | nothing changed, and every call is refused until an operator mends the key, the account or a setting |
//! | [`Error::Unknown`] | nothing at all: retry the call, or look with [`Provider::get`] or [`Provider::find`] |

mod about;
pub mod limits;
mod rate;
mod stripe;
pub mod webhook;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use holdfast_schemas::{
    CheckoutId, Currency, CustomerId, Email, PaymentId, Price, RefundId, RefundStatus, ShowId, UserId,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use url::Url;

use crate::config::{self, ProviderShows};
use crate::metrics::Metrics;
use crate::rounds::Rounds;
use crate::traces;
use crate::transience::Fault;
use stripe::Stripe;

pub use about::About;

/// A client of the provider. Cheap to clone.
#[derive(Clone)]
pub struct Provider {
    stripe: Arc<Stripe>,
    /// Where the bank sends the customer back to, if there is such a page.
    return_url: Option<Url>,
    /// True if the provider is to send receipts to customers.
    pub receipts: bool,
    shows: ProviderShows,
    /// Tells for how long every call is refused.
    rounds: Arc<Rounds>,
    metrics: Arc<Metrics>,
}

/// Said once, when the provider begins to refuse every call; each call's own error has its answer.
#[derive(Debug, thiserror::Error)]
#[error(
    "the payment provider refuses every call: look at --provider-key (HOLDFAST_PROVIDER_KEY) and at the account; payments wait"
)]
struct Closed;

impl Provider {
    /// A client by the settings; it sends nothing yet. None when no provider is set: then checkouts that need money are refused.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub fn new(settings: &config::Provider, metrics: Arc<Metrics>) -> Result<Option<Self>, Error> {
        let (Some(url), Some(key)) = (&settings.url, settings.replaceable_key()) else {
            return Ok(None);
        };
        let stripe = Stripe::new(url.clone(), key, settings, metrics.clone())?;
        Ok(Some(Self {
            stripe: Arc::new(stripe),
            return_url: settings.return_url.clone(),
            receipts: settings.receipts,
            shows: settings.shows.clone().unwrap_or_default(),
            rounds: Arc::new(Rounds::beside("provider", &metrics)),
            metrics,
        }))
    }

    /// What a payment for tickets of these shows, at these prices, is about; `due` is what is charged.
    ///
    /// # Errors
    /// [`Error::Refused`]: the money for the shows goes to different accounts.
    pub fn about<'a>(&'a self, tickets: &[(&'a ShowId, i64)], due: i64) -> Result<About<'a>, Error> {
        About::of(&self.shows, tickets, due)
    }

    /// Creates the payment, or returns the one that an earlier call for this checkout created within 24 hours. No money moves.
    pub async fn create(&self, order: &Order<'_>) -> Result<Payment, Error> {
        self.count(Call::Create, self.stripe.create(order)).await
    }

    /// Authorises the amount with the customer's bank. `Ok` is also [`State::ActionRequired`], [`State::Processing`] and, when
    /// another call has captured it meanwhile, [`State::Captured`]. A payment that was declined is authorised anew by a later attempt
    /// alone, with that attempt's payment method.
    pub async fn authorise(&self, payment: &PaymentId, order: &Order<'_>) -> Result<Payment, Error> {
        let checkout = order.checkout;
        let back = self.return_url.clone().map(|mut back| {
            back.query_pairs_mut().append_pair("checkout", checkout.as_str());
            back
        });
        let mut fields: Vec<_> = back.iter().map(|back| ("return_url", back.as_str())).collect();
        if order.attempt > 0 {
            fields.push(("payment_method", order.method));
        }
        let attempt = Attempt::of(order);
        let authorising = self.stripe.step(Call::Authorise, payment, attempt, &fields);
        self.count(Call::Authorise, authorising).await
    }

    /// Captures the whole authorised amount; `Ok` too when it was captured before.
    pub async fn capture(&self, payment: &PaymentId, checkout: &CheckoutId) -> Result<Payment, Error> {
        self.step(Call::Capture, payment, checkout).await
    }

    /// Cancels a payment that was not captured; `Ok` too when it was cancelled before. While the bank is working on it that is, as a
    /// rule, not possible: [`Error::Conflict`].
    pub async fn cancel(&self, payment: &PaymentId, checkout: &CheckoutId) -> Result<Payment, Error> {
        self.step(Call::Cancel, payment, checkout).await
    }

    /// Refunds all that was captured and is not refunded yet; `Ok` too when nothing is left.
    pub async fn refund(&self, payment: &PaymentId, checkout: &CheckoutId) -> Result<Payment, Error> {
        self.step(Call::Refund, payment, checkout).await
    }

    /// Refunds a part of what was captured, or returns the refund that an earlier call has made for the same repayment. [`Error::Refused`]:
    /// so much is not left, or the customer's bank has the money.
    pub async fn refund_part(&self, payment: &PaymentId, order: &RefundOrder<'_>) -> Result<MadeRefund, Error> {
        self.count(Call::Refund, self.stripe.refund_part(payment, order)).await
    }

    /// Retrieves the payment as it is now.
    pub async fn get(&self, payment: &PaymentId) -> Result<Payment, Error> {
        self.count(Call::Get, self.stripe.get(payment)).await
    }

    /// Fetches the secret by which the customer's page has the payment confirmed; none when the customer has nothing to confirm.
    pub async fn client_secret(&self, payment: &PaymentId) -> Result<Option<ClientSecret>, Error> {
        self.count(Call::Get, self.stripe.client_secret(payment)).await
    }

    /// Looks up for whom the payment was made; none when Holdfast did not make it. Nothing else of the payment is read.
    pub async fn buyer(&self, payment: &PaymentId) -> Result<Option<(CheckoutId, UserId)>, Error> {
        self.count(Call::Get, self.stripe.buyer(payment)).await
    }

    /// Finds the payment that [`Provider::create`] made for this checkout since then, if it made one; for when an answer was lost
    /// and a retry could make another. Of several, the one that has got furthest. Slow: it lists all payments of the account
    /// since then.
    pub async fn find(&self, checkout: &CheckoutId, since: OffsetDateTime) -> Result<Option<Payment>, Error> {
        self.count(Call::Find, self.stripe.find(checkout, since)).await
    }

    /// Calls `see` with every payment that was made for a checkout since then, once. Made for many payments: it reads them in windows, and
    /// has patience with a provider that has too many calls.
    pub async fn each(
        &self,
        since: OffsetDateTime,
        now: OffsetDateTime,
        see: &mut (dyn FnMut(&Payment) + Send),
    ) -> Result<(), Error> {
        self.count(Call::List, self.stripe.each(since, now, see)).await
    }

    async fn step(&self, call: Call, payment: &PaymentId, checkout: &CheckoutId) -> Result<Payment, Error> {
        let only = Attempt { checkout, number: 0 };
        self.count(call, self.stripe.step(call, payment, only, &[])).await
    }

    async fn count<T>(&self, call: Call, calling: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let answer = traces::call(call.as_str(), Error::label, calling).await;
        let label = answer.as_ref().map_or_else(Error::label, |_| "ok");
        let calls = &self.metrics.provider_calls;
        calls.with_label_values(&[call.as_str(), label]).inc();
        match &answer {
            Err(Error::Misconfigured { .. }) => self.rounds.failed(Fault::Setting, &Closed),
            // Nobody knows whether the call was refused.
            Err(Error::Unknown { .. } | Error::Client(_)) => {}
            _ => self.rounds.passed(),
        }
        answer
    }
}

/// The parameters of a payment. All but the age must be the same at each retry of one attempt.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    pub checkout: &'a CheckoutId,
    pub user: &'a UserId,
    /// Minor units, at least 1.
    pub amount: i64,
    pub currency: Currency,
    /// The payment method, by the provider's token for it (`pm_card_visa`): 1 to 255 bytes.
    pub method: &'a str,
    /// The payment methods that were tried before this one.
    pub attempt: i32,
    /// The customer there, whose payment methods the provider keeps.
    pub customer: Option<&'a CustomerId>,
    /// The address to which the provider sends a receipt.
    pub receipt: Option<&'a Email>,
    pub about: About<'a>,
    /// How long ago the payment may first have been asked for.
    pub age: Duration,
}

/// A refund to be made, for one repayment of a checkout.
#[derive(Debug, Clone, Copy)]
pub struct RefundOrder<'a> {
    pub checkout: &'a CheckoutId,
    /// The number of the repayment.
    pub number: usize,
    /// Minor units of the payment's currency, at least 1.
    pub amount: i64,
}

/// A refund, as the provider reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeRefund {
    pub id: RefundId,
    pub amount: Price,
    pub status: RefundStatus,
}

/// An attempt at a checkout's payment, by which its calls are told from those of the others.
#[derive(Debug, Clone, Copy)]
struct Attempt<'a> {
    checkout: &'a CheckoutId,
    number: i32,
}

impl<'a> Attempt<'a> {
    fn of(order: &Order<'a>) -> Self {
        Self {
            checkout: order.checkout,
            number: order.attempt,
        }
    }
}

/// A payment, as the provider reported it. Amounts are minor units of its currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    pub id: PaymentId,
    pub state: State,
    /// What was asked for.
    pub amount: i64,
    pub currency: Currency,
    /// Set aside, or captured.
    pub authorised: i64,
    pub captured: i64,
    /// What was given back of the captured amount, refunds on their way included.
    pub refunded: i64,
    /// True if it was ever disputed.
    pub disputed: bool,
    /// The provider's short code for the failure of the last authorisation. Such a payment is [`State::Unconfirmed`] again.
    pub failure: Option<String>,
    /// The checkout that it was made for; none for a payment that Holdfast did not make, or whose metadata was changed.
    pub checkout: Option<CheckoutId>,
    pub user: Option<UserId>,
}

/// The secret by which the customer's page has a payment confirmed. It is fetched when it is asked for, and cannot be printed.
#[derive(Debug)]
pub struct ClientSecret(SecretString);

impl ClientSecret {
    /// The secret, for the answer to the page and for nothing else.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl<'de> Deserialize<'de> for ClientSecret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|secret| Self(secret.into()))
    }
}

/// The progress of a payment. Refunds show in the amounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not authorised yet, or declined.
    Unconfirmed,
    Canceled,
    /// The customer has to authenticate with the bank (3-D Secure).
    ActionRequired,
    /// The bank has not answered yet, which takes days for debits.
    Processing,
    /// The amount is authorised; the provider cancels the authorisation by itself after some days.
    Authorized,
    Captured,
}

/// The calls to the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Create,
    Authorise,
    Get,
    Find,
    List,
    Capture,
    Cancel,
    Refund,
}

impl Call {
    pub fn as_str(self) -> &'static str {
        match self {
            Call::Create => "create",
            Call::Authorise => "authorise",
            Call::Get => "get",
            Call::Find => "find",
            Call::List => "list",
            Call::Capture => "capture",
            Call::Cancel => "cancel",
            Call::Refund => "refund",
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An answer other than the payment; the table above says what each tells the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reason is the provider's short code: 1 to 64 of `a-z`, `0-9` and `_`.
    #[error("the payment was declined: {reason}")]
    Declined { reason: String },
    #[error("what became of the call ({call}) is not known: {seen}")]
    Unknown {
        call: Call,
        seen: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("the provider refuses this call ({call}) as it is: {message}")]
    Refused { call: Call, message: String },
    #[error(
        "the provider has had this call ({call}) before, with other parameters: a setting or the release has changed since"
    )]
    KeyUsed { call: Call },
    #[error("the provider does not take this call ({call}) until something is mended: {message}")]
    Misconfigured { call: Call, message: String },
    #[error("the provider knows no payment {payment}")]
    NotFound { payment: PaymentId },
    #[error("the call ({call}) is not possible on a payment that is {state:?}")]
    Conflict { call: Call, state: State },
    #[error("a client of the provider cannot be made")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// The fault, for a caller that retries.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Unknown { .. } => Fault::Server,
            Error::Misconfigured { .. } | Error::Client(_) => Fault::Setting,
            Error::Declined { .. }
            | Error::Refused { .. }
            | Error::KeyUsed { .. }
            | Error::NotFound { .. }
            | Error::Conflict { .. } => Fault::Content,
        }
    }

    /// The value of the metric's label.
    fn label(&self) -> &'static str {
        match self {
            Error::Declined { .. } => "declined",
            Error::Unknown { .. } => "unknown",
            Error::Refused { .. } => "refused",
            Error::KeyUsed { .. } => "key_used",
            Error::Misconfigured { .. } | Error::Client(_) => "misconfigured",
            Error::NotFound { .. } => "not_found",
            Error::Conflict { .. } => "conflict",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_secret_cannot_be_printed() {
        let secret: ClientSecret = serde_json::from_str(r#""pi_1_secret_sesame""#).unwrap();
        assert_eq!(secret.expose(), "pi_1_secret_sesame");
        assert!(!format!("{secret:?} {secret:#?}").contains("sesame"));
    }

    #[test]
    fn a_payment_id_is_one_visible_word() {
        assert!(PaymentId::parse("pi_3MtwBwLkdIwHu7ix28a3tqPa").is_ok());
        assert!(PaymentId::parse(&"a".repeat(255)).is_ok());
        for text in ["", " ", "pi 1", "pi_1\n", "pi_\u{e9}", ".", "..", &"a".repeat(256)] {
            assert!(PaymentId::parse(text).is_err(), "{text:?}");
        }
        assert!(serde_json::from_str::<PaymentId>(r#""""#).is_err());
    }
}
