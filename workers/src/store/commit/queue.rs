//! The units that wait: how many bytes of them there may be, and which go alone.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Unit, Work};
use crate::domain::{Entity, KeyOf};

/// Bytes of units that may wait or be under way at once; handing over another one waits. Attempts that were aborted give theirs
/// back.
const BYTES: usize = 64 << 20;

/// In which bytes are counted.
const GRAIN: usize = 1 << 10;

/// Room for so many bytes of units.
#[derive(Clone)]
pub(super) struct Room(Arc<Semaphore>);

/// What one unit takes of it, for as long as this lives.
pub(super) struct Share {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BYTES / GRAIN)))
    }

    /// Waits until there is room; a unit that is larger than all of it waits for all of it.
    pub(super) async fn take<E: Entity>(&self, unit: &Unit<E>) -> Share {
        let bytes: usize = unit.work.iter().map(Work::size).sum();
        let grains = (bytes / GRAIN + 1).min(BYTES / GRAIN);
        let grains = u32::try_from(grains).unwrap_or(u32::MAX);
        // It is never closed.
        let permit = self.0.clone().acquire_many_owned(grains).await.ok();
        Share { _permit: permit }
    }
}

/// The keys whose last unit failed by itself. Their next one goes alone, so that it takes no others with it; after the oldest of too
/// many has been forgotten it is found again.
pub(super) struct Offenders<E: Entity> {
    keys: HashSet<KeyOf<E>>,
    in_order: VecDeque<KeyOf<E>>,
}

impl<E: Entity> Offenders<E> {
    const MOST: usize = 1_000;

    pub(super) fn new() -> Self {
        Self {
            keys: HashSet::new(),
            in_order: VecDeque::new(),
        }
    }

    pub(super) fn contain(&self, key: &KeyOf<E>) -> bool {
        self.keys.contains(key)
    }

    pub(super) fn add(&mut self, key: &KeyOf<E>) {
        if self.keys.insert(key.clone()) {
            self.in_order.push_back(key.clone());
        }
        if self.in_order.len() > Self::MOST
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }

    /// A unit of this key was committed.
    pub(super) fn remove(&mut self, key: &KeyOf<E>) {
        if self.keys.remove(key) {
            self.in_order.retain(|other| other != key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_schemas::{DeadLetterReason, Refusal, TicketId};

    use super::*;
    use crate::domain::Ticket;

    fn unit(bytes: usize) -> Unit<Ticket> {
        Unit {
            key: TicketId::parse("A").unwrap(),
            work: vec![Work::Rejected {
                origin: None,
                refusal: Refusal::new(DeadLetterReason::Undecodable, String::new()),
                value: vec![0; bytes],
            }],
        }
    }

    #[tokio::test]
    async fn a_unit_waits_for_room_and_one_that_is_dropped_makes_some() {
        let room = Room::new();
        let first = room.take(&unit(BYTES - (1 << 20))).await;
        let second = unit(2 << 20);
        let another = room.take(&second);
        let mut another = std::pin::pin!(another);
        assert!(
            tokio::time::timeout(Duration::from_millis(1), &mut another)
                .await
                .is_err()
        );
        drop(first);
        another.await;
        room.take(&unit(2 * BYTES)).await;
    }

    #[test]
    fn the_oldest_of_too_many_offenders_is_forgotten() {
        let mut offenders = Offenders::<Ticket>::new();
        let key = |number: usize| TicketId::parse(&number.to_string()).unwrap();
        for number in 0..=Offenders::<Ticket>::MOST {
            offenders.add(&key(number));
        }
        assert!(!offenders.contain(&key(0)) && offenders.contain(&key(1)));
        offenders.remove(&key(1));
        assert!(!offenders.contain(&key(1)));
    }
}
