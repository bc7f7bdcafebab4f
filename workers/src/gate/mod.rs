//! The gate: public topics in, admitted and dead-letter topics out. It admits records that are decodable and well keyed,
//! gathers the events of a key, and dead-letters all other records.
//!
//! At least once, and in order: an idempotent producer sends a window, its offsets may be committed once Kafka has acknowledged
//! all of it, and after any failure nothing more is sent until the consumer has sought back to where the window began. So
//! each instance emits a partition in order from a point at or before the first record not yet emitted. First occurrences
//! stay in order through crashes, rebalances and zombie instances; repeats meet the idempotency record.

mod backpressure;
mod membership;
mod record;
mod search;
mod watcher;
mod window;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use holdfast_schemas::{DeadLetter, DeadLetterReason, EventData, Refusal, TicketEvent, UserEvent, topics};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{BaseRecord, Producer as _};
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::backpressure::{Backlog, MOST_OF_KEY, Unfinished};
use self::backpressure::{Backpressure, UnderWay};
use self::membership::Membership;
pub use self::record::{admit, origin};
use self::search::{RefusedRecord, Search};
use self::window::{Bounds, Spans, Verdict, Window};
use crate::config;
use crate::crash::{self, Point};
use crate::kafka::{self, Deliveries, Drained, Producer};
use crate::lifecycle::Ready;
use crate::metrics::{Metrics, Stage};
use crate::traces::{self, AdmittedRecord};

/// The route of a public topic: its admitted topic, and the decoder of its records.
#[derive(Debug)]
pub struct Route {
    pub public: &'static str,
    pub admitted: &'static str,
    read: window::Decoder,
}

impl Route {
    const fn of<A: EventData>() -> Self {
        Self {
            public: A::TOPIC,
            admitted: A::ADMITTED,
            read: window::read::<A>,
        }
    }
}

/// Every public topic.
pub const ROUTES: &[Route] = &[Route::of::<TicketEvent>(), Route::of::<UserEvent>()];

/// The settings and the clock of the gate.
#[derive(Debug, Clone)]
pub struct Settings {
    pub kafka: config::Kafka,
    pub gate: config::Gate,
    /// Time for which repeats of an event are recognised; an older event is refused.
    pub idempotency_retention: Duration,
    /// Name among the members of the group, the same over restarts.
    pub instance: String,
    /// The clock; only the age of events is computed from it.
    pub clock: fn() -> OffsetDateTime,
}

/// Runs until `shutdown`, then finishes the window in flight.
///
/// # Errors
/// Only errors that an operator or a restart has to mend.
pub async fn run(
    settings: Settings,
    metrics: Arc<Metrics>,
    backlog: watch::Receiver<Backlog>,
    ready: Ready,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let runtime = Handle::current();
    kafka::on_thread("gate", move || {
        let membership = Membership::join(&settings, metrics.clone(), ready)?;
        let mut gate = Gate::new(settings, metrics, backlog, shutdown.clone(), runtime, membership)?;
        while !shutdown.is_cancelled() {
            match gate.step() {
                Err(error @ Error::Packed { .. }) => gate.finish(error)?,
                Err(Error::SessionLost(error)) => gate.rejoin(&error)?,
                stepped => stepped?,
            }
        }
        gate.leave()
    })
    .await?
}

/// Bytes of records in one window.
const WINDOW_BYTES: usize = 16 << 20;
/// A window with so many records is a busy one, and waits up to [`GRACE`] for more, but not once it is [`OLD`].
const BUSY: usize = 500;
const GRACE: Duration = Duration::from_millis(2);
const OLD: Duration = Duration::from_millis(100);
/// Longest wait for records or acknowledgements in one step.
const IDLE: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_millis(1);
/// A gate that cannot send for so long stops fetching, so that it still takes part in rebalances.
const BLOCKED: Duration = Duration::from_secs(1);

/// A gate that no broker answers for so long begins anew with new clients, and waits twice as long each time that this does not help, up
/// to 16 minutes. Kafka's client is known to forget every broker when it asks for them while Kafka has none to name, as after all
/// of them stood still, and never to ask again (librdkafka#5301); while Kafka is away it changes nothing.
const CUT_OFF: Duration = Duration::from_secs(30);

/// How long a gate that ends waits for the acknowledgement of its last window, and then for its last commit.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// How long the rest of a refused window may take to be told of.
const SETTLED_WITHIN: Duration = Duration::from_secs(2);

/// Bytes of a dead letter beside its record, with the longest detail, and the broker's own bytes.
const DEAD_LETTER_BYTES: usize = 4_096;

struct Gate {
    settings: Settings,
    metrics: Arc<Metrics>,
    backlog: watch::Receiver<Backlog>,
    shutdown: CancellationToken,
    runtime: Handle,
    membership: Membership,
    producer: Producer,
    backpressure: Backpressure,
    gathered: Gathered,
    in_flight: Option<InFlight>,
    under_way: UnderWay,
    /// Windows that failed one after the other.
    failures: u32,
    /// How often it began anew, cut off, since a window was acknowledged.
    cut_off: u32,
    search: Search,
}

/// The window that is being gathered, with copies of the records that it refused.
struct Gathered {
    window: Window,
    dead_letters: Vec<Rejected>,
    /// When each of its records was read.
    read_at: Vec<Instant>,
    begun: Instant,
    /// The number of rebalances when it began: a larger number now means that partitions may have moved.
    rebalances: u64,
}

/// A record on its way to the dead letters.
struct Rejected {
    letter: DeadLetter,
    original: OwnedMessage,
    /// Only its origin is told: Kafka refuses a dead letter with its bytes.
    bare: bool,
}

/// A window that was sent and not yet acknowledged.
struct InFlight {
    spans: Spans,
    records: usize,
    refused: Vec<DeadLetterReason>,
    sent_at: Instant,
    /// Its records with events whose traces are recorded.
    traced: Vec<AdmittedRecord>,
}

impl Gate {
    fn new(
        settings: Settings,
        metrics: Arc<Metrics>,
        backlog: watch::Receiver<Backlog>,
        shutdown: CancellationToken,
        runtime: Handle,
        membership: Membership,
    ) -> Result<Self, Error> {
        let backpressure = Backpressure::new(settings.gate.unfinished_limit, *backlog.borrow());
        Ok(Self {
            producer: producer(&settings)?,
            gathered: Gathered::new(&settings, settings.gate.window_records, membership.rebalances()),
            in_flight: None,
            under_way: UnderWay::new(Instant::now()),
            failures: 0,
            cut_off: 0,
            search: Search::default(),
            settings,
            metrics,
            backlog,
            shutdown,
            runtime,
            membership,
            backpressure,
        })
    }

    /// Gathers waiting records, handles acknowledgements of the window in flight, and sends the next window when it may.
    fn step(&mut self) -> Result<(), Error> {
        if self.is_cut_off() {
            return self.begin_anew();
        }
        self.gather()?;
        self.acknowledge(Duration::ZERO)?;
        if self.in_flight.is_none() && !self.gathered.window.is_empty() && self.has_room() && self.has_paced() {
            self.membership.resume()?;
            return self.send();
        }
        if self.gathered.window.is_full() {
            self.wait_blocked()?;
        }
        Ok(())
    }

    /// Has all before a batch that cannot be unpacked admitted and committed, and ends with that error: the group stands at the
    /// batch then, and moving it past the batch gives up nothing else. If Kafka does not take it all, the gate goes on, and comes
    /// to the batch again.
    fn finish(&mut self, error: Error) -> Result<(), Error> {
        self.failures = 0;
        while self.in_flight.is_some() || !self.gathered.window.is_empty() {
            match self.in_flight {
                Some(_) => self.acknowledge(IDLE)?,
                None => self.send()?,
            }
            if self.failures > 0 || self.shutdown.is_cancelled() {
                return Ok(());
            }
        }
        Err(error)
    }

    /// Takes records until there are none at the moment, or the window is full. Idle, it waits for the first one.
    fn gather(&mut self) -> Result<(), Error> {
        let mut patience = if self.in_flight.is_none() && self.gathered.window.is_empty() {
            IDLE
        } else {
            TICK
        };
        while !self.gathered.window.is_full() {
            let polled = self.membership.poll(patience)?;
            if self.membership.rebalances() != self.gathered.rebalances {
                let ahead = polled.map(|message| ahead(&message));
                return self.rebalanced(ahead.unwrap_or_default());
            }
            match polled {
                Some(message) => {
                    self.gathered
                        .take(&message, &self.search, &self.settings, &self.metrics);
                    patience = Duration::ZERO;
                }
                None if patience.is_zero() && self.gathered.waits_for_more() => patience = GRACE,
                None => break,
            }
            if self.gathered.window.records().is_multiple_of(64) {
                self.acknowledge(Duration::ZERO)?;
            }
        }
        Ok(())
    }

    /// Drops the gathered window, whose partitions may belong to another member now. The one in flight goes on; its repeats do no
    /// harm.
    fn rebalanced(&mut self, mut spans: Spans) -> Result<(), Error> {
        self.count_rebalanced();
        merge(&mut spans, self.gathered.window.spans());
        self.drop_gathered();
        self.membership.go_back(&spans)?;
        self.membership.resume()
    }

    /// Joins the group anew. The window in flight goes on, as in a rebalance.
    fn rejoin(&mut self, lost: &KafkaError) -> Result<(), Error> {
        tracing::warn!(error = %lost, "the session with the group was lost: the gate joins anew");
        self.count_rebalanced();
        self.membership.rejoin(&self.settings)?;
        self.drop_gathered();
        Ok(())
    }

    fn is_cut_off(&self) -> bool {
        let unanswered = self.in_flight.as_ref().map(|in_flight| in_flight.sent_at);
        let since = [unanswered, self.membership.unconnected_since()]
            .into_iter()
            .flatten()
            .min();
        since.is_some_and(|since| since.elapsed() > CUT_OFF * (1 << self.cut_off.min(5)))
    }

    /// Begins anew at the last commit, which lies at or before the window in flight, with another producer and another consumer.
    fn begin_anew(&mut self) -> Result<(), Error> {
        let heard = self.producer.context().heard();
        tracing::warn!(%heard, "no broker answers: the gate begins anew with new connections");
        self.cut_off += 1;
        self.producer = producer(&self.settings)?;
        if self.in_flight.take().is_some() {
            let repeated = &self.metrics.gate_windows_repeated;
            repeated.with_label_values(&["delivery"]).inc();
        }
        self.membership.rejoin(&self.settings)?;
        self.drop_gathered();
        Ok(())
    }

    fn count_rebalanced(&self) {
        if !self.gathered.window.is_empty() {
            self.metrics
                .gate_windows_repeated
                .with_label_values(&["rebalance"])
                .inc();
        }
    }

    fn send(&mut self) -> Result<(), Error> {
        crash::here(Point::GateGathered);
        if crash::again(Point::GateGathered) {
            return self.rebalanced(Spans::new());
        }
        let gathered = self.drop_gathered();
        for read_at in &gathered.read_at {
            self.metrics.took(Stage::Admitted, read_at.elapsed().as_secs_f64());
        }
        let sent_at = traces::now();
        let mut sent = self.send_records(&gathered);
        if crash::again(Point::GateSent) {
            sent = sent.and_then(|()| self.send_records(&gathered));
        }
        crash::here(Point::GateSent);
        self.backpressure.spend(gathered.window.admitted().len());
        self.under_way.add(gathered.window.keys());
        self.in_flight = Some(InFlight {
            spans: gathered.window.spans().clone(),
            records: gathered.window.records(),
            refused: gathered
                .dead_letters
                .iter()
                .map(|rejected| rejected.letter.reason)
                .collect(),
            sent_at: Instant::now(),
            traced: gathered.window.into_traced(sent_at),
        });
        sent.or_else(|error| match error.rdkafka_error_code() {
            Some(code) if search::refuses_record(code) => self.refused(code),
            _ => self.failed(&error.to_string()),
        })
    }

    fn send_records(&mut self, gathered: &Gathered) -> Result<(), KafkaError> {
        for record in gathered.window.admitted() {
            let message = BaseRecord::with_opaque_to(record.topic, place(record.topic))
                .key(record.key.as_bytes())
                .payload(record.value.as_slice());
            kafka::send(&self.producer, message)?;
        }
        for rejected in &gathered.dead_letters {
            kafka::send(&self.producer, self.dead_letter(rejected))?;
        }
        Ok(())
    }

    /// The original record, with the dead letter's headers after its own. A compressed batch can bring in a record that is
    /// larger than the dead-letter topic accepts: its dead letter has no bytes, only reason and origin.
    fn dead_letter<'a>(&self, rejected: &'a Rejected) -> BaseRecord<'a, [u8], [u8], usize> {
        let Rejected { letter, original, bare } = rejected;
        let mut letter = letter.clone();
        let mut record = BaseRecord::with_opaque_to(topics::DEAD_LETTERS, place(topics::DEAD_LETTERS));
        let mut headers = OwnedHeaders::new();
        let bytes = size(original).unwrap_or(self.settings.kafka.public_record_bytes);
        if !bare && bytes + DEAD_LETTER_BYTES <= self.settings.kafka.admitted_record_bytes {
            headers = original.headers().cloned().unwrap_or(headers);
            record.key = original.key();
            record.payload = original.payload();
        } else {
            let left_out = match bare {
                true => "Kafka refuses a dead letter with its bytes: they lie only at its origin".to_owned(),
                false => format!("{bytes} bytes, too large for a dead letter: it lies only at its origin"),
            };
            letter.detail = Refusal::new(letter.reason, format!("{}; {left_out}", letter.detail)).detail;
        }
        let headers = letter.headers().iter().fold(headers, |headers, (name, value)| {
            headers.insert(Header {
                key: name,
                value: Some(value),
            })
        });
        record.headers(headers)
    }

    /// Commits the window in flight once all of it is acknowledged, waiting for that at most `limit`.
    fn acknowledge(&mut self, limit: Duration) -> Result<(), Error> {
        let Some(in_flight) = &self.in_flight else {
            return Ok(());
        };
        let deliveries = self.producer.context();
        let drained = deliveries.drain(limit);
        if let Some(first) = deliveries.take_failed().first() {
            return match self.refusal(first.code) {
                Some(code) => self.refused(code),
                None => self.failed(&format!("{} to {}", first.code, name(first.record))),
            };
        }
        if drained == Drained::InFlight {
            return Ok(());
        }
        crash::here(Point::GateAcknowledged);
        if crash::again(Point::GateAcknowledged) {
            return self.failed("the acknowledgements are asked for again");
        }
        self.membership.commit(&in_flight.spans);
        if crash::again(Point::GateCommitted) {
            self.membership.commit(&in_flight.spans);
        }
        crash::here(Point::GateCommitted);
        self.membership.goes_on();
        self.count(in_flight);
        for record in &in_flight.traced {
            record.acknowledged(&self.settings.gate.group);
        }
        self.search
            .passed(in_flight.records, &in_flight.spans, self.settings.gate.window_records);
        (self.failures, self.cut_off) = (0, 0);
        self.in_flight = None;
        Ok(())
    }

    /// What Kafka has against a record of the window in flight, if that is why it failed: the others only shared its fate, and
    /// may have been told of first.
    fn refusal(&self, first: RDKafkaErrorCode) -> Option<RDKafkaErrorCode> {
        let refuses = |code: &RDKafkaErrorCode| search::refuses_record(*code);
        Some(first).filter(refuses).or_else(|| {
            let deliveries = self.producer.context();
            if deliveries.drain(SETTLED_WITHIN) == Drained::InFlight {
                tracing::debug!("part of a failed window is not told of");
            }
            deliveries
                .take_failed()
                .iter()
                .map(|failure| failure.code)
                .find(refuses)
        })
    }

    /// Kafka will never take one of the window's records: it is looked for, and goes to the dead letters.
    fn refused(&mut self, code: RDKafkaErrorCode) -> Result<(), Error> {
        if let Some(InFlight {
            spans,
            records,
            refused,
            ..
        }) = &self.in_flight
        {
            let letters = refused.len() == *records;
            match self.search.refused(*records, spans, letters, code) {
                Some((topic, partition, offset)) => tracing::error!(
                    topic,
                    partition,
                    offset,
                    %code,
                    "Kafka refuses what is made of {topic}/{partition}/{offset}: it goes to the dead letters"
                ),
                None => {
                    tracing::warn!(records, %code, "Kafka refused a window for good: the record is looked for");
                    self.failures = 0;
                }
            }
        }
        self.give_up(&code.to_string(), "refused")
    }

    fn count(&self, window: &InFlight) {
        let (records, refused) = (window.records as f64, window.refused.len());
        let results = &self.metrics.gate_records;
        results
            .with_label_values(&["admitted"])
            .inc_by((window.records - refused) as u64);
        results.with_label_values(&["dead_letter"]).inc_by(refused as u64);
        for reason in &window.refused {
            self.metrics
                .gate_dead_letters
                .with_label_values(&[reason.as_str()])
                .inc();
        }
        self.metrics.gate_window_records.observe(records);
        self.metrics
            .gate_window_seconds
            .observe(window.sent_at.elapsed().as_secs_f64());
    }

    /// Handles a failed delivery of the window in flight: nothing more is sent until all uncommitted records are read again.
    fn failed(&mut self, cause: &str) -> Result<(), Error> {
        let heard = self.producer.context().heard();
        tracing::error!(cause, %heard, "a window was not delivered; it is read and sent again");
        self.membership.waits_for(format!("{cause}{heard}"));
        self.give_up(cause, "delivery")
    }

    fn give_up(&mut self, cause: &str, label: &str) -> Result<(), Error> {
        tracing::debug!(cause, "everything uncommitted is read again");
        self.metrics.gate_windows_repeated.with_label_values(&[label]).inc();
        // Dropping the old producer drops the records in its queue.
        self.producer = producer(&self.settings)?;
        let mut spans = self.gathered.window.spans().clone();
        if let Some(in_flight) = self.in_flight.take() {
            merge(&mut spans, &in_flight.spans);
        }
        self.drop_gathered();
        self.back_off();
        self.membership.go_back(&spans)
    }

    /// Waits longer after each failure, up to 10 s.
    fn back_off(&mut self) {
        let pause = Duration::from_millis(100 << self.failures.min(7)).min(Duration::from_secs(10));
        self.failures += 1;
        wait(&self.runtime, pause, self.shutdown.cancelled());
    }

    fn has_room(&mut self) -> bool {
        let open = self.backpressure.is_open(*self.backlog.borrow_and_update());
        self.metrics.gate_waiting.set(i64::from(!open));
        open
    }

    /// True once the window has gathered for as long as Restate's backlog asks for. What is of keys that have nothing under way there
    /// waits for nothing.
    fn has_paced(&mut self) -> bool {
        self.under_way.age(self.backlog.borrow().reading, Instant::now());
        let window = &self.gathered.window;
        window.is_full()
            || self.gathered.begun.elapsed() >= self.backpressure.pace()
            || !window.keys().any(|key| self.under_way.may_have(key))
    }

    /// Waits with a full window, for acknowledgements or for Restate.
    fn wait_blocked(&mut self) -> Result<(), Error> {
        if self.in_flight.is_some() {
            self.acknowledge(IDLE)?;
        } else {
            wait(&self.runtime, IDLE, self.backlog.changed());
        }
        if self.gathered.begun.elapsed() < BLOCKED {
            return Ok(());
        }
        self.membership.pause();
        let polled = self.membership.poll(Duration::from_millis(10))?;
        if self.membership.rebalances() != self.gathered.rebalances {
            let ahead = polled.map(|message| ahead(&message));
            return self.rebalanced(ahead.unwrap_or_default());
        }
        if let Some(message) = polled {
            self.gathered
                .take(&message, &self.search, &self.settings, &self.metrics);
        }
        Ok(())
    }

    fn drop_gathered(&mut self) -> Gathered {
        let records = self.search.limit(self.settings.gate.window_records);
        let next = Gathered::new(&self.settings, records, self.membership.rebalances());
        std::mem::replace(&mut self.gathered, next)
    }

    /// Finishes the window in flight and has its offsets committed, unless Kafka is away; what is not committed is read again by the next
    /// start.
    fn leave(mut self) -> Result<(), Error> {
        let until = Instant::now() + LEAVES_WITHIN;
        let mut finished = Ok(());
        while self.in_flight.is_some() && finished.is_ok() && Instant::now() < until {
            finished = self.acknowledge(IDLE);
        }
        // The client library closes a consumer only once its last commit is answered.
        let (closes, closed) = mpsc::channel::<Infallible>();
        std::thread::spawn(move || {
            drop(self);
            drop(closes);
        });
        if closed.recv_timeout(LEAVES_WITHIN) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("Kafka does not answer: what it has not committed is read again by the next start");
        }
        finished
    }
}

/// The opaque of a record that the gate sends: which of its topics it is for.
fn place(topic: &str) -> usize {
    let route = ROUTES.iter().position(|route| route.admitted == topic);
    route.unwrap_or(ROUTES.len())
}

/// The topic of a record with this opaque.
fn name(place: usize) -> &'static str {
    ROUTES.get(place).map_or(topics::DEAD_LETTERS, |route| route.admitted)
}

/// Waits for a future, at most `limit`.
fn wait<T>(runtime: &Handle, limit: Duration, happens: impl Future<Output = T>) {
    runtime.block_on(async {
        tokio::select! {
            _ = happens => {}
            () = tokio::time::sleep(limit) => {}
        }
    });
}

impl Gathered {
    fn new(settings: &Settings, records: usize, rebalances: u64) -> Self {
        let bounds = Bounds {
            records,
            bytes: WINDOW_BYTES,
            admitted: usize::try_from(settings.gate.unfinished_limit)
                .unwrap_or(usize::MAX)
                .max(1),
        };
        Self {
            window: Window::new(bounds, settings.idempotency_retention),
            dead_letters: Vec::new(),
            read_at: Vec::new(),
            begun: Instant::now(),
            rebalances,
        }
    }

    fn take(&mut self, message: &BorrowedMessage<'_>, search: &Search, settings: &Settings, metrics: &Metrics) {
        let Some(route) = ROUTES.iter().find(|route| route.public == message.topic()) else {
            return; // never subscribed to
        };
        let (now, read_at) = ((settings.clock)(), Instant::now());
        if self.window.is_empty() {
            self.begun = read_at;
        }
        self.read_at.push(read_at);
        let origin = record::origin(route.public, message, now);
        metrics.took(Stage::Read, (now - origin.time).as_seconds_f64());
        let found = search.found((route.public, origin.partition, origin.offset));
        let bytes = size(message).unwrap_or(settings.kafka.public_record_bytes);
        let record = match found.and_then(RefusedRecord::refusal) {
            Some(refusal) => Err(refusal),
            None => record::readable(message),
        };
        if let Verdict::Rejected(letter) = self.window.take(route, origin, bytes, record, now) {
            tracing::debug!(
                topic = letter.origin.topic,
                partition = letter.origin.partition,
                offset = letter.origin.offset,
                reason = letter.reason.as_str(),
                "record refused"
            );
            self.dead_letters.push(Rejected {
                letter,
                original: message.detach(),
                bare: found.is_some_and(|found| found.bare),
            });
        }
    }

    fn waits_for_more(&self) -> bool {
        self.window.records() >= BUSY && self.begun.elapsed() < OLD
    }
}

/// The span of one record that was read ahead of a rebalance.
fn ahead(message: &BorrowedMessage<'_>) -> Spans {
    let span = window::Span {
        first: message.offset(),
        next: message.offset() + 1,
    };
    let route = ROUTES.iter().find(|route| route.public == message.topic());
    route
        .map(|route| Spans::from([((route.public, message.partition()), span)]))
        .unwrap_or_default()
}

/// Widens `spans` to begin no later than `others`.
fn merge(spans: &mut Spans, others: &Spans) {
    for (partition, other) in others {
        let span = spans.entry(*partition).or_insert(*other);
        span.first = span.first.min(other.first);
        span.next = span.next.max(other.next);
    }
}

/// Bytes of key, value and headers; of each header's name and length a little more than it takes. None when the headers cannot
/// be read.
fn size(record: &impl Message) -> Option<usize> {
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let headers = kafka::headers(record)?.into_iter();
    let headers = headers.map(|(name, value)| name.len() + length(value) + 10);
    Some(length(record.key()) + length(record.payload()) + headers.sum::<usize>())
}

fn producer(settings: &Settings) -> Result<Producer, Error> {
    let mut config = kafka::producer(&settings.kafka);
    config
        // The producer drops no record for its age: a later one must never overtake it.
        .set("message.timeout.ms", "0")
        // Nor does it skip one: a record that Kafka refuses for good ends this producer.
        .set("enable.gapless.guarantee", "true")
        // The broker's limit is on what it receives, compressed; this one is on what is compressed.
        .set("message.max.bytes", "100000000")
        // A whole window fits.
        .set(
            "queue.buffering.max.messages",
            (2 * settings.gate.window_records + 1_000).to_string(),
        );
    config
        .create_with_context(Deliveries::new(&settings.kafka))
        .map_err(Error::Producer)
}

/// The reason why the gate stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot join the gate's consumer group")]
    Join(#[source] KafkaError),
    #[error("cannot make the gate's producer")]
    Producer(#[source] KafkaError),
    #[error("the gate's consumer cannot go on; a restart lets it join anew")]
    Consumer(#[source] KafkaError),
    #[error("the gate's session with its group was lost")]
    SessionLost(#[source] KafkaError),
    #[error("cannot go back to the beginning of a window; a restart reads from the last commit")]
    GoBack(#[source] KafkaError),
    #[error(
        "the group {group} has no committed offsets, and the gate does not guess which records were read: either the group is \
         new, or Kafka has forgotten its offsets, as it does when no gate ran for longer than offsets.retention.minutes (7 \
         days). Begin at the oldest records left, which repeats what was read before and loses nothing that Kafka still has: \
         `holdfast register`, then start the gate again: docs/runbook.md#the-gates-offsets-were-lost"
    )]
    OffsetsForgotten { group: String },
    #[error(
        "a batch of records cannot be unpacked ({code}): {batches}. Unpacked it holds more than 64 MiB, or it is damaged; the \
         client library would fetch it again for ever. Find its producer, then move the group {group} past it while no gate \
         runs, and start the gate again: docs/runbook.md#a-batch-cannot-be-unpacked"
    )]
    Packed {
        group: String,
        code: RDKafkaErrorCode,
        batches: String,
    },
    #[error(
        "Kafka no longer has records that the group {group} has not read: {partitions}. They were lost unseen, for example \
         to the topic's retention. Find out what they were, set the group's offsets to the oldest record left, and start \
         the gate again: docs/runbook.md#the-gates-offsets-were-lost"
    )]
    OffsetsLost { group: String, partitions: String },
    #[error(transparent)]
    Thread(#[from] kafka::ThreadError),
}
