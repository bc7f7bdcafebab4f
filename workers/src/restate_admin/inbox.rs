//! What waits in Restate, for an operator: by object and key.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Error, KEYED_SERVICES, RestateAdmin};

/// An invocation whose attempts fail oftener than that is stuck, for an operator.
const STUCK_ATTEMPTS: u32 = 5;

/// So many stuck invocations are told of.
const MOST_STUCK: u32 = 10;

/// Which queues an operator means: those that fit all that is given.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueueChoice<'a> {
    pub object: Option<&'a str>,
    pub key: Option<&'a str>,
    /// Only those that do not get on.
    pub stuck: bool,
}

/// The invocations of one key that have not ended: the first holds the key, the others wait for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Queue {
    pub object: String,
    pub key: String,
    pub depth: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub oldest: OffsetDateTime,
    /// How many of them are paused: they wait for an operator.
    pub paused: u64,
    /// How often the first was tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u64>,
    /// Why it failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// All queues of one object together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ObjectQueues {
    pub object: String,
    pub keys: u64,
    pub depth: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub oldest: OffsetDateTime,
    /// Keys whose first invocation is paused.
    pub paused: u64,
    /// Keys whose first invocation fails again and again.
    pub failing: u64,
}

/// An invocation that fails again and again, or is paused.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub struct StuckInvocation {
    pub id: String,
    pub service: String,
    #[serde(default)]
    pub key: Option<String>,
    pub status: String,
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    #[serde(default)]
    pub failure: Option<String>,
}

impl fmt::Display for StuckInvocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, failure) = (self.key.as_deref().unwrap_or_default(), self.failure.as_deref());
        let Self {
            id, service, status, ..
        } = self;
        write!(
            f,
            "{service}/{key} ({id}, {status}): {}",
            failure.unwrap_or("no failure is noted")
        )
    }
}

impl RestateAdmin {
    /// The oldest invocations of objects and checkouts that have failed for some time, or are paused.
    pub async fn stuck(&self) -> Result<Vec<StuckInvocation>, Error> {
        self.query(&format!(
            "select i.id, i.target_service_name as service, i.target_service_key as key, i.status, i.created_at as since, \
                 s.last_failure as failure \
             from sys_invocation_status i left join sys_invocation_state s on s.id = i.id \
             where i.status <> 'completed' and i.target_service_name in ({KEYED_SERVICES}, 'Checkout', 'Reaper') \
                 and (i.status = 'paused' or (s.retry_count > {STUCK_ATTEMPTS} and s.last_failure is not null)) \
             order by i.created_at limit {MOST_STUCK}"
        ))
        .await
    }

    /// The queues that are meant, the deepest first.
    pub async fn queues(&self, choice: QueueChoice<'_>, most: u32) -> Result<Vec<Queue>, Error> {
        let queues = queues(choice);
        self.query(&format!("{queues} order by depth desc, oldest limit {most}"))
            .await
    }

    /// What these queues come to, by object.
    pub async fn objects(&self, choice: QueueChoice<'_>) -> Result<Vec<ObjectQueues>, Error> {
        let queues = queues(choice);
        self.query(&format!(
            "select object, count(*) as keys, sum(depth) as depth, min(oldest) as oldest, \
                 sum(case when paused > 0 then 1 else 0 end) as paused, \
                 sum(case when retries > 1 then 1 else 0 end) as failing \
             from ({queues}) q group by object order by object"
        ))
        .await
    }
}

fn queues(choice: QueueChoice<'_>) -> String {
    let mut fits = format!("i.target_service_name in ({KEYED_SERVICES})");
    for (column, value) in [
        ("i.target_service_name", choice.object),
        ("i.target_service_key", choice.key),
    ] {
        if let Some(value) = value {
            fits += &format!(" and {column} = '{}'", value.replace('\'', "''"));
        }
    }
    let stuck = if choice.stuck {
        "having sum(case when i.status = 'paused' then 1 else 0 end) > 0 or max(s.retry_count) > 1"
    } else {
        ""
    };
    format!(
        "select i.target_service_name as object, i.target_service_key as key, count(*) as depth, min(i.created_at) as oldest, \
             sum(case when i.status = 'paused' then 1 else 0 end) as paused, max(s.retry_count) as retries, \
             max(s.last_failure) as failure \
         from sys_invocation_status i \
         left join (select id, retry_count, last_failure from sys_invocation_state where last_failure is not null) s on s.id = i.id \
         where i.status <> 'completed' and i.status <> 'scheduled' and {fits} \
         group by i.target_service_name, i.target_service_key {stuck}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_value_and_no_sql() {
        let key = Some("A' or '1' = '1");
        let text = queues(QueueChoice {
            key,
            ..QueueChoice::default()
        });
        assert!(text.contains("i.target_service_key = 'A'' or ''1'' = ''1'"), "{text}");
    }
}
