//! The figures, as a table and as JSON.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use holdfast_tests::kit::Stack;
use serde_json::{Map, Value, json};

pub(super) struct Report {
    figures: Map<String, Value>,
    lines: Vec<String>,
}

impl Report {
    /// Begins with what the figures depend on: machine, build, and how the servers write to disk.
    pub(super) async fn new(stack: &Stack, scale: f64) -> anyhow::Result<Report> {
        let mut report = Report {
            figures: Map::new(),
            lines: Vec::new(),
        };
        let cores = std::thread::available_parallelism()?.get();
        let load = fs::read_to_string("/proc/loadavg")?;
        let load = load.split(' ').next().unwrap_or_default();
        let profile = if cfg!(debug_assertions) {
            "dev (figures do not count)"
        } else {
            "release"
        };
        report.detail(
            "machine",
            json!({ "cores": cores, "load_at_start": load, "profile": profile, "scale": scale }),
        );
        report.detail("postgres_settings", postgres_settings(stack).await?);
        report.detail("kafka_settings", json!({ "log.flush.interval.messages": 1 }));
        let settings = stack.restate.effective_settings()?;
        let told =
            |key: &String| key.contains("fsync") || key.starts_with("default-num") || key.contains("thread-pool");
        for (key, value) in settings.iter().filter(|(key, _)| told(key)) {
            report.lines.push(format!("restate: {key} = {value}"));
        }
        report.figures.insert(String::from("restate_settings"), json!(settings));
        Ok(report)
    }

    pub(super) fn figure(&mut self, key: &str, value: f64, unit: &str) {
        self.add(key, value, unit, "");
    }

    pub(super) fn at_least(&mut self, key: &str, value: f64, wanted: f64, unit: &str) {
        self.add(
            key,
            value,
            unit,
            &format!("wanted: at least {wanted}{}", missed(value < wanted)),
        );
    }

    pub(super) fn at_most(&mut self, key: &str, value: f64, wanted: f64, unit: &str) {
        self.add(
            key,
            value,
            unit,
            &format!("wanted: at most {wanted}{}", missed(value > wanted)),
        );
    }

    /// Adds a figure that is more than one number.
    pub(super) fn detail(&mut self, key: &str, value: Value) {
        self.lines.push(format!("{key}: {value}"));
        self.figures.insert(String::from(key), value);
    }

    /// Prints objects of the same kind as rows, below their keys; an object within one has columns of its own.
    pub(super) fn table(&mut self, key: &str, rows: &[Value]) {
        let rows: Vec<_> = rows.iter().map(cells_of).collect();
        let heads = rows.first().into_iter().flatten();
        let heads: String = heads.map(|(head, _)| format!("{head:>16}")).collect();
        self.lines.push(format!("{key}: {heads}"));
        for row in rows {
            let cells: String = row.iter().map(|(_, cell)| format!("{cell:>16}")).collect();
            self.lines.push(format!("{key}: {cells}"));
        }
    }

    fn add(&mut self, key: &str, value: f64, unit: &str, note: &str) {
        let line = format!("{key:<20}{value:>12.2} {unit:<14}{note}");
        tracing::info!("{}", line.trim_end());
        self.lines.push(line);
        self.figures
            .insert(String::from(key), json!((value * 1_000.0).round() / 1_000.0));
    }

    pub(super) fn print(&self) {
        for line in &self.lines {
            println!("{}", line.trim_end());
        }
    }

    /// Into `reports` in the folder that this program was built in.
    pub(super) fn write(&self) -> anyhow::Result<PathBuf> {
        let me = std::env::current_exe()?;
        let folder = me
            .ancestors()
            .nth(2)
            .context("the folder of the build")?
            .join("reports");
        fs::create_dir_all(&folder)?;
        let file = folder.join("bench.json");
        fs::write(&file, serde_json::to_string_pretty(&self.figures)? + "\n")?;
        Ok(file)
    }
}

/// The cells of a row, each with the head of its column.
fn cells_of(row: &Value) -> Vec<(String, String)> {
    let mut cells = Vec::new();
    for (key, value) in row.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) => cells.extend(cells_of(value)),
            Value::Array(_) => {}
            cell => cells.push((key.clone(), cell.to_string())),
        }
    }
    cells
}

fn missed(is: bool) -> &'static str {
    if is { " (missed)" } else { "" }
}

async fn postgres_settings(stack: &Stack) -> anyhow::Result<Value> {
    let pool = stack.postgres.connect().await?;
    let settings: Vec<(String, String)> = sqlx::query_as(
        "select name, setting from pg_settings
         where name in ('server_version', 'fsync', 'synchronous_commit', 'full_page_writes', 'wal_sync_method')",
    )
    .fetch_all(&pool)
    .await?;
    pool.close().await;
    Ok(settings.into_iter().map(|(name, value)| (name, json!(value))).collect())
}
