//! Several entities at once, all or none: their rows are read, decided and written in one interactive transaction. Whoever
//! changes one of the rows meanwhile makes it begin anew on fresh rows.

use std::time::Duration;

use holdfast_schemas::Reply;
use sqlx::{PgConnection, PgPool};

use super::Error;
use super::commit::{self, Answer, Rules, Stored, Unit};
use super::mechanisms;
use super::mechanisms::interactive::{self, Attempts, Transaction};
use crate::crash::{self, Point};
use crate::metrics::Metrics;

/// How often the transaction begins anew when others change the same rows, before its caller is told to come again.
const ATTEMPTS: Attempts = Attempts(30);

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Together {
    /// Everything took effect, now or by an earlier try; the replies stand in the order of the units.
    All(Vec<Reply>),
    /// Nothing was written: the id of one of the requests was used before for another one.
    IdReused,
    /// Nothing was written. The reason of each unit that a rule forbids, in the order of the units.
    Refused(Vec<Option<String>>),
}

/// Commits units of one request each, of different keys: all of them, or none when a rule forbids one.
///
/// # Errors
/// The database does not answer, or others change the same rows all the time.
pub async fn commit_all<E: Stored>(
    pool: &PgPool,
    rules: Rules<E>,
    retention: Duration,
    units: &[Unit<E>],
    metrics: &Metrics,
) -> Result<Together, Error> {
    let closure = async |transaction: &mut Transaction| {
        let mut answers = decide(transaction, rules, retention, units).await?;
        if crash::again(Point::TogetherWritten) {
            answers = decide(transaction, rules, retention, units).await?;
        }
        if answers.iter().any(|answer| matches!(answer, Answer::DeadLettered(_))) {
            return Err(Stop::IdReused);
        }
        let refusals: Vec<_> = answers.iter().map(refusal).collect();
        match refusals.iter().any(Option::is_some) {
            true => Err(Stop::Refused(refusals)),
            false => {
                crash::here(Point::TogetherWritten);
                Ok(answers)
            }
        }
    };
    let mut together = interactive::transact(pool, ATTEMPTS, closure).await;
    if crash::again(Point::TogetherCommitted) {
        together = interactive::transact(pool, ATTEMPTS, closure).await;
    }
    match together {
        Ok(committed) => {
            crash::here(Point::TogetherCommitted);
            commit::count(&committed.value, metrics);
            Ok(Together::All(committed.value.into_iter().filter_map(reply).collect()))
        }
        Err(Stop::IdReused) => Ok(Together::IdReused),
        Err(Stop::Refused(refusals)) => Ok(Together::Refused(refusals)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Why the closure does not end with everything written.
enum Stop {
    IdReused,
    Refused(Vec<Option<String>>),
    Failed(Error),
}

impl From<mechanisms::Error> for Stop {
    fn from(error: mechanisms::Error) -> Self {
        Stop::Failed(error.into())
    }
}

async fn decide<E: Stored>(
    transaction: &mut Transaction,
    rules: Rules<E>,
    retention: Duration,
    units: &[Unit<E>],
) -> Result<Vec<Answer>, Stop> {
    let within = async |connection: &mut PgConnection| match commit::within(connection, rules, retention, units).await {
        Err(Error::Read(error) | Error::Write(error)) => Err(error),
        other => Ok(other),
    };
    match transaction.raw("the rows of the units", within).await? {
        Ok(answers) => Ok(answers.into_iter().flatten().collect()),
        Err(Error::Moved) => Err(transaction.overtaken().into()),
        Err(error) => Err(Stop::Failed(error)),
    }
}

/// What a unit was answered; none when a request from within does not fit.
fn reply(answer: Answer) -> Option<Reply> {
    match answer {
        Answer::Fresh(reply) | Answer::Repeat(reply) => Some(reply),
        Answer::AlreadyDone => Some(Reply { outcomes: Vec::new() }),
        Answer::Nothing | Answer::DeadLettered(_) => None,
    }
}

fn refusal(answer: &Answer) -> Option<String> {
    match answer {
        Answer::Fresh(reply) | Answer::Repeat(reply) => reply.refusal().map(str::to_owned),
        Answer::AlreadyDone => None,
        Answer::Nothing | Answer::DeadLettered(_) => Some("does_not_fit".to_owned()),
    }
}
