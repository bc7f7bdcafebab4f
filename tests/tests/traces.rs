//! Traces: one leads from the producer's event to its outcome, through every process and the engine, and on through a checkout to
//! the provider and the mail; and nothing waits for the collector.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, ensure};
use holdfast_tests::kit::collector::ReceivedSpan;
use holdfast_tests::kit::process::lock;
use holdfast_tests::kit::{Collector, Kit, until};
use serde_json::{Value, json};

use crate::checkout::{CARD, Shop, ends, fill};
use crate::support::{DEADLINE, clean, event, listed, pay, requested, send, told};
use crate::workers::{Workers, done};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    one_trace_leads_from_the_producers_event_through_every_process_and_the_engine_to_the_outcome,
    a_gathered_record_links_to_each_of_its_events_and_each_trace_goes_on,
    a_checkout_is_followed_to_the_provider_the_outcomes_and_the_mail,
    a_collector_that_is_away_holds_up_nothing_and_gets_what_waits_for_it,
];

/// The span of the producer's own, in every trace here.
const PRODUCER: &str = "00f067aa0ba902b7";

/// A trace of this number, which its producer records, or does not.
fn traced(mut event: Value, number: u32, flags: &str) -> (Value, String) {
    let id = format!("{number:032x}");
    event["traceparent"] = json!(format!("00-{id}-{PRODUCER}-{flags}"));
    (event, id)
}

fn one_trace_leads_from_the_producers_event_through_every_process_and_the_engine_to_the_outcome(
    kit: &Kit,
) -> anyhow::Result<()> {
    const TICKET: &str = "traces/one";
    kit.block_on(async {
        let collector = Collector::start_at(0).await?;
        let restate = &kit.stack.restate;
        restate.stop().await?;
        *lock(&restate.tracing) = Some(collector.endpoint());
        restate.start().await?;
        let workers = start(kit, &collector).await?;

        let (list, recorded) = traced(listed("traces/one/1", TICKET), 0x0001_0001, "01");
        let places = send(kit, &[list]).await?;
        told(kit, TICKET, 1).await?;
        let (request, unrecorded) = traced(requested("traces/one/2", TICKET, "ann"), 0x0001_0002, "00");
        send(kit, &[request, requested("traces/one/3", TICKET, "bob")]).await?;
        told(kit, TICKET, 3).await?;
        let trace = complete(&collector, &recorded, "send reservations.outcomes", 1).await?;

        let gate = only(&trace, "process reservations")?;
        ensure!(gate.parent.as_deref() == Some(PRODUCER), "{gate:?}");
        let (partition, offset) = places[0];
        for (attribute, value) in [
            ("messaging.system", "kafka"),
            ("messaging.operation.type", "process"),
            ("messaging.destination.name", "reservations"),
            ("messaging.destination.partition.id", &partition.to_string()),
            ("messaging.kafka.offset", &offset.to_string()),
            ("messaging.kafka.message.key", TICKET),
            ("cloudevents.event_id", "traces/one/1"),
            ("cloudevents.event_type", "holdfast.ticket.listed.v1"),
        ] {
            ensure!(gate.get(attribute) == value, "{attribute}: {gate:?}");
        }
        let admitted = only(&trace, "send reservations.admitted")?;
        ensure!(admitted.parent.as_ref() == Some(&gate.id), "{admitted:?}");
        ensure!(links(admitted) == [(&*recorded, &*gate.id)].into(), "{admitted:?}");
        let object = only(&trace, "process reservations.admitted")?;
        ensure!(object.parent.as_ref() == Some(&gate.id), "{object:?}");
        ensure!(links(object).contains(&(&*recorded, &*admitted.id)), "{object:?}");
        ensure!(object.get("rpc.method") == "Ticket/apply", "{object:?}");
        let decision = only(&trace, "decide ticket")?;
        ensure!(decision.get("holdfast.outcomes") == "ticket.listed", "{decision:?}");
        let statement = only(&trace, "write tickets")?;
        for part in [decision, statement] {
            ensure!(part.parent.as_ref() == Some(&object.id), "{part:?}");
            ensure!(
                object.start <= part.start && part.end <= object.end,
                "{part:?} {object:?}"
            );
        }
        let outcome = only(&trace, "send reservations.outcomes")?;
        ensure!(outcome.parent.as_ref() == Some(&statement.id), "{outcome:?}");
        ensure!(
            outcome.get("cloudevents.event_type") == "holdfast.outcome.ticket.listed.v1",
            "{outcome:?}"
        );
        ensure!(outcome.start >= decision.end, "{outcome:?} {decision:?}");
        ensure!(trace.len() == 6 && trace.iter().all(|span| !span.failed), "{trace:?}");

        // The engine's own span, in a trace of the engine's, is what the object's span links to.
        let (engines, span) = *(links(object).iter())
            .find(|(other, _)| *other != recorded)
            .with_context(|| format!("no link to the engine: {object:?}"))?;
        until("the engine has sent its spans", DEADLINE, async || {
            let spans = collector.trace(engines);
            let attempt = spans.iter().find(|other| other.id == span);
            let attempt = attempt.with_context(|| format!("no span {span} in {spans:?}"))?;
            ensure!(attempt.service != "holdfast", "{attempt:?}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;

        workers.stop().await?;
        *lock(&restate.tracing) = None;
        restate.restart().await?;
        // What had been recorded was sent before the processes ended.
        let ours: BTreeSet<_> = (collector.spans().into_iter())
            .filter(|span| span.service == "holdfast")
            .map(|span| span.trace)
            .collect();
        ensure!(!ours.contains(&unrecorded), "its producer does not record it");
        ensure!(ours == [recorded.clone()].into(), "nothing else is recorded: {ours:?}");
        clean(kit).await.map(drop)
    })
}

fn a_gathered_record_links_to_each_of_its_events_and_each_trace_goes_on(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "traces/gathered";
    kit.block_on(async {
        let collector = Collector::start_at(0).await?;
        let mut workers = start(kit, &collector).await?;
        workers.gate.stop().await?;
        let name = |place: u32| format!("{TICKET}/{place}");
        let requests = (1..5).map(|place| requested(&name(place), TICKET, "ann"));
        let events = std::iter::once(listed(&name(0), TICKET)).chain(requests);
        // The third is of a producer that does not record.
        let events = (0..).zip(events).map(|(place, event)| {
            let flags = if place == 2 { "00" } else { "01" };
            traced(event, 0x0002_0000 + place, flags)
        });
        let (events, traces): (Vec<_>, Vec<_>) = events.unzip();
        send(kit, &events).await?;
        workers.gate = kit
            .stack
            .holdfast("gate", "gate")
            .traces(&collector, 1.0)
            .start()
            .await?;
        told(kit, TICKET, 5).await?;
        let mut gates = BTreeSet::new();
        for id in [&traces[0], &traces[1], &traces[3], &traces[4]] {
            let trace = complete(&collector, id, "send reservations.outcomes", 1).await?;
            let gate = only(&trace, "process reservations")?;
            gates.insert((id.clone(), gate.id.clone()));
            let object = only(&trace, "process reservations.admitted")?;
            ensure!(object.parent.as_ref() == Some(&gate.id), "{trace:?}");
            ensure!(object.get("messaging.batch.message_count") == "5", "{object:?}");
            ensure!(
                only(&trace, "write tickets")?.parent.as_ref() == Some(&object.id),
                "{trace:?}"
            );
        }
        let first = collector.trace(&traces[0]);
        let record = only(&first, "send reservations.admitted")?;
        ensure!(record.get("messaging.batch.message_count") == "5", "{record:?}");
        let linked: BTreeSet<_> = record.links.iter().cloned().collect();
        ensure!(linked == gates, "{record:?} {gates:?}");
        let last = collector.trace(&traces[4]);
        let object = only(&last, "process reservations.admitted")?;
        ensure!(links(object).contains(&(&*traces[0], &*record.id)), "{object:?}");
        let refused = only(&last, "decide ticket")?;
        ensure!(refused.get("holdfast.refusal") == "already_yours", "{refused:?}");
        ensure!(
            collector.trace(&traces[2]).is_empty(),
            "its producer does not record it"
        );
        workers.stop().await?;
        clean(kit).await.map(drop)
    })
}

fn a_checkout_is_followed_to_the_provider_the_outcomes_and_the_mail(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let collector = Collector::start_at(0).await?;
        let settings = [
            ("HOLDFAST_TRACES_ENDPOINT", &*collector.endpoint()),
            ("HOLDFAST_TRACES_SAMPLE", "0"),
        ];
        let shop = Shop::open_with(kit, "traces/checkout", &settings).await?;
        let tickets = shop.tickets(1).await?;
        fill(kit, &shop.user, &tickets, None).await?;
        let data = json!({ "checkout": shop.id("order"), "payment_method": CARD, "tickets": tickets });
        let (asked, id) = traced(
            event(&shop.id("asked"), &shop.user, "checkout.requested", data),
            0x0003_0001,
            "01",
        );
        pay(kit, &[asked]).await?;
        ends(kit, &shop.id("order"), "completed").await?;
        complete(&collector, &id, "send mail", 1).await?;
        let trace = complete(&collector, &id, "send payments.outcomes", 2).await?;

        let object = only(&trace, "process payments.admitted")?;
        for (step, call) in [("create", "create"), ("authorise", "authorise"), ("capture", "capture")] {
            let step = only(&trace, &format!("checkout {step}"))?;
            let call = only(&trace, &format!("provider {call}"))?;
            ensure!(step.parent.as_ref() == Some(&object.id), "{step:?}");
            ensure!(call.parent.as_ref() == Some(&step.id), "{call:?}");
        }
        for name in ["checkout sell", "send mail"] {
            ensure!(only(&trace, name)?.parent.as_ref() == Some(&object.id), "{trace:?}");
        }
        ensure!(
            only(&trace, "send mail")?.get("holdfast.mail") == "completed",
            "{trace:?}"
        );
        let told: Vec<_> = (trace.iter())
            .filter(|span| span.name.ends_with(".outcomes"))
            .map(|span| {
                span.get("cloudevents.event_type")
                    .trim_start_matches("holdfast.outcome.")
            })
            .collect();
        for outcome in ["checkout.opened.v1", "ticket.sold.v1", "checkout.completed.v1"] {
            ensure!(told.contains(&outcome), "no {outcome} in {told:?}");
        }
        ensure!(
            trace.iter().all(|span| span.parent.is_some()),
            "the trace begins at its producer: {trace:?}"
        );
        let page = reqwest::get(format!("{}trace/{id}", collector.page()))
            .await?
            .text()
            .await?;
        ensure!(
            page.contains("provider capture") && page.contains("send mail"),
            "{page}"
        );
        shop.close().await
    })
}

fn a_collector_that_is_away_holds_up_nothing_and_gets_what_waits_for_it(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "traces/away";
    kit.block_on(async {
        let port = Collector::start_at(0).await?.port();
        let headers = kit.stack.folder().join("traces-headers");
        fs::write(&headers, "authorization=Bearer sesame\n")?;
        let worker = (kit.stack.holdfast("run", "traces"))
            .env(
                "HOLDFAST_TRACES_ENDPOINT",
                &format!("http://127.0.0.1:{port}/v1/traces"),
            )
            .env("HOLDFAST_TRACES_SAMPLE", "1")
            .env("HOLDFAST_TRACES_HEADERS_FILE", &headers.display().to_string());
        let worker = worker.start().await?;
        let before = fs::read_to_string(worker.log())?.matches("collector of traces").count();
        let (list, id) = traced(listed(&format!("{TICKET}/1"), TICKET), 0x0004_0001, "01");
        send(kit, &[list, requested(&format!("{TICKET}/2"), TICKET, "ann")]).await?;
        told(kit, TICKET, 2).await?;
        let (status, _) = worker.readyz().await?;
        ensure!(status == 200, "it is not ready without the collector");

        let collector = Collector::start_at(port).await?;
        complete(&collector, &id, "send reservations.outcomes", 1).await?;
        ensure!(
            collector.header("authorization").as_deref() == Some("Bearer sesame"),
            "the headers are not sent"
        );
        // The second event had no trace of its own: it begins one.
        let spans = collector.spans();
        let second = format!("{TICKET}/2");
        let begun = (spans.iter()).find(|span| span.parent.is_none() && span.get("cloudevents.event_id") == second);
        let begun = begun.with_context(|| format!("{spans:?}"))?;
        ensure!(begun.name == "create reservations", "{begun:?}");
        complete(&collector, &begun.trace, "send reservations.outcomes", 1).await?;
        until("what was sent is counted", DEADLINE, async || {
            let sent = worker.metric(r#"holdfast_trace_spans_total{result="sent"}"#).await?;
            let dropped = worker.metric(r#"holdfast_trace_spans_total{result="dropped"}"#).await?;
            ensure!(sent >= Some(10.0) && dropped == Some(0.0), "{sent:?} {dropped:?}");
            anyhow::Ok(())
        })
        .await?;
        let log = fs::read_to_string(worker.log())?;
        let told = log.matches("collector of traces").count() - before;
        ensure!(
            told <= 1 && !log.contains("sesame"),
            "{told} lines about the collector:\n{log}"
        );
        worker.stop().await?;
        clean(kit).await.map(drop)
    })
}

/// Each role in a process of its own, which records what producers record, and nothing else.
async fn start(kit: &Kit, collector: &Collector) -> anyhow::Result<Workers> {
    let launch = |role| {
        let launch = kit.stack.holdfast(role, role).traces(collector, 1.0);
        launch.env("HOLDFAST_TRACES_SAMPLE", "0")
    };
    done(kit.stack.holdfast("migrate", "migrate")).await?;
    let serve = launch("serve").start().await?;
    done(kit.stack.holdfast("register", "register")).await?;
    let (gate, relay) = tokio::try_join!(launch("gate").start(), launch("relay").start())?;
    Ok(Workers { gate, serve, relay })
}

/// The trace, once so many spans of this name are there, and the parent of each of its spans.
async fn complete(collector: &Collector, id: &str, name: &str, count: usize) -> anyhow::Result<Vec<ReceivedSpan>> {
    until(&format!("the trace {id} has {count} x {name}"), DEADLINE, async || {
        let trace = collector.trace(id);
        let found = trace.iter().filter(|span| span.name == name).count();
        let ids: BTreeSet<_> = trace.iter().map(|span| &*span.id).chain([PRODUCER]).collect();
        let mut parents = trace.iter().filter_map(|span| span.parent.as_deref());
        ensure!(
            found >= count && parents.all(|parent| ids.contains(parent)),
            "{trace:#?}"
        );
        Ok(trace)
    })
    .await
}

/// The one span of this name.
fn only<'t>(trace: &'t [ReceivedSpan], name: &str) -> anyhow::Result<&'t ReceivedSpan> {
    let mut named = trace.iter().filter(|span| span.name == name);
    let span = named.next().with_context(|| format!("no {name} in {trace:#?}"))?;
    ensure!(named.next().is_none(), "{name} twice in {trace:#?}");
    Ok(span)
}

fn links(span: &ReceivedSpan) -> BTreeSet<(&str, &str)> {
    span.links.iter().map(|(trace, span)| (&**trace, &**span)).collect()
}
