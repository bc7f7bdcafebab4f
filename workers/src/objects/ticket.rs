//! The Ticket object: its key is the ticket's id. Events from Kafka and requests by HTTP take the same way into the database.

use bytes::Bytes;
use holdfast_schemas::{
    CheckoutId, DeadLetterReason, Event, EventId, HoldId, Origin, Price, Refusal, Reply, Reservation, Seat, ShowId,
    Source, TicketId, Traceparent, UserId, decode_delivery,
};
use restate_sdk::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use super::again;
use super::attributes::{self, Attributes, Describe, Described, Tag};
use super::body::Body;
use crate::domain::{self, State};
use crate::error;
use crate::store::ticket_attributes::Access;
use crate::store::{self, Answer, Ask, Committer, Internal, Unit, Work};

/// Sells one seat, one request after the other.
pub(super) struct Ticket {
    committer: Committer,
    pool: PgPool,
    attributes: Access,
    now: fn() -> OffsetDateTime,
}

impl Ticket {
    pub(super) fn new(committer: Committer, pool: PgPool, attributes: Access, now: fn() -> OffsetDateTime) -> Self {
        Self {
            committer,
            pool,
            attributes,
            now,
        }
    }
}

/// Puts the ticket on sale at these terms.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct List {
    show: ShowId,
    #[serde(default)]
    seat: Option<Seat>,
    price: Price,
}

/// Takes the ticket off sale.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Withdraw {}

/// Holds the ticket for a user.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Reserve {
    user: UserId,
    /// Seconds, 1 to 86400; without it 900.
    #[serde(default)]
    hold_for: Option<i64>,
}

/// Gives a hold back.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Release {
    user: UserId,
    hold: HoldId,
}

/// From the Reaper: end this hold if it is due.
#[derive(Serialize, Deserialize)]
pub(super) struct Expire {
    pub(super) hold: HoldId,
}

/// From a checkout: sell what this user holds.
#[derive(Serialize, Deserialize)]
struct Sell {
    user: UserId,
    hold: HoldId,
    checkout: CheckoutId,
}

/// From a checkout that is undone: the ticket is for sale again.
#[derive(Serialize, Deserialize)]
struct GiveBack {
    checkout: CheckoutId,
}

/// What a request from within came to.
#[derive(Serialize, Deserialize)]
enum Settled {
    /// It is done, now or earlier.
    Done,
    /// It does not fit the ticket; nothing was written.
    No,
}

// No handler keeps a journal: each is one write that may be repeated. The answer to an `idempotency-key` is kept by the
// database, not by the engine.
#[restate_sdk::object(
    name = "Ticket",
    lazy_state,
    journal_retention = "0s",
    idempotency_retention = "0s",
    invocation_retry_policy(initial_interval = "100ms", factor = 2.0, max_interval = "10s")
)]
impl Ticket {
    /// Takes what Kafka delivers: events of one ticket that the gate gathered, or one event straight from a public topic.
    #[handler]
    async fn apply(&self, ctx: ObjectContext<'_>, raw: Bytes) -> HandlerResult<()> {
        let origin = delivered_from(ctx.headers());
        match decode_for(ctx.key(), &raw, origin) {
            Ok(unit) => self.commit(unit).await.map(drop),
            Err(refusal) => Err(error::answer_caller(400, refusal.to_string())),
        }
    }

    /// Puts the ticket on sale, or on sale again.
    #[handler]
    async fn list(&self, ctx: ObjectContext<'_>, body: Body<List>) -> HandlerResult<Json<Reply>> {
        let List { show, seat, price } = body.read()?;
        self.ask(&ctx, "list", Reservation::TicketListed { show, seat, price })
            .await
    }

    /// Takes the ticket off sale.
    #[handler]
    async fn withdraw(&self, ctx: ObjectContext<'_>, body: Body<Withdraw>) -> HandlerResult<Json<Reply>> {
        let Withdraw {} = body.read()?;
        self.ask(&ctx, "withdraw", Reservation::TicketWithdrawn).await
    }

    /// Holds the ticket for a user.
    #[handler]
    async fn reserve(&self, ctx: ObjectContext<'_>, body: Body<Reserve>) -> HandlerResult<Json<Reply>> {
        let Reserve { user, hold_for } = body.read()?;
        self.ask(&ctx, "reserve", Reservation::ReservationRequested { user, hold_for })
            .await
    }

    /// Gives a user's hold back.
    #[handler]
    async fn release(&self, ctx: ObjectContext<'_>, body: Body<Release>) -> HandlerResult<Json<Reply>> {
        let Release { user, hold } = body.read()?;
        self.ask(&ctx, "release", Reservation::ReservationReleased { user, hold })
            .await
    }

    /// The ticket as it is, without waiting for requests in hand.
    #[handler]
    async fn get(&self, ctx: SharedObjectContext<'_>) -> HandlerResult<Json<View>> {
        let ticket = ticket_id(ctx.key())?;
        let found = store::tickets::get(&self.pool, &ticket).await.map_err(again)?;
        match found {
            Some(found) => Ok(Json(View::new(ticket, found))),
            None => Err(error::answer_caller(
                404,
                "there is no such ticket: it was never listed",
            )),
        }
    }

    /// Adds a tag to what readers are told of the ticket. One that is there stays as it is, so that a repeat adds nothing; no
    /// decision and no outcome comes of it. It waits for no request in hand.
    #[handler]
    async fn tag(&self, ctx: SharedObjectContext<'_>, body: Body<Tag>) -> HandlerResult<()> {
        attributes::tag(&self.attributes, &ticket_id(ctx.key())?, body.read()?).await
    }

    /// Describes the ticket to its readers, and answers what was written. With `from` it is written only if nobody has changed
    /// it since; without, whatever it is now. A repeat changes nothing; no decision and no outcome comes of it.
    #[handler]
    async fn describe(&self, ctx: ObjectContext<'_>, body: Body<Describe>) -> HandlerResult<Json<Described>> {
        attributes::describe(&self.attributes, &ticket_id(ctx.key())?, body.read()?).await
    }

    /// What readers are told of the ticket beside its state.
    #[handler]
    async fn attributes(&self, ctx: SharedObjectContext<'_>) -> HandlerResult<Json<Attributes>> {
        attributes::get(&self.attributes, ticket_id(ctx.key())?).await
    }

    /// Ends a hold that is due; leaves any other as it is.
    #[handler(ingress_private)]
    async fn expire(&self, ctx: ObjectContext<'_>, Json(Expire { hold }): Json<Expire>) -> HandlerResult<()> {
        let ticket = ticket_id(ctx.key())?;
        self.commit_one(ticket, Work::Expire { hold }).await.map(drop)
    }

    /// Sells a held ticket.
    #[handler(ingress_private)]
    async fn sell(&self, ctx: ObjectContext<'_>, Json(sell): Json<Sell>) -> HandlerResult<Json<Settled>> {
        let Sell { user, hold, checkout } = sell;
        self.settle(&ctx, "sell", Ask::Sell { user, hold, checkout }).await
    }

    /// Takes a sold ticket back.
    #[handler(name = "return", ingress_private)]
    async fn give_back(&self, ctx: ObjectContext<'_>, Json(back): Json<GiveBack>) -> HandlerResult<Json<Settled>> {
        let GiveBack { checkout } = back;
        self.settle(&ctx, "return", Ask::Return { checkout }).await
    }
}

impl Ticket {
    /// Decides a request by HTTP and answers its caller.
    async fn ask(&self, ctx: &ObjectContext<'_>, handler: &str, data: Reservation) -> HandlerResult<Json<Reply>> {
        let ticket = ticket_id(ctx.key())?;
        let (source, id) = identity(ctx, handler)?;
        let traceparent = ctx.headers().get("traceparent").map(String::as_str);
        let traceparent = traceparent.and_then(|text| Traceparent::parse(text).ok());
        let event = Event::new(source, id, (self.now)(), traceparent, ticket.clone(), data);
        match self.commit_one(ticket, Work::Asked(event)).await? {
            Answer::Fresh(reply) | Answer::Repeat(reply) => Ok(Json(reply)),
            Answer::DeadLettered(DeadLetterReason::IdReused) => Err(error::answer_caller(
                409,
                "header idempotency-key: another request to this handler had the same key; choose a new one",
            )),
            Answer::DeadLettered(reason) => Err(error::answer_caller(400, reason.meaning())),
            Answer::Nothing | Answer::AlreadyDone => Ok(Json(Reply { outcomes: Vec::new() })),
        }
    }

    /// Decides a request from within.
    async fn settle(&self, ctx: &ObjectContext<'_>, handler: &str, ask: Ask) -> HandlerResult<Json<Settled>> {
        let ticket = ticket_id(ctx.key())?;
        let (source, id) = identity(ctx, handler)?;
        let work = Work::Internal(Internal { source, id, ask });
        Ok(Json(match self.commit_one(ticket, work).await? {
            Answer::Fresh(_) | Answer::Repeat(_) | Answer::AlreadyDone => Settled::Done,
            Answer::Nothing | Answer::DeadLettered(_) => Settled::No,
        }))
    }

    async fn commit_one(&self, ticket: TicketId, work: Work) -> HandlerResult<Answer> {
        let answers = self
            .commit(Unit {
                ticket,
                work: vec![work],
            })
            .await?;
        let answer = answers.into_iter().next();
        Ok(answer.expect("the committer answers every piece of work"))
    }

    async fn commit(&self, unit: Unit) -> HandlerResult<Vec<Answer>> {
        self.committer.commit(unit).await.map_err(again)
    }
}

/// The work that a delivery holds: events, and in their place what cannot be taken, each on its way to the dead letters.
/// Without an origin nobody could find the record again: then the caller is told.
fn decode_for(key: &str, raw: &[u8], origin: Option<Origin>) -> Result<Unit, Refusal> {
    let decoded = TicketId::parse(key)
        .map_err(|invalid| Refusal::new(key_reason(key), format!("key: {invalid}")))
        .and_then(|ticket| Ok((ticket, decode_delivery(raw)?)));
    match (decoded, origin) {
        (Ok((ticket, events)), origin) => {
            let work = events.into_iter().map(|event| belongs(event, &ticket, origin.as_ref()));
            Ok(Unit {
                work: work.collect::<Result<_, _>>()?,
                ticket,
            })
        }
        (Err(refusal), Some(origin)) => Ok(Unit {
            ticket: fitting(key),
            work: vec![Work::Refused {
                origin: Some(origin),
                refusal,
                value: raw.to_vec(),
            }],
        }),
        (Err(refusal), None) => Err(refusal),
    }
}

/// The event, if it is about the ticket at whose key it arrived. What came without a gate lay where the delivery did.
fn belongs(mut event: Event, ticket: &TicketId, delivery: Option<&Origin>) -> Result<Work, Refusal> {
    event.origin = event.origin.or_else(|| delivery.cloned());
    if event.subject == *ticket {
        return Ok(Work::Delivered(event));
    }
    let mend = DeadLetterReason::KeyMismatch.mend();
    let refusal = Refusal::new(
        DeadLetterReason::KeyMismatch,
        format!("subject: differs from the key. {mend}"),
    );
    match &event.origin {
        Some(_) => Ok(Work::Refused {
            origin: event.origin.clone(),
            refusal,
            value: event.to_json(),
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

/// A key under which the dead letter of an unusable key can be stored; its origin leads to the key as it was.
fn fitting(key: &str) -> TicketId {
    let end = key.floor_char_boundary(TicketId::MAX_BYTES);
    let text: String = key[..end].chars().map(|c| if c == '\0' { '_' } else { c }).collect();
    TicketId::parse(&text).unwrap_or_else(|_| TicketId::parse("_").expect("one character is an id"))
}

/// Where Kafka had the record of this invocation; none for one that came by HTTP.
fn delivered_from(headers: &restate_sdk::prelude::HeaderMap) -> Option<Origin> {
    let text = |name: &str| headers.get(name).map(String::as_str);
    let milliseconds: i128 = text("kafka.timestamp")?.parse().ok()?;
    Some(Origin {
        topic: text("kafka.topic")?.to_owned(),
        partition: text("kafka.partition")?.parse().ok()?,
        offset: text("kafka.offset")?.parse().ok()?,
        time: OffsetDateTime::from_unix_timestamp_nanos(milliseconds * 1_000_000).ok()?,
    })
}

/// What makes a request by HTTP the same when it is sent again: the invocation's id, which Restate makes of handler, ticket
/// and `idempotency-key` (the key itself it keeps). Without a key every request is a new one.
fn identity(ctx: &ObjectContext<'_>, handler: &str) -> HandlerResult<(Source, EventId)> {
    let id = EventId::parse(ctx.invocation_id()).map_err(|invalid| invalid.to_string())?;
    Ok((source(ctx.key(), handler), id))
}

/// Names object, key and handler in at most 255 bytes: a key that is too long for that stands as a UUID made of it.
fn source(key: &str, handler: &str) -> Source {
    let short = |key: &str| Source::parse(&format!("restate:Ticket/{key}/{handler}"));
    short(key)
        .or_else(|_| short(&Uuid::new_v5(&Uuid::NAMESPACE_OID, key.as_bytes()).to_string()))
        .expect("a UUID and a handler's name fit")
}

fn ticket_id(key: &str) -> HandlerResult<TicketId> {
    TicketId::parse(key)
        .map_err(|invalid| error::answer_caller(400, format!("the ticket's id in the address: {invalid}")))
}

/// A ticket as readers see it.
#[derive(Serialize, JsonSchema)]
struct View {
    ticket: TicketId,
    /// Equals the `sequence` of the ticket's newest outcome.
    version: i64,
    show: ShowId,
    #[serde(skip_serializing_if = "Option::is_none")]
    seat: Option<Seat>,
    price: Price,
    #[serde(flatten)]
    status: Status,
}

#[derive(Serialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
enum Status {
    Available,
    /// `until` may have passed: then the next request ends the hold.
    Held {
        hold: HoldId,
        user: UserId,
        #[serde(with = "time::serde::rfc3339")]
        #[schemars(with = "String")]
        until: OffsetDateTime,
    },
    Sold {
        user: UserId,
        checkout: CheckoutId,
    },
    Withdrawn,
}

impl View {
    fn new(ticket: TicketId, found: domain::Ticket) -> Self {
        Self {
            ticket,
            version: found.version,
            show: found.show,
            seat: found.seat,
            price: found.price,
            status: match found.state {
                State::Available => Status::Available,
                State::Held(hold) => Status::Held {
                    hold: hold.id,
                    user: hold.user,
                    until: hold.until,
                },
                State::Sold(sale) => Status::Sold {
                    user: sale.user,
                    checkout: sale.checkout,
                },
                State::Withdrawn => Status::Withdrawn,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            topic: "reservations".to_owned(),
            partition: 3,
            offset: 7,
            time: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn event(ticket: &str, origin: Option<Origin>) -> Event {
        let (source, id) = (Source::parse("shop").unwrap(), EventId::parse("1").unwrap());
        let (time, ticket) = (OffsetDateTime::UNIX_EPOCH, TicketId::parse(ticket).unwrap());
        let mut event = Event::new(source, id, time, None, ticket, Reservation::TicketWithdrawn);
        event.origin = origin;
        event
    }

    fn gathered(events: &[Event]) -> Vec<u8> {
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
        let unit = decode_for("A-1", &raw, Some(origin())).unwrap();
        assert!(matches!(&unit.work[..], [Work::Delivered(event)] if event.origin == Some(public)));
    }

    #[test]
    fn an_event_without_a_gate_lay_where_its_delivery_did() {
        let raw = event("A-1", None).to_json();
        let unit = decode_for("A-1", &raw, Some(origin())).unwrap();
        assert!(matches!(&unit.work[..], [Work::Delivered(event)] if event.origin == Some(origin())));
    }

    #[test]
    fn a_stranger_among_the_events_goes_to_the_dead_letters_and_the_others_go_on() {
        let raw = gathered(&[event("A-1", Some(origin())), event("B-2", Some(origin()))]);
        let unit = decode_for("A-1", &raw, Some(origin())).unwrap();
        assert!(matches!(
            &unit.work[..],
            [Work::Delivered(_), Work::Refused { refusal, .. }] if refusal.reason == DeadLetterReason::KeyMismatch
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
            let unit = decode_for(key, raw, Some(origin())).unwrap();
            assert!(
                matches!(&unit.work[..], [Work::Refused { refusal, value, .. }] if refusal.reason == reason && value == raw),
                "{key:?} {raw:?}: {unit:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_taken_by_http_is_told_to_the_caller() {
        assert!(decode_for("A-1", b"garbage", None).is_err());
        assert!(decode_for("A-1", &event("B-2", None).to_json(), None).is_err());
    }

    #[test]
    fn the_source_of_a_request_names_handler_and_ticket_and_fits() {
        assert_eq!(source("A-1", "list").as_str(), "restate:Ticket/A-1/list");
        let (long, other) = ("k".repeat(255), "l".repeat(255));
        assert_eq!(source(&long, "list"), source(&long, "list"));
        assert_ne!(source(&long, "list"), source(&other, "list"));
    }
}
