//! Every setting, from flags and environment, checked before any socket opens. Nobody else reads the environment.

use std::net::SocketAddr;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand, ValueEnum};
use holdfast_schemas::Currency;
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::Url;

use crate::domain::checkout::MOST_TICKETS;
use crate::domain::ticket::HOLD_FOR_SECONDS;
use crate::mail;

/// `verify` takes a checkout for lost that neither ends, goes on nor gets stuck for a day.
const MOST_STUCK_AFTER: Duration = Duration::from_secs(12 * 3_600);

/// Sells seats without ever selling one twice: workers between Kafka, Restate and Postgres.
#[derive(Parser, Debug)]
#[command(name = "holdfast", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub config: Config,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Checks what the parser cannot see, and what the command needs; names every wrong setting at once.
    ///
    /// # Errors
    /// The wrong settings.
    pub fn check(&self) -> Result<(), Vec<Invalid>> {
        let mut wrong = self.config.check().err().unwrap_or_default();
        let Config { webhook, provider, .. } = &self.config;
        let takes_webhooks = match self.command {
            Command::Webhook => true,
            Command::Run { .. } => webhook.secret.is_some(),
            _ => false,
        };
        if takes_webhooks && webhook.secret.is_none() {
            wrong.push(Invalid {
                flag: "webhook-secret",
                what:
                    "give the secret of the endpoint at the payment provider: without it, anybody could be the provider"
                        .to_owned(),
            });
        }
        // Refused at once: the first dispute may come after months, and be repeated in vain.
        if takes_webhooks && provider.url.is_none() {
            wrong.push(Invalid {
                flag: "provider-url",
                what: "give it, with --provider-key: a dispute names no checkout, its payment has to be looked up"
                    .to_owned(),
            });
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// Reads the command line and the environment; ends the process when they cannot be understood, and says why.
    pub fn read() -> Self {
        Self::try_parse().unwrap_or_else(|error| naming_the_variable(error).exit())
    }
}

/// The parser names only the flag, also when the wrong value stands in the environment.
fn naming_the_variable(mut error: clap::Error) -> clap::Error {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.split(' ').next().unwrap_or_default(),
        _ => "",
    };
    if let (Some(flag), ErrorKind::ValueValidation | ErrorKind::InvalidValue) =
        (argument.strip_prefix("--"), error.kind())
    {
        let tip = format!("the value may stand in the environment, as {}", variable(flag));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

fn moment(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "give a moment such as 2030-01-31T19:30:00Z".to_owned())
}

fn currency(code: &str) -> Result<Currency, String> {
    Currency::from_code(code).ok_or_else(|| "give a code of ISO 4217 in capitals, such as EUR".to_owned())
}

/// The variable that says the same as a flag.
fn variable(flag: &str) -> String {
    format!("HOLDFAST_{}", flag.to_uppercase().replace('-', "_"))
}

/// What one `holdfast` process does.
#[derive(Subcommand, Debug, Clone)]
pub enum Command {
    /// Take events from the public topics, check them and hand them on, gathered by key.
    Gate,
    /// Answer Restate: the Ticket object and the Reaper.
    Serve,
    /// Bring outcomes from the outbox to Kafka, exactly once.
    Relay,
    /// Take the payment provider's signed events and hand them to Kafka.
    Webhook,
    /// Migrate, serve, register, then gate and relay, in one process; webhooks too, where there is a secret for them.
    Run {
        /// Leave the database's tables as they are.
        #[arg(long)]
        no_migrate: bool,
        /// Leave topics, deployment and subscriptions as they are.
        #[arg(long)]
        no_register: bool,
    },
    /// Bring the database's tables up to date.
    Migrate,
    /// Create or check topics, Kafka cluster, deployment and subscriptions; safe to repeat.
    Register {
        /// Subscribe the public topics themselves: producers keep the contract, and no gate stands before the handlers.
        #[arg(long)]
        direct: bool,
    },
    /// Prove the promises from outside; exits 1 and names the first offending key when one is broken.
    Verify {
        /// Print the counts as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Look at and settle what waits for an operator.
    #[command(subcommand)]
    Admin(Admin),
}

/// What an operator can look at and settle.
#[derive(Subcommand, Debug, Clone)]
pub enum Admin {
    /// Records that could not be taken.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Rows that wait for Kafka.
    #[command(subcommand)]
    Outbox(Outbox),
    /// Tickets, now and earlier.
    #[command(subcommand)]
    Ticket(Ticket),
    /// Users, now and earlier.
    #[command(subcommand)]
    User(User),
    /// Checkouts.
    #[command(subcommand)]
    Checkout(CheckoutCommand),
}

/// Commands on checkouts.
#[derive(Subcommand, Debug, Clone)]
pub enum CheckoutCommand {
    /// List the checkouts that are stuck: the payment provider does not say how their payments stand.
    List,
    /// Show one checkout.
    Show { checkout: String },
    /// Ask the payment provider again and take the checkout to its end.
    Settle {
        checkout: String,
        /// Give money and seats back, whatever could still come of it.
        #[arg(long)]
        give_back: bool,
    },
}

/// Commands on tickets.
#[derive(Subcommand, Debug, Clone)]
pub enum Ticket {
    /// Show what the ticket is, or was, and every change up to then.
    Show {
        ticket: String,
        #[command(flatten)]
        state: State,
    },
    /// Show the ticket's attributes as they are, or were, and every change up to then. They have versions of their own.
    Attributes {
        ticket: String,
        #[command(flatten)]
        state: State,
    },
}

/// Commands on users.
#[derive(Subcommand, Debug, Clone)]
pub enum User {
    /// Show since when the user is known, the credits given, and every change up to then. The profile's values are in no log.
    Show {
        user: String,
        #[command(flatten)]
        state: State,
    },
}

/// Which state of something that has a change log; without either, the newest.
#[derive(Args, Debug, Clone, Copy)]
pub struct State {
    /// As it was at this moment by the database's clock, such as 2030-01-31T19:30:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "as_of")]
    pub at: Option<OffsetDateTime>,
    /// As of this version.
    #[arg(long, value_name = "VERSION")]
    pub as_of: Option<i64>,
}

/// Commands on dead letters. An origin is written `topic/partition/offset`.
#[derive(Subcommand, Debug, Clone)]
pub enum DeadLetters {
    /// List the dead letters that nobody has settled.
    List,
    /// Show one dead letter: headers, key and bytes.
    Show { origin: String },
    /// Send the original bytes to the origin topic again, and settle the dead letter.
    Replay { origin: String },
    /// Settle the dead letter without sending it again.
    Drop { origin: String },
}

/// Commands on outbox rows.
#[derive(Subcommand, Debug, Clone)]
pub enum Outbox {
    /// List the rows that Kafka refused.
    List,
    /// Let the relay try a refused row again.
    Retry { id: i64 },
    /// Delete a refused row for good: its outcome is never told.
    Drop { id: i64 },
}

/// All settings. Each module receives only its own section.
#[derive(Args, Debug, Clone)]
pub struct Config {
    #[command(flatten)]
    pub kafka: Kafka,
    #[command(flatten)]
    pub database: Database,
    #[command(flatten)]
    pub restate: Restate,
    #[command(flatten)]
    pub gate: Gate,
    #[command(flatten)]
    pub serve: Serve,
    #[command(flatten)]
    pub checkout: Checkout,
    #[command(flatten)]
    pub relay: Relay,
    #[command(flatten)]
    pub provider: Provider,
    #[command(flatten)]
    pub mail: Mail,
    #[command(flatten)]
    pub webhook: Webhook,
    #[command(flatten)]
    pub process: Process,
}

/// Where Kafka is, and how its topics are laid out.
#[derive(Args, Debug, Clone)]
pub struct Kafka {
    /// Kafka bootstrap servers, `host:port` separated by commas.
    #[arg(
        long = "kafka",
        env = "HOLDFAST_KAFKA",
        default_value = "127.0.0.1:9092",
        global = true
    )]
    pub bootstrap: String,
    /// Partitions of a topic that `register` creates.
    #[arg(long, env = "HOLDFAST_PARTITIONS", default_value_t = 8, global = true)]
    pub partitions: i32,
    /// Replicas of a topic that `register` creates.
    #[arg(long, env = "HOLDFAST_REPLICATION", default_value_t = 1, global = true)]
    pub replication: i32,
    /// Largest record on the public topics, in bytes.
    #[arg(long, env = "HOLDFAST_PUBLIC_RECORD_BYTES", default_value_t = 1 << 20, global = true)]
    pub public_record_bytes: usize,
    /// Largest record on the admitted and dead-letter topics, in bytes.
    #[arg(long, env = "HOLDFAST_ADMITTED_RECORD_BYTES", default_value_t = 4 << 20, global = true)]
    pub admitted_record_bytes: usize,
    /// How long the topics keep records.
    #[arg(long, env = "HOLDFAST_TOPIC_RETENTION", default_value = "14d", value_parser = humantime::parse_duration, global = true)]
    pub topic_retention: Duration,
}

/// Where Postgres is, and how long its answers may take.
#[derive(Args, Debug, Clone)]
pub struct Database {
    /// Postgres, `postgres://user:password@host:port/database`.
    #[arg(
        long = "database-url",
        env = "HOLDFAST_DATABASE_URL",
        default_value = "postgres://postgres@127.0.0.1:5432/holdfast",
        hide_env_values = true,
        global = true
    )]
    pub url: SecretString,
    /// The database that keeps the users' credits, likewise: its table `accounts` with the columns `user_id` and `credits`. Nothing
    /// is added to it. Without it, credits are refused.
    #[arg(long, env = "HOLDFAST_LOYALTY_URL", hide_env_values = true, global = true)]
    pub loyalty_url: Option<SecretString>,
    /// Age from which credits that a try prepared there count as left behind, and are ended as the row of the try says. A try
    /// that is merely slower is aborted by that, and made again.
    #[arg(long, env = "HOLDFAST_CREDITS_ABANDONED_AFTER", default_value = "60s", value_parser = humantime::parse_duration, global = true)]
    pub credits_abandoned_after: Duration,
    /// Connections of one process.
    #[arg(long, env = "HOLDFAST_POOL_SIZE", default_value_t = 8, global = true)]
    pub pool_size: u32,
    /// Longest time to wait for a free connection of the pool.
    #[arg(long, env = "HOLDFAST_ACQUIRE_TIMEOUT", default_value = "5s", value_parser = humantime::parse_duration, global = true)]
    pub acquire_timeout: Duration,
    /// Longest time one statement may take.
    #[arg(long, env = "HOLDFAST_STATEMENT_TIMEOUT", default_value = "30s", value_parser = humantime::parse_duration, global = true)]
    pub statement_timeout: Duration,
    /// Longest time a statement may wait for a lock.
    #[arg(long, env = "HOLDFAST_LOCK_TIMEOUT", default_value = "5s", value_parser = humantime::parse_duration, global = true)]
    pub lock_timeout: Duration,
    /// Longest time a transaction may do nothing before the server ends its session.
    #[arg(long, env = "HOLDFAST_IDLE_IN_TRANSACTION_TIMEOUT", default_value = "30s", value_parser = humantime::parse_duration, global = true)]
    pub idle_in_transaction_timeout: Duration,
    /// How long an event's answer is kept; an older event is never decided.
    #[arg(long, env = "HOLDFAST_IDEMPOTENCY_RETENTION", default_value = "7d", value_parser = humantime::parse_duration, global = true)]
    pub idempotency_retention: Duration,
}

/// Where Restate is.
#[derive(Args, Debug, Clone)]
pub struct Restate {
    /// Restate's admin API.
    #[arg(
        long = "restate-admin",
        env = "HOLDFAST_RESTATE_ADMIN",
        default_value = "http://127.0.0.1:9070",
        global = true
    )]
    pub admin: Url,
    /// Restate's ingress.
    #[arg(
        long = "restate-ingress",
        env = "HOLDFAST_RESTATE_INGRESS",
        default_value = "http://127.0.0.1:8080",
        global = true
    )]
    pub ingress: Url,
    /// Kafka bootstrap servers as Restate reaches them; Holdfast's own when absent.
    #[arg(long = "restate-kafka", env = "HOLDFAST_RESTATE_KAFKA", global = true)]
    pub kafka: Option<String>,
    /// The address at which Restate reaches `serve`.
    #[arg(
        long = "serve-url",
        env = "HOLDFAST_SERVE_URL",
        default_value = "http://127.0.0.1:9080",
        global = true
    )]
    pub serve_url: Url,
}

/// How the gate gathers.
#[derive(Args, Debug, Clone)]
pub struct Gate {
    /// Kafka consumer group of the gates.
    #[arg(
        long = "gate-group",
        env = "HOLDFAST_GATE_GROUP",
        default_value = "holdfast.gate",
        global = true
    )]
    pub group: String,
    /// Most records in one window.
    #[arg(
        long = "gate-window-records",
        env = "HOLDFAST_GATE_WINDOW_RECORDS",
        default_value_t = 20_000,
        global = true
    )]
    pub window_records: usize,
    /// Unfinished invocations in the engine above which the gate waits.
    #[arg(
        long = "gate-unfinished-limit",
        env = "HOLDFAST_GATE_UNFINISHED_LIMIT",
        default_value_t = 10_000,
        global = true
    )]
    pub unfinished_limit: u64,
}

/// How `serve` listens and writes.
#[derive(Args, Debug, Clone)]
pub struct Serve {
    /// Address on which the objects listen for Restate (HTTP/2).
    #[arg(
        long = "serve-listen",
        env = "HOLDFAST_SERVE_LISTEN",
        default_value = "127.0.0.1:9080",
        global = true
    )]
    pub listen: SocketAddr,
    /// Most events in one statement.
    #[arg(
        long = "batch-events",
        env = "HOLDFAST_BATCH_EVENTS",
        default_value_t = 2_000,
        global = true
    )]
    pub batch_events: usize,
    /// Most bytes of events in one statement.
    #[arg(long = "batch-bytes", env = "HOLDFAST_BATCH_BYTES", default_value_t = 4 << 20, global = true)]
    pub batch_bytes: usize,
    /// Longest pause before Restate calls a handler again that failed; pauses double from 100ms up to it.
    #[arg(long, env = "HOLDFAST_RETRY_PAUSE", default_value = "10s", value_parser = humantime::parse_duration, global = true)]
    pub retry_pause: Duration,
    /// Serve the example handlers too. Some are unsafe, to show what goes wrong; they touch tables of their own.
    #[arg(long, env = "HOLDFAST_EXAMPLES", global = true)]
    pub examples: bool,
}

/// What buyers may do, and when an operator is asked for.
#[derive(Args, Debug, Clone)]
pub struct Checkout {
    /// How long a ticket is held when the request does not say, in whole seconds: 1s to 24h.
    #[arg(long, env = "HOLDFAST_HOLD_FOR", default_value = "15m", value_parser = humantime::parse_duration, global = true)]
    pub hold_for: Duration,
    /// Most tickets that one user may have in the cart at a time, 1 to 100.
    #[arg(long, env = "HOLDFAST_CART_LIMIT", default_value_t = 100, global = true)]
    pub cart_limit: usize,
    /// Most tickets of one show that one user may buy, over all checkouts; without it there is no limit.
    #[arg(long, env = "HOLDFAST_SHOW_LIMIT", global = true)]
    pub show_limit: Option<i32>,
    /// The currency that credits pay, one minor unit each.
    #[arg(long, env = "HOLDFAST_CREDITS_CURRENCY", default_value = "EUR", value_parser = currency, global = true)]
    pub credits_currency: Currency,
    /// How long a step of a checkout may not come through, as when the payment provider leaves it unknown how a payment stands,
    /// before the checkout counts as stuck; at most 12h.
    #[arg(long, env = "HOLDFAST_STUCK_AFTER", default_value = "1h", value_parser = humantime::parse_duration, global = true)]
    pub stuck_after: Duration,
    /// How long a checkout that no workflow takes further is left alone before it is given up.
    #[arg(long, env = "HOLDFAST_ABANDONED_AFTER", default_value = "1m", value_parser = humantime::parse_duration, global = true)]
    pub abandoned_after: Duration,
}

/// How the relay batches.
#[derive(Args, Debug, Clone)]
pub struct Relay {
    /// Most outbox rows in one Kafka transaction.
    #[arg(
        long = "relay-batch",
        env = "HOLDFAST_RELAY_BATCH",
        default_value_t = 1_000,
        global = true
    )]
    pub batch: usize,
}

/// Who moves money, and how long its answers may take.
#[derive(Args, Debug, Clone)]
pub struct Provider {
    /// The payment provider's API, as Stripe serves it. Without it, checkouts that need money are refused.
    #[arg(
        id = "provider-url",
        long = "provider-url",
        env = "HOLDFAST_PROVIDER_URL",
        global = true
    )]
    pub url: Option<Url>,
    /// The secret key for that API. One account serves one installation: payments are found by the checkout's id.
    #[arg(
        long = "provider-key",
        env = "HOLDFAST_PROVIDER_KEY",
        hide_env_values = true,
        global = true
    )]
    pub key: Option<SecretString>,
    /// Longest time one call may take; after that its fate is unknown, and asked about.
    #[arg(long = "provider-timeout", env = "HOLDFAST_PROVIDER_TIMEOUT", default_value = "20s", value_parser = humantime::parse_duration, global = true)]
    pub timeout: Duration,
}

/// How customers are told of their checkouts.
#[derive(Args, Debug, Clone)]
pub struct Mail {
    /// The mail server: `smtps://user:password@host` speaks TLS, `smtp://user:password@host?tls=required` changes to TLS by
    /// STARTTLS, `smtp://host` has no TLS and suits a server nearby. Without it, no mail is ever written about what happens
    /// meanwhile, so give it to every process that may end a checkout: `serve`, `run`, `admin checkout settle`.
    #[arg(long, env = "HOLDFAST_SMTP_URL", hide_env_values = true, global = true)]
    pub smtp_url: Option<SecretString>,
    /// The address that mails come from, such as tickets@example.org.
    #[arg(long = "mail-from", env = "HOLDFAST_MAIL_FROM", global = true)]
    pub from: Option<String>,
    /// Longest time the mail server may take for one mail; after that it is tried again.
    #[arg(long, env = "HOLDFAST_SMTP_TIMEOUT", default_value = "30s", value_parser = humantime::parse_duration, global = true)]
    pub smtp_timeout: Duration,
    /// Longest pause between two tries to send a mail. Pauses begin at 1s and double.
    #[arg(long = "mail-longest-pause", env = "HOLDFAST_MAIL_LONGEST_PAUSE", default_value = "10m", value_parser = humantime::parse_duration, global = true)]
    pub longest_pause: Duration,
}

/// How the payment provider's own words come in.
#[derive(Args, Debug, Clone)]
pub struct Webhook {
    /// Address on which the payment provider's events are taken (POST /). The provider wants HTTPS: put a proxy before it.
    #[arg(
        id = "webhook-listen",
        long = "webhook-listen",
        env = "HOLDFAST_WEBHOOK_LISTEN",
        default_value = "127.0.0.1:9081",
        global = true
    )]
    pub listen: SocketAddr,
    /// The secret with which the provider signs them, its endpoint's own; both, separated by a comma, while one replaces the
    /// other. Without it, `run` takes none.
    #[arg(
        long = "webhook-secret",
        env = "HOLDFAST_WEBHOOK_SECRET",
        hide_env_values = true,
        global = true
    )]
    pub secret: Option<SecretString>,
    /// How far the moment of a signature may be from now: a longer one lets others repeat for longer what they overheard.
    #[arg(long = "webhook-tolerance", env = "HOLDFAST_WEBHOOK_TOLERANCE", default_value = "5m", value_parser = humantime::parse_duration, global = true)]
    pub tolerance: Duration,
}

impl Webhook {
    /// Each secret that may have signed; none when no webhooks are taken.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        (self.secret.iter()).flat_map(|secrets| secrets.expose_secret().split(','))
    }
}

/// What every process has: a name, an HTTP port for operators, logs, a time to drain.
#[derive(Args, Debug, Clone)]
pub struct Process {
    /// Name of this process among its kind, the same over restarts; the host name when absent. Two gates on one host must differ.
    #[arg(long, env = "HOLDFAST_INSTANCE", default_value_t = host_name(), global = true)]
    pub instance: String,
    /// Address of /metrics, /livez and /readyz.
    #[arg(long, env = "HOLDFAST_HTTP_LISTEN", default_value = "127.0.0.1:9464", global = true)]
    pub http_listen: SocketAddr,
    /// How long work in hand may take to finish after the first signal.
    #[arg(long, env = "HOLDFAST_DRAIN_TIMEOUT", default_value = "20s", value_parser = humantime::parse_duration, global = true)]
    pub drain_timeout: Duration,
    /// Form of the log lines.
    #[arg(long, env = "HOLDFAST_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
    /// Which log lines are written: directives such as `info,holdfast::gate=debug`.
    #[arg(long, env = "HOLDFAST_LOG_FILTER", default_value = "info", global = true)]
    pub log_filter: String,
}

/// Form of the log lines.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A setting that cannot work: its flag, and what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("--{flag} ({}): {what}", variable(.flag))]
pub struct Invalid {
    pub flag: &'static str,
    pub what: String,
}

impl Config {
    /// Checks what the parser cannot see; names every wrong setting at once.
    pub fn check(&self) -> Result<(), Vec<Invalid>> {
        let (kafka, database, gate, serve) = (&self.kafka, &self.database, &self.gate, &self.serve);
        let process = &self.process;
        let mut wrong = Vec::new();
        let mut require = |holds: bool, flag: &'static str, what: &str| {
            if !holds {
                wrong.push(Invalid {
                    flag,
                    what: what.to_owned(),
                });
            }
        };
        require(
            bootstrap_is_well_formed(&kafka.bootstrap),
            "kafka",
            "give host:port, several separated by commas",
        );
        let restate_kafka = self.restate.kafka.as_deref().unwrap_or(&kafka.bootstrap);
        require(
            bootstrap_is_well_formed(restate_kafka),
            "restate-kafka",
            "give host:port, several separated by commas",
        );
        require((1..=1_000).contains(&kafka.partitions), "partitions", "give 1 to 1000");
        require((1..=9).contains(&kafka.replication), "replication", "give 1 to 9");
        require(
            (1_024..=16 << 20).contains(&kafka.public_record_bytes),
            "public-record-bytes",
            "give 1024 to 16777216 bytes",
        );
        require(
            kafka.admitted_record_bytes >= 2 * kafka.public_record_bytes && kafka.admitted_record_bytes >= 1 << 20,
            "admitted-record-bytes",
            "give at least twice public-record-bytes, and at least 1048576: a dead letter is a public record and its headers",
        );
        require(
            kafka.admitted_record_bytes <= 32 << 20,
            "admitted-record-bytes",
            "give at most 33554432: Restate takes no larger message",
        );
        require(
            kafka.topic_retention >= Duration::from_secs(60),
            "topic-retention",
            "give at least 1m",
        );
        let is_postgres = |url: &SecretString| {
            let url = Url::parse(url.expose_secret());
            url.is_ok_and(|url| ["postgres", "postgresql"].contains(&url.scheme()))
        };
        let form = "give postgres://user:password@host:port/database";
        require(is_postgres(&database.url), "database-url", form);
        require(
            database.loyalty_url.as_ref().is_none_or(is_postgres),
            "loyalty-url",
            form,
        );
        require(
            database.credits_abandoned_after >= Duration::from_secs(1),
            "credits-abandoned-after",
            "give at least 1s: a shorter one ends tries that are under way",
        );
        for (flag, url) in [
            ("restate-admin", &self.restate.admin),
            ("restate-ingress", &self.restate.ingress),
            ("serve-url", &self.restate.serve_url),
        ] {
            require(
                ["http", "https"].contains(&url.scheme()) && url.password().is_none(),
                flag,
                "give http://host:port, without a password: these addresses stand in the log",
            );
        }
        require((2..=500).contains(&database.pool_size), "pool-size", "give 2 to 500");
        require(
            database.statement_timeout >= Duration::from_secs(1),
            "statement-timeout",
            "give at least 1s",
        );
        require(
            database.acquire_timeout >= Duration::from_millis(100),
            "acquire-timeout",
            "give at least 100ms",
        );
        require(
            database.idle_in_transaction_timeout >= Duration::from_secs(1),
            "idle-in-transaction-timeout",
            "give at least 1s",
        );
        require(
            database.lock_timeout >= Duration::from_millis(100),
            "lock-timeout",
            "give at least 100ms",
        );
        require(
            database.idempotency_retention >= Duration::from_secs(60),
            "idempotency-retention",
            "give at least 1m: a shorter one refuses events that are still on their way",
        );
        require(!gate.group.is_empty(), "gate-group", "give a name");
        require(
            (1..=1_000_000).contains(&gate.window_records),
            "gate-window-records",
            "give 1 to 1000000",
        );
        require(gate.unfinished_limit >= 1, "gate-unfinished-limit", "give at least 1");
        require(
            (1..=10_000).contains(&serve.batch_events),
            "batch-events",
            "give 1 to 10000",
        );
        require(serve.batch_bytes >= 1 << 16, "batch-bytes", "give at least 65536");
        require(
            serve.retry_pause >= Duration::from_millis(100),
            "retry-pause",
            "give at least 100ms",
        );
        require(
            (1..=1_000).contains(&self.relay.batch),
            "relay-batch",
            "give 1 to 1000: more ids do not fit beside a Kafka offset",
        );
        let checkout = &self.checkout;
        require(
            checkout.hold_for.subsec_nanos() == 0
                && i64::try_from(checkout.hold_for.as_secs()).is_ok_and(|seconds| HOLD_FOR_SECONDS.contains(&seconds)),
            "hold-for",
            "give whole seconds, 1s to 24h",
        );
        require(
            (1..=MOST_TICKETS).contains(&checkout.cart_limit),
            "cart-limit",
            "give 1 to 100: a checkout takes no more",
        );
        require(
            checkout.show_limit.is_none_or(|limit| limit >= 1),
            "show-limit",
            "give at least 1, or leave it out",
        );
        require(
            checkout.stuck_after <= MOST_STUCK_AFTER,
            "stuck-after",
            "give at most 12h: after a day, verify takes a checkout that has not gone on for a lost one",
        );
        require(
            checkout.abandoned_after >= Duration::from_secs(1),
            "abandoned-after",
            "give at least 1s: a shorter one gives up checkouts that are about to be taken further",
        );
        let provider = &self.provider;
        require(
            (provider.url.as_ref()).is_none_or(|url| {
                ["http", "https"].contains(&url.scheme()) && url.password().is_none() && url.query().is_none()
            }),
            "provider-url",
            "give https://host, without a password or a query: the secret is --provider-key",
        );
        require(
            provider.url.is_some() == provider.key.is_some(),
            "provider-key",
            "give it together with --provider-url (HOLDFAST_PROVIDER_URL), or neither",
        );
        require(
            (provider.key.as_ref()).is_none_or(|key| is_a_word(key.expose_secret())),
            "provider-key",
            "give the key alone, without spaces or line ends",
        );
        require(
            (Duration::from_millis(100)..=Duration::from_secs(120)).contains(&provider.timeout),
            "provider-timeout",
            "give 100ms to 2m",
        );
        let mail = &self.mail;
        require(
            mail.smtp_url.as_ref().is_none_or(mail::is_server),
            "smtp-url",
            "give smtps://user:password@host, smtp://user:password@host?tls=required or smtp://host; encode special characters as %40",
        );
        require(
            mail.from.as_deref().is_none_or(mail::is_sender),
            "mail-from",
            "give one plain address, such as tickets@example.org",
        );
        require(
            mail.smtp_url.is_some() == mail.from.is_some(),
            "mail-from",
            "give it together with --smtp-url (HOLDFAST_SMTP_URL), or neither",
        );
        require(
            (Duration::from_millis(100)..=Duration::from_secs(600)).contains(&mail.smtp_timeout),
            "smtp-timeout",
            "give 100ms to 10m",
        );
        require(
            (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&mail.longest_pause),
            "mail-longest-pause",
            "give 1s to 1d",
        );
        require(
            self.webhook.secrets().all(is_a_word),
            "webhook-secret",
            "give the secret alone, or several separated by commas, without spaces or line ends",
        );
        require(
            (Duration::from_secs(1)..=Duration::from_secs(3_600)).contains(&self.webhook.tolerance),
            "webhook-tolerance",
            "give 1s to 1h",
        );
        require(
            !process.instance.is_empty() && process.instance.len() <= 200,
            "instance",
            "give 1 to 200 characters",
        );
        require(
            tracing_subscriber::EnvFilter::try_new(&process.log_filter).is_ok(),
            "log-filter",
            "give directives such as info or info,holdfast::gate=debug",
        );
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

fn bootstrap_is_well_formed(bootstrap: &str) -> bool {
    !bootstrap.is_empty()
        && bootstrap.split(',').all(|server| {
            server
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        })
}

fn is_a_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn host_name() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn config(args: &[&str]) -> Config {
        Cli::parse_from([&["holdfast"], args, &["migrate"]].concat()).config
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_are_accepted() {
        assert_eq!(config(&[]).check(), Ok(()));
    }

    #[test]
    fn every_wrong_setting_is_named_at_once_with_its_mend() {
        let wrong = config(&["--kafka", "nowhere", "--partitions", "0", "--relay-batch", "5000"])
            .check()
            .unwrap_err();
        let text: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 4, "{text:?}");
        assert!(
            text[0].starts_with("--kafka (HOLDFAST_KAFKA): give host:port"),
            "{text:?}"
        );
        assert!(text[2].contains("HOLDFAST_PARTITIONS"), "{text:?}");
    }

    #[test]
    fn a_provider_has_an_address_and_a_key_or_neither() {
        let provider = |args: &[&str]| config(args).check().map_err(|wrong| wrong[0].flag);
        let (url, key) = ("--provider-url", "--provider-key");
        assert_eq!(provider(&[url, "https://pay.example", key, "sk_1"]), Ok(()));
        assert_eq!(provider(&[url, "https://pay.example"]), Err("provider-key"));
        assert_eq!(provider(&[key, "sk_1"]), Err("provider-key"));
        assert_eq!(
            provider(&[url, "https://pay.example", key, "sk_1\n"]),
            Err("provider-key")
        );
        for wrong in [
            "ftp://pay.example",
            "https://a:b@pay.example",
            "https://pay.example?key=1",
        ] {
            assert_eq!(provider(&[url, wrong, key, "sk_1"]), Err("provider-url"), "{wrong}");
        }
    }

    #[test]
    fn a_mail_server_is_one_that_can_be_spoken_to_and_comes_with_a_sender() {
        let mail = |args: &[&str]| config(args).check().map_err(|wrong| wrong[0].flag);
        let (url, from) = ("--smtp-url", "--mail-from");
        for right in [
            "smtp://127.0.0.1:1025",
            "smtps://shop:se%40same@mail.example",
            "smtp://shop:sesame@mail.example:2525?tls=required",
        ] {
            assert_eq!(mail(&[url, right, from, "tickets@example.org"]), Ok(()), "{right}");
        }
        for wrong in [
            "mail.example",
            "http://mail.example",
            "smtp:mail.example",
            "smtp://mail.example?tls=maybe",
            "smtp://shop@mail.example",
            "smtp://mail.example/shop",
        ] {
            assert_eq!(
                mail(&[url, wrong, from, "tickets@example.org"]),
                Err("smtp-url"),
                "{wrong}"
            );
        }
        for wrong in [
            "tickets",
            "Tickets <tickets@example.org>",
            "a@b.org\r\nBcc: c@d.org",
            "",
        ] {
            assert_eq!(
                mail(&[url, "smtp://127.0.0.1", from, wrong]),
                Err("mail-from"),
                "{wrong}"
            );
        }
        assert_eq!(mail(&[url, "smtp://127.0.0.1"]), Err("mail-from"));
        assert_eq!(mail(&[from, "tickets@example.org"]), Err("mail-from"));
    }

    #[test]
    fn whoever_takes_webhooks_needs_their_secret_and_a_provider_to_ask() {
        let check = |args: &[&str]| {
            let wrong = Cli::parse_from([&["holdfast"], args].concat()).check();
            let flags = |wrong: Vec<Invalid>| wrong.iter().map(|setting| setting.flag).collect::<Vec<_>>();
            wrong.map_err(flags)
        };
        let provider = ["--provider-url", "https://pay.example", "--provider-key", "sk_1"];
        let with = |args: &[&'static str]| [args, &provider].concat();
        let secret = "--webhook-secret";
        assert_eq!(check(&with(&["webhook", secret, "whsec_1"])), Ok(()));
        assert_eq!(check(&with(&["webhook", secret, "whsec_1,whsec_2"])), Ok(()));
        assert_eq!(check(&["run"]), Ok(()));
        assert_eq!(check(&["gate", secret, "whsec_1"]), Ok(()));
        assert_eq!(check(&with(&["webhook"])), Err(vec!["webhook-secret"]));
        assert_eq!(check(&["webhook"]), Err(vec!["webhook-secret", "provider-url"]));
        assert_eq!(check(&["run", secret, "whsec_1"]), Err(vec!["provider-url"]));
        for wrong in ["", ",", "whsec_1,", "whsec_1, whsec_2", "whsec_1\n"] {
            assert_eq!(
                check(&with(&["webhook", secret, wrong])),
                Err(vec!["webhook-secret"]),
                "{wrong:?}"
            );
        }
        let tolerance = ["webhook", secret, "whsec_1", "--webhook-tolerance", "0s"];
        assert_eq!(check(&with(&tolerance)), Err(vec!["webhook-tolerance"]));
    }

    #[test]
    fn a_password_is_never_printed() {
        let config = config(&["--database-url", "postgres://holdfast:sesame@db/holdfast"]);
        assert!(!format!("{config:?}").contains("sesame"));
        let config = self::config(&["--provider-url", "https://pay.example", "--provider-key", "sk_sesame"]);
        assert!(!format!("{config:?}").contains("sesame"));
        let config = self::config(&["--smtp-url", "smtps://shop:sesame@mail.example"]);
        assert!(!format!("{config:?}").contains("sesame"));
        let config = self::config(&["--webhook-secret", "whsec_sesame"]);
        assert!(!format!("{config:?}").contains("sesame"));
    }
}
