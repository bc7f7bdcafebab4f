//! Settings: Postgres.

use std::borrow::Cow;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::insecure::is_loopback;
use super::secret::{ReplaceableSecret, Secrets};
use super::{Checks, Wire};

const DEFAULT: &str = "postgres://postgres@127.0.0.1:5432/holdfast";

/// The address of Postgres, and the time-outs of its answers.
#[derive(Args, Debug, Clone)]
pub struct Database {
    /// Postgres, `postgres://user:password@host:port/database`. Beyond this machine with
    /// `?sslmode=verify-full&sslrootcert=<file>` (or `verify-ca`, or `require`, which encrypts and believes any server); `sslcert`
    /// and `sslkey` name a client certificate and its key.
    #[arg(
        long = "database-url",
        env = "HOLDFAST_DATABASE_URL",
        default_value = DEFAULT,
        hide_env_values = true,
        global = true
    )]
    pub url: SecretString,
    /// File that holds --database-url.
    #[arg(
        id = "database-url-file",
        long = "database-url-file",
        env = "HOLDFAST_DATABASE_URL_FILE",
        value_name = "FILE",
        global = true
    )]
    pub url_file: Option<PathBuf>,
    /// The database that keeps the users' credits, likewise: its table `accounts` with the columns `user_id` and `credits`. Nothing
    /// is added to it. Without it, credits are refused.
    #[arg(long, env = "HOLDFAST_LOYALTY_URL", hide_env_values = true, global = true)]
    pub loyalty_url: Option<SecretString>,
    /// File that holds --loyalty-url.
    #[arg(
        id = "loyalty-url-file",
        long = "loyalty-url-file",
        env = "HOLDFAST_LOYALTY_URL_FILE",
        value_name = "FILE",
        global = true
    )]
    pub loyalty_url_file: Option<PathBuf>,
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
    pub(super) fn read_secrets(&mut self, secrets: &mut Secrets) {
        secrets.replace("database-url", &mut self.url, DEFAULT, self.url_file.as_deref());
        secrets.read("loyalty-url", &mut self.loyalty_url, self.loyalty_url_file.as_deref());
    }

    /// The address of the database, which may get another password while the process runs.
    pub fn replaceable_url(&self) -> ReplaceableSecret {
        ReplaceableSecret::new(self.url.clone(), self.url_file.clone(), |url| !url.is_empty())
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        check_url(&self.url, "database-url", checks);
        if let Some(url) = &self.loyalty_url {
            check_url(url, "loyalty-url", checks);
        }
        checks.require(
            self.credits_abandoned_after >= Duration::from_secs(1),
            "credits-abandoned-after",
            "give at least 1s: a shorter one ends tries that are under way",
        );
        // Each of the two committers keeps one while it has work.
        checks.require((4..=500).contains(&self.pool_size), "pool-size", "give 4 to 500");
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

/// Checks one address: what the client library would find out only when it connects, or not at all.
fn check_url(url: &SecretString, flag: &'static str, checks: &mut Checks) {
    let parsed = Url::parse(url.expose_secret()).ok();
    let Some(url) = parsed.filter(|url| ["postgres", "postgresql"].contains(&url.scheme())) else {
        checks.require(false, flag, "give postgres://user:password@host:port/database");
        return;
    };
    let hosts = hosts(&url);
    let mode = last(&url, &["sslmode", "ssl-mode"]).unwrap_or(Cow::Borrowed("prefer"));
    checks.require(
        !hosts.is_empty(),
        flag,
        "name the host: without one, other variables of the environment choose it",
    );
    let modes = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
    checks.require(
        modes.contains(&&*mode),
        flag,
        "give an sslmode of disable, prefer, require, verify-ca or verify-full",
    );
    let encrypts = ["require", "verify-ca", "verify-full"].contains(&&*mode);
    checks.secure(
        Wire::Postgres,
        encrypts || hosts.iter().all(|host| is_here(host)),
        flag,
        "add sslmode=verify-full (or verify-ca, require): the address lies beyond this machine, and prefer, the default, goes on in \
         the clear when the server has no TLS",
    );
    check_files(&url, mode.starts_with("verify-"), flag, checks);
}

/// Checks the files that the address names. The client library would take one that is missing for a server that is away.
fn check_files(url: &Url, verifies: bool, flag: &'static str, checks: &mut Checks) {
    let root = last(url, &["sslrootcert", "ssl-root-cert", "ssl-ca"]);
    let certificate = last(url, &["sslcert", "ssl-cert"]);
    let key = last(url, &["sslkey", "ssl-key"]);
    checks.require(
        root.is_none() || verifies,
        flag,
        "give sslmode=verify-full or verify-ca with sslrootcert: no other mode looks at it",
    );
    checks.require(
        certificate.is_some() == key.is_some(),
        flag,
        "give sslcert and sslkey together, or neither",
    );
    for path in [root, certificate, key].into_iter().flatten() {
        if let Err(error) = File::open(&*path) {
            checks.require(false, flag, &format!("{path:?} cannot be read: {error}"));
        }
    }
}

/// Every host that the address names; the client library takes one of them.
fn hosts(url: &Url) -> Vec<Cow<'_, str>> {
    let named = url
        .query_pairs()
        .filter(|(name, _)| ["host", "hostaddr"].contains(&&**name));
    let host = url.host_str().filter(|host| !host.is_empty()).map(Cow::Borrowed);
    host.into_iter().chain(named.map(|(_, value)| value)).collect()
}

/// The value of a parameter by any of its names; the last one counts.
fn last<'a>(url: &'a Url, names: &[&str]) -> Option<Cow<'a, str>> {
    let named = url.query_pairs().filter(|(name, _)| names.contains(&&**name));
    named.last().map(|(_, value)| value)
}

/// True for this machine, by network or by Unix socket.
fn is_here(host: &str) -> bool {
    host.starts_with('/') || host.to_ascii_lowercase().starts_with("%2f") || is_loopback(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(url: &str) -> Option<String> {
        let mut checks = Checks::default();
        check_url(&url.to_owned().into(), "database-url", &mut checks);
        checks.wrong.first().map(ToString::to_string)
    }

    #[test]
    fn an_address_beyond_this_machine_is_encrypted_or_refused() {
        for right in [
            "postgres://postgres@127.0.0.1:5432/holdfast",
            "postgresql://a:b@[::1]/holdfast",
            "postgres://a@localhost/holdfast?sslmode=disable",
            "postgres://a@%2Fvar%2Frun%2Fpostgresql/holdfast",
            "postgres:///holdfast?host=/var/run/postgresql",
            "postgres://a:b@db.example/holdfast?sslmode=require",
            "postgres://a:b@db.example/holdfast?sslmode=prefer&sslmode=verify-full",
        ] {
            assert_eq!(wrong(right), None, "{right}");
        }
        for open in [
            "postgres://a:b@db.example/holdfast",
            "postgres://a:b@db.example/holdfast?sslmode=prefer",
            "postgres://a:b@db.example/holdfast?sslmode=verify-full&ssl-mode=allow",
            "postgres://a:b@localhost/holdfast?host=db.example",
            "postgres://a:b@localhost/holdfast?hostaddr=10.0.0.1",
            "postgres://a:b@10.0.0.1/holdfast?sslmode=disable",
        ] {
            let said = wrong(open).unwrap_or_default();
            assert!(
                said.contains("sslmode=verify-full") && said.contains("--insecure postgres"),
                "{open}: {said}"
            );
        }
    }

    #[test]
    fn what_only_the_connection_would_find_wrong_is_named_at_the_start() {
        for (url, what) in [
            ("mysql://db/holdfast", "give postgres://"),
            ("postgres:///holdfast", "name the host"),
            ("postgres://localhost/x?sslmode=full", "an sslmode of"),
            (
                "postgres://db/x?sslmode=require&sslrootcert=/dev/null",
                "no other mode looks at it",
            ),
            ("postgres://db/x?sslmode=verify-ca&sslcert=/dev/null", "together"),
            (
                "postgres://db/x?sslmode=verify-ca&sslrootcert=/nowhere",
                "\"/nowhere\" cannot be read",
            ),
        ] {
            let said = wrong(url).unwrap_or_default();
            assert!(said.contains(what), "{url}: {said}");
        }
    }
}
