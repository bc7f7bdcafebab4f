//! The report of `register`.

use std::fmt;

/// All findings, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegisterReport {
    lines: Vec<PartReport>,
}

/// The finding about one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartReport {
    pub what: String,
    pub finding: Finding,
}

/// The state of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    AsWanted,
    Created,
    /// It was changed to the wanted state.
    Changed {
        before: String,
    },
    /// It differs from the wanted state and was left alone.
    Differs {
        how: String,
        mend: String,
    },
    /// It is there, and the rest could not be looked at.
    Unknown {
        why: String,
    },
    /// It is of an earlier release, and nothing needed it.
    Removed,
    /// It is of an earlier release, and something still needs it.
    Kept {
        why: String,
    },
}

impl PartReport {
    pub(super) fn new(what: impl Into<String>, finding: Finding) -> Self {
        Self {
            what: what.into(),
            finding,
        }
    }
}

impl Finding {
    /// It is not there, and `register` makes it.
    pub(super) fn missing() -> Self {
        Self::Differs {
            how: "is missing".to_owned(),
            mend: "holdfast register".to_owned(),
        }
    }
}

impl RegisterReport {
    pub(super) fn extend(&mut self, lines: Vec<PartReport>) {
        self.lines.extend(lines);
    }

    pub fn lines(&self) -> &[PartReport] {
        &self.lines
    }

    /// True if a part differs from the wanted state.
    pub fn differs(&self) -> bool {
        self.lines
            .iter()
            .any(|line| matches!(line.finding, Finding::Differs { .. }))
    }
}

impl fmt::Display for RegisterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for PartReport { what, finding } in &self.lines {
            match finding {
                Finding::AsWanted => writeln!(f, "as wanted  {what}")?,
                Finding::Created => writeln!(f, "created    {what}")?,
                Finding::Changed { before } => writeln!(f, "changed    {what}: {before}")?,
                Finding::Differs { how, mend } => writeln!(f, "DIFFERS    {what}: {how}\n           {mend}")?,
                Finding::Unknown { why } => writeln!(f, "unknown    {what}: {why}")?,
                Finding::Removed => writeln!(f, "removed    {what}")?,
                Finding::Kept { why } => writeln!(f, "kept       {what}: {why}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told_with_its_mend() {
        let mut report = RegisterReport::default();
        report.extend(vec![PartReport::new("topic a", Finding::Created)]);
        assert!(!report.differs());
        report.extend(vec![PartReport::new(
            "topic b",
            Finding::Differs {
                how: "has 4 partitions, wanted 8".to_owned(),
                mend: "grow it".to_owned(),
            },
        )]);
        assert!(report.differs());
        assert_eq!(
            report.to_string(),
            "created    topic a\nDIFFERS    topic b: has 4 partitions, wanted 8\n           grow it\n"
        );
    }
}
