//! The report of `holdfast verify`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::Serialize;

use crate::printable;

/// The most offences against one promise that are listed.
pub(super) const MOST_NAMED: usize = 1_000;
/// The most of them that are printed.
const MOST_PRINTED: usize = 20;

/// Counts, the offences against each promise, and from where the topics could be read.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Records on the public topics. Each is exactly one of the next seven, or lost.
    pub events: u64,
    /// First records of events that no rule forbade, even if there was nothing to change.
    pub applied: u64,
    /// First records of events that a rule forbade.
    pub refused: u64,
    /// Further records of events that were decided.
    pub repeats: u64,
    pub dead_letters: u64,
    pub parked: u64,
    /// Records that nothing accounts for yet, and after which nothing of their key was decided.
    pub pending: u64,
    /// Records older than everything that could account for them: retention has removed it.
    pub out_of_scope: u64,
    /// Events, outcomes, entries of the ledger, credits, what is missing in the life of a user, and records whose dead letter lies.
    pub lost: u64,
    /// Events, outcomes, entries of the ledger and credits that took effect or were sent twice.
    pub doubled: u64,
    pub out_of_order: u64,
    /// Steps in a ticket's change log that cannot follow the step before, and rows that differ from their log.
    pub oversold: u64,
    /// Checkouts whose money, credits and seats do not agree, entries that say otherwise than the ledger, and checkouts that neither end nor take a step.
    pub money_mismatch: u64,
    /// Payments that the provider still has open although their checkouts have ended; only where a provider is set.
    pub open_authorisations: u64,
    /// Outcomes that need a mail to the customer and have none, and mails without an outcome.
    pub mail_missing: u64,
    /// Checkouts that wait for an operator: that breaks no promise.
    pub stuck: u64,
    /// Checkouts on their way, and refunded ones that owe credits: that breaks no promise, unless it takes more than a day.
    pub unfinished: u64,
    /// The offences against each promise, one for each key, as they were found: at most [`MOST_NAMED`] of each.
    pub offences: Vec<Offence>,
    /// The earliest offsets, by topic and partition; records before them could not be read.
    pub earliest_offsets: BTreeMap<String, BTreeMap<i32, i64>>,
    /// The offender of each offence, with the first fault found.
    #[serde(skip)]
    offenders: BTreeMap<(Promise, String), String>,
}

/// One broken promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Offence {
    pub promise: Promise,
    /// The ticket, user or checkout, the record's key, or the movement or transaction in which something is wrong.
    pub key: String,
    /// The fault, as a sentence.
    pub what: String,
}

/// The ways in which a promise can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    Lost,
    Doubled,
    OutOfOrder,
    Oversold,
    MoneyMismatch,
    OpenAuthorisations,
    MailMissing,
}

impl Promise {
    pub(super) const ALL: [Self; 7] = [
        Self::Lost,
        Self::Doubled,
        Self::OutOfOrder,
        Self::Oversold,
        Self::MoneyMismatch,
        Self::OpenAuthorisations,
        Self::MailMissing,
    ];

    /// The name of its count.
    pub(super) fn name(self) -> &'static str {
        match self {
            Promise::Lost => "lost",
            Promise::Doubled => "doubled",
            Promise::OutOfOrder => "out_of_order",
            Promise::Oversold => "oversold",
            Promise::MoneyMismatch => "money_mismatch",
            Promise::OpenAuthorisations => "open_authorisations",
            Promise::MailMissing => "mail_missing",
        }
    }
}

impl Report {
    /// True if every promise is kept.
    pub fn is_clean(&self) -> bool {
        self.offences.is_empty()
    }

    /// The first offence against `promise`.
    pub fn offence(&self, promise: Promise) -> Option<&Offence> {
        self.offences.iter().find(|offence| offence.promise == promise)
    }

    /// The number of facts that it holds.
    pub(super) fn facts(&self) -> usize {
        self.offenders.len()
    }

    /// What became of the records, each counted once.
    pub(super) fn states(&self) -> [(&'static str, u64); 7] {
        [
            ("applied", self.applied),
            ("refused", self.refused),
            ("repeats", self.repeats),
            ("dead_letters", self.dead_letters),
            ("parked", self.parked),
            ("pending", self.pending),
            ("out_of_scope", self.out_of_scope),
        ]
    }

    /// Adds what became of other records.
    pub(super) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.applied += other.applied;
        self.refused += other.refused;
        self.repeats += other.repeats;
        self.dead_letters += other.dead_letters;
        self.parked += other.parked;
        self.pending += other.pending;
        self.out_of_scope += other.out_of_scope;
    }

    /// Records the offsets from which `topic` was read.
    pub(super) fn starts(&mut self, topic: &str, extent: &BTreeMap<i32, (i64, i64)>) {
        let earliest = extent.iter().map(|(partition, (earliest, _))| (*partition, *earliest));
        self.earliest_offsets.insert(topic.to_owned(), earliest.collect());
    }

    pub(super) fn broken(&mut self, promise: Promise, key: &str, what: impl FnOnce() -> String) {
        self.broken_times(promise, 1, key, what);
    }

    /// `what` says what is wrong, the first time that it is wrong with this key.
    pub(super) fn broken_times(&mut self, promise: Promise, times: u64, key: &str, what: impl FnOnce() -> String) {
        let count = self.count(promise);
        *count = count.saturating_add(times);
        let Entry::Vacant(offender) = self.offenders.entry((promise, key.to_owned())) else {
            return;
        };
        let what = offender.insert(what()).clone();
        if self.listed(promise).count() < MOST_NAMED {
            let key = key.to_owned();
            self.offences.push(Offence { promise, key, what });
        }
    }

    fn listed(&self, promise: Promise) -> impl Iterator<Item = &Offence> {
        self.offences.iter().filter(move |offence| offence.promise == promise)
    }

    fn count(&mut self, promise: Promise) -> &mut u64 {
        match promise {
            Promise::Lost => &mut self.lost,
            Promise::Doubled => &mut self.doubled,
            Promise::OutOfOrder => &mut self.out_of_order,
            Promise::Oversold => &mut self.oversold,
            Promise::MoneyMismatch => &mut self.money_mismatch,
            Promise::OpenAuthorisations => &mut self.open_authorisations,
            Promise::MailMissing => &mut self.mail_missing,
        }
    }

    /// This report, with only the offences that an earlier one found too: a promise is broken if the same key offends against
    /// it in both.
    pub(super) fn confirming(mut self, earlier: &Report) -> Self {
        self.offenders
            .retain(|offender, _| earlier.offenders.contains_key(offender));
        let Self {
            offences, offenders, ..
        } = &mut self;
        offences.retain(|offence| offenders.contains_key(&(offence.promise, offence.key.clone())));
        for promise in Promise::ALL {
            let mut others = self.offenders.iter().filter(|((other, _), _)| *other == promise);
            match others.next() {
                None => *self.count(promise) = 0,
                Some(((_, key), what)) if self.listed(promise).next().is_none() => {
                    let (key, what) = (key.clone(), what.clone());
                    self.offences.push(Offence { promise, key, what });
                }
                Some(_) => {}
            }
        }
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in [
            ("events", self.events),
            ("applied", self.applied),
            ("refused", self.refused),
            ("repeats", self.repeats),
            ("dead letters", self.dead_letters),
            ("parked", self.parked),
            ("pending", self.pending),
            ("out of scope", self.out_of_scope),
            ("lost", self.lost),
            ("doubled", self.doubled),
            ("out of order", self.out_of_order),
            ("oversold", self.oversold),
            ("money mismatch", self.money_mismatch),
            ("open authorisations", self.open_authorisations),
            ("mail missing", self.mail_missing),
            ("stuck", self.stuck),
            ("unfinished", self.unfinished),
        ] {
            writeln!(f, "{name:<20}{count:>12}")?;
        }
        for promise in Promise::ALL {
            for Offence { key, what, .. } in self.listed(promise).take(MOST_PRINTED) {
                writeln!(f, "{promise}: key {key:?}: {}", printable::line(what))?;
            }
            let more = self.listed(promise).count().saturating_sub(MOST_PRINTED);
            if more > 0 {
                writeln!(f, "{promise}: and {more} more keys, which --json lists")?;
            }
        }
        for (topic, partitions) in &self.earliest_offsets {
            let removed: Vec<_> = partitions.iter().filter(|(_, earliest)| **earliest > 0).collect();
            if removed.is_empty() {
                writeln!(f, "{topic}: read from the beginning")?;
                continue;
            }
            let list: Vec<_> = removed
                .iter()
                .map(|(partition, earliest)| format!("{partition}/{earliest}"))
                .collect();
            let list = list.join(" ");
            writeln!(
                f,
                "{topic}: retention has removed what lay before {list}; that is out of scope"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().replace('_', " "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(keys: &[&str]) -> Report {
        let mut report = Report::default();
        for key in keys {
            report.broken(Promise::MoneyMismatch, key, || format!("{key} is wrong"));
        }
        report
    }

    #[test]
    fn only_what_two_looks_find_is_an_offence() {
        let confirmed = found(&["c-2", "c-1"]).confirming(&found(&["c-1", "c-2"]));
        assert_eq!(confirmed.offence(Promise::MoneyMismatch).unwrap().key, "c-2");
        assert_eq!(confirmed.money_mismatch, 2);
        let confirmed = found(&["c-3", "c-1"]).confirming(&found(&["c-1", "c-2"]));
        let offence = confirmed.offence(Promise::MoneyMismatch).unwrap();
        assert_eq!((offence.key.as_str(), offence.what.as_str()), ("c-1", "c-1 is wrong"));
        let passed = found(&["c-3"]).confirming(&found(&["c-1"]));
        assert!(passed.is_clean() && passed.money_mismatch == 0, "{passed}");
    }
}
