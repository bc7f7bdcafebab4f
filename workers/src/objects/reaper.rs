//! The Reaper: a virtual object that ends holds. Each second it looks for holds that are due and sends each ticket its
//! expiration. A hold needs no timer of its own, and none is lost with the engine's disk: the database knows what is due.
//!
//! No hold is sent twice within a minute, and no list of what was sent is kept: the turns walk the index on `held_until`
//! behind a cursor that goes back to the start once a minute, and as soon as the database's clock has gone back, as when another database
//! leads: what is held by that clock may end before the cursor.

use std::sync::Arc;
use std::time::Duration;

use holdfast_schemas::TicketId;
use restate_sdk::prelude::*;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use time::OffsetDateTime;

use super::caller::failed;
use super::ticket::{Expire, TicketClient};
use crate::crash::{self, Point};
use crate::metrics::Metrics;
use crate::store::tickets::{self, Due};

/// Pause between two turns.
const PAUSE: Duration = Duration::from_secs(1);
/// Most expirations of one turn; when there were as many, the next turn follows at once.
const EXPIRATIONS: usize = 500;
/// Pause before a hold that is still due is sent another expiration, by the database's clock.
const REPEAT_AFTER: time::Duration = time::Duration::minutes(1);

/// State: the number of the newest turn that may go on. Arming raises it, so that older turns end.
const NUMBER: &str = "number";
/// State: where the next turn goes on, a [`Cursor`].
const PLACE: &str = "place";

pub(super) struct Reaper {
    pool: PgPool,
    metrics: Arc<Metrics>,
}

impl Reaper {
    pub(super) fn new(pool: PgPool, metrics: Arc<Metrics>) -> Self {
        Self { pool, metrics }
    }
}

/// The Reaper's position in the holds, ordered by end and ticket.
#[derive(Clone, Serialize, Deserialize)]
struct Cursor {
    /// The last hold that was sent its first expiration.
    head: Option<Due>,
    /// The position of a repeat that did not fit into one turn.
    repeating: Option<Due>,
    /// The value of `head` when the last repeat ended, a minute ago or more. The next repeat goes only up to here.
    mark: Option<Due>,
    /// When the last repeat ended.
    #[serde(with = "time::serde::rfc3339")]
    repeated: OffsetDateTime,
}

impl Cursor {
    /// Whether it was made by a clock that was ahead of this time.
    fn is_ahead_of(&self, now: OffsetDateTime) -> bool {
        self.repeated > now || self.head.as_ref().is_some_and(|head| head.until > now)
    }
}

/// The holds that one turn found, and the cursor of the next; kept in the journal, so that a retried turn sends the same.
#[derive(Serialize, Deserialize)]
struct DueHolds {
    due: Vec<Due>,
    full: bool,
    next: Cursor,
}

#[restate_sdk::object(name = "Reaper", journal_retention = "0s", idempotency_retention = "0s")]
impl Reaper {
    /// Begins the turns, or begins them anew: earlier ones end.
    #[handler]
    async fn arm(&self, ctx: ObjectContext<'_>) -> HandlerResult<()> {
        let number = ctx.get::<u64>(NUMBER).await?.unwrap_or_default() + 1;
        ctx.set(NUMBER, number);
        // From the start: the database may have been restored meanwhile.
        ctx.clear(PLACE);
        ctx.object_client::<ReaperClient>(ctx.key()).turn(number).send();
        Ok(())
    }

    /// Sends the expirations that are due and schedules the next turn.
    #[handler(ingress_private)]
    async fn turn(&self, ctx: ObjectContext<'_>, number: u64) -> HandlerResult<()> {
        if ctx.get::<u64>(NUMBER).await?.is_some_and(|newest| number < newest) {
            return Ok(());
        }
        let place = ctx.get::<Json<Cursor>>(PLACE).await?.map(Json::into_inner);
        let found = ctx.run(|| self.find(place)).name("find").await?.into_inner();
        if !found.due.is_empty() {
            crash::here(Point::ReaperFound);
        }

        let mut sent = None;
        for Due { ticket, hold, .. } in &found.due {
            let client = ctx.object_client::<TicketClient>(ticket.as_str());
            sent = Some(client.expire(Json(Expire { hold: *hold })).send());
        }
        if let Some(last) = sent {
            // Once Restate has acknowledged the last one it has them all.
            last.await?;
            crash::here(Point::ReaperSent);
        }

        self.metrics.reaper_sent.inc_by(found.due.len() as u64);
        ctx.set(PLACE, Json(found.next));
        let next = ctx.object_client::<ReaperClient>(ctx.key()).turn(number);
        match found.full {
            true => next.send(),
            false => next.send_after(PAUSE),
        };
        Ok(())
    }
}

impl Reaper {
    async fn find(&self, place: Option<Cursor>) -> HandlerResult<Json<DueHolds>> {
        let mut found = self.look(place.clone()).await?;
        if !found.due.is_empty() && crash::again(Point::ReaperFound) {
            found = self.look(place).await?;
        }
        if !found.due.is_empty() && crash::again(Point::ReaperSent) {
            found.due.extend(found.due.clone());
        }
        Ok(Json(found))
    }

    /// Finds the holds that became due since the last turn, and once a minute those that still are due: an operator may have
    /// killed their expiration, or a hold was written after its end.
    async fn look(&self, mut place: Option<Cursor>) -> HandlerResult<DueHolds> {
        let head = place.as_ref().and_then(|place| place.head.as_ref());
        let (mut now, mut due) = self.due(head).await?;
        if place.take_if(|place| place.is_ahead_of(now)).is_some() {
            (now, due) = self.due(None).await?;
        }
        let mut full = due.len() >= EXPIRATIONS;
        let mut next = place.unwrap_or(Cursor {
            head: None,
            repeating: None,
            mark: None,
            repeated: now,
        });
        next.head = due.last().cloned().or(next.head);
        if next.repeating.is_some() || now - next.repeated >= REPEAT_AFTER {
            let (_, mut still_due) = self.due(next.repeating.as_ref()).await?;
            still_due.retain(|due| next.mark.as_ref().is_some_and(|mark| after(due) <= after(mark)));
            if still_due.len() >= EXPIRATIONS {
                full = true;
                next.repeating = still_due.last().cloned();
            } else {
                next.repeating = None;
                next.mark = next.head.clone();
                next.repeated = now;
            }
            due.extend(still_due);
        }
        Ok(DueHolds { due, full, next })
    }

    async fn due(&self, place: Option<&Due>) -> HandlerResult<(OffsetDateTime, Vec<Due>)> {
        tickets::due(&self.pool, place.map(after), EXPIRATIONS as i64)
            .await
            .map_err(failed(&self.metrics))
    }
}

fn after(due: &Due) -> (OffsetDateTime, TicketId) {
    (due.until, due.ticket.clone())
}

#[cfg(test)]
mod tests {
    use holdfast_schemas::HoldId;
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_clock_that_went_back_is_noticed() {
        let now = datetime!(2030-01-31 19:30 UTC);
        let cursor = |until, repeated| Cursor {
            head: Some(Due {
                ticket: TicketId::parse("a").unwrap(),
                hold: HoldId(Uuid::nil()),
                until,
            }),
            repeating: None,
            mark: None,
            repeated,
        };
        let later = now + PAUSE;
        assert!(!cursor(now, now).is_ahead_of(now));
        assert!(cursor(later, now).is_ahead_of(now));
        assert!(cursor(now, later).is_ahead_of(now));
    }
}
