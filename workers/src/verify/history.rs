//! One key's change log, replayed by state machines of verify's own: can each step follow the one before, and does the table
//! have the row where the last step left it?

mod ticket;
mod user;

use holdfast_schemas::EventData;
use time::OffsetDateTime;

use super::report::Promise;
pub(super) use ticket::{Ticket, TicketRow};
pub(super) use user::{User, UserRow};

/// One key of a stream, as far as its log was replayed.
pub(super) trait History: Default {
    /// What is asked on the stream.
    type Data: EventData;
    /// The row of its table.
    type Row;
    /// What is broken when a step cannot follow the last one, or the row is not where the log left it.
    const BROKEN: Promise;

    /// Takes the next step, `at` by the database's clock.
    ///
    /// # Errors
    /// Why the step cannot follow the last one. It is taken all the same, so that each fault is found once.
    fn apply(&mut self, told: OutcomeOf<Self>, at: OffsetDateTime) -> Result<(), &'static str>;

    /// Compares with the row of the table.
    ///
    /// # Errors
    /// Which column does not say what the log says.
    fn fits(&self, row: &Self::Row) -> Result<(), &'static str>;

    /// Whether an event may be applied without an outcome. Nothing is left of it once its idempotency record was swept.
    fn may_go_untold(asked: &Self::Data) -> bool;
}

/// What is told on a stream.
pub(super) type OutcomeOf<H> = <<H as History>::Data as EventData>::Outcome;
