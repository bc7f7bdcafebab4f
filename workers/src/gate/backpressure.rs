//! Backpressure: the number of records that the gate may send to Restate before it reads Restate's backlog again.
//!
//! A window that is not full and has a key that may have something under way goes on gathering for 2 ms per unfinished invocation,
//! at most 200 ms. A ticket's invocations run one after the other, so few large records finish sooner than many small ones. An idle
//! engine gets everything at once, and so does a busy one what is of other keys: to hold that back saved nothing.

use std::collections::HashSet;
use std::time::{Duration, Instant};

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

/// What was sent longer ago is taken to be done, however old the last reading is: an engine that was busy is asked again only after a
/// multiple of the time that its answer took. Much longer than the windows of a hot key are apart.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// The keys that may have something under way in Restate: those sent since the reading before the last one, and not twice
/// [`UNDER_WAY`] ago.
#[derive(Debug)]
pub(super) struct UnderWay {
    reading: u64,
    since: Instant,
    keys: HashSet<TopicKey>,
    earlier: HashSet<TopicKey>,
}

impl UnderWay {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            reading: 0,
            since: now,
            keys: HashSet::new(),
            earlier: HashSet::new(),
        }
    }

    /// Forgets the keys that are taken to be done by now, after so many readings.
    pub(super) fn age(&mut self, reading: u64, now: Instant) {
        let age = now.duration_since(self.since);
        if reading == self.reading && age < UNDER_WAY {
            return;
        }
        self.reading = reading;
        self.since = now;
        self.earlier = std::mem::take(&mut self.keys);
        if age >= UNDER_WAY * 2 {
            self.earlier.clear();
        }
    }

    /// Adds keys that are sent now.
    pub(super) fn add<'a>(&mut self, keys: impl Iterator<Item = &'a TopicKey>) {
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

    fn key(key: &str) -> TopicKey {
        ("reservations.admitted", key.to_owned())
    }

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
        let now = Instant::now();
        let mut under_way = UnderWay::new(now);
        for (name, reading) in [("A", 1), ("B", 2)] {
            under_way.age(reading, now);
            under_way.add([key(name)].iter());
        }
        assert!(under_way.may_have(&key("A")) && under_way.may_have(&key("B")));
        under_way.age(3, now);
        assert!(!under_way.may_have(&key("A")) && under_way.may_have(&key("B")));
    }

    #[test]
    fn a_key_has_nothing_under_way_for_longer_than_a_second_though_no_reading_comes() {
        let (begun, mut under_way) = (Instant::now(), UnderWay::new(Instant::now()));
        let mut has_after = |milliseconds| {
            under_way.age(1, begun + Duration::from_millis(milliseconds));
            let has = under_way.may_have(&key("A"));
            under_way.add([key("A")].iter().filter(|_| !has));
            has
        };
        let seen = [0, 499, 501, 999, 1_002, 1_003, 9_000].map(&mut has_after);
        assert_eq!(seen, [false, true, true, true, false, true, false]);
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
