//! The one way in which events change the database. Handlers hand over units; one committer per database writes whatever is
//! waiting in one statement (group commit): alone, a unit waits for nobody; under load, batches grow.
//!
//! A batch goes through three steps: read the rows and the known answers, decide event by event, write everything gated by the
//! version that was read. Whatever was not written goes round again from the first step. Every step may be repeated and any
//! may be the last one that this process does: the idempotency records lie in the same statement as the rows.

mod draft;
mod write;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use holdfast_schemas::{
    CheckoutId, DeadLetterReason, Event, EventId, HoldId, Origin, Refusal, Reply, RequestHash, Source, TicketId, UserId,
};
use serde_json::json;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Error, pauses};
use crate::config;
use crate::crash::{self, Point};
use crate::domain::{Decision, Input, Ticket};
use crate::error::{self, Disposition};
use crate::metrics::Metrics;
use draft::Draft;

/// An ordered list of work for one ticket.
#[derive(Clone, Debug)]
pub struct Unit {
    pub ticket: TicketId,
    pub work: Vec<Work>,
}

/// One thing to do to a ticket.
#[derive(Clone, Debug)]
pub enum Work {
    /// An event from Kafka: what cannot be decided becomes a dead letter.
    Delivered(Event),
    /// An event from HTTP: what cannot be decided is answered to the caller.
    Asked(Event),
    /// A record that only the handler saw (subscribed without a gate) and that cannot be taken.
    Refused {
        origin: Option<Origin>,
        refusal: Refusal,
        value: Vec<u8>,
    },
    /// End this hold if it is due. Leaves no idempotency record: the hold id makes it safe to repeat.
    Expire { hold: HoldId },
    /// A request from within, such as a checkout's.
    Internal(Internal),
}

/// A request from within. Source and id make it the same when it is repeated.
#[derive(Clone, Debug)]
pub struct Internal {
    pub source: Source,
    pub id: EventId,
    pub ask: Ask,
}

/// What is asked from within.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Sell what is held.
    Sell {
        user: UserId,
        hold: HoldId,
        checkout: CheckoutId,
    },
    /// Give back what was sold.
    Return { checkout: CheckoutId },
}

/// The rules that decide: `domain::decide`, and in a proof whatever breaks the committer.
pub type Rules = fn(Option<&Ticket>, Input, OffsetDateTime) -> Decision;

/// What came of one piece of work.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It took effect now.
    Fresh(Reply),
    /// It had taken effect before; this is what was answered then.
    Repeat(Reply),
    /// It was not decided.
    DeadLettered(DeadLetterReason),
    /// An internal request that does not fit: nothing was written.
    Nothing,
    /// An internal request that had taken effect before, under another id.
    AlreadyDone,
}

/// Hands units to the committer task.
#[derive(Clone)]
pub struct Committer {
    queue: mpsc::Sender<Request>,
}

struct Request {
    unit: Unit,
    /// Work of the unit that is done, in order; a large unit takes several rounds.
    answers: Vec<Answer>,
    reply: oneshot::Sender<Result<Vec<Answer>, Error>>,
    /// A unit that met a locked or moved row waits a little before it goes round again.
    not_before: Instant,
    rounds: u32,
}

/// Units that may wait at once; handing over another one waits. The engine's own limit is lower.
const QUEUE: usize = 20_000;
/// The longest pause before a unit that met a locked or moved row goes round again.
const LONGEST_ROUND: Duration = Duration::from_millis(200);

impl Committer {
    /// The handle, and the task that must run for it to answer. The task ends when every handle is gone
    /// and nothing waits.
    pub fn new(
        pool: PgPool,
        rules: Rules,
        limits: config::Serve,
        retention: Duration,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()>) {
        let (queue, requests) = mpsc::channel(QUEUE);
        let task = Task {
            pool,
            rules,
            limits,
            retention,
            metrics,
            requests,
            waiting: VecDeque::new(),
        };
        (Self { queue }, task.run())
    }

    /// Commits a unit and answers each piece of its work, in order. Waits for the database for ever; dropping the future takes
    /// the unit out of the queue, or leaves a write in flight whose answer the next attempt finds.
    ///
    /// # Errors
    /// The unit breaks the worker itself ([`Error::Panic`], [`Error::Row`], [`Error::Write`] with a data error or a violated
    /// constraint), or the process is ending.
    pub async fn commit(&self, unit: Unit) -> Result<Vec<Answer>, Error> {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            unit,
            answers: Vec::new(),
            reply,
            not_before: Instant::now(),
            rounds: 0,
        };
        self.queue.send(request).await.map_err(|_| Error::Ended)?;
        answer.await.map_err(|_| Error::Ended)?
    }
}

struct Task {
    pool: PgPool,
    rules: Rules,
    limits: config::Serve,
    retention: Duration,
    metrics: Arc<Metrics>,
    requests: mpsc::Receiver<Request>,
    waiting: VecDeque<Request>,
}

impl Task {
    async fn run(mut self) {
        while self.gather().await {
            let batch = self.take_batch();
            self.commit_batch(batch).await;
        }
    }

    /// Waits until something can be done; false when no handle is left and nothing waits.
    async fn gather(&mut self) -> bool {
        loop {
            while let Ok(request) = self.requests.try_recv() {
                self.waiting.push_back(request);
            }
            self.waiting.retain(|request| !request.reply.is_closed());
            self.metrics.commit_waiting.set(self.waiting.len() as i64);
            match self.waiting.iter().map(|request| request.not_before).min() {
                Some(earliest) if earliest <= Instant::now() => return true,
                Some(earliest) => tokio::select! {
                    Some(request) = self.requests.recv() => self.waiting.push_back(request),
                    () = tokio::time::sleep_until(earliest) => {}
                },
                None => match self.requests.recv().await {
                    Some(request) => self.waiting.push_back(request),
                    None => return false,
                },
            }
        }
    }

    /// Takes from the front what fits one statement, at most one unit per key, and leaves the rest in order.
    fn take_batch(&mut self) -> Vec<Request> {
        let now = Instant::now();
        let mut keys = HashSet::new();
        let (mut batch, mut left) = (Vec::new(), VecDeque::with_capacity(self.waiting.len()));
        let (mut events, mut bytes) = (0, 0);
        for request in self.waiting.drain(..) {
            let (more_events, more_bytes) = request.next_size(&self.limits);
            let fits = batch.is_empty()
                || (events + more_events <= self.limits.batch_events && bytes + more_bytes <= self.limits.batch_bytes);
            // The key is noted even when its unit is left, so that later units of the key stay behind it.
            if keys.insert(request.unit.ticket.clone()) && request.not_before <= now && fits {
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

    /// Commits a batch in one statement. When that statement fails, each of its units is sent alone.
    async fn commit_batch(&mut self, batch: Vec<Request>) {
        let Err((batch, error)) = self.attempt(batch).await else {
            return;
        };
        let step = if matches!(error, Error::Read(_)) {
            "read"
        } else {
            "write"
        };
        self.metrics.retries.with_label_values(&[step]).inc();
        match error::disposition(&error) {
            Disposition::Retry if batch.len() == 1 && !error::waits_for_server(&error) => self.go_round(batch),
            Disposition::Retry if error::waits_for_server(&error) => {
                self.await_server(&error).await;
                self.put_back(batch);
            }
            _ if batch.len() > 1 => {
                tracing::warn!(
                    units = batch.len(),
                    error = error::chain(&error),
                    "a batch failed: its units go one by one"
                );
                for request in batch {
                    Box::pin(self.commit_batch(vec![request])).await;
                }
            }
            _ => {
                if let Some(request) = batch.into_iter().next() {
                    self.fail(request, error);
                }
            }
        }
    }

    /// One round: read, decide, write. Answers what was written and lets the rest go round again.
    async fn attempt(&mut self, batch: Vec<Request>) -> Result<(), (Vec<Request>, Error)> {
        let started = Instant::now();
        let mut read = self.read(&batch).await;
        if crash::again(Point::ServeRead) {
            read = self.read(&batch).await;
        }
        let known = match read {
            Ok(known) => known,
            Err(error) => return Err((batch, error)),
        };
        self.metrics
            .commit_seconds
            .with_label_values(&["read"])
            .observe(started.elapsed().as_secs_f64());
        crash::here(Point::ServeRead);

        let mut decided = Vec::with_capacity(batch.len());
        let mut again = Vec::new();
        let mut deciding = draft::Deciding::new(known, self.rules, self.retention);
        for request in batch {
            let work = request.next_work(&self.limits);
            match deciding.decide(&request.unit.ticket, work) {
                draft::Decided::Draft(draft) => decided.push((request, *draft)),
                draft::Decided::Later => again.push(request),
                draft::Decided::Failed(error) => self.fail(request, error),
            }
        }
        crash::here(Point::ServeDecided);
        if crash::again(Point::ServeDecided) {
            again.extend(decided.drain(..).map(|(request, _)| request));
        }

        let started = Instant::now();
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
                self.answer(request, draft);
            } else {
                self.metrics.commit_conflicts.inc();
                again.push(request);
            }
        }
        self.go_round(again);
        Ok(())
    }

    async fn read(&self, batch: &[Request]) -> Result<draft::Read, Error> {
        let tickets: Vec<&str> = batch.iter().map(|request| request.unit.ticket.as_str()).collect();
        let (mut sources, mut ids) = (Vec::new(), Vec::new());
        for (source, id) in batch
            .iter()
            .flat_map(|request| request.next_work(&self.limits))
            .filter_map(Work::identity)
        {
            sources.push(source.as_str());
            ids.push(id.as_str());
        }
        let current = super::tickets::read(&self.pool, &tickets).await?;
        let known = if ids.is_empty() {
            Default::default()
        } else {
            super::idempotency::read(&self.pool, &sources, &ids).await?
        };
        Ok(draft::Read { current, known })
    }

    async fn write(&self, decided: &[(Request, Draft)]) -> Result<HashSet<i32>, Error> {
        let drafts = decided
            .iter()
            .enumerate()
            .filter(|(_, (_, draft))| !draft.writes_nothing());
        let statement: write::Statement<'_> = drafts.map(|(place, (_, draft))| (place as i32, draft)).collect();
        if statement.is_empty() {
            return Ok(HashSet::new());
        }
        let passed = statement.execute(&self.pool).await?;
        if crash::again(Point::ServeWritten) {
            let repeated = statement.execute(&self.pool).await;
            tracing::info!(?repeated, "the write was repeated on purpose");
        }
        Ok(passed)
    }

    fn answer(&mut self, mut request: Request, draft: Draft) {
        draft.count(&self.metrics);
        request.answers.extend(draft.answers);
        request.rounds = 0;
        if request.answers.len() < request.unit.work.len() {
            self.waiting.push_front(request);
        } else if request.reply.send(Ok(request.answers)).is_err() {
            tracing::debug!("a unit was committed after its invocation had gone: the next attempt finds the answer");
        }
    }

    /// Answers a unit that breaks the worker: its invocation tries again later.
    fn fail(&self, request: Request, error: Error) {
        if let Disposition::Quarantine(cause) = error::disposition(&error) {
            self.metrics
                .quarantine_candidates
                .with_label_values(&[cause.as_str()])
                .inc();
        }
        tracing::error!(ticket = %request.unit.ticket, error = error::chain(&error), "a unit cannot be committed");
        if request.reply.send(Err(error)).is_err() {
            tracing::debug!("the unit's invocation had gone: its next attempt meets the same error");
        }
    }

    /// Lets units go round again after a short pause that grows with their rounds.
    fn go_round(&mut self, requests: Vec<Request>) {
        let mut requests = requests;
        for request in &mut requests {
            request.rounds += 1;
            let pause = Duration::from_millis(1 << request.rounds.min(8)).min(LONGEST_ROUND);
            request.not_before = Instant::now() + if request.rounds == 1 { Duration::ZERO } else { pause };
        }
        self.put_back(requests);
    }

    /// Puts requests back before all others, in their order.
    fn put_back(&mut self, requests: Vec<Request>) {
        for request in requests.into_iter().rev() {
            self.waiting.push_front(request);
        }
    }

    /// Waits until the database answers again, for ever, with capped back-off.
    async fn await_server(&self, error: &Error) {
        tracing::warn!(error = error::chain(error), "waiting for Postgres");
        for pause in pauses() {
            self.metrics.retries.with_label_values(&["write"]).inc();
            tokio::time::sleep(pause).await;
            match super::ping(&self.pool).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(error = error::chain(&error), "waiting for Postgres"),
            }
        }
    }
}

impl Request {
    /// The work of the next round: as much as one statement may take.
    fn next_work(&self, limits: &config::Serve) -> &[Work] {
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

impl Work {
    /// Source and id of what leaves an idempotency record.
    fn identity(&self) -> Option<(&Source, &EventId)> {
        match self {
            Work::Delivered(event) | Work::Asked(event) => Some((&event.source, &event.id)),
            Work::Internal(request) => Some((&request.source, &request.id)),
            Work::Expire { .. } | Work::Refused { .. } => None,
        }
    }

    /// About how many bytes the work adds to a statement.
    fn size(&self) -> usize {
        match self {
            Work::Delivered(event) | Work::Asked(event) => event.size(),
            Work::Refused { value, .. } => value.len(),
            Work::Expire { .. } | Work::Internal(_) => 256,
        }
    }
}

impl Internal {
    fn input(&self) -> Input {
        match self.ask.clone() {
            Ask::Sell { user, hold, checkout } => Input::Sell { user, hold, checkout },
            Ask::Return { checkout } => Input::Return { checkout },
        }
    }

    /// Tells the same request from another one under the same id.
    fn hash(&self, ticket: &TicketId) -> RequestHash {
        match &self.ask {
            Ask::Sell { user, hold, checkout } => RequestHash::of_request(
                "sell",
                ticket,
                &json!({"user": user, "hold": hold, "checkout": checkout}),
            ),
            Ask::Return { checkout } => RequestHash::of_request("return", ticket, &json!({"checkout": checkout})),
        }
    }
}

/// The moment from which an event ages: the earlier of its own time and its broker's.
fn aged_from(event: &Event) -> OffsetDateTime {
    event
        .origin
        .as_ref()
        .map_or(event.time, |origin| origin.time.min(event.time))
}
