//! The roles of the product as processes of their own, each of which can be killed and started again alone.

use anyhow::ensure;
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Holdfast, Kit};

/// One gate, one serve and one relay, with the tables, topics and deployment that they need.
pub(crate) struct Workers {
    pub(crate) gate: Holdfast,
    pub(crate) serve: Holdfast,
    pub(crate) relay: Holdfast,
}

impl Workers {
    pub(crate) async fn start(kit: &Kit) -> anyhow::Result<Self> {
        Self::start_with(kit, |serve| serve).await
    }

    /// As [`Self::start`], with what `serve` needs besides.
    pub(crate) async fn start_with<'a>(kit: &'a Kit, equip: impl Fn(Launch<'a>) -> Launch<'a>) -> anyhow::Result<Self> {
        done(kit.stack.holdfast("migrate", "migrate")).await?;
        let serve = equip(kit.stack.holdfast("serve", "serve")).start().await?;
        done(kit.stack.holdfast("register", "register")).await?;
        let (gate, relay) = (kit.stack.holdfast("gate", "gate"), kit.stack.holdfast("relay", "relay"));
        let (gate, relay) = tokio::try_join!(gate.start(), relay.start())?;
        Ok(Self { gate, serve, relay })
    }

    /// The process of this subcommand.
    pub(crate) fn part(&mut self, subcommand: &str) -> &mut Holdfast {
        match subcommand {
            "gate" => &mut self.gate,
            "serve" => &mut self.serve,
            _ => &mut self.relay,
        }
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.gate.stop().await?;
        self.serve.stop().await?;
        self.relay.stop().await
    }
}

/// Runs a subcommand that ends by itself and must succeed.
pub(crate) async fn done(launch: Launch<'_>) -> anyhow::Result<()> {
    let output = launch.output().await?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", output.status);
    Ok(())
}
