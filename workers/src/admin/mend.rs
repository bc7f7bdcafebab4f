//! A mended dead letter: another value, or other headers, in place of the record's own.
//!
//! The event keeps its id, so that it takes effect once: when its sender mends it too and sends it again, that one is a repeat. But
//! where the id may have been decided already (`id_reused`, `too_old`), it needs one of its own.

use std::path::Path;

use anyhow::{Context, bail};
use holdfast_schemas::DeadLetterReason;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::kafka::dead_letters::Copied;
use crate::printable;

/// What replaces parts of a record.
#[derive(Debug, Clone, Default)]
pub(super) struct Mend {
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

impl Mend {
    /// Reads what the command line says; none if it mends nothing.
    pub(super) fn read(value: Option<&Path>, headers: &[String]) -> anyhow::Result<Option<Self>> {
        let value = value.map(|file| {
            std::fs::read(file).with_context(|| {
                let file = printable::line(file.display().to_string());
                format!("{file} cannot be read")
            })
        });
        let value = value.transpose()?;
        let headers = headers.iter().map(|header| {
            let named = header.split_once('=').filter(|(name, _)| !name.is_empty());
            let (name, value) = named.with_context(|| format!("{header:?} is no header: give NAME=VALUE"))?;
            anyhow::Ok((name.to_owned(), value.as_bytes().to_vec()))
        });
        let headers = headers.collect::<anyhow::Result<Vec<_>>>()?;
        Ok((value.is_some() || !headers.is_empty()).then_some(Self { value, headers }))
    }

    /// Mends a record, and says what changes, without any value.
    pub(super) fn apply(&self, record: Copied, reason: DeadLetterReason) -> anyhow::Result<(Copied, String)> {
        let mut mended = record.clone();
        let mut changes = Vec::new();
        if let Some(value) = &self.value {
            changes.push(format!(
                "value: {} became {}",
                digest(record.value.as_deref()),
                digest(Some(value))
            ));
            mended.value = Some(value.clone());
        }
        for (name, value) in &self.headers {
            changes.push(format!("header {name}"));
            mended.headers.retain(|(other, _)| other != name);
            mended.headers.push((name.clone(), Some(value.clone())));
        }
        check_id(&record, &mended, reason)?;
        Ok((mended, changes.join("; ")))
    }
}

fn check_id(record: &Copied, mended: &Copied, reason: DeadLetterReason) -> anyhow::Result<()> {
    let (before, after) = (identity(record), identity(mended));
    let (Some(before), Some(after)) = (before, after) else {
        return Ok(());
    };
    let may_be_decided = matches!(reason, DeadLetterReason::IdReused | DeadLetterReason::TooOld);
    match (may_be_decided, before == after) {
        (true, true) => bail!(
            "an event with this id may have been decided already ({reason}): give the mended one an id of its own, once you know that it \
             was not"
        ),
        (false, false) => bail!(
            "a mended event keeps its source and id, so that it takes effect once even if its sender sends it again: {:?} of {:?}",
            before.1,
            before.0
        ),
        _ => Ok(()),
    }
}

/// Source and id of a record's event, as far as they can be read: from its headers, or from its value.
fn identity(record: &Copied) -> Option<(String, String)> {
    let header = |name: &str| {
        let (_, value) = record.headers.iter().rev().find(|(header, _)| header == name)?;
        String::from_utf8(value.clone()?).ok()
    };
    if let Some(named) = header("ce_source").zip(header("ce_id")) {
        return Some(named);
    }
    let value: Value = serde_json::from_slice(record.value.as_deref()?).ok()?;
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    text("source").zip(text("id"))
}

/// What tells two values apart: how long they are, and the first of their digests.
fn digest(value: Option<&[u8]>) -> String {
    let value = value.unwrap_or_default();
    let digest = hex::encode(Sha256::digest(value));
    format!("{} bytes (SHA-256 {})", value.len(), &digest[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: &str) -> Copied {
        Copied {
            value: Some(value.as_bytes().to_vec()),
            ..Copied::default()
        }
    }

    fn mend(value: &str) -> Mend {
        Mend {
            value: Some(value.as_bytes().to_vec()),
            headers: Vec::new(),
        }
    }

    #[test]
    fn a_mended_event_keeps_its_id_unless_it_may_have_been_decided() {
        use DeadLetterReason::{IdReused, TooOld, Undecodable};
        let (first, other) = (r#"{"source":"s","id":"1"}"#, r#"{"source":"s","id":"2"}"#);
        for (reason, value, is_taken) in [
            (Undecodable, first, true),
            (Undecodable, other, false),
            (IdReused, first, false),
            (IdReused, other, true),
            (TooOld, first, false),
            // Nobody knows the id of what cannot be read.
            (Undecodable, "{}", true),
        ] {
            let mended = mend(value).apply(record(first), reason);
            assert_eq!(mended.is_ok(), is_taken, "{reason} {value}: {mended:?}");
        }
    }

    #[test]
    fn what_changes_is_said_without_a_value() {
        let mend = Mend {
            headers: vec![("ce_type".to_owned(), b"secret".to_vec())],
            ..mend("ann@example.org")
        };
        let (mended, changes) = mend.apply(record("broken"), DeadLetterReason::Undecodable).unwrap();
        assert_eq!(mended.value.as_deref(), Some(&b"ann@example.org"[..]));
        assert!(
            changes.starts_with("value: 6 bytes (SHA-256 ") && changes.ends_with("; header ce_type"),
            "{changes}"
        );
        assert!(!changes.contains("ann") && !changes.contains("secret"), "{changes}");
    }
}
