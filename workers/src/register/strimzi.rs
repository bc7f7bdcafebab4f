//! The topics and users for Kafka's operator Strimzi are those that `register` wants, with the rights in `deploy/kafka/rights`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path as File;

use clap::Parser;

use super::Path;
use super::topics::wanted;
use crate::config::Cli;

const RIGHTS: &str = include_str!("../../../deploy/kafka/rights");

/// Who works in a cluster. The others are of the shop, or of a day on which a store went back in time.
const USERS: [&str; 7] = ["gate", "relay", "webhook", "register", "verify", "admin", "engine"];

/// `UPDATE=1` writes them anew.
#[test]
fn the_topics_and_users_for_strimzi_are_those_that_register_wants() {
    let file =
        File::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/operators/strimzi-topics-and-users.yaml");
    let text = HEAD.to_owned() + &topics() + &users();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let update = "UPDATE=1 cargo test --workspace --lib strimzi";
    assert_eq!(fs::read_to_string(&file).unwrap(), text, "{update}");
}

const HEAD: &str = "\
# Topics and users of the cluster `kafka` (strimzi-cluster.yaml), as `holdfast register --replication 3` wants them, with the rights in
# deploy/kafka/rights. A test writes this file. Topics may also be left to register: Strimzi does not touch topics that it does not know.
# More partitions: set --partitions and --outcome-partitions to what stands here. Strimzi keeps each user's password in a secret of its name.
";

fn topics() -> String {
    let cli = Cli::parse_from(["holdfast", "--replication", "3", "register"]);
    let mut text = String::new();
    for topic in wanted(&cli.config, Path::Gate) {
        let (name, partitions) = (topic.name, topic.partitions);
        write!(
            text,
            "---\napiVersion: kafka.strimzi.io/v1\nkind: KafkaTopic\nmetadata:\n  name: {name}\n  namespace: kafka\n  labels: \
             {{strimzi.io/cluster: kafka}}\nspec:\n  partitions: {partitions}\n  replicas: 3\n  config:\n"
        )
        .unwrap();
        for (setting, value) in topic.settings {
            writeln!(text, "    {setting}: {value}").unwrap();
        }
    }
    text
}

fn users() -> String {
    let mut text = String::new();
    for user in USERS {
        let mut operations: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
        for line in RIGHTS.lines().filter(|line| line.split(' ').next() == Some(user)) {
            let [_, operation, kind, name] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}");
            };
            operations.entry((kind, name)).or_default().push(camel(operation));
        }
        write!(
            text,
            "---\napiVersion: kafka.strimzi.io/v1\nkind: KafkaUser\nmetadata:\n  name: {user}\n  namespace: kafka\n  labels: \
             {{strimzi.io/cluster: kafka}}\nspec:\n  authentication: {{type: scram-sha-512}}\n  authorization:\n    type: simple\n    acls:\n"
        )
        .unwrap();
        for ((kind, name), operations) in operations {
            let kind = if kind == "transactional-id" {
                "transactionalId"
            } else {
                kind
            };
            let resource = match name.strip_suffix('*') {
                Some(beginning) => format!("{{type: {kind}, name: {beginning}, patternType: prefix}}"),
                None => format!("{{type: {kind}, name: {name}, patternType: literal}}"),
            };
            writeln!(
                text,
                "      - resource: {resource}\n        operations: [{}]",
                operations.join(", ")
            )
            .unwrap();
        }
    }
    text
}

/// `DESCRIBE_CONFIGS` as `DescribeConfigs`.
fn camel(words: &str) -> String {
    let words = words
        .split('_')
        .map(|word| word[..1].to_owned() + &word[1..].to_lowercase());
    words.collect()
}
