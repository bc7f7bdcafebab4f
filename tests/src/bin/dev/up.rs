//! The local stack held open, with a payment provider that moves no money.
//!
//! The provider forgets its books when it ends, while the databases keep theirs: `holdfast verify` compares the two only if it
//! is given the provider, and then only agrees about a stack whose data is as young as the provider.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use holdfast_tests::kit::doors;
use holdfast_tests::kit::provider::{self, Delivery, WEBHOOK_SECRET};
use holdfast_tests::kit::{Name, Stack, dev_folder};
use serde_json::json;
use tracing::{info, warn};

/// Short, so that a developer who kills a checkout sees the reconciler take it up soon.
const ABANDONED_AFTER: &str = "10s";

/// The one setting that `make dev` takes from the environment, for developers who want to see holds end soon.
const HOLD_FOR: &str = "HOLDFAST_HOLD_FOR";

/// The file with every address, removed when the stack ends.
struct Addresses(PathBuf);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Every wire encrypted, every party known, each with the rights that it needs; its data is removed at the next start
    #[arg(long)]
    locked: bool,
}

pub(crate) async fn run(Arguments { locked }: Arguments) -> anyhow::Result<()> {
    let stack = Stack::open(if locked { Name::Locked } else { Name::Dev }).await?;
    stack.start().await?;
    let provider = stack.provider().await?;
    provider.webhooks_to(&stack.webhook_url()?, WEBHOOK_SECRET);
    provider.deliver_always(Delivery::InOrder);
    let holdfast = stack.holdfast("run", "dev").arg("--examples").provider(&provider);
    let mut holdfast = holdfast.webhooks().env("HOLDFAST_ABANDONED_AFTER", ABANDONED_AFTER);
    let hold_for = std::env::var(HOLD_FOR).ok();
    if let Some(hold_for) = &hold_for {
        holdfast = holdfast.env(HOLD_FOR, hold_for);
    }
    let holdfast = holdfast.start().await?;
    let mut addresses = json!({
        "kafka": stack.kafka.bootstrap(),
        "restate_ingress": stack.restate.ingress(),
        "restate_admin": stack.restate.admin(),
        "postgres": stack.postgres.url(),
        "loyalty": stack.postgres.loyalty_url(),
        "holdfast_http": holdfast.http,
        "hold_for": hold_for,
        "mail": stack.maildev.as_ref().map(|maildev| maildev.web()),
        "provider": provider.url(),
        "provider_key": provider::KEY,
    });
    if locked {
        // A developer's own client takes part as the shop does.
        let login = |user: &str| {
            let login = stack.kafka.lock().map(|lock| lock.login(user))?;
            anyhow::Ok(login.into_iter().collect::<HashMap<_, _>>())
        };
        addresses["kafka_logins"] = json!({ "producer": login("producer")?, "consumer": login("consumer")? });
        addresses["restate_token"] = json!(doors::TOKEN);
        addresses["authority"] = json!(stack.authority_file());
    }
    let written = Addresses::write(&addresses)?;
    info!("{}:\n{addresses:#}", written.0.display());
    info!(
        "press Ctrl-C to stop everything; the data stays in {}",
        stack.folder().display()
    );
    let status = holdfast.wait(Duration::MAX).await?;
    anyhow::bail!("holdfast ended: {status}\n{}", holdfast.last_words())
}

impl Addresses {
    fn write(addresses: &serde_json::Value) -> anyhow::Result<Addresses> {
        let file = dev_folder().join("stack.json");
        fs::write(&file, format!("{addresses:#}\n")).with_context(|| file.display().to_string())?;
        Ok(Addresses(file))
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}
