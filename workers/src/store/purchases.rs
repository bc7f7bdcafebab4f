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
    sqlx::query!(
        "insert into purchases (user_id, show, tickets) select $1, show, 0 from unnest($2::text[]) show
         order by show on conflict do nothing",
        user.as_str(),
        &names as &[&str],
    )
    .execute(&mut *connection)
    .await
    .map_err(Error::Write)?;
    let rows = sqlx::query!(
        r#"select p.show, p.tickets + u.tickets as "tickets!"
           from purchases p join unnest($2::text[], $3::int[]) u (show, tickets) on p.user_id = $1 and p.show = u.show
           order by p.show for update of p"#,
        user.as_str(),
        &names as &[&str],
        &counts,
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(Error::Read)?;
    if limit.is_some_and(|limit| rows.iter().any(|row| row.tickets > limit)) {
        return Ok(false);
    }
    change(connection, user, &names, &counts).await?;
    Ok(true)
}

/// Subtracts returned tickets from the user's counts.
pub(super) async fn take_off(
    connection: &mut PgConnection,
    user: &UserId,
    shows: &[(&ShowId, i32)],
) -> Result<(), Error> {
    let (names, counts) = columns(shows);
    let counts: Vec<i32> = counts.into_iter().map(|count| -count).collect();
    change(connection, user, &names, &counts).await
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

async fn change(connection: &mut PgConnection, user: &UserId, shows: &[&str], by: &[i32]) -> Result<(), Error> {
    sqlx::query!(
        "update purchases p set tickets = p.tickets + u.tickets
         from unnest($2::text[], $3::int[]) u (show, tickets) where p.user_id = $1 and p.show = u.show",
        user.as_str(),
        shows as _,
        by,
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(Error::Write)
}
