//! Settings of every process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{CertificateFiles, Checks, Wire};

/// Nobody scrapes less often.
const MOST_FOR_A_SCRAPE: Duration = Duration::from_secs(300);

/// Settings of every process: its name, the HTTP port for operators, logs, the time to drain.
#[derive(Args, Debug, Clone)]
pub struct Process {
    /// Name of this process among its kind, the same over restarts; the host name when absent. Two gates on one host must differ.
    #[arg(long, env = "HOLDFAST_INSTANCE", default_value_t = host_name(), global = true)]
    pub instance: String,
    /// Address of /metrics, /livez and /readyz.
    #[arg(long, env = "HOLDFAST_HTTP_LISTEN", default_value = "127.0.0.1:9464", global = true)]
    pub http_listen: SocketAddr,
    /// Address of /livez and /readyz, by HTTP without TLS, apart from /metrics; by default --http-listen has all three.
    #[arg(long, env = "HOLDFAST_HEALTH_LISTEN", global = true)]
    pub health_listen: Option<SocketAddr>,
    /// The certificate (PEM, with its chain) of --http-listen; read again when it changes.
    #[arg(long, env = "HOLDFAST_HTTP_CERTIFICATE", global = true)]
    pub http_certificate: Option<PathBuf>,
    /// The private key of that certificate (PEM).
    #[arg(long, env = "HOLDFAST_HTTP_PRIVATE_KEY", global = true)]
    pub http_private_key: Option<PathBuf>,
    /// Longest time that work under way may take to finish after the first signal.
    #[arg(long, env = "HOLDFAST_DRAIN_TIMEOUT", default_value = "20s", value_parser = humantime::parse_duration, global = true)]
    pub drain_timeout: Duration,
    /// Longest time that a process which ends because records were lost, or a database went back in time, waits for one more scrape of
    /// /metrics, so that an alert tells of it. Give at least the interval of the scrapes.
    #[arg(long, env = "HOLDFAST_LAST_SCRAPE_WITHIN", default_value = "20s", value_parser = humantime::parse_duration, global = true)]
    pub last_scrape_within: Duration,
    /// Form of the log lines.
    #[arg(long, env = "HOLDFAST_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
    /// Which log lines are written: directives such as `info,holdfast::gate=debug`.
    #[arg(long, env = "HOLDFAST_LOG_FILTER", default_value = "info", global = true)]
    pub log_filter: String,
    /// Wires to other machines that may stay open: secrets go over them in the clear, and whoever speaks to them is believed.
    /// Without it, Holdfast does not start with a setting that would have a wire open beyond this machine.
    #[arg(long, env = "HOLDFAST_INSECURE", value_enum, value_delimiter = ',', global = true)]
    pub insecure: Vec<Wire>,
}

/// Form of the log lines.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Process {
    /// The certificate that the port for operators shows.
    pub fn certificate(&self) -> Option<CertificateFiles> {
        CertificateFiles::of(self.http_certificate.as_ref(), self.http_private_key.as_ref())
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        CertificateFiles::check(
            checks,
            "http-certificate",
            self.http_certificate.as_ref(),
            self.http_private_key.as_ref(),
        );
        checks.require(
            !self.instance.is_empty() && self.instance.len() <= 200,
            "instance",
            "give 1 to 200 characters",
        );
        checks.require(
            self.last_scrape_within <= MOST_FOR_A_SCRAPE,
            "last-scrape-within",
            "give at most 5m",
        );
        checks.require(
            tracing_subscriber::EnvFilter::try_new(&self.log_filter).is_ok(),
            "log-filter",
            "give directives such as info or info,holdfast::gate=debug",
        );
    }
}

fn host_name() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}
