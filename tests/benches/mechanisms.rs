//! Measures each way to write safely beside a plain update of one column by key: statements sent, and time. Adds the key
//! `mechanisms` to `target/reports/bench.json`.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use holdfast::store;
use holdfast::store::examples::{KEYS, User};
use holdfast::store::mechanisms::batch::{self, Changes, Reads};
use holdfast::store::mechanisms::idempotency::DAY;
use holdfast::store::mechanisms::interactive::{self, Attempts};
use holdfast::store::mechanisms::two_phase::{self, TransactionId};
use holdfast::store::mechanisms::{compare_and_set, expression, insert, read, update, version};
use holdfast_tests::kit::{self, Name, Stack};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgConnection, PgPool};
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tracing::info;
use uuid::Uuid;

/// Each has a row of its own, so that only the mechanism is measured, not a fight.
const CALLERS: usize = 64;
/// Calls by one caller, and of each of many, in one round.
const ALONE: usize = 100;
const TOGETHER: usize = 16;
const ROUNDS: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mechanism {
    PlainUpdate,
    PlainRead,
    BatchedRead,
    InsertOnce,
    RelativeUpdate,
    Append,
    BatchedUpdate,
    VersionedUpdate,
    CompareAndSet,
    OnlyWhatChanged,
    IdempotencyKey,
    Interactive,
    TwoPhaseCommit,
}

impl Mechanism {
    const ALL: [Mechanism; 13] = [
        Mechanism::PlainUpdate,
        Mechanism::PlainRead,
        Mechanism::BatchedRead,
        Mechanism::InsertOnce,
        Mechanism::RelativeUpdate,
        Mechanism::Append,
        Mechanism::BatchedUpdate,
        Mechanism::VersionedUpdate,
        Mechanism::CompareAndSet,
        Mechanism::OnlyWhatChanged,
        Mechanism::IdempotencyKey,
        Mechanism::Interactive,
        Mechanism::TwoPhaseCommit,
    ];

    fn name(self) -> &'static str {
        match self {
            Mechanism::PlainUpdate => "plain update",
            Mechanism::PlainRead => "plain read",
            Mechanism::BatchedRead => "batched read",
            Mechanism::InsertOnce => "insert once",
            Mechanism::RelativeUpdate => "relative update",
            Mechanism::Append => "append",
            Mechanism::BatchedUpdate => "batched update",
            Mechanism::VersionedUpdate => "read, versioned update",
            Mechanism::CompareAndSet => "read, compare-and-set",
            Mechanism::OnlyWhatChanged => "read, only what changed",
            Mechanism::IdempotencyKey => "idempotency key",
            Mechanism::Interactive => "interactive transaction",
            Mechanism::TwoPhaseCommit => "two-phase commit",
        }
    }
}

/// The figures of one mechanism.
struct Measured {
    mechanism: Mechanism,
    /// Per call, as the server counted them.
    statements: f64,
    /// Per call: of one caller, and of many at once.
    alone: Duration,
    together: Duration,
}

fn main() -> ExitCode {
    kit::prepare_process();
    match kit::run_to_end(move || Runtime::new()?.block_on(run())) {
        Ok(Some(Ok(()))) => ExitCode::SUCCESS,
        Ok(None) => ExitCode::from(kit::INTERRUPTED),
        Ok(Some(Err(error))) | Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let stack = Stack::open(Name::Bench).await?;
    stack.postgres.start().await?;
    let all = measure(&Database::prepare(&stack).await?).await?;
    let of = |wanted| {
        all.iter()
            .find(|measured| measured.mechanism == wanted)
            .context("not measured")
    };
    let plain = of(Mechanism::PlainUpdate)?;
    let mut text = String::from("mechanism                  statements   x plain update: 1 caller   64 callers\n");
    let mut rows = Vec::new();
    for measured in &all {
        let (name, statements) = (measured.mechanism.name(), rounded(measured.statements));
        let alone = rounded(measured.alone.as_secs_f64() / plain.alone.as_secs_f64());
        let together = rounded(measured.together.as_secs_f64() / plain.together.as_secs_f64());
        writeln!(text, "{name:<26} {statements:>10} {alone:>26} {together:>12}")?;
        rows.push(json!({ "name": name, "statements": statements, "relative_1": alone, "relative_64": together }));
    }
    let batching = plain.together.as_secs_f64() / of(Mechanism::BatchedUpdate)?.together.as_secs_f64();
    let missed = if batching < 4.0 { " (missed)" } else { "" };
    writeln!(
        text,
        "{CALLERS} callers one by one / batched: {batching:.1}, wanted at least 4{missed}"
    )?;
    print!("{text}");
    println!("written to {}", write(rows, rounded(batching))?.display());
    Ok(())
}

/// Adds the figures to the file of `dev bench`, if there is one.
fn write(rows: Vec<Value>, batching: f64) -> anyhow::Result<PathBuf> {
    let folder = kit::checkout().join("target/reports");
    fs::create_dir_all(&folder)?;
    let file = folder.join("bench.json");
    let mut report: Value = match fs::read(&file) {
        Ok(report) => serde_json::from_slice(&report)?,
        Err(_) => json!({}),
    };
    report["mechanisms"] = Value::Array(rows);
    report["batching_ratio"] = json!(batching);
    fs::write(&file, serde_json::to_string_pretty(&report)? + "\n")?;
    Ok(file)
}

async fn measure(database: &Database) -> anyhow::Result<Vec<Measured>> {
    let mut all = Vec::new();
    for mechanism in Mechanism::ALL {
        // The first calls warm up, and have their statements counted.
        let before = database.statements().await?;
        database.run(mechanism, 1, ALONE).await?;
        let statements = (database.statements().await? - before) / ALONE as f64;
        let (mut alone, mut together) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            alone.push(database.run(mechanism, 1, ALONE).await?);
            together.push(database.run(mechanism, CALLERS, TOGETHER).await?);
        }
        let (alone, together) = (median(alone), median(together));
        info!(
            "{}: {alone:?} alone, {together:?} of {CALLERS} callers",
            mechanism.name()
        );
        all.push(Measured {
            mechanism,
            statements,
            alone,
            together,
        });
    }
    Ok(all)
}

fn rounded(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

struct Database {
    main: PgPool,
    loyalty: PgPool,
    reads: Reads<User>,
    changes: Changes<User>,
    /// Makes each key, request and transaction a new one.
    number: AtomicUsize,
}

impl Database {
    async fn prepare(stack: &Stack) -> anyhow::Result<Database> {
        let pool = stack.postgres.connect().await?;
        sqlx::query("alter system set shared_preload_libraries = 'pg_stat_statements'")
            .execute(&pool)
            .await?;
        pool.close().await;
        stack.postgres.stop().await?;
        stack.postgres.start().await?;
        let connect = async |url: String| {
            let options: PgConnectOptions = url.parse()?;
            let options = options.options([("client_min_messages", "error")]);
            PgPoolOptions::new().max_connections(40).connect_with(options).await
        };
        let main = connect(stack.postgres.url()).await?;
        store::migrate(&main).await?;
        stack
            .postgres
            .copy_database("template1", "loyalty")
            .await?
            .close()
            .await;
        let loyalty = connect(stack.postgres.url_of("loyalty")).await?;
        sqlx::query("create extension if not exists pg_stat_statements")
            .execute(&main)
            .await?;
        sqlx::query("create table accounts (user_id text primary key, credits bigint not null)")
            .execute(&loyalty)
            .await?;
        for caller in 0..CALLERS {
            insert::once(&main, &user(key(caller))).await?;
            let account = sqlx::query("insert into accounts values ($1, 0)").bind(key(caller));
            account.execute(&loyalty).await?;
        }
        let (reads, reading) = batch::reads(main.clone());
        let (changes, changing) = batch::changes(main.clone());
        tokio::spawn(reading);
        tokio::spawn(changing);
        Ok(Database {
            main,
            loyalty,
            reads,
            changes,
            number: AtomicUsize::new(0),
        })
    }

    /// Time per call.
    async fn run(&self, mechanism: Mechanism, callers: usize, calls: usize) -> anyhow::Result<Duration> {
        let start = Instant::now();
        try_join_all((0..callers).map(async |caller| {
            for _ in 0..calls {
                self.call(mechanism, key(caller)).await?;
            }
            anyhow::Ok(())
        }))
        .await?;
        Ok(start.elapsed() / u32::try_from(callers * calls)?)
    }

    async fn call(&self, mechanism: Mechanism, key: String) -> anyhow::Result<()> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let rename = User::NAME.set(format!("name {number}"));
        match mechanism {
            Mechanism::PlainUpdate => drop(update::apply(&self.main, &key, &rename).await?),
            Mechanism::PlainRead => drop(read::one::<User>(&self.main, &key).await?),
            Mechanism::BatchedRead => drop(self.reads.ask(key).await?),
            Mechanism::InsertOnce => {
                let row = user(format!("{key}-{number}"));
                insert::once_by(&self.main, &row, &number.to_string()).await?;
            }
            Mechanism::RelativeUpdate => drop(update::apply(&self.main, &key, &User::CREDITS.add(1)).await?),
            Mechanism::Append => {
                // The list would grow from round to round, and with it the row.
                let change = User::TAGS.set(Vec::new());
                if number.is_multiple_of(20) {
                    update::apply(&self.main, &key, &change).await?;
                }
                expression::apply_to_all::<User>(&self.main, &[key], &User::TAGS.append("tag")).await?;
            }
            Mechanism::BatchedUpdate => drop(self.changes.ask((key, rename)).await?),
            Mechanism::VersionedUpdate => {
                let mut connection = self.main.acquire().await?;
                let found = self.loaded(&mut connection, &key).await?;
                version::update(&mut connection, &key, found.version, &number.to_string(), &rename).await?;
            }
            Mechanism::CompareAndSet => {
                let mut connection = self.main.acquire().await?;
                let found = self.loaded(&mut connection, &key).await?;
                compare_and_set::skip_if_someone_changed(&mut connection, &found, &rename).await?;
            }
            Mechanism::OnlyWhatChanged => {
                let mut connection = self.main.acquire().await?;
                let found = self.loaded(&mut connection, &key).await?;
                let wanted = User {
                    name: format!("name {number}"),
                    ..found.clone()
                };
                compare_and_set::only_changed_if_unmoved(&mut connection, &found, &wanted).await?;
            }
            Mechanism::IdempotencyKey => {
                let mut connection = self.main.acquire().await?;
                let request = format!("bench {number}");
                let work =
                    async |connection: &mut PgConnection| update::apply(connection, &key, &rename).await.map(|_| ());
                KEYS.once(&mut connection, &request, &number, DAY, work).await?;
            }
            Mechanism::Interactive => {
                let rename = async |transaction: &mut interactive::Transaction| {
                    if let Some(mut found) = transaction.get::<User>(&key).await? {
                        found.name = format!("name {number}");
                        transaction.put(&found).await?;
                    }
                    Ok::<_, interactive::Error>(())
                };
                interactive::transact(&self.main, Attempts(10), rename).await?;
            }
            Mechanism::TwoPhaseCommit => {
                let transaction = TransactionId::parse(&format!("bench/{number}"))?;
                let here = async |here: &mut PgConnection| {
                    update::apply(here, &key, &rename).await?;
                    anyhow::Ok(())
                };
                let there = async |there: &mut PgConnection| {
                    let update = sqlx::query("update accounts set credits = credits + 1 where user_id = $1");
                    update.bind(&key).execute(there).await?;
                    anyhow::Ok(())
                };
                two_phase::run(&self.main, &self.loyalty, &transaction, Uuid::new_v4(), here, there).await?;
            }
        }
        Ok(())
    }

    async fn loaded(&self, connection: &mut PgConnection, key: &String) -> anyhow::Result<User> {
        let found = read::one(connection, key).await?;
        found.with_context(|| format!("no user {key}"))
    }

    /// Statements executed so far in both databases.
    async fn statements(&self) -> anyhow::Result<f64> {
        let count = "select coalesce(sum(calls), 0)::float8 from pg_stat_statements where query not like '%pg_stat%'";
        let calls: f64 = sqlx::query_scalar(count).fetch_one(&self.main).await?;
        ensure!(calls > 0.0, "the server counts no statements");
        Ok(calls)
    }
}

fn key(caller: usize) -> String {
    format!("bench-{caller}")
}

fn user(user_id: String) -> User {
    User {
        user_id,
        name: "name".to_owned(),
        address: "address".to_owned(),
        credits: 0,
        tags: Vec::new(),
        version: 0,
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
