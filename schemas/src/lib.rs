//! The contract of Holdfast: the records on its topics, and their formats.
//!
//! Pure: no clock, no I/O. Everything that enters is decoded here once ([`decode`], [`decode_delivery`]) into types that
//! need no further check; everything that leaves is encoded here.

// In reading order: streams, events, decoding, outcomes; then the parts that these consist of.
mod stream;

mod event;
mod payments;
mod reservations;

mod decode;
mod refusal;

pub mod outcomes;

pub mod ledger;

pub mod catalogue;
pub mod dead_letter;
pub mod topics;

/// The data of each type of event, in its newest version.
pub mod events {
    pub use crate::payments::v1::*;
    pub use crate::payments::v2::{PaymentDisputed, ProfileChanged};
    pub use crate::reservations::v1::*;
    pub use crate::reservations::v2::ReservationRequested;
}

mod version;

mod identity;
mod list;
mod moment;
mod money;
pub mod number;
mod reasons;
mod text;
mod trace;

pub use dead_letter::DeadLetter;
pub use decode::{Record, Undecoded, decode, decode_delivery};
pub use event::{Event, Origin, RequestHash};
pub use identity::{HoldId, MovementId, OutcomeId, hold_id, outcome_id};
pub use iso_currency::Currency;
pub use list::List;
pub use money::{Credits, Price};
pub use outcomes::{
    CheckoutFailure, OUTCOME_SOURCE, Outcome, RefusalReason, Reply, ReplyOutcome, TicketOutcome, UserOutcome,
    UserRefusalReason,
};
pub use payments::{DisputeFunds, DisputeStatus, Emptied, ProfileValues, RefundStatus, UserEvent};
pub use refusal::{DeadLetterReason, Refusal};
pub use reservations::TicketEvent;
pub use stream::{EventData, Key, OutcomeData};
pub use text::{
    CheckoutId, CustomerId, DeclineCode, DisputeId, Email, EventId, Invalid, Language, LedgerWord, Name, PaymentId,
    PaymentMethod, RefundId, Seat, ShowId, Source, TicketId, UserId,
};
pub use trace::Traceparent;
