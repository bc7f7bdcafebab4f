//! What waits in Restate, by object and key.

use std::fmt::Write as _;

use serde_json::json;

use super::Desk;
use super::output::{Table, moment, or_dash, print, print_json};
use crate::config::Inbox;
use crate::restate_admin::{QueueChoice, RestateAdmin};

pub(super) async fn list(desk: &Desk<'_>, wanted: &Inbox) -> anyhow::Result<()> {
    let admin = RestateAdmin::new(&desk.config.restate)?;
    let choice = QueueChoice {
        object: wanted.object.as_deref(),
        key: wanted.key.as_deref(),
        stuck: wanted.stuck,
    };
    let asked = async { tokio::try_join!(admin.objects(choice), admin.queues(choice, wanted.limit)) };
    let server = format!("Restate's admin API at {}", admin.address());
    let (objects, queues) = desk.within(&server, asked).await??;
    if wanted.json {
        return print_json(&json!({ "objects": objects, "queues": queues }));
    }
    let mut text = String::new();
    let mut table = Table::new(["OBJECT", "KEYS", "DEPTH", "OLDEST", "PAUSED", "FAILING"]);
    for object in &objects {
        table.row([
            object.object.clone(),
            object.keys.to_string(),
            object.depth.to_string(),
            moment(object.oldest)?,
            object.paused.to_string(),
            object.failing.to_string(),
        ]);
    }
    table.write(&mut text)?;
    let mut table = Table::new(["OBJECT", "DEPTH", "OLDEST", "PAUSED", "RETRIES", "KEY", "FAILURE"]);
    for queue in &queues {
        table.row([
            queue.object.clone(),
            queue.depth.to_string(),
            moment(queue.oldest)?,
            queue.paused.to_string(),
            or_dash(queue.retries),
            queue.key.clone(),
            or_dash(queue.failure.as_ref()),
        ]);
    }
    writeln!(text)?;
    table.write(&mut text)?;
    let keys: u64 = objects.iter().map(|object| object.keys).sum();
    writeln!(text, "{} of {keys} keys", queues.len())?;
    print(&text)
}
