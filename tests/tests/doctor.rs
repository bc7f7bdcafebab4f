//! `holdfast doctor` on a sound stack, and on one that is broken in one way after another.

use std::fs;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use holdfast_schemas::topics;
use holdfast_tests::kit::process::lock;
use holdfast_tests::kit::prometheus::RuleTimes;
use holdfast_tests::kit::{Holdfast, Kit, Prometheus, Server, Stack, http, until};
use http_body_util::Full;
use hyper::Response;
use hyper::header::CONTENT_TYPE;
use restate_sdk::prelude::*;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;

use crate::support::{DEADLINE, listed, requested, send, set_topic, told};
use crate::workers::done;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    doctor_finds_a_sound_stack_sound_and_changes_nothing,
    doctor_names_what_is_wrong_and_its_mend,
    doctor_names_what_stands_still_and_since_when,
    doctor_names_the_disks_that_are_full_or_will_be_and_since_when,
];

fn doctor_finds_a_sound_stack_sound_and_changes_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "doctor").start().await?;
        let before = ends(kit).await?;
        let (code, report) = doctor(kit, &[]).await?;
        let wrong = lasting(&report);
        // Other proofs may have left topics or subscriptions that `register` leaves alone.
        let (differs, registered) = crate::operate::register(kit, &[]).await?;
        let left =
            |check: &Value| registered.contains(&format!("DIFFERS    {}", check["what"].as_str().unwrap_or("?")));
        ensure!(wrong.iter().all(left), "{wrong:#?}\n{registered}");
        let all = self::wrong(&report).len();
        ensure!(
            code == Some(i32::from(all > 0)) && differs == Some(i32::from(!wrong.is_empty())),
            "{code:?} {differs:?}"
        );
        let looked_at = checks(&report).len();
        ensure!(looked_at > 25, "only {looked_at} looked at: {report:#}");
        for part in ["kafka", "postgres", "loyalty", "restate", "provider", "mail", "disks"] {
            ensure!(checks(&report).iter().any(|check| check["part"] == part), "{part}");
        }
        let after = ends(kit).await?;
        ensure!(before == after, "{before:?} before, {after:?} after");
        let printed = String::from_utf8(output(kit, &[]).await?.stdout)?;
        ensure!(
            printed.ends_with(&format!("{looked_at} looked at, {all} wrong\n")),
            "{printed}"
        );
        let (_, some) = doctor(kit, &[("", "--only"), ("", "mail,provider")]).await?;
        let parts: Vec<_> = checks(&some).iter().map(|check| check["part"].clone()).collect();
        ensure!(parts == ["provider", "mail"], "{parts:?}");
        worker.stop().await
    })
}

/// A way in which a stack is broken: the settings that break it, the part and what is named, and a word of the mend.
type Broken<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str, &'a str);

fn doctor_names_what_is_wrong_and_its_mend(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "doctor").start().await?;
        let left = &wrong(&doctor(kit, &[]).await?.1)[..];
        let postgres = &kit.stack.postgres;
        let admin = PgPool::connect(&postgres.url_of("postgres")).await?;
        for statement in [
            "drop database if exists doctor_latin with (force)",
            "create database doctor_latin template template0 encoding 'LATIN1' locale 'C'",
        ] {
            sqlx::query(statement).execute(&admin).await?;
        }
        let empty = postgres.copy_database("template1", "doctor_empty").await?;
        empty.close().await;
        let unfinished = unfinished_index(kit).await?;
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
                &[("HOLDFAST_DATABASE_URL", &unfinished)],
                "postgres",
                "the indexes",
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
        let looks = stream::iter(broken.iter().map(|(settings, part, what, mend)| {
            let fault = [(*part, *what, *mend)];
            async move { named(kit, left, settings, &fault).await }
        }));
        // Most of them wait for servers that are not there.
        looks.buffer_unordered(6).try_collect::<()>().await?;
        broken_in_the_servers(kit, &worker, left).await?;
        worker.stop().await
    })
}

fn doctor_names_what_stands_still_and_since_when(kit: &Kit) -> anyhow::Result<()> {
    const NAME: &str = "doctor_standing";
    const SLOT: &str = "doctor_standing";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "doctor").start().await?;
        // Each is a batch of the relay's.
        for number in 1..=3 {
            let id = format!("doctor/batch/{number}");
            send(kit, &[listed(&id, &id)]).await?;
            told(kit, &id, 1).await?;
        }
        let database = kit.stack.postgres.copy_database("template1", NAME).await?;
        let url = kit.stack.postgres.url_of(NAME);
        done(kit.stack.holdfast("migrate", "doctor").env("HOLDFAST_DATABASE_URL", &url)).await?;
        let settings = [("HOLDFAST_DATABASE_URL", url.as_str()), ("", "--long-open"), ("", "1ms")];
        let postgres = |report: &Value| {
            let wrong = wrong(report).into_iter().filter(|check| check["part"] == "postgres");
            wrong.collect::<Vec<_>>()
        };
        let (_, sound) = doctor(kit, &settings).await?;
        ensure!(postgres(&sound).is_empty(), "{sound:#}");

        sqlx::raw_sql(
            "insert into outbox (topic, key, message, headers, value, written_at, refused) values
                 ('reservations.outcomes', 'doctor/1', gen_random_uuid(), '{}', '', '2026-01-01 01:00Z', 'too large'),
                 ('reservations.outcomes', 'doctor/1', gen_random_uuid(), '{}', '', '2026-01-01 02:00Z', null),
                 ('reservations.outcomes', 'doctor/2', gen_random_uuid(), '{}', '', '2026-01-01 03:00Z', null);
             insert into quarantined_keys (topic, key, cause, kind, error, since) values
                 ('reservations', 'doctor/3', 'data', 'kind', 'error', '2026-01-01 04:00Z'),
                 ('payments', 'doctor/3', 'data', 'kind', 'error', '2026-01-01 05:00Z');
             insert into checkouts (checkout, user_id, hash, state, total_amount, total_currency, until, stuck_at) values
                 ('doctor/4', 'ann', '', 'authorised', 100, 'EUR', '2026-01-01Z', '2026-01-01 06:00Z');
             insert into tickets (ticket, version, show, price_amount, price_currency, status, hold, holder, held_until, changed_at) values
                 ('doctor/3', 1, 'show', 100, 'EUR', 'held', gen_random_uuid(), 'ann', '2026-01-01 00:30Z', '2026-01-01Z'),
                 ('doctor/5', 1, 'show', 100, 'EUR', 'held', gen_random_uuid(), 'ann', '2026-01-01 07:00Z', '2026-01-01Z');
             insert into mails (checkout, place, user_id, kind, state, written_at) values
                 ('doctor/6', 'completed', 'ann', 'completed', 'waiting', '2026-01-01 08:00Z');
             select pg_create_physical_replication_slot('doctor_standing')",
        )
        .execute(&database)
        .await?;
        let open = database.begin().await?;
        let looked = doctor(kit, &settings).await;
        open.rollback().await?;
        sqlx::query("select pg_drop_replication_slot($1)").bind(SLOT).execute(&database).await?;
        database.close().await;
        let (code, report) = looked?;
        ensure!(code == Some(1), "{code:?}");
        let found: Vec<_> = postgres(&report)
            .iter()
            .map(|check| {
                let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
                (text("what"), text("how"), text("since"))
            })
            .collect();
        let (open, found): (Vec<_>, Vec<_>) = found.into_iter().partition(|(what, ..)| what.starts_with("transactions"));
        let is_ours = |(_, how, since): &(String, String, String)| how.starts_with("1: postgres (pid ") && !since.is_empty();
        ensure!(open.len() == 1 && open.iter().all(is_ours), "{open:?}");
        let expected = [
            ("outcomes that Kafka refused", "1", "2026-01-01T01:00:00Z"),
            ("outcomes that wait for the relay for more than a minute", "1", "2026-01-01T03:00:00Z"),
            ("tickets and users in quarantine", "2", "2026-01-01T04:00:00Z"),
            ("checkouts that are stuck", "1", "2026-01-01T06:00:00Z"),
            ("holds that were due more than a minute ago", "1", "2026-01-01T07:00:00Z"),
            ("mails that wait for more than ten minutes", "1", "2026-01-01T08:00:00Z"),
            ("replication slots that nobody reads", "1: doctor_standing", ""),
        ];
        let expected = expected.map(|(what, how, since)| (what.to_owned(), how.to_owned(), since.to_owned()));
        ensure!(found == expected, "{found:#?}");
        // A database that is behind Kafka by more than a batch.
        let mark = wrong(&report).into_iter().find(|check| check["what"] == "the relay's mark");
        let mark = mark.context("the relay's mark is sound")?;
        ensure!(mark["page"] == "the-database-went-back-in-time", "{mark}");

        stuck_invocation(kit).await?;
        worker.stop().await
    })
}

fn doctor_names_the_disks_that_are_full_or_will_be_and_since_when(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let prometheus = Prometheus::start(&kit.stack, &[], RuleTimes::AsShipped).await?;
        let looked = while_disks_fill_up(kit, &prometheus).await;
        prometheus.stop().await?;
        looked?;
        let gone = disks(kit, &prometheus).await?;
        let address = prometheus.url();
        ensure!(
            gone.len() == 1
                && gone[0].what.contains(&address)
                && gone[0].how.contains(address.trim_start_matches("http://"))
                && gone[0].mend.contains("HOLDFAST_PROMETHEUS"),
            "{gone:?}"
        );
        Ok(())
    })
}

async fn while_disks_fill_up(kit: &Kit, prometheus: &Server<Prometheus>) -> anyhow::Result<()> {
    let nobody = disks(kit, prometheus).await?;
    ensure!(
        nobody.len() == 1 && nobody[0].mend.contains("node_exporter"),
        "{nobody:?}"
    );
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let (free, scrapes) = (Arc::new(AtomicU64::new(50)), Arc::new(AtomicU64::default()));
    let of = free.clone();
    let serving = tokio::spawn(http::serve(listener, move |_| {
        let text = exported(of.load(Ordering::Relaxed), scrapes.fetch_add(1, Ordering::Relaxed));
        let answer = Response::builder().header(CONTENT_TYPE, "text/plain; version=0.0.4");
        async move { answer.body(Full::new(Bytes::from(text))) }
    }));
    let target = json!([{ "targets": [address.to_string()] }]);
    fs::write(prometheus.targets().join("disks.json"), target.to_string())?;
    let seen = async {
        until(
            "Prometheus has seen at a full half minute that all was well",
            DEADLINE,
            async || {
                let seen =
                    prometheus.query(r#"last_over_time(node_filesystem_avail_bytes{mountpoint="/kafka"}[1h:30s])"#);
                ensure!(!seen.await?.is_empty(), "it has not");
                anyhow::Ok(())
            },
        )
        .await?;
        free.store(4, Ordering::Relaxed);
        until("doctor names the disks", DEADLINE, async || {
            let found = disks(kit, prometheus).await?;
            let short: Vec<_> = found
                .iter()
                .map(|disk| (disk.what.as_str(), disk.how.as_str()))
                .collect();
            let place = |mountpoint: &str| format!("/{mountpoint} on {address}");
            let (kafka, postgres, restate) = (place("kafka"), place("postgres"), place("restate"));
            let ([(first, full), (second, filling), third, fourth], [disk, soon, ..]) = (&short[..], &found[..]) else {
                bail!("{found:?}");
            };
            ensure!((*first, *full) == (kafka.as_str(), "4.0 % free"), "{found:?}");
            ensure!(
                *second == postgres && filling.contains("full within a day"),
                "{found:?}"
            );
            ensure!(*third == (restate.as_str(), "60.0 % free"), "{found:?}");
            ensure!(*fourth == ("the volume data-0 of shop", "7.0 % free"), "{found:?}");
            ensure!(disk.since.is_some() && soon.since.is_none(), "{found:?}");
            let is_mended = disk.mend.contains("before it is full") && disk.page.as_deref() == Some("a-disk-fills-up");
            ensure!(is_mended && soon.page == disk.page, "{found:?}");
            let verdicts: Vec<_> = found.iter().map(|disk| disk.is_wrong).collect();
            ensure!(verdicts == [true, true, false, true], "{found:?}");
            anyhow::Ok(())
        })
        .await
    };
    let seen = seen.await;
    serving.abort();
    seen
}

/// What node_exporter and a kubelet export: a disk that this test cannot fill, of which so many percent are free; one that loses ten
/// megabytes with each scrape; one and a volume that stay as they are; and what nobody has to watch.
fn exported(kafka: u64, scrapes: u64) -> String {
    let disk = |mountpoint: &str, kind: &str, is_readonly: u8, free: u64| {
        let labels = format!(r#"{{device="/dev/{mountpoint}",fstype="{kind}",mountpoint="/{mountpoint}"}}"#);
        format!(
            "node_filesystem_avail_bytes{labels} {free}\n\
             node_filesystem_size_bytes{labels} 100000000000\n\
             node_filesystem_readonly{labels} {is_readonly}\n"
        )
    };
    let volume = r#"{namespace="shop",persistentvolumeclaim="data-0"}"#;
    [
        disk("kafka", "ext4", 0, kafka * 1_000_000_000),
        disk("postgres", "xfs", 0, 30_000_000_000 - scrapes.min(1_000) * 10_000_000),
        disk("restate", "ext4", 0, 60_000_000_000),
        disk("run", "tmpfs", 0, 0),
        disk("cdrom", "iso9660", 1, 0),
        format!("kubelet_volume_stats_available_bytes{volume} 7e9\nkubelet_volume_stats_capacity_bytes{volume} 1e11\n"),
    ]
    .concat()
}

/// A check of doctor's about a disk, or about who knows of them.
#[derive(Debug)]
struct Disk {
    what: String,
    how: String,
    mend: String,
    since: Option<String>,
    page: Option<String>,
    is_wrong: bool,
}

/// What doctor says of disks alone; it ends with 1 if something is wrong.
async fn disks(kit: &Kit, prometheus: &Prometheus) -> anyhow::Result<Vec<Disk>> {
    let address = prometheus.url();
    let settings = [("HOLDFAST_PROMETHEUS", address.as_str()), ("", "--only"), ("", "disks")];
    let (code, report) = doctor(kit, &settings).await?;
    let text = |check: &Value, field: &str| check[field].as_str().map(str::to_owned);
    let found: Vec<_> = checks(&report)
        .into_iter()
        .map(|check| Disk {
            what: text(check, "what").unwrap_or_default(),
            how: text(check, "how").or(text(check, "is")).unwrap_or_default(),
            mend: text(check, "mend").unwrap_or_default(),
            since: text(check, "since"),
            page: text(check, "page"),
            is_wrong: check["diagnosis"] == "wrong",
        })
        .collect();
    let all_are_disks = checks(&report).iter().all(|check| check["part"] == "disks");
    let is_wrong = found.iter().any(|disk| disk.is_wrong);
    ensure!(
        all_are_disks && code == Some(i32::from(is_wrong)),
        "{code:?}: {report:#}"
    );
    Ok(found)
}

/// A row that this release cannot read: the event that meets it is retried, and named.
async fn stuck_invocation(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "doctor/stuck";
    let pool = kit.stack.postgres.connect().await?;
    let currency = async |code: &'static str| {
        let change = sqlx::query("update tickets set price_currency = $2 where ticket = $1")
            .bind(TICKET)
            .bind(code);
        change.execute(&pool).await
    };
    send(kit, &[listed("doctor/stuck/1", TICKET)]).await?;
    told(kit, TICKET, 1).await?;
    currency("ZZZ").await?;
    send(kit, &[requested("doctor/stuck/2", TICKET, "ann")]).await?;
    let named = until("doctor names the invocation", DEADLINE, async || {
        let (code, report) = doctor(kit, &[("", "--only"), ("", "restate")]).await?;
        let wrong = wrong(&report);
        let named = wrong
            .iter()
            .find(|check| check["how"].as_str().is_some_and(|how| how.contains(TICKET)));
        let named = named.with_context(|| format!("{wrong:#?}"))?;
        ensure!(code == Some(1) && named["since"].is_string(), "{code:?} {named}");
        anyhow::Ok(())
    });
    let named = named.await;
    currency("EUR").await?;
    pool.close().await;
    named?;
    told(kit, TICKET, 2).await.map(drop)
}

/// A database with every table, and an index whose build has failed.
async fn unfinished_index(kit: &Kit) -> anyhow::Result<String> {
    const NAME: &str = "doctor_index";
    let database = kit.stack.postgres.copy_database("template1", NAME).await?;
    let url = kit.stack.postgres.url_of(NAME);
    let migrate = kit.stack.holdfast("migrate", "doctor");
    done(migrate.env("HOLDFAST_DATABASE_URL", &url)).await?;
    // Each of them has succeeded: no two may.
    let build = "create unique index concurrently doctor_unfinished on _sqlx_migrations (success)";
    let built = sqlx::query(build).execute(&database).await;
    ensure!(built.is_err(), "{built:?}");
    database.close().await;
    Ok(url)
}

/// What no setting breaks: all of it at once, since one fault hides no other. The worker that runs says of the loyalty database
/// that its credits wait, and does everything else.
async fn broken_in_the_servers(kit: &Kit, worker: &Holdfast, left: &[Value]) -> anyhow::Result<()> {
    let Stack { postgres, restate, .. } = &kit.stack;
    let (admin, http) = (restate.admin(), restate.client());
    let kept = "1209600000";
    set_topic(kit, topics::DEAD_LETTERS, "retention.ms", "60000").await?;
    *lock(&restate.attempts) = Some(1_000_000);
    let owner = postgres.connect().await?;
    let set = "alter system set max_prepared_transactions = 0";
    sqlx::query(set).execute(&owner).await?;
    tokio::try_join!(postgres.restart(), restate.restart())?;
    let subscriptions = format!("{admin}/subscriptions");
    let known: Value = http
        .get(&subscriptions)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    let one = &known["subscriptions"][0];
    let options = json!({ "group.id": "doctor.double", "auto.offset.reset": "latest" });
    let double = json!({ "source": one["source"], "sink": one["sink"], "options": options });
    let double = http
        .post(&subscriptions)
        .json(&double)
        .send()
        .await?
        .error_for_status()?;
    let double: Value = double.json().await?;
    // A release whose handlers anybody may call.
    let listener = TcpListener::bind(("127.0.0.1", kit.stack.ports.get("exposed")?)).await?;
    let exposed = json!({ "uri": format!("http://{}", listener.local_addr()?), "force": true, "breaking": true });
    let endpoint = HttpServer::new(Endpoint::builder().bind(Exposed).build());
    let serving = tokio::spawn(endpoint.serve_with_cancel(listener, std::future::pending::<()>()));
    let deployments = format!("{admin}/deployments");
    let exposed = http
        .post(&deployments)
        .json(&exposed)
        .send()
        .await?
        .error_for_status()?;
    let exposed: Value = exposed.json().await?;

    let looked = named(
        kit,
        left,
        &[],
        &[
            ("kafka", "topic dead-letters", "retention.ms=1209600000"),
            ("loyalty", "max_prepared_transactions", "restart that server"),
            ("restate", "subscription of", "deletes all but one"),
            ("restate", "Restate's retries", "max-attempts = \"unlimited\""),
            ("restate", "Restate's ingress", "let nobody change the services by hand"),
        ],
    )
    .await;
    let waits = until("readyz names the loyalty database", DEADLINE, async || {
        let (status, said) = worker.readyz().await?;
        ensure!(
            status == 503 && said.contains("max_prepared_transactions"),
            "{status}: {said}"
        );
        Ok(())
    })
    .await;
    set_topic(kit, topics::DEAD_LETTERS, "retention.ms", kept).await?;
    *lock(&restate.attempts) = None;
    let reset = "alter system reset max_prepared_transactions";
    sqlx::query(reset).execute(&owner).await?;
    owner.close().await;
    let id = double["id"].as_str().context("no id")?;
    let forget = http.delete(format!("{subscriptions}/{id}"));
    forget.send().await?.error_for_status()?;
    tokio::try_join!(postgres.restart(), restate.restart())?;
    serving.abort();
    looked?;
    waits?;
    worker.ready().await?;
    // To register the handlers as they are is the mend.
    let (differs, said) = crate::operate::register(kit, &[]).await?;
    ensure!(!said.contains("Restate's ingress"), "{differs:?}: {said}");
    let id = exposed["id"].as_str().context("no id")?;
    let forget = http.delete(format!("{deployments}/{id}?force=true"));
    forget.send().await?.error_for_status()?;
    Ok(())
}

/// The Reaper, open to everybody.
struct Exposed;

#[restate_sdk::object(name = "Reaper")]
impl Exposed {
    #[handler]
    async fn turn(&self, _ctx: ObjectContext<'_>, _body: Bytes) -> HandlerResult<()> {
        Ok(())
    }

    #[handler]
    async fn arm(&self, _ctx: ObjectContext<'_>, _body: Bytes) -> HandlerResult<()> {
        Ok(())
    }
}

/// With these settings doctor names each of these: the part, what is wrong, and a word of the mend.
async fn named(
    kit: &Kit,
    left: &[Value],
    settings: &[(&str, &str)],
    faults: &[(&str, &str, &str)],
) -> anyhow::Result<()> {
    let (code, report) = doctor(kit, settings).await?;
    let wrong = wrong(&report);
    for (part, what, mend) in faults {
        let is_named = wrong.iter().any(|check| {
            let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
            check["part"] == *part && text("what").starts_with(what) && text("mend").contains(mend)
        });
        ensure!(
            code == Some(1) && is_named,
            "{settings:?} ({code:?}): {part}, {what}, {mend} not in {wrong:#?}"
        );
    }
    // What does not depend on it is looked at all the same.
    let is_expected = |check: &&Value| {
        // Another database than the relay's does not agree with Kafka.
        let of_database = check["what"] == "the relay's mark";
        of_database
            || faults.iter().any(|(part, ..)| check["part"] == *part)
            || left.contains(check)
            || !check["since"].is_null()
    };
    let others: Vec<_> = wrong.iter().filter(|check| !is_expected(check)).collect();
    ensure!(
        others.is_empty(),
        "{settings:?}: more is wrong than is broken: {others:#?}"
    );
    Ok(())
}

pub(crate) async fn doctor(kit: &Kit, settings: &[(&str, &str)]) -> anyhow::Result<(Option<i32>, Value)> {
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

/// What is wrong without what stands still: that other proofs may have left.
fn lasting(report: &Value) -> Vec<Value> {
    let mut wrong = wrong(report);
    wrong.retain(|check| check["since"].is_null());
    wrong
}

pub(crate) fn wrong(report: &Value) -> Vec<Value> {
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
