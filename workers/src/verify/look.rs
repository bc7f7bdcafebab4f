//! What is known in the course of one look at the whole system.

use holdfast_schemas::{DeadLetter, EventData, topics};

use super::change_history::ChangeHistory;
use super::entries::Entries;
use super::history::{History, Ticket, User};
use super::identity::TopicPartition;
use super::letters::{Claim, Original};
use super::payments::Payments;
use super::records::Records;
use super::report::Report;
use super::retention::Removed;
use super::reuse::Uses;
use super::terms::Terms;

pub(super) struct Look {
    pub(super) tickets: Book<Ticket>,
    pub(super) users: Book<User>,
    pub(super) payments: Payments,
    pub(super) entries: Entries,
    pub(super) report: Report,
    pub(super) terms: Terms,
}

/// The facts about one stream.
pub(super) struct Book<H: History> {
    pub(super) change_history: ChangeHistory<H>,
    pub(super) records: Records,
}

impl Look {
    pub(super) fn new(generation: i64, terms: Terms) -> Self {
        Self {
            tickets: Book::new(generation, terms),
            users: Book::new(generation, terms),
            payments: Payments::default(),
            entries: Entries::default(),
            report: Report::default(),
            terms,
        }
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

    /// Accounts for every record. `letters` is what may be gone of the dead letters.
    pub(super) fn judge(&mut self, letters: &Removed) {
        let Self {
            tickets, users, report, ..
        } = self;
        let mut uses = Uses::default();
        tickets.records.contested(&mut uses);
        users.records.contested(&mut uses);
        tickets.records.uses(&tickets.change_history, &mut uses);
        users.records.uses(&users.change_history, &mut uses);
        tickets.judge(&uses, letters, report);
        users.judge(&uses, letters, report);
    }
}

impl<H: History> Book<H> {
    pub(super) fn new(generation: i64, terms: Terms) -> Self {
        Self {
            change_history: ChangeHistory::new(generation),
            records: Records::new(terms),
        }
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
