//! What only an operator mends, such as a missing grant, is told by whoever meets it, until it is mended; then the work goes on.

use anyhow::{Context, ensure};
use holdfast_tests::kit::{Holdfast, Kit, until};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::support::{DEADLINE, clean, listed, send, told};
use crate::workers::done;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![whoever_lacks_a_grant_says_so_and_goes_on_once_it_is_there];

/// A database role that is not the tables' owner.
const ROLE: &str = "grants";

/// The tasks that need a table for their rounds.
const TASKS: [(&str, &str); 8] = [
    ("sweep", "idempotency_records"),
    ("mail", "mails"),
    ("mail (count)", "mails"),
    ("checkouts", "checkouts"),
    ("checkouts (count)", "checkouts"),
    ("loyalty", "two_phase_attempts"),
    ("relay (session)", "outbox"),
    ("relay (count)", "outbox"),
];

/// Those for which no seat and no money waits: `/readyz` does not name them.
const BESIDE: [&str; 4] = ["sweep", "mail", "mail (count)", "checkouts (count)"];

fn whoever_lacks_a_grant_says_so_and_goes_on_once_it_is_there(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        done(kit.stack.holdfast("migrate", "migrate")).await?;
        let postgres = &kit.stack.postgres;
        let pool = postgres.connect().await?;
        run(
            &pool,
            "do $$ begin create role grants login; exception when duplicate_object then null; end $$",
        )
        .await?;
        grant(&pool).await?;
        let tables = TASKS.map(|(_, table)| table);
        for table in tables.iter().chain(&["users", "tickets"]) {
            run(&pool, &format!("revoke all on {table} from {ROLE}")).await?;
        }
        abandon(kit).await?;
        let url = postgres.url().replace("postgres@", &format!("{ROLE}@"));
        let worker = kit.stack.holdfast("run", "grants").arg("--no-migrate");
        let worker = worker
            .env("HOLDFAST_DATABASE_URL", &url)
            .env("HOLDFAST_CREDITS_ABANDONED_AFTER", "1s")
            .env("HOLDFAST_ABANDONED_AFTER", "1s")
            .env("HOLDFAST_LOG_FORMAT", "json")
            .spawn()?;

        until("each task says what it lacks", DEADLINE, async || {
            let not_ready = not_ready(&worker).await?;
            for part in TASKS.map(|(part, _)| part).iter().chain(&["reaper"]) {
                let is_named = not_ready.split(", ").any(|other| other == *part);
                ensure!(is_named != BESIDE.contains(part), "{part}, in {not_ready}");
                let failed = format!(r#"holdfast_failing_rounds_total{{part="{part}"}}"#);
                let failed = worker.metric(&failed).await?;
                ensure!(failed >= Some(1.0), "{failed:?} rounds of {part} have failed");
            }
            anyhow::Ok(())
        })
        .await
        .with_context(|| worker.last_words())?;
        for (part, table) in TASKS {
            let said = errors(&worker, part)?;
            ensure!(
                said.len() == 1 && said[0].contains(&format!("permission denied for table {table}")),
                "{part} said {said:?}"
            );
        }
        // A handler that does not pass a committer, and one that does, give their work back to the engine.
        let asked = get(format!("{}/User/grants/get", kit.stack.restate.ingress()));
        send(kit, &[listed("grants/seat", "grants/seat")]).await?;
        let counted = until("work that went back is counted", DEADLINE, async || {
            let counted = worker
                .metric(r#"holdfast_quarantine_candidates_total{cause="setting"}"#)
                .await?;
            ensure!(counted >= Some(2.0), "{counted:?}");
            anyhow::Ok(())
        });
        let mended = async {
            counted.await?;
            grant(&pool).await
        };
        let (answered, mended) = tokio::join!(asked, mended);
        mended?;
        let (status, answer) = answered?;
        ensure!(
            status == 404 && answer.contains("never registered"),
            "{status} {answer}"
        );
        told(kit, "grants/seat", 1).await?;
        worker.ready().await?;
        clean(kit).await?;
        worker.stop().await?;
        run(&pool, &format!("drop owned by {ROLE}")).await?;
        run(&pool, &format!("drop role {ROLE}")).await
    })
}

async fn run(pool: &PgPool, statement: &str) -> anyhow::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(pool).await?;
    Ok(())
}

async fn grant(pool: &PgPool) -> anyhow::Result<()> {
    for what in ["tables", "sequences"] {
        run(pool, &format!("grant all on all {what} in schema public to {ROLE}")).await?;
    }
    Ok(())
}

/// Leaves credits prepared, as a try that has gone does, for the sweep to end.
async fn abandon(kit: &Kit) -> anyhow::Result<()> {
    let loyalty = kit.stack.postgres.connect_to_loyalty().await?;
    let prepare = format!(
        "begin; insert into accounts (user_id, credits) values ('grants/{0}', 1);
         prepare transaction 'holdfast:grants/{0}:{0}'",
        Uuid::new_v4()
    );
    run(&loyalty, &prepare).await?;
    loyalty.close().await;
    Ok(())
}

/// The parts for which `/readyz` waits.
async fn not_ready(worker: &Holdfast) -> anyhow::Result<String> {
    let (_, answer) = get(format!("{}/readyz", worker.http)).await?;
    // The lines after it say why.
    let first = answer.lines().next().unwrap_or_default();
    Ok(first.trim_start_matches("waiting for: ").to_owned())
}

async fn get(url: String) -> anyhow::Result<(u16, String)> {
    let answer = reqwest::get(url).await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

/// The errors that a task has logged.
fn errors(worker: &Holdfast, part: &str) -> anyhow::Result<Vec<String>> {
    let log = std::fs::read_to_string(worker.log())?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ours = lines.filter(|line| line["level"] == "ERROR" && line["fields"]["part"] == json!(part));
    Ok(ours.map(|line| line["fields"]["error"].to_string()).collect())
}
