//! The Account object: a user's credits, customer at the payment provider, orders, returns and erasure, for the shop's back office; its
//! key is the user's id. It is an object of its own, apart from the User object, so that a proxy can tell by the path who may ask. Both
//! may work on one user at the same time: what they write is decided against the version that was read, and one of them is called again.

use std::sync::Arc;

use holdfast_schemas::{CheckoutId, Reply, UserId, events};
use restate_sdk::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::body::Body;
use super::caller::{answer_caller, failed, told_or_failed, told_or_retried};
use super::intake;
use super::user::{UserClient, add_credits};
use crate::domain;
use crate::metrics::Metrics;
use crate::store::credits::{Addition, Loyalty};
use crate::store::orders::{self, LONGEST_PAGE, OrderPage, PageRequest};
use crate::store::{Answer, Committer, PgPool, Unit};

/// The handlers of one user's account, which Restate runs one after the other.
pub(super) struct Account {
    /// Refuses credits where there is no loyalty database.
    pub(super) committer: Committer<domain::User>,
    pub(super) pool: PgPool,
    pub(super) loyalty: Option<Loyalty>,
    pub(super) new_id: fn() -> Uuid,
    pub(super) metrics: Arc<Metrics>,
    pub(super) now: fn() -> OffsetDateTime,
}

/// The page of orders to answer.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OrdersAsked {
    /// The order that the page before ended with.
    #[serde(default)]
    before: Option<CheckoutId>,
    /// Most orders of the page, 1 to 100; 50 when absent.
    #[serde(default)]
    limit: Option<u32>,
}

/// Orders of a page where none says how many.
const PAGE: u32 = 50;

// Each handler is one write that may be repeated, or reads.
#[restate_sdk::object(name = "Account", lazy_state, journal_retention = "0s", idempotency_retention = "0s")]
impl Account {
    /// Adds credits.
    #[handler(name = "addCredits")]
    async fn add_credits(
        &self,
        ctx: ObjectContext<'_>,
        body: Body<events::CreditsAdded>,
    ) -> HandlerResult<Json<Reply>> {
        let asked = (super::ACCOUNT, "addCredits");
        let unit = intake::asked(&ctx, asked, body.read()?.into(), (self.now)())?;
        let handling = intake::handling(&ctx, asked, &unit);
        let answer = match (&self.loyalty, Addition::of(&unit.work[0])) {
            (Some(loyalty), Some(addition)) => {
                let added = add_credits(loyalty, &addition, (self.new_id)(), &self.metrics).await;
                added.map_err(told_or_failed(&self.metrics))
            }
            _ => self.commit(unit).await,
        };
        intake::handled(handling, answer.is_err());
        intake::answered(answer?)
    }

    /// Says which customer the user is at the payment provider, for whom payments are made from then on; without `customer`, none.
    #[handler(name = "linkCustomer")]
    async fn link_customer(
        &self,
        ctx: ObjectContext<'_>,
        body: Body<events::CustomerLinked>,
    ) -> HandlerResult<Json<Reply>> {
        let asked = (super::ACCOUNT, "linkCustomer");
        let unit = intake::asked(&ctx, asked, body.read()?.into(), (self.now)())?;
        let handling = intake::handling(&ctx, asked, &unit);
        let answer = self.commit(unit).await;
        intake::handled(handling, answer.is_err());
        intake::answered(answer?)
    }

    /// Erases the user's profile, and empties the cart. The User object does it, whose cart it is.
    #[handler]
    async fn erase(&self, ctx: ObjectContext<'_>, body: Body<events::UserErased>) -> HandlerResult<Json<Reply>> {
        let erase = ctx.object_client::<UserClient>(ctx.key()).erase(body);
        // So that a repeat is known there as one.
        Ok(erase.idempotency_key(ctx.invocation_id()).call().await?)
    }

    /// Takes seats of an order back, or gives back some of what was paid: the shop's own wish, not the buyer's. The outcomes tell what comes
    /// of it.
    #[handler(name = "returnOrder")]
    async fn return_order(
        &self,
        ctx: ObjectContext<'_>,
        body: Body<events::OrderReturned>,
    ) -> HandlerResult<Json<Reply>> {
        let returned = ctx.object_client::<UserClient>(ctx.key()).return_order(body);
        // So that a repeat is known there as one.
        Ok(returned.idempotency_key(ctx.invocation_id()).call().await?)
    }

    /// The user's orders, the newest first, without waiting for requests under way.
    #[handler]
    async fn orders(&self, ctx: SharedObjectContext<'_>, body: Body<OrdersAsked>) -> HandlerResult<Json<OrderPage>> {
        let user = intake::key::<UserId>(ctx.key())?;
        let asked = body.read()?;
        let limit = asked.limit.unwrap_or(PAGE);
        if !(1..=LONGEST_PAGE).contains(&limit) {
            return Err(answer_caller(400, format!("limit: must be 1 to {LONGEST_PAGE}")));
        }
        let page = PageRequest {
            before: asked.before.as_ref(),
            limit,
        };
        let page = orders::of_user(&self.pool, &user, None, page).await;
        Ok(Json(page.map_err(failed(&self.metrics))?))
    }
}

impl Account {
    async fn commit(&self, unit: Unit<domain::User>) -> HandlerResult<Answer> {
        let answers = self.committer.commit(unit).await.map_err(told_or_retried)?;
        let answer = answers.into_iter().next();
        Ok(answer.expect("every piece of work is answered"))
    }
}
