//! Records that are read again on purpose, by the gates or by the engine. What would become of them is said first, and it only ever
//! goes back: to go forward would pass over records. But for those that Kafka has lost: a group that stands where Kafka has nothing begins
//! at the oldest record left.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use holdfast_schemas::EventData;
use serde::Serialize;

use super::Desk;
use super::output::{Table, print, print_json};
use super::rereading::{self, Forecast, Forecasts};
use super::settling::operator;
use crate::config::{Beginning, PartitionOffset, PublicTopic, Reprocess, Settle};
use crate::domain::{Entity, Ticket, User};
use crate::kafka::group::Group;
use crate::kafka::on_thread;
use crate::kafka::reader::Extent;
use crate::register::{self, Path};
use crate::store::operator_log;

/// A gate that was stopped is a member of its group a while longer: it would have its partitions back after a restart.
const LEAVES_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(super) async fn run(command: &Reprocess, desk: &Desk<'_>) -> anyhow::Result<()> {
    let (Reprocess::Gate { beginning, .. } | Reprocess::Engine { beginning, .. }) = command;
    match beginning.topic {
        PublicTopic::Reservations => run_for::<Ticket>(command, desk).await,
        PublicTopic::Payments => run_for::<User>(command, desk).await,
    }
}

async fn run_for<E: Entity>(command: &Reprocess, desk: &Desk<'_>) -> anyhow::Result<()> {
    match command {
        Reprocess::Gate { beginning, settle } => by_gates::<E>(desk, beginning, settle).await,
        Reprocess::Engine {
            beginning,
            direct,
            settle,
        } => {
            let path = if *direct { Path::Direct } else { Path::Gate };
            by_engine::<E>(desk, beginning, path, settle).await
        }
    }
}

/// Moves the gates' group back.
async fn by_gates<E: Entity>(desk: &Desk<'_>, beginning: &Beginning, settle: &Settle) -> anyhow::Result<()> {
    let (topic, group) = (E::Data::TOPIC, desk.config.gate.group.as_str());
    let dry_run = settle.dry_run;
    let members = ask(desk, group, move |group| match dry_run {
        true => Ok(group.members()?),
        false => without_members(group),
    });
    let members = members.await?;
    let stretches = stretches(desk, group, topic, beginning, reaches).await?;
    let forecasts =
        rereading::forecast::<E>(desk, topic, extent(&stretches), rereading::by_gate::<E>, settle.json).await?;
    let mut plan = Plan::new("gate", topic, group, &stretches, &forecasts, settle);
    plan.members = members;
    if dry_run {
        return plan.print(settle);
    }
    if plan.partitions.is_empty() {
        bail!("the group {group} has read nothing of {topic} from there on");
    }
    plan.begin(desk, "reprocess gate", settle).await?;
    let moved = ask(desk, group, move |group| {
        let back = stretches.iter().map(|stretch| (topic, stretch.partition, stretch.from));
        match group.commit(back) {
            Err(error) if error.is_busy() => Err(anyhow::Error::new(error).context(GATES_RUN)),
            committed => Ok(committed?),
        }
    });
    moved.await?;
    plan.done("the gates read from there on: start them", settle)
}

/// Has a new subscription of the engine begin there, and go on to what the former one has not read. Also where the former one has read
/// nothing from there on: in a Kafka that was put back the engine would drop new records under it, whose offsets it has seen.
async fn by_engine<E: Entity>(
    desk: &Desk<'_>,
    beginning: &Beginning,
    path: Path,
    settle: &Settle,
) -> anyhow::Result<()> {
    let server = format!("Restate's admin API at {}", desk.config.restate.admin);
    let reading = register::engine_reading(desk.config, path, beginning.topic, desk.now);
    let reading = desk.within(&server, reading).await??;
    let (topic, group) = (reading.topic, reading.group.as_str());
    let stretches = stretches(desk, group, topic, beginning, fitting_reaches).await?;
    let forecasts =
        rereading::forecast::<E>(desk, topic, extent(&stretches), rereading::by_engine::<E>, settle.json).await?;
    let mut plan = Plan::new("engine", topic, group, &stretches, &forecasts, settle);
    if settle.dry_run {
        return plan.print(settle);
    }
    plan.begin(desk, "reprocess engine", settle).await?;
    // As far as it has come meanwhile: no record is left out, and few are read twice.
    let reaches = ask(desk, group, move |group| fitting_reaches(group, topic)).await?;
    let mut offsets: BTreeMap<_, _> = reaches.iter().map(|reach| (reach.partition, reach.next())).collect();
    offsets.extend(stretches.iter().map(|stretch| (stretch.partition, stretch.from)));
    let begun = register::engine_reads_again(desk.config, path, beginning.topic, offsets, desk.now);
    let begun = begun.await.with_context(|| {
        format!("the engine may have no subscription to {topic} now: `holdfast register` makes one, and no record is left out")
    });
    plan.new_group = Some(begun?);
    plan.done("the engine reads from there on, by a new subscription", settle)
}

const GATES_RUN: &str = "gates run: stop every `holdfast gate` and `holdfast run`, then give the command again";

/// Fails while the group has members, once those that were just stopped must have left it.
fn without_members(group: &Group) -> anyhow::Result<Vec<String>> {
    let until = Instant::now() + LEAVES_WITHIN;
    loop {
        let members = group.members()?;
        if members.is_empty() {
            return Ok(members);
        }
        if Instant::now() > until {
            bail!("{GATES_RUN}; members of the group: {}", members.join(", "));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Asks about a group, on a thread of its own.
async fn ask<T: Send + 'static>(
    desk: &Desk<'_>,
    group: &str,
    question: impl FnOnce(&Group) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (kafka, name, timeout) = (desk.config.kafka.clone(), group.to_owned(), desk.timeout);
    on_thread("reprocess", move || question(&Group::new(&kafka, &name, timeout)?)).await?
}

/// A partition, and how far the group has read it.
#[derive(Clone, Copy, Debug)]
struct Reach {
    partition: i32,
    /// The oldest record that is left.
    low: i64,
    /// Behind the last record.
    high: i64,
    committed: Option<i64>,
}

impl Reach {
    /// Where the group goes on: without an offset at the oldest record.
    fn next(&self) -> i64 {
        self.committed.unwrap_or(self.low)
    }

    /// Where the group stands, if Kafka has nothing there: retention took records that it had not read, or the topic was made anew.
    fn lost(&self) -> Option<i64> {
        self.committed
            .filter(|committed| !(self.low..=self.high).contains(committed))
    }
}

fn reaches(group: &Group, topic: &str) -> anyhow::Result<Vec<Reach>> {
    let committed = group.committed(topic)?.into_iter();
    let reaches = committed.map(|(partition, committed)| {
        let (low, high) = group.bounds(topic, partition)?;
        Ok(Reach {
            partition,
            low,
            high,
            committed,
        })
    });
    reaches.collect()
}

/// As [`reaches`], where an offset that the topic does not have says nothing: the group had it of another topic, or of this one before it
/// was put back.
fn fitting_reaches(group: &Group, topic: &str) -> anyhow::Result<Vec<Reach>> {
    let mut reaches = reaches(group, topic)?;
    for reach in &mut reaches {
        reach.committed = reach.committed.filter(|_| reach.lost().is_none());
    }
    Ok(reaches)
}

/// What of a partition would be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    partition: i32,
    from: i64,
    /// The offset that the group has committed.
    committed: i64,
    /// Offsets behind what is read again, which follow.
    unread: i64,
    /// Kafka has nothing at the committed offset: all that is left is unread.
    lost: bool,
}

/// What would be read again of each partition that goes back, and those that have lost what the group had not read.
async fn stretches(
    desk: &Desk<'_>,
    group: &str,
    topic: &'static str,
    beginning: &Beginning,
    reaches: fn(&Group, &str) -> anyhow::Result<Vec<Reach>>,
) -> anyhow::Result<Vec<Stretch>> {
    let beginning = beginning.clone();
    ask(desk, group, move |group| {
        let reaches = reaches(group, topic)?;
        let mut lost = Vec::new();
        let wanted = match beginning.from {
            Some(at) => {
                lost.extend(reaches.iter().filter_map(from_what_is_left));
                let mut since = group.since(topic, at)?;
                // What it has not read yet, it reads anyhow.
                since.retain(|partition, first| {
                    let mut read = reaches.iter().filter(|reach| reach.partition == *partition);
                    read.any(|reach| {
                        reach.lost().is_none() && reach.committed.is_some_and(|committed| *first < committed)
                    })
                });
                since
            }
            None => named(topic, &beginning.offsets)?,
        };
        let stretches = wanted.into_iter().map(|(partition, offset)| {
            let reach = reaches.iter().find(|reach| reach.partition == partition);
            let reach =
                reach.with_context(|| format!("{topic} has no partition {partition}: it has {}", reaches.len()))?;
            back(topic, reach, offset)
        });
        let mut stretches = stretches.collect::<anyhow::Result<Vec<_>>>()?;
        stretches.retain(|stretch| stretch.from < stretch.committed);
        stretches.extend(lost);
        stretches.sort_by_key(|stretch| stretch.partition);
        Ok(stretches)
    })
    .await
}

/// The offsets that an operator has named, by partition.
fn named(topic: &str, places: &[PartitionOffset]) -> anyhow::Result<BTreeMap<i32, i64>> {
    let mut named = BTreeMap::new();
    for place in places {
        if named.insert(place.partition, place.offset).is_some() {
            bail!("{topic}/{} is named twice", place.partition);
        }
    }
    Ok(named)
}

/// The beginning of a partition that has lost what the group had not read: nothing is passed over that is still there.
fn from_what_is_left(reach: &Reach) -> Option<Stretch> {
    reach.lost().map(|committed| Stretch {
        partition: reach.partition,
        from: reach.low,
        committed,
        unread: reach.high - reach.low,
        lost: true,
    })
}

/// What would be read again of a partition from this offset on.
fn back(topic: &str, reach: &Reach, offset: i64) -> anyhow::Result<Stretch> {
    let Reach {
        partition,
        low,
        high,
        committed,
    } = *reach;
    let Some(committed) = committed else {
        bail!("{topic}/{partition}: the group has no offset there, and begins at its oldest record by itself");
    };
    if let Some(committed) = reach.lost() {
        bail!(
            "{topic}/{partition}: the group has committed {committed}, and Kafka has {low} to {high}: with --from in place of --offset it \
             begins at {low}: docs/runbook.md#the-gates-offsets-were-lost"
        );
    }
    if offset > committed {
        bail!(
            "{topic}/{partition}: the group has read up to {committed}, and {offset} lies beyond: what is between would be passed over"
        );
    }
    if offset < low {
        bail!("{topic}/{partition}: retention has removed {offset}, and the oldest record left is {low}");
    }
    Ok(Stretch {
        partition,
        from: offset,
        committed,
        unread: high - committed,
        lost: false,
    })
}

fn extent(stretches: &[Stretch]) -> Extent {
    let extent = stretches.iter().filter(|stretch| !stretch.lost);
    extent
        .map(|stretch| (stretch.partition, (stretch.from, stretch.committed)))
        .collect()
}

/// What would be done, and at its end whether it was.
#[derive(Debug, Serialize)]
struct Plan<'a> {
    dry_run: bool,
    /// Who reads: gate or engine.
    reader: &'static str,
    topic: &'static str,
    group: &'a str,
    /// Members of the gates' group, which must have none when it is moved.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    members: Vec<String>,
    partitions: Vec<PlannedPartition>,
    total: Forecast,
    /// Of what is undecidable, by reason.
    reasons: BTreeMap<&'static str, u64>,
    done: bool,
    /// The group of the engine's new subscription.
    #[serde(skip_serializing_if = "Option::is_none")]
    new_group: Option<String>,
}

#[derive(Debug, Serialize)]
struct PlannedPartition {
    partition: i32,
    from: i64,
    committed: i64,
    unread: i64,
    /// Kafka has nothing at the committed offset.
    lost: bool,
    #[serde(flatten)]
    forecast: Forecast,
}

impl<'a> Plan<'a> {
    fn new(
        reader: &'static str,
        topic: &'static str,
        group: &'a str,
        stretches: &[Stretch],
        forecasts: &Forecasts,
        settle: &Settle,
    ) -> Self {
        let planned = stretches.iter().map(|stretch| PlannedPartition {
            partition: stretch.partition,
            from: stretch.from,
            committed: stretch.committed,
            unread: stretch.unread,
            lost: stretch.lost,
            forecast: forecasts
                .partitions
                .get(&stretch.partition)
                .cloned()
                .unwrap_or_default(),
        });
        Self {
            dry_run: settle.dry_run,
            reader,
            topic,
            group,
            members: Vec::new(),
            partitions: planned.collect(),
            total: forecasts.total(),
            reasons: forecasts.reasons.clone(),
            done: false,
            new_group: None,
        }
    }

    /// Says what will be done, and notes who does it.
    async fn begin(&self, desk: &Desk<'_>, command: &str, settle: &Settle) -> anyhow::Result<()> {
        if !settle.json {
            print(&self.text()?)?;
        }
        let from = self.partitions.iter();
        let from = from.map(|planned| format!("{}/{}", planned.partition, planned.from));
        let from = match self.partitions.is_empty() {
            true => "where it stands".to_owned(),
            false => from.collect::<Vec<_>>().join(", "),
        };
        let details = format!("the group {} from {from}; {}", self.group, self.counts());
        let noted = operator_log::note(&desk.pool, command, self.topic, operator(settle), Some(&details));
        Ok(noted.await?)
    }

    /// Says that it was done.
    fn done(mut self, how: &str, settle: &Settle) -> anyhow::Result<()> {
        self.done = true;
        if settle.json {
            return print_json(&self);
        }
        let group = self.new_group.as_ref().map(|group| format!(", in the group {group}"));
        print(&format!("done: {how}{}\n", group.unwrap_or_default()))
    }

    fn print(&self, settle: &Settle) -> anyhow::Result<()> {
        match settle.json {
            true => print_json(self),
            false => print(&format!("{}nothing done\n", self.text()?)),
        }
    }

    fn counts(&self) -> String {
        let Forecast {
            records,
            repeats,
            new,
            too_old,
            parked,
            undecidable,
        } = &self.total;
        format!(
            "{records} records: {repeats} repeats, {new} new, {too_old} too old, {parked} parked, {undecidable} undecidable"
        )
    }

    fn text(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        writeln!(
            text,
            "what the group {} has read of {} would be read again",
            self.group, self.topic
        )?;
        let mut table = Table::new([
            "PARTITION",
            "FROM",
            "COMMITTED",
            "RECORDS",
            "REPEATS",
            "NEW",
            "TOO OLD",
            "PARKED",
            "UNDECIDABLE",
            "UNREAD",
        ]);
        for planned in &self.partitions {
            let forecast = &planned.forecast;
            table.row([
                planned.partition.to_string(),
                planned.from.to_string(),
                planned.committed.to_string(),
                forecast.records.to_string(),
                forecast.repeats.to_string(),
                forecast.new.to_string(),
                forecast.too_old.to_string(),
                forecast.parked.to_string(),
                forecast.undecidable.to_string(),
                planned.unread.to_string(),
            ]);
        }
        table.write(&mut text)?;
        if self.partitions.is_empty() {
            writeln!(text, "it has read nothing from there on")?;
        }
        for planned in self.partitions.iter().filter(|planned| planned.lost) {
            writeln!(
                text,
                "lost: Kafka has nothing at {} of partition {}: the group begins at {}, the oldest record left",
                planned.committed, planned.partition, planned.from
            )?;
        }
        writeln!(text, "{}", self.counts())?;
        let Forecast {
            new,
            too_old,
            parked,
            undecidable,
            ..
        } = self.total;
        if new > 0 {
            writeln!(
                text,
                "new: no answer is kept of them; they are decided, unless they are on their way now"
            )?;
        }
        if too_old > 0 {
            writeln!(
                text,
                "too old: they are dead letters again or for the first time; what was decided stays so"
            )?;
        }
        if parked > 0 {
            writeln!(
                text,
                "parked: their ticket or user is in quarantine, and they wait there, each once"
            )?;
        }
        if undecidable > 0 {
            let reasons = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}"));
            let reasons = reasons.collect::<Vec<_>>().join(", ");
            writeln!(text, "undecidable: they are dead letters again: {reasons}")?;
        }
        if !self.members.is_empty() {
            writeln!(text, "{GATES_RUN}; members of the group: {}", self.members.join(", "))?;
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(low: i64, high: i64, committed: Option<i64>) -> Reach {
        Reach {
            partition: 3,
            low,
            high,
            committed,
        }
    }

    #[test]
    fn a_group_goes_back_to_what_is_there_and_never_forward() {
        let reads = reach(5, 20, Some(12));
        for (offset, again) in [(5, 7), (11, 1), (12, 0)] {
            let stretch = back("reservations", &reads, offset).unwrap();
            assert_eq!(
                (stretch.committed - stretch.from, stretch.unread),
                (again, 8),
                "{offset}"
            );
        }
        for (reach, offset, said) in [
            (reads, 4, "retention has removed 4, and the oldest record left is 5"),
            (reads, 13, "13 lies beyond"),
            (reach(5, 20, None), 7, "no offset there"),
            (reach(5, 20, Some(21)), 7, "the-gates-offsets-were-lost"),
            (reach(5, 20, Some(4)), 4, "the-gates-offsets-were-lost"),
        ] {
            let error = back("reservations", &reach, offset).unwrap_err().to_string();
            assert!(error.starts_with("reservations/3: ") && error.contains(said), "{error}");
        }
    }

    #[test]
    fn what_was_lost_is_passed_over_and_nothing_else() {
        for (committed, lost) in [(4, true), (5, false), (20, false), (21, true)] {
            let stretch = from_what_is_left(&reach(5, 20, Some(committed)));
            assert_eq!(
                stretch.map(|stretch| (stretch.from, stretch.unread)),
                lost.then_some((5, 15)),
                "{committed}"
            );
        }
        assert_eq!(from_what_is_left(&reach(5, 20, None)), None);
    }

    #[test]
    fn without_an_offset_that_the_topic_has_the_oldest_record_is_next() {
        for (committed, next) in [(None, 5), (Some(12), 12), (Some(20), 20)] {
            assert_eq!(reach(5, 20, committed).next(), next, "{committed:?}");
        }
    }
}
