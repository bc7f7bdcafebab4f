//! The relay alone, on an outbox that the proof fills: exactly once, in order, through crashes of everything.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast::store::operator_log::Operator;
use holdfast_schemas::topics;
use holdfast_tests::kit::proxy::Proxy;
use holdfast_tests::kit::{Holdfast, Kit, until};
use sqlx::PgPool;
use sqlx::types::time::OffsetDateTime;
use uuid::Uuid;

use crate::gate::create_topics;
use crate::support::set_topic;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    every_row_comes_out_once_whatever_step_the_relay_dies_at,
    every_row_comes_out_once_while_everything_is_killed,
    of_two_relays_one_works_and_the_other_takes_over,
    a_row_that_kafka_refuses_stops_only_its_key,
    a_database_that_went_back_in_time_stops_the_relay,
    no_row_is_refused_for_what_is_wrong_with_the_mark,
    a_connection_that_dies_without_a_word_holds_the_outbox_up_for_one_limit,
    readiness_says_whether_rows_move,
    a_relay_that_stands_by_keeps_one_connection,
];

const EMPTY_WITHIN: Duration = Duration::from_secs(60);
/// A crash point is reached, or a relay that must not go on has stopped.
const ENDS_WITHIN: Duration = Duration::from_secs(40);
const TOPIC_BYTES: &str = "100000";

fn every_row_comes_out_once_whatever_step_the_relay_dies_at(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut proof = Proof::begin(kit).await?;
        for point in ["relay.selected", "relay.produced", "relay.committed", "relay.deleted"] {
            proof.fill(500).await?;
            let crashing = kit
                .stack
                .holdfast("relay", "relay")
                .env("HOLDFAST_CRASH", point)
                .spawn()?;
            let status = crashing.wait(ENDS_WITHIN).await.context(point)?;
            ensure!(!status.success(), "{point}: {status}");

            proof.fill(500).await?;
            let repeating = kit
                .stack
                .holdfast("relay", "relay")
                .env("HOLDFAST_REPEAT", point)
                .start()
                .await?;
            proof.emptied().await.context(point)?;
            repeating.stop().await?;
        }
        proof.check().await
    })
}

fn every_row_comes_out_once_while_everything_is_killed(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut proof = Proof::begin(kit).await?;
        let mut relay = kit.stack.holdfast("relay", "relay").start().await?;
        for _ in 0..5 {
            proof.fill(3_000).await?;
            relay.kill()?;
            relay = kit.stack.holdfast("relay", "relay").start().await?;
        }
        proof.fill(3_000).await?;
        kit.stack.kafka.kill()?;
        kit.stack.kafka.start().await?;
        proof.fill(3_000).await?;
        kit.stack.postgres.kill()?;
        kit.stack.postgres.start().await?;
        proof.emptied().await?;
        relay.stop().await?;
        proof.check().await
    })
}

fn of_two_relays_one_works_and_the_other_takes_over(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut proof = Proof::begin(kit).await?;
        let first = kit.stack.holdfast("relay", "relay").start().await?;
        proof.fill(2_000).await?;
        proof.emptied().await?;
        let second = kit.stack.holdfast("relay", "relay-b").start().await?;
        proof.fill(2_000).await?;
        first.pause()?;
        // A frozen relay keeps its lock until its connection is ended; then it resumes fenced.
        sqlx::query("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'")
            .execute(&proof.pool)
            .await?;
        proof.fill(2_000).await?;
        proof.emptied().await?;
        ensure!(
            second.metric("holdfast_relay_leader").await? == Some(1.0),
            "the second does not lead"
        );
        first.resume()?;
        proof.fill(2_000).await?;
        proof.emptied().await?;
        until("the first has stepped back", EMPTY_WITHIN, async || {
            let leads = first.metric("holdfast_relay_leader").await?;
            ensure!(leads == Some(0.0), "{leads:?}");
            Ok(())
        })
        .await?;
        second.stop().await?;
        proof.fill(2_000).await?;
        proof.emptied().await?;
        first.stop().await?;
        proof.check().await
    })
}

fn a_row_that_kafka_refuses_stops_only_its_key(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut proof = Proof::begin(kit).await?;
        proof.fill(400).await?;
        // Noise: what Kafka measures is compressed.
        let noise: Vec<u8> = (0..50_000)
            .flat_map(|_| Uuid::new_v4().into_bytes()[..4].to_vec())
            .collect();
        proof.insert("too-large", &noise).await?;
        proof.insert("too-large", b"later").await?;
        let nowhere = insert(&proof.pool, "proof.nowhere", "key", b"value").await?;
        proof.fill(400).await?;
        let relay = kit.stack.holdfast("relay", "relay").start().await?;
        let waits = until("only the refused keys wait", EMPTY_WITHIN, async || {
            let rows: Vec<(i64, String, Option<String>)> =
                sqlx::query_as("select id, key, refused from outbox order by id")
                    .fetch_all(&proof.pool)
                    .await?;
            let (count, refused) = (rows.len(), rows.iter().filter(|row| row.2.is_some()).count());
            ensure!((count, refused) == (3, 2), "{count} rows, {refused} refused");
            anyhow::Ok(rows)
        })
        .await?;
        let too_large = waits[0].0;
        ensure!(waits[1].2.is_none() && waits[2].0 == nowhere, "{waits:?}");
        ensure!(
            waits[0].2.as_ref().is_some_and(|reason| reason.contains("size")),
            "{waits:?}"
        );

        sqlx::query("update outbox set value = 'small' where id = $1")
            .bind(too_large)
            .execute(&proof.pool)
            .await?;
        let operator = Operator {
            who: "proofs",
            why: "mended",
        };
        holdfast::store::outbox::retry(&proof.pool, &[too_large], operator).await?;
        holdfast::store::outbox::discard(&proof.pool, &[nowhere], operator).await?;
        proof.emptied().await?;
        relay.stop().await?;
        proof.check().await
    })
}

fn a_database_that_went_back_in_time_stops_the_relay(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut proof = Proof::begin(kit).await?;
        proof.fill(100).await?;
        let relay = kit.stack.holdfast("relay", "relay").start().await?;
        proof.emptied().await?;
        relay.stop().await?;
        // Sets the batch number back by one, as a restore does, while that batch had other rows.
        sqlx::query("update relay_state set batch = batch - 1")
            .execute(&proof.pool)
            .await?;
        proof.fill(10).await?;
        let relay = kit.stack.holdfast("relay", "relay").spawn()?;
        let status = relay.wait(ENDS_WITHIN).await?;
        let words = relay.last_words();
        ensure!(!status.success(), "{status}");
        let runbook = "docs/runbook.md#the-database-went-back-in-time";
        ensure!(words.contains(runbook), "{runbook} is not in {words}");

        sqlx::query("update relay_state set batch = batch + 1")
            .execute(&proof.pool)
            .await?;
        let relay = kit.stack.holdfast("relay", "relay").start().await?;
        proof.emptied().await?;
        relay.stop().await?;
        proof.check().await
    })
}

fn no_row_is_refused_for_what_is_wrong_with_the_mark(kit: &Kit) -> anyhow::Result<()> {
    const LIMIT: &str = "max.message.bytes";
    kit.block_on(async {
        let mut proof = Proof::begin(kit).await?;
        proof.fill(100).await?;
        let relay = kit.stack.holdfast("relay", "relay").start().await?;
        proof.emptied().await?;
        set_topic(kit, topics::RELAY_MARK, LIMIT, "10").await?;
        proof.fill(100).await?;
        let said = until("the relay says what is refused", EMPTY_WITHIN, async || {
            let words = relay.last_words();
            ensure!(
                words.contains(topics::RELAY_MARK) && words.contains("holdfast register"),
                "{words}"
            );
            Ok(())
        })
        .await;
        let refused: i64 = sqlx::query_scalar("select count(refused) from outbox")
            .fetch_one(&proof.pool)
            .await?;
        set_topic(kit, topics::RELAY_MARK, LIMIT, "1048588").await?;
        said?;
        ensure!(refused == 0, "{refused} rows are refused");
        proof.emptied().await?;
        relay.stop().await?;
        proof.check().await
    })
}

fn a_connection_that_dies_without_a_word_holds_the_outbox_up_for_one_limit(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut proof = Proof::begin(kit).await?;
        let postgres = &kit.stack.postgres;
        let proxy = Proxy::start(postgres.address()).await?;
        let relay = kit.stack.holdfast("relay", "relay");
        let relay = relay
            .env(
                "HOLDFAST_DATABASE_URL",
                &postgres.url().replace(&postgres.address(), &proxy.address()),
            )
            .env("HOLDFAST_STATEMENT_TIMEOUT", "1s")
            .start()
            .await?;
        proof.fill(100).await?;
        proof.emptied().await?;
        proxy.swallow();
        proof.fill(100).await?;
        proof.emptied().await?;
        ensure!(
            relay.last_words().contains("the database has not answered within"),
            "{}",
            relay.last_words()
        );
        // It hears of new rows again, which it would otherwise look for once in a second.
        until("it listens", EMPTY_WITHIN, async || {
            let listening: i64 = sqlx::query_scalar(
                "select count(*) from pg_stat_activity where query like 'LISTEN%' and backend_start > $1",
            )
            .bind(proof.began)
            .fetch_one(&proof.pool)
            .await?;
            ensure!(listening > 0, "nobody listens");
            Ok(())
        })
        .await?;
        relay.stop().await?;
        proof.check().await
    })
}

fn readiness_says_whether_rows_move(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut proof = Proof::begin(kit).await?;
        let relay = kit.stack.holdfast("relay", "relay");
        let relay = relay
            .env("HOLDFAST_STATEMENT_TIMEOUT", "1s")
            .env("HOLDFAST_LOCK_TIMEOUT", "100ms")
            .start()
            .await?;
        proof.fill(100).await?;
        proof.emptied().await?;
        // Everything answers, and yet no batch can be noted.
        let mut lock = proof.pool.begin().await?;
        sqlx::query("select batch from relay_state for update")
            .execute(&mut *lock)
            .await?;
        proof.fill(100).await?;
        until("it is not ready", EMPTY_WITHIN, async || {
            let answer = reqwest::get(format!("{}/readyz", relay.http)).await?;
            let (status, words) = (answer.status(), answer.text().await?);
            ensure!(status == 503 && words.contains("relay"), "{status} {words}");
            Ok(())
        })
        .await?;
        ensure!(
            relay.last_words().contains("rows wait and none moves"),
            "{}",
            relay.last_words()
        );
        lock.rollback().await?;
        proof.emptied().await?;
        relay.ready().await?;
        relay.stop().await?;
        proof.check().await
    })
}

fn a_relay_that_stands_by_keeps_one_connection(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let proof = Proof::begin(kit).await?;
        let first = kit.stack.holdfast("relay", "relay").start().await?;
        leads(&first).await?;
        let second = kit.stack.holdfast("relay", "relay-b").start().await?;
        let asks = async |former: Option<(i32, OffsetDateTime)>| {
            until("the second asks for the lock", EMPTY_WITHIN, async || {
                let asked: Vec<(i32, OffsetDateTime)> = sqlx::query_as(
                    "select pid, query_start from pg_stat_activity a
                    where query like 'select pg_try_advisory_lock%'
                        and not exists (select from pg_locks l where l.pid = a.pid and locktype = 'advisory')",
                )
                .fetch_all(&proof.pool)
                .await?;
                let [asked] = asked[..] else { bail!("{asked:?}") };
                ensure!(former.is_none_or(|former| former.1 < asked.1), "{asked:?}");
                Ok(asked)
            })
            .await
        };
        let once = asks(None).await?;
        let twice = asks(Some(once)).await?;
        let thrice = asks(Some(twice)).await?;
        ensure!(
            once.0 == twice.0 && twice.0 == thrice.0,
            "{once:?} {twice:?} {thrice:?}"
        );
        first.stop().await?;
        leads(&second).await?;
        second.stop().await?;
        proof.check().await
    })
}

async fn leads(relay: &Holdfast) -> anyhow::Result<()> {
    until("the relay leads", EMPTY_WITHIN, async || {
        let leads = relay.metric("holdfast_relay_leader").await?;
        ensure!(leads == Some(1.0), "{leads:?}");
        Ok(())
    })
    .await
}

/// A topic of its own, and what was meant for it.
struct Proof<'a> {
    kit: &'a Kit,
    pool: PgPool,
    /// By the database's clock.
    began: OffsetDateTime,
    topic: String,
    /// Per key, the messages in order.
    expected: HashMap<String, Vec<Uuid>>,
}

impl<'a> Proof<'a> {
    async fn begin(kit: &'a Kit) -> anyhow::Result<Self> {
        let migrated = kit.stack.holdfast("migrate", "migrate").output().await?;
        ensure!(migrated.status.success(), "{migrated:?}");
        create_topics(&kit.stack.kafka).await?;
        let pool = kit.stack.postgres.connect().await?;
        // What a proof that failed has left behind.
        sqlx::query("delete from outbox where topic like 'proof.%'")
            .execute(&pool)
            .await?;
        let topic = format!("proof.relay.{}", Uuid::new_v4().simple());
        kit.stack
            .kafka
            .create_topic(&topic, 4, &[("max.message.bytes", TOPIC_BYTES)])
            .await?;
        Ok(Self {
            kit,
            began: sqlx::query_scalar("select clock_timestamp()").fetch_one(&pool).await?,
            pool,
            topic,
            expected: HashMap::new(),
        })
    }

    /// Commits this many rows of 20 keys, some in transactions of many rows, and sends the notification.
    async fn fill(&mut self, rows: usize) -> anyhow::Result<()> {
        for chunk in (0..rows).collect::<Vec<_>>().chunks(25) {
            let keys: Vec<String> = chunk.iter().map(|place| format!("key-{}", place % 20)).collect();
            let messages: Vec<Uuid> = chunk.iter().map(|_| Uuid::new_v4()).collect();
            sqlx::query(
                "insert into outbox (topic, key, message, headers, value, written_at)
                select $1, key, message, '{\"content-type\": \"text/plain\"}', convert_to(message::text, 'UTF8'), clock_timestamp()
                from unnest($2::text[], $3::uuid[]) with ordinality as row (key, message, place) order by place",
            )
            .bind(&self.topic)
            .bind(&keys)
            .bind(&messages)
            .execute(&self.pool)
            .await?;
            sqlx::query("select pg_notify('outbox', '')")
                .execute(&self.pool)
                .await?;
            for (key, message) in keys.into_iter().zip(messages) {
                self.expected.entry(key).or_default().push(message);
            }
        }
        Ok(())
    }

    async fn insert(&mut self, key: &str, value: &[u8]) -> anyhow::Result<()> {
        insert(&self.pool, &self.topic, key, value).await.map(drop)
    }

    async fn emptied(&self) -> anyhow::Result<()> {
        until("the outbox is empty", EMPTY_WITHIN, async || {
            let rows: i64 = sqlx::query_scalar("select count(*) from outbox")
                .fetch_one(&self.pool)
                .await?;
            ensure!(rows == 0, "{rows} rows");
            Ok(())
        })
        .await
    }

    /// Every message is there once, and those of a key are in the order of their rows.
    async fn check(&self) -> anyhow::Result<()> {
        let mut told: HashMap<String, Vec<Uuid>> = HashMap::new();
        for record in self.kit.stack.kafka.read(&self.topic).await? {
            let headers = [("content-type".to_owned(), b"text/plain".to_vec())];
            ensure!(record.headers == headers, "{record:?}");
            let key = String::from_utf8(record.key.unwrap_or_default())?;
            if self.expected.contains_key(&key) {
                let message = String::from_utf8(record.value.unwrap_or_default())?;
                told.entry(key).or_default().push(message.parse()?);
            }
        }
        for (key, expected) in &self.expected {
            let told = told.get(key).map_or(&[][..], Vec::as_slice);
            ensure!(told == expected, "{key}: {} told of {}", told.len(), expected.len());
        }
        self.pool.close().await;
        Ok(())
    }
}

pub(crate) async fn insert(pool: &PgPool, topic: &str, key: &str, value: &[u8]) -> anyhow::Result<i64> {
    let id = sqlx::query_scalar(
        "insert into outbox (topic, key, message, headers, value, written_at)
        values ($1, $2, gen_random_uuid(), '{\"content-type\": \"text/plain\"}', $3, clock_timestamp()) returning id",
    )
    .bind(topic)
    .bind(key)
    .bind(value)
    .fetch_one(pool)
    .await?;
    Ok(id)
}
