//! Credits: a user's change log has their outcomes, the ledger has those of checkouts, and another database keeps them. The
//! row of the committed attempt binds the two, so there must be one such row for each outcome or ledger line, and one of
//! these for each row.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::report::{Promise, Report};
use super::scope::Portion;

/// The facts about one transaction that adds credits.
pub(super) struct Credit {
    /// `credits/`, then the id of the outcome.
    pub(super) transaction: String,
    /// The user whose change log has the outcome, if one has.
    pub(super) user: Option<String>,
    /// Number of its attempts that were committed.
    pub(super) commits: i64,
}

impl Credit {
    pub(super) fn judge(&self, report: &mut Report) {
        let (transaction, commits) = (&self.transaction, self.commits);
        match &self.user {
            Some(_) if commits == 1 => {}
            Some(user) if commits == 0 => report.broken(Promise::Lost, user, || {
                format!("its change log tells of {transaction}, but no attempt at that was committed")
            }),
            Some(user) => report.broken(Promise::Doubled, user, || {
                format!("{commits} attempts at {transaction} were committed")
            }),
            None => report.broken(Promise::Doubled, transaction, || {
                "an attempt at it was committed, but no change log tells of it".to_owned()
            }),
        }
    }
}

/// The credits that a portion of the checkouts have spent or got back.
pub(super) struct Spent {
    portion: Portion,
    /// By the name of the transaction that must have bound them.
    transactions: BTreeMap<String, String>,
}

impl Spent {
    pub(super) fn new(portion: Portion) -> Self {
        Self {
            portion,
            transactions: BTreeMap::new(),
        }
    }

    /// The number of facts that it holds.
    pub(super) fn facts(&self) -> usize {
        self.transactions.len()
    }

    /// Records that the books have this step of a checkout's: `spend`, `return`, or `repay/` and the number of a repayment.
    pub(super) fn told(&mut self, checkout: String, step: &str) {
        let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, checkout.as_bytes());
        let transaction = format!("checkout/{id}/{step}");
        if self.has(&transaction) {
            self.transactions.insert(transaction, checkout);
        }
    }

    /// Records that an attempt at this transaction was committed.
    pub(super) fn bound(&mut self, transaction: &str, report: &mut Report) {
        if self.has(transaction) && self.transactions.remove(transaction).is_none() {
            report.broken(Promise::MoneyMismatch, transaction, || {
                "an attempt at it was committed, but no checkout has credits in the ledger for it".to_owned()
            });
        }
    }

    /// True if the transaction is of a checkout of the portion: all of one checkout begin alike.
    fn has(&self, transaction: &str) -> bool {
        let of_checkout = transaction.split('/').nth(1);
        self.portion.has(of_checkout.unwrap_or_default().as_bytes())
    }

    /// Judges, once every attempt was recorded.
    pub(super) fn judge(self, report: &mut Report) {
        for (transaction, checkout) in self.transactions {
            report.broken(Promise::MoneyMismatch, &checkout, || {
                format!("it has credits in the ledger, but no attempt at {transaction} was committed")
            });
        }
    }
}
