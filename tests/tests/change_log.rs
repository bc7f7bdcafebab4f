//! The change log of a table of one's own: whichever tool changes a row, its log has each version once.

use anyhow::{Context, ensure};
use holdfast::store::PgPool;
use holdfast::store::mechanisms::compare_and_set;
use holdfast::store::mechanisms::interactive::{self, Attempts, Write};
use holdfast::store::mechanisms::log::{self, Until};
use holdfast::store::mechanisms::{Column, Table, Values, batch, expression, insert, read, update, version};
use holdfast_tests::kit::Kit;
use serde_json::{Value, json};

use crate::mechanisms::database;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    every_tool_logs_what_changes_once_and_every_version_can_be_read_again,
    a_marked_row_is_logged_with_the_versions_that_it_has,
];

fn every_tool_logs_what_changes_once_and_every_version_can_be_read_again(kit: &Kit) -> anyhow::Result<()> {
    const KEY: i64 = 17;
    kit.block_on(async {
        let pool = with_notes(kit).await?;
        let mut connection = pool.acquire().await?;
        let (changes, changing) = batch::changes::<Note>(pool.clone());
        tokio::spawn(changing);
        let mut seen = Vec::new();
        ensure!(log::as_of::<Note>(&pool, &KEY, Until::Now).await?.is_none());
        // Each tool twice: the second time everything is as it shall be.
        for step in 0..14 {
            match step / 2 {
                0 => drop(insert::once(&pool, &note(KEY, "one", &[])).await?),
                1 => drop(update::apply(&pool, &KEY, &Note::LINE.set("two")).await?),
                2 => {
                    let (old, new) = (Note::LINE.is("two"), Note::LINE.set("three"));
                    compare_and_set::explicit(&mut connection, &KEY, &old, &new).await?;
                }
                3 => {
                    let loaded = read::one::<Note>(&pool, &KEY).await?.context("gone")?;
                    compare_and_set::only_changed(&mut connection, &loaded, &note(KEY, "four", &[])).await?;
                }
                4 => drop(expression::apply_to_all(&pool, &[KEY, KEY + 1], &Note::TAGS.include("x")).await?),
                5 => drop(changes.ask((KEY, Note::TAGS.include("y"))).await?),
                _ => {
                    let last = note(KEY, "five", &["x", "y"]);
                    let put =
                        interactive::transact(&pool, Attempts(3), async |transaction| transaction.put(&last).await);
                    let writes = put.await?.writes.into_iter().map(|written| written.what);
                    let version = seen.last().map(|note: &Note| note.version + 1);
                    let wanted: &[Write] = if step % 2 == 0 { &[Write::Put { version }] } else { &[] };
                    ensure!(writes.eq(wanted.iter().copied()), "{step}");
                }
            }
            let now = read::one::<Note>(&pool, &KEY).await?.context("gone")?;
            ensure!(now.version == step / 2 + 1, "{step}: {now:?}");
            if step % 2 == 0 {
                seen.push(now);
            }
        }
        let items = log::items::<Note>(&pool, &KEY, Until::Now).await?;
        let written: Vec<Value> = items.iter().map(|item| item.data.clone()).collect();
        let wanted = json!([
            { "line": "one", "tags": [] },
            { "line": "two" },
            { "line": "three" },
            { "line": "four" },
            { "tags": ["x"] },
            { "tags": ["x", "y"] },
            { "line": "five", "tags": ["x", "y"] },
        ]);
        ensure!(json!(written) == wanted, "{written:?}");
        for (note, item) in seen.iter().zip(&items) {
            for until in [Until::Version(note.version), Until::Time(item.changed_at)] {
                let was = log::as_of::<Note>(&pool, &KEY, until).await?;
                ensure!(was.as_ref() == Some(note), "{until:?}: {was:?} is not {note:?}");
            }
        }
        ensure!(log::as_of(&pool, &KEY, Until::Now).await? == seen.pop());
        Ok(())
    })
}

fn a_marked_row_is_logged_with_the_versions_that_it_has(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let pool = with_notes(kit).await?;
        let mut connection = pool.acquire().await?;
        for _ in 0..2 {
            insert::once_by(
                &pool,
                &Marked {
                    id: 1,
                    line: "one".to_owned(),
                    version: 0,
                },
                "first",
            )
            .await?;
        }
        // Repeated by the same attempt it is found done; a later version is one even where no column differs.
        for read in [0, 0, 1] {
            version::update(
                &mut connection,
                &1,
                read,
                &format!("from {read}"),
                &Marked::LINE.set("two"),
            )
            .await?;
        }
        let items = log::items::<Marked>(&pool, &1, Until::Now).await?;
        let items: Vec<_> = items
            .iter()
            .map(|item| (item.version, item.data["line"].as_str()))
            .collect();
        ensure!(
            items == [(0, Some("one")), (1, Some("two")), (2, Some("two"))],
            "{items:?}"
        );
        let was = log::as_of::<Marked>(&pool, &1, Until::Version(1)).await?;
        ensure!(
            was.as_ref().is_some_and(|was| was.version == 1 && was.line == "two"),
            "{was:?}"
        );
        Ok(())
    })
}

#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
struct Note {
    id: i64,
    line: String,
    tags: Vec<String>,
    version: i64,
}

#[derive(Debug, sqlx::FromRow)]
struct Marked {
    id: i64,
    line: String,
    version: i64,
}

impl Note {
    const LINE: Column<Note, String> = Column::new("line");
    const TAGS: Column<Note, Vec<String>> = Column::new("tags");
}

impl Marked {
    const LINE: Column<Marked, String> = Column::new("line");
}

impl Table for Note {
    type Key = i64;
    const TABLE: &'static str = "notes";
    const KEY: &'static str = "id";
    const COLUMNS: &'static [&'static str] = &["line", "tags"];
    const LOG: Option<&'static str> = Some("notes_log");

    fn key(&self) -> i64 {
        self.id
    }

    fn values(&self) -> Values<Note> {
        Note::LINE.is(self.line.as_str()).and(Note::TAGS.is(self.tags.clone()))
    }
}

impl Table for Marked {
    type Key = i64;
    const TABLE: &'static str = "marked";
    const KEY: &'static str = "id";
    const COLUMNS: &'static [&'static str] = &["line"];
    const MARKED: bool = true;
    const LOG: Option<&'static str> = Some("marked_log");

    fn key(&self) -> i64 {
        self.id
    }

    fn values(&self) -> Values<Marked> {
        Marked::LINE.is(self.line.as_str())
    }
}

fn note(id: i64, line: &str, tags: &[&str]) -> Note {
    Note {
        id,
        line: line.to_owned(),
        tags: tags.iter().copied().map(str::to_owned).collect(),
        version: 0,
    }
}

async fn with_notes(kit: &Kit) -> anyhow::Result<PgPool> {
    let pool = database(kit).await?;
    sqlx::raw_sql(
        "create table notes (id bigint primary key, line text not null, tags text[] not null, version bigint not null default 1);
         create table marked (
             id bigint primary key, line text not null, version bigint not null, inserted_by text, written_by text
         );
         create table notes_log (
             id bigint, version bigint, data jsonb not null, changed_at timestamptz not null, primary key (id, version)
         );
         create table marked_log (like notes_log including all);",
    )
    .execute(&pool)
    .await?;
    Ok(pool)
}
