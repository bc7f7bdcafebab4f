//! A collector of traces: it takes OTLP over HTTP, as everybody's does, keeps what it was sent, and shows it in a page.
//!
//! It reads by OpenTelemetry's own types, not by the product's.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Method, Request, Response};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::http;
use super::process::lock;

/// Spans that are kept; the oldest go.
const KEPT: usize = 100_000;
/// Traces that the page lists.
const LISTED: usize = 100;

/// Dropping it closes the port.
pub struct Collector {
    port: u16,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    spans: Mutex<VecDeque<ReceivedSpan>>,
    /// Of the last request.
    headers: Mutex<HeaderMap>,
}

/// A span as it was received; ids in hexadecimal.
#[derive(Clone, Debug)]
pub struct ReceivedSpan {
    pub trace: String,
    pub id: String,
    /// None for the first of its trace.
    pub parent: Option<String>,
    pub name: String,
    pub kind: SpanKind,
    /// Nanoseconds since 1970.
    pub start: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, String>,
    /// Trace and span of each.
    pub links: Vec<(String, String)>,
    pub failed: bool,
    /// The `service.name` of its process.
    pub service: String,
}

impl ReceivedSpan {
    /// An attribute; empty if there is none.
    pub fn get(&self, attribute: &str) -> &str {
        self.attributes.get(attribute).map_or("", String::as_str)
    }
}

impl Collector {
    /// Listens on this port, or on a free one when it is 0.
    pub async fn start_at(port: u16) -> anyhow::Result<Collector> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.context("no port")?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State::default());
        let of = state.clone();
        let accepting = tokio::spawn(http::serve(listener, move |request| answer(request, of.clone())));
        Ok(Collector { port, state, accepting })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where spans are sent.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/v1/traces", self.port)
    }

    /// Where they are shown.
    pub fn page(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// A header of the last request.
    pub fn header(&self, name: &str) -> Option<String> {
        let headers = lock(&self.state.headers);
        headers.get(name)?.to_str().ok().map(str::to_owned)
    }

    pub fn spans(&self) -> Vec<ReceivedSpan> {
        lock(&self.state.spans).iter().cloned().collect()
    }

    /// The spans of one trace, by their start.
    pub fn trace(&self, id: &str) -> Vec<ReceivedSpan> {
        self.state.trace(id)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl State {
    fn trace(&self, id: &str) -> Vec<ReceivedSpan> {
        let spans = lock(&self.spans);
        let mut trace: Vec<_> = spans.iter().filter(|span| span.trace == id).cloned().collect();
        trace.sort_by_key(|span| span.start);
        trace
    }

    fn take(&self, request: ExportTraceServiceRequest) {
        let mut spans = lock(&self.spans);
        for resource in request.resource_spans {
            let attributes = resource
                .resource
                .map(|resource| resource.attributes)
                .unwrap_or_default();
            let service = texts(attributes).remove("service.name").unwrap_or_default();
            let sent = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(sent.map(|span| received(span, service.clone())));
        }
        let surplus = spans.len().saturating_sub(KEPT);
        spans.drain(..surplus);
    }
}

fn received(span: Span, service: String) -> ReceivedSpan {
    let failed = span
        .status
        .as_ref()
        .is_some_and(|status| status.code() == StatusCode::Error);
    let links = span
        .links
        .iter()
        .map(|link| (hex::encode(&link.trace_id), hex::encode(&link.span_id)));
    ReceivedSpan {
        trace: hex::encode(&span.trace_id),
        id: hex::encode(&span.span_id),
        parent: Some(hex::encode(&span.parent_span_id)).filter(|parent| !parent.is_empty()),
        kind: span.kind(),
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        links: links.collect(),
        failed,
        service,
        name: span.name,
        attributes: texts(span.attributes),
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .into_iter()
        .map(|pair| (pair.key, text(pair.value)))
        .collect()
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let (status, kind, body) = match (&head.method, path) {
        (&Method::POST, "/v1/traces") => match ExportTraceServiceRequest::decode(body.collect().await?.to_bytes()) {
            Ok(request) => {
                state.take(request);
                *lock(&state.headers) = head.headers;
                // The empty message: all of it was taken.
                (200, "application/x-protobuf", String::new())
            }
            Err(error) => (400, "text/plain", error.to_string()),
        },
        (&Method::GET, "/") => (200, "text/html; charset=utf-8", list(&state)),
        (&Method::GET, path) => match path.strip_prefix("/trace/") {
            Some(id) => (200, "text/html; charset=utf-8", show(&state.trace(id))),
            None => (404, "text/plain", "no such page".to_owned()),
        },
        _ => (404, "text/plain", "no such page".to_owned()),
    };
    let answer = Response::builder().status(status).header(CONTENT_TYPE, kind);
    Ok(answer
        .body(Full::new(body.into()))
        .expect("a status, a type and a text are well formed"))
}

const STYLE: &str = "<!doctype html><meta charset=utf-8><title>Traces</title><style>
body{font:14px sans-serif;margin:2em}table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:2px 8px;vertical-align:top}
tr:nth-child(even){background:#f4f4f4}.line{position:relative;height:14px;min-width:20em}.bar{position:absolute;height:12px;min-width:2px;background:#4a7ebb}
.failed{background:#c0392b}small{color:#666}</style>";

/// The page of the newest traces.
fn list(state: &State) -> String {
    let mut traces: BTreeMap<String, (u64, u64, usize, String)> = BTreeMap::new();
    for span in lock(&state.spans).iter() {
        let subject = span.get("cloudevents.event_subject").to_owned();
        let trace = traces
            .entry(span.trace.clone())
            .or_insert((span.start, span.end, 0, String::new()));
        *trace = (
            trace.0.min(span.start),
            trace.1.max(span.end),
            trace.2 + 1,
            std::mem::take(&mut trace.3),
        );
        if trace.3.is_empty() {
            trace.3 = subject;
        }
    }
    let mut traces: Vec<_> = traces.into_iter().collect();
    traces.sort_by_key(|(_, (start, ..))| std::cmp::Reverse(*start));
    let mut page = format!("{STYLE}<h1>Traces</h1><table><tr><th>trace<th>about<th>spans<th>took");
    for (id, (start, end, spans, subject)) in traces.into_iter().take(LISTED) {
        let (took, subject) = (milliseconds(end - start), escaped(&subject));
        append(
            &mut page,
            format_args!("<tr><td><a href=/trace/{id}>{id}</a><td>{subject}<td>{spans}<td>{took}"),
        );
    }
    page + "</table>"
}

/// The page of one trace: its spans in the order of their parents, each as a bar.
fn show(trace: &[ReceivedSpan]) -> String {
    let start = trace.iter().map(|span| span.start).min().unwrap_or(0);
    let end = trace.iter().map(|span| span.end).max().unwrap_or(0);
    let whole = (end - start).max(1) as f64;
    let mut page = format!(
        "{STYLE}<p><a href=/>all traces</a><h1>{} spans, {}</h1><table>",
        trace.len(),
        milliseconds(end - start)
    );
    for (depth, span) in in_order(trace) {
        let (left, width) = (
            (span.start - start) as f64 / whole,
            (span.end - span.start) as f64 / whole,
        );
        let mut attributes = String::new();
        for (name, value) in &span.attributes {
            append(&mut attributes, format_args!("{}={} ", escaped(name), escaped(value)));
        }
        for (other, _) in &span.links {
            append(&mut attributes, format_args!("<a href=/trace/{other}>link</a> "));
        }
        let failed = if span.failed { " failed" } else { "" };
        append(
            &mut page,
            format_args!(
                "<tr><td style=padding-left:{}em>{} <small>{}</small><td>{}<td style=width:40%><div class=line><div class=\"bar{failed}\" \
                 style=left:{:.2}%;width:{:.2}%></div></div><td><details><summary>more</summary><small>{attributes}</small></details>",
                depth + 1,
                escaped(&span.name),
                escaped(&span.service),
                milliseconds(span.end - span.start),
                left * 100.0,
                width * 100.0,
            ),
        );
    }
    page + "</table>"
}

/// Each span below its parent, with its depth.
fn in_order(trace: &[ReceivedSpan]) -> Vec<(usize, &ReceivedSpan)> {
    let is_root = |span: &ReceivedSpan| !trace.iter().any(|other| Some(&other.id) == span.parent.as_ref());
    let mut open: Vec<_> = trace
        .iter()
        .rev()
        .filter(|span| is_root(span))
        .map(|span| (0, span))
        .collect();
    let mut ordered: Vec<(usize, &ReceivedSpan)> = Vec::new();
    while let Some((depth, span)) = open.pop() {
        // A hop that was done twice has its span twice.
        if ordered.iter().any(|(_, other)| std::ptr::eq(*other, span)) {
            continue;
        }
        ordered.push((depth, span));
        let children = trace
            .iter()
            .rev()
            .filter(|child| child.parent.as_ref() == Some(&span.id));
        open.extend(children.map(|child| (depth + 1, child)));
    }
    ordered
}

fn milliseconds(nanoseconds: u64) -> String {
    format!("{:.1} ms", nanoseconds as f64 / 1e6)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn append(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("a String takes everything");
}
