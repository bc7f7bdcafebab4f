//! `holdfast verify --watch`: it finds nothing while promises are kept, whatever dies, names each one that is broken, and needs no more
//! memory for more.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_schemas::topics;
use holdfast_tests::kit::kafka::send_with;
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Holdfast, Kit, until};
use holdfast_tests::load::{Arrival, Event, OUTCOMES, Pace, Producer, RESERVATIONS, follow};
use holdfast_tests::traffic::Traffic;
use tokio::time::timeout;

use crate::checkout::Shop;
use crate::gate_edges::endless;
use crate::verify::{corrupt, corruptions, money_corruptions, sell, sent};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    a_watch_finds_nothing_while_traffic_runs_and_everything_is_killed,
    the_memory_of_a_watch_does_not_grow_with_what_it_watches,
];

/// It leaves what it breaks.
pub(crate) const LAST: &[Test] = tests![a_watch_names_each_promise_that_is_broken_while_traffic_runs];

const PROMISES: [&str; 7] = [
    "lost",
    "doubled",
    "out_of_order",
    "oversold",
    "money_mismatch",
    "open_authorisations",
    "mail_missing",
];

/// Longer than the client library waits for a broker that was killed.
const WITHIN: Duration = Duration::from_secs(180);

/// Events of the first history; the second has four times as many.
const EVENTS: usize = 30_000;
const TICKETS: usize = 1_000;
/// So few that a pass needs many looks.
const FACTS: f64 = 50_000.0;

/// A watch that never rests.
fn watch(kit: &Kit) -> Launch<'_> {
    let watch = kit.stack.holdfast("verify", "watch").arg("--watch");
    watch
        .env("HOLDFAST_WATCH_EVERY", "300ms")
        .env("HOLDFAST_WATCH_SHARE", "100")
}

async fn metric(watch: &Holdfast, name: &str) -> anyhow::Result<f64> {
    let value = watch.metric(&format!("holdfast_verify_{name}")).await?;
    value.with_context(|| format!("no {name}"))
}

/// Waits until a pass has begun and ended.
async fn whole_pass(watch: &Holdfast) -> anyhow::Result<()> {
    let before = metric(watch, "passes_total").await?;
    passes(watch, before + 2.0).await
}

async fn passes(watch: &Holdfast, count: f64) -> anyhow::Result<()> {
    until("a whole pass", WITHIN, async || {
        let passes = metric(watch, "passes_total").await?;
        ensure!(passes >= count, "{passes} passes\n{}", watch.last_words());
        anyhow::Ok(())
    })
    .await
}

async fn broken(watch: &Holdfast) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    let mut broken = BTreeMap::new();
    for promise in PROMISES {
        let count = metric(watch, &format!("broken_promises{{promise=\"{promise}\"}}")).await?;
        broken.insert(promise, count);
    }
    Ok(broken)
}

async fn finds_nothing(watch: &Holdfast) -> anyhow::Result<()> {
    whole_pass(watch).await?;
    let broken = broken(watch).await?;
    ensure!(
        broken.values().all(|count| *count == 0.0),
        "{broken:?}\n{}",
        watch.last_words()
    );
    Ok(())
}

fn a_watch_finds_nothing_while_traffic_runs_and_everything_is_killed(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let start = async || kit.stack.holdfast("run", "worker").start().await;
        let mut worker = start().await?;
        let watch = watch(kit).start().await?;
        let mut traffic = Traffic::new(&kit.stack, "watched")?;
        traffic.during(finds_nothing(&watch)).await?;
        for _ in 0..3 {
            traffic.burst(100)?;
            worker.kill()?;
            worker = traffic.during(start()).await?;
            traffic.during(finds_nothing(&watch)).await?;
        }
        let (kafka, postgres) = (&kit.stack.kafka, &kit.stack.postgres);
        traffic
            .during(async {
                postgres.kill()?;
                postgres.start().await?;
                kafka.kill()?;
                kafka.start().await
            })
            .await?;
        traffic.during(finds_nothing(&watch)).await?;
        traffic.settled().await?;
        finds_nothing(&watch).await?;
        let looks = metric(&watch, "looks_total{at=\"new\"}").await?;
        ensure!(looks > 10.0, "{looks} looks at what was new");
        watch.stop().await?;
        worker.stop().await
    })
}

fn a_watch_names_each_promise_that_is_broken_while_traffic_runs(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let tickets: Vec<_> = (0..corruptions("").len())
            .map(|number| format!("watch-{number}"))
            .collect();
        sell(kit, &tickets).await?;
        let shop = Shop::open(kit, "watch/money").await?;
        let bought = shop.tickets(1).await?;
        shop.buys("order", &bought[0], 500).await?;
        let order = shop.id("order");
        let watch = watch(kit).start().await?;
        whole_pass(&watch).await?;
        let before = broken(&watch).await?;

        let mut traffic = Traffic::new(&kit.stack, "watch-broken")?;
        let planted = traffic
            .during(async {
                let told_again = watch_told_again(kit).await?;
                let pool = kit.stack.postgres.connect().await?;
                let mut planted = vec![("an outcome told again", "doubled", vec![told_again])];
                for (number, ticket) in tickets.iter().enumerate() {
                    let (what, promise, statements) = corruptions(ticket).swap_remove(number);
                    corrupt(&pool, &statements).await.with_context(|| what.to_owned())?;
                    planted.push((what, promise, vec![ticket.clone()]));
                }
                let too_little = money_corruptions(&order).into_iter();
                let mut too_little = too_little.filter(|(what, _)| *what == "a line lost");
                let (what, statements) = too_little.next().context("no such corruption")?;
                let movements = "select distinct movement::text from ledger where checkout = $1";
                let mut keys: Vec<String> = sqlx::query_scalar(movements).bind(&order).fetch_all(&pool).await?;
                keys.push(order.clone());
                corrupt(&pool, &statements).await.with_context(|| what.to_owned())?;
                planted.push((what, "money_mismatch", keys));
                pool.close().await;
                until("everything is named", WITHIN, async || {
                    let log = fs::read_to_string(watch.log())?;
                    let unnamed: Vec<_> = planted
                        .iter()
                        .filter(|(_, promise, keys)| !keys.iter().any(|key| is_named(&log, promise, key)))
                        .collect();
                    ensure!(unnamed.is_empty(), "{unnamed:?}");
                    anyhow::Ok(())
                })
                .await?;
                Ok(planted)
            })
            .await?;
        let mut expected = before.clone();
        for (_, promise, _) in &planted {
            *expected.entry(promise).or_default() += 1.0;
        }
        traffic
            .during(async {
                until("everything is counted", WITHIN, async || {
                    let now = broken(&watch).await?;
                    let is_counted = expected.iter().all(|(promise, count)| now[promise] >= *count);
                    ensure!(is_counted, "{now:?}, not {expected:?}");
                    anyhow::Ok(())
                })
                .await
            })
            .await?;
        traffic.answered().await?;
        ensure!(watch.runs() && watch.readyz().await?.0 == 200, "{}", watch.last_words());
        let log = fs::read_to_string(watch.log())?;
        let wolf = log
            .lines()
            .find(|line| line.contains("a promise is broken") && line.contains("key=\"watch-broken"));
        ensure!(wolf.is_none(), "{wolf:?}");
        watch.stop().await?;
        shop.worker.stop().await
    })
}

/// A seat's outcomes, the last of which is told a second time.
async fn watch_told_again(kit: &Kit) -> anyhow::Result<String> {
    let ticket = "watch-again".to_owned();
    let event = Event::listed(format!("{ticket}-list"), &ticket, "A");
    let mut heard = follow(&kit.stack.kafka, OUTCOMES)?;
    let mut producer = Producer::new(&kit.stack.kafka, RESERVATIONS)?;
    producer.send(&event.record())?;
    producer.flush().await?;
    let told = timeout(WITHIN, async {
        loop {
            let arrival = heard.recv().await.context("nobody reads the outcomes any more")??;
            if arrival.record.key.as_deref() == Some(ticket.as_bytes()) {
                return anyhow::Ok(arrival.record.value);
            }
        }
    });
    let outcome = told.await.context("it is not listed")??.context("no outcome")?;
    let again = sent(&ticket, outcome);
    kit.stack.kafka.send(topics::RESERVATIONS_OUTCOMES, &[again]).await?;
    Ok(ticket)
}

/// True if the log says that the promise is broken with this key.
fn is_named(log: &str, promise: &str, key: &str) -> bool {
    let (promise, key) = (
        format!("promise={}", promise.replace('_', " ")),
        format!("key=\"{key}\""),
    );
    log.lines()
        .any(|line| line.contains("a promise is broken") && line.contains(&promise) && line.contains(&key))
}

fn the_memory_of_a_watch_does_not_grow_with_what_it_watches(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "worker").start().await?;
        // Its dead letter has no key, and accounts for it in another half of the keys than the empty key is in.
        let producer = kit.stack.kafka.producer("zstd")?;
        send_with(&producer, topics::PAYMENTS, &[endless("watch-endless-0")]).await?;
        history(kit, 0..EVENTS).await?;
        let (facts, memory) = needed(kit).await?;
        history(kit, EVENTS..4 * EVENTS).await?;
        let (more_facts, more_memory) = needed(kit).await?;
        println!("{facts} facts in {memory} kB; of four times as much {more_facts} in {more_memory} kB");
        // Tickets, users and ledger, each as many as it may be; the last one is counted before the look is given up.
        let most = 3.0 * (FACTS + 1.0);
        ensure!(facts <= most && more_facts <= most, "{facts}, {more_facts} facts");
        // To hold it all would take some 40 MB more.
        ensure!(more_memory < memory + 20_000, "{memory} kB, then {more_memory} kB");
        worker.stop().await
    })
}

/// Requests for tickets in turn, of which all but the first are refused, through the whole path.
async fn history(kit: &Kit, numbers: std::ops::Range<usize>) -> anyhow::Result<()> {
    let mut heard = follow(&kit.stack.kafka, OUTCOMES)?;
    let all = numbers.end;
    let events = numbers.map(|number| {
        let ticket = format!("watch-history-{}", number % TICKETS);
        match number / TICKETS {
            0 => Event::listed(format!("watch-history-{number}"), &ticket, "A"),
            _ => Event::requested(format!("watch-history-{number}"), &ticket, "ann"),
        }
    });
    let mut producer = Producer::new(&kit.stack.kafka, RESERVATIONS)?;
    producer.send_all(events, Pace::FullSpeed).await?;
    let mut told = 0;
    while told < all {
        let arrival = timeout(WITHIN, heard.recv()).await;
        let arrival = arrival.with_context(|| format!("{told} of {all} outcomes"))?;
        let Arrival { record, .. } = arrival.context("nobody reads the outcomes any more")??;
        told += usize::from(record.key.is_some_and(|key| key.starts_with(b"watch-history-")));
    }
    Ok(())
}

/// The most facts that a new watch holds in a whole pass, and the most memory that it takes, in kB.
async fn needed(kit: &Kit) -> anyhow::Result<(f64, u64)> {
    let watch = watch(kit).env("HOLDFAST_WATCH_FACTS", &FACTS.to_string());
    let watch = watch.start().await?;
    passes(&watch, 1.0).await?;
    let broken = broken(&watch).await?;
    ensure!(broken.values().all(|count| *count == 0.0), "{broken:?}");
    let facts = metric(&watch, "most_facts").await?;
    let status = fs::read_to_string(format!("/proc/{}/status", watch.pid()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak
        .and_then(|line| line.split_whitespace().next())
        .context("no VmHWM")?;
    let peak = peak.parse()?;
    watch.stop().await?;
    Ok((facts, peak))
}
