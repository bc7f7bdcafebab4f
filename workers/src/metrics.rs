//! Every metric of Holdfast, with its meaning. Labels are bounded and their values listed; no other module makes a metric.

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Declares the metrics struct: name on the wire, field, kind, help and, for kinds with labels, the label names.
macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident = $name:literal $([$($label:literal),+])? $(in $buckets:expr)?;)+) => {
        /// Handles to every metric of the process.
        #[derive(Clone)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            /// Registers every metric once.
            pub fn new() -> Result<Self, prometheus::Error> {
                let registry = Registry::new();
                $(
                    let help = concat!($($help, " "),+).trim();
                    let $field = metrics!(@make $kind, $name, help, [$($($label),+)?], $($buckets)?);
                    registry.register(Box::new($field.clone()))?;
                )+
                Ok(Self { registry, $($field),+ })
            }
        }
    };
    (@make IntCounter, $name:literal, $help:ident, [], ) => { IntCounter::new($name, $help)? };
    (@make IntGauge, $name:literal, $help:ident, [], ) => { IntGauge::new($name, $help)? };
    (@make Gauge, $name:literal, $help:ident, [], ) => { Gauge::new($name, $help)? };
    (@make IntCounterVec, $name:literal, $help:ident, [$($label:literal),+], ) => {
        IntCounterVec::new(Opts::new($name, $help), &[$($label),+])?
    };
    (@make IntGaugeVec, $name:literal, $help:ident, [$($label:literal),+], ) => {
        IntGaugeVec::new(Opts::new($name, $help), &[$($label),+])?
    };
    (@make Histogram, $name:literal, $help:ident, [], $buckets:expr) => {
        Histogram::with_opts(HistogramOpts::new($name, $help).buckets($buckets))?
    };
    (@make HistogramVec, $name:literal, $help:ident, [$($label:literal),+], $buckets:expr) => {
        HistogramVec::new(HistogramOpts::new($name, $help).buckets($buckets), &[$($label),+])?
    };
}

metrics! {
    /// 1, labelled with the version of this build.
    build_info: IntGaugeVec = "holdfast_build_info" ["version"];

    /// Seconds in each stage of the path: read (from the broker's time of a public record until the gate has it), admitted (until
    /// the gate sends it on), taken (until a handler has the delivery), decided (until its write begins), written (until the
    /// relay has the outcome), relayed (until Kafka has it for good). Each by the clocks of the machines it lies between.
    stage_seconds: HistogramVec = "holdfast_stage_seconds" ["stage"] in seconds();

    /// Records that the gate read, by result: admitted, dead_letter.
    gate_records: IntCounterVec = "holdfast_gate_records_total" ["result"];
    /// Records that the gate refused, by reason (the dead-letter reasons of the catalogue).
    gate_dead_letters: IntCounterVec = "holdfast_gate_dead_letters_total" ["reason"];
    /// Records in one window of the gate.
    gate_window_records: Histogram = "holdfast_gate_window_records" in sizes();
    /// Seconds from a gathered window to its acknowledgement by Kafka.
    gate_window_seconds: Histogram = "holdfast_gate_window_seconds" in seconds();
    /// Windows given up and read again, by cause: rebalance, delivery, refused (Kafka will never take one of its records, which is
    /// looked for).
    gate_windows_repeated: IntCounterVec = "holdfast_gate_windows_repeated_total" ["cause"];
    /// Commits of the gate's offsets that Kafka refused; the records are read again after a restart.
    gate_commit_errors: IntCounter = "holdfast_gate_commit_errors_total";
    /// Records on the public topics that the gate has not read yet, by topic.
    gate_lag_records: IntGaugeVec = "holdfast_gate_lag_records" ["topic"];
    /// Partitions that have records to read and have not moved for a minute, although the gate waits for nothing.
    gate_stalled_partitions: IntGauge = "holdfast_gate_stalled_partitions";
    /// 1 while the gate waits for the engine to finish work.
    gate_waiting: IntGauge = "holdfast_gate_waiting";
    /// 1 once retention took records that the gate had not read; the gate stops.
    gate_offsets_lost: IntGauge = "holdfast_gate_offsets_lost";

    /// Unfinished invocations of Holdfast's objects in the engine.
    engine_unfinished: IntGauge = "holdfast_engine_unfinished_invocations";
    /// Paused invocations of Holdfast's objects: their keys wait for an operator.
    engine_paused: IntGauge = "holdfast_engine_paused_invocations";
    /// 1 when the engine's admin API answered the last question.
    engine_answers: IntGauge = "holdfast_engine_answers";

    /// Events decided, by answer: applied, refused, repeat, dead_letter, nothing.
    events: IntCounterVec = "holdfast_events_total" ["answer"];
    /// Events refused by a rule, by reason (the refusal reasons of the catalogue).
    refusals: IntCounterVec = "holdfast_refusals_total" ["reason"];
    /// Events that serve dead-lettered, by reason (the dead-letter reasons of the catalogue).
    serve_dead_letters: IntCounterVec = "holdfast_serve_dead_letters_total" ["reason"];
    /// Work given back to its invocation, which tries again later and shows why, by cause: panic, data, constraint (the work itself);
    /// setting (a setting, a grant or a table has to be mended first); unknown.
    quarantine_candidates: IntCounterVec = "holdfast_quarantine_candidates_total" ["cause"];
    /// Units whose row was locked or had moved, and which went round again.
    commit_conflicts: IntCounter = "holdfast_commit_conflicts_total";
    /// Events in one batch of the committer.
    commit_batch_events: Histogram = "holdfast_commit_batch_events" in sizes();
    /// Seconds from a batch's select to its answer, by step: read, write.
    commit_seconds: HistogramVec = "holdfast_commit_seconds" ["step"] in seconds();
    /// Units waiting for the committer.
    commit_waiting: IntGauge = "holdfast_commit_waiting_units";
    /// Attempts that infrastructure made fail and that are tried again, by where: connect, read, write.
    retries: IntCounterVec = "holdfast_retries_total" ["where"];
    /// Rounds of a task that failed for a reason that waiting does not mend, such as a missing grant, by task: postgres, sweep, mail,
    /// mail (count), mail (contents), mail (notes), mail (server), checkouts, checkouts (count), reaper, loyalty, engine, provider (calls to the
    /// payment provider), relay (lock), relay (session), relay (listen), relay (count). The task goes on trying; `/readyz` names those for which
    /// seats or money wait.
    failing_rounds: IntCounterVec = "holdfast_failing_rounds_total" ["part"];
    /// Connections in the pool, by state: idle, used.
    pool_connections: IntGaugeVec = "holdfast_pool_connections" ["state"];
    /// Idempotency records deleted because they were older than the retention.
    swept_records: IntCounter = "holdfast_swept_records_total";
    /// Holds that the Reaper found due and sent an expiration for.
    reaper_sent: IntCounter = "holdfast_reaper_expirations_total";

    /// Checkouts that have not ended, by state: opened, created, waiting, authorised, sold, undoing, refunded (credits are still to
    /// be given back), stuck.
    checkouts: IntGaugeVec = "holdfast_checkouts" ["state"];
    /// Checkouts that have ended, by how: completed, or the reason of the failure (the failure reasons of the catalogue).
    checkouts_ended: IntCounterVec = "holdfast_checkouts_ended_total" ["how"];
    /// Refunds that were booked, and such as have failed, by kind: partial, full, failed.
    refunds: IntCounterVec = "holdfast_refunds_total" ["kind"];
    /// Changes of disputes, of their status or their money, by status: inquiry, closed, opened, won, lost.
    disputes: IntCounterVec = "holdfast_disputes_total" ["status"];
    /// Seconds since the checkout that has waited longest in a state was last taken a step further, by state.
    checkout_oldest_seconds: IntGaugeVec = "holdfast_checkout_oldest_seconds" ["state"];
    /// Calls to the payment provider, by call (create, authorise, get, find, list, capture, cancel, refund) and answer: ok, declined,
    /// unknown, refused (as it is), key_used, misconfigured (all are refused, as with a wrong key), not_found, conflict.
    provider_calls: IntCounterVec = "holdfast_provider_calls_total" ["call", "answer"];
    /// Requests to the payment provider that were held back, by kind (read, write) and why: rate (ours, `--provider-calls-per-second`),
    /// too_many (the provider answered 429 and is asked again).
    provider_delays: IntCounterVec = "holdfast_provider_delays_total" ["kind", "why"];

    /// Tries to send a mail, by result: sent, refused (for good), retried (later), limited (never: the user got as many mails about
    /// failures within the hour as one may), no_address (never: the user was erased).
    mails: IntCounterVec = "holdfast_mails_total" ["result"];
    /// Mails that are not sent yet.
    mails_waiting: IntGauge = "holdfast_mails_waiting";
    /// Seconds since the outcome that the oldest mail that waits is about; 0 when none waits.
    mails_oldest_seconds: IntGauge = "holdfast_mails_oldest_seconds";
    /// Webhooks of the payment provider, by what became of them: accepted (Kafka has the event), ignored (of no interest, or not
    /// Holdfast's payment), other_mode (test instead of live, or live instead of test), unsigned, forged, old, unreadable, too_large, unavailable (Kafka or the provider does not answer; it
    /// comes again).
    webhook_requests: IntCounterVec = "holdfast_webhook_requests_total" ["result"];

    /// Rows that the relay brought to Kafka.
    relay_rows: IntCounter = "holdfast_relay_rows_total";
    /// Rows in one Kafka transaction of the relay.
    relay_batch_rows: Histogram = "holdfast_relay_batch_rows" in sizes();
    /// Seconds from selecting a batch to its deletion.
    relay_batch_seconds: Histogram = "holdfast_relay_batch_seconds" in seconds();
    /// Rows waiting in the outbox.
    outbox_rows: IntGauge = "holdfast_outbox_rows";
    /// Age of the oldest waiting outbox row, in seconds.
    outbox_oldest_seconds: Gauge = "holdfast_outbox_oldest_seconds";
    /// Outbox rows that Kafka refused; their keys wait for an operator.
    outbox_refused: IntGauge = "holdfast_outbox_refused_rows";
    /// Producer sessions that the relay began again after an error.
    relay_rebuilds: IntCounter = "holdfast_relay_rebuilds_total";
    /// 1 while this process is the one relay.
    relay_leader: IntGauge = "holdfast_relay_leader";
    /// 1 once the database and Kafka disagree about the last batch: the database went back in time, and the relay stops.
    relay_back_in_time: IntGauge = "holdfast_relay_back_in_time";
}

/// The content type of [`Metrics::render`]. A scraper that does not find its format named refuses the whole answer.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A stage of the path; the stages of an event add up to the time from its public record to its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Read,
    Admitted,
    Taken,
    Decided,
    Written,
    Relayed,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Stage::Read => "read",
            Stage::Admitted => "admitted",
            Stage::Taken => "taken",
            Stage::Decided => "decided",
            Stage::Written => "written",
            Stage::Relayed => "relayed",
        }
    }
}

impl Metrics {
    /// Notes how long a stage took.
    pub fn took(&self, stage: Stage, seconds: f64) {
        // Clocks of two machines may differ.
        self.stage_seconds
            .with_label_values(&[stage.as_str()])
            .observe(seconds.max(0.0));
    }

    /// The metrics in Prometheus' text format, named by [`CONTENT_TYPE`].
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Buckets for durations: 1 ms to 1 min.
fn seconds() -> Vec<f64> {
    vec![
        0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
    ]
}

/// Buckets for sizes: 1 to 50,000.
fn sizes() -> Vec<f64> {
    vec![
        1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_registered_once_under_its_own_name() {
        let metrics = Metrics::new().unwrap();
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(
            text.contains("# HELP holdfast_gate_window_records Records in one window of the gate."),
            "{text}"
        );
    }
}
