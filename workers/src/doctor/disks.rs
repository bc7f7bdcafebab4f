//! How full the disks of the servers are. None of them tells its clients: Prometheus knows, by what the usual exporters give it.

use std::collections::BTreeMap;
use std::time::Duration;

use http_body_util::Full;
use hyper::{Request, StatusCode};
use serde::Deserialize;
use time::OffsetDateTime;
use url::Url;

use super::report::Check;
use crate::config::Part;
use crate::error;
use crate::http::{BoxError, Http, Silence};
use crate::restate_admin::below;

/// With less than this percentage free a disk is wrong, between the figures of the usual alerts: node-mixin's
/// `NodeFilesystemAlmostOutOfSpace` comes at 5, kubernetes-mixin's `KubePersistentVolumeFillingUp` at 15 where it fills, else at 3.
const LEAST_FREE: f64 = 10.0;

/// With less than this percentage free a disk is wrong that is full within a day at the pace of the last six hours: both as in
/// node-mixin's `NodeFilesystemSpaceFillingUp`.
const LEAST_FREE_WHERE_IT_FILLS: f64 = 40.0;

/// What is free and how much there is, as node_exporter tells it of file systems that lie on a disk, and the kubelets of volumes.
const EXPORTED: [(&str, &str); 2] = [
    (
        r#"node_filesystem_avail_bytes{fstype!~"tmpfs|overlay|squashfs|ramfs|rootfs"}"#,
        "node_filesystem_size_bytes",
    ),
    (
        "kubelet_volume_stats_available_bytes",
        "kubelet_volume_stats_capacity_bytes",
    ),
];

const PATIENCE: Duration = Duration::from_secs(10);

/// The characters that are shown of a refusal.
const MOST_SAID: usize = 200;

const MEND: &str =
    "give it room, or have its server keep less, before it is full: the section says how, server by server";

/// The labels of a file system or volume.
type Labels = BTreeMap<String, String>;

/// Each disk that this Prometheus knows of.
pub(super) async fn check(prometheus: Option<&Url>) -> Vec<Check> {
    let (part, what) = (Part::Disks, "the disks");
    let Some(url) = prometheus else {
        let why = "set --prometheus (HOLDFAST_PROMETHEUS) to the Prometheus that knows how full they are";
        return vec![Check::unknown(part, what, why)];
    };
    match look(url).await {
        Ok(disks) if disks.is_empty() => vec![Check::wrong(
            part,
            what,
            format!(
                "Prometheus at {url} has neither node_filesystem_avail_bytes nor kubelet_volume_stats_available_bytes"
            ),
            "have it scrape node_exporter on the machines of Kafka, Postgres and Restate, or the kubelets of their volumes",
        )],
        Ok(disks) => disks,
        Err(error) => vec![Check::wrong(
            part,
            format!("Prometheus at {url}"),
            error::chain(&error),
            "start it, or set --prometheus (HOLDFAST_PROMETHEUS) to where it answers",
        )],
    }
}

async fn look(base: &Url) -> Result<Vec<Check>, Error> {
    let http = Http::new(base, PATIENCE).map_err(Error::Client)?;
    let free = EXPORTED.map(|(free, size)| format!("100 * {free} / ({size} > 0) unless node_filesystem_readonly == 1"));
    let free = free.join(" or ");
    let filling = EXPORTED.map(|(free, _)| format!("predict_linear({free}[6h], 86400) < 0"));
    // When it last had more.
    let well = format!("max_over_time(timestamp(({free}) >= {LEAST_FREE})[6h:30s])");
    let free = ask(&http, base, &free).await?;
    let filling = ask(&http, base, &filling.join(" or ")).await?;
    let well = ask(&http, base, &well).await?;
    let mut checks: Vec<_> = free
        .iter()
        .map(|(labels, percent)| {
            let since = well.get(labels).filter(|_| *percent < LEAST_FREE);
            let since = since.and_then(|second| OffsetDateTime::from_unix_timestamp(*second as i64).ok());
            judged(name(labels), *percent, filling.contains_key(labels)).since(since)
        })
        .collect();
    checks.sort_by(|one, other| one.what.cmp(&other.what));
    Ok(checks)
}

fn name(labels: &Labels) -> String {
    let label = |name: &str| labels.get(name).map_or("?", String::as_str);
    match labels.contains_key("persistentvolumeclaim") {
        true => format!(
            "the volume {} of {}",
            label("persistentvolumeclaim"),
            label("namespace")
        ),
        false => format!("{} on {}", label("mountpoint"), label("instance")),
    }
}

fn judged(what: String, percent: f64, is_filling: bool) -> Check {
    let how = format!("{percent:.1} % free");
    let how = match percent {
        ..LEAST_FREE => how,
        ..LEAST_FREE_WHERE_IT_FILLS if is_filling => {
            format!("{how}, and full within a day at the pace of the last six hours")
        }
        _ => return Check::sound(Part::Disks, what, how),
    };
    Check::wrong(Part::Disks, what, how, MEND).page("a-disk-fills-up")
}

/// Asks for one value of each disk.
async fn ask(http: &Http, base: &Url, query: &str) -> Result<BTreeMap<Labels, f64>, Error> {
    let mut url = below(base, "api/v1/query");
    url.query_pairs_mut().append_pair("query", query);
    let answer = http.exchange(Request::get(url.as_str()).body(Full::default())?).await?;
    if answer.status() != StatusCode::OK {
        let message = String::from_utf8_lossy(answer.body())
            .trim()
            .chars()
            .take(MOST_SAID)
            .collect();
        let status = answer.status();
        return Err(Error::Refused { status, message });
    }
    let Answer { data } = serde_json::from_slice(answer.body()).map_err(Error::Unreadable)?;
    let disks = data.result.into_iter().filter_map(|series| {
        let (_, value) = series.value;
        Some((series.metric, value.parse::<f64>().ok()?))
    });
    Ok(disks.collect())
}

/// An instant vector, as Prometheus' HTTP API has it.
#[derive(Deserialize)]
struct Answer {
    data: Vector,
}

#[derive(Deserialize)]
struct Vector {
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    metric: Labels,
    /// When, and the number as text.
    value: (f64, String),
}

/// The reason why Prometheus was not asked, or did not answer.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("no HTTP client for it can be made")]
    Client(#[source] BoxError),
    #[error("it cannot be asked")]
    Request(#[from] hyper::http::Error),
    #[error("it does not answer")]
    Silent(#[from] Silence),
    #[error("it answers {status}: {message}")]
    Refused { status: StatusCode, message: String },
    #[error("what answers is no Prometheus")]
    Unreadable(#[source] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::super::report::Diagnosis;
    use super::*;

    #[test]
    fn a_disk_is_wrong_when_little_is_free_or_soon_will_be() {
        let is_wrong = |percent, is_filling| {
            let check = judged("/ on db:9100".to_owned(), percent, is_filling);
            matches!(check.diagnosis, Diagnosis::Wrong { .. })
        };
        for (percent, filling, steady) in [
            (0.0, true, true),
            (9.9, true, true),
            (10.0, true, false),
            (39.9, true, false),
        ] {
            assert_eq!(
                (is_wrong(percent, true), is_wrong(percent, false)),
                (filling, steady),
                "{percent}"
            );
        }
        assert!(!is_wrong(40.0, true) && !is_wrong(100.0, false));
    }

    #[test]
    fn its_section_of_the_runbook_is_there() {
        assert!(include_str!("../../../docs/runbook.md").contains("\n## A disk fills up\n"));
    }
}
