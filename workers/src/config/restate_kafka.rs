//! Settings: how Restate comes to Kafka, where that differs from how Holdfast does.

use std::path::PathBuf;

use clap::Args;
use secrecy::SecretString;

use super::kafka_security::KafkaSecurity;
use super::secret::Secrets;
use super::{Checks, kafka_security};

/// Restate's name in Kafka: `register` hands it over with the other settings of the way to Kafka, which are Holdfast's own.
#[derive(Args, Debug, Clone)]
pub struct RestateKafka {
    /// Restate's user in Kafka, so that it has rights of its own; Holdfast's when absent.
    #[arg(
        id = "restate-kafka-username",
        long = "restate-kafka-username",
        env = "HOLDFAST_RESTATE_KAFKA_USERNAME",
        global = true
    )]
    pub username: Option<String>,
    /// The password of Restate's user in Kafka.
    #[arg(
        id = "restate-kafka-password",
        long = "restate-kafka-password",
        env = "HOLDFAST_RESTATE_KAFKA_PASSWORD",
        hide_env_values = true,
        global = true
    )]
    pub password: Option<SecretString>,
    /// File that holds --restate-kafka-password.
    #[arg(
        id = "restate-kafka-password-file",
        long = "restate-kafka-password-file",
        env = "HOLDFAST_RESTATE_KAFKA_PASSWORD_FILE",
        value_name = "FILE",
        global = true
    )]
    pub password_file: Option<PathBuf>,
    /// File with Restate's certificate (PEM) for Kafka; Holdfast's when absent. Its content is handed over, not its name.
    #[arg(
        id = "restate-kafka-certificate",
        long = "restate-kafka-certificate",
        env = "HOLDFAST_RESTATE_KAFKA_CERTIFICATE",
        value_name = "FILE",
        global = true
    )]
    pub certificate: Option<PathBuf>,
    /// File with the private key (PEM) of that certificate, without a password.
    #[arg(
        id = "restate-kafka-private-key",
        long = "restate-kafka-private-key",
        env = "HOLDFAST_RESTATE_KAFKA_PRIVATE_KEY",
        value_name = "FILE",
        global = true
    )]
    pub private_key: Option<PathBuf>,
}

impl RestateKafka {
    /// Holdfast's way to Kafka, as Restate is to take it.
    pub fn security(&self, ours: &KafkaSecurity) -> KafkaSecurity {
        let mut theirs = ours.clone();
        if self.username.is_some() {
            (theirs.username, theirs.password) = (self.username.clone(), self.password.clone());
        }
        if self.certificate.is_some() {
            (theirs.certificate, theirs.private_key) = (self.certificate.clone(), self.private_key.clone());
            theirs.private_key_password = None;
        }
        theirs
    }

    pub(super) fn read_secrets(&mut self, secrets: &mut Secrets) {
        secrets.read(
            "restate-kafka-password",
            &mut self.password,
            self.password_file.as_deref(),
        );
    }

    /// Checks what is Restate's own, beside Holdfast's way to Kafka.
    pub(super) fn check(&self, checks: &mut Checks, ours: &KafkaSecurity) {
        checks.require(
            self.username.is_some() == self.password.is_some(),
            "restate-kafka-password",
            "give it together with --restate-kafka-username (HOLDFAST_RESTATE_KAFKA_USERNAME), or neither",
        );
        checks.require(
            self.username.is_none() || ours.username.is_some(),
            "restate-kafka-username",
            "give it with --kafka-sasl-mechanism PLAIN or SCRAM, or not at all",
        );
        checks.require(
            self.certificate.is_some() == self.private_key.is_some(),
            "restate-kafka-private-key",
            "give it together with --restate-kafka-certificate (HOLDFAST_RESTATE_KAFKA_CERTIFICATE), or neither",
        );
        for (flag, file) in [
            ("restate-kafka-certificate", &self.certificate),
            ("restate-kafka-private-key", &self.private_key),
        ] {
            checks.require(
                file.is_none() || ours.protocol.is_encrypted(),
                flag,
                "give it with --kafka-security-protocol SSL or SASL_SSL, or not at all",
            );
            if let Some(error) = file.as_ref().and_then(|file| std::fs::read(file).err()) {
                checks.require(false, flag, &format!("the file cannot be read: {error}"));
            }
        }
    }

    /// Checks the wire from Restate to these servers.
    pub(super) fn check_wire(checks: &mut Checks, bootstrap: &str, ours: &KafkaSecurity) {
        checks.secure(
            super::Wire::Kafka,
            ours.protocol.is_encrypted() || kafka_security::is_near(bootstrap),
            "restate-kafka",
            "give --kafka-security-protocol SSL or SASL_SSL: Restate reaches Kafka on another machine, by the same protocol",
        );
    }
}
