//! Who was sent what, and what was heard: everything must add up.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::kit::kafka::Read;
use holdfast_tests::load::{Outcome, Tally, percentile};
use serde_json::Value;
use tokio::time::Instant;

use super::script::{self, Kind};

#[derive(Default)]
pub(super) struct Books {
    /// When an event was first sent, by id.
    sent: HashMap<String, Instant>,
    repeats: u64,
    /// Bad records sent, by the reason for which each must be put aside.
    bad: Tally,

    applied: Tally,
    refused: Tally,
    answered: HashSet<String>,
    outcomes: HashSet<String>,
    latencies: Vec<Duration>,
    /// The hold on each seat that has one.
    held: HashMap<String, String>,
    dead_letters: Tally,
    /// The gate may put a record aside more than once: it is known by where it came from.
    origins: HashSet<Vec<Vec<u8>>>,
}

impl Books {
    pub(super) fn sent(&mut self, kind: &Kind) {
        match kind {
            Kind::Event { id } => drop(self.sent.insert(id.clone(), Instant::now())),
            Kind::Repeat => self.repeats += 1,
            Kind::Bad { reason } => self.bad.add(reason),
        }
    }

    /// Fails on an outcome that must not be.
    pub(super) fn outcome(&mut self, outcome: &Outcome, at: Instant) -> anyhow::Result<()> {
        let (id, cause) = (&outcome.id, &outcome.causationid);
        ensure!(self.outcomes.insert(id.clone()), "outcome {id} is told twice");
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
        self.seat(outcome)
    }

    fn seat(&mut self, outcome: &Outcome) -> anyhow::Result<()> {
        let (ticket, verb) = (&outcome.subject, outcome.verb());
        let hold = outcome.data.hold.clone().unwrap_or_default();
        match verb {
            "held" => {
                let other = self.held.insert(ticket.clone(), hold);
                ensure!(other.is_none(), "{ticket} is held twice");
            }
            "released" => {
                let held = self.held.remove(ticket);
                ensure!(held == Some(hold), "{ticket} is released by who did not hold it");
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn dead_letter(&mut self, record: &Read) -> anyhow::Result<()> {
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

    /// Records sent.
    pub(super) fn records(&self) -> usize {
        self.sent.len() + (self.repeats + self.bad.total()) as usize
    }

    pub(super) fn are_complete(&self) -> bool {
        self.answered.len() == self.sent.len() && self.dead_letters.total() >= self.bad.total()
    }

    pub(super) fn missing(&self) -> String {
        let unanswered: Vec<_> = self
            .sent
            .keys()
            .filter(|id| !self.answered.contains(*id))
            .take(5)
            .collect();
        format!(
            "{} of {} events are answered (not {unanswered:?}), {} of {} bad records put aside",
            self.answered.len(),
            self.sent.len(),
            self.dead_letters.total(),
            self.bad.total()
        )
    }

    pub(super) fn line(&self) -> String {
        format!(
            "events in {:>5}   outcomes {:>5}   seats held {:>3} of {}   dead letters {:>3}",
            self.records(),
            self.outcomes.len(),
            self.held.len(),
            script::SEATS,
            self.dead_letters.total()
        )
    }

    pub(super) fn table(&mut self, down: Duration) -> String {
        let mut text = String::new();
        let mut row = |name: &str, count: u64, what: &dyn std::fmt::Display| {
            writeln!(text, "{name:<20}{count:>8}   {what}").expect("a String takes all");
        };
        let records = self.sent.len() as u64 + self.repeats + self.bad.total();
        row("events in", records, &"");
        row("  applied", self.applied.total(), &self.applied);
        row("  refused", self.refused.total(), &self.refused);
        row("  repeats", self.repeats, &"changed nothing, got no second outcome");
        row("  dead letters", self.dead_letters.total(), &self.dead_letters);
        row(
            "outcomes out",
            self.outcomes.len() as u64,
            &"one for each event, none twice",
        );
        row(
            "seats held",
            self.held.len() as u64,
            &format!("of {}, none by two", script::SEATS),
        );
        let milliseconds = |percent, latencies: &mut Vec<Duration>| percentile(latencies, percent).as_millis();
        let (half, most) = (
            milliseconds(50.0, &mut self.latencies),
            milliseconds(99.0, &mut self.latencies),
        );
        let down = down.as_secs_f64();
        writeln!(
            text,
            "produce to outcome   p50 {half} ms, p99 {most} ms; one worker of two was down for {down:.1} s of it"
        )
        .expect("a String takes all");
        text
    }

    /// Holds what `holdfast verify` counted against what was sent and heard here.
    pub(super) fn compare(&self, verified: &Value) -> anyhow::Result<()> {
        ensure!(
            self.dead_letters == self.bad,
            "dead letters by reason: sent {}; put aside {}",
            self.bad,
            self.dead_letters
        );
        for (name, counted) in [
            ("events", self.records() as u64),
            ("applied", self.applied.total()),
            ("refused", self.refused.total()),
            ("repeats", self.repeats),
            ("dead_letters", self.bad.total()),
            ("parked", 0),
            ("pending", 0),
        ] {
            ensure!(
                verified[name] == counted,
                "{name}: counted {counted}, verify says {}",
                verified[name]
            );
        }
        Ok(())
    }

    pub(super) fn compare_seats(&self, in_database: usize) -> anyhow::Result<()> {
        let told = self.held.len();
        ensure!(
            told == in_database,
            "{told} seats are held by the outcomes, {in_database} in the database"
        );
        Ok(())
    }
}
