//! The state machine of a user: registered once, then changed, and perhaps erased. No outcome has the profile's values, so of the
//! row only the time of the last change can be compared, and that nothing is left of a profile that was erased.

use holdfast_schemas::{UserEvent, UserOutcome, outcomes};
use time::OffsetDateTime;

use super::History;
use crate::verify::report::Promise;

/// A user, as far as the log was replayed.
pub(in crate::verify) struct User {
    registered: bool,
    /// None when no step that is known says.
    has_profile: Option<bool>,
    /// Likewise.
    has_customer: Option<bool>,
    changed_at: Option<OffsetDateTime>,
}

/// A row of the table `users`, as far as its log speaks of it.
#[derive(Debug, Clone)]
pub(in crate::verify) struct UserRow {
    pub(in crate::verify) changed_at: OffsetDateTime,
    /// True with an address, a name or a language.
    pub(in crate::verify) has_profile: bool,
    /// True with a customer at the payment provider.
    pub(in crate::verify) has_customer: bool,
}

/// Nobody was registered.
impl Default for User {
    fn default() -> Self {
        Self {
            registered: false,
            has_profile: Some(false),
            has_customer: Some(false),
            changed_at: None,
        }
    }
}

impl History for User {
    type Data = UserEvent;
    type Row = UserRow;
    const BROKEN: Promise = Promise::Lost;

    fn resumed() -> Self {
        Self {
            registered: true,
            has_profile: None,
            has_customer: None,
            changed_at: None,
        }
    }

    fn apply(&mut self, told: UserOutcome, at: OffsetDateTime) -> Result<(), &'static str> {
        self.changed_at = Some(at);
        let known = std::mem::replace(&mut self.registered, true);
        match told {
            UserOutcome::UserRegistered(outcomes::UserRegistered {}) if known => Err("registered a second time"),
            UserOutcome::UserRegistered(outcomes::UserRegistered {}) => {
                self.has_profile = Some(true);
                Ok(())
            }
            _ if !known => Err("told of before it was registered"),
            UserOutcome::ProfileChanged(outcomes::ProfileChanged { fields }) if fields.is_empty() => {
                Err("changed, but in no field")
            }
            UserOutcome::ProfileChanged(_) => {
                self.has_profile = Some(true);
                Ok(())
            }
            UserOutcome::CustomerLinked(outcomes::CustomerLinked { linked }) => {
                match (linked, self.has_customer.replace(linked)) {
                    (false, Some(false)) => Err("no customer any more, but was none before"),
                    _ => Ok(()),
                }
            }
            UserOutcome::UserErased(outcomes::UserErased {}) => {
                match (self.has_profile.replace(false), self.has_customer.replace(false)) {
                    (Some(false), Some(false)) => Err("erased, but had no profile any more"),
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn fits(&self, row: &UserRow) -> Result<(), &'static str> {
        match (
            self.changed_at == Some(row.changed_at),
            self.has_profile.is_none_or(|known| known == row.has_profile),
        ) {
            (true, true) if self.has_customer.is_some_and(|known| known != row.has_customer) => {
                Err("a customer, or none, against what was told")
            }
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
