//! A server is killed under load and comes back. The worker is never restarted: it waits, and then goes on.

use std::time::Duration;

use anyhow::ensure;
use holdfast_tests::kit::server::Kind;
use holdfast_tests::kit::{Kit, Server, until};
use holdfast_tests::traffic::Traffic;

use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_killed_broker_costs_no_event,
    a_frozen_broker_costs_no_event,
    a_killed_engine_costs_no_event,
    a_killed_database_costs_no_event,
    a_database_killed_amid_a_write_costs_no_event,
];

const SOON: Duration = Duration::from_secs(20);
/// Longer than `broker.session.timeout.ms` (9 s): for a moment the broker that goes on names no broker.
const FROZEN: Duration = Duration::from_secs(10);

fn a_killed_broker_costs_no_event(kit: &Kit) -> anyhow::Result<()> {
    let broker = &kit.stack.kafka;
    kit.block_on(survives(kit, "killed-broker", 1, async || killed(broker).await))
}

fn a_frozen_broker_costs_no_event(kit: &Kit) -> anyhow::Result<()> {
    let broker = &kit.stack.kafka;
    // Not each time does the engine lose Kafka for good.
    kit.block_on(survives(kit, "frozen-broker", 3, async || {
        broker.pause()?;
        tokio::time::sleep(FROZEN).await;
        broker.resume()
    }))
}

fn a_killed_engine_costs_no_event(kit: &Kit) -> anyhow::Result<()> {
    let engine = &kit.stack.restate;
    kit.block_on(survives(kit, "killed-engine", 2, async || killed(engine).await))
}

fn a_killed_database_costs_no_event(kit: &Kit) -> anyhow::Result<()> {
    let database = &kit.stack.postgres;
    kit.block_on(survives(kit, "killed-database", 3, async || killed(database).await))
}

async fn killed<K: Kind>(server: &Server<K>) -> anyhow::Result<()> {
    server.kill()?;
    server.start().await
}

async fn survives(
    kit: &Kit,
    name: &'static str,
    times: usize,
    fault: impl AsyncFn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let worker = kit.stack.holdfast("run", "worker").start().await?;
    let mut traffic = Traffic::new(&kit.stack, name)?;
    for _ in 0..times {
        traffic.burst(100)?;
        traffic.during(fault()).await?;
        traffic.answered().await?;
        ensure!(worker.runs(), "the worker ended: {}", worker.last_words());
    }
    traffic.settled().await?;
    worker.stop().await
}

fn a_database_killed_amid_a_write_costs_no_event(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "worker").start().await?;
        let mut traffic = Traffic::new(&kit.stack, "killed-amid-a-write")?;
        let postgres = &kit.stack.postgres;
        // The write waits inside the server, on a lock.
        traffic
            .during(async {
                let pool = postgres.connect().await?;
                let mut lock = pool.begin().await?;
                sqlx::query("lock table outbox in share mode")
                    .execute(&mut *lock)
                    .await?;
                until("a write waits", SOON, async || {
                    let waiting: i64 = sqlx::query_scalar(
                        "select count(*) from pg_locks where not granted and relation = 'outbox'::regclass",
                    )
                    .fetch_one(&pool)
                    .await?;
                    ensure!(waiting > 0, "none");
                    anyhow::Ok(())
                })
                .await?;
                postgres.kill()?;
                postgres.start().await
            })
            .await?;
        traffic.answered().await?;
        // The server is frozen anywhere in the write: sent, executed, committed, its answer half on the way.
        for _ in 0..3 {
            traffic
                .during(async {
                    postgres.pause()?;
                    until("work waits for the database", SOON, async || {
                        let waiting = worker.metric("holdfast_commit_waiting_units").await?;
                        ensure!(waiting > Some(0.0), "{waiting:?}");
                        anyhow::Ok(())
                    })
                    .await?;
                    postgres.kill()?;
                    postgres.start().await
                })
                .await?;
            traffic.answered().await?;
        }
        ensure!(worker.runs(), "the worker ended: {}", worker.last_words());
        traffic.settled().await?;
        worker.stop().await
    })
}
