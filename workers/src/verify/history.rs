//! One key's change log, replayed by state machines of verify's own: each step must be able to follow the one before, and the
//! table must have the row that the last step left.

mod ticket;
mod user;

use holdfast_schemas::EventData;
use time::OffsetDateTime;

use super::report::Promise;
pub(super) use ticket::{Ticket, TicketRow};
pub(super) use user::{User, UserRow};

/// One key of a stream, as far as its log was replayed.
pub(super) trait History: Default {
    /// The events of the stream.
    type Data: EventData;
    /// The row of its table.
    type Row;
    /// The promise that is broken when a step cannot follow the last one, or the row differs from the log.
    const BROKEN: Promise;

    /// One whose steps so far are not known.
    fn resumed() -> Self;

    /// Takes the next step, `at` by the database's clock.
    ///
    /// # Errors
    /// The reason why the step cannot follow the last one. It is taken all the same, so that each fault is found once.
    fn apply(&mut self, told: OutcomeOf<Self>, at: OffsetDateTime) -> Result<(), &'static str>;

    /// Compares with the row of the table.
    ///
    /// # Errors
    /// The column that differs from the log.
    fn fits(&self, row: &Self::Row) -> Result<(), &'static str>;

    /// True if an event may be applied without an outcome. No trace of it is left once its idempotency record was swept.
    fn may_go_untold(asked: &Self::Data) -> bool;
}

/// The outcomes of a stream.
pub(super) type OutcomeOf<H> = <<H as History>::Data as EventData>::Outcome;
