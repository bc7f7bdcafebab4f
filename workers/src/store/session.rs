//! Sessions with Postgres: what each carries, what is checked before one is used, and how long its answers are waited for.
//!
//! A server that is lost says nothing, and neither does a firewall that has forgotten a connection. So every wait here ends: a
//! statement's a little after the server would have ended the statement itself, a look at an idle session's much sooner. What has
//! died is thrown away, with all sessions that are older than the silence, and a new one takes its place.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool, Postgres, Row};
use tokio::time::{Instant, timeout};

use super::{Error, LONGEST_PAUSE, pauses};
use crate::config;
use crate::error;
use crate::metrics::Metrics;
use crate::postgres::{self, SERVER_KEEPALIVE, silent};
use crate::transience::{self, Fault};

/// How much longer than the server lets a statement run its answer is waited for.
const MARGIN: Duration = Duration::from_secs(2);

/// How long an idle session may take to say that it is there.
const LOOK: Duration = Duration::from_secs(2);

/// A pool whose sessions carry our settings. Waits for the database for ever, with capped back-off, and says so.
///
/// # Errors
/// As [`await_answer`], and a URL that cannot be read.
pub async fn connect(config: &config::Database, metrics: &Metrics) -> Result<PgPool, Error> {
    let pool = pool(&config.url, config)?;
    await_answer(&pool, metrics).await?;
    Ok(pool)
}

/// As [`connect`], for a command whose caller waits: it gives up after `patience`, and the last try.
///
/// # Errors
/// [`Error::Away`], and as [`connect`].
pub async fn connect_within(patience: Duration, config: &config::Database, metrics: &Metrics) -> Result<PgPool, Error> {
    let pool = pool(&config.url, config)?;
    answers(&pool, metrics, Some(Instant::now() + patience)).await?;
    Ok(pool)
}

/// A pool of sessions that carry our settings; none is opened yet.
///
/// # Errors
/// Only a URL that cannot be read.
pub fn pool(url: &SecretString, config: &config::Database) -> Result<PgPool, Error> {
    let options = options(url, config)?;
    let required: Arc<[_]> = sent(&options).into();
    let silence = Silence::default();
    let release = (silence.clone(), config.statement_timeout + MARGIN);
    Ok(PgPoolOptions::new()
        .max_connections(config.pool_size)
        .acquire_timeout(config.acquire_timeout)
        .test_before_acquire(false)
        .after_connect(move |session, _| {
            let required = required.clone();
            Box::pin(async move {
                check_settings(session, &required).await?;
                check_writable(session).await
            })
        })
        .before_acquire(move |session, meta| {
            let silence = silence.clone();
            Box::pin(async move {
                if silence.is_younger_than(meta.age) {
                    return Err(silent(Duration::ZERO));
                }
                look(session, &silence).await
            })
        })
        .after_release(move |session, _| {
            let (silence, limit) = release.clone();
            // A statement that nobody waits for any more may still be under way.
            Box::pin(async move { silence.watch(limit, session.ping()).await.map(|()| true) })
        })
        .connect_lazy_with(options))
}

/// What every session is opened with.
pub(super) fn options(url: &SecretString, config: &config::Database) -> Result<PgConnectOptions, Error> {
    let options: PgConnectOptions = url.expose_secret().parse().map_err(Error::Url)?;
    let options = options.application_name("holdfast");
    // A parameter more that a pooler would refuse; what is read is binary.
    let options = options.extra_float_digits(None::<i8>);
    Ok(options.options(required(config)).options(SERVER_KEEPALIVE))
}

/// What our promises rest on, and what a pooler on the way may drop.
fn required(config: &config::Database) -> [(&'static str, String); 7] {
    let milliseconds = |duration: Duration| duration.as_millis().to_string();
    [
        ("statement_timeout", milliseconds(config.statement_timeout)),
        ("lock_timeout", milliseconds(config.lock_timeout)),
        (
            "idle_in_transaction_session_timeout",
            milliseconds(config.idle_in_transaction_timeout),
        ),
        ("synchronous_commit", "on".to_owned()),
        // A prepared transaction has left its session when the driver ends it there: no news.
        ("client_min_messages", "error".to_owned()),
        // Our statements take arrays: one plan suits every length, and costs no planning. It is often made while the tables
        // are still empty, so it must go by index to stay right when they have grown.
        ("plan_cache_mode", "force_generic_plan".to_owned()),
        ("enable_seqscan", "off".to_owned()),
    ]
}

/// Waits for the database for ever, with capped back-off, and says so.
///
/// # Errors
/// [`Error::Unfit`]: waiting does not help, a setting or the database has to be changed.
pub async fn await_answer(pool: &PgPool, metrics: &Metrics) -> Result<(), Error> {
    answers(pool, metrics, None).await
}

async fn answers(pool: &PgPool, metrics: &Metrics, until: Option<Instant>) -> Result<(), Error> {
    let address = address(pool);
    let mut pauses = pauses();
    loop {
        let Err(error) = reach(pool).await else {
            return Ok(());
        };
        if transience::sql(&error) == Fault::Setting {
            return Err(Error::Unfit { address, source: error });
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Err(Error::Away { address, source: error });
        }
        metrics.retries.with_label_values(&["connect"]).inc();
        tracing::warn!(%address, error = error::chain(&error), "waiting for Postgres");
        tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
    }
}

/// The address of the pool's database, without user and password.
pub fn address(pool: &PgPool) -> String {
    postgres::address(&pool.connect_options())
}

/// Opens a session beside the pool, whose own tries hide why they fail, and checks it.
///
/// # Errors
/// Why no session can be had, or what is wrong with it.
pub async fn reach(pool: &PgPool) -> Result<(), sqlx::Error> {
    let limit = pool.options().get_acquire_timeout();
    let attempt = async {
        let options = pool.connect_options();
        let mut session = PgConnection::connect_with(&options).await.map_err(refused_by_pooler)?;
        check_alone(&mut session, &options).await?;
        check_settings(&mut session, &sent(&pool.connect_options())).await?;
        check_place(&mut session).await?;
        check_writable(&mut session).await?;
        session.close().await
    };
    timeout(limit, attempt).await.unwrap_or_else(|_| Err(silent(limit)))
}

/// PgBouncer's answer to a parameter that it does not know. It has the code of a server that is away.
fn refused_by_pooler(error: sqlx::Error) -> sqlx::Error {
    let message = error.as_database_error().map(|error| error.message());
    match message.filter(|message| message.contains("unsupported startup parameter")) {
        Some(message) => unfit(format!(
            "a pooler on the way does not take what a session is opened with ({message}): connect to the server itself; or give the \
             role these settings (deploy/postgres/roles.sql), and PgBouncer `ignore_startup_parameters = options` with \
             `pool_mode = session`"
        )),
        None => error,
    }
}

/// Whether another session has a server process of its own: behind a pooler in transaction mode the locks, prepared statements and
/// notifications of one session would be everybody's. Asked without a prepared statement, which may fail there already.
async fn check_alone(session: &mut PgConnection, options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    let mut other = PgConnection::connect_with(options).await?;
    let before = server_process(session).await?;
    let (others, after) = (server_process(&mut other).await?, server_process(session).await?);
    other.close().await?;
    if before == after && before != others {
        return Ok(());
    }
    Err(unfit(
        "a pooler on the way shares one server process among sessions (pool_mode = transaction or statement), but the advisory \
         locks, prepared statements and notifications of Holdfast belong to a session: set pool_mode = session for it, or connect to \
         the server itself"
            .to_owned(),
    ))
}

async fn server_process(session: &mut PgConnection) -> Result<i32, sqlx::Error> {
    sqlx::raw_sql("select pg_backend_pid()")
        .fetch_one(session)
        .await?
        .try_get(0)
}

/// What the options say that a session should have, as far as it is ours.
fn sent(options: &PgConnectOptions) -> Vec<(String, String)> {
    let options = options.get_options().unwrap_or_default();
    let pairs = options.split_whitespace().filter_map(|word| word.split_once('='));
    let ours = pairs.filter(|(name, _)| !name.starts_with("tcp_"));
    ours.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Whether every setting has taken hold.
async fn check_settings(session: &mut PgConnection, required: &[(String, String)]) -> Result<(), sqlx::Error> {
    let settings = "select name, setting from pg_settings
         where name in ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'synchronous_commit',
                        'client_min_messages', 'plan_cache_mode', 'enable_seqscan')";
    let found: Vec<(String, String)> = sqlx::query_as(settings).fetch_all(session).await?;
    match differing(&found, required) {
        Some(what) => Err(unfit(what)),
        None => Ok(()),
    }
}

/// The first of our settings that is not as it was sent. What others added to the URL is theirs.
fn differing(found: &[(String, String)], required: &[(String, String)]) -> Option<String> {
    found.iter().find_map(|(name, is)| {
        let (_, wanted) = required.iter().rev().find(|(required, _)| required == name)?;
        (is != wanted).then(|| {
            format!(
                "the session's {name} is {is} and not {wanted}: something on the way drops what a session is opened with; \
                 connect to the server itself, have the pooler pass `options` on, or give the role the setting \
                 (alter role ... set {name} = '{wanted}')"
            )
        })
    })
}

/// Whether text in any script can be stored, and the tables are where this session works.
async fn check_place(session: &mut PgConnection) -> Result<(), sqlx::Error> {
    let (encoding, current, holding): (String, Option<String>, Vec<String>) = sqlx::query_as(
        "select current_setting('server_encoding'), current_schema()::text,
                array(select n.nspname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
                      where c.relname = 'idempotency_records' and c.relkind in ('r', 'p')
                        and n.nspname = any (current_schemas(false)))",
    )
    .fetch_one(session)
    .await?;
    if encoding != "UTF8" {
        return Err(unfit(format!(
            "the database's encoding is {encoding} and cannot hold every text: make it with encoding 'UTF8' template template0"
        )));
    }
    let Some(current) = current else {
        return Err(unfit(
            "the search_path names no schema that is there: create one, or set the role's search_path".to_owned(),
        ));
    };
    if holding.iter().any(|schema| *schema != current) {
        return Err(unfit(format!(
            "this session works in the schema {current:?}, but tables of ours are in {holding:?}: give the role the search_path \
             of the schema whose tables are right (alter role ... set search_path = ...), or drop the other schema"
        )));
    }
    Ok(())
}

/// A standby, or a server that was told to be read-only, is waited for: another one may answer to the same name soon.
async fn check_writable(session: &mut PgConnection) -> Result<(), sqlx::Error> {
    if is_read_only(session).await? {
        return Err(sqlx::Error::Io(std::io::Error::other(
            "the server can only be read (a standby, or default_transaction_read_only): waiting for one that can be written",
        )));
    }
    Ok(())
}

async fn is_read_only(session: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select current_setting('transaction_read_only')::bool")
        .fetch_one(session)
        .await
}

/// Whether an idle session is there and can write: one from before a failover cannot, for as long as it lives.
async fn look(session: &mut PgConnection, silence: &Silence) -> Result<bool, sqlx::Error> {
    let read_only = silence.watch(LOOK, is_read_only(session)).await?;
    Ok(!read_only)
}

fn unfit(what: String) -> sqlx::Error {
    sqlx::Error::Configuration(what.into())
}

/// When a session of a pool was last found dead. Those that are older have gone the same way.
#[derive(Clone, Default)]
struct Silence(Arc<Mutex<Option<Instant>>>);

impl Silence {
    async fn watch<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        timeout(limit, answer).await.unwrap_or_else(|_elapsed| {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            Err(silent(limit))
        })
    }

    fn is_younger_than(&self, age: Duration) -> bool {
        let noticed = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noticed.is_some_and(|noticed| noticed.elapsed() < age)
    }
}

/// How long an answer on a session of this pool is waited for: as long as the pool's settings let a statement run, and a margin. For
/// ever when they set no limit.
pub(super) fn patience(pool: &PgPool) -> Duration {
    let options = pool.connect_options();
    let words = options.get_options().unwrap_or_default().split_whitespace();
    let limits = words.filter_map(|word| word.strip_prefix("statement_timeout="));
    let limit = limits.filter_map(|limit| limit.parse().ok()).next_back();
    limit.map_or(FOR_EVER, |limit| Duration::from_millis(limit) + MARGIN)
}

/// As good as.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Waits for this at most `limit`. What it did is not known then.
pub(super) async fn within<T, E>(
    limit: Duration,
    failed: impl FnOnce(sqlx::Error) -> E,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_elapsed| Err(failed(silent(limit))))
}

/// One statement on any session of the pool, waited for no longer than it may take.
pub(super) async fn in_time<T>(
    pool: &PgPool,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let limit = patience(pool).saturating_add(pool.options().get_acquire_timeout());
    within(limit, |error| error, statement).await
}

/// As [`in_time`], written behind the statement.
pub(super) trait InTime<T>: Future<Output = Result<T, sqlx::Error>> + Sized {
    fn in_time(self, pool: &PgPool) -> impl Future<Output = Result<T, sqlx::Error>> {
        in_time(pool, self)
    }
}

impl<T, F: Future<Output = Result<T, sqlx::Error>>> InTime<T> for F {}

/// Statements on one session of the pool, waited for no longer than one may take. A session that has died or is of no more use is
/// thrown away.
pub(super) async fn on_session<T>(
    pool: &PgPool,
    failed: impl Fn(sqlx::Error) -> Error,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
) -> Result<T, Error> {
    KeptSession::new(pool.clone()).ask(failed, work).await
}

/// For how long a session that has answered is taken to be there still. The pool looks at one before it gives it out, and asks it once
/// more when it comes back: two round trips each time, which who asks all the time can do without.
pub(super) const KEPT: Duration = Duration::from_millis(200);

/// A session of the pool that its owner keeps from one statement to the next, as long as they follow each other within [`KEPT`].
pub(super) struct KeptSession {
    pool: PgPool,
    /// The session, and when it answered last.
    session: Option<(PoolConnection<Postgres>, Instant)>,
}

impl KeptSession {
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool, session: None }
    }

    /// As [`on_session`].
    pub(super) async fn ask<T>(
        &mut self,
        failed: impl Fn(sqlx::Error) -> Error,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut session = match self.session.take() {
            Some((session, answered)) if answered.elapsed() < KEPT => session,
            // The older one goes back first: the pool may have no other.
            older => {
                drop(older);
                self.pool.acquire().await.map_err(&failed)?
            }
        };
        let limit = patience(&self.pool);
        let Ok(done) = timeout(limit, work(&mut session)).await else {
            drop(session.detach());
            return Err(failed(silent(limit)));
        };
        match done.as_ref().map_err(Error::fault) {
            Err(Fault::Session) => drop(session.detach()),
            // The server tells of the failure before it lets go of the rows: another session would find them locked.
            Ok(_) | Err(Fault::Content) => self.session = Some((session, Instant::now())),
            // Whatever it left open the pool ends.
            Err(_) => drop(session),
        }
        done
    }

    /// Gives the session back to the pool.
    pub(super) fn give_back(&mut self) {
        self.session = None;
    }
}

/// Asks the database for any answer.
///
/// # Errors
/// It does not answer.
pub async fn ping(pool: &PgPool) -> Result<(), Error> {
    in_time(pool, sqlx::query_scalar!("select 1").fetch_one(pool))
        .await
        .map(drop)
        .map_err(Error::Read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn a_setting_that_did_not_take_hold_is_named() {
        let sent = pairs(&[("statement_timeout", "5"), ("statement_timeout", "30000")]);
        assert_eq!(differing(&pairs(&[("statement_timeout", "30000")]), &sent), None);
        let what = differing(&pairs(&[("statement_timeout", "0")]), &sent).unwrap();
        assert!(
            what.starts_with("the session's statement_timeout is 0 and not 30000"),
            "{what}"
        );
    }

    #[test]
    fn the_limit_of_a_statement_is_read_from_the_pools_own_settings() {
        let pool = |options: &str| {
            let options: PgConnectOptions = format!("postgres://localhost/x{options}").parse().unwrap();
            PgPoolOptions::new().connect_lazy_with(options)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _entered = runtime.enter();
        assert_eq!(patience(&pool("")), FOR_EVER);
        let limited = patience(&pool("?options=-c%20statement_timeout=9%20-c%20statement_timeout=1500"));
        assert_eq!(limited, Duration::from_millis(1500) + MARGIN);
    }
}
