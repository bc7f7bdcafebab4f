//! A stream: one public topic with what is asked on it, and the topics that follow from it.

use std::fmt::{Debug, Display};
use std::hash::Hash;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::text::{Invalid, TicketId, UserId};
use crate::version::Version;

/// What may be asked on one public topic, in its current form, whichever version it came in. Its versions make it known here
/// alone: no other crate can add one.
pub trait EventData: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// What an event is about: its subject and the key of its record.
    type Key: Key;
    /// What becomes of it.
    type Outcome: OutcomeData<Key = Self::Key>;
    /// The public topic.
    const TOPIC: &'static str;
    /// What the gate admitted, gathered by key.
    const ADMITTED: &'static str;
    /// Every version that can be read; a new one is a module and a line.
    const VERSIONS: &'static [Version<Self>];

    /// Type and data in the newest version.
    fn newest(&self) -> (&'static str, Box<RawValue>);
}

/// What is told on one outcome topic, in its current form, whichever version it came in.
pub trait OutcomeData: Clone + Debug + PartialEq + Send + Sync + 'static {
    type Key: Key;
    const TOPIC: &'static str;
    /// Every version that can be read; a new one is a module and a line.
    const VERSIONS: &'static [Version<Self>];

    /// The CloudEvents `type`, in the newest version.
    fn outcome_type(&self) -> &'static str;

    /// The data, in the newest version.
    fn data(&self) -> Value;

    /// Why a rule forbade what was asked, if one did.
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

/// What can be the key of a stream.
pub trait Key:
    Clone + Debug + Display + Eq + Ord + Hash + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static
{
    /// What the key names, in a word.
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
}
