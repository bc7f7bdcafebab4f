//! A dead letter: the record's own key and value, with headers that give the reason and the origin.

use time::OffsetDateTime;

use crate::event::Origin;
use crate::refusal::DeadLetterReason;
use crate::text::Invalid;

pub const REASON: &str = "holdfast-reason";
pub const DETAIL: &str = "holdfast-detail";
pub const ORIGIN_TOPIC: &str = "holdfast-origin-topic";
pub const ORIGIN_PARTITION: &str = "holdfast-origin-partition";
pub const ORIGIN_OFFSET: &str = "holdfast-origin-offset";
/// The broker's timestamp of the record, in milliseconds since 1970.
pub const ORIGIN_TIMESTAMP: &str = "holdfast-origin-timestamp";

/// True for a header of Holdfast's own, false for one that the record came with.
pub fn is_own(header: &str) -> bool {
    header.starts_with("holdfast-")
}

/// The content of a dead letter's headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub reason: DeadLetterReason,
    pub detail: String,
    pub origin: Origin,
}

impl DeadLetter {
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        vec![
            (REASON, self.reason.to_string()),
            (DETAIL, self.detail.clone()),
            (ORIGIN_TOPIC, self.origin.topic.clone()),
            (ORIGIN_PARTITION, self.origin.partition.to_string()),
            (ORIGIN_OFFSET, self.origin.offset.to_string()),
            (ORIGIN_TIMESTAMP, millis(self.origin.time).to_string()),
        ]
    }

    /// Reads the headers of a dead letter among all headers of its record: the last of each name, since a replayed record
    /// that is dead-lettered again carries the older ones too.
    pub fn from_headers<'a>(
        headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) -> Result<DeadLetter, Invalid> {
        let headers: Vec<_> = headers.into_iter().collect();
        let text = |name: &'static str| {
            let last = headers.iter().rev().find(|(header, _)| *header == name);
            let value = last
                .and_then(|(_, value)| *value)
                .ok_or(Invalid::new(format!("header {name} is missing")))?;
            std::str::from_utf8(value).map_err(|_| Invalid::new(format!("header {name} is not UTF-8")))
        };
        let number = |name| {
            text(name)?
                .parse::<i64>()
                .map_err(|_| Invalid::new(format!("header {name} is no number")))
        };
        Ok(DeadLetter {
            reason: DeadLetterReason::parse(text(REASON)?)?,
            detail: text(DETAIL)?.to_owned(),
            origin: Origin {
                topic: text(ORIGIN_TOPIC)?.to_owned(),
                partition: number(ORIGIN_PARTITION)?
                    .try_into()
                    .map_err(|_| Invalid::new(format!("header {ORIGIN_PARTITION} is no partition")))?,
                offset: number(ORIGIN_OFFSET)?,
                time: from_millis(number(ORIGIN_TIMESTAMP)?)?,
            },
        })
    }
}

fn millis(time: OffsetDateTime) -> i64 {
    (time.unix_timestamp_nanos() / 1_000_000) as i64
}

fn from_millis(millis: i64) -> Result<OffsetDateTime, Invalid> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)
        .map_err(|_| Invalid::new(format!("header {ORIGIN_TIMESTAMP} is no time")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn letter() -> DeadLetter {
        let time = datetime!(2030-01-31 19:30:00.125 UTC);
        DeadLetter {
            reason: DeadLetterReason::KeyMissing,
            detail: "key: missing".into(),
            origin: Origin {
                topic: "reservations".into(),
                partition: 3,
                offset: 1 << 40,
                time,
            },
        }
    }

    #[test]
    fn the_headers_of_a_dead_letter_read_back() {
        let headers = letter().headers();
        let read = DeadLetter::from_headers(headers.iter().map(|(name, value)| (*name, Some(value.as_bytes()))));
        assert_eq!(read, Ok(letter()));
    }

    #[test]
    fn a_record_without_the_headers_is_no_dead_letter() {
        let headers = letter().headers();
        for missing in 0..headers.len() {
            let others = headers.iter().enumerate().filter(|(place, _)| *place != missing);
            let others = others.map(|(_, (name, value))| (*name, Some(value.as_bytes())));
            assert!(DeadLetter::from_headers(others).is_err());
        }
    }
}
