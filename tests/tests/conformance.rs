//! What others have to understand, against programs of theirs, which `make conformance` fetches. The payment provider's adapter:
//! `stripe-mock` checks every request against Stripe's published description, `localstripe` keeps the states of payments. The rules:
//! Prometheus' `promtool` runs each alert's cases. The dashboards: Grafana's own library reads them. The recipes for those who send and
//! read: each in its language, by the client and the CloudEvents SDK that others wrote. Image, chart and trial: see `deployment`.
//!
//! A word picks the parts whose name holds it: `make conformance TEST=recipes`. `apiserver` is a part by itself, which runs only when it is
//! asked for (`make apiserver`).

#[path = "conformance/apiserver.rs"]
mod apiserver;
#[path = "provider/conversation.rs"]
mod conversation;
#[path = "conformance/deployment.rs"]
mod deployment;
#[path = "provider/receiver.rs"]
mod receiver;
mod recipes;

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use holdfast::metrics::Metrics;
use holdfast::provider::webhook::What;
use holdfast::provider::{About, Provider};
use holdfast_schemas::PaymentId;
use holdfast_tests::kit::provider::{KEY, ReceivedRequest, Simulator};
use holdfast_tests::kit::third_party::{LocalStripe, ThirdParties};
use holdfast_tests::kit::{self, fetch, prepare_process, process, until};
use holdfast_tests::monitoring::{dashboards_folder, rules_folder};
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;
use tracing::error;

use conversation::{Buyer, Card, EXACT, Party, TALKS, hold, settings};
use receiver::{Receiver, SECRET};

const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    prepare_process();
    match kit::run_to_end(|| Runtime::new()?.block_on(run())) {
        Ok(Some(Ok(()))) => ExitCode::SUCCESS,
        Ok(None) => ExitCode::from(kit::INTERRUPTED),
        Ok(Some(Err(error))) | Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let word = std::env::args().nth(1).unwrap_or_default();
    if word == "apiserver" {
        return apiserver::check().await.context("kube-apiserver");
    }
    if "rules and dashboards".contains(&word) {
        spawn_blocking(rules_and_dashboards).await??;
    }
    if "deployment".contains(&word) {
        spawn_blocking(deployment::check).await??;
    }
    if "provider".contains(&word) {
        provider_of_others().await?;
    }
    if "recipes".contains(&word) {
        recipes::run().await.context("recipes")?;
    }
    Ok(())
}

/// The adapter, against servers that speak the provider's API.
async fn provider_of_others() -> anyhow::Result<()> {
    let asked = every_request().await?;
    let others = ThirdParties::start().await?;
    described(&others.stripe_mock.url(), &asked)
        .await
        .context("stripe-mock")?;
    // Its certificate is its own.
    let stranger = provider(&others.stripe_mock.secure_url(), KEY)?;
    let answer = stranger.create(&Buyer::new("stranger", "pm_card_visa")?.order()).await;
    let seen = answer.map_err(|error| holdfast::error::chain(&error));
    ensure!(
        seen.as_ref().is_err_and(|seen| seen.contains("certificate")),
        "{seen:?}"
    );
    println!(
        "stripe-mock: {} requests are as Stripe describes them, and its answers are understood",
        asked.len()
    );
    let localstripe = &*others.localstripe;
    let receiver = Receiver::start(0).await?;
    localstripe.webhooks_to(&receiver.url(), SECRET).await?;
    hold(&provider(&localstripe.url(), KEY)?, localstripe, TALKS)
        .await
        .context("localstripe")?;
    // localstripe sends each webhook a second later.
    for talk in ["talk-captured-and-given-back", "talk-proved"] {
        until("localstripe tells what was captured", PATIENCE, async || {
            let events = receiver.events()?;
            let told = events.iter().any(|event| {
                let of_talk = event
                    .buyer
                    .as_ref()
                    .is_some_and(|(checkout, _)| checkout.as_str() == talk);
                of_talk && matches!(event.event.what, What::Captured(_))
            });
            ensure!(told, "{talk} is not among {events:?}");
            anyhow::Ok(())
        })
        .await?;
    }
    println!(
        "localstripe: {} talks went as expected, and its signed events are understood",
        TALKS.len()
    );
    Ok(())
}

/// Each alert fires and does not fire as its cases say; no field of a dashboard is unknown to Grafana.
fn rules_and_dashboards() -> anyhow::Result<()> {
    let promtool = fetch::prometheus()?.join("usr/bin/promtool");
    let checks: [&[&str]; 2] = [
        &["check", "config", "prometheus.yml"],
        &["test", "rules", "alerts.test.yml", "objectives.test.yml"],
    ];
    for arguments in checks {
        let mut command = Command::new(&promtool);
        command.args(arguments).current_dir(rules_folder());
        process::output(command)?;
    }
    println!("promtool: the rules are well formed, and every case of every alert goes as expected");
    let mut read_back = Command::new(fetch::grafana()?);
    read_back.arg(fetch::manifests().join("grafana/read_back.py"));
    for entry in std::fs::read_dir(dashboards_folder())? {
        read_back.arg(entry?.path());
    }
    process::output(read_back)?;
    println!("Grafana's library reads the dashboards, and loses nothing of them");
    Ok(())
}

fn provider(url: &str, key: &str) -> anyhow::Result<Provider> {
    let provider = Provider::new(&settings(url, key, PATIENCE)?, Arc::new(Metrics::new()?))?;
    provider.context("no provider")
}

/// Every request that the adapter can send, gathered from the whole conversation with the simulator and a search of two pages.
async fn every_request() -> anyhow::Result<Vec<ReceivedRequest>> {
    let simulator = Simulator::start().await?;
    let provider = provider(&simulator.url(), KEY)?;
    hold(&provider, &simulator, TALKS).await?;
    hold(&provider, &simulator, EXACT).await?;
    let connected = Buyer::new("connected", "pm_card_visa")?;
    let mut order = connected.order();
    order.about = About {
        on_behalf_of: Some("acct_1"),
        destination: Some("acct_1"),
        fee: Some(100),
        statement_suffix: Some("HAMLET"),
        description: Some("Hamlet"),
    };
    let id = provider.create(&order).await?.id;
    provider.authorise(&id, &order).await?;
    provider.capture(&id, &connected.checkout).await?;
    provider.refund(&id, &connected.checkout).await?;
    let now = holdfast_tests::load::now();
    provider.each(now - time::Duration::days(3), now, &mut |_| ()).await?;
    let buyer = Buyer::new("found", "pm_card_visa")?;
    for other in 0..100 {
        let other = Buyer::new(&format!("other-{other}"), "pm_card_visa")?;
        provider.create(&other.order()).await?;
    }
    provider.find(&buyer.checkout, holdfast_tests::load::now()).await?;
    Ok(simulator.asked())
}

/// stripe-mock accepts every request, and the adapter reads every kind of answer.
async fn described(url: &str, asked: &[ReceivedRequest]) -> anyhow::Result<()> {
    let client = reqwest::Client::new();
    for asked in asked {
        let mut request = client.request(asked.method.clone(), format!("{url}{}", asked.path));
        for name in ["authorization", "stripe-version", "content-type", "idempotency-key"] {
            if let Some(value) = asked.headers.get(name) {
                request = request.header(name, value);
            }
        }
        let answer = request.body(asked.body.clone()).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(
            status.is_success(),
            "{} {} {}: {status} {text}",
            asked.method,
            asked.path,
            asked.body
        );
    }
    let provider = provider(url, KEY)?;
    let buyer = Buyer::new("described", "pm_card_visa")?;
    let payment = provider.create(&buyer.order()).await?;
    provider.get(&payment.id).await?;
    provider
        .cancel(&payment.id, &buyer.checkout)
        .await
        .map(drop)
        .or_else(unmoved)?;
    provider.find(&buyer.checkout, holdfast_tests::load::now()).await?;
    Ok(())
}

/// stripe-mock keeps no state: whatever step was taken, the payment has not changed.
fn unmoved(error: holdfast::provider::Error) -> anyhow::Result<()> {
    ensure!(error.to_string().contains("it was done"), "{error:?}");
    Ok(())
}

impl Party for LocalStripe {
    async fn card(&self, card: Card) -> anyhow::Result<String> {
        match card {
            Card::Good => Ok("pm_card_visa".into()),
            Card::Declined => Ok("pm_card_chargeCustomerFail".into()),
            Card::Asks => {
                let fields =
                    "type=card&card[number]=4000002500003155&card[exp_month]=12&card[exp_year]=2030&card[cvc]=123";
                let made = self.post("payment_methods", fields).await?;
                let id = made["id"].as_str().ok_or_else(|| anyhow!("{made}"))?;
                Ok(id.to_owned())
            }
        }
    }

    async fn customer(&self, payment: &PaymentId, success: bool) -> anyhow::Result<()> {
        let path = format!("payment_intents/{payment}");
        let secret = self.get(&path).await?["client_secret"].as_str().map(String::from);
        let fields = format!("client_secret={}&success={success}", secret.context("no secret")?);
        self.post(&format!("{path}/_authenticate"), &fields).await.map(drop)
    }
}
