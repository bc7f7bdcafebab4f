//! `.sqlx`: what PostgreSQL says about every checked statement, committed so that building needs no database.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
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
    let differs = |name: &&String| committed.get(*name) != fresh.get(*name);
    let stale: Vec<&String> = committed
        .keys()
        .chain(fresh.keys().filter(|name| !committed.contains_key(*name)))
        .filter(differs)
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
    let library = checkout().join("workers/src/lib.rs");
    fs::File::options()
        .append(true)
        .open(&library)?
        .set_modified(now())
        .with_context(|| library.display().to_string())?;
    let status = Command::new(env!("CARGO"))
        .args(["check", "--quiet", "-p", "holdfast"])
        .current_dir(checkout())
        .env("DATABASE_URL", stack.postgres.url())
        .env("SQLX_OFFLINE", "false")
        .env("SQLX_OFFLINE_DIR", &folder)
        .status()?;
    ensure!(
        status.success(),
        "holdfast does not compile against the migrated database"
    );
    read(&folder)
}

/// Cargo compiles again what has changed since; the macros see the database only then.
#[expect(
    clippy::disallowed_methods,
    reason = "cargo compares file times with the system clock"
)]
fn now() -> std::time::SystemTime {
    std::time::SystemTime::now()
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
