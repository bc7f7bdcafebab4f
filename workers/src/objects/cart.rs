//! A user's cart: the tickets that the user holds and means to buy, by ticket id and hold id. Prices, owners and ends of holds
//! are never kept here: they come from the holds themselves.
//!
//! A checkout takes its tickets out of the cart by a mark: what becomes of them is read from the database. So they are in the cart again
//! once their checkout has failed, as long as their holds last, whoever ended it and whichever process died; nobody has to put
//! them back, and what was taken out or erased meanwhile stays away.

use holdfast_schemas::{
    CheckoutId, Credits, HoldId, List, OutcomeData, PaymentMethod, Price, Reply, TicketId, TicketOutcome, UserId,
    number, outcomes,
};
use restate_sdk::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use time::OffsetDateTime;

use crate::domain::{State, Ticket};
use crate::metrics::Metrics;
use crate::store::buying::LiveHold;
use crate::store::{self, PgPool};

use super::caller::failed;

/// State: the cart, an [`Entries`].
pub(super) const CART: &str = "cart";

/// Time after which the cart looks again at a hold that should have ended.
pub(super) const SHORTLY: Duration = Duration::from_secs(1);

/// The tickets in the cart, in the order in which they were added.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Entries(pub(super) Vec<Entry>);

#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) ticket: TicketId,
    pub(super) hold: HoldId,
    /// A checkout has taken it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) taken: bool,
}

impl Entries {
    pub(super) fn tickets(&self) -> Vec<TicketId> {
        self.0.iter().map(|entry| entry.ticket.clone()).collect()
    }

    pub(super) fn add(&mut self, ticket: TicketId, hold: HoldId) {
        self.0.retain(|entry| entry.ticket != ticket);
        let taken = false;
        self.0.push(Entry { ticket, hold, taken });
    }

    /// Marks what a checkout takes. Told by its hold: the same ticket may have been added anew.
    pub(super) fn take(&mut self, holds: &[HoldId]) {
        for entry in self.0.iter_mut().filter(|entry| holds.contains(&entry.hold)) {
            entry.taken = true;
        }
    }

    /// The holds of the entries that a checkout has taken.
    pub(super) fn taken(&self) -> Vec<(&TicketId, HoldId)> {
        let taken = self.0.iter().filter(|entry| entry.taken);
        taken.map(|entry| (&entry.ticket, entry.hold)).collect()
    }

    /// What is in the cart. `live`: the holds in [`Self::taken`] that have not ended.
    pub(super) fn present(&self, live: &[LiveHold]) -> Self {
        let is_back = |entry: &&Entry| live.iter().any(|live| live.hold == entry.hold && !live.under_way);
        let present = self.0.iter().filter(|entry| !entry.taken || is_back(entry));
        Self(present.cloned().collect())
    }

    /// Drops what was taken for good: it was bought, or its hold has ended.
    pub(super) fn drop_gone(&mut self, live: &[LiveHold]) {
        self.0
            .retain(|entry| !entry.taken || live.iter().any(|live| live.hold == entry.hold));
    }

    pub(super) fn find(&self, ticket: &TicketId) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.ticket == *ticket)
    }
}

/// Puts a ticket into the cart: it is held for the user.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AddTicket {
    pub(super) ticket: TicketId,
    /// Seconds, at most the installation's `--longest-hold`; by default its `--hold-for`.
    #[serde(default, deserialize_with = "number::optional")]
    pub(super) hold_for: Option<i64>,
}

/// Takes a ticket out of the cart: its hold is released.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveTicket {
    pub(super) ticket: TicketId,
}

/// From the cart to itself: this hold has ended.
#[derive(Serialize, Deserialize)]
pub(super) struct ExpireTicket {
    pub(super) ticket: TicketId,
    pub(super) hold: HoldId,
}

/// Buys the tickets in the cart.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckOut {
    /// A checkout id that was never used before; by default one is derived from the request.
    #[serde(default)]
    pub(super) checkout: Option<CheckoutId>,
    #[serde(default)]
    pub(super) payment_method: Option<PaymentMethod>,
    /// Credits to spend as part of the price.
    #[serde(default)]
    pub(super) credits: Option<Credits>,
    /// By default, all tickets in the cart.
    #[serde(default)]
    pub(super) tickets: Option<List<TicketId>>,
}

/// The result of adding a ticket to the cart.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Added {
    /// The ticket is held for the user.
    Added {
        ticket: TicketId,
        hold: HoldId,
        #[serde(with = "time::serde::rfc3339")]
        #[schemars(with = "String")]
        until: OffsetDateTime,
    },
    /// A rule forbids it.
    Refused { ticket: TicketId, reason: String },
}

impl Added {
    /// Reads the Ticket object's reply.
    pub(super) fn of(ticket: TicketId, reply: &Reply) -> HandlerResult<Self> {
        if let Some(reason) = reply.refusal() {
            let reason = reason.to_owned();
            return Ok(Self::Refused { ticket, reason });
        }
        let told = reply.outcomes.last();
        let told = told.map(|told| TicketOutcome::read(&told.outcome_type, &told.data.to_string()));
        match told {
            Some(Ok(TicketOutcome::TicketHeld(outcomes::TicketHeld { hold, until, .. }))) => {
                Ok(Self::Added { ticket, hold, until })
            }
            _ => Err(format!("the reply of {ticket} tells of no hold").into()),
        }
    }
}

/// The cart as its user sees it.
#[derive(Serialize, JsonSchema)]
pub(super) struct View {
    tickets: Vec<Item>,
}

#[derive(Serialize, JsonSchema)]
struct Item {
    ticket: TicketId,
    hold: HoldId,
    price: Price,
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    until: OffsetDateTime,
}

/// The entries whose holds have not ended, with price and end of each hold.
pub(super) async fn view(
    pool: &PgPool,
    metrics: &Metrics,
    user: &UserId,
    entries: Entries,
    now: OffsetDateTime,
) -> HandlerResult<View> {
    let mut tickets = Vec::with_capacity(entries.0.len());
    for Entry { ticket, hold, .. } in entries.0 {
        let found = store::get::<Ticket>(pool, &ticket).await.map_err(failed(metrics))?;
        let Some(found) = found else { continue };
        if let State::Held(held) = found.state
            && held.id == hold
            && held.user == *user
            && held.until > now
        {
            tickets.push(Item {
                ticket,
                hold,
                price: held.price.unwrap_or(found.price),
                until: held.until,
            });
        }
    }
    Ok(View { tickets })
}

/// Time after which a hold that is requested now, for `hold_for` seconds or else for `default`, has ended for certain.
pub(super) fn lifetime(hold_for: Option<i64>, default: Duration) -> Duration {
    let asked = hold_for.and_then(|seconds| u64::try_from(seconds).ok());
    asked.map_or(default, Duration::from_secs)
}
