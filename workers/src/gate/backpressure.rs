//! Backpressure: the number of records that the gate may send to Restate before it reads Restate's backlog again.
//!
//! A window that is not full and has a key that may have something under way goes on gathering for 2 ms per unfinished invocation,
//! at most 200 ms. A ticket's invocations run one after the other, so few large records finish sooner than many small ones. An idle
//! engine gets everything at once, and so does a busy one what is of other keys: to hold that back saved nothing.

use std::collections::HashSet;
use std::time::Duration;

use super::window::TopicKey;

/// A reading of Restate's backlog.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Invocations that are not completed, and go on.
    pub unfinished: u64,
    /// As far as they count: of each key a few.
    pub counted: u64,
    /// Number of the reading. A new one with the old value lets the gate go on as before while Restate does not answer.
    pub reading: u64,
}

/// What waits for one key counts at most so often, beside what it has under way: a hot key slows no other.
pub const MOST_OF_KEY: u64 = 10;

/// Keys that do not get on, as their first invocation fails again and again or is paused, do not count at all, as long as they are so
/// few. More of them are no fault of the keys: a server is away, and the gate must not fill the engine's disk meanwhile.
const FEW_STUCK: u64 = 100;

/// What Restate has of the objects' invocations: of all keys, and of those that do not get on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unfinished {
    pub invocations: u64,
    /// At most [`MOST_OF_KEY`] that wait for each key.
    pub counted: u64,
    pub stuck_keys: u64,
    pub stuck_invocations: u64,
    /// As `counted`.
    pub stuck_counted: u64,
}

impl Unfinished {
    /// What counts of it, as the reading after that of this number.
    pub fn backlog(self, reading: u64) -> Backlog {
        let is_few = self.stuck_keys <= FEW_STUCK;
        let without = |all: u64, stuck: u64| if is_few { all.saturating_sub(stuck) } else { all };
        Backlog {
            unfinished: without(self.invocations, self.stuck_invocations),
            counted: without(self.counted, self.stuck_counted),
            reading: reading + 1,
        }
    }
}

/// Additional gathering time of a window for each unfinished invocation. Each invocation of a hot key costs Restate a few disk
/// syncs, one after the other; a window that waits about as long finds the queue short.
const PACE_PER_UNFINISHED: Duration = Duration::from_millis(2);
/// A full window never waits, so a backlog is not slowed down; this bounds what a busy engine adds to the latency of the rest.
const LONGEST_PACE: Duration = Duration::from_millis(200);

/// Admitted records that may go out on the last reading. The last window may overdraw it, so that windows stay wide.
#[derive(Debug)]
pub(super) struct Backpressure {
    limit: u64,
    reading: u64,
    unfinished: u64,
    left: i64,
}

impl Backpressure {
    pub(super) fn new(limit: u64, backlog: Backlog) -> Self {
        Self {
            limit,
            reading: backlog.reading,
            unfinished: backlog.unfinished,
            left: room(limit, backlog),
        }
    }

    /// True if a window may be sent.
    pub(super) fn is_open(&mut self, backlog: Backlog) -> bool {
        if backlog.reading != self.reading {
            *self = Self::new(self.limit, backlog);
        }
        self.left > 0
    }

    /// The time for which a window goes on gathering before it is sent. An idle Restate gets everything at once; behind a busy
    /// one, and above all behind a hot key, whose invocations run one after the other, many small records become few large ones.
    pub(super) fn pace(&self) -> Duration {
        let unfinished = u32::try_from(self.unfinished).unwrap_or(u32::MAX);
        PACE_PER_UNFINISHED.saturating_mul(unfinished).min(LONGEST_PACE)
    }

    pub(super) fn spend(&mut self, records: usize) {
        self.left = self.left.saturating_sub_unsigned(records as u64);
    }
}

/// The keys that may have something under way in Restate: those sent since the reading before the last one.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    reading: u64,
    keys: HashSet<TopicKey>,
    earlier: HashSet<TopicKey>,
}

impl UnderWay {
    /// Adds keys that are sent after so many readings.
    pub(super) fn add<'a>(&mut self, keys: impl Iterator<Item = &'a TopicKey>, reading: u64) {
        if reading != self.reading {
            self.reading = reading;
            self.earlier = std::mem::take(&mut self.keys);
        }
        self.keys.extend(keys.cloned());
    }

    pub(super) fn may_have(&self, key: &TopicKey) -> bool {
        self.keys.contains(key) || self.earlier.contains(key)
    }
}

fn room(limit: u64, backlog: Backlog) -> i64 {
    i64::try_from(limit.saturating_sub(backlog.counted)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_may_overdraw_and_then_the_next_reading_counts() {
        let backlog = |counted, reading| Backlog {
            counted,
            reading,
            ..Backlog::default()
        };
        let mut backpressure = Backpressure::new(100, backlog(0, 0));
        assert!(backpressure.is_open(backlog(0, 0)));
        backpressure.spend(150);
        assert!(!backpressure.is_open(backlog(0, 0)));
        assert!(!backpressure.is_open(backlog(120, 1)));
        assert!(backpressure.is_open(backlog(99, 2)));
        backpressure.spend(1);
        assert!(!backpressure.is_open(backlog(99, 2)));
    }

    #[test]
    fn a_window_waits_for_a_busy_engine_only() {
        let pace = |unfinished| {
            let backlog = Backlog {
                unfinished,
                ..Backlog::default()
            };
            Backpressure::new(10_000, backlog).pace()
        };
        assert_eq!(pace(0), Duration::ZERO);
        assert_eq!(pace(5), Duration::from_millis(10));
        assert_eq!(pace(1_000_000), LONGEST_PACE);
    }

    #[test]
    fn a_key_may_have_something_under_way_until_two_readings_have_passed() {
        let key = |key: &str| ("reservations.admitted", key.to_owned());
        let mut under_way = UnderWay::default();
        under_way.add([key("A")].iter(), 1);
        under_way.add([key("B")].iter(), 2);
        assert!(under_way.may_have(&key("A")) && under_way.may_have(&key("B")));
        under_way.add([key("C")].iter(), 3);
        assert!(!under_way.may_have(&key("A")) && under_way.may_have(&key("B")));
    }

    #[test]
    fn a_few_keys_that_do_not_get_on_count_for_nothing_and_many_as_all_others() {
        let reading = |stuck_keys| Unfinished {
            invocations: 100_200,
            counted: 111,
            stuck_keys,
            stuck_invocations: 100_001,
            stuck_counted: 11,
        };
        let backlog = |unfinished, counted| Backlog {
            unfinished,
            counted,
            reading: 8,
        };
        assert_eq!(reading(FEW_STUCK).backlog(7), backlog(199, 100));
        assert_eq!(reading(FEW_STUCK + 1).backlog(7), backlog(100_200, 111));
    }

    #[test]
    fn a_silent_engine_gets_as_much_again_with_each_reading() {
        let mut backpressure = Backpressure::new(100, Backlog::default());
        for reading in 0..5 {
            let backlog = Backlog {
                counted: 90,
                reading,
                ..Backlog::default()
            };
            assert!(backpressure.is_open(backlog));
            backpressure.spend(100);
            assert!(!backpressure.is_open(backlog));
        }
    }
}
