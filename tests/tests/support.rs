//! Shared by several proofs: events as a shop writes them, their outcomes and dead letters, and the wait for the idle stack on
//! which `verify` is run.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use holdfast_schemas::{DeadLetter, Outcome, OutcomeData, TicketOutcome, dead_letter, topics};
use holdfast_tests::kit::kafka::{ReadRecord, Sent};
pub(crate) use holdfast_tests::kit::worker::clean_by;
use holdfast_tests::kit::{Kit, until};
use holdfast_tests::load::{now, timestamp};
use rdkafka::admin::{AdminOptions, AlterConfig, ConfigSource, ResourceSpecifier};
use serde_json::{Value, json};

/// Longest wait for anything that must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The `source` of the events made here.
pub(crate) const SHOP: &str = "proofs-shop";

/// A CloudEvent of `holdfast.<kind>.v1`. Its id must be unlike all others.
pub(crate) fn event(id: &str, subject: &str, kind: &str, data: Value) -> Value {
    json!({
        "specversion": "1.0",
        "id": id,
        "source": SHOP,
        "type": format!("holdfast.{kind}.v1"),
        "subject": subject,
        "time": timestamp(now()),
        "data": data,
    })
}

pub(crate) fn listed(id: &str, ticket: &str) -> Value {
    let data = json!({ "show": "proofs", "price": { "amount": 4_500, "currency": "EUR" } });
    event(id, ticket, "ticket.listed", data)
}

pub(crate) fn requested(id: &str, ticket: &str, user: &str) -> Value {
    event(id, ticket, "reservation.requested", json!({ "user": user }))
}

/// The event as a record in structured mode.
pub(crate) fn structured(event: &Value) -> Sent {
    Sent {
        key: event["subject"].as_str().map(Vec::from),
        value: Some(event.to_string().into_bytes()),
        headers: vec![header("content-type", "application/cloudevents+json")],
        ..Sent::default()
    }
}

/// The event as a record in binary mode.
pub(crate) fn binary(event: &Value) -> Sent {
    let attributes = event.as_object().into_iter().flatten();
    let attributes = attributes.filter_map(|(name, value)| Some((name, value.as_str()?)));
    let headers = attributes.map(|(name, value)| header(&format!("ce_{name}"), value));
    Sent {
        key: event["subject"].as_str().map(Vec::from),
        value: Some(event["data"].to_string().into_bytes()),
        headers: headers.chain([header("content-type", "application/json")]).collect(),
        ..Sent::default()
    }
}

pub(crate) fn header(name: &str, value: &str) -> (String, Vec<u8>) {
    (name.to_owned(), value.as_bytes().to_vec())
}

/// Sends events to `reservations` in structured mode; returns partition and offset of each.
pub(crate) async fn send(kit: &Kit, events: &[Value]) -> anyhow::Result<Vec<(i32, i64)>> {
    send_to(kit, topics::RESERVATIONS, events).await
}

/// As [`send`], to `payments`.
pub(crate) async fn pay(kit: &Kit, events: &[Value]) -> anyhow::Result<Vec<(i32, i64)>> {
    send_to(kit, topics::PAYMENTS, events).await
}

async fn send_to(kit: &Kit, topic: &str, events: &[Value]) -> anyhow::Result<Vec<(i32, i64)>> {
    let records: Vec<Sent> = events.iter().map(structured).collect();
    kit.stack.kafka.send(topic, &records).await
}

/// The outcomes so far of the tickets whose ids begin with `prefix`, those of one ticket in their order.
pub(crate) async fn outcomes(kit: &Kit, prefix: &str) -> anyhow::Result<Vec<Outcome<TicketOutcome>>> {
    outcomes_of(kit, prefix).await
}

/// As [`outcomes`], once there are `count`; more are an error.
pub(crate) async fn told(kit: &Kit, prefix: &str, count: usize) -> anyhow::Result<Vec<Outcome<TicketOutcome>>> {
    told_of(kit, prefix, count).await
}

/// The outcomes so far of whatever has an id that begins with `prefix`, those of one key in their order.
pub(crate) async fn outcomes_of<T: OutcomeData>(kit: &Kit, prefix: &str) -> anyhow::Result<Vec<Outcome<T>>> {
    let records = kit.stack.kafka.read(T::TOPIC).await?;
    let ours = records.iter().filter(|record| {
        record
            .key
            .as_ref()
            .is_some_and(|key| key.starts_with(prefix.as_bytes()))
    });
    ours.map(|record| {
        let value = record.value.as_deref().context("an outcome without a value")?;
        Ok(Outcome::from_json(value)?)
    })
    .collect()
}

/// As [`outcomes_of`], once there are `count`; more are an error.
pub(crate) async fn told_of<T: OutcomeData>(kit: &Kit, prefix: &str, count: usize) -> anyhow::Result<Vec<Outcome<T>>> {
    let outcomes = until(&format!("{count} outcomes of {prefix}"), DEADLINE, async || {
        let outcomes = outcomes_of(kit, prefix).await?;
        ensure!(outcomes.len() >= count, "{} outcomes", outcomes.len());
        Ok(outcomes)
    })
    .await?;
    ensure!(outcomes.len() == count, "{} outcomes: {outcomes:?}", outcomes.len());
    Ok(outcomes)
}

/// `held`, or the reason of the refusal.
pub(crate) fn verdict<T: OutcomeData>(outcome: &Outcome<T>) -> String {
    let verb = outcome.data.outcome_type().rsplit('.').nth(1).unwrap_or_default();
    outcome.data.refusal().unwrap_or(verb).to_owned()
}

pub(crate) fn verdicts<T: OutcomeData>(outcomes: &[Outcome<T>]) -> Vec<String> {
    outcomes.iter().map(verdict).collect()
}

/// A dead letter, decoded and raw.
#[derive(Debug)]
pub(crate) struct FoundLetter {
    pub(crate) says: DeadLetter,
    pub(crate) record: ReadRecord,
}

impl FoundLetter {
    /// The headers that the original came with.
    pub(crate) fn headers(&self) -> Vec<(String, Vec<u8>)> {
        let own = self
            .record
            .headers
            .iter()
            .filter(|(name, _)| !dead_letter::is_own(name));
        own.cloned().collect()
    }
}

/// The dead letters about the records at `places` of the reservations, by partition and offset, once each has one.
pub(crate) async fn letters(kit: &Kit, places: &[(i32, i64)]) -> anyhow::Result<BTreeMap<(i32, i64), FoundLetter>> {
    letters_about(kit, topics::RESERVATIONS, places).await
}

/// As [`letters`], of any public topic.
pub(crate) async fn letters_about(
    kit: &Kit,
    topic: &str,
    places: &[(i32, i64)],
) -> anyhow::Result<BTreeMap<(i32, i64), FoundLetter>> {
    until("dead letters", DEADLINE, async || {
        let mut letters = dead_letters(kit, topic).await?;
        letters.retain(|place, _| places.contains(place));
        let missing: Vec<_> = places.iter().filter(|place| !letters.contains_key(place)).collect();
        ensure!(missing.is_empty(), "none about {missing:?}");
        Ok(letters)
    })
    .await
}

/// Every dead letter so far about a topic, by partition and offset of its record. There may be several copies of one.
async fn dead_letters(kit: &Kit, topic: &str) -> anyhow::Result<BTreeMap<(i32, i64), FoundLetter>> {
    let mut letters = BTreeMap::new();
    for record in kit.stack.kafka.read(topics::DEAD_LETTERS).await? {
        let headers = record.headers.iter();
        let says = DeadLetter::from_headers(headers.map(|(name, value)| (name.as_str(), Some(value.as_slice()))))?;
        if says.origin.topic == topic {
            letters.insert(
                (says.origin.partition, says.origin.offset),
                FoundLetter { says, record },
            );
        }
    }
    Ok(letters)
}

/// Waits until every record is accounted for; then `verify` must find every promise kept. Returns its counts.
pub(crate) async fn clean(kit: &Kit) -> anyhow::Result<Value> {
    clean_by(|| kit.stack.holdfast("verify", "verify")).await
}

/// Changes one setting of a topic, as any other client may, and leaves its other settings as they are.
pub(crate) async fn set_topic(kit: &Kit, topic: &str, name: &str, value: &str) -> anyhow::Result<()> {
    let (admin, options) = (kit.stack.kafka.admin()?, AdminOptions::new());
    let resource = ResourceSpecifier::Topic(topic);
    let described = admin.describe_configs([&resource], &options).await?.into_iter().next();
    let described = described
        .context("no such topic")?
        .map_err(|code| anyhow!("describe {topic}: {code}"))?;
    let kept = described
        .entries
        .iter()
        .filter(|entry| entry.source == ConfigSource::DynamicTopic && entry.name != name);
    let kept = kept.filter_map(|entry| Some((entry.name.as_str(), entry.value.as_deref()?)));
    let all = kept.chain([(name, value)]);
    let change = all.fold(AlterConfig::new(resource), |change, (name, value)| {
        change.set(name, value)
    });
    for changed in admin.alter_configs([&change], &options).await? {
        changed.map_err(|(_, code)| anyhow!("alter {topic}: {code}"))?;
    }
    Ok(())
}
