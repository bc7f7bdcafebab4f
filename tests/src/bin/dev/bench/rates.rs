//! What an event costs when few come: latency, its stages, and CPU time, at fixed rates over 1,000 tickets; and the throughput of
//! events that come as fast as they can while the path runs.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::kit::{Holdfast, Stack, until};
use holdfast_tests::load::{Outcome, Pace, Producer, RESERVATIONS, percentile};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use tracing::info;

use super::cost::Cpu;
use super::workload::Workload;
use super::{Bench, microseconds_each};

pub(super) const TICKETS: usize = 1_000;
/// Before anything is measured the path runs for so long: the broker compiles itself while it works.
const WARM_UP: (u32, usize) = (1_000, 60_000);
/// Events a second, how many are sent, and the wanted p50 and p99 in milliseconds.
pub(super) const RATES: [(u32, usize, f64, f64); 3] = [
    (20, 500, 15.0, 40.0),
    (200, 4_000, 30.0, 90.0),
    (500, 10_000, 60.0, 180.0),
];
/// The rate at which the CPU time of an event is held to a bound, in microseconds over all processes.
const CPU_AT: (u32, f64) = (200, 4_000.0);

const IDLE_WITHIN: Duration = Duration::from_secs(60);

const STAGES: [&str; 6] = ["read", "admitted", "taken", "decided", "written", "relayed"];

impl Bench {
    /// Latency, stages and CPU time by rate.
    pub(super) async fn rates(&mut self, run: &Holdfast) -> anyhow::Result<()> {
        let (rate, events) = WARM_UP;
        let warm_up = Workload::new("warm-up", TICKETS, self.scaled(events));
        self.list(&warm_up).await?;
        self.latencies(&warm_up, rate).await?;
        let watch = watch(run, &self.stack)?;
        let (mut latencies, mut stages, mut cpu) = (Map::new(), Map::new(), Map::new());
        for (rate, events, p50, p99) in RATES {
            let workload = Workload::new(format!("rate-{rate}"), TICKETS, self.scaled(events));
            self.list(&workload).await?;
            engine_is_idle(run).await?;
            let (before, seconds) = (Cpu::of(&watch)?, stage_seconds(run).await?);
            let mut measured = self.latencies(&workload, rate).await?;
            let used = Cpu::of(&watch)?.since(&before);
            let total = used.iter().map(|(_, used)| used.as_secs_f64() * 1e6).sum::<f64>() / workload.events as f64;
            cpu.insert(rate.to_string(), microseconds_each(used, workload.events));
            stages.insert(rate.to_string(), mean_of(&seconds, &stage_seconds(run).await?));
            let mut of = |percent| percentile(&mut measured, percent).as_secs_f64() * 1_000.0;
            let (at50, at99) = (of(50.0), of(99.0));
            self.report.at_most(&format!("latency_{rate}_p50"), at50, p50, "ms");
            self.report.at_most(&format!("latency_{rate}_p99"), at99, p99, "ms");
            if rate == CPU_AT.0 {
                self.report
                    .at_most(&format!("cpu_us_at_{rate}"), total, CPU_AT.1, "us an event");
            }
            latencies.insert(rate.to_string(), json!({ "p50": tenths(at50), "p99": tenths(at99) }));
        }
        self.report.detail("latency_ms", Value::Object(latencies));
        self.report.detail("stages_ms", Value::Object(stages));
        self.report.detail("cpu_us_by_rate", Value::Object(cpu));
        Ok(())
    }

    /// Events per second of events that are sent while the path runs, as fast as they can.
    pub(super) async fn trickle(&mut self) -> anyhow::Result<()> {
        let workload = Workload::new("trickle", self.scaled(2_000), self.scaled(60_000));
        self.list(&workload).await?;
        let eps = self.stream(&workload).await?;
        self.report.at_least("trickle_eps", eps, 7_000.0, "events/s");
        Ok(())
    }

    /// Events per second from the first event to the last outcome, of events that are sent as fast as they can.
    pub(super) async fn stream(&mut self, workload: &Workload) -> anyhow::Result<f64> {
        info!("{}: {} events while the path runs", workload.name, workload.events);
        let mut producer = Producer::new(&self.stack.kafka, RESERVATIONS)?;
        let start = Instant::now();
        let (_, last) = tokio::try_join!(
            producer.send_all(workload.events(), Pace::FullSpeed),
            self.hear(workload.events)
        )?;
        Ok(workload.events as f64 / (last - start).as_secs_f64())
    }

    /// From producing each event to its outcome.
    async fn latencies(&mut self, workload: &Workload, rate: u32) -> anyhow::Result<Vec<Duration>> {
        info!("{}: {} events, {rate} a second", workload.name, workload.events);
        let mut producer = Producer::new(&self.stack.kafka, RESERVATIONS)?;
        let mut heard = Vec::with_capacity(workload.events);
        let (sent, _) = tokio::try_join!(
            producer.send_all(workload.events(), Pace::PerSecond(rate)),
            self.tickets()?.hear_each(workload.events, |arrival| {
                heard.push((Outcome::read(&arrival.record)?, arrival.at));
                Ok(())
            })
        )?;
        let latency = |(outcome, at): &(Outcome, Instant)| {
            let number = workload.number_of(&outcome.causationid)?;
            let sent = sent.get(number).context("an outcome of an event that was not sent")?;
            Ok(at.saturating_duration_since(*sent))
        };
        heard.iter().map(latency).collect()
    }
}

/// Waits until the worker has seen that the engine is done with what came as fast as it could.
async fn engine_is_idle(run: &Holdfast) -> anyhow::Result<()> {
    until("the engine is idle", IDLE_WITHIN, async || {
        let unfinished = run.metric("holdfast_engine_unfinished_invocations").await?;
        ensure!(unfinished == Some(0.0), "{unfinished:?} invocations");
        anyhow::Ok(())
    })
    .await
}

fn watch(run: &Holdfast, stack: &Stack) -> anyhow::Result<[(&'static str, Pid); 4]> {
    Ok([
        ("worker", run.pid()),
        ("restate", stack.restate.pid()?),
        ("kafka", stack.kafka.pid()?),
        ("postgres", stack.postgres.pid()?),
    ])
}

/// What the worker has measured so far of each stage: seconds in all, and how often.
async fn stage_seconds(run: &Holdfast) -> anyhow::Result<Vec<(f64, f64)>> {
    let mut all = Vec::new();
    for stage in STAGES {
        let sample = async |kind| {
            let name = format!("holdfast_stage_seconds_{kind}{{stage=\"{stage}\"}}");
            run.metric(&name).await
        };
        all.push((
            sample("sum").await?.unwrap_or(0.0),
            sample("count").await?.unwrap_or(0.0),
        ));
    }
    Ok(all)
}

/// The mean of each stage between two readings, in milliseconds, and their sum.
fn mean_of(before: &[(f64, f64)], after: &[(f64, f64)]) -> Value {
    let mut means = Map::new();
    let mut whole = 0.0;
    for (stage, (before, after)) in STAGES.iter().zip(before.iter().zip(after)) {
        let mean = (after.0 - before.0) * 1_000.0 / (after.1 - before.1).max(1.0);
        whole += mean;
        means.insert(String::from(*stage), tenths(mean));
    }
    means.insert(String::from("whole"), tenths(whole));
    Value::Object(means)
}

fn tenths(milliseconds: f64) -> Value {
    json!((milliseconds * 10.0).round() / 10.0)
}
