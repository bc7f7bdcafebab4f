//! Tickets and users as they were: their state, replayed from their outcomes.

use holdfast_schemas::{TicketOutcome, UserOutcome, outcomes};
use time::OffsetDateTime;

use super::{Entity, Hold, OutcomeOf, Sale, State, Ticket, User};

/// An entity whose state can be replayed from its outcomes.
pub trait History: Entity {
    /// The replayed state.
    type Was;

    /// The state after one more outcome; none when that outcome cannot follow.
    fn after(
        before: Option<Self::Was>,
        told: OutcomeOf<Self>,
        version: i64,
        changed_at: OffsetDateTime,
    ) -> Option<Self::Was>;
}

impl History for Ticket {
    /// Outcomes tell everything of a ticket.
    type Was = Ticket;

    fn after(before: Option<Ticket>, told: TicketOutcome, version: i64, changed_at: OffsetDateTime) -> Option<Ticket> {
        let (show, seat, price, state) = match (told, before) {
            (TicketOutcome::TicketListed(outcomes::TicketListed { show, seat, price }), _) => {
                (show, seat, price, State::Available)
            }
            (TicketOutcome::TicketChanged(outcomes::TicketChanged { show, seat, price }), Some(before)) => {
                (show, seat, price, before.state)
            }
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

fn state_after(told: TicketOutcome, state: State) -> Option<State> {
    Some(match (told, state) {
        (TicketOutcome::TicketHeld(outcomes::TicketHeld { user, hold, until }), _) => {
            let (lengthened, price) = (false, None);
            State::Held(Hold {
                id: hold,
                user,
                until,
                lengthened,
                price,
            })
        }
        (TicketOutcome::TicketHoldPriced(outcomes::TicketHoldPriced { hold, price, .. }), State::Held(held))
            if held.id == hold =>
        {
            let price = Some(price);
            State::Held(Hold { price, ..held })
        }
        (
            TicketOutcome::TicketHoldLengthened(outcomes::TicketHoldLengthened { hold, until, .. }),
            State::Held(held),
        ) if held.id == hold => {
            let lengthened = true;
            State::Held(Hold {
                until,
                lengthened,
                ..held
            })
        }
        (TicketOutcome::TicketReleased(_) | TicketOutcome::TicketExpired(_) | TicketOutcome::TicketReturned(_), _) => {
            State::Available
        }
        (TicketOutcome::TicketSold(outcomes::TicketSold { user, checkout }), State::Held(hold)) => State::Sold(Sale {
            hold: hold.id,
            user,
            checkout,
            off_sale: false,
        }),
        (TicketOutcome::TicketOffSale(outcomes::TicketOffSale { user, checkout }), State::Sold(sale))
            if sale.user == user && sale.checkout == checkout =>
        {
            let off_sale = true;
            State::Sold(Sale { off_sale, ..sale })
        }
        (TicketOutcome::TicketWithdrawn(outcomes::TicketWithdrawn {}), _) => State::Withdrawn,
        (TicketOutcome::ReservationRefused(_), state) => state,
        _ => return None,
    })
}

/// A user, as far as outcomes tell. They carry no personal data: of a changed profile only the names of the fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayedUser {
    pub version: i64,
    pub registered_at: OffsetDateTime,
    /// Sum of the credits added so far. The loyalty database has what is left of them.
    pub credits: i64,
    pub changed_at: OffsetDateTime,
}

impl History for User {
    type Was = ReplayedUser;

    fn after(
        before: Option<ReplayedUser>,
        told: UserOutcome,
        version: i64,
        changed_at: OffsetDateTime,
    ) -> Option<ReplayedUser> {
        let (registered_at, credits) = match (told, before) {
            (UserOutcome::UserRegistered(outcomes::UserRegistered {}), None) => (changed_at, 0),
            (UserOutcome::CreditsChanged(outcomes::CreditsChanged { added }), Some(before)) => {
                (before.registered_at, before.credits.saturating_add(added.amount()))
            }
            (UserOutcome::UserRegistered(outcomes::UserRegistered {}), Some(_)) | (_, None) => return None,
            (_, Some(before)) => (before.registered_at, before.credits),
        };
        Some(ReplayedUser {
            version,
            registered_at,
            credits,
            changed_at,
        })
    }
}
