//! Ids and other short texts. Each is checked once, where it enters; inside, the type is the proof.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The reason why a value does not fit its type, in words for the sender. It never repeats the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub(crate) Cow<'static, str>);

impl Invalid {
    pub(crate) fn new(why: impl Into<Cow<'static, str>>) -> Self {
        Self(why.into())
    }
}

/// U+0000 has a reason of its own among the dead letters, so that it is told apart from a bad length.
pub(crate) const NUL: &str = "must not contain U+0000, which the database cannot store";

macro_rules! text {
    ($($(#[doc = $doc:literal])+ $name:ident, $max:literal $(, $is:ident, $pattern:expr)?;)+) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// The longest one, in bytes of UTF-8.
            pub const MAX_BYTES: usize = $max;

            /// Fails when `text` is empty, longer than [`Self::MAX_BYTES`], contains U+0000, or is no such thing.
            pub fn parse(text: &str) -> Result<Self, Invalid> {
                check(text, Self::MAX_BYTES)?;
                $($is(text)?;)?
                Ok(Self(text.to_owned()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                check(&text, Self::MAX_BYTES)?;
                $($is(&text)?;)?
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                Self::parse(text)
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> String {
                text.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
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
                text_schema(concat!($($doc),+), Self::MAX_BYTES, [$($pattern,)? ANY][0])
            }
        }
    )+};
}

text! {
    /// The `id` of a CloudEvent: with its `source` it names one event for ever.
    EventId, 255;
    /// The `source` of a CloudEvent: who says it.
    Source, 255;
    /// One ticket: one seat of one show. Key and subject of every reservation event.
    TicketId, 255;
    /// One user, by the id that the shop gave.
    UserId, 255;
    /// One show: what a ticket admits to.
    ShowId, 255;
    /// One checkout, by the id that its asker gave.
    CheckoutId, 255;
    /// One payment, by the id that the payment provider gave. Never a card's number.
    PaymentId, 255, is_visible, VISIBLE;
    /// How a user pays: a token of the payment provider, such as `pm_card_visa`. Never a card's number.
    PaymentMethod, 255, is_visible, VISIBLE;
    /// Whom the payment provider takes a user for: the id of a customer there, which the provider gave.
    CustomerId, 255, is_visible, VISIBLE;
    /// One refund of a payment, by the id that the payment provider gave.
    RefundId, 255, is_visible, VISIBLE;
    /// One dispute of a payment, by the id that the payment provider gave.
    DisputeId, 255, is_visible, VISIBLE;
    /// Why a payment failed, in the payment provider's own code (`insufficient_funds`).
    DeclineCode, 255, is_visible, VISIBLE;
    /// Which seat, in words for people ("Stalls, row 4, seat 12").
    Seat, 1_000;
    /// An address of electronic mail, in its plain form (`ann@example.org`).
    Email, 254, is_email, "^[^\\u0000-\\u0020\\u007f@]+@[^\\u0000-\\u0020\\u007f@]+$";
    /// What a person wants to be called.
    Name, 1_000;
    /// A word of the ledger: a kind of movement, or an account.
    LedgerWord, 64, is_word, "^[a-z_]*$";
    /// A language, as a tag of BCP 47 (`de`, `pt-BR`).
    Language, 35, is_language, "^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$";
}

/// Prints them as they are.
macro_rules! printed {
    ($($name:ident),+ $(,)?) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), self.0)
            }
        }
    )+};
}

printed! {
    EventId, Source, TicketId, UserId, ShowId, CheckoutId, PaymentId, PaymentMethod, RefundId, DisputeId, DeclineCode, Seat,
    Language, LedgerWord,
}

/// Prints only that there is one: personal data stands in no log and in no error.
macro_rules! personal {
    ($($name:ident),+ $(,)?) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "([personal])"))
            }
        }
    )+};
}

personal! { Email, Name, CustomerId }

/// How the sources begin under which Holdfast itself asks and tells.
const RESERVED: [&str; 2] = ["holdfast", "restate:"];

impl Source {
    /// Whether only Holdfast itself may use it. An event from outside with such a source could take the place of a step of
    /// our own, which has its id from what everybody can know.
    pub fn is_reserved(&self) -> bool {
        RESERVED.iter().any(|name| self.0.starts_with(name))
    }
}

/// The pattern of any text.
const ANY: &str = "^[^\\u0000]*$";

fn is_email(text: &str) -> Result<(), Invalid> {
    let plain = |part: &str| !part.is_empty() && !part.chars().any(|c| c <= ' ' || c == '\u{7f}' || c == '@');
    match text.split_once('@') {
        Some((local, domain)) if plain(local) && plain(domain) => Ok(()),
        _ => Err(Invalid::new(
            "must be one address of electronic mail, such as ann@example.org",
        )),
    }
}

fn is_language(text: &str) -> Result<(), Invalid> {
    let mut subtags = text.split('-');
    let language = subtags.next().unwrap_or_default();
    let is_tag = (2..=8).contains(&language.len())
        && language.bytes().all(|byte| byte.is_ascii_alphabetic())
        && subtags.all(|tag| (1..=8).contains(&tag.len()) && tag.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    match is_tag {
        true => Ok(()),
        false => Err(Invalid::new("must be a tag of BCP 47, such as de or pt-BR")),
    }
}

/// Visible characters of ASCII, one of them other than a dot: `.` and `..` mean something else in an address.
const VISIBLE: &str = "^[!-~]*[!-\\-/-~][!-~]*$";

fn is_visible(text: &str) -> Result<(), Invalid> {
    let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic()) && text.bytes().any(|byte| byte != b'.');
    match is_visible {
        true => Ok(()),
        false => Err(Invalid::new(
            "must have only visible characters of ASCII, not dots alone",
        )),
    }
}

fn is_word(text: &str) -> Result<(), Invalid> {
    match text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
        true => Ok(()),
        false => Err(Invalid::new("must have only small letters of ASCII and `_`")),
    }
}

fn check(text: &str, max: usize) -> Result<(), Invalid> {
    if text.is_empty() {
        return Err(Invalid::new(format!("is empty; must have 1 to {max} bytes")));
    }
    if text.len() > max {
        return Err(Invalid::new(format!("has {} bytes; must have 1 to {max}", text.len())));
    }
    if text.contains('\0') {
        return Err(Invalid::new(NUL));
    }
    Ok(())
}

fn text_schema(description: &str, max: usize, pattern: &str) -> Schema {
    json_schema!({
        "type": "string",
        "description": description.trim(),
        "$comment": format!("The bound is {max} bytes of UTF-8; maxLength counts characters"),
        "minLength": 1,
        "maxLength": max,
        "pattern": pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_1_to_255_bytes() {
        assert!(TicketId::parse("").is_err());
        assert!(TicketId::parse(&"a".repeat(255)).is_ok());
        assert!(TicketId::parse(&"a".repeat(256)).is_err());
        assert!(
            TicketId::parse(&"\u{e9}".repeat(128)).is_err(),
            "bytes are counted, not characters"
        );
        assert!(EventId::parse(&"a".repeat(10_000)).is_err());
    }

    #[test]
    fn what_holdfast_calls_itself_is_reserved() {
        for (source, reserved) in [
            ("holdfast", true),
            ("holdfast/Checkout", true),
            ("restate:User/ann/checkout", true),
            ("restate", false),
            ("stripe", false),
            ("my-holdfast", false),
        ] {
            assert_eq!(Source::parse(source).unwrap().is_reserved(), reserved, "{source}");
        }
    }

    #[test]
    fn only_u_0000_is_forbidden() {
        assert!(Seat::parse("row\u{0}4").is_err());
        for text in ["\u{1}", "\u{202e}4 wor", "\u{5d0}\u{5d1}", " ", "\n", "\u{10ffff}"] {
            assert_eq!(Seat::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn an_address_is_one_plain_address() {
        assert!(Email::parse("ann@example.org").is_ok());
        for text in [
            "ann",
            "@b",
            "a@",
            "a@b@c",
            "a b@c",
            "a@b\r\nBcc: c@d",
            "a\u{7f}@b",
            "<a@b> x",
        ] {
            assert!(Email::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_personal_is_not_printed() {
        let email = Email::parse("ann@example.org").unwrap();
        let name = Name::parse("Ann").unwrap();
        let printed = format!("{email:?} {name:?} {:?}", Some(&name));
        assert_eq!(printed, "Email([personal]) Name([personal]) Some(Name([personal]))");
    }

    #[test]
    fn a_language_is_a_tag() {
        for text in ["de", "pt-BR", "zh-Hant-TW"] {
            assert!(Language::parse(text).is_ok(), "{text}");
        }
        for text in ["d", "de_DE", "-de", "de-", "d1", "de--DE"] {
            assert!(Language::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_id_is_checked_when_it_is_read_from_json() {
        assert!(serde_json::from_str::<UserId>(r#""""#).is_err());
        assert_eq!(
            serde_json::from_str::<UserId>(r#""ann""#).unwrap(),
            UserId::parse("ann").unwrap()
        );
        assert_eq!(
            serde_json::to_string(&UserId::parse("ann").unwrap()).unwrap(),
            r#""ann""#
        );
    }
}
