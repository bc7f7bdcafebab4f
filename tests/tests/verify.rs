//! `holdfast verify` itself: it finds kept promises kept, and notices each corruption of a copy of the data.
//!
//! Its last test leaves things on the topics that do not belong there.

use std::collections::BTreeSet;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use holdfast::config;
use holdfast::metrics::Metrics;
use holdfast::provider::{About, Order, Provider};
use holdfast_schemas::{
    Currency, DeadLetter, DeadLetterReason, Event, Origin, Price, TicketEvent, events, hold_id, outcome_id, topics,
};
use holdfast_tests::kit::kafka::Sent;
use holdfast_tests::kit::provider::{self, Simulator};
use holdfast_tests::kit::proxy::{Proxy, Side};
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Kit, until};
use holdfast_tests::load::now;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::checkout::Shop;
use crate::workers::done;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_command_that_asks_a_lost_server_ends_and_names_it,
    verify_catches_and_names_each_corruption_of_a_copy,
    verify_catches_and_names_money_that_went_astray,
    verify_catches_and_names_a_mail_that_is_missing_or_about_nothing,
    verify_catches_and_names_each_lie_on_a_topic,
];

const SHOP: &str = "verify-shop";
const DEADLINE: Duration = Duration::from_secs(60);

fn a_command_that_asks_a_lost_server_ends_and_names_it(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        done(kit.stack.holdfast("migrate", "migrate")).await?;
        let serve = kit.stack.holdfast("serve", "serve").start().await?;
        done(kit.stack.holdfast("register", "register")).await?;
        serve.stop().await?;
        let (postgres, url) = (kit.stack.postgres.address(), kit.stack.postgres.url());
        let lost = async |server: &str| {
            let proxy = Proxy::start(server.to_owned()).await?;
            proxy.lose_host();
            anyhow::Ok(proxy)
        };
        let (database, kafka) = (lost(&postgres).await?, lost(&kit.stack.kafka.bootstrap()).await?);
        let (forgotten, gone) = (
            Proxy::start(postgres.clone()).await?,
            Proxy::start(postgres.clone()).await?,
        );
        for proxy in [&forgotten, &gone] {
            proxy.stop_at("from idempotency_records", Side::Before);
        }
        let (list, by_url, by_address) = (["dead-letters", "list"], "HOLDFAST_DATABASE_URL", "HOLDFAST_KAFKA");
        let cases: [(&str, &[&str], &str, &Proxy); 6] = [
            ("verify", &[], by_url, &database),
            ("verify", &[], by_url, &forgotten),
            ("verify", &[], by_url, &gone),
            ("verify", &[], by_address, &kafka),
            ("admin", &list, by_url, &database),
            ("admin", &list, by_address, &kafka),
        ];
        let commands = cases
            .iter()
            .enumerate()
            .map(async |(number, (command, arguments, setting, proxy))| {
                let launch = kit.stack.holdfast(command, &format!("lost-{number}"));
                let launch = arguments.iter().fold(launch, |launch, argument| launch.arg(argument));
                let value = match *setting {
                    "HOLDFAST_DATABASE_URL" => url.replace(&postgres, &proxy.address()),
                    _ => proxy.address(),
                };
                let process = launch
                    .env(setting, &value)
                    .env("HOLDFAST_ACQUIRE_TIMEOUT", "1s")
                    .spawn()?;
                let what = format!("{command} with {setting}={value}");
                let status = process.wait(DEADLINE).await.with_context(|| what.clone())?;
                let words = process.last_words();
                ensure!(
                    !status.success() && words.contains(&proxy.address()),
                    "{what}: {status} {words}"
                );
                Ok(())
            });
        // In the middle of what it reads: the connection is dropped by a firewall, the host is lost.
        let midway = async {
            forgotten.stopped().await;
            forgotten.swallow();
            gone.stopped().await;
            gone.lose_host();
            anyhow::Ok(())
        };
        tokio::try_join!(try_join_all(commands), midway).map(drop)
    })
}

fn verify_catches_and_names_each_corruption_of_a_copy(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let tickets: Vec<_> = (0..corruptions("").len())
            .map(|number| format!("verify-copy-{number}"))
            .collect();
        sell(kit, &tickets).await?;
        let (status, report) = verify(kit, "holdfast").await?;
        ensure!(status == Some(0), "not clean before any corruption: {report}");
        ensure!(report["pending"] == 0, "{report}");
        let of_each = tickets.iter().enumerate();
        let of_each: Vec<_> = of_each
            .map(|(number, ticket)| (ticket, corruptions(ticket).swap_remove(number)))
            .collect();
        let copy = kit.stack.postgres.copy_database("holdfast", "verify_copy").await?;
        for (_, (what, _, statements)) in &of_each {
            corrupt(&copy, statements).await.with_context(|| (*what).to_owned())?;
        }
        copy.close().await;
        let (status, report) = verify(kit, "verify_copy").await?;
        ensure!(status == Some(1), "ended with {status:?}: {report}");
        for (ticket, (what, promise, _)) in &of_each {
            ensure!(
                named(&report, promise).contains(ticket.as_str()),
                "{what}, {ticket}: {report}"
            );
        }
        Ok(())
    })
}

fn verify_catches_and_names_money_that_went_astray(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "verify/money").await?;
        let user = shop.user.clone();
        let tickets = shop.tickets(money_corruptions("").len()).await?;
        let order = |number: usize| format!("order-{number}");
        for (number, ticket) in tickets.iter().enumerate() {
            shop.buys(&order(number), ticket, 500).await?;
        }
        let checkouts: Vec<_> = (0..tickets.len()).map(|number| shop.id(&order(number))).collect();
        shop.close().await?;
        let (status, report) = verify(kit, "holdfast").await?;
        ensure!(status == Some(0) && report["stuck"] == 0, "{report}");
        let copy = kit.stack.postgres.copy_database("holdfast", "verify_money").await?;
        let mut expected = Vec::new();
        for (number, (checkout, ticket)) in checkouts.iter().zip(&tickets).enumerate() {
            let (what, statements) = money_corruptions(checkout).swap_remove(number);
            let movements = "select distinct movement::text from ledger where checkout = $1";
            let mut keys: Vec<String> = sqlx::query_scalar(movements).bind(checkout).fetch_all(&copy).await?;
            keys.extend([checkout, ticket].map(String::clone));
            keys.extend(["dispute", "hangs"].map(|of| format!("{checkout}/{of}")));
            keys.extend(
                statements
                    .iter()
                    .any(|statement| statement.contains(UNSPENT))
                    .then(|| UNSPENT.to_owned()),
            );
            corrupt(&copy, &statements).await.with_context(|| what.to_owned())?;
            expected.push((what, keys));
        }
        copy.close().await;
        let (status, report) = verify(kit, "verify_money").await?;
        ensure!(status == Some(1), "ended with {status:?}: {report}");
        let found = named(&report, "money_mismatch");
        for (what, keys) in &expected {
            ensure!(
                keys.iter().any(|key| found.contains(key.as_str())),
                "{what}, {keys:?}: {report}"
            );
        }

        let one_more = format!("update purchases set tickets = tickets + 1 where user_id = '{user}'");
        let copy = kit.stack.postgres.copy_database("holdfast", "verify_money").await?;
        corrupt(&copy, &[one_more]).await?;
        copy.close().await;
        let (_, report) = verify(kit, "verify_money").await?;
        ensure!(
            named(&report, "money_mismatch") == BTreeSet::from([user.as_str()]),
            "{report}"
        );
        let checkout = checkouts.first().context("no checkout")?;
        another_provider_is_named(kit, checkout, &user).await
    })
}

/// Another provider's books: it never captured the money, and has an authorisation for a checkout that has ended.
async fn another_provider_is_named(kit: &Kit, checkout: &str, user: &str) -> anyhow::Result<()> {
    let other = Simulator::start().await?;
    let settings = config::Provider {
        url: Some(other.url().parse()?),
        key: Some(provider::KEY.to_owned().into()),
        key_file: None,
        return_url: None,
        timeout: DEADLINE,
        calls_per_second: None,
        mode: None,
        shows: None,
        receipts: false,
        methods: vec!["card".to_owned()],
    };
    let adapter = Provider::new(&settings, Arc::new(Metrics::new()?))?.context("no provider")?;
    let order = Order {
        checkout: &checkout.parse()?,
        user: &user.parse()?,
        amount: 1,
        currency: Currency::from_code("EUR").context("no euro")?,
        method: "pm_card_visa",
        attempt: 0,
        age: Duration::ZERO,
        customer: None,
        receipt: None,
        about: About::default(),
    };
    let payment = adapter.create(&order).await?;
    adapter.authorise(&payment.id, &order).await?;
    let compare = kit.stack.holdfast("verify", "verify").arg("--json");
    let compare = compare.env("HOLDFAST_PROVIDER_URL", &other.url());
    let (status, report) = judged(compare.env("HOLDFAST_PROVIDER_KEY", provider::KEY)).await?;
    ensure!(status == Some(1), "ended with {status:?}: {report}");
    ensure!(
        named(&report, "open_authorisations") == BTreeSet::from([checkout]),
        "{report}"
    );
    ensure!(report["money_mismatch"].as_u64() > Some(0), "{report}");
    Ok(())
}

fn verify_catches_and_names_a_mail_that_is_missing_or_about_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "verify/mail").await?;
        let tickets = shop.tickets(mail_corruptions("").len()).await?;
        let order = |number: usize| format!("order-{number}");
        for (number, ticket) in tickets.iter().enumerate() {
            shop.buys(&order(number), ticket, 500).await?;
        }
        let checkouts: Vec<_> = (0..tickets.len()).map(|number| shop.id(&order(number))).collect();
        shop.close().await?;
        let (status, report) = verify(kit, "holdfast").await?;
        ensure!(status == Some(0) && report["mail_missing"] == 0, "{report}");
        let copy = kit.stack.postgres.copy_database("holdfast", "verify_mail").await?;
        for (number, checkout) in checkouts.iter().enumerate() {
            let (what, statement) = mail_corruptions(checkout).swap_remove(number);
            corrupt(&copy, &[statement]).await.with_context(|| what.to_owned())?;
        }
        copy.close().await;
        let (status, report) = verify(kit, "verify_mail").await?;
        ensure!(status == Some(1), "ended with {status:?}: {report}");
        let all = checkouts.iter().map(String::as_str).collect();
        ensure!(named(&report, "mail_missing") == all, "{report}");
        Ok(())
    })
}

/// Nothing runs while this is sent, so nothing decides it.
fn verify_catches_and_names_each_lie_on_a_topic(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let (twice, waits) = ("verify-topic", "verify-waits");
        sell(kit, &[twice.to_owned()]).await?;
        let events = [&[waits][..], &LIES.map(|(ticket, ..)| ticket)].concat();
        let events = events.iter().map(|ticket| {
            let wanted = TicketEvent::ReservationRequested(events::ReservationRequested {
                user: "ann".parse()?,
                hold_for: None,
                price: None,
            });
            Ok(sent(ticket, event(&format!("{ticket}/lie"), ticket, wanted)?.to_json()))
        });
        let mut records = events.collect::<anyhow::Result<Vec<_>>>()?;
        records.extend([sent(BROKEN, b"{ no event".to_vec())]);
        kit.stack.kafka.send(topics::RESERVATIONS, &records).await?;
        // What is young may still be on its way.
        let (status, before) = verify(kit, "holdfast").await?;
        ensure!(status == Some(0) && before["pending"] == records.len(), "{before}");

        let told = outcomes(kit, twice).await?;
        let first = sent(twice, told.first().context("no outcome")?.clone());
        kit.stack.kafka.send(topics::RESERVATIONS_OUTCOMES, &[first]).await?;
        remove_dead_letters(kit, waits).await?;
        let mut letters = Vec::new();
        for (ticket, reason, _) in LIES {
            letters.push(dead_letter(kit, ticket, reason).await?);
        }
        let mut other_bytes = dead_letter(kit, BROKEN, DeadLetterReason::Undecodable).await?;
        other_bytes.value = Some(b"{ no such event".to_vec());
        letters.push(other_bytes);
        kit.stack.kafka.send(topics::DEAD_LETTERS, &letters).await?;

        let late = kit.stack.holdfast("verify", "verify").arg("--json");
        let (status, report) = judged(late.env("HOLDFAST_LOST_AFTER", "1s")).await?;
        ensure!(status == Some(1), "ended with {status:?}: {report}");
        ensure!(report["out_of_scope"] == before["out_of_scope"], "{report}");
        ensure!(named(&report, "doubled") == BTreeSet::from([twice]), "{report}");
        let lies = LIES.map(|(ticket, _, what)| (ticket, what));
        // What lay before the beginning of a public topic may have had any id.
        let sources =
            [topics::RESERVATIONS, topics::PAYMENTS].map(|topic| report["earliest_offsets"][topic].as_object());
        let is_whole = sources
            .iter()
            .flatten()
            .all(|offsets| offsets.values().all(|offset| *offset == 0));
        for (ticket, what) in [&[(waits, "nothing accounts for"), (BROKEN, "other bytes")][..], &lies].concat() {
            let offences = report["offences"].as_array().into_iter().flatten();
            let mut of_ticket = offences.filter(|offence| offence["key"] == ticket && offence["promise"] == "lost");
            let said = of_ticket.next().and_then(|offence| offence["what"].as_str());
            if what == REUSED && !is_whole {
                ensure!(said.is_none(), "{ticket}: {said:?} of {report}");
                continue;
            }
            ensure!(
                said.is_some_and(|said| said.contains(what)),
                "{ticket}: {said:?} of {report}"
            );
        }
        let table = kit.stack.holdfast("verify", "verify").output().await?;
        let table = String::from_utf8_lossy(&table.stdout).into_owned();
        ensure!(table.contains(twice), "{table}");
        Ok(())
    })
}

/// Tickets with a sound event, the reasons that their dead letters give, and what shows that these lie.
const LIES: [(&str, DeadLetterReason, &str); 3] = [
    ("verify-lie-1", DeadLetterReason::Undecodable, "is a sound event"),
    ("verify-lie-2", DeadLetterReason::TooOld, "s old"),
    ("verify-lie-3", DeadLetterReason::IdReused, REUSED),
];
/// A ticket with a record that is no event.
const BROKEN: &str = "verify-lie-4";
const REUSED: &str = "no other content";

/// A dead letter with the bytes of the only record about this ticket.
async fn dead_letter(kit: &Kit, ticket: &str, reason: DeadLetterReason) -> anyhow::Result<Sent> {
    let records = kit.stack.kafka.read(topics::RESERVATIONS).await?;
    let record = records
        .into_iter()
        .find(|record| record.key.as_deref() == Some(ticket.as_bytes()));
    let record = record.context("no such record")?;
    let time = i128::from(record.timestamp.context("a record without a time")?) * 1_000_000;
    let letter = DeadLetter {
        reason,
        detail: String::new(),
        origin: Origin {
            topic: topics::RESERVATIONS.to_owned(),
            partition: record.partition,
            offset: record.offset,
            time: OffsetDateTime::from_unix_timestamp_nanos(time)?,
        },
    };
    let headers = letter.headers().into_iter();
    Ok(Sent {
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.into_bytes()))
            .collect(),
        ..sent(ticket, record.value.context("a record without a value")?)
    })
}

/// Empties the partition of the dead letters in which one about this ticket would lie.
async fn remove_dead_letters(kit: &Kit, ticket: &str) -> anyhow::Result<()> {
    let last = kit
        .stack
        .kafka
        .send(topics::DEAD_LETTERS, &[sent(ticket, Vec::new())])
        .await?;
    let (partition, offset) = *last.first().context("not sent")?;
    let kafka = &kit.stack.kafka;
    kafka.delete_records(topics::DEAD_LETTERS, partition, offset + 1).await
}

/// A transaction that no checkout has asked for.
const UNSPENT: &str = "checkout/none/spend";

/// The keys that offend against this promise.
fn named<'r>(report: &'r Value, promise: &str) -> BTreeSet<&'r str> {
    let offences = report["offences"].as_array().into_iter().flatten();
    let named = offences.filter(|offence| offence["promise"] == promise);
    named.filter_map(|offence| offence["key"].as_str()).collect()
}

/// What each corruption of a completed checkout's mail is, and how it is done.
fn mail_corruptions(checkout: &str) -> Vec<(&'static str, String)> {
    let of = format!("where checkout = '{checkout}'");
    vec![
        ("a mail lost", format!("delete from mails {of}")),
        (
            "a mail doubled",
            format!(
                "insert into mails (checkout, place, user_id, kind, state)
                 select checkout, 'failed', user_id, 'failed', 'waiting' from mails {of}"
            ),
        ),
        (
            "a refund's mail lost",
            format!(
                "insert into user_change_log
                 select user_id, version + 1000, gen_random_uuid(), 'holdfast.outcome.payment.refunded.v1',
                        json_build_object('checkout', '{checkout}', 'amount', json_build_object('amount', 1)),
                        cause_source, cause_id, changed_at
                 from user_change_log where data ->> 'checkout' = '{checkout}' and type like '%.completed.%'"
            ),
        ),
        (
            "a mail to somebody else",
            format!("update mails set user_id = 'eve' {of}"),
        ),
    ]
}

/// Corruptions of a completed checkout's money: name and statements.
pub(crate) fn money_corruptions(checkout: &str) -> Vec<(&'static str, Vec<String>)> {
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, checkout.as_bytes());
    let of = format!("where checkout = '{checkout}'");
    let copied = format!(
        "with doubled as (select gen_random_uuid() as movement)
         insert into ledger (movement, checkout, kind, account, amount, currency)
         select d.movement, checkout, kind, account, amount, currency from ledger l, doubled d {of} and kind = 'capture'"
    );
    vec![
        (
            "a line lost",
            vec![format!(
                "delete from ledger {of} and kind = 'capture' and account = 'sales'"
            )],
        ),
        (
            "a capture lost",
            vec![format!("delete from ledger {of} and kind = 'capture'")],
        ),
        ("a capture doubled", vec![copied]),
        (
            "an entry of what never moved",
            vec![format!(
                "update ledger set movement = m.id from (select gen_random_uuid() as id) m {of} and kind = 'capture'"
            )],
        ),
        (
            "an entry that says otherwise",
            vec![format!("update ledger set moved_at = moved_at + interval '1 second' {of} and kind = 'capture'")],
        ),
        (
            "spent credits lost",
            vec![format!("delete from ledger {of} and kind = 'credit'")],
        ),
        (
            "too little taken",
            vec![format!(
                "update ledger set amount = amount - sign(amount) {of} and kind = 'capture'"
            )],
        ),
        ("a checkout lost", vec![format!("delete from checkouts {of}")]),
        (
            "money kept of what failed",
            vec![format!(
                "update checkouts set state = 'failed', failure = 'abandoned', sold_at = null {of}"
            )],
        ),
        (
            "a seat at another price",
            vec![format!("update checkout_seats set price_amount = price_amount + 1 {of}")],
        ),
        (
            "a dispute that is in no book",
            vec![format!("insert into disputes values ('{checkout}/dispute', '{checkout}', 5, 'opened')")],
        ),
        (
            "a dispute that was lost, and booked as open",
            vec![
                format!("insert into disputes values ('{checkout}/dispute', '{checkout}', 5, 'lost')"),
                format!(
                    "insert into ledger (movement, checkout, kind, account, amount, currency)
                     select m.movement, '{checkout}', 'dispute', side.account, side.amount, 'EUR'
                     from (select gen_random_uuid() as movement) m, (values ('disputes', 5), ('provider', -5)) side (account, amount)"
                ),
            ],
        ),
        (
            "credits bound that no checkout spent",
            vec![format!("insert into two_phase_attempts values ('{UNSPENT}', gen_random_uuid(), 'committed')")],
        ),
        (
            "credits spent that nothing bound",
            vec![format!("delete from two_phase_attempts where transaction = 'checkout/{id}/spend'")],
        ),
        (
            "another seat than the one that was bought",
            vec![format!("update checkout_seats set seat = 'another' {of}")],
        ),
        (
            "a checkout that nobody has taken further for days",
            vec![format!(
                "insert into checkouts (checkout, user_id, hash, state, total_amount, total_currency, until, moved_at)
                 select '{checkout}/hangs', 'nobody', '', 'opened', 0, 'EUR', long_ago, long_ago
                 from (select now() - interval '2 days' as long_ago) t"
            )],
        ),
        (
            "something kept of what was given back wholly",
            vec![format!("update checkouts set state = 'refunded', refunded = 100 {of}")],
        ),
        (
            "a refund that has succeeded and is not booked",
            vec![format!("insert into refunds (refund, checkout, amount, status) values ('{checkout}/refund', '{checkout}', 5, 'succeeded')")],
        ),
        (
            "money that a failed refund left, and no operator was asked for",
            vec![
                format!(
                    "update tickets set status = 'available', hold = null, holder = null, checkout = null
                     where ticket in (select ticket from checkout_seats {of})"
                ),
                format!("update checkouts set state = 'refunded', refunds_undone = total_amount {of}"),
            ],
        ),
        (
            "a refund that was not told",
            vec![format!("update checkouts set refunded = 1 {of}")],
        ),
        (
            "an outcome lost",
            vec![format!(
                "delete from user_change_log where data ->> 'checkout' = '{checkout}' and type like '%.completed.%'"
            )],
        ),
        (
            "a ticket of another checkout",
            vec![format!("update tickets set checkout = 'another' {of}")],
        ),
        (
            "a ticket sold to somebody else",
            vec![format!("update tickets set holder = 'another' {of}")],
        ),
    ]
}

/// Corruptions: name, broken promise, and statements.
pub(crate) fn corruptions(ticket: &str) -> Vec<(&'static str, &'static str, Vec<String>)> {
    let version = |version| format!("update tickets set version = {version} where ticket = '{ticket}'");
    let log = |version: i64, outcome: Uuid, told: &str, data: Value, source: &str, id: &str| {
        format!(
            "insert into ticket_change_log (ticket, version, outcome, type, data, cause_source, cause_id, changed_at)
            select ticket, {version}, '{outcome}', 'holdfast.outcome.{told}.v1', '{data}', '{source}', '{id}', changed_at
            from tickets where ticket = '{ticket}'"
        )
    };
    let sale = |sequence, checkout: &str| {
        let id = format!("{checkout}/sell/{ticket}");
        let data = serde_json::json!({ "user": "bob", "checkout": checkout });
        let outcome = outcome_id("checkout", &id, ticket, 0).as_uuid();
        log(sequence, outcome, "ticket.sold", data, "checkout", &id)
    };
    let refused = serde_json::json!({ "reason": "held" });
    let other_hold = serde_json::json!({
        "user": "bob",
        "hold": hold_id(SHOP, &format!("{ticket}/bob-1"), ticket),
        "until": "2099-01-01T00:00:00Z",
    });
    let (ann, bob) = (format!("{ticket}/ann"), format!("{ticket}/bob-1"));
    vec![
        (
            "an event lost",
            "lost",
            vec![format!("delete from idempotency_records where source = '{SHOP}' and id = '{ann}'")],
        ),
        (
            "an outcome lost",
            "lost",
            vec![
                log(6, outcome_id("http", "6", ticket, 0).as_uuid(), "reservation.refused", refused.clone(), "http", "6"),
                version(6),
            ],
        ),
        (
            "a change lost",
            "lost",
            vec![format!("delete from ticket_change_log where ticket = '{ticket}' and version = 3")],
        ),
        (
            "an event that took effect twice",
            "doubled",
            vec![
                log(6, outcome_id(SHOP, &bob, ticket, 0).as_uuid(), "reservation.refused", refused, SHOP, &bob),
                version(6),
            ],
        ),
        (
            "an outcome twice in the outbox",
            "doubled",
            vec![format!(
                "insert into outbox (topic, key, message, headers, value, written_at)
                select '{}', ticket, outcome, '{{}}', convert_to(json_build_object(
                    'specversion', '1.0', 'id', outcome, 'source', 'holdfast', 'type', type, 'subject', ticket,
                    'time', to_char(changed_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), 'sequence', version,
                    'generation', 1, 'causationsource', cause_source, 'causationid', cause_id,
                    'traceparent', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
                    'datacontenttype', 'application/json', 'data', data
                )::text, 'UTF8'), changed_at
                from ticket_change_log cross join generate_series(1, 2) where ticket = '{ticket}' and version = 5",
                topics::RESERVATIONS_OUTCOMES
            )],
        ),
        (
            "two events taken in the wrong order",
            "out_of_order",
            vec![format!(
                "update idempotency_records r set reply = other.reply from idempotency_records other
                where r.source = '{SHOP}' and other.source = '{SHOP}'
                    and (r.id, other.id) in (('{ann}', '{bob}'), ('{bob}', '{ann}'))"
            )],
        ),
        (
            "two live holds",
            "oversold",
            vec![format!(
                "update ticket_change_log set type = 'holdfast.outcome.ticket.held.v1', data = '{other_hold}'
                where ticket = '{ticket}' and version = 3"
            )],
        ),
        (
            "two sales",
            "oversold",
            vec![
                sale(6, "c-1"),
                sale(7, "c-2"),
                format!(
                    "update tickets set version = 7, status = 'sold', held_until = null, checkout = 'c-2'
                    where ticket = '{ticket}'"
                ),
            ],
        ),
        (
            "a seat given to somebody else",
            "oversold",
            vec![format!("update tickets set holder = 'eve' where ticket = '{ticket}'")],
        ),
        ("a row put back", "oversold", vec![version(4)]),
        (
            "an outcome told with other data than is logged",
            "lost",
            vec![format!(
                "update ticket_change_log set data = '{{\"reason\":\"not_held\"}}' where ticket = '{ticket}' and version = 3"
            )],
        ),
        (
            "an outcome told with another type than is logged",
            "lost",
            vec![format!(
                "update ticket_change_log set type = 'holdfast.outcome.ticket.expired.v1'
                where ticket = '{ticket}' and version = 4"
            )],
        ),
        (
            "a repeat that would be answered otherwise",
            "lost",
            vec![format!(
                "update idempotency_records set reply = replace(reply::text, '\"held\"', '\"not_held\"')::json
                where source = '{SHOP}' and id = '{bob}'"
            )],
        ),
    ]
}

pub(crate) async fn corrupt(copy: &PgPool, statements: &[String]) -> anyhow::Result<()> {
    for statement in statements {
        let done = sqlx::query(AssertSqlSafe(statement.clone())).execute(copy).await?;
        ensure!(done.rows_affected() > 0, "changed nothing: {statement}");
    }
    Ok(())
}

/// Lists tickets; ann holds each, bob is refused, ann releases it, bob holds it. Nothing runs any more when it returns.
pub(crate) async fn sell(kit: &Kit, tickets: &[String]) -> anyhow::Result<()> {
    let worker = kit.stack.holdfast("run", "verify").start().await?;
    let mut records = Vec::new();
    for ticket in tickets {
        for (id, data) in life(ticket)? {
            records.push(sent(ticket, event(&format!("{ticket}/{id}"), ticket, data)?.to_json()));
        }
    }
    kit.stack.kafka.send(topics::RESERVATIONS, &records).await?;
    until("five outcomes of each", DEADLINE, async || {
        let told = kit.stack.kafka.read(topics::RESERVATIONS_OUTCOMES).await?;
        let keys = told.iter().filter_map(|record| record.key.as_deref());
        let told = keys
            .filter(|key| tickets.iter().any(|ticket| ticket.as_bytes() == *key))
            .count();
        ensure!(told == 5 * tickets.len(), "{told} outcomes");
        Ok(())
    })
    .await?;
    worker.stop().await
}

fn life(ticket: &str) -> anyhow::Result<[(&'static str, TicketEvent); 5]> {
    let listed = TicketEvent::TicketListed(events::TicketListed {
        show: "verify".parse()?,
        seat: None,
        price: Price::parse(4500, "EUR")?,
    });
    let held = |by: &str| {
        anyhow::Ok(TicketEvent::ReservationRequested(events::ReservationRequested {
            user: by.parse()?,
            hold_for: None,
            price: None,
        }))
    };
    let released = TicketEvent::ReservationReleased(events::ReservationReleased {
        user: "ann".parse()?,
        hold: hold_id(SHOP, &format!("{ticket}/ann"), ticket),
    });
    Ok([
        ("list", listed),
        ("ann", held("ann")?),
        ("bob-1", held("bob")?),
        ("back", released),
        ("bob-2", held("bob")?),
    ])
}

async fn outcomes(kit: &Kit, ticket: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let records = kit.stack.kafka.read(topics::RESERVATIONS_OUTCOMES).await?;
    let of_ticket = records
        .into_iter()
        .filter(|record| record.key.as_deref() == Some(ticket.as_bytes()));
    Ok(of_ticket.filter_map(|record| record.value).collect())
}

/// The exit code and what was printed. It finds things wrong; nothing goes wrong with itself.
async fn verify(kit: &Kit, database: &str) -> anyhow::Result<(Option<i32>, Value)> {
    let url = kit.stack.postgres.url_of(database);
    let verify = kit.stack.holdfast("verify", "verify").arg("--json");
    judged(verify.env("HOLDFAST_DATABASE_URL", &url)).await
}

async fn judged(verify: Launch<'_>) -> anyhow::Result<(Option<i32>, Value)> {
    let Output { status, stdout, stderr } = verify.output().await?;
    let logged = String::from_utf8_lossy(&stderr);
    let report = serde_json::from_slice(&stdout).with_context(|| format!("{status}: {logged}"))?;
    ensure!(!logged.contains("ERROR"), "it logs errors: {logged}");
    Ok((status.code(), report))
}

fn event(id: &str, ticket: &str, data: TicketEvent) -> anyhow::Result<Event<TicketEvent>> {
    Ok(Event::new(
        SHOP.parse()?,
        id.parse()?,
        now(),
        None,
        ticket.parse()?,
        data,
    ))
}

pub(crate) fn sent(ticket: &str, value: Vec<u8>) -> Sent {
    Sent {
        key: Some(ticket.as_bytes().to_vec()),
        value: Some(value),
        ..Sent::default()
    }
}
