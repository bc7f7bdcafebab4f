//! The traits and types that the rules of every kind of row share.

use std::fmt::Debug;

use holdfast_schemas::{EventData, EventId, Source};
use serde::Serialize;
use time::OffsetDateTime;

/// A kind of row with a version, and with rules.
pub trait Entity: Clone + Send + Sync + 'static {
    /// The data of its public events.
    type Data: EventData;
    /// The input of its rules, from events and from the product itself. Its JSON tells two requests with the same id apart.
    type Input: Clone + Debug + Serialize + Send + Sync + 'static;

    /// Sequence of its newest outcome.
    fn version(&self) -> i64;

    /// Moment of the last change; no decision is taken at an earlier one.
    fn changed_at(&self) -> OffsetDateTime;

    /// The input that the event `(source, id)` makes.
    fn input(asked: Self::Data, source: &Source, id: &EventId, key: &KeyOf<Self>) -> Self::Input;

    /// True for a request of the product's own that is done although the key is in quarantine.
    fn passes_quarantine(_: &Self::Input) -> bool {
        false
    }
}

/// The key of an entity.
pub type KeyOf<E> = <<E as Entity>::Data as EventData>::Key;
/// The outcomes of an entity.
pub type OutcomeOf<E> = <<E as Entity>::Data as EventData>::Outcome;

/// The effect of an input on an entity.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision<E: Entity> {
    /// The entity becomes `next` (absent: there is no row and there will be none), with these outcomes, in this order. The
    /// version rises by one for each outcome.
    Transition {
        next: Option<E>,
        outcomes: Vec<OutcomeOf<E>>,
    },
    /// An internal input that does not fit the state: no outcome, no new version.
    Nothing,
    /// An internal input that has taken effect before.
    AlreadyDone,
}
