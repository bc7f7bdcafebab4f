//! `holdfast doctor`: reaches every dependency with the settings given, and says of each part whether it is sound, or what is
//! wrong and how to mend it. It changes nothing, and one part that is wrong hides no other.

mod disks;
mod kafka;
mod others;
mod postgres;
mod report;
mod restate;
mod rights;
mod standing;

use std::time::Duration;

use time::OffsetDateTime;
use url::Url;

use crate::config::Config;
pub use crate::config::Part;
use crate::config::RoleName::{self, Admin, Gate, Register, Relay, Run, Serve, Verify, Webhook};
use crate::register::Path;
use crate::store::grants::Grantee;
pub use report::{Check, Diagnosis, DoctorReport};

/// What to look at.
pub struct Scope {
    /// Everything that these roles speak to.
    pub roles: Vec<RoleName>,
    /// Of that, only these; all when it names none.
    pub only: Vec<Part>,
    /// A transaction that is open in Postgres for longer is named.
    pub long_open: Duration,
    /// Where the disks are known.
    pub prometheus: Option<Url>,
    /// The path by which events come.
    pub path: Path,
}

/// Looks at it part by part.
pub async fn run(config: &Config, scope: &Scope, clock: fn() -> OffsetDateTime) -> DoctorReport {
    let roles = parts(&scope.roles, config);
    let any = |those: &[RoleName]| roles.iter().any(|role| those.contains(role));
    let asked = |part| scope.only.is_empty() || scope.only.contains(&part);
    let mut report = DoctorReport::default();
    if asked(Part::Kafka) && any(&[Gate, Relay, Webhook, Register, Verify, Admin]) {
        report.extend(kafka::check(config, &roles, scope.path, clock).await);
        if roles.contains(&Relay) {
            report.extend(vec![standing::relay(config).await]);
        }
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
    if asked(Part::Postgres) && !grantees.is_empty() {
        report.extend(postgres::check(&config.database, &grantees, scope.long_open, clock).await);
    }
    if asked(Part::Loyalty) && any(&[Serve, Admin]) {
        report.extend(postgres::check_loyalty(&config.database, clock).await);
    }
    if asked(Part::Restate) && any(&[Gate, Serve, Register]) {
        report.extend(restate::check(config, any(&[Register]), scope.path, clock).await);
    }
    if asked(Part::Provider) && any(&[Serve, Webhook, Verify, Admin]) {
        report.extend(vec![others::provider(&config.provider).await]);
    }
    if asked(Part::Mail) && any(&[Serve, Admin]) {
        report.extend(vec![others::mail_server(&config.mail).await]);
    }
    if asked(Part::Disks) {
        report.extend(disks::check(scope.prometheus.as_ref()).await);
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
