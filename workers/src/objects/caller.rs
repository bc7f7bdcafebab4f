//! What a handler that fails answers: an error that Restate tries again, or one that ends the call.

use restate_sdk::prelude::{HandlerError, TerminalError};

use crate::{error, store};

/// An error that Restate tries again, for ever; it records the text.
pub(super) fn retryable(error: store::Error) -> HandlerError {
    error::chain(&error).into()
}

/// The only place where a terminal error is built: what an HTTP caller did wrong, with its status code. Restate gives up on
/// the invocation and hands the text to the caller.
pub(super) fn answer_caller(code: u16, what: impl Into<String>) -> HandlerError {
    TerminalError::new_with_code(code, what.into()).into()
}
