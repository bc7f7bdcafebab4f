//! The ticket tour of the docs, as a reader would run it.

use std::path::Path;

use anyhow::ensure;
use holdfast_tests::kit::{Kit, checkout, process, provider};
use tokio::task::spawn_blocking;

use crate::support::clean_by;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![the_ticket_tour_shows_what_it_tells];

/// Short, so that the tour sees a hold end, and long enough for it to see one refused before.
const HOLD_FOR: &str = "4s";

fn the_ticket_tour_shows_what_it_tells(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        kit.provider.heal();
        let launch = |subcommand| kit.stack.holdfast(subcommand, "tour").provider(&kit.provider);
        let worker = launch("run")
            .env("HOLDFAST_ABANDONED_AFTER", "2s")
            .env("HOLDFAST_HOLD_FOR", HOLD_FOR)
            .start()
            .await?;
        let mut tour = process::command(Path::new("bash"), None);
        tour.arg(checkout().join("docs/tour.sh"))
            .env("RESTATE_INGRESS", kit.stack.restate.ingress())
            .env("RESTATE_ADMIN", kit.stack.restate.admin())
            .env("HOLD_FOR", HOLD_FOR)
            .env("PROVIDER", kit.provider.url())
            .env("PROVIDER_KEY", provider::KEY);
        let told = spawn_blocking(move || process::output(tour)).await??;
        for step in [
            "it is held for her, for 4s, as the worker is set (HOLDFAST_HOLD_FOR)\n  {\"added\":",
            "Bob wants it too, and is refused\n  {\"refused\":",
            "She lets the time run out: the ticket leaves the cart, and is free\n",
            "one checkout, and the same answer\n  {",
            "The provider took the money, once\n  {",
            "It is cancelled in the engine",
            "Another one is killed",
            "The tour is over: every step did what it says.",
        ] {
            ensure!(told.contains(step), "the tour does not tell {step:?}:\n{told}");
        }
        let report = clean_by(|| launch("verify")).await?;
        ensure!(report["stuck"] == 0, "{report}");
        worker.stop().await
    })
}
