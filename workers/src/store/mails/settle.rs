//! What an operator sees of the mails, and has done with them. The address is never read: only whether there is one.

use std::time::Duration;

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::store::Error;
use crate::store::operator_log::Operator;
use crate::store::session::InTime;

/// A mail, by the checkout and its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailName {
    pub checkout: String,
    pub place: String,
}

/// Which mails an operator means: those that fit all that is given.
#[derive(Debug, Clone, Copy)]
pub struct MailChoice<'a> {
    pub names: Option<&'a [MailName]>,
    /// States, and `late`: waiting for longer than `late_after`.
    pub states: &'a [&'a str],
    pub user: Option<&'a str>,
    pub code: Option<i16>,
    pub since: Option<OffsetDateTime>,
    pub until: Option<OffsetDateTime>,
    pub late_after: Duration,
}

/// A mail as it is listed.
#[derive(Debug, Clone, Serialize)]
pub struct ListedMail {
    pub checkout: String,
    pub place: String,
    pub user: String,
    pub kind: String,
    /// The refund, in minor units.
    pub amount: Option<i64>,
    pub state: String,
    /// How often it was handed to the mail server.
    pub attempts: i32,
    /// The mail server's last answer.
    pub code: Option<i16>,
    #[serde(with = "time::serde::rfc3339")]
    pub written_at: OffsetDateTime,
    /// While it waits: when it is tried again.
    #[serde(with = "time::serde::rfc3339")]
    pub next_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub sent_at: Option<OffsetDateTime>,
    /// Whether its user has an address; not once erased.
    pub has_address: bool,
}

impl ListedMail {
    /// As operators write it.
    pub fn name(&self) -> String {
        format!("{}/{}", self.checkout, self.place)
    }
}

/// The mails that are meant, the oldest first.
///
/// # Errors
/// The database does not answer.
pub async fn mails(pool: &PgPool, choice: MailChoice<'_>) -> Result<Vec<ListedMail>, Error> {
    let (checkouts, places) = choice.names.map(columns).unzip();
    let states: Vec<String> = choice.states.iter().map(|state| (*state).to_owned()).collect();
    sqlx::query_as!(
        ListedMail,
        r#"select m.checkout as "checkout!", m.place as "place!", m.user_id as "user!", m.kind as "kind!", m.amount, m.shown as "state!",
                  m.attempts as "attempts!", m.code, m.written_at as "written_at!", m.next_at as "next_at!", m.sent_at,
                  coalesce(u.email <> '', false) as "has_address!"
           from (
               select *, case when state = 'waiting' and written_at < statement_timestamp() - make_interval(secs => $1)
                              then 'late' else state end as shown
               from mails
           ) m
           left join users u on u.user_id = m.user_id
           where m.shown = any($2)
             and ($3::text[] is null or (m.checkout, m.place) in (select * from unnest($3::text[], $4::text[])))
             and ($5::text is null or m.user_id = $5) and ($6::smallint is null or m.code = $6)
             and ($7::timestamptz is null or m.written_at >= $7) and ($8::timestamptz is null or m.written_at < $8)
           order by m.written_at, m.checkout, m.place"#,
        choice.late_after.as_secs_f64(),
        &states,
        checkouts as Option<Vec<String>>,
        places as Option<Vec<String>>,
        choice.user,
        choice.code,
        choice.since,
        choice.until,
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// Has mails sent after all that were refused, or for which no mail server was set; not those whose users have no address. Notes who
/// wanted it. The names of those that were.
///
/// # Errors
/// The database does not answer.
pub async fn retry(pool: &PgPool, names: &[MailName], operator: Operator<'_>) -> Result<Vec<MailName>, Error> {
    let (checkouts, places) = columns(names);
    sqlx::query_as!(
        MailName,
        r#"with settled as (
               update mails m set state = 'waiting', next_at = clock_timestamp()
               from unnest($1::text[], $2::text[]) as meant (checkout, place)
               where m.checkout = meant.checkout and m.place = meant.place and m.state in ('refused', 'off')
                 and exists (select from users u where u.user_id = m.user_id and u.email <> '')
               returning m.checkout, m.place
           ),
           noted as (
               insert into operator_log (command, subject, who, why)
               select 'mail retry', checkout || '/' || place, $3, $4 from settled
           )
           select checkout as "checkout!", place as "place!" from settled"#,
        &checkouts,
        &places,
        operator.who,
        operator.why,
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Write)
}

/// Gives up mails that are not sent. One that is being handed to the mail server at this moment goes out, and counts as sent. Notes who
/// wanted it. The names of those that were given up.
///
/// # Errors
/// The database does not answer.
pub async fn give_up(pool: &PgPool, names: &[MailName], operator: Operator<'_>) -> Result<Vec<MailName>, Error> {
    let (checkouts, places) = columns(names);
    sqlx::query_as!(
        MailName,
        r#"with settled as (
               update mails m set state = 'dropped'
               from unnest($1::text[], $2::text[]) as meant (checkout, place)
               where m.checkout = meant.checkout and m.place = meant.place and m.state in ('refused', 'waiting', 'off')
               returning m.checkout, m.place
           ),
           noted as (
               insert into operator_log (command, subject, who, why)
               select 'mail drop', checkout || '/' || place, $3, $4 from settled
           )
           select checkout as "checkout!", place as "place!" from settled"#,
        &checkouts,
        &places,
        operator.who,
        operator.why,
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Write)
}

fn columns(names: &[MailName]) -> (Vec<String>, Vec<String>) {
    let names = names.iter().map(|name| (name.checkout.clone(), name.place.clone()));
    names.unzip()
}
