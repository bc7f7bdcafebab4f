//! Settings: holds, carts and checkouts.

use std::time::Duration;

use clap::{Args, ValueEnum};
use holdfast_schemas::{Currency, Source};

use super::Checks;
use crate::domain::checkout::MOST_TICKETS;
use crate::domain::ticket::{HOLD_FOR_SECONDS, HoldTerms};

/// `verify` reports a checkout that neither ends, takes a step nor gets stuck for a day.
const MOST_STUCK_AFTER: Duration = Duration::from_secs(12 * 3_600);

const MOST_CHECKOUT_HOLD: Duration = Duration::from_secs(24 * 3_600);

/// Limits for buyers, and the times after which a checkout needs an operator or the reconciler.
#[derive(Args, Debug, Clone)]
pub struct Checkout {
    /// Length of a hold when the request names none, in whole seconds: 1s to 24h.
    #[arg(long, env = "HOLDFAST_HOLD_FOR", default_value = "15m", value_parser = humantime::parse_duration, global = true)]
    pub hold_for: Duration,
    /// Longest hold that a request may ask for, in whole seconds: 1s to 24h.
    #[arg(long, env = "HOLDFAST_LONGEST_HOLD", default_value = "1h", value_parser = humantime::parse_duration, global = true)]
    pub longest_hold: Duration,
    /// The sources of events, separated by commas, that may say what a ticket costs (`price` of `reservation.requested`): at most its own
    /// price. Without it nobody may.
    #[arg(long, env = "HOLDFAST_PRICE_SOURCES", value_delimiter = ',', value_parser = source, global = true)]
    pub price_sources: Vec<Source>,
    /// Time for which holds last at least from the moment when their tickets are bought: shorter ones are lengthened, each once; at most
    /// 24h, and 0s to lengthen none.
    #[arg(long, env = "HOLDFAST_CHECKOUT_HOLD", default_value = "10m", value_parser = humantime::parse_duration, global = true)]
    pub checkout_hold: Duration,
    /// Most tickets that one user may have in the cart at a time, 1 to 100.
    #[arg(long, env = "HOLDFAST_CART_LIMIT", default_value_t = 100, global = true)]
    pub cart_limit: usize,
    /// Most tickets of one show that one user may buy, over all checkouts; without it there is no limit.
    #[arg(long, env = "HOLDFAST_SHOW_LIMIT", global = true)]
    pub show_limit: Option<i32>,
    /// What becomes of the seats of an order whose whole payment is refunded by hand at the payment provider.
    #[arg(long, env = "HOLDFAST_FULL_REFUND", value_enum, default_value_t = FullRefund::FreesSeats, global = true)]
    pub full_refund: FullRefund,
    /// The currency that credits pay, one minor unit each.
    #[arg(long, env = "HOLDFAST_CREDITS_CURRENCY", default_value = "EUR", value_parser = currency, global = true)]
    pub credits_currency: Currency,
    /// Longest time for which a step of a checkout may fail, as when the payment provider does not tell a payment's state,
    /// before the checkout counts as stuck; at most 12h.
    #[arg(long, env = "HOLDFAST_STUCK_AFTER", default_value = "1h", value_parser = humantime::parse_duration, global = true)]
    pub stuck_after: Duration,
    /// Time without a step, and without a workflow in Restate, after which a checkout counts as abandoned and is undone.
    #[arg(long, env = "HOLDFAST_ABANDONED_AFTER", default_value = "1m", value_parser = humantime::parse_duration, global = true)]
    pub abandoned_after: Duration,
}

/// What a refund in full, made by hand at the payment provider, does to the seats.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullRefund {
    /// They are for sale again.
    FreesSeats,
    /// They stay the buyer's.
    KeepsSeats,
}

impl Checkout {
    /// The lengths of holds, for the rules of tickets.
    pub fn hold_terms(&self) -> HoldTerms {
        let seconds = |length: Duration| i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
        HoldTerms {
            length: seconds(self.hold_for),
            longest: seconds(self.longest_hold),
            price_sources: self.price_sources.clone(),
        }
    }

    pub(super) fn check(&self, checks: &mut Checks) {
        for (length, flag) in [(self.hold_for, "hold-for"), (self.longest_hold, "longest-hold")] {
            checks.require(
                length.subsec_nanos() == 0
                    && i64::try_from(length.as_secs()).is_ok_and(|seconds| HOLD_FOR_SECONDS.contains(&seconds)),
                flag,
                "give whole seconds, 1s to 24h",
            );
        }
        checks.require(
            self.hold_for <= self.longest_hold,
            "longest-hold",
            "give at least --hold-for: that is how long a hold lasts whose request names no length",
        );
        checks.require(
            self.checkout_hold <= MOST_CHECKOUT_HOLD,
            "checkout-hold",
            "give at most 24h: nobody else can buy the tickets meanwhile",
        );
        checks.require(
            (1..=MOST_TICKETS).contains(&self.cart_limit),
            "cart-limit",
            "give 1 to 100: a checkout takes no more",
        );
        checks.require(
            self.show_limit.is_none_or(|limit| limit >= 1),
            "show-limit",
            "give at least 1, or leave it out",
        );
        checks.require(
            self.stuck_after <= MOST_STUCK_AFTER,
            "stuck-after",
            "give at most 12h: after a day, verify takes a checkout that has not gone on for a lost one",
        );
        checks.require(
            self.abandoned_after >= Duration::from_secs(1),
            "abandoned-after",
            "give at least 1s: a shorter one gives up checkouts that are about to be taken further",
        );
    }
}

fn currency(code: &str) -> Result<Currency, String> {
    Currency::from_code(code).ok_or_else(|| "give a code of ISO 4217 in capitals, such as EUR".to_owned())
}

fn source(text: &str) -> Result<Source, String> {
    let source = Source::parse(text).map_err(|invalid| invalid.to_string())?;
    match source.is_reserved() {
        true => Err("is Holdfast's own: whoever asks by HTTP says no price".to_owned()),
        false => Ok(source),
    }
}
