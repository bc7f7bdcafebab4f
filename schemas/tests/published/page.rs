//! The catalogue page, for people.

use std::fmt::Write;
use std::fs;

use holdfast_schemas::catalogue::{self, Entry};
use holdfast_schemas::{
    CheckoutId, DeadLetterReason, Key, RefusalReason, TicketId, UserId, UserRefusalReason, dead_letter, topics,
};
use serde_json::{Map, Value};

pub(crate) fn page() -> String {
    let (events, outcomes, ledger) = (catalogue::events(), catalogue::outcomes(), catalogue::ledger());
    let mut page = format!("{HEAD}\n");
    page += &index("Event", &events);
    page += &index("Outcome", &outcomes);
    page += &index("Ledger", &ledger);
    page += &format!("\n## Events\n\n{EVENTS}\n\n{}", attributes(&events[0]));
    page.extend(events.iter().map(section));
    page += &format!("\n## Outcomes\n\n{OUTCOMES}\n\n{}", attributes(&outcomes[0]));
    page.extend(outcomes.iter().map(section));
    page += &format!("\n## The ledger\n\n{LEDGER}\n\n{}", attributes(&ledger[0]));
    page.extend(ledger.iter().map(section));
    page += &format!("\n## Reasons of a refusal\n\n{REFUSALS}\n\n{}", refusals());
    page += &format!("\n## Dead letters\n\n{DEAD_LETTERS}\n\n{}\n{}", headers(), reasons());
    page
}

const HEAD: &str = "\
# The catalogue

<!-- Generated: UPDATE=1 cargo test -p holdfast-schemas --test published -->

Everything that is said on the public topics. Each message is a [CloudEvent 1.0](https://cloudevents.io); its key is the
ticket, the user, or in the ledger the checkout, and so is its `subject`. The same as documents for tools: [JSON Schemas](../schemas/json),
[AsyncAPI 3](../schemas/asyncapi.json).";

const EVENTS: &str = "\
What may be asked, on the topics `reservations` and `payments`. Both content modes are taken:

- **structured**: header `content-type: application/cloudevents+json`, the whole event as JSON in the value. A record without
  any headers is taken so as well, when its value is such an object.
- **binary**: header `ce_specversion` and one header `ce_<attribute>` for each other attribute, `content-type:
  application/json`, the data as JSON in the value. An empty value is an event without data; a null value is a tombstone and
  refused in either mode.

When both are there, structured wins. The same event in the other mode, with its members in another order or its numbers
spelled differently, is the same event. Attributes that are not known are ignored; fields of the data that are not known are
refused, because a typing error must not become a default. An optional field may be absent or null. No text may contain
U+0000. Texts are bounded in bytes of UTF-8. Whole numbers have at most 53 bits. JSON may nest 32 deep.

Every event carries these attributes:";

const OUTCOMES: &str = "\
What became of it, on the topic with `.outcomes` to its name, always in structured mode. Every decision is told, refusals
too; only a change that changes nothing has no outcome. Outcomes of one ticket, or one user, stand in the order of `sequence`. Whoever meets an `id` again may drop it.

Every outcome carries these attributes:";

const LEDGER: &str = "\
Each movement of money or credits, on the topic `ledger.entries`, always in structured mode; [the ledger](ledger.md) says what the accounts
mean, and has the same as a view. The key is the checkout, whose entries stand in the order of its movements.

Every entry carries these attributes:";

const REFUSALS: &str = "What was asked is well said, and a rule forbids it.";

const DEAD_LETTERS: &str = "\
A record that cannot be decided goes to the topic `dead-letters` with its own key, value and headers, and the partition moves
on. (One that was refused by the database's knowledge, `too_old` or `id_reused`, may come as its structured form; its origin
says where the original lies.) The same record may be dead-lettered more than once: its origin tells repeats apart. It has
these headers as well:";

fn index(kind: &str, entries: &[Entry]) -> String {
    let mut table = format!("\n| {kind} | Topic | Key | Data |\n| --- | --- | --- | --- |\n");
    for entry in entries {
        let fields: Vec<_> = fields(&entry.data, "").iter().map(Field::short).collect();
        let fields = if fields.is_empty() {
            "none".to_owned()
        } else {
            fields.join(", ")
        };
        writeln!(
            table,
            "| [`{0}`](#{1}) | `{2}` | {3} | {fields} |",
            entry.name,
            anchor(entry.name),
            entry.topic,
            key(entry),
        )
        .unwrap();
    }
    table
}

fn key(entry: &Entry) -> &'static str {
    match entry.topic {
        topics::RESERVATIONS | topics::RESERVATIONS_OUTCOMES => TicketId::NAMES,
        topics::LEDGER_ENTRIES => CheckoutId::NAMES,
        _ => UserId::NAMES,
    }
}

fn attributes(of: &Entry) -> String {
    let schema = of.schema();
    let mut table = "| Attribute | Required | Bounds | Meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for (name, attribute) in &of.attributes {
        let meaning = match name.as_str() {
            "type" => "What it says: one of those below.",
            "specversion" => "The version of CloudEvents.",
            "source" if of.told => "Who says it.",
            "subject" if of.topic == topics::LEDGER_ENTRIES => "The checkout; the record's key as well.",
            "subject" => "The ticket or the user; the record's key as well.",
            "datacontenttype" => "The kind of the data.",
            _ => attribute["description"].as_str().unwrap_or_default(),
        };
        let bounds = if name == "type" {
            "text".to_owned()
        } else {
            bounds(attribute)
        };
        let required = if is_required(&schema, name) { "yes" } else { "no" };
        writeln!(table, "| `{name}` | {required} | {bounds} | {meaning} |").unwrap();
    }
    table
}

fn section(entry: &Entry) -> String {
    let mut section = format!("\n### {}\n\n{}\n", entry.name, entry.description);
    let fields = fields(&entry.data, "");
    if !fields.is_empty() {
        section += "\n| Field | Required | Bounds | Meaning |\n| --- | --- | --- | --- |\n";
    }
    for Field { name, required, schema } in fields {
        let meaning = schema["description"].as_str().unwrap_or_default();
        let required = if required { "yes" } else { "no" };
        writeln!(section, "| `{name}` | {required} | {} | {meaning} |", bounds(&schema)).unwrap();
    }
    let example = fs::read_to_string(super::fixture(entry)).unwrap();
    section + &format!("\n```json\n{example}```\n")
}

struct Field {
    name: String,
    required: bool,
    schema: Value,
}

impl Field {
    fn short(&self) -> String {
        format!("`{}`{}", self.name, if self.required { "" } else { "?" })
    }
}

/// The fields of an object, those of objects within it by their path.
fn fields(object: &Value, path: &str) -> Vec<Field> {
    let none = Map::new();
    let members = object["properties"].as_object().unwrap_or(&none);
    let mut fields: Vec<_> = members
        .iter()
        .flat_map(|(name, schema)| {
            let required = is_required(object, name);
            let name = format!("{path}{name}");
            match schema.get("properties") {
                Some(_) => fields(schema, &format!("{name}.")),
                None => vec![Field {
                    name,
                    required,
                    schema: schema.clone(),
                }],
            }
        })
        .collect();
    fields.sort_by_key(|field| !field.required);
    fields
}

fn is_required(object: &Value, name: &str) -> bool {
    object["required"]
        .as_array()
        .is_some_and(|required| required.iter().any(|required| required == name))
}

fn bounds(schema: &Value) -> String {
    if let Some(value) = schema.get("const") {
        return format!("`{}`", value.as_str().unwrap_or_default());
    }
    if schema.get("oneOf").is_some() || schema.get("enum").is_some() {
        return "one of the [reasons](#reasons-of-a-refusal)".to_owned();
    }
    if let (Some(min), Some(max)) = (schema.get("minimum"), schema.get("maximum")) {
        return format!("whole number, {min} to {max}");
    }
    if schema["type"] == "array" {
        return "a list".to_owned();
    }
    match (
        schema["type"].clone(),
        schema["format"].as_str(),
        schema.get("maxLength"),
    ) {
        (Value::String(kind), ..) if kind == "integer" => "whole number from 0".to_owned(),
        (_, Some("uuid"), _) => "UUID".to_owned(),
        (_, Some("date-time"), _) => "RFC 3339".to_owned(),
        (_, _, Some(max)) => format!("text, 1 to {max} bytes"),
        _ => schema["pattern"].as_str().map_or("text".to_owned(), |pattern| {
            format!("`{}`", pattern.replace('|', "\\|"))
        }),
    }
}

fn refusals() -> String {
    let mut table = "| Reason | Meaning | What to do |\n| --- | --- | --- |\n".to_owned();
    for reason in RefusalReason::ALL {
        writeln!(table, "| `{reason}` | {} | {} |", reason.meaning(), reason.mend()).unwrap();
    }
    for reason in UserRefusalReason::ALL {
        writeln!(
            table,
            "| `{}` | {} | {} |",
            reason.as_str(),
            reason.meaning(),
            reason.mend()
        )
        .unwrap();
    }
    table
}

fn headers() -> String {
    let mut table = "| Header | Value |\n| --- | --- |\n".to_owned();
    for (name, value) in [
        (dead_letter::REASON, "one of the reasons below"),
        (
            dead_letter::DETAIL,
            "what is wrong, where, and how to mend it; at most 1,000 bytes, never the data itself",
        ),
        (dead_letter::ORIGIN_TOPIC, "where the record lay"),
        (dead_letter::ORIGIN_PARTITION, "its partition"),
        (dead_letter::ORIGIN_OFFSET, "its offset"),
        (
            dead_letter::ORIGIN_TIMESTAMP,
            "the broker's time of it, in milliseconds since 1970",
        ),
    ] {
        writeln!(table, "| `{name}` | {value} |").unwrap();
    }
    table
}

fn reasons() -> String {
    let mut table = "| Reason | Meaning | What to do |\n| --- | --- | --- |\n".to_owned();
    for reason in DeadLetterReason::ALL {
        writeln!(table, "| `{reason}` | {} | {} |", reason.meaning(), reason.mend()).unwrap();
    }
    table
}

fn anchor(name: &str) -> String {
    name.replace('.', "")
}
