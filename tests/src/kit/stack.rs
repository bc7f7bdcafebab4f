//! The servers together, by name.

use std::fs::{self, File, TryLockError};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail, ensure};
use futures::future::try_join_all;
use sqlx::AssertSqlSafe;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::certs::Authority;
use super::doors::Doors;
use super::identity::Identity;
use super::kafka::Voter;
use super::kafka_lock::{ROLES, Security, rights};
use super::ports::Ports;
use super::provider::Simulator;
use super::restate::Place;
use super::worker::Launch;
use super::{Kafka, Maildev, Postgres, Restate, Server, dev_folder, fetch, process};

/// Stacks may run beside each other; one name runs once per checkout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Held open by `make dev`; the only stack that keeps its data.
    Dev,
    /// The proofs have several, by number.
    Test(usize),
    Demo,
    /// Its workers run in pods.
    Pods,
    /// Syncs to disk everywhere, in Kafka too.
    Bench,
    /// On which `make conformance` runs the recipes.
    Recipes,
    /// On which a proof walks `docs/on-call.md`.
    OnCall,
    /// Begun by the previous release.
    Upgrades,
    /// Its stores are lost and put back.
    Restore,
    /// Only its PostgreSQL is started, to check statements against.
    Sqlx,
    /// Every wire is encrypted, every party has a name, and each may do what it must. Held open by `make dev LOCKED=1`; the proofs
    /// have one too.
    Locked,
    /// As `Bench` and `Locked` at once.
    BenchLocked,
    /// Several of each server: see [`super::Cluster`].
    Cluster,
}

impl Name {
    fn folder(self) -> PathBuf {
        dev_folder().join(match self {
            Name::Dev => "dev".to_owned(),
            Name::Test(number) => format!("test-{number}"),
            Name::Demo => "demo".to_owned(),
            Name::Pods => "pods".to_owned(),
            Name::Bench => "bench".to_owned(),
            Name::Recipes => "recipes".to_owned(),
            Name::OnCall => "on-call".to_owned(),
            Name::Upgrades => "upgrades".to_owned(),
            Name::Restore => "restore".to_owned(),
            Name::Sqlx => "sqlx".to_owned(),
            Name::Locked => "locked".to_owned(),
            Name::BenchLocked => "bench-locked".to_owned(),
            Name::Cluster => "cluster".to_owned(),
        })
    }
}

/// Engines that work together; dropping it kills them.
pub struct Engines(pub Vec<Server<Restate>>);

impl Drop for Engines {
    fn drop(&mut self) {
        for node in self.0.iter().filter(|node| node.runs()) {
            if let Err(error) = node.kill() {
                warn!("{error:#}");
            }
        }
    }
}

pub struct Stack {
    pub kafka: Server<Kafka>,
    pub restate: Server<Restate>,
    pub postgres: Server<Postgres>,
    /// `None` on the bench's stacks, whose figures mail would disturb, and where no proof is about mails.
    pub maildev: Option<Server<Maildev>>,
    pub ports: Ports,
    /// Signs the certificates of this stack's servers; the engine trusts it.
    pub authority: Authority,
    /// What shuts the locked stack.
    pub doors: Option<Doors>,
    folder: PathBuf,
    /// Held as long as the stack lives.
    _alone: File,
}

impl Stack {
    /// Prepares everything without starting it: servers fetched, leftovers stopped, old data removed.
    pub async fn open(name: Name) -> anyhow::Result<Stack> {
        spawn_blocking(move || open(name)).await?
    }

    pub async fn start(&self) -> anyhow::Result<()> {
        info!(
            "starting Kafka, Restate, PostgreSQL and the mail server; logs in {}",
            self.folder.display()
        );
        let mail = async {
            match &self.maildev {
                Some(maildev) => maildev.start().await,
                None => Ok(()),
            }
        };
        let nginx = async {
            match &self.doors {
                Some(doors) => doors.nginx.start().await,
                None => Ok(()),
            }
        };
        tokio::try_join!(
            self.kafka.start(),
            self.restate.start(),
            self.postgres.start(),
            mail,
            nginx
        )?;
        self.postgres.make_loyalty().await?;
        match &self.doors {
            Some(_) => self.admit().await,
            None => Ok(()),
        }
    }

    /// Gives each party of the locked stack its rights, and no others.
    async fn admit(&self) -> anyhow::Result<()> {
        let lock = self.kafka.lock()?;
        let rights = ROLES.iter().map(|role| rights(role)).collect::<Result<Vec<_>, _>>()?;
        lock.grant(&rights.concat())?;
        let migrated = self.holdfast("migrate", "admit").arg("--grants").output().await?;
        let said = String::from_utf8_lossy(&migrated.stderr);
        ensure!(migrated.status.success(), "{}: {said}", migrated.status);
        let print = self.holdfast("migrate", "admit").arg("--print-grants").arg("loyalty");
        let grants = String::from_utf8(print.output().await?.stdout)?;
        let loyalty = self.postgres.connect_to_loyalty().await?;
        sqlx::raw_sql(AssertSqlSafe(grants)).execute(&loyalty).await?;
        loyalty.close().await;
        Ok(())
    }

    /// Stops all servers, paused ones too; they keep their data.
    pub async fn stop(&self) -> anyhow::Result<()> {
        if let Some(doors) = &self.doors {
            doors.nginx.stop().await?;
        }
        if let Some(maildev) = &self.maildev {
            maildev.stop().await?;
        }
        self.restate.stop().await?;
        self.kafka.stop().await?;
        self.postgres.stop().await
    }

    /// Brings all servers back to answering.
    pub async fn heal(&self) -> anyhow::Result<()> {
        let mail = async {
            match &self.maildev {
                Some(maildev) => maildev.heal().await,
                None => Ok(()),
            }
        };
        let nginx = async {
            match &self.doors {
                Some(doors) => doors.nginx.heal().await,
                None => Ok(()),
            }
        };
        tokio::try_join!(
            self.kafka.heal(),
            self.restate.heal(),
            self.postgres.heal(),
            mail,
            nginx
        )
        .map(drop)
    }

    /// Starts a cluster of engines beside the stack's own.
    pub async fn engines(&self, nodes: usize) -> anyhow::Result<Engines> {
        let addresses = vec![Ipv4Addr::LOCALHOST; nodes];
        let engines = self.engines_at(&addresses)?;
        let engines = Engines(
            engines
                .into_iter()
                .map(|(kind, folder)| Server::new(kind, folder))
                .collect(),
        );
        try_join_all(engines.0.iter().map(Server::start)).await?;
        Ok(engines)
    }

    /// A cluster of engines, one at each address, and the folder of each.
    pub(super) fn engines_at(&self, addresses: &[Ipv4Addr]) -> anyhow::Result<Vec<(Restate, PathBuf)>> {
        let port = |of: &str, number: usize| self.ports.get(&format!("restate-{of}-{number}"));
        let numbered = || addresses.iter().copied().enumerate();
        let nodes = numbered().map(|(number, address)| Ok(SocketAddrV4::new(address, port("node", number)?)));
        let nodes = nodes.collect::<anyhow::Result<Vec<_>>>()?;
        let engine = |(number, address)| {
            let folder = self.folder.join(format!("engine-{number}"));
            fs::create_dir_all(&folder)?;
            let engine = Restate {
                binary: self.restate.binary.clone(),
                settings: self.restate.settings.clone(),
                data: folder.join("restate"),
                address,
                ingress: port("ingress", number)?,
                admin: port("admin", number)?,
                node: port("node", number)?,
                client: reqwest::Client::new(),
                identity: self.restate.identity.clone(),
                trusted: self.restate.trusted.clone(),
                attempts: Mutex::default(),
                tracing: Mutex::default(),
                door: None,
                place: Some(Place {
                    number,
                    nodes: nodes.clone(),
                }),
            };
            Ok((engine, folder))
        };
        numbered().map(engine).collect()
    }

    /// Starts a standby of the stack's PostgreSQL: a copy that follows it until it is promoted.
    pub async fn standby(&self) -> anyhow::Result<Server<Postgres>> {
        let folder = self.folder.join("standby");
        fs::create_dir_all(&folder)?;
        let copy = self.postgres.copy_server(self.ports.get("postgres-standby")?).await?;
        let standby = Server::new(copy, folder);
        standby.start().await?;
        Ok(standby)
    }

    /// The product's binary with this subcommand, set to use this stack. `instance` names it in Kafka and its log.
    pub fn holdfast(&self, subcommand: &str, instance: &str) -> Launch<'_> {
        Launch::new(self, subcommand, instance)
    }

    /// The address of the webhook listener; one instance at a time has it.
    pub fn webhook(&self) -> anyhow::Result<String> {
        Ok(format!("127.0.0.1:{}", self.ports.get("webhook")?))
    }

    /// A payment provider for this stack alone.
    pub async fn provider(&self) -> anyhow::Result<Simulator> {
        let provider = Simulator::start_at(self.ports.get("provider")?).await?;
        Ok(match &self.doors {
            Some(doors) => provider.behind(&doors.provider, self.authority.client()?.build()?),
            None => provider,
        })
    }

    /// Where the payment provider sends its webhooks.
    pub fn webhook_url(&self) -> anyhow::Result<String> {
        match self.doors {
            Some(_) => Ok(format!("https://localhost:{}/", self.ports.get("webhook")?)),
            None => Ok(format!("http://{}/", self.webhook()?)),
        }
    }

    /// The certificate of the authority that signs this stack's own, in PEM.
    pub fn authority_file(&self) -> PathBuf {
        self.certificates().join("authority.crt")
    }

    pub fn certificates(&self) -> PathBuf {
        self.folder.join("certificates")
    }

    /// Data, logs, process ids and ports.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

fn open(name: Name) -> anyhow::Result<Stack> {
    let folder = name.folder();
    fs::create_dir_all(&folder)?;
    let alone = locked(&folder)?;
    process::stop_leftovers(&folder)?;
    if name != Name::Dev {
        empty(&folder)?;
    }
    let servers = fetch::servers()?;
    let ports = Ports::open(folder.join("ports.json"))?;
    let locked = matches!(name, Name::Locked | Name::BenchLocked);
    let certificates = folder.join("certificates");
    let security = match locked {
        true => Security::locked(certificates.join("kafka"), &ports)?,
        false => Security::Open,
    };
    let kafka = Kafka {
        jars: servers.kafka,
        manifest: fetch::manifests().join("kafka"),
        data: folder.join("kafka"),
        place: Voter::alone(ports.get("kafka-controller")?),
        client: ports.get("kafka")?,
        sync_records: matches!(name, Name::Bench | Name::BenchLocked),
        security,
        exporter: Mutex::default(),
    };
    let authority = Authority::new("Holdfast's kit")?;
    fs::create_dir_all(&certificates)?;
    let trusted = certificates.join("authority.crt");
    fs::write(&trusted, &authority.certificate)?;
    let identity = match name {
        Name::Bench => None,
        _ => Some(Arc::new(Identity::new(&certificates, "engine")?)),
    };
    let data = folder.join("restate");
    let doors = match &identity {
        Some(identity) if locked => Some(Doors::new(&folder, &ports, &authority, identity, &data.join("local"))?),
        _ => None,
    };
    let restate = Restate {
        binary: servers.restate,
        settings: fetch::manifests().join("restate/restate.toml"),
        data,
        address: Ipv4Addr::LOCALHOST,
        ingress: ports.get("restate-ingress")?,
        admin: ports.get("restate-admin")?,
        node: ports.get("restate-node")?,
        client: reqwest::Client::new(),
        place: None,
        attempts: Mutex::default(),
        tracing: Mutex::default(),
        door: doors.as_ref().map(|doors| doors.engine.clone()),
        identity,
        trusted,
    };
    let make_postgres = if locked { Postgres::locked } else { Postgres::new };
    let postgres = make_postgres(servers.postgres, &folder, ports.get("postgres")?)?;
    let maildev = match name {
        Name::Dev | Name::Test(_) | Name::Demo | Name::OnCall | Name::Locked => Some(Maildev {
            script: servers.maildev,
            data: folder.join("maildev"),
            smtp: ports.get("smtp")?,
            web: ports.get("maildev-web")?,
            client: match locked {
                true => authority.client()?.build()?,
                false => reqwest::Client::new(),
            },
            lock: doors.as_ref().map(Doors::mail_server),
        }),
        Name::Pods
        | Name::Recipes
        | Name::Upgrades
        | Name::Restore
        | Name::Bench
        | Name::BenchLocked
        | Name::Sqlx
        | Name::Cluster => None,
    };
    Ok(Stack {
        kafka: Server::new(kafka, folder.clone()),
        restate: Server::new(restate, folder.clone()),
        postgres: Server::new(postgres, folder.clone()),
        maildev: maildev.map(|maildev| Server::new(maildev, folder.clone())),
        ports,
        authority,
        doors,
        folder,
        _alone: alone,
    })
}

fn locked(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join("lock");
    let lock = File::create(&path).with_context(|| path.display().to_string())?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!("another process uses this stack ({})", folder.display()),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Ports stay, for clients that know them.
fn empty(folder: &Path) -> anyhow::Result<()> {
    Postgres::forget(folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else if !path.ends_with("ports.json") && !path.ends_with("lock") {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
