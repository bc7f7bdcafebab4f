//! What follows from each fact about a checkout. docs/payments.md has it as a table.

use holdfast_schemas::{CheckoutFailure, Credits, DeclineCode, PaymentId, PaymentMethod, UserOutcome, outcomes};
use time::OffsetDateTime;

use super::disputes::disputed;
use super::refunds::{booked, credits_returned, refund_changed, refunded};
use super::returns::{credits_repaid, order_returned, refund_made};
use super::transition::{movement, row, stuck};
use super::{
    ASK_AGAIN, Checkout, CreditsChange, CustomerMail, Dispute, Failure, MOST_ATTEMPTS, Next, Refund, Returning, Seats,
    State, StuckReason, Transition,
};
use crate::domain::ledger::MovementKind;

/// Something that was learnt about a checkout, by one of its steps or from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The payment exists at the provider, under this id.
    PaymentMade(PaymentId),
    /// The provider has no payment for this checkout.
    NoPayment,
    /// The payment's status, as the provider says when asked.
    Payment(PaymentStatus),
    /// No payment is made, or the one there is was declined, with the provider's code. `for_good`: no other payment method is
    /// to be tried.
    Declined { code: Option<DeclineCode>, for_good: bool },
    /// The buyer gives another payment method, as the attempt of this number.
    Retried { attempt: i32, method: PaymentMethod },
    /// The buyer gives the checkout up. Once the seats are sold it is too late for that.
    Cancelled,
    /// All seats are sold, within the transaction that writes this.
    SeatsSold,
    /// A seat cannot be sold to this user any more; none was.
    SeatsGone,
    /// The user would have more tickets of a show than one user may; no seat was sold.
    LimitReached,
    /// The user has fewer credits than the checkout spends; no seat was sold.
    CreditsMissing,
    /// All that is due was captured. `frees_seats`: a refund in full that came before frees the seats.
    Captured { frees_seats: bool },
    /// The payment can be captured no more.
    NotCaptured,
    /// The bank was still working on the payment when the seats were sold, and has declined it since, with the provider's code.
    DebitFailed(Option<DeclineCode>),
    /// The provider holds nothing of the payment any more: it was cancelled, or this amount was captured and then refunded.
    GivenBack { captured: i64 },
    /// The credits are returned, within the transaction that writes this.
    CreditsReturned,
    /// The provider has refunded so much in all, in minor units. `known`: the refunds of the checkout that are known one by one.
    /// `frees_seats`: a refund in full frees the seats.
    Refunded {
        in_all: i64,
        known: Vec<Refund>,
        frees_seats: bool,
    },
    /// How a refund stands, as the provider reports it; and the refunds that are known, this one as it was.
    RefundChanged {
        now: Refund,
        known: Vec<Refund>,
        frees_seats: bool,
    },
    /// The shop takes seats of the order back, or gives back some of what was paid.
    OrderReturned(Returning),
    /// The provider has made the refund of the repayment of this number; none where nothing was left to refund. With it, the refunds that
    /// are known.
    RefundMade {
        number: usize,
        made: Option<(Refund, Vec<Refund>)>,
    },
    /// The credits of the repayment of this number are returned, within the transaction that writes this.
    CreditsRepaid(usize),
    /// The state of a dispute, as the provider reports it, and as it was known before.
    Disputed { now: Dispute, before: Option<Dispute> },
    /// The provider has authorised, captured or refunded another amount than was asked for, or in another currency.
    AmountDiffers,
    /// The next step failed, without an answer that tells anything. After `patience` it is no longer waited out.
    StepFailed { patience: std::time::Duration },
    /// An operator, the engine or the reconciler gives the checkout up.
    GivenUp(CheckoutFailure),
    /// An operator has a stuck checkout driven again.
    Resumed,
    /// The provider tells something about the payment, so that a step which failed may come through.
    Heard,
    /// An operator's try has changed nothing: only an operator drives the checkout on.
    LeftStuck,
}

/// The status of a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentStatus {
    /// Not authorised yet, and nobody is at it.
    Unconfirmed,
    Canceled,
    /// The customer has to confirm it with the bank (3-D Secure).
    ActionRequired,
    /// The bank has not answered yet.
    Processing,
    Authorised,
    Captured,
}

/// What follows from a fact. A fact that does not fit the checkout's state, as it comes late or twice, changes nothing.
pub fn apply(checkout: &Checkout, fact: Fact, now: OffsetDateTime) -> Transition {
    match fact {
        Fact::PaymentMade(payment) => made(checkout, payment),
        Fact::NoPayment => match checkout.state {
            State::Opened | State::Created | State::Waiting | State::Processing => {
                undo(checkout, CheckoutFailure::NotConfirmed)
            }
            State::Declined(_) => row(checkout, moved(checkout, unpaid(checkout, now))),
            State::Sold => undo(checkout, CheckoutFailure::NotCaptured),
            _ => Transition::default(),
        },
        Fact::Payment(status) => stands(checkout, status, now),
        Fact::Declined { code, for_good } => declined(checkout, code, for_good, now),
        Fact::Retried { attempt, method } => retried(checkout, attempt, method),
        Fact::Cancelled => match checkout.state {
            State::Sold => Transition::default(),
            _ => give_up(checkout, CheckoutFailure::Cancelled),
        },
        Fact::SeatsSold => sold(checkout),
        Fact::SeatsGone => unsold(checkout, CheckoutFailure::SeatsGone),
        Fact::LimitReached => unsold(checkout, CheckoutFailure::ShowLimitReached),
        Fact::CreditsMissing => unsold(checkout, CheckoutFailure::CreditsMissing),
        Fact::Captured { frees_seats } => captured(checkout, frees_seats),
        Fact::NotCaptured => match checkout.state {
            State::Sold => undo(checkout, CheckoutFailure::NotCaptured),
            _ => Transition::default(),
        },
        Fact::DebitFailed(code) => match checkout.state {
            State::Sold => row(checkout, moved(checkout, State::Undoing(declined_with(code)))),
            _ => Transition::default(),
        },
        Fact::GivenBack { captured } => given_back(checkout, captured),
        Fact::CreditsReturned => credits_returned(checkout),
        Fact::Refunded {
            in_all,
            known,
            frees_seats,
        } => refunded(checkout, in_all, &known, frees_seats),
        Fact::RefundChanged {
            now,
            known,
            frees_seats,
        } => refund_changed(checkout, now, &known, frees_seats),
        Fact::OrderReturned(asked) => order_returned(checkout, asked),
        Fact::RefundMade { number, made } => refund_made(checkout, number, made),
        Fact::CreditsRepaid(number) => credits_repaid(checkout, number),
        Fact::Disputed { now, before } => disputed(checkout, now, before),
        Fact::AmountDiffers => stuck(checkout, StuckReason::AmountDiffers),
        Fact::StepFailed { patience } => step_failed(checkout, patience, now),
        Fact::GivenUp(reason) => give_up(checkout, reason),
        Fact::Heard if checkout.stuck != Some(StuckReason::StepFails) => Transition::default(),
        Fact::Resumed | Fact::Heard => resumed(checkout),
        Fact::LeftStuck => left_stuck(checkout, now),
    }
}

fn made(checkout: &Checkout, payment: PaymentId) -> Transition {
    // The provider is never called before the row says so.
    if checkout.called_at.is_none() || checkout.payment.is_some() {
        return Transition::default();
    }
    let state = match &checkout.state {
        State::Opened => State::Created,
        State::Created | State::Sold => checkout.state.clone(),
        _ => return Transition::default(),
    };
    let mut next = moved(checkout, state);
    next.payment = Some(payment);
    row(checkout, next)
}

/// The payment's status decides whether the checkout goes on, waits, or is undone.
fn stands(checkout: &Checkout, status: PaymentStatus, now: OffsetDateTime) -> Transition {
    match checkout.state {
        State::Created | State::Waiting | State::Processing | State::Declined(_) => {}
        State::Sold | State::Undoing(_) if status == PaymentStatus::Processing => return undecided(checkout, now),
        _ => return Transition::default(),
    }
    let state = match status {
        PaymentStatus::Authorised | PaymentStatus::Captured => State::Authorised,
        PaymentStatus::ActionRequired if now < checkout.until => State::Waiting,
        PaymentStatus::Processing if now < checkout.last_moment() => State::Processing,
        // The seats are sold before their holds end, and the money captured once the bank has decided.
        PaymentStatus::Processing => State::Authorised,
        PaymentStatus::ActionRequired | PaymentStatus::Unconfirmed | PaymentStatus::Canceled => unpaid(checkout, now),
    };
    let begins = state == State::Waiting && checkout.state != State::Waiting;
    let asked = checkout.payment.clone().filter(|_| begins).map(|payment| {
        UserOutcome::CheckoutActionRequired(outcomes::CheckoutActionRequired {
            checkout: checkout.id.clone(),
            payment,
            until: checkout.until,
        })
    });
    Transition {
        outcomes: asked.into_iter().collect(),
        ..row(checkout, moved(checkout, state))
    }
}

/// While the bank is working on a payment, it can neither be captured nor cancelled. What else is to be undone does not wait for the
/// bank. The row changes in any case: the step came through.
fn undecided(checkout: &Checkout, now: OffsetDateTime) -> Transition {
    let (after, back) = match checkout.state {
        State::Undoing(_) => unsell(checkout),
        _ => (checkout.clone(), Transition::default()),
    };
    let next = Checkout {
        version: checkout.version + 1,
        ask_at: Some(now + ASK_AGAIN),
        ..moved(&after, checkout.state.clone())
    };
    Transition {
        next: Some(next),
        ..back
    }
}

/// The state of a checkout whose payment nobody is at: one that was declined waits on for another payment method.
fn unpaid(checkout: &Checkout, now: OffsetDateTime) -> State {
    match &checkout.state {
        State::Declined(code) if now < checkout.until => State::Declined(code.clone()),
        State::Declined(code) => State::Undoing(declined_with(code.clone())),
        _ => State::Undoing(CheckoutFailure::NotConfirmed.into()),
    }
}

/// The payment was declined: another payment method may be given as long as the holds last. It is told once for each attempt.
fn declined(checkout: &Checkout, code: Option<DeclineCode>, for_good: bool, now: OffsetDateTime) -> Transition {
    let is_over = for_good || now >= checkout.until || checkout.attempt + 1 >= MOST_ATTEMPTS;
    match checkout.state {
        State::Opened | State::Created | State::Waiting | State::Processing | State::Declined(_) if is_over => {
            row(checkout, moved(checkout, State::Undoing(declined_with(code))))
        }
        State::Opened | State::Created | State::Waiting | State::Processing => Transition {
            outcomes: vec![UserOutcome::CheckoutPaymentDeclined(
                outcomes::CheckoutPaymentDeclined {
                    checkout: checkout.id.clone(),
                    code: code.clone(),
                    until: checkout.until,
                },
            )],
            ..row(checkout, moved(checkout, State::Declined(code)))
        },
        State::Declined(_) => row(checkout, moved(checkout, checkout.state.clone())),
        _ => Transition::default(),
    }
}

fn declined_with(code: Option<DeclineCode>) -> Failure {
    let reason = CheckoutFailure::Declined;
    Failure { reason, code }
}

/// The same payment is authorised anew, by another payment method; where none was made, it is made with that one.
fn retried(checkout: &Checkout, attempt: i32, method: PaymentMethod) -> Transition {
    if !matches!(checkout.state, State::Declined(_)) || attempt != checkout.attempt + 1 {
        return Transition::default();
    }
    let is_missing = checkout.called_at.is_some() && checkout.payment.is_none();
    let state = if is_missing { State::Opened } else { State::Created };
    let next = Checkout {
        attempt,
        method: Some(method),
        ..moved(checkout, state)
    };
    row(checkout, next)
}

fn sold(checkout: &Checkout) -> Transition {
    if !is_to_sell(checkout) {
        return Transition::default();
    }
    let next = Checkout {
        sold: true,
        ..moved(checkout, State::Sold)
    };
    Transition {
        movements: movement(MovementKind::Credit, checkout.credits.map_or(0, Credits::amount)),
        credits: checkout.credits.map(CreditsChange::Spent),
        ..row(checkout, next)
    }
}

fn unsold(checkout: &Checkout, reason: CheckoutFailure) -> Transition {
    match is_to_sell(checkout) {
        true => undo(checkout, reason),
        false => Transition::default(),
    }
}

/// No seat is sold before the money is authorised, or credits pay all.
fn is_to_sell(checkout: &Checkout) -> bool {
    match checkout.state {
        State::Opened => checkout.due() == 0,
        State::Authorised => true,
        _ => false,
    }
}

/// The checkout is completed. A refund that came before the capture was known is told now.
fn captured(checkout: &Checkout, frees_seats: bool) -> Transition {
    if checkout.state != State::Sold {
        return Transition::default();
    }
    let completed = Checkout {
        refunded: 0,
        ..moved(checkout, State::Completed)
    };
    let refund = booked(&completed, checkout.refunded, frees_seats);
    let told = UserOutcome::CheckoutCompleted(outcomes::CheckoutCompleted {
        checkout: checkout.id.clone(),
        total: checkout.total,
        credits: checkout.credits,
        payment: checkout.payment.clone(),
    });
    let mut transition = row(checkout, completed);
    transition.next = refund.next.or(transition.next);
    transition.outcomes = [vec![told], refund.outcomes].concat();
    transition.movements = [movement(MovementKind::Capture, checkout.due()), refund.movements].concat();
    transition.mails = [vec![CustomerMail::Completed], refund.mails].concat();
    transition.seats = refund.seats;
    transition
}

/// The checkout has failed: nothing of the payment is left. What was sold goes back too; what was not stays held for the user,
/// who may buy it by another checkout as long as the holds last.
fn given_back(checkout: &Checkout, captured: i64) -> Transition {
    let State::Undoing(failure) = &checkout.state else {
        return Transition::default();
    };
    let (after, back) = unsell(checkout);
    let next = Checkout {
        refunded: captured,
        ..moved(&after, State::Failed(failure.clone()))
    };
    let movements = [
        back.movements,
        movement(MovementKind::Capture, captured),
        movement(MovementKind::Refund, captured),
    ];
    Transition {
        outcomes: vec![UserOutcome::CheckoutFailed(outcomes::CheckoutFailed {
            checkout: checkout.id.clone(),
            reason: failure.reason,
            code: failure.code.clone(),
        })],
        movements: movements.concat(),
        mails: vec![CustomerMail::Failed],
        seats: back.seats,
        credits: back.credits,
        ..row(checkout, next)
    }
}

/// The seats go back on sale, and the credits to the user, if they were sold and spent. Yields the row with that, and what else it brings.
fn unsell(checkout: &Checkout) -> (Checkout, Transition) {
    if !checkout.sold {
        return (checkout.clone(), Transition::default());
    }
    let after = Checkout {
        sold: false,
        ..checkout.without(|_| true)
    };
    let back = Transition {
        movements: movement(MovementKind::CreditBack, checkout.credits.map_or(0, Credits::amount)),
        seats: Seats::Returned { resell: true },
        credits: checkout.credits.map(CreditsChange::Returned),
        ..Transition::default()
    };
    (after, back)
}

/// Writes since when a step fails; a checkout whose step fails for too long is stuck, for an operator.
fn step_failed(checkout: &Checkout, patience: std::time::Duration, now: OffsetDateTime) -> Transition {
    if checkout.stuck.is_some() || checkout.next(now) == Next::End {
        return Transition::default();
    }
    let unknown_since = match checkout.unknown_since {
        Some(since) if now - since > patience => return stuck(checkout, StuckReason::StepFails),
        since => since.or(Some(now)),
    };
    let next = Checkout {
        unknown_since,
        ..checkout.clone()
    };
    row(checkout, next)
}

fn resumed(checkout: &Checkout) -> Transition {
    if checkout.stuck.is_none() {
        return Transition::default();
    }
    let next = Checkout {
        stuck: None,
        ask_at: None,
        unknown_since: None,
        ..checkout.clone()
    };
    row(checkout, next)
}

fn left_stuck(checkout: &Checkout, now: OffsetDateTime) -> Transition {
    if checkout.next(now) == Next::End {
        return Transition::default();
    }
    let next = Checkout {
        stuck: checkout.stuck.or(Some(StuckReason::StepFails)),
        ..checkout.clone()
    };
    row(checkout, next)
}

fn give_up(checkout: &Checkout, reason: CheckoutFailure) -> Transition {
    match checkout.state {
        State::Undoing(_) | State::Completed | State::Refunded | State::Failed(_) => Transition::default(),
        _ => undo(checkout, reason),
    }
}

fn undo(checkout: &Checkout, reason: CheckoutFailure) -> Transition {
    row(checkout, moved(checkout, State::Undoing(reason.into())))
}

/// The checkout in its next state: a step came through.
fn moved(checkout: &Checkout, state: State) -> Checkout {
    Checkout {
        state,
        ask_at: None,
        unknown_since: None,
        stuck: None,
        ..checkout.clone()
    }
}
