//! Settings: verify.

use std::time::Duration;

use clap::Args;

use super::Checks;

/// Limits by which `verify` judges, and the pace of `verify --watch`.
#[derive(Args, Debug, Clone)]
pub struct Verify {
    /// Age from which `verify` counts a record as lost that nothing accounts for, by its broker's time; until then it is pending.
    #[arg(long, env = "HOLDFAST_LOST_AFTER", default_value = "1h", value_parser = humantime::parse_duration, global = true)]
    pub lost_after: Duration,
    /// Interval in which `verify --watch` looks at what is new.
    #[arg(long, env = "HOLDFAST_WATCH_EVERY", default_value = "10s", value_parser = humantime::parse_duration, global = true)]
    pub watch_every: Duration,
    /// Percent of the time that `verify --watch` spends on its pass over everything, which it makes in steps with rests between them.
    #[arg(long, env = "HOLDFAST_WATCH_SHARE", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100), global = true)]
    pub watch_share: u32,
    /// The most facts that one look of `verify --watch` holds of tickets, of users, and of the ledger: it bounds the memory, at some 150
    /// bytes for each. Everything about one key must fit.
    #[arg(long, env = "HOLDFAST_WATCH_FACTS", default_value_t = 500_000, global = true)]
    pub watch_facts: usize,
}

impl Verify {
    pub(super) fn check(&self, checks: &mut Checks) {
        checks.require(
            self.lost_after >= Duration::from_secs(1),
            "lost-after",
            "give at least 1s: a shorter one counts records as lost that are on their way",
        );
        checks.require(
            self.watch_every >= Duration::from_millis(100),
            "watch-every",
            "give at least 100ms: each look opens connections of its own",
        );
        checks.require(
            self.watch_facts >= 1_000,
            "watch-facts",
            "give at least 1000: everything about one key must fit",
        );
    }
}
