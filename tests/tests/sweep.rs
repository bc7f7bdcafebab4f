//! The sweep of idempotency records: what it deletes, what it keeps, and what it reads on the way.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast::store;
use holdfast::store::idempotency::{PAGE_ROWS, Sweep};
use holdfast_tests::kit::proxy::{Proxy, Side};
use holdfast_tests::kit::{Kit, until};
use holdfast_tests::load::now;
use sqlx::{AssertSqlSafe, PgPool};

use crate::{Test, mechanisms, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_record_stays_as_long_as_a_repeat_can_look_young,
    a_sweep_costs_what_it_deletes,
    a_connection_that_dies_without_a_word_holds_the_sweep_up_for_one_limit,
];

const DATABASE: &str = "sweep";
const DAY: Duration = Duration::from_secs(24 * 3600);
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

fn a_record_stays_as_long_as_a_repeat_can_look_young(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = fresh(kit).await?;
        // Written 8 days ago by an event whose own time lay ahead; written just now of an event that is old, as releases before
        // noted it; old by both.
        record(&pool, "ahead", "interval '6 days'", "interval '8 days'").await?;
        record(&pool, "late", "interval '8 days'", "interval '0 days'").await?;
        record(&pool, "old", "interval '9 days'", "interval '8 days'").await?;
        record(&pool, "older", "interval '10 days'", "interval '10 days'").await?;
        let unfinished_since = now() - 9 * DAY;
        ensure!(Sweep::default().page(&pool, RETENTION, Some(unfinished_since)).await? == 1);
        ensure!(ids(&pool).await? == ["ahead", "late", "old"], "{:?}", ids(&pool).await?);
        ensure!(Sweep::default().page(&pool, RETENTION, None).await? == 1);
        ensure!(ids(&pool).await? == ["ahead", "late"], "{:?}", ids(&pool).await?);
        pool.close().await;
        Ok(())
    })
}

/// Counted by the server's own statistics, of the table and its indexes, whatever the statement.
fn a_sweep_costs_what_it_deletes(kit: &Kit) -> anyhow::Result<()> {
    const EACH_SIDE: i64 = 60_000;
    kit.block_on(async {
        let pool = fresh(kit).await?;
        // As they would come: in the order of their age, the first half due.
        let fill = format!(
            "alter table idempotency_records set (autovacuum_enabled = false);
             insert into idempotency_records (source, id, topic, key, hash, reply, aged_from, written_at)
             select 'shop', md5(n::text), 'reservations', n, '\\x00', '{{\"outcomes\":[]}}', at, at
             from generate_series(1, {}) n, lateral (select now() - interval '14 days' + n * interval '14 days' / {0} as at);
             analyze idempotency_records",
            2 * EACH_SIDE
        );
        sqlx::raw_sql(AssertSqlSafe(fill)).execute(&pool).await?;
        pool.close().await;

        let mut walk = Sweep::default();
        let (swept, cost) = sweep(kit, &mut walk).await?;
        ensure!(swept.abs_diff(EACH_SIDE as u64) <= 1, "{swept} swept");
        ensure!(cost.rows <= EACH_SIDE + 6 * PAGE_ROWS / 100, "{swept} swept, {cost:?}");
        ensure!(cost.blocks <= 6 * EACH_SIDE, "{swept} swept, {cost:?}");
        // Nothing is due; what was deleted still lies there, unvacuumed.
        let (swept, cost) = sweep(kit, &mut walk).await?;
        ensure!(swept == 0 && cost.rows <= 100 && cost.blocks <= 100, "{swept} swept, {cost:?}");
        // A new process's walk begins at the start: it passes what was deleted once, and from then on knows it for dead.
        for _ in 0..2 {
            sweep(kit, &mut Sweep::default()).await?;
        }
        let (swept, cost) = sweep(kit, &mut Sweep::default()).await?;
        ensure!(swept == 0 && cost.rows <= 100 && cost.blocks <= 1_000, "{swept} swept, {cost:?}");
        Ok(())
    })
}

fn a_connection_that_dies_without_a_word_holds_the_sweep_up_for_one_limit(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = fresh(kit).await?;
        record(&pool, "old", "interval '9 days'", "interval '8 days'").await?;
        let postgres = &kit.stack.postgres;
        let proxy = Proxy::start(postgres.address()).await?;
        let url = postgres.url_of(DATABASE).replace(&postgres.address(), &proxy.address());
        let through = mechanisms::connect_for(url, Duration::from_secs(1)).await?;
        proxy.stop_at("delete from idempotency_records", Side::Before);
        let page = {
            let through = through.clone();
            tokio::spawn(async move { Sweep::default().page(&through, RETENTION, None).await })
        };
        proxy.stopped().await;
        proxy.swallow();
        let ended = tokio::time::timeout(Duration::from_secs(20), page).await;
        let ended = ended.context("it waits for ever")??;
        ensure!(ended.is_err(), "{ended:?}");
        // The server ends the transaction whose client is lost, and with it the lock.
        until("the next page", Duration::from_secs(20), async || {
            let swept = Sweep::default().page(&through, RETENTION, None).await?;
            ensure!(swept == 1, "{swept} swept");
            anyhow::Ok(())
        })
        .await?;
        ensure!(ids(&pool).await?.is_empty());
        through.close().await;
        pool.close().await;
        Ok(())
    })
}

/// What was read of the table and its indexes.
#[derive(Debug)]
struct Cost {
    rows: i64,
    blocks: i64,
}

/// Sweeps all that is due, on connections of its own, so that their statistics are complete when they are closed.
async fn sweep(kit: &Kit, walk: &mut Sweep) -> anyhow::Result<(u64, Cost)> {
    let before = read(kit).await?;
    let pool = PgPool::connect(&kit.stack.postgres.url_of(DATABASE)).await?;
    let mut total = 0;
    loop {
        let swept = walk.page(&pool, RETENTION, None).await?;
        total += swept;
        if swept < PAGE_ROWS as u64 {
            break;
        }
    }
    pool.close().await;
    let after = read(kit).await?;
    let cost = Cost {
        rows: after.rows - before.rows,
        blocks: after.blocks - before.blocks,
    };
    Ok((total, cost))
}

async fn read(kit: &Kit) -> anyhow::Result<Cost> {
    let pool = PgPool::connect(&kit.stack.postgres.url_of(DATABASE)).await?;
    let (rows, blocks) = sqlx::query_as(
        "select (t.seq_tup_read + t.idx_tup_fetch)::int8,
                (b.heap_blks_read + b.heap_blks_hit + b.idx_blks_read + b.idx_blks_hit)::int8
         from pg_stat_user_tables t join pg_statio_user_tables b using (relid) where t.relname = 'idempotency_records'",
    )
    .fetch_one(&pool)
    .await?;
    pool.close().await;
    Ok(Cost { rows, blocks })
}

/// An empty database, with the product's tables.
async fn fresh(kit: &Kit) -> anyhow::Result<PgPool> {
    let pool = kit.stack.postgres.copy_database("template1", DATABASE).await?;
    store::migrate(&pool).await?;
    Ok(pool)
}

async fn record(pool: &PgPool, id: &str, aged: &str, written: &str) -> anyhow::Result<()> {
    let insert = format!(
        "insert into idempotency_records (source, id, topic, key, hash, reply, aged_from, written_at)
         values ('shop', $1, 'reservations', 'A', '\\x00', '{{\"outcomes\":[]}}', now() - {aged}, now() - {written})"
    );
    sqlx::query(AssertSqlSafe(insert)).bind(id).execute(pool).await?;
    Ok(())
}

async fn ids(pool: &PgPool) -> anyhow::Result<Vec<String>> {
    let ids = sqlx::query_scalar("select id from idempotency_records order by id");
    Ok(ids.fetch_all(pool).await?)
}
