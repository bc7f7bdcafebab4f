//! Whether work moves: what `/readyz` says of a task that has work in hand.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long work may be in hand with none of it done before it is said to stand still.
const STANDSTILL: Duration = Duration::from_secs(10);

/// Since when a task has work in hand of which nothing was done.
#[derive(Clone, Default)]
pub struct Progress(Arc<Mutex<Option<Instant>>>);

impl Progress {
    /// Whether work moves, or there is none.
    pub fn moves(&self) -> bool {
        self.moves_at(Instant::now())
    }

    fn moves_at(&self, now: Instant) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_none_or(|since| now.duration_since(since) < STANDSTILL)
    }

    pub(super) fn begun(&self) {
        self.change(|since| Some(since.unwrap_or_else(Instant::now)));
    }

    pub(super) fn moved(&self) {
        self.change(|since| since.map(|_| Instant::now()));
    }

    pub(super) fn rests(&self) {
        self.change(|_| None);
    }

    fn change(&self, next: impl FnOnce(Option<Instant>) -> Option<Instant>) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *since = next(*since);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_stands_still_that_is_in_hand_and_not_done() {
        let progress = Progress::default();
        assert!(progress.moves_at(Instant::now() + STANDSTILL));
        progress.begun();
        assert!(progress.moves() && !progress.moves_at(Instant::now() + STANDSTILL));
        let before = Instant::now() + STANDSTILL;
        progress.moved();
        assert!(progress.moves_at(before));
        progress.rests();
        assert!(progress.moves_at(Instant::now() + STANDSTILL));
    }
}
