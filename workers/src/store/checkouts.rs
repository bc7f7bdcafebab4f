//! The rows of checkouts.

use holdfast_schemas::{
    CheckoutFailure, CheckoutId, Credits, DeclineCode, HoldId, Invalid, PaymentId, PaymentMethod, Price, RequestHash,
    Seat, ShowId, TicketId, Traceparent, UserId,
};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::session::{InTime, on_session};
use super::{Error, repayments};
use crate::domain::checkout::{Checkout, Failure, Line, State, StuckReason};

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
    let locked = sqlx::query!(
        "select 1 as one from checkouts where checkout = $1 for update",
        checkout.as_str()
    )
    .fetch_optional(&mut *connection)
    .await
    .map_err(Error::Read)?;
    match locked {
        Some(_) => find(connection, checkout).await,
        None => Ok(None),
    }
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
    // One row for each ticket; the checkout's own columns are the same in all.
    let rows = sqlx::query!(
        "select c.version, c.user_id, c.hash, c.state, c.total_amount, c.total_currency, c.credits, c.payment_method, c.payment,
                c.until, c.called_at, c.ask_at, c.unknown_since, c.stuck_at, c.stuck_reason, c.sold_at, c.failure, c.failure_code, c.refunded, c.refunds_undone, c.attempt, c.repayments, c.traceparent,
                s.ticket, s.hold, s.show, s.seat, s.price_amount, s.returned
         from checkouts c join checkout_seats s on s.checkout = c.checkout
         where c.checkout = $1 order by s.place",
        checkout.as_str()
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(Error::Read)?;
    let lines = rows.iter().map(|row| {
        Ok::<_, Invalid>(Line {
            ticket: TicketId::parse(&row.ticket)?,
            hold: HoldId(row.hold),
            show: ShowId::parse(&row.show)?,
            seat: row.seat.as_deref().map(Seat::parse).transpose()?,
            price: Price::parse(row.price_amount, &row.total_currency)?,
            returned: row.returned,
        })
    });
    let lines = lines.collect::<Result<Vec<_>, _>>().map_err(|invalid| Error::Row {
        table: "checkout_seats",
        key: checkout.to_string(),
        what: invalid.to_string(),
    })?;
    let Some(row) = rows.into_iter().next() else {
        return Ok(None);
    };
    let wrong = |what: String| Error::Row {
        table: "checkouts",
        key: checkout.to_string(),
        what,
    };
    let code = row.failure_code.as_deref().map(|code| read(code, DeclineCode::parse));
    let code = code.transpose().map_err(wrong)?;
    let reason = row
        .failure
        .as_deref()
        .map(|reason| read(reason, CheckoutFailure::parse));
    let failure = reason.transpose().map_err(wrong)?.map(|reason| Failure {
        reason,
        code: code.clone(),
    });
    let state = match (row.state.as_str(), failure) {
        ("declined", None) => State::Declined(code),
        ("opened", None) => State::Opened,
        ("created", None) => State::Created,
        ("waiting", None) => State::Waiting,
        ("processing", None) => State::Processing,
        ("authorised", None) => State::Authorised,
        ("sold", None) => State::Sold,
        ("completed", None) => State::Completed,
        ("refunded", None) => State::Refunded,
        ("undoing", Some(failure)) => State::Undoing(failure),
        ("failed", Some(failure)) => State::Failed(failure),
        (other, _) => return Err(wrong(format!("state {other:?} does not fit its failure"))),
    };
    let checkout = Checkout {
        id: checkout.clone(),
        version: row.version,
        user: read(&row.user_id, UserId::parse).map_err(wrong)?,
        lines,
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
        attempt: row.attempt,
        state,
        until: row.until,
        called_at: row.called_at,
        payment: row
            .payment
            .as_deref()
            .map(|payment| read(payment, PaymentId::parse))
            .transpose()
            .map_err(wrong)?,
        ask_at: row.ask_at,
        unknown_since: row.unknown_since,
        stuck: row
            .stuck_at
            .map(|_| stuck_reason(row.stuck_reason.as_deref()))
            .transpose()
            .map_err(wrong)?,
        sold: row.sold_at.is_some(),
        refunded: row.refunded,
        undone: row.refunds_undone,
        repayments: match row.repayments {
            0 => vec![],
            _ => repayments::of(connection, checkout).await?,
        },
        trace: row
            .traceparent
            .as_deref()
            .map(|trace| read(trace, Traceparent::parse))
            .transpose()
            .map_err(wrong)?,
    };
    Ok(Some(StoredCheckout {
        checkout,
        hash: row.hash,
    }))
}

/// The reason in a row that is marked; an earlier release wrote none.
fn stuck_reason(name: Option<&str>) -> Result<StuckReason, String> {
    let Some(name) = name else {
        return Ok(StuckReason::StepFails);
    };
    let named = StuckReason::ALL.into_iter().find(|reason| reason.name() == name);
    named.ok_or_else(|| format!("stuck_reason {name:?}"))
}

fn read<T>(text: &str, parse: impl Fn(&str) -> Result<T, Invalid>) -> Result<T, String> {
    parse(text).map_err(|invalid| invalid.to_string())
}

/// Writes a new checkout and its tickets. False when there is one with its id, or one of its holds is being bought by another: the
/// transaction must not be committed.
pub(super) async fn insert(
    connection: &mut PgConnection,
    checkout: &Checkout,
    hash: &RequestHash,
) -> Result<bool, Error> {
    let lines = &checkout.lines;
    let tickets: Vec<_> = lines.iter().map(|line| line.ticket.as_str()).collect();
    let holds: Vec<_> = lines.iter().map(|line| line.hold.0).collect();
    let shows: Vec<_> = lines.iter().map(|line| line.show.as_str()).collect();
    let seats: Vec<_> = lines.iter().map(|line| line.seat.as_ref().map(Seat::as_str)).collect();
    let prices: Vec<_> = lines.iter().map(|line| line.price.amount()).collect();
    let inserted = sqlx::query_scalar!(
        r#"with opened as (
               insert into checkouts
                   (checkout, user_id, hash, state, total_amount, total_currency, credits, payment_method, until, called_at,
                    traceparent)
               values ($1, $2, $3, 'opened', $4, $5, $6, $7, $8, $9, $15)
               on conflict (checkout) do nothing
               returning checkout
           ),
           line as (
               select generate_subscripts($10::text[], 1) as place, unnest($10::text[]) as ticket, unnest($11::uuid[]) as hold,
                      unnest($12::text[]) as show, unnest($13::text[]) as seat, unnest($14::bigint[]) as price
           ),
           seats as (
               insert into checkout_seats (checkout, place, ticket, hold, show, seat, price_amount)
               select o.checkout, l.place, l.ticket, l.hold, l.show, l.seat, l.price
               from opened o, line l
               on conflict do nothing
               returning 1
           )
           select count(*) as "seats!" from seats"#,
        checkout.id.as_str(),
        checkout.user.as_str(),
        hash.as_bytes(),
        checkout.total.amount(),
        checkout.total.currency().code(),
        checkout.credits.map(Credits::amount),
        checkout.method.as_ref().map(PaymentMethod::as_str),
        checkout.until,
        checkout.called_at,
        &tickets as &[&str],
        &holds,
        &shows as &[&str],
        &seats as &[Option<&str>],
        &prices,
        checkout.trace.as_ref().map(Traceparent::as_str),
    );
    let inserted = inserted.fetch_one(connection).await.map_err(Error::Write)?;
    Ok(usize::try_from(inserted) == Ok(lines.len()))
}

/// Writes the columns that change, if the checkout still has the version of `from`. False when another caller took a step:
/// nothing was written.
pub(super) async fn update(connection: &mut PgConnection, from: &Checkout, to: &Checkout) -> Result<bool, Error> {
    let failure = to.state.failure();
    let has_ended = to.state.has_ended();
    let returned: Vec<_> = to
        .lines
        .iter()
        .filter(|line| line.returned)
        .map(|line| line.ticket.as_str())
        .collect();
    let updated = sqlx::query_scalar!(
        r#"with updated as (
        update checkouts set version = version + 1, state = $3, payment = $4, called_at = $5, unknown_since = $6,
                stuck_at = case when $7 then coalesce(stuck_at, clock_timestamp()) end,
                sold_at = case when $8 then coalesce(sold_at, clock_timestamp()) end,
                failure = $9, failure_code = $10, refunded = $11, moved_at = clock_timestamp(),
                ended_at = case when $12 then coalesce(ended_at, clock_timestamp()) end, stuck_reason = $13,
                payment_method = $14, attempt = $15, refunds_undone = $16, repayments = $17, owes = $18, ask_at = $20
         where checkout = $1 and version = $2
         returning 1
         ),
         seats as (
             -- The holds of a checkout that has ended may be bought by others.
             update checkout_seats set open = open and not $12, returned = returned or ticket = any($19)
             where checkout = $1 and ($12 and open or not returned and ticket = any($19)) and exists (select from updated)
         )
         select exists (select from updated) as "updated!""#,
        from.id.as_str(),
        from.version,
        to.state.name(),
        to.payment.as_ref().map(PaymentId::as_str),
        to.called_at,
        to.unknown_since,
        to.stuck.is_some(),
        to.sold,
        failure.map(|failure| failure.reason.as_str()),
        to.state.code().map(DeclineCode::as_str),
        to.refunded,
        has_ended,
        to.stuck.map(StuckReason::name),
        to.method.as_ref().map(PaymentMethod::as_str),
        to.attempt,
        to.undone,
        i32::try_from(to.repayments.len()).unwrap_or(i32::MAX),
        to.owes_repayments(),
        &returned as &[&str],
        to.ask_at,
    );
    updated.fetch_one(connection).await.map_err(Error::Write)
}

/// Checkouts that have not ended, or owe something, are not stuck, and took their last step before a time by the database's clock;
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
         where (ended_at is null or owes or (state = 'refunded' and sold_at is not null and credits is not null)) and stuck_at is null
           and moved_at < $1 and (ask_at is null or ask_at < $1)
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

/// The number of checkouts in a state, and the seconds since the last step of the oldest.
pub struct Count {
    pub state: String,
    pub checkouts: i64,
    pub oldest_seconds: f64,
}

/// Counts the checkouts that have not ended, by state; those that are stuck as `stuck`, whether or not they have ended; those that
/// were refunded and still owe credits as `refunded`; those of which something is to be given back as `returning`; and those whose step
/// waits for the bank as `processing`.
///
/// # Errors
/// The database does not answer.
pub async fn counts(pool: &PgPool) -> Result<Vec<Count>, Error> {
    sqlx::query_as!(
        Count,
        r#"select case when stuck_at is not null then 'stuck' when owes then 'returning' when ask_at > now() then 'processing'
                       else state end as "state!",
                  count(*) as "checkouts!",
                  extract(epoch from clock_timestamp() - min(case when ask_at <= now() then ask_at else moved_at end))::float8
                      as "oldest_seconds!"
           from checkouts
           where ended_at is null or owes or (state = 'refunded' and sold_at is not null and credits is not null) or stuck_at is not null
           group by 1"#,
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)
}

/// The checkouts that are stuck, the oldest first, each with its state and the reason.
///
/// # Errors
/// The database does not answer.
pub async fn stuck(pool: &PgPool) -> Result<Vec<(String, String, StuckReason)>, Error> {
    let rows = sqlx::query!(
        "select checkout, state, stuck_reason from checkouts where stuck_at is not null order by stuck_at"
    )
    .fetch_all(pool)
    .in_time(pool)
    .await
    .map_err(Error::Read)?;
    let rows = rows.into_iter().map(|row| {
        let reason = stuck_reason(row.stuck_reason.as_deref()).map_err(|what| Error::Row {
            table: "checkouts",
            key: row.checkout.clone(),
            what,
        })?;
        Ok((row.checkout, row.state, reason))
    });
    rows.collect()
}
