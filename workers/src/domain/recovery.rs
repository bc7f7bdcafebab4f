//! Rows as they must have been by the outcomes that were told of them, for a database that was put back to an earlier time.
//!
//! The outcomes of a ticket tell everything of it. Those of a user leave personal data out, which only the event itself has.

use holdfast_schemas::{Event, TicketOutcome, UserEvent, UserOutcome, outcomes};
use time::OffsetDateTime;

use super::user::Input;
use super::{Decision, Entity, History, OutcomeOf, Ticket, User, user};

/// An entity whose row can be recovered from its outcomes.
pub trait Recoverable: Entity {
    /// The row after one more outcome, which was told as this version. `asked`: the event that it answers, where that is still there.
    ///
    /// # Errors
    /// Why nobody can say what the row was.
    fn recovered(
        before: Option<&Self>,
        told: &OutcomeOf<Self>,
        asked: Option<&Event<Self::Data>>,
        version: i64,
        at: OffsetDateTime,
    ) -> Result<Self, Unrecoverable>;

    /// The row after an outcome whose personal data are gone; none where there are no such data.
    fn without_profile(before: Option<&Self>, version: i64, at: OffsetDateTime) -> Option<Self>;
}

/// Why nobody can say what a row was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unrecoverable {
    #[error("it cannot follow what was told before")]
    Astray,
    #[error("the event with the profile is not on `payments`: it came by HTTP, or retention has removed it")]
    ProfileIsGone,
    #[error("it tells of a refund, a return or a dispute, but not of all that it changed")]
    MoneyMoved,
    #[error("its seats or its money were told in part, and nobody knows of the rest")]
    ToldInPart,
}

impl Recoverable for Ticket {
    fn recovered(
        before: Option<&Self>,
        told: &TicketOutcome,
        _: Option<&Event<Self::Data>>,
        version: i64,
        at: OffsetDateTime,
    ) -> Result<Self, Unrecoverable> {
        Ticket::after(before.cloned(), told.clone(), version, at).ok_or(Unrecoverable::Astray)
    }

    fn without_profile(_: Option<&Self>, _: i64, _: OffsetDateTime) -> Option<Self> {
        None
    }
}

impl Recoverable for User {
    /// What the event asked for is decided anew, and must have the outcome that was told.
    fn recovered(
        before: Option<&Self>,
        told: &UserOutcome,
        asked: Option<&Event<UserEvent>>,
        version: i64,
        at: OffsetDateTime,
    ) -> Result<Self, Unrecoverable> {
        let (input, otherwise) = match told {
            UserOutcome::UserErased(_) => (Input::Erase, Unrecoverable::Astray),
            UserOutcome::CustomerLinked(outcomes::CustomerLinked { linked: false }) => {
                (Input::LinkCustomer { customer: None }, Unrecoverable::Astray)
            }
            UserOutcome::UserRegistered(_) | UserOutcome::ProfileChanged(_) | UserOutcome::CustomerLinked(_) => {
                let asked = asked.ok_or(Unrecoverable::ProfileIsGone)?;
                let input = User::input(asked.data.clone(), &asked.source, &asked.id, &asked.subject);
                (input, Unrecoverable::ProfileIsGone)
            }
            _ => (Input::Tell(vec![told.clone()]), Unrecoverable::Astray),
        };
        match user::decide(before, input, at) {
            Decision::Transition {
                next: Some(next),
                outcomes,
            } if outcomes == [told.clone()] && next.version == version => Ok(next),
            _ => Err(otherwise),
        }
    }

    /// As a user who was erased: the outcome that says so is told with it.
    fn without_profile(before: Option<&Self>, version: i64, at: OffsetDateTime) -> Option<Self> {
        let follows = before.map_or(0, Entity::version) + 1 == version;
        follows.then_some(Self {
            version,
            email: None,
            name: None,
            language: None,
            customer: None,
            changed_at: at,
        })
    }
}

#[cfg(test)]
mod tests {
    use holdfast_schemas::{Credits, UserId, events};

    use super::*;

    const AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn event(data: impl Into<UserEvent>) -> Event<UserEvent> {
        let user = UserId::parse("ann").unwrap();
        Event::new(
            "shop".parse().unwrap(),
            "1".parse().unwrap(),
            AT,
            None,
            user,
            data.into(),
        )
    }

    fn registered() -> Event<UserEvent> {
        event(events::UserRegistered {
            email: "ann@example.org".parse().unwrap(),
            name: None,
            language: None,
        })
    }

    #[test]
    fn a_profile_comes_back_with_its_event_and_not_without() {
        let told = outcomes::UserRegistered {}.into();
        let ann = User::recovered(None, &told, Some(&registered()), 1, AT).unwrap();
        assert_eq!(ann.email.as_ref().map(|email| email.as_str()), Some("ann@example.org"));
        assert_eq!(
            User::recovered(None, &told, None, 1, AT),
            Err(Unrecoverable::ProfileIsGone)
        );
        let erased = outcomes::UserErased {}.into();
        let ann = User::recovered(Some(&ann), &erased, None, 2, AT).unwrap();
        assert_eq!((ann.email, ann.version), (None, 2));
    }

    #[test]
    fn a_user_whose_profile_is_gone_may_come_back_without_one() {
        let bob = User::without_profile(None, 1, AT).unwrap();
        assert_eq!((bob.version, bob.email.is_none()), (1, true));
        assert_eq!(User::without_profile(Some(&bob), 3, AT), None);
    }

    #[test]
    fn what_cannot_follow_is_not_guessed() {
        let credits = outcomes::CreditsChanged {
            added: Credits::new(5).unwrap(),
        }
        .into();
        assert_eq!(User::recovered(None, &credits, None, 1, AT), Err(Unrecoverable::Astray));
        let told = outcomes::UserRegistered {}.into();
        let ann = User::recovered(None, &told, Some(&registered()), 1, AT).unwrap();
        assert_eq!(
            User::recovered(Some(&ann), &credits, None, 3, AT),
            Err(Unrecoverable::Astray)
        );
    }
}
