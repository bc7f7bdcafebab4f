//! A ticket as it was: its state follows from what was told of it.

use holdfast_schemas::TicketTold;
use time::OffsetDateTime;

use super::{Hold, Sale, State, Ticket};

impl Ticket {
    /// The ticket once one more outcome was told of it; none when that outcome cannot follow.
    pub fn after(before: Option<Ticket>, told: TicketTold, version: i64, changed_at: OffsetDateTime) -> Option<Ticket> {
        let (show, seat, price, state) = match (told, before) {
            (TicketTold::TicketListed { show, seat, price }, _) => (show, seat, price, State::Available),
            (TicketTold::TicketChanged { show, seat, price }, Some(before)) => (show, seat, price, before.state),
            (told, Some(before)) => (before.show, before.seat, before.price, state_after(told, before.state)?),
            (_, None) => return None,
        };
        Some(Ticket {
            version,
            show,
            seat,
            price,
            state,
            changed_at,
        })
    }
}

fn state_after(told: TicketTold, state: State) -> Option<State> {
    Some(match (told, state) {
        (TicketTold::TicketHeld { user, hold, until }, _) => State::Held(Hold { id: hold, user, until }),
        (
            TicketTold::TicketReleased { .. } | TicketTold::TicketExpired { .. } | TicketTold::TicketReturned { .. },
            _,
        ) => State::Available,
        (TicketTold::TicketSold { user, checkout }, State::Held(hold)) => State::Sold(Sale {
            hold: hold.id,
            user,
            checkout,
        }),
        (TicketTold::TicketWithdrawn, _) => State::Withdrawn,
        (TicketTold::ReservationRefused { .. }, state) => state,
        _ => return None,
    })
}
