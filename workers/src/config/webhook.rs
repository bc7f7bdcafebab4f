//! Settings: the payment provider's webhooks.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use super::{Checks, is_a_word};

/// The listener for the payment provider's webhooks.
#[derive(Args, Debug, Clone)]
pub struct Webhook {
    /// Address that receives the payment provider's events (POST /). The provider wants HTTPS: put a proxy before it.
    #[arg(
        id = "webhook-listen",
        long = "webhook-listen",
        env = "HOLDFAST_WEBHOOK_LISTEN",
        default_value = "127.0.0.1:9081",
        global = true
    )]
    pub listen: SocketAddr,
    /// The signing secret of the provider's webhook endpoint; two, separated by a comma, while one replaces the other.
    /// Without it, `run` receives no webhooks.
    #[arg(
        long = "webhook-secret",
        env = "HOLDFAST_WEBHOOK_SECRET",
        hide_env_values = true,
        global = true
    )]
    pub secret: Option<SecretString>,
    /// Largest distance of a signature's time from now: a longer one gives more time to replay an overheard request.
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
