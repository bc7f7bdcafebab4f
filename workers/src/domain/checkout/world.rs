//! A world around the rules: a provider that loses requests and answers, a seat that others want, credits that may be missing, and
//! drivers that are slow, die and overtake each other. However it goes, in the end money and seats are both given or neither,
//! by the provider's own books too.

use holdfast_schemas::{CheckoutFailure, Credits, List, PaymentId, PaymentMethod, RefundId, RefundStatus, events};
use proptest::prelude::*;
use time::{Duration, OffsetDateTime};

use super::histories::Books;
use super::tests::{checkout, now, price};
use super::{
    Checkout, CreditsChange, Fact, Known, Next, PaymentStatus, ProviderReport, Refund, Reported, Seats, State, Step,
    StuckReason, apply,
};

/// Histories of the test below.
const HISTORIES: u32 = 60_000;

/// The payment, as the provider has it.
#[derive(Debug)]
struct Charge {
    status: PaymentStatus,
    declined: bool,
    /// The attempt that it was confirmed by last.
    attempt: i32,
    captured: i64,
    refunds: Vec<Refund>,
    /// The places of the refunds that were made for repayments, by their numbers.
    repaid: Vec<(usize, usize)>,
    /// What the provider has told as refunded in all, each time that it told so.
    totals: Vec<i64>,
    /// What the checkout asked for.
    due: i64,
}

/// Who has the seat.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seat {
    /// Held for the checkout until its `until`, free from then on.
    Held,
    Free,
    Ours,
    Anothers,
}

/// A driver that has read the row, and perhaps taken the step; it has yet to record what it learnt.
#[derive(Debug)]
struct Drive {
    seen: Checkout,
    step: Step,
    learnt: Option<Fact>,
}

#[derive(Debug)]
struct World {
    clock: OffsetDateTime,
    row: Checkout,
    books: Books,
    charge: Option<Charge>,
    seat: Seat,
    credits: i64,
    drives: [Option<Drive>; 3],
}

/// The luck of a call.
#[derive(Clone, Copy, PartialEq)]
enum Luck {
    Good,
    Declined,
    RequestLost,
    AnswerLost,
}

impl Luck {
    fn of(choice: u8) -> Self {
        match choice % 16 {
            0 | 1 => Self::RequestLost,
            2 | 3 => Self::AnswerLost,
            4 | 5 => Self::Declined,
            _ => Self::Good,
        }
    }
}

impl World {
    fn new(choice: u8) -> Self {
        let credits = [None, Credits::new(40).ok(), Credits::new(100).ok()][usize::from(choice) % 3];
        Self {
            clock: now() - Duration::minutes(10),
            row: Checkout {
                credits,
                called_at: (credits.map_or(0, Credits::amount) < 100).then_some(now() - Duration::minutes(10)),
                ..checkout(State::Opened)
            },
            books: Books::default(),
            charge: None,
            seat: Seat::Held,
            credits: [1_000, 1_000, 30][usize::from(choice / 3) % 3],
            drives: [None, None, None],
        }
    }

    fn happen(&mut self, kind: u8, choice: u8) -> Result<(), String> {
        match kind % 18 {
            0..=8 => return self.drive(usize::from(kind % 3), choice),
            9 => self.clock += Duration::seconds(i64::from(choice)),
            10 if choice < 8 => self.clock += Duration::hours(i64::from(choice) * 4),
            11 => self.another_buyer_comes(),
            12 => self.customer_answers(choice),
            13 if choice < 64 => self.drives[usize::from(choice) % 3] = None,
            14 => return self.someone_steps_in(choice),
            15.. => return self.refunds_go_on(choice),
            _ => {}
        }
        Ok(())
    }

    /// One of three things that a driver does: read, take the step, record what it learnt or keep it in mind.
    fn drive(&mut self, slot: usize, choice: u8) -> Result<(), String> {
        match self.drives[slot].take() {
            None => {
                self.go_on(slot, self.row.clone(), choice);
                Ok(())
            }
            Some(Drive {
                seen, step: Step::Sell, ..
            }) => self.sell(&seen),
            Some(Drive {
                seen,
                learnt: Some(fact),
                ..
            }) => match seen.with(&fact, self.clock) {
                Some(seen) => {
                    self.go_on(slot, seen, choice);
                    Ok(())
                }
                None => self.record(&seen, fact),
            },
            Some(Drive { seen, step, .. }) => {
                let patience = std::time::Duration::from_secs(60);
                let fact = self.take(&seen, &step, Luck::of(choice));
                let learnt = fact.or(Some(Fact::StepFailed { patience }));
                self.drives[slot] = Some(Drive { seen, step, learnt });
                Ok(())
            }
        }
    }

    fn go_on(&mut self, slot: usize, seen: Checkout, choice: u8) {
        let step = match seen.next(self.clock) {
            Next::Take(step) if seen.stuck.is_none() => step,
            Next::Wait { step, .. } if choice < 64 => step,
            _ => return,
        };
        let learnt = None;
        self.drives[slot] = Some(Drive { seen, step, learnt });
    }

    /// Calls the provider; none when no answer tells anything.
    fn take(&mut self, seen: &Checkout, step: &Step, luck: Luck) -> Option<Fact> {
        if luck == Luck::RequestLost
            && !matches!(
                step,
                Step::Complete | Step::Fail | Step::ReturnCredits | Step::RepayCredits(_)
            )
        {
            return None;
        }
        let fact = match step {
            Step::Create if luck == Luck::Declined && self.charge.is_none() => declined(),
            Step::Create | Step::Find => match self.find(seen) {
                true => Fact::PaymentMade(payment()),
                false => Fact::NoPayment,
            },
            Step::Authorise(_) => {
                let charge = self.charge.as_mut().expect("it was made");
                if charge.status == PaymentStatus::Unconfirmed && (!charge.declined || seen.attempt > charge.attempt) {
                    charge.attempt = seen.attempt;
                    charge.declined = luck == Luck::Declined;
                    charge.status = match (luck, self.clock.second() % 3) {
                        (Luck::Declined, _) => PaymentStatus::Unconfirmed,
                        (_, 0) => PaymentStatus::ActionRequired,
                        (_, 1) => PaymentStatus::Processing,
                        _ => PaymentStatus::Authorised,
                    };
                }
                charge.fact()
            }
            Step::Look => match self.find(seen) {
                true => self.charge.as_ref().expect("it was found").fact(),
                false => Fact::NoPayment,
            },
            Step::Capture(_) => {
                let charge = self.charge.as_mut().expect("it was authorised");
                if charge.status == PaymentStatus::Authorised {
                    (charge.status, charge.captured) = (PaymentStatus::Captured, seen.due());
                }
                match charge.status {
                    PaymentStatus::Captured if charge.captured != charge.due => Fact::AmountDiffers,
                    PaymentStatus::Captured => Fact::Captured { frees_seats: true },
                    PaymentStatus::Processing => Fact::Payment(PaymentStatus::Processing),
                    PaymentStatus::Unconfirmed if charge.declined => Fact::DebitFailed(None),
                    _ => Fact::NotCaptured,
                }
            }
            Step::GiveBack => match self.give_back(seen) {
                Some(captured) => Fact::GivenBack { captured },
                None => Fact::Payment(PaymentStatus::Processing),
            },
            Step::Complete => Fact::Captured { frees_seats: true },
            Step::Fail => Fact::GivenBack { captured: 0 },
            Step::ReturnCredits => Fact::CreditsReturned,
            Step::Refund { number, amount } => {
                let charge = self.charge.as_mut().expect("it was captured");
                let made = charge.repay(*number, *amount, self.clock.second().is_multiple_of(2));
                let made = made.map(|made| (made, self.books.known()));
                Fact::RefundMade { number: *number, made }
            }
            Step::RepayCredits(number) => Fact::CreditsRepaid(*number),
            Step::Sell => unreachable!("sold in its own transaction"),
        };
        (luck != Luck::AnswerLost).then_some(fact)
    }

    /// True if there is a payment; makes it where its idempotency key still lives.
    fn find(&mut self, seen: &Checkout) -> bool {
        if self.charge.is_none() && seen.key_lives(self.clock) {
            self.charge = Some(Charge {
                status: PaymentStatus::Unconfirmed,
                declined: false,
                attempt: seen.attempt,
                captured: 0,
                refunds: vec![],
                repaid: vec![],
                totals: vec![],
                due: seen.due(),
            });
        }
        self.charge.is_some() && seen.called_at.is_some()
    }

    /// None while the bank is working on the payment.
    fn give_back(&mut self, seen: &Checkout) -> Option<i64> {
        if !self.find(seen) {
            return Some(0);
        }
        let charge = self.charge.as_mut().expect("it was found");
        match charge.status {
            PaymentStatus::Captured => charge.refund(charge.captured, self.clock.second().is_multiple_of(2)),
            PaymentStatus::Processing => return None,
            _ => charge.status = PaymentStatus::Canceled,
        }
        Some(charge.captured)
    }

    /// The sale learns and records in one transaction, against the version that was read.
    fn sell(&mut self, seen: &Checkout) -> Result<(), String> {
        if seen.version != self.row.version {
            return Ok(());
        }
        let spends = seen.credits.map_or(0, Credits::amount);
        let is_free = matches!(self.seat, Seat::Held | Seat::Free);
        let fact = match (spends <= self.credits, is_free) {
            (false, _) => Fact::CreditsMissing,
            (true, false) => Fact::SeatsGone,
            (true, true) => Fact::SeatsSold,
        };
        if fact == Fact::SeatsSold {
            self.seat = Seat::Ours;
        }
        self.record(seen, fact)
    }

    fn record(&mut self, seen: &Checkout, fact: Fact) -> Result<(), String> {
        if seen.version != self.row.version {
            return Ok(());
        }
        let transition = apply(seen, fact.clone(), self.clock);
        self.books.write(&fact, &transition);
        if matches!(transition.seats, Seats::Returned { .. }) {
            // What it has not sold is not its to return: the hold goes on.
            if std::mem::replace(&mut self.seat, Seat::Free) != Seat::Ours {
                return Err(format!("a seat is returned that was not sold: {self:#?}"));
            }
        }
        match transition.credits {
            Some(CreditsChange::Spent(credits)) => self.credits -= credits.amount(),
            Some(CreditsChange::Returned(credits) | CreditsChange::Repaid { credits, .. }) => {
                self.credits += credits.amount();
            }
            None => {}
        }
        if let Some(next) = transition.next {
            self.row = next;
        }
        self.books.balance(&self.row)
    }

    fn another_buyer_comes(&mut self) {
        let is_free = match self.seat {
            Seat::Held => self.clock >= self.row.until,
            seat => seat == Seat::Free,
        };
        if is_free {
            self.seat = Seat::Anothers;
        }
    }

    fn customer_answers(&mut self, choice: u8) {
        let Some(charge) = &mut self.charge else { return };
        charge.status = match (charge.status, choice % 4) {
            // On the customer's page another card comes through.
            (PaymentStatus::Unconfirmed, 0) if charge.declined => PaymentStatus::Authorised,
            (PaymentStatus::ActionRequired, 0) => PaymentStatus::Unconfirmed,
            (PaymentStatus::ActionRequired, 1) => PaymentStatus::Processing,
            (PaymentStatus::Processing, 0 | 1) => return charge.bank_decides(choice.is_multiple_of(4)),
            (PaymentStatus::ActionRequired | PaymentStatus::Processing, _) => PaymentStatus::Authorised,
            // An authorisation ends by itself after some days.
            (PaymentStatus::Authorised, 0) => PaymentStatus::Canceled,
            (status, _) => status,
        };
    }

    fn someone_steps_in(&mut self, choice: u8) -> Result<(), String> {
        let retried = Fact::Retried {
            attempt: self.row.attempt + 1,
            method: PaymentMethod::parse("pm_2").expect("a visible word"),
        };
        let fact = match choice % 11 {
            0 => Fact::GivenUp(CheckoutFailure::Cancelled),
            1 => Fact::LeftStuck,
            // That mark is taken off once the customer has the money in another way, of which these books know nothing.
            2 | 3 if self.row.stuck == Some(StuckReason::RefundFailed) => return Ok(()),
            2 | 3 => Fact::Resumed,
            4 => Fact::Heard,
            5 => {
                self.money_is_captured_by_hand(choice);
                return Ok(());
            }
            6..=8 => retried,
            9 => Fact::Cancelled,
            10 => match self.row.hear_of_return(&order_returned(choice), |_| Ok(())) {
                Ok(fact) => fact,
                Err(_) => return Ok(()),
            },
            _ => return Ok(()),
        };
        self.record(&self.row.clone(), fact)
    }

    /// An operator captures at the provider, and perhaps less than was authorised.
    fn money_is_captured_by_hand(&mut self, choice: u8) {
        let Some(charge) = &mut self.charge else { return };
        if charge.status == PaymentStatus::Authorised {
            charge.status = PaymentStatus::Captured;
            charge.captured = if choice < 128 { charge.due } else { charge.due / 2 };
        }
    }

    /// An operator refunds at the provider; a refund succeeds, or fails; the provider tells of one by its id, or of the total, and
    /// perhaps what it told before.
    fn refunds_go_on(&mut self, choice: u8) -> Result<(), String> {
        let Some(charge) = &mut self.charge else { return Ok(()) };
        let (kind, place) = (choice % 8, usize::from(choice / 8));
        match kind {
            0 | 1 => charge.refund(i64::from(choice), kind == 0),
            2 | 3 => charge.refund_goes_on(place, kind == 2),
            4 | 5 if !charge.refunds.is_empty() => {
                let mut now = charge.refunds[place % charge.refunds.len()].clone();
                if kind == 5 {
                    now.status = RefundStatus::Pending;
                }
                return self.tell(now);
            }
            6 | 7 if !charge.totals.is_empty() => {
                let in_all = charge.totals[place % charge.totals.len()];
                return self.hear(Reported::Refunded(price(in_all)));
            }
            _ => {}
        }
        Ok(())
    }

    fn tell(&mut self, now: Refund) -> Result<(), String> {
        self.hear(Reported::RefundChanged {
            refund: &now.id,
            amount: now.amount,
            status: now.status,
        })
    }

    fn hear(&mut self, what: Reported<'_>) -> Result<(), String> {
        let known = Known {
            refunds: self.books.known(),
            frees_seats: true,
            ..Known::default()
        };
        let (row, payment) = (self.row.clone(), payment());
        let report = ProviderReport {
            checkout: &row.id,
            payment: &payment,
            what,
        };
        match row.hear(&report, known) {
            Ok(Some(fact)) => self.record(&row, fact),
            Ok(None) => Ok(()),
            Err(reason) => Err(format!("a report is refused: {reason:?}")),
        }
    }

    /// All servers answer, reports arrive, and an operator looks after what is stuck.
    fn come_to_the_end(&mut self) -> Result<(), String> {
        self.drives = [None, None, None];
        for _ in 0..40 {
            for place in 0..self.charge.as_ref().map_or(0, |charge| charge.refunds.len()) {
                let charge = self.charge.as_mut().expect("it has refunds");
                if charge.refunds[place].status == RefundStatus::Pending {
                    charge.refund_goes_on(place, false);
                }
                let now = charge.refunds[place].clone();
                self.tell(now)?;
            }
            if let (State::Sold | State::Undoing(_), Some(charge)) = (&self.row.state, &mut self.charge)
                && charge.status == PaymentStatus::Processing
            {
                charge.bank_decides(self.clock.minute().is_multiple_of(2));
            }
            match self.row.stuck {
                Some(StuckReason::AmountDiffers) => {
                    self.record(&self.row.clone(), Fact::GivenUp(CheckoutFailure::Settled))?;
                }
                Some(StuckReason::RefundFailed) => {
                    let charge = self.charge.as_mut().expect("it has refunds");
                    charge.refund(charge.captured, false);
                    continue;
                }
                _ => {}
            }
            if self.row.stuck.is_some() {
                self.record(&self.row.clone(), Fact::Resumed)?;
            }
            match self.row.next(self.clock) {
                Next::End => return self.judge(),
                Next::Wait { until, .. } => self.clock = until,
                Next::Take(_) => {
                    for _ in 0..9 {
                        self.drive(0, 15)?;
                    }
                    self.drives[0] = None;
                }
            }
        }
        Err(format!("it does not end: {self:#?}"))
    }

    fn judge(&self) -> Result<(), String> {
        let charge = self.charge.as_ref();
        let kept = charge.map_or(0, |charge| charge.captured - charge.refunded());
        let is_open = matches!(
            charge.map(|charge| charge.status),
            Some(PaymentStatus::Authorised | PaymentStatus::ActionRequired | PaymentStatus::Processing)
        );
        let (due, credits) = match self.row.state {
            State::Completed => (self.row.due() - self.row.refunded, -self.row.credits_left()),
            _ => (0, 0),
        };
        let is_given = self.seat == Seat::Ours;
        let is_bought = self.row.state == State::Completed && !self.row.lines[0].returned;
        let changed = self.credits - if self.credits - credits == 30 { 30 } else { 1_000 };
        let is_right = kept == due && !is_open && is_given == is_bought && changed == credits;
        match is_right {
            true => Ok(()),
            false => Err(format!("money and seats do not agree: {self:#?}")),
        }
    }
}

impl Charge {
    fn refunded(&self) -> i64 {
        let those = self
            .refunds
            .iter()
            .filter(|refund| refund.status != RefundStatus::Failed);
        those.map(|refund| refund.amount.amount()).sum()
    }

    /// Refunds so much, or all that is left.
    fn refund(&mut self, most: i64, pending: bool) {
        let amount = most.min(self.captured - self.refunded());
        if amount == 0 {
            return;
        }
        self.refunds.push(Refund {
            id: RefundId::parse(&format!("re_{}", self.refunds.len())).expect("a visible word"),
            checkout: checkout(State::Opened).id,
            amount: price(amount),
            status: if pending {
                RefundStatus::Pending
            } else {
                RefundStatus::Succeeded
            },
        });
        self.totals.push(self.refunded());
    }

    /// A debit comes in, or fails: no money was ever set aside for it.
    fn bank_decides(&mut self, comes_in: bool) {
        if comes_in {
            (self.status, self.captured) = (PaymentStatus::Captured, self.due);
        } else {
            (self.status, self.declined) = (PaymentStatus::Unconfirmed, true);
        }
    }

    /// Makes the refund of a repayment once, as far as so much is left.
    fn repay(&mut self, number: usize, amount: i64, pending: bool) -> Option<Refund> {
        let place = match self.repaid.iter().find(|(made, _)| *made == number) {
            Some((_, place)) => *place,
            None => {
                let place = self.refunds.len();
                self.refund(amount, pending);
                self.refunds.get(place)?;
                self.repaid.push((number, place));
                place
            }
        };
        self.refunds.get(place).cloned()
    }

    fn refund_goes_on(&mut self, place: usize, fails: bool) {
        let count = self.refunds.len().max(1);
        if let Some(refund) = self.refunds.get_mut(place % count) {
            refund.status = match refund.status {
                RefundStatus::Pending if !fails => RefundStatus::Succeeded,
                RefundStatus::Pending | RefundStatus::Succeeded if fails => RefundStatus::Failed,
                status => status,
            };
        }
    }

    fn fact(&self) -> Fact {
        match self.status {
            PaymentStatus::Unconfirmed if self.declined => declined(),
            PaymentStatus::Captured if self.captured != self.due => Fact::AmountDiffers,
            status => Fact::Payment(status),
        }
    }
}

/// The shop returns the order, with or without the seat, and gives back what it cost, a part of it, or nothing.
fn order_returned(choice: u8) -> events::OrderReturned {
    events::OrderReturned {
        checkout: checkout(State::Opened).id,
        tickets: choice
            .is_multiple_of(2)
            .then(|| List::new(vec![]).expect("a short list")),
        refund: [None, Some(price(20)), Some(price(0))][usize::from(choice / 64) % 3],
        resell: true,
    }
}

fn declined() -> Fact {
    Fact::Declined {
        code: None,
        for_good: false,
    }
}

fn payment() -> PaymentId {
    PaymentId::parse("pi_1").expect("a visible word")
}

fn life(choice: u8, happenings: &[(u8, u8)]) -> Result<(), String> {
    let mut world = World::new(choice);
    for (kind, choice) in happenings {
        world.happen(*kind, *choice)?;
    }
    world.come_to_the_end()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: HISTORIES.max(ProptestConfig::default().cases),
        ..ProptestConfig::default()
    })]

    #[test]
    fn money_and_seats_are_both_given_or_neither_whatever_is_lost_or_late(
        choice in any::<u8>(),
        happenings in prop::collection::vec(any::<(u8, u8)>(), 1..48),
    ) {
        prop_assert_eq!(life(choice, &happenings), Ok(()));
    }
}
