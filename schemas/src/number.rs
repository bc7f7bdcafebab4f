//! Whole numbers as JSON knows them: `100`, `1e2` and `100.0` are one number, and beyond 2^53 - 1 they are not exact.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserializer, Serialize, Serializer};

/// The largest whole number that every JSON reader keeps exact.
pub const MAX_SAFE: i64 = (1 << 53) - 1;

/// A whole number from -[`MAX_SAFE`] to [`MAX_SAFE`], in whichever spelling.
pub fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    from.deserialize_any(Whole)
}

/// As [`whole`]; `null` is none.
pub fn optional<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    from.deserialize_option(Optional)
}

/// The nearest number that JSON keeps exact, for `serialize_with`.
pub(crate) fn clamped<S: Serializer>(number: &Option<i64>, to: S) -> Result<S::Ok, S::Error> {
    number.map(|number| number.clamp(-MAX_SAFE, MAX_SAFE)).serialize(to)
}

struct Whole;

impl Visitor<'_> for Whole {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a whole number from -{MAX_SAFE} to {MAX_SAFE}")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<i64, E> {
        match (-MAX_SAFE..=MAX_SAFE).contains(&number) {
            true => Ok(number),
            false => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<i64, E> {
        match i64::try_from(number) {
            Ok(number) => self.visit_i64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
        }
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<i64, E> {
        match number.fract() == 0.0 && number.abs() <= MAX_SAFE as f64 {
            true => Ok(number as i64),
            false => Err(E::invalid_value(Unexpected::Float(number), &self)),
        }
    }
}

struct Optional;

impl<'de> Visitor<'de> for Optional {
    type Value = Option<i64>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        Whole.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<Option<i64>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Option<i64>, D::Error> {
        whole(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<i64> {
        whole(&mut serde_json::Deserializer::from_str(json)).ok()
    }

    #[test]
    fn a_whole_number_may_be_spelled_in_any_way() {
        for json in ["100", "1e2", "100.0", "1000E-1"] {
            assert_eq!(read(json), Some(100), "{json}");
        }
        assert_eq!(read("-0"), Some(0));
    }

    #[test]
    fn what_json_cannot_keep_exact_is_refused() {
        assert_eq!(read("9007199254740991"), Some(MAX_SAFE));
        assert_eq!(read("-9007199254740991"), Some(-MAX_SAFE));
        for json in [
            "9007199254740992",
            "9223372036854775808",
            "1e300",
            "0.5",
            "1e-7",
            "\"1\"",
            "true",
            "null",
        ] {
            assert_eq!(read(json), None, "{json}");
        }
    }
}
