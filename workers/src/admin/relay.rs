//! What an operator does when Kafka and the database disagree about the last batch of outcomes.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context, bail};
use sqlx::PgPool;

use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::printable;
use crate::relay::Settings;
use crate::relay::acceptance::{self, Consent, Reconciliation};
use crate::store::outcome_log::LoggedOutcome;

/// How many of each kind are printed.
const MOST: usize = 20;

/// Compares, prints what was found, and has Kafka agree with the database if that is safe or wished.
pub(super) async fn accept(command: &config::RelayCommand, config: &Config, pool: PgPool) -> anyhow::Result<()> {
    let config::RelayCommand::Accept { drop_told, anyway } = *command;
    let settings = Settings::new(config);
    let consent = Consent { drop_told, anyway };
    let reconciliation = acceptance::run(settings, pool, Arc::new(Metrics::new()?), consent).await?;
    std::io::stdout()
        .write_all(text(&reconciliation)?.as_bytes())
        .context("cannot print")?;
    if !reconciliation.accepted {
        bail!(
            "nothing was accepted: see docs/runbook.md#the-database-went-back-in-time, then repeat it with --drop-told \
             or --anyway"
        );
    }
    Ok(())
}

fn text(reconciliation: &Reconciliation) -> anyhow::Result<String> {
    let mut text = String::new();
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
        "read: {} outcomes at the ends of their topics",
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
    list(&mut text, "told, and unknown to the database", &reconciliation.unknown)?;
    list(
        &mut text,
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
    Ok(text)
}

fn list(text: &mut String, what: &str, outcomes: &[LoggedOutcome]) -> anyhow::Result<()> {
    writeln!(text, "{what}: {}", outcomes.len())?;
    for told in outcomes.iter().take(MOST) {
        let key = printable::line(&told.key);
        writeln!(text, "  {key} version {}: {}", told.version, told.outcome)?;
    }
    Ok(())
}
