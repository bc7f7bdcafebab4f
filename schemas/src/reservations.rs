//! The events of the topic `reservations`, about tickets.

pub(crate) mod v1;

use serde_json::value::RawValue;

use crate::identity::HoldId;
use crate::money::Price;
use crate::number::MAX_SAFE;
use crate::outcomes::TicketOutcome;
use crate::stream::EventData;
use crate::text::{Seat, ShowId, TicketId, UserId};
use crate::topics;
use crate::version::{Version, write};

/// An event of a ticket in its current form, whichever version it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TicketEvent {
    /// A ticket is for sale, at these terms.
    TicketListed {
        show: ShowId,
        seat: Option<Seat>,
        price: Price,
    },
    /// A ticket is no longer for sale.
    TicketWithdrawn,
    /// A user asks to hold the ticket. `hold_for` is in seconds and may have any value: a rule checks it.
    ReservationRequested { user: UserId, hold_for: Option<i64> },
    /// A user releases a hold.
    ReservationReleased { user: UserId, hold: HoldId },
}

impl EventData for TicketEvent {
    type Key = TicketId;
    type Outcome = TicketOutcome;
    const TOPIC: &'static str = topics::RESERVATIONS;
    const ADMITTED: &'static str = topics::RESERVATIONS_ADMITTED;
    const VERSIONS: &'static [Version<Self>] = &[
        Version::of::<v1::TicketListed>(),
        Version::of::<v1::TicketWithdrawn>(),
        Version::of::<v1::ReservationRequested>(),
        Version::of::<v1::ReservationReleased>(),
    ];

    fn newest(&self) -> (&'static str, Box<RawValue>) {
        match self.clone() {
            Self::TicketListed { show, seat, price } => write(v1::TicketListed { show, seat, price }),
            Self::TicketWithdrawn => write(v1::TicketWithdrawn {}),
            Self::ReservationRequested { user, hold_for } => {
                // Beyond what JSON keeps exact; the rule refuses the bound as well.
                let hold_for = hold_for.map(|seconds| seconds.clamp(-MAX_SAFE, MAX_SAFE));
                write(v1::ReservationRequested { user, hold_for })
            }
            Self::ReservationReleased { user, hold } => write(v1::ReservationReleased { user, hold }),
        }
    }
}
