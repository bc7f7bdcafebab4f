//! Settings: Restate.

use std::path::PathBuf;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::insecure::is_closed;
use super::kafka::{BOOTSTRAP_FORM, bootstrap_is_well_formed};
use super::secret::Secrets;
use super::{Checks, Kafka, RestateKafka, Wire, is_a_word};

/// The addresses of Restate, and what it demands of those who ask it.
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
    /// The token that Restate's admin API and ingress, or the proxy before them, demand (`Authorization: Bearer`).
    #[arg(
        id = "restate-token",
        long = "restate-token",
        env = "HOLDFAST_RESTATE_TOKEN",
        hide_env_values = true,
        global = true
    )]
    pub token: Option<SecretString>,
    /// File that holds --restate-token.
    #[arg(
        id = "restate-token-file",
        long = "restate-token-file",
        env = "HOLDFAST_RESTATE_TOKEN_FILE",
        value_name = "FILE",
        global = true
    )]
    pub token_file: Option<PathBuf>,
    /// Kafka bootstrap servers as Restate reaches them; Holdfast's own when absent.
    #[arg(long = "restate-kafka", env = "HOLDFAST_RESTATE_KAFKA", global = true)]
    pub kafka: Option<String>,
    #[command(flatten)]
    pub kafka_login: RestateKafka,
    /// The address at which Restate reaches `serve`.
    #[arg(
        long = "serve-url",
        env = "HOLDFAST_SERVE_URL",
        default_value = "http://127.0.0.1:9080",
        global = true
    )]
    pub serve_url: Url,
    /// Restate is a single node: after a restart it takes its Kafka partitions back at once. Never set it for a cluster.
    #[arg(long = "restate-single-node", env = "HOLDFAST_RESTATE_SINGLE_NODE", global = true)]
    pub single_node: bool,
}

impl Restate {
    pub(super) fn read_secrets(&mut self, secrets: &mut Secrets) {
        secrets.read("restate-token", &mut self.token, self.token_file.as_deref());
        self.kafka_login.read_secrets(secrets);
    }

    pub(super) fn check(&self, checks: &mut Checks, kafka: &Kafka) {
        for (flag, url) in [
            ("restate-admin", &self.admin),
            ("restate-ingress", &self.ingress),
            ("serve-url", &self.serve_url),
        ] {
            checks.require(
                ["http", "https"].contains(&url.scheme())
                    && url.username().is_empty()
                    && url.password().is_none()
                    && url.query().is_none(),
                flag,
                "give https://host:port, without user, password and query: these addresses stand in the log",
            );
        }
        let hands_over = self.kafka_login.security(&kafka.security).has_secrets();
        for (flag, url, carries, what) in [
            (
                "restate-admin",
                &self.admin,
                hands_over,
                "give https://host: register hands Restate its secrets for Kafka over this wire",
            ),
            (
                "restate-admin",
                &self.admin,
                self.token.is_some(),
                "give https://host: the token goes over this wire",
            ),
            (
                "restate-ingress",
                &self.ingress,
                self.token.is_some(),
                "give https://host: the token goes over this wire",
            ),
            (
                "serve-url",
                &self.serve_url,
                true,
                "give https://host, and serve its certificate: addresses and names go over this wire",
            ),
        ] {
            checks.secure(Wire::Restate, !carries || is_closed(url), flag, what);
        }
        checks.require(
            (self.token.as_ref()).is_none_or(|token| is_a_word(token.expose_secret())),
            "restate-token",
            "give the token alone, without spaces or line ends",
        );
        checks.require(
            self.kafka.as_deref().is_none_or(bootstrap_is_well_formed),
            "restate-kafka",
            BOOTSTRAP_FORM,
        );
        self.kafka_login.check(checks, &kafka.security);
        if let Some(bootstrap) = &self.kafka {
            RestateKafka::check_wire(checks, bootstrap, &kafka.security);
        }
    }
}
