//! The errors of handlers: one that Restate retries, or one that ends the invocation.

use restate_sdk::prelude::{HandlerError, TerminalError};

use crate::{error, store};

/// An error after which Restate retries, for ever; it records the text.
pub(super) fn retryable(error: store::Error) -> HandlerError {
    error::chain(&error).into()
}

/// The only place where a terminal error is built: the fault of an HTTP caller, with its status code. Restate ends the
/// invocation and hands the text to the caller.
pub(super) fn answer_caller(code: u16, what: impl Into<String>) -> HandlerError {
    TerminalError::new_with_code(code, what.into()).into()
}
