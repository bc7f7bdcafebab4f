//! Checkouts in flight while the provider, the engine or the handlers change under them, and limits that two checkouts meet
//! at once.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use holdfast::store::{self, checkouts};
use holdfast_schemas::{UserOutcome, outcomes};
use holdfast_tests::kit::provider::{Call, Fault, ReceivedRequest};
use holdfast_tests::kit::{Kit, until};
use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;

use crate::admin;
use crate::checkout::{
    CARD, CONFIRMED, PRICE, REFUSED, Shop, check_out, end_invocation, ends, fill, free, has_ended, held, list_in,
    reaches, reason, sold, verbs,
};
use crate::mail::the_mail;
use crate::support::{DEADLINE, event, pay, told_of};
use crate::users::{added, call, has_credits, view};
use crate::workers::done;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_provider_that_is_away_for_long_holds_checkouts_up_and_loses_none,
    a_checkout_that_is_ended_while_it_sells_or_gives_back_leaves_nothing_behind,
    money_given_back_before_the_sale_is_known_is_told_once_it_is,
    who_waited_for_the_provider_meanwhile_writes_nothing_over_what_an_operator_settled,
    after_a_day_a_payment_is_looked_up_and_never_made_again,
    a_finished_checkout_that_the_engine_forgot_is_not_begun_again,
    nobody_gets_more_tickets_than_the_limits_allow,
    handlers_are_upgraded_while_checkouts_are_in_flight,
    a_column_that_a_later_release_adds_breaks_no_statement_that_is_prepared,
];

fn a_provider_that_is_away_for_long_holds_checkouts_up_and_loses_none(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let settings = [
            ("HOLDFAST_PROVIDER_TIMEOUT", "500ms"),
            ("HOLDFAST_RETRY_PAUSE", "500ms"),
        ];
        let shop = Shop::open_with(kit, "flight/away", &settings).await?;
        // In half of the cases the provider is silent for longer than the time-out, else it cannot be reached.
        let silent = Fault::Slow(Duration::from_secs(2));
        let orders = [
            // A refund or a cancellation whose answer is lost has taken effect all the same.
            (Call::Refund, "refund", Fault::Unavailable, CARD, None, "failed"),
            (Call::Create, "create", silent, CARD, None, "completed"),
            (Call::Confirm, "authorise", silent, CARD, None, "completed"),
            (Call::Capture, "capture", silent, CARD, None, "completed"),
            (Call::Retrieve, "get", silent, CONFIRMED, None, "completed"),
            // Another one spends the credits meanwhile, and without them nothing can be sold.
            (Call::Cancel, "cancel", Fault::Unavailable, CONFIRMED, Some(1), "failed"),
        ];
        let tickets = shop.tickets(orders.len() + 1).await?;
        fill(kit, &shop.user, &tickets, Some(3_600)).await?;
        pay(kit, &[added(&shop.id("credits"), &shop.user, 1)]).await?;
        has_credits(kit, &shop.user, 1).await?;
        let unknown = async |call: &str| {
            let metric = format!(r#"holdfast_provider_calls_total{{answer="unknown",call="{call}"}}"#);
            anyhow::Ok(shop.worker.metric(&metric).await?.unwrap_or_default())
        };
        let mut captures = 0.0;
        for ((call, name, fault, method, credits, _), ticket) in orders.iter().zip(&tickets) {
            let order = shop.id(name);
            shop.simulator.fail(*call, Some(&order), *fault, 4);
            shop.simulator.fail(*call, Some(&order), Fault::RequestLost, 1_000);
            if *call == Call::Refund {
                // The provider has captured the money; the worker does not know it when the checkout is cancelled.
                shop.simulator
                    .fail(Call::Capture, Some(&order), Fault::AnswerLost, 1_000);
            }
            let body = json!({ "checkout": order, "tickets": [ticket], "payment_method": method, "credits": credits });
            check_out(kit, &shop.user, body).await?;
            if *call == Call::Refund {
                until("the money is taken", DEADLINE, async || shop.paid(name, PRICE)).await?;
                end_invocation(kit, &order, "cancel").await?;
                reaches(kit, &order, "undoing").await?;
                captures = unknown("capture").await?;
            }
        }
        // One that fails twice only, for comparison.
        let (twice, seat) = (shop.id("twice"), tickets.last().context("no ticket")?);
        shop.simulator.fail(Call::Capture, Some(&twice), Fault::Unavailable, 2);
        let body = json!({ "checkout": twice, "tickets": [seat], "payment_method": CARD, "credits": 1 });
        check_out(kit, &shop.user, body).await?;
        captures += 2.0;
        reaches(kit, &shop.id("get"), "waiting").await?;
        shop.simulator.authenticate(&shop.payment("get")?, true)?;
        let amount = json!({ "amount": { "amount": PRICE, "currency": "EUR" } });
        shop.tell("get", "authorized", amount.clone()).await?;
        ends(kit, &twice, "completed").await?;
        reaches(kit, &shop.id("cancel"), "waiting").await?;
        shop.simulator.authenticate(&shop.payment("cancel")?, true)?;
        shop.tell("cancel", "authorized", amount).await?;
        for (_, name, ..) in orders {
            let others = if name == "capture" { captures } else { 0.0 };
            // The pauses between the last of these are the longest.
            until("the provider was called many times", DEADLINE, async || {
                let unknown = unknown(name).await?;
                ensure!(unknown >= others + 9.0, "{name}: {unknown}");
                Ok(())
            })
            .await?;
        }
        shop.simulator.heal();
        let ended = orders.iter().map(|(_, name, .., state)| (*name, *state));
        let database = kit.stack.postgres.connect().await?;
        for ((name, state), ticket) in ended.chain([("twice", "completed")]).zip(&tickets) {
            ends(kit, &shop.id(name), state).await?;
            let ticket = std::slice::from_ref(ticket);
            if state == "completed" {
                shop.paid(name, if name == "twice" { PRICE - 1 } else { PRICE })?;
                sold(kit, ticket).await?;
            } else {
                shop.paid(name, 0)?;
                // Of these two only the one that is refunded had sold its seat.
                if name == "refund" {
                    free(kit, ticket).await?;
                } else {
                    held(kit, &shop.user, ticket).await?;
                }
            }
            let payments = shop.simulator.payments_of(&shop.id(name));
            ensure!(payments.len() == 1, "{payments:?}");
            the_mail(kit, &database, &shop.id(name), state).await?;
        }
        database.close().await;
        shop.close().await
    })
}

fn a_checkout_that_is_ended_while_it_sells_or_gives_back_leaves_nothing_behind(kit: &Kit) -> anyhow::Result<()> {
    const CREDITS: i64 = 500;
    kit.block_on(async {
        let shop = Shop::open_with(kit, "flight/ended", &[("HOLDFAST_ABANDONED_AFTER", "2s")]).await?;
        pay(kit, &[added(&shop.id("credits"), &shop.user, CREDITS)]).await?;
        has_credits(kit, &shop.user, CREDITS).await?;
        for how in ["cancel", "kill"] {
            let tickets = shop.tickets_named(how, 2).await?;
            fill(kit, &shop.user, &tickets, Some(3_600)).await?;
            let [selling, undoing] = ["selling", "undoing"].map(|what| format!("{how}-{what}"));

            // Another session locks the user's account: the money is authorised, and the sale of the seats waits for the credits.
            let loyalty = kit.stack.postgres.connect_to_loyalty().await?;
            let mut account = loyalty.begin().await?;
            sqlx::query("select credits from accounts where user_id = $1 for update")
                .bind(&shop.user)
                .execute(&mut *account)
                .await?;
            let body = json!({
                "checkout": shop.id(&selling), "tickets": tickets[..1], "payment_method": CARD, "credits": CREDITS,
            });
            check_out(kit, &shop.user, body).await?;
            reaches(kit, &shop.id(&selling), "authorised").await?;
            end_invocation(kit, &shop.id(&selling), how).await?;
            until("it sells no more", DEADLINE, async || {
                let (_, view) = view(kit, "Checkout", &shop.id(&selling)).await?;
                ensure!(view["state"] == "undoing" || view["state"] == "failed", "{view}");
                Ok(())
            })
            .await?;
            account.rollback().await?;
            loyalty.close().await;

            shop.simulator
                .fail(Call::Cancel, Some(&shop.id(&undoing)), Fault::Unavailable, 1_000);
            let body = json!({ "checkout": shop.id(&undoing), "tickets": tickets[1..], "payment_method": REFUSED });
            check_out(kit, &shop.user, body).await?;
            reaches(kit, &shop.id(&undoing), "undoing").await?;
            end_invocation(kit, &shop.id(&undoing), how).await?;
            shop.simulator.heal();

            // A checkout that had failed before it was ended has failed for its own reason.
            let ended = ends(kit, &shop.id(&undoing), "failed").await?;
            ensure!(ended["reason"] == "declined", "{ended}");
            let ended = ends(kit, &shop.id(&selling), "failed").await?;
            let expected = if how == "cancel" { "cancelled" } else { "abandoned" };
            ensure!(ended["reason"] == expected, "{ended}");
            for name in [&selling, &undoing] {
                shop.paid(name, 0)?;
            }
            held(kit, &shop.user, &tickets).await?;
            has_credits(kit, &shop.user, CREDITS).await?;
        }
        shop.close().await
    })
}

fn money_given_back_before_the_sale_is_known_is_told_once_it_is(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "flight/early").await?;
        let tickets = shop.tickets(2).await?;
        fill(kit, &shop.user, &tickets, Some(3_600)).await?;
        let orders = [("part", 700, "completed"), ("whole", PRICE, "refunded")];
        for ((name, back, _), ticket) in orders.iter().zip(&tickets) {
            shop.simulator
                .fail(Call::Capture, Some(&shop.id(name)), Fault::AnswerLost, 1_000);
            let body = json!({ "checkout": shop.id(name), "tickets": [ticket], "payment_method": CARD });
            check_out(kit, &shop.user, body).await?;
            // The provider has captured the money, and the worker does not know it.
            until("the money is taken", DEADLINE, async || shop.paid(name, PRICE)).await?;
            shop.simulator.refund(&shop.payment(name)?, *back)?;
            let told = json!({ "refunded": { "amount": back, "currency": "EUR" } });
            let told = shop.tell(name, "refunded", told).await?;
            shop.took(&told).await?;
            reaches(kit, &shop.id(name), "sold").await?;
        }
        shop.simulator.heal();
        for (name, back, state) in orders {
            reaches(kit, &shop.id(name), state).await?;
            shop.paid(name, PRICE - back)?;
        }
        sold(kit, &tickets[..1]).await?;
        free(kit, &tickets[1..]).await?;
        let told = told_of::<UserOutcome>(kit, &shop.user, 7).await?;
        for (name, _, _) in orders {
            let of = |told: &&holdfast_schemas::Outcome<UserOutcome>| match &told.data {
                UserOutcome::CheckoutCompleted(outcomes::CheckoutCompleted { checkout, .. })
                | UserOutcome::PaymentRefunded(outcomes::PaymentRefunded { checkout, .. }) => {
                    checkout.as_str() == shop.id(name)
                }
                _ => false,
            };
            let told: Vec<_> = told.iter().filter(of).cloned().collect();
            ensure!(verbs(&told) == ["completed", "refunded"], "{told:?}");
        }
        shop.close().await
    })
}

fn who_waited_for_the_provider_meanwhile_writes_nothing_over_what_an_operator_settled(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open_with(kit, "flight/late", &[("HOLDFAST_PROVIDER_TIMEOUT", "30s")]).await?;
        let tickets = shop.tickets(1).await?;
        fill(kit, &shop.user, &tickets, Some(3_600)).await?;
        let order = shop.id("order");
        // The provider authorises at once, and its answer comes late.
        let late = Fault::Slow(Duration::from_secs(10));
        shop.simulator.fail(Call::Confirm, Some(&order), late, 1);
        let body = json!({ "checkout": order, "tickets": tickets, "payment_method": CARD });
        check_out(kit, &shop.user, body).await?;
        until("the money is set aside", DEADLINE, async || {
            let moved = shop.simulator.movements(&order);
            ensure!(!moved.is_empty(), "nothing moved");
            Ok(())
        })
        .await?;
        let settle = admin::by(shop.launch("admin").arg("checkout").arg("settle").arg(&order));
        done(settle.arg("--give-back")).await?;
        ends(kit, &order, "failed").await?;
        let heard = r#"holdfast_provider_calls_total{answer="ok",call="authorise"}"#;
        let before = shop.worker.metric(heard).await?;
        ensure!(before == Some(0.0), "the worker has heard before: {before:?}");
        until("the worker has heard", DEADLINE, async || {
            let heard = shop.worker.metric(heard).await?;
            ensure!(heard == Some(1.0), "{heard:?}");
            Ok(())
        })
        .await?;
        until("the workflow has ended", DEADLINE, async || {
            let finished = finished_runs(kit, &order).await?;
            ensure!(finished.len() == 1, "{finished:?}");
            Ok(())
        })
        .await?;
        let ended = ends(kit, &order, "failed").await?;
        ensure!(ended["reason"] == "settled", "{ended}");
        shop.paid("order", 0)?;
        held(kit, &shop.user, &tickets).await?;
        let told = told_of::<UserOutcome>(kit, &shop.user, 3).await?;
        ensure!(verbs(&told) == ["registered", "opened", "failed"], "{told:?}");
        shop.close().await
    })
}

fn after_a_day_a_payment_is_looked_up_and_never_made_again(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "flight/day").await?;
        let tickets = shop.tickets(2).await?;
        fill(kit, &shop.user, &tickets, Some(3_600)).await?;
        // One payment was made, and its answer was lost; the other request never arrived.
        let orders = [
            ("made", Fault::AnswerLost, "completed", PRICE),
            ("lost", Fault::RequestLost, "failed", 0),
        ];
        for ((name, fault, _, _), ticket) in orders.iter().zip(&tickets) {
            shop.simulator.fail(Call::Create, Some(&shop.id(name)), *fault, 1_000);
            let body = json!({ "checkout": shop.id(name), "tickets": [ticket], "payment_method": CARD });
            check_out(kit, &shop.user, body).await?;
        }
        until("the payment is made", DEADLINE, async || shop.payment("made").map(drop)).await?;
        until("the other request is lost", DEADLINE, async || {
            let asked = shop.simulator.asked();
            let creates = |request: &ReceivedRequest| request.method == "POST" && request.body.contains("lost");
            ensure!(asked.iter().any(creates), "{} requests", asked.len());
            Ok(())
        })
        .await?;
        let pool = kit.stack.postgres.connect().await?;
        let query = sqlx::query(
            "update checkouts set called_at = called_at - interval '1 day', version = version + 1 where checkout like 'flight/day/%'",
        );
        query.execute(&pool).await?;
        pool.close().await;
        shop.simulator.forget_keys();
        // A request to make a payment would be lost still.
        for (name, _, state, money) in orders {
            ends(kit, &shop.id(name), state).await?;
            shop.paid(name, money)?;
            let payments = shop.simulator.payments_of(&shop.id(name));
            ensure!(payments.len() == usize::from(money > 0), "{payments:?}");
        }
        shop.simulator.heal();
        shop.close().await
    })
}

fn a_finished_checkout_that_the_engine_forgot_is_not_begun_again(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "flight/forgotten").await?;
        let tickets = shop.tickets(1).await?;
        fill(kit, &shop.user, &tickets, None).await?;
        let order = shop.id("order");
        let body = json!({ "checkout": order, "tickets": tickets, "payment_method": CARD });
        let asked = event(&shop.id("asked"), &shop.user, "checkout.requested", body.clone());
        pay(kit, std::slice::from_ref(&asked)).await?;
        ends(kit, &order, "completed").await?;

        // Twice: the same event again, and the same request under another id.
        for again in 0..2 {
            let finished = until("the engine is done with it", DEADLINE, async || {
                let finished = finished_runs(kit, &order).await?;
                ensure!(finished.len() == 1, "{finished:?}");
                Ok(finished)
            })
            .await?;
            for run in &finished {
                let url = format!("{}/invocations/{run}/purge", kit.stack.restate.admin());
                reqwest::Client::new().patch(url).send().await?.error_for_status()?;
            }
            until("the engine has forgotten it", DEADLINE, async || {
                let finished = finished_runs(kit, &order).await?;
                ensure!(finished.is_empty(), "{finished:?}");
                Ok(())
            })
            .await?;
            if again == 0 {
                pay(kit, std::slice::from_ref(&asked)).await?;
            } else {
                let reply = check_out(kit, &shop.user, body.clone()).await?;
                ensure!(reply["outcomes"] == json!([]), "{reply}");
            }
            until("it was looked at again", DEADLINE, async || {
                let finished = finished_runs(kit, &order).await?;
                ensure!(finished.len() == 1, "{finished:?}");
                Ok(())
            })
            .await?;
        }
        let payments = shop.simulator.payments_of(&order);
        ensure!(payments.len() == 1, "{payments:?}");
        shop.paid("order", PRICE)?;
        sold(kit, &tickets).await?;
        let told = told_of::<UserOutcome>(kit, &shop.user, 3).await?;
        ensure!(verbs(&told) == ["registered", "opened", "completed"], "{told:?}");
        shop.close().await
    })
}

/// The workflows of a checkout that the engine still knows to have ended.
async fn finished_runs(kit: &Kit, checkout: &str) -> anyhow::Result<Vec<String>> {
    let query = format!(
        "select id from sys_invocation where target_service_name = 'Checkout' and target_service_key = '{checkout}' \
         and target_handler_name = 'run' and status = 'completed'"
    );
    let rows = kit.stack.restate.sql(&query).await?;
    let ids = rows.iter().filter_map(|row| row["id"].as_str().map(str::to_owned));
    Ok(ids.collect())
}

fn nobody_gets_more_tickets_than_the_limits_allow(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let limits = [("HOLDFAST_SHOW_LIMIT", "2"), ("HOLDFAST_CART_LIMIT", "3")];
        let shop = Shop::open_with(kit, "flight/limits", &limits).await?;
        let gala: Vec<_> = (0..3).map(|number| shop.id(&format!("gala-{number}"))).collect();
        let fair: Vec<_> = (0..2).map(|number| shop.id(&format!("fair-{number}"))).collect();
        let price = json!({ "amount": PRICE, "currency": "EUR" });
        try_join_all(gala.iter().map(|ticket| list_in(kit, "gala", ticket, &price))).await?;
        try_join_all(fair.iter().map(|ticket| list_in(kit, "fair", ticket, &price))).await?;
        let add = async |ticket: &str| {
            let body = json!({ "ticket": ticket, "hold_for": 3_600 });
            let (status, added) = call(kit, &[], "User", &shop.user, "addTicket", &body).await?;
            ensure!(status == 200, "{status}: {added}");
            anyhow::Ok(added["refused"]["reason"].as_str().unwrap_or_default().to_owned())
        };
        // The cart knows both limits.
        for (ticket, refused) in [
            (&gala[0], ""),
            (&gala[1], ""),
            (&gala[2], "show_limit"),
            (&fair[0], ""),
            (&fair[1], "cart_full"),
        ] {
            ensure!(add(ticket).await? == refused, "{ticket}");
        }
        free(kit, &[gala[2].clone(), fair[1].clone()]).await?;

        // A user who holds it all the same cannot buy it.
        let reserve = json!({ "user": shop.user, "hold_for": 3_600 });
        let (_, reply) = call(kit, &[], "Ticket", &gala[2], "reserve", &reserve).await?;
        ensure!(reason(&reply).is_empty(), "{reply}");
        let body = json!({ "checkout": shop.id("three"), "tickets": gala, "payment_method": CARD });
        let reply = check_out(kit, &shop.user, body).await?;
        ensure!(reason(&reply) == "show_limit", "{reply}");

        // Two checkouts that keep the limit each, but not together: the first to sell wins, the other one is undone.
        for (name, tickets) in [("one", &gala[..1]), ("two", &gala[1..])] {
            let body = json!({ "checkout": shop.id(name), "tickets": tickets, "payment_method": CONFIRMED });
            let reply = check_out(kit, &shop.user, body).await?;
            ensure!(reason(&reply).is_empty(), "{reply}");
        }
        for name in ["one", "two"] {
            reaches(kit, &shop.id(name), "waiting").await?;
            shop.simulator.authenticate(&shop.payment(name)?, true)?;
        }
        let amount = json!({ "amount": { "amount": PRICE, "currency": "EUR" } });
        tokio::try_join!(
            shop.tell("one", "authorized", amount.clone()),
            shop.tell("two", "authorized", amount)
        )?;
        let mut bought = 0;
        for (name, tickets) in [("one", &gala[..1]), ("two", &gala[1..])] {
            let ended = has_ended(kit, &shop.id(name)).await?;
            if ended["state"] == "completed" {
                bought += tickets.len();
                sold(kit, tickets).await?;
                shop.paid(name, PRICE * tickets.len() as i64)?;
            } else {
                ensure!(ended["reason"] == "show_limit_reached", "{ended}");
                held(kit, &shop.user, tickets).await?;
                shop.paid(name, 0)?;
            }
        }
        ensure!((1..=2).contains(&bought), "{bought} bought");
        shop.close().await
    })
}

fn handlers_are_upgraded_while_checkouts_are_in_flight(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "flight/upgrade").await?;
        let before = deployment_of(kit, "Checkout").await?;
        let tickets = shop.tickets(6).await?;
        fill(kit, &shop.user, &tickets[..5], Some(3_600)).await?;
        fill(kit, &shop.user, &tickets[5..], Some(5)).await?;
        let buy = async |name: &str, ticket: &String, method: &str| {
            let body = json!({ "checkout": shop.id(name), "tickets": [ticket], "payment_method": method });
            check_out(kit, &shop.user, body).await.map(drop)
        };
        // Begun by the old handlers: one waits for the customer, one for the provider. And a cart's timer runs.
        buy("waits", &tickets[0], CONFIRMED).await?;
        shop.simulator
            .fail(Call::Capture, Some(&shop.id("tries")), Fault::Unavailable, 1_000);
        buy("tries", &tickets[1], CARD).await?;
        reaches(kit, &shop.id("waits"), "waiting").await?;
        reaches(kit, &shop.id("tries"), "sold").await?;

        // The new handlers, at an address of their own. A changed setting stands for a new version: Restate sees another
        // deployment.
        let address = format!("127.0.0.1:{}", kit.stack.ports.get("upgraded-serve")?);
        let url = format!("http://{address}");
        let new = |subcommand: &str, version: &str| {
            let launch = shop.launch_as(subcommand, &format!("{subcommand}-{version}"));
            let launch = launch.env("HOLDFAST_RETRY_PAUSE", version);
            launch
                .env("HOLDFAST_SERVE_LISTEN", &address)
                .env("HOLDFAST_SERVE_URL", &url)
        };
        let serve = new("serve", "1s").start().await?;
        done(new("register", "1s")).await?;
        let after = deployment_of(kit, "Checkout").await?;
        ensure!(before != after, "the new handlers are not in use");
        buy("new", &tickets[2], CARD).await?;
        ends(kit, &shop.id("new"), "completed").await?;

        // The old handlers finish the invocations that they began.
        let pinned = pinned_to(kit, &before).await?;
        ensure!(pinned == 2, "{pinned} invocations are left to the old handlers");
        // On a quick way back and forth nobody waits for that: these handlers are the registered ones.
        done(shop.launch("register")).await?;
        ensure!(deployment_of(kit, "Checkout").await? == before, "the way back");
        done(new("register", "1s")).await?;
        ensure!(deployment_of(kit, "Checkout").await? == after, "and forth");
        shop.simulator.heal();
        let confirm = async |name: &str| {
            shop.simulator.authenticate(&shop.payment(name)?, true)?;
            let amount = json!({ "amount": { "amount": PRICE, "currency": "EUR" } });
            shop.tell(name, "authorized", amount).await.map(drop)
        };
        confirm("waits").await?;
        for name in ["waits", "tries"] {
            ends(kit, &shop.id(name), "completed").await?;
        }
        until("the old handlers have drained", DEADLINE, async || {
            let pinned = pinned_to(kit, &before).await?;
            ensure!(pinned == 0, "{pinned}");
            Ok(())
        })
        .await?;
        free(kit, &tickets[5..]).await?;
        // Not by the Reaper alone: the cart's own timer has removed the ticket.
        until("the cart lets go of what has ended", DEADLINE, async || {
            let cart = kept_cart(kit, &shop.user).await?;
            ensure!(cart.contains(&tickets[4]) && !cart.contains(&tickets[5]), "{cart}");
            Ok(())
        })
        .await?;

        // Then they can go.
        let pruned = new("register", "1s").arg("--prune").output().await?;
        let said = String::from_utf8_lossy(&pruned.stdout);
        let gone = format!(
            "removed    earlier handlers at http://127.0.0.1:{}",
            kit.stack.ports.get("serve")?
        );
        ensure!(pruned.status.success() && said.contains(&gone), "{pruned:?}");
        shop.worker.stop().await?;
        let (gate, relay) = tokio::try_join!(
            shop.launch_as("gate", "upgraded-gate").start(),
            shop.launch_as("relay", "upgraded-relay").start()
        )?;
        buy("alone", &tickets[3], CARD).await?;
        ends(kit, &shop.id("alone"), "completed").await?;

        // New handlers at the same address are not used before the invocations under way have ended.
        buy("last", &tickets[4], CONFIRMED).await?;
        reaches(kit, &shop.id("last"), "waiting").await?;
        serve.kill()?;
        let serve = new("serve", "2s").start().await?;
        let register = new("register", "2s").spawn()?;
        let says = async |what: &str| {
            until(&format!("register says {what:?}"), DEADLINE, async || {
                let said = std::fs::read_to_string(register.log())?;
                ensure!(said.contains(what), "{said}");
                Ok(())
            })
            .await
        };
        says("1 invocations of Checkout/run began with the old ones").await?;
        ensure!(register.runs(), "{}", register.last_words());
        confirm("last").await?;
        ends(kit, &shop.id("last"), "completed").await?;
        let status = register.wait(DEADLINE).await?;
        ensure!(status.success(), "{}", register.last_words());
        says("new handlers of").await?;

        sold(kit, &tickets[..5]).await?;
        for name in ["waits", "tries", "new", "alone", "last"] {
            shop.paid(name, PRICE)?;
        }
        shop.is_clean().await?;
        tokio::try_join!(serve.stop(), gate.stop(), relay.stop()).map(drop)
    })
}

/// The deployment to which Restate sends new invocations of a service.
pub(crate) async fn deployment_of(kit: &Kit, service: &str) -> anyhow::Result<String> {
    let url = format!("{}/services/{service}", kit.stack.restate.admin());
    let service: Value = reqwest::get(url).await?.error_for_status()?.json().await?;
    Ok(service["deployment_id"].as_str().context("no deployment")?.to_owned())
}

/// The cart as the engine keeps it, with tickets whose holds have ended.
pub(crate) async fn kept_cart(kit: &Kit, user: &str) -> anyhow::Result<String> {
    let query =
        format!("select value_utf8 from state where service_name = 'User' and service_key = '{user}' and key = 'cart'");
    let rows = kit.stack.restate.sql(&query).await?;
    let cart = rows.first().and_then(|row| row["value_utf8"].as_str());
    Ok(cart.context("no cart")?.to_owned())
}

/// Unfinished invocations that are pinned to a deployment.
async fn pinned_to(kit: &Kit, deployment: &str) -> anyhow::Result<u64> {
    let query = format!(
        "select count(*) as invocations from sys_invocation_status \
         where pinned_deployment_id = '{deployment}' and status <> 'completed'"
    );
    let rows = kit.stack.restate.sql(&query).await?;
    rows.first()
        .and_then(|row| row["invocations"].as_u64())
        .context("no count")
}

fn a_column_that_a_later_release_adds_breaks_no_statement_that_is_prepared(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let postgres = &kit.stack.postgres;
        postgres
            .copy_database("template1", "later_release")
            .await?
            .close()
            .await;
        // One connection, which keeps what it has prepared.
        let later = PgPoolOptions::new().max_connections(1);
        let later = later.connect(&postgres.url_of("later_release")).await?;
        store::migrate(&later).await?;
        let nowhere = "flight/nowhere".parse()?;
        ensure!(checkouts::get(&later, &nowhere).await?.is_none());
        sqlx::query("alter table checkouts add column later integer not null default 0")
            .execute(&later)
            .await?;
        ensure!(checkouts::get(&later, &nowhere).await?.is_none());
        later.close().await;
        Ok(())
    })
}
