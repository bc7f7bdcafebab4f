//! Stripe's PaymentIntents: every request of ours, and every answer of theirs. Payments are made with manual capture, except by
//! methods that cannot be authorised before: those are captured as soon as the bank pays. Of each payment only its latest charge is
//! expanded, for the refunds.
//!
//! | HTTP answer | meaning |
//! | --- | --- |
//! | 2xx | done |
//! | 402, other errors about a card | declined, by `decline_code` or else `code` |
//! | 400, 404 about the payment method or the customer, or `amount_too_small`, `amount_too_large` | declined, by `code` |
//! | 404 `resource_missing` | not found |
//! | 400 about `receipt_email` | the payment is made without a receipt |
//! | 400 `idempotency_error` to a step | the next key is used: a setting that the call names has changed |
//! | 400 `idempotency_error` to a creation | key used |
//! | other 400 of Stripe to a step | the payment's state decides: done before, conflict, or refused |
//! | other 400 of Stripe | refused |
//! | 401, 403, 400 and 404 about the account or of another server, redirections, an object of the other mode | misconfigured |
//! | 429 `rate_limit` | the call waits and is repeated; unknown when that takes too long |
//! | 408, 409, 425, other 429, 5xx | unknown |
//! | none in time, broken off, or done but not readable | unknown |
//!
//! Each call that changes something carries an `Idempotency-Key` that follows from checkout and call. Stripe keeps a key for at
//! least 24 hours and gives the first answer again, marked `Idempotent-Replayed: true`, whatever it was: an answer that is
//! out of date, or a 500 that says nothing. So after a replay the adapter retrieves the payment, and when the step is still
//! open it sends the call under the next key, and without a key when all of them repeat old failures: a payment takes each step
//! only once, whatever the key. After a 500 that Stripe kept for the creation of a payment there may be one whose id was lost: it was
//! never confirmed, so no money moves by it.
//!
//! Amounts are sent as they are, in minor units of ISO 4217. Payments in a currency that Stripe counts otherwise are refused.
//!
//! Sources: Stripe's documentation, "Supported currencies" (zero-decimal, three-decimal and special cases); its API reference, "Idempotent requests", "Errors", "The PaymentIntent object"; "Advanced error handling".

pub(super) mod refunds;

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tokio::time::Instant;
use url::{Url, form_urlencoded};
use uuid::{Uuid, uuid};

use super::rate::{Kind, Rate, Turn};
use super::{Attempt, Call, CheckoutId, ClientSecret, Currency, Error, Order, Payment, PaymentId, State, UserId};
use crate::config::{self, ProviderMode, ReplaceableSecret};
use crate::http::{BoxError, Http, Silence};
use crate::metrics::Metrics;
use crate::transience;

/// The version of the API that every request names; the account's own setting does not matter.
const VERSION: &str = "2026-08-26.dahlia";

/// Payments on one page of a list: the most that Stripe gives.
const PAGE: &str = "100";

/// Largest lag of Stripe's clock behind ours.
const SKEW: time::Duration = time::Duration::minutes(5);

/// The payments that are listed at a time: those made within it.
const WINDOW: time::Duration = time::Duration::DAY;

/// From one time up to before another, or to no end.
type Window = (OffsetDateTime, Option<OffsetDateTime>);

/// Keys for one step, used one after the other where Stripe repeats a failure that it has kept.
const KEYS: u32 = 3;

/// Age of a payment's first call at which the key after the first [`KEYS`] may be used; each later one has twice the age of the one before.
const NEXT_KEY: Duration = Duration::from_secs(8);

/// Namespace of the keys. Another value would be another payment for the same checkout.
const IDEMPOTENCY: Uuid = uuid!("0e7e7a0d-4c58-4a3b-b1fd-6d7a2c3f9e84");

/// Pause after 429 that names none, and the bounds of the one that is named.
const PAUSE: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Longest time for which a page of a list waits for its turn: nobody waits for it at a counter.
const LISTS_WAIT: Duration = Duration::from_secs(600);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const STRIPE_VERSION: HeaderName = HeaderName::from_static("stripe-version");

/// Parameter of each call that returns a payment.
const EXPAND: (&str, &str) = ("expand[]", "latest_charge");

const RECEIPT: &str = "receipt_email";

/// Parameter of each list of payments.
const EXPAND_LISTED: (&str, &str) = ("expand[]", "data.latest_charge");

pub(super) struct Stripe {
    http: Http,
    base: Url,
    key: ReplaceableSecret,
    /// The mode of the account, if it is known: no object of the other one is taken.
    mode: Option<ProviderMode>,
    /// The kinds of payment methods that a payment may be made by.
    methods: Vec<String>,
    rate: Rate,
    /// Longest time for which a call waits for its turn.
    patience: Duration,
    metrics: Arc<Metrics>,
}

impl Stripe {
    pub(super) fn new(
        base: Url,
        key: ReplaceableSecret,
        settings: &config::Provider,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        let stripe = Self {
            http: Http::new(&base, settings.timeout).map_err(Error::Client)?,
            base,
            key,
            mode: settings.known_mode(),
            methods: settings.methods.clone(),
            rate: Rate::new(settings.rate()),
            patience: settings.timeout,
            metrics,
        };
        stripe.authorization().map_err(Error::Client)?;
        Ok(stripe)
    }

    /// The key as it is now: it may be replaced while the process runs.
    fn authorization(&self) -> Result<HeaderValue, BoxError> {
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
        let is_mixed = self.methods.iter().any(|method| config::is_captured_at_once(method));
        let mut fields = vec![
            ("amount", amount.as_str()),
            ("currency", &currency),
            ("capture_method", if is_mixed { "automatic" } else { "manual" }),
            ("payment_method", order.method),
            ("metadata[holdfast_checkout]", order.checkout.as_str()),
            ("metadata[holdfast_user]", order.user.as_str()),
            EXPAND,
        ];
        let methods = self.methods.iter();
        fields.extend(methods.map(|method| ("payment_method_types[]", method.as_str())));
        let later = if is_mixed {
            captured_later(&self.methods)
        } else {
            vec![]
        };
        fields.extend(later.iter().map(|option| (option.as_str(), "manual")));
        fields.extend(order.customer.map(|customer| ("customer", customer.as_str())));
        fields.extend(order.receipt.map(|receipt| (RECEIPT, receipt.as_str())));
        let about = order.about.fields();
        fields.extend(about.iter().map(|(name, value)| (*name, value.as_str())));
        for number in 0..creation_keys(order.age) {
            let key = Some(idempotency_key(Attempt::of(order), call, number));
            let Answered { said, replayed } = self.post(call, &["payment_intents"], &fields, key).await?;
            match said {
                Said::NoReceipt(_) => {
                    fields.retain(|(name, _)| *name != RECEIPT);
                    continue;
                }
                Said::Unknown(_) if replayed => continue,
                _ => {}
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

    /// Brings an existing payment one step further, at most once. Where each key repeats a failure, the payment is retrieved, and while
    /// the step is open the call is made without a key, so that no failure of the past holds it up. Two drivers at once need no
    /// key in common for that: Stripe takes one call at a time for a payment, authorises, captures and cancels it once, and refuses to
    /// refund more than was captured; who comes second is refused, and finds the step taken.
    pub(super) async fn step(
        &self,
        call: Call,
        payment: &PaymentId,
        by: Attempt<'_>,
        fields: &[(&str, &str)],
    ) -> Result<Payment, Error> {
        let mut fields = fields.to_vec();
        // A payment that is only authorised is never refunded: Stripe could understand such a call as something else.
        if call == Call::Refund {
            let body = self.fetch(call, payment).await?;
            let now = read_payment(call, &body)?;
            match standing(call, &now) {
                Standing::Open => {}
                settled => return settled.answer(call, now),
            }
            fields.extend(read::<Routed>(call, &body)?.back());
        }
        let keys = (0..KEYS).map(|number| Some(idempotency_key(by, call, number)));
        for key in keys.chain([None]) {
            if key.is_none() {
                let now = self.look(call, payment).await?;
                match standing(call, &now) {
                    Standing::Open => {}
                    // The decline may be that of an earlier attempt.
                    Standing::Declined(_) if by.number > 0 => {}
                    settled => return settled.answer(call, now),
                }
            }
            let Answered { said, replayed } = self.ask_for(call, payment, &fields, key).await?;
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
                (Standing::Open, Some(message)) => return Err(Error::Refused { call, message }),
                // The decline is that of an earlier attempt: this one can be confirmed, and was not.
                (Standing::Declined(_), Some(message)) if by.number > 0 => {
                    return Err(Error::Refused { call, message });
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
            let page: Page<Listed> = self.page(call, (since - SKEW, None), last.as_ref(), None).await?;
            let ours = |listed: &&Listed| named(listed.metadata.as_ref(), CHECKOUT) == Some(checkout.as_str());
            for listed in page.data.iter().filter(ours) {
                found.push(self.look(call, &listed.id).await?);
            }
            match page.data.into_iter().next_back() {
                Some(listed) if page.has_more => last = Some(listed.id),
                _ => return Ok(found.into_iter().max_by_key(|payment| payment.state)),
            }
        }
    }

    /// Reads window by window, so that no list grows long; the last one is open, for payments that are made meanwhile.
    pub(super) async fn each(
        &self,
        since: OffsetDateTime,
        now: OffsetDateTime,
        see: &mut (dyn FnMut(&Payment) + Send),
    ) -> Result<(), Error> {
        let mut from = since - SKEW;
        loop {
            let to = Some(from + WINDOW).filter(|to| *to < now);
            self.each_within((from, to), see).await?;
            match to {
                Some(to) => from = to,
                None => return Ok(()),
            }
        }
    }

    async fn each_within(&self, window: Window, see: &mut (dyn FnMut(&Payment) + Send)) -> Result<(), Error> {
        let (call, mut last) = (Call::List, None);
        loop {
            let page: Page<Intent> = self.page(call, window, last.as_ref(), Some(EXPAND_LISTED)).await?;
            last = page
                .data
                .last()
                .map(|intent| intent.id.clone())
                .filter(|_| page.has_more);
            let ours = |intent: &Intent| named(intent.metadata.as_ref(), CHECKOUT).is_some();
            for intent in page.data.into_iter().filter(ours) {
                see(&intent.payment(call)?);
            }
            if last.is_none() {
                return Ok(());
            }
        }
    }

    /// A page of the account's payments that were made in the window, those after `last`.
    async fn page<T: DeserializeOwned>(
        &self,
        call: Call,
        (from, to): Window,
        last: Option<&PaymentId>,
        expand: Option<(&str, &str)>,
    ) -> Result<Page<T>, Error> {
        let seconds = |at: OffsetDateTime| at.unix_timestamp().to_string();
        let (from, to) = (seconds(from), to.map(seconds));
        let mut query = vec![("limit", PAGE), ("created[gte]", &from)];
        query.extend(to.as_deref().map(|to| ("created[lt]", to)));
        query.extend(last.map(|last| ("starting_after", last.as_str())));
        query.extend(expand);
        let told = self.send(call, self.request(Method::GET, &["payment_intents"], &query, None));
        read(call, &told.await?.said.done(call, None)?)
    }

    async fn look(&self, call: Call, payment: &PaymentId) -> Result<Payment, Error> {
        read_payment(call, &self.fetch(call, payment).await?)
    }

    async fn fetch(&self, call: Call, payment: &PaymentId) -> Result<Bytes, Error> {
        let path = ["payment_intents", payment.as_str()];
        let told = self.send(call, self.request(Method::GET, &path, &[EXPAND], None));
        told.await?.said.done(call, Some(payment))
    }

    async fn ask_for(
        &self,
        call: Call,
        payment: &PaymentId,
        fields: &[(&str, &str)],
        key: Option<Uuid>,
    ) -> Result<Answered, Error> {
        let id = payment.as_str();
        let verb = match call {
            Call::Refund => {
                let fields = [&[("payment_intent", id)], fields].concat();
                return self.post(call, &["refunds"], &fields, key).await;
            }
            Call::Authorise => "confirm",
            Call::Capture => "capture",
            _ => "cancel",
        };
        let fields = [&[EXPAND], fields].concat();
        self.post(call, &["payment_intents", id, verb], &fields, key).await
    }

    async fn post(
        &self,
        call: Call,
        path: &[&str],
        fields: &[(&str, &str)],
        key: Option<Uuid>,
    ) -> Result<Answered, Error> {
        self.send(call, self.request(Method::POST, path, fields, key)).await
    }

    /// `fields` are the body of a POST, and the query of anything else.
    fn request(
        &self,
        method: Method,
        path: &[&str],
        fields: &[(&str, &str)],
        key: Option<Uuid>,
    ) -> Result<Request<Full<Bytes>>, BoxError> {
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

    /// Sends the request when its turn has come, again after each 429, as long as that takes less than the longest wait.
    async fn send(&self, call: Call, request: Result<Request<Full<Bytes>>, BoxError>) -> Result<Answered, Error> {
        let request = request.map_err(Error::Client)?;
        let kind = Kind::of(request.method());
        let deadline = Instant::now() + if call == Call::List { LISTS_WAIT } else { self.patience };
        let mut seen = "more calls wait than --provider-calls-per-second lets through in time".to_owned();
        loop {
            match self.rate.turn(kind, deadline).await {
                Turn::AtOnce => {}
                Turn::Waited => self.delayed(kind, "rate"),
                Turn::Late => return Err(unknown(call, seen)),
            }
            let (answer, pause) = self.exchange(call, request.clone()).await?;
            let Some(pause) = pause else {
                return Ok(answer);
            };
            self.rate.pause(kind, pause);
            self.delayed(kind, "too_many");
            if let Said::Unknown(message) = answer.said {
                seen = message;
            }
        }
    }

    fn delayed(&self, kind: Kind, why: &str) {
        let delays = &self.metrics.provider_delays;
        delays.with_label_values(&[kind.as_str(), why]).inc();
    }

    /// The answer, and the pause for which it asks.
    async fn exchange(&self, call: Call, request: Request<Full<Bytes>>) -> Result<(Answered, Option<Duration>), Error> {
        let answer = self.http.exchange(request).await;
        let answer = answer.map_err(|silence| Error::Unknown {
            call,
            seen: silence.to_string(),
            source: match silence {
                Silence::Late { .. } => None,
                Silence::Broken { cause, .. } => Some(cause),
            },
        })?;
        let pause = pause(&answer);
        let answered = Answered {
            replayed: answer.headers().get(REPLAYED).is_some_and(|value| value == "true"),
            said: self.of_our_mode(said(answer)),
        };
        Ok((answered, pause))
    }

    fn of_our_mode(&self, said: Said) -> Said {
        match (&said, self.mode) {
            (Said::Done(body), Some(mode)) if Marked::is_other(body, mode) => {
                Said::Misconfigured(format!("the answer is not of {mode}, as the account is"))
            }
            _ => said,
        }
    }
}

/// Where some payment methods are captured at once: the parameters by which the others are not.
fn captured_later(methods: &[String]) -> Vec<String> {
    let later = methods.iter().filter(|method| !config::is_captured_at_once(method));
    later
        .map(|method| format!("payment_method_options[{method}][capture_method]"))
        .collect()
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

/// How many keys may be used for a payment's creation whose first call may be this old: about as many as the age has doublings, 17 in a
/// day, however often it is called. A failure that is over holds up a creation for no longer than it has lasted,
/// or [`NEXT_KEY`].
///
/// Each driver begins with the first key and goes past one only when Stripe repeats a failure under it. That never becomes another answer
/// as long as Stripe keeps the key, so all drivers come to the same first key that has made a payment, and get that payment. The
/// age only stops them: a clock that differs makes nobody pass over a key. Nor does one end meanwhile, since nothing is created
/// any more when the first call is nearly a day old.
fn creation_keys(age: Duration) -> u32 {
    let doublings = (age.as_secs() / NEXT_KEY.as_secs()).checked_ilog2();
    KEYS + doublings.map_or(0, |doublings| doublings + 1)
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
    /// As refused: no receipt can be sent to that address.
    NoReceipt(String),
    /// The key belongs to a request with other parameters.
    KeyUsed(String),
    Absent(String),
    Misconfigured(String),
    Unknown(String),
}

/// The pause for which an answer asks; none, unless the account has made too many calls.
fn pause(answer: &Response<Bytes>) -> Option<Duration> {
    if answer.status() != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let wrong = Wrong::read(answer.body()).unwrap_or_default();
    // Another call is at the same payment: that concerns no other.
    if wrong.code.as_deref() == Some("lock_timeout") {
        return None;
    }
    let named = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let named = named.and_then(|seconds| seconds.trim().parse().ok());
    let pause = named.map_or(PAUSE, Duration::from_secs);
    Some(pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE))
}

/// Classifies an answer by the table above.
fn said(answer: Response<Bytes>) -> Said {
    let status = answer.status();
    if status.is_success() {
        return Said::Done(answer.into_body());
    }
    let id = answer.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let id = id.unwrap_or_default().to_owned();
    let told = Wrong::read(answer.body());
    let is_stripes = told.is_some();
    let wrong = told.unwrap_or_else(|| Wrong::of_no_provider(answer.body()));
    let message = wrong.message(status, &id);
    match status {
        StatusCode::PAYMENT_REQUIRED => Said::Declined(wrong.reason()),
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND if wrong.is_about_payment() => Said::Declined(wrong.reason()),
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND if wrong.is_about_account() => Said::Misconfigured(message),
        StatusCode::NOT_FOUND if wrong.is("resource_missing") => Said::Absent(message),
        StatusCode::BAD_REQUEST if wrong.kind.as_deref() == Some("idempotency_error") => Said::KeyUsed(message),
        StatusCode::BAD_REQUEST if wrong.param.as_deref() == Some(RECEIPT) => Said::NoReceipt(message),
        StatusCode::BAD_REQUEST if is_stripes => Said::Refused(message),
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
            (Said::KeyUsed(_), _) => Error::KeyUsed { call },
            (Said::Absent(message) | Said::Refused(message) | Said::NoReceipt(message), _) => {
                Error::Refused { call, message }
            }
            (Said::Misconfigured(message), _) => Error::Misconfigured { call, message },
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

/// Codes of errors about the account or its key, whichever the call.
const ABOUT_ACCOUNT: &[&str] = &[
    "account_closed",
    "account_invalid",
    "api_key_expired",
    "livemode_mismatch",
    "payment_method_unactivated",
    "platform_account_required",
    "platform_api_key_expired",
    "secret_key_required",
    "testmode_charges_only",
    "tls_version_unsupported",
];

/// What Stripe says, without a code, of a payment method that can be used only once and was.
const USED_METHOD: &str = "may not be used again";

impl Wrong {
    /// The error in Stripe's answer; none in that of another server.
    fn read(body: &[u8]) -> Option<Self> {
        let body: ErrorBody = serde_json::from_slice(body).ok()?;
        Some(body.error)
    }

    fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    fn is_about_account(&self) -> bool {
        ABOUT_ACCOUNT.iter().any(|code| self.is(code))
    }

    /// True for errors about the card, the payment method, the customer or the amount: another payment may pass.
    fn is_about_payment(&self) -> bool {
        let param = self.param.as_deref().unwrap_or_default();
        // Not `payment_method_types`, which are the account's.
        let about_payer = ["payment_method", "payment_method_data", "customer"].contains(&param)
            || ["payment_method[", "payment_method_data["]
                .iter()
                .any(|of| param.starts_with(of));
        let is_used = self.message.as_deref().is_some_and(|said| said.contains(USED_METHOD));
        let about_amount = self.is("amount_too_small") || self.is("amount_too_large");
        let about_card = self.kind.as_deref() == Some("card_error");
        !self.is_about_account() && (about_payer || is_used || about_amount || about_card)
    }

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

    /// The message for an operator, with the request's id in Stripe's own log, without an address or a customer that it quotes.
    fn message(&self, status: StatusCode, request: &str) -> String {
        let mut message = self.message.clone().unwrap_or_default();
        message.truncate(message.floor_char_boundary(300));
        format!(
            "{status} {} {message} {request}",
            self.code.as_deref().unwrap_or_default()
        )
        .split_whitespace()
        .map(|word| if is_personal(word) { "[personal]" } else { word })
        .collect::<Vec<_>>()
        .join(" ")
    }
}

fn is_personal(word: &str) -> bool {
    word.contains('@') || word.contains("cus_")
}

/// An object or a page of them, for the mode that it belongs to.
#[derive(Deserialize)]
struct Marked {
    livemode: Option<bool>,
    #[serde(default)]
    data: Vec<Marked>,
}

impl Marked {
    fn is_other(body: &[u8], mode: ProviderMode) -> bool {
        let marked: Option<Self> = serde_json::from_slice(body).ok();
        marked.is_some_and(|marked| marked.differs(mode))
    }

    fn differs(&self, mode: ProviderMode) -> bool {
        let own = self.livemode.map(ProviderMode::of_livemode);
        ProviderMode::differ(own, Some(mode)) || self.data.iter().any(|item| item.differs(mode))
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

/// A PaymentIntent, for whose money it is.
#[derive(Deserialize)]
struct Routed {
    transfer_data: Option<Map<String, Value>>,
    application_fee_amount: Option<i64>,
}

impl Routed {
    /// The parameters by which a refund takes back what went to a connected account, and gives back what was kept of it.
    fn back(&self) -> Vec<(&'static str, &'static str)> {
        let transfer = self.transfer_data.as_ref().map(|_| ("reverse_transfer", "true"));
        let fee = self.application_fee_amount.map(|_| ("refund_application_fee", "true"));
        transfer.into_iter().chain(fee).collect()
    }
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
    let checkout = CheckoutId::parse(named(metadata, CHECKOUT)?).ok()?;
    let user = UserId::parse(named(metadata, USER)?).ok()?;
    Some((checkout, user))
}

/// The names of checkout and user in a payment's metadata, and those that earlier releases gave them: together alone, since other
/// programs may use one of those.
const CHECKOUT: Name = Name("holdfast_checkout", "checkout");
const USER: Name = Name("holdfast_user", "user");

#[derive(Clone, Copy)]
struct Name(&'static str, &'static str);

fn named(metadata: Option<&Map<String, Value>>, name: Name) -> Option<&str> {
    let text = |name: &str| metadata?.get(name)?.as_str();
    let is_earlier = text(CHECKOUT.1).is_some() && text(USER.1).is_some();
    text(name.0).or_else(|| text(name.1).filter(|_| is_earlier))
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
            checkout: named(self.metadata.as_ref(), CHECKOUT).and_then(|id| CheckoutId::parse(id).ok()),
            user: named(self.metadata.as_ref(), USER).and_then(|id| UserId::parse(id).ok()),
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
        for metadata in [
            json!({ "holdfast_checkout": "c-1", "holdfast_user": "ann", "more": 1 }),
            json!({ "holdfast_checkout": "c-1", "holdfast_user": "ann", "checkout": "theirs", "user": "4711" }),
            // As earlier releases made it.
            json!({ "checkout": "c-1", "user": "ann" }),
        ] {
            let ours = json!({ "id": "pi_1", "metadata": metadata });
            let (checkout, user) = buyer(listed(&ours).metadata.as_ref()).unwrap();
            assert_eq!((checkout.as_str(), user.as_str()), ("c-1", "ann"));
        }
        for metadata in [
            json!({ "checkout": "theirs" }),
            json!({ "user": "4711", "holdfast_checkout": "c-1" }),
        ] {
            let theirs = json!({ "id": "pi_1", "metadata": metadata });
            assert!(buyer(listed(&theirs).metadata.as_ref()).is_none());
        }
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
            (
                400,
                json!({ "type": "card_error", "code": "incorrect_number" }),
                declined("incorrect_number"),
            ),
            (
                400,
                json!({ "message": "This PaymentMethod was previously used [...] and may not be used again." }),
                declined("unspecified"),
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
        assert!(matches!(answer(400, "<html>"), Said::Misconfigured(_)));
        for (status, error) in [
            (400, json!({ "code": "testmode_charges_only" })),
            (400, json!({ "code": "account_invalid", "param": "payment_method" })),
            (
                400,
                json!({ "code": "payment_method_unactivated", "param": "payment_method_types" }),
            ),
            (401, json!({ "code": "api_key_expired" })),
            (403, json!({ "code": "account_invalid", "type": "card_error" })),
        ] {
            let said = wrong(status, error);
            assert!(matches!(said, Said::Misconfigured(_)), "{said:?}");
        }
        for error in [
            json!({ "param": "payment_method_types[0]" }),
            json!({ "param": "return_url" }),
            json!({ "code": "parameter_unknown" }),
        ] {
            assert!(matches!(wrong(400, error), Said::Refused(_)));
        }
        let state = json!({ "code": "payment_intent_unexpected_state" });
        assert!(matches!(wrong(400, state), Said::Refused(_)));
        let used = json!({ "type": "idempotency_error", "message": "Keys for idempotent requests" });
        assert!(matches!(wrong(400, used), Said::KeyUsed(_)));
        assert!(matches!(answer(200, "{}"), Said::Done(_)));
    }

    #[test]
    fn what_the_provider_quotes_of_a_person_is_not_repeated() {
        let error = |param: &str, message: &str| json!({ "type": "invalid_request_error", "code": "resource_missing", "param": param, "message": message });
        let Said::Refused(message) = wrong(400, error("mandate", "It is not of 'cus_123'; look")) else {
            panic!("it is not refused");
        };
        assert_eq!(
            message,
            "400 Bad Request resource_missing It is not of [personal] look req_1"
        );
        let missing = error("customer", "No such customer: 'cus_123'");
        assert_eq!(wrong(400, missing), Said::Declined("resource_missing".to_owned()));
        let Said::NoReceipt(message) = wrong(400, error("receipt_email", "Invalid: ann@example.org")) else {
            panic!("it is not about the receipt");
        };
        assert!(!message.contains("ann"), "{message}");
    }

    #[test]
    fn cards_are_captured_later_beside_whatever_is_captured_at_once() {
        let methods = ["card", "sepa_debit", "klarna", "ideal"].map(str::to_owned);
        let later = ["card", "klarna"].map(|method| format!("payment_method_options[{method}][capture_method]"));
        assert_eq!(captured_later(&methods), later);
    }

    #[test]
    fn an_object_of_the_other_mode_is_told_alone_and_on_a_page() {
        let is_other = |body: Value, mode| Marked::is_other(body.to_string().as_bytes(), mode);
        let (test, live) = (ProviderMode::Test, ProviderMode::Live);
        for body in [
            json!({ "id": "pi_1", "livemode": true }),
            json!({ "data": [{ "livemode": true }, { "id": "pi_2" }] }),
        ] {
            assert!(is_other(body.clone(), test) && !is_other(body, live));
        }
        for body in [
            json!({ "id": "pi_1" }),
            json!({ "data": [] }),
            json!({ "data": "much" }),
            json!([]),
        ] {
            assert!(!is_other(body.clone(), test) && !is_other(body, live));
        }
    }

    #[test]
    fn too_many_calls_are_paused_for_as_long_as_the_provider_says() {
        let paused = |status: u16, after: Option<&str>, code: &str| {
            let body = json!({ "error": { "code": code } }).to_string();
            let mut answer = Response::builder().status(status);
            if let Some(after) = after {
                answer = answer.header(RETRY_AFTER, after);
            }
            pause(&answer.body(Bytes::from(body)).unwrap()).map(|pause| pause.as_millis())
        };
        for (after, expected) in [
            (None, 1_000),
            (Some("7"), 7_000),
            (Some("0"), 100),
            (Some("soon"), 1_000),
            (Some("86400"), 60_000),
        ] {
            assert_eq!(paused(429, after, "rate_limit"), Some(expected), "{after:?}");
        }
        assert_eq!(paused(429, Some("7"), "lock_timeout"), None);
        assert_eq!(paused(503, Some("7"), "rate_limit"), None);
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
    fn the_keys_of_a_creation_grow_by_one_as_its_age_doubles() {
        for (seconds, keys) in [(0, 3), (7, 3), (8, 4), (15, 4), (16, 5), (600, 10), (86_400, 17)] {
            assert_eq!(creation_keys(Duration::from_secs(seconds)), keys, "{seconds} s");
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
        let metrics = Arc::new(Metrics::new().unwrap());
        let stripe = Stripe::new(url.parse().unwrap(), key, &settings, metrics).unwrap();
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
            "id": "pi_1", "status": "succeeded", "amount": 4500, "currency": "eur", "metadata": { "holdfast_checkout": "c-1", "x": 1 },
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
