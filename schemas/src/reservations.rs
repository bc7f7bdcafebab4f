//! The events of the topic `reservations`, about tickets.

pub(crate) mod v1;
pub(crate) mod v2;

use serde_json::value::RawValue;

use crate::outcomes::TicketOutcome;
use crate::stream::EventData;
use crate::text::TicketId;
use crate::topics;
use crate::version::{Version, newest};

newest! {
    /// An event of a ticket in its current form, whichever version it came in.
    TicketEvent {
        TicketListed(v1::TicketListed),
        TicketWithdrawn(v1::TicketWithdrawn),
        ReservationRequested(v2::ReservationRequested),
        ReservationReleased(v1::ReservationReleased),
    }
    earlier { v1::ReservationRequested }
}

impl EventData for TicketEvent {
    type Key = TicketId;
    type Outcome = TicketOutcome;
    const TOPIC: &'static str = topics::RESERVATIONS;
    const ADMITTED: &'static str = topics::RESERVATIONS_ADMITTED;
    const VERSIONS: &'static [Version<Self>] = Self::VERSIONS;

    fn newest(&self) -> (&'static str, Box<RawValue>) {
        let data = self.written();
        (data.type_name(), data.canonical())
    }
}
