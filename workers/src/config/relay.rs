//! Settings: the relay.

use clap::Args;

use super::Checks;

/// The bounds of the relay's batches.
#[derive(Args, Debug, Clone)]
pub struct Relay {
    /// Most outbox rows in one Kafka transaction.
    #[arg(
        long = "relay-batch",
        env = "HOLDFAST_RELAY_BATCH",
        default_value_t = 1_000,
        global = true
    )]
    pub batch: usize,
}

impl Relay {
    pub(super) fn check(&self, checks: &mut Checks) {
        checks.require(
            (1..=1_000).contains(&self.batch),
            "relay-batch",
            "give 1 to 1000: more ids do not fit beside a Kafka offset",
        );
    }
}
