//! The rules, pure: state and input in, decision out. No clock, no I/O, no randomness: time and ids are parameters.

mod history;
mod ticket;

#[cfg(test)]
mod model;

pub use ticket::{Decision, Hold, Input, Sale, State, Ticket, decide};
