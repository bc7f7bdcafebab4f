//! The mark that the relay commits in Kafka together with a batch, and its comparison with the database at the start.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Longest metadata that Kafka keeps with an offset, in characters (`offset.metadata.max.bytes`).
const MAX_METADATA: usize = 4_096;

/// Characters before the ids: version, point, hash, point.
const PREFIX: usize = 1 + 1 + 22 + 1;

/// What Kafka knows of the last batch: its number is the committed offset, the rest its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub batch: i64,
    pub hash: Hash,
    /// Ids of the batch's outbox rows, ascending.
    pub ids: Vec<i64>,
}

/// A hash over the messages of a batch, in the order of their rows: a row id can return after a restore, with another
/// message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hash([u8; 16]);

impl Hash {
    pub(super) fn of(messages: impl IntoIterator<Item = Uuid>) -> Self {
        let mut digest = Sha256::new();
        for message in messages {
            digest.update(message.as_bytes());
        }
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest.finalize()[..16]);
        Self(hash)
    }
}

impl Mark {
    /// `1.<hash>.<ids>`: the hash and the ids in base64, the ids as distances to the one before, seven bits a byte.
    pub(super) fn metadata(&self) -> String {
        format!(
            "1.{}.{}",
            BASE64.encode(self.hash.0),
            BASE64.encode(distances(&self.ids))
        )
    }

    /// The mark that was committed as `batch` and `metadata`; `None` when this is none of ours.
    pub(super) fn read(batch: i64, metadata: &str) -> Option<Self> {
        let mut parts = metadata.split('.');
        let ("1", hash, ids, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
            return None;
        };
        let hash = BASE64.decode(hash).ok()?.try_into().ok()?;
        let ids = ids_at(&BASE64.decode(ids).ok()?)?;
        Some(Self {
            batch,
            hash: Hash(hash),
            ids,
        })
    }
}

/// The number of these ids, ascending, that fit into the metadata of one batch.
pub(super) fn fitting(ids: &[i64]) -> usize {
    let room = (MAX_METADATA - PREFIX) * 3 / 4;
    let mut size = 0;
    let mut last = 0;
    ids.iter()
        .take_while(|id| {
            size += varint_size(**id - last);
            last = **id;
            size <= room
        })
        .count()
}

/// The result of the comparison.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// Kafka and the database agree.
    Agreement,
    /// Kafka has one batch more, whose rows may still be in the outbox: the relay compares their messages.
    OneAhead(Mark),
    /// They cannot both be right.
    Disagreement,
}

/// Compares the database's batch number with the offset and metadata that Kafka has. Nothing at all on either side is a
/// first start. Equal numbers need no metadata: an operator may have set the offset.
pub(super) fn compare(database: i64, kafka: Option<(i64, &str)>) -> Comparison {
    match kafka {
        None if database == 0 => Comparison::Agreement,
        Some((batch, _)) if batch == database => Comparison::Agreement,
        Some((batch, metadata)) if batch == database + 1 => {
            Mark::read(batch, metadata).map_or(Comparison::Disagreement, Comparison::OneAhead)
        }
        _ => Comparison::Disagreement,
    }
}

fn distances(ids: &[i64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ids.len() * 2);
    let mut last = 0;
    for id in ids {
        let mut distance = id - last;
        while distance >= 0x80 {
            bytes.push((distance & 0x7f) as u8 | 0x80);
            distance >>= 7;
        }
        bytes.push(distance as u8);
        last = *id;
    }
    bytes
}

fn ids_at(bytes: &[u8]) -> Option<Vec<i64>> {
    let mut ids = Vec::new();
    let (mut last, mut distance, mut shift) = (0_i64, 0_i64, 0_u32);
    for byte in bytes {
        distance |= i64::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte & 0x80 == 0 {
            last = last.checked_add(distance)?;
            ids.push(last);
            (distance, shift) = (0, 0);
        }
    }
    (shift == 0).then_some(ids)
}

fn varint_size(distance: i64) -> usize {
    let bits = i64::BITS - distance.leading_zeros();
    bits.div_ceil(7).max(1) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mark(batch: i64) -> Mark {
        Mark {
            batch,
            hash: Hash::of([Uuid::from_u128(1), Uuid::from_u128(2)]),
            ids: vec![7, 9],
        }
    }

    #[test]
    fn agreement_is_equal_numbers_or_nothing_on_both_sides() {
        assert_eq!(compare(0, None), Comparison::Agreement);
        assert_eq!(compare(0, Some((0, ""))), Comparison::Agreement);
        assert_eq!(compare(41, Some((41, &mark(41).metadata()))), Comparison::Agreement);
    }

    #[test]
    fn kafka_one_ahead_is_for_the_messages_to_decide() {
        for batch in [1, 42] {
            let metadata = mark(batch).metadata();
            assert_eq!(
                compare(batch - 1, Some((batch, &metadata))),
                Comparison::OneAhead(mark(batch))
            );
        }
    }

    #[test]
    fn anything_else_is_a_store_that_went_back_in_time() {
        let metadata = mark(1).metadata();
        for (database, kafka) in [(41, None), (41, Some(43)), (41, Some(40)), (0, Some(2)), (1, Some(0))] {
            let kafka = kafka.map(|batch| (batch, metadata.as_str()));
            assert_eq!(
                compare(database, kafka),
                Comparison::Disagreement,
                "{database} {kafka:?}"
            );
        }
        assert_eq!(compare(41, Some((42, ""))), Comparison::Disagreement);
    }

    #[test]
    fn the_hash_tells_other_messages_and_another_order() {
        let hash = |ids: &[u128]| Hash::of(ids.iter().map(|id| Uuid::from_u128(*id)));
        assert_ne!(hash(&[1, 2]), hash(&[2, 1]));
        assert_ne!(hash(&[1, 2]), hash(&[1]));
        assert_eq!(hash(&[1, 2]), hash(&[1, 2]));
    }

    #[test]
    fn foreign_metadata_is_no_mark() {
        for metadata in [
            "",
            "1",
            "1..",
            "2.AAAA.",
            "1.AAAA.AAAA",
            "1.AAAAAAAAAAAAAAAAAAAAAA.!",
            "1.AAAAAAAAAAAAAAAAAAAAAA.gA",
        ] {
            assert_eq!(Mark::read(1, metadata), None, "{metadata}");
        }
        assert!(Mark::read(1, "1.AAAAAAAAAAAAAAAAAAAAAA.").is_some());
    }

    #[test]
    fn a_thousand_rows_written_without_long_gaps_fit_into_one_batch() {
        let ids: Vec<i64> = (0..1_000).map(|place| (1 << 40) + place * 1_000).collect();
        assert_eq!(fitting(&ids), 1_000);
    }

    proptest! {
        #[test]
        fn a_mark_reads_back_and_what_is_said_to_fit_fits(distances in prop::collection::vec(1_i64..1 << 40, 0..1_200)) {
            let mut ids: Vec<i64> = distances.iter().scan(0, |last, distance| { *last += distance; Some(*last) }).collect();
            let fitting = fitting(&ids);
            prop_assert!(fitting >= ids.len().min(500));
            ids.truncate(fitting);
            let mark = Mark { batch: 3, hash: Hash::of([]), ids };
            let metadata = mark.metadata();
            prop_assert!(metadata.len() <= MAX_METADATA, "{}", metadata.len());
            prop_assert_eq!(Mark::read(3, &metadata), Some(mark));
        }
    }
}
