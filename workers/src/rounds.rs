//! The rounds of a task that retries for ever. What waiting mends is waited for; what only an operator mends is told: in the log,
//! once for each other error, in a metric, and by `/readyz`, until a round comes through.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error;
use crate::lifecycle::Readiness;
use crate::metrics::Metrics;
use crate::transience::Fault;

/// How often in a row a round may fail for a reason that nobody knows to pass by itself before the task is said to stand still.
/// A missing setting, grant or table is told at once.
const UNKNOWN: u32 = 3;

/// The rounds of one task.
pub struct Rounds {
    part: &'static str,
    readiness: Option<Readiness>,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The error that was logged last; none after a round that came through.
    told: Option<String>,
    /// Rounds in a row that failed for a reason that waiting does not mend.
    failures: u32,
    stands: bool,
}

impl Rounds {
    /// `part`: the name under which `/readyz`, the log and the metric speak of the task.
    pub fn new(part: &'static str, readiness: &Readiness, metrics: &Arc<Metrics>) -> Self {
        Self {
            readiness: Some(readiness.clone()),
            ..Self::beside(part, metrics)
        }
    }

    /// As [`Rounds::new`], for a task for which nothing else may wait: `/readyz` does not name it.
    pub fn beside(part: &'static str, metrics: &Arc<Metrics>) -> Self {
        Self {
            part,
            readiness: None,
            metrics: metrics.clone(),
            state: Mutex::default(),
        }
    }

    /// A round came through, or there is nothing to be done any more.
    pub fn passed(&self) {
        let state = std::mem::take(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner));
        if state.stands {
            tracing::info!(part = self.part, "it goes on");
            if let Some(readiness) = &self.readiness {
                readiness.set(self.part, true);
            }
        }
    }

    /// A round failed; the task tries again.
    pub fn failed(&self, fault: Fault, error: &dyn std::error::Error) {
        let (part, text) = (self.part, error::chain(error));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = state.told.as_ref() != Some(&text);
        let stood = state.stands;
        if !fault.is_transient() {
            self.metrics.failing_rounds.with_label_values(&[part]).inc();
            state.failures += 1;
            state.stands |= fault == Fault::Setting || state.failures >= UNKNOWN;
        }
        if state.stands
            && let Some(readiness) = &self.readiness
        {
            readiness.wait(part, text.clone());
        }
        match !fault.is_transient() && state.stands {
            true if is_new || !stood => {
                tracing::error!(
                    part,
                    error = text,
                    "it stands still until what the error names is mended"
                );
            }
            false if is_new => tracing::warn!(part, error = text, "it is tried again"),
            _ => {}
        }
        state.told = Some(text);
    }

    /// One item of a round failed, such as one mail. Only what has to be mended concerns the others as well.
    pub fn failed_for_one(&self, fault: Fault, error: &dyn std::error::Error) {
        match fault {
            Fault::Setting => self.failed(fault, error),
            fault if fault.is_transient() => {}
            _ => {
                let (part, error) = (self.part, error::chain(error));
                self.metrics.failing_rounds.with_label_values(&[part]).inc();
                tracing::error!(part, error, "one item fails by itself, and is tried again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds() -> (Rounds, Readiness, Arc<Metrics>) {
        let (readiness, metrics) = (Readiness::default(), Arc::new(Metrics::new().unwrap()));
        (Rounds::new("mail", &readiness, &metrics), readiness, metrics)
    }

    #[test]
    fn what_only_an_operator_mends_is_told_until_a_round_comes_through() {
        let (rounds, readiness, metrics) = rounds();
        rounds.failed(Fault::Setting, &std::fmt::Error);
        assert_eq!(readiness.missing(), ["mail"]);
        // While the server is away nobody knows whether it has been mended.
        rounds.failed(Fault::Server, &std::fmt::Error);
        assert_eq!(readiness.missing(), ["mail"]);
        rounds.passed();
        assert!(readiness.missing().is_empty());
        assert_eq!(metrics.failing_rounds.with_label_values(&["mail"]).get(), 1);
    }

    #[test]
    fn what_waiting_mends_is_waited_for_and_the_unknown_for_some_rounds() {
        let (rounds, readiness, _) = rounds();
        for _ in 0..10 {
            rounds.failed(Fault::Server, &std::fmt::Error);
        }
        rounds.failed(Fault::Unknown, &std::fmt::Error);
        rounds.failed(Fault::Unknown, &std::fmt::Error);
        rounds.passed();
        rounds.failed(Fault::Unknown, &std::fmt::Error);
        rounds.failed(Fault::Unknown, &std::fmt::Error);
        assert!(readiness.missing().is_empty());
        rounds.failed(Fault::Unknown, &std::fmt::Error);
        assert_eq!(readiness.missing(), ["mail"]);
    }
}
