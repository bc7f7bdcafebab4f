//! Settings: traces.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::insecure::is_closed;
use super::secret::{ReplaceableSecret, Secrets};
use super::{Checks, Wire};

/// The collector of traces, and which traces it gets.
#[derive(Args, Debug, Clone)]
pub struct Traces {
    /// Where spans are sent: the whole address of a collector's OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces. Without it
    /// there are no traces.
    #[arg(
        id = "traces-endpoint",
        long = "traces-endpoint",
        env = "HOLDFAST_TRACES_ENDPOINT",
        value_name = "URL",
        global = true
    )]
    pub endpoint: Option<Url>,
    /// The share of events without a `traceparent` of their own that are traced, 0 to 1. An event that has one is traced if its
    /// producer traces it. Give every process the same.
    #[arg(
        id = "traces-sample",
        long = "traces-sample",
        env = "HOLDFAST_TRACES_SAMPLE",
        value_name = "SHARE",
        default_value_t = 0.01,
        global = true
    )]
    pub sample: f64,
    /// Headers for the collector, such as `authorization=Bearer abc`, separated by commas.
    #[arg(
        id = "traces-headers",
        long = "traces-headers",
        env = "HOLDFAST_TRACES_HEADERS",
        hide_env_values = true,
        global = true
    )]
    pub headers: Option<SecretString>,
    /// File that holds --traces-headers; it is read again for each request, so that a token can be replaced.
    #[arg(
        id = "traces-headers-file",
        long = "traces-headers-file",
        env = "HOLDFAST_TRACES_HEADERS_FILE",
        value_name = "FILE",
        global = true
    )]
    pub headers_file: Option<PathBuf>,
    /// Longest time that the collector may take for one request.
    #[arg(id = "traces-timeout", long = "traces-timeout", env = "HOLDFAST_TRACES_TIMEOUT", default_value = "10s", value_parser = humantime::parse_duration, global = true)]
    pub timeout: Duration,
}

impl Traces {
    /// The headers, which may be replaced in their file; none without the setting.
    pub fn replaceable_headers(&self) -> Option<ReplaceableSecret> {
        let headers = self.headers.clone()?;
        Some(ReplaceableSecret::new(headers, self.headers_file.clone(), |headers| {
            parse_headers(headers).is_some()
        }))
    }

    pub(super) fn read_secrets(&mut self, secrets: &mut Secrets) {
        secrets.read("traces-headers", &mut self.headers, self.headers_file.as_deref());
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        checks.require(
            (self.endpoint.as_ref()).is_none_or(|url| {
                ["http", "https"].contains(&url.scheme())
                    && url.username().is_empty()
                    && url.password().is_none()
                    && url.query().is_none()
            }),
            "traces-endpoint",
            "give https://host/v1/traces, without user, password and query: secrets belong into --traces-headers",
        );
        checks.secure(
            Wire::Traces,
            self.endpoint.as_ref().is_none_or(is_closed),
            "traces-endpoint",
            "give https://host/v1/traces, or a collector on this machine: ids of tickets, users and checkouts go over this wire",
        );
        checks.require((0.0..=1.0).contains(&self.sample), "traces-sample", "give 0 to 1");
        checks.require(
            (self.headers.as_ref()).is_none_or(|headers| parse_headers(headers.expose_secret()).is_some()),
            "traces-headers",
            "give name=value, and several separated by commas",
        );
        checks.require(
            (Duration::from_millis(100)..=Duration::from_secs(120)).contains(&self.timeout),
            "traces-timeout",
            "give 100ms to 2m",
        );
    }
}

/// The names and values of headers; none unless all of them can be sent.
pub fn parse_headers(text: &str) -> Option<Vec<(&str, &str)>> {
    let headers = text.split(',').map(|header| {
        let (name, value) = header.split_once('=')?;
        let (name, value) = (name.trim(), value.trim());
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let is_header = !name.is_empty() && name.bytes().all(is_token);
        let is_text = value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        (is_header && is_text).then_some((name, value))
    });
    headers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_names_with_values_or_nothing() {
        assert_eq!(
            parse_headers("authorization=Bearer a=b, x-tenant=shop"),
            Some(vec![("authorization", "Bearer a=b"), ("x-tenant", "shop")])
        );
        for wrong in ["", "authorization", "a b=c", "=c", "a=\u{e9}", "a=b,"] {
            assert_eq!(parse_headers(wrong), None, "{wrong:?}");
        }
    }
}
