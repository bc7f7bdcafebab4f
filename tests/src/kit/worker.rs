//! The product's own binary, run on a stack.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use tokio::time::timeout;

use super::network::Host;
use super::process::{self, Plan, Process};
use super::provider::{Simulator, WEBHOOK_SECRET};
use super::{Collector, Stack, until};

/// Waiting for servers that are just starting is part of getting ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for what is under way when nothing is sent any more.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// Longer than the product's own time to drain (20 s).
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// The sender's address of mails.
pub const SENDER: &str = "tickets@holdfast.example";

/// The subcommand and the settings of an instance to start.
pub struct Launch<'a> {
    stack: &'a Stack,
    subcommand: String,
    instead: Option<&'a str>,
    /// Absent for the current one.
    binary: Option<PathBuf>,
    /// Absent for the kit's own.
    host: Option<&'a Host>,
    instance: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    unset: Vec<String>,
}

/// A running instance; dropping it kills it.
pub struct Holdfast {
    process: Arc<Process>,
    /// Where `/metrics`, `/livez` and `/readyz` are served.
    pub http: String,
    client: reqwest::Client,
}

impl<'a> Launch<'a> {
    pub(super) fn new(stack: &'a Stack, subcommand: &str, instance: &str) -> Launch<'a> {
        Launch {
            stack,
            subcommand: String::from(subcommand),
            instead: None,
            binary: None,
            host: None,
            instance: String::from(instance),
            arguments: Vec::new(),
            environment: Vec::new(),
            unset: Vec::new(),
        }
    }

    /// Runs another subcommand by the name and the rights of this one.
    pub fn instead(mut self, subcommand: &'a str) -> Self {
        self.instead = Some(subcommand);
        self
    }

    /// Runs the binary of another release.
    pub fn binary(mut self, binary: PathBuf) -> Self {
        self.binary = Some(binary);
        self
    }

    /// Has it run on this host.
    pub(super) fn on(mut self, host: &'a Host) -> Self {
        self.host = Some(host);
        self
    }

    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(String::from(argument));
        self
    }

    /// Overrides what the stack sets.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.unset.retain(|other| other != name);
        self.environment.push((String::from(name), String::from(value)));
        self
    }

    /// Takes away what the stack sets.
    pub fn without(mut self, name: &str) -> Self {
        self.unset.push(String::from(name));
        self
    }

    /// Makes the worker use this payment provider.
    pub fn provider(self, provider: &Simulator) -> Self {
        let settings = provider.settings().into_iter();
        settings.fold(self, |launch, (name, value)| launch.env(name, &value))
    }

    /// Makes the worker receive the provider's webhooks, which one instance at a time can.
    pub fn webhooks(self) -> Self {
        self.env("HOLDFAST_WEBHOOK_SECRET", WEBHOOK_SECRET)
    }

    /// Has it send this share of all traces to this collector.
    pub fn traces(self, collector: &Collector, share: f64) -> Self {
        self.env("HOLDFAST_TRACES_ENDPOINT", &collector.endpoint())
            .env("HOLDFAST_TRACES_SAMPLE", &share.to_string())
    }

    /// The variables that it is started with.
    pub fn settings(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut command = Command::new("holdfast");
        self.set(&mut command)?;
        let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
        set.map(|(name, value)| Ok((text(name)?, text(value)?))).collect()
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> anyhow::Result<Holdfast> {
        let holdfast = self.spawn()?;
        holdfast.ready().await?;
        Ok(holdfast)
    }

    /// Starts it and returns at once, for one that is meant to end before it gets ready.
    pub fn spawn(self) -> anyhow::Result<Holdfast> {
        let program = self.program()?;
        let listen = self.http_listen()?;
        let (http, client) = match self.stack.doors {
            Some(_) => (
                format!("https://localhost:{}", listen.port()),
                self.stack.authority.client()?.build()?,
            ),
            None => (format!("http://{listen}"), reqwest::Client::new()),
        };
        let mut command = process::command(&program, None);
        self.set(&mut command)?;
        if let Some(host) = self.host {
            command = host.run(command);
        }
        let process = Process::spawn(Plan {
            name: format!("holdfast-{}", self.instance),
            command,
            folder: self.stack.folder().to_path_buf(),
            stop: Signal::SIGTERM,
            stop_within: STOP_WITHIN,
        })?;
        Ok(Holdfast { process, http, client })
    }

    /// Runs a subcommand that ends by itself.
    pub async fn output(self) -> anyhow::Result<Output> {
        let program = self.program()?;
        let mut command = process::command(&program, None);
        self.set(&mut command)?;
        command.stdin(Stdio::null());
        tokio::task::spawn_blocking(move || command.output())
            .await?
            .with_context(|| program.display().to_string())
    }

    fn program(&self) -> anyhow::Result<PathBuf> {
        self.binary.clone().map_or_else(binary, Ok)
    }

    fn http_listen(&self) -> anyhow::Result<SocketAddrV4> {
        let address = self.host.map_or(Ipv4Addr::LOCALHOST, |host| host.address);
        let port = self.stack.ports.get(&format!("holdfast-{}", self.instance))?;
        Ok(SocketAddrV4::new(address, port))
    }

    /// All instances share one address for Restate to call, so that an invocation finds the successor of a worker that
    /// was killed; a second instance that serves at the same time needs another (`HOLDFAST_SERVE_LISTEN`, `_URL`).
    fn set(&self, command: &mut Command) -> anyhow::Result<()> {
        let Stack {
            kafka,
            restate,
            postgres,
            maildev,
            ports,
            doors,
            ..
        } = self.stack;
        let serve = format!("127.0.0.1:{}", ports.get("serve")?);
        for (inherited, _) in std::env::vars_os().filter(|(name, _)| is_ours(name)) {
            command.env_remove(inherited);
        }
        if let Some(maildev) = maildev {
            command
                .env("HOLDFAST_SMTP_URL", maildev.smtp())
                .env("HOLDFAST_MAIL_FROM", SENDER);
        }
        command
            .env("HOLDFAST_KAFKA", kafka.bootstrap())
            .env("HOLDFAST_DATABASE_URL", postgres.url())
            .env("HOLDFAST_LOYALTY_URL", postgres.loyalty_url())
            .env("HOLDFAST_RESTATE_ADMIN", restate.admin())
            .env("HOLDFAST_RESTATE_INGRESS", restate.ingress())
            .env("HOLDFAST_RESTATE_SINGLE_NODE", "true")
            .env("HOLDFAST_SERVE_LISTEN", &serve)
            .env("HOLDFAST_SERVE_URL", format!("http://{serve}"))
            .env("HOLDFAST_WEBHOOK_LISTEN", self.stack.webhook()?)
            .env("HOLDFAST_HTTP_LISTEN", self.http_listen()?.to_string())
            .env("HOLDFAST_LAST_SCRAPE_WITHIN", "0s")
            .env("HOLDFAST_INSTANCE", &self.instance);
        if let Some(doors) = doors {
            command
                .envs(doors.environment(&self.subcommand, kafka, postgres)?)
                .env("HOLDFAST_SERVE_URL", format!("https://{serve}"));
        }
        command
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .arg(self.instead.unwrap_or(&self.subcommand))
            .args(&self.arguments);
        for name in &self.unset {
            command.env_remove(name);
        }
        Ok(())
    }
}

impl Holdfast {
    pub async fn ready(&self) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.http);
        let ask = async || anyhow::Ok(self.client.get(&url).send().await?.error_for_status()?);
        tokio::select! {
            ready = until("holdfast is ready", READY_WITHIN, ask) => match ready {
                Ok(_) => Ok(()),
                Err(error) => Err(anyhow!("{error}\n{}", self.process.last_words())),
            },
            status = self.process.wait() => bail!("holdfast ended: {}\n{}", status?, self.process.last_words()),
        }
    }

    /// The status of `/readyz`, and what it says.
    pub async fn readyz(&self) -> anyhow::Result<(u16, String)> {
        let answer = self.client.get(format!("{}/readyz", self.http)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// All its metrics, as printed.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let request = self.client.get(format!("{}/metrics", self.http));
        Ok(request.send().await?.error_for_status()?.text().await?)
    }

    /// One sample of its metrics, named with its labels as printed: `holdfast_events_total{reason="held"}`. Nothing if
    /// there is no such line.
    pub async fn metric(&self, name: &str) -> anyhow::Result<Option<f64>> {
        let text = self.metrics().await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.map(str::parse).transpose()?)
    }

    pub async fn stop(&self) -> anyhow::Result<()> {
        self.process.stop().await
    }

    pub fn kill(&self) -> anyhow::Result<()> {
        self.process.kill()
    }

    pub fn pause(&self) -> anyhow::Result<()> {
        self.process.pause()
    }

    pub fn resume(&self) -> anyhow::Result<()> {
        self.process.resume()
    }

    /// Waits until it ends by itself, as at a crash point.
    pub async fn wait(&self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        let ended = timeout(deadline, self.process.wait()).await;
        ended.map_err(|_| anyhow!("holdfast still runs after {deadline:?}\n{}", self.process.last_words()))?
    }

    pub fn runs(&self) -> bool {
        matches!(self.process.ended(), Ok(None))
    }

    /// For reading its resource use from `/proc`.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Shared with those of the same name before it.
    pub fn log(&self) -> PathBuf {
        self.process.log()
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        self.process.last_words()
    }
}

impl Drop for Holdfast {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill() {
            tracing::warn!("cannot kill holdfast: {error:#}");
        }
    }
}

/// The report of this `verify` once it finds every promise kept and every record accounted for.
pub async fn clean_by<'a>(verify: impl Fn() -> Launch<'a>) -> anyhow::Result<Value> {
    let (kept, report) = until("every record is accounted for", SETTLED_WITHIN, async || {
        let verify = verify().arg("--json").output().await?;
        let report: Value = serde_json::from_slice(&verify.stdout)
            .with_context(|| String::from_utf8_lossy(&verify.stderr).into_owned())?;
        ensure!(!verify.status.success() || report["pending"] == 0, "{report}");
        anyhow::Ok((verify.status.success(), report))
    })
    .await?;
    if !kept {
        bail!("a promise is broken: {report}");
    }
    Ok(report)
}

/// Built into the same folder as what is running now (tests run from `deps` inside of it).
pub fn binary() -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe()?;
    let beside = me
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("holdfast"))
        .find(|path| path.is_file());
    let Some(binary) = beside else {
        bail!(
            "no holdfast binary near {}: run `cargo build -p holdfast` (with the same profile)",
            me.display()
        );
    };
    ensure!(binary.is_absolute(), "{} is not absolute", binary.display());
    Ok(binary)
}

fn text(value: &OsStr) -> anyhow::Result<String> {
    let text = value.to_str();
    Ok(text
        .with_context(|| format!("{} is not UTF-8", value.display()))?
        .to_owned())
}

fn is_ours(variable: &OsStr) -> bool {
    variable.to_str().is_some_and(|name| name.starts_with("HOLDFAST_"))
}
