//! Returns from the shop's side, by an operator: of one order, or of all orders of a show that is cancelled.

use std::io::Write;

use anyhow::{Context, bail};
use futures::StreamExt;
use holdfast_schemas::{
    CheckoutFailure, CheckoutId, Event, EventId, List, Price, ShowId, Source, TicketId, UserEvent, UserRefusalReason,
    events,
};

use super::drive::find;
use crate::checkout::{DriveResult, Driver};
use crate::config::Return;
use crate::domain::checkout::{Checkout, Fact, Returning};
use crate::error;
use crate::printable;
use crate::store::buying::CheckoutWork;
use crate::store::{Answer, Work, orders, tickets};

/// The `source` of an operator's events.
const SOURCE: &str = "holdfast/admin";

/// Tickets that are taken off sale in one transaction.
const PAGE: usize = 200;

/// Orders that are returned at a time.
const AT_ONCE: usize = 8;

/// Returns an order, or a part of it; says what of it.
pub(super) async fn return_order(driver: &Driver, wanted: &Return) -> anyhow::Result<String> {
    let checkout = find(&driver.buying.main, &wanted.checkout).await?;
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
    let told = meaning(&checkout, &asked)?;
    if wanted.dry_run {
        return Ok(format!("would be done: {told}\n"));
    }
    let id = match &wanted.id {
        Some(id) => id.clone(),
        None => (driver.buying.new_id)().to_string(),
    };
    commit(driver, &checkout, asked, &format!("{}/{id}", checkout.id)).await?;
    match driver
        .drive(&checkout.id, true)
        .await
        .context("it is decided, and is carried out later")?
    {
        DriveResult::Stuck => {
            bail!("it is decided, but the checkout is stuck: `admin checkout settle` once that is mended")
        }
        DriveResult::Ended | DriveResult::Waits(_) => Ok(format!("done: {told}\n")),
    }
}

/// What a return comes to, in words.
fn meaning(checkout: &Checkout, asked: &events::OrderReturned) -> anyhow::Result<String> {
    let Fact::OrderReturned(Returning {
        tickets,
        money,
        credits,
        resell,
    }) = checkout.hear_of_return(asked).map_err(refusal)?
    else {
        bail!("a return brings no other fact");
    };
    let (currency, again) = (
        checkout.currency().code(),
        if resell { "for sale again" } else { "off sale" },
    );
    let tickets = tickets.len();
    Ok(format!(
        "{tickets} tickets taken back and {again}, {money} {currency} (minor units) and {credits} credits given back"
    ))
}

fn refusal(reason: UserRefusalReason) -> anyhow::Error {
    anyhow::anyhow!("{} {}", reason.meaning(), reason.mend())
}

/// Commits the event of a return, as if it came from Kafka.
async fn commit(driver: &Driver, checkout: &Checkout, asked: events::OrderReturned, id: &str) -> anyhow::Result<()> {
    let (source, id) = (
        Source::parse(SOURCE)?,
        EventId::parse(id).context("the id of the return")?,
    );
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

/// What a run over the orders of a show came to.
#[derive(Default)]
struct Tally {
    tickets: usize,
    returned: usize,
    given_up: usize,
    left: Vec<(CheckoutId, String)>,
}

/// Cancels a show: no ticket of it is sold any more, and what was sold is taken back.
pub(super) async fn cancel_show(driver: &Driver, show: &str, refund: bool, dry_run: bool) -> anyhow::Result<()> {
    let show = ShowId::parse(show).with_context(|| format!("{show:?} is no show's id"))?;
    let pool = &driver.buying.main;
    let mut out = std::io::stdout();
    if dry_run {
        let (tickets, orders) = (
            tickets::for_sale(pool, &show).await?,
            orders::standing(pool, &show).await?,
        );
        let (tickets, orders) = (tickets.len(), orders.len());
        return Ok(writeln!(
            out,
            "would be done: {tickets} tickets taken off sale, {orders} orders returned or given up"
        )?);
    }
    let mut tally = Tally::default();
    loop {
        // First the tickets, so that no order comes to those that are to be returned. A refund by hand may free others meanwhile.
        let for_sale = tickets::for_sale(pool, &show).await?;
        for page in for_sale.chunks(PAGE) {
            driver.buying.call_off(&show, page).await?;
            tally.tickets += page.len();
            writeln!(out, "{} tickets taken off sale", tally.tickets)?;
        }
        let mut orders = orders::standing(pool, &show).await?;
        orders.retain(|id| !tally.left.iter().any(|(left, _)| left == id));
        if for_sale.is_empty() && orders.is_empty() {
            break;
        }
        let all = orders.len();
        let orders = futures::stream::iter(orders).map(async |id| {
            let ended = take_back(driver, &show, &id, refund).await;
            (id, ended)
        });
        let mut orders = orders.buffer_unordered(AT_ONCE);
        let mut done = 0;
        while let Some((id, ended)) = orders.next().await {
            done += 1;
            match ended {
                Ok(true) => tally.returned += 1,
                Ok(false) => tally.given_up += 1,
                Err(error) => tally.left.push((id, error::chain(error.as_ref()).to_string())),
            }
            if done % 100 == 0 || done == all {
                writeln!(out, "{done} of {all} orders")?;
            }
        }
    }
    writeln!(
        out,
        "{show}: {} tickets taken off sale, {} orders returned, {} checkouts given up",
        tally.tickets, tally.returned, tally.given_up
    )?;
    for (id, why) in &tally.left {
        writeln!(out, "left: {} {}", printable::line(id.as_str()), printable::line(why))?;
    }
    match tally.left.len() {
        0 => Ok(()),
        left => bail!("{left} orders are left: mend what is said of each, then run the command again"),
    }
}

/// Returns the tickets of the show of an order, or gives up a checkout under way. True if there was an order to return.
async fn take_back(driver: &Driver, show: &ShowId, id: &CheckoutId, refund: bool) -> anyhow::Result<bool> {
    loop {
        let checkout = find(&driver.buying.main, id.as_str()).await?;
        if !checkout.state.has_ended() {
            driver.give_up(id, CheckoutFailure::Settled).await?;
            driven(driver, id).await?;
            continue;
        }
        let of_show = checkout
            .lines
            .iter()
            .filter(|line| line.show == *show && !line.returned);
        let tickets: Vec<_> = of_show.map(|line| line.ticket.clone()).collect();
        if tickets.is_empty() {
            // Returned before, but not all of it is given back yet.
            driven(driver, id).await?;
            return Ok(true);
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
        match checkout.hear_of_return(&asked) {
            // It has failed, or was refunded by hand meanwhile.
            Err(UserRefusalReason::NotCompleted | UserRefusalReason::NotInOrder) => return Ok(false),
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
        return Ok(true);
    }
}

async fn driven(driver: &Driver, id: &CheckoutId) -> anyhow::Result<()> {
    match driver.drive(id, true).await? {
        DriveResult::Ended => Ok(()),
        DriveResult::Waits(_) => bail!("it waits for the customer"),
        DriveResult::Stuck => bail!("it is stuck: look at it (admin checkout show)"),
    }
}
