//! Reads what would be read again, and foretells what would become of it. The consumer is one of its own, is in no group and commits
//! nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_schemas::{DeadLetterReason, Event, EventData};
use rdkafka::message::{BorrowedMessage, Message};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::runtime::Handle;

use super::Desk;
use super::output::print;
use crate::domain::Entity;
use crate::kafka::on_thread;
use crate::kafka::reader::{Extent, Reader};
use crate::store::foresight::{Foreseen, Foresight};
use crate::store::{Unit, Work};
use crate::{gate, objects};

/// Events about which the database is asked at once.
const PAGE: usize = 1_000;

/// After so many records a line says how far the reading is.
const SAY_EVERY: u64 = 100_000;

/// What is made of a record by whoever reads its topic: events, and in the place of each that is refused the reason.
pub(super) type Decoder<E> = fn(&BorrowedMessage<'_>, OffsetDateTime, Duration) -> Vec<Decoded<E>>;

type Decoded<E> = Result<Event<<E as Entity>::Data>, DeadLetterReason>;

/// As a gate does, of a record of the public topic.
pub(super) fn by_gate<E: Entity>(
    message: &BorrowedMessage<'_>,
    now: OffsetDateTime,
    retention: Duration,
) -> Vec<Decoded<E>> {
    vec![gate::admit(message, now, retention).map_err(|refusal| refusal.reason)]
}

/// As the handlers do, of a record of the topic that the engine reads. The age of its events is looked at later.
pub(super) fn by_engine<E: Entity>(message: &BorrowedMessage<'_>, now: OffsetDateTime, _: Duration) -> Vec<Decoded<E>> {
    let Ok(key) = std::str::from_utf8(message.key().unwrap_or_default()) else {
        return vec![Err(DeadLetterReason::KeyNotUtf8)];
    };
    let origin = gate::origin(message.topic(), message, now);
    let raw = message.payload().unwrap_or_default();
    match objects::decode_for::<E>(key, raw, Some(origin)) {
        Ok(Unit { work, .. }) => work.into_iter().filter_map(event_of).collect(),
        Err(refusal) => vec![Err(refusal.reason)],
    }
}

/// The event in a piece of work, or why it is none. Only what is asked otherwise than by Kafka is neither.
fn event_of<E: Entity>(work: Work<E>) -> Option<Decoded<E>> {
    match work {
        Work::Event(event) => Some(Ok(event)),
        Work::Rejected { refusal, .. } => Some(Err(refusal.reason)),
        Work::Request(_) | Work::Command(_) => None,
    }
}

/// How many records there are, and how many of their events would become what.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Forecast {
    pub(super) records: u64,
    /// They have their answers.
    pub(super) repeats: u64,
    /// They have none, and would be decided.
    pub(super) new: u64,
    /// They would be dead letters for their age.
    pub(super) too_old: u64,
    /// Their ticket or user is in quarantine.
    pub(super) parked: u64,
    /// They would be dead letters for another reason.
    pub(super) undecidable: u64,
}

/// The forecasts of a topic.
#[derive(Clone, Debug, Default)]
pub(super) struct Forecasts {
    pub(super) partitions: BTreeMap<i32, Forecast>,
    /// Why events are undecidable, each reason with how many.
    pub(super) reasons: BTreeMap<&'static str, u64>,
}

/// Reads these records of a topic, and says so now and then unless it is to be quiet.
pub(super) async fn forecast<E: Entity>(
    desk: &Desk<'_>,
    topic: &'static str,
    extent: Extent,
    decode: Decoder<E>,
    is_quiet: bool,
) -> anyhow::Result<Forecasts> {
    let (kafka, timeout) = (desk.config.kafka.clone(), desk.timeout);
    let retention = desk.config.database.idempotency_retention;
    let mut rereading = Rereading::<E> {
        foresight: Foresight::begin(&desk.pool, E::Data::TOPIC, retention).await?,
        decode,
        retention,
        runtime: Handle::current(),
        page: Vec::with_capacity(PAGE),
        found: Forecasts::default(),
        read: 0,
        is_quiet,
    };
    on_thread("reprocess", move || {
        let reader = Reader::within(timeout, &kafka)?;
        reader.each(topic, &extent, |message| rereading.take(message))?;
        rereading.judge()?;
        Ok(rereading.found)
    })
    .await?
}

struct Rereading<E: Entity> {
    foresight: Foresight,
    decode: Decoder<E>,
    retention: Duration,
    runtime: Handle,
    /// Events that are not judged yet, each with its partition.
    page: Vec<(i32, Event<E::Data>)>,
    found: Forecasts,
    read: u64,
    is_quiet: bool,
}

impl<E: Entity> Rereading<E> {
    fn take(&mut self, message: &BorrowedMessage<'_>) -> anyhow::Result<()> {
        let partition = message.partition();
        self.found.of(partition).records += 1;
        for decoded in (self.decode)(message, self.foresight.now(), self.retention) {
            match decoded {
                Ok(event) => self.page.push((partition, event)),
                Err(reason) => self.found.count(partition, Foreseen::DeadLetter(reason)),
            }
        }
        if self.page.len() >= PAGE {
            self.judge()?;
        }
        self.read += 1;
        if self.read.is_multiple_of(SAY_EVERY) && !self.is_quiet {
            print(&format!("{} records read\n", self.read))?;
        }
        Ok(())
    }

    /// Judges the events of the page.
    fn judge(&mut self) -> anyhow::Result<()> {
        let events: Vec<_> = self.page.iter().map(|(_, event)| event).collect();
        let foreseen = self.runtime.block_on(self.foresight.of(&events))?;
        for ((partition, _), foreseen) in self.page.drain(..).zip(foreseen) {
            self.found.count(partition, foreseen);
        }
        Ok(())
    }
}

impl Forecasts {
    fn of(&mut self, partition: i32) -> &mut Forecast {
        self.partitions.entry(partition).or_default()
    }

    fn count(&mut self, partition: i32, foreseen: Foreseen) {
        if let Foreseen::DeadLetter(reason) = foreseen
            && reason != DeadLetterReason::TooOld
        {
            *self.reasons.entry(reason.as_str()).or_default() += 1;
        }
        let forecast = self.of(partition);
        let place = match foreseen {
            Foreseen::Repeat => &mut forecast.repeats,
            Foreseen::New => &mut forecast.new,
            Foreseen::Parked => &mut forecast.parked,
            Foreseen::DeadLetter(DeadLetterReason::TooOld) => &mut forecast.too_old,
            Foreseen::DeadLetter(_) => &mut forecast.undecidable,
        };
        *place += 1;
    }

    /// All partitions together.
    pub(super) fn total(&self) -> Forecast {
        let mut total = Forecast::default();
        for forecast in self.partitions.values() {
            total.records += forecast.records;
            total.repeats += forecast.repeats;
            total.new += forecast.new;
            total.too_old += forecast.too_old;
            total.parked += forecast.parked;
            total.undecidable += forecast.undecidable;
        }
        total
    }
}
