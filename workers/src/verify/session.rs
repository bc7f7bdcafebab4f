//! Verify's session with the database. Its statements read whole tables, so the server sets them no limit; yet no answer is waited
//! for without end. A server that is lost says nothing, and neither does a firewall that has forgotten the connection: while an
//! answer takes its time, verify asks on another connection whether the server works on it.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::config;
use crate::postgres::{self, SERVER_KEEPALIVE, silent};
use crate::transience::{self, Fault};

/// How long an answer may take before the server is asked about it.
const LOOK_EVERY: Duration = Duration::from_secs(4);

/// The server's side of a session.
pub(super) struct Server {
    options: PgConnectOptions,
    address: String,
    /// The longest wait for a new connection.
    patience: Duration,
    /// A process id may return; a process id and its start do not.
    pid: i32,
    started_at: OffsetDateTime,
}

/// Opens a session without the limits of a worker.
pub(super) async fn connect(config: &config::Database) -> anyhow::Result<(PgConnection, Server)> {
    let url = config.replaceable_url().now();
    let options: PgConnectOptions = url.expose_secret().parse().context("--database-url cannot be read")?;
    let options = options
        .application_name("holdfast verify")
        .options([("statement_timeout", "0")])
        .options(SERVER_KEEPALIVE)
        // That one which reads a whole table takes its time is no news.
        .disable_statement_logging();
    let address = postgres::address(&options);
    let patience = config.acquire_timeout;
    let opened = timeout(patience, async {
        let mut connection = options.connect().await?;
        let backend = sqlx::query!(
            r#"select pid as "pid!", backend_start as "started_at!" from pg_stat_activity where pid = pg_backend_pid()"#
        );
        let backend = backend.fetch_one(&mut connection).await?;
        Ok::<_, sqlx::Error>((connection, backend))
    });
    let opened = opened.await.unwrap_or_else(|_elapsed| Err(silent(patience)));
    let (connection, backend) = opened.map_err(|source| match transience::sql(&source) {
        Fault::Setting => Unfit {
            address: address.clone(),
            source,
        }
        .into(),
        _ => anyhow!(source).context(format!(
            "cannot connect to Postgres at {address}: is it there, and --database-url (HOLDFAST_DATABASE_URL) right?"
        )),
    })?;
    let server = Server {
        options,
        address,
        patience,
        pid: backend.pid,
        started_at: backend.started_at,
    };
    Ok((connection, server))
}

/// The database cannot be used with these settings, however long one waits.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to Postgres at {address}: --database-url (HOLDFAST_DATABASE_URL) is wrong, or the server")]
pub struct Unfit {
    address: String,
    #[source]
    source: sqlx::Error,
}

impl Server {
    /// Waits for an answer on the session as long as the server works on it.
    pub(super) async fn answer<T>(&self, answer: impl Future<Output = Result<T, sqlx::Error>>) -> anyhow::Result<T> {
        let mut answer = pin!(answer);
        let mut works = true;
        loop {
            match timeout(LOOK_EVERY, answer.as_mut()).await {
                Ok(answer) => return Ok(answer?),
                Err(_elapsed) if works => works = self.works().await?,
                // The answer was sent before the last look.
                Err(_elapsed) => bail!(
                    "the connection to Postgres at {} is dead: the server has nothing more to do on it, and no answer came",
                    self.address
                ),
            }
        }
    }

    /// Whether the server works for the session.
    async fn works(&self) -> anyhow::Result<bool> {
        let look = async {
            let mut connection = self.options.connect().await?;
            let works = sqlx::query_scalar!(
                r#"select exists (
                       select from pg_stat_activity where pid = $1 and backend_start = $2 and state = 'active'
                   ) as "works!""#,
                self.pid,
                self.started_at
            );
            let works = works.fetch_one(&mut connection).await?;
            connection.close().await?;
            Ok::<_, sqlx::Error>(works)
        };
        let looked = timeout(self.patience, look).await;
        looked
            .unwrap_or_else(|_elapsed| Err(silent(self.patience)))
            .map_err(|error| anyhow!(error).context(format!("Postgres at {} does not answer any more", self.address)))
    }
}
