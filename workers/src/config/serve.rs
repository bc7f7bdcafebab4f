//! Settings: `serve`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use super::Checks;

/// The address of `serve`, and the bounds of its statements and retries.
#[derive(Args, Debug, Clone)]
pub struct Serve {
    /// Address on which the objects listen for Restate (HTTP/2).
    #[arg(
        long = "serve-listen",
        env = "HOLDFAST_SERVE_LISTEN",
        default_value = "127.0.0.1:9080",
        global = true
    )]
    pub listen: SocketAddr,
    /// Most events in one statement.
    #[arg(
        long = "batch-events",
        env = "HOLDFAST_BATCH_EVENTS",
        default_value_t = 2_000,
        global = true
    )]
    pub batch_events: usize,
    /// Most bytes of events in one statement.
    #[arg(long = "batch-bytes", env = "HOLDFAST_BATCH_BYTES", default_value_t = 4 << 20, global = true)]
    pub batch_bytes: usize,
    /// Longest pause before Restate calls a handler again that failed; pauses double from 100ms up to it.
    #[arg(long, env = "HOLDFAST_RETRY_PAUSE", default_value = "10s", value_parser = humantime::parse_duration, global = true)]
    pub retry_pause: Duration,
    /// Serve the example handlers too. Some are unsafe, to show what goes wrong; they touch tables of their own.
    #[arg(long, env = "HOLDFAST_EXAMPLES", global = true)]
    pub examples: bool,
}

impl Serve {
    pub(super) fn check(&self, checks: &mut Checks) {
        checks.require(
            (1..=10_000).contains(&self.batch_events),
            "batch-events",
            "give 1 to 10000",
        );
        checks.require(self.batch_bytes >= 1 << 16, "batch-bytes", "give at least 65536");
        checks.require(
            self.retry_pause >= Duration::from_millis(100),
            "retry-pause",
            "give at least 100ms",
        );
    }
}
