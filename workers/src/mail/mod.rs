//! Mail to customers: the mailer leases waiting mails, sends each to the mail server, and writes the server's answer. A mail
//! waits in a row of the database, so it never holds up seats or money, and survives every process; several processes may
//! send at once.
//!
//! SMTP has no exactly once: a mail is sent again when the mailer could not write that the server accepted it. The repeat has the
//! same `Message-ID`.
//!
//! A mail is a row with a lease and no step of the checkout's workflow. The row is written in the transaction of the
//! outcome, whichever of these ends the checkout: workflow, reconciler, operator, event of the provider. It waits for a
//! mail server that is away without a live invocation, and `verify` can count it. The mailer that sends a mail leases it
//! for a little longer than a server may take until it is ready, and prolongs that while it writes the mail and while it waits
//! for the answer to it: no lock is held meanwhile, and a process that died holds it up no longer. A mail that took long to
//! write is handed over only if the lease still holds, since a slow database may have kept it from being prolonged.
//!
//! A mail is rendered when it is sent, from the rows and templates as they are then: the row holds no text and no address. So a
//! mail that is tried again after another release, or other templates, may read otherwise, under the same `Message-ID`.

mod facts;
pub mod shipped;
mod shown;
mod smtp;
mod templates;

use std::sync::Arc;
use std::time::Duration;

use holdfast_schemas::{CheckoutId, Traceparent};
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart};
use lettre::{Address, Message};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config;
use crate::crash::{self, Point};
use crate::error;
use crate::metrics::Metrics;
use crate::rounds::Rounds;
use crate::store::mails::{self, Kind, LeasedMail, Unsendable};
use crate::store::{self, PgPool};
use crate::traces::MailSpan;
use crate::transience::Fault;
use smtp::Server;
use templates::RenderedMail;
pub use templates::Templates;

/// Interval at which the mailer looks for mails.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Interval at which waiting mails are counted.
const COUNT_EVERY: Duration = Duration::from_secs(5);

/// Mails that one process sends at once.
const AT_ONCE: usize = 8;

/// Pause after the first failed try; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Length of a lease beyond the time until the server is ready for the mail: one half to write the mail before, the other to
/// note the answer afterwards. Whatever takes longer prolongs it.
const TO_SPARE: Duration = Duration::from_secs(5);

/// Longest time for mails under way when the process ends.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// Sends the waiting mails.
#[derive(Clone)]
pub struct Mailer {
    pool: PgPool,
    server: Arc<Server>,
    templates: Arc<Templates>,
    from: Address,
    lease: Duration,
    longest_pause: Duration,
    failures_per_hour: u32,
    metrics: Arc<Metrics>,
    rounds: Arc<Loops>,
}

/// The rounds of each thing that the mailer does again and again.
struct Loops {
    take: Rounds,
    count: Rounds,
    contents: Rounds,
    notes: Rounds,
    server: Rounds,
}

/// The reason why no mailer can be made, or the mail server not be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no TLS with the mail server: are the system's certificates there?")]
    Tls(#[source] lettre::transport::smtp::Error),
    #[error("the mail server lets nobody in")]
    Unreached {
        fault: Fault,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// The fault: a setting's, or the server's.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Tls(_) => Fault::Setting,
            Error::Unreached { fault, .. } => *fault,
        }
    }
}

/// Connects to the mail server, is let in, and leaves; does nothing when none is set.
///
/// # Errors
/// [`Error`]
pub async fn reach(config: &config::Mail) -> Result<(), Error> {
    let (Some(address), Some(login), Some(from)) = (config.server(), config.login(), config.sender()) else {
        return Ok(());
    };
    let server = Server::new(address, login, from.domain(), config.smtp_timeout).map_err(Error::Tls)?;
    server.reach().await.map_err(|error| Error::Unreached {
        fault: error.fault(1),
        source: error.into(),
    })
}

/// The result of a try to send a mail, with the mail server's answer.
enum Fate {
    Sent(u16),
    /// The server refuses it for good.
    Refused(Option<u16>),
    NoAddress,
    Later(Option<u16>),
}

/// The reason why a mail cannot be written, now or ever.
#[derive(Debug, thiserror::Error)]
enum Unwritten {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("its checkout or user is gone")]
    Gone,
    #[error("the user was erased")]
    NoAddress,
    #[error("no mail can be addressed to the user's address")]
    Address,
    #[error("the mail cannot be rendered: mend the templates of --mail-templates, and start anew")]
    Render(#[from] templates::Error),
    #[error("the rendered mail cannot be put into a message")]
    Mail(#[source] lettre::error::Error),
}

/// The `Message-ID` of the mail about an outcome: the same however often it is sent, and no other mail's.
pub fn message_id(checkout: &CheckoutId, place: &str, domain: &str) -> String {
    let checkout = Uuid::new_v5(&Uuid::NAMESPACE_OID, checkout.as_str().as_bytes());
    format!("<{}@{domain}>", Uuid::new_v5(&checkout, place.as_bytes()))
}

impl Mailer {
    /// A mailer by the settings; none without a mail server. It sends nothing yet.
    ///
    /// # Errors
    /// The settings demand TLS, and the system has no certificates to trust.
    pub fn new(
        config: &config::Mail,
        templates: Arc<Templates>,
        pool: &PgPool,
        metrics: &Arc<Metrics>,
    ) -> Result<Option<Self>, Error> {
        let (Some(address), Some(login), Some(from)) = (config.server(), config.login(), config.sender()) else {
            return Ok(None);
        };
        let server = Server::new(address, login, from.domain(), config.smtp_timeout).map_err(Error::Tls)?;
        // Neither seats nor money wait for mails.
        let rounds = |part| Rounds::beside(part, metrics);
        Ok(Some(Self {
            pool: pool.clone(),
            server: Arc::new(server),
            templates,
            from,
            lease: config.smtp_timeout + TO_SPARE,
            longest_pause: config.longest_pause,
            failures_per_hour: config.failures_per_hour,
            metrics: metrics.clone(),
            rounds: Arc::new(Loops {
                take: rounds("mail"),
                count: rounds("mail (count)"),
                contents: rounds("mail (contents)"),
                notes: rounds("mail (notes)"),
                server: rounds("mail (server)"),
            }),
        }))
    }

    /// Sends waiting mails until shutdown; those under way then are finished, if that does not take long.
    ///
    /// # Errors
    /// Sending panicked.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut sending = JoinSet::new();
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(ended) = sending.try_join_next() {
                ended?;
            }
            let asked = Instant::now();
            match self.take(AT_ONCE - sending.len()).await {
                Ok(taken) => {
                    self.rounds.take.passed();
                    taken
                        .into_iter()
                        .for_each(|mail| drop(sending.spawn(self.clone().send(mail, asked))));
                }
                Err(error) => self.rounds.take.failed(error.fault(), &error),
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = sending.join_next(), if sending.len() == AT_ONCE => ended?,
                _ = looks.tick() => {}
            }
        }
        let under_way = async {
            while let Some(ended) = sending.join_next().await {
                ended?;
            }
            anyhow::Ok(())
        };
        // A mail that takes longer is sent again by the next mailer.
        timeout(LAST_PATIENCE, under_way).await.unwrap_or(Ok(()))
    }

    /// Counts the waiting mails, for ever.
    pub async fn count(self) {
        let mut ticks = interval(COUNT_EVERY);
        loop {
            ticks.tick().await;
            match mails::waiting(&self.pool).await {
                Ok(waiting) => {
                    self.metrics.mails_waiting.set(waiting.mails);
                    self.metrics.mails_oldest_seconds.set(waiting.oldest_seconds as i64);
                    self.rounds.count.passed();
                }
                Err(error) => self.rounds.count.failed(error.fault(), &error),
            }
        }
    }

    async fn take(&self, most: usize) -> Result<Vec<LeasedMail>, store::Error> {
        if most == 0 {
            return Ok(Vec::new());
        }
        let rows = mails::take(&self.pool, most as i64, self.lease).await?;
        let understood = rows.into_iter().filter_map(|row| {
            row.inspect_err(|error| tracing::error!(error = error::chain(error), "a mail is never sent"))
                .ok()
        });
        Ok(understood.collect())
    }

    /// Writes and sends one mail, whose lease did not begin before `asked`.
    async fn send(self, mail: LeasedMail, asked: Instant) {
        if mail.kind == Kind::Failed && self.is_over_limit(&mail).await {
            return;
        }
        let (message, trace) = match self.prolonging(&mail, self.write(&mail)).await {
            Ok(written) => {
                self.rounds.contents.passed();
                written
            }
            Err(Unwritten::Store(error)) => {
                tracing::warn!(checkout = %mail.checkout, error = error::chain(&error), "a mail is written later");
                self.rounds.contents.failed_for_one(error.fault(), &error);
                return self.note(&mail, Fate::Later(None)).await;
            }
            // The examples did not show it. Ours to mend, so it ends no mail.
            Err(error @ Unwritten::Render(_)) => {
                tracing::error!(checkout = %mail.checkout, error = error::chain(&error), "a mail waits for its templates");
                self.rounds.contents.failed_for_one(Fault::Setting, &error);
                return self.note(&mail, Fate::Later(None)).await;
            }
            Err(Unwritten::NoAddress) => return self.note(&mail, Fate::NoAddress).await,
            Err(error) => {
                tracing::error!(checkout = %mail.checkout, error = error::chain(&error), "a mail is not sent at all");
                return self.note(&mail, Fate::Refused(None)).await;
            }
        };
        if asked.elapsed() > TO_SPARE / 2 && !self.still_leases(&mail).await {
            return;
        }
        let (envelope, bytes) = (message.envelope(), message.formatted());
        let deliver = async || {
            let span = MailSpan::begin(&mail.checkout, trace.as_ref());
            let delivered = self.prolonging(&mail, self.server.deliver(envelope, &bytes)).await;
            if let Some(span) = span {
                let code = match &delivered {
                    Ok(accepted) => Some(accepted.code),
                    Err(error) => error.code(),
                };
                span.end(&mail.place, code, delivered.is_ok());
            }
            delivered
        };
        let mut delivered = deliver().await;
        if delivered.is_ok() {
            crash::here(Point::MailAccepted);
            if crash::again(Point::MailAccepted) {
                delivered = deliver().await;
            }
        }
        let accepted = match delivered {
            Ok(accepted) => {
                self.rounds.server.passed();
                accepted
            }
            Err(error) => return self.fail(&mail, &error).await,
        };
        self.note(&mail, Fate::Sent(accepted.code)).await;
        crash::here(Point::MailNoted);
        if crash::again(Point::MailNoted) {
            self.note(&mail, Fate::Sent(accepted.code)).await;
        }
        accepted.close().await;
    }

    /// Writes to the row that the mail is one too many, if it is. An error of the database counts as that: the lease ends, and the
    /// mail is looked at again.
    async fn is_over_limit(&self, mail: &LeasedMail) -> bool {
        match mails::limit(&self.pool, mail, self.failures_per_hour).await {
            Ok(true) => {
                self.metrics.mails.with_label_values(&["limited"]).inc();
                tracing::warn!(checkout = %mail.checkout, "a mail about a failure is not sent: the user got as many this hour as one may");
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::warn!(checkout = %mail.checkout, error = error::chain(&error), "a mail is looked at later");
                self.rounds.contents.failed_for_one(error.fault(), &error);
                true
            }
        }
    }

    /// Does a part of the work on a mail, and prolongs its lease meanwhile.
    async fn prolonging<R>(&self, mail: &LeasedMail, work: impl Future<Output = R>) -> R {
        let prolong = async {
            loop {
                sleep(self.lease / 2).await;
                if let Err(error) = mails::put_back(&self.pool, mail, None, self.lease).await {
                    tracing::warn!(checkout = %mail.checkout, error = error::chain(&error), "the lease of a mail may end");
                }
            }
        };
        tokio::select! {
            done = work => done,
            () = prolong => unreachable!("a lease is prolonged for ever"),
        }
    }

    /// Whether no other process has taken the mail meanwhile. Begins its lease anew.
    async fn still_leases(&self, mail: &LeasedMail) -> bool {
        match mails::put_back(&self.pool, mail, None, self.lease).await {
            Ok(true) => true,
            Ok(false) => {
                tracing::warn!(checkout = %mail.checkout, "a mail took so long to write that another process has taken it");
                false
            }
            Err(error) => {
                tracing::warn!(checkout = %mail.checkout, error = error::chain(&error), "a mail is written again: its lease may have ended");
                self.rounds.contents.failed_for_one(error.fault(), &error);
                self.note(mail, Fate::Later(None)).await;
                false
            }
        }
    }

    async fn fail(&self, mail: &LeasedMail, error: &smtp::Error) {
        let (checkout, attempt, code) = (&mail.checkout, mail.attempts, error.code());
        let chain = error::chain(error);
        let fault = error.fault(attempt);
        if fault == Fault::Content {
            tracing::error!(%checkout, attempt, error = chain, "the mail server refuses a mail for good");
            return self.note(mail, Fate::Refused(code)).await;
        }
        let why = match fault {
            Fault::Setting => {
                "the mail server refuses us, or the recipient by a policy: mend --smtp-url, --mail-from or the server; the mail waits"
            }
            _ => "a mail is sent later",
        };
        tracing::warn!(%checkout, attempt, error = chain, "{why}");
        if !error.is_about_one_mail() {
            self.rounds.server.failed(fault, error);
        }
        self.note(mail, Fate::Later(code)).await;
    }

    /// The mail, and the trace of its checkout.
    async fn write(&self, mail: &LeasedMail) -> Result<(Message, Option<Traceparent>), Unwritten> {
        let contents = mails::contents(&self.pool, mail).await?.ok_or(Unwritten::Gone)?;
        let email = contents.user.email.as_ref().ok_or(Unwritten::NoAddress)?;
        let to = config::deliverable(email.as_str()).ok_or(Unwritten::Address)?;
        let rendered = self.templates.render(mail.kind, mail.amount, &contents)?;
        let id = message_id(&mail.checkout, &mail.place, self.from.domain());
        let from = Mailbox::new(self.templates.sender().map(str::to_owned), self.from.clone());
        let message = compose(from, to, id, rendered).map_err(Unwritten::Mail)?;
        Ok((message, contents.checkout.trace))
    }

    /// Writes the result of a mail, and retries until that succeeds: a mail that was sent without a note is sent again.
    async fn note(&self, mail: &LeasedMail, fate: Fate) {
        let mut pauses = store::pauses();
        loop {
            match self.try_note(mail, &fate).await {
                Ok(()) => return self.rounds.notes.passed(),
                Err(error) => {
                    tracing::warn!(checkout = %mail.checkout, error = error::chain(&error), "a mail's fate is noted later");
                    self.rounds.notes.failed_for_one(error.fault(), &error);
                    sleep(pauses.next().unwrap_or(store::LONGEST_PAUSE)).await;
                }
            }
        }
    }

    async fn try_note(&self, mail: &LeasedMail, fate: &Fate) -> Result<(), store::Error> {
        let (noted, result) = match fate {
            Fate::Sent(code) => (mails::sent(&self.pool, mail, *code).await?, "sent"),
            Fate::Refused(code) => {
                let ended = mails::end(&self.pool, mail, Unsendable::Refused, *code);
                (ended.await?, "refused")
            }
            Fate::NoAddress => {
                let ended = mails::end(&self.pool, mail, Unsendable::NoAddress, None);
                (ended.await?, "no_address")
            }
            Fate::Later(code) => {
                let pause = pause(mail.attempts, self.longest_pause);
                (mails::put_back(&self.pool, mail, *code, pause).await?, "retried")
            }
        };
        match noted {
            true => self.metrics.mails.with_label_values(&[result]).inc(),
            false => tracing::warn!(checkout = %mail.checkout, result, "somebody else has taken a mail meanwhile"),
        }
        Ok(())
    }
}

/// Puts a rendered mail into a message.
fn compose(from: Mailbox, to: Address, id: String, rendered: RenderedMail) -> Result<Message, lettre::error::Error> {
    Message::builder()
        .from(from)
        .to(Mailbox::new(rendered.name, to))
        .subject(rendered.subject)
        .message_id(Some(id))
        // Keeps mailboxes from sending us notices of absence (RFC 3834).
        .raw_header(HeaderValue::new(
            HeaderName::new_from_ascii_str("Auto-Submitted"),
            "auto-generated".to_owned(),
        ))
        .multipart(MultiPart::alternative_plain_html(rendered.text, rendered.html))
}

/// The pause after this many tries.
fn pause(attempts: i32, longest: Duration) -> Duration {
    let doublings = u32::try_from(attempts - 1).unwrap_or(0).min(30);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let longest = Duration::from_secs(600);
        let seconds = |attempts| pause(attempts, longest).as_secs();
        assert_eq!([1, 2, 3, 10, 11, 1_000].map(seconds), [1, 2, 4, 512, 600, 600]);
    }

    #[test]
    fn a_message_id_is_the_same_again_and_no_other_mails() {
        let id = |checkout: &str, place| message_id(&CheckoutId::parse(checkout).unwrap(), place, "example.org");
        assert_eq!(id("c-1", "completed"), id("c-1", "completed"));
        let all = [
            id("c-1", "completed"),
            id("c-1", "refunded/5"),
            id("c-1", "refunded/10"),
            id("c-2", "completed"),
        ];
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert!(all[0].starts_with('<') && all[0].ends_with("@example.org>"), "{all:?}");
    }

    #[test]
    fn whatever_a_name_or_a_text_contains_every_server_can_take_the_mail() {
        let long = "x".repeat(1_000);
        for name in [
            "Ann",
            "O'Hara, \"Ann\" <eve@example.org>",
            "Änne Müller",
            "Ann\r\nBcc: eve@example.org",
            "  ",
            &long,
            &"ä ".repeat(333),
        ] {
            let rendered = RenderedMail {
                name: shown::name(&name.parse().unwrap()),
                subject: "Ihre Bestellung konnte nicht abgeschlossen werden – Übersicht".to_owned(),
                text: format!("Hello {name},\n.\nFrom us\nÄ {long}"),
                html: format!("<p>{name}{long}</p>\n"),
            };
            let sender = name.trim().chars().take(64).filter(|c| !c.is_control()).collect();
            let from = Mailbox::new(Some(sender), "tickets@example.org".parse().unwrap());
            let to = "ann@example.org".parse().unwrap();
            let mail = compose(from, to, "<1@example.org>".to_owned(), rendered)
                .unwrap()
                .formatted();
            assert!(mail.is_ascii() && !mail.contains(&0), "{name}");
            let mail = String::from_utf8(mail).unwrap();
            assert!(!mail.replace("\r\n", "").contains(['\r', '\n']), "{mail:?}");
            let longest = mail.split("\r\n").map(str::len).max();
            assert!(longest <= Some(998), "{name}: {longest:?}");
            let (headers, _) = mail.split_once("\r\n\r\n").unwrap();
            let names: Vec<_> = (headers.split("\r\n").filter(|line| !line.starts_with(' ')))
                .map(|line| line.split_once(':').unwrap().0)
                .collect();
            let expected = [
                "From",
                "To",
                "Subject",
                "Message-ID",
                "Auto-Submitted",
                "MIME-Version",
                "Date",
                "Content-Type",
            ];
            assert_eq!(names, expected, "{name}");
        }
    }
}
