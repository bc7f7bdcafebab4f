//! The database mechanisms against a real Postgres: the answer of each when it is repeated, overtaken or cut off, with no row
//! and with too many; and the example handlers that show them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{bail, ensure};
use futures::TryStreamExt;
use futures::future::{join_all, try_join_all};
use holdfast::config;
use holdfast::metrics::Metrics;
use holdfast::store::examples::{KEYS, User};
use holdfast::store::mechanisms::compare_and_set::{self, Changed, Swap};
use holdfast::store::mechanisms::idempotency::{DAY, Once};
use holdfast::store::mechanisms::insert::{self, Insert};
use holdfast::store::mechanisms::interactive::{self, Attempts, Write, Written};
use holdfast::store::mechanisms::update::{self, Update};
use holdfast::store::mechanisms::version::{self, Versioned};
use holdfast::store::mechanisms::{Error, batch, expression, raw, read};
use holdfast::store::{self, PgPool};
use holdfast_tests::kit::proxy::Proxy;
use holdfast_tests::kit::{Kit, until};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::support::clean;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_missing_row_is_an_answer_of_every_tool,
    a_value_that_the_table_forbids_changes_nothing,
    an_inserted_row_is_mine_over_every_retry_and_nobody_elses,
    a_plain_update_lets_the_last_writer_win_and_a_relative_one_loses_nothing,
    a_versioned_update_tells_whose_write_it_found,
    a_key_lets_its_work_happen_once,
    a_key_ends_only_when_its_time_is_over,
    a_swap_happens_only_on_what_was_seen,
    only_what_changed_is_written,
    an_expression_reaches_many_rows_at_once,
    batches_answer_as_one_by_one_in_few_statements,
    a_closure_reads_its_own_writes_and_what_it_wrote_is_told_in_order,
    two_closures_never_decide_on_what_the_other_changes,
    a_storm_of_writers_on_one_row_loses_none,
    an_aborted_task_undoes_its_transaction_and_its_statement_is_found_by_the_repeat,
    a_closure_that_fails_panics_or_swallows_writes_nothing,
    a_lost_answer_to_commit_is_told_as_unknown,
    own_sql_takes_effect_with_its_transaction_or_not_at_all,
    the_example_handlers_answer_as_written_down,
];

const WITHIN: Duration = Duration::from_secs(20);

fn a_missing_row_is_an_answer_of_every_tool(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let (nobody, add, ghost) = ("nobody".to_owned(), User::CREDITS.add(1), user("nobody", 1));
        let mut connection = pool.acquire().await?;
        ensure!(read::one::<User>(&pool, &nobody).await?.is_none());
        ensure!(
            read::many::<User>(&pool, std::slice::from_ref(&nobody))
                .await?
                .is_empty()
        );
        ensure!(update::apply(&pool, &nobody, &add).await? == Update::Missing);
        ensure!(version::update(&mut connection, &nobody, 0, "me", &add).await? == Versioned::Missing);
        let old = User::CREDITS.is(1);
        ensure!(compare_and_set::explicit(&mut connection, &nobody, &old, &add).await? == Swap::Gone);
        let wanted = user("nobody", 2);
        ensure!(compare_and_set::only_changed(&mut connection, &ghost, &wanted).await? == Changed::Gone);
        ensure!(compare_and_set::only_changed_if_unmoved(&mut connection, &ghost, &wanted).await? == Changed::Gone);
        ensure!(
            expression::apply_to_all(&pool, std::slice::from_ref(&nobody), &add)
                .await?
                .is_empty()
        );
        let (changes, changing) = batch::changes::<User>(pool.clone());
        tokio::spawn(changing);
        ensure!(changes.ask((nobody.clone(), add)).await? == Update::Missing);
        let deleted = interactive::transact(&pool, Attempts(1), async |transaction| {
            transaction.delete::<User>(&nobody).await?;
            transaction.get::<User>(&nobody).await
        })
        .await?;
        ensure!(deleted.value.is_none() && deleted.writes.is_empty(), "{deleted:?}");
        Ok(())
    })
}

fn a_value_that_the_table_forbids_changes_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let ann = with_user(&pool, "ann", 7).await?;
        let long = User::NAME.set("n".repeat(1_001));
        let mut connection = pool.acquire().await?;
        let too_long = User {
            name: "n".repeat(1_001),
            ..ann.clone()
        };
        forbidden(insert::once(&pool, &user(&"k".repeat(256), 0)).await, "user_id_length")?;
        forbidden(update::apply(&pool, &ann.user_id, &long).await, "name_length")?;
        forbidden(
            update::apply(&pool, &ann.user_id, &User::CREDITS.add(-8)).await,
            "credits_not_negative",
        )?;
        forbidden(
            update::apply(&pool, &ann.user_id, &User::CREDITS.add(i64::MAX)).await,
            "",
        )?;
        forbidden(update::apply(&pool, &ann.user_id, &User::NAME.set("nul \0")).await, "")?;
        forbidden(read::one::<User>(&pool, &"nul \0".to_owned()).await, "")?;
        let versioned = version::update(&mut connection, &ann.user_id, 0, "me", &long).await;
        forbidden(versioned, "name_length")?;
        let changed = compare_and_set::only_changed(&mut connection, &ann, &too_long).await;
        forbidden(changed, "name_length")?;
        let swapped = compare_and_set::explicit(&mut connection, &ann.user_id, &User::CREDITS.is(7), &long).await;
        forbidden(swapped, "name_length")?;
        let all = [ann.user_id.clone(), "nobody".to_owned()];
        forbidden(expression::apply_to_all(&pool, &all, &long).await, "name_length")?;
        let put = interactive::transact(&pool, Attempts(3), async |transaction| transaction.put(&too_long).await);
        forbidden(put.await, "name_length")?;
        let once = KEYS.once(&mut connection, "key", &(), DAY, async |transaction| {
            update::apply(transaction, &ann.user_id, &long).await.map(drop)
        });
        forbidden(once.await, "name_length")?;

        // A change that a constraint forbids spoils nothing for those that shared its statement.
        with_user(&pool, "bob", 7).await?;
        let (changes, changing) = batch::changes::<User>(pool.clone());
        let both = ["ann", "bob"]
            .map(|name| changes.ask((name.to_owned(), User::CREDITS.add(if name == "ann" { -8 } else { 8 }))));
        let changing = tokio::spawn(changing);
        let both = join_all(both).await;
        drop(changes);
        changing.await?;
        ensure!(both[0].is_err() && matches!(both[1], Ok(Update::Updated)), "{both:?}");
        ensure!(row(&pool, "ann").await? == Some(ann), "something was written");
        ensure!(row(&pool, "bob").await?.is_some_and(|bob| bob.credits == 15));
        let keys: i64 = sqlx::query_scalar("select count(*) from example_keys")
            .fetch_one(&pool)
            .await?;
        ensure!(keys == 0, "a key stands for work that was rolled back");
        Ok(())
    })
}

fn an_inserted_row_is_mine_over_every_retry_and_nobody_elses(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let (ann, other) = (user("ann", 1), user("ann", 2));
        ensure!(insert::once_by(&pool, &ann, "mine").await? == Insert::Inserted);
        update::apply(&pool, &ann.user_id, &User::NAME.set("Ann II")).await?;
        ensure!(
            insert::once_by(&pool, &ann, "mine").await? == Insert::Inserted,
            "a retry after an update"
        );
        ensure!(insert::once_by(&pool, &ann, "other").await? == Insert::Present);
        ensure!(
            row(&pool, "ann")
                .await?
                .is_some_and(|row| row.version == 1 && row.name == "Ann II")
        );

        let bob = user("bob", 1);
        ensure!(
            insert::once(&pool, &bob).await? == Insert::Inserted
                && insert::once(&pool, &bob).await? == Insert::Inserted
        );
        ensure!(insert::once(&pool, &user("bob", 2)).await? == Insert::Present);

        // Another writer has inserted the row and not committed yet: the insert waits for its end.
        for (theirs, answer) in [(true, Insert::Present), (false, Insert::Inserted)] {
            let cid = user(&format!("cid-{theirs}"), 1);
            let mut first = pool.begin().await?;
            insert::once_by(&mut *first, &cid, "theirs").await?;
            let (late, there) = (pool.clone(), cid.clone());
            let late = tokio::spawn(async move { insert::once_by(&late, &there, "mine").await });
            blocked(&pool).await?;
            if theirs {
                first.commit().await?
            } else {
                first.rollback().await?
            }
            ensure!(late.await?? == answer, "{cid:?}");
        }

        let proxied = Proxied::new(kit).await?;
        proxied.proxy.lose_answer_to("insert into example_users");
        let dora = user("dora", 1);
        ensure!(insert::once_by(&proxied.pool, &dora, "mine").await.is_err() && proxied.proxy.lost() == 1);
        ensure!(
            insert::once_by(&proxied.pool, &dora, "mine").await? == Insert::Inserted,
            "a retry after a lost answer"
        );
        ensure!(
            insert::once_by(&pool, &other, "mine").await? == Insert::Inserted,
            "the attempt decides, not the content"
        );
        Ok(())
    })
}

fn a_plain_update_lets_the_last_writer_win_and_a_relative_one_loses_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let ann = with_user(&pool, "ann", 0).await?.user_id;
        for name in ["first", "last"] {
            ensure!(update::apply(&pool, &ann, &User::NAME.set(name)).await? == Update::Updated);
        }
        let add = User::CREDITS.add(1);
        try_join_all((0..32).map(|_| update::apply(&pool, &ann, &add))).await?;
        let row = row(&pool, "ann").await?.expect("ann");
        ensure!(row.name == "last" && row.credits == 32 && row.version == 34, "{row:?}");

        // The page warns of this: an update whose answer was lost had taken effect, and its repeat adds again.
        let proxied = Proxied::new(kit).await?;
        proxied.proxy.lose_answer_to("update example_users");
        ensure!(update::apply(&proxied.pool, &ann, &add).await.is_err());
        update::apply(&proxied.pool, &ann, &add).await?;
        ensure!(credits(&pool, "ann").await? == 34, "an add without a key");
        Ok(())
    })
}

fn a_versioned_update_tells_whose_write_it_found(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let ann = with_user(&pool, "ann", 10).await?.user_id;
        let mut connection = pool.acquire().await?;
        let set = User::CREDITS.set(15);
        let mine = async |connection: &mut _, read| version::update(connection, &ann, read, "mine", &set).await;
        ensure!(mine(&mut connection, 0).await? == Versioned::Applied { version: 1 });
        ensure!(mine(&mut connection, 0).await? == Versioned::AlreadyMine { version: 1 });
        let theirs = version::update(&mut connection, &ann, 0, "theirs", &set).await?;
        ensure!(
            theirs == Versioned::Conflict { found: 1 },
            "the same content proves nothing: {theirs:?}"
        );
        // A plain writer clears the attempt's mark: the next version is not this attempt's because the one before was.
        update::apply(&pool, &ann, &User::NAME.set("Ann")).await?;
        ensure!(mine(&mut connection, 1).await? == Versioned::Conflict { found: 2 });
        ensure!(mine(&mut connection, 0).await? == Versioned::Overtaken { found: 2 });

        // Another writer holds the row, and commits while this one waits.
        let mut first = pool.begin().await?;
        ensure!(version::update(&mut first, &ann, 2, "theirs", &set).await? == Versioned::Applied { version: 3 });
        let (late, key) = (pool.clone(), ann.clone());
        let late = tokio::spawn(async move {
            let mut connection = late.acquire().await?;
            anyhow::Ok(version::update(&mut connection, &key, 2, "mine", &User::CREDITS.set(20)).await?)
        });
        blocked(&pool).await?;
        first.commit().await?;
        ensure!(late.await?? == Versioned::Conflict { found: 3 } && credits(&pool, "ann").await? == 15);

        let proxied = Proxied::new(kit).await?;
        proxied.proxy.lose_answer_to("update example_users");
        let add = User::CREDITS.add(1);
        let lost = version::update(&mut *proxied.pool.acquire().await?, &ann, 3, "lost", &add).await;
        ensure!(lost.is_err() && proxied.proxy.lost() == 1, "{lost:?}");
        let again = version::update(&mut *proxied.pool.acquire().await?, &ann, 3, "lost", &add).await?;
        ensure!(
            again == Versioned::AlreadyMine { version: 4 } && credits(&pool, "ann").await? == 16,
            "{again:?}"
        );
        Ok(())
    })
}

fn a_key_lets_its_work_happen_once(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let ann = with_user(&pool, "ann", 0).await?.user_id;
        ensure!(add_once(&pool, "k", &ann, 5).await? == Once::Fresh(5));
        ensure!(
            add_once(&pool, "k", &ann, 5).await? == Once::Repeat(5),
            "the first reply again"
        );
        ensure!(add_once(&pool, "k", &ann, 6).await? == Once::Reused);
        ensure!(credits(&pool, "ann").await? == 5);

        // While the first is at work, 4 others come with its key: they wait, and then repeat; or, when it fails, one of them
        // does the work.
        for (key, fails, after) in [("commits", false, 6), ("fails", true, 7)] {
            let (started, has_started) = oneshot::channel();
            let (go, may_go) = oneshot::channel::<()>();
            let (slow, user) = (pool.clone(), ann.clone());
            let first = tokio::spawn(async move {
                let mut connection = slow.acquire().await?;
                let request = (user.clone(), 1);
                KEYS.once(&mut connection, key, &request, DAY, async |transaction| {
                    update::apply(&mut *transaction, &user, &User::CREDITS.add(1)).await?;
                    started.send(()).expect("the test waits");
                    may_go.await?;
                    if fails {
                        bail!("on purpose");
                    }
                    Ok(read::one::<User>(transaction, &user)
                        .await?
                        .map_or(0, |user| user.credits))
                })
                .await
            });
            has_started.await?;
            let others = (0..4).map(|_| {
                let (pool, ann) = (pool.clone(), ann.clone());
                tokio::spawn(async move { add_once(&pool, key, &ann, 1).await })
            });
            let others: Vec<_> = others.collect();
            blocked(&pool).await?;
            go.send(()).expect("the first waits");
            ensure!(first.await?.is_err() == fails);
            let mut fresh = 0;
            for answer in join_all(others).await {
                match answer?? {
                    Once::Fresh(_) => fresh += 1,
                    answer => ensure!(answer == Once::Repeat(after), "{answer:?}"),
                }
            }
            ensure!(
                fresh == i32::from(fails) && credits(&pool, "ann").await? == after,
                "{key}: {fresh} fresh"
            );
        }

        let proxied = Proxied::new(kit).await?;
        proxied.proxy.lose_answer_to("COMMIT");
        ensure!(add_once(&proxied.pool, "lost", &ann, 1).await.is_err() && proxied.proxy.lost() == 1);
        ensure!(add_once(&proxied.pool, "lost", &ann, 1).await? == Once::Repeat(8));
        Ok(())
    })
}

fn a_key_ends_only_when_its_time_is_over(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let ann = with_user(&pool, "ann", 0).await?.user_id;
        for key in ["one", "two", "young"] {
            add_once(&pool, key, &ann, 1).await?;
        }
        ensure!(!KEYS.expire(&pool, "one").await?, "a key ended early");
        sqlx::raw_sql("update example_keys set expires_at = expires_at - interval '2 days' where key <> 'young'")
            .execute(&pool)
            .await?;
        ensure!(KEYS.expire(&pool, "one").await? && !KEYS.expire(&pool, "one").await?);
        ensure!(
            add_once(&pool, "one", &ann, 1).await? == Once::Fresh(4),
            "an ended key is free"
        );
        ensure!(
            KEYS.sweep(&pool, 2 * DAY, 10).await? == 0,
            "a key was swept within its grace"
        );
        ensure!(KEYS.sweep(&pool, DAY / 2, 10).await? == 1);
        ensure!(add_once(&pool, "young", &ann, 1).await? == Once::Repeat(3));
        Ok(())
    })
}

fn a_swap_happens_only_on_what_was_seen(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let loaded = with_user(&pool, "ann", 10).await?;
        let mut connection = pool.acquire().await?;
        let (spend, tag) = (User::CREDITS.set(5), User::TAGS.append("vip"));

        let swap = compare_and_set::explicit(&mut connection, &loaded.user_id, &User::CREDITS.is(9), &spend).await?;
        ensure!(swap == Swap::Differs, "{swap:?}");
        let old = User::CREDITS.is(10).and(User::TAGS.is(Vec::<String>::new()));
        let swap = compare_and_set::explicit(&mut connection, &loaded.user_id, &old, &tag).await?;
        ensure!(swap == Swap::Swapped, "{swap:?}");

        // Tags have changed since the row was loaded, credits have not.
        let swap = compare_and_set::as_loaded(&mut connection, &loaded, &["credits", "tags"], &spend).await?;
        ensure!(swap == Swap::Differs, "{swap:?}");
        let swap = compare_and_set::skip_if_someone_changed(&mut connection, &loaded, &tag).await?;
        ensure!(swap == Swap::Differs, "{swap:?}");
        let swap = compare_and_set::skip_if_someone_changed(&mut connection, &loaded, &spend).await?;
        ensure!(swap == Swap::Swapped, "{swap:?}");

        // Another writer swaps the same and commits while this one waits: one of the two wins.
        let loaded = row(&pool, "ann").await?.expect("ann");
        let mut first = pool.begin().await?;
        compare_and_set::skip_if_someone_changed(&mut first, &loaded, &User::CREDITS.set(4)).await?;
        let (late, stale) = (pool.clone(), loaded.clone());
        let late = tokio::spawn(async move {
            let mut connection = late.acquire().await?;
            let change = User::CREDITS.set(3);
            anyhow::Ok(compare_and_set::skip_if_someone_changed(&mut connection, &stale, &change).await?)
        });
        blocked(&pool).await?;
        first.commit().await?;
        ensure!(late.await?? == Swap::Differs && credits(&pool, "ann").await? == 4);
        Ok(())
    })
}

fn only_what_changed_is_written(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let loaded = with_user(&pool, "ann", 10).await?;
        let mut connection = pool.acquire().await?;
        let moved = User {
            address: "2, New Street".to_owned(),
            ..loaded.clone()
        };
        ensure!(compare_and_set::only_changed(&mut connection, &loaded, &loaded).await? == Changed::Unchanged);
        ensure!(
            row(&pool, "ann").await?.is_some_and(|row| row.version == 0),
            "nothing differed, yet it was written"
        );
        // Another writer's change of another column stays.
        update::apply(&pool, &loaded.user_id, &User::CREDITS.add(1)).await?;
        let changed = compare_and_set::only_changed_if_unmoved(&mut connection, &loaded, &moved).await?;
        ensure!(changed == Changed::Changed(vec!["address"]), "{changed:?}");
        let now = row(&pool, "ann").await?.expect("ann");
        ensure!(
            now.credits == 11 && now.address == moved.address && now.version == 2,
            "{now:?}"
        );
        // Another writer's change of the same column: one tool notices it, the other one overwrites it.
        update::apply(&pool, &loaded.user_id, &User::ADDRESS.set("3, Elsewhere")).await?;
        let changed = compare_and_set::only_changed_if_unmoved(&mut connection, &loaded, &moved).await?;
        ensure!(changed == Changed::Differs, "{changed:?}");
        let changed = compare_and_set::only_changed(&mut connection, &loaded, &moved).await?;
        ensure!(changed == Changed::Changed(vec!["address"]), "{changed:?}");
        Ok(())
    })
}

fn an_expression_reaches_many_rows_at_once(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let mut users = vec!["nobody".to_owned()];
        for name in ["ann", "bob", "cid"] {
            users.push(with_user(&pool, name, 0).await?.user_id);
        }
        let changes = ["a", "b", "c", "d"].map(|tag| User::TAGS.append(tag).and(User::CREDITS.add(2)));
        let changed = try_join_all(
            changes
                .iter()
                .map(|change| expression::apply_to_all(&pool, &users, change)),
        )
        .await?;
        ensure!(changed.iter().all(|changed| changed.len() == 3), "{changed:?}");
        for row in read::many::<User>(&pool, &users).await?.values_mut() {
            row.tags.sort();
            ensure!(
                row.tags == ["a", "b", "c", "d"] && row.credits == 8 && row.version == 4,
                "{row:?}"
            );
        }
        Ok(())
    })
}

fn batches_answer_as_one_by_one_in_few_statements(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let names: Vec<String> = (0..64).map(|number| format!("user-{number:02}")).collect();
        for name in &names {
            with_user(&pool, name, 0).await?;
        }
        let (changes, changing) = batch::changes::<User>(pool.clone());
        tokio::spawn(changing);
        // The first statement waits for a locked row; whatever comes meanwhile goes into the next ones.
        let mut lock = pool.begin().await?;
        update::apply(&mut *lock, &names[0], &User::NAME.set("locked")).await?;
        let first = {
            let (changes, name) = (changes.clone(), names[0].clone());
            tokio::spawn(async move { changes.ask((name, User::CREDITS.add(1))).await })
        };
        blocked(&pool).await?;
        let ask = |name: &String, change| changes.ask((name.clone(), change));
        let adds = names.iter().chain(&names).map(|name| ask(name, User::CREDITS.add(2)));
        let tags = names.iter().map(|name| ask(name, User::TAGS.append("t")));
        let nobody = ask(&"nobody".to_owned(), User::CREDITS.add(1));
        let mut asked = Box::pin(join_all(adds.chain(tags).chain([nobody])));
        // Each turn hands over as many as a task may do at once.
        for _ in 0..8 {
            ensure!(
                futures::poll!(&mut asked).is_pending(),
                "answered while the row was locked"
            );
            tokio::task::yield_now().await;
        }
        lock.commit().await?;
        ensure!(matches!(first.await?, Ok(Update::Updated)));
        let answers = asked.await;
        let updated = answers.iter().filter(|answer| matches!(answer, Ok(Update::Updated)));
        ensure!(
            updated.count() == 192 && matches!(answers.last(), Some(Ok(Update::Missing))),
            "{answers:?}"
        );
        // A transaction leaves its number in the rows that it wrote last: here those with the tags, which come in one portion,
        // or in a few where the batching task runs in between.
        let statements: i64 = sqlx::query_scalar("select count(distinct xmin::text) from example_users")
            .fetch_one(&pool)
            .await?;
        ensure!(statements <= 4, "64 rows were last written by {statements} statements");

        let (reads, reading) = batch::reads::<User>(pool.clone());
        tokio::spawn(reading);
        let rows = join_all(names.iter().chain(&names).map(|name| reads.ask(name.clone()))).await;
        for (place, row) in rows.into_iter().enumerate() {
            let row = row.map_err(|error| anyhow::anyhow!("{error}"))?.expect("a user");
            let wanted = if place % 64 == 0 { 5 } else { 4 };
            ensure!(
                row.user_id == names[place % 64] && row.credits == wanted && row.tags == ["t"],
                "{row:?}"
            );
        }
        ensure!(reads.ask("nobody".to_owned()).await.is_ok_and(|row| row.is_none()));
        Ok(())
    })
}

fn a_closure_reads_its_own_writes_and_what_it_wrote_is_told_in_order(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let ann = with_user(&pool, "ann", 10).await?;
        let [rich, bob] = [user("ann", 11), user("bob", 1)];
        let committed = interactive::transact(&pool, Attempts(1), async |transaction| {
            transaction.put(&ann).await?;
            transaction.put(&rich).await?;
            transaction.put(&bob).await?;
            let listed = transaction.list::<User>(None, 10).await?;
            let after = transaction.list::<User>(Some(&"ann".to_owned()), 10).await?;
            transaction.delete::<User>(&bob.user_id).await?;
            let gone = transaction.get::<User>(&bob.user_id).await?.is_none();
            Ok::<_, Error>((listed.len(), after, gone))
        })
        .await?;
        ensure!(committed.value == (2, vec![bob], true), "{committed:?}");
        let wrote = |key: &str, what| Written {
            table: "example_users",
            key: key.into(),
            what,
        };
        let put = |version| Write::Put { version: Some(version) };
        let writes = [wrote("ann", put(1)), wrote("bob", put(0)), wrote("bob", Write::Deleted)];
        ensure!(
            committed.writes == writes,
            "a row put as it was is not written: {committed:?}"
        );

        let idle = interactive::transact(&pool, Attempts(1), async |transaction| transaction.put(&rich).await).await?;
        ensure!(
            idle.writes.is_empty() && row(&pool, "ann").await?.is_some_and(|row| row.version == 1),
            "{idle:?}"
        );
        Ok(())
    })
}

fn two_closures_never_decide_on_what_the_other_changes(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        // Each may spend its own row's credits as long as both together keep 10: without SERIALIZABLE both would.
        let pool = database(kit).await?;
        for name in ["ann", "bob"] {
            with_user(&pool, name, 10).await?;
        }
        let both_read = Arc::new(tokio::sync::Barrier::new(2));
        let spenders = ["ann", "bob"].map(|mine| {
            let (pool, both_read) = (pool.clone(), both_read.clone());
            tokio::spawn(async move {
                let first = AtomicBool::new(true);
                interactive::transact(&pool, Attempts(10), async |transaction| {
                    let rows = transaction.list::<User>(None, 10).await?;
                    if first.swap(false, Ordering::SeqCst) {
                        both_read.wait().await;
                    }
                    let total: i64 = rows.iter().map(|row| row.credits).sum();
                    let mut row = rows.into_iter().find(|row| row.user_id == mine).expect("a user");
                    if total - row.credits < 10 || total < 20 {
                        return Ok(false);
                    }
                    row.credits = 0;
                    transaction.put(&row).await?;
                    Ok::<_, Error>(true)
                })
                .await
            })
        });
        let mut answers = Vec::new();
        for spender in spenders {
            answers.push(spender.await??);
        }
        let spent = answers.iter().filter(|answer| answer.value).count();
        ensure!(spent == 1, "{answers:?}");
        ensure!(
            answers.iter().any(|answer| answer.calls > 1 && !answer.value),
            "one decided anew: {answers:?}"
        );
        ensure!(credits(&pool, "ann").await? + credits(&pool, "bob").await? == 10);
        Ok(())
    })
}

fn a_storm_of_writers_on_one_row_loses_none(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        with_user(&pool, "ann", 0).await?;
        let storm = async |attempts| {
            let writers = (0..32).map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move { add_one(&pool, Attempts(attempts)).await })
            });
            let mut done = 0;
            for writer in join_all(writers.collect::<Vec<_>>()).await {
                match writer? {
                    Ok(()) => done += 1,
                    Err(Error::Conflict(_)) => {}
                    Err(error) => return Err(anyhow::Error::from(error)),
                }
            }
            anyhow::Ok(done)
        };
        ensure!(
            storm(100).await? == 32 && credits(&pool, "ann").await? == 32,
            "a patient writer gave up"
        );
        let done = storm(1).await?;
        ensure!((1..32).contains(&done), "{done} of 32 at the first attempt");
        ensure!(credits(&pool, "ann").await? == 32 + done, "{done} done");
        Ok(())
    })
}

async fn add_one(pool: &PgPool, attempts: Attempts) -> Result<(), Error> {
    let added = interactive::transact(pool, attempts, async |transaction| {
        let Some(mut row) = transaction.get::<User>(&"ann".to_owned()).await? else {
            return Ok(());
        };
        row.credits += 1;
        transaction.put(&row).await
    });
    added.await.map(drop)
}

fn an_aborted_task_undoes_its_transaction_and_its_statement_is_found_by_the_repeat(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let ann = with_user(&pool, "ann", 0).await?.user_id;

        // Its one statement is with the database, which does not learn of the task's end.
        let (other, key) = (pool.clone(), ann.clone());
        abort_while_blocked(&pool, async move {
            let mut connection = other.acquire().await?;
            version::update(&mut connection, &key, 0, "mine", &User::CREDITS.add(1)).await?;
            Ok(())
        })
        .await?;
        until("the statement to be done", WITHIN, async || {
            let now = row(&pool, "ann").await?.map(|row| row.version);
            ensure!(now == Some(1), "the row has version {now:?}");
            anyhow::Ok(())
        })
        .await?;
        let mut connection = pool.acquire().await?;
        let again = version::update(&mut connection, &ann, 0, "mine", &User::CREDITS.add(1)).await?;
        ensure!(again == Versioned::AlreadyMine { version: 1 }, "{again:?}");

        // No task is left to send COMMIT.
        let (other, key) = (pool.clone(), ann.clone());
        abort_while_blocked(&pool, async move {
            add_once(&other, "k", &key, 1).await?;
            Ok(())
        })
        .await?;
        let other = pool.clone();
        abort_while_blocked(&pool, async move { Ok(add_one(&other, Attempts(1)).await?) }).await?;
        none_open(&pool).await?;
        ensure!(
            credits(&pool, "ann").await? == 1,
            "a transaction without an end took effect"
        );
        ensure!(add_once(&pool, "k", &ann, 1).await? == Once::Fresh(2), "its key stayed");
        Ok(())
    })
}

/// Runs the work into a row that is locked, ends its task there, and lets the row go.
async fn abort_while_blocked(
    pool: &PgPool,
    work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> anyhow::Result<()> {
    let mut lock = pool.begin().await?;
    sqlx::raw_sql("select 1 from example_users for update")
        .execute(&mut *lock)
        .await?;
    let task = tokio::spawn(work);
    blocked(pool).await?;
    task.abort();
    ensure!(task.await.is_err_and(|error| error.is_cancelled()));
    Ok(lock.rollback().await?)
}

/// Waits until no transaction of this database is open.
pub(crate) async fn none_open(pool: &PgPool) -> anyhow::Result<()> {
    let transactions = "select count(*) from pg_stat_activity
         where datname = current_database() and xact_start is not null and pid <> pg_backend_pid()";
    until("open transactions to end", WITHIN, async || {
        let open: i64 = sqlx::query_scalar(transactions).fetch_one(pool).await?;
        ensure!(open == 0, "{open} are open");
        anyhow::Ok(())
    })
    .await
}

fn a_closure_that_fails_panics_or_swallows_writes_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        let ann = with_user(&pool, "ann", 10).await?;
        let (rich, impossible) = (user("ann", 11), user("ann", -1));

        let failed = interactive::transact(&pool, Attempts(3), async |transaction| {
            transaction.put(&rich).await?;
            Err::<(), _>(anyhow::anyhow!("on purpose"))
        });
        let failed = failed.await.expect_err("it failed");
        ensure!(failed.to_string() == "on purpose", "{failed}");

        let (other, row_of) = (pool.clone(), rich.clone());
        let panicked = tokio::spawn(async move {
            interactive::transact(&other, Attempts(3), async |transaction| {
                transaction.put(&row_of).await?;
                if row_of.credits == 11 {
                    panic!("on purpose");
                }
                Ok::<_, Error>(())
            })
            .await
        });
        ensure!(panicked.await.is_err_and(|error| error.is_panic()));

        let swallowed = interactive::transact(&pool, Attempts(3), async |transaction| {
            transaction.put(&rich).await?;
            drop(transaction.put(&impossible).await);
            Ok::<_, Error>(())
        });
        let swallowed = swallowed.await;
        ensure!(matches!(swallowed, Err(Error::Swallowed)), "{swallowed:?}");
        ensure!(row(&pool, "ann").await? == Some(ann), "something was written");
        none_open(&pool).await
    })
}

fn a_lost_answer_to_commit_is_told_as_unknown(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        with_user(&pool, "ann", 0).await?;
        let proxied = Proxied::new(kit).await?;
        proxied.proxy.lose_answer_to("COMMIT");
        let lost = add_one(&proxied.pool, Attempts(5)).await;
        ensure!(matches!(lost, Err(Error::Unknown(_))), "{lost:?}");
        ensure!(
            credits(&pool, "ann").await? == 1,
            "it had taken effect, and was not done again"
        );
        Ok(())
    })
}

fn own_sql_takes_effect_with_its_transaction_or_not_at_all(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = database(kit).await?;
        for name in ["ann", "bob"] {
            with_user(&pool, name, 1).await?;
        }
        let double = "update example_users set credits = credits * 2, version = version + 1, written_by = null";
        let broken = "update example_users set credits = -1";
        let run = async |then: Option<&'static str>| {
            interactive::transact(&pool, Attempts(1), async |transaction| {
                transaction
                    .raw("example_users", async |connection| {
                        sqlx::query(double).execute(&mut *connection).await?;
                        if let Some(then) = then {
                            drop(sqlx::query(then).execute(connection).await);
                        }
                        Ok(())
                    })
                    .await
            })
            .await
        };
        let swallowed = run(Some(broken)).await;
        ensure!(matches!(swallowed, Err(Error::Swallowed)), "{swallowed:?}");
        run(None).await?;
        let rows: Vec<User> = raw::stream::<User>(&pool).try_collect().await?;
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.user_id.as_str(), row.credits, row.version))
            .collect();
        ensure!(seen == [("ann", 2, 1), ("bob", 2, 1)], "{seen:?}");
        Ok(())
    })
}

/// One call of an example handler, its `idempotency-key` if it has one, and what it must answer.
struct Call(&'static str, Value, Option<&'static str>, u16, Value);

fn the_example_handlers_answer_as_written_down(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "mechanisms").arg("--examples").start().await?;
        let ann = json!({"userId": "ann", "name": "Ann", "address": "1, Old Street", "credits": 10});
        let bob = json!({"userId": "ann", "name": "Bob", "address": "2, Old Street", "credits": 20});
        let row = |name: &str, credits: i64, version: i64| {
            json!({"userId": "ann", "name": name, "address": "1, Old Street", "credits": credits, "tags": [], "version": version})
        };
        let add = |credits: i64| json!({"userId": "ann", "addCredits": credits});
        let nothing = json!("(row not found)");
        let calls = [
            Call("simple/read", json!("ann"), None, 200, nothing.clone()),
            Call("simple/durableRead", json!("ann"), None, 200, Value::Null),
            Call("simple/update", json!({"userId": "ann", "newName": "Ann"}), None, 200, json!(false)),
            Call("keyed/ann/read", Value::Null, None, 200, nothing),
            Call("keyed/ann/update", json!(5), None, 200, json!(false)),
            Call("keyed/ann/updateConditional", json!(5), None, 404, Value::Null),
            Call("simple/insert", ann.clone(), Some("i-1"), 200, json!(true)),
            Call("simple/insert", ann.clone(), Some("i-1"), 200, json!(true)),
            Call("simple/insert", ann, None, 200, json!(false)),
            Call("simple/insert", bob, None, 200, json!(false)),
            Call("simple/read", json!("ann"), None, 200, row("Ann", 10, 0)),
            Call("simple/update", json!({"userId": "ann", "newName": "Anna"}), None, 200, json!(true)),
            Call("keyed/ann/update", json!(5), None, 200, json!(true)),
            Call("keyed/ann/updateConditional", json!(7), None, 200, json!(3)),
            Call("keyed/ann/updateConditional", json!(-23), None, 400, Value::Null),
            Call("keyed/ann/read", Value::Null, None, 200, row("Anna", 22, 3)),
            Call("idempotency/update", add(3), Some("k-1"), 200, json!(25)),
            Call("idempotency/update", add(3), Some("k-1"), 200, json!(25)),
            Call("idempotency/update", add(4), Some("k-1"), 409, Value::Null),
            Call("idempotency/update", add(4), None, 200, json!(29)),
            Call("idempotency/update", add(-30), None, 400, Value::Null),
            Call("idempotency/expireIdempotencyKey", json!("nobody's"), None, 200, json!(false)),
            Call("twoPhaseCommit/update", add(1), Some("t-1"), 200, json!(true)),
            Call("twoPhaseCommit/update", add(1), Some("t-1"), 200, json!(false)),
            Call("twoPhaseCommit/update", add(-31), None, 400, Value::Null),
            Call("simple/update", json!({"userId": "ann", "newName": "n".repeat(1_001)}), None, 400, Value::Null),
            Call("simple/durableRead", json!("ann"), None, 200, json!(30)),
            Call("keyed/ann/read", Value::Null, None, 200, row("Anna", 30, 6)),
        ];
        for Call(path, body, key, wanted, answer) in calls {
            let headers: Vec<_> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
            let (status, said) = match &body {
                Value::Null => get(kit, path).await?,
                body => kit.stack.restate.call(path, &headers, body).await?,
            };
            ensure!(status == wanted && (wanted != 200 || said == answer), "{path} {body}: {status} {said}");
        }

        let pool = kit.stack.postgres.connect().await?;
        let users: Vec<User> = sqlx::query_as("select * from example_users").fetch_all(&pool).await?;
        ensure!(users.len() == 1 && json!(users[0]) == row("Anna", 30, 6), "{users:?}");
        let keys: Vec<String> = sqlx::query_scalar("select reply::text from example_keys order by 1").fetch_all(&pool).await?;
        ensure!(keys == ["25", "29"], "{keys:?}");
        pool.close().await;
        clean(kit).await?;
        worker.stop().await
    })
}

/// Calls a handler that takes nothing.
async fn get(kit: &Kit, path: &str) -> anyhow::Result<(u16, Value)> {
    let response = kit.stack.restate.look(path).await?;
    Ok((response.status().as_u16(), response.json().await?))
}

/// An empty database with the product's tables, by the product's own pool.
pub(crate) async fn database(kit: &Kit) -> anyhow::Result<PgPool> {
    let pool = kit.stack.postgres.copy_database("template1", "mechanisms").await?;
    store::migrate(&pool).await?;
    pool.close().await;
    connect(kit.stack.postgres.url_of("mechanisms")).await
}

pub(crate) async fn connect(url: String) -> anyhow::Result<PgPool> {
    connect_for(url, Duration::from_secs(10)).await
}

/// With this limit for each statement, and for a transaction that does nothing.
pub(crate) async fn connect_for(url: String, statement_timeout: Duration) -> anyhow::Result<PgPool> {
    let settings = config::Database {
        url: url.into(),
        loyalty_url: None,
        url_file: None,
        loyalty_url_file: None,
        credits_abandoned_after: Duration::from_secs(60),
        pool_size: 16,
        acquire_timeout: Duration::from_secs(5),
        statement_timeout,
        lock_timeout: Duration::from_secs(5),
        idle_in_transaction_timeout: statement_timeout,
        idempotency_retention: DAY,
    };
    Ok(store::connect(&settings, &Metrics::new()?).await?)
}

/// The same database by a way that can be cut.
struct Proxied {
    proxy: Proxy,
    pool: PgPool,
}

impl Proxied {
    async fn new(kit: &Kit) -> anyhow::Result<Proxied> {
        let address = kit.stack.postgres.address();
        let proxy = Proxy::start(address.clone()).await?;
        let url = kit
            .stack
            .postgres
            .url_of("mechanisms")
            .replace(&address, &proxy.address());
        let pool = connect(url).await?;
        Ok(Proxied { proxy, pool })
    }
}

/// Waits until a session of this database waits for a lock.
pub(crate) async fn blocked(pool: &PgPool) -> anyhow::Result<()> {
    until("a session to wait for a lock", WITHIN, async || {
        let waits =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        let waiting: i64 = sqlx::query_scalar(waits).fetch_one(pool).await?;
        ensure!(waiting > 0, "none waits");
        anyhow::Ok(())
    })
    .await
}

pub(crate) fn user(name: &str, credits: i64) -> User {
    User {
        user_id: name.to_owned(),
        name: "Name".to_owned(),
        address: "1, Old Street".to_owned(),
        credits,
        tags: Vec::new(),
        version: 0,
    }
}

async fn with_user(pool: &PgPool, name: &str, credits: i64) -> anyhow::Result<User> {
    let user = user(name, credits);
    ensure!(insert::once(pool, &user).await? == Insert::Inserted);
    Ok(user)
}

async fn row(pool: &PgPool, name: &str) -> anyhow::Result<Option<User>> {
    Ok(read::one(pool, &name.to_owned()).await?)
}

async fn credits(pool: &PgPool, name: &str) -> anyhow::Result<i64> {
    Ok(row(pool, name).await?.map_or(0, |user| user.credits))
}

async fn add_once(pool: &PgPool, key: &str, user: &String, credits: i64) -> Result<Once<i64>, Error> {
    let mut connection = pool.acquire().await.expect("a connection");
    let request = (user, credits);
    KEYS.once(&mut connection, key, &request, DAY, async |transaction| {
        update::apply(&mut *transaction, user, &User::CREDITS.add(credits)).await?;
        Ok(read::one::<User>(transaction, user)
            .await?
            .map_or(0, |user| user.credits))
    })
    .await
}

fn forbidden<T: std::fmt::Debug>(result: Result<T, Error>, rule: &str) -> anyhow::Result<()> {
    match &result {
        Err(Error::Forbidden { constraint, .. }) if constraint.as_deref().unwrap_or_default().ends_with(rule) => Ok(()),
        _ => bail!("{rule}: {result:?}"),
    }
}
