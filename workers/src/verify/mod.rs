//! Proves the promises from outside: that every record on the public topics is accounted for, that each event took effect
//! once and each outcome is told once, both in order, and that no seat was sold twice.
//!
//! It shares nothing with the code that it judges but the contract: it reads the topics, and the tables by statements of its
//! own, and computes again what must follow. It works on a live system, by the order in which it looks:
//!
//! 1. the ends of the public topics, and of the outcome topic: the database must know all before them;
//! 2. the database, in one snapshot;
//! 3. the outcome and dead-letter topics, up to ends that are taken now: the topics must have all that the snapshot has, as
//!    far as it does not stand in the snapshot's outbox;
//! 4. the public topics, up to the ends of step 1.
//!
//! Three files judge, without any I/O: [`ledger`] what the database says, by itself and beside the outcomes that were told,
//! [`history`] the life of each ticket, [`records`] what became of the records. Two files read: [`snapshot`] and [`topics`].

mod history;
mod ledger;
mod records;
mod report;
mod snapshot;
mod topics;

use crate::config;
use crate::kafka::on_thread;
use ledger::Ledger;
use records::Records;
pub use report::{Offence, Promise, Report};
use topics::Topics;

/// What is known in the course of one look.
struct Look {
    ledger: Ledger,
    records: Records,
    report: Report,
}

/// Verifies the whole system.
///
/// On a live system a look may fall between two acknowledgements of the gate. What is broken stays broken, so only what a
/// second look finds too is reported.
///
/// # Errors
/// Kafka or Postgres cannot be read, or hold what no release ever wrote.
pub async fn run(kafka: &config::Kafka, database: &config::Database) -> anyhow::Result<Report> {
    let first = look(kafka, database).await?;
    if first.is_clean() {
        return Ok(first);
    }
    tracing::info!("a promise looks broken: looking again");
    look(kafka, database).await
}

async fn look(kafka: &config::Kafka, database: &config::Database) -> anyhow::Result<Report> {
    let topics = Topics::connect(kafka)?;
    let (topics, before) = on_thread("verify", move || {
        let before = topics.before_snapshot();
        before.map(|before| (topics, before))
    })
    .await??;
    let mut look = snapshot::read(database).await?;
    on_thread("verify", move || {
        topics.read(&before, &mut look)?;
        Ok(look.report)
    })
    .await?
}

#[cfg(test)]
mod tests;
