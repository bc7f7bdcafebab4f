//! The published files agree with the crate: JSON Schemas, the AsyncAPI document, the catalogue page, and one fixture for
//! every version that ever was.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files fails")]

mod asyncapi;
mod page;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use holdfast_schemas::catalogue::{self, Entry};
use holdfast_schemas::{Event, EventData, Key, Outcome, Record, TicketEvent, UserEvent, decode, ledger, topics};
use serde_json::{Value, json};

const UPDATE: &str = "UPDATE=1 cargo test -p holdfast-schemas --test published";

#[test]
fn the_published_json_schemas_are_those_of_the_code() {
    let published = entries()
        .into_iter()
        .map(|entry| (format!("{}.json", entry.name), pretty(&entry.schema())));
    let published: Vec<_> = published.collect();
    for (name, schema) in &published {
        must_be(&folder("json").join(name), schema);
    }
    let expected: BTreeSet<_> = published.into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names(&folder("json")),
        expected,
        "schemas/json holds a schema of no type"
    );
}

#[test]
fn the_asyncapi_document_is_that_of_the_code() {
    must_be(&folder("asyncapi.json"), &pretty(&asyncapi::document()));
}

#[test]
fn the_catalogue_page_is_that_of_the_code() {
    must_be(&folder("../docs/catalogue.md"), &page::page());
}

#[test]
fn every_version_ever_published_keeps_decoding() {
    for entry in entries() {
        let fixture = fixture(&entry);
        let decoded = read_back(&entry, &fs::read(&fixture).unwrap());
        let expected = fixture.with_extension("expected.json");
        if updating() && !expected.exists() {
            fs::write(&expected, pretty(&decoded)).unwrap();
        }
        let why = "a fixture is never edited; once a newer version is current, delete the expected file and run";
        let expected = fs::read(&expected).unwrap_or_default();
        assert_eq!(parsed(&expected), decoded, "{}: {why} {UPDATE}", entry.name);
    }
}

#[test]
fn every_fixture_is_valid_by_its_json_schema() {
    for entry in entries() {
        let validator = jsonschema::options()
            .should_validate_formats(true)
            .build(&entry.schema())
            .unwrap();
        let event = parsed(&fs::read(fixture(&entry)).unwrap());
        let errors: Vec<_> = validator.iter_errors(&event).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", entry.name);
        assert!(!validator.is_valid(&json!({})), "{}", entry.name);
    }
}

#[test]
fn every_fixture_is_of_a_known_version() {
    let known: BTreeSet<_> = entries()
        .iter()
        .flat_map(|entry| [fixture(entry), expected(entry)])
        .collect();
    for folder in fs::read_dir(folder("fixtures")).unwrap() {
        for file in fs::read_dir(folder.unwrap().path()).unwrap() {
            let file = file.unwrap().path();
            assert!(
                known.contains(&file),
                "{} is a fixture of a version that is no longer read",
                file.display()
            );
        }
    }
}

fn entries() -> Vec<Entry> {
    [catalogue::events(), catalogue::outcomes(), catalogue::ledger()].concat()
}

/// The decoded fixture in its current form, and its hash, which must never change.
fn read_back(entry: &Entry, fixture: &[u8]) -> Value {
    match entry.topic {
        topics::RESERVATIONS | topics::RESERVATIONS_OUTCOMES => read_back_as::<TicketEvent>(entry, fixture),
        topics::LEDGER_ENTRIES => json!({ "current": parsed(&ledger::Entry::from_json(fixture).unwrap().to_json()) }),
        _ => read_back_as::<UserEvent>(entry, fixture),
    }
}

fn read_back_as<A: EventData>(entry: &Entry, fixture: &[u8]) -> Value {
    if entry.told {
        return json!({ "current": parsed(&Outcome::<A::Outcome>::from_json(fixture).unwrap().to_json()) });
    }
    let subject = A::Key::parse(parsed(fixture)["subject"].as_str().unwrap()).unwrap();
    let headers = vec![("content-type", Some(&b"application/cloudevents+json"[..]))];
    let event: Event<A> = decode(&Record {
        key: Some(subject.as_str().as_bytes()),
        value: Some(fixture),
        headers,
    })
    .unwrap();
    assert_eq!(event.event_type(), entry.name);
    let hash = format!("{:?}", event.hash());
    let Event {
        source,
        id,
        time,
        traceparent,
        subject,
        data,
        ..
    } = event;
    let current = Event::new(source, id, time, Some(traceparent), subject, data);
    json!({ "current": parsed(&current.to_json()), "hash": hash })
}

fn fixture(entry: &Entry) -> PathBuf {
    let (stem, version) = entry.name.rsplit_once('.').unwrap();
    folder("fixtures").join(stem).join(format!("{version}.json"))
}

fn expected(entry: &Entry) -> PathBuf {
    fixture(entry).with_extension("expected.json")
}

#[track_caller]
fn must_be(path: &Path, content: &str) {
    if updating() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == content,
        "{} is not what the code says; run {UPDATE}",
        path.display()
    );
}

fn updating() -> bool {
    std::env::var_os("UPDATE").is_some_and(|update| update == "1")
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(folder).unwrap();
    files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn parsed(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap_or_default()
}

fn pretty(json: &Value) -> String {
    serde_json::to_string_pretty(json).unwrap() + "\n"
}
