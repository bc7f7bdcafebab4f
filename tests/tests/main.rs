//! The proofs: one binary, one stack of real servers, one test after another.
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
//! `cargo test -p holdfast-tests --test main -- WORD` runs those whose name holds the word. All share the stack, so each
//! uses tickets of its own; servers that a test leaves stopped or paused are healed before the next one.

mod admin;
mod attributes;
mod change_log;
mod checkout;
mod commit;
mod crashes;
mod direct;
mod engine;
mod faults;
mod gate;
mod gate_edges;
mod in_flight;
mod intake;
mod mail;
mod mechanisms;
mod migrations;
mod operate;
mod pool;
mod provider;
mod relay;
mod repeats;
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
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

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
    relay::TESTS,
    intake::TESTS,
    repeats::TESTS,
    operate::TESTS,
    engine::TESTS,
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
    mail::TESTS,
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
    arguments.test_threads = Some(1);
    kit::log_to_stderr();
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
    let kit = Arc::new(Kit::start(Name::Test)?);
    let times = Arc::new(Mutex::new(Vec::new()));
    let trials = chosen.into_iter().map(|test| trial(test, &kit, &times)).collect();
    let conclusion = libtest_mimic::run(arguments, trials);
    print_slowest(&times.lock().expect("no test holds the lock while it runs"));
    Ok(conclusion.exit_code())
}

type Times = Arc<Mutex<Vec<(Duration, &'static str)>>>;

fn trial(test: &'static Test, kit: &Arc<Kit>, times: &Times) -> Trial {
    let (kit, times) = (Arc::clone(kit), Arc::clone(times));
    Trial::test(test.name, move || {
        kit.block_on(kit.stack.heal())
            .map_err(|error| Failed::from(format!("before the test: {error:#}")))?;
        let start = Instant::now();
        let result = (test.run)(&kit);
        times
            .lock()
            .expect("no test holds the lock while it runs")
            .push((start.elapsed(), test.name));
        result.map_err(|error| Failed::from(format!("{error:#}")))
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
