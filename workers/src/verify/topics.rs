//! Reads the topics that verify compares with the database.

use std::collections::BTreeMap;

use anyhow::Context;
use holdfast_schemas::{self as schemas, DeadLetter, EventData, Outcome, OutcomeData, topics};
use rdkafka::message::{BorrowedMessage, Message};
use time::OffsetDateTime;

use super::change_history::{RecordPosition, millis};
use super::history::{History, OutcomeOf, Ticket, User};
use super::report::Report;
use super::{Book, Look};
use crate::config;
use crate::kafka::headers;
use crate::kafka::reader::{Extent, Reader};

pub(super) struct Topics(Reader);

/// The ends of the topics before the snapshot was taken.
pub(super) struct Before {
    tickets: Extents,
    users: Extents,
}

/// The extents of the topics of one stream.
struct Extents {
    public: Extent,
    outcomes: Extent,
}

impl Topics {
    pub(super) fn connect(config: &config::Kafka) -> anyhow::Result<Self> {
        Ok(Self(Reader::new(config)?))
    }

    /// Reads the ends of the topics: the snapshot, taken after this, must have everything before them.
    pub(super) fn before_snapshot(&self) -> anyhow::Result<Before> {
        Ok(Before {
            tickets: self.extents::<Ticket>()?,
            users: self.extents::<User>()?,
        })
    }

    fn extents<H: History>(&self) -> anyhow::Result<Extents> {
        Ok(Extents {
            public: self.0.committed(H::Data::TOPIC)?,
            outcomes: self.0.committed(OutcomeOf::<H>::TOPIC)?,
        })
    }

    /// Reads the topics, after the snapshot, into `look`.
    pub(super) fn read(&self, before: &Before, look: &mut Look) -> anyhow::Result<()> {
        let letters_eaten = self.dead_letters(look)?;
        self.stream(&before.tickets, letters_eaten, &mut look.tickets, &mut look.report)?;
        self.stream(&before.users, letters_eaten, &mut look.users, &mut look.report)
    }

    /// Reads the topics of one stream. What is at or before `letters_eaten` (milliseconds) may have had a dead letter that is
    /// gone.
    fn stream<H: History>(
        &self,
        before: &Extents,
        letters_eaten: Option<i64>,
        book: &mut Book<H>,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let outcomes_eaten = self.outcomes(&before.outcomes, book, report)?;
        book.change_history.end_of_outcomes(outcomes_eaten, report);
        self.public(&before.public, book, report)?;
        book.records.judge(&mut book.change_history, letters_eaten, report);
        Ok(())
    }

    fn dead_letters(&self, look: &mut Look) -> anyhow::Result<Option<i64>> {
        let topic = topics::DEAD_LETTERS;
        let extent = self.0.written(topic)?;
        let mut eaten = Eaten::of(&extent);
        self.0.each(topic, &extent, |message| {
            eaten.see(message);
            // What is no dead letter of Holdfast's accounts for nothing.
            if let Some(letter) = headers(message).and_then(|headers| DeadLetter::from_headers(headers).ok()) {
                look.dead_letter(&letter);
            }
            anyhow::Ok(())
        })?;
        look.report.starts(topic, &extent);
        Ok(eaten.up_to())
    }

    fn outcomes<H: History>(
        &self,
        before: &Extent,
        book: &mut Book<H>,
        report: &mut Report,
    ) -> anyhow::Result<Option<i64>> {
        let topic = OutcomeOf::<H>::TOPIC;
        let extent = self.0.written(topic)?;
        let mut eaten = Eaten::of(&extent);
        self.0.each(topic, &extent, |message| {
            eaten.see(message);
            let (partition, offset) = (message.partition(), message.offset());
            let outcome = Outcome::from_json(message.payload().unwrap_or_default())
                .with_context(|| format!("the record {topic}/{partition}/{offset} cannot be read"))?;
            let end = before.get(&partition).map_or(0, |(_, end)| *end);
            let position = RecordPosition {
                partition,
                offset,
                before_snapshot: offset < end,
            };
            book.change_history.told(position, message.key(), &outcome, report);
            anyhow::Ok(())
        })?;
        report.starts(topic, &extent);
        Ok(eaten.up_to())
    }

    fn public<H: History>(&self, extent: &Extent, book: &mut Book<H>, report: &mut Report) -> anyhow::Result<()> {
        let topic = H::Data::TOPIC;
        for (partition, _) in extent.iter().filter(|(_, (earliest, _))| *earliest > 0) {
            book.records.beginning_is_gone((topic, *partition));
        }
        self.0.each(topic, extent, |message| {
            let event = headers(message).and_then(|headers| {
                let (key, value) = (message.key(), message.payload());
                schemas::decode(&schemas::Record { key, value, headers }).ok()
            });
            let key = message.key().map(|key| book.change_history.key(key));
            let topic_partition = (topic, message.partition());
            let time = broker_time(message);
            book.records
                .record::<H>(topic_partition, message.offset(), key, event.as_ref(), time);
            anyhow::Ok(())
        })?;
        report.starts(topic, extent);
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
