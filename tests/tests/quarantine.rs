//! Quarantine: an event that breaks the worker itself is parked with what follows it, and nobody else waits. What breaks here is
//! real: a constraint that the proof adds to a table, which the events with certain ids violate.

use std::cell::Cell;
use std::os::unix::process::ExitStatusExt;

use anyhow::{bail, ensure};
use holdfast::crash::Point;
use holdfast_schemas::UserOutcome;
use holdfast_tests::kit::{Kit, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::{PgPool, Row};

use crate::admin::{done, refused, settled};
use crate::checkout::{CARD, PRICE, Shop, free, verbs};
use crate::crashes::done_again;
use crate::support::{
    DEADLINE, clean, event, letters, listed, outcomes_of, pay, requested, send, told, told_of, verdicts,
};
use crate::users::{added, call, changed, registered, view};
use crate::workers::Workers;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_breaker_and_what_follows_it_are_parked_and_every_other_key_goes_on,
    a_user_whose_event_breaks_is_parked_whatever_way_commits_it,
    whoever_calls_a_key_in_quarantine_is_answered_at_once,
    a_hold_and_a_checkout_leave_a_seat_in_quarantine_alone,
    a_sold_seat_in_quarantine_is_taken_back_and_its_buyer_waits_for_nothing,
    a_request_by_http_that_breaks_is_answered_and_holds_up_nobody,
    many_keys_that_break_at_once_are_retried_and_not_parked,
    nothing_is_lost_or_parked_twice_whatever_step_dies_or_is_repeated,
    what_is_parked_is_replayed_in_order_and_live_events_stay_behind,
    a_replay_that_breaks_again_stops_there_and_a_dropped_breaker_is_a_dead_letter,
    a_replay_takes_effect_once_whatever_step_dies_or_is_repeated,
    a_key_that_does_not_get_on_slows_no_other_however_much_waits_for_it,
];

/// A rule of the database that no event with `breaks` in its id keeps.
struct Breaking {
    pool: PgPool,
}

impl Breaking {
    async fn begin(kit: &Kit) -> anyhow::Result<Self> {
        let breaking = Self {
            pool: kit.stack.postgres.connect().await?,
        };
        breaking.forget_flood().await?;
        let rule =
            "alter table idempotency_records add constraint proofs_break check (id not like '%breaks%') not valid";
        sqlx::raw_sql(rule).execute(&breaking.pool).await?;
        Ok(breaking)
    }

    /// As if the keys of earlier proofs had broken long ago.
    async fn forget_flood(&self) -> anyhow::Result<()> {
        sqlx::raw_sql("update quarantined_keys set since = since - interval '1 hour'")
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    async fn end(&self) -> anyhow::Result<()> {
        sqlx::raw_sql("alter table idempotency_records drop constraint proofs_break")
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The ids of a key's parked events, in order, once there are `count`; more are an error.
    async fn parked(&self, key: &str, count: usize) -> anyhow::Result<Vec<String>> {
        let parked = until(&format!("{count} parked events of {key}"), DEADLINE, async || {
            let rows = sqlx::query("select event from parked_events where key = $1 order by id").bind(key);
            let rows = rows.fetch_all(&self.pool).await?;
            let ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            ensure!(ids.len() >= count, "{ids:?}");
            anyhow::Ok(ids)
        })
        .await?;
        ensure!(parked.len() == count, "{parked:?}");
        Ok(parked)
    }

    async fn quarantined(&self, prefix: &str) -> anyhow::Result<i64> {
        let count = sqlx::query_scalar("select count(*) from quarantined_keys where starts_with(key, $1)").bind(prefix);
        Ok(count.fetch_one(&self.pool).await?)
    }
}

/// A ticket's events: one is good, the next breaks, and two follow.
fn broken(ticket: &str) -> [Value; 4] {
    [
        listed(&format!("{ticket}/1"), ticket),
        requested(&format!("{ticket}/2/breaks"), ticket, "ann"),
        requested(&format!("{ticket}/3"), ticket, "bob"),
        requested(&format!("{ticket}/4"), ticket, "cid"),
    ]
}

/// The ids of what is parked of them, in order.
fn behind(ticket: &str) -> Vec<String> {
    ["2/breaks", "3", "4"].map(|id| format!("{ticket}/{id}")).to_vec()
}

fn a_breaker_and_what_follows_it_are_parked_and_every_other_key_goes_on(kit: &Kit) -> anyhow::Result<()> {
    const STUCK: &str = "quarantine/stuck";
    const UNKNOWN: &str = "quarantine/unknown";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "quarantine").start().await?;
        let breaking = Breaking::begin(kit).await?;
        let before = clean(kit).await?["parked"].as_u64().unwrap_or_default();
        send(kit, &broken(STUCK)).await?;
        let others: Vec<_> = (0..20)
            .flat_map(|number| {
                let ticket = format!("quarantine/other/{number}");
                [
                    listed(&format!("{ticket}/1"), &ticket),
                    requested(&format!("{ticket}/2"), &ticket, "ann"),
                ]
            })
            .collect();
        send(kit, &others).await?;
        told(kit, "quarantine/other/", others.len()).await?;
        let first = told(kit, STUCK, 1).await?;
        ensure!(verdicts(&first) == ["listed"], "{first:?}");
        ensure!(breaking.parked(STUCK, 3).await? == behind(STUCK));

        // What comes again is parked once, what is new behind the rest; a repeat of what was decided is a repeat.
        send(kit, &broken(STUCK)).await?;
        send(kit, &[requested("quarantine/stuck/5", STUCK, "dan")]).await?;
        // A key without a row.
        send(kit, &[requested("quarantine/unknown/breaks", UNKNOWN, "ann")]).await?;
        breaking.parked(STUCK, 4).await?;
        breaking.parked(UNKNOWN, 1).await?;
        let report = clean(kit).await?;
        ensure!(report["parked"] == before + 8, "{report}");
        let waits = kit.stack.restate.sql("select service_key from sys_inbox").await?;
        ensure!(waits.is_empty(), "{waits:?}");
        told(kit, STUCK, 1).await?;
        for (name, value) in [
            (r#"holdfast_quarantined_keys{topic="reservations"}"#, 2.0),
            (r#"holdfast_parked_events{topic="reservations"}"#, 5.0),
            (r#"holdfast_quarantined_total{cause="constraint"}"#, 2.0),
        ] {
            until(name, DEADLINE, async || {
                let found = worker.metric(name).await?;
                ensure!(found >= Some(value), "{found:?}");
                anyhow::Ok(())
            })
            .await?;
        }
        breaking.end().await?;
        worker.stop().await
    })
}

fn a_user_whose_event_breaks_is_parked_whatever_way_commits_it(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "quarantine").start().await?;
        let breaking = Breaking::begin(kit).await?;
        let named = |user: &str, id: &str| {
            let data = json!({ "to": { "name": id } });
            event(&format!("{user}/{id}"), user, "profile.changed", data)
        };
        let cancelled = |user: &str, id: &str| {
            let data = json!({ "checkout": "quarantine/none" });
            event(&format!("{user}/{id}"), user, "checkout.cancelled", data)
        };
        let gives = |user: &str, id: &str| added(&format!("{user}/{id}"), user, 5);
        for (user, breaks) in [
            ("quarantine/plain", &named as &dyn Fn(&str, &str) -> Value),
            ("quarantine/credits", &gives),
            ("quarantine/checkout", &cancelled),
        ] {
            let events = [
                registered(&format!("{user}/1"), user),
                gives(user, "2"),
                named(user, "3"),
                breaks(user, "4-breaks"),
                gives(user, "5"),
                named(user, "6"),
                cancelled(user, "7"),
            ];
            pay(kit, &events).await?;
            let parked = breaking.parked(user, 4).await?;
            let expected = ["4-breaks", "5", "6", "7"].map(|id| format!("{user}/{id}"));
            ensure!(parked == expected, "{parked:?}");
            let outcomes = told_of::<UserOutcome>(kit, user, 3).await?;
            ensure!(
                verdicts(&outcomes) == ["registered", "changed", "changed"],
                "{outcomes:?}"
            );
        }
        clean(kit).await?;
        breaking.end().await?;
        worker.stop().await
    })
}

fn whoever_calls_a_key_in_quarantine_is_answered_at_once(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "quarantine/called";
    const USER: &str = "quarantine/caller";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "quarantine").start().await?;
        let breaking = Breaking::begin(kit).await?;
        pay(kit, &[registered("quarantine/caller/1", USER)]).await?;
        told_of::<UserOutcome>(kit, USER, 1).await?;
        let list = json!({ "show": "proofs", "price": { "amount": 4_500, "currency": "EUR" } });
        let key = [("idempotency-key", "quarantine-list")];
        let (status, first) = call(kit, &key, "Ticket", TICKET, "list", &list).await?;
        ensure!(status == 200, "{first}");
        send(kit, &[requested("quarantine/called/breaks", TICKET, "ann")]).await?;
        breaking.parked(TICKET, 1).await?;
        let other = "quarantine/other-seat";
        send(kit, &[listed("quarantine/other-seat/1", other)]).await?;
        told(kit, other, 1).await?;
        for (object, key, handler, body) in [
            ("Ticket", TICKET, "withdraw", json!({})),
            ("Ticket", TICKET, "reserve", json!({ "user": "ann" })),
            ("User", USER, "addTicket", json!({ "ticket": TICKET })),
            ("User", USER, "holdTogether", json!({ "tickets": [other, TICKET] })),
        ] {
            let (status, said) = call(kit, &[], object, key, handler, &body).await?;
            let text = said.to_string();
            ensure!(
                status == 409 && text.contains("quarantine") && text.contains("proofs_break"),
                "{handler}: {status}: {said}"
            );
        }
        // A repeat gets the first answer, and readers read.
        let (status, again) = call(kit, &key, "Ticket", TICKET, "list", &list).await?;
        ensure!(status == 200 && again == first, "{status}: {again}");
        let (status, seen) = view(kit, "Ticket", TICKET).await?;
        ensure!(status == 200 && seen["status"] == "available", "{seen}");

        pay(
            kit,
            &[event("quarantine/caller/breaks", USER, "user.erased", json!({}))],
        )
        .await?;
        breaking.parked(USER, 1).await?;
        for (object, handler, body) in [
            ("User", "changeProfile", json!({ "to": { "name": "Ann" } })),
            ("User", "checkout", json!({ "tickets": [TICKET] })),
            ("User", "addTicket", json!({ "ticket": other })),
            ("User", "holdTogether", json!({ "tickets": [other] })),
            ("Account", "addCredits", json!({ "amount": 5 })),
            ("Account", "erase", json!({})),
        ] {
            let (status, said) = call(kit, &[], object, USER, handler, &body).await?;
            ensure!(status == 409, "{handler}: {status}: {said}");
        }
        clean(kit).await?;
        breaking.end().await?;
        worker.stop().await
    })
}

fn a_hold_and_a_checkout_leave_a_seat_in_quarantine_alone(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "quarantine/buyer";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "quarantine").start().await?;
        let breaking = Breaking::begin(kit).await?;
        pay(kit, &[registered("quarantine/buyer/1", USER)]).await?;
        told_of::<UserOutcome>(kit, USER, 1).await?;
        let held = |ticket: &str, seconds: i64| {
            let data = json!({ "user": USER, "hold_for": seconds });
            event(&format!("{ticket}/2"), ticket, "reservation.requested", data)
        };
        for (ticket, seconds) in [("quarantine/due", 1), ("quarantine/kept", 900)] {
            let events = [
                listed(&format!("{ticket}/1"), ticket),
                held(ticket, seconds),
                requested(&format!("{ticket}/breaks"), ticket, "bob"),
            ];
            send(kit, &events).await?;
            breaking.parked(ticket, 1).await?;
        }
        // The Reaper's turns go on meanwhile.
        let ends = "quarantine/ends";
        send(kit, &[listed("quarantine/ends/1", ends), held(ends, 1)]).await?;
        let outcomes = told(kit, ends, 3).await?;
        ensure!(verdicts(&outcomes) == ["listed", "held", "expired"], "{outcomes:?}");
        let (_, seen) = view(kit, "Ticket", "quarantine/due").await?;
        ensure!(seen["status"] == "held", "{seen}");
        let (status, said) = call(
            kit,
            &[],
            "User",
            USER,
            "checkout",
            &json!({ "tickets": ["quarantine/kept"] }),
        )
        .await?;
        ensure!(
            status == 200 && said.to_string().contains("not_your_hold"),
            "{status}: {said}"
        );
        clean(kit).await?;
        breaking.end().await?;
        worker.stop().await
    })
}

fn a_sold_seat_in_quarantine_is_taken_back_and_its_buyer_waits_for_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let shop = Shop::open(kit, "quarantine/returned").await?;
        let tickets = shop.tickets(2).await?;
        let [returned, refunded] = &tickets[..] else {
            bail!("not two tickets: {tickets:?}");
        };
        shop.buy("returned", std::slice::from_ref(returned), CARD, 0).await?;
        shop.buy("refunded", std::slice::from_ref(refunded), CARD, 0).await?;
        let breaking = Breaking::begin(kit).await?;
        let behind = |ticket: &str| ["breaks", "next"].map(|id| format!("{ticket}/{id}"));
        for ticket in &tickets {
            let [breaks, next] = behind(ticket);
            let asked = [requested(&breaks, ticket, "bob"), requested(&next, ticket, "cid")];
            send(kit, &asked).await?;
            breaking.parked(ticket, 2).await?;
        }

        // By an event of the shop, and by the provider's report of a refund by hand; another event of the buyer follows.
        let asked = json!({ "checkout": shop.id("returned") });
        let asked = event(&shop.id("return"), &shop.user, "order.returned", asked);
        pay(kit, &[asked]).await?;
        shop.simulator.refund(&shop.payment("refunded")?, PRICE)?;
        let money = json!({ "refunded": { "amount": PRICE, "currency": "EUR" } });
        shop.tell("refunded", "refunded", money).await?;
        let later = shop.id("later");
        let named = changed(&later, &shop.user, json!({ "to": { "name": "Ann" } }));
        pay(kit, &[named]).await?;
        shop.took(&later).await?;
        free(kit, &tickets).await?;
        shop.keeps("returned", 0).await?;
        shop.keeps("refunded", 0).await?;
        clean(kit).await?;
        let of_buyer = verbs(&outcomes_of::<UserOutcome>(kit, &shop.user).await?);
        for verb in ["returned", "refunded", "changed"] {
            ensure!(of_buyer.iter().any(|told| told == verb), "no {verb}: {of_buyer:?}");
        }

        // The seats stay in quarantine, so that nobody gets them before those who asked earlier.
        for ticket in &tickets {
            ensure!(breaking.parked(ticket, 2).await? == behind(ticket));
            let (status, said) = call(kit, &[], "Ticket", ticket, "reserve", &json!({ "user": "eve" })).await?;
            ensure!(status == 409, "{status}: {said}");
        }
        breaking.end().await?;
        for ticket in &tickets {
            settled(kit, &["quarantine", "replay", "--ticket", ticket]).await?;
            let outcomes = told(kit, ticket, 6).await?;
            ensure!(
                verdicts(&outcomes) == ["listed", "held", "sold", "returned", "held", "held"],
                "{outcomes:?}"
            );
            ensure!(
                outcomes.iter().map(|outcome| outcome.sequence).eq(1..=6),
                "{outcomes:?}"
            );
            let causes = outcomes[4..].iter().map(|outcome| outcome.causation_id.as_str());
            ensure!(causes.eq(behind(ticket)), "{outcomes:?}");
            ensure!(breaking.quarantined(ticket).await? == 0);
        }
        shop.close().await
    })
}

fn a_request_by_http_that_breaks_is_answered_and_holds_up_nobody(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "quarantine/asked";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "quarantine").start().await?;
        let breaking = Breaking::begin(kit).await?;
        let rule = "alter table tickets add constraint proofs_show check (show <> 'breaks') not valid";
        sqlx::raw_sql(rule).execute(&breaking.pool).await?;
        let list = |show: &str| json!({ "show": show, "price": { "amount": 4_500, "currency": "EUR" } });
        let (status, said) = call(kit, &[], "Ticket", TICKET, "list", &list("breaks")).await?;
        ensure!(
            status == 500 && said.to_string().contains("proofs_show"),
            "{status}: {said}"
        );
        let (status, said) = call(kit, &[], "Ticket", TICKET, "list", &list("proofs")).await?;
        ensure!(status == 200, "{status}: {said}");
        ensure!(breaking.quarantined(TICKET).await? == 0);
        sqlx::raw_sql("alter table tickets drop constraint proofs_show")
            .execute(&breaking.pool)
            .await?;
        breaking.end().await?;
        clean(kit).await?;
        worker.stop().await
    })
}

fn many_keys_that_break_at_once_are_retried_and_not_parked(kit: &Kit) -> anyhow::Result<()> {
    const KEYS: usize = 20;
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "quarantine").start().await?;
        let breaking = Breaking::begin(kit).await?;
        let ticket = |number| format!("quarantine/flood/{number}");
        let events: Vec<_> = (0..KEYS)
            .flat_map(|number| {
                let ticket = ticket(number);
                [
                    listed(&format!("{ticket}/1"), &ticket),
                    requested(&format!("{ticket}/breaks"), &ticket, "ann"),
                ]
            })
            .collect();
        send(kit, &events).await?;
        until("the flood is told", DEADLINE, async || {
            let floods = worker.metric("holdfast_quarantine_floods_total").await?;
            ensure!(floods >= Some(KEYS as f64), "{floods:?}");
            anyhow::Ok(())
        })
        .await?;
        let quarantined = breaking.quarantined("quarantine/flood/").await?;
        ensure!(quarantined <= 5, "{quarantined} keys in quarantine");
        // What was wrong is mended: everything that was not parked goes on by itself.
        breaking.end().await?;
        told(kit, "quarantine/flood/", 2 * KEYS - quarantined as usize).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

fn nothing_is_lost_or_parked_twice_whatever_step_dies_or_is_repeated(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut workers = Workers::start(kit).await?;
        let breaking = Breaking::begin(kit).await?;
        for point in [Point::QuarantineWritten, Point::QuarantineParked] {
            breaking.forget_flood().await?;
            let name = point.name();
            workers.serve.kill()?;
            let serve = kit.stack.holdfast("serve", "serve");
            workers.serve = serve.env("HOLDFAST_CRASH", name).spawn()?;
            let (dies, again) = (format!("quarantine/{name}/dies"), format!("quarantine/{name}/again"));
            send(kit, &broken(&dies)).await?;
            let status = workers.serve.wait(DEADLINE).await?;
            ensure!(status.signal() == Some(Signal::SIGABRT as i32), "{name}: {status}");
            let serve = kit.stack.holdfast("serve", "serve");
            workers.serve = serve.env("HOLDFAST_REPEAT", name).start().await?;
            send(kit, &broken(&again)).await?;
            done_again(&workers.serve, point).await?;
            for ticket in [dies, again] {
                ensure!(breaking.parked(&ticket, 3).await? == behind(&ticket));
                let outcomes = told(kit, &ticket, 1).await?;
                ensure!(verdicts(&outcomes) == ["listed"], "{name}: {outcomes:?}");
            }
            clean(kit).await?;
        }
        breaking.end().await?;
        workers.stop().await
    })
}

fn what_is_parked_is_replayed_in_order_and_live_events_stay_behind(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "quarantine/replayed";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "quarantine").start().await?;
        let breaking = Breaking::begin(kit).await?;
        send(kit, &broken(TICKET)).await?;
        breaking.parked(TICKET, 3).await?;
        // More than one step of a replay takes.
        let more: Vec<_> = (5..=1_200)
            .map(|number| requested(&format!("{TICKET}/{number}"), TICKET, &format!("user-{number}")))
            .collect();
        send(kit, &more).await?;
        breaking.parked(TICKET, 3 + more.len()).await?;

        // As long as it breaks, nothing moves.
        let replay = [
            "quarantine",
            "replay",
            "--ticket",
            TICKET,
            "--by",
            "eve",
            "--why",
            "mended?",
        ];
        refused(kit, &replay, "not everything was replayed").await?;
        breaking.parked(TICKET, 3 + more.len()).await?;
        breaking.end().await?;
        // Live events come all the while.
        let live: Vec<_> = (0..200)
            .map(|number| requested(&format!("{TICKET}/live/{number}"), TICKET, &format!("live-{number}")))
            .collect();
        let (replayed, sent) = tokio::join!(done(kit, &replay), send(kit, &live));
        let (replayed, _) = (replayed?, sent?);
        ensure!(replayed.contains("replayed"), "{replayed}");
        let count = 4 + more.len() + live.len();
        let outcomes = told(kit, TICKET, count).await?;
        let causes: Vec<_> = outcomes.iter().map(|outcome| outcome.causation_id.as_str()).collect();
        let first = ["1", "2/breaks", "3", "4"].map(|id| format!("{TICKET}/{id}"));
        let expected = first.iter().cloned();
        let expected = expected.chain((5..=1_200).map(|number| format!("{TICKET}/{number}")));
        let expected: Vec<_> = expected
            .chain((0..live.len()).map(|number| format!("{TICKET}/live/{number}")))
            .collect();
        ensure!(causes == expected, "{causes:?}");
        ensure!(breaking.quarantined(TICKET).await? == 0);
        clean(kit).await?;
        worker.stop().await
    })
}

fn a_replay_that_breaks_again_stops_there_and_a_dropped_breaker_is_a_dead_letter(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "quarantine/again";
    const USER: &str = "quarantine/again-user";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "quarantine").start().await?;
        let breaking = Breaking::begin(kit).await?;
        let events = [
            listed(&format!("{TICKET}/1"), TICKET),
            requested(&format!("{TICKET}/2/breaks"), TICKET, "ann"),
            requested(&format!("{TICKET}/3"), TICKET, "bob"),
            requested(&format!("{TICKET}/4/breaks"), TICKET, "cid"),
            requested(&format!("{TICKET}/5"), TICKET, "dan"),
        ];
        let places = send(kit, &events).await?;
        let named = |id: &str| {
            let data = json!({ "to": { "name": id } });
            event(&format!("{USER}/{id}"), USER, "profile.changed", data)
        };
        let of_user = [
            registered(&format!("{USER}/1"), USER),
            named("2-breaks"),
            added(&format!("{USER}/3"), USER, 5),
            named("4-breaks"),
            added(&format!("{USER}/5"), USER, 5),
        ];
        pay(kit, &of_user).await?;
        breaking.parked(TICKET, 4).await?;
        breaking.parked(USER, 4).await?;

        let list = done(kit, &["quarantine", "list", "--kind", "PROOFS_break"]).await?;
        ensure!(
            list.contains("constraint: 23514 proofs_break") && list.contains(TICKET),
            "{list}"
        );
        let shown = done(kit, &["quarantine", "show", "--ticket", TICKET]).await?;
        ensure!(shown.contains("2/breaks") && !shown.contains("ann"), "{shown}");
        let whole = done(kit, &["quarantine", "show", "--ticket", TICKET, "--payload"]).await?;
        ensure!(whole.contains("ann"), "{whole}");
        let by = ["--by", "eve", "--why", "the first is void"];
        let dry = ["quarantine", "drop", "--ticket", TICKET, "--dry-run"];
        ensure!(done(kit, &dry).await?.contains("would be dropped"));
        refused(kit, &["quarantine", "drop", "--ticket", TICKET], "--by").await?;
        breaking.parked(TICKET, 4).await?;

        for (kind, key) in [("--ticket", TICKET), ("--user", USER)] {
            done(kit, &[&["quarantine", "drop", kind, key][..], &by].concat()).await?;
            breaking.parked(key, 3).await?;
            let replay = [&["quarantine", "replay", kind, key][..], &by].concat();
            refused(kit, &replay, "not everything was replayed").await?;
            breaking.parked(key, 2).await?;
        }
        let letter = letters(kit, &places[1..2]).await?;
        let letter = letter.values().next();
        ensure!(
            letter.is_some_and(|letter| letter.says.detail.contains("the first is void")
                && letter.says.reason.as_str() == "quarantined"),
            "{letter:?}"
        );
        clean(kit).await?;
        breaking.end().await?;
        let all = [&["quarantine", "replay", "--kind", "proofs_break"][..], &by].concat();
        done(kit, &all).await?;
        let outcomes = told(kit, TICKET, 4).await?;
        ensure!(
            verdicts(&outcomes) == ["listed", "held", "held", "held"],
            "{outcomes:?}"
        );
        ensure!(
            outcomes[1].causation_id.as_str() == format!("{TICKET}/3"),
            "{outcomes:?}"
        );
        let outcomes = told_of::<UserOutcome>(kit, USER, 4).await?;
        ensure!(
            verdicts(&outcomes) == ["registered", "changed", "changed", "changed"],
            "{outcomes:?}"
        );
        let kept: Vec<(String, Option<String>)> =
            sqlx::query_as("select what, who from quarantine_log where key = $1 order by id")
                .bind(TICKET)
                .fetch_all(&breaking.pool)
                .await?;
        let kept: Vec<_> = kept.iter().map(|(what, who)| (what.as_str(), who.as_deref())).collect();
        let eve = Some("eve");
        let expected = [
            ("quarantined", None),
            ("dropped", eve),
            ("replay_asked", eve),
            ("replayed", None),
            ("broke_again", None),
            ("replay_asked", eve),
            ("replayed", None),
        ];
        ensure!(kept == expected, "{kept:?}");
        clean(kit).await?;
        worker.stop().await
    })
}

fn a_replay_takes_effect_once_whatever_step_dies_or_is_repeated(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut workers = Workers::start(kit).await?;
        let by = ["--by", "eve", "--why", "mended"];
        for point in [Point::QuarantineReplaying, Point::QuarantineReplayed] {
            let name = point.name();
            let breaking = Breaking::begin(kit).await?;
            let key = |what: &str| format!("quarantine/{name}/{what}");
            for what in ["dies", "again"] {
                let (ticket, user) = (key(what), key(&format!("user-{what}")));
                send(kit, &broken(&ticket)).await?;
                breaking.parked(&ticket, 3).await?;
                let erased = event(&format!("{user}/3"), &user, "user.erased", json!({}));
                let events = [
                    registered(&format!("{user}/1"), &user),
                    added(&format!("{user}/2-breaks"), &user, 5),
                    erased,
                    added(&format!("{user}/4"), &user, 7),
                ];
                pay(kit, &events).await?;
                breaking.parked(&user, 3).await?;
            }
            breaking.end().await?;
            for (kind, dies, again) in [
                ("--ticket", key("dies"), key("again")),
                ("--user", key("user-dies"), key("user-again")),
            ] {
                workers.serve.kill()?;
                let serve = kit.stack.holdfast("serve", "serve");
                workers.serve = serve.env("HOLDFAST_CRASH", name).start().await?;
                let replay = |key: &str| [&["quarantine", "replay", kind, key][..], &by].concat().join("\n");
                let (command, second) = (replay(&dies), replay(&again));
                let command: Vec<_> = command.split('\n').collect();
                let (replayed, restarted) = tokio::join!(done(kit, &command), async {
                    let status = workers.serve.wait(DEADLINE).await?;
                    ensure!(status.signal() == Some(Signal::SIGABRT as i32), "{name}: {status}");
                    let serve = kit.stack.holdfast("serve", "serve");
                    serve.env("HOLDFAST_REPEAT", name).start().await
                });
                workers.serve = restarted?;
                replayed?;
                done(kit, &second.split('\n').collect::<Vec<_>>()).await?;
                done_again(&workers.serve, point).await?;
            }
            for what in ["dies", "again"] {
                let outcomes = told(kit, &key(what), 4).await?;
                ensure!(
                    verdicts(&outcomes) == ["listed", "held", "held", "held"],
                    "{outcomes:?}"
                );
                let outcomes = told_of::<UserOutcome>(kit, &key(&format!("user-{what}")), 4).await?;
                ensure!(
                    outcomes.iter().map(|outcome| outcome.sequence).eq(1..=4),
                    "{outcomes:?}"
                );
            }
            clean(kit).await?;
        }
        workers.stop().await
    })
}

fn a_key_that_does_not_get_on_slows_no_other_however_much_waits_for_it(kit: &Kit) -> anyhow::Result<()> {
    const LIMIT: usize = 12;
    const STUCK: &str = "quarantine/held-up";
    kit.block_on(async {
        let limit = LIMIT.to_string();
        let worker = kit.stack.holdfast("run", "quarantine");
        let worker = worker.env("HOLDFAST_GATE_UNFINISHED_LIMIT", &limit).start().await?;
        send(kit, &[listed("quarantine/held-up/0", STUCK)]).await?;
        told(kit, STUCK, 1).await?;
        // A row that this release cannot read: that waits for another one, and is retried.
        let pool = kit.stack.postgres.connect().await?;
        let currency = |code: &'static str| {
            let change = sqlx::query("update tickets set price_currency = $2 where ticket = $1");
            change.bind(STUCK).bind(code).execute(&pool)
        };
        currency("ZZZ").await?;
        let sent = Cell::new(1);
        until(
            "more waits for the key than the gate lets wait in all",
            DEADLINE,
            async || {
                send(
                    kit,
                    &[requested(&format!("quarantine/held-up/{}", sent.get()), STUCK, "ann")],
                )
                .await?;
                sent.set(sent.get() + 1);
                let waiting = "select count(*) as waiting from sys_inbox where service_key = 'quarantine/held-up'";
                let waiting = kit.stack.restate.sql(waiting).await?[0]["waiting"].as_u64();
                ensure!(waiting > Some(2 * LIMIT as u64), "{waiting:?} wait");
                anyhow::Ok(())
            },
        )
        .await?;
        until("the key is seen to be stuck", DEADLINE, async || {
            let stuck = worker.metric("holdfast_engine_stuck_keys").await?;
            ensure!(stuck == Some(1.0), "{stuck:?}");
            anyhow::Ok(())
        })
        .await?;
        let others: Vec<_> = (0..5 * LIMIT)
            .map(|number| {
                let ticket = format!("quarantine/passes/{number}");
                listed(&format!("{ticket}/1"), &ticket)
            })
            .collect();
        for some in others.chunks(LIMIT) {
            send(kit, some).await?;
        }
        told(kit, "quarantine/passes/", others.len()).await?;
        currency("EUR").await?;
        told(kit, STUCK, sent.get()).await?;
        clean(kit).await?;
        pool.close().await;
        worker.stop().await
    })
}
