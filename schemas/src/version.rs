//! Versions of wire types. Every type and version that was ever published has a module of its own and stays readable:
//! the version is read as it was meant and turned into the current form.

use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// The data of one type in one version.
pub(crate) trait Wire: Serialize + DeserializeOwned + JsonSchema {
    /// The current form, which the rest of the product uses.
    type Current: From<Self>;
    /// The CloudEvents `type`, with its version.
    const TYPE: &'static str;
}

/// The reader of one version, a line of the table of all versions. Public in a private module: traits of the contract name
/// it, and no other crate can.
pub struct Version<T> {
    pub(crate) name: &'static str,
    pub(crate) read: fn(&str) -> Result<Read<T>, String>,
    /// The schema of the data.
    pub(crate) schema: fn(SchemaGenerator) -> Schema,
}

/// Data that was read.
pub(crate) struct Read<T> {
    pub(crate) current: T,
    /// The data as it was sent, in canonical JSON (RFC 8785).
    pub(crate) canonical: Box<RawValue>,
}

impl<T> Version<T> {
    pub(crate) const fn of<W: Wire<Current = T>>() -> Self {
        Self {
            name: W::TYPE,
            read: read::<W>,
            schema: SchemaGenerator::into_root_schema_for::<W>,
        }
    }
}

/// Data in canonical JSON (RFC 8785).
fn canonical<W: Wire>(wire: &W) -> Box<RawValue> {
    serde_json_canonicalizer::to_string(wire)
        .and_then(RawValue::from_string)
        .expect("wire types have text keys and whole numbers, which JSON can always write")
}

/// A member that is an object, for `deserialize_with`.
pub(crate) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Object::deserialize(from).map(|Object(value)| value)
}

/// Data of any type, to be written.
pub(crate) trait Written {
    /// The CloudEvents `type`.
    fn type_name(&self) -> &'static str;

    /// The data in canonical JSON (RFC 8785).
    fn canonical(&self) -> Box<RawValue>;

    fn value(&self) -> Value;
}

impl<W: Wire> Written for W {
    fn type_name(&self) -> &'static str {
        W::TYPE
    }

    fn canonical(&self) -> Box<RawValue> {
        canonical(self)
    }

    fn value(&self) -> Value {
        serde_json::to_value(self).expect("wire types have text keys and whole numbers, which JSON can always write")
    }
}

/// Declares the data of types in one version. `$current` is the enum with a variant for each.
macro_rules! wire {
    ($current:ident; $($(#[$doc:meta])* $name:ident $type:literal { $($(#[$attribute:meta])* $field:ident: $kind:ty),* $(,)? };)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$attribute])* pub $field: $kind),* }

        impl crate::version::Wire for $name {
            type Current = super::$current;
            const TYPE: &'static str = $type;
        }
    )+};
}
pub(crate) use wire;

/// Declares an enum with a variant for each type, which holds its data in the newest version. Older versions that can still be
/// read stand behind `earlier`; each has a `From` of its own.
macro_rules! newest {
    ($(#[$doc:meta])* $name:ident { $($variant:ident($data:ty),)+ } $(earlier { $($earlier:ty),+ })?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name { $($variant($data)),+ }

        $(impl From<$data> for $name {
            fn from(data: $data) -> Self {
                Self::$variant(data)
            }
        })+

        impl $name {
            const VERSIONS: &'static [crate::version::Version<Self>] = &[
                $(crate::version::Version::of::<$data>(),)+
                $($(crate::version::Version::of::<$earlier>(),)+)?
            ];

            fn written(&self) -> &dyn crate::version::Written {
                match self {
                    $(Self::$variant(data) => data,)+
                }
            }
        }
    };
}
pub(crate) use newest;

fn read<W: Wire>(data: &str) -> Result<Read<W::Current>, String> {
    match serde_json::from_str(data) {
        Ok(Object::<W>(wire)) => Ok(Read {
            canonical: canonical(&wire),
            current: wire.into(),
        }),
        Err(_) => Err(explain::<W>(data)),
    }
}

/// Reads again, more slowly, to find the place of the fault.
fn explain<W: Wire>(data: &str) -> String {
    let from = &mut serde_json::Deserializer::from_str(data);
    match serde_path_to_error::deserialize::<_, Object<W>>(from) {
        Ok(_) => "data: more than one JSON value".to_owned(),
        Err(error) => {
            let path = error.path().to_string();
            let place = if path == "." {
                "data".to_owned()
            } else {
                format!("data.{path}")
            };
            format!("{place}: {}", without_value(&error.into_inner().to_string()))
        }
    }
}

/// A message of serde without the value that it quotes and without the position, which means nothing to the sender.
fn without_value(message: &str) -> String {
    let message = message.rsplit_once(" at line ").map_or(message, |(message, _)| message);
    match (
        message.starts_with("invalid "),
        message.split_once(": "),
        message.rsplit_once(", expected "),
    ) {
        (true, Some((_, found)), Some((_, expected))) => {
            let kind = found.split(['"', '`', ',']).next().unwrap_or_default().trim();
            format!("is {kind}; expected {expected}")
        }
        _ => message.to_owned(),
    }
}

/// A JSON object as `T`. Without it a derived struct takes a list too, field by field, which no schema says.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Members(PhantomData))
    }
}

struct Members<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members)).map(Object)
    }
}
