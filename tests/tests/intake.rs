//! Intake: bad records become dead letters with their original bytes, and no good record waits or suffers for them.

use anyhow::{Context, ensure};
use holdfast_schemas::DeadLetterReason as Reason;
use holdfast_schemas::{Key, Outcome, OutcomeData, RefusalReason, TicketOutcome, UserOutcome, outcomes, topics};
use holdfast_tests::kit::Kit;
use holdfast_tests::kit::kafka::{ReadRecord, Sent, send_with};
use holdfast_tests::load::{now, timestamp};
use serde_json::{Value, json};
use sqlx::Row;
use time::Duration;

use crate::support::{
    FoundLetter, binary, clean, event, header, letters_about, listed, pay, requested, send, structured, told, told_of,
    verdict, verdicts,
};
use crate::users::{added, registered};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_bad_record_is_put_aside_as_it_came_and_the_good_ones_around_it_go_on,
    a_record_at_the_brokers_limit_is_taken_or_put_aside_whole,
    odd_but_allowed_values_come_back_unchanged,
    what_a_rule_forbids_is_refused_and_not_put_aside,
    every_compression_codec_is_read,
    a_whole_number_may_be_spelt_in_any_way_by_http_as_well,
];

/// The broker's limit on the public topic, in bytes.
const LIMIT: usize = 1 << 20;

/// A record that must become a dead letter.
struct Bad {
    what: String,
    reason: Reason,
    /// A word that the dead letter's detail must have, so that the sender finds the fault.
    names: String,
    sent: Sent,
}

impl Bad {
    fn new(what: impl Into<String>, reason: Reason, names: impl Into<String>, sent: Sent) -> Self {
        Self {
            what: what.into(),
            reason,
            names: names.into(),
            sent,
        }
    }
}

/// One public topic, and its valid events.
struct Intake {
    topic: &'static str,
    /// A valid event, to be spoilt. Its data have the text `ann`.
    sound: Value,
    /// The field with that text.
    field: &'static str,
    /// A type of the other topic.
    strange: &'static str,
    /// Bad records with faults in the data of this topic's types.
    data: fn() -> Vec<Bad>,
    /// A valid event with this id, and its outcome.
    good: fn(&str) -> Value,
    verdict: &'static str,
    /// Two events of this key that contain this text, and the fields of their outcomes that repeat it.
    odd: fn(&str, &str) -> [Value; 2],
    told_as: Option<[&'static str; 2]>,
    /// Reads keys that begin with `$1`, and the text that each keeps of the first of these.
    kept: &'static str,
    /// Events of this key, the last with the amount `4500`; the field of its outcome with the amount, and the least valid one.
    amount: fn(&str) -> Vec<Value>,
    amount_at: &'static str,
    least: &'static str,
}

/// An outcome of either topic.
#[derive(Debug)]
struct Answer {
    subject: String,
    cause: (String, String),
    verdict: String,
    data: Value,
}

fn intakes() -> [Intake; 2] {
    [
        Intake {
            topic: topics::RESERVATIONS,
            sound: requested("intake/bad", "intake/bad", "ann"),
            field: "user",
            strange: "holdfast.payment.failed.v1",
            data: bad_reservations,
            good: |id| listed(id, id),
            verdict: "listed",
            odd: |key, text| {
                let mut listed = listed(&format!("{key}/first"), key);
                listed["data"]["seat"] = json!(text);
                [listed, requested(&format!("{key}/second"), key, text)]
            },
            told_as: Some(["seat", "user"]),
            kept: "select ticket, seat from tickets where starts_with(ticket, $1) and seat is not null",
            amount: |key| vec![listed(key, key)],
            amount_at: "/price/amount",
            least: "0",
        },
        Intake {
            topic: topics::PAYMENTS,
            sound: event(
                "intake/bad",
                "intake/bad",
                "payment.failed",
                json!({ "checkout": "ann", "payment": "pi_1", "code": "lost_card" }),
            ),
            field: "checkout",
            strange: "holdfast.reservation.requested.v1",
            data: bad_payments,
            good: |id| registered(id, id),
            verdict: "registered",
            odd: |key, text| {
                let mut registered = registered(&format!("{key}/first"), key);
                registered["data"]["name"] = json!(text);
                let data = json!({ "checkout": text, "payment": "pi_1", "code": "lost_card" });
                [registered, event(&format!("{key}/second"), key, "payment.failed", data)]
            },
            told_as: None,
            kept: "select user_id, name from users where starts_with(user_id, $1) and name is not null",
            amount: |key| vec![registered(&format!("{key}/first"), key), added(key, key, 4_500)],
            amount_at: "/added",
            least: "1",
        },
    ]
}

/// At the same time.
async fn on_both(show: impl AsyncFn(&Intake) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let [one, other] = &intakes();
    let show = async |intake: &Intake| show(intake).await.context(intake.topic);
    tokio::try_join!(show(one), show(other)).map(drop)
}

fn a_bad_record_is_put_aside_as_it_came_and_the_good_ones_around_it_go_on(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "intake").start().await?;
        on_both(async |intake| are_put_aside(kit, intake).await).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

async fn are_put_aside(kit: &Kit, intake: &Intake) -> anyhow::Result<()> {
    let bad = intake.bad_records();
    let prefix = format!("intake/good/{}/", intake.topic);
    let mut records = Vec::new();
    for (number, bad) in bad.iter().enumerate() {
        records.push(bad.sent.clone());
        records.push(structured(&(intake.good)(&format!("{prefix}{number}"))));
    }
    // All in one partition: if one of them stopped it, nothing after it would be decided.
    for record in &mut records {
        record.partition = Some(0);
    }
    let places = kit.stack.kafka.send(intake.topic, &records).await?;

    intake.are_good(kit, &prefix, bad.len()).await?;
    let places: Vec<_> = places.into_iter().step_by(2).collect();
    let letters = letters_about(kit, intake.topic, &places).await?;
    let originals = kit.stack.kafka.read(intake.topic).await?;
    for (bad, place) in bad.iter().zip(&places) {
        let original = original(&originals, *place)?;
        is_put_aside(intake.topic, bad, &letters[place], original).with_context(|| bad.what.clone())?;
    }
    Ok(())
}

fn original(records: &[ReadRecord], place: (i32, i64)) -> anyhow::Result<&ReadRecord> {
    let mut found = records
        .iter()
        .filter(|record| (record.partition, record.offset) == place);
    found.next().with_context(|| format!("no record at {place:?}"))
}

fn is_put_aside(topic: &str, bad: &Bad, letter: &FoundLetter, original: &ReadRecord) -> anyhow::Result<()> {
    let says = &letter.says;
    ensure!(says.reason == bad.reason, "put aside as {says:?}");
    ensure!(
        says.detail.contains(&bad.names),
        "no {:?} in {:?}",
        bad.names,
        says.detail
    );
    let millis = says.origin.time.unix_timestamp_nanos() / 1_000_000;
    ensure!(says.origin.topic == topic, "{says:?}");
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
        on_both(async |intake| at_the_limit(kit, intake).await).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

async fn at_the_limit(kit: &Kit, intake: &Intake) -> anyhow::Result<()> {
    // An id is an event's of one topic.
    let id = format!("intake/limit/{}", intake.topic);
    let good = |id: &str| Sent {
        partition: Some(0),
        ..structured(&(intake.good)(id))
    };
    let padded = |length: usize| {
        let mut record = good(&id);
        if let Some(value) = record.value.as_mut() {
            value.resize(length, b' ');
        }
        record
    };
    let most = LIMIT - overhead(&padded(LIMIT));
    let filled = |length: usize| Sent {
        value: Some(garbage(length)),
        ..padded(most)
    };
    let too_large = kit.stack.kafka.send(intake.topic, &[filled(most + PACKING)]).await;
    ensure!(too_large.is_err(), "{most} bytes are not the limit");
    let garbage = filled(most - PACKING);
    // A batch is measured compressed, so a record may even be larger than a dead letter can be.
    let inflated = Sent {
        value: Some(garbage_that_only_zstd_compresses(6 << 20)),
        ..padded(most)
    };
    let kafka = &kit.stack.kafka;
    let places = kafka.send(intake.topic, &[padded(most), garbage.clone()]).await?;
    let inflated_place = send_with(&kafka.producer("zstd")?, intake.topic, &[inflated]).await?[0];
    kafka.send(intake.topic, &[good(&format!("{id}/after"))]).await?;

    intake.are_good(kit, &id, 2).await?;
    let letters = letters_about(kit, intake.topic, &[places[1], inflated_place]).await?;
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
    Ok(())
}

/// Bytes that a batch of this one record takes beside its value: the batch's header, and lengths and marks of the
/// record, as long as they are for values near the limit.
fn overhead(record: &Sent) -> usize {
    let sizes = |(name, value): &(String, Vec<u8>)| 1 + name.len() + 1 + value.len();
    let headers: usize = record.headers.iter().map(sizes).sum();
    61 + 3 + 3 + 1 + record.key.as_ref().map_or(0, Vec::len) + 3 + 1 + headers
}

/// So much, at most, changes a record that no codec makes smaller when the broker packs it anew.
const PACKING: usize = 1 << 10;

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
        on_both(async |intake| come_back(kit, intake).await).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

async fn come_back(kit: &Kit, intake: &Intake) -> anyhow::Result<()> {
    let keys = format!("intake/odd/{}/", intake.topic);
    let texts = [
        "control \u{1}\u{8}\u{1b}[31m\u{7f}\u{85}",
        "right to left \u{202e}\u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{627}\u{644}\u{633}\u{644}\u{627}\u{645}\u{2066}",
        "lines\r\n\tand \u{2028} quotes \" ' \\ \\u0000 %00 $1 ; --",
        "beyond the basic plane \u{1f3ab}\u{10ffff} and composed e\u{301}",
        "brackets [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[{{{{{{{{",
        " ",
    ];
    let amounts = [intake.least, "1000000000000", "1e2"];
    let key_of = |number: usize| format!("{keys}{number}/{}", texts[number]);
    let mut records = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        let [first, mut second] = (intake.odd)(&key_of(number), text);
        second["source"] = json!(text);
        records.extend([binary(&first), structured(&second)]);
    }
    for spelt in amounts {
        for event in (intake.amount)(&format!("{keys}amount/{spelt}")) {
            let respelt = event.to_string().replace(":4500", &format!(":{spelt}"));
            records.push(Sent {
                value: Some(respelt.into_bytes()),
                ..structured(&event)
            });
        }
    }
    let mut longest = (intake.good)(&format!("{keys}{}", "k".repeat(255 - keys.len())));
    longest["id"] = json!(intake.topic[..1].repeat(255));
    records.push(structured(&longest));
    kit.stack.kafka.send(intake.topic, &records).await?;

    let told = intake.told(kit, &keys, records.len()).await?;
    let pool = kit.stack.postgres.connect().await?;
    let kept = sqlx::query(intake.kept).bind(&keys).fetch_all(&pool).await?;
    pool.close().await;
    ensure!(kept.len() == texts.len(), "{kept:?}");
    for (number, text) in texts.iter().enumerate() {
        let key = key_of(number);
        let of_key: Vec<_> = told.iter().filter(|told| told.subject == key).collect();
        let [first, second] = of_key[..] else {
            anyhow::bail!("{key:?}: {of_key:?}");
        };
        ensure!(first.verdict == intake.verdict, "{first:?}");
        ensure!(first.cause.1 == format!("{key}/first"), "{first:?}");
        let cause = ((*text).to_owned(), format!("{key}/second"));
        ensure!(second.cause == cause, "{second:?}");
        if let Some([in_first, in_second]) = intake.told_as {
            ensure!(
                first.data[in_first] == *text && second.data[in_second] == *text,
                "{of_key:?}"
            );
        }
        let is_kept = |row: &sqlx::postgres::PgRow| row.get::<&str, _>(0) == key && row.get::<&str, _>(1) == *text;
        ensure!(kept.iter().any(is_kept), "{key:?}: {kept:?}");
    }
    for spelt in amounts {
        let key = format!("{keys}amount/{spelt}");
        let last = told.iter().rfind(|told| told.subject == key).with_context(|| spelt)?;
        let amount = last.data.pointer(intake.amount_at).and_then(Value::as_i64);
        ensure!(amount.map(|amount| amount as f64) == Some(spelt.parse()?), "{last:?}");
    }
    let is_longest = |told: &&Answer| json!(told.cause.1) == longest["id"];
    ensure!(told.iter().filter(is_longest).count() == 1, "{told:?}");
    Ok(())
}

fn a_whole_number_may_be_spelt_in_any_way_by_http_as_well(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "intake").start().await?;
        let (key, http) = ("intake/spelt", reqwest::Client::new());
        let tickets = ["600.0", "6e2", "600"].map(|spelt| (spelt, format!("{key}/{spelt}")));
        let listings: Vec<_> = tickets.iter().map(|(_, ticket)| listed(ticket, ticket)).collect();
        send(kit, &listings).await?;
        told(kit, &format!("{key}/"), tickets.len()).await?;
        let ask = async |call: String, body: String| {
            let mut url = reqwest::Url::parse(kit.stack.restate.ingress().as_str())?;
            url.path_segments_mut()
                .expect("an address with a path")
                .extend(call.split(' '));
            let asked = http.post(url).header("content-type", "application/json").body(body);
            let answer: Value = asked.send().await?.error_for_status()?.json().await?;
            anyhow::Ok(answer)
        };
        for (number, (spelt, ticket)) in tickets.iter().enumerate() {
            // By each handler that takes one.
            let (call, body, says) = match number {
                0 => (
                    "reserve",
                    format!(r#"{{"user":"ann","hold_for":{spelt}}}"#),
                    "ticket.held",
                ),
                1 => (
                    "addTicket",
                    format!(r#"{{"ticket":"{ticket}","hold_for":{spelt}}}"#),
                    "added",
                ),
                _ => (
                    "holdTogether",
                    format!(r#"{{"tickets":["{ticket}"],"hold_for":{spelt}}}"#),
                    "held",
                ),
            };
            let object = if number == 0 {
                format!("Ticket {ticket}")
            } else {
                format!("User {key}")
            };
            let answer = ask(format!("{object} {call}"), body).await?;
            ensure!(answer.to_string().contains(says), "{spelt}: {answer}");
        }
        clean(kit).await?;
        worker.stop().await
    })
}

fn what_a_rule_forbids_is_refused_and_not_put_aside(kit: &Kit) -> anyhow::Result<()> {
    // The longest hold, unless it is set.
    const HOUR: i64 = 3_600;
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "intake").start().await?;
        let forbidden = [0, -1, HOUR + 1, 24 * HOUR + 1, (1 << 53) - 1];
        let allowed = [1, HOUR];
        let mut events = Vec::new();
        for hold_for in forbidden.iter().chain(&allowed) {
            let ticket = format!("intake/rule/{hold_for}");
            events.push(listed(&format!("{ticket}/list"), &ticket));
            let data = json!({ "user": "ann", "hold_for": hold_for });
            events.push(event(&format!("{ticket}/hold"), &ticket, "reservation.requested", data));
        }
        events.push(requested("intake/rule/nowhere", "intake/rule/nowhere", "ann"));
        send(kit, &events).await?;
        let many: Vec<_> = (0..101).map(|number| format!("intake/rule/{number}")).collect();
        let carts = [
            (json!(many), "too_many_tickets"),
            (json!([]), "empty_cart"),
            (Value::Null, "empty_cart"),
            (json!(["intake/rule/1", "intake/rule/1"]), "ticket_twice"),
            (json!(["intake/rule/1"]), "not_your_hold"),
        ];
        let asked = carts.iter().enumerate().map(|(number, (tickets, _))| {
            let id = format!("intake/rule/{number}");
            let data = json!({ "checkout": id, "payment_method": "pm_1", "tickets": tickets });
            event(&format!("{id}/buy"), "intake/rule/bob", "checkout.requested", data)
        });
        let registered = registered("intake/rule/bob", "intake/rule/bob");
        pay(kit, &[registered].into_iter().chain(asked).collect::<Vec<_>>()).await?;
        let verdicts = verdicts(&told_of::<UserOutcome>(kit, "intake/rule/bob", 1 + carts.len()).await?);
        let expected = carts.iter().map(|(_, expected)| *expected);
        ensure!(verdicts[1..].iter().eq(expected), "{verdicts:?}");

        // A hold of one second is over soon, and its ticket has one more outcome.
        let within_bounds =
            |outcome: &&Outcome<TicketOutcome>| !matches!(outcome.data, TicketOutcome::TicketExpired(_));
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
        let unknown = TicketOutcome::ReservationRefused(outcomes::ReservationRefused {
            reason: RefusalReason::UnknownTicket,
        });
        ensure!(nowhere.data == unknown && nowhere.sequence == 0, "{nowhere:?}");
        clean(kit).await?;
        worker.stop().await
    })
}

fn every_compression_codec_is_read(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "intake").start().await?;
        on_both(async |intake| are_read(kit, intake).await).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

async fn are_read(kit: &Kit, intake: &Intake) -> anyhow::Result<()> {
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    let prefix = format!("intake/codec/{}/", intake.topic);
    let mut bad = Vec::new();
    for codec in codecs {
        let mut long = structured(&(intake.good)(&format!("{prefix}{codec}")));
        long.value
            .iter_mut()
            .for_each(|value| value.extend(b" \t \n".repeat(250)));
        let garbage = Sent {
            value: Some(codec.repeat(1_000).into_bytes()),
            ..long.clone()
        };
        let producer = kit.stack.kafka.producer(codec)?;
        let places = send_with(&producer, intake.topic, &[long, garbage.clone()]).await?;
        bad.push((places[1], garbage));
    }
    intake.are_good(kit, &prefix, codecs.len()).await?;
    let places: Vec<_> = bad.iter().map(|(place, _)| *place).collect();
    let letters = letters_about(kit, intake.topic, &places).await?;
    for (place, garbage) in bad {
        let letter = &letters[&place];
        ensure!(letter.record.value == garbage.value, "{:?}", letter.says);
    }
    Ok(())
}

fn answers<T: OutcomeData>(outcomes: &[Outcome<T>]) -> Vec<Answer> {
    let answer = |outcome: &Outcome<T>| Answer {
        subject: outcome.subject.as_str().to_owned(),
        cause: (outcome.causation_source.to_string(), outcome.causation_id.to_string()),
        verdict: verdict(outcome),
        data: outcome.data.data(),
    };
    outcomes.iter().map(answer).collect()
}

/// With another value at `pointer`, or without any.
fn changed(event: &Value, pointer: &str, value: Option<Value>) -> Sent {
    let mut changed = event.clone();
    let (parent, field) = pointer.rsplit_once('/').unwrap_or_default();
    if let Some(Value::Object(parent)) = changed.pointer_mut(parent) {
        match value {
            Some(value) => drop(parent.insert(field.to_owned(), value)),
            None => drop(parent.remove(field)),
        }
    }
    Sent {
        value: Some(changed.to_string().into_bytes()),
        ..structured(event)
    }
}

impl Intake {
    /// The outcomes of keys that begin with `prefix`, once there are `count`; more are an error.
    async fn told(&self, kit: &Kit, prefix: &str, count: usize) -> anyhow::Result<Vec<Answer>> {
        Ok(match self.topic {
            topics::RESERVATIONS => answers(&told_of::<TicketOutcome>(kit, prefix, count).await?),
            _ => answers(&told_of::<UserOutcome>(kit, prefix, count).await?),
        })
    }

    /// Waits until `count` valid events with ids that begin with `prefix` are decided.
    async fn are_good(&self, kit: &Kit, prefix: &str, count: usize) -> anyhow::Result<()> {
        let told = self.told(kit, prefix, count).await?;
        ensure!(told.iter().all(|told| told.verdict == self.verdict), "{told:?}");
        Ok(())
    }

    /// The faults of any topic, then the faults in the data of this one.
    fn bad_records(&self) -> Vec<Bad> {
        [
            self.bad_keys(),
            self.bad_values(),
            self.bad_modes(),
            self.bad_attributes(),
            self.bad_texts(),
            (self.data)(),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn valued(&self, value: Option<&[u8]>) -> Sent {
        Sent {
            value: value.map(Vec::from),
            ..structured(&self.sound)
        }
    }

    fn with_headers(&self, headers: &[(&str, &str)], value: &str) -> Sent {
        Sent {
            headers: headers.iter().map(|(name, value)| header(name, value)).collect(),
            ..self.valued(Some(value.as_bytes()))
        }
    }

    fn changed(&self, pointer: &str, value: Option<Value>) -> Sent {
        changed(&self.sound, pointer, value)
    }

    /// The data alone.
    fn data_alone(&self) -> String {
        self.sound["data"].to_string()
    }

    fn bad_keys(&self) -> Vec<Bad> {
        let keyed = |key: Option<&[u8]>| Sent {
            key: key.map(Vec::from),
            ..structured(&self.sound)
        };
        let bad = |what, reason, key: Option<&[u8]>| Bad::new(what, reason, "key", keyed(key));
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

    fn bad_values(&self) -> Vec<Bad> {
        let bad = |what, reason, value: Option<&[u8]>| Bad::new(what, reason, "value", self.valued(value));
        let sound = self.sound.to_string();
        let nested = |depth: usize| {
            sound.replace(
                &self.data_alone(),
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

    fn bad_modes(&self) -> Vec<Bad> {
        let bad = |what, reason, names, headers: &[(&str, &str)], value: &str| {
            Bad::new(what, reason, names, self.with_headers(headers, value))
        };
        let (whole, data, in_binary) = (self.sound.to_string(), self.data_alone(), binary(&self.sound));
        let structured = [("content-type", "application/cloudevents+json")];
        let batch = [("content-type", "application/cloudevents-batch+json")];
        let avro = [("content-type", "application/cloudevents+avro")];
        let mut without_version = in_binary.clone();
        without_version.headers.retain(|(name, _)| name != "ce_specversion");
        let mut twice = in_binary.clone();
        twice.headers.push(header("ce_id", "another"));
        let with_value = |value: &str| Sent {
            value: Some(value.as_bytes().to_vec()),
            ..in_binary.clone()
        };
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
                &data,
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
                &data,
            ),
            Bad::new(
                "binary mode with a whole event as data",
                Reason::InvalidData,
                "data",
                with_value(&whole),
            ),
            Bad::new(
                "binary mode without specversion",
                Reason::MissingAttribute,
                "ce_specversion",
                without_version,
            ),
            Bad::new(
                "binary mode with an attribute twice",
                Reason::InvalidAttribute,
                "ce_id",
                twice,
            ),
            Bad::new(
                "binary mode with truncated data",
                Reason::Undecodable,
                "value",
                with_value(&data[..data.len() - 1]),
            ),
        ]
    }

    fn bad_attributes(&self) -> Vec<Bad> {
        let bad = |what, reason, names, field: &str, value| {
            Bad::new(what, reason, names, self.changed(&format!("/{field}"), value))
        };
        let missing = |what| bad(what, Reason::MissingAttribute, what, what, None);
        let kind = |what, reason, kind: &str| bad(what, reason, "type", "type", Some(json!(kind)));
        let invalid = |what, field, value| bad(what, Reason::InvalidAttribute, field, field, Some(value));
        let unversioned = self.sound["type"].as_str().unwrap_or_default().trim_end_matches(".v1");
        let mut nul_in_header = binary(&self.sound);
        nul_in_header.headers.retain(|(name, _)| name != "ce_id");
        nul_in_header.headers.push(header("ce_id", "intake\u{0}bad"));
        let twice = self.sound.to_string().replacen('{', r#"{"id":"another","#, 1);
        vec![
            missing("specversion"),
            missing("id"),
            missing("source"),
            missing("type"),
            missing("subject"),
            missing("time"),
            kind("an unknown type", Reason::UnknownType, "holdfast.seat.painted.v1"),
            kind("a type without a version", Reason::UnknownType, unversioned),
            kind("a type of the other topic", Reason::UnknownType, self.strange),
            kind(
                "an outcome's type",
                Reason::UnknownType,
                "holdfast.outcome.ticket.held.v1",
            ),
            kind(
                "an unknown version",
                Reason::UnknownVersion,
                &format!("{unversioned}.v99"),
            ),
            kind(
                "the version after the newest",
                Reason::UnknownVersion,
                &format!("{unversioned}.v3"),
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
            Bad::new("U+0000 in a header", Reason::NulCharacter, "ce_id", nul_in_header),
            bad(
                "a source of a step of ours",
                Reason::ReservedSource,
                "source",
                "source",
                Some(json!("holdfast/Checkout")),
            ),
            bad(
                "a source of a request by HTTP",
                Reason::ReservedSource,
                "source",
                "source",
                Some(json!("restate:User/ann/checkout")),
            ),
            bad(
                "an event far ahead of the clock",
                Reason::TooEarly,
                "time",
                "time",
                Some(json!(timestamp(now() + Duration::hours(2)))),
            ),
            Bad::new(
                "an attribute twice",
                Reason::InvalidAttribute,
                "id",
                self.valued(Some(twice.as_bytes())),
            ),
            bad(
                "an event older than the retention",
                Reason::TooOld,
                "time",
                "time",
                Some(json!(timestamp(now() - Duration::days(8)))),
            ),
        ]
    }

    /// Faults of data of any type, and of the texts in them.
    fn bad_texts(&self) -> Vec<Bad> {
        let field = format!("data.{}", self.field);
        let pointer = format!("/data/{}", self.field);
        let bad = |what, reason, names: &str, pointer: &str, value| {
            Bad::new(what, reason, names, self.changed(pointer, value))
        };
        let half = self.sound.to_string().replace("ann", r"\ud800");
        vec![
            bad("a field is missing", Reason::InvalidData, self.field, &pointer, None),
            bad("an empty text", Reason::InvalidData, &field, &pointer, Some(json!(""))),
            bad(
                "a text that is null",
                Reason::InvalidData,
                &field,
                &pointer,
                Some(Value::Null),
            ),
            bad(
                "a text too long",
                Reason::InvalidData,
                &field,
                &pointer,
                Some(json!("u".repeat(256))),
            ),
            bad(
                "U+0000 in the data",
                Reason::NulCharacter,
                "U+0000",
                &pointer,
                Some(json!("a\u{0}n")),
            ),
            bad(
                "a field nobody knows",
                Reason::InvalidData,
                "colour",
                "/data/colour",
                Some(json!("red")),
            ),
            bad(
                "data that are a list",
                Reason::InvalidData,
                "data",
                "/data",
                Some(json!(["ann"])),
            ),
            bad("no data", Reason::InvalidData, "data", "/data", None),
            bad(
                "data in base64",
                Reason::InvalidData,
                "data_base64",
                "/data_base64",
                Some(json!("e30=")),
            ),
            Bad::new(
                "half a surrogate pair",
                Reason::InvalidData,
                "data",
                self.valued(Some(half.as_bytes())),
            ),
        ]
    }
}

fn bad_reservations() -> Vec<Bad> {
    let hold = |what, hold_for: Value| {
        let sound = requested("intake/bad", "intake/bad", "ann");
        let sent = changed(&sound, "/data/hold_for", Some(hold_for));
        Bad::new(what, Reason::InvalidData, "data.hold_for", sent)
    };
    let mut bad = vec![
        hold("a hold time that is no whole number", json!(0.5)),
        hold("a hold time beyond exact numbers", json!(1e300)),
    ];
    bad.extend(bad_prices(&listed("intake/bad", "intake/bad"), "price"));
    bad
}

fn bad_payments() -> Vec<Bad> {
    let price = json!({ "amount": 4_500, "currency": "EUR" });
    let about = |more: Value| {
        let mut data = json!({ "checkout": "c-1", "payment": "pi_1" });
        if let (Some(data), Value::Object(more)) = (data.as_object_mut(), more) {
            data.extend(more);
        }
        data
    };
    let order = json!({ "checkout": "c-1", "payment_method": "pm_1", "credits": 5, "tickets": ["A-1"] });
    let mut bad = Vec::new();
    for (what, field, value) in [
        ("no credits", "credits", json!(0)),
        ("credits below 0", "credits", json!(-1)),
        ("too many credits", "credits", json!(1_000_000_000_001_i64)),
        ("half a credit", "credits", json!(0.5)),
        ("credits as a text", "credits", json!("5")),
        ("one ticket that is no list", "tickets", json!("A-1")),
        ("a ticket without an id", "tickets", json!([""])),
        ("too many tickets for any list", "tickets", json!(vec!["A-1"; 1_001])),
        ("a ticket that is an object", "tickets", json!([{ "ticket": "A-1" }])),
        ("a ticket with too long an id", "tickets", json!(["t".repeat(256)])),
        ("a way to pay of dots", "payment_method", json!("..")),
        // The price comes from the holds, never from a request.
        ("a price", "price", price.clone()),
        ("a total", "total", price.clone()),
    ] {
        let sound = event("intake/bad", "intake/bad", "checkout.requested", order.clone());
        let sent = changed(&sound, &format!("/data/{field}"), Some(value));
        bad.push(Bad::new(
            format!("an order with {what}"),
            Reason::InvalidData,
            field,
            sent,
        ));
    }
    // Each event, with the place of its money.
    for (kind, data, money) in [
        ("payment.authorized", about(json!({ "amount": price })), Some("amount")),
        ("payment.captured", about(json!({ "amount": price })), Some("amount")),
        (
            "payment.refunded",
            about(json!({ "refunded": price })),
            Some("refunded"),
        ),
        (
            "payment.refund_changed",
            about(json!({ "refund": "re_1", "amount": price, "status": "pending" })),
            Some("amount"),
        ),
        (
            "payment.disputed",
            about(json!({ "dispute": "du_1", "amount": price, "status": "opened" })),
            Some("amount"),
        ),
        ("payment.failed", about(json!({ "code": "lost_card" })), None),
        (
            "checkout.retried",
            json!({ "checkout": "intake/order", "payment_method": "pm_1" }),
            None,
        ),
        ("checkout.cancelled", json!({ "checkout": "intake/order" }), None),
        ("checkout.requested", order, None),
    ] {
        let sound = event("intake/bad", "intake/bad", kind, data.clone());
        bad.extend(money.into_iter().flat_map(|money| bad_prices(&sound, money)));
        for (field, value) in data.as_object().into_iter().flatten() {
            let pointer = format!("/data/{field}");
            let mut wrong = |what, reason, names: &str, value| {
                bad.push(Bad::new(
                    format!("{kind}: {field} {what}"),
                    reason,
                    names,
                    changed(&sound, &pointer, value),
                ));
            };
            let place = format!("data.{field}");
            // A request for a checkout may leave out the other fields.
            if kind != "checkout.requested" || field == "checkout" {
                wrong("is missing", Reason::InvalidData, field, None);
                wrong("is null", Reason::InvalidData, &place, Some(Value::Null));
            }
            if !value.is_number() {
                wrong("is a number", Reason::InvalidData, &place, Some(json!(17)));
            }
            if value.is_string() {
                wrong("is empty", Reason::InvalidData, &place, Some(json!("")));
                wrong("is too long", Reason::InvalidData, &place, Some(json!("x".repeat(256))));
            }
            // A checkout's id is any text; the provider's ids and codes are visible words.
            if value.is_string() && field != "checkout" {
                wrong("has a blank", Reason::InvalidData, &place, Some(json!("pi 1")));
                wrong("has a line end", Reason::InvalidData, &place, Some(json!("pi_1\r\n")));
            }
            if value.is_string() && field != "status" {
                wrong("has U+0000", Reason::NulCharacter, "U+0000", Some(json!("pi\u{0}1")));
            }
        }
    }
    bad
}

/// Faults of the money in `field` of an event's data.
fn bad_prices(sound: &Value, field: &str) -> Vec<Bad> {
    let prices = [
        ("negative", r#"{"amount":-1,"currency":"EUR"}"#),
        ("too high", r#"{"amount":1000000000001,"currency":"EUR"}"#),
        ("beyond 64 bits", r#"{"amount":99999999999999999999,"currency":"EUR"}"#),
        ("beyond all numbers", r#"{"amount":1e999,"currency":"EUR"}"#),
        ("with cents", r#"{"amount":45.5,"currency":"EUR"}"#),
        ("as a text", r#"{"amount":"4500","currency":"EUR"}"#),
        ("in an unknown currency", r#"{"amount":1,"currency":"ZZZ"}"#),
        ("in a currency in small letters", r#"{"amount":1,"currency":"eur"}"#),
        ("without a currency", r#"{"amount":1}"#),
        ("without an amount", r#"{"currency":"EUR"}"#),
        (
            "with a field nobody knows",
            r#"{"amount":1,"currency":"EUR","scale":2}"#,
        ),
    ];
    let bad = |(what, price): (&str, &str)| {
        let mut event = sound.clone();
        event["data"][field] = json!("the price");
        let event_with = event.to_string().replace("\"the price\"", price);
        let sent = Sent {
            value: Some(event_with.into_bytes()),
            ..structured(&event)
        };
        let kind = sound["type"].as_str().unwrap_or_default();
        Bad::new(
            format!("money {what}, in {kind}"),
            Reason::InvalidData,
            format!("data.{field}"),
            sent,
        )
    };
    prices.into_iter().map(bad).collect()
}
