//! Traces: what became of one event, hop by hop, as spans of OpenTelemetry (semantic conventions 1.44 for messaging).
//!
//! A trace is its event's: it has the trace id of the event's `traceparent`, which the event and its outcomes carry with them anyway. A
//! span is built when its hop is over, with the times that were noted, and no context is passed from function to function. Its id
//! follows from trace, event and hop: so each process names the span before its own without being told of it, and what is done
//! again has the same span again.
//!
//! An event that came with a `traceparent` is traced if its producer traces it, any other one by chance: the chance is the trace's id, so
//! that all processes decide alike. What several events have in common, such as their record or their statement, has a span in the
//! trace of one of them that links to the others, or one in each.
//!
//! Without a collector there is no recorder, and each call here returns at once. The recorder is the process's own, as the log is. It
//! never waits: spans that find the queue full are dropped and counted.

mod export;
mod hops;
mod otlp;

use std::sync::{Arc, OnceLock};

use holdfast_schemas::Traceparent;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
pub use export::{Error, Exporter, start};
pub use hops::{
    AdmittedRecord, HandledEvent, Handling, MailSpan, ReadEvent, TracedDecision, call, checkout_context, engine,
    in_attempt, step, told, written,
};
use otlp::{AnyValue, AnyValueOf, KeyValue, Link, SentSpan, SpanKind, Status, StatusCode};

static RECORDER: OnceLock<Recorder> = OnceLock::new();

/// Takes the spans of the process.
struct Recorder {
    /// Traces whose random bits are below it are not sampled.
    threshold: u64,
    clock: fn() -> OffsetDateTime,
    spans: mpsc::Sender<SentSpan>,
    metrics: Arc<Metrics>,
}

impl Recorder {
    fn take(&self, span: SentSpan) {
        if self.spans.try_send(span).is_err() {
            self.metrics.trace_spans.with_label_values(&["dropped"]).inc();
        }
    }
}

/// Whether traces are recorded.
pub fn are_on() -> bool {
    RECORDER.get().is_some()
}

/// Now, in nanoseconds since 1970; 0 where no trace is recorded.
pub fn now() -> u64 {
    RECORDER.get().map_or(0, |recorder| nanoseconds((recorder.clock)()))
}

fn nanoseconds(moment: OffsetDateTime) -> u64 {
    u64::try_from(moment.unix_timestamp_nanos()).unwrap_or(0)
}

/// A hop of an event whose span another hop names as its parent, or links to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hop {
    Gate,
    Admitted,
    Object,
    Decision,
    Write,
}

/// An event whose trace is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    trace: [u8; 16],
    /// The span by which the event was sent.
    sender: [u8; 8],
    /// Its producer records nothing: that span is ours to tell.
    begins_here: bool,
    source: String,
    id: String,
}

impl Traced {
    /// The event `(source, id)` with this trace; none unless it is recorded.
    pub fn of(traceparent: &Traceparent, source: &str, id: &str) -> Option<Self> {
        Self::sampled(traceparent, source, id, RECORDER.get()?.threshold)
    }

    fn sampled(traceparent: &Traceparent, source: &str, id: &str, threshold: u64) -> Option<Self> {
        let is_producers = traceparent.is_sampled();
        let is_chosen = || traceparent.randomness() >= threshold && *traceparent == Traceparent::derive(source, id);
        (is_producers || is_chosen()).then(|| Self {
            trace: traceparent.trace_id(),
            sender: traceparent.span_id(),
            begins_here: !is_producers,
            source: source.to_owned(),
            id: id.to_owned(),
        })
    }

    fn span(&self, hop: Hop) -> [u8; 8] {
        let name = match hop {
            Hop::Gate => "gate",
            Hop::Admitted => "admitted",
            Hop::Object => "object",
            Hop::Decision => "decision",
            Hop::Write => "write",
        };
        span_id([
            &self.trace[..],
            self.source.as_bytes(),
            self.id.as_bytes(),
            name.as_bytes(),
        ])
    }

    fn context(&self, hop: Hop) -> SpanContext {
        (self.trace, self.span(hop))
    }
}

/// The ids of a trace and of a span in it.
type SpanContext = ([u8; 16], [u8; 8]);

fn span_id(parts: [&[u8]; 4]) -> [u8; 8] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u32).to_be_bytes());
        hash.update(part);
    }
    let mut id = [0; 8];
    id.copy_from_slice(&hash.finalize()[..8]);
    id
}

/// The random bits from which on a trace is sampled.
fn threshold(share: f64) -> u64 {
    ((1.0 - share) * (1_u64 << 56) as f64) as u64
}

/// A span whose end has come.
struct EndedSpan(SentSpan);

impl EndedSpan {
    /// From `begun` until now.
    fn new(name: String, kind: SpanKind, (trace, span): SpanContext, parent: Option<[u8; 8]>, begun: u64) -> Self {
        Self(SentSpan {
            trace_id: trace.to_vec(),
            span_id: span.to_vec(),
            parent_span_id: parent.map(Vec::from).unwrap_or_default(),
            name,
            kind: kind.into(),
            start_time_unix_nano: begun,
            end_time_unix_nano: now().max(begun),
            attributes: Vec::new(),
            links: Vec::new(),
            status: None,
            // Sampled, by W3C Trace Context.
            flags: 1,
        })
    }

    fn until(mut self, end: u64) -> Self {
        self.0.end_time_unix_nano = end.max(self.0.start_time_unix_nano);
        self
    }

    fn text(self, key: &'static str, value: impl Into<String>) -> Self {
        self.attribute(key, AnyValueOf::Text(value.into()))
    }

    fn number(self, key: &'static str, value: i64) -> Self {
        self.attribute(key, AnyValueOf::Number(value))
    }

    fn attribute(mut self, key: &'static str, value: AnyValueOf) -> Self {
        self.0.attributes.push(KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(value) }),
        });
        self
    }

    fn linked(mut self, (trace, span): SpanContext) -> Self {
        self.0.links.push(Link {
            trace_id: trace.to_vec(),
            span_id: span.to_vec(),
        });
        self
    }

    /// With the class of the error, never its text: that may hold what a trace must not.
    fn failed(mut self, class: Option<&str>) -> Self {
        let Some(class) = class else { return self };
        self.0.status = Some(Status {
            message: String::new(),
            code: StatusCode::Error.into(),
        });
        self.text("error.type", class)
    }

    fn record(self) {
        if let Some(recorder) = RECORDER.get() {
            recorder.take(self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn given(flags: &str) -> Traceparent {
        Traceparent::parse(&GIVEN.replace("-01", flags)).unwrap()
    }

    #[test]
    fn a_producers_own_decision_counts_and_chance_decides_where_there_is_none() {
        let sampled =
            |traceparent: &Traceparent, share| Traced::sampled(traceparent, "shop", "1", threshold(share)).is_some();
        assert!(sampled(&given("-01"), 0.0));
        assert!(!sampled(&given("-00"), 1.0));
        let derived = Traceparent::derive("shop", "1");
        assert!(sampled(&derived, 1.0) && !sampled(&derived, 0.0));
        // Derived from another event: handed on by a producer that does not record.
        assert!(!sampled(&Traceparent::derive("shop", "2"), 1.0));
    }

    #[test]
    fn chance_is_as_great_as_was_asked_for() {
        let of = |share| {
            let events = (0..10_000).map(|number| number.to_string());
            let sampled = events.filter(|id| {
                let derived = Traceparent::derive("shop", id);
                Traced::sampled(&derived, "shop", id, threshold(share)).is_some()
            });
            sampled.count()
        };
        assert!((60..140).contains(&of(0.01)), "{}", of(0.01));
        assert!((4_800..5_200).contains(&of(0.5)), "{}", of(0.5));
    }

    #[test]
    fn a_span_for_which_there_is_no_room_is_dropped_and_counted() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let (spans, mut queue) = mpsc::channel(1);
        let recorder = Recorder {
            threshold: 0,
            clock: || OffsetDateTime::UNIX_EPOCH,
            spans,
            metrics: metrics.clone(),
        };
        for _ in 0..3 {
            recorder.take(SentSpan::default());
        }
        let dropped = metrics.trace_spans.with_label_values(&["dropped"]);
        assert!(queue.try_recv().is_ok() && queue.try_recv().is_err());
        assert_eq!(dropped.get(), 2);
    }

    #[test]
    fn without_a_recorder_nothing_is_traced() {
        assert!(!are_on() && now() == 0);
        assert_eq!(Traced::of(&given("-01"), "shop", "1"), None);
    }

    #[test]
    fn a_hop_has_the_same_span_again_and_no_other_hops_or_events() {
        let of = |id| Traced::sampled(&given("-01"), "shop", id, 0).unwrap();
        let hops = [Hop::Gate, Hop::Admitted, Hop::Object, Hop::Decision, Hop::Write];
        let spans: Vec<_> = ["1", "2"]
            .iter()
            .flat_map(|id| hops.map(|hop| of(id).span(hop)))
            .collect();
        let different: std::collections::HashSet<_> = spans.iter().collect();
        assert_eq!(different.len(), spans.len());
        assert_eq!(of("1").span(Hop::Gate), spans[0]);
    }
}
