//! How the commands of operators choose: by name, by filters, or all; as of when; and how something is settled.

use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Filters of what waits for an operator: those that fit all that is given.
#[derive(Args, Debug, Clone)]
pub struct Filters {
    /// Those of this topic.
    #[arg(long)]
    pub topic: Option<String>,
    /// Those with this key.
    #[arg(id = "record-key", long = "key", value_name = "KEY")]
    pub key: Option<String>,
    /// Those whose reason, as `list` prints it, holds this text, in upper or lower case.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Those written at this moment or later, such as 2030-01-31T19:30:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<OffsetDateTime>,
    /// Those written before this moment.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<OffsetDateTime>,
}

/// What is meant of that: one, many or all.
#[derive(Args, Debug, Clone)]
#[command(group(clap::ArgGroup::new("meant").required(true).multiple(true).args(["names", "all", "topic", "record-key", "reason", "since", "until"])))]
pub struct Chosen {
    /// These, as `list` prints them.
    #[arg(value_name = "ID")]
    pub names: Vec<String>,
    #[command(flatten)]
    pub filters: Filters,
    /// All of them.
    #[arg(long, conflicts_with_all = ["names", "topic", "record-key", "reason", "since", "until"])]
    pub all: bool,
}

/// Which tickets and users are meant: those that fit all that is given.
#[derive(Args, Debug, Clone)]
pub struct Quarantined {
    #[command(flatten)]
    pub key: MaybeOneKey,
    /// Those that broke so: panic, data or constraint.
    #[arg(long, value_parser = ["panic", "data", "constraint"])]
    pub cause: Option<String>,
    /// Those whose kind of failure, as `list` prints it, holds this text, in upper or lower case.
    #[arg(long)]
    pub kind: Option<String>,
    /// All of them.
    #[arg(long, conflicts_with_all = ["ticket", "user", "cause", "kind"])]
    pub all: bool,
}

/// A ticket or a user.
#[derive(Args, Debug, Clone)]
#[group(multiple = false)]
pub struct MaybeOneKey {
    #[arg(long)]
    pub ticket: Option<String>,
    #[arg(long)]
    pub user: Option<String>,
}

/// The ticket or the user.
#[derive(Args, Debug, Clone)]
#[group(required = true, multiple = false)]
pub struct OneKey {
    #[arg(long)]
    pub ticket: Option<String>,
    #[arg(long)]
    pub user: Option<String>,
}

/// The state to show of an entity with a change log; without either option, the newest.
#[derive(Args, Debug, Clone, Copy)]
pub struct PointInTime {
    /// As it was at this moment by the database's clock, such as 2030-01-31T19:30:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "as_of")]
    pub at: Option<OffsetDateTime>,
    /// As of this version.
    #[arg(long, value_name = "VERSION")]
    pub as_of: Option<i64>,
}

/// How something is settled.
#[derive(Args, Debug, Clone)]
// Commands are called `settle`, too, and their groups as they are.
#[group(id = "settling")]
pub struct Settle {
    /// Who does it; it is kept.
    #[arg(long, value_name = "NAME", required_unless_present = "dry_run")]
    pub by: Option<String>,
    /// Why; it is kept, and a dead letter has it.
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    pub why: Option<String>,
    /// Print what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print it as one JSON object.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn moment(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "give a moment such as 2030-01-31T19:30:00Z".to_owned())
}
