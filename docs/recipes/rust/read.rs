//! Rebuilds a table of seats from the outcomes, and keeps it: `read TOPIC FILE`
//!
//! FILE holds the table together with the offsets up to which it is made, so that neither is ever ahead of the other.

use std::collections::BTreeMap;
use std::env::{args, var};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Outcome {
    id: String,
    subject: String,
    sequence: usize,
    generation: u64,
    #[serde(flatten)]
    told: Told,
}

/// By `type` and `data`. One that this reader does not know is an error: the table would be wrong from there on.
#[derive(Deserialize)]
#[serde(tag = "type", content = "data")]
enum Told {
    #[serde(rename = "holdfast.outcome.ticket.listed.v1")]
    Listed(Terms),
    #[serde(rename = "holdfast.outcome.ticket.changed.v1")]
    Changed(Terms),
    #[serde(rename = "holdfast.outcome.ticket.held.v1")]
    Held { user: String, hold: String, until: String },
    #[serde(rename = "holdfast.outcome.ticket.hold_lengthened.v1")]
    Lengthened { until: String },
    #[serde(rename = "holdfast.outcome.ticket.sold.v1")]
    Sold { user: String, checkout: String },
    #[serde(rename = "holdfast.outcome.ticket.released.v1")]
    #[serde(alias = "holdfast.outcome.ticket.expired.v1", alias = "holdfast.outcome.ticket.returned.v1")]
    Freed {},
    #[serde(rename = "holdfast.outcome.ticket.withdrawn.v1")]
    Withdrawn {},
    /// Nothing that this table shows.
    #[serde(rename = "holdfast.outcome.ticket.hold_priced.v1")]
    #[serde(alias = "holdfast.outcome.ticket.off_sale.v1")]
    #[serde(alias = "holdfast.outcome.reservation.refused.v1", alias = "holdfast.outcome.reservation.refused.v2")]
    Other {},
}

#[derive(Deserialize)]
struct Terms {
    show: String,
    seat: Option<String>,
    price: Price,
}

#[derive(Deserialize)]
struct Price {
    amount: i64,
    currency: String,
}

/// A seat as one of its outcomes left it.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
struct Row {
    id: String,
    sequence: usize,
    generation: u64,
    status: String,
    show: String,
    seat: Option<String>,
    price: i64,
    currency: String,
    user: Option<String>,
    hold: Option<String>,
    until: Option<String>,
    checkout: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Table {
    offsets: BTreeMap<i32, i64>,
    /// Each seat's rows, one for each of its outcomes; the last one counts.
    seats: BTreeMap<String, Vec<Row>>,
}

impl Row {
    /// The row as the outcome leaves it.
    fn after(self, told: Told) -> Row {
        match told {
            Told::Listed(terms) => self.free("available").offered(terms),
            Told::Changed(terms) => self.offered(terms),
            Told::Held { user, hold, until } => {
                let (user, hold, until) = (Some(user), Some(hold), Some(until));
                Row { user, hold, until, ..self.free("held") }
            }
            Told::Lengthened { until } => Row { until: Some(until), ..self },
            Told::Sold { user, checkout } => {
                let (status, user, checkout) = ("sold".into(), Some(user), Some(checkout));
                Row { status, user, checkout, until: None, ..self }
            }
            Told::Freed {} => self.free("available"),
            Told::Withdrawn {} => self.free("withdrawn"),
            Told::Other {} => self,
        }
    }

    fn free(self, status: &str) -> Row {
        let status = status.into();
        Row { status, user: None, hold: None, until: None, checkout: None, ..self }
    }

    fn offered(self, terms: Terms) -> Row {
        let Terms { show, seat, price } = terms;
        Row { show, seat, price: price.amount, currency: price.currency, ..self }
    }
}

impl Table {
    /// Adds the row that an outcome makes to those of its seat.
    fn apply(&mut self, outcome: Outcome) -> anyhow::Result<()> {
        let Outcome { id, subject, sequence, generation, told } = outcome;
        let Some(place) = sequence.checked_sub(1) else {
            return Ok(()); // a refusal about a ticket that does not exist
        };
        let rows = self.seats.entry(subject.clone()).or_default();
        let newest = rows.last().map_or(generation, |row| row.generation);
        if generation < newest {
            return Ok(()); // from before the database was put back: a repeat, or taken back
        }
        if generation > newest {
            rows.truncate(place); // the database was put back to before these
        }
        let which = format!("{subject}: sequence {sequence} of generation {generation}");
        ensure!(place <= rows.len(), "{which} follows {}: outcomes are missing", rows.len());
        let before = place.checked_sub(1).map(|before| rows[before].clone());
        let row = before.unwrap_or_default().after(told);
        let row = Row { id, sequence, generation, ..row };
        match rows.get(place) {
            None => rows.push(row),
            Some(known) => {
                ensure!(*known == row, "{which} came again with other content: {}, before {}", row.id, known.id)
            }
        }
        Ok(())
    }

    /// After a crash there is the old file or the new one, never a half.
    fn save(&self, file: &str) -> anyhow::Result<()> {
        let next = format!("{file}.new");
        let mut written = File::create(&next)?;
        written.write_all(&serde_json::to_vec(self)?)?;
        written.sync_all()?;
        Ok(fs::rename(next, file)?)
    }
}

fn main() -> anyhow::Result<()> {
    let [topic, file] = &args().skip(1).collect::<Vec<_>>()[..] else { bail!("read TOPIC FILE") };
    let mut table = match Path::new(file).exists() {
        true => serde_json::from_slice(&fs::read(file)?)?,
        false => Table::default(),
    };
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", var("KAFKA")?)
        .set("group.id", "seats") // asked for by the client; the offsets are ours
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        // Offsets of ours that the topic no longer has are an error, and no reason to skip what was lost.
        .set("auto.offset.reset", "error")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30))?;
    let mut assignment = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        let offset = table.offsets.get(&partition.id()).copied();
        assignment.add_partition_offset(topic, partition.id(), offset.map_or(Offset::Beginning, Offset::Offset))?;
    }
    consumer.assign(&assignment)?;
    let mut unsaved = 0;
    loop {
        let record = consumer.poll(Duration::from_millis(100)).transpose()?;
        if let Some(record) = &record {
            table.apply(serde_json::from_slice(record.payload().context("no outcome")?)?)?;
            table.offsets.insert(record.partition(), record.offset() + 1);
            unsaved += 1;
        }
        if unsaved == 500 || (unsaved > 0 && record.is_none()) {
            table.save(file)?;
            unsaved = 0;
        }
    }
}
