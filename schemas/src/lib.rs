//! The contract of Holdfast: what is said on its topics, and in which words.
//!
//! Pure: no clock, no I/O. Everything that enters is decoded here once ([`decode`], [`decode_delivery`]) into types that
//! need no further check; everything that leaves is encoded here.

// In reading order: what an event is, how one is decoded, what becomes of it; then what these are made of.
mod event;
mod reservations;

mod decode;
mod refusal;

mod outcomes;

pub mod catalogue;
pub mod dead_letter;
pub mod topics;

mod version;

mod identity;
mod moment;
mod money;
mod number;
mod reasons;
mod text;
mod trace;

pub use dead_letter::DeadLetter;
pub use decode::{Record, decode, decode_delivery};
pub use event::{Event, Origin, RequestHash};
pub use identity::{HoldId, OutcomeId, hold_id, outcome_id};
pub use iso_currency::Currency;
pub use money::Price;
pub use outcomes::{Outcome, RefusalReason, Reply, ReplyOutcome, Told};
pub use refusal::{DeadLetterReason, Refusal};
pub use reservations::Reservation;
pub use text::{CheckoutId, EventId, Invalid, Seat, ShowId, Source, TicketId, UserId};
pub use trace::Traceparent;
