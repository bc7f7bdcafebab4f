//! The path with every door locked beside the open one, in turn: what TLS, names, rights and signatures cost.

use holdfast_tests::kit::{Holdfast, Name, Stack};
use holdfast_tests::load::{OUTCOMES, follow};
use serde_json::json;

use super::{Bench, Outcomes, ROUNDS, median, rounded};

/// The stack that is not measured just now, and the outcomes of tickets there.
struct Other {
    stack: Stack,
    tickets: Option<Outcomes>,
}

impl Other {
    fn change_places(&mut self, bench: &mut Bench) {
        std::mem::swap(&mut self.stack, &mut bench.stack);
        std::mem::swap(&mut self.tickets, &mut bench.tickets);
    }
}

impl Bench {
    /// Throughput of the uniform workload on either stack.
    pub(super) async fn tls(&mut self, run: &Holdfast) -> anyhow::Result<()> {
        let stack = Stack::open(Name::BenchLocked).await?;
        stack.start().await?;
        let run_locked = stack.holdfast("run", "run").start().await?;
        let tickets = Some(Outcomes(follow(&stack.kafka, OUTCOMES)?));
        let mut other = Other { stack, tickets };
        let (mut open, mut locked) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            open.push(self.round("tls-open", round, run).await?);
            other.change_places(self);
            let there = self.round("tls-locked", round, &run_locked).await;
            other.change_places(self);
            locked.push(there?);
        }
        run_locked.stop().await?;
        let report = &mut self.report;
        report.detail(
            "tls_rounds_eps",
            json!({ "open": rounded(&open), "locked": rounded(&locked) }),
        );
        let (open, locked) = (median(open), median(locked));
        report.figure("path_open_eps", open, "events/s");
        report.figure("path_locked_eps", locked, "events/s");
        report.figure("tls_ratio", locked / open, "locked / open");
        Ok(())
    }
}
