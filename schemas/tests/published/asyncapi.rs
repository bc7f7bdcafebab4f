//! The AsyncAPI 3 document: the topics, and the messages that may be sent to and read from them.

use std::fs;

use holdfast_schemas::catalogue::{self, Entry};
use holdfast_schemas::topics::{
    DEAD_LETTERS, LEDGER_ENTRIES, PAYMENTS, PAYMENTS_OUTCOMES, RESERVATIONS, RESERVATIONS_OUTCOMES,
};
use holdfast_schemas::{DeadLetterReason, dead_letter};
use serde_json::{Map, Value, json};

/// The version of the contract: its last number is raised with every type or version that is added.
const CONTRACT: &str = "1.0.2";

pub(crate) fn document() -> Value {
    let events = catalogue::events();
    let outcomes = [catalogue::outcomes(), catalogue::ledger()].concat();
    let messages = events
        .iter()
        .chain(&outcomes)
        .map(|entry| (entry.name.to_owned(), message(entry)));
    let messages: Map<_, _> = messages.chain([("deadLetter".to_owned(), dead_letter())]).collect();
    let names = |topic| {
        let entries = events.iter().chain(&outcomes);
        entries
            .filter(|entry| entry.topic == topic)
            .map(|entry| entry.name)
            .collect::<Vec<_>>()
    };
    let about_in = "The gate takes records from any client and partitioner, in structured or binary mode.";
    let about_out = "in order of sequence for each, exactly once for read_committed consumers.";
    let about_dead =
        "Records that nobody can decide: their own key, value and headers, with the reason. At least once.";
    let about_ledger =
        "Movements of money and credits: in order for each checkout, exactly once for read_committed consumers.";
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Holdfast",
            "version": CONTRACT,
            "description": "Events in, outcomes out: CloudEvents 1.0 on Kafka, keyed by ticket or user; the ledger, by checkout.",
            "license": { "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" },
        },
        "defaultContentType": "application/cloudevents+json",
        "channels": {
            "reservations": channel(RESERVATIONS, &format!("Reservation events. {about_in}"), &names(RESERVATIONS)),
            "payments": channel(PAYMENTS, &format!("Payment events. {about_in}"), &names(PAYMENTS)),
            "reservationsOutcomes":
                channel(RESERVATIONS_OUTCOMES, &format!("What became of the tickets: {about_out}"), &names(RESERVATIONS_OUTCOMES)),
            "paymentsOutcomes":
                channel(PAYMENTS_OUTCOMES, &format!("What became of the users: {about_out}"), &names(PAYMENTS_OUTCOMES)),
            "ledgerEntries": channel(LEDGER_ENTRIES, about_ledger, &names(LEDGER_ENTRIES)),
            "deadLetters": channel(DEAD_LETTERS, about_dead, &["deadLetter"]),
        },
        "operations": {
            "takeReservations": operation("receive", "reservations", "Decides each event once."),
            "takePayments": operation("receive", "payments", "Decides each event once."),
            "tellReservationsOutcomes": operation("send", "reservationsOutcomes", "Tells what was decided, refusals included."),
            "tellPaymentsOutcomes": operation("send", "paymentsOutcomes", "Tells what was decided, refusals included."),
            "tellLedgerEntries": operation("send", "ledgerEntries", "Tells each movement of money or credits."),
            "refuseRecords": operation("send", "deadLetters", "Sets aside what cannot be decided."),
        },
        "components": { "messages": messages },
    })
}

fn channel(address: &str, description: &str, messages: &[&str]) -> Value {
    let reference = |name: &&str| {
        (
            (*name).to_owned(),
            json!({ "$ref": format!("#/components/messages/{name}") }),
        )
    };
    let messages: Map<_, _> = messages.iter().map(reference).collect();
    json!({
        "address": address,
        "description": description,
        "messages": messages,
        "bindings": { "kafka": { "topic": address, "bindingVersion": "0.5.0" } },
    })
}

fn operation(action: &str, channel: &str, summary: &str) -> Value {
    json!({ "action": action, "channel": { "$ref": format!("#/channels/{channel}") }, "summary": summary })
}

fn message(entry: &Entry) -> Value {
    let example = super::parsed(&fs::read(super::fixture(entry)).unwrap());
    json!({
        "name": entry.name,
        "title": entry.name,
        "summary": entry.description,
        "contentType": "application/cloudevents+json",
        "payload": { "$ref": format!("json/{}.json", entry.name) },
        "bindings": { "kafka": { "key": entry.attributes["subject"], "bindingVersion": "0.5.0" } },
        "examples": [{ "name": "structured", "payload": example }],
    })
}

fn dead_letter() -> Value {
    let reasons: Vec<_> = DeadLetterReason::ALL.iter().map(|reason| reason.as_str()).collect();
    let text = |description: &str| json!({ "type": "string", "description": description });
    let headers = json!({
        dead_letter::REASON: { "type": "string", "enum": reasons },
        dead_letter::DETAIL: text("What is wrong, where, and how to mend it."),
        dead_letter::ORIGIN_TOPIC: text("Where the record lay."),
        dead_letter::ORIGIN_PARTITION: text("Its partition, in decimal digits."),
        dead_letter::ORIGIN_OFFSET: text("Its offset, in decimal digits."),
        dead_letter::ORIGIN_TIMESTAMP: text("The broker's time of it, in milliseconds since 1970, in decimal digits."),
    });
    let required: Vec<_> = headers.as_object().unwrap().keys().collect();
    json!({
        "name": "deadLetter",
        "title": "Dead letter",
        "summary": "A record that nobody can decide, as it came.",
        "contentType": "application/octet-stream",
        "headers": { "type": "object", "properties": headers, "required": required },
        "payload": { "description": "The record's own value, byte by byte." },
    })
}
