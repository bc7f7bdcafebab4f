//! Whether an id was used before for another content: what a handler says of an event whose record has the content of its own.

use std::collections::HashMap;

use super::change_history::Key;
use super::identity::{Cause, Digest};
use super::terms::CLOCK_SKEW;

/// The ids that are said to be reused, over all streams, with everything that bears them.
#[derive(Debug, Default)]
pub(super) struct Uses {
    of: HashMap<Cause, Vec<Use>>,
    /// True if the first record of an id may lie where nobody can look, as where a public topic has lost its beginning.
    pub(super) beginning_is_unseen: bool,
}

/// A key, with the public topic of its stream.
pub(super) type KeyOfTopic = (&'static str, Option<Key>);

/// Something that bears an id.
#[derive(Debug, Clone, Copy)]
pub(super) enum Use {
    /// An event took effect, at this time in milliseconds.
    Effect {
        at: i64,
        key: KeyOfTopic,
        /// None once the idempotency record was swept.
        content: Option<Digest>,
    },
    /// A record, written at this time in milliseconds.
    Record {
        at: i64,
        content: Digest,
        /// True if its idempotency record may be swept.
        is_aged: bool,
    },
}

impl Uses {
    /// Asks for everything that bears the id of `cause`.
    pub(super) fn ask(&mut self, cause: Cause) {
        self.of.entry(cause).or_default();
    }

    pub(super) fn asked(&self) -> Vec<Cause> {
        self.of.keys().copied().collect()
    }

    /// Takes note of something that bears an id, if it was asked for.
    pub(super) fn note(&mut self, cause: Cause, found: Use) {
        if let Some(uses) = self.of.get_mut(&cause) {
            uses.push(found);
        }
    }

    /// True if the id of `cause` can have been used for another content than `content` before a dead letter was written, `by` in
    /// milliseconds, about a record under `key`.
    pub(super) fn had_another(&self, cause: Cause, content: Digest, key: KeyOfTopic, by: i64) -> bool {
        let by = by.saturating_add(CLOCK_SKEW);
        let uses = self.of.get(&cause).map_or(&[][..], Vec::as_slice);
        let another_record = |only_aged: bool| {
            uses.iter().any(|other| match other {
                Use::Record {
                    at,
                    content: other,
                    is_aged,
                } => *at <= by && *other != content && (*is_aged || !only_aged),
                Use::Effect { .. } => false,
            })
        };
        let mut took_effect = false;
        for effect in uses {
            let Use::Effect {
                at,
                key: of,
                content: first,
            } = effect
            else {
                continue;
            };
            if *at > by {
                continue;
            }
            took_effect = true;
            let another = match first {
                Some(first) => *first != content,
                None => *of != key || another_record(false) || self.beginning_is_unseen,
            };
            if another {
                return true;
            }
        }
        // An effect without an outcome leaves no trace but its record, once its idempotency record was swept.
        !took_effect && (another_record(true) || self.beginning_is_unseen)
    }
}
