//! What the commands about checkouts have in common: finding one, and driving it as its workflow would.

use std::sync::Arc;

use anyhow::Context;
use holdfast_schemas::CheckoutId;
use sqlx::PgPool;

use super::Desk;
use crate::checkout::Driver;
use crate::domain::checkout::Checkout;
use crate::metrics::Metrics;
use crate::store::credits::Loyalty;
use crate::store::{self, checkouts};

/// A driver of checkouts, as the workflow has one.
pub(super) fn driver(desk: &Desk<'_>) -> anyhow::Result<Driver> {
    let Desk { config, pool, .. } = desk;
    let database = &config.database;
    let other = database.loyalty_url.as_ref().map(|url| store::pool(url, database));
    let loyalty = other
        .transpose()?
        .map(|other| Loyalty::new(pool.clone(), other, database.idempotency_retention));
    Ok(Driver::new(
        config,
        pool,
        loyalty,
        &Arc::new(Metrics::new()?),
        desk.now,
        desk.new_id,
    )?)
}

/// The checkout with this id.
pub(super) async fn find(pool: &PgPool, checkout: &str) -> anyhow::Result<Checkout> {
    let id = CheckoutId::parse(checkout).with_context(|| format!("{checkout:?} is no checkout id"))?;
    let found = checkouts::get(pool, &id).await?;
    found.with_context(|| format!("{checkout:?} was never opened: check the id"))
}
