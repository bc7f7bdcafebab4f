//! The idempotency_records table: the answer to each event.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_schemas::{EventId, Reply, RequestHash, Source};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, PgPool};
use time::OffsetDateTime;

use super::Error;
use super::mechanisms::idempotency::Once;
use super::session::{InTime, on_session};

/// An answer given before.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) hash: Vec<u8>,
    pub(super) reply: Reply,
}

/// Source and id, which name an event.
pub(super) type Identity = (String, String);

pub(super) fn identity(source: &Source, id: &EventId) -> Identity {
    (source.as_str().to_owned(), id.as_str().to_owned())
}

/// The records of a batch's events.
pub(super) async fn read(
    connection: &mut PgConnection,
    sources: &[&str],
    ids: &[&str],
) -> Result<HashMap<Identity, Known>, Error> {
    let rows = sqlx::query!(
        r#"select r.source, r.id, r.hash, r.reply as "reply: Json<Reply>"
           from (select unnest($1::text[]) as source, unnest($2::text[]) as id) asked
           join idempotency_records r on r.source = asked.source and r.id = asked.id"#,
        sources as _,
        ids as _,
    )
    .fetch_all(connection)
    .await
    .map_err(Error::Read)?;
    Ok(rows
        .into_iter()
        .map(|row| {
            (
                (row.source, row.id),
                Known {
                    hash: row.hash,
                    reply: row.reply.0,
                },
            )
        })
        .collect())
}

/// Whether all of these events, each with its source, have their answers.
///
/// # Errors
/// The database does not answer.
pub async fn are_known(pool: &PgPool, events: &[(&Source, &EventId)]) -> Result<bool, Error> {
    let sources: Vec<_> = events.iter().map(|(source, _)| source.as_str()).collect();
    let ids: Vec<_> = events.iter().map(|(_, id)| id.as_str()).collect();
    let known = on_session(pool, Error::Read, async |session| read(session, &sources, &ids).await).await?;
    Ok(events
        .iter()
        .all(|(source, id)| known.contains_key(&identity(source, id))))
}

/// The answer to a request that is recorded as a whole; `None` when there is no record yet. A new request of an entity in quarantine
/// is an error.
pub(super) async fn find<R: DeserializeOwned>(pool: &PgPool, request: &Whole<'_>) -> Result<Option<Once<R>>, Error> {
    let (source, id) = (request.source.as_str(), request.id.as_str());
    let known = sqlx::query!(
        r#"select r.hash as "hash?", r.reply::text as reply, q.kind as "quarantined?"
           from (select) asked
           left join idempotency_records r on r.source = $1 and r.id = $2
           left join quarantined_keys q on q.topic = $3 and q.key = $4"#,
        source,
        id,
        request.topic,
        request.key,
    )
    .fetch_one(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)?;
    let (Some(hash), Some(reply)) = (known.hash, known.reply) else {
        return match known.quarantined {
            Some(kind) => Err(Error::Quarantined {
                key: format!("{:?}", request.key),
                kind,
            }),
            None => Ok(None),
        };
    };
    if hash != request.hash.as_bytes() {
        return Ok(Some(Once::Reused));
    }
    let kept: Kept<R> = serde_json::from_str(&reply).map_err(|error| Error::Row {
        table: "idempotency_records",
        key: format!("{source} {id}"),
        what: error.to_string(),
    })?;
    Ok(Some(Once::Repeat(kept.answer)))
}

/// Records a request as a whole, in the transaction that does it. If another call has recorded it meanwhile, the primary key
/// makes this fail.
pub(super) async fn keep(
    connection: &mut PgConnection,
    request: &Whole<'_>,
    answer: impl Serialize,
) -> Result<(), sqlx::Error> {
    let reply = serde_json::to_string(&Kept { outcomes: [], answer });
    sqlx::query!(
        "insert into idempotency_records (source, id, topic, key, hash, reply, aged_from, written_at)
         select $1, $2, $3, $4, $5, $6::text::json, now, now from (select clock_timestamp() as now) clock",
        request.source.as_str(),
        request.id.as_str(),
        request.topic,
        request.key,
        request.hash.as_bytes(),
        reply.map_err(|error| sqlx::Error::Encode(error.into()))?,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// A request with one record, although it concerns several rows.
pub(super) struct Whole<'a> {
    pub(super) source: &'a Source,
    pub(super) id: &'a EventId,
    /// The topic of such requests.
    pub(super) topic: &'static str,
    /// The key of the entity that asks.
    pub(super) key: &'a str,
    pub(super) hash: RequestHash,
}

/// Its reply. Read as a [`Reply`] it has no outcomes: those of the parts have the parts as their cause.
#[derive(Serialize, Deserialize)]
struct Kept<R> {
    outcomes: [(); 0],
    answer: R,
}

/// Rows that one page of a sweep deletes at most.
pub const PAGE_ROWS: i64 = 10_000;

/// A walk over the records, oldest first, that deletes those no repeat can ask for any more.
///
/// A record ages from the later of `aged_from` and `written_at`: as long as a repeat can look young, it meets its record. The
/// walk goes by the index on just that, from where the page before ended: what was deleted leaves its entries in the index until
/// the table is vacuumed, and each page would walk over those of all before it.
#[derive(Debug, Default)]
pub struct Sweep {
    /// The age of the record that was deleted last.
    reached: Option<OffsetDateTime>,
}

impl Sweep {
    /// Deletes the next records that are older than `retention` and than `unfinished_since`, the start of the oldest invocation
    /// that may still ask again. Sweepers of several processes leave each other alone by an advisory lock. Answers how many were
    /// deleted: [`PAGE_ROWS`] means that there may be more.
    ///
    /// # Errors
    /// The database does not answer; nothing was deleted, or the answer was lost.
    pub async fn page(
        &mut self,
        pool: &PgPool,
        retention: Duration,
        unfinished_since: Option<OffsetDateTime>,
    ) -> Result<u64, Error> {
        let page = on_session(pool, Error::Write, async |session| {
            self.delete(session, retention, unfinished_since).await
        });
        let Some(page) = page.await? else { return Ok(0) };
        self.reached = page.reached.or(self.reached);
        Ok(page.deleted)
    }

    /// Deletes a page in one transaction; none while another sweeper is at it.
    async fn delete(
        &self,
        session: &mut PgConnection,
        retention: Duration,
        unfinished_since: Option<OffsetDateTime>,
    ) -> Result<Option<Page>, Error> {
        let mut transaction = session.begin().await.map_err(Error::Write)?;
        // By the index or not at all: a bitmap would be made of all that is due, for each page anew.
        let alone = sqlx::query_scalar!(
            r#"select pg_try_advisory_xact_lock(hashtext('holdfast.sweep')) as "alone!"
               from set_config('enable_bitmapscan', 'off', true) b, set_config('enable_seqscan', 'off', true) s"#
        )
        .fetch_one(&mut *transaction)
        .await
        .map_err(Error::Write)?;
        if !alone {
            return Ok(None);
        }
        let page = sqlx::query_file!(
            "src/store/idempotency/sweep.sql",
            self.reached,
            retention.as_secs_f64(),
            unfinished_since,
            PAGE_ROWS,
        )
        .fetch_one(&mut *transaction)
        .await
        .map_err(Error::Write)?;
        transaction.commit().await.map_err(Error::Write)?;
        Ok(Some(Page {
            deleted: page.deleted.unsigned_abs(),
            reached: page.reached,
        }))
    }
}

/// What a page deleted, and the age of the last record in it.
struct Page {
    deleted: u64,
    reached: Option<OffsetDateTime>,
}
