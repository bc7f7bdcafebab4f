//! The third step: one statement that writes every unit whose row still has the version that was read.

use std::collections::HashSet;

use holdfast_schemas::TicketId;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use super::draft::Draft;
use crate::domain::State;
use crate::store::Error;
use crate::store::tickets::status;

/// The statement's parameters, column by column. `ordinal` names a unit's place in the batch and gates everything.
#[derive(Default)]
pub(super) struct Statement<'a> {
    unit: Units<'a>,
    record: Records<'a>,
    change: Changes<'a>,
    message: Messages<'a>,
}

#[derive(Default)]
struct Units<'a> {
    ordinal: Vec<i32>,
    ticket: Vec<&'a str>,
    read_version: Vec<Option<i64>>,
    version: Vec<Option<i64>>,
    show: Vec<Option<&'a str>>,
    seat: Vec<Option<&'a str>>,
    price_amount: Vec<Option<i64>>,
    price_currency: Vec<Option<&'static str>>,
    status: Vec<Option<&'static str>>,
    hold: Vec<Option<Uuid>>,
    holder: Vec<Option<&'a str>>,
    held_until: Vec<Option<OffsetDateTime>>,
    checkout: Vec<Option<&'a str>>,
    decided_at: Vec<OffsetDateTime>,
    records: Vec<i32>,
    changes: Vec<i32>,
    messages: Vec<i32>,
}

#[derive(Default)]
struct Records<'a> {
    ordinal: Vec<i32>,
    source: Vec<&'a str>,
    id: Vec<&'a str>,
    hash: Vec<&'a [u8]>,
    reply: Vec<String>,
    aged_from: Vec<OffsetDateTime>,
}

#[derive(Default)]
struct Changes<'a> {
    ordinal: Vec<i32>,
    version: Vec<i64>,
    outcome: Vec<Uuid>,
    outcome_type: Vec<&'static str>,
    data: Vec<&'a str>,
    source: Vec<&'a str>,
    id: Vec<&'a str>,
}

#[derive(Default)]
struct Messages<'a> {
    ordinal: Vec<i32>,
    topic: Vec<&'static str>,
    id: Vec<Uuid>,
    headers: Vec<&'a str>,
    value: Vec<&'a [u8]>,
}

impl<'a> FromIterator<(i32, &'a Draft)> for Statement<'a> {
    fn from_iter<I: IntoIterator<Item = (i32, &'a Draft)>>(drafts: I) -> Self {
        let mut statement = Self::default();
        for (ordinal, draft) in drafts {
            statement.unit.push(ordinal, draft);
            statement.record.push(ordinal, draft);
            statement.change.push(ordinal, draft);
            statement.message.push(ordinal, draft);
        }
        statement
    }
}

impl Statement<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.unit.ordinal.is_empty()
    }

    /// Sends the statement. Answers the ordinals of the units that were written; the others met a locked or moved row.
    pub(super) async fn execute(&self, pool: &PgPool) -> Result<HashSet<i32>, Error> {
        let Self {
            unit,
            record,
            change,
            message,
        } = self;
        let written = sqlx::query_file!(
            "src/store/commit/write.sql",
            &unit.ordinal,
            &unit.ticket as _,
            &unit.read_version as _,
            &unit.version as _,
            &unit.show as _,
            &unit.seat as _,
            &unit.price_amount as _,
            &unit.price_currency as _,
            &unit.status as _,
            &unit.hold as _,
            &unit.holder as _,
            &unit.held_until as _,
            &unit.checkout as _,
            &unit.decided_at,
            &unit.records,
            &unit.changes,
            &unit.messages,
            &record.ordinal,
            &record.source as _,
            &record.id as _,
            &record.hash as _,
            &record.reply,
            &record.aged_from,
            &change.ordinal,
            &change.version,
            &change.outcome,
            &change.outcome_type as _,
            &change.data as _,
            &change.source as _,
            &change.id as _,
            &message.ordinal,
            &message.topic as _,
            &message.id,
            &message.headers as _,
            &message.value as _,
        )
        .fetch_one(pool)
        .await
        .map_err(Error::Write)?;
        Ok(written.passed.into_iter().collect())
    }
}

impl<'a> Units<'a> {
    fn push(&mut self, ordinal: i32, draft: &'a Draft) {
        let row = draft.row.as_ref().filter(|_| draft.version().is_some());
        let (hold, holder, held_until, checkout) = match row.map(|row| &row.state) {
            None | Some(State::Available | State::Withdrawn) => (None, None, None, None),
            Some(State::Held(hold)) => (Some(hold.id), Some(&hold.user), Some(hold.until), None),
            Some(State::Sold(sale)) => (Some(sale.hold), Some(&sale.user), None, Some(&sale.checkout)),
        };
        self.ordinal.push(ordinal);
        self.ticket.push(TicketId::as_str(&draft.ticket));
        self.read_version.push(draft.read_version);
        self.version.push(draft.version());
        self.show.push(row.map(|row| row.show.as_str()));
        self.seat
            .push(row.and_then(|row| row.seat.as_ref()).map(|seat| seat.as_str()));
        self.price_amount.push(row.map(|row| row.price.amount()));
        self.price_currency.push(row.map(|row| row.price.currency().code()));
        self.status.push(row.map(|row| status(&row.state)));
        self.hold.push(hold.map(|hold| hold.0));
        self.holder.push(holder.map(|holder| holder.as_str()));
        self.held_until.push(held_until);
        self.checkout.push(checkout.map(|checkout| checkout.as_str()));
        self.decided_at.push(draft.decided_at);
        self.records.push(draft.records.len() as i32);
        self.changes.push(draft.changes.len() as i32);
        self.messages.push(draft.messages.len() as i32);
    }
}

impl<'a> Records<'a> {
    fn push(&mut self, ordinal: i32, draft: &'a Draft) {
        for record in &draft.records {
            self.ordinal.push(ordinal);
            self.source.push(record.source.as_str());
            self.id.push(record.id.as_str());
            self.hash.push(record.hash.as_bytes());
            self.reply.push(serde_json::json!(record.reply).to_string());
            self.aged_from.push(record.aged_from);
        }
    }
}

impl<'a> Changes<'a> {
    fn push(&mut self, ordinal: i32, draft: &'a Draft) {
        for change in &draft.changes {
            self.ordinal.push(ordinal);
            self.version.push(change.version);
            self.outcome.push(change.outcome);
            self.outcome_type.push(change.outcome_type);
            self.data.push(&change.data);
            self.source.push(change.source.as_str());
            self.id.push(change.id.as_str());
        }
    }
}

impl<'a> Messages<'a> {
    fn push(&mut self, ordinal: i32, draft: &'a Draft) {
        for message in &draft.messages {
            self.ordinal.push(ordinal);
            self.topic.push(message.topic);
            self.id.push(message.id);
            self.headers.push(&message.headers);
            self.value.push(&message.value);
        }
    }
}
