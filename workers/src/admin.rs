//! The commands of operators, in one manner: tables or JSON, a dry run where something changes, and who did it and why is kept.
//! Exit codes: 0 done, 1 something was not done or not found, 2 a setting or the command line is wrong.

mod acts;
mod checkout;
mod dead_letters;
mod drive;
mod history;
mod inbox;
mod mail;
mod mend;
mod orders;
mod outbox;
mod output;
mod quarantine;
mod recover;
mod relay;
mod reprocess;
mod rereading;
mod returns;
mod settling;
mod waiting;

use std::time::Duration;

use anyhow::Context;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::config::{self, Admin, AdminCommand, Config};
use crate::domain;
use crate::metrics::Metrics;
use crate::store;
use crate::store::change_log::Until;
use crate::transience::{self, Fault};

/// What a command works with.
struct Desk<'a> {
    config: &'a Config,
    pool: PgPool,
    /// How long an answer of a server is waited for.
    timeout: Duration,
    now: fn() -> OffsetDateTime,
    new_id: fn() -> Uuid,
}

impl Desk<'_> {
    /// The answer of a server, which is waited for no longer.
    async fn within<T>(&self, server: &str, answer: impl Future<Output = T>) -> anyhow::Result<T> {
        let timeout = self.timeout;
        let answered = tokio::time::timeout(timeout, answer).await;
        answered.with_context(|| format!("{server} has not answered within {timeout:?}"))
    }
}

/// Runs one command and prints its result.
///
/// # Errors
/// In words for the operator: what was not found or not done, and why.
pub async fn run(
    command: &AdminCommand,
    config: Config,
    now: fn() -> OffsetDateTime,
    new_id: fn() -> Uuid,
) -> anyhow::Result<()> {
    let (timeout, mut config) = (command.timeout, config);
    if let Admin::Mail(config::MailCommand::Templates { to }) = &command.what {
        return mail::write_templates(to);
    }
    config.database.statement_timeout = config.database.statement_timeout.min(timeout);
    let pool = store::connect_within(timeout, &config.database, &Metrics::new()?).await?;
    let address = store::address(&pool);
    let desk = Desk {
        config: &config,
        pool,
        timeout,
        now,
        new_id,
    };
    let done = carry_out(&command.what, &desk).await;
    done.map_err(|error| match is_silent(&error) {
        true => error.context(format!(
            "a database does not answer any more; the main one is {address}"
        )),
        false => error,
    })
}

/// Whether an answer of a database is missing.
fn is_silent(error: &anyhow::Error) -> bool {
    let of_sql = error.chain().find_map(|cause| cause.downcast_ref());
    of_sql.is_some_and(|error| transience::sql(error) == Fault::Server)
}

async fn carry_out(command: &Admin, desk: &Desk<'_>) -> anyhow::Result<()> {
    let pool = &desk.pool;
    match command {
        Admin::Checkout(command) => checkout::run(command, desk).await,
        Admin::DeadLetters(command) => dead_letters::run(command, desk).await,
        Admin::Outbox(command) => outbox::run(command, pool).await,
        Admin::Mail(command) => mail::run(command, pool).await,
        Admin::Orders(wanted) => orders::list(pool, wanted).await,
        Admin::Show(config::ShowCommand::Cancel {
            show,
            no_refund,
            settle,
        }) => returns::cancel_show(desk, show, !no_refund, settle).await,
        Admin::Sales(wanted) => orders::sales(pool, wanted).await,
        Admin::Quarantine(command) => quarantine::run(command, desk).await,
        Admin::Relay(command) => relay::accept(command, desk).await,
        Admin::Reprocess(command) => reprocess::run(command, desk).await,
        Admin::Recover(command) => recover::run(command, desk).await,
        Admin::Ticket(config::TicketCommand::Show { ticket, state, json }) => {
            history::show::<domain::Ticket>(pool, ticket, until(state), *json).await
        }
        Admin::Ticket(config::TicketCommand::Attributes { ticket, state, json }) => {
            history::attributes(pool, ticket, until(state), *json).await
        }
        Admin::User(config::UserCommand::Show { user, state, json }) => {
            history::show::<domain::User>(pool, user, until(state), *json).await
        }
        Admin::Inbox(wanted) => inbox::list(desk, wanted).await,
        Admin::Log(wanted) => acts::list(pool, wanted).await,
    }
}

fn until(state: &config::PointInTime) -> Until {
    match (state.at, state.as_of) {
        (Some(at), _) => Until::Time(at),
        (None, Some(version)) => Until::Version(version),
        (None, None) => Until::Now,
    }
}
