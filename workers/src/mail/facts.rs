//! The values for the templates of mails.

use std::collections::BTreeMap;

use holdfast_schemas::Currency;
use serde::{Deserialize, Serialize};

use super::shown;
use crate::domain::checkout::{Checkout, MOST_TICKETS, State};
use crate::store::mails::{Contents, Kind};

/// The words of a language beside its templates.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Words {
    /// Stands between the whole and the fraction of an amount.
    pub(super) decimal_point: String,
    /// A sentence for each reason why a checkout failed.
    pub(super) failures: BTreeMap<String, String>,
}

/// The values for the templates. Each has one line at most, so that no customer or shop can add paragraphs to a mail; what
/// customers chose is as [`shown`] leaves it, and may be missing.
#[derive(Clone, Serialize)]
pub(super) struct Facts {
    pub(super) name: Option<String>,
    pub(super) order: Option<String>,
    seats: Vec<BoughtSeat>,
    total: String,
    credits: Option<String>,
    /// The part of the price that credits do not pay.
    due: String,
    /// The refund.
    amount: String,
    in_part: bool,
    /// The reason of the failure, as a sentence.
    why: String,
}

#[derive(Clone, Serialize)]
struct BoughtSeat {
    show: String,
    seat: String,
    price: String,
}

impl Facts {
    /// The values of a mail. `amount`: the refund, in minor units.
    pub(super) fn new(kind: Kind, amount: Option<i64>, contents: &Contents, words: &Words) -> Self {
        let checkout = &contents.checkout;
        let money = |amount| money(amount, checkout.currency(), &words.decimal_point);
        let seats = checkout.lines.iter().map(|line| BoughtSeat {
            show: one_line(line.show.as_str()),
            seat: one_line(line.seat.as_ref().map_or(line.ticket.as_str(), |seat| seat.as_str())),
            price: money(line.price.amount()),
        });
        Self {
            name: contents.user.name.as_ref().and_then(shown::name),
            order: shown::order(&checkout.id),
            seats: seats.collect(),
            total: money(checkout.total.amount()),
            credits: checkout.credits.map(|credits| money(credits.amount())),
            due: money(checkout.due()),
            amount: money(amount.unwrap_or_default()),
            in_part: kind == Kind::RefundedInPart,
            why: why(checkout, words),
        }
    }

    /// Values as mails of this kind have them, the most and the fewest, with `mark` in every text that others write.
    pub(super) fn examples(kind: Kind, words: &Words, mark: &str) -> Vec<Self> {
        let filled = |length| mark.repeat(length / mark.len());
        let all = Self {
            name: Some(filled(shown::MOST)),
            order: Some(filled(shown::MOST)),
            seats: vec![
                BoughtSeat {
                    show: filled(255),
                    seat: filled(1_000),
                    price: "45.00 EUR".to_owned(),
                };
                MOST_TICKETS
            ],
            total: "4500.00 EUR".to_owned(),
            credits: Some("500.00 EUR".to_owned()),
            due: "4000.00 EUR".to_owned(),
            amount: "700.00 EUR".to_owned(),
            in_part: kind == Kind::RefundedInPart,
            why: String::new(),
        };
        let fewest = Self {
            name: None,
            order: None,
            seats: all.seats[..1].to_vec(),
            credits: None,
            ..all.clone()
        };
        let mut examples = vec![all, fewest.clone()];
        if kind == Kind::Failed {
            let reasons = words.failures.values().cloned();
            examples.extend(reasons.map(|why| Self { why, ..fewest.clone() }));
        }
        examples
    }
}

fn why(checkout: &Checkout, words: &Words) -> String {
    match &checkout.state {
        State::Failed(failure) => words.failures.get(failure.reason.as_str()).cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

/// An amount in minor units, as it is written: 1234 of EUR is 12.34 EUR, of JPY 1234 JPY, of KWD 1.234 KWD.
fn money(amount: i64, currency: Currency, decimal_point: &str) -> String {
    let digits = usize::from(currency.exponent().unwrap_or(0));
    let code = currency.code();
    if digits == 0 {
        return format!("{amount} {code}");
    }
    let figures = format!("{amount:0>width$}", width = digits + 1);
    let (whole, fraction) = figures.split_at(figures.len() - digits);
    format!("{whole}{decimal_point}{fraction} {code}")
}

/// Line ends and their like become spaces.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if is_plain(c) { c } else { ' ' }).collect()
}

/// False for a character that ends a line or controls something.
pub(super) fn is_plain(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_as_many_decimals_as_its_currency() {
        let written = |amount, code, point| money(amount, Currency::from_code(code).unwrap(), point);
        assert_eq!(written(4_500, "JPY", "."), "4500 JPY");
        assert_eq!(written(4_500, "EUR", "."), "45.00 EUR");
        assert_eq!(written(4_500, "EUR", ","), "45,00 EUR");
        assert_eq!(written(4_500, "KWD", "."), "4.500 KWD");
        assert_eq!(written(5, "EUR", "."), "0.05 EUR");
        assert_eq!(written(0, "KWD", ","), "0,000 KWD");
    }
}
