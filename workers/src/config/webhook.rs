//! Settings: the payment provider's webhooks.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use super::secret::{ReplaceableSecret, Secrets};
use super::{CertificateFiles, Checks, is_a_word};

/// The listener for the payment provider's webhooks.
#[derive(Args, Debug, Clone)]
pub struct Webhook {
    /// Address that receives the payment provider's events (POST /). The provider wants HTTPS: put a proxy before it, or
    /// give a certificate.
    #[arg(
        id = "webhook-listen",
        long = "webhook-listen",
        env = "HOLDFAST_WEBHOOK_LISTEN",
        default_value = "127.0.0.1:9081",
        global = true
    )]
    pub listen: SocketAddr,
    /// The certificate (PEM, with its chain) of that address, for HTTPS without a proxy; read again when it changes.
    #[arg(
        id = "webhook-certificate",
        long = "webhook-certificate",
        env = "HOLDFAST_WEBHOOK_CERTIFICATE",
        global = true
    )]
    pub certificate: Option<PathBuf>,
    /// The private key of that certificate (PEM).
    #[arg(
        id = "webhook-private-key",
        long = "webhook-private-key",
        env = "HOLDFAST_WEBHOOK_PRIVATE_KEY",
        global = true
    )]
    pub private_key: Option<PathBuf>,
    /// The signing secret of the provider's webhook endpoint; two, separated by a comma, while one replaces the other.
    /// Without it, `run` receives no webhooks.
    #[arg(
        long = "webhook-secret",
        env = "HOLDFAST_WEBHOOK_SECRET",
        hide_env_values = true,
        global = true
    )]
    pub secret: Option<SecretString>,
    /// File that holds --webhook-secret; it is read again for each webhook, so that the secret can be replaced.
    #[arg(
        id = "webhook-secret-file",
        long = "webhook-secret-file",
        env = "HOLDFAST_WEBHOOK_SECRET_FILE",
        value_name = "FILE",
        global = true
    )]
    pub secret_file: Option<PathBuf>,
    /// Largest distance of a signature's time from now: a longer one gives more time to replay an overheard request.
    #[arg(long = "webhook-tolerance", env = "HOLDFAST_WEBHOOK_TOLERANCE", default_value = "5m", value_parser = humantime::parse_duration, global = true)]
    pub tolerance: Duration,
}

impl Webhook {
    /// The secrets that may have signed, separated by commas, which may be replaced in their file; none when no webhooks are taken.
    pub fn replaceable_secret(&self) -> Option<ReplaceableSecret> {
        let secret = self.secret.clone()?;
        Some(ReplaceableSecret::new(secret, self.secret_file.clone(), are_words))
    }

    pub(super) fn read_secrets(&mut self, secrets: &mut Secrets) {
        secrets.read("webhook-secret", &mut self.secret, self.secret_file.as_deref());
    }

    /// The certificate that the port shows.
    pub fn certificate(&self) -> Option<CertificateFiles> {
        CertificateFiles::of(self.certificate.as_ref(), self.private_key.as_ref())
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        CertificateFiles::check(
            checks,
            "webhook-certificate",
            self.certificate.as_ref(),
            self.private_key.as_ref(),
        );
        checks.require(
            (self.secret.as_ref()).is_none_or(|secrets| are_words(secrets.expose_secret())),
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

/// Secrets, separated by commas: none of them empty, with which anybody could sign.
fn are_words(secrets: &str) -> bool {
    secrets.split(',').all(is_a_word)
}
