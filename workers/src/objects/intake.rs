//! The intake of the objects: deliveries from Kafka and HTTP requests, both as events of one key.
//!
//! A handler tells a gathered record from a single event by its first byte: `[` is the CloudEvents JSON batch that the gate
//! writes, `{` is one structured event of a direct subscription. An event's origin travels as four extension attributes, so
//! that every element is a CloudEvent of its own.
//!
//! A request by HTTP is identified by its invocation id. Restate makes that of handler, key and `idempotency-key`, keeps
//! the header to itself, and gives each request without the header a new one. Restate's own store of answers is switched
//! off (`idempotency_retention = 0`), so that a repeat reaches our record and another content is a 409.
//!
//! A delivery is believed, so nothing else may pass for one: the handlers that take deliveries are private, and refuse besides what
//! has the header of the ingress's calls or lacks the one of subscriptions. The ingress itself sets the former, whatever a caller
//! sends.

use holdfast_schemas::{
    DeadLetterReason, Event, EventId, Key, Origin, Refusal, Reply, Source, Traceparent, Undecoded, decode_delivery,
};
use restate_sdk::prelude::*;
use time::OffsetDateTime;
use uuid::Uuid;

use super::caller::answer_caller;
use crate::domain::{Entity, KeyOf};
use crate::metrics::{Metrics, Stage};
use crate::store::{Answer, Unit, Work};
use crate::traces::{self, HandledEvent, Handling, Traced};

/// The header that every call by the ingress has, and no delivery from Kafka.
const INGRESS: &str = "x-restate-ingress-path";
/// The header that every delivery from Kafka has.
const SUBSCRIPTION: &str = "restate.subscription.id";

/// The work in a delivery: events, and in the place of each that is refused its dead letter.
///
/// # Errors
/// Answers the caller with 403 when it is no delivery, and with 400 when it has no origin, so that a dead letter could not name its
/// record.
pub(super) fn delivered<E: Entity>(
    ctx: &ObjectContext<'_>,
    raw: &[u8],
    now: OffsetDateTime,
    metrics: &Metrics,
) -> HandlerResult<Unit<E>> {
    if !is_delivery(ctx.headers()) {
        return Err(answer_caller(
            403,
            "this handler takes what the engine read from Kafka, and nothing else",
        ));
    }
    if let Some(origin) = delivered_from(ctx.headers()) {
        metrics.took(Stage::Taken, (now - origin.time).as_seconds_f64());
    }
    delivered_again(ctx, raw)
}

/// The work in a delivery whose handler has taken it before, and handed it over.
///
/// # Errors
/// As [`delivered`].
pub(super) fn delivered_again<E: Entity>(ctx: &ObjectContext<'_>, raw: &[u8]) -> HandlerResult<Unit<E>> {
    let origin = delivered_from(ctx.headers());
    decode_for(ctx.key(), raw, origin).map_err(|refusal| answer_caller(400, refusal.to_string()))
}

/// The work in what a subscription has read, by its key.
///
/// # Errors
/// It is refused as a whole, and no origin is given that a dead letter could name.
pub fn decode_for<E: Entity>(key: &str, raw: &[u8], origin: Option<Origin>) -> Result<Unit<E>, Refusal> {
    let decoded = KeyOf::<E>::parse(key)
        .map_err(|invalid| Refusal::new(key_reason(key), format!("key: {invalid}")))
        .and_then(|key| Ok((key, decode_delivery::<E::Data>(raw)?)));
    match (decoded, origin) {
        (Ok((key, events)), origin) => {
            let work = events.into_iter().map(|event| match event {
                Ok(event) => belongs(event, &key, origin.as_ref()),
                Err(undecoded) => put_aside(undecoded, origin.as_ref()),
            });
            Ok(Unit {
                work: work.collect::<Result<_, _>>()?,
                key,
            })
        }
        (Err(refusal), Some(origin)) => Ok(Unit {
            key: fitting(key),
            work: vec![Work::Rejected {
                origin: Some(origin),
                refusal,
                value: raw.to_vec(),
            }],
        }),
        (Err(refusal), None) => Err(refusal),
    }
}

/// Accepts an event if it is about the key at which it arrived. An event without an origin of its own came without a gate:
/// it gets the delivery's.
fn belongs<E: Entity>(
    mut event: Event<E::Data>,
    key: &KeyOf<E>,
    delivery: Option<&Origin>,
) -> Result<Work<E>, Refusal> {
    event.origin = event.origin.or_else(|| delivery.cloned());
    if event.subject == *key {
        return Ok(Work::Event(event));
    }
    let mend = DeadLetterReason::KeyMismatch.mend();
    let refusal = Refusal::new(
        DeadLetterReason::KeyMismatch,
        format!("subject: differs from the key. {mend}"),
    );
    match &event.origin {
        Some(_) => Ok(Work::Rejected {
            origin: event.origin.clone(),
            refusal,
            value: event.to_json(),
        }),
        None => Err(refusal),
    }
}

/// What one place of a gathered record holds instead of an event: it alone goes to the dead letters.
fn put_aside<E: Entity>(undecoded: Undecoded, delivery: Option<&Origin>) -> Result<Work<E>, Refusal> {
    let Undecoded { refusal, origin, value } = undecoded;
    match origin.or_else(|| delivery.cloned()) {
        Some(origin) => Ok(Work::Rejected {
            origin: Some(origin),
            refusal,
            value,
        }),
        None => Err(refusal),
    }
}

fn key_reason(key: &str) -> DeadLetterReason {
    match key {
        "" => DeadLetterReason::KeyEmpty,
        _ if key.contains('\0') => DeadLetterReason::NulCharacter,
        _ => DeadLetterReason::KeyInvalid,
    }
}

/// A key under which the dead letter of an unusable key can be stored; its origin leads to the original key.
fn fitting<K: Key>(key: &str) -> K {
    let end = key.floor_char_boundary(K::MAX_BYTES);
    let text: String = key[..end].chars().map(|c| if c == '\0' { '_' } else { c }).collect();
    K::parse(&text).unwrap_or_else(|_| K::parse("_").expect("one character is an id"))
}

/// True for an invocation that a subscription has made.
fn is_delivery(headers: &HeaderMap) -> bool {
    !headers.contains_key(INGRESS) && headers.contains_key(SUBSCRIPTION)
}

/// Where Kafka had the record of this invocation.
fn delivered_from(headers: &HeaderMap) -> Option<Origin> {
    let text = |name: &str| headers.get(name).map(String::as_str);
    let milliseconds: i128 = text("kafka.timestamp")?.parse().ok()?;
    Some(Origin {
        topic: text("kafka.topic")?.to_owned(),
        partition: text("kafka.partition")?.parse().ok()?,
        offset: text("kafka.offset")?.parse().ok()?,
        time: OffsetDateTime::from_unix_timestamp_nanos(milliseconds * 1_000_000).ok()?,
    })
}

/// Begins the spans of a unit's events, if their traces are recorded.
pub(super) fn handling<E: Entity>(ctx: &ObjectContext<'_>, handler: (&str, &str), unit: &Unit<E>) -> Option<Handling> {
    if !traces::are_on() {
        return None;
    }
    let delivery = delivered_from(ctx.headers());
    let traced = unit.work.iter().filter_map(|work| match work {
        Work::Event(event) | Work::Request(event) => Some(HandledEvent {
            traced: Traced::of(&event.traceparent, event.source.as_str(), event.id.as_str())?,
            event_type: event.event_type(),
            // Without a gate it lay where its delivery did.
            by_gate: event.origin.is_some() && event.origin != delivery,
        }),
        Work::Rejected { .. } | Work::Command(_) => None,
    });
    let traced: Vec<_> = traced.collect();
    let begins = !traced.is_empty();
    begins.then(|| Handling::begin(handler, unit.key.as_str(), delivery, unit.work.len(), traced))
}

/// Records these spans, once the unit has been handled.
pub(super) fn handled(handling: Option<Handling>, has_failed: bool) {
    if let Some(handling) = handling {
        handling.end(has_failed);
    }
}

/// An HTTP request to a handler, named with its object, as an event.
pub(super) fn asked<E: Entity>(
    ctx: &ObjectContext<'_>,
    (object, handler): (&str, &str),
    data: E::Data,
    now: OffsetDateTime,
) -> HandlerResult<Unit<E>> {
    let key = key::<KeyOf<E>>(ctx.key())?;
    let (source, id) = identity(ctx, (object, handler))?;
    let traceparent = ctx.headers().get("traceparent").map(String::as_str);
    let traceparent = traceparent.and_then(|text| Traceparent::parse(text).ok());
    let event = Event::new(source, id, now, traceparent, key.clone(), data);
    event
        .check_size()
        .map_err(|refusal| answer_caller(400, format!("body: {}", refusal.detail)))?;
    Ok(Unit {
        key,
        work: vec![Work::Request(event)],
    })
}

/// The answer to an HTTP request.
pub(super) fn answered(answer: Answer) -> HandlerResult<Json<Reply>> {
    match answer {
        Answer::Fresh(reply) | Answer::Repeat(reply) => Ok(Json(reply)),
        Answer::DeadLettered(DeadLetterReason::IdReused) => Err(id_reused()),
        Answer::DeadLettered(reason) => Err(answer_caller(400, reason.meaning())),
        Answer::Nothing | Answer::AlreadyDone => Ok(Json(Reply { outcomes: Vec::new() })),
    }
}

/// The answer when an `idempotency-key` comes again with another request.
pub(super) fn id_reused() -> HandlerError {
    answer_caller(
        409,
        "header idempotency-key: another request to this handler had the same key; choose a new one",
    )
}

/// The identity of an HTTP request: the invocation's id, which Restate derives from handler, key and `idempotency-key` (it does
/// not pass the header on). Without the header every request is a new one.
pub(super) fn identity(ctx: &ObjectContext<'_>, (object, handler): (&str, &str)) -> HandlerResult<(Source, EventId)> {
    let id = EventId::parse(ctx.invocation_id()).map_err(|invalid| invalid.to_string())?;
    Ok((source(object, ctx.key(), handler), id))
}

/// The source of HTTP requests: object, key and handler in at most 255 bytes. A key that is too long for that is replaced by a
/// UUID derived from it.
fn source(object: &str, key: &str, handler: &str) -> Source {
    let short = |key: &str| Source::parse(&format!("restate:{object}/{key}/{handler}"));
    short(key)
        .or_else(|_| short(&Uuid::new_v5(&Uuid::NAMESPACE_OID, key.as_bytes()).to_string()))
        .expect("a UUID and a handler's name fit")
}

/// Parses the key in the URL.
pub(super) fn key<K: Key>(key: &str) -> HandlerResult<K> {
    K::parse(key).map_err(|invalid| answer_caller(400, format!("the {}'s id in the address: {invalid}", K::NAMES)))
}

#[cfg(test)]
mod tests {
    use holdfast_schemas::{TicketEvent, TicketId, events};

    use crate::domain::Ticket;

    use super::*;

    fn origin() -> Origin {
        Origin {
            topic: "reservations".to_owned(),
            partition: 3,
            offset: 7,
            time: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn event(ticket: &str, origin: Option<Origin>) -> Event<TicketEvent> {
        let (source, id) = (Source::parse("shop").unwrap(), EventId::parse("1").unwrap());
        let (time, ticket) = (OffsetDateTime::UNIX_EPOCH, TicketId::parse(ticket).unwrap());
        let mut event = Event::new(
            source,
            id,
            time,
            None,
            ticket,
            TicketEvent::TicketWithdrawn(events::TicketWithdrawn {}),
        );
        event.origin = origin;
        event
    }

    fn gathered(events: &[Event<TicketEvent>]) -> Vec<u8> {
        let events: Vec<_> = events.iter().map(Event::to_json).collect();
        [b"[", &events.join(&b',')[..], b"]"].concat()
    }

    #[test]
    fn a_gathered_event_keeps_the_origin_that_the_gate_gave_it() {
        let public = Origin {
            topic: "public".to_owned(),
            ..origin()
        };
        let raw = gathered(&[event("A-1", Some(public.clone()))]);
        let unit = decode_for::<Ticket>("A-1", &raw, Some(origin())).unwrap();
        assert!(matches!(&unit.work[..], [Work::Event(event)] if event.origin == Some(public)));
    }

    #[test]
    fn an_event_without_a_gate_lay_where_its_delivery_did() {
        let raw = event("A-1", None).to_json();
        let unit = decode_for::<Ticket>("A-1", &raw, Some(origin())).unwrap();
        assert!(matches!(&unit.work[..], [Work::Event(event)] if event.origin == Some(origin())));
    }

    #[test]
    fn a_stranger_among_the_events_goes_to_the_dead_letters_and_the_others_go_on() {
        let raw = gathered(&[event("A-1", Some(origin())), event("B-2", Some(origin()))]);
        let unit = decode_for::<Ticket>("A-1", &raw, Some(origin())).unwrap();
        assert!(matches!(
            &unit.work[..],
            [Work::Event(_), Work::Rejected { refusal, .. }] if refusal.reason == DeadLetterReason::KeyMismatch
        ));
    }

    #[test]
    fn a_gathered_event_of_a_type_that_a_newer_gate_let_through_goes_to_the_dead_letters_alone() {
        let (older, newer) = (event("A-1", Some(origin())), event("A-1", Some(origin())));
        let newer = String::from_utf8(newer.to_json()).unwrap();
        let newer = newer.replace("holdfast.ticket.withdrawn.v1", "holdfast.ticket.painted.v1");
        let raw = [b"[", &older.to_json()[..], b",", newer.as_bytes(), b"]"].concat();
        let admitted = Origin {
            topic: "reservations.admitted".to_owned(),
            ..origin()
        };
        let unit = decode_for::<Ticket>("A-1", &raw, Some(admitted)).unwrap();
        assert!(matches!(
            &unit.work[..],
            [Work::Event(_), Work::Rejected { refusal, origin: Some(from), value }]
                if refusal.reason == DeadLetterReason::UnknownType && *from == origin() && value == newer.as_bytes()
        ));
    }

    #[test]
    fn what_cannot_be_taken_from_kafka_becomes_a_dead_letter() {
        let long = "k".repeat(256);
        for (key, raw, reason) in [
            ("A-1", &b"garbage"[..], DeadLetterReason::Undecodable),
            ("A-1", b"", DeadLetterReason::Undecodable),
            ("", b"{}", DeadLetterReason::KeyEmpty),
            ("a\0b", b"{}", DeadLetterReason::NulCharacter),
            (&long, b"{}", DeadLetterReason::KeyInvalid),
        ] {
            let unit = decode_for::<Ticket>(key, raw, Some(origin())).unwrap();
            assert!(
                matches!(&unit.work[..], [Work::Rejected { refusal, value, .. }] if refusal.reason == reason && value == raw),
                "{key:?} {raw:?}: {unit:?}"
            );
        }
    }

    #[test]
    fn only_a_subscription_delivers() {
        let headers = |names: &[&'static str]| {
            let mut headers = HeaderMap::default();
            for name in names {
                headers.insert(*name, "forged".to_owned());
            }
            headers
        };
        assert!(is_delivery(&headers(&[SUBSCRIPTION, "kafka.topic"])));
        assert!(!is_delivery(&headers(&[SUBSCRIPTION, "kafka.topic", INGRESS])));
        assert!(!is_delivery(&headers(&["kafka.topic"])));
        assert!(!is_delivery(&headers(&[])));
    }

    #[test]
    fn what_cannot_be_taken_by_http_is_told_to_the_caller() {
        assert!(decode_for::<Ticket>("A-1", b"garbage", None).is_err());
        assert!(decode_for::<Ticket>("A-1", &event("B-2", None).to_json(), None).is_err());
    }

    #[test]
    fn the_source_of_a_request_names_handler_and_ticket_and_fits() {
        assert_eq!(source("Ticket", "A-1", "list").as_str(), "restate:Ticket/A-1/list");
        let (long, other) = ("k".repeat(255), "l".repeat(255));
        assert_eq!(source("Ticket", &long, "list"), source("Ticket", &long, "list"));
        assert_ne!(source("Ticket", &long, "list"), source("Ticket", &other, "list"));
    }
}
