//! The rights of each role in Kafka, as the file for Kafka's own tools lists them.

use holdfast_schemas::topics::{PAYMENTS_ADMITTED, RESERVATIONS_ADMITTED};

use crate::config::{Config, RoleName};
use crate::register::Path;

const LISTED: &str = include_str!("../../../deploy/kafka/rights");

/// The gate's group in the file.
const GATE_GROUP: &str = "holdfast.gate";

/// A right: an operation on a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Right {
    pub(super) operation: &'static str,
    pub(super) resource: Resource,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Resource {
    Topic(&'static str),
    /// One of them, where the file has a beginning of names.
    Group(String),
    TransactionalId(&'static str),
}

/// The rights of these roles, each once. Without a gate there are neither its topics nor its group.
pub(super) fn of(roles: &[RoleName], config: &Config, path: Path) -> Vec<Right> {
    let mut rights = Vec::new();
    for line in LISTED.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&'static str> = line.split(' ').collect();
        let [of, operation, kind, name] = words[..] else {
            continue;
        };
        if !roles.iter().any(|role| format!("{role:?}").to_lowercase() == of) {
            continue;
        }
        let is_of_the_gate = [RESERVATIONS_ADMITTED, PAYMENTS_ADMITTED, GATE_GROUP].contains(&name);
        if path == Path::Direct && is_of_the_gate {
            continue;
        }
        let resource = match kind {
            "topic" => Resource::Topic(name),
            "group" if name == GATE_GROUP => Resource::Group(config.gate.group.clone()),
            "group" => Resource::Group(name.trim_end_matches('*').to_owned()),
            _ => Resource::TransactionalId(name),
        };
        let right = Right { operation, resource };
        if !rights.contains(&right) {
            rights.push(right);
        }
    }
    rights
}
