//! The table operator_log: what operators did, by whom and why. Where the act is a statement, the row is written by the same one.

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;

use super::Error;
use super::session::InTime;

/// The operator who asks, and the reason given.
#[derive(Clone, Copy, Debug)]
pub struct Operator<'a> {
    pub who: &'a str,
    pub why: &'a str,
}

/// Something that an operator did.
#[derive(Clone, Debug, Serialize)]
pub struct OperatorAct {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub command: String,
    pub subject: String,
    pub who: String,
    pub why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
}

/// Which acts are meant: those that fit all that is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct ActChoice<'a> {
    /// The first word of the commands: `outbox` for `outbox drop`.
    pub commands: Option<&'a str>,
    pub who: Option<&'a str>,
    pub subject: Option<&'a str>,
    pub since: Option<OffsetDateTime>,
    pub until: Option<OffsetDateTime>,
}

/// Writes that an operator begins something that takes more than a statement.
///
/// # Errors
/// The database does not answer.
pub async fn note(
    pool: &PgPool,
    command: &str,
    subject: &str,
    operator: Operator<'_>,
    details: Option<&str>,
) -> Result<(), Error> {
    sqlx::query!(
        "insert into operator_log (command, subject, who, why, details) values ($1, $2, $3, $4, $5)",
        command,
        subject,
        operator.who,
        operator.why,
        details,
    )
    .execute(pool)
    .in_time(pool)
    .await
    .map(drop)
    .map_err(Error::Write)
}

/// The newest acts, what was done with keys in quarantine among them.
///
/// # Errors
/// The database does not answer.
pub async fn acts(pool: &PgPool, choice: ActChoice<'_>, most: i64) -> Result<Vec<OperatorAct>, Error> {
    sqlx::query_as!(
        OperatorAct,
        r#"select at as "at!", command as "command!", subject as "subject!", who as "who!", why as "why!", details
           from (
               select at, command, subject, who, why, details from operator_log
               union all
               select at, 'quarantine ' || what, topic || '/' || key, who, coalesce(why, ''), events || ' events'
               from quarantine_log where who is not null
           ) acts
           where ($1::text is null or who = $1) and ($2::text is null or subject = $2)
             and ($3::timestamptz is null or at >= $3) and ($4::timestamptz is null or at < $4)
             and ($5::text is null or split_part(command, ' ', 1) = $5)
           order by at desc limit $6"#,
        choice.who,
        choice.subject,
        choice.since,
        choice.until,
        choice.commands,
        most,
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}
