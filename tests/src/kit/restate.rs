//! restate-server: one node, or one of a cluster.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::certs::Authority;
use super::identity::Identity;
use super::process::{self, lock};
use super::server::Kind;
use super::until;

/// How long invocations that are killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(60);

pub struct Restate {
    pub(super) binary: PathBuf,
    pub(super) settings: PathBuf,
    pub(super) data: PathBuf,
    pub(super) address: Ipv4Addr,
    pub(super) ingress: u16,
    pub(super) admin: u16,
    pub(super) node: u16,
    pub(super) client: reqwest::Client,
    /// The key by which it signs its calls. Without it, as the bench has it, calls are not signed.
    pub identity: Option<Arc<Identity>>,
    /// The certificates of the authorities that it trusts.
    pub(super) trusted: PathBuf,
    /// Absent for a single node.
    pub(super) place: Option<Place>,
    /// Most attempts of an invocation from the next start on, in place of the setting.
    pub attempts: Mutex<Option<u32>>,
    /// Where it sends its own spans from the next start on: a collector's address for OTLP over HTTP.
    pub tracing: Mutex<Option<String>>,
    /// With it the server has no port: it listens at sockets in its folder, and what stands there is the only way to it.
    pub(super) door: Option<Door>,
}

/// The addresses of the proxy before the engine.
#[derive(Clone)]
pub(super) struct Door {
    admin: String,
    ingress: String,
    /// Has the token, and trusts the proxy's certificate.
    client: reqwest::Client,
}

/// A node's place in a cluster that replicates its metadata.
pub(super) struct Place {
    pub(super) number: usize,
    /// Where the nodes talk to each other.
    pub(super) nodes: Vec<SocketAddrV4>,
}

impl Kind for Restate {
    const NAME: &'static str = "restate";
    const STOP: Signal = Signal::SIGTERM;

    fn prepare(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.data)?;
        let attempts = *lock(&self.attempts);
        match (&self.place, attempts) {
            (None, None) => self.check_settings(),
            _ => Ok(()),
        }
    }

    fn command(&self) -> Command {
        let mut command = process::command(&self.binary, None);
        command
            .arg("--no-logo")
            .arg("--config-file")
            .arg(&self.settings)
            .envs(self.environment());
        if let Some(identity) = &self.identity {
            command.env(
                "RESTATE_WORKER__INVOKER__REQUEST_IDENTITY_PRIVATE_KEY_PEM_FILE",
                &identity.file,
            );
        }
        command
    }

    async fn answers(&self) -> anyhow::Result<()> {
        for url in [
            format!("{}/health", self.admin()),
            format!("{}/restate/health", self.ingress()),
        ] {
            self.client().get(&url).send().await?.error_for_status()?;
        }
        Ok(())
    }
}

impl Restate {
    pub fn ingress(&self) -> String {
        let open = || format!("http://{}:{}", self.address, self.ingress);
        self.door.as_ref().map_or_else(open, |door| door.ingress.clone())
    }

    pub fn admin(&self) -> String {
        let open = || format!("http://{}:{}", self.address, self.admin);
        self.door.as_ref().map_or_else(open, |door| door.admin.clone())
    }

    /// The key by which it signs, of one that does.
    pub fn signer(&self) -> anyhow::Result<&Identity> {
        self.identity.as_deref().context("the engine does not sign")
    }

    /// A client that both let in.
    pub fn client(&self) -> &reqwest::Client {
        self.door.as_ref().map_or(&self.client, |door| &door.client)
    }

    /// Prometheus metrics of the server.
    pub fn metrics(&self) -> String {
        format!("http://{}:{}/metrics", self.address, self.node)
    }

    /// The data folder. While the server is stopped it may be copied and put back with `cp -a`.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Removes all that the engine knows, as when its disk is lost. It must not run.
    pub fn forget(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.data).with_context(|| self.data.display().to_string())
    }

    /// Ends an invocation, whatever it is doing.
    pub async fn kill_invocation(&self, id: &str) -> anyhow::Result<()> {
        self.patch_invocation(id, "kill").await
    }

    pub async fn pause_invocation(&self, id: &str) -> anyhow::Result<()> {
        self.patch_invocation(id, "pause").await
    }

    pub async fn resume_invocation(&self, id: &str) -> anyhow::Result<()> {
        self.patch_invocation(id, "resume").await
    }

    /// Kills invocations of this service until none is left that has not ended.
    pub async fn kill_invocations_of(&self, service: &str) -> anyhow::Result<()> {
        until("no invocation is left", GONE_WITHIN, async || {
            let query = "select id from sys_invocation_status where status <> 'completed' and target_service_name";
            let left = self.sql(&format!("{query} = '{service}'")).await?;
            for invocation in &left {
                let id = invocation["id"].as_str().context("an invocation without an id")?;
                self.kill_invocation(id).await?;
            }
            ensure!(left.is_empty(), "{left:?}");
            anyhow::Ok(())
        })
        .await
    }

    async fn patch_invocation(&self, id: &str, verb: &str) -> anyhow::Result<()> {
        let url = format!("{}/invocations/{id}/{verb}", self.admin());
        let answer = self.client().patch(url).send().await?;
        // It may have ended meanwhile.
        ensure!(
            answer.status().is_success() || answer.status() == 404,
            "{verb} {id}: {}",
            answer.status()
        );
        Ok(())
    }

    /// Rows of a query of the introspection SQL, each an object by column name.
    pub async fn sql(&self, query: &str) -> anyhow::Result<Vec<Value>> {
        #[derive(serde::Deserialize)]
        struct Answer {
            rows: Vec<Value>,
        }
        let request = self
            .client()
            .post(format!("{}/query", self.admin()))
            .header("accept", "application/json");
        let response = request.json(&json!({ "query": query })).send().await?;
        let status = response.status();
        let body = response.text().await?;
        ensure!(status.is_success(), "{query}: {status}: {body}");
        let answer: Answer = serde_json::from_str(&body).with_context(|| body.clone())?;
        Ok(answer.rows)
    }

    /// The answer of a handler that reads, at `path` (`Ticket/a-seat/get`).
    pub async fn look(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        Ok(self.client().get(format!("{}/{path}", self.ingress())).send().await?)
    }

    /// Calls `path` (`Ticket/a-seat/reserve`) through the ingress; gives the status and the body, JSON or null.
    pub async fn call(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> anyhow::Result<(u16, Value)> {
        let mut request = self.client().post(format!("{}/{path}", self.ingress())).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let body = response.bytes().await?;
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    /// The settings that the server runs with, by `section.key`, each as the server prints it.
    pub fn effective_settings(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut command = self.command();
        command.arg("--dump-config");
        Ok(flattened(&process::output(command)?))
    }

    /// The server drops unknown keys silently, so each of ours must come back. A retention of zero comes back as no
    /// line at all.
    fn check_settings(&self) -> anyhow::Result<()> {
        let effective = self.effective_settings()?;
        let wanted = flattened(&fs::read_to_string(&self.settings)?);
        for (key, value) in wanted {
            let is = effective.get(&key);
            let zero = key.ends_with("-retention") && value == "\"0s\"";
            ensure!(
                is == Some(&value) || (zero && is.is_none()),
                "restate-server does not take the setting {key} = {value}: it runs with {is:?}"
            );
        }
        Ok(())
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let mut environment = vec![
            // By default it would do both.
            (
                "RESTATE_LISTEN_MODE",
                if self.door.is_some() { "unix" } else { "tcp" }.to_owned(),
            ),
            ("SSL_CERT_FILE", self.trusted.display().to_string()),
            ("RESTATE_BASE_DIR", self.data.display().to_string()),
            ("RESTATE_BIND_IP", self.address.to_string()),
            ("RESTATE_BIND_PORT", self.node.to_string()),
            ("RESTATE_INGRESS__BIND_PORT", self.ingress.to_string()),
            ("RESTATE_ADMIN__BIND_PORT", self.admin.to_string()),
        ];
        environment.extend(self.place.iter().flat_map(Place::environment));
        let attempts = lock(&self.attempts).map(|attempts| attempts.to_string());
        environment.extend(attempts.map(|attempts| ("RESTATE_DEFAULT_RETRY_POLICY__MAX_ATTEMPTS", attempts)));
        let tracing = lock(&self.tracing).as_ref().map(|endpoint| format!("otlp+{endpoint}"));
        environment.extend(tracing.map(|endpoint| ("RESTATE_TRACING_ENDPOINT", endpoint)));
        environment
    }
}

impl Door {
    pub(super) fn new(admin: &str, ingress: &str, token: &str, trusted: &Authority) -> anyhow::Result<Door> {
        let authorization = HeaderValue::from_str(&format!("Bearer {token}"))?;
        Ok(Door {
            admin: String::from(admin),
            ingress: String::from(ingress),
            client: trusted
                .client()?
                .default_headers(HeaderMap::from_iter([(AUTHORIZATION, authorization)]))
                .build()?,
        })
    }
}

impl Place {
    fn environment(&self) -> [(&'static str, String); 6] {
        let address = |node: &SocketAddrV4| format!("http://{node}/");
        let addresses: Vec<String> = self.nodes.iter().map(address).collect();
        let roles = ["http-ingress", "admin", "worker", "log-server", "metadata-server"];
        [
            ("RESTATE_NODE_NAME", format!("node-{}", self.number)),
            ("RESTATE_ROLES", json!(roles).to_string()),
            ("RESTATE_ADVERTISED_ADDRESS", addresses[self.number].clone()),
            ("RESTATE_METADATA_CLIENT__ADDRESSES", json!(addresses).to_string()),
            ("RESTATE_DEFAULT_REPLICATION", "2".to_owned()),
            // One of them makes the cluster.
            ("RESTATE_AUTO_PROVISION", (self.number == 0).to_string()),
        ]
    }
}

/// The `key = value` lines of a TOML text without arrays of tables; enough to compare scalar settings.
fn flattened(toml: &str) -> BTreeMap<String, String> {
    let mut section = String::new();
    let mut settings = BTreeMap::new();
    for line in toml.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, value)) = line.split_once(" = ") {
            settings.insert(format!("{section}{key}"), String::from(value));
        }
    }
    settings
}
