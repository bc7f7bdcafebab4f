//! Version 1. Published: never edited. (A new kind of movement, or a new account, needs no new version: both are words.)

use crate::money::Price;
use crate::text::LedgerWord;
use crate::version::wire;

wire! { LedgerData;
    /// An amount of money or credits went from one account to another, so that all accounts together still hold zero.
    LedgerEntry "holdfast.ledger.entry.v1" {
        /// Why it moved: `capture`, `credit`, `credit_back`, `refund`, `partial_refund`, `refund_failed`, `dispute`, `dispute_won`, `dispute_lost`, `dispute_regained`; others may come.
        kind: LedgerWord,
        /// The account that got it: `provider`, `credits`, `sales`, `refunds`, `disputes`, `losses`; others may come.
        to: LedgerWord,
        /// The account that it came from.
        from: LedgerWord,
        /// More than 0.
        amount: Price
    };
}
