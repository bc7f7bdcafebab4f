//! Written next.

/// A reading of the engine.
#[derive(Clone, Debug, Default)]
pub struct Engine {
    pub unfinished: u64,
    pub reading: u64,
}
