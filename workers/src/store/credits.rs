//! Credits, which the loyalty database keeps: it may belong to another system, so Holdfast adds nothing to it but credits.
//! An event that adds credits is committed by two-phase commit: prepared there, decided and recorded here, then settled there.
//! So its one statement there takes effect exactly once, and only if the event was applied here.
//!
//! Each addition of credits goes by itself and not with its batch: what is prepared in the loyalty database locks the
//! user's row there until it is settled, so two prepared additions for one user would wait for each other. The next try of
//! an addition ends what a crashed one left prepared, by the row of the attempt, since it would wait for its locks; what no
//! try goes on with is swept after a minute.

use std::time::Duration;

use holdfast_schemas::{Credits, OutcomeId, UserEvent, UserId, events, outcome_id};
use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

use super::commit::{self, Admission, Answer, Rules, Unit, Work};
use super::mechanisms;
use super::mechanisms::two_phase::{self, Fate, TransactionId};
use super::session::InTime;
use super::{Error, on_session};
use crate::crash::{self, Point};
use crate::domain::User;
use crate::domain::user;

/// Both databases.
#[derive(Clone)]
pub struct Loyalty {
    main: PgPool,
    other: PgPool,
    admission: Admission,
}

/// A piece of a user's work that adds credits.
pub struct Addition<'w> {
    work: &'w Work<User>,
    user: &'w UserId,
    amount: Credits,
    /// Named by the id of the event's outcome.
    transaction: TransactionId,
}

impl<'w> Addition<'w> {
    /// None for other work, which is committed by the committer.
    pub fn of(work: &'w Work<User>) -> Option<Self> {
        let (Work::Event(event) | Work::Request(event)) = work else {
            return None;
        };
        let UserEvent::CreditsAdded(events::CreditsAdded { amount }) = event.data else {
            return None;
        };
        let outcome = outcome_id(event.source.as_str(), event.id.as_str(), event.subject.as_str(), 0);
        Some(Self {
            work,
            user: &event.subject,
            amount,
            transaction: addition(outcome),
        })
    }
}

impl Loyalty {
    /// `retention`: that of idempotency records.
    pub fn new(main: PgPool, other: PgPool, retention: Duration) -> Self {
        Self {
            main,
            other,
            admission: Admission::Live { retention },
        }
    }

    /// The same, for events by this admission.
    pub fn admitting(self, admission: Admission) -> Self {
        Self { admission, ..self }
    }

    /// Commits one event that adds credits. `attempt` must be new for each try.
    ///
    /// # Errors
    /// One of the databases does not answer, or another try was quicker: to be tried again.
    pub async fn commit(&self, added: &Addition<'_>, attempt: Uuid) -> Result<Answer, Error> {
        let unit = &Unit {
            key: added.user.clone(),
            work: vec![added.work.clone()],
        };
        let transaction = &added.transaction;
        if two_phase::done_before(&self.main, &self.other, transaction).await? {
            // An earlier try has done it: only the answer is left.
            return self.decide(&user::decide_added_already, unit).await;
        }
        if let Err(error) = self.prepare(added, attempt).await {
            let mechanisms::Error::Forbidden { constraint, .. } = &error else {
                return Err(error.into());
            };
            tracing::warn!(user = %added.user, constraint, "the loyalty database does not take the credits");
            return self.decide(&user::decide_loyalty_refuses, unit).await;
        }
        crash::here(Point::CreditsPrepared);
        if crash::again(Point::CreditsPrepared) {
            two_phase::done_before(&self.main, &self.other, transaction).await?;
            self.prepare(added, attempt).await?;
        }
        let decided = self.decide_prepared(unit, transaction, attempt).await;
        if let Err(error) = &decided
            && (error.breaker().is_some() || matches!(error, Error::Quarantined { .. }))
        {
            // No try follows that would end it.
            self.end_leftovers(transaction).await?;
        }
        let (fate, answer) = decided?;
        crash::here(Point::CreditsDecided);
        two_phase::settle(&self.other, transaction, attempt, fate).await?;
        if crash::again(Point::CreditsDecided) || crash::again(Point::CreditsSettled) {
            two_phase::settle(&self.other, transaction, attempt, fate).await?;
        }
        crash::here(Point::CreditsSettled);
        answer.ok_or(Error::Moved)
    }

    /// Changes a user's credits by `by` together with a change in the main database, or neither. `here` decides; it is called
    /// only when the prepared credits are not below 0. `attempt` must be new for each try.
    ///
    /// # Errors
    /// One of the databases does not answer, or another try was quicker: to be tried again.
    pub(super) async fn change(
        &self,
        transaction: &TransactionId,
        attempt: Uuid,
        user: &UserId,
        by: i64,
        here: impl AsyncFnOnce(&mut PgConnection) -> Result<Fate, Error>,
    ) -> Result<Changed, Error> {
        if two_phase::done_before(&self.main, &self.other, transaction).await? {
            return Ok(Changed::Before);
        }
        let there = async |other: &mut PgConnection| add(other, user, by).await;
        match two_phase::prepare(&self.other, transaction, attempt, there).await {
            Ok(()) => {}
            Err(Spend::Missing) if by > 0 => return Err(Error::NoAccount { user: user.to_string() }),
            Err(Spend::Missing) => return Ok(Changed::Missing),
            Err(Spend::Failed(error)) => return Err(error.into()),
        }
        crash::here(Point::CreditsPrepared);
        if crash::again(Point::CreditsPrepared) {
            // The same error as the next try would meet.
            return Err(Error::Moved);
        }
        let fate = two_phase::decide::<Error>(&self.main, &self.other, transaction, attempt, here).await?;
        crash::here(Point::CreditsDecided);
        two_phase::settle(&self.other, transaction, attempt, fate).await?;
        if crash::again(Point::CreditsDecided) || crash::again(Point::CreditsSettled) {
            two_phase::settle(&self.other, transaction, attempt, fate).await?;
        }
        crash::here(Point::CreditsSettled);
        Ok(Changed::Decided)
    }

    /// The credits that a user has, without what is being spent or returned.
    ///
    /// # Errors
    /// The loyalty database does not answer.
    pub(super) async fn balance(&self, user: &UserId) -> Result<i64, Error> {
        let credits =
            sqlx::query_scalar::<_, i64>("select credits from accounts where user_id = $1").bind(user.as_str());
        let credits = credits.fetch_optional(&self.other).in_time(&self.other).await;
        Ok(credits.map_err(Error::Read)?.unwrap_or(0))
    }

    /// Ends at once the transactions that earlier tries left prepared under this id, each as its row says.
    ///
    /// # Errors
    /// One of the databases does not answer.
    pub(super) async fn end_leftovers(&self, transaction: &TransactionId) -> Result<(), Error> {
        two_phase::done_before(&self.main, &self.other, transaction).await?;
        Ok(())
    }

    async fn prepare(&self, added: &Addition<'_>, attempt: Uuid) -> Result<(), mechanisms::Error> {
        two_phase::prepare(
            &self.other,
            &added.transaction,
            attempt,
            async |other: &mut PgConnection| {
                mechanisms::raw::run(
                    "accounts",
                    sqlx::query(
                        "insert into accounts as a (user_id, credits) values ($1, $2)
                     on conflict (user_id) do update set credits = a.credits + excluded.credits",
                    )
                    .bind(added.user.as_str())
                    .bind(added.amount.amount())
                    .execute(other),
                )
                .await
                .map(drop)
            },
        )
        .await
    }

    /// Decides the prepared transaction. No answer: another try was first.
    async fn decide_prepared(
        &self,
        unit: &Unit<User>,
        transaction: &TransactionId,
        attempt: Uuid,
    ) -> Result<(Fate, Option<Answer>), Error> {
        let mut answer = None;
        let here = async |main: &mut PgConnection| {
            let found = first(commit::within(main, &user::decide, self.admission, std::slice::from_ref(unit)).await?);
            let applied = matches!(&found, Answer::Fresh(reply) if reply.refusal().is_none());
            answer = Some(found);
            Ok::<_, Error>(if applied { Fate::Committed } else { Fate::Aborted })
        };
        let fate = two_phase::decide(&self.main, &self.other, transaction, attempt, here).await?;
        Ok((fate, answer))
    }

    /// Decides an event that changes nothing in the loyalty database, or has changed it before.
    async fn decide(&self, rules: &dyn Rules<User>, unit: &Unit<User>) -> Result<Answer, Error> {
        let answers = on_session(&self.main, Error::Write, async |main| {
            let mut main = main.begin().await.map_err(Error::Write)?;
            let answers = commit::within(&mut main, rules, self.admission, std::slice::from_ref(unit)).await?;
            main.commit().await.map_err(Error::Write)?;
            Ok(answers)
        });
        Ok(first(answers.await?))
    }

    /// Ends prepared transactions older than `age` that other processes left behind; returns their number.
    pub async fn sweep(&self, age: Duration) -> Result<usize, Error> {
        Ok(two_phase::sweep(&self.main, &self.other, age).await?)
    }

    /// Checks that the loyalty database can prepare transactions.
    ///
    /// # Errors
    /// It cannot, or does not answer.
    pub async fn check(&self) -> Result<(), Error> {
        Ok(two_phase::check(&self.other).await?)
    }

    pub fn pool(&self) -> &PgPool {
        &self.other
    }
}

/// The transaction that adds the credits which this outcome tells of.
pub(super) fn addition(outcome: OutcomeId) -> TransactionId {
    TransactionId::parse(&format!("credits/{outcome}")).expect("a short plain name")
}

/// The result of a change of credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changed {
    /// The decision of `here` is committed.
    Decided,
    /// An earlier try has done all of it.
    Before,
    /// The user has fewer credits than were to be taken; nothing was done.
    Missing,
}

/// The reason why credits were not prepared.
enum Spend {
    Missing,
    Failed(mechanisms::Error),
}

impl From<mechanisms::Error> for Spend {
    fn from(error: mechanisms::Error) -> Self {
        Spend::Failed(error)
    }
}

async fn add(other: &mut PgConnection, user: &UserId, by: i64) -> Result<(), Spend> {
    // Returned credits are owed, whatever the account's limits.
    let query =
        sqlx::query("update accounts set credits = credits + $2 where user_id = $1 and (credits + $2 >= 0 or $2 > 0)");
    let added = mechanisms::raw::run("accounts", query.bind(user.as_str()).bind(by).execute(other)).await?;
    (added.rows_affected() > 0).then_some(()).ok_or(Spend::Missing)
}

fn first(answers: Vec<Answer>) -> Answer {
    let answer = answers.into_iter().next();
    answer.expect("every piece of work is answered")
}
