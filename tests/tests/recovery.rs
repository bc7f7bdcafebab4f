//! A store that went back in time, or lost what it had: each time the commands bring the system to where `verify` finds every promise
//! kept, and nothing that was told is taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::ensure;
use holdfast_schemas::{Outcome, OutcomeData, TicketOutcome, UserOutcome, hold_id, topics};
use holdfast_tests::kit::postgres::{DATABASE, LOYALTY};
use holdfast_tests::kit::{Kit, until};
use holdfast_tests::load::now;
use serde_json::{Value, json};

use crate::admin::{BY, by, parsed, refused, settled};
use crate::checkout::{DECLINED, PRICE, REFUSED, Shop, ends, fill, reaches, sold};
use crate::engine::subscriptions;
use crate::support::{
    DEADLINE, SHOP, binary, clean, event, listed, outcomes_of, pay, requested, send, told, told_of, verdicts,
};
use crate::users::{added, call, changed, has_credits, registered};
use crate::workers::Workers;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_database_that_was_put_back_is_rolled_forward_to_what_was_told_and_decides_the_rest_anew,
    what_kafka_does_not_tell_stops_the_recovery_which_names_it_and_changes_nothing,
    checkouts_that_the_database_forgot_come_back_with_their_seats_and_their_money,
    an_admitted_topic_that_was_made_anew_gets_back_what_it_has_lost,
    groups_that_have_lost_their_offsets_read_again_and_nothing_is_done_twice,
    a_loyalty_database_that_was_put_back_gets_what_the_main_one_has_given,
];

/// A copy of the database, as a backup is one.
const EARLIER: &str = "recovery_earlier";
/// The group of the gates.
const GATES: &str = "holdfast.gate";

fn a_database_that_was_put_back_is_rolled_forward_to_what_was_told_and_decides_the_rest_anew(
    kit: &Kit,
) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut workers = Workers::start(kit).await?;
        let (mut sent, began) = (Sent::default(), millis());
        sent.reserve(
            kit,
            (0..8)
                .map(|number| listed(&id(&format!("list-{number}")), &seat(number)))
                .collect(),
        )
        .await?;
        sent.reserve(kit, vec![requested(&id("ann-0"), &seat(0), ANN)]).await?;
        sent.pay(kit, vec![registered(&id("ann"), ANN), added(&id("ann-30"), ANN, 30)])
            .await?;
        told(kit, SEATS, 9).await?;
        told_of::<UserOutcome>(kit, ANN, 2).await?;
        // The copy has an outcome that is told only later.
        workers.relay.stop().await?;
        sent.reserve(kit, vec![requested(&id("ann-1"), &seat(1), ANN)]).await?;
        decided(kit, "ann-1").await?;
        workers.gate.stop().await?;
        workers.serve.stop().await?;
        copy(kit, DATABASE, EARLIER).await?;

        workers = Workers::start(kit).await?;
        sent.after_the_copy(kit).await?;
        let by_http = [("idempotency-key", "recovery-cid")];
        let (status, said) = call(kit, &by_http, "Ticket", &seat(3), "reserve", &json!({ "user": "cid" })).await?;
        ensure!(status == 200, "{status}: {said}");
        told(kit, SEATS, 16).await?;
        told(kit, NOWHERE, 1).await?;
        told_of::<UserOutcome>(kit, ANN, 4).await?;
        told_of::<UserOutcome>(kit, BOB, 2).await?;
        workers.relay.kill()?;
        sent.reserve(
            kit,
            vec![
                requested(&id("dora-4"), &seat(4), "dora"),
                requested(&id("eve-4"), &seat(4), "eve"),
            ],
        )
        .await?;
        sent.pay(
            kit,
            vec![changed(&id("bob-name"), BOB, json!({ "to": { "name": "Bob" } }))],
        )
        .await?;
        for last in ["eve-4", "bob-name"] {
            decided(kit, last).await?;
        }
        workers.gate.kill()?;
        workers.serve.kill()?;
        copy(kit, EARLIER, DATABASE).await?;

        let relay = kit.stack.holdfast("relay", "relay").spawn()?;
        ensure!(!relay.wait(DEADLINE).await?.success(), "the relay goes on");
        let words = relay.last_words();
        ensure!(
            words.contains("docs/runbook.md#the-database-went-back-in-time"),
            "{words}"
        );
        let recovery = Instant::now();
        rolled_forward(kit).await?;

        rewound(kit, began).await?;
        workers = Workers::start(kit).await?;
        let fourth = told(kit, &seat(4), 3).await?;
        ensure!(verdicts(&fourth) == ["listed", "held", "held"], "{fourth:?}");
        ensure!(fourth[1].generation > fourth[0].generation, "{fourth:?}");
        told_of::<UserOutcome>(kit, BOB, 3).await?;
        clean(kit).await?;
        recovered("a database that was put back", recovery);
        sent.all_again(kit).await?;
        // Of what came by HTTP Kafka has the outcome and not the request.
        let (status, said) = call(kit, &by_http, "Ticket", &seat(3), "reserve", &json!({ "user": "cid" })).await?;
        ensure!(status == 409, "{status}: {said}");
        let report = clean(kit).await?;
        ensure!(report["repeats"].as_u64() >= Some(sent.count()), "{report}");
        has_credits(kit, ANN, 35).await?;
        has_credits(kit, BOB, 40).await?;
        once_and_in_order(&outcomes_of::<TicketOutcome>(kit, SEATS).await?, 18)?;
        once_and_in_order(&outcomes_of::<UserOutcome>(kit, USERS).await?, 7)?;
        let log = parsed(kit, &["log", "--on", "database", "--json"]).await?;
        ensure!(log.to_string().contains("recover database"), "{log}");
        workers.stop().await
    })
}

/// The command, first dry; and what it has made of the rows.
async fn rolled_forward(kit: &Kit) -> anyhow::Result<()> {
    const HOLDER: &str = "select holder from tickets where ticket = $1";
    let generation = "select max(generation)::text from generations";
    let before = value(kit, generation, "").await?;
    let found = parsed(kit, &["recover", "database", "--dry-run", "--json"]).await?;
    let rolled = &found["rolled_forward"];
    ensure!(rolled["obstacles"] == json!([]) && rolled["dropped"] == 1, "{found}");
    ensure!(
        rolled["without_content"].as_u64() >= Some(1) && rolled["completed"] == 0,
        "{found}"
    );
    ensure!(
        rolled["users"].as_u64() >= Some(2) && rolled["tickets"].as_u64() >= Some(4),
        "{found}"
    );
    ensure!(
        value(kit, HOLDER, &seat(0)).await?.as_deref() == Some(ANN),
        "a dry run has written"
    );
    ensure!(
        value(kit, generation, "").await? == before,
        "a dry run has begun a generation"
    );

    let said = settled(kit, &["recover", "database"]).await?;
    ensure!(said.contains("accepted: the relay goes on"), "{said}");
    ensure!(value(kit, HOLDER, &seat(0)).await?.as_deref() == Some(BOB), "{said}");
    ensure!(value(kit, HOLDER, &seat(3)).await?.as_deref() == Some("cid"), "{said}");
    ensure!(value(kit, HOLDER, &seat(4)).await?.is_none(), "{said}");
    let language = "select language from users where user_id = $1";
    ensure!(value(kit, language, ANN).await?.as_deref() == Some("de"), "{said}");
    ensure!(value(kit, generation, "").await? > before, "{said}");
    let again = settled(kit, &["recover", "database"]).await?;
    ensure!(again.contains("the database knows them all"), "{again}");
    Ok(())
}

fn what_kafka_does_not_tell_stops_the_recovery_which_names_it_and_changes_nothing(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "recovery-by-http";
    kit.block_on(async {
        let workers = Workers::start(kit).await?;
        send(kit, &[listed("recovery-stops-list", "recovery-stops")]).await?;
        told(kit, "recovery-stops", 1).await?;
        workers.stop().await?;
        copy(kit, DATABASE, EARLIER).await?;
        let workers = Workers::start(kit).await?;
        let profile = json!({ "email": "eve@example.org" });
        let (status, said) = call(kit, &[], "User", USER, "register", &profile).await?;
        ensure!(status == 200, "{status}: {said}");
        send(kit, &[requested("recovery-stops-ann", "recovery-stops", "ann")]).await?;
        told_of::<UserOutcome>(kit, USER, 1).await?;
        told(kit, "recovery-stops", 2).await?;
        let recover = [&["recover", "database"][..], BY].concat();
        refused(kit, &recover, "a relay runs").await?;
        workers.stop().await?;
        copy(kit, EARLIER, DATABASE).await?;

        refused(kit, &recover, "docs/runbook.md#what-cannot-be-rolled-forward").await?;
        let found = parsed(kit, &["recover", "database", "--dry-run", "--json"]).await;
        let found = found.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(found.contains("1 tickets, users or checkouts"), "{found}");
        let holder = value(kit, "select holder from tickets where ticket = $1", "recovery-stops").await?;
        ensure!(holder.is_none(), "it was rolled forward in part: {holder:?}");

        // Who registered by HTTP comes back without a profile, if that is wanted, and is told to have none.
        let said = settled(kit, &["recover", "database", "--without-profiles"]).await?;
        ensure!(
            said.contains("without a profile, as if erased: recovery-by-http"),
            "{said}"
        );
        let workers = Workers::start(kit).await?;
        let told = told_of::<UserOutcome>(kit, USER, 2).await?;
        ensure!(verdicts(&told) == ["registered", "erased"], "{told:?}");
        let holder = value(kit, "select holder from tickets where ticket = $1", "recovery-stops").await?;
        ensure!(holder.as_deref() == Some("ann"), "{holder:?}");
        clean(kit).await?;
        workers.stop().await
    })
}

fn checkouts_that_the_database_forgot_come_back_with_their_seats_and_their_money(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut shop = Shop::open(kit, "recovery/shop").await?;
        let began = millis();
        let tickets = shop.tickets(4).await?;
        shop.buys("before", &tickets[0], 500).await?;
        all_told(kit).await?;
        shop.worker.stop().await?;
        copy(kit, DATABASE, EARLIER).await?;
        shop.worker = shop.launch("run").start().await?;
        shop.buys("paid", &tickets[1], 500).await?;
        for (name, ticket, card, state) in [
            ("refused", &tickets[2], REFUSED, "failed"),
            ("open", &tickets[3], DECLINED, "declined"),
        ] {
            fill(kit, &shop.user, std::slice::from_ref(ticket), None).await?;
            let data = json!({ "checkout": shop.id(name), "tickets": [ticket], "payment_method": card });
            let asked = event(
                &shop.id(&format!("{name}/asked")),
                &shop.user,
                "checkout.requested",
                data,
            );
            pay(kit, &[asked]).await?;
            reaches(kit, &shop.id(name), state).await?;
        }
        shop.simulator.refund(&shop.payment("before")?, 700)?;
        let back = json!({ "refunded": { "amount": 700, "currency": "EUR" } });
        let refunded = shop.tell("before", "refunded", back).await?;
        shop.took(&refunded).await?;
        all_told(kit).await?;
        shop.worker.stop().await?;
        let before = outcomes_of::<UserOutcome>(kit, &shop.user).await?;
        copy(kit, EARLIER, DATABASE).await?;

        let recover = by(shop
            .launch_as("admin", "admin-command")
            .arg("recover")
            .arg("database")
            .arg("--json"));
        let recovered = recover.output().await?;
        let errors = String::from_utf8_lossy(&recovered.stderr);
        ensure!(recovered.status.success(), "{}: {errors}", recovered.status);
        let found: Value = serde_json::from_slice(&recovered.stdout)?;
        ensure!(found["rolled_forward"]["checkouts"] == 4, "{found}");
        ensure!(found["driven"].to_string().contains(&shop.id("open")), "{found}");
        rewound(kit, began).await?;
        shop.worker = shop.launch("run").start().await?;
        let given_up = json!({ "checkout": shop.id("open") });
        pay(
            kit,
            &[event(&shop.id("open/up"), &shop.user, "checkout.cancelled", given_up)],
        )
        .await?;
        for (name, state) in [
            ("before", "completed"),
            ("paid", "completed"),
            ("refused", "failed"),
            ("open", "failed"),
        ] {
            ends(kit, &shop.id(name), state).await?;
        }
        sold(kit, &tickets[..2]).await?;
        for (name, money) in [
            ("before", PRICE - 500 - 700),
            ("paid", PRICE - 500),
            ("refused", 0),
            ("open", 0),
        ] {
            shop.paid(name, money)?;
        }
        has_credits(kit, &shop.user, 0).await?;
        all_told(kit).await?;
        let told = outcomes_of::<UserOutcome>(kit, &shop.user).await?;
        once_and_in_order(&told, before.len() + 1)?;
        shop.close().await
    })
}

fn an_admitted_topic_that_was_made_anew_gets_back_what_it_has_lost(kit: &Kit) -> anyhow::Result<()> {
    const TICKETS: usize = 20;
    let ticket = |number: usize| format!("recovery-admitted/{number}");
    kit.block_on(async {
        let workers = Workers::start(kit).await?;
        send(kit, &[listed("recovery-admitted/before", "recovery-admitted-before")]).await?;
        told(kit, "recovery-admitted-before", 1).await?;
        // Admitted, and read by nobody.
        let began = millis();
        kit.stack.restate.stop().await?;
        let events: Vec<_> = (0..TICKETS)
            .map(|number| listed(&ticket(number), &ticket(number)))
            .collect();
        send(kit, &events).await?;
        until("it is admitted", DEADLINE, async || {
            let unread = kit.stack.kafka.unread(GATES, topics::RESERVATIONS).await?;
            ensure!(unread == 0, "{unread} records are not");
            Ok(())
        })
        .await?;
        workers.stop().await?;
        kit.stack.kafka.delete_topic(topics::RESERVATIONS_ADMITTED).await?;
        kit.stack.restate.start().await?;
        let recovery = Instant::now();
        rewound(kit, began).await?;
        let workers = Workers::start(kit).await?;
        told(kit, "recovery-admitted/", TICKETS).await?;
        told(kit, "recovery-admitted-before", 1).await?;
        clean(kit).await?;
        recovered("an admitted topic that was made anew", recovery);
        workers.stop().await
    })
}

fn groups_that_have_lost_their_offsets_read_again_and_nothing_is_done_twice(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "recovery-offsets";
    kit.block_on(async {
        let workers = Workers::start(kit).await?;
        send(kit, &[listed("recovery-offsets/1", TICKET)]).await?;
        told(kit, TICKET, 1).await?;
        clean(kit).await?;
        let subscriptions = subscriptions(kit).await?;
        workers.stop().await?;
        send(kit, &[requested("recovery-offsets/2", TICKET, "ann")]).await?;
        kit.stack.restate.stop().await?;
        let groups = subscriptions
            .iter()
            .filter_map(|known| known["options"]["group.id"].as_str());
        for group in groups.chain([GATES]) {
            until("the group has no member any more", DEADLINE, async || {
                kit.stack.kafka.delete_group(group).await
            })
            .await?;
        }
        kit.stack.restate.start().await?;
        let gate = kit.stack.holdfast("gate", "gate").spawn()?;
        ensure!(!gate.wait(DEADLINE).await?.success(), "the gate goes on");
        let words = gate.last_words();
        ensure!(words.contains("docs/runbook.md#the-gates-offsets-were-lost"), "{words}");
        let recovery = Instant::now();
        let workers = Workers::start(kit).await?;
        let outcomes = told(kit, TICKET, 2).await?;
        ensure!(verdicts(&outcomes) == ["listed", "held"], "{outcomes:?}");
        clean(kit).await?;
        recovered("offsets that Kafka had lost", recovery);
        workers.stop().await
    })
}

fn a_loyalty_database_that_was_put_back_gets_what_the_main_one_has_given(kit: &Kit) -> anyhow::Result<()> {
    const EVE: &str = "recovery-loyalty/eve";
    const IDA: &str = "recovery-loyalty/ida";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "recovery").start().await?;
        pay(
            kit,
            &[
                registered("recovery-loyalty/1", EVE),
                added("recovery-loyalty/2", EVE, 30),
            ],
        )
        .await?;
        has_credits(kit, EVE, 30).await?;
        worker.stop().await?;
        copy(kit, LOYALTY, EARLIER).await?;
        let worker = kit.stack.holdfast("run", "recovery").start().await?;
        pay(kit, &[added("recovery-loyalty/3", EVE, 12)]).await?;
        pay(
            kit,
            &[
                registered("recovery-loyalty/4", IDA),
                added("recovery-loyalty/5", IDA, 7),
            ],
        )
        .await?;
        has_credits(kit, EVE, 42).await?;
        has_credits(kit, IDA, 7).await?;
        worker.stop().await?;
        copy(kit, EARLIER, LOYALTY).await?;

        let recovery = Instant::now();
        let found = parsed(kit, &["recover", "loyalty", EVE, IDA, "--dry-run", "--json"]).await?;
        ensure!(found["settled"][0]["result"] == "30 -> 42", "{found}");
        ensure!(found["settled"][1]["result"] == "no account -> 7", "{found}");
        has_credits(kit, EVE, 30).await?;
        let said = settled(kit, &["recover", "loyalty", EVE, IDA]).await?;
        ensure!(said.contains("2 of 2 done"), "{said}");
        has_credits(kit, EVE, 42).await?;
        has_credits(kit, IDA, 7).await?;
        let again = settled(kit, &["recover", "loyalty", EVE, IDA]).await?;
        ensure!(again.contains("0 of 0 done"), "{again}");
        let worker = kit.stack.holdfast("run", "recovery").start().await?;
        clean(kit).await?;
        recovered("a loyalty database that was put back", recovery);
        worker.stop().await
    })
}

/// Says how long it took from the first command of a recovery until `verify` was clean. The table in docs/runbook.md shows it.
pub(crate) fn recovered(what: &str, since: Instant) {
    println!("{what}: recovered in {:.1} s", since.elapsed().as_secs_f64());
}

/// Waits until everything that was decided is told.
pub(crate) async fn all_told(kit: &Kit) -> anyhow::Result<()> {
    until("everything is told", DEADLINE, async || {
        let rows = value(kit, "select count(*)::text from outbox", "").await?;
        ensure!(rows.as_deref() == Some("0"), "{rows:?} wait");
        Ok(())
    })
    .await
}

/// Has the gates read the public topics again from that moment on, as soon as none runs.
async fn rewound(kit: &Kit, since: i64) -> anyhow::Result<()> {
    until("no gate is a member any more", DEADLINE, async || {
        kit.stack.kafka.rewind(GATES, topics::RESERVATIONS, since).await?;
        kit.stack.kafka.rewind(GATES, topics::PAYMENTS, since).await
    })
    .await
}

/// Now, in milliseconds.
fn millis() -> i64 {
    (now().unix_timestamp_nanos() / 1_000_000) as i64
}

const SEATS: &str = "recovery/seat/";
const NOWHERE: &str = "recovery/nowhere";
const USERS: &str = "recovery/user/";
const ANN: &str = "recovery/user/ann";
const BOB: &str = "recovery/user/bob";

fn seat(number: usize) -> String {
    format!("{SEATS}{number}")
}

fn id(name: &str) -> String {
    format!("recovery/{name}")
}

/// All that producers have sent.
#[derive(Default)]
struct Sent {
    reservations: Vec<Value>,
    payments: Vec<Value>,
}

impl Sent {
    async fn reserve(&mut self, kit: &Kit, events: Vec<Value>) -> anyhow::Result<()> {
        send(kit, &events).await?;
        self.reservations.extend(events);
        Ok(())
    }

    async fn pay(&mut self, kit: &Kit, events: Vec<Value>) -> anyhow::Result<()> {
        pay(kit, &events).await?;
        self.payments.extend(events);
        Ok(())
    }

    /// Seats change their holders, one is listed, one is refused, one is asked for that was never listed; users and their profiles come.
    async fn after_the_copy(&mut self, kit: &Kit) -> anyhow::Result<()> {
        let hold = hold_id(SHOP, &id("ann-0"), &seat(0)).to_string();
        let given_back = json!({ "user": ANN, "hold": hold });
        self.reserve(
            kit,
            vec![
                requested(&id("bob-early"), &seat(0), BOB),
                event(&id("ann-back"), &seat(0), "reservation.released", given_back),
                requested(&id("bob-0"), &seat(0), BOB),
                listed(&id("list-8"), &seat(8)),
                requested(&id("nowhere"), NOWHERE, ANN),
            ],
        )
        .await?;
        let in_binary = requested(&id("ann-2"), &seat(2), ANN);
        kit.stack
            .kafka
            .send(topics::RESERVATIONS, &[binary(&in_binary)])
            .await?;
        self.reservations.push(in_binary);
        self.pay(
            kit,
            vec![
                changed(&id("ann-de"), ANN, json!({ "to": { "language": "de" } })),
                added(&id("ann-5"), ANN, 5),
                registered(&id("bob"), BOB),
                added(&id("bob-40"), BOB, 40),
            ],
        )
        .await
    }

    async fn all_again(&self, kit: &Kit) -> anyhow::Result<()> {
        send(kit, &self.reservations).await?;
        pay(kit, &self.payments).await.map(drop)
    }

    fn count(&self) -> u64 {
        (self.reservations.len() + self.payments.len()) as u64
    }
}

/// Waits until an event was decided, told or not.
async fn decided(kit: &Kit, name: &str) -> anyhow::Result<()> {
    let known = "select id from idempotency_records where id = $1";
    until("it is decided", DEADLINE, async || {
        ensure!(value(kit, known, &id(name)).await?.is_some(), "{name} is not decided");
        Ok(())
    })
    .await
}

/// One text of the database.
pub(crate) async fn value(kit: &Kit, query: &'static str, about: &str) -> anyhow::Result<Option<String>> {
    let pool = kit.stack.postgres.connect().await?;
    let mut asked = sqlx::query_scalar::<_, Option<String>>(query);
    if query.contains("$1") {
        asked = asked.bind(about);
    }
    let found = asked.fetch_optional(&pool).await?;
    pool.close().await;
    Ok(found.flatten())
}

/// Makes one database a copy of another, as a backup is taken or put back.
pub(crate) async fn copy(kit: &Kit, of: &str, name: &str) -> anyhow::Result<()> {
    kit.stack.postgres.copy_database(of, name).await?.close().await;
    Ok(())
}

/// So many outcomes, none of them twice, and those of each key without a gap.
fn once_and_in_order<T: OutcomeData>(outcomes: &[Outcome<T>], count: usize) -> anyhow::Result<()> {
    let different: BTreeSet<_> = outcomes.iter().map(|told| told.id).collect();
    ensure!(outcomes.len() == count && different.len() == count, "{outcomes:?}");
    let mut last: BTreeMap<&T::Key, i64> = BTreeMap::new();
    for told in outcomes {
        let before = last.insert(&told.subject, told.sequence).unwrap_or_default();
        ensure!(told.sequence == before + 1, "after {before}: {told:?}");
    }
    Ok(())
}
