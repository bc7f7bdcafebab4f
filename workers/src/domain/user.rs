//! A user: a profile that changes, and credits that another database keeps.
//!
//! The profile is compared and set by the rules, on the row whose version the statement then insists on: the answer is an
//! outcome like any other. The tool `store::mechanisms::compare_and_set` serves columns of rows that have no version, such
//! as a ticket's attributes.
//!
//! A user who was erased stays known, without a profile: a row is never deleted, and money, tickets and checkouts go on by the id
//! alone, those under way included. Such a user cannot be registered again; `profile.changed` gives them a profile anew, as
//! the shop asks for it after it asked to erase the old one. To erase a user without a profile changes nothing and is not told.

use holdfast_schemas::{
    Credits, CustomerId, Email, Emptied, EventId, Language, Name, OutcomeData, ProfileValues, Source, UserEvent,
    UserId, UserOutcome, UserRefusalReason, events, outcomes,
};
use serde::{Serialize, Serializer};
use time::OffsetDateTime;

use super::{Decision, Entity};

/// A user who was registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Sequence of the user's newest outcome.
    pub version: i64,
    /// None once the user was erased.
    pub email: Option<Email>,
    pub name: Option<Name>,
    pub language: Option<Language>,
    /// The customer at the payment provider, if the shop has named one.
    pub customer: Option<CustomerId>,
    /// Moment of the last change; no decision is taken at an earlier one.
    pub changed_at: OffsetDateTime,
}

/// The inputs of a user's rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    Register {
        email: Email,
        name: Option<Name>,
        language: Option<Language>,
    },
    /// Compare and set: changes the fields that differ from `to`, but only if the profile has the values in `was`.
    Change {
        to: ProfileValues,
        emptied: Emptied,
        was: ProfileValues,
    },
    Erase,
    LinkCustomer {
        customer: Option<CustomerId>,
    },
    /// The credits are prepared in the loyalty database; they are committed there if this input has its outcome.
    AddCredits {
        amount: Credits,
    },
    /// Internal: outcomes about a checkout, which were decided with its row and those of its tickets. None for an event about a
    /// checkout by itself: [`telling`] adds them.
    Tell(#[serde(serialize_with = "as_told")] Vec<UserOutcome>),
}

fn as_told<S: Serializer>(told: &[UserOutcome], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(told.iter().map(|told| (told.outcome_type(), told.data())))
}

impl Entity for User {
    type Data = UserEvent;
    type Input = Input;

    fn version(&self) -> i64 {
        self.version
    }

    fn changed_at(&self) -> OffsetDateTime {
        self.changed_at
    }

    fn input(asked: UserEvent, _: &Source, _: &EventId, _: &UserId) -> Input {
        match asked {
            UserEvent::UserRegistered(events::UserRegistered { email, name, language }) => {
                Input::Register { email, name, language }
            }
            UserEvent::ProfileChanged(events::ProfileChanged { to, emptied, was }) => {
                Input::Change { to, emptied, was }
            }
            UserEvent::UserErased(events::UserErased {}) => Input::Erase,
            UserEvent::CustomerLinked(events::CustomerLinked { customer }) => Input::LinkCustomer { customer },
            UserEvent::CreditsAdded(events::CreditsAdded { amount }) => Input::AddCredits { amount },
            UserEvent::CheckoutRequested(_)
            | UserEvent::CheckoutRetried(_)
            | UserEvent::CheckoutCancelled(_)
            | UserEvent::OrderReturned(_)
            | UserEvent::PaymentAuthorized(_)
            | UserEvent::PaymentCaptured(_)
            | UserEvent::PaymentFailed(_)
            | UserEvent::PaymentRefunded(_)
            | UserEvent::PaymentRefundChanged(_)
            | UserEvent::PaymentDisputed(_) => Input::Tell(vec![]),
        }
    }

    /// A checkout's own outcomes: the money has moved, whatever waits for the user.
    fn passes_quarantine(input: &Input) -> bool {
        matches!(input, Input::Tell(_))
    }
}

/// Decides one input. `now` is the moment of the decision and never earlier than the user's last change.
pub fn decide(user: Option<&User>, input: Input, now: OffsetDateTime) -> Decision<User> {
    match (user, input) {
        (None, Input::Register { email, name, language }) => {
            let next = User {
                version: 1,
                email: Some(email),
                name,
                language,
                customer: None,
                changed_at: now,
            };
            Decision::Transition {
                next: Some(next),
                outcomes: vec![outcomes::UserRegistered {}.into()],
            }
        }
        (
            None,
            Input::Change { .. }
            | Input::Erase
            | Input::LinkCustomer { .. }
            | Input::AddCredits { .. }
            | Input::Tell(_),
        ) => Decision::Transition {
            next: None,
            outcomes: vec![refusal(UserRefusalReason::UnknownUser)],
        },
        (Some(user), Input::Register { .. }) => refuse(user, UserRefusalReason::AlreadyRegistered, now),
        (Some(user), Input::Change { to, emptied, was }) => change(user, to, emptied, was, now),
        (Some(user), Input::Erase) => erase(user, now),
        (Some(user), Input::LinkCustomer { customer }) => link(user, customer, now),
        (Some(user), Input::AddCredits { amount }) => tell(
            user.clone(),
            vec![UserOutcome::CreditsChanged(outcomes::CreditsChanged { added: amount })],
            now,
        ),
        (Some(user), Input::Tell(told)) => tell(user.clone(), told, now),
    }
}

/// As [`decide`] on an event about a checkout, which told these outcomes.
pub fn telling(told: Vec<UserOutcome>) -> impl Fn(Option<&User>, Input, OffsetDateTime) -> Decision<User> {
    move |user, _, now| decide(user, Input::Tell(told.clone()), now)
}

/// As [`decide`], where there is no loyalty database.
pub fn decide_without_loyalty(user: Option<&User>, input: Input, now: OffsetDateTime) -> Decision<User> {
    decide_refusing(user, input, now, UserRefusalReason::NoLoyalty)
}

/// As [`decide`], when a constraint of the loyalty database refuses the credits.
pub fn decide_loyalty_refuses(user: Option<&User>, input: Input, now: OffsetDateTime) -> Decision<User> {
    decide_refusing(user, input, now, UserRefusalReason::LoyaltyRefuses)
}

/// As [`decide`], when the loyalty database has the credits already: the answer is in their idempotency record, and no
/// other is given.
pub fn decide_added_already(user: Option<&User>, input: Input, now: OffsetDateTime) -> Decision<User> {
    match input {
        Input::AddCredits { .. } => Decision::AlreadyDone,
        input => decide(user, input, now),
    }
}

fn decide_refusing(
    user: Option<&User>,
    input: Input,
    now: OffsetDateTime,
    credits: UserRefusalReason,
) -> Decision<User> {
    match (user, input) {
        (Some(user), Input::AddCredits { .. }) => refuse(user, credits, now),
        (user, input) => decide(user, input, now),
    }
}

fn change(user: &User, to: ProfileValues, emptied: Emptied, was: ProfileValues, now: OffsetDateTime) -> Decision<User> {
    let differs = was.email.is_some_and(|was| Some(was) != user.email)
        || was.name.is_some_and(|was| Some(was) != user.name)
        || was.language.is_some_and(|was| Some(was) != user.language);
    if differs {
        return refuse(user, UserRefusalReason::ProfileDiffers, now);
    }
    let name = user.name.clone().filter(|_| !emptied.name);
    let language = user.language.clone().filter(|_| !emptied.language);
    let next = User {
        email: to.email.or_else(|| user.email.clone()),
        name: to.name.or(name),
        language: to.language.or(language),
        ..user.clone()
    };
    let changed = [
        (outcomes::ProfileField::Email, next.email != user.email),
        (outcomes::ProfileField::Name, next.name != user.name),
        (outcomes::ProfileField::Language, next.language != user.language),
    ];
    let fields: Vec<_> = changed
        .iter()
        .filter(|(_, changed)| *changed)
        .map(|(field, _)| *field)
        .collect();
    let told = match fields.is_empty() {
        true => vec![],
        false => vec![UserOutcome::ProfileChanged(outcomes::ProfileChanged { fields })],
    };
    tell(next, told, now)
}

fn link(user: &User, customer: Option<CustomerId>, now: OffsetDateTime) -> Decision<User> {
    let linked = customer.is_some();
    let told = match customer == user.customer {
        true => vec![],
        false => vec![outcomes::CustomerLinked { linked }.into()],
    };
    let next = User {
        customer,
        ..user.clone()
    };
    tell(next, told, now)
}

fn erase(user: &User, now: OffsetDateTime) -> Decision<User> {
    let has_profile = user.email.is_some() || user.name.is_some() || user.language.is_some();
    if !has_profile && user.customer.is_none() {
        return tell(user.clone(), vec![], now);
    }
    let next = User {
        email: None,
        name: None,
        language: None,
        customer: None,
        ..user.clone()
    };
    tell(next, vec![UserOutcome::UserErased(outcomes::UserErased {})], now)
}

fn refuse(user: &User, reason: UserRefusalReason, now: OffsetDateTime) -> Decision<User> {
    tell(user.clone(), vec![refusal(reason)], now)
}

fn refusal(reason: UserRefusalReason) -> UserOutcome {
    UserOutcome::PaymentRefused(outcomes::PaymentRefused { reason })
}

/// Every outcome raises the version by one; without one, the user is as before.
fn tell(user: User, told: Vec<UserOutcome>, now: OffsetDateTime) -> Decision<User> {
    Decision::Transition {
        next: Some(User {
            version: user.version + told.len() as i64,
            changed_at: if told.is_empty() { user.changed_at } else { now },
            ..user
        }),
        outcomes: told,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::Duration;

    use super::*;
    use crate::domain::{History, ReplayedUser};

    /// Every field of a profile, by number; the model of the rules works on these.
    type Fields = [Option<u8>; 3];

    #[derive(Clone, Debug)]
    enum Step {
        Register(Fields),
        Change {
            to: Fields,
            emptied: [bool; 2],
            was: Fields,
        },
        Erase,
        Link(Option<u8>),
        Credits(i64),
    }

    fn customer(number: u8) -> CustomerId {
        CustomerId::parse(&format!("cus_{number}")).unwrap()
    }

    fn values([email, name, language]: Fields) -> ProfileValues {
        ProfileValues {
            email: email.map(|n| format!("u{n}@example.org").parse().unwrap()),
            name: name.map(|n| format!("u{n}").parse().unwrap()),
            language: language.map(|n| ["de", "en", "fr"][usize::from(n)].parse().unwrap()),
        }
    }

    fn fields() -> impl Strategy<Value = Fields> {
        [
            prop::option::of(0..3_u8),
            prop::option::of(0..3_u8),
            prop::option::of(0..3_u8),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            fields().prop_map(Step::Register),
            (fields(), any::<[bool; 2]>(), fields()).prop_map(|(to, emptied, was)| Step::Change { to, emptied, was }),
            Just(Step::Erase),
            prop::option::of(0..2_u8).prop_map(Step::Link),
            (1..100_i64).prop_map(Step::Credits),
        ]
    }

    /// What the model has of a user: the profile, and the customer.
    type Kept = (Fields, Option<u8>);

    /// The expected outcomes of a step, and the user after it.
    fn expected(user: Option<Kept>, step: &Step) -> (Option<Kept>, Vec<&'static str>) {
        let Some((now, customer)) = user else {
            return match step {
                Step::Register([email, name, language]) => {
                    (Some(([email.or(Some(0)), *name, *language], None)), vec!["registered"])
                }
                _ => (None, vec!["unknown_user"]),
            };
        };
        match step {
            Step::Register(_) => (user, vec!["already_registered"]),
            Step::Erase if (now, customer) == ([None; 3], None) => (user, vec![]),
            Step::Erase => (Some(([None; 3], None)), vec!["erased"]),
            Step::Link(other) if *other == customer => (user, vec![]),
            Step::Link(other) => (Some((now, *other)), vec!["linked"]),
            Step::Credits(_) => (user, vec!["credits"]),
            Step::Change { to, emptied, was } => {
                if (0..3).any(|place| was[place].is_some() && was[place] != now[place]) {
                    return (user, vec!["profile_differs"]);
                }
                let kept = [now[0], now[1].filter(|_| !emptied[0]), now[2].filter(|_| !emptied[1])];
                let next = [0, 1, 2].map(|place| to[place].or(kept[place]));
                let outcomes = if next == now { vec![] } else { vec!["changed"] };
                (Some((next, customer)), outcomes)
            }
        }
    }

    fn name(told: &UserOutcome) -> &'static str {
        match told {
            UserOutcome::UserRegistered(outcomes::UserRegistered {}) => "registered",
            UserOutcome::ProfileChanged(_) => "changed",
            UserOutcome::UserErased(outcomes::UserErased {}) => "erased",
            UserOutcome::CustomerLinked(_) => "linked",
            UserOutcome::CreditsChanged(_) => "credits",
            UserOutcome::PaymentRefused(outcomes::PaymentRefused { reason }) => reason.as_str(),
            _ => "told elsewhere",
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn every_life_of_a_user_follows_the_rules(steps in prop::collection::vec(step(), 1..20)) {
            let mut now = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
            let (mut user, mut profile) = (None::<User>, None);
            let (mut as_told, mut given) = (None, 0);
            for step in steps {
                now += Duration::seconds(1);
                let input = match &step {
                    Step::Register(fields) => {
                        let ProfileValues { email, name, language } = values(*fields);
                        let email = email.unwrap_or_else(|| "u0@example.org".parse().unwrap());
                        Input::Register { email, name, language }
                    }
                    Step::Change { to, emptied: [name, language], was } => Input::Change {
                        to: values(*to),
                        emptied: Emptied { name: *name, language: *language },
                        was: values(*was),
                    },
                    Step::Erase => Input::Erase,
                    Step::Link(number) => Input::LinkCustomer { customer: number.map(customer) },
                    Step::Credits(amount) => Input::AddCredits { amount: Credits::new(*amount).unwrap() },
                };
                let (after, outcomes) = expected(profile, &step);
                let Decision::Transition { next, outcomes: told } = decide(user.as_ref(), input.clone(), now) else {
                    return Err(TestCaseError::fail("every event is decided"));
                };
                prop_assert_eq!(told.iter().map(name).collect::<Vec<_>>(), outcomes, "{:?} on {:?}", input, user);
                let version = user.as_ref().map_or(0, |user| user.version);
                if let Some(next) = &next {
                    prop_assert_eq!(next.version, version + told.len() as i64);
                    as_told = told.into_iter().fold(as_told, |before, told| User::after(before, told, next.version, now));
                    if let Step::Credits(amount) = step {
                        given += amount;
                    }
                    let ReplayedUser { version, credits, changed_at, .. } = as_told.clone().unwrap();
                    prop_assert_eq!((version, credits, changed_at), (next.version, given, next.changed_at));
                    let has = ProfileValues {
                        email: next.email.clone(),
                        name: next.name.clone(),
                        language: next.language.clone(),
                    };
                    let expected = after.map(|(profile, number)| (values(profile), number.map(customer)));
                    prop_assert_eq!(Some((has, next.customer.clone())), expected);
                }
                (user, profile) = (next, after);
            }
        }
    }

    #[test]
    fn without_a_loyalty_database_credits_are_refused_and_all_else_goes_on() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let register = Input::Register {
            email: "ann@example.org".parse().unwrap(),
            name: None,
            language: None,
        };
        let Decision::Transition { next, .. } = decide_without_loyalty(None, register, now) else {
            panic!("nothing was told");
        };
        let credits = Input::AddCredits {
            amount: Credits::new(5).unwrap(),
        };
        for (decision, reason) in [
            (
                decide_without_loyalty(next.as_ref(), credits.clone(), now),
                UserRefusalReason::NoLoyalty,
            ),
            (
                decide_loyalty_refuses(next.as_ref(), credits.clone(), now),
                UserRefusalReason::LoyaltyRefuses,
            ),
            (
                decide_loyalty_refuses(None, credits, now),
                UserRefusalReason::UnknownUser,
            ),
        ] {
            assert!(matches!(decision, Decision::Transition { outcomes, .. } if outcomes == [refusal(reason)]));
        }
    }
}
