//! A checkout: tickets that a user holds become theirs and are paid, or nothing happens. All of it is decided here, from the
//! checkout's row alone: [`open`] opens one, [`Checkout::next`] says what is to be done, and [`apply`] what follows from a fact
//! that was learnt. A fact may come late, twice or out of order.
//!
//! The money is authorised first, then the seats are sold, then the money is captured: should the seats be gone meanwhile, the
//! authorisation is cancelled without a charge (Stripe: "place a hold on a payment method"). docs/payments.md has the table of
//! states and facts, which a test compares with [`apply`].

mod disputes;
mod facts;
mod opening;
pub mod recovery;
mod refunds;
mod reports;
mod returns;
mod seats;
mod transition;

use holdfast_schemas::{
    CheckoutFailure, CheckoutId, Credits, Currency, DeclineCode, HoldId, PaymentId, PaymentMethod, Price, Seat, ShowId,
    TicketId, Traceparent, UserId,
};
use time::{Duration, OffsetDateTime};

pub use disputes::Dispute;
pub use facts::{Fact, PaymentStatus, apply};
pub use opening::{Charges, MOST_TICKETS, SaleTerms, Stock, Wish, open, shows};
pub use refunds::Refund;
pub use reports::{Known, Matter, ProviderReport, Reported};
pub use returns::{Repaid, Repayment, Returning};
pub use seats::{lengthening, returning, sale};
pub use transition::{CreditsChange, CustomerMail, Seats, Transition};

/// Time for which the creation of a payment is retried under its idempotency key: the provider keeps keys for 24 hours (Stripe).
/// Later the payment is looked up, never made again.
const KEY_LIVES: Duration = Duration::hours(23);

/// Before the holds end by so much the seats are sold of a payment that the bank is still working on: later another buyer could have
/// them.
const LAST_MOMENT: Duration = Duration::seconds(30);

/// Pause before the provider is asked again for a payment that the bank is working on; as a rule its event comes before.
const ASK_AGAIN: Duration = Duration::HOUR;

/// Most payment methods that are tried for one checkout: more would only try out cards.
const MOST_ATTEMPTS: i32 = 10;

/// A checkout, as its row has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkout {
    pub id: CheckoutId,
    /// Raised by every change of the row.
    pub version: i64,
    pub user: UserId,
    pub lines: Vec<Line>,
    /// Sum of the prices of the holds.
    pub total: Price,
    /// The part of the total that credits pay.
    pub credits: Option<Credits>,
    pub method: Option<PaymentMethod>,
    /// The payment methods that were tried before this one.
    pub attempt: i32,
    pub state: State,
    /// When the first of the holds ends.
    pub until: OffsetDateTime,
    /// From when on the payment provider may have been called: since the opening; none if there is nothing for it to charge.
    pub called_at: Option<OffsetDateTime>,
    pub payment: Option<PaymentId>,
    /// When its next step is tried again, which the provider allows only once the bank has decided about the payment.
    pub ask_at: Option<OffsetDateTime>,
    /// Since when its next step fails: the provider does not tell the payment's state, or a setting is missing.
    pub unknown_since: Option<OffsetDateTime>,
    /// Why it waits for an operator, while it does.
    pub stuck: Option<StuckReason>,
    /// True once the seats are sold and the credits spent.
    pub sold: bool,
    /// Refunded of the captured amount, in minor units; what has failed is not counted.
    pub refunded: i64,
    /// The refunds that were booked and have failed since, all of them together; of a failed checkout those that no other has taken the
    /// place of.
    pub undone: i64,
    /// What the returns of its order give back, in order; the first has the number 1.
    pub repayments: Vec<Repayment>,
    /// The trace of the event that opened it; none of those that an earlier release opened, or that came back with a database.
    pub trace: Option<Traceparent>,
}

/// One ticket of a checkout, with the hold and the price at its opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub ticket: TicketId,
    pub hold: HoldId,
    pub show: ShowId,
    pub seat: Option<Seat>,
    pub price: Price,
    /// True once it was sold by this checkout and is the user's no more.
    pub returned: bool,
}

/// The progress of a checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Prices and seats are fixed; the provider may have been asked for a payment, and may have authorised it.
    Opened,
    /// The payment exists at the provider; no money moves yet.
    Created,
    /// The customer must confirm the payment (3-D Secure).
    Waiting,
    /// The bank has not answered yet.
    Processing,
    /// The payment was declined, with the provider's code; another payment method may be given.
    Declined(Option<DeclineCode>),
    /// The money is authorised, or the bank is still working on it as the holds end.
    Authorised,
    /// The seats are sold and the credits spent; the money is to be captured, or the bank is still working on it.
    Sold,
    /// All that was authorised, captured, sold or spent is to be given back.
    Undoing(Failure),
    /// Paid and sold.
    Completed,
    /// Paid and sold, then refunded in full; the credits that were spent are to be returned as well.
    Refunded,
    /// Ended without a sale.
    Failed(Failure),
}

/// The reason why a checkout failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: CheckoutFailure,
    /// The provider's decline code.
    pub code: Option<DeclineCode>,
}

impl From<CheckoutFailure> for Failure {
    fn from(reason: CheckoutFailure) -> Self {
        Self { reason, code: None }
    }
}

/// The reason why a checkout waits for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StuckReason {
    /// Its next step fails for too long.
    StepFails,
    /// The provider's amount or currency is not what was asked for.
    AmountDiffers,
    /// A refund has failed: money is kept for seats that are not given.
    RefundFailed,
}

/// What is to be done about a checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Take(Step),
    /// Wait for an event of the provider or the buyer, at most until then. An event of the provider brings the step forward.
    Wait {
        until: OffsetDateTime,
        step: Step,
    },
    /// Nothing, ever.
    End,
}

/// A step of a checkout. It may be repeated; what it brings is a [`Fact`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create the payment, under the same idempotency key at each try.
    Create,
    /// Search for the payment: the provider may have forgotten the idempotency key.
    Find,
    /// Authorise the payment.
    Authorise(PaymentId),
    /// Retrieve the payment's state from the provider.
    Look,
    /// Sell the seats and spend the credits.
    Sell,
    /// Capture the payment.
    Capture(PaymentId),
    /// Write `checkout.completed`: there is nothing to capture.
    Complete,
    /// Cancel or refund the payment, then free the seats, return the credits and write `checkout.failed`.
    GiveBack,
    /// The same where the provider was never called.
    Fail,
    /// Return the credits that paid for seats which a refund freed.
    ReturnCredits,
    /// Refund so much of the payment, as the repayment of this number.
    Refund { number: usize, amount: i64 },
    /// Return the credits of the repayment of this number.
    RepayCredits(usize),
}

impl Checkout {
    /// The amount that the provider charges, the total without the credits, in minor units of the total's currency.
    pub fn due(&self) -> i64 {
        self.total.amount() - self.credits.map_or(0, Credits::amount)
    }

    pub fn currency(&self) -> Currency {
        self.total.currency()
    }

    /// True while the provider still knows the idempotency key, so that a repeated creation returns the same payment.
    pub fn key_lives(&self, now: OffsetDateTime) -> bool {
        self.called_at.is_some_and(|called| now - called < KEY_LIVES)
    }

    /// The checkout with a fact that is not worth a write of its own: until the next fact is written, which goes with it, whoever
    /// reads the row asks the provider once more, and gets the same payment. None for any other fact.
    pub fn with(&self, fact: &Fact, now: OffsetDateTime) -> Option<Self> {
        let transition = apply(self, fact.clone(), now);
        let alone = transition.is_row_alone();
        let next = transition
            .next
            .filter(|next| alone && matches!(next.state, State::Created | State::Authorised))?;
        Some(Self {
            version: self.version,
            ..next
        })
    }

    /// The credits that paid for seats which were freed since.
    fn owed_credits(&self) -> Option<Credits> {
        let owes = self.state == State::Refunded && self.sold;
        let left = self.credits_left();
        Credits::new(left).ok().filter(|_| owes && left > 0)
    }

    /// What is to be done.
    pub fn next(&self, now: OffsetDateTime) -> Next {
        match (self.step(now), self.waits_until()) {
            (None, _) => Next::End,
            (Some(step), Some(until)) if now < until => Next::Wait { until, step },
            (Some(step), _) => Next::Take(step),
        }
    }

    fn waits_until(&self) -> Option<OffsetDateTime> {
        match self.state {
            State::Waiting | State::Declined(_) => Some(self.until),
            State::Processing => Some(self.last_moment()),
            State::Sold | State::Undoing(_) => self.ask_at,
            _ => None,
        }
    }

    /// From then on the seats of a payment that the bank is working on are sold.
    fn last_moment(&self) -> OffsetDateTime {
        self.until - LAST_MOMENT
    }

    /// The next step; none where nothing is left to be done.
    fn step(&self, now: OffsetDateTime) -> Option<Step> {
        let is_late = now >= self.until;
        Some(match (&self.state, &self.payment) {
            (State::Opened, _) if self.due() == 0 => Step::Sell,
            (State::Opened, _) if self.key_lives(now) => Step::Create,
            (State::Opened, _) => Step::Find,
            // Too late to authorise; but an earlier call may have authorised the payment.
            (State::Created, _) if is_late => Step::Look,
            (State::Created, Some(payment)) => Step::Authorise(payment.clone()),
            // A confirmation, or another card on the customer's page, may have come through.
            (State::Waiting | State::Processing | State::Declined(_), _) => Step::Look,
            (State::Authorised, _) => Step::Sell,
            (State::Sold, _) if self.due() == 0 => Step::Complete,
            (State::Sold, Some(payment)) => Step::Capture(payment.clone()),
            (State::Created | State::Sold, None) => Step::Find,
            (State::Undoing(_), _) if self.called_at.is_some() => Step::GiveBack,
            (State::Undoing(_), _) => Step::Fail,
            (State::Refunded, _) if self.owed_credits().is_some() => Step::ReturnCredits,
            (State::Completed | State::Refunded | State::Failed(_), _) => return self.repaying(),
        })
    }

    /// Number of tickets of each show, in order.
    pub fn shows(&self) -> Vec<(&ShowId, i32)> {
        opening::shows(&self.lines)
    }

    /// The checkout with these of its tickets returned.
    fn without(&self, is_returned: impl Fn(&Line) -> bool) -> Self {
        let mut next = self.clone();
        for line in &mut next.lines {
            line.returned |= is_returned(line);
        }
        next
    }
}

impl StuckReason {
    pub const ALL: [Self; 3] = [Self::StepFails, Self::AmountDiffers, Self::RefundFailed];

    /// The name in rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::StepFails => "step_fails",
            Self::AmountDiffers => "amount_differs",
            Self::RefundFailed => "refund_failed",
        }
    }
}

impl State {
    /// The name in rows, metrics and answers.
    pub fn name(&self) -> &'static str {
        match self {
            State::Opened => "opened",
            State::Created => "created",
            State::Waiting => "waiting",
            State::Processing => "processing",
            State::Declined(_) => "declined",
            State::Authorised => "authorised",
            State::Sold => "sold",
            State::Undoing(_) => "undoing",
            State::Completed => "completed",
            State::Refunded => "refunded",
            State::Failed(_) => "failed",
        }
    }

    /// The reason why the checkout fails or has failed.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            State::Undoing(failure) | State::Failed(failure) => Some(failure),
            _ => None,
        }
    }

    /// The provider's code for the last decline.
    pub fn code(&self) -> Option<&DeclineCode> {
        match self {
            State::Declined(code) => code.as_ref(),
            state => state.failure()?.code.as_ref(),
        }
    }

    /// True once the checkout was completed or failed.
    pub fn has_ended(&self) -> bool {
        matches!(self, State::Completed | State::Refunded | State::Failed(_))
    }
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
