//! What would become of events that are delivered again, without deciding them: for an operator who has records read again. It goes
//! by the rules of the committer, in their order: first the idempotency record, then the quarantine, then the event's age.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use holdfast_schemas::{DeadLetterReason, Event, EventData, Key, RequestHash};
use sqlx::PgPool;
use time::OffsetDateTime;

use super::commit::Admission;
use super::idempotency::{self, Identity, Known, identity};
use super::quarantine::settle::{self, KeyChoice};
use super::{Error, now, on_session};

/// What would become of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreseen {
    /// It has its answer, gets it again, and changes nothing.
    Repeat,
    /// It has none, and is decided.
    New,
    /// Its key is in quarantine: it stays parked, or is.
    Parked,
    /// It is not decided.
    DeadLetter(DeadLetterReason),
}

/// Events of one stream, in the order in which they would be delivered.
pub struct Foresight {
    pool: PgPool,
    admission: Admission,
    /// The moment by which it judges, of the database's clock.
    now: OffsetDateTime,
    /// The keys that are in quarantine.
    quarantined: HashSet<String>,
    /// The events that would be decided: another one of their name would be a repeat then, or reuse it.
    decided: HashMap<Identity, RequestHash>,
}

impl Foresight {
    /// Judges the events of a public topic as of now.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn begin(pool: &PgPool, topic: &str, retention: Duration) -> Result<Self, Error> {
        let choice = KeyChoice {
            topic: Some(topic),
            ..KeyChoice::default()
        };
        let quarantined = settle::keys(pool, choice).await?.into_iter();
        Ok(Self {
            pool: pool.clone(),
            admission: Admission::Live { retention },
            now: now(pool).await?,
            quarantined: quarantined.map(|found| found.key).collect(),
            decided: HashMap::new(),
        })
    }

    /// The moment by which it judges.
    pub fn now(&self) -> OffsetDateTime {
        self.now
    }

    /// What would become of each of the next events, in their order.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn of<A: EventData>(&mut self, events: &[&Event<A>]) -> Result<Vec<Foreseen>, Error> {
        let sources: Vec<_> = events.iter().map(|event| event.source.as_str()).collect();
        let ids: Vec<_> = events.iter().map(|event| event.id.as_str()).collect();
        let read = on_session(&self.pool, Error::Read, async |session| {
            idempotency::read(session, &sources, &ids).await
        });
        let known = read.await?;
        Ok(events.iter().map(|event| self.judge(event, &known)).collect())
    }

    fn judge<A: EventData>(&mut self, event: &Event<A>, known: &HashMap<Identity, Known>) -> Foreseen {
        let (name, hash) = (identity(&event.source, &event.id), event.hash());
        let recorded = known.get(&name).map(|known| known.hash == hash.as_bytes());
        let is_repeat = recorded.or_else(|| self.decided.get(&name).map(|decided| decided == hash));
        match is_repeat {
            Some(true) => return Foreseen::Repeat,
            _ if self.quarantined.contains(event.subject.as_str()) => return Foreseen::Parked,
            Some(false) => return Foreseen::DeadLetter(DeadLetterReason::IdReused),
            None => {}
        }
        if let Some(too_old) = self.admission.refuses(event, self.now) {
            return Foreseen::DeadLetter(too_old.reason);
        }
        let arrived = event.origin.as_ref().map_or(self.now, |origin| origin.time);
        if let Err(too_early) = event.check_time(arrived) {
            return Foreseen::DeadLetter(too_early.reason);
        }
        self.decided.insert(name, *hash);
        Foreseen::New
    }
}
