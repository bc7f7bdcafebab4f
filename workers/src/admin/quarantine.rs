//! What is in quarantine, for an operator: lists it by what broke, shows it, has it replayed or dropped. Nothing prints what is in
//! an event unless it is asked for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, bail};
use holdfast_schemas::topics;
use serde::Serialize;
use serde_json::json;
use sqlx::PgPool;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};

use super::Desk;
use super::output::{print, print_json};
use super::settling::operator;
use crate::config::{OneKey, QuarantineCommand, Quarantined, Settle};
use crate::objects::{REPLAY, TICKET, USER};
use crate::printable;
use crate::restate_admin;
use crate::store::quarantine::settle::{self, KeyChoice, ListedEvent, Portion, QuarantineStep, QuarantinedKey};

/// Pause between two looks at a replay.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn run(command: &QuarantineCommand, desk: &Desk<'_>) -> anyhow::Result<()> {
    let pool = &desk.pool;
    match command {
        QuarantineCommand::List { chosen, json } => list(pool, chosen, *json).await,
        QuarantineCommand::Show {
            key,
            payload,
            limit,
            json,
        } => {
            let (topic, key) = one(key)?;
            let shown = show(pool, topic, key, i64::from(*limit), *payload).await?;
            match json {
                true => print_json(&shown),
                false => print(&shown.table()?),
            }
        }
        QuarantineCommand::Replay { chosen, settle, wait } => {
            let keys = chosen_keys(pool, chosen).await?;
            if settle.dry_run {
                return planned(&keys, "would be replayed", |key| key.parked, settle.json);
            }
            replay(desk, &keys, settle, *wait).await
        }
        QuarantineCommand::Drop {
            chosen,
            settle,
            everything,
        } => {
            let keys = chosen_keys(pool, chosen).await?;
            let portion = match everything {
                true => Portion::Everything,
                false => Portion::Breaker,
            };
            if settle.dry_run {
                let events = |key: &QuarantinedKey| match portion {
                    Portion::Everything => key.parked,
                    Portion::Breaker => key.parked.min(1),
                };
                return planned(&keys, "would be dropped", events, settle.json);
            }
            drop_parked(pool, &keys, portion, settle).await
        }
    }
}

/// What one command did with one key.
#[derive(Serialize)]
struct Settled<'a> {
    topic: &'a str,
    key: &'a str,
    events: i64,
    result: String,
}

async fn list(pool: &PgPool, chosen: &Quarantined, json: bool) -> anyhow::Result<()> {
    let keys = settle::keys(pool, choice(chosen)).await?;
    if json {
        return print_json(&json!({ "keys": keys }));
    }
    let mut kinds: BTreeMap<(&str, &str), Vec<&QuarantinedKey>> = BTreeMap::new();
    for key in &keys {
        kinds.entry((&key.cause, &key.kind)).or_default().push(key);
    }
    let mut text = String::new();
    for ((cause, kind), keys) in kinds {
        let parked: i64 = keys.iter().map(|key| key.parked).sum();
        let kind = printable::line(kind);
        writeln!(text, "{cause}: {kind} ({} keys, {parked} events)", keys.len())?;
        for key in keys {
            let (name, since) = (name(key), key.since.replace_nanosecond(0)?.format(&Rfc3339)?);
            let first = key
                .first_type
                .as_deref()
                .map_or_else(|| "-".to_owned(), printable::line);
            let replays = if key.replays { " (is being replayed)" } else { "" };
            writeln!(text, "  {since:<20} {:>8} {first:<38} {name}{replays}", key.parked)?;
        }
    }
    writeln!(text, "{} in quarantine", keys.len())?;
    print(&text)
}

/// One key, as `show` prints it.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    key: QuarantinedKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    events: Vec<ListedEvent>,
    steps: Vec<QuarantineStep>,
}

async fn show(pool: &PgPool, topic: &str, key: &str, limit: i64, payload: bool) -> anyhow::Result<Shown> {
    let choice = KeyChoice {
        topic: Some(topic),
        key: Some(key),
        ..KeyChoice::default()
    };
    let found = settle::keys(pool, choice).await?.into_iter().next();
    let Some(found) = found else {
        let steps = settle::steps(pool, topic, key).await?;
        let last = steps
            .last()
            .map(|step| format!("; the last that was done: {}", step.what));
        bail!("{key:?} is not in quarantine{}", last.unwrap_or_default());
    };
    Ok(Shown {
        key: found,
        error: match payload {
            true => settle::error_of(pool, topic, key).await?,
            false => None,
        },
        events: settle::events(pool, topic, key, limit, payload).await?,
        steps: settle::steps(pool, topic, key).await?,
    })
}

impl Shown {
    fn table(&self) -> anyhow::Result<String> {
        let Self {
            key,
            error,
            events,
            steps,
        } = self;
        let mut text = String::new();
        for (label, value) in [
            ("key", name(key)),
            ("cause", key.cause.clone()),
            ("kind", key.kind.clone()),
            ("since", key.since.format(&Rfc3339)?),
            ("parked", key.parked.to_string()),
            ("replayed", if key.replays { "asked for" } else { "no" }.to_owned()),
        ] {
            writeln!(text, "{label:<10}{}", printable::line(&value))?;
        }
        if let Some(error) = error {
            writeln!(text, "{:<10}{}", "error", printable::line(error))?;
        }
        for event in events {
            let place = event.partition.zip(event.offset);
            let place = place.map_or("-".to_owned(), |(partition, offset)| format!("{partition}/{offset}"));
            let (source, id) = (printable::line(&event.source), printable::line(&event.event));
            let ListedEvent { event_type, bytes, .. } = event;
            writeln!(
                text,
                "{:<10}{event_type} {place} {bytes} bytes, {source} {id}",
                event.id
            )?;
            if let Some(payload) = &event.payload {
                writeln!(text, "{:<10}{}", "", printable::line(payload))?;
            }
        }
        if key.parked > events.len() as i64 {
            writeln!(text, "there are more: --limit")?;
        }
        for step in steps {
            let (at, why) = (step.at.format(&Rfc3339)?, step.why.as_deref().unwrap_or("-"));
            let (who, why) = (
                printable::line(step.who.as_deref().unwrap_or("-")),
                printable::line(why),
            );
            writeln!(text, "{at} {} ({} events) {who}: {why}", step.what, step.events)?;
        }
        Ok(text)
    }
}

/// Asks for the replays, and waits until they have ended.
async fn replay(desk: &Desk<'_>, keys: &[QuarantinedKey], settle: &Settle, wait: Duration) -> anyhow::Result<()> {
    let pool = &desk.pool;
    for key in keys {
        if settle::ask_replay(pool, &key.topic, &key.key, operator(settle)).await? {
            call(desk, key).await?;
        }
    }
    let until = Instant::now() + wait;
    let mut settled = Vec::new();
    let mut all_done = true;
    for key in keys {
        let (done, result) = ended(pool, key, until).await?;
        all_done &= done;
        settled.push(Settled {
            topic: &key.topic,
            key: &key.key,
            events: key.parked,
            result,
        });
    }
    report(&settled, settle.json)?;
    match all_done {
        true => Ok(()),
        false => bail!("not everything was replayed"),
    }
}

/// Has the object replay.
async fn call(desk: &Desk<'_>, key: &QuarantinedKey) -> anyhow::Result<()> {
    let object = if key.topic == topics::RESERVATIONS {
        TICKET
    } else {
        USER
    };
    let sent = restate_admin::send(&desk.config.restate, object, &key.key, REPLAY);
    let sent = desk.within("Restate's ingress", sent).await?;
    sent.with_context(|| format!("{} is not replayed: ask again", name(key)))
}

/// What became of a replay by then, and whether it came to its end.
async fn ended(pool: &PgPool, key: &QuarantinedKey, until: Instant) -> anyhow::Result<(bool, String)> {
    let choice = KeyChoice {
        topic: Some(&key.topic),
        key: Some(&key.key),
        ..KeyChoice::default()
    };
    loop {
        match settle::keys(pool, choice).await?.into_iter().next() {
            None => return Ok((true, "replayed".to_owned())),
            Some(left) if !left.replays => {
                let (parked, kind) = (left.parked, left.kind);
                return Ok((false, format!("breaks again, {parked} stay parked: {kind}")));
            }
            Some(left) if Instant::now() >= until => {
                return Ok((false, format!("still at it, {} left: look again later", left.parked)));
            }
            Some(_) => sleep(LOOK_EVERY).await,
        }
    }
}

async fn drop_parked(pool: &PgPool, keys: &[QuarantinedKey], portion: Portion, settle: &Settle) -> anyhow::Result<()> {
    let mut settled = Vec::new();
    let mut all_done = true;
    for key in keys {
        let dropped = settle::drop_parked(pool, &key.topic, &key.key, portion, operator(settle)).await?;
        all_done &= dropped.is_some();
        settled.push(Settled {
            topic: &key.topic,
            key: &key.key,
            events: dropped.unwrap_or(0) as i64,
            result: match dropped {
                Some(_) => "dropped".to_owned(),
                None => "left alone: it is being replayed, or not in quarantine any more".to_owned(),
            },
        });
    }
    report(&settled, settle.json)?;
    match all_done {
        true => Ok(()),
        false => bail!("not everything was dropped"),
    }
}

/// Prints what would be done.
fn planned(
    keys: &[QuarantinedKey],
    result: &str,
    events: impl Fn(&QuarantinedKey) -> i64,
    json: bool,
) -> anyhow::Result<()> {
    let settled = keys.iter().map(|key| Settled {
        topic: &key.topic,
        key: &key.key,
        events: events(key),
        result: result.to_owned(),
    });
    report(&settled.collect::<Vec<_>>(), json)
}

fn report(settled: &[Settled<'_>], json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(&json!({ "keys": settled }));
    }
    let mut text = format!("{:<13} {:<24} {:>8} RESULT\n", "TOPIC", "KEY", "EVENTS");
    for Settled {
        topic,
        key,
        events,
        result,
    } in settled
    {
        let (key, result) = (printable::line(key), printable::line(result));
        writeln!(text, "{topic:<13} {key:<24} {events:>8} {result}")?;
    }
    writeln!(text, "{} keys", settled.len())?;
    print(&text)
}

/// The keys that a command means, of which there must be some.
async fn chosen_keys(pool: &PgPool, chosen: &Quarantined) -> anyhow::Result<Vec<QuarantinedKey>> {
    let given = [&chosen.key.ticket, &chosen.key.user, &chosen.cause, &chosen.kind];
    if !chosen.all && given.into_iter().all(Option::is_none) {
        bail!("which? Give --ticket, --user, --kind or --cause, or --all");
    }
    let keys = settle::keys(pool, choice(chosen)).await?;
    if keys.is_empty() && !chosen.all {
        bail!("nothing in quarantine fits: `admin quarantine list` has it");
    }
    Ok(keys)
}

fn choice(chosen: &Quarantined) -> KeyChoice<'_> {
    let (ticket, user) = (chosen.key.ticket.as_deref(), chosen.key.user.as_deref());
    let of_ticket = ticket.map(|_| topics::RESERVATIONS);
    KeyChoice {
        topic: of_ticket.or(user.map(|_| topics::PAYMENTS)),
        key: ticket.or(user),
        cause: chosen.cause.as_deref(),
        kind: chosen.kind.as_deref(),
    }
}

fn one(key: &OneKey) -> anyhow::Result<(&'static str, &str)> {
    match (&key.ticket, &key.user) {
        (Some(ticket), _) => Ok((topics::RESERVATIONS, ticket)),
        (None, Some(user)) => Ok((topics::PAYMENTS, user)),
        (None, None) => bail!("which? Give --ticket or --user"),
    }
}

fn name(key: &QuarantinedKey) -> String {
    let kind = if key.topic == topics::RESERVATIONS {
        "ticket"
    } else {
        "user"
    };
    format!("{kind} {}", printable::line(&key.key))
}
