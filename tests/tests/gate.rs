//! The gate alone, on the public topics: it admits or dead-letters every record, in order, through crashes, kills and rebalances.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_schemas::{DeadLetter, TicketEvent, decode_delivery, topics};
use holdfast_tests::kit::kafka::{ReadRecord, Sent, send_with};
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Kafka, Kit, until};
use holdfast_tests::load::now;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    everything_comes_out_in_order_whatever_step_the_gate_dies_at,
    everything_comes_out_in_order_while_gates_are_killed_and_join,
    a_broker_that_dies_loses_nothing,
    a_refused_record_keeps_its_bytes,
    a_gate_whose_offsets_were_lost_stops_and_says_so,
    a_backlog_is_gathered_by_key,
];

pub(crate) const PARTITIONS: i32 = 8;
const OUTCOME_PARTITIONS: i32 = 2;
const DRAINED_WITHIN: Duration = Duration::from_secs(60);
/// A crash point is reached, or a broken gate has stopped.
pub(crate) const ENDS_WITHIN: Duration = Duration::from_secs(40);

fn everything_comes_out_in_order_whatever_step_the_gate_dies_at(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let gate = Proof::begin(kit).await?;
        for point in ["gate.gathered", "gate.sent", "gate.acknowledged", "gate.committed"] {
            gate.feed(300).await?;
            let crashing = gate.launch("gate").env("HOLDFAST_CRASH", point).spawn()?;
            let status = crashing.wait(ENDS_WITHIN).await.context(point)?;
            ensure!(!status.success(), "{point}: {status}");

            gate.feed(300).await?;
            let repeating = gate.launch("gate").env("HOLDFAST_REPEAT", point).start().await?;
            gate.drained().await.context(point)?;
            repeating.stop().await?;
        }
        gate.check().await
    })
}

fn everything_comes_out_in_order_while_gates_are_killed_and_join(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let gate = Proof::begin(kit).await?;
        let mut first = gate.launch("gate").start().await?;
        for round in 0..4 {
            gate.feed(1_000).await?;
            let second = gate.launch("gate-b").start().await?;
            gate.feed(1_000).await?;
            if round % 2 == 0 {
                second.stop().await?;
            } else {
                second.pause()?;
                gate.feed(500).await?;
            }
            first.kill()?;
            gate.feed(1_000).await?;
            if round % 2 == 1 {
                // It resumes late: its partitions are unassigned, or assigned to the other gate.
                second.resume()?;
            }
            first = gate.launch("gate").start().await?;
        }
        gate.drained().await?;
        first.stop().await?;
        gate.check().await
    })
}

fn a_broker_that_dies_loses_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let gate = Proof::begin(kit).await?;
        gate.feed(5_000).await?;
        let worker = gate.launch("gate").start().await?;
        kit.stack.kafka.kill()?;
        kit.stack.kafka.start().await?;
        gate.feed(1_000).await?;
        gate.drained().await?;
        worker.stop().await?;
        gate.check().await
    })
}

fn a_refused_record_keeps_its_bytes(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let gate = Proof::begin(kit).await?;
        let worker = gate.launch("gate").start().await?;
        let headers = vec![("x".to_owned(), b"\xff".to_vec()), ("x".to_owned(), vec![])];
        let mut poison = vec![
            sent(None, Some(b"{}"), &headers),
            sent(Some(b""), Some(b"{}"), &[]),
            sent(Some(b"\xff\xfe"), Some(b"{}"), &headers),
            sent(Some(b"A"), None, &[]),
            sent(Some(b"A"), Some(b""), &[]),
            sent(Some(b"A"), Some(&[0xff; 1_000]), &headers),
        ];
        // As large as the broker accepts: the record and its batch add headers of their own.
        let noise: Vec<u8> = (0..(1_u32 << 20) - 200)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        poison.push(sent(Some(b"A"), Some(&noise), &[]));
        let mut places = kit.stack.kafka.send(topics::RESERVATIONS, &poison).await?;
        for codec in ["gzip", "snappy", "lz4", "zstd"] {
            let large = sent(Some(b"A"), Some(&vec![b' '; 3 << 20]), &[]);
            let producer = kit.stack.kafka.producer(codec)?;
            places.extend(send_with(&producer, topics::RESERVATIONS, std::slice::from_ref(&large)).await?);
            poison.push(large);
        }
        gate.drained().await?;
        worker.stop().await?;

        let letters = kit.stack.kafka.read_letters().await?;
        for (place, original) in places.iter().zip(&poison) {
            let letter = letters
                .get(place)
                .with_context(|| format!("{place:?} is no dead letter"))?;
            ensure!(
                letter.key == original.key && letter.value == original.value,
                "{place:?} has other bytes"
            );
            ensure!(
                letter.headers.starts_with(&original.headers),
                "{place:?}: {:?}",
                letter.headers
            );
        }
        Ok(())
    })
}

fn a_gate_whose_offsets_were_lost_stops_and_says_so(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let gate = Proof::begin(kit).await?;
        gate.commit(topics::RESERVATIONS, &BTreeMap::from([(3, 1_000_000_000)]))?;
        let worker = gate.launch("gate").spawn()?;
        let status = worker.wait(ENDS_WITHIN).await?;
        let words = worker.last_words();
        ensure!(!status.success(), "{status}");
        for expected in [
            "reservations/3 (committed 1000000000",
            "docs/runbook.md#the-gates-offsets-were-lost",
        ] {
            ensure!(words.contains(expected), "{expected} is not in {words}");
        }
        Ok(())
    })
}

fn a_backlog_is_gathered_by_key(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let gate = Proof::begin(kit).await?;
        let before = kit.stack.kafka.read(topics::RESERVATIONS_ADMITTED).await?.len();
        gate.feed(20_000).await?;
        let worker = gate.launch("gate").start().await?;
        gate.drained().await?;
        worker.stop().await?;
        let records = kit.stack.kafka.read(topics::RESERVATIONS_ADMITTED).await?.len() - before;
        ensure!(
            records < 20_000 / 8,
            "{records} admitted records for 20,000 events of 50 tickets"
        );
        Ok(())
    })
}

/// One gate group of its own, which begins at the ends of the public topics, and tickets of its own.
pub(crate) struct Proof<'a> {
    pub(crate) kit: &'a Kit,
    pub(crate) run: String,
    pub(crate) group: String,
    /// The end of each partition when the proof began.
    begin: BTreeMap<i32, i64>,
}

impl<'a> Proof<'a> {
    pub(crate) async fn begin(kit: &'a Kit) -> anyhow::Result<Self> {
        create_topics(&kit.stack.kafka).await?;
        let run = Uuid::new_v4().simple().to_string();
        let begin = ends(&kit.stack.kafka, topics::RESERVATIONS)?;
        let proof = Self {
            kit,
            group: format!("proof.gate.{run}"),
            run,
            begin,
        };
        proof.commit(topics::RESERVATIONS, &proof.begin)?;
        proof.commit(topics::PAYMENTS, &ends(&kit.stack.kafka, topics::PAYMENTS)?)?;
        Ok(proof)
    }

    pub(crate) fn launch(&self, instance: &str) -> Launch<'a> {
        let launch = self.kit.stack.holdfast("gate", instance);
        launch.env("HOLDFAST_GATE_GROUP", &self.group)
    }

    pub(crate) fn commit(&self, topic: &str, offsets: &BTreeMap<i32, i64>) -> anyhow::Result<()> {
        let consumer: BaseConsumer = self.kit.stack.kafka.config().set("group.id", &self.group).create()?;
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
        }
        Ok(consumer.commit(&list, CommitMode::Sync)?)
    }

    /// The offset that the gate has committed.
    pub(crate) fn committed(&self, topic: &str, partition: i32) -> anyhow::Result<Offset> {
        let consumer: BaseConsumer = self.kit.stack.kafka.config().set("group.id", &self.group).create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        let committed = consumer.committed_offsets(list, Duration::from_secs(10))?;
        let committed = committed.find_partition(topic, partition);
        Ok(committed.context("not asked for")?.offset())
    }

    /// Sends this many requests for 50 tickets; one in forty is no event.
    pub(crate) async fn feed(&self, records: usize) -> anyhow::Result<()> {
        let time = now().format(&Rfc3339)?;
        let records: Vec<Sent> = (0..records)
            .map(|place| {
                let key = format!("{}-{}", self.run, place % 50);
                let id = Uuid::new_v4();
                let value = match place % 40 {
                    39 => "no event".to_owned(),
                    _ => format!(
                        r#"{{"specversion":"1.0","type":"holdfast.reservation.requested.v1","source":"proof","id":"{id}","subject":"{key}","time":"{time}","data":{{"user":"ann"}}}}"#
                    ),
                };
                sent(Some(key.as_bytes()), Some(value.as_bytes()), &[])
            })
            .collect();
        self.kit
            .stack
            .kafka
            .send(topics::RESERVATIONS, &records)
            .await
            .map(drop)
    }

    /// Waits until the group has committed the end of every partition.
    pub(crate) async fn drained(&self) -> anyhow::Result<()> {
        until("the gate has read everything", DRAINED_WITHIN, async || {
            let ends = ends(&self.kit.stack.kafka, topics::RESERVATIONS)?;
            let consumer: BaseConsumer = self.kit.stack.kafka.config().set("group.id", &self.group).create()?;
            let mut list = TopicPartitionList::new();
            list.add_partition_range(topics::RESERVATIONS, 0, PARTITIONS - 1);
            let committed = consumer.committed_offsets(list, Duration::from_secs(5))?;
            for partition in committed.elements() {
                let end = ends[&partition.partition()];
                ensure!(
                    partition.offset() == Offset::Offset(end),
                    "partition {}: {:?} of {end}",
                    partition.partition(),
                    partition.offset()
                );
            }
            Ok(())
        })
        .await
    }

    /// Every record since the proof began is admitted or a dead letter, and first occurrences of a key are in order.
    pub(crate) async fn check(&self) -> anyhow::Result<()> {
        let kafka = &self.kit.stack.kafka;
        let letters = kafka.read_letters().await?;
        let mut admitted: HashMap<(i32, i64), usize> = HashMap::new();
        let mut last: HashMap<String, i64> = HashMap::new();
        for record in kafka.read(topics::RESERVATIONS_ADMITTED).await? {
            for event in decode_delivery::<TicketEvent>(&record.value.unwrap_or_default())? {
                let event = event.map_err(|undecoded| undecoded.refusal)?;
                let origin = event.origin.context("an admitted event has no origin")?;
                let first = admitted.entry((origin.partition, origin.offset)).or_default();
                *first += 1;
                if *first == 1 && event.subject.as_str().starts_with(&self.run) {
                    let before = last.insert(event.subject.to_string(), origin.offset).unwrap_or(-1);
                    ensure!(
                        before < origin.offset,
                        "{}: {} after {before}",
                        event.subject,
                        origin.offset
                    );
                }
            }
        }
        for (partition, end) in ends(kafka, topics::RESERVATIONS)? {
            for offset in self.begin[&partition]..end {
                let place = (partition, offset);
                ensure!(
                    admitted.contains_key(&place) != letters.contains_key(&place),
                    "{place:?}: admitted {:?}, dead letter {}",
                    admitted.get(&place),
                    letters.contains_key(&place)
                );
            }
        }
        Ok(())
    }
}

pub(crate) trait Letters {
    /// The dead letters about reservations, by partition and offset of their origin.
    async fn read_letters(&self) -> anyhow::Result<HashMap<(i32, i64), ReadRecord>>;
}

impl Letters for Kafka {
    async fn read_letters(&self) -> anyhow::Result<HashMap<(i32, i64), ReadRecord>> {
        let mut letters = HashMap::new();
        for record in self.read(topics::DEAD_LETTERS).await? {
            let headers = record
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), Some(value.as_slice())));
            let origin = DeadLetter::from_headers(headers)?.origin;
            if origin.topic == topics::RESERVATIONS {
                letters.insert((origin.partition, origin.offset), record);
            }
        }
        Ok(letters)
    }
}

pub(crate) fn sent(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(String, Vec<u8>)]) -> Sent {
    Sent {
        key: key.map(Vec::from),
        value: value.map(Vec::from),
        headers: headers.to_vec(),
        ..Sent::default()
    }
}

pub(crate) fn ends(kafka: &Kafka, topic: &str) -> anyhow::Result<BTreeMap<i32, i64>> {
    let consumer: BaseConsumer = kafka.config().create()?;
    (0..PARTITIONS)
        .map(|partition| {
            let (_, end) = consumer.fetch_watermarks(topic, partition, Duration::from_secs(10))?;
            Ok((partition, end))
        })
        .collect()
}

/// The topics as `register` makes them, unless they are there.
pub(crate) async fn create_topics(kafka: &Kafka) -> anyhow::Result<()> {
    let consumer: BaseConsumer = kafka.config().create()?;
    let metadata = consumer.fetch_metadata(None, Duration::from_secs(10))?;
    let kept = [("cleanup.policy", "delete"), ("retention.ms", "1209600000")];
    let public = [
        ("max.message.bytes", "1048576"),
        ("message.timestamp.type", "LogAppendTime"),
    ];
    let letters = [
        ("max.message.bytes", "4194304"),
        ("message.timestamp.type", "LogAppendTime"),
    ];
    let source = [&kept[..], &public, &[("compression.type", "zstd")]].concat();
    let outcomes = [&kept[..], &public].concat();
    let admitted = [&kept[..], &[("max.message.bytes", "4194304")]].concat();
    for (name, partitions, settings) in [
        (topics::RESERVATIONS, PARTITIONS, &source),
        (topics::PAYMENTS, PARTITIONS, &source),
        (topics::RESERVATIONS_OUTCOMES, OUTCOME_PARTITIONS, &outcomes),
        (topics::PAYMENTS_OUTCOMES, OUTCOME_PARTITIONS, &outcomes),
        (topics::LEDGER_ENTRIES, OUTCOME_PARTITIONS, &outcomes),
        (topics::DEAD_LETTERS, PARTITIONS, &[&kept[..], &letters].concat()),
        (topics::RESERVATIONS_ADMITTED, PARTITIONS, &admitted),
        (topics::PAYMENTS_ADMITTED, PARTITIONS, &admitted),
        (
            topics::RELAY_MARK,
            1,
            &vec![("cleanup.policy", "compact"), ("segment.bytes", "16777216")],
        ),
    ] {
        if metadata.topics().iter().any(|topic| topic.name() == name) {
            continue;
        }
        kafka.create_topic(name, partitions, settings).await?;
    }
    Ok(())
}
