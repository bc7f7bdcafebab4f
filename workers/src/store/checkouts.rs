//! The rows of checkouts and of their seats.

use holdfast_schemas::{
    CheckoutFailure, CheckoutId, Credits, DeclineCode, DisputeId, DisputeStatus, HoldId, PaymentId, PaymentMethod,
    Price, RequestHash, Seat, ShowId, TicketId, UserId,
};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::Error;
use super::session::{InTime, on_session};
use crate::domain::checkout::{Checkout, Failure, Line, State};

/// The checkout with this id.
///
/// # Errors
/// The database does not answer, or the row cannot be understood.
pub async fn get(pool: &PgPool, checkout: &CheckoutId) -> Result<Option<Checkout>, Error> {
    let found = on_session(pool, Error::Read, async |connection| find(connection, checkout).await);
    Ok(found.await?.map(|found| found.checkout))
}

/// A row as it was read.
pub(super) struct StoredCheckout {
    pub(super) checkout: Checkout,
    pub(super) hash: Vec<u8>,
}

/// Locks the row for the rest of the transaction.
pub(super) async fn lock(
    connection: &mut PgConnection,
    checkout: &CheckoutId,
) -> Result<Option<StoredCheckout>, Error> {
    sqlx::query!(
        "select 1 as one from checkouts where checkout = $1 for update",
        checkout.as_str()
    )
    .fetch_optional(&mut *connection)
    .await
    .map_err(Error::Read)?;
    find(connection, checkout).await
}

/// Locks the row for the rest of the transaction, if its version is still the one that was read.
pub(super) async fn lock_version(connection: &mut PgConnection, checkout: &Checkout) -> Result<bool, Error> {
    let found = sqlx::query_scalar!(
        "select 1 as one from checkouts where checkout = $1 and version = $2 for update",
        checkout.id.as_str(),
        checkout.version
    );
    let found = found.fetch_optional(connection).await.map_err(Error::Read)?;
    Ok(found.is_some())
}

async fn find(connection: &mut PgConnection, checkout: &CheckoutId) -> Result<Option<StoredCheckout>, Error> {
    // Each column by its name: one more, which a later release adds, must not break the statements that this one has prepared.
    let row = sqlx::query!(
        "select version, user_id, hash, state, total_amount, total_currency, credits, payment_method, payment, until, called_at,
                unknown_since, stuck_at, sold_at, failure, failure_code, refunded
         from checkouts where checkout = $1",
        checkout.as_str()
    )
    .fetch_optional(&mut *connection)
    .await
    .map_err(Error::Read)?;
    let Some(row) = row else { return Ok(None) };
    let seats = sqlx::query!(
        "select ticket, hold, show, seat, price_amount from checkout_seats where checkout = $1 order by place",
        checkout.as_str(),
    )
    .fetch_all(connection)
    .await
    .map_err(Error::Read)?;
    let wrong = |what: String| Error::Row {
        table: "checkouts",
        key: checkout.to_string(),
        what,
    };
    let failure = match &row.failure {
        Some(reason) => Some(Failure {
            reason: read(reason, CheckoutFailure::parse).map_err(wrong)?,
            code: row
                .failure_code
                .as_deref()
                .map(|code| read(code, DeclineCode::parse))
                .transpose()
                .map_err(wrong)?,
        }),
        None => None,
    };
    let state = match (row.state.as_str(), failure) {
        ("opened", None) => State::Opened,
        ("created", None) => State::Created,
        ("waiting", None) => State::Waiting,
        ("authorised", None) => State::Authorised,
        ("sold", None) => State::Sold,
        ("completed", None) => State::Completed,
        ("refunded", None) => State::Refunded,
        ("undoing", Some(failure)) => State::Undoing(failure),
        ("failed", Some(failure)) => State::Failed(failure),
        (other, _) => return Err(wrong(format!("state {other:?} does not fit its failure"))),
    };
    let lines = seats.into_iter().map(|seat| {
        Ok(Line {
            ticket: read(&seat.ticket, TicketId::parse)?,
            hold: HoldId(seat.hold),
            show: read(&seat.show, ShowId::parse)?,
            seat: seat.seat.as_deref().map(|seat| read(seat, Seat::parse)).transpose()?,
            price: Price::parse(seat.price_amount, &row.total_currency).map_err(|invalid| invalid.to_string())?,
        })
    });
    let checkout = Checkout {
        id: checkout.clone(),
        version: row.version,
        user: read(&row.user_id, UserId::parse).map_err(wrong)?,
        lines: lines.collect::<Result<_, String>>().map_err(wrong)?,
        total: Price::parse(row.total_amount, &row.total_currency).map_err(|invalid| wrong(invalid.to_string()))?,
        credits: row
            .credits
            .map(Credits::new)
            .transpose()
            .map_err(|invalid| wrong(invalid.to_string()))?,
        method: row
            .payment_method
            .as_deref()
            .map(|method| read(method, PaymentMethod::parse))
            .transpose()
            .map_err(wrong)?,
        state,
        until: row.until,
        called_at: row.called_at,
        payment: row
            .payment
            .as_deref()
            .map(|payment| read(payment, PaymentId::parse))
            .transpose()
            .map_err(wrong)?,
        unknown_since: row.unknown_since,
        stuck: row.stuck_at.is_some(),
        sold: row.sold_at.is_some(),
        refunded: row.refunded,
    };
    Ok(Some(StoredCheckout {
        checkout,
        hash: row.hash,
    }))
}

fn read<T>(text: &str, parse: impl Fn(&str) -> Result<T, holdfast_schemas::Invalid>) -> Result<T, String> {
    parse(text).map_err(|invalid| invalid.to_string())
}

/// Writes a new checkout. False when there is one with its id, or one of its holds is being bought by another: the transaction must
/// not be committed.
pub(super) async fn insert(
    connection: &mut PgConnection,
    checkout: &Checkout,
    hash: &RequestHash,
) -> Result<bool, Error> {
    let inserted = sqlx::query!(
        "insert into checkouts (checkout, user_id, hash, state, total_amount, total_currency, credits, payment_method, until)
         values ($1, $2, $3, 'opened', $4, $5, $6, $7, $8)
         on conflict (checkout) do nothing",
        checkout.id.as_str(),
        checkout.user.as_str(),
        hash.as_bytes(),
        checkout.total.amount(),
        checkout.total.currency().code(),
        checkout.credits.map(Credits::amount),
        checkout.method.as_ref().map(PaymentMethod::as_str),
        checkout.until,
    )
    .execute(&mut *connection)
    .await
    .map_err(Error::Write)?;
    if inserted.rows_affected() == 0 {
        return Ok(false);
    }
    let lines = &checkout.lines;
    let tickets: Vec<_> = lines.iter().map(|line| line.ticket.as_str()).collect();
    let holds: Vec<_> = lines.iter().map(|line| line.hold.0).collect();
    let shows: Vec<_> = lines.iter().map(|line| line.show.as_str()).collect();
    let seats: Vec<_> = lines.iter().map(|line| line.seat.as_ref().map(Seat::as_str)).collect();
    let prices: Vec<_> = lines.iter().map(|line| line.price.amount()).collect();
    let inserted = sqlx::query!(
        "insert into checkout_seats (checkout, place, ticket, hold, show, seat, price_amount)
         select $1, place, ticket, hold, show, seat, price
         from unnest($2::text[], $3::uuid[], $4::text[], $5::text[], $6::bigint[])
              with ordinality u (ticket, hold, show, seat, price, place)
         on conflict do nothing",
        checkout.id.as_str(),
        &tickets as &[&str],
        &holds,
        &shows as &[&str],
        &seats as &[Option<&str>],
        &prices,
    )
    .execute(connection)
    .await
    .map_err(Error::Write)?;
    Ok(inserted.rows_affected() == lines.len() as u64)
}

/// True if a checkout buys one of these holds.
pub(super) async fn under_way(connection: &mut PgConnection, holds: &[HoldId]) -> Result<bool, Error> {
    let holds: Vec<_> = holds.iter().map(|hold| hold.0).collect();
    let found = sqlx::query_scalar!(
        "select 1 as one from checkout_seats where open and hold = any($1)",
        &holds
    )
    .fetch_optional(connection)
    .await
    .map_err(Error::Read)?;
    Ok(found.is_some())
}

/// Writes the columns that change, if the checkout still has the version of `from`. False when another caller took a step:
/// nothing was written.
pub(super) async fn update(connection: &mut PgConnection, from: &Checkout, to: &Checkout) -> Result<bool, Error> {
    let failure = match &to.state {
        State::Undoing(failure) | State::Failed(failure) => Some(failure),
        _ => None,
    };
    let has_ended = matches!(to.state, State::Completed | State::Refunded | State::Failed(_));
    let updated = sqlx::query!(
        "update checkouts set version = version + 1, state = $3, payment = $4, called_at = $5, unknown_since = $6,
                stuck_at = case when $7 then coalesce(stuck_at, clock_timestamp()) end,
                sold_at = case when $8 then coalesce(sold_at, clock_timestamp()) end,
                failure = $9, failure_code = $10, refunded = $11, moved_at = clock_timestamp(),
                ended_at = case when $12 then coalesce(ended_at, clock_timestamp()) end
         where checkout = $1 and version = $2",
        from.id.as_str(),
        from.version,
        name(&to.state),
        to.payment.as_ref().map(PaymentId::as_str),
        to.called_at,
        to.unknown_since,
        to.stuck,
        to.sold,
        failure.map(|failure| failure.reason.as_str()),
        failure
            .and_then(|failure| failure.code.as_ref())
            .map(DeclineCode::as_str),
        to.refunded,
        has_ended,
    )
    .execute(&mut *connection)
    .await
    .map_err(Error::Write)?;
    if updated.rows_affected() == 0 {
        return Ok(false);
    }
    if has_ended {
        sqlx::query!(
            "update checkout_seats set open = false where checkout = $1 and open",
            from.id.as_str()
        )
        .execute(connection)
        .await
        .map_err(Error::Write)?;
    }
    Ok(true)
}

/// The name of a state, in rows, metrics and answers.
pub fn name(state: &State) -> &'static str {
    match state {
        State::Opened => "opened",
        State::Created => "created",
        State::Waiting => "waiting",
        State::Authorised => "authorised",
        State::Sold => "sold",
        State::Undoing(_) => "undoing",
        State::Completed => "completed",
        State::Refunded => "refunded",
        State::Failed(_) => "failed",
    }
}

/// Checkouts that have not ended, or owe credits, are not stuck, and took their last step before a time by the database's clock;
/// the oldest first, 1,000 at most, without those whose id or user is in the lists of live invocations.
///
/// # Errors
/// The database does not answer.
pub async fn unfinished(
    pool: &PgPool,
    last_moved: OffsetDateTime,
    live: &[String],
    live_users: &[String],
) -> Result<Vec<CheckoutId>, Error> {
    // The condition of the index checkouts_unfinished, and of verify.
    let rows = sqlx::query_scalar!(
        "select checkout from checkouts
         where (ended_at is null or (state = 'refunded' and sold_at is not null and credits is not null)) and stuck_at is null
           and moved_at < $1
           and checkout <> all($2) and user_id <> all($3)
         order by moved_at limit 1000",
        last_moved,
        live,
        live_users,
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)?;
    Ok(rows.iter().filter_map(|id| CheckoutId::parse(id).ok()).collect())
}

/// The states that [`counts`] may name.
pub const COUNTED: [&str; 8] = [
    "opened",
    "created",
    "waiting",
    "authorised",
    "sold",
    "undoing",
    "refunded",
    "stuck",
];

/// The number of checkouts in a state, and the seconds since the last step of the oldest.
pub struct Count {
    pub state: String,
    pub checkouts: i64,
    pub oldest_seconds: f64,
}

/// Counts the checkouts that have not ended, by state; those that are stuck as `stuck`, and those that were refunded and still
/// owe credits as `refunded`.
///
/// # Errors
/// The database does not answer.
pub async fn counts(pool: &PgPool) -> Result<Vec<Count>, Error> {
    sqlx::query_as!(
        Count,
        r#"select case when stuck_at is null then state else 'stuck' end as "state!", count(*) as "checkouts!",
                  extract(epoch from clock_timestamp() - min(moved_at))::float8 as "oldest_seconds!"
           from checkouts
           where ended_at is null or (state = 'refunded' and sold_at is not null and credits is not null) group by 1"#,
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// The checkouts that are stuck, the oldest first, each with its state.
///
/// # Errors
/// The database does not answer.
pub async fn stuck(pool: &PgPool) -> Result<Vec<(String, String)>, Error> {
    let rows = sqlx::query!("select checkout, state from checkouts where stuck_at is not null order by stuck_at")
        .fetch_all(pool)
        .in_time(pool)
        .await
        .map_err(Error::Read)?;
    Ok(rows.into_iter().map(|row| (row.checkout, row.state)).collect())
}

/// The name of a dispute's status, in rows and metrics.
pub fn dispute_name(status: DisputeStatus) -> &'static str {
    match status {
        DisputeStatus::Opened => "opened",
        DisputeStatus::Won => "won",
        DisputeStatus::Lost => "lost",
    }
}

/// A row of a dispute.
pub struct StoredDispute {
    /// The payment provider's id of the dispute.
    pub id: String,
    pub checkout: String,
    /// Minor units of the checkout's currency.
    pub amount: i64,
    pub status: DisputeStatus,
}

/// A dispute, locked for the rest of the transaction; none when it is not known.
pub(super) async fn dispute(connection: &mut PgConnection, id: &DisputeId) -> Result<Option<StoredDispute>, Error> {
    let row = sqlx::query!(
        "select checkout, amount, status from disputes where dispute = $1 for update",
        id.as_str()
    );
    let row = row.fetch_optional(connection).await.map_err(Error::Read)?;
    row.map(|row| {
        Ok(StoredDispute {
            status: dispute_status(id.as_str(), &row.status)?,
            id: id.to_string(),
            checkout: row.checkout,
            amount: row.amount,
        })
    })
    .transpose()
}

/// The disputes of a checkout.
///
/// # Errors
/// The database does not answer, or a row cannot be understood.
pub async fn disputes(pool: &PgPool, checkout: &CheckoutId) -> Result<Vec<StoredDispute>, Error> {
    let rows = sqlx::query!(
        "select dispute, amount, status from disputes where checkout = $1 order by dispute",
        checkout.as_str(),
    );
    let rows = rows
        .fetch_all(pool)
        .in_time(pool)
        .await
        .map_err(Error::Read)?
        .into_iter();
    rows.map(|row| {
        Ok(StoredDispute {
            status: dispute_status(&row.dispute, &row.status)?,
            id: row.dispute,
            checkout: checkout.to_string(),
            amount: row.amount,
        })
    })
    .collect()
}

fn dispute_status(id: &str, name: &str) -> Result<DisputeStatus, Error> {
    let known = [DisputeStatus::Opened, DisputeStatus::Won, DisputeStatus::Lost];
    let named = known.into_iter().find(|known| dispute_name(*known) == name);
    named.ok_or_else(|| Error::Row {
        table: "disputes",
        key: id.to_owned(),
        what: format!("status {name:?}"),
    })
}

/// Writes the state of a dispute.
pub(super) async fn note_dispute(
    connection: &mut PgConnection,
    checkout: &CheckoutId,
    dispute: &DisputeId,
    amount: Price,
    status: DisputeStatus,
) -> Result<(), Error> {
    sqlx::query!(
        "insert into disputes (dispute, checkout, amount, status) values ($1, $2, $3, $4)
         on conflict (dispute) do update set status = excluded.status",
        dispute.as_str(),
        checkout.as_str(),
        amount.amount(),
        dispute_name(status),
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(Error::Write)
}
