//! An on-sale on real servers: many buyers and few seats, repeats and bad records mixed in, and a worker that is killed in
//! the middle. In the end every count must add up, and `holdfast verify` must agree.

mod books;
mod display;
mod script;

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast_tests::kit::{Name, Stack};
use holdfast_tests::load::{
    Arrival, Beats, DEAD_LETTERS, Event, OUTCOMES, Outcome, Pace, Producer, RESERVATIONS, follow,
};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Interval, interval};

use books::Books;
use display::Display;
use script::{Kind, Step};

/// Records per second.
const RATE: u32 = 500;
/// How many events are sent once more when the killed worker is back.
const SENT_AGAIN: usize = 200;
const BEAT: Duration = Duration::from_millis(10);
/// Longer than a worker is down, and than the engine waits before it tries again.
const SILENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run() -> anyhow::Result<()> {
    let stack = Stack::open(Name::Demo).await?;
    stack.start().await?;
    let first = stack.holdfast("run", "first").start().await?;
    // It takes over at the gate and the relay; Restate knows one address for the handlers, and that is the first's.
    let serve = format!("127.0.0.1:{}", stack.ports.get("second-serve")?);
    let second = stack.holdfast("run", "second").arg("--no-migrate").arg("--no-register");
    let second = second.env("HOLDFAST_SERVE_LISTEN", &serve).start().await?;

    let mut sale = Sale::open(&stack)?;
    let half = sale.steps.len() / 2;
    while sale.books.records() < half {
        sale.go_on().await?;
    }
    first.kill()?;
    let killed = Instant::now();
    sale.display.say("the first worker is killed (SIGKILL)");
    let mut restart = pin!(stack.holdfast("run", "first").start());
    let first = loop {
        tokio::select! {
            restarted = &mut restart => break restarted?,
            result = sale.go_on() => result?,
        }
    };
    let down = killed.elapsed();
    sale.display.say(&format!(
        "the first worker is back after {:.1} s; {SENT_AGAIN} events are sent again by producers that cannot be sure",
        down.as_secs_f64()
    ));
    sale.send_again(SENT_AGAIN)?;
    while !sale.is_over() {
        sale.go_on().await?;
    }
    sale.display.end(&sale.books);

    println!("\n{}", sale.books.table(down));
    let verified = verify(&stack).await?;
    sale.books.compare(&verified)?;
    sale.books.compare_seats(seats_held(&stack).await?)?;
    println!("every count adds up");
    first.stop().await?;
    second.stop().await
}

/// The on-sale under way.
struct Sale {
    steps: VecDeque<Step>,
    /// Events sent so far, for those that are sent again.
    sent: Vec<Step>,
    producer: Producer,
    outcomes: UnboundedReceiver<anyhow::Result<Arrival>>,
    dead_letters: UnboundedReceiver<anyhow::Result<Arrival>>,
    books: Books,
    display: Display,
    pace: Beats,
    beat: Interval,
    last_news: Instant,
    /// Steps of the script that were taken.
    scripted: usize,
}

impl Sale {
    fn open(stack: &Stack) -> anyhow::Result<Sale> {
        let steps = VecDeque::from(script::write());
        let display = Display::new(steps.len());
        display.say(&format!(
            "on sale: {} seats, {} requests, one seat wanted by {} buyers",
            script::SEATS,
            script::REQUESTS,
            script::REQUESTS / script::HOT_EVERY
        ));
        Ok(Sale {
            scripted: 0,
            sent: Vec::new(),
            producer: Producer::new(&stack.kafka, RESERVATIONS)?,
            outcomes: follow(&stack.kafka, OUTCOMES)?,
            dead_letters: follow(&stack.kafka, DEAD_LETTERS)?,
            books: Books::default(),
            pace: Pace::PerSecond(RATE).beats(),
            beat: interval(BEAT),
            last_news: Instant::now(),
            steps,
            display,
        })
    }

    /// Sends what is due, or hears one piece of news.
    async fn go_on(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            _ = self.beat.tick() => self.send_due()?,
            Some(arrival) = self.outcomes.recv() => self.hear_outcome(&arrival?)?,
            Some(arrival) = self.dead_letters.recv() => {
                self.last_news = Instant::now();
                self.books.dead_letter(&arrival?.record)?;
            }
        }
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
        self.producer.send(&step.record)?;
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
        match (outcome.verb(), &outcome.data.user, &outcome.data.hold) {
            ("held", Some(user), Some(hold)) => self.react(&outcome.subject, user, hold),
            _ => Ok(()),
        }
    }

    /// Some who hold a seat give it back, and now and then somebody else tries to.
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
async fn verify(stack: &Stack) -> anyhow::Result<Value> {
    let told = stack.holdfast("verify", "verify").output().await?;
    println!("holdfast verify\n{}", String::from_utf8_lossy(&told.stdout));
    if !told.status.success() {
        bail!("verify: {}\n{}", told.status, String::from_utf8_lossy(&told.stderr));
    }
    let counts = stack.holdfast("verify", "verify").arg("--json").output().await?;
    serde_json::from_slice(&counts.stdout).context("the counts of verify")
}

/// As the database has it.
async fn seats_held(stack: &Stack) -> anyhow::Result<usize> {
    let pool = stack.postgres.connect().await?;
    let held: i64 = sqlx::query_scalar("select count(*) from tickets where status = 'held'")
        .fetch_one(&pool)
        .await?;
    pool.close().await;
    Ok(usize::try_from(held)?)
}
