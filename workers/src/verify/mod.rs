//! Proves the promises from outside: every record on the public topics is accounted for, each event took effect once and
//! each outcome was sent once, both in order, no seat was sold twice, and no credits or money were lost.
//!
//! It shares nothing with the code that it judges but the contract: it reads the topics, and the tables by statements of its
//! own, and computes again what must follow. It works on a live system, by the order in which it looks:
//!
//! 1. the ends of the public topics, and of the outcome topics: the database must have everything before them;
//! 2. the database, in one snapshot;
//! 3. the outcome and dead-letter topics, up to ends that are read now: the topics must have all that the snapshot has, except
//!    for the rows of the snapshot's outbox;
//! 4. the payments at the provider, where one is given: they must have the money of every checkout that had ended, and its
//!    disputes;
//! 5. the public topics, up to the ends of step 1.
//!
//! An event is one stream's, so each stream has a [`Book`](look::Book), all by the same code. These judge, without any I/O:
//! [`change_history`] what the database says, by itself and beside the outcomes that were told, [`history`] the life of each
//! ticket and user, [`credits`] whether those were given, spent and given back as told, [`payments`] whether the provider has
//! the money that it should have, [`entries`] whether each movement of it was told, [`records`] what became of the records, [`letters`] and [`reuse`] whether a dead letter says
//! what is so, [`retention`] what Kafka can have removed. Two read: [`snapshot`], on a [`session`], and [`topics`].

mod change_history;
mod credits;
mod entries;
mod history;
mod identity;
mod letters;
mod look;
mod payments;
mod records;
mod report;
mod retention;
mod reuse;
mod session;
mod snapshot;
mod terms;
mod topics;

use anyhow::Context;
use time::OffsetDateTime;

use crate::config;
use crate::kafka::on_thread;
use crate::provider::Provider;
use look::Look;
pub use report::{Offence, Promise, Report};
pub use session::Unfit;
use terms::Terms;
use topics::Topics;

/// Verifies the whole system.
///
/// On a live system a look may fall between two acknowledgements of the gate. A broken promise stays broken, so only offences
/// that a second look finds too are reported.
///
/// # Errors
/// Kafka, Postgres or the provider cannot be read, or hold data that no release ever wrote.
pub async fn run(
    kafka: &config::Kafka,
    database: &config::Database,
    settings: &config::Verify,
    provider: Option<&Provider>,
) -> anyhow::Result<Report> {
    let first = look(kafka, database, settings, provider).await?;
    if first.is_clean() {
        return Ok(first);
    }
    tracing::info!("a promise looks broken: looking again");
    Ok(look(kafka, database, settings, provider).await?.confirming(&first))
}

async fn look(
    kafka: &config::Kafka,
    database: &config::Database,
    settings: &config::Verify,
    provider: Option<&Provider>,
) -> anyhow::Result<Report> {
    let topics = Topics::connect(kafka)?;
    let (topics, before) = on_thread("verify", move || {
        let before = topics.before_snapshot();
        before.map(|before| (topics, before))
    })
    .await??;
    let terms = |now| {
        Terms::new(
            now,
            database.idempotency_retention,
            settings.lost_after,
            kafka.admitted_record_bytes,
        )
    };
    let mut look = snapshot::read(database, terms).await?;
    if let Some(provider) = provider {
        compare(provider, database, &mut look)
            .await
            .context("cannot read the payments at the provider (--provider-url)")?;
    }
    on_thread("verify", move || {
        topics.read(&before, &mut look)?;
        Ok(look.report)
    })
    .await?
}

/// Hears what the provider has of each payment.
async fn compare(provider: &Provider, database: &config::Database, look: &mut Look) -> anyhow::Result<()> {
    let Look {
        payments,
        report,
        terms,
        ..
    } = look;
    let now = OffsetDateTime::from_unix_timestamp(terms.now / 1_000).context("no time of this calendar")?;
    if let Some(since) = payments.since {
        provider
            .each(since, now, &mut |payment| payments.hear(payment, report))
            .await?;
    }
    let younger = snapshot::which_exist(database, &payments.strangers()).await?;
    payments.judge(&younger, report);
    Ok(())
}

#[cfg(test)]
mod tests;
