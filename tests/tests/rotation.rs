//! Passwords, keys and certificates that are replaced while events flow: each event is answered, and the old ones open nothing.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::kit::certs::Authority;
use holdfast_tests::kit::identity::Identity;
use holdfast_tests::kit::kafka_lock::PASSWORD;
use holdfast_tests::kit::postgres::{APP, DATABASE, LOYALTY, password};
use holdfast_tests::kit::provider::{Call, Fault, KEY};
use holdfast_tests::kit::smtp::Sink;
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Kit, Postgres, until};
use holdfast_tests::load::now;
use holdfast_tests::traffic::Traffic;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::checkout::{CARD, CONFIRMED, PRICE, REFUSED, Shop, ends, reaches};
use crate::locked_doors::calls;
use crate::mail::{becomes, buy, of, open_with};
use crate::support::{DEADLINE, clean, clean_by};
use crate::workers::Workers;
use crate::{Test, tests};

/// On the locked stack.
pub(crate) const LOCKED: &[Test] = tests![
    what_postgres_asks_for_is_replaced_while_events_flow,
    what_kafka_asks_for_is_replaced_while_events_flow,
];

pub(crate) const TESTS: &[Test] = tests![
    the_engines_key_is_replaced_while_events_flow,
    the_mail_servers_password_is_replaced_without_a_restart,
    neither_too_many_calls_nor_a_providers_key_that_is_replaced_amid_an_on_sale_cost_an_order,
];

/// The second of each kind.
const NEXT: &str = "next-sesame";

/// Events flow while this is done, and then each of them is answered.
async fn while_events_flow<T>(
    traffic: &mut Traffic<'_>,
    what: &str,
    done: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let done = traffic.during(done).await.with_context(|| what.to_owned())?;
    traffic.answered().await.with_context(|| what.to_owned())?;
    Ok(done)
}

/// The server's certificate, the workers' own, and their password in both databases, none by a restart.
fn what_postgres_asks_for_is_replaced_while_events_flow(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let files = Files::new(kit)?;
        files.write(&password(APP))?;
        let mut workers = Workers::start(kit).await?;
        workers.serve.stop().await?;
        workers.serve = files.launch("serve").start().await?;
        workers.relay.stop().await?;
        workers.relay = files.launch("relay").start().await?;
        let mut traffic = Traffic::new(&kit.stack, "rotation-postgres")?;
        let superuser = kit.stack.postgres.connect().await?;
        let rotated = rotate(&files, &workers, &mut traffic, &superuser).await;
        // Others need it as it was.
        kit.stack.postgres.admit_by(&[])?;
        let password = password(APP);
        run(
            &superuser,
            &format!("alter role {APP} password '{password}'; select pg_reload_conf()"),
        )
        .await?;
        files.write(&password)?;
        rotated?;
        traffic.settled().await?;
        superuser.close().await;
        workers.stop().await
    })
}

async fn rotate(
    files: &Files<'_>,
    workers: &Workers,
    traffic: &mut Traffic<'_>,
    superuser: &PgPool,
) -> anyhow::Result<()> {
    let postgres = &files.kit.stack.postgres;
    let before = shown_by_postgres(postgres).await?;
    while_events_flow(traffic, "the server's certificate", async {
        postgres.show(&postgres.certificate()?)?;
        run(superuser, "select pg_reload_conf()").await?;
        until("the renewed certificate is shown", DEADLINE, async || {
            ensure!(shown_by_postgres(postgres).await? != before, "the old one is shown");
            Ok(())
        })
        .await?;
        end_sessions(superuser).await
    })
    .await?;
    let mut shown = Vec::new();
    for what in ["a certificate of our own is demanded", "it is renewed"] {
        let serials = while_events_flow(traffic, what, async {
            files.renew_certificate()?;
            postgres.admit_by(&[APP])?;
            run(superuser, "select pg_reload_conf()").await?;
            end_sessions(superuser).await?;
            until("sessions come with the certificate", DEADLINE, async || {
                let serials = serials(superuser).await?;
                let has_new = serials.iter().any(|serial| serial.is_some() && !shown.contains(serial));
                ensure!(has_new, "{serials:?}");
                Ok(serials)
            })
            .await
        });
        let serials = serials.await?;
        shown.extend(serials);
    }
    while_events_flow(traffic, "the password", async {
        run(superuser, &format!("alter role {APP} password '{NEXT}'")).await?;
        end_sessions(superuser).await?;
        for worker in [&workers.serve, &workers.relay] {
            until("it waits for the password", DEADLINE, async || {
                let (status, said) = worker.readyz().await?;
                ensure!(status == 503, "{said}");
                Ok(())
            })
            .await?;
        }
        files.write(NEXT)?;
        workers.serve.ready().await?;
        workers.relay.ready().await
    })
    .await
}

/// The files of a worker that may change while it runs: the addresses of the databases, and its certificate.
struct Files<'a> {
    kit: &'a Kit,
    folder: PathBuf,
}

impl<'a> Files<'a> {
    fn new(kit: &'a Kit) -> anyhow::Result<Self> {
        let folder = kit.stack.folder().join("rotation");
        let files = Self { kit, folder };
        files.renew_certificate()?;
        Ok(files)
    }

    fn renew_certificate(&self) -> anyhow::Result<()> {
        let certificate = self.kit.stack.postgres.authority()?.sign(APP, &[])?;
        certificate.write(&self.folder, APP).map(drop)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Writes the addresses, with this password.
    fn write(&self, with: &str) -> anyhow::Result<()> {
        for database in [DATABASE, LOYALTY] {
            let url = self.kit.stack.postgres.url_as(APP, database);
            let url = url.replace(&password(APP), with);
            let (certificate, key) = (self.path(&format!("{APP}.crt")), self.path(&format!("{APP}.key")));
            fs::write(
                self.path(database),
                format!("{url}&sslcert={certificate}&sslkey={key}\n"),
            )?;
        }
        Ok(())
    }

    fn launch(&self, subcommand: &str) -> Launch<'a> {
        let launch = self.kit.stack.holdfast(subcommand, subcommand);
        launch
            .without("HOLDFAST_DATABASE_URL")
            .without("HOLDFAST_LOYALTY_URL")
            .env("HOLDFAST_DATABASE_URL_FILE", &self.path(DATABASE))
            .env("HOLDFAST_LOYALTY_URL_FILE", &self.path(LOYALTY))
    }
}

async fn run(pool: &PgPool, statements: &str) -> anyhow::Result<()> {
    let statements = AssertSqlSafe(statements.to_owned());
    sqlx::raw_sql(statements).execute(pool).await?;
    Ok(())
}

/// Ends the workers' sessions: the next ones are opened by what holds now.
async fn end_sessions(superuser: &PgPool) -> anyhow::Result<()> {
    let end = format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{APP}'");
    run(superuser, &end).await
}

/// The serial numbers of the certificates with which the workers' sessions came.
async fn serials(superuser: &PgPool) -> anyhow::Result<Vec<Option<String>>> {
    let serials =
        "select distinct client_serial::text from pg_stat_ssl join pg_stat_activity using (pid) where usename = $1";
    Ok(sqlx::query_scalar(serials).bind(APP).fetch_all(superuser).await?)
}

/// The broker's certificate, which a running broker loads, and with which another start shows everybody a new one; and a password, by a
/// second way in and workers that are replaced one after the other, as the page on security says.
fn what_kafka_asks_for_is_replaced_while_events_flow(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "gate";
    const OLD: &str = "SCRAM-SHA-512";
    const NEW: &str = "SCRAM-SHA-256";
    kit.block_on(async {
        let (kafka, authority) = (&kit.stack.kafka, &kit.stack.kafka.lock()?.authority);
        let mut workers = Workers::start(kit).await?;
        let mut traffic = Traffic::new(&kit.stack, "rotation-kafka")?;
        let shown = async || shown_by(authority, TcpStream::connect(kafka.bootstrap()).await?).await;
        let before = shown().await?;
        while_events_flow(&mut traffic, "the broker's certificate", async {
            kafka.renew_certificate().await?;
            until("the renewed certificate is shown", DEADLINE, async || {
                ensure!(shown().await? != before, "the old one is shown");
                Ok(())
            })
            .await?;
            kafka.restart().await
        })
        .await?;

        let file = kit.stack.certificates().join("kafka-password");
        fs::write(&file, format!("{NEXT}\n"))?;
        let next = kit.stack.holdfast(USER, "gate-next").without("HOLDFAST_KAFKA_PASSWORD");
        let next = next
            .env("HOLDFAST_KAFKA_SASL_MECHANISM", NEW)
            .env("HOLDFAST_KAFKA_PASSWORD_FILE", &file.display().to_string());
        let replaced = while_events_flow(&mut traffic, "the password", async {
            kafka.set_password(USER, NEW, Some(NEXT)).await?;
            let next = next.start().await?;
            workers.gate.stop().await?;
            workers.gate = next;
            kafka.set_password(USER, OLD, None).await?;
            let old = kit.stack.holdfast(USER, "gate-old").spawn()?;
            until("the old password opens nothing", DEADLINE, async || {
                let (status, said) = old.readyz().await?;
                ensure!(
                    status == 503 && said.contains("uthentication failed"),
                    "{status} {said}"
                );
                Ok(())
            })
            .await
        });
        let replaced = replaced.await;
        // Others need it as it was.
        for mechanism in [OLD, NEW] {
            kafka.set_password(USER, mechanism, Some(PASSWORD)).await?;
        }
        replaced?;
        traffic.settled().await?;
        workers.stop().await
    })
}

fn the_engines_key_is_replaced_while_events_flow(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let engine = kit.stack.restate.signer()?;
        let next = Identity::new(&kit.stack.certificates(), "next-engine")?;
        let keys = [engine.public_key(), next.public_key()];
        let mut workers = Workers::start(kit).await?;
        let serve = async |keys: &[String]| {
            let serve = kit.stack.holdfast("serve", "serve");
            serve.env("HOLDFAST_IDENTITY_KEY", &keys.join(",")).start().await
        };
        workers.serve.stop().await?;
        workers.serve = serve(&keys[..1]).await?;
        let mut traffic = Traffic::new(&kit.stack, "rotation-engine")?;
        let first = fs::read(&engine.file)?;
        let rotated = while_events_flow(&mut traffic, "the engine's key", async {
            workers.serve.stop().await?;
            workers.serve = serve(&keys).await?;
            fs::copy(&next.file, &engine.file)?;
            kit.stack.restate.restart().await?;
            workers.serve.stop().await?;
            workers.serve = serve(&keys[1..]).await?;
            let path = "/discover";
            for (signer, expected) in [(engine, 401), (&next, 200)] {
                let signature = signer.sign(path, now().unix_timestamp())?;
                let status = calls(kit, path, Some("v1"), Some(signature)).await?;
                ensure!(status == expected, "{status}, not {expected}");
            }
            Ok(())
        });
        let rotated = rotated.await;
        let settled = match rotated {
            Ok(()) => traffic.settled().await,
            Err(error) => Err(error),
        };
        // Others need it as it was.
        fs::write(&engine.file, first)?;
        kit.stack.restate.restart().await?;
        settled?;
        workers.stop().await
    })
}

fn the_mail_servers_password_is_replaced_without_a_restart(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let certificate = kit.stack.authority.sign("mail", &["localhost"])?;
        let sink = Sink::start_locked(&certificate, "first-sesame").await?;
        let file = kit.stack.certificates().join("smtp-url");
        fs::write(&file, sink.url() + "\n")?;
        let (file_name, trusted) = (
            file.display().to_string(),
            kit.stack.authority_file().display().to_string(),
        );
        let settings = [
            ("HOLDFAST_SMTP_URL", ""),
            ("HOLDFAST_SMTP_URL_FILE", file_name.as_str()),
            ("SSL_CERT_FILE", trusted.as_str()),
        ];
        let shop = open_with(kit, "rotation/mail", &sink, &settings).await?;
        let database = kit.stack.postgres.connect().await?;
        let tickets = shop.tickets(3).await?;
        let log_says = async |words: &str| {
            until(words, DEADLINE, async || {
                let log = fs::read_to_string(shop.worker.log())?;
                ensure!(log.contains(words), "it is not said");
                anyhow::Ok(())
            })
            .await
        };
        buy(kit, &shop, "first", &tickets[0], CARD).await?;
        becomes(&database, &shop.id("first"), "completed", "sent").await?;
        sink.demand(NEXT);
        buy(kit, &shop, "next", &tickets[1], CARD).await?;
        log_says("answered 535 to AUTH").await?;
        fs::write(&file, sink.url())?;
        becomes(&database, &shop.id("next"), "completed", "sent").await?;
        // Another server is not believed: only user and password may change.
        fs::write(&file, sink.url().replace("localhost", "elsewhere.example"))?;
        buy(kit, &shop, "elsewhere", &tickets[2], CARD).await?;
        becomes(&database, &shop.id("elsewhere"), "completed", "sent").await?;
        log_says("a secret is used as it was read last").await?;
        for order in ["first", "next", "elsewhere"] {
            ensure!(of(&sink, &shop.id(order), "completed")?.len() == 1, "{order}");
        }
        let log = fs::read_to_string(shop.worker.log())?;
        ensure!(!log.contains("sesame"), "it prints a password");
        database.close().await;
        clean(kit).await?;
        shop.close().await
    })
}

fn neither_too_many_calls_nor_a_providers_key_that_is_replaced_amid_an_on_sale_cost_an_order(
    kit: &Kit,
) -> anyhow::Result<()> {
    const NEXT: &str = "sk_test_next_sesame";
    kit.block_on(async {
        let file = kit.stack.certificates().join("provider-key");
        fs::write(&file, KEY)?;
        let name = file.display().to_string();
        let settings = [
            ("HOLDFAST_PROVIDER_KEY", ""),
            ("HOLDFAST_PROVIDER_KEY_FILE", name.as_str()),
            ("HOLDFAST_RETRY_PAUSE", "1s"),
        ];
        let shop = Shop::open_with(kit, "rotation/key", &settings).await?;
        let tickets = shop.tickets(6).await?;
        let asks =
            async |order: &str, ticket: usize, method: &str| buy(kit, &shop, order, &tickets[ticket], method).await;
        let counts = async |metric: &str| {
            until(metric, DEADLINE, async || {
                let value = shop.worker.metric(metric).await?;
                ensure!(value > Some(0.0), "{value:?}");
                anyhow::Ok(())
            })
            .await
        };
        // Longer than anybody waits for one call.
        shop.simulator.too_many_for(Duration::from_secs(3));
        asks("too-many", 0, CARD).await?;
        counts(r#"holdfast_provider_delays_total{kind="write",why="too_many"}"#).await?;
        clean_by(|| shop.launch("verify")).await?;
        ends(kit, &shop.id("too-many"), "completed").await?;

        shop.simulator
            .fail(Call::Capture, Some(&shop.id("sold")), Fault::Unavailable, 3);
        asks("sold", 1, CARD).await?;
        asks("waiting", 2, CONFIRMED).await?;
        reaches(kit, &shop.id("sold"), "sold").await?;
        reaches(kit, &shop.id("waiting"), "waiting").await?;
        shop.simulator.replace_key(NEXT);
        asks("opened", 3, CARD).await?;
        asks("declined", 4, REFUSED).await?;
        shop.simulator.authenticate(&shop.payment("waiting")?, true)?;
        let amount = json!({ "amount": { "amount": PRICE, "currency": "EUR" } });
        shop.tell("waiting", "authorized", amount).await?;
        for call in ["capture", "get", "create"] {
            counts(&format!(
                r#"holdfast_provider_calls_total{{answer="misconfigured",call="{call}"}}"#
            ))
            .await?;
        }
        counts(r#"holdfast_failing_rounds_total{part="provider"}"#).await?;
        for (order, state) in [
            ("sold", "sold"),
            ("waiting", "waiting"),
            ("opened", "opened"),
            ("declined", "opened"),
        ] {
            reaches(kit, &shop.id(order), state).await?;
        }
        // Of those who wait for no money, nobody waits.
        let (status, said) = shop.worker.readyz().await?;
        ensure!(status == 200, "{status}: {said}");

        fs::write(&file, format!("{NEXT}\n"))?;
        asks("after", 5, CARD).await?;
        for order in ["sold", "waiting", "opened", "after"] {
            ends(kit, &shop.id(order), "completed").await?;
            shop.paid(order, PRICE)?;
        }
        let ended = ends(kit, &shop.id("declined"), "failed").await?;
        ensure!(ended["reason"] == "declined", "{ended}");
        let log = fs::read_to_string(shop.worker.log())?;
        for words in ["the payment provider refuses every call", "it goes on"] {
            ensure!(log.contains(words), "it is not said: {words}");
        }
        ensure!(!log.contains("sesame"), "it prints a key");
        // Others need it as it was.
        shop.simulator.heal();
        fs::write(&file, KEY)?;
        shop.close().await
    })
}

async fn shown_by_postgres(server: &Postgres) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server.address()).await?;
    // `SSLRequest` of PostgreSQL's protocol.
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == *b"S", "{answer:?}");
    shown_by(server.authority()?, stream).await
}

/// The certificate that a server of this machine shows, in DER.
async fn shown_by(authority: &Authority, stream: TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes())?)?;
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let handshake = connector.connect(ServerName::try_from("127.0.0.1")?, stream);
    let stream = tokio::time::timeout(Duration::from_secs(10), handshake).await??;
    let (_, session) = stream.get_ref();
    let shown = session.peer_certificates().and_then(|chain| chain.first());
    Ok(shown.context("no certificate")?.to_vec())
}
