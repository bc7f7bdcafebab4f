//! The part of the system that a look sees: everything, or so little that what it holds in memory stays below a limit however
//! much there is.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use crate::kafka::reader::Extent;

/// What a look sees.
#[derive(Debug, Clone)]
pub(super) enum Scope {
    Whole,
    /// What whole tables say beside each other, by statements that keep nothing here.
    Books,
    /// Everything about some of the keys.
    Keys(Portion),
    /// What has changed since a mark, of some of the keys. The ledger is left out.
    Recent(Portion, Arc<Mark>),
}

impl Scope {
    pub(super) fn has_books(&self) -> bool {
        matches!(self, Self::Whole | Self::Books)
    }

    pub(super) fn has_keys(&self) -> bool {
        !matches!(self, Self::Books)
    }

    pub(super) fn has_ledger(&self) -> bool {
        matches!(self, Self::Whole | Self::Keys(_))
    }

    pub(super) fn portion(&self) -> Portion {
        match self {
            Self::Whole | Self::Books => Portion::ALL,
            Self::Keys(portion) | Self::Recent(portion, _) => *portion,
        }
    }

    /// The mark at which it begins.
    pub(super) fn since(&self) -> Option<&Mark> {
        match self {
            Self::Recent(_, mark) => Some(mark),
            _ => None,
        }
    }

    /// True if it sees all that bears one id, whatever key it is about.
    pub(super) fn sees_every_id(&self) -> bool {
        self.since().is_none() && self.portion() == Portion::ALL
    }

    /// The portion, as the statements take it.
    pub(super) fn sql_portion(&self) -> (i64, i64) {
        let Portion { from, to } = self.portion();
        (from.cast_signed(), to.cast_signed())
    }

    /// The time of the mark, as the statements take it.
    pub(super) fn sql_since(&self) -> Option<OffsetDateTime> {
        let at = i128::from(self.since()?.at) * 1_000_000;
        Some(OffsetDateTime::from_unix_timestamp_nanos(at).unwrap_or(OffsetDateTime::UNIX_EPOCH))
    }

    /// True if it sees the record with this key.
    pub(super) fn has(&self, key: Option<&[u8]>) -> bool {
        self.portion().has(key.unwrap_or_default())
    }

    /// True if it sees the dead letter with this key and value. One that has neither, because its record is too large to be copied, may
    /// be about any key.
    pub(super) fn has_letter(&self, key: Option<&[u8]>, value: Option<&[u8]>) -> bool {
        key.is_none() && value.is_none() || self.has(key)
    }
}

/// A moment: whatever is written later lies behind these ends, and is stamped by the database with this time or a later one.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) ends: Ends,
    /// In milliseconds.
    pub(super) at: i64,
}

/// The ends of the topics at a moment.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    pub(super) letters: Extent,
    pub(super) tickets: Extents,
    pub(super) users: Extents,
    pub(super) entries: Extent,
}

/// The extents of the topics of one stream.
#[derive(Debug, Clone)]
pub(super) struct Extents {
    pub(super) public: Extent,
    pub(super) outcomes: Extent,
}

/// A portion of all keys: those whose hashes lie in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Portion {
    from: u64,
    /// Behind the last one.
    to: u64,
}

impl Portion {
    pub(super) const ALL: Self = Self { from: 0, to: 1 << 32 };
    /// Portions are not made smaller: a key that is too much in this one is too much by itself.
    const LEAST: u64 = 1 << 16;

    /// True if the key is one of these. The statements in this folder say the same.
    pub(super) fn has(self, key: &[u8]) -> bool {
        self == Self::ALL || (self.from..self.to).contains(&hash(key))
    }

    /// The portion, as large as this one, that has the key.
    pub(super) fn around(self, key: &[u8]) -> Self {
        let from = hash(key) / self.width() * self.width();
        Self {
            from,
            to: from + self.width(),
        }
    }

    /// Its first half, or the half that has the key; none when it is too small for that.
    pub(super) fn halved(self, key: Option<&[u8]>) -> Option<Self> {
        let half = Self {
            from: self.from,
            to: self.from + self.width() / 2,
        };
        let half = key.map_or(half, |key| half.around(key));
        (half.width() >= Self::LEAST).then_some(half)
    }

    /// The one after it, the first again after the last; twice as large if it may `grow`.
    pub(super) fn next(self, grow: bool) -> Self {
        let from = if self.is_last() { 0 } else { self.to };
        let double = self.width() * 2;
        let fits = from % double == 0 && double <= Self::ALL.to;
        let width = if grow && fits { double } else { self.width() };
        Self { from, to: from + width }
    }

    pub(super) fn is_last(self) -> bool {
        self.to == Self::ALL.to
    }

    fn width(self) -> u64 {
        self.to - self.from
    }
}

fn hash(key: &[u8]) -> u64 {
    let digest = Sha256::digest(key);
    digest.iter().take(4).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// The most facts that a look holds of one stream, or of the ledger.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit(pub(super) usize);

impl Limit {
    pub(super) const NONE: Self = Self(usize::MAX);

    /// # Errors
    /// There are more.
    pub(super) fn admits(self, facts: usize) -> Result<(), TooMany> {
        if facts > self.0 { Err(TooMany(self.0)) } else { Ok(()) }
    }

    /// True if twice as many would be far from too many.
    pub(super) fn has_room_for_twice(self, facts: usize) -> bool {
        facts < self.0 / 4
    }
}

/// A look was given up.
#[derive(Debug, thiserror::Error)]
#[error("one key has more than the {0} facts that a look may hold: raise --watch-facts (HOLDFAST_WATCH_FACTS)")]
pub(super) struct TooMany(usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_over_portions_of_any_size_sees_every_key_once() {
        let keys: Vec<String> = (0..10_000).map(|number| format!("A-{number}")).collect();
        let (mut portion, mut seen, mut looks) = (Portion::ALL, 0, 0);
        loop {
            let held = keys.iter().filter(|key| portion.has(key.as_bytes())).count();
            looks += 1;
            if held > 1_000 {
                portion = portion.halved(None).unwrap();
                continue;
            }
            seen += held;
            if portion.is_last() {
                break;
            }
            portion = portion.next(held < 250);
        }
        assert_eq!(seen, keys.len());
        assert!((10..50).contains(&looks), "{looks} looks");
        assert!(portion.next(false).from == 0);
    }

    #[test]
    fn every_portion_sees_a_dead_letter_that_has_left_its_record_out() {
        let halves = [(0, 1 << 31), (1 << 31, 1 << 32)].map(|(from, to)| Scope::Keys(Portion { from, to }));
        let seen = |key, value| halves.iter().filter(|half| half.has_letter(key, value)).count();
        assert_eq!(seen(None, None), 2);
        assert_eq!((seen(Some(&b"A-1"[..]), None), seen(None, Some(&b"{}"[..]))), (1, 1));
    }

    #[test]
    fn the_halves_around_a_key_have_it_until_they_are_too_small() {
        let mut portion = Portion::ALL.around(b"A-1");
        let mut halves = 0;
        while let Some(half) = portion.halved(Some(b"A-1")) {
            assert!(half.has(b"A-1"), "{half:?}");
            (portion, halves) = (half, halves + 1);
        }
        assert_eq!((halves, portion.around(b"A-1")), (16, portion));
    }

    #[test]
    fn a_look_holds_as_much_as_it_may() {
        assert!(Limit(3).admits(3).is_ok() && Limit(3).admits(4).is_err() && Limit::NONE.admits(1 << 40).is_ok());
        assert!(Limit(100).has_room_for_twice(24) && !Limit(100).has_room_for_twice(25));
    }
}
