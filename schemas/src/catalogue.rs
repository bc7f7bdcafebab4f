//! Every type in every version, with its JSON Schema: the source of the published documents.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::identity::{MovementId, OutcomeId};
use crate::ledger;
use crate::moment::Moment;
use crate::text::{CheckoutId, EventId, Source};
use crate::version::Version;
use crate::{EventData, Key, OUTCOME_SOURCE, OutcomeData, TicketEvent, UserEvent, topics};

/// One type in one version.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The CloudEvents `type`.
    pub name: &'static str,
    pub topic: &'static str,
    /// True for an outcome or an entry of the ledger, false for an event.
    pub told: bool,
    /// Its meaning, for people.
    pub description: String,
    /// The attributes of a CloudEvent of this type: name to JSON Schema.
    pub attributes: Map<String, Value>,
    /// JSON Schema of the data.
    pub data: Value,
}

/// The events, topic by topic.
pub fn events() -> Vec<Entry> {
    [asked::<TicketEvent>(), asked::<UserEvent>()].concat()
}

/// The outcomes, topic by topic.
pub fn outcomes() -> Vec<Entry> {
    [
        told::<<TicketEvent as EventData>::Outcome>(),
        told::<<UserEvent as EventData>::Outcome>(),
    ]
    .concat()
}

/// The entries of the ledger.
pub fn ledger() -> Vec<Entry> {
    let versions = ledger::Entry::VERSIONS.iter();
    versions
        .map(|version| entry(version, topics::LEDGER_ENTRIES, true, attributes_of_the_ledger()))
        .collect()
}

fn asked<A: EventData>() -> Vec<Entry> {
    let versions = A::VERSIONS.iter();
    versions
        .map(|version| entry(version, A::TOPIC, false, attributes_asked::<A::Key>()))
        .collect()
}

fn told<T: OutcomeData>() -> Vec<Entry> {
    let versions = T::VERSIONS.iter();
    versions
        .map(|version| entry(version, T::TOPIC, true, attributes_told::<T::Key>()))
        .collect()
}

impl Entry {
    /// JSON Schema (draft 7, which AsyncAPI tools read as well) of the whole CloudEvent in structured mode.
    pub fn schema(&self) -> Value {
        let optional = ["datacontenttype", "traceparent"].map(Value::from);
        let told = self.told;
        let mut required: Vec<_> = self.attributes.keys().map(|name| json!(name)).collect();
        required.retain(|name| told || !optional.contains(name));
        let mut properties = self.attributes.clone();
        let mut data = self.data.clone();
        match told || !self.allows_no_data() {
            true => required.push(json!("data")),
            false => data["type"] = json!(["object", "null"]),
        }
        properties.insert("data".to_owned(), data);
        json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "title": self.name,
            "description": self.description,
            "type": "object",
            "properties": properties,
            "required": required,
        })
    }

    /// True if absent data is valid, because no field is required.
    pub fn allows_no_data(&self) -> bool {
        self.data.get("required").is_none()
    }
}

fn entry<T>(version: &Version<T>, topic: &'static str, told: bool, mut attributes: Map<String, Value>) -> Entry {
    let mut data = (version.schema)(generator()).to_value();
    let mut description = String::new();
    if let Some(members) = data.as_object_mut() {
        members.remove("$schema");
        members.remove("title");
        if let Some(Value::String(text)) = members.remove("description") {
            description = text;
        }
    }
    attributes.insert("type".to_owned(), json!({ "const": version.name }));
    Entry {
        name: version.name,
        topic,
        told,
        description,
        attributes,
        data,
    }
}

fn attributes_asked<K: Key>() -> Map<String, Value> {
    let mut source =
        described::<Source>("Who says it. What begins with `holdfast` or `restate:` is Holdfast's own, and refused.");
    source["not"] = json!({ "pattern": "^(holdfast|restate:)" });
    let id = described::<EventId>("Names the event, together with the source, for ever: a repeat has the same.");
    let time = "When it happened, by its producer; a repeat has the same. Years 1970 to 9999, at most an hour ahead of the broker's \
                clock.";
    let content_type = json!({
        "type": "string",
        "description": "application/json, or absent.",
        "pattern": "^application/json *(;.*)?$",
    });
    let mut attributes = common::<K>(
        source,
        id,
        time,
        "Trace context by W3C, if any; an invalid one is ignored.",
    );
    attributes.insert("datacontenttype".to_owned(), content_type);
    attributes
}

fn attributes_told<K: Key>() -> Map<String, Value> {
    let source = json!({ "const": OUTCOME_SOURCE });
    let id = "Follows from the cause: the same outcome has the same id, however often it is computed.";
    let id = described::<OutcomeId>(id);
    let mut attributes = common::<K>(
        source,
        id,
        "When it was decided.",
        "Trace context by W3C, of the event that it answers.",
    );
    let more = [
        ("datacontenttype", json!({ "const": "application/json" })),
        (
            "sequence",
            count("Counts the outcomes of one subject without a gap, from 1; 0 when there is no such subject."),
        ),
        (
            "generation",
            count("Rises when the database was put back: order by generation, then by sequence."),
        ),
        (
            "causationsource",
            described::<Source>("The source of the event that it answers."),
        ),
        (
            "causationid",
            described::<EventId>("The id of the event that it answers."),
        ),
    ];
    attributes.extend(more.map(|(name, schema)| (name.to_owned(), schema)));
    attributes
}

fn attributes_of_the_ledger() -> Map<String, Value> {
    let source = json!({ "const": OUTCOME_SOURCE });
    let id = described::<MovementId>("The movement: the same as `movement` in the view `ledger_entries`.");
    let mut attributes = common::<CheckoutId>(source, id, "When it was written.", "");
    attributes.remove("traceparent");
    attributes.insert("datacontenttype".to_owned(), json!({ "const": "application/json" }));
    attributes
}

fn common<K: Key>(source: Value, id: Value, time: &str, trace: &str) -> Map<String, Value> {
    let traceparent = json!({
        "type": "string",
        "description": trace,
        "pattern": "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}",
    });
    let attributes = [
        ("specversion", json!({ "const": "1.0" })),
        ("source", source),
        ("id", id),
        (
            "subject",
            described::<K>(&format!("The {}; the record's key as well.", K::NAMES)),
        ),
        ("time", described::<Moment>(time)),
        ("traceparent", traceparent),
    ];
    attributes
        .map(|(name, schema)| (name.to_owned(), schema))
        .into_iter()
        .collect()
}

fn described<T: JsonSchema>(description: &str) -> Value {
    let mut schema = generator().subschema_for::<T>().to_value();
    schema["description"] = json!(description);
    schema
}

fn count(description: &str) -> Value {
    json!({ "type": "integer", "minimum": 0, "description": description })
}

fn generator() -> SchemaGenerator {
    SchemaSettings::draft07().into_generator()
}
