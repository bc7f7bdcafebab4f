//! Every way to commit, under every fault: whether its effect stands then, and what its repeat does. [`PAGES`] holds the promises
//! of the tools' pages; the faults are those of a real Postgres, met at a known moment.
//!
//! A cut at COMMIT is missing for the ways of one statement: the database commits those by itself.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast::store::examples::{KEYS, User};
use holdfast::store::mechanisms::idempotency::DAY;
use holdfast::store::mechanisms::interactive::{Attempts, Transaction, transact};
use holdfast::store::mechanisms::two_phase::{self, TransactionId};
use holdfast::store::mechanisms::{Error, batch, compare_and_set, expression, insert, read, update, version};
use holdfast::store::{self, PgPool};
use holdfast_tests::kit::proxy::{Proxy, Side};
use holdfast_tests::kit::{Kit, until};
use sqlx::{PgConnection, PgTransaction};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::mechanisms::{blocked, connect, connect_for, none_open, user};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_cut_connection_leaves_nothing_or_one_effect_and_the_repeat_what_its_page_says,
    an_aborted_task_leaves_nothing_or_one_effect_and_the_repeat_what_its_page_says,
    a_killed_database_leaves_nothing_and_the_repeat_one_effect,
    a_connection_that_dies_without_a_word_ends_every_way_with_a_pool_in_time,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Set,
    Add,
    Insert,
    Versioned,
    CompareAndSet,
    Key,
    Expression,
    Batched,
    Interactive,
    TwoPhase,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The connection is cut on this side of the request that holds this text.
    Cut(Side, &'static str),
    /// It ends so while its statement waits for a lock in this database.
    Waiting(Database, End),
}

#[derive(Clone, Copy, Debug)]
enum Database {
    Main,
    /// Of two-phase commit alone.
    Other,
}

#[derive(Clone, Copy, Debug)]
enum End {
    /// The connection is cut.
    Cut,
    /// The calling task is aborted.
    Aborted,
    /// The database is killed.
    Killed,
}

/// The effect of a repeat after a first call that took effect.
#[derive(Clone, Copy)]
enum Repeat {
    /// Nothing.
    Once,
    /// Writes the same values once more.
    Overwrites,
    /// Adds or appends again.
    Again,
}

/// The promise of a page: the repeat's answer where the first call had no effect and where it had, the repeat's effect in the
/// second case, and which of the two cases each fault leaves behind.
struct Page(Way, [&'static str; 2], Repeat, &'static [(Fault, usize)]);

const PAGES: &[Page] = &[
    Page(Way::Set, ["Updated", "Updated"], Repeat::Overwrites, AT_ONCE),
    Page(Way::Add, ["Updated", "Updated"], Repeat::Again, AT_ONCE),
    Page(Way::Insert, ["Inserted", "Inserted"], Repeat::Once, AT_ONCE),
    Page(
        Way::Versioned,
        ["Applied { version: 1 }", "AlreadyMine { version: 1 }"],
        Repeat::Once,
        AT_ONCE,
    ),
    Page(Way::CompareAndSet, ["Swapped", "Differs"], Repeat::Once, AT_ONCE),
    Page(Way::Expression, ["3 rows", "3 rows"], Repeat::Again, AT_ONCE),
    Page(Way::Batched, ["Updated", "Updated"], Repeat::Again, AT_ONCE),
    Page(Way::Key, ["Fresh(5)", "Repeat(5)"], Repeat::Once, AT_COMMIT),
    Page(Way::Interactive, ["true", "false"], Repeat::Once, AT_COMMIT),
    Page(Way::TwoPhase, ["Now", "Before"], Repeat::Once, IN_TWO_PHASES),
];

/// Every tool sends the values of its change this way.
const STATEMENT: &str = "jsonb_populate_record";
const COMMIT: &str = "COMMIT";
const PREPARE: &str = "prepare transaction";
const DECIDE: &str = "insert into two_phase_attempts";
const SETTLE: &str = "commit prepared";

/// One statement that commits by itself.
const AT_ONCE: &[(Fault, usize)] = &[
    (Fault::Cut(Side::Before, STATEMENT), 0),
    (Fault::Cut(Side::After, STATEMENT), 1),
    (Fault::Waiting(Database::Main, End::Cut), 1),
    (Fault::Waiting(Database::Main, End::Aborted), 1),
    (Fault::Waiting(Database::Main, End::Killed), 0),
];

const AT_COMMIT: &[(Fault, usize)] = &[
    (Fault::Cut(Side::Before, STATEMENT), 0),
    (Fault::Cut(Side::After, STATEMENT), 0),
    (Fault::Cut(Side::Before, COMMIT), 0),
    (Fault::Cut(Side::After, COMMIT), 1),
    (Fault::Waiting(Database::Main, End::Cut), 0),
    (Fault::Waiting(Database::Main, End::Aborted), 0),
    (Fault::Waiting(Database::Main, End::Killed), 0),
];

/// Once the sweeper has been there.
const IN_TWO_PHASES: &[(Fault, usize)] = &[
    (Fault::Cut(Side::Before, STATEMENT), 0),
    (Fault::Cut(Side::After, STATEMENT), 0),
    (Fault::Cut(Side::Before, PREPARE), 0),
    (Fault::Cut(Side::After, PREPARE), 0),
    (Fault::Cut(Side::Before, DECIDE), 0),
    (Fault::Cut(Side::After, DECIDE), 0),
    (Fault::Cut(Side::Before, COMMIT), 0),
    (Fault::Cut(Side::After, COMMIT), 1),
    (Fault::Cut(Side::Before, SETTLE), 1),
    (Fault::Cut(Side::After, SETTLE), 1),
    (Fault::Waiting(Database::Other, End::Cut), 0),
    (Fault::Waiting(Database::Other, End::Aborted), 0),
    (Fault::Waiting(Database::Other, End::Killed), 0),
    (Fault::Waiting(Database::Main, End::Cut), 0),
    (Fault::Waiting(Database::Main, End::Aborted), 0),
    (Fault::Waiting(Database::Main, End::Killed), 0),
];

impl Way {
    /// The call, and what it answers. Every repeat is this call once more.
    async fn call(self, Databases { main, other }: Databases, key: String) -> anyhow::Result<String> {
        let add = User::CREDITS.add(5);
        let add_to = async |there: &mut PgConnection| update::apply(there, &key, &add).await.map(drop);
        Ok(match self {
            Way::Set => said(update::apply(&main, &key, &User::NAME.set("New")).await?),
            Way::Add => said(update::apply(&main, &key, &add).await?),
            Way::Insert => said(insert::once(&main, &user(&key, 0)).await?),
            Way::Versioned => said(version::update(&mut *main.acquire().await?, &key, 0, "mine", &add).await?),
            Way::CompareAndSet => {
                let mut connection = main.acquire().await?;
                said(
                    compare_and_set::explicit(&mut connection, &key, &User::CREDITS.is(0), &User::CREDITS.set(5))
                        .await?,
                )
            }
            Way::Expression => {
                let changed = expression::apply_to_all(&main, &self.keys(&key), &User::TAGS.append("bonus")).await?;
                format!("{} rows", changed.len())
            }
            Way::Batched => {
                let (changes, changing) = batch::changes::<User>(main);
                tokio::spawn(changing);
                said(changes.ask((key, add)).await?)
            }
            Way::Key => {
                let work = async |transaction: &mut PgConnection| add_to(transaction).await.map(|()| 5);
                said(
                    KEYS.once::<i64, Error>(&mut *main.acquire().await?, &key, &(), DAY, work)
                        .await?,
                )
            }
            Way::Interactive => {
                let paid = async |transaction: &mut Transaction| pay_once(transaction, &key).await;
                said(transact(&main, Attempts(1), paid).await?.value)
            }
            Way::TwoPhase => {
                let transaction = TransactionId::parse(&key)?;
                said(two_phase::run(&main, &other, &transaction, Uuid::new_v4(), add_to, add_to).await?)
            }
        })
    }

    /// The rows after so many effects, in each database that it writes to. Their versions count the writes.
    fn rows(self, key: &str, effects: usize) -> Vec<User> {
        let times = effects as i64;
        let after = |key: &String| {
            let row = User {
                version: times,
                ..user(key, 0)
            };
            match self {
                Way::Set if effects > 0 => User {
                    name: "New".to_owned(),
                    ..row
                },
                Way::Set => row,
                Way::Insert => User { version: 0, ..row },
                Way::Expression => User {
                    tags: vec!["bonus".to_owned(); effects],
                    ..row
                },
                Way::Interactive => User {
                    credits: 5 * times,
                    tags: vec!["paid".to_owned(); effects],
                    ..row
                },
                _ => User {
                    credits: 5 * times,
                    ..row
                },
            }
        };
        match self {
            Way::Insert if effects == 0 => Vec::new(),
            _ => self.keys(key).iter().map(after).collect(),
        }
    }

    fn keys(self, key: &str) -> Vec<String> {
        match self {
            Way::Expression => ["", "-2", "-3"].map(|end| format!("{key}{end}")).to_vec(),
            _ => vec![key.to_owned()],
        }
    }
}

fn said(answer: impl Debug) -> String {
    format!("{answer:?}")
}

/// The tag in the row says that it is done, which makes the transaction safe to repeat.
async fn pay_once(transaction: &mut Transaction, key: &String) -> Result<bool, Error> {
    let row = transaction.get::<User>(key).await?;
    let Some(mut row) = row.filter(|row| row.tags.is_empty()) else {
        return Ok(false);
    };
    row.credits += 5;
    row.tags.push("paid".to_owned());
    transaction.put(&row).await?;
    Ok(true)
}

fn a_cut_connection_leaves_nothing_or_one_effect_and_the_repeat_what_its_page_says(kit: &Kit) -> anyhow::Result<()> {
    let cut = |fault: &Fault| matches!(fault, Fault::Cut(..) | Fault::Waiting(_, End::Cut));
    kit.block_on(every_way(kit, cut))
}

fn an_aborted_task_leaves_nothing_or_one_effect_and_the_repeat_what_its_page_says(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(every_way(kit, |fault| matches!(fault, Fault::Waiting(_, End::Aborted))))
}

fn a_killed_database_leaves_nothing_and_the_repeat_one_effect(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(every_way(kit, |fault| matches!(fault, Fault::Waiting(_, End::Killed))))
}

/// Ways that are given a connection leave the patience to whoever has it.
fn a_connection_that_dies_without_a_word_ends_every_way_with_a_pool_in_time(kit: &Kit) -> anyhow::Result<()> {
    const WAYS: [(Way, &str); 3] = [
        (Way::Batched, STATEMENT),
        (Way::Interactive, COMMIT),
        (Way::TwoPhase, PREPARE),
    ];
    kit.block_on(async {
        for name in [MAIN, OTHER] {
            let pool = kit.stack.postgres.copy_database("template1", name).await?;
            store::migrate(&pool).await?;
            pool.close().await;
        }
        let databases = Databases::at(kit, &kit.stack.postgres.address()).await?;
        let ended = WAYS.map(async |(way, text)| {
            let key = format!("{way:?}-silent");
            for pool in [&databases.main, &databases.other] {
                insert::once(pool, &user(&key, 0)).await?;
            }
            let proxy = Proxy::start(kit.stack.postgres.address()).await?;
            let postgres = &kit.stack.postgres;
            let pool = async |name| {
                let url = postgres.url_of(name).replace(&postgres.address(), &proxy.address());
                connect_for(url, Duration::from_secs(1)).await
            };
            let there = Databases {
                main: pool(MAIN).await?,
                other: pool(OTHER).await?,
            };
            proxy.stop_at(text, Side::Before);
            let call = tokio::spawn(way.call(there.clone(), key.clone()));
            proxy.stopped().await;
            proxy.swallow();
            let ended = tokio::time::timeout(Duration::from_secs(20), call).await;
            let ended = ended.with_context(|| format!("{way:?} waits for ever"))??;
            ensure!(ended.is_err(), "{way:?} answered {ended:?}");
            // The same pools go on, once the server has ended the transaction whose client is lost.
            let goes_on = format!("{way:?} to go on");
            until(&goes_on, Duration::from_secs(20), async || {
                two_phase::sweep(&there.main, &there.other, Duration::ZERO).await?;
                way.call(there.clone(), key.clone()).await
            })
            .await
            .map(drop)
        });
        futures::future::try_join_all(ended).await.map(drop)
    })
}

async fn every_way(kit: &Kit, chosen: fn(&Fault) -> bool) -> anyhow::Result<()> {
    for name in [MAIN, OTHER] {
        let pool = kit.stack.postgres.copy_database("template1", name).await?;
        store::migrate(&pool).await?;
        pool.close().await;
    }
    let databases = Databases::at(kit, &kit.stack.postgres.address()).await?;
    for page @ Page(way, _, _, faults) in PAGES {
        for (number, (fault, stands)) in faults.iter().enumerate().filter(|(_, (fault, _))| chosen(fault)) {
            let case = Case {
                kit,
                databases: &databases,
                page,
                key: format!("{way:?}-{number}"),
            };
            let kept = case.keeps_its_promise(*fault, *stands).await;
            kept.with_context(|| format!("{way:?}, {fault:?}"))?;
        }
    }
    Ok(())
}

const MAIN: &str = "faults";
const OTHER: &str = "faults-other";

/// Both have the product's tables.
#[derive(Clone)]
struct Databases {
    main: PgPool,
    other: PgPool,
}

impl Databases {
    /// By the server's own address, or by a proxy's.
    async fn at(kit: &Kit, address: &str) -> anyhow::Result<Self> {
        let postgres = &kit.stack.postgres;
        let pool = async |name| connect(postgres.url_of(name).replace(&postgres.address(), address)).await;
        Ok(Self {
            main: pool(MAIN).await?,
            other: pool(OTHER).await?,
        })
    }

    fn of(&self, place: Database) -> &PgPool {
        match place {
            Database::Main => &self.main,
            Database::Other => &self.other,
        }
    }
}

/// One way under one fault, with rows of its own.
struct Case<'a> {
    kit: &'a Kit,
    /// By a way that is never cut.
    databases: &'a Databases,
    page: &'a Page,
    key: String,
}

impl Case<'_> {
    async fn keeps_its_promise(&self, fault: Fault, stands: usize) -> anyhow::Result<()> {
        let Page(way, answers, repeat, _) = self.page;
        let Databases { main, other } = self.databases;
        for row in way.rows(&self.key, 0) {
            insert::once(main, &row).await?;
            if *way == Way::TwoPhase {
                insert::once(other, &row).await?;
            }
        }
        let proxy = Proxy::start(self.kit.stack.postgres.address()).await?;
        let caller = Databases::at(self.kit, &proxy.address()).await?;
        match fault {
            Fault::Cut(side, text) => self.cut(&caller, &proxy, side, text).await?,
            Fault::Waiting(place, end) => self.end_while_it_waits(&caller, &proxy, place, end).await?,
        }
        self.expect(stands).await.context("after the fault")?;

        let answer = way.call(caller, self.key.clone()).await.context("the repeat")?;
        ensure!(answer == answers[stands], "the repeat answers {answer}");
        let effects = match repeat {
            Repeat::Once => 1,
            Repeat::Overwrites | Repeat::Again => stands + 1,
        };
        self.expect(effects).await.context("after the repeat")
    }

    fn call(&self, caller: &Databases) -> JoinHandle<anyhow::Result<String>> {
        tokio::spawn(self.page.0.call(caller.clone(), self.key.clone()))
    }

    async fn cut(&self, caller: &Databases, proxy: &Proxy, side: Side, text: &str) -> anyhow::Result<()> {
        proxy.stop_at(text, side);
        let mut call = self.call(caller);
        tokio::select! {
            () = proxy.stopped() => proxy.cut(),
            ended = &mut call => bail!("it ended before the fault: {:?}", ended?),
        }
        let told = call.await?;
        ensure!(told.is_err(), "it was told {told:?}");
        Ok(())
    }

    async fn end_while_it_waits(
        &self,
        caller: &Databases,
        proxy: &Proxy,
        place: Database,
        end: End,
    ) -> anyhow::Result<()> {
        let (pool, postgres) = (self.databases.of(place), &self.kit.stack.postgres);
        let lock = self.lock(pool).await?;
        let call = self.call(caller);
        blocked(pool).await?;
        match end {
            End::Cut => proxy.cut(),
            End::Aborted => call.abort(),
            End::Killed => postgres.kill()?,
        }
        match call.await {
            Ok(told) => ensure!(told.is_err(), "it was told {told:?}"),
            Err(error) => ensure!(error.is_cancelled(), "{error}"),
        }
        if let End::Killed = end {
            drop(lock);
            return postgres.start().await;
        }
        Ok(lock.rollback().await?)
    }

    /// A session that holds the row; or has inserted it, where there was none.
    async fn lock(&self, pool: &PgPool) -> anyhow::Result<PgTransaction<'static>> {
        let mut lock = pool.begin().await?;
        insert::once_by(&mut *lock, &user(&self.key, 0), "theirs").await?;
        Ok(lock)
    }

    /// So many effects stand once nothing is under way any more, and nothing prepared is left.
    async fn expect(&self, effects: usize) -> anyhow::Result<()> {
        let Databases { main, other } = self.databases;
        none_open(main).await?;
        none_open(other).await?;
        two_phase::sweep(main, other, Duration::ZERO).await?;
        let way = self.page.0;
        let rows = way.rows(&self.key, effects);
        let elsewhere = if way == Way::TwoPhase { rows.clone() } else { Vec::new() };
        for (pool, rows) in [(main, rows), (other, elsewhere)] {
            let mut found: Vec<_> = read::many::<User>(pool, &way.keys(&self.key))
                .await?
                .into_values()
                .collect();
            found.sort_by(|one, two| one.user_id.cmp(&two.user_id));
            ensure!(found == rows, "not {effects} effects: {found:?}");
        }
        Ok(())
    }
}
