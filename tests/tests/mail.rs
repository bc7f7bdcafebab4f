//! Mail to customers: one about each outcome, whatever the mail server answers, and nothing but mail waits for the mail server.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, bail, ensure};
use holdfast::crash::Point;
use holdfast::mail::message_id;
use holdfast_tests::kit::proxy::{Proxy, Side};
use holdfast_tests::kit::smtp::{Fault, Sink};
use holdfast_tests::kit::worker::SENDER;
use holdfast_tests::kit::{Kit, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::timeout;

use crate::checkout::{CARD, PRICE, REFUSED, Shop, check_out, ends, fill, held, list, sold};
use crate::crashes::done_again;
use crate::support::{DEADLINE, clean, event, pay, told_of};
use crate::users::{added, has_credits, registered};
use crate::zombies::elsewhere;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_customer_gets_one_mail_about_each_outcome_in_their_language,
    a_mail_server_that_is_away_or_silent_holds_up_mails_and_nothing_else,
    a_mail_is_tried_again_after_a_4xx_and_given_up_after_a_5xx,
    a_mail_whose_answer_takes_its_time_is_sent_once,
    a_mail_that_takes_its_time_to_write_is_sent_by_one_process,
    a_mail_is_sent_again_under_the_same_id_or_not_at_all_whatever_step_dies_or_is_repeated,
    an_international_domain_needs_no_extension_of_the_mail_server,
    a_connection_that_dies_without_a_word_holds_up_no_mail_and_doubles_none,
    two_serves_at_once_send_each_mail_once,
    without_a_mail_server_nobody_is_written_to_then_or_later,
    a_shop_writes_its_own_mails_and_a_mistake_in_them_stops_the_start,
];

/// Times that end within a test.
const HASTE: [(&str, &str); 2] = [
    ("HOLDFAST_SMTP_TIMEOUT", "700ms"),
    ("HOLDFAST_MAIL_LONGEST_PAUSE", "1s"),
];

pub(crate) fn a_customer_gets_one_mail_about_each_outcome_in_their_language(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut shop = Shop::open(kit, "mail/kinds").await?;
        let tickets = shop.tickets(3).await?;
        buy(kit, &shop, "english", &tickets[0], CARD).await?;
        ends(kit, &shop.id("english"), "completed").await?;
        shop.user = shop.id("anna");
        let anna = json!({ "email": "anna@example.org", "name": "Anna <b>\"Ä\"</b>\r\nBcc: eve@example.org", "language": "de-AT" });
        pay(kit, &[event(&shop.id("anna/1"), &shop.user, "user.registered", anna)]).await?;
        told_of::<holdfast_schemas::UserOutcome>(kit, &shop.user, 1).await?;
        buy(kit, &shop, "bought", &tickets[1], CARD).await?;
        ends(kit, &shop.id("bought"), "completed").await?;
        buy(kit, &shop, "declined", &tickets[2], REFUSED).await?;
        ends(kit, &shop.id("declined"), "failed").await?;
        let payment = shop.payment("bought")?;
        for amount in [700, PRICE - 700] {
            shop.simulator.refund(&payment, amount)?;
        }
        let money = |amount: i64| json!({ "refunded": { "amount": amount, "currency": "EUR" } });
        // Stale events and repeats cause no mail.
        for so_far in [700, 700, PRICE, 700] {
            shop.tell("bought", "refunded", money(so_far)).await?;
        }
        ends(kit, &shop.id("bought"), "refunded").await?;

        let database = kit.stack.postgres.connect().await?;
        for (name, place, to, subject, says) in [
            ("english", "completed", "ann@example.org", "Your tickets", "Charged: 25.00 EUR"),
            ("bought", "completed", "anna@example.org", "Ihre Karten", "Abgebucht: 25,00 EUR"),
            (
                "declined",
                "failed",
                "anna@example.org",
                "Ihre Bestellung konnte nicht abgeschlossen werden",
                "Die Zahlung wurde abgelehnt.",
            ),
            ("bought", "refunded/700", "anna@example.org", "Ihre Erstattung", "7,00 EUR"),
            ("bought", "refunded/2500", "anna@example.org", "Ihre Erstattung", "18,00 EUR"),
        ] {
            let (checkout, what) = (shop.id(name), format!("{name}: {place}"));
            let mail = the_mail(kit, &database, &checkout, place).await.context(what.clone())?;
            let text = |part: &str| mail[part].as_str().unwrap_or_default().to_owned();
            ensure!(mail["to"].as_array().map(Vec::len) == Some(1), "{what}: {mail}");
            ensure!(mail["to"][0]["address"] == to && mail["from"][0]["address"] == SENDER, "{what}: {mail}");
            ensure!(mail["subject"] == subject, "{what}: {mail}");
            for part in ["text", "html"] {
                let written = text(part).replace("&#x2f;", "/");
                ensure!(written.contains(&checkout), "{what}: {mail}");
            }
            ensure!(text("text").contains(says), "{what}: {mail}");
            ensure!(text("html").contains(says.rsplit(": ").next().unwrap_or(says)), "{what}: {mail}");
            if to.starts_with("anna") {
                ensure!(!text("html").contains("<b>") && text("html").contains("&lt;b&gt;"), "{what}: {mail}");
                ensure!(mail["envelope"]["to"].as_array().map(Vec::len) == Some(1), "{what}: {mail}");
                ensure!(mail["headers"]["bcc"].is_null(), "{what}: {mail}");
            }
        }
        let all: Vec<_> = maildev(kit).await?;
        let ours = all.iter().filter(|mail| mail["text"].as_str().is_some_and(|text| text.contains("mail/kinds/")));
        ensure!(ours.count() == 5, "{all:?}");
        let report = clean(kit).await?;
        ensure!(report["mail_missing"] == 0, "{report}");
        shop.close().await
    })
}

fn a_mail_server_that_is_away_or_silent_holds_up_mails_and_nothing_else(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut sink = Sink::start().await?;
        sink.go_away().await;
        let shop = open(kit, "mail/away", &sink).await?;
        let tickets = shop.tickets(2).await?;
        buy(kit, &shop, "bought", &tickets[0], CARD).await?;
        buy(kit, &shop, "declined", &tickets[1], REFUSED).await?;
        ends(kit, &shop.id("bought"), "completed").await?;
        ends(kit, &shop.id("declined"), "failed").await?;
        sold(kit, &tickets[..1]).await?;
        held(kit, &shop.user, &tickets[1..]).await?;
        shop.paid("bought", PRICE)?;

        let database = kit.stack.postgres.connect().await?;
        let orders = [(shop.id("bought"), "completed"), (shop.id("declined"), "failed")];
        // Four tries take longer than the time-out and three of the longest pauses.
        for (checkout, place) in &orders {
            until("the mail was tried again and again", DEADLINE, async || {
                let mail = row(&database, checkout, place).await?;
                ensure!(mail.state == "waiting" && mail.attempts >= 4, "{mail:?}");
                Ok(())
            })
            .await?;
        }
        until("mails that wait are counted", DEADLINE, async || {
            let waiting = shop.worker.metric("holdfast_mails_waiting").await?;
            let oldest = shop.worker.metric("holdfast_mails_oldest_seconds").await?;
            let retried = shop.worker.metric(r#"holdfast_mails_total{result="retried"}"#).await?;
            ensure!(
                waiting >= Some(2.0) && oldest >= Some(3.0) && retried >= Some(6.0),
                "{waiting:?} {oldest:?} {retried:?}"
            );
            Ok(())
        })
        .await?;

        // It is back, but answers nothing within the time-out.
        sink.fail(Fault::Silence, 4);
        sink.come_back().await?;
        for (checkout, place) in &orders {
            becomes(&database, checkout, place, "sent").await?;
            ensure!(of(&sink, checkout, place)?.len() == 1, "{checkout}: {:?}", sink.mails());
        }
        ensure!(sink.connections() >= 6, "{} connections", sink.connections());
        until("a drained queue counts as one", DEADLINE, async || {
            let waiting = shop.worker.metric("holdfast_mails_waiting").await?;
            let oldest = shop.worker.metric("holdfast_mails_oldest_seconds").await?;
            ensure!(waiting == Some(0.0) && oldest == Some(0.0), "{waiting:?} {oldest:?}");
            Ok(())
        })
        .await?;
        shop.close().await
    })
}

fn a_mail_is_tried_again_after_a_4xx_and_given_up_after_a_5xx(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let sink = Sink::start().await?;
        let database = kit.stack.postgres.connect().await?;
        holdfast::store::migrate(&database).await?;
        // The mails that other proofs left are none of those that are counted below.
        sqlx::query("update mails set next_at = next_at + interval '1 hour' where state = 'waiting'")
            .execute(&database)
            .await?;
        let mut shop = open(kit, "mail/answers", &sink).await?;
        shop.user = shop.id("frieda");
        let frieda = json!({ "email": "frieda.secret@example.org" });
        pay(
            kit,
            &[event(&shop.id("frieda/1"), &shop.user, "user.registered", frieda)],
        )
        .await?;
        told_of::<holdfast_schemas::UserOutcome>(kit, &shop.user, 1).await?;
        let cases: [(&str, &[Fault], Expected); 8] = [
            (
                "later",
                &[Fault::Answer("RCPT", 450), Fault::Answer(".", 451)],
                ("sent", 3, 250, 1),
            ),
            ("closing", &[Fault::Answer("DATA", 421)], ("sent", 2, 250, 1)),
            ("unknown", &[Fault::Answer("RCPT", 550)], ("refused", 1, 550, 0)),
            ("full", &[Fault::Answer(".", 552)], ("refused", 1, 552, 0)),
            // A fault of our settings: the mail waits until an operator mends it.
            (
                "sender",
                &[Fault::Answer("MAIL", 550), Fault::Answer("RCPT", 530)],
                ("sent", 3, 250, 1),
            ),
            (
                "relay",
                &[
                    Fault::Refusal("RCPT", 554, "5.7.1"),
                    Fault::Refusal("RCPT", 550, "5.1.8"),
                ],
                ("sent", 3, 250, 1),
            ),
            ("goodbye", &[Fault::NoGoodbye], ("sent", 1, 250, 1)),
            // The mailer cannot know that the first one arrived.
            ("lost", &[Fault::AnswerLost], ("sent", 2, 250, 2)),
        ];
        let tickets = shop.tickets(cases.len()).await?;
        for ((name, faults, expected), ticket) in cases.iter().zip(&tickets) {
            for fault in *faults {
                sink.fail(*fault, 1);
            }
            let checkout = shop.id(name);
            buy(kit, &shop, name, ticket, CARD).await?;
            ends(kit, &checkout, "completed").await?;
            let mail = becomes(&database, &checkout, "completed", expected.0)
                .await
                .context(*name)?;
            let count = of(&sink, &checkout, "completed")?.len();
            let found = (mail.state.as_str(), mail.attempts, mail.code.unwrap_or_default(), count);
            ensure!(found == *expected, "{name}: {mail:?}, {count} mails");
            sold(kit, std::slice::from_ref(ticket)).await?;
            shop.paid(name, PRICE)?;
        }
        for (result, expected) in [("sent", 6.0), ("refused", 2.0), ("retried", 8.0)] {
            let counted = shop
                .worker
                .metric(&format!(r#"holdfast_mails_total{{result="{result}"}}"#))
                .await?;
            ensure!(counted == Some(expected), "{result}: {counted:?}");
        }
        // The server's answers repeat the address; the log must not.
        let log = std::fs::read_to_string(shop.worker.log())?;
        ensure!(
            log.contains("refuses a mail for good")
                && log.contains("refuses us, or the recipient")
                && !log.contains("frieda.secret"),
            "{}",
            shop.worker.last_words()
        );
        shop.close().await
    })
}

fn a_mail_whose_answer_takes_its_time_is_sent_once(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let sink = Sink::start().await?;
        let shop = open(kit, "mail/slow", &sink).await?;
        sink.fail(Fault::Slow, 1);
        let ticket = shop.tickets(1).await?.remove(0);
        buy(kit, &shop, "order", &ticket, CARD).await?;
        let (database, order) = (kit.stack.postgres.connect().await?, shop.id("order"));
        let leased = async || {
            let until = sqlx::query_scalar("select next_at::text from mails where checkout = $1");
            let until: Option<String> = until.bind(&order).fetch_optional(&database).await?;
            until.with_context(|| format!("{order} has no mail"))
        };
        until("the server has the mail", DEADLINE, async || {
            ensure!(of(&sink, &order, "completed")?.len() == 1, "{:?}", sink.mails());
            Ok(())
        })
        .await?;
        let first = leased().await?;
        // That is longer than the time-out, which is less than half of the lease.
        until("the lease is prolonged", DEADLINE, async || {
            let now = leased().await?;
            ensure!(now != first, "{now}");
            Ok(())
        })
        .await?;
        sink.heal();
        let mail = becomes(&database, &order, "completed", "sent").await?;
        let count = of(&sink, &order, "completed")?.len();
        ensure!(mail.attempts == 1 && count == 1, "{mail:?}, {count} mails");
        shop.close().await
    })
}

fn a_mail_that_takes_its_time_to_write_is_sent_by_one_process(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let sink = Sink::start().await?;
        let smtp_url = sink.url();
        let settings = [
            HASTE[0],
            HASTE[1],
            ("HOLDFAST_SMTP_URL", smtp_url.as_str()),
            ("HOLDFAST_LOCK_TIMEOUT", "25s"),
        ];
        let shop = Shop::open_with(kit, "mail/written", &settings).await?;
        sink.fail(Fault::Answer("RCPT", 450), u32::MAX);
        let ticket = shop.tickets(1).await?.remove(0);
        buy(kit, &shop, "order", &ticket, CARD).await?;
        let (database, order) = (kit.stack.postgres.connect().await?, shop.id("order"));
        ends(kit, &order, "completed").await?;
        // Whoever writes the mail waits for this.
        let mut slow = database.begin().await?;
        sqlx::query("lock table users").execute(&mut *slow).await?;
        let leases = RefCell::new(BTreeSet::new());
        let (attempts, _) = until("the lease is prolonged", DEADLINE, async || {
            // Longer than any pause: a lease.
            let lease = "select attempts, next_at::text from mails
                 where checkout = $1 and next_at > clock_timestamp() + interval '3 seconds'";
            let lease: Option<(i32, String)> = sqlx::query_as(lease).bind(&order).fetch_optional(&database).await?;
            let lease = lease.context("no lease")?;
            let mut leases = leases.borrow_mut();
            leases.insert(lease.clone());
            ensure!(leases.range((lease.0, String::new())..).count() > 1, "{leases:?}");
            anyhow::Ok(lease)
        })
        .await?;
        // Another process takes it all the same, as after a lease that nobody could prolong.
        let take = "update mails set attempts = attempts + 1, next_at = clock_timestamp() + interval '1 hour' where checkout = $1";
        sqlx::query(take).bind(&order).execute(&database).await?;
        sink.heal();
        slow.rollback().await?;
        until("the mail is left to it", DEADLINE, async || {
            let log = std::fs::read_to_string(shop.worker.log())?;
            ensure!(log.contains("another process has taken it"), "{}", shop.worker.last_words());
            anyhow::Ok(())
        })
        .await?;
        ensure!(sink.mails().is_empty(), "{:?}", sink.mails());
        let give_up = "update mails set next_at = clock_timestamp() where checkout = $1";
        sqlx::query(give_up).bind(&order).execute(&database).await?;
        let mail = becomes(&database, &order, "completed", "sent").await?;
        let count = of(&sink, &order, "completed")?.len();
        ensure!(mail.attempts == attempts + 2 && count == 1, "{mail:?}, {count} mails");
        shop.close().await
    })
}

/// State, attempts, last code, and how many mails arrived.
type Expected = (&'static str, i32, i16, usize);

fn a_mail_is_sent_again_under_the_same_id_or_not_at_all_whatever_step_dies_or_is_repeated(
    kit: &Kit,
) -> anyhow::Result<()> {
    kit.block_on(async {
        let sink = Sink::start().await?;
        let mut shop = open(kit, "mail/crash", &sink).await?;
        let database = kit.stack.postgres.connect().await?;
        let tickets = shop.tickets(4).await?;
        let points = Point::ALL.into_iter().filter(|point| point.name().starts_with("mail."));
        for (round, point) in points.enumerate() {
            let (first, second) = (format!("{round}-first"), format!("{round}-second"));
            fill(kit, &shop.user, &tickets[2 * round..][..2], Some(3_600)).await?;
            shop.worker.kill()?;
            shop.worker = shop.launch("run").env("HOLDFAST_CRASH", point.name()).spawn()?;
            pay(kit, &[asked(&shop, &first, &tickets[2 * round])]).await?;
            let status = shop.worker.wait(DEADLINE).await?;
            ensure!(
                status.signal() == Some(Signal::SIGABRT as i32),
                "{status}\n{}",
                shop.worker.last_words()
            );
            shop.worker = shop.launch("run").env("HOLDFAST_REPEAT", point.name()).start().await?;
            becomes(&database, &shop.id(&first), "completed", "sent").await?;
            pay(kit, &[asked(&shop, &second, &tickets[2 * round + 1])]).await?;
            becomes(&database, &shop.id(&second), "completed", "sent").await?;
            done_again(&shop.worker, point).await?;
            for order in [&first, &second] {
                ends(kit, &shop.id(order), "completed").await?;
                shop.paid(order, PRICE)?;
            }
            let count = |order: &str| anyhow::Ok(of(&sink, &shop.id(order), "completed")?.len());
            let counts = (count(&first)?, count(&second)?);
            // A mail that was accepted and not noted is sent again: once after the crash, and once more by the repeated step.
            let expected = if point == Point::MailAccepted { (3, 1) } else { (1, 1) };
            ensure!(counts == expected, "{}: {counts:?}", point.name());
            // All copies of the mail about an order have one id.
            for order in [&first, &second] {
                let about = sink
                    .mails()
                    .into_iter()
                    .filter(|mail| mail.text.contains(&shop.id(order)));
                let ids: BTreeSet<_> = about.map(|mail| mail.header("message-id").map(str::to_owned)).collect();
                ensure!(ids.len() == 1, "{}: {ids:?}", point.name());
            }
        }
        shop.close().await
    })
}

fn an_international_domain_needs_no_extension_of_the_mail_server(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let sink = Sink::start().await?;
        let mut shop = open(kit, "mail/domain", &sink).await?;
        shop.user = shop.id("jan");
        let jan = json!({ "email": "jan@bücher.example" });
        pay(kit, &[event(&shop.id("jan/1"), &shop.user, "user.registered", jan)]).await?;
        told_of::<holdfast_schemas::UserOutcome>(kit, &shop.user, 1).await?;
        let ticket = shop.tickets(1).await?.remove(0);
        buy(kit, &shop, "order", &ticket, CARD).await?;
        let database = kit.stack.postgres.connect().await?;
        becomes(&database, &shop.id("order"), "completed", "sent").await?;
        let mails = of(&sink, &shop.id("order"), "completed")?;
        let [mail] = &mails[..] else {
            bail!("{mails:?}");
        };
        ensure!(mail.to.contains("<jan@xn--bcher-kva.example>"), "{mail:?}");
        ensure!(
            mail.header("to")
                .is_some_and(|to| to.contains("jan@xn--bcher-kva.example")),
            "{mail:?}"
        );
        shop.close().await
    })
}

fn a_connection_that_dies_without_a_word_holds_up_no_mail_and_doubles_none(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let sink = Sink::start().await?;
        let postgres = &kit.stack.postgres;
        let proxy = Proxy::start(postgres.address()).await?;
        let database_url = postgres.url().replace(&postgres.address(), &proxy.address());
        let smtp_url = sink.url();
        // A lease that outlasts what the mailer may wait for the database.
        let settings = [
            ("HOLDFAST_SMTP_TIMEOUT", "20s"),
            ("HOLDFAST_SMTP_URL", smtp_url.as_str()),
            ("HOLDFAST_DATABASE_URL", database_url.as_str()),
            ("HOLDFAST_STATEMENT_TIMEOUT", "1s"),
            ("HOLDFAST_ACQUIRE_TIMEOUT", "1s"),
        ];
        let shop = Shop::open_with(kit, "mail/silent", &settings).await?;
        let tickets = shop.tickets(2).await?;
        let database = postgres.connect().await?;
        // While it looks for mails, and when it notes that one was accepted.
        for (ticket, (name, statement)) in tickets.iter().zip([
            ("look", "update mails m set attempts"),
            ("note", "update mails set state = 'sent'"),
        ]) {
            proxy.stop_at(statement, Side::Before);
            let goes_on = async {
                if name == "look" {
                    proxy.stopped().await;
                    proxy.swallow();
                }
                buy(kit, &shop, name, ticket, CARD).await?;
                ends(kit, &shop.id(name), "completed").await?;
                if name == "note" {
                    proxy.stopped().await;
                    proxy.swallow();
                }
                becomes(&database, &shop.id(name), "completed", "sent").await
            };
            let mail = timeout(DEADLINE, goes_on)
                .await
                .with_context(|| format!("{name}: it waits for ever"))??;
            ensure!(mail.attempts == 1, "{name}: {mail:?}");
            ensure!(
                of(&sink, &shop.id(name), "completed")?.len() == 1,
                "{name}: {:?}",
                sink.mails()
            );
        }
        shop.close().await
    })
}

fn two_serves_at_once_send_each_mail_once(kit: &Kit) -> anyhow::Result<()> {
    // More mails than one process sends within a time-out and a pause, so that the other process has to send some.
    const ORDERS: usize = 12;
    const TIMEOUT: (&str, &str) = ("HOLDFAST_SMTP_TIMEOUT", "5s");
    kit.block_on(async {
        let mut sink = Sink::start().await?;
        sink.fail(Fault::Silence, u32::MAX);
        let url = sink.url();
        let settings = [TIMEOUT, HASTE[1], ("HOLDFAST_SMTP_URL", url.as_str())];
        let shop = Shop::open_with(kit, "mail/two", &settings).await?;
        let second = (settings.iter()).fold(elsewhere(kit, "serve")?, |launch, (name, value)| {
            launch.env(name, value)
        });
        let second = second.env("HOLDFAST_MAIL_FROM", SENDER).start().await?;
        let tickets = shop.tickets(ORDERS).await?;
        for (number, ticket) in tickets.iter().enumerate() {
            buy(kit, &shop, &number.to_string(), ticket, CARD).await?;
        }
        for number in 0..ORDERS {
            ends(kit, &shop.id(&number.to_string()), "completed").await?;
        }
        for worker in [&shop.worker, &second] {
            until("each of them had a hand in it", DEADLINE, async || {
                let retried = worker.metric(r#"holdfast_mails_total{result="retried"}"#).await?;
                ensure!(retried > Some(0.0), "{retried:?}");
                Ok(())
            })
            .await?;
        }
        sink.heal();
        sink.go_away().await;
        sink.come_back().await?;
        let database = kit.stack.postgres.connect().await?;
        for number in 0..ORDERS {
            let checkout = shop.id(&number.to_string());
            becomes(&database, &checkout, "completed", "sent").await?;
            ensure!(
                of(&sink, &checkout, "completed")?.len() == 1,
                "{checkout}: {:?}",
                sink.mails()
            );
        }
        second.stop().await?;
        shop.close().await
    })
}

fn without_a_mail_server_nobody_is_written_to_then_or_later(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "mail/off";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "mail");
        let worker = worker
            .without("HOLDFAST_SMTP_URL")
            .without("HOLDFAST_MAIL_FROM")
            .start()
            .await?;
        pay(kit, &[registered("mail/off/1", USER), added("mail/off/2", USER, 40)]).await?;
        has_credits(kit, USER, 40).await?;
        let tickets = ["mail/off/seat".to_owned()];
        list(kit, &tickets, 40).await?;
        fill(kit, USER, &tickets, None).await?;
        check_out(kit, USER, json!({ "checkout": "mail/off/order", "credits": 40 })).await?;
        ends(kit, "mail/off/order", "completed").await?;
        worker.stop().await?;
        // A worker with a mail server starts: it sends mails about outcomes from now on.
        let shop = Shop::open(kit, "mail/on").await?;
        let ticket = shop.tickets(1).await?.remove(0);
        buy(kit, &shop, "order", &ticket, CARD).await?;
        let database = kit.stack.postgres.connect().await?;
        becomes(&database, &shop.id("order"), "completed", "sent").await?;
        let mail = row(&database, "mail/off/order", "completed").await?;
        ensure!(mail.state == "off" && mail.attempts == 0, "{mail:?}");
        ensure!(of_maildev(kit, "mail/off/order", "completed").await?.is_empty());
        shop.close().await
    })
}

fn a_shop_writes_its_own_mails_and_a_mistake_in_them_stops_the_start(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let folder = kit.stack.folder().join("mail-templates");
        let to = folder.to_str().context("a folder with a strange name")?;
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        let write = async || {
            let command = ["mail", "templates", "--to", to];
            let launch = (command.iter()).fold(kit.stack.holdfast("admin", "mail"), |launch, word| launch.arg(word));
            launch.output().await
        };
        let written = write().await?;
        ensure!(written.status.success(), "{written:?}");
        // What is there is never written over.
        ensure!(write().await?.status.code() == Some(1));
        let seller = json!({
            "sender": "Bühne, \"Graz\"", "language": "de", "name": "Bühne <Graz>", "address": ["Am Markt 1"], "contact": null, "legal": "FN 1a",
        });
        std::fs::write(folder.join("seller.json"), seller.to_string())?;
        std::fs::write(folder.join("completed.de.subject"), "Plätze{% if facts.order %} in {{ facts.order }}{% endif %} – Ihre\n")?;
        let sink = Sink::start().await?;
        let mut shop = open_with(kit, "mail/own", &sink, &[("HOLDFAST_MAIL_TEMPLATES", to)]).await?;
        let tickets = shop.tickets(2).await?;
        let database = kit.stack.postgres.connect().await?;
        buy(kit, &shop, "ann", &tickets[0], CARD).await?;
        becomes(&database, &shop.id("ann"), "completed", "sent").await?;
        let maildev = kit.stack.maildev.as_ref().context("no mail server")?.smtp();
        shop.worker.stop().await?;

        // A mistake is named before anything is reached.
        std::fs::write(folder.join("failed.de.txt"), "Guten Tag\n{{ facts.nmae }}\n")?;
        for role in ["run", "doctor"] {
            let wrong = kit.stack.holdfast(role, "mail").env("HOLDFAST_MAIL_TEMPLATES", to).output().await?;
            let says = String::from_utf8(wrong.stderr)?;
            let named = says.contains("--mail-templates (HOLDFAST_MAIL_TEMPLATES): ") && says.contains("failed.de.txt:2: ");
            ensure!(wrong.status.code() == Some(2) && named && says.contains("facts.nmae"), "{role}: {says}");
        }
        std::fs::write(folder.join("failed.de.txt"), "Guten Tag\n")?;

        // A server that shows mails as their readers do.
        shop.worker = shop.launch("run").env("HOLDFAST_SMTP_URL", &maildev).start().await?;
        shop.user = shop.id("zoe");
        let zoe = json!({ "email": "zoe@example.org", "language": "en-GB" });
        pay(kit, &[event(&shop.id("zoe/1"), &shop.user, "user.registered", zoe)]).await?;
        told_of::<holdfast_schemas::UserOutcome>(kit, &shop.user, 1).await?;
        buy(kit, &shop, "zoe-1", &tickets[1], CARD).await?;
        let mail = the_mail(kit, &database, &shop.id("zoe-1"), "completed").await?;
        ensure!(mail["from"][0]["name"] == "Bühne, \"Graz\"" && mail["from"][0]["address"] == SENDER, "{mail}");
        ensure!(mail["subject"] == "Your tickets", "{mail}");
        let text = |part: &str| mail[part].as_str().unwrap_or_default().to_owned();
        ensure!(text("text").contains("Bühne <Graz>\nAm Markt 1\nFN 1a"), "{mail}");
        ensure!(text("html").contains("Bühne &lt;Graz&gt;<br>Am Markt 1"), "{mail}");

        let mails = of(&sink, &shop.id("ann"), "completed")?;
        let [mail] = &mails[..] else {
            bail!("{mails:?}");
        };
        let subject = mail.header("subject").unwrap_or_default();
        ensure!(subject.is_ascii() && !subject.is_empty() && subject != "Ihre Karten", "{mail:?}");
        shop.close().await
    })
}

/// A shop whose mails go to this server.
async fn open<'a>(kit: &'a Kit, name: &'static str, sink: &Sink) -> anyhow::Result<Shop<'a>> {
    open_with(kit, name, sink, &[]).await
}

/// As [`open`], with more settings.
pub(crate) async fn open_with<'a>(
    kit: &'a Kit,
    name: &'static str,
    sink: &Sink,
    more: &[(&str, &str)],
) -> anyhow::Result<Shop<'a>> {
    let url = sink.url();
    let settings = [&HASTE[..], &[("HOLDFAST_SMTP_URL", url.as_str())], more].concat();
    Shop::open_with(kit, name, &settings).await
}

/// The shop's user asks to buy a ticket.
pub(crate) async fn buy(kit: &Kit, shop: &Shop<'_>, checkout: &str, ticket: &str, method: &str) -> anyhow::Result<()> {
    fill(kit, &shop.user, &[ticket.to_owned()], Some(3_600)).await?;
    let body = json!({ "checkout": shop.id(checkout), "tickets": [ticket], "payment_method": method });
    check_out(kit, &shop.user, body).await.map(drop)
}

/// As [`buy`], of a ticket that is held, by Kafka.
fn asked(shop: &Shop<'_>, checkout: &str, ticket: &str) -> Value {
    let data = json!({ "checkout": shop.id(checkout), "tickets": [ticket], "payment_method": CARD });
    event(
        &shop.id(&format!("{checkout}/asked")),
        &shop.user,
        "checkout.requested",
        data,
    )
}

#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Row {
    state: String,
    attempts: i32,
    code: Option<i16>,
}

async fn row(database: &PgPool, checkout: &str, place: &str) -> anyhow::Result<Row> {
    let row = sqlx::query_as("select state, attempts, code from mails where checkout = $1 and place = $2");
    let row: Option<Row> = row.bind(checkout).bind(place).fetch_optional(database).await?;
    row.with_context(|| format!("{checkout} has no mail {place}"))
}

/// The mail, once it is in this state, which nothing changes any more.
pub(crate) async fn becomes(database: &PgPool, checkout: &str, place: &str, state: &str) -> anyhow::Result<Row> {
    until(
        &format!("the mail {place} of {checkout} is {state}"),
        DEADLINE,
        async || {
            let mail = row(database, checkout, place).await?;
            ensure!(mail.state == state, "{mail:?}");
            Ok(mail)
        },
    )
    .await
}

/// The mails about an outcome that have arrived.
pub(crate) fn of(sink: &Sink, checkout: &str, place: &str) -> anyhow::Result<Vec<holdfast_tests::kit::smtp::Mail>> {
    let id = id(checkout, place)?;
    let mails = sink.mails().into_iter();
    Ok(mails.filter(|mail| mail.header("message-id") == Some(&id)).collect())
}

/// The one mail about an outcome, once it has arrived.
pub(crate) async fn the_mail(kit: &Kit, database: &PgPool, checkout: &str, place: &str) -> anyhow::Result<Value> {
    becomes(database, checkout, place, "sent").await?;
    let mut mails = of_maildev(kit, checkout, place).await?;
    ensure!(mails.len() == 1, "{checkout} {place}: {mails:?}");
    Ok(mails.remove(0))
}

async fn of_maildev(kit: &Kit, checkout: &str, place: &str) -> anyhow::Result<Vec<Value>> {
    let id = id(checkout, place)?;
    let mut mails = maildev(kit).await?;
    mails.retain(|mail| mail["headers"]["message-id"] == *id);
    Ok(mails)
}

async fn maildev(kit: &Kit) -> anyhow::Result<Vec<Value>> {
    kit.stack.maildev.as_ref().context("no mail server")?.mails().await
}

fn id(checkout: &str, place: &str) -> anyhow::Result<String> {
    let (_, domain) = SENDER.split_once('@').context("no domain")?;
    Ok(message_id(&checkout.parse()?, place, domain))
}
