//! The state machine of a user: registered once, then changed, and perhaps erased. No outcome has the profile's values, so of the
//! row only the time of the last change can be compared, and that nothing is left of a profile that was erased.

use holdfast_schemas::{UserEvent, UserOutcome, outcomes};
use time::OffsetDateTime;

use super::History;
use crate::verify::report::Promise;

/// A user, as far as the log was replayed.
#[derive(Default)]
pub(in crate::verify) struct User {
    registered: bool,
    has_profile: bool,
    changed_at: Option<OffsetDateTime>,
}

/// A row of the table `users`, as far as its log speaks of it.
#[derive(Debug, Clone)]
pub(in crate::verify) struct UserRow {
    pub(in crate::verify) changed_at: OffsetDateTime,
    /// True with an address, a name or a language.
    pub(in crate::verify) has_profile: bool,
}

impl History for User {
    type Data = UserEvent;
    type Row = UserRow;
    const BROKEN: Promise = Promise::Lost;

    fn apply(&mut self, told: UserOutcome, at: OffsetDateTime) -> Result<(), &'static str> {
        self.changed_at = Some(at);
        let known = std::mem::replace(&mut self.registered, true);
        match told {
            UserOutcome::UserRegistered(outcomes::UserRegistered {}) if known => Err("registered a second time"),
            UserOutcome::UserRegistered(outcomes::UserRegistered {}) => {
                self.has_profile = true;
                Ok(())
            }
            _ if !known => Err("told of before it was registered"),
            UserOutcome::ProfileChanged(outcomes::ProfileChanged { fields }) if fields.is_empty() => {
                Err("changed, but in no field")
            }
            UserOutcome::ProfileChanged(_) => {
                self.has_profile = true;
                Ok(())
            }
            UserOutcome::UserErased(outcomes::UserErased {}) => match std::mem::take(&mut self.has_profile) {
                true => Ok(()),
                false => Err("erased, but had no profile any more"),
            },
            _ => Ok(()),
        }
    }

    fn fits(&self, row: &UserRow) -> Result<(), &'static str> {
        match (
            self.changed_at == Some(row.changed_at),
            self.has_profile == row.has_profile,
        ) {
            (true, true) => Ok(()),
            (false, _) => Err("changed_at"),
            (true, false) if row.has_profile => Err("a profile that was erased"),
            (true, false) => Err("no profile, and was not erased"),
        }
    }

    /// A profile may have had all the new values already, another event may have opened the checkout, and the payment may have
    /// been in the reported state already.
    fn may_go_untold(asked: &UserEvent) -> bool {
        !matches!(asked, UserEvent::UserRegistered(_) | UserEvent::CreditsAdded(_))
    }
}
