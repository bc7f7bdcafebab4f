//! The local stack held open, with a payment provider that moves no money, and a Prometheus.
//!
//! The provider forgets its books when it ends, while the databases keep theirs: `holdfast verify` compares the two only if it
//! is given the provider, and then only agrees about a stack whose data is as young as the provider.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use holdfast_tests::kit::doors;
use holdfast_tests::kit::process::lock;
use holdfast_tests::kit::{Collector, Installation, Name, Stack, dev_folder};
use serde_json::json;
use tracing::{info, warn};

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
    let collector = Collector::start_at(stack.ports.get("otlp")?).await?;
    *lock(&stack.restate.tracing) = Some(collector.endpoint());
    stack.start().await?;
    let provider = stack.provider().await?;
    let hold_for = std::env::var(HOLD_FOR).ok();
    let traces = collector.endpoint();
    let traces = [
        ("HOLDFAST_TRACES_ENDPOINT", traces.as_str()),
        ("HOLDFAST_TRACES_SAMPLE", "1"),
    ];
    let hold_for_set = hold_for.iter().map(|hold_for| (HOLD_FOR, hold_for.as_str()));
    let settings: Vec<_> = hold_for_set.chain(traces).collect();
    let installation = Installation::start(&stack, &provider, "dev", &settings).await?;
    let mut addresses = installation.addresses.clone();
    addresses["hold_for"] = json!(hold_for);
    addresses["traces"] = json!(collector.page());
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
    let holdfast = &installation.run;
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
