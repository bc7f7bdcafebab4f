//! Users: registered, changed and given credits by events and by HTTP, each once, also where a second database keeps the
//! credits; and tickets that a user gets all together or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use holdfast::crash::Point;
use holdfast::store::mechanisms::two_phase::{self, TransactionId};
use holdfast_schemas::{
    Credits, DeadLetterReason, OutcomeData, UserOutcome, UserRefusalReason, outcome_id, outcomes, topics,
};
use holdfast_tests::kit::kafka::{Sent, send_with};
use holdfast_tests::kit::proxy::Proxy;
use holdfast_tests::kit::{Kit, until};
use rdkafka::producer::FutureProducer;
use serde_json::{Value, json};
use sqlx::{PgConnection, Row};
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use crate::crashes::crash_and_repeat;
use crate::support::{
    DEADLINE, SHOP, binary, clean, event, letters, letters_about, listed, outcomes_of, pay, requested, send,
    structured, told, told_of, verdicts,
};
use crate::workers::Workers;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_user_is_registered_changed_and_given_credits_in_order,
    every_payment_event_takes_effect_once_however_often_and_by_whomever_it_is_sent,
    credits_of_an_unknown_user_are_refused_and_given_to_nobody,
    credits_that_the_loyalty_database_does_not_take_are_refused_and_later_ones_go_on,
    credits_agree_in_both_databases_whatever_step_dies_or_is_repeated,
    credits_that_a_dead_worker_left_prepared_are_ended_without_a_next_try,
    credits_that_a_dead_worker_decided_are_given_without_a_next_try,
    a_loyalty_database_that_is_away_keeps_nobody_waiting_but_who_gets_credits,
    a_bad_payment_record_is_put_aside_and_the_next_one_goes_on,
    a_user_is_asked_by_http_as_by_events,
    tickets_are_held_together_or_not_at_all,
    a_request_to_hold_together_has_one_answer_for_ever_refused_or_not,
    tickets_are_held_together_once_whatever_step_dies_or_is_repeated,
    whoever_wins_one_of_the_tickets_that_many_want_together_wins_all,
];

fn a_user_is_registered_changed_and_given_credits_in_order(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "users/life";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "users").start().await?;
        let events = [
            registered("users/life/1", USER),
            registered("users/life/2", USER),
            changed(
                "users/life/3",
                USER,
                json!({ "to": { "language": "de", "name": "Ann" } }),
            ),
            changed("users/life/4", USER, json!({ "to": { "language": "de" } })),
            changed(
                "users/life/5",
                USER,
                json!({ "to": { "name": "Anna" }, "was": { "language": "fr" } }),
            ),
            changed(
                "users/life/6",
                USER,
                json!({ "to": { "name": "Anna" }, "was": { "language": "de" } }),
            ),
            added("users/life/7", USER, 30),
            added("users/life/8", USER, 12),
        ];
        pay(kit, &events).await?;

        // A change to the present value makes no outcome.
        let expected = [
            ("users/life/1", UserOutcome::UserRegistered(outcomes::UserRegistered {})),
            ("users/life/2", refused(UserRefusalReason::AlreadyRegistered)),
            (
                "users/life/3",
                UserOutcome::ProfileChanged(outcomes::ProfileChanged {
                    fields: vec![outcomes::ProfileField::Name, outcomes::ProfileField::Language],
                }),
            ),
            ("users/life/5", refused(UserRefusalReason::ProfileDiffers)),
            (
                "users/life/6",
                UserOutcome::ProfileChanged(outcomes::ProfileChanged {
                    fields: vec![outcomes::ProfileField::Name],
                }),
            ),
            ("users/life/7", given(30)?),
            ("users/life/8", given(12)?),
        ];
        let outcomes = told_of::<UserOutcome>(kit, USER, expected.len()).await?;
        let said = outcomes
            .iter()
            .map(|outcome| (outcome.causation_id.as_str(), outcome.data.clone()));
        ensure!(said.eq(expected), "{outcomes:?}");
        ensure!(
            outcomes.iter().map(|outcome| outcome.sequence).eq(1..=7),
            "{outcomes:?}"
        );

        let pool = kit.stack.postgres.connect().await?;
        let row = sqlx::query("select version, email, name, language from users where user_id = $1")
            .bind(USER)
            .fetch_one(&pool)
            .await?;
        pool.close().await;
        let (version, texts) = (
            row.get::<i64, _>(0),
            [1, 2, 3].map(|column| row.get::<String, _>(column)),
        );
        ensure!(
            version == 7 && texts == ["ann@example.org", "Anna", "de"],
            "{version}: {texts:?}"
        );
        has_credits(kit, USER, 42).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

fn every_payment_event_takes_effect_once_however_often_and_by_whomever_it_is_sent(kit: &Kit) -> anyhow::Result<()> {
    const USERS: usize = 20;
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "users").start().await?;
        let user = |number: usize| format!("users/thrice/{number}");
        let events = (0..USERS).map(|number| {
            let user = user(number);
            [
                registered(&format!("{user}/register"), &user),
                changed(
                    &format!("{user}/change"),
                    &user,
                    json!({ "to": { "email": "b@example.org" } }),
                ),
                added(&format!("{user}/credits"), &user, 5),
                added(&format!("{user}/more"), &user, 8),
            ]
        });
        let events: Vec<Value> = events.flatten().collect();
        let thrice = events.iter().flat_map(|event| [event, event, event]);
        let records: Vec<Sent> = thrice.map(structured).collect();
        kit.stack.kafka.send(topics::PAYMENTS, &records).await?;
        let other = kit.stack.kafka.producer("zstd")?;
        let again: Vec<Sent> = events.iter().map(binary).collect();
        for _ in 0..3 {
            send_with(&other, topics::PAYMENTS, &again).await?;
        }

        clean(kit).await?;
        told_of::<UserOutcome>(kit, "users/thrice/", events.len()).await?;
        for number in 0..USERS {
            has_credits(kit, &user(number), 13).await?;
        }
        worker.stop().await
    })
}

fn credits_of_an_unknown_user_are_refused_and_given_to_nobody(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "users/nobody";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "users").start().await?;
        let before = all_balances(kit, "").await?;
        pay(kit, &[added("users/nobody/credits", USER, 1_000)]).await?;
        let outcomes = told_of::<UserOutcome>(kit, USER, 1).await?;
        ensure!(
            outcomes[0].data == refused(UserRefusalReason::UnknownUser) && outcomes[0].sequence == 0,
            "{outcomes:?}"
        );
        none_prepared(kit).await?;
        let now = all_balances(kit, "").await?;
        ensure!(now == before, "{now:?} was {before:?}");
        clean(kit).await?;
        worker.stop().await
    })
}

fn credits_that_the_loyalty_database_does_not_take_are_refused_and_later_ones_go_on(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "users/full";
    // Room for five more.
    const KEPT: i64 = i64::MAX - 5;
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "users").start().await?;
        let pool = kit.stack.postgres.connect_to_loyalty().await?;
        sqlx::query("insert into accounts (user_id, credits) values ($1, $2)")
            .bind(USER)
            .bind(KEPT)
            .execute(&pool)
            .await?;
        let events = [
            registered("users/full/1", USER),
            added("users/full/2", USER, 6),
            added("users/full/3", USER, 5),
        ];
        pay(kit, &events).await?;
        let outcomes = told_of::<UserOutcome>(kit, USER, 3).await?;
        let said = outcomes.iter().map(|outcome| (outcome.sequence, outcome.data.clone()));
        let expected = [
            (1, UserOutcome::UserRegistered(outcomes::UserRegistered {})),
            (2, refused(UserRefusalReason::LoyaltyRefuses)),
            (3, given(5)?),
        ];
        ensure!(said.eq(expected), "{outcomes:?}");
        has_credits(kit, USER, i64::MAX).await?;
        none_prepared(kit).await?;
        pool.close().await;
        clean(kit).await?;
        worker.stop().await
    })
}

fn credits_agree_in_both_databases_whatever_step_dies_or_is_repeated(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut workers = Workers::start(kit).await?;
        let mut gifts = Gifts::begin(kit).await?;
        let points: Vec<Point> = [Point::CreditsPrepared, Point::CreditsDecided, Point::CreditsSettled].into();
        for point in points {
            let round = crash_and_repeat(kit, &mut workers.serve, "serve", point);
            gifts.during(round).await.with_context(|| point.name())?;
            gifts.agree().await.with_context(|| point.name())?;
            none_prepared(kit).await.with_context(|| point.name())?;
            ensure!(workers.serve.runs(), "{}: ended while it repeated a step", point.name());
        }
        clean(kit).await?;
        workers.stop().await
    })
}

fn credits_that_a_dead_worker_left_prepared_are_ended_without_a_next_try(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "users/orphan";
    kit.block_on(async {
        let (main, loyalty) = tokio::try_join!(kit.stack.postgres.connect(), kit.stack.postgres.connect_to_loyalty())?;
        // Named as by `store::credits`. No try for this outcome comes again, and a prepared transaction outlives its session.
        let outcome = outcome_id(SHOP, "users/orphan/1", USER, 0);
        let (transaction, attempt) = (TransactionId::parse(&format!("credits/{outcome}"))?, Uuid::new_v4());
        let give = async |loyalty: &mut PgConnection| {
            let insert = sqlx::query("insert into accounts (user_id, credits) values ($1, 5)").bind(USER);
            insert.execute(loyalty).await.map(drop).context("the account")
        };
        two_phase::prepare(&loyalty, &transaction, attempt, give).await?;

        let worker = kit
            .stack
            .holdfast("run", "users")
            .env("HOLDFAST_CREDITS_ABANDONED_AFTER", "1s");
        let worker = worker.start().await?;
        none_prepared(kit).await?;
        let fate: String =
            sqlx::query_scalar("select fate from two_phase_attempts where transaction = $1 and attempt = $2")
                .bind(transaction.as_str())
                .bind(attempt)
                .fetch_one(&main)
                .await?;
        ensure!(fate == "aborted", "its row says that it was {fate}");
        ensure!(all_balances(kit, USER).await?.is_empty(), "they were given");
        tokio::join!(main.close(), loyalty.close());

        // It holds no lock any more.
        pay(
            kit,
            &[registered("users/orphan/2", USER), added("users/orphan/3", USER, 7)],
        )
        .await?;
        has_credits(kit, USER, 7).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

fn credits_that_a_dead_worker_decided_are_given_without_a_next_try(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "users/decided";
    kit.block_on(async {
        let mut workers = Workers::start(kit).await?;
        pay(kit, &[registered("users/decided/1", USER)]).await?;
        told_of::<UserOutcome>(kit, USER, 1).await?;
        workers.serve.stop().await?;
        let serve = || kit.stack.holdfast("serve", "serve");
        let dying = serve().env("HOLDFAST_CRASH", Point::CreditsDecided.name()).spawn()?;
        let dies = async {
            let status = dying.wait(Gifts::WITHIN).await?;
            ensure!(!status.success(), "{status}");
            give_up(kit, USER).await
        };
        let body = json!({ "amount": 9 });
        let ((), (status, _)) = tokio::try_join!(dies, call(kit, &[], "Account", USER, "addCredits", &body))?;
        ensure!(status != 200, "it was answered");

        workers.serve = serve().env("HOLDFAST_CREDITS_ABANDONED_AFTER", "1s").start().await?;
        has_credits(kit, USER, 9).await?;
        let outcomes = told_of::<UserOutcome>(kit, USER, 2).await?;
        ensure!(outcomes[1].data == given(9)?, "{outcomes:?}");
        none_prepared(kit).await?;
        clean(kit).await?;
        workers.stop().await
    })
}

/// Kills the user's unfinished invocation, so that Restate does not retry it.
async fn give_up(kit: &Kit, user: &str) -> anyhow::Result<()> {
    let invocation = &invocation(kit, user).await?["id"];
    let id = invocation.as_str().context("an invocation without an id")?;
    let url = format!("{}/invocations/{id}/kill", kit.stack.restate.admin());
    reqwest::Client::new().patch(url).send().await?.error_for_status()?;
    Ok(())
}

/// The one unfinished invocation of a user.
async fn invocation(kit: &Kit, user: &str) -> anyhow::Result<Value> {
    let question = format!(
        "select id, retry_count from sys_invocation
         where target_service_name in ('User', 'Account') and target_service_key = '{user}' and status <> 'completed'"
    );
    let mut found = kit.stack.restate.sql(&question).await?;
    ensure!(found.len() == 1, "not one invocation: {found:?}");
    Ok(found.remove(0))
}

fn a_loyalty_database_that_is_away_keeps_nobody_waiting_but_who_gets_credits(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "users/away/ann";
    const OTHER: &str = "users/away/bob";
    kit.block_on(async {
        let address = kit.stack.postgres.address();
        let mut proxy = Proxy::start(address.clone()).await?;
        let url = kit.stack.postgres.loyalty_url().replace(&address, &proxy.address());
        let worker = kit.stack.holdfast("run", "users").env("HOLDFAST_LOYALTY_URL", &url);
        let worker = worker.env("HOLDFAST_ACQUIRE_TIMEOUT", "300ms").start().await?;
        pay(kit, &[registered("users/away/1", USER), added("users/away/2", USER, 7)]).await?;
        has_credits(kit, USER, 7).await?;

        proxy.refuse().await;
        pay(kit, &[added("users/away/3", USER, 8)]).await?;
        until("several tries have given up", DEADLINE, async || {
            let tries = invocation(kit, USER).await?["retry_count"].as_u64();
            ensure!(tries >= Some(4), "{tries:?} tries");
            anyhow::Ok(())
        })
        .await?;
        pay(kit, &[registered("users/away/4", OTHER)]).await?;
        told_of::<UserOutcome>(kit, OTHER, 1).await?;
        told_of::<UserOutcome>(kit, USER, 2).await?;

        proxy.admit().await?;
        told_of::<UserOutcome>(kit, USER, 3).await?;
        has_credits(kit, USER, 15).await?;
        none_prepared(kit).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

/// Credits that keep being given while something is broken.
struct Gifts<'a> {
    kit: &'a Kit,
    producer: FutureProducer,
    beats: usize,
    /// What was sent, by user.
    sent: BTreeMap<String, i64>,
}

impl<'a> Gifts<'a> {
    /// Enough users to go on with while those with an unfinished attempt wait for the sweeper.
    const USERS: usize = 40;
    const PREFIX: &'static str = "users/gifts/";
    const BEAT: Duration = Duration::from_millis(40);
    /// Longer than an attempt is left alone, and than any retry of the engine waits.
    const WITHIN: Duration = Duration::from_secs(120);

    async fn begin(kit: &'a Kit) -> anyhow::Result<Self> {
        let users = (0..Self::USERS).map(Self::user);
        let events: Vec<_> = users
            .map(|user| registered(&format!("{user}/register"), &user))
            .collect();
        pay(kit, &events).await?;
        told_of::<UserOutcome>(kit, Self::PREFIX, Self::USERS).await?;
        Ok(Self {
            kit,
            producer: kit.stack.kafka.producer("none")?,
            beats: 0,
            sent: BTreeMap::new(),
        })
    }

    fn user(number: usize) -> String {
        format!("{}{}", Self::PREFIX, number % Self::USERS)
    }

    /// Keeps credits coming for as long as `work` takes.
    async fn during<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let mut beats = interval(Self::BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = beats.tick() => {}
            }
            self.beat().await?;
        }
    }

    /// One gift, sent twice.
    async fn beat(&mut self) -> anyhow::Result<()> {
        let (number, user) = (self.beats, Self::user(self.beats));
        let amount = 1 + number as i64 % 9;
        let gift = structured(&added(&format!("{user}/{number}"), &user, amount));
        send_with(&self.producer, topics::PAYMENTS, &[gift.clone(), gift]).await?;
        self.beats += 1;
        *self.sent.entry(user).or_default() += amount;
        Ok(())
    }

    /// Waits until the credits sent, those in outcomes and those in the loyalty database are the same, user by user.
    async fn agree(&self) -> anyhow::Result<()> {
        let (kit, sent) = (self.kit, &self.sent);
        until("credits sent, told and kept agree", Self::WITHIN, async || {
            let mut told = BTreeMap::new();
            for outcome in outcomes_of::<UserOutcome>(kit, Self::PREFIX).await? {
                if let UserOutcome::CreditsChanged(outcomes::CreditsChanged { added }) = outcome.data {
                    *told.entry(outcome.subject.to_string()).or_default() += added.amount();
                }
            }
            let mut kept = all_balances(kit, Self::PREFIX).await?;
            kept.retain(|_, credits| *credits > 0);
            ensure!(
                told == *sent && kept == *sent,
                "sent {sent:?}, told {told:?}, kept {kept:?}"
            );
            Ok(())
        })
        .await
    }
}

fn a_bad_payment_record_is_put_aside_and_the_next_one_goes_on(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "users/bad";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "users").start().await?;
        let injected = json!({ "email": "ann@example.org\r\nBcc: eve@example.org" });
        let bad = [
            (listed("users/bad/1", USER), DeadLetterReason::UnknownType),
            (added("users/bad/2", USER, 0), DeadLetterReason::InvalidData),
            (
                event("users/bad/3", USER, "user.registered", injected),
                DeadLetterReason::InvalidData,
            ),
            (
                changed("users/bad/4", USER, json!({ "to": { "language": "de_DE" } })),
                DeadLetterReason::InvalidData,
            ),
            (
                changed("users/bad/5", USER, json!({ "to": { "credits": 5 } })),
                DeadLetterReason::InvalidData,
            ),
        ];
        let mut records: Vec<Sent> = bad.iter().map(|(event, _)| structured(event)).collect();
        records.push(structured(&registered("users/bad/6", USER)));
        let places = kit.stack.kafka.send(topics::PAYMENTS, &records).await?;
        let strayed = send(kit, &[added("users/bad/7", USER, 5)]).await?;

        let outcomes = told_of::<UserOutcome>(kit, USER, 1).await?;
        ensure!(
            outcomes[0].data == UserOutcome::UserRegistered(outcomes::UserRegistered {}),
            "{outcomes:?}"
        );
        let put_aside = letters_about(kit, topics::PAYMENTS, &places[..bad.len()]).await?;
        for (place, (event, reason)) in places.iter().zip(&bad) {
            let letter = &put_aside[place];
            ensure!(letter.says.reason == *reason, "{event}: {letter:?}");
            ensure!(
                letter.record.value == structured(event).value && !letter.says.detail.contains("eve@"),
                "{letter:?}"
            );
        }
        ensure!(put_aside.len() == bad.len(), "{put_aside:?}");
        let strayed = letters(kit, &strayed).await?;
        ensure!(
            strayed
                .values()
                .all(|letter| letter.says.reason == DeadLetterReason::UnknownType),
            "{strayed:?}"
        );
        clean(kit).await?;
        worker.stop().await
    })
}

fn a_user_is_asked_by_http_as_by_events(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "users-http";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "users").start().await?;
        let ask = async |handler: &str, body: Value| {
            let object = if handler == "addCredits" { "Account" } else { "User" };
            call(kit, &[], object, USER, handler, &body).await
        };
        let (status, nothing) = view(kit, "User", USER).await?;
        ensure!(status == 404, "{status}: {nothing}");

        let ann = json!({ "email": "ann@example.org", "name": "Ann" });
        let credits = json!({ "amount": 30 });
        let change = json!({ "to": { "language": "de" }, "was": { "name": "Ann" } });
        let differs = json!({ "to": { "language": "fr" }, "was": { "language": "en" } });
        // Request, and the answer that it must get: a sequence with its outcome.
        let asked = [
            (
                "addCredits",
                credits.clone(),
                vec![(0, refused(UserRefusalReason::UnknownUser))],
            ),
            (
                "register",
                ann.clone(),
                vec![(1, UserOutcome::UserRegistered(outcomes::UserRegistered {}))],
            ),
            (
                "register",
                ann,
                vec![(2, refused(UserRefusalReason::AlreadyRegistered))],
            ),
            (
                "changeProfile",
                change.clone(),
                vec![(
                    3,
                    UserOutcome::ProfileChanged(outcomes::ProfileChanged {
                        fields: vec![outcomes::ProfileField::Language],
                    }),
                )],
            ),
            ("changeProfile", change, vec![]),
            (
                "changeProfile",
                differs,
                vec![(4, refused(UserRefusalReason::ProfileDiffers))],
            ),
            ("addCredits", credits, vec![(5, given(30)?)]),
        ];
        for (handler, body, expected) in asked {
            let (status, reply) = ask(handler, body.clone()).await?;
            let expected: Vec<Value> = expected
                .iter()
                .map(|(sequence, told)| answer(*sequence, told))
                .collect();
            ensure!(
                status == 200 && reply == json!({ "outcomes": expected }),
                "{handler} {body}: {status}: {reply}"
            );
        }

        // Repeated with its key it is the same request; another request cannot have the same key.
        const KEY: &[(&str, &str)] = &[("idempotency-key", "users-1")];
        let give =
            async |amount: i64| call(kit, KEY, "Account", USER, "addCredits", &json!({ "amount": amount })).await;
        let (status, first) = give(12).await?;
        ensure!(
            status == 200 && first == json!({ "outcomes": [answer(6, &given(12)?)] }),
            "{status}: {first}"
        );
        ensure!(give(12).await? == (200, first), "the repeat was answered otherwise");
        let (status, other) = give(13).await?;
        ensure!(
            status == 409 && other.to_string().contains("idempotency-key"),
            "{status}: {other}"
        );

        for (handler, body, names) in [
            ("register", json!({}), "email"),
            ("register", json!({ "email": "ann" }), "email"),
            (
                "register",
                json!({ "email": "ann@example.org\r\nBcc: eve@example.org" }),
                "email",
            ),
            ("register", json!({ "email": "a@b", "credits": 5 }), "credits"),
            ("changeProfile", json!({ "to": { "language": "de_DE" } }), "language"),
            ("changeProfile", json!({ "to": { "colour": "red" } }), "colour"),
            ("changeProfile", json!({ "was": {} }), "to"),
            ("addCredits", json!({ "amount": 0 }), "amount"),
            ("addCredits", json!({ "amount": -5 }), "amount"),
            ("addCredits", json!([5]), "JSON object"),
        ] {
            let (status, text) = ask(handler, body.clone()).await?;
            ensure!(
                status == 400 && text.to_string().contains(names),
                "{handler} {body}: {status}: {text}"
            );
        }

        let (status, user) = view(kit, "User", USER).await?;
        ensure!(
            status == 200 && user["user"] == USER && user["version"] == 6,
            "{status}: {user}"
        );
        ensure!(
            user["email"] == "ann@example.org" && user["name"] == "Ann" && user["language"] == "de",
            "{user}"
        );
        let outcomes = told_of::<UserOutcome>(kit, USER, 7).await?;
        ensure!(outcomes.iter().map(|outcome| outcome.sequence).eq(0..7), "{outcomes:?}");
        has_credits(kit, USER, 42).await?;
        clean(kit).await?;
        worker.stop().await
    })
}

fn tickets_are_held_together_or_not_at_all(kit: &Kit) -> anyhow::Result<()> {
    const KEY: &[(&str, &str)] = &[("idempotency-key", "users-together-1")];
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "users").start().await?;
        let ticket = |name: &str| format!("users/together/{name}");
        let (ann, bob) = ("users-together-ann", "users-together-bob");
        let names = ["c", "a", "d", "b", "e"];
        let list: Vec<_> = names.iter().map(|name| listed(&ticket(name), &ticket(name))).collect();
        send(kit, &list).await?;
        for name in names {
            is_listed(kit, &ticket(name)).await?;
        }

        let wanted: Vec<_> = ["c", "a", "b"].map(ticket).into();
        let body = json!({ "tickets": wanted, "hold_for": 3_600 });
        let (status, reply) = call(kit, KEY, "User", ann, "holdTogether", &body).await?;
        let held = reply["held"].as_array().with_context(|| format!("{status}: {reply}"))?;
        ensure!(
            status == 200 && held.iter().map(|held| held["ticket"].clone()).eq(wanted.clone()),
            "{status}: {reply}"
        );
        for held in held {
            let (_, ticket) = view(kit, "Ticket", held["ticket"].as_str().unwrap_or_default()).await?;
            ensure!(ticket["status"] == "held" && ticket["user"] == ann, "{ticket}");
            for field in ["hold", "until", "version"] {
                ensure!(ticket[field] == held[field], "{field}: {ticket}, told {held}");
            }
        }
        let again = call(kit, KEY, "User", ann, "holdTogether", &body).await?;
        ensure!(again == (200, reply.clone()), "{again:?} is not {reply}");
        for other in [&["c", "a"][..], &["a", "c", "b"], &["c", "a", "b", "d"]] {
            let other: Vec<_> = other.iter().map(|name| ticket(name)).collect();
            let body = json!({ "tickets": other, "hold_for": 3_600 });
            let (status, text) = call(kit, KEY, "User", ann, "holdTogether", &body).await?;
            ensure!(
                status == 409 && text.to_string().contains("idempotency-key"),
                "{body}: {status}: {text}"
            );
        }

        // One is held by another user, one was never listed, one is held by this user already: the others stay for sale.
        for (user, others, reason) in [
            (bob, "a", "held"),
            (bob, "nowhere", "unknown_ticket"),
            (ann, "b", "already_yours"),
        ] {
            let wanted = ["d", others, "e"].map(ticket);
            let body = json!({ "tickets": wanted });
            let (status, reply) = call(kit, &[], "User", user, "holdTogether", &body).await?;
            let expected = json!({ "refused": [{ "ticket": ticket(others), "reason": reason }] });
            ensure!(status == 200 && reply == expected, "{others}: {status}: {reply}");
            for name in ["d", "e"] {
                let (_, ticket) = view(kit, "Ticket", &ticket(name)).await?;
                ensure!(ticket["status"] == "available", "{others}: {ticket}");
            }
        }

        for (body, names) in [
            (json!({}), "tickets"),
            (json!({ "tickets": [] }), "tickets"),
            (json!({ "tickets": [ticket("d"), ticket("d")] }), "tickets"),
            (json!({ "tickets": [""] }), "tickets"),
        ] {
            let (status, text) = call(kit, &[], "User", bob, "holdTogether", &body).await?;
            ensure!(
                status == 400 && text.to_string().contains(names),
                "{body}: {status}: {text}"
            );
        }
        clean(kit).await?;
        worker.stop().await
    })
}

fn a_request_to_hold_together_has_one_answer_for_ever_refused_or_not(kit: &Kit) -> anyhow::Result<()> {
    const ANN: &str = "users-once-ann";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "users").start().await?;
        let tickets = ["users/once/a", "users/once/b"];
        send(kit, &tickets.map(|ticket| listed(ticket, ticket))).await?;
        for ticket in tickets {
            is_listed(kit, ticket).await?;
        }
        let ask = async |key: &str, tickets: &[&str]| {
            let body = json!({ "tickets": tickets });
            call(kit, &[("idempotency-key", key)], "User", ANN, "holdTogether", &body).await
        };
        let ask_ticket = async |ticket: &str, handler: &str, body: Value| {
            let (status, reply) = call(kit, &[], "Ticket", ticket, handler, &body).await?;
            ensure!(status == 200, "{ticket} {handler}: {status}: {reply}");
            anyhow::Ok(reply["outcomes"][0]["data"].clone())
        };
        let all_are = async |status: &str| {
            for ticket in tickets {
                let (_, said) = view(kit, "Ticket", ticket).await?;
                ensure!(said["status"] == status, "{status}: {said}");
            }
            anyhow::Ok(())
        };

        let bobs = ask_ticket(tickets[1], "reserve", json!({ "user": "bob" })).await?;
        let refused = (200, json!({ "refused": [{ "ticket": tickets[1], "reason": "held" }] }));
        ensure!(ask("users-once-1", &tickets).await? == refused);
        ask_ticket(tickets[1], "release", json!({ "user": "bob", "hold": bobs["hold"] })).await?;
        // The caller may have acted on the answer: a late repeat of the same request changes nothing.
        let again = ask("users-once-1", &tickets).await?;
        ensure!(again == refused, "{again:?} is not {refused:?}");
        all_are("available").await?;
        let (status, other) = ask("users-once-1", &tickets[..1]).await?;
        ensure!(status == 409, "{status}: {other}");

        let held = ask("users-once-2", &tickets).await?;
        let holds = held.1["held"].as_array().with_context(|| format!("{held:?}"))?;
        all_are("held").await?;
        for hold in holds {
            let ticket = hold["ticket"].as_str().unwrap_or_default();
            ask_ticket(ticket, "release", json!({ "user": ANN, "hold": hold["hold"] })).await?;
        }
        let again = ask("users-once-2", &tickets).await?;
        ensure!(again == held, "{again:?} is not {held:?}");
        all_are("available").await?;

        let pool = kit.stack.postgres.connect().await?;
        let select = "select count(*) from idempotency_records where topic = 'payments' and key = $1";
        let records: i64 = sqlx::query_scalar(select).bind(ANN).fetch_one(&pool).await?;
        pool.close().await;
        ensure!(records == 2, "{records} records of two requests");
        clean(kit).await?;
        worker.stop().await
    })
}

fn tickets_are_held_together_once_whatever_step_dies_or_is_repeated(kit: &Kit) -> anyhow::Result<()> {
    const USER: &str = "users-cut-short";
    kit.block_on(async {
        let mut workers = Workers::start(kit).await?;
        for point in [Point::TogetherWritten, Point::TogetherCommitted] {
            let prefix = format!("users/{}/", point.name());
            let tickets = ["a", "b", "c"].map(|name| format!("{prefix}{name}"));
            let list: Vec<_> = tickets.iter().map(|ticket| listed(ticket, ticket)).collect();
            send(kit, &list).await?;
            for ticket in &tickets {
                is_listed(kit, ticket).await?;
            }

            // The engine calls the successor of the worker that died, until one answers.
            let (key, body) = ([("idempotency-key", point.name())], json!({ "tickets": tickets }));
            let hold = async || call(kit, &key, "User", USER, "holdTogether", &body).await;
            let round = crash_and_repeat(kit, &mut workers.serve, "serve", point);
            let (status, reply) = tokio::try_join!(round, hold()).with_context(|| point.name())?.1;
            let held = reply["held"]
                .as_array()
                .map(|held| held.iter().map(|held| held["ticket"].clone()));
            ensure!(
                status == 200 && held.is_some_and(|held| held.eq(tickets.clone())),
                "{status}: {reply}"
            );
            ensure!(
                hold().await? == (200, reply),
                "{}: the repeat was answered otherwise",
                point.name()
            );
            ensure!(workers.serve.runs(), "{}: ended while it repeated a step", point.name());
            for ticket in &tickets {
                let outcomes = told(kit, ticket, 2).await?;
                ensure!(verdicts(&outcomes) == ["listed", "held"], "{outcomes:?}");
            }
        }
        clean(kit).await?;
        workers.stop().await
    })
}

fn whoever_wins_one_of_the_tickets_that_many_want_together_wins_all(kit: &Kit) -> anyhow::Result<()> {
    const ROUNDS: usize = 6;
    const USERS: usize = 16;
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "users").start().await?;
        let users: Vec<String> = (0..USERS).map(|number| format!("users-fight-{number}")).collect();
        for round in 0..ROUNDS {
            let tickets = ["a", "b", "c", "d"].map(|name| format!("users/fight/{round}/{name}"));
            let list: Vec<_> = tickets.iter().map(|ticket| listed(ticket, ticket)).collect();
            send(kit, &list).await?;
            for ticket in &tickets {
                is_listed(kit, ticket).await?;
            }
            // Every other round, strangers want single tickets of them at the same time.
            let strangers = if round % 2 == 1 { 4 } else { 0 };
            let single: Vec<_> = (0..strangers).flat_map(|number| single(&tickets, number)).collect();
            let together = users
                .iter()
                .zip(orders(&tickets))
                .map(|(user, order)| hold_together(kit, user, order));
            let (answers, _) = tokio::try_join!(try_join_all(together), send(kit, &single))?;

            let holders = try_join_all(tickets.iter().map(|ticket| holder(kit, ticket))).await?;
            let winners: Vec<_> = users
                .iter()
                .zip(&answers)
                .filter(|(_, won)| **won)
                .map(|(user, _)| user)
                .collect();
            let said = format!("round {round}: {winners:?} won, the tickets are held by {holders:?}");
            match winners[..] {
                [winner] => ensure!(holders.iter().all(|holder| holder == winner), "{said}"),
                [] => ensure!(
                    strangers > 0 && holders.iter().all(|holder| !users.contains(holder)),
                    "{said}"
                ),
                _ => anyhow::bail!("{said}"),
            }
        }
        clean(kit).await?;
        worker.stop().await
    })
}

/// True if the user got all tickets; else the user must have got none.
async fn hold_together(kit: &Kit, user: &str, tickets: Vec<String>) -> anyhow::Result<bool> {
    let (status, reply) = call(kit, &[], "User", user, "holdTogether", &json!({ "tickets": tickets })).await?;
    ensure!(status == 200, "{user}: {status}: {reply}");
    if let Some(held) = reply["held"].as_array() {
        let in_order = held.iter().map(|held| held["ticket"].as_str().unwrap_or_default());
        ensure!(in_order.eq(tickets.iter()), "{user} wanted {tickets:?}: {reply}");
        return Ok(true);
    }
    let refused = reply["refused"]
        .as_array()
        .with_context(|| format!("{user}: {reply}"))?;
    let names: BTreeSet<_> = refused
        .iter()
        .map(|refused| refused["ticket"].as_str().unwrap_or_default())
        .collect();
    ensure!(
        !names.is_empty() && names.len() == refused.len() && names.iter().all(|name| tickets.iter().any(|t| t == name)),
        "{user} wanted {tickets:?}: {reply}"
    );
    Ok(false)
}

/// The holder of the ticket, once there is one.
async fn holder(kit: &Kit, ticket: &str) -> anyhow::Result<String> {
    until("somebody holds the ticket", DEADLINE, async || {
        let (_, said) = view(kit, "Ticket", ticket).await?;
        ensure!(said["status"] == "held", "{said}");
        Ok(said["user"].as_str().context("no holder")?.to_owned())
    })
    .await
}

/// A rival's requests for each ticket alone, in an order of its own.
fn single(tickets: &[String; 4], number: usize) -> [Value; 4] {
    [0, 1, 2, 3].map(|place| {
        let ticket = &tickets[(place + number) % tickets.len()];
        requested(
            &format!("{ticket}/{number}"),
            ticket,
            &format!("users-stranger-{number}"),
        )
    })
}

/// All orders of four things.
fn orders(tickets: &[String; 4]) -> impl Iterator<Item = Vec<String>> {
    let places = (0..256_usize).map(|code| [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6 & 3]);
    let each_once = places.filter(|places| places.iter().collect::<BTreeSet<_>>().len() == 4);
    each_once.map(|places| places.map(|place| tickets[place].clone()).into())
}

pub(crate) fn registered(id: &str, user: &str) -> Value {
    event(id, user, "user.registered", json!({ "email": "ann@example.org" }))
}

pub(crate) fn changed(id: &str, user: &str, data: Value) -> Value {
    event(id, user, "profile.changed", data)
}

pub(crate) fn added(id: &str, user: &str, amount: i64) -> Value {
    event(id, user, "credits.added", json!({ "amount": amount }))
}

fn refused(reason: UserRefusalReason) -> UserOutcome {
    UserOutcome::PaymentRefused(outcomes::PaymentRefused { reason })
}

fn given(amount: i64) -> anyhow::Result<UserOutcome> {
    Ok(UserOutcome::CreditsChanged(outcomes::CreditsChanged {
        added: Credits::new(amount)?,
    }))
}

/// One outcome of a reply.
fn answer(sequence: i64, told: &UserOutcome) -> Value {
    json!({ "type": told.outcome_type(), "sequence": sequence, "data": told.data() })
}

/// Calls an object's handler through the ingress.
pub(crate) async fn call(
    kit: &Kit,
    headers: &[(&str, &str)],
    object: &str,
    key: &str,
    handler: &str,
    body: &Value,
) -> anyhow::Result<(u16, Value)> {
    let path = format!("{object}/{}/{handler}", key.replace('/', "%2F"));
    kit.stack.restate.call(&path, headers, body).await
}

/// An object as readers see it.
pub(crate) async fn view(kit: &Kit, object: &str, key: &str) -> anyhow::Result<(u16, Value)> {
    let path = format!("{object}/{}/get", key.replace('/', "%2F"));
    let response = kit.stack.restate.look(&path).await?;
    Ok((response.status().as_u16(), response.json().await?))
}

async fn is_listed(kit: &Kit, ticket: &str) -> anyhow::Result<()> {
    until("the ticket is listed", DEADLINE, async || {
        let (status, said) = view(kit, "Ticket", ticket).await?;
        ensure!(status == 200, "{status}: {said}");
        Ok(())
    })
    .await
}

/// Credits by user, of those whose ids begin with `prefix`.
pub(crate) async fn all_balances(kit: &Kit, prefix: &str) -> anyhow::Result<BTreeMap<String, i64>> {
    let pool = kit.stack.postgres.connect_to_loyalty().await?;
    let rows = sqlx::query("select user_id, credits from accounts where starts_with(user_id, $1)")
        .bind(prefix)
        .fetch_all(&pool)
        .await?;
    pool.close().await;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Waits until the loyalty database has exactly these credits.
pub(crate) async fn has_credits(kit: &Kit, user: &str, credits: i64) -> anyhow::Result<()> {
    until("the credits that were told", DEADLINE, async || {
        let balance = all_balances(kit, user).await?.get(user).copied();
        ensure!(balance == Some(credits), "{user} has {balance:?} of {credits}");
        Ok(())
    })
    .await
}

/// Waits until nothing is left prepared in the loyalty database.
pub(crate) async fn none_prepared(kit: &Kit) -> anyhow::Result<()> {
    let pool = kit.stack.postgres.connect_to_loyalty().await?;
    until("nothing is left prepared", Gifts::WITHIN, async || {
        let prepared: Vec<String> =
            sqlx::query_scalar("select gid from pg_prepared_xacts where database = current_database()")
                .fetch_all(&pool)
                .await?;
        ensure!(prepared.is_empty(), "{prepared:?}");
        anyhow::Ok(())
    })
    .await?;
    pool.close().await;
    Ok(())
}
