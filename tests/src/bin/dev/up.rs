//! The local stack held open.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use holdfast_tests::kit::{Name, Stack, dev_folder};
use serde_json::json;
use tracing::{info, warn};

/// Tells clients where everything is, as long as it is there.
struct Addresses(PathBuf);

pub(crate) async fn run() -> anyhow::Result<()> {
    let stack = Stack::open(Name::Dev).await?;
    stack.start().await?;
    let holdfast = stack.holdfast("run", "dev").arg("--examples").start().await?;
    let addresses = json!({
        "kafka": stack.kafka.bootstrap(),
        "restate_ingress": stack.restate.ingress(),
        "restate_admin": stack.restate.admin(),
        "postgres": stack.postgres.url(),
        "loyalty": stack.postgres.loyalty_url(),
        "holdfast_http": holdfast.http,
        "mail": stack.maildev.as_ref().map(|maildev| maildev.web()),
    });
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
