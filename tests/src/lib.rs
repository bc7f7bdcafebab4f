//! Real servers for the proofs of Holdfast, and what drives them. Never shipped.

pub mod kit;
pub mod load;
pub mod monitoring;
pub mod on_call;
pub mod traffic;
