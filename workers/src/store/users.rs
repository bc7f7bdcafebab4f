//! The users table.

use std::collections::HashMap;

use futures::future::BoxFuture;
use holdfast_schemas::{CustomerId, Email, Language, Name, UserId};
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::Error;
use super::change_log::{LoggedChange, Until, read_changes};
use super::commit::{Beside, Current, KeyedRow, Stored, WriteSet};
use crate::domain::User;

/// The address of a user who was erased. A release before that could happen would take a null for a user who was never registered,
/// and decide so; an address that it cannot read makes it wait.
const NO_EMAIL: &str = "";

/// A row of the table, if there is one, beside the clock, the generation, and which of the keys are in quarantine.
struct Row {
    now: OffsetDateTime,
    generation: i64,
    quarantined: Option<Json<HashMap<String, String>>>,
    user_id: Option<String>,
    version: Option<i64>,
    email: Option<String>,
    name: Option<String>,
    language: Option<String>,
    customer: Option<String>,
    changed_at: Option<OffsetDateTime>,
}

/// The table's own columns, in a batch.
#[derive(Default)]
pub struct UserColumns<'a> {
    email: Vec<Option<&'a str>>,
    name: Vec<Option<&'a str>>,
    language: Vec<Option<&'a str>>,
    customer: Vec<Option<&'a str>>,
}

impl Stored for User {
    type Columns<'a> = UserColumns<'a>;

    fn push<'a>(columns: &mut UserColumns<'a>, row: Option<&'a User>) {
        let email = |row: &'a User| row.email.as_ref().map_or(NO_EMAIL, Email::as_str);
        let name = row.and_then(|row| row.name.as_ref());
        let language = row.and_then(|row| row.language.as_ref());
        columns.email.push(row.map(email));
        columns.name.push(name.map(Name::as_str));
        columns.language.push(language.map(Language::as_str));
        let customer = row.and_then(|row| row.customer.as_ref());
        columns.customer.push(customer.map(CustomerId::as_str));
    }

    fn read<'c>(connection: &'c mut PgConnection, keys: &'c [&'c str]) -> BoxFuture<'c, Result<Current<User>, Error>> {
        Box::pin(async move {
            let rows = sqlx::query_as!(
                Row,
                r#"select clock.now as "now!", clock.generation as "generation!",
                          clock.quarantined as "quarantined: Json<HashMap<String, String>>",
                          u.user_id as "user_id?", u.version as "version?", u.email as "email?", u.name, u.language, u.customer,
                          u.changed_at as "changed_at?"
                   from (select clock_timestamp() as now, (select max(generation) from generations) as generation,
                                (select json_object_agg(q.key, q.kind) from quarantined_keys q
                                 where q.topic = 'payments' and q.key = any($1)) as quarantined) clock
                   left join users u on u.user_id = any($1)"#,
                keys as _,
            );
            let rows = rows.fetch_all(connection).await.map_err(Error::Read)?;
            Current::of(rows, beside, parse)
        })
    }

    fn write<'c, 'a: 'c>(
        connection: &'c mut PgConnection,
        writes: &'c WriteSet<'a>,
        columns: &'c UserColumns<'a>,
    ) -> BoxFuture<'c, Result<Vec<i32>, Error>> {
        Box::pin(async move {
            let written = sqlx::query_file!(
                "src/store/users/write.sql",
                &writes.unit.ordinal,
                &writes.unit.key as _,
                &writes.unit.read_version as _,
                &writes.unit.version as _,
                &writes.unit.decided_at,
                &writes.unit.records,
                &writes.unit.changes,
                &writes.unit.messages,
                &writes.record.ordinal,
                &writes.record.source as _,
                &writes.record.id as _,
                &writes.record.topic as _,
                &writes.record.hash as _,
                &writes.record.reply,
                &writes.record.aged_from,
                &writes.change.ordinal,
                &writes.change.version,
                &writes.change.outcome,
                &writes.change.outcome_type as _,
                &writes.change.data as _,
                &writes.change.source as _,
                &writes.change.id as _,
                &writes.message.ordinal,
                &writes.message.topic as _,
                &writes.message.id,
                &writes.message.headers as _,
                &writes.message.value as _,
                &columns.email as _,
                &columns.name as _,
                &columns.language as _,
                &columns.customer as _,
            );
            let written = written.fetch_one(connection).await.map_err(Error::Write)?;
            Ok(written.passed)
        })
    }

    fn changes<'c>(
        pool: &'c PgPool,
        key: &'c UserId,
        until: Until,
    ) -> BoxFuture<'c, Result<Vec<LoggedChange<User>>, Error>> {
        Box::pin(async move { read_changes!(pool, key.as_str(), until, log "user_change_log", key "user_id") })
    }
}

fn beside(row: &mut Row) -> Beside {
    Beside {
        now: row.now,
        generation: row.generation,
        quarantined: row.quarantined.take(),
    }
}

fn parse(row: Row) -> Result<KeyedRow<User>, Error> {
    let (Some(key), Some(version), Some(email), Some(changed_at)) =
        (row.user_id, row.version, row.email, row.changed_at)
    else {
        return Ok(None);
    };
    let wrong = |what: String| Error::Row {
        table: "users",
        key: key.clone(),
        what,
    };
    let user = User {
        version,
        email: Some(email)
            .filter(|email| email != NO_EMAIL)
            .map(Email::try_from)
            .transpose()
            .map_err(|invalid| wrong(format!("email {invalid}")))?,
        name: row
            .name
            .map(Name::try_from)
            .transpose()
            .map_err(|invalid| wrong(format!("name {invalid}")))?,
        language: row
            .language
            .map(Language::try_from)
            .transpose()
            .map_err(|invalid| wrong(format!("language {invalid}")))?,
        customer: row
            .customer
            .map(CustomerId::try_from)
            .transpose()
            .map_err(|invalid| wrong(format!("customer {invalid}")))?,
        changed_at,
    };
    Ok(Some((key, user)))
}
