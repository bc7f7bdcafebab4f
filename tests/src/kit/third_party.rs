//! Servers of third parties that speak the payment provider's API and move no money.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::ports::Ports;
use super::provider::KEY;
use super::server::Kind;
use super::{Server, dev_folder, fetch, process};

/// Both, with their logs in `.dev/conformance`.
pub struct ThirdParties {
    pub stripe_mock: Server<StripeMock>,
    pub localstripe: Server<LocalStripe>,
    /// Held as long as they live.
    _alone: File,
}

/// Checks each request against Stripe's published description, and answers with an example. It keeps no state.
pub struct StripeMock {
    binary: PathBuf,
    port: u16,
    secure_port: u16,
}

/// Keeps the states of payments. It knows neither idempotency keys nor lists by time, and answers with few codes.
pub struct LocalStripe {
    python: PathBuf,
    port: u16,
}

impl ThirdParties {
    /// Fetches them when they are not there; returns once both answer.
    pub async fn start() -> anyhow::Result<ThirdParties> {
        let others = spawn_blocking(open).await??;
        tokio::try_join!(others.stripe_mock.start(), others.localstripe.start())?;
        Ok(others)
    }
}

fn open() -> anyhow::Result<ThirdParties> {
    let folder = dev_folder().join("conformance");
    fs::create_dir_all(&folder)?;
    let alone = File::create(folder.join("lock"))?;
    alone.try_lock().context("another process uses these servers")?;
    process::stop_leftovers(&folder)?;
    let ports = Ports::open(folder.join("ports.json"))?;
    let stripe_mock = StripeMock {
        binary: fetch::stripe_mock()?,
        port: ports.get(StripeMock::NAME)?,
        secure_port: ports.get("stripe-mock-tls")?,
    };
    let localstripe = LocalStripe {
        python: fetch::localstripe()?,
        port: ports.get(LocalStripe::NAME)?,
    };
    Ok(ThirdParties {
        stripe_mock: Server::new(stripe_mock, folder.clone()),
        localstripe: Server::new(localstripe, folder),
        _alone: alone,
    })
}

impl Kind for StripeMock {
    const NAME: &'static str = "stripe-mock";
    const STOP: Signal = Signal::SIGTERM;

    fn prepare(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = process::command(&self.binary, None);
        // A version other than the one described is an error.
        let address = |port| format!("127.0.0.1:{port}");
        command.args(["-strict-version-check", "-http-addr", &address(self.port)]);
        command.args(["-https-addr", &address(self.secure_port)]);
        command
    }

    async fn answers(&self) -> anyhow::Result<()> {
        reqwest::get(self.url()).await.map(drop).map_err(Into::into)
    }
}

impl StripeMock {
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The address with TLS and an untrusted certificate.
    pub fn secure_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.secure_port)
    }
}

impl Kind for LocalStripe {
    const NAME: &'static str = "localstripe";
    const STOP: Signal = Signal::SIGTERM;

    fn prepare(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = process::command(&self.python, None);
        command.args(["-m", "localstripe", "--from-scratch", "--port"]);
        command.arg(self.port.to_string());
        command
    }

    async fn answers(&self) -> anyhow::Result<()> {
        reqwest::get(self.url()).await.map(drop).map_err(Into::into)
    }
}

impl LocalStripe {
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Sets the address of its webhooks and the secret that signs them.
    pub async fn webhooks_to(&self, url: &str, secret: &str) -> anyhow::Result<()> {
        let target = reqwest::Client::new().post(format!("{}/_config/webhooks/kit", self.url()));
        let target = target.json(&json!({ "url": url, "secret": secret }));
        target.send().await?.error_for_status()?;
        Ok(())
    }

    /// Sends a request past the adapter, as a shop and a browser do.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(reqwest::Client::new().get(self.address(path))).await
    }

    pub async fn post(&self, path: &str, form: &str) -> anyhow::Result<Value> {
        let request = reqwest::Client::new().post(self.address(path));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        self.ask(request.body(form.to_owned())).await
    }

    fn address(&self, path: &str) -> String {
        format!("{}/v1/{path}", self.url())
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let answer = request.bearer_auth(KEY).send().await?.error_for_status()?;
        Ok(answer.json().await?)
    }
}
