//! The events of the topic `payments`: what may be asked about users.

pub(crate) mod v1;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::money::Credits;
use crate::outcomes::UserTold;
use crate::stream::Asked;
use crate::text::{Email, Language, Name, UserId};
use crate::topics;
use crate::version::{Version, write};

/// What is asked, in its current form, whichever version it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payment {
    /// A user is new, with this profile.
    UserRegistered {
        email: Email,
        name: Option<Name>,
        language: Option<Language>,
    },
    /// The profile gets these values, if it has those that `was` names.
    ProfileChanged { to: ProfileValues, was: ProfileValues },
    /// The user gets credits.
    CreditsAdded { amount: Credits },
}

/// Some fields of a profile, by value; an absent one is not meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct ProfileValues {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<Email>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
}

impl ProfileValues {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Asked for Payment {
    type Key = UserId;
    type Told = UserTold;
    const TOPIC: &'static str = topics::PAYMENTS;
    const ADMITTED: &'static str = topics::PAYMENTS_ADMITTED;
    const VERSIONS: &'static [Version<Self>] = &[
        Version::of::<v1::UserRegistered>(),
        Version::of::<v1::ProfileChanged>(),
        Version::of::<v1::CreditsAdded>(),
    ];

    fn newest(&self) -> (&'static str, Box<RawValue>) {
        match self.clone() {
            Self::UserRegistered { email, name, language } => write(v1::UserRegistered { email, name, language }),
            Self::ProfileChanged { to, was } => write(v1::ProfileChanged { to, was }),
            Self::CreditsAdded { amount } => write(v1::CreditsAdded { amount }),
        }
    }
}
