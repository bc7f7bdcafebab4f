//! The engine is lost, replaced, spread over nodes, or full of what is done; an operator kills what it has scheduled, or a clock
//! puts it off.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use holdfast_schemas::topics;
use holdfast_tests::kit::clock::{self, PRELOAD};
use holdfast_tests::kit::proxy::{Proxy, Side};
use holdfast_tests::kit::{Kit, until};
use rdkafka::consumer::{BaseConsumer, Consumer};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::checkout::{CARD, Shop, check_out, ends, fill};
use crate::recovery::recovered;
use crate::support::{DEADLINE, clean, event, listed, send, told, verdicts};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_scrape_names_its_format_and_keeps_to_it,
    what_a_lost_engine_had_taken_is_decided_by_its_successor,
    two_registers_at_once_leave_one_subscription_of_each_handler,
    an_engine_that_does_not_read_is_named,
    the_nodes_of_a_cluster_share_a_subscription_and_no_name,
    a_killed_turn_of_the_reaper_is_begun_anew_by_whoever_serves,
    a_hold_ends_soon_although_the_clock_of_whoever_serves_is_ahead,
    what_is_done_leaves_the_engine_and_costs_the_gates_question_nothing,
];

/// What Prometheus 3 asks for.
const SCRAPE: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                      application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                      text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

fn a_scrape_names_its_format_and_keeps_to_it(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "engine").start().await?;
        for accept in [SCRAPE, "application/openmetrics-text", "*/*"] {
            let request = reqwest::Client::new().get(format!("{}/metrics", worker.http));
            let answer = request.header(ACCEPT, accept).send().await?.error_for_status()?;
            let kind = answer.headers().get(CONTENT_TYPE).cloned();
            ensure!(
                kind.as_ref()
                    .is_some_and(|kind| kind == "text/plain; version=0.0.4; charset=utf-8"),
                "{accept}: {kind:?}"
            );
            let text = answer.text().await?;
            let samples = well_formed(&text).with_context(|| text.clone())?;
            ensure!(samples > 50, "{samples} samples: {text}");
        }
        worker.stop().await
    })
}

/// Holds a text against the format that it is said to have: each family once, its help and type first, its samples after them.
/// How many samples there are.
fn well_formed(text: &str) -> anyhow::Result<usize> {
    let is_name = |name: &str| {
        let letters = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_' || byte == b':';
        name.bytes().next().is_some_and(letters) && name.bytes().all(|byte| letters(byte) || byte.is_ascii_digit())
    };
    let (mut families, mut samples) = (BTreeMap::new(), 0);
    let mut family = String::new();
    ensure!(text.ends_with('\n'), "the last line does not end");
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().unwrap_or_default().to_owned();
            ensure!(is_name(&family) && !families.contains_key(&family), "{line}");
            families.insert(family.clone(), String::new());
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').context("a type without a name")?;
            ensure!(
                name == family && ["counter", "gauge", "histogram"].contains(&kind),
                "{line}"
            );
            families.insert(family.clone(), kind.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let suffix = name.strip_prefix(&family).with_context(|| line.to_owned())?;
            let may = match families[&family].as_str() {
                "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
                "counter" | "gauge" => suffix.is_empty(),
                _ => false,
            };
            ensure!(may && is_name(name) && labels.ends_with('}'), "{line}");
            value.parse::<f64>().with_context(|| line.to_owned())?;
            samples += 1;
        }
    }
    Ok(samples)
}

fn what_a_lost_engine_had_taken_is_decided_by_its_successor(kit: &Kit) -> anyhow::Result<()> {
    const TICKETS: usize = 50;
    let ticket = |number| format!("engine/lost/{number}");
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "engine").start().await?;
        send(kit, &[listed("engine/lost/before", "engine/before")]).await?;
        told(kit, "engine/before", 1).await?;
        clean(kit).await?;
        // The engine takes the events and cannot have them decided: nobody serves. Only the gate goes on.
        worker.stop().await?;
        let gate = kit.stack.holdfast("gate", "engine-gate").start().await?;
        let events: Vec<_> = (0..TICKETS)
            .map(|number| listed(&ticket(number), &ticket(number)))
            .collect();
        send(kit, &events).await?;
        let hold = event(
            "engine/lost/hold",
            &ticket(0),
            "reservation.requested",
            json!({ "user": "ann", "hold_for": 1 }),
        );
        send(kit, &[hold]).await?;
        until(
            "the engine has taken it all, and said so to Kafka",
            DEADLINE,
            async || {
                let taken = gate.metric("holdfast_engine_unfinished_invocations").await?;
                ensure!(taken >= Some(TICKETS as f64), "{taken:?}");
                let unread = unread(kit, topics::RESERVATIONS_ADMITTED).await?;
                ensure!(unread == 0, "{unread} records are not committed");
                anyhow::Ok(())
            },
        )
        .await?;
        gate.stop().await?;

        kit.stack.restate.kill()?;
        kit.stack.restate.forget()?;
        let recovery = Instant::now();
        kit.stack.restate.start().await?;
        let worker = kit.stack.holdfast("run", "engine").start().await?;
        let log = std::fs::read_to_string(worker.log())?;
        let line = log
            .lines()
            .rfind(|line| line.contains("subscription of") && line.contains(topics::RESERVATIONS_ADMITTED));
        ensure!(
            line.is_some_and(|line| line.contains("this engine is new") && line.contains("reads again")),
            "{line:?}"
        );
        let outcomes = told(kit, "engine/lost/", TICKETS + 2).await?;
        let verdicts = verdicts(&outcomes);
        let count = |wanted: &str| verdicts.iter().filter(|verdict| *verdict == wanted).count();
        ensure!(
            (count("listed"), count("held"), count("expired")) == (TICKETS, 1, 1),
            "{verdicts:?}"
        );
        // Nothing that was decided before is decided again.
        told(kit, "engine/before", 1).await?;
        clean(kit).await?;
        recovered("an engine that lost its disk", recovery);
        let (status, said) = crate::operate::register(kit, &[]).await?;
        ensure!(
            status == Some(0) && said.contains("as wanted  subscription of"),
            "{said}"
        );
        worker.stop().await
    })
}

/// How many records of a topic the engine has not committed in the group that it reads it in.
async fn unread(kit: &Kit, topic: &str) -> anyhow::Result<i64> {
    let source = format!("kafka://holdfast/{topic}");
    let subscriptions = subscriptions(kit).await?;
    let ours = subscriptions
        .iter()
        .find(|subscription| subscription["source"] == source.as_str());
    let group = ours
        .and_then(|ours| ours["options"]["group.id"].as_str())
        .context("no subscription")?;
    kit.stack.kafka.unread(group, topic).await
}

fn two_registers_at_once_leave_one_subscription_of_each_handler(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "engine").start().await?;
        let admin = kit.stack.restate.admin();
        for subscription in subscriptions(kit).await? {
            let id = subscription["id"].as_str().context("no id")?;
            let deleted = reqwest::Client::new().delete(format!("{admin}/subscriptions/{id}"));
            deleted.send().await?.error_for_status()?;
        }
        // The first has seen that there is none, and is about to make one when the second makes it.
        let address = admin.trim_start_matches("http://").to_owned();
        let proxy = Proxy::start(address).await?;
        proxy.stop_at("POST /subscriptions", Side::Before);
        let first = kit.stack.holdfast("register", "engine-register");
        let first = first.env("HOLDFAST_RESTATE_ADMIN", &format!("http://{}", proxy.address()));
        let (first, second) = tokio::join!(first.output(), async {
            proxy.stopped().await;
            let second = crate::operate::register(kit, &[]).await;
            proxy.go_on();
            second
        });
        let (first, (status, said)) = (first?, second?);
        ensure!(first.status.success() && status == Some(0), "{first:?} {said}");
        one_of_each(kit).await?;

        // As an older release left them.
        let double = subscriptions(kit)
            .await?
            .into_iter()
            .next()
            .context("no subscription")?;
        let double = json!({ "source": double["source"], "sink": double["sink"], "options": double["options"] });
        let made = reqwest::Client::new()
            .post(format!("{admin}/subscriptions"))
            .json(&double);
        made.send().await?.error_for_status()?;
        let (status, said) = crate::operate::register(kit, &[]).await?;
        ensure!(status == Some(0) && said.contains("was there 2 times"), "{said}");
        one_of_each(kit).await?;

        send(kit, &[listed("engine/twice", "engine/twice")]).await?;
        told(kit, "engine/twice", 1).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

pub(crate) async fn subscriptions(kit: &Kit) -> anyhow::Result<Vec<Value>> {
    subscriptions_at(&kit.stack.restate.admin()).await
}

async fn subscriptions_at(admin: &str) -> anyhow::Result<Vec<Value>> {
    let url = format!("{admin}/subscriptions");
    let found: Value = reqwest::get(url).await?.error_for_status()?.json().await?;
    Ok(found["subscriptions"].as_array().cloned().unwrap_or_default())
}

/// The engine has one subscription of each handler.
pub(crate) async fn one_of_each(kit: &Kit) -> anyhow::Result<()> {
    let found = subscriptions(kit).await?;
    let mut sinks: Vec<_> = found.iter().filter_map(|found| found["sink"].as_str()).collect();
    sinks.sort_unstable();
    ensure!(sinks == ["service://Ticket/apply", "service://User/apply"], "{found:?}");
    Ok(())
}

fn an_engine_that_does_not_read_is_named(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "engine").start().await?;
        let clusters = format!("{}/kafka-clusters", kit.stack.restate.admin());
        let found: Value = reqwest::get(&clusters).await?.error_for_status()?.json().await?;
        let mut properties = found["clusters"][0]["properties"].clone();
        // Nobody listens there.
        properties["bootstrap.servers"] = json!("127.0.0.1:1");
        let lost = reqwest::Client::new().patch(format!("{clusters}/holdfast"));
        let lost = lost.json(&json!({ "properties": properties }));
        lost.send().await?.error_for_status()?;
        until("Kafka has given up the engine", DEADLINE, async || {
            for group in groups(kit).await? {
                let members = members(kit, &group)?;
                ensure!(members == 0, "{members} members of {group}");
            }
            anyhow::Ok(())
        })
        .await?;
        send(kit, &[listed("engine/deaf", "engine/deaf")]).await?;

        let doctor = kit.stack.holdfast("doctor", "engine-doctor");
        let doctor = doctor.arg("--only").arg("restate").output().await?;
        let said = String::from_utf8_lossy(&doctor.stdout);
        let named = said
            .matches("its group has no member: the engine does not read")
            .count();
        ensure!(named == 2, "{said}");
        let (status, said) = crate::operate::register(kit, &[]).await?;
        ensure!(
            status == Some(0) && said.contains("changed    Restate's Kafka cluster"),
            "{said}"
        );
        told(kit, "engine/deaf", 1).await?;
        for group in groups(kit).await? {
            ensure!(members(kit, &group)? == 1, "{group}");
        }
        clean(kit).await?;
        worker.stop().await
    })
}

/// The consumer groups of the engine's subscriptions.
async fn groups(kit: &Kit) -> anyhow::Result<Vec<String>> {
    let found = subscriptions(kit).await?.into_iter();
    let groups = found.map(|found| found["options"]["group.id"].as_str().map(str::to_owned));
    groups.collect::<Option<_>>().context("a subscription without a group")
}

/// How many read in a consumer group.
fn members(kit: &Kit, group: &str) -> anyhow::Result<usize> {
    let consumer: BaseConsumer = kit.stack.kafka.config().create()?;
    let groups = consumer.fetch_group_list(Some(group), DEADLINE)?;
    Ok(groups.groups().iter().map(|group| group.members().len()).sum())
}

fn the_nodes_of_a_cluster_share_a_subscription_and_no_name(kit: &Kit) -> anyhow::Result<()> {
    const NODES: usize = 3;
    kit.block_on(async {
        let cluster = kit.stack.engines(NODES).await?;
        let worker = kit.stack.holdfast("run", "engine").start().await?;
        let register = async |node: usize| {
            let register = kit.stack.holdfast("register", "engine-register");
            let register = register.without("HOLDFAST_RESTATE_SINGLE_NODE");
            let output = register
                .env("HOLDFAST_RESTATE_ADMIN", &cluster.0[node].admin())
                .output()
                .await?;
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{}: {said}", output.status);
            anyhow::Ok(said.into_owned())
        };
        register(1).await?;
        let found = until("another node knows the subscriptions", DEADLINE, async || {
            let found = subscriptions_at(&cluster.0[2].admin()).await?;
            ensure!(found.len() == 2, "{found:?}");
            anyhow::Ok(found)
        })
        .await?;
        let own = groups(kit).await?;
        for subscription in &found {
            let options = &subscription["options"];
            ensure!(options["group.instance.id"].is_null(), "{subscription}");
            let group = options["group.id"].as_str().context("no group")?;
            // The stack's own engine is a member too, where it still reads in a group of this name.
            let nodes = NODES + own.iter().filter(|own| *own == group).count();
            until("each node reads a part of the topic", DEADLINE, async || {
                let members = members(kit, group)?;
                ensure!(members == nodes, "{members} members of {group}");
                anyhow::Ok(())
            })
            .await?;
        }
        // Any two of them go on.
        cluster.0[1].kill()?;
        let said = register(2).await?;
        ensure!(said.matches("as wanted  subscription of").count() == 2, "{said}");
        let body = json!({ "show": "proofs", "price": { "amount": 4_500, "currency": "EUR" } });
        until("a call passes", DEADLINE, async || {
            let (status, answer) = cluster.0[0].call("Ticket/engine-cluster/list", &[], &body).await?;
            ensure!(status == 200, "{status}: {answer}");
            anyhow::Ok(())
        })
        .await?;
        worker.stop().await
    })
}

fn a_killed_turn_of_the_reaper_is_begun_anew_by_whoever_serves(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "engine").start().await?;
        let ticket = "engine/killed";
        let hold = json!({ "user": "ann", "hold_for": 1 });
        kit.stack.restate.kill_invocations_of("Reaper").await?;
        let events = [
            listed(ticket, ticket),
            event("engine/killed/hold", ticket, "reservation.requested", hold),
        ];
        send(kit, &events).await?;
        let outcomes = told(kit, ticket, 3).await?;
        ensure!(verdicts(&outcomes) == ["listed", "held", "expired"], "{outcomes:?}");
        clean(kit).await?;
        worker.stop().await
    })
}

fn a_hold_ends_soon_although_the_clock_of_whoever_serves_is_ahead(kit: &Kit) -> anyhow::Result<()> {
    /// The Reaper's turns follow each other so late. The engine's signature would not be valid after a minute.
    const AHEAD: Duration = Duration::from_secs(45);
    const SOON: Duration = Duration::from_secs(25);
    kit.block_on(async {
        let library = clock::ahead(AHEAD, kit.stack.folder())?;
        let launch = kit.stack.holdfast("run", "engine");
        let worker = launch.env(PRELOAD, library.to_str().context("a path")?).start().await?;
        clock::ensure_loaded(&library, worker.pid())?;
        let ticket = "engine/ahead";
        let hold = json!({ "user": "ann", "hold_for": 1 });
        let events = [
            listed(ticket, ticket),
            event("engine/ahead/hold", ticket, "reservation.requested", hold),
        ];
        send(kit, &events).await?;
        let heard = timeout(SOON, told(kit, ticket, 3)).await;
        let outcomes = heard.context("the hold has not ended")??;
        ensure!(verdicts(&outcomes) == ["listed", "held", "expired"], "{outcomes:?}");
        clean(kit).await?;
        worker.stop().await
    })
}

fn what_is_done_leaves_the_engine_and_costs_the_gates_question_nothing(kit: &Kit) -> anyhow::Result<()> {
    const WAITING: usize = 20;
    kit.block_on(async {
        let mut shop = Shop::open(kit, "engine/done").await?;
        let tickets = shop.tickets(3).await?;
        fill(kit, &shop.user, &tickets, Some(3_600)).await?;
        for (number, ticket) in tickets.iter().enumerate() {
            let id = shop.id(&format!("order-{number}"));
            let body = json!({ "checkout": id, "tickets": [ticket], "payment_method": CARD });
            check_out(kit, &shop.user, body).await?;
            ends(kit, &id, "completed").await?;
        }
        // Reading them left nothing, and the checkouts themselves leave within a minute.
        let retained = "select target_service_name as service, target_handler_name as handler, completion_retention as long \
                        from sys_invocation_status where status = 'completed'";
        let retained = kit.stack.restate.sql(retained).await?;
        let soon = |row: &Value| {
            (row["service"] == "Checkout" && row["handler"] == "run" && row["long"] == "PT60S") || row["long"] == "P0D"
        };
        ensure!(retained.iter().all(soon), "{retained:?}");

        // Some are tried again and again, others wait for their key; those that are scheduled, and what is done, do not count.
        shop.worker.stop().await?;
        let gate = kit.stack.holdfast("gate", "engine-gate").start().await?;
        let restate = &kit.stack.restate;
        for number in 0..WAITING {
            let path = format!("Ticket/engine-done-{}/reserve/send", number % 3);
            let (status, _) = restate.call(&path, &[], &json!({ "user": "ann" })).await?;
            ensure!(status == 202, "{status}");
        }
        let (status, _) = restate
            .call("Ticket/engine-done/reserve/send?delay=5s", &[], &json!({ "user": "ann" }))
            .await?;
        ensure!(status == 202, "{status}");
        until("the gate knows what waits", DEADLINE, async || {
            let counted = gate.metric("holdfast_engine_unfinished_invocations").await?;
            ensure!(counted == Some(WAITING as f64), "{counted:?}");
            anyhow::Ok(())
        })
        .await?;
        let first = restate
            .sql("select invocation_id as id from sys_keyed_service_status where service_key = 'engine-done-0'")
            .await?;
        let first = first.first().and_then(|row| row["id"].as_str()).context("nothing holds the key")?;
        restate.pause_invocation(first).await?;
        until("what is paused is counted", DEADLINE, async || {
            let paused = gate.metric("holdfast_engine_paused_invocations").await?;
            ensure!(paused == Some(1.0), "{paused:?}");
            anyhow::Ok(())
        })
        .await?;
        restate.resume_invocation(first).await?;
        shop.worker = shop.launch("run").start().await?;
        until("nothing waits any more", DEADLINE, async || {
            let counted = gate.metric("holdfast_engine_unfinished_invocations").await?;
            ensure!(counted == Some(0.0), "{counted:?}");
            anyhow::Ok(())
        })
        .await?;
        gate.stop().await?;
        shop.close().await
    })
}
