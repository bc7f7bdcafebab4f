//! Sells a seat by events: `send binary|structured list-and-hold|buy SHOP TIME`
//!
//! TIME is when the shop decided it. Whoever is not sure whether an event arrived sends it again, with the same id and time.

use std::env::{args, var};

use anyhow::{Context, bail};
use cloudevents::event::SpecVersion;
use cloudevents::message::{
    BinaryDeserializer, BinarySerializer, MessageAttributeValue, Result, StructuredDeserializer, StructuredSerializer,
};
use cloudevents::{AttributesReader, Event, EventBuilder, EventBuilderV10};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};

/// An event as Kafka's protocol binding has it. The SDK brings its own only for an older version of the client.
#[derive(Default)]
struct Record {
    headers: OwnedHeaders,
    value: Vec<u8>,
}

impl Record {
    fn header(mut self, name: &str, value: &str) -> Record {
        let header = Header { key: name, value: Some(value) };
        self.headers = self.headers.insert(header);
        self
    }
}

impl BinarySerializer<Record> for Record {
    fn set_spec_version(self, version: SpecVersion) -> Result<Record> {
        Ok(self.header("ce_specversion", &version.to_string()))
    }

    fn set_attribute(self, name: &str, value: MessageAttributeValue) -> Result<Record> {
        match name {
            "datacontenttype" => Ok(self.header("content-type", &value.to_string())),
            _ => Ok(self.header(&format!("ce_{name}"), &value.to_string())),
        }
    }

    fn set_extension(self, name: &str, value: MessageAttributeValue) -> Result<Record> {
        self.set_attribute(name, value)
    }

    fn end_with_data(self, value: Vec<u8>) -> Result<Record> {
        Ok(Record { value, ..self })
    }

    fn end(self) -> Result<Record> {
        Ok(self)
    }
}

impl StructuredSerializer<Record> for Record {
    fn set_structured_event(self, value: Vec<u8>) -> Result<Record> {
        Ok(Record { value, ..self.header("content-type", "application/cloudevents+json") })
    }
}

struct Shop {
    name: String,
    time: String,
}

impl Shop {
    fn event(&self, id: &str, kind: &str, subject: &str, data: Value) -> anyhow::Result<Event> {
        let event = EventBuilderV10::new()
            .id(format!("{}/{id}", self.name)) // with the source, names the event for ever
            .source("https://shop.example/recipes/rust")
            .ty(format!("holdfast.{kind}"))
            .subject(subject)
            .time(self.time.as_str())
            .data("application/json", data);
        Ok(event.build()?)
    }

    fn list_and_hold(&self) -> anyhow::Result<Vec<(&'static str, Event)>> {
        let (shop, seat) = (&self.name, |number| format!("{}/A{number}", self.name));
        let mut events = Vec::new();
        for number in [1, 2] {
            let price = json!({ "amount": 4500, "currency": "EUR" });
            let terms = json!({ "show": shop, "seat": format!("Row A, seat {number}"), "price": price });
            let listed = self.event(&format!("list-{number}"), "ticket.listed.v1", &seat(number), terms)?;
            events.push(("reservations", listed));
        }
        // Bob comes second, and is refused.
        for user in ["ann", "bob"] {
            let data = json!({ "user": format!("{shop}/{user}") });
            let requested = self.event(&format!("hold-{user}"), "reservation.requested.v1", &seat(1), data)?;
            events.push(("reservations", requested));
        }
        let ann = json!({ "email": "ann@example.org" });
        let registered = self.event("register-ann", "user.registered.v1", &format!("{shop}/ann"), ann)?;
        events.push(("payments", registered));
        Ok(events)
    }

    fn buy(&self) -> anyhow::Result<Vec<(&'static str, Event)>> {
        let shop = &self.name;
        let tickets = [format!("{shop}/A1")];
        let order = json!({
            "checkout": format!("{shop}/order-1"), "tickets": tickets, "payment_method": "pm_card_visa",
        });
        let requested = self.event("order-1", "checkout.requested.v1", &format!("{shop}/ann"), order)?;
        Ok(vec![("payments", requested)])
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let [mode, step, name, time] = &args().skip(1).collect::<Vec<_>>()[..] else {
        bail!("send binary|structured list-and-hold|buy SHOP TIME");
    };
    let (name, time) = (name.clone(), time.clone());
    let shop = Shop { name, time };
    let events = match step.as_str() {
        "list-and-hold" => shop.list_and_hold()?,
        "buy" => shop.buy()?,
        _ => bail!("no step {step}"),
    };
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", var("KAFKA")?)
        // No event twice or out of order by a retry of the client's.
        .set("enable.idempotence", "true")
        // As Java's: else two programs send one seat's events to different partitions.
        .set("partitioner", "murmur2_random")
        .create()?;
    let mut deliveries = Vec::new();
    for (topic, event) in events {
        // The key is the subject, so that a seat's events keep their order.
        let key = event.subject().context("no subject")?.to_owned();
        let record = match mode.as_str() {
            "binary" => event.deserialize_binary(Record::default())?,
            "structured" => event.deserialize_structured(Record::default())?,
            _ => bail!("no mode {mode}"),
        };
        let record = FutureRecord::to(topic).key(&key).payload(&record.value).headers(record.headers);
        deliveries.push(producer.send_result(record).map_err(|(error, _)| error)?);
    }
    for delivery in deliveries {
        delivery.await?.map_err(|(error, _)| error)?;
    }
    Ok(())
}
