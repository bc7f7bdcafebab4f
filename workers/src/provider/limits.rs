//! The amounts that the provider charges, known before it is asked. The least are those of Stripe's page "Supported currencies", section
//! "Minimum and maximum charge amounts". They hold for the currency in which the account is paid out: where that is another one,
//! Stripe converts, and may decline still (`amount_too_small`). What a currency is not listed with is left to Stripe.

use holdfast_schemas::{Currency, Price};

use super::stripe;

/// The reason why an amount cannot be charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncharged {
    /// The provider charges no less than so many minor units.
    BelowMinimum(i64),
    /// The amount means something else to the provider.
    NotSupported,
}

/// Whether the provider charges this amount.
///
/// # Errors
/// The reason why it never does.
pub fn charges(due: Price) -> Result<(), Uncharged> {
    let least = least(due.currency());
    if due.amount() < least {
        return Err(Uncharged::BelowMinimum(least));
    }
    refunds(due)
}

/// Whether the provider refunds this amount: no amount is too small for it, but it means the same as one that is charged.
///
/// # Errors
/// The reason why it never does.
pub fn refunds(amount: Price) -> Result<(), Uncharged> {
    match stripe::takes(amount.currency(), amount.amount()) {
        true => Ok(()),
        false => Err(Uncharged::NotSupported),
    }
}

/// The least amount in minor units.
fn least(currency: Currency) -> i64 {
    match currency.code() {
        "GBP" => 30,
        "AUD" | "BRL" | "CAD" | "CHF" | "EUR" | "INR" | "JPY" | "NZD" | "SGD" | "USD" => 50,
        "BGN" => 100,
        "AED" | "MYR" | "PLN" | "RON" => 200,
        "DKK" => 250,
        "NOK" | "SEK" => 300,
        "HKD" => 400,
        "MXN" | "THB" => 1_000,
        "CZK" => 1_500,
        "HUF" => 17_500,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_below_the_least_or_with_another_meaning_is_never_charged() {
        let charged = |amount, currency| charges(Price::parse(amount, currency).unwrap());
        for (least, currency) in [
            (50, "EUR"),
            (50, "USD"),
            (30, "GBP"),
            (50, "JPY"),
            (17_500, "HUF"),
            (1, "ZAR"),
        ] {
            assert_eq!(charged(least, currency), Ok(()));
            assert_eq!(
                charged(least - 1, currency),
                Err(Uncharged::BelowMinimum(least)),
                "{currency}"
            );
        }
        assert_eq!(charged(1_000, "ISK"), Err(Uncharged::NotSupported));
        assert_eq!(charged(1_000, "KWD"), Ok(()));
        assert_eq!(charged(1_001, "KWD"), Err(Uncharged::NotSupported));
        let refunded = |amount, currency| refunds(Price::parse(amount, currency).unwrap());
        assert_eq!(refunded(1, "EUR"), Ok(()));
        assert_eq!(refunded(1_005, "KWD"), Err(Uncharged::NotSupported));
    }
}
