//! The third step: one statement that writes every unit whose row still has the version that was read.

use std::collections::HashSet;

use futures::future::BoxFuture;
use holdfast_schemas::{EventData, Key};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use super::draft::{Current, Draft};
use crate::domain::{Entity, KeyOf};
use crate::store::Error;
use crate::store::change_log::{LoggedChange, Until};
use crate::traces::{self, TracedDecision};

/// An entity with a table of its own.
pub trait Stored: Entity {
    /// The table's own columns, each a list with an element for each unit.
    type Columns<'a>: Default + Send + Sync;

    /// Adds an element to each column: of the new row, or nulls if the unit writes no row.
    fn push<'a>(columns: &mut Self::Columns<'a>, row: Option<&'a Self>);

    /// Reads the rows with these keys that exist, and the clock.
    fn read<'c>(connection: &'c mut PgConnection, keys: &'c [&'c str]) -> BoxFuture<'c, Result<Current<Self>, Error>>;

    /// Sends the statement, which is `write.sql` in the table's folder. Returns the ordinals of the units that were written.
    fn write<'c, 'a: 'c>(
        connection: &'c mut PgConnection,
        writes: &'c WriteSet<'a>,
        columns: &'c Self::Columns<'a>,
    ) -> BoxFuture<'c, Result<Vec<i32>, Error>>;

    /// Reads the entity's change log, oldest first, by [`read_changes`](crate::store::change_log).
    fn changes<'c>(
        pool: &'c PgPool,
        key: &'c KeyOf<Self>,
        until: Until,
    ) -> BoxFuture<'c, Result<Vec<LoggedChange<Self>>, Error>>;
}

/// The statement's parameters, column by column. Everything is gated by `ordinal`, a unit's place in the batch, never by its key: a
/// unit passes when its row is locked and still has the version that was read, when its new row was inserted by this statement, or
/// when it has no row and makes none. Units that do not pass write nothing and are not named in the answer. Each table has a
/// `write.sql` of its own; but for the table's columns, from `$28` on, they are the same.
pub(super) struct Statement<'a, E: Stored> {
    writes: WriteSet<'a>,
    columns: E::Columns<'a>,
    /// The decisions whose traces are recorded, each with the ordinal of its unit.
    traced: Vec<(i32, &'a TracedDecision)>,
}

/// The columns that are the same for every table: the units, which gate the writes, and records, changes and messages.
#[derive(Default)]
pub struct WriteSet<'a> {
    pub(in crate::store) unit: Units<'a>,
    pub(in crate::store) record: Records<'a>,
    pub(in crate::store) change: Changes<'a>,
    pub(in crate::store) message: Messages<'a>,
}

#[derive(Default)]
pub(in crate::store) struct Units<'a> {
    pub(in crate::store) ordinal: Vec<i32>,
    pub(in crate::store) key: Vec<&'a str>,
    pub(in crate::store) read_version: Vec<Option<i64>>,
    pub(in crate::store) version: Vec<Option<i64>>,
    pub(in crate::store) decided_at: Vec<OffsetDateTime>,
    pub(in crate::store) records: Vec<i32>,
    pub(in crate::store) changes: Vec<i32>,
    pub(in crate::store) messages: Vec<i32>,
}

#[derive(Default)]
pub(in crate::store) struct Records<'a> {
    pub(in crate::store) ordinal: Vec<i32>,
    pub(in crate::store) source: Vec<&'a str>,
    pub(in crate::store) id: Vec<&'a str>,
    pub(in crate::store) topic: Vec<&'static str>,
    pub(in crate::store) hash: Vec<&'a [u8]>,
    pub(in crate::store) reply: Vec<String>,
    pub(in crate::store) aged_from: Vec<OffsetDateTime>,
}

#[derive(Default)]
pub(in crate::store) struct Changes<'a> {
    pub(in crate::store) ordinal: Vec<i32>,
    pub(in crate::store) version: Vec<i64>,
    pub(in crate::store) outcome: Vec<Uuid>,
    pub(in crate::store) outcome_type: Vec<&'static str>,
    pub(in crate::store) data: Vec<&'a str>,
    pub(in crate::store) source: Vec<&'a str>,
    pub(in crate::store) id: Vec<&'a str>,
}

#[derive(Default)]
pub(in crate::store) struct Messages<'a> {
    pub(in crate::store) ordinal: Vec<i32>,
    pub(in crate::store) topic: Vec<&'static str>,
    pub(in crate::store) id: Vec<Uuid>,
    pub(in crate::store) headers: Vec<&'a str>,
    pub(in crate::store) value: Vec<&'a [u8]>,
}

impl<'a, E: Stored> FromIterator<(i32, &'a Draft<E>)> for Statement<'a, E> {
    /// Leaves out units that write nothing.
    fn from_iter<I: IntoIterator<Item = (i32, &'a Draft<E>)>>(drafts: I) -> Self {
        let mut statement = Self {
            writes: WriteSet::default(),
            columns: E::Columns::default(),
            traced: Vec::new(),
        };
        for (ordinal, draft) in drafts.into_iter().filter(|(_, draft)| !draft.writes_nothing()) {
            let WriteSet {
                unit,
                record,
                change,
                message,
            } = &mut statement.writes;
            unit.push(ordinal, draft);
            record.push(ordinal, draft);
            change.push(ordinal, draft);
            message.push(ordinal, draft);
            let row = draft.row.as_ref().filter(|_| draft.version().is_some());
            E::push(&mut statement.columns, row);
            statement
                .traced
                .extend(draft.traced.iter().map(|traced| (ordinal, traced)));
        }
        statement
    }
}

impl<E: Stored> Statement<'_, E> {
    pub(super) fn is_empty(&self) -> bool {
        self.units() == 0
    }

    pub(super) fn units(&self) -> usize {
        self.writes.unit.ordinal.len()
    }

    /// Sends the statement. Returns the ordinals of the units that were written; the others met a locked or moved row.
    pub(super) async fn execute(&self, connection: &mut PgConnection) -> Result<HashSet<i32>, Error> {
        let begun = traces::now();
        let passed: HashSet<i32> = E::write(connection, &self.writes, &self.columns)
            .await?
            .into_iter()
            .collect();
        let written = self.traced.iter().filter(|(ordinal, _)| passed.contains(ordinal));
        let written = written.map(|(_, decision)| *decision);
        traces::written(KeyOf::<E>::NAMES, self.units(), begun, written);
        Ok(passed)
    }
}

impl<'a> Units<'a> {
    fn push<E: Entity>(&mut self, ordinal: i32, draft: &'a Draft<E>) {
        self.ordinal.push(ordinal);
        self.key.push(draft.key.as_str());
        self.read_version.push(draft.read_version);
        self.version.push(draft.version());
        self.decided_at.push(draft.decided_at);
        self.records.push(draft.records.len() as i32);
        self.changes.push(draft.changes.len() as i32);
        self.messages.push(draft.messages.len() as i32);
    }
}

impl<'a> Records<'a> {
    fn push<E: Entity>(&mut self, ordinal: i32, draft: &'a Draft<E>) {
        for record in &draft.records {
            self.ordinal.push(ordinal);
            self.source.push(record.source.as_str());
            self.id.push(record.id.as_str());
            self.topic.push(E::Data::TOPIC);
            self.hash.push(record.hash.as_bytes());
            self.reply
                .push(serde_json::to_string(&record.reply).expect("texts and JSON can be written"));
            self.aged_from.push(record.aged_from);
        }
    }
}

impl<'a> Changes<'a> {
    fn push<E: Entity>(&mut self, ordinal: i32, draft: &'a Draft<E>) {
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
    fn push<E: Entity>(&mut self, ordinal: i32, draft: &'a Draft<E>) {
        for message in &draft.messages {
            self.ordinal.push(ordinal);
            self.topic.push(message.topic);
            self.id.push(message.id);
            self.headers.push(&message.headers);
            self.value.push(&message.value);
        }
    }
}

#[cfg(test)]
mod tests {
    /// What is a table's own in its statement, and what stands for it in all of them.
    type Own = [(&'static str, &'static str); 6];

    const TICKETS: Own = [
        ("ticket_change_log", "LOG"),
        ("tickets", "TABLE"),
        (
            "show, seat, price_amount, price_currency, status, hold, holder, held_until, checkout, lengthened, priced, hold_price, off_sale",
            "COLUMNS",
        ),
        (
            "unnest($28::text[]) as show, unnest($29::text[]) as seat, unnest($30::bigint[]) as price_amount,\n           unnest($31::text[]) as price_currency, unnest($32::text[]) as status, unnest($33::uuid[]) as hold,\n           unnest($34::text[]) as holder, unnest($35::timestamptz[]) as held_until, unnest($36::text[]) as checkout,\n           unnest($37::uuid[]) as lengthened, unnest($38::uuid[]) as priced, unnest($39::bigint[]) as hold_price,\n           unnest($40::uuid[]) as off_sale",
            "PARAMETERS",
        ),
        (
            "show = u.show, seat = u.seat, price_amount = u.price_amount, price_currency = u.price_currency,\n            status = u.status, hold = u.hold, holder = u.holder, held_until = u.held_until, checkout = u.checkout, lengthened = u.lengthened, priced = u.priced, hold_price = u.hold_price, off_sale = u.off_sale",
            "SETS",
        ),
        ("ticket", "KEY"),
    ];

    const USERS: Own = [
        ("user_change_log", "LOG"),
        ("users", "TABLE"),
        ("email, name, language, customer", "COLUMNS"),
        (
            "unnest($28::text[]) as email, unnest($29::text[]) as name, unnest($30::text[]) as language,\n           unnest($31::text[]) as customer",
            "PARAMETERS",
        ),
        (
            "email = u.email, name = u.name, language = u.language, customer = u.customer",
            "SETS",
        ),
        ("user_id", "KEY"),
    ];

    fn shared(statement: &str, own: Own) -> String {
        let replace = |statement: String, (own, all): (&str, &str)| {
            assert!(statement.contains(own), "no {own}");
            statement.replace(own, all)
        };
        own.into_iter().fold(statement.to_owned(), replace)
    }

    #[test]
    fn every_table_is_written_by_the_same_statement() {
        let tickets = shared(include_str!("../tickets/write.sql"), TICKETS);
        let users = shared(include_str!("../users/write.sql"), USERS);
        assert_eq!(tickets, users);
    }
}
