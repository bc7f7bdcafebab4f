//! What the client library tells beside its answers: log lines, which go to our log; why a connection fails, which no error of its
//! calls says; and that it needs a token to log in.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde::Deserialize;

use crate::config;
use crate::transience::Fault;

/// What was heard longer ago says nothing of an error now. The client library repeats itself every 30 s.
const FRESH: Duration = Duration::from_secs(60);

/// What is behind it when a broker hangs up before it has answered anything.
const HANGS_UP: &str = ": a broker that starts or stops does so, and one that wants TLS: --kafka-security-protocol \
                        (HOLDFAST_KAFKA_SECURITY_PROTOCOL)";

/// Hears the remarks of one client.
#[derive(Debug, Clone)]
pub struct Remarks {
    /// The file with the token to log in with.
    token: Option<PathBuf>,
    /// The client asks about its group. One that does not has a group by name only, and needs no right to it.
    asks_of_group: bool,
    /// Why the last connection or transaction failed, and when.
    last: Arc<Mutex<Option<(Instant, String)>>>,
}

/// What is behind other failures of a connection, each with a text of the client library by which it is known. The first one counts.
const MENDS: &[(&str, &str)] = &[
    (
        "certificate verify failed",
        ": the broker's certificate must be signed by an authority of --kafka-ca (HOLDFAST_KAFKA_CA), be for the name in --kafka \
         (HOLDFAST_KAFKA), and be valid at this time",
    ),
    (
        "alert certificate",
        ": the broker does not take --kafka-certificate (HOLDFAST_KAFKA_CERTIFICATE)",
    ),
    (
        "uthentication failed",
        ": check --kafka-username and --kafka-password (HOLDFAST_KAFKA_USERNAME, HOLDFAST_KAFKA_PASSWORD), or --kafka-token-file \
         (HOLDFAST_KAFKA_TOKEN_FILE)",
    ),
    (
        "SSL handshake failed",
        ": a port without TLS answers so, too: --kafka-security-protocol (HOLDFAST_KAFKA_SECURITY_PROTOCOL)",
    ),
];

impl Remarks {
    pub fn new(config: &config::Kafka) -> Self {
        Self {
            token: config.security.token.clone(),
            asks_of_group: true,
            last: Arc::default(),
        }
    }

    /// As [`Remarks::new`], of a consumer that reads what it is told to. The client library demands the name of a group, and looks for
    /// its coordinator.
    pub fn without_group(config: &config::Kafka) -> Self {
        Self {
            asks_of_group: false,
            ..Self::new(config)
        }
    }

    /// Why the last connection failed, if that was just now.
    pub fn heard(&self) -> Heard {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH);
        Heard(fresh.map(|(_, text)| Arc::new(text.clone())))
    }

    fn note(&self, text: &str) {
        let mut text = reason(text).to_owned();
        let mend = match MENDS.iter().find(|(words, _)| text.contains(words)) {
            _ if text.contains("Disconnected") && text.contains("APIVERSION_QUERY") => HANGS_UP,
            Some(&(_, mend)) => mend,
            None => "",
        };
        text += mend;
        let text = Some((Instant::now(), text));
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

/// Why a connection failed, to be printed behind an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard(Option<Arc<String>>);

impl Heard {
    pub fn text(&self) -> Option<&str> {
        self.0.as_deref().map(String::as_str)
    }

    /// The fault, if the connection fails by what only an operator mends.
    pub fn fault(&self) -> Option<Fault> {
        let names = ["SSL", "SASL", "security.protocol", "uthenticat", "uthorization"];
        let text = self.text()?;
        // Who hangs up within a handshake may only be starting, or a balancer before a broker that does.
        if ["Disconnected", "reset by peer", "refused", "timed out"]
            .iter()
            .any(|passing| text.contains(passing))
        {
            return None;
        }
        names.iter().any(|name| text.contains(name)).then_some(Fault::Setting)
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(text) => write!(f, " ({text})"),
            None => Ok(()),
        }
    }
}

impl ClientContext for Remarks {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // A transaction's end is told without the topic that caused it; the others were only not tried any more.
        let is_cause = facility == "ADDPARTS" && !message.contains("not attempted");
        if facility == "FAIL" || is_cause {
            self.note(message);
        }
        match level {
            // Warnings about settings that were chosen on purpose.
            _ if facility == "CONFWARN" => tracing::debug!(facility, "{message}"),
            RDKafkaLogLevel::Debug | RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
                tracing::debug!(facility, "{message}");
            }
            _ => tracing::warn!(facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        use RDKafkaErrorCode::{
            AllBrokersDown, Authentication, BrokerTransportFailure, GroupAuthorizationFailed, PartitionEOF, SSL,
        };
        match error.rdkafka_error_code() {
            // Whoever asks to be told of the end of a partition is told by the poll, too.
            Some(PartitionEOF) => return,
            Some(GroupAuthorizationFailed) if !self.asks_of_group => return,
            // Calls that need the group only run out of time.
            Some(GroupAuthorizationFailed) => self.note(reason),
            // The log has it already.
            Some(Authentication | SSL) => return self.note(reason),
            Some(BrokerTransportFailure) => return,
            // It counts the brokers, again and again, and hides why.
            Some(AllBrokersDown) => return,
            _ if self.heard().text().is_none() => self.note(reason),
            _ => {}
        }
        tracing::warn!(%error, reason, "Kafka client");
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        let file = self.token.as_deref().ok_or(TokenError::NoFile)?;
        token(file).map_err(|error| {
            self.note(&format!("SASL: {error}"));
            error.into()
        })
    }
}

impl ConsumerContext for Remarks {}

/// The message without the names of thread and connection that the client library begins it with.
fn reason(message: &str) -> &str {
    let message = match message.strip_prefix("[thrd:") {
        Some(rest) => rest.split_once("]: ").map_or(message, |(_, rest)| rest),
        None => message,
    };
    // The connection's name stays: it has the broker's address.
    message.trim()
}

/// Reads the token, a JWT (RFC 7519): who it names, and until when it holds, stand in it.
fn token(file: &Path) -> Result<OAuthToken, TokenError> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
        #[serde(default)]
        sub: String,
    }
    let file_name = || file.display().to_string();
    let token = fs::read_to_string(file).map_err(|source| TokenError::Read {
        file: file_name(),
        source,
    })?;
    let token = token.trim();
    let claims = token
        .split('.')
        .nth(1)
        .and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
    let claims: Option<Claims> = claims.and_then(|claims| serde_json::from_slice(&claims).ok());
    let Claims { exp, sub } = claims.ok_or_else(|| TokenError::NoJwt { file: file_name() })?;
    Ok(OAuthToken {
        token: token.to_owned(),
        principal_name: sub,
        lifetime_ms: exp.saturating_mul(1_000),
    })
}

/// The reason why there is no token to log in with.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error("no file with a token is set: give --kafka-token-file (HOLDFAST_KAFKA_TOKEN_FILE)")]
    NoFile,
    #[error("the token in {file} (--kafka-token-file, HOLDFAST_KAFKA_TOKEN_FILE) cannot be read: {source}")]
    Read { file: String, source: std::io::Error },
    #[error(
        "the token in {file} (--kafka-token-file, HOLDFAST_KAFKA_TOKEN_FILE) is no JWT with the time of its end (exp)"
    )]
    NoJwt { file: String },
}
