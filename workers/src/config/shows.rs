//! Settings: what the payment provider is told of a show's payments, and whose money they are. A file of JSON, by show.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use holdfast_schemas::ShowId;
use serde::Deserialize;

/// The shows whose payments have something of their own. All others go to the account itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ProviderShows(BTreeMap<ShowId, ShowPayments>);

/// What the payments of a show have of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShowPayments {
    /// The connected account in whose name the customer is charged.
    pub on_behalf_of: Option<String>,
    /// The connected account that gets the money.
    pub transfer_destination: Option<String>,
    /// What the account itself keeps of that, for each ticket.
    pub application_fee: Option<ApplicationFee>,
    /// The end of the line on the customer's statement.
    pub statement_descriptor_suffix: Option<String>,
    /// What the provider's dashboard and receipts say.
    pub description: Option<String>,
}

/// What is kept of a ticket's price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApplicationFee {
    /// Minor units of the price's currency.
    Amount(i64),
    /// Hundredths of a per cent of the price, rounded down.
    BasisPoints(i64),
}

impl ApplicationFee {
    /// The fee for a ticket of this price.
    pub fn of(self, price: i64) -> i64 {
        match self {
            Self::Amount(amount) => amount,
            // A price is at most 10^12.
            Self::BasisPoints(points) => price * points / ALL,
        }
    }
}

/// Basis points of the whole.
const ALL: i64 = 10_000;

const MOST_FEE: i64 = 1_000_000_000;
const SUFFIX: RangeInclusive<usize> = 1..=22;
const DESCRIPTION: RangeInclusive<usize> = 1..=500;

impl ProviderShows {
    /// Reads the file.
    ///
    /// # Errors
    /// The words for an operator: what is wrong with which show.
    pub(super) fn read(file: &str) -> Result<Self, String> {
        let text = fs::read_to_string(Path::new(file)).map_err(|error| error.to_string())?;
        Self::parse(&text)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let shows: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for (show, payments) in &shows.0 {
            payments.check().map_err(|wrong| format!("show {show}: {wrong}"))?;
        }
        Ok(shows)
    }

    /// What the payments of a show have of their own, if they have anything.
    pub fn of(&self, show: &ShowId) -> Option<&ShowPayments> {
        self.0.get(show)
    }

    /// True if the money for these shows goes to different accounts, so that one payment cannot be for all of them.
    pub fn differ<'s>(&self, shows: impl IntoIterator<Item = &'s ShowId>) -> bool {
        let mut accounts = shows.into_iter().map(|show| self.of(show).map(ShowPayments::accounts));
        let first = accounts.next().flatten().unwrap_or_default();
        accounts.any(|other| other.unwrap_or_default() != first)
    }
}

impl ShowPayments {
    /// In whose name the customer is charged, and who gets the money.
    pub fn accounts(&self) -> (Option<&str>, Option<&str>) {
        (self.on_behalf_of.as_deref(), self.transfer_destination.as_deref())
    }

    fn check(&self) -> Result<(), &'static str> {
        let is_account = |id: &Option<String>| {
            (id.as_deref()).is_none_or(|id| {
                id.strip_prefix("acct_")
                    .is_some_and(|rest| !rest.is_empty() && super::is_a_word(rest))
            })
        };
        if !is_account(&self.on_behalf_of) || !is_account(&self.transfer_destination) {
            return Err("on_behalf_of and transfer_destination are ids of connected accounts: acct_...");
        }
        match self.application_fee {
            Some(_) if self.transfer_destination.is_none() => {
                return Err("application_fee is kept of what is transferred: give transfer_destination too");
            }
            Some(ApplicationFee::Amount(amount)) if !(0..=MOST_FEE).contains(&amount) => {
                return Err("application_fee: give an amount of minor units, from 0 on");
            }
            Some(ApplicationFee::BasisPoints(points)) if !(0..=ALL).contains(&points) => {
                return Err("application_fee: give 0 to 10000 basis_points");
            }
            _ => {}
        }
        let fits = |suffix: &str| {
            let allowed = |byte: u8| (b' '..=b'~').contains(&byte) && !br#"<>\'"*"#.contains(&byte);
            SUFFIX.contains(&suffix.len())
                && suffix.bytes().all(allowed)
                && suffix.bytes().any(|byte| byte.is_ascii_alphabetic())
        };
        if !self.statement_descriptor_suffix.as_deref().is_none_or(fits) {
            return Err(
                "statement_descriptor_suffix: give 1 to 22 letters, digits and signs of ASCII, a letter among them, none of < > \\ ' \" *",
            );
        }
        if (self.description.as_deref()).is_some_and(|text| !DESCRIPTION.contains(&text.chars().count())) {
            return Err("description: give 1 to 500 characters");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn show(id: &str) -> ShowId {
        ShowId::parse(id).unwrap()
    }

    fn read(shows: &Value) -> Result<ProviderShows, String> {
        ProviderShows::parse(&shows.to_string())
    }

    #[test]
    fn each_wrong_word_about_a_show_is_named() {
        let whole = json!({
            "on_behalf_of": "acct_1", "transfer_destination": "acct_2", "application_fee": { "basis_points": 250 },
            "statement_descriptor_suffix": "HAMLET", "description": "Hamlet, 31 January",
        });
        let shows = read(&json!({ "hamlet": whole, "lear": {} })).unwrap();
        assert_eq!(
            shows.of(&show("hamlet")).unwrap().accounts(),
            (Some("acct_1"), Some("acct_2"))
        );
        assert!(shows.of(&show("othello")).is_none());
        for (name, value, named) in [
            ("on_behalf_of", json!("1"), "acct_"),
            ("transfer_destination", json!("acct_"), "acct_"),
            ("application_fee", json!({ "amount": 100 }), "transfer_destination"),
            ("statement_descriptor_suffix", json!("4711"), "a letter"),
            ("statement_descriptor_suffix", json!("HAMLET*"), "a letter"),
            ("statement_descriptor_suffix", json!("H".repeat(23)), "1 to 22"),
            ("description", json!(""), "1 to 500"),
            ("tariff", json!(1), "unknown field"),
            ("application_fee", json!(5), "application_fee"),
        ] {
            let wrong = read(&json!({ "hamlet": { name: value } })).unwrap_err();
            let is_named = wrong.contains(named) || wrong.contains("expected");
            assert!(is_named, "{name}: {wrong}");
        }
        for fee in [json!({ "amount": -1 }), json!({ "basis_points": 10_001 })] {
            let wrong = read(&json!({ "hamlet": { "transfer_destination": "acct_2", "application_fee": fee } }));
            assert!(wrong.unwrap_err().starts_with("show hamlet: application_fee"));
        }
        assert!(ProviderShows::read("/nowhere/at/all").is_err());
    }

    #[test]
    fn shows_with_money_for_different_accounts_are_told_apart() {
        let shows = read(&json!({
            "one": { "transfer_destination": "acct_1" }, "too": { "transfer_destination": "acct_1", "description": "Too" },
            "other": { "transfer_destination": "acct_2" }, "named": { "on_behalf_of": "acct_1" }, "plain": { "description": "Plain" },
        }))
        .unwrap();
        let differ = |ids: &[&str]| shows.differ(&ids.iter().map(|id| show(id)).collect::<Vec<_>>());
        assert!(!differ(&[]) && !differ(&["one"]) && !differ(&["one", "too"]) && !differ(&["plain", "nowhere"]));
        assert!(
            differ(&["one", "other"])
                && differ(&["one", "named"])
                && differ(&["plain", "one"])
                && differ(&["one", "nowhere"])
        );
    }
}
