//! Who may speak to what: handlers that only the engine may call, calls to `serve` that the engine has not signed, an engine behind
//! TLS and a token, and HTTP ports under attack.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use futures::{StreamExt, TryStreamExt, stream};
use holdfast::objects::PRIVATE;
use holdfast_schemas::{UserOutcome, topics};
use holdfast_tests::kit::certs::Authority;
use holdfast_tests::kit::identity::Identity;
use holdfast_tests::kit::nginx::Site;
use holdfast_tests::kit::process::lock;
use holdfast_tests::kit::smtp::Sink;
use holdfast_tests::kit::tls_front::TlsFront;
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Holdfast, Kit, Nginx, Server, checkout, until};
use holdfast_tests::load::now;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use restate_sdk::prelude::*;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::support::{DEADLINE, clean, event, listed, pay, send, told, told_of, verdicts};
use crate::users::{added, call, has_credits, registered};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    apply_takes_what_the_engine_read_from_kafka_and_nothing_else,
    a_call_by_the_ingress_can_be_told_from_a_delivery,
    every_handler_that_the_ingress_serves_stands_in_the_table,
    credits_may_be_added_while_the_user_is_at_work,
    calls_that_the_engine_has_not_signed_are_refused_before_a_handler_runs,
    an_engine_behind_tls_and_a_token_is_reached_and_each_wrong_wire_is_named,
    the_engine_calls_serve_over_tls,
    a_wire_on_which_the_engine_cannot_call_serve_is_named,
    provider_and_mail_server_are_reached_by_tls_and_each_wrong_wire_is_named,
    a_port_answers_others_whatever_idle_slow_or_endless_callers_do,
    a_renewed_certificate_is_shown_without_a_restart,
];

/// Headers as a delivery from Kafka has them.
const FORGED: [(&str, &str); 6] = [
    ("kafka.topic", "reservations.admitted"),
    ("kafka.partition", "0"),
    ("kafka.offset", "4711"),
    ("kafka.timestamp", "1700000000000"),
    ("kafka.key", "bG9ja2Vk"),
    ("restate.subscription.id", "sub_14eZ4GBmCzvtKMZ"),
];

fn apply_takes_what_the_engine_read_from_kafka_and_nothing_else(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "locked").start().await?;
        let (ticket, user) = ("locked-apply", "locked-apply-user");
        let forged = [
            ("Ticket", ticket, listed("locked/forged", ticket).to_string()),
            (
                "User",
                user,
                event(
                    "locked/forged-user",
                    user,
                    "user.registered",
                    json!({ "email": "eve@example.org" }),
                )
                .to_string(),
            ),
            // Believed, it would become a dead letter of a record that does not exist.
            ("Ticket", ticket, String::from("garbage")),
        ];
        let mut let_in = Vec::new();
        for (object, key, body) in &forged {
            for headers in [&[][..], &FORGED[..]] {
                for path in [
                    format!("{object}/{key}/apply"),
                    format!("{object}/{key}/apply/send"),
                    format!("restate/call/{object}/{key}/apply"),
                    format!("restate/send/{object}/{key}/apply"),
                ] {
                    let status = post(kit, &path, headers, body).await?;
                    if (200..300).contains(&status) {
                        let_in.push(format!("{path}: {status}"));
                    }
                }
            }
        }
        ensure!(let_in.is_empty(), "the ingress lets callers in: {let_in:?}");
        for path in [format!("Ticket/{ticket}/get"), format!("User/{user}/get")] {
            let status = post(kit, &path, &[], "").await?;
            ensure!(status == 404, "{path}: {status}");
        }
        // A request with such headers is a request like any other.
        let listing = json!({ "show": "locked", "price": { "amount": 100, "currency": "EUR" } }).to_string();
        let status = post(kit, &format!("Ticket/{ticket}/list"), &FORGED, &listing).await?;
        ensure!(status == 200, "{status}");
        let bad = post(kit, &format!("Ticket/{ticket}/reserve"), &FORGED, "garbage").await?;
        ensure!(bad == 400, "{bad}");
        // Deliveries from Kafka still arrive.
        send(kit, &[event("locked/withdrawn", ticket, "ticket.withdrawn", json!({}))]).await?;
        let outcomes = told(kit, ticket, 2).await?;
        ensure!(verdicts(&outcomes) == ["listed", "withdrawn"], "{outcomes:?}");
        let letters = kit.stack.kafka.read(topics::DEAD_LETTERS).await?;
        let forged = letters
            .iter()
            .filter(|letter| letter.value.as_deref() == Some(b"garbage"));
        ensure!(forged.count() == 0, "a forged dead letter");

        let exposed = exposed(kit).await?;
        ensure!(
            ["Ticket/apply", "User/apply"]
                .iter()
                .all(|name| !exposed.contains(&(*name).to_owned())),
            "{exposed:?}"
        );
        clean(kit).await?;
        worker.stop().await
    })
}

async fn post(kit: &Kit, path: &str, headers: &[(&str, &str)], body: &str) -> anyhow::Result<u16> {
    let mut request = reqwest::Client::new().post(format!("{}/{path}", kit.stack.restate.ingress()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if !body.is_empty() {
        request = request.header("content-type", "application/json").body(body.to_owned());
    }
    Ok(request.send().await?.status().as_u16())
}

/// The handlers that the engine's ingress lets callers reach, as `Service/handler`.
async fn exposed(kit: &Kit) -> anyhow::Result<Vec<String>> {
    handlers(kit, |handler| handler["public"] != false).await
}

/// The handlers of these that the engine knows.
async fn handlers(kit: &Kit, which: impl Fn(&Value) -> bool) -> anyhow::Result<Vec<String>> {
    let url = format!("{}/services", kit.stack.restate.admin());
    let found: Value = reqwest::get(url).await?.error_for_status()?.json().await?;
    let services = found["services"].as_array().context("no services")?;
    let mut exposed = Vec::new();
    for service in services {
        let handlers = service["handlers"].as_array().context("no handlers")?;
        let chosen = handlers.iter().filter(|handler| which(handler));
        exposed.extend(chosen.map(|handler| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            format!("{}/{}", text(&service["name"]), text(&handler["name"]))
        }));
    }
    Ok(exposed)
}

/// Remembers the headers of each call.
struct Headers(Arc<Mutex<Vec<Vec<String>>>>);

#[restate_sdk::object(name = "Headers", journal_retention = "0s")]
impl Headers {
    #[handler]
    async fn take(&self, ctx: ObjectContext<'_>, _body: Bytes) -> HandlerResult<()> {
        let names = ctx.headers().keys().map(ToString::to_string).collect();
        lock(&self.0).push(names);
        Ok(())
    }
}

/// The handler that takes deliveries relies on it.
fn a_call_by_the_ingress_can_be_told_from_a_delivery(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let listener = TcpListener::bind(("127.0.0.1", kit.stack.ports.get("headers")?)).await?;
        let address = listener.local_addr()?;
        let server = HttpServer::new(Endpoint::builder().bind(Headers(calls.clone())).build());
        let serving = tokio::spawn(server.serve_with_cancel(listener, std::future::pending::<()>()));
        let (admin, http) = (kit.stack.restate.admin(), reqwest::Client::new());
        let create = async |path: &str, body: Value| {
            let made = http.post(format!("{admin}/{path}")).json(&body).send().await?;
            anyhow::Ok(made.error_for_status()?.json::<Value>().await?)
        };
        let deployment = create("deployments", json!({ "uri": format!("http://{address}") })).await?;

        for path in [
            "Headers/a/take",
            "Headers/a/take/send",
            "restate/call/Headers/a/take",
            "restate/send/Headers/a/take",
        ] {
            let headers = [&FORGED[..], &[("x-restate-ingress-path", "")]].concat();
            let status = post(kit, path, &headers, "{}").await?;
            ensure!((200..300).contains(&status), "{path}: {status}");
        }
        let seen = until("every call", DEADLINE, async || {
            let seen = lock(&calls).clone();
            ensure!(seen.len() == 4, "{seen:?}");
            anyhow::Ok(seen)
        })
        .await?;
        ensure!(
            seen.iter()
                .all(|names| names.iter().any(|name| name == "x-restate-ingress-path")),
            "{seen:?}"
        );

        kit.stack.kafka.create_topic("locked.headers", 1, &[]).await?;
        let cluster = json!({ "name": "locked", "properties": { "bootstrap.servers": kit.stack.kafka.bootstrap() } });
        create("kafka-clusters", cluster).await?;
        let subscription = json!({
            "source": "kafka://locked/locked.headers",
            "sink": "service://Headers/take",
            "options": { "auto.offset.reset": "earliest", "session.timeout.ms": "6000" },
        });
        let subscription = create("subscriptions", subscription).await?;
        kit.stack
            .kafka
            .send(
                "locked.headers",
                &[crate::support::structured(&listed("locked/headers", "a"))],
            )
            .await?;
        let delivered = until("the delivery", DEADLINE, async || {
            let seen = lock(&calls).clone();
            seen.get(4).cloned().with_context(|| format!("{seen:?}"))
        })
        .await?;
        let has = |wanted: &str| delivered.iter().any(|name| name == wanted);
        ensure!(
            !has("x-restate-ingress-path") && has("restate.subscription.id") && has("kafka.offset"),
            "{delivered:?}"
        );

        for path in [
            format!("subscriptions/{}", subscription["id"].as_str().context("no id")?),
            String::from("kafka-clusters/locked?force=true"),
            format!("deployments/{}?force=true", deployment["id"].as_str().context("no id")?),
        ] {
            http.delete(format!("{admin}/{path}"))
                .send()
                .await?
                .error_for_status()?;
        }
        serving.abort();
        Ok(())
    })
}

fn every_handler_that_the_ingress_serves_stands_in_the_table(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "locked").env("HOLDFAST_EXAMPLES", "true");
        let worker = worker.start().await?;
        let page = std::fs::read_to_string(checkout().join("docs/security.md"))?;
        // `User/{user}/register` is the handler User/register.
        let named: Vec<String> = (page.split('`').skip(1).step_by(2))
            .map(|path| {
                path.split('/')
                    .filter(|part| !part.starts_with('{'))
                    .collect::<Vec<_>>()
                    .join("/")
            })
            .collect();
        let private: BTreeSet<_> = handlers(kit, |handler| handler["public"] == false)
            .await?
            .into_iter()
            .collect();
        let listed = PRIVATE.map(|(service, handler)| format!("{service}/{handler}"));
        ensure!(private == BTreeSet::from(listed), "{private:?}");
        let missing: Vec<_> = exposed(kit)
            .await?
            .into_iter()
            .filter(|name| !named.contains(name))
            .collect();
        ensure!(missing.is_empty(), "not in docs/security.md: {missing:?}");
        worker.stop().await
    })
}

fn credits_may_be_added_while_the_user_is_at_work(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "locked-credits";
    const TIMES: usize = 8;
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "locked").start().await?;
        pay(kit, &[registered("locked/credits", USER)]).await?;
        told_of::<UserOutcome>(kit, USER, 1).await?;
        let by_kafka: Vec<_> = (0..TIMES)
            .map(|number| added(&format!("locked/credits/{number}"), USER, 100))
            .collect();
        let gift = json!({ "amount": 7 });
        let gifts = join_all((0..TIMES).map(|_| call(kit, &[], "Account", USER, "addCredits", &gift)));
        let changes = join_all((0..TIMES).map(async |number| {
            let body = json!({ "to": { "name": format!("Ann {number}") } });
            call(kit, &[], "User", USER, "changeProfile", &body).await
        }));
        let (gifts, changes, sent) = tokio::join!(gifts, changes, pay(kit, &by_kafka));
        sent?;
        for answer in gifts.into_iter().chain(changes) {
            let (status, said) = answer?;
            ensure!(status == 200, "{status}: {said}");
        }
        let outcomes = told_of::<UserOutcome>(kit, USER, 1 + 3 * TIMES).await?;
        ensure!(
            outcomes
                .iter()
                .map(|outcome| outcome.sequence)
                .eq(1..=1 + 3 * TIMES as i64),
            "{outcomes:?}"
        );
        has_credits(kit, USER, 107 * TIMES as i64).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

fn calls_that_the_engine_has_not_signed_are_refused_before_a_handler_runs(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let engine = kit.stack.restate.signer()?;
        let [stranger, next] = ["stranger", "next"].map(|name| Identity::new(&kit.stack.certificates(), name));
        let (stranger, next) = (stranger?, next?);
        // While one key replaces another, both are taken.
        let keys = format!("{},{}", next.public_key(), engine.public_key());
        let worker = kit.stack.holdfast("run", "locked").env("HOLDFAST_IDENTITY_KEY", &keys);
        let worker = worker.start().await?;
        let ticket = "locked-signed";
        send(kit, &[listed("locked/signed", ticket)]).await?;
        told(kit, ticket, 1).await?;
        let status = post(kit, &format!("Ticket/{ticket}/get"), &[], "").await?;
        ensure!(status == 200, "{status}");

        let now = now().unix_timestamp();
        let invoked = handlers(kit, |_| true).await?;
        ensure!(invoked.len() > 20, "{invoked:?}");
        let invoked = invoked.iter().map(|handler| format!("/invoke/{handler}"));
        let others = ["/discover", "/health", "/", "/nowhere"].map(String::from);
        for path in invoked.chain(others) {
            let path = path.as_str();
            for (what, scheme, signature) in [
                ("no signature", None, None),
                ("said to be unsigned", Some("unsigned"), None),
                ("a scheme alone", Some("v1"), None),
                ("garbage", Some("v1"), Some(String::from("garbage"))),
                ("a stranger's", Some("v1"), Some(stranger.sign(path, now)?)),
                (
                    "for another path",
                    Some("v1"),
                    Some(engine.sign("/invoke/Nobody/get", now)?),
                ),
                ("of yesterday", Some("v1"), Some(engine.sign(path, now - 86_400)?)),
            ] {
                let status = calls(kit, path, scheme, signature).await?;
                ensure!(status == 401, "{path}, {what}: {status}");
            }
        }
        for signer in [engine, &next] {
            let status = calls(kit, "/discover", Some("v1"), Some(signer.sign("/discover", now)?)).await?;
            ensure!(status == 200, "{status}");
        }
        clean(kit).await?;
        worker.stop().await
    })
}

/// What `serve` answers to a call by HTTP/2 that is signed like this.
pub(crate) async fn calls(
    kit: &Kit,
    path: &str,
    scheme: Option<&str>,
    signature: Option<String>,
) -> anyhow::Result<u16> {
    let address = format!("127.0.0.1:{}", kit.stack.ports.get("serve")?);
    let stream = TokioIo::new(TcpStream::connect(&address).await?);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
    let connection = tokio::spawn(connection);
    let mut request = hyper::Request::post(format!("http://{address}{path}"))
        .header("accept", "application/vnd.restate.endpointmanifest.v4+json")
        .header("content-type", "application/vnd.restate.invocation.v6");
    for (name, value) in [
        ("x-restate-signature-scheme", scheme),
        ("x-restate-jwt-v1", signature.as_deref()),
    ] {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    let answer = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    connection.abort();
    Ok(answer.status().as_u16())
}

const TOKEN: &str = "sesame-of-the-engine";

/// nginx before the engine: its addresses with TLS, and some that nobody should trust.
struct Front {
    nginx: Server<Nginx>,
    admin: String,
    ingress: String,
    expired: String,
    other: String,
    strange: String,
    /// The ingress, with another token.
    other_token: String,
}

impl Front {
    async fn start(kit: &Kit) -> anyhow::Result<Front> {
        let (stack, names) = (&kit.stack, ["localhost", "127.0.0.1"]);
        let folder = stack.certificates();
        let good = stack.authority.sign("engine", &names)?.write(&folder, "engine")?;
        let expired = stack.authority.sign_expired("engine", &names)?;
        let other = stack.authority.sign("other", &["other.example"])?;
        let strange = Authority::new("A stranger")?.sign("strange", &names)?;
        let (admin, ingress) = (stack.restate.admin(), stack.restate.ingress());
        let sites = [
            ("nginx-admin", good.clone(), admin.clone(), TOKEN),
            ("nginx-ingress", good.clone(), ingress.clone(), TOKEN),
            (
                "nginx-expired",
                expired.write(&folder, "expired")?,
                admin.clone(),
                TOKEN,
            ),
            ("nginx-other", other.write(&folder, "other")?, admin.clone(), TOKEN),
            ("nginx-strange", strange.write(&folder, "strange")?, admin, TOKEN),
            ("nginx-other-token", good, ingress, "another"),
        ];
        let sites = sites.map(|(name, certificate, upstream, token)| {
            let port = stack.ports.get(name)?;
            anyhow::Ok(Site {
                port,
                certificate,
                upstream,
                token: Some(String::from(token)),
            })
        });
        let sites = sites.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let [admin, ingress, expired, other, strange, other_token] =
            [0, 1, 2, 3, 4, 5].map(|number: usize| format!("https://localhost:{}", sites[number].port));
        let nginx = Nginx::server(stack.folder(), &sites)?;
        nginx.start().await?;
        Ok(Front {
            nginx,
            admin,
            ingress,
            expired,
            other,
            strange,
            other_token,
        })
    }
}

/// How the engine is asked.
#[derive(Clone, Copy)]
struct Asked<'a> {
    admin: &'a str,
    ingress: &'a str,
    token: Option<&'a str>,
    trusted: &'a str,
}

impl Asked<'_> {
    fn by<'k>(&self, kit: &'k Kit, subcommand: &str) -> Launch<'k> {
        let launch = kit.stack.holdfast(subcommand, "locked");
        let launch = launch
            .env("SSL_CERT_FILE", self.trusted)
            .env("HOLDFAST_RESTATE_ADMIN", self.admin)
            .env("HOLDFAST_RESTATE_INGRESS", self.ingress);
        match self.token {
            Some(token) => launch.env("HOLDFAST_RESTATE_TOKEN", token),
            None => launch,
        }
    }
}

fn an_engine_behind_tls_and_a_token_is_reached_and_each_wrong_wire_is_named(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let front = Front::start(kit).await?;
        let trusted = kit.stack.authority_file().display().to_string();
        let right = Asked {
            admin: &front.admin,
            ingress: &front.ingress,
            token: Some(TOKEN),
            trusted: &trusted,
        };
        let worker = right.by(kit, "run").start().await?;
        for certificate in ["first", "renewed"] {
            let (id, ticket) = (format!("locked/tls/{certificate}"), format!("locked-tls-{certificate}"));
            let hold = json!({ "user": "ann", "hold_for": 1 });
            let hold = event(&format!("{id}/hold"), &ticket, "reservation.requested", hold);
            send(kit, &[listed(&id, &ticket), hold]).await?;
            let outcomes = told(kit, &ticket, 3).await?;
            ensure!(verdicts(&outcomes) == ["listed", "held", "expired"], "{outcomes:?}");
            until("the gate's question is answered", DEADLINE, async || {
                let answers = worker.metric("holdfast_engine_answers").await?;
                ensure!(answers == Some(1.0), "{answers:?}");
                anyhow::Ok(())
            })
            .await?;
            let renewed = kit.stack.authority.sign("engine", &["localhost", "127.0.0.1"])?;
            renewed.write(&kit.stack.certificates(), "engine")?;
            front.nginx.restart().await?;
        }
        are_named(kit, &front, right).await?;
        clean(kit).await?;
        worker.stop().await?;
        front.nginx.stop().await
    })
}

/// Each wrong wire to the admin API or the ingress, one at a time, ends `register` with words that name it.
async fn are_named(kit: &Kit, front: &Front, right: Asked<'_>) -> anyhow::Result<()> {
    const DEMANDS: &str = "give --restate-token";
    let strange = kit.stack.certificates().join("stranger.crt");
    std::fs::write(&strange, Authority::new("A stranger")?.certificate)?;
    let trusted = &strange.display().to_string();
    let no_tls = [kit.stack.restate.admin(), kit.stack.restate.ingress()].map(|url| url.replace("http:", "https:"));
    let plain = [&front.admin, &front.ingress].map(|url| url.replace("https:", "http:"));
    let admin = |admin| Asked { admin, ..right };
    let ingress = |ingress| Asked { ingress, ..right };
    let token = |token| Asked { token, ..right };
    let mut wrong = vec![
        (token(Some("wrong")), "admin API", &front.admin, DEMANDS),
        (token(None), "admin API", &front.admin, DEMANDS),
        (
            Asked { trusted, ..right },
            "admin API",
            &front.admin,
            "its certificate is not trusted here",
        ),
        (ingress(&front.other_token), "ingress", &front.other_token, DEMANDS),
    ];
    for (which, [no_tls, plain]) in [
        ("admin API", [&no_tls[0], &plain[0]]),
        ("ingress", [&no_tls[1], &plain[1]]),
    ] {
        for (url, names) in [
            (&front.strange, "its certificate is not trusted here"),
            (&front.expired, "its certificate is not valid at this time"),
            (&front.other, "its certificate is for another name"),
            (no_tls, "it does not speak TLS"),
            (plain, "it speaks TLS: give https://"),
        ] {
            let asked = if which == "ingress" { ingress(url) } else { admin(url) };
            wrong.push((asked, which, url, names));
        }
    }
    let looks = wrong.into_iter().map(async |(asked, which, address, names)| {
        let output = asked.by(kit, "register").output().await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1)
                && [names, which, address].iter().all(|word| said.contains(word))
                && !said.contains(TOKEN),
            "{which} at {address}, not {names:?}: {said}"
        );
        anyhow::Ok(())
    });
    stream::iter(looks).buffer_unordered(4).try_collect::<Vec<()>>().await?;
    Ok(())
}

fn the_engine_calls_serve_over_tls(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let certificate = kit.stack.authority.sign("serve", &["127.0.0.1", "localhost"])?;
        let files = certificate.write(&kit.stack.certificates(), "serve")?;
        let engine = kit.stack.restate.signer()?;
        let address = format!("127.0.0.1:{}", kit.stack.ports.get("serve-tls")?);
        let url = format!("https://{address}/");
        let worker = kit
            .stack
            .holdfast("run", "locked")
            .env("HOLDFAST_SERVE_LISTEN", &address);
        let worker = worker
            .env("HOLDFAST_SERVE_URL", &url)
            .env("HOLDFAST_SERVE_CERTIFICATE", &files.certificate.display().to_string())
            .env("HOLDFAST_SERVE_PRIVATE_KEY", &files.key.display().to_string())
            .env("HOLDFAST_IDENTITY_KEY", &engine.public_key())
            .start()
            .await?;
        let ticket = "locked-serve-tls";
        send(kit, &[listed("locked/serve-tls", ticket)]).await?;
        told(kit, ticket, 1).await?;
        let (status, said) = call(kit, &[], "Ticket", ticket, "reserve", &json!({ "user": "ann" })).await?;
        ensure!(status == 200, "{status}: {said}");
        // A renewed certificate is shown to whoever comes from then on; the engine comes again.
        let before = peer_certificate(&kit.stack.authority, &address).await?;
        let renewed = kit.stack.authority.sign("serve", &["127.0.0.1", "localhost"])?;
        renewed.write(&kit.stack.certificates(), "serve")?;
        until("the renewed certificate is shown", DEADLINE, async || {
            let shown = peer_certificate(&kit.stack.authority, &address).await?;
            ensure!(shown != before, "the old one is shown");
            Ok(())
        })
        .await?;
        kit.stack.restate.restart().await?;
        let (status, said) = call(kit, &[], "Ticket", ticket, "reserve", &json!({ "user": "bob" })).await?;
        ensure!(status == 200, "{status}: {said}");
        // Without TLS nothing is answered there.
        let plain = reqwest::get(format!("http://{address}/health")).await;
        ensure!(plain.is_err(), "{plain:?}");
        clean(kit).await?;
        worker.stop().await?;
        forget(kit, &url).await
    })
}

fn a_wire_on_which_the_engine_cannot_call_serve_is_named(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "locked").start().await?;
        let (authority, names) = (&kit.stack.authority, ["localhost", "127.0.0.1"]);
        let serve = format!("127.0.0.1:{}", kit.stack.ports.get("serve")?);
        let (mut fronts, mut cells) = (Vec::new(), Vec::new());
        cells.push((format!("https://{serve}/"), "they do not speak TLS"));
        for (certificate, scheme, says) in [
            (
                authority.sign("front", &names)?,
                "http",
                "if it speaks TLS, give https://",
            ),
            (
                Authority::new("A stranger")?.sign("front", &names)?,
                "https",
                "it does not trust their certificate",
            ),
            (
                authority.sign_expired("front", &names)?,
                "https",
                "is not valid at this time",
            ),
            (
                authority.sign("front", &["other.example"])?,
                "https",
                "is for another name",
            ),
        ] {
            let front = TlsFront::start(&certificate, serve.clone()).await?;
            cells.push((format!("{scheme}://127.0.0.1:{}/", front.port), says));
            fronts.push(front);
        }
        let looks = cells.into_iter().map(|(url, says)| async move {
            let by = |subcommand: &str| kit.stack.holdfast(subcommand, "locked").env("HOLDFAST_SERVE_URL", &url);
            let doctor = by("doctor")
                .arg("--json")
                .arg("--role")
                .arg("register")
                .output()
                .await?;
            let report: Value = serde_json::from_slice(&doctor.stdout)?;
            let checks = report["checks"].as_array().context("no checks")?.iter();
            // Other proofs may have left topics or subscriptions that differ.
            let wrong = checks.filter(|check| check["diagnosis"] == "wrong");
            let wrong: Vec<_> = wrong.filter(|check| check.to_string().contains(&url)).collect();
            let text = |field: &str| wrong.first().and_then(|check| check[field].as_str());
            ensure!(
                wrong.len() == 1
                    && text("how").is_some_and(|how| how.contains(says))
                    && text("mend").is_some_and(|mend| mend.contains("HOLDFAST_SERVE_URL")),
                "{url}, {says}: {:#}",
                report["checks"]
            );
            // What hangs up may only be starting: that is waited for.
            if url.starts_with("https:") {
                let output = by("register").output().await?;
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                let is_waited_for = said.contains("trying again");
                ensure!(
                    output.status.code() == Some(1) && said.contains(says) && said.contains(&url) && !is_waited_for,
                    "{url}, {says}: {said}"
                );
            }
            anyhow::Ok(())
        });
        stream::iter(looks).buffer_unordered(4).try_collect::<Vec<()>>().await?;
        drop(fronts);
        worker.stop().await
    })
}

fn provider_and_mail_server_are_reached_by_tls_and_each_wrong_wire_is_named(kit: &Kit) -> anyhow::Result<()> {
    const UNTRUSTED: &str = "its certificate is not trusted here";
    const OUTDATED: &str = "its certificate is not valid at this time";
    const ANOTHERS: &str = "its certificate is for another name";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "locked").start().await?;
        let (authority, names) = (&kit.stack.authority, ["localhost"]);
        let host = |url: String| url.rsplit('/').next().unwrap_or_default().to_owned();
        let provider = host(kit.provider.url());
        let mail = host(kit.stack.maildev.as_ref().context("no mail server")?.smtp());
        let (mut fronts, mut sinks, mut cells) = (Vec::new(), Vec::new(), Vec::new());
        for (certificate, says) in [
            (authority.sign("front", &names)?, None),
            (Authority::new("A stranger")?.sign("front", &names)?, Some(UNTRUSTED)),
            (authority.sign_expired("front", &names)?, Some(OUTDATED)),
            (authority.sign("front", &["other.example"])?, Some(ANOTHERS)),
        ] {
            let front = TlsFront::start(&certificate, provider.clone()).await?;
            cells.push(("provider", format!("https://localhost:{}", front.port), says));
            fronts.push(front);
            let front = TlsFront::start(&certificate, mail.clone()).await?;
            cells.push(("mail", format!("smtps://localhost:{}", front.port), says));
            fronts.push(front);
            let sink = Sink::start_locked(&certificate, "mail-sesame").await?;
            cells.push(("mail", sink.url(), says));
            sinks.push(sink);
        }
        let (by_tls, by_starttls) = (cells[1].1.clone(), cells[2].1.clone());
        let no_tls = |url: &str| url.replace("s://", "://");
        cells.extend([
            // Without TLS at a port that wants it, and with TLS at one that has none.
            ("provider", no_tls(&cells[0].1), Some("give https://")),
            ("mail", no_tls(&by_tls), Some("smtps://")),
            ("mail", no_tls(&by_tls) + "?tls=required", Some("smtps://")),
            ("provider", format!("https://{provider}"), Some("it does not speak TLS")),
            ("mail", format!("smtps://{mail}"), Some("it does not speak TLS")),
            (
                "mail",
                format!("smtp://{mail}?tls=required"),
                Some("offers no STARTTLS"),
            ),
            ("mail", by_starttls.replace("mail-sesame", "guess"), Some("535 to AUTH")),
        ]);
        let looks = cells.into_iter().map(|(part, url, says)| async move {
            let found = look(kit, part, &url).await?;
            is_named(&found, part, &url, says).with_context(|| url)
        });
        stream::iter(looks).buffer_unordered(4).try_collect::<Vec<()>>().await?;
        drop((fronts, sinks));
        worker.stop().await
    })
}

/// What doctor finds wrong about provider and mail server if this part is at this address.
async fn look(kit: &Kit, part: &str, url: &str) -> anyhow::Result<Vec<Value>> {
    let setting = match part {
        "provider" => "HOLDFAST_PROVIDER_URL",
        _ => "HOLDFAST_SMTP_URL",
    };
    let doctor = kit.stack.holdfast("doctor", "locked").provider(&kit.provider);
    let doctor = doctor
        .env(setting, url)
        .env("HOLDFAST_SMTP_TIMEOUT", "2s")
        .env("SSL_CERT_FILE", &kit.stack.authority_file().display().to_string());
    let output = doctor.arg("--json").arg("--role").arg("serve").output().await?;
    let report: Value =
        serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let checks = report["checks"].as_array().context("no checks")?.iter();
    let wrong = checks
        .filter(|check| check["diagnosis"] == "wrong" && (check["part"] == "provider" || check["part"] == "mail"));
    Ok(wrong.cloned().collect())
}

/// Nothing is wrong, or this part alone: then its address, this, and the setting that mends it are said, and no password.
fn is_named(found: &[Value], part: &str, url: &str, says: Option<&str>) -> anyhow::Result<()> {
    let Some(says) = says else {
        ensure!(found.is_empty(), "{found:#?}");
        return Ok(());
    };
    let address = url
        .split(['/', '@', '?'])
        .rfind(|word| word.contains(':') && !word.contains("tls"));
    let address = address.context("no address")?;
    let [check] = found else {
        bail!("{says}: {found:#?}");
    };
    let text = |field: &str| check[field].as_str().unwrap_or_default();
    ensure!(
        check["part"] == part
            && text("what").contains(address)
            && text("how").contains(says)
            && text("mend").contains("HOLDFAST_")
            && !check.to_string().contains("sesame"),
        "{says}: {check:#}"
    );
    Ok(())
}

/// The certificate that a port for calls shows, in DER.
async fn peer_certificate(authority: &Authority, address: &str) -> anyhow::Result<Vec<u8>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes())?)?;
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(ServerName::try_from("localhost")?, stream).await?;
    let (_, session) = stream.get_ref();
    let shown = session.peer_certificates().and_then(|chain| chain.first());
    Ok(shown.context("no certificate")?.to_vec())
}

/// Has the engine forget the deployment at `url`, and what began there and nobody serves any more.
async fn forget(kit: &Kit, url: &str) -> anyhow::Result<()> {
    let restate = &kit.stack.restate;
    let deployments: Value = reqwest::get(format!("{}/deployments", restate.admin()))
        .await?
        .json()
        .await?;
    let ours = deployments["deployments"].as_array().into_iter().flatten();
    let ids: Vec<_> = ours
        .filter(|known| known["uri"] == url)
        .filter_map(|known| known["id"].as_str())
        .collect();
    for id in ids {
        let begun = format!(
            "select id from sys_invocation_status where pinned_deployment_id = '{id}' and status <> 'completed'"
        );
        until("nothing that began there is under way", DEADLINE, async || {
            let begun = restate.sql(&begun).await?;
            for invocation in &begun {
                restate
                    .kill_invocation(invocation["id"].as_str().context("no id")?)
                    .await?;
            }
            ensure!(begun.is_empty(), "{begun:?}");
            anyhow::Ok(())
        })
        .await?;
        let forgotten = format!("{}/deployments/{id}?force=true", restate.admin());
        reqwest::Client::new()
            .delete(forgotten)
            .send()
            .await?
            .error_for_status()?;
    }
    Ok(())
}

/// More than a port has room for.
const CROWD: usize = 1_000;

fn a_port_answers_others_whatever_idle_slow_or_endless_callers_do(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let metrics = format!("127.0.0.1:{}", kit.stack.ports.get("locked-operators")?);
        let health = format!("127.0.0.1:{}", kit.stack.ports.get("holdfast-locked")?);
        let worker = kit.stack.holdfast("run", "locked").provider(&kit.provider).webhooks();
        let worker = worker
            .env("HOLDFAST_HEALTH_LISTEN", &health)
            .env("HOLDFAST_HTTP_LISTEN", &metrics)
            .env("HOLDFAST_IDENTITY_KEY", &kit.stack.restate.signer()?.public_key())
            .start()
            .await?;
        tokio::try_join!(
            withstands(health),
            withstands(metrics),
            withstands(kit.stack.webhook()?),
            withstands_calls(kit)
        )?;
        ensure!(is_alive(&worker).await?, "it has died");
        worker.stop().await
    })
}

/// What a client of HTTP/2 begins with (RFC 9113, 3.4), and an empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The types of frames (RFC 9113, 6).
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// `POST http://.../`, by the static table of RFC 7541.
const POST: &[u8] = &[0x83, 0x86, 0x84];

/// A frame of stream 1 without any flag: its head goes on.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[kind, 0, 0, 0, 0, 1], payload].concat()
}

/// As [`withstands`], of the port at which the engine calls.
async fn withstands_calls(kit: &Kit) -> anyhow::Result<()> {
    let address = format!("127.0.0.1:{}", kit.stack.ports.get("serve")?);
    let connect = async |bytes: &[u8]| {
        let mut stream = TcpStream::connect(&address).await?;
        stream.write_all(bytes).await.map(|()| stream)
    };
    let slow_head = [PREFACE, &frame(HEADERS, POST)[..]].concat();
    let mut endless = connect(&slow_head).await?;
    // `x-endless`, which goes into no table.
    let header = [&b"\0\x09x-endless\x64"[..], &[b'a'; 100]].concat();
    let more = frame(CONTINUATION, &header.repeat(100));
    let forever = async { while endless.write_all(&more).await.is_ok() {} };
    let ended = timeout(DEADLINE, forever).await;
    ensure!(ended.is_ok(), "{address}: an endless head is listened to for ever");

    let crowd = try_join_all((0..CROWD).map(|_| connect(b""))).await?;
    let silent = try_join_all((0..CROWD / 3).map(|_| connect(PREFACE))).await?;
    let heads = try_join_all((0..CROWD / 3).map(|_| connect(&slow_head))).await?;
    let mut slow = [connect(b"").await?, connect(PREFACE).await?, connect(&slow_head).await?];
    // The engine is answered, and whoever else has its signature.
    for number in 0..20 {
        let ticket = format!("locked-crowd-{number}");
        let listing = json!({ "show": "locked", "price": { "amount": 100, "currency": "EUR" } });
        let listed = timeout(DEADLINE, call(kit, &[], "Ticket", &ticket, "list", &listing)).await;
        let (status, said) = listed.context("the engine is not answered")??;
        ensure!(status == 200, "{status}: {said}");
        let signature = kit.stack.restate.signer()?.sign("/discover", now().unix_timestamp())?;
        let asked = timeout(DEADLINE, calls(kit, "/discover", Some("v1"), Some(signature))).await;
        ensure!(asked.context("the port is full")?? == 200);
    }
    until("the crowd has given way", DEADLINE, async || {
        let left = held(&address)?;
        ensure!(left <= 256, "{address}: {left} of {CROWD} are still there");
        Ok(())
    })
    .await?;
    drop((crowd, silent, heads));
    for stream in &mut slow {
        let closed = timeout(DEADLINE / 2, stream.read_to_end(&mut Vec::new())).await;
        ensure!(closed.is_ok(), "{address}: whoever makes no call is waited for");
    }
    Ok(())
}

async fn withstands(address: String) -> anyhow::Result<()> {
    let endless = [
        endless(&address, "GET /livez", "x-endless: 1\r\n"),
        endless(&address, "POST /", ENDLESS_BODY),
    ];
    let endless = join_all(endless).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    ensure!(
        endless
            .iter()
            .all(|answer| answer.is_empty() || answer.starts_with("HTTP/1.1 4")),
        "{address}: {endless:?}"
    );
    let crowd = try_join_all((0..CROWD).map(|_| TcpStream::connect(&address))).await?;
    // Bodies that never come keep no room either.
    let bodies = try_join_all((0..CROWD / 3).map(async |_| {
        let mut stream = TcpStream::connect(&address).await?;
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 20\r\n\r\n";
        stream.write_all(head).await.map(|()| stream)
    }))
    .await?;
    let mut slow = TcpStream::connect(&address).await?;
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\nx-slow: ").await?;
    // Everybody else is answered at once, again and again.
    for _ in 0..20 {
        let answered = timeout(DEADLINE, reqwest::get(format!("http://{address}/livez"))).await;
        let status = answered.context("the port is full")??.status();
        ensure!(status == 200 || status == 404, "{address}: {status}");
    }
    until("the crowd has given way", DEADLINE, async || {
        let left = held(&address)?;
        ensure!(left <= 256, "{address}: {left} of {CROWD} are still there");
        Ok(())
    })
    .await?;
    drop((crowd, bodies));
    let closed = timeout(DEADLINE, slow.read_to_end(&mut Vec::new())).await;
    ensure!(closed.is_ok(), "{address}: a slow head is waited for");
    Ok(())
}

/// The connections that the server at this address has, of which its clients may know more: the kernel answers them, too.
fn held(address: &str) -> anyhow::Result<usize> {
    let (_, port) = address.rsplit_once(':').context("no port")?;
    let local = format!(":{:04X}", port.parse::<u16>()?);
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let of_server = table.lines().filter(|line| {
        let mut words = line.split_whitespace().skip(1);
        // 01 is ESTABLISHED, in `include/net/tcp_states.h` of Linux.
        words.next().is_some_and(|address| address.ends_with(&local)) && words.nth(1) == Some("01")
    });
    Ok(of_server.count())
}

async fn is_alive(worker: &Holdfast) -> anyhow::Result<bool> {
    Ok(reqwest::get(format!("{}/livez", worker.http))
        .await?
        .status()
        .is_success())
}

const ENDLESS_BODY: &str = "transfer-encoding: chunked\r\n\r\n";

/// The answer to a request that never ends, until the connection is closed.
async fn endless(address: &str, line: &str, rest: &str) -> anyhow::Result<String> {
    let stream = TcpStream::connect(address).await?;
    let (mut read, mut write) = stream.into_split();
    let (begin, more) = if rest == ENDLESS_BODY {
        (
            format!("{line} HTTP/1.1\r\nhost: a\r\n{rest}"),
            format!("1000\r\n{}\r\n", "b".repeat(0x1000)),
        )
    } else {
        (format!("{line} HTTP/1.1\r\nhost: a\r\n"), rest.repeat(100))
    };
    let sending = async {
        let sent = write.write_all(begin.as_bytes()).await;
        if sent.is_ok() {
            while write.write_all(more.as_bytes()).await.is_ok() {}
        }
    };
    let mut answer = Vec::new();
    let receiving = async {
        let mut bytes = [0; 1_024];
        // An error is a connection that was closed while more was on its way.
        while let Ok(count @ 1..) = read.read(&mut bytes).await {
            answer.extend_from_slice(&bytes[..count]);
        }
    };
    timeout(DEADLINE, async { tokio::join!(sending, receiving) })
        .await
        .with_context(|| format!("{address}: {line} is listened to for ever"))?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn a_renewed_certificate_is_shown_without_a_restart(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let folder = kit.stack.certificates();
        let old = &kit.stack.authority;
        let new = Authority::new("The next one")?;
        let files = old.sign("operators", &["localhost"])?.write(&folder, "operators")?;
        let health = format!("127.0.0.1:{}", kit.stack.ports.get("holdfast-locked")?);
        let port = kit.stack.ports.get("locked-operators")?;
        let worker = kit.stack.holdfast("run", "locked").provider(&kit.provider).webhooks();
        let worker = worker
            .env("HOLDFAST_HEALTH_LISTEN", &health)
            .env("HOLDFAST_HTTP_LISTEN", &format!("127.0.0.1:{port}"))
            .env("HOLDFAST_HTTP_CERTIFICATE", &files.certificate.display().to_string())
            .env("HOLDFAST_HTTP_PRIVATE_KEY", &files.key.display().to_string())
            .env("HOLDFAST_WEBHOOK_CERTIFICATE", &files.certificate.display().to_string())
            .env("HOLDFAST_WEBHOOK_PRIVATE_KEY", &files.key.display().to_string())
            .start()
            .await?;
        let webhook = kit.stack.webhook()?.replace("127.0.0.1", "localhost");
        let metrics = format!("https://localhost:{port}/metrics");
        let paths = [metrics.clone(), format!("https://{webhook}/")];
        shows(old, &paths).await?;
        // Apart: health knows no metrics, and the other port no health.
        let there = reqwest::get(format!("http://{health}/metrics")).await?.status();
        let elsewhere = old
            .client()?
            .build()?
            .get(metrics.replace("metrics", "livez"))
            .send()
            .await?
            .status();
        ensure!(there == 404 && elsewhere == 404, "{there} {elsewhere}");
        ensure!(
            reqwest::get(metrics.replace("https:", "http:")).await.is_err(),
            "it answers without TLS"
        );

        // Half of it is there: the old one is shown on.
        let renewed = new.sign("operators", &["localhost"])?;
        std::fs::write(&files.certificate, &renewed.certificate)?;
        shows(old, &paths).await?;
        std::fs::write(&files.key, &renewed.key)?;
        shows(&new, &paths).await?;
        ensure!(
            old.client()?.build()?.get(&metrics).send().await.is_err(),
            "the old one is still shown"
        );
        worker.stop().await
    })
}

async fn shows(authority: &Authority, urls: &[String]) -> anyhow::Result<()> {
    for url in urls {
        let answer = authority
            .client()?
            .build()?
            .get(url)
            .send()
            .await
            .with_context(|| url.clone())?;
        // The webhook's port takes no GET.
        ensure!(
            answer.status() == 200 || answer.status() == 405,
            "{url}: {}",
            answer.status()
        );
    }
    Ok(())
}
