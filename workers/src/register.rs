//! `holdfast register`: makes Kafka and Restate ready, or reports differences from the wanted state. Safe to repeat: it leaves
//! alone everything that is as wanted, and never changes anything that holds records.

mod cluster;
mod engine;
mod prune;
mod reaper;
mod report;
#[cfg(test)]
mod strimzi;
mod topics;

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use reqwest::StatusCode;
use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{Config, PublicTopic};
use crate::kafka::{Heard, ThreadError, group};
use crate::restate_admin;
use crate::rounds::Rounds;
use crate::store;
use crate::transience::{self, Fault};
pub use engine::EngineReading;
use engine::EngineSetup;
pub use reaper::keep_armed;
pub use report::{Finding, PartReport, RegisterReport};

/// The source of the handlers' events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// From the gate, gathered and checked.
    Gate,
    /// From the public topic itself: producers keep the contract.
    Direct,
}

/// What becomes of the handlers of earlier releases that nothing needs any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    Keep,
    Prune,
}

/// The reason why Kafka and Restate could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Kafka at {address} could not {what}{heard}")]
    Kafka {
        address: Box<str>,
        what: Box<str>,
        heard: Heard,
        #[source]
        source: KafkaError,
    },
    #[error("Kafka at {address} refuses to create the topic {topic}: {code}")]
    TopicRefused {
        address: String,
        topic: String,
        code: RDKafkaErrorCode,
    },
    #[error(
        "the group {group} has no offset for {partitions}, and its gates are running: stop them, \
         register, and start them again"
    )]
    GroupActive { group: String, partitions: String },
    #[error(transparent)]
    Admin(#[from] restate_admin::Error),
    #[error(
        "the handlers at {url} have changed, and {invocations} invocations of {handler} began with the old ones: they must \
         end first, or the new handlers get an address of their own (--serve-url)"
    )]
    InFlight {
        url: String,
        handler: String,
        invocations: u64,
    },
    #[error(
        "Restate has {count} subscriptions of {sink} to {source_topic}, and not one: `holdfast register` mends that; --direct is for \
         an engine that reads the public topics itself"
    )]
    Subscriptions {
        count: usize,
        source_topic: String,
        sink: String,
    },
    #[error("Restate's ingress at {address} does not answer{mend}")]
    Ingress {
        address: String,
        /// What an operator has to do, if that is known.
        mend: &'static str,
        #[source]
        source: reqwest::Error,
    },
    #[error("Restate's ingress at {address} answered {status} when the Reaper was armed: {message}")]
    Arm {
        address: String,
        status: StatusCode,
        message: String,
    },
    #[error("overdue holds cannot be read")]
    Holds(#[source] store::Error),
    #[error("{file}, which Restate is to have for its way to Kafka, cannot be read")]
    File {
        file: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Thread(#[from] ThreadError),
}

impl From<group::Error> for Error {
    fn from(error: group::Error) -> Self {
        let group::Error {
            address,
            what,
            heard,
            source,
        } = error;
        Self::Kafka {
            address,
            what,
            heard,
            source,
        }
    }
}

impl Error {
    /// The fault, for a task that looks after the engine for ever.
    fn fault(&self) -> Fault {
        match self {
            Error::Holds(error) => error.fault(),
            Error::Admin(error) => error.fault(),
            error if error.is_transient() => Fault::Server,
            _ => Fault::Setting,
        }
    }

    /// True if waiting may help: a server is not up yet, or still busy.
    fn is_transient(&self) -> bool {
        match self {
            Error::GroupActive { .. } | Error::InFlight { .. } | Error::Ingress { mend: "", .. } => true,
            // A new topic is not known to every broker at once.
            Error::Kafka { source, heard, .. } => {
                let code = source.rdkafka_error_code();
                heard.fault().is_none() && code.is_none_or(|code| transience::kafka(code) != Fault::Setting)
            }
            Error::TopicRefused { code, .. } => transience::kafka(*code).is_transient(),
            Error::Admin(error) => error.fault().is_transient(),
            Error::Arm { status, .. } => transience::restate_ingress(status.as_u16()).is_transient(),
            Error::Holds(_)
            | Error::Thread(_)
            | Error::File { .. }
            | Error::Ingress { .. }
            | Error::Subscriptions { .. } => false,
        }
    }
}

/// Makes everything ready and reports the findings. Waits for servers that are not up for `patience`, or for ever without it.
///
/// # Errors
/// The first part that could not be made ready, when patience is over or waiting cannot help.
pub async fn run(
    config: &Config,
    path: Path,
    earlier: Earlier,
    patience: Option<Duration>,
    now: fn() -> OffsetDateTime,
) -> Result<RegisterReport, Error> {
    let patience = Patience::new(patience);
    let mut report = RegisterReport::default();
    let created = patience.insist(|| topics::create(config, path)).await?;
    report.extend(patience.insist(|| topics::compare(config, path, &created)).await?);
    let engine = EngineSetup::new(config, path, now)?;
    report.extend(patience.insist(|| engine.settle(&created)).await?);
    if earlier == Earlier::Prune {
        report.extend(patience.insist(|| engine.prune()).await?);
    }
    Ok(report)
}

/// Compares the topics and the gate's offsets with the wanted state, and changes nothing.
///
/// # Errors
/// Kafka does not answer, or this user may not look.
pub async fn inspect_topics(config: &Config, path: Path) -> Result<Vec<PartReport>, Error> {
    topics::inspect(config, path).await
}

/// Compares cluster, deployment and subscriptions with the wanted state, and changes nothing.
///
/// # Errors
/// Restate does not answer, or does not reach the handlers.
pub async fn inspect_engine(
    config: &Config,
    path: Path,
    now: fn() -> OffsetDateTime,
) -> Result<Vec<PartReport>, Error> {
    EngineSetup::new(config, path, now)?.inspect().await
}

/// How the engine reads a stream now.
///
/// # Errors
/// Restate does not answer, or does not read the stream by this path.
pub async fn engine_reading(
    config: &Config,
    path: Path,
    stream: PublicTopic,
    now: fn() -> OffsetDateTime,
) -> Result<EngineReading, Error> {
    EngineSetup::new(config, path, now)?.reading(stream).await
}

/// Has the engine read a stream again from these offsets, by partition; every partition must have one. Answers the consumer group in
/// which it does so.
///
/// # Errors
/// As [`engine_reading`], and Kafka did not take the offsets. If the engine has no subscription then, `register` makes one that reads
/// again what may not have been decided.
pub async fn engine_reads_again(
    config: &Config,
    path: Path,
    stream: PublicTopic,
    offsets: BTreeMap<i32, i64>,
    now: fn() -> OffsetDateTime,
) -> Result<String, Error> {
    EngineSetup::new(config, path, now)?.read_again(stream, offsets).await
}

/// Interval at which `run` looks whether the engine reads. Two looks without a member are longer than a member takes to join.
const READS_EVERY: Duration = Duration::from_secs(10);

/// Looks, for ever, whether the engine reads by the gate's path, and makes the subscription anew by which it does not.
///
/// # Errors
/// The setting of Restate's address is wrong.
pub async fn keep_reading(config: &Config, now: fn() -> OffsetDateTime, rounds: &Rounds) -> Result<Infallible, Error> {
    let engine = EngineSetup::new(config, Path::Gate, now)?;
    let mut unread = HashSet::new();
    let mut ticks = interval(READS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match engine.read_on(&mut unread).await {
            Ok(()) => rounds.passed(),
            Err(error) => {
                unread.clear();
                rounds.failed(error.fault(), &error);
            }
        }
    }
}

/// Begins the Reaper's turns anew. Waits for Restate for ever.
///
/// # Errors
/// Restate refused, and waiting cannot help.
pub async fn arm(config: &Config) -> Result<(), Error> {
    Patience::new(None).insist(|| reaper::arm(config)).await.map(drop)
}

/// The time for which to retry.
struct Patience {
    until: Option<Instant>,
}

impl Patience {
    const FIRST_PAUSE: Duration = Duration::from_millis(100);
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);

    fn new(patience: Option<Duration>) -> Self {
        Self {
            until: patience.map(|patience| Instant::now() + patience),
        }
    }

    async fn insist<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut pause = Self::FIRST_PAUSE;
        loop {
            let error = match attempt().await {
                Err(error) if error.is_transient() && self.lasts(pause) => error,
                settled => return settled,
            };
            tracing::warn!(error = &error as &dyn std::error::Error, "not ready yet, trying again");
            tokio::time::sleep(pause).await;
            pause = Self::LONGEST_PAUSE.min(pause * 2);
        }
    }

    fn lasts(&self, pause: Duration) -> bool {
        self.until.is_none_or(|until| Instant::now() + pause < until)
    }
}
