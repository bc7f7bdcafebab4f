//! What operators did, by whom and why.

use std::fmt::Write as _;

use serde_json::json;
use sqlx::PgPool;

use super::output::{Table, moment, or_dash, print, print_json};
use crate::config::ActFilters;
use crate::store::operator_log::{self, ActChoice, OperatorAct};

/// Most acts that `show` prints of one thing.
const MOST: i64 = 100;

pub(super) async fn list(pool: &PgPool, wanted: &ActFilters) -> anyhow::Result<()> {
    let choice = ActChoice {
        commands: None,
        who: wanted.by.as_deref(),
        subject: wanted.on.as_deref(),
        since: wanted.since,
        until: wanted.until,
    };
    let acts = operator_log::acts(pool, choice, i64::from(wanted.limit)).await?;
    if wanted.json {
        return print_json(&json!({ "acts": acts }));
    }
    let mut table = Table::new(["AT", "COMMAND", "ON", "BY", "WHY", "DETAILS"]);
    for act in &acts {
        table.row([
            moment(act.at)?,
            act.command.clone(),
            act.subject.clone(),
            act.who.clone(),
            act.why.clone(),
            or_dash(act.details.as_ref()),
        ]);
    }
    let mut text = String::new();
    table.write(&mut text)?;
    writeln!(text, "{} acts", acts.len())?;
    print(&text)
}

/// What operators did with one thing by the commands of this name, the newest first.
pub(super) async fn on(pool: &PgPool, commands: &str, subject: &str) -> anyhow::Result<Vec<OperatorAct>> {
    let choice = ActChoice {
        commands: Some(commands),
        subject: Some(subject),
        ..ActChoice::default()
    };
    Ok(operator_log::acts(pool, choice, MOST).await?)
}

/// Writes them, one a line.
pub(super) fn write(text: &mut String, acts: &[OperatorAct]) -> anyhow::Result<()> {
    let mut table = Table::indented();
    for act in acts {
        let details = act.details.as_ref().map(|details| format!(" ({details})"));
        let why = act.why.clone() + &details.unwrap_or_default();
        table.row([moment(act.at)?, act.command.clone(), act.who.clone(), why]);
    }
    if !acts.is_empty() {
        writeln!(text, "done by operators")?;
    }
    Ok(table.write(text)?)
}
