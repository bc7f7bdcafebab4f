//! What comes in: whatever is sent, bad records are put aside as they came, and no good one waits or suffers for it.

use anyhow::{Context, ensure};
use holdfast_schemas::DeadLetterReason as Reason;
use holdfast_schemas::{Outcome, RefusalReason, TicketTold, topics};
use holdfast_tests::kit::Kit;
use holdfast_tests::kit::kafka::{Read, Sent, send_with};
use holdfast_tests::load::{now, timestamp};
use serde_json::{Value, json};
use time::Duration;

use crate::support::{
    Letter, binary, clean, event, header, letters, listed, requested, send, structured, told, verdict, verdicts,
};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_bad_record_is_put_aside_as_it_came_and_the_good_ones_around_it_go_on,
    a_record_at_the_brokers_limit_is_taken_or_put_aside_whole,
    odd_but_allowed_values_come_back_unchanged,
    what_a_rule_forbids_is_refused_and_not_put_aside,
    every_compression_codec_is_read,
];

/// The broker's limit on the public topic, in bytes.
const LIMIT: usize = 1 << 20;

/// A record that must be put aside.
struct Bad {
    what: &'static str,
    reason: Reason,
    /// What its detail must name, so that its sender finds the fault.
    names: &'static str,
    sent: Sent,
}

fn a_bad_record_is_put_aside_as_it_came_and_the_good_ones_around_it_go_on(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "intake").start().await?;
        let bad = bad_records();
        let good = |number| format!("intake/good/{number}");
        let mut records = Vec::new();
        for (number, bad) in bad.iter().enumerate() {
            records.push(bad.sent.clone());
            records.push(structured(&listed(&good(number), &good(number))));
        }
        // All in one partition: were one of them to stop it, nothing after it would be decided.
        for record in &mut records {
            record.partition = Some(0);
        }
        let places = kit.stack.kafka.send(topics::RESERVATIONS, &records).await?;

        let outcomes = told(kit, "intake/good/", bad.len()).await?;
        ensure!(
            verdicts(&outcomes).iter().all(|verdict| verdict == "listed"),
            "{outcomes:?}"
        );
        let places: Vec<_> = places.into_iter().step_by(2).collect();
        let letters = letters(kit, &places).await?;
        let originals = kit.stack.kafka.read(topics::RESERVATIONS).await?;
        for (bad, place) in bad.iter().zip(&places) {
            let original = original(&originals, *place)?;
            is_put_aside(bad, &letters[place], original).with_context(|| bad.what)?;
        }
        clean(kit).await?;
        worker.stop().await
    })
}

fn original(records: &[Read], place: (i32, i64)) -> anyhow::Result<&Read> {
    let mut found = records
        .iter()
        .filter(|record| (record.partition, record.offset) == place);
    found.next().with_context(|| format!("no record at {place:?}"))
}

fn is_put_aside(bad: &Bad, letter: &Letter, original: &Read) -> anyhow::Result<()> {
    let says = &letter.says;
    ensure!(says.reason == bad.reason, "put aside as {says:?}");
    ensure!(
        says.detail.contains(bad.names),
        "no {:?} in {:?}",
        bad.names,
        says.detail
    );
    let millis = says.origin.time.unix_timestamp_nanos() / 1_000_000;
    ensure!(says.origin.topic == topics::RESERVATIONS, "{says:?}");
    ensure!(
        original.timestamp.map(i128::from) == Some(millis),
        "{says:?} about {original:?}"
    );
    ensure!(letter.record.key == bad.sent.key, "its key is {:?}", letter.record.key);
    ensure!(letter.record.value == bad.sent.value, "its value is another");
    ensure!(
        letter.headers() == bad.sent.headers,
        "its headers are {:?}",
        letter.headers()
    );
    Ok(())
}

fn a_record_at_the_brokers_limit_is_taken_or_put_aside_whole(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "intake").start().await?;
        let ticket = "intake/limit";
        let padded = |length: usize| {
            let mut record = structured(&listed(ticket, ticket));
            if let Some(value) = record.value.as_mut() {
                value.resize(length, b' ');
            }
            record
        };
        let most = LIMIT - overhead(&padded(LIMIT));
        let too_large = kit.stack.kafka.send(topics::RESERVATIONS, &[padded(most + 1)]).await;
        ensure!(too_large.is_err(), "{most} bytes are not the limit");
        let garbage = Sent {
            value: Some(garbage(most)),
            ..padded(most)
        };
        // A batch is measured compressed, so a record may even be larger than a dead letter can be.
        let inflated = Sent {
            value: Some(garbage_that_only_zstd_compresses(6 << 20)),
            ..padded(most)
        };
        let places = kit
            .stack
            .kafka
            .send(topics::RESERVATIONS, &[padded(most), garbage.clone()])
            .await?;
        let zstd = kit.stack.kafka.producer("zstd")?;
        let inflated_place = send_with(&zstd, topics::RESERVATIONS, &[inflated]).await?[0];
        send(kit, &[requested("intake/limit/after", ticket, "ann")]).await?;

        let outcomes = told(kit, ticket, 2).await?;
        ensure!(verdicts(&outcomes) == ["listed", "held"], "{outcomes:?}");
        let letters = letters(kit, &[places[1], inflated_place]).await?;
        let letter = &letters[&places[1]];
        ensure!(letter.says.reason == Reason::Undecodable, "{:?}", letter.says);
        ensure!(letter.record.value == garbage.value, "not the bytes that were sent");
        let letter = &letters[&inflated_place];
        ensure!(letter.says.reason == Reason::Undecodable, "{:?}", letter.says);
        ensure!(
            letter.says.detail.contains("too large for a dead letter"),
            "{:?}",
            letter.says
        );
        ensure!(letter.record.value.is_none(), "more than the topic takes");
        clean(kit).await?;
        worker.stop().await
    })
}

/// Bytes that a batch of this one record takes beside its value: the batch's header, and lengths and marks of the
/// record, as long as they are for values near the limit.
fn overhead(record: &Sent) -> usize {
    let sizes = |(name, value): &(String, Vec<u8>)| 1 + name.len() + 1 + value.len();
    let headers: usize = record.headers.iter().map(sizes).sum();
    61 + 3 + 3 + 1 + record.key.as_ref().map_or(0, Vec::len) + 3 + 1 + headers
}

/// Bytes that no codec makes smaller.
fn garbage(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Repeats at a distance that is too long for most codecs.
fn garbage_that_only_zstd_compresses(length: usize) -> Vec<u8> {
    garbage(256 << 10).into_iter().cycle().take(length).collect()
}

fn odd_but_allowed_values_come_back_unchanged(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "intake").start().await?;
        let texts = [
            "control \u{1}\u{8}\u{1b}[31m\u{7f}\u{85}",
            "right to left \u{202e}\u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{627}\u{644}\u{633}\u{644}\u{627}\u{645}\u{2066}",
            "lines\r\n\tand \u{2028} quotes \" ' \\ \\u0000 %00 $1 ; --",
            "beyond the basic plane \u{1f3ab}\u{10ffff} and composed e\u{301}",
            "brackets [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[{{{{{{{{",
            " ",
        ];
        let prices = [("0", 0), ("1000000000000", 1_000_000_000_000), ("1e2", 100)];
        let mut records = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            let key = format!("intake/odd/{number}/{text}");
            let mut listed = listed(&format!("{key}/list"), &key);
            listed["data"]["seat"] = json!(text);
            let mut requested = requested(&format!("{key}/hold"), &key, text);
            requested["source"] = json!(text);
            records.extend([binary(&listed), structured(&requested)]);
        }
        for (spelt, _) in prices {
            let mut record = structured(&listed(
                &format!("intake/odd/price/{spelt}"),
                &format!("intake/odd/price/{spelt}"),
            ));
            let value = String::from_utf8(record.value.take().context("a value")?)?;
            record.value = Some(value.replace("4500", spelt).into_bytes());
            records.push(record);
        }
        let longest = "i".repeat(255);
        records.push(structured(&listed(
            &longest,
            &format!("intake/odd/{}", "t".repeat(244)),
        )));
        kit.stack.kafka.send(topics::RESERVATIONS, &records).await?;

        let outcomes = told(kit, "intake/odd/", records.len()).await?;
        for (number, text) in texts.iter().enumerate() {
            let key = format!("intake/odd/{number}/{text}");
            let of_key: Vec<&Outcome<TicketTold>> = outcomes
                .iter()
                .filter(|outcome| outcome.subject.as_str() == key)
                .collect();
            let [listed, held] = of_key[..] else {
                anyhow::bail!("{key:?}: {of_key:?}");
            };
            ensure!(
                matches!(&listed.data, TicketTold::TicketListed { seat: Some(seat), .. } if seat.as_str() == *text),
                "{listed:?}"
            );
            ensure!(
                matches!(&held.data, TicketTold::TicketHeld { user, .. } if user.as_str() == *text),
                "{held:?}"
            );
            ensure!(listed.causation_id.as_str() == format!("{key}/list"), "{listed:?}");
            ensure!(held.causation_source.as_str() == *text, "{held:?}");
        }
        for (spelt, amount) in prices {
            let of_price = outcomes
                .iter()
                .find(|outcome| outcome.subject.as_str().ends_with(&format!("price/{spelt}")));
            let of_price = of_price.with_context(|| spelt)?;
            ensure!(
                matches!(&of_price.data, TicketTold::TicketListed { price, .. } if price.amount() == amount),
                "{of_price:?}"
            );
        }
        ensure!(
            outcomes.iter().any(|outcome| outcome.causation_id.as_str() == longest),
            "{outcomes:?}"
        );
        clean(kit).await?;
        worker.stop().await
    })
}

fn what_a_rule_forbids_is_refused_and_not_put_aside(kit: &Kit) -> anyhow::Result<()> {
    const DAY: i64 = 86_400;
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "intake").start().await?;
        let forbidden = [0, -1, DAY + 1, 365 * DAY, (1 << 53) - 1];
        let allowed = [1, DAY];
        let mut events = Vec::new();
        for hold_for in forbidden.iter().chain(&allowed) {
            let ticket = format!("intake/rule/{hold_for}");
            events.push(listed(&format!("{ticket}/list"), &ticket));
            let data = json!({ "user": "ann", "hold_for": hold_for });
            events.push(event(&format!("{ticket}/hold"), &ticket, "reservation.requested", data));
        }
        events.push(requested("intake/rule/nowhere", "intake/rule/nowhere", "ann"));
        send(kit, &events).await?;

        // A hold of one second is over soon, and its ticket has one more outcome.
        let within_bounds = |outcome: &&Outcome<TicketTold>| !matches!(outcome.data, TicketTold::TicketExpired { .. });
        let outcomes = told(kit, "intake/rule/", events.len() + 1).await?;
        for (prefix, expected) in forbidden
            .iter()
            .map(|hold_for| (hold_for, "hold_for_out_of_bounds"))
            .chain(allowed.iter().map(|hold_for| (hold_for, "held")))
        {
            let key = format!("intake/rule/{prefix}");
            let of_key = outcomes
                .iter()
                .filter(|outcome| outcome.subject.as_str() == key)
                .filter(within_bounds);
            let of_key: Vec<String> = of_key.map(verdict).collect();
            ensure!(of_key == ["listed", expected], "{key}: {of_key:?}");
        }
        let nowhere = outcomes
            .iter()
            .find(|outcome| outcome.subject.as_str() == "intake/rule/nowhere");
        let nowhere = nowhere.context("no outcome for an unknown ticket")?;
        let unknown = TicketTold::ReservationRefused {
            reason: RefusalReason::UnknownTicket,
        };
        ensure!(nowhere.data == unknown && nowhere.sequence == 0, "{nowhere:?}");
        clean(kit).await?;
        worker.stop().await
    })
}

fn every_compression_codec_is_read(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "intake").start().await?;
        let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
        let mut bad = Vec::new();
        for codec in codecs {
            let ticket = format!("intake/codec/{codec}");
            let mut long = listed(&ticket, &ticket);
            long["data"]["seat"] = json!("row ".repeat(250));
            let garbage = Sent {
                value: Some(codec.repeat(1_000).into_bytes()),
                ..structured(&long)
            };
            let producer = kit.stack.kafka.producer(codec)?;
            let places = send_with(&producer, topics::RESERVATIONS, &[structured(&long), garbage.clone()]).await?;
            bad.push((places[1], garbage));
        }
        let outcomes = told(kit, "intake/codec/", codecs.len()).await?;
        ensure!(
            verdicts(&outcomes).iter().all(|verdict| verdict == "listed"),
            "{outcomes:?}"
        );
        let places: Vec<_> = bad.iter().map(|(place, _)| *place).collect();
        let letters = letters(kit, &places).await?;
        for (place, garbage) in bad {
            ensure!(
                letters[&place].record.value == garbage.value,
                "{:?}",
                letters[&place].says
            );
        }
        clean(kit).await?;
        worker.stop().await
    })
}

fn bad_records() -> Vec<Bad> {
    [bad_keys(), bad_values(), bad_modes(), bad_attributes(), bad_data()]
        .into_iter()
        .flatten()
        .collect()
}

/// What would be decided, were nothing wrong with it.
fn sound() -> Value {
    requested("intake/bad", "intake/bad", "ann")
}

fn keyed(key: Option<&[u8]>) -> Sent {
    Sent {
        key: key.map(Vec::from),
        ..structured(&sound())
    }
}

fn valued(value: Option<&[u8]>) -> Sent {
    Sent {
        value: value.map(Vec::from),
        ..structured(&sound())
    }
}

fn with_headers(headers: &[(&str, &str)], value: &str) -> Sent {
    Sent {
        headers: headers.iter().map(|(name, value)| header(name, value)).collect(),
        ..valued(Some(value.as_bytes()))
    }
}

/// With another value at `pointer`, or without any.
fn changed(pointer: &str, value: Option<Value>) -> Sent {
    let mut event = sound();
    let (parent, field) = pointer.rsplit_once('/').unwrap_or_default();
    if let Some(Value::Object(parent)) = event.pointer_mut(parent) {
        match value {
            Some(value) => drop(parent.insert(field.to_owned(), value)),
            None => drop(parent.remove(field)),
        }
    }
    valued(Some(event.to_string().as_bytes()))
}

fn bad_keys() -> Vec<Bad> {
    let bad = |what, reason, key: Option<&[u8]>| Bad {
        what,
        reason,
        names: "key",
        sent: keyed(key),
    };
    vec![
        bad("a missing key", Reason::KeyMissing, None),
        bad("an empty key", Reason::KeyEmpty, Some(b"")),
        bad("a key that is not UTF-8", Reason::KeyNotUtf8, Some(b"intake/\xff\xfe")),
        bad(
            "a key of eight zero bytes, as a number serializer writes it",
            Reason::NulCharacter,
            Some(&[0; 8]),
        ),
        bad("a key too long", Reason::KeyInvalid, Some(&[b'k'; 256])),
        bad("a key of 100,000 bytes", Reason::KeyInvalid, Some(&[b'k'; 100_000])),
        bad(
            "a key that differs from the subject",
            Reason::KeyMismatch,
            Some(b"intake/other"),
        ),
        bad("a key that differs by case", Reason::KeyMismatch, Some(b"INTAKE/BAD")),
        bad(
            "a key that only looks like the subject",
            Reason::KeyMismatch,
            Some("intake\u{2044}bad".as_bytes()),
        ),
    ]
}

fn bad_values() -> Vec<Bad> {
    let bad = |what, reason, value: Option<&[u8]>| Bad {
        what,
        reason,
        names: "value",
        sent: valued(value),
    };
    let sound = sound().to_string();
    let nested = |depth: usize| {
        sound.replace(
            r#"{"user":"ann"}"#,
            &format!("{}{}", "[".repeat(depth), "]".repeat(depth)),
        )
    };
    let raw_nul = sound.replace("ann", "a\u{0}n");
    let open = nested(100_000).replace(']', "");
    vec![
        bad("a tombstone", Reason::Tombstone, None),
        bad("an empty body", Reason::Undecodable, Some(b"")),
        bad("a body of blanks", Reason::Undecodable, Some(b" \n\t ")),
        bad(
            "truncated JSON",
            Reason::Undecodable,
            Some(&sound.as_bytes()[..sound.len() - 1]),
        ),
        bad(
            "two JSON values",
            Reason::Undecodable,
            Some(format!("{sound}{sound}").as_bytes()),
        ),
        bad(
            "a body that is not UTF-8",
            Reason::Undecodable,
            Some(
                &sound
                    .replace("ann", "\u{e9}")
                    .into_bytes()
                    .iter()
                    .map(|byte| if *byte == 0xa9 { 0xff } else { *byte })
                    .collect::<Vec<_>>(),
            ),
        ),
        bad("JSON nested 40 deep", Reason::Undecodable, Some(nested(40).as_bytes())),
        bad(
            "JSON nested 100,000 deep",
            Reason::Undecodable,
            Some(nested(100_000).as_bytes()),
        ),
        bad(
            "JSON that opens 100,000 lists",
            Reason::Undecodable,
            Some(open.as_bytes()),
        ),
        bad("an unescaped U+0000", Reason::Undecodable, Some(raw_nul.as_bytes())),
        bad(
            "JSON behind a byte order mark",
            Reason::Undecodable,
            Some(format!("\u{feff}{sound}").as_bytes()),
        ),
        bad(
            "Avro behind a schema registry's mark",
            Reason::Undecodable,
            Some(b"\x00\x00\x00\x00\x07\x02\x06ann"),
        ),
    ]
}

fn bad_modes() -> Vec<Bad> {
    let bad = |what, reason, names, headers: &[(&str, &str)], value: &str| Bad {
        what,
        reason,
        names,
        sent: with_headers(headers, value),
    };
    let sound = sound();
    let whole = sound.to_string();
    let structured = [("content-type", "application/cloudevents+json")];
    let batch = [("content-type", "application/cloudevents-batch+json")];
    let avro = [("content-type", "application/cloudevents+avro")];
    let without_version: Vec<_> = binary(&sound)
        .headers
        .into_iter()
        .filter(|(name, _)| name != "ce_specversion")
        .collect();
    vec![
        bad(
            "a list of events",
            Reason::ContentMode,
            "object",
            &[],
            &format!("[{whole}]"),
        ),
        bad(
            "JSON that is no CloudEvent",
            Reason::ContentMode,
            "CloudEvent",
            &[],
            r#"{"user":"ann"}"#,
        ),
        bad("a JSON text", Reason::ContentMode, "object", &[], r#""ann""#),
        bad(
            "a batch",
            Reason::ContentMode,
            "content-type",
            &batch,
            &format!("[{whole}]"),
        ),
        bad("another format", Reason::ContentMode, "content-type", &avro, &whole),
        bad(
            "data alone, said to be structured",
            Reason::MissingAttribute,
            "specversion",
            &structured,
            r#"{"user":"ann"}"#,
        ),
        Bad {
            what: "binary mode with a whole event as data",
            reason: Reason::InvalidData,
            names: "data",
            sent: Sent {
                value: Some(whole.clone().into_bytes()),
                ..binary(&sound)
            },
        },
        Bad {
            what: "binary mode without specversion",
            reason: Reason::MissingAttribute,
            names: "ce_specversion",
            sent: Sent {
                headers: without_version,
                ..binary(&sound)
            },
        },
        Bad {
            what: "binary mode with an attribute twice",
            reason: Reason::InvalidAttribute,
            names: "ce_id",
            sent: Sent {
                headers: [binary(&sound).headers, vec![header("ce_id", "another")]].concat(),
                ..binary(&sound)
            },
        },
        Bad {
            what: "binary mode with truncated data",
            reason: Reason::Undecodable,
            names: "value",
            sent: Sent {
                value: Some(br#"{"user":"an"#.to_vec()),
                ..binary(&sound)
            },
        },
    ]
}

fn bad_attributes() -> Vec<Bad> {
    let bad = |what, reason, names, field: &str, value| Bad {
        what,
        reason,
        names,
        sent: changed(&format!("/{field}"), value),
    };
    let missing = |what| bad(what, Reason::MissingAttribute, what, what, None);
    let kind = |what, reason, kind: &str| bad(what, reason, "type", "type", Some(json!(kind)));
    let invalid = |what, field, value| bad(what, Reason::InvalidAttribute, field, field, Some(value));
    let mut nul_in_header = binary(&sound());
    nul_in_header.headers.retain(|(name, _)| name != "ce_id");
    nul_in_header.headers.push(header("ce_id", "intake\u{0}bad"));
    let twice = sound().to_string().replacen('{', r#"{"id":"another","#, 1);
    vec![
        missing("specversion"),
        missing("id"),
        missing("source"),
        missing("type"),
        missing("subject"),
        missing("time"),
        kind("an unknown type", Reason::UnknownType, "holdfast.seat.painted.v1"),
        kind(
            "a type without a version",
            Reason::UnknownType,
            "holdfast.reservation.requested",
        ),
        kind(
            "an outcome's type",
            Reason::UnknownType,
            "holdfast.outcome.ticket.held.v1",
        ),
        kind(
            "an unknown version",
            Reason::UnknownVersion,
            "holdfast.reservation.requested.v99",
        ),
        kind(
            "the next version",
            Reason::UnknownVersion,
            "holdfast.reservation.requested.v2",
        ),
        invalid("an id of 10,000 characters", "id", json!("i".repeat(10_000))),
        invalid("an empty id", "id", json!("")),
        invalid("an id that is a number", "id", json!(17)),
        invalid("a source too long", "source", json!("s".repeat(256))),
        invalid("another specversion", "specversion", json!("0.3")),
        invalid("a time without a zone", "time", json!("2030-01-31T19:30:00")),
        invalid("a time before 1970", "time", json!("1969-12-31T23:59:59Z")),
        invalid("a time that is a number", "time", json!(1_893_456_000)),
        invalid("data of another kind", "datacontenttype", json!("application/xml")),
        bad(
            "U+0000 in the id",
            Reason::NulCharacter,
            "U+0000",
            "id",
            Some(json!("in\u{0}take")),
        ),
        bad(
            "U+0000 in an attribute nobody knows",
            Reason::NulCharacter,
            "U+0000",
            "colour",
            Some(json!("\u{0}")),
        ),
        Bad {
            what: "U+0000 in a header",
            reason: Reason::NulCharacter,
            names: "ce_id",
            sent: nul_in_header,
        },
        Bad {
            what: "an attribute twice",
            reason: Reason::InvalidAttribute,
            names: "id",
            sent: valued(Some(twice.as_bytes())),
        },
        bad(
            "an event older than the retention",
            Reason::TooOld,
            "time",
            "time",
            Some(json!(timestamp(now() - Duration::days(8)))),
        ),
    ]
}

fn bad_data() -> Vec<Bad> {
    let bad = |what, reason, names, data: Value| Bad {
        what,
        reason,
        names,
        sent: changed("/data", Some(data)),
    };
    let priced = |what, names, price: &str| {
        let mut event = listed("intake/bad", "intake/bad");
        event["data"]["price"] = json!("the price");
        let event = event.to_string().replace("\"the price\"", price);
        Bad {
            what,
            reason: Reason::InvalidData,
            names,
            sent: valued(Some(event.as_bytes())),
        }
    };
    vec![
        bad("no user", Reason::InvalidData, "user", json!({})),
        bad("an empty user", Reason::InvalidData, "data.user", json!({ "user": "" })),
        bad(
            "a user too long",
            Reason::InvalidData,
            "data.user",
            json!({ "user": "u".repeat(256) }),
        ),
        bad(
            "a field nobody knows",
            Reason::InvalidData,
            "colour",
            json!({ "user": "ann", "colour": "red" }),
        ),
        bad("data that is a list", Reason::InvalidData, "data", json!(["ann"])),
        bad(
            "U+0000 in the data",
            Reason::NulCharacter,
            "U+0000",
            json!({ "user": "a\u{0}n" }),
        ),
        bad(
            "a hold time that is no whole number",
            Reason::InvalidData,
            "data.hold_for",
            json!({ "user": "ann", "hold_for": 0.5 }),
        ),
        bad(
            "a hold time beyond exact numbers",
            Reason::InvalidData,
            "data.hold_for",
            json!({ "user": "ann", "hold_for": 1e300 }),
        ),
        Bad {
            what: "half a surrogate pair",
            reason: Reason::InvalidData,
            names: "data",
            sent: valued(Some(sound().to_string().replace("ann", r"\ud800").as_bytes())),
        },
        Bad {
            what: "data in base64",
            reason: Reason::InvalidData,
            names: "data_base64",
            sent: changed("/data_base64", Some(json!("e30="))),
        },
        priced("a negative price", "data.price", r#"{"amount":-1,"currency":"EUR"}"#),
        priced(
            "a price too high",
            "data.price",
            r#"{"amount":1000000000001,"currency":"EUR"}"#,
        ),
        priced(
            "a price beyond 64 bits",
            "data.price",
            r#"{"amount":99999999999999999999,"currency":"EUR"}"#,
        ),
        priced(
            "a price beyond all numbers",
            "data.price",
            r#"{"amount":1e999,"currency":"EUR"}"#,
        ),
        priced(
            "a price with cents",
            "data.price",
            r#"{"amount":45.5,"currency":"EUR"}"#,
        ),
        priced(
            "a price that is a text",
            "data.price",
            r#"{"amount":"4500","currency":"EUR"}"#,
        ),
        priced("an unknown currency", "data.price", r#"{"amount":1,"currency":"ZZZ"}"#),
        priced(
            "a currency in small letters",
            "data.price",
            r#"{"amount":1,"currency":"eur"}"#,
        ),
        priced("no currency", "data.price", r#"{"amount":1}"#),
    ]
}
