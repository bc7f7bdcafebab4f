//! What happens at the on-sale, in order. It is the same each time.

use holdfast_tests::load::{Event, Record, now, timestamp};
use serde_json::{Value, json};
use time::Duration;

pub(super) const SEATS: usize = 300;
pub(super) const REQUESTS: usize = 8_000;
/// Each so many-th request is for the one seat that all want.
pub(super) const HOT_EVERY: usize = 10;

const REPEAT_EVERY: usize = 20;
const BAD_EVERY: usize = 40;
/// How long ago the event was first sent that is sent again.
const REPEAT_AFTER: usize = 15;

#[derive(Clone)]
pub(super) struct Step {
    pub(super) kind: Kind,
    pub(super) record: Record,
}

/// What must become of a record.
#[derive(Clone)]
pub(super) enum Kind {
    /// An outcome answers it.
    Event { id: String },
    /// It was sent before, and changes nothing.
    Repeat,
    /// It is put aside, with this reason.
    Bad { reason: &'static str },
}

impl Step {
    pub(super) fn event(event: Event) -> Step {
        Step {
            record: event.record(),
            kind: Kind::Event { id: event.id },
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
        }
    }
}

pub(super) fn write() -> Vec<Step> {
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
    // The last seat is taken from sale; whoever holds it keeps it, and then it is refused.
    steps.push(Step::event(Event::withdrawn(
        String::from("withdraw"),
        &ticket(SEATS - 1),
    )));
    steps
}

fn ticket(number: usize) -> String {
    format!("seat-{number}")
}

fn list(number: usize) -> Event {
    let seat = format!("row {}, seat {}", number / 20 + 1, number % 20 + 1);
    Event::listed(format!("list-{number}"), &ticket(number), &seat)
}

fn request(number: usize) -> Event {
    let seat = match number {
        hot if hot.is_multiple_of(HOT_EVERY) => 0,
        mistaken if mistaken.is_multiple_of(101) => SEATS,
        // All seats in turn, in no order: the factor is a prime.
        other => (other + other / HOT_EVERY) * 7_919 % SEATS,
    };
    let user = format!("buyer-{}", number % (REQUESTS / 2));
    let mut event = Event::requested(format!("request-{number}"), &ticket(seat), &user);
    if number.is_multiple_of(211) {
        event.data["hold_for"] = json!(31_536_000); // a year: no rule allows that
    }
    event
}

/// Every reason in turn for which a record can be put aside.
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
