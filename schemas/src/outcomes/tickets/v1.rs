//! Version 1. Published: never edited.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::identity::HoldId;
use crate::money::Price;
use crate::reasons::earlier_reasons;
use crate::text::{CheckoutId, Seat, ShowId, UserId};
use crate::version::wire;

wire! { TicketOutcome;
    /// The ticket is for sale, at these terms.
    TicketListed "holdfast.outcome.ticket.listed.v1" {
        show: ShowId,
        #[serde(default, skip_serializing_if = "Option::is_none")] seat: Option<Seat>,
        price: Price
    };
    /// The terms of the ticket are now these.
    TicketChanged "holdfast.outcome.ticket.changed.v1" {
        show: ShowId,
        #[serde(default, skip_serializing_if = "Option::is_none")] seat: Option<Seat>,
        price: Price
    };
    /// The ticket is held for the user until the moment given.
    TicketHeld "holdfast.outcome.ticket.held.v1" {
        user: UserId,
        hold: HoldId,
        /// The hold ends then, unless it is released or sold before.
        #[serde(with = "crate::moment")] #[schemars(with = "crate::moment::Moment")] until: OffsetDateTime
    };
    /// By this hold the ticket costs less than its own price, as the shop has asked.
    TicketHoldPriced "holdfast.outcome.ticket.hold_priced.v1" { user: UserId, hold: HoldId, price: Price };
    /// The user buys the ticket, and has until the moment given to do so. It happens at most once to a hold.
    TicketHoldLengthened "holdfast.outcome.ticket.hold_lengthened.v1" {
        user: UserId,
        hold: HoldId,
        /// The hold ends then, and no longer as `ticket.held` said.
        #[serde(with = "crate::moment")] #[schemars(with = "crate::moment::Moment")] until: OffsetDateTime
    };
    /// The user gave the hold back; the ticket is for sale again.
    TicketReleased "holdfast.outcome.ticket.released.v1" { user: UserId, hold: HoldId };
    /// The hold is over; the ticket is for sale again.
    TicketExpired "holdfast.outcome.ticket.expired.v1" { user: UserId, hold: HoldId };
    /// The ticket is the user's.
    TicketSold "holdfast.outcome.ticket.sold.v1" { user: UserId, checkout: CheckoutId };
    /// The ticket stays the user's, and is not for sale again: once it is returned, `ticket.withdrawn` follows.
    TicketOffSale "holdfast.outcome.ticket.off_sale.v1" { user: UserId, checkout: CheckoutId };
    /// The sale is undone; the ticket is for sale again.
    TicketReturned "holdfast.outcome.ticket.returned.v1" { user: UserId, checkout: CheckoutId };
    /// The ticket is no longer for sale.
    TicketWithdrawn "holdfast.outcome.ticket.withdrawn.v1" {};
    /// A rule forbids what was asked; nothing changed.
    ReservationRefused "holdfast.outcome.reservation.refused.v1" { reason: RefusalReason };
}

earlier_reasons! {
    /// Why a rule forbids what was asked.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    #[schemars(inline)]
    RefusalReason
    UnknownTicket "unknown_ticket": "No such ticket was ever listed.";
    AlreadyListed "already_listed": "The ticket is for sale already.";
    Held "held": "Somebody else holds the ticket.";
    AlreadyYours "already_yours": "The user holds the ticket already.";
    Sold "sold": "The ticket is sold.";
    Withdrawn "withdrawn": "The ticket is not for sale.";
    NotHeld "not_held": "Nobody holds the ticket.";
    NotYourHold "not_your_hold": "The ticket is held by another user, or by another hold.";
    HoldForOutOfBounds "hold_for_out_of_bounds": "`hold_for` is not within 1 second and 24 hours.";
}
