//! The relay from the outbox to Kafka: at least once, since it may die between producing rows and deleting them.

use std::sync::Arc;

use holdfast_tests::kit::kafka::{Sent, send_with};
use rdkafka::producer::FutureProducer;
use sqlx::PgConnection;
use tokio::sync::Notify;

pub(super) const OUTCOMES: &str = "seeds.outcomes";
const BATCH: i64 = 500;

/// Goes on until something fails. `written` wakes it once the outbox is empty.
pub(super) async fn run(
    mut database: PgConnection,
    producer: FutureProducer,
    written: Arc<Notify>,
) -> anyhow::Result<()> {
    loop {
        // A transaction that took its id early and is not committed yet is found in a later batch; rows of one ticket are
        // written one after the other, so that their order is that of their ids.
        let rows: Vec<(i64, String, Vec<u8>)> =
            sqlx::query_as("select id, ticket, outcome from seeds.outbox order by id limit $1")
                .bind(BATCH)
                .fetch_all(&mut database)
                .await?;
        if rows.is_empty() {
            written.notified().await;
            continue;
        }
        let (ids, records): (Vec<i64>, Vec<Sent>) = rows.into_iter().map(sent).unzip();
        send_with(&producer, OUTCOMES, &records).await?;
        sqlx::query("delete from seeds.outbox where id = any($1)")
            .bind(&ids)
            .execute(&mut database)
            .await?;
    }
}

fn sent((id, ticket, outcome): (i64, String, Vec<u8>)) -> (i64, Sent) {
    let record = Sent {
        key: Some(ticket.into_bytes()),
        value: Some(outcome),
        ..Sent::default()
    };
    (id, record)
}
