//! The connections to Postgres: how many there are, and how long anything may take on them.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use holdfast::config;
use holdfast::metrics::Metrics;
use holdfast::store;
use holdfast_tests::kit::Kit;
use sqlx::{Acquire, PgPool};

use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_statement_that_takes_too_long_is_ended,
    a_statement_that_waits_too_long_for_a_lock_is_ended,
    a_transaction_that_does_nothing_is_ended,
    a_pool_gives_no_more_connections_than_it_may_and_says_so_in_time,
];

const CONNECTIONS: u32 = 2;

async fn pool(kit: &Kit) -> anyhow::Result<PgPool> {
    let config = config::Database {
        url: kit.stack.postgres.url_of("postgres").into(),
        loyalty_url: None,
        credits_abandoned_after: Duration::from_secs(60),
        pool_size: CONNECTIONS,
        acquire_timeout: Duration::from_millis(300),
        statement_timeout: Duration::from_secs(2),
        lock_timeout: Duration::from_millis(300),
        idle_in_transaction_timeout: Duration::from_secs(1),
        idempotency_retention: Duration::from_secs(86_400),
    };
    Ok(store::connect(&config, &Metrics::new()?).await?)
}

/// PostgreSQL's code of an error; what else it is otherwise.
fn code(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    code.map_or_else(|| error.to_string(), String::from)
}

fn a_statement_that_takes_too_long_is_ended(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = pool(kit).await?;
        let ended = sqlx::query("select pg_sleep(60)").execute(&pool).await;
        let error = ended.err().context("it was not ended")?;
        ensure!(code(&error) == "57014", "{error}");
        Ok(())
    })
}

fn a_statement_that_waits_too_long_for_a_lock_is_ended(kit: &Kit) -> anyhow::Result<()> {
    const LOCK: &str = "select pg_advisory_xact_lock(7)";
    kit.block_on(async {
        let pool = pool(kit).await?;
        let mut first = pool.begin().await?;
        sqlx::query(LOCK).execute(&mut *first).await?;
        let ended = sqlx::query(LOCK).execute(&pool).await;
        let error = ended.err().context("it was not ended")?;
        ensure!(code(&error) == "55P03", "{error}");
        Ok(())
    })
}

fn a_transaction_that_does_nothing_is_ended(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = pool(kit).await?;
        let mut connection = pool.acquire().await?;
        let mut idle = connection.begin().await?;
        let session: i32 = sqlx::query_scalar("select pg_backend_pid()")
            .fetch_one(&mut *idle)
            .await?;
        holdfast_tests::kit::until("the session has ended", Duration::from_secs(20), async || {
            let there = sqlx::query_scalar("select exists (select from pg_stat_activity where pid = $1)");
            let there: bool = there.bind(session).fetch_one(&pool).await?;
            ensure!(!there, "it is there");
            anyhow::Ok(())
        })
        .await?;
        ensure!(sqlx::query("select 1").execute(&mut *idle).await.is_err(), "it goes on");
        Ok(())
    })
}

fn a_pool_gives_no_more_connections_than_it_may_and_says_so_in_time(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = pool(kit).await?;
        let taken = try_join_all((0..CONNECTIONS).map(|_| pool.acquire())).await?;
        let another = pool.acquire().await;
        ensure!(matches!(another, Err(sqlx::Error::PoolTimedOut)), "{another:?}");
        drop(taken);
        pool.acquire().await?;
        Ok(())
    })
}
