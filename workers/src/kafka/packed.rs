//! Batches of records that the client library cannot unpack: damaged ones, and those that hold more than it takes. It would fetch
//! such a batch again for ever, so whoever reads stops and names it.

use std::ops::Range;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{Remarks, looker};

/// How long a batch may take to be fetched while it is looked for.
const FETCH: Duration = Duration::from_secs(5);

/// Whether an error of a consumer means that a batch cannot be unpacked.
pub fn is_packed(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{BadCompression, BadMessage, MessageSizeTooLarge, NotImplemented};
    matches!(code, BadCompression | NotImplemented | BadMessage | MessageSizeTooLarge)
}

/// Names the batches that cannot be unpacked among those at which partitions stand, and where the next one begins. A place is
/// topic, partition, and the offset at which it stands; that may lie within the batch.
pub fn name(config: &ClientConfig, remarks: Remarks, places: Vec<(String, i32, i64)>) -> KafkaResult<String> {
    let looking = looker(config, remarks)?;
    let mut packed = Vec::new();
    let mut all = Vec::new();
    for (topic, partition, at) in places {
        let (oldest, end) = looking.fetch_watermarks(&topic, partition, FETCH)?;
        let at = at.max(oldest);
        all.push(format!("{topic}/{partition} at {at}"));
        let stops = |offset: i64| match (oldest..end).contains(&offset) {
            true => stops(&looking, &topic, partition, offset),
            false => Ok(false),
        };
        if stops(at)? {
            let Range { start, end } = around(at, oldest..end, stops)?;
            packed.push(format!("{topic}/{partition} from offset {start} to before {end}"));
        }
    }
    match packed.is_empty() {
        true => Ok(format!(
            "it was not found again; partitions stand at {}",
            all.join(", ")
        )),
        false => Ok(packed.join(", ")),
    }
}

/// Whether the batch at this offset cannot be unpacked.
fn stops(looking: &BaseConsumer<Remarks>, topic: &str, partition: i32, offset: i64) -> KafkaResult<bool> {
    let mut at = TopicPartitionList::new();
    at.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    looking.assign(&at)?;
    let deadline = Instant::now() + FETCH;
    while Instant::now() < deadline {
        match looking.poll(Duration::from_millis(100)) {
            None => {}
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(false),
            Some(Err(KafkaError::MessageConsumption(code))) if is_packed(code) => return Ok(true),
            Some(Err(error)) => tracing::debug!(%error, topic, partition, offset, "looking for a batch"),
        }
    }
    Ok(false)
}

/// The offsets around `at`, out of `all`, at which `holds`, as it does at `at`.
fn around(at: i64, all: Range<i64>, holds: impl Fn(i64) -> KafkaResult<bool>) -> KafkaResult<Range<i64>> {
    let before = first_after(-at, 1 - all.start, |offset| holds(-offset))?;
    Ok(1 - before..first_after(at, all.end, holds)?)
}

/// The first offset after `at` at which `holds` does not, as it does from `at` up to there; at most `end`.
fn first_after(at: i64, end: i64, holds: impl Fn(i64) -> KafkaResult<bool>) -> KafkaResult<i64> {
    let (mut low, mut step) = (at, 1);
    while low + step < end && holds(low + step)? {
        (low, step) = (low + step, 2 * step);
    }
    let mut high = (low + step).min(end);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        match holds(middle)? {
            true => low = middle,
            false => high = middle,
        }
    }
    Ok(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_found_from_wherever_in_it() {
        for (batch, all) in [
            (0..1, 0..1),
            (0..1, 0..100),
            (7..8, 7..9),
            (7..1_000, 3..1_000),
            (7..500, 0..1_000),
            (700..723, 5..100_000),
        ] {
            for at in [batch.start, batch.start + (batch.end - batch.start) / 2, batch.end - 1] {
                let found = around(at, all.clone(), |offset| Ok(batch.contains(&offset)));
                assert_eq!(found, Ok(batch.clone()), "{at} of {all:?}");
            }
        }
    }
}
