//! A Kafka behind locks: every way to log in, every way in which that fails, and rights that come and go.

use std::fs;
use std::process::Output;
use std::sync::OnceLock;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use holdfast_schemas::topics;
use holdfast_tests::kit::certs::Authority;
use holdfast_tests::kit::kafka_lock::{Lock, PASSWORD, Right, rights};
use holdfast_tests::kit::server::Server;
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Holdfast, Kafka, Kit, until};
use holdfast_tests::load::now;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::relay::insert;
use crate::support::{DEADLINE, requested, structured};
use crate::workers::done;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_gate_works_by_every_way_to_log_in,
    a_connection_that_fails_is_named_by_readyz,
    a_command_that_cannot_connect_says_why,
    a_right_of_the_gate_that_is_withdrawn_is_named_and_waited_for,
    a_right_of_the_relay_that_is_missing_is_named_and_waited_for,
    a_topic_that_register_may_not_create_is_named,
    doctor_names_a_topic_that_is_missing_whether_it_would_be_read_or_written,
];

const GROUP: &str = "holdfast.gate";
const TOPICS: [&str; 9] = [
    topics::RESERVATIONS,
    topics::PAYMENTS,
    topics::RESERVATIONS_ADMITTED,
    topics::PAYMENTS_ADMITTED,
    topics::DEAD_LETTERS,
    topics::RESERVATIONS_OUTCOMES,
    topics::PAYMENTS_OUTCOMES,
    topics::LEDGER_ENTRIES,
    topics::RELAY_MARK,
];

/// The broker of all proofs here: it is started once, and one proof at a time has it.
static LOCKED: OnceLock<Mutex<Option<Server<Kafka>>>> = OnceLock::new();

type Locked = MutexGuard<'static, Option<Server<Kafka>>>;

async fn locked(kit: &Kit) -> anyhow::Result<Locked> {
    let mut locked = LOCKED.get_or_init(Mutex::default).lock().await;
    if locked.is_none() {
        let kafka = Kafka::locked(&kit.stack)?;
        kafka.start().await?;
        for topic in TOPICS {
            kafka.create_topic(topic, 1, &[]).await?;
        }
        kafka.lock()?.grant(&[rights("gate")?, rights("relay")?].concat())?;
        let consumer: BaseConsumer = kafka.config().set("group.id", GROUP).create()?;
        let mut first = TopicPartitionList::new();
        for topic in [topics::RESERVATIONS, topics::PAYMENTS] {
            first.add_partition_offset(topic, 0, Offset::Offset(0))?;
        }
        consumer.commit(&first, CommitMode::Sync)?;
        *locked = Some(kafka);
    }
    Ok(locked)
}

fn server(locked: &Locked) -> anyhow::Result<&Server<Kafka>> {
    locked.as_ref().context("the locked Kafka was not started")
}

/// A gate on the locked Kafka that comes by these settings.
fn gate<'a>(kit: &'a Kit, bootstrap: &str, settings: &[(&str, String)]) -> Launch<'a> {
    with(kit.stack.holdfast("gate", "locked"), bootstrap, settings)
}

fn with<'a>(launch: Launch<'a>, bootstrap: &str, settings: &[(&str, String)]) -> Launch<'a> {
    let launch = launch.env("HOLDFAST_KAFKA", bootstrap);
    settings
        .iter()
        .fold(launch, |launch, (name, value)| launch.env(name, value))
}

/// The settings of a login, with some replaced.
fn login(lock: &Lock, replaced: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    let mut settings = lock.login("gate");
    settings.retain(|(name, _)| replaced.iter().all(|(other, _)| name != other));
    settings.extend(replaced.iter().map(|(name, value)| (*name, (*value).to_owned())));
    settings.retain(|(_, value)| !value.is_empty());
    settings
}

/// The settings of a client that shows a certificate.
fn certificate(lock: &Lock, user: &str) -> Vec<(&'static str, String)> {
    let files = lock.certificate(user);
    vec![
        ("HOLDFAST_KAFKA_SECURITY_PROTOCOL", "SSL".to_owned()),
        ("HOLDFAST_KAFKA_CA", lock.ca().display().to_string()),
        ("HOLDFAST_KAFKA_CERTIFICATE", files.certificate.display().to_string()),
        ("HOLDFAST_KAFKA_PRIVATE_KEY", files.key.display().to_string()),
    ]
}

/// Sends one request, and waits until the gate has admitted it.
async fn passes(kafka: &Kafka, worker: &Holdfast) -> anyhow::Result<()> {
    let (id, ticket) = (
        Uuid::new_v4().to_string(),
        format!("locked-{}", Uuid::new_v4().simple()),
    );
    let event = structured(&requested(&id, &ticket, "ann"));
    kafka.send(topics::RESERVATIONS, &[event]).await?;
    admitted(kafka, &ticket, worker).await
}

async fn admitted(kafka: &Kafka, ticket: &str, worker: &Holdfast) -> anyhow::Result<()> {
    let admitted = until("the event is admitted", DEADLINE, async || {
        let records = kafka.read(topics::RESERVATIONS_ADMITTED).await?;
        let is_there = records
            .iter()
            .any(|record| record.key.as_deref() == Some(ticket.as_bytes()));
        ensure!(is_there, "not yet");
        Ok(())
    });
    admitted.await.with_context(|| worker.last_words())
}

/// Waits until `/readyz` says that the process is not ready because of this.
async fn waits_for(worker: &Holdfast, name: &str, is_expected: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let what = format!("readyz names {name}");
    let named = until(&what, DEADLINE, async || {
        let ready = reqwest::get(format!("{}/readyz", worker.http)).await?;
        let status = ready.status();
        let text = ready.text().await?;
        ensure!(status == 503 && is_expected(&text), "{status} {text}");
        Ok(())
    });
    named.await.with_context(|| worker.last_words())
}

fn a_gate_works_by_every_way_to_log_in(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let locked = locked(kit).await?;
        let kafka = server(&locked)?;
        let lock = kafka.lock()?;
        for mechanism in ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"] {
            let settings = login(lock, &[("HOLDFAST_KAFKA_SASL_MECHANISM", mechanism)]);
            let worker = gate(kit, &kafka.bootstrap(), &settings)
                .start()
                .await
                .context(mechanism)?;
            passes(kafka, &worker).await.context(mechanism)?;
            worker.stop().await?;
        }
        let password = kit.stack.certificates().join("password");
        fs::write(&password, format!("{PASSWORD}\n"))?;
        let by_file = [
            ("HOLDFAST_KAFKA_PASSWORD", ""),
            ("HOLDFAST_KAFKA_PASSWORD_FILE", password.to_str().context("a path")?),
        ];
        let worker = gate(kit, &kafka.bootstrap(), &login(lock, &by_file)).start().await?;
        passes(kafka, &worker).await.context("a password from a file")?;
        worker.stop().await?;
        let token = kit.stack.certificates().join("token");
        fs::write(&token, Lock::token("gate", now().unix_timestamp() + 3_600))?;
        let by_token = [
            ("HOLDFAST_KAFKA_SASL_MECHANISM", "OAUTHBEARER"),
            ("HOLDFAST_KAFKA_USERNAME", ""),
            ("HOLDFAST_KAFKA_PASSWORD", ""),
            ("HOLDFAST_KAFKA_TOKEN_FILE", token.to_str().context("a path")?),
        ];
        let worker = gate(kit, &kafka.bootstrap(), &login(lock, &by_token)).start().await?;
        passes(kafka, &worker).await.context("a token")?;
        worker.stop().await?;
        let mutual = format!("127.0.0.1:{}", lock.mutual);
        let worker = gate(kit, &mutual, &certificate(lock, "gate")).start().await?;
        passes(kafka, &worker).await.context("a certificate")?;
        worker.stop().await
    })
}

fn a_connection_that_fails_is_named_by_readyz(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let locked = locked(kit).await?;
        let kafka = server(&locked)?;
        let lock = kafka.lock()?;
        let other = kit.stack.certificates().join("other-ca.crt");
        fs::write(&other, Authority::new("another")?.certificate)?;
        let other = other.to_str().context("a path")?;
        let (here, open) = (kafka.bootstrap(), kit.stack.kafka.bootstrap());
        let localhost = here.replace("127.0.0.1", "localhost");
        let expired = format!("127.0.0.1:{}", lock.expired);
        let mutual = format!("127.0.0.1:{}", lock.mutual);
        let v4 = ("HOLDFAST_KAFKA_PROPERTY", "broker.address.family=v4");
        let tls = |replaced: &[(&'static str, &str)]| {
            let off = [
                ("HOLDFAST_KAFKA_SECURITY_PROTOCOL", "SSL"),
                ("HOLDFAST_KAFKA_SASL_MECHANISM", ""),
                ("HOLDFAST_KAFKA_USERNAME", ""),
                ("HOLDFAST_KAFKA_PASSWORD", ""),
            ];
            login(lock, &[&off, replaced].concat())
        };
        done(kit.stack.holdfast("migrate", "locked")).await?;
        let not_believed = "HOLDFAST_KAFKA_CA";
        for (name, bootstrap, settings, expected, mend) in [
            (
                "a wrong authority",
                &here,
                login(lock, &[("HOLDFAST_KAFKA_CA", other)]),
                "certificate verify failed",
                not_believed,
            ),
            (
                "a wrong name",
                &localhost,
                login(lock, &[v4]),
                "certificate verify failed",
                not_believed,
            ),
            (
                "a broker's certificate that has expired",
                &expired,
                tls(&[]),
                "certificate verify failed",
                not_believed,
            ),
            (
                "a certificate of ours that has expired",
                &mutual,
                certificate(lock, "expired"),
                // The broker does not say more.
                "alert certificate",
                "HOLDFAST_KAFKA_CERTIFICATE",
            ),
            (
                "a wrong password",
                &here,
                login(lock, &[("HOLDFAST_KAFKA_PASSWORD", "wrong")]),
                "uthentication failed",
                "HOLDFAST_KAFKA_PASSWORD",
            ),
            (
                "no TLS",
                &here,
                Vec::new(),
                "Disconnected",
                "HOLDFAST_KAFKA_SECURITY_PROTOCOL",
            ),
            (
                "TLS at an open port",
                &open,
                tls(&[]),
                "SSL handshake failed",
                "HOLDFAST_KAFKA_SECURITY_PROTOCOL",
            ),
        ] {
            // The relay says it after its patience with Kafka: one cell shows that it passes on the same words.
            let roles = match name {
                "a wrong password" => &["gate", "relay", "webhook"][..],
                _ => &["gate", "webhook"],
            };
            let each = roles.iter().map(async |role| {
                let launch = kit.stack.holdfast(role, &format!("locked-{role}"));
                let launch = launch.provider(&kit.provider).webhooks();
                let worker = with(launch, bootstrap, &settings).spawn()?;
                let what = format!("{role}: {name}");
                let words = [bootstrap.as_str(), expected, mend];
                waits_for(&worker, &what, |text| words.iter().all(|word| text.contains(word))).await?;
                ensure!(worker.runs(), "{what}: {}", worker.last_words());
                anyhow::Ok(())
            });
            try_join_all(each).await?;
        }
        Ok(())
    })
}

fn a_command_that_cannot_connect_says_why(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        done(kit.stack.holdfast("migrate", "locked")).await?;
        let locked = locked(kit).await?;
        let kafka = server(&locked)?;
        let list = |settings: Vec<(&'static str, String)>| {
            let launch = kit.stack.holdfast("admin", "locked").arg("dead-letters").arg("list");
            let launch = launch.env("HOLDFAST_KAFKA", &kafka.bootstrap());
            settings
                .into_iter()
                .fold(launch, |launch, (name, value)| launch.env(name, &value))
        };
        let lock = kafka.lock()?;
        let wrong = list(login(lock, &[("HOLDFAST_KAFKA_PASSWORD", "wrong")]))
            .output()
            .await?;
        says(&wrong, "uthentication failed")?;
        let nowhere = list(login(lock, &[("HOLDFAST_KAFKA_CA", "/nowhere/ca.crt")]))
            .output()
            .await?;
        ensure!(nowhere.status.code() == Some(2), "{nowhere:?}");
        says(&nowhere, "/nowhere/ca.crt")
    })
}

fn says(output: &Output, expected: &str) -> anyhow::Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains(expected), "{output:?}");
    Ok(())
}

fn a_right_of_the_gate_that_is_withdrawn_is_named_and_waited_for(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let locked = locked(kit).await?;
        let kafka = server(&locked)?;
        let lock = kafka.lock()?;
        let worker = gate(kit, &kafka.bootstrap(), &lock.login("gate")).start().await?;
        passes(kafka, &worker).await?;
        for right in rights("gate")? {
            lock.withdraw(std::slice::from_ref(&right))?;
            let ticket = format!("locked-{}", Uuid::new_v4().simple());
            let needs = needing(&right, &ticket)?;
            kafka.send(needs.0, &[needs.1]).await?;
            let name = format!("{right:?}");
            waits_for(&worker, &name, |text| text.contains("uthorization")).await?;
            lock.grant(std::slice::from_ref(&right))?;
            until("the record has passed", DEADLINE, async || {
                let records = kafka.read(needs.2).await?;
                let key = Some(ticket.as_bytes());
                ensure!(records.iter().any(|record| record.key.as_deref() == key), "not yet");
                Ok(())
            })
            .await
            .with_context(|| format!("{name}\n{}", worker.last_words()))?;
            worker.ready().await.context(name)?;
        }
        worker.stop().await
    })
}

fn a_right_of_the_relay_that_is_missing_is_named_and_waited_for(kit: &Kit) -> anyhow::Result<()> {
    const DATABASE: &str = "locked-relay";
    kit.block_on(async {
        let locked = locked(kit).await?;
        let kafka = server(&locked)?;
        let lock = kafka.lock()?;
        let pool = kit.stack.postgres.copy_database("template1", DATABASE).await?;
        let url = kit.stack.postgres.url_of(DATABASE);
        let migrate = kit
            .stack
            .holdfast("migrate", "locked")
            .env("HOLDFAST_DATABASE_URL", &url);
        done(migrate).await?;
        let launch = || {
            let launch = kit.stack.holdfast("relay", "locked").env("HOLDFAST_DATABASE_URL", &url);
            let launch = launch.env("HOLDFAST_KAFKA", &kafka.bootstrap());
            let login = lock.login("relay").into_iter();
            login.fold(launch, |launch, (name, value)| launch.env(name, &value))
        };
        for right in rights("relay")? {
            let name = format!("{right:?}");
            lock.withdraw(std::slice::from_ref(&right))?;
            let topic = match right.name.as_str() {
                topic @ (topics::PAYMENTS_OUTCOMES | topics::LEDGER_ENTRIES | topics::DEAD_LETTERS) => topic,
                _ => topics::RESERVATIONS_OUTCOMES,
            };
            let key = Uuid::new_v4().to_string();
            insert(&pool, topic, &key, b"value").await?;
            let worker = launch().spawn()?;
            waits_for(&worker, &name, |text| {
                ["uthoriz", "denies"].iter().any(|word| text.contains(word))
            })
            .await?;
            lock.grant(std::slice::from_ref(&right))?;
            until("the row has left", DEADLINE, async || {
                let left: i64 = sqlx::query_scalar("select count(*) from outbox")
                    .fetch_one(&pool)
                    .await?;
                ensure!(left == 0, "{left} rows");
                Ok(())
            })
            .await
            .with_context(|| format!("{name}\n{}", worker.last_words()))?;
            let records = kafka.read(topic).await?;
            let copies = records
                .iter()
                .filter(|record| record.key.as_deref() == Some(key.as_bytes()));
            ensure!(copies.count() == 1, "{name}");
            worker.stop().await?;
        }
        Ok(())
    })
}

fn a_topic_that_register_may_not_create_is_named(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let locked = locked(kit).await?;
        let kafka = server(&locked)?;
        let lock = kafka.lock()?;
        let rights = rights("register")?;
        lock.grant(&rights)?;
        for right in rights.iter().filter(|right| right.operation == "CREATE") {
            lock.withdraw(std::slice::from_ref(right))?;
            kafka.delete_topic(&right.name).await?;
            let launch = kit.stack.holdfast("register", "locked");
            let launch = launch.env("HOLDFAST_KAFKA", &kafka.bootstrap());
            let login = lock.login("register").into_iter();
            let launch = login.fold(launch, |launch, (name, value)| launch.env(name, &value));
            // It ends before it speaks to the engine, which works for another Kafka.
            let refused = launch.output().await?;
            says(&refused, &right.name)?;
            says(&refused, "uthoriz")?;
            kafka.create_topic(&right.name, 1, &[]).await?;
            lock.grant(std::slice::from_ref(right))?;
        }
        Ok(())
    })
}

fn doctor_names_a_topic_that_is_missing_whether_it_would_be_read_or_written(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let locked = locked(kit).await?;
        let kafka = server(&locked)?;
        let lock = kafka.lock()?;
        for (role, what, topic) in [
            ("gate", "reading", topics::RESERVATIONS),
            ("gate", "writing", topics::RESERVATIONS_ADMITTED),
            ("relay", "writing", topics::PAYMENTS_OUTCOMES),
        ] {
            kafka.delete_topic(topic).await?;
            let look = kit
                .stack
                .holdfast(role, "locked")
                .instead("doctor")
                .arg("--role")
                .arg(role);
            let look = with(look.arg("--json"), &kafka.bootstrap(), &lock.login(role));
            let report: Value = serde_json::from_slice(&look.output().await?.stdout)?;
            kafka.create_topic(topic, 1, &[]).await?;
            let checks = report["checks"].as_array().context("no checks")?;
            let missing = |check: &&Value| check["mend"] == "holdfast register creates it";
            let missing: Vec<_> = checks.iter().filter(missing).collect();
            let named = missing
                .iter()
                .filter(|check| check["what"] == format!("{what} {topic}"))
                .count();
            ensure!(named == 1 && missing.len() == 1, "{role}, {topic}: {report:#}");
        }
        Ok(())
    })
}

/// A record whose way needs this right of the gate, its topic, and the topic where it ends.
fn needing(
    right: &Right,
    ticket: &str,
) -> anyhow::Result<(&'static str, holdfast_tests::kit::kafka::Sent, &'static str)> {
    let id = Uuid::new_v4().to_string();
    let request = structured(&requested(&id, ticket, "ann"));
    let mut credits = structured(&crate::support::event(
        &id,
        ticket,
        "user.registered",
        serde_json::json!({ "email": "ann@example.org" }),
    ));
    let no_event = holdfast_tests::kit::kafka::Sent {
        value: Some(b"no event".to_vec()),
        ..request.clone()
    };
    credits.key = Some(ticket.as_bytes().to_vec());
    Ok(match right.name.as_str() {
        topics::PAYMENTS | topics::PAYMENTS_ADMITTED => (topics::PAYMENTS, credits, topics::PAYMENTS_ADMITTED),
        topics::DEAD_LETTERS => (topics::RESERVATIONS, no_event, topics::DEAD_LETTERS),
        _ => (topics::RESERVATIONS, request, topics::RESERVATIONS_ADMITTED),
    })
}
