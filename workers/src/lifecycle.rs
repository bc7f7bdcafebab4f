//! The life of a process: named tasks; the first signal drains them, the second signal or a deadline ends them at once, and
//! any task that ends by itself ends the process with its name and cause. Also the HTTP port for operators.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Process;
use crate::listener::{self, Port, Protocol};
use crate::metrics::{self, Metrics};
use crate::printable;

/// Longest wait for an answer about a process's health.
const ASK_PATIENCE: Duration = Duration::from_secs(5);

/// The tasks of one process.
pub struct Lifecycle {
    spawner: Spawner,
    spawned: mpsc::UnboundedReceiver<Task>,
    readiness: Readiness,
}

type Task = (&'static str, BoxFuture<'static, anyhow::Result<()>>);
type Tasks = JoinSet<(&'static str, anyhow::Result<()>)>;

/// Starts tasks, also from within a task, and tells them when to end.
#[derive(Clone)]
pub struct Spawner {
    tasks: mpsc::UnboundedSender<Task>,
    shutdown: CancellationToken,
}

impl Spawner {
    /// Starts a task. It is expected to run until shutdown.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        if self.tasks.send((name, task.boxed())).is_err() {
            tracing::debug!(name, "not started: the process is ending");
        }
    }

    /// Starts work that has nothing in hand when it ends: it is dropped at shutdown.
    pub fn spawn_until_shutdown(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown();
        self.spawn(name, async move {
            tokio::select! {
                () = work => {}
                () = shutdown.cancelled() => {}
            }
            Ok(())
        });
    }

    /// Cancelled by the first signal; each task then finishes what it has in hand and returns.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }
}

impl Lifecycle {
    pub fn new() -> Self {
        let (tasks, spawned) = mpsc::unbounded_channel();
        let spawner = Spawner {
            tasks,
            shutdown: CancellationToken::new(),
        };
        Self {
            spawner,
            spawned,
            readiness: Readiness::default(),
        }
    }

    pub fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// The state that `/readyz` reports.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Runs until a signal has drained every task, or until a task ends by itself.
    ///
    /// # Errors
    /// The first task that ended before the shutdown, by name; tasks still busy after `drain_timeout`; a second signal.
    pub async fn run(mut self, drain_timeout: Duration) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut tasks = Tasks::new();
        let failure = loop {
            tokio::select! {
                Some((name, task)) = self.spawned.recv() => {
                    tasks.spawn(async move { (name, task.await) });
                }
                Some(ended) = tasks.join_next() => break Some(unexpected_end(ended)),
                _ = terminate.recv() => break None,
                _ = interrupt.recv() => break None,
            }
        };
        // What was not started yet holds handles that tasks may wait for.
        drop(self.spawned);
        tracing::info!(
            tasks = tasks.len(),
            "draining: a second signal ends the process at once"
        );
        self.spawner.shutdown.cancel();
        let drained = tokio::select! {
            drained = tokio::time::timeout(drain_timeout, drain(&mut tasks)) => {
                drained.unwrap_or_else(|_| Err(anyhow!("work in hand did not finish within {drain_timeout:?}")))
            }
            _ = terminate.recv() => Err(anyhow!("ended by a second signal")),
            _ = interrupt.recv() => Err(anyhow!("ended by a second signal")),
        };
        match failure {
            Some(failure) => Err(failure),
            None => drained,
        }
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

/// Waits for every task, also once one has failed: the others still finish what they have in hand.
async fn drain(tasks: &mut Tasks) -> anyhow::Result<()> {
    let mut drained = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = match ended {
            Ok((name, result)) => result.with_context(|| format!("{name} failed while draining")),
            Err(panic) => Err(anyhow!("a task panicked while draining: {panic}")),
        };
        if let Err(error) = &ended {
            tracing::error!("{error:#}");
        }
        drained = drained.and(ended);
    }
    drained
}

fn unexpected_end(ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok((name, Ok(()))) => anyhow!("{name} ended by itself"),
        Ok((name, Err(error))) => error.context(format!("{name} stopped")),
        Err(panic) => anyhow!("a task panicked: {panic}"),
    }
}

/// The parts of the process, and whether each can do its work now: why not, as far as it is known.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>);

impl Readiness {
    /// Sets whether `part` is ready. `/readyz` counts a part from the first time it is named.
    pub fn set(&self, part: &'static str, ready: bool) {
        self.note(part, if ready { Ok(()) } else { Err(String::new()) });
    }

    /// Notes that `part` is not ready, and why.
    pub fn wait(&self, part: &'static str, why: String) {
        self.note(part, Err(why));
    }

    fn note(&self, part: &'static str, state: Result<(), String>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(part, state);
    }

    /// What the parts that are not ready wait for, a line each, where it is known.
    fn reasons(&self) -> String {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let reasons = parts
            .iter()
            .filter_map(|(part, state)| Some((part, state.as_ref().err()?)));
        let known = reasons.filter(|(_, why)| !why.is_empty());
        known
            .map(|(part, why)| printable::line(format!("{part}: {why}")) + "\n")
            .collect()
    }

    /// The parts that are not ready.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts
            .iter()
            .filter(|(_, state)| state.is_err())
            .map(|(part, _)| *part)
            .collect()
    }
}

/// Told whether a part can do its work now, or why not.
pub type Ready = Arc<dyn Fn(Result<(), String>) + Send + Sync>;

/// Serves `/metrics`, `/livez` and `/readyz` (HTTP/1.1) until `shutdown`.
///
/// # Errors
/// An address cannot be bound, or the certificate cannot be used.
pub async fn serve_http(
    settings: Process,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let health = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .with_state(readiness);
    let scrapes = Router::new().route("/metrics", get(render)).with_state(metrics);
    let flag = "--http-listen (HOLDFAST_HTTP_LISTEN)";
    let port = Port::open(settings.http_listen, flag, settings.certificate(), Protocol::Http1).await?;
    let Some(address) = settings.health_listen else {
        listener::serve_router(port, health.merge(scrapes), shutdown).await;
        return Ok(());
    };
    let flag = "--health-listen (HOLDFAST_HEALTH_LISTEN)";
    let apart = Port::open(address, flag, None, Protocol::Http1).await?;
    tokio::join!(
        listener::serve_router(apart, health, shutdown.clone()),
        listener::serve_router(port, scrapes, shutdown)
    );
    Ok(())
}

/// Asks the process with these settings on this machine at a path of its health, by HTTP/1.0: its answer.
///
/// # Errors
/// It does not answer, or says no; then the error says what it waits for.
pub async fn ask(settings: &Process, path: &str) -> anyhow::Result<String> {
    let mut address = settings.health_listen.unwrap_or(settings.http_listen);
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    let answer = tokio::time::timeout(ASK_PATIENCE, asked).await;
    let answer = answer
        .map_err(anyhow::Error::from)
        .and_then(|answer| Ok(answer?))
        .with_context(|| format!("no answer from {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => bail!("{}", printable::line(body.trim_end().replace('\n', "; "))),
    }
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let missing = readiness.missing();
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("waiting for: {}\n{}", missing.join(", "), readiness.reasons()),
        )
    }
}

/// The handler of `/metrics`. There is one format, which every scraper takes, whatever it would rather have.
async fn render(State(metrics): State<Arc<Metrics>>) -> Result<impl IntoResponse, (StatusCode, String)> {
    let text = metrics
        .render()
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_part_that_fails_while_draining_cuts_no_other_short() {
        let (failing, failed) = oneshot::channel::<()>();
        let (finish, finished) = oneshot::channel();
        let mut tasks = Tasks::new();
        tasks.spawn(async move {
            drop(failing);
            ("gate", Err(anyhow!("the topic is gone")))
        });
        tasks.spawn(async move {
            assert!(failed.await.is_err());
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(finish.send(()).is_ok());
            ("mail", Ok(()))
        });
        let drained = drain(&mut tasks).await;
        assert_eq!(drained.unwrap_err().to_string(), "gate failed while draining");
        assert_eq!(finished.await, Ok(()));
    }

    /// As a committer ends with the handles of the objects, which were not served yet when another part failed.
    #[tokio::test]
    async fn what_was_never_started_holds_nobody_up_at_the_end() {
        let lifecycle = Lifecycle::new();
        let (spawner, shutdown) = (lifecycle.spawner(), lifecycle.spawner().shutdown());
        let (ended, told) = oneshot::channel();
        lifecycle.spawner().spawn("waits", async move {
            shutdown.cancelled().await;
            let (handle, dropped) = oneshot::channel::<()>();
            spawner.spawn("too late", async move {
                drop(handle);
                Ok(())
            });
            assert!(dropped.await.is_err());
            assert!(ended.send(()).is_ok());
            Ok(())
        });
        lifecycle.spawner().spawn("fails", async { bail!("wrong setting") });
        let failed = lifecycle.run(Duration::from_secs(20)).await;
        assert_eq!(failed.unwrap_err().to_string(), "fails stopped");
        assert_eq!(told.await, Ok(()));
    }
}
