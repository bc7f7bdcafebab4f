//! Rules and dashboards on the real stack, under a real Prometheus: what they ask for is there.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use holdfast::metrics::Descriptors;
use holdfast_tests::kit::kafka::Exporter;
use holdfast_tests::kit::process::lock;
use holdfast_tests::kit::prometheus::RuleTimes;
use holdfast_tests::kit::server::Server;
use holdfast_tests::kit::{Kit, PostgresExporter, Prometheus, fetch, until};
use holdfast_tests::monitoring::{questions, rules, selectors};
use sqlx::AssertSqlSafe;
use tokio::task::spawn_blocking;

use crate::checkout::Shop;
use crate::support::DEADLINE;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![every_series_that_rules_and_dashboards_ask_for_is_there];

fn every_series_that_rules_and_dashboards_ask_for_is_there(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let stack = &kit.stack;
        let (jar, port) = (
            spawn_blocking(fetch::jmx_exporter).await??,
            stack.ports.get("kafka-exporter")?,
        );
        *lock(&stack.kafka.exporter) = Some(Exporter { jar, port });
        stack.kafka.restart().await?;
        *lock(&stack.kafka.exporter) = None;
        let shop = Shop::open(kit, "alerts/series").await?;
        // What has a label of unknown values is there once it was used.
        let tickets = shop.tickets(1).await?;
        shop.buys("order", &tickets[0], 100).await?;

        let exporter = PostgresExporter::start(stack).await?;
        let prometheus = Prometheus::start(stack, &[&shop.worker], RuleTimes::AsShipped).await?;
        let seen = async {
            all_are_there(&prometheus).await?;
            only_known_values(&prometheus).await?;
            every_question_is_answered(kit, &prometheus).await
        };
        let seen = seen.await;
        prometheus.stop().await?;
        exporter.stop().await?;
        seen
    })
}

/// Each selector of each rule and dashboard has a series.
async fn all_are_there(prometheus: &Server<Prometheus>) -> anyhow::Result<()> {
    let mut asked: BTreeMap<String, String> = BTreeMap::new();
    for rule in rules()? {
        let found = selectors(&rule.expression).into_iter();
        asked.extend(found.map(|selector| (selector.to_string(), rule.name.clone())));
    }
    for question in questions()?.into_iter().filter(|question| !question.is_sql) {
        let found = selectors(&question.expression).into_iter();
        asked.extend(found.map(|selector| (selector.to_string(), question.place.clone())));
    }
    ensure!(asked.len() > 80, "{asked:?}");
    until("every series is there", DEADLINE, async || {
        let mut absent = Vec::new();
        for (selector, place) in &asked {
            if prometheus.query(&format!("count({selector})")).await?.is_empty() {
                absent.push(format!("{selector} ({place})"));
            }
        }
        ensure!(absent.is_empty(), "absent: {absent:#?}");
        anyhow::Ok(())
    })
    .await
}

/// No series of the product has a value of a label that its description lacks: an alert on it would miss its first increase.
async fn only_known_values(prometheus: &Server<Prometheus>) -> anyhow::Result<()> {
    let described = Descriptors::default();
    for metric in described.all() {
        let ending = if metric.is_histogram() { "_count" } else { "" };
        let series = prometheus.query(&format!("{}{ending}", metric.name)).await?;
        ensure!(!series.is_empty(), "{} has no series", metric.name);
        for label in metric.labels.iter().filter(|label| !label.values.is_empty()) {
            let values = series.iter().filter_map(|series| series["metric"][label.name].as_str());
            let unknown: BTreeSet<_> = values.filter(|value| !label.values.contains(value)).collect();
            ensure!(unknown.is_empty(), "{} has {} {unknown:?}", metric.name, label.name);
        }
    }
    Ok(())
}

/// Each question of each dashboard is understood, and those in SQL by the database.
async fn every_question_is_answered(kit: &Kit, prometheus: &Server<Prometheus>) -> anyhow::Result<()> {
    let pool = kit.stack.postgres.connect().await?;
    for question in questions()? {
        if question.is_sql {
            let sql = question.expression.replace("${show:sqlstring}", "'proofs'");
            let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&pool).await?;
            ensure!(!rows.is_empty(), "{} shows nothing", question.place);
        } else {
            let expression = question.expression.replace("$__rate_interval", "1m");
            prometheus
                .query(&expression)
                .await
                .with_context(|| question.place.clone())?;
        }
    }
    pool.close().await;
    Ok(())
}
