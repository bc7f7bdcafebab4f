//! Whether rows move: what `/readyz` says of the relay.

use std::time::{Duration, Instant};

use crate::store::outbox::Lag;

/// Since when rows have waited while none moved.
#[derive(Debug, Default)]
pub(super) struct Movement {
    still: Option<Still>,
}

#[derive(Debug, Clone, Copy)]
struct Still {
    since: Instant,
    batch: i64,
    refused: i64,
}

impl Movement {
    /// How long rows have waited while none moved: zero when none waits, a batch was noted since the last look, or a row was
    /// refused, which is progress too.
    pub(super) fn still_for(&mut self, lag: &Lag, now: Instant) -> Duration {
        if lag.movable == 0 {
            self.still = None;
            return Duration::ZERO;
        }
        let same = |still: &Still| (still.batch, still.refused) == (lag.batch, lag.refused);
        let still = self.still.filter(same).unwrap_or(Still {
            since: now,
            batch: lag.batch,
            refused: lag.refused,
        });
        self.still = Some(still);
        now.duration_since(still.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(movable: i64, batch: i64) -> Lag {
        Lag {
            rows: movable,
            refused: 0,
            movable,
            oldest_seconds: 100.0,
            batch,
        }
    }

    #[test]
    fn only_rows_that_could_move_and_do_not_stand_still() {
        let mut movement = Movement::default();
        let start = Instant::now();
        let mut at = |seconds, lag| movement.still_for(&lag, start + Duration::from_secs(seconds)).as_secs();
        assert_eq!(at(0, lag(5, 1)), 0);
        assert_eq!(at(5, lag(9, 1)), 5);
        assert_eq!(at(10, lag(9, 2)), 0, "a batch was noted");
        assert_eq!(at(20, lag(9, 2)), 10);
        assert_eq!(at(25, lag(0, 2)), 0, "none waits");
        assert_eq!(at(30, lag(1, 2)), 0, "a new one has only come");
    }
}
