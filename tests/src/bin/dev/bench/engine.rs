//! Objects that this process serves to the engine, each subscribed straight to topics.

use anyhow::{Context, ensure};
use holdfast_tests::kit::Stack;
use restate_sdk::prelude::*;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// The engine's admin interface, and the Kafka cluster by the name that it has there.
pub(super) struct Engine {
    admin: String,
    cluster: &'static str,
    client: reqwest::Client,
}

pub(super) struct Subscription(String);

impl Engine {
    /// Serves `endpoint` at a port of its own and registers it. `name`: of the port and of the Kafka cluster.
    pub(super) async fn serve(stack: &Stack, name: &'static str, endpoint: Endpoint) -> anyhow::Result<Engine> {
        let address = format!("127.0.0.1:{}", stack.ports.get(name)?);
        let listener = TcpListener::bind(&address).await?;
        tokio::spawn(HttpServer::new(endpoint).serve_with_cancel(listener, std::future::pending::<()>()));
        let engine = Engine {
            admin: stack.restate.admin(),
            cluster: name,
            client: reqwest::Client::new(),
        };
        let deployment = json!({ "uri": format!("http://{address}") });
        engine.create("deployments", &deployment).await?;
        let cluster = json!({ "name": name, "properties": { "bootstrap.servers": stack.kafka.bootstrap() } });
        engine.create("kafka-clusters", &cluster).await?;
        Ok(engine)
    }

    /// Has `handler` (`Object/handler`) called for each record of the topic, from the oldest on.
    pub(super) async fn subscribe(&self, topic: &str, handler: &str) -> anyhow::Result<Subscription> {
        let subscription = json!({
            "source": format!("kafka://{}/{topic}", self.cluster),
            "sink": format!("service://{handler}"),
            "options": { "auto.offset.reset": "earliest", "group.id": topic, "session.timeout.ms": "6000" },
        });
        let subscription = self.create("subscriptions", &subscription).await?;
        let id = subscription["id"].as_str().context("a subscription without an id")?;
        Ok(Subscription(String::from(id)))
    }

    pub(super) async fn unsubscribe(&self, Subscription(id): Subscription) -> anyhow::Result<()> {
        let deleted = self.client.delete(format!("{}/subscriptions/{id}", self.admin)).send();
        deleted.await?.error_for_status()?;
        Ok(())
    }

    async fn create(&self, path: &str, what: &Value) -> anyhow::Result<Value> {
        let request = self.client.post(format!("{}/{path}", self.admin)).json(what);
        let response = request.send().await?;
        let status = response.status();
        let body = response.text().await?;
        ensure!(status.is_success(), "{path}: {status}: {body}");
        Ok(serde_json::from_str(&body)?)
    }
}
