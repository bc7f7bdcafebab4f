//! The Checkout workflow: its key is the checkout's id. It drives the checkout to its end while the User object goes on with
//! other requests. Progress lies in the checkout's row, not in the journal: if the workflow is killed, forgotten or upgraded,
//! another caller of the driver goes on from there.

use holdfast_schemas::{
    CheckoutFailure, CheckoutId, Credits, DeclineCode, PaymentId, PaymentMethod, Price, TicketId, UserId,
};
use restate_sdk::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use std::time::Duration;
use time::OffsetDateTime;

use crate::checkout::{self, DriveResult, Driver};
use crate::domain;
use crate::domain::checkout::{Fact, State};
use crate::provider::ClientSecret;
use crate::store::checkouts;

use super::body::Body;
use super::caller::{answer_caller, failed, step_failed};

/// Drives one checkout to its end.
pub(super) struct Checkout {
    driver: Driver,
}

impl Checkout {
    pub(super) fn new(driver: Driver) -> Self {
        Self { driver }
    }
}

/// The durable promise that an event of the provider resolves, so that a waiting workflow goes on at once.
const HEARD: &str = "heard";

/// Pauses before the workflow reads a waiting checkout again, as another caller may have driven it: they double from the first
/// to the longest, so that the journal stays short.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);

/// The result of a drive, as the journal keeps it.
#[derive(Serialize, Deserialize)]
enum Driven {
    Ended,
    /// It waits for an event of the provider, at most this many milliseconds.
    Waits(u64),
    Stuck,
}

// What a checkout came to is in its row. The engine retains a finished one only so long that the provider's word about it, which
// is under way by then, finds it; each one retained is a row more that every question about invocations goes through.
#[restate_sdk::workflow(
    name = "Checkout",
    journal_retention = "0s",
    idempotency_retention = "0s",
    workflow_completion_retention = "1m"
)]
impl Checkout {
    /// Drives the checkout to its end and returns it. A cancelled workflow undoes the checkout first. The User object starts this
    /// handler when it has opened the checkout.
    #[handler(ingress_private)]
    async fn run(&self, ctx: WorkflowContext<'_>) -> HandlerResult<Json<View>> {
        let id = id(ctx.key())?;
        match self.follow(&ctx, &id, true).await {
            Ok(()) => {}
            // Only a cancellation, or an unknown checkout, ends a step for good; for an unknown one this fails again.
            Err(_) => {
                ctx.run(|| self.give_up(&id)).name("give up").await?;
                self.follow(&ctx, &id, false).await?;
            }
        }
        self.view(&id).await
    }

    /// Handles an event of the provider about the payment.
    #[handler(ingress_private)]
    async fn hear(&self, ctx: SharedWorkflowContext<'_>) -> HandlerResult<()> {
        let id = id(ctx.key())?;
        // Journalled: once, however often the drive is retried.
        let had_ended = ctx.run(|| self.resume(&id)).name("resume").await?;
        ctx.run(|| self.drive(&id, true)).name("drive").await?;
        // Of a workflow that Restate no longer retains, the promise would stay for ever.
        if !had_ended && ctx.peek_promise::<()>(HEARD).await?.is_none() {
            ctx.resolve_promise(HEARD, ());
        }
        Ok(())
    }

    /// Tries another payment method after a decline; 409 unless the payment is declined. The outcomes tell what comes of it.
    #[handler]
    async fn retry(&self, ctx: SharedWorkflowContext<'_>, body: Body<Retry>) -> HandlerResult<Json<View>> {
        let (id, Retry { payment_method }) = (id(ctx.key())?, body.read()?);
        // Journalled: a request is one attempt, however often its handler runs.
        let attempt = ctx.run(|| self.next_attempt(&id)).name("attempt").await?;
        let method = payment_method;
        self.ask(&ctx, &id, Fact::Retried { attempt, method }).await
    }

    /// Gives the checkout up by the buyer's wish: what is authorised is cancelled; 409 once the tickets are sold.
    #[handler]
    async fn cancel(&self, ctx: SharedWorkflowContext<'_>, body: Body<Cancel>) -> HandlerResult<Json<View>> {
        let Cancel {} = body.read()?;
        let asked = self.ask(&ctx, &id(ctx.key())?, Fact::Cancelled).await?;
        match asked.0.reason {
            Some(_) => Ok(asked),
            None => Err(answer_caller(409, "the tickets are sold: it is too late to cancel")),
        }
    }

    /// What the buyer's page needs to have the customer confirm the payment (3-D Secure), fetched from the provider; 409 while
    /// the checkout does not wait for that.
    #[handler]
    async fn action(&self, ctx: SharedWorkflowContext<'_>) -> HandlerResult<Json<ActionView>> {
        // No journalled step: an answer that lies in the journal would be kept.
        let action = self.driver.action(&id(ctx.key())?).await;
        match action.map_err(|error| self.answer(&error))? {
            Some(action) => Ok(Json(ActionView::of(action))),
            None => Err(answer_caller(
                409,
                "the checkout does not wait for a confirmation: read its state (get)",
            )),
        }
    }

    /// The checkout as it is, from its row.
    #[handler]
    async fn get(&self, ctx: SharedWorkflowContext<'_>) -> HandlerResult<Json<View>> {
        self.view(&id(ctx.key())?).await
    }
}

impl Checkout {
    /// Records what the buyer asks, and has the checkout driven on.
    async fn ask(&self, ctx: &SharedWorkflowContext<'_>, id: &CheckoutId, fact: Fact) -> HandlerResult<Json<View>> {
        let asked = self.driver.ask(id, fact).await;
        asked.map_err(|error| self.answer(&error))?;
        ctx.workflow_client::<CheckoutClient>(ctx.key()).hear().send();
        self.view(id).await
    }

    /// The number of the attempt that another payment method would be.
    async fn next_attempt(&self, id: &CheckoutId) -> HandlerResult<i32> {
        let found = checkouts::get(&self.driver.buying.main, id)
            .await
            .map_err(failed(&self.driver.buying.metrics))?;
        match found.ok_or_else(never_opened)? {
            found if matches!(found.state, State::Declined(_)) => Ok(found.attempt + 1),
            found => Err(answer_caller(
                409,
                format!(
                    "the checkout is {}: only a declined one takes another payment method",
                    found.state.name()
                ),
            )),
        }
    }

    /// Drives the checkout, with pauses, to its end.
    async fn follow(&self, ctx: &WorkflowContext<'_>, id: &CheckoutId, may_wait: bool) -> Result<(), TerminalError> {
        let (mut listens, mut pause) = (may_wait, FIRST_PAUSE);
        loop {
            let taken = ctx.run(|| self.drive(id, false)).name("drive").await?;
            let left = match taken.into_inner() {
                Driven::Ended => return Ok(()),
                Driven::Waits(left) => Duration::from_millis(left),
                Driven::Stuck => pause,
            };
            if listens && left > pause {
                listens = false;
                restate_sdk::select! {
                    heard = ctx.promise::<()>(HEARD) => heard?,
                    slept = ctx.sleep(left) => slept?,
                };
            } else {
                // The `hear` handler or an operator drives the checkout; this workflow sees it after the pause.
                ctx.sleep(left.min(pause)).await?;
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
        }
    }

    async fn drive(&self, id: &CheckoutId, heard: bool) -> HandlerResult<Json<Driven>> {
        let progress = self.driver.drive(id, heard).await;
        Ok(Json(match progress.map_err(|error| self.answer(&error))? {
            DriveResult::Ended => Driven::Ended,
            DriveResult::Stuck => Driven::Stuck,
            DriveResult::Waits(until) => {
                let pause = (until - (self.driver.now)()).whole_milliseconds();
                Driven::Waits(u64::try_from(pause).unwrap_or(0) + 1)
            }
        }))
    }

    async fn give_up(&self, id: &CheckoutId) -> HandlerResult<()> {
        let given_up = self.driver.give_up(id, CheckoutFailure::Cancelled).await;
        given_up.map_err(|error| self.answer(&error))
    }

    /// Sets a checkout going again whose step failed for too long. Tells whether the checkout had ended before.
    async fn resume(&self, id: &CheckoutId) -> HandlerResult<bool> {
        let found = self.driver.hear(id).await.map_err(|error| self.answer(&error))?;
        Ok(found.state.has_ended())
    }

    async fn view(&self, id: &CheckoutId) -> HandlerResult<Json<View>> {
        match checkouts::get(&self.driver.buying.main, id)
            .await
            .map_err(failed(&self.driver.buying.metrics))?
        {
            Some(found) => Ok(Json(View::new(found))),
            None => Err(never_opened()),
        }
    }

    /// An error that Restate retries, unless the checkout does not exist.
    fn answer(&self, error: &checkout::Error) -> HandlerError {
        match error {
            checkout::Error::NoCheckout(_) => never_opened(),
            error => step_failed(&self.driver.buying.metrics, error),
        }
    }
}

fn never_opened() -> HandlerError {
    answer_caller(404, "there is no such checkout: it was never opened")
}

fn id(key: &str) -> HandlerResult<CheckoutId> {
    CheckoutId::parse(key).map_err(|invalid| answer_caller(400, format!("the checkout's id in the address: {invalid}")))
}

/// Another payment method for a declined checkout.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Retry {
    payment_method: PaymentMethod,
}

/// Gives the checkout up.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Cancel {}

/// What the buyer's page needs to have the customer confirm the payment.
#[derive(Serialize, JsonSchema)]
struct ActionView {
    /// For `handleNextAction` of Stripe.js.
    #[serde(serialize_with = "exposed")]
    #[schemars(with = "String")]
    client_secret: ClientSecret,
    payment: PaymentId,
    /// The payment must be confirmed by then.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    until: OffsetDateTime,
}

impl ActionView {
    fn of(action: checkout::Action) -> Self {
        let checkout::Action {
            payment,
            until,
            client_secret,
        } = action;
        Self {
            client_secret,
            payment,
            until,
        }
    }
}

fn exposed<S: Serializer>(secret: &ClientSecret, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose())
}

/// A checkout as readers see it.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(super) struct View {
    checkout: CheckoutId,
    user: UserId,
    /// opened, created, waiting, processing, declined, authorised, sold, undoing, completed, refunded or failed.
    state: String,
    /// The checkout waits for an operator.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stuck: bool,
    tickets: Vec<TicketId>,
    /// Those of the tickets that were sold, and are the user's no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    returned: Vec<TicketId>,
    total: Price,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credits: Option<Credits>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payment: Option<PaymentId>,
    /// The customer must have confirmed the payment by then, or given another payment method.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    until: OffsetDateTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<CheckoutFailure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<DeclineCode>,
}

impl View {
    fn new(found: domain::checkout::Checkout) -> Self {
        let (failure, code) = (found.state.failure().cloned(), found.state.code().cloned());
        Self {
            state: found.state.name().to_owned(),
            stuck: found.stuck.is_some(),
            returned: found
                .lines
                .iter()
                .filter(|line| line.returned)
                .map(|line| line.ticket.clone())
                .collect(),
            tickets: found.lines.into_iter().map(|line| line.ticket).collect(),
            checkout: found.id,
            user: found.user,
            total: found.total,
            credits: found.credits,
            payment: found.payment,
            until: found.until,
            reason: failure.map(|failure| failure.reason),
            code,
        }
    }
}
