//! The errors of the database, and the meaning of each for the work that met it. A refusal by a rule is an outcome and never an
//! error.

use std::sync::Arc;

use sqlx::postgres::PgDatabaseError;

use super::{mechanisms, migrate};
use crate::transience::{self, Fault};

/// The errors of the database, by operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database URL cannot be read")]
    Url(#[source] sqlx::Error),
    /// Waiting does not help: a setting, a grant or the database itself has to be changed.
    #[error("the database at {address} cannot be used")]
    Unfit {
        address: String,
        #[source]
        source: sqlx::Error,
    },
    #[error(
        "the database at {address} does not answer: is it there, and --database-url (HOLDFAST_DATABASE_URL) right?"
    )]
    Away {
        address: String,
        #[source]
        source: sqlx::Error,
    },
    #[error("the tables could not be brought up to date")]
    Migrate(#[source] migrate::Error),
    #[error("the current rows could not be read")]
    Read(#[source] sqlx::Error),
    #[error("the batch could not be written")]
    Write(#[source] sqlx::Error),
    /// A row has a value that this version cannot decode: another program wrote it, or a newer version.
    #[error("the row of {table} with key {key:?} cannot be understood: {what}")]
    Row {
        table: &'static str,
        key: String,
        what: String,
    },
    /// The rules panicked on this unit; the panic's own message is in the log.
    #[error("the decision panicked")]
    Panic { at: Option<String> },
    /// The key waits for an operator: nothing was done.
    #[error(
        "{key} is in quarantine ({kind}): it waits until an operator has what is parked for it replayed or dropped"
    )]
    Quarantined { key: String, kind: String },
    /// A row was locked, or changed since it was read: nothing was written.
    #[error("somebody else changes the same rows")]
    Moved,
    /// A mechanism failed.
    #[error(transparent)]
    Mechanism(#[from] mechanisms::Error),
    /// The committer ended with the process.
    #[error("the committer has ended")]
    Ended,
    /// An error that several units met together.
    #[error(transparent)]
    Shared(Arc<Error>),
    #[error("credits are to be given back to {user}, who has no account in the loyalty database: make one")]
    NoAccount { user: String },
    #[error("a checkout spends credits, but there is no loyalty database: set --loyalty-url (HOLDFAST_LOYALTY_URL)")]
    NoLoyalty,
}

/// The reason why work fails by its own fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The rules panicked.
    Panic,
    /// The database refused a value, or a row cannot be understood.
    Data,
    /// A constraint other than the idempotency key's was violated.
    Constraint,
    /// A setting, a grant or a table has to be mended.
    Setting,
    /// No table of errors has it.
    Unknown,
}

impl Cause {
    /// The cause, as far as the fault alone tells; none for what only has to wait.
    pub fn of(fault: Fault) -> Option<Self> {
        match fault {
            Fault::Content => Some(Cause::Data),
            Fault::Setting => Some(Cause::Setting),
            Fault::Session | Fault::Destination | Fault::Unknown => Some(Cause::Unknown),
            Fault::Server | Fault::Rival => None,
        }
    }

    /// The value of the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Panic => "panic",
            Cause::Data => "data",
            Cause::Constraint => "constraint",
            Cause::Setting => "setting",
            Cause::Unknown => "unknown",
        }
    }
}

impl Error {
    /// The fault, which decides whether work is retried.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Read(error) | Error::Write(error) if is_taken_id(error) => Fault::Rival,
            Error::Read(error) | Error::Write(error) => transience::sql(error),
            Error::Mechanism(error) => error.fault(),
            Error::Shared(error) => error.fault(),
            Error::Row { .. } | Error::Panic { .. } => Fault::Content,
            Error::Moved | Error::Quarantined { .. } => Fault::Rival,
            Error::Ended | Error::Away { .. } => Fault::Server,
            Error::Url(_) | Error::Unfit { .. } | Error::Migrate(_) | Error::NoAccount { .. } | Error::NoLoyalty => {
                Fault::Setting
            }
        }
    }

    /// Why work that met it is given back undone; none when it only has to wait.
    pub fn cause(&self) -> Option<Cause> {
        match (self, self.fault()) {
            (Error::Panic { .. }, _) => Some(Cause::Panic),
            (_, Fault::Content) if self.sqlstate().is_some_and(|code| code.starts_with("23")) => {
                Some(Cause::Constraint)
            }
            (_, fault) => Cause::of(fault),
        }
    }

    /// The cause, if it is the work itself that breaks us, so that no retry helps and its key is quarantined. A row that this release
    /// cannot read waits: another one may.
    pub fn breaker(&self) -> Option<Cause> {
        match self {
            Error::Row { .. } => None,
            Error::Shared(error) => error.breaker(),
            _ => self
                .cause()
                .filter(|cause| matches!(cause, Cause::Panic | Cause::Data | Cause::Constraint)),
        }
    }

    /// Where it broke, without any value: what has the same kind has the same reason.
    pub fn kind(&self) -> String {
        if let Error::Panic { at } = self {
            return format!("panic at {}", at.as_deref().unwrap_or("an unknown place"));
        }
        let Some(error) = self.sql().and_then(sqlx::Error::as_database_error) else {
            return "a value that cannot be read or written".to_owned();
        };
        let error = error.downcast_ref::<PgDatabaseError>();
        let place = error.constraint().or(error.routine()).unwrap_or("unknown");
        let table = error.table().map(|table| format!(" of {table}"));
        format!("{} {place}{}", error.code(), table.unwrap_or_default())
    }

    fn sqlstate(&self) -> Option<String> {
        Some(self.sql()?.as_database_error()?.code()?.into_owned())
    }

    fn sql(&self) -> Option<&sqlx::Error> {
        match self {
            Error::Read(error) | Error::Write(error) => Some(error),
            Error::Mechanism(mechanisms::Error::Forbidden { source, .. }) => Some(source),
            Error::Shared(error) => error.sql(),
            _ => None,
        }
    }
}

/// True for the constraint of the idempotency key: another unit was first, and the next round meets its record.
fn is_taken_id(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    error.and_then(|error| error.constraint()) == Some("idempotency_records_pkey")
}
