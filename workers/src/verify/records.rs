//! The records of a public topic: each must be accounted for, and one key's events must have been taken in order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use holdfast_schemas::{DeadLetterReason, Event};
use time::OffsetDateTime;

use super::change_history::{Cause, ChangeHistory, Digest, Effect, Key, Seen, digest, millis};
use super::history::History;
use super::report::{Promise, Report};

/// The records and the dead letters. Pure: no clock, no I/O; no payload is kept.
pub(super) struct Records {
    topic_partitions: BTreeMap<TopicPartition, Vec<Record>>,
    letters: HashMap<(TopicPartition, i64), DeadLetterReason>,
    /// Partitions whose beginning is gone.
    removed: BTreeSet<TopicPartition>,
    /// Events older than this, in milliseconds, may have lost their idempotency record to the sweep.
    swept_up_to: i64,
}

/// A partition of a public topic.
pub(super) type TopicPartition = (&'static str, i32);

struct Record {
    offset: i64,
    key: Option<Key>,
    /// None when it cannot be decoded.
    event: Option<(Cause, Digest)>,
    /// The earlier of the event's time and the broker's, in milliseconds.
    aged_from: i64,
    /// The broker's time, in milliseconds.
    at: i64,
    /// True if it may have been applied without an outcome.
    may_be_untold: bool,
}

/// What accounts for a record.
enum Standing {
    Decided(Cause),
    DeadLettered(DeadLetterReason),
    Nothing,
}

/// What was found about one key in one partition, up to some offset.
#[derive(Default)]
struct Progress {
    unaccounted: Vec<Unaccounted>,
    /// Offset and sequence of the last first record.
    last: Option<(i64, i64)>,
}

struct Unaccounted {
    offset: i64,
    decodable: bool,
}

impl Records {
    /// `swept_up_to`: the age up to which idempotency records may be swept.
    pub(super) fn new(swept_up_to: OffsetDateTime) -> Self {
        Self {
            topic_partitions: BTreeMap::new(),
            letters: HashMap::new(),
            removed: BTreeSet::new(),
            swept_up_to: millis(swept_up_to),
        }
    }

    pub(super) fn dead_letter(&mut self, topic_partition: TopicPartition, offset: i64, reason: DeadLetterReason) {
        self.letters.insert((topic_partition, offset), reason);
    }

    /// Records that retention has removed the beginning of a partition.
    pub(super) fn beginning_is_gone(&mut self, topic_partition: TopicPartition) {
        self.removed.insert(topic_partition);
    }

    /// Takes the next record of a partition. `time` is the broker's.
    pub(super) fn record<H: History>(
        &mut self,
        topic_partition: TopicPartition,
        offset: i64,
        key: Option<Key>,
        event: Option<&Event<H::Data>>,
        time: OffsetDateTime,
    ) {
        self.topic_partitions.entry(topic_partition).or_default().push(Record {
            offset,
            key,
            event: event.and_then(|event| {
                let cause = Cause::of(event.source.as_str(), event.id.as_str());
                Some((cause, digest(event.hash().as_bytes())?))
            }),
            aged_from: millis(event.map_or(time, |event| event.time.min(time))),
            at: millis(time),
            may_be_untold: event.is_some_and(|event| H::may_go_untold(&event.data)),
        });
    }

    /// Accounts for every record. What is `at` or before `eaten_up_to` (milliseconds) may have had a dead letter that went with
    /// the beginning of its topic.
    pub(super) fn judge<H: History>(
        &self,
        change_history: &mut ChangeHistory<H>,
        eaten_up_to: Option<i64>,
        report: &mut Report,
    ) {
        for (topic_partition, records) in &self.topic_partitions {
            for record in records {
                if let Standing::Decided(cause) = self.standing(*topic_partition, record, change_history) {
                    change_history.effect_mut(cause).seen_in(*topic_partition);
                }
            }
        }
        for (topic_partition, records) in &self.topic_partitions {
            let mut by_key: HashMap<Option<Key>, Progress> = HashMap::new();
            for record in records {
                let progress = by_key.entry(record.key).or_default();
                self.account(*topic_partition, record, progress, change_history, eaten_up_to, report);
            }
            report.events += records.len() as u64;
            report.pending += by_key.values().map(|key| key.unaccounted.len() as u64).sum::<u64>();
        }
    }

    fn standing<H: History>(
        &self,
        topic_partition: TopicPartition,
        record: &Record,
        change_history: &ChangeHistory<H>,
    ) -> Standing {
        let letter = self.letters.get(&(topic_partition, record.offset)).copied();
        let decided = record.event.filter(|(cause, digest)| {
            change_history.effect(*cause).is_some_and(|effect| match effect.digest {
                Some(decided) => decided == *digest,
                None => record.aged_from <= self.swept_up_to && Some(effect.key) == record.key,
            })
        });
        match (decided, letter) {
            // Taken a second time, long after it was decided, a record is dead-lettered as too old: it stays decided.
            (Some((cause, _)), None | Some(DeadLetterReason::TooOld)) => Standing::Decided(cause),
            (_, Some(reason)) => Standing::DeadLettered(reason),
            (None, None) => Standing::Nothing,
        }
    }

    fn account<H: History>(
        &self,
        topic_partition: TopicPartition,
        record: &Record,
        progress: &mut Progress,
        change_history: &mut ChangeHistory<H>,
        eaten_up_to: Option<i64>,
        report: &mut Report,
    ) {
        match self.standing(topic_partition, record, change_history) {
            Standing::Decided(cause) => {
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
                    progress.passed(topic_partition, record, |_| true, change_history, report);
                    progress.in_order(topic_partition, record, first, change_history, report);
                }
            }
            Standing::DeadLettered(reason) => {
                report.dead_letters += 1;
                // Serve writes this one, when it has decided all before it; the gate writes the others, ahead of serve.
                let from_serve = reason == DeadLetterReason::IdReused;
                progress.passed(
                    topic_partition,
                    record,
                    |earlier| from_serve || !earlier.decodable,
                    change_history,
                    report,
                );
            }
            Standing::Nothing if self.trace_may_be_gone(record, eaten_up_to) => report.out_of_scope += 1,
            Standing::Nothing => progress.unaccounted.push(Unaccounted {
                offset: record.offset,
                decodable: record.event.is_some(),
            }),
        }
    }

    /// Whether all that could account for the record may be gone: a dead letter with the beginning of its topic, or the
    /// idempotency record, which alone remembers an event without outcomes.
    fn trace_may_be_gone(&self, record: &Record, eaten_up_to: Option<i64>) -> bool {
        let letter_is_gone = eaten_up_to.is_some_and(|eaten| record.at <= eaten);
        letter_is_gone || record.may_be_untold && record.aged_from <= self.swept_up_to
    }

    /// True if the event took effect by this record, and not by an earlier one that is gone, or by one in another partition. Then
    /// all records before it must have been decided before.
    fn took_effect_here(&self, topic_partition: TopicPartition, record: &Record, effect: &Effect) -> bool {
        let taken_again =
            self.letters.contains_key(&(topic_partition, record.offset)) || record.aged_from <= self.swept_up_to;
        let earlier_is_gone = self.removed.contains(&topic_partition) && effect.at < record.at;
        effect.seen == Seen::In(topic_partition) && !taken_again && !earlier_is_gone
    }
}

impl Progress {
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
