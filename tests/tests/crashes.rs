//! Each role dies at each of its crash points, comes back, and does the step before that point twice, while events keep
//! coming. All rounds share one stack: each begins with what the one before left behind.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast::crash::Point;
use holdfast_tests::kit::{Holdfast, Kit, until};
use holdfast_tests::traffic::Traffic;
use nix::sys::signal::Signal;

use crate::workers::Workers;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    every_event_is_accounted_for_whatever_step_the_gate_dies_at_or_repeats,
    every_event_is_accounted_for_whatever_step_serve_dies_at_or_repeats,
    every_event_is_accounted_for_whatever_step_the_relay_dies_at_or_repeats,
    every_event_is_accounted_for_whatever_step_the_reaper_dies_at_or_repeats,
];

/// A point is reached while events flow.
const REACHED_WITHIN: Duration = Duration::from_secs(30);

fn every_event_is_accounted_for_whatever_step_the_gate_dies_at_or_repeats(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(every_point(kit, "gate.", "gate"))
}

fn every_event_is_accounted_for_whatever_step_serve_dies_at_or_repeats(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(every_point(kit, "serve.", "serve"))
}

pub(crate) fn every_event_is_accounted_for_whatever_step_the_relay_dies_at_or_repeats(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(every_point(kit, "relay.", "relay"))
}

fn every_event_is_accounted_for_whatever_step_the_reaper_dies_at_or_repeats(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(every_point(kit, "reaper.", "serve"))
}

/// The points whose names begin with `prefix`, in the process of `subcommand`.
async fn every_point(kit: &Kit, prefix: &'static str, subcommand: &str) -> anyhow::Result<()> {
    let mut workers = Workers::start(kit).await?;
    let mut traffic = Traffic::new(&kit.stack, prefix)?;
    for point in Point::ALL.into_iter().filter(|point| point.name().starts_with(prefix)) {
        let worker = workers.part(subcommand);
        let round = crash_and_repeat(kit, worker, subcommand, point);
        traffic.during(round).await.with_context(|| point.name())?;
        traffic.answered().await.with_context(|| point.name())?;
        ensure!(worker.runs(), "{}: ended while it repeated a step", point.name());
    }
    traffic.settled().await?;
    workers.stop().await
}

/// The process of `subcommand` dies at the point; its successor does the step before it twice.
pub(crate) async fn crash_and_repeat(
    kit: &Kit,
    worker: &mut Holdfast,
    subcommand: &str,
    point: Point,
) -> anyhow::Result<()> {
    worker.kill()?;
    *worker = kit
        .stack
        .holdfast(subcommand, subcommand)
        .env("HOLDFAST_CRASH", point.name())
        .spawn()?;
    let status = worker.wait(REACHED_WITHIN).await?;
    ensure!(
        status.signal() == Some(Signal::SIGABRT as i32),
        "{status}\n{}",
        worker.last_words()
    );

    *worker = kit
        .stack
        .holdfast(subcommand, subcommand)
        .env("HOLDFAST_REPEAT", point.name())
        .start()
        .await?;
    done_again(worker, point).await
}

/// Returns once the process has done the step before the point again.
pub(crate) async fn done_again(worker: &Holdfast, point: Point) -> anyhow::Result<()> {
    until("the step is done again", REACHED_WITHIN, async || {
        let log = std::fs::read_to_string(worker.log())?;
        let repeated = |line: &str| line.contains("the step before it is done again") && line.contains(point.name());
        ensure!(log.lines().any(repeated), "nothing of {}", point.name());
        Ok(())
    })
    .await
}
