//! One request about several entities, all or none: one interactive transaction reads, decides and writes their rows, and with
//! them the answer, a refusal too. If another writer changes one of the rows meanwhile, it begins anew on fresh rows.
//!
//! A refused request writes its idempotency record alone. An outcome of the refusal would raise the version of rows that were
//! to stay as they are; but a caller who got "refused" must not hold tickets by a late repeat. The parts of the request
//! have no records of their own: theirs is the request's, in the same transaction, with the replies of all parts. Records
//! of the parts would be read within the transaction, and SERIALIZABLE would see conflicts between requests whose records
//! lie side by side.

use holdfast_schemas::{EventData, EventId, Key, Reply, RequestHash, Source};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::Error;
use super::commit::{self, Admission, Answer, Command, Drafts, Rules, Stored, Unit, Work};
use super::idempotency::{self, Whole};
use super::mechanisms::idempotency::Once;
use super::mechanisms::interactive::{self, Attempts, Transaction};
use crate::crash::{self, Point};
use crate::domain::{Entity, KeyOf};
use crate::metrics::Metrics;

/// Attempts of the transaction while others change the same rows, before its caller gets an error and retries.
const ATTEMPTS: Attempts = Attempts(30);

/// A request of an owner `O` about several `E`. A repeat has the same source and id.
pub struct Request<O: Entity, E: Entity> {
    pub owner: KeyOf<O>,
    pub source: Source,
    pub id: EventId,
    /// The parts, with different keys.
    pub parts: Vec<(KeyOf<E>, E::Input)>,
}

/// The answer to such a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Together {
    /// Everything took effect; the replies stand in the order of the parts.
    All(Vec<Reply>),
    /// Nothing was changed. The reason of each part that a rule forbids, in the order of the parts.
    Refused(Vec<Option<String>>),
}

/// Does all parts, or nothing when a rule forbids one of them; a repeat gets the same answer.
///
/// # Errors
/// The database does not answer, others change the same rows all the time, or another call of the same request was first: the
/// caller retries.
pub async fn commit_all<O: Entity, E: Stored>(
    pool: &PgPool,
    rules: &dyn Rules<E>,
    request: &Request<O, E>,
    metrics: &Metrics,
) -> Result<Once<Together>, Error> {
    let mut done = known_or_new(pool, rules, request, metrics).await?;
    if crash::again(Point::TogetherCommitted) {
        done = known_or_new(pool, rules, request, metrics).await?;
    }
    crash::here(Point::TogetherCommitted);
    Ok(done)
}

async fn known_or_new<O: Entity, E: Stored>(
    pool: &PgPool,
    rules: &dyn Rules<E>,
    request: &Request<O, E>,
    metrics: &Metrics,
) -> Result<Once<Together>, Error> {
    // Not within the transaction: SERIALIZABLE would see conflicts between requests whose records lie side by side.
    if let Some(known) = idempotency::find(pool, &request.whole()).await? {
        metrics.events.with_label_values(&["repeat"]).inc();
        return Ok(known);
    }
    let units = request.units();
    let closure = async |transaction: &mut Transaction| commit(transaction, rules, request, &units).await;
    let (together, answers) = interactive::transact(pool, ATTEMPTS, closure).await?.value;
    commit::count(&answers, metrics);
    Ok(Once::Fresh(together))
}

/// As [`commit_all`], within the caller's transaction and for a new request. Also returns the answers to count once the
/// transaction is committed.
async fn commit<O: Entity, E: Stored>(
    transaction: &mut Transaction,
    rules: &dyn Rules<E>,
    request: &Request<O, E>,
    units: &[Unit<E>],
) -> Result<(Together, Vec<Answer>), Error> {
    let decisions = step(transaction, async |connection| {
        // No event among the parts that could be too old.
        commit::decide(connection, rules, Admission::OF_ANY_AGE, units).await
    });
    let decisions: Drafts<E> = decisions.await?;
    let refusals: Vec<_> = decisions.answers().map(refusal).collect();
    let (together, answers) = if refusals.iter().any(Option::is_some) {
        let refused = decisions.into_answers().into_iter();
        let refused = refused.filter(|answer| refusal(answer).is_some());
        (Together::Refused(refusals), refused.collect())
    } else {
        step(transaction, async |connection| decisions.write(connection).await).await?;
        if crash::again(Point::TogetherWritten) {
            // If a row has changed since it was read, the transaction begins anew.
            step(transaction, async |connection| decisions.write(connection).await).await?;
        }
        crash::here(Point::TogetherWritten);
        let answers = decisions.into_answers();
        (Together::All(answers.iter().map(reply).collect()), answers)
    };
    let keep = async |connection: &mut PgConnection| idempotency::keep(connection, &request.whole(), &together).await;
    transaction.own("idempotency_records", keep).await?;
    Ok((together, answers))
}

/// Runs a step of the committer within the transaction, which begins anew if a row has changed meanwhile.
pub(super) async fn step<R>(
    transaction: &mut Transaction,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<R, Error>,
) -> Result<R, Error> {
    let within = async |connection: &mut PgConnection| match work(connection).await {
        Err(Error::Read(error) | Error::Write(error)) => Err(error),
        done => Ok(done),
    };
    match transaction.own("(the rows of a request)", within).await? {
        Err(Error::Moved) => Err(transaction.overtaken().into()),
        done => done,
    }
}

impl<O: Entity, E: Entity> Request<O, E> {
    fn whole(&self) -> Whole<'_> {
        Whole {
            source: &self.source,
            id: &self.id,
            topic: O::Data::TOPIC,
            key: self.owner.as_str(),
            hash: RequestHash::of_request("together", &self.owner, &json!(self.parts)),
        }
    }

    /// The units of the parts, each under an id of its own: an event has outcomes of one key.
    fn units(&self) -> Vec<Unit<E>> {
        let parts = self.parts.iter().enumerate();
        let units = parts.map(|(place, (key, input))| Unit {
            key: key.clone(),
            work: vec![Work::Command(Command {
                source: self.source.clone(),
                id: part(&self.id, place),
                input: input.clone(),
                trace: None,
            })],
        });
        units.collect()
    }
}

/// The id of a part: request and place in at most 255 bytes. A request's id that is too long for that is replaced by a UUID
/// derived from it.
fn part(id: &EventId, place: usize) -> EventId {
    let name = format!("{id}/{place}");
    EventId::parse(&name)
        .or_else(|_| EventId::parse(&Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string()))
        .expect("a UUID is a short id")
}

fn reply(answer: &Answer) -> Reply {
    match answer {
        Answer::Fresh(reply) | Answer::Repeat(reply) => reply.clone(),
        Answer::AlreadyDone | Answer::Nothing | Answer::DeadLettered(_) => Reply { outcomes: Vec::new() },
    }
}

/// The reason of a part that a rule forbids.
fn refusal(answer: &Answer) -> Option<String> {
    match answer {
        Answer::Fresh(reply) | Answer::Repeat(reply) => reply.refusal().map(str::to_owned),
        Answer::AlreadyDone => None,
        Answer::Nothing | Answer::DeadLettered(_) => Some("does_not_fit".to_owned()),
    }
}
