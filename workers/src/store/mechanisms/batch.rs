//! Automatic batching: callers ask for one row each, and the requests that have gathered while the last statement was under way
//! go into the next one (group commit). A lone caller waits for no other; under load, statements grow and their number does not.
//!
//! **For** many handlers at once that read, or change, a row each. The answers are those of one by one.
//!
//! **SQL** Reads: as [`super::read::many`]. Changes of one spelling (the same columns, the same operations) share a
//! statement, one change per key; others take another one.
//!
//! ```sql
//! update example_users t set credits = t.credits + n.credits, version = t.version + 1, written_by = null
//! from jsonb_populate_recordset(null::example_users, $1) n where t.user_id = n.user_id returning t.user_id
//! ```
//!
//! **Errors** Those of one by one: a statement that a value or a lock made fail is taken apart, and each change is sent alone.
//! Any other error goes to all callers of the statement. [`Error::Ended`] once the task has ended.
//!
//! **Crashes** As [`super::update`]: before or during, nothing has changed; after, or with the answer lost, a repeated `add`
//! adds again. A caller that goes away before its statement is sent takes its request with it.
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), std::sync::Arc<holdfast::store::mechanisms::Error>> {
//! use holdfast::store::examples::User;
//! use holdfast::store::mechanisms::batch;
//!
//! let (reads, reading) = batch::reads::<User>(pool.clone());
//! let (changes, changing) = batch::changes::<User>(pool);
//! tokio::spawn(reading);
//! tokio::spawn(changing);
//! let (ann, bob) = tokio::join!(reads.ask("ann".to_owned()), reads.ask("bob".to_owned()));
//! changes.ask(("ann".to_owned(), User::CREDITS.add(1))).await?;
//! # drop((ann?, bob?)); Ok(()) }
//! ```

use std::collections::HashSet;
use std::sync::Arc;

use sqlx::PgPool;
use sqlx::types::Json;
use tokio::sync::{mpsc, oneshot};

use super::table::sql;
use super::update::{self, Update};
use super::{Change, Error, Table, read};
use crate::store::session::{InTime, patience, within};

/// Hands requests to the task that gathers them. The task ends when every handle is gone.
pub struct Batch<Q, A> {
    queue: mpsc::Sender<Request<Q, A>>,
}

struct Request<Q, A> {
    ask: Q,
    reply: oneshot::Sender<Answer<A>>,
}

type Answer<A> = Result<A, Arc<Error>>;

/// Requests in the queue at most; a further one waits for a place. Also the most of one statement.
const QUEUE: usize = 1_000;

impl<Q, A> Batch<Q, A> {
    fn new() -> (Self, mpsc::Receiver<Request<Q, A>>) {
        let (queue, requests) = mpsc::channel(QUEUE);
        (Self { queue }, requests)
    }

    /// Sends this request together with others, and returns its answer.
    pub async fn ask(&self, ask: Q) -> Answer<A> {
        let (reply, answer) = oneshot::channel();
        let sent = self.queue.send(Request { ask, reply }).await;
        sent.map_err(|_| Arc::new(Error::Ended))?;
        answer.await.map_err(|_| Arc::new(Error::Ended))?
    }
}

impl<Q, A> Clone for Batch<Q, A> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
        }
    }
}

/// Reads of rows of `T`.
pub type Reads<T> = Batch<<T as Table>::Key, Option<T>>;
/// Changes of rows of `T`.
pub type Changes<T> = Batch<(<T as Table>::Key, Change<T>), Update>;

/// Reads by key, and the task that must run for them.
pub fn reads<T: Table + Clone>(pool: PgPool) -> (Reads<T>, impl Future<Output = ()>) {
    let (batch, mut requests) = Batch::new();
    let task = async move {
        while let Some(asked) = gather(&mut requests).await {
            let keys: HashSet<&T::Key> = asked.iter().map(|request| &request.ask).collect();
            let keys: Vec<T::Key> = keys.into_iter().cloned().collect();
            let found = within(patience(&pool), Error::of(T::TABLE), read::many::<T>(&pool, &keys));
            let found = found.await.map_err(Arc::new);
            for Request { ask, reply } in asked {
                answer(
                    reply,
                    found.as_ref().map(|rows| rows.get(&ask).cloned()).map_err(Arc::clone),
                );
            }
        }
    };
    (batch, task)
}

/// Changes by key, and the task that must run for them. Changes of one key take effect in the order in which they came.
pub fn changes<T: Table>(pool: PgPool) -> (Changes<T>, impl Future<Output = ()>) {
    let (batch, mut requests) = Batch::new();
    let task = async move {
        while let Some(mut waiting) = gather(&mut requests).await {
            while !waiting.is_empty() {
                let (statement, later) = take_statement(waiting);
                waiting = later;
                change::<T>(&pool, statement).await;
            }
        }
    };
    (batch, task)
}

/// Waits for a request and takes everything that has come by then; none when no handle is left.
async fn gather<Q, A>(requests: &mut mpsc::Receiver<Request<Q, A>>) -> Option<Vec<Request<Q, A>>> {
    let mut gathered = Vec::new();
    while gathered.is_empty() {
        if requests.recv_many(&mut gathered, QUEUE).await == 0 {
            return None;
        }
        gathered.retain(|request| !request.reply.is_closed());
    }
    Some(gathered)
}

type Changing<T> = Request<(<T as Table>::Key, Change<T>), Update>;

/// The requests that go with the first one: its spelling, each key once; and those that are left, in order.
fn take_statement<T: Table>(waiting: Vec<Changing<T>>) -> (Vec<Changing<T>>, Vec<Changing<T>>) {
    let spelling = waiting.first().map(|request| request.ask.1.sets("null"));
    let mut keys = HashSet::new();
    waiting.into_iter().partition(|request| {
        let (key, change) = &request.ask;
        // The key is noted even when its change is left, so that later changes of the key stay behind it.
        keys.insert(key.clone()) && Some(change.sets("null")) == spelling
    })
}

async fn change<T: Table>(pool: &PgPool, mut requests: Vec<Changing<T>>) {
    // Rows are locked in this order by every process.
    requests.sort_by(|one, other| one.ask.0.cmp(&other.ask.0));
    match change_at_once(pool, &requests).await {
        Ok(changed) => {
            for Request { ask: (key, _), reply } in requests {
                let was_there = changed.contains(&key);
                answer(reply, Ok(if was_there { Update::Updated } else { Update::Missing }));
            }
        }
        Err(Error::Forbidden { .. } | Error::Conflict(_)) if requests.len() > 1 => {
            for Request {
                ask: (key, change),
                reply,
            } in requests
            {
                let changed = within(patience(pool), Error::of(T::TABLE), update::apply(pool, &key, &change));
                answer(reply, changed.await.map_err(Arc::new));
            }
        }
        Err(error) => {
            let error = Arc::new(error);
            for Request { reply, .. } in requests {
                answer(reply, Err(error.clone()));
            }
        }
    }
}

async fn change_at_once<T: Table>(pool: &PgPool, requests: &[Changing<T>]) -> Result<HashSet<T::Key>, Error> {
    let Some(Request { ask: (_, first), .. }) = requests.first() else {
        return Ok(HashSet::new());
    };
    let (table, key) = (T::TABLE, T::KEY);
    let from = format!("jsonb_populate_recordset(null::{table}, $1) n");
    let text = first.update("null", &from, &format!("t.{key} = n.{key}"));
    let rows = requests.iter().map(|Request { ask: (key, change), .. }| {
        let mut row = change.json();
        row[T::KEY] = key.clone().into();
        row
    });
    let query = sqlx::query_scalar(sql(text)).bind(Json(rows.collect::<Vec<_>>()));
    let changed: Vec<T::Key> = query.fetch_all(pool).in_time(pool).await.map_err(Error::of(table))?;
    Ok(changed.into_iter().collect())
}

fn answer<A>(reply: oneshot::Sender<Answer<A>>, answer: Answer<A>) {
    if reply.send(answer).is_err() {
        tracing::debug!("a batched request was answered after its caller had gone");
    }
}
