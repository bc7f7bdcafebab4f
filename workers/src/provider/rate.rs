//! The rate of our calls, kept below the provider's limits: a bucket for each kind of call, and pauses where the provider asks for
//! them (429). A call waits for its turn.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::Method;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

/// The calls of this time may come at once, after a quiet one: a fifth more than the rate in the first second.
const BURST: Duration = Duration::from_millis(200);

/// The kind of a call, as the provider limits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

impl Kind {
    pub(super) fn of(method: &Method) -> Self {
        match *method {
            Method::GET => Self::Read,
            _ => Self::Write,
        }
    }

    /// The value of the metric's label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Whether a call had its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    AtOnce,
    Waited,
    /// It would have come too late.
    Late,
}

/// The buckets of an account.
pub(super) struct Rate {
    start: Instant,
    reads: Mutex<Bucket>,
    writes: Mutex<Bucket>,
}

impl Rate {
    /// So many calls of each kind in a second.
    pub(super) fn new(calls: u32) -> Self {
        let bucket = || Mutex::new(Bucket::new(SECOND / calls.max(1)));
        Self {
            start: Instant::now(),
            reads: bucket(),
            writes: bucket(),
        }
    }

    /// Waits for the turn of a call, if it comes before the deadline.
    pub(super) async fn turn(&self, kind: Kind, deadline: Instant) -> Turn {
        let mut turn = Turn::AtOnce;
        loop {
            let now = Instant::now();
            let patience = deadline.saturating_duration_since(now);
            let booked = self.bucket(kind).book(self.at(now), patience);
            match booked {
                None => return Turn::Late,
                Some(wait) if wait.is_zero() => return turn,
                Some(wait) => sleep(wait).await,
            }
            turn = Turn::Waited;
            // The provider may have asked for a pause meanwhile.
            if self.bucket(kind).is_open(self.at(Instant::now())) {
                return turn;
            }
        }
    }

    /// Lets no call of this kind begin for so long.
    pub(super) fn pause(&self, kind: Kind, pause: Duration) {
        let until = self.at(Instant::now()) + pause;
        self.bucket(kind).close(until);
    }

    fn bucket(&self, kind: Kind) -> MutexGuard<'_, Bucket> {
        let bucket = match kind {
            Kind::Read => &self.reads,
            Kind::Write => &self.writes,
        };
        bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time as the buckets count it. They begin full.
    fn at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start) + BURST
    }
}

/// A bucket that fills at the rate, and holds [`BURST`] of it.
struct Bucket {
    /// Time between two calls at the rate.
    interval: Duration,
    /// The turn of the next call, if it does not come later.
    next: Duration,
    /// No call begins before.
    closed_until: Duration,
}

impl Bucket {
    fn new(interval: Duration) -> Self {
        Self {
            interval,
            next: Duration::ZERO,
            closed_until: Duration::ZERO,
        }
    }

    /// Books a call, and tells how long it has to wait; none, and nothing is booked, if that is longer than `patience`.
    fn book(&mut self, now: Duration, patience: Duration) -> Option<Duration> {
        let turn = self.next.max(now.saturating_sub(BURST));
        let wait = turn.max(self.closed_until).saturating_sub(now);
        if wait > patience {
            return None;
        }
        self.next = turn + self.interval;
        Some(wait)
    }

    /// The calls after that begin one by one.
    fn close(&mut self, until: Duration) {
        self.closed_until = self.closed_until.max(until);
        self.next = self.next.max(until);
    }

    fn is_open(&self, now: Duration) -> bool {
        now >= self.closed_until
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const EVER: Duration = Duration::from_secs(3_600);

    proptest! {
        /// However calls come and whichever pauses are asked for: no window has more than the rate and the burst, and none begins in a pause.
        #[test]
        fn no_second_has_more_calls_than_the_rate_and_a_fifth(
            rate in 5_u32..200,
            calls in prop::collection::vec((0_u32..60, prop::option::weighted(0.02, 0_u32..900)), 1..400),
        ) {
            let mut bucket = Bucket::new(SECOND / rate);
            let (mut now, mut turns) = (BURST, Vec::new());
            for (gap, pause) in calls {
                now += gap * MS;
                if let Some(pause) = pause {
                    let until = now + pause * MS;
                    bucket.close(until);
                    prop_assert!(pause == 0 || !bucket.is_open(now));
                }
                let turn = now + bucket.book(now, EVER).unwrap();
                prop_assert!(bucket.is_open(turn), "{turn:?} is in a pause");
                turns.push(turn);
            }
            for (first, turn) in turns.iter().enumerate() {
                let within = turns[first..].iter().take_while(|other| **other < *turn + SECOND).count();
                prop_assert!(within <= (rate + rate / 5 + 1) as usize, "{within} calls in a second at {rate}");
            }
        }
    }

    #[test]
    fn a_call_that_would_wait_too_long_takes_no_turn() {
        let mut bucket = Bucket::new(100 * MS);
        let waits: Vec<_> = (0..6).map(|_| bucket.book(BURST, 250 * MS)).collect();
        let expected = [Some(0), Some(0), Some(0), Some(100), Some(200), None];
        assert_eq!(waits, expected.map(|wait| wait.map(|wait: u32| wait * MS)));
        assert_eq!(bucket.book(BURST + 100 * MS, 250 * MS), Some(200 * MS));
    }

    #[test]
    fn a_pause_holds_for_those_that_wait_already() {
        let mut bucket = Bucket::new(100 * MS);
        bucket.close(BURST + SECOND);
        assert_eq!(bucket.book(BURST, 500 * MS), None);
        assert_eq!(bucket.book(BURST, EVER), Some(SECOND));
        assert_eq!(bucket.book(BURST, EVER), Some(SECOND + 100 * MS));
        assert!(!bucket.is_open(BURST + 999 * MS) && bucket.is_open(BURST + SECOND));
    }
}
