//! The path on tables that have seen much: idempotency records of a whole retention, as many rows of the change log, and an outbox
//! that as many rows have passed. They are made by SQL before any clock starts, and taken away before `verify` looks. Then the
//! path beside a sweep that has half of the records to delete.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::kit::{Holdfast, until};
use serde_json::json;
use tracing::info;

use super::{Bench, median, rounded};

const RECORDS: usize = 10_000_000;
/// So many rows are made in one transaction.
const PORTION: usize = 500_000;
/// The records lie over the retention that is set by default, in the order in which they came; half of it is left to them later.
const RETENTION: &str = "7 days";
const HALF: Duration = Duration::from_secs(84 * 3600);
const SWEPT_WITHIN: Duration = Duration::from_secs(1_800);

impl Bench {
    /// Throughput with empty tables, with full ones, and while these are swept. Gives the worker that runs afterwards.
    pub(super) async fn aged(&mut self, run: Holdfast) -> anyhow::Result<Holdfast> {
        let fresh = self.rounds("aged-fresh", &run).await?;
        let records = self.scaled(RECORDS);
        self.fill(records).await?;
        let aged = self.rounds("aged", &run).await?;
        run.stop().await?;

        let due = records as f64 / 2.0;
        let sweeping = self.stack.holdfast("run", "run").provider(&self.provider);
        let seconds = format!("{}s", HALF.as_secs());
        let run = sweeping.env("HOLDFAST_IDEMPOTENCY_RETENTION", &seconds).start().await?;
        let swept = self.rounds("aged-swept", &run).await?;
        let meanwhile = swept_by(&run).await?;
        until("the sweep has caught up", SWEPT_WITHIN, async || {
            let swept = swept_by(&run).await?;
            ensure!(swept >= due * 0.99, "{swept} of {due}");
            anyhow::Ok(())
        })
        .await?;
        run.stop().await?;
        self.empty().await?;

        let report = &mut self.report;
        let rounds = json!({ "fresh": rounded(&fresh), "aged": rounded(&aged), "swept": rounded(&swept) });
        report.detail("aged_rounds_eps", rounds);
        let (fresh, aged, swept) = (median(fresh), median(aged), median(swept));
        report.figure("path_fresh_eps", fresh, "events/s");
        report.figure("path_aged_eps", aged, "events/s");
        report.at_least("aged_ratio", aged / fresh, 0.9, "aged / empty");
        report.figure("swept_meanwhile", meanwhile, "records");
        report.at_least("swept_ratio", swept / fresh, 0.9, "swept / empty");
        self.stack.holdfast("run", "run").provider(&self.provider).start().await
    }

    async fn fill(&self, records: usize) -> anyhow::Result<()> {
        let statements = include_str!("fill.sql");
        for first in (0..records).step_by(PORTION) {
            let last = records.min(first + PORTION) - 1;
            info!("aged: {first} of {records} records, changes and outbox rows");
            let statements = statements
                .replace("$first", &first.to_string())
                .replace("$last", &last.to_string())
                .replace("$records", &records.to_string())
                .replace("$retention", RETENTION);
            self.sql(&format!(
                "begin; set local synchronous_commit = off; {statements}; commit"
            ))
            .await?;
        }
        self.settle().await
    }

    async fn empty(&self) -> anyhow::Result<()> {
        info!("aged: taking the records and changes away");
        self.sql("delete from idempotency_records where source = 'aged'")
            .await?;
        self.sql("delete from ticket_change_log where cause_source = 'aged'")
            .await?;
        self.settle().await
    }

    /// What the server would otherwise do beside the path that is measured next.
    async fn settle(&self) -> anyhow::Result<()> {
        for statement in [
            "vacuum (analyze) idempotency_records",
            "vacuum (analyze) ticket_change_log",
            "vacuum (analyze) outbox",
            "checkpoint",
        ] {
            self.sql(statement).await?;
        }
        Ok(())
    }
}

async fn swept_by(run: &Holdfast) -> anyhow::Result<f64> {
    run.metric("holdfast_swept_records_total")
        .await?
        .context("no count of swept records")
}
