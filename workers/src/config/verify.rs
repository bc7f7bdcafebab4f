//! Settings: verify.

use std::time::Duration;

use clap::Args;

use super::Checks;

/// Limits by which `verify` judges.
#[derive(Args, Debug, Clone)]
pub struct Verify {
    /// Age from which `verify` counts a record as lost that nothing accounts for, by its broker's time; until then it is pending.
    #[arg(long, env = "HOLDFAST_LOST_AFTER", default_value = "1h", value_parser = humantime::parse_duration, global = true)]
    pub lost_after: Duration,
}

impl Verify {
    pub(super) fn check(&self, checks: &mut Checks) {
        checks.require(
            self.lost_after >= Duration::from_secs(1),
            "lost-after",
            "give at least 1s: a shorter one counts records as lost that are on their way",
        );
    }
}
