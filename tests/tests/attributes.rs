//! Attributes of tickets, which readers see beside the state: written by many callers at once, compared before they are
//! written, and of no consequence for decisions.

use anyhow::ensure;
use futures::future::try_join_all;
use holdfast_tests::kit::Kit;
use holdfast_tests::load::{now, timestamp};
use serde_json::{Value, json};

use crate::admin::{done, refused};
use crate::support::{clean, told};
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    tags_of_many_callers_at_once_are_all_there_and_each_once,
    a_description_is_written_where_it_changes_and_only_over_what_was_seen,
    each_change_of_attributes_is_in_their_log_once_and_shown_as_it_was,
    attributes_neither_raise_a_version_nor_tell_an_outcome,
];

fn tags_of_many_callers_at_once_are_all_there_and_each_once(kit: &Kit) -> anyhow::Result<()> {
    const CALLERS: usize = 32;
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "attributes").start().await?;
        // The first round is on one ticket alone, the second on as many as callers; each caller calls twice.
        for tickets in [1, CALLERS] {
            let ticket = |caller: usize| format!("attributes/tags-{tickets}-{}", caller % tickets);
            let callers = (0..CALLERS).chain(0..CALLERS);
            let tags = callers.map(async |caller| {
                let tag = json!({ "tag": format!("tag-{caller:02}") });
                let (status, said) = call(kit, &ticket(caller), "tag", &tag).await?;
                ensure!(status == 200, "{status} {said}");
                anyhow::Ok(())
            });
            try_join_all(tags).await?;
            let mut all = Vec::new();
            for number in 0..tickets {
                all.extend(attributes(kit, &ticket(number)).await?.2);
            }
            all.sort();
            let wanted: Vec<_> = (0..CALLERS).map(|caller| format!("tag-{caller:02}")).collect();
            ensure!(all == wanted, "{tickets} tickets: {all:?}");
            for number in 0..tickets {
                let items = items(kit, &ticket(number)).await?;
                ensure!(items.len() == CALLERS / tickets, "{tickets} tickets: {items:?}");
            }
        }
        worker.stop().await
    })
}

fn a_description_is_written_where_it_changes_and_only_over_what_was_seen(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "attributes/described";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "attributes").start().await?;
        let (status, _) = call(kit, TICKET, "attributes", &Value::Null).await?;
        ensure!(status == 404, "{status}");
        let applied = |fields: &[&str]| json!({ "status": "applied", "fields": fields });
        let [unchanged, differs, gone] = ["unchanged", "differs", "gone"].map(|status| json!({ "status": status }));
        let (balcony, east) = (json!({ "description": "balcony" }), json!({ "entrance": "east" }));
        let both = json!({ "description": "stalls", "entrance": "east" });
        // Request, and the answer that it must get.
        let calls = [
            (json!({ "from": {}, "to": balcony }), gone),
            (json!({ "to": balcony }), applied(&["description"])),
            (json!({ "to": balcony }), unchanged.clone()),
            (json!({ "from": balcony, "to": balcony }), unchanged.clone()),
            (
                json!({ "from": balcony, "to": both }),
                applied(&["description", "entrance"]),
            ),
            (json!({ "from": balcony, "to": both }), unchanged.clone()),
            (json!({ "from": balcony, "to": { "description": "box" } }), differs),
            // The description has changed since, which does not matter to a caller who changes the entrance alone.
            (
                json!({ "from": both, "to": { "description": "" } }),
                applied(&["description"]),
            ),
            (
                json!({ "from": both, "to": { "entrance": "west" } }),
                applied(&["entrance"]),
            ),
            (json!({ "to": east }), applied(&["entrance"])),
        ];
        for (body, wanted) in calls {
            let (status, said) = call(kit, TICKET, "describe", &body).await?;
            ensure!(status == 200 && said == wanted, "{body}: {status} {said}");
        }
        ensure!(attributes(kit, TICKET).await? == (String::new(), "east".to_owned(), vec![]));

        let long = |length: usize| "x".repeat(length);
        let refused = [
            ("tag", json!({ "tag": "" }), "tags"),
            ("tag", json!({ "tag": long(4_001) }), "tags"),
            ("tag", json!({ "tag": "nul \0" }), "character"),
            ("tag", json!({}), "tag"),
            (
                "describe",
                json!({ "to": { "description": long(4_001) } }),
                "description",
            ),
            ("describe", json!({ "to": { "entrance": long(256) } }), "entrance"),
            (
                "describe",
                json!({ "from": east, "to": { "entrance": long(256) } }),
                "entrance",
            ),
            ("describe", json!({ "to": { "tags": [] } }), "to"),
        ];
        for (handler, body, column) in refused {
            let (status, said) = call(kit, TICKET, handler, &body).await?;
            let message = said["message"].as_str().unwrap_or_default();
            ensure!(
                status == 400 && message.contains(column),
                "{handler} {column}: {status} {said}"
            );
        }
        for number in 0..100 {
            call(kit, TICKET, "tag", &json!({ "tag": number.to_string() })).await?;
        }
        let (status, said) = call(kit, TICKET, "tag", &json!({ "tag": "one too many" })).await?;
        ensure!(
            status == 400 && said["message"].as_str().is_some_and(|text| text.contains("tags")),
            "{said}"
        );
        ensure!(attributes(kit, TICKET).await?.2.len() == 100);
        worker.stop().await
    })
}

fn each_change_of_attributes_is_in_their_log_once_and_shown_as_it_was(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "attributes/logged";
    const SHOW: &[&str] = &["ticket", "attributes", TICKET];
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "attributes").start().await?;
        refused(kit, SHOW, "nothing was told of attributes/logged").await?;
        let described = json!({ "description": "stalls", "entrance": "east" });
        // Request, and its item in the change log: none where nothing changes.
        let calls = [
            (
                "tag",
                json!({ "tag": "gold" }),
                Some(json!({ "description": "", "entrance": "", "tags": ["gold"] })),
            ),
            ("tag", json!({ "tag": "gold" }), None),
            (
                "describe",
                json!({ "to": { "description": "box" } }),
                Some(json!({ "description": "box" })),
            ),
            ("describe", json!({ "to": { "description": "box" } }), None),
            ("describe", json!({ "from": {}, "to": { "description": "pit" } }), None),
            (
                "describe",
                json!({ "from": { "description": "box" }, "to": described }),
                Some(described.clone()),
            ),
            (
                "describe",
                json!({ "from": { "description": "box" }, "to": described }),
                None,
            ),
            (
                "tag",
                json!({ "tag": "quiet" }),
                Some(json!({ "tags": ["gold", "quiet"] })),
            ),
            ("tag", json!({ "tag": "" }), None),
        ];
        let mut logged = Vec::new();
        let mut after_two = String::new();
        for (handler, body, item) in calls {
            call(kit, TICKET, handler, &body).await?;
            logged.extend(item);
            let items = items(kit, TICKET).await?;
            ensure!(items == logged, "{handler} {body}: {items:?}");
            let (_, said) = call(kit, TICKET, "attributes", &Value::Null).await?;
            ensure!(said["version"] == logged.len(), "{handler} {body}: {said}");
            if logged.len() == 2 {
                after_two = timestamp(now());
            }
        }
        let (new, first, second) = (
            [
                "version     4",
                "description stalls",
                "entrance    east",
                "tags        gold, quiet",
            ],
            [
                "version     1",
                "description \n",
                "entrance    \n",
                "tags        gold\n",
            ],
            [
                "version     2",
                "description box",
                "entrance    \n",
                "tags        gold\n",
            ],
        );
        for (arguments, lines) in [
            (&[][..], new),
            (&["--as-of", "1"], first),
            (&["--as-of", "2"], second),
            (&["--at", &after_two], second),
        ] {
            let shown = done(kit, &[SHOW, arguments].concat()).await?;
            ensure!(lines.iter().all(|line| shown.contains(line)), "{arguments:?}: {shown}");
        }
        refused(kit, &[SHOW, &["--at", "2020-01-01T00:00:00Z"]].concat(), "or not yet").await?;
        worker.stop().await
    })
}

fn attributes_neither_raise_a_version_nor_tell_an_outcome(kit: &Kit) -> anyhow::Result<()> {
    const TICKET: &str = "attributes/quiet";
    kit.block_on(async {
        let worker = kit.stack.holdfast("run", "attributes").start().await?;
        // They may be there before the ticket is listed.
        call(kit, TICKET, "tag", &json!({ "tag": "early" })).await?;
        let terms = json!({ "show": "proofs", "price": { "amount": 4_500, "currency": "EUR" } });
        call(kit, TICKET, "list", &terms).await?;
        call(kit, TICKET, "tag", &json!({ "tag": "late" })).await?;
        call(kit, TICKET, "describe", &json!({ "to": { "description": "balcony" } })).await?;
        let (_, ticket) = call(kit, TICKET, "get", &Value::Null).await?;
        ensure!(ticket["version"] == 1, "{ticket}");
        let tags = ["early", "late"].map(String::from).to_vec();
        ensure!(attributes(kit, TICKET).await? == ("balcony".to_owned(), String::new(), tags));
        clean(kit).await?;
        told(kit, TICKET, 1).await?;
        worker.stop().await
    })
}

async fn call(kit: &Kit, ticket: &str, handler: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
    let path = format!("Ticket/{}/{handler}", ticket.replace('/', "%2F"));
    if !body.is_null() {
        return kit.stack.restate.call(&path, &[], body).await;
    }
    let response = kit.stack.restate.look(&path).await?;
    Ok((response.status().as_u16(), response.json().await?))
}

/// The change log of a ticket's attributes, one item for each version from 1 on.
async fn items(kit: &Kit, ticket: &str) -> anyhow::Result<Vec<Value>> {
    let pool = kit.stack.postgres.connect().await?;
    let select = "select version, data from ticket_attributes_change_log where ticket = $1 order by version";
    let items: Vec<(i64, Value)> = sqlx::query_as(select).bind(ticket).fetch_all(&pool).await?;
    pool.close().await;
    let (versions, items): (Vec<_>, Vec<_>) = items.into_iter().unzip();
    ensure!(versions.iter().copied().eq((1..).take(items.len())), "{versions:?}");
    Ok(items)
}

/// Description, entrance, tags.
async fn attributes(kit: &Kit, ticket: &str) -> anyhow::Result<(String, String, Vec<String>)> {
    let (status, said) = call(kit, ticket, "attributes", &Value::Null).await?;
    ensure!(status == 200 && said["ticket"] == ticket, "{status} {said}");
    let [description, entrance, tags] = ["description", "entrance", "tags"].map(|field| said[field].clone());
    Ok((
        serde_json::from_value(description)?,
        serde_json::from_value(entrance)?,
        serde_json::from_value(tags)?,
    ))
}
