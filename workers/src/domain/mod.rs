//! The rules, pure: state and input in, decision out. No clock, no I/O, no randomness: time and ids are parameters.

pub mod checkout;
mod entity;
mod history;
pub mod ledger;
pub mod quarantine;
mod recovery;
pub mod ticket;
pub mod user;

#[cfg(test)]
mod model;

pub use entity::{Decision, Entity, KeyOf, OutcomeOf};
pub use history::{History, ReplayedUser};
pub use recovery::{Recoverable, Unrecoverable};
pub use ticket::{Hold, Sale, State, Ticket};
pub use user::User;
