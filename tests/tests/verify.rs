//! `holdfast verify` itself: it finds kept promises kept, and notices each corruption of a copy of the data.
//!
//! The last module of all: its last test leaves a record on the outcome topic that does not belong there.

use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast::config;
use holdfast::metrics::Metrics;
use holdfast::provider::{Order, Provider};
use holdfast_schemas::{Currency, Event, Price, TicketEvent, hold_id, outcome_id, topics};
use holdfast_tests::kit::kafka::Sent;
use holdfast_tests::kit::provider::{self, Simulator};
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Kit, until};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use time::OffsetDateTime;
use time::macros::datetime;
use uuid::Uuid;

use crate::checkout::Shop;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    verify_catches_and_names_each_corruption_of_a_copy,
    verify_catches_and_names_money_that_went_astray,
    verify_catches_and_names_a_mail_that_is_missing_or_about_nothing,
    verify_catches_and_names_an_outcome_told_twice,
];

const SHOP: &str = "verify-shop";
const DEADLINE: Duration = Duration::from_secs(60);

fn verify_catches_and_names_each_corruption_of_a_copy(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let ticket = "verify-copy";
        sell(kit, ticket).await?;
        let (status, report) = verify(kit, "holdfast").await?;
        ensure!(status == Some(0), "not clean before any corruption: {report}");
        ensure!(report["pending"] == 0, "{report}");
        for (what, promise, statements) in corruptions(ticket) {
            let copy = kit.stack.postgres.copy_database("holdfast", "verify_copy").await?;
            corrupt(&copy, &statements).await.with_context(|| what.to_owned())?;
            copy.close().await;
            let (status, report) = verify(kit, "verify_copy").await?;
            ensure!(status == Some(1), "{what}: ended with {status:?}: {report}");
            ensure!(report[promise].as_u64() > Some(0), "{what}: {report}");
            let offences = report["offences"].as_array().into_iter().flatten();
            let named: Vec<_> = offences.filter(|offence| offence["promise"] == promise).collect();
            ensure!(
                named.iter().any(|offence| offence["key"] == ticket),
                "{what}: {named:?}"
            );
        }
        Ok(())
    })
}

fn verify_catches_and_names_money_that_went_astray(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "verify/money").await?;
        let (checkout, ticket, user) = (shop.id("order"), shop.tickets(1).await?.remove(0), shop.user.clone());
        shop.buys("order", &ticket, 500).await?;
        shop.close().await?;
        let (status, report) = verify(kit, "holdfast").await?;
        ensure!(status == Some(0) && report["stuck"] == 0, "{report}");
        for (what, statements) in money_corruptions(&checkout) {
            let copy = kit.stack.postgres.copy_database("holdfast", "verify_money").await?;
            corrupt(&copy, &statements).await.with_context(|| what.to_owned())?;
            copy.close().await;
            let (status, report) = verify(kit, "verify_money").await?;
            ensure!(status == Some(1), "{what}: ended with {status:?}: {report}");
            let key = named(&report, "money_mismatch").with_context(|| format!("{what}: {report}"))?;
            let is_movement = Uuid::parse_str(&key).is_ok();
            ensure!(
                is_movement || key == UNSPENT || key.starts_with(&checkout) || [&ticket, &user].contains(&&key),
                "{what}: {report}"
            );
        }

        // Another provider's books: it never captured the money, and has an authorisation for a checkout that has ended.
        let other = Simulator::start().await?;
        let settings = config::Provider {
            url: Some(other.url().parse()?),
            key: Some(provider::KEY.to_owned().into()),
            timeout: DEADLINE,
        };
        let adapter = Provider::new(&settings, Arc::new(Metrics::new()?))?.context("no provider")?;
        let order = Order {
            checkout: &checkout.parse()?,
            user: &user.parse()?,
            amount: 1,
            currency: Currency::from_code("EUR").context("no euro")?,
            method: "pm_card_visa",
        };
        let payment = adapter.create(&order).await?;
        adapter.authorise(&payment.id, order.checkout).await?;
        let compare = kit.stack.holdfast("verify", "verify").arg("--json");
        let compare = compare.env("HOLDFAST_PROVIDER_URL", &other.url());
        let (status, report) = judged(compare.env("HOLDFAST_PROVIDER_KEY", provider::KEY)).await?;
        ensure!(status == Some(1), "ended with {status:?}: {report}");
        ensure!(named(&report, "open_authorisations")? == checkout, "{report}");
        ensure!(report["money_mismatch"].as_u64() > Some(0), "{report}");
        Ok(())
    })
}

fn verify_catches_and_names_a_mail_that_is_missing_or_about_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "verify/mail").await?;
        let (checkout, ticket) = (shop.id("order"), shop.tickets(1).await?.remove(0));
        shop.buys("order", &ticket, 500).await?;
        shop.close().await?;
        let (status, report) = verify(kit, "holdfast").await?;
        ensure!(status == Some(0) && report["mail_missing"] == 0, "{report}");
        let of = format!("where checkout = '{checkout}'");
        for (what, statement) in [
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
        ] {
            let copy = kit.stack.postgres.copy_database("holdfast", "verify_mail").await?;
            corrupt(&copy, &[statement]).await.with_context(|| what.to_owned())?;
            copy.close().await;
            let (status, report) = verify(kit, "verify_mail").await?;
            ensure!(status == Some(1), "{what}: ended with {status:?}: {report}");
            let key = named(&report, "mail_missing").with_context(|| format!("{what}: {report}"))?;
            ensure!(key == checkout, "{what}: {report}");
        }
        Ok(())
    })
}

fn verify_catches_and_names_an_outcome_told_twice(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let ticket = "verify-topic";
        sell(kit, ticket).await?;
        let told = outcomes(kit, ticket).await?;
        let first = told.first().context("no outcome")?;
        kit.stack
            .kafka
            .send(topics::RESERVATIONS_OUTCOMES, &[sent(ticket, first.clone())])
            .await?;
        let (status, report) = verify(kit, "holdfast").await?;
        ensure!(status == Some(1), "ended with {status:?}: {report}");
        ensure!(
            report["doubled"] == 1 && report["offences"][0]["key"] == ticket,
            "{report}"
        );
        let table = kit.stack.holdfast("verify", "verify").output().await?;
        let table = String::from_utf8_lossy(&table.stdout).into_owned();
        ensure!(table.contains(ticket), "{table}");
        Ok(())
    })
}

/// A transaction that no checkout has asked for.
const UNSPENT: &str = "checkout/none/spend";

/// The key of the offence against this promise.
fn named(report: &Value, promise: &str) -> anyhow::Result<String> {
    let offences = report["offences"].as_array().into_iter().flatten();
    let mut named = offences.filter(|offence| offence["promise"] == promise);
    let key = named.next().and_then(|offence| offence["key"].as_str());
    key.map(str::to_owned).context("no such offence")
}

/// Corruptions of a completed checkout's money: name and statements.
fn money_corruptions(checkout: &str) -> Vec<(&'static str, Vec<String>)> {
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
        (
            "a wrong count of tickets bought",
            vec![format!(
                "update purchases set tickets = tickets + 1 where user_id = (select user_id from checkouts {of})"
            )],
        ),
    ]
}

/// Corruptions: name, broken promise, and statements.
fn corruptions(ticket: &str) -> Vec<(&'static str, &'static str, Vec<String>)> {
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
    ]
}

async fn corrupt(copy: &PgPool, statements: &[String]) -> anyhow::Result<()> {
    for statement in statements {
        let done = sqlx::query(AssertSqlSafe(statement.clone())).execute(copy).await?;
        ensure!(done.rows_affected() > 0, "changed nothing: {statement}");
    }
    Ok(())
}

/// Lists a ticket; ann holds it, bob is refused, ann releases it, bob holds it. Nothing runs any more when it returns.
async fn sell(kit: &Kit, ticket: &str) -> anyhow::Result<()> {
    let worker = kit.stack.holdfast("run", "verify").start().await?;
    let listed = TicketEvent::TicketListed {
        show: "verify".parse()?,
        seat: None,
        price: Price::parse(4500, "EUR")?,
    };
    let held = |by: &str| {
        anyhow::Ok(TicketEvent::ReservationRequested {
            user: by.parse()?,
            hold_for: None,
        })
    };
    let released = TicketEvent::ReservationReleased {
        user: "ann".parse()?,
        hold: hold_id(SHOP, &format!("{ticket}/ann"), ticket),
    };
    let events = [
        ("list", listed),
        ("ann", held("ann")?),
        ("bob-1", held("bob")?),
        ("back", released),
        ("bob-2", held("bob")?),
    ];
    let records =
        events.map(|(id, data)| anyhow::Ok(sent(ticket, event(&format!("{ticket}/{id}"), ticket, data)?.to_json())));
    let records = records.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    kit.stack.kafka.send(topics::RESERVATIONS, &records).await?;
    until("five outcomes", DEADLINE, async || {
        let told = outcomes(kit, ticket).await?;
        ensure!(told.len() == 5, "{} outcomes", told.len());
        Ok(())
    })
    .await?;
    worker.stop().await
}

async fn outcomes(kit: &Kit, ticket: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let records = kit.stack.kafka.read(topics::RESERVATIONS_OUTCOMES).await?;
    let of_ticket = records
        .into_iter()
        .filter(|record| record.key.as_deref() == Some(ticket.as_bytes()));
    Ok(of_ticket.filter_map(|record| record.value).collect())
}

/// The exit code and what was printed.
async fn verify(kit: &Kit, database: &str) -> anyhow::Result<(Option<i32>, Value)> {
    let url = kit.stack.postgres.url_of(database);
    let verify = kit.stack.holdfast("verify", "verify").arg("--json");
    judged(verify.env("HOLDFAST_DATABASE_URL", &url)).await
}

async fn judged(verify: Launch<'_>) -> anyhow::Result<(Option<i32>, Value)> {
    let Output { status, stdout, stderr } = verify.output().await?;
    let report =
        serde_json::from_slice(&stdout).with_context(|| format!("{status}: {}", String::from_utf8_lossy(&stderr)))?;
    Ok((status.code(), report))
}

fn event(id: &str, ticket: &str, data: TicketEvent) -> anyhow::Result<Event<TicketEvent>> {
    const TIME: OffsetDateTime = datetime!(2100-01-01 00:00 UTC);
    Ok(Event::new(
        SHOP.parse()?,
        id.parse()?,
        TIME,
        None,
        ticket.parse()?,
        data,
    ))
}

fn sent(ticket: &str, value: Vec<u8>) -> Sent {
    Sent {
        key: Some(ticket.as_bytes().to_vec()),
        value: Some(value),
        ..Sent::default()
    }
}
