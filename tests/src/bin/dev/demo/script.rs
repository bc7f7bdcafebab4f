//! The script of the on-sale: its records in order, the same in each run.

use anyhow::Context;
use holdfast_schemas::hold_id;
use holdfast_tests::kit::provider::Fault;
use holdfast_tests::load::{Event, PAYMENTS, RESERVATIONS, Record, SOURCE, now, timestamp};
use serde_json::{Value, json};
use time::Duration;

pub(super) const SEATS: usize = 300;
pub(super) const REQUESTS: usize = 8_000;
/// One in this many requests is for the one seat that all want.
pub(super) const HOT_EVERY: usize = 10;
/// A prime, and so large that no buyer requests the one seat twice.
pub(super) const BUYERS: usize = 997;

/// One in this many buyers has credits, and spends them.
const CREDITED_EVERY: usize = 4;
const CREDITS: i64 = 2_000;
/// One in this many buyers has a card that its bank declines.
const DECLINED_EVERY: usize = 11;
/// One in this many buyers gives up after a decline.
const GIVEN_UP_EVERY: usize = 3;
/// Faults of the payment provider, each in this many of a thousand requests.
pub(super) const FAULTS: &[(Fault, u32)] = &[
    (Fault::AnswerLost, 40),
    (Fault::RequestLost, 20),
    (Fault::Unavailable, 20),
    (Fault::Decline("insufficient_funds"), 30),
];

/// One in this many buyers has a bank that asks for a confirmation.
const CONFIRMED_EVERY: usize = 13;
/// The seats from this one on are those of another show, which is cancelled in the end.
const CANCELLED_FROM: usize = 280;
pub(super) const CANCELLED: &str = "the-matinee";

/// A seat whose events break every worker, as long as the rule below is there.
pub(super) const BROKEN: &str = "seat-that-breaks";
pub(super) const BREAKING: &str =
    "alter table tickets add constraint demo_breaks check (ticket <> 'seat-that-breaks' or version < 2) not valid";
pub(super) const MENDED: &str = "alter table tickets drop constraint demo_breaks";

const REPEAT_EVERY: usize = 20;
const BAD_EVERY: usize = 40;
/// Steps between the first sending of an event and its repeat.
const REPEAT_AFTER: usize = 15;

#[derive(Clone)]
pub(super) struct Step {
    pub(super) kind: Kind,
    pub(super) topic: &'static str,
    pub(super) record: Record,
}

/// The answer that a record must get.
#[derive(Clone)]
pub(super) enum Kind {
    /// An outcome.
    Event { id: String },
    /// None of its own: the outcomes of the checkout tell what comes of it.
    Wish { name: &'static str },
    /// None: it is a repeat, and changes nothing.
    Repeat,
    /// A dead letter with this reason.
    Bad { reason: &'static str },
}

impl Step {
    pub(super) fn event(event: Event) -> Step {
        Step {
            record: event.record(),
            kind: Kind::Event { id: event.id },
            topic: RESERVATIONS,
        }
    }

    pub(super) fn payment(event: Event) -> Step {
        Step {
            topic: PAYMENTS,
            ..Step::event(event)
        }
    }

    pub(super) fn again(self) -> Step {
        Step {
            kind: Kind::Repeat,
            ..self
        }
    }

    fn bad(reason: &'static str, record: Record) -> Step {
        Step {
            kind: Kind::Bad { reason },
            record,
            topic: RESERVATIONS,
        }
    }
}

/// Registers all users and gives some of them credits, before the sale.
pub(super) fn registrations() -> Vec<Step> {
    let buyers = (0..BUYERS).flat_map(|number| {
        let user = buyer(number);
        let registered = Event::registered(format!("register-{number}"), &user);
        let credited = number
            .is_multiple_of(CREDITED_EVERY)
            .then(|| Event::credits_added(format!("credits-{number}"), &user, CREDITS));
        [Some(registered), credited].into_iter().flatten()
    });
    buyers.map(Step::payment).collect()
}

/// The fight for the seats.
pub(super) fn fight() -> Vec<Step> {
    let mut steps: Vec<Step> = (0..SEATS).map(|number| Step::event(list(number))).collect();
    let mut requests = Vec::with_capacity(REQUESTS);
    for number in 0..REQUESTS {
        requests.push(request(number));
        steps.push(Step::event(requests[number].clone()));
        if number % REPEAT_EVERY == REPEAT_AFTER {
            steps.push(Step::event(requests[number - REPEAT_AFTER].clone()).again());
        }
        if number % BAD_EVERY == BAD_EVERY - 1 {
            steps.push(bad(number, &requests[number]));
        }
    }
    // The last seat is withdrawn: a user who holds it keeps it, and later requests are refused.
    steps.push(Step::event(Event::withdrawn(
        String::from("withdraw"),
        &ticket(SEATS - 1),
    )));
    steps
}

/// The seat that breaks the workers is listed, goes from one buyer to another, and is free in the end. All but the first event breaks.
pub(super) fn breaking() -> Vec<Step> {
    let id = |number: u32| format!("breaks-{number}");
    let hold = |number| hold_id(SOURCE, &id(number), BROKEN).to_string();
    let events = [
        Event::listed(id(0), BROKEN, "Z-1"),
        Event::requested(id(1), BROKEN, "buyer-1"),
        Event::requested(id(2), BROKEN, "buyer-2"),
        Event::released(id(3), BROKEN, "buyer-1", &hold(1)),
        Event::requested(id(4), BROKEN, "buyer-2"),
        Event::released(id(5), BROKEN, "buyer-2", &hold(4)),
    ];
    events.map(Step::event).into()
}

/// The user buys the seats that they hold: one checkout, with the id of its request.
pub(super) fn order(user: &str, tickets: &[String]) -> anyhow::Result<Step> {
    let number = user.strip_prefix("buyer-").context("a holder who is no buyer")?;
    let id = format!("order-{number}");
    let number: usize = number.parse()?;
    let card = match number {
        declined if declined.is_multiple_of(DECLINED_EVERY) => "pm_card_visa_chargeDeclinedExpiredCard",
        confirmed if confirmed.is_multiple_of(CONFIRMED_EVERY) => "pm_card_authenticationRequired",
        _ => "pm_card_visa",
    };
    let mut data = json!({ "checkout": id, "tickets": tickets, "payment_method": card });
    if number.is_multiple_of(CREDITED_EVERY) {
        data["credits"] = json!(CREDITS);
    }
    Ok(Step::payment(Event::checkout_requested(id, user, data)))
}

/// What a buyer does whose payment was declined: another card, or, now and then, nothing any more. `id`: of the outcome that tells it.
pub(super) fn after_decline(user: &str, checkout: &str, id: &str) -> anyhow::Result<Step> {
    let number: usize = checkout.trim_start_matches("order-").parse()?;
    let (name, event) = match number.is_multiple_of(GIVEN_UP_EVERY) {
        true => (
            "cancelled",
            Event::checkout_cancelled(format!("cancel-{id}"), user, checkout),
        ),
        false => (
            "retried",
            Event::checkout_retried(format!("retry-{id}"), user, checkout, "pm_card_visa"),
        ),
    };
    let step = Step::payment(event);
    let kind = Kind::Wish { name };
    Ok(Step { kind, ..step })
}

/// True for a seat of the show that is cancelled.
pub(super) fn is_cancelled(ticket: &str) -> bool {
    let number = ticket.trim_start_matches("seat-").parse();
    number.is_ok_and(|number: usize| number >= CANCELLED_FROM)
}

fn buyer(number: usize) -> String {
    format!("buyer-{number}")
}

fn ticket(number: usize) -> String {
    format!("seat-{number}")
}

fn list(number: usize) -> Event {
    let seat = format!("row {}, seat {}", number / 20 + 1, number % 20 + 1);
    let show = if number < CANCELLED_FROM { "the-show" } else { CANCELLED };
    Event::listed_for(format!("list-{number}"), &ticket(number), show, &seat)
}

fn request(number: usize) -> Event {
    let seat = match number {
        hot if hot.is_multiple_of(HOT_EVERY) => 0,
        mistaken if mistaken.is_multiple_of(101) => SEATS,
        // All seats in turn, in no order: the factor is a prime.
        other => (other + other / HOT_EVERY) * 7_919 % SEATS,
    };
    let mut event = Event::requested(format!("request-{number}"), &ticket(seat), &buyer(number % BUYERS));
    if number.is_multiple_of(211) {
        event.data["hold_for"] = json!(31_536_000); // a year: no rule allows that
    }
    event
}

/// Bad records, one for each reason to dead-letter, in turn.
fn bad(number: usize, good: &Event) -> Step {
    let mut event = good.clone();
    event.id = format!("bad-{number}");
    let Record { key, value } = event.record();
    let changed = |field: &str, to: Value| {
        let mut json = json!(event);
        json[field] = to;
        Record {
            key: key.clone(),
            value: Some(json.to_string().into_bytes()),
        }
    };
    let keyed = |key: Option<&[u8]>| Record {
        key: key.map(Vec::from),
        value: value.clone(),
    };
    let valued = |value: Option<&[u8]>| Record {
        key: key.clone(),
        value: value.map(Vec::from),
    };
    match number / BAD_EVERY % 17 {
        0 => Step::bad("key_missing", keyed(None)),
        1 => Step::bad("key_empty", keyed(Some(b""))),
        2 => Step::bad("key_not_utf8", keyed(Some(b"seat-\xff"))),
        3 => Step::bad("key_invalid", keyed(Some(&[b'k'; 256]))),
        4 => Step::bad("key_mismatch", keyed(Some(b"another seat"))),
        5 => Step::bad("tombstone", valued(None)),
        6 => Step::bad("undecodable", valued(Some(b"{\"specversion\": \"1.0\", \"id\""))),
        7 => Step::bad("undecodable", valued(Some(b""))),
        8 => Step::bad("content_mode", valued(Some(b"[]"))),
        9 => Step::bad("unknown_type", changed("type", json!("holdfast.seat.painted.v1"))),
        10 => Step::bad(
            "unknown_version",
            changed("type", json!("holdfast.reservation.requested.v9")),
        ),
        11 => Step::bad("missing_attribute", changed("time", Value::Null)),
        12 => Step::bad("invalid_attribute", changed("id", json!("x".repeat(10_000)))),
        13 => Step::bad("invalid_data", changed("data", json!({ "user": "" }))),
        14 => Step::bad("nul_character", changed("data", json!({ "user": "nul \u{0}" }))),
        15 => {
            let long_ago = now() - Duration::days(30);
            Step::bad("too_old", changed("time", json!(timestamp(long_ago))))
        }
        _ => {
            event.id.clone_from(&good.id);
            event.data["user"] = json!("somebody-else");
            Step::bad("id_reused", event.record())
        }
    }
}
