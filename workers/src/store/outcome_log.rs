//! What the database knows of the outcomes that a topic has, for an operator who vouches for its state.

use holdfast_schemas::{OutcomeData, TicketOutcome, UserOutcome, topics};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::outbox::Error;

/// One outcome, as its topic or its change log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedOutcome {
    pub key: String,
    /// The version of the key's row that it tells; 1 for every entry of the ledger.
    pub version: i64,
    pub outcome: Uuid,
}

/// The change log behind an outcome topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    Tickets,
    Users,
    /// The ledger is the log of its own entries; each movement has one.
    Ledger,
}

impl Log {
    pub const ALL: [Log; 3] = [Log::Tickets, Log::Users, Log::Ledger];

    /// The topic that tells what the log has.
    pub fn topic(self) -> &'static str {
        match self {
            Log::Tickets => TicketOutcome::TOPIC,
            Log::Users => UserOutcome::TOPIC,
            Log::Ledger => topics::LEDGER_ENTRIES,
        }
    }
}

/// Those of `told` that the change log does not have: the database never decided them, or forgot that it did.
///
/// # Errors
/// [`Error::Told`]
pub async fn unknown(db: &mut PgConnection, log: Log, told: &[LoggedOutcome]) -> Result<Vec<LoggedOutcome>, Error> {
    let keys: Vec<String> = told.iter().map(|told| told.key.clone()).collect();
    let versions: Vec<i64> = told.iter().map(|told| told.version).collect();
    let outcomes: Vec<Uuid> = told.iter().map(|told| told.outcome).collect();
    let unknown = match log {
        Log::Tickets => {
            sqlx::query_as!(
                LoggedOutcome,
                r#"select told.key as "key!", told.version as "version!", told.outcome as "outcome!"
                from unnest($1::text[], $2::bigint[], $3::uuid[]) as told (key, version, outcome)
                left join ticket_change_log log on log.ticket = told.key and log.version = told.version
                where log.outcome is distinct from told.outcome"#,
                &keys,
                &versions,
                &outcomes,
            )
            .fetch_all(db)
            .await
        }
        Log::Users => {
            sqlx::query_as!(
                LoggedOutcome,
                r#"select told.key as "key!", told.version as "version!", told.outcome as "outcome!"
                from unnest($1::text[], $2::bigint[], $3::uuid[]) as told (key, version, outcome)
                left join user_change_log log on log.user_id = told.key and log.version = told.version
                where log.outcome is distinct from told.outcome"#,
                &keys,
                &versions,
                &outcomes,
            )
            .fetch_all(db)
            .await
        }
        Log::Ledger => {
            sqlx::query_as!(
                LoggedOutcome,
                r#"select told.key as "key!", told.version as "version!", told.outcome as "outcome!"
                from unnest($1::text[], $2::bigint[], $3::uuid[]) as told (key, version, outcome)
                where not exists (
                    select from ledger log where log.movement = told.outcome and log.checkout = told.key and log.told
                )"#,
                &keys,
                &versions,
                &outcomes,
            )
            .fetch_all(db)
            .await
        }
    };
    unknown.map_err(Error::Told)
}

/// Those of these events, by source and id, that have no idempotency record.
///
/// # Errors
/// [`Error::Told`]
pub async fn unanswered(db: &mut PgConnection, events: &[(&str, &str)]) -> Result<Vec<(String, String)>, Error> {
    let (sources, ids): (Vec<&str>, Vec<&str>) = events.iter().copied().unzip();
    let rows = sqlx::query!(
        r#"select told.source as "source!", told.id as "id!"
        from unnest($1::text[], $2::text[]) as told (source, id)
        where not exists (select from idempotency_records r where r.source = told.source and r.id = told.id)"#,
        &sources as &[&str],
        &ids as &[&str],
    )
    .fetch_all(db)
    .await
    .map_err(Error::Told)?;
    Ok(rows.into_iter().map(|row| (row.source, row.id)).collect())
}

/// What the change log has of later than `since`, or all of it, without what waits in the outbox: it must have been told. Of each key in
/// the order in which it was decided.
///
/// # Errors
/// [`Error::Told`]
pub async fn decided(
    db: &mut PgConnection,
    log: Log,
    since: Option<OffsetDateTime>,
) -> Result<Vec<LoggedOutcome>, Error> {
    let decided = match log {
        Log::Tickets => {
            sqlx::query_as!(
                LoggedOutcome,
                r#"select ticket as key, version, outcome from ticket_change_log
                where ($1::timestamptz is null or changed_at > $1) and outcome not in (select message from outbox)
                order by ticket, version"#,
                since,
            )
            .fetch_all(db)
            .await
        }
        Log::Users => {
            sqlx::query_as!(
                LoggedOutcome,
                r#"select user_id as key, version, outcome from user_change_log
                where ($1::timestamptz is null or changed_at > $1) and outcome not in (select message from outbox)
                order by user_id, version"#,
                since,
            )
            .fetch_all(db)
            .await
        }
        Log::Ledger => {
            sqlx::query_as!(
                LoggedOutcome,
                r#"select checkout as key, 1::bigint as "version!", movement as outcome from ledger
                where told and amount > 0 and ($1::timestamptz is null or moved_at > $1)
                    and movement not in (select message from outbox)
                order by id"#,
                since,
            )
            .fetch_all(db)
            .await
        }
    };
    decided.map_err(Error::Told)
}

/// The answer to an event that is about no row, or in part.
#[derive(Debug, Clone)]
pub struct RowlessAnswer {
    /// The public topic of such events.
    pub topic: String,
    pub source: String,
    pub id: String,
    pub key: String,
    /// As the idempotency record has it.
    pub reply: String,
    pub written_at: OffsetDateTime,
    /// The generation in which it was given.
    pub generation: i64,
}

/// The answers, later than `since` or all, whose outcomes no change log has: refusals about what there is not. The events are those of
/// the public topic `topic`.
///
/// # Errors
/// [`Error::Told`]
pub async fn rowless(
    db: &mut PgConnection,
    topic: &str,
    since: Option<OffsetDateTime>,
) -> Result<Vec<RowlessAnswer>, Error> {
    sqlx::query_as!(
        RowlessAnswer,
        r#"select topic, source, id, key, reply::text as "reply!", written_at,
            coalesce((select max(generation) from generations where started_at <= written_at), 1) as "generation!"
        from idempotency_records
        where topic = $1
            and ($2::timestamptz is null or greatest(aged_from, written_at) > $2 and written_at > $2)
            and exists (
                select from json_array_elements(reply -> 'outcomes') as told (outcome) where (outcome ->> 'sequence')::bigint = 0
            )
        order by written_at, source, id"#,
        topic,
        since,
    )
    .fetch_all(db)
    .await
    .map_err(Error::Told)
}
