//! Measures checkouts: each is requested through Kafka, by a user of its own for tickets that the user holds, and paid at a
//! provider without faults or pauses; the clock stops at `checkout.completed`. As many bare reservation events, those that held
//! the tickets, are measured in the same way just before.

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast_tests::kit::{Holdfast, until};
use holdfast_tests::load::{Event, Outcome, PAYMENTS, Pace, Producer, RESERVATIONS, percentile};
use nix::unistd::Pid;
use serde_json::json;
use tokio::time::Instant;
use tracing::info;

use super::{Apart, Bench, ROUNDS, Used, median, microseconds_each, rounded};

/// Prefix of the keys of the figures, tickets in each checkout, and checkouts.
pub(super) const SIZES: [(&str, usize, usize); 2] = [("checkout", 1, 500), ("checkout4", 4, 250)];
/// Checkouts per second in the measurement of latency.
const MODEST_PACE: u32 = 50;
/// Checkouts whose statements are counted.
const COUNTED: usize = 100;
/// How long a setting may take to reach the sessions.
const PATIENCE: Duration = Duration::from_secs(10);
const CARD: &str = "pm_card_visa";

/// Users who each buy some tickets.
pub(super) struct Purchases {
    /// Begins every id, user and ticket, so that no two share any.
    name: String,
    pub(super) checkouts: usize,
    /// Tickets in each checkout.
    tickets: usize,
}

impl Bench {
    /// Measures throughput, and the latency of a single checkout.
    pub(super) async fn checkouts(&mut self, run: &Holdfast) -> anyhow::Result<()> {
        for (key, tickets, checkouts) in SIZES {
            let (mut bare, mut bought) = (Vec::new(), Vec::new());
            for round in 1..=ROUNDS {
                let purchases = Purchases::new(format!("{key}-{round}"), self.scaled(checkouts), tickets);
                self.prepare(&purchases).await?;
                let (took, _) = self.hold(&purchases, run, &[]).await?;
                bare.push(purchases.all_tickets() as f64 / took.as_secs_f64());
                let (took, _) = self.buy(&purchases, run, &[]).await?;
                bought.push(purchases.checkouts as f64 / took.as_secs_f64());
            }
            let rounds = json!({ "bare": rounded(&bare), "checkouts": rounded(&bought) });
            self.report.detail(&format!("{key}_rounds_eps"), rounds);
            let (bare, bought) = (median(bare), median(bought));
            self.report.figure(&format!("{key}_bare_eps"), bare, "events/s");
            self.report.figure(&format!("{key}_eps"), bought, "checkouts/s");
            let ratio = bought * tickets as f64 / bare;
            self.report
                .figure(&format!("{key}_ratio"), ratio, "tickets bought / held");
        }
        let statements = self.checkout_statements(run).await?;
        self.report.figure("checkout_statements", statements, "a checkout");
        let purchases = Purchases::new("checkout-paced", self.scaled(1_000), 1);
        let mut latencies = self.checkout_latencies(&purchases, run).await?;
        for (key, percent) in [("checkout_p50_ms", 50.0), ("checkout_p99_ms", 99.0)] {
            let latency = percentile(&mut latencies, percent).as_secs_f64() * 1_000.0;
            self.report.figure(key, latency, "ms");
        }
        Ok(())
    }

    /// The statements that PostgreSQL is sent for a checkout of one ticket, BEGIN and COMMIT included, as its log has them.
    async fn checkout_statements(&mut self, run: &Holdfast) -> anyhow::Result<f64> {
        let purchases = Purchases::new("checkout-statements", COUNTED, 1);
        self.prepare(&purchases).await?;
        self.hold(&purchases, run, &[]).await?;
        let log = self.stack.postgres.log();
        self.log_statements("alter system set log_statement = 'all'").await?;
        let before = fs::read_to_string(&log)?.len();
        self.buy(&purchases, run, &[]).await?;
        let sent = fs::read_to_string(&log)?.split_off(before);
        self.log_statements("alter system reset log_statement").await?;
        let is_sent = |line: &&str| line.contains("LOG:  execute ") || line.contains("LOG:  statement: ");
        Ok(sent.lines().filter(is_sent).count() as f64 / COUNTED as f64)
    }

    async fn log_statements(&self, setting: &'static str) -> anyhow::Result<()> {
        let pool = self.stack.postgres.connect().await?;
        for statement in [setting, "select pg_reload_conf()"] {
            sqlx::query(statement).execute(&pool).await?;
        }
        let wanted = if setting.contains("reset") { "none" } else { "all" };
        until("the setting has taken hold", PATIENCE, async || {
            let is: String = sqlx::query_scalar("show log_statement").fetch_one(&pool).await?;
            ensure!(is == wanted, "log_statement is {is}");
            Ok(())
        })
        .await?;
        pool.close().await;
        Ok(())
    }

    /// CPU time per checkout, and per event that holds a ticket, of every process on the way.
    pub(super) async fn checkout_cpu(&mut self) -> anyhow::Result<()> {
        let apart = Apart::start(&self.stack, &self.provider).await?;
        let watch = apart.watch(&self.stack)?;
        let mut used = serde_json::Map::new();
        for (key, tickets, checkouts) in SIZES {
            let purchases = Purchases::new(format!("{key}-cpu"), self.scaled(checkouts), tickets);
            self.prepare(&purchases).await?;
            let (_, bare) = self.hold(&purchases, &apart.gate, &watch).await?;
            let (_, bought) = self.buy(&purchases, &apart.gate, &watch).await?;
            used.insert(format!("{key}_bare"), microseconds_each(bare, purchases.all_tickets()));
            used.insert(key.to_owned(), microseconds_each(bought, purchases.checkouts));
        }
        self.report.detail("checkout_cpu_us", used.into());
        apart.stop().await
    }

    /// Lists the tickets and registers the users, before any clock starts.
    pub(super) async fn prepare(&mut self, purchases: &Purchases) -> anyhow::Result<()> {
        let (name, users) = (&purchases.name, purchases.checkouts);
        info!(
            "{name}: listing {} tickets, registering {users} users",
            purchases.all_tickets()
        );
        let mut producer = Producer::new(&self.stack.kafka, RESERVATIONS)?;
        producer.send_all(purchases.listings(), Pace::FullSpeed).await?;
        self.hear(purchases.all_tickets()).await?;
        let mut producer = Producer::new(&self.stack.kafka, PAYMENTS)?;
        producer.send_all(purchases.registrations(), Pace::FullSpeed).await?;
        self.users()?.hear(users).await.map(drop)
    }

    /// Has the users hold their tickets.
    pub(super) async fn hold(
        &mut self,
        purchases: &Purchases,
        gate: &Holdfast,
        watch: &[(&'static str, Pid)],
    ) -> anyhow::Result<(Duration, Used)> {
        info!(
            "{}: {} bare reservation events",
            purchases.name,
            purchases.all_tickets()
        );
        let heard = async |bench: &mut Bench| bench.hear(purchases.all_tickets()).await;
        self.let_go(RESERVATIONS, purchases.holds(), gate, watch, heard).await
    }

    /// Has the users buy them.
    pub(super) async fn buy(
        &mut self,
        purchases: &Purchases,
        gate: &Holdfast,
        watch: &[(&'static str, Pid)],
    ) -> anyhow::Result<(Duration, Used)> {
        let Purchases {
            name,
            checkouts,
            tickets,
        } = purchases;
        info!("{name}: {checkouts} checkouts of {tickets}");
        let heard = async |bench: &mut Bench| bench.hear_completed(purchases, |_, _| Ok(())).await;
        self.let_go(PAYMENTS, purchases.requests(), gate, watch, heard).await
    }

    /// From producing each request to the outcome that says that the checkout is completed.
    async fn checkout_latencies(&mut self, purchases: &Purchases, run: &Holdfast) -> anyhow::Result<Vec<Duration>> {
        self.prepare(purchases).await?;
        self.hold(purchases, run, &[]).await?;
        info!("{}: {MODEST_PACE} checkouts per second", purchases.name);
        let mut producer = Producer::new(&self.stack.kafka, PAYMENTS)?;
        let mut heard = Vec::with_capacity(purchases.checkouts);
        let (sent, _) = tokio::try_join!(
            producer.send_all(purchases.requests(), Pace::PerSecond(MODEST_PACE)),
            self.hear_completed(purchases, |checkout, at| {
                heard.push((purchases.number_of(checkout)?, at));
                Ok(())
            })
        )?;
        let latency = |(number, at): &(usize, Instant)| {
            let sent = sent
                .get(*number)
                .context("an outcome of a checkout that nobody asked for")?;
            Ok(at.saturating_duration_since(*sent))
        };
        heard.iter().map(latency).collect()
    }

    /// Waits for the outcomes that every checkout is completed and every ticket sold; returns when the last completion arrived.
    async fn hear_completed(
        &mut self,
        purchases: &Purchases,
        mut each: impl FnMut(&str, Instant) -> anyhow::Result<()>,
    ) -> anyhow::Result<Instant> {
        let mut last = None;
        // Each is opened, then completed.
        let told = 2 * purchases.checkouts;
        let heard = self.users()?.hear_each(told, |arrival| {
            let outcome = Outcome::read(&arrival.record)?;
            match (outcome.verb(), &outcome.data.checkout) {
                ("opened", _) => Ok(()),
                ("completed", Some(checkout)) => {
                    last = Some(arrival.at);
                    each(checkout, arrival.at)
                }
                (verb, _) => bail!("{}: {verb}, {:?}", outcome.subject, outcome.data.reason),
            }
        });
        heard.await?;
        self.hear(purchases.all_tickets()).await?;
        last.context("no checkout was completed")
    }
}

impl Purchases {
    pub(super) fn new(name: impl Into<String>, checkouts: usize, tickets: usize) -> Purchases {
        Purchases {
            name: name.into(),
            checkouts,
            tickets,
        }
    }

    fn all_tickets(&self) -> usize {
        self.checkouts * self.tickets
    }

    fn listings(&self) -> impl Iterator<Item = Event> {
        self.seats()
            .map(|(_, ticket)| Event::listed(format!("{ticket}-list"), &ticket, "any"))
    }

    fn registrations(&self) -> impl Iterator<Item = Event> {
        let users = (0..self.checkouts).map(|number| self.user(number));
        users.map(|user| Event::registered(format!("{user}-register"), &user))
    }

    fn holds(&self) -> impl Iterator<Item = Event> {
        self.seats()
            .map(|(user, ticket)| Event::requested(format!("{ticket}-hold"), &ticket, &user))
    }

    fn requests(&self) -> impl Iterator<Item = Event> {
        (0..self.checkouts).map(|number| {
            let tickets: Vec<_> = self.tickets_of(number).collect();
            let data = json!({ "checkout": self.id(number), "tickets": tickets, "payment_method": CARD });
            Event::checkout_requested(self.id(number), &self.user(number), data)
        })
    }

    /// Each ticket with the user who buys it.
    fn seats(&self) -> impl Iterator<Item = (String, String)> {
        (0..self.checkouts)
            .flat_map(move |number| self.tickets_of(number).map(move |ticket| (self.user(number), ticket)))
    }

    fn tickets_of(&self, number: usize) -> impl Iterator<Item = String> {
        (0..self.tickets).map(move |seat| format!("{}-{number}-{seat}", self.name))
    }

    fn user(&self, number: usize) -> String {
        format!("{}-user-{number}", self.name)
    }

    fn id(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    /// The number in an id: the inverse of [`Self::id`].
    fn number_of(&self, id: &str) -> anyhow::Result<usize> {
        let number = id.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('-'));
        let number = number.with_context(|| format!("{id} is no checkout of {}", self.name))?;
        Ok(number.parse()?)
    }
}
