//! Properties of decoding: it panics on no bytes, and a decoded event is written so that it decodes to the same again.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files fails")]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use holdfast_schemas::{
    DeadLetter, Event, EventData, Key, Origin, Outcome, Record, TicketEvent, Traceparent, UserEvent, catalogue, decode,
    decode_delivery,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

const KEY: &[u8] = b"hamlet-2030-01-31-stalls-4-12";
const STRUCTURED: (&str, Option<&[u8]>) = ("content-type", Some(b"application/cloudevents+json"));

/// Every fixture: one valid event of each type and version, outcomes too.
static VALID: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let folders = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")).unwrap();
    let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    let files = files
        .map(|file| file.unwrap().path())
        .filter(|file| !file.to_string_lossy().contains(".expected."));
    files
        .map(|file| serde_json::from_slice(&fs::read(file).unwrap()).unwrap())
        .collect()
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(
        key in option(vec(any::<u8>(), 0..300)),
        value in option(vec(any::<u8>(), 0..300)),
        headers in vec((header_name(), option(vec(any::<u8>(), 0..40))), 0..12),
    ) {
        check(&key, &value, &headers)?;
    }

    #[test]
    fn mutated_bytes_of_valid_events_never_panic(value in mutated_bytes()) {
        let key = Some(KEY.to_vec());
        check(&key, &Some(value.clone()), &[])?;
        check(&key, &Some(value.clone()), &[("content-type".to_owned(), Some(b"application/cloudevents+json".to_vec()))])?;
        check(&key, &Some([b"[", &value[..], b"]"].concat()), &[])?;
    }

    #[test]
    fn mutated_members_of_valid_events_never_panic(event in mutated_members()) {
        check(&Some(KEY.to_vec()), &Some(event.to_string().into_bytes()), &[])?;
        check_binary(&event)?;
    }

    #[test]
    fn an_event_in_binary_mode_is_the_one_in_structured_mode(event in event()) {
        same_in_binary_mode::<TicketEvent>(&event)?;
    }

    #[test]
    fn a_user_event_in_binary_mode_is_the_one_in_structured_mode(event in user_event()) {
        same_in_binary_mode::<UserEvent>(&event)?;
    }

    #[test]
    fn what_is_written_is_valid_by_the_published_schema(event in event()) {
        written_is_valid::<TicketEvent>(&event)?;
    }

    #[test]
    fn what_is_written_of_a_user_is_valid_by_the_published_schema(event in user_event()) {
        written_is_valid::<UserEvent>(&event)?;
    }

    #[test]
    fn a_traceparent_that_is_read_is_read_again(text in "[0-9a-f-]{50,60}|.*|[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?") {
        if let Ok(trace) = Traceparent::parse(&text) {
            prop_assert_eq!(Traceparent::parse(trace.as_str()), Ok(trace));
        }
    }
}

fn same_in_binary_mode<A: EventData>(event: &Value) -> Result<(), TestCaseError> {
    let value = event.to_string();
    let structured = decode::<A>(&Record {
        key: Some(KEY),
        value: Some(value.as_bytes()),
        headers: vec![STRUCTURED],
    });
    let (headers, data) = in_binary_mode(event);
    let headers = headers.iter();
    let binary = decode(&Record {
        key: Some(KEY),
        value: Some(data.as_bytes()),
        headers: headers
            .map(|(name, value)| (name.as_str(), Some(value.as_bytes())))
            .collect(),
    });
    prop_assert!(structured.is_ok(), "{:?}", structured);
    prop_assert_eq!(structured, binary);
    Ok(())
}

fn written_is_valid<A: EventData>(event: &Value) -> Result<(), TestCaseError> {
    let value = event.to_string();
    let event: Event<A> = decode(&Record {
        key: Some(KEY),
        value: Some(value.as_bytes()),
        headers: vec![],
    })
    .unwrap();
    let entries = catalogue::events().into_iter();
    let entry = { entries }.find(|entry| entry.name == event.event_type()).unwrap();
    let written = serde_json::from_slice(&event.to_json()).unwrap();
    prop_assert!(jsonschema::is_valid(&entry.schema(), &written), "{}", written);
    Ok(())
}

type Headers = [(String, Option<Vec<u8>>)];

/// Gives the record to everything that decodes, and reads back whatever it gives.
fn check(key: &Option<Vec<u8>>, value: &Option<Vec<u8>>, headers: &Headers) -> Result<(), TestCaseError> {
    check_as::<TicketEvent>(key, value, headers)?;
    check_as::<UserEvent>(key, value, headers)
}

fn check_as<A: EventData>(
    key: &Option<Vec<u8>>,
    value: &Option<Vec<u8>>,
    headers: &Headers,
) -> Result<(), TestCaseError> {
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_deref()))
        .collect();
    let read_letter = DeadLetter::from_headers(headers.iter().copied());
    if let Ok(letter) = read_letter {
        let written = letter.headers();
        let again = DeadLetter::from_headers(written.iter().map(|(name, value)| (*name, Some(value.as_bytes()))));
        prop_assert_eq!(again, Ok(letter));
    }
    match decode::<A>(&Record {
        key: key.as_deref(),
        value: value.as_deref(),
        headers,
    }) {
        Ok(event) => check_event(&event)?,
        Err(refusal) => prop_assert!(refusal.detail.len() <= 1_000),
    }
    let Some(value) = value else { return Ok(()) };
    if let Ok(gathered) = decode_delivery::<A>(value) {
        let events: Vec<Event<A>> = gathered.into_iter().filter_map(Result::ok).collect();
        for event in &events {
            check_event(event)?;
        }
        check_gathered(events)?;
    }
    if let Ok(outcome) = Outcome::<A::Outcome>::from_json(value) {
        prop_assert_eq!(Outcome::from_json(&outcome.to_json()), Ok(outcome));
    }
    Ok(())
}

fn check_event<A: EventData>(event: &Event<A>) -> Result<(), TestCaseError> {
    let json = event.to_json();
    let key = Some(event.subject.as_str().as_bytes());
    let again = decode(&Record {
        key,
        value: Some(&json),
        headers: vec![STRUCTURED],
    });
    let mut expected = event.clone();
    expected.origin = None;
    prop_assert_eq!(again.as_ref().map(Event::hash), Ok(event.hash()));
    prop_assert_eq!(again, Ok(expected));
    Ok(())
}

fn check_gathered<A: EventData>(mut events: Vec<Event<A>>) -> Result<(), TestCaseError> {
    let time = OffsetDateTime::UNIX_EPOCH;
    for (offset, event) in events.iter_mut().enumerate() {
        let origin = || Origin {
            topic: "reservations".to_owned(),
            partition: 7,
            offset: offset as i64,
            time,
        };
        event.origin.get_or_insert_with(origin);
    }
    let json = events.iter().map(Event::to_json).collect::<Vec<_>>().join(&b","[..]);
    let events = events.into_iter().map(Ok).collect();
    prop_assert_eq!(decode_delivery(&[b"[", &json[..], b"]"].concat()), Ok(events));
    Ok(())
}

fn check_binary(event: &Value) -> Result<(), TestCaseError> {
    let (headers, data) = in_binary_mode(event);
    let headers = headers
        .into_iter()
        .map(|(name, value)| (name, Some(value.into_bytes())))
        .collect::<Vec<_>>();
    check(&Some(KEY.to_vec()), &Some(data.into_bytes()), &headers)
}

fn in_binary_mode(event: &Value) -> (Vec<(String, String)>, String) {
    let none = Map::new();
    let attributes = event
        .as_object()
        .unwrap_or(&none)
        .iter()
        .filter(|(name, _)| *name != "data");
    let headers = attributes.map(|(name, value)| {
        let name = if name == "datacontenttype" {
            "content-type".to_owned()
        } else {
            format!("ce_{name}")
        };
        (name, value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    });
    (
        headers.collect(),
        event.get("data").map_or_else(String::new, Value::to_string),
    )
}

fn option<T: std::fmt::Debug>(some: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    proptest::option::weighted(0.9, some)
}

fn header_name() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &[
        "content-type",
        "ce_specversion",
        "ce_id",
        "ce_type",
        "ce_time",
        "holdfast-reason",
        "holdfast-origin-offset",
    ];
    prop_oneof![select(KNOWN).prop_map(str::to_owned), ".{0,10}"]
}

fn valid() -> impl Strategy<Value = Value> {
    any::<Index>().prop_map(|index| index.get(&VALID).clone())
}

/// Cut, overwritten or doubled bytes, as bad disks and bad code leave them.
fn mutated_bytes() -> impl Strategy<Value = Vec<u8>> {
    const FRAGMENTS: &[&str] = &[
        "\\u0000", "\\ud800", "[", "{", "\"", "\\", "null", "1e999", "-", "\0", "\u{fffd}", "type", ",",
    ];
    let fragment = prop_oneof![
        select(FRAGMENTS).prop_map(|fragment| fragment.as_bytes().to_vec()),
        vec(any::<u8>(), 0..4),
        Just(b"[".repeat(200)),
    ];
    (
        valid(),
        vec((any::<Index>(), 0_usize..8, fragment), 0..4),
        proptest::option::weighted(0.2, any::<Index>()),
    )
        .prop_map(|(event, splices, cut)| {
            let mut bytes = event.to_string().into_bytes();
            for (place, removed, inserted) in splices {
                let start = place.index(bytes.len() + 1);
                let end = (start + removed).min(bytes.len());
                bytes.splice(start..end, inserted);
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            bytes
        })
}

/// Well-formed, with some members replaced, removed or swapped with those of another type.
fn mutated_members() -> impl Strategy<Value = Value> {
    const POINTERS: &[&str] = &[
        "/specversion",
        "/id",
        "/source",
        "/type",
        "/subject",
        "/time",
        "/traceparent",
        "/datacontenttype",
        "/data",
        "/data/user",
        "/data/hold",
        "/data/hold_for",
        "/data/show",
        "/data/seat",
        "/data/price",
        "/data/price/amount",
        "/data/price/currency",
        "/data/until",
        "/data/email",
        "/data/name",
        "/data/language",
        "/data/to",
        "/data/to/email",
        "/data/was",
        "/data/amount",
        "/data/fields",
        "/data/added",
        "/sequence",
        "/data/reason",
    ];
    let changes = vec((select(POINTERS), proptest::option::weighted(0.8, any_json())), 0..3);
    (valid(), changes).prop_map(|(mut event, changes)| {
        for (pointer, change) in changes {
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            let Some(members) = event.pointer_mut(parent).and_then(Value::as_object_mut) else {
                continue;
            };
            match change {
                Some(value) => members.insert(name.to_owned(), value),
                None => members.remove(name),
            };
        }
        event
    })
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-5_i64..100_000).prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        "[A-Z]{3}".prop_map(Value::from),
        Just(json!("2030-01-31T19:30:00Z")),
        Just(json!("x".repeat(256))),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((".{0,5}", inner), 0..4).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// A valid event of any type, of any texts and numbers within the bounds.
fn event() -> impl Strategy<Value = Value> {
    let text = || "[^\0]{1,60}";
    let data = prop_oneof![
        (
            text(),
            proptest::option::of(text()),
            0..=1_000_000_000_000_i64,
            select(&["EUR", "JPY", "BHD"][..])
        )
            .prop_map(|(show, seat, amount, currency)| {
                let price = json!({"amount": amount, "currency": currency});
                (
                    "holdfast.ticket.listed.v1",
                    json!({"show": show, "seat": seat, "price": price}),
                )
            }),
        Just(("holdfast.ticket.withdrawn.v1", json!({}))),
        (
            text(),
            proptest::option::of(-9_007_199_254_740_991_i64..=9_007_199_254_740_991)
        )
            .prop_map(|(user, hold_for)| {
                (
                    "holdfast.reservation.requested.v1",
                    json!({"user": user, "hold_for": hold_for}),
                )
            }),
        (text(), any::<u128>()).prop_map(|(user, hold)| {
            (
                "holdfast.reservation.released.v1",
                json!({"user": user, "hold": uuid::Uuid::from_u128(hold)}),
            )
        }),
    ];
    event_with(data)
}

/// The same of users.
fn user_event() -> impl Strategy<Value = Value> {
    let values = || {
        let email = "[!-?A-~]{1,20}@[!-?A-~]{1,20}";
        let language = "[a-z]{2,3}(-[A-Z]{2})?";
        (
            proptest::option::of(email),
            proptest::option::of("[^\0]{1,60}"),
            proptest::option::of(language),
        )
            .prop_map(|(email, name, language)| json!({"email": email, "name": name, "language": language}))
    };
    let data = prop_oneof![
        values().prop_map(|mut values| {
            if values["email"].is_null() {
                values["email"] = json!("ann@example.org");
            }
            ("holdfast.user.registered.v1", values)
        }),
        (values(), values()).prop_map(|(to, was)| ("holdfast.profile.changed.v1", json!({"to": to, "was": was}))),
        (values(), any::<(bool, bool)>(), values()).prop_map(|(to, (name, language), was)| {
            let emptied = json!({ "name": name, "language": language });
            (
                "holdfast.profile.changed.v2",
                json!({ "to": to, "emptied": emptied, "was": was }),
            )
        }),
        Just(("holdfast.user.erased.v1", json!({}))),
        proptest::option::of("[!-~]{1,60}")
            .prop_map(|customer| ("holdfast.customer.linked.v1", json!({ "customer": customer }))),
        (
            0..=1_000_000_000_000_i64,
            select(&["pending", "succeeded", "failed"][..])
        )
            .prop_map(|(amount, status)| {
                let mut data = about_payment(amount, status);
                data["refund"] = json!("re_1");
                ("holdfast.payment.refund_changed.v1", data)
            }),
        (0..=1_000_000_000_000_i64, select(&["opened", "won", "lost"][..])).prop_map(|(amount, status)| {
            let mut data = about_payment(amount, status);
            data["dispute"] = json!("du_1");
            ("holdfast.payment.disputed.v1", data)
        }),
        (
            0..=1_000_000_000_000_i64,
            select(&["inquiry", "closed", "opened", "won", "lost"][..]),
            proptest::option::of(select(&["withdrawn", "reinstated"][..])),
        )
            .prop_map(|(amount, status, funds)| {
                let mut data = about_payment(amount, status);
                data["dispute"] = json!("du_1");
                data["funds"] = json!(funds);
                ("holdfast.payment.disputed.v2", data)
            }),
        (1..=1_000_000_000_000_i64).prop_map(|amount| ("holdfast.credits.added.v1", json!({"amount": amount}))),
    ];
    event_with(data)
}

fn about_payment(amount: i64, status: &str) -> Value {
    json!({
        "checkout": "c-1", "payment": "pi_1", "amount": { "amount": amount, "currency": "EUR" }, "status": status,
    })
}

fn event_with(data: impl Strategy<Value = (&'static str, Value)>) -> impl Strategy<Value = Value> {
    let text = || "[^\0]{1,60}";
    (text(), text(), 0_i64..253_402_300_800, data).prop_map(|(id, source, time, (event_type, data))| {
        let rfc3339 = time::format_description::well_known::Rfc3339;
        json!({
            "specversion": "1.0",
            "id": id,
            "source": source,
            "type": event_type,
            "subject": std::str::from_utf8(KEY).unwrap(),
            "time": OffsetDateTime::from_unix_timestamp(time).unwrap().format(&rfc3339).unwrap(),
            "datacontenttype": "application/json",
            "data": data,
        })
    })
}
