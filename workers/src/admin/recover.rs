//! What an operator does when a store went back in time.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::output::{moment, print, print_json};
use super::settling::{SettledItem, operator, report};
use super::{Desk, drive, relay};
use crate::checkout::DriveResult;
use crate::config::{FullRefund, RecoverCommand, Settle};
use crate::error;
use crate::metrics::Metrics;
use crate::printable;
use crate::relay::Settings;
use crate::relay::recovery::{self, RecoveryOrder, RecoveryResult};
use crate::relay::retelling::{self, RetellingOrder, RetellingResult};
use crate::store::loyalty::{self, Balance};
use crate::store::mechanisms::two_phase;
use crate::store::recovery::{Recovery, RolledForward};
use crate::store::{self, PgPool, checkouts, operator_log};

/// How many obstacles are printed.
const MOST: usize = 50;

pub(super) async fn run(command: &RecoverCommand, desk: &Desk<'_>) -> anyhow::Result<()> {
    match command {
        RecoverCommand::Database {
            without_profiles,
            new_generation,
            settle,
        } => database(*without_profiles, *new_generation, settle, desk).await,
        RecoverCommand::Outcomes { from, settle } => outcomes(*from, settle, desk).await,
        RecoverCommand::Loyalty { users, settle, .. } => balances(users, settle, desk).await,
    }
}

/// Rolls the database forward to what Kafka has told, and prints what was found and written.
async fn database(
    without_profiles: bool,
    new_generation: bool,
    settle: &Settle,
    desk: &Desk<'_>,
) -> anyhow::Result<()> {
    let Desk { config, pool, .. } = desk;
    let operator = operator(settle);
    if !settle.dry_run {
        let flags = [
            ("--without-profiles", without_profiles),
            ("--new-generation", new_generation),
        ];
        let given = flags.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag);
        let how = given.collect::<Vec<_>>().join(" ");
        let how = Some(how.as_str()).filter(|how| !how.is_empty());
        operator_log::note(pool, "recover database", "database", operator, how).await?;
    }
    let loyalty = loyalty_database(desk)?;
    let recovery = Recovery {
        pool: pool.clone(),
        holds: config.checkout.hold_terms(),
        retention: config.database.idempotency_retention,
        loyalty,
        mails: config.mail.smtp_url.is_some(),
        refund_frees_seats: config.checkout.full_refund == FullRefund::FreesSeats,
        without_profiles,
    };
    let order = RecoveryOrder {
        who: operator.who.to_owned(),
        why: operator.why.to_owned(),
        new_generation,
        dry_run: settle.dry_run,
    };
    let result = recovery::run(Settings::new(config), Arc::new(Metrics::new()?), recovery, order).await?;
    let is_accepted = result.reconciliation.as_ref().is_some_and(|found| found.accepted);
    let driven = match is_accepted && result.rolled.is_some() {
        true => drive_unfinished(desk).await?,
        false => vec![],
    };
    match settle.json {
        true => print_json(&json(&result, &driven, settle.dry_run))?,
        false => print(&text(&result, &driven, settle.dry_run)?)?,
    }
    let obstacles = result.rolled.as_ref().map_or(0, |rolled| rolled.obstacles.len());
    if obstacles > 0 {
        bail!(
            "{obstacles} tickets, users or checkouts cannot be rolled forward, so nothing was written: see \
             docs/runbook.md#what-cannot-be-rolled-forward"
        );
    }
    if result
        .reconciliation
        .is_some_and(|reconciliation| !reconciliation.accepted)
    {
        bail!("Kafka has not told what the database has decided: see docs/runbook.md#the-database-went-back-in-time");
    }
    Ok(())
}

/// Tells again what Kafka has lost, and prints what was found and queued.
async fn outcomes(from: Option<OffsetDateTime>, settle: &Settle, desk: &Desk<'_>) -> anyhow::Result<()> {
    if !settle.dry_run {
        let how = from
            .map(|from| moment(from).map(|from| format!("--from {from}")))
            .transpose()?;
        operator_log::note(
            &desk.pool,
            "recover outcomes",
            "outcomes",
            operator(settle),
            how.as_deref(),
        )
        .await?;
    }
    let order = RetellingOrder {
        from,
        dry_run: settle.dry_run,
    };
    let metrics = Arc::new(Metrics::new()?);
    let result = retelling::run(Settings::new(desk.config), desk.pool.clone(), metrics, order).await?;
    match settle.json {
        true => print_json(&retold_json(&result, settle.dry_run))?,
        false => print(&retold_text(&result, settle.dry_run)?)?,
    }
    let RetellingResult { told, reconciliation } = &result;
    if !told.gaps.is_empty() {
        bail!(
            "{} outcomes that later ones have followed were left out: see docs/runbook.md#kafka-went-back-in-time",
            told.gaps.len()
        );
    }
    if !reconciliation.is_consistent() {
        bail!(
            "Kafka has told what the database does not know: go on with `holdfast admin recover database`, see \
             docs/runbook.md#the-database-went-back-in-time"
        );
    }
    Ok(())
}

fn loyalty_database(desk: &Desk<'_>) -> anyhow::Result<Option<PgPool>> {
    let database = &desk.config.database;
    let url = database.loyalty_url.as_ref();
    Ok(url.map(|url| store::pool(url, database)).transpose()?)
}

/// Gives users the credits that they must have by the main database; all of them when none is named.
async fn balances(users: &[String], settle: &Settle, desk: &Desk<'_>) -> anyhow::Result<()> {
    let main = &desk.pool;
    let other =
        loyalty_database(desk)?.context("there is no loyalty database: set --loyalty-url (HOLDFAST_LOYALTY_URL)")?;
    if !settle.dry_run {
        // What lies prepared locks the accounts, and is part of neither balance.
        two_phase::sweep(main, &other, std::time::Duration::ZERO).await?;
    }
    let mut differing = loyalty::differing(main, &other).await?;
    differing.retain(|balance| users.is_empty() || users.contains(&balance.user));
    let mut items = Vec::new();
    for balance in &differing {
        let Balance { user, due, found } = balance;
        let from = found.map_or("no account".to_owned(), |found| found.to_string());
        let what = format!("{from} -> {due}");
        if settle.dry_run {
            items.push(SettledItem::not_done(user, &what));
            continue;
        }
        operator_log::note(main, "recover loyalty", user, operator(settle), Some(&what)).await?;
        items.push(match loyalty::mend(&other, balance).await? {
            true => SettledItem::done(user, &what),
            false => SettledItem::not_done(user, "changed meanwhile"),
        });
    }
    report(&items, settle)
}

/// What became of a checkout that had not ended.
#[derive(Serialize)]
struct DrivenCheckout {
    checkout: String,
    result: String,
}

/// Takes the checkouts that have not ended further, as their workflows would: what their payments are is asked of the provider.
async fn drive_unfinished(desk: &Desk<'_>) -> anyhow::Result<Vec<DrivenCheckout>> {
    let driver = drive::driver(desk)?;
    let soon = store::now(&desk.pool).await? + Duration::MINUTE;
    let mut driven = Vec::new();
    for id in checkouts::unfinished(&desk.pool, soon, &[], &[]).await? {
        let result = match driver.drive(&id, true).await {
            Ok(DriveResult::Ended) => "has ended".to_owned(),
            Ok(DriveResult::Waits(until)) => {
                format!("waits for the customer or the bank, at most until {}", moment(until)?)
            }
            Ok(DriveResult::Stuck) => "is stuck".to_owned(),
            Err(error) => format!("is left to its workflow: {}", error::chain(&error)),
        };
        driven.push(DrivenCheckout {
            checkout: id.to_string(),
            result,
        });
    }
    Ok(driven)
}

fn json(result: &RecoveryResult, driven: &[DrivenCheckout], dry_run: bool) -> Value {
    let rolled = result.rolled.as_ref().map(|rolled| {
        let obstacles = rolled.obstacles.iter();
        let obstacles = obstacles.map(|obstacle| json!({ "key": obstacle.key, "what": obstacle.what }));
        json!({
            "generation": rolled.generation,
            "tickets": rolled.tickets,
            "users": rolled.users,
            "checkouts": rolled.checkouts,
            "outcomes": rolled.outcomes,
            "dropped": rolled.dropped,
            "completed": rolled.completed,
            "without_content": rolled.without_content,
            "without_profile": rolled.without_profile,
            "obstacles": obstacles.collect::<Value>(),
        })
    });
    json!({
        "dry_run": dry_run,
        "read": result.read,
        "rolled_forward": rolled,
        "reconciliation": result.reconciliation.as_ref().map(relay::json),
        "driven": driven,
    })
}

fn retold_json(result: &RetellingResult, dry_run: bool) -> Value {
    let RetellingResult { told, reconciliation } = result;
    json!({
        "dry_run": dry_run,
        "told_again": {
            "tickets": told.tickets,
            "users": told.users,
            "entries": told.entries,
            "refusals": told.refusals,
            "left_out": told.gaps.len(),
        },
        "reconciliation": relay::json(reconciliation),
    })
}

fn retold_text(result: &RetellingResult, dry_run: bool) -> anyhow::Result<String> {
    let RetellingResult { told, reconciliation } = result;
    let mut text = String::new();
    let done = if dry_run { "would go" } else { "went" };
    writeln!(
        text,
        "{} outcomes of tickets, {} of users, {} refusals about what there is not, and {} entries of the ledger are missing in Kafka \
         and {done} to the outbox again",
        told.tickets, told.users, told.refusals, told.entries
    )?;
    relay::write(&mut text, reconciliation)?;
    Ok(text)
}

fn text(result: &RecoveryResult, driven: &[DrivenCheckout], dry_run: bool) -> anyhow::Result<String> {
    let mut text = String::new();
    writeln!(text, "read: {} outcomes and entries", result.read)?;
    match &result.rolled {
        None => writeln!(text, "the database knows them all")?,
        Some(rolled) => write_rolled(&mut text, rolled, dry_run)?,
    }
    if let Some(reconciliation) = &result.reconciliation {
        relay::write(&mut text, reconciliation)?;
    }
    for DrivenCheckout { checkout, result } in driven {
        writeln!(
            text,
            "checkout {} {}",
            printable::line(checkout),
            printable::line(result)
        )?;
    }
    Ok(text)
}

fn write_rolled(text: &mut String, rolled: &RolledForward, dry_run: bool) -> anyhow::Result<()> {
    let is_stopped = !rolled.obstacles.is_empty();
    for obstacle in rolled.obstacles.iter().take(MOST) {
        let (key, what) = (printable::line(&obstacle.key), printable::line(&obstacle.what));
        writeln!(text, "cannot be rolled forward: {key}: {what}")?;
    }
    if rolled.obstacles.len() > MOST {
        writeln!(text, "and {} more, which --json lists", rolled.obstacles.len() - MOST)?;
    }
    for user in &rolled.without_profile {
        writeln!(
            text,
            "without a profile, as if erased: {}",
            printable::line(user.as_str())
        )?;
    }
    let done = match (is_stopped, dry_run) {
        (true, _) => "could be",
        (false, true) => "would be",
        (false, false) => "were",
    };
    writeln!(
        text,
        "{} outcomes of {} tickets and {} users, and {} checkouts, {done} rolled forward, as generation {} begins",
        rolled.outcomes, rolled.tickets, rolled.users, rolled.checkouts, rolled.generation
    )?;
    for (count, what) in [
        (rolled.dropped, "rows of the outbox were told before, and leave it"),
        (
            rolled.completed as u64,
            "outcomes of events that were told in part go to the outbox",
        ),
        (
            rolled.without_content as u64,
            "events are known again by their ids alone: whatever repeats one is refused as another one",
        ),
    ] {
        if count > 0 {
            writeln!(text, "{count} {what}")?;
        }
    }
    Ok(())
}
