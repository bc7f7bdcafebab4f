//! The changes of one stream by the database, compared with each other and with the outcomes on Kafka.
//!
//! Fed in this order: the change log with the table's rows, the idempotency records, the outbox, the outcome topic. Pure:
//! no clock, no I/O. It keeps numbers and ids, no payload.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use holdfast_schemas::{EventData, Key as _, Outcome, OutcomeData, OutcomeId, outcome_id};
use time::OffsetDateTime;

use super::history::{History, OutcomeOf};
use super::identity::{Cause, Digest, Fingerprint, TopicPartition, millis};
use super::report::{Promise, Report};
use super::retention::Removed;

#[derive(Default)]
pub(super) struct ChangeHistory<H: History> {
    keys: HashMap<Arc<[u8]>, Key>,
    /// By key.
    names: Vec<Arc<[u8]>>,
    /// By key.
    timelines: Vec<Timeline>,
    /// The change log: the rows of one key side by side, by version.
    rows: Vec<Row>,
    /// Refusals for keys without a row, which no log has.
    rowless: BTreeMap<OutcomeId, Rowless>,
    effects: HashMap<Cause, Effect>,
    replay: Option<Replay<H>>,
    /// The newest generation. The outcomes of an older one may be missing in a database that was restored.
    generation: i64,
    /// The time in milliseconds from which the changes are known, with some before; none when all are.
    since: Option<i64>,
}

/// A key of a record, by number: the ledger has each name once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key(u32);

/// The effect of one event.
#[derive(Debug)]
pub(super) struct Effect {
    pub(super) key: Key,
    /// None once the idempotency record was swept.
    pub(super) digest: Option<Digest>,
    /// Sequence of its first outcome; none for an event without outcomes.
    pub(super) first: Option<i64>,
    pub(super) refused: bool,
    /// When it was written, in milliseconds.
    pub(super) at: i64,
    pub(super) seen: Seen,
    /// True once one of its records was counted as the first.
    pub(super) counted: bool,
}

/// The partitions with records of a decided event.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    #[default]
    Nowhere,
    In(TopicPartition),
    InSeveral,
}

/// One key's outcomes.
#[derive(Default)]
struct Timeline {
    first_row: usize,
    rows: usize,
    /// The highest version that the log or the table's row names.
    known: i64,
    partition: Option<i32>,
    generation: i64,
    first_told: Option<i64>,
    last_told: i64,
}

/// One row of the change log.
struct Row {
    version: i64,
    outcome: OutcomeId,
    /// None when it cannot be read.
    content: Option<Fingerprint>,
    cause: Cause,
    at: i64,
    told: bool,
    waiting: bool,
}

struct Rowless {
    key: Key,
    /// None when no idempotency record has it.
    content: Option<Fingerprint>,
    at: i64,
    told: bool,
    waiting: bool,
}

/// The key whose log is being read.
struct Replay<H> {
    subject: String,
    key: Key,
    history: H,
    run: Option<Run>,
    row_at: Option<i64>,
    /// True if the log goes on where it is not known.
    resumes: bool,
}

/// More outcomes than any event has.
const OUTCOMES_OF_ONE: u32 = 8;

/// Consecutive outcomes of one event.
#[derive(Clone, Copy)]
struct Run {
    cause: Cause,
    place: u32,
}

/// A row of the change log, or of the table, or both where they have the same key and version.
pub(super) struct Change<H: History> {
    /// The key, as a text.
    pub(super) subject: String,
    pub(super) version: i64,
    pub(super) entry: Option<Entry<OutcomeOf<H>>>,
    pub(super) row: Option<H::Row>,
}

/// The change log's row of one version.
pub(super) struct Entry<T> {
    pub(super) outcome: OutcomeId,
    /// None when it cannot be read.
    pub(super) told: Option<T>,
    pub(super) cause_source: String,
    pub(super) cause_id: String,
    pub(super) changed_at: OffsetDateTime,
}

/// An idempotency record.
pub(super) struct Record {
    pub(super) source: String,
    pub(super) id: String,
    /// The key, as a text.
    pub(super) subject: String,
    pub(super) digest: Digest,
    pub(super) outcomes: Vec<Answered>,
    pub(super) refused: bool,
    pub(super) written_at: OffsetDateTime,
}

/// An outcome, as a repeat of its event is answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered {
    pub(super) sequence: i64,
    /// None when it cannot be read.
    pub(super) content: Option<Fingerprint>,
}

/// The position of a record on the outcome topic.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordPosition {
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// True if it was there before the snapshot was taken; the snapshot cannot have a later one.
    pub(super) before_snapshot: bool,
}

impl Record {
    fn effect(&self, key: Key) -> Effect {
        Effect {
            key,
            digest: Some(self.digest),
            first: self.outcomes.first().map(|answered| answered.sequence),
            refused: self.refused,
            at: millis(self.written_at),
            seen: Seen::Nowhere,
            counted: false,
        }
    }
}

enum VersionLookup {
    Row(usize),
    /// A version that the log should have and has not; reported when the log was read.
    Gap,
    Beyond,
}

impl Effect {
    pub(super) fn seen_in(&mut self, topic_partition: TopicPartition) {
        self.seen = match self.seen {
            Seen::Nowhere => Seen::In(topic_partition),
            Seen::In(other) if other == topic_partition => self.seen,
            Seen::In(_) | Seen::InSeveral => Seen::InSeveral,
        };
    }
}

impl<H: History> ChangeHistory<H> {
    /// Of all changes, or of those `since` a time in milliseconds.
    pub(super) fn new(generation: i64, since: Option<i64>) -> Self {
        Self {
            generation,
            since,
            ..Self::default()
        }
    }

    /// The number of facts that it holds.
    pub(super) fn facts(&self) -> usize {
        self.names.len() + self.rows.len() + self.rowless.len() + self.effects.len()
    }

    /// Takes the next row, by key and version; [`Self::end_of_changes`] after the last.
    pub(super) fn change(&mut self, change: Change<H>, report: &mut Report) {
        if self
            .replay
            .as_ref()
            .is_none_or(|replay| replay.subject != change.subject)
        {
            self.end_of_changes(report);
        }
        let mut replay = self
            .replay
            .take()
            .unwrap_or_else(|| self.begin(change.subject, change.version));
        if let Some(entry) = change.entry {
            self.logged(&mut replay, change.version, entry, report);
            if let Some(Err(column)) = change.row.as_ref().map(|row| replay.history.fits(row)) {
                report.broken(H::BROKEN, &replay.subject, || {
                    let version = change.version;
                    format!("its row has another {column} than its change log at version {version}")
                });
            }
        } else {
            self.unlogged(&replay, change.version, report);
        }
        if change.row.is_some() {
            replay.row_at = Some(change.version);
        }
        self.replay = Some(replay);
    }

    pub(super) fn end_of_changes(&mut self, report: &mut Report) {
        let Some(replay) = self.replay.take() else { return };
        let known = self.timeline(replay.key).known;
        match replay.row_at {
            None => report.broken(H::BROKEN, &replay.subject, || {
                format!("it has a change log up to version {known}, but no row")
            }),
            Some(version) if version < known => report.broken(H::BROKEN, &replay.subject, || {
                format!("its row is at version {version}, but its change log goes on to {known}")
            }),
            Some(_) => {}
        }
    }

    fn begin(&mut self, subject: String, version: i64) -> Replay<H> {
        let key = self.key(subject.as_bytes());
        let resumes = self.since.is_some() && version > 1;
        let timeline = &mut self.timelines[key.0 as usize];
        timeline.first_row = self.rows.len();
        if resumes {
            timeline.known = version - 1;
        }
        Replay {
            subject,
            key,
            history: if resumes { H::resumed() } else { H::default() },
            run: None,
            row_at: None,
            resumes,
        }
    }

    fn logged(&mut self, replay: &mut Replay<H>, version: i64, entry: Entry<OutcomeOf<H>>, report: &mut Report) {
        let timeline = &mut self.timelines[replay.key.0 as usize];
        let missing = version - timeline.known - 1;
        if missing > 0 {
            report.broken_times(Promise::Lost, missing.unsigned_abs(), &replay.subject, || {
                format!("{missing} row(s) of its change log before version {version} are missing")
            });
        }
        timeline.known = version;
        timeline.rows += 1;
        self.rows.push(Row {
            version,
            outcome: entry.outcome,
            content: entry.told.as_ref().map(Fingerprint::of_outcome),
            cause: Cause::of(&entry.cause_source, &entry.cause_id),
            at: millis(entry.changed_at),
            told: false,
            waiting: false,
        });
        self.caused(replay, version, &entry, report);
        match entry.told.map(|told| replay.history.apply(told, entry.changed_at)) {
            Some(Ok(())) => {}
            Some(Err(why)) => report.broken(H::BROKEN, &replay.subject, || {
                format!("at version {version} of its change log it was {why}")
            }),
            None => report.broken(Promise::Lost, &replay.subject, || {
                format!("version {version} of its change log cannot be read")
            }),
        }
    }

    /// Checks that the event behind `entry` took effect nowhere else, and that the outcome has the id that follows from it.
    fn caused(&mut self, replay: &mut Replay<H>, version: i64, entry: &Entry<OutcomeOf<H>>, report: &mut Report) {
        let (source, id, subject) = (&entry.cause_source, &entry.cause_id, &replay.subject);
        let cause = Cause::of(source, id);
        let refused = entry.told.as_ref().is_some_and(|told| told.refusal().is_some());
        let expected = |place| outcome_id(source, id, subject, place);
        let run = replay.run.filter(|run| run.cause == cause);
        let again = run.is_some_and(|run| entry.outcome == expected(0) && entry.outcome != expected(run.place + 1));
        let run = match run {
            Some(run) if !again => Run {
                place: run.place + 1,
                ..run
            },
            // The first row that is known may be a later outcome of its event.
            _ if replay.run.is_none() && replay.resumes => {
                let place = (0..OUTCOMES_OF_ONE).find(|place| entry.outcome == expected(*place));
                let place = place.unwrap_or_default();
                Run { cause, place }
            }
            _ => Run { cause, place: 0 },
        };
        replay.run = Some(run);
        match self.effects.entry(cause) {
            Slot::Vacant(slot) => {
                slot.insert(Effect {
                    key: replay.key,
                    digest: None,
                    first: Some(version - i64::from(run.place)),
                    refused,
                    at: millis(entry.changed_at),
                    seen: Seen::Nowhere,
                    counted: false,
                });
            }
            Slot::Occupied(mut slot) if run.place > 0 => slot.get_mut().refused |= refused,
            Slot::Occupied(slot) => {
                let effect = slot.get();
                let (before, at) = (name(&self.names, effect.key), effect.first.unwrap_or_default());
                report.broken(Promise::Doubled, subject, || {
                    format!(
                        "event {id:?} of {source:?} took effect at version {at} of {before:?} and again at {version}"
                    )
                });
            }
        }
        if entry.outcome != expected(run.place) {
            report.broken(Promise::Lost, subject, || {
                let (found, expected) = (entry.outcome, expected(run.place));
                format!("version {version} has outcome {found}; from event {id:?} of {source:?} follows {expected}")
            });
        }
    }

    fn unlogged(&mut self, replay: &Replay<H>, version: i64, report: &mut Report) {
        let timeline = &mut self.timelines[replay.key.0 as usize];
        let known = timeline.known;
        let missing = version.saturating_sub(known).max(1).unsigned_abs();
        report.broken_times(Promise::Lost, missing, &replay.subject, || {
            format!("its row is at version {version}, but its change log has no such version (it has {known})")
        });
        timeline.known = known.max(version);
    }

    pub(super) fn record(&mut self, record: Record, report: &mut Report) {
        let Record {
            source, id, subject, ..
        } = &record;
        let key = self.key(subject.as_bytes());
        for (place, answered) in (0..).zip(&record.outcomes) {
            let expected = outcome_id(source, id, subject, place);
            if answered.sequence == 0 {
                self.rowless.insert(
                    expected,
                    Rowless {
                        key,
                        content: answered.content,
                        at: millis(record.written_at),
                        told: false,
                        waiting: false,
                    },
                );
            } else if let Some(wrong) = self.wrong_answer(key, *answered, expected)
                && !self.is_before(record.written_at)
            {
                report.broken(Promise::Lost, subject, || {
                    let sequence = answered.sequence;
                    format!("event {id:?} of {source:?} was answered with version {sequence}, {wrong}")
                });
            }
        }
        let cause = Cause::of(source, id);
        let logged = self.effects.get(&cause).and_then(|logged| logged.first);
        if let (Some(version), []) = (logged, &record.outcomes[..]) {
            report.broken(Promise::Lost, subject, || {
                format!("event {id:?} of {source:?} was answered with nothing, but the log gives it version {version}")
            });
        }
        self.effects.insert(cause, record.effect(key));
    }

    /// Takes the idempotency record of an event that was repeated: it took effect before, or after the database was read.
    pub(super) fn repeated(&mut self, record: &Record) {
        let key = self.key(record.subject.as_bytes());
        let effect = Effect {
            // Its first record may lie where nobody looks.
            seen: Seen::InSeveral,
            ..record.effect(key)
        };
        let cause = Cause::of(&record.source, &record.id);
        if !self.knows(cause) {
            self.effects.insert(cause, effect);
        }
    }

    /// True if the event's effect is known, with its content.
    pub(super) fn knows(&self, cause: Cause) -> bool {
        self.effects.get(&cause).is_some_and(|effect| effect.digest.is_some())
    }

    /// True if what was written then is not looked at.
    fn is_before(&self, time: OffsetDateTime) -> bool {
        self.since.is_some_and(|since| millis(time) < since)
    }

    /// What is wrong with an answer that is kept, by the change log.
    fn wrong_answer(&self, key: Key, answered: Answered, expected: OutcomeId) -> Option<&'static str> {
        match self.find(key, answered.sequence) {
            VersionLookup::Row(row) => {
                let Row { outcome, content, .. } = &self.rows[row];
                match (*outcome == expected, content) {
                    (false, _) => Some("which the log gives to another"),
                    (true, Some(_)) if answered.content != *content => Some("but with other data than the log has"),
                    (true, _) => None,
                }
            }
            VersionLookup::Gap => None,
            VersionLookup::Beyond => Some("which the log does not have"),
        }
    }

    /// Takes an outcome that stood in the outbox.
    pub(super) fn waiting(&mut self, outcome: &Outcome<OutcomeOf<H>>, report: &mut Report) {
        if outcome.sequence > 0 && self.is_before(outcome.time) {
            return;
        }
        let key = self.key(outcome.subject.as_str().as_bytes());
        if outcome.sequence == 0 {
            let rowless = self.rowless(key, outcome);
            let before = std::mem::replace(&mut rowless.waiting, true);
            let content = rowless.content;
            return match before {
                true => waits_twice(outcome, report),
                false => agrees("in the outbox", content, outcome, report),
            };
        }
        match self.find(key, outcome.sequence) {
            VersionLookup::Gap => {}
            VersionLookup::Row(row) if self.rows[row].outcome == outcome.id => {
                match std::mem::replace(&mut self.rows[row].waiting, true) {
                    true => waits_twice(outcome, report),
                    false => self.as_logged(row, "in the outbox", outcome, report),
                }
            }
            VersionLookup::Row(_) | VersionLookup::Beyond => {
                report.broken(Promise::Doubled, outcome.subject.as_str(), || {
                    let (id, sequence) = (outcome.id, outcome.sequence);
                    format!("outcome {id} (sequence {sequence}) is in the outbox, but not in the change log")
                });
            }
        }
    }

    /// A refusal that has no row. The sweep may have taken the idempotency record behind it.
    fn rowless(&mut self, key: Key, outcome: &Outcome<OutcomeOf<H>>) -> &mut Rowless {
        self.rowless.entry(outcome.id).or_insert(Rowless {
            key,
            content: None,
            at: millis(outcome.time),
            told: false,
            waiting: false,
        })
    }

    /// Checks that an outcome says what its row of the change log says.
    fn as_logged(&self, row: usize, place: &str, outcome: &Outcome<OutcomeOf<H>>, report: &mut Report) {
        let row = &self.rows[row];
        let cause = Cause::of(outcome.causation_source.as_str(), outcome.causation_id.as_str());
        if row.cause != cause || row.at != millis(outcome.time) {
            return report.broken(Promise::Lost, outcome.subject.as_str(), || {
                let (id, sequence) = (outcome.id, outcome.sequence);
                format!("outcome {id} (sequence {sequence}) {place} has another cause or time than the change log")
            });
        }
        agrees(place, row.content, outcome, report);
    }

    /// Takes the next record of a partition of the outcome topic.
    pub(super) fn told(
        &mut self,
        position: RecordPosition,
        record_key: Option<&[u8]>,
        outcome: &Outcome<OutcomeOf<H>>,
        report: &mut Report,
    ) {
        if outcome.sequence > 0 && self.is_before(outcome.time) {
            return;
        }
        let subject = outcome.subject.as_str();
        let key = self.key(subject.as_bytes());
        if record_key != Some(subject.as_bytes()) {
            report.broken(Promise::OutOfOrder, subject, || {
                format!("the outcome at {position} lies under another key than its subject")
            });
        }
        if outcome.sequence == 0 {
            return self.told_rowless(position, key, outcome, report);
        }
        let (id, sequence) = (outcome.id, outcome.sequence);
        let is_current = outcome.generation >= self.generation;
        match self.find(key, sequence) {
            VersionLookup::Row(row) if self.rows[row].outcome == id => {
                if std::mem::replace(&mut self.rows[row].told, true) {
                    return twice(position, outcome, report);
                }
                self.as_logged(row, &format!("at {position}"), outcome, report);
            }
            VersionLookup::Row(row) if is_current => {
                let logged = self.rows[row].outcome;
                report.broken(Promise::Doubled, subject, || {
                    format!("sequence {sequence} at {position} is outcome {id}; the change log has {logged}")
                });
            }
            VersionLookup::Beyond if is_current && position.before_snapshot => {
                report.broken(Promise::Lost, subject, || {
                    format!("outcome {id} at {position} tells of sequence {sequence}, which the database does not have")
                })
            }
            VersionLookup::Row(_) | VersionLookup::Gap | VersionLookup::Beyond => {}
        }
        self.follows(position, key, outcome, report);
    }

    fn told_rowless(
        &mut self,
        position: RecordPosition,
        key: Key,
        outcome: &Outcome<OutcomeOf<H>>,
        report: &mut Report,
    ) {
        let rowless = self.rowless(key, outcome);
        let (before, content) = (std::mem::replace(&mut rowless.told, true), rowless.content);
        if before {
            return twice(position, outcome, report);
        }
        agrees(&format!("at {position}"), content, outcome, report);
        // For an event whose idempotency record was swept, this is the only trace.
        let cause = Cause::of(outcome.causation_source.as_str(), outcome.causation_id.as_str());
        self.effects.entry(cause).or_insert(Effect {
            key,
            digest: None,
            first: Some(0),
            refused: true,
            at: millis(outcome.time),
            seen: Seen::Nowhere,
            counted: false,
        });
    }

    /// Checks the order of one key's outcomes: by generation, then by sequence. Gaps show as outcomes that were never sent.
    fn follows(&mut self, position: RecordPosition, key: Key, outcome: &Outcome<OutcomeOf<H>>, report: &mut Report) {
        let timeline = &mut self.timelines[key.0 as usize];
        let (subject, sequence) = (outcome.subject.as_str(), outcome.sequence);
        let partition = *timeline.partition.get_or_insert(position.partition);
        if partition != position.partition {
            return report.broken(Promise::OutOfOrder, subject, || {
                format!("its outcomes lie in partition {partition} and, at {position}, in another")
            });
        }
        let (generation, last) = (timeline.generation, timeline.last_told);
        if (outcome.generation, sequence) <= (generation, last) {
            return report.broken(Promise::OutOfOrder, subject, || {
                format!("sequence {sequence} at {position} comes after sequence {last} of generation {generation}")
            });
        }
        (timeline.generation, timeline.last_told) = (outcome.generation, sequence);
        timeline.first_told.get_or_insert(sequence);
    }

    /// Looks for what was never told. What lies before everything that is left of its key may be gone with the topic's beginning.
    pub(super) fn end_of_outcomes(&self, removed: &Removed, report: &mut Report) {
        let since = self.since.unwrap_or(i64::MIN);
        for (key, timeline) in (0..).map(Key).zip(&self.timelines) {
            for row in &self.rows[timeline.first_row..][..timeline.rows] {
                if !row.told && row.at >= since {
                    self.untold(key, timeline, row, removed, report);
                }
            }
        }
        for (id, rowless) in &self.rowless {
            let is_known = rowless.told || rowless.waiting || rowless.at < since;
            if !is_known && !removed.may_have(Some(self.bytes(rowless.key)), rowless.at) {
                report.broken(Promise::Lost, &self.name(rowless.key), || {
                    format!("outcome {id} (a refusal, sequence 0) is neither on the topic nor in the outbox")
                });
            }
        }
    }

    fn untold(&self, key: Key, timeline: &Timeline, row: &Row, removed: &Removed, report: &mut Report) {
        let (version, id, last) = (row.version, row.outcome, timeline.last_told);
        if row.waiting {
            if version < last {
                report.broken(Promise::OutOfOrder, &self.name(key), || {
                    format!("sequence {version} waits in the outbox, but {last} is told already")
                });
            }
            return;
        }
        let before_all = timeline.first_told.is_none_or(|first| version < first);
        let may_be_removed = || match timeline.partition {
            Some(partition) => removed.may_have_in(partition, row.at),
            None => removed.may_have(Some(self.bytes(key)), row.at),
        };
        if !(before_all && may_be_removed()) {
            report.broken(Promise::Lost, &self.name(key), || {
                format!("outcome {id} (sequence {version}) is neither on the topic nor in the outbox")
            });
        }
    }

    /// Checks that no event took effect on another stream too: its source and id name it once, whatever it is about.
    pub(super) fn is_apart_from<O: History>(&self, other: &ChangeHistory<O>, report: &mut Report) {
        for (cause, effect) in &self.effects {
            if let Some(there) = other.effects.get(cause) {
                report.broken(Promise::Doubled, &self.name(effect.key), || {
                    let (topic, there) = (O::Data::TOPIC, other.name(there.key));
                    format!("one of its events took effect on {there:?} of the topic {topic} too")
                });
            }
        }
    }

    /// The effect of an event, if it had one.
    pub(super) fn effect(&self, cause: Cause) -> Option<&Effect> {
        self.effects.get(&cause)
    }

    pub(super) fn effect_mut(&mut self, cause: Cause) -> &mut Effect {
        self.effects.get_mut(&cause).expect("a cause that was found stays")
    }

    pub(super) fn key(&mut self, bytes: &[u8]) -> Key {
        if let Some(key) = self.keys.get(bytes) {
            return *key;
        }
        let (key, bytes) = (Key(self.names.len() as u32), Arc::<[u8]>::from(bytes));
        self.names.push(Arc::clone(&bytes));
        self.timelines.push(Timeline::default());
        self.keys.insert(bytes, key);
        key
    }

    pub(super) fn name(&self, key: Key) -> String {
        name(&self.names, key)
    }

    /// The key, as records have it.
    pub(super) fn bytes(&self, key: Key) -> &[u8] {
        &self.names[key.0 as usize]
    }

    fn timeline(&self, key: Key) -> &Timeline {
        &self.timelines[key.0 as usize]
    }

    fn find(&self, key: Key, sequence: i64) -> VersionLookup {
        let timeline = self.timeline(key);
        let rows = &self.rows[timeline.first_row..][..timeline.rows];
        match rows.binary_search_by_key(&sequence, |row| row.version) {
            Ok(place) => VersionLookup::Row(timeline.first_row + place),
            Err(_) if sequence <= timeline.known => VersionLookup::Gap,
            Err(_) => VersionLookup::Beyond,
        }
    }
}

fn name(names: &[Arc<[u8]>], key: Key) -> String {
    String::from_utf8_lossy(&names[key.0 as usize]).into_owned()
}

/// Checks that an outcome says what the database says that it says.
fn agrees(place: &str, content: Option<Fingerprint>, outcome: &Outcome<impl OutcomeData>, report: &mut Report) {
    if content.is_some_and(|content| content != Fingerprint::of_outcome(&outcome.data)) {
        report.broken(Promise::Lost, outcome.subject.as_str(), || {
            let (id, sequence) = (outcome.id, outcome.sequence);
            format!("outcome {id} (sequence {sequence}) {place} has another type or other data than the database")
        });
    }
}

fn waits_twice(outcome: &Outcome<impl OutcomeData>, report: &mut Report) {
    let (id, sequence) = (outcome.id, outcome.sequence);
    report.broken(Promise::Doubled, outcome.subject.as_str(), || {
        format!("outcome {id} (sequence {sequence}) is in the outbox twice")
    });
}

fn twice(position: RecordPosition, outcome: &Outcome<impl OutcomeData>, report: &mut Report) {
    let (id, sequence) = (outcome.id, outcome.sequence);
    report.broken(Promise::Doubled, outcome.subject.as_str(), || {
        format!("outcome {id} (sequence {sequence}) is told a second time at {position}")
    });
}

impl std::fmt::Display for RecordPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.partition, self.offset)
    }
}
