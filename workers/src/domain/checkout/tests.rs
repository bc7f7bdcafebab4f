//! The rules of a checkout, one by one.

use std::collections::HashMap;

use holdfast_schemas::{
    DisputeFunds, DisputeId, DisputeStatus, EventId, List, RefundId, RefundStatus, Source, UserEvent, UserOutcome,
    UserRefusalReason, events, outcomes,
};

use super::*;
use crate::domain::ledger::{Movement, MovementKind};
use crate::domain::ticket::{self, Input};
use crate::domain::{Decision, State as TicketState, Ticket};

const MINUTE: Duration = Duration::minutes(1);

const CAPTURED: Fact = Fact::Captured { frees_seats: true };

pub(super) fn now() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::days(20_000)
}

pub(super) fn price(amount: i64) -> Price {
    Price::new(amount, Currency::EUR).unwrap()
}

fn line() -> Line {
    Line {
        ticket: TicketId::parse("A1").unwrap(),
        hold: hold("1"),
        show: ShowId::parse("gala").unwrap(),
        seat: None,
        price: price(100),
        returned: false,
    }
}

fn hold(number: &str) -> HoldId {
    let (source, id) = (Source::parse("shop").unwrap(), EventId::parse(number).unwrap());
    holdfast_schemas::hold_id(source.as_str(), id.as_str(), "A1")
}

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

fn ticket(state: TicketState) -> Ticket {
    Ticket {
        version: 2,
        show: ShowId::parse("gala").unwrap(),
        seat: None,
        price: price(100),
        state,
        changed_at: now(),
    }
}

fn held(by: &str, number: &str, until: OffsetDateTime) -> Ticket {
    ticket(TicketState::Held(crate::domain::Hold {
        id: hold(number),
        user: user(by),
        until,
        lengthened: false,
        price: None,
    }))
}

pub(super) fn checkout(state: State) -> Checkout {
    let id = CheckoutId::parse("c-1").unwrap();
    Checkout {
        state,
        ..Checkout::new(&id, &user("ann"), vec![line()], price(100), now() + MINUTE)
    }
}

#[test]
fn a_payment_is_made_within_its_keys_life_and_looked_up_afterwards() {
    let called = |ago: Duration| Checkout {
        called_at: Some(now() - ago),
        ..checkout(State::Opened)
    };
    assert_eq!(called(Duration::hours(22)).next(now()), Next::Take(Step::Create));
    assert_eq!(called(Duration::hours(23)).next(now()), Next::Take(Step::Find));
    assert!(called(Duration::hours(22)).key_lives(now()) && !called(Duration::hours(23)).key_lives(now()));
}

#[test]
fn no_money_is_asked_for_once_a_hold_has_ended() {
    let late = now() + MINUTE;
    for state in [State::Created, State::Waiting, State::Processing, State::Declined(None)] {
        assert_eq!(checkout(state.clone()).next(late), Next::Take(Step::Look), "{state:?}");
    }
    // It was authorised in time: the seats are sold if they are free.
    assert_eq!(checkout(State::Authorised).next(late), Next::Take(Step::Sell));
    for (state, until) in [
        (State::Waiting, late),
        (State::Declined(None), late),
        (State::Processing, late - LAST_MOMENT),
    ] {
        let step = Step::Look;
        assert_eq!(checkout(state).next(now()), Next::Wait { until, step });
    }
}

#[test]
fn seats_are_sold_at_the_last_moment_while_the_bank_is_still_working_on_the_payment() {
    let processing = || Fact::Payment(PaymentStatus::Processing);
    let last = checkout(State::Opened).last_moment();
    let just_before = last - Duration::SECOND;
    for state in [State::Created, State::Waiting, State::Processing, State::Declined(None)] {
        let checkout = checkout(state);
        let stays = apply(&checkout, processing(), just_before).next;
        assert_eq!(stays.as_ref().unwrap_or(&checkout).state, State::Processing);
        let next = apply(&checkout, processing(), last).next.unwrap();
        assert_eq!(next.state, State::Authorised);
        assert_eq!(next.next(last), Next::Take(Step::Sell));
    }
}

#[test]
fn a_payment_that_the_bank_is_working_on_is_asked_for_again_and_by_an_event_at_once() {
    let payment = PaymentId::parse("pi_1").unwrap();
    let paid = |state| Checkout {
        called_at: Some(now()),
        payment: Some(payment.clone()),
        ..checkout(state)
    };
    let undoing = State::Undoing(CheckoutFailure::SeatsGone.into());
    for (state, step) in [(State::Sold, Step::Capture(payment.clone())), (undoing, Step::GiveBack)] {
        assert_eq!(paid(state.clone()).next(now()), Next::Take(step.clone()));
        let undecided = after(&paid(state.clone()), Fact::Payment(PaymentStatus::Processing));
        assert!(undecided.is_row_alone());
        let next = undecided.next.unwrap();
        assert_eq!(next.state, state);
        let until = now() + ASK_AGAIN;
        let taken = Next::Take(step.clone());
        assert_eq!(next.next(now()), Next::Wait { until, step });
        assert_eq!(next.next(until), taken);
    }
}

#[test]
fn seats_and_credits_go_back_at_once_where_the_bank_is_still_working_on_a_payment_that_is_undone() {
    let sold = Checkout {
        called_at: Some(now()),
        sold: true,
        credits: Credits::new(40).ok(),
        ..checkout(State::Undoing(CheckoutFailure::Settled.into()))
    };
    let undecided = after(&sold, Fact::Payment(PaymentStatus::Processing));
    assert_eq!(undecided.seats, Seats::Returned { resell: true });
    assert_eq!(undecided.credits, sold.credits.map(CreditsChange::Returned));
    let next = undecided.next.unwrap();
    assert!(!next.sold && next.lines.iter().all(|line| line.returned));
    // They go back once.
    assert!(after(&next, Fact::Payment(PaymentStatus::Processing)).is_row_alone());
    let failed = after(&next, Fact::GivenBack { captured: next.due() });
    assert_eq!((failed.seats, failed.credits), (Seats::Kept, None));
}

#[test]
fn a_debit_that_fails_after_its_seats_were_sold_undoes_the_checkout() {
    let sold = Checkout {
        called_at: Some(now()),
        sold: true,
        ..checkout(State::Sold)
    };
    let code = DeclineCode::parse("insufficient_funds").ok();
    let undoing = after(&sold, Fact::DebitFailed(code.clone())).next.unwrap();
    assert_eq!(
        undoing.state,
        State::Undoing(Failure {
            reason: CheckoutFailure::Declined,
            code,
        })
    );
    assert_eq!(undoing.next(now()), Next::Take(Step::GiveBack));
    let failed = after(&undoing, Fact::GivenBack { captured: 0 });
    assert_eq!(
        (failed.seats, failed.movements),
        (Seats::Returned { resell: true }, vec![])
    );
}

#[test]
fn what_the_provider_was_never_asked_for_it_is_not_asked_to_give_back() {
    let failing = State::Undoing(CheckoutFailure::Cancelled.into());
    assert_eq!(checkout(failing.clone()).next(now()), Next::Take(Step::Fail));
    let called = Checkout {
        called_at: Some(now()),
        ..checkout(failing)
    };
    assert_eq!(called.next(now()), Next::Take(Step::GiveBack));
}

#[test]
fn credits_that_pay_all_need_no_provider() {
    let paid = |state| Checkout {
        credits: Credits::new(100).ok(),
        ..checkout(state)
    };
    assert_eq!(paid(State::Opened).next(now()), Next::Take(Step::Sell));
    assert_eq!(paid(State::Sold).next(now()), Next::Take(Step::Complete));
    let refunded = Checkout {
        sold: true,
        ..paid(State::Refunded)
    };
    assert_eq!(refunded.next(now()), Next::Take(Step::ReturnCredits));
    assert_eq!(paid(State::Refunded).next(now()), Next::End);
}

#[test]
fn a_seat_is_sold_out_of_its_hold_or_held_anew_where_it_is_free_and_the_same() {
    let checkout = checkout(State::Authorised);
    let sold = |ticket: &Ticket| {
        let inputs = sale(&checkout, &line(), Some(ticket), hold("anew"), now());
        inputs.map(|inputs| inputs.len())
    };
    assert_eq!(sold(&held("ann", "1", now() + MINUTE)), Some(1));
    assert_eq!(sold(&held("ann", "1", now())), Some(2), "the hold has ended");
    assert_eq!(sold(&ticket(TicketState::Available)), Some(2));
    let free = || ticket(TicketState::Available);
    let dearer = Ticket {
        price: price(101),
        ..free()
    };
    let other_seat = Ticket {
        seat: Some("Z9".parse().unwrap()),
        ..free()
    };
    let other_show = Ticket {
        show: ShowId::parse("matinee").unwrap(),
        ..free()
    };
    for another in [dearer, other_seat, other_show] {
        assert_eq!(sold(&another), None, "{another:?}");
    }
    assert_eq!(sold(&held("bob", "2", now() + MINUTE)), None);
    assert_eq!(
        sold(&held("ann", "2", now() + MINUTE)),
        None,
        "another hold of the same user"
    );
    assert_eq!(sold(&ticket(TicketState::Withdrawn)), None);
    assert!(sale(&checkout, &line(), None, hold("anew"), now()).is_none());
}

/// The transition of a fact, in time.
fn after(checkout: &Checkout, fact: Fact) -> Transition {
    apply(checkout, fact, now())
}

fn completed(credits: Option<i64>) -> Checkout {
    Checkout {
        credits: credits.map(|credits| Credits::new(credits).unwrap()),
        sold: true,
        ..checkout(State::Completed)
    }
}

fn dispute(amount: i64, status: DisputeStatus, funds: Option<DisputeFunds>) -> Dispute {
    Dispute {
        id: DisputeId::parse("dp_1").unwrap(),
        checkout: checkout(State::Completed).id,
        amount: price(amount),
        status,
        funds,
    }
}

/// So much is refunded in all, of which nothing is known one by one.
fn refunded(in_all: i64) -> Fact {
    let known = vec![];
    Fact::Refunded {
        in_all,
        known,
        frees_seats: true,
    }
}

fn refund(id: &str, amount: i64, status: RefundStatus) -> Refund {
    Refund {
        id: RefundId::parse(id).unwrap(),
        checkout: checkout(State::Completed).id,
        amount: price(amount),
        status,
    }
}

/// A checkout with the table of its refunds.
struct Refunds {
    row: Checkout,
    known: Vec<Refund>,
}

impl Refunds {
    fn of(row: Checkout) -> Self {
        let known = vec![];
        Self { row, known }
    }

    fn hear(&mut self, id: &str, amount: i64, status: RefundStatus) -> Transition {
        let (now, known) = (refund(id, amount, status), self.known.clone());
        self.apply(Fact::RefundChanged {
            now,
            known,
            frees_seats: true,
        })
    }

    fn hear_of_all(&mut self, in_all: i64) -> Transition {
        let known = self.known.clone();
        self.apply(Fact::Refunded {
            in_all,
            known,
            frees_seats: true,
        })
    }

    fn apply(&mut self, fact: Fact) -> Transition {
        let transition = after(&self.row, fact);
        if let Some(refund) = &transition.refund {
            self.known.retain(|known| known.id != refund.id);
            self.known.push(refund.clone());
        }
        self.row = transition.next.clone().unwrap_or_else(|| self.row.clone());
        transition
    }
}

fn moved_by(transition: &Transition) -> Vec<(MovementKind, i64)> {
    let movements = transition.movements.iter();
    movements.map(|Movement { kind, amount }| (*kind, *amount)).collect()
}

#[test]
fn a_refund_in_part_leaves_the_seats_sold_and_one_in_full_frees_them() {
    let paid = completed(Some(40));
    let part = after(&paid, refunded(25));
    let next = part.next.clone().unwrap();
    assert_eq!((&next.state, next.refunded), (&State::Completed, 25));
    assert_eq!(moved_by(&part), [(MovementKind::PartialRefund, 25)]);
    assert_eq!((part.seats, part.credits), Default::default());
    let rest = after(&next, refunded(60));
    let last = rest.next.clone().unwrap();
    assert_eq!((&last.state, last.refunded), (&State::Refunded, 60));
    assert_eq!(moved_by(&rest), [(MovementKind::Refund, 35)]);
    assert_eq!(rest.seats, Seats::Returned { resell: true });
    let mail = CustomerMail::Refunded {
        amount: price(35),
        so_far: 60,
        full: true,
    };
    assert_eq!(rest.mails, [mail]);
    // The credits come back by a step of their own, once.
    let back = after(&last, Fact::CreditsReturned);
    let owed = Credits::new(40).unwrap();
    assert_eq!(back.credits, Some(CreditsChange::Returned(owed)));
    assert_eq!(moved_by(&back), [(MovementKind::CreditBack, 40)]);
    assert!(after(&back.next.unwrap(), Fact::CreditsReturned).is_nothing());
}

#[test]
fn a_refund_is_told_once_and_never_more_than_was_paid() {
    let paid = completed(None);
    let next = |checkout: &Checkout, in_all| after(checkout, refunded(in_all)).next;
    let part = next(&paid, 70).unwrap();
    for stale in [70, 25, 0] {
        assert_eq!(next(&part, stale), None, "{stale}");
    }
    let full = after(&part, refunded(1_000));
    assert_eq!(moved_by(&full), [(MovementKind::Refund, 30)]);
    assert_eq!(next(&full.next.unwrap(), 1_000), None);
    let failed = State::Failed(CheckoutFailure::Declined.into());
    assert_eq!(
        next(&checkout(failed), 100),
        None,
        "it was booked when the checkout failed"
    );
}

#[test]
fn a_refund_before_the_capture_is_known_is_told_right_after_the_completion() {
    for (in_all, state, kind) in [
        (30, State::Completed, MovementKind::PartialRefund),
        (100, State::Refunded, MovementKind::Refund),
    ] {
        let sold = Checkout {
            sold: true,
            ..checkout(State::Sold)
        };
        let noted = after(&sold, refunded(in_all));
        assert!(noted.is_row_alone(), "{noted:?}");
        let noted = noted.next.unwrap();
        let done = after(&noted, CAPTURED);
        let next = done.next.clone().unwrap();
        assert_eq!(
            (next.state, next.refunded, next.version),
            (state, in_all, noted.version + 1)
        );
        assert_eq!(moved_by(&done), [(MovementKind::Capture, 100), (kind, in_all)]);
        let [UserOutcome::CheckoutCompleted(_), UserOutcome::PaymentRefunded(told)] = &done.outcomes[..] else {
            panic!("{:?}", done.outcomes);
        };
        assert_eq!((told.amount, told.full), (price(in_all), in_all == 100));
        assert_eq!(done.mails.len(), 2);
        assert_eq!(done.seats == Seats::Returned { resell: true }, in_all == 100);
    }
}

#[test]
fn a_refund_is_booked_when_it_has_succeeded_and_undone_when_it_fails() {
    use RefundStatus::{Failed, Pending, Succeeded};
    let mut paid = Refunds::of(completed(None));
    let asked = paid.hear("re_1", 25, Pending);
    assert!(asked.next.is_none() && asked.outcomes.is_empty() && asked.movements.is_empty());
    assert!(paid.hear("re_1", 25, Pending).is_nothing());
    assert_eq!(
        moved_by(&paid.hear("re_1", 25, Succeeded)),
        [(MovementKind::PartialRefund, 25)]
    );
    let failed = paid.hear("re_1", 25, Failed);
    assert_eq!(moved_by(&failed), [(MovementKind::RefundFailed, 25)]);
    let [UserOutcome::PaymentRefundFailed(told)] = &failed.outcomes[..] else {
        panic!("{:?}", failed.outcomes);
    };
    assert_eq!((told.amount, told.undone), (price(25), true));
    assert_eq!(
        (&paid.row.state, paid.row.refunded, paid.row.undone),
        (&State::Completed, 0, 25)
    );
    assert_eq!(paid.row.stuck, None, "the seats are the user's and paid");
    for late in [Pending, Succeeded, Failed] {
        assert!(paid.hear("re_1", 25, late).is_nothing(), "{late:?}");
    }
    // Another refund of the same amount is a refund of its own, with a mail of its own.
    let again = paid.hear("re_2", 25, Succeeded);
    let mail = CustomerMail::Refunded {
        amount: price(25),
        so_far: 50,
        full: false,
    };
    assert_eq!(
        (moved_by(&again), again.mails),
        (vec![(MovementKind::PartialRefund, 25)], vec![mail])
    );
    // One that fails before it has succeeded was never booked; that it has failed is told.
    paid.hear("re_3", 10, Pending);
    let failed = paid.hear("re_3", 10, Failed);
    assert!(failed.next.is_none() && failed.movements.is_empty());
    assert!(matches!(&failed.outcomes[..], [UserOutcome::PaymentRefundFailed(told)] if !told.undone));
}

#[test]
fn a_refund_that_is_told_by_its_id_and_in_the_total_is_booked_once() {
    use RefundStatus::{Failed, Pending, Succeeded};
    let mut paid = Refunds::of(completed(None));
    // The total counts what is on its way; it is believed of what is not known to be so.
    paid.hear("re_1", 30, Pending);
    assert!(paid.hear_of_all(30).is_nothing());
    assert_eq!(moved_by(&paid.hear_of_all(50)), [(MovementKind::PartialRefund, 20)]);
    assert!(paid.hear("re_2", 20, Succeeded).movements.is_empty());
    assert_eq!(
        moved_by(&paid.hear("re_1", 30, Succeeded)),
        [(MovementKind::PartialRefund, 30)]
    );
    assert!(paid.hear_of_all(50).is_nothing());
    assert_eq!(
        moved_by(&paid.hear("re_2", 20, Failed)),
        [(MovementKind::RefundFailed, 20)]
    );
    assert!(paid.hear_of_all(50).is_nothing(), "that total is stale");
    assert_eq!((paid.row.refunded, paid.row.undone), (30, 20));
    // A total came first, and its refund fails before anybody has heard of it.
    let mut paid = Refunds::of(completed(None));
    paid.hear_of_all(40);
    assert_eq!(
        moved_by(&paid.hear("re_1", 40, Failed)),
        [(MovementKind::RefundFailed, 40)]
    );
    assert_eq!(paid.row.refunded, 0);
}

#[test]
fn a_refund_that_fails_when_the_seats_are_gone_waits_for_an_operator_until_the_money_is_given_back() {
    use RefundStatus::{Failed, Succeeded};
    let mut paid = Refunds::of(completed(None));
    paid.hear("re_1", 100, Succeeded);
    assert_eq!(paid.row.state, State::Refunded);
    // The checkout was undone, and what was captured was refunded.
    let mut undone = Refunds::of(checkout(State::Undoing(CheckoutFailure::SeatsGone.into())));
    undone.apply(Fact::GivenBack { captured: 100 });
    assert!(undone.hear("re_1", 100, Succeeded).movements.is_empty(), "it is booked");
    for refunds in [&mut paid, &mut undone] {
        let state = refunds.row.state.clone();
        let failed = refunds.hear("re_1", 100, Failed);
        assert_eq!(moved_by(&failed), [(MovementKind::RefundFailed, 100)]);
        assert!(matches!(
            failed.outcomes[..],
            [UserOutcome::PaymentRefundFailed(_), UserOutcome::CheckoutStuck(_)]
        ));
        assert_eq!(
            (refunds.row.stuck, refunds.row.refunded),
            (Some(StuckReason::RefundFailed), 0)
        );
        assert!(refunds.apply(Fact::Heard).is_nothing());
        let again = refunds.hear("re_2", 100, Succeeded);
        assert_eq!(moved_by(&again), [(MovementKind::PartialRefund, 100)]);
        assert_eq!(again.seats, Seats::Kept, "they were freed before");
        assert_eq!(
            (&refunds.row.state, refunds.row.stuck, refunds.row.refunded),
            (&state, None, 100)
        );
    }
}

#[test]
fn a_cancelled_authorisation_that_is_told_as_refunded_moves_nothing() {
    let mut failed = Refunds::of(checkout(State::Undoing(CheckoutFailure::SeatsGone.into())));
    failed.apply(Fact::GivenBack { captured: 0 });
    for status in [RefundStatus::Succeeded, RefundStatus::Failed] {
        let told = failed.hear("re_1", 100, status);
        assert!(told.next.is_none() && told.movements.is_empty() && told.outcomes.is_empty());
    }
    assert!(failed.hear_of_all(100).is_nothing());
}

#[test]
fn a_refund_that_fails_while_the_money_is_given_back_has_the_provider_asked_anew() {
    let mut undoing = Refunds::of(checkout(State::Undoing(CheckoutFailure::SeatsGone.into())));
    let before = undoing.row.version;
    undoing.hear("re_1", 100, RefundStatus::Pending);
    assert_eq!(undoing.row.version, before);
    undoing.hear("re_1", 100, RefundStatus::Failed);
    assert_eq!(undoing.row.version, before + 1);
}

#[test]
fn the_money_of_a_dispute_moves_when_the_provider_says_so_and_never_again() {
    use DisputeFunds::{Reinstated, Withdrawn};
    use DisputeStatus::{Closed, Inquiry, Lost, Opened, Won};
    use MovementKind::{Dispute as Taken, DisputeLost, DisputeRegained, DisputeWon};
    let paid = completed(None);
    let lives: [(&[_], &[_]); 9] = [
        // An inquiry takes no money, and may become a dispute even after it was closed.
        (&[(Inquiry, None), (Closed, None)], &[]),
        (&[(Inquiry, None), (Opened, None), (Opened, Some(Withdrawn))], &[Taken]),
        (&[(Closed, None), (Opened, Some(Withdrawn)), (Inquiry, None)], &[Taken]),
        (
            &[(Opened, None), (Opened, Some(Withdrawn)), (Lost, None)],
            &[Taken, DisputeLost],
        ),
        (
            &[(Opened, Some(Withdrawn)), (Won, Some(Reinstated)), (Won, None)],
            &[Taken, DisputeWon],
        ),
        // Backwards.
        (
            &[(Lost, None), (Opened, Some(Withdrawn)), (Opened, None)],
            &[Taken, DisputeLost],
        ),
        (
            &[(Won, None), (Won, Some(Reinstated)), (Opened, Some(Withdrawn))],
            &[Taken, DisputeWon],
        ),
        // Lost without money that was taken; and what was lost comes back after all.
        (&[(Opened, None), (Lost, None)], &[]),
        (
            &[(Lost, Some(Withdrawn)), (Won, Some(Reinstated))],
            &[Taken, DisputeLost, DisputeRegained],
        ),
    ];
    for (reports, booked) in lives {
        let (mut before, mut moved): (Option<Dispute>, Vec<_>) = (None, vec![]);
        for (place, (status, funds)) in reports.iter().enumerate() {
            // The reports may name different amounts: the one at which the money was taken stands.
            let taken = before.as_ref().is_some_and(|before| before.funds.is_some());
            let now = dispute(if taken { 30 } else { 50 }, *status, *funds);
            for is_repeat in [false, true] {
                let (now, before_it) = (now.clone(), before.clone());
                let told = after(&paid, Fact::Disputed { now, before: before_it });
                assert_eq!(told.next, None, "the seats stay sold");
                assert_eq!(
                    told.outcomes.len(),
                    usize::from(told.dispute.is_some()),
                    "{reports:?} {place}"
                );
                assert!(!is_repeat || told.is_nothing(), "{reports:?} {place}");
                moved.extend(moved_by(&told));
                before = told.dispute.or(before);
            }
        }
        let booked: Vec<_> = booked.iter().map(|kind| (*kind, 50)).collect();
        assert_eq!(moved, booked, "{reports:?}");
    }
}

fn report_of(refund: &Refund) -> Reported<'_> {
    Reported::RefundChanged {
        refund: &refund.id,
        amount: refund.amount,
        status: refund.status,
    }
}

#[test]
fn a_report_is_about_this_payment_this_refund_this_dispute_and_this_currency() {
    let ours = PaymentId::parse("pi_1").unwrap();
    let paid = Checkout {
        payment: Some(ours.clone()),
        ..completed(None)
    };
    let hear = |checkout: &Checkout, payment: &PaymentId, what, known| {
        let report = ProviderReport {
            checkout: &checkout.id,
            payment,
            what,
        };
        checkout.hear(&report, known)
    };
    let nothing = || Known {
        frees_seats: true,
        ..Known::default()
    };
    let other = PaymentId::parse("pi_2").unwrap();
    let dollars = Price::new(10, Currency::USD).unwrap();
    assert_eq!(hear(&paid, &ours, Reported::Progress(None), nothing()), Ok(None));
    assert_eq!(
        hear(&paid, &ours, Reported::Progress(Some(price(100))), nothing()),
        Ok(None)
    );
    let fact = hear(&paid, &ours, Reported::Refunded(price(10)), nothing());
    assert_eq!(fact, Ok(Some(refunded(10))));
    let differs = Err(UserRefusalReason::PaymentDiffers);
    assert_eq!(hear(&paid, &other, Reported::Refunded(price(10)), nothing()), differs);
    // Another amount than was asked for, where no driver asks the provider any more.
    for what in [Reported::Captured(price(99)), Reported::Refunded(price(101))] {
        assert_eq!(
            hear(&paid, &ours, what, nothing()),
            Ok(Some(Fact::AmountDiffers)),
            "{what:?}"
        );
    }
    assert_eq!(hear(&paid, &ours, Reported::Captured(price(100)), nothing()), Ok(None));
    let sold = Checkout {
        state: State::Sold,
        ..paid.clone()
    };
    assert_eq!(hear(&sold, &ours, Reported::Captured(price(99)), nothing()), Ok(None));
    let wrong = Err(UserRefusalReason::WrongCurrency);
    assert_eq!(hear(&paid, &ours, Reported::Refunded(dollars), nothing()), wrong);
    assert_eq!(hear(&paid, &ours, Reported::Progress(Some(dollars)), nothing()), wrong);
    // The provider's answer is on its way: any payment may be ours.
    let unknown = checkout(State::Opened);
    assert_eq!(hear(&unknown, &other, Reported::Progress(None), nothing()), Ok(None));
    let id = DisputeId::parse("dp_1").unwrap();
    let disputed = Reported::Disputed {
        dispute: &id,
        amount: price(50),
        status: DisputeStatus::Opened,
        funds: None,
    };
    let now = dispute(50, DisputeStatus::Opened, None);
    let of_another = CheckoutId::parse("c-2").unwrap();
    let anothers = Known {
        dispute: Some(Dispute {
            checkout: of_another.clone(),
            ..now.clone()
        }),
        ..nothing()
    };
    assert_eq!(hear(&paid, &ours, disputed, anothers), differs);
    assert_eq!(
        hear(&paid, &ours, disputed, nothing()),
        Ok(Some(Fact::Disputed { now, before: None }))
    );
    let ten = refund("re_1", 10, RefundStatus::Succeeded);
    let anothers = |of: &CheckoutId| Known {
        refunds: vec![Refund {
            checkout: of.clone(),
            ..ten.clone()
        }],
        ..nothing()
    };
    let (now, known) = (ten.clone(), vec![]);
    let changed = Ok(Some(Fact::RefundChanged {
        now,
        known,
        frees_seats: true,
    }));
    let report = |known| hear(&paid, &ours, report_of(&ten), known);
    assert_eq!(report(nothing()), changed);
    assert_eq!(report(anothers(&of_another)), differs);
    // More than was paid, with what had succeeded before: recorded and marked.
    let rest = refund("re_2", 91, RefundStatus::Succeeded);
    let with_ten = hear(&paid, &ours, report_of(&rest), anothers(&paid.id));
    let marked = after(&paid, with_ten.unwrap().unwrap());
    assert_eq!(marked.refund, Some(rest));
    assert!(matches!(marked.outcomes[..], [UserOutcome::CheckoutStuck(_)]) && marked.movements.is_empty());
    assert_eq!(marked.next.unwrap().stuck, Some(StuckReason::AmountDiffers));
}

impl Refunds {
    /// The provider reports a refund.
    fn report(&mut self, id: &str, amount: i64, status: RefundStatus) -> Transition {
        let (now, payment) = (refund(id, amount, status), PaymentId::parse("pi_1").unwrap());
        let known = Known {
            refunds: self.known.clone(),
            frees_seats: true,
            ..Known::default()
        };
        let report = ProviderReport {
            checkout: &now.checkout,
            payment: &payment,
            what: report_of(&now),
        };
        let fact = self.row.hear(&report, known).unwrap();
        self.apply(fact.unwrap())
    }
}

#[test]
fn a_refund_is_not_forgotten_where_the_failure_of_the_one_before_is_told_later() {
    use RefundStatus::{Failed, Succeeded};
    // The shop has taken the seat back, and so the checkout stays completed.
    let mut kept = completed(None);
    kept.lines[0].returned = true;
    let mut undone = Refunds::of(checkout(State::Undoing(CheckoutFailure::SeatsGone.into())));
    undone.apply(Fact::GivenBack { captured: 100 });
    let marked = Some(StuckReason::AmountDiffers);
    for (mut order, state, mark) in [
        (Refunds::of(kept), "completed", marked),
        (Refunds::of(completed(None)), "refunded", marked),
        (undone, "failed", None),
    ] {
        order.report("re_1", 100, Succeeded);
        let again = order.report("re_2", 100, Succeeded);
        assert_eq!((moved_by(&again), again.mails), (vec![], vec![]), "{state}");
        assert_eq!((order.row.stuck, order.known.len()), (mark, 2), "{state}");
        assert!(order.report("re_2", 100, Succeeded).is_nothing(), "{state}");
        let late = order.report("re_1", 100, Failed);
        assert!(late.movements.is_empty() && late.mails.is_empty(), "{state}: {late:?}");
        assert_eq!(
            (order.row.state.name(), order.row.refunded, order.row.stuck),
            (state, 100, None)
        );
        // Should that one fail as well, nothing is given back.
        assert_eq!(
            moved_by(&order.report("re_2", 100, Failed)),
            [(MovementKind::RefundFailed, 100)],
            "{state}"
        );
        assert_eq!(order.row.refunded, 0, "{state}");
    }
}

#[test]
fn no_seat_is_freed_by_refunds_that_are_more_than_was_paid() {
    use RefundStatus::{Failed, Succeeded};
    let mut parts = Refunds::of(completed(None));
    parts.report("re_1", 60, Succeeded);
    let again = parts.report("re_2", 60, Succeeded);
    assert!(again.seats == Seats::Kept && again.movements.is_empty(), "{again:?}");
    parts.report("re_1", 60, Failed);
    assert_eq!(
        (parts.row.state.name(), parts.row.refunded, parts.row.stuck),
        ("completed", 60, None)
    );
    // What the later one gives back beyond the earlier one is booked and told once there is room.
    let mut whole = Refunds::of(completed(None));
    whole.report("re_1", 30, Succeeded);
    assert!(whole.report("re_2", 100, Succeeded).movements.is_empty());
    let booked = whole.report("re_1", 30, Failed);
    assert_eq!(moved_by(&booked), [(MovementKind::Refund, 70)]);
    assert!(matches!(&booked.outcomes[..], [UserOutcome::PaymentRefunded(told)] if told.full));
    assert_eq!(booked.seats, Seats::Returned { resell: true });
    assert_eq!(
        (whole.row.state.name(), whole.row.refunded, whole.row.stuck),
        ("refunded", 100, None)
    );
}

#[test]
fn a_step_that_fails_for_too_long_makes_the_checkout_stuck_and_tells_it_once() {
    let patience = std::time::Duration::from_secs(60);
    let fails = |checkout: &Checkout, at: Duration| apply(checkout, Fact::StepFailed { patience }, now() + at);
    let first = fails(&checkout(State::Created), Duration::ZERO);
    assert!(first.is_row_alone());
    let since = first.next.unwrap();
    assert!(fails(&since, MINUTE).is_nothing(), "it is waited out");
    let stuck = fails(&since, MINUTE + Duration::SECOND);
    assert!(matches!(stuck.outcomes[..], [UserOutcome::CheckoutStuck(_)]));
    let stuck = stuck.next.unwrap();
    assert!(stuck.stuck == Some(StuckReason::StepFails) && fails(&stuck, MINUTE * 3).is_nothing());
    for mended in [Fact::Resumed, Fact::Heard] {
        let resumed = after(&stuck, mended).next.unwrap();
        assert_eq!((resumed.stuck, resumed.unknown_since), (None, None));
    }
    // Whatever comes through ends it.
    let declined = after(&stuck, declined(None)).next.unwrap();
    assert_eq!((declined.stuck, declined.unknown_since), (None, None));
}

#[test]
fn an_amount_that_differs_makes_the_checkout_stuck_until_an_operator_resumes_it() {
    for state in [State::Created, State::Sold, State::Completed] {
        let stuck = after(&checkout(state.clone()), Fact::AmountDiffers);
        assert!(matches!(stuck.outcomes[..], [UserOutcome::CheckoutStuck(_)]));
        let stuck = stuck.next.unwrap();
        assert_eq!((&stuck.state, stuck.stuck), (&state, Some(StuckReason::AmountDiffers)));
        assert!(after(&stuck, Fact::AmountDiffers).is_nothing());
        assert!(after(&stuck, Fact::Heard).is_nothing(), "the provider has told it");
        assert_eq!(after(&stuck, Fact::Resumed).next.unwrap().stuck, None);
    }
}

fn declined(code: Option<&str>) -> Fact {
    Fact::Declined {
        code: code.map(|code| DeclineCode::parse(code).unwrap()),
        for_good: false,
    }
}

fn method(name: &str) -> PaymentMethod {
    PaymentMethod::parse(name).unwrap()
}

#[test]
fn another_payment_method_may_be_tried_until_the_holds_end_and_each_decline_is_told_once() {
    let mut row = Checkout {
        called_at: Some(now()),
        payment: PaymentId::parse("pi_1").ok(),
        ..checkout(State::Created)
    };
    for attempt in 1..MOST_ATTEMPTS {
        let told = after(&row, declined(Some("lost_card")));
        assert!(
            matches!(told.outcomes[..], [UserOutcome::CheckoutPaymentDeclined(_)]),
            "{told:?}"
        );
        row = told.next.unwrap();
        assert!(after(&row, declined(Some("late"))).is_nothing());
        for stale in [attempt - 1, attempt + 1] {
            let method = method("pm_2");
            assert!(
                after(&row, Fact::Retried { attempt: stale, method }).is_nothing(),
                "{stale}"
            );
        }
        let late = apply(&row, Fact::Payment(PaymentStatus::Unconfirmed), now() + MINUTE)
            .next
            .unwrap();
        let failure = late.state.failure().unwrap();
        assert_eq!(
            (failure.reason, failure.code.as_ref().map(DeclineCode::as_str)),
            (CheckoutFailure::Declined, Some("lost_card"))
        );
        row = after(
            &row,
            Fact::Retried {
                attempt,
                method: method("pm_2"),
            },
        )
        .next
        .unwrap();
        assert_eq!(
            (&row.state, row.attempt, row.method.clone()),
            (&State::Created, attempt, Some(method("pm_2")))
        );
    }
    let last = after(&row, declined(None)).next.unwrap();
    assert!(
        matches!(last.state, State::Undoing(_)),
        "so many cards are tried out: {last:?}"
    );
}

#[test]
fn what_no_other_payment_method_mends_is_undone_at_once() {
    let fact = Fact::Declined {
        code: None,
        for_good: true,
    };
    for state in [State::Opened, State::Created, State::Declined(None)] {
        let next = after(&checkout(state), fact.clone()).next.unwrap();
        assert_eq!(next.state, State::Undoing(CheckoutFailure::Declined.into()));
    }
}

#[test]
fn a_late_success_of_a_declined_payment_is_not_lost() {
    let late = after(
        &checkout(State::Declined(None)),
        Fact::Payment(PaymentStatus::Authorised),
    );
    assert_eq!(late.next.unwrap().state, State::Authorised);
}

#[test]
fn a_payment_that_was_never_made_is_made_with_the_other_payment_method() {
    let unmade = Checkout {
        called_at: Some(now()),
        ..checkout(State::Declined(None))
    };
    let next = after(
        &unmade,
        Fact::Retried {
            attempt: 1,
            method: method("pm_2"),
        },
    )
    .next
    .unwrap();
    assert_eq!(
        (&next.state, next.next(now())),
        (&State::Opened, Next::Take(Step::Create))
    );
}

#[test]
fn a_customer_is_asked_once_at_each_beginning_of_the_waiting() {
    let made = Checkout {
        payment: PaymentId::parse("pi_1").ok(),
        ..checkout(State::Created)
    };
    let (asks, works) = (PaymentStatus::ActionRequired, PaymentStatus::Processing);
    let mut row = made;
    for (status, state, told) in [
        (asks, State::Waiting, 1),
        (asks, State::Waiting, 0),
        (works, State::Processing, 0),
        (works, State::Processing, 0),
        (asks, State::Waiting, 1),
    ] {
        let transition = after(&row, Fact::Payment(status));
        assert_eq!(transition.outcomes.len(), told, "{status:?} on {row:?}");
        row = transition.next.unwrap_or(row);
        assert_eq!(row.state, state);
    }
}

#[test]
fn what_was_spent_and_sold_goes_back_when_a_checkout_fails() {
    let undoing = State::Undoing(CheckoutFailure::NotCaptured.into());
    let spent = Checkout {
        credits: Credits::new(40).ok(),
        sold: true,
        ..checkout(undoing)
    };
    let failed = after(&spent, Fact::GivenBack { captured: 60 });
    let back = [
        (MovementKind::CreditBack, 40),
        (MovementKind::Capture, 60),
        (MovementKind::Refund, 60),
    ];
    assert_eq!(moved_by(&failed), back);
    assert_eq!(failed.credits, Some(CreditsChange::Returned(Credits::new(40).unwrap())));
    assert_eq!(failed.seats, Seats::Returned { resell: true });
    let unsold = after(&Checkout { sold: false, ..spent }, Fact::GivenBack { captured: 0 });
    assert_eq!((moved_by(&unsold), unsold.credits), (vec![], None), "nothing was spent");
    assert_eq!(unsold.seats, Seats::Kept, "its holds go on");
}

fn any_amount(_: Price) -> Result<(), UserRefusalReason> {
    Ok(())
}

fn fifty_or_more(due: Price) -> Result<(), UserRefusalReason> {
    match due.amount() {
        50.. => Ok(()),
        _ => Err(UserRefusalReason::BelowMinimum),
    }
}

#[test]
fn a_checkout_is_opened_at_the_prices_of_the_holds_or_refused_by_the_first_rule_that_forbids_it() {
    let (id, ann, method) = (
        CheckoutId::parse("c-1").unwrap(),
        user("ann"),
        PaymentMethod::parse("pm_1").unwrap(),
    );
    let cart = [line().ticket];
    let wish = |credits: i64| Wish {
        id: &id,
        user: &ann,
        named: None,
        cart: &cart,
        credits: Credits::new(credits).ok(),
        method: Some(&method),
        trace: None,
    };
    let terms = SaleTerms {
        charges: Some(any_amount),
        refunds: any_amount,
        credits: Some(Currency::EUR),
        show_limit: Some(1),
        refund_frees_seats: true,
        hold: Duration::ZERO,
    };
    let stock = |ticket: Ticket| Stock {
        tickets: HashMap::from([("A1".to_owned(), ticket)]),
        ..Stock::default()
    };
    let ours = || stock(held("ann", "1", now() + MINUTE));
    let opened = open(&wish(40), terms, &ours(), now()).unwrap();
    let [UserOutcome::CheckoutOpened(outcomes::CheckoutOpened { total, .. })] = &opened.outcomes[..] else {
        panic!("{:?}", opened.outcomes);
    };
    let next = opened.next.unwrap();
    assert_eq!((*total, next.due(), next.lines.clone()), (price(100), 60, vec![line()]));
    assert!(wish(40).is_met_by(&next));
    let no = |wish: Wish<'_>, terms, stock: Stock| open(&wish, terms, &stock, now()).unwrap_err();
    use UserRefusalReason as No;
    let twice = [line().ticket, line().ticket];
    let unpaid = Wish {
        method: None,
        ..wish(0)
    };
    for (found, expected) in [
        (no(Wish { cart: &[], ..wish(0) }, terms, ours()), No::EmptyCart),
        (
            no(
                Wish {
                    cart: &twice,
                    ..wish(0)
                },
                terms,
                ours(),
            ),
            No::TicketTwice,
        ),
        (
            no(wish(0), terms, stock(held("bob", "2", now() + MINUTE))),
            No::NotYourHold,
        ),
        (no(wish(0), terms, stock(held("ann", "1", now()))), No::NotYourHold),
        (no(wish(101), terms, ours()), No::CreditsTooMany),
        (no(unpaid, terms, ours()), No::NoPaymentMethod),
        (
            no(wish(0), SaleTerms { charges: None, ..terms }, ours()),
            No::NoProvider,
        ),
        (no(wish(1), SaleTerms { credits: None, ..terms }, ours()), No::NoLoyalty),
        (
            no(
                wish(40),
                terms,
                Stock {
                    credits: Some(39),
                    ..ours()
                },
            ),
            No::CreditsMissing,
        ),
        (
            no(
                wish(60),
                SaleTerms {
                    charges: Some(fifty_or_more),
                    ..terms
                },
                ours(),
            ),
            No::BelowMinimum,
        ),
        (
            no(
                wish(0),
                terms,
                Stock {
                    bought: HashMap::from([("gala".to_owned(), 1)]),
                    ..ours()
                },
            ),
            No::ShowLimit,
        ),
        (
            no(
                wish(0),
                terms,
                Stock {
                    under_way: true,
                    ..ours()
                },
            ),
            No::CheckoutUnderWay,
        ),
        (
            no(
                wish(0),
                terms,
                Stock {
                    accounts_differ: true,
                    ..ours()
                },
            ),
            No::AccountsDiffer,
        ),
    ] {
        assert_eq!(found, expected);
    }
}

#[test]
fn a_checkout_lengthens_each_hold_once_to_at_least_a_set_time() {
    let (id, ann, method) = (CheckoutId::parse("c-1").unwrap(), user("ann"), method("pm_1"));
    let cart = ["A1", "A2"].map(|ticket| TicketId::parse(ticket).unwrap());
    let wish = Wish {
        id: &id,
        user: &ann,
        named: None,
        cart: &cart,
        credits: None,
        method: Some(&method),
        trace: None,
    };
    let terms = SaleTerms {
        charges: Some(any_amount),
        refunds: any_amount,
        credits: None,
        show_limit: None,
        refund_frees_seats: true,
        hold: 10 * MINUTE,
    };
    let lengthened = |mut ticket: Ticket| {
        if let TicketState::Held(hold) = &mut ticket.state {
            hold.lengthened = true;
        }
        ticket
    };
    let opened = |one: &Ticket, two: &Ticket| {
        let stock = Stock {
            tickets: HashMap::from([("A1".to_owned(), one.clone()), ("A2".to_owned(), two.clone())]),
            ..Stock::default()
        };
        let opened = open(&wish, terms, &stock, now()).unwrap();
        (opened.seats, opened.next.unwrap().until - now())
    };
    let held = |minutes: i32| held("ann", "1", now() + minutes * MINUTE);
    let at_least = now() + 10 * MINUTE;
    assert_eq!(opened(&held(12), &held(11)), (Seats::Kept, 11 * MINUTE));
    assert_eq!(opened(&held(12), &held(1)), (Seats::HeldUntil(at_least), 10 * MINUTE));
    assert_eq!(
        opened(&held(2), &lengthened(held(3))),
        (Seats::HeldUntil(at_least), 3 * MINUTE)
    );
    assert_eq!(opened(&held(12), &lengthened(held(3))), (Seats::Kept, 3 * MINUTE));

    let input = |ticket: &Ticket| lengthening(&line(), Some(ticket), at_least);
    let hold = hold("1");
    assert_eq!(input(&held(1)), Some(Input::Lengthen { hold, until: at_least }));
    for other in [
        held(10),
        lengthened(held(1)),
        self::held("ann", "2", now()),
        ticket(TicketState::Available),
    ] {
        assert_eq!(input(&other), None, "{other:?}");
    }
    // The timer of the end that was put off ends nothing.
    let Decision::Transition { next, .. } = ticket::decide(Some(&held(1)), input(&held(1)).unwrap(), now()) else {
        panic!("it is lengthened");
    };
    let expire = |after| ticket::decide(next.as_ref(), Input::Expire { hold }, now() + after);
    assert_eq!(expire(5 * MINUTE), Decision::Nothing);
    assert!(matches!(expire(10 * MINUTE), Decision::Transition { .. }));
}

#[test]
fn every_event_about_a_checkout_names_it() {
    let checkout = CheckoutId::parse("c-1").unwrap();
    let requested = UserEvent::CheckoutRequested(events::CheckoutRequested {
        checkout: checkout.clone(),
        payment_method: None,
        credits: None,
        tickets: None,
    });
    let failed = UserEvent::PaymentFailed(events::PaymentFailed {
        checkout: checkout.clone(),
        payment: PaymentId::parse("pi_1").unwrap(),
        code: DeclineCode::parse("late").unwrap(),
    });
    let retried = UserEvent::CheckoutRetried(events::CheckoutRetried {
        checkout: checkout.clone(),
        payment_method: method("pm_2"),
    });
    let cancelled = UserEvent::CheckoutCancelled(events::CheckoutCancelled {
        checkout: checkout.clone(),
    });
    for event in [requested, failed, retried, cancelled] {
        assert_eq!(Matter::of(&event).unwrap().checkout(), &checkout);
    }
    assert!(Matter::of(&UserEvent::UserErased(events::UserErased {})).is_none());
}

/// A completed order of the seats A1 and A2 at 50 each, of which credits paid a part.
fn order_of_two(credits: Option<i64>) -> Checkout {
    let seat = |name: &str| Line {
        ticket: TicketId::parse(name).unwrap(),
        price: price(50),
        ..line()
    };
    Checkout {
        lines: vec![seat("A1"), seat("A2")],
        ..completed(credits)
    }
}

fn returned(tickets: Option<&[&str]>, refund: Option<i64>) -> events::OrderReturned {
    let tickets = tickets.map(|tickets| tickets.iter().map(|ticket| TicketId::parse(ticket).unwrap()).collect());
    events::OrderReturned {
        checkout: checkout(State::Completed).id,
        tickets: tickets.map(|tickets| List::new(tickets).unwrap()),
        refund: refund.map(price),
        resell: true,
    }
}

fn take_back(order: &Checkout, asked: &events::OrderReturned) -> Transition {
    after(order, order.hear_of_return(asked, any_amount).unwrap())
}

fn repayments(order: &Checkout) -> Vec<Repaid> {
    order.repayments.iter().map(|repayment| repayment.what).collect()
}

#[test]
fn a_return_gives_back_what_its_tickets_cost_of_the_money_first_and_then_of_the_credits() {
    let order = order_of_two(Some(40));
    let first = take_back(&order, &returned(Some(&["A2"]), None));
    assert_eq!(first.seats, Seats::Returned { resell: true });
    let [UserOutcome::OrderReturned(told)] = &first.outcomes[..] else {
        panic!("{:?}", first.outcomes);
    };
    assert_eq!((told.tickets.len(), told.refund, told.credits), (1, price(50), None));
    let order = first.next.unwrap();
    assert_eq!(repayments(&order), [Repaid::Money(50)]);
    let refund_asked = Next::Take(Step::Refund { number: 1, amount: 50 });
    assert_eq!((order.next(now()), &order.state), (refund_asked, &State::Completed));
    let rest = take_back(&order, &returned(None, None)).next.unwrap();
    let credits = Credits::new(40).unwrap();
    assert_eq!(
        repayments(&rest),
        [50, 10]
            .map(Repaid::Money)
            .into_iter()
            .chain([Repaid::Credits(credits)])
            .collect::<Vec<_>>()
    );
    assert!(rest.lines.iter().all(|line| line.returned));
    let nothing = rest.hear_of_return(&returned(None, None), any_amount);
    assert_eq!(nothing, Err(UserRefusalReason::NothingToReturn));
}

#[test]
fn a_return_names_its_amount_or_none_and_leaves_the_seats_where_it_names_none() {
    let order = order_of_two(None);
    let goodwill = take_back(&order, &returned(Some(&[]), Some(15)));
    assert_eq!(
        (goodwill.seats, repayments(&goodwill.next.unwrap())),
        (Seats::Kept, vec![Repaid::Money(15)])
    );
    let free = take_back(&order, &returned(None, Some(0)));
    assert_eq!(
        (free.seats, repayments(&free.next.unwrap())),
        (Seats::Returned { resell: true }, vec![])
    );
    let off_sale = events::OrderReturned {
        resell: false,
        ..returned(None, None)
    };
    assert_eq!(take_back(&order, &off_sale).seats, Seats::Returned { resell: false });
}

#[test]
fn a_return_that_does_not_fit_the_order_is_refused() {
    use UserRefusalReason as No;
    let order = order_of_two(Some(40));
    let refused = |order: &Checkout, asked| order.hear_of_return(&asked, any_amount).unwrap_err();
    assert_eq!(refused(&order, returned(Some(&["A3"]), None)), No::NotInOrder);
    assert_eq!(refused(&order, returned(None, Some(101))), No::RefundTooHigh);
    assert_eq!(refused(&order, returned(Some(&[]), Some(0))), No::NothingToReturn);
    let dollars = events::OrderReturned {
        refund: Some(Price::new(1, Currency::USD).unwrap()),
        ..returned(None, None)
    };
    assert_eq!(refused(&order, dollars), No::WrongCurrency);
    let once = take_back(&order, &returned(Some(&["A1"]), Some(70))).next.unwrap();
    assert_eq!(
        refused(&once, returned(Some(&["A1"]), None)),
        No::NotInOrder,
        "it was returned before"
    );
    assert_eq!(refused(&once, returned(None, Some(31))), No::RefundTooHigh);
    for state in [
        State::Authorised,
        State::Sold,
        State::Failed(CheckoutFailure::Cancelled.into()),
    ] {
        assert_eq!(refused(&checkout(state), returned(None, None)), No::NotCompleted);
    }
}

#[test]
fn a_return_of_money_that_the_provider_never_refunds_is_refused() {
    fn ending_in_0(amount: Price) -> Result<(), UserRefusalReason> {
        match amount.amount() % 10 {
            0 => Ok(()),
            _ => Err(UserRefusalReason::AmountNotSupported),
        }
    }
    let mut order = order_of_two(None);
    (order.lines[0].price, order.lines[1].price) = (price(55), price(45));
    let refused = Err(UserRefusalReason::AmountNotSupported);
    for asked in [returned(Some(&["A1"]), None), returned(Some(&[]), Some(1))] {
        assert_eq!(order.hear_of_return(&asked, ending_in_0), refused, "{asked:?}");
    }
    for asked in [
        returned(None, None),
        returned(Some(&["A1"]), Some(50)),
        returned(None, Some(0)),
    ] {
        assert!(order.hear_of_return(&asked, ending_in_0).is_ok(), "{asked:?}");
    }
    // Credits are no matter of the provider's.
    let spent = completed(Some(100));
    assert!(spent.hear_of_return(&returned(None, Some(1)), ending_in_0).is_ok());
}

#[test]
fn a_repayment_is_settled_once_and_its_refund_booked_once_whoever_tells_of_it_first() {
    let order = take_back(&order_of_two(None), &returned(None, None)).next.unwrap();
    let made = refund("re_1", 100, RefundStatus::Succeeded);
    let answer = |known| Fact::RefundMade {
        number: 1,
        made: Some((made.clone(), known)),
    };
    let booked = after(&order, answer(vec![]));
    let settled = booked.next.clone().unwrap();
    assert_eq!(moved_by(&booked), [(MovementKind::PartialRefund, 100)]);
    assert_eq!(
        (settled.next(now()), &settled.state, settled.refunded),
        (Next::End, &State::Completed, 100)
    );
    assert!(after(&settled, answer(vec![made.clone()])).is_nothing(), "a repeat");
    // The provider's own report came first.
    let told = Fact::RefundChanged {
        now: made.clone(),
        known: vec![],
        frees_seats: true,
    };
    let heard = after(&order, told).next.unwrap();
    assert_eq!((&heard.state, heard.refunded), (&State::Completed, 100));
    let late = after(&heard, answer(vec![made.clone()]));
    assert!(late.is_row_alone() && late.next.unwrap().next(now()) == Next::End);
}

#[test]
fn credits_are_repaid_once() {
    let order = take_back(&order_of_two(Some(100)), &returned(Some(&["A1"]), None))
        .next
        .unwrap();
    assert_eq!(order.next(now()), Next::Take(Step::RepayCredits(1)));
    let repaid = after(&order, Fact::CreditsRepaid(1));
    let credits = Credits::new(50).unwrap();
    assert_eq!(repaid.credits, Some(CreditsChange::Repaid { number: 1, credits }));
    assert_eq!(moved_by(&repaid), [(MovementKind::CreditBack, 50)]);
    let settled = repaid.next.unwrap();
    assert!(settled.next(now()) == Next::End && after(&settled, Fact::CreditsRepaid(1)).is_nothing());
}

#[test]
fn a_refund_by_hand_frees_no_seats_where_the_setting_says_so_or_the_shop_has_returned_some() {
    let by_hand = |order: &Checkout, frees_seats| {
        let (in_all, known) = (100, vec![]);
        let fact = Fact::Refunded {
            in_all,
            known,
            frees_seats,
        };
        let booked = after(order, fact);
        (booked.seats, booked.next.unwrap().state)
    };
    let order = order_of_two(None);
    assert_eq!(
        by_hand(&order, true),
        (Seats::Returned { resell: true }, State::Refunded)
    );
    assert_eq!(by_hand(&order, false), (Seats::Kept, State::Completed));
    let part = take_back(&order, &returned(Some(&["A1"]), None)).next.unwrap();
    assert_eq!(by_hand(&part, true), (Seats::Kept, State::Completed));
}

#[test]
fn a_refund_for_a_seat_that_was_taken_back_asks_for_an_operator_when_it_fails() {
    use RefundStatus::{Failed, Succeeded};
    let order = take_back(&order_of_two(None), &returned(Some(&["A1"]), None))
        .next
        .unwrap();
    let mut order = Refunds::of(order);
    order.hear("re_1", 50, Succeeded);
    let failed = order.hear("re_1", 50, Failed);
    assert_eq!(
        (order.row.stuck, order.row.refunded),
        (Some(StuckReason::RefundFailed), 0)
    );
    assert_eq!(failed.outcomes.len(), 2);
    order.hear("re_2", 50, Succeeded);
    assert_eq!((order.row.stuck, order.row.refunded), (None, 50));
}
