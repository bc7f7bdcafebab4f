//! Checkouts in the database. Whatever follows from a fact changes checkout, seats, user, ledger and mails in one transaction, or
//! nothing; a caller whose row another one has changed meanwhile writes nothing, and reads the checkout anew.
//!
//! The transactions are not SERIALIZABLE: each locks what it decides on, the checkout first, or writes it against its version.
//! SERIALIZABLE would see conflicts between checkouts whose rows lie side by side in an index, and make most of them begin
//! anew when many buy at once.

mod credits;
mod events;
mod seats;
mod transition;

use std::sync::Arc;

use holdfast_schemas::{CheckoutId, EventId, HoldId, ShowId, Source, TicketId, UserId, UserOutcome, outcomes};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

pub(super) use credits::of_entry;
pub use events::CheckoutWork;
pub(super) use events::known;
pub use transition::Recorded;

pub use super::checkout_seats::LiveHold;

use super::commit::{self, Admission, Answer, Stored};
use super::credits::Loyalty;
use super::mechanisms::interactive::{self, Attempts, Transaction};
use super::{Error, checkout_seats, disputes, on_session, purchases, together};
use crate::config::ProviderShows;
use crate::domain::Ticket;
use crate::domain::checkout::{Checkout, SaleTerms, Transition};
use crate::metrics::Metrics;

/// Attempts of a transaction while others change the same rows, before its caller gets an error and retries.
const ATTEMPTS: Attempts = Attempts(30);

/// The databases and settings of checkouts.
#[derive(Clone)]
pub struct Buying {
    pub main: PgPool,
    /// Absent: credits are refused.
    pub loyalty: Option<Loyalty>,
    pub terms: SaleTerms,
    /// Tells whose money the payments for a show are.
    pub shows: ProviderShows,
    /// True if there is a mail server, so that customers get mails.
    pub mails: bool,
    /// Of events about checkouts.
    pub admission: Admission,
    pub metrics: Arc<Metrics>,
    pub now: fn() -> OffsetDateTime,
    /// Draws an id that nobody has drawn before.
    pub new_id: fn() -> Uuid,
}

/// A transition that was written, with the answers to count once it is committed.
struct Written {
    transition: Box<Transition>,
    answers: Vec<Answer>,
}

impl Buying {
    /// True if the user would have more tickets of a show than one user may, with this one in the cart too. A hint: the sale
    /// counts exactly.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn would_exceed(&self, user: &UserId, ticket: &TicketId, cart: &[TicketId]) -> Result<bool, Error> {
        let Some(limit) = self.terms.show_limit else {
            return Ok(false);
        };
        on_session(&self.main, Error::Read, async |main| {
            exceeds(main, user, ticket, cart, limit).await
        })
        .await
    }

    /// True while a checkout buys the ticket of this hold. A hint, as the checkout may end at any time.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn is_under_way(&self, hold: HoldId) -> Result<bool, Error> {
        on_session(&self.main, Error::Read, async |main| {
            checkout_seats::under_way(main, &[hold]).await
        })
        .await
    }

    /// Those of these tickets' holds that have not ended. A hint, as [`Buying::is_under_way`].
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn live(&self, holds: &[(&TicketId, HoldId)]) -> Result<Vec<LiveHold>, Error> {
        on_session(&self.main, Error::Read, async |main| {
            checkout_seats::live(main, holds).await
        })
        .await
    }

    /// Takes these tickets of a cancelled show off sale, in one transaction, whoever holds them; those that are sold stay so.
    ///
    /// # Errors
    /// The database does not answer, or others change the same rows all the time.
    pub async fn call_off(&self, show: &ShowId, tickets: &[TicketId]) -> Result<(), Error> {
        let answers = transaction(&self.main, async |main: &mut PgConnection| {
            seats::call_off(main, show, tickets).await
        });
        self.count(&answers.await?, &[]);
        Ok(())
    }

    /// The part of a checkout's payment that the customer's bank has taken for good, in minor units.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn lost_by_disputes(&self, checkout: &Checkout) -> Result<i64, Error> {
        let disputes = disputes::of(&self.main, checkout).await?;
        let lost = disputes.iter().filter(|dispute| dispute.has_lost_money());
        Ok(lost.map(|dispute| dispute.amount.amount()).sum())
    }

    /// Counts what was committed: the answers, and the outcomes that are new.
    fn count(&self, answers: &[Answer], told: &[UserOutcome]) {
        commit::count(answers, &self.metrics);
        let ended = &self.metrics.checkouts_ended;
        for told in told {
            match told {
                UserOutcome::CheckoutCompleted(outcomes::CheckoutCompleted { total, .. }) => {
                    ended.with_label_values(&["completed"]).inc();
                    self.metrics.paid(total);
                }
                UserOutcome::CheckoutFailed(outcomes::CheckoutFailed { reason, .. }) => {
                    ended.with_label_values(&[reason.as_str()]).inc();
                }
                UserOutcome::PaymentRefunded(outcomes::PaymentRefunded { full, amount, .. }) => {
                    self.metrics.gave_back(amount);
                    let kind = if *full { "full" } else { "partial" };
                    self.metrics.refunds.with_label_values(&[kind]).inc();
                }
                UserOutcome::PaymentRefundFailed(_) => self.metrics.refunds.with_label_values(&["failed"]).inc(),
                UserOutcome::PaymentDisputed(outcomes::PaymentDisputed { status, .. }) => {
                    let status = disputes::status_name(*status);
                    self.metrics.disputes.with_label_values(&[status]).inc();
                }
                _ => {}
            }
        }
    }
}

/// Whether these tickets of one show are more than `limit` for the user, with what they have bought.
async fn exceeds(
    main: &mut PgConnection,
    user: &UserId,
    ticket: &TicketId,
    cart: &[TicketId],
    limit: i32,
) -> Result<bool, Error> {
    let keys: Vec<&str> = cart.iter().chain([ticket]).map(TicketId::as_str).collect();
    let current = Ticket::read(main, &keys).await?;
    let Some(wanted) = current.rows.get(ticket.as_str()) else {
        return Ok(false);
    };
    let held = cart.iter().filter(|other| *other != ticket);
    let held = held.filter_map(|other| current.rows.get(other.as_str()));
    let held = held.filter(|other| other.show == wanted.show).count() as i32;
    let bought = purchases::of(main, user, &[wanted.show.as_str()]).await?;
    let bought: i32 = bought.into_iter().map(|(_, tickets)| tickets).sum();
    Ok(held + bought + 1 > limit)
}

/// Runs an interactive transaction, anew as long as others change the same rows. Every transaction locks what it decides on, the
/// checkout first, or writes it against its version.
async fn transaction<R>(
    pool: &PgPool,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<R, Error> + Clone,
) -> Result<R, Error> {
    let closure = async |transaction: &mut Transaction| together::step(transaction, work.clone()).await;
    interactive::transact_on_locks::<R, Error>(pool, ATTEMPTS, closure)
        .await
        .map(|committed| committed.value)
}

fn took_effect(answer: &Answer) -> bool {
    match answer {
        Answer::Fresh(reply) | Answer::Repeat(reply) => reply.refusal().is_none(),
        Answer::AlreadyDone => true,
        Answer::Nothing | Answer::DeadLettered(_) => false,
    }
}

/// The `source` of a checkout's requests to its tickets and its user.
pub(super) const SOURCE: &str = "holdfast/Checkout";

fn source() -> Source {
    Source::parse(SOURCE).expect("a short name")
}

/// The id of a request of a checkout. A checkout's id may be as long as an event's: a UUID derived from it leaves room for more.
fn id(checkout: &Checkout, place: &str) -> EventId {
    EventId::parse(&format!("{}/{place}", uuid(&checkout.id))).expect("UUIDs and a few words are short")
}

fn uuid(checkout: &CheckoutId) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, checkout.as_str().as_bytes())
}
