//! Who may call what, at the nginx that docs/security.md shows: the proof reads the example out of the page and starts it as it stands
//! there, but for ports, files and the token.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::{Context, ensure};
use bytes::Bytes;
use holdfast::objects::PRIVATE;
use holdfast_tests::kit::certs::{Authority, Certificate};
use holdfast_tests::kit::doors::TOKEN;
use holdfast_tests::kit::http::serve;
use holdfast_tests::kit::{Kit, Nginx, Server, checkout};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::{Request, Response};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use url::Url;

use crate::support::clean;
use crate::workers::Workers;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![the_proxy_that_the_page_shows_lets_in_whom_its_table_names_and_nobody_else];

/// A buyer, as the engine names the user.
const BUYER: &str = "locked-front-ann";

fn the_proxy_that_the_page_shows_lets_in_whom_its_table_names_and_nobody_else(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let workers = Workers::start(kit).await?;
        let front = Front::start(kit).await?;
        let (table, session) = (table(&front.page)?, session_of(BUYER));
        for (number, (name, audience)) in table.iter().enumerate() {
            let (service, handler) = name.split_once('/').context("no service")?;
            let handler = handler.rsplit('/').next().unwrap_or_default();
            let (path, me) = (
                format!("/{service}/locked-front-{number}/{handler}"),
                format!("/me/{handler}"),
            );
            let buyers = format!("User/{{user}}/{handler}");
            let is_buyers = table
                .iter()
                .any(|(name, audience)| *name == buyers && audience == "buyer");
            let (session, nobody) = (session.as_str(), "");
            for (door, path, caller, may) in [
                (&front.shop, &me, session, is_buyers),
                (&front.shop, &me, nobody, false),
                (&front.shop, &path, session, false),
                (&front.office, &path, nobody, audience == "back office"),
                (&front.office_without, &path, session, false),
                (&front.office_stranger, &path, session, false),
            ] {
                let answer = door.post(path, caller).await?;
                ensure!(
                    answer.invoked == may && (may || answer.status >= 400),
                    "{name} is for the {audience}; at port {} as {caller:?}: {answer:?}",
                    door.port
                );
            }
        }
        nobody_gets_round_it(&front).await?;
        is_who_the_session_says(kit, &front).await?;
        clean(kit).await?;
        front.nginx.stop().await?;
        workers.stop().await
    })
}

/// By paths that mean something else than they say, to handlers that are nobody's.
async fn nobody_gets_round_it(front: &Front) -> anyhow::Result<()> {
    let private = PRIVATE.map(|(service, handler)| format!("/{service}/locked-front/{handler}"));
    let handlers = PRIVATE.map(|(_, handler)| format!("/me/{handler}"));
    let others = [
        "/User/bob/get",
        "/me/../User/bob/get",
        "/me/get/../../User/bob/get",
        "/me/get/..%2f..%2fUser%2fbob%2fget",
        "/me/get/send",
        "/me//get%2f",
        "/restate/call/User/bob/get",
        "/restate/send/User/bob/get",
        "/restate/call/Ticket/a/get",
        "/Ticket/../User/bob/get",
        "/Ticket/..%2fUser%2fbob%2fget",
        "/User/bob/get/..%2f..%2f..%2fTicket/a",
        "/restate/call/User/bob/get/..%2f..%2f..%2f..%2f..%2fTicket/a",
        "/oauth2/auth",
        "/restate/health",
        "/",
    ];
    let paths = private.into_iter().chain(handlers).chain(others.map(String::from));
    for path in paths {
        for (door, session) in [(&front.shop, session_of(BUYER)), (&front.office, String::new())] {
            let answer = door.post(&path, &session).await?;
            ensure!(!answer.invoked && answer.status >= 400, "{path}: {answer:?}");
        }
    }
    Ok(())
}

/// Whatever the caller adds, and whatever a subject may look like.
async fn is_who_the_session_says(kit: &Kit, front: &Front) -> anyhow::Result<()> {
    let there = async |user: &str| {
        let seen = kit.stack.restate.look(&format!("User/{user}/get")).await?;
        anyhow::Ok(seen.status().is_success())
    };
    let headers = format!("{}x-auth-request-user: locked-front-bob\r\n", session_of(BUYER));
    let body = r#"{"email": "ann@example.org"}"#;
    let answer = front
        .shop
        .post_with("/me/register?user=locked-front-bob", &headers, body)
        .await?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(
        there(BUYER).await? && !there("locked-front-bob").await?,
        "somebody else was registered"
    );
    for odd in [
        "locked-front-bob/get",
        "../User/locked-front-bob",
        "locked-front-bob%2f",
        "locked-front-bob?",
        "a b",
    ] {
        let answer = front.shop.post_with("/me/register", &session_of(odd), body).await?;
        ensure!(!answer.invoked && answer.status >= 400, "{odd}: {answer:?}");
    }
    ensure!(!there("locked-front-bob").await?, "a subject meant another user");
    Ok(())
}

/// The handlers of the page's table, as `Service/{key}/handler`, each with its audience.
fn table(page: &str) -> anyhow::Result<Vec<(String, String)>> {
    let (_, table) = page
        .split_once("| handler | audience |")
        .context("no table of handlers")?;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut handlers = Vec::new();
    for row in rows {
        let (names, audience) = row.trim_matches(['|', ' ']).rsplit_once(" | ").context("no audience")?;
        let names = names.split('`').skip(1).step_by(2);
        handlers.extend(names.map(|name| (name.to_owned(), audience.to_owned())));
    }
    ensure!(handlers.len() > 20, "{handlers:?}");
    Ok(handlers)
}

/// The proxy of the page, before the engine's locked ingress.
struct Front {
    nginx: Server<Nginx>,
    page: String,
    shop: Door,
    office: Door,
    /// Without a certificate, and with one of an authority that is not the office's.
    office_without: Door,
    office_stranger: Door,
    sessions: JoinHandle<()>,
}

impl Front {
    async fn start(kit: &Kit) -> anyhow::Result<Front> {
        let stack = &kit.stack;
        let folder = stack.folder().join("front");
        for name in ["shop", "office"] {
            stack.authority.sign(name, &["localhost"])?.write(&folder, name)?;
        }
        let clerks = Authority::new("The back office")?;
        std::fs::write(folder.join("office-clients.crt"), &clerks.certificate)?;
        let (shop, office) = (stack.ports.get("front-shop")?, stack.ports.get("front-office")?);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let sessions = listener.local_addr()?;
        let ingress = Url::parse(&stack.restate.ingress())?.port().context("no port")?;
        let page = std::fs::read_to_string(checkout().join("docs/security.md"))?;
        let text = [
            ("listen 443 ssl;", format!("listen 127.0.0.1:{shop} ssl;")),
            ("listen 8443 ssl;", format!("listen 127.0.0.1:{office} ssl;")),
            ("/etc/nginx", folder.display().to_string()),
            ("http://127.0.0.1:8080", format!("https://127.0.0.1:{ingress}")),
            ("http://127.0.0.1:4180", format!("http://{sessions}")),
            ("<the engine's token>", String::from(TOKEN)),
        ]
        .into_iter()
        .try_fold(example(&page)?, |text, (theirs, ours)| {
            ensure!(text.contains(theirs), "the example has no {theirs}");
            Ok(text.replace(theirs, &ours))
        })?;
        let nginx = Nginx::with(&folder, text, vec![shop, office])?;
        nginx.start().await?;
        let door = |port, client: Option<&Certificate>| Door::new(port, &stack.authority, client);
        let clerk = clerks.sign("clerk", &[])?;
        let stranger = Authority::new("A stranger")?.sign("clerk", &[])?;
        Ok(Front {
            nginx,
            page,
            shop: door(shop, None)?,
            office: door(office, Some(&clerk))?,
            office_without: door(office, None)?,
            office_stranger: door(office, Some(&stranger))?,
            sessions: tokio::spawn(serve(listener, whose)),
        })
    }
}

/// The header of a caller who has logged in as this subject.
fn session_of(subject: &str) -> String {
    format!("cookie: session={subject}\r\n")
}

impl Drop for Front {
    fn drop(&mut self) {
        self.sessions.abort();
    }
}

/// The block of the page that begins with spaces and asks who the buyer is.
fn example(page: &str) -> anyhow::Result<String> {
    let is_code = |line: &&str| line.is_empty() || line.starts_with("    ");
    let lines: Vec<&str> = page.lines().collect();
    let mut blocks = lines.chunk_by(|one, other| is_code(one) == is_code(other));
    let block = blocks.find(|block| block.iter().any(|line| line.trim_start().starts_with("auth_request ")));
    Ok(block.context("the page has no example for nginx")?.join("\n"))
}

/// In place of oauth2-proxy: says in a header whose session it is.
async fn whose(request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let cookie = request.headers().get("cookie").and_then(|cookie| cookie.to_str().ok());
    let answer = match cookie.and_then(|cookie| cookie.strip_prefix("session=")) {
        Some(subject) => Response::builder().status(202).header("x-auth-request-user", subject),
        None => Response::builder().status(401),
    };
    Ok(answer.body(Empty::new()).unwrap_or_default())
}

/// A way in, for one caller.
struct Door {
    port: u16,
    tls: TlsConnector,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    /// A handler was called, whatever it said.
    invoked: bool,
    text: String,
}

impl Door {
    fn new(port: u16, trusted: &Authority, client: Option<&Certificate>) -> anyhow::Result<Door> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trusted.certificate.as_bytes())?)?;
        let config = ClientConfig::builder().with_root_certificates(roots);
        let config = match client {
            Some(client) => config.with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(client.certificate.as_bytes())?],
                PrivateKeyDer::from_pem_slice(client.key.as_bytes())?,
            )?,
            None => config.with_no_client_auth(),
        };
        Ok(Door {
            port,
            tls: TlsConnector::from(Arc::new(config)),
        })
    }

    /// With a body, and without one where the handler takes none.
    async fn post(&self, path: &str, headers: &str) -> anyhow::Result<Answer> {
        let answer = self.post_with(path, headers, "{}").await?;
        match answer.text.contains("Expected body and content-type to be empty") {
            true => self.post_with(path, headers, "").await,
            false => Ok(answer),
        }
    }

    /// The path goes out as it is: a client of HTTP would make `/a/../b` another one.
    async fn post_with(&self, path: &str, headers: &str, body: &str) -> anyhow::Result<Answer> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let mut stream = self.tls.connect(ServerName::try_from("localhost")?, stream).await?;
        let content = match body.len() {
            0 => String::new(),
            length => format!("content-type: application/json\r\ncontent-length: {length}\r\n"),
        };
        let request =
            format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}{content}\r\n{body}");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        // nginx may hang up without a farewell.
        stream.read_to_end(&mut answer).await.ok();
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).context("no answer")?;
        Ok(Answer {
            status: status.parse().with_context(|| text.clone())?,
            invoked: text.contains("\r\nx-restate-id: "),
            text,
        })
    }
}
