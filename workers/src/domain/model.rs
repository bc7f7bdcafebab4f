//! The rules of a ticket a second time, as a table, and random lives of a ticket to compare the two.

use holdfast_schemas::{CheckoutId, HoldId, Price, RefusalReason, ShowId, Source, TicketOutcome, UserId, outcomes};
use proptest::prelude::*;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::ticket::{AskedPrice, HoldTerms, Input, holding_by};
use super::{Decision, History, State, Ticket};

/// The answer of a ticket in a state (column) to an input (row). `+` joins two outcomes of one event, `-` is no outcome,
/// `a if c else b` depends on whether user, hold or checkout fit.
const TABLE: &str = "
    input     | no row         | available      | held                                     | due                       | sold                                         | sold, off sale                               | withdrawn
    list      | listed         | already_listed | held!                                    | expired + already_listed  | sold!                                        | sold!                                        | listed
    withdraw  | unknown_ticket | withdrawn      | held!                                    | expired + withdrawn       | off_sale                                     | withdrawn!                                   | withdrawn!
    reserve   | unknown_ticket | held           | already_yours if user fits else held!    | expired + held            | sold!                                        | sold!                                        | withdrawn!
    release   | unknown_ticket | not_held       | released if hold fits else not_your_hold | expired                   | sold!                                        | sold!                                        | not_held
    expire    | -              | -              | -                                        | expired if id fits else - | -                                            | -                                            | -
    lengthen  | -              | -              | lengthened if end fits else -            | -                         | -                                            | -                                            | -
    sell      | -              | -              | sold if hold fits else -                 | -                         | done if checkout fits else -                 | done if checkout fits else -                 | -
    return    | -              | -              | -                                        | -                         | returned if checkout fits else -             | returned + withdrawn if checkout fits else - | -
    take back | -              | -              | -                                        | -                         | returned + withdrawn if checkout fits else - | returned + withdrawn if checkout fits else - | -
    call off  | -              | withdrawn      | released + withdrawn                     | expired + withdrawn       | -                                            | -                                            | -
";

/// The source that may say what a ticket costs.
const TRUSTED: &str = "shop";

#[derive(Clone, Debug)]
struct Step {
    row: &'static str,
    user: usize,
    /// Names the ticket's own hold, or a stranger's.
    own_hold: bool,
    checkout: usize,
    hold_for: Option<i64>,
    /// Of the reservation, and whether its source is trusted.
    price: Option<(i64, bool)>,
    seconds_later: i64,
}

fn step() -> impl Strategy<Value = Step> {
    (
        prop::sample::select(vec![
            "list",
            "withdraw",
            "reserve",
            "reserve",
            "release",
            "expire",
            "lengthen",
            "lengthen",
            "sell",
            "return",
            "take back",
            "call off",
        ]),
        0..2usize,
        any::<bool>(),
        0..2usize,
        prop::option::of(prop::sample::select(vec![-1, 0, 1, 60, 86_400, 86_401, i64::MAX])),
        prop::option::of(prop::sample::select(vec![
            (0, true),
            (5, true),
            (0, false),
            (1_000, true),
        ])),
        prop::sample::select(vec![0, 1, 30, 59, 60, 61, 900]),
    )
        .prop_map(|(row, user, own_hold, checkout, hold_for, price, seconds_later)| Step {
            row,
            user,
            own_hold,
            checkout,
            hold_for,
            price,
            seconds_later,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_life_of_a_ticket_follows_the_table(steps in prop::collection::vec(step(), 1..40)) {
        let decide = holding_by(HoldTerms {
            price_sources: vec![Source::parse(TRUSTED).unwrap()],
            ..HoldTerms::default()
        });
        let mut now = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
        let mut ticket: Option<Ticket> = None;
        for (place, step) in steps.into_iter().enumerate() {
            now += Duration::seconds(step.seconds_later);
            let input = input(&step, ticket.as_ref(), place, now);
            let expected = expected(ticket.as_ref(), &step, &input, now);
            let before = ticket.clone();
            match decide(ticket.as_ref(), input.clone(), now) {
                Decision::Nothing => prop_assert_eq!(expected, vec!["-"]),
                Decision::AlreadyDone => prop_assert_eq!(expected, vec!["done"]),
                Decision::Transition { next, outcomes } => {
                    let told: Vec<&str> = outcomes.iter().map(name).collect();
                    prop_assert_eq!(&told, &expected, "{:?} on {:?}", input, before);
                    let version = before.as_ref().map_or(0, |ticket| ticket.version);
                    if let Some(next) = &next {
                        prop_assert_eq!(next.version, version + outcomes.len() as i64, "one version an outcome");
                        prop_assert_eq!(next.changed_at, now);
                        prop_assert_eq!(told_alone(before.as_ref(), next, &outcomes), Some(next.clone()));
                    } else {
                        prop_assert!(before.is_none());
                    }
                    ticket = next;
                }
            }
        }
    }
}

fn input(step: &Step, ticket: Option<&Ticket>, place: usize, now: OffsetDateTime) -> Input {
    let user = UserId::parse(["ann", "bob"][step.user]).unwrap();
    let checkout = CheckoutId::parse(["c-1", "c-2"][step.checkout]).unwrap();
    let own = ticket.and_then(|ticket| match &ticket.state {
        State::Held(hold) => Some(hold.id),
        State::Sold(sale) => Some(sale.hold),
        State::Available | State::Withdrawn => None,
    });
    let fresh = HoldId(Uuid::from_u128(place as u128 + 1));
    let hold = own.filter(|_| step.own_hold).unwrap_or(fresh);
    match step.row {
        "list" => Input::List {
            show: ShowId::parse(&format!("show-{place}")).unwrap(),
            seat: None,
            price: Price::new(place as i64, "EUR".parse().unwrap()).unwrap(),
        },
        "withdraw" => Input::Withdraw,
        "reserve" => Input::Reserve {
            user,
            hold_for: step.hold_for,
            price: step.price.map(|(amount, is_trusted)| AskedPrice {
                price: Price::new(amount, "EUR".parse().unwrap()).unwrap(),
                source: Source::parse(if is_trusted { TRUSTED } else { "stranger" }).unwrap(),
            }),
            hold: fresh,
        },
        "release" => Input::Release { user, hold },
        "expire" => Input::Expire { hold },
        "lengthen" => Input::Lengthen {
            hold,
            until: now + Duration::seconds(step.hold_for.unwrap_or(900).clamp(0, 86_401)),
        },
        "sell" => Input::Sell { user, hold, checkout },
        "return" => Input::Return { checkout, resell: true },
        "take back" => Input::Return {
            checkout,
            resell: false,
        },
        "call off" => Input::CallOff,
        other => unreachable!("{other}"),
    }
}

/// Reads the table.
fn expected(ticket: Option<&Ticket>, step: &Step, input: &Input, now: OffsetDateTime) -> Vec<&'static str> {
    let column = match ticket.map(|ticket| &ticket.state) {
        None => 1,
        Some(State::Available) => 2,
        Some(State::Held(hold)) if hold.until > now => 3,
        Some(State::Held(_)) => 4,
        Some(State::Sold(sale)) if !sale.off_sale => 5,
        Some(State::Sold(_)) => 6,
        Some(State::Withdrawn) => 7,
    };
    let row = TABLE.lines().find(|line| line.trim().starts_with(step.row)).unwrap();
    let cell = row.split('|').nth(column).unwrap().trim();
    let answer = match cell.split_once(" if ") {
        None => cell,
        Some((yes, rest)) => {
            let (condition, no) = rest.split_once(" fits else ").unwrap();
            if fits(condition, &ticket.unwrap().state, input) {
                yes
            } else {
                no
            }
        }
    };
    let own = ticket.map_or(0, |ticket| ticket.price.amount());
    let held = |outcome| match (outcome, step.price) {
        ("held", _) if !step.hold_for.is_none_or(|seconds| (1..=86_400).contains(&seconds)) => {
            vec!["hold_for_out_of_bounds"]
        }
        ("held", Some((_, false))) => vec!["price_not_trusted"],
        ("held", Some((price, true))) if price > own => vec!["price_out_of_bounds"],
        ("held", Some((price, true))) if price < own => vec!["held", "priced"],
        (other, _) => vec![other],
    };
    answer.split(" + ").flat_map(|outcome| held(outcome.trim())).collect()
}

fn fits(condition: &str, state: &State, input: &Input) -> bool {
    match (condition, state, input) {
        ("user", State::Held(held), Input::Reserve { user, .. }) => *user == held.user,
        ("hold", State::Held(held), Input::Release { user, hold } | Input::Sell { user, hold, .. }) => {
            *user == held.user && *hold == held.id
        }
        ("end", State::Held(held), Input::Lengthen { hold, until }) => {
            *hold == held.id && *until > held.until && !held.lengthened
        }
        ("id", State::Held(due), Input::Expire { hold }) => *hold == due.id,
        ("checkout", State::Sold(sale), Input::Sell { checkout, .. } | Input::Return { checkout, .. }) => {
            *checkout == sale.checkout
        }
        other => unreachable!("{other:?}"),
    }
}

fn name(told: &TicketOutcome) -> &'static str {
    match told {
        TicketOutcome::TicketListed(_) => "listed",
        TicketOutcome::TicketChanged(_) => "changed",
        TicketOutcome::TicketHeld(_) => "held",
        TicketOutcome::TicketHoldPriced(_) => "priced",
        TicketOutcome::TicketHoldLengthened(_) => "lengthened",
        TicketOutcome::TicketReleased(_) => "released",
        TicketOutcome::TicketExpired(_) => "expired",
        TicketOutcome::TicketSold(_) => "sold",
        TicketOutcome::TicketOffSale(_) => "off_sale",
        TicketOutcome::TicketReturned(_) => "returned",
        TicketOutcome::TicketWithdrawn(outcomes::TicketWithdrawn {}) => "withdrawn",
        // A `!` tells a refusal from the outcome of the same name.
        TicketOutcome::ReservationRefused(outcomes::ReservationRefused { reason }) => match reason {
            RefusalReason::Held => "held!",
            RefusalReason::Sold => "sold!",
            RefusalReason::Withdrawn => "withdrawn!",
            other => other.as_str(),
        },
    }
}

/// Replays a ticket from its outcomes alone, as a consumer would.
fn told_alone(before: Option<&Ticket>, next: &Ticket, outcomes: &[TicketOutcome]) -> Option<Ticket> {
    let first = next.version - outcomes.len() as i64 + 1;
    let told = outcomes.iter().cloned().zip(first..);
    told.fold(before.cloned(), |ticket, (told, version)| {
        Ticket::after(ticket, told, version, next.changed_at)
    })
}
