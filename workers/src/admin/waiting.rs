//! What waits for a ticket or a user: outcomes in the outbox, and events in quarantine.

use std::fmt::Write as _;

use holdfast_schemas::{EventData, Key, OutcomeData};
use serde::Serialize;
use sqlx::PgPool;

use super::output::{Table, moment, or_dash};
use crate::domain::{Entity, KeyOf, OutcomeOf};
use crate::printable;
use crate::store::outbox::{self, ListedRow, RowChoice};
use crate::store::quarantine::settle::{self, KeyChoice, ListedEvent, QuarantinedKey};

/// Most parked events that are shown.
const MOST: i64 = 20;

#[derive(Serialize)]
pub(super) struct Waiting {
    outbox: Vec<ListedRow>,
    quarantine: Option<QuarantinedKey>,
    /// The first of them, without what they hold.
    parked: Vec<ListedEvent>,
}

/// What waits for the entity with this key.
pub(super) async fn of<E: Entity>(pool: &PgPool, key: &KeyOf<E>) -> anyhow::Result<Waiting> {
    let (topic, key) = (E::Data::TOPIC, key.as_str());
    let rows = RowChoice {
        topic: Some(<OutcomeOf<E> as OutcomeData>::TOPIC),
        key: Some(key),
        ..RowChoice::default()
    };
    let flagged = KeyChoice {
        topic: Some(topic),
        key: Some(key),
        ..KeyChoice::default()
    };
    Ok(Waiting {
        outbox: outbox::rows(pool, rows).await?,
        quarantine: settle::keys(pool, flagged).await?.into_iter().next(),
        parked: settle::events(pool, topic, key, MOST, false).await?,
    })
}

impl Waiting {
    pub(super) fn write(&self, text: &mut String) -> anyhow::Result<()> {
        writeln!(text, "\noutbox      {} outcomes wait for the relay", self.outbox.len())?;
        let mut table = Table::indented();
        for row in &self.outbox {
            let refused = row.reason.as_ref().map(|reason| format!("refused: {reason}"));
            table.row([
                row.id.to_string(),
                moment(row.written_at)?,
                row.message.to_string(),
                or_dash(refused),
            ]);
        }
        table.write(text)?;
        let Some(key) = &self.quarantine else {
            writeln!(text, "quarantine  no")?;
            return Ok(());
        };
        let (since, kind) = (moment(key.since)?, printable::line(&key.kind));
        writeln!(
            text,
            "quarantine  since {since}, {} events parked: {} {kind}",
            key.parked, key.cause
        )?;
        let mut table = Table::indented();
        for event in &self.parked {
            table.row([
                event.id.to_string(),
                moment(event.parked_at)?,
                event.event_type.clone(),
                format!("{} {}", event.source, event.event),
            ]);
        }
        Ok(table.write(text)?)
    }
}
