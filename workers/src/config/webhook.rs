//! Settings: the payment provider's webhooks.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use super::{Checks, is_a_word};

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

    pub(super) fn check(&self, checks: &mut Checks) {
        checks.require(
            self.secrets().all(is_a_word),
            "webhook-secret",
            "give the secret alone, or several separated by commas, without spaces or line ends",
        );
        checks.require(
            (Duration::from_secs(1)..=Duration::from_secs(3_600)).contains(&self.tolerance),
            "webhook-tolerance",
            "give 1s to 1h",
        );
    }
}
