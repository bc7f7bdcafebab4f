//! Version 1. Published: never edited.

use crate::identity::HoldId;
use crate::money::Price;
use crate::number;
use crate::text::{Seat, ShowId, UserId};
use crate::version::wire;

wire! { TicketEvent;
    /// A ticket is for sale, at these terms. Of a withdrawn ticket: for sale again.
    TicketListed "holdfast.ticket.listed.v1" {
        show: ShowId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seat: Option<Seat>,
        price: Price
    };
    /// A ticket is no longer for sale. The data may be absent, null or an empty object.
    TicketWithdrawn "holdfast.ticket.withdrawn.v1" {};
    /// A user asks to hold the ticket for a while.
    ReservationRequested "holdfast.reservation.requested.v1" {
        user: UserId,
        /// Seconds. Without it 900; what is not within 1 to 86400 is refused by an outcome.
        #[serde(
            default,
            skip_serializing_if = "Option::is_none",
            deserialize_with = "number::optional",
            serialize_with = "number::clamped"
        )]
        #[schemars(range(min = -number::MAX_SAFE, max = number::MAX_SAFE))]
        hold_for: Option<i64>
    };
    /// A user gives a hold back before its time is over.
    ReservationReleased "holdfast.reservation.released.v1" {
        user: UserId,
        hold: HoldId
    };
}
