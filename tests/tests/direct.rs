//! A direct subscription of Restate to the public topic, without a gate: the same code decides the same events.

use anyhow::{Context, ensure};
use holdfast_schemas::{DeadLetterReason, topics};
use holdfast_tests::kit::{Kit, until};
use holdfast_tests::load::{now, timestamp};
use serde_json::{Value, json};

use crate::admin::{BY, parsed};
use crate::reprocess::foretold;
use crate::support::{
    DEADLINE, binary, clean, event, header, letters, listed, requested, send, structured, told, verdicts,
};
use crate::workers::done;
use crate::{Test, tests};

// A record without a key, or with one that is no UTF-8, would end such a subscription, so no proof before may send one.
pub(crate) const TESTS: &[Test] = tests![events_taken_without_a_gate_take_effect_once_also_when_a_gate_follows];

fn events_taken_without_a_gate_take_effect_once_also_when_a_gate_follows(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "direct/A";
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    kit.block_on(async {
        done(kit.stack.holdfast("migrate", "migrate")).await?;
        let serve = kit.stack.holdfast("serve", "serve").start().await?;
        done(kit.stack.holdfast("register", "register").arg("--direct")).await?;
        let relay = kit.stack.holdfast("relay", "relay").start().await?;

        let since = timestamp(now());
        let wanted = requested("direct/ann", TICKET, "ann");
        send(kit, &[listed("direct/list", TICKET), wanted.clone(), wanted]).await?;
        let mut late = structured(&requested("direct/bob", TICKET, "bob"));
        let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        late.headers.push(header("traceparent", &traceparent));
        kit.stack.kafka.send(topics::RESERVATIONS, &[late]).await?;
        let outcomes = told(kit, TICKET, 3).await?;
        ensure!(verdicts(&outcomes) == ["listed", "held", "held"], "{outcomes:?}");
        // The engine keeps headers to itself: their trace is lost.
        let mut traces = outcomes.iter().map(|outcome| outcome.traceparent.to_string());
        ensure!(traces.all(|trace| !trace.contains(TRACE)), "{outcomes:?}");

        let reused = event("direct/ann", TICKET, "ticket.withdrawn", json!({}));
        let mut strayed = structured(&requested("direct/cid", "direct/B", "cid"));
        strayed.key = Some(TICKET.into());
        let mut broken = structured(&reused);
        broken.value = Some(b"{ no event".to_vec());
        let in_binary_mode = binary(&requested("direct/eve", TICKET, "eve"));
        let bad = [structured(&reused), strayed, broken, in_binary_mode];
        let places = kit.stack.kafka.send(topics::RESERVATIONS, &bad).await?;
        let letters = letters(kit, &places).await?;
        let reasons: Vec<_> = places.iter().map(|place| letters[place].says.reason).collect();
        let expected = [
            DeadLetterReason::IdReused,
            DeadLetterReason::KeyMismatch,
            DeadLetterReason::Undecodable,
            // Its attributes are in the headers.
            DeadLetterReason::MissingAttribute,
        ];
        ensure!(reasons == expected, "{reasons:?}");
        clean(kit).await?;

        // Read again on purpose, each is answered or put aside as it was.
        let from = ["engine", "--direct", "--topic", topics::RESERVATIONS, "--from", &since];
        foretold(
            kit,
            &from,
            json!({ "records": 8, "repeats": 4, "new": 0, "undecidable": 4 }),
        )
        .await?;
        let again = parsed(kit, &[&["reprocess"][..], &from, BY, &["--json"]].concat()).await?;
        let group = again["new_group"].as_str().unwrap_or_default();
        ensure!(
            again["done"] == true && group.starts_with("holdfast.ticket.direct."),
            "{again:#}"
        );
        until("each is a repeat", DEADLINE, async || {
            let repeats = serve.metric(r#"holdfast_events_total{answer="repeat"}"#).await?;
            ensure!(repeats >= Some(5.0), "{repeats:?}");
            Ok(())
        })
        .await?;
        told(kit, TICKET, 3).await?;
        clean(kit).await?;

        // `register` demands a drained topic before events may take the other path.
        unsubscribe(kit, topics::RESERVATIONS).await?;
        unsubscribe(kit, topics::PAYMENTS).await?;
        done(kit.stack.holdfast("register", "register")).await?;
        let gate = kit.stack.holdfast("gate", "gate").start().await?;
        until("the gate has read it all", DEADLINE, async || {
            let admitted = gate.metric(r#"holdfast_gate_records_total{result="admitted"}"#).await?;
            ensure!(admitted >= Some(6.0), "{admitted:?}");
            Ok(())
        })
        .await?;
        clean(kit).await?;
        // The gate takes what is in binary mode.
        let outcomes = told(kit, TICKET, 4).await?;
        ensure!(outcomes[3].causation_id.as_str() == "direct/eve", "{outcomes:?}");

        gate.stop().await?;
        relay.stop().await?;
        serve.stop().await
    })
}

/// Ends the engine's subscriptions to this topic.
pub(crate) async fn unsubscribe(kit: &Kit, topic: &str) -> anyhow::Result<()> {
    let subscriptions = format!("{}/subscriptions", kit.stack.restate.admin());
    let http = kit.stack.restate.client();
    let found: Value = http
        .get(&subscriptions)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    let source = format!("kafka://holdfast/{topic}");
    let of_topic = |subscription: &&Value| subscription["source"] == source.as_str();
    let all = found["subscriptions"].as_array().context("no list of subscriptions")?;
    for subscription in all.iter().filter(of_topic) {
        let id = subscription["id"].as_str().context("a subscription without an id")?;
        let path = format!("{subscriptions}/{id}");
        http.delete(path).send().await?.error_for_status()?;
    }
    Ok(())
}
