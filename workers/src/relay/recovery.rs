//! How an operator has a database that was put back to an earlier time rolled forward: what Kafka has told and the database does not
//! know is read from the topics, `store::recovery` writes it, and Kafka's mark becomes the database's.
//!
//! The relay's lock and its transactional id are taken first: nothing more is told meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use holdfast_schemas::ledger::Entry;
use holdfast_schemas::{Event, EventData, Key, Origin, Outcome, OutcomeData, Record, decode, topics};
use rdkafka::message::{BorrowedMessage, Message};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::acceptance::{self, Error, Reconciliation, unreadable};
use super::session::ProducerSession;
use super::{Relay, Settings};
use crate::kafka::reader::Reader;
use crate::kafka::{headers, on_thread};
use crate::metrics::Metrics;
use crate::store;
use crate::store::operator_log::Operator;
use crate::store::outbox::{self, Leadership};
use crate::store::outcome_log::{self, Log, LoggedOutcome};
use crate::store::recovery::{Forgotten, Recollection, Recovery, RolledForward};

/// Who has it done, and how.
#[derive(Debug, Clone)]
pub struct RecoveryOrder {
    pub who: String,
    pub why: String,
    /// A new generation begins also where nothing was forgotten.
    pub new_generation: bool,
    /// Nothing is written, only found.
    pub dry_run: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct RecoveryResult {
    /// How many outcomes and entries were read.
    pub read: u64,
    /// None when nothing was forgotten, and no new generation was asked for.
    pub rolled: Option<RolledForward>,
    /// Kafka beside the database afterwards; none when nothing was written.
    pub reconciliation: Option<Reconciliation>,
}

/// Rolls the database forward. Every process must be stopped.
///
/// # Errors
/// A relay runs, a server does not answer, or a record cannot be read.
pub async fn run(
    settings: Settings,
    metrics: Arc<Metrics>,
    recovery: Recovery,
    order: RecoveryOrder,
) -> Result<RecoveryResult, Error> {
    let relay = acceptance::relay(settings, recovery.pool.clone(), metrics);
    on_thread("relay", move || recover(&relay, &recovery, &order)).await?
}

fn recover(relay: &Relay, recovery: &Recovery, order: &RecoveryOrder) -> Result<RecoveryResult, Error> {
    let mut leadership = relay.runtime.block_on(acceptance::lead(&relay.pool))?;
    let (mut session, mark) = ProducerSession::begin_with(relay, &mut leadership)?;
    let (forgotten, read) = Recall::begin(relay, session.leadership(), recovery)?.forgotten()?;
    let mut result = RecoveryResult {
        read,
        rolled: None,
        reconciliation: None,
    };
    if !forgotten.is_empty() || order.new_generation {
        let operator = Operator {
            who: &order.who,
            why: &order.why,
        };
        let rolled = recovery.roll_forward(&forgotten, operator, order.dry_run);
        let rolled = relay.runtime.block_on(rolled)?;
        let is_stopped = !rolled.obstacles.is_empty();
        result.rolled = Some(rolled);
        if is_stopped {
            return Ok(result);
        }
    }
    if order.dry_run {
        return Ok(result);
    }
    let mut reconciliation = Reconciliation::of(session.batch(), mark.as_ref());
    acceptance::compare(relay, session.leadership(), &mut reconciliation)?;
    if reconciliation.is_consistent() {
        session.accept(relay)?;
        reconciliation.accepted = true;
    }
    result.reconciliation = Some(reconciliation);
    Ok(result)
}

/// How many records are compared with the database at a time.
const PORTION: usize = 5_000;

/// Compares what the topics have with the database.
struct Recall<'a> {
    relay: &'a Relay,
    leadership: &'a mut Leadership,
    /// The rows of the outbox, by their messages.
    waiting: HashMap<Uuid, i64>,
    told_already: Vec<i64>,
    /// Younger answers are still kept.
    kept_since: OffsetDateTime,
    read: u64,
}

impl<'a> Recall<'a> {
    fn begin(relay: &'a Relay, leadership: &'a mut Leadership, recovery: &Recovery) -> Result<Self, Error> {
        let waiting = leadership.ask(async |connection| outbox::waiting(connection).await);
        let waiting = relay.runtime.block_on(waiting)?;
        let now = relay.runtime.block_on(store::now(&recovery.pool))?;
        Ok(Self {
            relay,
            leadership,
            waiting: waiting.into_iter().map(|row| (row.message, row.id)).collect(),
            told_already: Vec::new(),
            kept_since: now - recovery.retention,
            read: 0,
        })
    }

    /// What was told and is not known, and how many records were read for that.
    fn forgotten(mut self) -> Result<(Forgotten, u64), Error> {
        let reader = Reader::new(&self.relay.settings.kafka)?;
        let forgotten = Forgotten {
            tickets: self.stream(&reader, Log::Tickets)?,
            users: self.stream(&reader, Log::Users)?,
            entries: self.entries(&reader)?,
            told_already: self.told_already,
        };
        Ok((forgotten, self.read))
    }

    fn stream<A: EventData>(&mut self, reader: &Reader, log: Log) -> Result<Recollection<A>, Error> {
        let (mut unknown, mut portion) = (Unknown::<A>::default(), Vec::new());
        let topic = A::Outcome::TOPIC;
        reader.each(topic, &reader.committed(topic)?, |message| {
            portion.push(outcome::<A>(message)?);
            match portion.len() {
                PORTION => self.compare(log, std::mem::take(&mut portion), &mut unknown),
                _ => Ok::<(), Error>(()),
            }
        })?;
        self.compare(log, portion, &mut unknown)?;
        let events = events(reader, &unknown.outcomes)?;
        Ok(Recollection {
            outcomes: unknown.outcomes,
            events,
        })
    }

    /// Adds what the database does not know of these outcomes, in their order.
    fn compare<A: EventData>(
        &mut self,
        log: Log,
        portion: Vec<Outcome<A::Outcome>>,
        unknown: &mut Unknown<A>,
    ) -> Result<(), Error> {
        let logged: Vec<_> = portion.iter().filter(|told| told.sequence > 0).map(logged).collect();
        // What a refusal answers where there is no row is in no log; its answer is kept for a while.
        let is_kept = |told: &&Outcome<A::Outcome>| told.sequence == 0 && told.time > self.kept_since;
        let answered = portion.iter().filter(is_kept);
        let answered = answered.map(|told| (told.causation_source.as_str(), told.causation_id.as_str()));
        let answered: Vec<_> = answered.collect();
        let asked = self.leadership.ask(async |connection: &mut PgConnection| {
            let forgotten = outcome_log::unknown(&mut *connection, log, &logged).await?;
            Ok((forgotten, outcome_log::unanswered(connection, &answered).await?))
        });
        let (forgotten, unanswered) = self.relay.runtime.block_on(asked)?;
        let forgotten: HashSet<Uuid> = forgotten.into_iter().map(|told| told.outcome).collect();
        let unanswered: HashSet<(String, String)> = unanswered.into_iter().collect();
        for told in portion {
            self.note(told.id.0);
            let is_unknown = match told.sequence {
                0 => unanswered.contains(&cause(&told)),
                _ => forgotten.contains(&told.id.0),
            };
            unknown.take(told, is_unknown);
        }
        Ok(())
    }

    fn entries(&mut self, reader: &Reader) -> Result<Vec<Entry>, Error> {
        let (mut unknown, mut portion) = (Vec::new(), Vec::new());
        let topic = topics::LEDGER_ENTRIES;
        reader.each(topic, &reader.committed(topic)?, |message| {
            let entry = Entry::from_json(message.payload().unwrap_or_default());
            portion.push(entry.map_err(|invalid| unreadable(message, &invalid))?);
            match portion.len() {
                PORTION => self.compare_entries(std::mem::take(&mut portion), &mut unknown),
                _ => Ok::<(), Error>(()),
            }
        })?;
        self.compare_entries(portion, &mut unknown)?;
        Ok(unknown)
    }

    fn compare_entries(&mut self, portion: Vec<Entry>, unknown: &mut Vec<Entry>) -> Result<(), Error> {
        let logged: Vec<_> = portion.iter().map(movement).collect();
        let asked = async |connection: &mut PgConnection| outcome_log::unknown(connection, Log::Ledger, &logged).await;
        let forgotten = self.relay.runtime.block_on(self.leadership.ask(asked))?;
        let forgotten: HashSet<Uuid> = forgotten.into_iter().map(|told| told.outcome).collect();
        for entry in portion {
            self.note(entry.id.0);
            unknown.extend(Some(entry).filter(|entry| forgotten.contains(&entry.id.0)));
        }
        Ok(())
    }

    fn note(&mut self, message: Uuid) {
        self.read += 1;
        self.told_already.extend(self.waiting.remove(&message));
    }
}

/// The events behind these outcomes, as far as they are on their public topic: the first of each name and key.
fn events<A: EventData>(
    reader: &Reader,
    outcomes: &[Outcome<A::Outcome>],
) -> Result<HashMap<(String, String), Event<A>>, Error> {
    let wanted = outcomes.iter().filter(|told| !told.causation_source.is_reserved());
    let wanted: HashMap<_, &str> = wanted.map(|told| (cause(told), told.subject.as_str())).collect();
    let mut events = HashMap::new();
    if wanted.is_empty() {
        return Ok(events);
    }
    let keys: HashSet<&[u8]> = wanted.values().map(|key| key.as_bytes()).collect();
    reader.each(A::TOPIC, &reader.committed(A::TOPIC)?, |message| {
        if message.key().is_some_and(|key| keys.contains(key))
            && let Some(event) = event::<A>(message)
        {
            let name = (event.source.as_str().to_owned(), event.id.as_str().to_owned());
            if wanted.get(&name) == Some(&event.subject.as_str()) {
                events.entry(name).or_insert(event);
            }
        }
        Ok::<(), Error>(())
    })?;
    Ok(events)
}

/// The outcomes that the database does not know, without those that a later generation has made void.
struct Unknown<A: EventData> {
    outcomes: Vec<Outcome<A::Outcome>>,
    /// Of the keys with outcomes of a later generation than the first, the newest.
    generations: HashMap<String, i64>,
}

impl<A: EventData> Default for Unknown<A> {
    fn default() -> Self {
        Self {
            outcomes: Vec::new(),
            generations: HashMap::new(),
        }
    }
}

impl<A: EventData> Unknown<A> {
    /// Takes the next outcome of the topic.
    fn take(&mut self, told: Outcome<A::Outcome>, is_unknown: bool) {
        let (key, sequence, generation) = (told.subject.as_str(), told.sequence, told.generation);
        if sequence > 0 && generation > 1 {
            let newest = self.generations.entry(key.to_owned()).or_insert(1);
            if generation > *newest {
                *newest = generation;
                // It takes back what it does not follow.
                self.outcomes
                    .retain(|earlier| earlier.subject.as_str() != key || earlier.sequence < sequence);
            }
        }
        let is_void = sequence > 0 && self.generations.get(key).is_some_and(|newest| generation < *newest);
        if is_unknown && !is_void {
            self.outcomes.push(told);
        }
    }
}

fn cause(told: &Outcome<impl OutcomeData>) -> (String, String) {
    let (source, id) = (&told.causation_source, &told.causation_id);
    (source.as_str().to_owned(), id.as_str().to_owned())
}

fn logged(told: &Outcome<impl OutcomeData>) -> LoggedOutcome {
    LoggedOutcome {
        key: told.subject.to_string(),
        version: told.sequence,
        outcome: told.id.0,
    }
}

fn movement(entry: &Entry) -> LoggedOutcome {
    LoggedOutcome {
        key: entry.checkout.to_string(),
        version: 1,
        outcome: entry.id.0,
    }
}

fn outcome<A: EventData>(message: &BorrowedMessage<'_>) -> Result<Outcome<A::Outcome>, Error> {
    Outcome::from_json(message.payload().unwrap_or_default()).map_err(|invalid| unreadable(message, &invalid))
}

/// The event in a record of a public topic; none in one that was never decided.
fn event<A: EventData>(message: &BorrowedMessage<'_>) -> Option<Event<A>> {
    let record = Record {
        key: message.key(),
        value: message.payload(),
        headers: headers(message)?,
    };
    let mut event = decode::<A>(&record).ok()?;
    event.origin = Some(Origin {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        time: acceptance::time(message),
    });
    Some(event)
}

#[cfg(test)]
mod tests {
    use holdfast_schemas::{TicketEvent, TicketOutcome, Traceparent, outcome_id, outcomes};

    use super::*;

    fn told(generation: i64, sequence: i64) -> Outcome<TicketOutcome> {
        let id = format!("{generation}/{sequence}");
        Outcome {
            id: outcome_id("shop", &id, "A-1", 0),
            subject: "A-1".parse().unwrap(),
            time: OffsetDateTime::UNIX_EPOCH,
            sequence,
            generation,
            causation_source: "shop".parse().unwrap(),
            causation_id: id.parse().unwrap(),
            traceparent: Traceparent::derive("shop", &id),
            data: outcomes::TicketWithdrawn {}.into(),
        }
    }

    #[test]
    fn what_a_later_generation_has_made_void_is_not_brought_back() {
        let mut unknown = Unknown::<TicketEvent>::default();
        for (generation, sequence, is_unknown) in [
            (1, 1, false),
            (1, 2, true),
            (1, 3, true),
            (2, 3, false),
            (1, 4, true),
            (2, 4, true),
        ] {
            unknown.take(told(generation, sequence), is_unknown);
        }
        let left: Vec<_> = unknown
            .outcomes
            .iter()
            .map(|told| (told.generation, told.sequence))
            .collect();
        assert_eq!(left, [(1, 2), (2, 4)]);
    }
}
