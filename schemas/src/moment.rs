//! Moments, written as RFC 3339 in UTC and held between two years that every part of the path can store.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;
use time::{OffsetDateTime, UtcOffset};

use crate::text::Invalid;

const FIRST: OffsetDateTime = datetime!(1970-01-01 00:00 UTC);
const LAST: OffsetDateTime = datetime!(9999-12-31 23:59:59.999_999_999 UTC);

/// Reads RFC 3339 in any offset; gives UTC. Fails outside the years 1970 to 9999.
pub(crate) fn parse(text: &str) -> Result<OffsetDateTime, Invalid> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .and_then(|time| time.checked_to_offset(UtcOffset::UTC))
        .filter(|time| (FIRST..=LAST).contains(time))
        .ok_or(Invalid::new(
            "must be a time by RFC 3339 in the years 1970 to 9999, such as 2030-01-31T19:30:00Z",
        ))
}

/// The nearest moment that can be written.
pub(crate) fn clamp(time: OffsetDateTime) -> OffsetDateTime {
    time.clamp(FIRST, LAST).to_offset(UtcOffset::UTC)
}

pub(crate) fn format(time: OffsetDateTime) -> String {
    clamp(time)
        .format(&Rfc3339)
        .expect("RFC 3339 can write every year from 1970 to 9999 in UTC")
}

/// For fields of wire types: `#[serde(with = "crate::moment")]`.
pub(crate) fn serialize<S: serde::Serializer>(time: &OffsetDateTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&format(*time))
}

/// As [`serialize`], the other way.
pub(crate) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<OffsetDateTime, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(from)?;
    parse(&text).map_err(serde::de::Error::custom)
}

/// The schema of a moment.
pub(crate) struct Moment;

impl JsonSchema for Moment {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Moment".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_in_any_offset_and_written_in_utc() {
        assert_eq!(
            format(parse("2030-01-31T20:30:00.25+01:00").unwrap()),
            "2030-01-31T19:30:00.25Z"
        );
    }

    #[test]
    fn an_absurd_time_is_refused() {
        for text in [
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:30:00+01:00",
            "9999-12-31T23:59:59-01:00",
            "0000-01-01T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "2030-02-30T00:00:00Z",
            "2030-01-01T00:00:00",
            "1893456000",
            "",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
