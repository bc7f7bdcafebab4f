//! Decoding: accepted records, and the refusal that each kind of bad input gets.

#![expect(
    clippy::unwrap_used,
    reason = "a test that gets another result than it expects fails"
)]

use holdfast_schemas::{
    DeadLetterReason as Reason, Origin, Price, Record, Refusal, TicketEvent, Undecoded, UserEvent, decode,
    decode_delivery, events,
};
use serde_json::{Value, json};
use time::macros::datetime;

const KEY: &[u8] = b"A-1";
const CLOUDEVENTS: (&str, Option<&[u8]>) = ("content-type", Some(b"application/cloudevents+json; charset=UTF-8"));

fn requested() -> Value {
    json!({
        "specversion": "1.0",
        "id": "1",
        "source": "shop",
        "type": "holdfast.reservation.requested.v1",
        "subject": "A-1",
        "time": "2030-01-31T19:30:00Z",
        "data": {"user": "ann", "hold_for": 60},
    })
}

fn listed(price: Value) -> Value {
    let data = json!({"show": "Hamlet", "seat": "Row 4", "price": price});
    with(
        with(requested(), "type", json!("holdfast.ticket.listed.v1")),
        "data",
        data,
    )
}

fn with(mut event: Value, member: &str, value: Value) -> Value {
    event[member] = value;
    event
}

fn without(mut event: Value, member: &str) -> Value {
    event.as_object_mut().unwrap().remove(member);
    event
}

fn record<'a>(value: &'a [u8], headers: &[(&'a str, Option<&'a [u8]>)]) -> Record<'a> {
    Record {
        key: Some(KEY),
        value: Some(value),
        headers: headers.to_vec(),
    }
}

type Event = holdfast_schemas::Event<TicketEvent>;

fn structured(event: &Value) -> Result<Event, Refusal> {
    decode(&record(event.to_string().as_bytes(), &[CLOUDEVENTS]))
}

fn binary<'a>(data: &'a str, changes: &[(&'a str, Option<&'a [u8]>)]) -> Result<Event, Refusal> {
    let mut headers: Vec<(&str, Option<&[u8]>)> = vec![
        ("content-type", Some(b"application/json")),
        ("ce_specversion", Some(b"1.0")),
        ("ce_id", Some(b"1")),
        ("ce_source", Some(b"shop")),
        ("ce_type", Some(b"holdfast.reservation.requested.v1")),
        ("ce_subject", Some(b"A-1")),
        ("ce_time", Some(b"2030-01-31T19:30:00Z")),
    ];
    headers.retain(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
    headers.extend(changes);
    decode(&record(data.as_bytes(), &headers))
}

#[track_caller]
fn refused(result: Result<Event, Refusal>, reason: Reason) -> String {
    let refusal = result.unwrap_err();
    assert_eq!(refusal.reason, reason, "{refusal}");
    assert!(refusal.detail.len() <= Refusal::MAX_DETAIL);
    refusal.detail
}

#[test]
fn a_structured_event_is_decoded() {
    let event = structured(&requested()).unwrap();
    assert_eq!(
        (event.source.as_str(), event.id.as_str(), event.subject.as_str()),
        ("shop", "1", "A-1")
    );
    assert_eq!(event.time, datetime!(2030-01-31 19:30 UTC));
    assert_eq!(event.event_type(), "holdfast.reservation.requested.v1");
    assert_eq!(event.origin, None);
    let user = "ann".parse().unwrap();
    assert_eq!(
        event.data,
        TicketEvent::ReservationRequested(events::ReservationRequested {
            user,
            hold_for: Some(60),
            price: None,
        })
    );
}

#[test]
fn the_content_type_of_structured_mode_is_read_in_any_case() {
    for content_type in [
        "Application/CloudEvents+JSON",
        "application/cloudevents+json ;charset=utf-8",
    ] {
        let header = ("Content-Type", Some(content_type.as_bytes()));
        assert!(
            decode::<TicketEvent>(&record(requested().to_string().as_bytes(), &[header])).is_ok(),
            "{content_type}"
        );
    }
}

#[test]
fn an_event_without_headers_is_taken_as_structured() {
    assert_eq!(
        decode(&record(requested().to_string().as_bytes(), &[])),
        structured(&requested())
    );
    let header = ("content-type", Some(&b"application/json"[..]));
    assert_eq!(
        decode(&record(requested().to_string().as_bytes(), &[header])),
        structured(&requested())
    );
}

#[test]
fn the_same_event_in_the_other_content_mode_is_the_same_event() {
    assert_eq!(binary(r#"{"user":"ann","hold_for":60}"#, &[]), structured(&requested()));
}

#[test]
fn the_same_content_has_the_same_hash_however_it_is_spelled() {
    let hash = *structured(&requested()).unwrap().hash();
    for data in [
        r#"{"hold_for":60,"user":"ann"}"#,
        r#" { "user" : "\u0061nn" , "hold_for" : 6.0e1 } "#,
        r#"{"user":"ann","hold_for":60.0}"#,
    ] {
        assert_eq!(*binary(data, &[]).unwrap().hash(), hash, "{data}");
    }
    let later = with(
        with(requested(), "time", json!("2031-01-01T00:00:00Z")),
        "id",
        json!("2"),
    );
    assert_eq!(
        *structured(&later).unwrap().hash(),
        hash,
        "neither time nor id is content"
    );
    assert_ne!(*binary(r#"{"user":"ann","hold_for":61}"#, &[]).unwrap().hash(), hash);
    assert_ne!(*binary(r#"{"user":"ann"}"#, &[]).unwrap().hash(), hash);
    let value = with(requested(), "subject", json!("A-2")).to_string();
    let elsewhere = decode::<TicketEvent>(&Record {
        key: Some(b"A-2"),
        ..record(value.as_bytes(), &[])
    });
    assert_ne!(
        *elsewhere.unwrap().hash(),
        hash,
        "on another ticket it is another event"
    );
}

#[test]
fn structured_mode_wins_over_binary_headers() {
    let headers = [
        CLOUDEVENTS,
        ("ce_specversion", Some(&b"1.0"[..])),
        ("ce_id", Some(b"another")),
    ];
    let event = decode::<TicketEvent>(&record(requested().to_string().as_bytes(), &headers));
    assert_eq!(event.unwrap().id.as_str(), "1");
}

#[test]
fn an_event_reads_back_as_it_was_written() {
    for event in [requested(), listed(json!({"amount": 4500, "currency": "EUR"}))] {
        let event = structured(&event).unwrap();
        assert_eq!(decode(&record(&event.to_json(), &[])), Ok(event));
    }
}

#[test]
fn a_delivery_is_one_event_or_a_list_with_origins() {
    let one = structured(&requested()).unwrap();
    assert_eq!(decode_delivery(&one.to_json()), Ok(vec![Ok(one.clone())]));

    let time = datetime!(2030-01-31 19:30:01.5 UTC);
    let from = |offset| {
        let mut event = one.clone();
        event.origin = Some(Origin {
            topic: "reservations".into(),
            partition: 3,
            offset,
            time,
        });
        event
    };
    let gathered = [from(0), from(1 << 40)];
    let json: Vec<_> = gathered.iter().map(Event::to_json).collect();
    let value = [b"[".to_vec(), json.join(&b","[..]), b"]".to_vec()].concat();
    assert_eq!(decode_delivery(&value), Ok(gathered.iter().cloned().map(Ok).collect()));

    assert_eq!(
        decode(&record(&json[0], &[])),
        Ok(one.clone()),
        "a claimed origin is not believed"
    );
    for broken in [&b"["[..], b"", b"[{}", b"{}", b"null", b"\xff"] {
        assert!(decode_delivery::<TicketEvent>(broken).is_err());
    }
}

#[test]
fn in_a_gathered_record_each_event_stands_or_falls_by_itself() {
    let mut one = structured(&requested()).unwrap();
    one.origin = Some(Origin {
        topic: "reservations".into(),
        partition: 3,
        offset: 7,
        time: datetime!(2030-01-31 19:30:01.5 UTC),
    });
    let json = String::from_utf8(one.to_json()).unwrap();
    let newer = json.replace("requested.v1", "painted.v1");
    let bare = String::from_utf8(structured(&requested()).unwrap().to_json()).unwrap();
    let gathered = format!("[{json}, {newer},{bare},[],1,{json}]");
    let events = decode_delivery::<TicketEvent>(gathered.as_bytes()).unwrap();
    let undecoded = |place: usize| {
        let Undecoded { refusal, origin, value } = events[place].clone().unwrap_err();
        (refusal.reason, origin, String::from_utf8(value).unwrap())
    };
    assert_eq!((&events[0], &events[5]), (&Ok(one.clone()), &Ok(one.clone())));
    assert_eq!(undecoded(1), (Reason::UnknownType, one.origin, newer));
    assert_eq!(undecoded(2), (Reason::MissingAttribute, None, bare));
    assert_eq!(undecoded(3), (Reason::ContentMode, None, "[]".to_owned()));
    assert_eq!(undecoded(4).0, Reason::ContentMode);
}

#[test]
fn a_list_and_the_data_as_a_whole_are_bounded() {
    let order = |tickets: Vec<String>| {
        let data = json!({ "checkout": "c-1", "tickets": tickets });
        let event = with(
            with(requested(), "data", data),
            "type",
            json!("holdfast.checkout.requested.v1"),
        );
        decode::<UserEvent>(&record(event.to_string().as_bytes(), &[CLOUDEVENTS]))
    };
    assert!(order(vec!["A".repeat(255); 1_000]).is_ok());
    let endless = order(vec!["A".to_owned(); 1_001]).unwrap_err();
    assert_eq!(endless.reason, Reason::InvalidData);
    assert_eq!(endless.detail, "data.tickets: must have at most 1000 entries");
    let large = order(vec!["\u{1}".repeat(255); 1_000]).unwrap_err();
    assert_eq!(large.reason, Reason::TooLarge);
}

#[test]
fn a_source_of_holdfasts_own_is_refused_wherever_it_comes_in() {
    for source in ["holdfast", "holdfast/Checkout", "restate:User/ann/checkout"] {
        let event = with(requested(), "source", json!(source));
        refused(structured(&event), Reason::ReservedSource);
        refused(
            binary("{}", &[("ce_source", Some(source.as_bytes()))]),
            Reason::ReservedSource,
        );
        let delivered = decode_delivery::<TicketEvent>(event.to_string().as_bytes());
        assert_eq!(delivered.unwrap_err().reason, Reason::ReservedSource);
    }
    assert!(structured(&with(requested(), "source", json!("shop/holdfast"))).is_ok());
}

#[test]
fn an_event_may_lie_an_hour_ahead_of_the_clock_and_no_more() {
    let event = structured(&requested()).unwrap();
    assert_eq!(event.check_time(datetime!(2030-01-31 18:30 UTC)), Ok(()));
    let early = event.check_time(datetime!(2030-01-31 18:29:59 UTC)).unwrap_err();
    assert_eq!(early.reason, Reason::TooEarly);
    assert_eq!(event.check_time(datetime!(2040-01-31 18:30 UTC)), Ok(()));
}

#[test]
fn the_mistakes_that_producers_make_are_named() {
    let (event, data) = (requested().to_string(), r#"{"user":"ann"}"#);
    let told = |key: &str, headers: &[(&str, &str)], value: &[u8]| {
        let headers = headers.iter().map(|(name, text)| (*name, Some(text.as_bytes())));
        let record = Record {
            key: Some(key.as_bytes()),
            value: Some(value),
            headers: headers.collect(),
        };
        decode::<TicketEvent>(&record).unwrap_err().detail
    };
    let quoted = [("ce_specversion", "\"1.0\""), ("ce_id", "\"1\"")];
    let twice = json!(event).to_string();
    for (detail, names) in [
        (
            told("A-1", &[("ce-specversion", "1.0"), ("ce-id", "1")], data.as_bytes()),
            "ce_specversion",
        ),
        (told("A-1", &[("CE-Id", "1")], data.as_bytes()), "named with ce-"),
        (
            told("A-1", &[("cloudEvents:id", "1")], data.as_bytes()),
            "named with cloudEvents:",
        ),
        (told("A-1", &quoted, data.as_bytes()), "in JSON quotes"),
        (told("\"A-1\"", &[], event.as_bytes()), "in JSON quotes"),
        (told("A-1 ", &[], event.as_bytes()), "blanks"),
        (told("A-1", &[], twice.as_bytes()), "serialised twice"),
        (told("A-1", &[], b"\x00\x00\x00\x00\x07\x02\x06ann"), "schema registry"),
        (told("A-1", &[], b"\x00\x00\x00\x00\x07\xff\xfe"), "schema registry"),
        (told("A-1", &[], b"\x1f\x8b\x08"), "gzip"),
        (
            told("A-1", &[], format!("\u{feff}{event}").as_bytes()),
            "byte order mark",
        ),
    ] {
        assert!(detail.contains(names), "no {names:?} in {detail:?}");
    }
}

#[test]
fn unknown_attributes_are_ignored() {
    let event = with(requested(), "partitionkey", json!("x"));
    assert_eq!(structured(&event), structured(&requested()));
    assert!(binary(r#"{"user":"ann"}"#, &[("ce_partitionkey", Some(b"\xff"))]).is_ok());
}

#[test]
fn a_bad_trace_is_ignored_and_a_good_one_kept() {
    let derived = structured(&requested()).unwrap().traceparent;
    for bad in [json!("nonsense"), json!(7), json!(null), json!([])] {
        assert_eq!(
            structured(&with(requested(), "traceparent", bad)).unwrap().traceparent,
            derived
        );
    }
    let data = r#"{"user":"ann"}"#;
    assert_eq!(
        binary(data, &[("ce_traceparent", Some(b"\xff"))]).unwrap().traceparent,
        derived
    );
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_eq!(
        structured(&with(requested(), "traceparent", json!(good)))
            .unwrap()
            .traceparent
            .as_str(),
        good
    );
    assert_eq!(
        binary(data, &[("ce_traceparent", Some(good.as_bytes()))])
            .unwrap()
            .traceparent
            .as_str(),
        good
    );
}

#[test]
fn a_bad_key_is_refused() {
    let value = requested().to_string();
    let keyed = |key| {
        decode(&Record {
            key,
            ..record(value.as_bytes(), &[])
        })
    };
    refused(keyed(None), Reason::KeyMissing);
    refused(keyed(Some(b"")), Reason::KeyEmpty);
    refused(keyed(Some(b"\xff\xfe")), Reason::KeyNotUtf8);
    refused(keyed(Some(&[b'a'; 256])), Reason::KeyInvalid);
    refused(keyed(Some(b"A\0")), Reason::NulCharacter);
    refused(keyed(Some(b"A-2")), Reason::KeyMismatch);
    refused(keyed(Some(b"A-1 ")), Reason::KeyMismatch);
}

#[test]
fn a_tombstone_is_refused_in_either_mode() {
    for headers in [vec![], vec![CLOUDEVENTS], vec![("ce_specversion", Some(&b"1.0"[..]))]] {
        refused(
            decode(&Record {
                key: Some(KEY),
                value: None,
                headers,
            }),
            Reason::Tombstone,
        );
    }
}

#[test]
fn what_is_not_json_is_undecodable() {
    let nested = format!(
        r#"{{"specversion":"1.0","x":{}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let data_nested = requested().to_string().replace("60", &nested);
    let truncated = requested().to_string();
    let truncated = &truncated[..truncated.len() - 9];
    for value in [
        "",
        " ",
        "hello",
        "{",
        truncated,
        "{}{}",
        "\u{feff}{}",
        &nested,
        &data_nested,
        r#"{"id":"\ud800"}"#,
    ] {
        for headers in [vec![], vec![CLOUDEVENTS]] {
            refused(decode(&record(value.as_bytes(), &headers)), Reason::Undecodable);
        }
    }
    refused(decode(&record(b"{\"id\":\"\xff\"}", &[])), Reason::Undecodable);
    refused(binary("{", &[]), Reason::Undecodable);
    refused(binary(&"[".repeat(100_000), &[]), Reason::Undecodable);
}

#[test]
fn a_record_at_the_limit_of_the_broker_is_judged_like_any_other() {
    let huge = "x".repeat(1_000_000);
    assert!(structured(&with(requested(), "comment", json!(huge))).is_ok());
    refused(
        structured(&with(requested(), "id", json!(huge))),
        Reason::InvalidAttribute,
    );
    refused(structured(&with(requested(), "type", json!(huge))), Reason::UnknownType);
    refused(
        structured(&with(requested(), "data", json!({"user": huge}))),
        Reason::InvalidData,
    );
    refused(
        structured(&with(requested(), "data", json!({huge: 1}))),
        Reason::InvalidData,
    );
}

#[test]
fn a_record_that_is_no_cloudevent_is_told_so() {
    for value in ["7", "[]", r#"["1.0"]"#, r#""text""#, "null", "{}", r#"{"user":"ann"}"#] {
        refused(decode(&record(value.as_bytes(), &[])), Reason::ContentMode);
    }
    for content_type in [
        "application/cloudevents-batch+json",
        "application/cloudevents+avro",
        "application/cloudevents",
    ] {
        let headers = [("content-type", Some(content_type.as_bytes()))];
        refused(
            decode(&record(requested().to_string().as_bytes(), &headers)),
            Reason::ContentMode,
        );
    }
    refused(decode(&record(b"{}", &[CLOUDEVENTS])), Reason::MissingAttribute);
}

#[test]
fn a_missing_attribute_is_named() {
    for name in ["specversion", "id", "source", "type", "subject", "time"] {
        assert!(refused(structured(&without(requested(), name)), Reason::MissingAttribute).contains(name));
        assert!(
            refused(
                structured(&with(requested(), name, json!(null))),
                Reason::MissingAttribute
            )
            .contains(name)
        );
        let plain = without(requested(), name).to_string();
        assert!(refused(decode(&record(plain.as_bytes(), &[])), Reason::MissingAttribute).contains(name));
        let header = format!("ce_{name}");
        assert!(refused(binary("{}", &[(&header, None)]), Reason::MissingAttribute).contains(name));
    }
}

#[test]
fn an_invalid_attribute_is_named() {
    let long = "x".repeat(10_000);
    for (name, value) in [
        ("specversion", json!("0.3")),
        ("specversion", json!(1.0)),
        ("id", json!("")),
        ("id", json!(long)),
        ("id", json!(1)),
        ("source", json!({"a": "b"})),
        ("source", json!(long)),
        ("subject", json!(true)),
        ("subject", json!("")),
        ("type", json!(["x"])),
        ("time", json!("yesterday")),
        ("time", json!("0001-01-01T00:00:00Z")),
        ("time", json!(1_893_456_000)),
        ("datacontenttype", json!("application/xml")),
    ] {
        assert!(refused(structured(&with(requested(), name, value)), Reason::InvalidAttribute).contains(name));
    }
    let twice = requested().to_string().replacen('{', r#"{"id":"2","#, 1);
    assert!(refused(decode(&record(twice.as_bytes(), &[])), Reason::InvalidAttribute).contains("id"));
    for (name, value) in [
        ("ce_id", &b"\xff"[..]),
        ("ce_time", b"now"),
        ("content-type", b"text/plain"),
    ] {
        refused(binary("{}", &[(name, Some(value))]), Reason::InvalidAttribute);
    }
    refused(
        binary("{}", &[("ce_id", Some(b"1")), ("ce_id", Some(b"2"))]),
        Reason::InvalidAttribute,
    );
}

#[test]
fn an_unknown_type_or_version_is_told_which_are_known() {
    let typed = |name: &str| structured(&with(requested(), "type", json!(name)));
    for name in [
        "",
        "x",
        "holdfast.ticket.burnt.v1",
        "holdfast.ticket.listed",
        "holdfast.outcome.ticket.held.v1",
    ] {
        assert!(refused(typed(name), Reason::UnknownType).contains("holdfast.ticket.listed.v1"));
    }
    for name in [
        "holdfast.ticket.listed.v2",
        "holdfast.ticket.listed.v99999999999999999999",
    ] {
        assert!(refused(typed(name), Reason::UnknownVersion).contains("known: holdfast.ticket.listed.v1"));
    }
    for name in [
        "holdfast.ticket.listed.v0",
        "holdfast.ticket.listed.v01",
        "holdfast.ticket.listed.vX",
    ] {
        refused(typed(name), Reason::UnknownType);
    }
}

#[test]
fn an_invalid_price_is_refused() {
    assert!(structured(&listed(json!({"amount": Price::MAX_AMOUNT, "currency": "JPY"}))).is_ok());
    for amount in [
        "-1",
        "1000000000001",
        "9223372036854775808",
        "1e400",
        "0.5",
        "\"5\"",
        "null",
    ] {
        let value = listed(json!({"amount": 424_242, "currency": "EUR"}))
            .to_string()
            .replace("424242", amount);
        let detail = refused(decode(&record(value.as_bytes(), &[])), Reason::InvalidData);
        assert!(detail.starts_with("data"), "{detail}");
    }
    for currency in ["XYZ", "eur", "", "EURO"] {
        refused(
            structured(&listed(json!({"amount": 1, "currency": currency}))),
            Reason::InvalidData,
        );
    }
    refused(structured(&listed(json!([1, "EUR"]))), Reason::InvalidData);
}

#[test]
fn a_fault_in_the_data_is_named_without_the_data() {
    let faulty = |data| refused(structured(&with(requested(), "data", data)), Reason::InvalidData);
    assert_eq!(faulty(json!({})), "data: missing field `user`");
    assert_eq!(
        faulty(json!({"user": "ann", "holdfor": 60})),
        "data.holdfor: unknown field `holdfor`, expected `user` or `hold_for`"
    );
    assert_eq!(
        faulty(json!({"user": true})),
        "data.user: is boolean; expected a string"
    );
    assert_eq!(
        faulty(json!({"user": ""})),
        "data.user: is empty; must have 1 to 255 bytes"
    );
    assert_eq!(faulty(json!(["ann"])), "data: is sequence; expected a JSON object");
    let secret = faulty(json!({"user": "ann", "hold_for": "my secret, expected a secret"}));
    assert!(
        secret.starts_with("data.hold_for: is string; expected a whole number"),
        "{secret}"
    );
    refused(
        structured(&with(requested(), "data_base64", json!("e30="))),
        Reason::InvalidData,
    );
    assert!(faulty(json!({"user": "ann", "hold_for": 9_007_199_254_740_992_i64})).contains("hold_for"));
}

#[test]
fn any_hold_time_is_left_to_the_rule() {
    for hold_for in [0, -1, 31_536_000, 9_007_199_254_740_991_i64] {
        assert!(structured(&with(requested(), "data", json!({"user": "ann", "hold_for": hold_for}))).is_ok());
    }
}

#[test]
fn a_withdrawal_needs_no_data() {
    let withdrawn = with(requested(), "type", json!("holdfast.ticket.withdrawn.v1"));
    let expected = structured(&with(withdrawn.clone(), "data", json!({}))).unwrap();
    assert_eq!(
        structured(&with(withdrawn.clone(), "data", json!(null))),
        Ok(expected.clone())
    );
    assert_eq!(structured(&without(withdrawn.clone(), "data")), Ok(expected.clone()));
    let headers = [("ce_type", Some(&b"holdfast.ticket.withdrawn.v1"[..]))];
    for data in ["", "null", "{}"] {
        assert_eq!(binary(data, &headers), Ok(expected.clone()));
    }
    refused(
        structured(&with(withdrawn, "data", json!({"why": "fire"}))),
        Reason::InvalidData,
    );
    refused(binary("", &[]), Reason::InvalidData);
}

#[test]
fn u_0000_is_refused_wherever_it_stands() {
    for event in [
        with(requested(), "id", json!("a\0b")),
        with(requested(), "time", json!("\0")),
        with(requested(), "comment", json!("\0")),
        with(requested(), "data", json!({"user": "\\\0"})),
        with(requested(), "data", json!({"\0": 1})),
    ] {
        refused(structured(&event), Reason::NulCharacter);
    }
    refused(binary(r#"{"user":"\u0000"}"#, &[]), Reason::NulCharacter);
    refused(
        binary(r#"{"user":"ann"}"#, &[("ce_id", Some(b"\0"))]),
        Reason::NulCharacter,
    );
    refused(
        binary(r#"{"user":"ann"}"#, &[("ce_comment", Some(b"\0"))]),
        Reason::NulCharacter,
    );
}

#[test]
fn other_characters_are_all_taken() {
    for user in [
        "\u{1}\u{1f}\u{7f}",
        "\u{202e}nna",
        "\u{5d0}\u{5d1}",
        "\\u0000",
        "\u{10ffff}",
        "\"\n",
    ] {
        let event = structured(&with(requested(), "data", json!({"user": user}))).unwrap();
        assert!(
            matches!(event.data, TicketEvent::ReservationRequested(events::ReservationRequested { user: found, .. }) if found.as_str() == user)
        );
    }
}
