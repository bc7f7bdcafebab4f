//! What is known in the course of one look.

use holdfast_schemas::{DeadLetter, EventData, topics};

use super::change_history::ChangeHistory;
use super::entries::Entries;
use super::history::{History, Ticket, User};
use super::identity::{Cause, Digest, TopicPartition};
use super::letters::{Claim, Original};
use super::payments::Payments;
use super::records::Records;
use super::report::Report;
use super::retention::Removed;
use super::reuse::Uses;
use super::scope::{Limit, Scope, TooMany};
use super::terms::Terms;

pub(super) struct Look {
    pub(super) scope: Scope,
    /// How much each of its parts may hold.
    pub(super) limit: Limit,
    pub(super) tickets: Book<Ticket>,
    pub(super) users: Book<User>,
    pub(super) payments: Payments,
    pub(super) entries: Entries,
    pub(super) report: Report,
    pub(super) terms: Terms,
    /// What may be gone of the dead letters.
    pub(super) letters: Removed,
}

/// The facts about one stream.
pub(super) struct Book<H: History> {
    pub(super) change_history: ChangeHistory<H>,
    pub(super) records: Records,
}

impl Look {
    pub(super) fn new(scope: Scope, limit: Limit, generation: i64, terms: Terms) -> Self {
        let since = scope.since().map(|mark| mark.at);
        Self {
            scope,
            limit,
            tickets: Book::new(generation, terms, since),
            users: Book::new(generation, terms, since),
            payments: Payments::default(),
            entries: Entries::default(),
            report: Report::default(),
            terms,
            letters: Removed::default(),
        }
    }

    /// The number of facts that it holds.
    pub(super) fn facts(&self) -> usize {
        self.tickets.facts() + self.users.facts() + self.entries.facts() + self.report.facts()
    }

    /// # Errors
    /// A part holds more than it may.
    pub(super) fn check(&self) -> Result<(), TooMany> {
        let facts = self.tickets.facts().max(self.users.facts()).max(self.entries.facts());
        self.limit.admits(facts + self.report.facts())
    }

    /// Gives a dead letter to the stream on whose public topic its origin lies, if there is one. `record` is its own.
    pub(super) fn dead_letter(&mut self, letter: &DeadLetter, record: &Original<'_>) {
        match letter.origin.topic.as_str() {
            topics::RESERVATIONS => self.tickets.dead_letter(letter, record),
            topics::PAYMENTS => self.users.dead_letter(letter, record),
            _ => {}
        }
    }

    /// Takes note that an operator has settled the dead letters about a record.
    pub(super) fn settled(&mut self, topic: &str, partition: i32, offset: i64) {
        match topic {
            topics::RESERVATIONS => self.tickets.records.settled((topics::RESERVATIONS, partition), offset),
            topics::PAYMENTS => self.users.records.settled((topics::PAYMENTS, partition), offset),
            _ => {}
        }
    }

    /// Takes note of an event in quarantine, at this place, and of partition and offset of its record.
    pub(super) fn parked(&mut self, topic: &str, event: (Cause, Digest), place: i64, record: Option<(i32, i64)>) {
        let position = |topic| record.map(|(partition, offset)| ((topic, partition), offset));
        match topic {
            topics::RESERVATIONS => self
                .tickets
                .records
                .parked(event, place, position(topics::RESERVATIONS)),
            topics::PAYMENTS => self.users.records.parked(event, place, position(topics::PAYMENTS)),
            _ => {}
        }
    }

    /// Accounts for every record.
    pub(super) fn judge(&mut self) {
        let Self {
            scope,
            tickets,
            users,
            report,
            letters,
            ..
        } = self;
        let mut uses = Uses::default();
        uses.beginning_is_unseen = !scope.sees_every_id();
        tickets.records.contested(&mut uses);
        users.records.contested(&mut uses);
        tickets.records.uses(&tickets.change_history, &mut uses);
        users.records.uses(&users.change_history, &mut uses);
        tickets.judge(&uses, letters, report);
        users.judge(&uses, letters, report);
    }
}

impl<H: History> Book<H> {
    /// Of everything, or of what was written `since` a time in milliseconds.
    pub(super) fn new(generation: i64, terms: Terms, since: Option<i64>) -> Self {
        Self {
            change_history: ChangeHistory::new(generation, since),
            records: Records::new(terms, since.is_some()),
        }
    }

    pub(super) fn facts(&self) -> usize {
        self.change_history.facts() + self.records.facts()
    }

    pub(super) fn dead_letter(&mut self, letter: &DeadLetter, record: &Original<'_>) {
        let topic_partition: TopicPartition = (H::Data::TOPIC, letter.origin.partition);
        let offset = letter.origin.offset;
        self.records
            .dead_letter(topic_partition, offset, Claim::new::<H::Data>(letter, record));
    }

    pub(super) fn judge(&mut self, uses: &Uses, letters: &Removed, report: &mut Report) {
        self.records.judge(&mut self.change_history, uses, letters, report);
    }
}
