//! Two-phase commit: a change here and a change in another database, both or neither; or a statement that is executed once,
//! although its caller tries again.
//!
//! Only the other database prepares. What it prepared is bound to commit or roll back by a row in `two_phase_attempts` of the
//! main database, which is written in the same transaction as the changes here. The other database needs no table of ours.
//!
//! 1. other: prepared transactions of earlier tries are ended ([`done_before`]); `begin`, the caller's statements,
//!    `prepare transaction 'holdfast:<transaction>:<attempt>'`
//! 2. main: `begin`, the caller's statements, `insert into two_phase_attempts (…, 'committed')`, `commit`
//! 3. other: `commit prepared`, or `rollback prepared` when the insert found that another attempt was first, or when the reads
//!    in 2 decided against it. When 2 failed, the attempt is aborted by its row, and ended as the row then says
//!
//! The sweep ends the transactions that its own database role prepared. Two installations that use one other database need a
//! role each: by the rows of its own main database, each would abort the other's transactions.
//!
//! Each try has an attempt id of its own. So a try that was suspended while its successor ran, and then prepares once more, finds
//! another attempt committed, and rolls back its own: one name for all attempts could not tell the two apart. A try takes
//! every prepared transaction under its id for a leftover, so the caller must let one try run at a time, as Restate does
//! for each key: two at once end each other, and begin anew. Nothing is done twice by that, only later.
//!
//! | the try ends | result so far | goes on with it |
//! | --- | --- | --- |
//! | before or during 1 | nothing | the next try |
//! | after 1 | a prepared transaction that holds its locks | the next try, or [`sweep`], aborts it; the next try prepares anew |
//! | during the commit of 2, answer lost | both or nothing of 2 | the try itself ends its prepared transaction as the row says; the next try finds the row, or begins anew |
//! | after 2 | a prepared transaction bound to commit | the next try, or [`sweep`], commits it; the next try answers [`Outcome::Before`] |
//! | during 3, answer lost | 3 is done or not | the next try, or [`sweep`], by the row alone: `commit prepared` is not idempotent, a second one answers 42704, as after a rollback |
//!
//! **Errors** The closures' own; [`Error::Swept`] when the sweeper took a slow try for an orphan. Then only the rows tell the
//! result: retry with the same transaction id and a new attempt.
//!
//! PostgreSQL: `PREPARE TRANSACTION` needs `max_prepared_transactions` above 0 ([`check`]); a prepared transaction outlives its
//! session and every restart, keeps its locks, and holds back vacuum until it is settled.
//!
//! ```no_run
//! # async fn example(main: sqlx::PgPool, loyalty: sqlx::PgPool, attempt: uuid::Uuid) -> Result<(), holdfast::store::mechanisms::Error> {
//! use holdfast::store::examples::User;
//! use holdfast::store::mechanisms::two_phase::{self, Outcome, TransactionId};
//! use holdfast::store::mechanisms::{Error, update};
//!
//! let transaction = TransactionId::parse("credits-added/17").expect("a short plain name");
//! let ann = "ann".to_owned();
//! let here = async |main: &mut sqlx::PgConnection| update::apply(main, &ann, &User::NAME.set("Ann")).await.map(|_| ());
//! let there = async |loyalty: &mut sqlx::PgConnection| update::apply(loyalty, &ann, &User::CREDITS.add(5)).await.map(|_| ());
//! match two_phase::run::<Error>(&main, &loyalty, &transaction, attempt, here, there).await? {
//!     Outcome::Now => println!("both stand"),
//!     Outcome::Before => println!("both stood already"),
//! }
//! # Ok(()) }
//! ```

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::Error;
use super::table::sql;
use crate::store::session::{InTime, patience, within};

/// The name of a change that is to happen once. Statements without parameters contain it, so it has plain characters only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TransactionId(String);

/// Prefix of the names of our prepared transactions; those of other programs are left alone.
const PREFIX: &str = "holdfast";

impl TransactionId {
    /// PostgreSQL accepts names of less than 200 bytes; each has prefix, attempt and two colons besides.
    pub const MAX_BYTES: usize = 199 - PREFIX.len() - 36 - 2;

    /// # Errors
    /// The text is empty, too long, or has other characters than letters, digits and `-_./`.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
        let fits = (1..=Self::MAX_BYTES).contains(&text.len()) && text.bytes().all(is_plain);
        fits.then(|| Self(text.to_owned())).ok_or(InvalidId)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that cannot name a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a transaction id has 1 to {} letters, digits or -_./", TransactionId::MAX_BYTES)]
pub struct InvalidId;

/// The result of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Both changes are committed, by this try.
    Now,
    /// Both were committed by an earlier try; nothing of this try remains.
    Before,
}

/// The fate of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Committed,
    Aborted,
}

/// Changes both databases, or neither. `attempt` must be new for each try.
pub async fn run<E: From<Error>>(
    main: &PgPool,
    other: &PgPool,
    transaction: &TransactionId,
    attempt: Uuid,
    here: impl AsyncFnOnce(&mut PgConnection) -> Result<(), E>,
    there: impl AsyncFnOnce(&mut PgConnection) -> Result<(), E>,
) -> Result<Outcome, E> {
    if done_before(main, other, transaction).await? {
        return Ok(Outcome::Before);
    }
    prepare(other, transaction, attempt, there).await?;
    let here = async |main: &mut PgConnection| here(main).await.map(|()| Fate::Committed);
    let fate = decide(main, other, transaction, attempt, here).await?;
    settle(other, transaction, attempt, fate).await?;
    match fate {
        Fate::Committed => Ok(Outcome::Now),
        Fate::Aborted => match committed(main, transaction).await? {
            Some(_) => Ok(Outcome::Before),
            None => Err(Error::Swept.into()),
        },
    }
}

/// Ends the prepared transactions of earlier tries, whatever their age: the next try would wait for their locks. True if one of
/// them was committed: then nothing is left to do.
pub async fn done_before(main: &PgPool, other: &PgPool, transaction: &TransactionId) -> Result<bool, Error> {
    let named = format!("{PREFIX}:{}", transaction.as_str());
    sweep_named(main, other, Duration::ZERO, named).await?;
    let Some(committed) = committed(main, transaction).await? else {
        return Ok(false);
    };
    settle(other, transaction, committed, Fate::Committed).await?;
    Ok(true)
}

/// The first step: statements in the other database, prepared.
pub async fn prepare<E: From<Error>>(
    other: &PgPool,
    transaction: &TransactionId,
    attempt: Uuid,
    there: impl AsyncFnOnce(&mut PgConnection) -> Result<(), E>,
) -> Result<(), E> {
    let prepared = async {
        let mut work = other.begin().await.map_err(Error::of(PREPARED))?;
        there(&mut work).await?;
        let prepare = sql(format!("prepare transaction '{}'", name(transaction, attempt)));
        sqlx::query(prepare)
            .execute(&mut *work)
            .await
            .map_err(Error::of(PREPARED))?;
        // The session has left the transaction; only the driver does not know.
        work.rollback().await.map_err(Error::of(PREPARED))?;
        Ok(())
    };
    within(patience(other), |error| Error::of(PREPARED)(error).into(), prepared).await
}

/// The second step: the row that binds the attempt, and statements in the main database, in one transaction. Their reads may
/// decide against the other database's part: then they answer [`Fate::Aborted`], and their writes alone are committed. The
/// fate is [`Fate::Aborted`] as well when the sweeper or another attempt was first; then they were not executed at all.
///
/// # Errors
/// The statements', and the database's. Nothing stays prepared then, as far as the databases can be reached.
pub async fn decide<E: From<Error>>(
    main: &PgPool,
    other: &PgPool,
    transaction: &TransactionId,
    attempt: Uuid,
    here: impl AsyncFnOnce(&mut PgConnection) -> Result<Fate, E>,
) -> Result<Fate, E> {
    let failed = |error| Error::of(ATTEMPTS)(error).into();
    let decided = within(patience(main), failed, bind(main, transaction, attempt, here)).await;
    if decided.is_err() {
        // The answer to COMMIT may have been lost: the row says whether it took effect.
        if let Err(error) = end(main, other, transaction, attempt).await {
            let (transaction, error) = (transaction.as_str(), &error as &dyn std::error::Error);
            tracing::warn!(transaction, %attempt, error, "an attempt stays prepared until the next try or the sweep");
        }
    }
    decided
}

async fn bind<E: From<Error>>(
    main: &PgPool,
    transaction: &TransactionId,
    attempt: Uuid,
    here: impl AsyncFnOnce(&mut PgConnection) -> Result<Fate, E>,
) -> Result<Fate, E> {
    let mut work = main.begin().await.map_err(Error::of(ATTEMPTS))?;
    // First, so that of two attempts the later one waits here and changes nothing.
    let bound = sqlx::query!(
        "insert into two_phase_attempts (transaction, attempt, fate) values ($1, $2, 'committed') on conflict do nothing",
        transaction.as_str(),
        attempt,
    )
    .execute(&mut *work)
    .await
    .map_err(Error::of(ATTEMPTS))?;
    if bound.rows_affected() == 0 {
        return Ok(Fate::Aborted);
    }
    let fate = here(&mut work).await?;
    if fate == Fate::Aborted {
        sqlx::query!(
            "update two_phase_attempts set fate = 'aborted' where transaction = $1 and attempt = $2",
            transaction.as_str(),
            attempt,
        )
        .execute(&mut *work)
        .await
        .map_err(Error::of(ATTEMPTS))?;
    }
    work.commit().await.map_err(Error::of(ATTEMPTS))?;
    Ok(fate)
}

/// The third step: ends the prepared transaction as its fate says. Safe to repeat: one that is gone was ended in the same way,
/// because every try and every sweep goes by the row. So does the session that is ending a busy one at this moment; should it die
/// before that is done, the sweep ends it.
pub async fn settle(other: &PgPool, transaction: &TransactionId, attempt: Uuid, fate: Fate) -> Result<(), Error> {
    let verb = match fate {
        Fate::Committed => "commit",
        Fate::Aborted => "rollback",
    };
    let settle = sql(format!("{verb} prepared '{}'", name(transaction, attempt)));
    match sqlx::query(settle).execute(other).in_time(other).await {
        Ok(_) => Ok(()),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(UNDEFINED_OBJECT) => Ok(()),
        Err(sqlx::Error::Database(error)) if is_busy(&*error) => Ok(()),
        Err(error) => Err(Error::of(PREPARED)(error)),
    }
}

/// The place that errors of these statements name, instead of a table.
const PREPARED: &str = "(prepared transactions)";
const ATTEMPTS: &str = "two_phase_attempts";

/// PostgreSQL's answer to a name that no prepared transaction has.
const UNDEFINED_OBJECT: &str = "42704";

/// True of PostgreSQL's answer to the end of a prepared transaction that another session is ending. A database that takes no connections
/// answers with the same code.
fn is_busy(error: &dyn DatabaseError) -> bool {
    let routine = error
        .try_downcast_ref::<PgDatabaseError>()
        .and_then(PgDatabaseError::routine);
    error.code().as_deref() == Some("55000") && routine == Some("LockGXact")
}

/// Ends prepared transactions older than `age` in the other database: an undecided attempt is aborted by a row in the main
/// database first, and only then rolled back. So age is a hint, never a verdict: an attempt that is merely slow finds
/// itself aborted and changes nothing. Returns the number of those ended.
pub async fn sweep(main: &PgPool, other: &PgPool, age: Duration) -> Result<usize, Error> {
    sweep_named(main, other, age, PREFIX.to_owned()).await
}

async fn sweep_named(main: &PgPool, other: &PgPool, age: Duration, named: String) -> Result<usize, Error> {
    let prepared = prepared(other, age, named).await?;
    let (mut ended, mut failed) = (0, None);
    for (transaction, attempt) in prepared {
        match end(main, other, &transaction, attempt).await {
            Ok(()) => ended += 1,
            // One that cannot be ended keeps the sweep from no other.
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    failed.map_or(Ok(ended), Err)
}

/// The attempts that lie prepared in the other database, the oldest first.
///
/// # Errors
/// It does not answer.
pub async fn unsettled(other: &PgPool) -> Result<Vec<(TransactionId, Uuid)>, Error> {
    prepared(other, Duration::ZERO, PREFIX.to_owned()).await
}

async fn prepared(other: &PgPool, age: Duration, named: String) -> Result<Vec<(TransactionId, Uuid)>, Error> {
    let names: Vec<String> = sqlx::query_scalar(
        "select gid from pg_prepared_xacts
         where database = current_database() and owner = current_user and prepared <= clock_timestamp() - make_interval(secs => $1)
           and starts_with(gid, $2 || ':')
         order by prepared",
    )
    .bind(age.as_secs_f64())
    .bind(named)
    .fetch_all(other)
    .in_time(other)
    .await
    .map_err(Error::of(PREPARED))?;
    Ok(names.iter().filter_map(|name| parse(name)).collect())
}

async fn end(main: &PgPool, other: &PgPool, transaction: &TransactionId, attempt: Uuid) -> Result<(), Error> {
    let fate = abort(main, transaction, attempt).await?;
    settle(other, transaction, attempt, fate).await
}

/// Aborts an attempt, unless its fate is decided. Returns its fate.
async fn abort(main: &PgPool, transaction: &TransactionId, attempt: Uuid) -> Result<Fate, Error> {
    sqlx::query!(
        "insert into two_phase_attempts (transaction, attempt, fate) values ($1, $2, 'aborted') on conflict do nothing",
        transaction.as_str(),
        attempt,
    )
    .execute(main)
    .in_time(main)
    .await
    .map_err(Error::of(ATTEMPTS))?;
    let fate = sqlx::query_scalar!(
        "select fate from two_phase_attempts where transaction = $1 and attempt = $2",
        transaction.as_str(),
        attempt,
    )
    .fetch_one(main)
    .in_time(main)
    .await
    .map_err(Error::of(ATTEMPTS))?;
    match fate.as_str() {
        "committed" => Ok(Fate::Committed),
        _ => Ok(Fate::Aborted),
    }
}

/// The attempt that was committed, if one was.
async fn committed(main: &PgPool, transaction: &TransactionId) -> Result<Option<Uuid>, Error> {
    sqlx::query_scalar!(
        "select attempt from two_phase_attempts where transaction = $1 and fate = 'committed'",
        transaction.as_str(),
    )
    .fetch_optional(main)
    .in_time(main)
    .await
    .map_err(Error::of(ATTEMPTS))
}

/// Refuses a database that cannot prepare ([`Error::CannotPrepare`]), at the start and not at the first use.
pub async fn check(other: &PgPool) -> Result<(), Error> {
    let limit: i32 = sqlx::query_scalar("select current_setting('max_prepared_transactions')::int")
        .fetch_one(other)
        .in_time(other)
        .await
        .map_err(Error::of(PREPARED))?;
    (limit > 0).then_some(()).ok_or(Error::CannotPrepare)
}

fn name(transaction: &TransactionId, attempt: Uuid) -> String {
    format!("{PREFIX}:{}:{attempt}", transaction.as_str())
}

fn parse(name: &str) -> Option<(TransactionId, Uuid)> {
    let (transaction, attempt) = name.strip_prefix(PREFIX)?.strip_prefix(':')?.rsplit_once(':')?;
    Some((TransactionId::parse(transaction).ok()?, attempt.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_transaction_ids() {
        for text in ["a", "credits-added/ann_1/17.2", &"x".repeat(TransactionId::MAX_BYTES)] {
            assert!(TransactionId::parse(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "a b",
            "a'b",
            "a:b",
            "ä",
            "a\\b",
            &"x".repeat(TransactionId::MAX_BYTES + 1),
        ] {
            assert_eq!(TransactionId::parse(text), Err(InvalidId), "{text}");
        }
    }

    #[test]
    fn a_prepared_transaction_names_its_attempt() {
        let (transaction, attempt) = (TransactionId::parse("a/1").unwrap(), Uuid::from_u128(7));
        let name = name(&transaction, attempt);
        assert!(name.len() < 200);
        assert_eq!(parse(&name), Some((transaction, attempt)));
        for foreign in [
            "",
            "other:a:1",
            "holdfast:a",
            "holdfastly:a:00000000-0000-0000-0000-000000000007",
        ] {
            assert_eq!(parse(foreign), None);
        }
    }
}
