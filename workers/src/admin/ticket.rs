//! A ticket for an operator: what it is or was, and how it came to be so.

use std::io::Write;

use anyhow::{Context, bail};
use holdfast_schemas::{TicketId, TicketTold, Told};
use sqlx::PgPool;
use time::format_description::well_known::Rfc3339;

use super::readable;
use crate::domain::{State, Ticket};
use crate::store::change_log::{self, Change, Until};

/// Prints the ticket as of `until`, and every change up to then.
pub(super) async fn show(pool: &PgPool, ticket: &str, until: Until) -> anyhow::Result<()> {
    let id = TicketId::parse(ticket).with_context(|| format!("{ticket:?} is no ticket id"))?;
    let changes = change_log::of_ticket(pool, &id, until).await?;
    let Some(found) = as_of(&changes)? else {
        bail!("{id} was never listed, or not yet: look at a later moment, or check the id");
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (name, value) in described(&found)? {
        writeln!(out, "{name:<10}{}", readable(value.as_bytes()))?;
    }
    writeln!(
        out,
        "\n{:>7} {:<30} {:<22} {:<40} DATA",
        "VERSION", "CHANGED AT", "TOLD", "CAUSE"
    )?;
    for change in &changes {
        let (source, id) = &change.cause;
        let cause = readable(format!("{source} {id}").as_bytes());
        let changed_at = change.changed_at.format(&Rfc3339)?;
        let data = readable(change.told.data().to_string().as_bytes());
        writeln!(
            out,
            "{:>7} {changed_at:<30} {:<22} {cause:<40} {data}",
            change.version,
            told(&change.told)
        )?;
    }
    out.flush().context("cannot print")
}

fn as_of(changes: &[Change]) -> anyhow::Result<Option<Ticket>> {
    let mut ticket = None;
    for Change {
        version,
        told,
        changed_at,
        ..
    } in changes
    {
        let next = Ticket::after(ticket, told.clone(), *version, *changed_at);
        ticket = Some(
            next.with_context(|| format!("version {version} of the change log does not follow from those before"))?,
        );
    }
    Ok(ticket)
}

fn described(ticket: &Ticket) -> anyhow::Result<[(&'static str, String); 6]> {
    let state = match &ticket.state {
        State::Available => "available".to_owned(),
        State::Withdrawn => "withdrawn".to_owned(),
        State::Held(hold) => format!(
            "held by {} until {}, hold {}",
            hold.user,
            hold.until.format(&Rfc3339)?,
            hold.id
        ),
        State::Sold(sale) => format!(
            "sold to {} by checkout {}, hold {}",
            sale.user, sale.checkout, sale.hold
        ),
    };
    let price = format!(
        "{} minor units of {}",
        ticket.price.amount(),
        ticket.price.currency().code()
    );
    Ok([
        ("state", state),
        ("version", ticket.version.to_string()),
        ("changed", ticket.changed_at.format(&Rfc3339)?),
        ("show", ticket.show.to_string()),
        ("seat", ticket.seat.as_ref().map_or("-".to_owned(), ToString::to_string)),
        ("price", price),
    ])
}

/// `held`, `refused`: the verb of the outcome's type.
fn told(told: &TicketTold) -> &'static str {
    let name = told.outcome_type().trim_start_matches("holdfast.outcome.");
    name.rsplit_once(".v").map_or(name, |(name, _)| name)
}
