//! Events by number.

use anyhow::Context;
use holdfast_schemas::hold_id;
use holdfast_tests::load::{Event, SOURCE};

/// Events that go round the tickets: in the first round each ticket is requested, in the next released, and so on. All are
/// applied.
#[derive(Clone)]
pub(super) struct Workload {
    /// Begins every id and ticket, so that no two workloads share any.
    pub(super) name: String,
    pub(super) tickets: usize,
    pub(super) events: usize,
}

impl Workload {
    pub(super) fn new(name: impl Into<String>, tickets: usize, events: usize) -> Workload {
        Workload {
            name: name.into(),
            tickets,
            events,
        }
    }

    pub(super) fn listings(&self) -> impl Iterator<Item = Event> {
        (0..self.tickets).map(|number| {
            let id = format!("{}-list-{number}", self.name);
            Event::listed(id, &self.ticket(number), "any")
        })
    }

    pub(super) fn events(&self) -> impl Iterator<Item = Event> {
        (0..self.events).map(|number| self.event(number))
    }

    fn event(&self, number: usize) -> Event {
        let ticket = self.ticket(number);
        let round = number / self.tickets;
        if round.is_multiple_of(2) {
            return Event::requested(self.id(number), &ticket, &format!("user-{round}"));
        }
        let request = self.id(number - self.tickets);
        let hold = hold_id(SOURCE, &request, &ticket).to_string();
        Event::released(self.id(number), &ticket, &format!("user-{}", round - 1), &hold)
    }

    fn ticket(&self, number: usize) -> String {
        format!("{}-{}", self.name, number % self.tickets)
    }

    fn id(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    /// The number in an id: the inverse of [`Self::id`].
    pub(super) fn number_of(&self, id: &str) -> anyhow::Result<usize> {
        let number = id.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('-'));
        let number = number.with_context(|| format!("{id} is no event of {}", self.name))?;
        Ok(number.parse()?)
    }
}
