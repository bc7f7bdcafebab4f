//! The load generator: a producer of events and a consumer of outcomes, written as a third party would. It knows Kafka,
//! JSON and the catalogue, and nothing of the product's code.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::kit::Kafka;
use crate::kit::kafka::{GIVEN_UP_AFTER, ReadRecord};

pub const RESERVATIONS: &str = "reservations";
pub const OUTCOMES: &str = "reservations.outcomes";
pub const PAYMENTS: &str = "payments";
pub const PAYMENT_OUTCOMES: &str = "payments.outcomes";
pub const DEAD_LETTERS: &str = "dead-letters";
/// The `source` of every event from here.
pub const SOURCE: &str = "box-office";

/// Longest wait for an answer of Kafka.
const PATIENCE: Duration = Duration::from_secs(30);
/// Paced events are sent in handfuls, this often.
const BEAT: Duration = Duration::from_millis(5);

/// One CloudEvent, structured. Sent again it is the same, its time included.
#[derive(Clone, Serialize)]
pub struct Event {
    specversion: &'static str,
    pub id: String,
    pub source: &'static str,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub subject: String,
    pub time: String,
    pub data: Value,
}

impl Event {
    pub fn listed(id: String, ticket: &str, seat: &str) -> Event {
        Event::listed_for(id, ticket, "the-show", seat)
    }

    pub fn listed_for(id: String, ticket: &str, show: &str, seat: &str) -> Event {
        let data = json!({ "show": show, "seat": seat, "price": { "amount": 4_500, "currency": "EUR" } });
        Event::new(id, ticket, "holdfast.ticket.listed.v1", data)
    }

    pub fn withdrawn(id: String, ticket: &str) -> Event {
        Event::new(id, ticket, "holdfast.ticket.withdrawn.v1", json!({}))
    }

    pub fn requested(id: String, ticket: &str, user: &str) -> Event {
        Event::new(id, ticket, "holdfast.reservation.requested.v1", json!({ "user": user }))
    }

    /// `seconds`: how long the ticket is to be held.
    pub fn requested_for(id: String, ticket: &str, user: &str, seconds: u32) -> Event {
        let data = json!({ "user": user, "hold_for": seconds });
        Event::new(id, ticket, "holdfast.reservation.requested.v1", data)
    }

    pub fn released(id: String, ticket: &str, user: &str, hold: &str) -> Event {
        let data = json!({ "user": user, "hold": hold });
        Event::new(id, ticket, "holdfast.reservation.released.v1", data)
    }

    pub fn registered(id: String, user: &str) -> Event {
        let data = json!({ "email": format!("{user}@example.org") });
        Event::new(id, user, "holdfast.user.registered.v1", data)
    }

    pub fn credits_added(id: String, user: &str, amount: i64) -> Event {
        Event::new(id, user, "holdfast.credits.added.v1", json!({ "amount": amount }))
    }

    /// `data`: checkout, tickets, and how they are paid.
    pub fn checkout_requested(id: String, user: &str, data: Value) -> Event {
        Event::new(id, user, "holdfast.checkout.requested.v1", data)
    }

    pub fn checkout_retried(id: String, user: &str, checkout: &str, method: &str) -> Event {
        let data = json!({ "checkout": checkout, "payment_method": method });
        Event::new(id, user, "holdfast.checkout.retried.v1", data)
    }

    pub fn checkout_cancelled(id: String, user: &str, checkout: &str) -> Event {
        let data = json!({ "checkout": checkout });
        Event::new(id, user, "holdfast.checkout.cancelled.v1", data)
    }

    /// The shop takes this ticket of an order back.
    pub fn order_returned(id: String, user: &str, checkout: &str, ticket: &str) -> Event {
        let data = json!({ "checkout": checkout, "tickets": [ticket] });
        Event::new(id, user, "holdfast.order.returned.v1", data)
    }

    fn new(id: String, subject: &str, kind: &'static str, data: Value) -> Event {
        Event {
            specversion: "1.0",
            id,
            source: SOURCE,
            kind,
            subject: String::from(subject),
            time: timestamp(now()),
            data,
        }
    }

    pub fn record(&self) -> Record {
        Record {
            key: Some(self.subject.clone().into_bytes()),
            value: Some(serde_json::to_vec(self).expect("texts and JSON can be written")),
        }
    }
}

/// The time that a producer puts into its events.
#[expect(clippy::disallowed_methods, reason = "a producer has only the clock of its machine")]
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

pub fn timestamp(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).expect("the years of today have four digits")
}

/// Bytes to send, whether they make sense or not.
#[derive(Clone, Debug)]
pub struct Record {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

/// Sends to one topic, in the order given.
pub struct Producer {
    producer: FutureProducer,
    topic: String,
    unacknowledged: Vec<DeliveryFuture>,
}

impl Producer {
    pub fn new(kafka: &Kafka, topic: &str) -> anyhow::Result<Producer> {
        Ok(Producer {
            producer: kafka.producer("none")?,
            topic: String::from(topic),
            unacknowledged: Vec::new(),
        })
    }

    /// Returns at once; [`Producer::flush`] tells whether it arrived.
    pub fn send(&mut self, record: &Record) -> anyhow::Result<()> {
        let content_type = Header {
            key: "content-type",
            value: Some("application/cloudevents+json"),
        };
        let mut out: FutureRecord<'_, [u8], [u8]> =
            FutureRecord::to(&self.topic).headers(OwnedHeaders::new().insert(content_type));
        out.key = record.key.as_deref();
        out.payload = record.value.as_deref();
        let delivery = self.producer.send_result(out).map_err(|(error, _)| error)?;
        self.unacknowledged.push(delivery);
        Ok(())
    }

    /// Sends at `pace`; returns the time at which each event was sent, in order.
    pub async fn send_all(&mut self, events: impl Iterator<Item = Event>, pace: Pace) -> anyhow::Result<Vec<Instant>> {
        let mut sent = Vec::new();
        let mut beats = pace.beats();
        for event in events {
            beats.wait_for(sent.len()).await;
            // The event is made here, so that its own time is that of sending.
            sent.push(Instant::now());
            self.send(&event.record())?;
        }
        self.flush().await?;
        Ok(sent)
    }

    /// Returns once everything sent is acknowledged.
    pub async fn flush(&mut self) -> anyhow::Result<()> {
        for delivery in self.unacknowledged.drain(..) {
            delivery.await?.map_err(|(error, _)| error)?;
        }
        Ok(())
    }
}

/// The rate of sending.
#[derive(Clone, Copy)]
pub enum Pace {
    FullSpeed,
    PerSecond(u32),
}

impl Pace {
    /// Starts now.
    pub fn beats(self) -> Beats {
        let mut ticks = interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Beats {
            pace: self,
            start: Instant::now(),
            ticks,
        }
    }
}

/// A pace under way.
pub struct Beats {
    pace: Pace,
    start: Instant,
    ticks: tokio::time::Interval,
}

impl Beats {
    /// Events that may have been sent by now.
    pub fn due(&self) -> usize {
        match self.pace {
            Pace::FullSpeed => usize::MAX,
            Pace::PerSecond(rate) => (self.start.elapsed().as_secs_f64() * f64::from(rate)) as usize,
        }
    }

    async fn wait_for(&mut self, number: usize) {
        while self.due() <= number {
            self.ticks.tick().await;
        }
    }
}

/// A record as it came in.
pub struct Arrival {
    pub at: Instant,
    pub record: ReadRecord,
}

/// Reads a topic from its beginning on as a `read_committed` consumer, until the receiver is dropped.
pub fn follow(kafka: &Kafka, topic: &str) -> anyhow::Result<mpsc::UnboundedReceiver<anyhow::Result<Arrival>>> {
    let mut config: ClientConfig = kafka.config();
    config
        .set("group.id", "holdfast.tests.load")
        .set("enable.auto.commit", "false")
        .set("socket.timeout.ms", GIVEN_UP_AFTER)
        .set("isolation.level", "read_committed");
    let consumer: BaseConsumer = config.create()?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let mut assignment = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
    }
    ensure!(assignment.count() > 0, "no topic {topic}");
    consumer.assign(&assignment)?;
    let (arrivals, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        while !arrivals.is_closed() {
            let arrival = match consumer.poll(Duration::from_millis(100)) {
                None => continue,
                Some(Ok(message)) => Ok(Arrival {
                    at: Instant::now(),
                    record: ReadRecord::from(&message),
                }),
                Some(Err(error)) => Err(error.into()),
            };
            if arrivals.send(arrival).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// An outcome, with the fields that this consumer needs.
#[derive(Deserialize)]
pub struct Outcome {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub subject: String,
    /// Source of the event that caused it: [`SOURCE`], or a part of Holdfast.
    pub causationsource: String,
    /// Id of that event.
    pub causationid: String,
    pub data: OutcomeFields,
}

/// The data of any outcome; which fields there are depends on its type.
#[derive(Deserialize)]
pub struct OutcomeFields {
    pub user: Option<String>,
    pub hold: Option<String>,
    pub reason: Option<String>,
    pub checkout: Option<String>,
    /// Those of a checkout.
    #[serde(default)]
    pub tickets: Vec<String>,
    /// The price of a checkout.
    pub total: Option<Money>,
    /// The part of it that credits pay.
    pub credits: Option<i64>,
    /// The amount refunded.
    pub amount: Option<Money>,
    /// The amount that a return gives back, or the id of a refund that has failed.
    pub refund: Option<Value>,
    /// True when nothing is left to refund.
    pub full: Option<bool>,
}

#[derive(Deserialize)]
pub struct Money {
    pub amount: i64,
}

impl Outcome {
    pub fn read(record: &ReadRecord) -> anyhow::Result<Outcome> {
        let value = record
            .value
            .as_deref()
            .ok_or_else(|| anyhow!("an outcome without a value"))?;
        Ok(serde_json::from_slice(value)?)
    }

    /// `held` of `holdfast.outcome.ticket.held.v1`.
    pub fn verb(&self) -> &str {
        self.kind.rsplit('.').nth(1).unwrap_or(&self.kind)
    }
}

/// Names with a count each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<String, u64>);

impl Tally {
    pub fn add(&mut self, name: &str) {
        *self.0.entry(String::from(name)).or_default() += 1;
    }

    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// The most frequent first.
impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut names: Vec<_> = self.0.iter().collect();
        names.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (place, (name, count)) in names.into_iter().enumerate() {
            let separator = if place == 0 { "" } else { ", " };
            write!(f, "{separator}{name} {count}")?;
        }
        Ok(())
    }
}

/// The smallest duration that at least `percent` of all do not exceed; zero if there are none.
pub fn percentile(durations: &mut [Duration], percent: f64) -> Duration {
    durations.sort_unstable();
    let rank = (durations.len() as f64 * percent / 100.0).ceil() as usize;
    durations.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_durations() {
        let mut durations: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut durations, 50.0), Duration::from_millis(100));
        assert_eq!(percentile(&mut durations, 99.0), Duration::from_millis(198));
        assert_eq!(percentile(&mut durations, 100.0), Duration::from_millis(200));
        assert_eq!(percentile(&mut [], 99.0), Duration::ZERO);
    }

    #[test]
    fn an_event_is_a_structured_cloudevent_with_its_ticket_as_key() {
        let record = Event::requested(String::from("1"), "A-1", "ann").record();
        assert_eq!(record.key.as_deref(), Some(&b"A-1"[..]));
        let read: Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
        assert_eq!(read["type"], "holdfast.reservation.requested.v1");
        assert_eq!((&read["subject"], &read["specversion"]), (&json!("A-1"), &json!("1.0")));
    }
}
