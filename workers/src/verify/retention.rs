//! What Kafka's retention may have removed from a topic, by partition and by time: nothing else is excused by it.

use std::collections::BTreeMap;

use super::terms::CLOCK_SKEW;
use crate::kafka::reader::{Extent, Keeps};

/// The records that may be gone from a topic with the beginnings of its partitions.
#[derive(Debug, Default)]
pub(super) struct Removed {
    partitions: BTreeMap<i32, Partition>,
}

#[derive(Debug, Clone, Copy)]
enum Partition {
    /// It has all that was ever written to it.
    Whole,
    /// Its beginning is gone.
    Cut {
        /// The latest time, in milliseconds, of what retention can have removed; none when nothing is removed by age.
        up_to: Option<i64>,
        removes_by_size: bool,
        seen: bool,
    },
}

impl Removed {
    /// Of a topic that `keeps` its records for so long, `now` by the database's clock in milliseconds.
    pub(super) fn new(extent: &Extent, keeps: Keeps, now: i64) -> Self {
        let age = keeps.age.and_then(|age| i64::try_from(age.as_millis()).ok());
        let up_to = age.map(|age| now.saturating_sub(age));
        let partition = |earliest: i64| match earliest {
            0 => Partition::Whole,
            _ => Partition::Cut {
                up_to,
                removes_by_size: keeps.bytes_are_limited,
                seen: false,
            },
        };
        Self {
            partitions: extent
                .iter()
                .map(|(number, (earliest, _))| (*number, partition(*earliest)))
                .collect(),
        }
    }

    /// Takes note of the next record that is left, `at` in milliseconds. What was removed is older than the first one.
    pub(super) fn left(&mut self, number: i32, at: i64) {
        if let Some(Partition::Cut {
            up_to,
            removes_by_size,
            seen,
        }) = self.partitions.get_mut(&number)
            && !std::mem::replace(seen, true)
        {
            *up_to = match removes_by_size {
                true => Some(at),
                false => up_to.map(|up_to| up_to.min(at)),
            };
        }
    }

    /// True if a record with this key that was written `at` this time (in milliseconds) or later may have been removed.
    /// Without a key it may have lain anywhere.
    pub(super) fn may_have(&self, key: Option<&[u8]>, at: i64) -> bool {
        match key.filter(|key| !key.is_empty()) {
            Some(key) => self.may_have_in(self.partition_of(key), at),
            None => self.partitions.keys().any(|number| self.may_have_in(*number, at)),
        }
    }

    /// As [`Self::may_have`], of a record that lay in this partition.
    pub(super) fn may_have_in(&self, number: i32, at: i64) -> bool {
        match self.partitions.get(&number) {
            Some(Partition::Cut { up_to: Some(up_to), .. }) => at <= up_to.saturating_add(CLOCK_SKEW),
            _ => false,
        }
    }

    /// The partition into which every producer of Holdfast puts a key.
    fn partition_of(&self, key: &[u8]) -> i32 {
        let count = i32::try_from(self.partitions.len()).unwrap_or(i32::MAX).max(1);
        (murmur2(key) & 0x7fff_ffff).cast_signed() % count
    }
}

/// The hash by which Kafka's own clients spread keys.
fn murmur2(key: &[u8]) -> u32 {
    const MIX: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c_u32 ^ key.len() as u32;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(MIX);
        word ^= word >> 24;
        hash = hash.wrapping_mul(MIX) ^ word.wrapping_mul(MIX);
    }
    for (place, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * place);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(MIX);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MIX);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: i64 = 1_000_000_000;
    const HOUR: i64 = 3_600_000;
    const AGE: Keeps = Keeps {
        age: Some(Duration::from_secs(3_600)),
        bytes_are_limited: false,
    };

    /// Of two partitions, the first has lost its beginning. What a keyless record, which may lie in either, is excused by.
    fn excused(keeps: Keeps, left: &[i64], at: i64) -> bool {
        let mut removed = Removed::new(&Extent::from([(0, (5, 9)), (1, (0, 9))]), keeps, NOW);
        for at in left {
            removed.left(0, *at);
        }
        removed.may_have(None, at)
    }

    #[test]
    fn the_hash_of_a_key_is_the_one_of_kafkas_clients() {
        for (key, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()), hash.cast_unsigned(), "{key}");
        }
    }

    #[test]
    fn what_is_younger_than_the_retention_is_not_excused_by_an_emptied_partition() {
        assert!(excused(AGE, &[], NOW - 2 * HOUR));
        assert!(!excused(AGE, &[], NOW - HOUR / 2));
    }

    #[test]
    fn what_is_younger_than_the_retention_is_not_excused_by_young_records_that_are_left() {
        assert!(!excused(AGE, &[NOW - 1_000], NOW - HOUR / 2));
    }

    #[test]
    fn what_is_younger_than_the_oldest_record_left_is_not_excused() {
        assert!(excused(AGE, &[NOW - 5 * HOUR, NOW], NOW - 6 * HOUR));
        assert!(!excused(AGE, &[NOW - 5 * HOUR, NOW], NOW - 4 * HOUR));
    }

    #[test]
    fn a_topic_that_keeps_its_records_for_ever_excuses_nothing() {
        let keeps = Keeps { age: None, ..AGE };
        assert!(!excused(keeps, &[], 0) && !excused(keeps, &[NOW], 0));
    }

    #[test]
    fn a_topic_of_limited_size_excuses_what_is_older_than_the_oldest_record_left() {
        let keeps = Keeps {
            age: None,
            bytes_are_limited: true,
        };
        assert!(excused(keeps, &[NOW - HOUR], NOW - 2 * HOUR));
        assert!(!excused(keeps, &[NOW - 2 * HOUR], NOW - HOUR));
    }

    #[test]
    fn a_key_is_excused_by_its_own_partition_alone() {
        let whole_but = |cut: i32| {
            let extent = (0..8).map(|number| (number, (i64::from(number == cut), 9)));
            Removed::new(&extent.collect(), AGE, NOW)
        };
        let excusing: Vec<i32> = (0..8)
            .filter(|cut| whole_but(*cut).may_have(Some(b"abc"), NOW - 2 * HOUR))
            .collect();
        assert_eq!(excusing, [479_470_107 % 8]);
    }
}
