//! An on-sale on real servers: many buyers and few seats, repeats and bad records mixed in. Then those who hold seats buy them
//! from a payment provider that declines cards, asks for confirmations, loses answers and tells everything twice; some regret it, and
//! one of two shows is cancelled. A worker is killed in the middle of either. The events of one seat break the workers, are parked, and are
//! replayed once that is mended. In the end every count must add up, the provider's books must say the same to the last cent, each
//! customer must have been written to, and `holdfast verify` must agree.

mod books;
mod display;
mod money;
mod script;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast_tests::kit::provider::{Delivery, Simulator, WEBHOOK_SECRET};
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Holdfast, Name, Stack, until};
use holdfast_tests::load::{
    Arrival, Beats, DEAD_LETTERS, Event, OUTCOMES, Outcome, PAYMENT_OUTCOMES, PAYMENTS, Pace, Producer, RESERVATIONS,
    follow,
};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Interval, interval};

use books::{Books, Sales};
use display::Display;
use money::Regret;
use script::{Kind, Step};

/// Records per second.
const RATE: u32 = 500;
/// Checkouts per second.
const BUYING_RATE: u32 = 25;
/// Events sent once more when the killed worker is back, in either half of the sale.
const SENT_AGAIN: usize = 200;
const BOUGHT_AGAIN: usize = 40;
/// Checkouts that are refunded later; below, the amount of each partial refund, in cents.
const REGRETS: usize = 12;
const PART: i64 = 1_000;
/// Orders of several seats of which the shop takes one back.
const RETURNS: usize = 6;
/// Most runs of the command that cancels a show.
const CANCELLING: u32 = 10;
/// The same faults each time.
const SEED: u64 = 7;
const BEAT: Duration = Duration::from_millis(10);
/// Longer than a worker is down, and than Restate waits before it retries.
const SILENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run() -> anyhow::Result<()> {
    let stack = Stack::open(Name::Demo).await?;
    stack.start().await?;
    let provider = Simulator::start().await?;
    provider.fail_at_random(SEED, script::FAULTS);
    provider.webhooks_to(&stack.webhook_url()?, WEBHOOK_SECRET);
    provider.deliver_always(Delivery::Twice);
    let launch = |instance| stack.holdfast("run", instance).provider(&provider);
    // Only the first worker receives webhooks: while it is down, the provider retries.
    let first = launch("first").webhooks().start().await?;
    // The second worker takes over as gate and relay; Restate knows one address for the handlers, and that is the first's.
    let serve = format!("127.0.0.1:{}", stack.ports.get("second-serve")?);
    let second = launch("second").arg("--no-migrate").arg("--no-register");
    let second = second.env("HOLDFAST_SERVE_LISTEN", &serve).start().await?;

    let mut sale = Sale::open(&stack, &provider)?;
    sale.register().await?;
    let half = sale.begin_fight();
    while sale.steps.len() > half {
        sale.go_on().await?;
    }
    let (first, down) = sale.go_on_without(first, launch("first").webhooks()).await?;
    sale.send_again(SENT_AGAIN)?;
    while !sale.is_over() {
        sale.go_on().await?;
    }

    let orders = sale.begin_buying()?;
    while sale.books.money.ended() < orders / 2 {
        sale.go_on().await?;
    }
    let (first, down_again) = sale.go_on_without(first, launch("first").webhooks()).await?;
    sale.send_again(BOUGHT_AGAIN)?;
    sale.settle().await?;
    sale.regret()?;
    sale.settle().await?;
    sale.take_back()?;
    sale.settle().await?;
    sale.cancel_show(&stack).await?;
    sale.settle().await?;
    sale.break_workers(&stack).await?;
    sale.settle().await?;
    while !provider.has_told_all() {
        sale.go_on().await?;
    }
    provider.heal();
    sale.hear_the_rest(&stack).await?;
    sale.display.end(&sale.books);

    println!("\n{}", sale.books.table(down + down_again));
    let verified = verify(&stack, &provider).await?;
    sale.books.compare(&verified)?;
    sale.books.compare_sales(&sales(&stack).await?, &provider)?;
    println!("every count adds up, and every cent\n");
    println!("{}", figures([&first, &second]).await?);
    first.stop().await?;
    second.stop().await
}

/// The on-sale under way.
struct Sale<'a> {
    provider: &'a Simulator,
    steps: VecDeque<Step>,
    /// Events sent so far, for those that are sent again.
    sent: Vec<Step>,
    reservations: Producer,
    payments: Producer,
    tickets: UnboundedReceiver<anyhow::Result<Arrival>>,
    users: UnboundedReceiver<anyhow::Result<Arrival>>,
    dead_letters: UnboundedReceiver<anyhow::Result<Arrival>>,
    books: Books,
    display: Display,
    pace: Beats,
    beat: Interval,
    last_news: Instant,
    /// Checkouts whose customers have to confirm the payment.
    confirmed: Vec<String>,
    /// Steps taken so far of the ones that [`Self::begin`] was given last.
    scripted: usize,
}

impl<'a> Sale<'a> {
    fn open(stack: &Stack, provider: &'a Simulator) -> anyhow::Result<Self> {
        Ok(Sale {
            provider,
            scripted: 0,
            confirmed: Vec::new(),
            sent: Vec::new(),
            reservations: Producer::new(&stack.kafka, RESERVATIONS)?,
            payments: Producer::new(&stack.kafka, PAYMENTS)?,
            tickets: follow(&stack.kafka, OUTCOMES)?,
            users: follow(&stack.kafka, PAYMENT_OUTCOMES)?,
            dead_letters: follow(&stack.kafka, DEAD_LETTERS)?,
            books: Books::default(),
            pace: Pace::PerSecond(RATE).beats(),
            beat: interval(BEAT),
            last_news: Instant::now(),
            steps: VecDeque::new(),
            display: Display::new(script::BUYERS + script::REQUESTS),
        })
    }

    /// From now on these steps are taken, at `rate` per second.
    fn begin(&mut self, steps: Vec<Step>, rate: u32) {
        self.steps = VecDeque::from(steps);
        self.scripted = 0;
        self.pace = Pace::PerSecond(rate).beats();
    }

    async fn register(&mut self) -> anyhow::Result<()> {
        self.display
            .say(&format!("{} buyers register, and some get credits", script::BUYERS));
        self.begin(script::registrations(), RATE);
        while !self.is_over() {
            self.go_on().await?;
        }
        Ok(())
    }

    /// Begins the fight for the seats; returns half the number of its steps.
    fn begin_fight(&mut self) -> usize {
        self.display.say(&format!(
            "on sale: {} seats, {} requests, one seat wanted by {} buyers",
            script::SEATS,
            script::REQUESTS,
            script::REQUESTS / script::HOT_EVERY
        ));
        self.begin(script::fight(), RATE);
        self.steps.len() / 2
    }

    /// Begins the checkouts; returns their number.
    fn begin_buying(&mut self) -> anyhow::Result<usize> {
        let holders = self.books.holders();
        let orders = holders.iter().map(|(user, tickets)| script::order(user, tickets));
        let orders = orders.collect::<anyhow::Result<Vec<_>>>()?;
        let count = orders.len();
        self.display.say(&format!(
            "those who hold seats buy them: {count} checkouts; the payment provider declines some cards, loses answers, and tells \
             everything twice. After a decline they give another card, or give up"
        ));
        self.begin(orders, BUYING_RATE);
        Ok(count)
    }

    /// Refunds some checkouts at the provider, past Holdfast; the provider sends webhooks about it.
    fn regret(&mut self) -> anyhow::Result<()> {
        let regrets = self.books.money.regrets(REGRETS, PART);
        self.display.say(&format!(
            "{} regret it: all of it, or a part, is given back",
            regrets.len()
        ));
        for Regret { checkout, amount } in regrets {
            let payments = self.provider.payments_of(&checkout);
            let payment = &payments.first().context("a paid checkout without a payment")?.id;
            self.books.money.regret(&checkout);
            self.provider.refund(payment, amount)?;
        }
        Ok(())
    }

    /// The shop takes single seats of some orders back.
    fn take_back(&mut self) -> anyhow::Result<()> {
        let several = self.books.money.several(RETURNS);
        self.display.say(&format!(
            "the shop takes back one seat of each of {} orders",
            several.len()
        ));
        for (checkout, ticket) in several {
            let user = checkout.replace("order-", "buyer-");
            let event = Event::order_returned(format!("return-{checkout}"), &user, &checkout, &ticket);
            self.send(Step::payment(event))?;
        }
        Ok(())
    }

    /// Cancels one of the shows, by the command of an operator.
    async fn cancel_show(&mut self, stack: &Stack) -> anyhow::Result<()> {
        let sold = self.books.sold_of_cancelled();
        self.display.say(&format!(
            "{} is cancelled: {sold} seats of it are sold",
            script::CANCELLED
        ));
        // The provider fails for some orders: the command names them, and goes on with them when it is run again.
        for run in 1.. {
            let admin = stack.holdfast("admin", "admin").provider(self.provider);
            let cancel = admin.arg("show").arg("cancel").arg(script::CANCELLED);
            let cancelled = cancel
                .arg("--by")
                .arg("demo")
                .arg("--why")
                .arg("cancelled")
                .output()
                .await?;
            let said = String::from_utf8_lossy(&cancelled.stdout);
            let told = said.lines().find(|line| line.starts_with(script::CANCELLED));
            self.display.say(told.unwrap_or_default());
            if cancelled.status.success() {
                break;
            }
            ensure!(
                run < CANCELLING,
                "admin show cancel: {said}\n{}",
                String::from_utf8_lossy(&cancelled.stderr)
            );
        }
        while self.books.sold_of_cancelled() > 0 {
            self.go_on().await?;
        }
        Ok(())
    }

    /// The events of one seat break every worker, and are parked. Once that is mended, an operator has them replayed, in their order.
    async fn break_workers(&mut self, stack: &Stack) -> anyhow::Result<()> {
        let pool = stack.postgres.connect().await?;
        sqlx::raw_sql(script::BREAKING).execute(&pool).await?;
        let steps = script::breaking();
        let parked = steps.len() as i64 - 1;
        steps.into_iter().try_for_each(|step| self.send(step))?;
        let count = "select count(*) from parked_events";
        while sqlx::query_scalar::<_, i64>(count).fetch_one(&pool).await? != parked {
            self.go_on().await?;
        }
        self.display.say(&format!(
            "a rule of the database that nobody thought of: {parked} events of one seat break every worker, and are parked"
        ));
        sqlx::raw_sql(script::MENDED).execute(&pool).await?;
        let replay = stack
            .holdfast("admin", "admin")
            .arg("quarantine")
            .arg("replay")
            .arg("--all");
        let replay = replay.arg("--by").arg("demo").arg("--why").arg("the rule is gone");
        let replayed = replay.output().await?;
        let said = String::from_utf8_lossy(&replayed.stdout);
        let failed = String::from_utf8_lossy(&replayed.stderr);
        ensure!(replayed.status.success(), "admin quarantine replay: {said}\n{failed}");
        self.display.say(said.trim_end());
        while !self.books.are_complete() {
            self.go_on().await?;
        }
        let decided =
            "select cause_id from ticket_change_log where ticket = $1 and cause_id like 'breaks-%' order by version";
        let decided: Vec<String> = sqlx::query_scalar(decided)
            .bind(script::BROKEN)
            .fetch_all(&pool)
            .await?;
        ensure!(decided.is_sorted() && decided.len() as i64 == parked + 1, "{decided:?}");
        pool.close().await;
        Ok(())
    }

    /// Customers confirm the payments of which their banks ask it.
    fn confirm(&mut self) -> anyhow::Result<()> {
        for checkout in std::mem::take(&mut self.confirmed) {
            let payments = self.provider.payments_of(&checkout);
            let payment = &payments.first().context("a confirmation without a payment")?.id;
            self.provider.authenticate(payment, true)?;
        }
        Ok(())
    }

    /// Waits for what makes no outcome: webhooks that changed nothing, and mails.
    async fn hear_the_rest(&mut self, stack: &Stack) -> anyhow::Result<()> {
        let verify = || stack.holdfast("verify", "verify").provider(self.provider).arg("--json");
        until("every record is accounted for", SILENCE, async || {
            let counts: Value = serde_json::from_slice(&verify().output().await?.stdout)?;
            ensure!(counts["pending"] == 0, "{counts}");
            anyhow::Ok(())
        })
        .await?;
        self.books.webhooks(&stack.kafka.read(PAYMENTS).await?)?;
        let maildev = stack.maildev.as_ref().context("a stack without a mail server")?;
        let wanted = self.books.money.mails();
        let ids = until("all mails have arrived", SILENCE, async || {
            let mails = maildev.mails().await?;
            let ids = mails.iter().filter_map(|mail| mail["headers"]["message-id"].as_str());
            let ids: Vec<_> = ids.map(String::from).collect();
            // Some come again: a worker was killed before it knew that they were sent.
            let different = ids.iter().collect::<HashSet<_>>().len();
            ensure!(different >= wanted, "{different} of {wanted}");
            anyhow::Ok(ids)
        })
        .await?;
        self.books.mails(&ids);
        Ok(())
    }

    async fn settle(&mut self) -> anyhow::Result<()> {
        while !(self.steps.is_empty() && self.books.are_settled()) {
            self.go_on().await?;
        }
        Ok(())
    }

    /// Kills a worker and starts its successor; the sale goes on meanwhile. Returns how long the worker was down.
    async fn go_on_without(&mut self, worker: Holdfast, again: Launch<'_>) -> anyhow::Result<(Holdfast, Duration)> {
        worker.kill()?;
        let killed = Instant::now();
        self.display.say("the first worker is killed (SIGKILL)");
        let mut restart = pin!(again.start());
        let successor = loop {
            tokio::select! {
                restarted = &mut restart => break restarted?,
                result = self.go_on() => result?,
            }
        };
        let down = killed.elapsed();
        self.display.say(&format!(
            "the first worker is back after {:.1} s; events are sent again by producers that cannot be sure",
            down.as_secs_f64()
        ));
        Ok((successor, down))
    }

    /// Sends the steps that are due, or reads one outcome or dead letter.
    async fn go_on(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            _ = self.beat.tick() => self.send_due()?,
            Some(arrival) = self.tickets.recv() => self.hear_outcome(&arrival?)?,
            Some(arrival) = self.users.recv() => self.hear_outcome(&arrival?)?,
            Some(arrival) = self.dead_letters.recv() => {
                self.last_news = Instant::now();
                self.books.dead_letter(&arrival?.record)?;
            }
        }
        self.confirm()?;
        self.display.show(&self.books);
        Ok(())
    }

    fn send_due(&mut self) -> anyhow::Result<()> {
        while self.scripted < self.pace.due()
            && let Some(step) = self.steps.pop_front()
        {
            self.scripted += 1;
            self.send(step)?;
        }
        let silent = self.last_news.elapsed();
        ensure!(
            silent < SILENCE,
            "nothing was heard for {silent:?}; {}",
            self.books.missing()
        );
        Ok(())
    }

    fn send(&mut self, step: Step) -> anyhow::Result<()> {
        match step.topic {
            PAYMENTS => self.payments.send(&step.record)?,
            _ => self.reservations.send(&step.record)?,
        }
        self.books.sent(&step.kind);
        if let Kind::Event { .. } = step.kind {
            self.sent.push(step);
        }
        Ok(())
    }

    fn send_again(&mut self, count: usize) -> anyhow::Result<()> {
        let from = self.sent.len().saturating_sub(count);
        let again: Vec<Step> = self.sent[from..].iter().cloned().map(Step::again).collect();
        again.into_iter().try_for_each(|step| self.send(step))
    }

    fn hear_outcome(&mut self, arrival: &Arrival) -> anyhow::Result<()> {
        self.last_news = Instant::now();
        let outcome = Outcome::read(&arrival.record)?;
        self.books.outcome(&outcome, arrival.at)?;
        if outcome.verb() == "action_required" {
            self.confirmed.extend(outcome.data.checkout.clone());
        }
        match (outcome.verb(), &outcome.data.user, &outcome.data.hold) {
            ("held", Some(user), Some(hold)) => self.react(&outcome.subject, user, hold),
            ("payment_declined", ..) => {
                let checkout = outcome.data.checkout.as_deref().unwrap_or_default();
                self.send(script::after_decline(&outcome.subject, checkout, &outcome.id)?)
            }
            ("failed", ..) => self.let_go(&outcome.subject, outcome.data.checkout.as_deref().unwrap_or_default()),
            _ => Ok(()),
        }
    }

    /// A buyer whose checkout has failed holds its seats still, and releases them.
    fn let_go(&mut self, user: &str, checkout: &str) -> anyhow::Result<()> {
        let held = self.books.held_by(checkout).into_iter();
        let release = |(ticket, hold): (String, String)| {
            Step::event(Event::released(format!("let-go-{hold}"), &ticket, user, &hold))
        };
        held.map(release).try_for_each(|step| self.send(step))
    }

    /// Has some holders release their seat, and now and then another user try to release it.
    fn react(&mut self, ticket: &str, user: &str, hold: &str) -> anyhow::Result<()> {
        let id = format!("release-{hold}");
        // A hold id is as good as a die, and falls the same way each time.
        match hold.chars().next() {
            Some('0'..='4') => self.send(Step::event(Event::released(id, ticket, user, hold))),
            Some('5') => self.send(Step::event(Event::released(id, ticket, "a-stranger", hold))),
            _ => Ok(()),
        }
    }

    fn is_over(&self) -> bool {
        self.steps.is_empty() && self.books.are_complete()
    }
}

/// Prints what `holdfast verify` prints, and returns its counts; fails when it finds a promise broken.
async fn verify(stack: &Stack, provider: &Simulator) -> anyhow::Result<Value> {
    let verify = || stack.holdfast("verify", "verify").provider(provider);
    let told = verify().output().await?;
    println!("holdfast verify\n{}", String::from_utf8_lossy(&told.stdout));
    if !told.status.success() {
        bail!("verify: {}\n{}", told.status, String::from_utf8_lossy(&told.stderr));
    }
    let counts = verify().arg("--json").output().await?;
    serde_json::from_slice(&counts.stdout).context("the counts of verify")
}

/// What the dashboards show of the workers, since each was started last.
async fn figures(workers: [&Holdfast; 2]) -> anyhow::Result<String> {
    let panels = [
        ("What becomes of seats", r#"holdfast_outcomes_total{type="ticket."#),
        ("Refusals, by reason", r#"holdfast_refusals_total{reason=""#),
        ("Checkouts ended, by how", r#"holdfast_checkouts_ended_total{how=""#),
        (
            "Revenue, in minor units",
            r#"holdfast_revenue_minor_units_total{currency=""#,
        ),
        (
            "Refunded, in minor units",
            r#"holdfast_refunded_minor_units_total{currency=""#,
        ),
        ("Put in quarantine, by cause", r#"holdfast_quarantined_total{cause=""#),
    ];
    let metrics = [workers[0].metrics().await?, workers[1].metrics().await?];
    let mut text = String::from("the dashboards' figures, of both workers since each was started last\n");
    for (title, series) in panels {
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for line in metrics.iter().flat_map(|metrics| metrics.lines()) {
            let Some((value, count)) = line.strip_prefix(series).and_then(|rest| rest.split_once(r#""} "#)) else {
                continue;
            };
            *sums.entry(value).or_default() += count.parse::<u64>()?;
        }
        let shown = sums.iter().filter(|(_, sum)| **sum > 0);
        let shown: Vec<_> = shown.map(|(value, sum)| format!("{value} {sum}")).collect();
        writeln!(text, "{title:<28}{}", shown.join(", "))?;
    }
    Ok(text)
}

/// The sales that the database has.
async fn sales(stack: &Stack) -> anyhow::Result<Sales> {
    let pool = stack.postgres.connect().await?;
    let (held, sold, revenue): (i64, i64, i64) = sqlx::query_as(
        "select count(*) filter (where status = 'held'), count(*) filter (where status = 'sold'),
                (select coalesce(sum(amount), 0)::bigint from ledger where account = 'provider')
         from tickets",
    )
    .fetch_one(&pool)
    .await?;
    pool.close().await;
    Ok(Sales {
        held: usize::try_from(held)?,
        sold: usize::try_from(sold)?,
        revenue,
    })
}
