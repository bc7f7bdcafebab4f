//! Postgres, and the loyalty database: whether they are reached, by whom, and whether the tables are as this release needs them.

use std::time::Duration;

use secrecy::SecretString;
use time::OffsetDateTime;

use super::report::{Check, Diagnosis};
use super::standing;
use crate::config::{self, Part};
use crate::error;
use crate::store::grants::{self, Grantee};
use crate::store::{self, inspection};
use crate::transience::{self, Fault};

/// Clocks that differ by more make events look older or newer than they are.
const MOST_APART: Duration = Duration::from_secs(5);

/// Vacuum begins to freeze at 200 million transactions (`autovacuum_freeze_max_age`), and hurries at 1,600 million.
const MOST_UNFROZEN: i64 = 1_000_000_000;

/// The oldest version of PostgreSQL whose SQL the statements use.
const OLDEST: i32 = 150_000;

/// Looks at the database of the tables, for sessions of these.
pub(super) async fn check(
    database: &config::Database,
    grantees: &[Grantee],
    long_open: Duration,
    clock: fn() -> OffsetDateTime,
) -> Vec<Check> {
    let setting = "--database-url (HOLDFAST_DATABASE_URL)";
    let (pool, mut checks) = match reach(Part::Postgres, &database.url, setting, database, clock).await {
        Ok((pool, _, checks)) => (pool, checks),
        Err(checks) => return checks,
    };
    let mut are_there = true;
    if grantees.contains(&Grantee::App) {
        let tables = tables(&pool).await;
        are_there = tables
            .iter()
            .all(|check| !matches!(check.diagnosis, Diagnosis::Wrong { .. }));
        checks.extend(tables);
    }
    for grantee in grantees.iter().filter(|_| are_there) {
        let file = "have the tables' owner run `holdfast migrate --grants`";
        checks.push(rights(Part::Postgres, &pool, *grantee, file).await);
    }
    if are_there && grantees.contains(&Grantee::App) {
        checks.extend(standing::database(&pool, long_open).await);
    }
    checks
}

pub(super) async fn check_loyalty(database: &config::Database, clock: fn() -> OffsetDateTime) -> Vec<Check> {
    let Some(url) = &database.loyalty_url else {
        let what = "the loyalty database";
        return vec![Check::sound(Part::Loyalty, what, "none is set: credits are refused")];
    };
    let setting = "--loyalty-url (HOLDFAST_LOYALTY_URL)";
    match reach(Part::Loyalty, url, setting, database, clock).await {
        Ok((pool, facts, mut checks)) => {
            checks.push(prepares(&facts));
            let file = "have its owner execute what `holdfast migrate --print-grants loyalty` prints";
            checks.push(rights(Part::Loyalty, &pool, Grantee::Loyalty, file).await);
            checks
        }
        Err(checks) => checks,
    }
}

/// Reaches a database, or says why it cannot.
async fn reach(
    part: Part,
    url: &SecretString,
    setting: &str,
    database: &config::Database,
    clock: fn() -> OffsetDateTime,
) -> Result<(store::PgPool, inspection::Facts, Vec<Check>), Vec<Check>> {
    let pool = match store::pool(url, database) {
        Ok(pool) => pool,
        Err(error) => {
            return Err(vec![Check::wrong(
                part,
                "the address",
                error::chain(&error),
                format!("set {setting}"),
            )]);
        }
    };
    let what = format!("the database {}", store::address(&pool));
    if let Err(error) = store::reach(&pool).await {
        return Err(vec![
            Check::wrong(part, what, error::chain(&error), mend(&error, setting)),
            Check::unknown(part, "version, clock, tables, rights", "the database was not reached"),
        ]);
    }
    let before = clock();
    let facts = match inspection::facts(&pool).await {
        Ok(facts) => facts,
        Err(error) => {
            return Err(vec![Check::wrong(
                part,
                what,
                error::chain(&error),
                "connect again: it answered a moment ago",
            )]);
        }
    };
    let checks = vec![
        Check::sound(part, what, format!("reached as {} {}", facts.user, encrypted(&facts))),
        version(part, &facts),
        frozen(part, &facts),
        apart(part, facts.now, before, clock()),
        Check::sound(part, "the size", &facts.size),
    ];
    Ok((pool, facts, checks))
}

/// Whether the role that is connected may do with the tables what the grantee must.
async fn rights(part: Part, pool: &store::PgPool, grantee: Grantee, mend: &str) -> Check {
    let what = format!("the rights of {grantee}");
    match grants::missing(pool, grantee).await {
        Ok(missing) if missing.is_empty() => Check::sound(part, what, "all there"),
        Ok(missing) => Check::wrong(part, what, format!("missing: {}", missing.join(", ")), mend),
        Err(error) => Check::wrong(part, what, error::chain(&error), "look whether the tables are there"),
    }
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

/// Whether vacuum keeps up: the server takes no more writes once no number is left for a transaction.
fn frozen(part: Part, facts: &inspection::Facts) -> Check {
    let how = format!("the oldest row was written {} transactions ago", facts.frozen_age);
    match facts.frozen_age < MOST_UNFROZEN {
        true => Check::sound(part, "vacuum", how),
        false => {
            let mend = "end transactions that are open for long, and run `vacuum (freeze)` as the tables' owner: at 2000000000 the server stops";
            Check::wrong(part, "vacuum", how, mend).page("a-transaction-is-open-for-long")
        }
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

async fn tables(pool: &store::PgPool) -> Vec<Check> {
    let part = Part::Postgres;
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

fn prepares(facts: &inspection::Facts) -> Check {
    let (part, what) = (Part::Loyalty, "max_prepared_transactions");
    match facts.max_prepared_transactions {
        0 => Check::wrong(
            part,
            what,
            "0: credits cannot be added by two-phase commit",
            "set it to at least the connections of all `serve`s, and restart that server",
        ),
        count => Check::sound(part, what, count.to_string()),
    }
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
    use super::*;

    #[test]
    fn a_server_that_is_too_old_is_wrong() {
        let said = |number| {
            let facts = inspection::Facts {
                version: number,
                now: OffsetDateTime::UNIX_EPOCH,
                user: String::new(),
                encryption: None,
                max_prepared_transactions: 0,
                frozen_age: number.into(),
                size: String::new(),
            };
            version(Part::Postgres, &facts).diagnosis
        };
        assert!(matches!(said(150_000), Diagnosis::Sound { .. }));
        assert!(
            matches!(said(149_999), Diagnosis::Wrong { how, mend } if how == "PostgreSQL 14" && mend.contains("15 is the oldest"))
        );
    }

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
