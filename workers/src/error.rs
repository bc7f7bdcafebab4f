//! What happens to work that met an error is decided here, in one place. A refusal by a rule is an outcome and never comes here.

use std::fmt::Write;

use restate_sdk::prelude::{HandlerError, TerminalError};

use crate::store;

/// What becomes of work that met an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Infrastructure: try again, for ever, with capped back-off.
    Retry,
    /// The work breaks the worker itself. Until keys can be quarantined it is tried again, counted by a metric of its own.
    Quarantine(Cause),
}

/// Why work breaks the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The rules panicked.
    Panic,
    /// The database refused a value, or a row cannot be understood.
    Data,
    /// A constraint other than the idempotency key's was violated.
    Constraint,
}

impl Cause {
    /// The value of the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Panic => "panic",
            Cause::Data => "data",
            Cause::Constraint => "constraint",
        }
    }
}

/// The one decision about errors of the store. What is not known is tried again, never dropped.
pub fn disposition(error: &store::Error) -> Disposition {
    match error {
        store::Error::Panic => Disposition::Quarantine(Cause::Panic),
        store::Error::Row { .. } => Disposition::Quarantine(Cause::Data),
        store::Error::Read(error) | store::Error::Write(error) => match sql_state(error) {
            // The idempotency key's own constraint: somebody was quicker, the next round meets the record.
            Some(("23505", Some("idempotency_records_pkey"))) => Disposition::Retry,
            Some((code, _)) if code.starts_with("23") => Disposition::Quarantine(Cause::Constraint),
            Some((code, _)) if code.starts_with("22") => Disposition::Quarantine(Cause::Data),
            _ => Disposition::Retry,
        },
        store::Error::Url(_)
        | store::Error::Migrate(_)
        | store::Error::Moved
        | store::Error::Mechanism(_)
        | store::Error::Ended
        | store::Error::NoLoyalty
        | store::Error::NoAccount { .. } => Disposition::Retry,
    }
}

/// True when nothing can be written until the server or the way to it is mended; false when only this statement failed.
pub fn waits_for_server(error: &store::Error) -> bool {
    let (store::Error::Read(error) | store::Error::Write(error)) = error else {
        return false;
    };
    match sql_state(error) {
        // Connection exceptions, insufficient resources, operator intervention other than a cancelled statement,
        // system errors, a server that is starting or has become read-only.
        Some((code, _)) => {
            ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)) && code != "57014" || code == "25006"
        }
        None => !matches!(
            error,
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::RowNotFound | sqlx::Error::Encode(_)
        ),
    }
}

/// The only place where a terminal error is built: what an HTTP caller did wrong, with its status code. Restate gives up on
/// the invocation and hands the text to the caller.
pub fn answer_caller(code: u16, what: impl Into<String>) -> HandlerError {
    TerminalError::new_with_code(code, what.into()).into()
}

/// An error with everything that caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        write!(text, ": {error}").unwrap_or_default();
        cause = error.source();
    }
    text
}

fn sql_state(error: &sqlx::Error) -> Option<(&str, Option<&str>)> {
    let error = error
        .as_database_error()?
        .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()?;
    Some((error.code(), error.constraint()))
}
