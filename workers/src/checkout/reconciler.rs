//! The reconciler of abandoned checkouts, and the count of those that have not ended.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use holdfast_schemas::{CheckoutFailure, CheckoutId};
use tokio::time::MissedTickBehavior;

use super::{Driver, Error};
use crate::error;
use crate::metrics::{CHECKOUT_STATES, Metrics};
use crate::restate_admin::{Live, RestateAdmin};
use crate::rounds::Rounds;
use crate::store::{self, checkouts};
use crate::transience::Fault;

/// Interval at which checkouts are counted and abandoned ones are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Most abandoned checkouts that are driven at a time.
const AT_ONCE: usize = 8;

/// The reconciler, which runs for ever: it sets each abandoned checkout to be undone, unless it is being undone, waits for the
/// bank or only owes credits, and drives it to its end. A checkout is abandoned when no step was taken for `idle` and Restate has no live
/// invocation for it.
pub async fn look_after(driver: Driver, admin: RestateAdmin, idle: Duration, rounds: Rounds) {
    // Not at once: workflows that waited for this process to come back go on by themselves.
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + idle, LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match look_once(&driver, &admin, idle, &rounds).await {
            Ok(()) => rounds.passed(),
            Err(error) => rounds.failed(error.fault(), &error),
        }
    }
}

/// One round. What is wrong with one checkout keeps the round from no other; a setting that has to be mended is the round's error.
async fn look_once(driver: &Driver, admin: &RestateAdmin, idle: Duration, rounds: &Rounds) -> Result<(), Error> {
    let main = &driver.buying.main;
    // Read before Restate is asked, however long it takes to answer: its answer may lack workflows that began later.
    let last_moved = store::now(main).await? - idle;
    // Restate is asked only when there is such a checkout.
    if checkouts::unfinished(main, last_moved, &[], &[]).await?.is_empty() {
        return Ok(());
    }
    let Live { checkouts: live, users } = admin.live_checkouts().await?;
    let abandoned = checkouts::unfinished(main, last_moved, &live, &users).await?;
    let mut ended = futures::stream::iter(abandoned)
        .map(async |id| {
            let abandoned = abandon(driver, &id).await;
            abandoned.inspect_err(|error| {
                tracing::warn!(checkout = %id, error = error::chain(error), "the checkout is looked after later");
            })
        })
        .buffer_unordered(AT_ONCE);
    let mut to_mend = None;
    while let Some(ended) = ended.next().await {
        match ended.map_err(|error| (error.fault(), error)) {
            Ok(()) => {}
            Err((Fault::Setting, error)) => to_mend = to_mend.or(Some(error)),
            Err((fault, error)) => rounds.failed_for_one(fault, &error),
        }
    }
    to_mend.map_or(Ok(()), Err)
}

/// A checkout that waits for the bank's decision is not given up: what was begun at the bank goes on in any case.
async fn abandon(driver: &Driver, id: &CheckoutId) -> Result<(), Error> {
    if driver.find(id).await?.ask_at.is_none() {
        tracing::warn!(checkout = %id, "nobody takes this checkout further: it is given up");
        driver.give_up(id, CheckoutFailure::Abandoned).await?;
    }
    driver.drive(id, false).await.map(drop)
}

/// Counts the checkouts that have not ended, for ever.
pub async fn keep_count(driver: Driver, metrics: Arc<Metrics>, rounds: Rounds) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        match count(&driver, &metrics).await {
            Ok(()) => rounds.passed(),
            Err(error) => rounds.failed(error.fault(), &error),
        }
    }
}

async fn count(driver: &Driver, metrics: &Metrics) -> Result<(), store::Error> {
    let counts = checkouts::counts(&driver.buying.main).await?;
    for state in CHECKOUT_STATES {
        let found = counts.iter().find(|count| count.state == state);
        let (checkouts, oldest) = found.map_or((0, 0), |count| (count.checkouts, count.oldest_seconds as i64));
        metrics.checkouts.with_label_values(&[state]).set(checkouts);
        metrics.checkout_oldest_seconds.with_label_values(&[state]).set(oldest);
    }
    Ok(())
}
