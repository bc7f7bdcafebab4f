//! Restate's Kafka cluster: the properties of the client library in the engine, which are our own settings of the way to Kafka. Files
//! are handed over by content, so that the engine's host needs none.
//!
//! Restate shows secrets redacted, so that nobody can compare them. A mark that follows from them, and from which they cannot be told,
//! stands beside them: as `client.id`, which each subscription replaces by its own.

use std::collections::BTreeMap;
use std::fs;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::Error;
use crate::config::Config;

/// Rounds of the hash that the mark is: whoever reads the mark pays them for each password that is tried.
const ROUNDS: u32 = 100_000;

/// The properties that `register` sets where there is a lock, and takes away again.
pub(super) const OURS: &[&str] = &[
    "client.id",
    "sasl.mechanisms",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "ssl.ca.pem",
    "ssl.certificate.pem",
    "ssl.key.password",
    "ssl.key.pem",
];

/// The properties that the engine is to have.
pub(super) fn wanted(config: &Config, bootstrap: &str) -> Result<BTreeMap<String, String>, Error> {
    let mut wanted = BTreeMap::from(
        [
            ("bootstrap.servers", bootstrap),
            // A broker that goes away must not hold Restate up for longer than this.
            ("session.timeout.ms", "6000"),
            ("heartbeat.interval.ms", "1500"),
            // Without statistics Restate has no metric of its lag.
            ("statistics.interval.ms", "1000"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let security = config.restate.kafka_login.security(&config.kafka.security);
    for (name, value) in security.properties() {
        // As before there was a setting for it.
        if (name, value.as_str()) == ("security.protocol", "PLAINTEXT") {
            continue;
        }
        let (name, value) = match inline(name) {
            Some(inline) => (inline, content(&value)?),
            None => (name, value),
        };
        wanted.insert(name.to_owned(), value);
    }
    if let Some(mark) = mark(&wanted) {
        wanted.insert("client.id".to_owned(), mark);
    }
    Ok(wanted)
}

/// The properties that differ from what is wanted, or are left of a lock that was taken off. Secrets are not compared: they come
/// back redacted, and the mark tells of them.
pub(super) fn differing<'a>(
    wanted: &'a BTreeMap<String, String>,
    found: &'a BTreeMap<String, String>,
) -> (Vec<(&'a String, &'a String)>, Vec<&'a String>) {
    let differs = wanted
        .iter()
        .filter(|(name, value)| !is_secret(name) && found.get(*name) != Some(value));
    let is_left = |name: &&String| OURS.contains(&name.as_str()) && !wanted.contains_key(*name);
    (differs.collect(), found.keys().filter(is_left).collect())
}

/// Whether Restate shows a property redacted.
pub(super) fn is_secret(name: &str) -> bool {
    let words = [
        "password",
        "secret",
        "passphrase",
        "sasl.username",
        "jaas",
        "oauthbearer.config",
        "token.endpoint",
        "ssl.key.",
    ];
    words.iter().any(|word| name.contains(word))
}

/// The property that takes a file's content in place of its name.
fn inline(name: &str) -> Option<&'static str> {
    match name {
        "ssl.ca.location" => Some("ssl.ca.pem"),
        "ssl.certificate.location" => Some("ssl.certificate.pem"),
        "ssl.key.location" => Some("ssl.key.pem"),
        _ => None,
    }
}

fn content(file: &str) -> Result<String, Error> {
    fs::read_to_string(file).map_err(|source| Error::File {
        file: file.to_owned(),
        source,
    })
}

/// What tells whether secrets are these; none without secrets.
fn mark(properties: &BTreeMap<String, String>) -> Option<String> {
    let secrets: Vec<_> = properties.iter().filter(|(name, _)| is_secret(name)).collect();
    if secrets.is_empty() {
        return None;
    }
    let secrets = serde_json::to_vec(&secrets).unwrap_or_default();
    // PBKDF2 (RFC 8018) of one block.
    let keyed = Hmac::<Sha256>::new_from_slice(&secrets).expect("HMAC takes a key of any length");
    let mut block = [0; 32];
    let mut last = keyed
        .clone()
        .chain_update(b"holdfast\0\0\0\x01")
        .finalize()
        .into_bytes();
    for _ in 0..ROUNDS {
        block.iter_mut().zip(last).for_each(|(sum, byte)| *sum ^= byte);
        last = keyed.clone().chain_update(last).finalize().into_bytes();
    }
    Some(format!("holdfast-{}", hex::encode(&block[..8])))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Cli;

    fn wanted(args: &[&str]) -> BTreeMap<String, String> {
        let config = Cli::parse_from([&["holdfast"], args, &["register"]].concat()).config;
        super::wanted(&config, "kafka:1").unwrap()
    }

    #[test]
    fn an_open_cluster_is_as_it_was_before_there_were_locks() {
        let names = wanted(&[]).into_keys().collect::<Vec<_>>();
        assert_eq!(
            names,
            [
                "bootstrap.servers",
                "heartbeat.interval.ms",
                "session.timeout.ms",
                "statistics.interval.ms"
            ]
        );
    }

    #[test]
    fn the_mark_changes_with_the_password_and_says_nothing_of_it() {
        let login = |password| {
            wanted(&[
                "--kafka-security-protocol",
                "SASL_SSL",
                "--kafka-sasl-mechanism",
                "SCRAM-SHA-512",
                "--kafka-username",
                "gate",
                "--kafka-password",
                "ours",
                "--restate-kafka-username",
                "engine",
                "--restate-kafka-password",
                password,
            ])
        };
        let (one, other) = (login("sesame"), login("open"));
        assert_eq!(one["sasl.username"], "engine");
        assert_eq!(one["sasl.password"], "sesame");
        assert_eq!(one["client.id"], login("sesame")["client.id"]);
        assert_ne!(one["client.id"], other["client.id"]);
        assert!(!one["client.id"].contains("sesame"));
    }
}
