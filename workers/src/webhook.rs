//! The receiver of the payment provider's webhooks, which become events on `payments`. It keeps nothing: it answers a webhook
//! with 200 once Kafka has its event, and until then the provider retries.
//!
//! | answer | when |
//! | --- | --- |
//! | 200 | Kafka has the event; or it is of no interest, about a payment that Holdfast did not make, or of the other mode |
//! | 400 | unsigned, forged, signed too long ago, not an event, or about a payment of Holdfast and not decodable |
//! | 408, 413 | the body does not arrive, or is too large |
//! | 503 | Kafka or the provider does not answer in time |
//!
//! A webhook that comes twice makes the same event twice: the provider sends the same content at each delivery. A refund or a
//! dispute does not name its checkout; the receiver looks up checkout and user in its payment's metadata, which never change.
//!
//! An event of the other mode (test, live) is refused with 200: a live endpoint of a platform gets the test events of its connected
//! accounts too, for which the provider must neither retry nor switch the endpoint off.
//!
//! `webhook` refuses to start without a provider to ask: a refund or a dispute names neither checkout nor user. The first one may
//! come after months, and would be answered 503 until the provider gives it up.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use holdfast_schemas::{
    CheckoutId, DeclineCode, Event, PaymentId, Source, Traceparent, UserEvent, UserId, events, topics,
};
use secrecy::ExposeSecret;
use time::OffsetDateTime;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::{self, ProviderMode, ReplaceableSecret};
use crate::crash::{self, Point};
use crate::error;
use crate::kafka::publisher::{self, Publisher};
use crate::lifecycle::Ready;
use crate::listener::{self, Port};
use crate::metrics::Metrics;
use crate::provider::webhook::{self, Notification, What};
use crate::provider::{self, Provider};

/// Largest body, in bytes. The provider's are a hundredth of it.
const LIMIT: usize = 1 << 20;

/// Longest time for a body to arrive.
const ARRIVES_WITHIN: Duration = Duration::from_secs(8);

/// Longest time from the arrival of the body to the answer, Kafka's acknowledgement included. Together with the arrival it is
/// less than the time to drain.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(8);
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

const STRUCTURED: &str = "application/cloudevents+json; charset=UTF-8";

/// The settings of the role.
pub struct Settings {
    pub kafka: config::Kafka,
    /// The secrets that may have signed, separated by commas.
    pub secret: ReplaceableSecret,
    /// Largest distance of a signature's time from now.
    pub tolerance: Duration,
    /// The mode of the account, if it is known.
    pub mode: Option<ProviderMode>,
    /// Asked for the payments of refunds and disputes.
    pub provider: Provider,
    pub clock: fn() -> OffsetDateTime,
}

/// How often Kafka is asked for any answer, and how long it may take.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_PATIENCE: Duration = Duration::from_secs(2);

/// Receives webhooks until `shutdown`; those under way are then answered.
///
/// # Errors
/// No Kafka producer can be made.
pub async fn run(
    port: Port,
    settings: Settings,
    metrics: Arc<Metrics>,
    ready: Ready,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    ready(Err(String::new()));
    let publisher = Publisher::new(&settings.kafka, ACKNOWLEDGED_WITHIN).map_err(Error::Kafka)?;
    let receiver = Arc::new(Receiver {
        settings,
        publisher,
        metrics,
    });
    let router = Router::new()
        .route("/", post(answer))
        .layer(DefaultBodyLimit::max(LIMIT))
        .with_state(receiver.clone());
    tokio::select! {
        () = listener::serve_router(port, router, shutdown) => Ok(()),
        never = watch_kafka(&receiver.publisher, ready) => match never {},
    }
}

async fn watch_kafka(publisher: &Publisher, ready: Ready) -> Infallible {
    let mut ticks = tokio::time::interval(PING_EVERY);
    loop {
        ticks.tick().await;
        let answers = publisher.answers(topics::PAYMENTS, PING_PATIENCE).await;
        ready(answers.map_err(|error| error::chain(&error)));
    }
}

struct Receiver {
    settings: Settings,
    publisher: Publisher,
    metrics: Arc<Metrics>,
}

/// The result of a webhook that is answered with 200.
enum Receipt {
    /// Kafka has its event.
    Accepted,
    Ignored(&'static str),
    /// It is of the mode that the account is not in.
    OtherMode,
}

impl Receipt {
    const FOREIGN: Self = Self::Ignored("a payment that Holdfast did not make");
}

async fn answer(State(receiver): State<Arc<Receiver>>, request: Request) -> (StatusCode, String) {
    let answer = receiver.take(request).await;
    let label = answer.as_ref().map_or_else(Refused::label, Receipt::label);
    receiver.metrics.webhook_requests.with_label_values(&[label]).inc();
    match answer {
        Ok(Receipt::Accepted) => (StatusCode::OK, "accepted\n".to_owned()),
        Ok(Receipt::Ignored(why)) => (StatusCode::OK, format!("ignored: {why}\n")),
        Ok(Receipt::OtherMode) => {
            tracing::warn!("a webhook is ignored: test mode and live mode do not mix");
            (StatusCode::OK, "ignored: an event of the other mode\n".to_owned())
        }
        Err(refused) => {
            refused.log();
            (refused.status(), format!("{refused}\n"))
        }
    }
}

impl Receiver {
    async fn take(&self, request: Request) -> Result<Receipt, Refused> {
        let headers = request.headers().clone();
        let body = timeout(ARRIVES_WITHIN, Bytes::from_request(request, &())).await;
        let body = body.map_err(|_| Refused::Slow)?.map_err(Refused::Body)?;
        let told = timeout(ANSWERED_WITHIN, self.tell(&headers, &body)).await;
        told.map_err(|_| Refused::Late)?
    }

    async fn tell(&self, headers: &HeaderMap, body: &[u8]) -> Result<Receipt, Refused> {
        let mut told = self.read(headers, body)?;
        crash::here(Point::WebhookVerified);
        if crash::again(Point::WebhookVerified) {
            told = self.read(headers, body)?;
        }
        let (payload, buyer) = match told {
            Notification::Ignored => return Ok(Receipt::Ignored("an event of no interest")),
            Notification::Foreign => return Ok(Receipt::FOREIGN),
            Notification::OtherMode => return Ok(Receipt::OtherMode),
            Notification::Ours(payload, checkout, user) => (payload, Some((checkout, user))),
            Notification::Unnamed(payload, payment) => (payload, self.buyer(&payment).await?),
        };
        let Some((checkout, user)) = buyer else {
            return Ok(Receipt::FOREIGN);
        };
        let trace = text(headers, "traceparent").and_then(|text| Traceparent::parse(text).ok());
        let event = event(payload.event()?, checkout, user, trace);
        self.send(&event).await?;
        crash::here(Point::WebhookAcknowledged);
        if crash::again(Point::WebhookAcknowledged) {
            self.send(&event).await?;
        }
        tracing::debug!(id = %event.id, kind = event.event_type(), "a webhook became an event");
        Ok(Receipt::Accepted)
    }

    /// Verifies a webhook, and tells whose payment it is about.
    fn read(&self, headers: &HeaderMap, body: &[u8]) -> Result<Notification, Refused> {
        let Settings {
            secret,
            tolerance,
            mode,
            clock,
            ..
        } = &self.settings;
        let signature = text(headers, webhook::SIGNATURE).unwrap_or_default();
        // At most an hour.
        let tolerance = time::Duration::try_from(*tolerance).unwrap_or(time::Duration::HOUR);
        let secrets = secret.now();
        let secrets = secrets.expose_secret().split(',');
        webhook::verify(signature, body, secrets, clock(), tolerance)?;
        Ok(webhook::read(body, *mode)?)
    }

    /// Asks the provider for the checkout and the user that the payment was made for; none when Holdfast did not make it.
    async fn buyer(&self, payment: &PaymentId) -> Result<Option<(CheckoutId, UserId)>, Refused> {
        self.settings.provider.buyer(payment).await.map_err(Refused::Provider)
    }

    async fn send(&self, event: &Event<UserEvent>) -> Result<(), Refused> {
        let (key, value) = (event.subject.as_str(), event.to_json());
        let sent = self.publisher.take(topics::PAYMENTS, key, &value, STRUCTURED);
        sent.await.map_err(Refused::Kafka)
    }
}

/// The event that a webhook becomes.
fn event(told: webhook::Event, checkout: CheckoutId, user: UserId, trace: Option<Traceparent>) -> Event<UserEvent> {
    let payment = told.payment;
    let data = match told.what {
        What::Authorized(amount) => UserEvent::PaymentAuthorized(events::PaymentAuthorized {
            checkout,
            payment,
            amount,
        }),
        What::Captured(amount) => UserEvent::PaymentCaptured(events::PaymentCaptured {
            checkout,
            payment,
            amount,
        }),
        What::Failed(code) => UserEvent::PaymentFailed(events::PaymentFailed {
            checkout,
            payment,
            code,
        }),
        What::Canceled => UserEvent::PaymentFailed(events::PaymentFailed {
            checkout,
            payment,
            code: DeclineCode::parse("canceled").expect("a visible word"),
        }),
        What::Refunded(refunded) => UserEvent::PaymentRefunded(events::PaymentRefunded {
            checkout,
            payment,
            refunded,
        }),
        What::RefundChanged { id, amount, status } => UserEvent::PaymentRefundChanged(events::PaymentRefundChanged {
            checkout,
            payment,
            refund: id,
            amount,
            status,
        }),
        What::Disputed {
            id,
            amount,
            status,
            funds,
        } => UserEvent::PaymentDisputed(events::PaymentDisputed {
            checkout,
            payment,
            dispute: id,
            amount,
            status,
            funds,
        }),
    };
    let source = Source::parse(webhook::SOURCE).expect("a short text");
    Event::new(source, told.id, told.created, trace, user, data)
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

impl Receipt {
    /// The value of the metric's label.
    fn label(&self) -> &'static str {
        match self {
            Receipt::Accepted => "accepted",
            Receipt::Ignored(_) => "ignored",
            Receipt::OtherMode => "other_mode",
        }
    }
}

/// The reason why the role cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("webhooks cannot be taken to Kafka")]
    Kafka(#[source] publisher::Error),
}

/// The reason why a webhook was refused, in words for its sender.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Webhook(#[from] webhook::Error),
    #[error("the body cannot be taken; at most {LIMIT} bytes can")]
    Body(#[source] BytesRejection),
    #[error("the body did not arrive within {ARRIVES_WITHIN:?}")]
    Slow,
    #[error("the payment provider did not say whose payment this is; come again")]
    Provider(#[source] provider::Error),
    #[error("Kafka does not have the event; come again")]
    Kafka(#[source] publisher::Error),
    #[error("not done within {ANSWERED_WITHIN:?}; come again")]
    Late,
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Refused::Webhook(_) => StatusCode::BAD_REQUEST,
            Refused::Body(rejection) => rejection.status(),
            Refused::Slow => StatusCode::REQUEST_TIMEOUT,
            Refused::Provider(_) | Refused::Kafka(_) | Refused::Late => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The value of the metric's label.
    fn label(&self) -> &'static str {
        match self {
            Refused::Webhook(webhook::Error::Unsigned) => "unsigned",
            Refused::Webhook(webhook::Error::Forged) => "forged",
            Refused::Webhook(webhook::Error::Old(_)) => "old",
            Refused::Body(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => "too_large",
            Refused::Webhook(_) | Refused::Body(_) | Refused::Slow => "unreadable",
            Refused::Provider(_) | Refused::Kafka(_) | Refused::Late => "unavailable",
        }
    }

    /// Logs a refusal; those that any sender on the Internet can cause only at debug level, so that they fill no log.
    fn log(&self) {
        let why = error::chain(self);
        match self {
            Refused::Webhook(webhook::Error::Unsigned | webhook::Error::Forged) | Refused::Body(_) | Refused::Slow => {
                tracing::debug!(error = why, "a webhook was refused");
            }
            Refused::Webhook(_) => tracing::warn!(error = why, "a webhook was refused"),
            _ => tracing::warn!(error = why, "a webhook was not taken: the provider comes again"),
        }
    }
}
