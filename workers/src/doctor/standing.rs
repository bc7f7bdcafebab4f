//! What stands still: rows, keys, checkouts and invocations that wait for an operator, and whether the relay and Kafka agree.

use std::time::Duration;

use super::report::Check;
use crate::config::{Config, Part};
use crate::error;
use crate::relay::{self, Agreement};
use crate::restate_admin::{RestateAdmin, StuckInvocation};
use crate::store::inspection::{self, Standing};
use crate::store::{self, PgPool};

/// A kind of what stands still in the database.
struct Kind {
    name: &'static str,
    what: &'static str,
    mend: &'static str,
    page: &'static str,
}

const KINDS: [Kind; 8] = [
    Kind {
        name: "refused",
        what: "outcomes that Kafka refused",
        mend: "look at them with `holdfast admin outbox list`",
        page: "a-row-is-refused-by-kafka",
    },
    Kind {
        name: "untold",
        what: "outcomes that wait for the relay for more than a minute",
        mend: "look at /readyz of each relay, and start one if there is none",
        page: "the-relay-is-not-ready",
    },
    Kind {
        name: "quarantined",
        what: "tickets and users in quarantine",
        mend: "look at them with `holdfast admin quarantine list`",
        page: "a-ticket-or-user-is-in-quarantine",
    },
    Kind {
        name: "stuck",
        what: "checkouts that are stuck",
        mend: "look at them with `holdfast admin checkout list`",
        page: "a-checkout-is-stuck",
    },
    Kind {
        name: "due",
        what: "holds that were due more than a minute ago",
        mend: "look at the log of serve for the Reaper, and at /readyz",
        page: "a-task-stands-still",
    },
    Kind {
        name: "mails",
        what: "mails that wait for more than ten minutes",
        mend: "look at the log of serve for the mail server's answers",
        page: "mails-do-not-go-out",
    },
    Kind {
        name: "open",
        what: "transactions that are open for long",
        mend: "end them: what was deleted since they began is not cleared away",
        page: "a-transaction-is-open-for-long",
    },
    Kind {
        name: "slots",
        what: "replication slots that nobody reads",
        mend: "start their readers, or drop them: the server keeps what they have not read, until its disk is full",
        page: "a-transaction-is-open-for-long",
    },
];

/// What stands still in the database of the tables.
pub(super) async fn database(pool: &PgPool, long_open: Duration) -> Vec<Check> {
    match inspection::standing(pool, long_open).await {
        Ok(found) => KINDS.iter().filter_map(|kind| kind.check(&found)).collect(),
        Err(error) => vec![Check::unknown(
            Part::Postgres,
            "what stands still",
            error::chain(&error),
        )],
    }
}

impl Kind {
    fn check(&self, found: &[Standing]) -> Option<Check> {
        let found = found.iter().find(|found| found.kind == self.name)?;
        if found.count == 0 {
            return Some(Check::sound(Part::Postgres, self.what, "none"));
        }
        let how = match &found.which {
            Some(which) => format!("{}: {which}", found.count),
            None => found.count.to_string(),
        };
        let wrong = Check::wrong(Part::Postgres, self.what, how, self.mend);
        Some(wrong.since(found.since).page(self.page))
    }
}

/// Invocations that fail again and again, or are paused: each holds up its key.
pub(super) async fn invocations(admin: &RestateAdmin) -> Check {
    let what = "invocations that do not get on";
    let found = match admin.stuck().await {
        Ok(found) => found,
        Err(error) => return Check::unknown(Part::Restate, what, error::chain(&error)),
    };
    let Some(oldest) = found.first() else {
        return Check::sound(Part::Restate, what, "none");
    };
    let how: Vec<String> = found.iter().map(StuckInvocation::to_string).collect();
    let mend = "mend what fails; of a paused one also: `restate invocations resume <id>`";
    Check::wrong(Part::Restate, what, how.join("; "), mend)
        .since(oldest.since)
        .page("a-ticket-or-user-makes-no-progress")
}

/// Whether Kafka's mark and the database know the same last batch.
pub(super) async fn relay(config: &Config) -> Check {
    let what = "the relay's mark";
    let pool = match store::pool(&config.database.url, &config.database) {
        Ok(pool) => pool,
        Err(error) => return Check::unknown(Part::Kafka, what, error::chain(&error)),
    };
    let (how, mend, page) = match relay::agreement(&config.kafka, &pool).await {
        Ok(Agreement::Agree { batch }) => return Check::sound(Part::Kafka, what, format!("batch {batch}")),
        Ok(Agreement::NoMark { database }) => (
            format!("none, and the database has told {database} batches"),
            "stop every relay, and compare with `holdfast admin relay accept`",
            "kafka-has-no-mark-of-the-relay",
        ),
        Ok(Agreement::Disagree { database, kafka }) if kafka < database => (
            format!("batch {kafka}, and the database's last one is {database}: Kafka went back in time"),
            "stop every process, and look with `holdfast admin recover outcomes --dry-run`",
            "kafka-went-back-in-time",
        ),
        Ok(Agreement::Disagree { database, kafka }) => (
            format!("batch {kafka}, and the database's last one is {database}: the database went back in time"),
            "stop every process, and look with `holdfast admin recover database --dry-run`",
            "the-database-went-back-in-time",
        ),
        Err(error) => return Check::unknown(Part::Kafka, what, error::chain(&error)),
    };
    Check::wrong(Part::Kafka, what, how, mend).page(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_statement_has_its_words_and_its_section_of_the_runbook() {
        let statement = include_str!("../store/inspection/standing.sql");
        let runbook = include_str!("../../../docs/runbook.md");
        let sections: Vec<String> = runbook
            .lines()
            .filter_map(|line| {
                line.trim_start_matches('#')
                    .strip_prefix(' ')
                    .filter(|_| line.starts_with('#'))
            })
            .map(|title| {
                let title = title.to_lowercase().replace(' ', "-");
                title.replace(|c: char| !c.is_alphanumeric() && c != '-' && c != '_', "")
            })
            .collect();
        for Kind { name, page, .. } in KINDS {
            assert!(statement.contains(&format!("select '{name}'")), "{name}");
            assert!(sections.iter().any(|section| section == page), "{page} of {sections:?}");
        }
        let kinds = statement.lines().filter(|line| line.starts_with("select '")).count();
        assert_eq!(kinds, KINDS.len());
    }
}
