//! Each way to break a promise, applied to a small set of facts that keeps them all.

use holdfast_schemas::{
    CheckoutId, Credits, DeadLetter, DeadLetterReason, Emptied, Event, EventData, HoldId, Key, Origin, Outcome,
    OutcomeData, OutcomeId, Price, ProfileValues, RefusalReason, ShowId, Source, TicketEvent, TicketOutcome,
    Traceparent, UserEvent, UserId, UserOutcome, UserRefusalReason, events, hold_id, outcome_id, outcomes,
};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::change_history::{Answered, Change, Entry, Record, RecordPosition};
use super::credits::Credit;
use super::history::{History, OutcomeOf, Ticket, TicketRow, User, UserRow};
use super::identity::{Fingerprint, digest, millis, named};
use super::letters::Original;
use super::look::Book;
use super::report::{Promise, Report};
use super::retention::Removed;
use super::reuse::Uses;
use super::terms::Terms;
use crate::kafka::reader::{Extent, Keeps};

const SHOP: &str = "shop";
const NOON: OffsetDateTime = datetime!(2030-01-31 12:00 UTC);
const RETENTION: Duration = Duration::days(7);
const LOST_AFTER: Duration = Duration::hours(1);
/// How long topics keep records.
const KEPT_FOR: Duration = Duration::days(14);

/// Everything that verify reads of one stream, for one partition of each topic.
struct World<H: History> {
    log: Vec<Logged<OutcomeOf<H>>>,
    rows: Vec<(&'static str, i64, H::Row)>,
    answers: Vec<Answer<H::Data>>,
    outbox: Vec<Outcome<OutcomeOf<H>>>,
    told: Vec<Outcome<OutcomeOf<H>>>,
    /// Outcomes from this index on came after the snapshot.
    snapshot_at: Option<usize>,
    sent: Vec<Sent<H::Data>>,
    letters: Vec<(i64, DeadLetterReason)>,
    /// When the dead letters were written.
    letters_at: OffsetDateTime,
    /// What the dead letters have, where it is not what was sent.
    letters_have: Option<Copied>,
    /// Offsets whose dead letters an operator has settled.
    settled: Vec<i64>,
    /// Offsets whose events are in quarantine, in their order there.
    parked: Vec<i64>,
    letters_removed: Removed,
    beginning_is_gone: bool,
    outcomes_removed: Removed,
    /// When the look begins, if it sees only what is new.
    since: Option<OffsetDateTime>,
    /// What was answered before.
    before: Vec<Answer<H::Data>>,
}

/// What a dead letter has of its record, with the headers that the record came with.
#[derive(Clone, Default)]
struct Copied {
    key: Option<&'static str>,
    value: Option<Vec<u8>>,
    headers: Vec<(&'static str, &'static str)>,
}

#[derive(Clone)]
struct Logged<T> {
    subject: &'static str,
    version: i64,
    outcome: OutcomeId,
    told: T,
    cause: (String, String),
    at: OffsetDateTime,
}

struct Answer<A: EventData> {
    event: Event<A>,
    outcomes: Vec<(i64, A::Outcome)>,
    refused: bool,
    at: OffsetDateTime,
}

#[derive(Clone)]
struct Sent<A: EventData> {
    offset: i64,
    key: &'static str,
    event: Option<Event<A>>,
    at: OffsetDateTime,
}

/// A ticket that was listed, held by ann, refused to bob, released by ann, and held by bob; and a request for a ticket that
/// does not exist.
fn world() -> World<Ticket> {
    let mut world = World::default();
    world.happens(
        "unlisted",
        "Z-9",
        reserve("ann"),
        &[refused(RefusalReason::UnknownTicket)],
        0,
    );
    world.happens("list", "A-1", list(), &[listed()], 1);
    world.happens("ann", "A-1", reserve("ann"), &[held("ann", "ann")], 2);
    world.happens("bob-1", "A-1", reserve("bob"), &[refused(RefusalReason::Held)], 3);
    let given_back = TicketEvent::ReservationReleased(events::ReservationReleased {
        user: user("ann"),
        hold: hold("ann"),
    });
    let released = TicketOutcome::TicketReleased(outcomes::TicketReleased {
        user: user("ann"),
        hold: hold("ann"),
    });
    world.happens("back", "A-1", given_back, &[released], 4);
    world.happens("bob-2", "A-1", reserve("bob"), &[held("bob", "bob-2")], 5);
    world.rows.push(("A-1", 5, row("held", Some(("bob", "bob-2")))));
    world
}

/// Ann was registered, changed, changed to what she was already, and given credits; bob's change is refused.
fn users() -> World<User> {
    let mut world = World::default();
    world.happens("bob", "bob", change(), &[unknown()], 0);
    world.happens(
        "register",
        "ann",
        register(),
        &[UserOutcome::UserRegistered(outcomes::UserRegistered {})],
        1,
    );
    world.happens(
        "change",
        "ann",
        change(),
        &[changed(&[outcomes::ProfileField::Name])],
        2,
    );
    world.happens("again", "ann", change(), &[], 3);
    world.happens("credits", "ann", add_credits(), &[credited()], 3);
    let refused = UserOutcome::PaymentRefused(outcomes::PaymentRefused {
        reason: UserRefusalReason::AlreadyRegistered,
    });
    world.happens("register-2", "ann", register(), &[refused], 4);
    let row = UserRow {
        changed_at: NOON,
        has_profile: true,
        has_customer: false,
    };
    world.rows.push(("ann", 4, row));
    world
}

/// As [`users`], and then ann is erased, which is asked for twice.
fn erased() -> World<User> {
    let mut world = users();
    let erase = || UserEvent::UserErased(events::UserErased {});
    world.happens("erase", "ann", erase(), &[erasure()], 5);
    world.happens("erase-2", "ann", erase(), &[], 6);
    let row = UserRow {
        changed_at: NOON,
        has_profile: false,
        has_customer: false,
    };
    world.rows = vec![("ann", 5, row)];
    world
}

/// Nothing has happened.
impl<H: History> Default for World<H> {
    fn default() -> Self {
        Self {
            log: Vec::new(),
            rows: Vec::new(),
            answers: Vec::new(),
            outbox: Vec::new(),
            told: Vec::new(),
            snapshot_at: None,
            sent: Vec::new(),
            letters: Vec::new(),
            letters_at: NOON,
            letters_have: None,
            settled: Vec::new(),
            parked: Vec::new(),
            letters_removed: Removed::default(),
            beginning_is_gone: false,
            outcomes_removed: Removed::default(),
            since: None,
            before: Vec::new(),
        }
    }
}

impl World<Ticket> {
    fn row(&mut self) -> &mut TicketRow {
        &mut self.rows[0].2
    }
}

impl<H: History<Row: Clone>> World<H> {
    /// Adds an event with its decision and its outcomes.
    fn happens(&mut self, id: &str, subject: &'static str, data: H::Data, outcomes: &[OutcomeOf<H>], first: i64) {
        let event = self.sends(id, subject, data);
        let sequences: Vec<i64> = match first {
            0 => vec![0],
            _ => (first..).take(outcomes.len()).collect(),
        };
        for ((place, told), sequence) in (0..).zip(outcomes).zip(&sequences) {
            self.tells((SHOP, id), place, subject, told, *sequence);
        }
        self.answers.push(Answer {
            event,
            outcomes: sequences.into_iter().zip(outcomes.iter().cloned()).collect(),
            refused: outcomes.last().is_some_and(|told| told.refusal().is_some()),
            at: NOON,
        });
    }

    fn sends(&mut self, id: &str, subject: &'static str, data: H::Data) -> Event<H::Data> {
        let event = event(id, subject, data);
        self.send(subject, Some(event.clone()));
        event
    }

    fn send(&mut self, key: &'static str, event: Option<Event<H::Data>>) {
        let offset = self.sent.len() as i64;
        let at = NOON;
        self.sent.push(Sent { offset, key, event, at });
    }

    /// Adds a change of a row that no public record caused.
    fn tells(
        &mut self,
        (source, id): (&str, &str),
        place: u32,
        subject: &'static str,
        told: &OutcomeOf<H>,
        sequence: i64,
    ) {
        let outcome = outcome_id(source, id, subject, place);
        if sequence > 0 {
            self.log.push(Logged {
                subject,
                version: sequence,
                outcome,
                told: told.clone(),
                cause: (source.to_owned(), id.to_owned()),
                at: NOON,
            });
        }
        self.told.push(Outcome {
            id: outcome,
            subject: key(subject),
            time: NOON,
            sequence,
            generation: 1,
            causation_source: source.parse().unwrap(),
            causation_id: id.parse().unwrap(),
            traceparent: Traceparent::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap(),
            data: told.clone(),
        });
    }

    /// All was sent at this time, by every clock.
    fn age(&mut self, at: OffsetDateTime) {
        for sent in &mut self.sent {
            sent.at = at;
            if let Some(event) = &mut sent.event {
                event.time = at;
            }
        }
    }

    /// And all was decided at this time, but for what the rows say.
    fn age_with_decisions(&mut self, at: OffsetDateTime) {
        self.age(at);
        for logged in &mut self.log {
            logged.at = at;
        }
        for told in &mut self.told {
            told.time = at;
        }
    }

    fn verify(&self) -> Report {
        let mut report = Report::default();
        self.read(&mut report);
        report
    }

    fn read(&self, report: &mut Report) -> Book<H> {
        let terms = Terms::new(NOON, RETENTION.unsigned_abs(), LOST_AFTER.unsigned_abs(), 4 << 20);
        let mut book = Book::<H>::new(1, terms, self.since.map(millis));
        for (offset, reason) in &self.letters {
            self.put_aside(*offset, *reason, &mut book);
        }
        let (change_history, records, topic_partition) =
            (&mut book.change_history, &mut book.records, (H::Data::TOPIC, 0));
        self.changes()
            .into_iter()
            .for_each(|change| change_history.change(change, report));
        change_history.end_of_changes(report);
        for answer in &self.answers {
            change_history.record(answer.as_record(), report);
        }
        for outcome in &self.outbox {
            change_history.waiting(outcome, report);
        }
        for (offset, outcome) in self.told.iter().enumerate() {
            let position = RecordPosition {
                partition: 0,
                offset: offset as i64,
                before_snapshot: self.snapshot_at.is_none_or(|end| offset < end),
            };
            change_history.told(position, Some(outcome.subject.as_str().as_bytes()), outcome, report);
        }
        change_history.end_of_outcomes(&self.outcomes_removed, report);
        for offset in &self.settled {
            records.settled(topic_partition, *offset);
        }
        for (place, offset) in (0..).zip(&self.parked) {
            let sent = self.sent.iter().find(|sent| sent.offset == *offset).unwrap();
            let event = named(sent.event.as_ref().unwrap()).unwrap();
            records.parked(event, place, Some((topic_partition, *offset)));
        }
        if self.beginning_is_gone {
            records.beginning_is_gone(topic_partition);
        }
        for sent in &self.sent {
            let value = sent.value();
            records.record::<H>(topic_partition, sent.offset, &sent.original(&value), change_history);
        }
        let unknown = records.take_unknown();
        for answer in &self.before {
            let record = answer.as_record();
            if unknown.contains(&(record.source.clone(), record.id.clone())) {
                change_history.repeated(&record);
            }
        }
        let mut uses = Uses::default();
        records.contested(&mut uses);
        records.uses(change_history, &mut uses);
        book.judge(&uses, &self.letters_removed, report);
        book
    }

    /// A dead letter about what lies at `offset`.
    fn put_aside(&self, offset: i64, reason: DeadLetterReason, book: &mut Book<H>) {
        let sent = self.sent.iter().find(|sent| sent.offset == offset).unwrap();
        let origin = Origin {
            topic: H::Data::TOPIC.to_owned(),
            partition: 0,
            offset,
            time: sent.at,
        };
        let detail = String::new();
        let letter = DeadLetter { reason, detail, origin };
        let own = letter.headers();
        let copied = self.letters_have.clone().unwrap_or_else(|| Copied {
            key: Some(sent.key),
            value: Some(sent.value()),
            headers: Vec::new(),
        });
        let headers = copied.headers.iter().copied();
        let headers = headers.chain(own.iter().map(|(name, value)| (*name, value.as_str())));
        let record = Original {
            key: copied.key.map(str::as_bytes),
            value: copied.value.as_deref(),
            headers: headers
                .map(|(name, value)| Some((name, Some(value.as_bytes()))))
                .collect(),
            at: self.letters_at,
        };
        book.dead_letter(&letter, &record);
    }

    /// As the database's full join has them.
    fn changes(&self) -> Vec<Change<H>> {
        let mut changes: Vec<Change<H>> = Vec::new();
        for logged in &self.log {
            let row = self
                .rows
                .iter()
                .find(|(subject, version, _)| (*subject, *version) == (logged.subject, logged.version));
            changes.push(Change {
                subject: logged.subject.to_owned(),
                version: logged.version,
                entry: Some(Entry {
                    outcome: logged.outcome,
                    told: Some(logged.told.clone()),
                    cause_source: logged.cause.0.clone(),
                    cause_id: logged.cause.1.clone(),
                    changed_at: logged.at,
                }),
                row: row.map(|(_, _, row)| row.clone()),
            });
        }
        for (subject, version, row) in &self.rows {
            if !changes
                .iter()
                .any(|change| change.row.is_some() && change.subject == *subject)
            {
                changes.push(Change {
                    subject: (*subject).to_owned(),
                    version: *version,
                    entry: None,
                    row: Some(row.clone()),
                });
            }
        }
        changes.sort_by(|a, b| (&a.subject, a.version).cmp(&(&b.subject, b.version)));
        changes
    }
}

impl<A: EventData> Sent<A> {
    fn value(&self) -> Vec<u8> {
        self.event.as_ref().map_or_else(|| b"{".to_vec(), Event::to_json)
    }

    fn original<'a>(&self, value: &'a [u8]) -> Original<'a> {
        Original {
            key: Some(self.key.as_bytes()),
            value: Some(value),
            headers: Vec::new(),
            at: self.at,
        }
    }
}

impl<A: EventData> Answer<A> {
    fn as_record(&self) -> Record {
        Record {
            source: self.event.source.as_str().to_owned(),
            id: self.event.id.as_str().to_owned(),
            subject: self.event.subject.as_str().to_owned(),
            digest: digest(self.event.hash().as_bytes()).unwrap(),
            outcomes: self
                .outcomes
                .iter()
                .map(|(sequence, told)| Answered {
                    sequence: *sequence,
                    content: Some(Fingerprint::of_outcome(told)),
                })
                .collect(),
            refused: self.refused,
            written_at: self.at,
        }
    }
}

fn event<A: EventData>(id: &str, subject: &str, data: A) -> Event<A> {
    Event::new(
        SHOP.parse::<Source>().unwrap(),
        id.parse().unwrap(),
        NOON,
        None,
        key(subject),
        data,
    )
}

fn key<K: Key>(subject: &str) -> K {
    K::parse(subject).unwrap()
}

fn user(name: &str) -> UserId {
    name.parse().unwrap()
}

fn hold(event: &str) -> HoldId {
    hold_id(SHOP, event, "A-1")
}

fn price() -> Price {
    Price::parse(4500, "EUR").unwrap()
}

fn show() -> ShowId {
    "show-1".parse().unwrap()
}

fn list() -> TicketEvent {
    TicketEvent::TicketListed(events::TicketListed {
        show: show(),
        seat: None,
        price: price(),
    })
}

fn listed() -> TicketOutcome {
    TicketOutcome::TicketListed(outcomes::TicketListed {
        show: show(),
        seat: None,
        price: price(),
    })
}

fn reserve(by: &str) -> TicketEvent {
    TicketEvent::ReservationRequested(events::ReservationRequested {
        user: user(by),
        hold_for: None,
        price: None,
    })
}

fn held(by: &str, event: &str) -> TicketOutcome {
    TicketOutcome::TicketHeld(outcomes::TicketHeld {
        user: user(by),
        hold: hold(event),
        until: NOON + Duration::minutes(15),
    })
}

fn sold(to: &str, checkout: &str) -> TicketOutcome {
    let checkout: CheckoutId = checkout.parse().unwrap();
    TicketOutcome::TicketSold(outcomes::TicketSold {
        user: user(to),
        checkout,
    })
}

fn refused(reason: RefusalReason) -> TicketOutcome {
    TicketOutcome::ReservationRefused(outcomes::ReservationRefused { reason })
}

fn register() -> UserEvent {
    UserEvent::UserRegistered(events::UserRegistered {
        email: "ann@example.org".parse().unwrap(),
        name: None,
        language: None,
    })
}

fn change() -> UserEvent {
    let to = ProfileValues {
        name: Some("Ann".parse().unwrap()),
        ..ProfileValues::default()
    };
    let was = ProfileValues::default();
    let emptied = Emptied::default();
    UserEvent::ProfileChanged(events::ProfileChanged { to, emptied, was })
}

fn changed(fields: &[outcomes::ProfileField]) -> UserOutcome {
    let fields = fields.to_vec();
    UserOutcome::ProfileChanged(outcomes::ProfileChanged { fields })
}

fn add_credits() -> UserEvent {
    let amount = Credits::new(5).unwrap();
    UserEvent::CreditsAdded(events::CreditsAdded { amount })
}

fn credited() -> UserOutcome {
    let added = Credits::new(5).unwrap();
    UserOutcome::CreditsChanged(outcomes::CreditsChanged { added })
}

fn erasure() -> UserOutcome {
    UserOutcome::UserErased(outcomes::UserErased {})
}

fn unknown() -> UserOutcome {
    UserOutcome::PaymentRefused(outcomes::PaymentRefused {
        reason: UserRefusalReason::UnknownUser,
    })
}

fn row(status: &str, holder: Option<(&str, &str)>) -> TicketRow {
    TicketRow {
        show: "show-1".into(),
        seat: None,
        price_amount: 4500,
        price_currency: "EUR".into(),
        status: status.into(),
        hold: holder.map(|(_, event)| hold(event).as_uuid()),
        holder: holder.map(|(user, _)| user.into()),
        held_until: (status == "held").then_some(NOON + Duration::minutes(15)),
        checkout: None,
        hold_price: None,
        off_sale: false,
        changed_at: NOON,
    }
}

/// The only partition of a topic, of which nothing is left at this time.
fn emptied(now: OffsetDateTime) -> Removed {
    let keeps = Keeps {
        age: Some(KEPT_FOR.unsigned_abs()),
        bytes_are_limited: false,
    };
    Removed::new(&Extent::from([(0, (9, 9))]), keeps, millis(now))
}

/// A world in which an event was sent last and not decided, and its offset.
fn undecided() -> (World<Ticket>, i64) {
    let mut world = world();
    world.sends("gone", "A-1", reserve("eve"));
    (world, 6)
}

/// Checks that one promise is broken, once, and no other; returns the fault.
#[track_caller]
fn only(report: &Report, promise: Promise, key: &str) -> String {
    let counts = [report.lost, report.doubled, report.out_of_order, report.oversold];
    assert_eq!(counts.iter().sum::<u64>(), 1, "{report}");
    let offence = report.offence(promise).unwrap_or_else(|| panic!("{report}"));
    assert_eq!(offence.key, key, "{report}");
    offence.what.clone()
}

#[test]
fn what_is_in_quarantine_is_accounted_for_and_keeps_its_order() {
    let mut world = world();
    for id in ["park-1", "park-2"] {
        world.sends(id, "A-1", reserve("ann"));
    }
    let repeat = world.sent.last().unwrap().event.clone();
    world.send("A-1", repeat);
    let offset = world.sent.len() as i64 - 3;
    world.parked = vec![offset, offset + 1];
    let report = world.verify();
    assert!(
        report.is_clean() && report.pending == 0 && report.parked == 3,
        "{report}"
    );

    let swapped = vec![offset + 1, offset];
    let report = World {
        parked: swapped,
        ..world
    }
    .verify();
    assert!(report.offence(Promise::OutOfOrder).is_some(), "{report}");
}

#[test]
fn an_event_that_overtakes_one_in_quarantine_is_out_of_order() {
    let mut world = world();
    world.sends("parked", "A-1", reserve("ann"));
    world.parked.push(world.sent.len() as i64 - 1);
    world.happens("late", "A-1", reserve("cid"), &[refused(RefusalReason::Held)], 6);
    world.rows[0].1 = 6;
    let report = world.verify();
    let offence = report.offence(Promise::OutOfOrder);
    assert!(
        offence.is_some_and(|offence| offence.what.contains("is parked")),
        "{report}"
    );
}

#[test]
fn a_record_that_is_not_parked_before_one_that_is_is_lost() {
    let mut world = world();
    world.sends("gone", "A-1", reserve("ann"));
    world.sends("parked", "A-1", reserve("ann"));
    world.parked.push(world.sent.len() as i64 - 1);
    let report = world.verify();
    assert!(report.lost == 1 && report.parked == 1, "{report}");
}

#[test]
fn kept_promises_are_found_kept() {
    let report = world().verify();
    assert!(report.is_clean(), "{report}");
    let counts = (
        report.events,
        report.applied,
        report.refused,
        report.pending,
        report.dead_letters,
    );
    assert_eq!(counts, (6, 4, 2, 0, 0));
}

#[test]
fn a_repeat_is_a_repeat() {
    let mut world = world();
    world.sends("ann", "A-1", reserve("ann"));
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.events, report.applied, report.repeats), (7, 4, 1));
}

#[test]
fn what_http_asked_for_is_no_record() {
    let mut world = world();
    world.happens("http", "A-1", reserve("eve"), &[refused(RefusalReason::Held)], 6);
    world.sent.pop();
    world.rows[0].1 = 6;
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.events, 6);
}

#[test]
fn an_event_without_a_trace_is_lost_once_a_later_one_of_its_key_was_decided() {
    let mut world = world();
    let event = event("gone", "A-1", reserve("eve"));
    world.sent.insert(
        3,
        Sent {
            offset: 3,
            key: "A-1",
            event: Some(event),
            at: NOON,
        },
    );
    for (offset, sent) in (0..).zip(&mut world.sent) {
        sent.offset = offset;
    }
    let what = only(&world.verify(), Promise::Lost, "A-1");
    assert!(what.contains("reservations/0/3"), "{what}");
}

#[test]
fn an_event_without_a_trace_is_pending_while_nothing_of_its_key_was_decided_after_it() {
    let mut world = world();
    world.sends("young", "A-1", reserve("eve"));
    // Neither a repeat nor a dead letter that the gate makes shows that serve has come so far.
    world.sends("ann", "A-1", reserve("ann"));
    world.send("A-1", None);
    world.letters.push((8, DeadLetterReason::Undecodable));
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.pending, report.repeats, report.dead_letters), (1, 1, 1));
}

#[test]
fn an_event_without_a_trace_is_lost_once_it_is_old_enough() {
    let (mut world, offset) = undecided();
    let sent = &mut world.sent[offset as usize];
    sent.at = NOON - LOST_AFTER + Duration::seconds(1);
    assert_eq!(world.verify().pending, 1);
    world.sent[offset as usize].at = NOON - LOST_AFTER;
    let what = only(&world.verify(), Promise::Lost, "A-1");
    assert!(
        what.contains("reservations/0/6") && what.contains("3600 s old"),
        "{what}"
    );
}

#[test]
fn an_emptied_partition_of_the_dead_letters_excuses_only_what_is_older_than_retention() {
    let (mut world, offset) = undecided();
    world.letters_removed = emptied(NOON);
    world.sent[offset as usize].at = NOON - KEPT_FOR + Duration::hours(1);
    only(&world.verify(), Promise::Lost, "A-1");
    world.sent[offset as usize].at = NOON - KEPT_FOR - Duration::hours(1);
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.out_of_scope, report.pending), (1, 0));
}

#[test]
fn a_dead_letter_that_lies_about_a_sound_event_accounts_for_nothing() {
    for reason in [
        DeadLetterReason::Undecodable,
        DeadLetterReason::KeyMismatch,
        DeadLetterReason::InvalidData,
        DeadLetterReason::TooOld,
        DeadLetterReason::TooEarly,
        DeadLetterReason::TooLarge,
        DeadLetterReason::ReservedSource,
        DeadLetterReason::IdReused,
        DeadLetterReason::UnknownType,
    ] {
        let (mut world, offset) = undecided();
        world.letters.push((offset, reason));
        world.letters_at = NOON + Duration::minutes(2);
        let what = only(&world.verify(), Promise::Lost, "A-1");
        assert!(
            what.contains("reservations/0/6") && what.contains(reason.as_str()),
            "{what}"
        );
        // What an operator has replayed or dropped is settled.
        world.settled.push(offset);
        let report = world.verify();
        assert!(report.is_clean() && report.dead_letters == 1, "{report}");
    }
}

#[test]
fn a_dead_letter_that_names_another_reason_than_the_records_accounts_for_nothing() {
    let mut world = world();
    world.send("A-1", None);
    world.letters.push((6, DeadLetterReason::KeyMismatch));
    let what = only(&world.verify(), Promise::Lost, "A-1");
    assert!(what.contains("key_mismatch") && what.contains("undecodable"), "{what}");
}

#[test]
fn a_dead_letter_with_other_bytes_than_the_record_accounts_for_nothing() {
    let mut world = world();
    world.send("A-1", None);
    world.letters.push((6, DeadLetterReason::Undecodable));
    let same = Copied {
        key: Some("A-1"),
        value: Some(b"{".to_vec()),
        headers: Vec::new(),
    };
    for other in [
        Copied {
            value: Some(b"}".to_vec()),
            ..same.clone()
        },
        Copied {
            key: Some("A-2"),
            ..same.clone()
        },
        Copied {
            headers: vec![("x", "y")],
            ..same.clone()
        },
        // Only a record that is too large is left out.
        Copied::default(),
    ] {
        world.letters_have = Some(other);
        let what = only(&world.verify(), Promise::Lost, "A-1");
        assert!(what.contains("other bytes"), "{what}");
    }
    world.letters_have = Some(same);
    let report = world.verify();
    assert!(report.is_clean() && report.dead_letters == 1, "{report}");
}

#[test]
fn a_dead_letter_about_another_record_that_lay_there_accounts_for_nothing() {
    let mut world = world();
    world.send("A-1", None);
    world.letters.push((6, DeadLetterReason::Undecodable));
    let mut before = world.sent[6].clone();
    before.at = NOON - Duration::days(1);
    world.sent[6].at = NOON - Duration::minutes(1);
    let mut book = Book::<Ticket>::new(
        1,
        Terms::new(NOON, RETENTION.unsigned_abs(), LOST_AFTER.unsigned_abs(), 4 << 20),
        None,
    );
    let earlier = World {
        sent: vec![before],
        ..World::default()
    };
    earlier.put_aside(6, DeadLetterReason::Undecodable, &mut book);
    let value = world.sent[6].value();
    let (records, history) = (&mut book.records, &mut book.change_history);
    records.record(("reservations", 0), 6, &world.sent[6].original(&value), history);
    let mut report = Report::default();
    book.judge(&Uses::default(), &Removed::default(), &mut report);
    assert_eq!((report.dead_letters, report.pending), (0, 1), "{report}");
}

#[test]
fn a_handlers_dead_letter_has_the_event_as_it_wrote_it_down() {
    let mut world = world();
    let mut reused = world.sends("ann", "A-1", reserve("eve"));
    world.letters.push((6, DeadLetterReason::IdReused));
    reused.origin = Some(Origin {
        topic: "reservations".to_owned(),
        partition: 0,
        offset: 6,
        time: NOON,
    });
    let normalised = |event: &Event<TicketEvent>| Copied {
        key: Some("A-1"),
        value: Some(event.to_json()),
        headers: vec![("content-type", "application/cloudevents+json; charset=UTF-8")],
    };
    world.letters_have = Some(normalised(&reused));
    let report = world.verify();
    assert!(report.is_clean() && report.dead_letters == 1, "{report}");
    world.letters_have = Some(normalised(&event("ann", "A-1", reserve("bob"))));
    only(&world.verify(), Promise::Lost, "A-1");
}

#[test]
fn an_id_is_reused_only_by_what_came_later() {
    // The first one with the content under which the id is known.
    let mut world = world();
    world.letters.push((2, DeadLetterReason::IdReused));
    only(&world.verify(), Promise::Lost, "A-1");
}

#[test]
fn a_reused_id_whose_first_record_was_swept_is_known_by_what_lies_on_the_topic() {
    let mut world = world();
    let aged = NOON - RETENTION - Duration::hours(1);
    world.answers.clear();
    world.sends("ann", "A-1", reserve("eve"));
    world.age_with_decisions(aged);
    world.letters.push((6, DeadLetterReason::IdReused));
    world.letters_at = aged + Duration::minutes(1);
    world.row().changed_at = aged;
    let report = world.verify();
    assert!(report.is_clean() && report.dead_letters == 1, "{report}");
}

#[test]
fn an_outcome_says_what_the_change_log_says() {
    type Edit = fn(&mut Outcome<TicketOutcome>);
    let edits: [(&str, Edit); 4] = [
        ("data", |told| {
            told.data = refused(RefusalReason::NotHeld);
        }),
        ("type", |told| told.data = listed()),
        ("time", |told| told.time += Duration::seconds(1)),
        ("cause", |told| told.causation_id = "another".parse().unwrap()),
    ];
    for (what, edit) in edits {
        let mut world = world();
        edit(&mut world.told[3]);
        let said = only(&world.verify(), Promise::Lost, "A-1");
        assert!(said.contains("sequence 3") && said.contains(what), "{said}");
        // In the outbox too.
        let mut world = self::world();
        let mut waiting = world.told.pop().unwrap();
        edit(&mut waiting);
        world.outbox.push(waiting);
        let said = only(&world.verify(), Promise::Lost, "A-1");
        assert!(said.contains("in the outbox"), "{said}");
    }
}

#[test]
fn a_refusal_without_a_row_says_what_was_answered() {
    let mut world = world();
    world.told[0].data = refused(RefusalReason::NotHeld);
    only(&world.verify(), Promise::Lost, "Z-9");
}

#[test]
fn a_repeat_is_answered_what_the_change_log_says() {
    let mut world = world();
    world.answers[3].outcomes[0].1 = refused(RefusalReason::NotHeld);
    let what = only(&world.verify(), Promise::Lost, "A-1");
    assert!(what.contains("version 3") && what.contains("other data"), "{what}");
}

#[test]
fn a_bad_record_needs_a_dead_letter() {
    let mut world = world();
    world.sent[3].event = None;
    let answer = world.answers.remove(3);
    world.log.retain(|logged| logged.cause.1 != answer.event.id.as_str());
    let report = world.verify();
    assert!(report.offence(Promise::Lost).is_some(), "{report}");
    world.letters.push((3, DeadLetterReason::Undecodable));
    assert_eq!(world.verify().dead_letters, 1);
}

#[test]
fn an_id_with_another_content_needs_a_dead_letter() {
    let mut world = world();
    world.sends("ann", "A-1", reserve("eve"));
    assert_eq!(world.verify().pending, 1);
    world.letters.push((6, DeadLetterReason::IdReused));
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.pending, report.dead_letters, report.repeats), (0, 1, 0));
}

#[test]
fn a_dead_letter_from_serve_shows_that_what_came_before_was_taken() {
    let mut world = world();
    world.sends("gone", "A-1", reserve("eve"));
    world.sends("ann", "A-1", reserve("eve"));
    world.letters.push((7, DeadLetterReason::IdReused));
    only(&world.verify(), Promise::Lost, "A-1");
}

#[test]
fn a_dead_letter_that_was_replayed_is_two_records() {
    let mut world = world();
    // An older gate did not know the type; its record came before others of its key, the replay after them.
    let mut earlier = world.sent[5].clone();
    world.letters.push((2, DeadLetterReason::UnknownType));
    earlier.offset = 2;
    world.sent.insert(2, earlier);
    for (offset, sent) in (0..).zip(&mut world.sent) {
        sent.offset = offset;
    }
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        (report.events, report.applied, report.dead_letters, report.repeats),
        (7, 4, 1, 0)
    );
}

#[test]
fn a_record_once_decided_stays_so_when_a_late_replay_dead_letters_it() {
    let mut world = world();
    let old = NOON - RETENTION - Duration::hours(1);
    world.answers.clear();
    world.age(old);
    world.letters = (0..6).map(|offset| (offset, DeadLetterReason::TooOld)).collect();
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.applied, report.refused, report.dead_letters), (4, 2, 0));
}

#[test]
fn a_young_event_is_not_excused_by_the_change_log() {
    let mut world = world();
    world.answers.retain(|answer| answer.event.id.as_str() != "ann");
    let what = only(&world.verify(), Promise::Lost, "A-1");
    assert!(what.contains("reservations/0/2"), "{what}");
}

#[test]
fn an_outcome_that_was_never_told_is_lost() {
    let mut world = world();
    let outcome = world.told.remove(3);
    let what = only(&world.verify(), Promise::Lost, "A-1");
    assert!(what.contains(&outcome.id.to_string()), "{what}");
}

#[test]
fn an_outcome_that_waits_in_the_outbox_is_not_lost() {
    let mut world = world();
    world.outbox.extend(world.told.pop());
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn an_outcome_that_waits_behind_a_later_one_is_out_of_order() {
    let mut world = world();
    let outcome = world.told.remove(4);
    world.outbox.push(outcome);
    only(&world.verify(), Promise::OutOfOrder, "A-1");
}

#[test]
fn a_refusal_without_a_row_must_be_told_too() {
    let mut world = world();
    world.told.remove(0);
    only(&world.verify(), Promise::Lost, "Z-9");
}

#[test]
fn an_outcome_that_retention_has_removed_is_not_lost() {
    let mut world = world();
    world.told.drain(..3);
    assert_eq!(world.verify().lost, 3);
    world.outcomes_removed = emptied(NOON + Duration::days(1));
    assert_eq!(world.verify().lost, 3, "they are younger than what retention removes");
    world.outcomes_removed = emptied(NOON + KEPT_FOR + Duration::days(1));
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    // But not one behind what is left.
    world.told.remove(1);
    only(&world.verify(), Promise::Lost, "A-1");
}

#[test]
fn an_outcome_told_twice_is_doubled() {
    for place in [0, 2] {
        let mut world = world();
        world.told.push(world.told[place].clone());
        let key = world.told[place].subject.as_str().to_owned();
        only(&world.verify(), Promise::Doubled, &key);
    }
}

#[test]
fn an_outcome_twice_in_the_outbox_is_doubled() {
    let mut world = world();
    let last = world.told.pop().unwrap();
    world.outbox = vec![last.clone(), last];
    only(&world.verify(), Promise::Doubled, "A-1");
}

#[test]
fn an_outcome_that_the_log_does_not_have_is_doubled() {
    let mut world = world();
    let mut other = world.told[3].clone();
    other.id = outcome_id(SHOP, "nobody", "A-1", 0);
    world.told.insert(3, other);
    let report = world.verify();
    assert_eq!((report.doubled, report.lost), (1, 0), "{report}");
}

#[test]
fn an_outcome_that_the_database_has_lost_is_lost() {
    let mut world = world();
    world.happens("eve", "A-1", reserve("eve"), &[refused(RefusalReason::Held)], 6);
    world.sent.pop();
    world.answers.pop();
    world.log.pop();
    only(&world.verify(), Promise::Lost, "A-1");
    world.snapshot_at = Some(6);
    let report = world.verify();
    assert!(
        report.is_clean(),
        "what came after the snapshot is not looked for: {report}"
    );
}

#[test]
fn an_event_that_took_effect_twice_is_doubled() {
    let mut world = world();
    world.tells((SHOP, "bob-1"), 0, "A-1", &refused(RefusalReason::AlreadyYours), 6);
    world.told.pop();
    world.rows[0].1 = 6;
    let report = world.verify();
    let offence = report.offence(Promise::Doubled).unwrap_or_else(|| panic!("{report}"));
    assert!(
        offence.what.contains("version 3") && offence.what.contains("again at 6"),
        "{}",
        offence.what
    );
}

#[test]
fn an_event_that_took_effect_twice_in_a_row_is_doubled() {
    let mut world = world();
    world.tells((SHOP, "bob-2"), 0, "A-1", &refused(RefusalReason::AlreadyYours), 6);
    world.told.pop();
    world.rows[0].1 = 6;
    let report = world.verify();
    let offence = report.offence(Promise::Doubled).unwrap_or_else(|| panic!("{report}"));
    assert!(
        offence.what.contains("version 5") && offence.what.contains("again at 6"),
        "{}",
        offence.what
    );
}

#[test]
fn an_event_may_have_two_outcomes() {
    let mut world = world();
    let expired = TicketOutcome::TicketExpired(outcomes::TicketExpired {
        user: user("bob"),
        hold: hold("bob-2"),
    });
    let later = NOON + Duration::minutes(15);
    let until = later + Duration::minutes(15);
    let held = TicketOutcome::TicketHeld(outcomes::TicketHeld {
        user: user("eve"),
        hold: hold("eve"),
        until,
    });
    world.happens("eve", "A-1", reserve("eve"), &[expired, held], 6);
    for logged in &mut world.log[5..] {
        logged.at = later;
    }
    for told in &mut world.told[6..] {
        told.time = later;
    }
    world.rows[0].1 = 7;
    *world.row() = row("held", Some(("eve", "eve")));
    world.row().held_until = Some(until);
    world.row().changed_at = later;
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    // A hold that ended before its time was taken from its holder.
    world.log[5].at = NOON;
    world.told[6].time = NOON;
    let what = only(&world.verify(), Promise::Oversold, "A-1");
    assert!(what.contains("before the hold was due"), "{what}");
}

#[test]
fn an_outcome_with_an_id_that_does_not_follow_from_its_cause_is_found() {
    let mut world = world();
    let other = outcome_id(SHOP, "nobody", "A-1", 0);
    world.log[2].outcome = other;
    world.told[3].id = other;
    let report = world.verify();
    assert!(
        report.offence(Promise::Lost).unwrap().what.contains(&other.to_string()),
        "{report}"
    );
}

#[test]
fn events_that_took_effect_in_another_order_than_they_lay_are_out_of_order() {
    let mut world = world();
    let (earlier, later) = (world.sent[2].event.clone(), world.sent[3].event.clone());
    (world.sent[2].event, world.sent[3].event) = (later, earlier);
    let what = only(&world.verify(), Promise::OutOfOrder, "A-1");
    assert!(what.contains("reservations/0/3"), "{what}");
}

#[test]
fn the_order_of_repeats_does_not_matter_when_the_first_are_gone() {
    let mut world = world();
    let (earlier, later) = (world.sent[2].event.clone(), world.sent[3].event.clone());
    (world.sent[2].event, world.sent[3].event) = (later, earlier);
    world.beginning_is_gone = true;
    for sent in &mut world.sent {
        sent.at = NOON + Duration::seconds(1);
    }
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn outcomes_told_in_another_order_than_their_sequence_are_out_of_order() {
    let mut world = world();
    world.told.swap(3, 4);
    let what = only(&world.verify(), Promise::OutOfOrder, "A-1");
    assert!(
        what.contains("sequence 3") && what.contains("after sequence 4"),
        "{what}"
    );
}

#[test]
fn a_gap_in_the_log_is_a_lost_change() {
    let mut world = world();
    world.log.remove(2);
    let what = only(&world.verify(), Promise::Lost, "A-1");
    assert!(what.contains("before version 4"), "{what}");
}

#[test]
fn a_log_that_ends_before_the_row_is_a_lost_change() {
    let mut world = world();
    world.log.pop();
    let what = only(&world.verify(), Promise::Lost, "A-1");
    assert!(what.contains("version 5"), "{what}");
}

#[test]
fn a_row_that_went_back_is_oversold() {
    let mut world = world();
    world.rows[0].1 = 4;
    *world.row() = row("available", None);
    let what = only(&world.verify(), Promise::Oversold, "A-1");
    assert!(what.contains("version 4") && what.contains("to 5"), "{what}");
}

#[test]
fn a_log_without_a_row_is_oversold() {
    let mut world = world();
    world.rows.clear();
    only(&world.verify(), Promise::Oversold, "A-1");
}

#[test]
fn a_row_that_says_something_else_than_its_log_is_oversold() {
    type Edit = fn(&mut TicketRow);
    let changes: [(&str, Edit); 7] = [
        ("hold_price", |row| row.hold_price = Some(1)),
        ("off_sale", |row| row.off_sale = true),
        ("status", |row| row.status = "available".into()),
        ("holder", |row| row.holder = Some("eve".into())),
        ("hold", |row| row.hold = Some(hold("ann").as_uuid())),
        ("price", |row| row.price_amount = 1),
        ("held_until", |row| row.held_until = Some(NOON)),
    ];
    for (column, change) in changes {
        let mut world = world();
        change(world.row());
        let what = only(&world.verify(), Promise::Oversold, "A-1");
        assert!(what.contains(column), "{what}");
    }
}

#[test]
fn two_live_holds_are_oversold() {
    let mut world = world();
    let logged = world.log.iter_mut().find(|logged| logged.cause.1 == "bob-1").unwrap();
    logged.told = held("bob", "bob-1");
    let report = world.verify();
    assert!(
        report
            .offence(Promise::Oversold)
            .unwrap()
            .what
            .contains("two live holds"),
        "{report}"
    );
}

#[test]
fn a_hold_is_lengthened_once_while_it_lasts_and_never_shortened() {
    let lengthened = |minutes| {
        TicketOutcome::TicketHoldLengthened(outcomes::TicketHoldLengthened {
            user: user("bob"),
            hold: hold("bob-2"),
            until: NOON + Duration::minutes(minutes),
        })
    };
    for (ends, wrong) in [
        (&[20][..], None),
        (&[20, 25], Some("lengthened twice")),
        (&[10], Some("an earlier end")),
    ] {
        let mut world = world();
        for (causes, minutes) in ["c-1/lengthen", "c-2/lengthen"].iter().zip(ends) {
            world.rows[0].1 += 1;
            let version = world.rows[0].1;
            world.tells(("checkout", causes), 0, "A-1", &lengthened(*minutes), version);
        }
        world.row().held_until = ends.last().map(|minutes| NOON + Duration::minutes(*minutes));
        let report = world.verify();
        match wrong {
            None => assert!(report.is_clean(), "{report}"),
            Some(wrong) => assert!(only(&report, Promise::Oversold, "A-1").contains(wrong), "{report}"),
        }
    }
}

#[test]
fn a_hold_has_one_price_and_no_higher_one_than_the_ticket() {
    let priced = |amount, event| {
        TicketOutcome::TicketHoldPriced(outcomes::TicketHoldPriced {
            user: user("bob"),
            hold: hold(event),
            price: Price::parse(amount, "EUR").unwrap(),
        })
    };
    for (told, row, wrong) in [
        (priced(1, "bob-2"), Some(1), None),
        (priced(1, "bob-2"), None, Some("hold_price")),
        (priced(4501, "bob-2"), Some(4501), Some("more than")),
        (priced(1, "ann"), Some(1), Some("another hold")),
    ] {
        let mut world = world();
        world.tells((SHOP, "bob-2"), 1, "A-1", &told, 6);
        world.rows[0].1 = 6;
        world.row().hold_price = row;
        let report = world.verify();
        match wrong {
            None => assert!(report.is_clean(), "{report}"),
            Some(wrong) => {
                let found = report.offence(Promise::Oversold).unwrap();
                assert!(found.what.contains(wrong), "{report}");
            }
        }
    }
}

#[test]
fn two_sales_are_oversold() {
    let mut world = world();
    world.tells(("checkout", "c-1/sell/A-1"), 0, "A-1", &sold("bob", "c-1"), 6);
    world.rows[0].1 = 6;
    *world.row() = row("sold", Some(("bob", "bob-2")));
    world.row().checkout = Some("c-1".into());
    let report = world.verify();
    assert!(report.is_clean(), "one sale to the holder is fine: {report}");
    world.tells(("checkout", "c-2/sell/A-1"), 0, "A-1", &sold("bob", "c-2"), 7);
    world.rows[0].1 = 7;
    world.row().checkout = Some("c-2".into());
    world.row().hold = None;
    let what = only(&world.verify(), Promise::Oversold, "A-1");
    assert!(what.contains("sold twice"), "{what}");
}

#[test]
fn a_sale_is_marked_as_not_for_sale_again_once() {
    let off_sale = |by, checkout: &str| {
        let checkout = checkout.parse().unwrap();
        TicketOutcome::TicketOffSale(outcomes::TicketOffSale {
            user: user(by),
            checkout,
        })
    };
    for (told, row_says, wrong) in [
        (vec![off_sale("bob", "c-1")], true, None),
        (vec![off_sale("bob", "c-1")], false, Some("off_sale")),
        (vec![], true, Some("off_sale")),
        (
            vec![off_sale("bob", "c-1"), off_sale("bob", "c-1")],
            true,
            Some("twice"),
        ),
        (vec![off_sale("eve", "c-1")], true, Some("another sale")),
        (vec![off_sale("bob", "c-2")], true, Some("another sale")),
    ] {
        let mut world = world();
        world.tells(("checkout", "c-1/sell/A-1"), 0, "A-1", &sold("bob", "c-1"), 6);
        for (id, told) in ["withdraw-1", "withdraw-2"].into_iter().zip(&told) {
            let asked = TicketEvent::TicketWithdrawn(events::TicketWithdrawn {});
            let version = world.log.last().unwrap().version + 1;
            world.happens(id, "A-1", asked, std::slice::from_ref(told), version);
        }
        world.rows[0].1 = world.log.last().unwrap().version;
        *world.row() = row("sold", Some(("bob", "bob-2")));
        world.row().checkout = Some("c-1".into());
        world.row().off_sale = row_says;
        let report = world.verify();
        match wrong {
            None => assert!(report.is_clean(), "{report}"),
            Some(wrong) => assert!(only(&report, Promise::Oversold, "A-1").contains(wrong), "{report}"),
        }
    }
}

#[test]
fn a_sale_to_somebody_without_the_hold_is_oversold() {
    let mut world = world();
    world.tells(("checkout", "c-1/sell/A-1"), 0, "A-1", &sold("eve", "c-1"), 6);
    world.rows[0].1 = 6;
    *world.row() = row("sold", None);
    world.row().holder = Some("eve".into());
    world.row().checkout = Some("c-1".into());
    let what = only(&world.verify(), Promise::Oversold, "A-1");
    assert!(what.contains("other than the holder"), "{what}");
}

/// As [`world`], of which only what follows version 2 is new.
fn recent() -> World<Ticket> {
    let (mut world, before) = (world(), NOON - Duration::hours(1));
    world.since = Some(NOON);
    world.log[0].at = before;
    world.log[1].at = before;
    // The last step before is known.
    world.log.remove(0);
    for told in &mut world.told[..3] {
        told.time = before;
    }
    world.told.remove(0);
    world.before = world.answers.drain(..3).collect();
    // Ann's request was on its way when the look began.
    world.sent.drain(..2);
    world.beginning_is_gone = true;
    world
}

#[test]
fn what_is_new_keeps_the_promises_whatever_was_before() {
    let report = recent().verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.applied, report.refused, report.pending), (3, 1, 0));
    let mut world = recent();
    world.before.clear();
    only(&world.verify(), Promise::Lost, "A-1");
}

#[test]
fn what_is_new_is_judged_beside_the_step_before() {
    let mut world = recent();
    world.row().holder = Some("eve".to_owned());
    only(&world.verify(), Promise::Oversold, "A-1");
    let mut world = recent();
    world.told.push(world.told.last().unwrap().clone());
    let report = world.verify();
    assert_eq!(report.offence(Promise::Doubled).unwrap().key, "A-1");
    let mut world = recent();
    world.log.remove(1);
    assert_eq!(world.verify().offence(Promise::Lost).unwrap().key, "A-1");
    // Ann's hold was the step before.
    let mut world = recent();
    world.log[2].told = held("bob", "bob-2");
    assert_eq!(world.verify().offence(Promise::Oversold).unwrap().key, "A-1");
}

#[test]
fn what_is_new_begins_with_a_later_outcome_of_an_event() {
    let mut world = World::<Ticket>::default();
    let expired = TicketOutcome::TicketExpired(outcomes::TicketExpired {
        user: user("ann"),
        hold: hold("ann"),
    });
    world.happens("bob", "A-1", reserve("bob"), &[expired, held("bob", "bob")], 8);
    world.rows.push(("A-1", 9, row("held", Some(("bob", "bob")))));
    world.log.remove(0);
    world.told.remove(0);
    world.answers.clear();
    world.sent.clear();
    world.since = Some(NOON);
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn kept_promises_to_users_are_found_kept() {
    let report = users().verify();
    assert!(report.is_clean(), "{report}");
    let counts = (report.events, report.applied, report.refused, report.repeats);
    assert_eq!(counts, (6, 4, 2, 0));
}

#[test]
fn an_event_that_changed_nothing_shows_that_what_came_before_was_taken() {
    let mut world = users();
    let unchanged = world.sent.remove(3);
    world.sends("gone", "ann", change());
    world.send("ann", unchanged.event);
    only(&world.verify(), Promise::Lost, "ann");
}

#[test]
fn an_event_that_changed_nothing_can_be_repeated() {
    let mut world = users();
    world.sends("again", "ann", change());
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.applied, report.repeats), (4, 1));
}

#[test]
fn an_event_that_changed_nothing_leaves_no_trace_once_its_record_was_swept() {
    let mut world = users();
    world.answers.retain(|answer| answer.event.id.as_str() != "again");
    only(&world.verify(), Promise::Lost, "ann");
    world.answers.clear();
    world.age(NOON - RETENTION - Duration::hours(1));
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.applied, report.refused, report.out_of_scope), (3, 2, 1));
}

#[test]
fn a_repeat_is_known_when_the_idempotency_record_that_it_met_was_swept_since() {
    let aged = NOON - RETENTION - Duration::hours(1);
    let mut world = users();
    world.answers.clear();
    world.age_with_decisions(aged);
    world.rows[0].2.changed_at = aged;
    // One event that changed something, one that changed nothing.
    for (id, data) in [("credits", add_credits()), ("again", change())] {
        world.sends(id, "ann", data);
        let repeat = world.sent.last_mut().unwrap();
        repeat.event.as_mut().unwrap().time = aged;
        repeat.at = NOON - Duration::hours(2);
    }
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.applied, report.repeats, report.out_of_scope), (3, 1, 2));

    // What was too old when it came was put aside, so that a dead letter accounts for it.
    let late = world.sent.last_mut().unwrap();
    late.event.as_mut().unwrap().time = late.at - RETENTION - Duration::seconds(1);
    only(&world.verify(), Promise::Lost, "ann");
}

#[test]
fn only_a_change_of_a_profile_can_change_nothing() {
    let mut world = users();
    world.happens("nothing", "ann", add_credits(), &[], 5);
    let what = only(&world.verify(), Promise::Lost, "ann");
    assert!(what.contains("payments/0/6") && what.contains("nothing"), "{what}");
}

#[test]
fn an_event_that_changed_something_was_answered_with_that() {
    let mut world = users();
    world.answers[2].outcomes.clear();
    let what = only(&world.verify(), Promise::Lost, "ann");
    assert!(what.contains("version 2"), "{what}");
}

#[test]
fn a_step_that_cannot_follow_in_the_life_of_a_user_is_lost() {
    let steps = [
        (
            1,
            UserOutcome::UserRegistered(outcomes::UserRegistered {}),
            "a second time",
        ),
        (1, changed(&[]), "in no field"),
        (
            0,
            changed(&[outcomes::ProfileField::Name]),
            "told of before it was registered",
        ),
        (0, credited(), "told of before it was registered"),
        (0, unknown(), "told of before it was registered"),
    ];
    for (place, told, why) in steps {
        let mut world = users();
        world.log[place].told = told;
        let report = world.verify();
        let offence = report.offence(Promise::Lost).unwrap_or_else(|| panic!("{report}"));
        assert!(offence.key == "ann" && offence.what.contains(why), "{report}");
        assert_eq!(report.oversold, 0, "{report}");
    }
}

#[test]
fn a_user_who_is_not_where_the_log_ends_is_lost() {
    type Edit = fn(&mut World<User>);
    let edits: [(&str, Edit); 4] = [
        ("changed_at", |world| world.rows[0].2.changed_at += Duration::seconds(1)),
        ("no row", |world| world.rows.clear()),
        ("goes on to 4", |world| world.rows[0].1 = 3),
        ("no such version", |world| world.rows[0].1 = 5),
    ];
    for (why, edit) in edits {
        let mut world = users();
        edit(&mut world);
        let what = only(&world.verify(), Promise::Lost, "ann");
        assert!(what.contains(why), "{what}");
    }
}

#[test]
fn nothing_is_left_of_the_profile_of_a_user_who_was_erased() {
    let report = erased().verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.applied, report.refused), (6, 2));
    let mut world = erased();
    world.rows[0].2.has_profile = true;
    let what = only(&world.verify(), Promise::Lost, "ann");
    assert!(what.contains("a profile that was erased"), "{what}");
    let mut world = users();
    world.rows[0].2.has_profile = false;
    let what = only(&world.verify(), Promise::Lost, "ann");
    assert!(what.contains("was not erased"), "{what}");
    let mut world = erased();
    world.rows[0].2.has_customer = true;
    let what = only(&world.verify(), Promise::Lost, "ann");
    assert!(what.contains("a customer, or none"), "{what}");
    let mut world = erased();
    world.log[3].told = erasure();
    let report = world.verify();
    let offence = report.offence(Promise::Lost).unwrap_or_else(|| panic!("{report}"));
    assert!(offence.what.contains("no profile any more"), "{report}");
}

#[test]
fn an_outcome_of_a_user_that_was_never_told_is_lost() {
    for (place, key) in [(0, "bob"), (3, "ann")] {
        let mut world = users();
        world.told.remove(place);
        only(&world.verify(), Promise::Lost, key);
    }
}

#[test]
fn an_event_that_took_effect_on_both_streams_is_doubled() {
    let (mut tickets, users) = (world(), users());
    for (id, expected) in [("elsewhere", 0), ("change", 1)] {
        tickets.happens(id, "Z-9", reserve("ann"), &[refused(RefusalReason::UnknownTicket)], 0);
        let mut report = Report::default();
        let (tickets, users) = (tickets.read(&mut report), users.read(&mut report));
        users.change_history.is_apart_from(&tickets.change_history, &mut report);
        assert_eq!(report.doubled, expected, "{report}");
    }
}

#[test]
fn credits_are_given_once_and_told() {
    let credit = |user: Option<&str>, commits| {
        let mut report = Report::default();
        let credit = Credit {
            transaction: "credits/1".to_owned(),
            user: user.map(str::to_owned),
            commits,
        };
        credit.judge(&mut report);
        report
    };
    assert!(credit(Some("ann"), 1).is_clean());
    only(&credit(Some("ann"), 0), Promise::Lost, "ann");
    only(&credit(Some("ann"), 2), Promise::Doubled, "ann");
    only(&credit(None, 1), Promise::Doubled, "credits/1");
}

#[test]
fn the_report_is_one_json_object_and_a_table() {
    let mut world = world();
    world.told.push(world.told[2].clone());
    let report = world.verify();
    let json = serde_json::to_value(&report).unwrap();
    for count in [
        "events",
        "applied",
        "refused",
        "repeats",
        "dead_letters",
        "parked",
        "pending",
        "lost",
        "doubled",
        "out_of_order",
        "oversold",
    ] {
        assert!(json[count].is_u64(), "{count}: {json}");
    }
    assert_eq!(json["offences"][0]["promise"], "doubled");
    assert_eq!(json["offences"][0]["key"], "A-1");
    let table = report.to_string();
    assert!(table.contains("doubled") && table.contains("\"A-1\""), "{table}");
}
