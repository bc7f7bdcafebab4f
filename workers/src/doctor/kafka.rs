//! Kafka: whether it is reached, whether each topic can be read and written, and whether the topics are as wanted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_schemas::topics::{
    DEAD_LETTERS, PAYMENTS, PAYMENTS_ADMITTED, PAYMENTS_OUTCOMES, RELAY_MARK, RESERVATIONS, RESERVATIONS_ADMITTED,
    RESERVATIONS_OUTCOMES,
};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};
use time::OffsetDateTime;

use super::report::{Check, Part};
use crate::config::{self, Config};
use crate::error;
use crate::kafka::{self, Deliveries, Drained, Producer, on_thread};
use crate::register::{self, Path};
use crate::transience::{self, Fault};

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The most complaints that are listened to, and the wait for one.
const EVENTS: usize = 100;
const A_MOMENT: Duration = Duration::from_millis(50);

/// How far the broker's clock may be ahead of ours.
const MOST_AHEAD: time::Duration = time::Duration::seconds(5);

/// The topics that some role reads, and those that some role writes.
const READ: [&str; 6] = [
    RESERVATIONS,
    PAYMENTS,
    DEAD_LETTERS,
    RESERVATIONS_OUTCOMES,
    PAYMENTS_OUTCOMES,
    RELAY_MARK,
];
const WRITTEN: [&str; 7] = [
    PAYMENTS,
    RESERVATIONS_ADMITTED,
    PAYMENTS_ADMITTED,
    DEAD_LETTERS,
    RESERVATIONS_OUTCOMES,
    PAYMENTS_OUTCOMES,
    RELAY_MARK,
];

pub(super) async fn check(config: &Config, clock: fn() -> OffsetDateTime) -> Vec<Check> {
    let settings = config.kafka.clone();
    let reached = on_thread("doctor", move || Visit::new(&settings)).await;
    let visit = match reached {
        Ok(Ok(visit)) => visit,
        Ok(Err(check)) => {
            let left = "the topics, the rights, the gate's offsets";
            return vec![check, Check::unknown(Part::Kafka, left, "Kafka was not reached")];
        }
        Err(error) => return vec![Check::unknown(Part::Kafka, "the brokers", error::chain(&error))],
    };
    let mut checks = vec![visit.brokers.clone()];
    checks.extend(match register::inspect_topics(config, Path::Gate).await {
        Ok(lines) => lines.iter().map(|line| Check::of(Part::Kafka, line)).collect(),
        Err(error) => vec![Check::wrong(
            Part::Kafka,
            "the topics",
            error::chain(&error),
            "give this user the right to describe topics, their settings and the gate's group",
        )],
    });
    match on_thread("doctor", move || visit.rights(clock)).await {
        Ok(rights) => checks.extend(rights),
        Err(error) => checks.push(Check::unknown(Part::Kafka, "the rights", error::chain(&error))),
    }
    checks
}

/// Clients for one look at Kafka.
struct Visit {
    consumer: BaseConsumer<Listening>,
    config: config::Kafka,
    brokers: Check,
}

impl Visit {
    /// Reaches Kafka, or says why it cannot.
    fn new(config: &config::Kafka) -> Result<Self, Check> {
        let what = format!("the brokers at {}", config.bootstrap);
        let heard = Listening::default();
        let consumer: Result<BaseConsumer<Listening>, _> = kafka::client(config)
            .set("group.id", "holdfast.doctor")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", "100")
            .create_with_context(heard.clone());
        let unreached = |consumer: Option<&BaseConsumer<Listening>>, error: &KafkaError| {
            // The complaints wait in a queue that only a poll empties.
            let polls = consumer
                .into_iter()
                .flat_map(|consumer| std::iter::repeat_n(consumer, EVENTS));
            polls.map_while(|consumer| consumer.poll(A_MOMENT)).for_each(drop);
            let said = heard.said();
            let how = match &said {
                Some(said) => format!("{}; the last that was heard: {said}", error::chain(error)),
                None => error::chain(error),
            };
            Check::wrong(Part::Kafka, &what, how, mend(said.as_deref().unwrap_or_default()))
        };
        let consumer = consumer.map_err(|error| unreached(None, &error))?;
        let metadata = consumer
            .fetch_metadata(None, 2 * ANSWER)
            .map_err(|error| unreached(Some(&consumer), &error))?;
        let brokers = metadata.brokers().iter();
        let brokers: Vec<_> = brokers
            .map(|broker| format!("{}:{}", broker.host(), broker.port()))
            .collect();
        Ok(Self {
            brokers: Check::sound(
                Part::Kafka,
                what,
                format!("reached; the cluster is {}", brokers.join(", ")),
            ),
            consumer,
            config: config.clone(),
        })
    }

    fn rights(&self, clock: fn() -> OffsetDateTime) -> Vec<Check> {
        let mut checks: Vec<_> = READ.iter().map(|topic| self.reads(topic, clock)).collect();
        checks.extend(self.writes());
        checks
    }

    /// Reads the newest record of the topic's first partition, or finds that there is none.
    fn reads(&self, topic: &str, clock: fn() -> OffsetDateTime) -> Check {
        let what = format!("reading {topic}");
        match self.newest(topic) {
            Ok(Some(time)) if time - clock() > MOST_AHEAD => Check::wrong(
                Part::Kafka,
                what,
                format!(
                    "its newest record is {}s ahead of our clock",
                    (time - clock()).whole_seconds()
                ),
                "set the clocks of the brokers and of this machine by NTP",
            ),
            Ok(_) => Check::sound(Part::Kafka, what, "allowed"),
            Err(error) => self.refused(what, &error, &format!("the right to read {topic}")),
        }
    }

    fn newest(&self, topic: &str) -> Result<Option<OffsetDateTime>, KafkaError> {
        let (low, high) = self.consumer.fetch_watermarks(topic, 0, ANSWER)?;
        let mut at = TopicPartitionList::new();
        at.add_partition_offset(topic, 0, Offset::Offset(low.max(high - 1)))?;
        self.consumer.assign(&at)?;
        let deadline = Instant::now() + ANSWER;
        while Instant::now() < deadline {
            match self.consumer.poll(Duration::from_millis(100)) {
                Some(Ok(record)) => {
                    let millis = record.timestamp().to_millis().map(i128::from);
                    let time = millis.map(|millis| OffsetDateTime::from_unix_timestamp_nanos(millis * 1_000_000));
                    return Ok(time.and_then(Result::ok));
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(None),
                Some(Err(error)) => return Err(error),
                None => {}
            }
        }
        Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut))
    }

    /// Whether each topic could be written, without writing: a broker that lets the producer in refuses the number of
    /// acknowledgements that it asks for.
    fn writes(&self) -> Vec<Check> {
        let mut settings = kafka::producer(&self.config);
        settings
            .set("enable.idempotence", "false")
            .set("acks", IMPOSSIBLE_ACKS)
            .set("retries", "0")
            .set("message.timeout.ms", ANSWER.as_millis().to_string());
        let producer: Producer = match settings.create_with_context(Deliveries::new(&self.config)) {
            Ok(producer) => producer,
            Err(error) => return vec![Check::unknown(Part::Kafka, "writing", error::chain(&error))],
        };
        let each = WRITTEN.iter().map(|topic| {
            let what = format!("writing {topic}");
            match refusal(&producer, topic) {
                Some(RDKafkaErrorCode::InvalidRequiredAcks) => Check::sound(Part::Kafka, what, "allowed"),
                Some(code) => {
                    let error = KafkaError::MessageProduction(code);
                    self.refused(what, &error, &format!("the right to write {topic}"))
                }
                None => Check::unknown(Part::Kafka, what, "Kafka gave no answer"),
            }
        });
        each.collect()
    }

    /// A right that is missing is what a role that needs it has to be given; who does not need it may lack it.
    fn refused(&self, what: String, error: &KafkaError, right: &str) -> Check {
        let mend = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                format!("give this user {right}, if its role needs it")
            }
            Some(code) if transience::kafka(code) == Fault::Destination => "holdfast register creates it".to_owned(),
            _ => mend(&error.to_string()).to_owned(),
        };
        Check::wrong(Part::Kafka, what, error::chain(error), mend)
    }
}

/// Brokers take 0, 1 and all. They look at the right to write first.
const IMPOSSIBLE_ACKS: &str = "2";

/// The broker's answer to a record that it does not take.
fn refusal(producer: &Producer, topic: &str) -> Option<RDKafkaErrorCode> {
    let record: BaseRecord<'_, [u8], [u8], usize> = BaseRecord::with_opaque_to(topic, 0)
        .partition(0)
        .key(&[][..])
        .payload(&[][..]);
    if let Err(error) = kafka::send(producer, record) {
        return error.rdkafka_error_code();
    }
    match producer.client().context().drain(2 * ANSWER) {
        Drained::Settled => producer
            .client()
            .context()
            .take_failed()
            .first()
            .map(|failure| failure.code),
        Drained::InFlight => None,
    }
}

/// What to do about what the client library says.
fn mend(said: &str) -> &'static str {
    if said.contains("resolve") {
        "check the name in --kafka (HOLDFAST_KAFKA), and the names that the brokers advertise"
    } else {
        "start it, or check --kafka (HOLDFAST_KAFKA), the way there, and the addresses that the brokers advertise"
    }
}

/// Keeps the last complaint of the client library: its calls only say that time is over.
#[derive(Clone, Default)]
struct Listening(Arc<Mutex<Option<String>>>);

impl Listening {
    fn said(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hears(&self, what: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(what.to_owned());
    }
}

impl ClientContext for Listening {
    fn log(&self, level: RDKafkaLogLevel, _facility: &str, message: &str) {
        if matches!(
            level,
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error
        ) {
            self.hears(message);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // That all brokers are down follows what is wrong with the last of them.
        if !matches!(
            error.rdkafka_error_code(),
            Some(RDKafkaErrorCode::PartitionEOF | RDKafkaErrorCode::AllBrokersDown)
        ) {
            self.hears(reason);
        }
    }
}

impl ConsumerContext for Listening {}
