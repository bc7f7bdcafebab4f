//! Settings: what may go over a wire in the clear.

use std::net::IpAddr;

use clap::ValueEnum;
use url::Url;

/// A wire that may carry a secret, or believe whoever speaks to it.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Kafka,
    Postgres,
    /// Restate: its admin API and ingress, and its calls to `serve`.
    Restate,
    Provider,
    Smtp,
    Traces,
}

/// True for an address that no other machine can reach.
pub(super) fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// True for an address to which secrets may go: by TLS, or on this machine.
pub(super) fn is_closed(url: &Url) -> bool {
    url.scheme() == "https" || url.host_str().is_some_and(is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LOCALHOST"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "0.0.0.0",
            "::",
            "10.0.0.1",
            "localhost.example",
            "db",
            "127.0.0.1.example",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
