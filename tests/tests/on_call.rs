//! A night on call, as a reader of the page spends it: each alert comes by a fault that is real, and goes out again.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use holdfast_tests::kit::{Installation, Kit, Name, Prometheus, Server, checkout, process, until};
use holdfast_tests::on_call::{Chapter, page};
use tokio::task::spawn_blocking;

use crate::support::{DEADLINE, clean_by};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![each_alert_fires_with_its_fault_and_goes_out_with_it];

/// Short, and yet so long that the alerts about what fails come before it is given up.
const STUCK_AFTER: (&str, &str) = ("HOLDFAST_STUCK_AFTER", "40s");

/// Stands between what the commands of one step and those of the next print.
const MARK: &str = "----- next step -----";

/// What the walk adds to the commands of the page. A step that fails ends it; what it has started in the background ends with it.
const BEGIN: &str = r#"set -euo pipefail
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
quiet() {
  local names early
  names=$(firing)
  early=$(grep -xE "$1" <<<"$names" || true)
  [[ -z $early ]] || { echo "before its fault there fires $early" >&2; return 1; }
}
"#;

fn each_alert_fires_with_its_fault_and_goes_out_with_it(_: &Kit) -> anyhow::Result<()> {
    let kit = Kit::start(Name::OnCall).context("the servers do not start")?;
    kit.block_on(async {
        let spent = spend_the_night(&kit).await;
        kit.stack.stop().await?;
        spent
    })
}

/// As a reader of the page does, who has it all from `make dev`.
async fn spend_the_night(kit: &Kit) -> anyhow::Result<()> {
    let installation = Installation::start(&kit.stack, &kit.provider, "on-call", &[STUCK_AFTER]).await?;
    let walked = walk(kit, &installation).await;
    installation.stop().await?;
    walked?;
    clean_by(|| kit.stack.holdfast("verify", "verify").provider(&kit.provider))
        .await
        .map(drop)
}

async fn walk(kit: &Kit, installation: &Installation) -> anyhow::Result<()> {
    let sight = installation.sight.as_ref().context("no Prometheus")?;
    nothing_fires(&sight.prometheus).await.context("before the night")?;
    let folder = kit.stack.folder();
    let (addresses, script) = (folder.join("stack.json"), folder.join("on-call.sh"));
    fs::write(&addresses, installation.addresses.to_string())?;
    let chapters = page()?;
    fs::write(&script, commands(&chapters))?;
    let mut bash = process::command(Path::new("bash"), None);
    bash.arg(&script).env("STACK", &addresses).current_dir(checkout());
    let printed = spawn_blocking(move || process::output(bash)).await??;
    nothing_fires(&sight.prometheus).await.context("after the night")?;
    compare(&chapters, &printed)
}

async fn nothing_fires(prometheus: &Server<Prometheus>) -> anyhow::Result<()> {
    until("nothing fires", DEADLINE, async || {
        let evaluated = prometheus.query("holdfast:checkouts_late:ratio5m").await?;
        ensure!(!evaluated.is_empty(), "no rule is evaluated");
        let firing = prometheus.firing().await?;
        ensure!(firing.is_empty(), "{firing:?}");
        anyhow::Ok(())
    })
    .await
}

/// All commands of the page, one script. No alert of a chapter fires before it.
fn commands(chapters: &[Chapter]) -> String {
    let mut script = BEGIN.to_owned();
    for Chapter { sections, steps, .. } in chapters {
        let alerts: Vec<_> = sections.iter().map(|section| section.alert.as_str()).collect();
        if !alerts.is_empty() {
            script += &format!("quiet '{}'\n", alerts.join("|"));
        }
        for step in steps {
            script += &format!("echo '{MARK}'\n{}", step.commands);
        }
    }
    script
}

/// Each step has printed what the page shows below it.
fn compare(chapters: &[Chapter], printed: &str) -> anyhow::Result<()> {
    let steps: Vec<_> = chapters.iter().flat_map(|chapter| &chapter.steps).collect();
    let outputs: Vec<_> = printed.split(MARK).skip(1).collect();
    ensure!(
        outputs.len() == steps.len(),
        "{} steps of {}",
        outputs.len(),
        steps.len()
    );
    for (step, output) in steps.iter().zip(outputs) {
        for shown in &step.shows {
            let commands = &step.commands;
            ensure!(
                output.contains(shown),
                "{shown:?} is not in what these print:\n{commands}\n{output}"
            );
        }
    }
    Ok(())
}
