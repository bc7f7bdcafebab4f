//! The proofs: one binary, two stacks of real servers and a locked one, in whose place comes a third when it is done; on each one
//! test after another.
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
mod cluster;
mod commit;
mod crashes;
mod debits;
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
mod on_call;
mod operate;
mod orders;
mod pool;
mod privacy;
mod provider;
mod quarantine;
mod recovery;
mod relay;
mod repeats;
mod reprocess;
mod restore;
mod returns;
mod rotation;
mod servers;
mod stack;
mod support;
mod sweep;
mod tour;
mod traces;
mod two_phase;
mod upgrades;
mod users;
mod verify;
mod watch;
mod webhook;
mod workers;
mod zombies;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::executor::block_on;
use holdfast_tests::kit::process::lock;
use holdfast_tests::kit::{self, Kit, Name};
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use tokio::sync::Semaphore;

/// Tests that take turns on the same stacks, beside those of the other lanes: most of them wait for servers most of the time.
struct Lane {
    topics: &'static [&'static [Test]],
    stacks: usize,
    name: fn(usize) -> Name,
}

const LANES: [Lane; 2] = [
    Lane {
        topics: SHARED,
        stacks: 2,
        name: Name::Test,
    },
    Lane {
        topics: APART,
        stacks: 1,
        name: |_| Name::Locked,
    },
];

const SHARED: &[&[Test]] = &[
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
    quarantine::TESTS,
    operate::TESTS,
    doctor::TESTS,
    engine::TESTS,
    grants::TESTS,
    locked_postgres::TESTS,
    locked_doors::TESTS,
    rotation::TESTS,
    admin::TESTS,
    reprocess::TESTS,
    crashes::TESTS,
    servers::TESTS,
    zombies::TESTS,
    recovery::TESTS,
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
    debits::TESTS,
    tour::TESTS,
    traces::TESTS,
    faults::TESTS,
    watch::TESTS,
    // Its last test leaves a doubled outcome on the topic.
    verify::TESTS,
    watch::LAST,
];

/// Behind locked doors, or on stacks of their own.
const APART: &[&[Test]] = &[
    locked::TESTS,
    rotation::LOCKED,
    front::TESTS,
    upgrades::TESTS,
    restore::TESTS,
    cluster::TESTS,
    on_call::TESTS,
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
    let arguments = Arguments::from_args();
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
    if arguments.list {
        let tests = LANES.iter().flat_map(|lane| lane.topics).copied().flatten();
        let trials = tests.map(|test| Trial::test(test.name, || Ok(()))).collect();
        return Ok(libtest_mimic::run(arguments, trials).exit_code());
    }
    let said = Arc::new(Said::default());
    let [shared, apart] = LANES.map(|lane| {
        let turns = Arc::new(Semaphore::new(lane.stacks));
        let (arguments, said, own) = (arguments.clone(), said.clone(), turns.clone());
        (thread::spawn(move || lane.run(arguments, said, own)), turns)
    });
    // Of a lane that panics nothing else is known.
    let has_failed = |lane: JoinHandle<Conclusion>| lane.join().map_or(true, |ended| ended.has_failed());
    let apart = has_failed(apart.0);
    // Its stacks are gone: the machine carries another.
    shared.1.add_permits(1);
    let shared = has_failed(shared.0);
    print_slowest(&lock(&said.times));
    print_failures(&lock(&said.failures));
    Ok(match shared || apart {
        true => ExitCode::from(101),
        false => ExitCode::SUCCESS,
    })
}

/// What is said when all is over.
#[derive(Default)]
struct Said {
    times: Mutex<Vec<(Duration, &'static str)>>,
    failures: Mutex<Vec<(&'static str, String)>>,
}

impl Lane {
    fn run(self, mut arguments: Arguments, said: Arc<Said>, turns: Arc<Semaphore>) -> Conclusion {
        // Never a single one, by which the library would begin a line that another lane's would break.
        arguments.test_threads.get_or_insert(self.stacks + 1);
        let tests = self.topics.iter().copied().flatten();
        let kits = Arc::new(Kits {
            lane: self,
            started: AtomicUsize::default(),
            idle: Mutex::default(),
            turns,
            said,
        });
        let trials = tests.map(|test| trial(test, &kits)).collect();
        libtest_mimic::run(&arguments, trials)
    }
}

/// The stacks of a lane, each started when it is first needed.
struct Kits {
    lane: Lane,
    started: AtomicUsize,
    idle: Mutex<Vec<Kit>>,
    /// One for each test that may run at once. Those that wait go in the order in which they came, so tests keep theirs.
    turns: Arc<Semaphore>,
    said: Arc<Said>,
}

impl Kits {
    fn take(&self) -> anyhow::Result<Kit> {
        if let Some(idle) = lock(&self.idle).pop() {
            return Ok(idle);
        }
        Kit::start((self.lane.name)(self.started.fetch_add(1, Ordering::Relaxed) + 1))
    }

    fn run(&self, test: &Test) -> anyhow::Result<()> {
        let _turn = block_on(self.turns.acquire())?;
        let kit = self.take().context("the servers do not start")?;
        kit.block_on(kit.stack.heal()).context("before the test")?;
        let start = Instant::now();
        let result = (test.run)(&kit);
        lock(&self.said.times).push((start.elapsed(), test.name));
        lock(&self.idle).push(kit);
        result
    }
}

fn trial(test: &'static Test, kits: &Arc<Kits>) -> Trial {
    let kits = Arc::clone(kits);
    Trial::test(test.name, move || {
        kits.run(test).map_err(|error| {
            let error = format!("{error:#}");
            tracing::error!("{}: {error}", test.name); // a run that is ended has no last page
            lock(&kits.said.failures).push((test.name, error.clone()));
            Failed::from(error)
        })
    })
}

fn print_slowest(times: &[(Duration, &str)]) {
    let mut times = times.to_vec();
    times.sort_by(|one, other| other.cmp(one));
    println!("slowest:");
    for (time, name) in times.iter().take(20) {
        println!("{:8.1} s  {name}", time.as_secs_f64());
    }
}

/// The beginnings of all failures once more, since what they say in full may be long: whoever sees only the end of a log has them.
fn print_failures(failures: &[(&str, String)]) {
    const SHOWN: usize = 1_500;
    for (name, error) in failures {
        println!("\n{name}: {}", error.chars().take(SHOWN).collect::<String>());
    }
}
