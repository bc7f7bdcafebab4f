//! The program that builds the dashboards. A metric of the product is named by the field of its descriptor, so that one which does
//! not exist does not compile; labels and their values are looked up in the descriptor.

use holdfast::metrics::{Descriptor, Descriptors};
use serde_json::{Value, json};

/// Every dashboard, by the name of its file.
pub(crate) fn all() -> [(&'static str, Value); 3] {
    let metrics = Descriptors::default();
    [
        ("business.json", business(&metrics)),
        ("path.json", path(&metrics)),
        ("servers.json", servers()),
    ]
}

fn business(metrics: &Descriptors) -> Value {
    let mut dashboard = Dashboard::new("holdfast-business", "Holdfast: business");
    seats(&mut dashboard, metrics);
    money(&mut dashboard, metrics);
    checkouts(&mut dashboard, metrics);
    customers(&mut dashboard, metrics);
    dashboard.json()
}

fn seats(dashboard: &mut Dashboard, metrics: &Descriptors) {
    let changes = [
        "ticket.listed",
        "ticket.held",
        "ticket.released",
        "ticket.expired",
        "ticket.sold",
        "ticket.returned",
        "ticket.withdrawn",
    ];
    dashboard
        .row("Seats")
        .panel("Seats of the show, by state", "short", [seats_of_the_show()])
        .panel(
            "What becomes of seats",
            "short",
            [in_range(of(&metrics.outcomes).only("type", &changes), &["type"])],
        )
        .panel(
            "Refusals, by reason",
            "short",
            [in_range(of(&metrics.refusals), &["reason"])],
        );
}

fn money(dashboard: &mut Dashboard, metrics: &Descriptors) {
    dashboard
        .row("Money")
        .panel(
            "Revenue, in minor units",
            "short",
            [in_range(of(&metrics.revenue), &["currency"])],
        )
        .panel(
            "Refunded, in minor units",
            "short",
            [in_range(of(&metrics.refunded), &["currency"])],
        )
        .panel("Refunds, by kind", "short", [in_range(of(&metrics.refunds), &["kind"])])
        .panel(
            "Disputes, by status",
            "short",
            [in_range(of(&metrics.disputes), &["status"])],
        );
}

fn checkouts(dashboard: &mut Dashboard, metrics: &Descriptors) {
    let waits = ["waiting", "declined", "processing"];
    dashboard
        .row("Checkouts")
        .panel(
            "Under way, by state",
            "short",
            [greatest(of(&metrics.checkouts), &["state"])],
        )
        .panel(
            "Ended, by how",
            "short",
            [in_range(of(&metrics.checkouts_ended), &["how"])],
        )
        .panel(
            "Oldest, by state",
            "s",
            [greatest(of(&metrics.checkout_oldest_seconds), &["state"])],
        )
        .panel(
            "That wait for a buyer or a bank",
            "short",
            [greatest(of(&metrics.checkouts).only("state", &waits), &["state"])],
        );
}

fn customers(dashboard: &mut Dashboard, metrics: &Descriptors) {
    dashboard
        .row("Customers")
        .panel(
            "All outcomes, by type",
            "short",
            [in_range(of(&metrics.outcomes), &["type"])],
        )
        .panel("Mails, by result", "short", [in_range(of(&metrics.mails), &["result"])])
        .panel("Mails that wait", "short", [greatest(of(&metrics.mails_waiting), &[])])
        .panel(
            "The oldest mail that waits",
            "s",
            [greatest(of(&metrics.mails_oldest_seconds), &[])],
        );
}

fn path(metrics: &Descriptors) -> Value {
    let mut dashboard = Dashboard::new("holdfast-path", "Holdfast: path");
    objectives(&mut dashboard, metrics);
    rates(&mut dashboard, metrics);
    latency(&mut dashboard, metrics);
    lag(&mut dashboard, metrics);
    engine_and_commit(&mut dashboard, metrics);
    quarantine(&mut dashboard, metrics);
    outbox_and_relay(&mut dashboard, metrics);
    beside_the_path(&mut dashboard, metrics);
    proof(&mut dashboard, metrics);
    dashboard.json()
}

fn objectives(dashboard: &mut Dashboard, metrics: &Descriptors) {
    dashboard
        .row("Objectives")
        .panel(
            "Outcomes later than a second (objective: 1 %)",
            "percentunit",
            [
                plain("holdfast:outcomes_late:ratio_rate5m", "5 minutes"),
                plain("holdfast:outcomes_late:ratio_rate1h", "1 hour"),
                plain("holdfast:outcomes_late:ratio_rate3d", "3 days"),
            ],
        )
        .panel(
            "Time with late checkouts (objective: 1 %)",
            "percentunit",
            [
                plain("holdfast:checkouts_late:ratio5m", "5 minutes"),
                plain("holdfast:checkouts_late:ratio1h", "1 hour"),
                plain("holdfast:checkouts_late:ratio3d", "3 days"),
            ],
        )
        .panel(
            "Promises",
            "short",
            [
                greatest(of(&metrics.gate_offsets_lost), &[]).called("records were lost"),
                greatest(of(&metrics.relay_back_in_time), &[]).called("the database went back in time"),
            ],
        );
}

fn rates(dashboard: &mut Dashboard, metrics: &Descriptors) {
    dashboard
        .row("Rates")
        .panel(
            "Records that gates read, by result",
            "ops",
            [rate(of(&metrics.gate_records), &["result"])],
        )
        .panel(
            "Events decided, by answer",
            "ops",
            [rate(of(&metrics.events), &["answer"])],
        )
        .panel("Rows that the relay told", "ops", [rate(of(&metrics.relay_rows), &[])])
        .panel(
            "Dead letters of gates, by reason",
            "ops",
            [rate(of(&metrics.gate_dead_letters), &["reason"])],
        )
        .panel(
            "Dead letters of serve, by reason",
            "ops",
            [rate(of(&metrics.serve_dead_letters), &["reason"])],
        );
}

fn latency(dashboard: &mut Dashboard, metrics: &Descriptors) {
    dashboard
        .row("Latency")
        .panel(
            "Stages, 99th percentile",
            "s",
            [quantile(0.99, of(&metrics.stage_seconds), &["stage"])],
        )
        .panel(
            "Stages, median",
            "s",
            [quantile(0.5, of(&metrics.stage_seconds), &["stage"])],
        )
        .panel(
            "Outcomes by part, 99th percentile",
            "s",
            [quantile(0.99, of(&metrics.outcome_seconds), &["part"])],
        )
        .panel(
            "Windows of gates",
            "s",
            [
                quantile(0.5, of(&metrics.gate_window_seconds), &[]),
                quantile(0.99, of(&metrics.gate_window_seconds), &[]),
            ],
        )
        .panel(
            "Statements, 99th percentile",
            "s",
            [quantile(0.99, of(&metrics.commit_seconds), &["step"])],
        )
        .panel(
            "Batches of the relay",
            "s",
            [
                quantile(0.5, of(&metrics.relay_batch_seconds), &[]),
                quantile(0.99, of(&metrics.relay_batch_seconds), &[]),
            ],
        );
}

fn lag(dashboard: &mut Dashboard, metrics: &Descriptors) {
    dashboard
        .row("Lag")
        .panel(
            "Records not read yet, by topic",
            "short",
            [sum(of(&metrics.gate_lag_records), &["topic"])],
        )
        .panel(
            "How old records are when they are read",
            "s",
            [quantile(
                0.99,
                of(&metrics.stage_seconds).only("stage", &["read"]),
                &["stage"],
            )],
        )
        .panel(
            "Gates that wait for the engine, partitions that stand still",
            "short",
            [
                sum(of(&metrics.gate_waiting), &[]).called("gates"),
                sum(of(&metrics.gate_stalled_partitions), &[]).called("partitions"),
            ],
        )
        .panel(
            "Records in a window",
            "short",
            [
                quantile(0.5, of(&metrics.gate_window_records), &[]),
                quantile(0.99, of(&metrics.gate_window_records), &[]),
            ],
        )
        .panel(
            "Windows read again, by cause",
            "ops",
            [rate(of(&metrics.gate_windows_repeated), &["cause"])],
        )
        .panel(
            "Commits of offsets that failed",
            "ops",
            [rate(of(&metrics.gate_commit_errors), &[])],
        );
}

fn engine_and_commit(dashboard: &mut Dashboard, metrics: &Descriptors) {
    dashboard
        .row("Engine and commit")
        .panel(
            "Inbox: unfinished and paused invocations",
            "short",
            [
                greatest(of(&metrics.engine_unfinished), &[]).called("unfinished"),
                greatest(of(&metrics.engine_paused), &[]).called("paused"),
            ],
        )
        .panel(
            "The engine answers",
            "short",
            [greatest(of(&metrics.engine_answers), &[])],
        )
        .panel(
            "Units that wait for the committer",
            "short",
            [sum(of(&metrics.commit_waiting), &[])],
        )
        .panel(
            "Events in a batch",
            "short",
            [
                quantile(0.5, of(&metrics.commit_batch_events), &[]),
                quantile(0.99, of(&metrics.commit_batch_events), &[]),
            ],
        )
        .panel("Conflicts", "ops", [rate(of(&metrics.commit_conflicts), &[])])
        .panel("Retries, by where", "ops", [rate(of(&metrics.retries), &["where"])]);
}

fn quarantine(dashboard: &mut Dashboard, metrics: &Descriptors) {
    dashboard
        .row("Quarantine")
        .panel(
            "Tickets and users in quarantine, by topic",
            "short",
            [greatest(of(&metrics.quarantined_keys), &["topic"])],
        )
        .panel(
            "Parked events, by topic",
            "short",
            [greatest(of(&metrics.parked_events), &["topic"])],
        )
        .panel(
            "The longest in quarantine, by topic",
            "s",
            [greatest(of(&metrics.quarantine_oldest_seconds), &["topic"])],
        )
        .panel(
            "What broke, and what was put in quarantine, by cause",
            "short",
            [
                in_range(of(&metrics.quarantine_candidates), &["cause"]).called("broke: {{cause}}"),
                in_range(of(&metrics.quarantined), &["cause"]).called("put in quarantine: {{cause}}"),
            ],
        )
        .panel(
            "Times that too many broke to be put in quarantine",
            "short",
            [in_range(of(&metrics.quarantine_floods), &[])],
        )
        .panel(
            "Keys whose first invocation fails again and again",
            "short",
            [greatest(of(&metrics.engine_stuck), &[])],
        );
}

fn outbox_and_relay(dashboard: &mut Dashboard, metrics: &Descriptors) {
    dashboard
        .row("Outbox and relay")
        .panel(
            "Rows in the outbox",
            "short",
            [
                greatest(of(&metrics.outbox_rows), &[]).called("all"),
                greatest(of(&metrics.outbox_movable), &[]).called("wait for the relay"),
                greatest(of(&metrics.outbox_refused), &[]).called("refused"),
            ],
        )
        .panel(
            "The oldest row",
            "s",
            [greatest(of(&metrics.outbox_oldest_seconds), &[])],
        )
        .panel(
            "Rows in a batch",
            "short",
            [
                quantile(0.5, of(&metrics.relay_batch_rows), &[]),
                quantile(0.99, of(&metrics.relay_batch_rows), &[]),
            ],
        )
        .panel("Relays that lead", "short", [sum(of(&metrics.relay_leader), &[])])
        .panel("Sessions begun again", "ops", [rate(of(&metrics.relay_rebuilds), &[])]);
}

fn beside_the_path(dashboard: &mut Dashboard, metrics: &Descriptors) {
    dashboard
        .row("Beside the path")
        .panel(
            "Connections to Postgres, by state",
            "short",
            [sum(of(&metrics.pool_connections), &["state"])],
        )
        .panel(
            "Tasks that stand still",
            "ops",
            [rate(of(&metrics.failing_rounds), &["part"])],
        )
        .panel(
            "Sweep and reaper",
            "ops",
            [
                rate(of(&metrics.swept_records), &[]).called("records swept"),
                rate(of(&metrics.reaper_sent), &[]).called("holds ended"),
            ],
        )
        .panel(
            "Calls to the payment provider, by answer",
            "ops",
            [rate(of(&metrics.provider_calls), &["call", "answer"])],
        )
        .panel(
            "Calls that were held back",
            "ops",
            [rate(of(&metrics.provider_delays), &["kind", "why"])],
        )
        .panel(
            "Webhooks, by result",
            "ops",
            [rate(of(&metrics.webhook_requests), &["result"])],
        )
        .panel(
            "Spans of traces, by result",
            "ops",
            [rate(of(&metrics.trace_spans), &["result"])],
        )
        .panel(
            "Processes, by version",
            "short",
            [sum(of(&metrics.build_info), &["version"])],
        );
}

fn proof(dashboard: &mut Dashboard, metrics: &Descriptors) {
    dashboard
        .row("Proof, by verify --watch")
        .panel(
            "Keys with a broken promise",
            "short",
            [greatest(of(&metrics.verify_broken), &["promise"])],
        )
        .panel(
            "Records of the last pass, by what became of them",
            "short",
            [greatest(of(&metrics.verify_records), &["state"])],
        )
        .panel(
            "Looks, by what at",
            "ops",
            [
                rate(of(&metrics.verify_looks), &["at"]),
                rate(of(&metrics.verify_passes), &[]).called("whole passes"),
            ],
        )
        .panel(
            "Seconds since the last look at what is new",
            "s",
            [of(&metrics.verify_looked_at)
                .gauge()
                .query("", &[], |series| format!("time() - max({series} > 0)"))],
        )
        .panel(
            "The most facts of a look",
            "short",
            [greatest(of(&metrics.verify_facts), &[])],
        );
}

/// What the servers' own exporters give. These names are checked on a live scrape alone.
fn servers() -> Value {
    let mut dashboard = Dashboard::new("holdfast-servers", "Holdfast: Kafka, Restate, Postgres");
    all_servers(&mut dashboard);
    kafka(&mut dashboard);
    restate(&mut dashboard);
    postgres(&mut dashboard);
    dashboard.json()
}

fn all_servers(dashboard: &mut Dashboard) {
    dashboard.row("All").panel(
        "Answers the scrape, by job",
        "short",
        [plain("min by (job) (up)", "{{job}}")],
    );
}

fn kafka(dashboard: &mut Dashboard) {
    let topics = r#"{topic!~"__consumer_offsets|__transaction_state|__cluster_metadata"}"#;
    let topics = |metric: &str| format!("sum by (topic) (rate({metric}{topics}[$__rate_interval]))");
    dashboard
        .row("Kafka")
        .panel(
            "Records in, by topic",
            "ops",
            [plain(&topics("kafka_topic_messagesin_total"), "{{topic}}")],
        )
        .panel(
            "Bytes in, by topic",
            "Bps",
            [plain(&topics("kafka_topic_bytesin_total"), "{{topic}}")],
        )
        .panel(
            "Bytes out, by topic",
            "Bps",
            [plain(&topics("kafka_topic_bytesout_total"), "{{topic}}")],
        )
        .panel(
            "Requests, 99th percentile",
            "ms",
            [plain(
                "max by (request) (kafka_network_p99_milliseconds)",
                "{{request}}",
            )],
        )
        .panel(
            "Handlers idle",
            "percentunit",
            [plain(
                "min by (instance) (kafka_server_handlers_idle_ratio)",
                "{{instance}}",
            )],
        )
        .panel(
            "Partitions in trouble",
            "short",
            [
                plain("sum(kafka_server_underreplicatedpartitions)", "under-replicated"),
                plain(
                    "sum(kafka_server_underminisrpartitioncount)",
                    "below min.insync.replicas",
                ),
                plain("max(kafka_controller_offlinepartitionscount)", "offline"),
            ],
        )
        .panel(
            "Active controllers",
            "short",
            [plain("sum(kafka_controller_activecontrollercount)", "controllers")],
        )
        .panel(
            "Size, by topic",
            "bytes",
            [plain("sum by (topic) (kafka_log_size_bytes)", "{{topic}}")],
        );
}

fn restate(dashboard: &mut Dashboard) {
    dashboard
        .row("Restate")
        .panel(
            "Commands applied, by command",
            "ops",
            [plain(
                "sum by (command) (rate(restate_partition_apply_command_duration_seconds_count[$__rate_interval]))",
                "{{command}}",
            )],
        )
        .panel(
            "Applying, 99th percentile",
            "s",
            [plain(
                r#"max by (command) (restate_partition_apply_command_duration_seconds{quantile="0.99"})"#,
                "{{command}}",
            )],
        )
        .panel(
            "Sync of the log to disk, 99th percentile",
            "s",
            [plain(
                r#"max by (db) (restate_rocksdb_wal_file_sync_seconds{quantile="0.99"})"#,
                "{{db}}",
            )],
        )
        .panel(
            "Invocations at work",
            "short",
            [
                plain(
                    "sum(restate_invoker_concurrency_slots_acquired) - sum(restate_invoker_concurrency_slots_released)",
                    "at work",
                ),
                plain("sum(restate_invoker_concurrency_limit)", "limit"),
            ],
        )
        .panel(
            "Writes stopped by the disk",
            "short",
            [plain("max by (db) (restate_rocksdb_is_write_stopped)", "{{db}}")],
        )
        .panel(
            "Data on disk",
            "bytes",
            [plain(
                "sum by (db) (restate_rocksdb_total_sst_files_size_bytes)",
                "{{db}}",
            )],
        )
        .panel(
            "Memory",
            "bytes",
            [plain(
                "sum by (instance) (restate_jemalloc_resident_bytes)",
                "{{instance}}",
            )],
        );
}

fn postgres(dashboard: &mut Dashboard) {
    dashboard
        .row("Postgres")
        .panel("Reached by its exporter", "short", [plain("min by (instance) (pg_up)", "{{instance}}")])
        .panel("Sessions, by state", "short", [plain("sum by (state) (pg_stat_activity_count)", "{{state}}"), plain("max(pg_settings_max_connections)", "limit")])
        .panel("Transactions", "ops", [plain("sum by (datname) (rate(pg_stat_database_xact_commit[$__rate_interval]))", "{{datname}} committed"), plain("sum by (datname) (rate(pg_stat_database_xact_rollback[$__rate_interval]))", "{{datname}} rolled back")])
        .panel("The longest transaction", "s", [plain("max by (datname) (pg_stat_activity_max_tx_duration)", "{{datname}}")])
        .panel("Read from memory", "percentunit", [plain("sum(rate(pg_stat_database_blks_hit[$__rate_interval])) / (sum(rate(pg_stat_database_blks_hit[$__rate_interval])) + sum(rate(pg_stat_database_blks_read[$__rate_interval])))", "share")])
        .panel("Deadlocks", "ops", [plain("sum by (datname) (rate(pg_stat_database_deadlocks[$__rate_interval]))", "{{datname}}")])
        .panel("Locks, by mode", "short", [plain("sum by (mode) (pg_locks_count)", "{{mode}}")])
        .panel("Size", "bytes", [plain("sum by (datname) (pg_database_size_bytes)", "{{datname}}")]);
}

/// Metrics have no label for a show, of which there may be any number: the database is asked for the one that is chosen above.
fn seats_of_the_show() -> Query {
    Query {
        source: Source::Postgres,
        expression:
            "select status, count(*) from tickets where show = ${show:sqlstring} group by status order by status"
                .to_owned(),
        legend: String::new(),
    }
}

/// The series of a metric of the product.
struct Series<'a> {
    metric: &'a Descriptor,
    matchers: String,
}

fn of(metric: &Descriptor) -> Series<'_> {
    Series {
        metric,
        matchers: String::new(),
    }
}

impl Series<'_> {
    /// Those with one of these values of a label.
    fn only(mut self, label: &str, values: &[&str]) -> Self {
        let known = self.metric.labels.iter().find(|known| known.name == label);
        let known = known.unwrap_or_else(|| panic!("{} has no label {label}", self.metric.name));
        let unknown: Vec<_> = values.iter().filter(|value| !known.values.contains(value)).collect();
        assert!(unknown.is_empty(), "{} has no {label} {unknown:?}", self.metric.name);
        self.matchers = format!("{{{label}=~\"{}\"}}", values.join("|"));
        self
    }

    /// A query about them, by these labels; `expression` is made of the name with this ending and the matchers.
    fn query(self, ending: &str, by: &[&str], expression: impl Fn(&str) -> String) -> Query {
        let Descriptor { name, labels, .. } = self.metric;
        for label in by {
            assert!(
                labels.iter().any(|known| known.name == *label),
                "{name} has no label {label}"
            );
        }
        let legend: Vec<_> = by.iter().map(|label| format!("{{{{{label}}}}}")).collect();
        Query {
            source: Source::Prometheus,
            expression: expression(&format!("{name}{ending}{}", self.matchers)),
            legend: legend.join(" "),
        }
    }

    fn counter(self) -> Self {
        assert!(self.metric.is_counter(), "{} is no counter", self.metric.name);
        self
    }

    fn gauge(self) -> Self {
        let Descriptor { name, .. } = self.metric;
        assert!(
            !self.metric.is_counter() && !self.metric.is_histogram(),
            "{name} is no gauge"
        );
        self
    }
}

/// A question to a data source, with the name of each series of the answer.
struct Query {
    source: Source,
    expression: String,
    legend: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Source {
    Prometheus,
    Postgres,
}

impl Query {
    fn called(self, legend: &str) -> Self {
        let legend = legend.to_owned();
        Self { legend, ..self }
    }
}

/// An expression as it is: of recorded series, or of other people's metrics.
fn plain(expression: &str, legend: &str) -> Query {
    Query {
        source: Source::Prometheus,
        expression: expression.to_owned(),
        legend: legend.to_owned(),
    }
}

/// A counter's increase per second, over all processes.
fn rate(series: Series<'_>, by: &[&str]) -> Query {
    let sum = aggregate("sum", by);
    series
        .counter()
        .query("", by, |series| format!("{sum} (rate({series}[$__rate_interval]))"))
}

/// A counter's increase from one point of the chart to the next, over all processes.
fn in_range(series: Series<'_>, by: &[&str]) -> Query {
    let sum = aggregate("sum", by);
    series
        .counter()
        .query("", by, |series| format!("{sum} (increase({series}[$__rate_interval]))"))
}

/// A gauge of which each process has a share.
fn sum(series: Series<'_>, by: &[&str]) -> Query {
    let sum = aggregate("sum", by);
    series.gauge().query("", by, |series| format!("{sum} ({series})"))
}

/// A gauge of which each process that has it knows the whole.
fn greatest(series: Series<'_>, by: &[&str]) -> Query {
    let max = aggregate("max", by);
    series.gauge().query("", by, |series| format!("{max} ({series})"))
}

fn quantile(share: f64, series: Series<'_>, by: &[&str]) -> Query {
    assert!(series.metric.is_histogram(), "{} is no histogram", series.metric.name);
    let sum = aggregate("sum", &[by, &["le"]].concat());
    let query = series.query("_bucket", by, |buckets| {
        format!("histogram_quantile({share}, {sum} (rate({buckets}[$__rate_interval])))")
    });
    match by.is_empty() {
        true => query.called(&format!("{share}")),
        false => query,
    }
}

fn aggregate(how: &str, by: &[&str]) -> String {
    match by.is_empty() {
        true => how.to_owned(),
        false => format!("{how} by ({})", by.join(", ")),
    }
}

/// Three panels lie side by side.
const WIDTH: usize = 8;
const HEIGHT: usize = 8;
const COLUMNS: usize = 24;

struct Dashboard {
    uid: &'static str,
    title: &'static str,
    panels: Vec<Value>,
    /// Where the next panel goes.
    place: (usize, usize),
}

impl Dashboard {
    fn new(uid: &'static str, title: &'static str) -> Self {
        Self {
            uid,
            title,
            panels: Vec::new(),
            place: (0, 0),
        }
    }

    fn row(&mut self, title: &str) -> &mut Self {
        let (column, line) = self.place;
        let line = if column > 0 { line + HEIGHT } else { line };
        self.panels.push(json!({
            "id": self.panels.len() + 1,
            "type": "row",
            "title": title,
            "collapsed": false,
            "gridPos": { "x": 0, "y": line, "w": COLUMNS, "h": 1 },
            "panels": [],
        }));
        self.place = (0, line + 1);
        self
    }

    fn panel<const N: usize>(&mut self, title: &str, unit: &str, queries: [Query; N]) -> &mut Self {
        let (column, line) = self.place;
        let source = queries[0].source;
        let targets = queries.iter().zip('A'..).map(|(query, place)| query.target(place));
        self.panels.push(json!({
            "id": self.panels.len() + 1,
            "type": if source == Source::Postgres { "barchart" } else { "timeseries" },
            "title": title,
            "datasource": source.json(),
            "gridPos": { "x": column, "y": line, "w": WIDTH, "h": HEIGHT },
            "fieldConfig": { "defaults": { "unit": unit, "min": 0 }, "overrides": [] },
            "targets": targets.collect::<Vec<_>>(),
        }));
        let next = column + WIDTH;
        self.place = if next < COLUMNS {
            (next, line)
        } else {
            (0, line + HEIGHT)
        };
        self
    }

    fn json(self) -> Value {
        let asks_postgres = self.panels.iter().any(|panel| panel["type"] == "barchart");
        let mut variables =
            vec![json!({ "name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus" })];
        if asks_postgres {
            variables.extend([
                json!({ "name": "postgres", "label": "Postgres", "type": "datasource", "query": "grafana-postgresql-datasource" }),
                json!({ "name": "show", "label": "Show", "type": "textbox", "query": "" }),
            ]);
        }
        json!({
            "uid": self.uid,
            "title": self.title,
            "tags": ["holdfast"],
            "schemaVersion": 39,
            "editable": true,
            "refresh": "30s",
            "time": { "from": "now-6h", "to": "now" },
            "templating": { "list": variables },
            "panels": self.panels,
        })
    }
}

impl Query {
    fn target(&self, place: char) -> Value {
        match self.source {
            Source::Prometheus => json!({
                "refId": place.to_string(),
                "datasource": self.source.json(),
                "expr": self.expression,
                "legendFormat": self.legend,
            }),
            Source::Postgres => json!({
                "refId": place.to_string(),
                "datasource": self.source.json(),
                "format": "table",
                "rawQuery": true,
                "rawSql": self.expression,
            }),
        }
    }
}

impl Source {
    fn json(self) -> Value {
        match self {
            Self::Prometheus => json!({ "type": "prometheus", "uid": "${datasource}" }),
            Self::Postgres => json!({ "type": "grafana-postgresql-datasource", "uid": "${postgres}" }),
        }
    }
}
