//! Backups and restores by docs/backup.md: stores are put back, each to another moment, or lost in whole. At the end `verify` finds every
//! promise kept, no seat is sold twice, and of the seats that were sold none is lost.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use holdfast_schemas::{TicketOutcome, hold_id, topics};
use holdfast_tests::kit::kafka::Sent;
use holdfast_tests::kit::postgres::LOYALTY;
use holdfast_tests::kit::server::{Kind, Server};
use holdfast_tests::kit::{Kit, Name};
use holdfast_tests::load::{now, timestamp};
use serde_json::{Value, json};

use crate::admin::{BY, admin, by, parsed, refused, settled};
use crate::checkout::{CARD, DECLINED, PRICE, Shop, ends, fill, held, reaches, sold};
use crate::recovery::{all_told, copy, value};
use crate::support::{DEADLINE, SHOP, event, letters, outcomes_of, pay, requested, send, told, verdicts};
use crate::users::{added, call, has_credits, registered};
use crate::workers::done;
use crate::{Test, tests, zombies};

pub(crate) const TESTS: &[Test] = tests![
    three_stores_that_are_put_back_to_three_moments_sell_on_and_nothing_that_was_told_is_lost,
    a_kafka_that_is_put_back_gets_back_what_it_had_told_and_the_engine_reads_its_new_records,
    a_kafka_that_is_lost_in_whole_is_told_again_what_the_database_has_decided,
];

/// Where outcomes and entries are told.
const TOLD: [&str; 3] = [
    topics::RESERVATIONS_OUTCOMES,
    topics::PAYMENTS_OUTCOMES,
    topics::LEDGER_ENTRIES,
];
const PUBLIC: [&str; 2] = [topics::RESERVATIONS, topics::PAYMENTS];
/// The loyalty database at an earlier moment than all else.
const LOYALTY_COPY: &str = "restore_loyalty";

/// Runs a proof on a stack of its own: whatever else ran there would be lost.
fn alone(proof: impl AsyncFnOnce(&Kit) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let kit = Kit::start(Name::Restore).context("the servers do not start")?;
    kit.block_on(async {
        let proven = proof(&kit).await;
        kit.stack.stop().await?;
        proven
    })
}

fn three_stores_that_are_put_back_to_three_moments_sell_on_and_nothing_that_was_told_is_lost(
    _: &Kit,
) -> anyhow::Result<()> {
    alone(async |kit| {
        let mut sale = Sale::open(kit).await?;
        sale.before_the_copies().await?;
        sale.shop.worker.stop().await?;
        copied(&kit.stack.postgres, kit.stack.postgres.data()).await?;
        sale.go_on().await?;
        sale.after_the_copy_of_postgres().await?;
        let engine_copied = timestamp(now());
        sale.shop.worker.stop().await?;
        copied(&kit.stack.restate, kit.stack.restate.data()).await?;
        sale.go_on().await?;
        sale.after_the_copy_of_restate().await?;
        sale.shop.worker.stop().await?;
        copied(&kit.stack.kafka, kit.stack.kafka.data()).await?;
        sale.go_on().await?;
        let in_no_copy = sale.after_all_copies().await?;

        sale.shop.worker.kill()?;
        put_back(kit).await?;
        sale.recover(&engine_copied).await?;
        sale.go_on().await?;
        sale.ends_well(&in_no_copy).await
    })
}

/// A shop that sells on while copies are taken.
struct Sale<'a> {
    kit: &'a Kit,
    shop: Shop<'a>,
    began: String,
    tickets: Vec<String>,
}

const BOB: &str = "restore/moments/bob";

impl<'a> Sale<'a> {
    async fn open(kit: &'a Kit) -> anyhow::Result<Self> {
        let began = timestamp(now());
        copy(kit, LOYALTY, LOYALTY_COPY).await?;
        let shop = Shop::open(kit, "restore/moments").await?;
        let tickets = shop.tickets(7).await?;
        Ok(Self {
            kit,
            shop,
            began,
            tickets,
        })
    }

    async fn go_on(&mut self) -> anyhow::Result<()> {
        self.shop.worker = self.shop.launch("run").start().await?;
        Ok(())
    }

    fn id(&self, name: &str) -> String {
        self.shop.id(name)
    }

    async fn buys(&self, checkout: &str, place: usize) -> anyhow::Result<()> {
        self.shop.buys(checkout, &self.tickets[place], 500).await?;
        all_told(self.kit).await
    }

    async fn before_the_copies(&self) -> anyhow::Result<()> {
        self.buys("zero", 0).await
    }

    async fn after_the_copy_of_postgres(&self) -> anyhow::Result<()> {
        let given = [registered(&self.id("bob"), BOB), added(&self.id("bob/30"), BOB, 30)];
        pay(self.kit, &given).await?;
        send(self.kit, &[requested(&self.id("bob/2"), &self.tickets[2], BOB)]).await?;
        told(self.kit, &self.tickets[2], 2).await?;
        has_credits(self.kit, BOB, 30).await?;
        self.buys("one", 1).await
    }

    /// A seat changes hands, one is sold, and for another a payment is declined: its buyer may try again.
    async fn after_the_copy_of_restate(&self) -> anyhow::Result<()> {
        let (kit, shop) = (self.kit, &self.shop);
        let hold = hold_id(SHOP, &self.id("bob/2"), &self.tickets[2]).to_string();
        let back = json!({ "user": BOB, "hold": hold });
        let back = event(&self.id("bob/back"), &self.tickets[2], "reservation.released", back);
        send(kit, &[back, requested(&self.id("cid/2"), &self.tickets[2], "cid")]).await?;
        told(kit, &self.tickets[2], 4).await?;
        fill(kit, &shop.user, &self.tickets[4..5], None).await?;
        pay(kit, &[self.checkout("open", 4, DECLINED)]).await?;
        reaches(kit, &self.id("open"), "declined").await?;
        self.buys("two", 3).await
    }

    /// What no copy has: a hold, and a sale that was paid. The event that asked for the sale.
    async fn after_all_copies(&self) -> anyhow::Result<Value> {
        let (kit, shop) = (self.kit, &self.shop);
        send(kit, &[requested(&self.id("dora/5"), &self.tickets[5], "dora")]).await?;
        told(kit, &self.tickets[5], 2).await?;
        fill(kit, &shop.user, &self.tickets[6..], None).await?;
        let asked = self.checkout("lost", 6, CARD);
        pay(kit, std::slice::from_ref(&asked)).await?;
        ends(kit, &self.id("lost"), "completed").await?;
        shop.paid("lost", PRICE)?;
        all_told(kit).await?;
        Ok(asked)
    }

    fn checkout(&self, name: &str, place: usize, method: &str) -> Value {
        let data = json!({
            "checkout": self.id(name), "tickets": [self.tickets[place]], "payment_method": method
        });
        event(
            &self.id(&format!("{name}/asked")),
            &self.shop.user,
            "checkout.requested",
            data,
        )
    }

    /// The commands of docs/backup.md, in their order.
    async fn recover(&self, engine_copied: &str) -> anyhow::Result<()> {
        let kit = self.kit;
        let outcomes = [&["recover", "outcomes"][..], BY].concat();
        refused(kit, &outcomes, "go on with `holdfast admin recover database`").await?;

        let recover = self.shop.launch_as("admin", "admin-command");
        let recover = ["recover", "database", "--new-generation", "--json"]
            .iter()
            .fold(recover, |recover, argument| recover.arg(argument));
        let recovered = by(recover).output().await?;
        let errors = String::from_utf8_lossy(&recovered.stderr);
        ensure!(recovered.status.success(), "{}: {errors}", recovered.status);
        let found: Value = serde_json::from_slice(&recovered.stdout)?;
        ensure!(
            found["rolled_forward"]["checkouts"] == 3 && found["reconciliation"]["accepted"] == true,
            "{found:#}"
        );
        ensure!(found["driven"].to_string().contains(&self.id("open")), "{found:#}");

        let said = settled(kit, &["recover", "loyalty", "--all"]).await?;
        ensure!(said.contains("no account -> 30"), "{said}");
        has_credits(kit, BOB, 30).await?;
        for topic in PUBLIC {
            settled(kit, &["reprocess", "engine", "--topic", topic, "--from", engine_copied]).await?;
        }
        for topic in PUBLIC {
            settled(kit, &["reprocess", "gate", "--topic", topic, "--from", &self.began]).await?;
        }
        Ok(())
    }

    async fn ends_well(self, in_no_copy: &Value) -> anyhow::Result<()> {
        let (kit, shop) = (self.kit, &self.shop);
        let cancelled = json!({ "checkout": self.id("open") });
        let cancelled = event(&self.id("open/up"), &shop.user, "checkout.cancelled", cancelled);
        pay(kit, &[cancelled]).await?;
        ends(kit, &self.id("open"), "failed").await?;
        for name in ["zero", "one", "two"] {
            ends(kit, &self.id(name), "completed").await?;
            shop.paid(name, PRICE - 500)?;
        }
        held(kit, "cid", &self.tickets[2..3]).await?;
        // The shop asks once more for what no store knows: the same checkout has the same payment, which moved money once.
        fill(kit, &shop.user, &self.tickets[6..], None).await?;
        pay(kit, std::slice::from_ref(in_no_copy)).await?;
        ends(kit, &self.id("lost"), "completed").await?;
        shop.paid("lost", PRICE)?;
        shop.paid("open", 0)?;
        sold(
            kit,
            &[&self.tickets[..2], &self.tickets[3..4], &self.tickets[6..]].concat(),
        )
        .await?;
        has_credits(kit, BOB, 30).await?;
        // Readers have heard of a hold that nobody knows of: what is told now takes it back.
        send(kit, &[requested(&self.id("eve/5"), &self.tickets[5], "eve")]).await?;
        let fifth = told(kit, &self.tickets[5], 2).await?;
        ensure!(
            verdicts(&fifth) == ["listed", "held"] && fifth[1].generation > fifth[0].generation,
            "{fifth:?}"
        );
        self.shop.close().await
    }
}

/// All stores are lost, and put back from their copies.
async fn put_back(kit: &Kit) -> anyhow::Result<()> {
    let stack = &kit.stack;
    stack.restate.kill()?;
    stack.kafka.kill()?;
    stack.postgres.stop().await?;
    for data in [stack.restate.data(), stack.kafka.data(), stack.postgres.data()] {
        replaced(data)?;
    }
    tokio::try_join!(stack.restate.start(), stack.kafka.start(), stack.postgres.start())?;
    copy(kit, LOYALTY_COPY, LOYALTY).await
}

fn a_kafka_that_is_put_back_gets_back_what_it_had_told_and_the_engine_reads_its_new_records(
    _: &Kit,
) -> anyhow::Result<()> {
    alone(async |kit| {
        let mut shop = Shop::open(kit, "restore/mirror").await?;
        let tickets = shop.tickets(5).await?;
        shop.buys("before", &tickets[0], 500).await?;
        all_told(kit).await?;
        shop.worker.stop().await?;
        let copied_at = timestamp(now());
        copied(&kit.stack.kafka, kit.stack.kafka.data()).await?;
        shop.worker = shop.launch("run").start().await?;
        // The engine sees offsets that new records will have once more.
        let asked: Vec<_> = ["ann", "bob", "cid"]
            .iter()
            .map(|user| requested(&shop.id(user), &tickets[1], user))
            .collect();
        send(kit, &asked).await?;
        shop.buys("after", &tickets[2], 500).await?;
        told(kit, &tickets[1], 4).await?;
        all_told(kit).await?;
        let before = contents(kit).await?;
        shop.worker.stop().await?;
        kit.stack.kafka.kill()?;
        replaced(kit.stack.kafka.data())?;
        kit.stack.kafka.start().await?;

        let relay = kit.stack.holdfast("relay", "relay").spawn()?;
        ensure!(!relay.wait(DEADLINE).await?.success(), "the relay goes on");
        let words = relay.last_words();
        ensure!(words.contains("docs/runbook.md#kafka-went-back-in-time"), "{words}");
        what_later_outcomes_have_followed_is_left_out(kit, &tickets[0]).await?;
        let said = settled(kit, &["recover", "outcomes"]).await?;
        ensure!(said.contains("accepted: the relay goes on"), "{said}");
        for topic in PUBLIC {
            let from = ["reprocess", "engine", "--topic", topic, "--from", &copied_at];
            let said = settled(kit, &from).await?;
            ensure!(said.contains("it has read nothing from there on"), "{said}");
        }
        shop.worker = shop.launch("run").start().await?;
        all_told(kit).await?;
        ensure!(contents(kit).await? == before, "it is told otherwise");

        // What nobody reads any more is sent again: repeats. What comes at the same offsets is decided.
        send(kit, &asked).await?;
        send(kit, &[requested(&shop.id("dora"), &tickets[3], "dora")]).await?;
        told(kit, &tickets[3], 2).await?;
        shop.buys("last", &tickets[4], 500).await?;
        sold(kit, &[&tickets[..1], &tickets[2..3], &tickets[4..]].concat()).await?;
        told(kit, &tickets[1], 4).await?;
        shop.close().await
    })
}

/// An outcome of a ticket is missing, and its later ones are there.
async fn what_later_outcomes_have_followed_is_left_out(kit: &Kit, ticket: &str) -> anyhow::Result<()> {
    let first = "select outcome::text from ticket_change_log where ticket = $1 and version = 1";
    let first = value(kit, first, ticket).await?.context("no outcome")?;
    let pool = kit.stack.postgres.connect().await?;
    let rename = async |outcome: &str| {
        let rename = sqlx::query("update ticket_change_log set outcome = $2::uuid where ticket = $1 and version = 1");
        let renamed = rename.bind(ticket).bind(outcome).execute(&pool).await?;
        ensure!(renamed.rows_affected() == 1, "{ticket} has no such version");
        anyhow::Ok(())
    };
    rename("00000000-0000-0000-0000-000000000001").await?;
    let found = admin(kit, &["recover", "outcomes", "--dry-run", "--json"]).await?;
    rename(&first).await?;
    pool.close().await;
    let errors = String::from_utf8_lossy(&found.stderr);
    ensure!(
        !found.status.success() && errors.contains("1 outcomes that later ones have followed were left out"),
        "{}: {errors}",
        found.status
    );
    let found: Value = serde_json::from_slice(&found.stdout)?;
    ensure!(
        found["told_again"]["left_out"] == 1 && found["reconciliation"]["untold"][0]["key"] == *ticket,
        "{found:#}"
    );
    Ok(())
}

fn a_kafka_that_is_lost_in_whole_is_told_again_what_the_database_has_decided(_: &Kit) -> anyhow::Result<()> {
    alone(async |kit| {
        let mut shop = Shop::open(kit, "restore/lost").await?;
        let tickets = shop.tickets(4).await?;
        put_aside(kit).await?;
        let nowhere = requested(&shop.id("nowhere/1"), &shop.id("nowhere"), "ann");
        let asked = requested(&shop.id("ann"), &tickets[1], "ann");
        send(kit, &[nowhere, asked.clone()]).await?;
        told(kit, &shop.id("nowhere"), 1).await?;
        shop.buys("before", &tickets[0], 500).await?;
        told(kit, &tickets[1], 2).await?;
        all_told(kit).await?;
        let before = contents(kit).await?;
        kit.stack.kafka.kill()?;
        fs::remove_dir_all(kit.stack.kafka.data())?;
        // Who asks by HTTP goes on; what is decided follows what is told again.
        let body = json!({ "user": "bob" });
        let (status, said) = call(kit, &[], "Ticket", &tickets[2], "reserve", &body).await?;
        ensure!(status == 200, "{status}: {said}");
        shop.worker.kill()?;
        kit.stack.kafka.start().await?;

        shop.worker = shop.launch("serve").start().await?;
        done(shop.launch("register")).await?;
        let relay = kit.stack.holdfast("relay", "relay").spawn()?;
        ensure!(!relay.wait(DEADLINE).await?.success(), "the relay goes on");
        let words = relay.last_words();
        ensure!(
            words.contains("docs/runbook.md#kafka-has-no-mark-of-the-relay"),
            "{words}"
        );
        retold(kit, &before).await?;
        shop.worker.stop().await?;
        shop.worker = shop.launch("run").start().await?;
        all_told(kit).await?;
        let after = contents(kit).await?;
        for (of, told) in &before {
            let again = after.get(of).map_or(&[][..], Vec::as_slice);
            ensure!(
                again.starts_with(told),
                "{of:?}: {told:#?} is told otherwise: {again:#?}"
            );
        }
        let second = outcomes_of::<TicketOutcome>(kit, &tickets[2]).await?;
        ensure!(verdicts(&second) == ["listed", "held"], "{second:?}");

        put_aside(kit).await?;
        send(kit, &[asked]).await?;
        shop.buys("after", &tickets[3], 500).await?;
        sold(kit, &[&tickets[..1], &tickets[3..]].concat()).await?;
        told(kit, &tickets[1], 2).await?;
        shop.close().await
    })
}

/// The first record of a partition is no event: it is put aside, and dropped by an operator, whatever became of the one that lay at its
/// place before Kafka was lost.
async fn put_aside(kit: &Kit) -> anyhow::Result<()> {
    let bad = Sent {
        partition: Some(0),
        key: Some(b"restore/lost/bad".to_vec()),
        value: Some(b"no event".to_vec()),
        ..Sent::default()
    };
    let places = kit.stack.kafka.send(topics::RESERVATIONS, &[bad]).await?;
    ensure!(places == [(0, 0)], "{places:?}");
    letters(kit, &places).await?;
    let origin = format!("{}/0/0", topics::RESERVATIONS);
    let listed = parsed(kit, &["dead-letters", "list", "--json"]).await?;
    let shown = parsed(kit, &["dead-letters", "show", &origin, "--json"]).await?;
    ensure!(
        listed["dead_letters"][0]["origin"] == *origin && shown["settled"].is_null(),
        "{listed:#} {shown:#}"
    );
    settled(kit, &["dead-letters", "drop", &origin]).await?;
    let drop = [&["dead-letters", "drop", &origin][..], BY].concat();
    refused(kit, &drop, "was dropped already").await
}

/// The command, first dry: it finds all that was told, and queues it once.
async fn retold(kit: &Kit, before: &Contents) -> anyhow::Result<()> {
    let waiting = "select count(*)::text from outbox";
    let rows = value(kit, waiting, "").await?;
    let found = parsed(kit, &["recover", "outcomes", "--dry-run", "--json"]).await?;
    let again = &found["told_again"];
    let count = |topic: &str| -> usize {
        let of_topic = before.iter().filter(|((on, _), _)| on == topic);
        of_topic.map(|(_, told)| told.len()).sum()
    };
    let [tickets, users, entries] = TOLD.map(count);
    ensure!(
        *again == json!({ "tickets": tickets - 1, "users": users, "entries": entries, "refusals": 1, "left_out": 0 }),
        "{found:#}: not {tickets}, {users} and {entries}"
    );
    ensure!(value(kit, waiting, "").await? == rows, "a dry run has written");
    let none = json!({ "tickets": 0, "users": 0, "entries": 0, "refusals": 0, "left_out": 0 });
    let since = timestamp(now());
    let found = parsed(kit, &["recover", "outcomes", "--from", &since, "--dry-run", "--json"]).await?;
    ensure!(found["told_again"] == none, "what is older is told too: {found:#}");
    let said = settled(kit, &["recover", "outcomes"]).await?;
    ensure!(said.contains("accepted: the relay goes on"), "{said}");
    let found = parsed(kit, &["recover", "outcomes", "--dry-run", "--json"]).await?;
    ensure!(found["told_again"] == none, "what waits is told twice: {found:#}");
    let log = parsed(kit, &["log", "--on", "outcomes", "--json"]).await?;
    ensure!(log.to_string().contains("recover outcomes"), "{log}");
    Ok(())
}

/// What is told of each key on each topic, in its order; without the traces of events, which nothing keeps.
type Contents = BTreeMap<(String, String), Vec<Value>>;

async fn contents(kit: &Kit) -> anyhow::Result<Contents> {
    let mut contents = Contents::new();
    for topic in TOLD {
        for record in kit.stack.kafka.read(topic).await? {
            let mut told: Value = serde_json::from_slice(&record.value.context("no value")?)?;
            told.as_object_mut().context("no object")?.remove("traceparent");
            let key = String::from_utf8(record.key.context("no key")?)?;
            contents.entry((topic.to_owned(), key)).or_default().push(told);
        }
    }
    Ok(contents)
}

/// Takes a copy of a server's data, while it is stopped.
async fn copied<K: Kind>(server: &Server<K>, data: &Path) -> anyhow::Result<()> {
    server.stop().await?;
    zombies::copy(data, &copy_of(data))?;
    server.start().await
}

/// Puts the copy in the place of what is there.
fn replaced(data: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(data).with_context(|| data.display().to_string())?;
    fs::rename(copy_of(data), data).with_context(|| data.display().to_string())
}

fn copy_of(data: &Path) -> PathBuf {
    data.with_extension("copy")
}
