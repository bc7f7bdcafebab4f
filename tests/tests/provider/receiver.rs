//! Receives webhooks as Holdfast does: each must be signed and decodable.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast::config::ProviderMode;
use holdfast::provider::webhook::{self, Event, Notification};
use holdfast_schemas::{CheckoutId, UserId};
use holdfast_tests::kit::http::serve;
use holdfast_tests::load::now;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The secret that signs the webhooks.
pub(crate) const SECRET: &str = "whsec_proofs";

/// An event, and the buyer whom its payment was made for, where the event names one.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) event: Event,
    pub(crate) buyer: Option<(CheckoutId, UserId)>,
}

/// Dropping it ends it.
pub(crate) struct Receiver {
    address: String,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    refuse: AtomicU32,
    /// The acknowledged events that concern Holdfast, or the fault of one.
    events: Mutex<Vec<Result<Received, String>>>,
}

impl Receiver {
    /// Does not acknowledge the first `refuse` that come.
    pub(crate) async fn start(refuse: u32) -> anyhow::Result<Receiver> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, state) = (listener.local_addr()?.to_string(), Arc::new(State::default()));
        state.refuse.store(refuse, Ordering::SeqCst);
        let taking = state.clone();
        let accepting = tokio::spawn(serve(listener, move |request| take(request, taking.clone())));
        Ok(Receiver {
            address,
            state,
            accepting,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The events so far, in the order of arrival. An error when one was not signed or not decodable.
    pub(crate) fn events(&self) -> anyhow::Result<Vec<Received>> {
        let events = self.state.events.lock().unwrap_or_else(PoisonError::into_inner);
        events
            .iter()
            .cloned()
            .collect::<Result<_, _>>()
            .map_err(anyhow::Error::msg)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// None when the event is of no interest, or about a payment that Holdfast did not make.
fn received(body: &[u8]) -> Result<Option<Received>, webhook::Error> {
    let (payload, buyer) = match webhook::read(body, Some(ProviderMode::Test))? {
        Notification::Ignored | Notification::Foreign | Notification::OtherMode => return Ok(None),
        Notification::Ours(payload, checkout, user) => (payload, Some((checkout, user))),
        Notification::Unnamed(payload, _) => (payload, None),
    };
    let event = payload.event()?;
    Ok(Some(Received { event, buyer }))
}

async fn take(request: Request<Incoming>, state: Arc<State>) -> io::Result<Response<Full<Bytes>>> {
    let less = |left: u32| left.checked_sub(1);
    let refused = state
        .refuse
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
        .is_ok();
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let signature = head
        .headers
        .get(webhook::SIGNATURE)
        .and_then(|value| value.to_str().ok());
    let tolerance = time::Duration::minutes(5);
    let event = webhook::verify(signature.unwrap_or_default(), &body, [SECRET], now(), tolerance)
        .and_then(|()| received(&body))
        .map_err(|error| format!("{error}: {signature:?}"));
    if !refused {
        let mut events = state.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.extend(event.transpose());
    }
    let status = if refused { 503 } else { 200 };
    Response::builder()
        .status(status)
        .body(Full::default())
        .map_err(io::Error::other)
}
