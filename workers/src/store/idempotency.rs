//! The idempotency_records table: what was answered to each event.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_schemas::Reply;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::Error;

/// An answer given before.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) hash: Vec<u8>,
    pub(super) reply: Reply,
}

/// The records of a batch's events, by (source, id).
pub(super) async fn read(
    connection: &mut PgConnection,
    sources: &[&str],
    ids: &[&str],
) -> Result<HashMap<(String, String), Known>, Error> {
    let rows = sqlx::query!(
        r#"select r.source, r.id, r.hash, r.reply as "reply: Json<Reply>"
           from unnest($1::text[], $2::text[]) as asked (source, id)
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

/// Rows that one sweep deletes at most.
pub const SWEEP_ROWS: i64 = 10_000;

/// Deletes records of events older than `retention`, except those written since `unfinished_since`, the start of the oldest
/// invocation that may still ask again. Sweepers of several processes leave each other alone by an advisory lock. Answers
/// how many were deleted: [`SWEEP_ROWS`] means that there may be more.
pub async fn sweep(pool: &PgPool, retention: Duration, unfinished_since: Option<OffsetDateTime>) -> Result<u64, Error> {
    let mut transaction = pool.begin().await.map_err(Error::Write)?;
    let alone = sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock(hashtext('holdfast.sweep')) as "alone!""#)
        .fetch_one(&mut *transaction)
        .await
        .map_err(Error::Write)?;
    if !alone {
        return Ok(0);
    }
    let swept = sqlx::query!(
        "delete from idempotency_records where ctid = any(array(
             select ctid from idempotency_records
             where aged_from < clock_timestamp() - make_interval(secs => $1)
               and ($2::timestamptz is null or written_at < $2)
             limit $3
         ))",
        retention.as_secs_f64(),
        unfinished_since,
        SWEEP_ROWS,
    )
    .execute(&mut *transaction)
    .await
    .map_err(Error::Write)?;
    transaction.commit().await.map_err(Error::Write)?;
    Ok(swept.rows_affected())
}
