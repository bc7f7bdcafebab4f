//! Each way to break a promise, done to a small set of facts that keeps them all.

use holdfast_schemas::{
    CheckoutId, DeadLetterReason, Event, HoldId, Outcome, OutcomeId, Price, RefusalReason, Reservation, ShowId, Source,
    TicketId, Told, Traceparent, UserId, hold_id, outcome_id,
};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::history::TicketRow;
use super::ledger::{Change, Entry, Ledger, Record, Spot, digest};
use super::records::Records;
use super::report::{Promise, Report};

const SHOP: &str = "shop";
const NOON: OffsetDateTime = datetime!(2030-01-31 12:00 UTC);
const RETENTION: Duration = Duration::days(7);
const SHARD: (&str, i32) = ("reservations", 0);

/// Everything that verify reads, for one partition of each topic.
#[derive(Default)]
struct World {
    log: Vec<Logged>,
    rows: Vec<(&'static str, i64, TicketRow)>,
    answers: Vec<Answer>,
    outbox: Vec<Outcome>,
    told: Vec<Outcome>,
    /// Outcomes told from this place on came after the snapshot.
    snapshot_at: Option<usize>,
    sent: Vec<Sent>,
    letters: Vec<(i64, DeadLetterReason)>,
    beginning_is_gone: bool,
    outcomes_eaten_up_to: Option<i64>,
}

#[derive(Clone)]
struct Logged {
    ticket: &'static str,
    version: i64,
    outcome: OutcomeId,
    told: Told,
    cause: (String, String),
    at: OffsetDateTime,
}

struct Answer {
    event: Event,
    outcomes: Vec<i64>,
    refused: bool,
    at: OffsetDateTime,
}

#[derive(Clone)]
struct Sent {
    offset: i64,
    key: &'static str,
    event: Option<Event>,
    at: OffsetDateTime,
}

/// A ticket that was listed, held by ann, refused to bob, given back by ann, and held by bob; and a request for a ticket
/// that there is none of.
fn world() -> World {
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
    let given_back = Reservation::ReservationReleased {
        user: user("ann"),
        hold: hold("ann"),
    };
    let released = Told::TicketReleased {
        user: user("ann"),
        hold: hold("ann"),
    };
    world.happens("back", "A-1", given_back, &[released], 4);
    world.happens("bob-2", "A-1", reserve("bob"), &[held("bob", "bob-2")], 5);
    world.rows.push(("A-1", 5, row("held", Some(("bob", "bob-2")))));
    world
}

impl World {
    /// An event is sent, decided and told.
    fn happens(&mut self, id: &str, ticket: &'static str, data: Reservation, outcomes: &[Told], first: i64) {
        let event = self.sends(id, ticket, data);
        let sequences: Vec<i64> = match first {
            0 => vec![0],
            _ => (first..).take(outcomes.len()).collect(),
        };
        for ((place, told), sequence) in (0..).zip(outcomes).zip(&sequences) {
            self.tells((SHOP, id), place, ticket, told, *sequence);
        }
        self.answers.push(Answer {
            event,
            outcomes: sequences,
            refused: matches!(outcomes.last(), Some(Told::ReservationRefused { .. })),
            at: NOON,
        });
    }

    fn sends(&mut self, id: &str, ticket: &'static str, data: Reservation) -> Event {
        let event = event(id, ticket, data);
        self.send(ticket, Some(event.clone()));
        event
    }

    fn send(&mut self, key: &'static str, event: Option<Event>) {
        let offset = self.sent.len() as i64;
        let at = NOON;
        self.sent.push(Sent { offset, key, event, at });
    }

    /// Something other than a public record changes a ticket.
    fn tells(&mut self, (source, id): (&str, &str), place: u32, ticket: &'static str, told: &Told, sequence: i64) {
        let outcome = outcome_id(source, id, ticket, place);
        if sequence > 0 {
            self.log.push(Logged {
                ticket,
                version: sequence,
                outcome,
                told: told.clone(),
                cause: (source.to_owned(), id.to_owned()),
                at: NOON,
            });
        }
        self.told.push(Outcome {
            id: outcome,
            subject: key(ticket),
            time: NOON,
            sequence,
            generation: 1,
            causation_source: source.parse().unwrap(),
            causation_id: id.parse().unwrap(),
            traceparent: Traceparent::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap(),
            data: told.clone(),
        });
    }

    fn row(&mut self) -> &mut TicketRow {
        &mut self.rows[0].2
    }

    fn verify(&self) -> Report {
        let mut report = Report::default();
        let mut ledger = Ledger::new(1);
        let mut records = Records::new(NOON - RETENTION);
        self.changes()
            .into_iter()
            .for_each(|change| ledger.change(change, &mut report));
        ledger.end_of_changes(&mut report);
        for answer in &self.answers {
            ledger.record(answer.as_record(), &mut report);
        }
        for outcome in &self.outbox {
            ledger.waiting(outcome, &mut report);
        }
        for (offset, outcome) in self.told.iter().enumerate() {
            let spot = Spot {
                partition: 0,
                offset: offset as i64,
                before_snapshot: self.snapshot_at.is_none_or(|end| offset < end),
            };
            ledger.told(spot, Some(outcome.subject.as_str().as_bytes()), outcome, &mut report);
        }
        ledger.end_of_outcomes(self.outcomes_eaten_up_to, &mut report);
        for (offset, reason) in &self.letters {
            records.dead_letter(SHARD, *offset, *reason);
        }
        if self.beginning_is_gone {
            records.beginning_is_gone(SHARD);
        }
        for Sent { offset, key, event, at } in &self.sent {
            let key = ledger.key(key.as_bytes());
            records.record(SHARD, *offset, Some(key), event.as_ref(), *at);
        }
        records.judge(&mut ledger, None, &mut report);
        report
    }

    /// As the database's full join has them.
    fn changes(&self) -> Vec<Change> {
        let mut changes: Vec<Change> = Vec::new();
        for logged in &self.log {
            let row = self
                .rows
                .iter()
                .find(|(ticket, version, _)| (*ticket, *version) == (logged.ticket, logged.version));
            changes.push(Change {
                ticket: logged.ticket.to_owned(),
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
        for (ticket, version, row) in &self.rows {
            if !changes
                .iter()
                .any(|change| change.row.is_some() && change.ticket == *ticket)
            {
                changes.push(Change {
                    ticket: (*ticket).to_owned(),
                    version: *version,
                    entry: None,
                    row: Some(row.clone()),
                });
            }
        }
        changes.sort_by(|a, b| (&a.ticket, a.version).cmp(&(&b.ticket, b.version)));
        changes
    }
}

impl Answer {
    fn as_record(&self) -> Record {
        Record {
            source: self.event.source.as_str().to_owned(),
            id: self.event.id.as_str().to_owned(),
            ticket: self.event.subject.as_str().to_owned(),
            digest: digest(self.event.hash().as_bytes()).unwrap(),
            outcomes: self.outcomes.clone(),
            refused: self.refused,
            written_at: self.at,
        }
    }
}

fn event(id: &str, ticket: &str, data: Reservation) -> Event {
    Event::new(
        SHOP.parse::<Source>().unwrap(),
        id.parse().unwrap(),
        NOON,
        None,
        key(ticket),
        data,
    )
}

fn key(ticket: &str) -> TicketId {
    ticket.parse().unwrap()
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

fn list() -> Reservation {
    Reservation::TicketListed {
        show: show(),
        seat: None,
        price: price(),
    }
}

fn listed() -> Told {
    Told::TicketListed {
        show: show(),
        seat: None,
        price: price(),
    }
}

fn reserve(by: &str) -> Reservation {
    Reservation::ReservationRequested {
        user: user(by),
        hold_for: None,
    }
}

fn held(by: &str, event: &str) -> Told {
    Told::TicketHeld {
        user: user(by),
        hold: hold(event),
        until: NOON + Duration::minutes(15),
    }
}

fn sold(to: &str, checkout: &str) -> Told {
    let checkout: CheckoutId = checkout.parse().unwrap();
    Told::TicketSold {
        user: user(to),
        checkout,
    }
}

fn refused(reason: RefusalReason) -> Told {
    Told::ReservationRefused { reason }
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
        changed_at: NOON,
    }
}

/// One promise is broken, once, and nothing else is; says what was found.
#[track_caller]
fn only(report: &Report, promise: Promise, key: &str) -> String {
    let counts = [report.lost, report.doubled, report.out_of_order, report.oversold];
    assert_eq!(counts.iter().sum::<u64>(), 1, "{report}");
    let offence = report.offence(promise).unwrap_or_else(|| panic!("{report}"));
    assert_eq!(offence.key, key, "{report}");
    offence.what.clone()
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
    for sent in &mut world.sent {
        sent.at = old;
    }
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
    world.outcomes_eaten_up_to = Some(i64::MAX);
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
    let expired = Told::TicketExpired {
        user: user("bob"),
        hold: hold("bob-2"),
    };
    let later = NOON + Duration::minutes(15);
    let until = later + Duration::minutes(15);
    let held = Told::TicketHeld {
        user: user("eve"),
        hold: hold("eve"),
        until,
    };
    world.happens("eve", "A-1", reserve("eve"), &[expired, held], 6);
    for logged in &mut world.log[5..] {
        logged.at = later;
    }
    world.rows[0].1 = 7;
    *world.row() = row("held", Some(("eve", "eve")));
    world.row().held_until = Some(until);
    world.row().changed_at = later;
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    // A hold that ended before its time was taken from its holder.
    world.log[5].at = NOON;
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
    let changes: [(&str, Edit); 5] = [
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
