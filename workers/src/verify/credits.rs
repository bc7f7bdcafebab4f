//! Credits: told by a user's change log, kept by another database. What binds the two is the row of the attempt that
//! committed, so there must be one for each outcome, and an outcome for each.

use super::report::{Promise, Report};

/// What is known of one transaction that gives credits.
pub(super) struct Credit {
    /// `credits/`, then the id of the outcome.
    pub(super) transaction: String,
    /// Whose change log has the outcome, if one has.
    pub(super) user: Option<String>,
    /// How many attempts at it were committed.
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
