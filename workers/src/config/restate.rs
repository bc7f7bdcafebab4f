//! Settings: Restate.

use clap::Args;
use url::Url;

use super::kafka::{BOOTSTRAP_FORM, bootstrap_is_well_formed};
use super::{Checks, Kafka, RestateKafka};

/// The addresses of Restate.
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
    pub(super) fn check(&self, checks: &mut Checks, kafka: &Kafka) {
        for (flag, url) in [
            ("restate-admin", &self.admin),
            ("restate-ingress", &self.ingress),
            ("serve-url", &self.serve_url),
        ] {
            checks.require(
                ["http", "https"].contains(&url.scheme()) && url.password().is_none(),
                flag,
                "give http://host:port, without a password: these addresses stand in the log",
            );
        }
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
