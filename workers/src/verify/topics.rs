//! The topics, as far as they bear witness.

use std::collections::BTreeMap;

use anyhow::Context;
use holdfast_schemas::{self as schemas, DeadLetter, Origin, Outcome, topics};
use rdkafka::message::{BorrowedMessage, Message};
use time::OffsetDateTime;

use super::Look;
use super::ledger::{Spot, millis};
use super::records::Shard;
use crate::config;
use crate::kafka::headers;
use crate::kafka::reader::{Extent, Reader};

/// The public topics, whose records must all be accounted for.
const PUBLIC: [&str; 1] = [topics::RESERVATIONS];

pub(super) struct Topics(Reader);

/// What was on the topics before the snapshot was taken.
pub(super) struct Before {
    public: Vec<(&'static str, Extent)>,
    outcomes: Extent,
}

/// The partition of a public topic in which a dead letter's origin lies, if it is one.
pub(super) fn shard(origin: &Origin) -> Option<Shard> {
    let topic = PUBLIC.into_iter().find(|topic| *topic == origin.topic)?;
    Some((topic, origin.partition))
}

impl Topics {
    pub(super) fn connect(config: &config::Kafka) -> anyhow::Result<Self> {
        Ok(Self(Reader::new(config)?))
    }

    /// Notes the ends that the snapshot, taken after this, must know all of.
    pub(super) fn before_snapshot(&self) -> anyhow::Result<Before> {
        let public = PUBLIC.into_iter().map(|topic| Ok((topic, self.0.committed(topic)?)));
        Ok(Before {
            public: public.collect::<anyhow::Result<_>>()?,
            outcomes: self.0.committed(topics::RESERVATIONS_OUTCOMES)?,
        })
    }

    /// Reads the topics, after the snapshot, into `look`.
    pub(super) fn read(&self, before: &Before, look: &mut Look) -> anyhow::Result<()> {
        let letters_eaten = self.dead_letters(look)?;
        let outcomes_eaten = self.outcomes(before, look)?;
        look.ledger.end_of_outcomes(outcomes_eaten, &mut look.report);
        for (topic, extent) in &before.public {
            self.public(topic, extent, look)?;
        }
        look.records.judge(&mut look.ledger, letters_eaten, &mut look.report);
        Ok(())
    }

    fn dead_letters(&self, look: &mut Look) -> anyhow::Result<Option<i64>> {
        let topic = topics::DEAD_LETTERS;
        let extent = self.0.written(topic)?;
        let mut eaten = Eaten::of(&extent);
        self.0.each(topic, &extent, |message| {
            eaten.see(message);
            // What is no dead letter of Holdfast's accounts for nothing.
            let letter = headers(message).and_then(|headers| DeadLetter::from_headers(headers).ok());
            if let Some(letter) = letter
                && let Some(shard) = shard(&letter.origin)
            {
                look.records.dead_letter(shard, letter.origin.offset, letter.reason);
            }
            anyhow::Ok(())
        })?;
        look.report.starts(topic, &extent);
        Ok(eaten.up_to())
    }

    fn outcomes(&self, before: &Before, look: &mut Look) -> anyhow::Result<Option<i64>> {
        let topic = topics::RESERVATIONS_OUTCOMES;
        let extent = self.0.written(topic)?;
        let mut eaten = Eaten::of(&extent);
        self.0.each(topic, &extent, |message| {
            eaten.see(message);
            let (partition, offset) = (message.partition(), message.offset());
            let outcome = Outcome::from_json(message.payload().unwrap_or_default())
                .with_context(|| format!("the record {topic}/{partition}/{offset} cannot be read"))?;
            let end = before.outcomes.get(&partition).map_or(0, |(_, end)| *end);
            let spot = Spot {
                partition,
                offset,
                before_snapshot: offset < end,
            };
            look.ledger.told(spot, message.key(), &outcome, &mut look.report);
            anyhow::Ok(())
        })?;
        look.report.starts(topic, &extent);
        Ok(eaten.up_to())
    }

    fn public(&self, topic: &'static str, extent: &Extent, look: &mut Look) -> anyhow::Result<()> {
        for (partition, _) in extent.iter().filter(|(_, (earliest, _))| *earliest > 0) {
            look.records.beginning_is_gone((topic, *partition));
        }
        self.0.each(topic, extent, |message| {
            let event = headers(message).and_then(|headers| {
                let (key, value) = (message.key(), message.payload());
                schemas::decode(&schemas::Record { key, value, headers }).ok()
            });
            let key = message.key().map(|key| look.ledger.key(key));
            let shard = (topic, message.partition());
            look.records
                .record(shard, message.offset(), key, event.as_ref(), broker_time(message));
            anyhow::Ok(())
        })?;
        look.report.starts(topic, extent);
        Ok(())
    }
}

/// Up to when records of a topic may have been removed with its beginning: the time of the earliest that is left.
struct Eaten {
    /// Time of the earliest record left, by partition that has lost its beginning.
    earliest: BTreeMap<i32, Option<i64>>,
}

impl Eaten {
    fn of(extent: &Extent) -> Self {
        let gone = extent.iter().filter(|(_, (earliest, _))| *earliest > 0);
        Self {
            earliest: gone.map(|(partition, _)| (*partition, None)).collect(),
        }
    }

    fn see(&mut self, message: &BorrowedMessage<'_>) {
        if let Some(earliest) = self.earliest.get_mut(&message.partition()) {
            earliest.get_or_insert_with(|| millis(broker_time(message)));
        }
    }

    /// In milliseconds; none when no beginning is gone. A partition with nothing left may have lost anything.
    fn up_to(&self) -> Option<i64> {
        self.earliest
            .values()
            .map(|earliest| earliest.unwrap_or(i64::MAX))
            .max()
    }
}

fn broker_time(message: &BorrowedMessage<'_>) -> OffsetDateTime {
    let millis = message.timestamp().to_millis().unwrap_or_default();
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
