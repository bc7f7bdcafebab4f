//! What the commands that change something have in common: who does it and why, and what they say afterwards.

use std::fmt::Write as _;

use anyhow::bail;
use serde::Serialize;
use serde_json::json;

use super::output::{Table, print, print_json};
use crate::config::Settle;
use crate::store::operator_log::Operator;

/// What a command did, or would do, with one thing.
#[derive(Debug, Serialize)]
pub(super) struct SettledItem {
    pub(super) id: String,
    pub(super) result: String,
    pub(super) done: bool,
}

impl SettledItem {
    pub(super) fn done(id: impl ToString, result: &str) -> Self {
        Self {
            id: id.to_string(),
            result: result.to_owned(),
            done: true,
        }
    }

    pub(super) fn not_done(id: impl ToString, result: &str) -> Self {
        Self {
            done: false,
            ..Self::done(id, result)
        }
    }
}

/// Who settles, and why.
pub(super) fn operator(settle: &Settle) -> Operator<'_> {
    Operator {
        who: settle.by.as_deref().unwrap_or_default(),
        why: settle.why.as_deref().unwrap_or_default(),
    }
}

/// Prints what would be done with each.
pub(super) fn planned(ids: impl IntoIterator<Item = String>, result: &str, settle: &Settle) -> anyhow::Result<()> {
    let items: Vec<_> = ids.into_iter().map(|id| SettledItem::not_done(id, result)).collect();
    report(&items, settle)
}

/// Prints what was done with each. Fails if it was not done with all, unless nothing was to be done.
pub(super) fn report(items: &[SettledItem], settle: &Settle) -> anyhow::Result<()> {
    let done = items.iter().filter(|item| item.done).count();
    if settle.json {
        print_json(&json!({ "dry_run": settle.dry_run, "settled": items }))?;
    } else {
        let mut table = Table::new(["ID", "RESULT"]);
        for item in items {
            table.row([item.id.clone(), item.result.clone()]);
        }
        let mut text = String::new();
        table.write(&mut text)?;
        match settle.dry_run {
            true => writeln!(text, "{} meant, nothing done", items.len())?,
            false => writeln!(text, "{done} of {} done", items.len())?,
        }
        print(&text)?;
    }
    match settle.dry_run || done == items.len() {
        true => Ok(()),
        false => bail!("not everything was done"),
    }
}

/// Fails if one that was named is not among those that were found, or if there is none although not simply all were meant. `list` has
/// what there is.
pub(super) fn all_found(named: &[String], found: &[String], all: bool, what: &str, list: &str) -> anyhow::Result<()> {
    let missing: Vec<_> = named.iter().filter(|name| !found.contains(name)).cloned().collect();
    if !missing.is_empty() {
        bail!("there is no {what} {}: `admin {list}` has them", missing.join(", "));
    }
    if found.is_empty() && !all {
        bail!("no {what} fits: `admin {list}` has them");
    }
    Ok(())
}
