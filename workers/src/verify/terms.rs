//! By what verify judges: the time of the look, and how long each trace of a record lasts.

use std::time::Duration;

use time::OffsetDateTime;

use super::identity::millis;

/// The largest difference between the clocks of Kafka, database and workers that is put up with, in milliseconds.
pub(super) const CLOCK_SKEW: i64 = 60_000;

/// All times in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// When the look at the database was taken, by its clock.
    pub(super) now: i64,
    /// The age up to which an idempotency record is kept.
    pub(super) idempotency_retention: i64,
    /// Age from which a record that nothing accounts for is lost.
    pub(super) lost_after: i64,
    /// The largest record of the dead-letter topic.
    pub(super) letter_bytes: usize,
}

impl Terms {
    pub(super) fn new(
        now: OffsetDateTime,
        idempotency_retention: Duration,
        lost_after: Duration,
        letter_bytes: usize,
    ) -> Self {
        let millis_of = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self {
            now: millis(now),
            idempotency_retention: millis_of(idempotency_retention),
            lost_after: millis_of(lost_after),
            letter_bytes,
        }
    }

    /// Events that are older may have lost their idempotency record to the sweep.
    pub(super) fn swept_up_to(&self) -> i64 {
        self.now.saturating_sub(self.idempotency_retention)
    }

    /// Records that are older are lost when nothing accounts for them.
    pub(super) fn lost_up_to(&self) -> i64 {
        self.now.saturating_sub(self.lost_after)
    }
}
