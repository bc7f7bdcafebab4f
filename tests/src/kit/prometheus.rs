//! Prometheus with the rules of `deploy/kubernetes/chart/prometheus`, and the exporters of the servers.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::server::{Kind, Server};
use super::{Holdfast, Stack, fetch, process};
use crate::monitoring::{rules_folder, shortened};

/// The addresses in `deploy/kubernetes/chart/prometheus/prometheus.yml`: of Restate, the broker's exporter, Postgres' exporter.
const EXAMPLES: [&str; 3] = ["127.0.0.1:5122", "127.0.0.1:9404", "127.0.0.1:9187"];

/// Holdfast's processes in that file. The kit names them in files, so that others can be added while Prometheus runs.
const TARGETS: &str = r#"static_configs:
      - targets: ["127.0.0.1:9464"]"#;

const RULES: [&str; 2] = ["objectives.yml", "alerts.yml"];

pub struct Prometheus {
    binary: PathBuf,
    settings: String,
    times: RuleTimes,
    /// The processes of Holdfast that it watches.
    watched: Vec<String>,
    data: PathBuf,
    port: u16,
}

/// The length of the windows and waits of the rules.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum RuleTimes {
    AsShipped,
    /// Minutes are seconds ([`shortened`]).
    Shortened,
}

/// Tells of a Postgres.
pub struct PostgresExporter {
    binary: PathBuf,
    database: String,
    port: u16,
}

impl Prometheus {
    /// As an operator starts it with our files, but it looks every second. It watches the stack's servers and these processes.
    pub async fn start(stack: &Stack, watched: &[&Holdfast], times: RuleTimes) -> anyhow::Result<Server<Prometheus>> {
        let example = rules_folder().join("prometheus.yml");
        let example = fs::read_to_string(&example).with_context(|| example.display().to_string())?;
        let address = |url: &str| {
            url.trim_start_matches("http://")
                .trim_end_matches("/metrics")
                .to_owned()
        };
        let local = |name: &str| anyhow::Ok(format!("127.0.0.1:{}", stack.ports.get(name)?));
        let ours = [
            address(&stack.restate.metrics()),
            local("kafka-exporter")?,
            local(PostgresExporter::NAME)?,
        ];
        let mut settings = example.replace("interval: 15s", "interval: 1s");
        for (example, ours) in EXAMPLES.iter().zip(ours) {
            ensure!(settings.contains(example), "prometheus.yml has no {example}");
            settings = settings.replace(example, &ours);
        }
        let data = stack.folder().join("prometheus");
        ensure!(settings.contains(TARGETS), "prometheus.yml has no {TARGETS}");
        let files = format!(
            "file_sd_configs:\n      - files: [\"{}/*.json\"]\n        refresh_interval: 1s",
            targets(&data).display()
        );
        settings = settings.replace(TARGETS, &files);
        let prometheus = Prometheus {
            binary: spawn_blocking(fetch::prometheus).await??.join("usr/bin/prometheus"),
            settings,
            times,
            watched: watched.iter().map(|holdfast| address(&holdfast.http)).collect(),
            data,
            port: stack.ports.get(Prometheus::NAME)?,
        };
        let server = Server::new(prometheus, stack.folder().to_owned());
        server.start().await?;
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The folder with the files that name processes of Holdfast.
    pub fn targets(&self) -> PathBuf {
        targets(&self.data)
    }

    /// What an instant query answers: each series with its value.
    pub async fn query(&self, expression: &str) -> anyhow::Result<Vec<Value>> {
        let answer = self.ask("query", &[("query", expression)]).await;
        let answer = answer.with_context(|| expression.to_owned())?;
        Ok(answer["result"].as_array().cloned().unwrap_or_default())
    }

    /// The alerts that fire.
    pub async fn firing(&self) -> anyhow::Result<BTreeSet<String>> {
        let answer = self.ask("alerts", &[]).await?;
        let alerts = answer["alerts"].as_array().into_iter().flatten();
        let firing = alerts.filter(|alert| alert["state"] == "firing");
        Ok(firing
            .filter_map(|alert| alert["labels"]["alertname"].as_str())
            .map(str::to_owned)
            .collect())
    }

    async fn ask(&self, what: &str, parameters: &[(&str, &str)]) -> anyhow::Result<Value> {
        let url = url::Url::parse_with_params(&format!("{}/api/v1/{what}", self.url()), parameters)?;
        let mut answer: Value = reqwest::get(url).await?.json().await?;
        ensure!(answer["status"] == "success", "{answer}");
        Ok(answer["data"].take())
    }
}

impl Kind for Prometheus {
    const NAME: &'static str = "prometheus";
    const STOP: Signal = Signal::SIGTERM;

    /// It begins with no history, and with no target that somebody added to the one before.
    fn prepare(&self) -> anyhow::Result<()> {
        if self.data.exists() {
            fs::remove_dir_all(&self.data)?;
        }
        fs::create_dir_all(self.targets())?;
        for name in RULES {
            let path = rules_folder().join(name);
            let rules = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let rules = match self.times {
                RuleTimes::AsShipped => rules,
                RuleTimes::Shortened => shortened(&rules)?,
            };
            fs::write(self.data.join(name), rules)?;
        }
        let watched = json!([{ "targets": self.watched }]);
        fs::write(self.targets().join("kit.json"), watched.to_string())?;
        fs::write(self.data.join("prometheus.yml"), &self.settings)?;
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = process::command(&self.binary, None);
        let option = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
        command
            .arg(option("config.file", self.data.join("prometheus.yml")))
            .arg(option("storage.tsdb.path", self.data.join("data")))
            .arg(format!("--web.listen-address=127.0.0.1:{}", self.port));
        command
    }

    async fn answers(&self) -> anyhow::Result<()> {
        let ready = reqwest::get(format!("{}/-/ready", self.url())).await?;
        Ok(ready.error_for_status().map(drop)?)
    }
}

impl PostgresExporter {
    pub async fn start(stack: &Stack) -> anyhow::Result<Server<PostgresExporter>> {
        let exporter = PostgresExporter {
            binary: spawn_blocking(fetch::prometheus)
                .await??
                .join("usr/bin/prometheus-postgres-exporter"),
            database: format!("{}?sslmode=disable", stack.postgres.url()),
            port: stack.ports.get(PostgresExporter::NAME)?,
        };
        let server = Server::new(exporter, stack.folder().to_owned());
        server.start().await?;
        Ok(server)
    }
}

impl Kind for PostgresExporter {
    const NAME: &'static str = "postgres-exporter";
    const STOP: Signal = Signal::SIGTERM;

    fn prepare(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = process::command(&self.binary, None);
        command
            .arg(format!("--web.listen-address=127.0.0.1:{}", self.port))
            .env("DATA_SOURCE_NAME", &self.database);
        command
    }

    async fn answers(&self) -> anyhow::Result<()> {
        let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", self.port)).await?;
        let metrics = metrics.error_for_status()?.text().await?;
        ensure!(
            metrics
                .lines()
                .any(|line| line == "pg_up 1" || line.starts_with("pg_up{") && line.ends_with(" 1")),
            "Postgres is not seen"
        );
        Ok(())
    }
}

fn targets(data: &Path) -> PathBuf {
    data.join("targets")
}
