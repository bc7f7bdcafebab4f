//! A mail server that fails on demand.

use std::sync::{Arc, Mutex};

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::certs::Certificate;
use super::identity::base64url;
use super::process::lock;
use super::tls_front::acceptor;

/// Accepts every mail, unless a fault is planned. Dropping it ends it.
pub struct Sink {
    address: String,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
}

/// A fault of the mail server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This answer to this command (`MAIL`, `RCPT`, `DATA`), or to the mail itself (`.`).
    Answer(&'static str, u16),
    /// As `Answer`, with this enhanced status code.
    Refusal(&'static str, u16, &'static str),
    /// The mail is kept, and the answer kept back until [`Sink::heal`].
    Slow,
    /// The mail is kept, and the connection cut instead of an answer.
    AnswerLost,
    /// No answer to `MAIL`, ever.
    Silence,
    /// The mail is accepted, but `QUIT` gets no answer.
    NoGoodbye,
}

/// A mail as it came.
#[derive(Clone, Debug)]
pub struct Mail {
    /// From `RCPT`.
    pub to: String,
    /// Headers and bodies, still encoded, but for lines that were only broken to be short.
    pub text: String,
}

#[derive(Default)]
struct State {
    mails: Mutex<Vec<Mail>>,
    faults: Mutex<Vec<(Fault, u32)>>,
    connections: Mutex<u32>,
    healed: Notify,
    cuts: watch::Sender<u32>,
    /// `None`: it offers no TLS, and takes mails from everybody.
    door: Option<Door>,
}

/// What a client has to pass: STARTTLS, and then this user's password.
struct Door {
    tls: TlsAcceptor,
    password: Mutex<String>,
}

/// The user of a server with a door.
const USER: &str = "shop";

/// A connection with or without TLS.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

impl Sink {
    /// Listens on a free port.
    pub async fn start() -> anyhow::Result<Sink> {
        Self::start_with(None).await
    }

    /// As [`Sink::start`], but it takes mails only after STARTTLS, with this certificate, and from who has the password.
    pub async fn start_locked(certificate: &Certificate, password: &str) -> anyhow::Result<Sink> {
        let door = Door {
            tls: acceptor(certificate)?,
            password: Mutex::new(password.to_owned()),
        };
        Self::start_with(Some(door)).await
    }

    async fn start_with(door: Option<Door>) -> anyhow::Result<Sink> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port for SMTP")?;
        let address = listener.local_addr()?.to_string();
        let state = Arc::new(State {
            door,
            ..State::default()
        });
        let accepting = Some(tokio::spawn(accept(listener, state.clone())));
        Ok(Sink {
            address,
            state,
            accepting,
        })
    }

    /// As the product's setting has it.
    pub fn url(&self) -> String {
        match &self.state.door {
            Some(door) => {
                let (password, port) = (lock(&door.password).clone(), self.address.rsplit(':').next());
                format!(
                    "smtp://{USER}:{password}@localhost:{}?tls=required",
                    port.unwrap_or_default()
                )
            }
            None => format!("smtp://{}", self.address),
        }
    }

    /// From now on, clients have to have this password.
    pub fn demand(&self, password: &str) {
        if let Some(door) = &self.state.door {
            password.clone_into(&mut lock(&door.password));
        }
    }

    /// Plans this fault for the next `times` mails.
    pub fn fail(&self, fault: Fault, times: u32) {
        lock(&self.state.faults).push((fault, times));
    }

    /// Mails that come from now on meet no fault, and those that wait for their answer get it.
    pub fn heal(&self) {
        lock(&self.state.faults).clear();
        self.state.healed.notify_waiters();
    }

    /// Acts as if the server were gone: refuses new connections and cuts the open ones.
    pub async fn go_away(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            // Until it has ended, the port is open.
            drop(accepting.await);
        }
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Lets clients in again, by the same port.
    pub async fn come_back(&mut self) -> anyhow::Result<()> {
        let listener = TcpListener::bind(&self.address).await?;
        self.accepting = Some(tokio::spawn(accept(listener, self.state.clone())));
        Ok(())
    }

    /// Every mail that was accepted, also those whose answer was lost.
    pub fn mails(&self) -> Vec<Mail> {
        lock(&self.state.mails).clone()
    }

    /// Connections so far.
    pub fn connections(&self) -> u32 {
        *lock(&self.state.connections)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Mail {
    /// The value of its first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.text.lines().take_while(|line| !line.is_empty());
        let mut values = lines.filter_map(|line| line.split_once(": "));
        values.find_map(|(other, value)| other.eq_ignore_ascii_case(name).then_some(value))
    }
}

impl State {
    /// The fault of the next mail.
    fn fault(&self) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let (fault, times) = faults.first_mut()?;
        let fault = *fault;
        *times -= 1;
        if *times == 0 {
            faults.remove(0);
        }
        Some(fault)
    }
}

impl Door {
    /// Talks to a client until it has the password, by TLS; nothing if it leaves before.
    async fn admit(&self, mut client: BufReader<Box<dyn Wire>>) -> anyhow::Result<Option<BufReader<Box<dyn Wire>>>> {
        let (mut line, mut by_tls) = (String::new(), false);
        loop {
            line.clear();
            if client.read_line(&mut line).await? == 0 {
                return Ok(None);
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["STARTTLS"] if !by_tls => {
                    client.write_all(b"220 go on\r\n").await?;
                    let stream: Box<dyn Wire> = Box::new(self.tls.accept(client.into_inner()).await?);
                    (client, by_tls) = (BufReader::new(stream), true);
                }
                ["EHLO", ..] if by_tls => {
                    client
                        .write_all(b"250-sink\r\n250-8BITMIME\r\n250 AUTH PLAIN\r\n")
                        .await?
                }
                ["EHLO", ..] => client.write_all(b"250-sink\r\n250 STARTTLS\r\n").await?,
                ["AUTH", "PLAIN", login] if by_tls && self.is_right(login) => {
                    client.write_all(b"235 welcome\r\n").await?;
                    return Ok(Some(client));
                }
                ["AUTH", ..] => client.write_all(b"535 5.7.8 no\r\n").await?,
                ["QUIT"] => {
                    client.write_all(b"221 bye\r\n").await?;
                    return Ok(None);
                }
                _ => client.write_all(b"530 5.7.0 who are you?\r\n").await?,
            }
        }
    }

    /// Whether this is user and password (RFC 4616) in base64.
    fn is_right(&self, login: &str) -> bool {
        let expected = base64url(format!("\0{USER}\0{}", lock(&self.password)).as_bytes());
        login.trim_end_matches('=').replace('+', "-").replace('/', "_") == expected
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            *lock(&state.connections) += 1;
            let mut cuts = state.cuts.subscribe();
            let talked = tokio::select! {
                _ = cuts.changed() => Ok(()),
                talked = talk(client, &state) => talked,
            };
            if let Err(error) = talked {
                tracing::debug!("a client of the mail server went: {error:#}");
            }
        });
    }
}

async fn talk(client: TcpStream, state: &State) -> anyhow::Result<()> {
    let client: Box<dyn Wire> = Box::new(client);
    let mut client = BufReader::new(client);
    client.write_all(b"220 sink\r\n").await?;
    if let Some(door) = &state.door {
        client = match door.admit(client).await? {
            Some(client) => client,
            None => return Ok(()),
        };
    }
    let (mut fault, mut to, mut line) = (None, String::new(), String::new());
    loop {
        line.clear();
        if client.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let command = line.get(..4).unwrap_or_default().to_uppercase();
        if command == "MAIL" {
            fault = state.fault();
        }
        match (command.as_str(), fault) {
            ("MAIL", Some(Fault::Silence)) | ("QUIT", Some(Fault::NoGoodbye)) => return std::future::pending().await,
            (command, Some(Fault::Answer(wrong, code))) if command == wrong => {
                // As servers do, it repeats the address.
                let answer = format!("{code} {}\r\n", line.trim());
                client.write_all(answer.as_bytes()).await?;
                continue;
            }
            (command, Some(Fault::Refusal(wrong, code, status))) if command == wrong => {
                client.write_all(format!("{code} {status} no\r\n").as_bytes()).await?;
            }
            ("EHLO", _) => client.write_all(b"250-sink\r\n250 8BITMIME\r\n").await?,
            ("RCPT", _) => {
                to = line.trim().to_owned();
                client.write_all(b"250 fine\r\n").await?;
            }
            ("DATA", _) => {
                client.write_all(b"354 go on\r\n").await?;
                let text = content(&mut client).await?;
                if let Some(Fault::Answer(".", code)) = fault {
                    client.write_all(format!("{code} no\r\n").as_bytes()).await?;
                    continue;
                }
                lock(&state.mails).push(Mail { to: to.clone(), text });
                if fault == Some(Fault::AnswerLost) {
                    return Ok(());
                }
                if fault == Some(Fault::Slow) {
                    state.healed.notified().await;
                }
                client.write_all(b"250 taken\r\n").await?;
            }
            ("QUIT", _) => return Ok(client.write_all(b"221 bye\r\n").await?),
            _ => client.write_all(b"250 fine\r\n").await?,
        }
    }
}

/// A mail up to its end, with the line ends of this machine.
async fn content(client: &mut BufReader<Box<dyn Wire>>) -> anyhow::Result<String> {
    let (mut text, mut line) = (String::new(), String::new());
    loop {
        line.clear();
        client.read_line(&mut line).await?;
        match line.as_str() {
            ".\r\n" | "" => return Ok(text.replace("=\n", "")),
            _ => text.push_str(&line.replace("\r\n", "\n")),
        }
    }
}
