//! The mails that customers are to get, one row each. It is written in the transaction of the outcome that it tells, so that it is
//! neither lost nor doubled; who sends it takes it for a while first, and notes afterwards what the mail server said.

use std::time::Duration;

use holdfast_schemas::{CheckoutId, Price, UserId};
use sqlx::{PgConnection, PgPool};

use super::commit::Stored;
use super::{Error, checkouts};
use crate::domain::User;
use crate::domain::checkout::Checkout;

/// What a mail tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Completed,
    Failed,
    RefundedInPart,
    Refunded,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Completed, Kind::Failed, Kind::RefundedInPart, Kind::Refunded];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::RefundedInPart => "refunded_in_part",
            Self::Refunded => "refunded",
        }
    }
}

/// A mail that was taken to be sent.
#[derive(Clone, Debug)]
pub struct LeasedMail {
    pub checkout: CheckoutId,
    /// Which outcome of the checkout it tells.
    pub place: String,
    pub user: UserId,
    pub kind: Kind,
    /// What was given back, in minor units of the checkout's currency.
    pub amount: Option<i64>,
    /// How often it was taken, this time included.
    pub attempts: i32,
}

/// What a mail is made of.
pub struct Contents {
    pub checkout: Checkout,
    pub user: User,
}

/// How many mails wait, and since how many seconds the oldest does.
pub struct Waiting {
    pub mails: i64,
    pub oldest_seconds: f64,
}

/// Writes that a checkout has ended. `wanted`: whether there is a mail server.
pub(super) async fn ended(
    connection: &mut PgConnection,
    checkout: &Checkout,
    kind: Kind,
    wanted: bool,
) -> Result<(), Error> {
    insert(connection, checkout, kind.as_str(), kind, None, wanted).await
}

/// Writes that so much was given back, which makes `refunded` in all, in minor units.
pub(super) async fn refunded(
    connection: &mut PgConnection,
    checkout: &Checkout,
    kind: Kind,
    amount: Price,
    refunded: i64,
    wanted: bool,
) -> Result<(), Error> {
    let place = format!("refunded/{refunded}");
    insert(connection, checkout, &place, kind, Some(amount.amount()), wanted).await
}

async fn insert(
    connection: &mut PgConnection,
    checkout: &Checkout,
    place: &str,
    kind: Kind,
    amount: Option<i64>,
    wanted: bool,
) -> Result<(), Error> {
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

/// Takes mails that are due, the longest due first; for `lease`, nobody else takes them. One whose row cannot be understood
/// keeps none of the others back.
///
/// # Errors
/// The database does not answer.
pub async fn take(pool: &PgPool, most: i64, lease: Duration) -> Result<Vec<Result<LeasedMail, Error>>, Error> {
    let rows = sqlx::query!(
        "update mails m set attempts = m.attempts + 1, next_at = clock_timestamp() + make_interval(secs => $2)
         from (
             select checkout, place from mails where state = 'waiting' and next_at <= clock_timestamp()
             order by next_at limit $1 for update skip locked
         ) due
         where m.checkout = due.checkout and m.place = due.place
         returning m.checkout, m.place, m.user_id, m.kind, m.amount, m.attempts",
        most,
        lease.as_secs_f64(),
    )
    .fetch_all(pool)
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

/// What the mail is made of, as it stands now. None when checkout or user is not there.
///
/// # Errors
/// The database does not answer, or a row cannot be understood.
pub async fn contents(pool: &PgPool, mail: &LeasedMail) -> Result<Option<Contents>, Error> {
    let Some(checkout) = checkouts::get(pool, &mail.checkout).await? else {
        return Ok(None);
    };
    let mut connection = pool.acquire().await.map_err(Error::Read)?;
    let mut users = User::read(&mut connection, &[mail.user.as_str()]).await?;
    let user = users.rows.remove(mail.user.as_str());
    Ok(user.map(|user| Contents { checkout, user }))
}

/// Notes that the mail server has taken it, also when somebody else has taken the mail from us meanwhile: then they need not try
/// again. False when that stands there already.
///
/// # Errors
/// The database does not answer.
pub async fn sent(pool: &PgPool, mail: &LeasedMail, code: u16) -> Result<bool, Error> {
    let updated = sqlx::query!(
        "update mails set state = 'sent', sent_at = clock_timestamp(), code = $3
         where checkout = $1 and place = $2 and state in ('waiting', 'refused')",
        mail.checkout.as_str(),
        mail.place,
        number(code),
    )
    .execute(pool)
    .await
    .map_err(Error::Write)?;
    Ok(updated.rows_affected() == 1)
}

/// Notes that the mail server never takes it. False when somebody else has taken the mail from us meanwhile: theirs counts.
///
/// # Errors
/// The database does not answer.
pub async fn refused(pool: &PgPool, mail: &LeasedMail, code: Option<u16>) -> Result<bool, Error> {
    let updated = sqlx::query!(
        "update mails set state = 'refused', code = $4
         where checkout = $1 and place = $2 and state = 'waiting' and attempts = $3",
        mail.checkout.as_str(),
        mail.place,
        mail.attempts,
        code.map(number),
    )
    .execute(pool)
    .await
    .map_err(Error::Write)?;
    Ok(updated.rows_affected() == 1)
}

/// Puts it back, to be taken again after a pause. False as in [`refused`].
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
    .await
    .map_err(Error::Read)
}

/// An answer of a mail server has three digits.
fn number(code: u16) -> i16 {
    i16::try_from(code).unwrap_or(i16::MAX)
}
