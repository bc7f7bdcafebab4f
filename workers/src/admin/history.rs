//! Tickets, their attributes, and users for an operator: the state now or earlier, and the changes that led to it.

use std::io::Write;

use anyhow::{Context, bail};
use holdfast_schemas::{Key, OutcomeData, TicketId};
use sqlx::PgPool;
use time::format_description::well_known::Rfc3339;

use crate::domain::{History, KeyOf, ReplayedUser, State, Ticket, User};
use crate::printable;
use crate::store::change_log::{LoggedChange, Until};
use crate::store::commit::Stored;
use crate::store::ticket_attributes;

/// An entity that can be shown from its change log.
pub(super) trait Shown: Stored + History {
    /// The verb of its first change.
    const BEGUN: &'static str;

    /// The state as names, each of at most eleven characters, with values.
    fn described(was: &Self::Was) -> anyhow::Result<Vec<(&'static str, String)>>;
}

/// Prints the entity with this key as of `until`, and every change up to then.
pub(super) async fn show<E: Shown>(pool: &PgPool, key: &str, until: Until) -> anyhow::Result<()> {
    let key = parse::<KeyOf<E>>(key)?;
    let changes = E::changes(pool, &key, until).await?;
    let Some(was) = as_of::<E>(&changes)? else {
        let begun = E::BEGUN;
        bail!("{key} was never {begun}, or not yet: look at a later moment, or check the id");
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    print(&mut out, &E::described(&was)?)?;
    writeln!(
        out,
        "{:>7} {:<30} {:<22} {:<40} DATA",
        "VERSION", "CHANGED AT", "TOLD", "CAUSE"
    )?;
    for change in &changes {
        let (source, id) = &change.cause;
        let cause = printable::line(format!("{source} {id}"));
        let changed_at = change.changed_at.format(&Rfc3339)?;
        let data = printable::line(change.told.data().to_string());
        writeln!(
            out,
            "{:>7} {changed_at:<30} {:<22} {cause:<40} {data}",
            change.version,
            told(&change.told)
        )?;
    }
    out.flush().context("cannot print")
}

/// Prints a ticket's attributes as of `until`, and every change up to then.
pub(super) async fn attributes(pool: &PgPool, ticket: &str, until: Until) -> anyhow::Result<()> {
    let ticket = parse::<TicketId>(ticket)?;
    let Some((was, items)) = ticket_attributes::history(pool, &ticket, until).await? else {
        bail!("nothing was told of {ticket} beside its state, or not yet: look at a later moment, or check the id");
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let described = [
        ("version", was.version.to_string()),
        ("description", was.description),
        ("entrance", was.entrance),
        ("tags", was.tags.join(", ")),
    ];
    print(&mut out, &described)?;
    writeln!(out, "{:>7} {:<30} DATA", "VERSION", "CHANGED AT")?;
    for item in &items {
        let changed_at = item.changed_at.format(&Rfc3339)?;
        let data = printable::line(item.data.to_string());
        writeln!(out, "{:>7} {changed_at:<30} {data}", item.version)?;
    }
    out.flush().context("cannot print")
}

fn parse<K: Key>(key: &str) -> anyhow::Result<K> {
    K::parse(key).with_context(|| format!("{key:?} is no {} id", K::NAMES))
}

fn print(out: &mut impl Write, described: &[(&'static str, String)]) -> std::io::Result<()> {
    for (name, value) in described {
        writeln!(out, "{name:<12}{}", printable::line(value))?;
    }
    writeln!(out)
}

fn as_of<E: Shown>(changes: &[LoggedChange<E>]) -> anyhow::Result<Option<E::Was>> {
    let mut was = None;
    for LoggedChange {
        version,
        told,
        changed_at,
        ..
    } in changes
    {
        let next = E::after(was, told.clone(), *version, *changed_at);
        was = Some(
            next.with_context(|| format!("version {version} of the change log does not follow from those before"))?,
        );
    }
    Ok(was)
}

/// `ticket.held`, `payment.refused`: noun and verb of the outcome's type.
fn told(told: &impl OutcomeData) -> &'static str {
    let name = told.outcome_type().trim_start_matches("holdfast.outcome.");
    name.rsplit_once(".v").map_or(name, |(name, _)| name)
}

impl Shown for Ticket {
    const BEGUN: &'static str = "listed";

    fn described(ticket: &Ticket) -> anyhow::Result<Vec<(&'static str, String)>> {
        let state = match &ticket.state {
            State::Available => "available".to_owned(),
            State::Withdrawn => "withdrawn".to_owned(),
            State::Held(hold) => format!(
                "held by {} until {}, hold {}{}",
                hold.user,
                hold.until.format(&Rfc3339)?,
                hold.id,
                hold.price
                    .map(|price| format!(", at {} minor units", price.amount()))
                    .unwrap_or_default()
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
        Ok(vec![
            ("state", state),
            ("version", ticket.version.to_string()),
            ("changed", ticket.changed_at.format(&Rfc3339)?),
            ("show", ticket.show.to_string()),
            ("seat", ticket.seat.as_ref().map_or("-".to_owned(), ToString::to_string)),
            ("price", price),
        ])
    }
}

impl Shown for User {
    const BEGUN: &'static str = "registered";

    fn described(user: &ReplayedUser) -> anyhow::Result<Vec<(&'static str, String)>> {
        Ok(vec![
            ("since", user.registered_at.format(&Rfc3339)?),
            ("version", user.version.to_string()),
            ("changed", user.changed_at.format(&Rfc3339)?),
            ("credits", format!("{} given", user.credits)),
        ])
    }
}
