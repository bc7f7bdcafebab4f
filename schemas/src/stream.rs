//! A stream: one public topic with its events, and the topics that belong to it.

use std::fmt::{Debug, Display};
use std::hash::Hash;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::text::{CheckoutId, Invalid, TicketId, UserId};
use crate::version::Version;

/// The events of one public topic, in their current form, whichever version they came in. No other crate can implement this
/// trait, because it cannot name the type of `VERSIONS`.
pub trait EventData: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// The type of an event's subject, which is the key of its record.
    type Key: Key;
    /// The outcomes of these events.
    type Outcome: OutcomeData<Key = Self::Key>;
    /// The public topic.
    const TOPIC: &'static str;
    /// The topic to which the gate writes the events, gathered by key.
    const ADMITTED: &'static str;
    /// Every version that can be read.
    const VERSIONS: &'static [Version<Self>];

    /// Type and data in the newest version.
    fn newest(&self) -> (&'static str, Box<RawValue>);
}

/// The outcomes of one outcome topic, in their current form, whichever version they came in.
pub trait OutcomeData: Clone + Debug + PartialEq + Send + Sync + 'static {
    type Key: Key;
    const TOPIC: &'static str;
    /// Every version that can be read.
    const VERSIONS: &'static [Version<Self>];

    /// The CloudEvents `type` of every outcome, in every version.
    fn types() -> impl Iterator<Item = &'static str> {
        Self::VERSIONS.iter().map(|version| version.name)
    }

    /// The CloudEvents `type`, in the newest version.
    fn outcome_type(&self) -> &'static str;

    /// The data, in the newest version.
    fn data(&self) -> Value;

    /// The reason of a refusal, if this is one.
    fn refusal(&self) -> Option<&'static str>;

    /// Reads the data of an outcome of this type, in whichever version.
    ///
    /// # Errors
    /// The type is none of this topic's, or the data is not its data.
    fn read(outcome_type: &str, data: &str) -> Result<Self, Invalid> {
        let version = Self::VERSIONS.iter().find(|version| version.name == outcome_type);
        let version = version.ok_or(Invalid::new("is an outcome of a type or version not known here"))?;
        Ok((version.read)(data).map_err(Invalid::new)?.current)
    }
}

/// The types that the key of a stream may have.
pub trait Key:
    Clone + Debug + Display + Eq + Ord + Hash + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static
{
    /// The noun for the key's entity.
    const NAMES: &'static str;
    const MAX_BYTES: usize;

    /// # Errors
    /// The text is empty, too long or contains U+0000.
    fn parse(text: &str) -> Result<Self, Invalid>;

    fn as_str(&self) -> &str;
}

macro_rules! key {
    ($($id:ident names $what:literal;)+) => {$(
        impl Key for $id {
            const NAMES: &'static str = $what;
            const MAX_BYTES: usize = $id::MAX_BYTES;

            fn parse(text: &str) -> Result<Self, Invalid> {
                $id::parse(text)
            }

            fn as_str(&self) -> &str {
                $id::as_str(self)
            }
        }
    )+};
}

key! {
    TicketId names "ticket";
    UserId names "user";
    CheckoutId names "checkout";
}
