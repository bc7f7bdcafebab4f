//! The rules of quarantine: how the first event that breaks is found, and how many new keys are bad events rather than a bad
//! deploy.

use std::ops::Range;

/// Keys that may be quarantined within a minute. More break because of us: a new release, a constraint that somebody added. Then no
/// further key is quarantined, and all retry.
pub const MOST_NEW_KEYS: i64 = 5;

/// Whether one more key would be one too many, after so many new ones within a minute.
pub fn is_flood(new_keys: i64) -> bool {
    new_keys >= MOST_NEW_KEYS
}

/// The search for the first piece of work that breaks, by doing runs of it in order. What was done stays done, so the pieces before
/// the breaker are all done when it is found.
#[derive(Debug)]
pub struct BreakerSearch {
    /// The pieces before are done.
    done: usize,
    /// The pieces from `done` up to here are known to break together.
    breaks: usize,
    pieces: usize,
}

impl BreakerSearch {
    /// Over so many pieces.
    pub fn new(pieces: usize) -> Self {
        Self {
            done: 0,
            breaks: 0,
            pieces,
        }
    }

    /// The next pieces to do; none once all are done.
    pub fn next_run(&self) -> Option<Range<usize>> {
        let suspects = self.breaks - self.done;
        match suspects {
            0 if self.done == self.pieces => None,
            0 => Some(self.done..self.pieces),
            1 => Some(self.done..self.breaks),
            _ => Some(self.done..self.done + suspects / 2),
        }
    }

    /// The run was done.
    pub fn passed(&mut self) {
        if let Some(run) = self.next_run() {
            self.done = run.end;
            self.breaks = self.breaks.max(self.done);
        }
    }

    /// The run broke, and nothing of it is done. Returns the place of the breaker, if it was a single piece.
    pub fn broke(&mut self) -> Option<usize> {
        let run = self.next_run()?;
        self.breaks = run.end;
        (run.len() == 1).then_some(run.start)
    }

    /// How many pieces are done.
    pub fn done(&self) -> usize {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Searches work of which these pieces break. Returns what was done, in order, the breaker, and the number of runs.
    fn search(breaks: &[bool]) -> (Vec<usize>, Option<usize>, usize) {
        let mut search = BreakerSearch::new(breaks.len());
        let (mut done, mut runs) = (Vec::new(), 0);
        while let Some(run) = search.next_run() {
            runs += 1;
            if !run.clone().any(|place| breaks[place]) {
                done.extend(run);
                search.passed();
            } else if let Some(breaker) = search.broke() {
                assert_eq!(search.done(), breaker);
                return (done, Some(breaker), runs);
            }
        }
        (done, None, runs)
    }

    proptest! {
        #[test]
        fn everything_before_the_first_breaker_is_done_in_order_and_nothing_else(
            breaks in prop::collection::vec(prop::bool::weighted(0.1), 0..300),
        ) {
            let first = breaks.iter().position(|breaks| *breaks);
            let (done, breaker, runs) = search(&breaks);
            prop_assert_eq!(breaker, first);
            prop_assert_eq!(done, (0..first.unwrap_or(breaks.len())).collect::<Vec<_>>());
            prop_assert!(runs <= 2 * (breaks.len().max(1).ilog2() as usize + 1) + 1, "{runs} runs");
            prop_assert!(first.is_some() || runs <= 1, "{runs} runs");
        }
    }

    #[test]
    fn a_few_new_keys_are_bad_events_and_many_are_a_bad_deploy() {
        assert!(!is_flood(0) && !is_flood(MOST_NEW_KEYS - 1));
        assert!(is_flood(MOST_NEW_KEYS) && is_flood(1_000));
    }
}
