//! The outcomes of tickets, on the topic `reservations.outcomes`.

mod v1;

use serde_json::Value;
use time::OffsetDateTime;

use super::write;
use crate::identity::HoldId;
use crate::money::Price;
use crate::stream::OutcomeData;
use crate::text::{CheckoutId, Seat, ShowId, TicketId, UserId};
use crate::topics;
use crate::version::{Version, Wire};

pub use v1::RefusalReason;

/// An outcome of a ticket in its current form, whichever version it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TicketOutcome {
    /// The ticket is for sale, at these terms.
    TicketListed {
        show: ShowId,
        seat: Option<Seat>,
        price: Price,
    },
    /// The terms of the ticket are now these.
    TicketChanged {
        show: ShowId,
        seat: Option<Seat>,
        price: Price,
    },
    /// The ticket is held for the user until then.
    TicketHeld {
        user: UserId,
        hold: HoldId,
        until: OffsetDateTime,
    },
    /// The user released the hold; the ticket is for sale again.
    TicketReleased { user: UserId, hold: HoldId },
    /// The hold has ended; the ticket is for sale again.
    TicketExpired { user: UserId, hold: HoldId },
    /// The ticket is sold to the user.
    TicketSold { user: UserId, checkout: CheckoutId },
    /// The sale is undone; the ticket is for sale again.
    TicketReturned { user: UserId, checkout: CheckoutId },
    /// The ticket is no longer for sale.
    TicketWithdrawn,
    /// A rule forbids the request; nothing changed.
    ReservationRefused { reason: RefusalReason },
}

impl OutcomeData for TicketOutcome {
    type Key = TicketId;
    const TOPIC: &'static str = topics::RESERVATIONS_OUTCOMES;
    const VERSIONS: &'static [Version<Self>] = &[
        Version::of::<v1::TicketListed>(),
        Version::of::<v1::TicketChanged>(),
        Version::of::<v1::TicketHeld>(),
        Version::of::<v1::TicketReleased>(),
        Version::of::<v1::TicketExpired>(),
        Version::of::<v1::TicketSold>(),
        Version::of::<v1::TicketReturned>(),
        Version::of::<v1::TicketWithdrawn>(),
        Version::of::<v1::ReservationRefused>(),
    ];

    fn outcome_type(&self) -> &'static str {
        match self {
            Self::TicketListed { .. } => v1::TicketListed::TYPE,
            Self::TicketChanged { .. } => v1::TicketChanged::TYPE,
            Self::TicketHeld { .. } => v1::TicketHeld::TYPE,
            Self::TicketReleased { .. } => v1::TicketReleased::TYPE,
            Self::TicketExpired { .. } => v1::TicketExpired::TYPE,
            Self::TicketSold { .. } => v1::TicketSold::TYPE,
            Self::TicketReturned { .. } => v1::TicketReturned::TYPE,
            Self::TicketWithdrawn => v1::TicketWithdrawn::TYPE,
            Self::ReservationRefused { .. } => v1::ReservationRefused::TYPE,
        }
    }

    fn data(&self) -> Value {
        match self.clone() {
            Self::TicketListed { show, seat, price } => write(v1::TicketListed { show, seat, price }),
            Self::TicketChanged { show, seat, price } => write(v1::TicketChanged { show, seat, price }),
            Self::TicketHeld { user, hold, until } => write(v1::TicketHeld { user, hold, until }),
            Self::TicketReleased { user, hold } => write(v1::TicketReleased { user, hold }),
            Self::TicketExpired { user, hold } => write(v1::TicketExpired { user, hold }),
            Self::TicketSold { user, checkout } => write(v1::TicketSold { user, checkout }),
            Self::TicketReturned { user, checkout } => write(v1::TicketReturned { user, checkout }),
            Self::TicketWithdrawn => write(v1::TicketWithdrawn {}),
            Self::ReservationRefused { reason } => write(v1::ReservationRefused { reason }),
        }
    }

    fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::ReservationRefused { reason } => Some(reason.as_str()),
            _ => None,
        }
    }
}
