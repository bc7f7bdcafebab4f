//! `holdfast doctor` on a sound stack, and on one that is broken in one way after another.

use std::process::Output;

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use holdfast_tests::kit::{Kit, Stack};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::set_topic;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    doctor_finds_a_sound_stack_sound_and_changes_nothing,
    doctor_names_what_is_wrong_and_its_mend,
];

fn doctor_finds_a_sound_stack_sound_and_changes_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "doctor").start().await?;
        let before = ends(kit).await?;
        let (code, report) = doctor(kit, &[]).await?;
        let wrong = wrong(&report);
        // Other proofs may have left topics or subscriptions that `register` leaves alone.
        let (differs, registered) = crate::operate::register(kit, &[]).await?;
        let left =
            |check: &Value| registered.contains(&format!("DIFFERS    {}", check["what"].as_str().unwrap_or("?")));
        ensure!(wrong.iter().all(left), "{wrong:#?}\n{registered}");
        ensure!(
            code == Some(i32::from(!wrong.is_empty())) && code == differs,
            "{code:?} {differs:?}"
        );
        let looked_at = checks(&report).len();
        ensure!(looked_at > 25, "only {looked_at} looked at: {report:#}");
        for part in ["kafka", "postgres", "loyalty", "restate", "provider", "mail"] {
            ensure!(checks(&report).iter().any(|check| check["part"] == part), "{part}");
        }
        let after = ends(kit).await?;
        ensure!(before == after, "{before:?} before, {after:?} after");
        let printed = String::from_utf8(output(kit, &[]).await?.stdout)?;
        ensure!(
            printed.ends_with(&format!("{looked_at} looked at, {} wrong\n", wrong.len())),
            "{printed}"
        );
        worker.stop().await
    })
}

/// A way in which a stack is broken: the settings that break it, the part and what is named, and a word of the mend.
type Broken<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str, &'a str);

fn doctor_names_what_is_wrong_and_its_mend(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "doctor").start().await?;
        let left = wrong(&doctor(kit, &[]).await?.1);
        let Stack { postgres, restate, .. } = &kit.stack;
        let admin = PgPool::connect(&postgres.url_of("postgres")).await?;
        for statement in [
            "drop database if exists doctor_latin with (force)",
            "create database doctor_latin template template0 encoding 'LATIN1' locale 'C'",
        ] {
            sqlx::query(statement).execute(&admin).await?;
        }
        let empty = postgres.copy_database("template1", "doctor_empty").await?;
        empty.close().await;
        let stranger = postgres.url().replace("postgres@", "stranger@");
        let database = postgres.connect().await?;
        for statement in [
            "drop owned by doctor_reads",
            "drop role if exists doctor_reads",
            "create role doctor_reads login",
            "grant select on _sqlx_migrations, oldest_reader to doctor_reads",
        ] {
            let done = sqlx::query(statement).execute(&database).await;
            ensure!(done.is_ok() || statement.starts_with("drop"), "{statement}: {done:?}");
        }
        database.close().await;
        let reads = postgres.url().replace("postgres@", "doctor_reads@");
        let tls = format!("{}?sslmode=require", postgres.url());
        let (latin, empty) = (postgres.url_of("doctor_latin"), postgres.url_of("doctor_empty"));
        let nowhere = postgres.url_of("doctor_nowhere");
        // Restate's way to Kafka is another one.
        let bootstrap = kit.stack.kafka.bootstrap();
        let engines = ("HOLDFAST_RESTATE_KAFKA", bootstrap.as_str());
        let broken: &[Broken<'_>] = &[
            (
                &[("HOLDFAST_KAFKA", "127.0.0.1:1"), engines],
                "kafka",
                "the brokers",
                "start it",
            ),
            (
                &[
                    ("HOLDFAST_KAFKA", "nowhere.invalid:9092"),
                    ("HOLDFAST_INSECURE", "kafka"),
                    engines,
                ],
                "kafka",
                "the brokers",
                "check the name",
            ),
            (
                &[("HOLDFAST_TOPIC_RETENTION", "3d")],
                "kafka",
                "topic payments",
                "kafka-configs.sh",
            ),
            (
                &[("HOLDFAST_PARTITIONS", "9")],
                "kafka",
                "topic reservations",
                "not given more",
            ),
            (
                &[("HOLDFAST_GATE_GROUP", "doctor.new")],
                "kafka",
                "offsets of the group",
                "holdfast register",
            ),
            (
                &[("HOLDFAST_DATABASE_URL", "postgres://postgres@127.0.0.1:1/x")],
                "postgres",
                "the database",
                "start it",
            ),
            (
                &[("HOLDFAST_DATABASE_URL", &stranger)],
                "postgres",
                "the database",
                "set user and password",
            ),
            (
                &[("HOLDFAST_DATABASE_URL", &nowhere)],
                "postgres",
                "the database",
                "create the database",
            ),
            (
                &[("HOLDFAST_DATABASE_URL", &tls)],
                "postgres",
                "the database",
                "sslmode",
            ),
            (
                &[("HOLDFAST_DATABASE_URL", &latin)],
                "postgres",
                "the database",
                "mend what it says",
            ),
            (
                &[("HOLDFAST_DATABASE_URL", &empty)],
                "postgres",
                "the tables",
                "holdfast migrate",
            ),
            (
                &[("HOLDFAST_DATABASE_URL", &reads)],
                "postgres",
                "the rights of app",
                "migrate --grants",
            ),
            (
                &[("HOLDFAST_LOYALTY_URL", &nowhere)],
                "loyalty",
                "the database",
                "create the database",
            ),
            (
                &[("HOLDFAST_RESTATE_ADMIN", "http://127.0.0.1:1")],
                "restate",
                "the admin API",
                "start it",
            ),
            (
                &[("HOLDFAST_RESTATE_INGRESS", "http://127.0.0.1:1")],
                "restate",
                "the ingress",
                "start it",
            ),
            (
                &[("HOLDFAST_SERVE_URL", "http://127.0.0.1:1")],
                "restate",
                "the handlers",
                "start `holdfast serve`",
            ),
            (
                &[("HOLDFAST_PROVIDER_KEY", "sk_wrong")],
                "provider",
                "the provider",
                "HOLDFAST_PROVIDER_KEY",
            ),
            (
                &[("HOLDFAST_PROVIDER_URL", "http://127.0.0.1:1")],
                "provider",
                "the provider",
                "HOLDFAST_PROVIDER_URL",
            ),
            (
                &[("HOLDFAST_SMTP_URL", "smtp://127.0.0.1:1")],
                "mail",
                "the mail server",
                "HOLDFAST_SMTP_URL",
            ),
        ];
        let looks = stream::iter(broken.iter().map(|broken| named(kit, &left, broken)));
        // Most of them wait for servers that are not there.
        looks.buffer_unordered(6).try_collect::<()>().await?;
        broken_in_kafka_and_restate(kit, &left, &restate.admin()).await?;
        worker.stop().await
    })
}

/// What no setting breaks.
async fn broken_in_kafka_and_restate(kit: &Kit, left: &[Value], admin: &str) -> anyhow::Result<()> {
    let kept = "1209600000";
    set_topic(kit, "dead-letters", "retention.ms", "60000").await?;
    let named_topic = named(
        kit,
        left,
        &(&[], "kafka", "topic dead-letters", "retention.ms=1209600000"),
    )
    .await;
    set_topic(kit, "dead-letters", "retention.ms", kept).await?;
    named_topic?;

    let http = reqwest::Client::new();
    let url = format!("{admin}/subscriptions");
    let known: Value = http.get(&url).send().await?.error_for_status()?.json().await?;
    let one = &known["subscriptions"][0];
    let options = json!({ "group.id": "doctor.double", "auto.offset.reset": "latest" });
    let double = json!({ "source": one["source"], "sink": one["sink"], "options": options });
    let made = http.post(&url).json(&double).send().await?.error_for_status()?;
    let made: Value = made.json().await?;
    let named_double = named(kit, left, &(&[], "restate", "subscription of", "deletes all but one")).await;
    let id = made["id"].as_str().context("no id")?;
    http.delete(format!("{url}/{id}")).send().await?.error_for_status()?;
    named_double
}

async fn named(kit: &Kit, left: &[Value], (settings, part, what, mend): &Broken<'_>) -> anyhow::Result<()> {
    let (code, report) = doctor(kit, settings).await?;
    let wrong = wrong(&report);
    let is_named = wrong.iter().any(|check| {
        let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
        check["part"] == *part && text("what").starts_with(what) && text("mend").contains(mend)
    });
    ensure!(
        code == Some(1) && is_named,
        "{settings:?} ({code:?}): {part}, {what}, {mend} not in {wrong:#?}"
    );
    // What does not depend on it is looked at all the same.
    let others = wrong
        .iter()
        .filter(|check| check["part"] != *part && !left.contains(check))
        .count();
    ensure!(others == 0, "{settings:?}: more is wrong than is broken: {wrong:#?}");
    Ok(())
}

async fn doctor(kit: &Kit, settings: &[(&str, &str)]) -> anyhow::Result<(Option<i32>, Value)> {
    let ended = output(kit, &[settings, &[("", "--json")]].concat()).await?;
    let report = serde_json::from_slice(&ended.stdout)
        .with_context(|| format!("{settings:?}: {}", String::from_utf8_lossy(&ended.stderr)))?;
    Ok((ended.status.code(), report))
}

/// Runs it with these settings; one without a name is an argument.
async fn output(kit: &Kit, settings: &[(&str, &str)]) -> anyhow::Result<Output> {
    let doctor = kit.stack.holdfast("doctor", "doctor-looks").provider(&kit.provider);
    let doctor = settings.iter().fold(doctor, |doctor, (name, value)| match *name {
        "" => doctor.arg(value),
        name => doctor.env(name, value),
    });
    doctor.output().await
}

fn checks(report: &Value) -> Vec<&Value> {
    report["checks"].as_array().into_iter().flatten().collect()
}

fn wrong(report: &Value) -> Vec<Value> {
    let wrong = checks(report).into_iter().filter(|check| check["diagnosis"] == "wrong");
    wrong.cloned().collect()
}

/// How many records each topic that doctor may touch has.
async fn ends(kit: &Kit) -> anyhow::Result<Vec<usize>> {
    let mut ends = Vec::new();
    for topic in [
        "reservations",
        "payments",
        "reservations.admitted",
        "payments.admitted",
        "dead-letters",
        "relay.mark",
    ] {
        ends.push(kit.stack.kafka.read(topic).await?.len());
    }
    Ok(ends)
}
