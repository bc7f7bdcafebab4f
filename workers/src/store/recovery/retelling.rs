//! Tells again what Kafka has lost. The change logs, the ledger and the answers to refusals have all that was told, but for the trace that
//! an event came with: so an outcome goes to the outbox as it was, with the same id, sequence, generation, time and data, and whoever has
//! read it already sees a repeat.

use std::collections::HashMap;

use holdfast_schemas::ledger::{Entry, LedgerEntry};
use holdfast_schemas::{
    EventId, Invalid, Key, LedgerWord, MovementId, Outcome, OutcomeData, OutcomeId, Price, Reply, Source,
    TicketOutcome, Traceparent, UserOutcome, outcome_id, topics,
};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use super::UNITS;
use crate::store::Error;
use crate::store::commit::OUTCOME_HEADERS;
use crate::store::outcome_log::{Log, LoggedOutcome, RowlessAnswer};
use crate::store::session::{patience, within};

/// What the topic of a log lacks.
#[derive(Debug)]
pub struct LostOutcomes {
    pub log: Log,
    /// What was decided, and is neither on the topic nor in the outbox; of each key in the order in which it was decided.
    pub outcomes: Vec<LoggedOutcome>,
    /// Generation and sequence of the last outcome of each key that the topic has.
    pub last: HashMap<String, (i64, i64)>,
}

/// A record, as it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetoldOutcome {
    pub topic: &'static str,
    pub key: String,
    pub generation: i64,
    /// 0 where the key has no row; of an entry it says nothing.
    pub sequence: i64,
    pub message: Uuid,
    pub value: Vec<u8>,
}

/// What goes to the outbox once more.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ToldAgain {
    pub tickets: usize,
    pub users: usize,
    pub entries: usize,
    /// Refusals about tickets and users that there are not.
    pub refusals: usize,
    /// What is left out, since later outcomes of the same ticket or user are on the topic: it could not be told in its order.
    pub gaps: Vec<LoggedOutcome>,
}

/// Puts what was lost into the outbox, before all that waits there. Rolls back where it is a dry run.
///
/// # Errors
/// The database does not answer, or has a row that no release wrote.
pub async fn tell_again(
    pool: &PgPool,
    lost: &[LostOutcomes],
    refusals: &[RetoldOutcome],
    dry_run: bool,
) -> Result<ToldAgain, Error> {
    let mut transaction = pool.begin().await.map_err(Error::Write)?;
    let connection = &mut *transaction;
    let mut told = ToldAgain::default();
    // Whoever decides meanwhile waits: what they tell follows.
    let lock = sqlx::raw_sql("lock table tickets, users, checkouts in share row exclusive mode");
    answer(pool, lock.execute(&mut *connection)).await?;
    let waiting = sqlx::query_scalar!("select max(id) from outbox");
    let waiting = answer(pool, waiting.fetch_one(&mut *connection)).await?;
    for lost in lost {
        for portion in lost.outcomes.chunks(UNITS) {
            let records = read(pool, connection, lost.log, portion).await?;
            let (next, gaps): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| lost.goes_on_with(record));
            told.gaps.extend(gaps.into_iter().map(RetoldOutcome::logged));
            *told.counted(lost.log) += next.len();
            queue(pool, connection, lost.log.topic(), &next).await?;
        }
    }
    for log in [Log::Tickets, Log::Users] {
        let of_log = refusals.iter().filter(|refusal| refusal.topic == log.topic());
        let of_log: Vec<_> = of_log.cloned().collect();
        for portion in of_log.chunks(UNITS) {
            told.refusals += portion.len();
            queue(pool, connection, log.topic(), portion).await?;
        }
    }
    if let Some(waiting) = waiting {
        requeue(pool, connection, waiting).await?;
    }
    match dry_run {
        true => transaction.rollback().await,
        false => transaction.commit().await,
    }
    .map_err(Error::Write)?;
    Ok(told)
}

/// The refusals in these answers that are about no row.
///
/// # Errors
/// An answer cannot be read.
pub fn refusals(answers: &[RowlessAnswer]) -> Result<Vec<RetoldOutcome>, Error> {
    let mut refusals = Vec::new();
    for answer in answers {
        let reply: Reply = serde_json::from_str(&answer.reply).map_err(|error| answer.unreadable(&error))?;
        for (place, told) in (0..).zip(&reply.outcomes) {
            if told.sequence != 0 {
                continue;
            }
            let row = LoggedRow {
                key: answer.key.clone(),
                version: 0,
                outcome: outcome_id(&answer.source, &answer.id, &answer.key, place).0,
                outcome_type: told.outcome_type.clone(),
                data: told.data.to_string(),
                cause_source: answer.source.clone(),
                cause_id: answer.id.clone(),
                changed_at: answer.written_at,
                generation: answer.generation,
            };
            let refusal = match answer.topic.as_str() {
                topics::RESERVATIONS => row.retold::<TicketOutcome>("idempotency_records"),
                _ => row.retold::<UserOutcome>("idempotency_records"),
            };
            refusals.push(refusal?);
        }
    }
    Ok(refusals)
}

impl RowlessAnswer {
    fn unreadable(&self, error: &serde_json::Error) -> Error {
        Error::Row {
            table: "idempotency_records",
            key: format!("{} {}", self.source, self.id),
            what: error.to_string(),
        }
    }
}

impl LostOutcomes {
    /// Whether it follows what the topic has of its key. The entries of a checkout are not counted.
    fn goes_on_with(&self, record: &RetoldOutcome) -> bool {
        let last = self.last.get(&record.key);
        self.log == Log::Ledger || last.is_none_or(|last| (record.generation, record.sequence) > *last)
    }
}

impl RetoldOutcome {
    fn logged(self) -> LoggedOutcome {
        LoggedOutcome {
            key: self.key,
            version: self.sequence,
            outcome: self.message,
        }
    }
}

impl ToldAgain {
    fn counted(&mut self, log: Log) -> &mut usize {
        match log {
            Log::Tickets => &mut self.tickets,
            Log::Users => &mut self.users,
            Log::Ledger => &mut self.entries,
        }
    }
}

/// A row of a change log, with the generation in which it was decided.
struct LoggedRow {
    key: String,
    version: i64,
    outcome: Uuid,
    outcome_type: String,
    data: String,
    cause_source: String,
    cause_id: String,
    changed_at: OffsetDateTime,
    generation: i64,
}

impl LoggedRow {
    /// Its record, in the version in which it was told.
    fn retold<T: OutcomeData>(self, table: &'static str) -> Result<RetoldOutcome, Error> {
        let value = self.value::<T>().map_err(|invalid| Error::Row {
            table,
            key: self.key.clone(),
            what: format!("version {}: {invalid}", self.version),
        })?;
        Ok(RetoldOutcome {
            topic: T::TOPIC,
            key: self.key,
            generation: self.generation,
            sequence: self.version,
            message: self.outcome,
            value,
        })
    }

    fn value<T: OutcomeData>(&self) -> Result<Vec<u8>, Invalid> {
        let outcome = Outcome::<T> {
            id: OutcomeId(self.outcome),
            subject: T::Key::parse(&self.key)?,
            time: self.changed_at,
            sequence: self.version,
            generation: self.generation,
            causation_source: Source::parse(&self.cause_source)?,
            causation_id: EventId::parse(&self.cause_id)?,
            traceparent: Traceparent::derive(&self.cause_source, &self.cause_id),
            data: T::read(&self.outcome_type, &self.data)?,
        };
        outcome.to_json_as_told(&self.outcome_type, &self.data)
    }
}

/// The records of these, in their order.
async fn read(
    pool: &PgPool,
    connection: &mut PgConnection,
    log: Log,
    lost: &[LoggedOutcome],
) -> Result<Vec<RetoldOutcome>, Error> {
    let keys: Vec<&str> = lost.iter().map(|lost| lost.key.as_str()).collect();
    let versions: Vec<i64> = lost.iter().map(|lost| lost.version).collect();
    match log {
        Log::Tickets => {
            let rows = sqlx::query_as!(
                LoggedRow,
                r#"select log.ticket as key, log.version, log.outcome, log.type as outcome_type, log.data::text as "data!",
                       log.cause_source, log.cause_id, log.changed_at,
                       coalesce((select max(generation) from generations where started_at <= log.changed_at), 1) as "generation!"
                   from unnest($1::text[], $2::bigint[]) with ordinality as lost (key, version, place)
                   join ticket_change_log log on log.ticket = lost.key and log.version = lost.version
                   order by lost.place"#,
                &keys as &[&str],
                &versions,
            );
            let rows = answer(pool, rows.fetch_all(connection)).await?;
            let rows = rows.into_iter();
            rows.map(|row| row.retold::<TicketOutcome>("ticket_change_log"))
                .collect()
        }
        Log::Users => {
            let rows = sqlx::query_as!(
                LoggedRow,
                r#"select log.user_id as key, log.version, log.outcome, log.type as outcome_type, log.data::text as "data!",
                       log.cause_source, log.cause_id, log.changed_at,
                       coalesce((select max(generation) from generations where started_at <= log.changed_at), 1) as "generation!"
                   from unnest($1::text[], $2::bigint[]) with ordinality as lost (key, version, place)
                   join user_change_log log on log.user_id = lost.key and log.version = lost.version
                   order by lost.place"#,
                &keys as &[&str],
                &versions,
            );
            let rows = answer(pool, rows.fetch_all(connection)).await?;
            let rows = rows.into_iter();
            rows.map(|row| row.retold::<UserOutcome>("user_change_log")).collect()
        }
        Log::Ledger => entries(pool, connection, lost, &keys).await,
    }
}

async fn entries(
    pool: &PgPool,
    connection: &mut PgConnection,
    lost: &[LoggedOutcome],
    keys: &[&str],
) -> Result<Vec<RetoldOutcome>, Error> {
    let movements: Vec<Uuid> = lost.iter().map(|lost| lost.outcome).collect();
    let rows = sqlx::query!(
        r#"select gets.movement, gets.checkout, gets.kind, gets.account as receiver, gives.account as giver, gets.amount,
               gets.currency, gets.moved_at
           from unnest($1::text[], $2::uuid[]) with ordinality as lost (checkout, movement, place)
           join ledger gets on gets.movement = lost.movement and gets.checkout = lost.checkout and gets.amount > 0
           join ledger gives on gives.movement = lost.movement and gives.checkout = lost.checkout and gives.amount < 0
           order by lost.place"#,
        keys as &[&str],
        &movements,
    );
    let rows = answer(pool, rows.fetch_all(connection)).await?;
    let entries = rows.into_iter().map(|row| {
        let entry = || -> Result<Entry, Invalid> {
            Ok(Entry {
                id: MovementId(row.movement),
                checkout: Key::parse(&row.checkout)?,
                time: row.moved_at,
                data: LedgerEntry {
                    kind: LedgerWord::parse(&row.kind)?,
                    to: LedgerWord::parse(&row.receiver)?,
                    from: LedgerWord::parse(&row.giver)?,
                    amount: Price::parse(row.amount, &row.currency)?,
                },
            })
        };
        let entry = entry().map_err(|invalid| Error::Row {
            table: "ledger",
            key: row.checkout.clone(),
            what: invalid.to_string(),
        })?;
        Ok(RetoldOutcome {
            topic: topics::LEDGER_ENTRIES,
            key: row.checkout,
            generation: 1,
            sequence: 1,
            message: row.movement,
            value: entry.to_json(),
        })
    });
    entries.collect()
}

/// Adds records to the outbox, in their order.
async fn queue(
    pool: &PgPool,
    connection: &mut PgConnection,
    topic: &'static str,
    records: &[RetoldOutcome],
) -> Result<(), Error> {
    let keys: Vec<&str> = records.iter().map(|record| record.key.as_str()).collect();
    let messages: Vec<Uuid> = records.iter().map(|record| record.message).collect();
    let values: Vec<&[u8]> = records.iter().map(|record| record.value.as_slice()).collect();
    let queue = sqlx::query!(
        "insert into outbox (topic, key, message, headers, value, written_at)
         select $1::text, again.key, again.message, $2::text::json, again.value, clock_timestamp()
         from unnest($3::text[], $4::uuid[], $5::bytea[]) with ordinality as again (key, message, value, place)
         order by again.place",
        topic,
        OUTCOME_HEADERS,
        &keys as &[&str],
        &messages,
        &values as &[&[u8]],
    );
    answer(pool, queue.execute(connection)).await.map(drop)
}

/// Has what waited in the outbox follow what came now, in the same order as before.
async fn requeue(pool: &PgPool, connection: &mut PgConnection, last: i64) -> Result<(), Error> {
    let requeue = sqlx::query!(
        "with waited as (
             delete from outbox where id <= $1
             returning id, topic, key, message, headers, value, written_at, refused
         )
         insert into outbox (topic, key, message, headers, value, written_at, refused)
         select topic, key, message, headers, value, written_at, refused from waited order by id",
        last,
    );
    answer(pool, requeue.execute(connection)).await.map(drop)
}

/// The answer to a statement, which is waited for no longer than it may take.
async fn answer<T>(pool: &PgPool, statement: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Error> {
    within(patience(pool), |error| error, statement)
        .await
        .map_err(Error::Write)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn record(generation: i64, sequence: i64) -> RetoldOutcome {
        RetoldOutcome {
            topic: Log::Tickets.topic(),
            key: "A-1".to_owned(),
            generation,
            sequence,
            message: Uuid::nil(),
            value: vec![],
        }
    }

    #[test]
    fn only_what_follows_the_last_outcome_that_is_left_can_be_told() {
        let lost = |log, last| LostOutcomes {
            log,
            outcomes: vec![],
            last: HashMap::from([("A-1".to_owned(), last)]),
        };
        let of_ticket = lost(Log::Tickets, (1, 5));
        for (generation, sequence, follows) in [(1, 4, false), (1, 5, false), (1, 6, true), (2, 4, true)] {
            let is_next = of_ticket.goes_on_with(&record(generation, sequence));
            assert_eq!(is_next, follows, "{generation}/{sequence}");
        }
        assert!(lost(Log::Ledger, (1, 1)).goes_on_with(&record(1, 1)));
    }

    #[test]
    fn an_answer_about_no_row_is_told_as_it_was() {
        let answer = |reply: &str| RowlessAnswer {
            topic: topics::RESERVATIONS.to_owned(),
            source: "shop".to_owned(),
            id: "1".to_owned(),
            key: "A-1".to_owned(),
            reply: reply.to_owned(),
            written_at: AT,
            generation: 2,
        };
        let refused = r#"{"outcomes":[{"type":"holdfast.outcome.reservation.refused.v1","sequence":0,"data":{"reason":"unknown_ticket"}}]}"#;
        let told = refusals(&[answer(refused), answer(r#"{"outcomes":[]}"#)]).unwrap();
        let [told] = &told[..] else { panic!("{told:?}") };
        let outcome = Outcome::<TicketOutcome>::from_json(&told.value).unwrap();
        assert_eq!(outcome.id, outcome_id("shop", "1", "A-1", 0));
        assert_eq!((outcome.sequence, outcome.generation, outcome.time), (0, 2, AT));
        assert_eq!((outcome.id.0, told.topic), (told.message, TicketOutcome::TOPIC));
        assert!(String::from_utf8_lossy(&told.value).contains("reservation.refused.v1"));
        assert!(refusals(&[answer("{")]).is_err());
    }
}
