//! The declaration of a list of reasons: each with its name on the wire, its meaning and its mend.

/// An enum of reasons: `Variant "name": "meaning", "mend";`.
macro_rules! reasons {
    ($(#[$attribute:meta])* $reason:ident $($name:ident $text:literal: $meaning:literal, $mend:literal;)+) => {
        $(#[$attribute])*
        pub enum $reason {
            $(#[doc = $meaning] $name,)+
        }

        impl $reason {
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name in outcomes, headers, metrics and reports.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }

            /// The meaning, for people.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning,)+
                }
            }

            /// The mend: what a person can do about it.
            pub fn mend(self) -> &'static str {
                match self {
                    $(Self::$name => $mend,)+
                }
            }
        }
    };
}
pub(crate) use reasons;

/// The reasons of an earlier version, which are only read: `Variant "name": "meaning";`.
macro_rules! earlier_reasons {
    ($(#[$attribute:meta])* $reason:ident $($name:ident $text:literal: $meaning:literal;)+) => {
        $(#[$attribute])*
        pub enum $reason {
            $(#[doc = $meaning] $name,)+
        }

        impl $reason {
            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}
pub(crate) use earlier_reasons;
