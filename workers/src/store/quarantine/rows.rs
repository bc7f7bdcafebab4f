//! The tables quarantined_keys, parked_events and quarantine_log.

use holdfast_schemas::Key;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::{Break, topic};
use crate::domain::KeyOf;
use crate::store::Error;
use crate::store::commit::{Stored, Unit, Work};
use crate::store::session::InTime;

/// What a step of a replay came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Replayed {
    /// There is more to replay.
    More,
    /// Nothing of the key is parked any more, or no operator wants it replayed.
    Ended,
    /// An event breaks again: it and what follows it stay parked.
    Broke,
}

/// An event in quarantine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParkedEvent {
    pub id: i64,
    /// In structured mode, with its origin if it has one.
    pub event: String,
    pub has_origin: bool,
}

/// What the quarantine of one topic holds.
#[derive(Debug)]
pub(super) struct ParkedCount {
    pub(super) topic: String,
    pub(super) keys: i64,
    pub(super) events: i64,
    /// Seconds since its oldest key broke.
    pub(super) oldest_seconds: f64,
}

/// Counts keys and events, by topic; topics without any are left out.
pub(super) async fn counts(pool: &PgPool) -> Result<Vec<ParkedCount>, Error> {
    sqlx::query_as!(
        ParkedCount,
        r#"select q.topic, count(*) as "keys!",
                  (select count(*) from parked_events p where p.topic = q.topic) as "events!",
                  extract(epoch from clock_timestamp() - min(q.since))::float8 as "oldest_seconds!"
           from quarantined_keys q
           group by q.topic"#
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// Has what a constraint would leave to the end of the transaction checked with each statement.
pub(super) async fn check_at_once(connection: &mut PgConnection) -> Result<(), Error> {
    let checked = sqlx::query!("set constraints all immediate").execute(connection);
    checked.await.map(drop).map_err(Error::Write)
}

/// How many keys broke within the last minute and still wait.
pub(super) async fn count_new(connection: &mut PgConnection) -> Result<i64, Error> {
    sqlx::query_scalar!(
        r#"select count(*) as "new!" from quarantined_keys where since > clock_timestamp() - interval '1 minute'"#
    )
    .fetch_one(connection)
    .await
    .map_err(Error::Read)
}

/// As [`count_new`]; nobody else sets a flag until the transaction has ended.
pub(super) async fn count_alone(connection: &mut PgConnection) -> Result<i64, Error> {
    let alone = sqlx::query!("select pg_advisory_xact_lock(hashtext('holdfast.quarantine'))");
    alone.fetch_one(&mut *connection).await.map_err(Error::Write)?;
    count_new(connection).await
}

/// Sets the key's flag; false if it is set.
pub(super) async fn flag<E: Stored>(
    connection: &mut PgConnection,
    key: &KeyOf<E>,
    found: &Break,
) -> Result<bool, Error> {
    let set = sqlx::query!(
        "insert into quarantined_keys (topic, key, cause, kind, error) values ($1, $2, $3, $4, $5) on conflict do nothing",
        topic::<E>(),
        key.as_str(),
        found.cause,
        found.kind,
        found.error,
    );
    let set = set.execute(connection).await.map_err(Error::Write)?;
    Ok(set.rows_affected() > 0)
}

/// Locks the key's flag for the rest of the transaction, and reads the clock; none if it is not set.
pub(super) async fn lock_flag<E: Stored>(
    connection: &mut PgConnection,
    key: &KeyOf<E>,
) -> Result<Option<OffsetDateTime>, Error> {
    sqlx::query_scalar!(
        r#"select clock_timestamp() as "now!" from quarantined_keys where topic = $1 and key = $2 for update"#,
        topic::<E>(),
        key.as_str(),
    )
    .fetch_optional(connection)
    .await
    .map_err(Error::Write)
}

/// Parks the unit's events in their order, but for those that are parked or were decided before.
pub(super) async fn park<E: Stored>(connection: &mut PgConnection, unit: &Unit<E>) -> Result<(), Error> {
    let events: Vec<_> = unit
        .work
        .iter()
        .filter_map(|work| match work {
            Work::Event(event) => Some(event),
            _ => None,
        })
        .collect();
    let sources: Vec<_> = events.iter().map(|event| event.source.as_str()).collect();
    let ids: Vec<_> = events.iter().map(|event| event.id.as_str()).collect();
    let hashes: Vec<_> = events.iter().map(|event| &event.hash().as_bytes()[..]).collect();
    let types: Vec<_> = events.iter().map(|event| event.event_type()).collect();
    let values: Vec<_> = events.iter().map(|event| event.to_json()).collect();
    let origins = || events.iter().map(|event| event.origin.as_ref());
    let partitions: Vec<_> = origins().map(|origin| origin.map(|origin| origin.partition)).collect();
    let offsets: Vec<_> = origins().map(|origin| origin.map(|origin| origin.offset)).collect();
    sqlx::query!(
        r#"insert into parked_events (topic, key, source, event, hash, type, value, partition, "offset")
           select $1, $2, e.source, e.event, e.hash, e.type, e.value, e.partition, e.at
           from (select unnest($3::text[]) as source, unnest($4::text[]) as event, unnest($5::bytea[]) as hash,
                        unnest($6::text[]) as type, unnest($7::bytea[]) as value, unnest($8::int[]) as partition,
                        unnest($9::bigint[]) as at, generate_subscripts($3::text[], 1) as place) e
           where not exists (select from idempotency_records r
                             where r.source = e.source and r.id = e.event and r.hash = e.hash)
           order by e.place
           on conflict on constraint parked_events_identity do nothing"#,
        topic::<E>(),
        unit.key.as_str(),
        &sources as _,
        &ids as _,
        &hashes as _,
        &types as _,
        &values,
        &partitions as _,
        &offsets as _,
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(Error::Write)
}

/// Notes what became of a key, which Holdfast has done by itself.
pub(super) async fn log<E: Stored>(
    connection: &mut PgConnection,
    key: &KeyOf<E>,
    what: &str,
    events: usize,
    why: Option<&str>,
) -> Result<(), Error> {
    sqlx::query!(
        "insert into quarantine_log (topic, key, what, events, why) values ($1, $2, $3, $4, $5)",
        topic::<E>(),
        key.as_str(),
        what,
        i64::try_from(events).unwrap_or(i64::MAX),
        why,
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(Error::Write)
}

/// The first parked events of a key that an operator wants replayed, locking its flag; none when nobody does.
pub(super) async fn asked<E: Stored>(
    connection: &mut PgConnection,
    key: &KeyOf<E>,
    most: i64,
) -> Result<Vec<ParkedEvent>, Error> {
    sqlx::query_as!(
        ParkedEvent,
        r#"with flag as materialized (
               select topic, key from quarantined_keys where topic = $1 and key = $2 and replay_asked is not null for update
           )
           select p.id, convert_from(p.value, 'UTF8') as "event!", p."offset" is not null as "has_origin!"
           from flag join parked_events p on p.topic = flag.topic and p.key = flag.key
           order by p.id
           limit $3"#,
        topic::<E>(),
        key.as_str(),
        most,
    )
    .fetch_all(connection)
    .await
    .map_err(Error::Write)
}

/// Takes events out of quarantine; the flag goes with the last one, and with `broke` the replay ends.
pub(super) async fn take<E: Stored>(
    connection: &mut PgConnection,
    key: &KeyOf<E>,
    ids: &[i64],
    broke: Option<&Break>,
) -> Result<Replayed, Error> {
    if lock_flag::<E>(connection, key).await?.is_none() {
        return Ok(Replayed::Ended);
    }
    let taken = sqlx::query!("delete from parked_events where id = any($1)", ids);
    let taken = taken
        .execute(&mut *connection)
        .await
        .map_err(Error::Write)?
        .rows_affected();
    if taken > 0 {
        log::<E>(connection, key, "replayed", taken as usize, None).await?;
    }
    if let Some(Break { cause, kind, error, .. }) = broke {
        let stopped = sqlx::query!(
            "update quarantined_keys set cause = $3, kind = $4, error = $5, replay_asked = null where topic = $1 and key = $2",
            topic::<E>(),
            key.as_str(),
            cause,
            kind,
            error,
        );
        stopped.execute(&mut *connection).await.map_err(Error::Write)?;
        log::<E>(connection, key, "broke_again", 1, Some(kind)).await?;
        return Ok(Replayed::Broke);
    }
    let freed = sqlx::query!(
        "delete from quarantined_keys q
         where topic = $1 and key = $2 and not exists (select from parked_events p where p.topic = q.topic and p.key = q.key)",
        topic::<E>(),
        key.as_str(),
    );
    match freed.execute(connection).await.map_err(Error::Write)?.rows_affected() {
        0 => Ok(Replayed::More),
        _ => Ok(Replayed::Ended),
    }
}

/// Why a key is in quarantine, if it is.
pub(super) async fn kind_of<E: Stored>(pool: &PgPool, key: &KeyOf<E>) -> Result<Option<String>, Error> {
    sqlx::query_scalar!(
        "select kind from quarantined_keys where topic = $1 and key = $2",
        topic::<E>(),
        key.as_str(),
    )
    .fetch_optional(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}
