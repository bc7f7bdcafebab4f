//! Tables of seats: as a reader keeps one, and as Postgres has them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// By ticket, what a reader's row and a row of Postgres have in common.
pub(super) type Seats = BTreeMap<String, Value>;

/// What a reader has kept.
#[derive(serde::Deserialize)]
pub(super) struct Kept {
    offsets: BTreeMap<String, Value>,
    /// The rows of each seat; the last one counts.
    seats: BTreeMap<String, Vec<Value>>,
}

impl Kept {
    pub(super) fn load(file: &Path) -> anyhow::Result<Kept> {
        let text = fs::read(file).with_context(|| file.display().to_string())?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// How far it has read, all partitions together. Some languages keep the numbers as texts.
    pub(super) fn read(&self) -> anyhow::Result<i64> {
        let number = |offset: &Value| match offset {
            Value::String(text) => Ok(text.parse::<i64>()?),
            number => number.as_i64().context("no offset"),
        };
        self.offsets.values().map(number).sum()
    }

    pub(super) fn seats(&self) -> anyhow::Result<Seats> {
        let newest = |(ticket, rows): (&String, &Vec<Value>)| {
            let row = rows.last().with_context(|| format!("no row of {ticket}"))?;
            Ok((ticket.clone(), comparable(row)?))
        };
        self.seats.iter().map(newest).collect()
    }

    /// The newest row of a seat, as it was kept.
    pub(super) fn row(&self, ticket: &str) -> anyhow::Result<&Value> {
        let rows = self.seats.get(ticket).context("no such seat")?;
        rows.last().context("no row")
    }
}

pub(super) async fn in_postgres(pool: &PgPool) -> anyhow::Result<Seats> {
    let all: Value = sqlx::query_scalar(
        "select coalesce(jsonb_object_agg(ticket, jsonb_build_object('sequence', version, 'status', status, 'show', show,
             'seat', seat, 'price', price_amount, 'currency', price_currency, 'user', holder, 'hold', hold,
             'until', held_until, 'checkout', checkout)), '{}')
         from tickets",
    )
    .fetch_one(pool)
    .await?;
    let rows = all.as_object().context("no object")?;
    rows.iter()
        .map(|(ticket, row)| Ok((ticket.clone(), comparable(row)?)))
        .collect()
}

/// The columns that both have, the end of a hold as the same text whoever wrote it.
fn comparable(row: &Value) -> anyhow::Result<Value> {
    let until = match row["until"].as_str() {
        Some(text) => Some(
            OffsetDateTime::parse(text, &Rfc3339)?
                .unix_timestamp_nanos()
                .to_string(),
        ),
        None => None,
    };
    Ok(json!({
        "sequence": row["sequence"], "status": row["status"], "show": row["show"], "seat": row["seat"],
        "price": row["price"], "currency": row["currency"], "user": row["user"], "hold": row["hold"], "until": until,
        "checkout": row["checkout"],
    }))
}
