//! Measures the path of an event beside a Restate handler that does nothing, on one stack that syncs to disk everywhere.
//!
//! Throughput is that of draining a backlog. The path: `holdfast run` is frozen (SIGSTOP) while the backlog is produced; the
//! clock runs from SIGCONT to the arrival of the last outcome. The no-op: the backlog lies in a topic of its own before the
//! subscription is made; the clock runs from the first call to the last, which favours the no-op. Both are measured in turn,
//! and the median of the rounds is reported: a noisy machine then disturbs neither alone.

mod aged;
mod checkout;
mod cost;
mod disk;
mod engine;
mod noop;
mod rates;
mod relay;
mod report;
mod scale;
mod seeds;
mod stuck;
mod tls;
mod watch;
mod workload;

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use holdfast_tests::kit::provider::Simulator;
use holdfast_tests::kit::{Holdfast, Name, Stack};
use holdfast_tests::load::{Arrival, Event, OUTCOMES, PAYMENT_OUTCOMES, Pace, Producer, RESERVATIONS, follow};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use sqlx::AssertSqlSafe;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout};
use tracing::info;

use cost::Cpu;
use noop::Noop;
use report::Report;
use workload::Workload;

/// After this long without an outcome the bench gives up.
const SILENCE: Duration = Duration::from_secs(60);
/// Of a workload of which only the path is measured.
const ROUNDS: usize = 3;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Take only these measurements
    #[arg(long, value_delimiter = ',')]
    only: Vec<Measurement>,
    /// Part of the events to send; figures count only at 1
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// As uniform, on a stack whose every door is locked, beside the open one
    Tls,
    /// As uniform, beside a handler that reads and writes in journalled steps, with an outbox and a relay; and its latency by rate
    Seeds,
    /// As uniform, with a key that does not get on and has 100,000 events behind it
    Stuck,
    /// Each event on a ticket of its own
    Distinct,
    /// Requested and released in turn over 2,000 tickets, and the memory meanwhile
    Uniform,
    /// As uniform, with 10 million idempotency records and changes in the tables, and while half of the records are swept
    Aged,
    /// As uniform, with `verify --watch` beside it and one event in a hundred traced; then the watch's memory while 10 million come
    Watch,
    /// Requested and released in turn on one ticket
    Hot,
    /// 500 events per second on one ticket
    Paced,
    /// Produce to outcome at 20, 200 and 500 events per second over 1,000 tickets, with its stages and CPU time
    Rates,
    /// Events that come as fast as they can while the path runs
    Trickle,
    /// What an event and a checkout leave on the disks of Kafka and PostgreSQL
    Disk,
    /// CPU time by process, gate, serve and relay apart, of backlogs and at 20, 200 and 500 events per second
    Cpu,
    /// What one relay brings from a full outbox to Kafka
    Relay,
    /// As trickle, with 1, 2 and 4 gates and as many serves
    Scale,
    /// Checkouts of one ticket and of four, beside bare reservations; with latency and CPU time
    Checkout,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let wanted = |measurement| arguments.only.is_empty() || arguments.only.contains(&measurement);
    ensure!(arguments.scale > 0.0, "--scale must be above 0");
    let mut bench = Bench::start(arguments.scale).await?;
    let scaled = |count| scaled(arguments.scale, count);
    let run = bench.stack.holdfast("run", "run").provider(&bench.provider);
    let mut run = run.start().await?;
    bench.open()?;

    if wanted(Measurement::Uniform) {
        let workload = |name| Workload::new(name, scaled(2_000), scaled(100_000));
        bench.throughput("uniform", 2.5, 3, workload, workload, &run).await?;
        let peak = cost::peak_memory_mb(run.pid())?;
        bench.report.at_most("rss_mb", peak, 200.0, "MB");
    }
    if wanted(Measurement::Aged) {
        run = bench.aged(run).await?;
    }
    if wanted(Measurement::Watch) {
        run = bench.watch(run).await?;
    }
    if wanted(Measurement::Tls) {
        bench.tls(&run).await?;
    }
    if wanted(Measurement::Seeds) {
        bench.seeds(&run).await?;
    }
    if wanted(Measurement::Stuck) {
        bench.stuck(&run).await?;
    }
    if wanted(Measurement::Distinct) {
        let workload = |name| Workload::new(name, scaled(20_000), scaled(20_000));
        bench.throughput("distinct", 0.6, 3, workload, workload, &run).await?;
    }
    if wanted(Measurement::Hot) {
        let noop = |name| Workload::new(name, 1, scaled(10_000));
        let path = |name| Workload::new(name, 1, scaled(50_000));
        bench.throughput("hot", 40.0, 1, noop, path, &run).await?;
    }
    if wanted(Measurement::Paced) {
        let workload = Workload::new("paced", 1, scaled(10_000));
        bench.list(&workload).await?;
        let drain = bench.paced(&workload, 500).await?;
        bench.report.at_most("hot_500_drain_s", drain.as_secs_f64(), 2.0, "s");
    }
    if wanted(Measurement::Rates) {
        bench.rates(&run).await?;
    }
    if wanted(Measurement::Trickle) {
        bench.trickle().await?;
    }
    if wanted(Measurement::Checkout) {
        bench.checkouts(&run).await?;
    }
    if wanted(Measurement::Disk) {
        bench.disk(&run).await?;
    }
    run.stop().await?;
    if wanted(Measurement::Cpu) {
        bench.cpu().await?;
    }
    if wanted(Measurement::Relay) {
        bench.relay().await?;
    }
    if wanted(Measurement::Scale) {
        bench.scale_out().await?;
    }
    if wanted(Measurement::Checkout) {
        bench.checkout_cpu().await?;
    }
    bench.finish().await
}

struct Bench {
    stack: Stack,
    noop: Noop,
    provider: Simulator,
    /// The outcomes of tickets; open once the topic exists.
    tickets: Option<Outcomes>,
    /// The outcomes of users; likewise.
    users: Option<Outcomes>,
    scale: f64,
    report: Report,
}

/// An outcome topic, read as a consumer does.
struct Outcomes(UnboundedReceiver<anyhow::Result<Arrival>>);

type Used = Vec<(&'static str, Duration)>;

impl Bench {
    async fn start(scale: f64) -> anyhow::Result<Bench> {
        let stack = Stack::open(Name::Bench).await?;
        stack.start().await?;
        let report = Report::new(&stack, scale).await?;
        let noop = Noop::serve(&stack).await?;
        Ok(Bench {
            stack,
            noop,
            provider: Simulator::start().await?,
            tickets: None,
            users: None,
            scale,
            report,
        })
    }

    fn open(&mut self) -> anyhow::Result<()> {
        self.tickets = Some(Outcomes(follow(&self.stack.kafka, OUTCOMES)?));
        self.users = Some(Outcomes(follow(&self.stack.kafka, PAYMENT_OUTCOMES)?));
        Ok(())
    }

    fn scaled(&self, count: usize) -> usize {
        scaled(self.scale, count)
    }

    /// Events per second of the path and of the no-op, measured one after the other in each round: the median of the rounds.
    async fn throughput(
        &mut self,
        name: &str,
        wanted: f64,
        rounds: usize,
        noop: impl Fn(String) -> Workload,
        path: impl Fn(String) -> Workload,
        run: &Holdfast,
    ) -> anyhow::Result<()> {
        let (mut noops, mut paths) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            noops.push(
                self.noop
                    .drain(&self.stack, &noop(format!("noop-{name}-{round}")))
                    .await?,
            );
            let workload = path(format!("{name}-{round}"));
            self.list(&workload).await?;
            let (took, _) = self.drain(&workload, run, &[]).await?;
            paths.push(workload.events as f64 / took.as_secs_f64());
        }
        self.report.detail(
            &format!("{name}_rounds_eps"),
            json!({ "noop": rounded(&noops), "path": rounded(&paths) }),
        );
        let (noop, path) = (median(noops), median(paths));
        self.report.figure(&format!("noop_{name}_eps"), noop, "events/s");
        self.report.figure(&format!("path_{name}_eps"), path, "events/s");
        self.report
            .at_least(&format!("{name}_ratio"), path / noop, wanted, "path / no-op");
        Ok(())
    }

    /// Lists the tickets of a workload, before any clock starts.
    async fn list(&mut self, workload: &Workload) -> anyhow::Result<()> {
        info!("{}: listing {} tickets", workload.name, workload.tickets);
        let mut producer = Producer::new(&self.stack.kafka, RESERVATIONS)?;
        producer.send_all(workload.listings(), Pace::FullSpeed).await?;
        self.hear(workload.tickets).await.map(drop)
    }

    /// Events per second of the uniform workload, round by round.
    async fn rounds(&mut self, name: &str, run: &Holdfast) -> anyhow::Result<Vec<f64>> {
        let mut rounds = Vec::with_capacity(ROUNDS);
        for round in 1..=ROUNDS {
            rounds.push(self.round(name, round, run).await?);
        }
        Ok(rounds)
    }

    /// Events per second of the uniform workload in one round.
    async fn round(&mut self, name: &str, round: usize, run: &Holdfast) -> anyhow::Result<f64> {
        let workload = Workload::new(format!("{name}-{round}"), self.scaled(2_000), self.scaled(100_000));
        self.list(&workload).await?;
        let (took, _) = self.drain(&workload, run, &[]).await?;
        Ok(workload.events as f64 / took.as_secs_f64())
    }

    /// The time from SIGCONT to `gate`, a process with a gate in it, to the last outcome, and the CPU time that each process
    /// in `watch` took meanwhile.
    async fn drain(
        &mut self,
        workload: &Workload,
        gate: &Holdfast,
        watch: &[(&'static str, Pid)],
    ) -> anyhow::Result<(Duration, Used)> {
        info!("{}: {} events through the whole path", workload.name, workload.events);
        let heard = async |bench: &mut Bench| bench.hear(workload.events).await;
        self.let_go(RESERVATIONS, workload.events(), gate, watch, heard).await
    }

    /// As [`Bench::drain`], of these events on `topic`, until `heard` has read the last outcome.
    async fn let_go(
        &mut self,
        topic: &str,
        events: impl Iterator<Item = Event>,
        gate: &Holdfast,
        watch: &[(&'static str, Pid)],
        heard: impl AsyncFnOnce(&mut Bench) -> anyhow::Result<Instant>,
    ) -> anyhow::Result<(Duration, Used)> {
        gate.pause()?;
        let mut producer = Producer::new(&self.stack.kafka, topic)?;
        producer.send_all(events, Pace::FullSpeed).await?;
        let before = Cpu::of(watch)?;
        let start = Instant::now();
        gate.resume()?;
        let last = heard(self).await?;
        Ok((last - start, Cpu::of(watch)?.since(&before)))
    }

    /// From the last event sent to the last outcome, at so many events per second.
    async fn paced(&mut self, workload: &Workload, rate: u32) -> anyhow::Result<Duration> {
        info!("{}: {} events, {rate} per second", workload.name, workload.events);
        let mut producer = Producer::new(&self.stack.kafka, RESERVATIONS)?;
        let (sent, last) = tokio::try_join!(
            producer.send_all(workload.events(), Pace::PerSecond(rate)),
            self.hear(workload.events)
        )?;
        let last_sent = sent.last().context("no event was sent")?;
        Ok(last.saturating_duration_since(*last_sent))
    }

    /// CPU time per event of every process on the way: of backlogs, then of few events a second, which cost more each.
    async fn cpu(&mut self) -> anyhow::Result<()> {
        let apart = Apart::start(&self.stack, &self.provider).await?;
        let watch = apart.watch(&self.stack)?;
        let (mut eps, mut costs) = (Map::new(), Map::new());
        for (name, tickets, events) in [
            // The longest first: the broker compiles itself while it works.
            ("uniform", 2_000, 100_000),
            ("distinct", 20_000, 20_000),
            ("hot", 1, 50_000),
        ] {
            let workload = Workload::new(format!("cpu-{name}"), self.scaled(tickets), self.scaled(events));
            self.list(&workload).await?;
            let (took, used) = self.drain(&workload, &apart.gate, &watch).await?;
            let reached = workload.events as f64 / took.as_secs_f64();
            eps.insert(name.to_owned(), json!(reached.round()));
            costs.insert(name.to_owned(), microseconds_each(used, workload.events));
        }
        for (rate, events, ..) in rates::RATES {
            let name = format!("paced_{rate}");
            let workload = Workload::new(format!("cpu-{name}"), rates::TICKETS, self.scaled(events));
            self.list(&workload).await?;
            let before = Cpu::of(&watch)?;
            self.paced(&workload, rate).await?;
            let used = Cpu::of(&watch)?.since(&before);
            eps.insert(name.clone(), json!(rate));
            costs.insert(name, microseconds_each(used, workload.events));
        }
        self.report.detail("cpu_eps", eps.into());
        self.report.detail("cpu_us_per_event", costs.into());
        let workers = [("gate", &apart.gate), ("serve", &apart.serve), ("relay", &apart.relay)];
        let peaks =
            workers.map(|(name, worker)| Ok((name.to_owned(), json!(cost::peak_memory_mb(worker.pid())?.round()))));
        let peaks: Map<String, Value> = peaks.into_iter().collect::<anyhow::Result<_>>()?;
        self.report.detail("peak_mb", peaks.into());
        apart.stop().await
    }

    /// Waits for `count` outcomes of tickets; returns the arrival of the last.
    async fn hear(&mut self, count: usize) -> anyhow::Result<Instant> {
        self.tickets()?.hear(count).await
    }

    async fn sql(&self, statements: &str) -> anyhow::Result<()> {
        let pool = self.stack.postgres.connect().await?;
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(&pool).await?;
        pool.close().await;
        Ok(())
    }

    fn tickets(&mut self) -> anyhow::Result<&mut Outcomes> {
        self.tickets.as_mut().context("the outcomes are not followed yet")
    }

    fn users(&mut self) -> anyhow::Result<&mut Outcomes> {
        self.users.as_mut().context("the outcomes are not followed yet")
    }

    /// Runs `holdfast verify` and writes the report: figures of a build that loses or repeats events are worth nothing.
    async fn finish(mut self) -> anyhow::Result<()> {
        info!("verifying");
        let verify = self.stack.holdfast("verify", "verify").provider(&self.provider);
        let verified = verify.arg("--json").output().await?;
        let counts: Value = serde_json::from_slice(&verified.stdout)
            .with_context(|| String::from_utf8_lossy(&verified.stderr).into_owned())?;
        self.report.detail("verify", counts);
        self.report.print();
        println!("written to {}", self.report.write()?.display());
        ensure!(verified.status.success(), "holdfast verify: {}", verified.status);
        Ok(())
    }
}

impl Outcomes {
    /// Waits for `count` outcomes; returns the arrival of the last.
    async fn hear(&mut self, count: usize) -> anyhow::Result<Instant> {
        self.hear_each(count, |_| Ok(())).await
    }

    async fn hear_each(
        &mut self,
        count: usize,
        mut each: impl FnMut(&Arrival) -> anyhow::Result<()>,
    ) -> anyhow::Result<Instant> {
        let mut last = Instant::now();
        for number in 0..count {
            let Ok(arrival) = timeout(SILENCE, self.0.recv()).await else {
                bail!("{number} of {count} outcomes, then none for {SILENCE:?}");
            };
            let arrival = arrival.context("the reader of outcomes has ended")??;
            each(&arrival)?;
            last = arrival.at;
        }
        Ok(last)
    }
}

/// The roles in processes of their own.
struct Apart {
    gate: Holdfast,
    serve: Holdfast,
    relay: Holdfast,
}

impl Apart {
    async fn start(stack: &Stack, provider: &Simulator) -> anyhow::Result<Apart> {
        let serve = stack.holdfast("serve", "apart-serve").provider(provider);
        Ok(Apart {
            serve: serve.start().await?,
            relay: stack.holdfast("relay", "apart-relay").start().await?,
            gate: stack.holdfast("gate", "apart-gate").start().await?,
        })
    }

    /// The processes of these roles and of the servers, by name.
    fn watch(&self, stack: &Stack) -> anyhow::Result<[(&'static str, Pid); 6]> {
        Ok([
            ("gate", self.gate.pid()),
            ("serve", self.serve.pid()),
            ("relay", self.relay.pid()),
            ("restate", stack.restate.pid()?),
            ("kafka", stack.kafka.pid()?),
            ("postgres", stack.postgres.pid()?),
        ])
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.gate.stop().await?;
        self.relay.stop().await?;
        self.serve.stop().await
    }
}

/// CPU time per event, by process.
fn microseconds_each(used: Used, count: usize) -> Value {
    let each = |used: Duration| json!((used.as_secs_f64() * 1e6 / count as f64).round());
    let by_process: Map<String, Value> = used
        .into_iter()
        .map(|(process, used)| (String::from(process), each(used)))
        .collect();
    Value::Object(by_process)
}

fn scaled(scale: f64, count: usize) -> usize {
    ((count as f64 * scale) as usize).max(1)
}

/// The figures of rounds, for the report.
fn rounded(figures: &[f64]) -> Vec<f64> {
    figures.iter().map(|figure| figure.round()).collect()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
