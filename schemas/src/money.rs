//! Money: whole minor units of a currency of ISO 4217. Never a float.

use std::borrow::Cow;

use iso_currency::Currency;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::number;
use crate::text::Invalid;
use crate::version::Object;

/// What a ticket costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    amount: i64,
    currency: Currency,
}

impl Price {
    /// The dearest one, in minor units.
    pub const MAX_AMOUNT: i64 = 1_000_000_000_000;

    /// Fails when `amount` (minor units: cents for EUR, yen for JPY) is not within 0 to [`Self::MAX_AMOUNT`].
    pub fn new(amount: i64, currency: Currency) -> Result<Self, Invalid> {
        match (0..=Self::MAX_AMOUNT).contains(&amount) {
            true => Ok(Self { amount, currency }),
            false => Err(Invalid::new(format!(
                "amount must be 0 to {} minor units",
                Self::MAX_AMOUNT
            ))),
        }
    }

    /// As [`Self::new`], with the currency as its three letters in capitals.
    pub fn parse(amount: i64, currency: &str) -> Result<Self, Invalid> {
        let currency = Currency::from_code(currency).ok_or(Invalid::new(
            "currency must be a code of ISO 4217 in capitals, such as EUR",
        ))?;
        Self::new(amount, currency)
    }

    /// Minor units, 0 to [`Self::MAX_AMOUNT`].
    pub fn amount(&self) -> i64 {
        self.amount
    }

    pub fn currency(&self) -> Currency {
        self.currency
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(deserialize_with = "number::whole")]
    amount: i64,
    currency: String,
}

impl Serialize for Price {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Wire {
            amount: self.amount,
            currency: self.currency.code().into(),
        }
        .serialize(to)
    }
}

impl<'de> Deserialize<'de> for Price {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Object(wire) = Object::<Wire>::deserialize(from)?;
        Self::parse(wire.amount, &wire.currency).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Price {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Price".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "What a ticket costs.",
            "properties": {
                "amount": {
                    "type": "integer",
                    "description": "Minor units: cents for EUR, yen for JPY.",
                    "minimum": 0,
                    "maximum": Self::MAX_AMOUNT,
                },
                "currency": {
                    "type": "string",
                    "description": "A currency of ISO 4217, such as EUR.",
                    "pattern": "^[A-Z]{3}$",
                },
            },
            "required": ["amount", "currency"],
            "additionalProperties": false,
        })
    }
}

/// An amount of a user's credits, each worth one minor unit of the currency that the installation chose. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Credits(i64);

impl Credits {
    /// The largest amount that one event may name.
    pub const MAX: i64 = 1_000_000_000_000;

    /// Fails when `amount` is not within 1 to [`Self::MAX`].
    pub fn new(amount: i64) -> Result<Self, Invalid> {
        match (1..=Self::MAX).contains(&amount) {
            true => Ok(Self(amount)),
            false => Err(Invalid::new(format!("must be 1 to {} credits", Self::MAX))),
        }
    }

    pub fn amount(self) -> i64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Credits {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(number::whole(from)?).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Credits {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Credits".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "description": "An amount of credits.", "minimum": 1, "maximum": Self::MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Price, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn a_price_is_0_to_10_to_the_12_minor_units() {
        for amount in ["0", "1000000000000", "1e12"] {
            assert!(
                read(&format!(r#"{{"amount":{amount},"currency":"EUR"}}"#)).is_ok(),
                "{amount}"
            );
        }
        for amount in ["-1", "1000000000001", "99999999999999999999", "1.5", "\"5\"", "null"] {
            assert!(
                read(&format!(r#"{{"amount":{amount},"currency":"EUR"}}"#)).is_err(),
                "{amount}"
            );
        }
    }

    #[test]
    fn a_currency_is_one_of_iso_4217() {
        for code in ["XYZ", "eur", "", "EURO"] {
            assert!(
                read(&format!(r#"{{"amount":1,"currency":"{code}"}}"#)).is_err(),
                "{code}"
            );
        }
    }
}
