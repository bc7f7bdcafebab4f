//! The task that deletes idempotency records which no repeat can ask for any more, in small pages beside the path.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::restate_admin::{self, RestateAdmin};
use crate::rounds::Rounds;
use crate::store;
use crate::store::idempotency::{PAGE_ROWS, Sweep};
use crate::transience::Fault;

/// Interval of the turns.
const EVERY: Duration = Duration::from_secs(600);

/// Pause before a turn that failed is begun again; each next one is twice as long, up to [`EVERY`].
const AGAIN: Duration = Duration::from_secs(5);

/// After so many turns, a day's, the walk begins at the oldest record again: a clock that was set back, or a restored table, may
/// have put records behind it.
const TURNS: u32 = 144;

/// Rest after each page, in times of what the page took: the sweep has the database for a tenth of the time. So it still deletes
/// several times as fast as the path writes.
const REST: u32 = 9;

/// The task, and what it works with.
pub struct Sweeper {
    pub pool: PgPool,
    pub admin: RestateAdmin,
    pub retention: Duration,
    pub metrics: Arc<Metrics>,
    pub rounds: Rounds,
}

/// The reason why a turn failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the oldest unfinished invocation is not known, so no idempotency record is swept")]
    Admin(#[from] restate_admin::Error),
    #[error("idempotency records are not swept")]
    Store(#[from] store::Error),
}

impl Error {
    fn fault(&self) -> Fault {
        match self {
            Error::Admin(error) => error.fault(),
            Error::Store(error) => error.fault(),
        }
    }
}

impl Sweeper {
    /// Sweeps for ever. A turn that failed is begun again soon.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(EVERY);
        let mut failures = 0;
        loop {
            let mut walk = Sweep::default();
            let mut turns = 0;
            while turns < TURNS {
                ticks.tick().await;
                match self.turn(&mut walk).await {
                    Ok(swept) => {
                        tracing::debug!(swept, "swept idempotency records");
                        self.rounds.passed();
                        turns += 1;
                        failures = 0;
                    }
                    Err(error) => {
                        self.rounds.failed(error.fault(), &error);
                        ticks.reset_after(AGAIN.saturating_mul(1 << failures.min(7)).min(EVERY));
                        failures += 1;
                    }
                }
            }
        }
    }

    /// Deletes all that is old enough, unless Restate does not name its unfinished invocations.
    async fn turn(&self, walk: &mut Sweep) -> Result<u64, Error> {
        let unfinished_since = self.admin.oldest_unfinished().await?;
        let mut total = 0;
        loop {
            let start = Instant::now();
            let swept = walk.page(&self.pool, self.retention, unfinished_since).await?;
            self.metrics.swept_records.inc_by(swept);
            total += swept;
            if swept < PAGE_ROWS.unsigned_abs() {
                return Ok(total);
            }
            tokio::time::sleep(start.elapsed() * REST).await;
        }
    }
}
