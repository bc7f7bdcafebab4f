//! The second step: decides the work of each unit on the rows and records that were read. Nothing here waits or writes.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use holdfast_schemas::{
    DeadLetter, DeadLetterReason, Event, EventData, EventId, Key, Origin, Outcome, OutcomeData, Refusal, Reply,
    ReplyOutcome, RequestHash, Source, Traceparent, outcome_id, topics,
};
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Admission, Answer, Command, Rules, Work};
use crate::domain::{Decision, Entity, KeyOf, OutcomeOf};
use crate::error;
use crate::store::Error;
use crate::store::idempotency::{Identity, Known, identity};
use crate::traces::TracedDecision;

/// The current rows of a batch by key, with the clock and the generation to decide by.
pub struct Current<E> {
    pub now: OffsetDateTime,
    pub generation: i64,
    pub rows: HashMap<String, E>,
    /// Those of the keys that are in quarantine, with or without a row, and why.
    pub quarantined: HashMap<String, String>,
}

/// What each row of the statement that reads a table has beside the table's own.
pub(in crate::store) struct Beside {
    pub(in crate::store) now: OffsetDateTime,
    pub(in crate::store) generation: i64,
    pub(in crate::store) quarantined: Option<Json<HashMap<String, String>>>,
}

/// One of the table's rows, by key; none in the row of a statement that found none.
pub(in crate::store) type KeyedRow<E> = Option<(String, E)>;

impl<E> Current<E> {
    /// From a statement's rows, of which each has one of the table's rows if there is any.
    pub(in crate::store) fn of<R>(
        mut rows: Vec<R>,
        beside: fn(&mut R) -> Beside,
        parse: fn(R) -> Result<KeyedRow<E>, Error>,
    ) -> Result<Self, Error> {
        let beside = rows.first_mut().map(beside);
        let rows = rows.into_iter().filter_map(|row| parse(row).transpose());
        let rows = rows.collect::<Result<_, _>>()?;
        let (now, generation, quarantined) = match beside {
            Some(beside) => (beside.now, beside.generation, beside.quarantined),
            None => (OffsetDateTime::UNIX_EPOCH, 0, None),
        };
        Ok(Self {
            now,
            generation,
            rows,
            quarantined: quarantined.map(|Json(keys)| keys).unwrap_or_default(),
        })
    }

    /// The row, unless its key is in quarantine.
    pub(in crate::store) fn free(&self, key: &str) -> Option<&E> {
        self.rows.get(key).filter(|_| !self.quarantined.contains_key(key))
    }
}

/// The rows and answers that the first step read.
pub(super) struct ReadSet<E> {
    pub(super) current: Current<E>,
    pub(super) known: HashMap<Identity, Known>,
}

/// Decides the units of one batch.
pub(super) struct Deciding<'r, E: Entity> {
    read: ReadSet<E>,
    rules: &'r dyn Rules<E>,
    admission: Admission,
    /// Identities that earlier units of the batch record: a later unit that names one waits for the next round and meets the
    /// record, since the earlier unit may not pass.
    recorded: HashSet<Identity>,
}

/// The decision about one unit.
pub(super) enum Decided<E: Entity> {
    Draft(Box<Draft<E>>),
    Later,
    Failed(Error),
    /// Its key is in quarantine, by this error.
    Quarantined(Error),
}

impl<'r, E: Entity> Deciding<'r, E> {
    pub(super) fn new(read: ReadSet<E>, rules: &'r dyn Rules<E>, admission: Admission) -> Self {
        Self {
            read,
            rules,
            admission,
            recorded: HashSet::new(),
        }
    }

    pub(super) fn decide(&mut self, key: &KeyOf<E>, work: &[Work<E>]) -> Decided<E> {
        let waits = !self.recorded.is_empty()
            && work
                .iter()
                .filter_map(Work::identity)
                .any(|(source, id)| self.recorded.contains(&identity(source, id)));
        if waits {
            return Decided::Later;
        }
        if let Some(kind) = self.read.current.quarantined.get(key.as_str())
            && !work.iter().all(|work| self.passes(work))
        {
            let (key, kind) = (format!("{} {:?}", KeyOf::<E>::NAMES, key.as_str()), kind.clone());
            return Decided::Quarantined(Error::Quarantined { key, kind });
        }
        // A panic ends this unit, not the batch: the draft is dropped with everything it changed.
        let draft = catch_unwind(AssertUnwindSafe(|| {
            let mut draft = Draft::new(key, &self.read);
            for work in work {
                let answer = draft.add(work, self);
                draft.answers.push(answer);
            }
            draft
        }));
        match draft {
            Ok(mut draft) => {
                self.recorded
                    .extend(draft.recorded.drain().map(|(identity, _)| identity));
                Decided::Draft(Box::new(draft))
            }
            Err(_) => Decided::Failed(Error::Panic {
                at: error::take_panic(),
            }),
        }
    }

    /// Whether work on a key in quarantine is done: what was parked, what had its answer before, what decides nothing.
    fn passes(&self, work: &Work<E>) -> bool {
        match work {
            Work::Event(event) | Work::Request(event) => {
                let known = self.read.known.get(&identity(&event.source, &event.id));
                self.admission == Admission::Replayed || known.is_some_and(|known| event.has_hash(&known.hash))
            }
            Work::Rejected { .. } => true,
            Work::Command(request) => E::passes_quarantine(&request.input),
        }
    }
}

/// A decided unit: the writes, if its row still has the version that was read, and the answers in that case.
pub(super) struct Draft<E: Entity> {
    pub(super) key: KeyOf<E>,
    pub(super) read_version: Option<i64>,
    /// The row after the unit; absent when there is no row and there will be none.
    pub(super) row: Option<E>,
    pub(super) decided_at: OffsetDateTime,
    generation: i64,
    pub(super) records: Vec<Record>,
    /// The place of each of them: while the unit is decided, it may name an event twice.
    recorded: HashMap<Identity, usize>,
    pub(super) changes: Vec<Change>,
    pub(super) messages: Vec<Message>,
    pub(super) answers: Vec<Answer>,
    /// Its decisions whose traces are recorded.
    pub(super) traced: Vec<TracedDecision>,
}

/// A new idempotency record.
pub(super) struct Record {
    pub(super) source: Source,
    pub(super) id: EventId,
    pub(super) hash: RequestHash,
    pub(super) reply: Reply,
    pub(super) aged_from: OffsetDateTime,
}

/// A new row of the change log.
pub(super) struct Change {
    pub(super) version: i64,
    pub(super) outcome: Uuid,
    pub(super) outcome_type: &'static str,
    pub(super) data: String,
    pub(super) source: Source,
    pub(super) id: EventId,
}

/// A new row of the outbox.
pub(in crate::store) struct Message {
    pub(in crate::store) topic: &'static str,
    pub(in crate::store) id: Uuid,
    pub(in crate::store) headers: String,
    pub(in crate::store) value: Vec<u8>,
}

/// A decision of before, about one event.
pub(in crate::store) struct Retold<'a, E: Entity> {
    pub(in crate::store) read_version: Option<i64>,
    /// The row after it; absent when there was none.
    pub(in crate::store) row: Option<E>,
    /// The first of its outcomes that was told.
    pub(in crate::store) first: &'a Outcome<OutcomeOf<E>>,
    /// The others that were.
    pub(in crate::store) others: Vec<&'a Outcome<OutcomeOf<E>>>,
    /// Those that follow, and were not.
    pub(in crate::store) untold: Vec<OutcomeOf<E>>,
    /// The hash of the event, and from when on it ages, if it is to be known again.
    pub(in crate::store) event: Option<(RequestHash, OffsetDateTime)>,
}

/// The event that caused a decision, for its outcomes.
struct Causation {
    source: Source,
    id: EventId,
    traceparent: Traceparent,
    is_command: bool,
}

impl<E: Entity> Draft<E> {
    fn new(key: &KeyOf<E>, read: &ReadSet<E>) -> Self {
        let row = read.current.rows.get(key.as_str()).cloned();
        let decided_at = row
            .as_ref()
            .map_or(read.current.now, |row| row.changed_at().max(read.current.now));
        let read_version = row.as_ref().map(E::version);
        Self::of_row(key.clone(), read_version, row, decided_at, read.current.generation)
    }

    /// Without a write or an answer.
    fn of_row(
        key: KeyOf<E>,
        read_version: Option<i64>,
        row: Option<E>,
        decided_at: OffsetDateTime,
        generation: i64,
    ) -> Self {
        Self {
            key,
            read_version,
            row,
            decided_at,
            generation,
            records: Vec::new(),
            recorded: HashMap::new(),
            changes: Vec::new(),
            messages: Vec::new(),
            answers: Vec::new(),
            traced: Vec::new(),
        }
    }

    /// A decision of before: what was told of it is written, and not sent again. `generation`: that of what was not told.
    pub(in crate::store) fn retold(decision: Retold<'_, E>, generation: i64) -> Self {
        let Retold {
            read_version,
            row,
            first,
            others,
            untold,
            event,
        } = decision;
        let causation = Causation {
            source: first.causation_source.clone(),
            id: first.causation_id.clone(),
            traceparent: first.traceparent.clone(),
            is_command: false,
        };
        let mut draft = Self::of_row(first.subject.clone(), read_version, row, first.time, generation);
        let told = [first]
            .into_iter()
            .chain(others)
            .map(|told| (told.data.clone(), told.sequence));
        let mut outcomes: Vec<_> = (0..)
            .zip(told)
            .map(|(place, (told, sequence))| draft.tell(told, sequence, place, &causation))
            .collect();
        draft.messages.clear();
        for told in untold {
            let place = outcomes.len();
            let outcome = draft.tell(told, first.sequence + place as i64, place as u32, &causation);
            outcomes.push(outcome);
        }
        if let Some((hash, aged_from)) = event {
            draft.record(&causation, hash, Reply { outcomes }, aged_from);
        }
        draft
    }

    /// The version to write, when the row is new or has moved.
    pub(super) fn version(&self) -> Option<i64> {
        let version = self.row.as_ref().map(E::version);
        version.filter(|_| version != self.read_version)
    }

    /// A unit of repeats, or of internal requests that do not fit.
    pub(super) fn writes_nothing(&self) -> bool {
        self.version().is_none() && self.records.is_empty() && self.messages.is_empty()
    }

    fn add(&mut self, work: &Work<E>, deciding: &Deciding<'_, E>) -> Answer {
        let Deciding { read, admission, .. } = deciding;
        match work {
            Work::Event(event) => {
                if let Some(known) = self.known(read, event) {
                    return match known {
                        Some(reply) => Answer::Repeat(reply),
                        None => self.dead_letter(event, id_reused(event)),
                    };
                }
                if let Some(too_old) = admission.refuses(event, self.decided_at) {
                    return self.dead_letter(event, too_old);
                }
                let arrived = event.origin.as_ref().map_or(self.decided_at, |origin| origin.time);
                if let Err(too_early) = event.check_time(arrived) {
                    return self.dead_letter(event, too_early);
                }
                // Judged by the earlier of two clocks, kept by the later: whatever clock a repeat is judged by, it is too old
                // before its record is swept.
                self.apply(event, event.time.max(arrived), deciding.rules)
            }
            Work::Request(event) => match self.known(read, event) {
                Some(Some(reply)) => Answer::Repeat(reply),
                Some(None) => Answer::DeadLettered(DeadLetterReason::IdReused),
                None => self.apply(event, self.decided_at, deciding.rules),
            },
            Work::Rejected { origin, refusal, value } => self.refuse(origin.as_ref(), refusal.clone(), value.clone()),
            Work::Command(request) => {
                match self.decide(request.input.clone(), &causation_of(request), deciding.rules) {
                    Ok(reply) => Answer::Fresh(reply),
                    Err(answer) => answer,
                }
            }
        }
    }

    /// The first answer to an event, if it has a record: `Some(None)` means that its id was used for another content.
    fn known(&self, read: &ReadSet<E>, event: &Event<E::Data>) -> Option<Option<Reply>> {
        let identity = identity(&event.source, &event.id);
        if let Some(place) = self.recorded.get(&identity) {
            let record = &self.records[*place];
            return Some(event.has_hash(record.hash.as_bytes()).then(|| record.reply.clone()));
        }
        let known = read.known.get(&identity)?;
        Some(event.has_hash(&known.hash).then(|| known.reply.clone()))
    }

    fn apply(&mut self, event: &Event<E::Data>, aged_from: OffsetDateTime, rules: &dyn Rules<E>) -> Answer {
        let input = E::input(event.data.clone(), &event.source, &event.id, &self.key);
        let causation = Causation {
            source: event.source.clone(),
            id: event.id.clone(),
            traceparent: event.traceparent.clone(),
            is_command: false,
        };
        match self.decide(input, &causation, rules) {
            Ok(reply) => {
                self.record(&causation, *event.hash(), reply.clone(), aged_from);
                Answer::Fresh(reply)
            }
            Err(answer) => answer,
        }
    }

    fn record(&mut self, causation: &Causation, hash: RequestHash, reply: Reply, aged_from: OffsetDateTime) {
        let identity = identity(&causation.source, &causation.id);
        self.recorded.insert(identity, self.records.len());
        self.records.push(Record {
            source: causation.source.clone(),
            id: causation.id.clone(),
            hash,
            reply,
            aged_from,
        });
    }

    /// Calls the rules, and adds row, change log and outcomes of their decision to the draft.
    fn decide(&mut self, input: E::Input, causation: &Causation, rules: &dyn Rules<E>) -> Result<Reply, Answer> {
        let Causation {
            source,
            id,
            traceparent,
            is_command,
        } = causation;
        let traced = TracedDecision::begin(traceparent, source, id, *is_command);
        let (next, outcomes) = match rules(self.row.as_ref(), input, self.decided_at) {
            Decision::Transition { next, outcomes } => (next, outcomes),
            Decision::Nothing => return Err(Answer::Nothing),
            Decision::AlreadyDone => return Err(Answer::AlreadyDone),
        };
        let before = self.row.as_ref().map_or(0, E::version);
        let mut reply = Reply {
            outcomes: Vec::with_capacity(outcomes.len()),
        };
        for (place, told) in outcomes.into_iter().enumerate() {
            let sequence = if next.is_some() { before + place as i64 + 1 } else { 0 };
            let reply_outcome = self.tell(told, sequence, place as u32, causation);
            reply.outcomes.push(reply_outcome);
        }
        self.row = next;
        self.traced.extend(traced.map(|traced| traced.decided(&reply)));
        Ok(reply)
    }

    fn tell(&mut self, told: OutcomeOf<E>, sequence: i64, place: u32, causation: &Causation) -> ReplyOutcome {
        let (outcome_type, data) = (told.outcome_type(), told.data());
        let id = outcome_id(
            causation.source.as_str(),
            causation.id.as_str(),
            self.key.as_str(),
            place,
        );
        if sequence > 0 {
            self.changes.push(Change {
                version: sequence,
                outcome: id.0,
                outcome_type,
                data: data.to_string(),
                source: causation.source.clone(),
                id: causation.id.clone(),
            });
        }
        let outcome = Outcome {
            id,
            subject: self.key.clone(),
            time: self.decided_at,
            sequence,
            generation: self.generation,
            causation_source: causation.source.clone(),
            causation_id: causation.id.clone(),
            traceparent: causation.traceparent.clone(),
            data: told,
        };
        self.messages.push(Message {
            topic: OutcomeOf::<E>::TOPIC,
            id: id.0,
            headers: OUTCOME_HEADERS.to_owned(),
            value: outcome.to_json_with(&data),
        });
        ReplyOutcome {
            outcome_type: outcome_type.to_owned(),
            sequence,
            data,
        }
    }

    /// An event that is not decided becomes a dead letter in its normalised form; its origin says where the original lies.
    fn dead_letter(&mut self, event: &Event<E::Data>, refusal: Refusal) -> Answer {
        self.refuse(event.origin.as_ref(), refusal, event.to_json())
    }

    fn refuse(&mut self, origin: Option<&Origin>, refusal: Refusal, value: Vec<u8>) -> Answer {
        let reason = refusal.reason;
        self.messages.push(letter(self.key.as_str(), origin, refusal, value));
        Answer::DeadLettered(reason)
    }
}

/// The dead letter about a record of this key.
pub(in crate::store) fn letter(key: &str, origin: Option<&Origin>, refusal: Refusal, value: Vec<u8>) -> Message {
    let reason = refusal.reason;
    let mut headers: serde_json::Map<String, serde_json::Value> =
        [("content-type".to_owned(), STRUCTURED.into())].into_iter().collect();
    let place = match origin {
        Some(origin) => {
            let letter = DeadLetter {
                reason,
                detail: refusal.detail,
                origin: origin.clone(),
            };
            headers.extend(
                letter
                    .headers()
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value.into())),
            );
            format!("{}/{}/{}", origin.topic, origin.partition, origin.offset)
        }
        None => {
            headers.insert(holdfast_schemas::dead_letter::REASON.to_owned(), reason.as_str().into());
            headers.insert(holdfast_schemas::dead_letter::DETAIL.to_owned(), refusal.detail.into());
            String::new()
        }
    };
    Message {
        topic: topics::DEAD_LETTERS,
        id: outcome_id(topics::DEAD_LETTERS, &place, key, 0).0,
        headers: serde_json::Value::Object(headers).to_string(),
        value,
    }
}

const STRUCTURED: &str = "application/cloudevents+json; charset=UTF-8";
pub(in crate::store) const OUTCOME_HEADERS: &str = r#"{"content-type":"application/cloudevents+json; charset=UTF-8"}"#;

fn causation_of<E: Entity>(request: &Command<E>) -> Causation {
    Causation {
        source: request.source.clone(),
        id: request.id.clone(),
        traceparent: (request.trace.clone())
            .unwrap_or_else(|| Traceparent::derive(request.source.as_str(), request.id.as_str())),
        is_command: true,
    }
}

fn id_reused<A: EventData>(event: &Event<A>) -> Refusal {
    Refusal {
        reason: DeadLetterReason::IdReused,
        detail: format!(
            "id: {:?} of source {:?} was used before for another type, subject or data; give the event an id of its own",
            event.id.as_str(),
            event.source.as_str()
        ),
    }
}

pub(super) fn too_old(retention: Duration) -> Refusal {
    Refusal {
        reason: DeadLetterReason::TooOld,
        detail: format!(
            "time: older than the idempotency retention of {}; send it under a new id and the present time if it still counts",
            humantime::format_duration(retention)
        ),
    }
}
