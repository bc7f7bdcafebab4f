//! Holdfast's workers: first the modules that all share, then those on the path of an event in its order, then those that
//! compose and operate them. ARCHITECTURE.md has the map and the walk of one event.

pub mod config;
pub mod crash;
pub mod error;
pub mod http;
pub mod lifecycle;
pub mod listener;
pub mod logs;
pub mod metrics;
pub mod postgres;
pub mod printable;
pub mod rounds;
pub mod tls;
pub mod traces;
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
pub mod doctor;
pub mod plan;
pub mod register;
pub mod restate_admin;
pub mod sweep;
pub mod verify;
