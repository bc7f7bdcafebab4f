//! A mail server, and one exchange with it: the server accepts the mail, or there is a reason why not. Reasons never contain the
//! text of the server's answer, since it may repeat the address.
//!
//! SMTP is spoken command by command: a 5xx to the recipient or the mail ends that mail; one to our credentials or our own
//! address is ours to mend, and must not end any mail. And once the server has accepted the mail, the mailer writes that at
//! once, before it waits for anything, even for the answer to `QUIT`.

use std::time::Duration;

use lettre::address::Envelope;
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailBodyParameter, MailParameter};
use secrecy::ExposeSecret;
use tokio::time::timeout;

use crate::config::{MailSecurity, MailServer};
use crate::transience::{self, Fault};

/// Longest wait for the answer to `QUIT`.
const GOODBYE: Duration = Duration::from_secs(1);

/// A mail server, with the settings of its connections.
pub(super) struct Server {
    address: MailServer,
    /// The certificates that the system trusts; absent without TLS.
    trust: Option<TlsParameters>,
    hello: ClientId,
    patience: Duration,
}

/// The reason why the server has not accepted a mail, as far as is known.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the mail server cannot be reached")]
    Unreachable(#[source] SmtpError),
    #[error("the mail server answered {code} to {command}")]
    Answered { command: &'static str, code: u16 },
    #[error("the mail server knows no {0}")]
    Lacks(&'static str),
    #[error("the mail server's answer cannot be read")]
    Unreadable,
    #[error("the exchange broke off")]
    Broken(#[source] SmtpError),
}

/// A mail that the server has accepted.
pub(super) struct Accepted {
    pub(super) code: u16,
    connection: AsyncSmtpConnection,
}

impl Server {
    /// `domain`: our name in `EHLO`; servers refuse names that are not public domains.
    pub(super) fn new(address: MailServer, domain: &str, patience: Duration) -> Result<Self, SmtpError> {
        let trust = match address.security {
            // Without TLS no certificates are needed.
            MailSecurity::Plain => None,
            MailSecurity::StartTls | MailSecurity::Tls => Some(TlsParameters::new(address.host.clone())?),
        };
        Ok(Self {
            address,
            trust,
            hello: ClientId::Domain(domain.to_owned()),
            patience,
        })
    }

    /// Sends one mail.
    pub(super) async fn deliver(&self, envelope: &Envelope, mail: &[u8]) -> Result<Accepted, Error> {
        let late = |_elapsed| Error::Late(self.patience);
        timeout(self.patience, self.exchange(envelope, mail))
            .await
            .map_err(late)?
    }

    async fn exchange(&self, envelope: &Envelope, mail: &[u8]) -> Result<Accepted, Error> {
        let mut connection = self.connect().await?;
        let sent = send(&mut connection, envelope, mail).await;
        match sent {
            Ok(code) => Ok(Accepted { code, connection }),
            Err(error) => {
                goodbye(connection).await;
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, Error> {
        let MailServer {
            host,
            port,
            security,
            credentials,
        } = &self.address;
        let at_once = (self.trust.clone()).filter(|_| *security == MailSecurity::Tls);
        let address = (host.as_str(), *port);
        let connected =
            AsyncSmtpConnection::connect_tokio1(address, Some(self.patience), &self.hello, at_once, None).await;
        let mut connection = connected.map_err(Error::Unreachable)?;
        if let (MailSecurity::StartTls, Some(trust)) = (security, &self.trust) {
            let upgraded = connection.starttls(trust.clone(), &self.hello).await;
            upgraded.map_err(Error::Unreachable)?;
        }
        if let Some(credentials) = credentials {
            let password = credentials.password.expose_secret().to_owned();
            let credentials = Credentials::new(credentials.user.clone(), password);
            let let_in = connection.auth(DEFAULT_MECHANISMS, &credentials).await;
            let_in.map_err(|error| failed("AUTH", error))?;
        }
        Ok(connection)
    }
}

impl Error {
    /// The answer, if there was one.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Answered { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// True if a retry is of no use: the server refuses this mail, or this address. A refusal of our credentials or of our own
    /// address is ours to mend, and the mail waits for that.
    pub(super) fn is_final(&self) -> bool {
        self.fault() == Fault::Content
    }

    /// The fault, which decides whether the mail is tried again.
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Answered { command, code } => transience::smtp(command, *code),
            Self::Lacks(_) => Fault::Content,
            Self::Late(_) | Self::Unreachable(_) | Self::Unreadable | Self::Broken(_) => Fault::Server,
        }
    }
}

impl Accepted {
    pub(super) async fn close(self) {
        goodbye(self.connection).await;
    }
}

async fn send(connection: &mut AsyncSmtpConnection, envelope: &Envelope, mail: &[u8]) -> Result<u16, Error> {
    let knows = |extension| connection.server_info().supports_feature(extension);
    let mut parameters = Vec::new();
    let mut addresses = envelope.to().iter().chain(envelope.from());
    if addresses.any(|address| !AsRef::<str>::as_ref(address).is_ascii()) {
        if !knows(Extension::SmtpUtfEight) {
            return Err(Error::Lacks("SMTPUTF8"));
        }
        parameters.push(MailParameter::SmtpUtfEight);
    }
    if !mail.is_ascii() {
        if !knows(Extension::EightBitMime) {
            return Err(Error::Lacks("8BITMIME"));
        }
        parameters.push(MailParameter::Body(MailBodyParameter::EightBitMime));
    }
    let from = Mail::new(envelope.from().cloned(), parameters);
    let begun = connection.command(from).await;
    begun.map_err(|error| failed("MAIL", error))?;
    for recipient in envelope.to() {
        let taken = connection.command(Rcpt::new(recipient.clone(), vec![])).await;
        taken.map_err(|error| failed("RCPT", error))?;
    }
    let ready = connection.command(Data).await;
    ready.map_err(|error| failed("DATA", error))?;
    let accepted = connection.message(mail).await;
    let accepted = accepted.map_err(|error| failed("the mail", error))?;
    Ok(accepted.code().into())
}

/// Ends the exchange. A server that does not answer `QUIT` has the mail all the same.
async fn goodbye(mut connection: AsyncSmtpConnection) {
    drop(timeout(GOODBYE, connection.abort()).await);
}

fn failed(command: &'static str, error: SmtpError) -> Error {
    match error.status() {
        Some(code) => Error::Answered {
            command,
            code: code.into(),
        },
        None if error.is_response() => Error::Unreadable,
        None => Error::Broken(error),
    }
}
