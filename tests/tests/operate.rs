//! The view of operators and callers: settings, readiness, metrics, draining, back-pressure, and requests without events.

use std::cell::RefCell;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Output;

use anyhow::{Context, ensure};
use holdfast_schemas::{Outcome, TicketOutcome, outcomes, topics};
use holdfast_tests::kit::worker::{Launch, binary};
use holdfast_tests::kit::{Holdfast, Kit, until};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::{Value, json};

use crate::admin::by;
use crate::doctor::{doctor, wrong};
use crate::support::{DEADLINE, clean, event, listed, outcomes, requested, send, set_topic, told, verdicts};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_wrong_setting_is_named_with_its_mend_before_any_socket_opens,
    a_missing_server_is_named_with_its_address_and_no_password,
    every_stage_shows_in_the_metrics,
    sigterm_drains_and_loses_nothing,
    register_repeats_itself_and_says_what_differs,
    a_full_engine_holds_the_gate_back,
    a_hold_expires_without_any_event_and_over_a_restart,
    a_request_by_http_is_decided_as_an_event_is,
    offsets_that_were_lost_stop_the_gate_and_are_told_by_register,
    a_log_that_cannot_be_written_ends_no_worker,
    a_file_that_does_not_open_holds_up_no_end,
];

fn a_wrong_setting_is_named_with_its_mend_before_any_socket_opens(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        // A listener that notices a process that connects or listens too early.
        let taken = TcpListener::bind("127.0.0.1:0")?;
        taken.set_nonblocking(true)?;
        let address = taken.local_addr()?.to_string();
        let run = |settings: &[(&str, &str)]| {
            let run = kit.stack.holdfast("run", "operate-wrong");
            let run = ["HOLDFAST_HTTP_LISTEN", "HOLDFAST_SERVE_LISTEN", "HOLDFAST_KAFKA"]
                .into_iter()
                .fold(run, |run, name| run.env(name, &address));
            let run = run.env("HOLDFAST_RESTATE_ADMIN", &format!("http://{address}"));
            let run = run.env(
                "HOLDFAST_DATABASE_URL",
                &format!("postgres://ann:s3cret@{address}/holdfast"),
            );
            settings
                .iter()
                .fold(run, |run, (name, value)| run.env(name, value))
                .output()
        };

        let together = [
            (
                "HOLDFAST_PARTITIONS",
                "0",
                "--partitions (HOLDFAST_PARTITIONS): give 1 to 1000",
            ),
            ("HOLDFAST_KAFKA", "nowhere", "--kafka (HOLDFAST_KAFKA): give host:port"),
            (
                "HOLDFAST_DATABASE_URL",
                "mysql://ann:s3cret@db/x",
                "--database-url (HOLDFAST_DATABASE_URL): give postgres://",
            ),
            (
                "HOLDFAST_GATE_WINDOW_RECORDS",
                "0",
                "--gate-window-records (HOLDFAST_GATE_WINDOW_RECORDS): give 1",
            ),
            (
                "HOLDFAST_IDEMPOTENCY_RETENTION",
                "3s",
                "--idempotency-retention (HOLDFAST_IDEMPOTENCY_RETENTION): give at least 1m",
            ),
            (
                "HOLDFAST_CREDITS_ABANDONED_AFTER",
                "0s",
                "--credits-abandoned-after (HOLDFAST_CREDITS_ABANDONED_AFTER): give at least 1s",
            ),
            (
                "HOLDFAST_STUCK_AFTER",
                "2d",
                "--stuck-after (HOLDFAST_STUCK_AFTER): give at most 12h",
            ),
            (
                "HOLDFAST_LOG_FILTER",
                "=!",
                "--log-filter (HOLDFAST_LOG_FILTER): give directives",
            ),
        ];
        let settings: Vec<_> = together.iter().map(|(name, value, _)| (*name, *value)).collect();
        let complaint = refused(&run(&settings).await?)?;
        for (_, _, said) in together {
            ensure!(complaint.contains(said), "no {said:?} in {complaint}");
        }

        for (name, value, flag) in [
            ("HOLDFAST_POOL_SIZE", "many", "--pool-size"),
            ("HOLDFAST_DRAIN_TIMEOUT", "soon", "--drain-timeout"),
            ("HOLDFAST_SERVE_LISTEN", "nowhere", "--serve-listen"),
            ("HOLDFAST_LOG_FORMAT", "xml", "--log-format"),
            ("HOLDFAST_RESTATE_ADMIN", "no address", "--restate-admin"),
            (
                "HOLDFAST_DATABASE_URL",
                "postgres://ann:s3cret@db:none/x",
                "--database-url",
            ),
            (
                "HOLDFAST_RESTATE_INGRESS",
                "http://ann:s3cret@restate",
                "--restate-ingress",
            ),
        ] {
            let complaint = refused(&run(&[(name, value)]).await?)?;
            ensure!(
                complaint.contains(flag) && complaint.contains(name),
                "no {flag} and {name} in {complaint}"
            );
        }
        ensure!(taken.accept().is_err(), "somebody connected to {address}");
        Ok(())
    })
}

/// The error of a start that was refused for its settings.
fn refused(output: &Output) -> anyhow::Result<String> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2), "{}: {said}", output.status);
    ensure!(!said.contains("s3cret") && !said.contains("cannot listen"), "{said}");
    Ok(said)
}

fn a_missing_server_is_named_with_its_address_and_no_password(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let nobody = format!("127.0.0.1:{}", kit.stack.ports.get("nobody")?);
        let url = format!("postgres://postgres:s3cret@{}/holdfast", kit.stack.postgres.address());
        let missing = [
            (
                "postgres",
                "HOLDFAST_DATABASE_URL",
                format!("postgres://postgres:s3cret@{nobody}/holdfast"),
            ),
            ("kafka", "HOLDFAST_KAFKA", nobody.clone()),
            ("restate", "HOLDFAST_RESTATE_ADMIN", format!("http://{nobody}")),
        ];
        for (server, variable, address) in missing {
            let instance = format!("operate-missing-{server}");
            let worker = kit
                .stack
                .holdfast("run", &instance)
                .env("HOLDFAST_DATABASE_URL", &url)
                .env(variable, &address);
            let worker = worker.env("HOLDFAST_LOG_FILTER", "debug").spawn()?;
            let log = || std::fs::read_to_string(kit.stack.folder().join(format!("holdfast-{instance}.log")));
            until("the missing server is named", DEADLINE, async || {
                let log = log()?;
                let named = log.lines().any(|line| line.contains("WARN") && line.contains(&nobody));
                ensure!(named, "{log}");
                Ok(())
            })
            .await?;
            let (live, _) = get(&format!("{}/livez", worker.http)).await?;
            let (ready, waiting) = get(&format!("{}/readyz", worker.http)).await?;
            ensure!(live == 200 && ready == 503, "alive: {live}, ready: {ready}: {waiting}");
            ensure!(waiting.contains("waiting for: "), "{waiting}");
            let ask = |what: &[&str]| {
                let ask = kit.stack.holdfast("run", &instance).instead("health");
                what.iter().fold(ask, |ask, argument| ask.arg(argument)).output()
            };
            let (lives, is_ready) = (ask(&[]).await?, ask(&["--ready"]).await?);
            let said = String::from_utf8_lossy(&is_ready.stderr).into_owned();
            ensure!(
                lives.status.success() && is_ready.status.code() == Some(1) && said.contains("waiting for: "),
                "health: {lives:?}, {said}"
            );
            let code = terminate(&worker).await?;
            ensure!(code == Some(0), "it waited for {server} and ended with {code:?}");
            let log = log()?;
            ensure!(!log.contains("s3cret"), "the password stands in {log}");
        }
        Ok(())
    })
}

async fn get(url: &str) -> anyhow::Result<(u16, String)> {
    let response = reqwest::get(url).await?;
    Ok((response.status().as_u16(), response.text().await?))
}

/// Sends SIGTERM, and returns the exit code.
async fn terminate(worker: &Holdfast) -> anyhow::Result<Option<i32>> {
    kill(worker.pid(), Signal::SIGTERM)?;
    Ok(worker.wait(DEADLINE).await?.code())
}

fn every_stage_shows_in_the_metrics(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "operate").start().await?;
        let ticket = "operate/metrics";
        let hold = requested("operate/metrics/hold", ticket, "ann");
        let mut unknown = listed("operate/metrics/unknown", ticket);
        unknown["type"] = json!("holdfast.seat.painted.v1");
        let other = requested("operate/metrics/other", ticket, "bob");
        send(
            kit,
            &[
                listed("operate/metrics/list", ticket),
                hold.clone(),
                hold,
                unknown,
                other,
            ],
        )
        .await?;
        told(kit, ticket, 3).await?;

        for (sample, least) in [
            (r#"holdfast_gate_records_total{result="admitted"}"#, 4.0),
            (r#"holdfast_gate_records_total{result="dead_letter"}"#, 1.0),
            (r#"holdfast_gate_dead_letters_total{reason="unknown_type"}"#, 1.0),
            ("holdfast_gate_window_records_sum", 5.0),
            ("holdfast_gate_window_seconds_count", 1.0),
            (r#"holdfast_gate_lag_records{topic="reservations"}"#, 0.0),
            ("holdfast_gate_waiting", 0.0),
            ("holdfast_gate_offsets_lost", 0.0),
            ("holdfast_engine_unfinished_invocations", 0.0),
            ("holdfast_engine_paused_invocations", 0.0),
            ("holdfast_engine_answers", 1.0),
            (r#"holdfast_events_total{answer="applied"}"#, 2.0),
            (r#"holdfast_events_total{answer="refused"}"#, 1.0),
            (r#"holdfast_events_total{answer="repeat"}"#, 1.0),
            (r#"holdfast_refusals_total{reason="held"}"#, 1.0),
            ("holdfast_commit_batch_events_count", 1.0),
            (r#"holdfast_commit_seconds_count{step="read"}"#, 1.0),
            (r#"holdfast_commit_seconds_count{step="write"}"#, 1.0),
            ("holdfast_commit_waiting_units", 0.0),
            (r#"holdfast_pool_connections{state="idle"}"#, 0.0),
            ("holdfast_relay_rows_total", 3.0),
            ("holdfast_relay_batch_rows_count", 1.0),
            ("holdfast_relay_batch_seconds_count", 1.0),
            ("holdfast_relay_leader", 1.0),
            ("holdfast_relay_back_in_time", 0.0),
            ("holdfast_outbox_rows", 0.0),
            ("holdfast_outbox_oldest_seconds", 0.0),
        ] {
            until(sample, DEADLINE, async || {
                let value = worker.metric(sample).await?;
                ensure!(value >= Some(least), "{value:?}, not {least}");
                Ok(())
            })
            .await?;
        }
        let (_, metrics) = get(&format!("{}/metrics", worker.http)).await?;
        ensure!(metrics.contains("holdfast_build_info{version="), "{metrics}");
        for probe in ["livez", "readyz"] {
            let (status, text) = get(&format!("{}/{probe}", worker.http)).await?;
            ensure!(status == 200, "{probe}: {status}: {text}");
        }
        clean(kit).await?;
        worker.stop().await
    })
}

fn sigterm_drains_and_loses_nothing(kit: &Kit) -> anyhow::Result<()> {
    const TICKETS: usize = 600;
    kit.block_on(async {
        let events = |round: &str| -> Vec<Value> {
            let ticket = |number| format!("operate/drain/{round}/{number}");
            let listed = (0..TICKETS).map(|number| listed(&ticket(number), &ticket(number)));
            let requested =
                (0..TICKETS).map(|number| requested(&format!("{}/hold", ticket(number)), &ticket(number), "ann"));
            listed.chain(requested).collect()
        };
        let all = [kit.stack.holdfast("run", "operate").start().await?];
        send(kit, &events("run")).await?;
        is_at_work(&all[0]).await?;
        drained(&all).await?;

        let mut parts = Vec::new();
        for part in ["serve", "gate", "relay"] {
            parts.push(kit.stack.holdfast(part, &format!("operate-{part}")).start().await?);
        }
        send(kit, &events("parts")).await?;
        is_at_work(&parts[0]).await?;
        drained(&parts).await?;

        let worker = kit.stack.holdfast("run", "operate").start().await?;
        told(kit, "operate/drain/", 4 * TICKETS).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

async fn is_at_work(serve: &Holdfast) -> anyhow::Result<()> {
    until("some events are decided", DEADLINE, async || {
        let applied = serve.metric(r#"holdfast_events_total{answer="applied"}"#).await?;
        ensure!(applied >= Some(50.0), "{applied:?}");
        Ok(())
    })
    .await
}

async fn drained(workers: &[Holdfast]) -> anyhow::Result<()> {
    for worker in workers {
        let code = terminate(worker).await?;
        ensure!(code == Some(0), "it ended with {code:?}\n{}", worker.last_words());
    }
    Ok(())
}

fn register_repeats_itself_and_says_what_differs(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "operate").start().await?;
        let (status, said) = register(kit, &[]).await?;
        ensure!(
            status == Some(0) && !said.contains("DIFFERS") && !said.contains("created"),
            "{said}"
        );
        for thing in [
            "topic reservations",
            "topic reservations.admitted",
            "topic payments",
            "topic payments.admitted",
            "topic payments.outcomes",
            "topic dead-letters",
            "group holdfast.gate",
        ] {
            ensure!(
                said.lines()
                    .any(|line| line.starts_with("as wanted") && line.contains(thing)),
                "{said}"
            );
        }

        set_topic(kit, topics::RESERVATIONS, "retention.ms", "3600000").await?;
        let different = register(kit, &[]).await;
        set_topic(kit, topics::RESERVATIONS, "retention.ms", "1209600000").await?;
        let (status, said) = different?;
        ensure!(status == Some(1), "{status:?}: {said}");
        let difference = "DIFFERS    topic reservations: has retention.ms=3600000, wanted 1209600000";
        ensure!(
            said.contains(difference) && said.contains("--add-config retention.ms=1209600000"),
            "{said}"
        );

        // One of one replica must have a record, not two: nothing could be written.
        set_topic(kit, topics::DEAD_LETTERS, "min.insync.replicas", "2").await?;
        let different = register(kit, &[]).await;
        set_topic(kit, topics::DEAD_LETTERS, "min.insync.replicas", "1").await?;
        let (status, said) = different?;
        let difference = "DIFFERS    topic dead-letters: has min.insync.replicas=2, wanted 1";
        ensure!(status == Some(1) && said.contains(difference), "{status:?}: {said}");

        let (status, said) = register(kit, &["--partitions", "16", "--outcome-partitions", "4"]).await?;
        ensure!(status == Some(1), "{status:?}: {said}");
        for (topic, has, wanted) in [
            (topics::RESERVATIONS, 8, 16),
            (topics::RESERVATIONS_ADMITTED, 8, 16),
            (topics::RESERVATIONS_OUTCOMES, 2, 4),
            (topics::PAYMENTS, 8, 16),
            (topics::PAYMENTS_ADMITTED, 8, 16),
            (topics::PAYMENTS_OUTCOMES, 2, 4),
            (topics::LEDGER_ENTRIES, 2, 4),
        ] {
            let difference = format!("DIFFERS    topic {topic}: has {has} partitions, wanted {wanted}");
            ensure!(
                said.contains(&difference) && said.contains(&format!("--alter --topic {topic} --partitions {wanted}")),
                "{said}"
            );
            let partitions = partitions(kit, topic)?;
            ensure!(partitions == has, "{topic} has {partitions} partitions now");
        }
        let (status, said) = register(kit, &["--outcome-partitions", "1"]).await?;
        ensure!(
            status == Some(1) && said.contains("cannot be taken away: set --outcome-partitions to what there is"),
            "{status:?}: {said}"
        );
        clean(kit).await?;
        worker.stop().await
    })
}

pub(crate) async fn register(kit: &Kit, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let register = kit.stack.holdfast("register", "operate-register");
    let register = arguments
        .iter()
        .fold(register, |register, argument| register.arg(argument));
    let output = register.output().await?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

fn partitions(kit: &Kit, topic: &str) -> anyhow::Result<usize> {
    let consumer: BaseConsumer = kit.stack.kafka.config().create()?;
    let metadata = consumer.fetch_metadata(Some(topic), DEADLINE)?;
    Ok(metadata.topics().iter().map(|topic| topic.partitions().len()).sum())
}

fn a_full_engine_holds_the_gate_back(kit: &Kit) -> anyhow::Result<()> {
    const LIMIT: u64 = 50;
    const TICKETS: usize = 600;
    kit.block_on(async {
        let worker = kit
            .stack
            .holdfast("run", "operate")
            .arg("--gate-unfinished-limit")
            .arg(&LIMIT.to_string());
        let worker = worker.start().await?;
        let ticket = |number| format!("operate/full/{number}");
        let events: Vec<_> = (0..TICKETS)
            .map(|number| listed(&ticket(number), &ticket(number)))
            .collect();
        kit.stack.postgres.pause()?;
        send(kit, &events).await?;

        let unfinished = async || {
            let rows = kit.stack.restate.sql(
                "select count(*) as n from sys_invocation_status \
                 where status <> 'completed' and status <> 'scheduled' and target_service_name = 'Ticket'",
            );
            let rows = rows.await?;
            rows[0]["n"].as_u64().context("no count")
        };
        until("the gate waits for a full engine", DEADLINE, async || {
            let (waiting, unfinished) = (worker.metric("holdfast_gate_waiting").await?, unfinished().await?);
            ensure!(
                waiting == Some(1.0) && unfinished >= LIMIT,
                "waiting: {waiting:?}, unfinished: {unfinished}"
            );
            Ok(())
        })
        .await?;
        // Long enough for the gate to look at the engine some more times.
        let looks = RefCell::new(Vec::new());
        until("ten more looks", DEADLINE, async || {
            let seen = unfinished().await?;
            looks.borrow_mut().push(seen);
            ensure!(looks.borrow().len() == 10, "{looks:?}");
            Ok(())
        })
        .await?;
        let most = looks.into_inner().into_iter().max().unwrap_or_default();
        let waiting = worker.metric("holdfast_gate_waiting").await?;
        ensure!(waiting == Some(1.0), "the gate no longer waits");
        until("it is not ready without Postgres", DEADLINE, async || {
            let (status, text) = get(&format!("{}/readyz", worker.http)).await?;
            ensure!(status == 503 && text.contains("postgres"), "{status}: {text}");
            Ok(())
        })
        .await?;
        // A window may overdraw the limit, and the engine takes a moment to count what it was given.
        ensure!(most <= 4 * LIMIT, "{most} unfinished with a limit of {LIMIT}");
        let lag = worker
            .metric(r#"holdfast_gate_records_total{result="admitted"}"#)
            .await?;
        ensure!(
            lag < Some(TICKETS as f64 / 2.0),
            "{lag:?} of {TICKETS} records are through"
        );

        kit.stack.postgres.resume()?;
        worker.ready().await?;
        let outcomes = told(kit, "operate/full/", TICKETS).await?;
        ensure!(
            verdicts(&outcomes).iter().all(|verdict| verdict == "listed"),
            "not all are listed"
        );
        until("the gate no longer waits", DEADLINE, async || {
            let waiting = worker.metric("holdfast_gate_waiting").await?;
            ensure!(waiting == Some(0.0), "{waiting:?}");
            Ok(())
        })
        .await?;
        clean(kit).await?;
        worker.stop().await
    })
}

fn a_hold_expires_without_any_event_and_over_a_restart(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "operate").start().await?;
        let hold = |ticket: &str, seconds: u64| {
            let data = json!({ "user": "ann", "hold_for": seconds });
            [
                listed(ticket, ticket),
                event(&format!("{ticket}/hold"), ticket, "reservation.requested", data),
            ]
        };
        send(kit, &hold("operate/expiry/live", 1)).await?;
        has_expired(&told(kit, "operate/expiry/live", 3).await?)?;

        send(kit, &hold("operate/expiry/down", 2)).await?;
        told(kit, "operate/expiry/down", 2).await?;
        worker.stop().await?;
        let pool = kit.stack.postgres.connect().await?;
        until("the hold is over", DEADLINE, async || {
            let over: bool =
                sqlx::query_scalar("select held_until < now() from tickets where ticket = 'operate/expiry/down'")
                    .fetch_one(&pool)
                    .await?;
            ensure!(over, "it is not");
            Ok(())
        })
        .await?;
        pool.close().await;
        let before = outcomes(kit, "operate/expiry/down").await?;
        ensure!(before.len() == 2, "somebody ended it while nobody worked: {before:?}");
        let worker = kit.stack.holdfast("run", "operate").start().await?;
        has_expired(&told(kit, "operate/expiry/down", 3).await?)?;
        clean(kit).await?;
        worker.stop().await
    })
}

/// Listed, held, and then expired: the same hold.
fn has_expired(outcomes: &[Outcome<TicketOutcome>]) -> anyhow::Result<()> {
    ensure!(verdicts(outcomes) == ["listed", "held", "expired"], "{outcomes:?}");
    let (
        TicketOutcome::TicketHeld(outcomes::TicketHeld { hold: held, until, .. }),
        TicketOutcome::TicketExpired(outcomes::TicketExpired { hold: expired, .. }),
    ) = (&outcomes[1].data, &outcomes[2].data)
    else {
        anyhow::bail!("{outcomes:?}");
    };
    ensure!(held == expired && outcomes[2].time >= *until, "{outcomes:?}");
    Ok(())
}

fn a_request_by_http_is_decided_as_an_event_is(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "operate").start().await?;
        let restate = &kit.stack.restate;
        let ask = |handler: &str, headers: &'static [(&str, &str)], body: Value| {
            let path = format!("Ticket/operate-http/{handler}");
            async move { restate.call(&path, headers, &body).await }
        };
        let price = json!({ "amount": 4_500, "currency": "EUR" });
        let terms = json!({ "show": "operate", "seat": "row 1", "price": price });

        let (status, nothing) = ticket(kit).await?;
        ensure!(
            status == 404 && nothing.to_string().contains("never listed"),
            "{status}: {nothing}"
        );
        let (status, early) = ask("reserve", &[], json!({ "user": "ann" })).await?;
        ensure!(
            status == 200 && early["outcomes"][0]["data"]["reason"] == "unknown_ticket",
            "{status}: {early}"
        );
        let (status, listed) = ask("list", &[], terms).await?;
        ensure!(
            status == 200 && listed["outcomes"][0]["type"] == "holdfast.outcome.ticket.listed.v1",
            "{status}: {listed}"
        );

        // Repeated with its key it is the same request; another request cannot have the same key.
        const KEY: &[(&str, &str)] = &[("idempotency-key", "operate-1")];
        let (status, held) = ask("reserve", KEY, json!({ "user": "ann", "hold_for": 3_600 })).await?;
        let outcome = &held["outcomes"][0];
        ensure!(
            status == 200 && outcome["data"]["user"] == "ann" && outcome["sequence"] == 2,
            "{status}: {held}"
        );
        let again = ask("reserve", KEY, json!({ "hold_for": 3_600, "user": "ann" })).await?;
        ensure!(again == (200, held.clone()), "{again:?} is not {held}");
        let (status, other) = ask("reserve", KEY, json!({ "user": "bob" })).await?;
        ensure!(
            status == 409 && other.to_string().contains("idempotency-key"),
            "{status}: {other}"
        );

        for (handler, body, names) in [
            ("reserve", json!({}), "user"),
            ("reserve", json!({ "user": "" }), "is empty"),
            ("reserve", json!({ "user": "a\u{0}n" }), "U+0000"),
            ("reserve", json!({ "user": "ann", "colour": "red" }), "colour"),
            ("reserve", json!(["ann"]), "JSON object"),
            ("release", json!({ "user": "ann", "hold": "mine" }), "hold"),
            (
                "list",
                json!({ "show": "operate", "price": { "amount": -1, "currency": "EUR" } }),
                "amount",
            ),
            (
                "list",
                json!({ "show": "operate", "price": { "amount": 1, "currency": "ZZZ" } }),
                "currency",
            ),
        ] {
            let (status, text) = ask(handler, &[], body.clone()).await?;
            ensure!(
                status == 400 && text.to_string().contains(names),
                "{handler} {body}: {status}: {text}"
            );
        }

        let (status, view) = ticket(kit).await?;
        ensure!(
            status == 200 && view["status"] == "held" && view["version"] == 2,
            "{status}: {view}"
        );
        ensure!(
            view["user"] == "ann" && view["seat"] == "row 1" && view["price"] == price,
            "{view}"
        );
        let hold = view["hold"].clone();
        for (handler, body, expected) in [
            ("reserve", json!({ "user": "bob" }), "held"),
            ("reserve", json!({ "user": "ann" }), "already_yours"),
            ("release", json!({ "user": "bob", "hold": hold }), "not_your_hold"),
            ("release", json!({ "user": "ann", "hold": hold }), "released"),
            (
                "reserve",
                json!({ "user": "bob", "hold_for": 0 }),
                "hold_for_out_of_bounds",
            ),
            ("withdraw", json!({}), "withdrawn"),
            ("reserve", json!({ "user": "ann" }), "withdrawn"),
        ] {
            let (status, reply) = ask(handler, &[], body.clone()).await?;
            let outcome = &reply["outcomes"][0];
            let told = outcome["data"]["reason"]
                .as_str()
                .or(outcome["type"].as_str())
                .unwrap_or_default();
            ensure!(
                status == 200 && told.contains(expected),
                "{handler} {body}: {status}: {reply}"
            );
        }
        let outcomes = told(kit, "operate-http", 10).await?;
        ensure!(
            outcomes.iter().map(|outcome| outcome.sequence).eq(0..10),
            "{outcomes:?}"
        );
        clean(kit).await?;
        worker.stop().await
    })
}

/// The ticket of the HTTP test, as readers see it.
async fn ticket(kit: &Kit) -> anyhow::Result<(u16, Value)> {
    let response = kit.stack.restate.look("Ticket/operate-http/get").await?;
    let status = response.status().as_u16();
    Ok((status, response.json().await?))
}

fn offsets_that_were_lost_stop_the_gate_and_are_told_by_register(kit: &Kit) -> anyhow::Result<()> {
    const GROUP: &str = "operate.lost";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "operate").start().await?;
        let places = send(kit, &[listed("operate/lost", "operate/lost")]).await?;
        told(kit, "operate/lost", 1).await?;
        clean(kit).await?;
        let (status, said) = register(kit, &["--gate-group", GROUP]).await?;
        ensure!(status == Some(0), "{said}");
        // Deletes records as retention does while a gate is away for too long.
        let partition = places[0].0;
        let kafka = &kit.stack.kafka;
        kafka.delete_records(topics::RESERVATIONS, partition, 1).await?;

        let gate = kit
            .stack
            .holdfast("gate", "operate-gate")
            .arg("--gate-group")
            .arg(GROUP)
            .spawn()?;
        let code = gate.wait(DEADLINE).await?.code();
        let words = gate.last_words();
        let place = format!("{}/{partition} (committed 0, Kafka has 1 to ", topics::RESERVATIONS);
        ensure!(
            code == Some(1) && words.contains(&place) && words.contains(GROUP),
            "{code:?}: {words}"
        );
        ensure!(words.contains("runbook"), "{words}");
        let looks = [
            ("HOLDFAST_GATE_GROUP", GROUP),
            ("", "--role"),
            ("", "gate"),
            ("", "--only"),
            ("", "kafka"),
        ];
        let (_, report) = doctor(kit, &looks).await?;
        let lost = format!("{}/{partition} has 1 to ", topics::RESERVATIONS);
        let is_lost = |check: &Value| check["how"].as_str().is_some_and(|how| how.contains(&lost));
        ensure!(wrong(&report).iter().any(is_lost), "{report:#}");
        // What is left is where it begins, once an operator says so.
        let reprocess = kit.stack.holdfast("admin", "operate-reprocess");
        let reprocess = reprocess.env("HOLDFAST_GATE_GROUP", GROUP).arg("reprocess").arg("gate");
        let reprocess = ["--topic", topics::RESERVATIONS, "--from", "2030-01-01T00:00:00Z"]
            .into_iter()
            .fold(by(reprocess), Launch::arg);
        let reprocessed = reprocess.output().await?;
        let said = String::from_utf8_lossy(&reprocessed.stdout) + String::from_utf8_lossy(&reprocessed.stderr);
        let begins = format!("Kafka has nothing at 0 of partition {partition}: the group begins at 1");
        ensure!(reprocessed.status.success() && said.contains(&begins), "{said}");
        let gate = kit
            .stack
            .holdfast("gate", "operate-gate")
            .arg("--gate-group")
            .arg(GROUP);
        gate.start().await?.stop().await?;
        // A group that is new, or that Kafka has forgotten: nobody knows whether it had read them.
        let (status, said) = register(kit, &["--gate-group", "operate.forgotten"]).await?;
        // Beside it stand the partitions of which another proof has deleted records.
        let place = format!("{}/{partition} begins at 1, ", topics::RESERVATIONS);
        let line = said
            .lines()
            .find(|line| line.contains("offsets of the group operate.forgotten"));
        ensure!(
            status == Some(0)
                && line.is_some_and(|line| {
                    line.starts_with("changed") && line.contains(&place) && line.contains("the oldest record left")
                }),
            "{said}"
        );
        let (status, said) = register(kit, &["--gate-group", "operate.forgotten"]).await?;
        ensure!(
            status == Some(0) && said.contains("as wanted  offsets of the group operate.forgotten"),
            "{said}"
        );
        // The gate that had read it before goes on.
        send(kit, &[listed("operate/found", "operate/found")]).await?;
        told(kit, "operate/found", 1).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

/// As on a disk that is full.
fn a_log_that_cannot_be_written_ends_no_worker(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        kit.stack.holdfast("run", "operate").start().await?.stop().await?;
        let settings = kit.stack.holdfast("relay", "operate-mute").settings()?;
        let address = settings.get("HOLDFAST_HTTP_LISTEN").context("no port")?;
        let full = fs::File::options().write(true).open("/dev/full")?;
        let mut relay = tokio::process::Command::new(binary()?)
            .arg("relay")
            .envs(&settings)
            .stderr(full)
            .kill_on_drop(true)
            .spawn()?;
        until("it is ready", DEADLINE, async || {
            let (status, said) = get(&format!("http://{address}/readyz")).await?;
            ensure!(status == 200, "{status}: {said}");
            Ok(())
        })
        .await?;
        let pid = relay.id().context("it has ended")?;
        kill(Pid::from_raw(pid.try_into()?), Signal::SIGTERM)?;
        let ended = tokio::time::timeout(DEADLINE, relay.wait()).await??;
        ensure!(ended.success(), "{ended}");
        Ok(())
    })
}

/// As of a secret whose mount hangs.
fn a_file_that_does_not_open_holds_up_no_end(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        kit.stack.holdfast("run", "operate").start().await?.stop().await?;
        let file = kit.stack.folder().join("operate-url");
        fs::write(&file, kit.stack.postgres.url())?;
        let relay = kit.stack.holdfast("relay", "operate-file");
        let relay = relay.without("HOLDFAST_DATABASE_URL");
        let relay = relay.env("HOLDFAST_DATABASE_URL_FILE", &file.display().to_string());
        let relay = relay.start().await?;
        let pipe = file.with_extension("pipe");
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
        fs::rename(&pipe, &file)?;
        // Opens once somebody reads, who then reads for as long as it is open.
        let mut write = fs::File::options();
        let write = write.write(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let opened = until("the file is read", DEADLINE, async || write.open(&file)).await?;
        let ended = drained(&[relay]).await;
        drop(opened);
        ended
    })
}
