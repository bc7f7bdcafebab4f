//! The driver of checkouts: reads a checkout's row, asks what is to be done, does it, and records the fact that was learnt. All
//! state lies in the row, so that any process may go on with it, several at once, and after any crash: the workflow, the
//! handler that receives the provider's events, an operator and the [`reconciler`] all drive.
//!
//! A provider's event about a payment under way changes nothing by itself, since events come late, twice and in any
//! order: they only make the driver ask for the payment's state, and the answer decides.

pub mod reconciler;

use std::sync::Arc;
use std::time::Duration;

use holdfast_schemas::{
    CheckoutFailure, CheckoutId, CustomerId, DeclineCode, Email, PaymentId, PaymentMethod, Price, UserRefusalReason,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::config::{Config, FullRefund};
use crate::crash::{self, Point};
use crate::domain::User;
use crate::domain::checkout::{Charges, Checkout, Fact, Next, PaymentStatus, Refund, SaleTerms, State, Step};
use crate::error;
use crate::metrics::Metrics;
use crate::provider::limits::{self, Uncharged};
use crate::provider::{self, About, ClientSecret, MadeRefund, Order, Payment, Provider, RefundOrder};
use crate::restate_admin;
use crate::store::buying::{Buying, Recorded};
use crate::store::commit::Admission;
use crate::store::credits::Loyalty;
use crate::store::{self, PgPool, checkouts};
use crate::traces;
use crate::transience::Fault;

/// Takes the next steps of checkouts.
#[derive(Clone)]
pub struct Driver {
    pub buying: Buying,
    pub provider: Option<Provider>,
    /// After this long without a step that comes through, a checkout is marked as stuck, for an operator.
    pub stuck_after: Duration,
    pub now: fn() -> OffsetDateTime,
}

/// Who pays.
#[derive(Default)]
struct Payer {
    customer: Option<CustomerId>,
    receipt: Option<Email>,
}

/// What a step came to.
enum Taken {
    /// The checkout with a fact that is written with the next one.
    Kept(Box<Checkout>),
    Recorded(Recorded),
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

/// The confirmation for which a checkout waits.
#[derive(Debug)]
pub struct Action {
    pub payment: PaymentId,
    pub until: OffsetDateTime,
    pub client_secret: ClientSecret,
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
            charges: provider.is_some().then_some(charges as Charges),
            refunds,
            credits: loyalty.as_ref().map(|_| config.checkout.credits_currency),
            show_limit: config.checkout.show_limit,
            refund_frees_seats: config.checkout.full_refund == FullRefund::FreesSeats,
            hold: time::Duration::try_from(config.checkout.checkout_hold).unwrap_or(time::Duration::ZERO),
        };
        let buying = Buying {
            main: main.clone(),
            loyalty,
            terms,
            shows: config.provider.shows.clone().unwrap_or_default(),
            mails: config.mail.smtp_url.is_some(),
            admission: Admission::Live {
                retention: config.database.idempotency_retention,
            },
            metrics: metrics.clone(),
            now,
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
    /// event, so the driver takes the step for which the checkout waits.
    ///
    /// # Errors
    /// A server does not answer, or the provider does not tell the payment's state.
    pub async fn drive(&self, id: &CheckoutId, mut heard: bool) -> Result<DriveResult, Error> {
        let mut checkout = self.find(id).await?;
        loop {
            if checkout.stuck.is_some() {
                return Ok(DriveResult::Stuck);
            }
            let next = checkout.next((self.now)());
            self.settle_credits(&checkout, &next).await;
            let step = match next {
                Next::End => return Ok(DriveResult::Ended),
                Next::Wait { until, .. } if !heard => return Ok(DriveResult::Waits(until)),
                Next::Wait { step, .. } | Next::Take(step) => step,
            };
            heard = false;
            let taken = match self.take_at_crash_point(&checkout, &step).await {
                Ok(taken) => taken,
                Err(error) => return self.held_up(&checkout, error).await,
            };
            let before = checkout.version;
            checkout = match taken {
                Taken::Kept(next) => {
                    checkout = *next;
                    continue;
                }
                Taken::Recorded(Recorded::Written(next)) => *next,
                Taken::Recorded(Recorded::Unchanged | Recorded::Overtaken) => self.find(id).await?,
            };
            // A `Look` may leave a payment that waits as it is.
            if checkout.version == before && step != Step::Look {
                return Err(Error::NoProgress(id.to_string()));
            }
        }
    }

    /// Settles the credits that an earlier try may have left prepared, once they can change no more.
    async fn settle_credits(&self, checkout: &Checkout, next: &Next) {
        let is_settled = matches!(next, Next::Take(Step::Capture(_) | Step::Complete) | Next::End);
        if is_settled && let Err(error) = self.buying.settle_credits(checkout).await {
            // The sweeper settles them later; nothing else waits for it.
            tracing::warn!(checkout = %checkout.id, error = error::chain(&error), "credits are settled later");
        }
    }

    async fn take_at_crash_point(&self, checkout: &Checkout, step: &Step) -> Result<Taken, Error> {
        let taken = self.take_traced(checkout, step).await?;
        if let Some(point) = point(step) {
            crash::here(point);
            if crash::again(point) {
                self.take_traced(checkout, step).await?;
            }
        }
        Ok(taken)
    }

    async fn take_traced(&self, checkout: &Checkout, step: &Step) -> Result<Taken, Error> {
        let taking = self.take(checkout, step);
        traces::step(name(step), &checkout.id, checkout.trace.as_ref(), taking).await
    }

    /// Records that a step fails; when it fails for too long, the checkout is stuck.
    async fn held_up(&self, checkout: &Checkout, error: Error) -> Result<DriveResult, Error> {
        let patience = self.stuck_after;
        match self.buying.record(checkout, Fact::StepFailed { patience }).await? {
            Recorded::Written(next) if next.stuck.is_some() => {
                tracing::error!(checkout = %checkout.id, error = error::chain(&error), "a checkout is stuck");
                Ok(DriveResult::Stuck)
            }
            _ => Err(error),
        }
    }

    /// Fetches what the customer's page needs to confirm the payment; none unless the checkout waits for that.
    ///
    /// # Errors
    /// The database or the provider does not answer.
    pub async fn action(&self, id: &CheckoutId) -> Result<Option<Action>, Error> {
        let checkout = self.find(id).await?;
        let (State::Waiting, Some(payment)) = (&checkout.state, checkout.payment) else {
            return Ok(None);
        };
        if (self.now)() >= checkout.until {
            return Ok(None);
        }
        let secret = self.provider()?.client_secret(&payment).await?;
        Ok(secret.map(|client_secret| Action {
            payment,
            until: checkout.until,
            client_secret,
        }))
    }

    /// Records what the buyer asks of a checkout.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn ask(&self, id: &CheckoutId, fact: Fact) -> Result<(), Error> {
        self.tell(id, fact).await.map(drop)
    }

    /// Sets a checkout that has not ended to be undone; the next drive gives back what it authorised, sold or spent.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn give_up(&self, id: &CheckoutId, reason: CheckoutFailure) -> Result<(), Error> {
        self.tell(id, Fact::GivenUp(reason)).await.map(drop)
    }

    /// Takes the mark off a stuck checkout, so that it is driven again; it may get stuck again.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn resume(&self, id: &CheckoutId) -> Result<(), Error> {
        self.tell(id, Fact::Resumed).await.map(drop)
    }

    /// Takes the mark off a checkout that is stuck because a step fails, as the provider has sent an event about it. Returns the
    /// checkout as it was.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn hear(&self, id: &CheckoutId) -> Result<Checkout, Error> {
        self.tell(id, Fact::Heard).await
    }

    /// Marks a checkout as stuck again after an operator's try, so that nothing but an operator drives it.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn leave_stuck(&self, id: &CheckoutId) -> Result<(), Error> {
        self.tell(id, Fact::LeftStuck).await.map(drop)
    }

    /// Records a fact from outside, on whatever row the checkout has by then, and returns that row.
    async fn tell(&self, id: &CheckoutId, fact: Fact) -> Result<Checkout, Error> {
        loop {
            let checkout = self.find(id).await?;
            if self.buying.record(&checkout, fact.clone()).await? != Recorded::Overtaken {
                return Ok(checkout);
            }
        }
    }

    async fn find(&self, id: &CheckoutId) -> Result<Checkout, Error> {
        let found = checkouts::get(&self.buying.main, id).await?;
        found.ok_or_else(|| Error::NoCheckout(id.to_string()))
    }

    /// Takes a step, and records the fact that it brings or keeps it in mind.
    async fn take(&self, checkout: &Checkout, step: &Step) -> Result<Taken, Error> {
        let fact = match step {
            Step::Sell => return Ok(Taken::Recorded(self.buying.sell(checkout).await?)),
            Step::Create => self.create(checkout).await?,
            Step::Find => match self.find_payment(checkout).await? {
                Some(payment) if differs(checkout, &payment) => Fact::AmountDiffers,
                Some(payment) => Fact::PaymentMade(payment.id),
                None => Fact::NoPayment,
            },
            Step::Authorise(payment) => self.authorise(checkout, payment).await?,
            Step::Look => self.look(checkout).await?,
            Step::Capture(payment) => self.capture(checkout, payment).await?,
            Step::Complete => self.captured(),
            Step::GiveBack => self.give_back(checkout).await?,
            Step::Fail => Fact::GivenBack { captured: 0 },
            Step::ReturnCredits => Fact::CreditsReturned,
            Step::Refund { number, amount } => {
                return self.refund(checkout, *number, *amount).await.map(Taken::Recorded);
            }
            Step::RepayCredits(number) => Fact::CreditsRepaid(*number),
        };
        match checkout.with(&fact, (self.now)()) {
            Some(next) => Ok(Taken::Kept(Box::new(next))),
            None => Ok(Taken::Recorded(self.buying.record(checkout, fact).await?)),
        }
    }

    async fn create(&self, checkout: &Checkout) -> Result<Fact, Error> {
        let provider = self.provider()?;
        let payer = self.payer(provider, checkout).await?;
        let order = self.order(checkout, &payer, about(provider, checkout)?);
        let mut answer = provider.create(&order).await;
        crash::here(Point::CheckoutCreated);
        if crash::again(Point::CheckoutCreated) {
            answer = provider.create(&order).await;
        }
        match answer {
            Ok(payment) if differs(checkout, &payment) => Ok(Fact::AmountDiffers),
            Ok(payment) => Ok(Fact::PaymentMade(payment.id)),
            Err(error) => self.made_before(provider, checkout, error).await,
        }
    }

    /// The fact in an error of a payment's creation: what an earlier call with other settings has made is the payment.
    async fn made_before(
        &self,
        provider: &Provider,
        checkout: &Checkout,
        error: provider::Error,
    ) -> Result<Fact, Error> {
        let (provider::Error::KeyUsed { .. }, Some(called_at)) = (&error, checkout.called_at) else {
            return self.declined_by(error);
        };
        match search(provider, checkout, called_at).await? {
            Some(payment) if differs(checkout, &payment) => Ok(Fact::AmountDiffers),
            Some(payment) => Ok(Fact::PaymentMade(payment.id)),
            None => Err(error.into()),
        }
    }

    async fn authorise(&self, checkout: &Checkout, payment: &PaymentId) -> Result<Fact, Error> {
        let provider = self.provider()?;
        // Of these the payment was told when it was made.
        let payer = Payer::default();
        let order = self.order(checkout, &payer, About::default());
        let mut answer = provider.authorise(payment, &order).await;
        crash::here(Point::CheckoutAuthorised);
        if crash::again(Point::CheckoutAuthorised) {
            answer = provider.authorise(payment, &order).await;
        }
        match answer {
            Ok(payment) => Ok(self.status(checkout, &payment)),
            // An earlier call, whose answer was lost, has authorised it.
            Err(provider::Error::Conflict { .. }) => self.look(checkout).await,
            Err(error) => self.declined_by(error),
        }
    }

    async fn look(&self, checkout: &Checkout) -> Result<Fact, Error> {
        Ok(match self.find_payment(checkout).await? {
            Some(payment) => self.status(checkout, &payment),
            None => Fact::NoPayment,
        })
    }

    async fn capture(&self, checkout: &Checkout, payment: &PaymentId) -> Result<Fact, Error> {
        let provider = self.provider()?;
        let mut answer = provider.capture(payment, &checkout.id).await;
        crash::here(Point::CheckoutCaptured);
        if crash::again(Point::CheckoutCaptured) {
            answer = provider.capture(payment, &checkout.id).await;
        }
        match answer {
            Ok(payment) if differs(checkout, &payment) => Ok(Fact::AmountDiffers),
            Ok(_) => Ok(self.captured()),
            Err(provider::Error::Conflict { state, .. }) => match state {
                provider::State::Processing => Ok(Fact::Payment(PaymentStatus::Processing)),
                provider::State::Unconfirmed => {
                    let code = provider.get(payment).await?.failure;
                    Ok(Fact::DebitFailed(code.and_then(|code| DeclineCode::parse(&code).ok())))
                }
                _ => Ok(Fact::NotCaptured),
            },
            Err(provider::Error::Declined { .. }) => Ok(Fact::NotCaptured),
            Err(error) => Err(error.into()),
        }
    }

    fn captured(&self) -> Fact {
        Fact::Captured {
            frees_seats: self.buying.terms.refund_frees_seats,
        }
    }

    /// Has the provider make the refund of a repayment, and records it.
    async fn refund(&self, checkout: &Checkout, number: usize, amount: i64) -> Result<Recorded, Error> {
        let mut made = self.refund_at_provider(checkout, number, amount).await;
        crash::here(Point::OrderRefunded);
        if crash::again(Point::OrderRefunded) {
            made = self.refund_at_provider(checkout, number, amount).await;
        }
        let made = made?.map(|made| Refund {
            id: made.id,
            checkout: checkout.id.clone(),
            amount: made.amount,
            status: made.status,
        });
        Ok(self.buying.refund_made(checkout, number, made).await?)
    }

    /// None when nothing is left to refund, as when an operator has refunded it all by hand, or the bank has taken it for the customer.
    async fn refund_at_provider(
        &self,
        checkout: &Checkout,
        number: usize,
        amount: i64,
    ) -> Result<Option<MadeRefund>, Error> {
        let provider = self.provider()?;
        let payment = checkout.payment.as_ref();
        let payment = payment.ok_or_else(|| Error::NoProgress(checkout.id.to_string()))?;
        let refund = RefundOrder {
            checkout: &checkout.id,
            number,
            amount,
        };
        let refused = match provider.refund_part(payment, &refund).await {
            Ok(made) => return Ok(Some(made)),
            Err(refused @ provider::Error::Refused { .. }) => refused,
            Err(error) => return Err(error.into()),
        };
        let now = provider.get(payment).await?;
        let lost = self.buying.lost_by_disputes(checkout).await?;
        let left = now.captured - now.refunded - lost;
        match left {
            ..=0 => Ok(None),
            left if left < amount => {
                let rest = RefundOrder { amount: left, ..refund };
                Ok(Some(provider.refund_part(payment, &rest).await?))
            }
            _ => Err(refused.into()),
        }
    }

    async fn give_back(&self, checkout: &Checkout) -> Result<Fact, Error> {
        let mut captured = self.cancel_or_refund(checkout).await;
        crash::here(Point::CheckoutGivenBack);
        if crash::again(Point::CheckoutGivenBack) {
            captured = self.cancel_or_refund(checkout).await;
        }
        match captured {
            Err(Error::Provider(provider::Error::Conflict {
                state: provider::State::Processing,
                ..
            })) => Ok(Fact::Payment(PaymentStatus::Processing)),
            captured => Ok(Fact::GivenBack { captured: captured? }),
        }
    }

    /// Cancels or refunds the whole payment; returns the amount that had been captured.
    async fn cancel_or_refund(&self, checkout: &Checkout) -> Result<i64, Error> {
        let Some(payment) = self.find_payment(checkout).await? else {
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

    /// The payment that was made for this checkout, whichever answer was lost. A payment id that the row has and the provider
    /// does not know is an error: it may belong to another account.
    async fn find_payment(&self, checkout: &Checkout) -> Result<Option<Payment>, Error> {
        let Some(called_at) = checkout.called_at else {
            return Ok(None);
        };
        let provider = self.provider()?;
        if let Some(payment) = &checkout.payment {
            return Ok(Some(provider.get(payment).await?));
        }
        if !checkout.key_lives((self.now)()) {
            return search(provider, checkout, called_at).await;
        }
        // The idempotency key makes it the same payment; and no late call makes another after it.
        let payer = self.payer(provider, checkout).await?;
        let made = match about(provider, checkout) {
            Ok(about) => provider.create(&self.order(checkout, &payer, about)).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(payment) => Ok(Some(payment)),
            Err(provider::Error::Declined { .. }) => Ok(None),
            // An earlier call may have made it all the same.
            Err(provider::Error::Refused { .. } | provider::Error::KeyUsed { .. }) => {
                search(provider, checkout, called_at).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The payer, as far as the provider is told of them, as they are now. As what the payment is [`about`], it may differ between
    /// two calls.
    async fn payer(&self, provider: &Provider, checkout: &Checkout) -> Result<Payer, Error> {
        let Some(user) = store::get::<User>(&self.buying.main, &checkout.user).await? else {
            return Ok(Payer::default());
        };
        Ok(Payer {
            customer: user.customer,
            receipt: user.email.filter(|_| provider.receipts),
        })
    }

    /// The order of a checkout's payment, the same at each call of an attempt, as the idempotency key demands.
    fn order<'a>(&self, checkout: &'a Checkout, payer: &'a Payer, about: About<'a>) -> Order<'a> {
        let age = checkout.called_at.map(|called_at| (self.now)() - called_at);
        Order {
            checkout: &checkout.id,
            user: &checkout.user,
            amount: checkout.due(),
            currency: checkout.currency(),
            method: checkout.method.as_ref().map_or("", PaymentMethod::as_str),
            attempt: checkout.attempt,
            customer: payer.customer.as_ref(),
            receipt: payer.receipt.as_ref(),
            about,
            age: age.unwrap_or_default().try_into().unwrap_or_default(),
        }
    }

    fn provider(&self) -> Result<&Provider, Error> {
        self.provider.as_ref().ok_or(Error::NoProvider)
    }

    /// The fact in a payment as the provider shows it.
    fn status(&self, checkout: &Checkout, payment: &Payment) -> Fact {
        if differs(checkout, payment) {
            return Fact::AmountDiffers;
        }
        match (payment.state, &payment.failure) {
            (provider::State::Unconfirmed, Some(code)) => declined(code),
            (provider::State::Unconfirmed, None) => Fact::Payment(PaymentStatus::Unconfirmed),
            (provider::State::Canceled, _) => Fact::Payment(PaymentStatus::Canceled),
            (provider::State::ActionRequired, _) => Fact::Payment(PaymentStatus::ActionRequired),
            (provider::State::Processing, _) => Fact::Payment(PaymentStatus::Processing),
            (provider::State::Authorized, _) => Fact::Payment(PaymentStatus::Authorised),
            (provider::State::Captured, _) => Fact::Payment(PaymentStatus::Captured),
        }
    }

    /// The fact in an error of the provider before any money was authorised. Only an answer about this payment ends it: whatever
    /// else is wrong, such as a refused key, is waited out.
    fn declined_by(&self, error: provider::Error) -> Result<Fact, Error> {
        match error {
            provider::Error::Declined { reason } => Ok(declined(&reason)),
            error => Err(error.into()),
        }
    }
}

/// The provider's limits, as reasons for which no checkout is opened.
fn charges(due: Price) -> Result<(), UserRefusalReason> {
    limits::charges(due).map_err(refusal)
}

/// The provider's limits, as reasons for which no order is returned.
///
/// # Errors
/// The reason why the provider never refunds the amount.
pub fn refunds(amount: Price) -> Result<(), UserRefusalReason> {
    limits::refunds(amount).map_err(refusal)
}

fn refusal(why: Uncharged) -> UserRefusalReason {
    match why {
        Uncharged::BelowMinimum(_) => UserRefusalReason::BelowMinimum,
        Uncharged::NotSupported => UserRefusalReason::AmountNotSupported,
    }
}

fn declined(code: &str) -> Fact {
    Fact::Declined {
        for_good: code.starts_with("amount_"),
        code: DeclineCode::parse(code).ok(),
    }
}

/// Searches the provider's payments for the one of this checkout.
async fn search(provider: &Provider, checkout: &Checkout, called_at: OffsetDateTime) -> Result<Option<Payment>, Error> {
    // The provider's clock may differ from ours.
    let since = called_at - time::Duration::hours(1);
    Ok(provider.find(&checkout.id, since).await?)
}

/// True if the provider asked for, authorised or captured another amount than is due, or in another currency; the log says which.
fn differs(checkout: &Checkout, payment: &Payment) -> bool {
    let so_far = match payment.state {
        provider::State::Authorized | provider::State::Captured => payment.authorised,
        _ => payment.amount,
    };
    let (due, currency) = (checkout.due(), checkout.currency());
    let differs = payment.currency != currency || payment.amount != due || so_far != due;
    if differs {
        tracing::error!(
            checkout = %checkout.id, payment = %payment.id, state = ?payment.state, due, currency = currency.code(),
            asked = payment.amount, authorised = payment.authorised, captured = payment.captured,
            currency_there = payment.currency.code(),
            "the amount at the payment provider is not what was asked for: an operator has to look"
        );
    }
    differs
}

/// What a checkout's payment is about. It may differ between two calls, when the settings of a show have changed: then the payment
/// that was made is found by search.
fn about<'a>(provider: &'a Provider, checkout: &'a Checkout) -> Result<About<'a>, provider::Error> {
    let tickets = checkout.lines.iter().map(|line| (&line.show, line.price.amount()));
    provider.about(&tickets.collect::<Vec<_>>(), checkout.due())
}

/// The name of a step in traces.
fn name(step: &Step) -> &'static str {
    match step {
        Step::Create => "create",
        Step::Find => "find",
        Step::Authorise(_) => "authorise",
        Step::Look => "look",
        Step::Sell => "sell",
        Step::Capture(_) => "capture",
        Step::Complete => "complete",
        Step::GiveBack => "give back",
        Step::Fail => "fail",
        Step::ReturnCredits => "return credits",
        Step::Refund { .. } => "refund",
        Step::RepayCredits(_) => "repay credits",
    }
}

/// The crash point after a step.
fn point(step: &Step) -> Option<Point> {
    match step {
        Step::Sell => Some(Point::CheckoutSold),
        Step::Capture(_) | Step::Complete => Some(Point::CheckoutCompleted),
        Step::GiveBack | Step::Fail => Some(Point::CheckoutFailed),
        Step::Refund { .. } | Step::RepayCredits(_) => Some(Point::OrderRepaid),
        _ => None,
    }
}
