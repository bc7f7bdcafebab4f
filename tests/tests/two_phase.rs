//! Two-phase commit: whatever step ends early, and whether the next try or the sweeper goes on, both databases change once, or
//! neither.

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast::store;
use holdfast::store::mechanisms::two_phase::{self, Fate, Outcome, TransactionId};
use holdfast::store::mechanisms::{Error, insert};
use holdfast_tests::kit::Kit;
use holdfast_tests::kit::proxy::{Proxy, Side};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::workers::done;
use crate::{Test, mechanisms, tests};

pub(crate) const TESTS: &[Test] = tests![
    both_databases_change_once_whatever_step_ends_early,
    a_try_that_wakes_up_late_changes_nothing,
    whoever_ends_one_transaction_at_once_with_others_passes,
    a_slow_try_that_was_swept_changes_nothing_and_the_next_one_does,
    what_was_prepared_outlives_a_kill_and_is_settled_by_its_row,
    the_other_database_may_be_away_at_any_step,
    the_other_database_may_be_away_longer_than_every_timeout,
    a_closure_that_fails_leaves_nothing_in_either_database,
    a_decision_that_is_cut_off_leaves_nothing_prepared,
    a_value_that_one_database_forbids_changes_neither,
    a_database_that_cannot_prepare_is_refused,
];

/// The other database of these proofs, not the one that the stack's workers use.
const DATABASE: &str = "two_phase";
/// Age from which the sweeper takes a prepared transaction: zero, so that it takes those of this proof at once.
const AT_ONCE: Duration = Duration::ZERO;

/// The product's database with a table for this proof, and another one that knows nothing of us.
struct Databases {
    main: PgPool,
    loyalty: PgPool,
}

impl Databases {
    async fn new(kit: &Kit) -> anyhow::Result<Self> {
        done(kit.stack.holdfast("migrate", "migrate")).await?;
        let main = kit.stack.postgres.connect().await?;
        let loyalty = kit.stack.postgres.copy_database("template1", DATABASE).await?;
        for (pool, table) in [
            (&main, "drop table if exists orders"),
            (&main, "create table orders (number bigint primary key)"),
            (
                &loyalty,
                "create table accounts (user_id text primary key, credits bigint not null)",
            ),
            (&loyalty, "insert into accounts values ('ann', 0)"),
        ] {
            sqlx::query(table).execute(pool).await?;
        }
        Ok(Self { main, loyalty })
    }

    async fn run(&self, transaction: &TransactionId, attempt: Uuid, number: i64) -> Result<Outcome, Error> {
        let (here, there) = (async |here: &mut PgConnection| order(here, number).await, spend);
        two_phase::run(&self.main, &self.loyalty, transaction, attempt, here, there).await
    }

    async fn prepare(&self, transaction: &TransactionId, attempt: Uuid) -> Result<(), Error> {
        two_phase::prepare(&self.loyalty, transaction, attempt, spend).await
    }

    async fn decide(&self, transaction: &TransactionId, attempt: Uuid, number: i64) -> Result<Fate, Error> {
        let here = async |here: &mut PgConnection| order(here, number).await.map(|()| Fate::Committed);
        two_phase::decide(&self.main, &self.loyalty, transaction, attempt, here).await
    }

    async fn sweep(&self) -> Result<usize, Error> {
        two_phase::sweep(&self.main, &self.loyalty, AT_ONCE).await
    }

    /// Orders, credits, and what is still prepared.
    async fn state(&self) -> anyhow::Result<(i64, i64, i64)> {
        let orders = sqlx::query_scalar("select count(*) from orders").fetch_one(&self.main);
        let credits = sqlx::query_scalar("select credits from accounts").fetch_one(&self.loyalty);
        let prepared = sqlx::query_scalar("select count(*) from pg_prepared_xacts where database = current_database()")
            .fetch_one(&self.loyalty);
        Ok((orders.await?, credits.await?, prepared.await?))
    }

    async fn expect(&self, orders: i64, credits: i64) -> anyhow::Result<()> {
        let state = self.state().await?;
        ensure!(state == (orders, credits, 0), "orders, credits, prepared: {state:?}");
        Ok(())
    }

    /// `false` ends every session of the other database and refuses new ones.
    async fn open_loyalty(&self, open: bool) -> anyhow::Result<()> {
        let statement = if open {
            "alter database two_phase allow_connections true"
        } else {
            "alter database two_phase allow_connections false"
        };
        sqlx::query(statement).execute(&self.main).await?;
        if !open {
            sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where datname = 'two_phase'")
                .execute(&self.main)
                .await?;
        }
        Ok(())
    }
}

async fn order(here: &mut PgConnection, number: i64) -> Result<(), Error> {
    let insert = sqlx::query("insert into orders values ($1)").bind(number);
    insert.execute(here).await.map(drop).map_err(failed)
}

async fn spend(there: &mut PgConnection) -> Result<(), Error> {
    let timeout = sqlx::query("set local lock_timeout = '200ms'");
    timeout.execute(&mut *there).await.map_err(failed)?;
    let update = sqlx::query("update accounts set credits = credits + 1 where user_id = 'ann'");
    update.execute(there).await.map(drop).map_err(failed)
}

fn failed(source: sqlx::Error) -> Error {
    Error::Statement {
        table: "(proof)",
        source,
    }
}

fn id(number: i64) -> anyhow::Result<TransactionId> {
    Ok(TransactionId::parse(&format!("proofs/{}/{number}", Uuid::new_v4()))?)
}

fn both_databases_change_once_whatever_step_ends_early(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let databases = Databases::new(kit).await?;
        // Steps that the first try gets done before its process ends; and whether the sweeper runs before the next try.
        for (number, (steps, swept)) in (0..4).flat_map(|steps| [(steps, false), (steps, true)]).enumerate() {
            let number = number as i64;
            let (transaction, first, second) = (id(number)?, Uuid::new_v4(), Uuid::new_v4());
            let told = async {
                if steps >= 1 {
                    databases.prepare(&transaction, first).await?;
                }
                if steps >= 2 {
                    ensure!(databases.decide(&transaction, first, number).await? == Fate::Committed);
                }
                if steps >= 3 {
                    two_phase::settle(&databases.loyalty, &transaction, first, Fate::Committed).await?;
                    // A second `commit prepared` answers as if it had never been there; the row knows better.
                    two_phase::settle(&databases.loyalty, &transaction, first, Fate::Committed).await?;
                }
                if swept {
                    let ended = databases.sweep().await?;
                    ensure!(ended == usize::from(steps == 1 || steps == 2), "{ended} swept");
                }
                // A prepared transaction that was not swept holds its locks, but the next try ends it first.
                let outcome = databases.run(&transaction, second, number).await?;
                let expected = if steps >= 2 { Outcome::Before } else { Outcome::Now };
                ensure!(outcome == expected, "{outcome:?}");
                let again = databases.run(&transaction, Uuid::new_v4(), number).await?;
                ensure!(again == Outcome::Before, "{again:?}");
                databases.expect(number + 1, number + 1).await
            };
            told.await
                .with_context(|| format!("after {steps} steps, swept: {swept}"))?;
        }
        Ok(())
    })
}

fn a_try_that_wakes_up_late_changes_nothing(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let databases = Databases::new(kit).await?;
        let (transaction, late) = (id(0)?, Uuid::new_v4());
        // It looked for a committed attempt, found none, and was suspended while another try ran from start to end.
        ensure!(databases.run(&transaction, Uuid::new_v4(), 0).await? == Outcome::Now);
        databases.prepare(&transaction, late).await?;
        let fate = databases.decide(&transaction, late, 1).await?;
        ensure!(fate == Fate::Aborted, "{fate:?}");
        two_phase::settle(&databases.loyalty, &transaction, late, fate).await?;
        databases.expect(1, 1).await
    })
}

/// One session finds the transaction, others find it busy or gone.
fn whoever_ends_one_transaction_at_once_with_others_passes(kit: &Kit) -> anyhow::Result<()> {
    const ROUNDS: i64 = 100;
    kit.block_on(async {
        let databases = Databases::new(kit).await?;
        for number in 0..ROUNDS {
            let (transaction, attempt) = (id(number)?, Uuid::new_v4());
            databases.prepare(&transaction, attempt).await?;
            let fate = databases.decide(&transaction, attempt, number).await?;
            let settle = || two_phase::settle(&databases.loyalty, &transaction, attempt, fate);
            tokio::try_join!(settle(), settle(), settle(), settle())?;
        }
        databases.expect(ROUNDS, ROUNDS).await
    })
}

fn a_slow_try_that_was_swept_changes_nothing_and_the_next_one_does(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let databases = Databases::new(kit).await?;
        let (transaction, slow) = (id(0)?, Uuid::new_v4());
        databases.prepare(&transaction, slow).await?;
        let young = two_phase::sweep(&databases.main, &databases.loyalty, Duration::from_secs(3_600)).await?;
        ensure!(young == 0, "a young attempt was swept");
        ensure!(databases.sweep().await? == 1);
        let fate = databases.decide(&transaction, slow, 0).await?;
        ensure!(fate == Fate::Aborted, "{fate:?}");
        two_phase::settle(&databases.loyalty, &transaction, slow, fate).await?;
        databases.expect(0, 0).await?;
        ensure!(databases.run(&transaction, Uuid::new_v4(), 0).await? == Outcome::Now);
        databases.expect(1, 1).await
    })
}

fn what_was_prepared_outlives_a_kill_and_is_settled_by_its_row(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let databases = Databases::new(kit).await?;
        for (number, decided) in [(0, false), (1, true)] {
            let (transaction, attempt) = (id(number)?, Uuid::new_v4());
            databases.prepare(&transaction, attempt).await?;
            if decided {
                databases.decide(&transaction, attempt, number).await?;
            }
            kit.stack.postgres.kill()?;
            kit.stack.postgres.start().await?;
            let (_, _, prepared) = databases.state().await?;
            ensure!(prepared == 1, "{prepared} prepared");
            ensure!(databases.sweep().await? == 1);
            databases.expect(i64::from(decided), i64::from(decided)).await?;
        }
        Ok(())
    })
}

fn the_other_database_may_be_away_at_any_step(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let databases = Databases::new(kit).await?;
        let (transaction, attempt) = (id(0)?, Uuid::new_v4());
        databases.open_loyalty(false).await?;
        let away = databases.run(&transaction, attempt, 0).await;
        ensure!(
            matches!(away, Err(Error::Statement { .. } | Error::Conflict(_))),
            "{away:?}"
        );
        databases.open_loyalty(true).await?;
        databases.expect(0, 0).await?;

        databases.prepare(&transaction, attempt).await?;
        databases.open_loyalty(false).await?;
        // The main database does not wait for the other one.
        ensure!(databases.decide(&transaction, attempt, 0).await? == Fate::Committed);
        let away = two_phase::settle(&databases.loyalty, &transaction, attempt, Fate::Committed).await;
        ensure!(matches!(away, Err(Error::Statement { .. })), "{away:?}");
        databases.open_loyalty(true).await?;
        ensure!(databases.run(&transaction, Uuid::new_v4(), 0).await? == Outcome::Before);
        databases.expect(1, 1).await?;

        // The next try ends what a failed decision left prepared.
        let (transaction, (main, loyalty)) = (id(1)?, (&databases.main, &databases.loyalty));
        let here = async |_: &mut PgConnection| {
            databases.open_loyalty(false).await.expect("the main database answers");
            Err(failed(sqlx::Error::RowNotFound))
        };
        let told = two_phase::run(main, loyalty, &transaction, Uuid::new_v4(), here, spend).await;
        ensure!(
            matches!(
                &told,
                Err(Error::Statement {
                    source: sqlx::Error::RowNotFound,
                    ..
                })
            ),
            "{told:?}"
        );
        databases.open_loyalty(true).await?;
        ensure!(databases.state().await? == (1, 1, 1));
        ensure!(databases.run(&transaction, Uuid::new_v4(), 1).await? == Outcome::Now);
        databases.expect(2, 2).await
    })
}

fn the_other_database_may_be_away_longer_than_every_timeout(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let mut databases = Databases::new(kit).await?;
        let address = kit.stack.postgres.address();
        let mut proxy = Proxy::start(address.clone()).await?;
        let url = kit.stack.postgres.url_of(DATABASE).replace(&address, &proxy.address());
        databases.loyalty = mechanisms::connect(url).await?;

        // Each call gives up by its own timeout, before and after the point at which the main database has decided.
        let (undecided, decided, attempt) = (id(0)?, id(1)?, Uuid::new_v4());
        databases.prepare(&decided, attempt).await?;
        proxy.refuse().await;
        ensure!(databases.decide(&decided, attempt, 1).await? == Fate::Committed);
        let run = async |transaction, number| databases.run(transaction, Uuid::new_v4(), number).await;
        let (first, second, swept) = tokio::join!(run(&undecided, 0), run(&decided, 1), databases.sweep());
        for away in [first.map(drop), second.map(drop), swept.map(drop)] {
            ensure!(timed_out(&away), "{away:?}");
        }

        proxy.admit().await?;
        ensure!(run(&decided, 1).await? == Outcome::Before);
        ensure!(run(&undecided, 0).await? == Outcome::Now);
        databases.expect(2, 2).await
    })
}

/// True if the pool waited in vain for a connection.
fn timed_out(result: &Result<(), Error>) -> bool {
    let Err(Error::Statement { source, .. }) = result else {
        return false;
    };
    matches!(source, sqlx::Error::PoolTimedOut)
}

fn a_closure_that_fails_leaves_nothing_in_either_database(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let databases = Databases::new(kit).await?;
        let (main, loyalty) = (&databases.main, &databases.loyalty);
        let fails = async |_: &mut PgConnection| Err(failed(sqlx::Error::RowNotFound));
        let there = two_phase::run(main, loyalty, &id(0)?, Uuid::new_v4(), async |_| Ok(()), fails).await;
        ensure!(
            matches!(there, Err(Error::Statement { .. } | Error::Conflict(_))),
            "{there:?}"
        );
        databases.expect(0, 0).await?;
        let here = two_phase::run(main, loyalty, &id(0)?, Uuid::new_v4(), fails, spend).await;
        ensure!(matches!(here, Err(Error::Statement { .. })), "{here:?}");
        databases.expect(0, 0).await
    })
}

fn a_decision_that_is_cut_off_leaves_nothing_prepared(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let databases = Databases::new(kit).await?;
        let address = kit.stack.postgres.address();
        let proxy = Proxy::start(address.clone()).await?;
        let by_proxy = Databases {
            main: mechanisms::connect(kit.stack.postgres.url().replace(&address, &proxy.address())).await?,
            loyalty: databases.loyalty.clone(),
        };
        let (decide, commit) = ("insert into two_phase_attempts", "COMMIT");
        let cuts = [
            (decide, Side::Before, Outcome::Now),
            (decide, Side::After, Outcome::Now),
            (commit, Side::Before, Outcome::Now),
            (commit, Side::After, Outcome::Before),
        ];
        for (number, (text, side, then)) in (0..).zip(cuts) {
            let transaction = id(number)?;
            proxy.stop_at(text, side);
            let cut = async {
                proxy.stopped().await;
                proxy.cut();
            };
            let told = async {
                let (told, ()) = tokio::join!(by_proxy.run(&transaction, Uuid::new_v4(), number), cut);
                ensure!(told.is_err(), "it was told {told:?}");
                let stand = number + i64::from(then == Outcome::Before);
                databases.expect(stand, stand).await?;
                let again = databases.run(&transaction, Uuid::new_v4(), number).await?;
                ensure!(again == then, "{again:?}");
                databases.expect(number + 1, number + 1).await
            };
            told.await.with_context(|| format!("{side:?} {text}"))?;
        }
        Ok(())
    })
}

fn a_value_that_one_database_forbids_changes_neither(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let databases = Databases::new(kit).await?;
        let (main, loyalty) = (&databases.main, &databases.loyalty);
        store::migrate(loyalty).await?;
        let too_long = mechanisms::user(&"k".repeat(256), 0);
        let forbidden = async |there: &mut PgConnection| insert::once(there, &too_long).await.map(drop);
        let here = async |here: &mut PgConnection| order(here, 0).await;
        let told = two_phase::run(main, loyalty, &id(0)?, Uuid::new_v4(), here, forbidden).await;
        ensure!(matches!(told, Err(Error::Forbidden { .. })), "{told:?}");
        databases.expect(0, 0).await?;

        // The other one has prepared by then: that is rolled back.
        let told = two_phase::run(main, loyalty, &id(1)?, Uuid::new_v4(), forbidden, spend).await;
        ensure!(matches!(told, Err(Error::Forbidden { .. })), "{told:?}");
        databases.expect(0, 0).await
    })
}

fn a_database_that_cannot_prepare_is_refused(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let databases = Databases::new(kit).await?;
        two_phase::check(&databases.loyalty).await?;
        let set = async |statement: &'static str| {
            sqlx::query(statement).execute(&databases.main).await?;
            kit.stack.postgres.stop().await?;
            kit.stack.postgres.start().await
        };
        set("alter system set max_prepared_transactions = 0").await?;
        let refused = two_phase::check(&databases.loyalty).await;
        set("alter system reset max_prepared_transactions").await?;
        ensure!(matches!(refused, Err(Error::CannotPrepare)), "{refused:?}");
        Ok(())
    })
}
