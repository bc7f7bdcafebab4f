//! Kubernetes' own API server over etcd, to which manifests are put. Nothing acts on what it takes: no pod runs.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::certs::{Authority, CertificateFiles};
use super::patroni::Etcd;
use super::ports::Ports;
use super::server::Kind;
use super::{Server, dev_folder, fetch, process};

/// Its administrator's, on this machine alone.
const TOKEN: &str = "administrator-sesame";

/// Both servers, with their logs in `.dev/kubernetes`, and `kubectl` for them.
pub struct Kubernetes {
    etcd: Server<Etcd>,
    api: Server<ApiServer>,
    kubectl: PathBuf,
    folder: PathBuf,
    /// Held as long as they live.
    _alone: File,
}

pub struct ApiServer {
    binary: PathBuf,
    folder: PathBuf,
    etcd: String,
    port: u16,
    certificate: CertificateFiles,
    client: reqwest::Client,
}

impl Kubernetes {
    /// Fetches and builds them when they are not there; returns once both answer. They begin with nothing.
    pub async fn start() -> anyhow::Result<Kubernetes> {
        let kubernetes = spawn_blocking(open).await??;
        kubernetes.etcd.start().await?;
        kubernetes.api.start().await?;
        Ok(kubernetes)
    }

    /// What `kubectl` prints; its error has what it said.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.kubectl);
        // Nothing of whoever runs this: neither settings nor what other servers have told.
        command
            .env_remove("KUBECONFIG")
            .env("HOME", &self.folder)
            .arg("--kubeconfig")
            .arg(self.folder.join("kubeconfig.json"))
            .args(arguments);
        spawn_blocking(move || process::output(command)).await?
    }

    /// A place for what is put to the server.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn open() -> anyhow::Result<Kubernetes> {
    let folder = dev_folder().join("kubernetes");
    fs::create_dir_all(&folder)?;
    let alone = File::create(folder.join("lock"))?;
    alone.try_lock().context("another process uses this API server")?;
    process::stop_leftovers(&folder)?;
    let ports = Ports::open(folder.join("ports.json"))?;
    let tools = fetch::kube_apiserver()?.join("bin");
    let etcd = Etcd {
        binary: fetch::of_cluster()?.join("usr/bin/etcd"),
        data: folder.join("etcd"),
        number: 0,
        client: SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports.get(Etcd::NAME)?),
        peers: vec![format!("http://127.0.0.1:{}", ports.get("etcd-peers")?)],
    };
    if etcd.data.exists() {
        fs::remove_dir_all(&etcd.data)?;
    }
    let authority = Authority::new("kubernetes")?;
    let trusted = folder.join("ca.crt");
    fs::write(&trusted, &authority.certificate)?;
    let api = ApiServer {
        binary: tools.join("kube-apiserver"),
        etcd: etcd.client_url(),
        port: ports.get(ApiServer::NAME)?,
        certificate: authority
            .sign("kube-apiserver", &["127.0.0.1"])?
            .write(&folder, "server")?,
        client: authority.client()?.build()?,
        folder: folder.clone(),
    };
    let settings = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "kit", "cluster": { "server": api.url(), "certificate-authority": trusted } }],
        "users": [{ "name": "kit", "user": { "token": TOKEN } }],
        "contexts": [{ "name": "kit", "context": { "cluster": "kit", "user": "kit" } }],
        "current-context": "kit",
    });
    fs::write(folder.join("kubeconfig.json"), settings.to_string())?;
    Ok(Kubernetes {
        etcd: Server::new(etcd, folder.clone()),
        api: Server::new(api, folder.clone()),
        kubectl: tools.join("kubectl"),
        folder,
        _alone: alone,
    })
}

impl ApiServer {
    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    fn tokens(&self) -> PathBuf {
        self.folder.join("tokens.csv")
    }
}

impl Kind for ApiServer {
    const NAME: &'static str = "kube-apiserver";
    const STOP: Signal = Signal::SIGTERM;

    fn prepare(&self) -> anyhow::Result<()> {
        fs::write(self.tokens(), format!("{TOKEN},administrator,1,\"system:masters\"\n"))?;
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = process::command(&self.binary, None);
        let CertificateFiles { certificate, key } = &self.certificate;
        let option = |name: &str, file: &PathBuf| format!("--{name}={}", file.display());
        command
            .arg(format!("--etcd-servers={}", self.etcd))
            .arg(format!("--secure-port={}", self.port))
            .arg(option("tls-cert-file", certificate))
            .arg(option("tls-private-key-file", key))
            .arg(option("token-auth-file", &self.tokens()))
            // It wants to be able to sign, though no account of a service is made.
            .arg(option("service-account-key-file", certificate))
            .arg(option("service-account-signing-key-file", key))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg("--disable-admission-plugins=ServiceAccount")
            .arg("--enable-admission-plugins=PodSecurity")
            .args(["--authorization-mode=RBAC", "--bind-address=127.0.0.1"])
            // What else it must be told says nothing here: an address of the documentation's, where nobody is told of it.
            .args(["--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none"])
            .arg("--service-cluster-ip-range=10.99.0.0/24");
        command
    }

    async fn answers(&self) -> anyhow::Result<()> {
        let ready = self.client.get(format!("{}/readyz", self.url()));
        let ready = ready.bearer_auth(TOKEN).send().await?;
        Ok(ready.error_for_status().map(drop)?)
    }
}
