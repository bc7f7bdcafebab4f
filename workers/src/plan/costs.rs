//! What the benchmark has measured. The file is its report, `target/reports/bench.json`, or as much of it as is read here.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The costs that were measured of this release: `holdfast plan --costs target/reports/bench.json --json | jq .costs` has made them.
const MEASURED: &str = include_str!("measured.json");

/// Costs by load, by process, by kind of file.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub(super) struct Costs {
    pub(super) machine: BenchMachine,
    /// Events a second at which the CPU time was measured.
    pub(super) cpu_eps: Loads<f64>,
    pub(super) cpu_us_per_event: Loads<PerProgram>,
    pub(super) checkout_cpu_us: CheckoutSizes<PerProgram>,
    pub(super) disk_bytes: DiskBytes,
    /// Bytes of an event in that measurement, key and value.
    pub(super) event_bytes: f64,
    /// What the engine had on disk at its end.
    pub(super) engine_mb: f64,
    /// Outcomes a second that one relay brings to Kafka.
    pub(super) relay_eps: f64,
    /// The largest resident set of each worker.
    pub(super) peak_mb: WorkerMemory,
    /// Several gates and serves; empty where they were not measured.
    #[serde(default)]
    pub(super) scale: Vec<ScaleStep>,
}

/// The machine of the benchmark, which all processes shared.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub(super) struct BenchMachine {
    pub(super) cores: u32,
    pub(super) profile: String,
    /// Part of the events that were sent; figures count only at 1.
    pub(super) scale: f64,
}

/// One figure for each load.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub(super) struct Loads<T> {
    /// So many events a second, over 1,000 tickets.
    pub(super) paced_20: T,
    pub(super) paced_200: T,
    pub(super) paced_500: T,
    /// A backlog, each event on a ticket of its own.
    pub(super) distinct: T,
    /// A backlog over 2,000 tickets.
    pub(super) uniform: T,
    /// A backlog on one ticket.
    pub(super) hot: T,
}

/// One figure for each program on the way.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub(super) struct PerProgram {
    pub(super) gate: f64,
    pub(super) serve: f64,
    pub(super) relay: f64,
    pub(super) restate: f64,
    pub(super) kafka: f64,
    pub(super) postgres: f64,
}

/// A checkout of one ticket, and of four.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub(super) struct CheckoutSizes<T> {
    pub(super) checkout: T,
    pub(super) checkout4: T,
}

/// What one event, and one checkout, leaves on disk.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub(super) struct DiskBytes {
    pub(super) event: KeptBytes,
    #[serde(flatten)]
    pub(super) checkouts: CheckoutSizes<KeptBytes>,
}

/// Bytes by kind of topic and of table.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub(super) struct KeptBytes {
    pub(super) public: f64,
    pub(super) admitted: f64,
    pub(super) outcomes: f64,
    pub(super) records: f64,
    pub(super) change_log: f64,
    pub(super) orders: f64,
    pub(super) wal: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub(super) struct WorkerMemory {
    pub(super) gate: f64,
    pub(super) serve: f64,
    pub(super) relay: f64,
}

/// The path with so many gates and as many serves.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub(super) struct ScaleStep {
    pub(super) processes: u32,
    pub(super) eps: f64,
    /// Over that of one gate and one serve; likewise the CPU time.
    pub(super) eps_ratio: f64,
    pub(super) cpu_us_per_event: PerProgram,
    pub(super) cpu_ratio: f64,
    /// The busiest serve's part of the CPU time of all.
    pub(super) busiest_serve: f64,
}

/// A program on the way of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Gate,
    Serve,
    Relay,
    Restate,
    Kafka,
    Postgres,
}

/// Why no plan can be made with a file of costs.
#[derive(Debug, thiserror::Error)]
pub enum WrongCosts {
    #[error("--costs: {file} cannot be read")]
    Unread {
        file: String,
        #[source]
        source: io::Error,
    },
    #[error("--costs: {file} is no report of `dev bench --only disk,cpu,relay,checkout,scale`")]
    NoReport {
        file: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("--costs: {file} has a figure that is 0 or less: {what}")]
    NoFigure { file: String, what: &'static str },
}

impl Costs {
    /// Reads the report of a benchmark; without one, the costs of this release.
    pub(super) fn read(file: Option<&Path>) -> Result<Self, WrongCosts> {
        let Some(path) = file else {
            return Self::parse(MEASURED, "what this release was built with");
        };
        let name = path.display().to_string();
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &name),
            Err(source) => Err(WrongCosts::Unread { file: name, source }),
        }
    }

    pub(super) fn parse(text: &str, file: &str) -> Result<Self, WrongCosts> {
        let costs: Self = serde_json::from_str(text).map_err(|source| WrongCosts::NoReport {
            file: file.to_owned(),
            source,
        })?;
        let divisors = [
            ("relay_eps", costs.relay_eps),
            ("event_bytes", costs.event_bytes),
            (
                "cpu_eps",
                costs
                    .cpu_eps
                    .all()
                    .map(|(_, eps)| *eps)
                    .into_iter()
                    .fold(f64::MAX, f64::min),
            ),
        ];
        match divisors.into_iter().find(|(_, figure)| *figure <= 0.0) {
            Some((what, _)) => Err(WrongCosts::NoFigure {
                file: file.to_owned(),
                what,
            }),
            None => Ok(costs),
        }
    }
}

impl<T> Loads<T> {
    /// Those in which no two events are about one ticket at about the same time.
    pub(super) fn spread(&self) -> [&T; 4] {
        [&self.paced_20, &self.paced_200, &self.paced_500, &self.distinct]
    }

    /// Each with its name.
    pub(super) fn all(&self) -> [(&'static str, &T); 6] {
        [
            ("20 a second", &self.paced_20),
            ("200 a second", &self.paced_200),
            ("500 a second", &self.paced_500),
            ("backlog, a ticket each", &self.distinct),
            ("backlog, 2000 tickets", &self.uniform),
            ("backlog, one ticket", &self.hot),
        ]
    }
}

impl<T> CheckoutSizes<T> {
    /// The figure of a checkout of so many tickets, by the straight line through those that were measured.
    pub(super) fn of(&self, tickets: u32, figure: impl Fn(&T) -> f64) -> f64 {
        let (one, four) = (figure(&self.checkout), figure(&self.checkout4));
        (one + (four - one) / 3.0 * (f64::from(tickets) - 1.0)).max(0.0)
    }
}

impl PerProgram {
    pub(super) fn of(&self, program: Program) -> f64 {
        match program {
            Program::Gate => self.gate,
            Program::Serve => self.serve,
            Program::Relay => self.relay,
            Program::Restate => self.restate,
            Program::Kafka => self.kafka,
            Program::Postgres => self.postgres,
        }
    }

    pub(super) fn from_each(figure: impl Fn(Program) -> f64) -> Self {
        Self {
            gate: figure(Program::Gate),
            serve: figure(Program::Serve),
            relay: figure(Program::Relay),
            restate: figure(Program::Restate),
            kafka: figure(Program::Kafka),
            postgres: figure(Program::Postgres),
        }
    }

    pub(super) fn sum(&self) -> f64 {
        Program::ALL.map(|program| self.of(program)).into_iter().sum()
    }
}

impl Program {
    pub(super) const ALL: [Self; 6] = [
        Self::Gate,
        Self::Serve,
        Self::Relay,
        Self::Restate,
        Self::Kafka,
        Self::Postgres,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Serve => "serve",
            Self::Relay => "relay",
            Self::Restate => "Restate",
            Self::Kafka => "Kafka",
            Self::Postgres => "Postgres",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_costs_of_this_release_were_measured_in_full() {
        let costs = Costs::read(None).unwrap();
        assert_eq!((costs.machine.profile.as_str(), costs.machine.scale), ("release", 1.0));
        let processes: Vec<u32> = costs.scale.iter().map(|step| step.processes).collect();
        assert_eq!(processes, [1, 2, 4]);
    }

    #[test]
    fn a_file_without_a_figure_is_named_with_what_is_missing() {
        let mut costs = serde_json::to_value(Costs::read(None).unwrap()).unwrap();
        let read = |costs: &serde_json::Value| Costs::parse(&costs.to_string(), "a.json");
        costs["relay_eps"] = 0.into();
        let said = read(&costs).unwrap_err().to_string();
        assert_eq!(said, "--costs: a.json has a figure that is 0 or less: relay_eps");
        costs["cpu_us_per_event"].as_object_mut().unwrap().remove("hot");
        let error = read(&costs).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("missing field `hot`"), "{cause}");
        let nowhere = Costs::read(Some(Path::new("/nowhere/bench.json"))).unwrap_err();
        assert_eq!(nowhere.to_string(), "--costs: /nowhere/bench.json cannot be read");
    }
}
