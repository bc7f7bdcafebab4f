//! Quarantine: what breaks us by itself, and what follows it, is parked, key by key, until an operator has it replayed or dropped.
//! Every way to commit (the committer, credits, checkouts) comes here with what it could not commit: [`Quarantine::park`].
//!
//! The flag is a row of its own, not a column: a key without a row can break too, and a versioned row moves only with an outcome. The
//! statement that reads the rows of a batch reads the flags as well. No event overtakes what is parked: who parks or takes parked
//! events away holds the flag's lock, and the flag goes in the transaction that takes the last one. What the product itself asks and
//! cannot leave to wait is done meanwhile ([`Entity::passes_quarantine`](crate::domain::Entity::passes_quarantine)): the row takes its next
//! versions, the flag stays, and what is parked is decided on the newer row.
//!
//! The breaker is found by committing shorter and shorter runs of the unit, each in a savepoint of the transaction that then sets the
//! flag. So the good events before it are committed with the flag, or none of it.

mod replay;
mod rows;
pub mod settle;

use std::sync::Arc;
use std::time::Duration;

use holdfast_schemas::{EventData, Key, topics};
use sqlx::{Connection, PgConnection, PgPool};
use time::OffsetDateTime;

use super::commit::{self, Admission, Answer, Rules, Stored, Unit, Work};
use super::{Cause, Error, on_session};
use crate::crash::{self, Point};
use crate::domain::quarantine::{BreakerSearch, is_flood};
use crate::domain::{Decision, KeyOf};
use crate::error;
use crate::metrics::Metrics;
use crate::rounds::Rounds;
pub use replay::ParkedPage;
pub use rows::{ParkedEvent, Replayed};

/// Parks events, and has them replayed.
#[derive(Clone)]
pub struct Quarantine {
    pool: PgPool,
    retention: Duration,
    metrics: Arc<Metrics>,
}

/// Pieces of work that were committed in order, up to one that breaks.
pub struct CommittedWork {
    pub answers: Vec<Answer>,
    /// The place of the one that breaks, and why it does.
    pub broke: Option<(usize, Error)>,
}

/// What a unit came to that could not be committed as a whole.
struct Isolated {
    answers: Vec<Answer>,
    broke: Option<Break>,
}

/// A piece of work that breaks, and why.
#[derive(Clone, Debug)]
pub struct Break {
    /// Its place in the unit.
    pub place: usize,
    cause: &'static str,
    kind: String,
    error: String,
}

impl Break {
    pub fn of(place: usize, error: &Error) -> Self {
        Self {
            place,
            cause: error.breaker().unwrap_or(Cause::Data).as_str(),
            kind: error.kind(),
            error: error::chain(error),
        }
    }
}

impl Quarantine {
    /// `retention`: that of idempotency records.
    pub fn new(pool: PgPool, retention: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            pool,
            retention,
            metrics,
        }
    }

    /// Parks a unit that could not be committed, if `error` says that it has to be. `plain`: how many of its first pieces `rules` decide
    /// in one statement; none when its first piece has a way of its own, and broke there.
    ///
    /// # Errors
    /// `error` when waiting may help, or when so many keys break that we are at fault; and the database's own. The caller retries.
    pub async fn park<E: Stored>(
        &self,
        unit: &Unit<E>,
        plain: usize,
        rules: &dyn Rules<E>,
        error: Error,
    ) -> Result<(), Error> {
        let is_flagged = matches!(error, Error::Quarantined { .. });
        match error.breaker() {
            None if !is_flagged => return Err(error),
            Some(_) if is_flood(self.new_keys().await?) => return Err(self.flooded(error)),
            _ => {}
        }
        let done = on_session(&self.pool, Error::Write, async |session| {
            let mut transaction = session.begin().await.map_err(Error::Write)?;
            let done = match is_flagged {
                true => self.add(&mut transaction, unit).await,
                false => self.isolate(&mut transaction, unit, plain, rules, &error).await,
            }?;
            crash::here(Point::QuarantineWritten);
            if crash::again(Point::QuarantineWritten) {
                rows::park(&mut transaction, unit).await?;
            }
            transaction.commit().await.map_err(Error::Write)?;
            Ok(done)
        });
        let done = match done.await {
            Ok(done) => done,
            Err(Error::Moved) => return Err(error),
            Err(failed) => return Err(failed),
        };
        crash::here(Point::QuarantineParked);
        if crash::again(Point::QuarantineParked) {
            self.park_again(unit).await?;
        }
        self.tell(&unit.key, &done);
        match done.broke {
            // It breaks no more: whoever tries again commits what is left of the unit.
            None if !is_flagged && plain < unit.work.len() => Err(error),
            _ => Ok(()),
        }
    }

    /// Parks a unit whose key is in quarantine by now.
    async fn park_again<E: Stored>(&self, unit: &Unit<E>) -> Result<(), Error> {
        on_session(&self.pool, Error::Write, async |session| {
            let mut transaction = session.begin().await.map_err(Error::Write)?;
            self.add(&mut transaction, unit).await?;
            transaction.commit().await.map_err(Error::Write)
        })
        .await
    }

    /// Commits the good pieces, sets the flag, and parks the breaker with what follows it. An error rolls all of it back.
    async fn isolate<E: Stored>(
        &self,
        connection: &mut PgConnection,
        unit: &Unit<E>,
        plain: usize,
        rules: &dyn Rules<E>,
        error: &Error,
    ) -> Result<Isolated, Error> {
        let done = commit_in_order(connection, &unit.key, &unit.work[..plain], rules, self.live()).await?;
        let broke = match &done.broke {
            Some((place, found)) => Some(Break::of(*place, found)),
            None => (plain == 0).then(|| Break::of(0, error)),
        };
        let CommittedWork { mut answers, .. } = done;
        let Some(found) = broke else {
            return Ok(Isolated { answers, broke: None });
        };
        // The keys are counted one after the other.
        if is_flood(rows::count_alone(connection).await?) || !rows::flag::<E>(connection, &unit.key, &found).await? {
            return Err(Error::Moved);
        }
        let rest = Unit {
            key: unit.key.clone(),
            work: unit.work[found.place..].to_vec(),
        };
        rows::log::<E>(connection, &unit.key, "quarantined", rest.work.len(), Some(&found.kind)).await?;
        answers.extend(self.add(connection, &rest).await?.answers);
        let broke = Some(found);
        Ok(Isolated { answers, broke })
    }

    /// Parks work of a key whose flag is set. What cannot be decided anyway becomes a dead letter at once.
    async fn add<E: Stored>(&self, connection: &mut PgConnection, unit: &Unit<E>) -> Result<Isolated, Error> {
        let Some(now) = rows::lock_flag::<E>(connection, &unit.key).await? else {
            // All was replayed meanwhile: the caller commits the unit.
            return Err(Error::Moved);
        };
        let (mut parked, mut refused) = (Vec::new(), Vec::new());
        for work in &unit.work {
            match work {
                Work::Event(event) => match self.live().refuses(event, now) {
                    None => parked.push(work.clone()),
                    Some(refusal) => refused.push(Work::Rejected {
                        origin: event.origin.clone(),
                        refusal,
                        value: event.to_json(),
                    }),
                },
                Work::Rejected { .. } => refused.push(work.clone()),
                // Whoever asks is told, and asks again.
                Work::Request(_) | Work::Command(_) => {}
            }
        }
        let unit = |work| Unit {
            key: unit.key.clone(),
            work,
        };
        rows::park(connection, &unit(parked)).await?;
        let undecided = |_: Option<&E>, _: E::Input, _: OffsetDateTime| Decision::<E>::Nothing;
        let answers = commit::within(connection, &undecided, self.live(), &[unit(refused)]).await?;
        Ok(Isolated { answers, broke: None })
    }

    fn tell(&self, key: &impl Key, done: &Isolated) {
        commit::count(&done.answers, &self.metrics);
        if let Some(Break { cause, kind, error, .. }) = &done.broke {
            self.metrics.quarantined.with_label_values(&[cause]).inc();
            tracing::error!(%key, cause, kind, error, "a key is in quarantine: what arrives for it is parked");
        }
    }

    /// Fails with [`Error::Quarantined`] if the key is in quarantine: for a request that writes nothing of its row.
    ///
    /// # Errors
    /// That, or the database does not answer.
    pub async fn check<E: Stored>(&self, key: &KeyOf<E>) -> Result<(), Error> {
        match rows::kind_of::<E>(&self.pool, key).await? {
            Some(kind) => Err(Error::Quarantined {
                key: format!("{} {:?}", KeyOf::<E>::NAMES, key.as_str()),
                kind,
            }),
            None => Ok(()),
        }
    }

    async fn new_keys(&self) -> Result<i64, Error> {
        on_session(&self.pool, Error::Read, async |session| rows::count_new(session).await).await
    }

    /// So many keys break that it is no fault of the events.
    fn flooded(&self, error: Error) -> Error {
        self.metrics.quarantine_floods.inc();
        tracing::error!(
            error = error::chain(&error),
            "too many keys break within a minute: none is put in quarantine, and all are retried"
        );
        error
    }

    fn live(&self) -> Admission {
        Admission::Live {
            retention: self.retention,
        }
    }
}

/// Interval at which what is in quarantine is counted.
const COUNT_EVERY: Duration = Duration::from_secs(5);

/// Counts the keys and events in quarantine, for ever.
pub async fn keep_count(pool: &PgPool, metrics: &Metrics, rounds: &Rounds) {
    let mut ticks = tokio::time::interval(COUNT_EVERY);
    loop {
        ticks.tick().await;
        match rows::counts(pool).await {
            Ok(counts) => {
                for topic in [topics::RESERVATIONS, topics::PAYMENTS] {
                    let count = counts.iter().find(|count| count.topic == topic);
                    let (keys, events, oldest) = count.map_or((0, 0, 0), |count| {
                        (count.keys, count.events, count.oldest_seconds as i64)
                    });
                    metrics.quarantined_keys.with_label_values(&[topic]).set(keys);
                    metrics.parked_events.with_label_values(&[topic]).set(events);
                    metrics
                        .quarantine_oldest_seconds
                        .with_label_values(&[topic])
                        .set(oldest);
                }
                rounds.passed();
            }
            Err(error) => rounds.failed(error.fault(), &error),
        }
    }
}

/// Commits work of one key, run by run, until a piece breaks. Nothing of a run that breaks is left.
async fn commit_in_order<E: Stored>(
    connection: &mut PgConnection,
    key: &KeyOf<E>,
    work: &[Work<E>],
    rules: &dyn Rules<E>,
    admission: Admission,
) -> Result<CommittedWork, Error> {
    // What a constraint leaves to the end of the transaction would break it as a whole.
    rows::check_at_once(connection).await?;
    let mut search = BreakerSearch::new(work.len());
    let mut answers = Vec::new();
    while let Some(run) = search.next_run() {
        let unit = Unit {
            key: key.clone(),
            work: work[run.clone()].to_vec(),
        };
        let mut savepoint = connection.begin().await.map_err(Error::Write)?;
        match commit::within(&mut savepoint, rules, admission, std::slice::from_ref(&unit)).await {
            Ok(answered) => {
                savepoint.commit().await.map_err(Error::Write)?;
                answers.extend(answered);
                search.passed();
            }
            Err(error) if error.breaker().is_some() => {
                savepoint.rollback().await.map_err(Error::Write)?;
                if let Some(place) = search.broke() {
                    let broke = Some((place, error));
                    return Ok(CommittedWork { answers, broke });
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(CommittedWork { answers, broke: None })
}

/// The public topic of an entity's events.
fn topic<E: Stored>() -> &'static str {
    E::Data::TOPIC
}
