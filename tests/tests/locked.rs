//! The whole product behind locked doors: every wire is encrypted, every party has a name, and each role may do exactly what the
//! lists in `deploy/` say. The same proofs hold there as on the open stack.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use holdfast_schemas::{UserOutcome, topics};
use holdfast_tests::kit::certs::Authority;
use holdfast_tests::kit::kafka::{ReadRecord, Sent, send_with};
use holdfast_tests::kit::kafka_lock::{Right, rights};
use holdfast_tests::kit::postgres::{ADMIN, APP, VERIFY};
use holdfast_tests::kit::{Holdfast, Kit, PgBouncer, until};
use holdfast_tests::load::{now, timestamp};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::FutureProducer;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::admin::{BY, by};
use crate::direct::unsubscribe;
use crate::support::{DEADLINE, clean, listed, outcomes, outcomes_of, pay, send, structured, told, told_of};
use crate::users::registered;
use crate::workers::{Workers, done};
use crate::{Test, checkout, crashes, mail, tests, webhook, zombies};

pub(crate) const TESTS: &[Test] = tests![
    // It reads all that there is, so the less the better.
    an_engine_without_a_gate_needs_its_rights_on_the_public_topics,
    relays_die_at_every_step_behind_locked_doors,
    carts_are_paid_and_returned_behind_locked_doors,
    cards_pay_and_are_refunded_by_roles_apart_behind_locked_doors,
    a_command_that_lacks_a_right_fails_and_names_it,
    doctor_finds_each_role_sound_and_names_each_right_that_it_lacks,
    doctor_names_each_wrong_wire_and_login_and_its_setting,
    the_engine_that_lacks_a_right_goes_on_once_it_is_given_back,
    a_right_that_relay_or_webhook_loses_is_named_and_waited_for,
    a_shop_may_send_events_and_read_outcomes_and_nothing_else,
    whoever_has_no_name_gets_nothing_from_anything_that_listens,
];

/// The topics, the tables and the deployment are made by those who may make them; then gate, serve and relay work, each by its own
/// name, while the relay dies again and again; then `verify` judges, by its own.
fn relays_die_at_every_step_behind_locked_doors(kit: &Kit) -> anyhow::Result<()> {
    crashes::every_event_is_accounted_for_whatever_step_the_relay_dies_at_or_repeats(kit)?;
    zombies::a_relay_that_dies_or_wakes_up_late_loses_and_repeats_nothing(kit)
}

fn carts_are_paid_and_returned_behind_locked_doors(kit: &Kit) -> anyhow::Result<()> {
    checkout::credits_alone_buy_a_cart(kit)?;
    mail::a_customer_gets_one_mail_about_each_outcome_in_their_language(kit)
}

/// Gate, serve, relay and webhook are processes of their own, and none can do what another one does.
fn cards_pay_and_are_refunded_by_roles_apart_behind_locked_doors(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = checkout::Shop::open_apart(kit, "locked/apart").await?;
        webhook::whatever_befalls_a_sale_takes_effect_once(kit, shop).await
    })
}

/// Commands end, and say what they may not do.
fn a_command_that_lacks_a_right_fails_and_names_it(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let workers = Workers::start(kit).await?;
        clean(kit).await?;
        let since = timestamp(now());
        send(kit, &[listed("locked/again", "locked/again")]).await?;
        told(kit, "locked/again", 1).await?;
        // Each by a name of its own.
        let roles = ["register", "verify", "admin"].map(|role| each_right_is_missed(kit, role));
        let wrong = try_join_all(roles).await?.concat();
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        clean(kit).await?;
        workers.stop().await?;
        for reader in ["gate", "engine"] {
            until("what was read is read again", DEADLINE, async || {
                let again = kit.stack.holdfast("admin", "locked").arg("reprocess").arg(reader);
                let again = again.arg("--topic").arg(topics::RESERVATIONS);
                done(by(again.arg("--from").arg(&since))).await
            })
            .await?;
        }
        let accept = kit.stack.holdfast("accept", "locked").instead("admin");
        done(by(accept.arg("relay").arg("accept"))).await
    })
}

/// Runs this command without one of its rights after the other, and tells of those that it did not name.
async fn each_right_is_missed(kit: &Kit, role: &str) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    // What is there already is not created again.
    for right in rights(role)?.into_iter().filter(|right| right.operation != "CREATE") {
        let arguments = needing(kit, &right).await?;
        let launch = || {
            let launch = kit.stack.holdfast(role, "locked");
            arguments.iter().fold(launch, |launch, argument| launch.arg(argument))
        };
        let lock = kit.stack.kafka.lock()?;
        lock.withdraw(std::slice::from_ref(&right))?;
        let lacking = launch().output().await?;
        lock.grant(std::slice::from_ref(&right))?;
        let said = String::from_utf8_lossy(&lacking.stderr).into_owned();
        // `reservations` is no name for `reservations.admitted`.
        let mut words = said.split(|letter: char| !(letter.is_alphanumeric() || ".-".contains(letter)));
        let name = right.name.trim_end_matches('*');
        let named = words.any(|word| word.trim_end_matches('.') == name) && said.contains("uthoriz");
        if lacking.status.success() || !named {
            wrong.push(format!("{right:?}: {}: {said}", lacking.status));
        }
        if role == "admin" {
            done(launch()).await.with_context(|| format!("{right:?} is back"))?;
        }
    }
    Ok(wrong)
}

/// The arguments of a command that needs this right.
async fn needing(kit: &Kit, right: &Right) -> anyhow::Result<Vec<String>> {
    if right.role != "admin" {
        return Ok(Vec::new());
    }
    if let Some(command) = reading_again(right) {
        let since = timestamp(now());
        let command = [&["reprocess"][..], &command, &["--from", &since, "--dry-run"]].concat();
        return Ok(command.into_iter().map(String::from).collect());
    }
    let topic = match right.name.as_str() {
        topics::PAYMENTS => topics::PAYMENTS,
        _ => topics::RESERVATIONS,
    };
    let bad = Sent {
        key: Some(b"locked/letter".to_vec()),
        value: Some(b"no event".to_vec()),
        ..Sent::default()
    };
    let places = kit.stack.kafka.send(topic, &[bad]).await?;
    let (partition, offset) = places[0];
    let origin = format!("{topic}/{partition}/{offset}");
    until("the dead letter", DEADLINE, async || {
        let show = kit.stack.holdfast("admin", "locked").arg("dead-letters").arg("show");
        done(show.arg(&origin)).await
    })
    .await?;
    let command = match right.name.as_str() {
        topics::DEAD_LETTERS => ["dead-letters", "show", &origin].to_vec(),
        _ => [&["dead-letters", "replay", &origin][..], BY].concat(),
    };
    Ok(command.into_iter().map(String::from).collect())
}

/// Who is to read what again, so that this right is needed; none if another command needs it.
fn reading_again(right: &Right) -> Option<[&'static str; 3]> {
    match right.name.as_str() {
        "holdfast.gate" => Some(["gate", "--topic", topics::RESERVATIONS]),
        "holdfast.ticket*" | topics::RESERVATIONS_ADMITTED => Some(["engine", "--topic", topics::RESERVATIONS]),
        "holdfast.user*" | topics::PAYMENTS_ADMITTED => Some(["engine", "--topic", topics::PAYMENTS]),
        _ => None,
    }
}

fn doctor_finds_each_role_sound_and_names_each_right_that_it_lacks(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let workers = Workers::start(kit).await?;
        all_sound(kit, &ROLES).await?;
        let roles = ["gate", "relay", "webhook", "verify", "admin"];
        try_join_all(roles.map(|role| each_right_is_looked_at(kit, role))).await?;
        let owner = kit.stack.postgres.connect().await?;
        for (role, grantee) in [("serve", APP), ("verify", VERIFY), ("admin", ADMIN)] {
            for (change, sound) in [
                ("revoke select on tickets from", false),
                ("grant select on tickets to", true),
            ] {
                let change = AssertSqlSafe(format!("{change} {grantee}"));
                sqlx::query(change).execute(&owner).await?;
                let (code, wrong) = look(kit, role, &[]).await?;
                let named = wrong.iter().any(|check| check["how"] == "missing: select on tickets");
                ensure!(named != sound && (code == Some(0)) == sound, "{role}: {wrong:#?}");
            }
        }
        owner.close().await;
        workers.stop().await
    })
}

/// Those that doctor looks for.
const ROLES: [&str; 8] = [
    "gate", "serve", "relay", "webhook", "register", "verify", "admin", "run",
];

/// Waits until doctor finds nothing wrong for these roles: the engine comes back, by and by, to what failed while nobody worked.
async fn all_sound(kit: &Kit, roles: &[&str]) -> anyhow::Result<()> {
    let sound = roles.iter().map(async |role| {
        until("all is sound", DEADLINE, async || {
            let (code, wrong) = look(kit, role, &[]).await?;
            ensure!(code == Some(0), "{role}: {wrong:#?}");
            Ok(())
        })
        .await
    });
    try_join_all(sound).await.map(drop)
}

/// Without one of this role's rights after the other doctor finds that one thing wrong.
async fn each_right_is_looked_at(kit: &Kit, role: &str) -> anyhow::Result<()> {
    let lock = kit.stack.kafka.lock()?;
    // Only the relay that leads may begin transactions.
    for right in rights(role)?
        .into_iter()
        .filter(|right| right.kind != "transactional-id")
    {
        lock.withdraw(std::slice::from_ref(&right))?;
        let (code, wrong) = look(kit, role, &[]).await?;
        lock.grant(std::slice::from_ref(&right))?;
        let names = |check: &Value| {
            let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
            text("what").ends_with(right.name.trim_end_matches('*')) && text("mend").contains("deploy/kafka/acls")
        };
        // Who may write a topic may not read it for that, and the other way round.
        let named = wrong.iter().filter(|check| names(check)).count();
        ensure!(
            code == Some(1) && named == 1 && wrong.len() == 1,
            "{right:?}: {wrong:#?}"
        );
    }
    Ok(())
}

/// Wires and logins, each wrong alone.
fn doctor_names_each_wrong_wire_and_login_and_its_setting(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let workers = Workers::start(kit).await?;
        all_sound(kit, &["serve", "relay"]).await?;
        let mail = kit.stack.maildev.as_ref().context("no mail server")?.smtp();
        let mail = mail.replace("sesame", "guess");
        let stranger = kit.stack.certificates().join("stranger.crt");
        fs::write(&stranger, Authority::new("A stranger")?.certificate)?;
        let stranger = stranger.display().to_string();
        let pooler = PgBouncer::start(&kit.stack, &kit.stack.postgres, "ignore_startup_parameters = options").await?;
        let pooled = pooler.url("transaction");
        let (kafka, url) = ("HOLDFAST_KAFKA_PASSWORD", "HOLDFAST_DATABASE_URL");
        let broken = [
            (
                "serve",
                "mail",
                ("HOLDFAST_SMTP_URL", mail.as_str()),
                "",
                "HOLDFAST_SMTP_URL",
            ),
            ("serve", "restate", ("HOLDFAST_RESTATE_TOKEN", "guess"), "", "token"),
            (
                "serve",
                "provider",
                ("HOLDFAST_PROVIDER_KEY", "guess"),
                "",
                "HOLDFAST_PROVIDER_KEY",
            ),
            ("relay", "kafka", (kafka, "guess"), "uthentication", kafka),
            (
                "relay",
                "kafka",
                ("HOLDFAST_KAFKA_CA", stranger.as_str()),
                "certificate",
                "HOLDFAST_KAFKA_CA",
            ),
            ("relay", "postgres", (url, pooled.as_str()), "pool_mode = session", url),
        ];
        let looks = broken.map(async |(role, part, setting, how, mend)| {
            let (code, wrong) = look(kit, role, &[setting]).await?;
            let named = |check: &Value| {
                let says = |field: &str, what: &str| check[field].as_str().is_some_and(|text| text.contains(what));
                check["part"] == part && says("how", how) && says("mend", mend)
            };
            ensure!(
                code == Some(1) && !wrong.is_empty() && wrong.iter().all(named),
                "{part}: {wrong:#?}"
            );
            anyhow::Ok(())
        });
        try_join_all(looks).await?;
        pooler.stop().await?;
        workers.stop().await
    })
}

/// What doctor finds wrong as this role, with its exit code.
async fn look(kit: &Kit, role: &str, environment: &[(&str, &str)]) -> anyhow::Result<(Option<i32>, Vec<Value>)> {
    let doctor = kit.stack.holdfast(role, "doctor").provider(&kit.provider);
    let doctor = doctor.instead("doctor");
    let doctor = environment
        .iter()
        .fold(doctor, |doctor, (name, value)| doctor.env(name, value));
    let ended = doctor.arg("--json").arg("--role").arg(role).output().await?;
    let report: Value =
        serde_json::from_slice(&ended.stdout).with_context(|| String::from_utf8_lossy(&ended.stderr).into_owned())?;
    let checks = report["checks"].as_array().cloned().unwrap_or_default();
    let wrong = checks.into_iter().filter(|check| check["diagnosis"] == "wrong");
    Ok((ended.status.code(), wrong.collect()))
}

/// Restate waits for a right, as everybody does, and nothing is lost.
fn the_engine_that_lacks_a_right_goes_on_once_it_is_given_back(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let workers = Workers::start(kit).await?;
        for (number, right) in rights("engine")?.iter().enumerate() {
            let sent = lacks(kit, right, &format!("locked/engine/{number}"), &ADMITTED).await;
            sent.with_context(|| format!("{right:?}"))?;
        }
        // Another name and password, and back: `register` notices, and the engine uses them.
        for user in ["kit", "engine"] {
            let register = kit.stack.holdfast("register", "locked");
            let register = register.env("HOLDFAST_RESTATE_KAFKA_USERNAME", user);
            let said = String::from_utf8(register.output().await?.stdout)?;
            let changed = |line: &str| line.starts_with("changed") && line.contains("Kafka cluster");
            ensure!(said.lines().any(changed), "{user}: {said}");
            let ticket = format!("locked/engine/as-{user}");
            send(kit, &[listed(&ticket, &ticket)]).await?;
            told(kit, &ticket, 1).await?;
        }
        clean(kit).await?;
        workers.stop().await
    })
}

/// No gate runs, and the engine has no right to its topics.
fn an_engine_without_a_gate_needs_its_rights_on_the_public_topics(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        done(kit.stack.holdfast("migrate", "migrate")).await?;
        let serve = kit.stack.holdfast("serve", "serve").start().await?;
        let relay = kit.stack.holdfast("relay", "relay").start().await?;
        let lock = kit.stack.kafka.lock()?;
        let direct = rights("engine-direct")?.into_iter();
        let direct: Vec<_> = direct
            .map(|right| Right {
                role: "engine".to_owned(),
                ..right
            })
            .collect();
        lock.withdraw(&rights("engine")?)?;
        lock.grant(&direct)?;
        for topic in ADMITTED {
            unsubscribe(kit, topic).await?;
        }
        done(kit.stack.holdfast("register", "register").arg("--direct")).await?;
        let look = kit
            .stack
            .holdfast("register", "doctor")
            .instead("doctor")
            .arg("--direct");
        done(look.arg("--role").arg("register")).await?;
        for (number, right) in direct.iter().enumerate() {
            let sent = lacks(kit, right, &format!("locked/direct/{number}"), &PUBLIC).await;
            sent.with_context(|| format!("{right:?}"))?;
        }
        clean(kit).await?;
        for topic in PUBLIC {
            unsubscribe(kit, topic).await?;
        }
        lock.withdraw(&direct)?;
        lock.grant(&rights("engine")?)?;
        done(kit.stack.holdfast("register", "register")).await?;
        serve.stop().await?;
        relay.stop().await
    })
}

/// The topics that the engine reads: those of tickets, those of users.
const ADMITTED: [&str; 2] = [topics::RESERVATIONS_ADMITTED, topics::PAYMENTS_ADMITTED];
const PUBLIC: [&str; 2] = [topics::RESERVATIONS, topics::PAYMENTS];

/// Without this right of the engine it says so, and events of this id and key that come by these topics take effect once it is back.
async fn lacks(kit: &Kit, right: &Right, id: &str, topics: &[&str; 2]) -> anyhow::Result<()> {
    let log = kit.stack.folder().join("restate.log");
    let before = fs::metadata(&log)?.len() as usize;
    let lock = kit.stack.kafka.lock()?;
    lock.withdraw(std::slice::from_ref(right))?;
    // Who is in a group finds out when the engine joins it again.
    kit.stack.restate.restart().await?;
    let (ticket, user) = (id.to_owned(), format!("{id}/ann"));
    send(kit, &[listed(&ticket, &ticket)]).await?;
    pay(kit, &[registered(&user, &user)]).await?;
    let is_of_users = right.name.contains("user") || right.name == topics[1];
    let (event, topic) = if is_of_users {
        (&user, topics[1])
    } else {
        (&ticket, topics[0])
    };
    until("it is there to be read", DEADLINE, async || {
        let there = kit.stack.kafka.read(topic).await?;
        let ours = |read: &ReadRecord| read.key.as_deref() == Some(event.as_bytes());
        ensure!(there.iter().any(ours), "not yet");
        anyhow::Ok(())
    })
    .await?;
    until("Restate says so", DEADLINE, async || {
        let log = fs::read(&log)?;
        let since = String::from_utf8_lossy(&log[before..]).into_owned();
        ensure!(since.contains("uthorization"), "not yet");
        anyhow::Ok(())
    })
    .await?;
    let took_effect = match is_of_users {
        true => outcomes_of::<UserOutcome>(kit, &user).await?.len(),
        false => outcomes(kit, &ticket).await?.len(),
    };
    ensure!(took_effect == 0, "it took effect without the right");
    lock.grant(std::slice::from_ref(right))?;
    told(kit, &ticket, 1).await?;
    told_of::<UserOutcome>(kit, &user, 1).await.map(drop)
}

/// While they run, and by `/readyz`.
fn a_right_that_relay_or_webhook_loses_is_named_and_waited_for(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let workers = Workers::start(kit).await?;
        let webhook = kit.stack.holdfast("webhook", "hooks").provider(&kit.provider);
        let webhook = webhook.webhooks().start().await?;
        let lock = kit.stack.kafka.lock()?;
        let waits = async |worker: &Holdfast, right: &Right| {
            until("readyz names the right", DEADLINE, async || {
                let (status, said) = worker.readyz().await?;
                ensure!(
                    status == 503 && (said.contains("uthoriz") || said.contains("denies")),
                    "{right:?}: {status} {said}"
                );
                ensure!(said.contains(&right.name), "{right:?}: {said}");
                anyhow::Ok(())
            })
            .await
        };
        let written = |right: &Right| right.operation == "WRITE" && right.kind == "topic";
        let of_relay = rights("relay")?.into_iter().filter(written);
        // These two have no row of what is sent here.
        let unused = [topics::DEAD_LETTERS, topics::LEDGER_ENTRIES];
        let of_relay = of_relay.filter(|right| !unused.contains(&right.name.as_str()));
        for (number, right) in of_relay.enumerate() {
            lock.withdraw(std::slice::from_ref(&right))?;
            let (ticket, user) = (format!("locked/loses/{number}"), format!("locked/loses/{number}/ann"));
            send(kit, &[listed(&ticket, &ticket)]).await?;
            pay(kit, &[registered(&user, &user)]).await?;
            waits(&workers.relay, &right).await?;
            lock.grant(std::slice::from_ref(&right))?;
            told(kit, &ticket, 1).await.with_context(|| format!("{right:?}"))?;
            told_of::<UserOutcome>(kit, &user, 1).await?;
            workers.relay.ready().await?;
        }
        for right in rights("webhook")? {
            lock.withdraw(std::slice::from_ref(&right))?;
            waits(&webhook, &right).await?;
            lock.grant(std::slice::from_ref(&right))?;
            webhook.ready().await?;
        }
        clean(kit).await?;
        webhook.stop().await?;
        workers.stop().await
    })
}

fn a_shop_may_send_events_and_read_outcomes_and_nothing_else(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let workers = Workers::start(kit).await?;
        let kafka = &kit.stack.kafka;
        let login = |user: &str| {
            let mut config = kafka.config();
            for (name, value) in kafka.lock()?.properties(user) {
                config.set(name, value);
            }
            config.set("message.timeout.ms", "5000").set("group.id", "shop.reads");
            anyhow::Ok(config)
        };
        let topics = [
            (topics::RESERVATIONS, true, false),
            (topics::PAYMENTS, true, false),
            (topics::RESERVATIONS_OUTCOMES, false, true),
            (topics::PAYMENTS_OUTCOMES, false, true),
            (topics::LEDGER_ENTRIES, false, false),
            (topics::RESERVATIONS_ADMITTED, false, false),
            (topics::PAYMENTS_ADMITTED, false, false),
            (topics::DEAD_LETTERS, false, false),
            (topics::RELAY_MARK, false, false),
        ];
        // As an operator would: the script takes the rights away, and gives the same ones.
        let shop = ["producer=User:producer", "consumer=User:consumer"];
        kafka.run_acls(&[&["--remove"], &shop[..]].concat()).await?;
        let producer: FutureProducer = login("producer")?.create()?;
        let record = || structured(&listed("locked/shop", "locked/shop"));
        let refused = send_with(&producer, topics::RESERVATIONS, &[record()]).await;
        ensure!(refused.is_err(), "the script took nothing away");
        kafka.run_acls(&shop).await?;
        let producer: FutureProducer = login("producer")?.create()?;
        for (topic, writes, reads) in topics {
            let record = structured(&listed(&format!("locked/shop/{topic}"), "locked/shop"));
            let sent = send_with(&producer, topic, &[record]).await;
            ensure!(sent.is_ok() == writes, "{topic}: {sent:?}");
            // Whoever keeps the books reads the ledger's entries, and nothing else.
            for (reader, reads) in [("consumer", reads), ("books", topic == topics::LEDGER_ENTRIES)] {
                let consumer: BaseConsumer = login(reader)?.create()?;
                let looked =
                    spawn_blocking(move || consumer.fetch_watermarks(topic, 0, Duration::from_secs(5))).await?;
                ensure!(looked.is_ok() == reads, "{reader}, {topic}: {looked:?}");
            }
        }
        clean(kit).await?;
        workers.stop().await
    })
}

/// What somebody gets who has no certificate, no password and no key.
fn whoever_has_no_name_gets_nothing_from_anything_that_listens(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = kit.stack.holdfast("run", "checkout").provider(&kit.provider).webhooks();
        let worker = shop.start().await?;
        let operators = url::Url::parse(&worker.http)?.port().context("no port")?;
        let mut ports = listening(kit.stack.folder())?;
        let processes: BTreeSet<&str> = ports.values().map(String::as_str).collect();
        let expected = ["holdfast-checkout", "kafka", "maildev", "nginx", "postgres"];
        ensure!(processes.iter().copied().eq(expected), "{ports:?}");
        // The payment provider is a part of the kit.
        ports.insert(kit.stack.ports.get("provider")?, String::from("provider"));
        let mut given = BTreeSet::new();
        for (port, process) in &ports {
            for path in PATHS {
                let request = format!("GET /{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
                for answer in [plain(*port, &request).await, by_tls(*port, path).await] {
                    if answer.starts_with("HTTP/1.1 2") {
                        given.insert(format!("{process} {port} /{path}"));
                    }
                }
            }
            let mail = plain(*port, "EHLO localhost\r\n").await;
            ensure!(!mail.contains("250"), "{process} {port}: {mail}");
        }
        // Numbers, and what is waited for: the page on security says so.
        let open = ["metrics", "livez", "readyz"].map(|path| format!("holdfast-checkout {operators} /{path}"));
        ensure!(given == BTreeSet::from(open), "{given:#?}");
        // By the protocols of Kafka and PostgreSQL.
        let address = kit.stack.kafka.bootstrap();
        for (protocol, more) in [
            ("plaintext", &[][..]),
            ("ssl", &[("enable.ssl.certificate.verification", "false")][..]),
        ] {
            let mut stranger = ClientConfig::new();
            stranger
                .set("bootstrap.servers", &address)
                .set("security.protocol", protocol);
            for (name, value) in more {
                stranger.set(*name, *value);
            }
            let stranger: BaseConsumer = stranger.create()?;
            let told = spawn_blocking(move || stranger.fetch_metadata(None, Duration::from_secs(3)).map(drop)).await?;
            ensure!(told.is_err(), "Kafka lists its topics to {protocol}");
        }
        for mode in ["disable", "require"] {
            let url = format!(
                "postgres://postgres@{}/holdfast?sslmode={mode}",
                kit.stack.postgres.address()
            );
            ensure!(PgConnection::connect(&url).await.is_err(), "PostgreSQL takes {url}");
        }
        worker.stop().await
    })
}

/// The ports at which the processes of the stack in this folder listen, each with the process's name.
fn listening(folder: &Path) -> anyhow::Result<BTreeMap<u16, String>> {
    let mut sockets = BTreeMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table)?.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, address, _, state, _, _, _, _, _, inode, ..] = words[..] else {
                continue;
            };
            // 0A is LISTEN, in `include/net/tcp_states.h` of Linux.
            if let ("0A", Some((_, port))) = (state, address.rsplit_once(':')) {
                sockets.insert(format!("socket:[{inode}]"), u16::from_str_radix(port, 16)?);
            }
        }
    }
    let mut ports = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "pid") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let record = fs::read_to_string(&path)?;
        let pid = record.split(' ').next().unwrap_or_default();
        // One that has ended has no sockets.
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for file in files {
            let target = fs::read_link(file?.path()).unwrap_or_default();
            if let Some(port) = sockets.get(&*target.to_string_lossy()) {
                ports.insert(*port, name.clone());
            }
        }
    }
    Ok(ports)
}

/// What a port answers to this, sent without TLS; what fails says how.
async fn plain(port: u16, request: &str) -> String {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = vec![0; 1_024];
        let count = stream.read(&mut answer).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer[..count]).into_owned())
    };
    match timeout(Duration::from_secs(2), asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => error.to_string(),
        Err(_) => String::from("no answer"),
    }
}

/// What somebody would try who knows the servers.
const PATHS: [&str; 10] = [
    "",
    "metrics",
    "livez",
    "readyz",
    "restate/health",
    "services",
    "query",
    "Ticket/a/get",
    "api/email",
    "v1/payment_intents",
];

/// What a port answers to a request by a client that believes any certificate and has none.
async fn by_tls(port: u16, path: &str) -> String {
    let asked = async {
        let client = reqwest::Client::builder()
            .tls_danger_accept_invalid_certs(true)
            .build()?;
        let answer = client
            .get(format!("https://127.0.0.1:{port}/{path}"))
            .timeout(Duration::from_secs(2))
            .send()
            .await?;
        anyhow::Ok(format!("HTTP/1.1 {}", answer.status()))
    };
    asked.await.unwrap_or_else(|error| format!("{error:#}"))
}
