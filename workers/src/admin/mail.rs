//! Mails for an operator: those that were refused for good or wait, sent after all or given up.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use serde_json::json;
use sqlx::PgPool;

use super::acts;
use super::output::{Table, moment, or_dash, print, print_json, write_fields};
use super::settling::{SettledItem, all_found, operator, planned, report};
use crate::config::{ChosenMails, MailCommand, MailFilters};
use crate::mail::shipped;
use crate::printable;
use crate::store::mails::settle::{self, ListedMail, MailChoice, MailName};
use crate::store::operator_log::OperatorAct;

const LIST: &str = "mail list";

/// How long a mail may wait before `show` calls it late.
const LATE_AFTER: Duration = Duration::from_secs(600);

/// What is listed unless a state is given.
const WAITING: &[&str] = &["refused", "late", "waiting"];
const EVERY: &[&str] = &[
    "refused",
    "late",
    "waiting",
    "off",
    "sent",
    "limited",
    "no_address",
    "dropped",
];

pub(super) async fn run(command: &MailCommand, pool: &PgPool) -> anyhow::Result<()> {
    match command {
        MailCommand::Templates { to } => write_templates(to),
        MailCommand::List { chosen, json } => list(pool, chosen, *json).await,
        MailCommand::Show { mail, json } => show(pool, mail, *json).await,
        MailCommand::Retry { chosen, settle } => {
            let mails = chosen_mails(pool, chosen, &["refused"], "refused mail").await?;
            let (addressed, others): (Vec<_>, Vec<_>) = mails.iter().partition(|mail| mail.has_address);
            if settle.dry_run {
                return planned(addressed.iter().map(|mail| mail.name()), "would be sent", settle);
            }
            let done = settle::retry(pool, &names(&addressed), operator(settle)).await?;
            let mut items = settled(&addressed, &done, "is sent once its turn comes");
            let erased = others.iter().map(|mail| mail.name());
            items.extend(erased.map(|name| SettledItem::not_done(name, "has no address: the user was erased")));
            report(&items, settle)
        }
        MailCommand::Drop { chosen, settle } => {
            let mails = chosen_mails(pool, chosen, WAITING, "mail that waits or was refused").await?;
            if settle.dry_run {
                return planned(mails.iter().map(ListedMail::name), "would be given up", settle);
            }
            let mails: Vec<_> = mails.iter().collect();
            let done = settle::give_up(pool, &names(&mails), operator(settle)).await?;
            report(&settled(&mails, &done, "given up: it is never sent"), settle)
        }
    }
}

/// Writes the templates of mails that come with Holdfast to a folder.
pub(super) fn write_templates(folder: &Path) -> anyhow::Result<()> {
    let written = shipped::write_to(folder);
    let count = written.map_err(|(file, error)| anyhow!(error).context(format!("{file} cannot be written")))?;
    let folder = printable::line(folder.display().to_string());
    print(&format!("{count} files written to {folder}\n"))
}

async fn list(pool: &PgPool, filters: &MailFilters, json: bool) -> anyhow::Result<()> {
    let mails = settle::mails(pool, choice(None, filters, WAITING)).await?;
    if json {
        return print_json(&json!({ "mails": mails }));
    }
    let mut reasons: BTreeMap<String, Vec<&ListedMail>> = BTreeMap::new();
    for mail in &mails {
        let code = mail.code.map(|code| format!(" (the mail server said {code})"));
        let reason = mail.state.clone() + &code.unwrap_or_default();
        reasons.entry(reason).or_default().push(mail);
    }
    let mut text = String::new();
    for (reason, mails) in reasons {
        writeln!(text, "{reason}: {} mails", mails.len())?;
        let mut table = Table::indented();
        for mail in mails {
            let to = match mail.has_address {
                true => mail.user.clone(),
                false => format!("{} (erased)", mail.user),
            };
            table.row([moment(mail.written_at)?, mail.attempts.to_string(), to, mail.name()]);
        }
        table.write(&mut text)?;
    }
    writeln!(text, "{} mails", mails.len())?;
    print(&text)
}

/// One mail, as `show` prints it.
#[derive(Serialize)]
struct ShownMail {
    #[serde(flatten)]
    mail: ListedMail,
    acts: Vec<OperatorAct>,
}

async fn show(pool: &PgPool, name: &str, json: bool) -> anyhow::Result<()> {
    let name = [parse(name)?];
    let choice = MailChoice {
        names: Some(&name),
        states: EVERY,
        user: None,
        code: None,
        since: None,
        until: None,
        late_after: LATE_AFTER,
    };
    let mail = settle::mails(pool, choice).await?.into_iter().next();
    let [MailName { checkout, place }] = name;
    let mail = mail.with_context(|| format!("there is no mail {checkout}/{place}: `admin {LIST}` has them"))?;
    let acts = acts::on(pool, "mail", &mail.name()).await?;
    let shown = ShownMail { mail, acts };
    match json {
        true => print_json(&shown),
        false => print(&shown.text()?),
    }
}

impl ShownMail {
    fn text(&self) -> anyhow::Result<String> {
        let mail = &self.mail;
        let sent = mail.sent_at.map(moment).transpose()?;
        let address = if mail.has_address {
            "yes"
        } else {
            "no: the user was erased"
        };
        let mut text = String::new();
        let fields = [
            ("mail", mail.name()),
            ("user", mail.user.clone()),
            ("address", address.to_owned()),
            ("kind", mail.kind.clone()),
            ("amount", or_dash(mail.amount)),
            ("state", mail.state.clone()),
            ("attempts", mail.attempts.to_string()),
            ("code", or_dash(mail.code)),
            ("written", moment(mail.written_at)?),
            ("next", moment(mail.next_at)?),
            ("sent", or_dash(sent)),
        ];
        write_fields(&mut text, 10, fields)?;
        acts::write(&mut text, &self.acts)?;
        Ok(text)
    }
}

/// The mails that a command means, of which there must be some. Those that are named may have been written without a mail server, too.
async fn chosen_mails(
    pool: &PgPool,
    chosen: &ChosenMails,
    states: &[&str],
    what: &str,
) -> anyhow::Result<Vec<ListedMail>> {
    let named = chosen.names.iter().map(|name| parse(name));
    let named = named.collect::<anyhow::Result<Vec<_>>>()?;
    let states = match named.is_empty() {
        true => states.to_vec(),
        false => [states, &["off"]].concat(),
    };
    let named = (!named.is_empty()).then_some(named.as_slice());
    let mails = settle::mails(pool, choice(named, &chosen.filters, &states)).await?;
    let found: Vec<_> = mails.iter().map(ListedMail::name).collect();
    all_found(&chosen.names, &found, chosen.all, what, LIST)?;
    Ok(mails)
}

fn choice<'a>(names: Option<&'a [MailName]>, filters: &'a MailFilters, states: &'a [&'a str]) -> MailChoice<'a> {
    MailChoice {
        names,
        states: match filters.state.as_deref() {
            Some("refused") => &["refused"],
            Some("late") => &["late"],
            Some("waiting") => &["late", "waiting"],
            Some("off") => &["off"],
            _ => states,
        },
        user: filters.user.as_deref(),
        code: filters.code,
        since: filters.since,
        until: filters.until,
        late_after: filters.late_after,
    }
}

/// `checkout/place`, where the place of a refund has a slash of its own.
fn parse(name: &str) -> anyhow::Result<MailName> {
    let split = |(checkout, place): (&str, &str)| MailName {
        checkout: checkout.to_owned(),
        place: place.to_owned(),
    };
    let refund = name.rfind("/refunded/").map(|at| (&name[..at], &name[at + 1..]));
    let refund = refund.filter(|(_, place)| place["refunded/".len()..].bytes().all(|byte| byte.is_ascii_digit()));
    match refund.or_else(|| name.rsplit_once('/')) {
        Some(parts) if !parts.0.is_empty() => Ok(split(parts)),
        _ => bail!("{name:?} is no mail: give checkout/place, as `admin {LIST}` prints it"),
    }
}

fn settled(mails: &[&ListedMail], done: &[MailName], result: &str) -> Vec<SettledItem> {
    let items = mails.iter().map(|mail| {
        let is_done = done
            .iter()
            .any(|name| name.checkout == mail.checkout && name.place == mail.place);
        match is_done {
            true => SettledItem::done(mail.name(), result),
            false => SettledItem::not_done(mail.name(), "went on meanwhile: look again"),
        }
    });
    items.collect()
}

fn names(mails: &[&ListedMail]) -> Vec<MailName> {
    let names = mails.iter().map(|mail| MailName {
        checkout: mail.checkout.clone(),
        place: mail.place.clone(),
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mail_is_written_checkout_place() {
        for (text, checkout, place) in [
            ("order/completed", "order", "completed"),
            ("a/b/failed", "a/b", "failed"),
            ("a/refunded/500", "a", "refunded/500"),
            ("refunded/1/refunded/20", "refunded/1", "refunded/20"),
        ] {
            let name = parse(text).unwrap();
            assert_eq!((name.checkout.as_str(), name.place.as_str()), (checkout, place));
        }
        for text in ["", "order", "/completed"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
