//! The subcommands.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

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
    },
    /// Prove the promises from outside; exits 1 and names the offending keys when one is broken.
    Verify {
        /// Print the counts as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Reach every server with the settings given, and say what is wrong and how to mend it; exits 1 when something is.
    Doctor {
        /// The roles that are to work with these settings: what they speak to is looked at, and whether they have their rights
        /// there. `run` stands for gate, serve, relay and register, and for webhook where there is a secret for it.
        #[arg(long = "role", value_name = "ROLE", value_delimiter = ',', default_value = "run")]
        roles: Vec<RoleName>,
        /// The engine reads the public topics itself, as `register --direct` has it.
        #[arg(long)]
        direct: bool,
        /// Print the checks as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Look at and settle what waits for an operator.
    #[command(subcommand)]
    Admin(Admin),
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

/// The commands of an operator.
#[derive(Subcommand, Debug, Clone)]
pub enum Admin {
    /// Records that could not be decided.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Rows that wait for Kafka.
    #[command(subcommand)]
    Outbox(Outbox),
    /// What the relay and Kafka agree on.
    #[command(subcommand)]
    Relay(RelayCommand),
    /// Tickets, now and earlier.
    #[command(subcommand)]
    Ticket(TicketCommand),
    /// Users, now and earlier.
    #[command(subcommand)]
    User(UserCommand),
    /// Checkouts.
    #[command(subcommand)]
    Checkout(CheckoutCommand),
    /// Mails to customers.
    #[command(subcommand)]
    Mail(MailCommand),
    /// Shows.
    #[command(subcommand)]
    Show(ShowCommand),
    /// List the orders of a user, or those with seats of a show, the newest first.
    Orders(Orders),
    /// Show a show's tickets by status, and what its seats brought in.
    Sales(Sales),
}

/// Which orders to list.
#[derive(Args, Debug, Clone)]
pub struct Orders {
    /// The orders of this user.
    #[arg(long, required_unless_present = "show")]
    pub user: Option<String>,
    /// The orders with seats of this show.
    #[arg(long)]
    pub show: Option<String>,
    /// Those before this one: the order that the page before ended with.
    #[arg(long, value_name = "CHECKOUT")]
    pub before: Option<String>,
    /// Most orders of a page.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub limit: u32,
    /// Print the page as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Which sales to show.
#[derive(Args, Debug, Clone)]
pub struct Sales {
    #[arg(long)]
    pub show: String,
    /// Print them as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Commands on mails.
#[derive(Subcommand, Debug, Clone)]
pub enum MailCommand {
    /// Write the templates that come with Holdfast to a folder, as a start for --mail-templates. No file is written over.
    Templates {
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
    },
}

/// Commands on checkouts.
#[derive(Subcommand, Debug, Clone)]
pub enum CheckoutCommand {
    /// List the checkouts that are stuck, each with its reason.
    List,
    /// Show one checkout.
    Show { checkout: String },
    /// Ask the payment provider again and take the checkout to its end.
    Settle {
        checkout: String,
        /// Give money and seats back, whatever could still come of it.
        #[arg(long)]
        give_back: bool,
    },
    /// Take tickets of a completed checkout back from their buyer, and give back what was paid for them.
    Return(Return),
}

/// Which part of an order to return.
#[derive(Args, Debug, Clone)]
pub struct Return {
    pub checkout: String,
    /// Only these tickets, separated by commas; without it, all that are still the buyer's.
    #[arg(
        long = "ticket",
        value_name = "TICKET",
        value_delimiter = ',',
        conflicts_with = "keep_seats"
    )]
    pub tickets: Vec<String>,
    /// Leave every seat with the buyer, and give money back alone.
    #[arg(long, requires = "refund")]
    pub keep_seats: bool,
    /// Give so much back, in minor units, of the money first and then of the credits; 0 gives nothing back. Without it, what the tickets
    /// cost, as far as it was not given back before.
    #[arg(long, value_name = "AMOUNT")]
    pub refund: Option<i64>,
    /// The tickets are not for sale again.
    #[arg(long)]
    pub off_sale: bool,
    /// The id of this return: a repeat with the same one changes nothing. Without it, every run is a return of its own.
    #[arg(long)]
    pub id: Option<String>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Commands on shows.
#[derive(Subcommand, Debug, Clone)]
pub enum ShowCommand {
    /// Take every ticket of a show off sale, give up the checkouts under way, and return the orders. Safe to repeat: a run goes on where
    /// the one before it has stopped.
    Cancel {
        show: String,
        /// Give nothing back.
        #[arg(long)]
        no_refund: bool,
        /// Say what would be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Commands on tickets.
#[derive(Subcommand, Debug, Clone)]
pub enum TicketCommand {
    /// Show the ticket as it is, or was, and every change up to then.
    Show {
        ticket: String,
        #[command(flatten)]
        state: PointInTime,
    },
    /// Show the ticket's attributes as they are, or were, and every change up to then. They have versions of their own.
    Attributes {
        ticket: String,
        #[command(flatten)]
        state: PointInTime,
    },
}

/// Commands on users.
#[derive(Subcommand, Debug, Clone)]
pub enum UserCommand {
    /// Show since when the user is known, the credits given, and every change up to then. The profile's values are in no log.
    Show {
        user: String,
        #[command(flatten)]
        state: PointInTime,
    },
}

/// The state to show of an entity with a change log; without either option, the newest.
#[derive(Args, Debug, Clone, Copy)]
pub struct PointInTime {
    /// As it was at this moment by the database's clock, such as 2030-01-31T19:30:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "as_of")]
    pub at: Option<OffsetDateTime>,
    /// As of this version.
    #[arg(long, value_name = "VERSION")]
    pub as_of: Option<i64>,
}

/// Commands on dead letters. An origin is written `topic/partition/offset`.
#[derive(Subcommand, Debug, Clone)]
pub enum DeadLetters {
    /// List the dead letters that are not settled.
    List,
    /// Show one dead letter: headers, key and bytes.
    Show { origin: String },
    /// Send the original bytes to the origin topic again, and settle the dead letter.
    Replay { origin: String },
    /// Settle the dead letter without sending it again.
    Drop { origin: String },
}

/// Commands on outbox rows.
#[derive(Subcommand, Debug, Clone)]
pub enum Outbox {
    /// List the rows that Kafka refused.
    List,
    /// Let the relay try refused rows again.
    Retry(Retry),
    /// Delete a refused row for good: its outcome is never sent to Kafka.
    Drop { id: i64 },
}

/// Which refused rows to try again. Those that fit all that is given.
#[derive(Args, Debug, Clone)]
#[group(required = true, multiple = true)]
pub struct Retry {
    /// The row of this id.
    #[arg(conflicts_with_all = ["all", "topic", "reason"])]
    pub id: Option<i64>,
    /// Every refused row.
    #[arg(long, conflicts_with_all = ["topic", "reason"])]
    pub all: bool,
    /// Those for this topic.
    #[arg(long)]
    pub topic: Option<String>,
    /// Those whose reason holds this text, in upper or lower case.
    #[arg(long)]
    pub reason: Option<String>,
}

/// Commands on what the relay and Kafka agree on.
#[derive(Subcommand, Debug, Clone)]
pub enum RelayCommand {
    /// Compare the ends of the outcome topics with the outbox and the change logs, and have Kafka agree with the database when nothing
    /// would be told twice or never. Every relay must be stopped.
    Accept {
        /// Delete the outbox rows whose outcomes were told already.
        #[arg(long)]
        drop_told: bool,
        /// Accept the state whatever is found.
        #[arg(long)]
        anyway: bool,
    },
}

fn moment(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "give a moment such as 2030-01-31T19:30:00Z".to_owned())
}
