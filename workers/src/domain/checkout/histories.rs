//! The tables in docs/payments.md against the rules, and random histories of facts against a model that reads the tables: late
//! facts, repeated ones, and such as no order of events could bring. More histories: `PROPTEST_CASES=1000000`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use holdfast_schemas::{
    CheckoutFailure, Credits, DeclineCode, DisputeFunds, DisputeId, DisputeStatus, OutcomeData, PaymentId,
    PaymentMethod, RefundId, RefundStatus,
};
use proptest::prelude::*;
use time::{Duration, OffsetDateTime};

use super::tests::{checkout, now, price};
use super::{
    Checkout, CreditsChange, CustomerMail, Dispute, Fact, PaymentStatus, Refund, Repaid, Repayment, Returning, Seats,
    State, Step, StuckReason, Transition, apply,
};

const PAGE: &str = include_str!("../../../../docs/payments.md");

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Histories of each test below.
const HISTORIES: u32 = 60_000;

/// The answer of each fact (row) in each state (column).
static TABLE: LazyLock<BTreeMap<&str, BTreeMap<&str, &str>>> = LazyLock::new(|| table("| fact |"));
static EFFECTS: LazyLock<BTreeMap<&str, BTreeMap<&str, &str>>> = LazyLock::new(|| table("| change |"));

/// A table of the page, by the first cell of each row and the heading of each column.
fn table(heading: &str) -> BTreeMap<&'static str, BTreeMap<&'static str, &'static str>> {
    let cells = |line: &'static str| line.split('|').map(str::trim).filter(|cell| !cell.is_empty());
    let mut lines = PAGE.lines().skip_while(|line| !line.starts_with(heading));
    let columns: Vec<_> = cells(lines.next().unwrap()).collect();
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    let rows = rows.map(|line| {
        let row: BTreeMap<_, _> = columns.iter().copied().zip(cells(line)).collect();
        (row[columns[0]], row)
    });
    rows.collect()
}

type NamedFact = (&'static str, Fact);

/// Every fact about a checkout with so much due, under its name in the table.
fn facts(due: i64) -> &'static [NamedFact] {
    static FACTS: LazyLock<BTreeMap<i64, Vec<NamedFact>>> =
        LazyLock::new(|| [0, 60, 100].map(|due| (due, every_fact(due))).into());
    &FACTS[&due]
}

fn every_fact(due: i64) -> Vec<NamedFact> {
    let payment = PaymentId::parse("pi_1").unwrap();
    let mut facts = vec![
        ("payment made", Fact::PaymentMade(payment)),
        ("no payment", Fact::NoPayment),
        ("authorised", Fact::Payment(PaymentStatus::Authorised)),
        ("authorised", Fact::Payment(PaymentStatus::Captured)),
        ("confirmation asked for", Fact::Payment(PaymentStatus::ActionRequired)),
        ("being processed", Fact::Payment(PaymentStatus::Processing)),
        ("unconfirmed", Fact::Payment(PaymentStatus::Unconfirmed)),
        ("unconfirmed", Fact::Payment(PaymentStatus::Canceled)),
        ("declined", declined(None, false)),
        ("declined", declined(DeclineCode::parse("lost_card").ok(), false)),
        ("declined for good", declined(None, true)),
        ("retried", retried(1)),
        ("retried before", retried(0)),
        ("cancelled", Fact::Cancelled),
        ("seats sold", Fact::SeatsSold),
        ("seats gone", Fact::SeatsGone),
        ("limit reached", Fact::LimitReached),
        ("credits missing", Fact::CreditsMissing),
        ("captured", Fact::Captured { frees_seats: true }),
        ("captured", Fact::Captured { frees_seats: false }),
        ("not captured", Fact::NotCaptured),
        ("debit failed", Fact::DebitFailed(None)),
        ("given back", Fact::GivenBack { captured: 0 }),
        ("given back", Fact::GivenBack { captured: due }),
        ("credits returned", Fact::CreditsReturned),
        ("refunded in part", in_all(due / 3)),
        ("refunded in part", in_all(due / 2)),
        ("refunded in full", in_all(due)),
        ("refunded in full", in_all(due + 1)),
        ("refunded in full", told(due, false)),
        ("order returned", returned(true, due / 2, 0)),
        ("order returned", returned(true, 0, 0)),
        ("order returned", returned(false, due, 10)),
        ("refund made", refund_made(1, None)),
        ("refund made", refund_made(1, Some(due / 2))),
        ("refund made", refund_made(2, Some(due))),
        ("credits repaid", Fact::CreditsRepaid(1)),
        ("credits repaid", Fact::CreditsRepaid(2)),
        (
            "refunded in full",
            in_all_beside(due, refund("re_1", due / 3, RefundStatus::Pending)),
        ),
        ("step failed", Fact::StepFailed { patience: PATIENCE }),
        ("given up", Fact::GivenUp(CheckoutFailure::Cancelled)),
        ("amount differs", Fact::AmountDiffers),
        ("resumed", Fact::Resumed),
        ("heard", Fact::Heard),
        ("left stuck", Fact::LeftStuck),
    ];
    for before in [None].into_iter().chain(DISPUTES.map(Some)) {
        for told in DISPUTES {
            let before = before.map(dispute);
            let now = dispute(told);
            facts.push(("disputed", Fact::Disputed { now, before }));
        }
    }
    for (name, status) in REFUNDS {
        for (id, amount) in [("re_1", due / 3), ("re_2", due)] {
            let now = refund(id, amount, status);
            let mut all_known = vec![vec![], vec![refund("re_3", due / 4, RefundStatus::Succeeded)]];
            all_known.extend(REFUNDS.map(|(_, status)| vec![refund(id, amount, status)]));
            let both = [(id, amount), ("re_4", due)];
            all_known.push(
                both.map(|(id, amount)| refund(id, amount, RefundStatus::Succeeded))
                    .into(),
            );
            for known in all_known {
                let now = now.clone();
                let frees_seats = true;
                facts.push((
                    name,
                    Fact::RefundChanged {
                        now,
                        known,
                        frees_seats,
                    },
                ));
            }
        }
    }
    facts
}

/// The facts that have rows of their own.
const RECORDED: [&str; 4] = ["disputed", "refund pending", "refund succeeded", "refund failed"];

const REFUNDS: [(&str, RefundStatus); 3] = [
    ("refund pending", RefundStatus::Pending),
    ("refund succeeded", RefundStatus::Succeeded),
    ("refund failed", RefundStatus::Failed),
];

/// How a dispute may stand, and what is told of its money.
const DISPUTES: [(DisputeStatus, Option<DisputeFunds>); 7] = [
    (DisputeStatus::Inquiry, None),
    (DisputeStatus::Closed, None),
    (DisputeStatus::Opened, None),
    (DisputeStatus::Opened, Some(DisputeFunds::Withdrawn)),
    (DisputeStatus::Won, Some(DisputeFunds::Reinstated)),
    (DisputeStatus::Lost, None),
    (DisputeStatus::Lost, Some(DisputeFunds::Withdrawn)),
];

fn in_all(in_all: i64) -> Fact {
    told(in_all, true)
}

fn told(in_all: i64, frees_seats: bool) -> Fact {
    let known = vec![];
    Fact::Refunded {
        in_all,
        known,
        frees_seats,
    }
}

/// The shop gives so much back, and takes the seat back or not.
fn returned(takes_seat: bool, money: i64, credits: i64) -> Fact {
    let tickets = checkout(State::Opened).lines.into_iter().map(|line| line.ticket);
    Fact::OrderReturned(Returning {
        tickets: tickets.filter(|_| takes_seat).collect(),
        money,
        credits,
        resell: true,
    })
}

fn refund_made(number: usize, amount: Option<i64>) -> Fact {
    let made = amount.map(|amount| (refund("re_9", amount, RefundStatus::Succeeded), vec![]));
    Fact::RefundMade { number, made }
}

fn in_all_beside(in_all: i64, known: Refund) -> Fact {
    let (known, frees_seats) = (vec![known], true);
    Fact::Refunded {
        in_all,
        known,
        frees_seats,
    }
}

fn refund(id: &str, amount: i64, status: RefundStatus) -> Refund {
    Refund {
        id: RefundId::parse(id).unwrap(),
        checkout: checkout(State::Opened).id,
        amount: price(amount),
        status,
    }
}

fn declined(code: Option<DeclineCode>, for_good: bool) -> Fact {
    Fact::Declined { code, for_good }
}

fn retried(attempt: i32) -> Fact {
    let method = PaymentMethod::parse("pm_2").unwrap();
    Fact::Retried { attempt, method }
}

fn dispute((status, funds): (DisputeStatus, Option<DisputeFunds>)) -> Dispute {
    Dispute {
        id: DisputeId::parse("dp_1").unwrap(),
        checkout: checkout(State::Opened).id,
        amount: price(30),
        status,
        funds,
    }
}

/// Of these refunds, the sum in that status.
fn sum(refunds: &[Refund], status: RefundStatus) -> i64 {
    let those = refunds.iter().filter(|refund| refund.status == status);
    those.map(|refund| refund.amount.amount()).sum()
}

/// The cell of the table for a fact.
fn cell(checkout: &Checkout, name: &str, fact: &Fact, now: OffsetDateTime) -> &'static str {
    let mut cell = TABLE[name][checkout.state.name()];
    while let Some((yes, rest)) = cell.split_once(" if ") {
        let (condition, no) = rest.split_once(" else ").unwrap();
        if holds(condition, checkout, fact, now) {
            return yes;
        }
        cell = no;
    }
    cell
}

fn holds(condition: &str, checkout: &Checkout, fact: &Fact, now: OffsetDateTime) -> bool {
    let due = checkout.total.amount() - checkout.credits.map_or(0, |credits| credits.amount());
    let owed = checkout.sold && credits_left(checkout) > 0;
    let is_open = |repayment: &&Repayment| !repayment.settled;
    let is_done = match checkout.state {
        State::Refunded if owed => false,
        State::Completed | State::Refunded => !checkout.repayments.iter().any(|repayment| is_open(&repayment)),
        _ => false,
    };
    let was_returned = !checkout.repayments.is_empty() || checkout.lines.iter().any(|line| line.returned);
    let frees = !was_returned
        && !matches!(
            fact,
            Fact::Captured { frees_seats: false } | Fact::Refunded { frees_seats: false, .. }
        );
    match (condition, fact) {
        ("missing", _) => checkout.called_at.is_some() && checkout.payment.is_none(),
        ("in time", _) => now < checkout.until,
        ("early", _) => now < checkout.until - Duration::seconds(30),
        ("another is left", _) => now < checkout.until && checkout.attempt < 9,
        ("credits pay all", _) => due == 0,
        ("refunded before", _) => frees && due > 0 && checkout.refunded >= due,
        ("owed", _) => owed,
        ("more" | "the rest", _) => {
            let in_all = told_in_all(checkout, fact);
            let most = match checkout.state {
                State::Failed(_) => checkout.refunded + checkout.undone,
                _ => due,
            };
            match condition {
                "more" => most.min(in_all) > checkout.refunded,
                _ => frees && due <= in_all && due > checkout.refunded,
            }
        }
        ("left", Fact::OrderReturned(asked)) => {
            let is_given = checkout.state == State::Completed;
            let seat = is_given
                && checkout
                    .lines
                    .iter()
                    .any(|line| !line.returned && asked.tickets.contains(&line.ticket));
            let money = asked.money.min(due - checkout.refunded.max(money_repaid(checkout)));
            let credits = asked.credits.min(if is_given { credits_left(checkout) } else { 0 });
            seat || money > 0 || credits > 0
        }
        ("it is to be refunded", Fact::RefundMade { number, .. }) => {
            let open = checkout.repayments.get(number - 1).filter(is_open);
            open.is_some_and(|open| matches!(open.what, Repaid::Money(_)))
        }
        ("they are to be returned", Fact::CreditsRepaid(number)) => {
            let open = checkout.repayments.get(number - 1).filter(is_open);
            open.is_some_and(|open| matches!(open.what, Repaid::Credits(_)))
        }
        ("news, still owed", fact) => {
            let is_told = checkout.stuck == Some(StuckReason::RefundFailed);
            let is_gone = checkout.lines.iter().any(|line| line.returned);
            is_gone && !is_told && checkout.refunded < money_repaid(checkout) && holds("news", checkout, fact, now)
        }
        ("booked", fact) => was_booked(checkout, fact) > 0,
        ("too much", Fact::RefundChanged { now: told, known, .. }) => {
            let in_all = others(told, known) + told.amount.amount();
            checkout.stuck.is_none() && in_all > due && holds("news", checkout, fact, now)
        }
        ("agreed", fact) => checkout.stuck == Some(StuckReason::AmountDiffers) && room_made(checkout, fact).is_some(),
        ("news", Fact::RefundChanged { now, known, .. }) => {
            let before = known.iter().find(|before| before.id == now.id);
            before.is_none_or(|before| before.status < now.status)
        }
        ("news", Fact::Disputed { before: None, .. }) => true,
        (
            "news",
            Fact::Disputed {
                now,
                before: Some(before),
            },
        ) => {
            let is_decided = matches!(before.status, DisputeStatus::Won | DisputeStatus::Lost);
            now.funds > before.funds || (now.status > before.status && !is_decided)
        }
        ("to note", _) => {
            let is_new = checkout.unknown_since.is_none_or(|since| now - since > PATIENCE);
            checkout.stuck.is_none() && !is_done && is_new
        }
        ("stuck", _) => checkout.stuck.is_some(),
        ("its step fails", _) => checkout.stuck == Some(StuckReason::StepFails),
        ("not stuck", _) => checkout.stuck.is_none(),
        ("unmarked", _) => checkout.stuck.is_none() && !is_done,
        other => unreachable!("{other:?}"),
    }
}

fn money_repaid(checkout: &Checkout) -> i64 {
    let amounts = checkout.repayments.iter().map(|repayment| match repayment.what {
        Repaid::Money(amount) => amount,
        Repaid::Credits(_) => 0,
    });
    amounts.sum()
}

fn credits_left(checkout: &Checkout) -> i64 {
    let amounts = checkout.repayments.iter().map(|repayment| match repayment.what {
        Repaid::Credits(credits) => credits.amount(),
        Repaid::Money(_) => 0,
    });
    checkout.credits.map_or(0, Credits::amount) - amounts.sum::<i64>()
}

/// So much is refunded in all, by a fact and what it says to be known.
fn told_in_all(checkout: &Checkout, fact: &Fact) -> i64 {
    match fact {
        Fact::Refunded { in_all, known, .. } => {
            in_all - sum(known, RefundStatus::Pending) - sum(known, RefundStatus::Failed)
        }
        Fact::RefundChanged { now, known, .. } => {
            let is_news = known
                .iter()
                .all(|before| before.id != now.id || before.status < now.status);
            let succeeded = sum(known, RefundStatus::Succeeded) + now.amount.amount();
            match now.status {
                RefundStatus::Succeeded if is_news && !is_too_much(checkout, succeeded) => succeeded,
                RefundStatus::Failed => room_made(checkout, fact).unwrap_or(0),
                _ => 0,
            }
        }
        _ => 0,
    }
}

/// More than was paid, of a checkout that has not failed.
fn is_too_much(checkout: &Checkout, in_all: i64) -> bool {
    in_all > checkout.due() && !matches!(checkout.state, State::Failed(_))
}

/// The sum of the others that have succeeded.
fn others(now: &Refund, known: &[Refund]) -> i64 {
    let others: Vec<_> = known.iter().filter(|known| known.id != now.id).cloned().collect();
    sum(&others, RefundStatus::Succeeded)
}

/// What the others come to, which were too much beside the refund that fails now, and no longer are.
fn room_made(checkout: &Checkout, fact: &Fact) -> Option<i64> {
    let Fact::RefundChanged { now, known, .. } = fact else {
        return None;
    };
    let had_succeeded = known
        .iter()
        .any(|known| known.id == now.id && known.status == RefundStatus::Succeeded);
    let (others, amount) = (others(now, known), now.amount.amount());
    let is_made = is_too_much(checkout, others + amount) && !is_too_much(checkout, others);
    (had_succeeded && is_made).then_some(others)
}

/// What was booked of a refund that fails now.
fn was_booked(checkout: &Checkout, fact: &Fact) -> i64 {
    let Fact::RefundChanged { now, known, .. } = fact else {
        return 0;
    };
    let (this, others): (Vec<_>, Vec<_>) = known.iter().cloned().partition(|known| known.id == now.id);
    let rest = checkout.refunded - sum(&others, RefundStatus::Succeeded);
    match this.first() {
        Some(before) if before.status == RefundStatus::Failed => 0,
        _ => now.amount.amount().min(rest.max(0)),
    }
}

/// Checks a transition against its cell; returns the row afterwards.
fn follows(checkout: &Checkout, name: &str, transition: &Transition, cell: &str) -> Result<Checkout, String> {
    let after = transition.next.clone().unwrap_or_else(|| checkout.clone());
    let ok = match cell {
        "-" => transition.is_nothing(),
        "told" => transition.next.is_none() && transition.outcomes.len() == 1,
        "recorded" => !transition.is_nothing() && transition.next.is_none() && transition.outcomes.is_empty(),
        "noted" => transition.next.is_some() && after.state == checkout.state,
        // To wait on changes nothing, unless a step had failed.
        state => after.state.name() == state && (transition.next.is_some() || state == checkout.state.name()),
    };
    let raised = after.version - checkout.version == i64::from(transition.next.is_some());
    match ok && raised {
        true => Ok(after),
        false => Err(format!("{name} on {checkout:#?} is not {cell}: {transition:#?}")),
    }
}

/// The row of the second table for a transition.
fn change<'n>(name: &'n str, before: &Checkout, after: &Checkout) -> &'n str {
    match (before.state.name(), after.state.name()) {
        (_, _) if name == "disputed" => "disputed",
        (_, _) if name == "credits returned" => "credits returned",
        ("completed" | "refunded", _) if name == "refund failed" && after.refunded > before.refunded => {
            "refund failed, others booked"
        }
        (_, _) if ["order returned", "refund made", "credits repaid"].contains(&name) => name,
        ("completed", _) if name == "refund failed" && !before.lines.iter().any(|line| line.returned) => {
            "refund failed"
        }
        ("completed" | "refunded" | "failed", _) if name == "refund failed" => "refund failed, seats gone",
        ("refunded", "refunded") if after.refunded > before.refunded => "refunded again",
        ("failed", "failed") if after.refunded > before.refunded => "failed, refunded again",
        (_, _) if ["step failed", "amount differs"].contains(&name) && after.stuck.is_some() => "stuck",
        (_, _) if name == "refund succeeded" && before.stuck.is_none() && after.stuck.is_some() => "stuck",
        ("completed", "completed") => "from completed to completed",
        ("completed", "refunded") => "from completed to refunded",
        ("sold", "refunded") => "from sold to refunded",
        ("undoing", "undoing") if name == "being processed" => "being processed, to be undone",
        (before, after) if before == after => "any other",
        (_, "waiting") => "to waiting",
        (_, "declined") => "to declined",
        (_, "sold") => "to sold",
        (_, "completed") => "to completed",
        (_, "failed") => "to failed",
        _ => "any other",
    }
}

/// The cells of the second table for a transition.
fn effects(transition: &Transition) -> [(&'static str, Vec<&'static str>); 5] {
    let outcomes = transition.outcomes.iter().map(|told| {
        let kind = told.outcome_type().trim_start_matches("holdfast.outcome.");
        kind.rsplit_once('.').unwrap().0
    });
    let mails = transition.mails.iter().map(|mail| match mail {
        CustomerMail::Completed => "completed",
        CustomerMail::Failed => "failed",
        CustomerMail::Refunded { full: true, .. } => "refunded",
        CustomerMail::Refunded { full: false, .. } => "refunded in part",
    });
    [
        ("outcome", outcomes.collect()),
        (
            "ledger",
            transition
                .movements
                .iter()
                .map(|movement| movement.kind.as_str())
                .collect(),
        ),
        ("mail", mails.collect()),
        (
            "seats",
            if matches!(transition.seats, Seats::Returned { .. }) {
                vec!["returned"]
            } else {
                vec![]
            },
        ),
        (
            "credits",
            match transition.credits {
                Some(CreditsChange::Spent(_)) => vec!["spent"],
                Some(CreditsChange::Returned(_) | CreditsChange::Repaid { .. }) => vec!["returned"],
                None => vec![],
            },
        ),
    ]
}

/// Checkouts in every state, with every mixture of what the conditions ask for; also such as no history brings about.
fn every_checkout() -> Vec<Checkout> {
    let failure = || CheckoutFailure::Declined.into();
    let states = [
        State::Opened,
        State::Created,
        State::Waiting,
        State::Processing,
        State::Declined(DeclineCode::parse("lost_card").ok()),
        State::Authorised,
        State::Sold,
        State::Undoing(failure()),
        State::Completed,
        State::Refunded,
        State::Failed(failure()),
    ];
    let mut all: Vec<Checkout> = states.into_iter().map(checkout).collect();
    fn vary<V: Clone>(all: &mut Vec<Checkout>, values: &[V], set: fn(&mut Checkout, V)) {
        let varied = all.iter().flat_map(|checkout| {
            values.iter().map(|value| {
                let mut checkout = checkout.clone();
                set(&mut checkout, value.clone());
                checkout
            })
        });
        *all = varied.collect();
    }
    vary(
        &mut all,
        &[None, Credits::new(40).ok(), Credits::new(100).ok()],
        |c, v| c.credits = v,
    );
    vary(&mut all, &[None, Some(now() - Duration::MINUTE)], |c, v| {
        c.called_at = v
    });
    vary(&mut all, &[None, PaymentId::parse("pi_1").ok()], |c, v| c.payment = v);
    vary(&mut all, &[false, true], |c, v| c.sold = v);
    let marks = [
        None,
        Some(StuckReason::StepFails),
        Some(StuckReason::AmountDiffers),
        Some(StuckReason::RefundFailed),
    ];
    vary(&mut all, &marks, |c, v| c.stuck = v);
    vary(
        &mut all,
        &[(0, 0), (25, 0), (25, 75), (60, 0), (100, 0)],
        |c, (refunded, undone)| {
            (c.refunded, c.undone) = (refunded.min(c.due()), undone);
        },
    );
    let ends = [now(), now() + Duration::seconds(10), now() + Duration::MINUTE];
    vary(&mut all, &ends, |c, v| c.until = v);
    let long_ago = now() - Duration::HOUR;
    vary(&mut all, &[None, Some(now()), Some(long_ago)], |c, v| {
        c.unknown_since = v
    });
    let mut returned: Vec<Checkout> = [State::Completed, State::Refunded].map(checkout).into();
    vary(
        &mut returned,
        &[None, Credits::new(40).ok(), Credits::new(100).ok()],
        |c, v| c.credits = v,
    );
    vary(&mut returned, &[false, true], |c, v| c.sold = v);
    vary(&mut returned, &marks, |c, v| c.stuck = v);
    vary(&mut returned, &[0, 25, 60], |c, v| c.refunded = v.min(c.due()));
    vary(&mut returned, &[false, true], |c, v| c.lines[0].returned = v);
    let money = |settled| Repayment {
        what: Repaid::Money(20),
        settled,
    };
    let credits = |settled| Repayment {
        what: Repaid::Credits(Credits::new(10).unwrap()),
        settled,
    };
    let repayments = [
        vec![],
        vec![money(false)],
        vec![money(true), credits(false)],
        vec![credits(false), money(false)],
        vec![credits(true), money(true)],
    ];
    vary(&mut returned, &repayments, |c, v| c.repayments = v);
    all.extend(returned);
    all
}

#[test]
fn the_tables_on_the_page_are_what_the_rules_do() {
    let mut met = BTreeSet::new();
    let mut written: BTreeMap<&str, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for checkout in every_checkout() {
        // Of refunds and disputes the rules do not ask for times: those of one checkout stand for all.
        let times = (checkout.unknown_since, checkout.called_at, checkout.until);
        let is_timed = times != (None, None, now() + Duration::MINUTE);
        let of_times = |(name, _): &&NamedFact| !is_timed || !RECORDED.contains(name);
        for (name, fact) in facts(checkout.due()).iter().filter(of_times) {
            let cell = cell(&checkout, name, fact, now());
            met.insert((*name, checkout.state.name(), cell));
            let transition = apply(&checkout, fact.clone(), now());
            let after = follows(&checkout, name, &transition, cell).unwrap_or_else(|wrong| panic!("{wrong}"));
            if transition.is_nothing() {
                continue;
            }
            let row = written.entry(change(name, &checkout, &after)).or_default();
            for (column, found) in effects(&transition) {
                row.entry(column).or_default().extend(found);
            }
        }
    }
    let named: BTreeSet<_> = facts(60).iter().map(|(name, _)| *name).collect();
    assert_eq!(named, TABLE.keys().copied().collect(), "every fact has its row");
    let cells = TABLE
        .iter()
        .flat_map(|(name, row)| row.iter().map(move |(state, cell)| (*name, *state, *cell)));
    for (name, state, cell) in cells.filter(|(_, state, _)| *state != "fact") {
        let answers = cell.split(" if ").flat_map(|part| part.split(" else "));
        let conditions = [
            "first",
            "missing",
            "in time",
            "early",
            "another is left",
            "credits pay all",
            "refunded before",
            "owed",
            "more",
            "the rest",
            "booked",
            "left",
            "it is to be refunded",
            "they are to be returned",
            "news, still owed",
            "too much",
            "agreed",
        ];
        let more = ["news", "to note", "stuck", "its step fails", "not stuck", "unmarked"];
        let conditions = [&conditions[..], &more].concat();
        for answer in answers.filter(|answer| !conditions.contains(answer) || *answer == cell) {
            assert!(
                met.contains(&(name, state, answer)),
                "no checkout meets {answer} of {name} in {state}"
            );
        }
    }
    // A refund in part after an early one joins the completion's own.
    let early = written.get_mut("to completed").unwrap();
    early.get_mut("outcome").unwrap().remove("payment.refunded");
    early.get_mut("ledger").unwrap().remove("partial_refund");
    early.get_mut("mail").unwrap().remove("refunded in part");
    early.get_mut("mail").unwrap().remove("refunded");
    for (change, columns) in EFFECTS.iter() {
        for (column, cell) in columns.iter().filter(|(column, _)| **column != "change") {
            let told: BTreeSet<_> = cell.split(", ").filter(|word| *word != "-").collect();
            let found = written.get(change).map(|row| row[column].clone()).unwrap_or_default();
            assert_eq!(told, found, "{column} of {change}: left is the page, right the rules");
        }
    }
    assert!(
        written.keys().all(|change| EFFECTS.contains_key(change)),
        "{:?}",
        written.keys()
    );
}

/// What a checkout has and owes, by what its transitions wrote: the books that must balance.
#[derive(Debug, Default)]
pub(super) struct Books {
    accounts: BTreeMap<&'static str, i64>,
    /// The user's credits, by the changes of them.
    credits: i64,
    /// Whether the user has the seats.
    seats: bool,
    /// The tickets by which the count of the user's purchases is higher.
    counted: i32,
    /// How often the user was told of an end, and by mail.
    ends: (usize, usize),
    /// The table of disputes, which has at most this one.
    dispute: Option<Dispute>,
    /// The table of refunds.
    refunds: Vec<Refund>,
    /// Captured by the ledger.
    captured: i64,
    /// Refunded by the ledger.
    refunded: i64,
    /// The places of the mails about refunds.
    mails: BTreeSet<i64>,
    /// True once an operator was asked for because a refund has failed.
    alarmed: bool,
}

impl Books {
    pub(super) fn write(&mut self, fact: &Fact, transition: &Transition) {
        for movement in &transition.movements {
            let (to, from) = movement.kind.accounts();
            *self.accounts.entry(to).or_default() += movement.amount;
            *self.accounts.entry(from).or_default() -= movement.amount;
            match movement.kind.as_str() {
                "capture" => self.captured += movement.amount,
                "refund" | "partial_refund" => self.refunded += movement.amount,
                "refund_failed" => self.refunded -= movement.amount,
                _ => {}
            }
        }
        match transition.credits {
            Some(CreditsChange::Spent(credits)) => self.credits -= credits.amount(),
            Some(CreditsChange::Returned(credits) | CreditsChange::Repaid { credits, .. }) => {
                self.credits += credits.amount();
            }
            None => {}
        }
        if *fact == Fact::SeatsSold && transition.next.is_some() {
            (self.seats, self.counted) = (true, self.counted + 1);
        }
        let takes_back = matches!(transition.seats, Seats::Returned { .. });
        self.seats &= !takes_back;
        self.counted -= i32::from(takes_back);
        let is_end = |told: &&&str| ["checkout.completed", "checkout.failed"].contains(told);
        let [(_, told), (_, _), (_, mails), ..] = effects(transition);
        self.ends.0 += told.iter().filter(is_end).count();
        self.ends.1 += mails
            .iter()
            .filter(|mail| ["completed", "failed"].contains(mail))
            .count();
        for mail in &transition.mails {
            if let CustomerMail::Refunded { so_far, .. } = mail {
                assert!(self.mails.insert(*so_far), "two mails at one place: {transition:#?}");
            }
        }
        if let Some(refund) = &transition.refund {
            self.refunds.retain(|known| known.id != refund.id);
            self.refunds.push(refund.clone());
        }
        self.dispute = transition.dispute.clone().or(self.dispute.take());
        let next = transition.next.as_ref();
        self.alarmed |= next.is_some_and(|next| next.stuck == Some(StuckReason::RefundFailed));
    }

    /// The refunds that are known, as the store reads them.
    pub(super) fn known(&self) -> Vec<Refund> {
        self.refunds.clone()
    }

    fn of(&self, account: &str) -> i64 {
        self.accounts.get(account).copied().unwrap_or(0)
    }

    /// What must be true after every fact, of a checkout that has come to this row.
    pub(super) fn balance(&self, row: &Checkout) -> Result<(), String> {
        let spent = row.credits.map_or(0, Credits::amount);
        let is_paid = matches!(row.state, State::Completed | State::Refunded);
        let dispute = self.dispute.as_ref().map(|dispute| (dispute.status, dispute.funds));
        let (open, lost) = match dispute {
            Some((DisputeStatus::Lost, Some(DisputeFunds::Withdrawn))) => (0, 30),
            Some((_, Some(DisputeFunds::Withdrawn))) => (30, 0),
            _ => (0, 0),
        };
        let repaid = row.repayments.iter().filter(|repayment| repayment.settled);
        let repaid = repaid.map(|repayment| match repayment.what {
            Repaid::Credits(credits) => credits.amount(),
            Repaid::Money(_) => 0,
        });
        let kept = if row.sold { spent - repaid.sum::<i64>() } else { 0 };
        let is_returned = row.state == State::Completed && row.lines[0].returned;
        let refunded = if row.state.has_ended() { row.refunded } else { 0 };
        let checks = [
            ("all accounts hold zero", self.accounts.values().sum::<i64>() == 0),
            (
                "the provider has what was captured and not refunded",
                self.of("provider") == self.captured - self.refunded - open - lost,
            ),
            (
                "what was captured is due",
                matches!(row.state, State::Failed(_)) || self.captured == if is_paid { row.due() } else { 0 },
            ),
            (
                "an open dispute holds its amount",
                self.of("disputes") == open && self.of("losses") == lost,
            ),
            ("the refunds are those of the row", self.refunded == refunded),
            (
                "the credits that were spent are booked",
                self.of("credits") == kept && self.credits == -kept,
            ),
            (
                "the seats are the user's while they are paid",
                self.seats == (row.sold && row.state != State::Refunded && !is_returned),
            ),
            ("the purchases are those seats", self.counted == i32::from(self.seats)),
            (
                "completed means paid and given",
                row.state != State::Completed || self.seats || is_returned,
            ),
            (
                "no money is kept for a seat that was not given, unless an operator is asked for",
                self.seats
                    // The shop has decided what it gives back.
                    || is_returned
                    || !row.state.has_ended()
                    || ((self.captured == refunded || self.alarmed) && (kept == 0 || row.owed_credits().is_some())),
            ),
            (
                "an operator is asked for as long as a refund has failed and no other has taken its place",
                row.stuck != Some(StuckReason::RefundFailed) || self.captured > self.refunded,
            ),
            (
                "an end is told once",
                self.ends.0 == usize::from(row.state.has_ended()) && self.ends.0 == self.ends.1,
            ),
        ];
        match checks.iter().find(|(_, holds)| !holds) {
            None => Ok(()),
            Some((broken, _)) => Err(format!("broken: {broken}\n{row:#?}\n{self:#?}")),
        }
    }
}

/// The fact that a step brings when all goes well, or not quite.
fn likely(row: &Checkout, choice: u8) -> usize {
    let names: &[&str] = match (&row.state, choice % 4) {
        (State::Opened, _) if row.due() == 0 => &["seats sold"],
        (State::Opened, _) => &["payment made"],
        (State::Created, 0) => &["confirmation asked for"],
        (State::Created, 1) => &["being processed"],
        (State::Created | State::Waiting, 2) => &["declined"],
        (State::Declined(_), 0) => &["authorised"],
        (State::Declined(_), _) => &["retried"],
        (State::Created | State::Waiting | State::Processing, _) => &["authorised"],
        (State::Authorised, 0) => &["seats gone"],
        (State::Authorised, _) => &["seats sold"],
        (State::Sold, 0) => &["not captured"],
        (State::Sold, 1) => &["refunded in part"],
        (State::Sold, 2) => &["being processed"],
        (State::Sold, _) => &["captured"],
        (State::Undoing(_), 0) => &["being processed"],
        (State::Undoing(_), _) => &["given back"],
        (State::Completed, _) if row.owes_repayments() => match row.repaying() {
            Some(Step::Refund { .. }) => &["refund made"],
            _ => &["credits repaid"],
        },
        (State::Completed, 0) => &["refunded in part"],
        (State::Completed, 3) => &["order returned"],
        (State::Completed, 1) => &["refund succeeded"],
        (State::Completed, _) => &["refunded in full"],
        (State::Refunded | State::Failed(_), 0) => &["refund failed"],
        (State::Refunded | State::Failed(_), 1) => &["refund succeeded"],
        (State::Refunded | State::Failed(_), _) => &["credits returned"],
    };
    facts(row.due()).iter().position(|(name, _)| *name == names[0]).unwrap()
}

/// The provider makes the refund that is to be made now.
fn refund_now(row: &Checkout, known: Vec<Refund>) -> Option<Fact> {
    let Some(Step::Refund { number, amount }) = row.repaying() else {
        return None;
    };
    let made = refund(&format!("re_{}", 10 + number), amount, RefundStatus::Succeeded);
    let made = Some((made, known));
    Some(Fact::RefundMade { number, made })
}

/// One history: each pair of bytes is a fact, of three kinds: one that is likely now, one that came before, or any.
fn history(credits: u8, choices: &[(u8, u8)]) -> Result<(), String> {
    let mut row = Checkout {
        credits: [None, Credits::new(40).ok(), Credits::new(100).ok()][usize::from(credits) % 3],
        ..checkout(State::Opened)
    };
    let (mut books, mut at, mut past) = (Books::default(), now() - Duration::MINUTE, Vec::new());
    for (kind, choice) in choices {
        at += Duration::seconds(i64::from(kind / 16));
        let facts = facts(row.due());
        let place = match kind % 4 {
            0 => usize::from(*choice) % facts.len(),
            1 if !past.is_empty() => past[usize::from(*choice) % past.len()],
            _ => likely(&row, *choice),
        };
        past.push(place);
        let (name, fact) = facts[place].clone();
        let fact = match fact {
            // What was known before is read from its row, under a lock.
            Fact::Disputed { now, .. } => Fact::Disputed {
                now,
                before: books.dispute.clone(),
            },
            Fact::Refunded {
                in_all, frees_seats, ..
            } => Fact::Refunded {
                in_all,
                known: books.known(),
                frees_seats,
            },
            Fact::RefundChanged { now, frees_seats, .. } => Fact::RefundChanged {
                now,
                known: books.known(),
                frees_seats,
            },
            Fact::RefundMade { .. } => refund_now(&row, books.known()).unwrap_or(fact),
            Fact::CreditsRepaid(number) => Fact::CreditsRepaid(match row.repaying() {
                Some(Step::RepayCredits(number)) => number,
                _ => number,
            }),
            Fact::Retried { .. } if name == "retried" => retried(row.attempt + 1),
            Fact::Retried { .. } => retried(row.attempt),
            fact => fact,
        };
        let cell = cell(&row, name, &fact, at);
        let transition = apply(&row, fact.clone(), at);
        let after = follows(&row, name, &transition, cell)?;
        let stays = !row.state.has_ended()
            || after.state == row.state
            || (row.state, &after.state) == (State::Completed, &State::Refunded);
        books.write(&fact, &transition);
        books.balance(&after)?;
        if !stays {
            return Err(format!("an ended checkout went on: {transition:#?}"));
        }
        row = after;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: HISTORIES.max(ProptestConfig::default().cases),
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_facts_come_in_whatever_order_the_books_balance(
        credits in any::<u8>(),
        choices in prop::collection::vec(any::<(u8, u8)>(), 1..24),
    ) {
        prop_assert_eq!(history(credits, &choices), Ok(()));
    }
}
