//! The most that one relay brings to Kafka: it finds an outbox full of outcomes, and shares the machine with Kafka and PostgreSQL
//! alone. The clock runs from the arrival of the first outcome to that of the last.

use std::time::Duration;

use anyhow::ensure;
use holdfast_tests::kit::until;
use holdfast_tests::load::{Pace, Producer, RESERVATIONS};
use tracing::info;

use super::workload::Workload;
use super::{Apart, Bench};

const DECIDED_WITHIN: Duration = Duration::from_secs(300);

impl Bench {
    pub(super) async fn relay(&mut self) -> anyhow::Result<()> {
        let workload = Workload::new("relay", self.scaled(2_000), self.scaled(100_000));
        let apart = Apart::start(&self.stack, &self.provider).await?;
        self.list(&workload).await?;
        apart.relay.stop().await?;
        info!("relay: {} outcomes into the outbox", workload.events);
        let mut producer = Producer::new(&self.stack.kafka, RESERVATIONS)?;
        producer.send_all(workload.events(), Pace::FullSpeed).await?;
        self.all_wait_in_the_outbox(workload.events).await?;
        apart.stop().await?;

        let relay = self.stack.holdfast("relay", "apart-relay").start().await?;
        let first = self.hear(1).await?;
        let rest = workload.events - 1;
        let last = self.hear(rest).await?;
        relay.stop().await?;
        let eps = rest as f64 / (last - first).as_secs_f64();
        self.report.figure("relay_eps", eps, "outcomes/s");
        Ok(())
    }

    async fn all_wait_in_the_outbox(&self, count: usize) -> anyhow::Result<()> {
        let pool = self.stack.postgres.connect().await?;
        until("every outcome waits", DECIDED_WITHIN, async || {
            let rows: i64 = sqlx::query_scalar("select count(*) from outbox")
                .fetch_one(&pool)
                .await?;
            ensure!(rows == i64::try_from(count)?, "{rows} of {count}");
            anyhow::Ok(())
        })
        .await?;
        pool.close().await;
        Ok(())
    }
}
