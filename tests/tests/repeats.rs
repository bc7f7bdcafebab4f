//! What comes twice: however often, in whatever form and by whatever way an event comes again, it takes effect once.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use holdfast_schemas::{DeadLetterReason, Reservation, Told, UserTold, decode_delivery, topics};
use holdfast_tests::kit::kafka::Sent;
use holdfast_tests::kit::{Holdfast, Kit, until};
use holdfast_tests::load::{now, timestamp};
use serde_json::{Value, json};
use sqlx::Row;
use time::Duration;

use crate::support::{
    DEADLINE, SHOP, binary, clean, event, letters, letters_about, listed, pay, requested, send, set_topic, structured,
    told, told_of, verdicts,
};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    an_id_with_another_content_is_put_aside,
    an_id_on_another_ticket_is_put_aside,
    what_the_provider_says_under_an_id_of_something_else_is_put_aside,
    the_same_content_written_in_another_way_is_a_repeat,
    ten_thousand_copies_take_effect_once,
    an_event_older_than_the_retention_is_never_decided,
    a_replay_by_another_gate_group_changes_nothing,
    a_second_subscription_of_the_admitted_topic_changes_nothing,
];

fn an_id_with_another_content_is_put_aside(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "repeats").start().await?;
        let ticket = "repeats/content";
        let first = requested("repeats/content/hold", ticket, "ann");
        let mut other_user = first.clone();
        other_user["data"]["user"] = json!("bob");
        let mut other_type = first.clone();
        other_type["type"] = json!("holdfast.ticket.withdrawn.v1");
        other_type["data"] = json!({});
        let after = requested("repeats/content/after", ticket, "bob");
        let list = listed("repeats/content/list", ticket);
        let events = [list, first, other_user, other_type, after];
        let places = send(kit, &events).await?;

        let outcomes = told(kit, ticket, 3).await?;
        ensure!(verdicts(&outcomes) == ["listed", "held", "held"], "{outcomes:?}");
        are_reused(kit, topics::RESERVATIONS, &places[2..4]).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

fn an_id_on_another_ticket_is_put_aside(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "repeats").start().await?;
        let (here, there) = ("repeats/ticket/here", "repeats/ticket/there");
        send(
            kit,
            &[listed("repeats/ticket/1", here), listed("repeats/ticket/2", there)],
        )
        .await?;
        told(kit, "repeats/ticket/", 2).await?;
        send(kit, &[requested("repeats/ticket/3", here, "ann")]).await?;
        told(kit, here, 2).await?;
        let events = [
            requested("repeats/ticket/3", there, "ann"),
            requested("repeats/ticket/4", there, "bob"),
        ];
        let places = send(kit, &events).await?;

        // Only the last of them takes effect there: bob, not ann, has the hold.
        let outcomes = told(kit, there, 2).await?;
        ensure!(outcomes[1].data.data()["user"] == "bob", "{outcomes:?}");
        are_reused(kit, topics::RESERVATIONS, &places[..1]).await?;
        told(kit, here, 2).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

fn what_the_provider_says_under_an_id_of_something_else_is_put_aside(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "repeats").start().await?;
        let (ticket, user) = ("repeats/payment/ticket", "repeats/payment");
        send(kit, &[listed("repeats/payment/list", ticket)]).await?;
        told(kit, ticket, 1).await?;
        let failed = |id: &str, code: &str| {
            let data = json!({ "checkout": "repeats/none", "payment": "pi_1", "code": code });
            event(id, user, "payment.failed", data)
        };
        let first = failed("repeats/payment/1", "lost_card");
        let mut other_type = first.clone();
        other_type["type"] = json!("holdfast.payment.captured.v1");
        other_type["data"] =
            json!({ "checkout": "repeats/none", "payment": "pi_1", "amount": { "amount": 1, "currency": "EUR" } });
        let events = [
            first.clone(),
            first,
            failed("repeats/payment/1", "stolen_card"),
            other_type,
            failed("repeats/payment/list", "lost_card"),
            failed("repeats/payment/2", "lost_card"),
        ];
        let places = pay(kit, &events).await?;

        let outcomes = told_of::<UserTold>(kit, user, 2).await?;
        ensure!(verdicts(&outcomes) == ["unknown_user", "unknown_user"], "{outcomes:?}");
        are_reused(kit, topics::PAYMENTS, &places[2..5]).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

async fn are_reused(kit: &Kit, topic: &str, places: &[(i32, i64)]) -> anyhow::Result<()> {
    let letters = letters_about(kit, topic, places).await?;
    ensure!(letters.len() == places.len(), "{letters:?}");
    for letter in letters.values() {
        ensure!(letter.says.reason == DeadLetterReason::IdReused, "{letter:?}");
    }
    Ok(())
}

fn the_same_content_written_in_another_way_is_a_repeat(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "repeats").start().await?;
        let ticket = "repeats/mode";
        let list = listed("repeats/mode/list", ticket);
        let hold = requested("repeats/mode/hold", ticket, "ann");
        let respelt = format!(
            r#" {{ "data":{{"price":{{"currency":"\u0045UR","amount":4.5e3}},"seat":null,"show":"proofs"}},"source":"{SHOP}",
            "time":{},"subject":"{ticket}","id":"repeats/mode/list","specversion":"1.0","traceparent":"none",
            "type":"holdfast.ticket.listed.v1" }} "#,
            list["time"]
        );
        let records = [
            structured(&list),
            binary(&list),
            Sent {
                value: Some(respelt.into_bytes()),
                headers: Vec::new(),
                ..structured(&list)
            },
            binary(&hold),
            structured(&hold),
            structured(&requested("repeats/mode/after", ticket, "bob")),
        ];
        kit.stack.kafka.send(topics::RESERVATIONS, &records).await?;

        let outcomes = told(kit, ticket, 3).await?;
        ensure!(verdicts(&outcomes) == ["listed", "held", "held"], "{outcomes:?}");
        clean(kit).await?;
        worker.stop().await
    })
}

fn ten_thousand_copies_take_effect_once(kit: &Kit) -> anyhow::Result<()> {
    const COPIES: usize = 10_000;
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "repeats").start().await?;
        let ticket = "repeats/copies";
        let mut events = vec![listed("repeats/copies/list", ticket)];
        events.resize(1 + COPIES, requested("repeats/copies/hold", ticket, "ann"));
        events.push(requested("repeats/copies/after", ticket, "bob"));
        // They wait together when the gate comes back.
        worker.pause()?;
        send(kit, &events).await?;
        worker.resume()?;

        let outcomes = told(kit, ticket, 3).await?;
        ensure!(verdicts(&outcomes) == ["listed", "held", "held"], "{outcomes:?}");
        let repeats = worker.metric(r#"holdfast_events_total{answer="repeat"}"#).await?;
        ensure!(repeats >= Some(COPIES as f64 - 1.0), "{repeats:?} repeats");
        let windows = worker.metric("holdfast_gate_window_records_count").await?;
        let small = worker
            .metric(r#"holdfast_gate_window_records_bucket{le="1000"}"#)
            .await?;
        ensure!(windows > small, "{windows:?} windows, {small:?} small");
        let report = clean(kit).await?;
        ensure!(report["repeats"].as_u64() >= Some(COPIES as u64 - 1), "{report}");
        worker.stop().await
    })
}

fn an_event_older_than_the_retention_is_never_decided(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "repeats").start().await?;
        let (ticket, topic) = ("repeats/old", topics::RESERVATIONS);
        let days_ago = |days| now() - Duration::days(days);
        let mut old = listed("repeats/old/by-its-time", ticket);
        old["time"] = json!(timestamp(days_ago(8)));
        let by_its_time = send(kit, &[old]).await?;
        // What a broker that was away, or a mirror, brings late.
        let late = Sent {
            timestamp: Some((days_ago(8).unix_timestamp_nanos() / 1_000_000) as i64),
            ..structured(&listed("repeats/old/by-the-brokers", ticket))
        };
        set_topic(kit, topic, "message.timestamp.type", "CreateTime").await?;
        let by_the_brokers = kit.stack.kafka.send(topic, &[late]).await;
        set_topic(kit, topic, "message.timestamp.type", "LogAppendTime").await?;
        let places = [by_its_time, by_the_brokers?].concat();
        let mut young = listed("repeats/old/young", ticket);
        young["time"] = json!(timestamp(days_ago(6)));
        send(kit, &[young]).await?;

        let outcomes = told(kit, ticket, 1).await?;
        ensure!(outcomes[0].causation_id.as_str() == "repeats/old/young", "{outcomes:?}");
        for letter in letters(kit, &places).await?.values() {
            ensure!(letter.says.reason == DeadLetterReason::TooOld, "{letter:?}");
        }
        clean(kit).await?;
        worker.stop().await
    })
}

fn a_replay_by_another_gate_group_changes_nothing(kit: &Kit) -> anyhow::Result<()> {
    const GROUP: [&str; 2] = ["--gate-group", "repeats.replay"];
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "repeats").start().await?;
        send(kit, &[listed("repeats/replay", "repeats/replay")]).await?;
        told(kit, "repeats/replay", 1).await?;
        clean(kit).await?;
        let (before, answers) = (World::look(kit).await?, answers(&worker).await?);

        // Its first offsets are the earliest ones.
        let register = kit
            .stack
            .holdfast("register", "repeats-register")
            .arg(GROUP[0])
            .arg(GROUP[1]);
        let registered = register.output().await?;
        ensure!(registered.status.success(), "{registered:?}");
        let gate = kit
            .stack
            .holdfast("gate", "repeats-gate")
            .arg(GROUP[0])
            .arg(GROUP[1])
            .start()
            .await?;
        let records = kit.stack.kafka.read(topics::RESERVATIONS).await?.len();
        let admitted = until("the other gate has read it all", DEADLINE, async || {
            let count = async |result| {
                let count = gate
                    .metric(&format!(r#"holdfast_gate_records_total{{result="{result}"}}"#))
                    .await?;
                anyhow::Ok(count.unwrap_or_default())
            };
            let (admitted, refused) = (count("admitted").await?, count("dead_letter").await?);
            ensure!(
                admitted + refused >= records as f64,
                "{admitted} and {refused} of {records}"
            );
            Ok(admitted)
        })
        .await?;
        ensure!(admitted > 0.0, "nothing was admitted again");
        gate.stop().await?;
        has_answered(&worker, answers + admitted).await?;

        is_unchanged(kit, &before).await?;
        worker.stop().await
    })
}

fn a_second_subscription_of_the_admitted_topic_changes_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "repeats").start().await?;
        send(kit, &[listed("repeats/second", "repeats/second")]).await?;
        told(kit, "repeats/second", 1).await?;
        clean(kit).await?;
        let (before, answers) = (World::look(kit).await?, answers(&worker).await?);

        let admitted = kit.stack.kafka.read(topics::RESERVATIONS_ADMITTED).await?;
        let events = admitted.iter().map(|record| {
            let value = record.value.as_deref().context("an admitted record without a value")?;
            anyhow::Ok(decode_delivery::<Reservation>(value)?.len())
        });
        let events: usize = events.sum::<anyhow::Result<_>>()?;
        let subscriptions = format!("{}/subscriptions", kit.stack.restate.admin());
        let http = reqwest::Client::new();
        let second = json!({
            "source": format!("kafka://holdfast/{}", topics::RESERVATIONS_ADMITTED),
            "sink": "service://Ticket/apply",
            "options": { "group.id": "repeats.second", "auto.offset.reset": "earliest" },
        });
        let created = http
            .post(&subscriptions)
            .json(&second)
            .send()
            .await?
            .error_for_status()?;
        let created: Value = created.json().await?;
        let answered = has_answered(&worker, answers + events as f64).await;
        let id = created["id"].as_str().context("a subscription without an id")?;
        http.delete(format!("{subscriptions}/{id}"))
            .send()
            .await?
            .error_for_status()?;
        answered?;

        is_unchanged(kit, &before).await?;
        worker.stop().await
    })
}

/// How many pieces of work the worker has answered.
async fn answers(worker: &Holdfast) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for answer in ["applied", "refused", "repeat", "dead_letter"] {
        let count = worker
            .metric(&format!(r#"holdfast_events_total{{answer="{answer}"}}"#))
            .await?;
        sum += count.unwrap_or_default();
    }
    Ok(sum)
}

async fn has_answered(worker: &Holdfast, count: f64) -> anyhow::Result<()> {
    until("every delivery is answered", DEADLINE, async || {
        let answers = answers(worker).await?;
        ensure!(answers >= count, "{answers} of {count}");
        Ok(())
    })
    .await
}

/// All that an event can change.
#[derive(Debug, PartialEq, Eq)]
struct World {
    tickets: BTreeMap<String, i64>,
    changes: i64,
    records: i64,
    outcomes: usize,
}

impl World {
    async fn look(kit: &Kit) -> anyhow::Result<World> {
        let pool = kit.stack.postgres.connect().await?;
        let tickets = sqlx::query("select ticket, version from tickets")
            .fetch_all(&pool)
            .await?;
        let count = async |table: &'static str| {
            let count = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from {table}")));
            count.fetch_one(&pool).await
        };
        let (changes, records) = (count("ticket_change_log").await?, count("idempotency_records").await?);
        pool.close().await;
        Ok(World {
            tickets: tickets.iter().map(|row| (row.get(0), row.get(1))).collect(),
            changes,
            records,
            outcomes: kit.stack.kafka.read(topics::RESERVATIONS_OUTCOMES).await?.len(),
        })
    }
}

async fn is_unchanged(kit: &Kit, before: &World) -> anyhow::Result<()> {
    clean(kit).await?;
    let now = World::look(kit).await?;
    ensure!(
        now == *before,
        "{} changes were {}, or tickets or outcomes changed",
        now.changes,
        before.changes
    );
    Ok(())
}
