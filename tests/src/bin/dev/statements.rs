//! `.sqlx`: what PostgreSQL says about every checked statement, committed so that building needs no database.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::ensure;
use holdfast_tests::kit::{Name, Stack, checkout, dev_folder};
use sqlx::migrate::Migrator;
use tokio::task::block_in_place;
use tracing::info;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Change nothing; fail if what is committed differs from what the statements and migrations give
    #[arg(long)]
    check: bool,
}

type Descriptions = BTreeMap<String, Vec<u8>>;

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let stack = Stack::open(Name::Sqlx).await?;
    stack.postgres.start().await?;
    migrate(&stack).await?;
    let fresh = block_in_place(|| describe(&stack))?;
    let folder = checkout().join(".sqlx");
    let committed = read(&folder)?;
    if !arguments.check {
        return replace(&folder, &committed, &fresh);
    }
    let names: BTreeSet<&String> = committed.keys().chain(fresh.keys()).collect();
    let stale: Vec<_> = names
        .into_iter()
        .filter(|name| committed.get(*name) != fresh.get(*name))
        .collect();
    ensure!(stale.is_empty(), "stale in .sqlx (run `make sqlx`): {stale:?}");
    info!(".sqlx is up to date: {} statements", fresh.len());
    Ok(())
}

async fn migrate(stack: &Stack) -> anyhow::Result<()> {
    // From the folder, not through the product's library, which compiles only once `.sqlx` is right.
    let migrations = Migrator::new(checkout().join("migrations")).await?;
    let pool = stack.postgres.connect().await?;
    migrations.run(&pool).await?;
    pool.close().await;
    Ok(())
}

/// Compiles the product against the live database.
fn describe(stack: &Stack) -> anyhow::Result<Descriptions> {
    let folder = dev_folder().join("sqlx/descriptions");
    fs::create_dir_all(&folder)?;
    let mut check = Command::new("cargo");
    // The whole workspace, as everywhere: see the Makefile.
    check
        .args(["check", "--quiet", "--workspace", "--lib"])
        .current_dir(checkout());
    check
        .env("DATABASE_URL", stack.postgres.url())
        .env("SQLX_OFFLINE", "false")
        .env("SQLX_OFFLINE_DIR", &folder);

    // Cargo must compile again, for the macros to see the database, but other builds need not.
    let library = File::options()
        .append(true)
        .open(checkout().join("workers/src/lib.rs"))?;
    let written = library.metadata()?.modified()?;
    library.set_modified(now())?;
    let status = check.status();
    library.set_modified(written)?;
    ensure!(
        status?.success(),
        "holdfast does not compile against the migrated database"
    );
    read(&folder)
}

#[expect(
    clippy::disallowed_methods,
    reason = "cargo compares file times with the system clock"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

fn read(folder: &Path) -> anyhow::Result<Descriptions> {
    let mut descriptions = Descriptions::new();
    if folder.exists() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            descriptions.insert(
                entry.file_name().to_string_lossy().into_owned(),
                fs::read(entry.path())?,
            );
        }
    }
    Ok(descriptions)
}

fn replace(folder: &Path, old: &Descriptions, new: &Descriptions) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        fs::remove_file(folder.join(name))?;
    }
    for (name, description) in new {
        fs::write(folder.join(name), description)?;
    }
    info!("{} statements described in {}", new.len(), folder.display());
    Ok(())
}
