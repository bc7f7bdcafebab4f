//! Orders and sales for an operator: those of a user, or of a show.

use std::fmt::Write as _;

use anyhow::{Context, bail};
use holdfast_schemas::{CheckoutId, ShowId, UserId};
use sqlx::PgPool;
use time::format_description::well_known::Rfc3339;

use super::output::{print, print_json};
use crate::config::{Orders, Sales};
use crate::printable;
use crate::store::orders::{self, ListedOrder, OrderPage, PageRequest};
use crate::store::sales::{self, CurrencySales, ShowSales};

/// Prints a page of orders.
pub(super) async fn list(pool: &PgPool, wanted: &Orders) -> anyhow::Result<()> {
    let user = id(wanted.user.as_deref(), UserId::parse, "user")?;
    let show = id(wanted.show.as_deref(), ShowId::parse, "show")?;
    let before = id(wanted.before.as_deref(), CheckoutId::parse, "checkout")?;
    let page = PageRequest {
        before: before.as_ref(),
        limit: wanted.limit,
    };
    let page = match (&user, &show) {
        (Some(user), show) => orders::of_user(pool, user, show.as_ref(), page).await?,
        (None, Some(show)) => orders::of_show(pool, show, page).await?,
        (None, None) => bail!("whose orders? Give --user or --show"),
    };
    match wanted.json {
        true => print_json(&page),
        false => print(&order_table(&page)?),
    }
}

/// Prints the sales of a show.
pub(super) async fn sales(pool: &PgPool, wanted: &Sales) -> anyhow::Result<()> {
    let show = ShowId::parse(&wanted.show).with_context(|| format!("{:?} is no show's id", wanted.show))?;
    let sales = sales::of(pool, &show).await?;
    match wanted.json {
        true => print_json(&sales),
        false => print(&sales_table(&sales)?),
    }
}

fn id<T, E>(text: Option<&str>, parse: fn(&str) -> Result<T, E>, what: &str) -> anyhow::Result<Option<T>>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let parsed = text.map(|text| parse(text).with_context(|| format!("{text:?} is no {what}'s id")));
    parsed.transpose()
}

fn order_table(page: &OrderPage) -> anyhow::Result<String> {
    let mut text = format!(
        "{:<20} {:<11} {:>12} {:>12} {:>12} {:<4} {:<24} CHECKOUT\n",
        "OPENED", "STATE", "TOTAL", "CREDITS", "REFUNDED", "", "USER"
    );
    for order in &page.orders {
        order_lines(&mut text, order)?;
    }
    writeln!(text, "{} orders; amounts in minor units", page.orders.len())?;
    if let Some(next) = &page.next {
        writeln!(text, "there may be more: --before {}", printable::line(next))?;
    }
    Ok(text)
}

fn order_lines(text: &mut String, order: &ListedOrder) -> anyhow::Result<()> {
    let opened = order.opened_at.replace_nanosecond(0)?.format(&Rfc3339)?;
    let state = if order.stuck { "stuck" } else { &order.state };
    let (user, checkout) = (printable::line(&order.user), printable::line(&order.checkout));
    let ListedOrder {
        total,
        credits,
        refunded,
        currency,
        ..
    } = order;
    writeln!(
        text,
        "{opened:<20} {state:<11} {total:>12} {credits:>12} {refunded:>12} {currency:<4} {user:<24} {checkout}"
    )?;
    for seat in &order.seats {
        let name = seat.seat.as_deref().unwrap_or(&seat.ticket);
        let (show, name, ticket) = (
            printable::line(&seat.show),
            printable::line(name),
            printable::line(&seat.ticket),
        );
        writeln!(text, "    {:>40} {show}, {name} ({ticket})", seat.price)?;
    }
    Ok(())
}

fn sales_table(sales: &ShowSales) -> anyhow::Result<String> {
    let mut text = String::new();
    for (name, value) in [
        ("show", printable::line(&sales.show)),
        ("available", sales.available.to_string()),
        ("held", sales.held.to_string()),
        ("sold", sales.sold.to_string()),
        ("withdrawn", sales.withdrawn.to_string()),
    ] {
        writeln!(text, "{name:<10}{value}")?;
    }
    writeln!(
        text,
        "{:<9} {:>9} {:>15} {:>9} {:>15} {:>15} {:>15}",
        "CURRENCY", "SEATS", "REVENUE", "RETURNED", "AMOUNT", "PART REFUNDED", "OF MIXED"
    )?;
    for of in &sales.currencies {
        let CurrencySales {
            currency,
            seats,
            revenue,
            returned_seats,
            returned,
            refunded_in_part: part,
            refunded_in_part_of_mixed: mixed,
        } = of;
        writeln!(
            text,
            "{currency:<9} {seats:>9} {revenue:>15} {returned_seats:>9} {returned:>15} {part:>15} {mixed:>15}"
        )?;
    }
    writeln!(text, "amounts in minor units")?;
    Ok(text)
}
