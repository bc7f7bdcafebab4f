//! The users table.

use std::collections::HashMap;

use futures::future::BoxFuture;
use holdfast_schemas::{Email, Language, Name, UserId};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::Error;
use super::change_log::{Change, Until, read_changes};
use super::commit::{Current, Gate, Stored, write_rows};
use crate::domain::User;

/// A row as the table has it.
struct Row {
    user_id: String,
    version: i64,
    email: String,
    name: Option<String>,
    language: Option<String>,
    changed_at: OffsetDateTime,
}

/// A plain read: it never waits for writers and may be older than a write in flight.
pub async fn get(pool: &PgPool, user: &UserId) -> Result<Option<User>, Error> {
    let row = sqlx::query_as!(
        Row,
        "select user_id, version, email, name, language, changed_at from users where user_id = $1",
        user.as_str(),
    )
    .fetch_optional(pool)
    .await
    .map_err(Error::Read)?;
    row.map(parse).transpose()
}

/// The table's own columns, in a batch.
#[derive(Default)]
pub struct Columns<'a> {
    email: Vec<Option<&'a str>>,
    name: Vec<Option<&'a str>>,
    language: Vec<Option<&'a str>>,
}

impl Stored for User {
    type Columns<'a> = Columns<'a>;

    fn push<'a>(columns: &mut Columns<'a>, row: Option<&'a User>) {
        let name = row.and_then(|row| row.name.as_ref());
        let language = row.and_then(|row| row.language.as_ref());
        columns.email.push(row.map(|row| row.email.as_str()));
        columns.name.push(name.map(Name::as_str));
        columns.language.push(language.map(Language::as_str));
    }

    fn read<'c>(connection: &'c mut PgConnection, keys: &'c [&'c str]) -> BoxFuture<'c, Result<Current<User>, Error>> {
        Box::pin(read(connection, keys))
    }

    fn write<'c, 'a: 'c>(
        connection: &'c mut PgConnection,
        gate: &'c Gate<'a>,
        columns: &'c Columns<'a>,
    ) -> BoxFuture<'c, Result<Vec<i32>, Error>> {
        Box::pin(async move {
            write_rows!(
                connection, gate,
                table "users", key "user_id", log "user_change_log",
                columns "email, name, language",
                parameters "$28::text[], $29::text[], $30::text[]",
                sets "email = u.email, name = u.name, language = u.language",
                &columns.email, &columns.name, &columns.language
            )
        })
    }

    fn changes<'c>(pool: &'c PgPool, key: &'c UserId, until: Until) -> BoxFuture<'c, Result<Vec<Change<User>>, Error>> {
        Box::pin(async move { read_changes!(pool, key.as_str(), until, log "user_change_log", key "user_id") })
    }
}

async fn read(connection: &mut PgConnection, users: &[&str]) -> Result<Current<User>, Error> {
    let rows = sqlx::query!(
        r#"select clock.now as "now!", clock.generation as "generation!",
                  u.user_id as "user_id?", u.version as "version?", u.email as "email?", u.name, u.language,
                  u.changed_at as "changed_at?"
           from (select clock_timestamp() as now, (select max(generation) from generations) as generation) clock
           left join users u on u.user_id = any($1)"#,
        users as _,
    )
    .fetch_all(connection)
    .await
    .map_err(Error::Read)?;
    let mut current = Current {
        now: OffsetDateTime::UNIX_EPOCH,
        generation: 0,
        rows: HashMap::with_capacity(rows.len()),
    };
    for row in rows {
        (current.now, current.generation) = (row.now, row.generation);
        if let (Some(user_id), Some(version), Some(email), Some(changed_at)) =
            (row.user_id, row.version, row.email, row.changed_at)
        {
            let row = Row {
                user_id: user_id.clone(),
                version,
                email,
                name: row.name,
                language: row.language,
                changed_at,
            };
            current.rows.insert(user_id, parse(row)?);
        }
    }
    Ok(current)
}

fn parse(row: Row) -> Result<User, Error> {
    let wrong = |what: String| Error::Row {
        table: "users",
        key: row.user_id.clone(),
        what,
    };
    Ok(User {
        version: row.version,
        email: Email::try_from(row.email).map_err(|invalid| wrong(format!("email {invalid}")))?,
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
        changed_at: row.changed_at,
    })
}
