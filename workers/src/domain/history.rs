//! A ticket as it was: its state follows from what was told of it.

use holdfast_schemas::Told;
use time::OffsetDateTime;

use super::{Hold, Sale, State, Ticket};

impl Ticket {
    /// The ticket once one more outcome was told of it; none when that outcome cannot follow.
    pub fn after(before: Option<Ticket>, told: Told, version: i64, changed_at: OffsetDateTime) -> Option<Ticket> {
        let (show, seat, price, state) = match (told, before) {
            (Told::TicketListed { show, seat, price }, _) => (show, seat, price, State::Available),
            (Told::TicketChanged { show, seat, price }, Some(before)) => (show, seat, price, before.state),
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

fn state_after(told: Told, state: State) -> Option<State> {
    Some(match (told, state) {
        (Told::TicketHeld { user, hold, until }, _) => State::Held(Hold { id: hold, user, until }),
        (Told::TicketReleased { .. } | Told::TicketExpired { .. } | Told::TicketReturned { .. }, _) => State::Available,
        (Told::TicketSold { user, checkout }, State::Held(hold)) => State::Sold(Sale {
            hold: hold.id,
            user,
            checkout,
        }),
        (Told::TicketWithdrawn, _) => State::Withdrawn,
        (Told::ReservationRefused { .. }, state) => state,
        _ => return None,
    })
}
