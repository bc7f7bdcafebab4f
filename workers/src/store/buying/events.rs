//! The events about checkouts: a request opens one; a report of the payment provider may bring a fact.

use std::collections::HashMap;

use holdfast_schemas::{
    CheckoutId, Event, TicketId, UserEvent, UserId, UserOutcome, UserRefusalReason, events, outcomes,
};
use sqlx::PgConnection;

use super::transition::tell;
use super::{Buying, seats, transaction};
use crate::domain::checkout::{
    Checkout, Fact, Known, Matter, ProviderReport, Reported, Seats, Stock, Transition, Wish, apply, open,
};
use crate::domain::{State as TicketState, Ticket, User};
use crate::error;
use crate::store::commit::{Answer, Stored, Unit, Work};
use crate::store::{Error, checkout_seats, checkouts, disputes, purchases, refunds};
use crate::traces;

/// A piece of a user's work that is about a checkout.
pub struct CheckoutWork<'w> {
    pub matter: Matter<'w>,
    event: &'w Event<UserEvent>,
    work: &'w Work<User>,
}

impl<'w> CheckoutWork<'w> {
    /// None for work that is about no checkout.
    pub fn of(work: &'w Work<User>) -> Option<Self> {
        let (Work::Event(event) | Work::Request(event)) = work else {
            return None;
        };
        let matter = Matter::of(&event.data)?;
        Some(Self { matter, event, work })
    }
}

/// The answers to an event, to be counted once they are committed.
struct Answered {
    event: Answer,
    tickets: Vec<Answer>,
    /// The outcomes of a report that is new.
    told: Vec<UserOutcome>,
}

impl Answered {
    /// Of an event that changed no checkout which was there before.
    fn alone(event: Answer) -> Self {
        let (tickets, told) = (vec![], vec![]);
        Self { event, tickets, told }
    }
}

impl Buying {
    /// Commits one event that is about a checkout. `cart`: the tickets in the user's cart.
    ///
    /// # Errors
    /// The database does not answer, or others change the same rows all the time.
    pub async fn commit(&self, user: &UserId, work: &CheckoutWork<'_>, cart: &[TicketId]) -> Result<Answer, Error> {
        let unit = Unit {
            key: user.clone(),
            work: vec![work.work.clone()],
        };
        let credits = match &work.matter {
            Matter::Requested(requested) if requested.credits.is_some() => self.known_credits(user).await,
            _ => None,
        };
        let committed = transaction(&self.main, async |main: &mut PgConnection| match &work.matter {
            Matter::Requested(requested) => self.open(main, work.event, (requested, credits), &unit, cart).await,
            Matter::Reported(report) => self.hear(main, report, &unit).await,
            Matter::Retried(_) | Matter::Cancelled(_) => self.ask(main, &work.matter, &unit).await,
            Matter::Returned(returned) => self.take_back(main, returned, &unit).await,
        });
        let Answered { event, tickets, told } = committed.await?;
        self.count(std::slice::from_ref(&event), &told);
        self.count(&tickets, &[]);
        Ok(event)
    }

    /// The user's credits; none when the loyalty database does not tell, which keeps nobody from opening a checkout: the sale needs it.
    async fn known_credits(&self, user: &UserId) -> Option<i64> {
        let balance = self.loyalty.as_ref()?.balance(user).await;
        let known = balance.inspect_err(|error| {
            tracing::warn!(user = %user, error = error::chain(error), "credits are looked at when they are spent");
        });
        known.ok()
    }

    /// `credits`: those that the user has, as far as is known.
    async fn open(
        &self,
        main: &mut PgConnection,
        event: &Event<UserEvent>,
        (requested, credits): (&events::CheckoutRequested, Option<i64>),
        unit: &Unit<User>,
        cart: &[TicketId],
    ) -> Result<Answered, Error> {
        let trace = traces::checkout_context(&event.traceparent, &event.source, &event.id);
        let wish = Wish {
            id: &requested.checkout,
            user: &unit.key,
            named: requested.tickets.as_deref(),
            cart,
            credits: requested.credits,
            method: requested.payment_method.as_ref(),
            trace: Some(&trace),
        };
        let opened = match checkouts::lock(main, wish.id).await? {
            // Another event with the same request has opened it already.
            Some(found) if event.has_hash(&found.hash) && wish.is_met_by(&found.checkout) => Ok(Transition::default()),
            Some(_) => Err(UserRefusalReason::CheckoutIdUsed),
            None => self.decide(main, &wish, credits).await?,
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(reason) => return self.refuse(main, unit, reason).await,
        };
        let answer = tell(main, unit, &opened.outcomes, self.admission).await?;
        let is_new = matches!(&answer, Answer::Fresh(reply) if reply.refusal().is_none());
        let (true, Some(checkout)) = (is_new, &opened.next) else {
            return Ok(Answered::alone(answer));
        };
        if !checkouts::insert(main, checkout, event.hash()).await? {
            return Err(Error::Moved);
        }
        let tickets = match opened.seats {
            Seats::HeldUntil(until) => seats::lengthen(main, checkout, until).await?,
            _ => vec![],
        };
        Ok(Answered {
            event: answer,
            tickets,
            told: vec![],
        })
    }

    async fn decide(
        &self,
        main: &mut PgConnection,
        wish: &Wish<'_>,
        credits: Option<i64>,
    ) -> Result<Result<Transition, UserRefusalReason>, Error> {
        let keys: Vec<&str> = wish.tickets().iter().map(TicketId::as_str).collect();
        let mut current = Ticket::read(main, &keys).await?;
        // What waits in quarantine cannot be sold, so it is taken for no hold of this user.
        current.rows.retain(|key, _| !current.quarantined.contains_key(key));
        let shows: Vec<_> = current.rows.values().map(|ticket| ticket.show.as_str()).collect();
        let bought: HashMap<_, _> = match self.terms.show_limit {
            Some(_) => purchases::of(main, wish.user, &shows).await?.into_iter().collect(),
            None => HashMap::new(),
        };
        let holds = current.rows.values().filter_map(|ticket| match &ticket.state {
            TicketState::Held(hold) => Some(hold.id),
            _ => None,
        });
        let holds: Vec<_> = holds.collect();
        let under_way = checkout_seats::under_way(main, &holds).await?;
        let accounts_differ = self.shows.differ(current.rows.values().map(|ticket| &ticket.show));
        let stock = Stock {
            tickets: current.rows,
            bought,
            credits,
            under_way,
            accounts_differ,
        };
        Ok(open(wish, self.terms, &stock, current.now))
    }

    /// Handles a report of the provider. About a payment under way it writes nothing: the driver asks the provider, whatever
    /// arrives here and in whatever order.
    async fn hear(
        &self,
        main: &mut PgConnection,
        report: &ProviderReport<'_>,
        unit: &Unit<User>,
    ) -> Result<Answered, Error> {
        let Some(checkout) = lock(main, report.checkout, unit).await? else {
            return self.refuse(main, unit, UserRefusalReason::UnknownCheckout).await;
        };
        let known = Known {
            frees_seats: self.terms.refund_frees_seats,
            ..known(main, &checkout, report).await?
        };
        let transition = match checkout.hear(report, known) {
            Ok(Some(fact)) => apply(&checkout, fact, (self.now)()),
            Ok(None) => Transition::default(),
            Err(reason) => return self.refuse(main, unit, reason).await,
        };
        self.write_once(main, &checkout, transition, unit).await
    }

    /// Writes what its buyer asks of a checkout. What comes too late, or when it does not fit, changes nothing.
    async fn ask(&self, main: &mut PgConnection, matter: &Matter<'_>, unit: &Unit<User>) -> Result<Answered, Error> {
        let Some(checkout) = lock(main, matter.checkout(), unit).await? else {
            return self.refuse(main, unit, UserRefusalReason::UnknownCheckout).await;
        };
        let fact = match matter {
            Matter::Retried(retried) => Fact::Retried {
                attempt: checkout.attempt + 1,
                method: retried.payment_method.clone(),
            },
            _ => Fact::Cancelled,
        };
        let transition = apply(&checkout, fact, (self.now)());
        self.write_once(main, &checkout, transition, unit).await
    }

    /// Returns an order from the shop's side.
    async fn take_back(
        &self,
        main: &mut PgConnection,
        returned: &events::OrderReturned,
        unit: &Unit<User>,
    ) -> Result<Answered, Error> {
        let Some(checkout) = lock(main, &returned.checkout, unit).await? else {
            return self.refuse(main, unit, UserRefusalReason::UnknownCheckout).await;
        };
        match checkout.hear_of_return(returned, self.terms.refunds) {
            Ok(fact) => {
                let transition = apply(&checkout, fact, (self.now)());
                self.write_once(main, &checkout, transition, unit).await
            }
            Err(reason) => self.refuse(main, unit, reason).await,
        }
    }

    /// Writes what follows from an event, unless the event has come before.
    async fn write_once(
        &self,
        main: &mut PgConnection,
        checkout: &Checkout,
        transition: Transition,
        unit: &Unit<User>,
    ) -> Result<Answered, Error> {
        let answer = tell(main, unit, &transition.outcomes, self.admission).await?;
        if !matches!(answer, Answer::Fresh(_)) {
            return Ok(Answered::alone(answer));
        }
        let written = self.write(main, checkout, &transition).await?;
        Ok(Answered {
            event: answer,
            tickets: written.ok_or(Error::Moved)?,
            told: transition.outcomes,
        })
    }

    async fn refuse(
        &self,
        main: &mut PgConnection,
        unit: &Unit<User>,
        reason: UserRefusalReason,
    ) -> Result<Answered, Error> {
        let told = [outcomes::PaymentRefused { reason }.into()];
        Ok(Answered::alone(tell(main, unit, &told, self.admission).await?))
    }
}

/// What is known of the refunds or the dispute that a report is about.
pub(in crate::store) async fn known(
    main: &mut PgConnection,
    checkout: &Checkout,
    report: &ProviderReport<'_>,
) -> Result<Known, Error> {
    let mut known = Known::default();
    match report.what {
        Reported::Progress(_) | Reported::Captured(_) => {}
        Reported::Refunded(_) => known.refunds = refunds::known(main, checkout, None).await?,
        Reported::RefundChanged { refund, .. } => known.refunds = refunds::known(main, checkout, Some(refund)).await?,
        Reported::Disputed { dispute, .. } => {
            known.dispute = disputes::lock(main, dispute, checkout.currency()).await?;
        }
    }
    Ok(known)
}

/// Locks a checkout of the unit's user; none when the user has no such checkout.
async fn lock(main: &mut PgConnection, id: &CheckoutId, unit: &Unit<User>) -> Result<Option<Checkout>, Error> {
    let found = checkouts::lock(main, id).await?.map(|found| found.checkout);
    Ok(found.filter(|found| found.user == unit.key))
}
