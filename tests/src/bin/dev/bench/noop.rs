//! Measures Restate alone: a virtual object keyed by ticket whose handler does nothing, subscribed straight to a topic.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use holdfast_tests::kit::{Stack, until};
use holdfast_tests::load::{Pace, Producer};
use restate_sdk::prelude::*;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tracing::info;

use super::workload::Workload;

const CLUSTER: &str = "noop";
const PARTITIONS: i32 = 8;
const DRAINED_WITHIN: Duration = Duration::from_secs(300);

/// Serves the object `Noop` from this process.
pub(super) struct Noop {
    calls: Arc<Mutex<Calls>>,
    client: reqwest::Client,
}

#[derive(Clone, Copy, Default)]
struct Calls {
    count: usize,
    first_and_last: Option<(Instant, Instant)>,
}

struct Object {
    calls: Arc<Mutex<Calls>>,
}

#[restate_sdk::object(name = "Noop", journal_retention = "0s")]
impl Object {
    #[handler]
    async fn apply(&self, _context: ObjectContext<'_>, _event: Bytes) -> HandlerResult<()> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (first, _) = calls.first_and_last.unwrap_or((now, now));
        calls.count += 1;
        calls.first_and_last = Some((first, now));
        Ok(())
    }
}

impl Noop {
    pub(super) async fn serve(stack: &Stack) -> anyhow::Result<Noop> {
        let calls = Arc::new(Mutex::new(Calls::default()));
        let address = format!("127.0.0.1:{}", stack.ports.get("noop")?);
        let object = Object {
            calls: Arc::clone(&calls),
        };
        let server = HttpServer::new(Endpoint::builder().bind(object).build());
        let listener = TcpListener::bind(&address).await?;
        tokio::spawn(server.serve_with_cancel(listener, std::future::pending::<()>()));
        let noop = Noop {
            calls,
            client: reqwest::Client::new(),
        };
        noop.create(stack, "deployments", &json!({ "uri": format!("http://{address}") }))
            .await?;
        let cluster = json!({ "name": CLUSTER, "properties": { "bootstrap.servers": stack.kafka.bootstrap() } });
        noop.create(stack, "kafka-clusters", &cluster).await?;
        Ok(noop)
    }

    /// Events per second, from the first call to the last.
    pub(super) async fn drain(&self, stack: &Stack, workload: &Workload) -> anyhow::Result<f64> {
        info!(
            "{}: {} events through a handler that does nothing",
            workload.name, workload.events
        );
        stack.kafka.create_topic(&workload.name, PARTITIONS, &[]).await?;
        let mut producer = Producer::new(&stack.kafka, &workload.name)?;
        producer.send_all(workload.events(), Pace::FullSpeed).await?;
        *self.calls() = Calls::default();
        let subscription = json!({
            "source": format!("kafka://{CLUSTER}/{}", workload.name),
            "sink": "service://Noop/apply",
            "options": { "auto.offset.reset": "earliest", "group.id": workload.name, "session.timeout.ms": "6000" },
        });
        let subscription = self.create(stack, "subscriptions", &subscription).await?;
        let took = until("the no-op handler has seen every event", DRAINED_WITHIN, async || {
            let calls = *self.calls();
            match calls.first_and_last {
                Some((first, last)) if calls.count >= workload.events => Ok(last - first),
                _ => Err(format!("{} calls", calls.count)),
            }
        })
        .await?;
        let path = format!("subscriptions/{}", subscription["id"].as_str().unwrap_or_default());
        let deleted = self.client.delete(format!("{}/{path}", stack.restate.admin())).send();
        deleted.await?.error_for_status()?;
        Ok(workload.events as f64 / took.as_secs_f64())
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn create(&self, stack: &Stack, path: &str, what: &Value) -> anyhow::Result<Value> {
        let request = self.client.post(format!("{}/{path}", stack.restate.admin())).json(what);
        let response = request.send().await?;
        let status = response.status();
        let body = response.text().await?;
        ensure!(status.is_success(), "{path}: {status}: {body}");
        Ok(serde_json::from_str(&body)?)
    }
}
