//! The proofs: one binary, two stacks of real servers, and on each one test after another.
//!
//! A topic is a module beside this file. It lists its tests, plain functions named by the promise they keep:
//!
//! ```ignore
//! pub(crate) const TESTS: &[Test] = tests![a_redelivered_record_changes_nothing];
//!
//! fn a_redelivered_record_changes_nothing(kit: &Kit) -> anyhow::Result<()> {
//!     kit.block_on(async { ... })
//! }
//! ```
//!
//! `cargo test -p holdfast-tests --test main -- WORD` runs those whose name holds the word. A test takes the stack that is free:
//! others ran on it before, so each uses tickets of its own; servers that a test leaves stopped or paused are healed before the
//! next one.

mod admin;
mod alerts;
mod astray;
mod attributes;
mod change_log;
mod checkout;
mod commit;
mod crashes;
mod direct;
mod doctor;
mod engine;
mod faults;
mod front;
mod gate;
mod gate_edges;
mod grants;
mod in_flight;
mod intake;
mod locked;
mod locked_doors;
mod locked_kafka;
mod locked_postgres;
mod mail;
mod mechanisms;
mod migrations;
mod operate;
mod orders;
mod pool;
mod privacy;
mod provider;
mod relay;
mod repeats;
mod returns;
mod rotation;
mod servers;
mod stack;
mod support;
mod sweep;
mod tour;
mod traffic;
mod two_phase;
mod users;
mod verify;
mod webhook;
mod workers;
mod zombies;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use holdfast_tests::kit::process::lock;
use holdfast_tests::kit::{self, Kit, Name};
use libtest_mimic::{Arguments, Failed, Trial};

const TOPICS: &[&[Test]] = &[
    stack::TESTS,
    provider::TESTS,
    commit::TESTS,
    sweep::TESTS,
    migrations::TESTS,
    // It is the first to register, and without a gate.
    direct::TESTS,
    pool::TESTS,
    gate::TESTS,
    gate_edges::TESTS,
    locked_kafka::TESTS,
    relay::TESTS,
    intake::TESTS,
    repeats::TESTS,
    returns::TESTS,
    operate::TESTS,
    doctor::TESTS,
    engine::TESTS,
    grants::TESTS,
    locked_postgres::TESTS,
    locked_doors::TESTS,
    locked::TESTS,
    rotation::TESTS,
    front::TESTS,
    admin::TESTS,
    crashes::TESTS,
    servers::TESTS,
    zombies::TESTS,
    mechanisms::TESTS,
    change_log::TESTS,
    attributes::TESTS,
    two_phase::TESTS,
    users::TESTS,
    checkout::TESTS,
    in_flight::TESTS,
    astray::TESTS,
    orders::TESTS,
    mail::TESTS,
    privacy::TESTS,
    alerts::TESTS,
    webhook::TESTS,
    tour::TESTS,
    faults::TESTS,
    // Its last test leaves a doubled outcome on the topic.
    verify::TESTS,
];

pub(crate) struct Test {
    name: &'static str,
    run: fn(&Kit) -> anyhow::Result<()>,
}

/// The tests of a module, by function name.
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        &[$(crate::Test { name: concat!(module_path!(), "::", stringify!($test)), run: $test }),*]
    };
}
pub(crate) use tests;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(KITS);
    kit::prepare_process();
    match kit::run_to_end(move || run(&arguments)) {
        Ok(Some(Ok(code))) => code,
        Ok(None) => ExitCode::from(kit::INTERRUPTED),
        Ok(Some(Err(error))) | Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let chosen: Vec<&'static Test> = TOPICS.iter().copied().flatten().collect();
    if arguments.list {
        let trials = chosen.iter().map(|test| Trial::test(test.name, || Ok(()))).collect();
        return Ok(libtest_mimic::run(arguments, trials).exit_code());
    }
    let kits = Arc::new(Kits::default());
    let trials = chosen.into_iter().map(|test| trial(test, &kits)).collect();
    let conclusion = libtest_mimic::run(arguments, trials);
    print_slowest(&lock(&kits.times));
    Ok(conclusion.exit_code())
}

/// As many stacks as tests run at once; most of them wait for servers most of the time.
const KITS: usize = 2;

/// The stacks, each started when it is first needed.
#[derive(Default)]
struct Kits {
    started: AtomicUsize,
    idle: Mutex<Vec<Kit>>,
    times: Mutex<Vec<(Duration, &'static str)>>,
}

impl Kits {
    fn take(&self) -> anyhow::Result<Kit> {
        if let Some(idle) = lock(&self.idle).pop() {
            return Ok(idle);
        }
        Kit::start(Name::Test(self.started.fetch_add(1, Ordering::Relaxed) + 1))
    }

    fn run(&self, test: &Test) -> anyhow::Result<()> {
        let kit = self.take().context("the servers do not start")?;
        kit.block_on(kit.stack.heal()).context("before the test")?;
        let start = Instant::now();
        let result = (test.run)(&kit);
        lock(&self.times).push((start.elapsed(), test.name));
        lock(&self.idle).push(kit);
        result
    }
}

fn trial(test: &'static Test, kits: &Arc<Kits>) -> Trial {
    let kits = Arc::clone(kits);
    Trial::test(test.name, move || {
        kits.run(test).map_err(|error| Failed::from(format!("{error:#}")))
    })
}

fn print_slowest(times: &[(Duration, &str)]) {
    let mut times = times.to_vec();
    times.sort_by(|one, other| other.cmp(one));
    println!("slowest:");
    for (time, name) in times.iter().take(10) {
        println!("{:8.1} s  {name}", time.as_secs_f64());
    }
}
