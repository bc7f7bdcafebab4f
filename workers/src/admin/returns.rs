//! Returns from the shop's side, by an operator: of one order, or of all orders of a show that is cancelled.

use std::fmt::Write as _;

use anyhow::{Context, bail};
use futures::StreamExt;
use holdfast_schemas::{
    CheckoutFailure, CheckoutId, Event, EventId, List, Price, ShowId, Source, TicketId, UserEvent, UserRefusalReason,
    events,
};

use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::Desk;
use super::drive::{driver, find};
use super::output::{print, print_json};
use super::settling::operator;
use crate::checkout::{DriveResult, Driver, refunds};
use crate::config::{Return, Settle};
use crate::domain::checkout::{Checkout, Fact, Returning};
use crate::error;
use crate::printable;
use crate::store::buying::CheckoutWork;
use crate::store::{Answer, Work, operator_log, orders, tickets};

/// The `source` of an operator's events.
const SOURCE: &str = "holdfast/admin";

/// Tickets that are taken off sale in one transaction.
const PAGE: usize = 200;

/// Orders that are returned at a time.
const AT_ONCE: usize = 8;

/// What a return comes to.
#[derive(Serialize)]
pub(super) struct Returned {
    dry_run: bool,
    tickets: usize,
    /// Minor units of the currency.
    money: i64,
    currency: String,
    credits: i64,
    resell: bool,
}

impl Returned {
    pub(super) fn text(&self) -> String {
        let Self {
            tickets,
            money,
            currency,
            credits,
            ..
        } = self;
        let done = if self.dry_run { "would be done" } else { "done" };
        let again = if self.resell {
            "for sale again unless withdrawn"
        } else {
            "off sale"
        };
        format!(
            "{done}: {tickets} tickets taken back and {again}, {money} {currency} (minor units) and {credits} credits given back\n"
        )
    }
}

/// Returns an order, or a part of it; says what of it.
pub(super) async fn return_order(desk: &Desk<'_>, wanted: &Return) -> anyhow::Result<Returned> {
    let checkout = find(&desk.pool, &wanted.checkout).await?;
    let tickets = wanted
        .tickets
        .iter()
        .map(|ticket| TicketId::parse(ticket).with_context(|| format!("{ticket:?} is no ticket id")));
    let tickets = tickets.collect::<anyhow::Result<Vec<_>>>()?;
    let refund = wanted.refund.map(|amount| Price::new(amount, checkout.currency()));
    let asked = events::OrderReturned {
        checkout: checkout.id.clone(),
        tickets: match wanted.keep_seats || !tickets.is_empty() {
            true => Some(List::new(tickets)?),
            false => None,
        },
        refund: refund.transpose().context("--refund")?,
        resell: !wanted.off_sale,
    };
    let returned = meaning(&checkout, &asked, wanted.settle.dry_run)?;
    if wanted.settle.dry_run {
        return Ok(returned);
    }
    let driver = driver(desk)?;
    let id = match &wanted.id {
        Some(id) => id.clone(),
        None => (desk.new_id)().to_string(),
    };
    let operator = operator(&wanted.settle);
    let details = format!("the return {id}; {}", returned.text().trim_end());
    operator_log::note(
        &desk.pool,
        "checkout return",
        checkout.id.as_str(),
        operator,
        Some(&details),
    )
    .await?;
    commit(&driver, &checkout, asked, &format!("{}/{id}", checkout.id)).await?;
    match driver
        .drive(&checkout.id, true)
        .await
        .context("it is decided, and is carried out later")?
    {
        DriveResult::Stuck => {
            bail!("it is decided, but the checkout is stuck: `admin checkout settle` once that is mended")
        }
        DriveResult::Ended | DriveResult::Waits(_) => Ok(returned),
    }
}

/// What a return would come to.
fn meaning(checkout: &Checkout, asked: &events::OrderReturned, dry_run: bool) -> anyhow::Result<Returned> {
    let Fact::OrderReturned(Returning {
        tickets,
        money,
        credits,
        resell,
    }) = checkout.hear_of_return(asked, refunds).map_err(refusal)?
    else {
        bail!("a return brings no other fact");
    };
    Ok(Returned {
        dry_run,
        tickets: tickets.len(),
        money,
        currency: checkout.currency().code().to_owned(),
        credits,
        resell,
    })
}

fn refusal(reason: UserRefusalReason) -> anyhow::Error {
    anyhow::anyhow!("{} {}", reason.meaning(), reason.mend())
}

/// Commits the event of a return, as if it came from Kafka.
async fn commit(driver: &Driver, checkout: &Checkout, asked: events::OrderReturned, name: &str) -> anyhow::Result<()> {
    let (source, id) = (Source::parse(SOURCE)?, event_id(name));
    let data = UserEvent::OrderReturned(asked);
    let event = Event::new(source, id, (driver.now)(), None, checkout.user.clone(), data);
    let work = Work::Request(event);
    let work = CheckoutWork::of(&work).context("a return is about a checkout")?;
    match driver.buying.commit(&checkout.user, &work, &[]).await? {
        Answer::Fresh(reply) | Answer::Repeat(reply) => match reply.refusal() {
            Some(reason) => bail!("refused: {reason}"),
            None => Ok(()),
        },
        other => bail!("the return was answered by {other:?}: another one with this id has other contents"),
    }
}

/// The id of the event of a return, the same with each run: the return's name, or a UUID derived from it where the name is too long. It
/// begins with the id of its checkout, which may be as long as an event's.
fn event_id(name: &str) -> EventId {
    let derived = || Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string();
    EventId::parse(name).unwrap_or_else(|_| EventId::parse(&derived()).expect("a UUID is short"))
}

/// What a run over the orders of a show came to.
#[derive(Default, Serialize)]
struct Tally {
    show: String,
    tickets: usize,
    returned: usize,
    given_up: usize,
    at_the_bank: Vec<CheckoutId>,
    left: Vec<LeftOrder>,
}

/// An order that was not returned, and why.
#[derive(Serialize)]
struct LeftOrder {
    checkout: CheckoutId,
    why: String,
}

/// Cancels a show: no ticket of it is sold any more, and what was sold is taken back.
pub(super) async fn cancel_show(desk: &Desk<'_>, show: &str, refund: bool, settle: &Settle) -> anyhow::Result<()> {
    let show = ShowId::parse(show).with_context(|| format!("{show:?} is no show's id"))?;
    let pool = &desk.pool;
    if settle.dry_run {
        let (tickets, orders) = (
            tickets::for_sale(pool, &show).await?,
            orders::standing(pool, &show).await?,
        );
        let (tickets, orders) = (tickets.len(), orders.len());
        return match settle.json {
            true => {
                print_json(&json!({ "dry_run": true, "show": show.as_str(), "tickets": tickets, "orders": orders }))
            }
            false => print(&format!(
                "would be done: {tickets} tickets taken off sale, {orders} orders returned or given up\n"
            )),
        };
    }
    let driver = driver(desk)?;
    let how = (!refund).then_some("--no-refund");
    operator_log::note(pool, "show cancel", show.as_str(), operator(settle), how).await?;
    let mut tally = Tally {
        show: show.to_string(),
        ..Tally::default()
    };
    while go_on(&driver, &show, refund, settle.json, &mut tally).await? {}
    match settle.json {
        true => print_json(&tally)?,
        false => print(&tally.text()?)?,
    }
    match tally.left.len() {
        0 => Ok(()),
        left => bail!("{left} orders are left: mend what is said of each, then run the command again"),
    }
}

/// Takes off sale and back what there is at this moment. False once nothing is left but what waits for the bank or could not be taken back.
async fn go_on(
    driver: &Driver,
    show: &ShowId,
    refund: bool,
    is_quiet: bool,
    tally: &mut Tally,
) -> anyhow::Result<bool> {
    let say = |text: String| if is_quiet { Ok(()) } else { print(&text) };
    let pool = &driver.buying.main;
    // First the tickets, so that no order comes to those that are to be returned. A refund by hand may free others meanwhile.
    let for_sale = tickets::for_sale(pool, show).await?;
    for page in for_sale.chunks(PAGE) {
        driver.buying.call_off(show, page).await?;
        tally.tickets += page.len();
        say(format!("{} tickets taken off sale\n", tally.tickets))?;
    }
    let mut orders = orders::standing(pool, show).await?;
    orders.retain(|id| !tally.at_the_bank.contains(id) && !tally.left.iter().any(|left| left.checkout == *id));
    if for_sale.is_empty() && orders.is_empty() {
        return Ok(false);
    }
    let all = orders.len();
    let orders = futures::stream::iter(orders).map(async |id| {
        let ended = take_back(driver, show, &id, refund).await;
        (id, ended)
    });
    let mut orders = orders.buffer_unordered(AT_ONCE);
    let mut done = 0;
    while let Some((checkout, ended)) = orders.next().await {
        done += 1;
        match ended {
            Ok(TakenBack::Returned) => tally.returned += 1,
            Ok(TakenBack::GivenUp) => tally.given_up += 1,
            Ok(TakenBack::AtTheBank) => tally.at_the_bank.push(checkout),
            Err(error) => {
                let why = error::chain(error.as_ref()).to_string();
                tally.left.push(LeftOrder { checkout, why });
            }
        }
        if done % 100 == 0 || done == all {
            say(format!("{done} of {all} orders\n"))?;
        }
    }
    Ok(true)
}

impl Tally {
    fn text(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        writeln!(
            text,
            "{}: {} tickets taken off sale, {} orders returned, {} checkouts given up",
            printable::line(&self.show),
            self.tickets,
            self.returned,
            self.given_up + self.at_the_bank.len()
        )?;
        for checkout in &self.at_the_bank {
            let checkout = printable::line(checkout.as_str());
            writeln!(text, "given back once the bank has decided, if it pays: {checkout}")?;
        }
        for LeftOrder { checkout, why } in &self.left {
            let (checkout, why) = (printable::line(checkout.as_str()), printable::line(why));
            writeln!(text, "left: {checkout} {why}")?;
        }
        Ok(text)
    }
}

/// What the cancellation of a show came to for an order.
enum TakenBack {
    Returned,
    GivenUp,
    /// Given up, and its seats are free; the bank is still working on its payment.
    AtTheBank,
}

/// Returns the tickets of the show of an order, or gives up a checkout under way.
async fn take_back(driver: &Driver, show: &ShowId, id: &CheckoutId, refund: bool) -> anyhow::Result<TakenBack> {
    loop {
        let checkout = find(&driver.buying.main, id.as_str()).await?;
        if !checkout.state.has_ended() {
            driver.give_up(id, CheckoutFailure::Settled).await?;
            match driven(driver, id).await? {
                DriveResult::Waits(_) => return Ok(TakenBack::AtTheBank),
                _ => continue,
            }
        }
        let of_show = checkout
            .lines
            .iter()
            .filter(|line| line.show == *show && !line.returned);
        let tickets: Vec<_> = of_show.map(|line| line.ticket.clone()).collect();
        if tickets.is_empty() {
            // Returned before, but not all of it is given back yet.
            driven(driver, id).await?;
            return Ok(TakenBack::Returned);
        }
        let asked = events::OrderReturned {
            checkout: id.clone(),
            tickets: Some(List::new(tickets)?),
            refund: match refund {
                true => None,
                false => Some(Price::new(0, checkout.currency())?),
            },
            resell: false,
        };
        match checkout.hear_of_return(&asked, refunds) {
            // It has failed, or was refunded by hand meanwhile.
            Err(UserRefusalReason::NotCompleted | UserRefusalReason::NotInOrder) => return Ok(TakenBack::GivenUp),
            Err(reason) => return Err(refusal(reason)),
            Ok(_) => {
                commit(
                    driver,
                    &checkout,
                    asked,
                    &format!("{id}/cancelled/{}", checkout.version),
                )
                .await?
            }
        }
        driven(driver, id).await?;
        return Ok(TakenBack::Returned);
    }
}

async fn driven(driver: &Driver, id: &CheckoutId) -> anyhow::Result<DriveResult> {
    match driver.drive(id, true).await? {
        DriveResult::Stuck => bail!("it is stuck: look at it (admin checkout show)"),
        driven => Ok(driven),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_has_an_id_that_fits_and_stays_the_same_however_long_its_checkouts_is() {
        let named = |length: usize, version: i64| format!("{}/cancelled/{version}", "c".repeat(length));
        let longest = named(EventId::MAX_BYTES - "/cancelled/3".len(), 3);
        assert_eq!(event_id(&longest).as_str(), longest);
        // As it was derived first: a repeat by a later release is a repeat.
        let derived = "20e9eff8-c14e-5faf-9c84-0fcc1bb228ff";
        assert_eq!(event_id(&named(CheckoutId::MAX_BYTES, 3)).as_str(), derived);
        assert_ne!(event_id(&named(CheckoutId::MAX_BYTES, 4)).as_str(), derived);
    }
}
