//! The records of a public topic: each must be accounted for, and one key's events must have been taken in order.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use holdfast_schemas::{DeadLetterReason, EventData};

use super::change_history::{ChangeHistory, Effect, Key, Seen};
use super::history::History;
use super::identity::{Cause, Digest, TopicPartition, millis, named};
use super::letters::{Claim, Evidence, Original};
use super::report::{Promise, Report};
use super::retention::Removed;
use super::reuse::{Use, Uses};
use super::terms::{CLOCK_SKEW, Terms};

/// The records and the dead letters. Pure: no clock, no I/O; no payload is kept.
pub(super) struct Records {
    terms: Terms,
    topic_partitions: BTreeMap<TopicPartition, Vec<Record>>,
    letters: BTreeMap<RecordPosition, Vec<Judged>>,
    /// The records whose dead letters an operator has replayed or dropped.
    settled: HashSet<RecordPosition>,
    /// The events in quarantine.
    parked: HashMap<(Cause, Digest), Parked>,
    /// Since when events of a type have taken effect, in milliseconds; only of types that are said to be unknown.
    known_since: HashMap<&'static str, i64>,
    /// Partitions whose beginning is gone, or not looked at.
    removed: BTreeSet<TopicPartition>,
    /// The number of records.
    count: usize,
    /// The names of events whose effect was not known when their records were read: it may have been before the look begins, or after
    /// the snapshot. None when the look begins at the beginning.
    unknown: Option<Vec<EventName>>,
}

/// Source and id of an event.
pub(super) type EventName = (String, String);

/// The partition and offset of a record.
pub(super) type RecordPosition = (TopicPartition, i64);

struct Record {
    offset: i64,
    key: Option<Key>,
    /// None when it cannot be decoded.
    event: Option<(Cause, Digest)>,
    /// The event's time, in milliseconds; the broker's when it cannot be decoded.
    time: i64,
    /// The broker's time, in milliseconds.
    at: i64,
    /// True if it may have been applied without an outcome.
    may_be_untold: bool,
}

/// An event in quarantine: its place among those of its key, and the record that it came with, if that was told.
#[derive(Clone, Copy)]
struct Parked {
    place: i64,
    record: Option<RecordPosition>,
}

/// A dead letter, with what its record says about it; nothing while that was not read.
struct Judged {
    claim: Claim,
    evidence: Option<Evidence>,
}

/// The evidence that accounts for a record.
enum Standing {
    Decided(Cause),
    DeadLettered(DeadLetterReason),
    Parked(Parked),
    /// Nothing but a dead letter that lies.
    Misjudged,
    Nothing,
}

/// The sum of the dead letters about a record.
enum Verdict {
    Follows(DeadLetterReason),
    Lies,
}

/// The findings about one key in one partition, up to some offset.
#[derive(Default)]
struct KeyAudit {
    unaccounted: Vec<Unaccounted>,
    /// Offset and sequence of the last first record.
    last: Option<(i64, i64)>,
    /// Offset of the last record whose event is in quarantine, and the event's place there.
    parked: Option<(i64, i64)>,
}

struct Unaccounted {
    offset: i64,
    decodable: bool,
    /// The broker's time, in milliseconds.
    at: i64,
}

impl Records {
    /// `resumes`: what was before the look is not known.
    pub(super) fn new(terms: Terms, resumes: bool) -> Self {
        Self {
            terms,
            count: 0,
            unknown: resumes.then(Vec::new),
            topic_partitions: BTreeMap::new(),
            letters: BTreeMap::new(),
            settled: HashSet::new(),
            parked: HashMap::new(),
            known_since: HashMap::new(),
            removed: BTreeSet::new(),
        }
    }

    /// The number of facts that it holds.
    pub(super) fn facts(&self) -> usize {
        self.count + self.letters.len() + self.parked.len() + self.unknown.as_ref().map_or(0, Vec::len)
    }

    /// Takes the names of the events whose effect is not known.
    pub(super) fn take_unknown(&mut self) -> Vec<EventName> {
        self.unknown.take().unwrap_or_default()
    }

    pub(super) fn dead_letter(&mut self, topic_partition: TopicPartition, offset: i64, claim: Claim) {
        let judged = Judged { claim, evidence: None };
        self.letters.entry((topic_partition, offset)).or_default().push(judged);
    }

    /// Says that an operator has replayed or dropped the dead letters about a record.
    pub(super) fn settled(&mut self, topic_partition: TopicPartition, offset: i64) {
        self.settled.insert((topic_partition, offset));
    }

    /// Says that an event is in quarantine.
    pub(super) fn parked(&mut self, event: (Cause, Digest), place: i64, record: Option<RecordPosition>) {
        self.parked.insert(event, Parked { place, record });
    }

    /// Records that retention has removed the beginning of a partition.
    pub(super) fn beginning_is_gone(&mut self, topic_partition: TopicPartition) {
        self.removed.insert(topic_partition);
    }

    /// Takes the next record of a partition, once all dead letters and outcomes are known.
    pub(super) fn record<H: History>(
        &mut self,
        topic_partition: TopicPartition,
        offset: i64,
        record: &Original<'_>,
        change_history: &mut ChangeHistory<H>,
    ) {
        let decoded = record.decode::<H::Data>();
        if let Some(letters) = self.letters.get_mut(&(topic_partition, offset)) {
            for judged in letters {
                judged.evidence = Some(judged.claim.judge(record, &decoded, &self.terms));
            }
        }
        let event = decoded.ok();
        let name = event.as_ref().and_then(named);
        if let (Some(event), Some((cause, _))) = (&event, name)
            && let Some(effect) = change_history.effect(cause)
        {
            let since = self.known_since.entry(event.event_type()).or_insert(effect.at);
            *since = effect.at.min(*since);
        }
        if let (Some(unknown), Some(event), Some((cause, _))) = (&mut self.unknown, &event, name)
            && !change_history.knows(cause)
        {
            unknown.push((event.source.as_str().to_owned(), event.id.as_str().to_owned()));
        }
        self.count += 1;
        let at = record.at;
        self.topic_partitions.entry(topic_partition).or_default().push(Record {
            offset,
            key: record.key.map(|key| change_history.key(key)),
            event: name,
            time: millis(event.as_ref().map_or(at, |event| event.time)),
            at: millis(at),
            may_be_untold: event.is_some_and(|event| H::may_go_untold(&event.data)),
        });
    }

    /// Asks for what bears the ids that dead letters say were used before.
    pub(super) fn contested(&self, uses: &mut Uses) {
        for judged in self.letters.values().flatten() {
            if let Some(Evidence::IfReused(cause, _)) = judged.evidence {
                uses.ask(cause);
            }
        }
        uses.beginning_is_unseen |= !self.removed.is_empty();
    }

    /// Answers it, as far as this stream knows.
    pub(super) fn uses<H: History>(&self, change_history: &ChangeHistory<H>, uses: &mut Uses) {
        let asked = uses.asked();
        if asked.is_empty() {
            return;
        }
        for cause in asked {
            if let Some(effect) = change_history.effect(cause) {
                let key = (<H::Data as EventData>::TOPIC, Some(effect.key));
                let (at, content) = (effect.at, effect.digest);
                uses.note(cause, Use::Effect { at, key, content });
            }
        }
        for record in self.topic_partitions.values().flatten() {
            if let Some((cause, content)) = record.event {
                let is_aged = record.aged_from() <= self.terms.swept_up_to();
                let at = record.at;
                uses.note(cause, Use::Record { at, content, is_aged });
            }
        }
    }

    /// Accounts for every record. `removed` is what may be gone of the dead letters.
    pub(super) fn judge<H: History>(
        &mut self,
        change_history: &mut ChangeHistory<H>,
        uses: &Uses,
        removed: &Removed,
        report: &mut Report,
    ) {
        self.judge_letters(change_history, uses, report);
        for (topic_partition, records) in &self.topic_partitions {
            for record in records {
                if let Standing::Decided(cause) = self.standing(*topic_partition, record, change_history) {
                    change_history.effect_mut(cause).seen_in(*topic_partition);
                }
            }
        }
        for (topic_partition, records) in &self.topic_partitions {
            let mut by_key: HashMap<Option<Key>, KeyAudit> = HashMap::new();
            for record in records {
                let audit = by_key.entry(record.key).or_default();
                self.account(*topic_partition, record, audit, change_history, removed, report);
            }
            report.events += records.len() as u64;
            let mut waiting: Vec<_> = by_key
                .into_iter()
                .filter(|(_, audit)| !audit.unaccounted.is_empty())
                .collect();
            waiting.sort_by_key(|(key, _)| *key);
            for (key, audit) in waiting {
                report.pending += audit.pending(*topic_partition, key, &self.terms, change_history, report);
            }
        }
    }

    /// Settles what a single record could not say about its dead letters, and names those that lie.
    fn judge_letters<H: History>(&mut self, change_history: &ChangeHistory<H>, uses: &Uses, report: &mut Report) {
        for (place, letters) in &mut self.letters {
            let (topic_partition, offset) = *place;
            let records = self
                .topic_partitions
                .get(&topic_partition)
                .map_or(&[][..], Vec::as_slice);
            let Ok(at) = records.binary_search_by_key(&offset, |record| record.offset) else {
                continue;
            };
            let record = &records[at];
            for Judged { claim, evidence } in letters {
                let known_since = |name: &str| self.known_since.get(name).copied();
                let lie = evidence.as_ref().and_then(|evidence| {
                    evidence.lie(claim, topic_partition, record, known_since, change_history, uses)
                });
                match lie {
                    Some(lie) if !self.settled.contains(place) => {
                        report.broken(Promise::Lost, &name(record.key, change_history), || {
                            let (topic, partition) = topic_partition;
                            format!("the dead letter about record {topic}/{partition}/{offset} {lie}")
                        });
                        *evidence = Some(Evidence::Lies(lie));
                    }
                    _ if *evidence == Some(Evidence::Elsewhere) => {}
                    _ => *evidence = Some(Evidence::Follows),
                }
            }
        }
    }

    fn standing<H: History>(
        &self,
        topic_partition: TopicPartition,
        record: &Record,
        change_history: &ChangeHistory<H>,
    ) -> Standing {
        let decided = record.event.filter(|(cause, digest)| {
            change_history.effect(*cause).is_some_and(|effect| match effect.digest {
                Some(decided) => decided == *digest,
                None => record.aged_from_with(effect) <= self.terms.swept_up_to() && Some(effect.key) == record.key,
            })
        });
        match (decided, self.verdict((topic_partition, record.offset))) {
            // Taken a second time, long after it was decided, a record is dead-lettered as too old: it stays decided.
            (Some((cause, _)), None | Some(Verdict::Follows(DeadLetterReason::TooOld) | Verdict::Lies)) => {
                Standing::Decided(cause)
            }
            (_, Some(Verdict::Follows(reason))) => Standing::DeadLettered(reason),
            (None, verdict) => match (record.event.and_then(|event| self.parked.get(&event)), verdict) {
                (Some(parked), _) => Standing::Parked(*parked),
                (None, Some(Verdict::Lies)) => Standing::Misjudged,
                (None, _) => Standing::Nothing,
            },
        }
    }

    /// Of several dead letters, one that follows says more than one that lies, and any other reason more than that it is too
    /// old by now.
    fn verdict(&self, place: RecordPosition) -> Option<Verdict> {
        let letters = self.letters.get(&place)?;
        let following = letters
            .iter()
            .filter(|judged| judged.evidence == Some(Evidence::Follows))
            .map(|judged| judged.claim.reason);
        let reason = following.min_by_key(|reason| *reason == DeadLetterReason::TooOld);
        let lies = || {
            letters
                .iter()
                .any(|judged| matches!(judged.evidence, Some(Evidence::Lies(_))))
        };
        match reason {
            Some(reason) => Some(Verdict::Follows(reason)),
            None => lies().then_some(Verdict::Lies),
        }
    }

    fn account<H: History>(
        &self,
        topic_partition: TopicPartition,
        record: &Record,
        audit: &mut KeyAudit,
        change_history: &mut ChangeHistory<H>,
        removed: &Removed,
        report: &mut Report,
    ) {
        match self.standing(topic_partition, record, change_history) {
            Standing::Decided(cause) => {
                self.account_decided(topic_partition, record, cause, audit, change_history, report);
            }
            Standing::DeadLettered(reason) => {
                report.dead_letters += 1;
                // Serve writes this one, when it has decided all before it; the gate writes the others, ahead of serve.
                let from_serve = reason == DeadLetterReason::IdReused;
                audit.passed(
                    topic_partition,
                    record,
                    |earlier| from_serve || !earlier.decodable,
                    change_history,
                    report,
                );
            }
            Standing::Parked(Parked { place, record: first }) => {
                report.parked += 1;
                // Serve parks it when it has taken all before it; a repeat may lie behind what it has not taken yet.
                if first == Some((topic_partition, record.offset)) {
                    audit.passed(topic_partition, record, |_| true, change_history, report);
                    audit.parked_in_order(topic_partition, record, place, change_history, report);
                }
            }
            Standing::Misjudged => {}
            Standing::Nothing if self.trace_may_be_gone(record, removed, change_history) => report.out_of_scope += 1,
            Standing::Nothing => audit.unaccounted.push(Unaccounted {
                offset: record.offset,
                decodable: record.event.is_some(),
                at: record.at,
            }),
        }
    }

    fn account_decided<H: History>(
        &self,
        topic_partition: TopicPartition,
        record: &Record,
        cause: Cause,
        audit: &mut KeyAudit,
        change_history: &mut ChangeHistory<H>,
        report: &mut Report,
    ) {
        let effect = change_history.effect_mut(cause);
        if std::mem::replace(&mut effect.counted, true) {
            report.repeats += 1;
            return;
        }
        let count = if effect.refused {
            &mut report.refused
        } else {
            &mut report.applied
        };
        *count += 1;
        let (first, took_effect_here) = (effect.first, self.took_effect_here(topic_partition, record, effect));
        if first.is_none() && !record.may_be_untold {
            report.broken(Promise::Lost, &name(record.key, change_history), || {
                let ((topic, partition), offset) = (topic_partition, record.offset);
                format!("record {topic}/{partition}/{offset} was answered with nothing")
            });
        }
        if took_effect_here {
            audit.passed(topic_partition, record, |_| true, change_history, report);
            audit.in_order(topic_partition, record, first, change_history, report);
            audit.overtakes_none(topic_partition, record, change_history, report);
        }
    }

    /// True if all that could account for the record may be gone: a dead letter with the beginning of its partition, or the
    /// idempotency record, which alone remembers an event without outcomes.
    fn trace_may_be_gone(
        &self,
        record: &Record,
        removed: &Removed,
        change_history: &ChangeHistory<impl History>,
    ) -> bool {
        // A dead letter is written after its record.
        let letter_is_gone = removed.may_have(record.key.map(|key| change_history.bytes(key)), record.at);
        letter_is_gone
            || record.may_be_untold
                && (record.aged_from() <= self.terms.swept_up_to() || self.may_repeat_what_is_swept(record))
    }

    /// True if the idempotency record of an earlier record of the event may be swept by now, and the gate admitted this one while it was
    /// not: it dead-letters an event whose time is further back.
    fn may_repeat_what_is_swept(&self, record: &Record) -> bool {
        record.time <= self.terms.swept_up_to() && record.at - record.time <= self.terms.idempotency_retention
    }

    /// True if the event took effect by this record, and not by an earlier one that is gone, or by one in another partition. Then
    /// all records before it must have been decided before.
    fn took_effect_here(&self, topic_partition: TopicPartition, record: &Record, effect: &Effect) -> bool {
        let taken_again = self.letters.contains_key(&(topic_partition, record.offset))
            || record.aged_from() <= self.terms.swept_up_to();
        let earlier_is_gone = self.removed.contains(&topic_partition) && effect.at < record.at;
        effect.seen == Seen::In(topic_partition) && !taken_again && !earlier_is_gone
    }
}

impl Record {
    /// From when an idempotency record that was written for this record ages, in milliseconds.
    fn aged_from(&self) -> i64 {
        self.time.max(self.at)
    }

    /// As [`Self::aged_from`], where the event took effect by this record or, if it is a repeat, by one before it.
    fn aged_from_with(&self, effect: &Effect) -> i64 {
        self.time.max(self.at.min(effect.at))
    }
}

impl Evidence {
    /// The lie of the dead letter, if it is one, by all that is known.
    fn lie<H: History>(
        &self,
        claim: &Claim,
        (topic, _): TopicPartition,
        record: &Record,
        known_since: impl Fn(&str) -> Option<i64>,
        change_history: &ChangeHistory<H>,
        uses: &Uses,
    ) -> Option<String> {
        match self {
            Self::Elsewhere | Self::Follows => None,
            Self::Lies(how) => Some(how.clone()),
            Self::IfReused(cause, content) => {
                let was_used = uses.had_another(*cause, *content, (topic, record.key), claim.at);
                (!was_used).then(|| "says id_reused, but no other content had the id before".to_owned())
            }
            // An older release did not know it; what it put aside waits to be replayed.
            Self::IfUnknownThen(event_type) => {
                let was_known = known_since(event_type).is_some_and(|since| since + CLOCK_SKEW < claim.at);
                let is_decided = record.event.is_some_and(|(cause, digest)| {
                    let effect = change_history.effect(cause);
                    effect.is_some_and(|effect| effect.digest.is_none_or(|decided| decided == digest))
                });
                let reason = claim.reason;
                (was_known && !is_decided)
                    .then(|| format!("says {reason}, but events of that type had taken effect before: replay it"))
            }
        }
    }
}

impl KeyAudit {
    /// `record` was decided, so all records that `must_have_been` before it and are not accounted for are lost.
    fn passed(
        &mut self,
        (topic, partition): TopicPartition,
        record: &Record,
        must_have_been: impl Fn(&Unaccounted) -> bool,
        change_history: &ChangeHistory<impl History>,
        report: &mut Report,
    ) {
        for lost in self.unaccounted.extract_if(.., |earlier| must_have_been(earlier)) {
            report.broken(Promise::Lost, &name(record.key, change_history), || {
                let (offset, later) = (lost.offset, record.offset);
                format!(
                    "nothing accounts for record {topic}/{partition}/{offset}, but {later} after it is accounted for"
                )
            });
        }
    }

    /// Counts the records that may still be on their way, and reports those too old for that as lost.
    fn pending(
        &self,
        (topic, partition): TopicPartition,
        key: Option<Key>,
        terms: &Terms,
        change_history: &ChangeHistory<impl History>,
        report: &mut Report,
    ) -> u64 {
        let is_late = |waiting: &&Unaccounted| waiting.at <= terms.lost_up_to();
        for lost in self.unaccounted.iter().filter(is_late) {
            report.broken(Promise::Lost, &name(key, change_history), || {
                let (offset, seconds) = (lost.offset, terms.now.saturating_sub(lost.at) / 1_000);
                format!("nothing accounts for record {topic}/{partition}/{offset}, which is {seconds} s old")
            });
        }
        self.unaccounted.iter().filter(|waiting| !is_late(waiting)).count() as u64
    }

    /// `record` was parked at this place; the ones before it must have been parked before.
    fn parked_in_order(
        &mut self,
        (topic, partition): TopicPartition,
        record: &Record,
        place: i64,
        change_history: &ChangeHistory<impl History>,
        report: &mut Report,
    ) {
        if let Some((offset, last)) = self.parked
            && place < last
        {
            report.broken(Promise::OutOfOrder, &name(record.key, change_history), || {
                let later = record.offset;
                format!("record {topic}/{partition}/{later} is parked before record {offset}")
            });
        }
        self.parked = Some((record.offset, place));
    }

    /// `record` took effect; nothing before it may be parked still.
    fn overtakes_none(
        &self,
        (topic, partition): TopicPartition,
        record: &Record,
        change_history: &ChangeHistory<impl History>,
        report: &mut Report,
    ) {
        if let Some((offset, _)) = self.parked {
            report.broken(Promise::OutOfOrder, &name(record.key, change_history), || {
                let later = record.offset;
                format!("record {topic}/{partition}/{later} took effect although record {offset} before it is parked")
            });
        }
    }

    /// `record` took effect with the sequence `first`; the ones before it must have taken earlier ones. Several refusals of a
    /// key that had no row all have sequence 0.
    fn in_order(
        &mut self,
        (topic, partition): TopicPartition,
        record: &Record,
        first: Option<i64>,
        change_history: &ChangeHistory<impl History>,
        report: &mut Report,
    ) {
        let Some(sequence) = first else { return };
        if let Some((offset, last)) = self.last
            && (sequence < last || sequence == last && last > 0)
        {
            report.broken(Promise::OutOfOrder, &name(record.key, change_history), || {
                let later = record.offset;
                format!(
                    "record {topic}/{partition}/{later} took effect at sequence {sequence}, before record {offset} at {last}"
                )
            });
        } else {
            self.last = Some((record.offset, sequence));
        }
    }
}

fn name(key: Option<Key>, change_history: &ChangeHistory<impl History>) -> String {
    key.map_or_else(|| "(none)".to_owned(), |key| change_history.name(key))
}
