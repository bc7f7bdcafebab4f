//! `dev`, the tool that `make` calls. Each subcommand is a module beside this file; all run on stacks of the kit.

mod bench;
mod cluster;
mod demo;
mod pods;
mod statements;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use holdfast_tests::kit::{self, prepare_process};
use tokio::runtime::Runtime;
use tracing::error;

/// Development tool of Holdfast
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch the pinned servers
    Fetch,
    /// Build the previous release, from which the proofs upgrade
    Previous,
    /// Hold the stack open with `holdfast run` on it, until Ctrl-C
    Up(up::Arguments),
    /// Run an on-sale on real servers, kill workers in the middle, and check that every count and every cent adds up
    Demo,
    /// Measure throughput, latency, CPU time and memory on real servers
    Bench(bench::Arguments),
    /// Lose each node of a cluster in turn, and measure how long answers stay away
    Cluster(cluster::Arguments),
    /// Run the chart's pods by podman on real servers, restart them in the middle, and have `verify` judge
    Pods,
    /// Refresh the committed descriptions of SQL statements
    Sqlx(statements::Arguments),
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Fetch => tokio::task::spawn_blocking(kit::fetch::servers).await?.map(drop),
        Command::Previous => tokio::task::spawn_blocking(kit::previous::binary).await?.map(drop),
        Command::Up(arguments) => up::run(arguments).await,
        Command::Demo => demo::run().await,
        Command::Bench(arguments) => bench::run(arguments).await,
        Command::Cluster(arguments) => cluster::run(arguments).await,
        Command::Pods => pods::run().await,
        Command::Sqlx(arguments) => statements::run(arguments).await,
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    prepare_process();
    match kit::run_to_end(move || Runtime::new()?.block_on(run(arguments.command))) {
        Ok(Some(Ok(()))) => ExitCode::SUCCESS,
        Ok(None) => ExitCode::from(kit::INTERRUPTED),
        Ok(Some(Err(error))) | Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
