//! Restate: its admin API and ingress, its version, and what `register` left there.

use time::OffsetDateTime;

use super::report::Check;
use super::standing;
use crate::config::{Config, Part};
use crate::register::{self, Path};
use crate::restate_admin::{self, RestateAdmin};
use crate::{error, transience::Fault};

/// The oldest version whose admin API has Kafka clusters.
const OLDEST: (u64, u64) = (1, 7);

/// What `register` left there is looked at where `registers`: that asks Kafka about Restate's groups, with the rights of `register`.
pub(super) async fn check(config: &Config, registers: bool, path: Path, clock: fn() -> OffsetDateTime) -> Vec<Check> {
    let ingress = ingress(config).await;
    let (check, admin) = admin(config).await;
    let mut checks = vec![check, ingress];
    let Some(admin) = admin else {
        checks.push(Check::unknown(
            Part::Restate,
            "cluster, handlers, subscriptions, invocations",
            "the admin API was not reached",
        ));
        return checks;
    };
    checks.push(standing::invocations(&admin).await);
    if !registers {
        return checks;
    }
    checks.extend(match register::inspect_engine(config, path, clock).await {
        Ok(lines) => lines.iter().map(|line| Check::of(Part::Restate, line)).collect(),
        Err(error) => vec![Check::wrong(
            Part::Restate,
            "the handlers",
            error::chain(&error),
            mend_of_calls(&error.to_string()),
        )],
    });
    checks
}

/// What is to be done when the engine cannot call the handlers, by what it says. A port may end in 401, too.
fn mend_of_calls(said: &str) -> &'static str {
    match said.split(|c: char| !c.is_alphanumeric()).any(|word| word == "401") {
        true => {
            "set --identity-key (HOLDFAST_IDENTITY_KEY) where `holdfast serve` runs to the key by which this Restate signs"
        }
        false => "start `holdfast serve`, and set --serve-url (HOLDFAST_SERVE_URL) to where Restate reaches it",
    }
}

/// The admin API, if it answers.
async fn admin(config: &Config) -> (Check, Option<RestateAdmin>) {
    let what = format!("the admin API at {}", config.restate.admin);
    let asked = async {
        let admin = RestateAdmin::new(&config.restate)?;
        Ok((admin.version().await?, admin))
    };
    let (version, admin) = match asked.await {
        Ok(answer) => answer,
        Err(error) => {
            let error: restate_admin::Error = error;
            let mend = mend(error.fault(), "--restate-admin (HOLDFAST_RESTATE_ADMIN)");
            return (Check::wrong(Part::Restate, what, error::chain(&error), mend), None);
        }
    };
    let check = match is_new_enough(&version) {
        true => Check::sound(Part::Restate, what, format!("version {version}")),
        false => Check::wrong(
            Part::Restate,
            what,
            format!("version {version}"),
            format!(
                "upgrade restate-server: {}.{} is the oldest that works",
                OLDEST.0, OLDEST.1
            ),
        ),
    };
    (check, Some(admin))
}

async fn ingress(config: &Config) -> Check {
    let what = format!("the ingress at {}", config.restate.ingress);
    match restate_admin::ingress_answers(&config.restate).await {
        Ok(()) => Check::sound(Part::Restate, what, "it answers"),
        Err(error) => {
            let mend = mend(error.fault(), "--restate-ingress (HOLDFAST_RESTATE_INGRESS)");
            Check::wrong(Part::Restate, what, error::chain(&error), mend)
        }
    }
}

fn mend(fault: Fault, setting: &str) -> String {
    match fault {
        Fault::Setting => format!("check {setting}, and the token that it asks for"),
        _ => format!("start it, or check {setting}, the way there, and that the system trusts its certificate"),
    }
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(
            ["1.7.0", "1.7.12", "1.10.0", "2.0.0-rc.1"]
                .iter()
                .all(|version| is_new_enough(version))
        );
        assert!(!["1.6.9", "0.9.0", "", "x"].iter().any(|version| is_new_enough(version)));
    }

    #[test]
    fn a_port_is_no_status() {
        assert!(mend_of_calls("https://127.0.0.1:38401/ answered 401 Unauthorized").contains("--identity-key"));
        assert!(mend_of_calls("error when calling https://127.0.0.1:38401/: unable to reach").contains("--serve-url"));
    }
}
