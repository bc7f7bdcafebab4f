//! The database, as one repeatable-read snapshot shows it. Rows are streamed; none is kept here.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, bail};
use futures::TryStreamExt;
use holdfast_schemas::{CheckoutId, Currency, DeadLetter, Outcome, OutcomeData, OutcomeId, Reply, ledger, topics};
use sqlx::{Connection, Postgres, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::change_history::{Answered, Change, Entry, Record};
use super::credits::{Credit, Spent};
use super::entries::Movement;
use super::history::{History, OutcomeOf, Ticket, TicketRow, User, UserRow};
use super::identity::{Cause, Fingerprint, digest};
use super::letters::Original;
use super::look::{Book, Look};
use super::payments::{self, Disputes};
use super::report::{Promise, Report};
use super::scope::{Limit, Scope};
use super::session::{self, Server};
use super::terms::Terms;
use crate::config;

/// Names in one request for idempotency records.
const PORTION: usize = 5_000;

/// Reads everything that a look needs from the database. `terms` follow from the time of the snapshot.
pub(super) async fn read(
    config: &config::Database,
    scope: Scope,
    limit: Limit,
    terms: impl FnOnce(OffsetDateTime) -> Terms,
) -> anyhow::Result<Look> {
    let (mut connection, server) = session::connect(config).await?;
    let begun = connection.begin_with("begin isolation level repeatable read, read only");
    let sql = server.answer(begun).await.context("cannot begin a snapshot")?;
    let mut snapshot = Snapshot { sql, server };
    let start = begin(&mut snapshot).await?;
    let mut look = Look::new(scope, limit, start.generation, terms(start.now));
    if look.scope.has_keys() {
        keys(&mut snapshot, &mut look).await?;
    }
    if look.scope.has_books() {
        books(&mut snapshot, &mut look).await?;
    }
    let Snapshot { sql, server } = snapshot;
    server.answer(sql.rollback()).await.context("cannot end the snapshot")?;
    look.users
        .change_history
        .is_apart_from(&look.tickets.change_history, &mut look.report);
    Ok(look)
}

/// Reads what lies under keys, as far as the scope has them.
async fn keys(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    tickets(snapshot, look)
        .await
        .context("cannot read the tickets and their change log")?;
    users(snapshot, look)
        .await
        .context("cannot read the users and their change log")?;
    if look.scope.has_ledger() {
        spent(snapshot, look)
            .await
            .context("cannot read the credits of checkouts")?;
        entries(snapshot, look).await.context("cannot read the ledger")?;
    }
    records(snapshot, look)
        .await
        .context("cannot read the idempotency records")?;
    outbox(snapshot, look).await.context("cannot read the outbox")?;
    settled(snapshot, look)
        .await
        .context("cannot read which dead letters are settled")?;
    parked(snapshot, look)
        .await
        .context("cannot read what is in quarantine")
}

/// Has the database compare whole tables.
async fn books(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    credits(snapshot, look)
        .await
        .context("cannot read the attempts at giving credits")?;
    money(snapshot, look)
        .await
        .context("cannot read the checkouts and the ledger")?;
    if matches!(look.scope, Scope::Whole) {
        payments(snapshot, look)
            .await
            .context("cannot read the payments of checkouts")?;
    }
    mails(snapshot, look).await.context("cannot read the mails")
}

/// The time by the database's clock.
pub(super) async fn now(config: &config::Database) -> anyhow::Result<OffsetDateTime> {
    let (mut connection, server) = session::connect(config).await?;
    let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#);
    server.answer(now.fetch_one(&mut connection)).await
}

/// A snapshot, on a session that is given up when it dies.
struct Snapshot<'c> {
    sql: Transaction<'c, Postgres>,
    server: Server,
}

/// What a look begins with.
struct Start {
    generation: i64,
    now: OffsetDateTime,
}

async fn begin(snapshot: &mut Snapshot<'_>) -> anyhow::Result<Start> {
    let start = sqlx::query_as!(
        Start,
        r#"select max(generation) as "generation!", transaction_timestamp() as "now!" from generations"#
    );
    snapshot
        .server
        .answer(start.fetch_one(&mut *snapshot.sql))
        .await
        .context("cannot read the generation: was the database migrated (holdfast migrate)?")
}

/// A row of the tickets' change log, or of the tickets, or both where they have the same version.
struct TicketChange {
    ticket: String,
    version: i64,
    outcome: Option<Uuid>,
    r#type: Option<String>,
    data: Option<String>,
    cause_source: Option<String>,
    cause_id: Option<String>,
    changed_at: Option<OffsetDateTime>,
    show: Option<String>,
    seat: Option<String>,
    price_amount: Option<i64>,
    price_currency: Option<String>,
    status: Option<String>,
    hold: Option<Uuid>,
    holder: Option<String>,
    held_until: Option<OffsetDateTime>,
    checkout: Option<String>,
    hold_price: Option<i64>,
    off_sale: bool,
    row_changed_at: Option<OffsetDateTime>,
}

impl From<TicketChange> for Change<Ticket> {
    fn from(row: TicketChange) -> Self {
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
            off_sale: row.off_sale,
            changed_at,
        });
        Change {
            subject: row.ticket,
            version: row.version,
            entry,
            row: ticket,
        }
    }
}

async fn tickets(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let (from, to) = look.scope.sql_portion();
    let since = look.scope.sql_since();
    let mut rows = match since {
        None => sqlx::query_file_as!(TicketChange, "src/verify/ticket_changes.sql", from, to).fetch(&mut *snapshot.sql),
        Some(since) => sqlx::query_file_as!(TicketChange, "src/verify/recent_ticket_changes.sql", from, to, since)
            .fetch(&mut *snapshot.sql),
    };
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        look.tickets.change_history.change(row.into(), &mut look.report);
        look.check()?;
    }
    look.tickets.change_history.end_of_changes(&mut look.report);
    Ok(())
}

/// A row of the users' change log, or of the users, or both where they have the same version.
struct UserChange {
    user_id: String,
    version: i64,
    outcome: Option<Uuid>,
    r#type: Option<String>,
    data: Option<String>,
    cause_source: Option<String>,
    cause_id: Option<String>,
    changed_at: Option<OffsetDateTime>,
    row_changed_at: Option<OffsetDateTime>,
    row_has_profile: Option<bool>,
    row_has_customer: Option<bool>,
}

impl From<UserChange> for Change<User> {
    fn from(row: UserChange) -> Self {
        let entry = row.outcome.map(|outcome| Entry {
            outcome: OutcomeId(outcome),
            told: told(row.r#type.as_deref(), row.data.as_deref()),
            cause_source: row.cause_source.unwrap_or_default(),
            cause_id: row.cause_id.unwrap_or_default(),
            changed_at: row.changed_at.unwrap_or(OffsetDateTime::UNIX_EPOCH),
        });
        Change {
            subject: row.user_id,
            version: row.version,
            entry,
            row: row.row_changed_at.map(|changed_at| UserRow {
                changed_at,
                has_profile: row.row_has_profile.unwrap_or_default(),
                has_customer: row.row_has_customer.unwrap_or_default(),
            }),
        }
    }
}

async fn users(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let (from, to) = look.scope.sql_portion();
    let since = look.scope.sql_since();
    let mut rows = match since {
        None => sqlx::query_file_as!(UserChange, "src/verify/user_changes.sql", from, to).fetch(&mut *snapshot.sql),
        Some(since) => sqlx::query_file_as!(UserChange, "src/verify/recent_user_changes.sql", from, to, since)
            .fetch(&mut *snapshot.sql),
    };
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        look.users.change_history.change(row.into(), &mut look.report);
        look.check()?;
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
        look.check()?;
    }
    Ok(())
}

/// Compares the credits that checkouts spent or got back with the committed attempts.
async fn spent(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let mut spent = Spent::new(look.scope.portion());
    let mut rows = sqlx::query_file!("src/verify/spent.sql").fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        spent.told(row.checkout, &row.step);
        look.limit.admits(spent.facts())?;
    }
    drop(rows);
    let mut rows = sqlx::query!(
        "select distinct transaction from two_phase_attempts where fate = 'committed' and transaction like 'checkout/%'"
    )
    .fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        spent.bound(&row.transaction, &mut look.report);
        look.check()?;
    }
    spent.judge(&mut look.report);
    Ok(())
}

/// The statement itself finds checkouts whose money does not agree. A stuck checkout breaks no promise: it is reported as such.
async fn money(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let mut rows = sqlx::query_file!("src/verify/money.sql").fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        look.report.broken(Promise::MoneyMismatch, &row.key, || row.what);
        look.check()?;
    }
    drop(rows);
    let stuck = sqlx::query_scalar!(r#"select count(*) as "stuck!" from checkouts where stuck_at is not null"#);
    look.report.stuck = u64::try_from(snapshot.server.answer(stuck.fetch_one(&mut *snapshot.sql)).await?)?;
    let unfinished = sqlx::query_scalar!(
        r#"select count(*) as "unfinished!" from checkouts
           where (ended_at is null or owes or (state = 'refunded' and sold_at is not null and credits is not null)) and stuck_at is null"#
    );
    look.report.unfinished = u64::try_from(snapshot.server.answer(unfinished.fetch_one(&mut *snapshot.sql)).await?)?;
    Ok(())
}

/// What the payment provider must have.
async fn payments(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
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
    let (from, to) = look.scope.sql_portion();
    let mut rows = sqlx::query_file!("src/verify/movements.sql", from, to).fetch(&mut *snapshot.sql);
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
        look.check()?;
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
        look.check()?;
    }
    Ok(())
}

async fn records(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let (from, to) = look.scope.sql_portion();
    let since = look.scope.sql_since();
    let mut rows = sqlx::query_file_as!(Kept, "src/verify/answers.sql", from, to, since).fetch(&mut *snapshot.sql);
    while let Some(kept) = snapshot.server.answer(rows.try_next()).await? {
        kept.give_to(look, Taken::Within)?;
        look.check()?;
    }
    Ok(())
}

/// Adds the idempotency records of events that may have been repeated: the look began after they took effect, or the snapshot was
/// taken before.
pub(super) async fn repeated(config: &config::Database, look: &mut Look) -> anyhow::Result<()> {
    let mut names = look.tickets.records.take_unknown();
    names.append(&mut look.users.records.take_unknown());
    if names.is_empty() {
        return Ok(());
    }
    let (mut connection, server) = session::connect(config).await?;
    for names in names.chunks(PORTION) {
        let (sources, ids): (Vec<_>, Vec<_>) = names.iter().cloned().unzip();
        let rows = sqlx::query_as!(
            Kept,
            r#"select r.source, r.id, r.topic, r.key, r.hash, r.reply::text as "reply!", r.written_at
               from unnest($1::text[], $2::text[]) as name (source, id)
               join idempotency_records r on r.source = name.source and r.id = name.id"#,
            &sources,
            &ids
        );
        for kept in server.answer(rows.fetch_all(&mut connection)).await? {
            kept.give_to(look, Taken::Before)?;
        }
    }
    Ok(())
}

/// An idempotency record of whichever stream.
struct Kept {
    source: String,
    id: String,
    topic: String,
    key: String,
    hash: Vec<u8>,
    reply: String,
    written_at: OffsetDateTime,
}

/// Whether the snapshot has what an event changed.
#[derive(Clone, Copy)]
enum Taken {
    Within,
    Before,
}

impl Kept {
    fn give_to(self, look: &mut Look, taken: Taken) -> anyhow::Result<()> {
        let Look {
            tickets, users, report, ..
        } = look;
        match self.topic.as_str() {
            topics::RESERVATIONS => self.enter(tickets, taken, report),
            topics::PAYMENTS => self.enter(users, taken, report),
            topic => bail!(
                "event {:?} of {:?} has the topic {topic:?}, which is none of Holdfast's",
                self.id,
                self.source
            ),
        }
    }

    fn enter<H: History>(self, book: &mut Book<H>, taken: Taken, report: &mut Report) -> anyhow::Result<()> {
        let Self { source, id, .. } = &self;
        let reply: Reply = serde_json::from_str(&self.reply)
            .with_context(|| format!("the reply to event {id:?} of {source:?} cannot be read"))?;
        let digest =
            digest(&self.hash).with_context(|| format!("the hash of event {id:?} of {source:?} is too short"))?;
        let answered = reply.outcomes.iter().map(|outcome| {
            let told = OutcomeOf::<H>::read(&outcome.outcome_type, &outcome.data.to_string());
            Answered {
                sequence: outcome.sequence,
                content: told.ok().as_ref().map(Fingerprint::of_outcome),
            }
        });
        let record = Record {
            outcomes: answered.collect(),
            refused: reply.refusal().is_some(),
            source: self.source,
            id: self.id,
            subject: self.key,
            digest,
            written_at: self.written_at,
        };
        match taken {
            Taken::Within => book.change_history.record(record, report),
            Taken::Before => book.change_history.repeated(&record),
        }
        Ok(())
    }
}

async fn outbox(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let mut rows = sqlx::query!(
        r#"select id, topic, key, headers::text as "headers!", value, written_at
           from outbox
           where $1::timestamptz is null or written_at >= $1
           order by id"#,
        look.scope.sql_since()
    )
    .fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        let of_ledger = row.topic == topics::LEDGER_ENTRIES;
        if !look.scope.has(Some(row.key.as_bytes())) || of_ledger && !look.scope.has_ledger() {
            continue;
        }
        look.check()?;
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

/// Events that wait for an operator.
async fn parked(snapshot: &mut Snapshot<'_>, look: &mut Look) -> anyhow::Result<()> {
    let (from, to) = look.scope.sql_portion();
    let mut rows = sqlx::query_file!("src/verify/parked.sql", from, to).fetch(&mut *snapshot.sql);
    while let Some(row) = snapshot.server.answer(rows.try_next()).await? {
        let digest = digest(&row.hash).with_context(|| {
            format!(
                "the hash of parked event {:?} of {:?} is too short",
                row.event, row.source
            )
        })?;
        let event = (Cause::of(&row.source, &row.event), digest);
        look.parked(&row.topic, event, row.id, row.partition.zip(row.offset));
        look.check()?;
    }
    Ok(())
}
