//! The rights of each role. The statements lie in `deploy/postgres`, where psql can execute them too: the names of roles are psql's
//! variables (`:"app"`), and are quoted here as psql would quote them.

use std::fmt;

use sqlx::{AssertSqlSafe, Connection, PgPool};

use super::session::InTime;
use crate::config::{Granted, Roles};
use crate::transience::{self, Fault};

const MAIN: &str = include_str!("../../../deploy/postgres/grants.sql");
const LOYALTY: &str = include_str!("../../../deploy/postgres/loyalty-grants.sql");

/// How often in a row another process may have changed the same rights meanwhile.
const TRIES: usize = 5;

/// Why the roles have not the rights that they need.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the role {role:?} owns the tables, or is connected as their owner: give the name of another one")]
    Owner { role: String },
    #[error(
        "the rights could not be given: the roles must be there (deploy/postgres/roles.sql; --role-app and its like name them), \
         and `migrate` must run as the owner of the tables"
    )]
    Refused(#[source] sqlx::Error),
    #[error("the rights could not be given")]
    Failed(#[source] sqlx::Error),
}

/// Whom the files name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grantee {
    App,
    Verify,
    Admin,
    Books,
    /// In the loyalty database.
    Loyalty,
}

impl fmt::Display for Grantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Grantee::App => "app",
            Grantee::Verify => "verify",
            Grantee::Admin => "admin",
            Grantee::Books => "books",
            Grantee::Loyalty => "loyalty",
        })
    }
}

/// The rights of the grantee that the connected role has not, such as `update on tickets`.
///
/// # Errors
/// The database does not answer, or a table is not there.
pub async fn missing(pool: &PgPool, grantee: Grantee) -> Result<Vec<String>, super::Error> {
    let listed = listed(grantee);
    let (rights, objects): (Vec<_>, Vec<_>) = listed.into_iter().unzip();
    sqlx::query_scalar(
        "select privilege || ' on ' || object from unnest($1::text[], $2::text[]) as listed (privilege, object)
         where not case privilege when 'execute' then has_function_privilege(object, privilege)
                                  else has_table_privilege(object, privilege) end",
    )
    .bind(&rights)
    .bind(&objects)
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(super::Error::Read)
}

/// The grants of a grantee: what may be done, and with which table or function.
fn listed(grantee: Grantee) -> Vec<(&'static str, &'static str)> {
    let file = if grantee == Grantee::Loyalty { LOYALTY } else { MAIN };
    let end = format!(" to :\"{grantee}\";");
    let grants = file
        .lines()
        .filter_map(|line| line.strip_prefix("grant ")?.strip_suffix(&end));
    grants
        .filter_map(|grant| grant.split_once(" on "))
        .flat_map(|(rights, object)| {
            let object = object.strip_prefix("function ").unwrap_or(object);
            rights.split(", ").map(move |right| (right, object))
        })
        .collect()
}

/// The statements that give the roles their rights in a database.
pub fn statements(database: Granted, roles: &Roles) -> String {
    let file = match database {
        Granted::Main => MAIN,
        Granted::Loyalty => LOYALTY,
    };
    [
        ("app", &roles.app),
        ("verify", &roles.verify),
        ("admin", &roles.admin),
        ("books", &roles.books),
        ("loyalty", &roles.loyalty),
    ]
    .into_iter()
    .fold(file.to_owned(), |text, (variable, role)| {
        text.replace(&format!(":\"{variable}\""), &quoted(role))
    })
}

/// Gives the roles exactly the rights of `deploy/postgres/grants.sql`, as the tables' owner.
///
/// # Errors
/// A role is missing, or the connected one is not the owner.
pub async fn apply(pool: &PgPool, roles: &Roles) -> Result<(), Error> {
    let owner: String = sqlx::query_scalar("select current_user::text")
        .fetch_one(pool)
        .await
        .map_err(failed)?;
    if let Some(role) = [&roles.app, &roles.verify, &roles.admin, &roles.books]
        .into_iter()
        .find(|role| **role == owner)
    {
        return Err(Error::Owner { role: role.clone() });
    }
    let statements = statements(Granted::Main, roles);
    for _ in 1..TRIES {
        match try_once(pool, &statements).await {
            Err(error) if is_concurrent(&error) => {
                tracing::info!("another process changes the same rights: trying again")
            }
            done => return done.map_err(failed),
        }
    }
    try_once(pool, &statements).await.map_err(failed)
}

async fn try_once(pool: &PgPool, statements: &str) -> Result<(), sqlx::Error> {
    let mut session = pool.acquire().await?;
    let mut transaction = session.begin().await?;
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned()))
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}

fn failed(error: sqlx::Error) -> Error {
    match transience::sql(&error) {
        Fault::Setting => Error::Refused(error),
        _ => Error::Failed(error),
    }
}

/// Postgres says so by an internal error.
fn is_concurrent(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    error.is_some_and(|error| error.code().as_deref() == Some("XX000") && error.message().contains("concurrently"))
}

/// As an identifier of SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grant_of_the_files_is_known() {
        let known: usize = [
            Grantee::App,
            Grantee::Verify,
            Grantee::Admin,
            Grantee::Books,
            Grantee::Loyalty,
        ]
        .map(|grantee| {
            let mut objects: Vec<_> = listed(grantee).into_iter().map(|(_, object)| object).collect();
            objects.dedup();
            objects.len()
        })
        .iter()
        .sum();
        let lines = MAIN
            .lines()
            .chain(LOYALTY.lines())
            .filter(|line| line.starts_with("grant "));
        assert_eq!(known, lines.count());
        assert!(listed(Grantee::App).contains(&("execute", "check_rows(text, bigint, bigint)")));
        assert!(listed(Grantee::Verify).iter().all(|(right, _)| *right == "select"));
    }

    #[test]
    fn a_role_is_a_name_and_no_sql() {
        let roles = Roles {
            app: "app\" to public; drop table tickets; --".to_owned(),
            verify: "Verify".to_owned(),
            admin: "admin".to_owned(),
            books: "books".to_owned(),
            loyalty: "loyal".to_owned(),
        };
        let text = statements(Granted::Main, &roles);
        let line = "grant select on generations to \"app\"\" to public; drop table tickets; --\";";
        assert!(text.lines().any(|there| there == line), "{text}");
        assert!(text.contains("grant select on tickets to \"Verify\";"));
        let rest = text + &statements(Granted::Loyalty, &roles);
        let variables = rest
            .lines()
            .filter(|line| !line.starts_with("--") && line.contains(":\""));
        assert_eq!(variables.count(), 0);
    }
}
