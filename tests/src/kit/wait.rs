//! Waiting for a condition instead of sleeping.

use std::fmt::Display;
use std::time::Duration;

use anyhow::anyhow;
use tokio::time::{Instant, sleep, timeout_at};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Calls `ask` again and again until it succeeds. An error of `ask` means "not yet" and says what was seen; when the
/// deadline passes, the last one is the error.
pub async fn until<T, S, F, A>(what: &str, deadline: Duration, mut ask: F) -> anyhow::Result<T>
where
    S: Display,
    F: FnMut() -> A,
    A: Future<Output = Result<T, S>>,
{
    let end = Instant::now() + deadline;
    let mut pause = FIRST_PAUSE;
    let mut status = String::from("no answer at all");
    while Instant::now() < end {
        match timeout_at(end, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(seen)) => status = format!("{seen:#}"),
            Err(_) => break,
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Err(anyhow!("waited {deadline:?} for: {what}; last seen: {status}"))
}
