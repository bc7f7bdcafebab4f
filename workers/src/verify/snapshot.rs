//! The database, as one repeatable-read snapshot shows it. Rows are streamed; none is kept here.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, bail};
use futures::TryStreamExt;
use holdfast_schemas::{CheckoutId, Currency, DeadLetter, Outcome, OutcomeData, OutcomeId, Reply, ledger, topics};
use sqlx::{Connection, Postgres, Transaction};
use time::OffsetDateTime;

use super::change_history::{Answered, Change, Entry, Record};
use super::credits::{Credit, Spent};
use super::entries::Movement;
use super::history::{History, OutcomeOf, Ticket, TicketRow, User, UserRow};
use super::identity::{Digest, Fingerprint, digest};
use super::letters::Original;
use super::look::{Book, Look};
use super::payments::{self, Disputes};
use super::report::{Promise, Report};
use super::session::{self, Server};
use super::terms::Terms;
use crate::config;

/// Reads everything that a look needs from the database. `terms` follow from the time of the snapshot.
pub(super) async fn read(
    config: &config::Database,
    terms: impl FnOnce(OffsetDateTime) -> Terms,
) -> anyhow::Result<Look> {
    let (mut connection, server) = session::connect(config).await?;
    let begun = connection.begin_with("begin isolation level repeatable read, read only");
    let sql = server.answer(begun).await.context("cannot begin a snapshot")?;
    let mut snapshot = Snapshot { sql, server };
    let mut look = begin(&mut snapshot, terms).await?;
    tickets(&mut snapshot, &mut look)
        .await
        .context("cannot read the tickets and their change log")?;
    users(&mut snapshot, &mut look)
        .await
        .context("cannot read the users and their change log")?;
    credits(&mut snapshot, &mut look)
        .await
        .context("cannot read the attempts at giving credits")?;
    money(&mut snapshot, &mut look)
        .await
        .context("cannot read the checkouts and the ledger")?;
    spent(&mut snapshot, &mut look)
        .await
        .context("cannot read the credits of checkouts")?;
    entries(&mut snapshot, &mut look)
        .await
        .context("cannot read the ledger")?;
    mails(&mut snapshot, &mut look).await.context("cannot read the mails")?;
    records(&mut snapshot, &mut look)
        .await
        .context("cannot read the idempotency records")?;
    outbox(&mut snapshot, &mut look)
        .await
        .context("cannot read the outbox")?;
    settled(&mut snapshot, &mut look)
        .await
        .context("cannot read which dead letters are settled")?;
    let Snapshot { sql, server } = snapshot;
    server.answer(sql.rollback()).await.context("cannot end the snapshot")?;
    look.users
        .change_history
        .is_apart_from(&look.tickets.change_history, &mut look.report);
    Ok(look)
}

/// A snapshot, on a session that is given up when it dies.
struct Snapshot<'c> {
    sql: Transaction<'c, Postgres>,
    server: Server,
}

async fn begin(snapshot: &mut Snapshot<'_>, terms: impl FnOnce(OffsetDateTime) -> Terms) -> anyhow::Result<Look> {
    let start =
        sqlx::query!(r#"select max(generation) as "generation!", transaction_timestamp() as "now!" from generations"#)
            .fetch_one(&mut *snapshot.sql);
    let start = snapshot
        .server
        .answer(start)
        .await
        .context("cannot read the generation: was the database migrated (holdfast migrate)?")?;
    Ok(Look::new(start.generation, terms(start.now)))
}

async fn tickets(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let mut rows = sqlx::query_file!("src/verify/ticket_changes.sql").fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        let entry = row.outcome.map(|outcome| Entry {
            outcome: OutcomeId(outcome),
            told: told(row.r#type.as_deref(), row.data.as_deref()),
            cause_source: row.cause_source.unwrap_or_default(),
            cause_id: row.cause_id.unwrap_or_default(),
            changed_at: row.changed_at.unwrap_or(OffsetDateTime::UNIX_EPOCH),
        });
        let ticket = row.row_changed_at.map(|changed_at| TicketRow {
            show: row.show.unwrap_or_default(),
            seat: row.seat,
            price_amount: row.price_amount.unwrap_or_default(),
            price_currency: row.price_currency.unwrap_or_default(),
            status: row.status.unwrap_or_default(),
            hold: row.hold,
            holder: row.holder,
            held_until: row.held_until,
            checkout: row.checkout,
            hold_price: row.hold_price,
            changed_at,
        });
        let change = Change {
            subject: row.ticket,
            version: row.version,
            entry,
            row: ticket,
        };
        look.tickets.change_history.change(change, &mut look.report);
    }
    look.tickets.change_history.end_of_changes(&mut look.report);
    Ok(())
}

async fn users(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let mut rows = sqlx::query_file!("src/verify/user_changes.sql").fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        let entry = row.outcome.map(|outcome| Entry {
            outcome: OutcomeId(outcome),
            told: told(row.r#type.as_deref(), row.data.as_deref()),
            cause_source: row.cause_source.unwrap_or_default(),
            cause_id: row.cause_id.unwrap_or_default(),
            changed_at: row.changed_at.unwrap_or(OffsetDateTime::UNIX_EPOCH),
        });
        let change = Change {
            subject: row.user_id,
            version: row.version,
            entry,
            row: row.row_changed_at.map(|changed_at| UserRow {
                changed_at,
                has_profile: row.row_has_profile.unwrap_or_default(),
            }),
        };
        look.users.change_history.change(change, &mut look.report);
    }
    look.users.change_history.end_of_changes(&mut look.report);
    Ok(())
}

/// The outcome in a row of a change log, if it can be decoded.
fn told<T: OutcomeData>(outcome_type: Option<&str>, data: Option<&str>) -> Option<T> {
    T::read(outcome_type?, data?).ok()
}

async fn credits(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let mut rows = sqlx::query_file!("src/verify/credits.sql").fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        let credit = Credit {
            transaction: row.transaction,
            user: row.user_id,
            commits: row.commits,
        };
        credit.judge(&mut look.report);
    }
    Ok(())
}

/// Compares the credits that checkouts spent or got back with the committed attempts.
async fn spent(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let mut spent = Spent::default();
    let mut rows = sqlx::query_file!("src/verify/spent.sql").fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        spent.told(row.checkout, &row.step);
    }
    drop(rows);
    let mut rows = sqlx::query!(
        "select distinct transaction from two_phase_attempts where fate = 'committed' and transaction like 'checkout/%'"
    )
    .fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        spent.bound(&row.transaction, &mut look.report);
    }
    spent.judge(&mut look.report);
    Ok(())
}

/// The statement itself finds checkouts whose money does not agree. A stuck checkout breaks no promise: it is reported as such.
async fn money(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let mut rows = sqlx::query_file!("src/verify/money.sql").fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        look.report.broken(Promise::MoneyMismatch, &row.key, || row.what);
    }
    drop(rows);
    let stuck = sqlx::query_scalar!(r#"select count(*) as "stuck!" from checkouts where stuck_at is not null"#);
    look.report.stuck = u64::try_from(snapshot.server.answer(stuck.fetch_one(&mut *snapshot.sql)).await?)?;
    let unfinished = sqlx::query_scalar!(
        r#"select count(*) as "unfinished!" from checkouts
           where (ended_at is null or owes or (state = 'refunded' and sold_at is not null and credits is not null)) and stuck_at is null"#
    );
    look.report.unfinished = u64::try_from(snapshot.server.answer(unfinished.fetch_one(&mut *snapshot.sql)).await?)?;
    let mut rows = sqlx::query!(
        r#"select c.checkout, coalesce(c.called_at, c.opened_at) as "since!", c.total_currency, c.ended_at is not null as "ended!",
                  coalesce(sum(l.amount) filter (where l.kind in ('capture', 'refund', 'partial_refund', 'refund_failed')), 0)::bigint as "kept!",
                  (select coalesce(sum(r.amount), 0) from refunds r where r.checkout = c.checkout and r.status = 'pending')::bigint as "pending!",
                  (select count(*) from disputes d where d.checkout = c.checkout) as "disputes!",
                  (select count(*) from disputes d where d.checkout = c.checkout and d.status in ('won', 'inquiry', 'closed')) as "harmless!"
           from checkouts c
           left join ledger l on l.checkout = c.checkout and l.account = 'provider'
           group by c.checkout"#
    )
    .fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        let checkout = CheckoutId::parse(&row.checkout).context("the id of a checkout cannot be read")?;
        let currency = Currency::from_code(&row.total_currency).context("the currency of a checkout cannot be read")?;
        let row = payments::Row {
            since: row.since,
            currency,
            ended: row.ended,
            kept: row.kept,
            pending: row.pending,
            disputes: Disputes::new(row.disputes, row.harmless),
        };
        look.payments.book(checkout, row);
    }
    Ok(())
}

/// The movements that are to be told.
async fn entries(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let restored =
        sqlx::query_scalar!("select started_at from generations where generation > 1 order by generation desc limit 1");
    if let Some(at) = snapshot
        .server
        .answer(restored.fetch_optional(&mut *snapshot.sql))
        .await?
    {
        look.entries.restored(at);
    }
    let mut rows = sqlx::query!(
        r#"select gets.movement, gets.checkout, gets.kind, gets.account as "to", gives.account as "from", gets.amount, gets.currency,
                  gets.moved_at
           from ledger gets
           join ledger gives on gives.movement = gets.movement and gives.amount < 0
           where gets.amount > 0 and gets.told"#
    )
    .fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        look.entries.book(Movement {
            id: row.movement,
            checkout: row.checkout,
            kind: row.kind,
            to: row.to,
            from: row.from,
            amount: row.amount,
            currency: row.currency,
            at: row.moved_at,
        });
    }
    Ok(())
}

/// Those of these checkouts that the database has now.
pub(super) async fn which_exist(database: &config::Database, checkouts: &[&str]) -> anyhow::Result<HashSet<String>> {
    if checkouts.is_empty() {
        return Ok(HashSet::new());
    }
    let (mut connection, server) = session::connect(database).await?;
    let known = sqlx::query_scalar!(
        "select checkout from checkouts where checkout = any($1)",
        checkouts as _
    );
    let known = server.answer(known.fetch_all(&mut connection)).await?;
    Ok(known.into_iter().collect())
}

/// Each outcome that needs a mail to the customer must have one, which waits, was sent, was refused, or was not wanted.
async fn mails(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let mut rows = sqlx::query_file!("src/verify/mails.sql").fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        look.report.broken(Promise::MailMissing, &row.key, || row.what);
    }
    Ok(())
}

async fn records(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let mut rows = sqlx::query!(
        r#"select source, id, topic, key, hash, reply::text as "reply!", written_at from idempotency_records"#
    )
    .fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        let reply: Reply = serde_json::from_str(&row.reply)
            .with_context(|| format!("the reply to event {:?} of {:?} cannot be read", row.id, row.source))?;
        let digest = digest(&row.hash)
            .with_context(|| format!("the hash of event {:?} of {:?} is too short", row.id, row.source))?;
        let kept = Kept {
            source: row.source,
            id: row.id,
            key: row.key,
            digest,
            reply,
            written_at: row.written_at,
        };
        match row.topic.as_str() {
            topics::RESERVATIONS => kept.give_to::<Ticket>(&mut look.tickets, &mut look.report),
            topics::PAYMENTS => kept.give_to::<User>(&mut look.users, &mut look.report),
            topic => bail!(
                "event {:?} of {:?} has the topic {topic:?}, which is none of Holdfast's",
                kept.id,
                kept.source
            ),
        }
    }
    Ok(())
}

/// An idempotency record of whichever stream.
struct Kept {
    source: String,
    id: String,
    key: String,
    digest: Digest,
    reply: Reply,
    written_at: OffsetDateTime,
}

impl Kept {
    fn give_to<H: History>(self, book: &mut Book<H>, report: &mut Report) {
        let answered = self.reply.outcomes.iter().map(|outcome| {
            let told = OutcomeOf::<H>::read(&outcome.outcome_type, &outcome.data.to_string());
            Answered {
                sequence: outcome.sequence,
                content: told.ok().as_ref().map(Fingerprint::of_outcome),
            }
        });
        let record = Record {
            outcomes: answered.collect(),
            refused: self.reply.refusal().is_some(),
            source: self.source,
            id: self.id,
            subject: self.key,
            digest: self.digest,
            written_at: self.written_at,
        };
        book.change_history.record(record, report);
    }
}

async fn outbox(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let mut rows = sqlx::query!(
        r#"select id, topic, key, headers::text as "headers!", value, written_at from outbox order by id"#
    )
    .fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        let unreadable = || format!("outbox row {} cannot be read", row.id);
        match row.topic.as_str() {
            topics::DEAD_LETTERS => {
                let headers: BTreeMap<String, String> = serde_json::from_str(&row.headers).with_context(unreadable)?;
                let headers = headers.iter();
                let headers = headers.map(|(name, value)| Some((name.as_str(), Some(value.as_bytes()))));
                let record = Original {
                    key: Some(row.key.as_bytes()),
                    value: Some(&row.value),
                    headers: headers.collect(),
                    at: row.written_at,
                };
                dead_letter(&record, look);
            }
            topics::RESERVATIONS_OUTCOMES => {
                let outcome = Outcome::from_json(&row.value).with_context(unreadable)?;
                look.tickets.change_history.waiting(&outcome, &mut look.report);
            }
            topics::PAYMENTS_OUTCOMES => {
                let outcome = Outcome::from_json(&row.value).with_context(unreadable)?;
                look.users.change_history.waiting(&outcome, &mut look.report);
            }
            topics::LEDGER_ENTRIES => {
                let entry = ledger::Entry::from_json(&row.value).with_context(unreadable)?;
                look.entries.waiting(&entry, &mut look.report);
            }
            topic => bail!(
                "outbox row {} is for {topic:?}, which is no topic of Holdfast's",
                row.id
            ),
        }
    }
    Ok(())
}

/// Adds a dead letter from the outbox. One without an origin came by a direct subscription: it does not say which record it
/// accounts for.
fn dead_letter(record: &Original<'_>, look: &mut Look) {
    if let Ok(letter) = DeadLetter::from_headers(record.headers.iter().copied().flatten()) {
        look.dead_letter(&letter, record);
    }
}

/// Dead letters that an operator has judged.
async fn settled(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let mut rows =
        sqlx::query!(r#"select topic, partition, "offset" from settled_dead_letters"#).fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        look.settled(&row.topic, row.partition, row.offset);
    }
    Ok(())
}
