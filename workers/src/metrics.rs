//! Every metric of Holdfast, with its meaning. Labels are bounded and their values listed; no other module makes a metric.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_schemas::{
    CheckoutFailure, DeadLetterReason, OutcomeData, Price, RefusalReason, TicketOutcome, UserOutcome,
    UserRefusalReason, topics,
};
use prometheus::core::{MetricVec, MetricVecBuilder};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use tokio::sync::Notify;

/// Declares every metric: help, field, kind, name on the wire and, for kinds with labels, the labels, each with all its values where
/// these are known. Series of known values are there from the start, at zero: an alert on a series that appears only with the fault
/// would miss its first increase.
macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident = $name:literal
        $([$($label:literal $(: $values:expr)?),+])? $(in $buckets:expr)?;)+) => {
        /// Handles to every metric of the process.
        #[derive(Clone)]
        pub struct Metrics {
            registry: Registry,
            /// Notified of each scrape.
            scrapes: Arc<Notify>,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        /// The description of every metric, by the names of the fields of [`Metrics`].
        pub struct Descriptors {
            $($(#[doc = $help])+ pub $field: Descriptor,)+
        }

        impl Metrics {
            /// Registers every metric once.
            pub fn new() -> Result<Self, prometheus::Error> {
                let (registry, described) = (Registry::new(), Descriptors::default());
                $(
                    let $field = $kind::made(&described.$field)?;
                    registry.register(Box::new($field.clone()))?;
                )+
                Ok(Self { registry, scrapes: Arc::default(), $($field),+ })
            }
        }

        impl Default for Descriptors {
            fn default() -> Self {
                Self {
                    $($field: Descriptor {
                        name: $name,
                        help: concat!($($help, " "),+).trim(),
                        labels: vec![$($(Label { name: $label, values: <[Vec<_>]>::concat(&[$(Vec::from_iter($values))?]) }),+)?],
                        buckets: <[Vec<_>]>::concat(&[$($buckets)?]),
                    },)+
                }
            }
        }

        impl Descriptors {
            pub fn all(&self) -> Vec<&Descriptor> {
                vec![$(&self.$field),+]
            }
        }
    };
}

metrics! {
    /// 1, labelled with the version of this build.
    build_info: IntGaugeVec = "holdfast_build_info" ["version"];

    /// Seconds in each stage of the path: read (from the broker's time of a public record until the gate has it), admitted (until
    /// the gate sends it on), taken (until a handler has the delivery), decided (until its write begins), written (until the
    /// relay has the outcome), relayed (until Kafka has it for good). Each by the clocks of the machines it lies between.
    stage_seconds: HistogramVec = "holdfast_stage_seconds" ["stage": Stage::ALL.map(Stage::as_str)] in seconds();

    /// Records that the gate read, by result: admitted, dead_letter.
    gate_records: IntCounterVec = "holdfast_gate_records_total" ["result": ["admitted", "dead_letter"]];
    /// Records that the gate refused, by reason (the dead-letter reasons of the catalogue).
    gate_dead_letters: IntCounterVec = "holdfast_gate_dead_letters_total" ["reason": dead_letter_reasons()];
    /// Records in one window of the gate.
    gate_window_records: Histogram = "holdfast_gate_window_records" in sizes();
    /// Seconds from a gathered window to its acknowledgement by Kafka.
    gate_window_seconds: Histogram = "holdfast_gate_window_seconds" in seconds();
    /// Windows given up and read again, by cause: rebalance, delivery, refused (Kafka will never take one of its records, which is
    /// looked for).
    gate_windows_repeated: IntCounterVec = "holdfast_gate_windows_repeated_total" ["cause": ["rebalance", "delivery", "refused"]];
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
    /// Keys whose first invocation fails again and again; what waits for them does not count for the gate, unless they are many.
    engine_stuck: IntGauge = "holdfast_engine_stuck_keys";
    /// 1 when the engine's admin API answered the last question.
    engine_answers: IntGauge = "holdfast_engine_answers";

    /// Events decided, by answer: applied, refused, repeat, dead_letter, nothing.
    events: IntCounterVec = "holdfast_events_total" ["answer": ["applied", "refused", "repeat", "dead_letter", "nothing"]];
    /// Outcomes that were written, by type without prefix and version (the outcomes of the catalogue).
    outcomes: IntCounterVec = "holdfast_outcomes_total" ["type": outcome_types()];
    /// Seconds of an event on its way, by part: decided (from the broker's time of its public record until the decision is written, of
    /// events that a committer decides), told (from then until Kafka has the outcome for good).
    outcome_seconds: HistogramVec = "holdfast_outcome_seconds" ["part": ["decided", "told"]] in seconds();
    /// Events refused by a rule, by reason (the refusal reasons of the catalogue).
    refusals: IntCounterVec = "holdfast_refusals_total" ["reason": refusal_reasons()];
    /// Events that serve dead-lettered, by reason (the dead-letter reasons of the catalogue).
    serve_dead_letters: IntCounterVec = "holdfast_serve_dead_letters_total" ["reason": dead_letter_reasons()];
    /// Work that could not be committed, by cause: panic, data, constraint (the work itself: it is parked, or its caller is told);
    /// setting (a setting, a grant or a table has to be mended first) and unknown (its invocation tries again later, and shows why).
    quarantine_candidates: IntCounterVec = "holdfast_quarantine_candidates_total" ["cause": ["panic", "data", "constraint", "setting", "unknown"]];
    /// Keys that were put in quarantine, by cause: panic, data, constraint.
    quarantined: IntCounterVec = "holdfast_quarantined_total" ["cause": ["panic", "data", "constraint"]];
    /// Times that a key was not put in quarantine, as too many broke within a minute: that is a bad release or a new constraint, and
    /// all are retried.
    quarantine_floods: IntCounter = "holdfast_quarantine_floods_total";
    /// Keys in quarantine now, by the public topic of their events.
    quarantined_keys: IntGaugeVec = "holdfast_quarantined_keys" ["topic": [topics::RESERVATIONS, topics::PAYMENTS]];
    /// Events parked now, by their public topic.
    parked_events: IntGaugeVec = "holdfast_parked_events" ["topic": [topics::RESERVATIONS, topics::PAYMENTS]];
    /// Seconds since the key that has waited longest in quarantine broke, by topic; 0 when none waits.
    quarantine_oldest_seconds: IntGaugeVec = "holdfast_quarantine_oldest_seconds" ["topic": [topics::RESERVATIONS, topics::PAYMENTS]];
    /// Units whose row was locked or had moved, and which went round again.
    commit_conflicts: IntCounter = "holdfast_commit_conflicts_total";
    /// Events in one batch of the committer.
    commit_batch_events: Histogram = "holdfast_commit_batch_events" in sizes();
    /// Seconds from a batch's select to its answer, by step: read, write.
    commit_seconds: HistogramVec = "holdfast_commit_seconds" ["step": ["read", "write"]] in seconds();
    /// Units waiting for the committer.
    commit_waiting: IntGauge = "holdfast_commit_waiting_units";
    /// Attempts that infrastructure made fail and that are tried again, by where: connect, read, write.
    retries: IntCounterVec = "holdfast_retries_total" ["where": ["connect", "read", "write"]];
    /// Rounds of a task that failed for a reason that waiting does not mend, such as a missing grant, by task: postgres,
    /// database-url-file and loyalty-url-file (an address that is read again), sweep, mail,
    /// mail (count), mail (contents), mail (notes), mail (server), checkouts, checkouts (count), reaper, loyalty, engine,
    /// subscriptions (by which the engine reads), provider (calls to the payment provider), quarantine (count), relay (lock), relay
    /// (session), relay (listen), relay (count), traces, verify (the watch). The task goes on trying; `/readyz` names those for
    /// which seats or money wait.
    failing_rounds: IntCounterVec = "holdfast_failing_rounds_total" ["part": PARTS];
    /// Connections in the pool, by state: idle, used.
    pool_connections: IntGaugeVec = "holdfast_pool_connections" ["state": ["idle", "used"]];
    /// Idempotency records deleted because they were older than the retention.
    swept_records: IntCounter = "holdfast_swept_records_total";
    /// Holds that the Reaper found due and sent an expiration for.
    reaper_sent: IntCounter = "holdfast_reaper_expirations_total";

    /// Checkouts that have not ended, by state: opened, created, waiting and declined (for the buyer), processing (for the bank, also
    /// once the seats are sold), authorised, sold, undoing, returning (something is to be given back of a return), refunded (credits are still to be given back), stuck.
    checkouts: IntGaugeVec = "holdfast_checkouts" ["state": CHECKOUT_STATES];
    /// Checkouts that have ended, by how: completed, or the reason of the failure (the failure reasons of the catalogue).
    checkouts_ended: IntCounterVec = "holdfast_checkouts_ended_total" ["how": ends_of_checkouts()];
    /// Totals of the checkouts that were completed, in minor units, by currency; credits that paid a part are in them.
    revenue: IntCounterVec = "holdfast_revenue_minor_units_total" ["currency"];
    /// Refunds that were booked, in minor units, by currency.
    refunded: IntCounterVec = "holdfast_refunded_minor_units_total" ["currency"];
    /// Refunds that were booked, and such as have failed, by kind: partial, full, failed.
    refunds: IntCounterVec = "holdfast_refunds_total" ["kind": ["partial", "full", "failed"]];
    /// Changes of disputes, of their status or their money, by status: inquiry, closed, opened, won, lost.
    disputes: IntCounterVec = "holdfast_disputes_total" ["status": ["inquiry", "closed", "opened", "won", "lost"]];
    /// Seconds since the checkout that has waited longest in a state was last taken a step further, by state.
    checkout_oldest_seconds: IntGaugeVec = "holdfast_checkout_oldest_seconds" ["state": CHECKOUT_STATES];
    /// Calls to the payment provider, by call (create, authorise, get, find, list, capture, cancel, refund) and answer: ok, declined,
    /// unknown, refused (as it is), key_used, misconfigured (all are refused, as with a wrong key), not_found, conflict.
    provider_calls: IntCounterVec = "holdfast_provider_calls_total" ["call": PROVIDER_CALLS, "answer": PROVIDER_ANSWERS];
    /// Requests to the payment provider that were held back, by kind (read, write) and why: rate (ours, `--provider-calls-per-second`),
    /// too_many (the provider answered 429 and is asked again).
    provider_delays: IntCounterVec = "holdfast_provider_delays_total" ["kind": ["read", "write"], "why": ["rate", "too_many"]];

    /// Tries to send a mail, by result: sent, refused (for good), retried (later), limited (never: the user got as many mails about
    /// failures within the hour as one may), no_address (never: the user was erased).
    mails: IntCounterVec = "holdfast_mails_total" ["result": ["sent", "refused", "retried", "limited", "no_address"]];
    /// Mails that are not sent yet.
    mails_waiting: IntGauge = "holdfast_mails_waiting";
    /// Seconds since the outcome that the oldest mail that waits is about; 0 when none waits.
    mails_oldest_seconds: IntGauge = "holdfast_mails_oldest_seconds";
    /// Webhooks of the payment provider, by what became of them: accepted (Kafka has the event), ignored (of no interest, or not
    /// Holdfast's payment), other_mode (test instead of live, or live instead of test), unsigned, forged, old, unreadable, too_large, unavailable (Kafka or the provider does not answer; it
    /// comes again).
    webhook_requests: IntCounterVec = "holdfast_webhook_requests_total" ["result": WEBHOOK_RESULTS];

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
    /// Outbox rows that wait for nothing but the relay: no row of their key was refused.
    outbox_movable: IntGauge = "holdfast_outbox_movable_rows";
    /// Producer sessions that the relay began again after an error.
    relay_rebuilds: IntCounter = "holdfast_relay_rebuilds_total";
    /// 1 while this process is the one relay.
    relay_leader: IntGauge = "holdfast_relay_leader";
    /// 1 once the database and Kafka disagree about the last batch: the database went back in time, and the relay stops.
    relay_back_in_time: IntGauge = "holdfast_relay_back_in_time";

    /// Keys against which a promise is broken, by promise, as `verify --watch` has found: each twice in a row. A key is not counted any
    /// more once a whole pass has not found it; more than 1,000 by promise are not told apart.
    verify_broken: IntGaugeVec = "holdfast_verify_broken_promises" ["promise": PROMISES];
    /// Records on the public topics, by what has become of them, as the last whole pass of `verify --watch` has counted.
    verify_records: IntGaugeVec = "holdfast_verify_records" ["state": RECORD_STATES];
    /// Looks of `verify --watch`, by what they look at: new (what is new), closer (a key in which something looked wrong, and its
    /// neighbours), books (money, credits and mails, by whole tables), keys (a portion of all keys).
    verify_looks: IntCounterVec = "holdfast_verify_looks_total" ["at": ["new", "closer", "books", "keys"]];
    /// Passes of `verify --watch` over everything.
    verify_passes: IntCounter = "holdfast_verify_passes_total";
    /// When `verify --watch` last looked at what is new, in seconds since 1970.
    verify_looked_at: IntGauge = "holdfast_verify_looked_at_seconds";
    /// The most facts that a look of `verify --watch` has held.
    verify_facts: IntGauge = "holdfast_verify_most_facts";

    /// Spans of traces, by what became of them: sent (the collector has them), dropped (the queue was full as the collector was away or
    /// slow, or it refused them).
    trace_spans: IntCounterVec = "holdfast_trace_spans_total" ["result": ["sent", "dropped"]];
}

/// The content type of [`Metrics::render`]. A scraper that does not find its format named refuses the whole answer.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One metric, as its readers see it: what dashboards and alerts may name.
pub struct Descriptor {
    pub name: &'static str,
    pub help: &'static str,
    pub labels: Vec<Label>,
    buckets: Vec<f64>,
}

/// A label of a metric.
pub struct Label {
    pub name: &'static str,
    /// All its values; none when they are not known beforehand.
    pub values: Vec<&'static str>,
}

impl Descriptor {
    pub fn is_histogram(&self) -> bool {
        !self.buckets.is_empty()
    }

    pub fn is_counter(&self) -> bool {
        self.name.ends_with("_total")
    }

    fn options(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    fn label_names(&self) -> Vec<&'static str> {
        self.labels.iter().map(|label| label.name).collect()
    }

    /// A metric with labels, with a series for each combination of their known values.
    fn with_series<T: MetricVecBuilder>(&self, metric: MetricVec<T>) -> Result<MetricVec<T>, prometheus::Error> {
        let all = self.labels.iter().fold(vec![vec![]], |series: Vec<Vec<&str>>, label| {
            let longer = |series: &Vec<&'static str>| {
                let series = series.clone();
                label.values.iter().map(move |value| [&series[..], &[*value]].concat())
            };
            series.iter().flat_map(longer).collect()
        });
        for values in all {
            metric.get_metric_with_label_values(&values)?;
        }
        Ok(metric)
    }
}

/// A kind of metric.
trait Made: Sized {
    fn made(of: &Descriptor) -> Result<Self, prometheus::Error>;
}

/// Without labels.
macro_rules! made_plain {
    ($($kind:ident)+) => {$(
        impl Made for $kind {
            fn made(of: &Descriptor) -> Result<Self, prometheus::Error> {
                Self::with_opts(of.options())
            }
        }
    )+};
}
made_plain! { IntCounter IntGauge Gauge }

/// With labels.
macro_rules! made_vec {
    ($($kind:ident)+) => {$(
        impl Made for $kind {
            fn made(of: &Descriptor) -> Result<Self, prometheus::Error> {
                of.with_series(Self::new(of.options(), &of.label_names())?)
            }
        }
    )+};
}
made_vec! { IntCounterVec IntGaugeVec }

impl Made for Histogram {
    fn made(of: &Descriptor) -> Result<Self, prometheus::Error> {
        Self::with_opts(HistogramOpts::from(of.options()).buckets(of.buckets.clone()))
    }
}

impl Made for HistogramVec {
    fn made(of: &Descriptor) -> Result<Self, prometheus::Error> {
        let options = HistogramOpts::from(of.options()).buckets(of.buckets.clone());
        of.with_series(Self::new(options, &of.label_names())?)
    }
}

const PARTS: [&str; 23] = [
    "postgres",
    "database-url-file",
    "loyalty-url-file",
    "sweep",
    "mail",
    "mail (count)",
    "mail (contents)",
    "mail (notes)",
    "mail (server)",
    "checkouts",
    "checkouts (count)",
    "reaper",
    "loyalty",
    "engine",
    "subscriptions",
    "provider",
    "quarantine (count)",
    "relay (lock)",
    "relay (session)",
    "relay (listen)",
    "relay (count)",
    "traces",
    "verify",
];

/// The promises that `verify` proves.
const PROMISES: [&str; 7] = [
    "lost",
    "doubled",
    "out_of_order",
    "oversold",
    "money_mismatch",
    "open_authorisations",
    "mail_missing",
];

/// What becomes of a record on a public topic.
const RECORD_STATES: [&str; 7] = [
    "applied",
    "refused",
    "repeats",
    "dead_letters",
    "parked",
    "pending",
    "out_of_scope",
];

/// The states by which checkouts are counted that have not ended, or are not done with.
pub const CHECKOUT_STATES: [&str; 11] = [
    "opened",
    "created",
    "waiting",
    "processing",
    "declined",
    "authorised",
    "sold",
    "undoing",
    "returning",
    "refunded",
    "stuck",
];

const PROVIDER_CALLS: [&str; 8] = [
    "create",
    "authorise",
    "get",
    "find",
    "list",
    "capture",
    "cancel",
    "refund",
];

const PROVIDER_ANSWERS: [&str; 8] = [
    "ok",
    "declined",
    "unknown",
    "refused",
    "key_used",
    "misconfigured",
    "not_found",
    "conflict",
];

const WEBHOOK_RESULTS: [&str; 9] = [
    "accepted",
    "ignored",
    "other_mode",
    "unsigned",
    "forged",
    "old",
    "unreadable",
    "too_large",
    "unavailable",
];

fn dead_letter_reasons() -> Vec<&'static str> {
    DeadLetterReason::ALL.iter().map(|reason| reason.as_str()).collect()
}

fn refusal_reasons() -> BTreeSet<&'static str> {
    let tickets = RefusalReason::ALL.iter().map(|reason| reason.as_str());
    let users = UserRefusalReason::ALL.iter().map(|reason| reason.as_str());
    tickets.chain(users).collect()
}

fn ends_of_checkouts() -> Vec<&'static str> {
    let failures = CheckoutFailure::ALL.iter().map(|reason| reason.as_str());
    ["completed"].into_iter().chain(failures).collect()
}

fn outcome_types() -> BTreeSet<&'static str> {
    TicketOutcome::types()
        .chain(UserOutcome::types())
        .map(outcome_label)
        .collect()
}

/// The type of an outcome without what all have in common and without its version: `ticket.sold`.
pub fn outcome_label(outcome_type: &str) -> &str {
    let name = outcome_type.strip_prefix("holdfast.outcome.").unwrap_or(outcome_type);
    name.rsplit_once('.').map_or(name, |(name, _version)| name)
}

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
    const ALL: [Self; 6] = [
        Self::Read,
        Self::Admitted,
        Self::Taken,
        Self::Decided,
        Self::Written,
        Self::Relayed,
    ];

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

    /// Counts the total of a checkout that was completed.
    pub fn paid(&self, total: &Price) {
        add(&self.revenue, total);
        // So that the first refund in the currency is an increase.
        self.refunded.with_label_values(&[total.currency().code()]);
    }

    /// Counts a refund that was booked.
    pub fn gave_back(&self, amount: &Price) {
        add(&self.refunded, amount);
    }

    /// True once the process ends because of a fault that an alert tells of by its metrics.
    pub fn tell_of_the_end(&self) -> bool {
        self.gate_offsets_lost.get() == 1 || self.relay_back_in_time.get() == 1
    }

    /// Waits for the next scrape.
    pub async fn scraped(&self) {
        self.scrapes.notified().await;
    }

    /// The metrics in Prometheus' text format, named by [`CONTENT_TYPE`].
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        // Before they are gathered: whoever is woken finds in the answer what was counted before.
        self.scrapes.notify_waiters();
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn add(sums: &IntCounterVec, amount: &Price) {
    let minor_units = u64::try_from(amount.amount()).unwrap_or(0);
    sums.with_label_values(&[amount.currency().code()]).inc_by(minor_units);
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

    fn rendered() -> String {
        String::from_utf8(Metrics::new().unwrap().render().unwrap()).unwrap()
    }

    #[test]
    fn every_metric_is_registered_once_under_its_own_name() {
        let text = rendered();
        assert!(
            text.contains("# HELP holdfast_gate_window_records Records in one window of the gate."),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_fault_that_ends_the_process_is_seen_by_the_next_scrape() {
        let metrics = Metrics::new().unwrap();
        assert!(!metrics.tell_of_the_end());
        metrics.gate_offsets_lost.set(1);
        assert!(metrics.tell_of_the_end());
        let (text, ()) = tokio::join!(
            async {
                tokio::task::yield_now().await;
                metrics.render().unwrap()
            },
            metrics.scraped()
        );
        assert!(
            String::from_utf8(text)
                .unwrap()
                .contains("holdfast_gate_offsets_lost 1")
        );
    }

    #[test]
    fn a_series_of_known_values_is_there_before_it_counts() {
        let text = rendered();
        for series in [
            r#"holdfast_checkouts{state="stuck"} 0"#,
            r#"holdfast_provider_calls_total{answer="misconfigured",call="capture"} 0"#,
            r#"holdfast_outcomes_total{type="ticket.sold"} 0"#,
            r#"holdfast_outcome_seconds_bucket{part="told",le="0.5"} 0"#,
            r#"holdfast_refusals_total{reason="sold"} 0"#,
        ] {
            assert!(text.lines().any(|line| line == series), "no {series} in {text}");
        }
        assert!(
            !text.contains("holdfast_gate_lag_records"),
            "its topics are those that a gate reads"
        );
    }
}
