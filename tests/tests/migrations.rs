//! Migrating while others work on the tables, by several at once, by releases of different ages, and after one that died.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use holdfast::store;
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Holdfast, Kit, checkout, until};
use sqlx::migrate::Migrator;
use sqlx::{PgPool, Postgres, Transaction};

use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    migrators_that_start_at_once_all_succeed,
    an_older_release_starts_on_the_tables_of_a_later_one,
    a_release_that_the_tables_have_outgrown_names_the_one_they_need,
    a_migration_outlives_the_workers_limits_and_tells_how_far_it_is,
    an_index_left_unfinished_is_built_again,
    a_migration_that_waits_for_a_table_keeps_nobody_else_from_it,
];

const DATABASE: &str = "migrations";
const WITHIN: Duration = Duration::from_secs(60);
/// The migration that builds [`INDEX`], beside the path.
const BUILDS: i64 = 20261128104000;
const INDEX: &str = "idempotency_records_age";
/// The last migration before one that renames `change_log`.
const BEFORE_RENAMING: i64 = 20261124100000;
/// Made by a release that is not known yet.
const LATER: i64 = 29990101000000;

fn migrators_that_start_at_once_all_succeed(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = empty(kit).await?;
        let all = (0..3).map(|number| migrate(kit, &format!("migrate-{number}")).output());
        for output in try_join_all(all).await? {
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let known = Migrator::new(checkout().join("migrations")).await?.iter().count();
        let applied: i64 = sqlx::query_scalar("select count(*) from _sqlx_migrations")
            .fetch_one(&pool)
            .await?;
        ensure!(
            applied == known as i64 && is_valid(&pool).await?,
            "{applied} of {known}"
        );
        pool.close().await;
        Ok(())
    })
}

fn an_older_release_starts_on_the_tables_of_a_later_one(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = migrated(kit).await?;
        sqlx::raw_sql("alter table tickets add column later integer not null default 0")
            .execute(&pool)
            .await?;
        sqlx::query(
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
             values ($1, 'later', true, '\\x00', 0)",
        )
        .bind(LATER)
        .execute(&pool)
        .await?;
        let output = migrate(kit, "migrate").output().await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        pool.close().await;
        Ok(())
    })
}

fn a_release_that_the_tables_have_outgrown_names_the_one_they_need(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = migrated(kit).await?;
        sqlx::query("update oldest_reader set migration = $1, release = '9.8.7'")
            .bind(LATER)
            .execute(&pool)
            .await?;
        let url = kit.stack.postgres.url_of(DATABASE);
        let worker = |role| kit.stack.holdfast(role, "outgrown").env("HOLDFAST_DATABASE_URL", &url);
        for role in ["migrate", "serve", "relay"] {
            let output = worker(role).output().await?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(
                !output.status.success() && said.contains("need Holdfast 9.8.7"),
                "{role}: {said}"
            );
        }
        pool.close().await;
        Ok(())
    })
}

fn a_migration_outlives_the_workers_limits_and_tells_how_far_it_is(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = without_index(kit).await?;
        let before = look(&pool).await?;
        let migrator = migrate(kit, "migrate-long")
            .env("HOLDFAST_STATEMENT_TIMEOUT", "1s")
            .env("HOLDFAST_LOCK_TIMEOUT", "100ms")
            .spawn()?;
        told(&migrator, "waiting for old snapshots").await?;
        before.rollback().await?;
        let status = migrator.wait(WITHIN).await?;
        ensure!(
            status.success() && is_valid(&pool).await?,
            "{status}: {}",
            migrator.last_words()
        );
        pool.close().await;
        Ok(())
    })
}

fn an_index_left_unfinished_is_built_again(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = without_index(kit).await?;
        let before = look(&pool).await?;
        let migrator = migrate(kit, "migrate-killed").spawn()?;
        until("the index is being built", WITHIN, async || {
            let phase = "select phase from pg_stat_progress_create_index where phase = 'waiting for old snapshots'";
            let phase: Option<String> = sqlx::query_scalar(phase).fetch_optional(&pool).await?;
            phase.context("not yet")
        })
        .await?;
        migrator.kill()?;
        sqlx::query("select pg_terminate_backend(pid) from pg_stat_progress_create_index")
            .execute(&pool)
            .await?;
        until("the index is left unfinished", WITHIN, async || {
            ensure!(!is_valid(&pool).await?, "it is finished");
            let building = sqlx::query("select from pg_stat_progress_create_index").fetch_optional(&pool);
            ensure!(building.await?.is_none(), "it is being built");
            anyhow::Ok(())
        })
        .await?;
        before.rollback().await?;
        let applied = store::migrate(&pool).await?;
        ensure!(applied == 1 && is_valid(&pool).await?, "{applied} applied");
        pool.close().await;
        Ok(())
    })
}

fn a_migration_that_waits_for_a_table_keeps_nobody_else_from_it(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = empty(kit).await?;
        let migrations = Migrator::new(checkout().join("migrations")).await?;
        migrations.run_to(BEFORE_RENAMING, &pool).await?;
        let mut before = pool.begin().await?;
        sqlx::query("select from change_log").execute(&mut *before).await?;
        let migrator = migrate(kit, "migrate-waiting")
            .env("HOLDFAST_LOCK_TIMEOUT", "100ms")
            .spawn()?;
        told(&migrator, "the migration tries again").await?;
        let mut beside = pool.begin().await?;
        sqlx::query("set local lock_timeout = '10s'")
            .execute(&mut *beside)
            .await?;
        sqlx::query("select from change_log").execute(&mut *beside).await?;
        beside.rollback().await?;
        before.rollback().await?;
        let status = migrator.wait(WITHIN).await?;
        ensure!(status.success(), "{status}: {}", migrator.last_words());
        pool.close().await;
        Ok(())
    })
}

fn migrate<'a>(kit: &'a Kit, instance: &str) -> Launch<'a> {
    let url = kit.stack.postgres.url_of(DATABASE);
    kit.stack
        .holdfast("migrate", instance)
        .env("HOLDFAST_DATABASE_URL", &url)
}

async fn empty(kit: &Kit) -> anyhow::Result<PgPool> {
    kit.stack.postgres.copy_database("template1", DATABASE).await
}

async fn migrated(kit: &Kit) -> anyhow::Result<PgPool> {
    let pool = empty(kit).await?;
    store::migrate(&pool).await?;
    Ok(pool)
}

/// As before the migration that builds the index.
async fn without_index(kit: &Kit) -> anyhow::Result<PgPool> {
    let pool = migrated(kit).await?;
    sqlx::raw_sql("drop index idempotency_records_age")
        .execute(&pool)
        .await?;
    sqlx::query("delete from _sqlx_migrations where version = $1")
        .bind(BUILDS)
        .execute(&pool)
        .await?;
    Ok(pool)
}

/// A transaction that looks at the records, and keeps looking.
async fn look(pool: &PgPool) -> anyhow::Result<Transaction<'static, Postgres>> {
    let mut transaction = pool.begin().await?;
    sqlx::raw_sql("set transaction isolation level repeatable read; select from idempotency_records")
        .execute(&mut *transaction)
        .await?;
    Ok(transaction)
}

async fn is_valid(pool: &PgPool) -> anyhow::Result<bool> {
    let valid = "select indisvalid from pg_index where indexrelid = to_regclass($1)";
    let valid: Option<bool> = sqlx::query_scalar(valid).bind(INDEX).fetch_optional(pool).await?;
    valid.context("there is no such index")
}

async fn told(migrator: &Holdfast, words: &str) -> anyhow::Result<()> {
    let log = until(words, WITHIN, async || {
        let runs = migrator.runs();
        let log = migrator.last_words();
        ensure!(!runs || log.contains(words), "{log}");
        anyhow::Ok(log)
    })
    .await?;
    ensure!(log.contains(words), "it has ended: {log}");
    Ok(())
}
