//! The payment provider's webhooks: they need nothing but configuration; an event that comes twice, late or out of order takes
//! effect once; and only the provider's signature is believed.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast::crash::Point;
use holdfast_schemas::topics;
use holdfast_tests::kit::provider::{Call, Delivery, Fault, KEY, sign};
use holdfast_tests::kit::{Holdfast, Kit, until};
use holdfast_tests::load::now;
use nix::sys::signal::Signal;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::checkout::{
    CARD, CONFIRMED, PRICE, Shop, check_out, end_invocation, ends, fill, forget, free, give_up, held, list, reaches,
    reads, sold,
};
use crate::crashes::done_again;
use crate::support::{DEADLINE, clean, clean_by, pay};
use crate::users::registered;
use crate::{Test, admin, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_customers_confirmation_comes_in_by_itself_and_completes_the_checkout,
    what_befalls_a_sale_at_the_provider_takes_effect_once_however_often_and_in_whatever_order_it_is_told,
    a_refund_that_is_told_before_its_checkout_has_completed_is_not_forgotten,
    a_dispute_that_is_told_before_the_capture_was_heard_of_is_booked_and_the_checkout_completes,
    a_refund_that_fails_later_is_undone_and_where_the_seats_are_gone_an_operator_is_asked_for,
    a_webhook_that_nobody_vouches_for_or_can_understand_is_refused_and_changes_nothing,
    while_kafka_is_away_no_webhook_is_acknowledged_and_none_is_lost,
    a_dispute_is_heard_as_soon_as_the_provider_says_whose_payment_it_is,
    a_webhook_in_hand_is_answered_before_the_process_ends,
    webhooks_take_effect_once_whatever_step_dies_or_is_repeated,
    without_a_secret_or_a_provider_nobody_takes_webhooks,
    secrets_that_are_replaced_in_their_files_count_without_a_restart,
];

pub(crate) const SECRET: &str = "whsec_proofs";

/// A card whose refunds are pending at first.
const REFUNDED_SLOWLY: &str = "pm_card_refundFail";

/// The largest body.
const LIMIT: usize = 1 << 20;

fn a_customers_confirmation_comes_in_by_itself_and_completes_the_checkout(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open_with(kit, "webhook/confirm", &[("HOLDFAST_WEBHOOK_SECRET", SECRET)]).await?;
        listen(kit)?;
        kit.provider.deliver_always(Delivery::Twice);
        let tickets = shop.tickets(3).await?;
        fill(kit, &shop.user, &tickets, Some(3_600)).await?;
        for (name, ticket, method) in [("yes", 0, CONFIRMED), ("no", 1, CONFIRMED), ("at-once", 2, CARD)] {
            let body = json!({ "checkout": shop.id(name), "tickets": [tickets[ticket]], "payment_method": method });
            check_out(kit, &shop.user, body).await?;
        }
        for (name, success, state) in [("yes", true, "completed"), ("no", false, "declined")] {
            reaches(kit, &shop.id(name), "waiting").await?;
            shop.simulator.authenticate(&shop.payment(name)?, success)?;
            reaches(kit, &shop.id(name), state).await?;
        }
        give_up(kit, &shop.id("no")).await?;
        for (name, state) in [("no", "failed"), ("at-once", "completed")] {
            ends(kit, &shop.id(name), state).await?;
        }
        sold(kit, &[tickets[0].clone(), tickets[2].clone()]).await?;
        held(kit, &shop.user, &tickets[1..2]).await?;
        for (name, money) in [("yes", PRICE), ("no", 0), ("at-once", PRICE)] {
            shop.paid(name, money)?;
        }
        is_told(kit, &shop, 2, "holdfast.payment.captured.v1").await?;
        kit.provider.webhooks_to_nobody();
        shop.close().await
    })
}

fn what_befalls_a_sale_at_the_provider_takes_effect_once_however_often_and_in_whatever_order_it_is_told(
    kit: &Kit,
) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "webhook/after").await?;
        whatever_befalls_a_sale_takes_effect_once(kit, shop).await
    })
}

/// Sales are refunded and disputed at the provider, which tells of it in every order.
pub(crate) async fn whatever_befalls_a_sale_takes_effect_once(kit: &Kit, shop: Shop<'_>) -> anyhow::Result<()> {
    let role = role(kit, &shop).await?;
    let before = dead_letters(kit).await?;
    let orders = [Delivery::InOrder, Delivery::Backwards, Delivery::Twice];
    for (round, delivery) in orders.into_iter().enumerate() {
        let name = |what: &str| format!("{what}-{round}");
        let [parted, returned, won, lost, asked] = ["parted", "returned", "won", "lost", "asked"].map(name);
        let names = [&parted, &returned, &won, &lost, &asked];
        let tickets = shop.tickets_named(&round.to_string(), names.len()).await?;
        buy(kit, &shop, &names, &tickets).await?;
        let at_the_provider = |name: &str| shop.payment(name);
        shop.simulator.refund(&at_the_provider(&parted)?, 700)?;
        shop.simulator.refund(&at_the_provider(&parted)?, 300)?;
        let refunds = shop.simulator.refunds_of(&at_the_provider(&parted)?);
        let last = refunds.last().context("nothing was refunded")?;
        shop.simulator.end_refund(&last.id, false)?;
        shop.simulator.refund(&at_the_provider(&returned)?, 700)?;
        shop.simulator.refund(&at_the_provider(&returned)?, PRICE - 700)?;
        for (name, is_won) in [(&won, true), (&lost, false)] {
            shop.simulator.dispute(&at_the_provider(name)?)?;
            shop.simulator.close_dispute(&at_the_provider(name)?, is_won)?;
        }
        // The bank asks, and is content; then it disputes the same payment after all.
        let payment = at_the_provider(&asked)?;
        shop.simulator.inquire(&payment)?;
        shop.simulator.close_inquiry(&payment)?;
        shop.simulator.dispute(&payment)?;
        shop.simulator.close_dispute(&payment, true)?;
        // And one that becomes a dispute.
        shop.simulator.inquire(&payment)?;
        shop.simulator.escalate(&payment)?;
        let told = shop.simulator.deliver(delivery).await?;
        ensure!(told > 0, "nothing was told");
        shop.simulator.deliver_again().await?;
        ends(kit, &shop.id(&returned), "refunded").await?;
        free(kit, &tickets[1..2]).await?;
        sold(kit, &[&tickets[..1], &tickets[2..]].concat()).await?;
        shop.paid(&parted, PRICE - 700)?;
        shop.paid(&returned, 0)?;
    }
    // Of events in reverse order those that come too late take no effect: the first refund of two, and what a dispute was before.
    reads(kit, &shop.user, "refunded", 4 + 2 + 4).await?;
    reads(kit, &shop.user, "refund_failed", 3).await?;
    reads(kit, &shop.user, "disputed", 14 + 8 + 14).await?;
    // The receiver looks up the same for a dispute each time: no event id has come with two contents.
    let after = dead_letters(kit).await?;
    ensure!(before == after, "{before} dead letters have become {after}");
    role.stop().await?;
    shop.close().await
}

fn a_refund_that_is_told_before_its_checkout_has_completed_is_not_forgotten(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "webhook/early").await?;
        let role = role(kit, &shop).await?;
        let tickets = shop.tickets(2).await?;
        fill(kit, &shop.user, &tickets, Some(3_600)).await?;
        let orders = [("parted", 700), ("returned", PRICE)];
        for ((name, refund), ticket) in orders.iter().zip(&tickets) {
            is_captured_unheard(kit, &shop, name, ticket).await?;
            shop.simulator.refund(&shop.payment(name)?, *refund)?;
        }
        shop.simulator.deliver(Delivery::InOrder).await?;
        // All webhooks are handled before the provider answers again.
        clean(kit).await?;
        shop.simulator.heal();
        ends(kit, &shop.id("parted"), "completed").await?;
        ends(kit, &shop.id("returned"), "refunded").await?;
        reads(kit, &shop.user, "completed", 2).await?;
        reads(kit, &shop.user, "refunded", 2).await?;
        sold(kit, &tickets[..1]).await?;
        free(kit, &tickets[1..]).await?;
        shop.paid("parted", PRICE - 700)?;
        shop.paid("returned", 0)?;
        role.stop().await?;
        shop.close().await
    })
}

fn a_dispute_that_is_told_before_the_capture_was_heard_of_is_booked_and_the_checkout_completes(
    kit: &Kit,
) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "webhook/hasty").await?;
        let role = role(kit, &shop).await?;
        let names = ["won", "lost"];
        let tickets = shop.tickets(names.len()).await?;
        fill(kit, &shop.user, &tickets, Some(3_600)).await?;
        for (name, ticket) in names.iter().zip(&tickets) {
            is_captured_unheard(kit, &shop, name, ticket).await?;
            shop.simulator.dispute(&shop.payment(name)?)?;
        }
        // One is even decided.
        shop.simulator.close_dispute(&shop.payment("lost")?, false)?;
        shop.simulator.deliver(Delivery::InOrder).await?;
        reads(kit, &shop.user, "disputed", 2 + 3).await?;
        reads(kit, &shop.user, "completed", 0).await?;
        shop.simulator.heal();
        for name in names {
            ends(kit, &shop.id(name), "completed").await?;
        }
        shop.simulator.close_dispute(&shop.payment("won")?, true)?;
        shop.simulator.deliver(Delivery::Twice).await?;
        reads(kit, &shop.user, "disputed", 3 + 3).await?;
        sold(kit, &tickets).await?;
        for (name, line) in [("won", "2500 won reinstated"), ("lost", "2500 lost withdrawn")] {
            shop.paid(name, PRICE)?;
            let shown = admin::done(kit, &["checkout", "show", &shop.id(name)]).await?;
            ensure!(shown.contains(line), "{shown}");
        }
        role.stop().await?;
        shop.close().await
    })
}

fn a_refund_that_fails_later_is_undone_and_where_the_seats_are_gone_an_operator_is_asked_for(
    kit: &Kit,
) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "webhook/refunds").await?;
        let role = role(kit, &shop).await?;
        let names = ["parted", "returned", "undone"];
        let tickets = shop.tickets(names.len()).await?;
        fill(kit, &shop.user, &tickets, Some(3_600)).await?;
        // The money of one is taken, but the worker does not know it when the checkout is cancelled: it gives the money back.
        let undone = shop.id("undone");
        shop.simulator
            .fail(Call::Capture, Some(&undone), Fault::AnswerLost, 1_000);
        for (name, ticket) in names.iter().zip(&tickets) {
            let body = json!({ "checkout": shop.id(name), "tickets": [ticket], "payment_method": REFUNDED_SLOWLY });
            check_out(kit, &shop.user, body).await?;
            if *name != "undone" {
                ends(kit, &shop.id(name), "completed").await?;
            }
        }
        until("the money is taken", DEADLINE, async || shop.paid("undone", PRICE)).await?;
        end_invocation(kit, &undone, "cancel").await?;
        ends(kit, &undone, "failed").await?;

        // Refunds on their way are booked where the seats were given up, and nowhere else.
        shop.simulator.refund(&shop.payment("parted")?, 700)?;
        shop.simulator.refund(&shop.payment("returned")?, PRICE)?;
        shop.simulator.deliver(Delivery::InOrder).await?;
        reads(kit, &shop.user, "refunded", 0).await?;
        sold(kit, &tickets[..2]).await?;
        free(kit, &tickets[2..]).await?;
        shop.is_clean().await?;

        let end = |name: &str, success: bool| {
            let refunds = shop.simulator.refunds_of(&shop.payment(name)?);
            let last = refunds.last().context("nothing was refunded")?;
            shop.simulator.end_refund(&last.id, success)
        };
        end("parted", false)?;
        end("returned", true)?;
        end("undone", true)?;
        shop.simulator.deliver(Delivery::InOrder).await?;
        ends(kit, &shop.id("returned"), "refunded").await?;
        reads(kit, &shop.user, "refunded", 1).await?;
        reads(kit, &shop.user, "refund_failed", 1).await?;
        free(kit, &tickets[1..]).await?;
        sold(kit, &tickets[..1]).await?;
        shop.is_clean().await?;

        // Five days later the others fail as well, when the seats are given up.
        five_days_pass(kit, &shop, &names).await?;
        end("returned", false)?;
        end("undone", false)?;
        shop.simulator.deliver(Delivery::Twice).await?;
        reads(kit, &shop.user, "refund_failed", 3).await?;
        reads(kit, &shop.user, "stuck", 2).await?;
        let listed = admin::done(kit, &["checkout", "list"]).await?;
        for (name, state) in [("returned", "refunded"), ("undone", "failed")] {
            let id = shop.id(name);
            let row = [state, "refund_failed", &id];
            let is_there = listed.lines().any(|line| line.split_whitespace().eq(row));
            ensure!(is_there, "{listed}");
        }
        let stuck = r#"holdfast_checkouts{state="stuck"}"#;
        until("an operator is asked for", DEADLINE, async || {
            let counted = shop.worker.metric(stuck).await?;
            ensure!(counted == Some(2.0), "{counted:?}");
            Ok(())
        })
        .await?;
        let report = clean_by(|| shop.launch("verify")).await?;
        ensure!(report["stuck"] == 2, "{report}");

        // Another refund takes the place of the one that has failed.
        for name in ["returned", "undone"] {
            shop.simulator.refund(&shop.payment(name)?, PRICE)?;
            end(name, true)?;
        }
        shop.simulator.deliver(Delivery::InOrder).await?;
        reads(kit, &shop.user, "refunded", 2).await?;
        for (name, money) in [("parted", PRICE), ("returned", 0), ("undone", 0)] {
            shop.paid(name, money)?;
        }
        role.stop().await?;
        shop.close().await
    })
}

fn a_webhook_that_nobody_vouches_for_or_can_understand_is_refused_and_changes_nothing(kit: &Kit) -> anyhow::Result<()> {
    const NEXT: &str = "whsec_next";
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    kit.block_on(async {
        let shop = Shop::open(kit, "webhook/refused").await?;
        let secrets = format!("{NEXT},{SECRET}");
        let role = shop
            .beside("webhook")
            .env("HOLDFAST_WEBHOOK_SECRET", &secrets)
            .start()
            .await?;
        let metadata = json!({ "checkout": shop.id("nowhere"), "user": shop.user });
        let captured = |id: &str, metadata: &Value| {
            let object = json!({ "id": "pi_none", "amount_received": 100, "currency": "eur", "metadata": metadata });
            told(&shop.id(id), "payment_intent.succeeded", &object)
        };
        let half = tokio::spawn(post_half(kit.stack.webhook()?));
        let sound = captured("sound", &metadata);
        let at = now().unix_timestamp();
        let signed = |body: &str| Some(sign(SECRET, body, at));
        let cut = sound[..sound.len() - 1].to_owned();
        let incomplete = told(
            &shop.id("incomplete"),
            "payment_intent.succeeded",
            &json!({ "id": "pi_none", "metadata": metadata }),
        );
        // Of what is none of ours, nothing need be understood.
        let odd =
            json!({ "id": "pi_none", "amount_received": 1.5, "currency": "zzz", "metadata": { "order": "4711" } });
        let odd = told(&shop.id("odd"), "payment_intent.succeeded", &odd);
        let bare = told(
            &shop.id("bare"),
            "charge.refunded",
            &json!({ "payment_intent": null, "amount_refunded": "1" }),
        );
        let boring = told(&shop.id("boring"), "customer.created", &json!({}));
        let foreign = captured("foreign", &json!({ "order": "4711" }));
        let live = sound.replacen('{', r#"{"livemode":true,"#, 1);
        let large = sound.clone() + &" ".repeat(LIMIT + 1 - sound.len());
        let cases = [
            (400, "unsigned", None, &sound),
            (400, "unsigned", Some("v1=00".to_owned()), &sound),
            (400, "forged", Some(sign("whsec_other", &sound, at)), &sound),
            (400, "forged", signed(&boring), &sound),
            (400, "old", Some(sign(SECRET, &sound, at - 600)), &sound),
            (400, "old", Some(sign(SECRET, &sound, at + 600)), &sound),
            (400, "unreadable", signed(&cut), &cut),
            (400, "unreadable", signed(&incomplete), &incomplete),
            (413, "too_large", signed(&large), &large),
            (200, "other_mode", signed(&live), &live),
            (200, "ignored", signed(&boring), &boring),
            (200, "ignored", signed(&foreign), &foreign),
            (200, "ignored", signed(&odd), &odd),
            (200, "ignored", signed(&bare), &bare),
        ];
        for (number, (status, result, signature, body)) in cases.iter().enumerate() {
            let before = counted(&role, result).await?;
            let (answered, why) = post(kit, signature.as_deref(), body, &[]).await?;
            ensure!(
                answered == *status && !why.trim().is_empty(),
                "{number}, {result}: {answered} {why}"
            );
            ensure!(
                counted(&role, result).await? == before + 1.0,
                "{number} is not counted as {result}"
            );
        }
        let taken = from_provider(kit, &shop).await?;
        ensure!(taken.is_empty(), "{taken:?}");

        // Either secret's signature is accepted; a copy sent within the tolerance is a repeat of the same event.
        let other = captured("other", &metadata);
        for (signature, body) in [(signed(&sound), &sound), (Some(sign(NEXT, &other, at)), &other)] {
            for _ in 0..2 {
                let answer = post(kit, signature.as_deref(), body, &[("traceparent", TRACE)]).await?;
                ensure!(answer == (200, "accepted\n".to_owned()), "{answer:?}");
            }
        }
        let taken = from_provider(kit, &shop).await?;
        let ids: Vec<_> = taken
            .iter()
            .map(|event| event["id"].as_str().unwrap_or_default())
            .collect();
        let (sound, other) = (shop.id("sound"), shop.id("other"));
        ensure!(ids == [&sound, &sound, &other, &other], "{taken:?}");
        ensure!(taken.iter().all(|event| event["traceparent"] == TRACE), "{taken:?}");
        ensure!(counted(&role, "accepted").await? == 4.0, "not all are counted");
        // The checkout does not exist; each of the two events is refused once.
        reads(kit, &shop.user, "refused", 2).await?;

        let asked = reqwest::get(format!("http://{}/", kit.stack.webhook()?)).await?;
        ensure!(asked.status() == 405, "{asked:?}");
        let log = std::fs::read_to_string(role.log())?;
        ensure!(
            !log.contains(SECRET) && !log.contains(NEXT),
            "a secret stands in the log"
        );
        shop.is_clean().await?;
        // Two could not be decoded; the third has not arrived.
        let half = half.await??;
        ensure!(
            half.starts_with("HTTP/1.1 408 ") && half.contains("did not arrive"),
            "{half}"
        );
        let unreadable = counted(&role, "unreadable").await?;
        ensure!(unreadable == 3.0, "{unreadable}");
        tokio::try_join!(role.stop(), shop.worker.stop()).map(drop)
    })
}

fn while_kafka_is_away_no_webhook_is_acknowledged_and_none_is_lost(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "webhook/kafka").await?;
        let role = role(kit, &shop).await?;
        kit.provider.deliver_always(Delivery::InOrder);
        let tickets = shop.tickets(6).await?;
        fill(kit, &shop.user, &tickets, Some(3_600)).await?;
        let names: Vec<_> = (0..tickets.len()).map(|number| format!("order-{number}")).collect();
        for (name, ticket) in names.iter().zip(&tickets) {
            let body = json!({ "checkout": shop.id(name), "tickets": [ticket], "payment_method": CONFIRMED });
            check_out(kit, &shop.user, body).await?;
        }
        for name in &names {
            reaches(kit, &shop.id(name), "waiting").await?;
        }
        let confirm = |names: &[String]| {
            names
                .iter()
                .try_for_each(|name| shop.simulator.authenticate(&shop.payment(name)?, true))
        };
        confirm(&names[..2])?;
        kit.stack.kafka.kill()?;
        confirm(&names[2..4])?;
        until("a webhook is answered that Kafka is away", DEADLINE, async || {
            ensure!(counted(&role, "unavailable").await? >= 1.0, "none");
            anyhow::Ok(())
        })
        .await?;
        let body = told(
            &shop.id("by-hand"),
            "payment_intent.canceled",
            &json!({ "id": "pi_none" }),
        );
        let ignored = post(kit, Some(&sign(SECRET, &body, now().unix_timestamp())), &body, &[]).await?;
        ensure!(ignored.0 == 200, "what needs no Kafka waits for it: {ignored:?}");
        kit.stack.kafka.start().await?;
        confirm(&names[4..])?;
        for name in &names {
            ends(kit, &shop.id(name), "completed")
                .await
                .with_context(|| name.clone())?;
            shop.paid(name, PRICE)?;
        }
        sold(kit, &tickets).await?;
        is_told(kit, &shop, names.len(), "holdfast.payment.authorized.v1").await?;
        is_told(kit, &shop, names.len(), "holdfast.payment.captured.v1").await?;
        kit.provider.webhooks_to_nobody();
        role.stop().await?;
        shop.close().await
    })
}

fn a_dispute_is_heard_as_soon_as_the_provider_says_whose_payment_it_is(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "webhook/dispute").await?;
        let role = role(kit, &shop).await?;
        let tickets = shop.tickets(1).await?;
        buy(kit, &shop, &[&"order".to_owned()], &tickets).await?;
        shop.simulator.deliver(Delivery::InOrder).await?;

        let order = shop.id("order");
        for fault in [Fault::Unavailable, Fault::RequestLost, Fault::Garbled] {
            shop.simulator.fail(Call::Retrieve, Some(&order), fault, 1);
        }
        shop.simulator.dispute(&shop.payment("order")?)?;
        for round in 0..2 {
            let answer = shop.simulator.deliver(Delivery::InOrder).await;
            ensure!(answer.is_err(), "{round}: it was acknowledged");
        }
        ensure!(counted(&role, "unavailable").await? == 3.0, "not each try is counted");
        shop.simulator.deliver(Delivery::InOrder).await?;
        ensure!(shop.simulator.untold().is_empty(), "{:?}", shop.simulator.untold());
        // The event that tells of the money came through first; it tells all that the other does.
        reads(kit, &shop.user, "disputed", 1).await?;
        sold(kit, &tickets).await?;

        // A payment of another shop on the same account is looked up and ignored.
        let foreign = shop_elsewhere(&shop.simulator.url()).await?;
        let before = counted(&role, "ignored").await?;
        shop.simulator.dispute(&foreign)?;
        shop.simulator.deliver(Delivery::InOrder).await?;
        // That payment was authorised and captured as well.
        ensure!(counted(&role, "ignored").await? == before + 4.0, "not let pass");
        // A payment that the account of the key does not know: an operator has to mend a setting, and nothing is ignored.
        let object =
            json!({ "id": "du_none", "payment_intent": "pi_none", "amount": 1, "currency": "eur", "status": "lost" });
        let unknown = told(&shop.id("unknown"), "charge.dispute.closed", &object);
        let answer = post(
            kit,
            Some(&sign(SECRET, &unknown, now().unix_timestamp())),
            &unknown,
            &[],
        )
        .await?;
        ensure!(answer.0 == 503, "{answer:?}");
        role.stop().await?;
        shop.close().await
    })
}

fn a_webhook_in_hand_is_answered_before_the_process_ends(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "webhook/drain").await?;
        let role = role(kit, &shop).await?;
        let tickets = shop.tickets(1).await?;
        buy(kit, &shop, &[&"order".to_owned()], &tickets).await?;
        shop.simulator.deliver(Delivery::InOrder).await?;
        let payment = shop.payment("order")?;
        let looked_up = || {
            let asked = shop.simulator.asked();
            asked
                .iter()
                .filter(|asked| asked.method == "GET" && asked.path.contains(&payment))
                .count()
        };
        let before = looked_up();
        let slow = Fault::Slow(Duration::from_millis(1_500));
        shop.simulator.fail(Call::Retrieve, Some(&shop.id("order")), slow, 1);
        shop.simulator.dispute(&payment)?;
        let told = shop
            .simulator
            .untold()
            .into_iter()
            .next()
            .context("no dispute is told")?
            .to_string();
        let signature = sign(SECRET, &told, now().unix_timestamp());
        let stop = async {
            until("the payment is being looked up", DEADLINE, async || {
                ensure!(looked_up() > before, "nobody asks");
                anyhow::Ok(())
            })
            .await?;
            role.stop().await
        };
        let (answer, ()) = tokio::try_join!(post(kit, Some(&signature), &told, &[]), stop)?;
        ensure!(answer.0 == 200, "{answer:?}");
        reads(kit, &shop.user, "disputed", 1).await?;
        shop.simulator.webhooks_to_nobody();
        shop.close().await
    })
}

fn webhooks_take_effect_once_whatever_step_dies_or_is_repeated(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "webhook/crash").await?;
        listen(kit)?;
        let tickets = shop.tickets(1).await?;
        buy(kit, &shop, &[&"order".to_owned()], &tickets).await?;
        let payment = shop.payment("order")?;
        let points = Point::ALL
            .into_iter()
            .filter(|point| point.name().starts_with("webhook."));
        let points: Vec<_> = points.collect();
        for point in &points {
            shop.simulator.refund(&payment, 100)?;
            let launch = || shop.beside("webhook").env("HOLDFAST_WEBHOOK_SECRET", SECRET);
            let dying = launch().env("HOLDFAST_CRASH", point.name()).start().await?;
            ensure!(
                shop.simulator.deliver(Delivery::InOrder).await.is_err(),
                "{}: it was acknowledged",
                point.name()
            );
            let status = dying.wait(DEADLINE).await?;
            ensure!(
                status.signal() == Some(Signal::SIGABRT as i32),
                "{status}\n{}",
                dying.last_words()
            );

            let repeating = launch().env("HOLDFAST_REPEAT", point.name()).start().await?;
            shop.simulator.deliver(Delivery::InOrder).await?;
            done_again(&repeating, *point).await?;
            repeating.stop().await?;
        }
        let refunds = i64::try_from(points.len())?;
        ensure!(refunds == 2, "{points:?}");
        reads(kit, &shop.user, "refunded", points.len()).await?;
        shop.paid("order", PRICE - 100 * refunds)?;
        sold(kit, &tickets).await?;
        kit.provider.webhooks_to_nobody();
        shop.close().await
    })
}

fn without_a_secret_or_a_provider_nobody_takes_webhooks(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        for (subcommand, secret, missing) in [
            ("webhook", None, "HOLDFAST_WEBHOOK_SECRET"),
            ("webhook", Some(SECRET), "HOLDFAST_PROVIDER_URL"),
            ("run", Some(SECRET), "HOLDFAST_PROVIDER_URL"),
        ] {
            let launch = kit.stack.holdfast(subcommand, "webhook");
            let launch = secret
                .into_iter()
                .fold(launch, |launch, secret| launch.env("HOLDFAST_WEBHOOK_SECRET", secret));
            let output = launch.output().await?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.code() == Some(2) && said.contains(missing),
                "{}: {said}",
                output.status
            );
            ensure!(!said.contains(SECRET), "{said}");
        }
        Ok(())
    })
}

fn secrets_that_are_replaced_in_their_files_count_without_a_restart(kit: &Kit) -> anyhow::Result<()> {
    const NEXT: &str = "whsec_rotated";
    const REPLACED: &str = "sk_rotated";
    kit.block_on(async {
        kit.provider.heal();
        let folder = kit.stack.certificates();
        let (secret, key) = (folder.join("webhook-secret"), folder.join("provider-key"));
        std::fs::write(&secret, format!("{SECRET}\n"))?;
        std::fs::write(&key, format!("{KEY}\n"))?;
        let worker = kit.stack.holdfast("run", "webhook").provider(&kit.provider);
        let worker = worker
            .without("HOLDFAST_PROVIDER_KEY")
            .env("HOLDFAST_PROVIDER_KEY_FILE", &key.display().to_string())
            .env("HOLDFAST_WEBHOOK_SECRET_FILE", &secret.display().to_string())
            .env("HOLDFAST_RETRY_PAUSE", "1s")
            .start()
            .await?;
        let (user, at) = ("webhook/rotated/ann", now().unix_timestamp());
        let body = told("webhook/rotated", "customer.created", &json!({}));
        let answered = async |secret: &str| post(kit, Some(&sign(secret, &body, at)), &body, &[]).await;
        ensure!(
            answered(SECRET).await?.0 == 200 && answered(NEXT).await?.0 == 400,
            "the first secret"
        );
        std::fs::write(&secret, NEXT)?;
        ensure!(
            answered(SECRET).await?.0 == 400 && answered(NEXT).await?.0 == 200,
            "the next secret"
        );
        // While the file is not there, the last one counts.
        std::fs::remove_file(&secret)?;
        ensure!(
            answered(SECRET).await?.0 == 400 && answered(NEXT).await?.0 == 200,
            "without the file"
        );

        pay(kit, &[registered("webhook/rotated/register", user)]).await?;
        let tickets = ["webhook/rotated/1".to_owned()];
        list(kit, &tickets, PRICE).await?;
        // The provider says no to one key, and the checkout waits for the other.
        std::fs::write(&key, REPLACED)?;
        fill(kit, user, &tickets, Some(3_600)).await?;
        let order = "webhook/rotated/order";
        check_out(kit, user, json!({ "checkout": order, "payment_method": CARD })).await?;
        let refused = r#"holdfast_provider_calls_total{answer="misconfigured",call="create"}"#;
        until("the provider says no", DEADLINE, async || {
            ensure!(worker.metric(refused).await? >= Some(1.0), "nothing was asked");
            anyhow::Ok(())
        })
        .await?;
        reaches(kit, order, "opened").await?;
        std::fs::write(&key, KEY)?;
        ends(kit, order, "completed").await?;
        sold(kit, &tickets).await?;
        let log = std::fs::read_to_string(worker.log())?;
        ensure!(
            [NEXT, REPLACED, KEY].iter().all(|secret| !log.contains(secret)),
            "a secret stands in the log"
        );
        clean(kit).await?;
        worker.stop().await
    })
}

/// From now on the provider sends webhooks, without those of earlier events.
pub(crate) fn listen(kit: &Kit) -> anyhow::Result<()> {
    kit.provider.webhooks_to_nobody();
    kit.provider.webhooks_to(&kit.stack.webhook_url()?, SECRET);
    Ok(())
}

/// The `webhook` role alone, to which the provider sends events from now on.
async fn role(kit: &Kit, shop: &Shop<'_>) -> anyhow::Result<Holdfast> {
    listen(kit)?;
    shop.beside("webhook")
        .env("HOLDFAST_WEBHOOK_SECRET", SECRET)
        .start()
        .await
}

/// The provider captures what this checkout pays, but its answer is lost, and it does not answer again until it is healed.
async fn is_captured_unheard(kit: &Kit, shop: &Shop<'_>, name: &str, ticket: &str) -> anyhow::Result<()> {
    let id = shop.id(name);
    shop.simulator.fail(Call::Capture, Some(&id), Fault::AnswerLost, 1);
    shop.simulator.fail(Call::Capture, Some(&id), Fault::Unavailable, 1_000);
    let body = json!({ "checkout": id, "tickets": [ticket], "payment_method": CARD });
    check_out(kit, &shop.user, body).await?;
    until("the money is taken", DEADLINE, async || shop.paid(name, PRICE)).await
}

/// Five days pass: the holds have ended long ago, and the engine has forgotten the checkouts.
async fn five_days_pass(kit: &Kit, shop: &Shop<'_>, names: &[&str]) -> anyhow::Result<()> {
    let ids: Vec<_> = names.iter().map(|name| shop.id(name)).collect();
    for id in &ids {
        forget(kit, id).await?;
    }
    let pool = kit.stack.postgres.connect().await?;
    let days = "update checkouts
                set opened_at = opened_at - p, called_at = called_at - p, until = until - p, moved_at = moved_at - p,
                    ended_at = ended_at - p
                from (select interval '5 days' as p) passed where checkout = any($1)";
    let aged = sqlx::query(days).bind(&ids).execute(&pool).await?;
    pool.close().await;
    ensure!(aged.rows_affected() == names.len() as u64, "{aged:?}");
    Ok(())
}

/// Buys each ticket by a checkout of this name.
async fn buy(kit: &Kit, shop: &Shop<'_>, names: &[&String], tickets: &[String]) -> anyhow::Result<()> {
    fill(kit, &shop.user, tickets, Some(3_600)).await?;
    for (name, ticket) in names.iter().zip(tickets) {
        let body = json!({ "checkout": shop.id(name), "tickets": [ticket], "payment_method": CARD });
        check_out(kit, &shop.user, body).await?;
        ends(kit, &shop.id(name), "completed").await?;
    }
    Ok(())
}

/// A payment that was made and captured past Holdfast.
async fn shop_elsewhere(provider: &str) -> anyhow::Result<String> {
    let ask = async |path: &str, form: &'static str| {
        let request = reqwest::Client::new().post(format!("{provider}/v1/payment_intents{path}"));
        let request = request
            .bearer_auth(KEY)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        anyhow::Ok(
            request
                .body(form)
                .send()
                .await?
                .error_for_status()?
                .json::<Value>()
                .await?,
        )
    };
    let made = ask(
        "",
        "amount=100&currency=eur&capture_method=manual&payment_method=pm_card_visa",
    )
    .await?;
    let id = made["id"].as_str().with_context(|| made.to_string())?.to_owned();
    for step in ["confirm", "capture"] {
        ask(&format!("/{id}/{step}"), "").await?;
    }
    Ok(id)
}

/// The provider's event of this kind.
fn told(id: &str, kind: &str, object: &Value) -> String {
    let created = now().unix_timestamp();
    json!({ "id": id, "type": kind, "created": created, "data": { "object": object } }).to_string()
}

/// The answer to a webhook with this signature and body.
async fn post(
    kit: &Kit,
    signature: Option<&str>,
    body: &str,
    headers: &[(&str, &str)],
) -> anyhow::Result<(u16, String)> {
    let request = reqwest::Client::new().post(format!("http://{}/", kit.stack.webhook()?));
    let request = signature.into_iter().fold(request, |request, signature| {
        request.header("stripe-signature", signature)
    });
    let request = headers
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = request.body(body.to_owned()).send().await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

/// The answer when only half of the body comes.
async fn post_half(address: String) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let half = "POST / HTTP/1.1\r\nhost: holdfast\r\nconnection: close\r\ncontent-length: 20\r\n\r\n{\"id\":\"ev";
    stream.write_all(half.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Number of webhooks with this result so far.
async fn counted(role: &Holdfast, result: &str) -> anyhow::Result<f64> {
    let name = format!(r#"holdfast_webhook_requests_total{{result="{result}"}}"#);
    Ok(role.metric(&name).await?.unwrap_or(0.0))
}

/// The events about the shop's user that webhooks have made so far, in their order.
async fn from_provider(kit: &Kit, shop: &Shop<'_>) -> anyhow::Result<Vec<Value>> {
    let records = kit.stack.kafka.read(topics::PAYMENTS).await?;
    let ours = records
        .iter()
        .filter(|record| record.key.as_deref() == Some(shop.user.as_bytes()));
    let events = ours.map(|record| serde_json::from_slice(record.value.as_deref().unwrap_or_default()));
    let events: Vec<Value> = events.collect::<Result<_, _>>()?;
    Ok(events.into_iter().filter(|event| event["source"] == "stripe").collect())
}

/// Waits until webhooks have reported this about so many payments.
async fn is_told(kit: &Kit, shop: &Shop<'_>, payments: usize, kind: &str) -> anyhow::Result<()> {
    until(&format!("{kind} of {payments} payments"), DEADLINE, async || {
        let events = from_provider(kit, shop).await?;
        let events = events.iter().filter(|event| event["type"] == kind);
        let told: std::collections::BTreeSet<_> = events
            .map(|event| event["data"]["payment"].as_str().unwrap_or_default())
            .collect();
        ensure!(told.len() == payments, "{told:?}");
        Ok(())
    })
    .await
}

/// How many there are.
async fn dead_letters(kit: &Kit) -> anyhow::Result<usize> {
    Ok(kit.stack.kafka.read(topics::DEAD_LETTERS).await?.len())
}
