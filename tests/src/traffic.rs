//! A stream of events that goes on while something is broken, the check that each one is answered, and how long answers stayed away.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast_schemas::hold_id;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::kit::Stack;
use crate::kit::worker::clean_by;
use crate::load::{
    self, Arrival, Event, OUTCOMES, Outcome, PAYMENT_OUTCOMES, PAYMENTS, Producer, RESERVATIONS, Record, SOURCE,
};

/// Tickets that several users request, beside those that are held once and released.
const TICKETS: usize = 40;
/// Two or three events each time: about 250 a second.
const BEAT: Duration = Duration::from_millis(10);
/// Longer than any retry of the engine waits, and than a broker that was killed takes to come back.
const WITHIN: Duration = Duration::from_secs(60);

/// Of every ticket.
const PRICE: i64 = 4_500;

/// Events of tickets of its own: listed, requested by rivals, released, held for a second and left to the Reaper, bought for
/// credits; repeats and bad records among them. Each event is answered by an outcome.
pub struct Traffic<'a> {
    stack: &'a Stack,
    /// Begins the names of its tickets and the ids of its events.
    name: &'static str,
    producer: Producer,
    payments: Producer,
    outcomes: UnboundedReceiver<anyhow::Result<Arrival>>,
    payment_outcomes: UnboundedReceiver<anyhow::Result<Arrival>>,
    beats: usize,
    beat: Duration,
    within: Duration,
    /// Events without an outcome, by id, and when each was sent first.
    unanswered: HashMap<String, Instant>,
    /// When each answer came, and how long its event had waited for it.
    answers: Vec<(Instant, Duration)>,
    /// Tickets whose hold only the Reaper ends.
    held: HashSet<String>,
    /// Tickets that are bought as soon as they are held.
    wanted: HashSet<String>,
    /// Tickets that are not bought yet.
    unsold: HashSet<String>,
}

impl<'a> Traffic<'a> {
    /// The topics must be there. No two may have the same name.
    pub fn new(stack: &'a Stack, name: &'static str) -> anyhow::Result<Self> {
        Ok(Self {
            stack,
            name,
            producer: Producer::new(&stack.kafka, RESERVATIONS)?,
            payments: Producer::new(&stack.kafka, PAYMENTS)?,
            outcomes: load::follow(&stack.kafka, OUTCOMES)?,
            payment_outcomes: load::follow(&stack.kafka, PAYMENT_OUTCOMES)?,
            beats: 0,
            beat: BEAT,
            within: WITHIN,
            unanswered: HashMap::new(),
            answers: Vec::new(),
            held: HashSet::new(),
            wanted: HashSet::new(),
            unsold: HashSet::new(),
        })
    }

    /// Two or three events each `beat`, and as long as `within` for what is to be waited for.
    pub fn paced(mut self, beat: Duration, within: Duration) -> Self {
        (self.beat, self.within) = (beat, within);
        self
    }

    /// Keeps events coming for as long as `work` takes.
    pub async fn during<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let mut beats = interval(self.beat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = beats.tick() => self.beat()?,
            }
        }
    }

    /// Sends this many beats' events at once.
    pub fn burst(&mut self, beats: usize) -> anyhow::Result<()> {
        (0..beats).try_for_each(|_| self.beat())
    }

    /// Returns once every event so far is answered.
    pub async fn answered(&mut self) -> anyhow::Result<()> {
        self.producer.flush().await?;
        self.payments.flush().await?;
        self.hear_until("answered", |traffic| Open::of(traffic.unanswered.keys()))
            .await
    }

    /// How long answers stayed away since then.
    pub fn outage(&mut self, since: Instant) -> Outage {
        let answers = std::mem::take(&mut self.answers).into_iter();
        Outage::of(since, answers.filter(|(at, _)| *at > since).collect())
    }

    /// Returns once every event so far is answered, every hold ended that was left to end, and every ticket bought that was to
    /// be, and `verify` finds every promise kept and every record accounted for.
    pub async fn settled(mut self) -> anyhow::Result<()> {
        self.answered().await?;
        self.hear_until("ended", |traffic| Open::of(traffic.held.iter()))
            .await?;
        self.hear_until("bought", |traffic| Open::of(traffic.unsold.iter()))
            .await?;
        clean_by(|| self.stack.holdfast("verify", "verify")).await.map(drop)
    }

    async fn hear_until(&mut self, what: &str, open: fn(&Self) -> Open<'_>) -> anyhow::Result<()> {
        let within = self.within;
        let heard = timeout(within, async {
            while open(self).count > 0 {
                self.hear().await?;
            }
            Ok(())
        });
        match heard.await {
            Ok(heard) => heard,
            Err(_) => {
                let Open { count, first } = open(self);
                bail!(
                    "not {what} within {within:?}: {count} of {}, such as {first:?}",
                    self.name
                )
            }
        }
    }

    /// Takes the next outcome.
    async fn hear(&mut self) -> anyhow::Result<()> {
        let arrival = tokio::select! {
            arrival = self.outcomes.recv() => arrival,
            arrival = self.payment_outcomes.recv() => arrival,
        };
        self.take(arrival.context("nobody reads the outcomes any more")?)
    }

    /// Kafka may be away meanwhile.
    fn take(&mut self, arrival: anyhow::Result<Arrival>) -> anyhow::Result<()> {
        let Ok(Arrival { at, record }) = arrival else {
            return Ok(());
        };
        let Outcome {
            subject,
            causationid,
            data,
            kind,
            ..
        } = Outcome::read(&record)?;
        if let Some(sent) = self.unanswered.remove(&causationid) {
            self.answers.push((at, at.duration_since(sent)));
        }
        match kind.as_str() {
            "holdfast.outcome.ticket.expired.v1" => drop(self.held.remove(&subject)),
            "holdfast.outcome.ticket.held.v1" if self.wanted.remove(&subject) => self.buy(&subject)?,
            "holdfast.outcome.checkout.completed.v1" => {
                drop(data.checkout.and_then(|ticket| self.unsold.take(&ticket)));
            }
            "holdfast.outcome.checkout.failed.v1" => {
                let ours = data.checkout.filter(|ticket| self.unsold.contains(ticket));
                ensure!(ours.is_none(), "not bought: {ours:?}: {:?}", data.reason);
            }
            _ => {}
        }
        Ok(())
    }

    fn beat(&mut self) -> anyhow::Result<()> {
        while let Ok(arrival) = self.outcomes.try_recv() {
            self.take(arrival)?;
        }
        let (beat, name) = (self.beats, self.name);
        self.beats += 1;
        let (round, place) = (beat / TICKETS, beat % TICKETS);
        let ticket = format!("{name}-{place}");
        let id = |verb: &str| format!("{ticket}-{verb}-{round}");
        if round == 0 {
            self.send(&Event::listed(id("list"), &ticket, "A"))?;
        }
        let wanted = Event::requested(id("ann"), &ticket, "ann");
        let hold = hold_id(SOURCE, &wanted.id, &ticket).to_string();
        self.send(&wanted)?;
        if round % 3 == 2 {
            self.send(&wanted)?;
        }
        self.send(&Event::requested(id("bob"), &ticket, "bob"))?;
        if round % 2 == 1 {
            self.send(&Event::released(id("back"), &ticket, "ann", &hold))?;
        }
        match beat % 25 {
            0 => self.hold_once(&format!("{name}-once-{beat}")),
            1 => self.poison(&ticket),
            2 => self.want(&format!("{name}-bought-{beat}")),
            _ => Ok(()),
        }
    }

    /// A ticket that is held for a second and never asked for again.
    fn hold_once(&mut self, ticket: &str) -> anyhow::Result<()> {
        self.send(&Event::listed(format!("{ticket}-list"), ticket, "B"))?;
        self.send(&Event::requested_for(format!("{ticket}-cid"), ticket, "cid", 1))?;
        self.held.insert(ticket.to_owned());
        Ok(())
    }

    /// A ticket that a newly registered buyer pays by credits.
    fn want(&mut self, ticket: &str) -> anyhow::Result<()> {
        let user = buyer(ticket);
        self.pay(&Event::registered(format!("{ticket}-registered"), &user))?;
        self.pay(&Event::credits_added(format!("{ticket}-credits"), &user, PRICE))?;
        self.send(&Event::listed(format!("{ticket}-list"), ticket, "C"))?;
        self.send(&Event::requested(format!("{ticket}-request"), ticket, &user))?;
        self.wanted.insert(ticket.to_owned());
        self.unsold.insert(ticket.to_owned());
        Ok(())
    }

    /// By a checkout that is named like the ticket.
    fn buy(&mut self, ticket: &str) -> anyhow::Result<()> {
        let data = json!({ "checkout": ticket, "tickets": [ticket], "credits": PRICE });
        self.pay(&Event::checkout_requested(
            format!("{ticket}-buy"),
            &buyer(ticket),
            data,
        ))
    }

    fn poison(&mut self, ticket: &str) -> anyhow::Result<()> {
        self.producer.send(&Record {
            key: Some(ticket.as_bytes().to_vec()),
            value: Some(b"{ no event".to_vec()),
        })
    }

    fn send(&mut self, event: &Event) -> anyhow::Result<()> {
        self.unanswered.entry(event.id.clone()).or_insert_with(Instant::now);
        self.producer.send(&event.record())
    }

    fn pay(&mut self, event: &Event) -> anyhow::Result<()> {
        self.unanswered.entry(event.id.clone()).or_insert_with(Instant::now);
        self.payments.send(&event.record())
    }
}

/// What is waited for still.
struct Open<'a> {
    count: usize,
    first: Option<&'a String>,
}

impl<'a> Open<'a> {
    fn of(mut waiting: impl ExactSizeIterator<Item = &'a String>) -> Self {
        Open {
            count: waiting.len(),
            first: waiting.next(),
        }
    }
}

/// How long answers stayed away while something was broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outage {
    /// The longest time without any answer.
    pub silence: Duration,
    /// The longest time from an event to its answer.
    pub slowest: Duration,
}

impl Outage {
    /// Of answers that came after `since`: when each came, and how long its event had waited.
    fn of(since: Instant, mut answers: Vec<(Instant, Duration)>) -> Outage {
        answers.sort_unstable();
        let mut last = since;
        answers.iter().fold(Outage::default(), |outage, (at, waited)| Outage {
            silence: outage.silence.max(at.duration_since(std::mem::replace(&mut last, *at))),
            slowest: outage.slowest.max(*waited),
        })
    }
}

fn buyer(ticket: &str) -> String {
    format!("{ticket}-dora")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_the_longest_silence_and_the_longest_wait() {
        let since = Instant::now();
        let second = Duration::from_secs(1);
        // The answers of two topics are not read in their order.
        let answers = vec![
            (since + 9 * second, second),
            (since + 2 * second, 3 * second),
            (since + 5 * second, second),
        ];
        let outage = Outage::of(since, answers);
        assert_eq!((outage.silence, outage.slowest), (4 * second, 3 * second));
        assert_eq!(Outage::of(since, Vec::new()), Outage::default());
    }
}
