//! The composition root: puts each subcommand together from its parts.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use secrecy::SecretString;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::checkout::{self, Driver};
use crate::config::{self, Cli, Config, Role};
use crate::lifecycle::{self, Lifecycle, Readiness, Ready, Spawner};
use crate::listener::{Port, Protocol};
use crate::mail::{Mailer, Templates};
use crate::metrics::Metrics;
use crate::provider::Provider;
use crate::register::Earlier;
use crate::restate_admin::RestateAdmin;
use crate::rounds::Rounds;
use crate::store::credits::Loyalty;
use crate::store::mechanisms::Error::CannotPrepare;
use crate::store::progress::Progress;
use crate::store::quarantine::Quarantine;
use crate::store::rotation::{AddressFile, Look};
use crate::sweep::Sweeper;
use crate::transience::Fault;
use crate::{
    admin, doctor, domain, error, gate, logs, objects, plan, printable, register, relay, restate_admin, store, traces,
    verify, webhook,
};

/// Interval of the sweep of prepared transactions that a try left behind in the loyalty database.
const SWEEP_CREDITS_EVERY: Duration = Duration::from_secs(10);

/// Interval of the pings of the database; below, the longest wait for an answer.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_PATIENCE: Duration = Duration::from_secs(5);

/// Longest time that `register` waits for servers that are not up; `run` waits for ever.
const REGISTER_PATIENCE: Duration = Duration::from_secs(60);

/// Runs one subcommand. Exit codes: 0 done, 1 failed or a promise is broken, 2 a setting is wrong.
pub fn main(mut cli: Cli) -> ExitCode {
    let checked = cli.read_secrets().and_then(|()| cli.check());
    let templates = match checked.and_then(|()| templates(&cli)) {
        Ok(templates) => templates,
        Err(wrong) => {
            let lines: Vec<String> = wrong.iter().map(|setting| format!("wrong setting {setting}")).collect();
            return complain(&lines.join("\n"), 2);
        }
    };
    logs::start(&cli.config.process);
    error::note_panics();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("cannot start: {error}"), 1),
    };
    let ended = runtime.block_on(run(cli, templates));
    // A name or a file that is looked up at this moment may take for ever; nothing depends on it any more.
    runtime.shutdown_background();
    match ended {
        Ok(code) => code,
        Err(error) => complain(&printable::line(format!("{error:#}")), exit_code(&error)),
    }
}

/// The templates of mails. Whoever has the shipped ones written out may have none of their own yet.
fn templates(cli: &Cli) -> Result<Templates, Vec<config::Invalid>> {
    match &cli.command {
        Role::Admin(command) if matches!(command.what, config::Admin::Mail(_)) => Templates::load(None),
        _ => Templates::load(cli.config.mail.templates.as_deref()),
    }
}

/// 2 when nothing but another setting, or another database, helps.
fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(is_setting) { 2 } else { 1 }
}

fn is_setting(cause: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = cause.downcast_ref::<store::Error>() {
        return matches!(error, store::Error::Url(_) | store::Error::Unfit { .. });
    }
    if let Some(error) = cause.downcast_ref::<store::grants::Error>() {
        return matches!(
            error,
            store::grants::Error::Owner { .. } | store::grants::Error::Refused(_)
        );
    }
    cause
        .downcast_ref::<store::migrate::Error>()
        .is_some_and(store::migrate::Error::is_setting)
        || cause.downcast_ref::<verify::Unfit>().is_some()
        || cause.downcast_ref::<plan::WrongCosts>().is_some()
}

async fn run(cli: Cli, templates: Templates) -> anyhow::Result<ExitCode> {
    let Cli { config, command, .. } = cli;
    match command {
        Role::Gate
        | Role::Serve
        | Role::Relay
        | Role::Webhook
        | Role::Run { .. }
        | Role::Verify { watch: true, .. } => {
            work(config, command, templates).await?;
        }
        Role::Migrate {
            print_grants: Some(database),
            roles,
            ..
        } => say(store::grants::statements(database, &roles).trim_end())?,
        Role::Migrate { grants, roles, .. } => {
            let pool = store::connect(&config.database, &Metrics::new()?).await?;
            let applied = store::migrate(&pool).await?;
            say(&format!("the tables are up to date; migrations applied: {applied}"))?;
            if grants {
                store::grants::apply(&pool, &roles).await?;
                let config::Roles {
                    app,
                    verify,
                    admin,
                    books,
                    ..
                } = &roles;
                say(&format!(
                    "the roles {app}, {verify}, {admin} and {books} have exactly their rights"
                ))?;
            }
        }
        Role::Register { direct, prune } => {
            let earlier = if prune { Earlier::Prune } else { Earlier::Keep };
            let report = register::run(&config, path(direct), earlier, Some(REGISTER_PATIENCE), clock).await?;
            say(&report.to_string())?;
            return Ok(if report.differs() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            });
        }
        Role::Verify { json, .. } => {
            let provider = Provider::new(&config.provider, Arc::new(Metrics::new()?))?;
            let report = verify::run(&config.kafka, &config.database, &config.verify, provider.as_ref()).await?;
            say(&if json {
                serde_json::to_string(&report)?
            } else {
                report.to_string()
            })?;
            return Ok(if report.is_clean() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Role::Doctor {
            roles,
            only,
            long_open,
            prometheus,
            direct,
            json,
        } => {
            let scope = doctor::Scope {
                roles,
                only,
                long_open,
                prometheus,
                path: path(direct),
            };
            let report = doctor::run(&config, &scope, clock).await;
            say(&if json {
                serde_json::to_string(&report)?
            } else {
                report.to_string()
            })?;
            return Ok(if report.is_sound() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Role::Health { ready } => {
            let answer = lifecycle::ask(&config.process, if ready { "/readyz" } else { "/livez" }).await?;
            say(answer.trim_end())?;
        }
        Role::Plan(load) => {
            let report = plan::run(&load, &config)?;
            say(&if load.json {
                serde_json::to_string(&report)?
            } else {
                report.to_string()
            })?;
        }
        Role::Admin(command) => admin::run(&command, config, clock, new_id).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn path(direct: bool) -> register::Path {
    if direct {
        register::Path::Direct
    } else {
        register::Path::Gate
    }
}

/// Runs the long-lived parts until a signal or a failure.
async fn work(config: Config, role: Role, templates: Templates) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new().context("the metrics are not well formed")?);
    metrics
        .build_info
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1);
    tracing::info!(?config, version = env!("CARGO_PKG_VERSION"), "starting");
    let exporter = traces::start(&config.traces, &config.process.instance, &metrics, clock)?;
    let lifecycle = Lifecycle::new();
    let drain_timeout = config.process.drain_timeout;
    let worker = Worker {
        config,
        templates: Arc::new(templates),
        metrics,
        spawner: lifecycle.spawner(),
        readiness: lifecycle.readiness(),
    };
    worker.spawn_http();
    lifecycle.spawner().spawn("start", worker.start(role));
    let ended = lifecycle.run(drain_timeout).await;
    if let Some(exporter) = exporter {
        exporter.finish().await;
    }
    ended
}

/// The long-lived parts of one process and what they share.
#[derive(Clone)]
struct Worker {
    config: Config,
    templates: Arc<Templates>,
    metrics: Arc<Metrics>,
    spawner: Spawner,
    readiness: Readiness,
}

impl Worker {
    /// Starts the parts in order, then waits for the end.
    async fn start(self, role: Role) -> anyhow::Result<()> {
        let shutdown = self.spawner.shutdown();
        let parts = async {
            match role {
                Role::Gate => self.spawn_gate(self.watch_engine()?),
                Role::Serve => {
                    let pool = self.connect().await?;
                    self.spawn_serve(pool).await?;
                    self.watch_engine()?;
                    self.spawn_arming();
                }
                Role::Relay => self.spawn_relay(self.connect().await?),
                Role::Webhook => self.spawn_webhook().await?,
                Role::Verify { .. } => self.spawn_watch()?,
                _ => self.start_all(&role).await?,
            }
            anyhow::Ok(())
        };
        self.readiness.set("start", false);
        tokio::select! {
            started = parts => started?,
            () = shutdown.cancelled() => return Ok(()),
        }
        self.readiness.set("start", true);
        shutdown.cancelled().await;
        Ok(())
    }

    /// `run`: tables first, then the objects, then gate and webhook that bring them events, then the relay.
    async fn start_all(&self, role: &Role) -> anyhow::Result<()> {
        let &Role::Run {
            no_migrate,
            no_register,
        } = role
        else {
            return Ok(());
        };
        let pool = self.connect().await?;
        if !no_migrate {
            store::migrate(&pool).await?;
        }
        self.spawn_serve(pool.clone()).await?;
        if no_register {
            self.spawn_arming();
        } else {
            let report = register::run(&self.config, register::Path::Gate, Earlier::Keep, None, clock).await?;
            tracing::info!(%report, "registered");
            self.spawn_subscription_watch();
        }
        self.spawn_gate(self.watch_engine()?);
        self.spawn_relay(pool);
        self.spawn_webhook().await
    }

    async fn connect(&self) -> anyhow::Result<PgPool> {
        self.readiness.set("postgres", false);
        let pool = store::connect(&self.config.database, &self.metrics).await?;
        store::migrate::admit(&pool).await?;
        self.readiness.set("postgres", true);
        self.watch_postgres(pool.clone());
        let database = &self.config.database;
        self.watch_address("database-url-file", &pool, database.url_file.as_deref(), &database.url);
        Ok(pool)
    }

    /// Reads the file of an address again and again: after a rotation it has another password.
    fn watch_address(&self, part: &'static str, pool: &PgPool, file: Option<&Path>, url: &SecretString) {
        let Some(file) = file else { return };
        let mut file = AddressFile::new(file, pool.clone(), &self.config.database, url);
        let rounds = Rounds::beside(part, &self.metrics);
        let watch = async move {
            let mut ticks = tokio::time::interval(PING_EVERY);
            loop {
                ticks.tick().await;
                match file.look().await {
                    Ok(Look::Same) => rounds.passed(),
                    Ok(Look::Changed) => {
                        rounds.passed();
                        tracing::info!(part, "the file has changed: new sessions use what it has now");
                    }
                    Err(error) => rounds.failed(error.fault(), &error),
                }
            }
        };
        self.spawner.spawn_until_shutdown(part, watch);
    }

    /// Pings the database for readiness, and counts the pool's connections.
    fn watch_postgres(&self, pool: PgPool) {
        let (metrics, readiness) = (self.metrics.clone(), self.readiness.clone());
        let rounds = self.rounds("postgres");
        let watch = async move {
            let mut ticks = tokio::time::interval(PING_EVERY);
            loop {
                ticks.tick().await;
                let answer = tokio::time::timeout(PING_PATIENCE, store::ping(&pool)).await;
                readiness.set("postgres", matches!(answer, Ok(Ok(()))));
                match &answer {
                    Ok(Ok(())) => rounds.passed(),
                    Ok(Err(error)) => rounds.failed(error.fault(), error),
                    Err(elapsed) => rounds.failed(Fault::Server, elapsed),
                }
                let idle = i64::try_from(pool.num_idle()).unwrap_or(i64::MAX);
                let connections = &metrics.pool_connections;
                connections.with_label_values(&["idle"]).set(idle);
                connections
                    .with_label_values(&["used"])
                    .set(i64::from(pool.size()) - idle);
            }
        };
        self.spawner.spawn_until_shutdown("postgres", watch);
    }

    /// Says whether what is handed over to the committers is committed, whatever else the database answers.
    fn watch_progress(&self, parts: [(&'static str, Progress); 2]) {
        let readiness = self.readiness.clone();
        let watch = async move {
            let mut ticks = tokio::time::interval(PING_EVERY);
            loop {
                ticks.tick().await;
                for (part, progress) in &parts {
                    readiness.set(part, progress.moves());
                }
            }
        };
        self.spawner.spawn_until_shutdown("progress", watch);
    }

    fn spawn_http(&self) {
        let Self {
            config,
            metrics,
            spawner,
            readiness,
            ..
        } = self.clone();
        let shutdown = spawner.shutdown();
        spawner.spawn(
            "http",
            lifecycle::serve_http(config.process, metrics, readiness, shutdown),
        );
    }

    async fn spawn_serve(&self, pool: PgPool) -> anyhow::Result<()> {
        let serve = &self.config.serve;
        let flag = "--serve-listen (HOLDFAST_SERVE_LISTEN)";
        let port = Port::open(serve.listen, flag, serve.certificate(), Protocol::Http2).await?;
        let retention = self.config.database.idempotency_retention;
        let limits = self.config.serve.clone();
        let (tickets, committing_tickets) = store::Committer::new(
            pool.clone(),
            domain::ticket::holding_by(self.config.checkout.hold_terms()),
            limits.clone(),
            retention,
            self.metrics.clone(),
        );
        let (users, committing_users) = store::Committer::new(
            pool.clone(),
            domain::user::decide_without_loyalty,
            limits,
            retention,
            self.metrics.clone(),
        );
        self.watch_progress([("tickets", tickets.progress()), ("users", users.progress())]);
        let loyalty = self.spawn_loyalty(&pool)?;
        let driver = Driver::new(&self.config, &pool, loyalty.clone(), &self.metrics, clock, new_id)?;
        self.spawn_checkouts(driver.clone())?;
        self.spawn_mailer(&pool)?;
        self.spawn_reaper_watch(&pool)?;
        let (attributes, batching) = store::ticket_attributes::Access::new(pool.clone());
        // The committers end when the objects have dropped their handles and nothing waits.
        self.spawn_to_end("tickets", committing_tickets);
        self.spawn_to_end("users", committing_users);
        self.spawn_to_end("attributes", batching);
        let tools = objects::Tools {
            tickets,
            users,
            quarantine: Quarantine::new(pool.clone(), retention, self.metrics.clone()),
            pool: pool.clone(),
            attributes,
            loyalty,
            driver,
            settings: self.config.checkout.clone(),
            metrics: self.metrics.clone(),
            now: clock,
        };
        let endpoint = objects::endpoint(tools, &self.config.serve)?;
        let shutdown = self.spawner.shutdown();
        self.spawner.spawn("serve", async move {
            objects::serve(port, endpoint, shutdown).await;
            Ok(())
        });
        self.spawn_count_of_quarantine(pool.clone());
        self.spawn_sweep(pool)
    }

    /// Counts what is in quarantine.
    fn spawn_count_of_quarantine(&self, pool: PgPool) {
        let metrics = self.metrics.clone();
        let rounds = Rounds::beside("quarantine (count)", &self.metrics);
        self.spawner.spawn_until_shutdown("count quarantine", async move {
            store::quarantine::keep_count(&pool, &metrics, &rounds).await
        });
    }

    fn spawn_sweep(&self, pool: PgPool) -> anyhow::Result<()> {
        let sweeper = Sweeper {
            pool,
            admin: RestateAdmin::new(&self.config.restate)?,
            retention: self.config.database.idempotency_retention,
            metrics: self.metrics.clone(),
            rounds: Rounds::beside("sweep", &self.metrics),
        };
        self.spawner
            .spawn_until_shutdown("sweep", async move { sweeper.run().await });
        Ok(())
    }

    fn spawn_to_end(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawner.spawn(name, async move {
            task.await;
            Ok(())
        });
    }

    /// Connects to the loyalty database, if there is one, and sweeps it. While it is away, only users whose credits change
    /// wait.
    fn spawn_loyalty(&self, main: &PgPool) -> anyhow::Result<Option<Loyalty>> {
        let database = &self.config.database;
        let Some(url) = &database.loyalty_url else {
            return Ok(None);
        };
        let other = store::pool(url, database)?;
        self.watch_address("loyalty-url-file", &other, database.loyalty_url_file.as_deref(), url);
        let loyalty = Loyalty::new(main.clone(), other, database.idempotency_retention);
        let (sweeping, age) = (loyalty.clone(), database.credits_abandoned_after);
        let (metrics, shutdown) = (self.metrics.clone(), self.spawner.shutdown());
        let rounds = self.rounds("loyalty");
        self.spawner.spawn("loyalty", async move {
            tokio::select! {
                swept = sweep_credits(&sweeping, age, &metrics, &rounds) => swept,
                () = shutdown.cancelled() => Ok(()),
            }
        });
        Ok(Some(loyalty))
    }

    /// Starts the reconciler of abandoned checkouts.
    fn spawn_checkouts(&self, driver: Driver) -> anyhow::Result<()> {
        let admin = RestateAdmin::new(&self.config.restate)?;
        let idle = self.config.checkout.abandoned_after;
        let (metrics, shutdown) = (self.metrics.clone(), self.spawner.shutdown());
        let (looking, counting) = (
            self.rounds("checkouts"),
            Rounds::beside("checkouts (count)", &self.metrics),
        );
        self.spawner.spawn("checkouts", async move {
            tokio::select! {
                () = checkout::reconciler::look_after(driver.clone(), admin, idle, looking) => {}
                () = checkout::reconciler::keep_count(driver, metrics, counting) => {}
                () = shutdown.cancelled() => {}
            }
            Ok(())
        });
        Ok(())
    }

    /// Starts the mailer, if there is a mail server. While the server is away, only mails wait.
    fn spawn_mailer(&self, pool: &PgPool) -> anyhow::Result<()> {
        let mailer = Mailer::new(&self.config.mail, self.templates.clone(), pool, &self.metrics)
            .context("no mails can be sent by --smtp-url (HOLDFAST_SMTP_URL)")?;
        let Some(mailer) = mailer else {
            return Ok(());
        };
        let counting = mailer.clone().count();
        self.spawner.spawn("mail", mailer.run(self.spawner.shutdown()));
        self.spawner.spawn_until_shutdown("count mails", counting);
        Ok(())
    }

    /// Watches the number of Restate's unfinished invocations.
    fn watch_engine(&self) -> anyhow::Result<watch::Receiver<gate::Backlog>> {
        let admin = RestateAdmin::new(&self.config.restate)?;
        let (readings, engine) = watch::channel(gate::Backlog::default());
        let (metrics, shutdown) = (self.metrics.clone(), self.spawner.shutdown());
        let rounds = self.rounds("engine");
        self.spawner.spawn("engine", async move {
            restate_admin::watch_engine(admin, metrics, readings, rounds, shutdown).await;
            Ok(())
        });
        Ok(engine)
    }

    /// Arms the Reaper again when it has no turn left, as after somebody killed the last one.
    fn spawn_reaper_watch(&self, pool: &PgPool) -> anyhow::Result<()> {
        let admin = RestateAdmin::new(&self.config.restate)?;
        let watch = register::keep_armed(self.config.clone(), admin, pool.clone(), self.rounds("reaper"));
        self.spawner.spawn_until_shutdown("reaper", watch);
        Ok(())
    }

    /// Has the engine read on when it has lost Kafka.
    fn spawn_subscription_watch(&self) {
        let (config, rounds) = (self.config.clone(), Rounds::beside("subscriptions", &self.metrics));
        let shutdown = self.spawner.shutdown();
        self.spawner.spawn("subscriptions", async move {
            tokio::select! {
                ended = register::keep_reading(&config, clock, &rounds) => match ended? {},
                () = shutdown.cancelled() => Ok(()),
            }
        });
    }

    /// Arms the Reaper: its turns start anew with each process, so that none is lost with Restate's disk.
    fn spawn_arming(&self) {
        let (config, shutdown) = (self.config.clone(), self.spawner.shutdown());
        self.spawner.spawn("arm", async move {
            tokio::select! {
                armed = register::arm(&config) => armed?,
                () = shutdown.cancelled() => return Ok(()),
            }
            shutdown.cancelled().await;
            Ok(())
        });
    }

    fn spawn_gate(&self, engine: watch::Receiver<gate::Backlog>) {
        let config = &self.config;
        let settings = gate::Settings {
            kafka: config.kafka.clone(),
            gate: config.gate.clone(),
            idempotency_retention: config.database.idempotency_retention,
            instance: config.process.instance.clone(),
            clock,
        };
        let ready = self.tells("kafka (gate)");
        self.spawn_role("gate", |metrics, shutdown| {
            gate::run(settings, metrics, engine, ready, shutdown)
        });
    }

    fn spawn_relay(&self, pool: PgPool) {
        let (settings, readiness) = (relay::Settings::new(&self.config), self.readiness.clone());
        self.spawn_role(relay::PART, |metrics, shutdown| {
            relay::run(settings, pool, metrics, readiness, shutdown)
        });
    }

    fn spawn_watch(&self) -> anyhow::Result<()> {
        let Config {
            kafka,
            database,
            verify,
            ..
        } = self.config.clone();
        let rounds = self.rounds("verify");
        let watch = verify::Watch::new(kafka, database, verify, self.metrics.clone(), rounds)?;
        self.spawner
            .spawn_until_shutdown("verify", async move { watch.run().await });
        Ok(())
    }

    /// Starts the receiver of webhooks, if the webhook secret and the provider are set; [`Cli::check`] demands both together.
    async fn spawn_webhook(&self) -> anyhow::Result<()> {
        let config = &self.config;
        let provider = Provider::new(&config.provider, self.metrics.clone())?;
        let (Some(provider), Some(secret)) = (provider, config.webhook.replaceable_secret()) else {
            return Ok(());
        };
        let flag = "--webhook-listen (HOLDFAST_WEBHOOK_LISTEN)";
        let certificate = config.webhook.certificate();
        let port = Port::open(config.webhook.listen, flag, certificate, Protocol::Http1).await?;
        let settings = webhook::Settings {
            kafka: config.kafka.clone(),
            secret,
            tolerance: config.webhook.tolerance,
            mode: config.provider.known_mode(),
            provider,
            clock,
        };
        let ready = self.tells("kafka (webhook)");
        self.spawn_role("webhook", |metrics, shutdown| {
            webhook::run(port, settings, metrics, ready, shutdown)
        });
        Ok(())
    }

    /// For a task that retries for ever.
    fn rounds(&self, part: &'static str) -> Rounds {
        Rounds::new(part, &self.readiness, &self.metrics)
    }

    /// For a part that finds out by itself whether it can work; until it says so it cannot.
    fn tells(&self, part: &'static str) -> Ready {
        self.readiness.set(part, false);
        let readiness = self.readiness.clone();
        Arc::new(move |ready| match ready {
            Ok(()) => readiness.set(part, true),
            Err(why) => readiness.wait(part, why),
        })
    }

    fn spawn_role<F, E>(&self, name: &'static str, run: impl FnOnce(Arc<Metrics>, CancellationToken) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<anyhow::Error>,
    {
        self.readiness.set(name, true);
        let running = run(self.metrics.clone(), self.spawner.shutdown());
        let worker = self.clone();
        self.spawner.spawn(name, async move {
            let ended = running.await.map_err(Into::into);
            if ended.is_err() && worker.metrics.tell_of_the_end() {
                worker.readiness.set(name, false);
                worker.stay_for_a_scrape().await;
            }
            ended
        });
    }

    /// A process that is gone tells no Prometheus why: it waits until somebody has asked, or for as long as it may.
    async fn stay_for_a_scrape(&self) {
        let patience = self.config.process.last_scrape_within;
        tracing::error!("the process ends once /metrics was read, or after {patience:?}");
        let shutdown = self.spawner.shutdown();
        tokio::select! {
            () = self.metrics.scraped() => {}
            () = tokio::time::sleep(patience) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// Ends prepared transactions of this age that a try left behind. Refuses to start with a loyalty database that cannot prepare;
/// once a round has come through, only users whose credits change wait for such a database.
async fn sweep_credits(loyalty: &Loyalty, age: Duration, metrics: &Metrics, rounds: &Rounds) -> anyhow::Result<()> {
    store::await_answer(loyalty.pool(), metrics)
        .await
        .context("the loyalty database (--loyalty-url, HOLDFAST_LOYALTY_URL)")?;
    let mut ticks = tokio::time::interval(SWEEP_CREDITS_EVERY);
    let mut has_swept = false;
    loop {
        ticks.tick().await;
        let swept = match loyalty.check().await {
            Err(error @ store::Error::Mechanism(CannotPrepare)) if !has_swept => {
                return Err(error).context("the loyalty database (--loyalty-url, HOLDFAST_LOYALTY_URL)");
            }
            Err(error) => Err(error),
            Ok(()) => loyalty.sweep(age).await,
        };
        match swept {
            Ok(ended) => {
                has_swept = true;
                rounds.passed();
                if ended > 0 {
                    tracing::warn!(ended, "prepared credits of tries that had gone were settled");
                }
            }
            Err(error) => rounds.failed(error.fault(), &error),
        }
    }
}

/// The clock that the parts are given.
#[expect(clippy::disallowed_methods, reason = "the one place where time is taken from")]
fn clock() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// Draws the ids that the parts are given.
#[expect(clippy::disallowed_methods, reason = "the one place where ids are drawn at random")]
fn new_id() -> Uuid {
    Uuid::new_v4()
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}

fn complain(text: &str, code: u8) -> ExitCode {
    // If standard error is closed, the exit code alone says it.
    writeln!(std::io::stderr(), "holdfast: {text}").map_or(ExitCode::from(code), |()| ExitCode::from(code))
}
