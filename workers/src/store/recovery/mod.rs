//! Rolls rows forward to what was told of them, in a database that was put back to an earlier time.
//!
//! Kafka has the outcomes of decisions that the database has forgotten. Each is written as it was told: row, change log and
//! idempotency record, so that its event is a repeat again. What was decided and never told is gone, and is decided anew once its event
//! is admitted again; it follows what was told of its ticket or user, since outcomes are told in the order of their decisions. An event
//! of which only the first outcomes were told is decided to its end.
//!
//! Of a checkout the outcomes tell how it was opened and how it ended, and its tickets and entries of the ledger what was sold and paid
//! (`checkouts`); one that has not ended is left to its next step, which asks the payment provider.
//!
//! All of it is one transaction. Where it is not certain what a row was, nothing is written.

mod checkouts;
pub mod retelling;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use holdfast_schemas::ledger::Entry;
use holdfast_schemas::{
    Event, EventData, EventId, Key, Outcome, OutcomeData, RequestHash, Source, TicketEvent, UserEvent, UserId,
    UserOutcome, outcome_id, outcomes,
};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use super::commit::{self, Admission, Command, Drafts, Retold, Rules, Stored, Unit, Work};
use super::mechanisms::two_phase;
use super::operator_log::Operator;
use super::session::{patience, within};
use super::{Error, buying, credits};
use crate::domain::ticket::{self, HoldTerms};
use crate::domain::{Decision, OutcomeOf, Recoverable, Ticket, Unrecoverable, User, user};

/// The database to recover, and the rules by which it was decided there.
pub struct Recovery {
    pub pool: PgPool,
    pub holds: HoldTerms,
    /// How long the answer to an event is kept.
    pub retention: Duration,
    pub loyalty: Option<PgPool>,
    /// True if there is a mail server, so that customers get mails.
    pub mails: bool,
    /// True if a refund in full frees the seats.
    pub refund_frees_seats: bool,
    /// Users whose profiles nobody knows come back without one, and the shop is told so.
    pub without_profiles: bool,
}

/// What was told, and the database does not know.
#[derive(Debug, Default)]
pub struct Forgotten {
    pub tickets: Recollection<TicketEvent>,
    pub users: Recollection<UserEvent>,
    pub entries: Vec<Entry>,
    /// The rows of the outbox that were told.
    pub told_already: Vec<i64>,
}

/// What was told of one stream.
#[derive(Debug)]
pub struct Recollection<A: EventData> {
    pub outcomes: Vec<Outcome<A::Outcome>>,
    /// The events that they answer, by source and id, each with its origin, as far as they are still there.
    pub events: HashMap<(String, String), Event<A>>,
}

impl Forgotten {
    pub fn is_empty(&self) -> bool {
        let Self {
            tickets,
            users,
            entries,
            told_already,
        } = self;
        tickets.outcomes.is_empty() && users.outcomes.is_empty() && entries.is_empty() && told_already.is_empty()
    }
}

impl<A: EventData> Default for Recollection<A> {
    fn default() -> Self {
        Self {
            outcomes: Vec::new(),
            events: HashMap::new(),
        }
    }
}

/// What was written.
#[derive(Debug, Default)]
pub struct RolledForward {
    /// The generation that began.
    pub generation: i64,
    pub tickets: usize,
    pub users: usize,
    pub checkouts: usize,
    pub outcomes: usize,
    /// Rows that left the outbox, as they were told.
    pub dropped: u64,
    /// Outcomes that were never told of events of which others were: they go to the outbox.
    pub completed: usize,
    /// Events that are known again by their names alone, since their contents are gone: whatever repeats them is refused.
    pub without_content: usize,
    /// Users who came back without their profiles: it is told that they were erased.
    pub without_profile: Vec<UserId>,
    /// Why nothing was written, if this is not empty.
    pub obstacles: Vec<Obstacle>,
}

/// Something that cannot be rolled forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    pub key: String,
    pub what: String,
}

/// Most units of one statement.
const UNITS: usize = 500;

impl Recovery {
    /// Rolls everything forward and begins a new generation, or does nothing of it: when there are obstacles, or in a dry run.
    ///
    /// # Errors
    /// The database does not answer, or somebody else changes the same rows.
    pub async fn roll_forward(
        &self,
        forgotten: &Forgotten,
        operator: Operator<'_>,
        dry_run: bool,
    ) -> Result<RolledForward, Error> {
        let mut transaction = self.pool.begin().await.map_err(Error::Write)?;
        let mut rolled = RolledForward {
            generation: self.begin_generation(&mut transaction, operator.why).await?,
            ..RolledForward::default()
        };
        let connection = &mut *transaction;
        // Whoever still decides waits, and then finds rows that it has not read.
        let lock = sqlx::raw_sql("lock table tickets, users, checkouts in share row exclusive mode");
        self.answer(lock.execute(&mut *connection)).await?;
        let of_tickets = ticket::holding_by(self.holds.clone());
        rolled.tickets = self
            .roll::<Ticket>(connection, &forgotten.tickets, &of_tickets, &mut rolled)
            .await?;
        rolled.users = self
            .roll::<User>(connection, &forgotten.users, &user::decide, &mut rolled)
            .await?;
        self.tell_erased(connection, &rolled).await?;
        self.bind_credits(connection, forgotten, &mut rolled).await?;
        self.roll_checkouts(connection, forgotten, &mut rolled).await?;
        rolled.dropped = self.drop_told(connection, &forgotten.told_already).await?;
        match dry_run || !rolled.obstacles.is_empty() {
            true => transaction.rollback().await,
            false => transaction.commit().await,
        }
        .map_err(Error::Write)?;
        Ok(rolled)
    }

    async fn begin_generation(&self, connection: &mut PgConnection, reason: &str) -> Result<i64, Error> {
        let begun = sqlx::query_scalar!(
            "insert into generations (generation, reason) select max(generation) + 1, $1 from generations returning generation",
            reason
        );
        self.answer(begun.fetch_one(connection)).await
    }

    async fn drop_told(&self, connection: &mut PgConnection, rows: &[i64]) -> Result<u64, Error> {
        let dropped = sqlx::query!("delete from outbox where id = any($1)", rows);
        let done = self.answer(dropped.execute(connection)).await?;
        Ok(done.rows_affected())
    }

    /// Tells of the users who came back without a profile that they were erased: nothing is kept of it, and the shop may give it anew.
    async fn tell_erased(&self, connection: &mut PgConnection, rolled: &RolledForward) -> Result<(), Error> {
        let units = rolled.without_profile.iter().map(|user| {
            let of = Uuid::new_v5(&Uuid::NAMESPACE_OID, user.as_str().as_bytes());
            let command = Command {
                source: Source::parse("holdfast/recovery").expect("a short name"),
                id: EventId::parse(&format!("{}/{of}", rolled.generation)).expect("a number and a UUID are short"),
                input: user::Input::Tell(vec![outcomes::UserErased {}.into()]),
                trace: None,
            };
            Unit {
                key: user.clone(),
                work: vec![Work::Command(command)],
            }
        });
        let units: Vec<Unit<User>> = units.collect();
        for units in units.chunks(UNITS) {
            let told = commit::within(connection, &user::decide, Admission::OF_ANY_AGE, units);
            within(patience(&self.pool), Error::Write, told).await?;
        }
        Ok(())
    }

    /// Notes that the credits which were told of are committed in the loyalty database, or will be when their attempt is settled.
    async fn bind_credits(
        &self,
        connection: &mut PgConnection,
        forgotten: &Forgotten,
        rolled: &mut RolledForward,
    ) -> Result<(), Error> {
        let added = forgotten.users.outcomes.iter();
        let added = added.filter(|told| matches!(told.data, UserOutcome::CreditsChanged(_)));
        let added = added.map(|told| (credits::addition(told.id), told.id.0));
        let moved = forgotten.entries.iter().filter_map(|entry| {
            let transaction = buying::of_entry(&entry.checkout, entry.data.kind.as_str())?;
            Some((transaction, entry.id.0))
        });
        let bound: Vec<_> = added.chain(moved).collect();
        if bound.is_empty() {
            return Ok(());
        }
        let Some(loyalty) = &self.loyalty else {
            rolled.obstacles.push(Obstacle {
                key: "(credits)".to_owned(),
                what: "credits have changed, but no loyalty database is set (--loyalty-url)".to_owned(),
            });
            return Ok(());
        };
        let unsettled: HashMap<_, _> = two_phase::unsettled(loyalty).await?.into_iter().collect();
        // What is settled needs no name of its own any more.
        let (transactions, attempts): (Vec<_>, Vec<_>) = bound
            .into_iter()
            .map(|(transaction, id)| {
                let attempt = unsettled.get(&transaction).copied().unwrap_or(id);
                (transaction.as_str().to_owned(), attempt)
            })
            .unzip();
        let bind = sqlx::query!(
            "insert into two_phase_attempts (transaction, attempt, fate)
             select transaction, attempt, 'committed' from unnest($1::text[], $2::uuid[]) as told (transaction, attempt)
             on conflict do nothing",
            &transactions,
            &attempts,
        );
        self.answer(bind.execute(connection)).await.map(drop)
    }

    /// The answer to a statement, which is waited for no longer than it may take.
    async fn answer<T>(&self, statement: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Error> {
        within(patience(&self.pool), |error| error, statement)
            .await
            .map_err(Error::Write)
    }

    /// Rolls one table forward. Answers how many of its rows have moved.
    async fn roll<E: Stored + Recoverable>(
        &self,
        connection: &mut PgConnection,
        recollection: &Recollection<E::Data>,
        rules: &dyn Rules<E>,
        rolled: &mut RolledForward,
    ) -> Result<usize, Error> {
        let mut lives: BTreeMap<&str, Vec<&Outcome<OutcomeOf<E>>>> = BTreeMap::new();
        for told in &recollection.outcomes {
            lives.entry(told.subject.as_str()).or_default().push(told);
        }
        for told in lives.values_mut() {
            told.sort_by_key(|told| told.sequence);
        }
        let keys: Vec<&str> = lives.keys().copied().collect();
        let mut moved = 0;
        for keys in keys.chunks(UNITS) {
            let current = within(patience(&self.pool), Error::Read, E::read(connection, keys)).await?;
            let mut steps = Vec::new();
            for key in keys {
                match Life::of(
                    current.rows.get(*key),
                    &lives[key],
                    recollection,
                    (rules, self.without_profiles),
                ) {
                    Ok(life) => {
                        moved += usize::from(life.steps.iter().any(|step| step.row.is_some()));
                        let user = UserId::parse(key).ok().filter(|_| life.lacks_profile);
                        rolled.without_profile.extend(user);
                        rolled.without_content += life.without_content;
                        steps.push(life.steps.into_iter());
                    }
                    Err(what) => {
                        let key = (*key).to_owned();
                        rolled.obstacles.push(Obstacle { key, what });
                    }
                }
            }
            self.write(connection, steps, rolled).await?;
        }
        Ok(moved)
    }

    /// Writes what each key has in its order, step by step: the first of all, then the second.
    async fn write<'a, E: Stored>(
        &self,
        connection: &mut PgConnection,
        mut steps: Vec<impl Iterator<Item = Retold<'a, E>>>,
        rolled: &mut RolledForward,
    ) -> Result<(), Error> {
        loop {
            let round: Vec<_> = steps.iter_mut().filter_map(Iterator::next).collect();
            if round.is_empty() {
                return Ok(());
            }
            for step in &round {
                rolled.outcomes += 1 + step.others.len();
                rolled.completed += step.untold.len();
            }
            let drafts = Drafts::retold(round, rolled.generation);
            within(patience(&self.pool), Error::Write, drafts.write(connection)).await?;
        }
    }
}

/// What was told of one key, event by event.
struct Life<'a, E: Recoverable> {
    steps: Vec<Retold<'a, E>>,
    /// Of how many events the contents are gone.
    without_content: usize,
    /// True if its profile is gone.
    lacks_profile: bool,
}

impl<'a, E: Recoverable> Life<'a, E> {
    /// # Errors
    /// In words, why it does not lead from the row to another.
    fn of(
        row: Option<&E>,
        told: &[&'a Outcome<OutcomeOf<E>>],
        recollection: &'a Recollection<E::Data>,
        (rules, without_profiles): (&dyn Rules<E>, bool),
    ) -> Result<Self, String> {
        let (mut row, mut life) = (row.cloned(), Self::default());
        let mut left = told.len();
        for told in told.chunk_by(|one, other| cause(one) == cause(other)) {
            left -= told.len();
            let &[first, ref others @ ..] = told else { continue };
            let event = recollection.events.get(&cause(first));
            let before = row.clone();
            let (mut untold, has_row) = (vec![], first.sequence > 0);
            if has_row {
                let (next, lacks_profile) = after(row, told, event, without_profiles)?;
                row = Some(next);
                life.lacks_profile |= lacks_profile;
                if let (0, Some(event)) = (left, event)
                    && let Some((next, rest)) = rest(before.as_ref(), told, event, rules)
                {
                    (row, untold) = (Some(next), rest);
                }
            }
            let event = is_recorded(first).then(|| content(first, event));
            life.without_content += usize::from(matches!(event, Some((_, _, Content::Gone))));
            life.steps.push(Retold {
                read_version: before.filter(|_| has_row).as_ref().map(E::version),
                row: row.clone().filter(|_| has_row),
                first,
                others: others.to_vec(),
                untold,
                event: event.map(|(hash, aged_from, _)| (hash, aged_from)),
            });
        }
        Ok(life)
    }
}

impl<E: Recoverable> Default for Life<'_, E> {
    fn default() -> Self {
        Self {
            steps: Vec::new(),
            without_content: 0,
            lacks_profile: false,
        }
    }
}

/// Source and id of the event that an outcome answers.
fn cause(told: &Outcome<impl OutcomeData>) -> (String, String) {
    (
        told.causation_source.as_str().to_owned(),
        told.causation_id.as_str().to_owned(),
    )
}

/// The row after these outcomes of one event, and whether its profile is gone.
fn after<E: Recoverable>(
    mut row: Option<E>,
    told: &[&Outcome<OutcomeOf<E>>],
    event: Option<&Event<E::Data>>,
    without_profiles: bool,
) -> Result<(E, bool), String> {
    let mut lacks_profile = false;
    for (place, told) in (0..).zip(told) {
        let (version, sequence) = (row.as_ref().map_or(0, E::version), told.sequence);
        if sequence <= version {
            return Err(format!(
                "version {sequence}: the database has another outcome there, so it was decided on after it was put back"
            ));
        }
        if sequence > version + 1 {
            return Err(format!(
                "version {sequence}: the outcomes from version {} on are not on their topic any more",
                version + 1
            ));
        }
        let about = |what: &dyn fmt::Display| format!("version {sequence}, {}: {what}", told.data.outcome_type());
        let (source, id) = (told.causation_source.as_str(), told.causation_id.as_str());
        if told.id != outcome_id(source, id, told.subject.as_str(), place) {
            return Err(about(&Unrecoverable::Astray));
        }
        let next = match E::recovered(row.as_ref(), &told.data, event, sequence, told.time) {
            Err(why @ Unrecoverable::ProfileIsGone) if without_profiles => {
                lacks_profile = true;
                E::without_profile(row.as_ref(), sequence, told.time).ok_or(why)
            }
            next => next,
        };
        row = Some(next.map_err(|why| about(&why))?);
    }
    let row = row.ok_or_else(|| Unrecoverable::Astray.to_string())?;
    Ok((row, lacks_profile))
}

/// What the event has decided beyond these outcomes, and the row after that; none if that was all.
fn rest<E: Recoverable>(
    before: Option<&E>,
    told: &[&Outcome<OutcomeOf<E>>],
    event: &Event<E::Data>,
    rules: &dyn Rules<E>,
) -> Option<(E, Vec<OutcomeOf<E>>)> {
    let at = told.first()?.time;
    let input = E::input(event.data.clone(), &event.source, &event.id, &event.subject);
    let Decision::Transition {
        next: Some(next),
        mut outcomes,
    } = rules(before, input, at)
    else {
        return None;
    };
    let begins_so = outcomes.len() > told.len() && outcomes.iter().zip(told).all(|(one, told)| *one == told.data);
    begins_so.then(|| (next, outcomes.split_off(told.len())))
}

/// Whether an event has an idempotency record: the product's own requests have none, nor have the parts of a request about several
/// tickets.
fn is_recorded(told: &Outcome<impl OutcomeData>) -> bool {
    let (source, id) = (told.causation_source.as_str(), told.causation_id.as_str());
    match source.strip_prefix("holdfast/") {
        Some(who) => who == "admin",
        None => !(source.starts_with("restate:") && id.contains('/')),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    There,
    Gone,
}

/// The hash of an event, and from when on it ages. Where its content is gone the hash is that of no event.
fn content<A: EventData>(
    told: &Outcome<A::Outcome>,
    event: Option<&Event<A>>,
) -> (RequestHash, OffsetDateTime, Content) {
    match event {
        Some(event) => {
            let arrived = event.origin.as_ref().map_or(event.time, |origin| origin.time);
            (*event.hash(), event.time.max(arrived), Content::There)
        }
        None => {
            let hash = RequestHash::of_request("forgotten", &told.subject, &Value::Null);
            (hash, told.time, Content::Gone)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_schemas::{TicketOutcome, Traceparent, events, hold_id};

    const AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn told(id: &str, place: u32, sequence: i64, data: TicketOutcome) -> Outcome<TicketOutcome> {
        Outcome {
            id: outcome_id("shop", id, "A-1", place),
            subject: "A-1".parse().unwrap(),
            time: AT,
            sequence,
            generation: 1,
            causation_source: "shop".parse().unwrap(),
            causation_id: id.parse().unwrap(),
            traceparent: Traceparent::derive("shop", id),
            data,
        }
    }

    fn listed() -> Outcome<TicketOutcome> {
        let price = holdfast_schemas::Price::parse(4_500, "EUR").unwrap();
        let (show, seat) = ("gala".parse().unwrap(), None);
        told("1", 0, 1, outcomes::TicketListed { show, seat, price }.into())
    }

    fn held(id: &str, user: &str, place: u32, sequence: i64, until: OffsetDateTime) -> Outcome<TicketOutcome> {
        let (user, hold) = (user.parse().unwrap(), hold_id("shop", id, "A-1"));
        told(id, place, sequence, outcomes::TicketHeld { user, hold, until }.into())
    }

    fn life(
        told: &[Outcome<TicketOutcome>],
        events: Vec<Event<TicketEvent>>,
    ) -> Result<Vec<(Option<Ticket>, usize)>, String> {
        let events = events.into_iter();
        let events = events.map(|event| ((event.source.to_string(), event.id.to_string()), event));
        let recollection = Recollection {
            outcomes: vec![],
            events: events.collect(),
        };
        let told: Vec<_> = told.iter().collect();
        let life = Life::of(None, &told, &recollection, (&ticket::decide, false))?;
        Ok(life
            .steps
            .into_iter()
            .map(|step| (step.row, step.untold.len()))
            .collect())
    }

    #[test]
    fn a_ticket_is_what_was_told_of_it() {
        let steps = life(&[listed(), held("2", "ann", 0, 2, AT + time::Duration::HOUR)], vec![]).unwrap();
        let versions: Vec<_> = steps.iter().map(|(row, _)| row.as_ref().unwrap().version).collect();
        assert_eq!(versions, [1, 2]);
    }

    #[test]
    fn a_gap_a_rival_decision_and_a_strange_outcome_are_named() {
        for (told, what) in [
            (vec![listed(), held("2", "ann", 0, 3, AT)], "from version 2 on"),
            (vec![listed(), listed()], "the database has another outcome"),
            (vec![listed(), held("2", "ann", 1, 2, AT)], "cannot follow"),
            (vec![held("2", "ann", 0, 1, AT)], "cannot follow"),
        ] {
            let said = life(&told, vec![]).unwrap_err();
            assert!(said.contains(what), "{said}");
        }
    }

    #[test]
    fn an_event_of_which_only_the_first_outcome_was_told_is_decided_to_its_end() {
        let user: holdfast_schemas::UserId = "ann".parse().unwrap();
        let expired = outcomes::TicketExpired {
            hold: hold_id("shop", "2", "A-1"),
            user: user.clone(),
        };
        let expired = told("3", 0, 3, expired.into());
        let told = [listed(), held("2", "ann", 0, 2, AT), expired];
        let (hold_for, price) = (Some(60), None);
        let asked = events::ReservationRequested { user, hold_for, price };
        let event = Event::new(
            "shop".parse().unwrap(),
            "3".parse().unwrap(),
            AT,
            None,
            "A-1".parse().unwrap(),
            asked.into(),
        );
        let steps = life(&told, vec![event]).unwrap();
        let (row, untold) = steps.last().unwrap();
        assert_eq!((row.as_ref().unwrap().version, *untold), (4, 1));
    }
}
