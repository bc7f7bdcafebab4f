//! Settings: mails to customers.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use lettre::Address;
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use super::insecure::is_loopback;
use super::secret::{ReplaceableSecret, Secrets};
use super::{Checks, Wire};

/// The ports of RFC 5321 (relay), RFC 6409 (submission) and RFC 8314 (submission over TLS).
const SMTP_PORT: u16 = 25;
const SUBMISSION_PORT: u16 = 587;
const SUBMISSIONS_PORT: u16 = 465;

/// The mail server and the sender of mails to customers.
#[derive(Args, Debug, Clone)]
pub struct Mail {
    /// The mail server: `smtps://user:password@host` speaks TLS, `smtp://user:password@host?tls=required` changes to TLS by
    /// STARTTLS, `smtp://host` has no TLS and suits a server nearby. A process without it has no mails sent about the
    /// outcomes that it writes, so give it to every process that may end a checkout: `serve`, `run`, `admin checkout settle`.
    #[arg(long, env = "HOLDFAST_SMTP_URL", hide_env_values = true, global = true)]
    pub smtp_url: Option<SecretString>,
    /// File that holds --smtp-url. It is read again for each mail: user and password may change while the process runs.
    #[arg(
        id = "smtp-url-file",
        long = "smtp-url-file",
        env = "HOLDFAST_SMTP_URL_FILE",
        value_name = "FILE",
        global = true
    )]
    pub smtp_url_file: Option<PathBuf>,
    /// The address that mails come from, such as tickets@example.org.
    #[arg(long = "mail-from", env = "HOLDFAST_MAIL_FROM", global = true)]
    pub from: Option<String>,
    /// Folder with the templates of mails, the sender's name and the seller's identity, in place of those that come with Holdfast.
    /// `holdfast admin mail templates --to FOLDER` writes a start. It is read at the start of the process.
    #[arg(
        long = "mail-templates",
        env = "HOLDFAST_MAIL_TEMPLATES",
        value_name = "FOLDER",
        global = true
    )]
    pub templates: Option<PathBuf>,
    /// Longest time the mail server may take until it is ready for a mail; after that it is tried again. The answer to a mail
    /// that it was handed may take 10m.
    #[arg(long, env = "HOLDFAST_SMTP_TIMEOUT", default_value = "30s", value_parser = humantime::parse_duration, global = true)]
    pub smtp_timeout: Duration,
    /// Longest pause between two tries to send a mail. Pauses begin at 1s and double.
    #[arg(long = "mail-longest-pause", env = "HOLDFAST_MAIL_LONGEST_PAUSE", default_value = "10m", value_parser = humantime::parse_duration, global = true)]
    pub longest_pause: Duration,
    /// Most mails about failed checkouts that one user gets within an hour. Those beyond are noted in the table `mails` as `limited`
    /// and counted, and never sent.
    #[arg(
        long = "mail-failures-per-hour",
        env = "HOLDFAST_MAIL_FAILURES_PER_HOUR",
        default_value_t = 5,
        global = true
    )]
    pub failures_per_hour: u32,
}

/// A mail server, as `--smtp-url` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailServer {
    pub host: String,
    pub port: u16,
    pub security: MailSecurity,
}

/// The protection of the connection to the mail server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailSecurity {
    Plain,
    /// TLS begins by the command STARTTLS, and must.
    StartTls,
    /// TLS from the first byte.
    Tls,
}

/// The credentials for the mail server.
#[derive(Debug, Clone)]
pub struct MailCredentials {
    pub user: String,
    pub password: SecretString,
}

/// The credentials in `--smtp-url`. While the process runs, its file may get others for the same server.
#[derive(Debug)]
pub struct MailLogin(ReplaceableSecret);

impl MailLogin {
    pub fn new(url: SecretString, file: Option<PathBuf>) -> Self {
        let at = parse(&url).map(|(server, _)| server);
        let is_there = move |text: &str| at.is_some() && parse(&text.into()).map(|(server, _)| server) == at;
        Self(ReplaceableSecret::new(url, file, is_there))
    }

    /// The credentials as they are now; none where the server asks for none.
    pub fn now(&self) -> Option<MailCredentials> {
        parse(&self.0.now()).and_then(|(_, credentials)| credentials)
    }
}

impl Mail {
    /// The server that takes mails; none without the setting, or when it cannot be understood.
    pub fn server(&self) -> Option<MailServer> {
        let (server, _) = self.smtp_url.as_ref().and_then(parse)?;
        Some(server)
    }

    /// The credentials for that server; none without the setting.
    pub fn login(&self) -> Option<MailLogin> {
        Some(MailLogin::new(self.smtp_url.clone()?, self.smtp_url_file.clone()))
    }

    /// The sender of every mail; none without the setting, or when it is no address that every mail server takes.
    pub fn sender(&self) -> Option<Address> {
        deliverable(self.from.as_deref()?).filter(|address| address.user().is_ascii())
    }

    pub(super) fn read_secrets(&mut self, secrets: &mut Secrets) {
        secrets.read("smtp-url", &mut self.smtp_url, self.smtp_url_file.as_deref());
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        checks.require(
            self.smtp_url.is_some() == self.server().is_some(),
            "smtp-url",
            "give smtps://user:password@host, smtp://user:password@host?tls=required or smtp://host; encode special characters as %40",
        );
        let is_closed = |server: MailServer| server.security != MailSecurity::Plain || is_loopback(&server.host);
        checks.secure(
            Wire::Smtp,
            self.server().is_none_or(is_closed),
            "smtp-url",
            "give smtps://user:password@host, or smtp://user:password@host?tls=required: names, addresses and the password go over \
             this wire",
        );
        checks.require(
            self.from.is_some() == self.sender().is_some(),
            "mail-from",
            "give one plain address, such as tickets@example.org",
        );
        checks.require(
            self.smtp_url.is_some() == self.from.is_some(),
            "mail-from",
            "give it together with --smtp-url (HOLDFAST_SMTP_URL), or neither",
        );
        checks.require(
            (Duration::from_millis(100)..=Duration::from_secs(600)).contains(&self.smtp_timeout),
            "smtp-timeout",
            "give 100ms to 10m",
        );
        checks.require(
            (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&self.longest_pause),
            "mail-longest-pause",
            "give 1s to 1d",
        );
        checks.require(self.failures_per_hour >= 1, "mail-failures-per-hour", "give 1 or more");
    }
}

/// An address as every mail server takes it: an international domain in its ASCII form (RFC 5890). SMTPUTF8 is only needed for
/// what precedes the `@`.
pub fn deliverable(address: &str) -> Option<Address> {
    let (user, domain) = address.rsplit_once('@')?;
    if domain.is_ascii() {
        return address.parse().ok();
    }
    match Host::parse(domain).ok()? {
        Host::Domain(domain) => Address::new(user, domain).ok(),
        Host::Ipv4(_) | Host::Ipv6(_) => None,
    }
}

/// The server and the credentials in an address.
fn parse(url: &SecretString) -> Option<(MailServer, Option<MailCredentials>)> {
    let url = Url::parse(url.expose_secret()).ok()?;
    let (security, port) = match (url.scheme(), url.query()) {
        ("smtp", None) => (MailSecurity::Plain, SMTP_PORT),
        ("smtp", Some("tls=required")) => (MailSecurity::StartTls, SUBMISSION_PORT),
        ("smtps", None) => (MailSecurity::Tls, SUBMISSIONS_PORT),
        _ => return None,
    };
    let plain = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
    let credentials = match (url.username(), url.password()) {
        ("", None) => None,
        ("", Some(_)) | (_, None) => return None,
        (user, Some(password)) => Some(MailCredentials {
            user: plain(user)?,
            password: plain(password)?.into(),
        }),
    };
    let has_more = !matches!(url.path(), "" | "/") || url.fragment().is_some();
    let host = url.host_str().filter(|host| !host.is_empty() && !has_more)?;
    let server = MailServer {
        // Addresses of IPv6 stand in brackets, which belong to the URL.
        host: host.trim_matches(['[', ']']).to_owned(),
        port: url.port().unwrap_or(port),
        security,
    };
    Some((server, credentials))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_international_domain_is_written_in_ascii_and_nothing_else_is_changed() {
        let text = |address| deliverable(address).map(|address| address.to_string());
        for (given, expected) in [
            ("ann@example.org", Some("ann@example.org")),
            ("Ann@Example.org", Some("Ann@Example.org")),
            ("ann@bücher.example", Some("ann@xn--bcher-kva.example")),
            ("ann@BÜCHER.example", Some("ann@xn--bcher-kva.example")),
            ("żółw@bücher.example", Some("żółw@xn--bcher-kva.example")),
            ("ann@xn--bcher-kva.example", Some("ann@xn--bcher-kva.example")),
            ("ann@bü cher.example", None),
            ("ann", None),
            // As RFC 5321 has it, or not at all: its limits are 64 before the @, and 63 in each part of the domain.
            ("ann+tickets@example.org", Some("ann+tickets@example.org")),
            ("\"ann\"@example.org", Some("\"ann\"@example.org")),
            ("ann@[127.0.0.1]", Some("ann@[127.0.0.1]")),
            ("ann.@example.org", None),
            ("ann@example.org.", None),
            ("<ann@example.org>", None),
            (&format!("{}@example.org", "a".repeat(65)), None),
            (&format!("ann@{}.org", "ü".repeat(60)), None),
        ] {
            assert_eq!(text(given).as_deref(), expected, "{given}");
        }
    }

    #[test]
    fn user_and_password_are_decoded() {
        let (server, credentials) = parse(&"smtps://shop%40home:se%2Fsame@mail.example".into()).unwrap();
        assert_eq!((server.host.as_str(), server.port), ("mail.example", 465));
        let credentials = credentials.unwrap();
        assert_eq!(credentials.user, "shop@home");
        assert_eq!(credentials.password.expose_secret(), "se/same");
    }
}
