//! The kit: real servers of one machine, started, stopped, killed and paused by process id.
//!
//! ```no_run
//! # use holdfast_tests::kit::{Kit, Name};
//! # fn main() -> anyhow::Result<()> {
//! let kit = Kit::start(Name::Test(1))?;
//! kit.block_on(async {
//!     let worker = kit.stack.holdfast("run", "a").start().await?;
//!     kit.stack.kafka.kill()?;
//!     kit.stack.kafka.start().await?;
//!     worker.stop().await
//! })
//! # }
//! ```
//!
//! Every process that is started dies with the kit: [`run_to_end`] stops it in good order, dropping a [`Holdfast`] kills it,
//! and Linux kills what a killed kit leaves behind.

pub mod certs;
pub mod clock;
pub mod cluster;
pub mod collector;
pub mod doors;
pub mod fetch;
pub mod haproxy;
pub mod http;
pub mod identity;
pub mod installation;
pub mod kafka;
pub mod kafka_lock;
pub mod kubernetes;
pub mod maildev;
pub mod network;
pub mod nginx;
pub mod patroni;
pub mod pgbouncer;
pub mod ports;
pub mod postgres;
pub mod previous;
pub mod process;
pub mod prometheus;
pub mod provider;
pub mod proxy;
pub mod restate;
pub mod server;
pub mod smtp;
pub mod stack;
pub mod third_party;
pub mod tls_front;
pub mod wait;
pub mod worker;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

use provider::Simulator;

pub use cluster::Cluster;
pub use collector::Collector;
pub use installation::Installation;
pub use kafka::Kafka;
pub use kubernetes::Kubernetes;
pub use maildev::Maildev;
pub use nginx::Nginx;
pub use pgbouncer::PgBouncer;
pub use postgres::Postgres;
pub use prometheus::{PostgresExporter, Prometheus};
pub use restate::Restate;
pub use server::Server;
pub use stack::{Name, Stack};
pub use wait::until;
pub use worker::Holdfast;

/// The exit code after [`run_to_end`] without a result, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// A running stack, with the one runtime that everything asynchronous about it uses.
pub struct Kit {
    pub stack: Stack,
    pub provider: Simulator,
    runtime: Runtime,
}

impl Kit {
    /// Returns once all servers answer, and the payment provider's simulator.
    pub fn start(name: Name) -> anyhow::Result<Kit> {
        let runtime = Runtime::new()?;
        let (stack, provider) = runtime.block_on(async {
            let stack = Stack::open(name).await?;
            stack.start().await?;
            let provider = stack.provider().await?;
            anyhow::Ok((stack, provider))
        })?;
        Ok(Kit {
            stack,
            provider,
            runtime,
        })
    }

    pub fn block_on<F: Future>(&self, work: F) -> F::Output {
        self.runtime.block_on(work)
    }
}

/// Runs `work` on a thread of its own and then stops everything that was started. Ctrl-C or SIGTERM before `work` is done
/// does the same, and then there is no result; a second signal does not wait for an orderly end.
pub fn run_to_end<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<Option<T>> {
    let runtime = Runtime::new()?;
    let (done, mut result) = oneshot::channel();
    thread::spawn(move || drop(done.send(work())));
    let result = runtime.block_on(async {
        let early = tokio::select! {
            finished = &mut result => Some(finished.context("a panic")?),
            asked = interrupted() => { asked?; None }
        };
        tokio::select! {
            stopped = spawn_blocking(process::stop_all) => stopped?,
            asked = interrupted() => return asked.map(|()| None).map_err(anyhow::Error::from),
        }
        if early.is_none() {
            // Without its servers the work soon fails and cleans up behind itself; some work does not.
            drop(timeout(Duration::from_secs(2), result).await);
        }
        anyhow::Ok(early)
    });
    runtime.shutdown_background();
    result
}

/// Completes on the first SIGINT or SIGTERM.
async fn interrupted() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Begins the process: rustls uses ring, and each step of the kit is logged as one line; more with `RUST_LOG`. The Kafka client is left out: it calls the end of a partition
/// an error, and tests that take a broker away know of it.
pub fn prepare_process() {
    // An error is a provider that was installed before: they are all the same.
    rustls::crypto::ring::default_provider().install_default().ok();
    let ours = "warn,holdfast_tests=info,dev=info,rdkafka=off,librdkafka=off";
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(ours));
    let output = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false);
    output.with_ansi(io::stderr().is_terminal()).init();
}

/// The checkout that this crate was built from.
pub fn checkout() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().map(PathBuf::from).unwrap_or(tests)
}

/// Where the kit keeps servers, data, logs and ports; never committed.
pub fn dev_folder() -> PathBuf {
    checkout().join(".dev")
}
