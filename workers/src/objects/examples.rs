//! The example handlers: the well-known ways to access a database from durable handlers, on tables of their own. Each calls
//! one tool of [`crate::store::mechanisms`], whose page describes its crashes. Some are unsafe on purpose and say so.
//! Served only with `--examples`.

use std::sync::Arc;
use std::time::Duration;

use holdfast_schemas::number;
use restate_sdk::endpoint::Builder;
use restate_sdk::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Postgres};
use uuid::Uuid;

use super::body::Body;
use super::caller::{answer_caller, tool_failed};
use super::intake;
use crate::error;
use crate::metrics::Metrics;
use crate::store::examples::{KEYS, User};
use crate::store::mechanisms::idempotency::{DAY, Once};
use crate::store::mechanisms::insert::{self, Insert};
use crate::store::mechanisms::two_phase::{self, Outcome, TransactionId};
use crate::store::mechanisms::update::{self, Update};
use crate::store::mechanisms::version::{self, Versioned};
use crate::store::mechanisms::{self, Error, read};

pub(super) fn bind(endpoint: Builder, pool: PgPool, metrics: Arc<Metrics>, new_id: fn() -> Uuid) -> Builder {
    let examples = Examples { pool, metrics };
    endpoint
        .bind(Simple(examples.clone()))
        .bind(Keyed(examples.clone()))
        .bind(Idempotency(examples.clone()))
        .bind(TwoPhaseCommit(examples, new_id))
}

/// What all of them work with.
#[derive(Clone)]
struct Examples {
    pool: PgPool,
    metrics: Arc<Metrics>,
}

impl Examples {
    /// Waits for a call of a tool as long as its statements may take, and no longer.
    async fn done<R>(&self, call: impl Future<Output = Result<R, Error>>) -> HandlerResult<R> {
        let done = mechanisms::in_time(&self.pool, "example_users", call).await;
        done.map_err(|error| self.answer(&error))
    }

    async fn acquire(&self) -> HandlerResult<PoolConnection<Postgres>> {
        let acquired = self.pool.acquire().await;
        acquired.map_err(|source| {
            self.answer(&Error::Statement {
                table: "example_users",
                source,
            })
        })
    }

    /// A value that the table does not take is the caller's to mend; everything else is tried again.
    fn answer(&self, error: &Error) -> HandlerError {
        match error {
            Error::Forbidden { .. } => answer_caller(400, error::chain(error)),
            error => tool_failed(&self.metrics, error),
        }
    }

    async fn find(&self, user: String) -> HandlerResult<Json<Lookup>> {
        let Json(found) = self.look(user, Lookup::Row).await?;
        Ok(Json(found.unwrap_or(Lookup::Nothing("(row not found)"))))
    }

    /// A value of a user's row, if there is one.
    async fn look<R>(&self, user: String, asked: fn(User) -> R) -> HandlerResult<Json<Option<R>>> {
        let found = self.done(read::one(&self.pool, &user)).await?;
        Ok(Json(found.map(asked)))
    }
}

/// Accesses the database as any other program would.
struct Simple(Examples);

/// The columns of a new user.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewUser {
    user_id: String,
    name: String,
    address: String,
    #[serde(deserialize_with = "number::whole")]
    credits: i64,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rename {
    user_id: String,
    new_name: String,
}

#[restate_sdk::service(
    name = "simple",
    journal_retention = "0s",
    idempotency_retention = "0s",
    invocation_retry_policy(initial_interval = "100ms", factor = 2.0, max_interval = "10s")
)]
impl Simple {
    /// The user's row, or "(row not found)".
    #[handler]
    async fn read(&self, _ctx: Context<'_>, Json(user): Json<String>) -> HandlerResult<Json<Lookup>> {
        self.0.find(user).await
    }

    /// The user's credits, or null. Read once per invocation: every retry uses the same value.
    #[handler(name = "durableRead")]
    async fn durable_read(&self, ctx: Context<'_>, Json(user): Json<String>) -> HandlerResult<Json<Option<i64>>> {
        let credits = ctx
            .run(|| self.0.look(user, |user| user.credits))
            .name("read credits")
            .await?;
        if credits.0 == Some(0) {
            tracing::info!("an example user has no credits: every retry takes this branch again");
        }
        Ok(credits)
    }

    /// Inserts a user unless the id is taken; answers whether it was this request that did. A repeat with the same
    /// `idempotency-key` gets the same answer.
    #[handler]
    async fn insert(&self, ctx: Context<'_>, body: Body<NewUser>) -> HandlerResult<Json<bool>> {
        let NewUser {
            user_id,
            name,
            address,
            credits,
        } = body.read()?;
        let user = User {
            user_id,
            name,
            address,
            credits,
            tags: Vec::new(),
            version: 0,
        };
        let inserted = insert::once_by(&self.0.pool, &user, ctx.invocation_id());
        Ok(Json(self.0.done(inserted).await? == Insert::Inserted))
    }

    /// Renames a user; answers whether there is one. **Unsafe:** a retry overwrites what others wrote meanwhile.
    #[handler]
    async fn update(&self, _ctx: Context<'_>, body: Body<Rename>) -> HandlerResult<Json<bool>> {
        let Rename { user_id, new_name } = body.read()?;
        let change = User::NAME.set(new_name);
        let updated = update::apply(&self.0.pool, &user_id, &change);
        Ok(Json(self.0.done(updated).await? == Update::Updated))
    }
}

/// Accesses a user's row under the user's key, so that writes come one at a time.
struct Keyed(Examples);

#[restate_sdk::object(
    name = "keyed",
    journal_retention = "0s",
    idempotency_retention = "0s",
    invocation_retry_policy(initial_interval = "100ms", factor = 2.0, max_interval = "10s")
)]
impl Keyed {
    /// Adds credits; answers whether there is such a user. **Unsafe:** a retry after the statement took effect adds again.
    #[handler]
    async fn update(&self, ctx: ObjectContext<'_>, Json(add): Json<i64>) -> HandlerResult<Json<bool>> {
        let (user, change) = (ctx.key().to_owned(), User::CREDITS.add(add));
        let updated = update::apply(&self.0.pool, &user, &change);
        Ok(Json(self.0.done(updated).await? == Update::Updated))
    }

    /// Adds credits exactly once; answers the row's version after it. Credits and version are read once per invocation, and
    /// written only over that version. 409 when a writer outside this object has changed the row in between.
    #[handler(name = "updateConditional")]
    async fn update_conditional(&self, ctx: ObjectContext<'_>, Json(add): Json<i64>) -> HandlerResult<Json<i64>> {
        let user = ctx.key().to_owned();
        let read = ctx.run(|| self.0.look(user.clone(), |user| (user.credits, user.version)));
        let Json(Some((credits, read))) = read.name("read credits, version").await? else {
            return Err(no_such_user());
        };
        let too_much = || answer_caller(400, "body: with so many the credits do not fit a number");
        let change = User::CREDITS.set(credits.checked_add(add).ok_or_else(too_much)?);
        let mut connection = self.0.acquire().await?;
        let updated = version::update(&mut connection, &user, read, ctx.invocation_id(), &change);
        match self.0.done(updated).await? {
            Versioned::Applied { version } | Versioned::AlreadyMine { version } => Ok(Json(version)),
            Versioned::Conflict { found } => Err(answer_caller(
                409,
                format!("somebody else wrote version {found} meanwhile: nothing was added, ask again"),
            )),
            Versioned::Overtaken { found } => Err(answer_caller(
                409,
                format!("others wrote up to version {found} meanwhile: read whether this was added"),
            )),
            Versioned::Missing => Err(no_such_user()),
        }
    }

    /// The user's row, or "(row not found)", without waiting for writes in hand.
    #[handler]
    async fn read(&self, ctx: SharedObjectContext<'_>) -> HandlerResult<Json<Lookup>> {
        self.0.find(ctx.key().to_owned()).await
    }
}

/// Keeps an idempotency key in the database.
struct Idempotency(Examples);

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AddCredits {
    user_id: String,
    #[serde(deserialize_with = "number::whole")]
    add_credits: i64,
}

/// Margin after the end of a key: the clocks of Restate and the database may differ by this much.
const SKEW: Duration = Duration::from_secs(60);

#[restate_sdk::service(
    name = "idempotency",
    journal_retention = "0s",
    idempotency_retention = "0s",
    invocation_retry_policy(initial_interval = "100ms", factor = 2.0, max_interval = "10s")
)]
impl Idempotency {
    /// Adds credits exactly once; answers the credits after it, or null without such a user. The key is the invocation's id,
    /// which Restate makes of the header `idempotency-key`: a producer that repeats a request within a day, with the same
    /// header, gets the first answer, and with another body 409.
    #[handler]
    async fn update(&self, ctx: Context<'_>, body: Body<AddCredits>) -> HandlerResult<Json<Option<i64>>> {
        let (key, request) = (ctx.invocation_id().to_owned(), body.read()?);
        let once = ctx.run(|| add_once(&self.0, key.clone(), request)).name("add once");
        let Json(once) = once.await?;
        // Sent only now that the answer lies in the journal: no retry of this invocation asks for the key again.
        let client = ctx.service_client::<IdempotencyClient>();
        client.expire_idempotency_key(Json(key)).send_after(DAY + SKEW);
        match once {
            Once::Fresh(credits) | Once::Repeat(credits) => Ok(Json(credits)),
            Once::Reused => Err(intake::id_reused()),
        }
    }

    /// Ends a key whose day is over; answers whether it did.
    #[handler(name = "expireIdempotencyKey")]
    async fn expire_idempotency_key(&self, _ctx: Context<'_>, Json(key): Json<String>) -> HandlerResult<Json<bool>> {
        self.0.done(KEYS.expire(&self.0.pool, &key)).await.map(Json)
    }
}

/// Splits a statement in two, so that it is executed once although its handler is called again.
struct TwoPhaseCommit(Examples, fn() -> Uuid);

#[restate_sdk::service(
    name = "twoPhaseCommit",
    journal_retention = "0s",
    idempotency_retention = "0s",
    invocation_retry_policy(initial_interval = "100ms", factor = 2.0, max_interval = "10s")
)]
impl TwoPhaseCommit {
    /// Adds credits exactly once; answers whether it was this call, and not one before, that did. Here both databases are the
    /// same one. A producer that repeats a request sends it with the same `idempotency-key`.
    #[handler]
    async fn update(&self, ctx: Context<'_>, body: Body<AddCredits>) -> HandlerResult<Json<bool>> {
        let AddCredits { user_id, add_credits } = body.read()?;
        let transaction = TransactionId::parse(&format!("examples/{}", ctx.invocation_id()))?;
        let add = async |connection: &mut PgConnection| {
            let added = update::apply(connection, &user_id, &User::CREDITS.add(add_credits)).await;
            added.map(|_| ())
        };
        // A new attempt id at each call of Restate: an id from the invocation would be the same at each retry.
        let (pool, attempt) = (&self.0.pool, (self.1)());
        let done = two_phase::run(pool, pool, &transaction, attempt, async |_| Ok(()), add).await;
        Ok(Json(done.map_err(|error| self.0.answer(&error))? == Outcome::Now))
    }
}

/// A user as readers see it.
#[derive(Serialize)]
#[serde(untagged)]
enum Lookup {
    Row(User),
    Nothing(&'static str),
}

async fn add_once(examples: &Examples, key: String, request: AddCredits) -> HandlerResult<Json<Once<Option<i64>>>> {
    let AddCredits { user_id, add_credits } = &request;
    let mut connection = examples.acquire().await?;
    let once = KEYS.once(&mut connection, &key, &request, DAY, async |transaction| {
        update::apply(&mut *transaction, user_id, &User::CREDITS.add(*add_credits)).await?;
        let user = read::one::<User>(&mut *transaction, user_id).await?;
        Ok(user.map(|user| user.credits))
    });
    examples.done(once).await.map(Json)
}

fn no_such_user() -> HandlerError {
    answer_caller(404, "there is no such user: insert one first")
}
