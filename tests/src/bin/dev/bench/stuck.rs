//! The path beside a key that does not get on, with 100,000 events behind it: once they wait in the engine for a first one that is
//! retried, once they are parked. Rounds without such a key are taken before and after each, after some that count for nothing: the
//! broker compiles itself while it works.

use std::time::Duration;

use anyhow::ensure;
use holdfast_tests::kit::{Holdfast, until};
use holdfast_tests::load::{Event, Pace, Producer, RESERVATIONS};
use serde_json::json;
use tracing::info;

use super::{Bench, median, rounded};

const BEHIND: usize = 100_000;
const PATIENCE: Duration = Duration::from_secs(300);
/// A ticket with a row that no release can read: its first event is retried.
const WAITS: &str = "stuck-waits";
/// A ticket whose events break a constraint: they are parked.
const PARKED: &str = "stuck-parked";

impl Bench {
    /// Throughput of all other keys with such a key and without.
    pub(super) async fn stuck(&mut self, run: &Holdfast) -> anyhow::Result<()> {
        let behind = self.scaled(BEHIND);
        for ticket in [WAITS, PARKED] {
            let mut producer = Producer::new(&self.stack.kafka, RESERVATIONS)?;
            let listing = Event::listed(format!("{ticket}-list"), ticket, "any");
            producer.send_all([listing].into_iter(), Pace::FullSpeed).await?;
        }
        self.hear(2).await?;
        self.sql(
            "alter table tickets add constraint bench_stuck check (ticket <> 'stuck-parked' or version < 2) not valid",
        )
        .await?;

        for part in 1..=2 {
            self.rounds(&format!("stuck-warm-up-{part}"), run).await?;
        }
        let before = self.rounds("stuck-before", run).await?;
        self.sql("update tickets set price_currency = 'ZZZ' where ticket = 'stuck-waits'")
            .await?;
        self.request(WAITS, behind, run).await?;
        let waiting = self.rounds("stuck-waiting", run).await?;
        self.sql("update tickets set price_currency = 'EUR' where ticket = 'stuck-waits'")
            .await?;
        self.hear(behind).await?;

        let between = self.rounds("stuck-between", run).await?;
        self.request(PARKED, behind, run).await?;
        self.all_are_parked(behind).await?;
        let parked = self.rounds("stuck-parked", run).await?;
        self.sql("alter table tickets drop constraint bench_stuck").await?;
        let replay = self.stack.holdfast("admin", "replay").arg("quarantine").arg("replay");
        let replay = replay.arg("--all").arg("--by").arg("bench").arg("--why").arg("mended");
        let replayed = replay.arg("--wait").arg("5m").output().await?;
        ensure!(
            replayed.status.success(),
            "{}",
            String::from_utf8_lossy(&replayed.stderr)
        );
        self.hear(behind).await?;
        let after = self.rounds("stuck-after", run).await?;

        let rounds = json!({
            "before": rounded(&before), "waiting": rounded(&waiting), "between": rounded(&between),
            "parked": rounded(&parked), "after": rounded(&after),
        });
        self.report.detail("stuck_rounds_eps", rounds);
        for (key, with, without) in [
            ("stuck_ratio", waiting, [before, between.clone()]),
            ("quarantine_ratio", parked, [between, after]),
        ] {
            let ratio = median(with) / median(without.concat());
            self.report.at_least(key, ratio, 0.95, "with / without");
        }
        Ok(())
    }

    /// Requests for one ticket, until the gate has read them all.
    async fn request(&self, ticket: &str, count: usize, run: &Holdfast) -> anyhow::Result<()> {
        info!("stuck: {count} events for {ticket}");
        let requests = (0..count).map(|number| Event::requested(format!("{ticket}-{number}"), ticket, "ann"));
        let mut producer = Producer::new(&self.stack.kafka, RESERVATIONS)?;
        producer.send_all(requests, Pace::FullSpeed).await?;
        until("the gate has read them", PATIENCE, async || {
            let lag = run.metric(r#"holdfast_gate_lag_records{topic="reservations"}"#).await?;
            ensure!(lag == Some(0.0), "{lag:?} records to read");
            anyhow::Ok(())
        })
        .await
    }

    async fn all_are_parked(&self, count: usize) -> anyhow::Result<()> {
        let pool = self.stack.postgres.connect().await?;
        until("all are parked", PATIENCE, async || {
            let parked: i64 = sqlx::query_scalar("select count(*) from parked_events")
                .fetch_one(&pool)
                .await?;
            ensure!(parked == count as i64, "{parked} of {count}");
            anyhow::Ok(())
        })
        .await?;
        pool.close().await;
        Ok(())
    }
}
