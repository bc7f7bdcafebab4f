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
//! An event is one stream's, so each stream has a [`Book`], all by the same code. Five files judge, without any I/O: [`change_history`]
//! what the database says, by itself and beside the outcomes that were told, [`history`] the life of each ticket and user,
//! [`credits`] whether those were given, spent and given back as told, [`payments`] whether the provider has the money that it
//! should have, [`records`] what became of the records. Two files read: [`snapshot`] and [`topics`].

mod change_history;
mod credits;
mod history;
mod payments;
mod records;
mod report;
mod snapshot;
mod topics;

use anyhow::Context;
use holdfast_schemas::{DeadLetter, topics as names};
use time::OffsetDateTime;

use crate::config;
use crate::kafka::on_thread;
use crate::provider::Provider;
use change_history::ChangeHistory;
use history::{History, Ticket, User};
use payments::Payments;
use records::Records;
pub use report::{Offence, Promise, Report};
use topics::Topics;

/// What is known in the course of one look.
struct Look {
    tickets: Book<Ticket>,
    users: Book<User>,
    payments: Payments,
    report: Report,
}

/// What is known of one stream.
struct Book<H: History> {
    change_history: ChangeHistory<H>,
    records: Records,
}

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
    provider: Option<&Provider>,
) -> anyhow::Result<Report> {
    let first = look(kafka, database, provider).await?;
    if first.is_clean() {
        return Ok(first);
    }
    tracing::info!("a promise looks broken: looking again");
    Ok(look(kafka, database, provider).await?.confirming(&first))
}

async fn look(
    kafka: &config::Kafka,
    database: &config::Database,
    provider: Option<&Provider>,
) -> anyhow::Result<Report> {
    let topics = Topics::connect(kafka)?;
    let (topics, before) = on_thread("verify", move || {
        let before = topics.before_snapshot();
        before.map(|before| (topics, before))
    })
    .await??;
    let mut look = snapshot::read(database).await?;
    if let Some(provider) = provider {
        look.compare(provider, database)
            .await
            .context("cannot read the payments at the provider")?;
    }
    on_thread("verify", move || {
        topics.read(&before, &mut look)?;
        Ok(look.report)
    })
    .await?
}

impl Look {
    fn new(generation: i64, swept_up_to: OffsetDateTime) -> Self {
        Self {
            tickets: Book::new(generation, swept_up_to),
            users: Book::new(generation, swept_up_to),
            payments: Payments::default(),
            report: Report::default(),
        }
    }

    async fn compare(&mut self, provider: &Provider, database: &config::Database) -> anyhow::Result<()> {
        let Self { payments, report, .. } = self;
        if let Some(since) = payments.since {
            provider
                .each(since, &mut |payment| payments.hear(payment, report))
                .await?;
        }
        let younger = snapshot::which_exist(database, &payments.strangers()).await?;
        payments.judge(&younger, report);
        Ok(())
    }

    /// Gives a dead letter to the stream on whose public topic its origin lies, if there is one.
    fn dead_letter(&mut self, letter: &DeadLetter) {
        let origin = &letter.origin;
        let (topic, records) = match origin.topic.as_str() {
            names::RESERVATIONS => (names::RESERVATIONS, &mut self.tickets.records),
            names::PAYMENTS => (names::PAYMENTS, &mut self.users.records),
            _ => return,
        };
        records.dead_letter((topic, origin.partition), origin.offset, letter.reason);
    }
}

impl<H: History> Book<H> {
    /// `swept_up_to`: the age up to which idempotency records may be swept.
    fn new(generation: i64, swept_up_to: OffsetDateTime) -> Self {
        Self {
            change_history: ChangeHistory::new(generation),
            records: Records::new(swept_up_to),
        }
    }
}

#[cfg(test)]
mod tests;
