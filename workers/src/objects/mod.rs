//! The virtual objects: what Restate runs, one invocation at a time per key. Here is no SQL and no rule: an object takes a
//! request, hands it to the store's committer and answers.

mod attributes;
mod body;
mod cart;
mod checkout;
mod examples;
mod intake;
mod reaper;
mod ticket;
mod user;

use std::sync::Arc;

use restate_sdk::http_server::HttpServer;
use restate_sdk::prelude::{Endpoint, HandlerError};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::checkout::Driver;
use crate::metrics::Metrics;
use crate::store::credits::Loyalty;
use crate::store::ticket_attributes::Access;
use crate::store::{self, Committer};
use crate::{domain, error};
use checkout::Checkout;
use reaper::Reaper;
use ticket::Ticket;
use user::User;

/// The Ticket object's name.
pub const TICKET: &str = "Ticket";
/// The User object's name.
pub const USER: &str = "User";
/// The handler of both that takes what Kafka delivers.
pub const APPLY: &str = "apply";
/// The Reaper object's name.
pub const REAPER: &str = "Reaper";
/// The Reaper's only key, as long as one Reaper finds all holds that end.
pub const REAPER_SHARD: &str = "0";
/// The Reaper handler that begins its turns.
pub const ARM: &str = "arm";

/// What the objects work with.
pub struct Tools {
    pub tickets: Committer<domain::Ticket>,
    pub users: Committer<domain::User>,
    pub pool: PgPool,
    pub attributes: Access,
    /// Absent: credits are refused.
    pub loyalty: Option<Loyalty>,
    pub driver: Driver,
    pub metrics: Arc<Metrics>,
    /// The time that events from HTTP carry; what is decided goes by the database's clock.
    pub now: fn() -> OffsetDateTime,
}

/// Every object, ready to be served. The example handlers are served only where `with_examples` asks for them.
pub fn endpoint(tools: Tools, with_examples: bool) -> Endpoint {
    let Tools {
        tickets,
        users,
        pool,
        attributes,
        loyalty,
        driver,
        metrics,
        now,
    } = tools;
    let user = User {
        committer: users,
        pool: pool.clone(),
        loyalty,
        driver: driver.clone(),
        metrics: metrics.clone(),
        now,
    };
    let endpoint = Endpoint::builder()
        .bind(Ticket::new(tickets, pool.clone(), attributes, now))
        .bind(user)
        .bind(Checkout::new(driver))
        .bind(Reaper::new(pool.clone(), metrics));
    match with_examples {
        true => examples::bind(endpoint, pool).build(),
        false => endpoint.build(),
    }
}

/// Answers Restate (HTTP/2) until `shutdown`; then takes no new connections and gives invocations in hand 10 s to finish.
/// Restate tries again elsewhere, or later, what did not.
pub async fn serve(listener: TcpListener, endpoint: Endpoint, shutdown: CancellationToken) {
    HttpServer::new(endpoint)
        .serve_with_cancel(listener, shutdown.cancelled_owned())
        .await;
}

/// An error that Restate tries again, for ever; it records the text.
fn again(error: store::Error) -> HandlerError {
    error::chain(&error).into()
}
