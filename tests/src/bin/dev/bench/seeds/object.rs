//! The handler: one step that reads, one that writes, each journalled by the engine.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use holdfast_schemas::hold_id;
use restate_sdk::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{FromRow, PgPool};
use tokio::sync::Notify;
use tokio::time::Instant;

pub(super) const HANDLER: &str = "SeedsTicket/apply";

pub(super) struct Object {
    pub(super) pool: PgPool,
    /// Wakes the relay.
    pub(super) written: Arc<Notify>,
    /// Since it was last emptied.
    pub(super) first_call: Arc<Mutex<Option<Instant>>>,
}

/// The fields of a CloudEvent that are needed here.
#[derive(Deserialize)]
struct Event {
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    data: EventFields,
}

#[derive(Deserialize)]
struct EventFields {
    user: String,
    hold: Option<String>,
}

/// A row; the ticket is available while there is no hold on it. The version is the one that was read.
#[derive(Clone, FromRow, Serialize, Deserialize)]
struct Ticket {
    holder: Option<String>,
    hold: Option<String>,
    version: i64,
}

#[restate_sdk::object(name = "SeedsTicket", journal_retention = "0s")]
impl Object {
    #[handler]
    async fn apply(&self, ctx: ObjectContext<'_>, event: Bytes) -> HandlerResult<()> {
        self.note_call();
        let event: Event = serde_json::from_slice(&event).terminal()?;
        let ticket = ctx.run(|| self.read(ctx.key())).name("read").await?.into_inner();
        let (verb, next) = decide(ctx.key(), &ticket, &event);
        let outcome = outcome(verb, ctx.key(), &event, &next);
        ctx.run(|| self.write(ctx.key(), &event, &next, &outcome))
            .name("write")
            .await?;
        Ok(())
    }
}

impl Object {
    fn note_call(&self) {
        let mut first = self.first_call.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(Instant::now);
    }

    async fn read(&self, key: &str) -> HandlerResult<Json<Ticket>> {
        let ticket = sqlx::query_as("select holder, hold, version from seeds.tickets where ticket = $1")
            .bind(key)
            .fetch_optional(&self.pool)
            .await?;
        match ticket {
            Some(ticket) => Ok(Json(ticket)),
            None => Err(TerminalError::new_with_code(404, format!("no ticket {key}")).into()),
        }
    }

    /// One transaction: the idempotency record, the row against the version that was read, and the outcome. A repeat finds the
    /// record and changes nothing.
    async fn write(&self, key: &str, event: &Event, next: &Ticket, outcome: &[u8]) -> HandlerResult<()> {
        let mut transaction = self.pool.begin().await?;
        let recorded =
            sqlx::query("insert into seeds.idempotency_records (source, id) values ($1, $2) on conflict do nothing")
                .bind(&event.source)
                .bind(&event.id)
                .execute(&mut *transaction)
                .await?;
        if recorded.rows_affected() == 0 {
            transaction.rollback().await?;
            return Ok(());
        }
        let updated = sqlx::query(
            "update seeds.tickets set holder = $2, hold = $3, version = version + 1 where ticket = $1 and version = $4",
        )
        .bind(key)
        .bind(&next.holder)
        .bind(&next.hold)
        .bind(next.version)
        .execute(&mut *transaction)
        .await?;
        if updated.rows_affected() == 0 {
            transaction.rollback().await?;
            return Err(TerminalError::new_with_code(409, format!("{key} has another version")).into());
        }
        sqlx::query("insert into seeds.outbox (ticket, outcome) values ($1, $2)")
            .bind(key)
            .bind(outcome)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        self.written.notify_one();
        Ok(())
    }
}

/// What the event does to the ticket, in one word, and the ticket afterwards.
fn decide(key: &str, ticket: &Ticket, event: &Event) -> (&'static str, Ticket) {
    let version = ticket.version;
    match (event.kind.as_str(), &ticket.hold) {
        ("holdfast.reservation.requested.v1", None) => {
            let held = Ticket {
                holder: Some(event.data.user.clone()),
                hold: Some(hold_id(&event.source, &event.id, key).to_string()),
                version,
            };
            ("held", held)
        }
        ("holdfast.reservation.released.v1", Some(_)) if event.data.hold == ticket.hold => {
            let available = Ticket {
                holder: None,
                hold: None,
                version,
            };
            ("released", available)
        }
        _ => ("refused", ticket.clone()),
    }
}

/// A CloudEvent.
fn outcome(verb: &str, key: &str, event: &Event, next: &Ticket) -> Vec<u8> {
    let outcome: Value = json!({
        "specversion": "1.0",
        "id": format!("{}/{}", event.source, event.id),
        "source": "seeds",
        "type": format!("seeds.outcome.ticket.{verb}.v1"),
        "subject": key,
        "causationsource": event.source,
        "causationid": event.id,
        "data": { "user": event.data.user, "hold": next.hold },
    });
    outcome.to_string().into_bytes()
}
