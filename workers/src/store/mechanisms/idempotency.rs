//! An idempotency key in the same transaction as the work that it stands for: done once, answered every time.
//!
//! **For** everything that may not happen twice and is not safe by itself: adding, appending, several tables.
//!
//! **SQL** A transaction, or a savepoint inside the caller's:
//!
//! ```sql
//! insert into example_keys (key, hash, reply, expires_at) values ($1, $2, 'null', clock_timestamp() + $3) on conflict do nothing;
//! select hash, reply from example_keys where key = $1;     -- when the key was there
//! ...                                                      -- the caller's work
//! update example_keys set reply = $2 where key = $1
//! ```
//!
//! A second caller with the key waits at the `insert` until the first has ended, and then meets the reply.
//!
//! **Which key** One that the *producer* keeps over its own repeats: a key drawn per invocation catches only the engine's.
//!
//! **When a key ends** Only when no attempt can come any more; a clock that started with the work does not know that. So
//! [`Keys::expire`] is called by a durable delayed call that is made once the answer lies in the journal: exact, at the price
//! of a call per key. [`Keys::sweep`] costs one statement for many keys, and leaves each for a grace that is longer than
//! anything is retried. Neither ends a key before the time that it was claimed for, so that the timer of an earlier use
//! never ends a later one.
//!
//! **Errors** Those of the work, with which everything is rolled back, the key too.
//!
//! **Crashes** Before or during: neither key nor work is there, and the repeat does both. After, or with the answer to COMMIT
//! lost: the repeat answers [`Once::Repeat`] with the first reply.
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), holdfast::store::mechanisms::Error> {
//! use holdfast::store::examples::{KEYS, User};
//! use holdfast::store::mechanisms::idempotency::{DAY, Once};
//! use holdfast::store::mechanisms::{Error, update};
//!
//! let request = ("ann".to_owned(), 5);
//! let mut connection = pool.acquire().await.unwrap();
//! let once = KEYS.once(&mut connection, "payment-17", &request, 7 * DAY, async |transaction| {
//!     update::apply(&mut *transaction, &request.0, &User::CREDITS.add(request.1)).await?;
//!     Ok::<_, Error>("thank you".to_owned())
//! });
//! match once.await? {
//!     Once::Fresh(reply) | Once::Repeat(reply) => println!("{reply}"),
//!     Once::Reused => println!("this key stands for another request"),
//! }
//! # Ok(()) }
//! ```

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::types::Json;
use sqlx::{Connection, PgConnection, PgExecutor};

use super::Error;
use super::table::sql;

/// A day without leap seconds.
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// A table of keys: `key text primary key`, `hash bytea`, `reply json`, `expires_at timestamptz`.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    table: &'static str,
}

/// The result of a request with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Once<R> {
    /// Done now.
    Fresh(R),
    /// Done before; this is the first answer.
    Repeat(R),
    /// The key was used for another request; nothing was done.
    Reused,
}

impl Keys {
    pub const fn in_table(table: &'static str) -> Self {
        Self { table }
    }

    /// Does the work unless the key is there already. The key does not end before `keep`, counted from now.
    ///
    /// # Errors
    /// The work's, and the database's. The answer to COMMIT may have been lost: retry.
    pub async fn once<R, E>(
        &self,
        connection: &mut PgConnection,
        key: &str,
        request: &impl Serialize,
        keep: Duration,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<R, E>,
    ) -> Result<Once<R>, E>
    where
        R: Serialize + DeserializeOwned,
        E: From<Error>,
    {
        let hash = hash(request)?;
        let mut transaction = connection.begin().await.map_err(Error::of(self.table))?;
        while !self.claim(&mut transaction, key, &hash, keep).await? {
            if let Some((known, reply)) = self.known(&mut transaction, key).await? {
                return Ok(match known == hash {
                    true => Once::Repeat(serde_json::from_value(reply).map_err(Error::Reply)?),
                    false => Once::Reused,
                });
            }
            // It ended between the two statements: the key is free again.
        }
        let reply = work(&mut transaction).await?;
        self.keep(&mut transaction, key, &reply).await?;
        transaction.commit().await.map_err(Error::of(self.table))?;
        Ok(Once::Fresh(reply))
    }

    /// Ends one key whose time is over, and answers whether it was there; a request that comes with it from now on is a new
    /// one. May be repeated.
    pub async fn expire(&self, executor: impl PgExecutor<'_>, key: &str) -> Result<bool, Error> {
        let text = format!(
            "delete from {} where key = $1 and expires_at <= clock_timestamp()",
            self.table
        );
        let expired = sqlx::query(sql(text)).bind(key).execute(executor).await;
        Ok(expired.map_err(Error::of(self.table))?.rows_affected() > 0)
    }

    /// Ends at most `limit` keys whose time has been over for `grace`, and answers how many: `limit` means that there may be
    /// more. Sweepers leave each other's keys alone.
    pub async fn sweep(&self, executor: impl PgExecutor<'_>, grace: Duration, limit: i64) -> Result<u64, Error> {
        let table = self.table;
        let text = format!(
            "delete from {table} where key = any(array(
                 select key from {table} where expires_at <= statement_timestamp() - make_interval(secs => $1)
                 order by expires_at limit $2 for update skip locked))"
        );
        let query = sqlx::query(sql(text)).bind(grace.as_secs_f64()).bind(limit);
        Ok(query.execute(executor).await.map_err(Error::of(table))?.rows_affected())
    }

    async fn claim(
        &self,
        connection: &mut PgConnection,
        key: &str,
        hash: &[u8],
        keep: Duration,
    ) -> Result<bool, Error> {
        let text = format!(
            "insert into {} (key, hash, reply, expires_at)
             values ($1, $2, 'null', clock_timestamp() + make_interval(secs => $3)) on conflict do nothing",
            self.table
        );
        let query = sqlx::query(sql(text)).bind(key).bind(hash).bind(keep.as_secs_f64());
        let inserted = query.execute(connection).await.map_err(Error::of(self.table))?;
        Ok(inserted.rows_affected() == 1)
    }

    async fn known(
        &self,
        connection: &mut PgConnection,
        key: &str,
    ) -> Result<Option<(Vec<u8>, serde_json::Value)>, Error> {
        let text = format!("select hash, reply from {} where key = $1", self.table);
        let query = sqlx::query_as(sql(text)).bind(key).fetch_optional(connection);
        let known: Option<(Vec<u8>, Json<serde_json::Value>)> = query.await.map_err(Error::of(self.table))?;
        Ok(known.map(|(hash, reply)| (hash, reply.0)))
    }

    async fn keep(&self, connection: &mut PgConnection, key: &str, reply: &impl Serialize) -> Result<(), Error> {
        let reply = serde_json::to_string(reply).map_err(Error::Reply)?;
        let text = format!("update {} set reply = $2::json where key = $1", self.table);
        let query = sqlx::query(sql(text)).bind(key).bind(reply).execute(connection);
        query.await.map(drop).map_err(Error::of(self.table))
    }
}

/// The hash of the request's JSON with its fields in order of their names.
fn hash(request: &impl Serialize) -> Result<Vec<u8>, Error> {
    let request = serde_json::to_value(request).map_err(Error::Reply)?;
    Ok(Sha256::digest(request.to_string()).to_vec())
}
