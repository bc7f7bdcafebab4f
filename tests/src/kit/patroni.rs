//! PostgreSQL under Patroni, which keeps one of several the leader and has another take its place, and the etcd in which it holds the
//! leader's lease.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{User, chown};
use serde_json::{Value, json};

use super::network::Host;
use super::postgres::DATABASE;
use super::process;
use super::server::{Kind, Server};

/// The name of the cluster in etcd.
const SCOPE: &str = "holdfast";
const ANSWER: Duration = Duration::from_secs(2);
/// Postgres' processes, as the system names them.
const POSTGRES: &str = "postgres";

pub struct Etcd {
    pub(super) binary: PathBuf,
    pub(super) data: PathBuf,
    pub(super) number: usize,
    pub(super) client: SocketAddrV4,
    /// Where the members talk to each other.
    pub(super) peers: Vec<String>,
}

impl Etcd {
    pub(super) fn client_url(&self) -> String {
        format!("http://{}", self.client)
    }
}

impl Kind for Etcd {
    const NAME: &'static str = "etcd";
    const STOP: Signal = Signal::SIGTERM;

    fn prepare(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = process::command(&self.binary, None);
        let name = |number: usize| format!("etcd-{number}");
        let members: Vec<_> = self
            .peers
            .iter()
            .enumerate()
            .map(|(number, url)| format!("{}={url}", name(number)))
            .collect();
        let (peer, client) = (&self.peers[self.number], self.client_url());
        for (option, value) in [
            ("name", &name(self.number)),
            ("data-dir", &self.data.display().to_string()),
            ("listen-peer-urls", peer),
            ("initial-advertise-peer-urls", peer),
            ("listen-client-urls", &client),
            ("advertise-client-urls", &client),
            ("initial-cluster", &members.join(",")),
            // A disk that all share is slow to sync at times.
            ("heartbeat-interval", &"200".to_owned()),
            ("election-timeout", &"2000".to_owned()),
            ("logger", &"zap".to_owned()),
        ] {
            command.arg(format!("--{option}={value}"));
        }
        command
    }

    async fn answers(&self) -> anyhow::Result<()> {
        ask(&format!("{}/health", self.client_url())).await.map(drop)
    }
}

/// One of several PostgreSQL servers, with the Patroni that starts and stops it.
pub struct Patroni {
    /// A Python that knows Patroni, and the programs of PostgreSQL.
    pub(super) python: PathBuf,
    pub(super) programs: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) user: Option<User>,
    pub(super) number: usize,
    pub(super) address: Ipv4Addr,
    pub(super) port: u16,
    /// Where Patroni answers.
    pub(super) rest: u16,
    /// `host:port` of each etcd.
    pub(super) etcds: Vec<String>,
}

/// What a member of the cluster is, as Patroni has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole {
    Leader,
    /// Has every commit before it is acknowledged.
    Synchronous,
    Other,
}

impl fmt::Display for MemberRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemberRole::Leader => "leader",
            MemberRole::Synchronous => "synchronous standby",
            MemberRole::Other => "other standby",
        })
    }
}

impl Kind for Patroni {
    const NAME: &'static str = "patroni";
    const STOP: Signal = Signal::SIGTERM;

    fn prepare(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.folder)?;
        fs::write(self.settings(), self.wanted().to_string())?;
        if let Some(user) = &self.user {
            chown(&self.folder, Some(user.uid), Some(user.gid))?;
        }
        Ok(())
    }

    /// In a namespace of process ids, in which Patroni takes the part of init: PostgreSQL is not its child, and ends with it like this.
    fn command(&self) -> Command {
        let mut patroni = process::command(&self.python, self.user.as_ref());
        patroni.args(["-m", "patroni"]).arg(self.settings());
        let mut command = process::command(Path::new("unshare"), None);
        if self.user.is_none() {
            command.args(["--user", "--map-current-user"]);
        }
        command.args(["--pid", "--fork", "--mount-proc", "--"]);
        command.arg(patroni.get_program()).args(patroni.get_args());
        command.current_dir(&self.folder).env("LC_ALL", "C");
        command
    }

    /// Ready once PostgreSQL is.
    async fn answers(&self) -> anyhow::Result<()> {
        ask(&format!("{}/health", self.rest_url())).await.map(drop)
    }
}

impl Patroni {
    /// Of PostgreSQL, the leader or not.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}:{}/{DATABASE}", self.address, self.port)
    }

    fn rest_url(&self) -> String {
        format!("http://{}:{}", self.address, self.rest)
    }

    fn name(&self) -> String {
        member(self.number)
    }

    /// The role and the state of each member of so many, by number, as this one knows it. One that is lost is forgotten after a while.
    pub async fn members(&self, count: usize) -> anyhow::Result<Vec<(MemberRole, String)>> {
        let known: Value = ask(&format!("{}/cluster", self.rest_url())).await?.json().await?;
        let of = |number: usize| {
            let mut members = known["members"].as_array().into_iter().flatten();
            let found = members.find(|found| found["name"] == member(number).as_str());
            let of_it = |field: &str| found.and_then(|found| found[field].as_str());
            let role = match of_it("role") {
                Some("leader") => MemberRole::Leader,
                Some("sync_standby") => MemberRole::Synchronous,
                _ => MemberRole::Other,
            };
            (role, of_it("state").unwrap_or("lost").to_owned())
        };
        Ok((0..count).map(of).collect())
    }

    /// The command that tries to write to this server, whatever it is, from its own host.
    pub(super) fn attempt_to_write(&self, host: &Host) -> Command {
        let mut psql = Command::new("timeout");
        psql.arg("8").arg(self.programs.join("psql"));
        psql.args(["-X", "-q", "-d", &self.url(), "-c", "create table written_aside ()"]);
        host.run(psql)
    }

    fn settings(&self) -> PathBuf {
        self.folder.join("patroni.json")
    }

    fn wanted(&self) -> Value {
        let (listen, rest) = (
            format!("{}:{}", self.address, self.port),
            format!("{}:{}", self.address, self.rest),
        );
        let login = |name: &str| json!({ "username": name, "password": name });
        json!({
            "scope": SCOPE,
            "name": self.name(),
            "restapi": { "listen": rest, "connect_address": rest },
            "etcd3": { "hosts": self.etcds },
            "bootstrap": {
                "dcs": {
                    // A leader that is lost is replaced after `ttl`; it gives up before, after `retry_timeout`, if it lives.
                    "ttl": 20,
                    "loop_wait": 3,
                    "retry_timeout": 5,
                    // No commit is acknowledged that a standby does not have.
                    "synchronous_mode": true,
                    "synchronous_mode_strict": true,
                    "postgresql": {
                        "use_pg_rewind": true,
                        "remove_data_directory_on_rewind_failure": true,
                        "remove_data_directory_on_diverged_timelines": true,
                        "parameters": { "max_connections": 100, "max_prepared_transactions": 64, "wal_log_hints": "on" },
                    },
                },
                "initdb": [{ "auth": "trust" }, { "encoding": "UTF8" }, "no-locale"],
            },
            "postgresql": {
                "listen": listen,
                "connect_address": listen,
                "data_dir": self.folder.join("data"),
                "bin_dir": self.programs,
                "pgpass": self.folder.join("pgpass"),
                "authentication": {
                    "superuser": login("postgres"),
                    "replication": login("replicator"),
                    "rewind": login("rewind"),
                },
                "pg_hba": ["host all all 0.0.0.0/0 trust", "host replication all 0.0.0.0/0 trust"],
                "basebackup": [{ "checkpoint": "fast" }],
                "parameters": {
                    "unix_socket_directories": "",
                    "shared_buffers": "128MB",
                    // A standby that is cut off is noticed.
                    "wal_sender_timeout": "10s",
                },
            },
        })
    }
}

impl Server<Patroni> {
    /// Has Patroni shut PostgreSQL down in good order and give its part away, and waits until both have ended.
    pub async fn shut_down(&self) -> anyhow::Result<()> {
        // What has made the namespace waits for Patroni, its only child, and is deaf to the signal.
        if let Some(patroni) = process::children(self.pid()?).pop() {
            kill(patroni, Patroni::STOP)?;
        }
        self.stop().await
    }

    /// Freezes Patroni, and lets PostgreSQL go on.
    pub fn freeze_keeper(&self) -> anyhow::Result<()> {
        for process in process::children(self.pid()?) {
            let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            if name.trim_end() != POSTGRES {
                kill(process, Signal::SIGSTOP)?;
            }
        }
        Ok(())
    }
}

/// One that is frozen or cut off never answers.
async fn ask(url: &str) -> anyhow::Result<reqwest::Response> {
    let client = reqwest::Client::builder().timeout(ANSWER).build()?;
    Ok(client.get(url).send().await?.error_for_status()?)
}

fn member(number: usize) -> String {
    format!("database-{}", number + 1)
}
