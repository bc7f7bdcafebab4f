//! What events and checkouts leave on disk: in Kafka by kind of topic, in PostgreSQL by kind of table and as write-ahead log. The
//! events come at a modest rate, since what comes in a crowd is packed together more tightly.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use holdfast_tests::kit::{Holdfast, Stack};
use serde_json::{Map, Value, json};
use tracing::info;

use super::Bench;
use super::checkout::{Purchases, SIZES};
use super::rates::{RATES, TICKETS};
use super::workload::Workload;

const CHECKOUTS: usize = 500;

/// Bytes by kind.
type Sizes = BTreeMap<&'static str, u64>;

impl Bench {
    pub(super) async fn disk(&mut self, run: &Holdfast) -> anyhow::Result<()> {
        let (rate, events, ..) = RATES[RATES.len() - 1];
        let workload = Workload::new("disk", TICKETS, self.scaled(events));
        self.list(&workload).await?;
        let before = sizes(&self.stack).await?;
        self.paced(&workload, rate).await?;
        let mut bytes = Map::new();
        bytes.insert("event".to_owned(), grown(&self.stack, &before, workload.events).await?);
        for (key, tickets, _) in SIZES {
            let purchases = Purchases::new(format!("disk-{key}"), self.scaled(CHECKOUTS), tickets);
            self.prepare(&purchases).await?;
            self.hold(&purchases, run, &[]).await?;
            let before = sizes(&self.stack).await?;
            self.buy(&purchases, run, &[]).await?;
            bytes.insert(key.to_owned(), grown(&self.stack, &before, purchases.checkouts).await?);
        }
        self.report.detail("disk_bytes", bytes.into());
        let records = workload.events().map(|event| event.record());
        let lengths = records.map(|record| [record.key, record.value].iter().flatten().map(Vec::len).sum::<usize>());
        let mean = lengths.sum::<usize>() as f64 / workload.events as f64;
        self.report.figure("event_bytes", mean, "bytes");
        let engine = length_of(&self.stack.folder().join("restate"))?;
        self.report.figure("engine_mb", engine as f64 / 1e6, "MB");
        Ok(())
    }
}

/// What each kind has grown by since then, for each of `count`.
async fn grown(stack: &Stack, before: &Sizes, count: usize) -> anyhow::Result<Value> {
    let after = sizes(stack).await?;
    info!("disk: {before:?} before, {after:?} after {count}");
    let each = after.iter().map(|(kind, bytes)| {
        let grown = bytes.saturating_sub(before.get(kind).copied().unwrap_or_default());
        ((*kind).to_owned(), json!((grown as f64 / count as f64).round()))
    });
    Ok(Value::Object(each.collect()))
}

async fn sizes(stack: &Stack) -> anyhow::Result<Sizes> {
    let mut sizes: Sizes = Sizes::new();
    for entry in fs::read_dir(stack.folder().join("kafka"))? {
        let entry = entry?;
        let name = entry.file_name();
        let topic = name.to_str().and_then(|name| name.rsplit_once('-'));
        if let Some(kind) = topic.and_then(|(topic, _partition)| kind_of_topic(topic)) {
            *sizes.entry(kind).or_default() += log_of(&entry.path())?;
        }
    }
    let pool = stack.postgres.connect().await?;
    let tables: Vec<(String, i64)> = sqlx::query_as(
        "select relname::text, pg_total_relation_size(oid) from pg_class
         where relkind = 'r' and relnamespace = 'public'::regnamespace
         union all
         select 'wal', (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint",
    )
    .fetch_all(&pool)
    .await?;
    pool.close().await;
    for (table, bytes) in tables {
        *sizes.entry(kind_of_table(&table)).or_default() += u64::try_from(bytes)?;
    }
    Ok(sizes)
}

fn kind_of_topic(topic: &str) -> Option<&'static str> {
    match topic {
        "reservations" | "payments" => Some("public"),
        "ledger.entries" => Some("outcomes"),
        _ if topic.ends_with(".admitted") => Some("admitted"),
        _ if topic.ends_with(".outcomes") => Some("outcomes"),
        _ => None,
    }
}

fn kind_of_table(table: &str) -> &'static str {
    match table {
        "wal" => "wal",
        "idempotency_records" => "records",
        "ticket_change_log" | "user_change_log" => "change_log",
        "checkouts" | "checkout_seats" | "purchases" | "ledger" | "mails" => "orders",
        // Their rows are changed or go away again.
        _ => "transient",
    }
}

/// The bytes of the records of a partition; its indexes are sparse files.
fn log_of(partition: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(partition)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            bytes += length_of(&path)?;
        }
    }
    Ok(bytes)
}

/// Of a file, or of all files in a folder.
fn length_of(path: &Path) -> io::Result<u64> {
    let metadata = match fs::symlink_metadata(path) {
        // Servers take files away while they work.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        found => found?,
    };
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        bytes += length_of(&entry?.path())?;
    }
    Ok(bytes)
}
