//! The driver of checkouts: reads a checkout's row, takes its next step, calls the payment provider for steps that move money,
//! and writes the result. All state lies in the row, so that any process may go on with it, several at once, and after any
//! crash.
//!
//! A provider's event about a payment under way changes nothing by itself, since events come late, twice and in any
//! order: they only make the driver ask for the payment's state, and the answer decides.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use holdfast_schemas::{CheckoutFailure, CheckoutId, DeclineCode, PaymentId, PaymentMethod};
use time::OffsetDateTime;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use crate::config::Config;
use crate::crash::{self, Point};
use crate::domain::checkout::{Checkout, Failure, SaleTerms, State, Step};
use crate::error;
use crate::metrics::Metrics;
use crate::provider::{self, Order, Payment, Provider};
use crate::restate_admin::{self, Live, RestateAdmin};
use crate::rounds::Rounds;
use crate::store::buying::{Buying, undoing};
use crate::store::credits::Loyalty;
use crate::store::{self, PgPool, checkouts};
use crate::transience::Fault;

/// Interval at which checkouts are counted and abandoned ones are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Most abandoned checkouts that are driven at a time.
const AT_ONCE: usize = 8;

/// Takes the next steps of checkouts.
#[derive(Clone)]
pub struct Driver {
    pub buying: Buying,
    pub provider: Option<Provider>,
    /// After this long without a step that comes through, a checkout is marked as stuck, for an operator.
    pub stuck_after: Duration,
    pub now: fn() -> OffsetDateTime,
}

/// Where a drive has left a checkout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriveResult {
    /// It waits for an event of the provider, at most until then.
    Waits(OffsetDateTime),
    /// It is marked as stuck, for an operator.
    Stuck,
    Ended,
}

/// The reason why a drive failed; the caller retries.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no checkout {0:?}")]
    NoCheckout(String),
    #[error("a step of checkout {0:?} changed nothing: it is looked at again")]
    NoProgress(String),
    #[error("there is no payment provider: set --provider-url (HOLDFAST_PROVIDER_URL)")]
    NoProvider,
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Provider(#[from] provider::Error),
    #[error("it is not known which checkouts have a live invocation")]
    Admin(#[from] restate_admin::Error),
}

impl Error {
    /// The fault, which decides whether it is waited out.
    pub fn fault(&self) -> Fault {
        match self {
            Error::NoCheckout(_) => Fault::Content,
            Error::NoProgress(_) => Fault::Rival,
            Error::NoProvider => Fault::Setting,
            Error::Store(error) => error.fault(),
            Error::Provider(error) => error.fault(),
            Error::Admin(error) => error.fault(),
        }
    }
}

impl Driver {
    /// A driver by the settings. It sends nothing yet.
    ///
    /// # Errors
    /// No client of the payment provider can be made.
    pub fn new(
        config: &Config,
        main: &PgPool,
        loyalty: Option<Loyalty>,
        metrics: &Arc<Metrics>,
        now: fn() -> OffsetDateTime,
        new_id: fn() -> Uuid,
    ) -> Result<Self, provider::Error> {
        let provider = Provider::new(&config.provider, metrics.clone())?;
        let terms = SaleTerms {
            provider: provider.is_some(),
            credits: loyalty.as_ref().map(|_| config.checkout.credits_currency),
            show_limit: config.checkout.show_limit,
        };
        let buying = Buying {
            main: main.clone(),
            loyalty,
            terms,
            mails: config.mail.smtp_url.is_some(),
            retention: config.database.idempotency_retention,
            metrics: metrics.clone(),
            new_id,
        };
        Ok(Self {
            buying,
            provider,
            stuck_after: config.checkout.stuck_after,
            now,
        })
    }

    /// Takes steps of a checkout until it has ended or must wait; a stuck one is left as it is. `heard`: the provider has sent an
    /// event, so the driver asks for the state of a payment that waits.
    ///
    /// # Errors
    /// A server does not answer, or the provider does not tell the payment's state.
    pub async fn drive(&self, id: &CheckoutId, mut heard: bool) -> Result<DriveResult, Error> {
        let mut before = None;
        loop {
            let checkout = self.find(id).await?;
            if checkout.stuck {
                return Ok(DriveResult::Stuck);
            }
            if before == Some(checkout.version) {
                return Err(Error::NoProgress(id.to_string()));
            }
            let next = checkout.next((self.now)());
            if matches!(next, Step::Capture | Step::Complete | Step::End)
                && let Err(error) = self.buying.settle_credits(&checkout).await
            {
                // The sweeper settles them later; nothing else waits for it.
                tracing::warn!(checkout = %checkout.id, error = error::chain(&error), "credits are settled later");
            }
            let step = match next {
                Step::End => return Ok(DriveResult::Ended),
                Step::Wait(until) if !heard => return Ok(DriveResult::Waits(until)),
                Step::Wait(_) => Step::Look,
                step => step,
            };
            // A `Look` may leave a payment that waits as it is.
            before = (step != Step::Look).then_some(checkout.version);
            heard = false;
            if let Err(error) = self.take(&step, &checkout).await {
                return self.held_up(&checkout, error).await;
            }
            if let Some(point) = point(&step) {
                crash::here(point);
                if crash::again(point)
                    && let Err(error) = self.take(&step, &checkout).await
                {
                    return self.held_up(&checkout, error).await;
                }
            }
        }
    }

    /// Writes since when a step fails; marks the checkout as stuck when it fails for too long.
    async fn held_up(&self, checkout: &Checkout, error: Error) -> Result<DriveResult, Error> {
        let now = (self.now)();
        match checkout.unknown_since {
            Some(since) if now - since > self.stuck_after => {
                tracing::error!(checkout = %checkout.id, error = error::chain(&error), "a checkout is stuck");
                self.buying.stick(checkout).await?;
                return Ok(DriveResult::Stuck);
            }
            Some(_) => {}
            None => {
                let next = Checkout {
                    unknown_since: Some(now),
                    ..checkout.clone()
                };
                self.advance(checkout, &next).await?;
            }
        }
        Err(error)
    }

    /// Sets a checkout that has not ended to be undone; the next drive gives back what it authorised, sold or spent.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn give_up(&self, id: &CheckoutId, reason: CheckoutFailure) -> Result<(), Error> {
        loop {
            let checkout = self.find(id).await?;
            let may = !matches!(
                checkout.state,
                State::Undoing(_) | State::Completed | State::Refunded | State::Failed(_)
            );
            let next = Checkout {
                stuck: false,
                ..undoing(&checkout, reason.into())
            };
            if !may || self.buying.advance(&checkout, &next).await? {
                return Ok(());
            }
        }
    }

    /// Takes the mark off a stuck checkout, so that it is driven again; it may get stuck again.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn resume(&self, id: &CheckoutId) -> Result<(), Error> {
        let checkout = self.find(id).await?;
        let next = Checkout {
            stuck: false,
            unknown_since: None,
            ..checkout.clone()
        };
        if checkout.stuck {
            self.buying.advance(&checkout, &next).await?;
        }
        Ok(())
    }

    /// Marks a checkout as stuck again after an operator's try, so that nothing but an operator drives it.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn leave_stuck(&self, id: &CheckoutId) -> Result<(), Error> {
        loop {
            let checkout = self.find(id).await?;
            let next = Checkout {
                stuck: true,
                ..checkout.clone()
            };
            let has_ended = checkout.next((self.now)()) == Step::End;
            if has_ended || checkout.stuck || self.buying.advance(&checkout, &next).await? {
                return Ok(());
            }
        }
    }

    async fn find(&self, id: &CheckoutId) -> Result<Checkout, Error> {
        let found = checkouts::get(&self.buying.main, id).await?;
        found.ok_or_else(|| Error::NoCheckout(id.to_string()))
    }

    async fn take(&self, step: &Step, checkout: &Checkout) -> Result<(), Error> {
        match step {
            Step::Create if checkout.called_at.is_none() => self.call(checkout).await,
            Step::Create => self.create(checkout).await,
            Step::Find => self.look_up(checkout).await,
            Step::Authorise => self.authorise(checkout).await,
            Step::Look => self.look(checkout).await,
            Step::Sell => Ok(self.buying.sell(checkout, (self.buying.new_id)()).await?),
            Step::Capture => self.capture(checkout).await,
            Step::Complete => Ok(self.buying.complete(checkout).await?),
            Step::GiveBack => self.give_back(checkout).await,
            Step::Fail => Ok(self.buying.fail(checkout, 0, (self.buying.new_id)()).await?),
            Step::ReturnCredits => Ok(self.buying.return_credits(checkout, (self.buying.new_id)()).await?),
            Step::Wait(_) | Step::End => Ok(()),
        }
    }

    /// Writes the time of the first call to the provider, before that call.
    async fn call(&self, checkout: &Checkout) -> Result<(), Error> {
        let next = Checkout {
            called_at: Some((self.now)()),
            ..checkout.clone()
        };
        self.advance(checkout, &next).await
    }

    async fn create(&self, checkout: &Checkout) -> Result<(), Error> {
        let provider = self.provider()?;
        let order = order(checkout);
        let mut answer = provider.create(&order).await;
        crash::here(Point::CheckoutCreated);
        if crash::again(Point::CheckoutCreated) {
            answer = provider.create(&order).await;
        }
        match answer {
            Ok(payment) => self.created(checkout, payment.id).await,
            Err(error) => self.did_not(checkout, error).await,
        }
    }

    /// Looks for a payment whose key the provider may have forgotten.
    async fn look_up(&self, checkout: &Checkout) -> Result<(), Error> {
        match self.found(checkout).await? {
            Some(payment) => self.created(checkout, payment.id).await,
            None => self.undo(checkout, CheckoutFailure::NotConfirmed.into()).await,
        }
    }

    /// The payment that was made for this checkout, whichever answer was lost. A payment id that the row has and the provider
    /// does not know is an error: it may belong to another account.
    async fn found(&self, checkout: &Checkout) -> Result<Option<Payment>, Error> {
        let Some(called_at) = checkout.called_at else {
            return Ok(None);
        };
        let provider = self.provider()?;
        if let Some(payment) = &checkout.payment {
            return Ok(Some(provider.get(payment).await?));
        }
        if !checkout.key_lives((self.now)()) {
            // The provider's clock may differ from ours.
            return Ok(provider
                .find(&checkout.id, called_at - time::Duration::hours(1))
                .await?);
        }
        // The idempotency key makes it the same payment; and no late call makes another after it.
        match provider.create(&order(checkout)).await {
            Ok(payment) => Ok(Some(payment)),
            Err(provider::Error::Declined { .. } | provider::Error::Misconfigured { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn created(&self, checkout: &Checkout, payment: PaymentId) -> Result<(), Error> {
        let next = Checkout {
            state: State::Created,
            payment: Some(payment),
            unknown_since: None,
            ..checkout.clone()
        };
        self.advance(checkout, &next).await
    }

    async fn authorise(&self, checkout: &Checkout) -> Result<(), Error> {
        let Some(payment) = &checkout.payment else {
            return self.look_up(checkout).await;
        };
        let provider = self.provider()?;
        let mut answer = provider.authorise(payment, &checkout.id).await;
        crash::here(Point::CheckoutAuthorised);
        if crash::again(Point::CheckoutAuthorised) {
            answer = provider.authorise(payment, &checkout.id).await;
        }
        match answer {
            Ok(payment) => self.stands(checkout, &payment).await,
            // An earlier call, whose answer was lost, has authorised it.
            Err(provider::Error::Conflict { .. }) => self.look(checkout).await,
            Err(error) => self.did_not(checkout, error).await,
        }
    }

    async fn look(&self, checkout: &Checkout) -> Result<(), Error> {
        match self.found(checkout).await? {
            Some(payment) => self.stands(checkout, &payment).await,
            None => self.undo(checkout, CheckoutFailure::NotConfirmed.into()).await,
        }
    }

    /// Takes the step that follows from the payment's state.
    async fn stands(&self, checkout: &Checkout, payment: &Payment) -> Result<(), Error> {
        let in_time = (self.now)() < checkout.until;
        let state = match payment.state {
            provider::State::Authorized | provider::State::Captured => State::Authorised,
            provider::State::ActionRequired | provider::State::Processing if in_time => State::Waiting,
            provider::State::Unconfirmed if payment.failure.is_some() => {
                return self.undo(checkout, declined(payment.failure.as_deref())).await;
            }
            _ => return self.undo(checkout, CheckoutFailure::NotConfirmed.into()).await,
        };
        if state == checkout.state && checkout.unknown_since.is_none() {
            return Ok(());
        }
        let next = Checkout {
            state,
            unknown_since: None,
            ..checkout.clone()
        };
        self.advance(checkout, &next).await
    }

    async fn capture(&self, checkout: &Checkout) -> Result<(), Error> {
        let Some(payment) = &checkout.payment else {
            return self.undo(checkout, CheckoutFailure::NotCaptured.into()).await;
        };
        let provider = self.provider()?;
        let mut answer = provider.capture(payment, &checkout.id).await;
        crash::here(Point::CheckoutCaptured);
        if crash::again(Point::CheckoutCaptured) {
            answer = provider.capture(payment, &checkout.id).await;
        }
        match answer {
            Ok(_) => Ok(self.buying.complete(checkout).await?),
            Err(provider::Error::Conflict { .. } | provider::Error::Declined { .. }) => {
                self.undo(checkout, CheckoutFailure::NotCaptured.into()).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Has the provider cancel or refund the payment, then frees the seats.
    async fn give_back(&self, checkout: &Checkout) -> Result<(), Error> {
        let mut given_back = self.given_back(checkout).await;
        crash::here(Point::CheckoutGivenBack);
        if crash::again(Point::CheckoutGivenBack) {
            given_back = self.given_back(checkout).await;
        }
        Ok(self.buying.fail(checkout, given_back?, (self.buying.new_id)()).await?)
    }

    /// Cancels or refunds the whole payment; returns the amount that had been captured.
    async fn given_back(&self, checkout: &Checkout) -> Result<i64, Error> {
        let Some(payment) = self.found(checkout).await? else {
            return Ok(0);
        };
        let provider = self.provider()?;
        let payment = match payment.state {
            provider::State::Canceled => payment,
            provider::State::Captured => provider.refund(&payment.id, &checkout.id).await?,
            _ => provider.cancel(&payment.id, &checkout.id).await?,
        };
        Ok(payment.captured)
    }

    /// Handles an error of the provider before any money was authorised.
    async fn did_not(&self, checkout: &Checkout, error: provider::Error) -> Result<(), Error> {
        match error {
            provider::Error::Declined { reason } => self.undo(checkout, declined(Some(&reason))).await,
            provider::Error::Misconfigured { .. } => {
                tracing::error!(checkout = %checkout.id, error = error::chain(&error), "a payment failed for a reason of ours");
                self.undo(checkout, CheckoutFailure::Misconfigured.into()).await
            }
            error => Err(error.into()),
        }
    }

    async fn undo(&self, checkout: &Checkout, failure: Failure) -> Result<(), Error> {
        self.advance(checkout, &undoing(checkout, failure)).await
    }

    /// Writes the step against the version that was read. If another process took a step first, the next read shows it.
    async fn advance(&self, from: &Checkout, to: &Checkout) -> Result<(), Error> {
        self.buying.advance(from, to).await?;
        Ok(())
    }

    fn provider(&self) -> Result<&Provider, Error> {
        self.provider.as_ref().ok_or(Error::NoProvider)
    }
}

fn declined(code: Option<&str>) -> Failure {
    Failure {
        reason: CheckoutFailure::Declined,
        code: code.and_then(|code| DeclineCode::parse(code).ok()),
    }
}

/// The order of a checkout's payment, the same at each call, as the idempotency key demands.
fn order(checkout: &Checkout) -> Order<'_> {
    Order {
        checkout: &checkout.id,
        user: &checkout.user,
        amount: checkout.due(),
        currency: checkout.currency(),
        method: checkout.method.as_ref().map_or("", PaymentMethod::as_str),
    }
}

/// The crash point after a step.
fn point(step: &Step) -> Option<Point> {
    match step {
        Step::Create => Some(Point::CheckoutCalled),
        Step::Sell => Some(Point::CheckoutSold),
        Step::Capture | Step::Complete => Some(Point::CheckoutCompleted),
        Step::GiveBack | Step::Fail => Some(Point::CheckoutFailed),
        _ => None,
    }
}

/// The reconciler, which runs for ever: it sets each abandoned checkout to be undone, unless it is being undone or only owes
/// credits, and drives it to its end. A checkout is abandoned when no step was taken for `idle` and Restate has no live
/// invocation for it.
pub async fn look_after(driver: Driver, admin: RestateAdmin, idle: Duration, rounds: Rounds) {
    // Not at once: workflows that waited for this process to come back go on by themselves.
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + idle, LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match look_once(&driver, &admin, idle, &rounds).await {
            Ok(()) => rounds.passed(),
            Err(error) => rounds.failed(error.fault(), &error),
        }
    }
}

/// One round. What is wrong with one checkout keeps the round from no other; a setting that has to be mended is the round's error.
async fn look_once(driver: &Driver, admin: &RestateAdmin, idle: Duration, rounds: &Rounds) -> Result<(), Error> {
    let main = &driver.buying.main;
    // Read before Restate is asked, however long it takes to answer: its answer may lack workflows that began later.
    let last_moved = store::now(main).await? - idle;
    // Restate is asked only when there is such a checkout.
    if checkouts::unfinished(main, last_moved, &[], &[]).await?.is_empty() {
        return Ok(());
    }
    let Live { checkouts: live, users } = admin.live_checkouts().await?;
    let abandoned = checkouts::unfinished(main, last_moved, &live, &users).await?;
    let mut ended = futures::stream::iter(abandoned)
        .map(async |id| {
            tracing::warn!(checkout = %id, "nobody takes this checkout further: it is given up");
            let abandoned = abandon(driver, &id).await;
            abandoned.inspect_err(|error| {
                tracing::warn!(checkout = %id, error = error::chain(error), "the checkout is looked after later");
            })
        })
        .buffer_unordered(AT_ONCE);
    let mut to_mend = None;
    while let Some(ended) = ended.next().await {
        match ended.map_err(|error| (error.fault(), error)) {
            Ok(()) => {}
            Err((Fault::Setting, error)) => to_mend = to_mend.or(Some(error)),
            Err((fault, error)) => rounds.failed_for_one(fault, &error),
        }
    }
    to_mend.map_or(Ok(()), Err)
}

async fn abandon(driver: &Driver, id: &CheckoutId) -> Result<(), Error> {
    driver.give_up(id, CheckoutFailure::Abandoned).await?;
    driver.drive(id, false).await.map(drop)
}

/// Counts the checkouts that have not ended, for ever.
pub async fn keep_count(driver: Driver, metrics: Arc<Metrics>, rounds: Rounds) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        match count(&driver, &metrics).await {
            Ok(()) => rounds.passed(),
            Err(error) => rounds.failed(error.fault(), &error),
        }
    }
}

async fn count(driver: &Driver, metrics: &Metrics) -> Result<(), store::Error> {
    let counts = checkouts::counts(&driver.buying.main).await?;
    for state in checkouts::COUNTED {
        let found = counts.iter().find(|count| count.state == state);
        let (checkouts, oldest) = found.map_or((0, 0), |count| (count.checkouts, count.oldest_seconds as i64));
        metrics.checkouts.with_label_values(&[state]).set(checkouts);
        metrics.checkout_oldest_seconds.with_label_values(&[state]).set(oldest);
    }
    Ok(())
}
