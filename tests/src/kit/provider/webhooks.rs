//! Webhooks of the simulated provider: signed events, sent to an address in any order and any number.

use std::time::Duration;

use anyhow::{Context, bail};
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;
use tokio::time::timeout;

use super::{Simulator, State};
use crate::kit::process::lock;
use crate::load::now;

/// Pause before the next attempt to deliver a refused event.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The order in which waiting events are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    InOrder,
    Backwards,
    /// In order, each event twice.
    Twice,
}

#[derive(Default)]
pub(super) struct Queue {
    target: Option<Target>,
    waiting: Vec<Value>,
    told: Vec<Value>,
    /// All events so far: waiting, being delivered, or delivered.
    all: usize,
}

#[derive(Clone)]
struct Target {
    url: String,
    secret: String,
}

impl Queue {
    pub(super) fn push(&mut self, events: Vec<Value>) {
        self.all += events.len();
        self.waiting.extend(events);
    }
}

impl Simulator {
    /// Sets the address of the webhooks and the secret that signs them. Events that happened before are waiting for it.
    pub fn webhooks_to(&self, url: &str, secret: &str) {
        let (url, secret) = (url.to_owned(), secret.to_owned());
        lock(&self.state.webhooks).target = Some(Target { url, secret });
    }

    /// Drops all events so far and the address; new events wait until [`Self::webhooks_to`] sets another.
    pub fn webhooks_to_nobody(&self) {
        if let Some(delivering) = lock(&self.delivering).take() {
            delivering.abort();
        }
        *lock(&self.state.webhooks) = Queue::default();
    }

    /// The events that are not acknowledged yet.
    pub fn untold(&self) -> Vec<Value> {
        lock(&self.state.webhooks).waiting.clone()
    }

    /// True once every event was acknowledged.
    pub fn has_told_all(&self) -> bool {
        let queue = lock(&self.state.webhooks);
        queue.told.len() == queue.all
    }

    /// Delivers the waiting events, once. An event that is not answered with 2xx stays in the queue, and is the error.
    pub async fn deliver(&self, delivery: Delivery) -> anyhow::Result<usize> {
        self.state.deliver(delivery).await
    }

    /// Delivers again every event that was acknowledged so far, the oldest first.
    pub async fn deliver_again(&self) -> anyhow::Result<usize> {
        {
            let mut queue = lock(&self.state.webhooks);
            let told = std::mem::take(&mut queue.told);
            queue.waiting.splice(0..0, told);
        }
        self.deliver(Delivery::InOrder).await
    }

    /// From now on delivers each event as it happens, and retries until it is acknowledged.
    pub fn deliver_always(&self, delivery: Delivery) {
        let state = self.state.clone();
        let delivering = tokio::spawn(async move {
            loop {
                if let Err(error) = state.deliver(delivery).await {
                    tracing::debug!("events wait: {error:#}");
                }
                // On time-out: the next attempt for refused events.
                drop(timeout(AGAIN_AFTER, state.news.notified()).await);
            }
        });
        if let Some(before) = lock(&self.delivering).replace(delivering) {
            before.abort();
        }
    }
}

impl State {
    async fn deliver(&self, delivery: Delivery) -> anyhow::Result<usize> {
        let (target, mut events) = {
            let mut queue = lock(&self.webhooks);
            let Some(target) = queue.target.clone() else {
                bail!("webhooks go nowhere");
            };
            (target, std::mem::take(&mut queue.waiting))
        };
        if delivery == Delivery::Backwards {
            events.reverse();
        }
        let client = self.client.get_or_init(reqwest::Client::new);
        let (mut told, mut failed) = (0, None);
        for event in events {
            let mut answer = tell(client, &target, &event).await;
            if delivery == Delivery::Twice && answer.is_ok() {
                answer = tell(client, &target, &event).await;
            }
            let mut queue = lock(&self.webhooks);
            match answer {
                Ok(()) => {
                    told += 1;
                    queue.told.push(event);
                }
                Err(error) => {
                    failed = Some(error);
                    queue.waiting.push(event);
                }
            }
        }
        failed.map_or(Ok(told), Err)
    }
}

async fn tell(client: &reqwest::Client, target: &Target, event: &Value) -> anyhow::Result<()> {
    let body = event.to_string();
    let signature = sign(&target.secret, &body, now().unix_timestamp());
    let request = client.post(&target.url);
    let request = request.header("stripe-signature", signature).body(body);
    let answer = request.header("content-type", "application/json").send().await?;
    answer.error_for_status().context("not acknowledged")?;
    Ok(())
}

/// The header `Stripe-Signature` for this body, signed at `at` (seconds since 1970).
pub fn sign(secret: &str, body: &str, at: i64) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key of any length will do");
    mac.update(format!("{at}.{body}").as_bytes());
    format!("t={at},v1={}", hex::encode(mac.finalize().into_bytes()))
}
