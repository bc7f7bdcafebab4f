//! The life of one ticket: listed, held, sold, returned, withdrawn.

use holdfast_schemas::{
    CheckoutId, EventId, HoldId, Price, RefusalReason, Seat, ShowId, Source, TicketEvent, TicketId, TicketOutcome,
    UserId, events, hold_id, outcomes,
};
use serde::Serialize;
use time::{Duration, OffsetDateTime};

use super::{Decision, Entity};

/// Shortest hold, and the longest that an installation may allow, in seconds: 1 s to 24 h.
pub const HOLD_FOR_SECONDS: std::ops::RangeInclusive<i64> = 1..=24 * 60 * 60;

/// The settings of the installation that the rules need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldTerms {
    /// Length of a hold whose request sets none, in seconds.
    pub length: i64,
    /// Longest hold that a request may ask for, in seconds.
    pub longest: i64,
    /// The sources of events that may say what a ticket costs.
    pub price_sources: Vec<Source>,
}

impl Default for HoldTerms {
    fn default() -> Self {
        Self {
            length: 15 * 60,
            longest: *HOLD_FOR_SECONDS.end(),
            price_sources: Vec::new(),
        }
    }
}

/// A ticket that was listed at least once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Sequence of the ticket's newest outcome.
    pub version: i64,
    pub show: ShowId,
    pub seat: Option<Seat>,
    pub price: Price,
    pub state: State,
    /// Moment of the last change; no decision is taken at an earlier one.
    pub changed_at: OffsetDateTime,
}

/// The state of a ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Available,
    /// Kept for a user until a moment. From that moment on the hold is due: it keeps no user from the ticket, and the next
    /// input ends it.
    Held(Hold),
    Sold(Sale),
    Withdrawn,
}

/// A ticket kept for a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub id: HoldId,
    pub user: UserId,
    pub until: OffsetDateTime,
    /// True once a checkout has put off its end, which happens once.
    pub lengthened: bool,
    /// The price of the ticket by this hold, if it is not the ticket's own.
    pub price: Option<Price>,
}

/// A ticket sold to a user out of a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sale {
    pub hold: HoldId,
    pub user: UserId,
    pub checkout: CheckoutId,
    /// True once the ticket was withdrawn: it is not for sale again when it is returned.
    pub off_sale: bool,
}

/// A price that comes with a reservation, and the source of the event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AskedPrice {
    pub price: Price,
    pub source: Source,
}

/// The inputs of a ticket's rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    List {
        show: ShowId,
        seat: Option<Seat>,
        price: Price,
    },
    Withdraw,
    Reserve {
        user: UserId,
        /// Seconds; absent means the installation's setting ([`HoldTerms`]).
        hold_for: Option<i64>,
        /// The price of the ticket by this hold; absent means the ticket's own.
        #[serde(skip_serializing_if = "Option::is_none")]
        price: Option<AskedPrice>,
        /// The id that the hold will have.
        hold: HoldId,
    },
    Release {
        user: UserId,
        hold: HoldId,
    },
    /// Internal: end this hold if it is due.
    Expire {
        hold: HoldId,
    },
    /// Internal: a checkout has this hold last at least until then.
    Lengthen {
        hold: HoldId,
        #[serde(with = "time::serde::rfc3339")]
        until: OffsetDateTime,
    },
    /// Internal: a checkout sells the ticket out of its hold.
    Sell {
        user: UserId,
        hold: HoldId,
        checkout: CheckoutId,
    },
    /// Internal: a checkout returns the ticket that it sold. `resell`: it is for sale again, unless it was withdrawn before.
    Return {
        checkout: CheckoutId,
        #[serde(skip_serializing_if = "is_true")]
        resell: bool,
    },
    /// Internal: the ticket's show is cancelled. Unless it is sold, it is not for sale any more, and nobody's hold keeps it.
    CallOff,
}

fn is_true(says: &bool) -> bool {
    *says
}

impl Hold {
    /// True if it is this hold, and a checkout may put its end off to that moment.
    pub(super) fn may_last(&self, hold: HoldId, until: OffsetDateTime) -> bool {
        self.id == hold && !self.lengthened && self.until < until
    }
}

impl Entity for Ticket {
    type Data = TicketEvent;
    type Input = Input;

    fn version(&self) -> i64 {
        self.version
    }

    fn changed_at(&self) -> OffsetDateTime {
        self.changed_at
    }

    fn input(asked: TicketEvent, source: &Source, id: &EventId, key: &TicketId) -> Input {
        match asked {
            TicketEvent::TicketListed(events::TicketListed { show, seat, price }) => Input::List { show, seat, price },
            TicketEvent::TicketWithdrawn(events::TicketWithdrawn {}) => Input::Withdraw,
            TicketEvent::ReservationRequested(events::ReservationRequested { user, hold_for, price }) => {
                let source = source.clone();
                Input::Reserve {
                    user,
                    hold_for,
                    hold: hold_id(source.as_str(), id.as_str(), key.as_str()),
                    price: price.map(|price| AskedPrice { price, source }),
                }
            }
            TicketEvent::ReservationReleased(events::ReservationReleased { user, hold }) => {
                Input::Release { user, hold }
            }
        }
    }

    /// A return: the buyer's money goes back, and the buyer's own events do not wait for an operator to look at the ticket's. It overtakes no
    /// event of the ticket, as none asks for it. What is parked is decided after it, in its order, on the ticket that was returned; until then
    /// nobody gets that one, as whatever holds or sells tickets leaves those in quarantine alone.
    fn passes_quarantine(input: &Input) -> bool {
        matches!(input, Input::Return { .. })
    }
}

/// [`decide`] by the settings of an installation.
pub fn holding_by(terms: HoldTerms) -> impl Fn(Option<&Ticket>, Input, OffsetDateTime) -> Decision<Ticket> + Clone {
    move |ticket, input, now| decide_by(&terms, ticket, input, now)
}

/// Decides one input. `now` is the moment of the decision and never earlier than the ticket's last change.
pub fn decide(ticket: Option<&Ticket>, input: Input, now: OffsetDateTime) -> Decision<Ticket> {
    decide_by(&HoldTerms::default(), ticket, input, now)
}

fn decide_by(terms: &HoldTerms, ticket: Option<&Ticket>, input: Input, now: OffsetDateTime) -> Decision<Ticket> {
    let Some(ticket) = ticket else {
        return decide_unlisted(input, now);
    };
    match &ticket.state {
        State::Available => decide_available(terms, ticket, input, now),
        State::Held(hold) if now < hold.until => decide_held(ticket, hold, input, now),
        State::Held(hold) => decide_due(terms, ticket, hold, input, now),
        State::Sold(sale) => decide_sold(ticket, sale, input, now),
        State::Withdrawn => decide_withdrawn(ticket, input, now),
    }
}

fn decide_unlisted(input: Input, now: OffsetDateTime) -> Decision<Ticket> {
    match input {
        Input::List { show, seat, price } => {
            let outcome = TicketOutcome::TicketListed(outcomes::TicketListed {
                show: show.clone(),
                seat: seat.clone(),
                price,
            });
            let next = Ticket {
                version: 1,
                show,
                seat,
                price,
                state: State::Available,
                changed_at: now,
            };
            Decision::Transition {
                next: Some(next),
                outcomes: vec![outcome],
            }
        }
        Input::Withdraw | Input::Reserve { .. } | Input::Release { .. } => Decision::Transition {
            next: None,
            outcomes: vec![refusal(RefusalReason::UnknownTicket)],
        },
        Input::Expire { .. } | Input::Lengthen { .. } | Input::Sell { .. } | Input::Return { .. } | Input::CallOff => {
            Decision::Nothing
        }
    }
}

fn decide_available(terms: &HoldTerms, ticket: &Ticket, input: Input, now: OffsetDateTime) -> Decision<Ticket> {
    match input {
        Input::List { .. } => refuse(ticket, RefusalReason::AlreadyListed, now),
        Input::Withdraw | Input::CallOff => {
            tell(ticket, State::Withdrawn, vec![outcomes::TicketWithdrawn {}.into()], now)
        }
        Input::Reserve {
            user,
            hold_for,
            hold,
            price,
        } => reserve(
            terms,
            ticket,
            Wanted {
                user,
                hold_for,
                hold,
                price,
            },
            vec![],
            now,
        ),
        Input::Release { .. } => refuse(ticket, RefusalReason::NotHeld, now),
        Input::Expire { .. } | Input::Lengthen { .. } | Input::Sell { .. } | Input::Return { .. } => Decision::Nothing,
    }
}

fn decide_held(ticket: &Ticket, held: &Hold, input: Input, now: OffsetDateTime) -> Decision<Ticket> {
    match input {
        Input::List { .. } | Input::Withdraw => refuse(ticket, RefusalReason::Held, now),
        Input::Reserve { user, .. } if user == held.user => refuse(ticket, RefusalReason::AlreadyYours, now),
        Input::Reserve { .. } => refuse(ticket, RefusalReason::Held, now),
        Input::Release { user, hold } if user == held.user && hold == held.id => tell(
            ticket,
            State::Available,
            vec![outcomes::TicketReleased { user, hold }.into()],
            now,
        ),
        Input::Release { .. } => refuse(ticket, RefusalReason::NotYourHold, now),
        Input::CallOff => {
            let released = outcomes::TicketReleased {
                user: held.user.clone(),
                hold: held.id,
            };
            let outcomes = vec![released.into(), outcomes::TicketWithdrawn {}.into()];
            tell(ticket, State::Withdrawn, outcomes, now)
        }
        Input::Lengthen { hold, until } if held.may_last(hold, until) => lengthen(ticket, held, until, now),
        Input::Sell { user, hold, checkout } if user == held.user && hold == held.id => {
            let outcome = TicketOutcome::TicketSold(outcomes::TicketSold {
                user: user.clone(),
                checkout: checkout.clone(),
            });
            let sale = Sale {
                hold,
                user,
                checkout,
                off_sale: false,
            };
            tell(ticket, State::Sold(sale), vec![outcome], now)
        }
        Input::Expire { .. } | Input::Lengthen { .. } | Input::Sell { .. } | Input::Return { .. } => Decision::Nothing,
    }
}

/// Decides about a ticket whose hold is due: the hold ends first, then the input is decided.
fn decide_due(terms: &HoldTerms, ticket: &Ticket, due: &Hold, input: Input, now: OffsetDateTime) -> Decision<Ticket> {
    let expired = TicketOutcome::TicketExpired(outcomes::TicketExpired {
        user: due.user.clone(),
        hold: due.id,
    });
    match input {
        Input::List { .. } => tell(
            ticket,
            State::Available,
            vec![expired, refusal(RefusalReason::AlreadyListed)],
            now,
        ),
        Input::Withdraw | Input::CallOff => tell(
            ticket,
            State::Withdrawn,
            vec![expired, TicketOutcome::TicketWithdrawn(outcomes::TicketWithdrawn {})],
            now,
        ),
        Input::Reserve {
            user,
            hold_for,
            hold,
            price,
        } => reserve(
            terms,
            ticket,
            Wanted {
                user,
                hold_for,
                hold,
                price,
            },
            vec![expired],
            now,
        ),
        Input::Release { .. } => tell(ticket, State::Available, vec![expired], now),
        Input::Expire { hold } if hold == due.id => tell(ticket, State::Available, vec![expired], now),
        Input::Expire { .. } | Input::Lengthen { .. } | Input::Sell { .. } | Input::Return { .. } => Decision::Nothing,
    }
}

fn decide_sold(ticket: &Ticket, sale: &Sale, input: Input, now: OffsetDateTime) -> Decision<Ticket> {
    match input {
        Input::List { .. } | Input::Reserve { .. } | Input::Release { .. } => refuse(ticket, RefusalReason::Sold, now),
        Input::Withdraw if sale.off_sale => refuse(ticket, RefusalReason::Withdrawn, now),
        Input::Withdraw => {
            let outcome = outcomes::TicketOffSale {
                user: sale.user.clone(),
                checkout: sale.checkout.clone(),
            };
            let sale = Sale {
                off_sale: true,
                ..sale.clone()
            };
            tell(ticket, State::Sold(sale), vec![outcome.into()], now)
        }
        Input::Sell { checkout, .. } if checkout == sale.checkout => Decision::AlreadyDone,
        Input::Return { checkout, resell } if checkout == sale.checkout => {
            let returned = TicketOutcome::TicketReturned(outcomes::TicketReturned {
                user: sale.user.clone(),
                checkout,
            });
            match resell && !sale.off_sale {
                true => tell(ticket, State::Available, vec![returned], now),
                false => tell(
                    ticket,
                    State::Withdrawn,
                    vec![returned, outcomes::TicketWithdrawn {}.into()],
                    now,
                ),
            }
        }
        Input::Expire { .. } | Input::Lengthen { .. } | Input::Sell { .. } | Input::Return { .. } | Input::CallOff => {
            Decision::Nothing
        }
    }
}

fn decide_withdrawn(ticket: &Ticket, input: Input, now: OffsetDateTime) -> Decision<Ticket> {
    match input {
        Input::List { show, seat, price } => {
            let outcome = TicketOutcome::TicketListed(outcomes::TicketListed {
                show: show.clone(),
                seat: seat.clone(),
                price,
            });
            let terms = Ticket {
                show,
                seat,
                price,
                ..ticket.clone()
            };
            tell(&terms, State::Available, vec![outcome], now)
        }
        Input::Withdraw | Input::Reserve { .. } => refuse(ticket, RefusalReason::Withdrawn, now),
        Input::Release { .. } => refuse(ticket, RefusalReason::NotHeld, now),
        Input::Expire { .. } | Input::Lengthen { .. } | Input::Sell { .. } | Input::Return { .. } | Input::CallOff => {
            Decision::Nothing
        }
    }
}

/// A hold that is asked for.
struct Wanted {
    user: UserId,
    hold_for: Option<i64>,
    hold: HoldId,
    price: Option<AskedPrice>,
}

/// Holds a free ticket; `before` are the outcomes that come first.
fn reserve(
    terms: &HoldTerms,
    ticket: &Ticket,
    wanted: Wanted,
    before: Vec<TicketOutcome>,
    now: OffsetDateTime,
) -> Decision<Ticket> {
    let mut outcomes = before;
    if let Some(reason) = forbidden(terms, ticket, &wanted) {
        outcomes.push(refusal(reason));
        return tell(ticket, State::Available, outcomes, now);
    }
    let Wanted {
        user,
        hold_for,
        hold,
        price,
    } = wanted;
    let until = now + Duration::seconds(hold_for.unwrap_or(terms.length));
    outcomes.push(TicketOutcome::TicketHeld(outcomes::TicketHeld {
        user: user.clone(),
        hold,
        until,
    }));
    let price = price.map(|asked| asked.price).filter(|price| *price != ticket.price);
    if let Some(price) = price {
        let user = user.clone();
        outcomes.push(outcomes::TicketHoldPriced { user, hold, price }.into());
    }
    let held = Hold {
        id: hold,
        user,
        until,
        lengthened: false,
        price,
    };
    tell(ticket, State::Held(held), outcomes, now)
}

/// The reason why a free ticket is not held so long, or at such a price.
fn forbidden(terms: &HoldTerms, ticket: &Ticket, wanted: &Wanted) -> Option<RefusalReason> {
    let seconds = wanted.hold_for.unwrap_or(terms.length);
    if !(*HOLD_FOR_SECONDS.start()..=terms.longest).contains(&seconds) {
        return Some(RefusalReason::HoldForOutOfBounds);
    }
    let AskedPrice { price, source } = wanted.price.as_ref()?;
    if !terms.price_sources.contains(source) {
        return Some(RefusalReason::PriceNotTrusted);
    }
    let is_within = price.currency() == ticket.price.currency() && price.amount() <= ticket.price.amount();
    (!is_within).then_some(RefusalReason::PriceOutOfBounds)
}

/// Puts off the end of a hold.
fn lengthen(ticket: &Ticket, held: &Hold, until: OffsetDateTime, now: OffsetDateTime) -> Decision<Ticket> {
    let outcome = TicketOutcome::TicketHoldLengthened(outcomes::TicketHoldLengthened {
        user: held.user.clone(),
        hold: held.id,
        until,
    });
    let held = Hold {
        until,
        lengthened: true,
        ..held.clone()
    };
    tell(ticket, State::Held(held), vec![outcome], now)
}

fn refuse(ticket: &Ticket, reason: RefusalReason, now: OffsetDateTime) -> Decision<Ticket> {
    tell(ticket, ticket.state.clone(), vec![refusal(reason)], now)
}

fn refusal(reason: RefusalReason) -> TicketOutcome {
    TicketOutcome::ReservationRefused(outcomes::ReservationRefused { reason })
}

/// Every outcome raises the version by one.
fn tell(ticket: &Ticket, state: State, outcomes: Vec<TicketOutcome>, now: OffsetDateTime) -> Decision<Ticket> {
    let version = ticket.version + outcomes.len() as i64;
    Decision::Transition {
        next: Some(Ticket {
            version,
            state,
            changed_at: now,
            ..ticket.clone()
        }),
        outcomes,
    }
}
