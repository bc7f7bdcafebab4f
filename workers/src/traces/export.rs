//! Sends spans to the collector, by OTLP over HTTP, in batches. A collector that is away is asked again, less and less often, while
//! the queue keeps what has room in it.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use prost::Message;
use secrecy::ExposeSecret;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::otlp::{
    AnyValue, AnyValueOf, ExportRequest, ExportResponse, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, SentSpan,
};
use super::{RECORDER, Recorder, threshold};
use crate::config::{self, ReplaceableSecret, parse_headers};
use crate::http::{BoxError, Http, Silence};
use crate::metrics::Metrics;
use crate::rounds::Rounds;
use crate::transience::Fault;

/// Spans that wait for the collector at most: a few megabytes.
const QUEUE: usize = 8_192;
/// Spans in one request at most.
const BATCH: usize = 512;
/// How long a request waits for more spans.
const LINGER: Duration = Duration::from_millis(500);
/// Pauses while the collector is away: they double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Longest time for the last spans, at the end of the process.
const LAST: Duration = Duration::from_secs(3);
/// The conventions by which attributes are named.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.44.0";
const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// Records traces from now on; not without a collector. `instance`: the name of this process.
///
/// # Errors
/// The system has no certificates to trust.
pub fn start(
    settings: &config::Traces,
    instance: &str,
    metrics: &Arc<Metrics>,
    clock: fn() -> OffsetDateTime,
) -> Result<Option<Exporter>, Error> {
    let Some(endpoint) = settings.endpoint.clone() else {
        return Ok(None);
    };
    let (spans, queue) = mpsc::channel(QUEUE);
    let ending = CancellationToken::new();
    let sender = Sender {
        http: Http::new(&endpoint, settings.timeout).map_err(Error::Client)?,
        endpoint,
        headers: settings.replaceable_headers(),
        resource: resource(instance),
        queue,
        ending: ending.clone(),
        metrics: metrics.clone(),
        rounds: Rounds::beside("traces", metrics),
    };
    let recorder = Recorder {
        threshold: threshold(settings.sample),
        clock,
        spans,
        metrics: metrics.clone(),
    };
    if RECORDER.set(recorder).is_err() {
        return Err(Error::Twice);
    }
    let task = tokio::spawn(sender.run());
    Ok(Some(Exporter { ending, task }))
}

/// The task that sends spans.
pub struct Exporter {
    ending: CancellationToken,
    task: JoinHandle<()>,
}

impl Exporter {
    /// Sends what has been recorded, if that does not take long: the rest is lost.
    pub async fn finish(self) {
        self.ending.cancel();
        match timeout(LAST, self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(panic)) => tracing::warn!(%panic, "the last spans of traces are lost"),
            Err(_elapsed) => {
                tracing::warn!("the last spans of traces are lost: the collector does not take them within {LAST:?}")
            }
        }
    }
}

/// The reason why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no HTTP client for the collector of traces (--traces-endpoint, HOLDFAST_TRACES_ENDPOINT) can be made")]
    Client(#[source] BoxError),
    #[error("traces are recorded already")]
    Twice,
    #[error("the collector of traces does not take spans")]
    Silent(#[from] Silence),
    #[error("a request to the collector of traces cannot be made")]
    Request(#[source] hyper::http::Error),
    #[error("the collector of traces answers {status}: look at --traces-endpoint and --traces-headers")]
    Refused { status: StatusCode },
    #[error("the collector of traces refuses {spans} spans: {message}")]
    Rejected { spans: i64, message: String },
}

impl Error {
    fn fault(&self) -> Fault {
        match self {
            Error::Client(_) | Error::Twice | Error::Request(_) => Fault::Setting,
            Error::Silent(Silence::Broken { mend: "", .. } | Silence::Late { .. }) => Fault::Server,
            Error::Silent(Silence::Broken { .. }) => Fault::Setting,
            Error::Refused { status } => match status.as_u16() {
                408 | 429 | 500..=599 => Fault::Server,
                400 | 413 | 422 => Fault::Content,
                _ => Fault::Setting,
            },
            Error::Rejected { .. } => Fault::Content,
        }
    }
}

struct Sender {
    http: Http,
    endpoint: Url,
    headers: Option<ReplaceableSecret>,
    resource: Resource,
    queue: mpsc::Receiver<SentSpan>,
    ending: CancellationToken,
    metrics: Arc<Metrics>,
    rounds: Rounds,
}

impl Sender {
    async fn run(mut self) {
        loop {
            let batch = self.gather().await;
            if batch.is_empty() {
                return;
            }
            let spans = batch.len() as u64;
            let dropped = self.deliver(batch).await.min(spans);
            self.metrics
                .trace_spans
                .with_label_values(&["sent"])
                .inc_by(spans - dropped);
            self.metrics.trace_spans.with_label_values(&["dropped"]).inc_by(dropped);
        }
    }

    /// The next spans; none at the end.
    async fn gather(&mut self) -> Vec<SentSpan> {
        let Self { queue, ending, .. } = self;
        let mut batch = Vec::new();
        tokio::select! {
            _ = queue.recv_many(&mut batch, BATCH) => {}
            () = ending.cancelled() => {}
        }
        let more = async {
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                queue.recv_many(&mut batch, room).await;
            }
        };
        tokio::select! {
            () = more => {}
            () = sleep(LINGER) => {}
            () = ending.cancelled() => {}
        }
        while batch.len() < BATCH
            && let Ok(span) = queue.try_recv()
        {
            batch.push(span);
        }
        batch
    }

    /// Sends a batch until the collector has taken or refused it. How many of its spans are dropped.
    async fn deliver(&self, spans: Vec<SentSpan>) -> u64 {
        let all = spans.len() as u64;
        let body = Bytes::from(self.request(spans).encode_to_vec());
        let mut pause = FIRST_PAUSE;
        loop {
            let is_last = self.ending.is_cancelled();
            match self.post(body.clone()).await {
                Ok(()) => {
                    self.rounds.passed();
                    return 0;
                }
                Err(error) => {
                    self.rounds.failed(error.fault(), &error);
                    match error {
                        Error::Rejected { spans, .. } => return u64::try_from(spans).unwrap_or(0),
                        error if is_last || error.fault() == Fault::Content => return all,
                        _ => {}
                    }
                }
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.ending.cancelled() => {}
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    fn request(&self, spans: Vec<SentSpan>) -> ExportRequest {
        ExportRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(Scope {
                        name: "holdfast".to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                    }),
                    spans,
                }],
                schema_url: SCHEMA.to_owned(),
            }],
        }
    }

    async fn post(&self, body: Bytes) -> Result<(), Error> {
        let mut request = Request::post(self.endpoint.as_str()).header(CONTENT_TYPE, PROTOBUF);
        let headers = self.headers.as_ref().map(ReplaceableSecret::now);
        let headers = headers
            .as_ref()
            .and_then(|headers| parse_headers(headers.expose_secret()));
        for (name, value) in headers.unwrap_or_default() {
            let name = HeaderName::try_from(name).map_err(|error| Error::Request(error.into()))?;
            let mut value = HeaderValue::try_from(value).map_err(|error| Error::Request(error.into()))?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(Error::Request)?;
        let answer = self.http.exchange(request).await?;
        if !answer.status().is_success() {
            return Err(Error::Refused {
                status: answer.status(),
            });
        }
        // A collector may answer nothing, which is the empty message.
        let partial = ExportResponse::decode(answer.into_body())
            .ok()
            .and_then(|answer| answer.partial_success);
        match partial {
            Some(partial) if partial.rejected_spans > 0 => Err(Error::Rejected {
                spans: partial.rejected_spans,
                message: partial.error_message,
            }),
            _ => Ok(()),
        }
    }
}

fn resource(instance: &str) -> Resource {
    let attributes = [
        ("service.name", "holdfast"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", instance),
    ];
    let attributes = attributes.map(|(key, value)| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(AnyValueOf::Text(value.to_owned())),
        }),
    });
    Resource {
        attributes: attributes.to_vec(),
    }
}
