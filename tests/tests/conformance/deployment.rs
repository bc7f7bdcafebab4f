//! What `deploy` brings for containers and clusters. Helm's library renders the chart, Kubernetes' schemas and kube-score judge the
//! manifests, hadolint the image's recipe, a parser of the Compose specification the trial; and Holdfast's own settings take what each
//! container is given.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use holdfast::config::Cli;
use holdfast_tests::kit::certs::{Authority, Certificate};
use holdfast_tests::kit::{checkout, dev_folder, fetch, process};
use serde::Deserialize;

/// The findings of kube-score that stand, and why.
const EXPLAINED: [(&str, &str); 3] = [
    // A limit holds a process back within a tenth of a second although cores are free, and outcomes come late. Requests share the cores.
    ("container-resources", "CPU limit is not set"),
    // A tag is never moved: what it names is what every node has. `image.digest` pins it besides.
    ("container-image-pull-policy", "ImagePullPolicy is not set to Always"),
    // Spread constraints do it, over nodes and zones, evenly.
    ("deployment-has-host-podantiaffinity", "host podAntiAffinity"),
];

/// A container as a manifest or the compose file has it.
#[derive(Deserialize)]
struct Container {
    name: String,
    args: Vec<String>,
    /// Without those that Kubernetes fills in.
    env: Vec<(String, String)>,
}

pub(crate) fn check() -> anyhow::Result<()> {
    let deploy = checkout().join("deploy");
    let rendered = render()?;
    for path in manifests(&rendered)? {
        score(&path)?;
    }
    println!("kube-score: no finding but {} that are explained", EXPLAINED.len());
    let mut hadolint = Command::new(fetch::kubernetes()?.join("hadolint"));
    hadolint.arg(deploy.join("image/Containerfile"));
    process::output(hadolint)?;
    println!("hadolint: nothing to say about the Containerfile");
    plain(&deploy.join("kubernetes/holdfast.yaml"), &rendered.join("minimal.yaml"))?;
    let containers: Vec<Container> = serde_json::from_slice(&fs::read(rendered.join("containers.json"))?)?;
    let files = Files::new(rendered.join("files"))?;
    for container in &containers {
        files
            .take(container)
            .with_context(|| format!("{} {:?}", container.name, container.args))?;
    }
    println!("Holdfast takes the settings of {} containers", containers.len());
    Ok(())
}

/// Renders the chart with each file of values; returns the folder with what comes out.
pub(crate) fn render() -> anyhow::Result<PathBuf> {
    let rendered = dev_folder().join("conformance/manifests");
    let mut render = Command::new(fetch::kubernetes()?.join("python"));
    render
        .arg(fetch::manifests().join("kubernetes/render.py"))
        .arg(&rendered);
    print!("{}", process::output(render)?);
    Ok(rendered)
}

/// The files of manifests in a folder.
pub(crate) fn manifests(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        files.push(entry?.path());
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    Ok(files)
}

fn score(manifests: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(fetch::kube_score()?);
    command.args(["score", "--output-format", "ci", "--kubernetes-version", "v1.37"]);
    let output = command.arg(manifests).output()?;
    let said = String::from_utf8(output.stdout)?;
    let judged = said.lines().filter(|line| !line.starts_with("[SKIPPED]"));
    let (sound, findings): (Vec<_>, Vec<_>) = judged.partition(|line| line.starts_with("[OK]"));
    ensure!(
        !sound.is_empty(),
        "{manifests:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let is_explained = |line: &&str| EXPLAINED.iter().any(|(_, words)| line.contains(words));
    let unexplained: Vec<_> = findings.into_iter().filter(|line| !is_explained(line)).collect();
    ensure!(unexplained.is_empty(), "{manifests:?}: {unexplained:#?}");
    Ok(())
}

/// The plain manifests are what the chart renders. `UPDATE=1` writes them anew.
fn plain(manifests: &Path, rendered: &Path) -> anyhow::Result<()> {
    let wanted = format!(
        "# Rendered from chart/ with values/minimal.yaml: `UPDATE=1 make conformance`.\n{}",
        fs::read_to_string(rendered)?
    );
    if std::env::var_os("UPDATE").is_some() {
        fs::write(manifests, &wanted)?;
    }
    let found = fs::read_to_string(manifests)?;
    ensure!(
        found == wanted,
        "{manifests:?} is not what the chart renders: UPDATE=1 make conformance"
    );
    Ok(())
}

/// The files that the settings name, in a folder of our own in place of a container's `/etc/holdfast`.
struct Files {
    folder: PathBuf,
    authority: Authority,
    /// A client's, with its key.
    client: Certificate,
}

const MOUNTED: &str = "/etc/holdfast";

impl Files {
    fn new(folder: PathBuf) -> anyhow::Result<Self> {
        let authority = Authority::new("conformance")?;
        let root = folder.join("postgres-ca/ca.crt");
        fs::create_dir_all(root.parent().context("a file without a folder")?)?;
        fs::write(root, &authority.certificate)?;
        let client = authority.sign("holdfast", &[])?;
        Ok(Self {
            folder,
            authority,
            client,
        })
    }

    /// Has Holdfast's own parser and checks take what a container is given. A variable that stands for no flag is refused.
    fn take(&self, container: &Container) -> anyhow::Result<()> {
        let mut line = vec![String::from("holdfast")];
        line.extend(container.args.iter().cloned());
        for (name, value) in &container.env {
            let flag = name.strip_prefix("HOLDFAST_").context("a variable of another's")?;
            let flag = flag.to_lowercase().replace('_', "-");
            if let Some(path) = value.strip_prefix(MOUNTED) {
                line.extend([format!("--{flag}"), self.file(&flag, path.trim_start_matches('/'))?]);
            } else if value == "true" {
                line.push(format!("--{flag}"));
            } else {
                line.extend([format!("--{flag}"), value.clone()]);
            }
        }
        let mut cli = Cli::try_parse_from(&line)?;
        if let Err(wrong) = cli.read_secrets().and_then(|()| cli.check()) {
            bail!(
                "{}",
                wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            );
        }
        Ok(())
    }

    fn file(&self, flag: &str, path: &str) -> anyhow::Result<String> {
        let file = self.folder.join(path);
        let root = self.folder.join("postgres-ca/ca.crt");
        let database = format!(
            "postgres://holdfast:sesame@postgres.example/holdfast?sslmode=verify-full&sslrootcert={}",
            root.display()
        );
        let content = match flag {
            "mail-templates" => {
                fs::create_dir_all(&file)?;
                return Ok(file.display().to_string());
            }
            "kafka-ca" => &self.authority.certificate,
            flag if flag.ends_with("certificate") => &self.client.certificate,
            flag if flag.ends_with("private-key") => &self.client.key,
            "database-url-file" | "loyalty-url-file" => &database,
            "smtp-url-file" => "smtps://holdfast:sesame@mail.example",
            "provider-key-file" => "sk_live_sesame",
            "provider-shows" => "{}",
            _ => "sesame",
        };
        fs::create_dir_all(file.parent().context("a file without a folder")?)?;
        fs::write(&file, content)?;
        Ok(file.display().to_string())
    }
}
