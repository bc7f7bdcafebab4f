//! The replay of what is parked, by a handler of its object, in order. It goes on only while an operator wants it to, and ends at an
//! event that breaks again.

use holdfast_schemas::{Event, EventData, decode_delivery};
use sqlx::Connection;

use super::rows::{self, ParkedEvent, Replayed};
use super::{Break, CommittedWork, Quarantine, commit_in_order};
use crate::crash::{self, Point};
use crate::domain::KeyOf;
use crate::store::commit::{self, Admission, Rules, Stored, Unit, Work};
use crate::store::{Cause, Error, on_session};

/// Events that one transaction of a replay takes at most.
const PAGE: i64 = 500;

/// The first events that are parked for a key, as far as this release can read them.
pub struct ParkedPage<E: Stored> {
    pub ids: Vec<i64>,
    pub unit: Unit<E>,
    /// The event behind them cannot be read.
    unreadable: Option<Break>,
}

impl Quarantine {
    /// Replays the first of a key's parked events, in one transaction. For entities whose events all go one way.
    ///
    /// # Errors
    /// The database does not answer, or somebody else changes the same row: the caller retries.
    pub async fn replay<E: Stored>(&self, key: &KeyOf<E>, rules: &dyn Rules<E>) -> Result<Replayed, Error> {
        let done = on_session(&self.pool, Error::Write, async |session| {
            let mut transaction = session.begin().await.map_err(Error::Write)?;
            let page = rows::asked::<E>(&mut transaction, key, PAGE).await?;
            if page.is_empty() {
                return Ok((Replayed::Ended, Vec::new()));
            }
            let ParkedPage { ids, unit, unreadable } = ParkedPage::<E>::read(key, &page);
            let CommittedWork { answers, broke } =
                commit_in_order(&mut transaction, key, &unit.work, rules, Admission::Replayed).await?;
            let broke = broke.map(|(place, error)| Break::of(place, &error));
            let taken = broke.as_ref().map_or(ids.len(), |broke| broke.place);
            let broke = broke.or(unreadable);
            let replayed = rows::take::<E>(&mut transaction, key, &ids[..taken], broke.as_ref()).await?;
            crash::here(Point::QuarantineReplaying);
            transaction.commit().await.map_err(Error::Write)?;
            Ok((replayed, answers))
        });
        let (replayed, answers) = done.await?;
        commit::count(&answers, &self.metrics);
        if !answers.is_empty() {
            crash::here(Point::QuarantineReplayed);
        }
        Ok(replayed)
    }

    /// The first events to replay of a key, at most `most`; none when no operator wants a replay.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn asked<E: Stored>(&self, key: &KeyOf<E>, most: i64) -> Result<Vec<ParkedEvent>, Error> {
        on_session(&self.pool, Error::Read, async |session| {
            rows::asked::<E>(session, key, most).await
        })
        .await
    }

    /// Commits events out of quarantine, up to one that breaks. They stay parked until they are taken.
    ///
    /// # Errors
    /// As [`Quarantine::replay`].
    pub async fn commit<E: Stored>(&self, unit: &Unit<E>, rules: &dyn Rules<E>) -> Result<CommittedWork, Error> {
        let done = on_session(&self.pool, Error::Write, async |session| {
            let mut transaction = session.begin().await.map_err(Error::Write)?;
            let done = commit_in_order(&mut transaction, &unit.key, &unit.work, rules, Admission::Replayed).await?;
            transaction.commit().await.map_err(Error::Write)?;
            Ok(done)
        });
        let done = done.await?;
        commit::count(&done.answers, &self.metrics);
        Ok(done)
    }

    /// Takes events that were committed out of quarantine. `broke`: the one behind them breaks again.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn take<E: Stored>(&self, key: &KeyOf<E>, ids: &[i64], broke: Option<&Break>) -> Result<Replayed, Error> {
        crash::here(Point::QuarantineReplaying);
        let taken = on_session(&self.pool, Error::Write, async |session| {
            let mut transaction = session.begin().await.map_err(Error::Write)?;
            let taken = rows::take::<E>(&mut transaction, key, ids, broke).await?;
            transaction.commit().await.map_err(Error::Write)?;
            Ok(taken)
        });
        let taken = taken.await?;
        crash::here(Point::QuarantineReplayed);
        Ok(taken)
    }
}

impl<E: Stored> ParkedPage<E> {
    /// Decodes parked events, up to one that this release cannot read.
    pub fn read(key: &KeyOf<E>, page: &[ParkedEvent]) -> Self {
        let mut read = Self {
            ids: Vec::with_capacity(page.len()),
            unit: Unit {
                key: key.clone(),
                work: Vec::with_capacity(page.len()),
            },
            unreadable: None,
        };
        for (place, parked) in page.iter().enumerate() {
            let Some(event) = decode::<E::Data>(parked) else {
                read.unreadable = Some(Break {
                    place,
                    cause: Cause::Data.as_str(),
                    kind: "an event that this release cannot read".to_owned(),
                    error: format!(
                        "parked event {} cannot be decoded: a newer release parked it",
                        parked.id
                    ),
                });
                break;
            };
            read.ids.push(parked.id);
            read.unit.work.push(Work::Event(event));
        }
        read
    }

    /// What ends the page, if an event cannot be read.
    pub fn unreadable(&self) -> Option<&Break> {
        self.unreadable.as_ref()
    }
}

fn decode<A: EventData>(parked: &ParkedEvent) -> Option<Event<A>> {
    let delivery = match parked.has_origin {
        true => format!("[{}]", parked.event),
        false => parked.event.clone(),
    };
    decode_delivery(delivery.as_bytes()).ok()?.pop()?.ok()
}
