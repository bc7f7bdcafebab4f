//! What an operator does when Kafka and the database disagree about the last batch of outcomes.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::bail;
use serde_json::{Value, json};

use super::Desk;
use super::output::{print, print_json};
use super::settling::operator;
use crate::config;
use crate::metrics::Metrics;
use crate::printable;
use crate::relay::Settings;
use crate::relay::acceptance::{self, Consent, Reconciliation};
use crate::store::operator_log;
use crate::store::outcome_log::LoggedOutcome;

/// How many of each kind are printed.
const MOST: usize = 20;

/// Compares, prints what was found, and has Kafka agree with the database if that is safe or wished.
pub(super) async fn accept(command: &config::RelayCommand, desk: &Desk<'_>) -> anyhow::Result<()> {
    let config::RelayCommand::Accept {
        drop_told,
        anyway,
        settle,
    } = command;
    let consent = Consent {
        drop_told: *drop_told,
        anyway: *anyway,
        dry_run: settle.dry_run,
    };
    if !settle.dry_run {
        let flags = [("--drop-told", *drop_told), ("--anyway", *anyway)];
        let given: Vec<_> = flags
            .iter()
            .filter(|(_, given)| *given)
            .map(|(flag, _)| *flag)
            .collect();
        let how = (!given.is_empty()).then(|| given.join(" "));
        operator_log::note(&desk.pool, "relay accept", "relay", operator(settle), how.as_deref()).await?;
    }
    let settings = Settings::new(desk.config);
    let metrics = Arc::new(Metrics::new()?);
    let reconciliation = acceptance::run(settings, desk.pool.clone(), metrics, consent).await?;
    match settle.json {
        true => print_json(&json(&reconciliation))?,
        false => {
            let mut text = String::new();
            write(&mut text, &reconciliation)?;
            print(&text)?;
        }
    }
    if !reconciliation.accepted && !settle.dry_run {
        bail!(
            "nothing was accepted: see docs/runbook.md#the-database-went-back-in-time, then repeat it with --drop-told \
             or --anyway"
        );
    }
    Ok(())
}

pub(super) fn json(reconciliation: &Reconciliation) -> Value {
    let outcomes = |outcomes: &[LoggedOutcome]| {
        let outcomes = outcomes
            .iter()
            .map(|told| json!({ "key": told.key, "version": told.version, "outcome": told.outcome.to_string() }));
        outcomes.collect::<Value>()
    };
    let told = reconciliation.told_already.iter();
    let told =
        told.map(|row| json!({ "id": row.id, "topic": row.topic, "key": row.key, "message": row.message.to_string() }));
    json!({
        "database": reconciliation.database,
        "kafka": reconciliation.kafka,
        "read": reconciliation.read,
        "told_already": told.collect::<Value>(),
        "dropped": reconciliation.dropped,
        "unknown": outcomes(&reconciliation.unknown),
        "untold": outcomes(&reconciliation.untold),
        "consistent": reconciliation.is_consistent(),
        "accepted": reconciliation.accepted,
    })
}

pub(super) fn write(text: &mut String, reconciliation: &Reconciliation) -> anyhow::Result<()> {
    let kafka = reconciliation
        .kafka
        .map_or("none".to_owned(), |batch| batch.to_string());
    writeln!(
        text,
        "last batch: {} in the database, {kafka} in Kafka",
        reconciliation.database
    )?;
    writeln!(
        text,
        "read: {} outcomes and entries on their topics",
        reconciliation.read
    )?;
    let dropped = if reconciliation.dropped {
        ", deleted"
    } else {
        ", would be told twice"
    };
    let told = reconciliation.told_already.len();
    writeln!(
        text,
        "told, and still in the outbox: {told}{}",
        if told > 0 { dropped } else { "" }
    )?;
    for row in reconciliation.told_already.iter().take(MOST) {
        let key = printable::line(&row.key);
        writeln!(text, "  row {} for {key} on {}: {}", row.id, row.topic, row.message)?;
    }
    list(text, "told, and unknown to the database", &reconciliation.unknown)?;
    list(
        text,
        "decided, and neither told nor in the outbox: would never be told",
        &reconciliation.untold,
    )?;
    if reconciliation.accepted {
        writeln!(
            text,
            "accepted: the relay goes on after batch {}",
            reconciliation.database
        )?;
    }
    Ok(())
}

fn list(text: &mut String, what: &str, outcomes: &[LoggedOutcome]) -> anyhow::Result<()> {
    writeln!(text, "{what}: {}", outcomes.len())?;
    for told in outcomes.iter().take(MOST) {
        let key = printable::line(&told.key);
        writeln!(text, "  {key} version {}: {}", told.version, told.outcome)?;
    }
    Ok(())
}
