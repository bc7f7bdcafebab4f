//! The release before this one, from which upgrades are proven, and back to which: built once, from the commit that
//! `deploy/local/previous` pins.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use tracing::info;

use super::{checkout, dev_folder, fetch, process};

/// The binary of the previous release. Builds it if it is missing, which takes a minute or two.
///
/// It has a target folder of its own, which begins with copies of what was built of others' crates here: most of them are the same. In one
/// folder cargo would take crates of the workspace for those of the other release, by their names and the time of their files.
pub fn binary() -> anyhow::Result<PathBuf> {
    let commit = pinned()?;
    let store = dev_folder().join("previous");
    fs::create_dir_all(&store)?;
    let alone = File::create(store.join("lock"))?;
    alone.lock()?; // another kit of this checkout may be building
    let folder = store.join(&commit);
    let binary = folder.join("holdfast");
    if !binary.is_file() {
        info!("building the previous release, {commit}, into {}", folder.display());
        let (tree, target) = (folder.join("tree"), folder.join("target"));
        check_out(&commit, &tree)?;
        copy_others(&target)?;
        build(&tree, &target).context("the previous release cannot be built")?;
        fs::rename(target.join("debug/holdfast"), &binary)?;
        fs::remove_dir_all(&target)?;
        remove(&tree)?;
    }
    Ok(binary)
}

/// The last line of the file; those before it say why.
fn pinned() -> anyhow::Result<String> {
    let file = fetch::manifests().join("previous");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let commit = text.lines().last().unwrap_or_default().trim();
    ensure!(
        commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{}: its last line is no commit, but {commit:?}",
        file.display()
    );
    Ok(commit.to_owned())
}

fn check_out(commit: &str, tree: &Path) -> anyhow::Result<()> {
    let mut known = git();
    known.args(["cat-file", "-e", &format!("{commit}^{{commit}}")]);
    if process::output(known).is_err() {
        // A shallow clone has the newest commits alone.
        let mut fetch = git();
        fetch.args(["fetch", "--quiet", "--depth=1", "origin", commit]);
        process::output(fetch).with_context(|| {
            format!(
                "this clone has no commit {commit}, which deploy/local/previous names as the previous release, and cannot fetch it: \
                 fetch the whole history (git fetch --unshallow)"
            )
        })?;
    }
    // Left behind by a build that was interrupted.
    if tree.exists() {
        remove(tree)?;
    }
    let mut add = git();
    // Git may still know one there whose folder was removed.
    add.args(["worktree", "add", "--force", "--detach"])
        .arg(tree)
        .arg(commit);
    process::output(add).map(drop)
}

fn remove(tree: &Path) -> anyhow::Result<()> {
    let mut remove = git();
    remove.args(["worktree", "remove", "--force", "--force"]).arg(tree);
    process::output(remove).map(drop)
}

fn git() -> Command {
    let mut git = process::command(Path::new("git"), None);
    git.arg("-C").arg(checkout());
    // Set where a hook of git runs this, for another work tree.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        git.env_remove(variable);
    }
    git
}

/// Copies what was built of crates of others; what is missing is built again.
fn copy_others(target: &Path) -> anyhow::Result<()> {
    let built = built()?;
    for part in [".fingerprint", "build", "deps"] {
        let (from, into) = (built.join(part), target.join("debug").join(part));
        if into.exists() {
            fs::remove_dir_all(&into)?;
        }
        fs::create_dir_all(&into)?;
        let entries = fs::read_dir(&from).with_context(|| from.display().to_string())?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let paths = paths.collect::<Result<Vec<_>, _>>()?;
        let others: Vec<_> = paths.into_iter().filter(|path| is_of_others(path)).collect();
        if others.is_empty() {
            continue;
        }
        // With the times of the files, by which cargo knows what is fresh.
        let mut copy = process::command(Path::new("cp"), None);
        copy.args(["-a", "--reflink=auto", "-t"]).arg(&into).args(others);
        process::output(copy)?;
    }
    Ok(())
}

/// A crate's folder, or its library.
fn is_of_others(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let is_library = ["rlib", "rmeta", "so"].map(|kind| path.extension() == Some(OsStr::new(kind)));
    let is_ours = name.trim_start_matches("lib").starts_with("holdfast");
    (path.is_dir() || is_library.contains(&true)) && !is_ours
}

/// Of the whole workspace: for a single crate cargo would compile shared crates again, with fewer features. Its own crates are built
/// without optimisation, in half the time.
fn build(tree: &Path, target: &Path) -> anyhow::Result<()> {
    let mut cargo = process::command(Path::new("cargo"), None);
    cargo
        .args(["build", "--quiet", "--locked", "--workspace", "--bin", "holdfast"])
        .args(["holdfast", "holdfast-schemas"].map(|own| format!("--config=profile.dev.package.{own}.opt-level=0")))
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", target)
        .env("SQLX_OFFLINE", "true");
    process::output(cargo).map(drop)
}

/// Cargo's folder with what is running now, which lies there or in `deps` inside of it.
fn built() -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe()?;
    let above = me.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    Ok(above.context("a program lies in a folder")?.to_owned())
}
