//! The chart's pods at work on the servers of a stack, played by podman as their manifests have them: migrated, registered, restarted
//! in the middle, and judged by `verify`.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::kit::{Name, Stack, fetch, process};
use holdfast_tests::load::{Event, OUTCOMES, Pace, Producer, RESERVATIONS, follow};
use serde_json::json;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

/// Each is listed and asked for, which makes two outcomes.
const TICKETS: usize = 200;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run() -> anyhow::Result<()> {
    let stack = Stack::open(Name::Pods).await?;
    stack.start().await?;
    let database = json!({ "database-url-file": { "secret": "postgres", "key": "url" } });
    let values = json!({
        "image": { "repository": "localhost/holdfast" },
        "settings": {
            "kafka": stack.kafka.bootstrap(),
            "restate-admin": stack.restate.admin(),
            "restate-ingress": stack.restate.ingress(),
        },
        "migrate": { "grants": false, "files": database },
        // The second pod: see `play.py`.
        "register": { "settings": { "serve-url": "http://127.0.0.1:9090" } },
        "serve": { "files": database },
        "relay": { "files": database },
        "verify": { "enabled": true, "files": database },
        "secrets": { "postgres": { "url": stack.postgres.url() } },
    });
    let file = stack.folder().join("values.json");
    fs::write(&file, values.to_string())?;
    let pods = Pods;
    print!("{}", podman(&[&file.display().to_string()]).await?);
    let mut producer = Producer::new(&stack.kafka, RESERVATIONS)?;
    let mut arrivals = follow(&stack.kafka, OUTCOMES)?;
    let listed = |number| Event::listed(format!("list-{number}"), &format!("T-{number}"), "A1");
    let requested = |number| {
        Event::requested(
            format!("ask-{number}"),
            &format!("T-{number}"),
            &format!("user-{number}"),
        )
    };
    producer.send_all((0..TICKETS).map(listed), Pace::FullSpeed).await?;
    print!("{}", podman(&["--restart"]).await?);
    producer.send_all((0..TICKETS).map(requested), Pace::FullSpeed).await?;
    for _ in 0..2 * TICKETS {
        let arrival = tokio::time::timeout(PATIENCE, arrivals.recv()).await;
        arrival
            .context("an outcome does not come")?
            .context("no more outcomes")??;
    }
    info!("{} outcomes came", 2 * TICKETS);
    drop(pods);
    let verified = stack.holdfast("verify", "pods").output().await?;
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    ensure!(
        verified.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&verified.stderr)
    );
    info!("verify finds nothing wrong:\n{said}");
    Ok(())
}

/// Dropping it ends the pods.
struct Pods;

impl Drop for Pods {
    fn drop(&mut self) {
        match play(&["--down".to_owned()]) {
            Ok(said) => print!("{said}"),
            Err(error) => warn!("{error:#}"),
        }
    }
}

async fn podman(arguments: &[&str]) -> anyhow::Result<String> {
    let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    spawn_blocking(move || play(&arguments)).await?
}

fn play(arguments: &[String]) -> anyhow::Result<String> {
    let mut command = Command::new(fetch::kubernetes()?.join("python"));
    command
        .arg(fetch::manifests().join("kubernetes/play.py"))
        .args(arguments);
    process::output(command)
}
