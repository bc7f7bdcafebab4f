//! Several instances of a role, and zombies: a frozen process resumes after another one has taken over. And a database that
//! is restored from a copy.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Holdfast, Kit, process, until};
use holdfast_tests::load::OUTCOMES;
use holdfast_tests::traffic::Traffic;

use crate::workers::{Workers, done};
use crate::{Test, tests};

/// The last one leaves a stack of no use when it fails.
pub(crate) const TESTS: &[Test] = tests![
    a_gate_that_joins_dies_or_wakes_up_late_loses_and_reorders_nothing,
    a_relay_that_dies_or_wakes_up_late_loses_and_repeats_nothing,
    a_serve_that_wakes_up_late_finds_its_work_done,
    a_database_that_is_put_back_stops_the_relay,
];

/// Longer than the session of a consumer (6 s) and the lease of a relay.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(40);

fn a_gate_that_joins_dies_or_wakes_up_late_loses_and_reorders_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let workers = Workers::start(kit).await?;
        let mut traffic = Traffic::new(&kit.stack, "gates")?;
        let second = traffic.during(join(kit)).await?;
        traffic.burst(100)?;
        second.kill()?;
        traffic.answered().await?;

        let second = traffic.during(join(kit)).await?;
        traffic.burst(100)?;
        workers.gate.pause()?;
        // Answers to all of them mean that the second has every partition.
        traffic.answered().await?;
        let before = assignments(&workers.gate)?;
        let back = async {
            workers.gate.resume()?;
            assigned(&workers.gate, before).await
        };
        traffic.during(back).await?;
        traffic.settled().await?;
        second.stop().await?;
        workers.stop().await
    })
}

/// A second gate, with partitions of its own.
async fn join(kit: &Kit) -> anyhow::Result<Holdfast> {
    let gate = kit.stack.holdfast("gate", "gate-b").spawn()?;
    let before = assignments(&gate)?;
    gate.ready().await?;
    assigned(&gate, before).await?;
    Ok(gate)
}

async fn assigned(gate: &Holdfast, before: usize) -> anyhow::Result<()> {
    until("the gate is given partitions", TAKEN_OVER_WITHIN, async || {
        ensure!(assignments(gate)? > before, "{}", gate.last_words());
        Ok(())
    })
    .await
}

/// Assignments of partitions to gates of this name, as their log shows them.
fn assignments(gate: &Holdfast) -> anyhow::Result<usize> {
    let log = fs::read_to_string(gate.log())?;
    let given = log
        .lines()
        .filter(|line| line.contains("partitions assigned") && line.contains("reservations/"));
    Ok(given.count())
}

pub(crate) fn a_relay_that_dies_or_wakes_up_late_loses_and_repeats_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut workers = Workers::start(kit).await?;
        let mut traffic = Traffic::new(&kit.stack, "relays")?;
        traffic.during(leads(&workers.relay)).await?;
        let second = kit.stack.holdfast("relay", "relay-b").start().await?;
        traffic.burst(200)?;
        workers.relay.kill()?;
        traffic.during(leads(&second)).await?;

        workers.relay = kit.stack.holdfast("relay", "relay").start().await?;
        traffic.burst(200)?;
        second.pause()?;
        traffic.during(leads(&workers.relay)).await?;
        traffic.answered().await?;
        let late = async {
            second.resume()?;
            until("the late one steps back", TAKEN_OVER_WITHIN, async || {
                let leads = second.metric("holdfast_relay_leader").await?;
                ensure!(leads == Some(0.0), "{leads:?}");
                anyhow::Ok(())
            })
            .await
        };
        traffic.during(late).await?;
        ensure!(second.runs(), "the late one ended: {}", second.last_words());
        traffic.settled().await?;
        second.stop().await?;
        workers.stop().await
    })
}

async fn leads(relay: &Holdfast) -> anyhow::Result<()> {
    until("the relay leads", TAKEN_OVER_WITHIN, async || {
        let leads = relay.metric("holdfast_relay_leader").await?;
        ensure!(leads == Some(1.0), "{leads:?}");
        Ok(())
    })
    .await
}

fn a_serve_that_wakes_up_late_finds_its_work_done(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let workers = Workers::start(kit).await?;
        let mut traffic = Traffic::new(&kit.stack, "serves")?;
        traffic.burst(200)?;
        traffic.answered().await?;
        traffic.burst(200)?;
        let taken_over = async {
            workers.serve.pause()?;
            // Restate has lost its connection to the first serve, and retries the invocation at the second.
            kit.stack.restate.kill()?;
            kit.stack.restate.start().await?;
            let second = elsewhere(kit, "serve")?.start().await?;
            done(elsewhere(kit, "register")?).await?;
            until("the second works", TAKEN_OVER_WITHIN, async || {
                let fresh = second.metric("holdfast_events_total{answer=\"applied\"}").await?;
                ensure!(fresh > Some(0.0), "{fresh:?}");
                anyhow::Ok(())
            })
            .await?;
            workers.serve.resume()?;
            Ok(second)
        };
        let second = traffic.during(taken_over).await?;
        traffic.answered().await?;
        // The first one's address is the one that everybody else uses.
        traffic.during(done(kit.stack.holdfast("register", "register"))).await?;
        traffic.settled().await?;
        second.stop().await?;
        workers.stop().await
    })
}

/// A launch at an address of its own.
pub(crate) fn elsewhere<'a>(kit: &'a Kit, subcommand: &str) -> anyhow::Result<Launch<'a>> {
    let address = format!("127.0.0.1:{}", kit.stack.ports.get("serve-elsewhere")?);
    let launch = kit
        .stack
        .holdfast(subcommand, "elsewhere")
        .env("HOLDFAST_SERVE_LISTEN", &address);
    Ok(launch.env("HOLDFAST_SERVE_URL", &format!("http://{address}")))
}

fn a_database_that_is_put_back_stops_the_relay(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let postgres = &kit.stack.postgres;
        let (earlier, later) = (
            postgres.data().with_extension("earlier"),
            postgres.data().with_extension("later"),
        );
        let workers = Workers::start(kit).await?;
        let mut traffic = Traffic::new(&kit.stack, "put-back")?;
        traffic.burst(50)?;
        traffic.answered().await?;
        postgres.stop().await?;
        copy(postgres.data(), &earlier)?;
        postgres.start().await?;
        traffic.burst(200)?;
        traffic.answered().await?;
        workers.gate.stop().await?;
        workers.serve.stop().await?;

        postgres.stop().await?;
        fs::rename(postgres.data(), &later)?;
        fs::rename(&earlier, postgres.data())?;
        let told = kit.stack.kafka.read(OUTCOMES).await?.len();
        postgres.start().await?;
        let status = workers.relay.wait(TAKEN_OVER_WITHIN).await?;
        let words = workers.relay.last_words();
        ensure!(status.code() == Some(1), "{status}");
        for expected in [
            "the database went back in time",
            "docs/runbook.md#the-database-went-back-in-time",
        ] {
            ensure!(words.contains(expected), "{expected} is not in {words}");
        }
        ensure!(
            kit.stack.kafka.read(OUTCOMES).await?.len() == told,
            "it told something before it stopped"
        );

        // Follows the runbook: the database is brought forward to where it was.
        postgres.stop().await?;
        fs::remove_dir_all(postgres.data())?;
        fs::rename(&later, postgres.data())?;
        postgres.start().await?;
        let workers = Workers::start(kit).await?;
        traffic.burst(50)?;
        traffic.settled().await?;
        workers.stop().await
    })
}

/// Copies a folder, which must not be there yet, as a backup is taken of a server that is stopped.
pub(crate) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(from).arg(to);
    process::output(copy)
        .map(drop)
        .context("the data folder was not copied")
}
