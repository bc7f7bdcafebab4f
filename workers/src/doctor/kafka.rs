//! Kafka: whether it is reached, whether each topic can be read and written, and whether the topics are as wanted.

use std::time::{Duration, Instant};

use holdfast_schemas::{Outcome, TicketOutcome, UserOutcome, ledger, topics};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message, Timestamp};
use rdkafka::producer::{BaseRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};
use time::OffsetDateTime;

use super::report::Check;
use super::rights::{self, Resource, Right};
use crate::config::{self, Config, Part, RoleName};
use crate::error;
use crate::kafka::{self, Deliveries, Drained, Producer, Remarks, broker_time, on_thread};
use crate::register::{self, Path};
use crate::transience::{self, Fault};

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// After so long a look at why there is no answer yet.
const TRY: Duration = Duration::from_secs(1);

/// How far the broker's clock may be from those of others.
const MOST_APART: time::Duration = time::Duration::seconds(5);

/// How many places before the end of a partition the newest record is looked for: transactions end in a marker.
const TAIL: i64 = 10;

/// Looks at Kafka as these roles need it.
pub(super) async fn check(
    config: &Config,
    roles: &[RoleName],
    path: Path,
    clock: fn() -> OffsetDateTime,
) -> Vec<Check> {
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
    if roles.contains(&RoleName::Register) {
        checks.extend(match register::inspect_topics(config, path).await {
            Ok(lines) => lines.iter().map(|line| Check::of(Part::Kafka, line)).collect(),
            Err(error) => vec![Check::wrong(
                Part::Kafka,
                "the topics",
                error::chain(&error),
                "give this user the rights of register (deploy/kafka/rights), or look as another role (--role)",
            )],
        });
    }
    let rights = rights::of(roles, config, path);
    let reads = (roles.contains(&RoleName::Gate) && path == Path::Gate).then(|| config.gate.group.clone());
    let look = move || {
        let mut checks = visit.rights(&rights, clock);
        checks.extend(reads.map(|group| visit.unread(&group)));
        checks
    };
    match on_thread("doctor", look).await {
        Ok(found) => checks.extend(found),
        Err(error) => checks.push(Check::unknown(Part::Kafka, "the rights", error::chain(&error))),
    }
    checks
}

/// Clients for one look at Kafka.
struct Visit {
    consumer: BaseConsumer<Remarks>,
    config: config::Kafka,
    brokers: Check,
}

impl Visit {
    /// Reaches Kafka, or says why it cannot.
    fn new(config: &config::Kafka) -> Result<Self, Check> {
        let what = format!("the brokers at {}", config.bootstrap);
        let mut settings = kafka::client(config);
        settings
            .set("group.id", "holdfast.doctor")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", "100");
        let unreached = |error: &KafkaError, heard: Option<&str>| {
            let how = match heard {
                Some(heard) => format!("{}; the last that was heard: {heard}", error::chain(error)),
                None => error::chain(error),
            };
            Check::wrong(Part::Kafka, &what, how, mend(heard.unwrap_or_default()))
        };
        let consumer =
            kafka::looker(&settings, Remarks::without_group(config)).map_err(|error| unreached(&error, None))?;
        let metadata = patiently(&consumer, || consumer.fetch_metadata(None, TRY))
            .map_err(|error| unreached(&error, kafka::heard(&consumer).text()))?;
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

    /// Whether each right is there. Those that only a change would show are named as not looked at.
    fn rights(&self, rights: &[Right], clock: fn() -> OffsetDateTime) -> Vec<Check> {
        let topics = |operation: &str| {
            let of = rights.iter().filter(move |right| right.operation == operation);
            let topics = of.filter_map(|right| match right.resource {
                Resource::Topic(name) => Some(name),
                _ => None,
            });
            topics.collect::<Vec<_>>()
        };
        let read = topics("READ");
        let mut checks: Vec<_> = read.iter().map(|topic| self.reads(topic, clock)).collect();
        checks.extend(self.writes(&topics("WRITE")));
        checks.extend(topics("DESCRIBE_CONFIGS").iter().map(|topic| self.describes(topic)));
        for right in rights {
            match (&right.resource, read.first()) {
                (Resource::Group(group), Some(topic)) => checks.push(self.commits(group, topic)),
                (Resource::TransactionalId(id), _) => checks.push(Check::unknown(
                    Part::Kafka,
                    format!("transactions of {id}"),
                    "to begin one would end those of the relay that leads; the relay says so on /readyz when it may not",
                )),
                _ => {}
            }
        }
        checks
    }

    /// Whether the topic's settings can be read.
    fn describes(&self, topic: &str) -> Check {
        let what = format!("the settings of {topic}");
        let options = AdminOptions::new().request_timeout(Some(ANSWER));
        let remarks = Remarks::without_group(&self.config);
        let admin: Result<AdminClient<_>, _> = kafka::client(&self.config).create_with_context(remarks);
        match admin.and_then(|admin| kafka::topic_settings(&admin, topic, &options)) {
            Ok(_) => Check::sound(Part::Kafka, what, "may be read"),
            Err(error) => self.refused(what, &error, &format!("describe the settings of {topic}")),
        }
    }

    /// Whether the group's offsets can be read.
    fn commits(&self, group: &str, topic: &str) -> Check {
        let (what, right) = (format!("the group {group}"), format!("read in the group {group}"));
        let mut settings = kafka::client(&self.config);
        settings.set("group.id", group).set("enable.auto.commit", "false");
        let consumer = match kafka::looker(&settings, Remarks::new(&self.config)) {
            Ok(consumer) => consumer,
            Err(error) => return self.refused(what, &error, &right),
        };
        let mut asked = TopicPartitionList::new();
        asked.add_partition(topic, 0);
        let committed = consumer.committed_offsets(asked, ANSWER).and_then(|committed| {
            let partitions = committed.elements();
            partitions.iter().try_for_each(|partition| partition.error())
        });
        let of_topic =
            |error: &KafkaError| error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed);
        match committed {
            Ok(()) => Check::sound(Part::Kafka, what, "allowed"),
            Err(error) if of_topic(&error) => {
                Check::unknown(Part::Kafka, what, format!("{topic} may not be described"))
            }
            Err(error) => match kafka::heard(&consumer).text() {
                Some(heard) => Check::wrong(
                    Part::Kafka,
                    what,
                    format!("{}; {heard}", error::chain(&error)),
                    right_to(&right),
                ),
                None => self.refused(what, &error, &right),
            },
        }
    }

    /// How much the gates have not read yet, and whether retention took any of it.
    fn unread(&self, group: &str) -> Check {
        let what = "what the gates have not read";
        let mut settings = kafka::client(&self.config);
        settings.set("group.id", group).set("enable.auto.commit", "false");
        let counted = kafka::looker(&settings, Remarks::new(&self.config)).and_then(|consumer| {
            let (mut unread, mut lost) = (0, Vec::new());
            for topic in [topics::RESERVATIONS, topics::PAYMENTS] {
                let partitions = kafka::replicas(&consumer, topic, ANSWER)?.len();
                for (partition, next) in kafka::committed(&consumer, topic, partitions, ANSWER)? {
                    let Some(next) = next else { continue };
                    let (first, end) = consumer.fetch_watermarks(topic, partition, ANSWER)?;
                    unread += (end - next.max(first)).max(0);
                    if next < first || next > end {
                        lost.push(format!("{topic}/{partition} has {first} to {end}, and {next} is next"));
                    }
                }
            }
            Ok((unread, lost))
        });
        match counted {
            Ok((unread, lost)) if lost.is_empty() => Check::sound(Part::Kafka, what, format!("{unread} records")),
            Ok((_, lost)) => Check::wrong(
                Part::Kafka,
                what,
                format!("records are lost: {}", lost.join("; ")),
                "have their producers send them again, and move the group's offsets",
            )
            .page("the-gates-offsets-were-lost"),
            Err(error) => Check::unknown(Part::Kafka, what, error::chain(&error)),
        }
    }

    /// Reads the newest record of the topic's first partition, or finds that there is none.
    fn reads(&self, topic: &str, clock: fn() -> OffsetDateTime) -> Check {
        let what = format!("reading {topic}");
        match self.newest(topic) {
            Ok(newest) => match newest.and_then(|newest| newest.contradicts(clock())) {
                Some(how) => {
                    let mend = "set the clocks of the brokers and of the workers' machines by NTP";
                    Check::wrong(Part::Kafka, what, how, mend)
                }
                None => Check::sound(Part::Kafka, what, "allowed"),
            },
            Err(error) => self.refused(what, &error, &format!("read {topic}")),
        }
    }

    fn newest(&self, topic: &str) -> Result<Option<Moments>, KafkaError> {
        self.finds(topic)?;
        let (low, high) = self.consumer.fetch_watermarks(topic, 0, ANSWER)?;
        let mut at = TopicPartitionList::new();
        at.add_partition_offset(topic, 0, Offset::Offset(low.max(high - TAIL)))?;
        self.consumer.assign(&at)?;
        let (mut newest, deadline) = (None, Instant::now() + ANSWER);
        while Instant::now() < deadline {
            match self.consumer.poll(Duration::from_millis(100)) {
                Some(Ok(record)) => newest = Moments::of(&record),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(newest),
                Some(Err(error)) if kafka::is_of_the_group(&error) => {}
                Some(Err(error)) => return Err(error),
                None => {}
            }
        }
        Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut))
    }

    /// Whether each topic could be written, without writing: a broker that lets the producer in refuses the number of
    /// acknowledgements that it asks for.
    fn writes(&self, topics: &[&str]) -> Vec<Check> {
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
        let each = topics.iter().map(|topic| {
            let what = format!("writing {topic}");
            // A producer waits for a topic that is missing, or has the broker create it.
            if let Err(error) = self.finds(topic) {
                return self.refused(what, &error, &format!("write {topic}"));
            }
            match refusal(&producer, topic) {
                Some(RDKafkaErrorCode::InvalidRequiredAcks) => Check::sound(Part::Kafka, what, "allowed"),
                Some(code) => {
                    let error = KafkaError::MessageProduction(code);
                    self.refused(what, &error, &format!("write {topic}"))
                }
                None => Check::unknown(Part::Kafka, what, "Kafka gave no answer"),
            }
        });
        each.collect()
    }

    /// Fails by name if there is no such topic, or it may not be described.
    fn finds(&self, topic: &str) -> Result<(), KafkaError> {
        match kafka::replicas(&self.consumer, topic, ANSWER)?.is_empty() {
            true => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition)),
            false => Ok(()),
        }
    }

    fn refused(&self, what: String, error: &KafkaError, right: &str) -> Check {
        let mend = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::GroupAuthorizationFailed) => {
                right_to(right)
            }
            Some(code) if transience::kafka(code) == Fault::Destination => "holdfast register creates it".to_owned(),
            _ => mend(&error.to_string()).to_owned(),
        };
        Check::wrong(Part::Kafka, what, error::chain(error), mend)
    }
}

/// What a record says of time.
struct Moments {
    /// When it came to Kafka: by the broker's clock, if the topic is set so.
    stamped: OffsetDateTime,
    /// When the outcome in it was decided, which was before the broker stamped it.
    decided: Option<OffsetDateTime>,
}

impl Moments {
    fn of(record: &BorrowedMessage<'_>) -> Option<Self> {
        let stamped = broker_time(record)?;
        let by_the_broker = matches!(record.timestamp(), Timestamp::LogAppendTime(_));
        let value = record.payload().filter(|_| by_the_broker).unwrap_or_default();
        let decided = match record.topic() {
            topics::RESERVATIONS_OUTCOMES => Outcome::<TicketOutcome>::from_json(value).map(|outcome| outcome.time),
            topics::PAYMENTS_OUTCOMES => Outcome::<UserOutcome>::from_json(value).map(|outcome| outcome.time),
            topics::LEDGER_ENTRIES => ledger::Entry::from_json(value).map(|entry| entry.time),
            _ => return Some(Self { stamped, decided: None }),
        };
        let decided = decided.ok();
        Some(Self { stamped, decided })
    }

    /// How the clocks contradict each other, if they do.
    fn contradicts(&self, now: OffsetDateTime) -> Option<String> {
        let ahead = self.stamped - now;
        if ahead > MOST_APART {
            return Some(format!(
                "its newest record is {}s ahead of our clock",
                ahead.whole_seconds()
            ));
        }
        let behind = self.decided? - self.stamped;
        (behind > MOST_APART).then(|| {
            let seconds = behind.whole_seconds();
            format!("its newest record came {seconds}s before it was decided: Kafka's clock is behind the workers'")
        })
    }
}

/// Asks again until there is an answer, for some seconds; ends sooner if the connection fails by what only an operator mends.
fn patiently<T>(consumer: &BaseConsumer<Remarks>, ask: impl Fn() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let deadline = Instant::now() + 2 * ANSWER;
    loop {
        match ask() {
            Err(_) if Instant::now() < deadline && kafka::heard(consumer).fault().is_none() => {}
            answer => return answer,
        }
    }
}

fn right_to(what: &str) -> String {
    format!("give this user the right to {what}: deploy/kafka/acls gives each role its rights")
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
    let says = |word: &str| said.contains(word);
    if says("certificate") || says("SSL") {
        "set --kafka-ca (HOLDFAST_KAFKA_CA) to the authority that signed the brokers' certificates, which must hold for the names in \
         --kafka; a port without TLS needs another --kafka-security-protocol (HOLDFAST_KAFKA_SECURITY_PROTOCOL)"
    } else if says("uthentication") || says("SASL") {
        "set --kafka-username and --kafka-password (HOLDFAST_KAFKA_PASSWORD), or the token or certificate in their place, as the brokers \
         know this user"
    } else if says("resolve") {
        "check the name in --kafka (HOLDFAST_KAFKA), and the names that the brokers advertise"
    } else {
        "start it, or check --kafka (HOLDFAST_KAFKA), the way there, and the addresses that the brokers advertise"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kafkas_clock_is_wrong_when_it_stamps_what_is_yet_to_come_or_was_not_yet_decided() {
        let at = |second: i64| OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(second);
        let says = |stamped, decided: Option<i64>, now| {
            let moments = Moments {
                stamped: at(stamped),
                decided: decided.map(at),
            };
            moments.contradicts(at(now)).unwrap_or_default()
        };
        assert!(says(106, None, 100).contains("6s ahead of our clock"));
        assert!(says(100, Some(106), 200).contains("6s before it was decided"));
        for (stamped, decided) in [(100, None), (105, None), (60, None), (100, Some(105)), (100, Some(60))] {
            assert_eq!(says(stamped, decided, 100), "", "{stamped} {decided:?}");
        }
    }

    #[test]
    fn the_mend_names_the_setting_that_is_wrong() {
        for (said, setting) in [
            (
                "SSL handshake failed: certificate verify failed: unable to get local issuer",
                "--kafka-ca",
            ),
            (
                "SASL authentication error: Authentication failed: invalid credentials",
                "--kafka-password",
            ),
            ("Failed to resolve 'nowhere.invalid:9092'", "check the name"),
            ("Connect to ipv4#127.0.0.1:1 failed: Connection refused", "start it"),
        ] {
            assert!(mend(said).contains(setting), "{said}: {}", mend(said));
        }
    }
}
