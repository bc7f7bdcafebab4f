//! Checkouts for an operator: lists the stuck ones, shows one, settles one.

use std::fmt::Write as _;

use anyhow::{Context, bail};
use holdfast_schemas::{CheckoutFailure, CheckoutId, Credits, PaymentId};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::format_description::well_known::Rfc3339;

use super::drive::{driver, find};
use super::output::{Table, print, print_json, write_fields};
use super::settling::{operator, planned};
use super::{Desk, acts, returns};
use crate::checkout::{DriveResult, Driver};
use crate::config::CheckoutCommand;
use crate::domain::checkout::{Checkout, Dispute, Refund, Repaid, Repayment, StuckReason};
use crate::printable;
use crate::store::operator_log::{self, OperatorAct};
use crate::store::{checkouts, disputes, refunds};

pub(super) async fn run(command: &CheckoutCommand, desk: &Desk<'_>) -> anyhow::Result<()> {
    let pool = &desk.pool;
    match command {
        CheckoutCommand::List { json } => list(pool, *json).await,
        CheckoutCommand::Show { checkout, json } => {
            let shown = ShownCheckout::find(pool, checkout).await?;
            match json {
                true => print_json(&shown.json()?),
                false => print(&shown.text()?),
            }
        }
        CheckoutCommand::Settle {
            checkout,
            give_back,
            settle,
        } => {
            let id = find(pool, checkout).await?.id;
            let (done, how) = match give_back {
                true => ("would be undone, its money and seats given back", Some("--give-back")),
                false => ("would be taken to its end", None),
            };
            if settle.dry_run {
                return planned([id.to_string()], done, settle);
            }
            let driver = driver(desk)?;
            operator_log::note(pool, "checkout settle", id.as_str(), operator(settle), how).await?;
            take_to_end(&driver, &id, *give_back).await?;
            let shown = ShownCheckout::find(pool, checkout).await?;
            match settle.json {
                true => print_json(&shown.json()?),
                false => print(&shown.text()?),
            }
        }
        CheckoutCommand::Return(wanted) => {
            let returned = returns::return_order(desk, wanted).await?;
            let shown = ShownCheckout::find(pool, &wanted.checkout).await?;
            match wanted.settle.json {
                true => print_json(&json!({ "return": returned, "checkout": shown.json()? })),
                false => print(&(returned.text() + &shown.text()?)),
            }
        }
    }
}

async fn list(pool: &PgPool, json: bool) -> anyhow::Result<()> {
    let stuck = checkouts::stuck(pool).await?;
    if json {
        let stuck = stuck
            .iter()
            .map(|(checkout, state, reason)| json!({ "checkout": checkout, "state": state, "reason": reason.name() }));
        return print_json(&json!({ "checkouts": stuck.collect::<Vec<_>>() }));
    }
    let mut table = Table::new(["STATE", "REASON", "CHECKOUT"]);
    for (checkout, state, reason) in &stuck {
        table.row([state.clone(), reason.name().to_owned(), checkout.clone()]);
    }
    let mut text = String::new();
    table.write(&mut text)?;
    writeln!(text, "{} stuck", stuck.len())?;
    print(&text)
}

/// Drives the checkout to its end, as its workflow would.
async fn take_to_end(driver: &Driver, id: &CheckoutId, give_back: bool) -> anyhow::Result<()> {
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
            "not settled: it waits for the customer or the bank, at most until {}",
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

/// One checkout, as `show` prints it.
struct ShownCheckout {
    checkout: Checkout,
    refunds: Vec<Refund>,
    disputes: Vec<Dispute>,
    acts: Vec<OperatorAct>,
}

impl ShownCheckout {
    async fn find(pool: &PgPool, checkout: &str) -> anyhow::Result<Self> {
        let checkout = find(pool, checkout).await?;
        Ok(Self {
            refunds: refunds::of(pool, &checkout).await?,
            disputes: disputes::of(pool, &checkout).await?,
            acts: acts::on(pool, "checkout", checkout.id.as_str()).await?,
            checkout,
        })
    }

    fn json(&self) -> anyhow::Result<Value> {
        let checkout = &self.checkout;
        let failure = checkout.state.failure();
        let tickets = checkout.lines.iter().map(
            |line| json!({ "ticket": line.ticket.as_str(), "price": line.price.amount(), "returned": line.returned }),
        );
        let repayments = checkout
            .repayments
            .iter()
            .map(|Repayment { what, settled }| match what {
                Repaid::Money(amount) => json!({ "money": amount, "settled": settled }),
                Repaid::Credits(credits) => json!({ "credits": credits.amount(), "settled": settled }),
            });
        let refunds = self.refunds.iter().map(|refund| {
            let status = refunds::status_name(refund.status);
            json!({ "refund": refund.id.as_str(), "amount": refund.amount.amount(), "status": status })
        });
        let disputes = self.disputes.iter().map(|dispute| {
            let (status, funds) = (
                disputes::status_name(dispute.status),
                disputes::funds_name(dispute.funds),
            );
            json!({ "dispute": dispute.id.as_str(), "amount": dispute.amount.amount(), "status": status, "funds": funds })
        });
        Ok(json!({
            "checkout": checkout.id.as_str(),
            "user": checkout.user.as_str(),
            "state": checkout.state.name(),
            "stuck": checkout.stuck.map(StuckReason::name),
            "failure": failure.map(|failure| failure.reason.as_str()),
            "code": checkout.state.code().map(ToString::to_string),
            "total": checkout.total.amount(),
            "currency": checkout.currency().code(),
            "credits": checkout.credits.map_or(0, Credits::amount),
            "refunded": checkout.refunded,
            "payment": checkout.payment.as_ref().map(PaymentId::as_str),
            "until": checkout.until.format(&Rfc3339)?,
            "bank_asked_again": checkout.ask_at.map(|at| at.format(&Rfc3339)).transpose()?,
            "tickets": tickets.collect::<Vec<_>>(),
            "repayments": repayments.collect::<Vec<_>>(),
            "refunds": refunds.collect::<Vec<_>>(),
            "disputes": disputes.collect::<Vec<_>>(),
            "acts": self.acts,
        }))
    }

    fn text(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        write_fields(&mut text, 10, self.fields()?)?;
        for line in &self.checkout.lines {
            let price = line.price.amount();
            let ticket = printable::line(line.ticket.as_str());
            let returned = if line.returned { " returned" } else { "" };
            writeln!(text, "{:<10}{ticket} {price}{returned}", "ticket")?;
        }
        for (place, Repayment { what, settled }) in self.checkout.repayments.iter().enumerate() {
            let what = match what {
                Repaid::Money(amount) => format!("{amount}"),
                Repaid::Credits(credits) => format!("{} credits", credits.amount()),
            };
            let settled = if *settled { "settled" } else { "open" };
            writeln!(text, "{:<10}{} {what} {settled}", "repayment", place + 1)?;
        }
        for refund in &self.refunds {
            let (id, amount) = (printable::line(refund.id.as_str()), refund.amount.amount());
            let status = refunds::status_name(refund.status);
            writeln!(text, "{:<10}{id} {amount} {status}", "refund")?;
        }
        for dispute in &self.disputes {
            let (id, amount) = (printable::line(dispute.id.as_str()), dispute.amount.amount());
            let (status, funds) = (
                disputes::status_name(dispute.status),
                disputes::funds_name(dispute.funds),
            );
            writeln!(text, "{:<10}{id} {amount} {status} {funds}", "dispute")?;
        }
        acts::write(&mut text, &self.acts)?;
        Ok(text)
    }

    fn fields(&self) -> anyhow::Result<[(&'static str, String); 11]> {
        let checkout = &self.checkout;
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
        let stuck = match checkout.stuck {
            Some(reason) => format!("yes: {}", stuck_because(Some(reason))),
            None => "no".to_owned(),
        };
        let payment = checkout.payment.as_ref().map_or("none", PaymentId::as_str);
        let bank = match checkout.ask_at {
            Some(at) => format!("is working on the payment; asked again at {}", at.format(&Rfc3339)?),
            None => "-".to_owned(),
        };
        Ok([
            ("checkout", checkout.id.to_string()),
            ("user", checkout.user.to_string()),
            ("state", checkout.state.name().to_owned()),
            ("stuck", stuck),
            ("failure", failure),
            ("total", format!("{total} {currency} (minor units)")),
            ("credits", checkout.credits.map_or(0, Credits::amount).to_string()),
            ("refunded", checkout.refunded.to_string()),
            ("payment", payment.to_owned()),
            ("until", checkout.until.format(&Rfc3339)?),
            ("bank", bank),
        ])
    }
}
