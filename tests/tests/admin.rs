//! The commands by which operators settle dead letters and refused outbox rows.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_schemas::{UserOutcome, dead_letter, hold_id, topics};
use holdfast_tests::kit::kafka::{ReadRecord, Sent};
use holdfast_tests::kit::{Kit, until};
use holdfast_tests::load::{now, timestamp};
use serde_json::json;
use sqlx::Row;

use crate::gate::create_topics;
use crate::support::{SHOP, event, listed, pay, requested, send, told, told_of};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_dead_letter_is_listed_shown_replayed_and_dropped,
    a_dead_letter_from_serve_is_replayed_as_it_was_sent,
    a_refused_outbox_row_is_listed_retried_and_dropped,
    refused_outbox_rows_are_retried_by_topic_by_reason_or_all,
    a_state_is_accepted_once_nothing_would_be_told_twice_or_never,
    a_ticket_is_shown_as_it_is_and_as_it_was,
    a_user_is_shown_as_they_are_and_as_they_were_without_their_profile,
];

const DEADLINE: Duration = Duration::from_secs(60);

fn a_dead_letter_is_listed_shown_replayed_and_dropped(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "admin").start().await?;
        let poison = Sent {
            key: Some(b"admin-poison".to_vec()),
            value: Some(b"{\"not\": \x1b[31m".to_vec()),
            headers: vec![("mine".to_owned(), b"kept".to_vec())],
            ..Sent::default()
        };
        let place = kit
            .stack
            .kafka
            .send(topics::RESERVATIONS, std::slice::from_ref(&poison))
            .await?;
        let origin = origin(*place.first().context("not sent")?);
        letters(kit, "admin-poison", 1).await?;

        let list = done(kit, &["dead-letters", "list"]).await?;
        let line = list
            .lines()
            .find(|line| line.starts_with(&origin))
            .with_context(|| list.clone())?;
        ensure!(line.contains("undecodable") && line.contains("admin-poison"), "{line}");
        let shown = done(kit, &["dead-letters", "show", &origin]).await?;
        for part in [
            &origin,
            "undecodable",
            "admin-poison",
            "mine: kept",
            r#"{"not": \u{1b}[31m"#,
        ] {
            ensure!(shown.contains(part), "no {part} in {shown}");
        }

        done(kit, &["dead-letters", "replay", &origin]).await?;
        let again = letters(kit, "admin-poison", 2).await?;
        let second = again
            .iter()
            .find(|letter| origin_of(letter) != origin)
            .context("no second dead letter")?;
        ensure!(second.value == poison.value, "{second:?}");
        let own = second.headers.iter().filter(|(name, _)| !dead_letter::is_own(name));
        ensure!(own.eq(&poison.headers), "{second:?}");

        let list = done(kit, &["dead-letters", "list"]).await?;
        ensure!(
            !list.lines().any(|line| line.starts_with(&format!("{origin} "))),
            "{list}"
        );
        ensure!(list.contains(&origin_of(second)), "{list}");
        refused(kit, &["dead-letters", "replay", &origin], "was replayed already").await?;

        done(kit, &["dead-letters", "drop", &origin_of(second)]).await?;
        let list = done(kit, &["dead-letters", "list"]).await?;
        ensure!(!list.contains("admin-poison"), "{list}");
        refused(
            kit,
            &["dead-letters", "drop", &origin_of(second)],
            "was dropped already",
        )
        .await?;
        let nowhere = format!("{}/0/999999999", topics::RESERVATIONS);
        refused(kit, &["dead-letters", "show", &nowhere], "no dead letter about").await?;
        refused(kit, &["dead-letters", "show", "17"], "topic/partition/offset").await?;
        worker.stop().await
    })
}

fn a_dead_letter_from_serve_is_replayed_as_it_was_sent(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "admin").start().await?;
        let time = timestamp(now());
        let reuse = |user: &str| Sent {
            key: Some(b"admin-reused".to_vec()),
            value: Some(format!(r#"{{ "user" :  "{user}" }}"#).into_bytes()),
            headers: [
                ("ce_specversion", "1.0"),
                ("ce_id", "admin-reused"),
                ("ce_source", "admin"),
                ("ce_type", "holdfast.reservation.requested.v1"),
                ("ce_subject", "admin-reused"),
                ("ce_time", &time),
                ("content-type", "application/json"),
            ]
            .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
            .to_vec(),
            ..Sent::default()
        };
        let places = kit
            .stack
            .kafka
            .send(topics::RESERVATIONS, &[reuse("ann"), reuse("bob")])
            .await?;
        let origin = origin(*places.last().context("not sent")?);
        let letter = letters(kit, "admin-reused", 1).await?.remove(0);
        ensure!(origin_of(&letter) == origin, "{letter:?}");
        ensure!(header(&letter, dead_letter::REASON) == "id_reused", "{letter:?}");

        done(kit, &["dead-letters", "replay", &origin]).await?;
        let records = kit.stack.kafka.read(topics::RESERVATIONS).await?;
        let mut ours = records
            .into_iter()
            .filter(|record| record.key.as_deref() == Some(b"admin-reused"));
        let replayed = ours.next_back().context("nothing replayed")?;
        ensure!(replayed.value == reuse("bob").value, "{replayed:?}");
        ensure!(replayed.headers == reuse("bob").headers, "{replayed:?}");
        for letter in letters(kit, "admin-reused", 2).await? {
            let settled = ["dead-letters", "drop", &origin_of(&letter)];
            if origin_of(&letter) != origin {
                done(kit, &settled).await?;
            }
        }
        worker.stop().await
    })
}

fn a_refused_outbox_row_is_listed_retried_and_dropped(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = kit.stack.postgres.connect().await?;
        done(kit, &["outbox", "list"]).await?;
        let mut ids = Vec::new();
        for key in ["admin-one", "admin-two"] {
            let row = sqlx::query(
                "insert into outbox (topic, key, message, headers, value, written_at, refused)
                values ('nowhere', $1, gen_random_uuid(), '{}', '', now(), 'too large') returning id",
            )
            .bind(key)
            .fetch_one(&pool)
            .await?;
            ids.push(row.get::<i64, _>(0).to_string());
        }
        let list = done(kit, &["outbox", "list"]).await?;
        ensure!(
            list.contains("admin-one") && list.contains("admin-two") && list.contains("too large"),
            "{list}"
        );
        done(kit, &["outbox", "retry", &ids[0]]).await?;
        done(kit, &["outbox", "drop", &ids[1]]).await?;
        let list = done(kit, &["outbox", "list"]).await?;
        ensure!(!list.contains("admin-"), "{list}");
        for id in &ids {
            refused(kit, &["outbox", "retry", id], "no refused outbox row").await?;
        }
        let left = sqlx::query("delete from outbox where topic = 'nowhere' returning key")
            .fetch_all(&pool)
            .await?;
        ensure!(
            left.iter().map(|row| row.get::<&str, _>(0)).eq(["admin-one"]),
            "{left:?}"
        );
        pool.close().await;
        Ok(())
    })
}

fn refused_outbox_rows_are_retried_by_topic_by_reason_or_all(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = kit.stack.postgres.connect().await?;
        // Where this proof is the first, nothing has made the tables.
        crate::workers::done(kit.stack.holdfast("migrate", "migrate")).await?;
        let refuse = async |key: &str, topic: &str, reason: &str| {
            sqlx::query(
                "insert into outbox (topic, key, message, headers, value, written_at, refused)
                values ($2, $1, gen_random_uuid(), '{}', '', now(), $3)",
            )
            .bind(key)
            .bind(topic)
            .bind(reason)
            .execute(&pool)
            .await
        };
        let left = async || {
            let rows =
                sqlx::query("select key from outbox where topic like 'nowhere%' and refused is not null order by key");
            let rows = rows.fetch_all(&pool).await?;
            anyhow::Ok(
                rows.iter()
                    .map(|row| row.get::<String, _>(0))
                    .collect::<Vec<_>>()
                    .join(" "),
            )
        };
        for (key, topic, reason) in [
            ("a", "nowhere.one", "Message size too large"),
            ("b", "nowhere.two", "Message size too large"),
            ("c", "nowhere.two", "Unknown topic"),
            ("d", "nowhere.three", "Unknown topic"),
        ] {
            refuse(key, topic, reason).await?;
        }
        for (wish, then) in [
            (&["--topic", "nowhere.two", "--reason", "SIZE"][..], "a c d"),
            (&["--reason", "unknown"], "a"),
            (&["--all"], ""),
        ] {
            done(kit, &[&["outbox", "retry"], wish].concat()).await?;
            let left = left().await?;
            ensure!(left == then, "{wish:?} leaves {left}");
        }
        refused(
            kit,
            &["outbox", "retry", "--topic", "nowhere.two"],
            "no refused outbox row fits",
        )
        .await?;
        refused(kit, &["outbox", "retry"], "required").await?;
        sqlx::query("delete from outbox where topic like 'nowhere%'")
            .execute(&pool)
            .await?;
        pool.close().await;
        Ok(())
    })
}

fn a_state_is_accepted_once_nothing_would_be_told_twice_or_never(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "admin/accepted";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "admin").start().await?;
        send(
            kit,
            &[
                listed("admin/accept-list", TICKET),
                requested("admin/accept-ann", TICKET, "ann"),
            ],
        )
        .await?;
        told(kit, TICKET, 2).await?;
        refused(kit, &["relay", "accept"], "a relay runs").await?;
        worker.stop().await?;

        // The last outcome waits again, and Kafka's mark is gone.
        let pool = kit.stack.postgres.connect().await?;
        let record = kit.stack.kafka.read(topics::RESERVATIONS_OUTCOMES).await?;
        let record = record
            .into_iter()
            .rfind(|record| record.key.as_deref() == Some(TICKET.as_bytes()));
        let value = record.context("nothing was told")?.value;
        sqlx::query(
            "insert into outbox (topic, key, message, headers, value, written_at)
            select $1, ticket, outcome, '{}', $3, changed_at from ticket_change_log where ticket = $2 and version = 2",
        )
        .bind(topics::RESERVATIONS_OUTCOMES)
        .bind(TICKET)
        .bind(value)
        .execute(&pool)
        .await?;
        forget_mark(kit).await?;
        let relay = kit.stack.holdfast("relay", "relay").spawn()?;
        ensure!(
            !relay.wait(DEADLINE).await?.success(),
            "the relay went on without a mark"
        );
        let words = relay.last_words();
        ensure!(
            words.contains("docs/runbook.md#kafka-has-no-mark-of-the-relay"),
            "{words}"
        );
        let found = refused_with(kit, &["relay", "accept"], "nothing was accepted").await?;
        ensure!(found.contains("still in the outbox: 1, would be told twice"), "{found}");

        // An outcome that the topic has is another one than the log's.
        let forge = "update ticket_change_log set outcome = $2 where ticket = $1 and version = 1 returning
            (select outcome from ticket_change_log where ticket = $1 and version = 1)";
        let forge = async |outcome: uuid::Uuid| {
            let former = sqlx::query(forge).bind(TICKET).bind(outcome).fetch_one(&pool).await?;
            anyhow::Ok(former.get::<uuid::Uuid, _>(0))
        };
        let outcome = forge(uuid::Uuid::new_v4()).await?;
        let found = refused_with(kit, &["relay", "accept", "--drop-told"], "nothing was accepted").await?;
        for part in [
            "still in the outbox: 1, deleted",
            "unknown to the database: 1",
            "would never be told: 1",
            "admin/accepted version 1",
        ] {
            ensure!(found.contains(part), "no {part} in {found}");
        }
        forge(outcome).await?;

        let found = done(kit, &["relay", "accept"]).await?;
        ensure!(
            found.contains("still in the outbox: 0\n") && found.contains("accepted"),
            "{found}"
        );
        let worker = kit.stack.holdfast("run", "admin").start().await?;
        let hold = hold_id(SHOP, "admin/accept-ann", TICKET).to_string();
        let release = json!({ "user": "ann", "hold": hold });
        send(
            kit,
            &[event("admin/accept-back", TICKET, "reservation.released", release)],
        )
        .await?;
        told(kit, TICKET, 3).await?;
        worker.stop().await?;
        pool.close().await;
        Ok(())
    })
}

/// Has Kafka lose the relay's mark.
async fn forget_mark(kit: &Kit) -> anyhow::Result<()> {
    kit.stack.kafka.delete_topic(topics::RELAY_MARK).await?;
    create_topics(&kit.stack.kafka).await
}

/// Runs a command that must succeed; returns what it printed.
pub(crate) async fn done(kit: &Kit, command: &[&str]) -> anyhow::Result<String> {
    let output = admin(kit, command).await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "admin {command:?}: {}: {errors}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn a_ticket_is_shown_as_it_is_and_as_it_was(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "admin/ticket";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "admin").start().await?;
        send(
            kit,
            &[listed("admin/list", TICKET), requested("admin/ann", TICKET, "ann")],
        )
        .await?;
        let held = told(kit, TICKET, 2).await?;
        let between = timestamp(now());
        let hold = hold_id(SHOP, "admin/ann", TICKET).to_string();
        let release = json!({ "user": "ann", "hold": hold });
        send(kit, &[event("admin/back", TICKET, "reservation.released", release)]).await?;
        told(kit, TICKET, 3).await?;

        let first = timestamp(held[0].time - Duration::from_millis(1));
        for (arguments, state, changes) in [
            (&[][..], "state       available", 3),
            (&["--as-of", "2"], "state       held by ann until", 2),
            (&["--as-of", "1"], "state       available", 1),
            (&["--at", &between], "state       held by ann until", 2),
        ] {
            let shown = done(kit, &[&["ticket", "show", TICKET], arguments].concat()).await?;
            let told = shown.lines().filter(|line| line.contains("proofs-shop admin/")).count();
            ensure!(shown.contains(state) && told == changes, "{arguments:?}: {shown}");
        }
        refused(
            kit,
            &["ticket", "show", TICKET, "--at", &first],
            "was never listed, or not yet",
        )
        .await?;
        refused(kit, &["ticket", "show", "admin/none"], "was never listed").await?;
        refused(
            kit,
            &["ticket", "show", TICKET, "--at", "noon"],
            "give a moment such as",
        )
        .await?;
        worker.stop().await
    })
}

fn a_user_is_shown_as_they_are_and_as_they_were_without_their_profile(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "admin/user";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "admin").start().await?;
        let ann = json!({ "email": "ann@example.org", "name": "Ann" });
        let credits = |id: &str, amount: i64| event(id, USER, "credits.added", json!({ "amount": amount }));
        let first = [
            event("admin/registered", USER, "user.registered", ann.clone()),
            credits("admin/credits", 30),
        ];
        pay(kit, &first).await?;
        let given = told_of::<UserOutcome>(kit, USER, 2).await?;
        let between = timestamp(now());
        let second = [
            event("admin/again", USER, "user.registered", ann),
            event(
                "admin/changed",
                USER,
                "profile.changed",
                json!({ "to": { "name": "Anna" } }),
            ),
            credits("admin/more", 12),
        ];
        pay(kit, &second).await?;
        told_of::<UserOutcome>(kit, USER, 5).await?;

        let before = timestamp(given[0].time - Duration::from_millis(1));
        for (arguments, credits, changes) in [
            (&[][..], "credits     42 given", 5),
            (&["--as-of", "4"], "credits     30 given", 4),
            (&["--as-of", "1"], "credits     0 given", 1),
            (&["--at", &between], "credits     30 given", 2),
        ] {
            let shown = done(kit, &[&["user", "show", USER], arguments].concat()).await?;
            let told = shown.lines().filter(|line| line.contains("proofs-shop admin/")).count();
            ensure!(shown.contains(credits) && told == changes, "{arguments:?}: {shown}");
            ensure!(!shown.contains("Ann") && !shown.contains("ann@"), "{shown}");
        }
        for command in [
            &["user", "show", USER, "--at", &before][..],
            &["user", "show", "admin/none"],
        ] {
            refused(kit, command, "was never registered, or not yet").await?;
        }
        worker.stop().await
    })
}

/// Runs a command that must fail with an error that contains `why`.
pub(crate) async fn refused(kit: &Kit, command: &[&str], why: &str) -> anyhow::Result<()> {
    refused_with(kit, command, why).await.map(drop)
}

/// As [`refused`]; what the command printed before it failed.
async fn refused_with(kit: &Kit, command: &[&str], why: &str) -> anyhow::Result<String> {
    let output = admin(kit, command).await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && errors.contains(why),
        "admin {command:?}: {}: {errors}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

pub(crate) async fn admin(kit: &Kit, command: &[&str]) -> anyhow::Result<std::process::Output> {
    let admin = kit.stack.holdfast("admin", "admin-command");
    command
        .iter()
        .fold(admin, |admin, argument| admin.arg(argument))
        .output()
        .await
}

/// The dead letters with this key, once there are `count`.
async fn letters(kit: &Kit, key: &str, count: usize) -> anyhow::Result<Vec<ReadRecord>> {
    until("a dead letter", DEADLINE, async || {
        let records = kit.stack.kafka.read(topics::DEAD_LETTERS).await?;
        let letters = records
            .into_iter()
            .filter(|record| record.key.as_deref() == Some(key.as_bytes()));
        let letters: Vec<_> = letters.collect();
        ensure!(letters.len() >= count, "{} dead letters", letters.len());
        Ok(letters)
    })
    .await
}

fn origin_of(letter: &ReadRecord) -> String {
    let [topic, partition, offset] = [
        dead_letter::ORIGIN_TOPIC,
        dead_letter::ORIGIN_PARTITION,
        dead_letter::ORIGIN_OFFSET,
    ]
    .map(|name| header(letter, name));
    format!("{topic}/{partition}/{offset}")
}

fn header(letter: &ReadRecord, name: &str) -> String {
    let header = letter.headers.iter().rev().find(|(header, _)| header == name);
    header
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        .unwrap_or_default()
}

fn origin((partition, offset): (i32, i64)) -> String {
    format!("{}/{partition}/{offset}", topics::RESERVATIONS)
}
