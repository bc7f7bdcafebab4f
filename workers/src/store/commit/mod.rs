//! The one way in which events change the database. Handlers hand over units; one committer per table writes all waiting
//! units in one statement (group commit): alone, a unit waits for no other; under load, batches grow.
//!
//! A batch goes through three steps: read the known answers and the rows, decide event by event, write everything gated by the
//! version that was read. Units that were not written go round again from the first step. Every step may be repeated and any
//! may be the last one that this process does: the idempotency records lie in the same statement as the rows.
//!
//! The known answers and then the rows are read by two statements, which need not be one snapshot. The clock comes with the rows:
//! an answer that was swept before the first statement belongs to an event that is too old by it. An answer that appears in
//! between makes the write fail its version check or its key, and the unit goes round again. When two units of a batch name
//! the same event id, the later one waits a round: judged by an answer that is only meant to be written, it would be dead-
//! lettered although the first unit may not pass.
//!
//! The committer does not wait for a batch to fill. While one statement is under way the next batch collects by itself;
//! letting it collect longer made batches wider and the path no faster, since the cost is per row.
//!
//! There is one committer for each table, by the same code: `Entity` says what the rules need, `Stored` what the statement
//! needs. What an event, its outcome and its key are follows from one type, `schemas::EventData`, so no event can reach the
//! wrong rules. Idempotency records are shared: an id is used once, on whichever topic.

mod draft;
mod queue;
mod write;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use holdfast_schemas::{DeadLetterReason, Event, EventData, EventId, Key, Origin, Refusal, Reply, Source, Traceparent};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::progress::Progress;
use super::session::{KEPT, KeptSession};
use super::{Error, Pauses, on_session, pauses};
use crate::config;
use crate::crash::{self, Point};
use crate::domain::{Decision, Entity, KeyOf};
use crate::error;
use crate::metrics::{Metrics, Stage, outcome_label};
use crate::transience::Fault;
pub use draft::Current;
use draft::Draft;
pub(super) use draft::KeyedRow;
pub(super) use draft::{Beside, OUTCOME_HEADERS, Retold, letter};
use queue::{Offenders, Room, Share};
pub use write::Stored;
pub(super) use write::WriteSet;

/// An ordered list of work for one entity.
#[derive(Clone, Debug)]
pub struct Unit<E: Entity> {
    pub key: KeyOf<E>,
    pub work: Vec<Work<E>>,
}

/// One thing to do to an entity.
#[derive(Clone, Debug)]
pub enum Work<E: Entity> {
    /// An event from Kafka: if it cannot be decided, it becomes a dead letter.
    Event(Event<E::Data>),
    /// An event from HTTP: if it cannot be decided, its caller gets the reason.
    Request(Event<E::Data>),
    /// A record that the handler refuses, as no gate stands before it.
    Rejected {
        origin: Option<Origin>,
        refusal: Refusal,
        value: Vec<u8>,
    },
    /// A request of the product itself. It has no idempotency record: it is safe to repeat by itself, such as the end of a hold, named
    /// by its id, or it is part of a transaction that is written once, such as the next version of a checkout.
    Command(Command<E>),
}

/// A request of the product itself. The ids of its outcomes follow from its source and id.
#[derive(Clone, Debug)]
pub struct Command<E: Entity> {
    pub source: Source,
    pub id: EventId,
    pub input: E::Input,
    /// The trace that it belongs to; none where it begins one.
    pub trace: Option<Traceparent>,
}

/// On which events decide, by their age and in spite of a quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// As they arrive: not those older than this, and none of a key in quarantine.
    Live { retention: Duration },
    /// Out of quarantine, where their age was looked at when they were parked.
    Replayed,
}

/// The rules that decide, such as `domain::ticket::decide`, or a closure that knows other rows; in a proof a closure that breaks
/// the committer.
pub trait Rules<E: Entity>: Fn(Option<&E>, E::Input, OffsetDateTime) -> Decision<E> + Send + Sync {}

impl<E: Entity, F: Fn(Option<&E>, E::Input, OffsetDateTime) -> Decision<E> + Send + Sync> Rules<E> for F {}

/// The answer to one piece of work.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It took effect now.
    Fresh(Reply),
    /// It had taken effect before; this is the first reply.
    Repeat(Reply),
    /// It was not decided.
    DeadLettered(DeadLetterReason),
    /// An internal request that does not fit: nothing was written.
    Nothing,
    /// An internal request that had taken effect before, under another id.
    AlreadyDone,
}

/// Hands units to the committer task.
pub struct Committer<E: Entity> {
    queue: mpsc::Sender<Pending<E>>,
    room: Room,
    progress: Progress,
    rules: Arc<dyn Rules<E>>,
}

impl<E: Entity> Clone for Committer<E> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            room: self.room.clone(),
            progress: self.progress.clone(),
            rules: self.rules.clone(),
        }
    }
}

struct Pending<E: Entity> {
    unit: Unit<E>,
    /// Work of the unit that is done, in order; a large unit takes several rounds.
    answers: Vec<Answer>,
    reply: oneshot::Sender<Result<Vec<Answer>, Error>>,
    handed_over: Instant,
    /// A unit that met a locked or moved row waits a little before it goes round again.
    not_before: Instant,
    rounds: u32,
    /// How often it failed for a reason that nobody knows to pass by itself.
    failures: u32,
    /// Given back with the unit.
    _room: Share,
}

/// Units in the queue at most; a further one waits for a place. Restate's own limit is lower.
const QUEUE: usize = 20_000;
/// How often a unit may fail here for a reason that nobody knows to pass by itself.
const FAILURES: u32 = 5;
/// The longest pause before a unit that met a locked or moved row goes round again.
const LONGEST_ROUND: Duration = Duration::from_millis(200);

impl<E: Stored> Committer<E> {
    /// The handle, and the task that must run for it to answer. The task ends when every handle is gone
    /// and nothing waits.
    pub fn new(
        pool: PgPool,
        rules: impl Rules<E> + 'static,
        limits: config::Serve,
        retention: Duration,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()>) {
        let (queue, requests) = mpsc::channel(QUEUE);
        let progress = Progress::default();
        let rules: Arc<dyn Rules<E>> = Arc::new(rules);
        let task = Task {
            session: KeptSession::new(pool.clone()),
            pool,
            rules: rules.clone(),
            limits,
            retention,
            metrics,
            requests,
            waiting: VecDeque::new(),
            counted: 0,
            offenders: Offenders::new(),
            progress: progress.clone(),
            pauses: None,
        };
        let committer = Self {
            queue,
            room: Room::new(),
            progress,
            rules,
        };
        (committer, task.run())
    }

    /// Whether what is handed over is committed or given back.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Commits a unit and answers each piece of its work, in order. Waits for the database for ever; dropping the future takes
    /// the unit out of the queue, or leaves a write in flight whose answer the next attempt finds.
    ///
    /// # Errors
    /// The unit breaks the worker itself ([`Error::breaker`]), its key is in quarantine ([`Error::Quarantined`]), something has to be
    /// mended before anything is committed ([`Error::Shared`]), or the process is ending.
    pub async fn commit(&self, unit: Unit<E>) -> Result<Vec<Answer>, Error> {
        let room = self.room.take(&unit).await;
        let (reply, answer) = oneshot::channel();
        let request = Pending {
            unit,
            answers: Vec::new(),
            reply,
            handed_over: Instant::now(),
            not_before: Instant::now(),
            rounds: 0,
            failures: 0,
            _room: room,
        };
        self.queue.send(request).await.map_err(|_| Error::Ended)?;
        answer.await.map_err(|_| Error::Ended)?
    }

    /// The rules by which it decides.
    pub fn rules(&self) -> &dyn Rules<E> {
        &*self.rules
    }
}

struct Task<E: Stored> {
    pool: PgPool,
    session: KeptSession,
    rules: Arc<dyn Rules<E>>,
    limits: config::Serve,
    retention: Duration,
    metrics: Arc<Metrics>,
    requests: mpsc::Receiver<Pending<E>>,
    waiting: VecDeque<Pending<E>>,
    /// How many of them the metric has.
    counted: i64,
    offenders: Offenders<E>,
    progress: Progress,
    /// The pauses until the server is well again, which begin anew once something was committed.
    pauses: Option<Pauses>,
}

impl<E: Stored> Task<E> {
    async fn run(mut self) {
        while self.gather().await {
            let batch = self.take_batch();
            if batch.is_empty() {
                // What could go now stands behind a unit of its key that waits.
                self.take_in(Instant::now() + Duration::from_millis(1)).await;
                continue;
            }
            self.progress.begun();
            self.commit_batch(batch).await;
        }
    }

    /// Waits until something can be done; false when no handle is left and nothing waits.
    async fn gather(&mut self) -> bool {
        loop {
            while let Ok(request) = self.requests.try_recv() {
                self.waiting.push_back(request);
            }
            self.drop_aborted();
            match self.waiting.iter().map(|request| request.not_before).min() {
                Some(earliest) if earliest <= Instant::now() => return true,
                Some(earliest) => tokio::select! {
                    Some(request) = self.requests.recv() => self.waiting.push_back(request),
                    () = tokio::time::sleep_until(earliest) => {}
                },
                None => {
                    self.progress.rests();
                    match self.next().await {
                        Some(request) => self.waiting.push_back(request),
                        None => return false,
                    }
                }
            }
        }
    }

    /// The next request, once it is there; None when no handle is left.
    async fn next(&mut self) -> Option<Pending<E>> {
        if let Ok(next) = timeout(KEPT, self.requests.recv()).await {
            return next;
        }
        self.session.give_back();
        self.requests.recv().await
    }

    /// Takes from the front what fits one statement, at most one unit per key, and leaves the rest in order. A known offender goes
    /// alone.
    fn take_batch(&mut self) -> Vec<Pending<E>> {
        let now = Instant::now();
        let mut keys = HashSet::new();
        let (mut batch, mut left) = (Vec::new(), VecDeque::with_capacity(self.waiting.len()));
        let (mut events, mut bytes, mut closed) = (0, 0, false);
        for request in self.waiting.drain(..) {
            let (more_events, more_bytes) = request.next_size(&self.limits);
            let fits = batch.is_empty()
                || (events + more_events <= self.limits.batch_events && bytes + more_bytes <= self.limits.batch_bytes);
            // The key is noted even when its unit is left, so that later units of the key stay behind it.
            let alone = self.offenders.contain(&request.unit.key);
            let fits = fits && !closed && (!alone || batch.is_empty());
            if keys.insert(request.unit.key.clone()) && request.not_before <= now && fits {
                closed = alone;
                events += more_events;
                bytes += more_bytes;
                batch.push(request);
            } else {
                left.push_back(request);
            }
        }
        self.waiting = left;
        batch
    }

    /// Commits a batch in one statement. When that fails by what is in it, its halves go each by themselves, and so on, until those
    /// that fail alone are known.
    async fn commit_batch(&mut self, batch: Vec<Pending<E>>) {
        let mut batches = vec![batch];
        while let Some(batch) = batches.pop() {
            if let Err((batch, error)) = self.attempt(batch).await {
                let step = if matches!(error, Error::Read(_)) {
                    "read"
                } else {
                    "write"
                };
                self.metrics.retries.with_label_values(&[step]).inc();
                batches.extend(self.take_apart(batch, error).await);
            }
        }
    }

    /// The batches in which units that failed together are sent next. None of those that wait, or were given back.
    async fn take_apart(&mut self, mut batch: Vec<Pending<E>>, error: Error) -> Vec<Vec<Pending<E>>> {
        match error.fault() {
            Fault::Server => {
                self.put_back(batch);
                self.await_server(&error).await;
            }
            Fault::Session | Fault::Setting => self.try_again_or_fail(batch, error),
            _ if batch.len() > 1 => {
                tracing::warn!(
                    units = batch.len(),
                    error = error::chain(&error),
                    "a batch failed: it goes in halves"
                );
                let second = batch.split_off(batch.len() / 2);
                // The last one is taken first.
                return vec![second, batch];
            }
            Fault::Rival => self.go_round(batch),
            fault => {
                for request in &batch {
                    self.offenders.add(&request.unit.key);
                }
                match fault {
                    Fault::Content => self.fail_all(batch, error),
                    _ => self.try_again_or_fail(batch, error),
                }
            }
        }
        Vec::new()
    }

    /// What nobody knows to pass by itself is tried a few times here; then it is for the engine to show.
    fn try_again_or_fail(&mut self, mut batch: Vec<Pending<E>>, error: Error) {
        for request in &mut batch {
            request.failures += 1;
        }
        let (failed, again): (Vec<_>, Vec<_>) = batch.into_iter().partition(|request| request.failures >= FAILURES);
        self.go_round(again);
        self.fail_all(failed, error);
    }

    /// Gives units back, all for the same reason.
    fn fail_all(&mut self, mut failed: Vec<Pending<E>>, error: Error) {
        if failed.len() < 2 {
            if let Some(request) = failed.pop() {
                self.fail(request, error);
            }
            return;
        }
        tracing::error!(
            units = failed.len(),
            error = error::chain(&error),
            "units cannot be committed"
        );
        let error = Arc::new(error);
        for request in failed {
            self.give_back(request, Error::Shared(error.clone()));
        }
    }

    /// One round: read, decide, write. Answers the units that were written and lets the rest go round again.
    async fn attempt(&mut self, batch: Vec<Pending<E>>) -> Result<(), (Vec<Pending<E>>, Error)> {
        let started = Instant::now();
        let mut read = self.read(&batch).await;
        if crash::again(Point::ServeRead) {
            read = self.read(&batch).await;
        }
        let known = match read {
            Ok(known) => known,
            Err(error) => return Err((batch, error)),
        };
        let read_at = Instant::now();
        self.metrics
            .commit_seconds
            .with_label_values(&["read"])
            .observe(started.elapsed().as_secs_f64());
        crash::here(Point::ServeRead);

        let mut decided = Vec::with_capacity(batch.len());
        let mut again = Vec::new();
        let live = Admission::Live {
            retention: self.retention,
        };
        let rules = self.rules.clone();
        let mut deciding = draft::Deciding::new(known, &*rules, live);
        for request in batch {
            let work = request.next_work(&self.limits);
            match deciding.decide(&request.unit.key, work) {
                draft::Decided::Draft(draft) => decided.push((request, *draft)),
                draft::Decided::Later => again.push(request),
                draft::Decided::Failed(error) => self.fail(request, error),
                draft::Decided::Quarantined(error) => self.give_back(request, error),
            }
        }
        crash::here(Point::ServeDecided);
        if crash::again(Point::ServeDecided) {
            again.extend(decided.drain(..).map(|(request, _)| request));
        }

        let started = Instant::now();
        for (request, _) in decided.iter().filter(|(request, _)| request.answers.is_empty()) {
            let waited = started - request.handed_over;
            self.metrics.took(Stage::Decided, waited.as_secs_f64());
        }
        let passed = match self.write(&decided).await {
            Ok(passed) => passed,
            Err(error) => {
                again.extend(decided.into_iter().map(|(request, _)| request));
                return Err((again, error));
            }
        };
        self.metrics
            .commit_seconds
            .with_label_values(&["write"])
            .observe(started.elapsed().as_secs_f64());
        self.metrics
            .commit_batch_events
            .observe(decided.iter().map(|(_, draft)| draft.answers.len()).sum::<usize>() as f64);
        crash::here(Point::ServeWritten);

        for (place, (request, draft)) in decided.into_iter().enumerate() {
            if draft.writes_nothing() || passed.contains(&(place as i32)) {
                self.time(&request, &draft, read_at.elapsed());
                self.answer(request, draft);
            } else {
                self.metrics.commit_conflicts.inc();
                again.push(request);
            }
        }
        self.go_round(again);
        Ok(())
    }

    async fn read(&mut self, batch: &[Pending<E>]) -> Result<draft::ReadSet<E>, Error> {
        let units = batch
            .iter()
            .map(|request| (&request.unit.key, request.next_work(&self.limits)));
        let ask = self
            .session
            .ask(Error::Read, async |connection| read(connection, units).await);
        ask.await
    }

    async fn write(&mut self, decided: &[(Pending<E>, Draft<E>)]) -> Result<HashSet<i32>, Error> {
        let drafts = decided.iter().map(|(_, draft)| draft);
        let statement: write::Statement<'_, E> = (0..).zip(drafts).collect();
        if statement.is_empty() {
            return Ok(HashSet::new());
        }
        let ask = self.session.ask(Error::Write, async |connection| {
            let passed = statement.execute(connection).await?;
            if crash::again(Point::ServeWritten) {
                let repeated = statement.execute(connection).await;
                tracing::info!(?repeated, "the write was repeated on purpose");
            }
            Ok(passed)
        });
        ask.await
    }

    /// Notes how long ago the records of the events lay in Kafka that are decided now, `since` the clock was read.
    fn time(&self, request: &Pending<E>, draft: &Draft<E>, since: Duration) {
        let decided = self.metrics.outcome_seconds.with_label_values(&["decided"]);
        let work = request.unit.work[request.answers.len()..].iter();
        for (work, answer) in work.zip(&draft.answers) {
            if let (
                Work::Event(Event {
                    origin: Some(origin), ..
                }),
                Answer::Fresh(_),
            ) = (work, answer)
            {
                let before = (draft.decided_at - origin.time).as_seconds_f64();
                // Clocks of two machines may differ.
                decided.observe((before + since.as_secs_f64()).max(0.0));
            }
        }
    }

    fn answer(&mut self, mut request: Pending<E>, draft: Draft<E>) {
        count(&draft.answers, &self.metrics);
        request.answers.extend(draft.answers);
        (request.rounds, request.failures) = (0, 0);
        self.offenders.remove(&request.unit.key);
        self.progress.moved();
        self.pauses = None;
        if request.answers.len() < request.unit.work.len() {
            self.waiting.push_front(request);
        } else if request.reply.send(Ok(request.answers)).is_err() {
            tracing::debug!("a unit was committed after its invocation had gone: the next attempt finds the answer");
        }
    }

    fn fail(&self, request: Pending<E>, error: Error) {
        tracing::error!(key = %request.unit.key, error = error::chain(&error), "a unit cannot be committed");
        self.give_back(request, error);
    }

    /// Gives a unit back to its invocation, which tries again later and shows the error.
    fn give_back(&self, request: Pending<E>, error: Error) {
        if let Some(cause) = error.cause() {
            self.metrics
                .quarantine_candidates
                .with_label_values(&[cause.as_str()])
                .inc();
        }
        self.progress.moved();
        if request.reply.send(Err(error)).is_err() {
            tracing::debug!("the unit's invocation had gone: its next attempt meets the same error");
        }
    }

    /// Lets units go round again after a short pause that grows with their rounds.
    fn go_round(&mut self, requests: Vec<Pending<E>>) {
        let mut requests = requests;
        for request in &mut requests {
            request.rounds += 1;
            let pause = Duration::from_millis(1 << request.rounds.min(8)).min(LONGEST_ROUND);
            request.not_before = Instant::now() + if request.rounds == 1 { Duration::ZERO } else { pause };
        }
        self.put_back(requests);
    }

    /// Puts requests back before all others, in their order.
    fn put_back(&mut self, requests: Vec<Pending<E>>) {
        for request in requests.into_iter().rev() {
            self.waiting.push_front(request);
        }
    }

    /// Waits until the database answers again, with capped back-off, for as long as anybody waits for it. Attempts that are aborted
    /// meanwhile are let go of. A database that answers and cannot write, its disk being full, is asked less and less often, too.
    async fn await_server(&mut self, error: &Error) {
        tracing::warn!(error = error::chain(error), "waiting for Postgres");
        loop {
            let pause = self.pauses.get_or_insert_with(pauses).next();
            let pause = pause.unwrap_or(super::LONGEST_PAUSE);
            self.take_in(Instant::now() + pause).await;
            self.drop_aborted();
            if self.waiting.is_empty() {
                return;
            }
            match super::ping(&self.pool).await {
                Ok(()) => return,
                // Not waited out: the units meet it themselves, and go back to the engine.
                Err(error) if error.fault() == Fault::Setting => return,
                Err(error) => tracing::warn!(error = error::chain(&error), "waiting for Postgres"),
            }
            self.metrics.retries.with_label_values(&["connect"]).inc();
        }
    }

    /// Takes in what comes until then.
    async fn take_in(&mut self, until: Instant) {
        loop {
            tokio::select! {
                Some(request) = self.requests.recv() => self.waiting.push_back(request),
                () = tokio::time::sleep_until(until) => return,
            }
        }
    }

    fn drop_aborted(&mut self) {
        self.waiting.retain(|request| !request.reply.is_closed());
        // Several committers share the gauge.
        let waiting = self.waiting.len() as i64;
        self.metrics.commit_waiting.add(waiting - self.counted);
        self.counted = waiting;
    }
}

/// A plain read: it never waits for writers and may be older than a write in flight.
pub async fn get<E: Stored>(pool: &PgPool, key: &KeyOf<E>) -> Result<Option<E>, Error> {
    let key = key.as_str();
    let current = on_session(pool, Error::Read, async |connection| E::read(connection, &[key]).await);
    Ok(current.await?.rows.remove(key))
}

/// Decides units on the caller's connection, at most one of each key, and writes the decisions there: in the caller's
/// transaction, if there is one. The caller must count the answers ([`count`]) once that is committed.
///
/// # Errors
/// [`Error::Moved`] when a row of the units was locked or changed since it was read: the transaction must not be committed. And
/// whatever [`Committer::commit`] fails with.
pub async fn within<E: Stored>(
    connection: &mut PgConnection,
    rules: &dyn Rules<E>,
    admission: Admission,
    units: &[Unit<E>],
) -> Result<Vec<Answer>, Error> {
    let decisions = decide(connection, rules, admission, units).await?;
    decisions.write(connection).await?;
    Ok(decisions.into_answers())
}

/// Decides units on the caller's connection, at most one of each key, and writes nothing yet.
///
/// # Errors
/// As [`within`].
pub async fn decide<E: Stored>(
    connection: &mut PgConnection,
    rules: &dyn Rules<E>,
    admission: Admission,
    units: &[Unit<E>],
) -> Result<Drafts<E>, Error> {
    let read = read(connection, units.iter().map(|unit| (&unit.key, &unit.work[..]))).await?;
    decide_on(read, rules, admission, units)
}

/// As [`within`], for commands on rows that the caller's transaction has locked.
///
/// # Errors
/// As [`within`].
pub(super) async fn on_locked<E: Stored>(
    connection: &mut PgConnection,
    rules: &dyn Rules<E>,
    current: Current<E>,
    units: &[Unit<E>],
) -> Result<Vec<Answer>, Error> {
    let known = HashMap::new();
    let decisions = decide_on(draft::ReadSet { current, known }, rules, Admission::OF_ANY_AGE, units)?;
    decisions.write(connection).await?;
    Ok(decisions.into_answers())
}

fn decide_on<E: Entity>(
    read: draft::ReadSet<E>,
    rules: &dyn Rules<E>,
    admission: Admission,
    units: &[Unit<E>],
) -> Result<Drafts<E>, Error> {
    let mut deciding = draft::Deciding::new(read, rules, admission);
    let mut drafts = Vec::with_capacity(units.len());
    for unit in units {
        match deciding.decide(&unit.key, &unit.work) {
            draft::Decided::Draft(draft) => drafts.push(*draft),
            draft::Decided::Later => return Err(Error::Moved),
            draft::Decided::Failed(error) | draft::Decided::Quarantined(error) => return Err(error),
        }
    }
    Ok(Drafts(drafts))
}

/// Decisions, which [`Drafts::write`] has yet to write.
pub struct Drafts<E: Entity>(Vec<Draft<E>>);

impl<E: Stored> Drafts<E> {
    /// Decisions of before, at most one of each key. `generation`: that of what was not told of them.
    pub(super) fn retold<'a>(decisions: impl IntoIterator<Item = Retold<'a, E>>, generation: i64) -> Self {
        let drafts = decisions.into_iter();
        Self(drafts.map(|decision| Draft::retold(decision, generation)).collect())
    }

    /// Writes all of it on the connection on which it was decided.
    ///
    /// # Errors
    /// As [`within`].
    pub async fn write(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let statement: write::Statement<'_, E> = (0..).zip(&self.0).collect();
        if !statement.is_empty() && statement.execute(connection).await?.len() < statement.units() {
            return Err(Error::Moved);
        }
        Ok(())
    }

    /// The answers to the pieces of work, in order.
    pub fn into_answers(self) -> Vec<Answer> {
        self.0.into_iter().flat_map(|draft| draft.answers).collect()
    }

    pub fn answers(&self) -> impl Iterator<Item = &Answer> {
        self.0.iter().flat_map(|draft| &draft.answers)
    }
}

/// The first step: what was answered to the units' work before, and their rows.
async fn read<'a, E: Stored>(
    connection: &mut PgConnection,
    units: impl Iterator<Item = (&'a KeyOf<E>, &'a [Work<E>])>,
) -> Result<draft::ReadSet<E>, Error> {
    let (mut keys, mut sources, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    for (key, work) in units {
        keys.push(key.as_str());
        for (source, id) in work.iter().filter_map(Work::identity) {
            sources.push(source.as_str());
            ids.push(id.as_str());
        }
    }
    let known = if ids.is_empty() {
        Default::default()
    } else {
        super::idempotency::read(connection, &sources, &ids).await?
    };
    // After the answers, as the clock is read here: an answer that is swept before is one of an event that is too old by this
    // clock, and one that is swept later is known.
    let current = E::read(connection, &keys).await?;
    Ok(draft::ReadSet { current, known })
}

/// Counts answers that were committed.
pub fn count(answers: &[Answer], metrics: &Metrics) {
    for answer in answers {
        let name = match answer {
            Answer::Fresh(reply) => count_fresh(reply, metrics),
            Answer::Repeat(_) => "repeat",
            Answer::DeadLettered(reason) => {
                metrics.serve_dead_letters.with_label_values(&[reason.as_str()]).inc();
                "dead_letter"
            }
            Answer::Nothing | Answer::AlreadyDone => "nothing",
        };
        metrics.events.with_label_values(&[name]).inc();
    }
}

/// Counts the outcomes by their type, and a refusal by its reason; returns the label of the answer: refused, if the last outcome is a refusal.
fn count_fresh(reply: &Reply, metrics: &Metrics) -> &'static str {
    for outcome in &reply.outcomes {
        let label = outcome_label(&outcome.outcome_type);
        metrics.outcomes.with_label_values(&[label]).inc();
    }
    match reply.refusal() {
        Some(reason) => {
            metrics.refusals.with_label_values(&[reason]).inc();
            "refused"
        }
        None => "applied",
    }
}

impl<E: Entity> Pending<E> {
    /// The work of the next round: as much as fits one statement.
    fn next_work(&self, limits: &config::Serve) -> &[Work<E>] {
        let left = &self.unit.work[self.answers.len()..];
        let mut bytes = 0;
        let fitting = left.iter().take(limits.batch_events).take_while(|work| {
            bytes += work.size();
            bytes <= limits.batch_bytes
        });
        &left[..fitting.count().max(1).min(left.len())]
    }

    fn next_size(&self, limits: &config::Serve) -> (usize, usize) {
        let work = self.next_work(limits);
        (work.len(), work.iter().map(Work::size).sum())
    }
}

impl<E: Entity> Work<E> {
    /// Source and id of work that leaves an idempotency record.
    fn identity(&self) -> Option<(&Source, &EventId)> {
        match self {
            Work::Event(event) | Work::Request(event) => Some((&event.source, &event.id)),
            Work::Command(_) | Work::Rejected { .. } => None,
        }
    }

    /// Approximate size of the work in a statement, in bytes.
    fn size(&self) -> usize {
        match self {
            Work::Event(event) | Work::Request(event) => event.size(),
            Work::Rejected { value, .. } => value.len(),
            Work::Command(_) => 256,
        }
    }
}

impl Admission {
    /// Of what has no age, such as requests of the product's own.
    pub const OF_ANY_AGE: Self = Self::Live {
        retention: Duration::MAX,
    };

    /// Why an event is not decided: it is too old for its repeats to be known.
    pub(super) fn refuses<A: EventData>(self, event: &Event<A>, now: OffsetDateTime) -> Option<Refusal> {
        match self {
            Self::Live { retention } if now - aged_from(event) > retention => Some(draft::too_old(retention)),
            Self::Live { .. } | Self::Replayed => None,
        }
    }
}

/// The moment from which an event ages: the earlier of its own time and its broker's.
fn aged_from<A: EventData>(event: &Event<A>) -> OffsetDateTime {
    event
        .origin
        .as_ref()
        .map_or(event.time, |origin| origin.time.min(event.time))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use sqlx::postgres::PgPoolOptions;

    use super::*;
    use crate::domain::Ticket;

    /// As with a worker that ends while the database is away: its invocations are gone.
    #[tokio::test]
    async fn a_committer_waits_for_no_database_for_which_nobody_waits() {
        let pool = PgPoolOptions::new().acquire_timeout(Duration::from_millis(100));
        let pool = pool.connect_lazy("postgres://nobody@127.0.0.1:1/nothing").unwrap();
        let limits = config::Cli::parse_from(["holdfast", "serve"]).config.serve;
        let metrics = Arc::new(Metrics::new().unwrap());
        let undecided = |_: Option<&Ticket>, _, _| unreachable!("nothing was read");
        let (committer, task) =
            Committer::<Ticket>::new(pool, undecided, limits, Duration::from_secs(60), metrics.clone());
        let task = tokio::spawn(task);
        let unit = Unit {
            key: "A-1".parse().unwrap(),
            work: vec![Work::Rejected {
                origin: None,
                refusal: Refusal::new(DeadLetterReason::Undecodable, "no JSON".to_owned()),
                value: Vec::new(),
            }],
        };
        let handed_over = tokio::spawn(async move { committer.commit(unit).await });
        while metrics.retries.with_label_values(&["connect"]).get() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        handed_over.abort();
        let ended = tokio::time::timeout(Duration::from_secs(60), task).await;
        ended.expect("it waits for the database").unwrap();
    }
}
