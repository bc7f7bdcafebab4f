//! The state machine of a ticket: listings, holds and sales that can follow each other.

use holdfast_schemas::{CheckoutId, HoldId, Price, Seat, ShowId, TicketEvent, TicketOutcome, UserId, outcomes};
use time::OffsetDateTime;
use uuid::Uuid;

use super::History;
use crate::verify::report::Promise;

/// A ticket, as far as its log was replayed.
#[derive(Default)]
pub(in crate::verify) struct Ticket {
    listing: Option<Listing>,
    state: State,
    changed_at: Option<OffsetDateTime>,
    /// True if its first steps are not known.
    resumed: bool,
}

#[derive(Default, PartialEq, Eq)]
struct Listing {
    show: String,
    seat: Option<String>,
    amount: i64,
    currency: String,
}

#[derive(Default, Debug, PartialEq, Eq)]
enum State {
    #[default]
    Unlisted,
    /// None of the steps that are known says.
    Unknown,
    Available,
    Held {
        user: UserId,
        hold: HoldId,
        until: OffsetDateTime,
        lengthened: bool,
        /// Minor units, if it is not the ticket's own price.
        price: Option<i64>,
    },
    Sold {
        user: UserId,
        /// None when the log sold a ticket without a hold, or the hold is not known.
        hold: Option<HoldId>,
        checkout: CheckoutId,
        /// True once it is not for sale again when it is returned.
        off_sale: bool,
    },
    Withdrawn,
}

/// A row of the table `tickets`.
#[derive(Debug, Clone)]
pub(in crate::verify) struct TicketRow {
    pub(in crate::verify) show: String,
    pub(in crate::verify) seat: Option<String>,
    pub(in crate::verify) price_amount: i64,
    pub(in crate::verify) price_currency: String,
    pub(in crate::verify) status: String,
    pub(in crate::verify) hold: Option<Uuid>,
    pub(in crate::verify) holder: Option<String>,
    pub(in crate::verify) held_until: Option<OffsetDateTime>,
    pub(in crate::verify) checkout: Option<String>,
    pub(in crate::verify) hold_price: Option<i64>,
    pub(in crate::verify) off_sale: bool,
    pub(in crate::verify) changed_at: OffsetDateTime,
}

impl History for Ticket {
    type Data = TicketEvent;
    type Row = TicketRow;
    const BROKEN: Promise = Promise::Oversold;

    fn resumed() -> Self {
        Self {
            state: State::Unknown,
            resumed: true,
            ..Self::default()
        }
    }

    fn apply(&mut self, told: TicketOutcome, at: OffsetDateTime) -> Result<(), &'static str> {
        self.changed_at = Some(at);
        match told {
            TicketOutcome::TicketListed(outcomes::TicketListed { show, seat, price }) => {
                self.listed(&show, seat.as_ref(), &price)
            }
            TicketOutcome::TicketChanged(outcomes::TicketChanged { show, seat, price }) => {
                self.changed(&show, seat.as_ref(), &price)
            }
            TicketOutcome::TicketHeld(outcomes::TicketHeld { user, hold, until }) => self.held(user, hold, until),
            TicketOutcome::TicketHoldPriced(outcomes::TicketHoldPriced { user, hold, price }) => {
                self.priced(&user, hold, &price)
            }
            TicketOutcome::TicketHoldLengthened(outcomes::TicketHoldLengthened { user, hold, until }) => {
                self.lengthened(&user, hold, until, at)
            }
            TicketOutcome::TicketReleased(outcomes::TicketReleased { user, hold }) => self.released(&user, hold),
            TicketOutcome::TicketExpired(outcomes::TicketExpired { user, hold }) => self.expired(&user, hold, at),
            TicketOutcome::TicketSold(outcomes::TicketSold { user, checkout }) => self.sold(user, checkout, at),
            TicketOutcome::TicketOffSale(outcomes::TicketOffSale { user, checkout }) => self.off_sale(&user, &checkout),
            TicketOutcome::TicketReturned(outcomes::TicketReturned { user, checkout }) => {
                self.returned(&user, &checkout)
            }
            TicketOutcome::TicketWithdrawn(outcomes::TicketWithdrawn {}) => self.withdrawn(),
            TicketOutcome::ReservationRefused(_) if self.state == State::Unlisted => {
                Err("a refusal took a version of a ticket that was never listed")
            }
            TicketOutcome::ReservationRefused(_) => Ok(()),
        }
    }

    fn fits(&self, row: &TicketRow) -> Result<(), &'static str> {
        let listing = Listing {
            show: row.show.clone(),
            seat: row.seat.clone(),
            amount: row.price_amount,
            currency: row.price_currency.clone(),
        };
        let (status, hold, holder, held_until, checkout) = match &self.state {
            State::Unknown => (
                &*row.status,
                row.hold,
                row.holder.as_deref(),
                row.held_until,
                row.checkout.as_deref(),
            ),
            State::Unlisted => ("unlisted", None, None, None, None),
            State::Available => ("available", None, None, None, None),
            State::Withdrawn => ("withdrawn", None, None, None, None),
            State::Held { user, hold, until, .. } => {
                ("held", Some(hold.as_uuid()), Some(user.as_str()), Some(*until), None)
            }
            State::Sold {
                user, hold, checkout, ..
            } => {
                let hold = hold.map(|hold| hold.as_uuid());
                let hold = if self.resumed { hold.or(row.hold) } else { hold };
                ("sold", hold, Some(user.as_str()), None, Some(checkout.as_str()))
            }
        };
        let hold_price = match &self.state {
            State::Unknown => row.hold_price,
            State::Held { price, .. } => *price,
            _ => None,
        };
        let off_sale = match &self.state {
            State::Unknown => row.off_sale,
            State::Sold { off_sale, .. } => *off_sale,
            _ => false,
        };
        let is_listed_so = match &self.listing {
            None => self.resumed,
            Some(known) => *known == listing,
        };
        let same = [
            ("hold_price", row.hold_price == hold_price),
            ("off_sale", row.off_sale == off_sale),
            ("status", row.status == status),
            ("hold", row.hold == hold),
            ("holder", row.holder.as_deref() == holder),
            ("held_until", row.held_until == held_until),
            ("checkout", row.checkout.as_deref() == checkout),
            ("show, seat or price", is_listed_so),
            ("changed_at", self.changed_at == Some(row.changed_at)),
        ];
        match same.iter().find(|(_, same)| !same) {
            Some((column, _)) => Err(column),
            None => Ok(()),
        }
    }

    fn may_go_untold(_: &TicketEvent) -> bool {
        false
    }
}

impl Ticket {
    fn listed(&mut self, show: &ShowId, seat: Option<&Seat>, price: &Price) -> Result<(), &'static str> {
        self.listing = Some(Listing::new(show, seat, price));
        match std::mem::replace(&mut self.state, State::Available) {
            State::Unlisted | State::Withdrawn | State::Unknown => Ok(()),
            State::Available => Err("listed although it was for sale already"),
            State::Held { .. } => Err("listed although it was held"),
            State::Sold { .. } => Err("listed although it was sold and not returned"),
        }
    }

    fn changed(&mut self, show: &ShowId, seat: Option<&Seat>, price: &Price) -> Result<(), &'static str> {
        self.listing = Some(Listing::new(show, seat, price));
        match self.state {
            State::Unlisted => Err("changed although it was never listed"),
            _ => Ok(()),
        }
    }

    fn held(&mut self, user: UserId, hold: HoldId, until: OffsetDateTime) -> Result<(), &'static str> {
        let held = State::Held {
            user,
            hold,
            until,
            lengthened: false,
            price: None,
        };
        match std::mem::replace(&mut self.state, held) {
            State::Available | State::Unknown => Ok(()),
            State::Held { .. } => Err("held although another hold was live: two live holds"),
            State::Sold { .. } => Err("held although it was sold and not returned"),
            State::Unlisted | State::Withdrawn => Err("held although it was not for sale"),
        }
    }

    fn priced(&mut self, of: &UserId, named: HoldId, to: &Price) -> Result<(), &'static str> {
        let State::Held { user, hold, price, .. } = &mut self.state else {
            return self.unknown_or("a hold priced although nobody held it");
        };
        let before = price.replace(to.amount());
        let listing = self.listing.as_ref();
        let is_within =
            listing.is_none_or(|listing| listing.currency == to.currency().code() && to.amount() <= listing.amount);
        match () {
            () if user != of || *hold != named => Err("priced, but another hold than the live one"),
            () if before.is_some() => Err("a hold priced twice"),
            () if !is_within => Err("a hold priced at more than the ticket"),
            () => Ok(()),
        }
    }

    fn lengthened(
        &mut self,
        of: &UserId,
        named: HoldId,
        to: OffsetDateTime,
        at: OffsetDateTime,
    ) -> Result<(), &'static str> {
        let State::Held {
            user,
            hold,
            until,
            lengthened,
            ..
        } = &mut self.state
        else {
            return self.unknown_or("a hold lengthened although nobody held it");
        };
        let before = std::mem::replace(until, to);
        let again = std::mem::replace(lengthened, true);
        match () {
            () if user != of || *hold != named => Err("lengthened, but another hold than the live one"),
            () if again => Err("a hold lengthened twice"),
            () if at >= before => Err("a hold lengthened that was over"),
            () if to <= before => Err("a hold lengthened to an earlier end"),
            () => Ok(()),
        }
    }

    fn released(&mut self, by: &UserId, given_back: HoldId) -> Result<(), &'static str> {
        match std::mem::replace(&mut self.state, State::Available) {
            State::Held { user, hold, .. } if user == *by && hold == given_back => Ok(()),
            State::Held { .. } => Err("released, but by another user or hold than the live one"),
            State::Unknown => Ok(()),
            _ => Err("released although nobody held it"),
        }
    }

    fn expired(&mut self, of: &UserId, ended: HoldId, at: OffsetDateTime) -> Result<(), &'static str> {
        match std::mem::replace(&mut self.state, State::Available) {
            State::Held { user, hold, until, .. } if user == *of && hold == ended => {
                if at < until {
                    Err("expired before the hold was due")
                } else {
                    Ok(())
                }
            }
            State::Held { .. } => Err("expired, but another hold than the live one"),
            State::Unknown => Ok(()),
            _ => Err("expired although nobody held it"),
        }
    }

    fn sold(&mut self, to: UserId, checkout: CheckoutId, at: OffsetDateTime) -> Result<(), &'static str> {
        let (hold, verdict) = match &self.state {
            State::Held { user, hold, until, .. } if *user == to => {
                let live = at < *until;
                (
                    Some(*hold),
                    if live {
                        Ok(())
                    } else {
                        Err("sold by a hold that was over")
                    },
                )
            }
            State::Held { .. } => (None, Err("sold to somebody other than the holder")),
            State::Unknown => (None, Ok(())),
            State::Sold { .. } => (None, Err("sold twice without a return")),
            _ => (None, Err("sold to somebody without a hold")),
        };
        self.state = State::Sold {
            user: to,
            hold,
            checkout,
            off_sale: false,
        };
        verdict
    }

    /// That `withdrawn` follows the return is not judged: an earlier release does not know the mark, and puts the ticket on sale.
    fn off_sale(&mut self, of: &UserId, named: &CheckoutId) -> Result<(), &'static str> {
        let State::Sold {
            user,
            checkout,
            off_sale,
            ..
        } = &mut self.state
        else {
            return self.unknown_or("marked as not for sale again although it was not sold");
        };
        let again = std::mem::replace(off_sale, true);
        match () {
            () if user != of || checkout != named => {
                Err("marked as not for sale again, but in another sale than the one that stood")
            }
            () if again => Err("marked as not for sale again twice"),
            () => Ok(()),
        }
    }

    fn returned(&mut self, by: &UserId, undone: &CheckoutId) -> Result<(), &'static str> {
        match std::mem::replace(&mut self.state, State::Available) {
            State::Sold { user, checkout, .. } if user == *by && checkout == *undone => Ok(()),
            State::Sold { .. } => Err("returned, but from another sale than the one that stood"),
            State::Unknown => Ok(()),
            _ => Err("returned although it was not sold"),
        }
    }

    fn unknown_or(&self, why: &'static str) -> Result<(), &'static str> {
        if self.state == State::Unknown { Ok(()) } else { Err(why) }
    }

    fn withdrawn(&mut self) -> Result<(), &'static str> {
        match std::mem::replace(&mut self.state, State::Withdrawn) {
            State::Available | State::Unknown => Ok(()),
            State::Held { .. } => Err("withdrawn although it was held"),
            State::Sold { .. } => Err("withdrawn although it was sold"),
            State::Unlisted | State::Withdrawn => Err("withdrawn although it was not for sale"),
        }
    }
}

impl Listing {
    fn new(show: &ShowId, seat: Option<&Seat>, price: &Price) -> Self {
        Self {
            show: show.as_str().to_owned(),
            seat: seat.map(|seat| seat.as_str().to_owned()),
            amount: price.amount(),
            currency: price.currency().code().to_owned(),
        }
    }
}
