//! Ids that are derived from their cause, so that every computation gives the same id.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use uuid::{Uuid, uuid};

use crate::text::Invalid;

/// Namespaces of UUID version 5. They are part of the contract: another value would be another id for the same thing.
const OUTCOMES: Uuid = uuid!("6a1b7d0e-52c3-4f0a-9d57-3a2b8c61e4f0");
const HOLDS: Uuid = uuid!("c2f4e8a1-0b6d-4e39-8a75-91d3f7b20c5e");

/// The id of the outcome at `place` (from 0) among those that the event `(source, id)` has for `key`.
pub fn outcome_id(source: &str, id: &str, key: &str, place: u32) -> OutcomeId {
    OutcomeId(derive(
        OUTCOMES,
        &[source.as_bytes(), id.as_bytes(), key.as_bytes(), &place.to_be_bytes()],
    ))
}

/// The id of the hold that the event `(source, id)` may place on the ticket `key`.
pub fn hold_id(source: &str, id: &str, key: &str) -> HoldId {
    HoldId(derive(HOLDS, &[source.as_bytes(), id.as_bytes(), key.as_bytes()]))
}

/// Each part stands behind its length (4 bytes, big endian), so that ("ab", "c") and ("a", "bc") differ.
fn derive(namespace: Uuid, parts: &[&[u8]]) -> Uuid {
    let mut name = Vec::with_capacity(parts.iter().map(|part| 4 + part.len()).sum());
    for part in parts {
        name.extend_from_slice(&(part.len() as u32).to_be_bytes());
        name.extend_from_slice(part);
    }
    Uuid::new_v5(&namespace, &name)
}

macro_rules! id {
    ($($(#[doc = $doc:literal])+ $name:ident;)+) => {$(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(pub Uuid);

        impl $name {
            /// Reads the usual 36 characters, in either case.
            pub fn parse(text: &str) -> Result<Self, Invalid> {
                match Uuid::try_parse(text) {
                    Ok(id) if text.len() == 36 => Ok(Self(id)),
                    _ => Err(Invalid::new("must be a UUID of 36 characters")),
                }
            }

            pub fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                Self::parse(&text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": "uuid", "description": concat!($($doc),+).trim() })
            }
        }
    )+};
}

id! {
    /// One hold: one user's claim on one ticket, for a while.
    HoldId;
    /// One outcome. Whoever sees it twice may drop the second.
    OutcomeId;
    /// One movement of money or credits. Its entry is told once.
    MovementId;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_never_change() {
        assert_eq!(
            outcome_id("shop", "1", "A-1", 0).to_string(),
            "b93de453-3c36-5739-9696-559978a71c04"
        );
        assert_eq!(
            hold_id("shop", "1", "A-1").to_string(),
            "3c67ff2d-bee2-5a0a-9cf4-abf4f566f191"
        );
    }

    #[test]
    fn where_one_part_ends_and_the_next_begins_matters() {
        assert_ne!(hold_id("ab", "c", "d"), hold_id("a", "bc", "d"));
        assert_ne!(hold_id("a", "b", "c").0, outcome_id("a", "b", "c", 0).0);
        assert_ne!(outcome_id("a", "b", "c", 0), outcome_id("a", "b", "c", 1));
    }

    #[test]
    fn an_id_is_read_in_one_spelling() {
        let id = hold_id("a", "b", "c");
        assert_eq!(HoldId::parse(&id.to_string().to_uppercase()), Ok(id));
        assert!(HoldId::parse(&id.0.simple().to_string()).is_err());
        assert!(HoldId::parse(&id.0.braced().to_string()).is_err());
        assert!(HoldId::parse("").is_err());
    }
}
