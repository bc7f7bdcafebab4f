//! The spans of each hop: their names, kinds and attributes.

use std::borrow::Cow;

use holdfast_schemas::{CheckoutId, EventId, Origin, Reply, Source, Traceparent};
use serde::Deserialize;
use tokio::task_local;

use super::otlp::SpanKind;
use super::{EndedSpan, Hop, SpanContext, Traced, are_on, nanoseconds, now, span_id};
use crate::metrics::outcome_label;

/// An event that the gate has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadEvent {
    pub traced: Traced,
    pub event_type: &'static str,
    pub origin: Origin,
    pub read_at: u64,
}

/// A record that the gate has sent, with those of its events that are traced.
pub struct AdmittedRecord {
    pub topic: &'static str,
    pub key: String,
    pub events: usize,
    pub traced: Vec<ReadEvent>,
    pub sent_at: u64,
}

impl AdmittedRecord {
    /// Records the gate's spans, once Kafka has the record: one for each event, and the record's own, which links to them.
    pub fn acknowledged(&self, group: &str) {
        let key = &self.key;
        for ReadEvent {
            traced,
            event_type,
            origin,
            read_at,
        } in &self.traced
        {
            if traced.begins_here {
                created(traced, &origin.topic, nanoseconds(origin.time), event_type, key);
            }
            let name = format!("process {}", origin.topic);
            let span = EndedSpan::new(
                name,
                SpanKind::Consumer,
                traced.context(Hop::Gate),
                Some(traced.sender),
                *read_at,
            );
            let span = from_kafka(span, "process", &origin.topic, key).text("messaging.consumer.group.name", group);
            cloud_event(at(span, origin), traced, event_type, key).record();
        }
        let Some(first) = self.traced.first() else { return };
        let (context, parent) = (first.traced.context(Hop::Admitted), first.traced.span(Hop::Gate));
        let name = format!("send {}", self.topic);
        let span = EndedSpan::new(name, SpanKind::Producer, context, Some(parent), self.sent_at);
        let span =
            from_kafka(span, "send", self.topic, key).number("messaging.batch.message_count", self.events as i64);
        let links = self.traced.iter().map(|event| event.traced.context(Hop::Gate));
        links.fold(span, EndedSpan::linked).record();
    }
}

/// An event in the hands of a handler.
pub struct HandledEvent {
    pub traced: Traced,
    pub event_type: &'static str,
    /// It came through the gate, which has a span of its own.
    pub by_gate: bool,
}

/// A delivery or a request in the hands of a handler.
pub struct Handling {
    /// `Ticket/apply`.
    handler: String,
    key: String,
    /// Where Kafka had it; none for a request.
    delivery: Option<Origin>,
    events: usize,
    traced: Vec<HandledEvent>,
    engine: Option<Traceparent>,
    begun: u64,
}

impl Handling {
    /// Begins now. `events`: how many there are, with those that are not traced.
    pub fn begin(
        (object, handler): (&str, &str),
        key: &str,
        delivery: Option<Origin>,
        events: usize,
        traced: Vec<HandledEvent>,
    ) -> Self {
        Self {
            handler: format!("{object}/{handler}"),
            key: key.to_owned(),
            delivery,
            events,
            traced,
            engine: engine(),
            begun: now(),
        }
    }

    /// Records a span for each event, with links to the record that brought it and to the engine's own span.
    pub fn end(self, has_failed: bool) {
        let first = self.traced.iter().find(|event| event.by_gate);
        let record = first.map(|event| event.traced.context(Hop::Admitted));
        for event in &self.traced {
            let HandledEvent {
                traced,
                event_type,
                by_gate,
            } = event;
            if traced.begins_here && !by_gate {
                let topic = self
                    .delivery
                    .as_ref()
                    .map_or(self.handler.as_str(), |origin| origin.topic.as_str());
                let time = self
                    .delivery
                    .as_ref()
                    .map_or(self.begun, |origin| nanoseconds(origin.time));
                created(traced, topic, time, event_type, &self.key);
            }
            let parent = if *by_gate {
                traced.span(Hop::Gate)
            } else {
                traced.sender
            };
            let context = traced.context(Hop::Object);
            let span = match &self.delivery {
                Some(origin) => {
                    let name = format!("process {}", origin.topic);
                    let span = EndedSpan::new(name, SpanKind::Consumer, context, Some(parent), self.begun);
                    let span = from_kafka(span, "process", &origin.topic, &self.key);
                    at(span, origin).number("messaging.batch.message_count", self.events as i64)
                }
                None => EndedSpan::new(
                    self.handler.clone(),
                    SpanKind::Server,
                    context,
                    Some(parent),
                    self.begun,
                ),
            };
            let span = span
                .text("rpc.system.name", "restate")
                .text("rpc.method", self.handler.clone());
            let span = cloud_event(span, traced, event_type, &self.key);
            let links = record
                .filter(|_| *by_gate)
                .into_iter()
                .chain(self.engine.as_ref().map(context_of));
            let failed = has_failed.then_some("not_committed");
            links.fold(span, EndedSpan::linked).failed(failed).record();
        }
    }
}

/// A decision that is about to be written.
pub struct TracedDecision {
    traced: Traced,
    /// A request of the product's own, which no object has handled for its own sake.
    is_command: bool,
    begun: u64,
    decided: u64,
    outcomes: String,
    refusal: Option<String>,
}

impl TracedDecision {
    /// Begins a decision; none unless it is traced.
    pub fn begin(traceparent: &Traceparent, source: &Source, id: &EventId, is_command: bool) -> Option<Self> {
        let traced = Traced::of(traceparent, source.as_str(), id.as_str())?;
        Some(Self {
            traced,
            is_command,
            begun: now(),
            decided: 0,
            outcomes: String::new(),
            refusal: None,
        })
    }

    /// It has been taken.
    pub fn decided(mut self, reply: &Reply) -> Self {
        self.decided = now();
        let outcomes: Vec<_> = (reply.outcomes.iter())
            .map(|outcome| outcome_label(&outcome.outcome_type))
            .collect();
        self.outcomes = outcomes.join(",");
        self.refusal = reply.refusal().map(str::to_owned);
        self
    }
}

/// Records the spans of decisions, and of the statement that has written them for so many `units` since `begun`. `entity`: what the
/// table's rows are.
pub fn written<'d>(entity: &str, units: usize, begun: u64, decisions: impl Iterator<Item = &'d TracedDecision>) {
    for decision in decisions {
        let traced = &decision.traced;
        // What a checkout does in its own name has the sender in its row: the span that opened it. What has none begins a trace.
        let (context, parent) = match decision.is_command {
            true if traced.begins_here => ((traced.trace, traced.sender), None),
            true => (traced.context(Hop::Decision), Some(traced.sender)),
            false => (traced.context(Hop::Decision), Some(traced.span(Hop::Object))),
        };
        let span = EndedSpan::new(
            format!("decide {entity}"),
            SpanKind::Internal,
            context,
            parent,
            decision.begun,
        );
        let span = span
            .until(decision.decided)
            .text("cloudevents.event_source", &traced.source)
            .text("cloudevents.event_id", &traced.id)
            .text("holdfast.outcomes", &decision.outcomes);
        let span = match &decision.refusal {
            Some(refusal) => span.text("holdfast.refusal", refusal),
            None => span,
        };
        span.record();
        let parent = if decision.is_command {
            traced.sender
        } else {
            traced.span(Hop::Object)
        };
        let name = format!("write {entity}s");
        EndedSpan::new(
            name.clone(),
            SpanKind::Client,
            traced.context(Hop::Write),
            Some(parent),
            begun,
        )
        .text("db.system.name", "postgresql")
        .text("db.query.summary", name)
        .number("db.operation.batch.size", units as i64)
        .record();
    }
}

/// What an outcome says of its cause.
#[derive(Deserialize)]
struct Told<'a> {
    #[serde(borrow)]
    traceparent: Cow<'a, str>,
    #[serde(borrow)]
    causationsource: Cow<'a, str>,
    #[serde(borrow)]
    causationid: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    outcome_type: Cow<'a, str>,
}

/// Records the span of an outcome that Kafka has, in a transaction of so many `rows` that began then. `age`: the seconds for which it
/// waited before.
pub fn told(topic: &str, key: &str, value: &[u8], age: f64, rows: usize, begun: u64) {
    if !are_on() {
        return;
    }
    // What is no outcome has no cause.
    let Ok(told) = serde_json::from_slice::<Told<'_>>(value) else {
        return;
    };
    let Ok(traceparent) = Traceparent::parse(&told.traceparent) else {
        return;
    };
    let Some(traced) = Traced::of(&traceparent, &told.causationsource, &told.causationid) else {
        return;
    };
    let name = format!("send {topic}");
    let context = (
        traced.trace,
        span_id([&traced.trace, told.id.as_bytes(), topic.as_bytes(), b"told"]),
    );
    let span = EndedSpan::new(name, SpanKind::Producer, context, Some(traced.span(Hop::Write)), begun);
    let age = (age.max(0.0) * 1_000.0) as i64;
    from_kafka(span, "send", topic, key)
        .text("messaging.message.id", told.id.clone())
        .number("messaging.batch.message_count", rows as i64)
        .text("cloudevents.event_id", told.id)
        .text("cloudevents.event_source", holdfast_schemas::OUTCOME_SOURCE)
        .text("cloudevents.event_type", told.outcome_type)
        .text("cloudevents.event_subject", key)
        .number("holdfast.outbox.milliseconds", age)
        .record();
}

/// The trace context that a checkout keeps, of the event that opens it: its later spans follow the object's, which opened it.
pub fn checkout_context(traceparent: &Traceparent, source: &Source, id: &EventId) -> Traceparent {
    match Traced::of(traceparent, source.as_str(), id.as_str()) {
        Some(traced) => traceparent.handed_on(traced.span(Hop::Object), true),
        None => traceparent.clone(),
    }
}

task_local! {
    /// The step of a checkout that is being taken.
    static STEP: SpanContext;
    /// The engine's span of the attempt that is being made.
    static ENGINE: Traceparent;
}

/// Takes a step of a checkout, and records its span.
pub async fn step<T, E>(
    name: &str,
    checkout: &CheckoutId,
    trace: Option<&Traceparent>,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let traced = trace.and_then(|trace| Traced::of(trace, CHECKOUT, checkout.as_str()));
    let Some(traced) = traced else {
        return work.await;
    };
    let begun = now();
    let context = (traced.trace, unique(&traced, name, begun));
    let taken = STEP.scope(context, work).await;
    let span = EndedSpan::new(
        format!("checkout {name}"),
        SpanKind::Internal,
        context,
        Some(traced.sender),
        begun,
    );
    let span = span.text("holdfast.checkout", checkout.as_str());
    let links = engine().as_ref().map(context_of);
    let failed = taken.is_err().then_some("not_taken");
    links.into_iter().fold(span, EndedSpan::linked).failed(failed).record();
    taken
}

/// Calls the payment provider, and records the span of the call as part of the step for which it is made. `class`: that of an error.
pub async fn call<T, E>(
    name: &str,
    class: impl FnOnce(&E) -> &'static str,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let Ok((trace, step)) = STEP.try_with(|step| *step) else {
        return call.await;
    };
    let begun = now();
    let answer = call.await;
    let span = span_id([&trace, &step, name.as_bytes(), &begun.to_be_bytes()]);
    let failed = answer.as_ref().err().map(class);
    EndedSpan::new(
        format!("provider {name}"),
        SpanKind::Client,
        (trace, span),
        Some(step),
        begun,
    )
    .failed(failed)
    .record();
    answer
}

/// A mail about a checkout that is being sent.
pub struct MailSpan {
    traced: Traced,
    begun: u64,
}

impl MailSpan {
    /// Begins now; none unless it is traced.
    pub fn begin(checkout: &CheckoutId, trace: Option<&Traceparent>) -> Option<Self> {
        let traced = Traced::of(trace?, CHECKOUT, checkout.as_str())?;
        let begun = now();
        Some(Self { traced, begun })
    }

    /// The mail server has answered, or did not. `place`: which outcome of the checkout the mail is about.
    pub fn end(self, place: &str, code: Option<u16>, is_accepted: bool) {
        let Self { traced, begun } = self;
        let context = (traced.trace, unique(&traced, place, begun));
        let span = EndedSpan::new(
            "send mail".to_owned(),
            SpanKind::Client,
            context,
            Some(traced.sender),
            begun,
        )
        .text("holdfast.checkout", traced.id)
        .text("holdfast.mail", place);
        let span = match code {
            Some(code) => span.number("smtp.response.status_code", code.into()),
            None => span,
        };
        span.failed((!is_accepted).then_some("not_accepted")).record();
    }
}

/// Runs `work` in an attempt that the engine makes, whose own span is known if the engine has told it.
pub fn in_attempt<R>(span: Option<&Traceparent>, work: impl FnOnce() -> R) -> R {
    match span {
        Some(span) => ENGINE.sync_scope(span.clone(), work),
        None => work(),
    }
}

/// The engine's span of the attempt that is being made.
pub fn engine() -> Option<Traceparent> {
    ENGINE.try_with(Traceparent::clone).ok()
}

/// What stands for a checkout in the place of an event's source.
const CHECKOUT: &str = "holdfast/Checkout";

/// A span to which no other one refers, and which is another one each time.
fn unique(traced: &Traced, name: &str, begun: u64) -> [u8; 8] {
    span_id([
        &traced.trace,
        traced.id.as_bytes(),
        name.as_bytes(),
        &begun.to_be_bytes(),
    ])
}

fn context_of(traceparent: &Traceparent) -> SpanContext {
    (traceparent.trace_id(), traceparent.span_id())
}

/// The first span of an event whose producer records none: the moment at which it was there.
fn created(traced: &Traced, destination: &str, at: u64, event_type: &str, subject: &str) {
    let name = format!("create {destination}");
    let span = EndedSpan::new(name, SpanKind::Producer, (traced.trace, traced.sender), None, at).until(at);
    let span = from_kafka(span, "create", destination, subject);
    cloud_event(span, traced, event_type, subject).record();
}

fn from_kafka(span: EndedSpan, operation: &'static str, topic: &str, key: &str) -> EndedSpan {
    span.text("messaging.system", "kafka")
        .text("messaging.operation.name", operation)
        .text("messaging.operation.type", operation)
        .text("messaging.destination.name", topic)
        .text("messaging.kafka.message.key", key)
}

fn at(span: EndedSpan, origin: &Origin) -> EndedSpan {
    span.text("messaging.destination.partition.id", origin.partition.to_string())
        .number("messaging.kafka.offset", origin.offset)
}

fn cloud_event(span: EndedSpan, traced: &Traced, event_type: &str, subject: &str) -> EndedSpan {
    span.text("cloudevents.event_id", &traced.id)
        .text("cloudevents.event_source", &traced.source)
        .text("cloudevents.event_type", event_type)
        .text("cloudevents.event_subject", subject)
}
