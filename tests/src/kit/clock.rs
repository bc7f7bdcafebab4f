//! A clock that is ahead, for a program that is linked with the C library: the program loads a library of ours before it. A program that
//! brings its own C library, or asks the kernel itself, keeps a true clock. So do files, whose times are the kernel's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use nix::unistd::Pid;

use super::{checkout, process};

/// The variable that names the library to a program's loader.
pub const PRELOAD: &str = "LD_PRELOAD";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    True,
    Ahead,
}

/// Builds the library for a clock that is so much ahead, in this folder.
pub fn ahead(by: Duration, folder: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let library = folder.join("clock.so");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror"])
        .arg(format!("-DAHEAD={}", by.as_secs()))
        .arg("-o")
        .arg(&library)
        .arg(checkout().join("tests/src/kit/clock.c"));
    process::output(compiler)?;
    Ok(library)
}

/// A loader that cannot read the library goes on without it.
pub fn ensure_loaded(library: &Path, pid: Pid) -> anyhow::Result<()> {
    for process in process::children(pid).into_iter().chain([pid]) {
        // One that has ended meanwhile has none.
        let mapped = fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default();
        ensure!(
            mapped.is_empty() || mapped.contains(&*library.to_string_lossy()),
            "process {process} has not loaded {}",
            library.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_loads_it_is_so_much_ahead() -> anyhow::Result<()> {
        const AHEAD: Duration = Duration::from_secs(120);
        let folder = std::env::temp_dir().join(format!("holdfast-clock-{}", std::process::id()));
        let library = ahead(AHEAD, &folder)?;
        let now = |loads: &[&Path]| {
            let mut date = Command::new("date");
            date.arg("+%s").envs(loads.iter().map(|library| (PRELOAD, library)));
            anyhow::Ok(process::output(date)?.trim().parse::<u64>()?)
        };
        let (before, under_it, after) = (now(&[])?, now(&[&library])?, now(&[])?);
        fs::remove_dir_all(&folder)?;
        let set = |time: u64| time + AHEAD.as_secs();
        ensure!(
            (set(before)..=set(after)).contains(&under_it),
            "{before} {under_it} {after}"
        );
        Ok(())
    }
}
