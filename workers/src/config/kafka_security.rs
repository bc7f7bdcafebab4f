//! Settings: how Kafka's clients are protected, who they are, and further properties of the client library.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;
use rdkafka::types::RDKafkaConfRes;
use secrecy::{ExposeSecret, SecretString};

use super::insecure::is_loopback;
use super::secret::Secrets;
use super::{Checks, Wire};

/// Protection of the connections to Kafka, and the name of the client there.
#[derive(Args, Debug, Clone)]
pub struct KafkaSecurity {
    /// Protocol of the connections to Kafka: SSL is TLS, SASL a login.
    #[arg(
        id = "kafka-security-protocol", long = "kafka-security-protocol",
        env = "HOLDFAST_KAFKA_SECURITY_PROTOCOL",
        value_enum,
        ignore_case = true,
        default_value_t = SecurityProtocol::Plaintext,
        global = true
    )]
    pub protocol: SecurityProtocol,
    /// File with the certificates (PEM) of the authorities that may have signed the brokers'; the system's when absent.
    #[arg(
        id = "kafka-ca",
        long = "kafka-ca",
        env = "HOLDFAST_KAFKA_CA",
        value_name = "FILE",
        global = true
    )]
    pub ca: Option<PathBuf>,
    /// File with the client's certificate (PEM), where brokers ask for one.
    #[arg(
        id = "kafka-certificate",
        long = "kafka-certificate",
        env = "HOLDFAST_KAFKA_CERTIFICATE",
        value_name = "FILE",
        global = true
    )]
    pub certificate: Option<PathBuf>,
    /// File with the private key (PEM) of the client's certificate.
    #[arg(
        id = "kafka-private-key",
        long = "kafka-private-key",
        env = "HOLDFAST_KAFKA_PRIVATE_KEY",
        value_name = "FILE",
        global = true
    )]
    pub private_key: Option<PathBuf>,
    /// The password of that key, if it has one.
    #[arg(
        id = "kafka-private-key-password",
        long = "kafka-private-key-password",
        env = "HOLDFAST_KAFKA_PRIVATE_KEY_PASSWORD",
        hide_env_values = true,
        global = true
    )]
    pub private_key_password: Option<SecretString>,
    /// File that holds --kafka-private-key-password.
    #[arg(
        env = "HOLDFAST_KAFKA_PRIVATE_KEY_PASSWORD_FILE",
        id = "kafka-private-key-password-file",
        long = "kafka-private-key-password-file",
        value_name = "FILE",
        global = true
    )]
    pub private_key_password_file: Option<PathBuf>,
    /// The way to log in.
    #[arg(
        id = "kafka-sasl-mechanism",
        long = "kafka-sasl-mechanism",
        env = "HOLDFAST_KAFKA_SASL_MECHANISM",
        value_enum,
        ignore_case = true,
        global = true
    )]
    pub mechanism: Option<SaslMechanism>,
    /// The user's name, for PLAIN and SCRAM.
    #[arg(
        id = "kafka-username",
        long = "kafka-username",
        env = "HOLDFAST_KAFKA_USERNAME",
        global = true
    )]
    pub username: Option<String>,
    /// The user's password, for PLAIN and SCRAM.
    #[arg(
        id = "kafka-password",
        long = "kafka-password",
        env = "HOLDFAST_KAFKA_PASSWORD",
        hide_env_values = true,
        global = true
    )]
    pub password: Option<SecretString>,
    /// File that holds --kafka-password.
    #[arg(
        id = "kafka-password-file",
        long = "kafka-password-file",
        env = "HOLDFAST_KAFKA_PASSWORD_FILE",
        value_name = "FILE",
        global = true
    )]
    pub password_file: Option<PathBuf>,
    /// File with the token (a JWT) for OAUTHBEARER; it is read again whenever the token is about to expire.
    #[arg(
        id = "kafka-token-file",
        long = "kafka-token-file",
        env = "HOLDFAST_KAFKA_TOKEN_FILE",
        value_name = "FILE",
        global = true
    )]
    pub token: Option<PathBuf>,
    /// A further property of the client library (librdkafka), as `name=value`; several in the environment are separated by `;`.
    #[arg(
        id = "kafka-property", long = "kafka-property",
        env = "HOLDFAST_KAFKA_PROPERTY",
        value_name = "NAME=VALUE",
        hide_env_values = true,
        value_delimiter = ';',
        value_parser = property,
        global = true
    )]
    pub properties: Vec<KafkaProperty>,
}

/// The protocol of connections to Kafka.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityProtocol {
    #[value(name = "PLAINTEXT")]
    Plaintext,
    #[value(name = "SSL")]
    Ssl,
    #[value(name = "SASL_PLAINTEXT")]
    SaslPlaintext,
    #[value(name = "SASL_SSL")]
    SaslSsl,
}

impl SecurityProtocol {
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }

    fn has_login(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

/// The way to log in to Kafka.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    #[value(name = "PLAIN")]
    Plain,
    #[value(name = "SCRAM-SHA-256")]
    ScramSha256,
    #[value(name = "SCRAM-SHA-512")]
    ScramSha512,
    #[value(name = "OAUTHBEARER")]
    OAuthBearer,
}

/// A property of the client library. Its value may be a secret.
#[derive(Clone)]
pub struct KafkaProperty {
    /// Empty when it was not given as `name=value`.
    pub name: String,
    pub value: SecretString,
}

impl fmt::Debug for KafkaProperty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=[REDACTED]", self.name)
    }
}

/// Anything is taken, and what is wrong is found by the check: the parser would print the value.
fn property(text: &str) -> Result<KafkaProperty, Infallible> {
    let (name, value) = text.split_once('=').unwrap_or(("", text));
    Ok(KafkaProperty {
        name: name.trim().to_owned(),
        value: value.to_owned().into(),
    })
}

/// Properties that have a setting of their own.
const SETTINGS: &[(&str, &str)] = &[
    ("bootstrap.servers", "kafka"),
    ("metadata.broker.list", "kafka"),
    ("security.protocol", "kafka-security-protocol"),
    ("ssl.ca.location", "kafka-ca"),
    ("ssl.ca.pem", "kafka-ca"),
    ("ssl.certificate.location", "kafka-certificate"),
    ("ssl.certificate.pem", "kafka-certificate"),
    ("ssl.key.location", "kafka-private-key"),
    ("ssl.key.pem", "kafka-private-key"),
    ("ssl.key.password", "kafka-private-key-password"),
    ("sasl.mechanism", "kafka-sasl-mechanism"),
    ("sasl.mechanisms", "kafka-sasl-mechanism"),
    ("sasl.username", "kafka-username"),
    ("sasl.password", "kafka-password"),
    ("group.id", "gate-group"),
    ("group.instance.id", "instance"),
];

/// Properties that Holdfast sets by itself, and those without which a promise does not hold.
const OWN: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.commit.enable",
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "compression.codec",
    "compression.type",
    "delivery.report.only.error",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "group.protocol",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "isolation.level",
    "linger.ms",
    "log.queue",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "max.partition.fetch.bytes",
    "message.max.bytes",
    "message.send.max.retries",
    "message.timeout.ms",
    "offset.store.method",
    "partition.assignment.strategy",
    "partitioner",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queued.max.messages.kbytes",
    "queuing.strategy",
    "receive.message.max.bytes",
    "request.required.acks",
    "retries",
    "session.timeout.ms",
    "statistics.interval.ms",
    "test.mock.num.brokers",
    "topic.metadata.propagation.max.ms",
    "topic.metadata.refresh.interval.ms",
    "transaction.timeout.ms",
    "transactional.id",
];

impl KafkaSecurity {
    /// Whether some of the settings are secrets.
    pub(super) fn has_secrets(&self) -> bool {
        let own = [&self.password, &self.private_key_password];
        let further = self
            .properties
            .iter()
            .any(|further| super::secret::names_a_secret(&further.name));
        own.iter().any(|secret| secret.is_some()) || self.private_key.is_some() || further
    }

    /// The properties of the client library that these settings are. Some values are secrets.
    pub fn properties(&self) -> BTreeMap<&str, String> {
        let path = |file: &Option<PathBuf>| file.as_ref().map(|file| file.to_string_lossy().into_owned());
        let secret = |secret: &Option<SecretString>| secret.as_ref().map(|secret| secret.expose_secret().to_owned());
        let own = [
            ("security.protocol", Some(name(self.protocol))),
            ("ssl.ca.location", path(&self.ca)),
            ("ssl.certificate.location", path(&self.certificate)),
            ("ssl.key.location", path(&self.private_key)),
            ("ssl.key.password", secret(&self.private_key_password)),
            ("sasl.mechanisms", self.mechanism.map(name)),
            ("sasl.username", self.username.clone()),
            ("sasl.password", secret(&self.password)),
        ];
        let own = own.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let further = self.properties.iter();
        let further = further.map(|further| (further.name.as_str(), further.value.expose_secret().to_owned()));
        further.chain(own).collect()
    }

    pub(super) fn read_secrets(&mut self, secrets: &mut Secrets) {
        secrets.read(
            "kafka-private-key-password",
            &mut self.private_key_password,
            self.private_key_password_file.as_deref(),
        );
        secrets.read("kafka-password", &mut self.password, self.password_file.as_deref());
    }

    /// Checks the settings of the way to these servers.
    pub(super) fn check(&self, checks: &mut Checks, bootstrap: &str) {
        let before = checks.wrong.len();
        self.check_wire(checks, bootstrap);
        self.check_certificates(checks);
        self.check_login(checks);
        for further in &self.properties {
            self.check_property(checks, further, is_near(bootstrap));
        }
        // What is known to be wrong would only be named once more.
        if checks.wrong.len() == before && self.protocol != SecurityProtocol::Plaintext {
            self.check_client(checks);
        }
    }

    fn check_wire(&self, checks: &mut Checks, bootstrap: &str) {
        checks.secure(
            Wire::Kafka,
            self.protocol.is_encrypted() || is_near(bootstrap),
            "kafka-security-protocol",
            match self.protocol.has_login() {
                true => "give SASL_SSL: login and records go over this wire to another machine",
                false => "give SSL or SASL_SSL: records go over this wire to another machine, and whoever answers is believed",
            },
        );
    }

    fn check_certificates(&self, checks: &mut Checks) {
        for (flag, is_given) in [
            ("kafka-ca", self.ca.is_some()),
            ("kafka-certificate", self.certificate.is_some()),
            ("kafka-private-key", self.private_key.is_some()),
        ] {
            checks.require(
                !is_given || self.protocol.is_encrypted(),
                flag,
                "give it with --kafka-security-protocol SSL or SASL_SSL, or not at all",
            );
        }
        for (flag, file) in [
            ("kafka-ca", &self.ca),
            ("kafka-certificate", &self.certificate),
            ("kafka-private-key", &self.private_key),
        ] {
            if let Some(file) = file
                && let Err(error) = std::fs::read(file)
            {
                checks.require(false, flag, &format!("{} cannot be read: {error}", file.display()));
            }
        }
        checks.require(
            self.certificate.is_none() || self.private_key.is_some(),
            "kafka-private-key",
            "give the private key of --kafka-certificate",
        );
        checks.require(
            self.private_key.is_none() || self.certificate.is_some(),
            "kafka-certificate",
            "give the certificate of --kafka-private-key",
        );
        checks.require(
            self.private_key_password.is_none() || self.private_key.is_some(),
            "kafka-private-key-password",
            "give it with --kafka-private-key, or not at all",
        );
    }

    fn check_login(&self, checks: &mut Checks) {
        let has_login = self.protocol.has_login();
        checks.require(
            self.mechanism.is_some() == has_login,
            "kafka-sasl-mechanism",
            match has_login {
                true => "give PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER: the protocol asks for a login",
                false => "give it with --kafka-security-protocol SASL_SSL, or not at all",
            },
        );
        let by_token = self.mechanism == Some(SaslMechanism::OAuthBearer);
        let by_name = self.mechanism.is_some() && !by_token;
        let given = "give it for PLAIN or SCRAM";
        let absent = "give it with --kafka-sasl-mechanism PLAIN or SCRAM, or not at all";
        for (flag, is_given) in [
            (
                "kafka-username",
                self.username.as_ref().is_some_and(|name| !name.is_empty()),
            ),
            ("kafka-password", self.password.is_some()),
        ] {
            checks.require(is_given == by_name, flag, if by_name { given } else { absent });
        }
        checks.require(
            self.token.is_some() == by_token,
            "kafka-token-file",
            match by_token {
                true => "give the file with the token for OAUTHBEARER",
                false => "give it with --kafka-sasl-mechanism OAUTHBEARER, or not at all",
            },
        );
    }

    fn check_property(&self, checks: &mut Checks, further: &KafkaProperty, is_near: bool) {
        let (flag, name) = ("kafka-property", further.name.as_str());
        let value = further.value.expose_secret();
        let setting = SETTINGS.iter().find(|(property, _)| *property == name);
        let wrong = match setting {
            _ if name.is_empty() => Some("give name=value".to_owned()),
            Some((_, setting)) => Some(format!("{name} is set by --{setting}")),
            None if OWN.contains(&name) => Some(format!("{name} is Holdfast's own: its promises rest on the value")),
            None if name == "sasl.oauthbearer.method" && value.eq_ignore_ascii_case("oidc") => Some(format!(
                "{name} cannot be oidc: the client library is built without the HTTP client for it; have the token written to \
                 --kafka-token-file (HOLDFAST_KAFKA_TOKEN_FILE)"
            )),
            None => refused_by_library(name, value),
        };
        checks.require(wrong.is_none(), flag, wrong.as_deref().unwrap_or_default());
        let is_open = match name {
            // As the client library reads them, whatever the case.
            "enable.ssl.certificate.verification" => !["true", "t", "1"].contains(&value.to_lowercase().as_str()),
            "ssl.endpoint.identification.algorithm" => !value.eq_ignore_ascii_case("https"),
            _ => false,
        };
        checks.secure(
            Wire::Kafka,
            !is_open || is_near,
            flag,
            &format!("leave out {name}: without it, whoever answers is believed to be the broker"),
        );
    }

    /// Has the client library read the files and compare the settings; it opens no socket, as it is given no address.
    fn check_client(&self, checks: &mut Checks) {
        let mut client = ClientConfig::new();
        client.extend(
            self.properties()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value)),
        );
        let made: Result<BaseProducer, KafkaError> = client.create();
        let Err(error) = made else { return };
        let said = match error {
            KafkaError::ClientCreation(said) => said,
            // Its text may hold the value.
            _ => "the client library refuses a value".to_owned(),
        };
        let flag = match said.as_str() {
            _ if said.contains("ssl.ca") => "kafka-ca",
            _ if said.contains("ssl.certificate") => "kafka-certificate",
            _ if said.contains("ssl.key") => "kafka-private-key",
            _ if said.contains("key") && said.contains("certificate") => "kafka-private-key",
            _ => "kafka-security-protocol",
        };
        checks.require(false, flag, &format!("the client library cannot use it: {said}"));
    }
}

/// What the client library has against a property.
fn refused_by_library(name: &str, value: &str) -> Option<String> {
    let config = ClientConfig::from_iter([(name.to_owned(), value.to_owned())]);
    match config.create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Some(format!("the client library (librdkafka) knows no {name}"))
        }
        Err(_) => Some(format!(
            "the client library (librdkafka) does not take this value for {name}"
        )),
    }
}

/// True if all of these servers are on this machine.
pub(super) fn is_near(bootstrap: &str) -> bool {
    let hosts = bootstrap.split(',').filter_map(|server| server.rsplit_once(':'));
    hosts
        .map(|(host, _)| host.rsplit('/').next().unwrap_or(host))
        .all(is_loopback)
}

/// The name of a value, as Kafka writes it.
fn name(value: impl ValueEnum) -> String {
    (value.to_possible_value()).map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;

    /// What is wrong with these settings, beside `--kafka`.
    fn wrong(args: &[&str]) -> Vec<String> {
        let kafka = ["holdfast", "--kafka", "127.0.0.1:9092,[::1]:9092"];
        let args = [&kafka, args, &["gate"]].concat();
        let checked = Cli::parse_from(args).config.check();
        let wrong = checked.err().unwrap_or_default();
        wrong.iter().map(ToString::to_string).collect()
    }

    fn flags(args: &[&str]) -> Vec<String> {
        let wrong = wrong(args).into_iter();
        wrong
            .map(|text| text[2..].split(' ').next().unwrap_or_default().to_owned())
            .collect()
    }

    const PROTOCOL: &str = "--kafka-security-protocol";
    const MECHANISM: &str = "--kafka-sasl-mechanism";
    const LOGIN: [&str; 4] = ["--kafka-username", "gate", "--kafka-password", "sesame"];

    #[test]
    fn a_login_is_whole_or_absent() {
        for mechanism in ["PLAIN", "scram-sha-256", "SCRAM-SHA-512"] {
            let given = [&[PROTOCOL, "SASL_SSL", MECHANISM, mechanism][..], &LOGIN].concat();
            assert_eq!(wrong(&given), [""; 0], "{mechanism}");
        }
        assert_eq!(flags(&[PROTOCOL, "SASL_SSL"]), ["kafka-sasl-mechanism"]);
        assert_eq!(
            flags(&[PROTOCOL, "SASL_SSL", MECHANISM, "PLAIN", "--kafka-password", "sesame"]),
            ["kafka-username"]
        );
        assert_eq!(
            flags(&[PROTOCOL, "SASL_SSL", MECHANISM, "PLAIN", "--kafka-username", "gate"]),
            ["kafka-password"]
        );
        assert_eq!(flags(&LOGIN), ["kafka-username", "kafka-password"]);
        assert_eq!(
            flags(&[&[MECHANISM, "PLAIN"][..], &LOGIN].concat()),
            ["kafka-sasl-mechanism"]
        );
        assert_eq!(
            flags(&[PROTOCOL, "SASL_SSL", MECHANISM, "OAUTHBEARER"]),
            ["kafka-token-file"]
        );
        let by_token = [
            PROTOCOL,
            "SASL_SSL",
            MECHANISM,
            "OAUTHBEARER",
            "--kafka-token-file",
            "/t",
        ];
        assert_eq!(wrong(&by_token), [""; 0]);
    }

    #[test]
    fn a_certificate_has_a_key_and_an_encrypted_protocol_and_files_that_can_be_read() {
        let certificate = ["--kafka-certificate", "/c.pem"];
        assert_eq!(
            flags(&[&[PROTOCOL, "SSL"][..], &certificate].concat()),
            ["kafka-certificate", "kafka-private-key"]
        );
        assert_eq!(flags(&["--kafka-ca", "/dev/null"]), ["kafka-ca"]);
        let unreadable = wrong(&[PROTOCOL, "SSL", "--kafka-ca", "/nowhere/ca.pem"]);
        assert!(
            unreadable[0].starts_with("--kafka-ca (HOLDFAST_KAFKA_CA)") && unreadable[0].contains("/nowhere/ca.pem"),
            "{unreadable:?}"
        );
    }

    #[test]
    fn nothing_goes_unencrypted_to_another_machine_unless_that_is_said_by_name() {
        let check = |args: &[&str]| {
            let args = [
                &["holdfast", "--kafka", "127.0.0.1:1,kafka.example:9092"],
                args,
                &["gate"],
            ]
            .concat();
            Cli::parse_from(args).config.check()
        };
        let flag = |args: &[&str]| check(args).map_err(|wrong| wrong[0].flag);
        let login = [&[PROTOCOL, "SASL_PLAINTEXT", MECHANISM, "PLAIN"][..], &LOGIN].concat();
        assert_eq!(flag(&[]), Err("kafka-security-protocol"));
        assert_eq!(flag(&login), Err("kafka-security-protocol"));
        assert_eq!(flag(&["--insecure", "kafka"]), Ok(()));
        assert_eq!(flag(&[PROTOCOL, "SSL"]), Ok(()));
        let unchecked = [
            PROTOCOL,
            "SSL",
            "--kafka-property",
            "ssl.endpoint.identification.algorithm=none",
        ];
        assert_eq!(flag(&unchecked), Err("kafka-property"));
    }

    #[test]
    fn a_property_is_one_that_the_client_library_knows_and_holdfast_leaves_open() {
        let property = |text: &str| wrong(&["--kafka-property", text]).join("; ");
        assert_eq!(property("client.id=shop;socket.timeout.ms=30000"), "");
        for (text, expected) in [
            ("acks=0", "its promises rest on the value"),
            ("bootstrap.servers=elsewhere:1", "set by --kafka"),
            ("sasl.password=sesame", "set by --kafka-password"),
            ("no.such.thing=1", "knows no no.such.thing"),
            (
                "socket.timeout.ms=sesame",
                "does not take this value for socket.timeout.ms",
            ),
            ("sesame", "give name=value"),
            ("sasl.oauthbearer.method=oidc", "built without the HTTP client"),
        ] {
            let said = property(text);
            assert!(said.contains(expected), "{text}: {said}");
            assert!(!said.contains("sesame"), "a value is printed: {said}");
        }
        let config = Cli::parse_from(["holdfast", "--kafka-property", "ssl.keystore.password=sesame", "gate"]);
        let printed = format!("{config:?}");
        assert!(
            printed.contains("ssl.keystore.password") && !printed.contains("sesame"),
            "{printed}"
        );
    }
}
