//! CPU time and memory of processes, from `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, anyhow};
use holdfast_tests::kit::process::children;
use nix::unistd::Pid;

/// The unit of times in `/proc/<pid>/stat`: USER_HZ, 100 on every Linux of these days.
const TICK: Duration = Duration::from_millis(10);

/// CPU time so far by process, descendants included, those too that have ended.
pub(super) struct Cpu(Vec<(&'static str, Duration)>);

impl Cpu {
    pub(super) fn of(processes: &[(&'static str, Pid)]) -> anyhow::Result<Cpu> {
        let used = processes.iter().map(|(name, pid)| Ok((*name, of_family(*pid)?)));
        used.collect::<anyhow::Result<_>>().map(Cpu)
    }

    pub(super) fn since(self, before: &Cpu) -> Vec<(&'static str, Duration)> {
        let both = self.0.into_iter().zip(&before.0);
        both.map(|((name, now), (_, then))| (name, now.saturating_sub(*then)))
            .collect()
    }
}

fn of_family(pid: Pid) -> anyhow::Result<Duration> {
    let own = ticks(pid).with_context(|| format!("process {pid}"))?;
    // A child that ends meanwhile is counted with its parent the next time.
    let others: u32 = children(pid).into_iter().filter_map(|child| ticks(child).ok()).sum();
    Ok(TICK * (own + others))
}

/// utime, stime, and both of the children that were waited for.
fn ticks(pid: Pid) -> anyhow::Result<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, after_name) = stat.rsplit_once(')').ok_or_else(|| anyhow!("{stat}"))?;
    let times = after_name.split_whitespace().skip(11).take(4);
    times.map(|ticks| Ok(ticks.parse::<u32>()?)).sum()
}

/// The largest resident set so far, in megabytes (10^6 bytes).
pub(super) fn peak_memory_mb(pid: Pid) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmHWM")?;
    Ok(kibibytes.parse::<f64>()? * 1_024.0 / 1e6)
}
