//! Orders, sales and the ledger can be looked up, and say what happened.

use anyhow::{Context, ensure};
use holdfast_schemas::{ledger, topics};
use holdfast_tests::kit::{Kit, until};
use serde_json::{Value, json};
use sqlx::Row;
use uuid::Uuid;

use crate::checkout::{CARD, PRICE, REFUSED, Shop, check_out, ends, fill, list_in};
use crate::support::DEADLINE;
use crate::users::call;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![orders_sales_and_the_ledger_say_what_happened];

/// Two seats of one show and one of another, in these orders.
const GALA: &str = "orders/gala";
const OTHER: &str = "orders/other";

fn orders_sales_and_the_ledger_say_what_happened(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "orders/shop").await?;
        let price = json!({ "amount": PRICE, "currency": "EUR" });
        let tickets: Vec<_> = ["a", "b", "c", "d", "free"]
            .map(|name| shop.id(name))
            .into_iter()
            .collect();
        for (ticket, show) in tickets.iter().zip([GALA, GALA, OTHER, GALA, GALA]) {
            list_in(kit, show, ticket, &price).await?;
        }
        // Seats of both shows, refunded in part; one seat, refunded in full; one that comes to nothing and stays held.
        for (order, seats, method, state) in [
            ("both", &tickets[1..3], CARD, "completed"),
            ("back", &tickets[..1], CARD, "completed"),
            ("nothing", &tickets[3..4], REFUSED, "failed"),
        ] {
            fill(kit, &shop.user, seats, Some(3_600)).await?;
            let body = json!({ "checkout": shop.id(order), "tickets": seats, "payment_method": method });
            check_out(kit, &shop.user, body).await?;
            ends(kit, &shop.id(order), state).await?;
        }
        for (order, amount, state) in [("both", 700, "completed"), ("back", PRICE, "refunded")] {
            shop.simulator.refund(&shop.payment(order)?, amount)?;
            let refunded = json!({ "refunded": { "amount": amount, "currency": "EUR" } });
            let event = shop.tell(order, "refunded", refunded).await?;
            shop.took(&event).await?;
            ends(kit, &shop.id(order), state).await?;
        }
        the_orders_are_listed(kit, &shop).await?;
        the_sales_add_up(kit, &shop).await?;
        the_ledger_has_its_entries(kit, &shop).await?;
        shop.close().await
    })
}

async fn the_orders_are_listed(kit: &Kit, shop: &Shop<'_>) -> anyhow::Result<()> {
    let expected = [
        ("nothing", "failed", 0),
        ("back", "refunded", PRICE),
        ("both", "completed", 700),
    ];
    let is_expected = |order: &Value, (name, state, refunded): (&str, &str, i64)| {
        order["checkout"] == *shop.id(name) && order["state"] == state && order["refunded"] == refunded
    };
    let all = asked(kit, shop, &json!({})).await?;
    let orders = all["orders"].as_array().context("no orders")?;
    ensure!(orders.len() == 3 && all["next"].is_null(), "{all}");
    ensure!(
        orders
            .iter()
            .zip(expected)
            .all(|(order, expected)| is_expected(order, expected)),
        "{all}"
    );
    let both = &orders[2];
    let seats = both["seats"].as_array().context("no seats")?;
    ensure!(
        both["total"] == 2 * PRICE && both["user"] == *shop.user && seats.len() == 2 && seats[1]["show"] == OTHER,
        "{both}"
    );
    ensure!(
        orders[0]["failure"] == "declined" && orders[0]["code"].is_string(),
        "{all}"
    );

    // Page by page, the same.
    let mut before = Value::Null;
    for (number, expected) in expected.into_iter().enumerate() {
        let page = asked(kit, shop, &json!({ "before": before, "limit": 1 })).await?;
        let orders = page["orders"].as_array().context("no orders")?;
        ensure!(orders.len() == 1 && is_expected(&orders[0], expected), "{page}");
        ensure!(page["next"].is_null() == (number == 2), "{page}");
        before = page["next"].clone();
    }
    let (status, said) = call(kit, &[], "Account", &shop.user, "orders", &json!({ "limit": 101 })).await?;
    ensure!(status == 400 && said.to_string().contains("limit"), "{status}: {said}");

    let by_command = admin(kit, &["orders", "--user", &shop.user, "--json"]).await?;
    ensure!(serde_json::from_str::<Value>(&by_command)? == all, "{by_command}");
    let of_other = admin(kit, &["orders", "--show", OTHER, "--json"]).await?;
    let of_other: Value = serde_json::from_str(&of_other)?;
    ensure!(of_other["orders"] == json!([both]), "{of_other}");
    let table = admin(kit, &["orders", "--show", GALA, "--limit", "2"]).await?;
    let next = format!("--before {}", shop.id("back"));
    ensure!(table.contains("2 orders") && table.contains(&next), "{table}");
    let rest = admin(kit, &["orders", "--show", GALA, "--before", &shop.id("back")]).await?;
    ensure!(rest.contains("1 orders") && rest.contains(&shop.id("both")), "{rest}");
    Ok(())
}

async fn the_sales_add_up(kit: &Kit, shop: &Shop<'_>) -> anyhow::Result<()> {
    let sales = admin(kit, &["sales", "--show", GALA, "--json"]).await?;
    let expected = json!({
        "show": GALA, "available": 2, "held": 1, "sold": 1, "withdrawn": 0,
        "currencies": [{
            "currency": "EUR", "seats": 1, "revenue": PRICE, "returned_seats": 1, "returned": PRICE, "refunded_in_part": 0,
            "refunded_in_part_of_mixed": 700,
        }],
    });
    ensure!(serde_json::from_str::<Value>(&sales)? == expected, "{sales}");
    fill(kit, &shop.user, &[shop.id("free")], Some(3_600)).await?;
    let table = admin(kit, &["sales", "--show", GALA]).await?;
    ensure!(
        table.contains("held      2\n") && table.contains("available 1\n"),
        "{table}"
    );
    Ok(())
}

/// The view has the movements, and the topic has each of them once, in order, by the checkout's key.
async fn the_ledger_has_its_entries(kit: &Kit, shop: &Shop<'_>) -> anyhow::Result<()> {
    let database = kit.stack.postgres.connect().await?;
    for (order, expected) in [
        (
            "both",
            &[
                ("capture", "provider", "sales", 2 * PRICE),
                ("partial_refund", "refunds", "provider", 700),
            ][..],
        ),
        (
            "back",
            &[
                ("capture", "provider", "sales", PRICE),
                ("refund", "sales", "provider", PRICE),
            ],
        ),
        ("nothing", &[]),
    ] {
        let checkout = shop.id(order);
        let view = "select movement, user_id, payment, kind, to_account, from_account, amount, currency, moved_at, told
                    from ledger_entries where checkout = $1 order by number";
        let rows = sqlx::query(view).bind(&checkout).fetch_all(&database).await?;
        let said = |place: usize, column: &str| rows[place].get::<String, _>(column);
        ensure!(rows.len() == expected.len(), "{order}: {} movements", rows.len());
        let told = until("each movement is told", DEADLINE, async || {
            let records = kit.stack.kafka.read(topics::LEDGER_ENTRIES).await?;
            let entries = records
                .iter()
                .filter(|record| record.key.as_deref() == Some(checkout.as_bytes()));
            let entries: Result<Vec<_>, _> = entries
                .map(|record| ledger::Entry::from_json(record.value.as_deref().unwrap_or_default()))
                .collect();
            let entries = entries?;
            ensure!(entries.len() == expected.len(), "{entries:?}");
            anyhow::Ok(entries)
        })
        .await?;
        for (place, ((kind, to, from, amount), entry)) in expected.iter().zip(&told).enumerate() {
            let row = &rows[place];
            ensure!(
                said(place, "kind") == *kind
                    && said(place, "to_account") == *to
                    && said(place, "from_account") == *from,
                "{order}, {place}"
            );
            ensure!(
                row.get::<i64, _>("amount") == *amount && said(place, "currency") == "EUR",
                "{order}, {place}"
            );
            ensure!(
                said(place, "user_id") == shop.user && said(place, "payment") == shop.payment(order)?,
                "{order}, {place}"
            );
            ensure!(row.get::<bool, _>("told"), "{order}, {place}");
            ensure!(
                entry.id.0 == row.get::<Uuid, _>("movement"),
                "{order}, {place}: {entry:?}"
            );
            let moved_at: time::OffsetDateTime = row.get("moved_at");
            let data = &entry.data;
            ensure!(
                entry.checkout.as_str() == checkout
                    && entry.time == moved_at
                    && data.kind.as_str() == *kind
                    && data.to.as_str() == *to
                    && data.from.as_str() == *from
                    && data.amount.amount() == *amount,
                "{order}, {place}: {entry:?}"
            );
        }
    }
    database.close().await;
    Ok(())
}

/// What the back office is answered.
async fn asked(kit: &Kit, shop: &Shop<'_>, body: &Value) -> anyhow::Result<Value> {
    let (status, answer) = call(kit, &[], "Account", &shop.user, "orders", body).await?;
    ensure!(status == 200, "{status}: {answer}");
    Ok(answer)
}

/// What an operator's command prints.
async fn admin(kit: &Kit, words: &[&str]) -> anyhow::Result<String> {
    let launch = kit.stack.holdfast("admin", "orders");
    let launch = words.iter().fold(launch, |launch, word| launch.arg(word));
    let done = launch.output().await?;
    ensure!(done.status.success(), "{words:?}: {done:?}");
    Ok(String::from_utf8(done.stdout)?)
}
