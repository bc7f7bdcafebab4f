//! Version 2. Published: never edited.

use super::{TicketEvent, v1};
use crate::money::Price;
use crate::number;
use crate::text::UserId;
use crate::version::wire;

wire! { TicketEvent;
    /// A user asks to hold the ticket for a while.
    ReservationRequested "holdfast.reservation.requested.v2" {
        user: UserId,
        /// Seconds. Without it as long as the installation's `--hold-for` says; what is not within 1 and its `--longest-hold` is refused by
        /// an outcome.
        #[serde(
            default,
            skip_serializing_if = "Option::is_none",
            deserialize_with = "number::optional",
            serialize_with = "number::clamped"
        )]
        #[schemars(range(min = -number::MAX_SAFE, max = number::MAX_SAFE))]
        hold_for: Option<i64>,
        /// The price of the ticket by this hold, at most the ticket's own and in its currency. Only from sources that the installation's
        /// `--price-sources` names; from others it is refused by an outcome.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        price: Option<Price>
    };
}

impl From<v1::ReservationRequested> for TicketEvent {
    fn from(v1::ReservationRequested { user, hold_for }: v1::ReservationRequested) -> Self {
        let price = None;
        Self::ReservationRequested(ReservationRequested { user, hold_for, price })
    }
}
