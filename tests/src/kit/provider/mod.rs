//! A payment provider that moves no money: the part of Stripe's API over HTTP that Holdfast speaks, with books that a test can
//! read, and with every fault on demand.
//!
//! Like Stripe it keeps the answer to each `Idempotency-Key`, failures included, and gives it again; refuses a key that comes
//! back with other parameters (400), or while its first request is under way (409).

mod books;
mod webhooks;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, anyhow};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, RETRY_AFTER};
use hyper::{HeaderMap, Method, Request, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use url::form_urlencoded;

use super::http;
use super::process::lock;
use books::{Answer, Books, Refused};
pub use books::{Kind, Movement, Payment, Refund, RefundStatus, Status};
pub use webhooks::{Delivery, sign};

/// The parameters of a refund.
const REFUND: &[&str] = &[
    "payment_intent",
    "amount",
    "metadata[holdfast_repayment]",
    "reverse_transfer",
    "refund_application_fee",
];

/// The secret key that requests must carry.
pub const KEY: &str = "sk_test_simulator";

/// The secret that signs webhooks, unless a test sets another.
pub const WEBHOOK_SECRET: &str = "whsec_simulator";

/// Dropping it ends it.
pub struct Simulator {
    url: String,
    state: Arc<State>,
    accepting: JoinHandle<()>,
    delivering: Mutex<Option<JoinHandle<()>>>,
}

/// A call of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    Create,
    Confirm,
    Capture,
    Cancel,
    Refund,
    ListRefunds,
    Retrieve,
    List,
}

impl Call {
    pub const ALL: [Call; 8] = [
        Call::Create,
        Call::Confirm,
        Call::Capture,
        Call::Cancel,
        Call::Refund,
        Call::ListRefunds,
        Call::Retrieve,
        Call::List,
    ];
}

/// The fault of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The bank declines, with this code. Only confirming can be declined.
    Decline(&'static str),
    /// The connection is cut before the call is executed.
    RequestLost,
    /// The call is executed, and the connection cut before the answer.
    AnswerLost,
    /// The call is executed, and the answer is no payment.
    Garbled,
    /// The call is executed, and the answer comes after this long.
    Slow(Duration),
    /// 409: another request for this payment is under way.
    Busy,
    /// 429, with the request to wait for no second.
    TooMany,
    /// 500, kept for the idempotency key.
    Broken { done: bool },
    /// 503, not kept.
    Unavailable,
}

/// A request as it arrived, to be sent to another server as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedRequest {
    pub method: Method,
    /// With the query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

#[derive(Default)]
struct State {
    books: Mutex<Books>,
    keys: Mutex<HashMap<String, Kept>>,
    faults: Mutex<Faults>,
    asked: Mutex<Vec<ReceivedRequest>>,
    webhooks: Mutex<webhooks::Queue>,
    /// Tells webhooks.
    client: OnceLock<reqwest::Client>,
    /// Notified of each new event for webhooks.
    news: Notify,
}

/// The answer to the first request with a key; none while it is under way.
struct Kept {
    request: String,
    answer: Option<(u16, Value)>,
}

#[derive(Default)]
struct Faults {
    away: bool,
    /// The key that is taken, if it is another than [`KEY`].
    key: Option<String>,
    /// Until then every request is one too many.
    too_many_until: Option<Instant>,
    plans: Vec<Plan>,
    rates: Vec<(Fault, u32)>,
    seed: u64,
    /// Requests so far, by call and checkout, so that random faults do not depend on the order of checkouts.
    counts: HashMap<(Call, String), u64>,
}

struct Plan {
    call: Call,
    checkout: Option<String>,
    fault: Fault,
    times: u32,
}

impl Simulator {
    /// Listens on a free port.
    pub async fn start() -> anyhow::Result<Simulator> {
        Simulator::start_at(0).await
    }

    /// Listens on this port, or on a free one when it is 0.
    pub async fn start_at(port: u16) -> anyhow::Result<Simulator> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.context("no port")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            books: Mutex::new(Books::open()),
            ..State::default()
        });
        let of = state.clone();
        let accepting = tokio::spawn(http::serve(listener, move |request| answer(request, of.clone())));
        Ok(Simulator {
            url: format!("http://{address}"),
            state,
            accepting,
            delivering: Mutex::default(),
        })
    }

    /// It is reached by a proxy at this address, and tells webhooks by this client.
    pub(super) fn behind(mut self, url: &str, client: reqwest::Client) -> Simulator {
        self.url = String::from(url);
        // Nothing was told yet.
        self.state.client.get_or_init(|| client);
        self
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Settings that make a worker use this provider, with a short time-out and as many calls as there are.
    pub fn settings(&self) -> [(&'static str, String); 4] {
        [
            ("HOLDFAST_PROVIDER_URL", self.url()),
            ("HOLDFAST_PROVIDER_KEY", String::from(KEY)),
            ("HOLDFAST_PROVIDER_TIMEOUT", String::from("2s")),
            ("HOLDFAST_PROVIDER_CALLS_PER_SECOND", String::from("100000")),
        ]
    }

    /// Plans the fault for the next `times` such requests, of one checkout or of any.
    pub fn fail(&self, call: Call, checkout: Option<&str>, fault: Fault, times: u32) {
        lock(&self.state.faults).plans.push(Plan {
            call,
            checkout: checkout.map(String::from),
            fault,
            times,
        });
    }

    /// From now on each of these faults meets so many requests in a thousand, the same ones for the same seed.
    pub fn fail_at_random(&self, seed: u64, per_mille: &[(Fault, u32)]) {
        let mut faults = lock(&self.state.faults);
        (faults.seed, faults.rates) = (seed, per_mille.to_vec());
    }

    /// Ends all planned faults.
    pub fn heal(&self) {
        *lock(&self.state.faults) = Faults::default();
    }

    /// While `away`, every connection is cut, as if the provider could not be reached.
    pub fn away(&self, away: bool) {
        lock(&self.state.faults).away = away;
    }

    /// From now on no other key is taken, until [`Self::heal`].
    pub fn replace_key(&self, key: &str) {
        lock(&self.state.faults).key = Some(String::from(key));
    }

    /// For so long every request is answered 429, with the request to wait for the rest of it.
    pub fn too_many_for(&self, pause: Duration) {
        lock(&self.state.faults).too_many_until = Some(Instant::now() + pause);
    }

    /// Forgets the idempotency keys, as Stripe does after a day.
    pub fn forget_keys(&self) {
        lock(&self.state.keys).clear();
    }

    pub fn payments(&self) -> Vec<Payment> {
        lock(&self.state.books).payments.clone()
    }

    pub fn payments_of(&self, checkout: &str) -> Vec<Payment> {
        let mut payments = self.payments();
        payments.retain(|payment| payment.checkout == checkout);
        payments
    }

    /// Every movement so far, oldest first.
    pub fn ledger(&self) -> Vec<Movement> {
        lock(&self.state.books).ledger.clone()
    }

    /// The movements of one checkout.
    pub fn movements(&self, checkout: &str) -> Vec<(Kind, i64)> {
        let ledger = self.ledger().into_iter();
        let ours = ledger.filter(|movement| movement.checkout == checkout);
        ours.map(|movement| (movement.kind, movement.amount)).collect()
    }

    /// Payments that are authorised and neither captured nor cancelled.
    pub fn open_authorisations(&self) -> Vec<Payment> {
        let mut payments = self.payments();
        payments.retain(|payment| payment.status == Status::RequiresCapture);
        payments
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<ReceivedRequest> {
        lock(&self.state.asked).clone()
    }

    /// The customer passes or fails the authentication (3D Secure) that the bank asks for.
    pub fn authenticate(&self, payment: &str, success: bool) -> anyhow::Result<()> {
        match self.change(|books| books.authenticate(payment, success)) {
            Err(refused) if success || refused.status != 402 => Err(anyhow!("{}", refused.error)),
            _ => Ok(()),
        }
    }

    /// An operator captures so much at the provider, past Holdfast.
    pub fn capture(&self, payment: &str, amount: i64) -> anyhow::Result<()> {
        self.by_hand(|books| books.capture(payment, Some(amount)))
    }

    /// The provider has the payment otherwise than it was asked for, as no real server can be made to.
    pub fn alter(&self, payment: &str, alter: impl FnOnce(&mut Payment)) {
        alter(lock(&self.state.books).payment(payment));
    }

    /// The bank pays a debit, or returns it, which takes days.
    pub fn end_debit(&self, payment: &str, success: bool) -> anyhow::Result<()> {
        self.by_hand(|books| books.end_debit(payment, success))
    }

    /// A payment that was declined comes through after all, as when the customer gives another card on the provider's page.
    pub fn comes_through(&self, payment: &str) -> anyhow::Result<()> {
        self.by_hand(|books| books.come_through(payment))
    }

    /// An operator refunds a part at the provider, past Holdfast.
    pub fn refund(&self, payment: &str, amount: i64) -> anyhow::Result<()> {
        self.by_hand(|books| books.refund(payment, Some(amount), None))
    }

    /// The provider cancels an authorisation that has expired.
    pub fn expire(&self, payment: &str) -> anyhow::Result<()> {
        self.by_hand(|books| books.cancel(payment))
    }

    /// The refunds of a payment, oldest first.
    pub fn refunds_of(&self, payment: &str) -> Vec<Refund> {
        let mut refunds = lock(&self.state.books).refunds.clone();
        refunds.retain(|refund| refund.payment == payment);
        refunds
    }

    /// A refund succeeds or fails, which may be days after it was asked for.
    pub fn end_refund(&self, refund: &str, success: bool) -> anyhow::Result<()> {
        self.by_hand(|books| books.end_refund(refund, success))
    }

    /// The customer's bank asks about a payment.
    pub fn inquire(&self, payment: &str) -> anyhow::Result<()> {
        self.by_hand(|books| books.inquire(payment))
    }

    /// The bank makes a dispute of its inquiry.
    pub fn escalate(&self, payment: &str) -> anyhow::Result<()> {
        self.by_hand(|books| books.escalate(payment))
    }

    pub fn close_inquiry(&self, payment: &str) -> anyhow::Result<()> {
        self.by_hand(|books| books.close_inquiry(payment))
    }

    /// The customer's bank opens a dispute.
    pub fn dispute(&self, payment: &str) -> anyhow::Result<()> {
        self.by_hand(|books| books.dispute(payment))
    }

    pub fn close_dispute(&self, payment: &str, won: bool) -> anyhow::Result<()> {
        self.by_hand(|books| books.close_dispute(payment, won))
    }

    fn by_hand(&self, change: impl FnOnce(&mut Books) -> Answer) -> anyhow::Result<()> {
        self.change(change)
            .map(drop)
            .map_err(|refused| anyhow!("{}", refused.error))
    }

    fn change(&self, change: impl FnOnce(&mut Books) -> Answer) -> Answer {
        self.state.change(change)
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.accepting.abort();
        if let Some(delivering) = lock(&self.delivering).take() {
            delivering.abort();
        }
    }
}

/// An error cuts the connection. The work goes on when the client has hung up.
async fn answer(request: Request<Incoming>, state: Arc<State>) -> io::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let asked = ReceivedRequest {
        method: head.method,
        path: head.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    lock(&state.asked).push(asked.clone());
    tokio::spawn(async move { state.answer(&asked).await })
        .await
        .map_err(io::Error::other)?
}

type Reply = (u16, Value, bool);

impl State {
    async fn answer(&self, asked: &ReceivedRequest) -> io::Result<Response<Full<Bytes>>> {
        let (key, too_many_until) = {
            let faults = lock(&self.faults);
            (faults.key.clone(), faults.too_many_until)
        };
        let request = match Parsed::new(asked, key.as_deref().unwrap_or(KEY)) {
            Ok(request) => request,
            Err(refused) => return respond((refused.status, json!({ "error": refused.error }), false)),
        };
        let left = too_many_until.map(|until| until.saturating_duration_since(Instant::now()));
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            return respond_after(refusal(429, "rate_limit"), left);
        }
        let fault = lock(&self.faults).next(request.call, &self.checkout_of(&request));
        let told = match fault {
            Some(Fault::RequestLost) => return Err(io::ErrorKind::ConnectionReset.into()),
            Some(Fault::Busy) => refusal(409, "lock_timeout"),
            Some(Fault::TooMany) => return respond_after(refusal(429, "rate_limit"), Duration::ZERO),
            Some(Fault::Unavailable) => refusal(503, "api_error"),
            fault => self.once(asked, &request, fault).await,
        };
        match fault {
            Some(Fault::AnswerLost) => Err(io::ErrorKind::ConnectionReset.into()),
            Some(Fault::Garbled) => respond((told.0, json!("{"), told.2)),
            _ => respond(told),
        }
    }

    /// Executes the call, unless its idempotency key has an answer already.
    async fn once(&self, asked: &ReceivedRequest, request: &Parsed, fault: Option<Fault>) -> Reply {
        let key = asked.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
        let Some(key) = key.filter(|_| asked.method == Method::POST) else {
            let (status, body, _) = self.perform(request, fault);
            slow(fault).await;
            return (status, body, false);
        };
        let fingerprint = format!("{} {}", asked.path, asked.body);
        {
            let mut keys = lock(&self.keys);
            match keys.get(key) {
                Some(kept) if kept.request != fingerprint => {
                    return refusal_of(400, "idempotency_error", "idempotency_error");
                }
                Some(Kept { answer: None, .. }) => return refusal(409, "idempotency_key_in_use"),
                Some(Kept {
                    answer: Some((status, body)),
                    ..
                }) => return (*status, body.clone(), true),
                None => {}
            }
            let request = fingerprint;
            keys.insert(key.to_owned(), Kept { request, answer: None });
        }
        let (status, body, kept) = self.perform(request, fault);
        slow(fault).await;
        let mut keys = lock(&self.keys);
        match keys.get_mut(key) {
            Some(entry) if kept => entry.answer = Some((status, body.clone())),
            _ => drop(keys.remove(key)),
        }
        (status, body, false)
    }

    /// Status, body, and whether the answer is kept for its key.
    fn perform(&self, request: &Parsed, fault: Option<Fault>) -> Reply {
        let broken = || json!({ "error": { "type": "api_error", "message": "An unknown error occurred" } });
        if fault == Some(Fault::Broken { done: false }) {
            return (500, broken(), true);
        }
        let Parsed { call, id, fields } = request;
        let answer = self.change(|books| match call {
            Call::Create => books.create(fields),
            Call::Confirm => match fault {
                Some(Fault::Decline(reason)) => books.confirm(id, fields, Some(reason)),
                _ => books.confirm(id, fields, None),
            },
            Call::Capture => books::only(&[], fields).and_then(|()| books.capture(id, None)),
            Call::Cancel => books::only(&[], fields).and_then(|()| books.cancel(id)),
            Call::Refund => books::only(REFUND, fields).and_then(|()| books.refund_by(id, fields)),
            Call::ListRefunds => books.list_refunds(id),
            Call::Retrieve => books.retrieve(id),
            Call::List => books.list(fields),
        });
        match answer {
            _ if fault == Some(Fault::Broken { done: true }) => (500, broken(), true),
            Ok(body) => (200, body, true),
            Err(Refused { status, error, kept }) => (status, json!({ "error": error }), kept),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Books) -> Answer) -> Answer {
        let mut books = lock(&self.books);
        let answer = change(&mut books);
        let events = std::mem::take(&mut books.events);
        if !events.is_empty() {
            lock(&self.webhooks).push(events);
            self.news.notify_one();
        }
        answer
    }

    fn checkout_of(&self, request: &Parsed) -> String {
        let named = request
            .fields
            .iter()
            .find(|(name, _)| name == "metadata[holdfast_checkout]");
        if let Some((_, checkout)) = named {
            return checkout.clone();
        }
        let books = lock(&self.books);
        let payment = books.find(&request.id);
        payment.map_or_else(|_| String::new(), |payment| payment.checkout.clone())
    }
}

impl Faults {
    fn next(&mut self, call: Call, checkout: &str) -> Option<Fault> {
        if self.away {
            return Some(Fault::RequestLost);
        }
        let meets = |plan: &&mut Plan| {
            plan.times > 0 && plan.call == call && plan.checkout.as_deref().is_none_or(|only| only == checkout)
        };
        if let Some(plan) = self.plans.iter_mut().find(meets) {
            plan.times -= 1;
            return Some(plan.fault);
        }
        let count = self.counts.entry((call, checkout.to_owned())).or_default();
        *count += 1;
        let mut hasher = DefaultHasher::new();
        (self.seed, call, checkout, *count).hash(&mut hasher);
        let mut drawn = u32::try_from(hasher.finish() % 1_000).unwrap_or(u32::MAX);
        for (fault, rate) in &self.rates {
            match drawn.checked_sub(*rate) {
                None => return Some(*fault),
                Some(rest) => drawn = rest,
            }
        }
        None
    }
}

/// A request that can be understood.
struct Parsed {
    call: Call,
    /// Id of the payment; empty for calls that create or list.
    id: String,
    fields: Vec<(String, String)>,
}

impl Parsed {
    fn new(asked: &ReceivedRequest, key: &str) -> Result<Parsed, Refused> {
        let refused = |status, message: &str| Refused {
            status,
            error: json!({ "type": "invalid_request_error", "message": message }),
            kept: false,
        };
        let authorized = asked.headers.get("authorization");
        if authorized.is_none_or(|header| header != &format!("Bearer {key}")) {
            return Err(refused(401, "Invalid API Key provided"));
        }
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let form = if asked.method == Method::POST {
            &asked.body
        } else {
            query
        };
        let fields: Vec<(String, String)> = form_urlencoded::parse(form.as_bytes()).into_owned().collect();
        let path: Vec<&str> = path.split('/').skip(1).collect();
        let (call, id) = match (asked.method.as_str(), path.as_slice()) {
            ("POST", ["v1", "payment_intents"]) => (Call::Create, ""),
            ("GET", ["v1", "payment_intents"]) => (Call::List, ""),
            ("GET", ["v1", "payment_intents", id]) => (Call::Retrieve, *id),
            ("POST", ["v1", "payment_intents", id, "confirm"]) => (Call::Confirm, *id),
            ("POST", ["v1", "payment_intents", id, "capture"]) => (Call::Capture, *id),
            ("POST", ["v1", "payment_intents", id, "cancel"]) => (Call::Cancel, *id),
            (method, ["v1", "refunds"]) => {
                let intent = fields.iter().find(|(name, _)| name == "payment_intent");
                let call = if method == "POST" {
                    Call::Refund
                } else {
                    Call::ListRefunds
                };
                (call, intent.map_or("", |(_, id)| id))
            }
            _ => return Err(refused(404, "Unrecognized request URL")),
        };
        let id = id.to_owned();
        Ok(Parsed { call, id, fields })
    }
}

async fn slow(fault: Option<Fault>) {
    if let Some(Fault::Slow(pause)) = fault {
        sleep(pause).await;
    }
}

fn refusal(status: u16, code: &str) -> Reply {
    refusal_of(status, "invalid_request_error", code)
}

fn refusal_of(status: u16, kind: &str, code: &str) -> Reply {
    (status, json!({ "error": { "type": kind, "code": code } }), false)
}

/// An answer that asks the client to wait for so long, in whole seconds.
fn respond_after(reply: Reply, pause: Duration) -> io::Result<Response<Full<Bytes>>> {
    let mut response = respond(reply)?;
    let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
    response.headers_mut().insert(RETRY_AFTER, seconds.into());
    Ok(response)
}

fn respond((status, body, replayed): Reply) -> io::Result<Response<Full<Bytes>>> {
    let mut response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "application/json")
        .header("request-id", "req_simulated");
    if replayed {
        response = response.header("idempotent-replayed", "true");
    }
    response.body(Full::from(body.to_string())).map_err(io::Error::other)
}
