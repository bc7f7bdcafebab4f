//! Proves the promises again and again, beside the system, for as long as it runs.
//!
//! Each round looks at what is new since the last round but one. What looks wrong there is only suspected: everything about its key,
//! and the keys of its portion, is then looked at from the beginning, twice, as `verify` does it; only what both looks find is told.
//! Once it has rested for long enough, a round also takes one step of a pass over everything: the books, then a portion of the keys.
//! What is still on its way, such as an outcome in the outbox, is excused by the order in which every look looks.
//!
//! A look that would hold more facts than it may is given up, and the portion cut in half. So the memory that the watch takes does
//! not depend on how much there is. It remembers where its rounds and its pass stand and what was found, and keeps nothing on disk: a
//! watch that is started again begins with what is new from then on, and with a new pass.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rdkafka::error::KafkaError;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::report::{MOST_NAMED, Offence, Promise, Report};
use super::scope::{Limit, Mark, Portion, Scope, TooMany};
use super::topics::Topics;
use super::{Judge, Looked, Unfit};
use crate::config;
use crate::kafka::reader;
use crate::metrics::Metrics;
use crate::printable;
use crate::rounds::Rounds;
use crate::transience::{self, Fault};

/// The rounds that a look at what is new goes back.
const ROUNDS: usize = 2;

/// It may hold this part of the facts of a look, so that each round costs little: under more traffic it sees some of the keys.
const PART_FOR_NEW: usize = 8;

/// A watch over a running system.
pub struct Watch {
    kafka: config::Kafka,
    database: config::Database,
    settings: config::Verify,
    metrics: Arc<Metrics>,
    rounds: Rounds,
    topics: Arc<Topics>,
    /// The moments of the last rounds, the oldest first.
    marks: VecDeque<Arc<Mark>>,
    /// The keys of which the next round sees what is new.
    fresh: Portion,
    /// The keys in which something looked wrong.
    suspects: BTreeSet<String>,
    pass: Pass,
    findings: Findings,
}

/// A pass over everything.
struct Pass {
    /// The portion that is next, before it or after it the books.
    portion: Portion,
    is_at_books: bool,
    /// The counts so far.
    counts: Report,
    rests_until: Instant,
}

/// The broken promises.
#[derive(Default)]
struct Findings {
    /// By promise and key, with the number of the pass that found it last.
    found: BTreeMap<(Promise, String), u64>,
    pass: u64,
}

impl Watch {
    /// # Errors
    /// No client of Kafka can be made with these settings.
    pub fn new(
        kafka: config::Kafka,
        database: config::Database,
        settings: config::Verify,
        metrics: Arc<Metrics>,
        rounds: Rounds,
    ) -> anyhow::Result<Self> {
        let pass = Pass {
            portion: Portion::ALL,
            is_at_books: true,
            counts: Report::default(),
            rests_until: Instant::now(),
        };
        Ok(Self {
            topics: Arc::new(Topics::connect(&kafka)?),
            kafka,
            database,
            settings,
            metrics,
            rounds,
            marks: VecDeque::new(),
            fresh: Portion::ALL,
            suspects: BTreeSet::new(),
            pass,
            findings: Findings::default(),
        })
    }

    /// Watches for ever.
    pub async fn run(mut self) {
        let mut ticks = interval(self.settings.watch_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.round().await {
                Ok(()) => self.rounds.passed(),
                Err(error) => {
                    self.rounds.failed(fault(&error), error.as_ref());
                    self.connect_anew();
                }
            }
        }
    }

    /// Kafka's client may have forgotten every broker, and would never ask for them again (librdkafka#5301).
    fn connect_anew(&mut self) {
        match Topics::connect(&self.kafka) {
            Ok(topics) => self.topics = Arc::new(topics),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "no new client of Kafka can be made"),
        }
    }

    async fn round(&mut self) -> anyhow::Result<()> {
        self.look_at_new().await?;
        while let Some(suspect) = self.suspects.first().cloned() {
            self.look_closer(&suspect).await?;
        }
        let start = Instant::now();
        if start >= self.pass.rests_until {
            self.step().await?;
            let rest = start.elapsed() * (100 / self.settings.watch_share - 1);
            self.pass.rests_until = Instant::now() + rest;
        }
        Ok(())
    }

    /// Looks at what is new, of one portion of the keys.
    async fn look_at_new(&mut self) -> anyhow::Result<()> {
        let Some(since) = self.marks.front().cloned() else {
            let mark = self.judge().mark().await?;
            self.marks.push_back(Arc::new(mark));
            return Ok(());
        };
        let limit = Limit(self.settings.watch_facts / PART_FOR_NEW);
        let looked = loop {
            let scope = Scope::Recent(self.fresh, since.clone());
            match self.judge().look(scope, limit).await {
                Err(error) if error.is::<TooMany>() => self.fresh = self.fresh.halved(None).ok_or(error)?,
                looked => break looked?,
            }
        };
        self.count("new", &looked);
        self.metrics.verify_looked_at.set(looked.mark.at / 1_000);
        let known = |offence: &&Offence| self.findings.has(offence.promise, &offence.key);
        for offence in looked.report.offences.iter().filter(|offence| !known(offence)) {
            let Offence { promise, key, .. } = offence;
            let what = printable::line(&offence.what);
            tracing::info!(%promise, key, what, "something looks wrong: looking closer");
            self.suspects.insert(key.clone());
        }
        self.fresh = self.fresh.next(limit.has_room_for_twice(looked.facts));
        self.marks.push_back(Arc::new(looked.mark));
        if self.marks.len() > ROUNDS {
            self.marks.pop_front();
        }
        Ok(())
    }

    /// Looks at everything about a suspect, and at its neighbours.
    async fn look_closer(&mut self, suspect: &str) -> anyhow::Result<()> {
        let mut portion = self.pass.portion.around(suspect.as_bytes());
        loop {
            match self.look_twice("closer", Scope::Keys(portion)).await {
                Err(error) if error.is::<TooMany>() => {
                    let Some(half) = portion.halved(Some(suspect.as_bytes())) else {
                        self.suspects.remove(suspect);
                        return Err(error);
                    };
                    portion = half;
                }
                looked => break drop(looked?),
            }
        }
        self.suspects.retain(|other| !portion.has(other.as_bytes()));
        Ok(())
    }

    /// Takes the next step of the pass.
    async fn step(&mut self) -> anyhow::Result<()> {
        if self.pass.is_at_books {
            self.pass.is_at_books = false;
            return self.look_twice("books", Scope::Books).await.map(drop);
        }
        let portion = self.pass.portion;
        let grows = match self.look_twice("keys", Scope::Keys(portion)).await {
            Err(error) if error.is::<TooMany>() => {
                let half = portion.halved(None);
                self.pass.portion = half.unwrap_or_else(|| portion.next(false));
                return if half.is_some() { Ok(()) } else { Err(error) };
            }
            looked => {
                let Looked { report, facts, .. } = looked?;
                self.pass.counts.add(&report);
                self.limit().has_room_for_twice(facts)
            }
        };
        self.pass.is_at_books = true;
        self.pass.portion = portion.next(grows);
        if portion.is_last() {
            self.end_pass();
        }
        Ok(())
    }

    /// What no look of the pass has found any more was mended.
    fn end_pass(&mut self) {
        let counts = std::mem::take(&mut self.pass.counts);
        for (state, count) in counts.states() {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.metrics.verify_records.with_label_values(&[state]).set(count);
        }
        self.metrics.verify_passes.inc();
        self.findings.end_pass();
        self.show();
    }

    /// Looks, and looks again before it tells what is wrong.
    async fn look_twice(&mut self, at: &'static str, scope: Scope) -> anyhow::Result<Looked> {
        let looked = self.judge().confirmed(&scope, self.limit()).await?;
        self.count(at, &looked);
        for Offence { promise, key, what } in &looked.report.offences {
            if self.findings.insert(*promise, key) {
                let what = printable::line(what);
                tracing::error!(%promise, key, what, "a promise is broken");
            }
        }
        self.show();
        Ok(looked)
    }

    fn count(&self, at: &'static str, looked: &Looked) {
        self.metrics.verify_looks.with_label_values(&[at]).inc();
        let facts = i64::try_from(looked.facts).unwrap_or(i64::MAX);
        let most = &self.metrics.verify_facts;
        most.set(most.get().max(facts));
    }

    fn show(&self) {
        for promise in Promise::ALL {
            let broken = &self.metrics.verify_broken;
            broken
                .with_label_values(&[promise.name()])
                .set(self.findings.against(promise));
        }
    }

    fn limit(&self) -> Limit {
        Limit(self.settings.watch_facts)
    }

    fn judge(&self) -> Judge<'_> {
        Judge {
            topics: &self.topics,
            kafka: &self.kafka,
            database: &self.database,
            settings: &self.settings,
            provider: None,
        }
    }
}

impl Findings {
    /// True if it is new.
    fn insert(&mut self, promise: Promise, key: &str) -> bool {
        if !self.has(promise, key) && self.count(promise) >= MOST_NAMED {
            return false;
        }
        self.found.insert((promise, key.to_owned()), self.pass).is_none()
    }

    fn has(&self, promise: Promise, key: &str) -> bool {
        self.found.contains_key(&(promise, key.to_owned()))
    }

    /// Drops what the pass did not find.
    fn end_pass(&mut self) {
        let pass = self.pass;
        self.found.retain(|_, last| *last >= pass);
        self.pass += 1;
    }

    fn against(&self, promise: Promise) -> i64 {
        i64::try_from(self.count(promise)).unwrap_or(i64::MAX)
    }

    fn count(&self, promise: Promise) -> usize {
        self.found.keys().filter(|(other, _)| *other == promise).count()
    }
}

/// The fault behind a round that failed.
fn fault(error: &anyhow::Error) -> Fault {
    error.chain().find_map(fault_of).unwrap_or(Fault::Unknown)
}

fn fault_of(cause: &(dyn std::error::Error + 'static)) -> Option<Fault> {
    if cause.is::<Unfit>() || cause.is::<TooMany>() {
        return Some(Fault::Setting);
    }
    if let Some(reader::Error::Silent { .. } | reader::Error::Transaction { .. }) = cause.downcast_ref() {
        return Some(Fault::Server);
    }
    if let Some(error) = cause.downcast_ref::<KafkaError>() {
        return error.rdkafka_error_code().map(transience::kafka);
    }
    cause.downcast_ref().map(transience::sql)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mended_is_forgotten_once_a_whole_pass_has_not_found_it() {
        let mut findings = Findings::default();
        assert!(findings.insert(Promise::Lost, "A-1"));
        assert!(!findings.insert(Promise::Lost, "A-1"));
        findings.end_pass();
        assert_eq!(findings.against(Promise::Lost), 1, "it was found in the pass");
        findings.insert(Promise::Doubled, "A-2");
        findings.end_pass();
        assert_eq!(
            (findings.against(Promise::Lost), findings.against(Promise::Doubled)),
            (0, 1)
        );
    }

    #[test]
    fn no_more_findings_are_told_apart_than_a_report_names() {
        let mut findings = Findings::default();
        for number in 0..MOST_NAMED + 5 {
            findings.insert(Promise::Lost, &format!("A-{number}"));
        }
        assert_eq!(findings.count(Promise::Lost), MOST_NAMED);
        assert!(!findings.insert(Promise::Lost, "A-1"));
    }

    #[test]
    fn the_metrics_know_every_promise_and_every_state_of_a_record() {
        let described = crate::metrics::Descriptors::default();
        let promises: Vec<_> = Promise::ALL.iter().map(|promise| promise.name()).collect();
        assert_eq!(described.verify_broken.labels[0].values, promises);
        let report = Report::default();
        let states: Vec<_> = report.states().iter().map(|(state, _)| *state).collect();
        assert_eq!(described.verify_records.labels[0].values, states);
    }
}
