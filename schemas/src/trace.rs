//! Trace context as W3C Trace Context writes it in `traceparent`.

use std::fmt;
use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::text::Invalid;

/// A `traceparent` of version 00: 55 characters, lower-case hexadecimal.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Traceparent(String);

impl Traceparent {
    /// Reads version 00, and of a later version the part that 00 has too, as the standard demands.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let invalid = Invalid::new("must be a traceparent by W3C Trace Context");
        let Some((known, rest)) = text.split_at_checked(55) else {
            return Err(invalid);
        };
        let [version, trace, span, flags] = known.split('-').collect::<Vec<_>>()[..] else {
            return Err(invalid);
        };
        let extended = version != "00" && rest.starts_with('-');
        match is_hex(version, 2) && version != "ff" && is_id(trace, 32) && is_id(span, 16) && is_hex(flags, 2) {
            true if rest.is_empty() || extended => Ok(Self(format!("00-{trace}-{span}-{flags}"))),
            _ => Err(invalid),
        }
    }

    /// The trace of an event whose producer gave none: the same for every repeat of it, and not sampled.
    pub fn derive(source: &str, id: &str) -> Self {
        let hash = Sha256::new()
            .chain_update((source.len() as u32).to_be_bytes())
            .chain_update(source)
            .chain_update(id);
        let mut trace = "00-".to_owned();
        for (place, byte) in hash.finalize()[..24].iter().enumerate() {
            let dash = if place == 16 { "-" } else { "" };
            write!(trace, "{dash}{byte:02x}").expect("a String takes everything");
        }
        Self(trace + "-00")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Traceparent({})", self.0)
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_id(text: &str, digits: usize) -> bool {
    is_hex(text, digits) && text.bytes().any(|byte| byte != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_traceparent_is_kept() {
        assert_eq!(Traceparent::parse(GIVEN).unwrap().as_str(), GIVEN);
        let later = GIVEN.replacen("00", "cc", 1) + "-what-the-future-brings";
        assert_eq!(Traceparent::parse(&later).unwrap().as_str(), GIVEN);
    }

    #[test]
    fn an_invalid_traceparent_is_told() {
        for text in [
            "",
            "00",
            &GIVEN.to_uppercase(),
            &GIVEN.replacen("00", "ff", 1),
            &(GIVEN.to_owned() + "-more"),
            &(GIVEN.to_owned() + "0"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            &"\u{e9}".repeat(40),
        ] {
            assert!(Traceparent::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_derived_traceparent_is_valid_and_the_same_each_time() {
        let derived = Traceparent::derive("shop", "1");
        assert_eq!(derived, Traceparent::derive("shop", "1"));
        assert_ne!(derived, Traceparent::derive("shop", "2"));
        assert_eq!(Traceparent::parse(derived.as_str()), Ok(derived));
    }
}
