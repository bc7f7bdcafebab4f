//! The mails to customers, one row each. A row is written in the transaction of the outcome that the mail is about, so that it is
//! neither lost nor doubled; the mailer takes a lease on the row first, and writes the mail server's answer afterwards.

pub mod settle;

use std::time::Duration;

use holdfast_schemas::{CheckoutId, UserId};
use sqlx::{PgConnection, PgPool};

use super::commit::Stored;
use super::session::{InTime, on_session};
use super::{Error, checkouts};
use crate::domain::User;
use crate::domain::checkout::{Checkout, CustomerMail};

/// The subject of a mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Completed,
    Failed,
    RefundedInPart,
    Refunded,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Completed, Kind::Failed, Kind::RefundedInPart, Kind::Refunded];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::RefundedInPart => "refunded_in_part",
            Self::Refunded => "refunded",
        }
    }
}

/// A mail under a lease.
#[derive(Clone, Debug)]
pub struct LeasedMail {
    pub checkout: CheckoutId,
    /// The outcome of the checkout that it is about.
    pub place: String,
    pub user: UserId,
    pub kind: Kind,
    /// The refund, in minor units of the checkout's currency.
    pub amount: Option<i64>,
    /// Number of leases so far, this one included.
    pub attempts: i32,
}

/// The data of a mail.
pub struct Contents {
    pub checkout: Checkout,
    pub user: User,
}

/// The number of waiting mails, and the age of the oldest in seconds.
pub struct Waiting {
    pub mails: i64,
    pub oldest_seconds: f64,
}

/// Writes a mail about a checkout. `wanted`: true if there is a mail server.
pub(super) async fn write(
    connection: &mut PgConnection,
    checkout: &Checkout,
    mail: CustomerMail,
    wanted: bool,
) -> Result<(), Error> {
    let (kind, place, amount) = match mail {
        CustomerMail::Completed => (Kind::Completed, Kind::Completed.as_str().to_owned(), None),
        CustomerMail::Failed => (Kind::Failed, Kind::Failed.as_str().to_owned(), None),
        CustomerMail::Refunded { amount, so_far, full } => {
            let kind = if full { Kind::Refunded } else { Kind::RefundedInPart };
            (kind, format!("refunded/{so_far}"), Some(amount.amount()))
        }
    };
    sqlx::query!(
        "insert into mails (checkout, place, user_id, kind, amount, state) values ($1, $2, $3, $4, $5, $6)",
        checkout.id.as_str(),
        place,
        checkout.user.as_str(),
        kind.as_str(),
        amount,
        if wanted { "waiting" } else { "off" },
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(Error::Write)
}

/// Leases mails that are due, the longest due first; for the time of `lease` no other process takes them. A row that cannot be
/// decoded keeps none of the others back.
///
/// # Errors
/// The database does not answer.
pub async fn take(pool: &PgPool, most: i64, lease: Duration) -> Result<Vec<Result<LeasedMail, Error>>, Error> {
    let rows = sqlx::query!(
        "update mails m set attempts = m.attempts + 1, next_at = clock_timestamp() + make_interval(secs => $2)
         from (
             select checkout, place from mails where state = 'waiting' and next_at <= statement_timestamp()
             order by next_at limit $1 for update skip locked
         ) due
         where m.checkout = due.checkout and m.place = due.place
         returning m.checkout, m.place, m.user_id, m.kind, m.amount, m.attempts",
        most,
        lease.as_secs_f64(),
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Write)?;
    let taken = rows.into_iter().map(|row| {
        let wrong = |what: String| Error::Row {
            table: "mails",
            key: row.checkout.clone(),
            what,
        };
        Ok(LeasedMail {
            checkout: CheckoutId::parse(&row.checkout).map_err(|invalid| wrong(invalid.to_string()))?,
            user: UserId::parse(&row.user_id).map_err(|invalid| wrong(invalid.to_string()))?,
            kind: (Kind::ALL.into_iter().find(|kind| kind.as_str() == row.kind))
                .ok_or_else(|| wrong(format!("kind {:?}", row.kind)))?,
            place: row.place,
            amount: row.amount,
            attempts: row.attempts,
        })
    });
    Ok(taken.collect())
}

/// Writes that a mail about a failure is never sent, if its user was told of at least `most` others in the hour before it was
/// written. True then. The hour goes by the moments of writing, which for one user come one after the other: so no two processes
/// disagree, and a mail server that was away for hours does not let everything through at once.
///
/// # Errors
/// The database does not answer.
pub async fn limit(pool: &PgPool, mail: &LeasedMail, most: u32) -> Result<bool, Error> {
    let updated = sqlx::query!(
        "update mails m set state = 'limited'
         where m.checkout = $1 and m.place = $2 and m.state = 'waiting' and m.attempts = $3
           and $4 <= (
               select count(*) from mails o
               where o.user_id = m.user_id and o.kind = 'failed' and o.state in ('waiting', 'sent')
                 and o.written_at > m.written_at - interval '1 hour'
                 and (o.written_at, o.checkout) < (m.written_at, m.checkout)
           )",
        mail.checkout.as_str(),
        mail.place,
        mail.attempts,
        i64::from(most),
    )
    .execute(pool)
    .in_time(pool)
    .await
    .map_err(Error::Write)?;
    Ok(updated.rows_affected() == 1)
}

/// The data of the mail, as the rows are now. None when there is no such checkout or user.
///
/// # Errors
/// The database does not answer, or a row cannot be understood.
pub async fn contents(pool: &PgPool, mail: &LeasedMail) -> Result<Option<Contents>, Error> {
    let Some(checkout) = checkouts::get(pool, &mail.checkout).await? else {
        return Ok(None);
    };
    let key = [mail.user.as_str()];
    let mut users = on_session(pool, Error::Read, async |connection| User::read(connection, &key).await).await?;
    let user = users.rows.remove(mail.user.as_str());
    Ok(user.map(|user| Contents { checkout, user }))
}

/// Writes that the mail server has accepted the mail, also when another process has the lease by now: then that one need not
/// send it again. False when the row says so already.
///
/// # Errors
/// The database does not answer.
pub async fn sent(pool: &PgPool, mail: &LeasedMail, code: u16) -> Result<bool, Error> {
    let updated = sqlx::query!(
        "update mails set state = 'sent', sent_at = clock_timestamp(), code = $3
         where checkout = $1 and place = $2 and state in ('waiting', 'refused', 'dropped')",
        mail.checkout.as_str(),
        mail.place,
        number(code),
    )
    .execute(pool)
    .in_time(pool)
    .await
    .map_err(Error::Write)?;
    Ok(updated.rows_affected() == 1)
}

/// The reason why a mail is never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsendable {
    /// The mail server refused it for good, or no mail can be addressed to the user's address.
    Refused,
    /// The user was erased and has no address any more.
    NoAddress,
}

/// Writes that the mail is never sent. False when another process has the lease by now: its result counts.
///
/// # Errors
/// The database does not answer.
pub async fn end(pool: &PgPool, mail: &LeasedMail, why: Unsendable, code: Option<u16>) -> Result<bool, Error> {
    let updated = sqlx::query!(
        "update mails set state = $5, code = $4
         where checkout = $1 and place = $2 and state = 'waiting' and attempts = $3",
        mail.checkout.as_str(),
        mail.place,
        mail.attempts,
        code.map(number),
        match why {
            Unsendable::Refused => "refused",
            Unsendable::NoAddress => "no_address",
        },
    )
    .execute(pool)
    .in_time(pool)
    .await
    .map_err(Error::Write)?;
    Ok(updated.rows_affected() == 1)
}

/// Has the mail due again after a pause: that ends its lease, or prolongs it. False as in [`end`].
///
/// # Errors
/// The database does not answer.
pub async fn put_back(pool: &PgPool, mail: &LeasedMail, code: Option<u16>, pause: Duration) -> Result<bool, Error> {
    let updated = sqlx::query!(
        "update mails set next_at = clock_timestamp() + make_interval(secs => $5), code = $4
         where checkout = $1 and place = $2 and state = 'waiting' and attempts = $3",
        mail.checkout.as_str(),
        mail.place,
        mail.attempts,
        code.map(number),
        pause.as_secs_f64(),
    )
    .execute(pool)
    .in_time(pool)
    .await
    .map_err(Error::Write)?;
    Ok(updated.rows_affected() == 1)
}

/// Counts the mails that wait.
///
/// # Errors
/// The database does not answer.
pub async fn waiting(pool: &PgPool) -> Result<Waiting, Error> {
    sqlx::query_as!(
        Waiting,
        r#"select count(*) as "mails!",
                  coalesce(extract(epoch from clock_timestamp() - min(written_at)), 0)::float8 as "oldest_seconds!"
           from mails where state = 'waiting'"#,
    )
    .fetch_one(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// An answer of a mail server has three digits.
fn number(code: u16) -> i16 {
    i16::try_from(code).unwrap_or(i16::MAX)
}
