//! The entries of the ledger, on the topic `ledger.entries`: one for each movement of money or credits, for whoever keeps the books.

pub(crate) mod v1;

pub use v1::LedgerEntry;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::identity::MovementId;
use crate::moment;
use crate::outcomes::OUTCOME_SOURCE;
use crate::text::{CheckoutId, Invalid};
use crate::version::{Object, Version, newest};

newest! {
    /// What an entry says in its current form, whichever version it came in.
    LedgerData {
        Moved(v1::LedgerEntry),
    }
}

/// One entry, as on its topic. Its `source` is always [`OUTCOME_SOURCE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: MovementId,
    pub checkout: CheckoutId,
    pub time: OffsetDateTime,
    pub data: v1::LedgerEntry,
}

impl Entry {
    /// Every version that can be read.
    pub(crate) const VERSIONS: &'static [Version<LedgerData>] = LedgerData::VERSIONS;

    /// A CloudEvent in structured mode.
    pub fn to_json(&self) -> Vec<u8> {
        let data = LedgerData::from(self.data.clone());
        let envelope = Envelope {
            specversion: "1.0".to_owned(),
            id: self.id,
            source: OUTCOME_SOURCE.to_owned(),
            entry_type: data.written().type_name().to_owned(),
            subject: self.checkout.clone(),
            time: self.time,
            datacontenttype: "application/json".to_owned(),
            data: data.written().canonical(),
        };
        serde_json::to_vec(&envelope).expect("texts, numbers and JSON that was read can be written")
    }

    /// Reads what [`Self::to_json`] of this or an earlier release wrote.
    ///
    /// # Errors
    /// It is no entry of a version known here.
    pub fn from_json(json: &[u8]) -> Result<Self, Invalid> {
        let Object::<Envelope>(envelope) = serde_json::from_slice(json)
            .map_err(|error| Invalid::new(format!("is no entry of the ledger: {error}")))?;
        if envelope.source != OUTCOME_SOURCE {
            return Err(Invalid::new("is no entry of the ledger: source is not holdfast"));
        }
        let version = Self::VERSIONS
            .iter()
            .find(|version| version.name == envelope.entry_type);
        let version = version.ok_or(Invalid::new("is an entry of a type or version not known here"))?;
        let LedgerData::Moved(data) = (version.read)(envelope.data.get()).map_err(Invalid::new)?.current;
        Ok(Self {
            id: envelope.id,
            checkout: envelope.subject,
            time: envelope.time,
            data,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    specversion: String,
    id: MovementId,
    source: String,
    #[serde(rename = "type")]
    entry_type: String,
    subject: CheckoutId,
    #[serde(with = "moment")]
    time: OffsetDateTime,
    datacontenttype: String,
    data: Box<RawValue>,
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;
    use crate::Price;

    #[test]
    fn an_entry_reads_back() {
        let entry = Entry {
            id: MovementId(Uuid::from_u128(7)),
            checkout: "order-1".parse().unwrap(),
            time: datetime!(2030-01-31 19:30:00.123456 UTC),
            data: v1::LedgerEntry {
                kind: "capture".parse().unwrap(),
                to: "provider".parse().unwrap(),
                from: "sales".parse().unwrap(),
                amount: Price::parse(4_500, "EUR").unwrap(),
            },
        };
        assert_eq!(Entry::from_json(&entry.to_json()), Ok(entry));
        assert!(Entry::from_json(b"{}").is_err());
    }
}
