//! The outcomes of tickets, on the topic `reservations.outcomes`.

pub(crate) mod v1;
pub(crate) mod v2;

use serde_json::Value;

use crate::stream::OutcomeData;
use crate::text::TicketId;
use crate::topics;
use crate::version::{Version, newest};

newest! {
    /// An outcome of a ticket in its current form, whichever version it came in.
    TicketOutcome {
        TicketListed(v1::TicketListed),
        TicketChanged(v1::TicketChanged),
        TicketHeld(v1::TicketHeld),
        TicketHoldPriced(v1::TicketHoldPriced),
        TicketHoldLengthened(v1::TicketHoldLengthened),
        TicketReleased(v1::TicketReleased),
        TicketExpired(v1::TicketExpired),
        TicketSold(v1::TicketSold),
        TicketOffSale(v1::TicketOffSale),
        TicketReturned(v1::TicketReturned),
        TicketWithdrawn(v1::TicketWithdrawn),
        ReservationRefused(v2::ReservationRefused),
    }
    earlier { v1::ReservationRefused }
}

impl OutcomeData for TicketOutcome {
    type Key = TicketId;
    const TOPIC: &'static str = topics::RESERVATIONS_OUTCOMES;
    const VERSIONS: &'static [Version<Self>] = Self::VERSIONS;

    fn outcome_type(&self) -> &'static str {
        self.written().type_name()
    }

    fn data(&self) -> Value {
        self.written().value()
    }

    fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::ReservationRefused(v2::ReservationRefused { reason }) => Some(reason.as_str()),
            _ => None,
        }
    }
}
