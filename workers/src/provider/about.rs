//! What the provider is told of a payment besides its amount, by the settings of its shows.

use holdfast_schemas::ShowId;

use super::{Call, Error};
use crate::config::{ApplicationFee, ProviderShows, ShowPayments};

/// Whose money a payment is, and how it is named. A payment for several shows has what they have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About<'a> {
    /// The connected account in whose name the customer is charged.
    pub on_behalf_of: Option<&'a str>,
    /// The connected account that gets the money.
    pub destination: Option<&'a str>,
    /// What is kept of that, in minor units.
    pub fee: Option<i64>,
    pub statement_suffix: Option<&'a str>,
    pub description: Option<&'a str>,
}

impl<'a> About<'a> {
    pub(super) fn of(shows: &'a ProviderShows, tickets: &[(&ShowId, i64)], due: i64) -> Result<Self, Error> {
        if shows.differ(tickets.iter().map(|(show, _)| *show)) {
            return Err(Error::Refused {
                call: Call::Create,
                message: "the money for these shows goes to different accounts (--provider-shows)".to_owned(),
            });
        }
        let common = |word: fn(&'a ShowPayments) -> Option<&'a str>| {
            let mut words = tickets.iter().map(|(show, _)| shows.of(show).and_then(word));
            let first = words.next().flatten();
            first.filter(|_| words.all(|other| other == first))
        };
        let fee = |(show, price): &(&ShowId, i64)| {
            let fee: Option<ApplicationFee> = shows.of(show)?.application_fee;
            Some(fee?.of(*price))
        };
        let fees: Vec<i64> = tickets.iter().filter_map(fee).collect();
        Ok(Self {
            on_behalf_of: common(|show| show.on_behalf_of.as_deref()),
            destination: common(|show| show.transfer_destination.as_deref()),
            // Credits may pay the most of it.
            fee: (!fees.is_empty()).then(|| fees.iter().sum::<i64>().min(due)),
            statement_suffix: common(|show| show.statement_descriptor_suffix.as_deref()),
            description: common(|show| show.description.as_deref()),
        })
    }

    /// The parameters of the payment's creation.
    pub(super) fn fields(&self) -> Vec<(&'static str, String)> {
        let words = [
            ("on_behalf_of", self.on_behalf_of),
            ("transfer_data[destination]", self.destination),
            ("statement_descriptor_suffix", self.statement_suffix),
            ("description", self.description),
        ];
        let words = words
            .into_iter()
            .filter_map(|(name, word)| Some((name, word?.to_owned())));
        let fee = self.fee.map(|fee| ("application_fee_amount", fee.to_string()));
        words.chain(fee).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_payment_has_what_its_shows_have_in_common_and_the_fees_of_all_tickets() {
        let shows = json!({
            "hamlet": {
                "on_behalf_of": "acct_1", "transfer_destination": "acct_1", "application_fee": { "basis_points": 250 },
                "statement_descriptor_suffix": "THEATRE", "description": "Hamlet",
            },
            "lear": {
                "on_behalf_of": "acct_1", "transfer_destination": "acct_1", "application_fee": { "amount": 70 },
                "statement_descriptor_suffix": "THEATRE", "description": "Lear",
            },
            "else": { "transfer_destination": "acct_2" },
        });
        let shows = ProviderShows::parse(&shows.to_string()).unwrap();
        let [hamlet, lear, other, plain] = ["hamlet", "lear", "else", "plain"].map(|id| ShowId::parse(id).unwrap());
        let both = About::of(&shows, &[(&hamlet, 4_599), (&lear, 3_000), (&lear, 3_000)], 10_599).unwrap();
        assert_eq!(both.fee, Some(114 + 70 + 70));
        assert_eq!((both.destination, both.on_behalf_of), (Some("acct_1"), Some("acct_1")));
        assert_eq!((both.statement_suffix, both.description), (Some("THEATRE"), None));
        let one = About::of(&shows, &[(&hamlet, 4_599)], 50).unwrap();
        assert_eq!((one.fee, one.description), (Some(50), Some("Hamlet")));
        let fields = one.fields();
        for field in [
            ("on_behalf_of", "acct_1"),
            ("transfer_data[destination]", "acct_1"),
            ("application_fee_amount", "50"),
            ("statement_descriptor_suffix", "THEATRE"),
            ("description", "Hamlet"),
        ] {
            assert!(fields.contains(&(field.0, field.1.to_owned())), "{fields:?}");
        }
        assert_eq!(About::of(&shows, &[(&plain, 100)], 100).unwrap(), About::default());
        assert!(About::default().fields().is_empty());
        for apart in [[&hamlet, &other], [&lear, &plain]] {
            let about = About::of(&shows, &apart.map(|show| (show, 100)), 200);
            assert!(matches!(about, Err(Error::Refused { .. })), "{about:?}");
        }
    }
}
