//! Settings: Kafka.

use std::time::Duration;

use clap::Args;

use super::{Checks, KafkaSecurity};

/// The address of Kafka, and the layout of its topics.
#[derive(Args, Debug, Clone)]
pub struct Kafka {
    /// Kafka bootstrap servers, `host:port` separated by commas.
    #[arg(
        long = "kafka",
        env = "HOLDFAST_KAFKA",
        default_value = "127.0.0.1:9092",
        global = true
    )]
    pub bootstrap: String,
    /// Partitions of a topic that `register` creates; the outcome topics and the relay's own have their own number.
    #[arg(long, env = "HOLDFAST_PARTITIONS", default_value_t = 8, global = true)]
    pub partitions: i32,
    /// Partitions of an outcome topic that `register` creates: as many consumers as that share the work. Each that a batch of the relay
    /// touches costs Kafka a request, a marker, and what both take to reach the disk.
    #[arg(long, env = "HOLDFAST_OUTCOME_PARTITIONS", default_value_t = 2, global = true)]
    pub outcome_partitions: i32,
    /// Replicas of a topic that `register` creates.
    #[arg(long, env = "HOLDFAST_REPLICATION", default_value_t = 1, global = true)]
    pub replication: i32,
    /// Largest record on the public topics, in bytes.
    #[arg(long, env = "HOLDFAST_PUBLIC_RECORD_BYTES", default_value_t = 1 << 20, global = true)]
    pub public_record_bytes: usize,
    /// Largest record on the admitted and dead-letter topics, in bytes.
    #[arg(long, env = "HOLDFAST_ADMITTED_RECORD_BYTES", default_value_t = 4 << 20, global = true)]
    pub admitted_record_bytes: usize,
    /// Retention of the topics' records.
    #[arg(long, env = "HOLDFAST_TOPIC_RETENTION", default_value = "14d", value_parser = humantime::parse_duration, global = true)]
    pub topic_retention: Duration,
    #[command(flatten)]
    pub security: KafkaSecurity,
}

impl Kafka {
    pub(super) fn check(&self, checks: &mut Checks) {
        checks.require(bootstrap_is_well_formed(&self.bootstrap), "kafka", BOOTSTRAP_FORM);
        self.security.check(checks, &self.bootstrap);
        checks.require((1..=1_000).contains(&self.partitions), "partitions", "give 1 to 1000");
        checks.require(
            (1..=1_000).contains(&self.outcome_partitions),
            "outcome-partitions",
            "give 1 to 1000",
        );
        checks.require((1..=9).contains(&self.replication), "replication", "give 1 to 9");
        checks.require(
            (1_024..=16 << 20).contains(&self.public_record_bytes),
            "public-record-bytes",
            "give 1024 to 16777216 bytes",
        );
        checks.require(
            self.admitted_record_bytes >= 2 * self.public_record_bytes && self.admitted_record_bytes >= 1 << 20,
            "admitted-record-bytes",
            "give at least twice public-record-bytes, and at least 1048576: a dead letter is a public record and its headers",
        );
        checks.require(
            self.admitted_record_bytes <= 32 << 20,
            "admitted-record-bytes",
            "give at most 33554432: Restate takes no larger message",
        );
        checks.require(
            self.topic_retention >= Duration::from_secs(60),
            "topic-retention",
            "give at least 1m",
        );
    }
}

pub(super) const BOOTSTRAP_FORM: &str = "give host:port, several separated by commas";

pub(super) fn bootstrap_is_well_formed(bootstrap: &str) -> bool {
    !bootstrap.is_empty()
        && bootstrap.split(',').all(|server| {
            server
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        })
}
