//! The subcommands.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use url::Url;

use super::Checks;
use super::admin::AdminCommand;
use super::plan::Plan;
use super::roles::{Granted, Roles};

/// The work of one `holdfast` process.
#[derive(Subcommand, Debug, Clone)]
pub enum Role {
    /// Take events from the public topics, check them and hand them on, gathered by key.
    Gate,
    /// Serve the Ticket and User objects, the Checkout workflow and the Reaper to Restate; send mails, sweep expired records, and
    /// drive abandoned checkouts.
    Serve,
    /// Bring outcomes from the outbox to Kafka, exactly once.
    Relay,
    /// Receive the payment provider's signed events and produce them to Kafka.
    Webhook,
    /// Migrate if a migration is missing, serve, register, then gate and relay, in one process; webhooks too, where there is a secret
    /// for them.
    Run {
        /// Leave the database's tables as they are.
        #[arg(long)]
        no_migrate: bool,
        /// Leave topics, deployment and subscriptions as they are.
        #[arg(long)]
        no_register: bool,
    },
    /// Bring the database's tables up to date, as their owner.
    Migrate {
        /// Then give the roles exactly the rights that they need.
        #[arg(long)]
        grants: bool,
        /// Print the statements that do so, and do nothing else; those of the loyalty database are for its owner.
        #[arg(long, value_name = "DATABASE", num_args = 0..=1, default_missing_value = "main", conflicts_with = "grants")]
        print_grants: Option<Granted>,
        #[command(flatten)]
        roles: Roles,
    },
    /// Create or check topics, Kafka cluster, deployment and subscriptions; safe to repeat.
    Register {
        /// Subscribe the public topics themselves: producers keep the contract, and no gate stands before the handlers.
        #[arg(long)]
        direct: bool,
        /// Then remove the handlers of earlier releases to which nothing goes any more and at which no invocation has to end; of the
        /// others the report says what they wait for.
        #[arg(long)]
        prune: bool,
    },
    /// Prove the promises from outside; exits 1 and names the offending keys when one is broken.
    Verify {
        /// Print the counts as one JSON object.
        #[arg(long)]
        json: bool,
        /// Look again and again, for as long as the system runs: what is new soon, everything slowly. What is found is told by metrics and
        /// in the log.
        #[arg(long, conflicts_with = "json")]
        watch: bool,
    },
    /// Reach every server with the settings given, and say what is wrong and how to mend it; exits 1 when something is.
    Doctor {
        /// The roles that are to work with these settings: what they speak to is looked at, and whether they have their rights
        /// there. `run` stands for gate, serve, relay and register, and for webhook where there is a secret for it.
        #[arg(long = "role", value_name = "ROLE", value_delimiter = ',', default_value = "run")]
        roles: Vec<RoleName>,
        /// Look only at these, separated by commas.
        #[arg(long, value_name = "PART", value_delimiter = ',')]
        only: Vec<Part>,
        /// A transaction that is open in Postgres for longer is named.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
        long_open: Duration,
        /// The Prometheus that knows how full the servers' disks are, from node_exporter or the kubelets, such as
        /// http://127.0.0.1:9090. Without it nobody looks at them.
        #[arg(long, env = "HOLDFAST_PROMETHEUS", value_name = "URL")]
        prometheus: Option<Url>,
        /// The engine reads the public topics itself, as `register --direct` has it.
        #[arg(long)]
        direct: bool,
        /// Print the checks as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Ask the process with these settings on this machine whether it lives, or is ready; exits 1 when not. For images without a shell.
    Health {
        /// Ask whether it is ready, too.
        #[arg(long)]
        ready: bool,
    },
    /// Say what a load needs (cores, pods, disk, partitions, connections) and what limits it next, from costs that were measured; reaches
    /// no server.
    Plan(Plan),
    /// Look at and settle what waits for an operator.
    Admin(AdminCommand),
}

impl Role {
    /// Checks what the command has of its own.
    pub(super) fn check(&self, checks: &mut Checks) {
        match self {
            Role::Migrate { roles, .. } => roles.check(checks),
            Role::Doctor {
                prometheus: Some(url), ..
            } => checks.require(
                ["http", "https"].contains(&url.scheme())
                    && url.username().is_empty()
                    && url.password().is_none()
                    && url.query().is_none(),
                "prometheus",
                "give https://host:port, without user, password and query: doctor prints this address",
            ),
            _ => {}
        }
    }
}

/// A role by its name.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleName {
    Run,
    Gate,
    Serve,
    Relay,
    Webhook,
    Register,
    Verify,
    Admin,
}

/// A dependency that `doctor` looks at.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Kafka,
    Postgres,
    Loyalty,
    Restate,
    Provider,
    Mail,
    Disks,
}
