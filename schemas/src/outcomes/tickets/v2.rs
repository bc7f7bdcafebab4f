//! Version 2. Published: never edited. (A new reason for a refusal needs a version 3 of `reservation.refused`.)

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{TicketOutcome, v1};
use crate::reasons::reasons;
use crate::text::Invalid;
use crate::version::wire;

wire! { TicketOutcome;
    /// A rule forbids what was asked; nothing changed.
    ReservationRefused "holdfast.outcome.reservation.refused.v2" { reason: RefusalReason };
}

impl From<v1::ReservationRefused> for TicketOutcome {
    fn from(v1::ReservationRefused { reason }: v1::ReservationRefused) -> Self {
        let reason = RefusalReason::parse(reason.as_str()).expect("no reason was ever dropped");
        Self::ReservationRefused(ReservationRefused { reason })
    }
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
    PriceNotTrusted "price_not_trusted": "The source of the event may not say what a ticket costs.", "Leave the price out, or name the source in `--price-sources` (HOLDFAST_PRICE_SOURCES).";
    PriceOutOfBounds "price_out_of_bounds": "The price is higher than the ticket's own, or in another currency.", "Ask for at most the ticket's own price.";
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
