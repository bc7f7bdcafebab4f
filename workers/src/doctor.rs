//! `holdfast doctor`: reaches every dependency with the settings given, and says of each part whether it is sound, or what is
//! wrong and how to mend it. It changes nothing, and one part that is wrong hides no other.

mod kafka;
mod others;
mod postgres;
mod report;
mod restate;
mod rights;

use time::OffsetDateTime;

use crate::config::Config;
use crate::config::RoleName::{self, Admin, Gate, Register, Relay, Run, Serve, Verify, Webhook};
use crate::register::Path;
use crate::store::grants::Grantee;
pub use report::{Check, Diagnosis, DoctorReport, Part};

/// Looks at everything that these roles speak to, part by part, where events come by this path.
pub async fn run(config: &Config, roles: &[RoleName], path: Path, clock: fn() -> OffsetDateTime) -> DoctorReport {
    let roles = parts(roles, config);
    let any = |those: &[RoleName]| roles.iter().any(|role| those.contains(role));
    let mut report = DoctorReport::default();
    if any(&[Gate, Relay, Webhook, Register, Verify, Admin]) {
        report.extend(kafka::check(config, &roles, path, clock).await);
    }
    let grantees = [
        (any(&[Serve, Relay]), Grantee::App),
        (any(&[Verify]), Grantee::Verify),
        (any(&[Admin]), Grantee::Admin),
    ];
    let grantees: Vec<_> = grantees
        .into_iter()
        .filter_map(|(is_one, grantee)| is_one.then_some(grantee))
        .collect();
    if !grantees.is_empty() {
        report.extend(postgres::check(&config.database, &grantees, clock).await);
    }
    if any(&[Serve, Admin]) {
        report.extend(postgres::check_loyalty(&config.database, clock).await);
    }
    if any(&[Gate, Serve, Register]) {
        report.extend(restate::check(config, any(&[Register]), path, clock).await);
    }
    if any(&[Serve, Webhook, Verify, Admin]) {
        report.extend(vec![others::provider(&config.provider).await]);
    }
    if any(&[Serve, Admin]) {
        report.extend(vec![others::mail_server(&config.mail).await]);
    }
    report
}

/// The roles that `run` has in one process.
fn parts(roles: &[RoleName], config: &Config) -> Vec<RoleName> {
    let mut parts: Vec<_> = roles.iter().copied().filter(|role| *role != Run).collect();
    if roles.contains(&Run) {
        parts.extend([Gate, Serve, Relay, Register]);
        parts.extend(config.webhook.secret.as_ref().map(|_| Webhook));
    }
    parts
}
