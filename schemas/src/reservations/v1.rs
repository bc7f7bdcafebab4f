//! Version 1. Published: never edited.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TicketEvent;
use crate::identity::HoldId;
use crate::money::Price;
use crate::number;
use crate::text::{Seat, ShowId, UserId};
use crate::version::Wire;

/// A ticket is for sale, at these terms. Of a withdrawn ticket: for sale again.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TicketListed {
    pub(crate) show: ShowId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seat: Option<Seat>,
    pub(crate) price: Price,
}

/// A ticket is no longer for sale. The data may be absent, null or an empty object.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TicketWithdrawn {}

/// A user asks to hold the ticket for a while.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReservationRequested {
    pub(crate) user: UserId,
    /// Seconds. Without it 900; what is not within 1 to 86400 is refused by an outcome.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "number::optional"
    )]
    #[schemars(range(min = -number::MAX_SAFE, max = number::MAX_SAFE))]
    pub(crate) hold_for: Option<i64>,
}

/// A user gives a hold back before its time is over.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReservationReleased {
    pub(crate) user: UserId,
    pub(crate) hold: HoldId,
}

impl Wire for TicketListed {
    type Current = TicketEvent;
    const TYPE: &'static str = "holdfast.ticket.listed.v1";
}

impl Wire for TicketWithdrawn {
    type Current = TicketEvent;
    const TYPE: &'static str = "holdfast.ticket.withdrawn.v1";
}

impl Wire for ReservationRequested {
    type Current = TicketEvent;
    const TYPE: &'static str = "holdfast.reservation.requested.v1";
}

impl Wire for ReservationReleased {
    type Current = TicketEvent;
    const TYPE: &'static str = "holdfast.reservation.released.v1";
}

impl From<TicketListed> for TicketEvent {
    fn from(TicketListed { show, seat, price }: TicketListed) -> Self {
        Self::TicketListed { show, seat, price }
    }
}

impl From<TicketWithdrawn> for TicketEvent {
    fn from(TicketWithdrawn {}: TicketWithdrawn) -> Self {
        Self::TicketWithdrawn
    }
}

impl From<ReservationRequested> for TicketEvent {
    fn from(ReservationRequested { user, hold_for }: ReservationRequested) -> Self {
        Self::ReservationRequested { user, hold_for }
    }
}

impl From<ReservationReleased> for TicketEvent {
    fn from(ReservationReleased { user, hold }: ReservationReleased) -> Self {
        Self::ReservationReleased { user, hold }
    }
}
