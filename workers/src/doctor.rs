//! `holdfast doctor`: reaches every dependency with the settings given, and says of each part whether it is sound, or what is
//! wrong and how to mend it. It changes nothing, and one part that is wrong hides no other.

mod kafka;
mod others;
mod postgres;
mod report;
mod restate;

use time::OffsetDateTime;

use crate::config::Config;
pub use report::{Check, Diagnosis, DoctorReport, Part};

/// Looks at everything, part by part.
pub async fn run(config: &Config, clock: fn() -> OffsetDateTime) -> DoctorReport {
    let mut report = DoctorReport::default();
    report.extend(kafka::check(config, clock).await);
    report.extend(postgres::check(config, clock).await);
    report.extend(restate::check(config, clock).await);
    report.extend(others::check(config).await);
    report
}
