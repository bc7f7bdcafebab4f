//! The books of the demo: records sent, outcomes, dead letters and mails received. Everything must add up.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::kit::kafka::ReadRecord;
use holdfast_tests::kit::provider::Simulator;
use holdfast_tests::load::{Outcome, SOURCE, Tally, percentile};
use serde_json::Value;
use tokio::time::Instant;

use super::money::{Money, euros};
use super::script::{self, Kind};

/// The prefix of the types of outcomes about tickets.
const TICKET: &str = "holdfast.outcome.ticket.";

#[derive(Default)]
pub(super) struct Books {
    /// When an event was first sent, by id.
    sent: HashMap<String, Instant>,
    repeats: u64,
    /// Events that have no outcome of their own.
    wishes: u64,
    /// Bad records sent, by the reason for which the gate must dead-letter each.
    bad: Tally,

    applied: Tally,
    refused: Tally,
    answered: HashSet<String>,
    outcomes: HashSet<String>,
    latencies: Vec<Duration>,
    /// The hold on each seat that has one.
    held: HashMap<String, Hold>,
    /// The checkout that bought each seat that is sold.
    sold: HashMap<String, String>,
    pub(super) money: Money,
    webhooks: Webhooks,
    /// Mails that arrived, and how many of them were repeats.
    mails: (usize, usize),
    dead_letters: Tally,
    /// The gate may dead-letter a record more than once: the copies have the same origin.
    origins: HashSet<Vec<Vec<u8>>>,
}

/// Seats, checkouts and money at the end of the sale.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sales {
    pub(super) held: usize,
    pub(super) sold: usize,
    /// Paid by cards, in cents.
    pub(super) revenue: i64,
}

/// The events of the payment provider's webhooks.
#[derive(Default)]
struct Webhooks {
    /// Records on the topic, repeats included.
    records: u64,
    events: u64,
    refused: u64,
}

struct Hold {
    id: String,
    user: String,
}

impl Books {
    pub(super) fn sent(&mut self, kind: &Kind) {
        match kind {
            Kind::Event { id } => drop(self.sent.insert(id.clone(), Instant::now())),
            Kind::Wish { name } => {
                self.wishes += 1;
                self.applied.add(name);
            }
            Kind::Repeat => self.repeats += 1,
            Kind::Bad { reason } => self.bad.add(reason),
        }
    }

    /// Records an outcome; fails on one that must not be.
    pub(super) fn outcome(&mut self, outcome: &Outcome, at: Instant) -> anyhow::Result<()> {
        let (id, cause) = (&outcome.id, &outcome.causationid);
        ensure!(self.outcomes.insert(id.clone()), "outcome {id} is told twice");
        // The outcome that ends a checkout has the checkout as its cause.
        if outcome.causationsource == SOURCE {
            let sent = self
                .sent
                .get(cause)
                .with_context(|| format!("outcome of {cause}, which nobody sent"))?;
            ensure!(self.answered.insert(cause.clone()), "event {cause} has two outcomes");
            self.latencies.push(at.duration_since(*sent));
            match &outcome.data.reason {
                Some(reason) => self.refused.add(reason),
                None => self.applied.add(outcome.verb()),
            }
        } else if let ("refused", Some(reason)) = (outcome.verb(), &outcome.data.reason) {
            self.webhooks.refused += 1;
            self.refused.add(reason);
        }
        if outcome.kind.starts_with(TICKET) {
            return self.seat(outcome);
        }
        let asked = outcome
            .data
            .checkout
            .as_ref()
            .and_then(|checkout| self.sent.get(checkout));
        self.money.outcome(outcome, asked.copied(), at)
    }

    fn seat(&mut self, outcome: &Outcome) -> anyhow::Result<()> {
        let (ticket, verb) = (&outcome.subject, outcome.verb());
        let told = &outcome.data;
        let (id, user) = (
            told.hold.clone().unwrap_or_default(),
            told.user.clone().unwrap_or_default(),
        );
        match verb {
            "held" => {
                let other = self.held.insert(ticket.clone(), Hold { id, user });
                ensure!(other.is_none(), "{ticket} is held twice");
                ensure!(!self.sold.contains_key(ticket), "{ticket} is held and sold");
            }
            "released" => {
                let held = self.held.remove(ticket);
                let fits = held.is_some_and(|held| held.id == id);
                ensure!(fits, "{ticket} is released by who did not hold it");
            }
            "sold" => {
                let held = self.held.remove(ticket);
                let fits = held.is_some_and(|held| held.user == user);
                ensure!(fits, "{ticket} is sold to who did not hold it");
                let other = self
                    .sold
                    .insert(ticket.clone(), told.checkout.clone().unwrap_or_default());
                ensure!(other.is_none(), "{ticket} is sold twice");
            }
            "returned" => {
                let sold = self.sold.remove(ticket);
                ensure!(sold == told.checkout, "{ticket} is returned by who did not buy it");
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn dead_letter(&mut self, record: &ReadRecord) -> anyhow::Result<()> {
        let header = |wanted: &str| {
            let found = record.headers.iter().rev().find(|(name, _)| name == wanted);
            found
                .map(|(_, value)| value.clone())
                .with_context(|| format!("a dead letter without the header {wanted}"))
        };
        let origin = [
            "holdfast-origin-topic",
            "holdfast-origin-partition",
            "holdfast-origin-offset",
        ];
        let origin = origin.into_iter().map(header).collect::<anyhow::Result<Vec<_>>>()?;
        if self.origins.insert(origin) {
            self.dead_letters.add(&String::from_utf8(header("holdfast-reason")?)?);
        }
        Ok(())
    }

    /// Records the provider's events: all records on `payments` that this demo did not send.
    pub(super) fn webhooks(&mut self, records: &[ReadRecord]) -> anyhow::Result<()> {
        #[derive(serde::Deserialize)]
        struct Named {
            source: String,
            id: String,
        }
        let mut ids = HashSet::new();
        for record in records {
            let named: Named = serde_json::from_slice(record.value.as_deref().unwrap_or_default())?;
            if named.source != SOURCE {
                self.webhooks.records += 1;
                ids.insert(named.id);
            }
        }
        self.webhooks.events = ids.len() as u64;
        Ok(())
    }

    /// Records the mails that arrived, by their ids.
    pub(super) fn mails(&mut self, ids: &[String]) {
        let different: HashSet<_> = ids.iter().collect();
        self.mails = (different.len(), ids.len() - different.len());
    }

    /// The seats of a checkout that are held still, with their holds.
    pub(super) fn held_by(&self, checkout: &str) -> Vec<(String, String)> {
        let tickets = self.money.tickets(checkout).iter();
        let held = tickets.filter_map(|ticket| Some((ticket.clone(), self.held.get(ticket)?.id.clone())));
        held.collect()
    }

    /// Those who hold seats, each with their seats, in an order that does not change.
    pub(super) fn holders(&self) -> BTreeMap<String, Vec<String>> {
        let mut holders: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (ticket, hold) in &self.held {
            holders.entry(hold.user.clone()).or_default().push(ticket.clone());
        }
        holders.values_mut().for_each(|tickets| tickets.sort());
        holders
    }

    /// Records sent.
    pub(super) fn records(&self) -> usize {
        self.sent.len() + (self.wishes + self.repeats + self.bad.total()) as usize
    }

    pub(super) fn are_complete(&self) -> bool {
        self.answered.len() == self.sent.len() && self.dead_letters.total() >= self.bad.total()
    }

    /// True once every checkout has ended, and every seat of one is sold or free.
    pub(super) fn are_settled(&self) -> bool {
        self.are_complete()
            && self.money.is_settled()
            && self.held.is_empty()
            && self.sold.len() == self.money.seats().len()
    }

    /// The seats of the cancelled show that are sold still.
    pub(super) fn sold_of_cancelled(&self) -> usize {
        self.sold.keys().filter(|ticket| script::is_cancelled(ticket)).count()
    }

    pub(super) fn missing(&self) -> String {
        let unanswered: Vec<_> = self
            .sent
            .keys()
            .filter(|id| !self.answered.contains(*id))
            .take(5)
            .collect();
        format!(
            "{} of {} events are answered (not {unanswered:?}), {} of {} bad records put aside, {} checkouts open, \
             {} seats held, {} sold",
            self.answered.len(),
            self.sent.len(),
            self.dead_letters.total(),
            self.bad.total(),
            self.money.open(),
            self.held.len(),
            self.sold.len()
        )
    }

    pub(super) fn line(&self) -> String {
        format!(
            "events in {:>5}   outcomes {:>5}   dead letters {:>3}   seats held {:>3}, sold {:>3} of {}   revenue {:>12}",
            self.records(),
            self.outcomes.len(),
            self.dead_letters.total(),
            self.held.len(),
            self.sold.len(),
            script::SEATS,
            euros(self.money.revenue())
        )
    }

    /// `down`: how long one worker of two was down.
    pub(super) fn table(&mut self, down: Duration) -> String {
        let mut text = String::new();
        let mut row = |name: &str, count: &dyn std::fmt::Display, what: &dyn std::fmt::Display| {
            writeln!(text, "{name:<16}{count:>16}   {what}").expect("a String takes all");
        };
        let Webhooks {
            records,
            events,
            refused,
        } = self.webhooks;
        row("events in", &(self.records() as u64 + records), &"");
        let what = format!("{}; the provider's webhooks {}", self.applied, events - refused);
        row("  applied", &self.applied_in_all(), &what);
        row("  refused", &self.refused.total(), &self.refused);
        let what = format!(
            "changed nothing, got no second outcome; {} are webhooks",
            records - events
        );
        row("  repeats", &self.repeats_in_all(), &what);
        row("  dead letters", &self.dead_letters.total(), &self.dead_letters);
        let own = self.outcomes.len() - self.answered.len();
        let what = format!("one for each event of a shop, {own} for what checkouts came to, none twice");
        row("outcomes out", &self.outcomes.len(), &what);
        for (name, count, what) in self.money.rows() {
            row(name, &count, &what);
        }
        let what = format!(
            "one for each end of a checkout and each refund; {} of them came again",
            self.mails.1
        );
        row("mails", &self.mails.0, &what);
        let what = format!("of {}, none twice; the others are free again", script::SEATS);
        row("seats sold", &self.sold.len(), &what);
        let milliseconds = |latencies: &mut [Duration]| {
            let half = percentile(latencies, 50.0).as_millis();
            format!("p50 {half} ms, p99 {} ms", percentile(latencies, 99.0).as_millis())
        };
        let (answered, ended) = (milliseconds(&mut self.latencies), milliseconds(self.money.took()));
        row("to the outcome", &"", &answered);
        row("to the end", &"", &format!("{ended}, of a checkout"));
        row(
            "",
            &"",
            &format!("one worker of two was down for {:.1} s of it", down.as_secs_f64()),
        );
        text
    }

    /// Compares the counts of `holdfast verify` with what was sent and received here.
    pub(super) fn compare(&self, verified: &Value) -> anyhow::Result<()> {
        ensure!(
            self.dead_letters == self.bad,
            "dead letters by reason: sent {}; put aside {}",
            self.bad,
            self.dead_letters
        );
        for (name, counted) in [
            ("events", self.records() as u64 + self.webhooks.records),
            ("applied", self.applied_in_all()),
            ("refused", self.refused.total()),
            ("repeats", self.repeats_in_all()),
            ("dead_letters", self.bad.total()),
            ("parked", 0),
            ("pending", 0),
            ("stuck", 0),
            ("unfinished", 0),
            ("money_mismatch", 0),
            ("open_authorisations", 0),
            ("mail_missing", 0),
        ] {
            ensure!(
                verified[name] == counted,
                "{name}: counted {counted}, verify says {}",
                verified[name]
            );
        }
        Ok(())
    }

    /// Compares the database and the provider's books with what was received here.
    pub(super) fn compare_sales(&self, in_database: &Sales, provider: &Simulator) -> anyhow::Result<()> {
        let told = Sales {
            held: self.held.len(),
            sold: self.sold.len(),
            revenue: self.money.revenue(),
        };
        ensure!(
            told == *in_database,
            "the outcomes tell of {told:?}, the database of {in_database:?}"
        );
        let sold: BTreeSet<&String> = self.sold.keys().collect();
        ensure!(
            sold == self.money.seats(),
            "the seats that are sold are not those of the completed checkouts"
        );
        let (mails, wanted) = (self.mails.0, self.money.mails());
        ensure!(mails == wanted, "{mails} mails arrived, {wanted} were to be written");
        self.money.compare(provider)
    }

    fn applied_in_all(&self) -> u64 {
        self.applied.total() + self.webhooks.events - self.webhooks.refused
    }

    fn repeats_in_all(&self) -> u64 {
        self.repeats + self.webhooks.records - self.webhooks.events
    }
}
