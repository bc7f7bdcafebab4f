//! The plan as tables: a column for each rate, then the limits, the lowest first. Without a rate, the costs.

use std::fmt;

use super::costs::{Costs, KeptBytes, PerProgram, Program};
use super::{Capacity, PlanReport};

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.plans.is_empty() {
            return write!(f, "{}", self.costs);
        }
        let mut rows = Rows::new(
            "events/s at the peak",
            self.plans.iter().map(|plan| number(plan.events)),
        );
        for program in Program::ALL {
            self.row(&mut rows, &format!("cores, {}", program.name()), |plan| {
                number(plan.cores.of(program))
            });
        }
        self.row(&mut rows, "cores, all", |plan| number(plan.cores.sum()));
        self.row(&mut rows, "pods, gate", |plan| plan.gates.to_string());
        self.row(&mut rows, "pods, serve", |plan| plan.serves.to_string());
        self.row(&mut rows, "pods, relay", |plan| plan.relays.to_string());
        let memory = &self.costs.peak_mb;
        for (worker, megabytes) in [("gate", memory.gate), ("serve", memory.serve), ("relay", memory.relay)] {
            self.row(&mut rows, &format!("MB, a {worker}"), |_| number(megabytes));
        }
        self.row(&mut rows, "GB, topics", |plan| number(plan.disk_gb.topics));
        self.row(&mut rows, "GB, idempotency records", |plan| {
            number(plan.disk_gb.records)
        });
        self.row(&mut rows, "GB, change logs", |plan| number(plan.disk_gb.change_logs));
        self.row(&mut rows, "GB, orders", |plan| number(plan.disk_gb.orders));
        self.row(&mut rows, "MB/s, write-ahead log", |plan| {
            number(plan.wal_mb_per_second)
        });
        self.row(&mut rows, "GB, engine, at least", |_| {
            number(self.costs.engine_mb / 1e3)
        });
        self.row(&mut rows, "partitions of a topic", |plan| plan.partitions.to_string());
        self.row(&mut rows, "connections to Postgres", |plan| {
            plan.connections.to_string()
        });
        write!(f, "{rows}\n\n")?;
        let mut limits = Rows::new("what limits next", ["events/s".to_owned()]);
        for limit in &self.limits {
            limits.push(limit.what, [number(limit.events)]);
        }
        write!(f, "{limits}")?;
        for limit in &self.limits {
            write!(f, "\n{}: {}", limit.what, limit.helps)?;
        }
        for plan in self.plans.iter().filter(|plan| !plan.beyond.is_empty()) {
            write!(
                f,
                "\n{} events/s are beyond {}",
                number(plan.events),
                plan.beyond.join(", ")
            )?;
        }
        Ok(())
    }
}

impl PlanReport {
    fn row(&self, rows: &mut Rows, head: &str, cell: impl Fn(&Capacity) -> String) {
        rows.push(head, self.plans.iter().map(cell));
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "measured on {} cores, which all programs shared\n",
            self.machine.cores
        )?;
        writeln!(f, "{}\n", self.cpu())?;
        writeln!(f, "{}\n", self.disk())?;
        if !self.scale.is_empty() {
            writeln!(f, "{}\n", self.steps())?;
        }
        writeln!(f, "an event has {} bytes", number(self.event_bytes))?;
        writeln!(f, "one relay brings {} outcomes/s to Kafka", number(self.relay_eps))?;
        write!(f, "the engine had {} MB on disk at the end", number(self.engine_mb))
    }
}

impl Costs {
    fn cpu(&self) -> Rows {
        let heads = Program::ALL.map(Program::name).map(str::to_owned);
        let mut rows = Rows::new(
            "us of CPU time",
            ["events/s".to_owned()]
                .into_iter()
                .chain(heads)
                .chain(["all".to_owned()]),
        );
        let each = |used: &PerProgram| {
            let programs = Program::ALL.map(|program| number(used.of(program)));
            programs.into_iter().chain([number(used.sum())]).collect::<Vec<_>>()
        };
        let rates = self.cpu_eps.all();
        for ((load, used), (_, rate)) in self.cpu_us_per_event.all().into_iter().zip(rates) {
            rows.push(load, [number(*rate)].into_iter().chain(each(used)));
        }
        for (checkout, used) in [
            ("a checkout of 1 ticket", &self.checkout_cpu_us.checkout),
            ("a checkout of 4 tickets", &self.checkout_cpu_us.checkout4),
        ] {
            rows.push(checkout, ["-".to_owned()].into_iter().chain(each(used)));
        }
        rows
    }

    fn disk(&self) -> Rows {
        let heads = [
            "public",
            "admitted",
            "outcomes",
            "records",
            "change log",
            "orders",
            "WAL",
        ];
        let mut rows = Rows::new("bytes on disk", heads.map(str::to_owned));
        let each = |kept: &KeptBytes| {
            let KeptBytes {
                public,
                admitted,
                outcomes,
                records,
                change_log,
                orders,
                wal,
            } = kept;
            [public, admitted, outcomes, records, change_log, orders, wal].map(|bytes| number(*bytes))
        };
        let disk = &self.disk_bytes;
        rows.push("an event", each(&disk.event));
        rows.push("a checkout of 1 ticket", each(&disk.checkouts.checkout));
        rows.push("a checkout of 4 tickets", each(&disk.checkouts.checkout4));
        rows
    }

    fn steps(&self) -> Rows {
        let heads = Program::ALL.map(Program::name);
        let heads = ["events/s", "ratio"]
            .into_iter()
            .chain(heads)
            .chain(["all", "ratio", "busiest serve"]);
        let mut rows = Rows::new("gates and serves, us an event", heads.map(str::to_owned));
        for step in &self.scale {
            let used = &step.cpu_us_per_event;
            let cells = [step.eps, step.eps_ratio].into_iter();
            let cells = cells.chain(Program::ALL.map(|program| used.of(program)));
            let cells = cells.chain([used.sum(), step.cpu_ratio, step.busiest_serve]);
            rows.push(&format!("{} of each", step.processes), cells.map(number));
        }
        rows
    }
}

/// Rows of numbers, each behind its head. A column is as wide as its longest cell.
struct Rows(Vec<Vec<String>>);

impl Rows {
    fn new(head: &str, heads: impl IntoIterator<Item = String>) -> Self {
        let mut rows = Self(Vec::new());
        rows.push(head, heads);
        rows
    }

    fn push(&mut self, head: &str, cells: impl IntoIterator<Item = String>) {
        self.0.push([head.to_owned()].into_iter().chain(cells).collect());
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.0.first().map_or(0, Vec::len);
        let width = |column: usize| self.0.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (line, row) in self.0.iter().enumerate() {
            if line > 0 {
                writeln!(f)?;
            }
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                match column {
                    0 => write!(f, "{cell:<width$}")?,
                    _ => write!(f, "  {cell:>width$}")?,
                }
            }
        }
        Ok(())
    }
}

/// With as many digits behind the point as are of use.
fn number(number: f64) -> String {
    if number >= 100.0 || number == number.trunc() {
        format!("{number:.0}")
    } else if number >= 1.0 {
        format!("{number:.1}")
    } else {
        format!("{number:.2}")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::config::{Cli, Role};

    #[test]
    fn a_number_has_the_digits_that_are_of_use() {
        let written = [0.0, 0.014, 1.04, 12.34, 99.96, 1234.6, 8.0].map(number);
        assert_eq!(written, ["0", "0.01", "1.0", "12.3", "100.0", "1235", "8"]);
    }

    #[test]
    fn heads_are_left_and_numbers_right() {
        let mut rows = Rows::new("RATE", ["5".to_owned(), "1000".to_owned()]);
        rows.push("a gate", ["12".to_owned(), "7".to_owned()]);
        assert_eq!(rows.to_string(), "RATE     5  1000\na gate  12     7");
    }

    /// `UPDATE=1` writes them anew.
    #[test]
    fn the_page_on_capacity_shows_what_its_commands_print() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/capacity.md");
        let page = fs::read_to_string(&file).unwrap();
        let printed = with_output(&page);
        assert!(printed.matches(COMMAND).count() > 2, "{printed}");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&file, printed).unwrap();
            return;
        }
        assert_eq!(page, printed, "UPDATE=1 cargo test --workspace --lib capacity");
    }

    const INDENT: &str = "    ";
    const COMMAND: &str = "    $ holdfast plan";

    /// The page, with what each command prints below it.
    fn with_output(page: &str) -> String {
        let mut lines = Vec::new();
        let mut below_a_command = false;
        for line in page.lines() {
            // Old output: the rest of the block, with its empty lines.
            below_a_command &= line.is_empty() || line.starts_with(INDENT);
            if let Some(arguments) = line.strip_prefix(COMMAND) {
                lines.push(line.to_owned());
                let output = output(arguments);
                lines.extend(
                    output
                        .lines()
                        .map(|line| format!("{INDENT}{line}").trim_end().to_owned()),
                );
                lines.push(String::new());
                below_a_command = true;
            } else if !below_a_command {
                lines.push(line.to_owned());
            }
        }
        lines.join("\n") + "\n"
    }

    fn output(arguments: &str) -> String {
        let cli = Cli::parse_from(["holdfast", "plan"].into_iter().chain(arguments.split_whitespace()));
        match &cli.command {
            Role::Plan(load) => super::super::run(load, &cli.config).unwrap().to_string(),
            other => panic!("{other:?}"),
        }
    }
}
