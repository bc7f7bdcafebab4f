//! One server of the stack, of any kind.

use std::ops::Deref;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{anyhow, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::task::spawn_blocking;

use super::clock::PRELOAD;
use super::network::Host;
use super::process::{self, Plan, Process, lock};
use super::until;

/// A broker that was killed under load takes up to 20 s to open its port.
const READY_WITHIN: Duration = Duration::from_secs(90);
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// The differences between the servers.
pub trait Kind: Send + Sync + 'static {
    const NAME: &'static str;
    /// The signal for an orderly end that does not wait for clients.
    const STOP: Signal;

    /// Runs before each start: makes the data folder when there is none, writes and checks settings.
    fn prepare(&self) -> anyhow::Result<()>;

    fn command(&self) -> Command;

    /// Succeeds once the server serves requests. An error says what was seen.
    fn answers(&self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

pub struct Server<K> {
    kind: Arc<K>,
    folder: PathBuf,
    /// Where it runs, of those that have a host of their own.
    host: Option<Host>,
    /// The library that it loads before others from the next start on.
    library: Mutex<Option<PathBuf>>,
    process: Mutex<Option<Arc<Process>>>,
}

/// The server's addresses and clients.
impl<K> Deref for Server<K> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.kind
    }
}

impl<K: Kind> Server<K> {
    pub(super) fn new(kind: K, folder: PathBuf) -> Server<K> {
        Server {
            kind: Arc::new(kind),
            folder,
            host: None,
            library: Mutex::default(),
            process: Mutex::new(None),
        }
    }

    /// Has it run on this host.
    pub(super) fn on(mut self, host: &Host) -> Server<K> {
        self.host = Some(host.clone());
        self
    }

    /// Has it load this library before others, or none, from the next start on.
    pub(super) fn load(&self, library: Option<PathBuf>) {
        *lock(&self.library) = library;
    }

    /// Returns once it answers.
    pub async fn start(&self) -> anyhow::Result<()> {
        if self.runs() {
            bail!("{} runs already", K::NAME);
        }
        let kind = Arc::clone(&self.kind);
        spawn_blocking(move || kind.prepare()).await??;
        let mut command = self.kind.command();
        command.envs(lock(&self.library).iter().map(|library| (PRELOAD, library)));
        let process = Process::spawn(Plan {
            name: String::from(K::NAME),
            command: match &self.host {
                Some(host) => host.run(command),
                None => command,
            },
            folder: self.folder.clone(),
            stop: K::STOP,
            stop_within: STOP_WITHIN,
        })?;
        *lock(&self.process) = Some(process);
        self.ready().await
    }

    /// Waits until it answers, for instance after [`Server::resume`].
    pub async fn ready(&self) -> anyhow::Result<()> {
        let process = self.process()?;
        let what = format!("{} answers", K::NAME);
        tokio::select! {
            answered = until(&what, READY_WITHIN, || self.kind.answers()) => {
                answered.map_err(|error| anyhow!("{error}\n{}", process.last_words()))
            }
            status = process.wait() => bail!("{} ended: {}\n{}", K::NAME, status?, process.last_words()),
        }
    }

    pub async fn stop(&self) -> anyhow::Result<()> {
        self.process()?.stop().await
    }

    /// SIGKILL, children included.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.process()?.kill()
    }

    /// SIGSTOP, children included: it keeps its connections and answers nothing.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.process()?.pause()
    }

    pub fn resume(&self) -> anyhow::Result<()> {
        self.process()?.resume()
    }

    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// Brings the server back to answering: resumes it or starts it.
    pub async fn heal(&self) -> anyhow::Result<()> {
        if self.runs() {
            self.resume()?;
            self.ready().await
        } else {
            self.start().await
        }
    }

    pub fn runs(&self) -> bool {
        self.process().is_ok_and(|process| matches!(process.ended(), Ok(None)))
    }

    /// For reading its resource use from `/proc`.
    pub fn pid(&self) -> anyhow::Result<Pid> {
        Ok(self.process()?.pid())
    }

    pub fn log(&self) -> PathBuf {
        process::log_of(&self.folder, K::NAME)
    }

    fn process(&self) -> anyhow::Result<Arc<Process>> {
        lock(&self.process)
            .clone()
            .ok_or_else(|| anyhow!("{} was never started", K::NAME))
    }
}
