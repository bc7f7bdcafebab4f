//! The connections to Postgres: how many there are, and how long anything may take on them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use holdfast::config;
use holdfast::metrics::Metrics;
use holdfast::store;
use holdfast_tests::kit::proxy::{Proxy, Side};
use holdfast_tests::kit::{Kit, until};
use sqlx::{Acquire, PgPool};

use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_statement_that_takes_too_long_is_ended,
    a_statement_that_waits_too_long_for_a_lock_is_ended,
    a_transaction_that_does_nothing_is_ended,
    a_pool_gives_no_more_connections_than_it_may_and_says_so_in_time,
    a_session_that_can_only_read_is_thrown_away,
    a_database_that_can_only_be_read_is_waited_for,
    a_connection_that_falls_silent_at_the_start_is_given_up,
    a_pool_goes_on_with_the_standby_once_that_is_promoted,
    what_can_never_work_stops_the_start_and_says_what_to_change,
    a_committer_that_stands_still_is_not_ready_whatever_another_session_answers,
];

const CONNECTIONS: u32 = 2;

async fn pool(kit: &Kit) -> anyhow::Result<PgPool> {
    Ok(store::connect(&settings(&kit.stack.postgres.url_of("postgres")), &Metrics::new()?).await?)
}

pub(crate) fn settings(url: &str) -> config::Database {
    config::Database {
        url: url.to_owned().into(),
        loyalty_url: None,
        url_file: None,
        loyalty_url_file: None,
        credits_abandoned_after: Duration::from_secs(60),
        pool_size: CONNECTIONS,
        acquire_timeout: Duration::from_secs(3),
        statement_timeout: Duration::from_secs(2),
        lock_timeout: Duration::from_millis(300),
        idle_in_transaction_timeout: Duration::from_secs(1),
        idempotency_retention: Duration::from_secs(86_400),
    }
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

const WITHIN: Duration = Duration::from_secs(20);

fn a_session_that_can_only_read_is_thrown_away(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = pool(kit).await?;
        // As after a failover: each session was opened while the server could only be read.
        let mut taken = try_join_all((0..CONNECTIONS).map(|_| pool.acquire())).await?;
        for session in &mut taken {
            sqlx::query("set default_transaction_read_only = on")
                .execute(&mut **session)
                .await?;
        }
        drop(taken);
        for _ in 0..CONNECTIONS {
            let mut session = pool.acquire().await?;
            let read_only: String = sqlx::query_scalar("show transaction_read_only")
                .fetch_one(&mut *session)
                .await?;
            ensure!(read_only == "off", "a session that can only read was given out");
        }
        Ok(())
    })
}

fn a_connection_that_falls_silent_at_the_start_is_given_up(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let proxy = Proxy::start(kit.stack.postgres.address()).await?;
        let url = kit.stack.postgres.url_of("postgres");
        let url = url.replace(&kit.stack.postgres.address(), &proxy.address());
        let pool = store::connect(&settings(&url), &Metrics::new()?).await?;
        proxy.stop_at("oldest_reader", Side::Before);
        let admitted = tokio::spawn(async move { store::migrate::admit(&pool).await });
        proxy.stopped().await;
        proxy.swallow();
        let admitted = tokio::time::timeout(WITHIN, admitted).await;
        admitted.context("the start waits for ever")???;
        Ok(())
    })
}

fn a_database_that_can_only_be_read_is_waited_for(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let admin = kit.stack.postgres.copy_database("template1", "pool-standby").await?;
        sqlx::query(r#"alter database "pool-standby" set default_transaction_read_only = on"#)
            .execute(&admin)
            .await?;
        let metrics = Arc::new(Metrics::new()?);
        let (settings, counted) = (settings(&kit.stack.postgres.url_of("pool-standby")), metrics.clone());
        let connecting = tokio::spawn(async move { store::connect(&settings, &counted).await });
        until("it to be waited for", WITHIN, async || {
            ensure!(!connecting.is_finished(), "a database that can only be read was taken");
            ensure!(metrics.retries.with_label_values(&["connect"]).get() > 0, "no try yet");
            anyhow::Ok(())
        })
        .await?;
        let mut writing = admin.acquire().await?;
        sqlx::query("set default_transaction_read_only = off")
            .execute(&mut *writing)
            .await?;
        sqlx::query(r#"alter database "pool-standby" reset default_transaction_read_only"#)
            .execute(&mut *writing)
            .await?;
        let pool = tokio::time::timeout(WITHIN, connecting).await???;
        sqlx::query("create table written ()").execute(&pool).await?;
        Ok(())
    })
}

fn a_pool_goes_on_with_the_standby_once_that_is_promoted(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let postgres = &kit.stack.postgres;
        let proxy = Proxy::start(postgres.address()).await?;
        let url = postgres
            .url_of("postgres")
            .replace(&postgres.address(), &proxy.address());
        let pool = store::connect(&settings(&url), &Metrics::new()?).await?;
        sqlx::query("create table if not exists moved ()")
            .execute(&pool)
            .await?;
        let taken = try_join_all((0..CONNECTIONS).map(|_| pool.acquire())).await?;
        let standby = kit.stack.standby().await?;
        drop(taken);
        // The host is lost without a word, and the name moves to the standby before that is promoted.
        proxy.swallow();
        proxy.point_at(standby.address());
        let write = async || sqlx::query("insert into moved default values").execute(&pool).await;
        let refused = write().await;
        ensure!(refused.is_err(), "a standby was written: {refused:?}");
        let promote = PgPool::connect(&standby.url_of("postgres")).await?;
        let promoted: bool = sqlx::query_scalar("select pg_promote()").fetch_one(&promote).await?;
        ensure!(promoted, "the standby is not promoted");
        until("the promoted server is written", WITHIN, async || {
            write().await.map(drop)
        })
        .await?;
        let written: i64 = sqlx::query_scalar("select count(*) from moved")
            .fetch_one(&promote)
            .await?;
        ensure!(written == 1, "{written} rows");
        standby.stop().await
    })
}

fn what_can_never_work_stops_the_start_and_says_what_to_change(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let postgres = &kit.stack.postgres;
        let admin = PgPool::connect(&postgres.url_of("postgres")).await?;
        for statement in [
            "drop database if exists latin with (force)",
            "create database latin template template0 encoding 'LATIN1' locale 'C'",
        ] {
            sqlx::query(statement).execute(&admin).await?;
        }
        let divided = postgres.copy_database("template1", "divided").await?;
        store::migrate(&divided).await?;
        sqlx::query("create schema postgres").execute(&divided).await?;
        let url = |database: &str| postgres.url_of(database);
        let stranger = url("postgres").replace("postgres@", "stranger@");
        for (wrong, said) in [
            (url("latin"), "UTF8"),
            (url("divided"), "schema"),
            (url("nowhere"), "nowhere"),
            (stranger, "stranger"),
            (format!("{}?sslmode=require", url("postgres")), "TLS"),
        ] {
            let mut migrate = kit
                .stack
                .holdfast("migrate", "pool")
                .env("HOLDFAST_DATABASE_URL", &wrong);
            migrate = migrate.without("HOLDFAST_LOYALTY_URL");
            let ended = tokio::time::timeout(WITHIN, migrate.output()).await;
            let ended = ended.with_context(|| format!("{said}: it is waited for"))??;
            let text = String::from_utf8_lossy(&ended.stderr).into_owned();
            ensure!(
                ended.status.code() == Some(2) && text.contains(said),
                "{said}: {} {text}",
                ended.status
            );
        }
        Ok(())
    })
}

fn a_committer_that_stands_still_is_not_ready_whatever_another_session_answers(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let postgres = &kit.stack.postgres;
        let proxy = Proxy::start(postgres.address()).await?;
        let url = postgres.url().replace(&postgres.address(), &proxy.address());
        let worker = kit.stack.holdfast("run", "pool").env("HOLDFAST_DATABASE_URL", &url);
        let worker = worker.start().await?;
        proxy.stop_at("insert into ticket_change_log", Side::Before);
        let body = serde_json::json!({ "show": "proofs", "price": { "amount": 4_500, "currency": "EUR" } });
        let list = kit.stack.restate.call("Ticket/pool-silent/list", &[], &body);
        let silent = async {
            proxy.stopped().await;
            proxy.swallow();
            until("the process to say that it is not ready", WITHIN, async || {
                let answer = reqwest::get(format!("{}/readyz", worker.http)).await?;
                let (ready, text) = (answer.status().is_success(), answer.text().await?);
                ensure!(!ready && text.contains("tickets"), "{text}");
                anyhow::Ok(())
            })
            .await
        };
        tokio::select! {
            answered = list => anyhow::bail!("it was listed: {answered:?}"),
            silent = silent => silent,
        }
    })
}
