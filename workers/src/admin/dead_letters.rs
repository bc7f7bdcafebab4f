//! Dead letters for an operator: listed by reason, shown, sent again as they were or mended, or dropped.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, anyhow, bail};
use holdfast_schemas::{DeadLetter, dead_letter, topics};
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;

use super::mend::Mend;
use super::output::{Table, moment, print, print_json, write_fields};
use super::settling::{SettledItem, all_found, operator, planned, report};
use super::{Desk, acts};
use crate::config::{Chosen, DeadLetters, Filters, Settle};
use crate::kafka::dead_letters::{self, Copied, DeadLetterRecord, Replayer};
use crate::kafka::on_thread;
use crate::printable;
use crate::store::operator_log::OperatorAct;
use crate::store::settled_dead_letters::{self, Noted, RecordPosition, SettledLetters, Settlement};

const WHAT: &str = "unsettled dead letter about";
const LIST: &str = "dead-letters list";

pub(super) async fn run(command: &DeadLetters, desk: &Desk<'_>) -> anyhow::Result<()> {
    match command {
        DeadLetters::List { filters, json } => list(desk, filters, *json).await,
        DeadLetters::Show { origin, payload, json } => {
            let shown = show(desk, &place(origin)?, *payload).await?;
            match json {
                true => print_json(&shown),
                false => print(&shown.text()?),
            }
        }
        DeadLetters::Replay {
            chosen,
            value,
            headers,
            settle,
        } => {
            let mend = Mend::read(value.as_deref(), headers)?;
            if mend.is_some() && chosen.names.len() != 1 {
                bail!("a mended value is for one dead letter: name one origin");
            }
            let letters = chosen_letters(desk, chosen).await?;
            if settle.dry_run && mend.is_none() {
                return planned(names(&letters), "would be sent again", settle);
            }
            replay(desk, letters, mend, settle).await
        }
        DeadLetters::Drop { chosen, settle } => {
            let letters = chosen_letters(desk, chosen).await?;
            if settle.dry_run {
                return planned(names(&letters), "would be dropped", settle);
            }
            let mut items = Vec::new();
            for letter in &letters {
                items.push(note(desk, letter.record(), Settlement::Dropped, None, settle).await?);
            }
            report(&items, settle)
        }
    }
}

/// A dead letter without its value and headers.
#[derive(Debug, Serialize)]
struct ListedLetter {
    origin: String,
    reason: String,
    detail: String,
    key: Option<String>,
    /// When it was written.
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    bytes: usize,
    #[serde(skip)]
    place: RecordPosition,
    /// When its record was written.
    #[serde(skip)]
    record_at: OffsetDateTime,
    /// Its own position, and what its headers say.
    #[serde(skip)]
    own: (i32, i64),
    #[serde(skip)]
    says: Option<DeadLetter>,
}

impl ListedLetter {
    fn of(letter: &DeadLetterRecord) -> Self {
        let place = name(letter);
        let (reason, detail) = reason(letter);
        Self {
            origin: place.to_string(),
            reason,
            detail,
            key: letter.record.key.as_deref().map(readable),
            at: letter.time,
            bytes: letter.record.value.as_ref().map_or(0, Vec::len),
            place,
            record_at: letter.says.as_ref().map_or(letter.time, |says| says.origin.time),
            own: (letter.partition, letter.offset),
            says: letter.says.clone(),
        }
    }

    /// The place of its record, and when that was written.
    fn record(&self) -> (&RecordPosition, OffsetDateTime) {
        (&self.place, self.record_at)
    }

    fn fits(&self, filters: &Filters) -> bool {
        let reason = format!("{}: {}", self.reason, self.detail).to_lowercase();
        filters.topic.as_ref().is_none_or(|topic| *topic == self.place.topic)
            && filters.key.as_ref().is_none_or(|key| Some(key) == self.key.as_ref())
            && filters
                .reason
                .as_ref()
                .is_none_or(|part| reason.contains(&part.to_lowercase()))
            && filters.since.is_none_or(|since| self.at >= since)
            && filters.until.is_none_or(|until| self.at < until)
    }
}

/// The dead letters that nobody has settled, the newest about each record, in the order in which these lie on their topics.
async fn unsettled(desk: &Desk<'_>) -> anyhow::Result<Vec<ListedLetter>> {
    let settled = SettledLetters::read(&desk.pool).await?;
    let (kafka, timeout) = (desk.config.kafka.clone(), desk.timeout);
    let letters = on_thread("dead-letters", move || {
        let mut letters = BTreeMap::new();
        dead_letters::each(&kafka, timeout, |letter| {
            let letter = ListedLetter::of(&letter);
            if !settled.have(&letter.place, letter.record_at) {
                letters.insert(letter.place.clone(), letter);
            }
            anyhow::Ok(())
        })?;
        anyhow::Ok(letters)
    });
    Ok(letters.await??.into_values().collect())
}

async fn list(desk: &Desk<'_>, filters: &Filters, json: bool) -> anyhow::Result<()> {
    let mut letters = unsettled(desk).await?;
    letters.retain(|letter| letter.fits(filters));
    if json {
        return print_json(&json!({ "dead_letters": letters }));
    }
    let mut reasons: BTreeMap<&str, Vec<&ListedLetter>> = BTreeMap::new();
    for letter in &letters {
        reasons.entry(&letter.reason).or_default().push(letter);
    }
    let mut text = String::new();
    for (reason, letters) in reasons {
        writeln!(text, "{reason} ({} dead letters)", letters.len())?;
        let mut table = Table::indented();
        for letter in letters {
            let key = letter.key.clone().unwrap_or_else(|| "-".to_owned());
            table.row([letter.origin.clone(), moment(letter.at)?, key, letter.detail.clone()]);
        }
        table.write(&mut text)?;
    }
    writeln!(text, "{} waiting", letters.len())?;
    print(&text)
}

/// One dead letter, as `show` prints it.
#[derive(Serialize)]
struct ShownLetter {
    #[serde(flatten)]
    letter: ListedLetter,
    /// `replayed` or `dropped`, once it is.
    settled: Option<String>,
    headers: Vec<(String, Option<String>)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    acts: Vec<OperatorAct>,
}

async fn show(desk: &Desk<'_>, place: &RecordPosition, payload: bool) -> anyhow::Result<ShownLetter> {
    let letter = find(desk, place).await?;
    let headers = letter.record.headers.iter();
    let listed = ListedLetter::of(&letter);
    Ok(ShownLetter {
        settled: settled_dead_letters::find(&desk.pool, place, listed.record_at).await?,
        headers: headers
            .map(|(name, value)| (name.clone(), value.as_deref().map(readable)))
            .collect(),
        value: letter.record.value.as_deref().filter(|_| payload).map(readable),
        letter: listed,
        acts: acts::on(&desk.pool, "dead-letters", &place.to_string()).await?,
    })
}

impl ShownLetter {
    fn text(&self) -> anyhow::Result<String> {
        let letter = &self.letter;
        let mut text = String::new();
        let fields = [
            ("origin", letter.origin.clone()),
            ("reason", letter.reason.clone()),
            ("detail", letter.detail.clone()),
            ("written", moment(letter.at)?),
            ("settled", self.settled.clone().unwrap_or_else(|| "no".to_owned())),
            ("key", letter.key.clone().unwrap_or_else(|| "(none)".to_owned())),
        ];
        write_fields(&mut text, 10, fields)?;
        let headers = self.headers.iter().map(|(name, value)| {
            let value = value.as_deref().unwrap_or("(null)");
            ("header", format!("{name}: {value}"))
        });
        write_fields(&mut text, 10, headers)?;
        writeln!(text, "{:<10}{} bytes", "value", letter.bytes)?;
        if let Some(value) = &self.value {
            writeln!(text, "{}", printable::text(value))?;
        }
        acts::write(&mut text, &self.acts)?;
        Ok(text)
    }
}

/// Sends each record again and settles its dead letter, before the next. A dry run says what a mend would change.
async fn replay(
    desk: &Desk<'_>,
    letters: Vec<ListedLetter>,
    mend: Option<Mend>,
    settle: &Settle,
) -> anyhow::Result<()> {
    let (kafka, timeout) = (desk.config.kafka.clone(), desk.timeout);
    let mut replayer = on_thread("dead-letters", move || Replayer::new(&kafka, timeout)).await??;
    let (mut items, mut stopped) = (Vec::new(), None);
    for letter in letters {
        let Some(says) = letter.says.clone() else {
            let by_hand = "has no origin (it came by a direct subscription): send it by hand, then drop it";
            items.push(SettledItem::not_done(&letter.place, by_hand));
            continue;
        };
        let (mend, own, dry_run) = (mend.clone(), letter.own, settle.dry_run);
        let work = on_thread("dead-letters", move || {
            let sent = send_again(&replayer, &says, own, mend.as_ref(), dry_run);
            (replayer, sent)
        });
        let (back, sent) = work.await?;
        replayer = back;
        let changes = match sent {
            Ok(changes) => changes,
            Err(error) => {
                let place = &letter.place;
                items.push(SettledItem::not_done(place, "not sent, nor what follows it"));
                stopped = Some(error.context(format!("{place} is not sent again")));
                break;
            }
        };
        items.push(match settle.dry_run {
            true => {
                let changes = changes.unwrap_or_default();
                SettledItem::not_done(&letter.place, &format!("would be sent again; {changes}"))
            }
            false => note(desk, letter.record(), Settlement::Replayed, changes.as_deref(), settle).await?,
        });
    }
    let reported = report(&items, settle);
    stopped.map_or(reported, Err)
}

/// Sends a record again. What a mend has changed of it.
fn send_again(
    replayer: &Replayer,
    says: &DeadLetter,
    (partition, offset): (i32, i64),
    mend: Option<&Mend>,
    dry_run: bool,
) -> anyhow::Result<Option<String>> {
    let record = replayer.record(says, partition, offset)?;
    let (record, changes) = match mend {
        Some(mend) => {
            let (mended, changes) = mend.apply(record, says.reason)?;
            (mended, Some(changes))
        }
        None => (record, None),
    };
    if !dry_run {
        replayer.send(&says.origin.topic, &record)?;
    }
    Ok(changes)
}

async fn note(
    desk: &Desk<'_>,
    (place, written_at): (&RecordPosition, OffsetDateTime),
    settlement: Settlement,
    changes: Option<&str>,
    settle: &Settle,
) -> anyhow::Result<SettledItem> {
    let what = settlement.as_str();
    let noted = settled_dead_letters::note(&desk.pool, place, written_at, settlement, operator(settle), changes)
        .await
        .with_context(|| format!("{place} was {what}, but that could not be noted: it is still listed"))?;
    Ok(match noted {
        Noted::Now => SettledItem::done(place, what),
        Noted::Before => SettledItem::not_done(place, &format!("{what}, but somebody else has settled it meanwhile")),
    })
}

/// The unsettled dead letters that a command means, of which there must be some.
async fn chosen_letters(desk: &Desk<'_>, chosen: &Chosen) -> anyhow::Result<Vec<ListedLetter>> {
    let places = chosen.names.iter().map(|origin| place(origin));
    let places = places.collect::<anyhow::Result<Vec<_>>>()?;
    let mut letters = unsettled(desk).await?;
    for place in &places {
        if !letters.iter().any(|letter| letter.place == *place)
            && let Some(settlement) = settled_dead_letters::find(&desk.pool, place, OffsetDateTime::UNIX_EPOCH).await?
        {
            bail!("{place} was {settlement} already");
        }
    }
    letters.retain(|letter| (places.is_empty() || places.contains(&letter.place)) && letter.fits(&chosen.filters));
    let named: Vec<_> = places.iter().map(ToString::to_string).collect();
    all_found(&named, &names(&letters), chosen.all, WHAT, LIST)?;
    Ok(letters)
}

fn names(letters: &[ListedLetter]) -> Vec<String> {
    letters.iter().map(|letter| letter.origin.clone()).collect()
}

/// The newest dead letter about `place`.
async fn find(desk: &Desk<'_>, place: &RecordPosition) -> anyhow::Result<DeadLetterRecord> {
    let (kafka, timeout, wanted) = (desk.config.kafka.clone(), desk.timeout, place.clone());
    let found = on_thread("dead-letters", move || {
        let mut found = None;
        dead_letters::each(&kafka, timeout, |letter| {
            if name(&letter) == wanted {
                found = Some(letter);
            }
            anyhow::Ok(())
        })?;
        anyhow::Ok(found)
    });
    found
        .await??
        .ok_or_else(|| anyhow!("there is no dead letter about {place}: `admin {LIST}` has them"))
}

/// The name of a dead letter: its origin; if it has none, its own position.
fn name(letter: &DeadLetterRecord) -> RecordPosition {
    match &letter.says {
        Some(says) => RecordPosition {
            topic: says.origin.topic.clone(),
            partition: says.origin.partition,
            offset: says.origin.offset,
        },
        None => RecordPosition {
            topic: topics::DEAD_LETTERS.to_owned(),
            partition: letter.partition,
            offset: letter.offset,
        },
    }
}

fn reason(letter: &DeadLetterRecord) -> (String, String) {
    match &letter.says {
        Some(says) => (says.reason.to_string(), says.detail.clone()),
        None => {
            let header = |name| header(&letter.record, name).unwrap_or_else(|| "-".to_owned());
            (header(dead_letter::REASON), header(dead_letter::DETAIL))
        }
    }
}

fn header(record: &Copied, name: &str) -> Option<String> {
    let (_, value) = record.headers.iter().rev().find(|(header, _)| header == name)?;
    value.as_deref().map(readable)
}

/// The text that the bytes are; if they are none, in hexadecimal.
fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => printable::line(bytes),
    }
}

fn place(text: &str) -> anyhow::Result<RecordPosition> {
    let malformed = || format!("{text:?} is no origin: give topic/partition/offset, as `admin {LIST}` prints it");
    let mut parts = text.rsplitn(3, '/');
    let (offset, partition, topic) = (
        parts.next(),
        parts.next(),
        parts.next().filter(|topic| !topic.is_empty()),
    );
    Ok(RecordPosition {
        topic: topic.with_context(malformed)?.to_owned(),
        partition: partition
            .and_then(|partition| partition.parse().ok())
            .with_context(malformed)?,
        offset: offset.and_then(|offset| offset.parse().ok()).with_context(malformed)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_written_topic_partition_offset() {
        let expected = RecordPosition {
            topic: "reservations".into(),
            partition: 3,
            offset: 17,
        };
        assert_eq!(place("reservations/3/17").unwrap(), expected);
        assert_eq!(place(&expected.to_string()).unwrap(), expected);
        for text in [
            "",
            "reservations",
            "reservations/3",
            "reservations/3/x",
            "/3/17",
            "reservations/3/17/",
            "3/17",
        ] {
            let error = place(text).unwrap_err().to_string();
            assert!(error.contains("topic/partition/offset"), "{error}");
        }
    }
}
