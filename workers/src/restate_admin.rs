//! Restate's admin API, typed: deployments, Kafka clusters, subscriptions, and SQL queries about invocations. Here too: the
//! poller that reports Restate's unfinished invocations to the gate.

mod inbox;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, StatusCode};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

pub use self::inbox::{ObjectQueues, Queue, QueueChoice, StuckInvocation};
use crate::config;
use crate::gate::{self, MOST_OF_KEY, Unfinished};
use crate::metrics::Metrics;
use crate::rounds::Rounds;
use crate::tls;
use crate::transience::{self, Fault};

/// Services whose unfinished invocations count as the backlog, as a list for SQL. The Reaper is none of them: its next turn is
/// always scheduled.
const KEYED_SERVICES: &str = "'Ticket', 'User', 'Account'";

/// A client of one admin API.
#[derive(Clone, Debug)]
pub struct RestateAdmin {
    http: reqwest::Client,
    /// Which of its servers, for errors.
    server: &'static str,
    base: Url,
    token: Option<SecretString>,
}

/// A request that the admin API did not answer as expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("an HTTP client cannot be made")]
    Client(#[source] reqwest::Error),
    #[error("Restate's {server} at {address} does not answer{mend}")]
    Silent {
        server: &'static str,
        address: String,
        /// What an operator has to do, if that is known.
        mend: &'static str,
        #[source]
        source: reqwest::Error,
    },
    #[error("Restate's {server} at {address} answered {status} to {request}: {message}")]
    Refused {
        server: &'static str,
        address: String,
        request: String,
        status: StatusCode,
        message: String,
    },
    #[error("Restate cannot call the handlers at {url} (--serve-url, HOLDFAST_SERVE_URL): {mend} ({message})")]
    Uncallable {
        url: String,
        /// What an operator has to do.
        mend: &'static str,
        fault: Fault,
        message: String,
    },
    #[error("Restate's {server} at {address} answered {path} in a form that this version does not know")]
    Unknown {
        server: &'static str,
        address: String,
        path: String,
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// The fault, which decides whether a request is sent again.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Silent { mend: "", .. } => Fault::Server,
            Error::Silent { .. } => Fault::Setting,
            Error::Refused { status, .. } => transience::restate_admin(status.as_u16()),
            Error::Uncallable { fault, .. } => *fault,
            Error::Client(_) | Error::Unknown { .. } => Fault::Setting,
        }
    }
}

/// Keys with live invocations.
#[derive(Debug, Clone)]
pub struct Live {
    pub checkouts: Vec<String>,
    /// Users whose object may be about to call a checkout's workflow.
    pub users: Vec<String>,
}

/// A registered address at which services are served.
#[derive(Debug, Clone, Deserialize)]
pub struct Deployment {
    pub id: String,
    /// Absent for deployments that are no HTTP addresses.
    pub uri: Option<String>,
    pub services: Vec<ServedService>,
}

/// A service that a deployment serves, whether invocations that are sent now reach it there or elsewhere.
#[derive(Debug, Clone, Deserialize)]
pub struct ServedService {
    pub name: String,
}

/// A service and its handlers as Restate knows them. Values that Restate sets by itself (revision, deployment) are left out of
/// the comparison.
#[derive(Debug, Clone, Deserialize)]
pub struct Service {
    pub name: String,
    pub deployment_id: String,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

impl Service {
    /// The service's description without what differs from one registration to the next.
    pub fn manifest(&self) -> Value {
        let mut own = self.rest.clone();
        own.remove("revision");
        // Handlers come in any order.
        if let Some(Value::Array(handlers)) = own.get_mut("handlers") {
            handlers.sort_by_key(|handler| handler.get("name").and_then(Value::as_str).map(str::to_owned));
        }
        own.into_iter().collect()
    }

    /// The names of the service's handlers.
    pub fn handlers(&self) -> Vec<&str> {
        let handlers = self.rest.get("handlers").and_then(Value::as_array);
        let names = handlers.into_iter().flatten();
        names
            .filter_map(|handler| handler.get("name").and_then(Value::as_str))
            .collect()
    }

    /// True for a handler that the ingress lets anybody call.
    pub fn is_public(&self, handler: &str) -> bool {
        let handlers = self.rest.get("handlers").and_then(Value::as_array);
        let mut handlers = handlers.into_iter().flatten();
        let found = handlers.find(|known| known.get("name").and_then(Value::as_str) == Some(handler));
        found.is_some_and(|known| known.get("public").and_then(Value::as_bool) != Some(false))
    }

    /// Most attempts of an invocation; none when Restate retries for ever.
    pub fn max_attempts(&self) -> Option<u64> {
        self.rest.get("retry_policy")?.get("max_attempts")?.as_u64()
    }
}

/// The result of a registration, or of its dry run.
#[derive(Debug, Clone, Deserialize)]
pub struct Registered {
    pub services: Vec<Service>,
}

/// The mode of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// Only discovers the services at the address; changes nothing.
    DryRun,
    /// Registers a new address, and leaves a known one as it is.
    Keep,
    /// Replaces the deployment of this address. Invocations under way go on with the new handlers.
    Replace,
}

/// A Kafka cluster as the engine knows it; secret properties come redacted.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub struct KafkaCluster {
    pub name: String,
    pub properties: BTreeMap<String, String>,
}

/// A subscription of a handler to a Kafka topic.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub struct Subscription {
    pub id: String,
    pub source: String,
    pub sink: String,
    pub options: BTreeMap<String, String>,
}

/// Invocations that began on a deployment and go on there, by handler.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub struct Pinned {
    #[serde(rename = "target_service_name")]
    pub service: String,
    #[serde(rename = "target_handler_name")]
    pub handler: String,
    pub invocations: u64,
    /// Since when the first of them is there.
    #[serde(with = "time::serde::rfc3339")]
    pub oldest: OffsetDateTime,
}

impl RestateAdmin {
    /// A client of the admin API. It sends nothing yet.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(restate: &config::Restate) -> Result<Self, Error> {
        Ok(Self {
            http: http_client(&restate.admin)?,
            server: "admin API",
            base: restate.admin.clone(),
            token: restate.token.clone(),
        })
    }

    /// The address asked.
    pub fn address(&self) -> &Url {
        &self.base
    }

    /// The version of the server.
    pub async fn version(&self) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Answer {
            version: String,
        }
        Ok(self.get::<Answer>("version").await?.version)
    }

    /// Every registered deployment.
    pub async fn deployments(&self) -> Result<Vec<Deployment>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            deployments: Vec<Deployment>,
        }
        Ok(self.get::<Answer>("deployments").await?.deployments)
    }

    /// Registers the address `uri`, or makes a dry run.
    pub async fn register(&self, uri: &Url, how: Registration) -> Result<Registered, Error> {
        // A dry run needs `force`, or Restate would answer for a known address from memory.
        let body = json!({
            "uri": uri.as_str(),
            "force": how != Registration::Keep,
            "dry_run": how == Registration::DryRun,
        });
        let registered = self.send(Method::POST, "deployments", &body).await;
        registered.map_err(|error| uncallable(uri, error))
    }

    /// The services that invocations sent from now on reach.
    pub async fn services(&self) -> Result<Vec<Service>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            services: Vec<Service>,
        }
        Ok(self.get::<Answer>("services").await?.services)
    }

    /// The services of the deployment `id`, as it was registered.
    pub async fn services_of(&self, id: &str) -> Result<Vec<Service>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            services: Vec<Service>,
        }
        Ok(self.get::<Answer>(&format!("deployments/{id}")).await?.services)
    }

    /// Removes a deployment, or finds that it is gone. Invocations that are pinned to it could never go on.
    pub async fn remove_deployment(&self, id: &str) -> Result<(), Error> {
        // Restate removes none without `force`.
        self.delete(&format!("deployments/{id}?force=true")).await
    }

    /// Invocations that are pinned to the deployment `id`, by handler. What runs there for the first time will be: Restate notes
    /// that with the first step of the handler.
    pub async fn pinned(&self, id: &str) -> Result<Vec<Pinned>, Error> {
        let id = id.replace('\'', "''");
        self.query(&format!(
            "select i.target_service_name, i.target_handler_name, count(*) as invocations, min(i.created_at) as oldest \
             from sys_invocation_status i left join sys_invocation_state s on s.id = i.id \
             where i.status <> 'completed' and (i.pinned_deployment_id = '{id}' \
                 or (i.pinned_deployment_id is null and s.in_flight and s.last_attempt_deployment_id = '{id}')) \
             group by i.target_service_name, i.target_handler_name \
             order by i.target_service_name, i.target_handler_name"
        ))
        .await
    }

    /// The Kafka clusters that subscriptions can name.
    pub async fn kafka_clusters(&self) -> Result<Vec<KafkaCluster>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            clusters: Vec<KafkaCluster>,
        }
        Ok(self.get::<Answer>("kafka-clusters").await?.clusters)
    }

    /// Creates a Kafka cluster in Restate.
    pub async fn create_kafka_cluster(&self, name: &str, properties: &BTreeMap<String, String>) -> Result<(), Error> {
        let body = json!({ "name": name, "properties": properties });
        self.send::<Value>(Method::POST, "kafka-clusters", &body)
            .await
            .map(drop)
    }

    /// Replaces all properties of a Kafka cluster. Its subscriptions go on where they were.
    pub async fn replace_kafka_cluster(&self, name: &str, properties: &BTreeMap<String, String>) -> Result<(), Error> {
        let path = format!("kafka-clusters/{name}");
        let body = json!({ "properties": properties });
        self.send::<Value>(Method::PATCH, &path, &body).await.map(drop)
    }

    /// Every subscription.
    pub async fn subscriptions(&self) -> Result<Vec<Subscription>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            subscriptions: Vec<Subscription>,
        }
        Ok(self.get::<Answer>("subscriptions").await?.subscriptions)
    }

    /// Subscribes the handler `sink` to the topic `source`.
    pub async fn create_subscription(
        &self,
        source: &str,
        sink: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<Subscription, Error> {
        let body = json!({ "source": source, "sink": sink, "options": options });
        self.send(Method::POST, "subscriptions", &body).await
    }

    /// Ends a subscription, or finds that it has ended. One made anew delivers records again that this one had delivered.
    pub async fn delete_subscription(&self, id: &str) -> Result<(), Error> {
        self.delete(&format!("subscriptions/{id}")).await
    }

    /// What is gone need not be deleted.
    async fn delete(&self, path: &str) -> Result<(), Error> {
        match self.ask(Method::DELETE, path, None).await {
            Ok(_)
            | Err(Error::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Counts the unfinished invocations of Holdfast's objects: those that hold the lock of their key, and those that wait for it. The
    /// keys of which the former fails again and again are stuck. The tables have no rows of completed invocations, so the query costs
    /// what is unfinished.
    pub async fn unfinished(&self) -> Result<Unfinished, Error> {
        #[derive(Deserialize)]
        struct Row {
            waiting: u64,
            counted: u64,
            heads: u64,
            stuck_keys: u64,
            stuck_waiting: u64,
            stuck_counted: u64,
        }
        let rows = self
            .query::<Row>(&format!(
                "select coalesce(sum(w.waiting), 0) as waiting, coalesce(sum(least(w.waiting, {MOST_OF_KEY})), 0) as counted, \
                     count(h.invocation_id) as heads, count(s.id) as stuck_keys, \
                     coalesce(sum(case when s.id is not null then w.waiting end), 0) as stuck_waiting, \
                     coalesce(sum(case when s.id is not null then least(w.waiting, {MOST_OF_KEY}) end), 0) as stuck_counted \
                 from (select service_name, service_key, count(*) as waiting from sys_inbox \
                       where service_name in ({KEYED_SERVICES}) group by service_name, service_key) w \
                 full outer join (select service_name, service_key, invocation_id from sys_keyed_service_status \
                                  where service_name in ({KEYED_SERVICES})) h \
                     on h.service_name = w.service_name and h.service_key = w.service_key \
                 left join (select id from sys_invocation_state where retry_count > 1 and last_failure is not null) s \
                     on s.id = h.invocation_id"
            ))
            .await?;
        let all = rows.into_iter().next();
        Ok(all.map_or(Unfinished::default(), |row| Unfinished {
            invocations: row.waiting + row.heads,
            counted: row.counted + row.heads,
            stuck_keys: row.stuck_keys,
            stuck_invocations: row.stuck_waiting + row.stuck_keys,
            stuck_counted: row.stuck_counted + row.stuck_keys,
        }))
    }

    /// Counts the paused ones among them, which wait for an operator: each holds up its key, which is stuck. The query reads every
    /// invocation that Restate retains.
    pub async fn paused(&self) -> Result<Unfinished, Error> {
        #[derive(Deserialize)]
        struct Row {
            keys: u64,
            waiting: u64,
            counted: u64,
        }
        let rows = self
            .query::<Row>(&format!(
                "select count(*) as keys, coalesce(sum(w.waiting), 0) as waiting, \
                     coalesce(sum(least(w.waiting, {MOST_OF_KEY})), 0) as counted \
                 from (select target_service_name as service_name, target_service_key as service_key from sys_invocation_status \
                       where status = 'paused' and target_service_name in ({KEYED_SERVICES})) p \
                 left join (select service_name, service_key, count(*) as waiting from sys_inbox \
                            where service_name in ({KEYED_SERVICES}) group by service_name, service_key) w \
                     on w.service_name = p.service_name and w.service_key = p.service_key"
            ))
            .await?;
        let all = rows.into_iter().next();
        Ok(all.map_or(Unfinished::default(), |row| Unfinished {
            stuck_keys: row.keys,
            stuck_invocations: row.waiting + row.keys,
            stuck_counted: row.counted + row.keys,
            ..Unfinished::default()
        }))
    }

    /// Whether a turn of the Reaper runs, or comes soon by the engine's clock: the clock of whoever scheduled it may be ahead of that.
    pub async fn reaper_lives(&self) -> Result<bool, Error> {
        let turns = self.count(
            "select count(*) as invocations from sys_invocation_status \
             where target_service_name = 'Reaper' and status <> 'completed' \
             and (status <> 'scheduled' or scheduled_start_at <= now() + interval '5 seconds')",
        );
        Ok(turns.await? > 0)
    }

    /// Start of the oldest unfinished invocation of Holdfast's objects, if there is one.
    pub async fn oldest_unfinished(&self) -> Result<Option<OffsetDateTime>, Error> {
        #[derive(Deserialize)]
        struct Row {
            #[serde(default)]
            oldest: Option<String>,
        }
        let path = "query";
        let rows = self
            .query::<Row>(&format!(
                "select min(created_at) as oldest from sys_invocation_status \
                 where status <> 'completed' and status <> 'scheduled' and target_service_name in ({KEYED_SERVICES})"
            ))
            .await?;
        let oldest = rows.into_iter().find_map(|row| row.oldest);
        oldest
            .map(|text| OffsetDateTime::parse(&text, &Rfc3339))
            .transpose()
            .map_err(|error| self.unknown(path, serde::de::Error::custom(error)))
    }

    /// The checkouts with a live workflow, and the users with live invocations.
    pub async fn live_checkouts(&self) -> Result<Live, Error> {
        #[derive(Deserialize)]
        struct Row {
            service: String,
            key: String,
        }
        let rows = self
            .query::<Row>(
                "select target_service_name as service, target_service_key as key from sys_invocation_status \
                 where status <> 'completed' and status <> 'scheduled' and target_service_name in ('Checkout', 'User')",
            )
            .await?;
        let (checkouts, users): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.service == "Checkout");
        let keys = |rows: Vec<Row>| rows.into_iter().map(|row| row.key).collect();
        Ok(Live {
            checkouts: keys(checkouts),
            users: keys(users),
        })
    }

    async fn count(&self, sql: &str) -> Result<u64, Error> {
        #[derive(Deserialize)]
        struct Row {
            invocations: u64,
        }
        let rows = self.query::<Row>(sql).await?;
        Ok(rows.iter().map(|row| row.invocations).sum())
    }

    /// Sends an SQL query.
    pub async fn query<T: DeserializeOwned>(&self, sql: &str) -> Result<Vec<T>, Error> {
        #[derive(Deserialize)]
        struct Answer<T> {
            rows: Vec<T>,
        }
        let answer: Answer<T> = self.send(Method::POST, "query", &json!({ "query": sql })).await?;
        Ok(answer.rows)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let body = self.ask(Method::GET, path, None).await?;
        serde_json::from_slice(&body).map_err(|source| self.unknown(path, source))
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: &Value) -> Result<T, Error> {
        let body = self.ask(method, path, Some(body)).await?;
        serde_json::from_slice(&body).map_err(|source| self.unknown(path, source))
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Vec<u8>, Error> {
        let silent = |source: reqwest::Error| Error::Silent {
            server: self.server,
            address: self.base.to_string(),
            mend: tls::mend(&source),
            source: source.without_url(),
        };
        let request = self.http.request(method.clone(), below(&self.base, path));
        let mut request = authorized(request, self.token.as_ref()).header("accept", "application/json");
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(silent)?;
        let status = response.status();
        let answer = response.bytes().await.map_err(silent)?;
        if status.is_success() {
            return Ok(answer.into());
        }
        Err(Error::Refused {
            server: self.server,
            address: self.base.to_string(),
            request: format!("{method} {path}"),
            status,
            message: refusal(status, &answer),
        })
    }

    fn unknown(&self, path: &str, source: serde_json::Error) -> Error {
        Error::Unknown {
            server: self.server,
            address: self.base.to_string(),
            path: path.to_owned(),
            source,
        }
    }
}

/// What Restate says when it cannot speak to what is to be registered; what to do about it; and whether waiting may help.
const UNCALLABLE: &[(&str, &str, Fault)] = &[
    (
        "UnknownIssuer",
        "it does not trust their certificate; give the authority that signed it in the file that SSL_CERT_FILE names where Restate runs",
        Fault::Setting,
    ),
    (
        "certificate not valid for name",
        "their certificate is for another name; give the address with the name in the certificate",
        Fault::Setting,
    ),
    (
        "certificate expired",
        "their certificate is not valid at this time; renew it, or mend the clock where Restate runs",
        Fault::Setting,
    ),
    (
        "InvalidContentType",
        "they do not speak TLS; give http://, or serve with --serve-certificate (HOLDFAST_SERVE_CERTIFICATE)",
        Fault::Setting,
    ),
    // What hangs up for another reason looks the same.
    (
        "possibly supports only HTTP1.1",
        "what answers there speaks no HTTP/2; if it speaks TLS, give https://",
        Fault::Server,
    ),
];

/// The refusal to register what Restate cannot call, with what to do about it, where that is known.
fn uncallable(url: &Url, error: Error) -> Error {
    let Error::Refused { message, .. } = &error else {
        return error;
    };
    match UNCALLABLE.iter().find(|(words, ..)| message.contains(words)) {
        Some(&(_, mend, fault)) => Error::Uncallable {
            url: url.to_string(),
            mend,
            fault,
            message: message.clone(),
        },
        None => error,
    }
}

/// An HTTP client with time-outs, for `base`. TLS trusts what the system trusts: its certificate store, or the file that
/// `SSL_CERT_FILE` names.
///
/// # Errors
/// The HTTP client cannot be made.
pub fn http_client(base: &Url) -> Result<reqwest::Client, Error> {
    if CryptoProvider::get_default().is_none() {
        // An error is a provider that another thread has installed meanwhile: they are all the same.
        ring::default_provider().install_default().ok();
    }
    let client = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(2))
        // The token and secrets for Kafka go to the address that was given, and to no other.
        .redirect(reqwest::redirect::Policy::none())
        .tcp_keepalive(Duration::from_secs(30))
        .timeout(Duration::from_secs(15));
    let client = match base.scheme() {
        "https" => client,
        // Without TLS a machine without certificates will do.
        _ => {
            let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty());
            client.tls_backend_preconfigured(config.with_no_client_auth())
        }
    };
    client.build().map_err(Error::Client)
}

/// Asks the ingress for any answer.
///
/// # Errors
/// It does not answer, or lets nobody in without a token.
pub async fn ingress_answers(restate: &config::Restate) -> Result<(), Error> {
    let ingress = RestateAdmin {
        http: http_client(&restate.ingress)?,
        server: "ingress",
        base: restate.ingress.clone(),
        token: restate.token.clone(),
    };
    ingress.ask(Method::GET, "restate/health", None).await.map(drop)
}

/// Calls a handler of an object through the ingress, one-way: the engine has it once it has answered.
///
/// # Errors
/// The ingress does not answer, or refuses the call.
pub async fn send(restate: &config::Restate, object: &str, key: &str, handler: &str) -> Result<(), Error> {
    let ingress = RestateAdmin {
        http: http_client(&restate.ingress)?,
        server: "ingress",
        base: restate.ingress.clone(),
        token: restate.token.clone(),
    };
    // One segment, whatever is in the key.
    let mut segment = restate.ingress.clone();
    if let Ok(mut segments) = segment.path_segments_mut() {
        segments.clear().push(key);
    }
    let path = format!("{object}{}/{handler}/send", segment.path());
    ingress.ask(Method::POST, &path, None).await.map(drop)
}

/// The address of `path` below `base`; after a `?` follows the query.
pub fn below(base: &Url, path: &str) -> Url {
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    };
    let mut url = base.clone();
    let prefix = url.path().trim_end_matches('/').to_owned();
    url.set_path(&format!("{prefix}/{path}"));
    url.set_query(query);
    url
}

/// The request with the token that the engine demands, if it does.
pub fn authorized(request: RequestBuilder, token: Option<&SecretString>) -> RequestBuilder {
    match token {
        Some(token) => request.bearer_auth(token.expose_secret()),
        None => request,
    }
}

/// The message in a refusal, or its text; and what to do, where the status says it.
pub fn refusal(status: StatusCode, answer: &[u8]) -> String {
    #[derive(Deserialize)]
    struct ErrorAnswer {
        message: String,
    }
    let message = match serde_json::from_slice::<ErrorAnswer>(answer) {
        Ok(refusal) => refusal.message,
        Err(_not_json) => String::from_utf8_lossy(answer).trim().to_owned(),
    };
    let mend = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "it demands a token, and not this one: give --restate-token (HOLDFAST_RESTATE_TOKEN)"
        }
        // As nginx says it.
        StatusCode::BAD_REQUEST if message.contains("HTTPS port") => "it speaks TLS: give https://",
        _ => return message,
    };
    format!("{mend} ({message})")
}

/// Pause between two queries while Restate has work.
const BUSY_PAUSE: Duration = Duration::from_millis(250);
/// Pause between two queries while it has none or does not answer, and between two readings while an answer is awaited.
const IDLE_PAUSE: Duration = Duration::from_secs(1);
/// A pause is at least this many times as long as the answer took: queries take at most a twentieth of the time.
const PAUSE_PER_ANSWER: u32 = 20;

/// Shortest pause between two counts of paused invocations.
const PAUSED_PAUSE: Duration = Duration::from_secs(5);

/// Reports Restate's backlog to the gate until `shutdown`. While Restate does not answer, it reports the last value under new
/// reading numbers, so that the gate goes on at its last rate.
pub async fn watch_engine(
    admin: RestateAdmin,
    metrics: Arc<Metrics>,
    engine: watch::Sender<gate::Backlog>,
    rounds: Rounds,
    shutdown: CancellationToken,
) {
    let paused = Mutex::default();
    tokio::select! {
        () = tell_engine(&admin, &metrics, &engine, &rounds, &paused) => {}
        () = count_paused(&admin, &metrics, &paused) => {}
        () = shutdown.cancelled() => {}
    }
}

async fn tell_engine(
    admin: &RestateAdmin,
    metrics: &Metrics,
    engine: &watch::Sender<gate::Backlog>,
    rounds: &Rounds,
    paused: &Mutex<Unfinished>,
) {
    let tell = |last: Unfinished| {
        let paused = *paused.lock().unwrap_or_else(PoisonError::into_inner);
        let all = Unfinished {
            stuck_keys: last.stuck_keys + paused.stuck_keys,
            stuck_invocations: last.stuck_invocations + paused.stuck_invocations,
            stuck_counted: last.stuck_counted + paused.stuck_counted,
            ..last
        };
        engine.send_modify(|engine| *engine = all.backlog(engine.reading));
    };
    let mut last = Unfinished::default();
    loop {
        let asked = Instant::now();
        let mut question = pin!(admin.unfinished());
        let answer = loop {
            match tokio::time::timeout(IDLE_PAUSE, &mut question).await {
                Ok(answer) => break answer,
                Err(_not_yet) => tell(last),
            }
        };
        let pause = pause_after(&answer, asked.elapsed());
        metrics.engine_answers.set(i64::from(answer.is_ok()));
        match &answer {
            Ok(_) => rounds.passed(),
            // The gate goes on at its last rate.
            Err(error) => rounds.failed(error.fault(), error),
        }
        last = answer.unwrap_or(last);
        metrics.engine_unfinished.set(signed(last.invocations));
        metrics.engine_stuck.set(signed(last.stuck_keys));
        tell(last);
        tokio::time::sleep(pause).await;
    }
}

/// Counts the paused invocations, for ever. Each holds its key, so without a backlog there is none and no query.
async fn count_paused(admin: &RestateAdmin, metrics: &Metrics, paused: &Mutex<Unfinished>) {
    loop {
        let asked = Instant::now();
        let answer = match metrics.engine_unfinished.get() {
            0 => Ok(Unfinished::default()),
            _ => admin.paused().await,
        };
        match answer {
            Ok(found) => {
                metrics.engine_paused.set(signed(found.stuck_keys));
                *paused.lock().unwrap_or_else(PoisonError::into_inner) = found;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "what is paused is counted later");
            }
        }
        tokio::time::sleep(PAUSED_PAUSE.max(asked.elapsed() * PAUSE_PER_ANSWER)).await;
    }
}

fn pause_after(answer: &Result<Unfinished, Error>, took: Duration) -> Duration {
    match answer {
        Ok(Unfinished { invocations: 0, .. }) => IDLE_PAUSE.max(took * PAUSE_PER_ANSWER),
        Ok(_) => BUSY_PAUSE.max(took * PAUSE_PER_ANSWER),
        Err(_) => IDLE_PAUSE,
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_takes_at_most_a_twentieth_of_the_time() {
        let unfinished = |invocations| {
            Ok(Unfinished {
                invocations,
                ..Unfinished::default()
            })
        };
        let (busy, idle) = (unfinished(7), unfinished(0));
        let ms = Duration::from_millis;
        assert_eq!(pause_after(&busy, ms(3)), ms(250));
        assert_eq!(pause_after(&busy, ms(100)), ms(2_000));
        assert_eq!(pause_after(&idle, ms(3)), ms(1_000));
    }

    #[test]
    fn an_address_with_a_path_is_kept() {
        let base = "http://proxy:80/restate/".parse().unwrap();
        assert_eq!(below(&base, "query").as_str(), "http://proxy/restate/query");
        let removed = below(&base, "deployments/dp_1?force=true");
        assert_eq!(removed.as_str(), "http://proxy/restate/deployments/dp_1?force=true");
    }
}
