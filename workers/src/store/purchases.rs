//! The number of tickets of each show that a user has bought. The transaction that sells locks the row, so that a limit is exact.

use holdfast_schemas::{ShowId, UserId};
use sqlx::PgConnection;

use super::Error;

/// Adds tickets of shows to the user's counts, unless the count of one show would exceed `limit`: then false, and nothing is
/// added.
pub(super) async fn add(
    connection: &mut PgConnection,
    user: &UserId,
    shows: &[(&ShowId, i32)],
    limit: Option<i32>,
) -> Result<bool, Error> {
    let (names, counts) = columns(shows);
    let added = sqlx::query_scalar!(
        "insert into purchases as p (user_id, show, tickets)
         select $1, show, tickets from (select unnest($2::text[]) as show, unnest($3::int[]) as tickets) u order by show
         on conflict (user_id, show) do update set tickets = p.tickets + excluded.tickets
         returning tickets",
        user.as_str(),
        &names as &[&str],
        &counts,
    );
    let added = added.fetch_all(&mut *connection).await.map_err(Error::Write)?;
    if limit.is_none_or(|limit| added.iter().all(|tickets| *tickets <= limit)) {
        return Ok(true);
    }
    take_off(connection, user, shows).await?;
    Ok(false)
}

/// Subtracts returned tickets from the user's counts.
pub(super) async fn take_off(
    connection: &mut PgConnection,
    user: &UserId,
    shows: &[(&ShowId, i32)],
) -> Result<(), Error> {
    let (names, counts) = columns(shows);
    sqlx::query!(
        "update purchases p set tickets = p.tickets - u.tickets
         from (select unnest($2::text[]) as show, unnest($3::int[]) as tickets) u where p.user_id = $1 and p.show = u.show",
        user.as_str(),
        &names as &[&str],
        &counts,
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(Error::Write)
}

/// The user's counts for these shows.
pub(super) async fn of(
    connection: &mut PgConnection,
    user: &UserId,
    shows: &[&str],
) -> Result<Vec<(String, i32)>, Error> {
    let rows = sqlx::query!(
        "select show, tickets from purchases where user_id = $1 and show = any($2)",
        user.as_str(),
        shows as _,
    )
    .fetch_all(connection)
    .await
    .map_err(Error::Read)?;
    Ok(rows.into_iter().map(|row| (row.show, row.tickets)).collect())
}

fn columns<'a>(shows: &[(&'a ShowId, i32)]) -> (Vec<&'a str>, Vec<i32>) {
    shows.iter().map(|(show, count)| (show.as_str(), *count)).unzip()
}
