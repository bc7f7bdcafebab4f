//! Reads the topics that verify compares with the database.

use anyhow::Context;
use holdfast_schemas::{DeadLetter, EventData, Outcome, OutcomeData, ledger, topics};
use rdkafka::message::{BorrowedMessage, Message};
use time::OffsetDateTime;

use super::change_history::RecordPosition;
use super::history::{History, OutcomeOf, Ticket, User};
use super::identity::millis;
use super::letters::Original;
use super::look::{Book, Look};
use super::report::Report;
use super::retention::Removed;
use crate::config;
use crate::kafka::each_header;
use crate::kafka::reader::{Extent, Reader};

pub(super) struct Topics(Reader);

/// The ends of the topics before the snapshot was taken.
pub(super) struct Before {
    tickets: Extents,
    users: Extents,
    entries: Extent,
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
            entries: self.0.committed(topics::LEDGER_ENTRIES)?,
        })
    }

    fn extents<H: History>(&self) -> anyhow::Result<Extents> {
        Ok(Extents {
            public: self.0.committed(H::Data::TOPIC)?,
            outcomes: self.0.committed(OutcomeOf::<H>::TOPIC)?,
        })
    }

    /// Reads the topics, after the snapshot, into `look`, and judges.
    pub(super) fn read(&self, before: &Before, look: &mut Look) -> anyhow::Result<()> {
        let letters = self.dead_letters(look)?;
        let now = look.terms.now;
        self.stream(&before.tickets, now, &mut look.tickets, &mut look.report)?;
        self.stream(&before.users, now, &mut look.users, &mut look.report)?;
        self.entries(&before.entries, look)?;
        look.judge(&letters);
        Ok(())
    }

    /// Reads the topics of one stream.
    fn stream<H: History>(
        &self,
        before: &Extents,
        now: i64,
        book: &mut Book<H>,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let removed = self.outcomes(&before.outcomes, now, book, report)?;
        book.change_history.end_of_outcomes(&removed, report);
        self.public(&before.public, book, report)
    }

    /// Answers what may be gone of them.
    fn dead_letters(&self, look: &mut Look) -> anyhow::Result<Removed> {
        let topic = topics::DEAD_LETTERS;
        let extent = self.0.written(topic)?;
        let mut removed = Removed::new(&extent, self.0.keeps(topic)?, look.terms.now);
        self.0.each(topic, &extent, |message| {
            let record = original(message);
            removed.left(message.partition(), millis(record.at));
            // A record that is no dead letter of Holdfast's accounts for nothing.
            if let Ok(letter) = DeadLetter::from_headers(record.headers.iter().copied().flatten()) {
                look.dead_letter(&letter, &record);
            }
            anyhow::Ok(())
        })?;
        look.report.starts(topic, &extent);
        Ok(removed)
    }

    /// Answers what may be gone of them.
    fn outcomes<H: History>(
        &self,
        before: &Extent,
        now: i64,
        book: &mut Book<H>,
        report: &mut Report,
    ) -> anyhow::Result<Removed> {
        let topic = OutcomeOf::<H>::TOPIC;
        let extent = self.0.written(topic)?;
        let mut removed = Removed::new(&extent, self.0.keeps(topic)?, now);
        self.0.each(topic, &extent, |message| {
            let (partition, offset) = (message.partition(), message.offset());
            removed.left(partition, millis(broker_time(message)));
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
        Ok(removed)
    }

    /// Reads the entries of the ledger, and judges them.
    fn entries(&self, before: &Extent, look: &mut Look) -> anyhow::Result<()> {
        let topic = topics::LEDGER_ENTRIES;
        let extent = self.0.written(topic)?;
        let mut removed = Removed::new(&extent, self.0.keeps(topic)?, look.terms.now);
        let Look { entries, report, .. } = look;
        self.0.each(topic, &extent, |message| {
            let (partition, offset) = (message.partition(), message.offset());
            removed.left(partition, millis(broker_time(message)));
            let entry = ledger::Entry::from_json(message.payload().unwrap_or_default())
                .with_context(|| format!("the record {topic}/{partition}/{offset} cannot be read"))?;
            let end = before.get(&partition).map_or(0, |(_, end)| *end);
            entries.told(offset < end, message.key(), &entry, report);
            anyhow::Ok(())
        })?;
        entries.judge(&removed, report);
        report.starts(topic, &extent);
        Ok(())
    }

    fn public<H: History>(&self, extent: &Extent, book: &mut Book<H>, report: &mut Report) -> anyhow::Result<()> {
        let topic = H::Data::TOPIC;
        for (partition, _) in extent.iter().filter(|(_, (earliest, _))| *earliest > 0) {
            book.records.beginning_is_gone((topic, *partition));
        }
        self.0.each(topic, extent, |message| {
            let topic_partition = (topic, message.partition());
            let Book {
                records,
                change_history,
            } = book;
            records.record(topic_partition, message.offset(), &original(message), change_history);
            anyhow::Ok(())
        })?;
        report.starts(topic, extent);
        Ok(())
    }
}

fn original<'a>(message: &'a BorrowedMessage<'_>) -> Original<'a> {
    Original {
        key: message.key(),
        value: message.payload(),
        headers: each_header(message).collect(),
        at: broker_time(message),
    }
}

fn broker_time(message: &BorrowedMessage<'_>) -> OffsetDateTime {
    let millis = message.timestamp().to_millis().unwrap_or_default();
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
