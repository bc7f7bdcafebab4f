//! Settings: secrets. Each may lie in a file, which its name with `-file` tells; and none may be a flag of a process that lives long,
//! whose command line everybody on the machine can read.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{Checks, Cli, Invalid, variable};

/// The flags whose values are secrets, or may be.
pub(super) const SECRETS: &[&str] = &[
    "database-url",
    "loyalty-url",
    "kafka-private-key-password",
    "kafka-password",
    "kafka-property",
    "restate-token",
    "restate-kafka-password",
    "provider-key",
    "smtp-url",
    "webhook-secret",
    "traces-headers",
];

/// Reads the files of secrets, and notes what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    checks: Checks,
}

impl Secrets {
    /// Has `value` be what `file` holds, if there is a file.
    pub(super) fn read(&mut self, flag: &'static str, value: &mut Option<SecretString>, file: Option<&Path>) {
        let Some(file) = file else { return };
        if value.is_some() {
            let what = format!("give it, or --{flag}-file ({}_FILE), not both", variable(flag));
            self.checks.require(false, flag, &what);
            return;
        }
        match secret(file) {
            Ok(secret) => *value = Some(secret),
            Err(error) => self.checks.require(false, flag, &format!("--{flag}-file: {error}")),
        }
    }

    /// As [`Secrets::read`], for a setting that has a default.
    pub(super) fn replace(&mut self, flag: &'static str, value: &mut SecretString, default: &str, file: Option<&Path>) {
        let mut given = Some(value.clone()).filter(|value| value.expose_secret() != default);
        self.read(flag, &mut given, file);
        if let Some(given) = given {
            *value = given;
        }
    }

    pub(super) fn finish(self) -> Result<(), Vec<Invalid>> {
        self.checks.finish()
    }
}

/// What a file holds, without the end of its last line.
pub(super) fn secret(file: &Path) -> Result<SecretString, Error> {
    let name = || file.display().to_string();
    let text = fs::read_to_string(file).map_err(|source| Error::Read { file: name(), source })?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(Error::Empty { file: name() }),
        text => Ok(text.to_owned().into()),
    }
}

/// A secret that may be replaced, in its file, while the process runs.
pub struct ReplaceableSecret {
    file: Option<PathBuf>,
    /// Whether a value can be one.
    fits: Fits,
    last: Mutex<SecretString>,
}

type Fits = Box<dyn Fn(&str) -> bool + Send + Sync>;

impl ReplaceableSecret {
    /// With the value as it was read at the start.
    pub(super) fn new(
        value: SecretString,
        file: Option<PathBuf>,
        fits: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        let (last, fits) = (Mutex::new(value), Box::new(fits));
        Self { file, fits, last }
    }

    /// What the file holds now; while that cannot be read, or can be no secret, what it held last.
    pub fn now(&self) -> SecretString {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match self.file.as_deref().map(secret) {
            Some(Ok(secret)) if (self.fits)(secret.expose_secret()) => *last = secret,
            Some(Ok(_)) => {
                tracing::warn!(file = ?self.file, "a secret is used as it was read last: what its file holds is none")
            }
            Some(Err(error)) => tracing::warn!(%error, "a secret is used as it was read last"),
            None => {}
        }
        last.clone()
    }
}

impl fmt::Debug for ReplaceableSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplaceableSecret")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// The reason why a file holds no secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{file} cannot be read: {source}")]
    Read { file: String, source: std::io::Error },
    #[error("{file} is empty")]
    Empty { file: String },
}

/// The flags that show a secret on the command line.
pub(super) fn shown(matches: &ArgMatches) -> Vec<&'static str> {
    let command = Cli::command();
    let shows = |flag: &&&str| {
        let mut arguments = command.get_arguments();
        let Some(argument) = arguments.find(|argument| argument.get_long() == Some(**flag)) else {
            return false;
        };
        let id = argument.get_id().as_str();
        let mut values = matches.get_raw(id).into_iter().flatten();
        matches.value_source(id) == Some(ValueSource::CommandLine) && values.any(|value| is_secret(flag, value))
    };
    SECRETS.iter().filter(shows).copied().collect()
}

/// Whether a property of Kafka's client library may be a secret, by its name.
pub(super) fn names_a_secret(property: &str) -> bool {
    let property = property.to_lowercase();
    let words = ["password", "secret", "key", "token", "jaas", "oauthbearer"];
    words.iter().any(|word| property.contains(word))
}

/// An address without a password is none.
fn is_secret(flag: &str, value: &OsStr) -> bool {
    let value = value.to_string_lossy();
    if flag == "kafka-property" {
        return names_a_secret(value.split('=').next().unwrap_or_default());
    }
    match Url::parse(&value) {
        Ok(url) if url.has_host() => {
            url.password().is_some()
                || url
                    .query_pairs()
                    .any(|(name, _)| name.to_lowercase().contains("password"))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use clap::{FromArgMatches, Parser};

    use super::*;

    /// A file that is gone after the test.
    struct Held(PathBuf);

    impl Held {
        fn new(name: &str, text: &str) -> Self {
            let file = std::env::temp_dir().join(format!("holdfast-{}-{name}", std::process::id()));
            fs::write(&file, text).unwrap();
            Self(file)
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            fs::remove_file(&self.0).unwrap();
        }
    }

    #[test]
    fn each_secret_may_lie_in_a_file_and_no_other_setting_hides_its_value() {
        let command = Cli::command();
        let longs: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        for argument in command
            .get_arguments()
            .filter(|argument| argument.is_hide_env_values_set())
        {
            let flag = argument.get_long().unwrap();
            assert!(SECRETS.contains(&flag), "{flag}");
        }
        for flag in SECRETS {
            assert!(longs.contains(flag), "{flag}");
            // Several of them, each with a name: files of their own would need names of their own.
            let is_property = *flag == "kafka-property";
            assert!(
                is_property || longs.contains(&format!("{flag}-file").as_str()),
                "{flag}"
            );
        }
    }

    #[test]
    fn every_secret_is_read_from_its_file_without_the_lines_end_and_never_printed() {
        for (flag, text) in [
            ("database-url", "postgres://a:sesame@127.0.0.1/b"),
            ("loyalty-url", "postgres://a:sesame@127.0.0.1/c"),
            ("kafka-private-key-password", "sesame"),
            ("kafka-password", "sesame"),
            ("restate-token", "sesame"),
            ("restate-kafka-password", "sesame"),
            ("provider-key", "sk_sesame"),
            ("smtp-url", "smtps://a:sesame@mail.example"),
            ("webhook-secret", "whsec_sesame"),
            ("traces-headers", "authorization=sesame"),
        ] {
            let held = Held::new(flag, &format!("{text}\r\n"));
            let (file, by_file) = (held.0.to_str().unwrap(), format!("--{flag}-file"));
            let mut cli = Cli::parse_from(["holdfast", &by_file, file, "migrate"]);
            assert_eq!(cli.read_secrets(), Ok(()), "{flag}");
            assert!(!format!("{cli:?}").contains("sesame"), "{flag}");
            let secrets = [
                Some(&cli.config.database.url),
                cli.config.database.loyalty_url.as_ref(),
                cli.config.kafka.security.private_key_password.as_ref(),
                cli.config.kafka.security.password.as_ref(),
                cli.config.restate.token.as_ref(),
                cli.config.restate.kafka_login.password.as_ref(),
                cli.config.provider.key.as_ref(),
                cli.config.mail.smtp_url.as_ref(),
                cli.config.webhook.secret.as_ref(),
                cli.config.traces.headers.as_ref(),
            ];
            let mut secrets = secrets.into_iter().flatten().map(ExposeSecret::expose_secret);
            assert!(secrets.any(|secret| secret == text), "{flag}");
            let mut both = Cli::parse_from(["holdfast", &by_file, file, &format!("--{flag}"), text, "migrate"]);
            let wrong = both.read_secrets().unwrap_err();
            assert!(wrong[0].to_string().contains("not both"), "{flag}: {}", wrong[0]);
            assert!(!wrong[0].to_string().contains("sesame"), "{flag}");
        }
    }

    #[test]
    fn a_file_that_holds_nothing_is_refused_by_name() {
        let empty = Held::new("empty", "\n");
        for file in [empty.0.to_str().unwrap(), "/nowhere/at/all"] {
            let mut cli = Cli::parse_from(["holdfast", "--kafka-password-file", file, "gate"]);
            let wrong = cli.read_secrets().unwrap_err();
            let text = wrong[0].to_string();
            assert!(
                text.starts_with("--kafka-password (HOLDFAST_KAFKA_PASSWORD)") && text.contains(file),
                "{text}"
            );
        }
    }

    #[test]
    fn a_secret_is_no_flag_of_a_process_that_lives_long() {
        let flags = |args: &[&str]| {
            let matches = Cli::command().get_matches_from([&["holdfast"], args].concat());
            let mut cli = Cli::from_arg_matches(&matches).unwrap();
            cli.shown = shown(&matches);
            let wrong = cli.check().err().unwrap_or_default();
            wrong.iter().map(|setting| setting.flag).collect::<Vec<_>>()
        };
        let secret = ["--database-url", "postgres://a:sesame@127.0.0.1/b"];
        assert_eq!(flags(&[&secret[..], &["relay"]].concat()), ["database-url"]);
        assert_eq!(flags(&[&["relay"], &secret[..]].concat()), ["database-url"]);
        assert_eq!(flags(&[&secret[..], &["migrate"]].concat()), [""; 0]);
        assert_eq!(flags(&["--database-url", "postgres://a@127.0.0.1/b", "relay"]), [""; 0]);
        assert_eq!(flags(&["--kafka-property", "client.id=a", "relay"]), [""; 0]);
        assert_eq!(
            flags(&["--kafka-property", "ssl.keystore.password=sesame", "gate"]),
            ["kafka-property"]
        );
    }

    #[test]
    fn a_secret_that_changes_is_read_again_and_remembered() {
        let held = Held::new("changes", "one");
        let fits = |text: &str| !text.contains(' ');
        let secret = ReplaceableSecret::new(secret(&held.0).unwrap(), Some(held.0.clone()), fits);
        let now = || secret.now().expose_secret().to_owned();
        assert_eq!(now(), "one");
        fs::write(&held.0, "two\n").unwrap();
        assert_eq!(now(), "two");
        // Not the first one, which has been replaced.
        for none in ["", "two words"] {
            fs::write(&held.0, none).unwrap();
            assert_eq!(now(), "two");
        }
    }
}
