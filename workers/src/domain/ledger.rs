//! The movements of money and credits: each takes an amount from one account and gives it to another, so that all accounts
//! together always hold zero.

/// One movement of a checkout's money or credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Movement {
    pub kind: MovementKind,
    /// Minor units of the checkout's currency, more than 0.
    pub amount: i64,
}

/// The kinds of movements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MovementKind {
    /// The provider captured the money.
    Capture,
    /// Credits paid a part.
    Credit,
    /// Credits were returned.
    CreditBack,
    /// The money was refunded, all that was left of it.
    Refund,
    /// A part of the money was refunded, and the seat stays sold; or what a failed refund had left.
    PartialRefund,
    /// A refund that was booked has failed: the money came back.
    RefundFailed,
    /// The customer's bank has withdrawn the money of a dispute until it decides.
    Dispute,
    /// The bank gave the money of a dispute back.
    DisputeWon,
    /// The dispute was lost: the money is gone.
    DisputeLost,
    /// The money came back after the dispute was lost.
    DisputeRegained,
}

impl MovementKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Credit => "credit",
            Self::CreditBack => "credit_back",
            Self::Refund => "refund",
            Self::PartialRefund => "partial_refund",
            Self::RefundFailed => "refund_failed",
            Self::Dispute => "dispute",
            Self::DisputeWon => "dispute_won",
            Self::DisputeLost => "dispute_lost",
            Self::DisputeRegained => "dispute_regained",
        }
    }

    /// The account that gets the amount, and the one that it comes from.
    pub const fn accounts(self) -> (&'static str, &'static str) {
        match self {
            Self::Capture => ("provider", "sales"),
            Self::Credit => ("credits", "sales"),
            Self::CreditBack => ("sales", "credits"),
            Self::Refund => ("sales", "provider"),
            Self::PartialRefund => ("refunds", "provider"),
            Self::RefundFailed => ("provider", "refunds"),
            Self::Dispute => ("disputes", "provider"),
            Self::DisputeWon => ("provider", "disputes"),
            Self::DisputeLost => ("losses", "disputes"),
            Self::DisputeRegained => ("provider", "losses"),
        }
    }
}
