//! Version 2. Published: never edited.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ProfileValues, UserEvent, v1};
use crate::version::{object, wire};

wire! { UserEvent;
    /// A user's profile gets new values, and loses some, where it is not so already.
    ProfileChanged "holdfast.profile.changed.v2" {
        /// The new values; a field that is absent stays as it is.
        #[serde(deserialize_with = "object")]
        to: ProfileValues,
        /// The fields that are emptied; one that has a new value besides gets that.
        #[serde(default, skip_serializing_if = "Emptied::is_none", deserialize_with = "object")]
        emptied: Emptied,
        /// The change is refused unless the profile has these values; a field that is absent may have any.
        #[serde(
            default,
            skip_serializing_if = "ProfileValues::is_empty",
            deserialize_with = "object"
        )]
        was: ProfileValues
    };
}

/// Fields of a profile that are to hold nothing. An address is only emptied by erasing the user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Emptied {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub name: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub language: bool,
}

impl Emptied {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl From<v1::ProfileChanged> for UserEvent {
    fn from(v1::ProfileChanged { to, was }: v1::ProfileChanged) -> Self {
        let emptied = Emptied::default();
        Self::ProfileChanged(ProfileChanged { to, emptied, was })
    }
}
