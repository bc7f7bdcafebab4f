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

    /// The same trace, as a span of ours hands it on.
    pub fn handed_on(&self, span: [u8; 8], is_sampled: bool) -> Self {
        let span = span.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes everything");
            text
        });
        let flags = if is_sampled { "01" } else { "00" };
        Self(format!("00-{}-{span}-{flags}", &self.0[3..35]))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn trace_id(&self) -> [u8; 16] {
        bytes(&self.0[3..35])
    }

    /// The span that sent it: the parent of whoever receives it.
    pub fn span_id(&self) -> [u8; 8] {
        bytes(&self.0[36..52])
    }

    /// Whether its sender records the trace.
    pub fn is_sampled(&self) -> bool {
        let [flags] = bytes(&self.0[53..55]);
        flags & 1 == 1
    }

    /// The last 56 bits of the trace's id, which are random, and by which everybody who samples decides alike (W3C Trace Context,
    /// level 2).
    pub fn randomness(&self) -> u64 {
        let bytes: [u8; 7] = bytes(&self.0[21..35]);
        bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte))
    }
}

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    std::array::from_fn(|place| u8::from_str_radix(&hex[2 * place..2 * place + 2], 16).unwrap_or(0))
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
    fn a_traceparent_tells_its_parts_and_is_handed_on() {
        let given = Traceparent::parse(GIVEN).unwrap();
        assert_eq!(
            given.trace_id(),
            0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes()
        );
        assert_eq!(given.span_id(), 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
        assert_eq!(given.randomness(), 0xce_929d_0e0e_4736);
        assert!(given.is_sampled() && !Traceparent::derive("shop", "1").is_sampled());
        let on = given.handed_on([0xab; 8], false);
        assert_eq!(on.as_str(), "00-4bf92f3577b34da6a3ce929d0e0e4736-abababababababab-00");
        assert_eq!(Traceparent::parse(on.as_str()), Ok(on));
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
