//! The entries of the ledger: each movement that is to be told has exactly one, in the outbox or on its topic, which says what the ledger
//! says; and none tells of anything else.
//!
//! Fed in this order: the ledger, the outbox, the topic. Pure: no clock, no I/O.

use std::collections::HashMap;

use holdfast_schemas::MovementId;
use holdfast_schemas::ledger::Entry;
use time::OffsetDateTime;
use uuid::Uuid;

use super::identity::{Fingerprint, millis};
use super::report::{Promise, Report};
use super::retention::Removed;
use super::terms::CLOCK_SKEW;

#[derive(Default)]
pub(super) struct Entries {
    movements: HashMap<MovementId, Booked>,
    /// When the newest generation began, if it is not the first: what was told before it may be forgotten.
    restored_at: Option<OffsetDateTime>,
}

/// A movement, as the ledger has it.
struct Booked {
    checkout: String,
    content: Fingerprint,
    /// When it was written, in milliseconds.
    at: i64,
    waiting: bool,
    told: bool,
}

/// A row of the ledger's view of movements.
pub(super) struct Movement {
    pub(super) id: Uuid,
    pub(super) checkout: String,
    pub(super) kind: String,
    pub(super) to: String,
    pub(super) from: String,
    pub(super) amount: i64,
    pub(super) currency: String,
    pub(super) at: OffsetDateTime,
}

impl Entries {
    /// The number of facts that it holds.
    pub(super) fn facts(&self) -> usize {
        self.movements.len()
    }

    pub(super) fn restored(&mut self, at: OffsetDateTime) {
        self.restored_at = Some(at);
    }

    pub(super) fn book(&mut self, movement: Movement) {
        let Movement {
            id,
            checkout,
            kind,
            to,
            from,
            amount,
            currency,
            at,
        } = movement;
        let content = content(&checkout, [&kind, &to, &from], amount, &currency, at);
        let booked = Booked {
            checkout,
            content,
            at: millis(at),
            waiting: false,
            told: false,
        };
        self.movements.insert(MovementId(id), booked);
    }

    /// Takes an entry that stood in the outbox.
    pub(super) fn waiting(&mut self, entry: &Entry, report: &mut Report) {
        let checkout = entry.checkout.as_str();
        match self.movements.get_mut(&entry.id) {
            None => report.broken(Promise::MoneyMismatch, checkout, || never_moved(entry)),
            Some(booked) => {
                booked.agrees(entry, report);
                if std::mem::replace(&mut booked.waiting, true) {
                    report.broken(Promise::Doubled, checkout, || {
                        format!("the entry of movement {} waits twice", entry.id)
                    });
                }
            }
        }
    }

    /// Takes an entry of the topic. `before_snapshot`: it was there before the database was read.
    pub(super) fn told(&mut self, before_snapshot: bool, key: Option<&[u8]>, entry: &Entry, report: &mut Report) {
        let checkout = entry.checkout.as_str();
        if key != Some(checkout.as_bytes()) {
            report.broken(Promise::OutOfOrder, checkout, || {
                format!("the entry of movement {} has another key", entry.id)
            });
        }
        let Some(booked) = self.movements.get_mut(&entry.id) else {
            let is_forgotten = |at| millis(entry.time) <= millis(at).saturating_add(CLOCK_SKEW);
            if before_snapshot && !self.restored_at.is_some_and(is_forgotten) {
                report.broken(Promise::MoneyMismatch, checkout, || never_moved(entry));
            }
            return;
        };
        booked.agrees(entry, report);
        if std::mem::replace(&mut booked.told, true) {
            report.broken(Promise::Doubled, checkout, || {
                format!("the entry of movement {} was told twice", entry.id)
            });
        }
    }

    /// Judges, once the whole topic was read. `removed` is what may be gone of it.
    pub(super) fn judge(&self, removed: &Removed, report: &mut Report) {
        let untold = self
            .movements
            .iter()
            .filter(|(_, booked)| !booked.told && !booked.waiting);
        for (id, booked) in untold {
            if !removed.may_have(Some(booked.checkout.as_bytes()), booked.at) {
                report.broken(Promise::Lost, &booked.checkout, || {
                    format!("no entry tells of movement {id} of the ledger")
                });
            }
        }
    }
}

impl Booked {
    fn agrees(&self, entry: &Entry, report: &mut Report) {
        let said = &entry.data;
        let words = [&said.kind, &said.to, &said.from].map(|word| word.as_str());
        let currency = said.amount.currency().code();
        if content(
            entry.checkout.as_str(),
            words,
            said.amount.amount(),
            currency,
            entry.time,
        ) != self.content
        {
            report.broken(Promise::MoneyMismatch, &self.checkout, || {
                format!("the entry of movement {} says otherwise than the ledger", entry.id)
            });
        }
    }
}

fn never_moved(entry: &Entry) -> String {
    format!(
        "an entry tells of movement {}, which the ledger does not have",
        entry.id
    )
}

fn content(checkout: &str, words: [&str; 3], amount: i64, currency: &str, at: OffsetDateTime) -> Fingerprint {
    Fingerprint::of(&(checkout, words, amount, currency, at.unix_timestamp_nanos()))
}

#[cfg(test)]
mod tests {
    use holdfast_schemas::Price;
    use holdfast_schemas::ledger::LedgerEntry;
    use time::macros::datetime;

    use super::*;
    use crate::kafka::reader::{Extent, Keeps};

    const AT: OffsetDateTime = datetime!(2030-01-31 12:00 UTC);

    fn entry(id: u128, amount: i64) -> Entry {
        Entry {
            id: MovementId(Uuid::from_u128(id)),
            checkout: "order-1".parse().unwrap(),
            time: AT,
            data: LedgerEntry {
                kind: "capture".parse().unwrap(),
                to: "provider".parse().unwrap(),
                from: "sales".parse().unwrap(),
                amount: Price::parse(amount, "EUR").unwrap(),
            },
        }
    }

    fn booked(ids: &[u128]) -> Entries {
        let mut entries = Entries::default();
        for id in ids {
            let entry = entry(*id, 700);
            entries.book(Movement {
                id: entry.id.0,
                checkout: "order-1".to_owned(),
                kind: "capture".to_owned(),
                to: "provider".to_owned(),
                from: "sales".to_owned(),
                amount: 700,
                currency: "EUR".to_owned(),
                at: AT,
            });
        }
        entries
    }

    fn whole() -> Removed {
        let keeps = Keeps {
            age: None,
            bytes_are_limited: false,
        };
        Removed::new(&Extent::from([(0, (0, 9))]), keeps, 0)
    }

    fn counts(report: &Report) -> (u64, u64, u64, u64) {
        (report.lost, report.doubled, report.money_mismatch, report.out_of_order)
    }

    const KEY: Option<&[u8]> = Some(b"order-1");

    #[test]
    fn each_movement_is_told_once_or_waits() {
        let (mut entries, mut report) = (booked(&[1, 2, 3]), Report::default());
        entries.waiting(&entry(1, 700), &mut report);
        // The relay told one after the snapshot.
        for id in [1, 2] {
            entries.told(id == 2, KEY, &entry(id, 700), &mut report);
        }
        // Younger than the snapshot.
        entries.told(false, KEY, &entry(4, 700), &mut report);
        entries.judge(&whole(), &mut report);
        assert_eq!(counts(&report), (1, 0, 0, 0), "movement 3 alone");
        entries.told(true, KEY, &entry(2, 700), &mut report);
        entries.waiting(&entry(1, 700), &mut report);
        assert_eq!(counts(&report), (1, 2, 0, 0));
    }

    #[test]
    fn an_entry_says_what_the_ledger_says() {
        let (mut entries, mut report) = (booked(&[1]), Report::default());
        entries.told(true, KEY, &entry(1, 701), &mut report);
        assert_eq!(counts(&report), (0, 0, 1, 0));
        entries.told(true, KEY, &entry(2, 700), &mut report);
        entries.waiting(&entry(3, 700), &mut report);
        assert_eq!(counts(&report), (0, 0, 3, 0));
        let (mut entries, mut report) = (booked(&[1]), Report::default());
        entries.told(true, Some(b"order-2"), &entry(1, 700), &mut report);
        assert_eq!(counts(&report), (0, 0, 0, 1));
    }

    #[test]
    fn a_database_that_was_put_back_may_have_forgotten_what_was_told_before() {
        for (restored_at, found) in [(AT - time::Duration::hours(1), 1), (AT + time::Duration::hours(1), 0)] {
            let (mut entries, mut report) = (booked(&[]), Report::default());
            entries.restored(restored_at);
            entries.told(true, KEY, &entry(1, 700), &mut report);
            assert_eq!(counts(&report), (0, 0, found, 0), "{restored_at}");
        }
    }
}
