//! Several gates and serves, and one relay. The events come as fast as they can while the path runs. Where all share a few cores the
//! rate rises little, so the CPU time of an event tells what each process more costs.
//!
//! The engine calls one address. There a balancer spreads its connections over the serves, as a Service of Kubernetes does.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use futures::future::try_join_all;
use holdfast_tests::kit::provider::Simulator;
use holdfast_tests::kit::{Holdfast, Stack};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tracing::warn;

use super::cost::Cpu;
use super::workload::Workload;
use super::{Bench, ROUNDS, median, microseconds_each};

const COUNTS: [usize; 3] = [1, 2, 4];

/// What was measured of so many gates and serves.
#[derive(Default)]
struct Measured {
    /// Round by round.
    eps: Vec<f64>,
    /// CPU time by kind of process, over all rounds.
    used: BTreeMap<&'static str, Duration>,
    events: usize,
    /// The part of the serves' CPU time that the busiest of them took, round by round.
    busiest: Vec<f64>,
}

impl Bench {
    /// Throughput and CPU time with each number of gates and serves, in turn.
    pub(super) async fn scale_out(&mut self) -> anyhow::Result<()> {
        let mut measured: BTreeMap<usize, Measured> = BTreeMap::new();
        for round in 1..=ROUNDS {
            for count in COUNTS {
                let workload = Workload::new(
                    format!("scale-{count}-{round}"),
                    self.scaled(2_000),
                    self.scaled(60_000),
                );
                let fleet = Fleet::start(&self.stack, &self.provider, count).await?;
                let watch = fleet.watch(&self.stack)?;
                self.list(&workload).await?;
                let before = Cpu::of(&watch)?;
                let eps = self.stream(&workload).await?;
                let used = Cpu::of(&watch)?.since(&before);
                fleet.stop().await?;
                measured.entry(count).or_default().add(eps, &used, workload.events);
            }
        }
        self.report_scale(&measured)
    }

    fn report_scale(&mut self, measured: &BTreeMap<usize, Measured>) -> anyhow::Result<()> {
        let alone = measured.get(&COUNTS[0]).context("nothing was measured")?;
        let (alone_eps, alone_us) = (median(alone.eps.clone()), alone.microseconds());
        let mut steps = Vec::new();
        for (count, of) in measured {
            let (eps, us) = (median(of.eps.clone()), of.microseconds());
            steps.push(json!({
                "processes": count,
                "eps": eps.round(),
                "rounds_eps": of.eps.iter().map(|eps| eps.round()).collect::<Vec<_>>(),
                "eps_ratio": hundredths(eps / alone_eps),
                "cpu_us_per_event": microseconds_each(of.used.clone().into_iter().collect(), of.events),
                "cpu_ratio": hundredths(us / alone_us),
                "busiest_serve": hundredths(median(of.busiest.clone())),
            }));
        }
        self.report.table("scale", &steps);
        self.report.detail("scale", Value::Array(steps));
        Ok(())
    }
}

impl Measured {
    fn add(&mut self, eps: f64, used: &[(&'static str, Duration)], events: usize) {
        self.eps.push(eps);
        self.events += events;
        let serves = used.iter().filter(|(kind, _)| *kind == "serve");
        let serves: Vec<f64> = serves.map(|(_, used)| used.as_secs_f64()).collect();
        let all: f64 = serves.iter().sum();
        self.busiest.push(serves.into_iter().fold(0.0, f64::max) / all);
        for (kind, used) in used {
            *self.used.entry(*kind).or_default() += *used;
        }
    }

    /// CPU time of an event, over all processes.
    fn microseconds(&self) -> f64 {
        self.used.values().sum::<Duration>().as_secs_f64() * 1e6 / self.events as f64
    }
}

/// As many gates as serves, and a relay.
struct Fleet {
    gates: Vec<Holdfast>,
    serves: Vec<Holdfast>,
    relay: Holdfast,
    balancer: Balancer,
}

impl Fleet {
    async fn start(stack: &Stack, provider: &Simulator, count: usize) -> anyhow::Result<Fleet> {
        let port = |number| stack.ports.get(&format!("scale-serve-{number}"));
        let addresses = (0..count).map(|number| Ok(format!("127.0.0.1:{}", port(number)?)));
        let addresses = addresses.collect::<anyhow::Result<Vec<_>>>()?;
        let serves = addresses.iter().enumerate().map(|(number, address)| {
            let serve = stack.holdfast("serve", &format!("scale-serve-{number}"));
            serve.provider(provider).env("HOLDFAST_SERVE_LISTEN", address).start()
        });
        let serves = try_join_all(serves).await?;
        let balancer = Balancer::start(stack.ports.get("serve")?, addresses).await?;
        let relay = stack.holdfast("relay", "scale-relay").start().await?;
        let gates = (0..count).map(|number| stack.holdfast("gate", &format!("scale-gate-{number}")).start());
        Ok(Fleet {
            gates: try_join_all(gates).await?,
            serves,
            relay,
            balancer,
        })
    }

    /// Every process by its kind; a kind may have several.
    fn watch(&self, stack: &Stack) -> anyhow::Result<Vec<(&'static str, Pid)>> {
        let mut watch = vec![
            ("relay", self.relay.pid()),
            ("restate", stack.restate.pid()?),
            ("kafka", stack.kafka.pid()?),
            ("postgres", stack.postgres.pid()?),
        ];
        watch.extend(self.gates.iter().map(|gate| ("gate", gate.pid())));
        watch.extend(self.serves.iter().map(|serve| ("serve", serve.pid())));
        Ok(watch)
    }

    async fn stop(self) -> anyhow::Result<()> {
        for worker in self.gates.iter().chain([&self.relay]).chain(&self.serves) {
            worker.stop().await?;
        }
        self.balancer.stop().await;
        Ok(())
    }
}

/// Passes each connection on to the next of the servers.
struct Balancer(JoinHandle<()>);

impl Balancer {
    async fn start(port: u16, servers: Vec<String>) -> anyhow::Result<Balancer> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        Ok(Balancer(tokio::spawn(pass_on(listener, servers))))
    }

    /// Cuts every connection; then the port is free.
    async fn stop(self) {
        self.0.abort();
        // It ends by being cancelled, as it was told to.
        drop(self.0.await);
    }
}

async fn pass_on(listener: TcpListener, servers: Vec<String>) {
    let mut connections = JoinSet::new();
    for server in servers.iter().cycle() {
        match listener.accept().await {
            Ok((engine, _)) => {
                connections.spawn(connect(engine, server.clone()));
            }
            Err(error) => warn!("the balancer accepts no connection: {error}"),
        }
    }
}

async fn connect(mut engine: TcpStream, server: String) {
    let joined = async {
        let mut server = TcpStream::connect(server).await?;
        engine.set_nodelay(true)?;
        server.set_nodelay(true)?;
        copy_bidirectional(&mut engine, &mut server).await
    };
    if let Err(error) = joined.await {
        warn!("a connection to serve was cut: {error}");
    }
}

fn hundredths(ratio: f64) -> f64 {
    (ratio * 100.0).round() / 100.0
}
