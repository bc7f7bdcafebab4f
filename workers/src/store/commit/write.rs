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
use crate::store::change_log::{Change, Until};

/// An entity with a table of its own.
pub trait Stored: Entity {
    /// The table's own columns, each a list with an element for each unit.
    type Columns<'a>: Default + Send + Sync;

    /// Adds an element to each column: of the new row, or nulls if the unit writes no row.
    fn push<'a>(columns: &mut Self::Columns<'a>, row: Option<&'a Self>);

    /// Reads the rows with these keys that exist, and the clock.
    fn read<'c>(connection: &'c mut PgConnection, keys: &'c [&'c str]) -> BoxFuture<'c, Result<Current<Self>, Error>>;

    /// Sends the statement, by [`write_rows`]. Returns the ordinals of the units that were written.
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
    ) -> BoxFuture<'c, Result<Vec<Change<Self>>, Error>>;
}

/// The statement's parameters, column by column. `ordinal` names a unit's place in the batch and gates everything.
pub(super) struct Statement<'a, E: Stored> {
    writes: WriteSet<'a>,
    columns: E::Columns<'a>,
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
        Ok(E::write(connection, &self.writes, &self.columns)
            .await?
            .into_iter()
            .collect())
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
            self.reply.push(serde_json::json!(record.reply).to_string());
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

/// The statement for one table, put together from literals so that it is checked when the program is built. Everything is gated
/// by the unit's ordinal, never by its key: a unit passes when its row is locked and still has the version that was read, when
/// its new row was inserted by this statement, or when it has no row and makes none. Units that do not pass write nothing and
/// are not named in the answer.
///
/// `columns` names the table's own columns, `parameters` their arrays from `$28` on, `sets` how an update takes them from `u`.
macro_rules! write_rows {
    (
        $connection:expr, $writes:expr,
        table $table:literal, key $key:literal, log $log:literal,
        columns $columns:literal, parameters $parameters:literal, sets $sets:literal,
        $($column:expr),+ $(,)?
    ) => {
        sqlx::query!(
            "with unit as materialized (
    select *
    from unnest(
        $1::int[], $2::text[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::int[], $7::int[], $8::int[],
        " + $parameters + "
    ) as u (ordinal, key, read_version, version, decided_at, records, changes, messages, " + $columns + ")
),
locked as materialized (
    select u.ordinal
    from unit u join " + $table + " t on t." + $key + " = u.key and t.version = u.read_version
    order by t." + $key + "
    for no key update of t skip locked
),
inserted as (
    insert into " + $table + " (" + $key + ", version, changed_at, " + $columns + ")
    select key, version, decided_at, " + $columns + "
    from unit
    where read_version is null and version is not null
    order by key
    on conflict do nothing
    returning " + $key + " as key
),
passed as materialized (
    select ordinal from locked
    union all
    select u.ordinal from unit u join inserted i on i.key = u.key
    union all
    select ordinal from unit where read_version is null and version is null
),
updated as (
    update " + $table + " t
    set version = u.version, changed_at = u.decided_at, " + $sets + "
    from unit u join passed p on p.ordinal = u.ordinal
    where t." + $key + " = u.key and t.version = u.read_version and u.version is not null
    returning 1
),
recorded as (
    insert into idempotency_records (source, id, topic, key, hash, reply, aged_from, written_at)
    select r.source, r.id, r.topic, u.key, r.hash, r.reply::json, r.aged_from, u.decided_at
    from unnest($9::int[], $10::text[], $11::text[], $12::text[], $13::bytea[], $14::text[], $15::timestamptz[])
             as r (ordinal, source, id, topic, hash, reply, aged_from)
         join passed p on p.ordinal = r.ordinal
         join unit u on u.ordinal = r.ordinal
    returning 1
),
logged as (
    insert into " + $log + " (" + $key + ", version, outcome, type, data, cause_source, cause_id, changed_at)
    select u.key, c.version, c.outcome, c.type, c.data::json, c.cause_source, c.cause_id, u.decided_at
    from unnest($16::int[], $17::bigint[], $18::uuid[], $19::text[], $20::text[], $21::text[], $22::text[])
             with ordinality as c (ordinal, version, outcome, type, data, cause_source, cause_id, place)
         join passed p on p.ordinal = c.ordinal
         join unit u on u.ordinal = c.ordinal
    order by c.place
    returning 1
),
queued as (
    insert into outbox (topic, key, message, headers, value, written_at)
    select m.topic, u.key, m.message, m.headers::json, m.value, u.decided_at
    from unnest($23::int[], $24::text[], $25::uuid[], $26::text[], $27::bytea[])
             with ordinality as m (ordinal, topic, message, headers, value, place)
         join passed p on p.ordinal = m.ordinal
         join unit u on u.ordinal = m.ordinal
    order by m.place
    returning 1
),
meant as (
    select count(u.version) as rows, sum(u.records) as records, sum(u.changes) as changes, sum(u.messages) as messages
    from unit u join passed p on p.ordinal = u.ordinal
)
select
    array(select ordinal from passed) as \"passed!\",
    check_rows('" + $table + "', m.rows, (select count(*) from inserted) + (select count(*) from updated))
        and check_rows('idempotency_records', coalesce(m.records, 0), (select count(*) from recorded))
        and check_rows('" + $log + "', coalesce(m.changes, 0), (select count(*) from logged))
        and check_rows('outbox', coalesce(m.messages, 0), (select count(*) from queued))
        and pg_notify('outbox', '') is not null as \"written!\"
from meant m",
            &$writes.unit.ordinal,
            &$writes.unit.key as _,
            &$writes.unit.read_version as _,
            &$writes.unit.version as _,
            &$writes.unit.decided_at,
            &$writes.unit.records,
            &$writes.unit.changes,
            &$writes.unit.messages,
            &$writes.record.ordinal,
            &$writes.record.source as _,
            &$writes.record.id as _,
            &$writes.record.topic as _,
            &$writes.record.hash as _,
            &$writes.record.reply,
            &$writes.record.aged_from,
            &$writes.change.ordinal,
            &$writes.change.version,
            &$writes.change.outcome,
            &$writes.change.outcome_type as _,
            &$writes.change.data as _,
            &$writes.change.source as _,
            &$writes.change.id as _,
            &$writes.message.ordinal,
            &$writes.message.topic as _,
            &$writes.message.id,
            &$writes.message.headers as _,
            &$writes.message.value as _,
            $($column as _),+
        )
        .fetch_one($connection)
        .await
        .map(|written| written.passed)
        .map_err(crate::store::Error::Write)
    };
}
pub(in crate::store) use write_rows;
