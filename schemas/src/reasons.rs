//! How a list of reasons is declared: each with its name on the wire, what it says, and what to do about it.

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

            /// What it says.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning,)+
                }
            }

            /// What can be done about it.
            pub fn mend(self) -> &'static str {
                match self {
                    $(Self::$name => $mend,)+
                }
            }
        }
    };
}
pub(crate) use reasons;
