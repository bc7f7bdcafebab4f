//! Holdfast's workers: what all share, then the groups in which an event meets them, then what puts them together and looks
//! after them. ARCHITECTURE.md has the map and the walk of one event.

pub mod config;
pub mod crash;
pub mod error;
pub mod lifecycle;
pub mod metrics;
pub mod transience;

pub mod gate;
pub mod kafka;

pub mod checkout;
pub mod domain;
pub mod objects;
pub mod store;

pub mod mail;
pub mod provider;
pub mod webhook;

pub mod relay;

pub mod admin;
pub mod app;
pub mod register;
pub mod restate_admin;
pub mod verify;
