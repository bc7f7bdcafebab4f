//! What an operator sees of the quarantine, and has done with it.

use std::collections::BTreeMap;

use holdfast_schemas::{DeadLetterReason, Origin, Refusal, topics};
use serde::Serialize;
use sqlx::{Connection, PgConnection, PgPool};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::store::commit::letter;
use crate::store::operator_log::Operator;
use crate::store::session::InTime;
use crate::store::{Error, on_session};

/// Which keys an operator means. Those that fit all that is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyChoice<'a> {
    /// The public topic of the key's events.
    pub topic: Option<&'a str>,
    pub key: Option<&'a str>,
    pub cause: Option<&'a str>,
    /// A part of the kind.
    pub kind: Option<&'a str>,
}

/// A key in quarantine.
#[derive(Clone, Debug, Serialize)]
pub struct QuarantinedKey {
    pub topic: String,
    pub key: String,
    pub cause: String,
    pub kind: String,
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// How many events are parked.
    pub parked: i64,
    /// The type of the first of them, which breaks.
    pub first_type: Option<String>,
    /// A replay is asked for and has not ended.
    pub replays: bool,
}

/// A parked event, without its data unless they are asked for.
#[derive(Clone, Debug, Serialize)]
pub struct ListedEvent {
    pub id: i64,
    #[serde(rename = "type")]
    pub event_type: String,
    pub source: String,
    pub event: String,
    pub partition: Option<i32>,
    pub offset: Option<i64>,
    #[serde(with = "time::serde::rfc3339")]
    pub parked_at: OffsetDateTime,
    pub bytes: i64,
    /// The whole event. It may hold personal data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
}

/// What was done with a key.
#[derive(Clone, Debug, Serialize)]
pub struct QuarantineStep {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub what: String,
    pub events: i64,
    pub who: Option<String>,
    pub why: Option<String>,
}

/// How much of a key's parked events to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Portion {
    /// The first, which breaks.
    Breaker,
    Everything,
}

/// The keys in quarantine that are meant, those that broke first at the head.
///
/// # Errors
/// The database does not answer.
pub async fn keys(pool: &PgPool, choice: KeyChoice<'_>) -> Result<Vec<QuarantinedKey>, Error> {
    sqlx::query_as!(
        QuarantinedKey,
        r#"select q.topic, q.key, q.cause, q.kind, q.since, q.replay_asked is not null as "replays!",
                  (select count(*) from parked_events p where p.topic = q.topic and p.key = q.key) as "parked!",
                  (select p.type from parked_events p where p.topic = q.topic and p.key = q.key order by p.id limit 1)
                      as first_type
           from quarantined_keys q
           where ($1::text is null or q.topic = $1) and ($2::text is null or q.key = $2)
             and ($3::text is null or q.cause = $3) and ($4::text is null or strpos(lower(q.kind), lower($4)) > 0)
           order by q.since, q.topic, q.key"#,
        choice.topic,
        choice.key,
        choice.cause,
        choice.kind,
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// The error that a key's flag was set for. It may quote a value.
///
/// # Errors
/// The database does not answer.
pub async fn error_of(pool: &PgPool, topic: &str, key: &str) -> Result<Option<String>, Error> {
    sqlx::query_scalar!(
        "select error from quarantined_keys where topic = $1 and key = $2",
        topic,
        key
    )
    .fetch_optional(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// The first parked events of a key, in order.
///
/// # Errors
/// The database does not answer.
pub async fn events(
    pool: &PgPool,
    topic: &str,
    key: &str,
    most: i64,
    with_payload: bool,
) -> Result<Vec<ListedEvent>, Error> {
    sqlx::query_as!(
        ListedEvent,
        r#"select id, type as event_type, source, event, partition, "offset", parked_at,
                  octet_length(value)::bigint as "bytes!",
                  case when $4 then convert_from(value, 'UTF8') end as payload
           from parked_events where topic = $1 and key = $2
           order by id limit $3"#,
        topic,
        key,
        most,
        with_payload,
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// What was done with a key, oldest first.
///
/// # Errors
/// The database does not answer.
pub async fn steps(pool: &PgPool, topic: &str, key: &str) -> Result<Vec<QuarantineStep>, Error> {
    sqlx::query_as!(
        QuarantineStep,
        "select at, what, events, who, why from quarantine_log where topic = $1 and key = $2 order by id",
        topic,
        key,
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// Asks for the replay of a key's parked events; its object does it once it is called. False if the key is in no quarantine.
///
/// # Errors
/// The database does not answer.
pub async fn ask_replay(pool: &PgPool, topic: &str, key: &str, operator: Operator<'_>) -> Result<bool, Error> {
    let asked = sqlx::query!(
        "with asked as (
             update quarantined_keys set replay_asked = clock_timestamp() where topic = $1 and key = $2 returning 1
         )
         insert into quarantine_log (topic, key, what, events, who, why)
         select $1, $2, 'replay_asked', (select count(*) from parked_events where topic = $1 and key = $2), $3, $4 from asked",
        topic,
        key,
        operator.who,
        operator.why,
    );
    let asked = asked.execute(pool).in_time(pool).await.map_err(Error::Write)?;
    Ok(asked.rows_affected() > 0)
}

/// Makes dead letters of a key's parked events; the flag goes with the last. How many there were; none if the key is in no
/// quarantine, or is being replayed.
///
/// # Errors
/// The database does not answer.
pub async fn drop_parked(
    pool: &PgPool,
    topic: &str,
    key: &str,
    portion: Portion,
    operator: Operator<'_>,
) -> Result<Option<u64>, Error> {
    on_session(pool, Error::Write, async |session| {
        let mut transaction = session.begin().await.map_err(Error::Write)?;
        let dropped = drop_within(&mut transaction, topic, key, portion, operator).await?;
        transaction.commit().await.map_err(Error::Write)?;
        Ok(dropped)
    })
    .await
}

async fn drop_within(
    connection: &mut PgConnection,
    topic: &str,
    key: &str,
    portion: Portion,
    operator: Operator<'_>,
) -> Result<Option<u64>, Error> {
    let flag = sqlx::query!(
        r#"select kind, replay_asked is not null as "replays!" from quarantined_keys where topic = $1 and key = $2 for update"#,
        topic,
        key,
    );
    let flag = flag.fetch_optional(&mut *connection).await.map_err(Error::Write)?;
    let Some(flag) = flag.filter(|flag| !flag.replays) else {
        return Ok(None);
    };
    let most = match portion {
        Portion::Breaker => Some(1),
        Portion::Everything => None,
    };
    let parked = sqlx::query!(
        r#"delete from parked_events
           where id = any(array(select id from parked_events where topic = $1 and key = $2 order by id limit $3))
           returning id, value, partition, "offset""#,
        topic,
        key,
        most,
    );
    let mut parked = parked.fetch_all(&mut *connection).await.map_err(Error::Write)?;
    parked.sort_by_key(|row| row.id);
    let mut letters = Letters::default();
    for row in &parked {
        let origin = row.partition.zip(row.offset).map(|(partition, offset)| Origin {
            topic: topic.to_owned(),
            partition,
            offset,
            time: origin_time(&row.value),
        });
        let detail = format!(
            "an operator dropped it out of quarantine ({}): {}",
            flag.kind, operator.why
        );
        let refusal = Refusal::new(DeadLetterReason::Quarantined, detail);
        letters.add(key, origin.as_ref(), refusal, row.value.clone());
    }
    letters.write(connection, key).await?;
    let dropped = parked.len() as u64;
    let freed = sqlx::query!(
        "with freed as (
             delete from quarantined_keys q
             where topic = $1 and key = $2
               and not exists (select from parked_events p where p.topic = q.topic and p.key = q.key)
         )
         insert into quarantine_log (topic, key, what, events, who, why) values ($1, $2, 'dropped', $3, $4, $5)",
        topic,
        key,
        dropped as i64,
        operator.who,
        operator.why,
    );
    freed.execute(connection).await.map_err(Error::Write)?;
    Ok(Some(dropped))
}

/// The broker's time in a parked event.
fn origin_time(value: &[u8]) -> OffsetDateTime {
    let event: BTreeMap<String, serde_json::Value> = serde_json::from_slice(value).unwrap_or_default();
    let time = event.get("origintime").and_then(serde_json::Value::as_str);
    let time = time.and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
    time.unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Dead letters for the outbox.
#[derive(Default)]
struct Letters {
    messages: Vec<Uuid>,
    headers: Vec<String>,
    values: Vec<Vec<u8>>,
}

impl Letters {
    fn add(&mut self, key: &str, origin: Option<&Origin>, refusal: Refusal, value: Vec<u8>) {
        let message = letter(key, origin, refusal, value);
        self.messages.push(message.id);
        self.headers.push(message.headers);
        self.values.push(message.value);
    }

    async fn write(self, connection: &mut PgConnection, key: &str) -> Result<(), Error> {
        let written = sqlx::query!(
            r#"with queued as (
                   insert into outbox (topic, key, message, headers, value, written_at)
                   select $1, $2, m.message, m.headers::json, m.value, clock_timestamp()
                   from unnest($3::uuid[], $4::text[], $5::bytea[]) with ordinality as m (message, headers, value, place)
                   order by m.place
                   returning 1
               )
               select check_rows('outbox', cardinality($3::uuid[]), (select count(*) from queued))
                   and pg_notify('outbox', '') is not null as "written!""#,
            topics::DEAD_LETTERS,
            key,
            &self.messages,
            &self.headers,
            &self.values,
        );
        written.fetch_one(connection).await.map(drop).map_err(Error::Write)
    }
}
