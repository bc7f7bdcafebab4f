//! A stream of events that goes on while something is broken, and the check that each one is answered.

use std::collections::HashSet;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast_schemas::hold_id;
use holdfast_tests::kit::Kit;
use holdfast_tests::load::{
    self, Arrival, Event, OUTCOMES, Outcome, PAYMENT_OUTCOMES, PAYMENTS, Producer, RESERVATIONS, Record, SOURCE,
};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::support::clean;

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
pub(crate) struct Traffic<'a> {
    kit: &'a Kit,
    /// Begins the names of its tickets and the ids of its events.
    name: &'static str,
    producer: Producer,
    payments: Producer,
    outcomes: UnboundedReceiver<anyhow::Result<Arrival>>,
    payment_outcomes: UnboundedReceiver<anyhow::Result<Arrival>>,
    beats: usize,
    unanswered: HashSet<String>,
    /// Tickets whose hold only the Reaper ends.
    held: HashSet<String>,
    /// Tickets that are bought as soon as they are held.
    wanted: HashSet<String>,
    /// Tickets that are not bought yet.
    unsold: HashSet<String>,
}

impl<'a> Traffic<'a> {
    /// The topics must be there. No two may have the same name.
    pub(crate) fn new(kit: &'a Kit, name: &'static str) -> anyhow::Result<Self> {
        Ok(Self {
            kit,
            name,
            producer: Producer::new(&kit.stack.kafka, RESERVATIONS)?,
            payments: Producer::new(&kit.stack.kafka, PAYMENTS)?,
            outcomes: load::follow(&kit.stack.kafka, OUTCOMES)?,
            payment_outcomes: load::follow(&kit.stack.kafka, PAYMENT_OUTCOMES)?,
            beats: 0,
            unanswered: HashSet::new(),
            held: HashSet::new(),
            wanted: HashSet::new(),
            unsold: HashSet::new(),
        })
    }

    /// Keeps events coming for as long as `work` takes.
    pub(crate) async fn during<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let mut beats = interval(BEAT);
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
    pub(crate) fn burst(&mut self, beats: usize) -> anyhow::Result<()> {
        (0..beats).try_for_each(|_| self.beat())
    }

    /// Returns once every event so far is answered.
    pub(crate) async fn answered(&mut self) -> anyhow::Result<()> {
        self.producer.flush().await?;
        self.payments.flush().await?;
        self.hear_until("answered", |traffic| &traffic.unanswered).await
    }

    /// Returns once every event so far is answered, every hold ended that was left to end, and every ticket bought that was to
    /// be, and `verify` finds every promise kept and every record accounted for.
    pub(crate) async fn settled(mut self) -> anyhow::Result<()> {
        self.answered().await?;
        self.hear_until("ended", |traffic| &traffic.held).await?;
        self.hear_until("bought", |traffic| &traffic.unsold).await?;
        clean(self.kit).await.map(drop)
    }

    async fn hear_until(&mut self, what: &str, open: fn(&Self) -> &HashSet<String>) -> anyhow::Result<()> {
        let heard = timeout(WITHIN, async {
            while !open(self).is_empty() {
                self.hear().await?;
            }
            Ok(())
        });
        match heard.await {
            Ok(heard) => heard,
            Err(_) => {
                let open = open(self);
                bail!(
                    "not {what} within {WITHIN:?}: {} of {}, such as {:?}",
                    open.len(),
                    self.name,
                    open.iter().next()
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
        let Ok(Arrival { record, .. }) = arrival else {
            return Ok(());
        };
        let Outcome {
            subject,
            causationid,
            data,
            kind,
            ..
        } = Outcome::read(&record)?;
        self.unanswered.remove(&causationid);
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
        self.unanswered.insert(event.id.clone());
        self.producer.send(&event.record())
    }

    fn pay(&mut self, event: &Event) -> anyhow::Result<()> {
        self.unanswered.insert(event.id.clone());
        self.payments.send(&event.record())
    }
}

fn buyer(ticket: &str) -> String {
    format!("{ticket}-dora")
}
