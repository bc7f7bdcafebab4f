//! The outbox for an operator: the rows that Kafka refused, tried again or deleted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context;
use serde::Serialize;
use serde_json::json;
use sqlx::PgPool;

use super::acts;
use super::output::{Table, moment, or_dash, print, print_json, write_fields};
use super::settling::{SettledItem, all_found, operator, planned, report};
use crate::config::{Chosen, Filters, Outbox, Settle};
use crate::printable;
use crate::store::operator_log::OperatorAct;
use crate::store::outbox::{self, ListedRow, RowChoice};

const WHAT: &str = "refused outbox row";
const LIST: &str = "outbox list";

pub(super) async fn run(command: &Outbox, pool: &PgPool) -> anyhow::Result<()> {
    match command {
        Outbox::List { filters, json } => list(pool, filters, *json).await,
        Outbox::Show { id, payload, json } => show(pool, *id, *payload, *json).await,
        Outbox::Retry { chosen, settle } => {
            let rows = chosen_rows(pool, chosen).await?;
            if settle.dry_run {
                return planned(names(&rows), "would be tried again", settle);
            }
            let done = outbox::retry(pool, &ids(&rows), operator(settle)).await?;
            settled(&rows, &done, "the relay will try it again", settle)
        }
        Outbox::Drop { chosen, settle } => {
            let rows = chosen_rows(pool, chosen).await?;
            if settle.dry_run {
                return planned(names(&rows), "would be deleted, and never told", settle);
            }
            let done = outbox::discard(pool, &ids(&rows), operator(settle)).await?;
            settled(&rows, &done, "deleted: it is never told", settle)
        }
    }
}

async fn list(pool: &PgPool, filters: &Filters, json: bool) -> anyhow::Result<()> {
    let rows = outbox::rows(pool, choice(None, filters)).await?;
    if json {
        return print_json(&json!({ "rows": rows }));
    }
    let mut reasons: BTreeMap<&str, Vec<&ListedRow>> = BTreeMap::new();
    for row in &rows {
        let reason = row.reason.as_deref().unwrap_or_default();
        reasons.entry(reason).or_default().push(row);
    }
    let mut text = String::new();
    for (reason, rows) in reasons {
        let behind: i64 = rows.iter().map(|row| row.behind).sum();
        let reason = printable::line(reason);
        writeln!(text, "{reason} ({} rows, {behind} behind them)", rows.len())?;
        let mut table = Table::indented();
        for row in rows {
            table.row([
                row.id.to_string(),
                moment(row.written_at)?,
                row.topic.clone(),
                row.behind.to_string(),
                row.key.clone(),
            ]);
        }
        table.write(&mut text)?;
    }
    writeln!(text, "{} refused", rows.len())?;
    print(&text)
}

/// One row, as `show` prints it.
#[derive(Serialize)]
struct ShownRow {
    #[serde(flatten)]
    row: Option<ListedRow>,
    headers: BTreeMap<String, String>,
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    acts: Vec<OperatorAct>,
}

async fn show(pool: &PgPool, id: i64, payload: bool, json: bool) -> anyhow::Result<()> {
    let ids = [id];
    let choice = RowChoice {
        ids: Some(&ids),
        ..RowChoice::default()
    };
    let row = outbox::rows(pool, choice).await?.into_iter().next();
    let content = outbox::content(pool, id).await?;
    let acts = acts::on(pool, "outbox", &id.to_string()).await?;
    let there = row.zip(content);
    if there.is_none() && acts.is_empty() {
        anyhow::bail!("there is no outbox row {id}: Kafka has it, or it never was");
    }
    let (row, content) = there.unzip();
    let (headers, value) = content.map_or_else(Default::default, |content| (content.headers.0, content.value));
    let shown = ShownRow {
        row,
        headers,
        bytes: value.len(),
        value: payload.then(|| String::from_utf8_lossy(&value).into_owned()),
        acts,
    };
    match json {
        true => print_json(&shown),
        false => print(&shown.text(id)?),
    }
}

impl ShownRow {
    fn text(&self, id: i64) -> anyhow::Result<String> {
        let mut text = String::new();
        match &self.row {
            Some(row) => {
                let fields = [
                    ("row", row.id.to_string()),
                    ("topic", row.topic.clone()),
                    ("key", row.key.clone()),
                    ("message", row.message.to_string()),
                    ("written", moment(row.written_at)?),
                    ("refused", or_dash(row.reason.as_ref())),
                    ("behind", row.behind.to_string()),
                ];
                write_fields(&mut text, 10, fields)?;
                let headers = self.headers.iter().map(|(name, value)| format!("{name}: {value}"));
                write_fields(&mut text, 10, headers.map(|header| ("header", header)))?;
                writeln!(text, "{:<10}{} bytes", "value", self.bytes)?;
                if let Some(value) = &self.value {
                    writeln!(text, "{}", printable::text(value))?;
                }
            }
            None => writeln!(text, "{id} is not in the outbox any more")?,
        }
        acts::write(&mut text, &self.acts)?;
        Ok(text)
    }
}

/// The refused rows that a command means, of which there must be some.
async fn chosen_rows(pool: &PgPool, chosen: &Chosen) -> anyhow::Result<Vec<ListedRow>> {
    let ids = chosen.names.iter().map(|name| {
        name.parse()
            .with_context(|| format!("{name:?} is no id of a row: `admin {LIST}` has them"))
    });
    let ids = ids.collect::<anyhow::Result<Vec<i64>>>()?;
    let named = (!ids.is_empty()).then_some(ids.as_slice());
    let rows = outbox::rows(pool, choice(named, &chosen.filters)).await?;
    all_found(&chosen.names, &names(&rows), chosen.all, WHAT, LIST)?;
    Ok(rows)
}

fn choice<'a>(ids: Option<&'a [i64]>, filters: &'a Filters) -> RowChoice<'a> {
    RowChoice {
        ids,
        topic: filters.topic.as_deref(),
        key: filters.key.as_deref(),
        reason: filters.reason.as_deref(),
        since: filters.since,
        until: filters.until,
        refused: true,
    }
}

fn settled(rows: &[ListedRow], done: &[i64], result: &str, settle: &Settle) -> anyhow::Result<()> {
    let items = rows.iter().map(|row| match done.contains(&row.id) {
        true => SettledItem::done(row.id, result),
        false => SettledItem::not_done(row.id, "somebody else has settled it meanwhile"),
    });
    report(&items.collect::<Vec<_>>(), settle)
}

fn ids(rows: &[ListedRow]) -> Vec<i64> {
    rows.iter().map(|row| row.id).collect()
}

fn names(rows: &[ListedRow]) -> Vec<String> {
    rows.iter().map(|row| row.id.to_string()).collect()
}
