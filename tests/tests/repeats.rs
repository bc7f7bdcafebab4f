//! Repeats: an event takes effect once, however often, in whatever form and by whatever way it is sent again.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use holdfast::store::idempotency::Sweep;
use holdfast_schemas::{
    DeadLetterReason, EventData, OutcomeData, TicketEvent, UserEvent, UserOutcome, decode_delivery, topics,
};
use holdfast_tests::kit::kafka::Sent;
use holdfast_tests::kit::{Holdfast, Kit, until};
use holdfast_tests::load::{now, timestamp};
use serde_json::{Value, json};
use sqlx::Row;
use time::Duration;

use crate::checkout::{ends, sold};
use crate::support::{
    DEADLINE, SHOP, binary, clean, event, letters_about, listed, pay, requested, send, set_topic, structured, told,
    told_of, verdicts,
};
use crate::users::{added, all_balances, has_credits, registered};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    an_id_with_another_content_is_put_aside,
    an_id_on_another_ticket_is_put_aside,
    what_the_provider_says_under_an_id_of_something_else_is_put_aside,
    the_same_content_written_in_another_way_is_a_repeat,
    ten_thousand_copies_take_effect_once,
    an_event_older_than_the_retention_is_never_decided,
    a_repeat_of_an_event_whose_time_lay_ahead_changes_nothing_once_records_are_swept,
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

        let outcomes = told_of::<UserOutcome>(kit, user, 2).await?;
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
    // Each of these takes a transaction of its own.
    const GIFTS: usize = 300;
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "repeats").start().await?;
        let ticket = "repeats/copies";
        let mut events = vec![listed("repeats/copies/list", ticket)];
        events.resize(1 + COPIES, requested("repeats/copies/hold", ticket, "ann"));
        events.push(requested("repeats/copies/after", ticket, "bob"));
        let mut about_user = vec![registered("repeats/copies/register", ticket)];
        let named = json!({ "to": { "name": "Ann" } });
        about_user.resize(
            1 + COPIES,
            event("repeats/copies/name", ticket, "profile.changed", named),
        );
        about_user.resize(1 + COPIES + GIFTS, added("repeats/copies/gift", ticket, 5));
        // They wait together when the gate comes back.
        worker.pause()?;
        tokio::try_join!(send(kit, &events), pay(kit, &about_user))?;
        worker.resume()?;

        let outcomes = told(kit, ticket, 3).await?;
        ensure!(verdicts(&outcomes) == ["listed", "held", "held"], "{outcomes:?}");
        let outcomes = told_of::<UserOutcome>(kit, ticket, 3).await?;
        ensure!(
            verdicts(&outcomes) == ["registered", "changed", "changed"],
            "{outcomes:?}"
        );
        has_credits(kit, ticket, 5).await?;
        let repeats = worker.metric(r#"holdfast_events_total{answer="repeat"}"#).await?;
        ensure!(repeats >= Some(2.0 * (COPIES as f64 - 1.0)), "{repeats:?} repeats");
        let windows = worker.metric("holdfast_gate_window_records_count").await?;
        let small = worker
            .metric(r#"holdfast_gate_window_records_bucket{le="1000"}"#)
            .await?;
        ensure!(windows > small, "{windows:?} windows, {small:?} small");
        let report = clean(kit).await?;
        ensure!(report["repeats"].as_u64() >= Some(2 * (COPIES as u64 - 1)), "{report}");
        worker.stop().await
    })
}

fn an_event_older_than_the_retention_is_never_decided(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "repeats").start().await?;
        let key = "repeats/old";
        let days_ago = |days| now() - Duration::days(days);
        let good: [Good; 2] = [listed, registered];
        for (topic, good) in [topics::RESERVATIONS, topics::PAYMENTS].into_iter().zip(good) {
            let aged = |id: &str, days| {
                let mut event = good(id, key);
                event["time"] = json!(timestamp(days_ago(days)));
                structured(&event)
            };
            let id = |what: &str| format!("repeats/old/{what}/{topic}");
            // A record that a mirror, or a broker after an outage, brings late.
            let late = Sent {
                timestamp: Some((days_ago(8).unix_timestamp_nanos() / 1_000_000) as i64),
                ..structured(&good(&id("by-the-brokers"), key))
            };
            set_topic(kit, topic, "message.timestamp.type", "CreateTime").await?;
            let by_the_brokers = kit.stack.kafka.send(topic, &[late]).await;
            set_topic(kit, topic, "message.timestamp.type", "LogAppendTime").await?;
            let others = [aged(&id("by-its-time"), 8), aged(&id("young"), 6)];
            let others = kit.stack.kafka.send(topic, &others).await?;
            for letter in letters_about(kit, topic, &[by_the_brokers?[0], others[0]])
                .await?
                .values()
            {
                ensure!(letter.says.reason == DeadLetterReason::TooOld, "{letter:?}");
            }
        }
        let listed = &told(kit, key, 1).await?[0].causation_id;
        let registered = &told_of::<UserOutcome>(kit, key, 1).await?[0].causation_id;
        for cause in [listed, registered] {
            ensure!(cause.as_str().starts_with("repeats/old/young/"), "{cause}");
        }
        clean(kit).await?;
        worker.stop().await
    })
}

fn a_repeat_of_an_event_whose_time_lay_ahead_changes_nothing_once_records_are_swept(kit: &Kit) -> anyhow::Result<()> {
    const RETENTION: Duration = Duration::days(7);
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "repeats").start().await?;
        let key = "repeats/ahead";
        // It came when records that are due now were written, from a clock that was half an hour fast.
        let came = now() - RETENTION + Duration::minutes(5);
        let mut hold = requested("repeats/ahead/hold", key, "ann");
        hold["time"] = json!(timestamp(came + Duration::minutes(30)));
        let early = Sent {
            timestamp: Some((came.unix_timestamp_nanos() / 1_000_000) as i64),
            ..structured(&hold)
        };
        send(kit, &[listed("repeats/ahead/list", key)]).await?;
        told(kit, key, 1).await?;
        set_topic(kit, topics::RESERVATIONS, "message.timestamp.type", "CreateTime").await?;
        let first = kit.stack.kafka.send(topics::RESERVATIONS, &[early]).await;
        set_topic(kit, topics::RESERVATIONS, "message.timestamp.type", "LogAppendTime").await?;
        first?;
        told(kit, key, 2).await?;

        // What the sweep does ten minutes later.
        let pool = kit.stack.postgres.connect().await?;
        let later = (RETENTION - Duration::minutes(10)).unsigned_abs();
        sqlx::query("update idempotency_records set written_at = $1 where id = 'repeats/ahead/hold'")
            .bind(came)
            .execute(&pool)
            .await?;
        Sweep::default().page(&pool, later, None).await?;
        send(kit, &[hold, requested("repeats/ahead/after", key, "bob")]).await?;

        let outcomes = told(kit, key, 3).await?;
        ensure!(verdicts(&outcomes) == ["listed", "held", "held"], "{outcomes:?}");
        let last = outcomes.last().context("no outcome")?;
        ensure!(last.causation_id.as_str() == "repeats/ahead/after", "{last:?}");
        clean(kit).await?;
        // When it was written in truth: else a sweep within the hour would remove it, and its repeat were not accounted for.
        sqlx::query("update idempotency_records set written_at = now() where id = 'repeats/ahead/hold'")
            .execute(&pool)
            .await?;
        pool.close().await;
        worker.stop().await
    })
}

/// An event with this id about this key.
type Good = fn(&str, &str) -> Value;

/// Events of both topics, up to a checkout that credits paid.
async fn are_sold(kit: &Kit, name: &str) -> anyhow::Result<()> {
    const PRICE: i64 = 4_500;
    let id = |what: &str| format!("{name}/{what}");
    let hold = requested(&id("hold"), name, name);
    send(kit, &[listed(&id("list"), name), hold]).await?;
    told(kit, name, 2).await?;
    let order = json!({ "checkout": name, "tickets": [name], "credits": PRICE });
    let buy = event(&id("buy"), name, "checkout.requested", order);
    let user = [registered(&id("register"), name), added(&id("credits"), name, PRICE)];
    pay(kit, &[&user[..], &[buy]].concat()).await?;
    ends(kit, name, "completed").await?;
    sold(kit, &[name.to_owned()]).await
}

fn a_replay_by_another_gate_group_changes_nothing(kit: &Kit) -> anyhow::Result<()> {
    const GROUP: [&str; 2] = ["--gate-group", "repeats.replay"];
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "repeats").start().await?;
        are_sold(kit, "repeats/replay").await?;
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
        let kafka = &kit.stack.kafka;
        let records = kafka.read(topics::RESERVATIONS).await?.len() + kafka.read(topics::PAYMENTS).await?.len();
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
        are_sold(kit, "repeats/second").await?;
        clean(kit).await?;
        let (before, answers) = (World::look(kit).await?, answers(&worker).await?);

        let subscriptions = format!("{}/subscriptions", kit.stack.restate.admin());
        let http = reqwest::Client::new();
        let events = admitted::<TicketEvent>(kit).await? + admitted::<UserEvent>(kit).await?;
        let mut seconds = Vec::new();
        for (topic, object) in [
            (topics::RESERVATIONS_ADMITTED, "Ticket"),
            (topics::PAYMENTS_ADMITTED, "User"),
        ] {
            let second = json!({
                "source": format!("kafka://holdfast/{topic}"),
                "sink": format!("service://{object}/apply"),
                "options": { "group.id": format!("repeats.second.{object}"), "auto.offset.reset": "earliest" },
            });
            let created = http
                .post(&subscriptions)
                .json(&second)
                .send()
                .await?
                .error_for_status()?;
            let created: Value = created.json().await?;
            seconds.push(
                created["id"]
                    .as_str()
                    .context("a subscription without an id")?
                    .to_owned(),
            );
        }
        let answered = has_answered(&worker, answers + events as f64).await;
        for id in seconds {
            let gone = http.delete(format!("{subscriptions}/{id}")).send().await?;
            gone.error_for_status()?;
        }
        answered?;

        is_unchanged(kit, &before).await?;
        worker.stop().await
    })
}

/// Events that the gate has admitted.
async fn admitted<A: EventData>(kit: &Kit) -> anyhow::Result<usize> {
    let records = kit.stack.kafka.read(A::ADMITTED).await?;
    let events = records.iter().map(|record| {
        let value = record.value.as_deref().context("an admitted record without a value")?;
        anyhow::Ok(decode_delivery::<A>(value)?.len())
    });
    events.sum()
}

/// Pieces of work that the worker has answered.
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

/// All state that an event can change.
#[derive(Debug, PartialEq, Eq)]
struct World {
    /// The version of each row, and how many credits each user has.
    rows: BTreeMap<String, i64>,
    /// Number of rows or records of each kind.
    counts: BTreeMap<&'static str, i64>,
}

impl World {
    async fn look(kit: &Kit) -> anyhow::Result<World> {
        const COUNTED: [&str; 10] = [
            "ticket_change_log",
            "user_change_log",
            "idempotency_records",
            "two_phase_attempts",
            "checkout_seats",
            "purchases",
            "ledger",
            "refunds",
            "disputes",
            "mails",
        ];
        let pool = kit.stack.postgres.connect().await?;
        let rows = sqlx::query(
            "select 'ticket ' || ticket, version from tickets union all select 'user ' || user_id, version from users \
             union all select 'checkout ' || checkout, version from checkouts",
        );
        let rows = rows.fetch_all(&pool).await?;
        let mut rows: BTreeMap<_, _> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        rows.extend(all_balances(kit, "").await?);
        let mut counts = BTreeMap::new();
        for table in COUNTED {
            let count = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from {table}")));
            counts.insert(table, count.fetch_one(&pool).await?);
        }
        pool.close().await;
        for topic in [
            topics::RESERVATIONS_OUTCOMES,
            topics::PAYMENTS_OUTCOMES,
            topics::LEDGER_ENTRIES,
        ] {
            counts.insert(topic, kit.stack.kafka.read(topic).await?.len() as i64);
        }
        Ok(World { rows, counts })
    }
}

async fn is_unchanged(kit: &Kit, before: &World) -> anyhow::Result<()> {
    clean(kit).await?;
    let now = World::look(kit).await?;
    ensure!(now.counts == before.counts, "{:?} was {:?}", now.counts, before.counts);
    let changed: Vec<_> = now
        .rows
        .iter()
        .filter(|(row, value)| before.rows.get(*row) != Some(value))
        .collect();
    ensure!(now == *before, "{changed:?}");
    Ok(())
}
