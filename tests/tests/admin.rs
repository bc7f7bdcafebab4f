//! The commands of operators: what they list and show, what they change, what a dry run leaves alone, who did it and why.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_schemas::{OutcomeData, UserOutcome, dead_letter, hold_id, topics};
use holdfast_tests::kit::kafka::{ReadRecord, Sent};
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Kit, until};
use holdfast_tests::load::{now, timestamp};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};

use crate::gate::create_topics;
use crate::support::{DEADLINE, SHOP, clean, event, listed, pay, requested, send, told, told_of, verdicts};
use crate::users::registered;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_dead_letter_is_listed_shown_replayed_and_dropped,
    a_dead_letter_from_serve_is_replayed_as_it_was_sent,
    dead_letters_are_chosen_by_what_they_are_and_a_dry_run_changes_nothing,
    a_mended_dead_letter_takes_effect_once_and_what_changed_is_kept,
    a_refused_outbox_row_is_listed_retried_and_dropped,
    refused_outbox_rows_are_retried_by_topic_by_reason_or_all,
    a_state_is_accepted_once_nothing_would_be_told_twice_or_never,
    a_ticket_is_shown_as_it_is_and_as_it_was,
    a_user_is_shown_as_they_are_and_as_they_were_without_their_profile,
    what_waits_for_a_ticket_or_a_user_is_shown_with_them,
    mails_that_were_refused_or_wait_are_listed_sent_after_all_or_given_up,
    what_waits_in_restate_is_listed_by_object_and_key,
];

/// Who does it, and why.
pub(crate) const BY: &[&str] = &["--by", "proofs", "--why", "a proof wants it"];

/// A command that is done by somebody, and why.
pub(crate) fn by(launch: Launch<'_>) -> Launch<'_> {
    BY.iter().fold(launch, |launch, argument| launch.arg(argument))
}

fn a_dead_letter_is_listed_shown_replayed_and_dropped(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "admin").start().await?;
        let poison = Sent {
            key: Some(b"admin-poison".to_vec()),
            value: Some(b"{\"not\": \x1b[31m".to_vec()),
            headers: vec![("mine".to_owned(), b"kept".to_vec())],
            ..Sent::default()
        };
        let long_key = "k".repeat(100_000);
        let long = Sent {
            key: Some(long_key.clone().into_bytes()),
            ..poison.clone()
        };
        let sent = [poison.clone(), long];
        let places = kit.stack.kafka.send(topics::RESERVATIONS, &sent).await?;
        let origin = origin(*places.first().context("not sent")?);
        letters(kit, "admin-poison", 1).await?;
        letters(kit, &long_key, 1).await?;

        let list = done(kit, &["dead-letters", "list"]).await?;
        let mut lines = list.lines().skip_while(|line| !line.starts_with("undecodable ("));
        let line = lines
            .find(|line| line.trim_start().starts_with(&origin))
            .with_context(|| list.clone())?;
        ensure!(line.contains("admin-poison"), "{line}");
        ensure!(list.contains("k… ") && !list.contains(&long_key), "{list}");
        let shown = done(kit, &["dead-letters", "show", &origin]).await?;
        for part in [&origin, "undecodable", "admin-poison", "mine: kept"] {
            ensure!(shown.contains(part), "no {part} in {shown}");
        }
        let payload = r#"{"not": \u{1b}[31m"#;
        ensure!(!shown.contains(payload), "{shown}");
        let shown = done(kit, &["dead-letters", "show", &origin, "--payload"]).await?;
        ensure!(shown.contains(payload), "{shown}");

        // Nothing is done without somebody who does it, and why.
        ensure!(exit_code(kit, &["dead-letters", "replay", &origin]).await? == Some(2));
        settled(kit, &["dead-letters", "replay", &origin]).await?;
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
            !list
                .lines()
                .any(|line| line.trim_start().starts_with(&format!("{origin} "))),
            "{list}"
        );
        let second = origin_of(second);
        ensure!(list.contains(&second), "{list}");
        let replay = [&["dead-letters", "replay", &origin][..], BY].concat();
        refused(kit, &replay, "was replayed already").await?;

        settled(kit, &["dead-letters", "drop", &second]).await?;
        let list = done(kit, &["dead-letters", "list"]).await?;
        ensure!(!list.contains("admin-poison"), "{list}");
        let drop = [&["dead-letters", "drop", &second][..], BY].concat();
        refused(kit, &drop, "was dropped already").await?;
        ensure!(exit_code(kit, &drop).await? == Some(1));
        let shown = parsed(kit, &["dead-letters", "show", &second, "--json"]).await?;
        ensure!(
            shown["settled"] == "dropped" && shown["acts"][0]["why"] == "a proof wants it",
            "{shown}"
        );
        let log = parsed(kit, &["log", "--by", "proofs", "--on", &origin, "--json"]).await?;
        ensure!(log["acts"][0]["command"] == "dead-letters replay", "{log}");
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

        settled(kit, &["dead-letters", "replay", &origin]).await?;
        let records = kit.stack.kafka.read(topics::RESERVATIONS).await?;
        let mut ours = records
            .into_iter()
            .filter(|record| record.key.as_deref() == Some(b"admin-reused"));
        let replayed = ours.next_back().context("nothing replayed")?;
        ensure!(replayed.value == reuse("bob").value, "{replayed:?}");
        ensure!(replayed.headers == reuse("bob").headers, "{replayed:?}");
        for letter in letters(kit, "admin-reused", 2).await? {
            if origin_of(&letter) != origin {
                settled(kit, &["dead-letters", "drop", &origin_of(&letter)]).await?;
            }
        }
        worker.stop().await
    })
}

fn dead_letters_are_chosen_by_what_they_are_and_a_dry_run_changes_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "admin").start().await?;
        let bad = |key: &str, value: &str| Sent {
            key: Some(key.as_bytes().to_vec()),
            value: Some(value.as_bytes().to_vec()),
            ..Sent::default()
        };
        let before = timestamp(now());
        let first = [bad("admin-many-a", "no event"), bad("admin-many-a", "{}")];
        kit.stack.kafka.send(topics::RESERVATIONS, &first).await?;
        letters(kit, "admin-many-a", 2).await?;
        let between = timestamp(now());
        kit.stack
            .kafka
            .send(topics::PAYMENTS, &[bad("admin-many-b", "no event")])
            .await?;
        letters(kit, "admin-many-b", 1).await?;
        let ours = async |filters: &[&str]| {
            let list = [&["dead-letters", "list", "--json"], filters].concat();
            let list = parsed(kit, &list).await?;
            let letters = list["dead_letters"].as_array().context("no dead letters")?;
            let keys = letters.iter().filter_map(|letter| letter["key"].as_str());
            let mut keys: Vec<_> = keys.filter_map(|key| key.strip_prefix("admin-many-")).collect();
            keys.sort_unstable();
            anyhow::Ok(keys.concat())
        };
        for (filters, expected) in [
            (&["--since", &before][..], "aab"),
            (&["--since", &before, "--until", &between], "aa"),
            (&["--since", &between], "b"),
            (&["--since", &before, "--topic", topics::PAYMENTS], "b"),
            (&["--key", "admin-many-a"], "aa"),
            (&["--key", "admin-many-a", "--reason", "UNDECODABLE"], "a"),
            (&["--key", "admin-many"], ""),
        ] {
            let found = ours(filters).await?;
            ensure!(found == expected, "{filters:?}: {found}");
        }

        // A dry run of each says the same and does nothing.
        for verb in ["replay", "drop"] {
            let dry = ["dead-letters", verb, "--since", &before, "--dry-run", "--json"];
            let planned = parsed(kit, &dry).await?;
            let items = planned["settled"].as_array().map_or(0, Vec::len);
            ensure!(planned["dry_run"] == true && items >= 3, "{planned}");
        }
        ensure!(ours(&["--since", &before]).await? == "aab");
        ensure!(letters(kit, "admin-many-a", 2).await?.len() == 2, "something was sent");

        let reason = [
            "dead-letters",
            "drop",
            "--key",
            "admin-many-a",
            "--reason",
            "undecodable",
        ];
        settled(kit, &reason).await?;
        ensure!(ours(&["--since", &before]).await? == "ab");
        let many = [&["dead-letters", "drop", "--since", &before, "--json"][..], BY].concat();
        let dropped = parsed(kit, &many).await?;
        let all_done = |item: &Value| item["done"] == true && item["result"] == "dropped";
        ensure!(
            dropped["settled"]
                .as_array()
                .is_some_and(|items| items.iter().all(all_done)),
            "{dropped}"
        );
        ensure!(ours(&[]).await?.is_empty());
        let none = [&["dead-letters", "drop", "--key", "admin-many-a"][..], BY].concat();
        refused(kit, &none, "no unsettled dead letter about fits").await?;
        ensure!(exit_code(kit, &[&["dead-letters", "drop"][..], BY].concat()).await? == Some(2));
        worker.stop().await
    })
}

fn a_mended_dead_letter_takes_effect_once_and_what_changed_is_kept(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "admin/mended";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "admin").start().await?;
        send(kit, &[listed("admin/mended/1", TICKET)]).await?;
        told(kit, TICKET, 1).await?;
        let right = requested("admin/mended/2", TICKET, "ann");
        let mut broken = right.clone();
        broken["data"] = json!({ "buyer": "ann@example.org" });
        let place = send(kit, &[broken]).await?;
        let origin = origin(*place.first().context("not sent")?);
        letters(kit, TICKET, 1).await?;

        let file = kit.stack.folder().join("mended.json");
        let path = file.to_str().context("a folder with a strange name")?;
        let replay = ["dead-letters", "replay", &origin, "--value", path];
        std::fs::write(&file, requested("admin/mended/other", TICKET, "ann").to_string())?;
        refused(kit, &[&replay, BY].concat(), "keeps its source and id").await?;
        std::fs::write(&file, right.to_string())?;
        let planned = done(kit, &[&replay[..], &["--dry-run"]].concat()).await?;
        ensure!(planned.contains("would be sent again; value: "), "{planned}");
        told(kit, TICKET, 1).await?;
        settled(kit, &replay).await?;
        let held = told(kit, TICKET, 2).await?;
        ensure!(verdicts(&held) == ["listed", "held"], "{held:?}");

        // Its sender mends it too, and sends it again.
        send(kit, &[right]).await?;
        send(kit, &[requested("admin/mended/3", TICKET, "bob")]).await?;
        let outcomes = told(kit, TICKET, 3).await?;
        let refusals: Vec<_> = outcomes.iter().map(|told| told.data.refusal()).collect();
        ensure!(refusals == [None, None, Some("held")], "{outcomes:?}");
        let log = parsed(kit, &["log", "--on", &origin, "--json"]).await?;
        let details = log["acts"][0]["details"].as_str().unwrap_or_default();
        ensure!(details.contains("SHA-256") && !details.contains("ann"), "{log}");
        clean(kit).await?;
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
        let shown = parsed(kit, &["outbox", "show", &ids[0], "--json"]).await?;
        ensure!(shown["key"] == "admin-one" && shown["reason"] == "too large", "{shown}");
        for verb in ["retry", "drop"] {
            let planned = done(kit, &["outbox", verb, &ids[0], &ids[1], "--dry-run"]).await?;
            ensure!(planned.contains("2 meant, nothing done"), "{planned}");
        }
        ensure!(done(kit, &["outbox", "list"]).await? == list);
        settled(kit, &["outbox", "retry", &ids[0]]).await?;
        settled(kit, &["outbox", "drop", &ids[1]]).await?;
        let list = done(kit, &["outbox", "list"]).await?;
        ensure!(!list.contains("admin-"), "{list}");
        for id in &ids {
            let retry = [&["outbox", "retry", id][..], BY].concat();
            refused(kit, &retry, "no refused outbox row").await?;
            let shown = parsed(kit, &["outbox", "show", id, "--json"]).await?;
            ensure!(shown["acts"][0]["who"] == "proofs", "{shown}");
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
        let listed = parsed(kit, &["outbox", "list", "--key", "c", "--json"]).await?;
        ensure!(listed["rows"][0]["topic"] == "nowhere.two", "{listed}");
        let future = timestamp(now() + Duration::from_secs(3_600));
        let late = parsed(kit, &["outbox", "list", "--since", &future, "--json"]).await?;
        ensure!(late["rows"] == json!([]), "{late}");
        for (wish, then) in [
            (&["--topic", "nowhere.two", "--reason", "SIZE"][..], "a c d"),
            (&["--key", "d", "--until", &future], "a c"),
            (&["--reason", "unknown"], "a"),
            (&["--all"], ""),
        ] {
            settled(kit, &[&["outbox", "retry"], wish].concat()).await?;
            let left = left().await?;
            ensure!(left == then, "{wish:?} leaves {left}");
        }
        let none = [&["outbox", "retry", "--topic", "nowhere.two"][..], BY].concat();
        refused(kit, &none, "no refused outbox row fits").await?;
        refused(kit, &[&["outbox", "retry"][..], BY].concat(), "required").await?;
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
        let accept = [&["relay", "accept"][..], BY].concat();
        refused(kit, &accept, "a relay runs").await?;
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
        let found = parsed(kit, &["relay", "accept", "--dry-run", "--json"]).await?;
        let twice = found["told_already"].as_array().map_or(0, Vec::len);
        ensure!(
            twice == 1 && found["accepted"] == false && found["consistent"] == false,
            "{found}"
        );
        let found = refused_with(kit, &accept, "nothing was accepted").await?;
        ensure!(found.contains("still in the outbox: 1, would be told twice"), "{found}");

        // An outcome that the topic has is another one than the log's.
        let forge = "update ticket_change_log set outcome = $2 where ticket = $1 and version = 1 returning
            (select outcome from ticket_change_log where ticket = $1 and version = 1)";
        let forge = async |outcome: uuid::Uuid| {
            let former = sqlx::query(forge).bind(TICKET).bind(outcome).fetch_one(&pool).await?;
            anyhow::Ok(former.get::<uuid::Uuid, _>(0))
        };
        let outcome = forge(uuid::Uuid::new_v4()).await?;
        let found = refused_with(kit, &[&accept[..], &["--drop-told"]].concat(), "nothing was accepted").await?;
        for part in [
            "still in the outbox: 1, deleted",
            "unknown to the database: 1",
            "would never be told: 1",
            "admin/accepted version 1",
        ] {
            ensure!(found.contains(part), "no {part} in {found}");
        }
        forge(outcome).await?;

        let found = done(kit, &accept).await?;
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

/// As [`done`], for a command that prints JSON.
pub(crate) async fn parsed(kit: &Kit, command: &[&str]) -> anyhow::Result<Value> {
    let said = done(kit, command).await?;
    serde_json::from_str(&said).with_context(|| said.clone())
}

/// As [`done`], by somebody who says why.
pub(crate) async fn settled(kit: &Kit, command: &[&str]) -> anyhow::Result<String> {
    done(kit, &[command, BY].concat()).await
}

async fn exit_code(kit: &Kit, command: &[&str]) -> anyhow::Result<Option<i32>> {
    Ok(admin(kit, command).await?.status.code())
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

fn what_waits_for_a_ticket_or_a_user_is_shown_with_them(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "admin/waits";
    const USER: &str = "admin/waiter";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "admin").start().await?;
        pay(kit, &[registered("admin/waiter/1", USER)]).await?;
        told_of::<UserOutcome>(kit, USER, 1).await?;
        let ours = [
            listed("admin/waits/1", TICKET),
            requested("admin/waits/2", TICKET, USER),
        ];
        send(kit, &ours).await?;
        told(kit, TICKET, 2).await?;
        worker.stop().await?;

        let pool = kit.stack.postgres.connect().await?;
        let seen = parsed(kit, &["ticket", "show", TICKET, "--json"]).await?;
        ensure!(
            seen["now"]["row"] == 2 && seen["now"]["outbox"] == json!([]) && seen["now"]["quarantine"].is_null(),
            "{seen}"
        );
        // As if Kafka had refused the ticket's outcome, and its next event had broken us.
        let waits = [
            "insert into outbox (topic, key, message, headers, value, written_at, refused)
             values ('reservations.outcomes', 'admin/waits', gen_random_uuid(), '{}', '', now(), 'too large')",
            "insert into quarantined_keys (topic, key, cause, kind, error, since)
             values ('reservations', 'admin/waits', 'panic', 'panic at rules.rs:7', 'secret', now() - interval '1 hour')",
            "insert into parked_events (topic, key, source, event, hash, type, value)
             values ('reservations', 'admin/waits', 'proofs-shop', 'admin/waits/3', '', 'holdfast.ticket.withdrawn.v1', 'secret')",
        ];
        for statement in waits {
            sqlx::query(statement).execute(&pool).await?;
        }
        let shown = done(kit, &["ticket", "show", TICKET]).await?;
        for part in [
            "row         version 2, as the log",
            "1 outcomes wait",
            "refused: too large",
            "1 events parked: panic panic at rules.rs:7",
            "proofs-shop admin/waits/3",
        ] {
            ensure!(shown.contains(part), "no {part} in {shown}");
        }
        ensure!(!shown.contains("secret"), "{shown}");
        let seen = parsed(kit, &["ticket", "show", TICKET, "--json"]).await?;
        ensure!(
            seen["now"]["outbox"][0]["reason"] == "too large" && seen["now"]["quarantine"]["parked"] == 1,
            "{seen}"
        );
        // What it was, had nothing waiting.
        let was = parsed(kit, &["ticket", "show", TICKET, "--as-of", "1", "--json"]).await?;
        ensure!(was["now"].is_null() && was["state"]["state"] == "available", "{was}");
        let user = parsed(kit, &["user", "show", USER, "--json"]).await?;
        ensure!(
            user["now"]["holds"][0]["ticket"] == TICKET && user["now"]["row"] == 1,
            "{user}"
        );
        for table in ["outbox", "parked_events", "quarantined_keys"] {
            let forget = AssertSqlSafe(format!("delete from {table} where key = 'admin/waits'"));
            sqlx::query(forget).execute(&pool).await?;
        }
        pool.close().await;
        Ok(())
    })
}

fn mails_that_were_refused_or_wait_are_listed_sent_after_all_or_given_up(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "admin/mailed";
    const ERASED: &str = "admin/erased";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "admin").start().await?;
        let users = [
            registered("admin/mailed/1", USER),
            registered("admin/erased/1", ERASED),
            event("admin/erased/2", ERASED, "user.erased", json!({})),
        ];
        pay(kit, &users).await?;
        told_of::<UserOutcome>(kit, USER, 1).await?;
        told_of::<UserOutcome>(kit, ERASED, 2).await?;
        worker.stop().await?;
        let pool = kit.stack.postgres.connect().await?;
        for (name, user, state, code, age) in [
            ("a", USER, "refused", Some(550), 0),
            ("b", USER, "refused", None, 0),
            ("c", ERASED, "refused", Some(550), 0),
            ("d", USER, "waiting", Some(451), 3_600),
            ("e", USER, "waiting", None, 0),
            ("f", USER, "off", None, 0),
        ] {
            sqlx::query(
                "insert into mails (checkout, place, user_id, kind, state, code, written_at)
                 values ('admin/mail/' || $1, 'failed', $2, 'failed', $3, $4, now() - make_interval(secs => $5))",
            )
            .bind(name)
            .bind(user)
            .bind(state)
            .bind(code)
            .bind(f64::from(age))
            .execute(&pool)
            .await?;
        }
        let ours = async |filters: &[&str]| {
            let list = parsed(kit, &[&["mail", "list", "--json"], filters].concat()).await?;
            let mails = list["mails"].as_array().context("no mails")?;
            let names = mails.iter().filter_map(|mail| mail["checkout"].as_str());
            let mut names: Vec<_> = names.filter_map(|name| name.strip_prefix("admin/mail/")).collect();
            names.sort_unstable();
            anyhow::Ok(names.concat())
        };
        let now = timestamp(now() + Duration::from_secs(60));
        for (filters, expected) in [
            (&[][..], "abcde"),
            (&["--state", "refused"], "abc"),
            (&["--state", "late"], "d"),
            (&["--state", "waiting"], "de"),
            (&["--state", "off"], "f"),
            (&["--code", "550"], "ac"),
            (&["--user", ERASED], "c"),
            (&["--since", &now], ""),
        ] {
            let found = ours(filters).await?;
            ensure!(found == expected, "{filters:?}: {found}");
        }
        let shown = done(kit, &["mail", "show", "admin/mail/c/failed"]).await?;
        ensure!(
            shown.contains("no: the user was erased") && !shown.contains('@'),
            "{shown}"
        );

        let dry = ["mail", "retry", "--code", "550", "--dry-run"];
        ensure!(done(kit, &dry).await?.contains("1 meant, nothing done"));
        ensure!(ours(&["--state", "refused"]).await? == "abc");
        // Nothing is sent to who was erased.
        let retry = [&["mail", "retry", "--user", USER, "--user", ERASED][..], BY].concat();
        ensure!(exit_code(kit, &retry).await? == Some(2), "two users were taken");
        let retry = [&["mail", "retry", "--code", "550"][..], BY].concat();
        let said = refused_with(kit, &retry, "not everything was done").await?;
        ensure!(
            said.contains("has no address") && said.contains("1 of 2 done"),
            "{said}"
        );
        settled(kit, &["mail", "retry", "admin/mail/f/failed"]).await?;
        ensure!(ours(&["--state", "waiting"]).await? == "adef");
        settled(kit, &["mail", "drop", "admin/mail/c/failed", "admin/mail/d/failed"]).await?;
        ensure!(ours(&[]).await? == "abef");
        let shown = parsed(kit, &["mail", "show", "admin/mail/d/failed", "--json"]).await?;
        ensure!(
            shown["state"] == "dropped" && shown["acts"][0]["command"] == "mail drop",
            "{shown}"
        );
        let again = [&["mail", "drop", "admin/mail/d/failed"][..], BY].concat();
        refused(kit, &again, "there is no mail that waits or was refused").await?;
        sqlx::query("delete from mails where checkout like 'admin/mail/%'")
            .execute(&pool)
            .await?;
        pool.close().await;
        Ok(())
    })
}

fn what_waits_in_restate_is_listed_by_object_and_key(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "admin-inbox";
    kit.block_on(async {
        kit.stack.holdfast("run", "admin").start().await?.stop().await?;
        let ask = format!("{}/Ticket/{TICKET}/withdraw/send", kit.stack.restate.ingress());
        for _ in 0..3 {
            let asked = reqwest::Client::new().post(&ask).json(&json!({})).send().await?;
            ensure!(asked.status().is_success(), "{asked:?}");
        }
        let list = ["inbox", "--object", "Ticket", "--key", TICKET, "--json"];
        until("the first fails, and the others wait", DEADLINE, async || {
            let found = parsed(kit, &list).await?;
            let queue = &found["queues"][0];
            ensure!(
                queue["depth"] == 3 && queue["retries"].as_u64() > Some(1) && queue["paused"] == 0,
                "{found}"
            );
            ensure!(
                found["objects"][0]["depth"] == 3 && found["objects"][0]["failing"] == 1,
                "{found}"
            );
            anyhow::Ok(())
        })
        .await?;
        let stuck = done(kit, &["inbox", "--stuck"]).await?;
        ensure!(stuck.contains(TICKET), "{stuck}");
        let none = parsed(kit, &["inbox", "--key", "admin'inbox", "--json"]).await?;
        ensure!(none["queues"] == json!([]), "{none}");

        let worker = kit.stack.holdfast("run", "admin").start().await?;
        until("nothing waits", DEADLINE, async || {
            let found = parsed(kit, &list).await?;
            ensure!(found["queues"] == json!([]), "{found}");
            anyhow::Ok(())
        })
        .await?;
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
