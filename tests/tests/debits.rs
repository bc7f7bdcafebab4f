//! Payments that the bank takes days for, and what the provider is told of the buyer.

use anyhow::{Context, ensure};
use holdfast_schemas::{UserOutcome, topics};
use holdfast_tests::kit::provider::{Delivery, Kind, Payment};
use holdfast_tests::kit::{Kit, until};
use serde_json::json;

use crate::checkout::{
    CARD, PRICE, Shop, check_out, end_invocation, ends, fill, free, give_up, held, list_in, reaches, reads, sold,
    withdrawn,
};
use crate::returns::admin_does;
use crate::support::{DEADLINE, clean_by, event, pay, told_of};
use crate::users::{call, has_credits};
use crate::webhook::{SECRET, listen};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_debit_keeps_its_seats_until_the_bank_has_decided_and_no_money_is_kept_without_them,
    a_cancelled_show_has_its_seats_at_once_and_gives_money_back_that_comes_later,
    a_debit_of_which_no_webhook_tells_and_that_nobody_follows_is_asked_for_again,
    the_provider_alone_is_told_which_customer_a_buyer_is_and_where_the_receipt_goes,
];

/// A bank account of which the bank says after days whether it pays.
const DEBIT: &str = "pm_successDelayed_de";

/// Seconds that are left of a hold in the last moment, in which seats are sold whose debit is pending.
const LAST_MOMENT: i64 = 29;

fn a_debit_keeps_its_seats_until_the_bank_has_decided_and_no_money_is_kept_without_them(
    kit: &Kit,
) -> anyhow::Result<()> {
    kit.block_on(async {
        let settings = [
            ("HOLDFAST_WEBHOOK_SECRET", SECRET),
            ("HOLDFAST_PROVIDER_METHODS", "card,sepa_debit"),
            ("HOLDFAST_CHECKOUT_HOLD", "0s"),
        ];
        let shop = Shop::open_with(kit, "debits", &settings).await?;
        listen(kit)?;
        kit.provider.deliver_always(Delivery::InOrder);
        let names = ["paid", "returned", "regretted", "regretted-unpaid"];
        let tickets = shop.tickets(names.len()).await?;
        let (kept, regretted) = tickets.split_at(2);
        fill(kit, &shop.user, kept, Some(LAST_MOMENT)).await?;
        fill(kit, &shop.user, regretted, Some(3_600)).await?;
        for (name, ticket) in names.iter().zip(&tickets) {
            let body = json!({ "checkout": shop.id(name), "tickets": [ticket], "payment_method": DEBIT });
            check_out(kit, &shop.user, body).await?;
        }
        for name in &names[..2] {
            reaches(kit, &shop.id(name), "sold").await?;
        }
        sold(kit, kept).await?;
        // Where the hold goes on, the buyer may give up; the bank cannot be stopped.
        for name in &names[2..] {
            reaches(kit, &shop.id(name), "processing").await?;
            give_up(kit, &shop.id(name)).await?;
            reaches(kit, &shop.id(name), "undoing").await?;
        }
        wait_for_the_bank(&shop, names.len()).await?;
        let report = clean_by(|| shop.launch("verify")).await?;
        ensure!(report["stuck"] == 0 && report["unfinished"] == names.len(), "{report}");
        reads(kit, &shop.user, "completed", 0).await?;

        for (name, is_paid) in names.iter().zip([true, false, true, false]) {
            shop.simulator.end_debit(&shop.payment(name)?, is_paid)?;
        }
        ends(kit, &shop.id("paid"), "completed").await?;
        let failed = ends(kit, &shop.id("returned"), "failed").await?;
        ensure!(
            failed["reason"] == "declined" && failed["code"] == "insufficient_funds",
            "{failed}"
        );
        for name in &names[2..] {
            let failed = ends(kit, &shop.id(name), "failed").await?;
            ensure!(failed["reason"] == "cancelled", "{failed}");
        }
        sold(kit, &tickets[..1]).await?;
        free(kit, &tickets[1..2]).await?;
        held(kit, &shop.user, regretted).await?;
        for (name, money) in names.iter().zip([PRICE, 0, 0, 0]) {
            shop.paid(name, money)?;
        }
        let returned = shop.simulator.movements(&shop.id("regretted"));
        ensure!(
            returned == [(Kind::Captured, PRICE), (Kind::Refunded, PRICE)],
            "{returned:?}"
        );
        reads(kit, &shop.user, "completed", 1).await?;
        reads(kit, &shop.user, "failed", 3).await?;
        kit.provider.webhooks_to_nobody();
        shop.close().await
    })
}

fn a_cancelled_show_has_its_seats_at_once_and_gives_money_back_that_comes_later(kit: &Kit) -> anyhow::Result<()> {
    const SHOW: &str = "debits/gala";
    const CREDITS: i64 = 500;
    kit.block_on(async {
        let settings = [
            ("HOLDFAST_WEBHOOK_SECRET", SECRET),
            ("HOLDFAST_PROVIDER_METHODS", "card,sepa_debit"),
            ("HOLDFAST_CHECKOUT_HOLD", "0s"),
        ];
        let shop = Shop::open_with(kit, "debits/show", &settings).await?;
        listen(kit)?;
        kit.provider.deliver_always(Delivery::InOrder);
        let names = ["pays", "returns", "young"];
        let tickets = names.map(|name| shop.id(name));
        let price = json!({ "amount": PRICE, "currency": "EUR" });
        for ticket in &tickets {
            list_in(kit, SHOW, ticket, &price).await?;
        }
        shop.has(2 * CREDITS).await?;
        fill(kit, &shop.user, &tickets[..2], Some(LAST_MOMENT)).await?;
        fill(kit, &shop.user, &tickets[2..], Some(3_600)).await?;
        for (name, ticket) in names.iter().zip(&tickets) {
            let mut body = json!({ "checkout": shop.id(name), "tickets": [ticket], "payment_method": DEBIT });
            if *name != "young" {
                body["credits"] = json!(CREDITS);
            }
            check_out(kit, &shop.user, body).await?;
        }
        for (name, state) in names.iter().zip(["sold", "sold", "processing"]) {
            reaches(kit, &shop.id(name), state).await?;
        }
        has_credits(kit, &shop.user, 0).await?;

        let said = admin_does(&shop, &["show", "cancel", SHOW]).await?;
        ensure!(said.contains("0 orders returned, 3 checkouts given up"), "{said}");
        for name in names {
            let line = format!("given back once the bank has decided, if it pays: {}", shop.id(name));
            ensure!(said.contains(&line), "{said}");
        }
        withdrawn(kit, &tickets).await?;
        has_credits(kit, &shop.user, 2 * CREDITS).await?;
        let report = clean_by(|| shop.launch("verify")).await?;
        ensure!(report["stuck"] == 0 && report["unfinished"] == names.len(), "{report}");

        for (name, is_paid) in names.iter().zip([true, false, true]) {
            shop.simulator.end_debit(&shop.payment(name)?, is_paid)?;
        }
        for name in names {
            let failed = ends(kit, &shop.id(name), "failed").await?;
            ensure!(failed["reason"] == "settled", "{failed}");
            shop.paid(name, 0)?;
        }
        withdrawn(kit, &tickets).await?;
        has_credits(kit, &shop.user, 2 * CREDITS).await?;
        reads(kit, &shop.user, "failed", names.len()).await?;
        kit.provider.webhooks_to_nobody();
        shop.close().await
    })
}

fn a_debit_of_which_no_webhook_tells_and_that_nobody_follows_is_asked_for_again(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let settings = [
            ("HOLDFAST_PROVIDER_METHODS", "card,sepa_debit"),
            ("HOLDFAST_CHECKOUT_HOLD", "0s"),
            ("HOLDFAST_ABANDONED_AFTER", "1s"),
        ];
        let shop = Shop::open_with(kit, "debits/alone", &settings).await?;
        kit.provider.webhooks_to_nobody();
        let names = ["paid", "returned"];
        let tickets = shop.tickets(names.len()).await?;
        fill(kit, &shop.user, &tickets, Some(LAST_MOMENT)).await?;
        for (name, ticket) in names.iter().zip(&tickets) {
            let body = json!({ "checkout": shop.id(name), "tickets": [ticket], "payment_method": DEBIT });
            check_out(kit, &shop.user, body).await?;
        }
        wait_for_the_bank(&shop, names.len()).await?;
        for (name, is_paid) in names.iter().zip([true, false]) {
            end_invocation(kit, &shop.id(name), "kill").await?;
            shop.simulator.end_debit(&shop.payment(name)?, is_paid)?;
        }
        // As if the hour had passed.
        let pool = kit.stack.postgres.connect().await?;
        let ids = names.map(|name| shop.id(name));
        sqlx::query(
            "update checkouts set ask_at = ask_at - interval '1 hour', version = version + 1 where checkout = any($1)",
        )
        .bind(&ids[..])
        .execute(&pool)
        .await?;
        pool.close().await;
        ends(kit, &ids[0], "completed").await?;
        let failed = ends(kit, &ids[1], "failed").await?;
        ensure!(failed["reason"] == "declined", "{failed}");
        sold(kit, &tickets[..1]).await?;
        free(kit, &tickets[1..]).await?;
        for (name, money) in names.iter().zip([PRICE, 0]) {
            shop.paid(name, money)?;
        }
        shop.close().await
    })
}

fn the_provider_alone_is_told_which_customer_a_buyer_is_and_where_the_receipt_goes(kit: &Kit) -> anyhow::Result<()> {
    const CUSTOMER: &str = "cus_Zorro";
    /// The provider has no such customer.
    const UNKNOWN: &str = "zorro";
    const ADDRESS: &str = "zorro@example.org";
    // Stripe sends nothing there.
    const LOCAL: &str = "zorro@localhost";
    kit.block_on(async {
        let shop = Shop::open_with(kit, "debits/payer", &[("HOLDFAST_PROVIDER_RECEIPTS", "true")]).await?;
        let user = shop.user.as_str();
        let tickets = shop.tickets(4).await?;
        fill(kit, user, &tickets, Some(3_600)).await?;
        let becomes = async |number: usize, address: &str| {
            let to = json!({ "to": { "email": address } });
            pay(
                kit,
                &[event(
                    &shop.id(&format!("profile-{number}")),
                    user,
                    "profile.changed",
                    to,
                )],
            )
            .await?;
            told_of::<UserOutcome>(kit, user, number).await
        };
        let buy = async |name: &str, ticket: &String| {
            let body = json!({ "checkout": shop.id(name), "tickets": [ticket], "payment_method": CARD });
            check_out(kit, user, body).await
        };
        let told = async |name: &str| {
            ends(kit, &shop.id(name), "completed").await?;
            let payments = shop.simulator.payments_of(&shop.id(name));
            let payment: &Payment = payments.first().context("nothing was paid")?;
            let asked = |name| payment.asked_for(name).map(str::to_owned);
            anyhow::Ok((asked("customer"), asked("receipt_email")))
        };
        let (customer, address) = (Some(CUSTOMER.to_owned()), Some(ADDRESS.to_owned()));
        becomes(2, ADDRESS).await?;
        buy("first", &tickets[0]).await?;
        ensure!(told("first").await? == (None, address.clone()), "first");
        let link = async |customer: &str, outcomes: usize| {
            let body = json!({ "customer": customer });
            let (status, reply) = call(kit, &[], "Account", user, "linkCustomer", &body).await?;
            let count = reply["outcomes"].as_array().map(Vec::len);
            ensure!(status == 200 && count == Some(outcomes), "{status}: {reply}");
            anyhow::Ok(())
        };
        link(UNKNOWN, 1).await?;
        buy("second", &tickets[1]).await?;
        let declined = reaches(kit, &shop.id("second"), "declined").await?;
        ensure!(declined["code"] == "resource_missing", "{declined}");
        link(CUSTOMER, 1).await?;
        link(CUSTOMER, 0).await?;
        let again = json!({ "payment_method": CARD });
        let (status, reply) = call(kit, &[], "Checkout", &shop.id("second"), "retry", &again).await?;
        ensure!(status == 200, "{status}: {reply}");
        ensure!(told("second").await? == (customer.clone(), address), "second");
        becomes(10, LOCAL).await?;
        buy("third", &tickets[2]).await?;
        ensure!(told("third").await? == (customer, None), "third");
        let (status, reply) = call(kit, &[], "Account", user, "erase", &json!({})).await?;
        ensure!(status == 200, "{status}: {reply}");
        // The ticket has left the cart, and is held.
        buy("fourth", &tickets[3]).await?;
        ensure!(told("fourth").await? == (None, None), "fourth");

        let log = std::fs::read_to_string(shop.worker.log())?;
        ensure!(!log.to_lowercase().contains("zorro"), "it stands in the log");
        for record in kit.stack.kafka.read(topics::PAYMENTS_OUTCOMES).await? {
            let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).to_lowercase();
            ensure!(!value.contains("zorro"), "{value}");
        }
        shop.close().await
    })
}

/// So many checkouts are counted as those that wait for the bank, and none as one that only Holdfast and the provider act on.
async fn wait_for_the_bank(shop: &Shop<'_>, checkouts: usize) -> anyhow::Result<()> {
    let count = async |state: &str| {
        let metric = format!("holdfast_checkouts{{state={state:?}}}");
        shop.worker.metric(&metric).await
    };
    until(
        "they are counted as those that wait for the bank",
        DEADLINE,
        async || {
            let found = (
                count("processing").await?,
                count("sold").await?,
                count("undoing").await?,
            );
            ensure!(found == (Some(checkouts as f64), Some(0.0), Some(0.0)), "{found:?}");
            Ok(())
        },
    )
    .await
}
