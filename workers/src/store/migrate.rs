//! Bringing the tables up to date while others work on them.
//!
//! The migrator has a session of its own, without the limits of a worker's statements: building an index may take hours. It
//! requests a lock on a table for moments, again and again, so that no worker queues behind it for long. One migrator is at work
//! at a time, by the advisory lock of `sqlx migrate` and earlier releases; the others request that lock again and again, since a
//! statement that waited would keep a snapshot, and an index that is built concurrently would wait for that snapshot.
//!
//! The migrator ignores migrations that this release does not know: a later release made them, and this one may have to come
//! back. The table `oldest_reader` (migrations/README.md) says which releases can; every worker reads it before it starts.

use std::time::Duration;

use sqlx::migrate::{Migrate, MigrateError, Migration, Migrator};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};

use super::session::InTime;
use crate::transience::{self, Fault};

pub(super) static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// The table of `sqlx` with the migrations that were applied.
const APPLIED: &str = "_sqlx_migrations";

/// No limits but those set for each migration, and the server's usual plans.
const SESSION: &str = "set statement_timeout = 0; set idle_in_transaction_session_timeout = 0; set enable_seqscan = on; \
                       set plan_cache_mode = auto";

/// The migrators' lock: one try is short, so that its snapshot holds up no index that is built meanwhile.
const OTHERS: &str = "set lock_timeout = '100ms'";

/// A lock on a table: one try is short, since all later statements on the table queue behind it.
const BRIEFLY: &str = "set lock_timeout = '500ms'";

/// Statements outside of a transaction take only locks under which others read and write, so they may wait for them.
const PATIENTLY: &str = "set lock_timeout = 0";

/// Interval of the log lines about a migration's progress.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Why the tables are not as this release needs them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the session that migrates failed")]
    Session(#[source] sqlx::Error),
    #[error("the migrations that were applied could not be read")]
    Read(#[source] MigrateError),
    #[error(
        "migration {version} was applied with another content than this release has: start the release that applied it"
    )]
    Changed { version: i64 },
    #[error("migration {version} ({description}) failed")]
    Apply {
        version: i64,
        description: String,
        #[source]
        source: MigrateError,
    },
    #[error(
        "the index {index}, left unfinished, could not be built again: drop it, or mend what keeps it from being built"
    )]
    Rebuild {
        index: String,
        #[source]
        source: sqlx::Error,
    },
    #[error(
        "migration {version} is missing, and the role of this process may not apply it: run `holdfast migrate` as the owner of the \
         tables, then start again"
    )]
    MayNot {
        version: i64,
        #[source]
        source: MigrateError,
    },
    #[error("the session that migrated has ended on the server amid {what}: migrate again")]
    Lost { what: String },
    #[error("these tables need Holdfast {release} or later (migration {migration}); this is {}: start that release", env!("CARGO_PKG_VERSION"))]
    Outgrown { release: String, migration: i64 },
}

impl Error {
    /// True when nothing but a setting, a grant or another release helps.
    pub fn is_setting(&self) -> bool {
        match self {
            Error::Session(error) => transience::sql(error) == Fault::Setting,
            Error::Read(error) => sql(error).is_some_and(|error| transience::sql(error) == Fault::Setting),
            Error::MayNot { .. } => true,
            _ => false,
        }
    }
}

/// Applies the migrations that are missing, and rebuilds an index that an earlier try left unfinished. Returns how many it applied.
pub(super) async fn run(pool: &PgPool) -> Result<usize, Error> {
    let mut session = MigratorSession::open(pool).await?;
    session.lock().await?;
    check(pool).await?;
    let applied = session.bring_up_to_date().await?;
    // Its lock goes with it.
    session.connection.close().await.map_err(Error::Session)?;
    Ok(applied)
}

/// Refuses tables that this release can no longer read. Waits for a database that does not answer.
///
/// # Errors
/// [`Error::Outgrown`], or what waiting does not help against.
pub async fn admit(pool: &PgPool) -> Result<(), Error> {
    let mut pauses = super::pauses();
    loop {
        match check(pool).await {
            Err(Error::Session(error)) if transience::sql(&error).is_transient() => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "waiting for Postgres to say which releases its tables are for");
            }
            checked => return checked,
        }
        tokio::time::sleep(pauses.next().unwrap_or(super::LONGEST_PAUSE)).await;
    }
}

pub(super) async fn check(pool: &PgPool) -> Result<(), Error> {
    let marked = sqlx::query_scalar!(r#"select to_regclass('oldest_reader') is not null as "marked!""#)
        .fetch_one(pool)
        .in_time(pool)
        .await
        .map_err(Error::Session)?;
    if !marked {
        return Ok(());
    }
    let oldest = sqlx::query!("select migration, release from oldest_reader")
        .fetch_one(pool)
        .in_time(pool)
        .await
        .map_err(Error::Session)?;
    if MIGRATOR.iter().any(|migration| migration.version >= oldest.migration) {
        return Ok(());
    }
    Err(Error::Outgrown {
        release: oldest.release,
        migration: oldest.migration,
    })
}

struct MigratorSession<'a> {
    connection: PgConnection,
    /// Of its process on the server.
    pid: i32,
    /// For looking at it from outside.
    pool: &'a PgPool,
}

impl<'a> MigratorSession<'a> {
    async fn open(pool: &'a PgPool) -> Result<Self, Error> {
        let mut connection = pool.connect_options().connect().await.map_err(Error::Session)?;
        sqlx::raw_sql(SESSION)
            .execute(&mut connection)
            .await
            .map_err(Error::Session)?;
        let pid = sqlx::query_scalar!(r#"select pg_backend_pid() as "pid!""#)
            .fetch_one(&mut connection)
            .await
            .map_err(Error::Session)?;
        Ok(Self { connection, pid, pool })
    }

    async fn set(&mut self, setting: &'static str) -> Result<(), Error> {
        let set = sqlx::raw_sql(setting).execute(&mut self.connection).await;
        set.map(drop).map_err(Error::Session)
    }

    /// Waits until no other migrator is at work.
    async fn lock(&mut self) -> Result<(), Error> {
        self.set(OTHERS).await?;
        let mut pauses = super::pauses();
        loop {
            match self.connection.lock().await {
                Err(error) if waits_for_a_lock(&error) => tracing::info!("another process migrates: waiting for it"),
                locked => return locked.map_err(Error::Read),
            }
            tokio::time::sleep(pauses.next().unwrap_or(super::LONGEST_PAUSE)).await;
        }
    }

    async fn bring_up_to_date(&mut self) -> Result<usize, Error> {
        let missing = self.missing().await?;
        // First, since a migration leaves an index alone that is there.
        self.rebuild_unfinished().await?;
        for (number, migration) in missing.iter().enumerate() {
            let Migration {
                version, description, ..
            } = migration;
            let (number, all) = (number + 1, missing.len());
            tracing::info!(version, "migration {number} of {all}: {description}");
            self.apply(migration).await?;
        }
        Ok(missing.len())
    }

    async fn missing(&mut self) -> Result<Vec<&'static Migration>, Error> {
        let connection = &mut self.connection;
        // Who may make no tables cannot even ask for one that is there.
        let is_there: bool = sqlx::query_scalar("select to_regclass($1) is not null")
            .bind(APPLIED)
            .fetch_one(&mut *connection)
            .await
            .map_err(Error::Session)?;
        if !is_there {
            let version = MIGRATOR
                .iter()
                .map(|migration| migration.version)
                .min()
                .unwrap_or_default();
            let made = connection.ensure_migrations_table(APPLIED).await;
            made.map_err(|source| denied(version, source).unwrap_or_else(Error::Read))?;
        }
        let applied = connection.list_applied_migrations(APPLIED).await.map_err(Error::Read)?;
        let mut missing = Vec::new();
        for migration in MIGRATOR.iter() {
            match applied.iter().find(|applied| applied.version == migration.version) {
                None => missing.push(migration),
                Some(applied) if applied.checksum == migration.checksum => {}
                Some(applied) => {
                    return Err(Error::Changed {
                        version: applied.version,
                    });
                }
            }
        }
        Ok(missing)
    }

    async fn apply(&mut self, migration: &'static Migration) -> Result<(), Error> {
        let failed = |source| {
            denied(migration.version, source).unwrap_or_else(|source| Error::Apply {
                version: migration.version,
                description: migration.description.to_string(),
                source,
            })
        };
        self.set(if migration.no_tx { PATIENTLY } else { BRIEFLY }).await?;
        let mut pauses = super::pauses();
        loop {
            let apply = self.connection.apply(APPLIED, migration);
            let watch = watch(self.pool, self.pid, &migration.description);
            let applied = tokio::select! {
                applied = apply => applied,
                ended = watch => return Err(ended),
            };
            match applied {
                Err(error) if waits_for_a_lock(&error) => {
                    let version = migration.version;
                    tracing::warn!(
                        version,
                        "a long transaction keeps a table locked: the migration tries again"
                    );
                }
                applied => return applied.map(drop).map_err(failed),
            }
            tokio::time::sleep(pauses.next().unwrap_or(super::LONGEST_PAUSE)).await;
        }
    }

    /// Rebuilds each index whose build was interrupted: the server keeps it up to date, and no plan uses it. Drops those that were
    /// to replace an index that is there.
    async fn rebuild_unfinished(&mut self) -> Result<(), Error> {
        let unfinished = sqlx::query!(
            r#"select c.oid::regclass::text as "index!", c.relname ~ '_cc(new|old)[0-9]*$' as "replacement!"
               from pg_index i join pg_class c on c.oid = i.indexrelid
               where not i.indisvalid and c.relnamespace = current_schema()::regnamespace
                 and c.relowner = current_user::regrole
                 and not exists (select from pg_stat_progress_create_index p where p.relid = i.indrelid)"#
        )
        .fetch_all(&mut self.connection)
        .await
        .map_err(Error::Session)?;
        self.set(PATIENTLY).await?;
        for left in unfinished {
            let index = left.index;
            tracing::warn!(index, "an index was left unfinished: building it again");
            let verb = if left.replacement { "drop" } else { "reindex" };
            // Quoted by the server, where it must be.
            let statement = sqlx::raw_sql(AssertSqlSafe(format!("{verb} index concurrently {index}")));
            let rebuilt = tokio::select! {
                rebuilt = statement.execute(&mut self.connection) => rebuilt,
                ended = watch(self.pool, self.pid, &index) => return Err(ended),
            };
            rebuilt.map_err(|source| Error::Rebuild { index, source })?;
        }
        Ok(())
    }
}

/// Logs the session's progress with `what`, until the session has ended.
async fn watch(pool: &PgPool, pid: i32, what: &str) -> Error {
    let mut ticks = tokio::time::interval(TELL_EVERY);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        match progress(pool, pid).await {
            Ok(Some(how_far)) => tracing::info!("{what}: {how_far}"),
            Ok(None) => return Error::Lost { what: what.to_owned() },
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "{what}: how far it is cannot be read now");
            }
        }
    }
}

/// The progress of a session; `None` when the server has no such session.
async fn progress(pool: &PgPool, pid: i32) -> Result<Option<String>, sqlx::Error> {
    let activity = sqlx::query!(
        r#"select p.phase, p.blocks_done, p.blocks_total, p.tuples_done, p.tuples_total, p.lockers_done, p.lockers_total,
                  a.wait_event_type = 'Lock' as waiting, extract(epoch from clock_timestamp() - a.query_start)::float8 as seconds
           from pg_stat_activity a left join pg_stat_progress_create_index p on p.pid = a.pid
           where a.pid = $1"#,
        pid
    )
    .fetch_optional(pool)
    .await?;
    Ok(activity.map(|now| {
        let counted = [
            ("blocks", now.blocks_done, now.blocks_total),
            ("rows", now.tuples_done, now.tuples_total),
            ("transactions waited for", now.lockers_done, now.lockers_total),
        ];
        let counts = counted
            .into_iter()
            .filter_map(|(of_what, done, total)| match (done, total) {
                (Some(done), Some(total)) if total > 0 => Some(format!("{done} of {total} {of_what}")),
                _ => None,
            });
        let since = now.seconds.map(|seconds| format!("for {seconds:.0} s"));
        let lock = now.waiting.unwrap_or(false).then(|| "waits for others".to_owned());
        let parts: Vec<String> = now.phase.into_iter().chain(counts).chain(lock).chain(since).collect();
        parts.join(", ")
    }))
}

/// The lock was not to be had in time, or two waited for each other: nothing was done.
fn waits_for_a_lock(error: &MigrateError) -> bool {
    sql(error).is_some_and(|error| transience::sql(error) == Fault::Rival)
}

/// The error of a role that does not own the tables; gives back any other.
fn denied(version: i64, source: MigrateError) -> Result<Error, MigrateError> {
    const INSUFFICIENT_PRIVILEGE: &str = "42501";
    let code = sql(&source)
        .and_then(sqlx::Error::as_database_error)
        .and_then(|error| error.code());
    if code.as_deref() == Some(INSUFFICIENT_PRIVILEGE) {
        Ok(Error::MayNot { version, source })
    } else {
        Err(source)
    }
}

fn sql(error: &MigrateError) -> Option<&sqlx::Error> {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => Some(error),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::MIGRATOR;

    #[test]
    fn what_runs_outside_of_a_transaction_is_one_statement_that_can_be_repeated() {
        for migration in MIGRATOR.iter() {
            let text = migration.sql.as_str();
            let lines = text.lines().filter(|line| !line.trim_start().starts_with("--"));
            let statement = lines.collect::<Vec<_>>().join(" ").to_lowercase();
            let outside = statement.contains(" concurrently ");
            let version = migration.version;
            assert_eq!(
                migration.no_tx, outside,
                "{version}: `-- no-transaction` goes with `concurrently`"
            );
            if outside {
                assert!(
                    statement.contains(" if not exists ") || statement.contains(" if exists "),
                    "{version}"
                );
                assert_eq!(statement.matches(';').count(), 1, "{version}: a file of its own");
            }
        }
    }
}
