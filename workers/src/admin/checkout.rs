//! Checkouts for an operator: lists the stuck ones, shows one, settles one.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::{Context, bail};
use holdfast_schemas::{CheckoutFailure, CheckoutId, Credits, PaymentId};
use sqlx::PgPool;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::drive::{driver, find};
use super::returns;
use crate::checkout::{DriveResult, Driver};
use crate::config::{CheckoutCommand, Config};
use crate::domain::checkout::{Repaid, Repayment, StuckReason};
use crate::printable;
use crate::store::{checkouts, disputes, refunds};

pub(super) async fn run(
    command: &CheckoutCommand,
    config: &Config,
    pool: PgPool,
    now: fn() -> OffsetDateTime,
    new_id: fn() -> Uuid,
) -> anyhow::Result<()> {
    let text = match command {
        CheckoutCommand::List => list(&pool).await?,
        CheckoutCommand::Show { checkout } => show(&pool, checkout).await?,
        CheckoutCommand::Settle { checkout, give_back } => {
            let id = find(&pool, checkout).await?.id;
            let driver = driver(config, &pool, now, new_id)?;
            settle(&driver, &id, *give_back).await?;
            show(&pool, checkout).await?
        }
        CheckoutCommand::Return(wanted) => {
            let driver = driver(config, &pool, now, new_id)?;
            returns::return_order(&driver, wanted).await? + &show(&pool, &wanted.checkout).await?
        }
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot print")
}

async fn list(pool: &PgPool) -> anyhow::Result<String> {
    let stuck = checkouts::stuck(pool).await?;
    let mut text = format!("{:<12} {:<15} CHECKOUT\n", "STATE", "REASON");
    for (checkout, state, reason) in &stuck {
        writeln!(text, "{state:<12} {:<15} {}", reason.name(), printable::line(checkout))?;
    }
    writeln!(text, "{} stuck", stuck.len())?;
    Ok(text)
}

/// Drives the checkout to its end, as its workflow would.
async fn settle(driver: &Driver, id: &CheckoutId, give_back: bool) -> anyhow::Result<()> {
    let pool = &driver.buying.main;
    let was_stuck = find(pool, id.as_str()).await?.stuck.is_some();
    if give_back {
        driver.give_up(id, CheckoutFailure::Settled).await?;
    }
    driver.resume(id).await?;
    let driven = driver.drive(id, true).await;
    if driven.is_err() && was_stuck {
        driver.leave_stuck(id).await?;
    }
    match driven.context("not settled")? {
        DriveResult::Ended => Ok(()),
        DriveResult::Waits(until) => bail!(
            "not settled: it waits for the customer until {}",
            until.format(&Rfc3339)?
        ),
        DriveResult::Stuck => bail!("not settled: {}", stuck_because(find(pool, id.as_str()).await?.stuck)),
    }
}

/// Why a checkout waits for an operator, and what that one can do.
fn stuck_because(reason: Option<StuckReason>) -> &'static str {
    match reason {
        Some(StuckReason::AmountDiffers) => {
            "the amount at the payment provider is not what was asked for; look at the payment there, then give it back with \
             `settle --give-back`"
        }
        Some(StuckReason::RefundFailed) => {
            "a refund has failed, and the seats are given up; refund the payment again at the payment provider, and the mark goes \
             by itself; or give the money back in another way, then `settle`"
        }
        Some(StuckReason::StepFails) | None => {
            "the payment provider does not say how the payment stands, or its next step fails; mend what the log names, then \
             `settle`"
        }
    }
}

async fn show(pool: &PgPool, checkout: &str) -> anyhow::Result<String> {
    let checkout = find(pool, checkout).await?;
    let (total, currency) = (checkout.total.amount(), checkout.currency().code());
    let failure = match checkout.state.failure() {
        Some(failure) => {
            let code = failure.code.as_ref().map(|code| format!(" ({code})"));
            format!("{}{}", failure.reason.as_str(), code.unwrap_or_default())
        }
        None => checkout
            .state
            .code()
            .map_or_else(|| "none".to_owned(), |code| format!("({code})")),
    };
    let mut text = String::new();
    for (name, value) in [
        ("checkout", checkout.id.to_string()),
        ("user", checkout.user.to_string()),
        ("state", checkout.state.name().to_owned()),
        (
            "stuck",
            match checkout.stuck {
                Some(reason) => format!("yes: {}", stuck_because(Some(reason))),
                None => "no".to_owned(),
            },
        ),
        ("failure", failure),
        ("total", format!("{total} {currency} (minor units)")),
        ("credits", checkout.credits.map_or(0, Credits::amount).to_string()),
        ("refunded", checkout.refunded.to_string()),
        (
            "payment",
            checkout.payment.as_ref().map_or("none", PaymentId::as_str).to_owned(),
        ),
        ("until", checkout.until.format(&Rfc3339)?),
    ] {
        writeln!(text, "{name:<10}{}", printable::line(&value))?;
    }
    for line in &checkout.lines {
        let price = line.price.amount();
        let ticket = printable::line(line.ticket.as_str());
        let returned = if line.returned { " returned" } else { "" };
        writeln!(text, "{:<10}{ticket} {price}{returned}", "ticket")?;
    }
    for (place, Repayment { what, settled }) in checkout.repayments.iter().enumerate() {
        let what = match what {
            Repaid::Money(amount) => format!("{amount}"),
            Repaid::Credits(credits) => format!("{} credits", credits.amount()),
        };
        let settled = if *settled { "settled" } else { "open" };
        writeln!(text, "{:<10}{} {what} {settled}", "repayment", place + 1)?;
    }
    for refund in refunds::of(pool, &checkout).await? {
        let (id, amount) = (printable::line(refund.id.as_str()), refund.amount.amount());
        let status = refunds::status_name(refund.status);
        writeln!(text, "{:<10}{id} {amount} {status}", "refund")?;
    }
    for dispute in disputes::of(pool, &checkout).await? {
        let (id, amount) = (printable::line(dispute.id.as_str()), dispute.amount.amount());
        let (status, funds) = (
            disputes::status_name(dispute.status),
            disputes::funds_name(dispute.funds),
        );
        writeln!(text, "{:<10}{id} {amount} {status} {funds}", "dispute")?;
    }
    Ok(text)
}
