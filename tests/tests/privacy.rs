//! Personal data: it goes when it is to go, the page says where it is, and a shop's mails cannot be used to send somebody links or
//! to write to them again and again.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, ensure};
use holdfast::crash::Point;
use holdfast_schemas::{OutcomeData, UserOutcome, outcomes};
use holdfast_tests::kit::smtp::Sink;
use holdfast_tests::kit::{Kit, until};
use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::PgPool;

use crate::checkout::{CARD, REFUSED, Shop, check_out, ends, fill, look, sold};
use crate::mail::{becomes, buy, of, open_with, the_mail};
use crate::support::{DEADLINE, clean, event, pay, told_of};
use crate::users::{call, registered, view};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_name_or_an_order_that_looks_like_a_link_does_not_stand_in_a_mail,
    mails_about_failures_are_limited_for_each_user_and_hour,
    an_erased_user_is_left_by_id_alone_and_keeps_what_was_bought,
    an_erasure_empties_the_cart_once_however_often_it_comes,
    a_name_is_emptied_by_kafka_and_by_http_and_mails_greet_without_it,
    the_page_on_personal_data_names_every_column,
];

fn a_name_or_an_order_that_looks_like_a_link_does_not_stand_in_a_mail(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut shop = Shop::open(kit, "privacy/link").await?;
        let tickets = shop.tickets(2).await?;
        let database = kit.stack.postgres.connect().await?;
        let names = [
            (
                "eve",
                "Win a prize at http://evil.example\u{2028}now, www.evil.example eve@evil.example evil\u{3002}example",
                json!("Win a prize at now,"),
            ),
            ("link", "https://evil.example/?a=b", json!("")),
        ];
        for ((user, name, shown), ticket) in names.into_iter().zip(&tickets) {
            shop.user = shop.id(user);
            let data = json!({ "email": format!("{user}@example.org"), "name": name });
            pay(
                kit,
                &[event(
                    &shop.id(&format!("{user}/1")),
                    &shop.user,
                    "user.registered",
                    data,
                )],
            )
            .await?;
            told_of::<UserOutcome>(kit, &shop.user, 1).await?;
            // The id of an order comes from whoever asks for it.
            let order = format!("{user}/ http://evil.example");
            buy(kit, &shop, &order, ticket, CARD).await?;
            let mail = the_mail(kit, &database, &shop.id(&order), "completed").await?;
            for part in ["text", "html", "subject"] {
                let text = mail[part].as_str().unwrap_or_default();
                ensure!(!text.contains("evil") && !text.contains("http:"), "{part}: {mail}");
                ensure!(part == "subject" || text.contains("25.00 EUR"), "{part}: {mail}");
            }
            ensure!(mail["to"][0]["name"] == shown, "{mail}");
            let greeting = mail["text"]
                .as_str()
                .and_then(|text| text.lines().next())
                .unwrap_or_default();
            let expected = [("eve", "Hello Win a prize at now,,"), ("link", "Hello,")];
            ensure!(expected.contains(&(user, greeting)), "{greeting}");
        }
        shop.close().await
    })
}

fn mails_about_failures_are_limited_for_each_user_and_hour(kit: &Kit) -> anyhow::Result<()> {
    const MOST: usize = 2;
    kit.block_on(async {
        let sink = Sink::start().await?;
        let most = MOST.to_string();
        let mut shop = open_with(
            kit,
            "privacy/limit",
            &sink,
            &[("HOLDFAST_MAIL_FAILURES_PER_HOUR", &most)],
        )
        .await?;
        let database = kit.stack.postgres.connect().await?;
        let tickets = shop.tickets(2 + MOST + 2).await?;
        let (bought, declined) = tickets.split_at(1);
        let (others, declined) = declined.split_at(1);
        for (number, ticket) in declined.iter().enumerate() {
            let order = format!("declined-{number}");
            buy(kit, &shop, &order, ticket, REFUSED).await?;
            ends(kit, &shop.id(&order), "failed").await?;
            let state = if number < MOST { "sent" } else { "limited" };
            becomes(&database, &shop.id(&order), "failed", state).await?;
            let mails = of(&sink, &shop.id(&order), "failed")?;
            ensure!(mails.len() == usize::from(number < MOST), "{order}: {mails:?}");
        }
        // What went well is told, and so are other users.
        buy(kit, &shop, "bought", &bought[0], CARD).await?;
        becomes(&database, &shop.id("bought"), "completed", "sent").await?;
        shop.user = shop.id("bob");
        let bob = json!({ "email": "bob@example.org" });
        pay(kit, &[event(&shop.id("bob/1"), &shop.user, "user.registered", bob)]).await?;
        told_of::<UserOutcome>(kit, &shop.user, 1).await?;
        buy(kit, &shop, "bobs", &others[0], REFUSED).await?;
        becomes(&database, &shop.id("bobs"), "failed", "sent").await?;
        until("those that are not sent are counted", DEADLINE, async || {
            let limited = shop.worker.metric(r#"holdfast_mails_total{result="limited"}"#).await?;
            ensure!(limited == Some(2.0), "{limited:?}");
            Ok(())
        })
        .await?;
        clean(kit).await?;
        shop.close().await
    })
}

fn an_erased_user_is_left_by_id_alone_and_keeps_what_was_bought(kit: &Kit) -> anyhow::Result<()> {
    // In no id, so that it may be nowhere afterwards.
    const PERSONAL: &str = "Zebedee";
    kit.block_on(async {
        let mut sink = Sink::start().await?;
        sink.go_away().await;
        let mut shop = open_with(kit, "privacy/erased", &sink, &[]).await?;
        let (main, loyalty) = tokio::try_join!(kit.stack.postgres.connect(), kit.stack.postgres.connect_to_loyalty())?;
        shop.user = shop.id("user");
        let user = shop.user.clone();
        let profile = json!({ "email": format!("{PERSONAL}@example.org"), "name": PERSONAL, "language": "de" });
        let change = json!({ "to": { "name": format!("{PERSONAL} the Second") } });
        let customer = json!({ "customer": format!("cus_{PERSONAL}") });
        let events = [
            event(&shop.id("1"), &user, "user.registered", profile),
            event(&shop.id("2"), &user, "profile.changed", change),
            event(&shop.id("customer"), &user, "customer.linked", customer),
        ];
        pay(kit, &events).await?;
        told_of::<UserOutcome>(kit, &user, 3).await?;
        ensure!(!mentions(&main, PERSONAL).await?.is_empty(), "the search finds nothing");
        let tickets = shop.tickets(2).await?;
        buy(kit, &shop, "before", &tickets[0], CARD).await?;
        ends(kit, &shop.id("before"), "completed").await?;
        fill(kit, &user, &tickets[1..], Some(3_600)).await?;

        let erased = UserOutcome::UserErased(outcomes::UserErased {});
        let key = [("idempotency-key", "privacy-erase")];
        let ask = async |key: &[(&str, &str)]| call(kit, key, "Account", &user, "erase", &json!({})).await;
        let (status, reply) = ask(&key).await?;
        ensure!(
            status == 200 && reply["outcomes"][0]["type"] == erased.outcome_type(),
            "{status}: {reply}"
        );
        let again = ask(&key).await?;
        ensure!(again == (200, reply.clone()), "{again:?}");
        let other = ask(&[]).await?;
        ensure!(other.0 == 200 && other.1["outcomes"] == json!([]), "{other:?}");

        for (database, name) in [(&main, "main"), (&loyalty, "loyalty")] {
            let mentions = mentions(database, PERSONAL).await?;
            ensure!(mentions.is_empty(), "{name}: {mentions:?}");
        }
        let (_, seen) = view(kit, "User", &user).await?;
        ensure!(
            seen == json!({ "user": user, "version": reply["outcomes"][0]["sequence"] }),
            "{seen}"
        );
        let state = format!("select key from state where service_name = 'User' and service_key = '{user}'");
        let state = kit.stack.restate.sql(&state).await?;
        ensure!(state.is_empty(), "{state:?}");

        // What was bought stays, what is held can be bought, and nobody is written to.
        sold(kit, &tickets[..1]).await?;
        buy_held(kit, &shop, "after", &tickets[1]).await?;
        sold(kit, &tickets).await?;
        sink.come_back().await?;
        for order in ["before", "after"] {
            becomes(&main, &shop.id(order), "completed", "no_address").await?;
            ensure!(
                of(&sink, &shop.id(order), "completed")?.is_empty(),
                "{:?}",
                sink.mails()
            );
        }
        pay(kit, &[registered(&shop.id("3"), &user)]).await?;
        let told = told_of::<UserOutcome>(kit, &user, 9).await?;
        let last = told.last().map(|told| told.data.clone());
        let refused = outcomes::PaymentRefused {
            reason: holdfast_schemas::UserRefusalReason::AlreadyRegistered,
        };
        ensure!(last == Some(refused.into()), "{told:?}");
        // By an event likewise.
        let other = shop.id("by-event");
        let profile = json!({ "email": format!("{PERSONAL}@example.com"), "name": PERSONAL });
        let registered = event(&shop.id("4"), &other, "user.registered", profile);
        let forgotten = event(&shop.id("5"), &other, "user.erased", json!({}));
        pay(kit, &[registered, forgotten.clone(), forgotten]).await?;
        let told = told_of::<UserOutcome>(kit, &other, 2).await?;
        ensure!(told[1].data == erased, "{told:?}");
        let mentions = mentions(&main, PERSONAL).await?;
        ensure!(mentions.is_empty(), "{mentions:?}");
        let log = std::fs::read_to_string(shop.worker.log())?;
        ensure!(!log.contains(PERSONAL), "{}", shop.worker.last_words());
        tokio::join!(main.close(), loyalty.close());
        clean(kit).await?;
        shop.close().await
    })
}

fn an_erasure_empties_the_cart_once_however_often_it_comes(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut shop = Shop::open(kit, "privacy/cart").await?;
        let (user, tickets) = (shop.user.clone(), shop.tickets(3).await?);
        let put = async |ticket: usize| fill(kit, &user, &tickets[ticket..=ticket], Some(3_600)).await;
        let has = async |expected: &[&str]| {
            until(&format!("{expected:?} are in the cart"), DEADLINE, async || {
                let cart = look(kit, &user, "cart").await?;
                let there = cart["tickets"].as_array().into_iter().flatten();
                let there: Vec<_> = there.filter_map(|item| item["ticket"].as_str()).collect();
                ensure!(there == expected, "{cart}");
                Ok(())
            })
            .await
        };
        // The worker that has committed the erasure dies before the cart is empty: its successor empties it.
        put(0).await?;
        shop.worker.kill()?;
        let erasure = event(&shop.id("erasure"), &user, "user.erased", json!({}));
        pay(kit, std::slice::from_ref(&erasure)).await?;
        let dying = shop.launch("run").env("HOLDFAST_CRASH", Point::ServeWritten.name());
        shop.worker = dying.spawn()?;
        let status = shop.worker.wait(DEADLINE).await?;
        ensure!(status.signal() == Some(Signal::SIGABRT as i32), "{status}");
        shop.worker = shop.launch("run").start().await?;
        told_of::<UserOutcome>(kit, &user, 2).await?;
        has(&[]).await?;
        // It comes again late, and something after it.
        put(1).await?;
        let to = json!({ "to": { "language": "de" } });
        let changed = event(&shop.id("changed"), &user, "profile.changed", to);
        pay(kit, &[erasure, changed]).await?;
        told_of::<UserOutcome>(kit, &user, 3).await?;
        has(&[&tickets[1]]).await?;
        // By HTTP likewise.
        let key = [("idempotency-key", "privacy-cart")];
        let erase = async || call(kit, &key, "Account", &user, "erase", &json!({})).await;
        let (status, reply) = erase().await?;
        ensure!(status == 200, "{status}: {reply}");
        has(&[]).await?;
        put(2).await?;
        let again = erase().await?;
        ensure!(again == (200, reply.clone()), "{again:?}");
        has(&[&tickets[2]]).await?;
        clean(kit).await?;
        shop.close().await
    })
}

fn a_name_is_emptied_by_kafka_and_by_http_and_mails_greet_without_it(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let sink = Sink::start().await?;
        let mut shop = open_with(kit, "privacy/emptied", &sink, &[]).await?;
        shop.user = shop.id("user");
        let user = shop.user.clone();
        let profile = json!({ "email": "zoe@example.org", "name": "Zoe", "language": "en" });
        let mut empty = event(
            &shop.id("2"),
            &user,
            "profile.changed",
            json!({ "to": {}, "emptied": { "name": true }, "was": { "name": "Zoe" } }),
        );
        // The first version knows no such field.
        pay(kit, &[event(&shop.id("1"), &user, "user.registered", profile)]).await?;
        empty["type"] = json!("holdfast.profile.changed.v2");
        pay(kit, &[empty.clone(), empty]).await?;
        let told = told_of::<UserOutcome>(kit, &user, 2).await?;
        let fields = vec![outcomes::ProfileField::Name];
        ensure!(told[1].data == outcomes::ProfileChanged { fields }.into(), "{told:?}");
        let (_, seen) = view(kit, "User", &user).await?;
        ensure!(seen["name"].is_null() && seen["language"] == "en", "{seen}");

        let tickets = shop.tickets(1).await?;
        buy(kit, &shop, "order", &tickets[0], CARD).await?;
        ends(kit, &shop.id("order"), "completed").await?;
        let mail = until("the mail", DEADLINE, async || {
            let mails = of(&sink, &shop.id("order"), "completed")?;
            mails.first().cloned().context("not yet")
        })
        .await?;
        ensure!(!format!("{mail:?}").contains("Zoe"), "{mail:?}");

        let emptied = json!({ "to": { "name": "Zoe again" }, "emptied": { "name": true, "language": true } });
        let (status, reply) = call(kit, &[], "User", &user, "changeProfile", &emptied).await?;
        ensure!(status == 200, "{status}: {reply}");
        let (_, seen) = view(kit, "User", &user).await?;
        ensure!(seen["name"] == "Zoe again" && seen["language"].is_null(), "{seen}");
        let (status, said) = call(
            kit,
            &[],
            "User",
            &user,
            "changeProfile",
            &json!({ "to": {}, "emptied": { "email": true } }),
        )
        .await?;
        ensure!(status == 400 && said.to_string().contains("email"), "{status}: {said}");
        clean(kit).await?;
        shop.close().await
    })
}

/// The user buys a ticket that is held.
async fn buy_held(kit: &Kit, shop: &Shop<'_>, checkout: &str, ticket: &str) -> anyhow::Result<()> {
    let body = json!({ "checkout": shop.id(checkout), "tickets": [ticket], "payment_method": CARD });
    check_out(kit, &shop.user, body).await?;
    ends(kit, &shop.id(checkout), "completed").await.map(drop)
}

fn the_page_on_personal_data_names_every_column(kit: &Kit) -> anyhow::Result<()> {
    const PAGE: &str = include_str!("../../docs/privacy.md");
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "privacy").start().await?;
        let (main, loyalty) = tokio::try_join!(kit.stack.postgres.connect(), kit.stack.postgres.connect_to_loyalty())?;
        let mut found = columns(&main).await?;
        found.extend(columns(&loyalty).await?);
        tokio::join!(main.close(), loyalty.close());
        // | `table` | `column`, `column` | ... |
        let named: BTreeSet<_> = PAGE
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split(" | ");
                let (table, columns) = (cells.next()?.trim_matches('`'), cells.next()?);
                Some(
                    columns
                        .split(", ")
                        .map(move |column| format!("{table}.{}", column.trim_matches('`'))),
                )
            })
            .flatten()
            .collect();
        ensure!(
            named == found,
            "docs/privacy.md lacks {:?}, and names {:?} which are not there",
            found.difference(&named),
            named.difference(&found)
        );
        worker.stop().await
    })
}

/// The tables whose rows have this text anywhere, also in bytes, which are written in hexadecimal.
pub(crate) async fn mentions(database: &PgPool, text: &str) -> anyhow::Result<Vec<String>> {
    let mut found = vec![];
    for table in tables(database).await? {
        let count = format!(r#"select count(*) from "{table}" entry where entry::text ilike any($1)"#);
        let patterns = [format!("%{text}%"), format!("%{}%", hex(text))];
        let count = sqlx::query_scalar(sqlx::AssertSqlSafe(count)).bind(&patterns[..]);
        let count: i64 = count.fetch_one(database).await.with_context(|| table.clone())?;
        if count > 0 {
            found.push(table);
        }
    }
    Ok(found)
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

async fn tables(database: &PgPool) -> anyhow::Result<Vec<String>> {
    let tables = "select table_name::text from information_schema.tables
                  where table_schema = 'public' and table_type = 'BASE TABLE'";
    Ok(sqlx::query_scalar(tables).fetch_all(database).await?)
}

/// The columns that could hold personal data: texts, and what may have texts in it.
async fn columns(database: &PgPool) -> anyhow::Result<BTreeSet<String>> {
    let columns = "select table_name || '.' || column_name from information_schema.columns
                   where table_schema = 'public' and table_name <> '_sqlx_migrations'
                     and data_type in ('text', 'character varying', 'json', 'jsonb', 'bytea', 'ARRAY')";
    let columns: Vec<String> = sqlx::query_scalar(columns).fetch_all(database).await?;
    Ok(columns.into_iter().collect())
}
