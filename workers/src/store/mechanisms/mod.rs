//! The well-known ways to read and write a database safely from durable handlers, each as a small tool for tables of your
//! own. A table is declared once ([`Table`]); every tool is a function over the caller's pool, connection or transaction.
//!
//! | which one do I want | tool |
//! | --- | --- |
//! | read a row, or many rows in one statement | [`read`] |
//! | insert a row once, and know over every retry whether it was me | [`insert`] |
//! | overwrite columns, whatever other writers do; add to a number | [`update`] |
//! | add to a list or number of many rows without reading them | [`expression`] |
//! | read, compute, write; safe to retry because one writer works on a key at a time | [`version`] |
//! | do anything once per request, and answer a repeat as before | [`idempotency`] |
//! | write only if chosen columns still have the values I saw; write only what changed | [`compare_and_set`] |
//! | many callers at once, few statements | [`batch`] |
//! | several rows, reads decide writes, all or nothing | [`interactive`] |
//! | two databases, both or neither | [`two_phase`] |
//! | what a row was, earlier | [`log`] |
//! | my own SQL; a large table as a stream | [`raw`] |
//!
//! # A call that is repeated
//!
//! A durable engine calls a handler again when it has not seen its end; the statement may have taken effect. Each page says
//! what the repeat does. Reads, absolute updates, versioned updates and idempotency keys may be repeated as they are; a
//! relative update, an expression and a bare compare-and-set may not: put them under an idempotency key.
//! The server decides where "during" ends: it finishes a statement that it has begun for a caller that dies or is aborted, and
//! that counts as after. Within a transaction nothing counts before its COMMIT.
//! `tests/tests/faults.rs` proves the page of every way to commit: cut off, aborted, and with the database killed.
//!
//! A statement needs no journalled step (`ctx.run`) of its own: where the write is safe to repeat the journal adds only its
//! disk sync. Journal what a later branch depends on (the version of [`version`], for example) and what may not be repeated.
//!
//! # What goes wrong elsewhere
//!
//! The same ways are often written with these faults. `tests/tests/mechanisms.rs` shows that the tools do not have them.
//!
//! | fault | here | proof |
//! | --- | --- | --- |
//! | "no row updated" counts as my own earlier attempt | a mark in the row names the attempt that wrote it | `a_versioned_update_tells_whose_write_it_found` |
//! | an insert that is retried reports that another writer was first | the attempt knows its row | `an_inserted_row_is_mine_over_every_retry_and_nobody_elses` |
//! | an idempotency key drawn per call misses the producer's repeats | the producer's key; another request under it is reported | `a_key_lets_its_work_happen_once` |
//! | a key ends by a clock while its call may still be retried | it ends after the answer is kept, and never early | `a_key_ends_only_when_its_time_is_over` |
//! | two transactions each decide on rows that the other changes | SERIALIZABLE, and the closure anew | `two_closures_never_decide_on_what_the_other_changes` |
//! | COMMIT after a failed statement rolls back and reports success | the closure's success is not believed | `a_closure_that_fails_panics_or_swallows_writes_nothing` |
//! | a transaction is retried after a lost answer to COMMIT | reported as unknown | `a_lost_answer_to_commit_is_told_as_unknown` |
//! | values in the text of a statement | bound | `a_value_that_the_table_forbids_changes_nothing` |
//!
//! # How values travel
//!
//! Identifiers are `&'static str` from the declaration. The values of a row or change are bound as one JSON value, which
//! `jsonb_populate_record(null::table, ...)` gives the types of the table's own columns.

pub mod batch;
pub mod compare_and_set;
pub mod expression;
pub mod idempotency;
pub mod insert;
pub mod interactive;
pub mod log;
pub mod raw;
pub mod read;
mod table;
pub mod two_phase;
pub mod update;
pub mod version;

pub use table::{Change, Column, Key, Table, Values};

use crate::store::session;
use crate::transience::{self, Fault};

/// Waits for a call of a tool as long as a statement of the pool's may take, and a margin. For the tools that are given a
/// connection, or any executor: those that are given a pool bound their waits themselves. After that nobody knows what the call did,
/// as when its answer was lost; the connection is thrown away when it goes back to the pool. `table` names it in the error.
///
/// # Errors
/// [`Error::Statement`] when no answer came, and the call's own.
pub async fn in_time<R>(
    pool: &sqlx::PgPool,
    table: &'static str,
    call: impl Future<Output = Result<R, Error>>,
) -> Result<R, Error> {
    session::within(session::patience(pool), Error::of(table), call).await
}

/// The errors of the tools. A result that a tool decides (missing, conflict, repeat) is an answer and never an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value that the table does not accept: too long, of another type, against a constraint or a trigger. A retry fails again.
    #[error("{table} forbids the value{}", constraint.as_ref().map(|name| format!(" ({name})")).unwrap_or_default())]
    Forbidden {
        table: &'static str,
        constraint: Option<String>,
        #[source]
        source: sqlx::Error,
    },
    /// A conflict with another transaction, or a lock that was not given in time. Nothing was written; a retry may pass.
    #[error("another transaction was in the way")]
    Conflict(#[source] sqlx::Error),
    /// COMMIT was sent and its answer was lost: the transaction took effect as a whole, or not at all.
    #[error("the answer to COMMIT was lost")]
    Unknown(#[source] sqlx::Error),
    /// The closure went on after one of its statements had failed; nothing was written.
    #[error("the closure succeeded although one of its statements had failed")]
    Swallowed,
    /// Infrastructure, or a declaration that does not fit the table.
    #[error("the statement on {table} failed")]
    Statement {
        table: &'static str,
        #[source]
        source: sqlx::Error,
    },
    /// A request or reply that cannot be JSON, or a stored reply that is not of this kind.
    #[error("a request or reply cannot be read or written as JSON")]
    Reply(#[source] serde_json::Error),
    /// The sweeper took this try of a two-phase commit for an orphan. Nothing was written; a new try may pass.
    #[error("the try took so long that it was swept")]
    Swept,
    /// A database that two-phase commit needs does not prepare transactions.
    #[error("max_prepared_transactions is 0: set it to the number of connections or more, and restart that database")]
    CannotPrepare,
    /// The batching task ended with the process.
    #[error("the batching task has ended")]
    Ended,
}

impl Error {
    /// The fault, which decides whether work is retried.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Forbidden { .. } | Error::Swallowed | Error::Reply(_) => Fault::Content,
            Error::Conflict(_) | Error::Swept => Fault::Rival,
            Error::Unknown(_) | Error::Ended => Fault::Server,
            Error::Statement { source, .. } => transience::sql(source),
            Error::CannotPrepare => Fault::Setting,
        }
    }

    /// Takes the server's answer for what the table of [`transience`] says of it: about the value, about another transaction, or
    /// neither.
    fn of(table: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |source| {
            let answer = source.as_database_error();
            match answer.map(|_| transience::sql(&source)) {
                Some(Fault::Rival) => Error::Conflict(source),
                Some(Fault::Content) => Error::Forbidden {
                    table,
                    constraint: answer.and_then(|answer| answer.constraint()).map(str::to_owned),
                    source,
                },
                _ => Error::Statement { table, source },
            }
        }
    }
}
