//! Settings: the gate.

use clap::Args;

use super::Checks;

/// The gate's consumer group and the bounds of its windows.
#[derive(Args, Debug, Clone)]
pub struct Gate {
    /// Kafka consumer group of the gates.
    #[arg(
        long = "gate-group",
        env = "HOLDFAST_GATE_GROUP",
        default_value = "holdfast.gate",
        global = true
    )]
    pub group: String,
    /// Most records in one window.
    #[arg(
        long = "gate-window-records",
        env = "HOLDFAST_GATE_WINDOW_RECORDS",
        default_value_t = 20_000,
        global = true
    )]
    pub window_records: usize,
    /// Unfinished invocations in the engine above which the gate waits.
    #[arg(
        long = "gate-unfinished-limit",
        env = "HOLDFAST_GATE_UNFINISHED_LIMIT",
        default_value_t = 10_000,
        global = true
    )]
    pub unfinished_limit: u64,
}

impl Gate {
    pub(super) fn check(&self, checks: &mut Checks) {
        checks.require(!self.group.is_empty(), "gate-group", "give a name");
        checks.require(
            (1..=1_000_000).contains(&self.window_records),
            "gate-window-records",
            "give 1 to 1000000",
        );
        checks.require(self.unfinished_limit >= 1, "gate-unfinished-limit", "give at least 1");
    }
}
