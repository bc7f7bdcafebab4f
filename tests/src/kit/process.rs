//! A process of its own group that does not outlive the kit.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tracing::{info, warn};

const POLL: Duration = Duration::from_millis(20);
/// Longest time that a killed process may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// The command, the folder and the stop signal of one process.
pub struct Plan {
    pub name: String,
    pub command: Command,
    /// Folder for the log (`<name>.log`, appended) and the process id (`<name>.pid`).
    pub folder: PathBuf,
    /// The signal for an orderly end.
    pub stop: Signal,
    /// After this long it is killed instead.
    pub stop_within: Duration,
}

pub struct Process {
    name: String,
    pid: Pid,
    child: Mutex<Child>,
    folder: PathBuf,
    stop: Signal,
    stop_within: Duration,
}

/// The running processes, oldest first, so that [`stop_all`] ends workers before the servers that they use.
static LIVE: Mutex<Live> = Mutex::new(Live {
    closed: false,
    processes: Vec::new(),
});

struct Live {
    closed: bool,
    processes: Vec<Arc<Process>>,
}

/// A command for `program` that gets SIGKILL when the kit ends in whatever way, and that runs as `user` if given.
pub fn command(program: &Path, user: Option<&User>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(user) = user {
        command
            .arg(format!("--reuid={}", user.uid))
            .arg(format!("--regid={}", user.gid))
            .arg("--clear-groups");
    }
    command.arg("--").arg(program);
    command
}

/// Runs a command that ends by itself and returns what it printed.
pub fn output(mut command: Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{printed}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(printed)
}

/// Stops everything that was started, newest first; nothing can be started afterwards.
pub fn stop_all() {
    lock(&LIVE).closed = true;
    loop {
        let Some(process) = lock(&LIVE).processes.pop() else {
            return;
        };
        if let Err(error) = process.end() {
            warn!(
                process.name = process.name,
                "could not stop {}: {error:#}", process.name
            );
        }
    }
}

/// Ends what a former kit, itself killed, left running in `folder`.
pub fn stop_leftovers(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "pid") {
            continue;
        }
        let recorded = fs::read_to_string(&path)?;
        if let Some((pid, born)) = recorded.trim().split_once(' ')
            && let Ok(pid) = pid.parse().map(Pid::from_raw)
            && birth(pid).is_some_and(|known| known == born)
        {
            info!("stopping a leftover: {} (process {pid})", path.display());
            kill_family(pid)?;
        }
        fs::remove_file(&path)?;
    }
    Ok(())
}

impl Process {
    pub fn spawn(mut plan: Plan) -> anyhow::Result<Arc<Process>> {
        let log = log_of(&plan.folder, &plan.name);
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| log.display().to_string())?;
        let mut live = lock(&LIVE);
        if live.closed {
            bail!("{} not started: the kit is ending", plan.name);
        }
        // A group of its own: Ctrl-C reaches the kit alone, which then ends everything in order.
        plan.command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0);
        let child = spawn_for_life(plan.command).with_context(|| format!("cannot start {}", plan.name))?;
        let process = Arc::new(Process {
            pid: Pid::from_raw(i32::try_from(child.id())?),
            child: Mutex::new(child),
            name: plan.name,
            folder: plan.folder,
            stop: plan.stop,
            stop_within: plan.stop_within,
        });
        live.processes.push(Arc::clone(&process));
        let born = birth(process.pid).unwrap_or_default();
        fs::write(process.pid_file(), format!("{} {born}\n", process.pid))?;
        Ok(process)
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its exit status, or `None` while it runs.
    pub fn ended(&self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(lock(&self.child).try_wait()?)
    }

    /// Waits for it to end by itself.
    pub async fn wait(&self) -> anyhow::Result<ExitStatus> {
        loop {
            if let Some(status) = self.ended()? {
                self.forget();
                return Ok(status);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks it to end; kills it when it takes too long.
    pub async fn stop(self: &Arc<Self>) -> anyhow::Result<()> {
        let process = Arc::clone(self);
        tokio::task::spawn_blocking(move || process.end()).await?
    }

    /// SIGKILL, children included: as if the machine had taken it away. Returns when it is gone.
    pub fn kill(&self) -> anyhow::Result<()> {
        if self.ended()?.is_none() {
            kill_family(self.pid)?;
            lock(&self.child).wait()?;
        }
        self.forget();
        Ok(())
    }

    /// Freezes it, children included, until [`Process::resume`].
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal_family(Signal::SIGSTOP)
    }

    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal_family(Signal::SIGCONT)
    }

    pub fn log(&self) -> PathBuf {
        log_of(&self.folder, &self.name)
    }

    /// The end of its log, for error messages.
    pub fn last_words(&self) -> String {
        let log = self.log();
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(15)..];
        format!("{}:\n  {}", log.display(), last.join("\n  "))
    }

    fn end(&self) -> anyhow::Result<()> {
        if self.ended()?.is_none() {
            self.resume()?;
            kill(self.pid, self.stop)?;
            let deadline = Instant::now() + self.stop_within;
            while self.ended()?.is_none() {
                if Instant::now() > deadline {
                    warn!("{} did not stop within {:?}: killed", self.name, self.stop_within);
                    return self.kill();
                }
                thread::sleep(POLL);
            }
        }
        self.forget();
        Ok(())
    }

    fn signal_family(&self, signal: Signal) -> anyhow::Result<()> {
        if let Some(status) = self.ended()? {
            bail!("{} is not running: {status}", self.name);
        }
        send(self.pid, signal)?;
        children(self.pid).into_iter().try_for_each(|child| send(child, signal))
    }

    fn forget(&self) {
        lock(&LIVE).processes.retain(|process| process.pid != self.pid);
        if let Err(error) = fs::remove_file(self.pid_file())
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!("cannot remove {}: {error}", self.pid_file().display());
        }
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.join(format!("{}.pid", self.name))
    }
}

pub fn log_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}

/// The parent is frozen first, so that it can neither react nor bear more children.
fn kill_family(pid: Pid) -> anyhow::Result<()> {
    send(pid, Signal::SIGSTOP)?;
    let family: Vec<Pid> = children(pid).into_iter().chain([pid]).collect();
    for member in &family {
        send(*member, Signal::SIGKILL)?;
    }
    let deadline = Instant::now() + GONE_WITHIN;
    while let Some(member) = family.iter().find(|member| birth(**member).is_some()) {
        if Instant::now() > deadline {
            bail!("process {member} survives SIGKILL");
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// A process that is already gone needs no signal.
fn send(pid: Pid, signal: Signal) -> anyhow::Result<()> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{signal} to process {pid}")),
    }
}

/// All descendants. A process that ends meanwhile has none.
pub fn children(pid: Pid) -> Vec<Pid> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    threads
        .flatten()
        .flat_map(|thread| fs::read_to_string(thread.path().join("children")))
        .flat_map(|ids| {
            ids.split_whitespace()
                .filter_map(|id| id.parse().ok())
                .collect::<Vec<i32>>()
        })
        .map(Pid::from_raw)
        .flat_map(|child| children(child).into_iter().chain([child]))
        .collect()
}

/// When it was started, in clock ticks since boot: with the id this names a process for good. Nothing if it is gone,
/// or dead and only waiting to be reaped.
fn birth(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?; // the name may hold spaces and brackets
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let dead = matches!(*fields.first()?, "Z" | "X");
    (!dead).then(|| fields.get(19).map(|ticks| String::from(*ticks)))?
}

/// Linux sends the death signal of [`command`] when the *thread* that spawned ends: so this one lives as long as the kit.
fn spawn_for_life(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<Mutex<mpsc::Sender<Order>>> = LazyLock::new(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                if reply.send(command.spawn()).is_err() {
                    warn!("nobody waited for a process that was started");
                }
            }
        });
        Mutex::new(orders)
    });
    let (reply, child) = mpsc::channel();
    let gone = |_| io::Error::other("the spawning thread is gone");
    lock(&SPAWNER)
        .send((command, reply))
        .map_err(|_| gone(mpsc::RecvError))?;
    child.recv().map_err(gone)?
}

/// A panic elsewhere leaves these values whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
