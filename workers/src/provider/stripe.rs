//! Stripe's PaymentIntents: every request of ours, and every answer of theirs. Payments are made with manual capture; of each
//! payment only its latest charge is expanded, for the refunds.
//!
//! | HTTP answer | meaning |
//! | --- | --- |
//! | 2xx | done |
//! | 402 | declined, by `decline_code` or else `code` |
//! | 400, 404 about the payment method, or `amount_too_small`, `amount_too_large` | declined, by `code` |
//! | 404 `resource_missing` | not found |
//! | 400 `idempotency_error` to a step | the next key is used: a setting that the call names has changed |
//! | other 400 to a step | the payment's state decides: done before, conflict, or misconfigured |
//! | 401, 403, other 400 and 404, redirections | misconfigured |
//! | 408, 409, 425, 429, 5xx | unknown |
//! | none in time, broken off, or done but not readable | unknown |
//!
//! Each call that changes something carries an `Idempotency-Key` that follows from checkout and call. Stripe keeps a key for at
//! least 24 hours and gives the first answer again, marked `Idempotent-Replayed: true`, whatever it was: an answer that is
//! out of date, or a 500 that says nothing. So after a replay the adapter retrieves the payment, and when the step is still
//! open it sends the call under the next key: a payment takes each step only once, whatever the key. After a 500 that Stripe
//! kept for the creation of a payment there may be one whose id was lost: it was never confirmed, so no money moves by it.
//!
//! Amounts are sent as they are, in minor units of ISO 4217. Payments in a currency that Stripe counts otherwise are refused.
//!
//! Sources: Stripe's documentation, "Supported currencies" (zero-decimal, three-decimal and special cases); its API reference, "Idempotent requests", "Errors", "The PaymentIntent object"; "Advanced error handling".

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use url::{Url, form_urlencoded};
use uuid::{Uuid, uuid};

use super::http::{Cause, Http, Silence};
use super::{Attempt, Call, CheckoutId, ClientSecret, Currency, Error, Order, Payment, PaymentId, State, UserId};
use crate::config::ReplaceableSecret;
use crate::transience;

/// The version of the API that every request names; the account's own setting does not matter.
const VERSION: &str = "2026-08-26.dahlia";

/// Payments on one page of a list: the most that Stripe gives.
const PAGE: &str = "100";

/// Largest lag of Stripe's clock behind ours.
const SKEW: time::Duration = time::Duration::minutes(5);

/// Keys for one step, used one after the other where Stripe repeats a failure that it has kept.
const KEYS: u32 = 3;

/// Namespace of the keys. Another value would be another payment for the same checkout.
const IDEMPOTENCY: Uuid = uuid!("0e7e7a0d-4c58-4a3b-b1fd-6d7a2c3f9e84");

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const STRIPE_VERSION: HeaderName = HeaderName::from_static("stripe-version");

/// Parameter of each call that returns a payment.
const EXPAND: (&str, &str) = ("expand[]", "latest_charge");

/// Parameter of each list of payments.
const EXPAND_LISTED: (&str, &str) = ("expand[]", "data.latest_charge");

pub(super) struct Stripe {
    http: Http,
    base: Url,
    key: ReplaceableSecret,
}

impl Stripe {
    pub(super) fn new(base: Url, key: ReplaceableSecret, timeout: Duration) -> Result<Self, Error> {
        let http = Http::new(&base, timeout).map_err(Error::Client)?;
        let stripe = Self { http, base, key };
        stripe.authorization().map_err(Error::Client)?;
        Ok(stripe)
    }

    /// The key as it is now: it may be replaced while the process runs.
    fn authorization(&self) -> Result<HeaderValue, Cause> {
        let key = self.key.now();
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()))?;
        authorization.set_sensitive(true);
        Ok(authorization)
    }

    pub(super) async fn create(&self, order: &Order<'_>) -> Result<Payment, Error> {
        let call = Call::Create;
        if !takes(order.currency, order.amount) {
            let reason = "amount_not_supported".to_owned();
            return Err(Error::Declined { reason });
        }
        let amount = order.amount.to_string();
        let currency = order.currency.code().to_ascii_lowercase();
        let fields = [
            ("amount", amount.as_str()),
            ("currency", &currency),
            ("capture_method", "manual"),
            ("payment_method", order.method),
            ("payment_method_types[]", "card"),
            ("metadata[checkout]", order.checkout.as_str()),
            ("metadata[user]", order.user.as_str()),
            EXPAND,
        ];
        for attempt in 0..KEYS {
            let key = idempotency_key(Attempt::of(order), call, attempt);
            let Answered { said, replayed } = self.post(call, &["payment_intents"], &fields, key).await?;
            if replayed && matches!(said, Said::Unknown(_)) {
                continue;
            }
            let payment = said.payment(call, None)?;
            return match replayed {
                true => self.look(call, &payment.id).await,
                false => Ok(payment),
            };
        }
        Err(unknown(call, "an old failure is repeated"))
    }

    pub(super) async fn get(&self, payment: &PaymentId) -> Result<Payment, Error> {
        self.look(Call::Get, payment).await
    }

    pub(super) async fn buyer(&self, payment: &PaymentId) -> Result<Option<(CheckoutId, UserId)>, Error> {
        let (call, path) = (Call::Get, ["payment_intents", payment.as_str()]);
        let told = self.send(call, self.request(Method::GET, &path, &[], None)).await?;
        let listed: Listed = read(call, &told.said.done(call, Some(payment))?)?;
        Ok(buyer(listed.metadata.as_ref()))
    }

    pub(super) async fn client_secret(&self, payment: &PaymentId) -> Result<Option<ClientSecret>, Error> {
        let (call, path) = (Call::Get, ["payment_intents", payment.as_str()]);
        let told = self.send(call, self.request(Method::GET, &path, &[], None)).await?;
        let body = told.said.done(call, Some(payment))?;
        // Without the decoder's error, which could quote the secret.
        let action: Action = serde_json::from_slice(&body).map_err(|_| unknown(call, "the answer cannot be read"))?;
        let is_asked = matches!(action.status, Status::RequiresAction);
        Ok(action.client_secret.filter(|_| is_asked))
    }

    /// Brings an existing payment one step further, at most once.
    pub(super) async fn step(
        &self,
        call: Call,
        payment: &PaymentId,
        by: Attempt<'_>,
        fields: &[(&str, &str)],
    ) -> Result<Payment, Error> {
        // A payment that is only authorised is never refunded: Stripe could understand such a call as something else.
        if call == Call::Refund {
            let now = self.look(call, payment).await?;
            match standing(call, &now) {
                Standing::Open => {}
                settled => return settled.answer(call, now),
            }
        }
        for number in 0..KEYS {
            let told = self.ask_for(call, payment, fields, idempotency_key(by, call, number));
            let Answered { said, replayed } = told.await?;
            let (now, refusal) = match said {
                Said::Done(body) if !replayed && call != Call::Refund => (read_payment(call, &body)?, None),
                Said::Done(_) => (self.look(call, payment).await?, None),
                Said::Refused(message) => (self.look(call, payment).await?, Some(message)),
                Said::Unknown(_) if replayed => continue,
                Said::KeyUsed(_) => continue,
                other => return other.payment(call, Some(payment)),
            };
            match (standing(call, &now), refusal) {
                (Standing::Open, _) if replayed => {}
                (Standing::Open, Some(message)) => return Err(Error::Misconfigured { call, message }),
                // The decline is that of an earlier attempt: this one can be confirmed, and was not.
                (Standing::Declined(_), Some(message)) if by.number > 0 => {
                    return Err(Error::Misconfigured { call, message });
                }
                (Standing::Open, None) => {
                    return Err(unknown(
                        call,
                        format!("it was done, but the payment is {:?}", now.state),
                    ));
                }
                (settled, _) => return settled.answer(call, now),
            }
        }
        Err(unknown(call, "an old failure is repeated"))
    }

    pub(super) async fn find(&self, checkout: &CheckoutId, since: OffsetDateTime) -> Result<Option<Payment>, Error> {
        let call = Call::Find;
        let (mut last, mut found): (Option<PaymentId>, Vec<Payment>) = (None, Vec::new());
        loop {
            let page: Page<Listed> = self.page(call, since, last.as_ref(), None).await?;
            let ours = |listed: &&Listed| text(listed.metadata.as_ref(), "checkout") == Some(checkout.as_str());
            for listed in page.data.iter().filter(ours) {
                found.push(self.look(call, &listed.id).await?);
            }
            match page.data.into_iter().next_back() {
                Some(listed) if page.has_more => last = Some(listed.id),
                _ => return Ok(found.into_iter().max_by_key(|payment| payment.state)),
            }
        }
    }

    pub(super) async fn each(
        &self,
        since: OffsetDateTime,
        see: &mut (dyn FnMut(&Payment) + Send),
    ) -> Result<(), Error> {
        let (call, mut last) = (Call::List, None);
        loop {
            let page: Page<Intent> = self.page(call, since, last.as_ref(), Some(EXPAND_LISTED)).await?;
            last = page
                .data
                .last()
                .map(|intent| intent.id.clone())
                .filter(|_| page.has_more);
            let ours = |intent: &Intent| text(intent.metadata.as_ref(), "checkout").is_some();
            for intent in page.data.into_iter().filter(ours) {
                see(&intent.payment(call)?);
            }
            if last.is_none() {
                return Ok(());
            }
        }
    }

    /// A page of the account's payments that were made since then, those after `last`.
    async fn page<T: DeserializeOwned>(
        &self,
        call: Call,
        since: OffsetDateTime,
        last: Option<&PaymentId>,
        expand: Option<(&str, &str)>,
    ) -> Result<Page<T>, Error> {
        let since = (since - SKEW).unix_timestamp().to_string();
        let mut query = vec![("limit", PAGE), ("created[gte]", &since)];
        query.extend(last.map(|last| ("starting_after", last.as_str())));
        query.extend(expand);
        let told = self.send(call, self.request(Method::GET, &["payment_intents"], &query, None));
        read(call, &told.await?.said.done(call, None)?)
    }

    async fn look(&self, call: Call, payment: &PaymentId) -> Result<Payment, Error> {
        let path = ["payment_intents", payment.as_str()];
        let told = self.send(call, self.request(Method::GET, &path, &[EXPAND], None));
        told.await?.said.payment(call, Some(payment))
    }

    async fn ask_for(
        &self,
        call: Call,
        payment: &PaymentId,
        fields: &[(&str, &str)],
        key: Uuid,
    ) -> Result<Answered, Error> {
        let id = payment.as_str();
        let verb = match call {
            Call::Refund => return self.post(call, &["refunds"], &[("payment_intent", id)], key).await,
            Call::Authorise => "confirm",
            Call::Capture => "capture",
            _ => "cancel",
        };
        let fields = [&[EXPAND], fields].concat();
        self.post(call, &["payment_intents", id, verb], &fields, key).await
    }

    async fn post(&self, call: Call, path: &[&str], fields: &[(&str, &str)], key: Uuid) -> Result<Answered, Error> {
        self.send(call, self.request(Method::POST, path, fields, Some(key)))
            .await
    }

    /// `fields` are the body of a POST, and the query of anything else.
    fn request(
        &self,
        method: Method,
        path: &[&str],
        fields: &[(&str, &str)],
        key: Option<Uuid>,
    ) -> Result<Request<Full<Bytes>>, Cause> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        let fields = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let body = match method {
            Method::POST => fields,
            _ => {
                url.set_query(Some(&fields));
                String::new()
            }
        };
        let mut request = Request::builder()
            .method(method)
            .uri(url.as_str())
            .header(AUTHORIZATION, self.authorization()?)
            .header(STRIPE_VERSION, VERSION)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(USER_AGENT, concat!("holdfast/", env!("CARGO_PKG_VERSION")));
        if let Some(key) = key {
            request = request.header(IDEMPOTENCY_KEY, key.to_string());
        }
        Ok(request.body(Full::from(body))?)
    }

    async fn send(&self, call: Call, request: Result<Request<Full<Bytes>>, Cause>) -> Result<Answered, Error> {
        let request = request.map_err(Error::Client)?;
        let answer = self.http.exchange(request).await;
        let answer = answer.map_err(|silence| Error::Unknown {
            call,
            seen: silence.to_string(),
            source: match silence {
                Silence::Late { .. } => None,
                Silence::Broken { cause, .. } => Some(cause),
            },
        })?;
        Ok(Answered {
            replayed: answer.headers().get(REPLAYED).is_some_and(|value| value == "true"),
            said: said(answer),
        })
    }
}

/// True if an amount means the same to Stripe. It counts MGA without decimals and ISK and UGX with two, against ISO 4217, and
/// accepts three decimals only where the last is 0.
pub(super) fn takes(currency: Currency, amount: i64) -> bool {
    match currency.code() {
        "ISK" | "MGA" | "UGX" => false,
        "BHD" | "JOD" | "KWD" | "OMR" | "TND" => amount % 10 == 0,
        _ => true,
    }
}

/// The idempotency key of a step of a checkout: another one for each attempt, and the `number`-th of that attempt. It never changes.
fn idempotency_key(by: Attempt<'_>, call: Call, number: u32) -> Uuid {
    let checkout = by.checkout;
    let name = match by.number {
        0 => format!("{call}:{number}:{checkout}"),
        attempt => format!("{call}.{attempt}:{number}:{checkout}"),
    };
    Uuid::new_v5(&IDEMPOTENCY, name.as_bytes())
}

/// A payment's state in relation to a step.
enum Standing {
    /// The step is done.
    Reached,
    /// The step can be taken.
    Open,
    /// The payment is past the step, or not yet at it.
    Barred,
    /// The step was taken, and the bank declined.
    Declined(String),
}

fn standing(call: Call, payment: &Payment) -> Standing {
    let reached = match (call, payment.state) {
        (Call::Authorise, State::Unconfirmed) => match &payment.failure {
            Some(reason) => return Standing::Declined(reason.clone()),
            None => false,
        },
        (Call::Authorise, state) => match state {
            State::Canceled => return Standing::Barred,
            _ => true,
        },
        (Call::Capture, State::Captured) | (Call::Cancel, State::Canceled) => true,
        (Call::Capture, State::Authorized) => false,
        (Call::Cancel, State::Unconfirmed | State::ActionRequired | State::Authorized) => false,
        (Call::Refund, State::Captured) => payment.refunded >= payment.captured,
        _ => return Standing::Barred,
    };
    if reached { Standing::Reached } else { Standing::Open }
}

impl Standing {
    fn answer(self, call: Call, payment: Payment) -> Result<Payment, Error> {
        match self {
            Standing::Reached => Ok(payment),
            Standing::Declined(reason) => Err(Error::Declined { reason }),
            Standing::Open | Standing::Barred => Err(Error::Conflict {
                call,
                state: payment.state,
            }),
        }
    }
}

struct Answered {
    said: Said,
    /// True for the replayed answer to an earlier request with the same idempotency key.
    replayed: bool,
}

/// The meaning of an answer without the payment's state.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Done(Bytes),
    Declined(String),
    /// The step is refused, now or for ever: the payment's state decides.
    Refused(String),
    /// The key belongs to a request with other parameters.
    KeyUsed(String),
    Absent(String),
    Misconfigured(String),
    Unknown(String),
}

/// Classifies an answer by the table above.
fn said(answer: Response<Bytes>) -> Said {
    let status = answer.status();
    if status.is_success() {
        return Said::Done(answer.into_body());
    }
    let id = answer.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let id = id.unwrap_or_default().to_owned();
    let wrong: Wrong = serde_json::from_slice::<ErrorBody>(answer.body())
        .map_or_else(|_| Wrong::of_no_provider(answer.body()), |body| body.error);
    let code = wrong.code.as_deref().unwrap_or_default();
    let about_method = wrong
        .param
        .as_deref()
        .is_some_and(|param| param.starts_with("payment_method"));
    let about_amount = ["amount_too_small", "amount_too_large"].contains(&code);
    let message = wrong.message(status, &id);
    match status {
        StatusCode::PAYMENT_REQUIRED => Said::Declined(wrong.reason()),
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND if about_method || about_amount => {
            Said::Declined(wrong.reason())
        }
        StatusCode::NOT_FOUND if code == "resource_missing" => Said::Absent(message),
        StatusCode::BAD_REQUEST if message.contains(WANTS_TLS) => Said::Misconfigured(message),
        StatusCode::BAD_REQUEST if wrong.kind.as_deref() == Some("idempotency_error") => Said::KeyUsed(message),
        StatusCode::BAD_REQUEST => Said::Refused(message),
        status if transience::provider(status.as_u16()).is_transient() => Said::Unknown(message),
        _ => Said::Misconfigured(message),
    }
}

impl Said {
    /// The body of a call that was executed, or the error. `payment` is the one that the call was about.
    fn done(self, call: Call, payment: Option<&PaymentId>) -> Result<Bytes, Error> {
        Err(match (self, payment) {
            (Said::Done(body), _) => return Ok(body),
            (Said::Declined(reason), _) => Error::Declined { reason },
            (Said::Unknown(seen), _) => unknown(call, seen),
            (Said::Absent(_), Some(payment)) => Error::NotFound {
                payment: payment.clone(),
            },
            (
                Said::Absent(message) | Said::Refused(message) | Said::KeyUsed(message) | Said::Misconfigured(message),
                _,
            ) => Error::Misconfigured { call, message },
        })
    }

    fn payment(self, call: Call, payment: Option<&PaymentId>) -> Result<Payment, Error> {
        read_payment(call, &self.done(call, payment)?)
    }
}

fn unknown(call: Call, seen: impl Into<String>) -> Error {
    Error::Unknown {
        call,
        seen: seen.into(),
        source: None,
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: Wrong,
}

#[derive(Deserialize, Default)]
pub(super) struct Wrong {
    #[serde(rename = "type")]
    kind: Option<String>,
    code: Option<String>,
    decline_code: Option<String>,
    param: Option<String>,
    message: Option<String>,
}

/// What a server means that is asked without TLS at a port that wants it.
const WANTS_TLS: &str = "it speaks TLS: give https://";

impl Wrong {
    /// An answer that is not Stripe's. Servers say in words of their own that they want TLS: nginx "The plain HTTP request was sent to
    /// HTTPS port", Go's "Client sent an HTTP request to an HTTPS server".
    fn of_no_provider(body: &[u8]) -> Self {
        let wants_tls = String::from_utf8_lossy(body).contains("HTTPS");
        Self {
            message: wants_tls.then(|| WANTS_TLS.to_owned()),
            ..Self::default()
        }
    }

    /// A code that is safe for outcomes and logs.
    pub(super) fn reason(&self) -> String {
        let codes = [&self.decline_code, &self.code];
        let is_code = |text: &&String| {
            (1..=64).contains(&text.len())
                && text
                    .bytes()
                    .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
        };
        let code = codes.into_iter().flatten().find(is_code);
        code.map_or("unspecified", String::as_str).to_owned()
    }

    /// The message for an operator, with the request's id in Stripe's own log.
    fn message(&self, status: StatusCode, request: &str) -> String {
        let mut message = self.message.clone().unwrap_or_default();
        message.truncate(message.floor_char_boundary(300));
        format!(
            "{status} {} {message} {request}",
            self.code.as_deref().unwrap_or_default()
        )
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
    }
}

/// A PaymentIntent, with the fields that the adapter needs.
#[derive(Deserialize)]
struct Intent {
    id: PaymentId,
    status: Status,
    amount: i64,
    currency: String,
    /// If absent, all that was asked for.
    amount_capturable: Option<i64>,
    /// If absent, all was captured or nothing.
    amount_received: Option<i64>,
    latest_charge: Option<Charge>,
    last_payment_error: Option<Wrong>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum Status {
    RequiresPaymentMethod,
    RequiresConfirmation,
    RequiresAction,
    Processing,
    RequiresCapture,
    Canceled,
    Succeeded,
}

/// A PaymentIntent, for whom has to confirm it.
#[derive(Deserialize)]
struct Action {
    status: Status,
    client_secret: Option<ClientSecret>,
}

#[derive(Deserialize)]
struct Charge {
    amount_refunded: i64,
    #[serde(default)]
    disputed: bool,
}

type Metadata = Option<Map<String, Value>>;

#[derive(Deserialize)]
struct Page<T> {
    data: Vec<T>,
    has_more: bool,
}

#[derive(Deserialize)]
struct Listed {
    id: PaymentId,
    #[serde(default)]
    metadata: Metadata,
}

/// For whom a payment with these metadata was made; none when somebody else made it.
pub(super) fn buyer(metadata: Option<&Map<String, Value>>) -> Option<(CheckoutId, UserId)> {
    let checkout = CheckoutId::parse(text(metadata, "checkout")?).ok()?;
    let user = UserId::parse(text(metadata, "user")?).ok()?;
    Some((checkout, user))
}

fn text<'a>(metadata: Option<&'a Map<String, Value>>, name: &str) -> Option<&'a str> {
    metadata?.get(name)?.as_str()
}

/// Decodes the answer to a call that Stripe has executed; if that fails, the payment's state is unknown.
fn read<T: DeserializeOwned>(call: Call, body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Unknown {
        call,
        seen: "the answer cannot be read".into(),
        source: Some(error.into()),
    })
}

fn read_payment(call: Call, body: &[u8]) -> Result<Payment, Error> {
    read::<Intent>(call, body)?.payment(call)
}

impl Intent {
    fn payment(self, call: Call) -> Result<Payment, Error> {
        let currency = Currency::from_code(&self.currency.to_ascii_uppercase());
        let currency = currency.ok_or_else(|| unknown(call, "the answer names no currency of ISO 4217"))?;
        let state = match self.status {
            Status::RequiresPaymentMethod | Status::RequiresConfirmation => State::Unconfirmed,
            Status::RequiresAction => State::ActionRequired,
            Status::Processing => State::Processing,
            Status::RequiresCapture => State::Authorized,
            Status::Canceled => State::Canceled,
            Status::Succeeded => State::Captured,
        };
        let captured = match state {
            State::Captured => self.amount_received.unwrap_or(self.amount),
            _ => 0,
        };
        let charge = self.latest_charge.as_ref();
        let authorised = match state {
            State::Authorized => self.amount_capturable.unwrap_or(self.amount),
            _ => captured,
        };
        Ok(Payment {
            state,
            amount: self.amount,
            currency,
            authorised,
            captured,
            // Until version 2025-03-31 of the API a cancelled authorisation counts as refunded.
            refunded: charge.map_or(0, |charge| charge.amount_refunded.min(captured)),
            disputed: charge.is_some_and(|charge| charge.disputed),
            failure: self.last_payment_error.map(|wrong| wrong.reason()),
            checkout: text(self.metadata.as_ref(), "checkout").and_then(|id| CheckoutId::parse(id).ok()),
            user: text(self.metadata.as_ref(), "user").and_then(|id| UserId::parse(id).ok()),
            id: self.id,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::config::Cli;

    fn answer(status: u16, body: &str) -> Said {
        let answer = Response::builder().status(status).header(REQUEST_ID, "req_1");
        said(answer.body(Bytes::from(body.to_owned())).unwrap())
    }

    fn wrong(status: u16, error: Value) -> Said {
        answer(status, &json!({ "error": error }).to_string())
    }

    #[test]
    fn whose_payment_it_is_can_be_read_of_payments_that_cannot() {
        let foreign = json!({ "id": "pi_1", "status": "unheard_of", "amount": "much", "currency": "zzz" });
        let listed = |body: &Value| read::<Listed>(Call::Get, body.to_string().as_bytes()).unwrap();
        assert!(buyer(listed(&foreign).metadata.as_ref()).is_none());
        assert!(read_payment(Call::Get, foreign.to_string().as_bytes()).is_err());
        let ours = json!({ "id": "pi_1", "metadata": { "checkout": "c-1", "user": "ann", "more": 1 } });
        let (checkout, user) = buyer(listed(&ours).metadata.as_ref()).unwrap();
        assert_eq!((checkout.as_str(), user.as_str()), ("c-1", "ann"));
    }

    #[test]
    fn a_server_that_wants_tls_is_no_provider_that_refuses_a_payment() {
        for body in [
            "<html>400 The plain HTTP request was sent to HTTPS port</html>",
            "Client sent an HTTP request to an HTTPS server.\n",
        ] {
            let said = answer(400, body);
            assert!(
                matches!(&said, Said::Misconfigured(message) if message.contains("give https://")),
                "{said:?}"
            );
        }
    }

    #[test]
    fn every_answer_has_its_meaning() {
        let declined = |reason: &str| Said::Declined(reason.into());
        for (status, error, meaning) in [
            (
                402,
                json!({ "code": "card_declined", "decline_code": "lost_card" }),
                declined("lost_card"),
            ),
            (402, json!({ "code": "expired_card" }), declined("expired_card")),
            (402, json!({ "message": "no" }), declined("unspecified")),
            (402, json!({ "code": "Ann's card\n" }), declined("unspecified")),
            (
                400,
                json!({ "code": "resource_missing", "param": "payment_method" }),
                declined("resource_missing"),
            ),
            (
                400,
                json!({ "code": "amount_too_small", "param": "amount" }),
                declined("amount_too_small"),
            ),
        ] {
            assert_eq!(wrong(status, error.clone()), meaning, "{status} {error}");
        }
        let missing = || json!({ "code": "resource_missing", "param": "intent", "message": "No such" });
        assert_eq!(
            wrong(404, missing()),
            Said::Absent("404 Not Found resource_missing No such req_1".into())
        );
        for status in [408, 409, 425, 429, 500, 502, 503, 504] {
            assert!(matches!(wrong(status, json!({})), Said::Unknown(_)), "{status}");
            assert!(matches!(answer(status, "<html>"), Said::Unknown(_)), "{status}");
        }
        for status in [301, 401, 403, 404, 405, 410, 422] {
            assert!(matches!(wrong(status, json!({})), Said::Misconfigured(_)), "{status}");
        }
        let state = json!({ "code": "payment_intent_unexpected_state" });
        assert!(matches!(wrong(400, state), Said::Refused(_)));
        let used = json!({ "type": "idempotency_error", "message": "Keys for idempotent requests" });
        assert!(matches!(wrong(400, used), Said::KeyUsed(_)));
        assert!(matches!(answer(200, "{}"), Said::Done(_)));
    }

    #[test]
    fn a_key_follows_from_checkout_step_and_attempt_and_never_changes() {
        let tried = |checkout: &str, call, attempt, number| {
            let checkout = &CheckoutId::parse(checkout).unwrap();
            let by = Attempt {
                checkout,
                number: attempt,
            };
            idempotency_key(by, call, number)
        };
        let key = |checkout: &str, call, number| tried(checkout, call, 0, number);
        assert_eq!(
            key("c-1", Call::Create, 0).to_string(),
            "69388b97-6b37-5d2a-a51d-964c2438a898"
        );
        let keys = [
            key("c-1", Call::Create, 0),
            key("c-2", Call::Create, 0),
            key("c-1", Call::Capture, 0),
            key("c-1", Call::Capture, 1),
            tried("c-1", Call::Create, 1, 0),
            tried("c-1", Call::Create, 2, 0),
            key("1:0:c-1", Call::Create, 0),
        ];
        for (place, one) in keys.iter().enumerate() {
            assert!(!keys[..place].contains(one), "{one}");
        }
    }

    #[test]
    fn an_amount_that_would_mean_something_else_is_never_asked_for() {
        let takes = |code: &str, amount| takes(Currency::from_code(code).unwrap(), amount);
        assert!(takes("EUR", 4_501) && takes("JPY", 4_501) && takes("KWD", 4_500));
        assert!(!takes("KWD", 4_501) && !takes("ISK", 100) && !takes("UGX", 100) && !takes("MGA", 100));
    }

    #[test]
    fn an_id_cannot_lead_to_another_address() {
        let (url, key) = ("http://pay.example/base/", "sk_1");
        let cli = Cli::parse_from(["holdfast", "--provider-url", url, "--provider-key", key, "migrate"]);
        let settings = cli.config.provider;
        let key = settings.replaceable_key().unwrap();
        let stripe = Stripe::new(url.parse().unwrap(), key, settings.timeout).unwrap();
        for id in ["../refunds", "pi_1?x=1", "pi_1#", "pi_1/capture", "%2e%2e"] {
            let id = PaymentId::parse(id).unwrap();
            let request = stripe.request(Method::GET, &["payment_intents", id.as_str()], &[EXPAND], None);
            let uri = request.unwrap().uri().clone();
            let path: Vec<&str> = uri.path().split('/').collect();
            assert_eq!(path.len(), 5, "{uri}");
            assert_eq!(path[..4], ["", "base", "v1", "payment_intents"], "{uri}");
            assert_eq!(uri.query(), Some("expand%5B%5D=latest_charge"), "{uri}");
        }
    }

    #[test]
    fn a_payment_is_read_with_what_others_left_out() {
        let intent = json!({
            "id": "pi_1", "status": "succeeded", "amount": 4500, "currency": "eur", "metadata": { "checkout": "c-1", "x": 1 },
        });
        let payment = read_payment(Call::Get, intent.to_string().as_bytes()).unwrap();
        assert_eq!(
            (payment.state, payment.captured, payment.refunded),
            (State::Captured, 4500, 0)
        );
        assert_eq!(payment.checkout, CheckoutId::parse("c-1").ok());
        assert_eq!((payment.user, payment.failure), (None, None));
    }

    #[test]
    fn nothing_is_refunded_of_what_was_not_captured() {
        for (status, received, charge, refunded) in [
            (
                "canceled",
                0,
                json!({ "captured": false, "amount_captured": 0, "amount_refunded": 4500, "refunded": true }),
                0,
            ),
            (
                "canceled",
                0,
                json!({ "captured": false, "amount_captured": 0, "amount_refunded": 0, "refunded": false }),
                0,
            ),
            ("canceled", 0, Value::Null, 0),
            (
                "succeeded",
                4500,
                json!({ "captured": true, "amount_captured": 4500, "amount_refunded": 4500 }),
                4500,
            ),
            (
                "succeeded",
                4500,
                json!({ "captured": true, "amount_captured": 4500, "amount_refunded": 700 }),
                700,
            ),
        ] {
            let intent = json!({
                "id": "pi_1", "status": status, "amount": 4500, "amount_received": received, "currency": "eur", "latest_charge": charge,
            });
            let payment = read_payment(Call::Get, intent.to_string().as_bytes()).unwrap();
            assert_eq!((payment.captured, payment.refunded), (received, refunded), "{intent}");
        }
    }

    #[test]
    fn what_is_authorised_may_be_less_than_what_was_asked_for() {
        let read = |capturable: Value| {
            let intent = json!({
                "id": "pi_1", "status": "requires_capture", "amount": 4500, "amount_capturable": capturable, "currency": "eur",
            });
            read_payment(Call::Get, intent.to_string().as_bytes())
                .unwrap()
                .authorised
        };
        assert_eq!((read(json!(4000)), read(Value::Null)), (4000, 4500));
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        for body in [
            "",
            "{",
            "[]",
            r#"{"id":"pi_1","status":"new","amount":1,"currency":"eur"}"#,
            r#"{"id":"pi_1","status":"succeeded","amount":1,"currency":"xyz"}"#,
            r#"{"id":"pi_1","status":"succeeded","amount":1,"currency":"eur","latest_charge":"ch_1"}"#,
        ] {
            let answer = read_payment(Call::Capture, body.as_bytes());
            assert!(matches!(answer, Err(Error::Unknown { .. })), "{body}: {answer:?}");
        }
    }
}
