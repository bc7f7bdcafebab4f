//! The commands of operators: dead letters, outbox rows that Kafka refused, checkouts, and the history of tickets and users.

mod checkout;
mod drive;
mod history;
mod orders;
mod relay;
mod returns;

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::config::{self, Config};
use crate::domain;
use crate::kafka::dead_letters::{self, Copied, DeadLetterRecord};
use crate::kafka::on_thread;
use crate::mail::shipped;
use crate::metrics::Metrics;
use crate::printable;
use crate::store::change_log::Until;
use crate::store::settled_dead_letters::{self, Noted, RecordPosition, Settlement};
use crate::store::{self, outbox};
use crate::transience::{self, Fault};

/// How long the database is waited for. An operator at a terminal wants to know.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs one command and prints its result.
///
/// # Errors
/// In words for the operator: what was not found or not done, and why.
pub async fn run(
    command: &config::Admin,
    config: &Config,
    now: fn() -> OffsetDateTime,
    new_id: fn() -> Uuid,
) -> anyhow::Result<()> {
    if let config::Admin::Mail(config::MailCommand::Templates { to }) = command {
        return write_templates(to);
    }
    let pool = store::connect_within(PATIENCE, &config.database, &Metrics::new()?).await?;
    let address = store::address(&pool);
    let done = carry_out(command, config, pool, now, new_id).await;
    done.map_err(|error| match is_silent(&error) {
        true => error.context(format!(
            "a database does not answer any more; the main one is {address}"
        )),
        false => error,
    })
}

/// Whether an answer of a database is missing.
fn is_silent(error: &anyhow::Error) -> bool {
    let of_sql = error.chain().find_map(|cause| cause.downcast_ref());
    of_sql.is_some_and(|error| transience::sql(error) == Fault::Server)
}

async fn carry_out(
    command: &config::Admin,
    config: &Config,
    pool: PgPool,
    now: fn() -> OffsetDateTime,
    new_id: fn() -> Uuid,
) -> anyhow::Result<()> {
    match command {
        config::Admin::Checkout(command) => checkout::run(command, config, pool, now, new_id).await,
        config::Admin::DeadLetters(command) => match command {
            config::DeadLetters::List => list(&config.kafka, &pool).await,
            config::DeadLetters::Show { origin } => show(&config.kafka, &pool, &place(origin)?).await,
            config::DeadLetters::Replay { origin } => replay(&config.kafka, &pool, &place(origin)?).await,
            config::DeadLetters::Drop { origin } => drop(&config.kafka, &pool, &place(origin)?).await,
        },
        config::Admin::Outbox(command) => match command {
            config::Outbox::List => refused(&pool).await,
            config::Outbox::Retry(retry) => try_again(&pool, retry).await,
            config::Outbox::Drop { id } => {
                settled(*id, outbox::discard(&pool, *id).await?, "deleted: it is never told")
            }
        },
        // Done without a database.
        config::Admin::Mail(_) => Ok(()),
        config::Admin::Orders(wanted) => orders::list(&pool, wanted).await,
        config::Admin::Show(config::ShowCommand::Cancel {
            show,
            no_refund,
            dry_run,
        }) => {
            let refund = !no_refund;
            let driver = drive::driver(config, &pool, now, new_id)?;
            returns::cancel_show(&driver, show, refund, *dry_run).await
        }
        config::Admin::Sales(wanted) => orders::sales(&pool, wanted).await,
        config::Admin::Relay(command) => relay::accept(command, config, pool).await,
        config::Admin::Ticket(config::TicketCommand::Show { ticket, state }) => {
            history::show::<domain::Ticket>(&pool, ticket, until(state)).await
        }
        config::Admin::Ticket(config::TicketCommand::Attributes { ticket, state }) => {
            history::attributes(&pool, ticket, until(state)).await
        }
        config::Admin::User(config::UserCommand::Show { user, state }) => {
            history::show::<domain::User>(&pool, user, until(state)).await
        }
    }
}

/// Writes the templates of mails that come with Holdfast to a folder.
fn write_templates(folder: &Path) -> anyhow::Result<()> {
    let written = shipped::write_to(folder);
    let count = written.map_err(|(file, error)| anyhow!(error).context(format!("{file} cannot be written")))?;
    let folder = printable::line(folder.display().to_string());
    Ok(writeln!(std::io::stdout(), "{count} files written to {folder}")?)
}

fn until(state: &config::PointInTime) -> Until {
    match (state.at, state.as_of) {
        (Some(at), _) => Until::Time(at),
        (None, Some(version)) => Until::Version(version),
        (None, None) => Until::Now,
    }
}

/// Prints the dead letters that no operator has settled, each origin once.
async fn list(config: &config::Kafka, pool: &PgPool) -> anyhow::Result<()> {
    let mut passed = settled_dead_letters::all(pool).await?;
    let config = config.clone();
    on_thread("dead-letters", move || {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        writeln!(out, "{:<32} {:<18} {:<24} DETAIL", "ORIGIN", "REASON", "KEY")?;
        let mut waiting = 0_u64;
        dead_letters::each(&config, |letter| {
            let place = name(&letter);
            if !passed.contains(&place) {
                let (reason, detail) = reason(&letter);
                let key = letter.record.key.as_deref().map_or("-".to_owned(), printable::line);
                writeln!(
                    out,
                    "{:<32} {reason:<18} {key:<24} {}",
                    place.to_string(),
                    printable::line(&detail)
                )?;
                waiting += 1;
                passed.insert(place);
            }
            anyhow::Ok(())
        })?;
        writeln!(out, "{waiting} waiting")?;
        out.flush().context("cannot print")
    })
    .await?
}

async fn show(config: &config::Kafka, pool: &PgPool, place: &RecordPosition) -> anyhow::Result<()> {
    let letter = find(config, place).await?;
    let settlement = settled_dead_letters::find(pool, place).await?;
    let mut text = String::new();
    let (reason, detail) = reason(&letter);
    for (name, value) in [
        ("origin", place.to_string()),
        ("reason", reason),
        ("detail", printable::line(&detail)),
        ("settled", settlement.unwrap_or_else(|| "no".to_owned())),
        (
            "key",
            letter
                .record
                .key
                .as_deref()
                .map_or("(none)".to_owned(), printable::line),
        ),
    ] {
        writeln!(text, "{name:<10}{value}")?;
    }
    for (name, value) in &letter.record.headers {
        let value = value.as_deref().map_or("(null)".to_owned(), printable::line);
        writeln!(text, "{:<10}{}: {value}", "header", printable::line(name))?;
    }
    match &letter.record.value {
        None => writeln!(text, "value     (null: a tombstone)")?,
        Some(value) => writeln!(text, "value     {} bytes\n{}", value.len(), printable::text(value))?,
    }
    std::io::stdout().write_all(text.as_bytes()).context("cannot print")
}

/// Sends the original record again; if retention has removed it from its topic, the copy in the dead letter.
async fn replay(config: &config::Kafka, pool: &PgPool, place: &RecordPosition) -> anyhow::Result<()> {
    must_be_open(pool, place).await?;
    let letter = find(config, place).await?;
    let Some(says) = letter.says else {
        bail!("{place} has no origin (it came by a direct subscription): send it by hand, then drop it");
    };
    let (kafka, copy) = (config.clone(), letter.record);
    on_thread("dead-letters", move || {
        let record = dead_letters::original(&kafka, &says)?.unwrap_or(copy);
        dead_letters::resend(&kafka, &says.origin.topic, &record)?;
        anyhow::Ok(())
    })
    .await??;
    note(pool, place, Settlement::Replayed).await
}

async fn drop(config: &config::Kafka, pool: &PgPool, place: &RecordPosition) -> anyhow::Result<()> {
    must_be_open(pool, place).await?;
    find(config, place).await?;
    note(pool, place, Settlement::Dropped).await
}

async fn must_be_open(pool: &PgPool, place: &RecordPosition) -> anyhow::Result<()> {
    match settled_dead_letters::find(pool, place).await? {
        Some(settlement) => bail!("{place} was {settlement} already"),
        None => Ok(()),
    }
}

async fn note(pool: &PgPool, place: &RecordPosition, settlement: Settlement) -> anyhow::Result<()> {
    let what = settlement.as_str();
    let noted = settled_dead_letters::note(pool, place, settlement)
        .await
        .with_context(|| format!("{place} was {what}, but that could not be noted: it is still listed"))?;
    match noted {
        Noted::Now => Ok(writeln!(std::io::stdout(), "{place} {what}")?),
        Noted::Before => bail!("{place} was {what}, but somebody else has settled it meanwhile"),
    }
}

/// The newest dead letter about `place`.
async fn find(config: &config::Kafka, place: &RecordPosition) -> anyhow::Result<DeadLetterRecord> {
    let (config, wanted) = (config.clone(), place.clone());
    let found = on_thread("dead-letters", move || {
        let mut found = None;
        dead_letters::each(&config, |letter| {
            if name(&letter) == wanted {
                found = Some(letter);
            }
            anyhow::Ok(())
        })?;
        anyhow::Ok(found)
    });
    found
        .await??
        .ok_or_else(|| anyhow!("there is no dead letter about {place}: `admin dead-letters list` has them"))
}

/// The name of a dead letter: its origin; if it has none, its own position.
fn name(letter: &DeadLetterRecord) -> RecordPosition {
    match &letter.says {
        Some(says) => RecordPosition {
            topic: says.origin.topic.clone(),
            partition: says.origin.partition,
            offset: says.origin.offset,
        },
        None => RecordPosition {
            topic: holdfast_schemas::topics::DEAD_LETTERS.to_owned(),
            partition: letter.partition,
            offset: letter.offset,
        },
    }
}

fn reason(letter: &DeadLetterRecord) -> (String, String) {
    match &letter.says {
        Some(says) => (says.reason.to_string(), says.detail.clone()),
        None => {
            let header = |name| header(&letter.record, name).unwrap_or_else(|| "-".to_owned());
            (
                header(holdfast_schemas::dead_letter::REASON),
                header(holdfast_schemas::dead_letter::DETAIL),
            )
        }
    }
}

fn header(record: &Copied, name: &str) -> Option<String> {
    let (_, value) = record.headers.iter().rev().find(|(header, _)| header == name)?;
    value.as_deref().map(printable::line)
}

fn place(text: &str) -> anyhow::Result<RecordPosition> {
    let malformed =
        || format!("{text:?} is no origin: give topic/partition/offset, as `admin dead-letters list` prints it");
    let mut parts = text.rsplitn(3, '/');
    let (offset, partition, topic) = (
        parts.next(),
        parts.next(),
        parts.next().filter(|topic| !topic.is_empty()),
    );
    Ok(RecordPosition {
        topic: topic.with_context(malformed)?.to_owned(),
        partition: partition
            .and_then(|partition| partition.parse().ok())
            .with_context(malformed)?,
        offset: offset.and_then(|offset| offset.parse().ok()).with_context(malformed)?,
    })
}

/// Prints the outbox rows that Kafka refused.
async fn refused(pool: &PgPool) -> anyhow::Result<()> {
    let rows = outbox::refused(pool).await?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    writeln!(
        out,
        "{:<12} {:<24} {:<24} {:>7} {:<38} REASON",
        "ID", "TOPIC", "KEY", "BEHIND", "MESSAGE"
    )?;
    for row in &rows {
        let (key, reason) = (printable::line(&row.key), printable::line(&row.reason));
        writeln!(
            out,
            "{:<12} {:<24} {key:<24} {:>7} {:<38} {reason}",
            row.id, row.topic, row.waiting, row.message
        )?;
    }
    writeln!(out, "{} refused", rows.len())?;
    out.flush().context("cannot print")
}

async fn try_again(pool: &PgPool, retry: &config::Retry) -> anyhow::Result<()> {
    let choice = outbox::Choice {
        id: retry.id,
        topic: retry.topic.as_deref(),
        reason: retry.reason.as_deref(),
    };
    let ids = outbox::retry(pool, choice).await?;
    let mut out = std::io::stdout().lock();
    for id in &ids {
        writeln!(out, "{id} the relay will try it again")?;
    }
    match (retry.id, ids.is_empty()) {
        (Some(id), true) => bail!("there is no refused outbox row {id}: `admin outbox list` has them"),
        (None, true) if !retry.all => bail!("no refused outbox row fits: `admin outbox list` has them"),
        _ => Ok(writeln!(out, "{} to be tried again", ids.len())?),
    }
}

fn settled(id: i64, settled: outbox::Settled, what: &str) -> anyhow::Result<()> {
    match settled {
        outbox::Settled::Done => Ok(writeln!(std::io::stdout(), "{id} {what}")?),
        outbox::Settled::NotRefused => bail!("there is no refused outbox row {id}: `admin outbox list` has them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_written_topic_partition_offset() {
        let expected = RecordPosition {
            topic: "reservations".into(),
            partition: 3,
            offset: 17,
        };
        assert_eq!(place("reservations/3/17").unwrap(), expected);
        assert_eq!(place(&expected.to_string()).unwrap(), expected);
        for text in [
            "",
            "reservations",
            "reservations/3",
            "reservations/3/x",
            "/3/17",
            "reservations/3/17/",
            "3/17",
        ] {
            let error = place(text).unwrap_err().to_string();
            assert!(error.contains("topic/partition/offset"), "{error}");
        }
    }
}
