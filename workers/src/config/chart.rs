//! The chart's schema knows every setting: each is a value of the chart, by its name, and nothing else is.

use std::fs;
use std::path::Path;

use clap::builder::ValueHint;
use clap::{Arg, CommandFactory};
use serde_json::{Map, Value, json};

use super::Cli;
use super::secret::SECRETS;

/// Settings that the chart gives by itself.
const OWN: [&str; 6] = [
    "instance",
    "http-listen",
    "health-listen",
    "serve-listen",
    "webhook-listen",
    "drain-timeout",
];

/// `UPDATE=1` writes them anew.
#[test]
fn the_charts_schema_has_every_setting() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/chart/values.schema.json");
    let mut schema: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let (settings, files) = settings_and_files();
    if std::env::var_os("UPDATE").is_some() {
        schema["$defs"]["settings"]["properties"] = settings.into();
        schema["$defs"]["files"]["properties"] = files.into();
        fs::write(&file, serde_json::to_string_pretty(&schema).unwrap() + "\n").unwrap();
        return;
    }
    let update = "UPDATE=1 cargo test --workspace --lib chart";
    assert_eq!(
        schema["$defs"]["settings"]["properties"],
        Value::Object(settings),
        "{update}"
    );
    assert_eq!(schema["$defs"]["files"]["properties"], Value::Object(files), "{update}");
}

/// What the values `settings` and `files` may hold. A secret is given as a file.
fn settings_and_files() -> (Map<String, Value>, Map<String, Value>) {
    let command = Cli::command();
    let all = command
        .get_arguments()
        .chain(command.get_subcommands().flat_map(clap::Command::get_arguments));
    let (mut settings, mut files) = (Map::new(), Map::new());
    for argument in all.filter(|argument| argument.get_env().is_some()) {
        let Some(flag) = argument.get_long() else { continue };
        let is_secret = SECRETS.contains(&flag) && flag != "kafka-property";
        if OWN.contains(&flag) || is_secret {
            continue;
        }
        let is_file = argument
            .get_value_names()
            .is_some_and(|names| names.iter().any(|name| name.as_str() == "FILE"));
        if is_file || argument.get_value_hint() == ValueHint::AnyPath {
            files.insert(
                flag.to_owned(),
                json!({ "$ref": "#/$defs/file", "description": help(argument) }),
            );
        } else {
            let types = ["string", "number", "boolean"];
            settings.insert(flag.to_owned(), json!({ "type": types, "description": help(argument) }));
        }
    }
    (settings, files)
}

fn help(argument: &Arg) -> String {
    argument.get_help().map(ToString::to_string).unwrap_or_default()
}
