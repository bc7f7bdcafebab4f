//! `verify --watch` beside the path, and traces of some events: what both cost together (rounds without them are taken before and after),
//! and that the watch's memory does not grow with the events. It watches with the settings that it comes with while many events pass;
//! then a watch that never rests passes over all of them.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::kit::{Collector, Holdfast, until};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::info;

use super::workload::Workload;
use super::{Bench, cost, median, rounded};

const EVENTS: usize = 10_000_000;
/// So many pass between two looks at the memory.
const PORTION: usize = 1_000_000;
/// Of each portion; no two have one in common.
const TICKETS: usize = 10_000;
/// The share of the events whose traces are recorded: that which is set by default.
const TRACED: f64 = 0.01;
const PASSED_WITHIN: Duration = Duration::from_secs(4 * 3_600);

impl Bench {
    /// Throughput with and without both, then the memory. Gives the worker that runs afterwards.
    pub(super) async fn watch(&mut self, run: Holdfast) -> anyhow::Result<Holdfast> {
        self.rounds("watch-warm-up", &run).await?;
        let mut alone = self.rounds("unwatched-before", &run).await?;
        run.stop().await?;
        let collector = Collector::start_at(0).await?;
        let run = self.stack.holdfast("run", "run").provider(&self.provider);
        let run = run.traces(&collector, TRACED).start().await?;
        let watch = self.stack.holdfast("verify", "watch").arg("--watch").start().await?;
        let mut watched = self.rounds("watched", &run).await?;
        watched.extend(self.rounds("watched-on", &run).await?);
        let spans = collector.spans().len();
        ensure!(spans > 0, "nothing was traced");
        self.report.figure("watched_spans", spans as f64, "spans");
        watch.stop().await?;
        run.stop().await?;
        let run = self.stack.holdfast("run", "run").provider(&self.provider);
        let run = run.start().await?;
        alone.extend(self.rounds("unwatched-after", &run).await?);
        let rounds = json!({ "alone": rounded(&alone), "watched": rounded(&watched) });
        self.report.detail("watched_rounds_eps", rounds);
        let ratio = median(watched) / median(alone);
        self.report
            .at_least("watched_ratio", ratio, 0.9, "watched and traced / alone");

        let watch = self.stack.holdfast("verify", "watch").arg("--watch").start().await?;

        let (events, tickets) = (self.scaled(EVENTS), self.scaled(TICKETS));
        let mut grown = vec![memory(&watch, 0)?];
        for first in (0..events).step_by(PORTION) {
            let portion = PORTION.min(events - first);
            let workload = Workload::new(format!("history-{first}"), tickets.min(portion), portion);
            self.list(&workload).await?;
            self.drain(&workload, &run, &[]).await?;
            let memory = memory(&watch, first + portion)?;
            info!("watch: {memory} of {events} events");
            grown.push(memory);
        }
        finds_nothing(&watch).await?;
        watch.stop().await?;
        self.report.detail("watch_memory", json!(grown));

        info!("watch: a pass over everything");
        let eager = self.stack.holdfast("verify", "watch").arg("--watch");
        let eager = eager
            .env("HOLDFAST_WATCH_SHARE", "100")
            .env("HOLDFAST_WATCH_EVERY", "1s");
        let start = Instant::now();
        let eager = eager.start().await?;
        until("a whole pass", PASSED_WITHIN, async || {
            let passes = metric(&eager, "passes_total").await?;
            ensure!(passes >= 1.0, "none yet");
            anyhow::Ok(())
        })
        .await?;
        finds_nothing(&eager).await?;
        let looks = metric(&eager, "looks_total{at=\"keys\"}").await?;
        self.report.figure("watch_pass_s", start.elapsed().as_secs_f64(), "s");
        self.report.figure("watch_pass_looks", looks, "looks");
        self.report
            .at_most("watch_rss_mb", cost::peak_memory_mb(eager.pid())?, 400.0, "MB");
        eager.stop().await?;
        Ok(run)
    }
}

fn memory(watch: &Holdfast, events: usize) -> anyhow::Result<Value> {
    let peak = cost::peak_memory_mb(watch.pid())?;
    Ok(json!({ "events": events, "peak_mb": peak.round() }))
}

async fn metric(watch: &Holdfast, name: &str) -> anyhow::Result<f64> {
    let value = watch.metric(&format!("holdfast_verify_{name}")).await?;
    value.with_context(|| format!("no {name}"))
}

async fn finds_nothing(watch: &Holdfast) -> anyhow::Result<()> {
    for promise in ["lost", "doubled", "out_of_order", "oversold"] {
        let broken = metric(watch, &format!("broken_promises{{promise=\"{promise}\"}}")).await?;
        ensure!(broken == 0.0, "{broken} keys {promise}: {}", watch.last_words());
    }
    Ok(())
}
