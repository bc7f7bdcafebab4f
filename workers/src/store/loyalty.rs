//! What the loyalty database should hold by the main one, which has every addition, spending and return of credits: for a loyalty
//! database that was put back to an earlier time.

use std::collections::HashMap;

use sqlx::PgPool;

use super::Error;
use super::session::InTime;

/// The credits of a user in both databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    pub user: String,
    /// By the main database.
    pub due: i64,
    /// In the loyalty database; none without an account.
    pub found: Option<i64>,
}

/// How many users are asked for at a time.
const PORTION: usize = 5_000;

/// The balances that differ, by user.
///
/// # Errors
/// One of the databases does not answer.
pub async fn differing(main: &PgPool, other: &PgPool) -> Result<Vec<Balance>, Error> {
    let due = sqlx::query!(
        r#"select user_id as "user!", coalesce(given.credits, 0) - coalesce(spent.credits, 0) as "credits!"
           from (
               select user_id, sum((data ->> 'added')::bigint)::bigint as credits
               from user_change_log where type like 'holdfast.outcome.credits.changed.v%' group by user_id
           ) given
           full join (
               select c.user_id, sum(l.amount)::bigint as credits
               from ledger l join checkouts c on c.checkout = l.checkout
               where l.account = 'credits' group by c.user_id
           ) spent using (user_id)
           order by user_id"#
    );
    let due = due.fetch_all(main).in_time(main).await.map_err(Error::Read)?;
    let mut differing = Vec::new();
    for due in due.chunks(PORTION) {
        let users: Vec<&str> = due.iter().map(|row| row.user.as_str()).collect();
        let found: Vec<(String, i64)> = sqlx::query_as("select user_id, credits from accounts where user_id = any($1)")
            .bind(&users)
            .fetch_all(other)
            .in_time(other)
            .await
            .map_err(Error::Read)?;
        let found: HashMap<String, i64> = found.into_iter().collect();
        let balances = due.iter().map(|row| Balance {
            user: row.user.clone(),
            due: row.credits,
            found: found.get(&row.user).copied(),
        });
        differing.extend(balances.filter(|balance| balance.found.unwrap_or(0) != balance.due));
    }
    Ok(differing)
}

/// Gives a user what is due, if the balance is still the one that was found.
///
/// # Errors
/// The loyalty database does not answer, or does not take the balance.
pub async fn mend(other: &PgPool, balance: &Balance) -> Result<bool, Error> {
    let mended = sqlx::query(
        "insert into accounts as a (user_id, credits) select $1, $2 where $3::bigint is null or exists (select from accounts where user_id = $1)
         on conflict (user_id) do update set credits = excluded.credits where a.credits = $3",
    );
    let mended = mended.bind(&balance.user).bind(balance.due).bind(balance.found);
    let done = mended.execute(other).in_time(other).await.map_err(Error::Write)?;
    Ok(done.rows_affected() > 0)
}
