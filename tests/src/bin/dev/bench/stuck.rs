//! The path beside a key that does not get on, with 100,000 events behind it: once they wait in the engine for a first one that is
//! retried, once they are parked. The machine is quicker at one time than at another by more than such a key costs, so each round beside
//! it is compared with the rounds just before and after, after some that count for nothing: the broker compiles itself while it works.

use std::time::Duration;

use anyhow::ensure;
use holdfast_tests::kit::{Holdfast, until};
use holdfast_tests::load::{Event, Pace, Producer, RESERVATIONS};
use serde_json::json;
use tracing::info;

use super::{Bench, median, rounded};

const BEHIND: usize = 100_000;
const TURNS: usize = 5;
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
        self.rounds("stuck-warm-up", run).await?;
        let mut alone = vec![self.round("alone", 0, run).await?];
        let (mut waiting, mut parked) = (Vec::new(), Vec::new());
        for turn in 1..=TURNS {
            self.sql("update tickets set price_currency = 'ZZZ' where ticket = 'stuck-waits'")
                .await?;
            self.request(WAITS, turn, behind, run).await?;
            waiting.push(self.round("beside-waiting", turn, run).await?);
            self.sql("update tickets set price_currency = 'EUR' where ticket = 'stuck-waits'")
                .await?;
            self.hear(behind).await?;
            alone.push(self.round("alone-between", turn, run).await?);

            self.sql(
                "alter table tickets add constraint bench_stuck check (ticket <> 'stuck-parked' or version < 2) not valid",
            )
            .await?;
            self.request(PARKED, turn, behind, run).await?;
            self.all_are_parked(behind).await?;
            parked.push(self.round("beside-parked", turn, run).await?);
            self.sql("alter table tickets drop constraint bench_stuck").await?;
            self.replay().await?;
            self.hear(behind).await?;
            alone.push(self.round("alone", turn, run).await?);
        }

        let rounds = json!({ "alone": rounded(&alone), "waiting": rounded(&waiting), "parked": rounded(&parked) });
        self.report.detail("stuck_rounds_eps", rounds);
        for (key, with, first) in [("stuck_ratio", waiting, 0), ("quarantine_ratio", parked, 1)] {
            let without = alone.windows(2).skip(first).step_by(2);
            let without = without.map(|around| (around[0] + around[1]) / 2.0);
            let ratios = with.iter().zip(without).map(|(with, without)| with / without);
            self.report
                .at_least(key, median(ratios.collect()), 0.95, "with / without");
        }
        Ok(())
    }

    async fn replay(&self) -> anyhow::Result<()> {
        let replay = self.stack.holdfast("admin", "replay").arg("quarantine").arg("replay");
        let replay = replay.arg("--all").arg("--by").arg("bench").arg("--why").arg("mended");
        let replayed = replay.arg("--wait").arg("5m").output().await?;
        ensure!(
            replayed.status.success(),
            "{}",
            String::from_utf8_lossy(&replayed.stderr)
        );
        Ok(())
    }

    /// Requests for one ticket, until the gate has read them all.
    async fn request(&self, ticket: &str, turn: usize, count: usize, run: &Holdfast) -> anyhow::Result<()> {
        info!("stuck: {count} events for {ticket}");
        let requests = (0..count).map(|number| Event::requested(format!("{ticket}-{turn}-{number}"), ticket, "ann"));
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
