//! The report of `holdfast doctor`.

use std::fmt;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::Part;
use crate::printable;
use crate::register;

/// Every check, in the order in which it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DoctorReport {
    pub checks: Vec<Check>,
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub part: Part,
    pub what: String,
    #[serde(flatten)]
    pub diagnosis: Diagnosis,
    /// Since when it is wrong, where that is known.
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub since: Option<OffsetDateTime>,
    /// The section of the runbook about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<&'static str>,
}

/// The finding about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "diagnosis", rename_all = "snake_case")]
pub enum Diagnosis {
    Sound {
        /// What it is, where that is worth saying.
        is: String,
    },
    Wrong {
        how: String,
        mend: String,
    },
    /// It could not be looked at.
    Unknown {
        why: String,
    },
}

impl DoctorReport {
    pub(super) fn extend(&mut self, checks: Vec<Check>) {
        self.checks.extend(checks);
    }

    /// True if nothing is wrong, as far as could be looked at.
    pub fn is_sound(&self) -> bool {
        let wrong = |check: &Check| matches!(check.diagnosis, Diagnosis::Wrong { .. });
        !self.checks.iter().any(wrong)
    }
}

impl Check {
    pub(super) fn sound(part: Part, what: impl Into<String>, is: impl Into<String>) -> Self {
        let diagnosis = Diagnosis::Sound { is: is.into() };
        Self::new(part, what, diagnosis)
    }

    pub(super) fn wrong(part: Part, what: impl Into<String>, how: impl Into<String>, mend: impl Into<String>) -> Self {
        let (how, mend) = (how.into(), mend.into());
        Self::new(part, what, Diagnosis::Wrong { how, mend })
    }

    pub(super) fn unknown(part: Part, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(part, what, Diagnosis::Unknown { why: why.into() })
    }

    /// What `register` would find.
    pub(super) fn of(part: Part, line: &register::PartReport) -> Self {
        match &line.finding {
            register::Finding::Differs { how, mend } => Self::wrong(part, &line.what, how, mend),
            register::Finding::Unknown { why } => Self::unknown(part, &line.what, why),
            register::Finding::AsWanted
            | register::Finding::Created
            | register::Finding::Changed { .. }
            | register::Finding::Removed
            | register::Finding::Kept { .. } => Self::sound(part, &line.what, "as wanted"),
        }
    }

    fn new(part: Part, what: impl Into<String>, diagnosis: Diagnosis) -> Self {
        Self {
            part,
            what: what.into(),
            diagnosis,
            since: None,
            page: None,
        }
    }

    pub(super) fn since(self, since: Option<OffsetDateTime>) -> Self {
        Self { since, ..self }
    }

    /// The name of the section, as a link has it.
    pub(super) fn page(self, page: &'static str) -> Self {
        Self {
            page: Some(page),
            ..self
        }
    }
}

impl fmt::Display for DoctorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let (part, what) = (check.part, printable::line(&check.what));
            let mut say = |verdict, text: &str| writeln!(f, "{verdict:<8} {part:<9} {what}: {}", printable::line(text));
            match &check.diagnosis {
                Diagnosis::Sound { is } => say("sound", is)?,
                Diagnosis::Unknown { why } => say("unknown", why)?,
                Diagnosis::Wrong { how, mend } => {
                    let since = check
                        .since
                        .and_then(|since| since.replace_nanosecond(0).ok()?.format(&Rfc3339).ok());
                    say(
                        "WRONG",
                        &since.map_or(how.clone(), |since| format!("{how}, since {since}")),
                    )?;
                    writeln!(f, "{:<18} -> {}", "", printable::line(mend))?;
                    if let Some(page) = check.page {
                        writeln!(f, "{:<18}    docs/runbook.md#{page}", "")?;
                    }
                }
            }
        }
        let wrong = |check: &&Check| matches!(check.diagnosis, Diagnosis::Wrong { .. });
        let wrong = self.checks.iter().filter(wrong).count();
        write!(f, "{} looked at, {wrong} wrong", self.checks.len())
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Part::Kafka => "kafka",
            Part::Postgres => "postgres",
            Part::Loyalty => "loyalty",
            Part::Restate => "restate",
            Part::Provider => "provider",
            Part::Mail => "mail",
            Part::Disks => "disks",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_its_mend_and_on_one_line_each() {
        let mut report = DoctorReport::default();
        report.extend(vec![Check::sound(Part::Kafka, "the brokers", "1 answers")]);
        assert!(report.is_sound());
        report.extend(vec![Check::unknown(Part::Restate, "the handlers", "not reached")]);
        assert!(report.is_sound());
        let away = Check::wrong(Part::Mail, "the server", "it\nis away", "start it");
        report.extend(vec![
            away.since(Some(OffsetDateTime::UNIX_EPOCH)).page("mails-do-not-go-out"),
        ]);
        assert!(!report.is_sound());
        assert_eq!(
            report.to_string(),
            "sound    kafka     the brokers: 1 answers\n\
             unknown  restate   the handlers: not reached\n\
             WRONG    mail      the server: it\\nis away, since 1970-01-01T00:00:00Z\n                   -> start it\n\
             \x20                     docs/runbook.md#mails-do-not-go-out\n\
             3 looked at, 1 wrong"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][2]["diagnosis"], "wrong");
        assert_eq!(json["checks"][2]["mend"], "start it");
    }
}
