//! The ticket_attributes table: description, entrance and tags of a ticket, for its readers. No decision reads it, so a change
//! here neither raises the ticket's version nor makes an outcome: the table has versions, and a change log, of its own. Written
//! with three of the [`mechanisms`](super::mechanisms): an expression for the tags, compare-and-set and update only what changed
//! for the rest.

use std::sync::Arc;

use holdfast_schemas::TicketId;
use sqlx::PgPool;

use super::mechanisms::batch::{self, Changes, Reads};
use super::mechanisms::compare_and_set::{self, Changed};
use super::mechanisms::insert::{self, Insert};
use super::mechanisms::log::{self, Item, Until};
use super::mechanisms::update::Update;
use super::mechanisms::{Column, Error, Table, Values, read};
use super::session::{patience, within};

/// A row.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Attributes {
    ticket: String,
    /// Empty: none.
    pub description: String,
    /// Empty: none.
    pub entrance: String,
    pub tags: Vec<String>,
    /// Counts the changes.
    pub version: i64,
}

impl Attributes {
    pub const DESCRIPTION: Column<Attributes, String> = Column::new("description");
    pub const ENTRANCE: Column<Attributes, String> = Column::new("entrance");
    pub const TAGS: Column<Attributes, Vec<String>> = Column::new("tags");

    /// The attributes of a ticket without a row.
    fn none(ticket: &TicketId) -> Self {
        Self {
            ticket: ticket.as_str().to_owned(),
            description: String::new(),
            entrance: String::new(),
            tags: Vec::new(),
            version: 0,
        }
    }

    /// These attributes, with the fields that the description names.
    fn described(&self, as_there: &Description) -> Self {
        let Description { description, entrance } = as_there.clone();
        Self {
            description: description.unwrap_or_else(|| self.description.clone()),
            entrance: entrance.unwrap_or_else(|| self.entrance.clone()),
            ..self.clone()
        }
    }
}

impl Table for Attributes {
    type Key = String;
    const TABLE: &'static str = "ticket_attributes";
    const KEY: &'static str = "ticket";
    const COLUMNS: &'static [&'static str] = &["description", "entrance", "tags"];
    const LOG: Option<&'static str> = Some("ticket_attributes_change_log");

    fn key(&self) -> String {
        self.ticket.clone()
    }

    fn values(&self) -> Values<Attributes> {
        let description = Attributes::DESCRIPTION.is(self.description.as_str());
        let entrance = Attributes::ENTRANCE.is(self.entrance.as_str());
        description.and(entrance).and(Attributes::TAGS.is(self.tags.clone()))
    }
}

/// A ticket's attributes as they were, and each change up to then; none when there was no row yet.
pub async fn history(pool: &PgPool, ticket: &TicketId, until: Until) -> Result<Option<(Attributes, Vec<Item>)>, Error> {
    let key = ticket.as_str().to_owned();
    let items = log::items::<Attributes>(pool, &key, until).await?;
    let Some(last) = items.last() else { return Ok(None) };
    let was = log::as_of(pool, &key, Until::Version(last.version)).await?;
    Ok(was.map(|was| (was, items)))
}

/// Fields of a ticket's description; a field that is not named is left alone.
#[derive(Clone, Debug, Default)]
pub struct Description {
    pub description: Option<String>,
    pub entrance: Option<String>,
}

/// The result of a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Described {
    /// These columns were written.
    Applied(Vec<&'static str>),
    /// The ticket is described so already: by an earlier try of the same request, by another caller, or as it was seen.
    Unchanged,
    /// Another caller changed what this would have changed; nothing was written.
    Differs,
    /// The ticket has no row, so no attribute of it can have been seen.
    Gone,
}

/// Access to the table for many handlers at once: reads share statements, and so do tags.
#[derive(Clone)]
pub struct Access {
    pool: PgPool,
    reads: Reads<Attributes>,
    changes: Changes<Attributes>,
}

impl Access {
    /// The access, and the task that must run for it; the task ends when every handle is gone.
    pub fn new(pool: PgPool) -> (Self, impl Future<Output = ()>) {
        let (reads, reading) = batch::reads(pool.clone());
        let (changes, changing) = batch::changes(pool.clone());
        let task = async {
            tokio::join!(reading, changing);
        };
        (Self { pool, reads, changes }, task)
    }

    pub async fn get(&self, ticket: &TicketId) -> Result<Option<Attributes>, Arc<Error>> {
        self.reads.ask(ticket.as_str().to_owned()).await
    }

    /// Adds a tag without reading the others, unless it is there, so that the request may be repeated.
    pub async fn tag(&self, ticket: &TicketId, tag: &str) -> Result<(), Arc<Error>> {
        let first = Attributes {
            tags: vec![tag.to_owned()],
            ..Attributes::none(ticket)
        };
        // Rows are never deleted: a caller that finds none, and then meets another's insert, finds the row in the next turn.
        loop {
            let change = Attributes::TAGS.include(tag);
            if self.changes.ask((first.key(), change)).await? == Update::Updated {
                return Ok(());
            }
            let inserted = within(patience(&self.pool), failed, insert::once(&self.pool, &first));
            if inserted.await? == Insert::Inserted {
                return Ok(());
            }
        }
    }

    /// Writes those of the columns in `to` that change. With `from`, the description that the caller saw (a field that it does
    /// not name was empty), nothing is written if another caller has changed one of them since.
    pub async fn describe(
        &self,
        ticket: &TicketId,
        from: Option<&Description>,
        to: &Description,
    ) -> Result<Described, Error> {
        let described = async {
            match from {
                Some(from) => self.describe_seen(&Attributes::none(ticket).described(from), to).await,
                None => self.describe_anyway(ticket, to).await,
            }
        };
        within(patience(&self.pool), failed, described).await
    }

    async fn describe_seen(&self, seen: &Attributes, to: &Description) -> Result<Described, Error> {
        let mut connection = self.acquire().await?;
        let wanted = seen.described(to);
        let changed = compare_and_set::only_changed_if_unmoved(&mut connection, seen, &wanted).await?;
        if changed != Changed::Differs {
            return Ok(changed.into());
        }
        // An earlier try whose answer was lost has left the wanted values. The row does not tell its write from another caller's,
        // which makes no difference.
        let now = read::one::<Attributes>(&mut *connection, &seen.key()).await?;
        let is_so = now.is_some_and(|now| now.described(to) == now);
        Ok(if is_so {
            Described::Unchanged
        } else {
            Described::Differs
        })
    }

    async fn describe_anyway(&self, ticket: &TicketId, to: &Description) -> Result<Described, Error> {
        let mut connection = self.acquire().await?;
        loop {
            let nothing = Attributes::none(ticket);
            if let Some(now) = read::one::<Attributes>(&mut *connection, &nothing.key()).await? {
                let changed = compare_and_set::only_changed(&mut connection, &now, &now.described(to)).await?;
                return Ok(changed.into());
            }
            let first = nothing.described(to);
            if insert::once(&mut *connection, &first).await? == Insert::Inserted {
                return Ok(Described::Applied(compare_and_set::changed_columns(&nothing, &first)));
            }
        }
    }

    async fn acquire(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Postgres>, Error> {
        self.pool.acquire().await.map_err(failed)
    }
}

fn failed(source: sqlx::Error) -> Error {
    Error::Statement {
        table: Attributes::TABLE,
        source,
    }
}

impl From<Changed> for Described {
    fn from(changed: Changed) -> Self {
        match changed {
            Changed::Changed(columns) => Described::Applied(columns),
            Changed::Unchanged => Described::Unchanged,
            Changed::Differs => Described::Differs,
            Changed::Gone => Described::Gone,
        }
    }
}
