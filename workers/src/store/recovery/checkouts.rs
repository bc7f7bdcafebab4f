//! Checkouts, rolled forward with the ledger, the counts of what was bought, and the mails.

use std::collections::BTreeMap;

use holdfast_schemas::ledger::Entry;
use holdfast_schemas::{
    CheckoutId, Credits, DeclineCode, Outcome, OutcomeData, PaymentId, PaymentMethod, RequestHash, Seat, TicketId,
    TicketOutcome, UserEvent, UserOutcome, events, outcomes,
};
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{Forgotten, Obstacle, Recovery, RolledForward};
use crate::domain::Unrecoverable;
use crate::domain::checkout::recovery::{self, Evidence, Opening};
use crate::domain::checkout::{Checkout, CustomerMail, Known, Matter, StuckReason, Transition};
use crate::store::{Error, buying, checkouts, disputes, mails, refunds, repayments};

/// What was told of one checkout.
#[derive(Default)]
struct Told<'a> {
    outcomes: Vec<&'a Outcome<UserOutcome>>,
    /// The highest version of its row that an outcome names. No later one may name it again.
    version: i64,
    /// When the last of it was told.
    at: Option<OffsetDateTime>,
}

/// A checkout while what was told of it is applied.
struct Found {
    checkout: Checkout,
    hash: Vec<u8>,
    mails: Vec<CustomerMail>,
}

/// Why a checkout was not rolled forward.
enum Stop {
    Obstacle(Unrecoverable),
    Failed(Error),
}

impl From<Unrecoverable> for Stop {
    fn from(why: Unrecoverable) -> Self {
        Stop::Obstacle(why)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

impl Recovery {
    /// Rolls the checkouts forward, once their tickets and users are.
    pub(super) async fn roll_checkouts(
        &self,
        connection: &mut PgConnection,
        forgotten: &Forgotten,
        rolled: &mut RolledForward,
    ) -> Result<(), Error> {
        self.book(connection, &forgotten.entries).await?;
        let mut users = Vec::new();
        for (id, told) in told(forgotten) {
            match self.roll_checkout(connection, forgotten, &id, &told).await {
                Ok(checkout) => users.push(checkout.user.to_string()),
                Err(Stop::Obstacle(why)) => rolled.obstacles.push(Obstacle {
                    key: id.to_string(),
                    what: format!("a checkout: {why}"),
                }),
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
        rolled.checkouts = users.len();
        self.count_purchases(connection, &users).await
    }

    /// Writes the movements that were told.
    async fn book(&self, connection: &mut PgConnection, entries: &[Entry]) -> Result<(), Error> {
        let column = |of: fn(&Entry) -> &str| -> Vec<&str> { entries.iter().map(of).collect() };
        let movements: Vec<_> = entries.iter().map(|entry| entry.id.0).collect();
        let amounts: Vec<_> = entries.iter().map(|entry| entry.data.amount.amount()).collect();
        let times: Vec<_> = entries.iter().map(|entry| entry.time).collect();
        let book = sqlx::query!(
            "insert into ledger (movement, checkout, kind, account, amount, currency, moved_at, told)
             select m.movement, m.checkout, m.kind, line.account, line.amount, m.currency, m.moved_at, true
             from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::timestamptz[])
                      with ordinality as m (movement, checkout, kind, receiver, giver, amount, currency, moved_at, place)
                  cross join lateral (values (1, m.receiver, m.amount), (2, m.giver, -m.amount)) as line (number, account, amount)
             order by m.place, line.number",
            &movements,
            &column(|entry| entry.checkout.as_str()) as &[&str],
            &column(|entry| entry.data.kind.as_str()) as &[&str],
            &column(|entry| entry.data.to.as_str()) as &[&str],
            &column(|entry| entry.data.from.as_str()) as &[&str],
            &amounts,
            &column(|entry| entry.data.amount.currency().code()) as &[&str],
            &times,
        );
        self.answer(book.execute(connection)).await.map(drop)
    }

    async fn roll_checkout(
        &self,
        connection: &mut PgConnection,
        forgotten: &Forgotten,
        id: &CheckoutId,
        told: &Told<'_>,
    ) -> Result<Checkout, Stop> {
        let mut found = checkouts::lock(connection, id).await?.map(|stored| Found {
            checkout: stored.checkout,
            hash: stored.hash,
            mails: vec![],
        });
        for outcomes in told
            .outcomes
            .chunk_by(|one, other| super::cause(one) == super::cause(other))
        {
            found = Some(self.apply(connection, forgotten, found, outcomes).await?);
        }
        let Found { checkout, hash, mails } = found.ok_or(Unrecoverable::Astray)?;
        let evidence = self.evidence(connection, &checkout).await?;
        let checkout = recovery::settled(checkout, evidence)?;
        let version = checkout.version.max(told.version) + 1;
        let checkout = Checkout { version, ..checkout };
        self.write_checkout(connection, &checkout, &hash, told.at.unwrap_or(checkout.until))
            .await?;
        for mail in mails {
            mails::write(connection, &checkout, mail, self.mails).await?;
        }
        Ok(checkout)
    }

    /// Applies what was told of one event.
    async fn apply(
        &self,
        connection: &mut PgConnection,
        forgotten: &Forgotten,
        found: Option<Found>,
        outcomes: &[&Outcome<UserOutcome>],
    ) -> Result<Found, Stop> {
        let mut found = found;
        if let (Some(before), Some(first)) = (&found, outcomes.first())
            && let Some(event) = forgotten.users.events.get(&super::cause(first))
            && let Some(matter) = Matter::of(&event.data)
        {
            let known = match &matter {
                Matter::Reported(report) => Known {
                    frees_seats: self.refund_frees_seats,
                    ..buying::known(connection, &before.checkout, report).await?
                },
                _ => Known::default(),
            };
            let told: Vec<_> = outcomes.iter().map(|outcome| &outcome.data).collect();
            let transition = recovery::decided_again(&before.checkout, matter, known, &told, first.time)?;
            if let Some(transition) = transition {
                let before = found.ok_or(Unrecoverable::Astray)?;
                return self.write_parts(connection, before, transition).await;
            }
        }
        for outcome in outcomes {
            found = Some(match (found, &outcome.data) {
                (None, UserOutcome::CheckoutOpened(opened)) => {
                    self.open(connection, forgotten, outcome, opened).await?
                }
                (None, _) | (Some(_), UserOutcome::CheckoutOpened(_)) => return Err(Unrecoverable::Astray.into()),
                (Some(found), told) => {
                    let (checkout, mail) = recovery::after(found.checkout, told)?;
                    let mails = [found.mails, mail.into_iter().collect()].concat();
                    Found {
                        checkout,
                        mails,
                        ..found
                    }
                }
            });
        }
        Ok(found.ok_or(Unrecoverable::Astray)?)
    }

    /// Writes what lies beside the checkout's row: its seats, money and tickets are told by themselves.
    async fn write_parts(
        &self,
        connection: &mut PgConnection,
        before: Found,
        transition: Transition,
    ) -> Result<Found, Stop> {
        let next = transition.next.unwrap_or_else(|| before.checkout.clone());
        repayments::write(connection, &before.checkout, &next).await?;
        if let Some(refund) = &transition.refund {
            refunds::write(connection, refund).await?;
        }
        if let Some(dispute) = &transition.dispute {
            disputes::write(connection, dispute).await?;
        }
        Ok(Found {
            checkout: next,
            mails: [before.mails, transition.mails].concat(),
            hash: before.hash,
        })
    }

    /// The checkout as it was opened: at the prices of the holds that its tickets had then.
    async fn open(
        &self,
        connection: &mut PgConnection,
        forgotten: &Forgotten,
        outcome: &Outcome<UserOutcome>,
        opened: &outcomes::CheckoutOpened,
    ) -> Result<Found, Stop> {
        let (user, at) = (&outcome.subject, outcome.time);
        let mut held = Vec::new();
        for ticket in &opened.tickets {
            let history = self.history(connection, ticket).await?;
            held.push(recovery::held(ticket, user, history, at).ok_or(Unrecoverable::Astray)?);
        }
        let until = held
            .iter()
            .map(|(_, until)| *until)
            .min()
            .ok_or(Unrecoverable::Astray)?;
        let asked = forgotten.users.events.get(&super::cause(outcome));
        let method = asked.and_then(|event| match &event.data {
            UserEvent::CheckoutRequested(events::CheckoutRequested { payment_method, .. }) => payment_method.clone(),
            _ => None,
        });
        let hash = match asked {
            Some(event) => *event.hash(),
            None => RequestHash::of_request("forgotten", user, &Value::Null),
        };
        let opening = Opening {
            lines: held.into_iter().map(|(line, _)| line).collect(),
            until,
            method,
        };
        Ok(Found {
            checkout: recovery::opened(user, opened, opening, at)?,
            hash: hash.as_bytes().to_vec(),
            mails: vec![],
        })
    }

    /// All that was ever told of a ticket, in order.
    async fn history(
        &self,
        connection: &mut PgConnection,
        ticket: &TicketId,
    ) -> Result<Vec<(TicketOutcome, i64, OffsetDateTime)>, Error> {
        let rows = sqlx::query!(
            r#"select version, type as outcome_type, data::text as "data!", changed_at from ticket_change_log
               where ticket = $1 order by version"#,
            ticket.as_str(),
        );
        let rows = self.answer(rows.fetch_all(connection)).await?;
        let read = rows.into_iter().map(|row| {
            let told = TicketOutcome::read(&row.outcome_type, &row.data).map_err(|invalid| Error::Row {
                table: "ticket_change_log",
                key: ticket.to_string(),
                what: invalid.to_string(),
            })?;
            Ok((told, row.version, row.changed_at))
        });
        read.collect()
    }

    async fn evidence(&self, connection: &mut PgConnection, checkout: &Checkout) -> Result<Evidence, Error> {
        let tickets: Vec<_> = checkout.lines.iter().map(|line| line.ticket.as_str()).collect();
        let sums = sqlx::query!(
            r#"select
                   coalesce(sum(amount) filter (where account in ('provider', 'disputes', 'losses')), 0)::bigint as "money!",
                   coalesce(sum(amount) filter (where account = 'credits'), 0)::bigint as "credits!",
                   coalesce(sum(amount) filter (where kind = 'refund' and amount > 0), 0)::bigint as "refunded!",
                   (select count(*) from tickets where ticket = any($2) and status = 'sold' and checkout = $1) as "sold!"
               from ledger where checkout = $1"#,
            checkout.id.as_str(),
            &tickets as &[&str],
        );
        let sums = self.answer(sums.fetch_one(connection)).await?;
        Ok(Evidence {
            sold: usize::try_from(sums.sold).unwrap_or(usize::MAX),
            money: sums.money,
            credits: sums.credits,
            refunded: sums.refunded,
        })
    }

    /// Writes the row and its seats, as new ones or over what they were. `at`: when it ended, was sold or got stuck, if it did so since.
    async fn write_checkout(
        &self,
        connection: &mut PgConnection,
        checkout: &Checkout,
        hash: &[u8],
        at: OffsetDateTime,
    ) -> Result<(), Error> {
        let lines = &checkout.lines;
        let failure = checkout.state.failure();
        let tickets: Vec<_> = lines.iter().map(|line| line.ticket.as_str()).collect();
        let holds: Vec<_> = lines.iter().map(|line| line.hold.0).collect();
        let shows: Vec<_> = lines.iter().map(|line| line.show.as_str()).collect();
        let seats: Vec<_> = lines.iter().map(|line| line.seat.as_ref().map(Seat::as_str)).collect();
        let prices: Vec<_> = lines.iter().map(|line| line.price.amount()).collect();
        let returned: Vec<_> = lines.iter().map(|line| line.returned).collect();
        let write = sqlx::query_file_scalar!(
            "src/store/recovery/write_checkout.sql",
            checkout.id.as_str(),
            checkout.version,
            checkout.user.as_str(),
            hash,
            checkout.state.name(),
            checkout.total.amount(),
            checkout.total.currency().code(),
            checkout.credits.map(Credits::amount),
            checkout.method.as_ref().map(PaymentMethod::as_str),
            checkout.payment.as_ref().map(PaymentId::as_str),
            checkout.until,
            checkout.called_at,
            checkout.stuck.map(StuckReason::name),
            checkout.sold,
            failure.map(|failure| failure.reason.as_str()),
            checkout.state.code().map(DeclineCode::as_str),
            checkout.refunded,
            checkout.state.has_ended(),
            &tickets as &[&str],
            at,
            &holds,
            &shows as &[&str],
            &seats as &[Option<&str>],
            &prices,
            &returned,
            checkout.undone,
            i32::try_from(checkout.repayments.len()).unwrap_or(i32::MAX),
            checkout.owes_repayments(),
        );
        self.answer(write.fetch_one(connection)).await.map(drop)
    }

    /// Counts anew what these users have bought.
    async fn count_purchases(&self, connection: &mut PgConnection, users: &[String]) -> Result<(), Error> {
        let count = sqlx::query!(
            "with bought as (
                 select c.user_id, s.show, count(*)::integer as tickets
                 from checkouts c join checkout_seats s on s.checkout = c.checkout
                 where c.user_id = any($1) and c.sold_at is not null and c.state <> 'refunded' and not s.returned
                 group by c.user_id, s.show
             ),
             gone as (
                 update purchases p set tickets = 0
                 where p.user_id = any($1)
                   and not exists (select from bought b where b.user_id = p.user_id and b.show = p.show)
             )
             insert into purchases (user_id, show, tickets) select user_id, show, tickets from bought
             on conflict (user_id, show) do update set tickets = excluded.tickets",
            users,
        );
        self.answer(count.execute(connection)).await.map(drop)
    }
}

/// What was told of each checkout, by its user's outcomes, its tickets' and the ledger.
fn told(forgotten: &Forgotten) -> BTreeMap<CheckoutId, Told<'_>> {
    let mut checkouts: BTreeMap<CheckoutId, Told<'_>> = BTreeMap::new();
    for outcome in &forgotten.users.outcomes {
        if let Some(id) = recovery::about(&outcome.data) {
            let told = checkouts.entry(id.clone()).or_default();
            told.named(outcome);
            told.outcomes.push(outcome);
        }
    }
    for outcome in &forgotten.tickets.outcomes {
        if let TicketOutcome::TicketSold(outcomes::TicketSold { checkout, .. })
        | TicketOutcome::TicketReturned(outcomes::TicketReturned { checkout, .. }) = &outcome.data
        {
            checkouts.entry(checkout.clone()).or_default().named(outcome);
        }
    }
    for entry in &forgotten.entries {
        let told = checkouts.entry(entry.checkout.clone()).or_default();
        told.at = told.at.max(Some(entry.time));
    }
    checkouts
}

impl Told<'_> {
    /// Takes note of the version that an outcome in the checkout's own name has in its cause.
    fn named(&mut self, outcome: &Outcome<impl OutcomeData>) {
        self.at = self.at.max(Some(outcome.time));
        if outcome.causation_source.as_str() == buying::SOURCE {
            let last = outcome.causation_id.as_str().rsplit('/').next();
            let version = last.and_then(|last| last.parse().ok()).unwrap_or_default();
            self.version = self.version.max(version);
        }
    }
}
