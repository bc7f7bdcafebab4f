//! A mail server, and one exchange with it: the server accepts the mail, or there is a reason why not. Reasons never contain the
//! text of the server's answer, since it may repeat the address.
//!
//! SMTP is spoken command by command: a 5xx to the recipient or the mail ends that mail, unless it is about us; one to our
//! credentials, our name or our own address is ours to mend, and must not end any mail. And once the server has accepted the mail, the mailer writes that at
//! once, before it waits for anything, even for the answer to `QUIT`.

use std::error::Error as _;
use std::time::Duration;

use lettre::address::Envelope;
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailBodyParameter, MailParameter};
use secrecy::ExposeSecret;
use tokio::time::{Instant, timeout};

use crate::config::{MailLogin, MailSecurity, MailServer};
use crate::tls;
use crate::transience::{self, Fault};

/// Longest wait for the answer to a mail that was handed over (RFC 5321, 4.5.3.2.6): servers filter and store it before they
/// answer, and who does not wait sends it again and again.
const ANSWER: Duration = Duration::from_secs(600);

/// The names of the mail itself, and of two extensions, in errors.
const MAIL: &str = "the mail";
const HELLO: &str = "the connection or EHLO";
const SMTPUTF8: &str = "SMTPUTF8";
const EIGHT_BIT: &str = "8BITMIME";

/// Tries after which no further copy goes to a server whose answers to the mail cannot be read: it has the mail by then.
const MOST_COPIES: i32 = 5;

/// What may be behind a server's silence before its greeting.
const WAITS_FOR_TLS: &str = ": one that wants TLS from the first byte is silent, too; then give smtps://";

/// Longest wait for the answer to `QUIT`.
const GOODBYE: Duration = Duration::from_secs(1);

/// A mail server, with the settings of its connections.
pub(super) struct Server {
    address: MailServer,
    login: MailLogin,
    /// The certificates that the system trusts; absent without TLS.
    trust: Option<TlsParameters>,
    hello: ClientId,
    patience: Duration,
}

/// The reason why the server has not accepted a mail, as far as is known.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no answer from the mail server at {address} within {patience:?}{mend}")]
    Late {
        address: String,
        patience: Duration,
        /// What an operator may have to do, if that is known.
        mend: &'static str,
    },
    #[error("the mail server at {address} cannot be reached{mend}")]
    Unreachable {
        address: String,
        /// As that of `Late`.
        mend: &'static str,
        #[source]
        source: SmtpError,
    },
    #[error("the mail server answered {code} to {command}{}", status.map_or_else(String::new, |Status(a, b)| format!(" (5.{a}.{b})")))]
    Answered {
        command: &'static str,
        code: u16,
        status: Option<Status>,
    },
    #[error("the mail server offers no {0}")]
    Lacks(&'static str),
    #[error("the mail server's answer to {0} cannot be read")]
    Unreadable(&'static str),
    #[error("the exchange broke off")]
    Broken(#[source] SmtpError),
}

/// Subject and detail of an enhanced status code (RFC 3463).
#[derive(Clone, Copy, Debug)]
pub(super) struct Status(u16, u16);

/// A mail that the server has accepted.
pub(super) struct Accepted {
    pub(super) code: u16,
    connection: AsyncSmtpConnection,
}

impl Server {
    /// `domain`: our name in `EHLO`; servers refuse names that are not public domains.
    pub(super) fn new(
        address: MailServer,
        login: MailLogin,
        domain: &str,
        patience: Duration,
    ) -> Result<Self, SmtpError> {
        let trust = match address.security {
            // Without TLS no certificates are needed.
            MailSecurity::Plain => None,
            MailSecurity::StartTls | MailSecurity::Tls => Some(TlsParameters::new(address.host.clone())?),
        };
        Ok(Self {
            address,
            login,
            trust,
            hello: ClientId::Domain(domain.to_owned()),
            patience,
        })
    }

    /// Sends one mail.
    pub(super) async fn deliver(&self, envelope: &Envelope, mail: &[u8]) -> Result<Accepted, Error> {
        let mut connection = self.begin(envelope, mail).await?;
        let answered = timeout(ANSWER, connection.message(mail)).await;
        match answered.map_err(|_elapsed| self.late(ANSWER, ""))? {
            Ok(answer) => Ok(Accepted {
                code: answer.code().into(),
                connection,
            }),
            Err(error) => {
                goodbye(connection).await;
                Err(failed(MAIL, error))
            }
        }
    }

    /// Connects, and brings the server to where it waits for the mail itself.
    async fn begin(&self, envelope: &Envelope, mail: &[u8]) -> Result<AsyncSmtpConnection, Error> {
        let begun = Instant::now();
        let mut connection = self.connect_in_time().await?;
        let left = self.patience.saturating_sub(begun.elapsed());
        let announced = timeout(left, announce(&mut connection, envelope, mail)).await;
        match announced.map_err(|_elapsed| self.late(self.patience, ""))? {
            Ok(()) => Ok(connection),
            Err(error) => {
                goodbye(connection).await;
                Err(error)
            }
        }
    }

    /// Connects, is let in, and leaves.
    pub(super) async fn reach(&self) -> Result<(), Error> {
        goodbye(self.connect_in_time().await?).await;
        Ok(())
    }

    async fn connect_in_time(&self) -> Result<AsyncSmtpConnection, Error> {
        let connected = timeout(self.patience, self.connect()).await;
        let mend = match self.address.security {
            MailSecurity::Tls => "",
            MailSecurity::Plain | MailSecurity::StartTls => WAITS_FOR_TLS,
        };
        connected.map_err(|_elapsed| self.late(self.patience, mend))?
    }

    fn late(&self, patience: Duration, mend: &'static str) -> Error {
        Error::Late {
            address: self.name(),
            patience,
            mend,
        }
    }

    /// `host:port`.
    fn name(&self) -> String {
        format!("{}:{}", self.address.host, self.address.port)
    }

    /// As [`failed`], before any address of a customer is named: the text of the error may be shown.
    fn unreached(&self, command: &'static str, error: SmtpError) -> Error {
        match error.status() {
            Some(_) => failed(command, error),
            None => Error::Unreachable {
                address: self.name(),
                mend: tls::mend(&error),
                source: error,
            },
        }
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, Error> {
        let MailServer { host, port, security } = &self.address;
        let at_once = (self.trust.clone()).filter(|_| *security == MailSecurity::Tls);
        let address = (host.as_str(), *port);
        // The name may have several addresses, of which the first may be silent.
        let patience = Some(self.patience / 3);
        let connected = AsyncSmtpConnection::connect_tokio1(address, patience, &self.hello, at_once, None).await;
        let mut connection = connected.map_err(|error| self.unreached(HELLO, error))?;
        if let (MailSecurity::StartTls, Some(trust)) = (security, &self.trust) {
            if !connection.can_starttls() {
                return Err(Error::Lacks("STARTTLS"));
            }
            let upgraded = connection.starttls(trust.clone(), &self.hello).await;
            upgraded.map_err(|error| self.unreached("STARTTLS", error))?;
        }
        if let Some(credentials) = self.login.now() {
            if connection
                .server_info()
                .get_auth_mechanism(DEFAULT_MECHANISMS)
                .is_none()
            {
                return Err(Error::Lacks("AUTH by PLAIN or LOGIN, or not without TLS"));
            }
            let password = credentials.password.expose_secret().to_owned();
            let credentials = Credentials::new(credentials.user, password);
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

    /// True for an answer to the recipient or to what came after, which another mail may not get.
    pub(super) fn is_about_one_mail(&self) -> bool {
        matches!(self, Self::Answered { command, .. } if !matches!(*command, "AUTH" | "STARTTLS" | "MAIL" | HELLO))
    }

    /// The fault after this many tries. Only one of the content ends the mail: the server refuses this mail, or this recipient.
    pub(super) fn fault(&self, attempts: i32) -> Fault {
        match self {
            Self::Answered { command, code, status } => {
                transience::smtp(command, *code, status.map(|Status(subject, detail)| (subject, detail)))
            }
            Self::Lacks(SMTPUTF8 | EIGHT_BIT) => Fault::Content,
            Self::Lacks(_) => Fault::Setting,
            Self::Unreadable(MAIL) if attempts >= MOST_COPIES => Fault::Content,
            _ => Fault::Server,
        }
    }
}

impl Accepted {
    pub(super) async fn close(self) {
        goodbye(self.connection).await;
    }
}

/// Says from whom and to whom the mail is, up to the server's answer to `DATA`.
async fn announce(connection: &mut AsyncSmtpConnection, envelope: &Envelope, mail: &[u8]) -> Result<(), Error> {
    let knows = |extension| connection.server_info().supports_feature(extension);
    let mut parameters = Vec::new();
    let mut addresses = envelope.to().iter().chain(envelope.from());
    if addresses.any(|address| !AsRef::<str>::as_ref(address).is_ascii()) {
        if !knows(Extension::SmtpUtfEight) {
            return Err(Error::Lacks(SMTPUTF8));
        }
        parameters.push(MailParameter::SmtpUtfEight);
    }
    if !mail.is_ascii() {
        if !knows(Extension::EightBitMime) {
            return Err(Error::Lacks(EIGHT_BIT));
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
    ready.map(drop).map_err(|error| failed("DATA", error))
}

/// Ends the exchange. A server that does not answer `QUIT` has the mail all the same.
async fn goodbye(mut connection: AsyncSmtpConnection) {
    drop(timeout(GOODBYE, connection.abort()).await);
}

fn failed(command: &'static str, error: SmtpError) -> Error {
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    match error.status() {
        Some(code) => Error::Answered {
            command,
            code: code.into(),
            status: Status::find(&text),
        },
        // So the client names the end of the connection.
        None if text == "incomplete response" => Error::Broken(error),
        None if error.is_response() || text.contains("valid UTF-8") => Error::Unreadable(command),
        None => Error::Broken(error),
    }
}

impl Status {
    /// The status of class 5 in an answer's text, wherever it stands: qmail writes it at the end.
    fn find(text: &str) -> Option<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.');
        numbers.find_map(|number| {
            let (subject, detail) = number.strip_prefix("5.")?.split_once('.')?;
            Some(Self(subject.parse().ok()?, detail.parse().ok()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    /// The replies of a server that differ from a plain one's, by command; `CONNECT` stands for the greeting and `.` for the mail
    /// itself. An empty reply closes the connection.
    type Manner = &'static [(&'static str, &'static [u8])];

    /// Manners of real servers, and what becomes of the mail: it is sent, waits, or is refused for good, and the last code.
    const CASES: &[(Manner, &str)] = &[
        (&[], "sent 250"),
        // Greeting and EHLO.
        (
            &[("CONNECT", b"220-mail.example\r\n220-no spam\r\n220 please\r\n")],
            "sent 250",
        ),
        (&[("CONNECT", b"554 5.7.1 no service here\r\n")], "waits 554"),
        (&[("CONNECT", b"421 4.7.0 too many connections\r\n")], "waits 421"),
        (&[("CONNECT", b"521 5.3.2 no mail here\r\n")], "waits 521"),
        (&[("CONNECT", b"")], "waits 0"),
        (&[("CONNECT", b"HTTP/1.1 400 Bad Request\r\n")], "waits 0"),
        (&[("EHLO", b"502 5.5.1 not implemented\r\n")], "waits 502"),
        (&[("EHLO", b"550 5.7.1 bad name\r\n")], "waits 550"),
        (&[("EHLO", b"421 4.3.2 closing\r\n")], "waits 421"),
        // AUTH.
        (&[("EHLO", b"250-mail.example\r\n250 AUTH CRAM-MD5\r\n")], "waits 0"),
        (&[("AUTH", b"535 5.7.8 bad credentials\r\n")], "waits 535"),
        (&[("AUTH", b"454 4.7.0 not now\r\n")], "waits 454"),
        (
            &[("AUTH", b"530 5.7.0 Must issue a STARTTLS command first\r\n")],
            "waits 530",
        ),
        (&[("AUTH", b"550 5.7.60 not enabled\r\n")], "waits 550"),
        // The sender.
        (&[("MAIL", b"553 5.7.1 sender not owned\r\n")], "waits 553"),
        (&[("MAIL", b"550 5.1.8 no such domain\r\n")], "waits 550"),
        (&[("MAIL", b"452 4.3.1 out of storage\r\n")], "waits 452"),
        (&[("MAIL", b"")], "waits 0"),
        // The recipient. Postfix says here what it has against our host, our name or our address.
        (&[("RCPT", b"251 will forward\r\n")], "sent 250"),
        (&[("RCPT", b"450 4.2.0 greylisted\r\n")], "waits 450"),
        (&[("RCPT", b"451 4.7.1 try again\r\n")], "waits 451"),
        (&[("RCPT", b"452 4.5.3 too many recipients\r\n")], "waits 452"),
        (&[("RCPT", b"421 4.4.2 idle\r\n")], "waits 421"),
        (&[("RCPT", b"550 unknown\r\n")], "refused 550"),
        (&[("RCPT", b"550 5.1.1 unknown\r\n")], "refused 550"),
        (
            &[(
                "RCPT",
                b"550-5.1.1 The account does not exist.\r\n550 5.1.1 See example.org\r\n",
            )],
            "refused 550",
        ),
        (
            &[("RCPT", b"550 5.4.1 Recipient address rejected: Access denied\r\n")],
            "refused 550",
        ),
        (&[("RCPT", b"552 5.2.2 mailbox full\r\n")], "refused 552"),
        (&[("RCPT", b"501 5.1.3 bad address\r\n")], "refused 501"),
        (&[("RCPT", b"556 5.1.10 null MX\r\n")], "refused 556"),
        (
            &[("RCPT", b"554 5.7.1 <ann@example.org>: Relay access denied\r\n")],
            "waits 554",
        ),
        (
            &[("RCPT", b"553 not in my list of allowed rcpthosts (#5.7.1)\r\n")],
            "waits 553",
        ),
        (
            &[("RCPT", b"550 5.7.64 TenantAttribution; Relay Access Denied\r\n")],
            "waits 550",
        ),
        (
            &[("RCPT", b"504 5.5.2 <localhost>: Helo command rejected\r\n")],
            "waits 504",
        ),
        (
            &[("RCPT", b"550 5.1.8 Sender address rejected: Domain not found\r\n")],
            "waits 550",
        ),
        (&[("RCPT", b"530 5.7.0 Authentication required\r\n")], "waits 530"),
        (&[("RCPT", b"503 5.5.1 bad sequence\r\n")], "waits 503"),
        // The mail.
        (&[("DATA", b"421 4.3.0 closing\r\n")], "waits 421"),
        (&[("DATA", b"502 5.5.1 not implemented\r\n")], "waits 502"),
        (&[(".", b"451 4.7.1 try again\r\n")], "waits 451"),
        (&[(".", b"421 4.3.2 closing\r\n")], "waits 421"),
        (&[(".", b"552 5.3.4 too big\r\n")], "refused 552"),
        (&[(".", b"550 5.6.0 malformed\r\n")], "refused 550"),
        (
            &[(".", b"554 Message rejected: Email address is not verified.\r\n")],
            "waits 554",
        ),
        (
            &[(".", b"550-5.7.26 unauthenticated\r\n550 5.7.26 mail\r\n")],
            "waits 550",
        ),
        (
            &[(".", b"550 5.4.5 Daily user sending limit exceeded\r\n")],
            "waits 550",
        ),
        (&[(".", b"")], "waits 0"),
        // Replies that are odd.
        (&[("QUIT", b"")], "sent 250"),
        (&[("RCPT", b"250-fine\r\n251 fine\r\n")], "waits 0"),
        (&[("RCPT", b"5 no\r\n")], "waits 0"),
        (&[("RCPT", b"550 5.1.1 Empf\xe4nger unbekannt\r\n")], "waits 0"),
        (
            &[("RCPT", "550 5.1.1 Empfänger unbekannt\r\n".as_bytes())],
            "refused 550",
        ),
    ];

    #[tokio::test]
    async fn a_mail_is_given_up_only_for_what_is_wrong_with_the_mail_or_its_recipient() {
        let mut wrong = Vec::new();
        for (manner, expected) in CASES {
            let (result, _) = deliver(manner, "ann@example.org", MailSecurity::Plain, true, b"Hello\r\n").await;
            let manner: Vec<_> = manner
                .iter()
                .map(|(to, reply)| (to, reply.escape_ascii().to_string()))
                .collect();
            if result != *expected {
                wrong.push(format!("{manner:?}: {result}, not {expected}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[tokio::test]
    async fn a_server_without_what_we_need_is_not_the_mails_fault() {
        let bare: Manner = &[("EHLO", b"250 mail.example\r\n")];
        let unready: Manner = &[
            ("EHLO", b"250-mail.example\r\n250 STARTTLS\r\n"),
            ("STARTTLS", b"454 4.7.0 TLS not available\r\n"),
        ];
        let broken: Manner = &[
            ("EHLO", b"250-mail.example\r\n250 STARTTLS\r\n"),
            ("STARTTLS", b"220 go\r\n"),
        ];
        for (manner, to, security, has_password, expected) in [
            (bare, "ann@example.org", MailSecurity::Plain, false, "sent 250"),
            (bare, "ann@example.org", MailSecurity::Plain, true, "waits 0"),
            (bare, "ann@example.org", MailSecurity::StartTls, true, "waits 0"),
            (unready, "ann@example.org", MailSecurity::StartTls, true, "waits 454"),
            (broken, "ann@example.org", MailSecurity::StartTls, true, "waits 0"),
            // No server nearby can mend the address; another server may take it.
            (bare, "żółw@example.org", MailSecurity::Plain, false, "refused 0"),
        ] {
            let (result, heard) = deliver(manner, to, security, has_password, b"Hello\r\n").await;
            assert_eq!(result, expected, "{security:?}, {has_password}: {heard}");
            assert!(!heard.contains("AUTH"), "{heard}");
        }
    }

    #[tokio::test]
    async fn a_line_that_is_a_dot_ends_no_mail() {
        let mail = b"To: ann\r\n\r\n.\r\n..\r\nFrom us\r\n.end\r\n";
        let (result, heard) = deliver(&[], "ann+b@Example.org", MailSecurity::Plain, false, mail).await;
        assert_eq!(result, "sent 250");
        assert_eq!(
            heard,
            "EHLO example.org\r\nMAIL FROM:<tickets@example.org>\r\nRCPT TO:<ann+b@Example.org>\r\nDATA\r\n\
             To: ann\r\n\r\n..\r\n...\r\nFrom us\r\n..end\r\n\r\n.\r\n"
        );
    }

    /// The result of a mail to a server of this manner, and what the server heard but for `QUIT`.
    async fn deliver(
        manner: Manner,
        to: &str,
        security: MailSecurity,
        has_password: bool,
        mail: &[u8],
    ) -> (String, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = MailServer {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr().unwrap().port(),
            security,
        };
        let login = if has_password { "shop:sesame@" } else { "" };
        let login = MailLogin::new(format!("smtp://{login}127.0.0.1").into(), None);
        let talking = tokio::spawn(talk(listener, manner));
        let server = Server::new(address, login, "example.org", Duration::from_secs(5)).unwrap();
        let from = "tickets@example.org".parse().unwrap();
        let envelope = Envelope::new(Some(from), vec![to.parse().unwrap()]).unwrap();
        let result = match server.deliver(&envelope, mail).await {
            Ok(accepted) => {
                let code = accepted.code;
                accepted.close().await;
                format!("sent {code}")
            }
            Err(error) if error.fault(1) == Fault::Content => format!("refused {}", error.code().unwrap_or_default()),
            Err(error) => format!("waits {}", error.code().unwrap_or_default()),
        };
        let heard = String::from_utf8_lossy(&talking.await.unwrap().unwrap_or_default()).replace("QUIT\r\n", "");
        (result, heard)
    }

    /// Talks to one client, and gives back what it said.
    async fn talk(listener: TcpListener, manner: Manner) -> io::Result<Vec<u8>> {
        let mut client = BufReader::new(listener.accept().await?.0);
        let (mut heard, mut command) = (Vec::new(), "CONNECT".to_owned());
        loop {
            let odd = manner.iter().find(|(other, _)| *other == command);
            let reply = odd.map_or_else(|| plain(&command), |(_, reply)| reply);
            // A reply may come in pieces.
            for piece in reply.chunks(reply.len().div_ceil(2).max(1)) {
                client.write_all(piece).await?;
                client.flush().await?;
                tokio::task::yield_now().await;
            }
            let in_mail = command == "DATA" && reply.starts_with(b"354");
            let (begin, end) = (heard.len(), if in_mail { &b"\r\n.\r\n"[..] } else { b"\r\n" });
            while !reply.is_empty() && !heard[begin..].ends_with(end) {
                if client.read_until(b'\n', &mut heard).await? == 0 {
                    return Ok(heard);
                }
            }
            if reply.is_empty() {
                return Ok(heard);
            }
            let line = String::from_utf8_lossy(&heard[begin..]).to_uppercase();
            command = if in_mail {
                "."
            } else {
                line.split_whitespace().next().unwrap_or_default()
            }
            .to_owned();
        }
    }

    fn plain(command: &str) -> &'static [u8] {
        match command {
            "CONNECT" => b"220 mail.example\r\n",
            "EHLO" => b"250-mail.example\r\n250-8BITMIME\r\n250 AUTH PLAIN LOGIN\r\n",
            "AUTH" => b"235 welcome\r\n",
            "DATA" => b"354 go on\r\n",
            "QUIT" => b"221 bye\r\n",
            _ => b"250 fine\r\n",
        }
    }
}
