//! How an operator has Kafka told again what it has lost: what the database has decided and no topic has goes to the outbox once more
//! (`store::recovery::retelling`), and Kafka's mark becomes the database's.
//!
//! The relay's lock and its transactional id are taken first: nothing is told meanwhile.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use holdfast_schemas::{EventData, TicketEvent, UserEvent};
use rdkafka::message::{BorrowedMessage, Message};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::acceptance::{self, Error, Reconciliation, SKEW};
use super::session::ProducerSession;
use super::{Relay, Settings};
use crate::kafka::on_thread;
use crate::kafka::reader::Reader;
use crate::metrics::Metrics;
use crate::store::PgPool;
use crate::store::outbox::{self, Leadership};
use crate::store::outcome_log::{self, Log, LoggedOutcome};
use crate::store::recovery::retelling::{self, LostOutcomes, RetoldOutcome, ToldAgain};

/// What is told again, and how.
#[derive(Debug, Clone, Copy)]
pub struct RetellingOrder {
    /// Only what was decided later; without it, all that the topics can be expected to have.
    pub from: Option<OffsetDateTime>,
    /// Nothing is written, only found.
    pub dry_run: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct RetellingResult {
    pub told: ToldAgain,
    /// Kafka beside the database, once what was lost waits in the outbox. What is untold then is left out.
    pub reconciliation: Reconciliation,
}

/// Tells again what Kafka has lost. Every relay must be stopped.
///
/// # Errors
/// A relay runs, a server does not answer, or a record cannot be read.
pub async fn run(
    settings: Settings,
    pool: PgPool,
    metrics: Arc<Metrics>,
    order: RetellingOrder,
) -> Result<RetellingResult, Error> {
    let relay = acceptance::relay(settings, pool, metrics);
    on_thread("relay", move || tell_again(&relay, order)).await?
}

fn tell_again(relay: &Relay, order: RetellingOrder) -> Result<RetellingResult, Error> {
    let mut leadership = relay.runtime.block_on(acceptance::lead(&relay.pool))?;
    let (mut session, mark) = ProducerSession::begin_with(relay, &mut leadership)?;
    let mut reconciliation = Reconciliation::of(session.batch(), mark.as_ref());
    let search = Search {
        relay,
        reader: Reader::new(&relay.settings.kafka)?,
        from: order.from,
    };
    let (mut lost, mut refusals, mut on_topics) = (Vec::new(), Vec::new(), HashSet::new());
    for log in Log::ALL {
        let topic = search.read(log, session.leadership(), &mut reconciliation)?;
        refusals.extend(search.refusals(log, session.leadership(), &topic)?);
        let (outcomes, told) = search.lost(log, session.leadership(), topic)?;
        lost.push(outcomes);
        on_topics.extend(told);
    }
    let waiting = session
        .leadership()
        .ask(async |connection| outbox::waiting(connection).await);
    let mut waiting = relay.runtime.block_on(waiting)?;
    let queued: HashSet<Uuid> = waiting.iter().map(|row| row.message).collect();
    refusals.retain(|refusal: &RetoldOutcome| !queued.contains(&refusal.message));
    waiting.retain(|row| on_topics.contains(&row.message));
    reconciliation.told_already = waiting;
    let told = retelling::tell_again(&relay.pool, &lost, &refusals, order.dry_run);
    let told = relay.runtime.block_on(told)?;
    reconciliation.untold.clone_from(&told.gaps);
    if !order.dry_run && reconciliation.is_consistent() {
        session.accept(relay)?;
        reconciliation.accepted = true;
    }
    Ok(RetellingResult { told, reconciliation })
}

/// How many records are compared with the database at a time.
const PORTION: usize = 5_000;

/// The search for what the topics lack.
struct Search<'a> {
    relay: &'a Relay,
    reader: Reader,
    from: Option<OffsetDateTime>,
}

/// What a topic has.
#[derive(Default)]
struct TopicContent {
    outcomes: HashSet<Uuid>,
    /// Generation and sequence of the last outcome of each key.
    last: HashMap<String, (i64, i64)>,
    /// What was told later than this must be there, in every partition. Nothing when nothing was removed.
    since: Option<OffsetDateTime>,
}

impl Search<'_> {
    /// Reads a topic, and notes what it has and the database does not know.
    fn read(
        &self,
        log: Log,
        leadership: &mut Leadership,
        reconciliation: &mut Reconciliation,
    ) -> Result<TopicContent, Error> {
        let (mut content, mut portion) = (TopicContent::default(), Vec::new());
        let mut first: BTreeMap<i32, OffsetDateTime> = BTreeMap::new();
        let extent = self.reader.committed(log.topic())?;
        self.reader.each(log.topic(), &extent, |message| {
            let partition = message.partition();
            first.entry(partition).or_insert_with(|| acceptance::time(message));
            reconciliation.read += 1;
            portion.extend(content.take(log, message)?);
            match portion.len() {
                PORTION => self.compare(log, leadership, std::mem::take(&mut portion), reconciliation),
                _ => Ok::<(), Error>(()),
            }
        })?;
        self.compare(log, leadership, portion, reconciliation)?;
        // Retention has removed what was before the first record that is left.
        let cut = extent.iter().filter(|(_, (start, _))| *start > 0);
        let since = cut.filter_map(|(partition, _)| first.get(partition).copied()).max();
        content.since = since.map(|since| since + SKEW).max(self.from);
        Ok(content)
    }

    fn compare(
        &self,
        log: Log,
        leadership: &mut Leadership,
        told: Vec<LoggedOutcome>,
        reconciliation: &mut Reconciliation,
    ) -> Result<(), Error> {
        let unknown =
            leadership.ask(async |connection: &mut PgConnection| outcome_log::unknown(connection, log, &told).await);
        let unknown = self.relay.runtime.block_on(unknown)?;
        reconciliation.unknown.extend(unknown);
        Ok(())
    }

    /// The refusals about no row that the topic lacks. They may wait in the outbox.
    fn refusals(
        &self,
        log: Log,
        leadership: &mut Leadership,
        topic: &TopicContent,
    ) -> Result<Vec<RetoldOutcome>, Error> {
        let public = match log {
            Log::Tickets => TicketEvent::TOPIC,
            Log::Users => UserEvent::TOPIC,
            Log::Ledger => return Ok(Vec::new()),
        };
        let answers = leadership
            .ask(async |connection: &mut PgConnection| outcome_log::rowless(connection, public, topic.since).await);
        let mut refusals = retelling::refusals(&self.relay.runtime.block_on(answers)?)?;
        refusals.retain(|refusal| !topic.outcomes.contains(&refusal.message));
        Ok(refusals)
    }

    /// What the log has decided and the topic lacks, and what the topic has.
    fn lost(
        &self,
        log: Log,
        leadership: &mut Leadership,
        topic: TopicContent,
    ) -> Result<(LostOutcomes, HashSet<Uuid>), Error> {
        let decided = leadership
            .ask(async |connection: &mut PgConnection| outcome_log::decided(connection, log, topic.since).await);
        let mut outcomes = self.relay.runtime.block_on(decided)?;
        outcomes.retain(|decided| !topic.outcomes.contains(&decided.outcome));
        let lost = LostOutcomes {
            log,
            outcomes,
            last: topic.last,
        };
        Ok((lost, topic.outcomes))
    }
}

impl TopicContent {
    /// Takes note of a record. What it tells, if a log has that.
    fn take(&mut self, log: Log, message: &BorrowedMessage<'_>) -> Result<Option<LoggedOutcome>, Error> {
        let (told, generation) = acceptance::told(log, message)?;
        self.outcomes.insert(told.outcome);
        if told.version == 0 {
            return Ok(None);
        }
        let place = (generation, told.version);
        let last = self.last.entry(told.key.clone()).or_insert(place);
        *last = place.max(*last);
        Ok(Some(told))
    }
}
