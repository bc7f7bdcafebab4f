//! The topics, by name.

/// Public, in: reservation events, keyed by ticket.
pub const RESERVATIONS: &str = "reservations";
/// Internal: events that the gate admitted, gathered by ticket.
pub const RESERVATIONS_ADMITTED: &str = "reservations.admitted";
/// Public, out: outcomes of tickets, keyed by ticket.
pub const RESERVATIONS_OUTCOMES: &str = "reservations.outcomes";
/// Public, in: payment events, keyed by user.
pub const PAYMENTS: &str = "payments";
/// Internal: events that the gate admitted, gathered by user.
pub const PAYMENTS_ADMITTED: &str = "payments.admitted";
/// Public, out: outcomes of users, keyed by user.
pub const PAYMENTS_OUTCOMES: &str = "payments.outcomes";
/// Public, out: entries of the ledger, keyed by checkout.
pub const LEDGER_ENTRIES: &str = "ledger.entries";
/// Public, out: records that could not be decided, with the reason.
pub const DEAD_LETTERS: &str = "dead-letters";
/// Internal: one partition, compacted; its last record is the relay's mark, which says which batch of outcomes Kafka has.
pub const RELAY_MARK: &str = "relay.mark";
