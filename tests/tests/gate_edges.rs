//! The gate at its edges: records that Kafka refuses, batches that swell, partitions that move or are new, a Kafka that is
//! away.

use std::collections::BTreeMap;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_schemas::{DeadLetter, DeadLetterReason, Origin, dead_letter, topics};
use holdfast_tests::kit::kafka::{ReadRecord, Sent, send_with};
use holdfast_tests::kit::provider::Simulator;
use holdfast_tests::kit::{Kit, until};
use nix::sys::signal::{Signal, kill};
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::FutureProducer;
use serde_json::json;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::admin::{BY, admin, done};
use crate::gate::{ENDS_WITHIN, PARTITIONS, Proof, ends, sent};
use crate::support::{DEADLINE, event, listed, set_topic, structured};
use crate::{Test, tests, workers};

pub(crate) const TESTS: &[Test] = tests![
    a_record_that_kafka_refuses_for_good_is_put_aside_and_the_others_go_on,
    a_list_without_end_is_put_aside,
    partitions_that_move_while_the_gate_is_paused_are_read_when_they_come_back,
    a_batch_that_swells_stops_gate_and_verify_which_name_it,
    a_partition_that_is_new_to_the_group_is_read_from_its_oldest_record,
    a_group_that_has_forgotten_its_offsets_stops_the_gate_which_says_so,
    a_gate_and_a_receiver_of_webhooks_are_ready_only_with_kafka,
    a_gate_ends_although_kafka_takes_no_window,
];

fn a_record_that_kafka_refuses_for_good_is_put_aside_and_the_others_go_on(kit: &Kit) -> anyhow::Result<()> {
    // Enough for an event as others send it, alone; too little for one with long texts, or for many at once.
    const LEAST: &str = "1500";
    kit.block_on(async {
        let gate = Proof::begin(kit).await?;
        let key = format!("{}-large", gate.run);
        let mut large = listed(&key, &key);
        // Nothing that a codec makes smaller.
        let noise = |uuids: usize| -> String { (0..uuids).map(|_| Uuid::new_v4().simple().to_string()).collect() };
        (large["data"]["show"], large["data"]["seat"]) = (json!(noise(7)), json!(noise(30)));
        gate.feed(20).await?;
        let place = kit
            .stack
            .kafka
            .send(topics::RESERVATIONS, &[structured(&large)])
            .await?[0];
        gate.feed(20).await?;
        set_topic(kit, topics::RESERVATIONS_ADMITTED, "max.message.bytes", LEAST).await?;
        let worker = gate.launch("gate").start().await?;
        let drained = gate.drained().await;
        set_topic(kit, topics::RESERVATIONS_ADMITTED, "max.message.bytes", "4194304").await?;
        drained?;
        worker.stop().await?;
        let letter = letter(kit, topics::RESERVATIONS, place).await?;
        ensure!(text(&letter, dead_letter::REASON)? == "not_admitted", "{letter:?}");
        ensure!(letter.value == structured(&large).value, "not the bytes that were sent");
        gate.check().await
    })
}

/// A record of `payments` that is too large to be copied into a dead letter, once it is unpacked.
pub(crate) fn endless(key: &str) -> Sent {
    let tickets: Vec<_> = (0..600_000).map(|_| "A-00001").collect();
    let order = json!({ "checkout": key, "payment_method": "pm_1", "tickets": tickets });
    structured(&event(key, key, "checkout.requested", order))
}

fn a_list_without_end_is_put_aside(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let gate = Proof::begin(kit).await?;
        let endless = endless(&gate.run);
        let large = json!(vec!["\u{1}".repeat(255); 1_000]);
        let order = json!({ "checkout": gate.run, "payment_method": "pm_1", "tickets": large });
        let large = structured(&event(
            &format!("{}-2", gate.run),
            &gate.run,
            "checkout.requested",
            order,
        ));
        let producer = kit.stack.kafka.producer("zstd")?;
        let endless = send_with(&producer, topics::PAYMENTS, &[endless]).await?[0];
        let large = send_with(&producer, topics::PAYMENTS, &[large]).await?[0];
        let worker = gate.launch("gate").start().await?;
        for (place, reason, names) in [(endless, "invalid_data", "data.tickets"), (large, "too_large", "data")] {
            let letter = letter(kit, topics::PAYMENTS, place).await?;
            ensure!(text(&letter, dead_letter::REASON)? == reason, "{:?}", letter.headers);
            ensure!(
                text(&letter, dead_letter::DETAIL)?.contains(names),
                "{:?}",
                letter.headers
            );
        }
        worker.stop().await
    })
}

fn partitions_that_move_while_the_gate_is_paused_are_read_when_they_come_back(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let gate = Proof::begin(kit).await?;
        let engine = Engine::start().await?;
        engine.unfinished.store(1_000_000, Ordering::Relaxed);
        gate.feed(400).await?;
        let worker = gate
            .launch("gate")
            .env("HOLDFAST_RESTATE_ADMIN", &engine.address)
            .env("HOLDFAST_GATE_WINDOW_RECORDS", "50")
            .start()
            .await?;
        // With a full window it has, before it hears of the group again.
        until("the gate waits for the engine", DEADLINE, async || {
            ensure!(worker.metric("holdfast_gate_waiting").await? == Some(1.0), "not yet");
            Ok(())
        })
        .await?;
        // Another member comes and goes; half of the partitions with it.
        let other = Member::join(kit, &gate.group)?;
        until("the other member has partitions", DEADLINE, async || {
            let assigned = other.assigned()?;
            ensure!(assigned == PARTITIONS, "{assigned}");
            Ok(())
        })
        .await?;
        drop(other);
        until(
            "the gate has all partitions again, and pauses them",
            DEADLINE,
            async || {
                let words = worker.last_words();
                let (assigned, paused) = (words.rfind("partitions assigned"), words.rfind("public topics paused"));
                ensure!(
                    words.matches("partitions assigned").count() >= 3 && assigned < paused,
                    "{words}"
                );
                Ok(())
            },
        )
        .await?;
        engine.unfinished.store(0, Ordering::Relaxed);
        gate.drained().await?;
        worker.stop().await?;
        gate.check().await
    })
}

fn a_batch_that_swells_stops_gate_and_verify_which_name_it(kit: &Kit) -> anyhow::Result<()> {
    // On a partition where nothing else lies, since nobody can read what comes before it any more.
    const PARTITION: i32 = PARTITIONS - 1;
    kit.block_on(async {
        workers::done(kit.stack.holdfast("migrate", "migrate")).await?;
        let mut gate = Proof::begin(kit).await?;
        let before = Sent {
            partition: Some(PARTITION),
            ..sent(Some(b"A"), Some(b"no event"), &[])
        };
        kit.stack.kafka.send(topics::PAYMENTS, &[before]).await?;
        let mut places = Vec::new();
        for codec in ["zstd", "gzip", "lz4"] {
            let producer: FutureProducer = kit
                .stack
                .kafka
                .config()
                .set("compression.codec", codec)
                .set("message.max.bytes", "200000000")
                .set("queue.buffering.max.kbytes", "400000")
                .create()?;
            let swelling = Sent {
                partition: Some(PARTITION),
                ..sent(Some(b"A"), Some(&vec![b' '; 80 << 20]), &[])
            };
            places.extend(send_with(&producer, topics::PAYMENTS, &[swelling]).await?);
        }
        let (first, next) = (places[0].1, places[0].1 + 3);
        let worker = gate.launch("gate").spawn()?;
        let ended = worker.wait(ENDS_WITHIN).await;
        let committed = gate.committed(topics::PAYMENTS, PARTITION);
        let verified = kit.stack.holdfast("verify", "verify").output().await;
        let replayed = replay(kit, PARTITION, first + 1).await;
        // Nobody could read the topic any more.
        let kafka = &kit.stack.kafka;
        kafka.delete_records(topics::PAYMENTS, PARTITION, next).await?;
        // Nor is a gate of another proof to miss it.
        gate.group = "holdfast.gate".to_owned();
        gate.commit(topics::PAYMENTS, &[(PARTITION, next)].into())?;
        ensure!(!ended?.success(), "{}", worker.last_words());
        // What came before the batch is accounted for: moving the group past the batch gives up nothing else.
        ensure!(
            committed? == Offset::Offset(first),
            "the group does not stand at the batch"
        );
        let verified = verified?;
        ensure!(!verified.status.success(), "{verified:?}");
        let named = format!("{}/{PARTITION} from offset {first} to before {next}", topics::PAYMENTS);
        let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
        for words in [worker.last_words(), said(&verified), said(&replayed?)] {
            for expected in [&named[..], "docs/runbook.md#a-batch-cannot-be-unpacked"] {
                ensure!(words.contains(expected), "{expected} is not in {words}");
            }
        }
        Ok(())
    })
}

/// Replays a dead letter about this record of `payments`, which cannot be read. The letter is settled then.
async fn replay(kit: &Kit, partition: i32, offset: i64) -> anyhow::Result<Output> {
    let letter = DeadLetter {
        reason: DeadLetterReason::Undecodable,
        detail: String::new(),
        origin: Origin {
            topic: topics::PAYMENTS.to_owned(),
            partition,
            offset,
            time: OffsetDateTime::UNIX_EPOCH,
        },
    };
    let headers = letter.headers().into_iter();
    let letter = Sent {
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.into_bytes()))
            .collect(),
        ..sent(Some(b"A"), None, &[])
    };
    kit.stack.kafka.send(topics::DEAD_LETTERS, &[letter]).await?;
    let place = format!("{}/{partition}/{offset}", topics::PAYMENTS);
    let replayed = admin(kit, &[&["dead-letters", "replay", &place][..], BY].concat()).await?;
    done(kit, &[&["dead-letters", "drop", &place][..], BY].concat()).await?;
    Ok(replayed)
}

fn a_partition_that_is_new_to_the_group_is_read_from_its_oldest_record(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut gate = Proof::begin(kit).await?;
        // As if it had been added just now: the group has offsets of all others.
        gate.group = format!("{}.new", gate.group);
        let begin = ends(&kit.stack.kafka, topics::RESERVATIONS)?;
        let (_, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            begin.into_iter().partition(|(partition, _)| *partition == 3);
        gate.commit(topics::RESERVATIONS, &others)?;
        gate.commit(topics::PAYMENTS, &ends(&kit.stack.kafka, topics::PAYMENTS)?)?;
        gate.feed(100).await?;
        let worker = gate.launch("gate").start().await?;
        gate.drained().await?;
        let read = |result| worker_count(&worker, result);
        let count = read("admitted").await? + read("dead_letter").await?;
        let oldest_to_end = ends(&kit.stack.kafka, topics::RESERVATIONS)?[&3] as f64;
        ensure!(count >= oldest_to_end, "{count} records of more than {oldest_to_end}");
        worker.stop().await?;
        gate.check().await
    })
}

async fn worker_count(worker: &holdfast_tests::kit::Holdfast, result: &str) -> anyhow::Result<f64> {
    let name = format!(r#"holdfast_gate_records_total{{result="{result}"}}"#);
    Ok(worker.metric(&name).await?.unwrap_or_default())
}

fn a_group_that_has_forgotten_its_offsets_stops_the_gate_which_says_so(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut gate = Proof::begin(kit).await?;
        gate.group = format!("{}.forgotten", gate.group);
        let worker = gate.launch("gate").spawn()?;
        let status = worker.wait(ENDS_WITHIN).await?;
        let words = worker.last_words();
        ensure!(!status.success(), "{status}");
        for expected in ["no committed offsets", "docs/runbook.md#the-gates-offsets-were-lost"] {
            ensure!(words.contains(expected), "{expected} is not in {words}");
        }
        Ok(())
    })
}

fn a_gate_and_a_receiver_of_webhooks_are_ready_only_with_kafka(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let gate = Proof::begin(kit).await?;
        let provider = Simulator::start().await?;
        let receiver = kit.stack.holdfast("webhook", "webhook").provider(&provider).webhooks();
        for (name, launch) in [("gate", gate.launch("gate")), ("webhook", receiver)] {
            let worker = launch.env("HOLDFAST_KAFKA", "127.0.0.1:1").spawn()?;
            until("the process lives", DEADLINE, async || {
                anyhow::Ok(
                    reqwest::get(format!("{}/livez", worker.http))
                        .await?
                        .error_for_status()?,
                )
            })
            .await?;
            let ready = reqwest::get(format!("{}/readyz", worker.http)).await?;
            ensure!(ready.status() == 503, "{name} is ready without Kafka");
            let waits_for = ready.text().await?;
            ensure!(waits_for.contains("kafka"), "{name}: {waits_for}");
        }
        Ok(())
    })
}

/// The dead letter about a record, once there is one. Its reason may be one that this build does not know.
async fn letter(kit: &Kit, topic: &str, place: (i32, i64)) -> anyhow::Result<ReadRecord> {
    until("a dead letter", DEADLINE, async || {
        let letters = kit.stack.kafka.read(topics::DEAD_LETTERS).await?;
        let (partition, offset) = (place.0.to_string(), place.1.to_string());
        let is_it = |letter: &ReadRecord| {
            let says = |name, value: &str| text(letter, name).is_ok_and(|text| text == value);
            says(dead_letter::ORIGIN_TOPIC, topic)
                && says(dead_letter::ORIGIN_PARTITION, &partition)
                && says(dead_letter::ORIGIN_OFFSET, &offset)
        };
        letters.into_iter().find(is_it).context("none yet")
    })
    .await
}

fn text(letter: &ReadRecord, header: &str) -> anyhow::Result<String> {
    let value = letter.headers.iter().rfind(|(name, _)| name == header);
    let (_, value) = value.with_context(|| format!("no header {header}"))?;
    Ok(String::from_utf8(value.clone())?)
}

/// A member of a gate's group that is no gate. It leaves when it is dropped.
struct Member(BaseConsumer);

impl Member {
    fn join(kit: &Kit, group: &str) -> anyhow::Result<Self> {
        let consumer: BaseConsumer = kit
            .stack
            .kafka
            .config()
            .set("group.id", group)
            .set("partition.assignment.strategy", "range")
            .set("enable.auto.commit", "false")
            .create()?;
        consumer.subscribe(&[topics::RESERVATIONS, topics::PAYMENTS])?;
        Ok(Self(consumer))
    }

    /// How many partitions it has by now.
    fn assigned(&self) -> anyhow::Result<i32> {
        if let Some(polled) = self.0.poll(Duration::from_millis(100)) {
            polled?;
        }
        Ok(self.0.assignment()?.count() as i32)
    }
}

/// Stands for the engine's admin API: answers each question with so many unfinished invocations.
struct Engine {
    address: String,
    unfinished: Arc<AtomicU64>,
}

impl Engine {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let unfinished = Arc::new(AtomicU64::new(0));
        let told = unfinished.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(answer(client, told.clone()));
            }
        });
        Ok(Self { address, unfinished })
    }
}

async fn answer(mut client: TcpStream, unfinished: Arc<AtomicU64>) -> anyhow::Result<()> {
    let mut request = vec![0; 16 << 10];
    if client.read(&mut request).await? == 0 {
        return Ok(());
    }
    let waiting = unfinished.load(Ordering::Relaxed);
    let row = json!({
        "waiting": waiting, "counted": waiting, "heads": 0, "stuck_keys": 0, "stuck_waiting": 0, "stuck_counted": 0, "keys": 0,
    });
    let rows = json!({ "rows": [row] }).to_string();
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{rows}",
        rows.len()
    );
    client.write_all(answer.as_bytes()).await?;
    Ok(client.shutdown().await?)
}

/// Not after its whole time to drain, and not as if it had failed: what is not committed is read again.
fn a_gate_ends_although_kafka_takes_no_window(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let gate = Proof::begin(kit).await?;
        let worker = gate.launch("gate").start().await?;
        until(
            "a window is in flight in a Kafka that stands still",
            DEADLINE,
            async || {
                gate.feed(2_000).await?;
                kit.stack.kafka.pause()?;
                let sent = worker
                    .metric(r#"holdfast_stage_seconds_count{stage="admitted"}"#)
                    .await?;
                let settled = worker
                    .metric(r#"holdfast_gate_records_total{result="admitted"}"#)
                    .await?;
                if sent <= settled {
                    kit.stack.kafka.resume()?;
                }
                ensure!(sent > settled, "{sent:?} sent, {settled:?} settled");
                anyhow::Ok(())
            },
        )
        .await?;
        kill(worker.pid(), Signal::SIGTERM)?;
        let ended = worker.wait(DEADLINE).await;
        kit.stack.kafka.resume()?;
        let code = ended?.code();
        ensure!(code == Some(0), "it ended with {code:?}\n{}", worker.last_words());
        let worker = gate.launch("gate").start().await?;
        gate.drained().await?;
        worker.stop().await?;
        gate.check().await
    })
}
