//! Money that is not where it should be: amounts at the provider that were not asked for.

use anyhow::{Context, ensure};
use holdfast_schemas::{UserOutcome, outcomes};
use holdfast_tests::kit::provider::{Call, Fault};
use holdfast_tests::kit::{Kit, until};
use serde_json::{Value, json};

use crate::admin;
use crate::checkout::{CARD, CONFIRMED, PRICE, Shop, check_out, ends, fill, free, held, reaches, sold};
use crate::support::{DEADLINE, clean, outcomes_of};
use crate::users::view;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![an_amount_at_the_provider_that_was_not_asked_for_is_stuck_and_never_completed];

/// Less than was asked for.
const LESS: i64 = 2_000;

fn an_amount_at_the_provider_that_was_not_asked_for_is_stuck_and_never_completed(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open_with(kit, "astray/amount", &[("HOLDFAST_RETRY_PAUSE", "1s")]).await?;
        let tickets = shop.tickets(4).await?;
        fill(kit, &shop.user, &tickets, Some(3_600)).await?;
        let id = |name: &str| shop.id(name);
        shop.simulator
            .fail(Call::Capture, Some(&id("captured")), Fault::Unavailable, 1_000);
        let names = ["captured", "authorised", "currency", "told"];
        for ((name, method), ticket) in names.iter().zip([CARD, CONFIRMED, CONFIRMED, CARD]).zip(&tickets) {
            let body = json!({ "checkout": id(name), "tickets": [ticket], "payment_method": method });
            check_out(kit, &shop.user, body).await?;
        }
        // An operator captures a part by hand.
        reaches(kit, &id("captured"), "sold").await?;
        shop.simulator.capture(&shop.payment("captured")?, LESS)?;
        shop.simulator.heal();
        // The bank sets less aside; the payment is in another currency.
        for name in ["authorised", "currency"] {
            reaches(kit, &id(name), "waiting").await?;
            let payment = shop.payment(name)?;
            shop.simulator.alter(&payment, |payment| match name {
                "authorised" => payment.authorised = Some(LESS),
                _ => payment.currency = "usd".to_owned(),
            });
            shop.simulator.authenticate(&payment, true)?;
            shop.tell(name, "authorized", money("amount", PRICE)).await?;
        }
        // The provider says only after the end that it captured less.
        ends(kit, &id("told"), "completed").await?;
        shop.tell("told", "captured", money("amount", PRICE)).await?;
        for _ in 0..2 {
            shop.tell("told", "captured", money("amount", LESS)).await?;
        }
        let states = ["sold", "waiting", "waiting", "completed"];
        for (name, state) in names.iter().zip(states) {
            is_stuck(kit, &id(name), state).await?;
            // What the provider tells of it sets nothing going.
            shop.tell(name, "authorized", money("amount", PRICE)).await?;
        }
        clean(kit).await?;
        let list = admin::done(kit, &["checkout", "list"]).await?;
        for (name, state) in names.iter().zip(states) {
            let view = is_stuck(kit, &id(name), state).await?;
            let told = stuck_told(kit, &shop, name).await?;
            ensure!(told == 1, "{view}: told {told} times");
            let of_it = list.lines().find(|line| line.ends_with(&id(name)));
            ensure!(of_it.is_some_and(|line| line.contains("amount_differs")), "{list}");
            let shown = admin::done(kit, &["checkout", "show", &id(name)]).await?;
            ensure!(shown.contains("not what was asked for"), "{shown}");
        }
        for (name, more, state, why) in [
            ("captured", None, "sold", Some("not what was asked for")),
            ("captured", Some("--give-back"), "failed", None),
            ("authorised", Some("--give-back"), "failed", None),
            ("currency", Some("--give-back"), "failed", None),
            ("told", None, "completed", None),
        ] {
            let settle = admin::by(shop.launch("admin").arg("checkout").arg("settle").arg(&id(name)));
            let output = more
                .into_iter()
                .fold(settle, |settle, more| settle.arg(more))
                .output()
                .await?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success() == why.is_none(), "{name}: {said}");
            ensure!(said.contains(why.unwrap_or(state)), "{name}: {said}");
            let (_, view) = view(kit, "Checkout", &id(name)).await?;
            ensure!(view["state"] == state, "{name}: {view}");
            shop.paid(
                name,
                if state == "failed" {
                    0
                } else if name == "told" {
                    PRICE
                } else {
                    LESS
                },
            )?;
        }
        // What is in another currency is named by `verify` for ever.
        shop.simulator.alter(&shop.payment("currency")?, |payment| {
            payment.currency = "eur".to_owned()
        });
        // What was not sold stays held by the user.
        free(kit, &tickets[..1]).await?;
        held(kit, &shop.user, &tickets[1..3]).await?;
        sold(kit, &tickets[3..]).await?;
        shop.close().await
    })
}

fn money(name: &str, amount: i64) -> Value {
    json!({ name: { "amount": amount, "currency": "EUR" } })
}

/// The checkout, once it is stuck, which it must be in this state.
async fn is_stuck(kit: &Kit, checkout: &str, state: &str) -> anyhow::Result<Value> {
    until(&format!("{checkout} is stuck"), DEADLINE, async || {
        let (_, view) = view(kit, "Checkout", checkout).await?;
        ensure!(view["stuck"] == true && view["state"] == state, "{view}");
        Ok(view)
    })
    .await
}

/// How often `checkout.stuck` was told of it.
async fn stuck_told(kit: &Kit, shop: &Shop<'_>, name: &str) -> anyhow::Result<usize> {
    let told = outcomes_of::<UserOutcome>(kit, &shop.user)
        .await
        .context("no outcomes")?;
    let of_it = |told: &&UserOutcome| matches!(told, UserOutcome::CheckoutStuck(outcomes::CheckoutStuck { checkout }) if checkout.as_str() == shop.id(name));
    Ok(told.iter().map(|told| &told.data).filter(of_it).count())
}
