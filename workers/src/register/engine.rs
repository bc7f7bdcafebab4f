//! The registrations in Restate: Kafka's address, the handlers' address, their subscriptions, and the Reaper's start.
//!
//! The consumer group of a subscription may change its name: a static member that outlives its topic commits offsets of the
//! old one. When the admitted topic is new, `register` makes a new subscription in a group of its own.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use holdfast_schemas::{EventData, TicketEvent, UserEvent};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::Url;

use super::report::{Finding, PartReport};
use super::{Error, Path, cluster, prune, reaper, topics};
use crate::config::{Config, PublicTopic};
use crate::error;
use crate::objects::{APPLY, KEYED, PRIVATE, STEPWISE, TICKET, USER};
use crate::restate_admin::{Pinned, Registered, Registration, RestateAdmin, Service, Subscription};

/// The name of our Kafka cluster in Restate.
const CLUSTER: &str = "holdfast";
/// The engine's name in its Kafka group, where a setting says that it is a single node: after a restart it takes its partitions
/// back at once. Several nodes with one name would throw each other out.
const MEMBER: &str = "restate";

/// The object that handles a stream's events.
struct Route {
    object: &'static str,
    public: &'static str,
    admitted: &'static str,
    /// Restate's consumer group.
    group: &'static str,
}

impl Route {
    const fn of<A: EventData>(object: &'static str, group: &'static str) -> Self {
        Self {
            object,
            public: A::TOPIC,
            admitted: A::ADMITTED,
            group,
        }
    }

    /// The topic that the handler subscribes to.
    fn source(&self, path: Path) -> &'static str {
        match path {
            Path::Gate => self.admitted,
            Path::Direct => self.public,
        }
    }

    /// One group for each path, since a subscription has its own members.
    fn group(&self, path: Path) -> String {
        match path {
            Path::Gate => self.group.to_owned(),
            Path::Direct => format!("{}.direct", self.group),
        }
    }
}

const TICKETS: Route = Route::of::<TicketEvent>(TICKET, "holdfast.ticket");
const USERS: Route = Route::of::<UserEvent>(USER, "holdfast.user");
const ROUTES: [Route; 2] = [TICKETS, USERS];

/// How the engine reads a stream.
#[derive(Debug, Clone)]
pub struct EngineReading {
    pub topic: &'static str,
    /// The consumer group of its subscription.
    pub group: String,
}

pub(super) struct EngineSetup {
    config: Config,
    admin: RestateAdmin,
    serve_url: Url,
    kafka: String,
    path: Path,
    now: fn() -> OffsetDateTime,
}

impl EngineSetup {
    pub(super) fn new(config: &Config, path: Path, now: fn() -> OffsetDateTime) -> Result<Self, Error> {
        let restate = &config.restate;
        Ok(Self {
            config: config.clone(),
            admin: RestateAdmin::new(restate)?,
            serve_url: restate.serve_url.clone(),
            kafka: restate.kafka.clone().unwrap_or_else(|| config.kafka.bootstrap.clone()),
            path,
            now,
        })
    }

    /// Creates what is missing, changes what may be changed, compares the rest. `created` are the topics that are new.
    pub(super) async fn settle(&self, created: &[&str]) -> Result<Vec<PartReport>, Error> {
        let mut lines = vec![self.settle_cluster().await?];
        lines.extend(self.settle_deployment().await?);
        for route in &ROUTES {
            lines.extend(self.settle_subscription(route, created).await?);
        }
        lines.push(reaper::arm(&self.config).await?);
        Ok(lines)
    }

    /// Removes the handlers of earlier releases that nothing needs any more.
    pub(super) async fn prune(&self) -> Result<Vec<PartReport>, Error> {
        prune::prune(&self.admin).await
    }

    /// Compares everything with the wanted state, and changes nothing.
    pub(super) async fn inspect(&self) -> Result<Vec<PartReport>, Error> {
        let mut lines = vec![self.inspect_cluster().await?];
        let subscriptions = self.admin.subscriptions().await?;
        for route in &ROUTES {
            let (source, sink) = (self.source(route), sink(route));
            let known = subscriptions.iter().filter(|known| known.sink == sink);
            let (ours, others): (Vec<_>, Vec<_>) = known.cloned().partition(|known| known.source == source);
            let finding = match &ours[..] {
                [] => Finding::missing(),
                [known] => self.whether_read(known).await,
                _ => Finding::Differs {
                    how: format!("is there {} times", ours.len()),
                    mend: "holdfast register deletes all but one".to_owned(),
                },
            };
            lines.push(PartReport::new(format!("subscription of {sink} to {source}"), finding));
            lines.extend(others.into_iter().map(another));
        }
        let services = self.admin.services().await?;
        lines.extend(gives_up(&services));
        lines.extend(exposed(&services));
        let served = self.admin.register(&self.serve_url, Registration::DryRun).await?;
        let known = self.known_deployment().await?;
        let finding = match known.map(|id| changed(&served, &services, &id)) {
            None => Finding::missing(),
            Some(changed) if changed.is_empty() => Finding::AsWanted,
            Some(changed) => Finding::Differs {
                how: format!("Restate knows other handlers of {} than are served", changed.join(", ")),
                mend: "holdfast register".to_owned(),
            },
        };
        lines.push(PartReport::new(format!("handlers at {}", self.serve_url), finding));
        Ok(lines)
    }

    /// The id of the deployment at our address, if it is registered.
    async fn known_deployment(&self) -> Result<Option<String>, Error> {
        let ours = |uri: &str| Url::parse(uri).is_ok_and(|uri| uri == self.serve_url);
        let deployments = self.admin.deployments().await?.into_iter();
        let mut known = deployments.filter(|known| known.uri.as_deref().is_some_and(ours));
        Ok(known.next().map(|known| known.id))
    }

    fn source(&self, route: &Route) -> String {
        format!("kafka://{CLUSTER}/{}", route.source(self.path))
    }

    /// How the engine reads a stream now.
    pub(super) async fn reading(&self, stream: PublicTopic) -> Result<EngineReading, Error> {
        let (route, known) = self.subscribed(stream).await?;
        Ok(EngineReading {
            topic: route.source(self.path),
            group: Options(known.options).get("group.id").to_owned(),
        })
    }

    /// Has a new subscription take the place of the stream's, in a group of its own that begins at these offsets. Answers the group.
    ///
    /// Under the former subscription the engine would drop what it has seen: it knows each by its offset.
    pub(super) async fn read_again(&self, stream: PublicTopic, offsets: BTreeMap<i32, i64>) -> Result<String, Error> {
        let (route, known) = self.subscribed(stream).await?;
        let member = known.options.contains_key("group.instance.id").then_some(MEMBER);
        let mut wanted = Options::new(&route.group(self.path), member);
        wanted.suffix("group.id", &(self.now)().unix_timestamp().to_string());
        let group = wanted.get("group.id").to_owned();
        topics::begin_at(&self.config, &group, route.source(self.path), offsets).await?;
        let (source, sink) = (self.source(route), sink(route));
        self.replace(&[known], &source, &sink, &wanted).await?;
        Ok(group)
    }

    /// The one subscription to the topic of a stream's route.
    async fn subscribed(&self, stream: PublicTopic) -> Result<(&'static Route, Subscription), Error> {
        let route = match stream {
            PublicTopic::Reservations => &TICKETS,
            PublicTopic::Payments => &USERS,
        };
        let (source, sink) = (self.source(route), sink(route));
        let mut ours = self.admin.subscriptions().await?;
        ours.retain(|known| known.sink == sink && known.source == source);
        match (ours.pop(), ours.len()) {
            (Some(known), 0) => Ok((route, known)),
            (known, others) => Err(Error::Subscriptions {
                count: others + usize::from(known.is_some()),
                source_topic: source,
                sink,
            }),
        }
    }

    async fn inspect_cluster(&self) -> Result<PartReport, Error> {
        let wanted = cluster::wanted(&self.config, &self.kafka)?;
        let clusters = self.admin.kafka_clusters().await?;
        let found = clusters.iter().find(|cluster| cluster.name == CLUSTER);
        let finding = match found.map(|found| cluster::differing(&wanted, &found.properties)) {
            None => Finding::missing(),
            Some((differs, left)) if differs.is_empty() && left.is_empty() => Finding::AsWanted,
            Some((differs, left)) => {
                let names: Vec<_> = differs
                    .iter()
                    .map(|(name, _)| name.as_str())
                    .chain(left.iter().map(|name| name.as_str()))
                    .collect();
                Finding::Differs {
                    how: format!("not as wanted: {}", names.join(", ")),
                    mend: "holdfast register".to_owned(),
                }
            }
        };
        Ok(PartReport::new(format!("Restate's Kafka cluster {CLUSTER}"), finding))
    }

    async fn settle_cluster(&self) -> Result<PartReport, Error> {
        let wanted = cluster::wanted(&self.config, &self.kafka)?;
        let what = format!("Restate's Kafka cluster {CLUSTER}");
        let clusters = self.admin.kafka_clusters().await?;
        let Some(found) = clusters.into_iter().find(|cluster| cluster.name == CLUSTER) else {
            self.admin.create_kafka_cluster(CLUSTER, &wanted).await?;
            return Ok(PartReport::new(what, Finding::Created));
        };
        let (differs, left) = cluster::differing(&wanted, &found.properties);
        if differs.is_empty() && left.is_empty() {
            return Ok(PartReport::new(what, Finding::AsWanted));
        }
        let have: Vec<_> = differs
            .iter()
            .map(|(name, _)| property(name, found.properties.get(*name)))
            .chain(left.iter().map(|name| (*name).clone()))
            .collect();
        let is_known = |name: &String| wanted.contains_key(name) || left.contains(&name);
        let finding = if found.properties.keys().all(is_known) {
            self.admin.replace_kafka_cluster(CLUSTER, &wanted).await?;
            Finding::Changed {
                before: format!("had {}", have.join(", ")),
            }
        } else {
            // Secrets come back redacted: replacing the properties would lose what an operator added.
            let short = |value: &str| {
                if value.contains('\n') {
                    "(the file's content)".to_owned()
                } else {
                    value.to_owned()
                }
            };
            let want: Vec<_> = differs
                .iter()
                .map(|(name, value)| format!("{name}={}", short(value)))
                .collect();
            Finding::Differs {
                how: format!("has {}, wanted {}", have.join(", "), want.join(", ")),
                mend: format!("restate kafka-clusters patch {CLUSTER} --set {}", want.join(" --set ")),
            }
        };
        Ok(PartReport::new(what, finding))
    }

    async fn settle_deployment(&self) -> Result<Vec<PartReport>, Error> {
        let served = self.admin.register(&self.serve_url, Registration::DryRun).await?;
        let finding = match self.known_deployment().await? {
            None => {
                self.admin.register(&self.serve_url, Registration::Keep).await?;
                Finding::Created
            }
            Some(known) => match changed(&served, &self.admin.services().await?, &known) {
                changed if changed.is_empty() => Finding::AsWanted,
                changed => {
                    self.may_replace(&known, &served).await?;
                    self.admin.register(&self.serve_url, Registration::Replace).await?;
                    Finding::Changed {
                        before: format!("new handlers of {}", changed.join(", ")),
                    }
                }
            },
        };
        let mut lines = vec![PartReport::new(format!("handlers at {}", self.serve_url), finding)];
        let services = self.admin.services().await?;
        lines.extend(gives_up(&services));
        lines.extend(exposed(&services));
        Ok(lines)
    }

    /// Checks that new handlers may finish the invocations of the old ones: not if an invocation keeps a journal that the new
    /// ones may not fit, or calls a handler that is gone. On the way back to handlers that are still registered there are no
    /// new ones.
    async fn may_replace(&self, deployment: &str, served: &Registered) -> Result<(), Error> {
        let registered = self.admin.services_of(deployment).await?;
        if changed(served, &registered, deployment).is_empty() {
            return Ok(());
        }
        let fits = |pinned: &Pinned| {
            let service = served.services.iter().find(|service| service.name == pinned.service);
            let exists = service.is_some_and(|service| service.handlers().contains(&pinned.handler.as_str()));
            let is_stepwise = STEPWISE.contains(&pinned.handler.as_str());
            exists && !is_stepwise && KEYED.contains(&pinned.service.as_str())
        };
        match self
            .admin
            .pinned(deployment)
            .await?
            .into_iter()
            .find(|pinned| !fits(pinned))
        {
            None => Ok(()),
            Some(pinned) => Err(Error::InFlight {
                url: self.serve_url.to_string(),
                handler: format!("{}/{}", pinned.service, pinned.handler),
                invocations: pinned.invocations,
            }),
        }
    }

    async fn settle_subscription(&self, route: &Route, created: &[&str]) -> Result<Vec<PartReport>, Error> {
        let (source, sink) = (self.source(route), sink(route));
        let subscriptions = self.admin.subscriptions().await?.into_iter();
        let (mut ours, others): (Vec<_>, Vec<_>) = subscriptions
            .filter(|known| known.sink == sink)
            .partition(|known| known.source == source);
        ours.sort_by(by_id);
        let mut wanted = Options::new(&route.group(self.path), self.member());
        let anew = match ours.first() {
            None => match self.succeed(route, &mut wanted).await? {
                None => Some(Finding::Created),
                Some(before) => Some(Finding::Changed { before }),
            },
            Some(known) => {
                let outdated = self.outdated(route, known, &mut wanted, created).await?;
                outdated.map(|before| Finding::Changed { before })
            }
        };
        let finding = match (anew, ours.len()) {
            (None, 0 | 1) => Finding::AsWanted,
            (None, count) => {
                self.leave_one(&source, &sink).await?;
                let before = format!("was there {count} times: all but one were deleted");
                Finding::Changed { before }
            }
            (Some(finding), _) => {
                self.replace(&ours, &source, &sink, &wanted).await?;
                finding
            }
        };
        let mut lines = vec![PartReport::new(format!("subscription of {sink} to {source}"), finding)];
        lines.extend(others.into_iter().map(another));
        Ok(lines)
    }

    /// The name under which the engine is in each consumer group, if it has one.
    fn member(&self) -> Option<&'static str> {
        self.config.restate.single_node.then_some(MEMBER)
    }

    /// Makes each subscription anew whose group has no member and had none at the look before. `unread` are those that have none.
    pub(super) async fn read_on(&self, unread: &mut HashSet<String>) -> Result<(), Error> {
        let subscriptions = self.admin.subscriptions().await?;
        for route in &ROUTES {
            let (source, sink) = (self.source(route), sink(route));
            let ours = subscriptions
                .iter()
                .filter(|known| known.sink == sink && known.source == source);
            let ours: Vec<_> = ours.cloned().collect();
            let [known] = &ours[..] else { continue };
            let have = Options(known.options.clone());
            if topics::has_members(&self.config, have.get("group.id"), Duration::ZERO).await? {
                unread.remove(&known.id);
            } else if !unread.insert(known.id.clone()) {
                self.replace(&ours, &source, &sink, &self.in_place_of(known)).await?;
                tracing::warn!(source, "{UNREAD}, and its subscription was made anew");
            }
        }
        Ok(())
    }

    /// The options of a subscription in the same group. Under a known member id Kafka would give the new member the old one's
    /// assignment, even an empty one.
    fn in_place_of(&self, known: &Subscription) -> Options {
        let have = Options(known.options.clone());
        let mut wanted = Options::new(have.get("group.id"), self.member());
        wanted.suffix("group.instance.id", &known.id);
        wanted
    }

    /// Makes a subscription in the place of these. An event that is delivered twice meets its idempotency record.
    async fn replace(&self, former: &[Subscription], source: &str, sink: &str, wanted: &Options) -> Result<(), Error> {
        for known in former {
            self.admin.delete_subscription(&known.id).await?;
        }
        self.admin.create_subscription(source, sink, &wanted.0).await?;
        self.leave_one(source, sink).await
    }

    /// Deletes all subscriptions of the handler to the topic but one: another `register` may have made one at the same time, and two
    /// with one member name would throw each other out of their group. Each `register` does so after it made its own, and keeps the
    /// same one.
    async fn leave_one(&self, source: &str, sink: &str) -> Result<(), Error> {
        let mut ours = self.admin.subscriptions().await?;
        ours.retain(|known| known.sink == sink && known.source == source);
        ours.sort_by(by_id);
        for known in ours.iter().skip(1) {
            self.admin.delete_subscription(&known.id).await?;
        }
        Ok(())
    }

    /// What is to be said of an engine that subscribes for the first time although its group has read the topic: another engine
    /// did, and what that one had taken and not applied may have gone with its disk. This one gets a group of its own, which
    /// begins with all that may still be decided; the database knows what was.
    async fn succeed(&self, route: &Route, wanted: &mut Options) -> Result<Option<String>, Error> {
        let topic = route.source(self.path);
        if !topics::is_read(&self.config, wanted.get("group.id"), topic).await? {
            return Ok(None);
        }
        let now = (self.now)();
        let since = oldest_known(now, self.config.database.idempotency_retention);
        let before = wanted.get("group.id").to_owned();
        wanted.suffix("group.id", &now.unix_timestamp().to_string());
        let group = wanted.get("group.id");
        topics::begin(&self.config, group, topic, since).await?;
        let since = since.format(&Rfc3339).unwrap_or_else(|_| since.to_string());
        Ok(Some(format!(
            "this engine is new, and another one has read the topic as {before}: as {group} it reads again what was written \
             since {since}; what was decided before is a repeat"
        )))
    }

    /// The reason why a subscription must be made anew, if so; then `wanted` has its options.
    async fn outdated(
        &self,
        route: &Route,
        known: &Subscription,
        wanted: &mut Options,
        created: &[&str],
    ) -> Result<Option<String>, Error> {
        let topic = route.source(self.path);
        let have = Options(known.options.clone());
        let stale = created.contains(&topic) || !topics::fits(&self.config, have.get("group.id"), topic).await?;
        if stale {
            // The old members may still commit offsets of the deleted topic: the new ones need a group of their own.
            wanted.suffix("group.id", &known.id);
            return Ok(Some("was older than its topic".to_owned()));
        }
        let before = if have.settings() != wanted.settings() {
            format!("had {}", have.settings().join(", "))
        } else if topics::has_members(&self.config, have.get("group.id"), JOINS_WITHIN).await? {
            return Ok(None);
        } else {
            UNREAD.to_owned()
        };
        *wanted = self.in_place_of(known);
        Ok(Some(before))
    }

    /// Whether anybody reads by a subscription.
    async fn whether_read(&self, known: &Subscription) -> Finding {
        let options = Options(known.options.clone());
        match topics::has_members(&self.config, options.get("group.id"), JOINS_WITHIN).await {
            Ok(true) => Finding::AsWanted,
            Ok(false) => Finding::Differs {
                how: UNREAD.to_owned(),
                mend:
                    "holdfast register makes it anew; if nobody reads by that one either, the engine's log says what \
                       keeps it from Kafka"
                        .to_owned(),
            },
            Err(error) => Finding::Unknown {
                why: format!("whether anybody reads by it: {}", error::chain(&error)),
            },
        }
    }
}

/// An engine that has just begun to read, or whose Kafka has just come back, is a member of its group by then.
const JOINS_WITHIN: Duration = Duration::from_secs(15);

/// Of a subscription whose group has no member. Kafka's client in the engine is known to forget every broker when it asks for them
/// while Kafka has none to name, as after all of them stood still, and never to ask again (librdkafka#5301).
const UNREAD: &str = "its group has no member: the engine does not read";

/// The handler of a stream's events, as Restate names it.
fn sink(route: &Route) -> String {
    format!("service://{}/{APPLY}", route.object)
}

/// From when on every event that was decided still has its idempotency record, and a while longer: reading them again takes
/// time, and whoever is swept meanwhile would be lettered as too old.
fn oldest_known(now: OffsetDateTime, retention: Duration) -> OffsetDateTime {
    now - (retention - retention / 100)
}

/// The services whose handlers or address in Restate differ from those that are served.
fn changed(served: &Registered, known: &[Service], deployment: &str) -> Vec<String> {
    let is_known = |service: &Service| {
        let known = known.iter().find(|known| known.name == service.name);
        known.is_some_and(|known| known.deployment_id == deployment && known.manifest() == service.manifest())
    };
    let served = served.services.iter().filter(|service| !is_known(service));
    served.map(|service| service.name.clone()).collect()
}

/// The options of a subscription: properties of its Kafka consumer.
struct Options(BTreeMap<String, String>);

impl Options {
    fn new(group: &str, member: Option<&str>) -> Self {
        let mut options = Self(BTreeMap::new());
        options.set("auto.offset.reset", "earliest");
        options.set("group.id", group);
        if let Some(member) = member {
            options.set("group.instance.id", member);
        }
        options
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// Extends a value that is set, so that it becomes one that was never used.
    fn suffix(&mut self, name: &str, suffix: &str) {
        if let Some(value) = self.0.get_mut(name) {
            *value = format!("{value}.{suffix}");
        }
    }

    /// The options to compare: group and member names change with each subscription, and Restate adds a client id.
    fn settings(&self) -> Vec<String> {
        let settings = self.0.iter().filter_map(|(name, value)| match name.as_str() {
            "client.id" => None,
            "group.id" | "group.instance.id" => Some(name.clone()),
            _ => Some(format!("{name}={value}")),
        });
        settings.collect()
    }
}

/// An order that is the same for everybody who sees the same subscriptions.
fn by_id(one: &Subscription, other: &Subscription) -> Ordering {
    one.id.cmp(&other.id)
}

/// Reports another topic that the same handler subscribes to.
fn another(known: Subscription) -> PartReport {
    PartReport::new(
        format!("subscription of {} to {}", known.sink, known.source),
        Finding::Differs {
            how: "brings events by another path than the one registered now".to_owned(),
            mend: format!("Once its topic is drained: restate subscriptions delete {}", known.id),
        },
    )
}

/// Reports a Restate that limits attempts: after an outage of an hour or so it pauses invocations, and their ticket or user waits
/// for an operator.
fn gives_up(services: &[Service]) -> Option<PartReport> {
    let ours = services.iter().filter(|service| KEYED.contains(&service.name.as_str()));
    let attempts = ours.filter_map(Service::max_attempts).min()?;
    Some(PartReport::new(
        "Restate's retries",
        Finding::Differs {
            how: format!("it gives up after {attempts} attempts"),
            mend: "Set max-attempts = \"unlimited\" under [default-retry-policy] in Restate's settings.".to_owned(),
        },
    ))
}

/// Reports handlers that the engine lets anybody call by HTTP although they believe what they are told.
fn exposed(services: &[Service]) -> Option<PartReport> {
    let is_public = |(service, handler): &(&str, &str)| {
        let service = services.iter().find(|known| known.name == *service);
        service.is_some_and(|service| service.is_public(handler))
    };
    let exposed: Vec<_> = (PRIVATE.iter().filter(|handler| is_public(handler)))
        .map(|(service, handler)| format!("{service}/{handler}"))
        .collect();
    if exposed.is_empty() {
        return None;
    }
    Some(PartReport::new(
        "Restate's ingress",
        Finding::Differs {
            how: format!("anybody who reaches it can call {}", exposed.join(", ")),
            mend: "Register these handlers at an address of their own (--serve-url), and let nobody change the services by hand."
                .to_owned(),
        },
    ))
}

fn property(name: &str, value: Option<&String>) -> String {
    match value {
        Some(value) => format!("{name}={value}"),
        None => format!("no {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(json: serde_json::Value) -> Service {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn handlers_in_another_order_are_the_same_handlers() {
        let served = service(serde_json::json!({
            "name": "Ticket", "deployment_id": "dp_1", "revision": 2, "handlers": [{"name": "apply"}, {"name": "get"}]
        }));
        let known = service(serde_json::json!({
            "name": "Ticket", "deployment_id": "dp_1", "revision": 1, "handlers": [{"name": "get"}, {"name": "apply"}]
        }));
        let other = service(serde_json::json!({
            "name": "Ticket", "deployment_id": "dp_1", "revision": 1, "handlers": [{"name": "get"}]
        }));
        let registered = Registered { services: vec![served] };
        assert!(changed(&registered, std::slice::from_ref(&known), "dp_1").is_empty());
        assert_eq!(changed(&registered, &[known], "dp_2"), ["Ticket"], "another address");
        assert_eq!(changed(&registered, &[other], "dp_1"), ["Ticket"], "another handler");
    }

    #[test]
    fn a_private_handler_that_the_engine_has_public_is_reported() {
        let services = |apply: bool| {
            let mut services: BTreeMap<&str, Vec<serde_json::Value>> = BTreeMap::new();
            for (service, handler) in PRIVATE {
                let public = handler == APPLY && apply;
                let handler = serde_json::json!({ "name": handler, "public": public });
                services.entry(service).or_default().push(handler);
            }
            let services = services.into_iter().map(|(name, handlers)| {
                service(serde_json::json!({ "name": name, "deployment_id": "dp_1", "handlers": handlers }))
            });
            services.collect::<Vec<_>>()
        };
        assert!(exposed(&services(false)).is_none());
        let found = exposed(&services(true)).unwrap().finding;
        assert!(
            matches!(&found, Finding::Differs { how, .. } if how.ends_with("Ticket/apply, User/apply")),
            "{found:?}"
        );
    }

    #[test]
    fn only_the_settings_of_a_subscription_are_compared() {
        let ours = Options::new("g", Some("restate"));
        let mut renamed = Options::new("g.sub_1", Some("restate.sub_1"));
        renamed.set("client.id", "restate");
        assert_eq!(ours.settings(), renamed.settings());
        assert_ne!(ours.settings(), Options::new("g", None).settings());
    }
}
