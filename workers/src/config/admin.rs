//! The commands of operators.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::choice::{Chosen, Filters, OneKey, PointInTime, Quarantined, Settle, moment};
use super::reprocess::Reprocess;

/// One command of an operator. Exit codes: 0 done, 1 something was not done or not found, 2 a setting or the command line is wrong.
#[derive(Args, Debug, Clone)]
pub struct AdminCommand {
    /// How long to wait for an answer of a server.
    #[arg(id = "answer-timeout", long = "timeout", value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration, global = true)]
    pub timeout: Duration,
    #[command(subcommand)]
    pub what: Admin,
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
    /// Tickets and users whose events break Holdfast itself, and what is parked for them.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// What the relay and Kafka agree on.
    #[command(subcommand)]
    Relay(RelayCommand),
    /// Records that are to be read again, on purpose.
    #[command(subcommand)]
    Reprocess(Reprocess),
    /// Stores that went back in time, or lost what they had. Every process must be stopped.
    #[command(subcommand)]
    Recover(RecoverCommand),
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
    /// List what waits in Restate for tickets and users, by object and key, the longest queues first.
    Inbox(Inbox),
    /// List what operators did, by whom and why, the newest first.
    Log(ActFilters),
}

/// Commands on dead letters. An origin is written `topic/partition/offset`.
#[derive(Subcommand, Debug, Clone)]
pub enum DeadLetters {
    /// List the dead letters that are not settled, by reason.
    List {
        #[command(flatten)]
        filters: Filters,
        /// Print them as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter: reason, key and headers, and what was done with it.
    Show {
        origin: String,
        /// Print the value. It may hold personal data.
        #[arg(long)]
        payload: bool,
        /// Print it as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Send the original records to their topics again, in the order in which they lay there, and settle the dead letters. It stops
    /// where one cannot be sent.
    Replay {
        #[command(flatten)]
        chosen: Chosen,
        /// Send what this file holds in place of the value. For one dead letter.
        #[arg(long, value_name = "FILE", requires = "names")]
        value: Option<PathBuf>,
        /// Send this header in place of those with its name. For one dead letter.
        #[arg(long = "header", value_name = "NAME=VALUE", requires = "names")]
        headers: Vec<String>,
        #[command(flatten)]
        settle: Settle,
    },
    /// Settle dead letters without sending them again.
    Drop {
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        settle: Settle,
    },
}

/// Commands on outbox rows.
#[derive(Subcommand, Debug, Clone)]
pub enum Outbox {
    /// List the rows that Kafka refused, by reason.
    List {
        #[command(flatten)]
        filters: Filters,
        /// Print them as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show one row, refused or not, and what was done with it.
    Show {
        id: i64,
        /// Print the value.
        #[arg(long)]
        payload: bool,
        /// Print it as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Let the relay try refused rows again.
    Retry {
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        settle: Settle,
    },
    /// Delete refused rows for good: their outcomes are never sent to Kafka.
    Drop {
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        settle: Settle,
    },
}

/// Commands on mails. A mail is written `checkout/place`, as `list` prints it.
#[derive(Subcommand, Debug, Clone)]
pub enum MailCommand {
    /// Write the templates that come with Holdfast to a folder, as a start for --mail-templates. No file is written over.
    Templates {
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
    },
    /// List the mails that were refused for good, and those that wait, by state and the mail server's last answer.
    List {
        #[command(flatten)]
        chosen: MailFilters,
        /// Print them as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show one mail: whom it is to, how it stands, and what was done with it. The address is never printed.
    Show {
        mail: String,
        /// Print it as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Send mails after all that were refused, or, with --state off, those for which no mail server was set.
    Retry {
        #[command(flatten)]
        chosen: ChosenMails,
        #[command(flatten)]
        settle: Settle,
    },
    /// Give up mails that wait or were refused: they are never sent, and listed no more.
    Drop {
        #[command(flatten)]
        chosen: ChosenMails,
        #[command(flatten)]
        settle: Settle,
    },
}

/// Which mails are listed: those that fit all that is given.
#[derive(Args, Debug, Clone)]
pub struct MailFilters {
    /// Those in this state; `late` are those that wait for longer than --late-after.
    #[arg(long, value_parser = ["refused", "waiting", "late", "off"])]
    pub state: Option<String>,
    /// Those to this user.
    #[arg(long)]
    pub user: Option<String>,
    /// Those with this answer of the mail server.
    #[arg(long)]
    pub code: Option<i16>,
    /// Those written at this moment or later, such as 2030-01-31T19:30:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<time::OffsetDateTime>,
    /// Those written before this moment.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<time::OffsetDateTime>,
    /// How long a mail may wait before it is late.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    pub late_after: Duration,
}

/// Which mails are meant: those that fit all that is given.
#[derive(Args, Debug, Clone)]
#[command(group(clap::ArgGroup::new("mails-meant").required(true).multiple(true).args(["names", "all", "state", "user", "code", "since", "until"])))]
pub struct ChosenMails {
    /// These: `checkout/place`, as `list` prints them.
    #[arg(value_name = "MAIL")]
    pub names: Vec<String>,
    #[command(flatten)]
    pub filters: MailFilters,
    /// All of them.
    #[arg(long, conflicts_with_all = ["names", "state", "user", "code", "since", "until"])]
    pub all: bool,
}

/// Which queues to list.
#[derive(Args, Debug, Clone)]
pub struct Inbox {
    /// Those of this object.
    #[arg(long, value_parser = ["Ticket", "User", "Account"])]
    pub object: Option<String>,
    /// Those of this key.
    #[arg(id = "object-key", long = "key", value_name = "KEY")]
    pub key: Option<String>,
    /// Only keys that do not get on: whose first invocation is paused, or fails again and again.
    #[arg(long)]
    pub stuck: bool,
    /// Most keys to list.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Print them as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Which acts to list.
#[derive(Args, Debug, Clone)]
pub struct ActFilters {
    /// Those of this operator.
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
    /// Those on this: an origin, a row's id, a mail, a checkout, a show, a topic.
    #[arg(long)]
    pub on: Option<String>,
    /// Those at this moment or later, such as 2030-01-31T19:30:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<time::OffsetDateTime>,
    /// Those before this moment.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<time::OffsetDateTime>,
    /// Most acts to list.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Print them as one JSON object.
    #[arg(long)]
    pub json: bool,
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

/// Commands on checkouts.
#[derive(Subcommand, Debug, Clone)]
pub enum CheckoutCommand {
    /// List the checkouts that are stuck, each with its reason.
    List {
        /// Print them as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show one checkout, and what operators did with it.
    Show {
        checkout: String,
        /// Print it as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Ask the payment provider again and take the checkout to its end.
    Settle {
        checkout: String,
        /// Give money and seats back, whatever could still come of it.
        #[arg(long)]
        give_back: bool,
        #[command(flatten)]
        settle: Settle,
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
    #[command(flatten)]
    pub settle: Settle,
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
        #[command(flatten)]
        settle: Settle,
    },
}

/// Commands on tickets.
#[derive(Subcommand, Debug, Clone)]
pub enum TicketCommand {
    /// Show the ticket as it is, or was, and every change up to then; as it is, also what waits for it: outcomes in the outbox, and
    /// events in quarantine.
    Show {
        ticket: String,
        #[command(flatten)]
        state: PointInTime,
        /// Print it as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show the ticket's attributes as they are, or were, and every change up to then. They have versions of their own.
    Attributes {
        ticket: String,
        #[command(flatten)]
        state: PointInTime,
        /// Print them as one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// Commands on users.
#[derive(Subcommand, Debug, Clone)]
pub enum UserCommand {
    /// Show since when the user is known, the credits given, and every change up to then; as it is, also the holds and what waits:
    /// outcomes in the outbox, and events in quarantine. The profile's values are in no log, and never printed.
    Show {
        user: String,
        #[command(flatten)]
        state: PointInTime,
        /// Print it as one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// Commands on what is in quarantine.
#[derive(Subcommand, Debug, Clone)]
pub enum QuarantineCommand {
    /// List the tickets and users in quarantine, by what broke.
    List {
        #[command(flatten)]
        chosen: Quarantined,
        /// Print them as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show one ticket or user: why, what is parked in its order, and what was done so far.
    Show {
        #[command(flatten)]
        key: OneKey,
        /// Print the parked events whole, and the error as the log has it. They may hold personal data.
        #[arg(long)]
        payload: bool,
        /// Most parked events to print.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Print it as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Have what is parked decided, in its order. It stops where an event breaks again.
    Replay {
        #[command(flatten)]
        chosen: Quarantined,
        #[command(flatten)]
        settle: Settle,
        /// How long to wait for the end of it.
        #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
        wait: Duration,
    },
    /// Make a dead letter of the event that breaks each ticket or user. What follows it stays parked, to be replayed.
    Drop {
        #[command(flatten)]
        chosen: Quarantined,
        #[command(flatten)]
        settle: Settle,
        /// Drop everything that is parked for them.
        #[arg(long)]
        everything: bool,
    },
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
        #[command(flatten)]
        settle: Settle,
    },
}

/// Commands on stores that went back in time.
#[derive(Subcommand, Debug, Clone)]
pub enum RecoverCommand {
    /// Roll the database forward to what Kafka has told, begin a new generation, and have Kafka's mark agree with it. Where it is not
    /// certain what was there, it names that, and does nothing.
    Database {
        /// Users whose profiles neither the database nor Kafka has come back without one, and it is told that they were erased.
        #[arg(long)]
        without_profiles: bool,
        /// Begin a new generation although the database knows all that Kafka has: Kafka was put back too, and its readers may have read
        /// what neither knows any more.
        #[arg(long)]
        new_generation: bool,
        #[command(flatten)]
        settle: Settle,
    },
    /// Tell again what the database has decided and Kafka has lost, each outcome as it was, and have Kafka's mark agree with the database.
    /// Every relay must be stopped.
    Outcomes {
        /// Only what was decided later than this moment, such as 2030-01-31T19:30:00Z; without it, all that the topics of outcomes lack.
        #[arg(id = "decided-later", long = "from", value_name = "TIME", value_parser = moment)]
        from: Option<time::OffsetDateTime>,
        #[command(flatten)]
        settle: Settle,
    },
    /// Compare the balances of the loyalty database with what the main one has given, spent and returned, and set those that differ.
    /// Not where other programs change them, too.
    Loyalty {
        /// Those of these users.
        #[arg(value_name = "USER", required_unless_present = "all")]
        users: Vec<String>,
        /// All that differ.
        #[arg(long, conflicts_with = "users")]
        all: bool,
        #[command(flatten)]
        settle: Settle,
    },
}
