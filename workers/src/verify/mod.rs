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
//!
//! A look has a [`scope`]: everything, or so little that it needs no more memory than it is given. [`watch`] takes one such look after
//! another, for ever.

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
mod scope;
mod session;
mod snapshot;
mod terms;
mod topics;
mod watch;

use std::sync::Arc;

use anyhow::Context;
use time::OffsetDateTime;

use crate::config;
use crate::kafka::on_thread;
use crate::provider::Provider;
use identity::millis;
use look::Look;
pub use report::{Offence, Promise, Report};
use scope::{Ends, Limit, Mark, Scope};
pub use session::Unfit;
use terms::Terms;
use topics::Topics;
pub use watch::Watch;

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
    let judge = Judge {
        topics: &Arc::new(Topics::connect(kafka)?),
        kafka,
        database,
        settings,
        provider,
    };
    Ok(judge.confirmed(&Scope::Whole, Limit::NONE).await?.report)
}

/// Looks at a system, by settings.
#[derive(Clone, Copy)]
struct Judge<'a> {
    topics: &'a Arc<Topics>,
    kafka: &'a config::Kafka,
    database: &'a config::Database,
    settings: &'a config::Verify,
    provider: Option<&'a Provider>,
}

/// What came of a look.
struct Looked {
    report: Report,
    /// The moment at which it was taken.
    mark: Mark,
    /// The number of facts that it held.
    facts: usize,
}

impl Judge<'_> {
    /// Looks, and looks again when something is found: only what is found twice counts.
    async fn confirmed(&self, scope: &Scope, limit: Limit) -> anyhow::Result<Looked> {
        let first = self.look(scope.clone(), limit).await?;
        if first.report.is_clean() {
            return Ok(first);
        }
        tracing::info!("a promise looks broken: looking again");
        let Looked { report, mark, facts } = self.look(scope.clone(), limit).await?;
        Ok(Looked {
            report: report.confirming(&first.report),
            mark,
            facts: facts.max(first.facts),
        })
    }

    /// Looks once.
    async fn look(&self, scope: Scope, limit: Limit) -> anyhow::Result<Looked> {
        let terms = |now| {
            Terms::new(
                now,
                self.database.idempotency_retention,
                self.settings.lost_after,
                self.kafka.admitted_record_bytes,
            )
        };
        let has_keys = scope.has_keys();
        let ends = self.ends().await?;
        let mut look = snapshot::read(self.database, scope, limit, terms).await?;
        if let Some(provider) = self.provider {
            compare(provider, self.database, &mut look)
                .await
                .context("cannot read the payments at the provider (--provider-url)")?;
        }
        let mark = Mark {
            // Nothing has that time yet that the snapshot lacks.
            at: look.terms.now + 1,
            ends: ends.clone(),
        };
        if has_keys {
            let topics = Arc::clone(self.topics);
            look = on_thread("verify", move || {
                topics.read(&ends, &mut look)?;
                anyhow::Ok(look)
            })
            .await??;
            snapshot::repeated(self.database, &mut look)
                .await
                .context("cannot read the idempotency records of repeats")?;
            look = on_thread("verify", move || {
                look.judge();
                look
            })
            .await?;
        }
        Ok(Looked {
            facts: look.facts(),
            report: look.report,
            mark,
        })
    }

    /// This moment.
    async fn mark(&self) -> anyhow::Result<Mark> {
        let ends = self.ends().await?;
        let now = snapshot::now(self.database).await?;
        Ok(Mark {
            ends,
            at: millis(now) + 1,
        })
    }

    async fn ends(&self) -> anyhow::Result<Ends> {
        let topics = Arc::clone(self.topics);
        on_thread("verify", move || topics.ends()).await?
    }
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
