//! The virtual objects, which Restate runs with one invocation at a time per key. They contain no SQL and no rule: a handler
//! decodes a request, hands it to the store's committer and answers.

mod account;
mod attributes;
mod body;
mod caller;
mod cart;
mod checkout;
mod engine;
mod examples;
mod intake;
mod reaper;
mod ticket;
mod user;

use std::sync::Arc;
use std::time::Duration;

use restate_sdk::hyper::HyperEndpoint;
use restate_sdk::prelude::{Endpoint, IntoServiceDefinition, ServiceOptions};
use restate_sdk::service::ServiceDefinition;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::checkout::Driver;
use crate::listener::{self, Port};
use crate::metrics::Metrics;
use crate::store::Committer;
use crate::store::credits::Loyalty;
use crate::store::quarantine::Quarantine;
use crate::store::ticket_attributes::Access;
use crate::{config, domain, traces};
use account::Account;
use checkout::Checkout;
use engine::TracedEndpoint;
pub use intake::decode_for;
use reaper::Reaper;
use ticket::Ticket;
pub(crate) use user::STEPWISE;
use user::User;

/// The Ticket object's name.
pub const TICKET: &str = "Ticket";
/// The User object's name.
pub const USER: &str = "User";
/// The Account object's name.
pub const ACCOUNT: &str = "Account";
/// The objects of a ticket or a user. Each of their invocations is a write that may be repeated, and none is ever given up.
pub const KEYED: [&str; 3] = [TICKET, USER, ACCOUNT];
/// Every service that this release or an earlier one serves; those in small letters are the examples.
pub const SERVICES: [&str; 9] = [
    TICKET,
    USER,
    ACCOUNT,
    "Checkout",
    REAPER,
    "simple",
    "keyed",
    "idempotency",
    "twoPhaseCommit",
];
/// The handler of Ticket and User that receives Restate's deliveries from Kafka.
pub const APPLY: &str = "apply";
/// The handler of Ticket and User that replays what is parked, as far as an operator has asked for it.
pub const REPLAY: &str = "replay";
/// The Reaper object's name.
pub const REAPER: &str = "Reaper";
/// The Reaper's only key, as long as one Reaper finds all holds that end.
pub const REAPER_SHARD: &str = "0";
/// The handlers that only the engine and other handlers may call, each with its service: by HTTP they would be believed.
pub const PRIVATE: [(&str, &str); 9] = [
    (TICKET, APPLY),
    (TICKET, "expire"),
    (USER, APPLY),
    (USER, "expireTicket"),
    (USER, "erase"),
    (USER, "returnOrder"),
    ("Checkout", "run"),
    ("Checkout", "hear"),
    (REAPER, "turn"),
];
/// The Reaper handler that begins its turns.
pub const ARM: &str = "arm";

/// The dependencies of the objects.
pub struct Tools {
    pub tickets: Committer<domain::Ticket>,
    pub users: Committer<domain::User>,
    pub quarantine: Quarantine,
    pub pool: PgPool,
    pub attributes: Access,
    /// Absent: credits are refused.
    pub loyalty: Option<Loyalty>,
    pub driver: Driver,
    pub settings: config::Checkout,
    pub metrics: Arc<Metrics>,
    /// The clock for the `time` of events from HTTP requests; decisions use the database's clock.
    pub now: fn() -> OffsetDateTime,
}

/// Every object, ready to be served to whom signs by one of the identity keys, or to anybody when there is none.
///
/// # Errors
/// An identity key is none.
pub fn endpoint(tools: Tools, serve: &config::Serve) -> Result<Endpoint, IdentityKey> {
    let Tools {
        tickets,
        users,
        quarantine,
        pool,
        attributes,
        loyalty,
        driver,
        settings,
        metrics,
        now,
    } = tools;
    let new_id = driver.buying.new_id;
    let account = Account {
        committer: users.clone(),
        pool: pool.clone(),
        loyalty: loyalty.clone(),
        new_id,
        metrics: metrics.clone(),
        now,
    };
    let user = User {
        committer: users,
        quarantine: quarantine.clone(),
        pool: pool.clone(),
        loyalty,
        driver: driver.clone(),
        settings,
        metrics: metrics.clone(),
        now,
        replays: false,
    };
    let mut endpoint = Endpoint::builder()
        .bind(retried(
            serve,
            Ticket::new(tickets, quarantine, pool.clone(), attributes, metrics.clone(), now),
        ))
        .bind(retried(serve, user))
        .bind(retried(serve, account))
        .bind(retried(serve, Checkout::new(driver)))
        .bind(retried(serve, Reaper::new(pool.clone(), metrics.clone())));
    for key in &serve.identity_keys {
        let added = endpoint.identity_key(key);
        endpoint = added.map_err(|wrong| IdentityKey(key.clone(), wrong.to_string()))?;
    }
    Ok(match serve.examples {
        true => examples::bind(endpoint, pool, metrics, new_id).build(),
        false => endpoint.build(),
    })
}

/// An identity key that is none, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("--identity-key (HOLDFAST_IDENTITY_KEY): {0} is no public key of Restate: {1}")]
pub struct IdentityKey(String, String);

/// Sets Restate's retry policy: growing pauses up to a bound. The number of attempts is a setting of the server.
fn retried(serve: &config::Serve, object: impl IntoServiceDefinition) -> ServiceDefinition {
    let options = ServiceOptions::new()
        .retry_policy_initial_interval(FIRST_PAUSE)
        .retry_policy_exponentiation_factor(2.0)
        .retry_policy_max_interval(serve.retry_pause);
    object.into_service_definition().options(options)
}

/// Pause before Restate's first retry of a handler.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Serves Restate (HTTP/2) until `shutdown`; then accepts no new connections and gives the invocations under way 10 s to
/// finish. Restate retries the others elsewhere, or later.
pub async fn serve(port: Port, endpoint: Endpoint, shutdown: CancellationToken) {
    let endpoint = HyperEndpoint::new(endpoint);
    if traces::are_on() {
        listener::serve_calls(port, TracedEndpoint(endpoint), shutdown).await;
    } else {
        listener::serve_calls(port, endpoint, shutdown).await;
    }
}
