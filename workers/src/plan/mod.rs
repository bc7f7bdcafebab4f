//! `holdfast plan`: from the costs that the benchmark has measured, what a load needs and what limits it next. Arithmetic alone; it
//! reaches no server.
//!
//! A program's cores are those that it had in use at the rates of the benchmark: between two of them a straight line, above the highest in
//! proportion to the rate. What was measured on one machine is taken to hold on several; docs/capacity.md says what was not measured.

mod costs;
mod report;

use std::time::Duration;

use serde::Serialize;

use crate::config::{self, Config};
pub use costs::WrongCosts;
use costs::{Costs, KeptBytes, PerProgram, Program};

/// Gates, serves and relays of which one may die.
const FEWEST_PODS: u32 = 2;
/// Partitions for each gate, so that there may be twice as many gates before keys have to move to other partitions.
const PARTITIONS_PER_GATE: u32 = 2;
/// Calls to the payment provider that each checkout makes: it creates, authorises and captures the payment.
const CALLS_PER_CHECKOUT: f64 = 3.0;
/// Outcomes of each checkout beside one for every ticket sold: opened, completed, and the entry of the ledger.
const OUTCOMES_PER_CHECKOUT: f64 = 3.0;
/// A relay's connections beside its pool: the one with the lock, the one that listens.
const RELAY_CONNECTIONS: u32 = 2;

/// The costs, what each rate needs, and the limits, the lowest first.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    costs: Costs,
    plans: Vec<Capacity>,
    limits: Vec<Ceiling>,
}

/// What one rate needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Capacity {
    events: f64,
    cores: PerProgram,
    gates: u32,
    serves: u32,
    relays: u32,
    partitions: u32,
    connections: u32,
    disk_gb: KeptDisk,
    /// Of the write-ahead log, at the peak.
    wal_mb_per_second: f64,
    /// The limits that it is beyond.
    beyond: Vec<&'static str>,
}

/// Gigabytes, replicas included.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct KeptDisk {
    topics: f64,
    records: f64,
    change_logs: f64,
    orders: f64,
}

/// The highest rate that something lets through.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Ceiling {
    what: &'static str,
    events: f64,
    helps: &'static str,
}

/// Makes the plan.
///
/// # Errors
/// The file of costs cannot be used.
pub fn run(load: &config::Plan, config: &Config) -> Result<PlanReport, WrongCosts> {
    let costs = Costs::read(load.costs.as_deref())?;
    let planner = Planner {
        costs: &costs,
        load,
        config,
    };
    let limits = planner.limits();
    let plans = load
        .events
        .iter()
        .map(|events| planner.capacity(*events, &limits))
        .collect();
    Ok(PlanReport { plans, limits, costs })
}

struct Planner<'a> {
    costs: &'a Costs,
    load: &'a config::Plan,
    config: &'a Config,
}

impl Planner<'_> {
    fn capacity(&self, events: f64, limits: &[Ceiling]) -> Capacity {
        let cores = PerProgram::from_each(|program| self.cores(program, events));
        let (gates, serves) = (self.pods(cores.gate), self.pods(cores.serve));
        let (kafka, database) = (&self.config.kafka, &self.config.database);
        // Of each serve, of each relay, and of a command.
        let pools = serves.saturating_add(FEWEST_PODS + 1);
        Capacity {
            events,
            gates,
            serves,
            relays: FEWEST_PODS,
            partitions: gates
                .saturating_mul(PARTITIONS_PER_GATE)
                .max(kafka.partitions.unsigned_abs()),
            connections: pools
                .saturating_mul(database.pool_size)
                .saturating_add(FEWEST_PODS * RELAY_CONNECTIONS),
            disk_gb: self.disk(events),
            wal_mb_per_second: events * self.bytes(|kept| kept.wal) / 1e6,
            beyond: limits
                .iter()
                .filter(|limit| limit.events < events)
                .map(|limit| limit.what)
                .collect(),
            cores,
        }
    }

    /// Cores that a program is to have: those in use, and those that are to stay free.
    fn cores(&self, program: Program, events: f64) -> f64 {
        let microseconds = &self.costs.cpu_us_per_event;
        let hot = events * self.load.hot * microseconds.hot.of(program) / 1e6;
        let checkout = self
            .costs
            .checkout_cpu_us
            .of(self.load.tickets, |used| used.of(program));
        let checkouts = events * self.load.checkouts * checkout / 1e6;
        let spread = self.in_use(program, events * (1.0 - self.load.hot));
        (spread + hot + checkouts) * 100.0 / self.load.busy
    }

    /// Cores in use by events about many tickets: as measured at some rates, between two of them by a straight line. Below the lowest it is
    /// what was in use there.
    fn in_use(&self, program: Program, events: f64) -> f64 {
        let rates = self.costs.cpu_eps.spread();
        let costs = self.costs.cpu_us_per_event.spread();
        let measured = rates.into_iter().zip(costs);
        let mut measured: Vec<(f64, f64)> = measured
            .map(|(rate, used)| (*rate, rate * used.of(program) / 1e6))
            .collect();
        measured.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let lowest = measured.first().map_or(0.0, |(_, cores)| *cores);
        let (mut rate, mut cores) = (0.0, lowest);
        for (next_rate, next_cores) in measured {
            // More events never count as less work, whatever a noisy machine has measured.
            let next_cores = next_cores.max(cores);
            if events <= next_rate {
                return cores + (next_cores - cores) * (events - rate) / (next_rate - rate);
            }
            (rate, cores) = (next_rate, next_cores);
        }
        cores * events / rate
    }

    fn pods(&self, cores: f64) -> u32 {
        // More than a u32 holds become the largest.
        ((cores / self.load.pod_cores).ceil() as u32).max(FEWEST_PODS)
    }

    fn disk(&self, events: f64) -> KeptDisk {
        let (kafka, database) = (&self.config.kafka, &self.config.database);
        let events = events * self.load.mean / 100.0;
        let gigabytes = |bytes: f64, kept: Duration| events * bytes * kept.as_secs_f64() / 1e9;
        // What is on the public and the admitted topics is the event itself.
        let longer = self
            .load
            .event_bytes
            .map_or(1.0, |bytes| f64::from(bytes) / self.costs.event_bytes);
        let topics = self.bytes(|kept| (kept.public + kept.admitted) * longer + kept.outcomes);
        let days = Duration::from_secs(u64::from(self.load.days) * 24 * 3600);
        KeptDisk {
            topics: gigabytes(topics, kafka.topic_retention) * f64::from(kafka.replication),
            records: gigabytes(self.bytes(|kept| kept.records), database.idempotency_retention),
            change_logs: gigabytes(self.bytes(|kept| kept.change_log), days),
            orders: gigabytes(self.bytes(|kept| kept.orders), days),
        }
    }

    /// Bytes of an event, with those of the checkouts that come with it.
    fn bytes(&self, kind: impl Fn(&KeptBytes) -> f64) -> f64 {
        let disk = &self.costs.disk_bytes;
        kind(&disk.event) + self.load.checkouts * disk.checkouts.of(self.load.tickets, &kind)
    }

    fn limits(&self) -> Vec<Ceiling> {
        let (load, costs) = (self.load, self.costs);
        let outcomes = 1.0 + load.checkouts * (OUTCOMES_PER_CHECKOUT + f64::from(load.tickets));
        let calls = f64::from(self.config.provider.rate());
        let mut limits = vec![
            Ceiling {
                what: "one hot ticket",
                events: costs.cpu_eps.hot / load.hot,
                helps: "fewer events for a ticket that is gone: whoever sends them can know that it is",
            },
            Ceiling {
                what: "payment provider",
                events: calls / CALLS_PER_CHECKOUT / load.checkouts,
                helps: "more calls a second (--provider-calls-per-second), once the provider lets the account have them",
            },
            Ceiling {
                what: "the relay",
                events: costs.relay_eps / outcomes,
                helps: "a quicker disk and core for it, for Kafka and Postgres; then several installations, by show",
            },
            Ceiling {
                what: "one Postgres",
                events: highest(|events| self.cores(Program::Postgres, events) <= load.postgres_cores),
                helps: "a larger machine (--postgres-cores); then several installations, by show",
            },
        ];
        // A load without hot tickets, or without checkouts, has no such limit.
        limits.retain(|limit| limit.events.is_finite());
        limits.sort_by(|one, other| one.events.total_cmp(&other.events));
        limits
    }
}

/// The highest rate that fits, where no rate above one that does not fit does.
fn highest(fits: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1e9);
    for _halving in 0..64 {
        let middle = (low + high) / 2.0;
        match fits(middle) {
            true => low = middle,
            false => high = middle,
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::config::{Cli, Role};

    /// Round figures, to compute by hand with.
    fn costs() -> Costs {
        let each = |gate: u32, postgres: u32| json!({ "gate": gate, "serve": 100, "relay": 10, "restate": 200, "kafka": 50, "postgres": postgres });
        let kept = |bytes: u32| {
            json!({ "public": bytes, "admitted": bytes, "outcomes": 2 * bytes, "records": 3 * bytes,
                "change_log": 2 * bytes, "orders": 0, "wal": 10 * bytes })
        };
        let text = json!({
            "machine": { "cores": 2, "profile": "release", "scale": 1.0 },
            "cpu_eps": { "paced_20": 20, "paced_200": 200, "paced_500": 500, "distinct": 1_000, "uniform": 5_000, "hot": 10_000 },
            "cpu_us_per_event": { "paced_20": each(1_000, 500), "paced_200": each(200, 400), "paced_500": each(100, 300),
                "distinct": each(100, 200), "uniform": each(1, 1), "hot": each(10, 20) },
            "checkout_cpu_us": { "checkout": each(0, 1_000), "checkout4": each(0, 4_000) },
            "disk_bytes": { "event": kept(100), "checkout": kept(0), "checkout4": kept(0) },
            "event_bytes": 250.0, "engine_mb": 500.0, "relay_eps": 20_000.0,
            "peak_mb": { "gate": 50, "serve": 90, "relay": 40 },
        });
        Costs::parse(&text.to_string(), "a test").unwrap()
    }

    fn plan<T>(args: &[&str], read: impl FnOnce(Planner<'_>) -> T) -> T {
        let cli = Cli::parse_from([&["holdfast", "plan"], args].concat());
        let Role::Plan(load) = cli.command else {
            panic!("another command");
        };
        let (costs, config) = (costs(), cli.config);
        read(Planner {
            costs: &costs,
            load: &load,
            config: &config,
        })
    }

    fn close(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-9 * other.abs().max(1.0)
    }

    #[test]
    fn cores_are_those_measured_and_between_and_beyond_them_in_line() {
        plan(&["--hot", "0", "--checkouts", "0", "--busy", "100"], |planner| {
            let gate = |events| planner.cores(Program::Gate, events);
            // 20 a second take 20 * 1,000 us = 0.02 cores, and as much is in use by fewer.
            assert!(close(gate(20.0), 0.02) && close(gate(1.0), 0.02));
            // 200 a second take 200 * 200 us = 0.04 cores; half way between the two is 0.03.
            assert!(close(gate(200.0), 0.04) && close(gate(110.0), 0.03));
            // Above 1,000 a second each takes 100 us.
            assert!(close(gate(1_000.0), 0.1) && close(gate(100_000.0), 10.0));
        });
    }

    #[test]
    fn hot_events_and_checkouts_cost_their_own_and_some_cores_stay_free() {
        plan(
            &["--hot", "0.5", "--checkouts", "0.1", "--tickets", "2", "--busy", "50"],
            |planner| {
                // Of 2,000 events, 1,000 take 200 us each and 1,000 hot ones 20 us; 200 checkouts of two tickets take 2,000 us each.
                let used = 0.2 + 0.02 + 0.4;
                assert!(close(planner.cores(Program::Postgres, 2_000.0), 2.0 * used));
            },
        );
    }

    #[test]
    fn pods_partitions_and_connections_follow_from_the_cores() {
        plan(
            &["--hot", "0", "--checkouts", "0", "--busy", "100", "--pool-size", "10"],
            |planner| {
                let of = |events| planner.capacity(events, &[]);
                let few = of(100.0);
                assert_eq!((few.gates, few.serves, few.partitions), (2, 2, 8));
                // Pools of 10 for 2 serves, 2 relays and a command, and 2 connections more for each relay.
                assert_eq!(few.connections, 54);
                let many = of(75_000.0);
                assert_eq!((many.gates, many.serves, many.partitions), (8, 8, 16));
                assert_eq!(many.connections, 114);
            },
        );
    }

    #[test]
    fn disk_grows_with_the_mean_rate_the_retention_and_the_replicas() {
        let args = [
            "--mean",
            "10",
            "--checkouts",
            "0",
            "--days",
            "10",
            "--event-bytes",
            "500",
        ];
        let settings = [
            "--topic-retention",
            "2d",
            "--replication",
            "3",
            "--idempotency-retention",
            "1d",
        ];
        plan(&[&args[..], &settings].concat(), |planner| {
            let disk = planner.disk(10_000.0);
            // 1,000 a second on the mean; an event twice as long has 2 * (100 + 100) + 200 = 600 bytes on topics.
            assert!(close(disk.topics, 3.0 * 2.0 * 86.4 * 0.6), "{disk:?}");
            assert!(close(disk.records, 86.4 * 0.3), "{disk:?}");
            assert!(close(disk.change_logs, 10.0 * 86.4 * 0.2), "{disk:?}");
            assert!(close(disk.orders, 0.0), "{disk:?}");
            assert!(close(planner.capacity(10_000.0, &[]).wal_mb_per_second, 10.0));
        });
    }

    #[test]
    fn the_lowest_limit_is_first_and_a_plan_names_those_that_it_is_beyond() {
        let args = [
            "--hot",
            "0.5",
            "--checkouts",
            "0.1",
            "--tickets",
            "2",
            "--provider-calls-per-second",
            "300",
        ];
        plan(
            &[&args[..], &["--postgres-cores", "10", "--busy", "100"]].concat(),
            |planner| {
                let limits = planner.limits();
                let named: Vec<_> = limits.iter().map(|limit| (limit.what, limit.events.round())).collect();
                // 300 / 3 / 0.1 checkouts; 20,000 / (1 + 0.1 * (3 + 2)); 10,000 / 0.5; 10 cores / (100 + 10 + 200 us).
                let expected = [
                    ("payment provider", 1_000.0),
                    ("the relay", 13_333.0),
                    ("one hot ticket", 20_000.0),
                    ("one Postgres", 32_258.0),
                ];
                assert_eq!(named, expected);
                let beyond = planner.capacity(15_000.0, &limits).beyond;
                assert_eq!(beyond, ["payment provider", "the relay"]);
            },
        );
        plan(&["--hot", "0", "--checkouts", "0"], |planner| {
            let limits = planner.limits();
            let named: Vec<_> = limits.iter().map(|limit| limit.what).collect();
            assert_eq!(named, ["the relay", "one Postgres"]);
        });
    }

    #[test]
    fn more_events_never_need_less() {
        plan(&[], |planner| {
            let limits = planner.limits();
            let mut before = planner.capacity(0.5, &limits);
            for step in 1..200 {
                let next = planner.capacity(0.5 * 1.1_f64.powi(step), &limits);
                for program in Program::ALL {
                    assert!(
                        next.cores.of(program) >= before.cores.of(program),
                        "{before:?} {next:?}"
                    );
                }
                assert!(next.gates >= before.gates && next.serves >= before.serves);
                assert!(next.partitions >= before.partitions && next.connections >= before.connections);
                assert!(next.disk_gb.topics > before.disk_gb.topics && next.beyond.len() >= before.beyond.len());
                before = next;
            }
        });
    }
}
