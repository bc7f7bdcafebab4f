//! Records are read again on purpose: what would become of them is said first, nothing takes effect a second time, nothing is left out.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_schemas::{UserOutcome, topics};
use holdfast_tests::kit::kafka::Sent;
use holdfast_tests::kit::{Holdfast, Kit, until};
use holdfast_tests::load::{now, timestamp};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::admin::{BY, parsed, refused, settled};
use crate::engine::one_of_each;
use crate::gate::ends;
use crate::support::{DEADLINE, SHOP, clean, letters, listed, pay, requested, send, told, told_of, verdicts};
use crate::users::{added, has_credits, registered};
use crate::workers::Workers;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    the_gates_read_again_and_nothing_takes_effect_twice,
    the_engine_reads_again_by_a_new_subscription_and_nothing_takes_effect_twice,
    what_would_become_of_an_event_follows_from_its_record_its_age_and_its_quarantine,
];

/// The gates' group.
const GROUP: &str = "holdfast.gate";

fn the_gates_read_again_and_nothing_takes_effect_twice(kit: &Kit) -> anyhow::Result<()> {
    const PREFIX: &str = "reprocess/gate/";
    kit.block_on(async {
        let mut workers = Workers::start(kit).await?;
        let since = timestamp(now());
        let begin = ends(&kit.stack.kafka, topics::RESERVATIONS)?;
        let events: Vec<_> = (0..3).flat_map(|number| wanted(&format!("{PREFIX}{number}"))).collect();
        let places = send(kit, &events).await?;
        let outcomes = told(kit, PREFIX, events.len()).await?;
        let refusals = verdicts(&outcomes).iter().filter(|verdict| *verdict == "held").count();
        ensure!(
            refusals == 6,
            "each ticket is held, and refused to another: {outcomes:?}"
        );
        send(kit, &events[..1]).await?;
        let bad = Sent {
            key: Some(format!("{PREFIX}bad").into_bytes()),
            value: Some(b"no event".to_vec()),
            ..Sent::default()
        };
        let bad = kit.stack.kafka.send(topics::RESERVATIONS, &[bad]).await?;
        letters(kit, &bad).await?;
        repeated(&workers.serve, 1).await?;

        let from = ["reprocess", "gate", "--topic", topics::RESERVATIONS, "--from", &since];
        refused(kit, &[&from[..], BY].concat(), "gates run: stop every").await?;
        let planned = parsed(kit, &[&from[..], &["--dry-run", "--json"]].concat()).await?;
        ensure!(
            planned["members"].as_array().is_some_and(|members| members.len() == 1),
            "{planned}"
        );
        workers.gate.stop().await?;

        // One record was passed over, as by a hand that moved the group, and one is not read yet.
        let skipped = send(kit, &[listed("reprocess/skipped", &format!("{PREFIX}skipped"))]).await?;
        let (partition, offset) = *skipped.first().context("not sent")?;
        until("the gate that has stopped has left its group", DEADLINE, async || {
            commit(kit, topics::RESERVATIONS, partition, offset + 1)
        })
        .await?;
        send(kit, &[requested("reprocess/late", &format!("{PREFIX}0"), "cid")]).await?;
        let planned = parsed(kit, &[&from[..], &["--dry-run", "--json"]].concat()).await?;
        let expected = json!({
            "records": 12, "repeats": 10, "new": 1, "too_old": 0, "parked": 0, "undecidable": 1
        });
        ensure!(
            planned["total"] == expected
                && planned["reasons"] == json!({ "undecodable": 1 })
                && planned["done"] == false,
            "{planned:#}"
        );
        ensure!(unread(&planned) == 1 && planned["group"] == GROUP, "{planned:#}");
        for partition in planned["partitions"].as_array().into_iter().flatten() {
            let number = partition["partition"]
                .as_i64()
                .and_then(|number| i32::try_from(number).ok());
            let begun = number.and_then(|number| begin.get(&number));
            ensure!(partition["from"].as_i64() == begun.copied(), "{partition}: {begin:?}");
        }
        let left = kit.stack.kafka.unread(GROUP, topics::RESERVATIONS).await?;
        ensure!(left == 1, "a dry run has moved the group: {left} are unread");
        let end = ends(&kit.stack.kafka, topics::RESERVATIONS)?[&partition];
        for (wrong, said) in [
            (format!("{partition}/{}", end + 1), "lies beyond"),
            ("999/0".to_owned(), "has no partition 999"),
            (format!("{partition}/{offset},{partition}/0"), "is named twice"),
        ] {
            let to = ["reprocess", "gate", "--topic", topics::RESERVATIONS, "--offset", &wrong];
            refused(kit, &[&to[..], BY].concat(), said).await?;
        }

        let done = parsed(kit, &[&from[..], &["--json"], BY].concat()).await?;
        ensure!(done["done"] == true && done["total"] == expected, "{done:#}");
        let log = parsed(kit, &["log", "--by", "proofs", "--on", topics::RESERVATIONS, "--json"]).await?;
        let details = log["acts"][0]["details"].as_str().unwrap_or_default();
        ensure!(
            log["acts"][0]["command"] == "reprocess gate" && details.contains("10 repeats, 1 new"),
            "{log:#}"
        );
        workers.gate = kit.stack.holdfast("gate", "gate").start().await?;
        repeated(&workers.serve, 11).await?;
        let first = told(kit, PREFIX, events.len() + 2).await?;
        clean(kit).await?;
        workers.gate.stop().await?;

        // From an offset of one partition: only that one is read again, to its end.
        let (partition, offset) = *places.first().context("not sent")?;
        let end = ends(&kit.stack.kafka, topics::RESERVATIONS)?[&partition];
        let place = format!("{partition}/{offset}");
        let to = ["reprocess", "gate", "--topic", topics::RESERVATIONS, "--offset", &place];
        let planned = parsed(kit, &[&to[..], &["--dry-run", "--json"]].concat()).await?;
        ensure!(
            planned["total"]["records"] == end - offset && planned["total"]["new"] == 0,
            "{planned:#}"
        );
        let again = planned["total"]["repeats"].as_u64().context("no count")?;
        let said = settled(kit, &to).await?;
        ensure!(
            said.contains(&format!("{again} repeats, 0 new")) && said.contains("done: "),
            "{said}"
        );
        workers.gate = kit.stack.holdfast("gate", "gate").start().await?;
        repeated(&workers.serve, 11 + again).await?;
        ensure!(told(kit, PREFIX, first.len()).await? == first);
        clean(kit).await?;
        workers.stop().await
    })
}

fn the_engine_reads_again_by_a_new_subscription_and_nothing_takes_effect_twice(kit: &Kit) -> anyhow::Result<()> {
    const PREFIX: &str = "reprocess/engine/";
    const USER: &str = "reprocess/engine/ann";
    kit.block_on(async {
        let mut workers = Workers::start(kit).await?;
        let since = timestamp(now());
        let events: Vec<_> = (0..3).flat_map(|number| wanted(&format!("{PREFIX}{number}"))).collect();
        let (decided, waiting) = events.split_at(6);
        send(kit, decided).await?;
        pay(
            kit,
            &[registered("reprocess/ann/1", USER), added("reprocess/ann/2", USER, 30)],
        )
        .await?;
        told(kit, PREFIX, decided.len()).await?;
        told_of::<UserOutcome>(kit, USER, 2).await?;
        // The engine takes the others, and cannot have them decided: nobody serves.
        workers.serve.stop().await?;
        send(kit, waiting).await?;
        let planned = foretold(
            kit,
            &["engine", "--topic", topics::RESERVATIONS, "--from", &since],
            json!({ "repeats": 6, "new": 3 }),
        )
        .await?;
        foretold(
            kit,
            &["engine", "--topic", topics::PAYMENTS, "--from", &since],
            json!({ "repeats": 2, "new": 0 }),
        )
        .await?;
        let forward = format!("{}/999999999", planned["partitions"][0]["partition"]);
        let to = [
            "reprocess",
            "engine",
            "--topic",
            topics::RESERVATIONS,
            "--offset",
            &forward,
        ];
        refused(kit, &[&to[..], BY].concat(), "lies beyond").await?;
        let direct = [
            "reprocess",
            "engine",
            "--direct",
            "--topic",
            topics::RESERVATIONS,
            "--from",
            &since,
        ];
        refused(
            kit,
            &[&direct[..], BY].concat(),
            "Restate has 0 subscriptions of service://Ticket/apply",
        )
        .await?;

        for (topic, group) in [
            (topics::RESERVATIONS, "holdfast.ticket."),
            (topics::PAYMENTS, "holdfast.user."),
        ] {
            let from = ["reprocess", "engine", "--topic", topic, "--from", &since, "--json"];
            let done = parsed(kit, &[&from[..], BY].concat()).await?;
            let begun = done["new_group"].as_str().unwrap_or_default();
            ensure!(done["done"] == true && begun.starts_with(group), "{done:#}");
            ensure!(
                done["group"] != begun && done["topic"] == format!("{topic}.admitted"),
                "{done:#}"
            );
        }
        one_of_each(kit).await?;
        workers.serve = kit.stack.holdfast("serve", "serve").start().await?;
        // What was decided, of both topics, and each of the others when it comes the second time.
        repeated(&workers.serve, 6 + 2 + 3).await?;
        told(kit, PREFIX, events.len()).await?;
        told_of::<UserOutcome>(kit, USER, 2).await?;
        has_credits(kit, USER, 30).await?;
        send(kit, &[listed("reprocess/after", &format!("{PREFIX}after"))]).await?;
        told(kit, PREFIX, events.len() + 1).await?;
        clean(kit).await?;
        let (status, said) = crate::operate::register(kit, &[]).await?;
        ensure!(
            status == Some(0) && said.matches("as wanted  subscription of").count() == 2,
            "{said}"
        );
        workers.stop().await
    })
}

fn what_would_become_of_an_event_follows_from_its_record_its_age_and_its_quarantine(kit: &Kit) -> anyhow::Result<()> {
    const OLD: &str = "reprocess/old";
    kit.block_on(async {
        let workers = Workers::start(kit).await?;
        let since = timestamp(now());
        let mut old = listed("reprocess/old/1", OLD);
        old["time"] = json!(timestamp(now() - Duration::from_secs(2 * 86_400)));
        send(kit, &[old, listed("reprocess/young/1", "reprocess/young")]).await?;
        told(kit, OLD, 1).await?;
        told(kit, "reprocess/young", 1).await?;
        let gate = ["gate", "--topic", topics::RESERVATIONS, "--from", &since];
        let engine = ["engine", "--topic", topics::RESERVATIONS, "--from", &since];
        let day = ["--idempotency-retention", "1d"];
        let (gate_day, engine_day) = ([&gate[..], &day].concat(), [&engine[..], &day].concat());
        foretold(kit, &gate, json!({ "repeats": 2, "too_old": 0 })).await?;
        foretold(kit, &engine, json!({ "repeats": 2, "too_old": 0 })).await?;
        // A gate looks at the age of an event, and cannot know that it has its answer; serve looks for that first.
        foretold(kit, &gate_day, json!({ "repeats": 1, "too_old": 1, "new": 0 })).await?;
        foretold(kit, &engine_day, json!({ "repeats": 2, "too_old": 0, "new": 0 })).await?;

        let pool = kit.stack.postgres.connect().await?;
        rename(&pool, "reprocess/old/1", "reprocess/old/swept").await?;
        foretold(kit, &gate_day, json!({ "repeats": 1, "too_old": 1, "new": 0 })).await?;
        foretold(kit, &engine_day, json!({ "repeats": 1, "too_old": 1, "new": 0 })).await?;
        // Younger than the retention, so that nobody has swept its answer: it never had one.
        foretold(kit, &engine, json!({ "repeats": 1, "too_old": 0, "new": 1 })).await?;
        let flag = "insert into quarantined_keys (topic, key, cause, kind, error, since)
                    values ('reservations', $1, 'panic', 'panic at rules.rs:7', '', now() - interval '1 hour')";
        sqlx::query(flag).bind(OLD).execute(&pool).await?;
        foretold(kit, &gate, json!({ "repeats": 1, "parked": 1, "new": 0 })).await?;
        foretold(kit, &engine, json!({ "repeats": 1, "parked": 1, "new": 0 })).await?;
        let unflag = sqlx::query("delete from quarantined_keys where key = $1").bind(OLD);
        unflag.execute(&pool).await?;
        rename(&pool, "reprocess/old/swept", "reprocess/old/1").await?;
        pool.close().await;
        clean(kit).await?;
        workers.stop().await
    })
}

/// A ticket that is listed, held for one user and refused to another.
fn wanted(ticket: &str) -> [Value; 3] {
    [
        listed(&format!("{ticket}/1"), ticket),
        requested(&format!("{ticket}/2"), ticket, "ann"),
        requested(&format!("{ticket}/3"), ticket, "bob"),
    ]
}

/// What a dry run of this says, once it says these counts: whoever reads commits a while after.
pub(crate) async fn foretold(kit: &Kit, command: &[&str], counts: Value) -> anyhow::Result<Value> {
    let dry_run = [&["reprocess"][..], command, &["--dry-run", "--json"]].concat();
    until(&format!("{command:?} says {counts}"), DEADLINE, async || {
        let planned = parsed(kit, &dry_run).await?;
        let said = |(name, count): (&String, &Value)| planned["total"][name] == *count;
        let all = counts.as_object().context("no counts")?;
        ensure!(all.iter().all(said), "{planned:#}");
        anyhow::Ok(planned)
    })
    .await
}

/// Waits until this serve has answered so many events as repeats.
async fn repeated(serve: &Holdfast, count: u64) -> anyhow::Result<()> {
    until(&format!("{count} repeats"), DEADLINE, async || {
        let repeats = serve.metric(r#"holdfast_events_total{answer="repeat"}"#).await?;
        ensure!(repeats >= Some(count as f64), "{repeats:?}");
        anyhow::Ok(())
    })
    .await
}

/// The records that follow what would be read again.
fn unread(planned: &Value) -> i64 {
    let partitions = planned["partitions"].as_array().into_iter().flatten();
    partitions.filter_map(|partition| partition["unread"].as_i64()).sum()
}

/// Moves the gates' group, as Kafka's own tools do.
fn commit(kit: &Kit, topic: &str, partition: i32, offset: i64) -> anyhow::Result<()> {
    let consumer: BaseConsumer = kit.stack.kafka.config().set("group.id", GROUP).create()?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    Ok(consumer.commit(&list, CommitMode::Sync)?)
}

/// Has the answer of an event stand under another id.
async fn rename(pool: &PgPool, from: &str, to: &str) -> anyhow::Result<()> {
    let rename = sqlx::query("update idempotency_records set id = $3 where source = $1 and id = $2");
    let renamed = rename.bind(SHOP).bind(from).bind(to).execute(pool).await?;
    ensure!(renamed.rows_affected() == 1, "{from} has no record");
    Ok(())
}
