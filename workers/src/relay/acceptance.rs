//! How an operator has Kafka and the database agree again: the ends of the outcome topics are compared with the outbox and the
//! change logs first, so that it is known what would be told twice, and what never.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_schemas::{Invalid, Outcome, OutcomeData, TicketOutcome, UserOutcome, ledger};
use rdkafka::message::{BorrowedMessage, Message};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::batch::Mark;
use super::session::{ProducerSession, Trouble};
use super::{Relay, Settings};
use crate::kafka::reader::{self, Extent, Reader};
use crate::kafka::{ThreadError, broker_time, on_thread};
use crate::metrics::Metrics;
use crate::rounds::Rounds;
use crate::store::outbox::{self, Candidate, Election, Leadership, WaitingRow};
use crate::store::outcome_log::{self, Log, LoggedOutcome};
use crate::store::{self, PgPool};

/// What the operator has decided already.
#[derive(Debug, Clone, Copy)]
pub struct Consent {
    /// Rows whose outcomes are on their topic leave the outbox.
    pub drop_told: bool,
    /// The state is accepted whatever is found.
    pub anyway: bool,
    /// Nothing is changed, only compared.
    pub dry_run: bool,
}

/// What was found, and what was done.
#[derive(Debug)]
pub struct Reconciliation {
    /// The number of the last batch that the database knows.
    pub database: i64,
    /// That of Kafka's mark.
    pub kafka: Option<i64>,
    /// How many outcomes were read.
    pub read: u64,
    /// Rows of the outbox whose outcomes are on their topic: they would be told twice.
    pub told_already: Vec<WaitingRow>,
    /// Whether those rows were deleted.
    pub dropped: bool,
    /// Outcomes on a topic that the database does not know.
    pub unknown: Vec<LoggedOutcome>,
    /// Outcomes that the database has decided, and that are neither on their topic nor in the outbox: they would never be told.
    pub untold: Vec<LoggedOutcome>,
    /// Whether Kafka's mark is the database's now.
    pub accepted: bool,
}

/// Compares, and has Kafka's mark agree with the database when nothing speaks against it, or the operator wishes it anyway.
///
/// # Errors
/// A relay runs, a server does not answer, or an outcome cannot be read.
pub async fn run(
    settings: Settings,
    pool: PgPool,
    metrics: Arc<Metrics>,
    consent: Consent,
) -> Result<Reconciliation, Error> {
    let relay = relay(settings, pool, metrics);
    on_thread("relay", move || accept(&relay, consent)).await?
}

/// One that does not run, for what an operator does in its place.
pub(super) fn relay(settings: Settings, pool: PgPool, metrics: Arc<Metrics>) -> Relay {
    let rounds = |part| Rounds::beside(part, &metrics);
    Relay {
        standing: rounds("relay (lock)"),
        sessions: rounds("relay (session)"),
        limit: settings.relay.batch,
        settings,
        pool,
        metrics,
        wake: Arc::new(Notify::new()),
        shutdown: CancellationToken::new(),
        runtime: Handle::current(),
        given_up: None,
    }
}

/// The longest that one comparison may take in the database.
const PATIENCE: Duration = Duration::from_secs(1_800);
/// How much of the end of each partition is read, unless the outbox has older rows.
const TAIL: i64 = 10_000;
/// What clocks and transactions may differ by, when times of Kafka and the database are compared.
pub(super) const SKEW: Duration = Duration::from_secs(60);

fn accept(relay: &Relay, consent: Consent) -> Result<Reconciliation, Error> {
    let mut leadership = relay.runtime.block_on(lead(&relay.pool))?;
    let (mut session, mark) = ProducerSession::begin_with(relay, &mut leadership)?;
    let mut reconciliation = Reconciliation::of(session.batch(), mark.as_ref());
    compare(relay, session.leadership(), &mut reconciliation)?;
    if consent.dry_run {
        return Ok(reconciliation);
    }
    if consent.drop_told && !reconciliation.told_already.is_empty() {
        let ids: Vec<i64> = reconciliation.told_already.iter().map(|row| row.id).collect();
        let drop = session
            .leadership()
            .ask(async |connection| outbox::drop_told(connection, &ids).await);
        relay.runtime.block_on(drop)?;
        reconciliation.dropped = true;
    }
    if consent.anyway || reconciliation.is_consistent() {
        session.accept(relay)?;
        reconciliation.accepted = true;
    }
    Ok(reconciliation)
}

impl Reconciliation {
    /// Of the last batch by the database and by Kafka; nothing was compared yet.
    pub(super) fn of(database: i64, mark: Option<&Mark>) -> Self {
        Self {
            database,
            kafka: mark.map(|mark| mark.batch),
            read: 0,
            told_already: Vec::new(),
            dropped: false,
            unknown: Vec::new(),
            untold: Vec::new(),
            accepted: false,
        }
    }

    /// Whether nothing would be told twice, nothing never, and nothing was told that the database does not know.
    pub fn is_consistent(&self) -> bool {
        (self.dropped || self.told_already.is_empty()) && self.unknown.is_empty() && self.untold.is_empty()
    }
}

pub(super) async fn lead(pool: &PgPool) -> Result<Leadership, Error> {
    match Candidate::connect(pool, PATIENCE, None).await?.stand().await? {
        Election::Won(mut leadership) => {
            leadership.take_time().await?;
            Ok(leadership)
        }
        Election::Lost(_) => Err(Error::RelayRuns),
    }
}

pub(super) fn compare(
    relay: &Relay,
    leadership: &mut Leadership,
    reconciliation: &mut Reconciliation,
) -> Result<(), Error> {
    let ask = |leadership: &mut Leadership| {
        let waiting = leadership.ask(async |connection| outbox::waiting(connection).await);
        relay.runtime.block_on(waiting)
    };
    let oldest = ask(leadership)?.iter().map(|row| row.written_at).min();
    let reader = Reader::new(&relay.settings.kafka)?;
    let mut on_topics = HashSet::new();
    for log in Log::ALL {
        let end = TopicEnd::read(&reader, log, oldest)?;
        let outcomes: HashSet<Uuid> = end.told.iter().map(|told| told.outcome).collect();
        reconciliation.read += end.told.len() as u64;
        let since = end.since.map(|since| since + SKEW);
        // What a refusal answers where there is no row is in no log.
        let logged: Vec<LoggedOutcome> = end.told.into_iter().filter(|told| told.version > 0).collect();
        let known = leadership.ask(async |connection: &mut PgConnection| {
            let unknown = outcome_log::unknown(&mut *connection, log, &logged).await?;
            Ok((unknown, outcome_log::decided(connection, log, since).await?))
        });
        let (unknown, decided) = relay.runtime.block_on(known)?;
        let untold = decided.into_iter().filter(|told| !outcomes.contains(&told.outcome));
        reconciliation.unknown.extend(unknown);
        reconciliation.untold.extend(untold);
        on_topics.extend(outcomes);
    }
    let told_already = ask(leadership)?
        .into_iter()
        .filter(|row| on_topics.contains(&row.message));
    reconciliation.told_already.extend(told_already);
    Ok(())
}

/// The end of an outcome topic.
#[derive(Default)]
struct TopicEnd {
    told: Vec<LoggedOutcome>,
    /// What was told later than this was read, in every partition. Nothing when all that was ever told was read.
    since: Option<OffsetDateTime>,
}

impl TopicEnd {
    /// Reads far enough to have all that was told since `oldest`.
    fn read(reader: &Reader, log: Log, oldest: Option<OffsetDateTime>) -> Result<Self, Error> {
        let all = reader.committed(log.topic())?;
        let tail: Extent = all
            .iter()
            .map(|(partition, (earliest, end))| (*partition, ((*earliest).max(end - TAIL), *end)))
            .collect();
        let end = Self::read_extent(reader, log, &tail)?;
        let reaches = |since: OffsetDateTime| oldest.is_none_or(|oldest| since + SKEW < oldest);
        match end.since.is_none_or(reaches) || tail == all {
            true => Ok(end),
            false => Self::read_extent(reader, log, &all),
        }
    }

    fn read_extent(reader: &Reader, log: Log, extent: &Extent) -> Result<Self, Error> {
        let mut end = Self::default();
        let mut first: BTreeMap<i32, OffsetDateTime> = BTreeMap::new();
        reader.each(log.topic(), extent, |message| {
            first.entry(message.partition()).or_insert_with(|| time(message));
            end.told.push(told(log, message)?.0);
            Ok::<(), Error>(())
        })?;
        let cut = extent.iter().filter(|(_, (start, _))| *start > 0);
        end.since = cut.filter_map(|(partition, _)| first.get(partition).copied()).max();
        Ok(end)
    }
}

/// What a record of the log's topic tells of, and in which generation; entries of the ledger have none but the first.
pub(super) fn told(log: Log, message: &BorrowedMessage<'_>) -> Result<(LoggedOutcome, i64), Error> {
    match log {
        Log::Tickets => outcome::<TicketOutcome>(message),
        Log::Users => outcome::<UserOutcome>(message),
        Log::Ledger => Ok((entry(message)?, 1)),
    }
}

fn outcome<T: OutcomeData>(message: &BorrowedMessage<'_>) -> Result<(LoggedOutcome, i64), Error> {
    let outcome = Outcome::<T>::from_json(message.payload().unwrap_or_default())
        .map_err(|invalid| unreadable(message, &invalid))?;
    let told = LoggedOutcome {
        key: outcome.subject.to_string(),
        version: outcome.sequence,
        outcome: outcome.id.0,
    };
    Ok((told, outcome.generation))
}

fn entry(message: &BorrowedMessage<'_>) -> Result<LoggedOutcome, Error> {
    let entry = ledger::Entry::from_json(message.payload().unwrap_or_default());
    let entry = entry.map_err(|invalid| unreadable(message, &invalid))?;
    Ok(LoggedOutcome {
        key: entry.checkout.to_string(),
        version: 1,
        outcome: entry.id.0,
    })
}

pub(super) fn unreadable(message: &BorrowedMessage<'_>, invalid: &Invalid) -> Error {
    Error::Outcome {
        record: format!("{}/{}/{}", message.topic(), message.partition(), message.offset()),
        what: invalid.to_string(),
    }
}

pub(super) fn time(message: &BorrowedMessage<'_>) -> OffsetDateTime {
    broker_time(message).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Why nothing could be compared or accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a relay runs and holds the lock: stop every `holdfast relay` and `holdfast run` first")]
    RelayRuns,
    #[error("the record {record} is no outcome: {what}")]
    Outcome { record: String, what: String },
    #[error(transparent)]
    Session(#[from] Trouble),
    #[error(transparent)]
    Outbox(#[from] outbox::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Reader(#[from] reader::Error),
    #[error(transparent)]
    Thread(#[from] ThreadError),
}
