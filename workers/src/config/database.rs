//! Settings: Postgres.

use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::Checks;

/// The address of Postgres, and the time-outs of its answers.
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
    /// Age from which a transaction that is prepared there counts as left behind by its try, and is ended as the try's row
    /// says. A try that is merely slower is aborted by that, and made again.
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
    /// Retention of idempotency records, which have the answers to events; an older event is never decided.
    #[arg(long, env = "HOLDFAST_IDEMPOTENCY_RETENTION", default_value = "7d", value_parser = humantime::parse_duration, global = true)]
    pub idempotency_retention: Duration,
}

impl Database {
    pub(super) fn check(&self, checks: &mut Checks) {
        let form = "give postgres://user:password@host:port/database";
        checks.require(is_postgres(&self.url), "database-url", form);
        checks.require(self.loyalty_url.as_ref().is_none_or(is_postgres), "loyalty-url", form);
        checks.require(
            self.credits_abandoned_after >= Duration::from_secs(1),
            "credits-abandoned-after",
            "give at least 1s: a shorter one ends tries that are under way",
        );
        checks.require((2..=500).contains(&self.pool_size), "pool-size", "give 2 to 500");
        checks.require(
            self.acquire_timeout >= Duration::from_millis(100),
            "acquire-timeout",
            "give at least 100ms",
        );
        checks.require(
            self.statement_timeout >= Duration::from_secs(1),
            "statement-timeout",
            "give at least 1s",
        );
        checks.require(
            self.lock_timeout >= Duration::from_millis(100),
            "lock-timeout",
            "give at least 100ms",
        );
        checks.require(
            self.idle_in_transaction_timeout >= Duration::from_secs(1),
            "idle-in-transaction-timeout",
            "give at least 1s",
        );
        checks.require(
            self.idempotency_retention >= Duration::from_secs(60),
            "idempotency-retention",
            "give at least 1m: a shorter one refuses events that are still on their way",
        );
    }
}

fn is_postgres(url: &SecretString) -> bool {
    Url::parse(url.expose_secret()).is_ok_and(|url| ["postgres", "postgresql"].contains(&url.scheme()))
}
