//! The User object: its key is the user's id. Events from Kafka and the user's own HTTP requests are committed in the same way; events
//! that add credits change the loyalty database as well.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_schemas::{
    CheckoutId, Email, EventId, HoldId, Language, List, Name, OutcomeData, RefusalReason, Reply, Source, TicketId,
    TicketOutcome, UserEvent, UserId, UserRefusalReason, events, hold_id, number, outcomes,
};
use restate_sdk::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::body::Body;
use super::caller::{answer_caller, failed, retryable, told_or_failed};
use super::cart::{self, AddTicket, Added, CART, CheckOut, Entries, Entry, ExpireTicket, RemoveTicket};
use super::checkout::CheckoutClient;
use super::intake;
use super::ticket::TicketClient;
use crate::checkout::Driver;
use crate::config;
use crate::crash::{self, Point};
use crate::domain;
use crate::domain::checkout::Matter;
use crate::domain::ticket::{self, Input};
use crate::metrics::Metrics;
use crate::store::buying::{CheckoutWork, LiveHold};
use crate::store::commit::Admission;
use crate::store::credits::{Addition, Loyalty};
use crate::store::mechanisms::idempotency::Once;
use crate::store::quarantine::{Break, ParkedEvent, ParkedPage, Quarantine, Replayed};
use crate::store::together::{self, Together};
use crate::store::{self, Answer, Committer, PgPool, Unit, Work, checkouts, idempotency};

/// The handlers of one user, which Restate runs one after the other.
pub(super) struct User {
    pub(super) committer: Committer<domain::User>,
    pub(super) quarantine: Quarantine,
    pub(super) pool: PgPool,
    pub(super) loyalty: Option<Loyalty>,
    pub(super) driver: Driver,
    pub(super) settings: config::Checkout,
    pub(super) metrics: Arc<Metrics>,
    pub(super) now: fn() -> OffsetDateTime,
    /// What it commits comes out of quarantine.
    pub(super) replays: bool,
}

/// Handlers that wait for answers of other objects: an invocation that one build began cannot be resumed by another.
pub(crate) const STEPWISE: [&str; 2] = ["addTicket", "removeTicket"];

/// Most tickets of one `holdTogether`.
const TOGETHER: usize = 100;

/// Parked events that one invocation replays at most.
const REPLAYED: i64 = 100;

/// Holds several tickets for the user, all or none.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HoldTogether {
    tickets: List<TicketId>,
    /// Seconds, at most the installation's `--longest-hold`; by default its `--hold-for`.
    #[serde(default, deserialize_with = "number::optional")]
    hold_for: Option<i64>,
}

/// The result of `holdTogether`.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum HeldTogether {
    /// All tickets, in the order of the request.
    Held(Vec<Held>),
    /// None of them; these are the tickets that a rule forbids.
    Refused(Vec<NotHeld>),
}

#[derive(Serialize, JsonSchema)]
struct Held {
    ticket: TicketId,
    hold: HoldId,
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    until: OffsetDateTime,
    /// The ticket's version with the hold.
    version: i64,
}

#[derive(Serialize, JsonSchema)]
struct NotHeld {
    ticket: TicketId,
    reason: String,
}

// Each handler is one write that may be repeated, and a change of the cart's state; only handlers that wait for answers of other
// objects have steps that a journal must remember (`STEPWISE`), beside those of an erasure and of a hold that was lengthened.
#[restate_sdk::object(name = "User", lazy_state, journal_retention = "0s", idempotency_retention = "0s")]
impl User {
    /// Applies a delivery from Kafka: events of one user that the gate gathered, or one event straight from a public topic.
    #[handler(ingress_private)]
    async fn apply(&self, ctx: ObjectContext<'_>, raw: Bytes) -> HandlerResult<()> {
        let unit = intake::delivered(&ctx, &raw, (self.now)(), &self.metrics)?;
        let handling = intake::handling(&ctx, (super::USER, super::APPLY), &unit);
        let handled = self.commit_or_park(&ctx, &raw, unit).await;
        intake::handled(handling, handled.is_err());
        handled
    }

    /// Replays what is parked for the user, if an operator has asked for that (`holdfast admin quarantine replay`).
    #[handler]
    async fn replay(&self, ctx: ObjectContext<'_>) -> HandlerResult<()> {
        let user = intake::key::<UserId>(ctx.key())?;
        // Journalled, and so is what it came to: what is done in between is the same with each try.
        let page = ctx.run(|| self.parked(&user)).name("parked").await?.into_inner();
        if page.is_empty() {
            return Ok(());
        }
        let page = ParkedPage::<domain::User>::read(&user, &page);
        let (done, broke) = self.replay_page(&ctx, &page).await?;
        let ids = &page.ids[..done];
        let replayed = ctx.run(|| self.take(&user, ids, broke.as_ref())).name("replayed");
        if replayed.await?.into_inner() == Replayed::More {
            // A live event that comes between the two is parked behind the others.
            ctx.object_client::<UserClient>(ctx.key()).replay().send();
        }
        Ok(())
    }

    /// Registers the user.
    #[handler]
    async fn register(&self, ctx: ObjectContext<'_>, body: Body<events::UserRegistered>) -> HandlerResult<Json<Reply>> {
        self.ask(&ctx, "register", body.read()?).await
    }

    /// Changes the profile, where it differs.
    #[handler(name = "changeProfile")]
    async fn change_profile(
        &self,
        ctx: ObjectContext<'_>,
        body: Body<events::ProfileChanged>,
    ) -> HandlerResult<Json<Reply>> {
        self.ask(&ctx, "changeProfile", body.read()?).await
    }

    /// Erases the user's address, name and language, and empties the cart: for the Account object.
    #[handler(ingress_private)]
    async fn erase(&self, ctx: ObjectContext<'_>, body: Body<events::UserErased>) -> HandlerResult<Json<Reply>> {
        self.ask(&ctx, "erase", body.read()?).await
    }

    /// Holds several tickets for the user, all or none.
    #[handler(name = "holdTogether")]
    async fn hold_together(
        &self,
        ctx: ObjectContext<'_>,
        body: Body<HoldTogether>,
    ) -> HandlerResult<Json<HeldTogether>> {
        let HoldTogether { tickets, hold_for } = body.read()?;
        let request = holds(&ctx, &tickets, hold_for)?;
        let rules = ticket::holding_by(self.settings.hold_terms());
        let answered = together::commit_all(&self.pool, &rules, &request, &self.metrics).await;
        match answered.map_err(told_or_failed(&self.metrics))? {
            Once::Fresh(together) | Once::Repeat(together) => HeldTogether::of(tickets.into(), together).map(Json),
            Once::Reused => Err(intake::id_reused()),
        }
    }

    /// Puts a ticket into the cart: the Ticket object holds it for the user.
    #[handler(name = "addTicket")]
    async fn add_ticket(&self, ctx: ObjectContext<'_>, body: Body<AddTicket>) -> HandlerResult<Json<Added>> {
        let AddTicket { ticket, hold_for } = body.read()?;
        let user = intake::key::<UserId>(ctx.key())?;
        let mut cart = cart(&ctx).await?;
        let live = self.live_of(&ctx, &cart).await?;
        cart.drop_gone(&live);
        let tickets = cart.present(&live).tickets();
        let forbidden = ctx.run(|| self.forbids(&user, &ticket, &tickets)).name("limits");
        if let Json(Some(reason)) = forbidden.await? {
            return Ok(Json(Added::Refused { ticket, reason }));
        }
        let price = None;
        let reserve = Body::of(&events::ReservationRequested { user, hold_for, price })?;
        let reserved = ctx
            .object_client::<TicketClient>(ticket.as_str())
            .reserve(reserve)
            .call();
        let mut added = Added::of(ticket, &reserved.await?.into_inner())?;
        let mut lifetime = cart::lifetime(hold_for, self.settings.hold_for);
        if let Added::Refused { ticket, reason } = &added
            && reason == RefusalReason::AlreadyYours.as_str()
        {
            // The user holds it already, by a request outside the cart.
            let held = ctx.run(|| self.held(ctx.key(), ticket)).name("held");
            if let Json(Some((held, left))) = held.await? {
                (added, lifetime) = (held, left);
            }
        }
        if let Added::Added { ticket, hold, .. } = &added {
            cart.add(ticket.clone(), *hold);
            ctx.set(CART, Json(cart));
            let expire = Json(ExpireTicket {
                ticket: ticket.clone(),
                hold: *hold,
            });
            let this = ctx.object_client::<UserClient>(ctx.key());
            this.expire_ticket(expire).send_after(lifetime);
        }
        Ok(Json(added))
    }

    /// Takes a ticket out of the cart: its hold is released.
    #[handler(name = "removeTicket")]
    async fn remove_ticket(&self, ctx: ObjectContext<'_>, body: Body<RemoveTicket>) -> HandlerResult<Json<Reply>> {
        let RemoveTicket { ticket } = body.read()?;
        let mut cart = cart(&ctx).await?;
        let live = self.live_of(&ctx, &cart).await?;
        let Some(entry) = cart.present(&live).find(&ticket).cloned() else {
            return Err(answer_caller(404, "the ticket is not in the cart"));
        };
        let release = Body::of(&events::ReservationReleased {
            user: intake::key(ctx.key())?,
            hold: entry.hold,
        })?;
        let released = ctx
            .object_client::<TicketClient>(ticket.as_str())
            .release(release)
            .call();
        let reply = released.await?;
        cart.0.retain(|other| *other != entry);
        ctx.set(CART, Json(cart));
        Ok(reply)
    }

    /// Takes a ticket whose hold has ended out of the cart; a checkout may have lengthened the hold. The Reaper ends the hold itself.
    #[handler(name = "expireTicket", ingress_private)]
    async fn expire_ticket(&self, ctx: ObjectContext<'_>, Json(expire): Json<ExpireTicket>) -> HandlerResult<()> {
        let mut cart = cart(&ctx).await?;
        let is_meant = |entry: &Entry| entry.ticket == expire.ticket && entry.hold == expire.hold;
        // What no checkout has taken was never lengthened.
        if cart.0.iter().any(|entry| is_meant(entry) && entry.taken) {
            let left = ctx.run(|| self.left(&expire)).name("left").await?;
            if let Json(Some(left)) = left {
                let this = ctx.object_client::<UserClient>(ctx.key());
                this.expire_ticket(Json(expire)).send_after(left);
                return Ok(());
            }
        }
        cart.0.retain(|entry| !is_meant(entry));
        ctx.set(CART, Json(cart));
        Ok(())
    }

    /// The cart: the tickets in it that the user still holds, without waiting for requests under way.
    #[handler]
    async fn cart(&self, ctx: SharedObjectContext<'_>) -> HandlerResult<Json<cart::View>> {
        let entries = ctx.get::<Json<Entries>>(CART).await?;
        let entries = entries.map(Json::into_inner).unwrap_or_default();
        let user = intake::key::<UserId>(ctx.key())?;
        let entries = self.present(&entries).await?;
        cart::view(&self.pool, &self.metrics, &user, entries, (self.now)())
            .await
            .map(Json)
    }

    /// Buys tickets that the user holds: answers once the checkout is open. `Checkout/{id}` shows its end.
    #[handler]
    async fn checkout(&self, ctx: ObjectContext<'_>, body: Body<CheckOut>) -> HandlerResult<Json<Reply>> {
        let CheckOut {
            checkout,
            payment_method,
            credits,
            tickets,
        } = body.read()?;
        let checkout = match checkout {
            Some(checkout) => checkout,
            None => CheckoutId::parse(ctx.invocation_id()).map_err(|invalid| invalid.to_string())?,
        };
        let data = events::CheckoutRequested {
            checkout,
            payment_method,
            credits,
            tickets,
        };
        self.ask(&ctx, "checkout", data).await
    }

    /// Takes seats of the user's order back, or gives back some of what was paid: for the Account object.
    #[handler(name = "returnOrder", ingress_private)]
    async fn return_order(
        &self,
        ctx: ObjectContext<'_>,
        body: Body<events::OrderReturned>,
    ) -> HandlerResult<Json<Reply>> {
        self.ask(&ctx, "returnOrder", body.read()?).await
    }

    /// The user as they are, without waiting for requests under way.
    #[handler]
    async fn get(&self, ctx: SharedObjectContext<'_>) -> HandlerResult<Json<View>> {
        let user = intake::key::<UserId>(ctx.key())?;
        match store::get::<domain::User>(&self.pool, &user)
            .await
            .map_err(failed(&self.metrics))?
        {
            Some(found) => Ok(Json(View::new(user, found))),
            None => Err(answer_caller(404, "there is no such user: they were never registered")),
        }
    }
}

impl User {
    /// Commits an HTTP request and answers its caller.
    async fn ask(
        &self,
        ctx: &ObjectContext<'_>,
        handler: &str,
        data: impl Into<UserEvent>,
    ) -> HandlerResult<Json<Reply>> {
        let unit = intake::asked(ctx, (super::USER, handler), data.into(), (self.now)())?;
        let handling = intake::handling(ctx, (super::USER, handler), &unit);
        let committed = self.commit(ctx, unit).await;
        intake::handled(handling, committed.is_err());
        let answers = committed.map_err(|stop| match stop.why {
            Uncommitted::Store(error) => told_or_failed(&self.metrics)(error),
            Uncommitted::Handler(error) => error,
        })?;
        let answer = answers.into_iter().next();
        intake::answered(answer.expect("every piece of work is answered"))
    }

    async fn commit_or_park(&self, ctx: &ObjectContext<'_>, raw: &[u8], unit: Unit<domain::User>) -> HandlerResult<()> {
        let stop = match self.commit(ctx, unit).await {
            Ok(_) => return Ok(()),
            Err(stop) => stop,
        };
        let error = match stop.why {
            Uncommitted::Store(error) => error,
            Uncommitted::Handler(error) => return Err(error),
        };
        let mut unit: Unit<domain::User> = intake::delivered_again(ctx, raw)?;
        unit.work.drain(..stop.done);
        let plain = unit.work.iter().take_while(|work| self.is_plain(work)).count();
        let parked = self.quarantine.park(&unit, plain, self.committer.rules(), error).await;
        parked.map_err(|error| match plain {
            0 => failed(&self.metrics)(error),
            // The committer has logged it.
            _ => retryable(error),
        })?;
        // What was good before the breaker has erased the user.
        if stop.erases_anew && !self.erases_anew(ctx, &unit.work[..plain]).await? {
            ctx.clear(CART);
        }
        Ok(())
    }

    /// Commits work in order: each piece that adds credits or is about a checkout by itself, the others in one unit.
    async fn commit(&self, ctx: &ObjectContext<'_>, unit: Unit<domain::User>) -> Result<Vec<Answer>, Stop> {
        let Unit { key, work } = unit;
        let mut answers = Vec::with_capacity(work.len());
        for work in work.chunk_by(|one, next| self.is_plain(one) && self.is_plain(next)) {
            let done = answers.len();
            let committed = self.commit_alike(ctx, &key, work).await;
            answers.extend(committed.map_err(|stop| Stop {
                done: done + stop.done,
                ..stop
            })?);
        }
        Ok(answers)
    }

    /// Commits work in one way: one piece, or several plain ones.
    async fn commit_alike(
        &self,
        ctx: &ObjectContext<'_>,
        key: &UserId,
        work: &[Work<domain::User>],
    ) -> Result<Vec<Answer>, Stop> {
        match self.way_of(&work[0]) {
            Way::Checkout(work) => Ok(vec![self.buy(ctx, key, &work).await?]),
            Way::Credits(loyalty, addition) => {
                let attempt = (self.driver.buying.new_id)();
                Ok(vec![add_credits(loyalty, &addition, attempt, &self.metrics).await?])
            }
            Way::Plain => {
                let erases_anew = self.erases_anew(ctx, work).await?;
                let unit = Unit {
                    key: key.clone(),
                    work: work.to_vec(),
                };
                let committed = match self.replays {
                    false => self.committer.commit(unit).await.map_err(Stop::from),
                    true => self.recommit(unit).await,
                };
                let answers = committed.map_err(|stop| Stop { erases_anew, ..stop })?;
                if erases_anew {
                    ctx.clear(CART);
                }
                Ok(answers)
            }
        }
    }

    /// Commits plain work out of quarantine, up to a piece that breaks.
    async fn recommit(&self, unit: Unit<domain::User>) -> Result<Vec<Answer>, Stop> {
        let committed = self.quarantine.commit(&unit, self.committer.rules()).await?;
        match committed.broke {
            None => Ok(committed.answers),
            Some((done, error)) => Err(Stop {
                done,
                ..Stop::from(error)
            }),
        }
    }

    /// Commits parked events in order. How many were, and what broke behind them.
    async fn replay_page(
        &self,
        ctx: &ObjectContext<'_>,
        page: &ParkedPage<domain::User>,
    ) -> HandlerResult<(usize, Option<Break>)> {
        let mut driver = self.driver.clone();
        driver.buying.admission = Admission::Replayed;
        let replaying = Self {
            committer: self.committer.clone(),
            quarantine: self.quarantine.clone(),
            pool: self.pool.clone(),
            loyalty: self
                .loyalty
                .clone()
                .map(|loyalty| loyalty.admitting(Admission::Replayed)),
            driver,
            settings: self.settings.clone(),
            metrics: self.metrics.clone(),
            now: self.now,
            replays: true,
        };
        let Err(Stop { done, why, erases_anew }) = replaying.commit(ctx, page.unit.clone()).await else {
            return Ok((page.ids.len(), page.unreadable().cloned()));
        };
        if erases_anew && page.unit.work[..done].iter().any(|work| erasure(work).is_some()) {
            ctx.clear(CART);
        }
        match why {
            Uncommitted::Store(error) if error.breaker().is_some() => Ok((done, Some(Break::of(done, &error)))),
            Uncommitted::Store(error) => Err(failed(&self.metrics)(error)),
            Uncommitted::Handler(error) => Err(error),
        }
    }

    async fn parked(&self, user: &UserId) -> HandlerResult<Json<Vec<ParkedEvent>>> {
        let parked = self.quarantine.asked::<domain::User>(user, REPLAYED).await;
        parked.map(Json).map_err(failed(&self.metrics))
    }

    async fn take(&self, user: &UserId, ids: &[i64], broke: Option<&Break>) -> HandlerResult<Json<Replayed>> {
        let mut taken = self.quarantine.take::<domain::User>(user, ids, broke).await;
        if crash::again(Point::QuarantineReplaying) || crash::again(Point::QuarantineReplayed) {
            taken = self.quarantine.take::<domain::User>(user, ids, broke).await;
        }
        taken.map(Json).map_err(failed(&self.metrics))
    }

    /// Whether the user is to be erased by an event that had not come before. The journal remembers it: a try that died between the
    /// commit and the end of the cart finds the event known, and so does a late repeat, which must leave a newer cart alone.
    async fn erases_anew(&self, ctx: &ObjectContext<'_>, work: &[Work<domain::User>]) -> HandlerResult<bool> {
        let erasures: Vec<_> = work.iter().filter_map(erasure).collect();
        if erasures.is_empty() {
            return Ok(false);
        }
        let known = ctx.run(|| self.are_known(&erasures)).name("erased before").await?;
        Ok(!known.into_inner())
    }

    async fn are_known(&self, events: &[(&Source, &EventId)]) -> HandlerResult<Json<bool>> {
        let known = idempotency::are_known(&self.pool, events).await;
        known.map(Json).map_err(failed(&self.metrics))
    }

    fn is_plain(&self, work: &Work<domain::User>) -> bool {
        matches!(self.way_of(work), Way::Plain)
    }

    fn way_of<'w>(&'w self, work: &'w Work<domain::User>) -> Way<'w> {
        if let Some(work) = CheckoutWork::of(work) {
            return Way::Checkout(work);
        }
        match (&self.loyalty, Addition::of(work)) {
            (Some(loyalty), Some(addition)) => Way::Credits(loyalty, addition),
            _ => Way::Plain,
        }
    }

    /// Commits work about a checkout, and starts or notifies its workflow: sent again with each repeat, that takes effect once.
    async fn buy(&self, ctx: &ObjectContext<'_>, user: &UserId, work: &CheckoutWork<'_>) -> Result<Answer, Stop> {
        let mut cart = cart(ctx).await?;
        let buying = &self.driver.buying;
        let tickets = match work.matter {
            Matter::Requested(_) => self.present(&cart).await?.tickets(),
            _ => vec![],
        };
        let answer = buying.commit(user, work, &tickets).await?;
        crash::here(Point::CheckoutOpened);
        if crash::again(Point::CheckoutOpened) {
            let repeated = buying.commit(user, work, &tickets).await;
            tracing::info!(?repeated, "the event was committed again on purpose");
        }
        let (Answer::Fresh(reply) | Answer::Repeat(reply)) = &answer else {
            return Ok(answer);
        };
        if reply.refusal().is_some() {
            return Ok(answer);
        }
        let checkout = work.matter.checkout();
        let workflow = ctx.workflow_client::<CheckoutClient>(checkout.as_str());
        match work.matter {
            Matter::Reported(_) | Matter::Retried(_) | Matter::Cancelled(_) | Matter::Returned(_) => {
                workflow.hear().send();
                return Ok(answer);
            }
            Matter::Requested(_) => workflow.run().send(),
        };
        if cart.0.is_empty() {
            return Ok(answer);
        }
        let opened = checkouts::get(&self.pool, checkout)
            .await
            .map_err(failed(&self.metrics))?;
        let lines = opened.map(|opened| opened.lines).unwrap_or_default();
        let holds: Vec<_> = lines.iter().map(|line| line.hold).collect();
        if cart.0.iter().any(|entry| holds.contains(&entry.hold)) {
            cart.take(&holds);
            ctx.set(CART, Json(cart));
        }
        Ok(answer)
    }

    /// The reason why the user may not have this ticket in the cart as well, if there is one.
    async fn forbids(
        &self,
        user: &UserId,
        ticket: &TicketId,
        cart: &[TicketId],
    ) -> HandlerResult<Json<Option<String>>> {
        let free = self.quarantine.check::<domain::User>(user).await;
        free.map_err(told_or_failed(&self.metrics))?;
        let others = cart.iter().filter(|other| *other != ticket).count();
        let reason = if others >= self.settings.cart_limit {
            Some(UserRefusalReason::CartFull)
        } else {
            let over = self
                .driver
                .buying
                .would_exceed(user, ticket, cart)
                .await
                .map_err(failed(&self.metrics))?;
            over.then_some(UserRefusalReason::ShowLimit)
        };
        Ok(Json(reason.map(|reason| reason.as_str().to_owned())))
    }

    /// The holds of the cart's taken entries that have not ended; in the journal, since later steps depend on them.
    async fn live_of(&self, ctx: &ObjectContext<'_>, cart: &Entries) -> HandlerResult<Vec<LiveHold>> {
        if cart.taken().is_empty() {
            return Ok(vec![]);
        }
        let live = ctx.run(|| self.live(cart)).name("taken").await?;
        Ok(live.into_inner())
    }

    async fn live(&self, cart: &Entries) -> HandlerResult<Json<Vec<LiveHold>>> {
        let live = self.driver.buying.live(&cart.taken()).await;
        live.map(Json).map_err(failed(&self.metrics))
    }

    /// What is in the cart now.
    async fn present(&self, cart: &Entries) -> HandlerResult<Entries> {
        if cart.taken().is_empty() {
            return Ok(cart.clone());
        }
        Ok(cart.present(&self.live(cart).await?.into_inner()))
    }

    /// The time until the end of a hold in the cart; none once it has ended.
    async fn left(&self, ExpireTicket { ticket, hold }: &ExpireTicket) -> HandlerResult<Json<Option<Duration>>> {
        let live = self.driver.buying.live(&[(ticket, *hold)]).await;
        let live = live.map_err(failed(&self.metrics))?;
        let left = live.first().map(|live| live.until - (self.now)());
        // The database's clock may be behind ours.
        Ok(Json(left.map(|left| left.try_into().unwrap_or(cart::SHORTLY))))
    }

    /// The user's hold on a ticket, if there is one that no checkout buys, and the time until its end.
    async fn held(&self, user: &str, ticket: &TicketId) -> HandlerResult<Json<Option<(Added, Duration)>>> {
        let found = store::get::<domain::Ticket>(&self.pool, ticket)
            .await
            .map_err(failed(&self.metrics))?;
        let Some(domain::State::Held(held)) = found.map(|found| found.state) else {
            return Ok(Json(None));
        };
        let left = held.until - (self.now)();
        let is_theirs = held.user.as_str() == user
            && left.is_positive()
            && !self
                .driver
                .buying
                .is_under_way(held.id)
                .await
                .map_err(failed(&self.metrics))?;
        let added = Added::Added {
            ticket: ticket.clone(),
            hold: held.id,
            until: held.until,
        };
        Ok(Json(is_theirs.then(|| (added, left.unsigned_abs()))))
    }
}

/// Work that was committed up to some piece.
struct Stop {
    done: usize,
    why: Uncommitted,
    /// Among what was not committed as a whole is the erasure of the user, which had not come before.
    erases_anew: bool,
}

/// Why a piece of work was not committed.
enum Uncommitted {
    /// Neither logged nor counted, unless the committer has met it.
    Store(store::Error),
    /// For the engine, as it is.
    Handler(HandlerError),
}

impl From<store::Error> for Stop {
    fn from(error: store::Error) -> Self {
        Self {
            done: 0,
            why: Uncommitted::Store(error),
            erases_anew: false,
        }
    }
}

impl From<HandlerError> for Stop {
    fn from(error: HandlerError) -> Self {
        Self {
            done: 0,
            why: Uncommitted::Handler(error),
            erases_anew: false,
        }
    }
}

/// The way in which a piece of a user's work is committed.
enum Way<'w> {
    /// With the rows of its checkout, by itself.
    Checkout(CheckoutWork<'w>),
    /// In two databases, by itself.
    Credits(&'w Loyalty, Addition<'w>),
    /// By the committer, with others.
    Plain,
}

/// The inputs that hold each of these tickets for the user.
fn holds(
    ctx: &ObjectContext<'_>,
    tickets: &[TicketId],
    hold_for: Option<i64>,
) -> HandlerResult<together::Request<domain::User, domain::Ticket>> {
    let owner = intake::key::<UserId>(ctx.key())?;
    let different: HashSet<_> = tickets.iter().collect();
    if !(1..=TOGETHER).contains(&tickets.len()) || different.len() < tickets.len() {
        let what = format!("tickets: name 1 to {TOGETHER} tickets, each once");
        return Err(answer_caller(400, what));
    }
    let (source, id) = intake::identity(ctx, (super::USER, "holdTogether"))?;
    let parts = tickets.iter().map(|ticket| {
        let input = Input::Reserve {
            user: owner.clone(),
            hold_for,
            price: None,
            hold: hold_id(source.as_str(), id.as_str(), ticket.as_str()),
        };
        (ticket.clone(), input)
    });
    Ok(together::Request {
        parts: parts.collect(),
        owner,
        source,
        id,
    })
}

impl HeldTogether {
    fn of(tickets: Vec<TicketId>, together: Together) -> HandlerResult<Self> {
        let tickets = tickets.into_iter();
        Ok(match together {
            Together::All(replies) => Self::Held(tickets.zip(replies).map(Held::of).collect::<HandlerResult<_>>()?),
            Together::Refused(reasons) => {
                let refused = tickets.zip(reasons);
                let refused = refused.filter_map(|(ticket, reason)| {
                    Some(NotHeld {
                        ticket,
                        reason: reason?,
                    })
                });
                Self::Refused(refused.collect())
            }
        })
    }
}

/// Source and id of an event that erases the user.
fn erasure(work: &Work<domain::User>) -> Option<(&Source, &EventId)> {
    match work {
        Work::Event(event) | Work::Request(event) if matches!(event.data, UserEvent::UserErased(_)) => {
            Some((&event.source, &event.id))
        }
        _ => None,
    }
}

/// Commits one event that adds credits, also for the Account object, which gets those by HTTP. `attempt` must be new.
pub(super) async fn add_credits(
    loyalty: &Loyalty,
    addition: &Addition<'_>,
    attempt: Uuid,
    metrics: &Metrics,
) -> Result<Answer, store::Error> {
    let answer = loyalty.commit(addition, attempt).await?;
    store::commit::count(std::slice::from_ref(&answer), metrics);
    Ok(answer)
}

async fn cart(ctx: &ObjectContext<'_>) -> HandlerResult<Entries> {
    let entries = ctx.get::<Json<Entries>>(CART).await?;
    Ok(entries.map(Json::into_inner).unwrap_or_default())
}

impl Held {
    /// Reads the hold from the last outcome in the ticket's reply.
    fn of((ticket, reply): (TicketId, Reply)) -> HandlerResult<Self> {
        let last = reply.outcomes.last();
        let told = last.map(|last| {
            (
                last.sequence,
                TicketOutcome::read(&last.outcome_type, &last.data.to_string()),
            )
        });
        match told {
            Some((version, Ok(TicketOutcome::TicketHeld(outcomes::TicketHeld { hold, until, .. })))) => Ok(Self {
                ticket,
                hold,
                until,
                version,
            }),
            _ => Err(format!("the reply of {ticket} tells of no hold").into()),
        }
    }
}

/// A user as readers see them. The loyalty database has the credits.
#[derive(Serialize, JsonSchema)]
struct View {
    user: UserId,
    /// Equals the `sequence` of the user's newest outcome.
    version: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<Email>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    language: Option<Language>,
}

impl View {
    fn new(user: UserId, found: domain::User) -> Self {
        Self {
            user,
            version: found.version,
            email: found.email,
            name: found.name,
            language: found.language,
        }
    }
}
