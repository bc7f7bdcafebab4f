//! The mark that the relay commits in Kafka together with a batch, and its comparison with the database at the start.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Room for the ids of a batch in its mark, in characters.
const IDS_ROOM: usize = 4_096;

/// What Kafka knows of the last batch.
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
    /// A mark of a batch whose rows need not be known: an operator vouches for them.
    pub(super) fn accepted(batch: i64) -> Self {
        Self {
            batch,
            hash: Hash::of([]),
            ids: Vec::new(),
        }
    }

    /// As a record has it: `1.<batch>.<hash>.<ids>`, the hash and the ids in base64, the ids as distances to the one before,
    /// seven bits a byte.
    pub(super) fn text(&self) -> String {
        format!("1.{}.{}", self.batch, self.rows())
    }

    /// The mark that was written as [`Mark::text`]; `None` when this is none of ours.
    pub(super) fn read(text: &[u8]) -> Option<Self> {
        let (version, rest) = std::str::from_utf8(text).ok()?.split_once('.')?;
        let (batch, rows) = rest.split_once('.')?;
        let (hash, ids) = Self::read_rows(rows)?;
        let batch = batch.parse().ok()?;
        (version == "1").then_some(Self { batch, hash, ids })
    }

    fn rows(&self) -> String {
        format!("{}.{}", BASE64.encode(self.hash.0), BASE64.encode(distances(&self.ids)))
    }

    fn read_rows(text: &str) -> Option<(Hash, Vec<i64>)> {
        let (hash, ids) = text.split_once('.')?;
        let hash = BASE64.decode(hash).ok()?.try_into().ok()?;
        Some((Hash(hash), ids_at(&BASE64.decode(ids).ok()?)?))
    }
}

/// The number of these ids, ascending, that fit into one mark.
pub(super) fn fitting(ids: &[i64]) -> usize {
    let room = IDS_ROOM * 3 / 4;
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
    /// The database has told batches, and Kafka has no mark.
    NoMark,
    /// The two contradict each other.
    Disagreement(Mark),
}

/// Compares the database's batch number with the mark that Kafka has. Nothing at all on either side is a first start. Equal
/// numbers need no rows; a mark that is ahead and names none explains nothing.
pub(super) fn compare(database: i64, kafka: Option<Mark>) -> Comparison {
    match kafka {
        None if database == 0 => Comparison::Agreement,
        None => Comparison::NoMark,
        Some(mark) if mark.batch == database => Comparison::Agreement,
        Some(mark) if mark.batch == database + 1 && !mark.ids.is_empty() => Comparison::OneAhead(mark),
        Some(mark) => Comparison::Disagreement(mark),
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
        assert_eq!(compare(0, Some(Mark::accepted(0))), Comparison::Agreement);
        assert_eq!(compare(41, Some(mark(41))), Comparison::Agreement);
        assert_eq!(compare(41, Some(Mark::accepted(41))), Comparison::Agreement);
    }

    #[test]
    fn kafka_one_ahead_is_for_the_messages_to_decide() {
        for batch in [1, 42] {
            assert_eq!(compare(batch - 1, Some(mark(batch))), Comparison::OneAhead(mark(batch)));
        }
    }

    #[test]
    fn anything_else_is_a_store_that_went_back_in_time() {
        for (database, kafka) in [(41, mark(43)), (41, mark(40)), (0, mark(2)), (1, mark(0))] {
            assert_eq!(compare(database, Some(kafka.clone())), Comparison::Disagreement(kafka));
        }
        let unexplained = Mark::accepted(42);
        assert_eq!(
            compare(41, Some(unexplained.clone())),
            Comparison::Disagreement(unexplained)
        );
    }

    #[test]
    fn without_a_mark_nothing_is_known_of_what_was_told() {
        assert_eq!(compare(41, None), Comparison::NoMark);
    }

    #[test]
    fn the_hash_tells_other_messages_and_another_order() {
        let hash = |ids: &[u128]| Hash::of(ids.iter().map(|id| Uuid::from_u128(*id)));
        assert_ne!(hash(&[1, 2]), hash(&[2, 1]));
        assert_ne!(hash(&[1, 2]), hash(&[1]));
        assert_eq!(hash(&[1, 2]), hash(&[1, 2]));
    }

    #[test]
    fn foreign_text_is_no_mark() {
        for text in [
            "",
            "1",
            "1.41..",
            "2.41.AAAAAAAAAAAAAAAAAAAAAA.",
            "1.x.AAAAAAAAAAAAAAAAAAAAAA.",
            "1.41.AAAA.AAAA",
            "1.41.AAAAAAAAAAAAAAAAAAAAAA.!",
            "1.41.AAAAAAAAAAAAAAAAAAAAAA.gA",
            "1.41.AAAAAAAAAAAAAAAAAAAAAA..",
        ] {
            assert_eq!(Mark::read(text.as_bytes()), None, "{text}");
        }
        assert!(Mark::read(b"1.41.AAAAAAAAAAAAAAAAAAAAAA.").is_some());
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
            prop_assert_eq!(Mark::read(mark.text().as_bytes()), Some(mark));
        }
    }
}
