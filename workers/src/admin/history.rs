//! Tickets, their attributes, and users for an operator: the state now or earlier, the changes that led to it, and what waits now.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, bail};
use holdfast_schemas::{Key, OutcomeData, TicketId, UserId};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::format_description::well_known::Rfc3339;

use super::output::{Table, moment, or_dash, print, print_json, write_fields};
use super::waiting::{self, Waiting};
use crate::domain::{History, KeyOf, ReplayedUser, State, Ticket, User};
use crate::store::change_log::{LoggedChange, Until};
use crate::store::commit::Stored;
use crate::store::tickets::{self, UserHold};
use crate::store::{get, ticket_attributes};

/// An entity that can be shown from its change log.
pub(super) trait Shown: Stored + History {
    /// The verb of its first change.
    const BEGUN: &'static str;

    /// The state as names, each of at most eleven characters, with values.
    fn described(was: &Self::Was) -> anyhow::Result<Vec<(&'static str, String)>>;

    /// What it holds now.
    async fn holds(pool: &PgPool, key: &KeyOf<Self>) -> anyhow::Result<Option<Vec<UserHold>>>;
}

/// The entity with one key, as `show` prints it.
struct ShownEntity {
    state: Vec<(&'static str, String)>,
    changes: Vec<ShownChange>,
    /// Only where the newest state is shown.
    now: Option<Now>,
}

/// One version.
#[derive(Serialize)]
struct ShownChange {
    version: i64,
    changed_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    told: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<String>,
    data: Value,
}

/// What only is, and never was.
#[derive(Serialize)]
struct Now {
    /// The version of the row, which must be that of the newest change.
    row: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    holds: Option<Vec<UserHold>>,
    #[serde(flatten)]
    waiting: Waiting,
}

/// Prints the entity with this key as of `until`, and every change up to then.
pub(super) async fn show<E: Shown>(pool: &PgPool, key: &str, until: Until, json: bool) -> anyhow::Result<()> {
    let key = parse::<KeyOf<E>>(key)?;
    let changes = E::changes(pool, &key, until).await?;
    let Some(was) = as_of::<E>(&changes)? else {
        let begun = E::BEGUN;
        bail!("{key} was never {begun}, or not yet: look at a later moment, or check the id");
    };
    let now = match until {
        Until::Now => Some(Now {
            row: get::<E>(pool, &key).await?.map(|row| row.version()),
            holds: E::holds(pool, &key).await?,
            waiting: waiting::of::<E>(pool, &key).await?,
        }),
        Until::Time(_) | Until::Version(_) => None,
    };
    let shown = changes.into_iter().map(|change| {
        let (source, event) = change.cause;
        Ok(ShownChange {
            version: change.version,
            changed_at: change.changed_at.format(&Rfc3339)?,
            told: Some(told(&change.told)),
            source: Some(source),
            event: Some(event),
            data: change.told.data(),
        })
    });
    ShownEntity {
        state: E::described(&was)?,
        changes: shown.collect::<anyhow::Result<_>>()?,
        now,
    }
    .print(json)
}

/// Prints a ticket's attributes as of `until`, and every change up to then.
pub(super) async fn attributes(pool: &PgPool, ticket: &str, until: Until, json: bool) -> anyhow::Result<()> {
    let ticket = parse::<TicketId>(ticket)?;
    let Some((was, items)) = ticket_attributes::history(pool, &ticket, until).await? else {
        bail!("nothing was told of {ticket} beside its state, or not yet: look at a later moment, or check the id");
    };
    let changes = items.into_iter().map(|item| {
        Ok(ShownChange {
            version: item.version,
            changed_at: item.changed_at.format(&Rfc3339)?,
            told: None,
            source: None,
            event: None,
            data: item.data,
        })
    });
    ShownEntity {
        state: vec![
            ("version", was.version.to_string()),
            ("description", was.description),
            ("entrance", was.entrance),
            ("tags", was.tags.join(", ")),
        ],
        changes: changes.collect::<anyhow::Result<_>>()?,
        now: None,
    }
    .print(json)
}

impl ShownEntity {
    fn print(self, json: bool) -> anyhow::Result<()> {
        if json {
            let state: BTreeMap<_, _> = self.state.iter().cloned().collect();
            return print_json(&json!({ "state": state, "changes": self.changes, "now": self.now }));
        }
        let mut text = String::new();
        let last = self.changes.last().map(|change| change.version);
        write_fields(&mut text, 12, self.state)?;
        text.push('\n');
        let mut table = Table::new(["VERSION", "CHANGED AT", "TOLD", "CAUSE", "DATA"]);
        for change in &self.changes {
            let cause = change.source.as_ref().zip(change.event.as_ref());
            table.row([
                change.version.to_string(),
                change.changed_at.clone(),
                or_dash(change.told),
                or_dash(cause.map(|(source, event)| format!("{source} {event}"))),
                change.data.to_string(),
            ]);
        }
        table.write(&mut text)?;
        if let Some(now) = &self.now {
            now.write(&mut text, last)?;
        }
        print(&text)
    }
}

impl Now {
    fn write(&self, text: &mut String, last: Option<i64>) -> anyhow::Result<()> {
        let row = match self.row {
            row if row == last => format!("version {}, as the log", or_dash(row)),
            row => format!("version {}, unlike the log: run `holdfast verify`", or_dash(row)),
        };
        writeln!(text, "\nrow         {row}")?;
        if let Some(holds) = &self.holds {
            writeln!(text, "holds       {}", holds.len())?;
            let mut table = Table::indented();
            for hold in holds {
                table.row([
                    moment(hold.until)?,
                    hold.ticket.clone(),
                    hold.show.clone(),
                    or_dash(hold.seat.as_ref()),
                    hold.hold.to_string(),
                ]);
            }
            table.write(text)?;
        }
        self.waiting.write(text)
    }
}

fn parse<K: Key>(key: &str) -> anyhow::Result<K> {
    K::parse(key).with_context(|| format!("{key:?} is no {} id", K::NAMES))
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
                "sold to {} by checkout {}, hold {}{}",
                sale.user,
                sale.checkout,
                sale.hold,
                if sale.off_sale { ", not for sale again" } else { "" }
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

    /// Its state has its hold.
    async fn holds(_: &PgPool, _: &TicketId) -> anyhow::Result<Option<Vec<UserHold>>> {
        Ok(None)
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

    async fn holds(pool: &PgPool, user: &UserId) -> anyhow::Result<Option<Vec<UserHold>>> {
        Ok(Some(tickets::held_by(pool, user).await?))
    }
}
