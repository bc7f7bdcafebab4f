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
use super::scope::{Ends, Extents, Limit, Scope};
use crate::config;
use crate::kafka::reader::{Extent, Reader};
use crate::kafka::{broker_time, each_header};

pub(super) struct Topics(Reader);

impl Topics {
    pub(super) fn connect(config: &config::Kafka) -> anyhow::Result<Self> {
        Ok(Self(Reader::new(config)?))
    }

    /// Reads the ends of the topics: a snapshot that is taken after this must have everything before them. What is written about a
    /// record later than these ends lies behind them too: the dead letters' are read before the public topics'.
    pub(super) fn ends(&self) -> anyhow::Result<Ends> {
        Ok(Ends {
            letters: self.0.committed(topics::DEAD_LETTERS)?,
            tickets: self.extents::<Ticket>()?,
            users: self.extents::<User>()?,
            entries: self.0.committed(topics::LEDGER_ENTRIES)?,
        })
    }

    fn extents<H: History>(&self) -> anyhow::Result<Extents> {
        Ok(Extents {
            outcomes: self.0.committed(OutcomeOf::<H>::TOPIC)?,
            public: self.0.committed(H::Data::TOPIC)?,
        })
    }

    /// Reads the topics, after the snapshot, into `look`.
    pub(super) fn read(&self, before: &Ends, look: &mut Look) -> anyhow::Result<()> {
        look.letters = self.dead_letters(look)?;
        let scope = look.scope.clone();
        let since = scope.since().map(|mark| &mark.ends);
        let Look {
            tickets,
            users,
            report,
            limit,
            terms,
            ..
        } = look;
        let stretch = |before, since| Stretch {
            before,
            since,
            scope: &scope,
            limit: *limit,
            now: terms.now,
        };
        self.stream(
            &stretch(&before.tickets, since.map(|ends| &ends.tickets)),
            tickets,
            report,
        )?;
        self.stream(&stretch(&before.users, since.map(|ends| &ends.users)), users, report)?;
        if scope.has_ledger() {
            self.entries(&before.entries, look)?;
        }
        Ok(())
    }

    /// Reads the topics of one stream.
    fn stream<H: History>(&self, of: &Stretch<'_>, book: &mut Book<H>, report: &mut Report) -> anyhow::Result<()> {
        let removed = self.outcomes(of, book, report)?;
        book.change_history.end_of_outcomes(&removed, report);
        self.public(of, book, report)
    }

    /// Answers what may be gone of them.
    fn dead_letters(&self, look: &mut Look) -> anyhow::Result<Removed> {
        let topic = topics::DEAD_LETTERS;
        let extent = self.0.written(topic)?;
        let mut removed = Removed::new(&extent, self.0.keeps(topic)?, look.terms.now);
        let mark = look.scope.since();
        let is_whole = mark.is_none();
        let read = behind(&extent, mark.map(|mark| &mark.ends.letters));
        self.0.each(topic, &read, |message| {
            let record = original(message);
            if is_whole {
                removed.left(message.partition(), millis(record.at));
            }
            if !look.scope.has_letter(message.key(), message.payload()) {
                return Ok(());
            }
            // A record that is no dead letter of Holdfast's accounts for nothing.
            if let Ok(letter) = DeadLetter::from_headers(record.headers.iter().copied().flatten()) {
                look.dead_letter(&letter, &record);
            }
            anyhow::Ok(look.check()?)
        })?;
        look.report.starts(topic, &extent);
        Ok(removed)
    }

    /// Answers what may be gone of them.
    fn outcomes<H: History>(
        &self,
        of: &Stretch<'_>,
        book: &mut Book<H>,
        report: &mut Report,
    ) -> anyhow::Result<Removed> {
        let topic = OutcomeOf::<H>::TOPIC;
        let extent = self.0.written(topic)?;
        let mut removed = Removed::new(&extent, self.0.keeps(topic)?, of.now);
        let before = &of.before.outcomes;
        let read = behind(&extent, of.since.map(|since| &since.outcomes));
        self.0.each(topic, &read, |message| {
            let (partition, offset) = (message.partition(), message.offset());
            if of.since.is_none() {
                removed.left(partition, millis(stamped(message)));
            }
            if !of.scope.has(message.key()) {
                return Ok(());
            }
            let outcome = Outcome::from_json(message.payload().unwrap_or_default())
                .with_context(|| format!("the record {topic}/{partition}/{offset} cannot be read"))?;
            let end = before.get(&partition).map_or(0, |(_, end)| *end);
            let position = RecordPosition {
                partition,
                offset,
                before_snapshot: offset < end,
            };
            book.change_history.told(position, message.key(), &outcome, report);
            anyhow::Ok(of.limit.admits(book.facts() + report.facts())?)
        })?;
        report.starts(topic, &extent);
        Ok(removed)
    }

    /// Reads the entries of the ledger, and judges them.
    fn entries(&self, before: &Extent, look: &mut Look) -> anyhow::Result<()> {
        let topic = topics::LEDGER_ENTRIES;
        let extent = self.0.written(topic)?;
        let mut removed = Removed::new(&extent, self.0.keeps(topic)?, look.terms.now);
        let Look {
            scope,
            entries,
            report,
            limit,
            ..
        } = look;
        self.0.each(topic, &extent, |message| {
            let (partition, offset) = (message.partition(), message.offset());
            removed.left(partition, millis(stamped(message)));
            if !scope.has(message.key()) {
                return Ok(());
            }
            let entry = ledger::Entry::from_json(message.payload().unwrap_or_default())
                .with_context(|| format!("the record {topic}/{partition}/{offset} cannot be read"))?;
            let end = before.get(&partition).map_or(0, |(_, end)| *end);
            entries.told(offset < end, message.key(), &entry, report);
            anyhow::Ok(limit.admits(entries.facts() + report.facts())?)
        })?;
        entries.judge(&removed, report);
        report.starts(topic, &extent);
        Ok(())
    }

    fn public<H: History>(&self, of: &Stretch<'_>, book: &mut Book<H>, report: &mut Report) -> anyhow::Result<()> {
        let topic = H::Data::TOPIC;
        let extent = &behind(&of.before.public, of.since.map(|since| &since.public));
        for (partition, _) in extent.iter().filter(|(_, (earliest, _))| *earliest > 0) {
            book.records.beginning_is_gone((topic, *partition));
        }
        self.0.each(topic, extent, |message| {
            if !of.scope.has(message.key()) {
                return Ok(());
            }
            let topic_partition = (topic, message.partition());
            let Book {
                records,
                change_history,
            } = book;
            records.record(topic_partition, message.offset(), &original(message), change_history);
            anyhow::Ok(of.limit.admits(book.facts() + report.facts())?)
        })?;
        report.starts(topic, extent);
        Ok(())
    }
}

/// What a look reads of the topics of one stream.
struct Stretch<'a> {
    /// The ends before the snapshot was taken.
    before: &'a Extents,
    /// The ends at which it begins.
    since: Option<&'a Extents>,
    scope: &'a Scope,
    limit: Limit,
    /// By the database's clock, in milliseconds.
    now: i64,
}

/// The part of a topic that lies behind these ends.
fn behind(extent: &Extent, ends: Option<&Extent>) -> Extent {
    let begins = |partition| Some(ends?.get(partition)?.1);
    let stretches = extent.iter().map(|(partition, (earliest, end))| {
        let begin = begins(partition).unwrap_or(*earliest);
        (*partition, (begin.clamp(*earliest, *end), *end))
    });
    stretches.collect()
}

fn original<'a>(message: &'a BorrowedMessage<'_>) -> Original<'a> {
    Original {
        key: message.key(),
        value: message.payload(),
        headers: each_header(message).collect(),
        at: stamped(message),
    }
}

fn stamped(message: &BorrowedMessage<'_>) -> OffsetDateTime {
    broker_time(message).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
