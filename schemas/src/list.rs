//! Lists in events: bounded, so that one event stays small enough for every part of the path.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::text::Invalid;

/// A list of at most [`Self::MAX`] entries. Rules may allow fewer; more are no event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct List<T>(Vec<T>);

impl<T> List<T> {
    /// The most entries.
    pub const MAX: usize = 1_000;

    /// Fails when there are more than [`Self::MAX`].
    pub fn new(entries: Vec<T>) -> Result<Self, Invalid> {
        match entries.len() <= Self::MAX {
            true => Ok(Self(entries)),
            false => Err(Invalid::new(Self::too_long())),
        }
    }

    fn too_long() -> String {
        format!("must have at most {} entries", Self::MAX)
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> From<List<T>> for Vec<T> {
    fn from(list: List<T>) -> Self {
        list.0
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(Entries(PhantomData))
    }
}

struct Entries<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
    type Value = List<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a list of at most {} entries", List::<T>::MAX)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<List<T>, A::Error> {
        let mut entries = Vec::new();
        while entries.len() < List::<T>::MAX {
            match list.next_element()? {
                Some(entry) => entries.push(entry),
                None => return Ok(List(entries)),
            }
        }
        match list.next_element::<IgnoredAny>()? {
            Some(_) => Err(A::Error::custom(List::<T>::too_long())),
            None => Ok(List(entries)),
        }
    }
}

impl<T: JsonSchema> JsonSchema for List<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("List_of_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "array",
            "items": generator.subschema_for::<T>(),
            "maxItems": Self::MAX,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_at_most_1000_entries() {
        let read = |count: usize| serde_json::from_str::<List<i64>>(&format!("{:?}", vec![7; count]));
        assert_eq!(read(1_000).unwrap().len(), 1_000);
        assert!(read(1_001).unwrap_err().to_string().contains("at most 1000 entries"));
        assert!(List::new(vec![7; 1_001]).is_err());
        assert_eq!(read(0).unwrap().len(), 0);
    }

    #[test]
    fn an_endless_list_is_not_read_to_its_end() {
        let endless = format!("[{}nonsense", "7,".repeat(2_000));
        let error = serde_json::from_str::<List<i64>>(&endless).unwrap_err();
        assert!(error.to_string().contains("at most 1000 entries"), "{error}");
    }
}
