//! Orders are returned from the shop's side: seats, money and credits go where the shop says, once, whatever fails meanwhile.

use anyhow::{Context, bail, ensure};
use holdfast::crash::Point;
use holdfast_schemas::{OutcomeData, TicketOutcome, UserOutcome};
use holdfast_tests::kit::provider::{Call, Fault, RefundStatus};
use holdfast_tests::kit::{Kit, until};
use serde_json::{Value, json};

use crate::admin::by;
use crate::checkout::{
    CARD, CONFIRMED, DECLINED, PRICE, Shop, check_out, ends, fill, free, list, list_in, look, reaches, reads, sold,
    withdrawn,
};
use crate::support::{DEADLINE, event, outcomes_of, pay, send, told, verdicts};
use crate::users::{added, call, has_credits, view};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    an_order_is_returned_seat_by_seat_with_its_money_and_its_credits,
    a_sold_ticket_that_was_withdrawn_is_not_for_sale_again_however_it_is_returned,
    a_refund_by_hand_leaves_the_seats_where_the_setting_says_so,
    a_refund_that_fails_for_a_seat_that_was_taken_back_asks_for_an_operator,
    a_repayment_that_was_refused_for_a_dispute_is_settled_once_the_bank_has_given_the_money,
    a_cancelled_show_takes_back_every_ticket_wherever_it_is,
    a_return_happens_once_whatever_step_dies_or_is_repeated,
];

/// A card whose refunds are pending, and end when the simulator is told so.
const SLOW_REFUND: &str = "pm_card_refundFail";

const CREDITS: i64 = 500;

fn an_order_is_returned_seat_by_seat_with_its_money_and_its_credits(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "returns/order").await?;
        let tickets = shop.tickets(4).await?;
        shop.has(CREDITS).await?;
        shop.buy("order", &tickets, CARD, CREDITS).await?;
        let most = 4 * PRICE - CREDITS;

        // One of four, by event, and again: the same event, and another one about the same seat.
        let asked = returned(&shop, "first", "order", json!({ "tickets": [tickets[0]] }));
        let late = returned(&shop, "second", "order", json!({ "tickets": [tickets[0]] }));
        pay(kit, &[asked.clone(), asked, late]).await?;
        free(kit, &tickets[..1]).await?;
        sold(kit, &tickets[1..]).await?;
        shop.keeps("order", most - PRICE).await?;
        reads(kit, &shop.user, "refunded", 1).await?;
        let told = outcomes_of::<UserOutcome>(kit, &shop.user).await?;
        let refusals: Vec<_> = told.iter().filter_map(|told| told.data.refusal()).collect();
        ensure!(refusals == ["not_in_order"], "{refusals:?}");

        // Some of the money alone, by an operator; more than is left is refused, before anything is done.
        let order = shop.id("order");
        let more = most - PRICE + CREDITS + 1;
        let too_much = [
            "checkout",
            "return",
            &order,
            "--keep-seats",
            "--refund",
            &more.to_string(),
        ];
        admin_refuses(&shop, &too_much, "More is to be given back than is left").await?;
        let goodwill = [
            "checkout",
            "return",
            &order,
            "--keep-seats",
            "--refund",
            "300",
            "--id",
            "sorry",
        ];
        let dry = [&goodwill[..], &["--dry-run"]].concat();
        let said = admin_does(&shop, &dry).await?;
        ensure!(said.starts_with("would be done: 0 tickets"), "{said}");
        shop.keeps("order", most - PRICE).await?;
        for _ in 0..2 {
            let said = admin_does(&shop, &goodwill).await?;
            ensure!(
                said.contains("300 EUR (minor units) and 0 credits given back"),
                "{said}"
            );
        }
        shop.keeps("order", most - PRICE - 300).await?;
        sold(kit, &tickets[1..]).await?;
        let shown = crate::admin::parsed(kit, &["checkout", "show", &order, "--json"]).await?;
        let acts = shown["acts"].as_array().map_or(0, Vec::len);
        ensure!(
            acts == 2 && shown["acts"][0]["who"] == "proofs" && shown["refunded"] == PRICE + 300,
            "{shown}"
        );

        // The rest, by request: what is left of the money, then the credits; these seats are not for sale again.
        let body = json!({ "checkout": order, "resell": false });
        let (status, reply) = call(kit, &[], "Account", &shop.user, "returnOrder", &body).await?;
        ensure!(status == 200, "{status}: {reply}");
        let told = &reply["outcomes"][0]["data"];
        ensure!(
            told["refund"]["amount"] == most - PRICE - 300 && told["credits"] == CREDITS && told["resell"] == false,
            "{reply}"
        );
        shop.keeps("order", 0).await?;
        withdrawn(kit, &tickets[1..]).await?;
        has_credits(kit, &shop.user, CREDITS).await?;
        let shown = look_at(kit, &order).await?;
        ensure!(
            shown["state"] == "completed" && shown["returned"] == json!(tickets),
            "{shown}"
        );

        // An order that cost nothing, and one that credits paid.
        let gifts = shop.tickets_named("gift", 1).await?;
        list(kit, &[shop.id("free")], 0).await?;
        for (name, ticket, credits) in [("gift", &gifts[0], CREDITS), ("free", &shop.id("free"), 0)] {
            let method = if credits > 0 { CARD } else { "" };
            shop.buy(name, std::slice::from_ref(ticket), method, credits).await?;
            pay(kit, &[returned(&shop, &format!("{name}/1"), name, json!({}))]).await?;
            free(kit, std::slice::from_ref(ticket)).await?;
        }
        shop.keeps("gift", 0).await?;
        has_credits(kit, &shop.user, CREDITS).await?;

        // What was never completed cannot be returned.
        let last = shop.tickets_named("last", 1).await?;
        fill(kit, &shop.user, &last, None).await?;
        let body = json!({ "checkout": shop.id("last"), "payment_method": DECLINED });
        check_out(kit, &shop.user, body).await?;
        reaches(kit, &shop.id("last"), "declined").await?;
        let body = json!({ "checkout": shop.id("last") });
        let (_, reply) = call(kit, &[], "Account", &shop.user, "returnOrder", &body).await?;
        ensure!(reply["outcomes"][0]["data"]["reason"] == "not_completed", "{reply}");
        crate::checkout::give_up(kit, &shop.id("last")).await?;
        ends(kit, &shop.id("last"), "failed").await?;
        shop.close().await
    })
}

fn a_sold_ticket_that_was_withdrawn_is_not_for_sale_again_however_it_is_returned(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "returns/withdrawn").await?;
        let tickets = shop.tickets(4).await?;
        let [returned_one, other, refunded, kept] = &tickets[..] else {
            bail!("not four tickets: {tickets:?}");
        };
        shop.buy("order", &[returned_one.clone(), other.clone()], CARD, 0)
            .await?;
        shop.buy("refunded", std::slice::from_ref(refunded), CARD, 0).await?;
        shop.buy("kept", std::slice::from_ref(kept), CARD, 0).await?;

        // Each event twice: the second is a repeat. Another event finds the ticket withdrawn.
        let withdraws = |id: &str, ticket: &str| {
            event(
                &shop.id(&format!("withdraw/{id}")),
                ticket,
                "ticket.withdrawn",
                json!({}),
            )
        };
        let asked = [
            withdraws("returned", returned_one),
            withdraws("refunded", refunded),
            withdraws("kept", kept),
        ];
        send(kit, &[&asked[..], &asked].concat()).await?;
        send(kit, &[withdraws("again", returned_one)]).await?;
        let mut history = vec!["listed", "held", "sold", "off_sale", "withdrawn"];
        for (ticket, history) in [
            (returned_one, &history[..]),
            (refunded, &history[..4]),
            (kept, &history[..4]),
        ] {
            let told = told(kit, ticket, history.len()).await?;
            ensure!(verdicts(&told) == history, "{ticket}: {told:?}");
            let of_sale = told[3].data.data();
            ensure!(of_sale["user"] == *shop.user, "{of_sale}");
        }
        let told_again = told(kit, returned_one, history.len()).await?;
        ensure!(told_again[4].data.refusal() == Some("withdrawn"), "{told_again:?}");
        // It is its buyer's as before.
        sold(kit, &tickets).await?;
        for (ticket, is_off_sale) in [(returned_one, true), (other, false)] {
            let (_, view) = view(kit, "Ticket", ticket).await?;
            ensure!(view["off_sale"] == is_off_sale && view["user"] == *shop.user, "{view}");
        }
        let shown = crate::admin::done(kit, &["ticket", "show", returned_one]).await?;
        ensure!(shown.contains("not for sale again"), "{shown}");
        let terms = json!({ "show": "proofs", "price": { "amount": PRICE, "currency": "EUR" } });
        let (status, reply) = call(kit, &[], "Ticket", returned_one, "list", &terms).await?;
        ensure!(
            status == 200 && reply["outcomes"][0]["data"]["reason"] == "sold",
            "{status}: {reply}"
        );

        // Both are to be resold, and the one that was withdrawn is not; nor is one that a refund by hand frees.
        pay(kit, &[returned(&shop, "back", "order", json!({ "resell": true }))]).await?;
        free(kit, std::slice::from_ref(other)).await?;
        shop.simulator.refund(&shop.payment("refunded")?, PRICE)?;
        let money = json!({ "refunded": { "amount": PRICE, "currency": "EUR" } });
        let refund = shop.tell("refunded", "refunded", money).await?;
        shop.took(&refund).await?;
        withdrawn(kit, &[returned_one.clone(), refunded.clone()]).await?;
        history.extend(["sold", "returned", "withdrawn"]);
        let told = told(kit, returned_one, history.len()).await?;
        ensure!(verdicts(&told) == history, "{told:?}");
        ensure!(
            matches!(told[7].data, TicketOutcome::TicketWithdrawn(_)),
            "a refusal: {told:?}"
        );

        // Listed again, it is as new: the next sale is another one.
        list(kit, std::slice::from_ref(returned_one), PRICE).await?;
        shop.buy("anew", std::slice::from_ref(returned_one), CARD, 0).await?;
        pay(kit, &[returned(&shop, "anew", "anew", json!({}))]).await?;
        free(kit, std::slice::from_ref(returned_one)).await?;
        for (order, money) in [("order", 0), ("refunded", 0), ("kept", PRICE), ("anew", 0)] {
            shop.keeps(order, money).await?;
        }
        shop.close().await
    })
}

fn a_refund_by_hand_leaves_the_seats_where_the_setting_says_so(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open_with(kit, "returns/kept", &[("HOLDFAST_FULL_REFUND", "keeps-seats")]).await?;
        let tickets = shop.tickets(1).await?;
        shop.buy("order", &tickets, CARD, 0).await?;
        shop.simulator.refund(&shop.payment("order")?, PRICE)?;
        let refunded = json!({ "refunded": { "amount": PRICE, "currency": "EUR" } });
        let told = shop.tell("order", "refunded", refunded).await?;
        shop.took(&told).await?;
        reads(kit, &shop.user, "refunded", 1).await?;
        ends(kit, &shop.id("order"), "completed").await?;
        sold(kit, &tickets).await?;
        // The shop frees the seat when it wishes; nothing is left to give back.
        pay(kit, &[returned(&shop, "back", "order", json!({}))]).await?;
        free(kit, &tickets).await?;
        shop.close().await
    })
}

fn a_refund_that_fails_for_a_seat_that_was_taken_back_asks_for_an_operator(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "returns/fails").await?;
        let tickets = shop.tickets(1).await?;
        shop.buy("order", &tickets, SLOW_REFUND, 0).await?;
        pay(kit, &[returned(&shop, "back", "order", json!({}))]).await?;
        free(kit, &tickets).await?;
        let payment = shop.payment("order")?;
        let pending = until("the refund is pending", DEADLINE, async || {
            let refund = shop.simulator.refunds_of(&payment).into_iter().next();
            refund
                .filter(|refund| refund.status == RefundStatus::Pending)
                .context("no refund")
        });
        let pending = pending.await?;
        ensure!(pending.repayment.as_deref() == Some("1"), "{pending:?}");
        // Days later.
        shop.simulator.end_refund(&pending.id, false)?;
        tell_refund(&shop, &pending.id, "failed").await?;
        reads(kit, &shop.user, "stuck", 1).await?;
        let listed = crate::admin::done(kit, &["checkout", "list"]).await?;
        ensure!(
            listed.contains("refund_failed") && listed.contains(&shop.id("order")),
            "{listed}"
        );
        // The operator refunds it again at the provider: the mark goes by itself.
        shop.simulator.refund(&payment, PRICE)?;
        let again = shop.simulator.refunds_of(&payment).pop().context("no refund")?;
        shop.simulator.end_refund(&again.id, true)?;
        tell_refund(&shop, &again.id, "succeeded").await?;
        until("no operator is asked for", DEADLINE, async || {
            let shown = look_at(kit, &shop.id("order")).await?;
            ensure!(shown["stuck"].is_null(), "{shown}");
            Ok(())
        })
        .await?;
        shop.keeps("order", 0).await?;
        shop.close().await
    })
}

fn a_repayment_that_was_refused_for_a_dispute_is_settled_once_the_bank_has_given_the_money(
    kit: &Kit,
) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open_with(kit, "returns/disputed", &[("HOLDFAST_RETRY_PAUSE", "1s")]).await?;
        let tickets = shop.tickets(1).await?;
        shop.buy("order", &tickets, CARD, 0).await?;
        let payment = shop.payment("order")?;
        shop.simulator.dispute(&payment)?;
        let money = json!({ "amount": PRICE, "currency": "EUR" });
        let dispute = |status: &str| json!({ "dispute": shop.id("dp"), "amount": money, "status": status });
        let told = shop.tell("order", "disputed", dispute("opened")).await?;
        shop.took(&told).await?;
        pay(kit, &[returned(&shop, "back", "order", json!({}))]).await?;
        free(kit, &tickets).await?;
        // One key more at each try, up to 12: by then the provider only repeats what it has said before.
        until("every key has its refusal", DEADLINE, async || {
            let asked = shop.simulator.asked().into_iter();
            let asked = asked.filter(|asked| asked.method == "POST" && asked.path == "/v1/refunds");
            let count = asked.count();
            ensure!(count > (1..=12).sum::<usize>(), "asked {count} times");
            Ok(())
        })
        .await?;
        let pool = kit.stack.postgres.connect().await?;
        let left = async || {
            let query = "select count(*) from repayments where checkout = $1 and settled_at is null";
            let query = sqlx::query_scalar::<_, i64>(query).bind(shop.id("order"));
            query.fetch_one(&pool).await
        };
        let open = left().await?;
        ensure!(open == 1, "{open} repayments are open while the dispute is");
        shop.simulator.close_dispute(&payment, false)?;
        let told = shop.tell("order", "disputed", dispute("lost")).await?;
        shop.took(&told).await?;
        until("the repayment is settled", DEADLINE, async || {
            let open = left().await?;
            ensure!(open == 0, "{open} repayments are open");
            Ok(())
        })
        .await?;
        let refunds = shop.simulator.refunds_of(&payment);
        ensure!(refunds.is_empty(), "refunded what the bank has: {refunds:?}");
        pool.close().await;
        shop.close().await
    })
}

fn a_cancelled_show_takes_back_every_ticket_wherever_it_is(kit: &Kit) -> anyhow::Result<()> {
    const SHOW: &str = "returns/gala";
    kit.block_on(async {
        let shop = Shop::open(kit, "returns/show").await?;
        let names = [
            "available",
            "held",
            "declined",
            "waiting",
            "paid",
            "credits",
            "disputed",
            "refunded",
        ];
        let tickets = names.map(|name| shop.id(name));
        let price = json!({ "amount": PRICE, "currency": "EUR" });
        for ticket in &tickets {
            list_in(kit, SHOW, ticket, &price).await?;
        }
        let other = shop.tickets_named("other", 1).await?;
        let [_, held, declined, waiting, paid, credits, disputed, refunded] = &tickets;
        shop.has(CREDITS).await?;
        // Of an order with seats of two shows, the other show's stay the buyer's.
        shop.buy("paid", &[paid.clone(), other[0].clone()], CARD, 0).await?;
        // The id of this order leaves no room for more in the id of an event.
        let long = "l".repeat(250 - shop.id("").len());
        shop.buy(&long, std::slice::from_ref(credits), CARD, CREDITS).await?;
        shop.buy("disputed", std::slice::from_ref(disputed), CARD, 0).await?;
        shop.buy("refunded", std::slice::from_ref(refunded), CARD, 0).await?;
        for (name, ticket, method) in [("declined", declined, DECLINED), ("waiting", waiting, CONFIRMED)] {
            fill(kit, &shop.user, std::slice::from_ref(ticket), Some(3_600)).await?;
            let body = json!({ "checkout": shop.id(name), "tickets": [ticket], "payment_method": method });
            check_out(kit, &shop.user, body).await?;
            reaches(kit, &shop.id(name), name).await?;
        }
        fill(kit, &shop.user, std::slice::from_ref(held), Some(3_600)).await?;
        shop.simulator.refund(&shop.payment("refunded")?, PRICE)?;
        let money = json!({ "amount": PRICE, "currency": "EUR" });
        let told = shop.tell("refunded", "refunded", json!({ "refunded": money })).await?;
        shop.took(&told).await?;
        shop.simulator.dispute(&shop.payment("disputed")?)?;
        let dispute = |status: &str| json!({ "dispute": shop.id("dp"), "amount": money, "status": status });
        let told = shop.tell("disputed", "disputed", dispute("opened")).await?;
        shop.took(&told).await?;

        let cancel = ["show", "cancel", SHOW];
        let said = admin_does(&shop, &[&cancel[..], &["--dry-run"]].concat()).await?;
        ensure!(said.contains("5 tickets taken off sale, 5 orders"), "{said}");
        // No refund is made while the provider is away, and none of what the bank has meanwhile: a later run goes on.
        shop.simulator
            .fail(Call::Refund, Some(&shop.id("paid")), Fault::Unavailable, 1_000);
        admin_refuses(&shop, &cancel, "2 orders are left").await?;
        withdrawn(kit, &tickets).await?;
        shop.keeps("paid", 2 * PRICE).await?;
        shop.simulator.heal();
        shop.simulator.close_dispute(&shop.payment("disputed")?, false)?;
        let told = shop.tell("disputed", "disputed", dispute("lost")).await?;
        shop.took(&told).await?;
        let said = admin_does(&shop, &cancel).await?;
        ensure!(said.contains("0 tickets taken off sale"), "{said}");
        let said = admin_does(&shop, &cancel).await?;
        ensure!(
            said.contains("0 tickets taken off sale, 0 orders returned, 0 checkouts given up"),
            "{said}"
        );

        withdrawn(kit, &tickets).await?;
        sold(kit, &other).await?;
        for (name, kept) in [
            ("paid", PRICE),
            (long.as_str(), 0),
            ("declined", 0),
            ("waiting", 0),
            ("refunded", 0),
        ] {
            shop.keeps(name, kept).await?;
        }
        // The bank has given the money of the dispute to the customer: it is not given twice.
        ensure!(
            shop.simulator.refunds_of(&shop.payment("disputed")?).is_empty(),
            "refunded what the bank has"
        );
        for name in ["declined", "waiting"] {
            let ended = ends(kit, &shop.id(name), "failed").await?;
            ensure!(ended["reason"] == "settled", "{ended}");
        }
        has_credits(kit, &shop.user, CREDITS).await?;
        let cart = look(kit, &shop.user, "cart").await?;
        ensure!(cart["tickets"] == json!([]), "{cart}");
        shop.close().await
    })
}

fn a_return_happens_once_whatever_step_dies_or_is_repeated(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let settings = [("HOLDFAST_ABANDONED_AFTER", "30s"), ("HOLDFAST_RETRY_PAUSE", "1s")];
        let mut shop = Shop::open_with(kit, "returns/crash", &settings).await?;
        let ours = |point: &Point| ["order.", "credits."].iter().any(|part| point.name().starts_with(part));
        let mut left = 0;
        for (round, point) in Point::ALL.into_iter().filter(ours).enumerate() {
            left += 2 * CREDITS;
            pay(
                kit,
                &[added(&shop.id(&format!("credits-{round}")), &shop.user, 2 * CREDITS)],
            )
            .await?;
            has_credits(kit, &shop.user, left).await?;
            let tickets = shop.tickets_named(&round.to_string(), 4).await?;
            let order = |number: usize| format!("{round}-order-{number}");
            // One order meets the crash; the other one comes after it, and meets the repeat.
            let mut asked = [const { Vec::new() }; 2];
            for (number, asked) in asked.iter_mut().enumerate() {
                let seats = &tickets[2 * number..][..2];
                shop.buy(&order(number), seats, CARD, CREDITS).await?;
                let name = order(number);
                asked.push(returned(
                    &shop,
                    &format!("{name}/1"),
                    &name,
                    json!({ "tickets": seats[..1] }),
                ));
                asked.push(returned(&shop, &format!("{name}/2"), &name, json!({ "resell": false })));
            }
            shop.crash_and_repeat(|shop| shop.launch("run"), point, &asked[0], &asked[1])
                .await
                .with_context(|| point.name())?;
            for number in 0..2 {
                shop.keeps(&order(number), 0).await.with_context(|| point.name())?;
                free(kit, &tickets[2 * number..][..1])
                    .await
                    .with_context(|| point.name())?;
                withdrawn(kit, &tickets[2 * number + 1..][..1])
                    .await
                    .with_context(|| point.name())?;
                let refunds = shop.simulator.refunds_of(&shop.payment(&order(number))?);
                ensure!(refunds.len() == 2, "{}: {refunds:?}", point.name());
            }
            has_credits(kit, &shop.user, left).await.with_context(|| point.name())?;
        }
        shop.close().await
    })
}

impl Shop<'_> {
    /// Gives the user so many credits.
    pub(crate) async fn has(&self, credits: i64) -> anyhow::Result<()> {
        pay(self.kit, &[added(&self.id("credits"), &self.user, credits)]).await?;
        has_credits(self.kit, &self.user, credits).await
    }

    /// The user buys these tickets, for so many credits and the rest by card, if there is one.
    pub(crate) async fn buy(&self, order: &str, tickets: &[String], method: &str, credits: i64) -> anyhow::Result<()> {
        fill(self.kit, &self.user, tickets, Some(3_600)).await?;
        let mut body = json!({ "checkout": self.id(order), "tickets": tickets });
        if !method.is_empty() {
            body["payment_method"] = json!(method);
        }
        if credits > 0 {
            body["credits"] = json!(credits);
        }
        check_out(self.kit, &self.user, body).await?;
        ends(self.kit, &self.id(order), "completed").await.map(drop)
    }

    /// Waits until the provider has this much money of an order.
    pub(crate) async fn keeps(&self, order: &str, money: i64) -> anyhow::Result<()> {
        until("the money is where it belongs", DEADLINE, async || {
            self.paid(order, money)
        })
        .await
    }
}

/// An event by which the shop returns an order.
fn returned(shop: &Shop<'_>, id: &str, order: &str, mut data: Value) -> Value {
    data["checkout"] = json!(shop.id(order));
    event(&shop.id(&format!("return/{id}")), &shop.user, "order.returned", data)
}

async fn tell_refund(shop: &Shop<'_>, refund: &str, status: &str) -> anyhow::Result<()> {
    let amount = json!({ "amount": PRICE, "currency": "EUR" });
    let data = json!({ "refund": refund, "amount": amount, "status": status });
    let told = shop.tell("order", "refund_changed", data).await?;
    shop.took(&told).await
}

async fn look_at(kit: &Kit, checkout: &str) -> anyhow::Result<Value> {
    let (status, shown) = crate::users::view(kit, "Checkout", checkout).await?;
    ensure!(status == 200, "{status}: {shown}");
    Ok(shown)
}

pub(crate) async fn admin_does(shop: &Shop<'_>, command: &[&str]) -> anyhow::Result<String> {
    let (done, said) = admin_says(shop, command).await?;
    ensure!(done, "{command:?}: {said}");
    Ok(said)
}

async fn admin_refuses(shop: &Shop<'_>, command: &[&str], why: &str) -> anyhow::Result<()> {
    let (done, said) = admin_says(shop, command).await?;
    ensure!(!done && said.contains(why), "{command:?}: {said}");
    Ok(())
}

/// Runs a command of an operator with the shop's settings.
async fn admin_says(shop: &Shop<'_>, command: &[&str]) -> anyhow::Result<(bool, String)> {
    let admin = command
        .iter()
        .fold(shop.beside("admin"), |admin, argument| admin.arg(argument));
    let admin = by(admin);
    let output = admin.output().await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ok((output.status.success(), said))
}
