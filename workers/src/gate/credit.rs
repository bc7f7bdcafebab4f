//! How much the gate may hand to the engine before it looks again.

/// A reading of how much work the engine has not finished.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Engine {
    /// Invocations that are not completed.
    pub unfinished: u64,
    /// Number of the reading. A new one with the old value lets the gate go on as before while the engine is silent.
    pub reading: u64,
}

/// Admitted records that may go out on the last reading. The last window may overdraw it, so that windows stay wide.
#[derive(Debug)]
pub(super) struct Credit {
    limit: u64,
    reading: u64,
    left: i64,
}

impl Credit {
    pub(super) fn new(limit: u64, engine: Engine) -> Self {
        Self {
            limit,
            reading: engine.reading,
            left: room(limit, engine),
        }
    }

    /// Whether anything may go out.
    pub(super) fn is_open(&mut self, engine: Engine) -> bool {
        if engine.reading != self.reading {
            *self = Self::new(self.limit, engine);
        }
        self.left > 0
    }

    pub(super) fn spend(&mut self, records: usize) {
        self.left = self.left.saturating_sub_unsigned(records as u64);
    }
}

fn room(limit: u64, engine: Engine) -> i64 {
    i64::try_from(limit.saturating_sub(engine.unfinished)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_may_overdraw_and_then_the_next_reading_counts() {
        let engine = |unfinished, reading| Engine { unfinished, reading };
        let mut credit = Credit::new(100, engine(0, 0));
        assert!(credit.is_open(engine(0, 0)));
        credit.spend(150);
        assert!(!credit.is_open(engine(0, 0)));
        assert!(!credit.is_open(engine(120, 1)));
        assert!(credit.is_open(engine(99, 2)));
        credit.spend(1);
        assert!(!credit.is_open(engine(99, 2)));
    }

    #[test]
    fn a_silent_engine_gets_as_much_again_with_each_reading() {
        let mut credit = Credit::new(100, Engine::default());
        for reading in 0..5 {
            let engine = Engine {
                unfinished: 90,
                reading,
            };
            assert!(credit.is_open(engine));
            credit.spend(100);
            assert!(!credit.is_open(engine));
        }
    }
}
