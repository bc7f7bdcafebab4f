//! Apache Kafka, one KRaft node or one of several, and plain clients for tests.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use futures::future::try_join_all;
use nix::sys::signal::Signal;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers, OwnedHeaders};
use rdkafka::metadata::MetadataBroker;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::task::spawn_blocking;

use super::kafka_lock::{KIT, Lock, Security};
use super::process::lock;
use super::server::Kind;
use super::{Server, Stack, checkout, process, until};

/// Sixteen bytes in base64: one cluster is as good as another on one machine.
const CLUSTER: &str = "aG9sZGZhc3QtbG9jYWwtMQ";
const PATIENCE: Duration = Duration::from_secs(30);
/// A broker that has not answered for so long is asked no more, in milliseconds.
pub const GIVEN_UP_AFTER: &str = "10000";
/// The listener for clients.
const CLIENT: &str = "client";

pub struct Kafka {
    pub(super) jars: PathBuf,
    /// The folder of `server.properties` and `log4j2.yaml`.
    pub(super) manifest: PathBuf,
    pub(super) data: PathBuf,
    pub(super) place: Voter,
    pub(super) client: u16,
    /// True to have every record synced to disk before it is acknowledged. Kafka by default relies on replicas.
    pub(super) sync_records: bool,
    pub security: Security,
    /// The exporter that it has from the next start on.
    pub exporter: Mutex<Option<Exporter>>,
}

/// A node's place among those that elect the controller.
pub(super) struct Voter {
    pub(super) number: i32,
    /// Where it listens for the others.
    pub(super) controller: SocketAddrV4,
    /// Each node, as `number@address:port`.
    pub(super) voters: Vec<String>,
}

impl Voter {
    /// Of the only node.
    pub(super) fn alone(port: u16) -> Voter {
        let controller = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        Voter {
            number: 1,
            controller,
            voters: vec![format!("1@{controller}")],
        }
    }

    fn settings(&self) -> String {
        let (number, voters) = (self.number, self.voters.join(","));
        let replicated = if self.voters.len() > 1 { REPLICATED } else { "" };
        format!("node.id={number}\ncontroller.quorum.voters={voters}\n{replicated}")
    }
}

/// What several nodes have in place of the settings for one.
const REPLICATED: &str = "\
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
share.coordinator.state.topic.replication.factor=3
share.coordinator.state.topic.min.isr=2
";

/// Runs within the broker and tells Prometheus of it.
pub struct Exporter {
    pub jar: PathBuf,
    pub port: u16,
}

impl Kind for Kafka {
    const NAME: &'static str = "kafka";
    const STOP: Signal = Signal::SIGTERM;

    fn prepare(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.data)?;
        if let Security::Locked(lock) = &self.security {
            lock.prepare()?;
        }
        fs::write(self.properties(), self.settings()?)?;
        if self.data.join("meta.properties").exists() {
            return Ok(());
        }
        let mut format = self.java("kafka.tools.StorageTool");
        format
            .args(["format", "--cluster-id", CLUSTER, "--config"])
            .arg(self.properties());
        if let Security::Locked(lock) = &self.security {
            format.args(lock.format());
        }
        process::output(format).map(drop)
    }

    fn command(&self) -> Command {
        let mut command = self.java("kafka.Kafka");
        if let Some(Exporter { jar, port }) = &*lock(&self.exporter) {
            let settings = checkout().join("deploy/kubernetes/chart/prometheus/kafka-jmx.yml");
            let agent = format!("-javaagent:{}=127.0.0.1:{port}:{}", jar.display(), settings.display());
            command.env("JDK_JAVA_OPTIONS", agent);
        }
        command.arg(self.properties());
        command
    }

    async fn answers(&self) -> anyhow::Result<()> {
        let (consumer, number): (BaseConsumer, _) = (self.config().create()?, self.place.number);
        spawn_blocking(move || {
            let metadata = consumer.fetch_metadata(None, Duration::from_secs(2))?;
            let registered: Vec<_> = metadata.brokers().iter().map(MetadataBroker::id).collect();
            ensure!(registered.contains(&number), "registered: {registered:?}");
            Ok(())
        })
        .await?
    }
}

/// A record to send. Without a partition the key decides, by murmur2 as with Java producers.
#[derive(Clone, Default)]
pub struct Sent {
    pub partition: Option<i32>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
    /// Milliseconds since 1970; kept only by a topic that leaves time to its producers.
    pub timestamp: Option<i64>,
}

/// A record as it was read.
#[derive(Clone, Debug)]
pub struct ReadRecord {
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Kafka {
    /// A locked one beside the stack's, in a folder of its own; not started yet.
    pub fn locked(stack: &Stack) -> anyhow::Result<Server<Kafka>> {
        let (folder, ports) = (stack.folder().join("locked-kafka"), &stack.ports);
        fs::create_dir_all(&folder)?;
        let security = Security::locked(folder.join("certificates"), ports)?;
        let kafka = Kafka {
            jars: stack.kafka.jars.clone(),
            manifest: stack.kafka.manifest.clone(),
            data: folder.join("kafka"),
            place: Voter::alone(ports.get("locked-kafka-controller")?),
            client: ports.get("locked-kafka")?,
            sync_records: false,
            security,
            exporter: Mutex::default(),
        };
        Ok(Server::new(kafka, folder))
    }

    /// The lock of one that has one.
    pub fn lock(&self) -> anyhow::Result<&Lock> {
        match &self.security {
            Security::Locked(lock) => Ok(lock),
            Security::Open => Err(anyhow!("this Kafka has no lock")),
        }
    }

    /// Runs `deploy/kafka/acls` as an operator does, by the kit's own name.
    pub async fn run_acls(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let settings = self.login_of_tools()?;
        let mut acls = Command::new(checkout().join("deploy/kafka/acls"));
        acls.env("KAFKA_ACLS", "java org.apache.kafka.tools.AclCommand")
            .env("CLASSPATH", self.jars.join("*"));
        let (removal, roles): (Vec<&str>, Vec<&str>) =
            arguments.iter().partition(|argument| argument.starts_with("--"));
        acls.args(removal).arg(self.bootstrap()).arg(settings).args(roles);
        spawn_blocking(move || process::output(acls)).await?.map(drop)
    }

    /// Gives a user of one that has a lock this password by this mechanism (`SCRAM-SHA-256`), or none.
    pub async fn set_password(&self, user: &str, mechanism: &str, password: Option<&str>) -> anyhow::Result<()> {
        let mut tool = self.java("kafka.admin.ConfigCommand");
        tool.args(["--bootstrap-server", &self.bootstrap(), "--command-config"])
            .arg(self.login_of_tools()?)
            .args(["--alter", "--entity-type", "users", "--entity-name", user]);
        match password {
            Some(password) => tool.args(["--add-config", &format!("{mechanism}=[password={password}]")]),
            None => tool.args(["--delete-config", mechanism]),
        };
        spawn_blocking(move || process::output(tool)).await?.map(drop)
    }

    /// Has the broker of one that has a lock show a new certificate to clients that connect from then on.
    pub async fn renew_certificate(&self) -> anyhow::Result<()> {
        let file = self.lock()?.renew("broker")?;
        let file = file.to_str().context("a path")?;
        let setting = format!("listener.name.{CLIENT}.ssl.keystore.location");
        let change = AlterConfig::new(ResourceSpecifier::Broker(self.place.number)).set(&setting, file);
        for changed in self.admin()?.alter_configs([&change], &AdminOptions::new()).await? {
            changed.map_err(|(_, code)| anyhow!("{setting}: {code}"))?;
        }
        Ok(())
    }

    /// The file with which Kafka's own tools log in.
    fn login_of_tools(&self) -> anyhow::Result<PathBuf> {
        let settings = self.data.with_extension("admin.properties");
        fs::write(&settings, self.lock()?.admin_properties())?;
        Ok(settings)
    }

    /// The data folder. While the server is stopped it may be copied and put back with `cp -a`.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// For `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        format!("{}:{}", self.place.controller.ip(), self.client)
    }

    /// The start of a client's configuration.
    pub fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.bootstrap())
            .set("reconnect.backoff.max.ms", "500");
        if let Security::Locked(lock) = &self.security {
            for (name, value) in lock.properties(KIT) {
                config.set(name, value);
            }
        }
        config
    }

    pub fn admin(&self) -> anyhow::Result<AdminClient<DefaultClientContext>> {
        Ok(self.config().create()?)
    }

    /// Deletes the records of a partition before an offset, and waits until a broker that is killed remembers it.
    pub async fn delete_records(&self, topic: &str, partition: i32, before: i64) -> anyhow::Result<()> {
        let mut gone = TopicPartitionList::new();
        gone.add_partition_offset(topic, partition, Offset::Offset(before))?;
        self.admin()?.delete_records(&gone, &AdminOptions::new()).await?;
        let line = format!("{topic} {partition} {before}");
        until("the broker has noted what is deleted", PATIENCE, async || {
            let noted = fs::read_to_string(self.data.join("log-start-offset-checkpoint"))?;
            ensure!(noted.lines().any(|noted| noted == line), "{line} is not in {noted}");
            Ok(())
        })
        .await
    }

    /// With `settings` such as `("max.message.bytes", "1048576")`. One that exists already is an error.
    pub async fn create_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        for result in self.admin()?.create_topics([&topic], &options).await? {
            result.map_err(|(name, code)| anyhow!("create topic {name}: {code}"))?;
        }
        Ok(())
    }

    /// Deletes it, and waits until it is gone.
    pub async fn delete_topic(&self, name: &str) -> anyhow::Result<()> {
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        for result in self.admin()?.delete_topics(&[name], &options).await? {
            result.map_err(|(name, code)| anyhow!("delete topic {name}: {code}"))?;
        }
        Ok(())
    }

    /// A producer that keeps order and sends no record twice; `codec` is none, gzip, snappy, lz4 or zstd.
    pub fn producer(&self, codec: &str) -> anyhow::Result<FutureProducer> {
        let mut config = self.config();
        config
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("compression.codec", codec);
        config
            .set("message.max.bytes", "8388608")
            .set("queue.buffering.max.messages", "1000000")
            .set("socket.timeout.ms", GIVEN_UP_AFTER)
            .set("linger.ms", "1");
        Ok(config.create()?)
    }

    /// Sends in the given order and returns partition and offset of each once acknowledged.
    pub async fn send(&self, topic: &str, records: &[Sent]) -> anyhow::Result<Vec<(i32, i64)>> {
        send_with(&self.producer("none")?, topic, records).await
    }

    /// Everything in the topic at this moment that a `read_committed` consumer sees, by partition and offset.
    pub async fn read(&self, topic: &str) -> anyhow::Result<Vec<ReadRecord>> {
        let mut config = self.config();
        config
            .set("group.id", "holdfast.tests.read")
            .set("enable.auto.commit", "false");
        config
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true");
        let consumer: BaseConsumer = config.create()?;
        let topic = String::from(topic);
        spawn_blocking(move || read_to_end(&consumer, &topic)).await?
    }

    /// A consumer that asks and commits for a group, and never joins it.
    fn of_group(&self, group: &str) -> anyhow::Result<BaseConsumer> {
        let mut config = self.config();
        config.set("group.id", group).set("enable.auto.commit", "false");
        Ok(config.create()?)
    }

    /// How many records of a topic a consumer group has not committed.
    pub async fn unread(&self, group: &str, topic: &str) -> anyhow::Result<i64> {
        let consumer = self.of_group(group)?;
        let topic = String::from(topic);
        spawn_blocking(move || {
            let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE)?;
            let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
            let mut asked = TopicPartitionList::new();
            for partition in partitions {
                asked.add_partition(&topic, partition.id());
            }
            let mut unread = 0;
            for partition in consumer.committed_offsets(asked, PATIENCE)?.elements() {
                let (low, high) = consumer.fetch_watermarks(&topic, partition.partition(), PATIENCE)?;
                unread += match partition.offset() {
                    Offset::Offset(offset) => high - offset,
                    _none => high - low,
                };
            }
            Ok(unread)
        })
        .await?
    }

    /// Has a group without a member read again what was written to this topic since a moment, in milliseconds since 1970.
    pub async fn rewind(&self, group: &str, topic: &str, since: i64) -> anyhow::Result<()> {
        let consumer = self.of_group(group)?;
        let topic = String::from(topic);
        spawn_blocking(move || {
            let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE)?;
            let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
            let mut asked = TopicPartitionList::new();
            for partition in partitions {
                asked.add_partition_offset(&topic, partition.id(), Offset::Offset(since))?;
            }
            let mut first = TopicPartitionList::new();
            for found in consumer.offsets_for_times(asked, PATIENCE)?.elements() {
                let (_, end) = consumer.fetch_watermarks(&topic, found.partition(), PATIENCE)?;
                let offset = match found.offset() {
                    Offset::Offset(offset) => offset,
                    _nothing_since => end,
                };
                first.add_partition_offset(&topic, found.partition(), Offset::Offset(offset))?;
            }
            Ok(consumer.commit(&first, CommitMode::Sync)?)
        })
        .await?
    }

    /// Deletes a group with its offsets, if it has any. It must have no member.
    pub async fn delete_group(&self, group: &str) -> anyhow::Result<()> {
        for result in self.admin()?.delete_groups(&[group], &AdminOptions::new()).await? {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::GroupIdNotFound)) => {}
                Err((name, code)) => return Err(anyhow!("delete group {name}: {code}")),
            }
        }
        Ok(())
    }

    fn java(&self, main: &str) -> Command {
        let mut command = process::command("java".as_ref(), None);
        let logging = self.manifest.join("log4j2.yaml");
        command
            .args(["-Xms256m", "-Xmx512m"])
            .arg(format!("-Dlog4j2.configurationFile={}", logging.display()));
        command.arg("-cp").arg(self.jars.join("*")).arg(main);
        command
    }

    fn properties(&self) -> PathBuf {
        self.data.with_extension("properties")
    }

    fn settings(&self) -> anyhow::Result<String> {
        let template = self.manifest.join("server.properties");
        let fixed = fs::read_to_string(&template).with_context(|| template.display().to_string())?;
        let (client, controller, data) = (self.bootstrap(), self.place.controller, self.data.display());
        let sync = if self.sync_records {
            "log.flush.interval.messages=1\n"
        } else {
            ""
        };
        let listeners = match &self.security {
            Security::Open => format!("listeners=CLIENT://{client},CONTROLLER://{controller}\n"),
            Security::Locked(lock) => lock.settings(self.client, controller.port()),
        };
        let place = self.place.settings();
        Ok(format!("{fixed}\n{listeners}{place}log.dirs={data}\n{sync}"))
    }
}

/// As [`Kafka::send`], with a producer that is kept.
pub async fn send_with(producer: &FutureProducer, topic: &str, records: &[Sent]) -> anyhow::Result<Vec<(i32, i64)>> {
    let mut deliveries = Vec::with_capacity(records.len());
    for sent in records {
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic).headers(headers_of(sent));
        record.partition = sent.partition;
        record.key = sent.key.as_deref();
        record.payload = sent.value.as_deref();
        record.timestamp = sent.timestamp;
        let delivery = loop {
            match producer.send_result(record) {
                Ok(delivery) => break delivery,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => record = refused,
                Err((error, _)) => return Err(error.into()),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        deliveries.push(delivery);
    }
    let delivered = try_join_all(deliveries).await?;
    delivered
        .into_iter()
        .map(|sent| sent.map(|d| (d.partition, d.offset)).map_err(|(error, _)| error.into()))
        .collect()
}

fn headers_of(sent: &Sent) -> OwnedHeaders {
    let headers = OwnedHeaders::new_with_capacity(sent.headers.len());
    sent.headers.iter().fold(headers, |all, (key, value)| {
        all.insert(Header {
            key,
            value: Some(value),
        })
    })
}

fn read_to_end(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<Vec<ReadRecord>> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
    let mut assignment = TopicPartitionList::new();
    for partition in partitions {
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
    }
    let mut unread = assignment.count();
    ensure!(unread > 0, "no topic {topic}");
    consumer.assign(&assignment)?;
    let mut records = Vec::new();
    while unread > 0 {
        match consumer.poll(PATIENCE) {
            Some(Ok(message)) => records.push(ReadRecord::from(&message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                unread -= 1;
                // Records written from now on are not read.
                let mut done = TopicPartitionList::new();
                done.add_partition(topic, partition);
                consumer.incremental_unassign(&done)?;
            }
            Some(Err(error)) => return Err(error.into()),
            None => return Err(anyhow!("no end of {topic} within {PATIENCE:?}")),
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    Ok(records)
}

impl From<&BorrowedMessage<'_>> for ReadRecord {
    fn from(message: &BorrowedMessage<'_>) -> ReadRecord {
        let headers = message.headers().map(|headers| {
            headers
                .iter()
                .map(|header| (String::from(header.key), header.value.unwrap_or_default().to_vec()))
                .collect()
        });
        ReadRecord {
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(Vec::from),
            value: message.payload().map(Vec::from),
            headers: headers.unwrap_or_default(),
        }
    }
}
