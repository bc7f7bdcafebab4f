//! The database, as one repeatable-read snapshot shows it. Rows are streamed; none is kept here.

use std::time::Duration;

use anyhow::Context;
use futures::TryStreamExt;
use holdfast_schemas::{DeadLetter, Outcome, OutcomeId, Reply, Told, topics};
use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Postgres, Transaction};
use time::OffsetDateTime;

use super::Look;
use super::history::TicketRow;
use super::ledger::{Change, Entry, Ledger, Record, digest};
use super::records::Records;
use super::topics::shard;
use crate::config;

/// Reads everything that a look needs from the database.
pub(super) async fn read(config: &config::Database) -> anyhow::Result<Look> {
    let mut connection = connect(config).await?;
    let mut snapshot = connection
        .begin_with("begin isolation level repeatable read, read only")
        .await
        .context("cannot begin a snapshot")?;
    let mut look = begin(&mut snapshot, config.idempotency_retention).await?;
    changes(&mut snapshot, &mut look)
        .await
        .context("cannot read the change log")?;
    records(&mut snapshot, &mut look)
        .await
        .context("cannot read the idempotency records")?;
    outbox(&mut snapshot, &mut look)
        .await
        .context("cannot read the outbox")?;
    snapshot.rollback().await.context("cannot end the snapshot")?;
    Ok(look)
}

/// A connection without the limits of a worker: the whole log is one statement.
async fn connect(config: &config::Database) -> anyhow::Result<PgConnection> {
    let options: PgConnectOptions = config
        .url
        .expose_secret()
        .parse()
        .context("--database-url cannot be read")?;
    let options = options
        .application_name("holdfast verify")
        .options([("statement_timeout", "0")]);
    options
        .connect()
        .await
        .context("cannot connect to Postgres: is --database-url (HOLDFAST_DATABASE_URL) right?")
}

async fn begin(snapshot: &mut Transaction<'_, Postgres>, retention: Duration) -> anyhow::Result<Look> {
    let start =
        sqlx::query!(r#"select max(generation) as "generation!", transaction_timestamp() as "now!" from generations"#)
            .fetch_one(&mut **snapshot)
            .await
            .context("cannot read the generation: was the database migrated (holdfast migrate)?")?;
    Ok(Look {
        ledger: Ledger::new(start.generation),
        records: Records::new(start.now - retention),
        report: super::Report::default(),
    })
}

async fn changes(snapshot: &mut Transaction<'_, Postgres>, look: &mut Look) -> anyhow::Result<()> {
    let mut rows = sqlx::query_file!("src/verify/changes.sql").fetch(&mut **snapshot);
    while let Some(row) = rows.try_next().await? {
        let entry = row.outcome.map(|outcome| Entry {
            outcome: OutcomeId(outcome),
            told: Told::read(
                row.r#type.as_deref().unwrap_or_default(),
                row.data.as_deref().unwrap_or_default(),
            )
            .ok(),
            cause_source: row.cause_source.unwrap_or_default(),
            cause_id: row.cause_id.unwrap_or_default(),
            changed_at: row.changed_at.unwrap_or(OffsetDateTime::UNIX_EPOCH),
        });
        let ticket = row.row_changed_at.map(|changed_at| TicketRow {
            show: row.show.unwrap_or_default(),
            seat: row.seat,
            price_amount: row.price_amount.unwrap_or_default(),
            price_currency: row.price_currency.unwrap_or_default(),
            status: row.status.unwrap_or_default(),
            hold: row.hold,
            holder: row.holder,
            held_until: row.held_until,
            checkout: row.checkout,
            changed_at,
        });
        let change = Change {
            ticket: row.ticket,
            version: row.version,
            entry,
            row: ticket,
        };
        look.ledger.change(change, &mut look.report);
    }
    look.ledger.end_of_changes(&mut look.report);
    Ok(())
}

async fn records(snapshot: &mut Transaction<'_, Postgres>, look: &mut Look) -> anyhow::Result<()> {
    let mut rows = sqlx::query!(
        r#"select source, id, ticket, hash, reply::text as "reply!", written_at from idempotency_records"#
    )
    .fetch(&mut **snapshot);
    while let Some(row) = rows.try_next().await? {
        let reply: Reply = serde_json::from_str(&row.reply)
            .with_context(|| format!("the reply to event {:?} of {:?} cannot be read", row.id, row.source))?;
        let digest = digest(&row.hash)
            .with_context(|| format!("the hash of event {:?} of {:?} is too short", row.id, row.source))?;
        let record = Record {
            source: row.source,
            id: row.id,
            ticket: row.ticket,
            digest,
            refused: reply
                .outcomes
                .iter()
                .any(|outcome| outcome.outcome_type.starts_with(REFUSED)),
            outcomes: reply.outcomes.iter().map(|outcome| outcome.sequence).collect(),
            written_at: row.written_at,
        };
        look.ledger.record(record, &mut look.report);
    }
    Ok(())
}

/// What the type of a refusal begins with, in every version.
const REFUSED: &str = "holdfast.outcome.reservation.refused.";

async fn outbox(snapshot: &mut Transaction<'_, Postgres>, look: &mut Look) -> anyhow::Result<()> {
    let mut rows = sqlx::query!(r#"select id, topic, headers::text as "headers!", value from outbox order by id"#)
        .fetch(&mut **snapshot);
    while let Some(row) = rows.try_next().await? {
        let unreadable = || format!("outbox row {} cannot be read", row.id);
        if row.topic == topics::DEAD_LETTERS {
            let headers: std::collections::BTreeMap<String, String> =
                serde_json::from_str(&row.headers).with_context(unreadable)?;
            let headers = headers
                .iter()
                .map(|(name, value)| (name.as_str(), Some(value.as_bytes())));
            // One without an origin came by a direct subscription: nothing says which record it accounts for.
            let letter = DeadLetter::from_headers(headers).ok();
            if let Some(letter) = letter
                && let Some(shard) = shard(&letter.origin)
            {
                look.records.dead_letter(shard, letter.origin.offset, letter.reason);
            }
        } else {
            let outcome = Outcome::from_json(&row.value).with_context(unreadable)?;
            look.ledger.waiting(&outcome, &mut look.report);
        }
    }
    Ok(())
}
