//! What the rules of every kind of row have in common.

use std::fmt::Debug;

use holdfast_schemas::{EventData, EventId, Source};
use serde::Serialize;
use time::OffsetDateTime;

/// A kind of thing that has a versioned row, and rules.
pub trait Entity: Clone + Send + Sync + 'static {
    /// What the world asks of it.
    type Data: EventData;
    /// What can be asked of it, from within too. Its JSON tells one request from another under the same id.
    type Input: Clone + Debug + Serialize + Send + Sync + 'static;

    /// Sequence of its newest outcome.
    fn version(&self) -> i64;

    /// Moment of the last change; no decision is taken at an earlier one.
    fn changed_at(&self) -> OffsetDateTime;

    /// What the event `(source, id)` asks.
    fn input(asked: Self::Data, source: &Source, id: &EventId, key: &KeyOf<Self>) -> Self::Input;
}

/// What names an entity.
pub type KeyOf<E> = <<E as Entity>::Data as EventData>::Key;
/// What is told of an entity.
pub type OutcomeOf<E> = <<E as Entity>::Data as EventData>::Outcome;

/// What an input does to an entity.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision<E: Entity> {
    /// The entity becomes `next` (absent: there is no row and there will be none), and the world is told, in this order. The
    /// version rises by one for each outcome.
    Transition {
        next: Option<E>,
        outcomes: Vec<OutcomeOf<E>>,
    },
    /// An internal input that does not fit: no outcome, no new version.
    Nothing,
    /// An internal input that has taken effect before.
    AlreadyDone,
}
