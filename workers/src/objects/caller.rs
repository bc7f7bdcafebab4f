//! The errors of handlers: one that Restate retries, or one that ends the invocation.

use restate_sdk::prelude::{HandlerError, TerminalError};

use crate::metrics::Metrics;
use crate::store::{self, Cause, mechanisms};
use crate::transience::Fault;
use crate::{checkout, error};

/// An error of the committer, which has logged and counted it. Restate retries the invocation, for ever; it records the text.
pub(super) fn retryable(error: store::Error) -> HandlerError {
    error::chain(&error).into()
}

/// As [`retryable`], for an HTTP request: a caller whose request breaks us, or is about a key in quarantine, is told at once, and
/// nobody waits behind them.
pub(super) fn told_or_retried(error: store::Error) -> HandlerError {
    match told(&error) {
        Some(answer) => answer,
        None => retryable(error),
    }
}

/// As [`told_or_retried`], for what did not pass the committer.
pub(super) fn told_or_failed(metrics: &Metrics) -> impl Fn(store::Error) -> HandlerError {
    move |error| {
        let given_back = failed(metrics);
        match told(&error) {
            Some(answer) => {
                if let Some(cause) = error.breaker() {
                    metrics.quarantine_candidates.with_label_values(&[cause.as_str()]).inc();
                    tracing::error!(
                        error = error::chain(&error),
                        "a request breaks the worker: its caller is told"
                    );
                }
                answer
            }
            None => given_back(error),
        }
    }
}

fn told(error: &store::Error) -> Option<HandlerError> {
    if let store::Error::Quarantined { .. } = error {
        return Some(answer_caller(409, error.to_string()));
    }
    error.breaker().map(|_| {
        let kind = error.kind();
        let what = format!("the request breaks Holdfast itself ({kind}), and changed nothing: tell its operator");
        answer_caller(500, what)
    })
}

/// As [`retryable`], for what did not pass the committer: logged and counted here, unless it passes by itself.
pub(super) fn failed(metrics: &Metrics) -> impl Fn(store::Error) -> HandlerError {
    move |error| given_back(metrics, &error, error.fault(), error.cause())
}

/// As [`failed`], for a step of a checkout.
pub(super) fn step_failed(metrics: &Metrics, error: &checkout::Error) -> HandlerError {
    given_back(metrics, error, error.fault(), Cause::of(error.fault()))
}

/// As [`failed`], for one of the mechanisms.
pub(super) fn tool_failed(metrics: &Metrics, error: &mechanisms::Error) -> HandlerError {
    given_back(metrics, error, error.fault(), Cause::of(error.fault()))
}

fn given_back(
    metrics: &Metrics,
    error: &(dyn std::error::Error + 'static),
    fault: Fault,
    cause: Option<Cause>,
) -> HandlerError {
    let text = error::chain(error);
    if let (false, Some(cause)) = (fault.is_transient(), cause) {
        let cause = cause.as_str();
        metrics.quarantine_candidates.with_label_values(&[cause]).inc();
        tracing::error!(cause, error = text, "an invocation fails until this is mended");
    }
    text.into()
}

/// The only place where a terminal error is built: the fault of an HTTP caller, with its status code. Restate ends the
/// invocation and hands the text to the caller.
pub(super) fn answer_caller(code: u16, what: impl Into<String>) -> HandlerError {
    TerminalError::new_with_code(code, what.into()).into()
}
