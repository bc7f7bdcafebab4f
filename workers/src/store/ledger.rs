//! The ledger: every movement of money or credits, as lines that add up to zero, and an entry on its topic. Written in the transaction
//! that causes it; the relay tells the entry from the outbox, so that each movement is told once.

use holdfast_schemas::ledger::{Entry, LedgerEntry};
use holdfast_schemas::{LedgerWord, MovementId, Price, topics};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Error;
use super::commit::OUTCOME_HEADERS;
use crate::domain::checkout::Checkout;
use crate::domain::ledger::Movement;

/// Writes movements of a checkout, whose row the transaction has locked or written: so the entries of a checkout are told in the order
/// of its movements. Each gets an id of its own.
pub(super) async fn write(
    connection: &mut PgConnection,
    new_id: fn() -> Uuid,
    checkout: &Checkout,
    movements: &[Movement],
    at: OffsetDateTime,
) -> Result<(), Error> {
    if movements.is_empty() {
        return Ok(());
    }
    let at = stored(at);
    let entries: Vec<_> = movements
        .iter()
        .map(|movement| entry(new_id(), checkout, *movement, at))
        .collect();
    let ids: Vec<_> = entries.iter().map(|entry| entry.id.0).collect();
    let kinds: Vec<_> = movements.iter().map(|movement| movement.kind.as_str()).collect();
    let (receivers, givers): (Vec<_>, Vec<_>) = movements.iter().map(|movement| movement.kind.accounts()).unzip();
    let amounts: Vec<_> = movements.iter().map(|movement| movement.amount).collect();
    let values: Vec<_> = entries.iter().map(Entry::to_json).collect();
    sqlx::query_file_scalar!(
        "src/store/ledger/write.sql",
        &ids,
        &kinds as &[&str],
        &receivers as &[&str],
        &givers as &[&str],
        &amounts,
        &values,
        checkout.id.as_str(),
        checkout.currency().code(),
        at,
        topics::LEDGER_ENTRIES,
        OUTCOME_HEADERS,
    )
    .fetch_one(connection)
    .await
    .map(drop)
    .map_err(Error::Write)
}

fn entry(id: Uuid, checkout: &Checkout, movement: Movement, at: OffsetDateTime) -> Entry {
    let word = |word| LedgerWord::parse(word).expect("kinds and accounts are words");
    let (to, from) = movement.kind.accounts();
    Entry {
        id: MovementId(id),
        checkout: checkout.id.clone(),
        time: at,
        data: LedgerEntry {
            kind: word(movement.kind.as_str()),
            to: word(to),
            from: word(from),
            amount: Price::new(movement.amount, checkout.currency())
                .expect("no movement is larger than the largest total"),
        },
    }
}

/// The moment as a row keeps it, in whole microseconds.
fn stored(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(at.microsecond() * 1_000).unwrap_or(at)
}
