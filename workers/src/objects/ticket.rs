//! The Ticket object: its key is the ticket's id. Events from Kafka and HTTP requests are committed in the same way.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_schemas::{
    CheckoutId, EventId, HoldId, Price, Reply, Seat, ShowId, Source, TicketEvent, TicketId, UserId, events,
};
use restate_sdk::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use time::OffsetDateTime;

use super::attributes::{self, Attributes, Describe, Described, Tag};
use super::body::Body;
use super::caller::{answer_caller, failed, retryable, told_or_retried};
use super::intake;
use crate::crash::{self, Point};
use crate::domain::ticket::Input;
use crate::domain::{self, State};
use crate::metrics::Metrics;
use crate::store::quarantine::{Quarantine, Replayed};
use crate::store::ticket_attributes::Access;
use crate::store::{self, Answer, Command, Committer, Unit, Work};

/// The handlers of one ticket, which Restate runs one after the other.
pub(super) struct Ticket {
    committer: Committer<domain::Ticket>,
    quarantine: Quarantine,
    pool: PgPool,
    attributes: Access,
    metrics: Arc<Metrics>,
    now: fn() -> OffsetDateTime,
}

impl Ticket {
    pub(super) fn new(
        committer: Committer<domain::Ticket>,
        quarantine: Quarantine,
        pool: PgPool,
        attributes: Access,
        metrics: Arc<Metrics>,
        now: fn() -> OffsetDateTime,
    ) -> Self {
        Self {
            committer,
            quarantine,
            pool,
            attributes,
            metrics,
            now,
        }
    }
}

/// From the Reaper: end this hold if it is due.
#[derive(Serialize, Deserialize)]
pub(super) struct Expire {
    pub(super) hold: HoldId,
}

// Restate retains no journal: each handler is one write that may be repeated. The database, not Restate, keeps the answer to an
// `idempotency-key`.
#[restate_sdk::object(name = "Ticket", lazy_state, journal_retention = "0s", idempotency_retention = "0s")]
impl Ticket {
    /// Applies a delivery from Kafka: events of one ticket that the gate gathered, or one event straight from a public topic.
    #[handler(ingress_private)]
    async fn apply(&self, ctx: ObjectContext<'_>, raw: Bytes) -> HandlerResult<()> {
        let unit = intake::delivered(&ctx, &raw, (self.now)(), &self.metrics)?;
        let handling = intake::handling(&ctx, (super::TICKET, super::APPLY), &unit);
        let handled = self.commit_or_park(&ctx, &raw, unit).await;
        intake::handled(handling, handled.is_err());
        handled
    }

    /// Replays what is parked for the ticket, if an operator has asked for that (`holdfast admin quarantine replay`).
    #[handler]
    async fn replay(&self, ctx: ObjectContext<'_>) -> HandlerResult<()> {
        let ticket = intake::key::<TicketId>(ctx.key())?;
        // Journalled: the next call depends on it.
        let replayed = ctx.run(|| self.replay_page(&ticket)).name("replayed").await?;
        if replayed.into_inner() == Replayed::More {
            // A live event that comes between the two is parked behind the others.
            ctx.object_client::<TicketClient>(ctx.key()).replay().send();
        }
        Ok(())
    }

    /// Puts the ticket on sale, or on sale again.
    #[handler]
    async fn list(&self, ctx: ObjectContext<'_>, body: Body<events::TicketListed>) -> HandlerResult<Json<Reply>> {
        self.ask(&ctx, "list", body.read()?).await
    }

    /// Takes the ticket off sale. One that is sold stays its buyer's, and is not for sale again once it is returned.
    #[handler]
    async fn withdraw(
        &self,
        ctx: ObjectContext<'_>,
        body: Body<events::TicketWithdrawn>,
    ) -> HandlerResult<Json<Reply>> {
        self.ask(&ctx, "withdraw", body.read()?).await
    }

    /// Holds the ticket for a user.
    #[handler]
    async fn reserve(
        &self,
        ctx: ObjectContext<'_>,
        body: Body<events::ReservationRequested>,
    ) -> HandlerResult<Json<Reply>> {
        self.ask(&ctx, "reserve", body.read()?).await
    }

    /// Releases a user's hold.
    #[handler]
    async fn release(
        &self,
        ctx: ObjectContext<'_>,
        body: Body<events::ReservationReleased>,
    ) -> HandlerResult<Json<Reply>> {
        self.ask(&ctx, "release", body.read()?).await
    }

    /// The ticket as it is, without waiting for requests under way.
    #[handler]
    async fn get(&self, ctx: SharedObjectContext<'_>) -> HandlerResult<Json<View>> {
        let ticket = intake::key::<TicketId>(ctx.key())?;
        let found = store::get::<domain::Ticket>(&self.pool, &ticket)
            .await
            .map_err(failed(&self.metrics))?;
        match found {
            Some(found) => Ok(Json(View::new(ticket, found))),
            None => Err(answer_caller(404, "there is no such ticket: it was never listed")),
        }
    }

    /// Adds a tag to the ticket's attributes, unless it is there, so that a repeat adds nothing. It causes no decision and no
    /// outcome, and does not wait for requests under way.
    #[handler]
    async fn tag(&self, ctx: SharedObjectContext<'_>, body: Body<Tag>) -> HandlerResult<()> {
        attributes::tag(
            &self.attributes,
            &self.metrics,
            &intake::key::<TicketId>(ctx.key())?,
            body.read()?,
        )
        .await
    }

    /// Describes the ticket to its readers, and answers which fields were written. With `from` it writes only if no other caller
    /// has changed these fields since; without, it overwrites them. A repeat changes nothing; it causes no decision and no
    /// outcome.
    #[handler]
    async fn describe(&self, ctx: ObjectContext<'_>, body: Body<Describe>) -> HandlerResult<Json<Described>> {
        attributes::describe(
            &self.attributes,
            &self.metrics,
            &intake::key::<TicketId>(ctx.key())?,
            body.read()?,
        )
        .await
    }

    /// The ticket's attributes.
    #[handler]
    async fn attributes(&self, ctx: SharedObjectContext<'_>) -> HandlerResult<Json<Attributes>> {
        attributes::get(&self.attributes, &self.metrics, intake::key::<TicketId>(ctx.key())?).await
    }

    /// Ends the hold if it is due; changes nothing else.
    #[handler(ingress_private)]
    async fn expire(&self, ctx: ObjectContext<'_>, Json(Expire { hold }): Json<Expire>) -> HandlerResult<()> {
        let text = |text: String| EventId::parse(&text).expect("a hold's id makes a short id");
        let request = Command {
            source: Source::parse(REAPER).expect("a short name"),
            id: text(format!("{hold}/expire")),
            input: Input::Expire { hold },
            trace: None,
        };
        let unit = Unit {
            key: intake::key(ctx.key())?,
            work: vec![Work::Command(request)],
        };
        self.commit_one(unit).await.map(drop)
    }
}

impl Ticket {
    /// Commits an HTTP request and answers its caller.
    async fn ask(
        &self,
        ctx: &ObjectContext<'_>,
        handler: &str,
        data: impl Into<TicketEvent>,
    ) -> HandlerResult<Json<Reply>> {
        let unit = intake::asked(ctx, (super::TICKET, handler), data.into(), (self.now)())?;
        let handling = intake::handling(ctx, (super::TICKET, handler), &unit);
        let committed = self.commit_one(unit).await;
        intake::handled(handling, committed.is_err());
        intake::answered(committed?)
    }

    async fn commit_or_park(
        &self,
        ctx: &ObjectContext<'_>,
        raw: &[u8],
        unit: Unit<domain::Ticket>,
    ) -> HandlerResult<()> {
        let Err(error) = self.committer.commit(unit).await else {
            return Ok(());
        };
        let unit: Unit<domain::Ticket> = intake::delivered_again(ctx, raw)?;
        let rules = self.committer.rules();
        let parked = self.quarantine.park(&unit, unit.work.len(), rules, error).await;
        parked.map_err(retryable)
    }

    async fn replay_page(&self, ticket: &TicketId) -> HandlerResult<Json<Replayed>> {
        let (quarantine, rules) = (&self.quarantine, self.committer.rules());
        let mut replayed = quarantine.replay::<domain::Ticket>(ticket, rules).await;
        if crash::again(Point::QuarantineReplaying) || crash::again(Point::QuarantineReplayed) {
            replayed = quarantine.replay::<domain::Ticket>(ticket, rules).await;
        }
        replayed.map(Json).map_err(failed(&self.metrics))
    }

    async fn commit_one(&self, unit: Unit<domain::Ticket>) -> HandlerResult<Answer> {
        let answers = self.committer.commit(unit).await.map_err(told_or_retried)?;
        let answer = answers.into_iter().next();
        Ok(answer.expect("the committer answers every piece of work"))
    }
}

/// The `source` of expirations.
const REAPER: &str = "holdfast/Reaper";

/// A ticket as readers see it.
#[derive(Serialize, JsonSchema)]
struct View {
    ticket: TicketId,
    /// Equals the `sequence` of the ticket's newest outcome.
    version: i64,
    show: ShowId,
    #[serde(skip_serializing_if = "Option::is_none")]
    seat: Option<Seat>,
    price: Price,
    #[serde(flatten)]
    status: Status,
}

#[derive(Serialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
enum Status {
    Available,
    /// `until` may have passed: then the next request ends the hold.
    Held {
        hold: HoldId,
        user: UserId,
        #[serde(with = "time::serde::rfc3339")]
        #[schemars(with = "String")]
        until: OffsetDateTime,
        /// What the ticket costs by this hold, if that is not its own price.
        #[serde(skip_serializing_if = "Option::is_none")]
        hold_price: Option<Price>,
    },
    Sold {
        user: UserId,
        checkout: CheckoutId,
        /// True if the ticket is not for sale again once it is returned.
        off_sale: bool,
    },
    Withdrawn,
}

impl View {
    fn new(ticket: TicketId, found: domain::Ticket) -> Self {
        Self {
            ticket,
            version: found.version,
            show: found.show,
            seat: found.seat,
            price: found.price,
            status: match found.state {
                State::Available => Status::Available,
                State::Held(hold) => Status::Held {
                    hold: hold.id,
                    user: hold.user,
                    until: hold.until,
                    hold_price: hold.price,
                },
                State::Sold(sale) => Status::Sold {
                    user: sale.user,
                    checkout: sale.checkout,
                    off_sale: sale.off_sale,
                },
                State::Withdrawn => Status::Withdrawn,
            },
        }
    }
}
