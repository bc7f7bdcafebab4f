//! The kit itself: servers that can be killed and come back, with the settings of their manifests.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::kit::kafka::Sent;
use holdfast_tests::kit::server::Kind;
use holdfast_tests::kit::{Kit, Server};
use serde_json::json;
use sqlx::Row;
use tokio::time::timeout;

use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    each_server_survives_kill_and_pause,
    acknowledged_records_and_rows_outlive_a_kill,
    postgres_loses_no_acknowledged_commit,
    restate_runs_with_our_settings,
];

fn each_server_survives_kill_and_pause(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        survives(&kit.stack.kafka).await?;
        survives(&kit.stack.restate).await?;
        survives(&kit.stack.postgres).await
    })
}

async fn survives<K: Kind>(server: &Server<K>) -> anyhow::Result<()> {
    server.ready().await?;
    let first = server.pid()?;
    server.kill()?;
    ensure!(
        !server.runs() && server.answers().await.is_err(),
        "{} answers after SIGKILL",
        K::NAME
    );
    server.start().await?;
    ensure!(server.pid()? != first, "{} has kept its process id", K::NAME);

    server.pause()?;
    let answer = timeout(Duration::from_secs(3), server.answers()).await;
    ensure!(!matches!(answer, Ok(Ok(()))), "{} answers while paused", K::NAME);
    server.resume()?;
    server.ready().await?;

    server.restart().await
}

fn acknowledged_records_and_rows_outlive_a_kill(kit: &Kit) -> anyhow::Result<()> {
    let (kafka, postgres) = (&kit.stack.kafka, &kit.stack.postgres);
    kit.block_on(async {
        kafka.create_topic("kit", 2, &[]).await?;
        let headers = vec![(String::from("ce_id"), b"1".to_vec())];
        let record = Sent {
            key: Some(b"key".to_vec()),
            value: None,
            headers: headers.clone(),
            ..Sent::default()
        };
        let places = kafka.send("kit", &[record.clone(), record]).await?;
        kafka.kill()?;
        kafka.start().await?;
        let read = kafka.read("kit").await?;
        ensure!(
            read.iter().map(|record| (record.partition, record.offset)).eq(places),
            "{read:?}"
        );
        ensure!(
            read.iter()
                .all(|record| record.value.is_none() && record.headers == headers),
            "{read:?}"
        );

        let pool = postgres.connect().await?;
        sqlx::raw_sql("create table kit (n int); insert into kit values (1), (2)")
            .execute(&pool)
            .await?;
        pool.close().await;
        postgres.kill()?;
        postgres.start().await?;
        let copy = postgres.copy_database("holdfast", "kit_copy").await?;
        let count: i64 = sqlx::query("select count(*) from kit").fetch_one(&copy).await?.get(0);
        copy.close().await;
        let pool = postgres.connect().await?;
        sqlx::raw_sql("drop table kit").execute(&pool).await?;
        pool.close().await;
        ensure!(count == 2, "{count} rows of 2");
        Ok(())
    })
}

fn postgres_loses_no_acknowledged_commit(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = kit.stack.postgres.connect().await?;
        for (setting, wanted) in [
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("full_page_writes", "on"),
        ] {
            let row = sqlx::query("select current_setting($1)")
                .bind(setting)
                .fetch_one(&pool)
                .await?;
            ensure!(
                row.get::<&str, _>(0) == wanted,
                "{setting} is {}",
                row.get::<&str, _>(0)
            );
        }
        let row = sqlx::query("show server_version").fetch_one(&pool).await?;
        ensure!(
            row.get::<&str, _>(0).starts_with("18."),
            "PostgreSQL {}",
            row.get::<&str, _>(0)
        );
        pool.close().await;
        Ok(())
    })
}

fn restate_runs_with_our_settings(kit: &Kit) -> anyhow::Result<()> {
    let restate = &kit.stack.restate;
    let settings = restate.effective_settings()?;
    for (key, wanted) in [
        ("default-num-partitions", "4"),
        ("default-thread-pool-size", "8"),
        ("default-retry-policy.max-attempts", "\"unlimited\""),
        ("default-retry-policy.max-interval", "\"10s\""),
        ("log-server.rocksdb-disable-wal-fsync", "false"),
        ("disable-telemetry", "true"),
    ] {
        let value = settings.get(key).with_context(|| format!("no setting {key}"))?;
        ensure!(value == wanted, "{key} is {value}");
    }
    ensure!(
        !settings.contains_key("default-journal-retention"),
        "journals are retained"
    );

    kit.block_on(async {
        let response = reqwest::get(format!("{}/version", restate.admin()))
            .await?
            .error_for_status()?;
        let version: serde_json::Value = response.json().await?;
        ensure!(version["version"] == "1.7.12", "{version}");
        let rows = restate.sql("select count(*) as n from sys_invocation_status").await?;
        ensure!(rows == [json!({ "n": 0 })], "{rows:?}");
        let (status, _) = restate.call("Nobody/key/handler", &[], &json!({})).await?;
        ensure!(status == 404, "an unknown service answers {status}");
        Ok(())
    })
}
