//! Named places where a process may die. The proofs end a worker at each of them, and repeat the step before each of them;
//! release builds contain none of it.

/// Every crash point. The name is the value for `HOLDFAST_CRASH` (end the process there) and `HOLDFAST_REPEAT` (do the step
/// before it a second time).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A window is gathered, nothing of it sent.
    GateGathered,
    /// The window's records are sent, no acknowledgement awaited.
    GateSent,
    /// Every record of the window is acknowledged, its offsets are not committed.
    GateAcknowledged,
    /// The window's offsets are noted; the client commits them within a second.
    GateCommitted,
    /// Rows and idempotency records of a batch are read.
    ServeRead,
    /// A batch is decided, nothing of it written.
    ServeDecided,
    /// A batch is written and committed, its handlers have no answers.
    ServeWritten,
    /// A breaker is found and parked in a transaction that is not committed.
    QuarantineWritten,
    /// Events are parked and that is committed, their handler has no answer.
    QuarantineParked,
    /// Parked events are decided again, the transaction that takes them out of quarantine is not committed.
    QuarantineReplaying,
    /// Events were replayed and that is committed, the handler does not know it.
    QuarantineReplayed,
    /// Outbox rows are selected, no Kafka transaction begun.
    RelaySelected,
    /// The batch's records are produced and acknowledged inside the Kafka transaction.
    RelayProduced,
    /// The Kafka transaction is committed, the rows are not deleted.
    RelayCommitted,
    /// The rows are deleted and the batch number is raised.
    RelayDeleted,
    /// The Reaper has read the holds that are due.
    ReaperFound,
    /// The Reaper has sent its expirations, its next turn is not scheduled.
    ReaperSent,
    /// Credits are prepared in the loyalty database, nothing is decided.
    CreditsPrepared,
    /// Credits are decided and committed in the main database, the loyalty database still has them prepared.
    CreditsDecided,
    /// Credits are settled in the loyalty database, the handler has no answer.
    CreditsSettled,
    /// Tickets to be held together are all written in their transaction, which is not committed.
    TogetherWritten,
    /// The transaction in which tickets are held together is committed, the handler has no answer.
    TogetherCommitted,
    /// A checkout is opened and committed, its workflow is not started.
    CheckoutOpened,
    /// The payment provider has created a payment, the checkout's row does not say so.
    CheckoutCreated,
    /// The payment provider has authorised the payment or declined it, the checkout's row does not say so.
    CheckoutAuthorised,
    /// The seats are sold and committed, the money is not captured.
    CheckoutSold,
    /// The payment provider has captured the money, the checkout's row does not say so.
    CheckoutCaptured,
    /// A checkout is completed and committed, its workflow does not know it.
    CheckoutCompleted,
    /// The payment provider has cancelled or refunded the payment, the checkout's row does not say so.
    CheckoutGivenBack,
    /// A checkout has failed and that is committed, its workflow does not know it.
    CheckoutFailed,
    /// The payment provider has made the refund of an order that is returned, the checkout's row does not say so.
    OrderRefunded,
    /// A repayment of an order that is returned is settled and committed, its caller does not know it.
    OrderRepaid,
    /// The mail server has accepted a mail, its row does not say so.
    MailAccepted,
    /// The row of a mail says that the mail server has accepted it.
    MailNoted,
    /// A webhook is verified and decoded, nothing is sent to Kafka.
    WebhookVerified,
    /// Kafka has the event of a webhook, the payment provider has no answer.
    WebhookAcknowledged,
}

impl Point {
    /// All points, in the order of the path of an event.
    pub const ALL: [Point; 36] = [
        Point::GateGathered,
        Point::GateSent,
        Point::GateAcknowledged,
        Point::GateCommitted,
        Point::ServeRead,
        Point::ServeDecided,
        Point::ServeWritten,
        Point::QuarantineWritten,
        Point::QuarantineParked,
        Point::QuarantineReplaying,
        Point::QuarantineReplayed,
        Point::RelaySelected,
        Point::RelayProduced,
        Point::RelayCommitted,
        Point::RelayDeleted,
        Point::ReaperFound,
        Point::ReaperSent,
        Point::CreditsPrepared,
        Point::CreditsDecided,
        Point::CreditsSettled,
        Point::TogetherWritten,
        Point::TogetherCommitted,
        Point::CheckoutOpened,
        Point::CheckoutCreated,
        Point::CheckoutAuthorised,
        Point::CheckoutSold,
        Point::CheckoutCaptured,
        Point::CheckoutCompleted,
        Point::CheckoutGivenBack,
        Point::CheckoutFailed,
        Point::OrderRefunded,
        Point::OrderRepaid,
        Point::MailAccepted,
        Point::MailNoted,
        Point::WebhookVerified,
        Point::WebhookAcknowledged,
    ];

    /// The name used in the environment, in logs and in the documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Point::GateGathered => "gate.gathered",
            Point::GateSent => "gate.sent",
            Point::GateAcknowledged => "gate.acknowledged",
            Point::GateCommitted => "gate.committed",
            Point::ServeRead => "serve.read",
            Point::ServeDecided => "serve.decided",
            Point::ServeWritten => "serve.written",
            Point::QuarantineWritten => "quarantine.written",
            Point::QuarantineParked => "quarantine.parked",
            Point::QuarantineReplaying => "quarantine.replaying",
            Point::QuarantineReplayed => "quarantine.replayed",
            Point::RelaySelected => "relay.selected",
            Point::RelayProduced => "relay.produced",
            Point::RelayCommitted => "relay.committed",
            Point::RelayDeleted => "relay.deleted",
            Point::ReaperFound => "reaper.found",
            Point::ReaperSent => "reaper.sent",
            Point::CreditsPrepared => "credits.prepared",
            Point::CreditsDecided => "credits.decided",
            Point::CreditsSettled => "credits.settled",
            Point::TogetherWritten => "together.written",
            Point::TogetherCommitted => "together.committed",
            Point::CheckoutOpened => "checkout.opened",
            Point::CheckoutCreated => "checkout.created",
            Point::CheckoutAuthorised => "checkout.authorised",
            Point::CheckoutSold => "checkout.sold",
            Point::CheckoutCaptured => "checkout.captured",
            Point::CheckoutCompleted => "checkout.completed",
            Point::CheckoutGivenBack => "checkout.given_back",
            Point::CheckoutFailed => "checkout.failed",
            Point::OrderRefunded => "order.refunded",
            Point::OrderRepaid => "order.repaid",
            Point::MailAccepted => "mail.accepted",
            Point::MailNoted => "mail.noted",
            Point::WebhookVerified => "webhook.verified",
            Point::WebhookAcknowledged => "webhook.acknowledged",
        }
    }
}

#[cfg(debug_assertions)]
pub use armed::{again, here};
#[cfg(not(debug_assertions))]
pub use disarmed::{again, here};

#[cfg(debug_assertions)]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::Point;

    static CRASH: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("HOLDFAST_CRASH").ok());
    static REPEAT: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("HOLDFAST_REPEAT").ok());
    static REPEATED: AtomicBool = AtomicBool::new(false);

    /// Ends the process at once, as `kill -9` would, when `HOLDFAST_CRASH` names this point.
    pub fn here(point: Point) {
        if CRASH.as_deref() == Some(point.name()) {
            tracing::error!(point = point.name(), "crash point reached: the process ends here");
            std::process::abort();
        }
    }

    /// True, once per process, when `HOLDFAST_REPEAT` names this point: the caller does the step before it again.
    pub fn again(point: Point) -> bool {
        let repeats = REPEAT.as_deref() == Some(point.name()) && !REPEATED.swap(true, Ordering::SeqCst);
        if repeats {
            tracing::warn!(
                point = point.name(),
                "crash point reached: the step before it is done again"
            );
        }
        repeats
    }
}

#[cfg(not(debug_assertions))]
mod disarmed {
    use super::Point;

    #[inline(always)]
    pub fn here(_: Point) {}

    #[inline(always)]
    pub fn again(_: Point) -> bool {
        false
    }
}
