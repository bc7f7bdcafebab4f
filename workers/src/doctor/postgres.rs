//! Postgres, and the loyalty database: whether they are reached, by whom, and whether the tables are as this release needs them.

use std::time::Duration;

use secrecy::SecretString;
use time::OffsetDateTime;

use super::report::{Check, Part};
use crate::config::{self, Config};
use crate::error;
use crate::store::{self, inspection};
use crate::transience::{self, Fault};

/// Clocks that differ by more make events look older or newer than they are.
const MOST_APART: Duration = Duration::from_secs(5);

/// The oldest version of PostgreSQL whose SQL the statements use.
const OLDEST: i32 = 150_000;

pub(super) async fn check(config: &Config, clock: fn() -> OffsetDateTime) -> Vec<Check> {
    let database = &config.database;
    let mut checks = one(
        Part::Postgres,
        &database.url,
        "--database-url (HOLDFAST_DATABASE_URL)",
        database,
        clock,
    )
    .await;
    match &database.loyalty_url {
        Some(url) => {
            checks.extend(
                one(
                    Part::Loyalty,
                    url,
                    "--loyalty-url (HOLDFAST_LOYALTY_URL)",
                    database,
                    clock,
                )
                .await,
            );
        }
        None => checks.push(Check::sound(
            Part::Loyalty,
            "the loyalty database",
            "none is set: credits are refused",
        )),
    }
    checks
}

async fn one(
    part: Part,
    url: &SecretString,
    setting: &str,
    database: &config::Database,
    clock: fn() -> OffsetDateTime,
) -> Vec<Check> {
    let pool = match store::pool(url, database) {
        Ok(pool) => pool,
        Err(error) => {
            return vec![Check::wrong(
                part,
                "the address",
                error::chain(&error),
                format!("set {setting}"),
            )];
        }
    };
    let what = format!("the database {}", store::address(&pool));
    if let Err(error) = store::reach(&pool).await {
        return vec![
            Check::wrong(part, what, error::chain(&error), mend(&error, setting)),
            Check::unknown(part, "version, clock, tables", "the database was not reached"),
        ];
    }
    let before = clock();
    let facts = match inspection::facts(&pool).await {
        Ok(facts) => facts,
        Err(error) => {
            return vec![Check::wrong(
                part,
                what,
                error::chain(&error),
                "connect again: it answered a moment ago",
            )];
        }
    };
    let mut checks = vec![
        Check::sound(part, what, format!("reached as {} {}", facts.user, encrypted(&facts))),
        version(part, &facts),
        apart(part, facts.now, before, clock()),
    ];
    checks.extend(match part {
        Part::Loyalty => prepares(part, &facts),
        _ => tables(part, &pool).await,
    });
    checks
}

fn encrypted(facts: &inspection::Facts) -> String {
    match &facts.encryption {
        Some(version) => format!("over {version}"),
        None => "without TLS".to_owned(),
    }
}

fn version(part: Part, facts: &inspection::Facts) -> Check {
    let number = facts.version / 10_000;
    match facts.version >= OLDEST {
        true => Check::sound(part, "the version", format!("PostgreSQL {number}")),
        false => Check::wrong(
            part,
            "the version",
            format!("PostgreSQL {number}"),
            format!("upgrade the server: {} is the oldest that works", OLDEST / 10_000),
        ),
    }
}

/// Compares its clock with ours, read before and after it was asked.
fn apart(part: Part, its: OffsetDateTime, before: OffsetDateTime, after: OffsetDateTime) -> Check {
    let ahead = its - after;
    let behind = before - its;
    let apart = ahead.max(behind).max(time::Duration::ZERO);
    match apart <= MOST_APART {
        true => Check::sound(part, "the clock", format!("within {}s of ours", MOST_APART.as_secs())),
        false => Check::wrong(
            part,
            "the clock",
            format!(
                "{}s {} ours",
                apart.whole_seconds(),
                if ahead > behind { "ahead of" } else { "behind" }
            ),
            "set the clocks of both machines by NTP",
        ),
    }
}

async fn tables(part: Part, pool: &store::PgPool) -> Vec<Check> {
    let pending = match inspection::pending(pool).await {
        Ok(pending) => pending,
        Err(error) => {
            return vec![Check::wrong(
                part,
                "the tables",
                error::chain(&error),
                "run `holdfast migrate` as their owner",
            )];
        }
    };
    let migrated = match &pending[..] {
        [] => Check::sound(part, "the tables", "up to date"),
        some => Check::wrong(
            part,
            "the tables",
            format!("{} migrations are missing, the first is {}", some.len(), some[0]),
            "run `holdfast migrate` as their owner",
        ),
    };
    let indexes = match inspection::invalid_indexes(pool).await {
        Ok(indexes) if indexes.is_empty() => Check::sound(part, "the indexes", "all valid"),
        Ok(indexes) => Check::wrong(
            part,
            "the indexes",
            format!("left unfinished: {}", indexes.join(", ")),
            "run `holdfast migrate`: it builds them again",
        ),
        Err(error) => Check::unknown(part, "the indexes", error::chain(&error)),
    };
    vec![migrated, indexes]
}

fn prepares(part: Part, facts: &inspection::Facts) -> Vec<Check> {
    let what = "max_prepared_transactions";
    vec![match facts.max_prepared_transactions {
        0 => Check::wrong(
            part,
            what,
            "0: credits cannot be added by two-phase commit",
            "set it to at least the connections of all `serve`s, and restart that server",
        ),
        count => Check::sound(part, what, count.to_string()),
    }]
}

fn mend(error: &sqlx::Error, setting: &str) -> String {
    let code = match error {
        sqlx::Error::Database(answer) => answer.code().unwrap_or_default().into_owned(),
        _ => String::new(),
    };
    match code.as_str() {
        "28P01" | "28000" => format!("set user and password in {setting}, or let this user in by pg_hba.conf"),
        "3D000" => format!("create the database, or name another in {setting}"),
        _ if matches!(error, sqlx::Error::Tls(_)) => {
            format!("set sslmode and sslrootcert in {setting} as the server has them")
        }
        _ if transience::sql(error) == Fault::Setting => {
            format!("mend what it says, or set {setting} to another database")
        }
        _ => format!("start it, or check the address in {setting} and the way there"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Diagnosis;
    use super::*;

    #[test]
    fn a_clock_is_wrong_only_beyond_what_asking_took() {
        let at = |second: i64| OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(second);
        let wrong = |its, before, after| {
            matches!(
                apart(Part::Postgres, at(its), at(before), at(after)).diagnosis,
                Diagnosis::Wrong { .. }
            )
        };
        assert!(!wrong(100, 98, 99) && !wrong(100, 104, 105) && !wrong(50, 10, 90));
        assert!(wrong(100, 90, 91) && wrong(100, 120, 121));
    }
}
