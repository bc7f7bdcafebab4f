//! The body of an HTTP request, decoded by the handler itself, so that its caller reads what to mend.

use std::convert::Infallible;
use std::marker::PhantomData;

use bytes::Bytes;
use restate_sdk::prelude::HandlerError;
use restate_sdk::serde::{Deserialize, InputMetadata, PayloadMetadata, Serialize};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::caller::answer_caller;

/// A JSON object that should be a `T`. Its schema is in the service's OpenAPI document.
pub(super) struct Body<T> {
    bytes: Bytes,
    expected: PhantomData<fn() -> T>,
}

impl<T: serde::Serialize> Body<T> {
    /// The body of a request from one object to another.
    pub(super) fn of(value: &T) -> Result<Self, HandlerError> {
        Ok(Self {
            bytes: serde_json::to_vec(value)?.into(),
            expected: PhantomData,
        })
    }
}

impl<T: DeserializeOwned> Body<T> {
    /// The value; no body at all counts as an empty object.
    ///
    /// # Errors
    /// Answers the caller with 400 and what is wrong.
    pub(super) fn read(&self) -> Result<T, HandlerError> {
        let bytes: &[u8] = if self.bytes.is_empty() { b"{}" } else { &self.bytes };
        // The derived decoders would accept a list of the fields' values as well.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(answer_caller(400, "body: is no JSON object; send one in UTF-8"));
        }
        let mend = |what: String| answer_caller(400, format!("body: {what}; mend it and send it again"));
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|invalid| mend(invalid.to_string()))?;
        json.end().map_err(|invalid| mend(invalid.to_string()))?;
        Ok(value)
    }
}

impl<T> Deserialize for Body<T> {
    type Error = Infallible;

    fn deserialize(bytes: &mut Bytes) -> Result<Self, Self::Error> {
        Ok(Self {
            bytes: bytes.clone(),
            expected: PhantomData,
        })
    }
}

impl<T> Serialize for Body<T> {
    type Error = Infallible;

    fn serialize(&self) -> Result<Bytes, Self::Error> {
        Ok(self.bytes.clone())
    }
}

impl<T: JsonSchema> PayloadMetadata for Body<T> {
    fn json_schema() -> Option<serde_json::Value> {
        Some(schemars::schema_for!(T).to_value())
    }

    fn input_metadata() -> InputMetadata {
        InputMetadata {
            accept_content_type: "application/json",
            is_required: false,
        }
    }
}
