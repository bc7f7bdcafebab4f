//! Settings: `serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{CertificateFiles, Checks};

/// The address of `serve`, and the bounds of its statements and retries.
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
    /// The public key by which Restate signs its calls, `publickeyv1_...`; several, separated by commas, while one replaces
    /// another. With it, calls that none of them has signed are refused.
    #[arg(
        id = "identity-key",
        long = "identity-key",
        env = "HOLDFAST_IDENTITY_KEY",
        value_delimiter = ',',
        global = true
    )]
    pub identity_keys: Vec<String>,
    /// The certificate (PEM, with its chain) by which Restate reaches the objects over TLS; read again when it changes. Then
    /// --serve-url is https://...
    #[arg(
        id = "serve-certificate",
        long = "serve-certificate",
        env = "HOLDFAST_SERVE_CERTIFICATE",
        global = true
    )]
    pub certificate: Option<PathBuf>,
    /// The private key of that certificate (PEM).
    #[arg(
        id = "serve-private-key",
        long = "serve-private-key",
        env = "HOLDFAST_SERVE_PRIVATE_KEY",
        global = true
    )]
    pub private_key: Option<PathBuf>,
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

impl Serve {
    /// The certificate that the port shows.
    pub fn certificate(&self) -> Option<CertificateFiles> {
        CertificateFiles::of(self.certificate.as_ref(), self.private_key.as_ref())
    }

    /// True when nobody but the engine, or this machine, is obeyed.
    pub(super) fn is_guarded(&self) -> bool {
        self.listen.ip().is_loopback() || !self.identity_keys.is_empty()
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        checks.require(
            self.identity_keys.iter().all(|key| is_public_key(key)),
            "identity-key",
            "give publickeyv1_ and what follows, as Restate logs it at its start; several separated by commas",
        );
        CertificateFiles::check(
            checks,
            "serve-certificate",
            self.certificate.as_ref(),
            self.private_key.as_ref(),
        );
        checks.require(
            (1..=10_000).contains(&self.batch_events),
            "batch-events",
            "give 1 to 10000",
        );
        checks.require(self.batch_bytes >= 1 << 16, "batch-bytes", "give at least 65536");
        checks.require(
            self.retry_pause >= Duration::from_millis(100),
            "retry-pause",
            "give at least 100ms",
        );
    }
}

/// A word that may be 32 bytes in base 58, after its prefix.
fn is_public_key(key: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() && !b"0OIl".contains(&byte);
    let digits = key.strip_prefix("publickeyv1_");
    digits.is_some_and(|digits| (32..=44).contains(&digits.len()) && digits.bytes().all(is_digit))
}
