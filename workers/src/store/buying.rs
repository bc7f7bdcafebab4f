//! Checkouts in the database. Each step changes checkout, seats, user and ledger in one transaction, or nothing; a step that
//! another caller has taken meanwhile writes nothing. The caller of a step reads the checkout anew afterwards.
//!
//! The steps are not SERIALIZABLE: each locks what it decides on, the checkout first, or writes it against its version.
//! SERIALIZABLE would see conflicts between checkouts whose rows lie side by side in an index, and make most of them begin
//! anew when many buy at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_schemas::{
    CheckoutFailure, CheckoutId, Credits, DisputeId, DisputeStatus, Event, EventId, HoldId, List, OutcomeData, Price,
    Source, TicketId, UserEvent, UserId, UserOutcome, UserRefusalReason, events, hold_id, outcomes,
};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::commit::{self, Answer, Command, Current, Stored, Unit, Work};
use super::credits::{Changed, Loyalty};
use super::ledger::{self, Kind};
use super::mechanisms::interactive::{self, Attempts, Transaction};
use super::mechanisms::two_phase::{Fate, TransactionId};
use super::{Error, checkouts, mails, on_session, purchases, tickets, together};
use crate::domain::checkout::{self, Checkout, Failure, SaleTerms, State, Wish};
use crate::domain::ticket::Input;
use crate::domain::{Ticket, User, ticket, user};
use crate::metrics::Metrics;

/// Attempts of a transaction while others change the same rows, before its caller gets an error and retries.
const ATTEMPTS: Attempts = Attempts(30);

/// The databases and settings of checkouts.
#[derive(Clone)]
pub struct Buying {
    pub main: PgPool,
    /// Absent: credits are refused.
    pub loyalty: Option<Loyalty>,
    pub terms: SaleTerms,
    /// True if there is a mail server, so that customers get mails.
    pub mails: bool,
    /// Retention of idempotency records.
    pub retention: Duration,
    pub metrics: Arc<Metrics>,
    /// Draws an id that nobody has drawn before.
    pub new_id: fn() -> Uuid,
}

/// The checkout that a piece of a user's work is about, if it is about one.
pub fn concerned(work: &Work<User>) -> Option<&CheckoutId> {
    let (Work::Event(event) | Work::Request(event)) = work else {
        return None;
    };
    match &event.data {
        UserEvent::CheckoutRequested(events::CheckoutRequested { checkout, .. })
        | UserEvent::PaymentAuthorized(events::PaymentAuthorized { checkout, .. })
        | UserEvent::PaymentCaptured(events::PaymentCaptured { checkout, .. })
        | UserEvent::PaymentFailed(events::PaymentFailed { checkout, .. })
        | UserEvent::PaymentRefunded(events::PaymentRefunded { checkout, .. })
        | UserEvent::PaymentDisputed(events::PaymentDisputed { checkout, .. }) => Some(checkout),
        _ => None,
    }
}

/// True for work that opens a checkout.
pub fn opens(work: &Work<User>) -> bool {
    let (Work::Event(event) | Work::Request(event)) = work else {
        return false;
    };
    matches!(event.data, UserEvent::CheckoutRequested(_))
}

impl Buying {
    /// True if the user would have more tickets of a show than one user may, with this one in the cart too. A hint: the sale
    /// counts exactly.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn would_exceed(&self, user: &UserId, ticket: &TicketId, cart: &[TicketId]) -> Result<bool, Error> {
        let Some(limit) = self.terms.show_limit else {
            return Ok(false);
        };
        on_session(&self.main, Error::Read, async |main| {
            exceeds(main, user, ticket, cart, limit).await
        })
        .await
    }

    /// True while a checkout buys the ticket of this hold. A hint, as the checkout may end at any time.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn is_under_way(&self, hold: HoldId) -> Result<bool, Error> {
        on_session(&self.main, Error::Read, async |main| {
            checkouts::under_way(main, &[hold]).await
        })
        .await
    }

    /// Commits one event that is about a checkout. `cart`: the tickets in the user's cart.
    ///
    /// # Errors
    /// The database does not answer, or others change the same rows all the time.
    pub async fn commit(&self, user: &UserId, work: &Work<User>, cart: &[TicketId]) -> Result<Answer, Error> {
        let (Work::Event(event) | Work::Request(event)) = work else {
            return Ok(Answer::Nothing);
        };
        let unit = Unit {
            key: user.clone(),
            work: vec![work.clone()],
        };
        let answer = transaction(&self.main, async |main: &mut PgConnection| match &event.data {
            UserEvent::CheckoutRequested(_) => Ok((self.open(main, event, &unit, cart).await?, vec![])),
            _ => self.hear(main, event, &unit).await,
        })
        .await?;
        let (answer, tickets) = answer;
        self.count(std::slice::from_ref(&answer));
        self.count(&tickets);
        Ok(answer)
    }

    async fn open(
        &self,
        main: &mut PgConnection,
        event: &Event<UserEvent>,
        unit: &Unit<User>,
        cart: &[TicketId],
    ) -> Result<Answer, Error> {
        let UserEvent::CheckoutRequested(events::CheckoutRequested {
            checkout: id,
            payment_method,
            credits,
            tickets,
        }) = &event.data
        else {
            return Ok(Answer::Nothing);
        };
        let wish = Wish {
            id,
            user: &unit.key,
            tickets: tickets.as_deref().unwrap_or(cart),
            credits: *credits,
            method: payment_method.as_ref(),
        };
        let opened = match checkouts::lock(main, id).await? {
            // Another event with the same request has opened it already.
            Some(found) if found.hash == event.hash().as_bytes() && fits_cart(&found.checkout, tickets, cart) => {
                Ok(None)
            }
            Some(_) => Err(UserRefusalReason::CheckoutIdUsed),
            None => self.decide(main, &wish).await?.map(Some),
        };
        let told = match &opened {
            Ok(None) => vec![],
            Ok(Some(checkout)) => vec![UserOutcome::CheckoutOpened(outcomes::CheckoutOpened {
                checkout: checkout.id.clone(),
                tickets: checkout.lines.iter().map(|line| line.ticket.clone()).collect(),
                total: checkout.total,
                credits: checkout.credits,
            })],
            Err(reason) => vec![outcomes::PaymentRefused { reason: *reason }.into()],
        };
        let answer = tell(main, unit, told, self.retention).await?;
        let is_new = matches!(&answer, Answer::Fresh(reply) if reply.refusal().is_none());
        if let (true, Ok(Some(checkout))) = (is_new, &opened)
            && !checkouts::insert(main, checkout, event.hash()).await?
        {
            return Err(Error::Moved);
        }
        Ok(answer)
    }

    async fn decide(
        &self,
        main: &mut PgConnection,
        wish: &Wish<'_>,
    ) -> Result<Result<Checkout, UserRefusalReason>, Error> {
        let current = read(main, wish.tickets.iter()).await?;
        let shows: Vec<_> = current.rows.values().map(|ticket| ticket.show.as_str()).collect();
        let bought: HashMap<_, _> = purchases::of(main, wish.user, &shows).await?.into_iter().collect();
        let opened = checkout::open(
            wish,
            self.terms,
            |ticket| current.rows.get(ticket.as_str()),
            |show| bought.get(show.as_str()).copied().unwrap_or(0),
            current.now,
        );
        let opened = match opened {
            Ok(opened) => opened,
            Err(reason) => return Ok(Err(reason)),
        };
        let holds: Vec<HoldId> = opened.lines.iter().map(|line| line.hold).collect();
        match checkouts::under_way(main, &holds).await? {
            true => Ok(Err(UserRefusalReason::CheckoutUnderWay)),
            false => Ok(Ok(opened)),
        }
    }

    /// Handles an event of the provider. About a payment under way it writes nothing: the driver asks the provider, whatever
    /// arrives here and in whatever order. Refunds, and disputes about a completed checkout, are written here. Returns the answer
    /// to the event, then those of the tickets.
    async fn hear(
        &self,
        main: &mut PgConnection,
        event: &Event<UserEvent>,
        unit: &Unit<User>,
    ) -> Result<(Answer, Vec<Answer>), Error> {
        let checkout = match concerned(&unit.work[0]) {
            Some(id) => checkouts::lock(main, id).await?.map(|found| found.checkout),
            None => None,
        };
        let checkout = checkout.filter(|checkout| checkout.user == unit.key);
        let known = match &event.data {
            UserEvent::PaymentDisputed(events::PaymentDisputed { dispute, .. }) => {
                checkouts::dispute(main, dispute).await?
            }
            _ => None,
        };
        let checkout = checkout.ok_or(UserRefusalReason::UnknownCheckout);
        let checkout = checkout.and_then(|checkout| fits(&checkout, known.as_ref(), &event.data).map(|()| checkout));
        let checkout = match checkout {
            Ok(checkout) => checkout,
            Err(reason) => {
                let told = vec![outcomes::PaymentRefused { reason }.into()];
                return Ok((tell(main, unit, told, self.retention).await?, vec![]));
            }
        };
        let heard = match &event.data {
            UserEvent::PaymentRefunded(events::PaymentRefunded { refunded, .. }) => {
                refund(&checkout, refunded.amount())
            }
            UserEvent::PaymentDisputed(events::PaymentDisputed {
                dispute,
                amount,
                status,
                ..
            }) => {
                // The amount that was booked when the dispute was opened stands.
                let booked = known.as_ref().map(|noted| price(&checkout, noted.amount)).transpose()?;
                let before = known.map(|noted| noted.status);
                disputed(&checkout, dispute, booked.unwrap_or(*amount), *status, before)
            }
            _ => Heard::default(),
        };
        let answer = tell(main, unit, heard.told.clone(), self.retention).await?;
        let tickets = match answer {
            Answer::Fresh(_) => self.note(main, &checkout, heard).await?,
            _ => vec![],
        };
        Ok((answer, tickets))
    }

    /// Writes a refund or dispute of a checkout; returns the answers of the tickets.
    async fn note(&self, main: &mut PgConnection, checkout: &Checkout, heard: Heard) -> Result<Vec<Answer>, Error> {
        if let Some(Dispute { id, amount, status }) = &heard.dispute {
            checkouts::note_dispute(main, &checkout.id, id, *amount, *status).await?;
        }
        for (kind, amount) in heard.movements {
            self.post(main, checkout, kind, amount.amount()).await?;
        }
        if let Some(Refund { kind, amount, so_far }) = heard.refund {
            mails::refunded(main, checkout, kind, amount, so_far, self.mails).await?;
        }
        let Some(next) = heard.next else { return Ok(vec![]) };
        if !checkouts::update(main, checkout, &next).await? {
            return Err(Error::Moved);
        }
        match next.state {
            State::Refunded => free(main, checkout, self.retention).await,
            _ => Ok(vec![]),
        }
    }

    /// Posts a movement of the checkout's money or credits to the ledger, in minor units of its currency.
    async fn post(&self, main: &mut PgConnection, checkout: &Checkout, kind: Kind, amount: i64) -> Result<(), Error> {
        ledger::write(main, (self.new_id)(), &checkout.id, kind, price(checkout, amount)?).await
    }

    fn count(&self, answers: &[Answer]) {
        commit::count(answers, &self.metrics);
        let outcomes = answers.iter().filter_map(|answer| match answer {
            Answer::Fresh(reply) => Some(&reply.outcomes),
            _ => None,
        });
        for outcome in outcomes.flatten() {
            match UserOutcome::read(&outcome.outcome_type, &outcome.data.to_string()) {
                Ok(UserOutcome::CheckoutCompleted(_)) => self.ended("completed"),
                Ok(UserOutcome::CheckoutFailed(outcomes::CheckoutFailed { reason, .. })) => self.ended(reason.as_str()),
                Ok(UserOutcome::PaymentRefunded(outcomes::PaymentRefunded { full, .. })) => {
                    let kind = if full { "full" } else { "partial" };
                    self.metrics.refunds.with_label_values(&[kind]).inc();
                }
                Ok(UserOutcome::PaymentDisputed(outcomes::PaymentDisputed { status, .. })) => {
                    self.metrics
                        .disputes
                        .with_label_values(&[checkouts::dispute_name(status)])
                        .inc();
                }
                _ => {}
            }
        }
    }

    fn ended(&self, how: &str) {
        self.metrics.checkouts_ended.with_label_values(&[how]).inc();
    }

    /// Writes a step without an outcome. False when another caller took a step first.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn advance(&self, from: &Checkout, to: &Checkout) -> Result<bool, Error> {
        on_session(&self.main, Error::Write, async |main| {
            checkouts::update(main, from, to).await
        })
        .await
    }

    /// Sells the seats and spends the credits, all or nothing; if that cannot be done any more, sets the checkout to be undone.
    ///
    /// # Errors
    /// One of the databases does not answer, or others change the same rows all the time.
    pub async fn sell(&self, checkout: &Checkout, attempt: Uuid) -> Result<(), Error> {
        let here = async |main: &mut PgConnection| self.sell_within(main, checkout).await;
        let Some(credits) = checkout.credits else {
            let (_, answers) = transaction(&self.main, here).await?;
            self.count(&answers);
            return Ok(());
        };
        let loyalty = self.loyalty.as_ref().ok_or(Error::NoLoyalty)?;
        let mut answers = vec![];
        let here = async |main: &mut PgConnection| {
            let (fate, sold) = here(main).await?;
            answers = sold;
            Ok(fate)
        };
        let spend = transaction_id(checkout, "spend");
        let changed = loyalty
            .change(&spend, attempt, &checkout.user, -credits.amount(), here)
            .await?;
        if changed == Changed::Missing {
            self.advance(checkout, &undoing(checkout, CheckoutFailure::CreditsMissing.into()))
                .await?;
        }
        self.count(&answers);
        Ok(())
    }

    /// Settles credits of a try that died after it had prepared them: until then they lock the user's account.
    ///
    /// # Errors
    /// One of the databases does not answer.
    pub async fn settle_credits(&self, checkout: &Checkout) -> Result<(), Error> {
        if let (Some(_), Some(loyalty)) = (checkout.credits, &self.loyalty) {
            for step in ["spend", "return"] {
                loyalty.end_leftovers(&transaction_id(checkout, step)).await?;
            }
        }
        Ok(())
    }

    /// Sells the seats within the transaction; returns its fate and the answers of the tickets.
    async fn sell_within(&self, main: &mut PgConnection, checkout: &Checkout) -> Result<(Fate, Vec<Answer>), Error> {
        if !checkouts::lock_version(main, checkout).await? {
            // Another caller took a step.
            return Ok((Fate::Aborted, vec![]));
        }
        // The lock keeps them unchanged between this read and the write: the committer passes over locked rows.
        tickets::lock(main, &checkout.lines).await?;
        let current = read(main, checkout.lines.iter().map(|line| &line.ticket)).await?;
        let sales = checkout.lines.iter().map(|line| {
            let row = current.rows.get(line.ticket.as_str());
            let anew = hold_id(SOURCE, checkout.id.as_str(), line.ticket.as_str());
            Some((&line.ticket, checkout::sale(checkout, line, row, anew, current.now)?))
        });
        let Some(sales) = sales.collect::<Option<Vec<_>>>() else {
            return self.give_up(main, checkout, CheckoutFailure::SeatsGone).await;
        };
        let shows = checkout::shows(&checkout.lines);
        if !purchases::add(main, &checkout.user, &shows, self.terms.show_limit).await? {
            return self.give_up(main, checkout, CheckoutFailure::ShowLimitReached).await;
        }
        let units: Vec<_> = sales
            .into_iter()
            .map(|(ticket, inputs)| unit(checkout, ticket.clone(), inputs))
            .collect();
        let answers = commit::within(main, &ticket::decide, self.retention, &units).await?;
        if answers.iter().any(|answer| !took_effect(answer)) {
            return Err(Error::Moved);
        }
        if let Some(credits) = checkout.credits {
            self.post(main, checkout, Kind::Credit, credits.amount()).await?;
        }
        let next = Checkout {
            state: State::Sold,
            sold: true,
            unknown_since: None,
            ..checkout.clone()
        };
        match checkouts::update(main, checkout, &next).await? {
            true => Ok((Fate::Committed, answers)),
            false => Err(Error::Moved),
        }
    }

    async fn give_up(
        &self,
        main: &mut PgConnection,
        checkout: &Checkout,
        reason: CheckoutFailure,
    ) -> Result<(Fate, Vec<Answer>), Error> {
        match checkouts::update(main, checkout, &undoing(checkout, reason.into())).await? {
            true => Ok((Fate::Aborted, vec![])),
            false => Err(Error::Moved),
        }
    }

    /// Ends a checkout whose seats are sold and whose money was captured.
    ///
    /// # Errors
    /// The database does not answer, or others change the same rows all the time.
    pub async fn complete(&self, checkout: &Checkout) -> Result<(), Error> {
        let next = Checkout {
            state: State::Completed,
            unknown_since: None,
            stuck: false,
            ..checkout.clone()
        };
        let told = UserOutcome::CheckoutCompleted(outcomes::CheckoutCompleted {
            checkout: checkout.id.clone(),
            total: checkout.total,
            credits: checkout.credits,
            payment: checkout.payment.clone(),
        });
        // A refund that came before the capture was known is written now.
        let completed = Checkout {
            version: checkout.version + 1,
            refunded: 0,
            ..next.clone()
        };
        let heard = refund(&completed, checkout.refunded);
        let answers = transaction(&self.main, async |main: &mut PgConnection| {
            let done = Checkout { refunded: 0, ..next };
            if !checkouts::update(main, checkout, &done).await? {
                return Ok(vec![]);
            }
            self.post(main, checkout, Kind::Capture, checkout.due()).await?;
            let told = std::iter::once(told).chain(heard.told.clone()).collect();
            let answer = self.progress(main, checkout, "completed", told).await?;
            mails::ended(main, checkout, mails::Kind::Completed, self.mails).await?;
            let tickets = self.note(main, &completed, heard).await?;
            Ok(std::iter::once(answer).chain(tickets).collect())
        })
        .await?;
        self.count(&answers);
        Ok(())
    }

    /// Ends a checkout that failed, after the provider has cancelled or refunded the payment. `captured`: the amount that was
    /// captured and refunded, in minor units.
    ///
    /// # Errors
    /// One of the databases does not answer, or others change the same rows all the time.
    pub async fn fail(&self, checkout: &Checkout, captured: i64, attempt: Uuid) -> Result<(), Error> {
        let State::Undoing(failure) = &checkout.state else {
            return Ok(());
        };
        let here = async |main: &mut PgConnection| self.fail_within(main, checkout, failure, captured).await;
        let answers = match checkout.credits.filter(|_| checkout.sold) {
            None => transaction(&self.main, here).await?,
            Some(credits) => self.give_credits_back(checkout, credits, attempt, here).await?,
        };
        self.count(&answers.unwrap_or_default());
        Ok(())
    }

    /// Returns spent credits together with the writes of `here`. Neither takes effect when `here` writes nothing, because another
    /// caller took a step.
    async fn give_credits_back(
        &self,
        checkout: &Checkout,
        credits: Credits,
        attempt: Uuid,
        here: impl AsyncFnOnce(&mut PgConnection) -> Result<Option<Vec<Answer>>, Error>,
    ) -> Result<Option<Vec<Answer>>, Error> {
        let loyalty = self.loyalty.as_ref().ok_or(Error::NoLoyalty)?;
        let back = transaction_id(checkout, "return");
        let mut answers = None;
        let decide = async |main: &mut PgConnection| {
            answers = here(main).await?;
            Ok(if answers.is_some() {
                Fate::Committed
            } else {
                Fate::Aborted
            })
        };
        loyalty
            .change(&back, attempt, &checkout.user, credits.amount(), decide)
            .await?;
        Ok(answers)
    }

    async fn fail_within(
        &self,
        main: &mut PgConnection,
        checkout: &Checkout,
        failure: &Failure,
        captured: i64,
    ) -> Result<Option<Vec<Answer>>, Error> {
        let next = Checkout {
            state: State::Failed(failure.clone()),
            sold: false,
            unknown_since: None,
            stuck: false,
            refunded: captured,
            ..checkout.clone()
        };
        if !checkouts::update(main, checkout, &next).await? {
            return Ok(None);
        }
        let mut answers = free(main, checkout, self.retention).await?;
        if checkout.sold
            && let Some(credits) = checkout.credits
        {
            self.post(main, checkout, Kind::CreditBack, credits.amount()).await?;
        }
        self.post(main, checkout, Kind::Capture, captured).await?;
        self.post(main, checkout, Kind::Refund, captured).await?;
        let told = UserOutcome::CheckoutFailed(outcomes::CheckoutFailed {
            checkout: checkout.id.clone(),
            reason: failure.reason,
            code: failure.code.clone(),
        });
        answers.push(self.progress(main, checkout, "failed", vec![told]).await?);
        mails::ended(main, checkout, mails::Kind::Failed, self.mails).await?;
        Ok(Some(answers))
    }

    /// Returns the credits of a checkout that was refunded in full.
    ///
    /// # Errors
    /// One of the databases does not answer, or another try was quicker.
    pub async fn return_credits(&self, checkout: &Checkout, attempt: Uuid) -> Result<(), Error> {
        let Some(credits) = checkout.credits else {
            return Ok(());
        };
        let next = Checkout {
            sold: false,
            ..checkout.clone()
        };
        let here = async |main: &mut PgConnection| {
            if !checkouts::update(main, checkout, &next).await? {
                return Ok(None);
            }
            self.post(main, checkout, Kind::CreditBack, credits.amount()).await?;
            Ok(Some(vec![]))
        };
        self.give_credits_back(checkout, credits, attempt, here).await.map(drop)
    }

    /// Marks a checkout as stuck, for an operator.
    ///
    /// # Errors
    /// The database does not answer, or others change the same rows all the time.
    pub async fn stick(&self, checkout: &Checkout) -> Result<(), Error> {
        let next = Checkout {
            stuck: true,
            ..checkout.clone()
        };
        let told = UserOutcome::CheckoutStuck(outcomes::CheckoutStuck {
            checkout: checkout.id.clone(),
        });
        // It may get stuck again after an operator has resumed it.
        let place = format!("stuck/{}", checkout.version);
        let answer = transaction(&self.main, async |main: &mut PgConnection| {
            match checkouts::update(main, checkout, &next).await? {
                true => self.progress(main, checkout, &place, vec![told]).await.map(Some),
                false => Ok(None),
            }
        })
        .await?;
        self.count(answer.as_slice());
        Ok(())
    }

    /// Writes an outcome of the user about a checkout.
    async fn progress(
        &self,
        main: &mut PgConnection,
        checkout: &Checkout,
        place: &str,
        told: Vec<UserOutcome>,
    ) -> Result<Answer, Error> {
        let unit = Unit {
            key: checkout.user.clone(),
            work: vec![Work::Command(Command {
                source: source(),
                id: id(checkout, place),
                input: user::Input::Progress,
            })],
        };
        let answer = tell(main, &unit, told, self.retention).await?;
        match took_effect(&answer) {
            true => Ok(answer),
            false => Err(Error::Moved),
        }
    }
}

/// True if an open checkout can come from this cart, where the request names no tickets: its tickets have left the cart.
fn fits_cart(checkout: &Checkout, asked: &Option<List<TicketId>>, cart: &[TicketId]) -> bool {
    let is_bought = |ticket: &TicketId| checkout.lines.iter().any(|line| line.ticket == *ticket);
    asked.is_some() || cart.iter().all(is_bought)
}

/// Checks that an event is about this checkout's payment, in its currency, and about its dispute. The payment is unknown
/// while the provider's answer is on its way. `known`: the dispute, if it has a row.
fn fits(
    checkout: &Checkout,
    known: Option<&checkouts::StoredDispute>,
    said: &UserEvent,
) -> Result<(), UserRefusalReason> {
    let (payment, amount) = match said {
        UserEvent::PaymentAuthorized(events::PaymentAuthorized { payment, amount, .. })
        | UserEvent::PaymentCaptured(events::PaymentCaptured { payment, amount, .. })
        | UserEvent::PaymentDisputed(events::PaymentDisputed { payment, amount, .. }) => (payment, Some(amount)),
        UserEvent::PaymentRefunded(events::PaymentRefunded { payment, refunded, .. }) => (payment, Some(refunded)),
        UserEvent::PaymentFailed(events::PaymentFailed { payment, .. }) => (payment, None),
        _ => return Ok(()),
    };
    let is_another = known.is_some_and(|noted| noted.checkout != checkout.id.as_str());
    if is_another || checkout.payment.as_ref().is_some_and(|ours| ours != payment) {
        return Err(UserRefusalReason::PaymentDiffers);
    }
    match amount {
        Some(amount) if amount.currency() != checkout.currency() => Err(UserRefusalReason::WrongCurrency),
        _ => Ok(()),
    }
}

/// The changes that an event of the provider makes.
#[derive(Clone, Default)]
struct Heard {
    told: Vec<UserOutcome>,
    movements: Vec<(Kind, Price)>,
    next: Option<Checkout>,
    refund: Option<Refund>,
    dispute: Option<Dispute>,
}

/// The new state of a dispute.
#[derive(Clone)]
struct Dispute {
    id: DisputeId,
    amount: Price,
    status: DisputeStatus,
}

/// A refund that the customer gets a mail about.
#[derive(Clone)]
struct Refund {
    kind: mails::Kind,
    amount: Price,
    /// This one included, in minor units.
    so_far: i64,
}

/// The provider reports the total of refunds, so that a stale event changes nothing. A refund before the checkout is completed is
/// kept in the row until then; that of a failed checkout was written when it failed.
fn refund(checkout: &Checkout, refunded: i64) -> Heard {
    let more = refunded.min(checkout.due()) - checkout.refunded;
    let Some(amount) = price(checkout, more).ok().filter(|_| more > 0) else {
        return Heard::default();
    };
    match checkout.state {
        State::Completed => {}
        State::Refunded | State::Failed(_) => return Heard::default(),
        _ => {
            let next = Checkout {
                refunded: checkout.refunded + more,
                ..checkout.clone()
            };
            return Heard {
                next: Some(next),
                ..Heard::default()
            };
        }
    }
    let so_far = checkout.refunded + more;
    let full = so_far == checkout.due();
    let next = Checkout {
        refunded: so_far,
        state: if full { State::Refunded } else { State::Completed },
        ..checkout.clone()
    };
    Heard {
        told: vec![UserOutcome::PaymentRefunded(outcomes::PaymentRefunded {
            checkout: checkout.id.clone(),
            amount,
            full,
        })],
        movements: vec![(if full { Kind::Refund } else { Kind::PartialRefund }, amount)],
        next: Some(next),
        refund: Some(Refund {
            kind: if full {
                mails::Kind::Refunded
            } else {
                mails::Kind::RefundedInPart
            },
            amount,
            so_far,
        }),
        dispute: None,
    }
}

/// A dispute is opened, then won or lost; a stale event changes nothing. `before`: its state so far.
fn disputed(
    checkout: &Checkout,
    dispute: &DisputeId,
    amount: Price,
    status: DisputeStatus,
    before: Option<DisputeStatus>,
) -> Heard {
    let is_news = match before {
        None => true,
        Some(DisputeStatus::Opened) => status != DisputeStatus::Opened,
        Some(DisputeStatus::Won | DisputeStatus::Lost) => false,
    };
    if !is_news {
        return Heard::default();
    }
    let opened = before.is_none().then_some((Kind::Dispute, amount));
    let decided = match status {
        DisputeStatus::Opened => None,
        DisputeStatus::Won => Some((Kind::DisputeWon, amount)),
        DisputeStatus::Lost => Some((Kind::DisputeLost, amount)),
    };
    Heard {
        told: vec![UserOutcome::PaymentDisputed(outcomes::PaymentDisputed {
            checkout: checkout.id.clone(),
            dispute: dispute.clone(),
            amount,
            status,
        })],
        movements: opened.into_iter().chain(decided).collect(),
        dispute: Some(Dispute {
            id: dispute.clone(),
            amount,
            status,
        }),
        ..Heard::default()
    }
}

/// The checkout, set to be undone.
pub fn undoing(checkout: &Checkout, failure: Failure) -> Checkout {
    Checkout {
        state: State::Undoing(failure),
        unknown_since: None,
        ..checkout.clone()
    }
}

/// Frees the tickets that the checkout holds or has bought.
async fn free(main: &mut PgConnection, checkout: &Checkout, retention: Duration) -> Result<Vec<Answer>, Error> {
    tickets::lock(main, &checkout.lines).await?;
    let current = read(main, checkout.lines.iter().map(|line| &line.ticket)).await?;
    let freed = checkout.lines.iter().filter_map(|line| {
        let row = current.rows.get(line.ticket.as_str());
        let input = checkout::freeing(checkout, line, row, current.now)?;
        Some(unit(checkout, line.ticket.clone(), vec![input]))
    });
    let units: Vec<_> = freed.collect();
    let answers = commit::within(main, &ticket::decide, retention, &units).await?;
    if checkout.sold {
        purchases::take_off(main, &checkout.user, &checkout::shows(&checkout.lines)).await?;
    }
    Ok(answers)
}

async fn read(main: &mut PgConnection, tickets: impl Iterator<Item = &TicketId>) -> Result<Current<Ticket>, Error> {
    let keys: Vec<&str> = tickets.map(TicketId::as_str).collect();
    Ticket::read(main, &keys).await
}

async fn tell(
    main: &mut PgConnection,
    unit: &Unit<User>,
    told: Vec<UserOutcome>,
    retention: Duration,
) -> Result<Answer, Error> {
    let rules = user::telling(told);
    let answers = commit::within(main, &rules, retention, std::slice::from_ref(unit)).await?;
    Ok(answers.into_iter().next().expect("every piece of work is answered"))
}

/// Requests from a checkout to one of its tickets, each with an id of its own.
fn unit(checkout: &Checkout, ticket: TicketId, inputs: Vec<Input>) -> Unit<Ticket> {
    let work = inputs.into_iter().map(|input| {
        let what = match &input {
            Input::Sell { .. } => "sell",
            Input::Return { .. } => "return",
            Input::Release { .. } => "release",
            _ => "hold",
        };
        let of = Uuid::new_v5(&Uuid::NAMESPACE_OID, ticket.as_str().as_bytes());
        Work::Command(Command {
            source: source(),
            id: id(checkout, &format!("{what}/{of}/{}", checkout.version)),
            input,
        })
    });
    Unit {
        work: work.collect(),
        key: ticket,
    }
}

fn took_effect(answer: &Answer) -> bool {
    match answer {
        Answer::Fresh(reply) | Answer::Repeat(reply) => reply.refusal().is_none(),
        Answer::AlreadyDone => true,
        Answer::Nothing | Answer::DeadLettered(_) => false,
    }
}

/// The `source` of these requests.
const SOURCE: &str = "holdfast/Checkout";

fn source() -> Source {
    Source::parse(SOURCE).expect("a short name")
}

/// The id of a request of a checkout. A checkout's id may be as long as an event's: a UUID derived from it leaves room for more.
fn id(checkout: &Checkout, place: &str) -> EventId {
    EventId::parse(&format!("{}/{place}", uuid(&checkout.id))).expect("UUIDs and a few words are short")
}

fn uuid(checkout: &CheckoutId) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, checkout.as_str().as_bytes())
}

fn transaction_id(checkout: &Checkout, what: &str) -> TransactionId {
    TransactionId::parse(&format!("checkout/{}/{what}", uuid(&checkout.id))).expect("a short plain name")
}

fn price(checkout: &Checkout, amount: i64) -> Result<Price, Error> {
    Price::new(amount, checkout.currency()).map_err(|invalid| Error::Row {
        table: "checkouts",
        key: checkout.id.to_string(),
        what: invalid.to_string(),
    })
}

/// Whether these tickets of one show are more than `limit` for the user, with what they have bought.
async fn exceeds(
    main: &mut PgConnection,
    user: &UserId,
    ticket: &TicketId,
    cart: &[TicketId],
    limit: i32,
) -> Result<bool, Error> {
    let current = read(main, cart.iter().chain([ticket])).await?;
    let Some(wanted) = current.rows.get(ticket.as_str()) else {
        return Ok(false);
    };
    let held = cart.iter().filter(|other| *other != ticket);
    let held = held.filter_map(|other| current.rows.get(other.as_str()));
    let held = held.filter(|other| other.show == wanted.show).count() as i32;
    let bought = purchases::of(main, user, &[wanted.show.as_str()]).await?;
    let bought: i32 = bought.into_iter().map(|(_, tickets)| tickets).sum();
    Ok(held + bought + 1 > limit)
}

/// Runs an interactive transaction, anew as long as others change the same rows. Every step locks what it decides on, the checkout
/// first, or writes it against its version.
async fn transaction<R>(
    pool: &PgPool,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<R, Error> + Clone,
) -> Result<R, Error> {
    let closure = async |transaction: &mut Transaction| together::step(transaction, work.clone()).await;
    interactive::transact_on_locks::<R, Error>(pool, ATTEMPTS, closure)
        .await
        .map(|committed| committed.value)
}
