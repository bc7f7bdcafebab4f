//! The Reaper's turns: begun by `register` and at each start, and begun anew when none is left, or none comes soon.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::Error;
use super::report::{Finding, PartReport};
use crate::config::{self, Config};
use crate::objects::{ARM, REAPER, REAPER_SHARD};
use crate::restate_admin::{self, RestateAdmin};
use crate::rounds::Rounds;
use crate::store::{PgPool, tickets};
use crate::tls;

/// How often holds are looked for that the Reaper should have ended.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long a hold may be over before it is asked whether the Reaper lives: some of its turns.
const LATE: time::Duration = time::Duration::seconds(3);

/// Begins the Reaper's turns anew. One-way: the engine has it once it has answered, whether or not serve is up.
pub(super) async fn arm(config: &Config) -> Result<PartReport, Error> {
    let config::Restate { ingress, token, .. } = &config.restate;
    let url = restate_admin::below(ingress, &format!("{REAPER}/{REAPER_SHARD}/{ARM}/send"));
    let address = ingress.to_string();
    let silent = |source: reqwest::Error| Error::Ingress {
        address: address.clone(),
        mend: tls::mend(&source),
        source: source.without_url(),
    };
    let request = restate_admin::http_client(ingress)?.post(url);
    let response = restate_admin::authorized(request, token.as_ref()).send().await;
    let response = response.map_err(silent)?;
    let status = response.status();
    if !status.is_success() {
        let answer = response.bytes().await.map_err(silent)?;
        return Err(Error::Arm {
            address,
            status,
            message: restate_admin::refusal(status, &answer),
        });
    }
    let before = "armed".to_owned();
    Ok(PartReport::new("the Reaper", Finding::Changed { before }))
}

/// Arms the Reaper, for ever, whenever a hold is over that it has not ended and it has no turn soon: somebody killed the turn, the
/// engine lost its disk, or the clock of whoever served the last turn is ahead of the engine's.
pub async fn keep_armed(config: Config, admin: RestateAdmin, pool: PgPool, rounds: Rounds) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match arm_if_gone(&config, &admin, &pool).await {
            Ok(was_armed) => {
                rounds.passed();
                if was_armed {
                    tracing::warn!("the Reaper had no turn soon: it was armed again");
                }
            }
            Err(error) => rounds.failed(error.fault(), &error),
        }
    }
}

async fn arm_if_gone(config: &Config, admin: &RestateAdmin, pool: &PgPool) -> Result<bool, Error> {
    if !is_late(pool).await? || admin.reaper_lives().await? {
        return Ok(false);
    }
    arm(config).await?;
    Ok(true)
}

async fn is_late(pool: &PgPool) -> Result<bool, Error> {
    let (now, due) = tickets::due(pool, None, 1).await.map_err(Error::Holds)?;
    Ok(due.first().is_some_and(|due| now - due.until > LATE))
}
