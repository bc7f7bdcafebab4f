//! Rules and dashboards on the real stack, under a real Prometheus: what they ask for is there, and alerts fire and go out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast::metrics::Descriptors;
use holdfast_tests::kit::kafka::Exporter;
use holdfast_tests::kit::process::lock;
use holdfast_tests::kit::provider::{Call, Fault};
use holdfast_tests::kit::server::Server;
use holdfast_tests::kit::{Kit, PostgresExporter, Prometheus, fetch, until};
use holdfast_tests::monitoring::{questions, rules, selectors};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};
use tokio::task::spawn_blocking;

use crate::admin::done;
use crate::checkout::{CARD, Shop, check_out, ends, fill};
use crate::support::DEADLINE;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    every_series_that_rules_and_dashboards_ask_for_is_there,
    alerts_fire_with_a_fault_and_go_out_with_it,
];

/// Longer than the longest `for` of the alerts here, the window of a scrape and the start of an engine together.
const FIRES_WITHIN: Duration = Duration::from_secs(150);

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
        let prometheus = Prometheus::start(stack, &shop.worker).await?;
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

fn alerts_fire_with_a_fault_and_go_out_with_it(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let settings = [("HOLDFAST_STUCK_AFTER", "1s"), ("HOLDFAST_RETRY_PAUSE", "1s")];
        let shop = Shop::open_with(kit, "alerts/faults", &settings).await?;
        let prometheus = Prometheus::start(&kit.stack, &shop.worker).await?;
        let seen = fire_and_go_out(kit, &shop, &prometheus).await;
        prometheus.stop().await?;
        seen
    })
}

async fn fire_and_go_out(kit: &Kit, shop: &Shop<'_>, prometheus: &Server<Prometheus>) -> anyhow::Result<()> {
    let alerts = ["CheckoutsAreStuck", "OutcomesAreRefused", "TheEngineIsGone"].map(str::to_owned);
    let ours = async || {
        let firing = prometheus.firing().await?;
        anyhow::Ok(
            alerts
                .iter()
                .filter(|alert| firing.contains(*alert))
                .cloned()
                .collect::<Vec<_>>(),
        )
    };
    until("the rules are evaluated", DEADLINE, async || {
        let evaluated = prometheus.query("holdfast:checkouts_late:ratio5m").await?;
        ensure!(!evaluated.is_empty(), "not yet");
        anyhow::Ok(())
    })
    .await?;
    let firing = ours().await?;
    ensure!(firing.is_empty(), "{firing:?} fire without a fault");

    // A buyer whose payment's fate nobody knows, an outcome that Kafka refuses, and no engine.
    let order = shop.id("order");
    let tickets = shop.tickets(1).await?;
    fill(kit, &shop.user, &tickets, Some(3_600)).await?;
    shop.simulator
        .fail(Call::Capture, Some(&order), Fault::AnswerLost, 1_000);
    shop.simulator
        .fail(Call::Retrieve, Some(&order), Fault::Unavailable, 1_000);
    let body: Value = json!({ "checkout": order, "tickets": tickets, "payment_method": CARD });
    check_out(kit, &shop.user, body).await?;
    let pool = kit.stack.postgres.connect().await?;
    let refused = "insert into outbox (topic, key, message, headers, value, written_at, refused)
        values ('nowhere', 'alerts', gen_random_uuid(), '{}', '', now(), 'too large') returning id";
    let row: i64 = sqlx::query(refused).fetch_one(&pool).await?.get(0);
    until("the checkout is stuck", DEADLINE, async || {
        let stuck = shop.worker.metric(r#"holdfast_checkouts{state="stuck"}"#).await?;
        ensure!(stuck >= Some(1.0), "{stuck:?}");
        anyhow::Ok(())
    })
    .await?;
    kit.stack.restate.stop().await?;
    until("all fire", FIRES_WITHIN, async || {
        let firing = ours().await?;
        ensure!(firing == alerts, "{firing:?}");
        anyhow::Ok(())
    })
    .await?;

    // Each is mended as its entry in the runbook says.
    kit.stack.restate.start().await?;
    done(kit, &["outbox", "drop", &row.to_string()]).await?;
    shop.simulator.heal();
    until("the checkout is settled", DEADLINE, async || {
        let settle = shop
            .launch("admin")
            .arg("checkout")
            .arg("settle")
            .arg(&order)
            .output()
            .await?;
        ensure!(settle.status.success(), "{}", String::from_utf8_lossy(&settle.stderr));
        anyhow::Ok(())
    })
    .await?;
    ends(kit, &order, "completed").await?;
    until("all go out", FIRES_WITHIN, async || {
        let firing = ours().await?;
        ensure!(firing.is_empty(), "{firing:?}");
        anyhow::Ok(())
    })
    .await?;
    pool.close().await;
    crate::support::clean_by(|| shop.launch("verify")).await.map(drop)
}
