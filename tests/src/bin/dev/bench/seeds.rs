//! Measures the seeds' way, which Holdfast grew from, beside the path: the way that the engine's public examples show for a
//! handler with a database. A virtual object keyed by ticket is subscribed straight to a topic. Its handler reads the row in one
//! step and writes in another, in one transaction: idempotency record, row against the version that was read, outbox. A relay
//! produces what is in the outbox, and then deletes it.
//!
//! It is as quick as that way can be made without leaving it: connections are open and statements prepared, the relay is
//! woken by the commit and takes whole batches, and nothing clears old idempotency records away (the examples send themselves
//! a delayed call for each). Its tickets are listed by SQL, and its relay's outcomes are heard as the path's are.

mod object;
mod relay;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast_tests::kit::{Holdfast, Stack};
use holdfast_tests::load::{Arrival, Outcome, Pace, Producer, follow, percentile};
use restate_sdk::prelude::Endpoint;
use serde_json::{Map, Value, json};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tracing::info;

use super::engine::Engine;
use super::workload::Workload;
use super::{Bench, ROUNDS, median, rounded};
use object::{HANDLER, Object};
use relay::OUTCOMES;

const RATES: [u32; 3] = [20, 200, 500];
/// Events are sent for this long at each rate.
const SENDING: usize = 10;
const PARTITIONS: i32 = 8;
const CONNECTIONS: u32 = 32;
const DRAINED_WITHIN: Duration = Duration::from_secs(300);
/// After the last event is due. An outcome that is not there by then counts as if it came at that moment.
const HEARD_WITHIN: Duration = Duration::from_secs(60);

impl Bench {
    /// Throughput of a backlog beside the path's, in turn, and latency by rate.
    pub(super) async fn seeds(&mut self, run: &Holdfast) -> anyhow::Result<()> {
        let mut seeds = Seeds::start(&self.stack).await?;
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            let name = format!("seeds-uniform-{round}");
            let workload = Workload::new(name, self.scaled(2_000), self.scaled(10_000));
            theirs.push(seeds.drain(&self.stack, &workload).await?);
            ours.push(self.round("seeds-path", round, run).await?);
        }
        let latencies = seeds.latencies(&self.stack, self.scale).await?;
        seeds.stop().await?;
        let report = &mut self.report;
        report.detail(
            "seeds_rounds_eps",
            json!({ "seeds": rounded(&theirs), "path": rounded(&ours) }),
        );
        let (theirs, ours) = (median(theirs), median(ours));
        report.figure("seeds_eps", theirs, "events/s");
        report.figure("path_seeds_eps", ours, "events/s");
        report.at_least("seeds_ratio", ours / theirs, 8.0, "path / seeds");
        report.detail("seeds_latency_ms", latencies);
        Ok(())
    }
}

/// The object, served from this process, and the relay.
struct Seeds {
    engine: Engine,
    pool: PgPool,
    relay: JoinHandle<anyhow::Result<()>>,
    first_call: Arc<Mutex<Option<Instant>>>,
    outcomes: UnboundedReceiver<anyhow::Result<Arrival>>,
}

impl Seeds {
    async fn start(stack: &Stack) -> anyhow::Result<Seeds> {
        let pool = PgPoolOptions::new()
            .min_connections(CONNECTIONS)
            .max_connections(CONNECTIONS)
            // A backlog has more calls under way than connections.
            .acquire_timeout(DRAINED_WITHIN)
            .test_before_acquire(false)
            .connect(&stack.postgres.url())
            .await?;
        sqlx::raw_sql(include_str!("seeds/schema.sql")).execute(&pool).await?;
        stack.kafka.create_topic(OUTCOMES, PARTITIONS, &[]).await?;
        let written = Arc::new(Notify::new());
        let database = PgConnection::connect(&stack.postgres.url()).await?;
        let producer = stack.kafka.producer("none")?;
        let relay = tokio::spawn(relay::run(database, producer, Arc::clone(&written)));
        let first_call = Arc::new(Mutex::new(None));
        let object = Object {
            pool: pool.clone(),
            written,
            first_call: Arc::clone(&first_call),
        };
        Ok(Seeds {
            engine: Engine::serve(stack, "seeds", Endpoint::builder().bind(object).build()).await?,
            pool,
            relay,
            first_call,
            outcomes: follow(&stack.kafka, OUTCOMES)?,
        })
    }

    /// Takes everything away but the object, which nothing calls any more.
    async fn stop(self) -> anyhow::Result<()> {
        self.relay.abort();
        sqlx::raw_sql("drop schema seeds cascade").execute(&self.pool).await?;
        self.pool.close().await;
        Ok(())
    }

    /// Events per second, from the first call to the last outcome. The backlog lies in its topic before the subscription is made.
    async fn drain(&mut self, stack: &Stack, workload: &Workload) -> anyhow::Result<f64> {
        info!("{}: {} events the seeds' way", workload.name, workload.events);
        self.list(workload).await?;
        stack.kafka.create_topic(&workload.name, PARTITIONS, &[]).await?;
        let mut producer = Producer::new(&stack.kafka, &workload.name)?;
        producer.send_all(workload.events(), Pace::FullSpeed).await?;
        *self.first_call.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let subscription = self.engine.subscribe(&workload.name, HANDLER).await?;
        let last = self.hear_all(workload).await?;
        self.engine.unsubscribe(subscription).await?;
        let first = *self.first_call.lock().unwrap_or_else(PoisonError::into_inner);
        let took = last - first.context("outcomes without a call")?;
        Ok(workload.events as f64 / took.as_secs_f64())
    }

    /// From producing each event to its outcome, in milliseconds, by rate.
    async fn latencies(&mut self, stack: &Stack, scale: f64) -> anyhow::Result<Value> {
        let topic = "seeds-latency";
        stack.kafka.create_topic(topic, PARTITIONS, &[]).await?;
        let subscription = self.engine.subscribe(topic, HANDLER).await?;
        let mut producer = Producer::new(&stack.kafka, topic)?;
        // The first events wait until the subscription reads.
        let warm = Workload::new("seeds-warm", 1_000, 1_000);
        self.list(&warm).await?;
        producer.send_all(warm.events(), Pace::FullSpeed).await?;
        self.hear_all(&warm).await?;
        let mut by_rate = Map::new();
        for rate in RATES {
            let events = super::scaled(scale, rate as usize * SENDING);
            let workload = Workload::new(format!("seeds-{rate}"), 1_000, events);
            let latency = self.latency(&mut producer, rate, &workload).await?;
            by_rate.insert(rate.to_string(), latency);
        }
        self.engine.unsubscribe(subscription).await?;
        Ok(Value::Object(by_rate))
    }

    async fn latency(&mut self, producer: &mut Producer, rate: u32, workload: &Workload) -> anyhow::Result<Value> {
        info!("{}: {rate} events per second the seeds' way", workload.name);
        self.list(workload).await?;
        let sending = Duration::from_secs_f64(workload.events as f64 / f64::from(rate));
        let deadline = Instant::now() + sending + HEARD_WITHIN;
        let (sent, heard) = tokio::try_join!(
            producer.send_all(workload.events(), Pace::PerSecond(rate)),
            self.hear(workload, deadline)
        )?;
        let unheard = heard.iter().filter(|at| at.is_none()).count();
        let pairs = sent.iter().zip(heard);
        let mut latencies: Vec<Duration> = pairs
            .map(|(sent, at)| at.unwrap_or(deadline).saturating_duration_since(*sent))
            .collect();
        let mut milliseconds = |percent| {
            let latency = percentile(&mut latencies, percent).as_secs_f64() * 1_000.0;
            (latency * 10.0).round() / 10.0
        };
        let mut figures = json!({ "p50": milliseconds(50.0), "p99": milliseconds(99.0) });
        if unheard > 0 {
            figures["unheard"] = json!(unheard);
        }
        Ok(figures)
    }

    /// Puts the tickets of a workload on sale, before any clock starts.
    async fn list(&self, workload: &Workload) -> anyhow::Result<()> {
        let tickets: Vec<String> = workload.listings().map(|listing| listing.subject).collect();
        sqlx::query("insert into seeds.tickets (ticket) select unnest($1::text[])")
            .bind(&tickets)
            .execute(&self.pool)
            .await?;
        sqlx::raw_sql("vacuum (analyze) seeds.tickets")
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Waits for every outcome of the workload; returns the arrival of the last.
    async fn hear_all(&mut self, workload: &Workload) -> anyhow::Result<Instant> {
        let heard = self.hear(workload, Instant::now() + DRAINED_WITHIN).await?;
        let (count, last) = (heard.iter().flatten().count(), heard.into_iter().flatten().max());
        ensure!(
            count == workload.events,
            "{}: {count} of {} outcomes of the seeds within {DRAINED_WITHIN:?}",
            workload.name,
            workload.events
        );
        last.context("a workload without events")
    }

    /// When the outcome of each event came first, until all are there or the deadline has passed.
    async fn hear(&mut self, workload: &Workload, deadline: Instant) -> anyhow::Result<Vec<Option<Instant>>> {
        let mut heard = vec![None; workload.events];
        let mut missing = heard.len();
        while missing > 0 {
            let arrival = tokio::select! {
                ended = &mut self.relay => bail!("the seeds' relay has ended: {ended:?}"),
                arrival = timeout_at(deadline, self.outcomes.recv()) => arrival,
            };
            let Ok(arrival) = arrival else { break };
            let arrival = arrival.context("the reader of the seeds' outcomes has ended")??;
            let outcome = Outcome::read(&arrival.record)?;
            ensure!(outcome.verb() != "refused", "{} was refused", outcome.causationid);
            // Those of an earlier workload may still come when it was given up.
            let Ok(number) = workload.number_of(&outcome.causationid) else {
                continue;
            };
            let place = heard
                .get_mut(number)
                .context("an outcome of an event that was not sent")?;
            // The relay may produce an outcome again.
            if place.is_none() {
                *place = Some(arrival.at);
                missing -= 1;
            }
        }
        Ok(heard)
    }
}
