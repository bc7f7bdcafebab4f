//! Measures Restate alone: a virtual object keyed by ticket whose handler does nothing, subscribed straight to a topic.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use holdfast_tests::kit::{Stack, until};
use holdfast_tests::load::{Pace, Producer};
use restate_sdk::prelude::*;
use tokio::time::Instant;
use tracing::info;

use super::engine::Engine;
use super::workload::Workload;

const PARTITIONS: i32 = 8;
const DRAINED_WITHIN: Duration = Duration::from_secs(300);

/// Serves the object `Noop` from this process.
pub(super) struct Noop {
    calls: Arc<Mutex<Calls>>,
    engine: Engine,
}

#[derive(Clone, Copy, Default)]
struct Calls {
    count: usize,
    first_and_last: Option<(Instant, Instant)>,
}

struct Object {
    calls: Arc<Mutex<Calls>>,
}

#[restate_sdk::object(name = "Noop", journal_retention = "0s")]
impl Object {
    #[handler]
    async fn apply(&self, _context: ObjectContext<'_>, _event: Bytes) -> HandlerResult<()> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (first, _) = calls.first_and_last.unwrap_or((now, now));
        calls.count += 1;
        calls.first_and_last = Some((first, now));
        Ok(())
    }
}

impl Noop {
    pub(super) async fn serve(stack: &Stack) -> anyhow::Result<Noop> {
        let calls = Arc::new(Mutex::new(Calls::default()));
        let object = Object {
            calls: Arc::clone(&calls),
        };
        let engine = Engine::serve(stack, "noop", Endpoint::builder().bind(object).build()).await?;
        Ok(Noop { calls, engine })
    }

    /// Events per second, from the first call to the last.
    pub(super) async fn drain(&self, stack: &Stack, workload: &Workload) -> anyhow::Result<f64> {
        info!(
            "{}: {} events through a handler that does nothing",
            workload.name, workload.events
        );
        stack.kafka.create_topic(&workload.name, PARTITIONS, &[]).await?;
        let mut producer = Producer::new(&stack.kafka, &workload.name)?;
        producer.send_all(workload.events(), Pace::FullSpeed).await?;
        *self.calls() = Calls::default();
        let subscription = self.engine.subscribe(&workload.name, "Noop/apply").await?;
        let took = until("the no-op handler has seen every event", DRAINED_WITHIN, async || {
            let calls = *self.calls();
            match calls.first_and_last {
                Some((first, last)) if calls.count >= workload.events => Ok(last - first),
                _ => Err(format!("{} calls", calls.count)),
            }
        })
        .await?;
        self.engine.unsubscribe(subscription).await?;
        Ok(workload.events as f64 / took.as_secs_f64())
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
