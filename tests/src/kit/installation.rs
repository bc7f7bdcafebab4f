//! The whole product on a stack: `run`, a watch beside it, a payment provider that tells it webhooks, a Prometheus with the rules, and
//! every address that the docs speak of. `make dev` holds it open; the proof of `docs/on-call.md` breaks it as a reader would.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tracing::warn;

use super::prometheus::RuleTimes;
use super::provider::{self, Delivery, Simulator, WEBHOOK_SECRET};
use super::worker::{self, Launch};
use super::{Holdfast, Prometheus, Server, Stack, fetch};

/// What a developer need not wait for: a killed checkout is taken up soon, what fails is tried again soon.
const IMPATIENT: [(&str, &str); 5] = [
    ("HOLDFAST_ABANDONED_AFTER", "10s"),
    ("HOLDFAST_RETRY_PAUSE", "1s"),
    ("HOLDFAST_STUCK_AFTER", "2m"),
    ("HOLDFAST_SMTP_TIMEOUT", "5s"),
    ("HOLDFAST_MAIL_LONGEST_PAUSE", "2s"),
];

/// As long as a Prometheus that looks every second may need.
const LAST_SCRAPE: (&str, &str) = ("HOLDFAST_LAST_SCRAPE_WITHIN", "20s");

pub struct Installation {
    pub run: Holdfast,
    /// Absent on a locked stack, which lets no Prometheus in, and where there is none to be had.
    pub sight: Option<Sight>,
    /// The addresses and files, by name, as `.dev/stack.json` has them.
    pub addresses: Value,
}

/// What looks at the product from outside.
pub struct Sight {
    pub watch: Holdfast,
    pub prometheus: Server<Prometheus>,
}

/// Files with the secrets that an operator may replace while the product runs.
struct SecretFiles {
    provider_key: PathBuf,
    webhook_secret: PathBuf,
}

impl Installation {
    /// Returns once everything is ready. `instance` is the name of `run`; `settings` are its own.
    pub async fn start(
        stack: &Stack,
        provider: &Simulator,
        instance: &str,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Installation> {
        provider.webhooks_to(&stack.webhook_url()?, WEBHOOK_SECRET);
        provider.deliver_always(Delivery::InOrder);
        let launch = launch(stack, provider, instance, settings)?;
        let given = launch.settings()?;
        let run = launch.start().await?;
        let sight = match &stack.doors {
            Some(_) => None,
            None => Sight::start(stack, &run).await?,
        };
        let addresses = json!({
            "kafka": stack.kafka.bootstrap(),
            "restate_ingress": stack.restate.ingress(),
            "restate_admin": stack.restate.admin(),
            "postgres": stack.postgres.url(),
            "loyalty": stack.postgres.loyalty_url(),
            "holdfast_http": run.http,
            "mail": stack.maildev.as_ref().map(|maildev| maildev.web()),
            "provider": provider.url(),
            "provider_key": provider::KEY,
            "webhook_secret": WEBHOOK_SECRET,
            "prometheus": sight.as_ref().map(|sight| sight.prometheus.url()),
            "prometheus_targets": sight.as_ref().map(|sight| sight.prometheus.targets()),
            "spare_http": format!("127.0.0.1:{}", stack.ports.get("spare-http")?),
            "programs": worker::binary()?.parent(),
            "kafka_jars": stack.kafka.jars,
            "settings": given,
            "logs": stack.folder(),
            "log": run.log(),
            "processes": {
                "holdfast": run.pid().as_raw(),
                "watch": sight.as_ref().map(|sight| sight.watch.pid().as_raw()),
                "kafka": stack.kafka.pid()?.as_raw(),
                "restate": stack.restate.pid()?.as_raw(),
                "postgres": stack.postgres.pid()?.as_raw(),
                "mail": stack.maildev.as_ref().map(|maildev| maildev.pid()).transpose()?.map(|pid| pid.as_raw()),
            },
        });
        Ok(Installation { run, sight, addresses })
    }

    pub async fn stop(&self) -> anyhow::Result<()> {
        if let Some(Sight { watch, prometheus }) = &self.sight {
            prometheus.stop().await?;
            watch.stop().await?;
        }
        self.run.stop().await
    }
}

impl Sight {
    /// A watch that looks often, and is not much of a burden. Nothing where Prometheus cannot be fetched.
    async fn start(stack: &Stack, run: &Holdfast) -> anyhow::Result<Option<Sight>> {
        if let Err(error) = spawn_blocking(fetch::prometheus).await? {
            warn!("no Prometheus and no watch: {error:#}");
            return Ok(None);
        }
        let watch = stack.holdfast("verify", "watch").arg("--watch");
        let watch = watch
            .env("HOLDFAST_WATCH_EVERY", "1s")
            .env("HOLDFAST_WATCH_SHARE", "20")
            .start()
            .await?;
        let prometheus = Prometheus::start(stack, &[run, &watch], RuleTimes::Shortened).await?;
        Ok(Some(Sight { watch, prometheus }))
    }
}

/// Its provider's key and its webhook secret lie in files, so that they can be replaced.
fn launch<'a>(
    stack: &'a Stack,
    provider: &Simulator,
    instance: &str,
    settings: &[(&str, &str)],
) -> anyhow::Result<Launch<'a>> {
    let files = SecretFiles::write(stack)?;
    let launch = stack.holdfast("run", instance).arg("--examples").provider(provider);
    let launch = launch
        .without("HOLDFAST_PROVIDER_KEY")
        .env("HOLDFAST_PROVIDER_KEY_FILE", &files.provider_key.display().to_string())
        .env(
            "HOLDFAST_WEBHOOK_SECRET_FILE",
            &files.webhook_secret.display().to_string(),
        );
    let settings = IMPATIENT.iter().chain([&LAST_SCRAPE]).chain(settings);
    Ok(settings.fold(launch, |launch, (name, value)| launch.env(name, value)))
}

impl SecretFiles {
    fn write(stack: &Stack) -> anyhow::Result<SecretFiles> {
        let file = |name: &str, secret: &str| {
            let path = stack.folder().join(name);
            fs::write(&path, secret).with_context(|| path.display().to_string())?;
            anyhow::Ok(path)
        };
        Ok(SecretFiles {
            provider_key: file("provider-key", provider::KEY)?,
            webhook_secret: file("webhook-secret", WEBHOOK_SECRET)?,
        })
    }
}
