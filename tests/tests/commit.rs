//! The committer against a real Postgres: each of its rules, with what breaks it.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::ensure;
use futures::future::{join_all, try_join_all};
use futures::poll;
use holdfast::config;
use holdfast::domain::ticket::{Input, decide};
use holdfast::domain::{Decision, Ticket};
use holdfast::metrics::Metrics;
use holdfast::store::commit::Rules;
use holdfast::store::idempotency::Sweep;
use holdfast::store::{self, Answer, Committer, Unit, Work};
use holdfast_schemas::{DeadLetterReason, Event, Price, TicketEvent, TicketId, UserId, events};
use holdfast_tests::kit::process::lock;
use holdfast_tests::kit::proxy::{Proxy, Side};
use holdfast_tests::kit::{Kit, until};
use holdfast_tests::load::now;
use sqlx::{PgPool, Row};
use time::OffsetDateTime;
use tokio::task::unconstrained;

use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    units_of_one_key_take_effect_in_the_order_they_came,
    a_repeat_inside_a_unit_takes_effect_once,
    an_id_used_again_for_another_ticket_is_dead_lettered,
    a_refusal_overtaken_by_a_later_write_is_decided_again,
    a_race_on_one_id_has_one_winner,
    no_plan_lets_a_locked_unit_write,
    a_locked_row_keeps_only_its_own_unit_waiting,
    an_oversized_unit_takes_several_statements_in_order,
    a_panic_ends_its_unit_alone,
    a_write_that_touches_other_rows_than_meant_changes_nothing,
    what_only_an_operator_mends_goes_back_to_the_engine,
    a_reply_that_cannot_be_read_fails_its_own_repeat_alone,
    a_poisonous_unit_is_found_by_halves_and_then_goes_alone,
    a_dropped_unit_is_taken_out_of_the_queue,
    a_database_that_answers_and_cannot_write_is_asked_less_and_less_often,
    aborted_attempts_leave_the_queue_while_the_database_is_away,
    a_connection_that_dies_without_a_word_holds_up_no_unit,
    a_commit_whose_answer_was_lost_is_not_done_twice,
    an_event_older_than_the_retention_is_never_decided,
    a_repeat_whose_answer_is_swept_while_it_is_read_takes_no_effect_again,
];

const WITHIN: Duration = Duration::from_secs(20);
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// A database of its own and a committer on it.
struct Bench {
    pool: PgPool,
    committer: Committer<Ticket>,
    metrics: Arc<Metrics>,
}

impl Bench {
    async fn new(kit: &Kit) -> anyhow::Result<Bench> {
        Self::fresh(kit).await?.with(decide, 2_000).await
    }

    /// An empty database, with the product's tables.
    async fn fresh(kit: &Kit) -> anyhow::Result<Database> {
        let pool = kit.stack.postgres.copy_database("template1", "commit").await?;
        store::migrate(&pool).await?;
        pool.close().await;
        Ok(Database {
            url: kit.stack.postgres.url_of("commit"),
            statement_timeout: Duration::from_secs(10),
        })
    }

    async fn commit(&self, ticket: &str, work: Vec<Work<Ticket>>) -> Result<Vec<Answer>, store::Error> {
        self.committer.commit(unit(ticket, work)).await
    }

    async fn listed(&self, tickets: &[&str]) -> anyhow::Result<()> {
        for ticket in tickets {
            self.commit(ticket, vec![Work::Event(list(&format!("list-{ticket}"), ticket))])
                .await?;
        }
        Ok(())
    }

    async fn count(&self, table: &'static str) -> anyhow::Result<i64> {
        let statement = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
        Ok(sqlx::query(statement).fetch_one(&self.pool).await?.get(0))
    }

    /// Types and sequences of a ticket's outcomes, in the order of the outbox.
    async fn told(&self, ticket: &str) -> anyhow::Result<Vec<(String, i64)>> {
        let rows = sqlx::query("select type, version from ticket_change_log where ticket = $1 order by version")
            .bind(ticket)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows
            .iter()
            .map(|row| (short(row.get("type")), row.get("version")))
            .collect())
    }
}

struct Database {
    url: String,
    statement_timeout: Duration,
}

impl Database {
    async fn with(&self, rules: impl Rules<Ticket> + 'static, batch_events: usize) -> anyhow::Result<Bench> {
        self.through(&self.url, rules, batch_events).await
    }

    async fn through(
        &self,
        url: &str,
        rules: impl Rules<Ticket> + 'static,
        batch_events: usize,
    ) -> anyhow::Result<Bench> {
        let metrics = Arc::new(Metrics::new()?);
        let settings = config::Database {
            url: url.to_owned().into(),
            loyalty_url: None,
            url_file: None,
            loyalty_url_file: None,
            credits_abandoned_after: Duration::from_secs(60),
            pool_size: 4,
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: self.statement_timeout,
            lock_timeout: Duration::from_secs(2),
            idle_in_transaction_timeout: Duration::from_secs(10),
            idempotency_retention: RETENTION,
        };
        let pool = store::connect(&settings, &metrics).await?;
        let limits = config::Serve {
            listen: ([127, 0, 0, 1], 9).into(),
            batch_events,
            batch_bytes: 1 << 20,
            retry_pause: Duration::from_secs(10),
            identity_keys: Vec::new(),
            certificate: None,
            private_key: None,
            examples: false,
        };
        let (committer, committing) = Committer::new(pool.clone(), rules, limits, RETENTION, metrics.clone());
        tokio::spawn(committing);
        Ok(Bench {
            pool,
            committer,
            metrics,
        })
    }
}

fn units_of_one_key_take_effect_in_the_order_they_came(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let bench = Bench::new(kit).await?;
        bench.listed(&["A"]).await?;
        let users = ["ann", "bob", "cid"];
        let units = users.map(|user| bench.commit("A", vec![Work::Event(reserve(user, "A", user))]));
        let answers = try_join_all(units).await?;
        let outcomes: Vec<String> = answers.iter().map(|answers| fresh(&answers[0])).collect();
        ensure!(outcomes == ["ticket.held@2", "held@3", "held@4"], "{outcomes:?}");
        Ok(())
    })
}

fn a_repeat_inside_a_unit_takes_effect_once(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let bench = Bench::new(kit).await?;
        let event = reserve("r-1", "A", "ann");
        let work = [list("l-1", "A"), event.clone(), event.clone(), event.clone()].map(Work::Event);
        let answers = bench.commit("A", work.to_vec()).await?;
        ensure!(
            matches!(
                answers[..],
                [Answer::Fresh(_), Answer::Fresh(_), Answer::Repeat(_), Answer::Repeat(_)]
            ),
            "{answers:?}"
        );
        let later = bench.commit("A", vec![Work::Event(event)]).await?;
        ensure!(later[0] == answers[3], "the first reply again: {later:?}");
        ensure!(bench.count("outbox").await? == 2 && bench.count("idempotency_records").await? == 2);
        Ok(())
    })
}

fn an_id_used_again_for_another_ticket_is_dead_lettered(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let bench = Bench::new(kit).await?;
        bench.listed(&["A", "B"]).await?;
        // Both units are in one batch: the second must not be judged by a record that the first has not written yet.
        let first = bench.commit("A", vec![Work::Event(reserve("same", "A", "ann"))]);
        let second = bench.commit("B", vec![Work::Event(reserve("same", "B", "ann"))]);
        let (first, second) = tokio::try_join!(first, second)?;
        ensure!(fresh(&first[0]) == "ticket.held@2", "{first:?}");
        ensure!(
            second == [Answer::DeadLettered(DeadLetterReason::IdReused)],
            "{second:?}"
        );
        let asked = bench
            .commit("B", vec![Work::Request(reserve("same", "B", "ann"))])
            .await?;
        ensure!(asked == [Answer::DeadLettered(DeadLetterReason::IdReused)], "{asked:?}");
        let letters =
            sqlx::query("select key, headers->>'holdfast-reason' as reason from outbox where topic = 'dead-letters'")
                .fetch_all(&bench.pool)
                .await?;
        ensure!(
            letters.len() == 1,
            "an HTTP caller is told, and leaves no dead letter: {}",
            letters.len()
        );
        ensure!(letters[0].get::<&str, _>("key") == "B" && letters[0].get::<&str, _>("reason") == "id_reused");
        Ok(())
    })
}

static OVERTAKE_DECIDED: AtomicBool = AtomicBool::new(false);
static OVERTAKE_GO: AtomicBool = AtomicBool::new(false);
/// Held by the test that uses the slow decision: another stack's may run beside it.
static OVERTAKING: Mutex<()> = Mutex::new(());

/// Decides, and lets the test do something before the decision is written.
fn decide_slowly(ticket: Option<&Ticket>, input: Input, now: OffsetDateTime) -> Decision<Ticket> {
    let decision = decide(ticket, input, now);
    OVERTAKE_DECIDED.store(true, Ordering::SeqCst);
    // Other tasks of the runtime go on meanwhile.
    tokio::task::block_in_place(|| {
        while !OVERTAKE_GO.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    });
    decision
}

async fn decided() -> anyhow::Result<()> {
    until("the slow decision", WITHIN, async || {
        OVERTAKE_DECIDED.load(Ordering::SeqCst).then_some(()).ok_or("not yet")
    })
    .await
}

fn a_refusal_overtaken_by_a_later_write_is_decided_again(kit: &Kit) -> anyhow::Result<()> {
    let _alone = lock(&OVERTAKING);
    kit.block_on(async {
        let database = Bench::fresh(kit).await?;
        let quick = database.with(decide, 2_000).await?;
        quick.listed(&["A"]).await?;
        let held = quick
            .commit("A", vec![Work::Event(reserve("r-ann", "A", "ann"))])
            .await?;
        let hold = serde_json::from_value(reply(&held[0]).outcomes[0].data["hold"].clone())?;

        reset_slow();
        let slow = database.with(decide_slowly, 2_000).await?;
        let refused =
            tokio::spawn(async move { slow.commit("A", vec![Work::Event(reserve("r-bob", "A", "bob"))]).await });
        decided().await?;
        let data = TicketEvent::ReservationReleased(events::ReservationReleased {
            user: user("ann"),
            hold,
        });
        quick.commit("A", vec![Work::Event(event("free", "A", data))]).await?;
        OVERTAKE_GO.store(true, Ordering::SeqCst);
        let answers = refused.await??;
        ensure!(
            fresh(&answers[0]) == "ticket.held@4",
            "decided on what had gone: {answers:?}"
        );
        Ok(())
    })
}

fn a_race_on_one_id_has_one_winner(kit: &Kit) -> anyhow::Result<()> {
    let _alone = lock(&OVERTAKING);
    kit.block_on(async {
        // No row guards a ticket that was never listed: only the idempotency record's key does.
        let database = Bench::fresh(kit).await?;
        let quick = database.with(decide, 2_000).await?;
        for (again, ticket) in [("repeat", "nowhere"), ("other content", "elsewhere")] {
            reset_slow();
            let slow = database.with(decide_slowly, 2_000).await?;
            let id = format!("race-{again}");
            let (mine, theirs) = (reserve(&id, ticket, "ann"), reserve(&id, "nowhere", "ann"));
            let late = tokio::spawn(async move { slow.commit(ticket, vec![Work::Event(mine)]).await });
            decided().await?;
            let early = quick.commit("nowhere", vec![Work::Event(theirs)]).await?;
            OVERTAKE_GO.store(true, Ordering::SeqCst);
            let late = late.await??;
            ensure!(fresh(&early[0]) == "unknown_ticket@0", "{early:?}");
            match again {
                "repeat" => ensure!(matches!(late[0], Answer::Repeat(_)), "{late:?}"),
                _ => ensure!(late == [Answer::DeadLettered(DeadLetterReason::IdReused)], "{late:?}"),
            }
        }
        Ok(())
    })
}

fn no_plan_lets_a_locked_unit_write(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let plans = ["", "enable_nestloop=off", "enable_hashjoin=off", "enable_mergejoin=off -c enable_hashjoin=off", "enable_indexscan=off -c enable_nestloop=off"];
        for plan in plans {
            let database = Bench::fresh(kit).await?;
            let options = if plan.is_empty() { String::new() } else { format!("?options={}", format!("-c {plan}").replace(' ', "%20").replace('=', "%3D")) };
            let bench = database.through(&format!("{}{options}", database.url), decide, 2_000).await?;
            let tickets: Vec<String> = (0..50).map(|number| format!("T-{number:02}")).collect();
            bench.listed(&tickets.iter().map(String::as_str).collect::<Vec<_>>()).await?;

            let mut other = bench.pool.begin().await?;
            sqlx::query("select 1 from tickets where ticket in ('T-07', 'T-23') for update").fetch_all(&mut *other).await?;
            let bench = Arc::new(bench);
            let units: Vec<_> = tickets
                .iter()
                .map(|ticket| {
                    let (bench, ticket) = (bench.clone(), ticket.clone());
                    tokio::spawn(async move {
                        let work = vec![Work::Event(reserve(&format!("r-{ticket}"), &ticket, "ann")), Work::Event(reserve(&format!("s-{ticket}"), &ticket, "bob"))];
                        bench.commit(&ticket, work).await
                    })
                })
                .collect();
            until("all but the locked to be written", WITHIN, async || {
                let written = bench.count("ticket_change_log").await.map_err(|error| error.to_string())?;
                if written == 50 + 96 { Ok(()) } else { Err(format!("{written} changes under {plan:?}")) }
            })
            .await?;
            for table in ["idempotency_records", "outbox"] {
                ensure!(bench.count(table).await? == 50 + 96, "{table} under {plan:?}");
            }
            let locked = sqlx::query("select count(*) from ticket_change_log where ticket in ('T-07', 'T-23')").fetch_one(&bench.pool).await?;
            ensure!(locked.get::<i64, _>(0) == 2, "a locked ticket was written under {plan:?}");
            other.rollback().await?;
            for answers in join_all(units).await {
                let answers = answers??;
                ensure!(fresh(&answers[0]) == "ticket.held@2" && fresh(&answers[1]) == "held@3", "{answers:?} under {plan:?}");
            }
            let disorder = sqlx::query(
                "select count(*) from (select key, id, lag(id) over (partition by key order by (convert_from(value, 'UTF8')::json->>'sequence')::int) as before from outbox) o where id < before",
            )
            .fetch_one(&bench.pool)
            .await?;
            ensure!(disorder.get::<i64, _>(0) == 0, "outbox ids of a key are out of order under {plan:?}");
        }
        Ok(())
    })
}

fn a_locked_row_keeps_only_its_own_unit_waiting(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let bench = Bench::new(kit).await?;
        bench.listed(&["A", "B"]).await?;
        let mut other = bench.pool.begin().await?;
        sqlx::query("update tickets set version = version where ticket = 'A'")
            .execute(&mut *other)
            .await?;
        let committer = bench.committer.clone();
        let locked = tokio::spawn(async move {
            committer
                .commit(unit("A", vec![Work::Event(reserve("r-A", "A", "ann"))]))
                .await
        });
        let free = bench.commit("B", vec![Work::Event(reserve("r-B", "B", "ann"))]).await?;
        ensure!(fresh(&free[0]) == "ticket.held@2", "{free:?}");
        until("the locked unit to have gone round", WITHIN, async || {
            match bench.metrics.commit_conflicts.get() {
                0..3 => Err("not yet"),
                _ => Ok(()),
            }
        })
        .await?;
        ensure!(!locked.is_finished(), "a locked row was written");
        other.commit().await?;
        ensure!(fresh(&locked.await??[0]) == "ticket.held@2");
        Ok(())
    })
}

fn an_oversized_unit_takes_several_statements_in_order(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let bench = Bench::fresh(kit).await?.with(decide, 10).await?;
        let mut work = vec![Work::Event(list("l", "A"))];
        work.extend((0..34).map(|number| Work::Event(reserve(&format!("r-{number}"), "A", &format!("user-{number}")))));
        let answers = bench.commit("A", work).await?;
        let sequences: Vec<i64> = answers
            .iter()
            .map(|answer| reply(answer).outcomes[0].sequence)
            .collect();
        ensure!(sequences == (1..=35).collect::<Vec<_>>(), "{sequences:?}");
        let statements = bench.metrics.commit_batch_events.get_sample_count();
        ensure!(statements == 4, "35 events, 10 a statement, in {statements}");
        Ok(())
    })
}

/// Panics for one user.
fn decide_or_panic(ticket: Option<&Ticket>, input: Input, now: OffsetDateTime) -> Decision<Ticket> {
    if let Input::Reserve { user, .. } = &input {
        assert!(user.as_str() != "breaker", "this user breaks the rules");
    }
    decide(ticket, input, now)
}

fn a_panic_ends_its_unit_alone(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let bench = Bench::fresh(kit).await?.with(decide_or_panic, 2_000).await?;
        bench.listed(&["A", "B", "C"]).await?;
        let units = [("A", "ann"), ("B", "breaker"), ("C", "cid")];
        let answers =
            join_all(units.map(|(ticket, user)| bench.commit(ticket, vec![Work::Event(reserve(user, ticket, user))])))
                .await;
        ensure!(matches!(answers[1], Err(store::Error::Panic { .. })), "{answers:?}");
        ensure!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
        ensure!(bench.told("B").await? == [("ticket.listed".to_owned(), 1)]);
        ensure!(bench.metrics.quarantine_candidates.with_label_values(&["panic"]).get() == 1);
        Ok(())
    })
}

fn a_write_that_touches_other_rows_than_meant_changes_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let bench = Bench::new(kit).await?;
        bench.listed(&["A"]).await?;
        let swallow = "create function swallow() returns trigger language plpgsql as $$ begin return null; end $$;
                       create trigger swallow before insert on outbox for each row execute function swallow();";
        sqlx::raw_sql(swallow).execute(&bench.pool).await?;
        let committer = bench.committer.clone();
        let swallowed = tokio::spawn(async move {
            committer
                .commit(unit("A", vec![Work::Event(reserve("r", "A", "ann"))]))
                .await
        });
        until("the statement to fail", WITHIN, async || {
            if bench.metrics.retries.with_label_values(&["write"]).get() > 0 {
                Ok(())
            } else {
                Err("no retry yet")
            }
        })
        .await?;
        ensure!(
            bench.told("A").await?.len() == 1 && bench.count("idempotency_records").await? == 1,
            "half a write was kept"
        );
        let given_back = swallowed.await?;
        ensure!(matches!(given_back, Err(store::Error::Write(_))), "{given_back:?}");
        sqlx::raw_sql("drop trigger swallow on outbox")
            .execute(&bench.pool)
            .await?;
        let answers = bench.commit("A", vec![Work::Event(reserve("r", "A", "ann"))]).await?;
        ensure!(fresh(&answers[0]) == "ticket.held@2", "{answers:?}");
        Ok(())
    })
}

fn what_only_an_operator_mends_goes_back_to_the_engine(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let bench = Bench::new(kit).await?;
        bench.listed(&["A", "B"]).await?;
        sqlx::raw_sql("alter table outbox rename to outbox_hidden")
            .execute(&bench.pool)
            .await?;
        let units = ["A", "B"].map(|name| bench.commit(name, vec![Work::Event(reserve(name, name, "ann"))]));
        let given_back = tokio::time::timeout(WITHIN, join_all(units)).await?;
        for answer in given_back {
            let text = answer
                .err()
                .map(|error| holdfast::error::chain(&error))
                .unwrap_or_default();
            ensure!(text.contains("outbox"), "nobody learns what is missing: {text:?}");
        }
        let counted = bench
            .metrics
            .quarantine_candidates
            .with_label_values(&["setting"])
            .get();
        ensure!(counted == 2, "{counted} were counted");
        sqlx::raw_sql("alter table outbox_hidden rename to outbox")
            .execute(&bench.pool)
            .await?;
        let answers = bench.commit("A", vec![Work::Event(reserve("A", "A", "ann"))]).await?;
        ensure!(fresh(&answers[0]) == "ticket.held@2", "{answers:?}");
        Ok(())
    })
}

fn a_reply_that_cannot_be_read_fails_its_own_repeat_alone(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let bench = Bench::new(kit).await?;
        bench.listed(&["A", "B"]).await?;
        sqlx::raw_sql("update idempotency_records set reply = '[]' where id = 'list-A'")
            .execute(&bench.pool)
            .await?;
        let repeat = bench.commit("A", vec![Work::Event(list("list-A", "A"))]);
        let other = bench.commit("B", vec![Work::Event(reserve("r", "B", "ann"))]);
        let (repeat, other) = tokio::time::timeout(WITHIN, futures::future::join(repeat, other)).await?;
        ensure!(repeat.is_err(), "{repeat:?}");
        ensure!(fresh(&other?[0]) == "ticket.held@2");
        ensure!(bench.metrics.quarantine_candidates.with_label_values(&["data"]).get() == 1);
        Ok(())
    })
}

fn a_poisonous_unit_is_found_by_halves_and_then_goes_alone(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let bench = Bench::new(kit).await?;
        let tickets: Vec<String> = (0..128).map(|number| format!("T-{number:03}")).collect();
        bench
            .listed(&tickets.iter().map(String::as_str).collect::<Vec<_>>())
            .await?;
        sqlx::raw_sql("alter table ticket_change_log add constraint poison check (ticket <> 'T-077' or version = 1)")
            .execute(&bench.pool)
            .await?;
        let statements = || bench.metrics.commit_batch_events.get_sample_count();
        let failures = || bench.metrics.retries.with_label_values(&["write"]).get();
        let reserved = async |round: &str| {
            let units = tickets.iter().map(|name| {
                let event = reserve(&format!("{round}-{name}"), name, "ann");
                bench.commit(name, vec![Work::Event(event)])
            });
            // Whatever the first statement takes waits until all units are handed over.
            let mut held_up = bench.pool.begin().await?;
            sqlx::raw_sql("lock table ticket_change_log")
                .execute(&mut *held_up)
                .await?;
            let mut committed = pin!(unconstrained(join_all(units)));
            ensure!(poll!(committed.as_mut()).is_pending(), "none can be written yet");
            held_up.rollback().await?;
            let failed: Vec<_> = committed.await.into_iter().filter_map(Result::err).collect();
            ensure!(
                matches!(&failed[..], [error] if error.cause() == Some(store::Cause::Constraint)),
                "{failed:?}"
            );
            Ok(())
        };
        let before = statements();
        reserved("first").await?;
        let (written, failed) = (statements() - before, failures());
        // The first unit goes before the others have come.
        ensure!(
            written <= 8 && (1..=8).contains(&failed),
            "{written} written, {failed} failed"
        );
        let before = statements();
        reserved("second").await?;
        let (written, failed) = (statements() - before, failures() - failed);
        ensure!(
            written <= 3 && failed == 1,
            "known, and {written} written, {failed} failed"
        );
        Ok(())
    })
}

fn a_database_that_answers_and_cannot_write_is_asked_less_and_less_often(kit: &Kit) -> anyhow::Result<()> {
    /// The pauses between so many tries double from 50 ms, with up to as much again at random.
    const TRIES: i64 = 6;
    const LEAST: Duration = Duration::from_millis(50 + 100 + 200 + 400 + 800);
    kit.block_on(async {
        let bench = Bench::new(kit).await?;
        // As when its disk is full. A sequence keeps count through what is rolled back.
        let full = "create sequence tries;
                    create function full_disk() returns trigger language plpgsql as $$
                    begin perform nextval('tries'); raise exception using errcode = 'disk_full'; end $$;
                    create trigger full_disk before insert on outbox for each row execute function full_disk();";
        sqlx::raw_sql(full).execute(&bench.pool).await?;
        let committer = bench.committer.clone();
        let began = std::time::Instant::now();
        let listed = tokio::spawn(async move { committer.commit(unit("A", vec![Work::Event(list("l", "A"))])).await });
        until("some tries", WITHIN, async || {
            let tries: i64 = sqlx::query_scalar("select last_value from tries")
                .fetch_one(&bench.pool)
                .await?;
            ensure!(tries >= TRIES, "{tries} tries");
            anyhow::Ok(())
        })
        .await?;
        let lasted = began.elapsed();
        ensure!(lasted >= LEAST, "{TRIES} tries in {lasted:?}");
        let counted = bench.metrics.retries.with_label_values(&["write"]).get();
        ensure!(counted >= TRIES.unsigned_abs() - 1, "{counted} were counted");
        sqlx::raw_sql("drop trigger full_disk on outbox")
            .execute(&bench.pool)
            .await?;
        let answers = tokio::time::timeout(WITHIN, listed).await???;
        ensure!(fresh(&answers[0]) == "ticket.listed@1", "{answers:?}");
        Ok(())
    })
}

fn aborted_attempts_leave_the_queue_while_the_database_is_away(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let database = Bench::fresh(kit).await?;
        let mut proxy = Proxy::start(kit.stack.postgres.address()).await?;
        let url = database.url.replace(&kit.stack.postgres.address(), &proxy.address());
        let bench = database.through(&url, decide, 2_000).await?;
        bench.listed(&["A"]).await?;
        proxy.refuse().await;
        let attempts: Vec<_> = (0..100)
            .map(|number| {
                let committer = bench.committer.clone();
                let event = reserve(&format!("r-{number}"), "A", "ann");
                tokio::spawn(async move { committer.commit(unit("A", vec![Work::Event(event)])).await })
            })
            .collect();
        until("the units to wait", WITHIN, async || {
            match bench.metrics.commit_waiting.get() {
                0 => Err("none waits"),
                _ => Ok(()),
            }
        })
        .await?;
        for attempt in attempts {
            attempt.abort();
        }
        until("the aborted ones to be let go of", WITHIN, async || {
            match bench.metrics.commit_waiting.get() {
                0 => Ok(()),
                waiting => Err(format!("{waiting} wait")),
            }
        })
        .await?;
        proxy.admit().await?;
        let answers = bench.commit("A", vec![Work::Event(reserve("r", "A", "bob"))]).await?;
        ensure!(fresh(&answers[0]) == "ticket.held@2", "{answers:?}");
        Ok(())
    })
}

fn a_connection_that_dies_without_a_word_holds_up_no_unit(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let database = Database {
            statement_timeout: Duration::from_secs(1),
            ..Bench::fresh(kit).await?
        };
        let proxy = Proxy::start(kit.stack.postgres.address()).await?;
        let url = database.url.replace(&kit.stack.postgres.address(), &proxy.address());
        let bench = database.through(&url, decide, 2_000).await?;
        // In the middle of a statement: neither side hears of the other any more.
        proxy.stop_at("insert into ticket_change_log", Side::After);
        let committer = bench.committer.clone();
        let listed = tokio::spawn(async move { committer.commit(unit("A", vec![Work::Event(list("l", "A"))])).await });
        proxy.stopped().await;
        proxy.swallow();
        let answers = tokio::time::timeout(WITHIN, listed).await???;
        ensure!(matches!(answers[0], Answer::Repeat(_)), "{answers:?}");
        ensure!(bench.told("A").await?.len() == 1 && bench.count("outbox").await? == 1);
        Ok(())
    })
}

fn a_dropped_unit_is_taken_out_of_the_queue(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let bench = Bench::new(kit).await?;
        bench.listed(&["A"]).await?;
        let mut other = bench.pool.begin().await?;
        sqlx::query("select 1 from tickets where ticket = 'A' for update")
            .fetch_all(&mut *other)
            .await?;
        let dropped = bench.commit("A", vec![Work::Event(reserve("gone", "A", "ann"))]);
        ensure!(
            tokio::time::timeout(Duration::from_millis(300), dropped).await.is_err(),
            "a locked row was written"
        );
        until("the dropped unit to leave the queue", WITHIN, async || {
            match bench.metrics.commit_waiting.get() {
                0 => Ok(()),
                waiting => Err(format!("{waiting} wait")),
            }
        })
        .await?;
        other.rollback().await?;
        let answers = bench
            .commit("A", vec![Work::Event(reserve("stays", "A", "bob"))])
            .await?;
        ensure!(fresh(&answers[0]) == "ticket.held@2", "{answers:?}");
        Ok(())
    })
}

fn a_commit_whose_answer_was_lost_is_not_done_twice(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let database = Bench::fresh(kit).await?;
        let proxy = Proxy::start(kit.stack.postgres.address()).await?;
        let url = database.url.replace(&kit.stack.postgres.address(), &proxy.address());
        let bench = database.through(&url, decide, 2_000).await?;
        // The server does what the statement says; its answer is thrown away and the connection is cut.
        proxy.lose_answer_to("insert into ticket_change_log");
        let answers = bench.commit("A", vec![Work::Event(list("l", "A"))]).await?;
        ensure!(proxy.lost() == 1, "no answer was lost");
        ensure!(
            matches!(answers[0], Answer::Repeat(_)),
            "the write had taken effect: {answers:?}"
        );
        ensure!(bench.told("A").await?.len() == 1 && bench.count("outbox").await? == 1);
        Ok(())
    })
}

fn an_event_older_than_the_retention_is_never_decided(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let bench = Bench::new(kit).await?;
        bench.listed(&["A"]).await?;
        let data = TicketEvent::ReservationRequested(events::ReservationRequested {
            user: user("ann"),
            hold_for: None,
            price: None,
        });
        let time = now() - RETENTION - Duration::from_secs(1);
        let old = Event::new("shop".parse()?, "old".parse()?, time, None, ticket("A"), data);
        let answers = bench.commit("A", vec![Work::Event(old)]).await?;
        ensure!(
            answers == [Answer::DeadLettered(DeadLetterReason::TooOld)],
            "{answers:?}"
        );
        ensure!(bench.told("A").await?.len() == 1);
        Ok(())
    })
}

fn a_repeat_whose_answer_is_swept_while_it_is_read_takes_no_effect_again(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let database = Bench::fresh(kit).await?;
        let quick = database.with(decide, 2_000).await?;
        let proxy = Proxy::start(kit.stack.postgres.address()).await?;
        let url = database.url.replace(&kit.stack.postgres.address(), &proxy.address());
        let slow = database.through(&url, decide, 2_000).await?;
        store::ping(&slow.pool).await?;
        let data = TicketEvent::ReservationRequested(events::ReservationRequested {
            user: user("ann"),
            hold_for: None,
            price: None,
        });
        let time = now() - RETENTION + Duration::from_secs(60);
        let event = Event::new("shop".parse()?, "late".parse()?, time, None, ticket("A"), data);
        quick.listed(&["A"]).await?;
        let first = quick.commit("A", vec![Work::Event(event.clone())]).await?;
        ensure!(fresh(&first[0]) == "ticket.held@2", "{first:?}");
        // Between the two reads, whichever comes first, its time is over and it is swept.
        proxy.stop_at("($1", Side::After);
        let committer = slow.committer.clone();
        let repeat = tokio::spawn(async move { committer.commit(unit("A", vec![Work::Event(event)])).await });
        proxy.stopped().await;
        // As if it had come when it says.
        sqlx::query("update idempotency_records set aged_from = $1, written_at = $1 where id = 'late'")
            .bind(time)
            .execute(&quick.pool)
            .await?;
        let younger = RETENTION - Duration::from_secs(120);
        let swept = Sweep::default().page(&quick.pool, younger, None).await?;
        ensure!(swept == 1, "{swept} swept");
        proxy.go_on();
        let answers = repeat.await??;
        ensure!(matches!(answers[0], Answer::Repeat(_)), "{answers:?}");
        ensure!(quick.told("A").await?.len() == 2);
        Ok(())
    })
}

fn reset_slow() {
    OVERTAKE_DECIDED.store(false, Ordering::SeqCst);
    OVERTAKE_GO.store(false, Ordering::SeqCst);
}

fn unit(name: &str, work: Vec<Work<Ticket>>) -> Unit<Ticket> {
    Unit {
        key: ticket(name),
        work,
    }
}

fn list(id: &str, ticket: &str) -> Event<TicketEvent> {
    let price = Price::parse(4_500, "EUR").expect("a price");
    event(
        id,
        ticket,
        TicketEvent::TicketListed(events::TicketListed {
            show: "show".parse().expect("a show"),
            seat: None,
            price,
        }),
    )
}

fn reserve(id: &str, ticket: &str, name: &str) -> Event<TicketEvent> {
    event(
        id,
        ticket,
        TicketEvent::ReservationRequested(events::ReservationRequested {
            user: user(name),
            hold_for: None,
            price: None,
        }),
    )
}

fn event(id: &str, name: &str, data: TicketEvent) -> Event<TicketEvent> {
    let source = "shop".parse().expect("a source");
    Event::new(source, id.parse().expect("an id"), now(), None, ticket(name), data)
}

fn ticket(name: &str) -> TicketId {
    name.parse().expect("a ticket id")
}

fn user(name: &str) -> UserId {
    name.parse().expect("a user id")
}

fn reply(answer: &Answer) -> &holdfast_schemas::Reply {
    match answer {
        Answer::Fresh(reply) | Answer::Repeat(reply) => reply,
        other => panic!("no reply: {other:?}"),
    }
}

/// The last outcome of a fresh answer and its sequence: `ticket.held@2`, or a refusal's reason: `held@3`.
fn fresh(answer: &Answer) -> String {
    let Answer::Fresh(reply) = answer else {
        return format!("{answer:?}");
    };
    let outcome = reply.outcomes.last().expect("an outcome");
    let name = outcome.data["reason"]
        .as_str()
        .map_or_else(|| short(&outcome.outcome_type), str::to_owned);
    format!("{name}@{}", outcome.sequence)
}

fn short(outcome_type: &str) -> String {
    outcome_type
        .trim_start_matches("holdfast.outcome.")
        .trim_end_matches(".v1")
        .to_owned()
}
