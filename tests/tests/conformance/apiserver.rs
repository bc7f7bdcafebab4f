//! What `deploy` brings for clusters, judged by Kubernetes' own API server: each manifest goes through `kubectl apply --dry-run=server`,
//! into namespaces where PodSecurity enforces `restricted`, and beside the definitions of operators. To build the server takes a quarter
//! of an hour, so this is no part of `make conformance`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast_tests::kit::{Kubernetes, checkout, fetch, process, until};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::deployment;

const PATIENCE: Duration = Duration::from_secs(60);

/// Those that the manifests name.
const NAMESPACES: [&str; 2] = ["holdfast", "kafka"];

/// The classes that Strimzi's definitions are made of.
const STRIMZI: [&str; 4] = [
    "kafka.Kafka",
    "nodepool.KafkaNodePool",
    "topic.KafkaTopic",
    "user.KafkaUser",
];

/// The package that the Prometheus operator's definitions are made of.
const PROMETHEUS: &str = "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1";

pub(crate) async fn check() -> anyhow::Result<()> {
    let kubernetes = Kubernetes::start().await?;
    let rendered = spawn_blocking(deployment::render).await??;
    make_namespaces(&kubernetes).await?;
    let defined = define(&kubernetes).await?;
    let folder = checkout().join("deploy/kubernetes");
    let mut files = vec![folder.join("holdfast.yaml")];
    files.extend(deployment::manifests(&rendered)?);
    files.extend(deployment::manifests(&folder.join("operators"))?);
    let mut accepted = Vec::new();
    for file in &files {
        let name = name_of(file);
        let unknown = unknown_groups(file, &defined)?;
        if unknown.is_empty() {
            let manifests = apply(&kubernetes, file).await?;
            println!("{name}: {} manifests are accepted", manifests.len());
            accepted.extend(manifests);
        } else {
            println!("{name}: NOT JUDGED, since nobody gave the definitions of {unknown:?} (CRDS=<folder>)");
        }
    }
    let pods = pods(&accepted);
    let pods = apply_these(&kubernetes, &pods).await?;
    println!(
        "kube-apiserver accepts {} manifests without a warning, and their {} pods in a namespace that is `restricted`",
        accepted.len(),
        pods.len()
    );
    accepted.extend(pods);
    refuse(&kubernetes, &accepted).await
}

/// The kind of a manifest, a field, what it holds instead, and words of the refusal.
type Mistake = (&'static str, &'static str, Value, &'static str);

fn mistakes() -> [Mistake; 7] {
    [
        (
            "Deployment",
            "/spec/replicas",
            json!("three"),
            "cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas",
        ),
        (
            "Deployment",
            "/spec/replica",
            json!(3),
            "strict decoding error: unknown field \"spec.replica\"",
        ),
        (
            "Deployment",
            "/spec/template/spec/hostPID",
            json!(true),
            "would violate PodSecurity \"restricted:latest\"",
        ),
        (
            "Pod",
            "/spec/securityContext/runAsNonRoot",
            json!(false),
            "forbidden: violates PodSecurity \"restricted:latest\"",
        ),
        (
            "KafkaTopic",
            "/spec/partitions",
            json!("eight"),
            "spec.partitions in body must be of type integer",
        ),
        (
            "KafkaUser",
            "/spec/password",
            json!("sesame"),
            "strict decoding error: unknown field \"spec.password\"",
        ),
        (
            "PrometheusRule",
            "/spec/groups",
            json!("none"),
            "spec.groups in body must be of type array",
        ),
    ]
}

/// One mistake in what was accepted, and it is refused for that.
async fn refuse(kubernetes: &Kubernetes, accepted: &[Value]) -> anyhow::Result<()> {
    let mistakes = mistakes();
    for (kind, pointer, value, words) in &mistakes {
        let sound = accepted.iter().find(|manifest| manifest["kind"] == *kind);
        let sound = sound.with_context(|| format!("there is no {kind}"))?;
        let mut wrong = named_as(sound, kind, &sound["apiVersion"], &sound["spec"]);
        let (parent, field) = pointer.rsplit_once('/').context("not a pointer")?;
        let parent = wrong.pointer_mut(parent).and_then(Value::as_object_mut);
        parent.context(*pointer)?.insert(field.to_owned(), value.clone());
        let Err(refusal) = apply_these(kubernetes, &[wrong]).await else {
            bail!("{kind} with {value} in {pointer} is accepted");
        };
        let refusal = format!("{refusal:#}");
        ensure!(
            refusal.contains(*words),
            "{kind} with {value} in {pointer} is refused for another reason: {refusal}"
        );
    }
    println!("with one mistake each, {} are refused", mistakes.len());
    Ok(())
}

async fn make_namespaces(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    let labels = json!({
        // Pods alone are refused. About what will start pods the server warns.
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/warn": "restricted",
    });
    let namespaces = NAMESPACES
        .map(|name| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } }));
    let file = write(kubernetes, &namespaces)?;
    kubernetes
        .kubectl(&["create", "--filename", text(&file)?])
        .await
        .map(drop)
}

/// Gives the server the definitions of the Prometheus operator and of Strimzi, and those in the folder `CRDS`. Returns the groups of what is
/// defined then.
async fn define(kubernetes: &Kubernetes) -> anyhow::Result<BTreeSet<String>> {
    let made = kubernetes.file("definitions");
    let to = made.clone();
    spawn_blocking(move || make_definitions(&to)).await??;
    let given = std::env::var_os("CRDS").filter(|folder| !folder.is_empty());
    for folder in [Some(made), given.map(PathBuf::from)].into_iter().flatten() {
        // The other way of `apply` copies a definition into an annotation, for which it is too long.
        let apply = ["apply", "--server-side", "--recursive", "--filename", text(&folder)?];
        kubernetes.kubectl(&apply).await?;
    }
    let all = "customresourcedefinitions";
    let established = ["wait", "--for=condition=Established", "--timeout=60s", "--all", all];
    kubernetes.kubectl(&established).await?;
    let groups = ["get", all, "--output=jsonpath={.items[*].spec.group}"];
    let groups = kubernetes.kubectl(&groups).await?;
    let groups: BTreeSet<String> = groups.split_whitespace().map(str::to_owned).collect();
    until("kube-apiserver serves what is defined", PATIENCE, async || {
        let served = kubernetes.kubectl(&["api-versions"]).await?;
        for group in &groups {
            let version = format!("{group}/");
            ensure!(
                served.lines().any(|line| line.starts_with(&version)),
                "no {group} in {served}"
            );
        }
        anyhow::Ok(())
    })
    .await?;
    println!("defined: {groups:?}");
    Ok(groups)
}

fn make_definitions(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let module = fetch::kube_apiserver()?;
    let mut prometheus = Command::new(module.join("bin/controller-gen"));
    prometheus
        .args(["crd:maxDescLen=0", &format!("paths={PROMETHEUS}")])
        .arg(format!("output:crd:dir={}", folder.display()))
        .current_dir(module);
    process::output(prometheus)?;
    let mut strimzi = Command::new(fetch::newer_java()?);
    strimzi
        .arg("-cp")
        .arg(fetch::strimzi()?.join("*"))
        .arg("io.strimzi.crdgenerator.CrdGenerator")
        .args(["--target-kube", "1.16+", "--crd-api-version", "v1"])
        .args(["--api-versions", "v1", "--storage-version", "v1", "--yaml"]);
    for class in STRIMZI {
        let file = folder.join(format!("{class}.yaml"));
        strimzi.arg(format!("io.strimzi.api.kafka.model.{class}={}", file.display()));
    }
    process::output(strimzi).map(drop)
}

/// The groups of operators' resources in a file that nobody has defined.
fn unknown_groups(file: &Path, defined: &BTreeSet<String>) -> anyhow::Result<BTreeSet<String>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let versions = text.lines().filter_map(|line| line.strip_prefix("apiVersion: "));
    let groups = versions.filter_map(|version| version.split_once('/'));
    let of_operators = groups
        .map(|(group, _)| group)
        .filter(|group| group.contains('.') && !group.ends_with(".k8s.io"));
    let unknown = of_operators.filter(|group| !defined.contains(*group));
    Ok(unknown.map(str::to_owned).collect())
}

/// The pods that manifests start, as controllers make them.
fn pods(manifests: &[Value]) -> Vec<Value> {
    let templates = ["/spec/template/spec", "/spec/jobTemplate/spec/template/spec"];
    let pod = |starter: &Value| {
        let spec = templates.iter().find_map(|template| starter.pointer(template))?;
        Some(named_as(starter, "Pod", &json!("v1"), spec))
    };
    manifests.iter().filter_map(pod).collect()
}

/// A manifest of the name of another, with nothing else of it, such as what the server has filled in.
fn named_as(other: &Value, kind: &str, version: &Value, spec: &Value) -> Value {
    let metadata = &other["metadata"];
    json!({
        "apiVersion": version,
        "kind": kind,
        "metadata": { "name": metadata["name"], "namespace": metadata["namespace"] },
        "spec": spec,
    })
}

async fn apply_these(kubernetes: &Kubernetes, manifests: &[Value]) -> anyhow::Result<Vec<Value>> {
    let file = write(kubernetes, manifests)?;
    apply(kubernetes, &file).await
}

/// Returns the manifests as the server has filled them in. A warning is a refusal.
async fn apply(kubernetes: &Kubernetes, file: &Path) -> anyhow::Result<Vec<Value>> {
    let dry_run = ["apply", "--dry-run=server", "--warnings-as-errors", "--output=json"];
    let answer = kubernetes
        .kubectl(&[&dry_run[..], &["--filename", text(file)?][..]].concat())
        .await?;
    let answer: Value = serde_json::from_str(&answer).with_context(|| name_of(file))?;
    // A file with one manifest is answered with that.
    Ok(match answer["items"].as_array() {
        Some(items) => items.clone(),
        None => vec![answer],
    })
}

fn write(kubernetes: &Kubernetes, manifests: &[Value]) -> anyhow::Result<PathBuf> {
    let file = kubernetes.file("manifests.json");
    // One after the other: the parts of a `List` are judged by `kubectl` before the server sees them.
    let lines: Vec<String> = manifests.iter().map(Value::to_string).collect();
    fs::write(&file, lines.join("\n"))?;
    Ok(file)
}

fn name_of(file: &Path) -> String {
    file.file_name().unwrap_or_default().display().to_string()
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| path.display().to_string())
}
