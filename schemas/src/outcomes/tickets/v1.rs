//! Version 1. Published: never edited. (A new reason for a refusal needs a version 2 of `reservation.refused`.)

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::identity::HoldId;
use crate::money::Price;
use crate::reasons::reasons;
use crate::text::{CheckoutId, Invalid, Seat, ShowId, UserId};
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
    /// The sale is undone; the ticket is for sale again.
    TicketReturned "holdfast.outcome.ticket.returned.v1" { user: UserId, checkout: CheckoutId };
    /// The ticket is no longer for sale.
    TicketWithdrawn "holdfast.outcome.ticket.withdrawn.v1" {};
    /// A rule forbids what was asked; nothing changed.
    ReservationRefused "holdfast.outcome.reservation.refused.v1" { reason: RefusalReason };
}

reasons! {
    /// Why a rule forbids what was asked.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    #[schemars(inline)]
    RefusalReason
    UnknownTicket "unknown_ticket": "No such ticket was ever listed.", "List it first, or mend the key.";
    AlreadyListed "already_listed": "The ticket is for sale already.", "Withdraw it first, to list it at other terms.";
    Held "held": "Somebody else holds the ticket.", "Try again when the hold is over, or take another ticket.";
    AlreadyYours "already_yours": "The user holds the ticket already.", "Use that hold.";
    Sold "sold": "The ticket is sold.", "Take another ticket.";
    Withdrawn "withdrawn": "The ticket is not for sale.", "Take another ticket, or list it again.";
    NotHeld "not_held": "Nobody holds the ticket.", "Nothing needs to be released.";
    NotYourHold "not_your_hold": "The ticket is held by another user, or by another hold.", "Name the user and hold of `ticket.held`.";
    HoldForOutOfBounds "hold_for_out_of_bounds": "`hold_for` is not within 1 second and the longest hold that the installation allows, at most 24 hours.", "Ask for fewer seconds, or leave it out; `--longest-hold` (HOLDFAST_LONGEST_HOLD) sets the bound.";
}

impl RefusalReason {
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let found = Self::ALL.iter().find(|reason| reason.as_str() == text);
        found.copied().ok_or(Invalid::new("is no reason for a refusal"))
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
