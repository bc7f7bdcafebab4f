//! The recipes in `docs/recipes`, on real servers: what they send is taken, what they read is the table of Postgres.

mod programs;
mod seats;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use futures::future::try_join_all;
use holdfast_schemas::topics::{PAYMENTS, PAYMENTS_OUTCOMES, RESERVATIONS, RESERVATIONS_OUTCOMES};
use holdfast_tests::kit::kafka::{ReadRecord, Sent};
use holdfast_tests::kit::process::{self, Plan, Process};
use holdfast_tests::kit::provider::{Delivery, Simulator, WEBHOOK_SECRET};
use holdfast_tests::kit::{Name, Stack, until};
use holdfast_tests::load::{now, timestamp};
use nix::sys::signal::Signal;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use programs::{LANGUAGES, Language, Program, Programs};
use seats::{Kept, Seats};

const PATIENCE: Duration = Duration::from_secs(60);

/// The source of the kit's own events, which may say what a ticket costs.
const KIT: &str = "kit";

const MODES: [&str; 2] = ["binary", "structured"];

/// Outcomes about tickets after each step of a shop: two are listed, one is held and refused to another; then it is sold.
const HELD: usize = 4;
const SOLD: usize = 5;

pub(crate) async fn run() -> anyhow::Result<()> {
    let programs = spawn_blocking(Programs::prepare).await??;
    let stack = Stack::open(Name::Recipes).await?;
    stack.start().await?;
    let provider = stack.provider().await?;
    provider.webhooks_to(&stack.webhook_url()?, WEBHOOK_SECRET);
    provider.deliver_always(Delivery::InOrder);
    let worker = stack
        .holdfast("run", "run")
        .provider(&provider)
        .webhooks()
        .env("HOLDFAST_PRICE_SOURCES", KIT)
        .start()
        .await?;
    let recipes = Recipes {
        stack,
        provider,
        programs,
    };
    recipes.sell().await?;
    println!("recipes: what is sent in four languages, in either mode, is taken; sent again, it has no second effect");
    recipes.change().await?;
    recipes.read().await?;
    recipes.read_a_copy().await?;
    recipes.read_what_was_put_back().await?;
    println!("recipes: readers in four languages have Postgres' table, also when killed; a gap stops them, by name");
    recipes.subscribe().await?;
    println!("recipes: a service of a stranger's own is told every outcome once");
    recipes.clean().await?;
    worker.stop().await
}

struct Recipes {
    stack: Stack,
    provider: Simulator,
    programs: Programs,
}

struct Reader {
    language: Language,
    process: Arc<Process>,
    file: PathBuf,
}

impl Recipes {
    /// Each language sells a seat in either mode, and sends a part again.
    async fn sell(&self) -> anyhow::Result<()> {
        let time = timestamp(now());
        let shops: Vec<(Language, &str)> = LANGUAGES
            .into_iter()
            .flat_map(|language| MODES.map(|mode| (language, mode)))
            .collect();
        let send = async |step: &str, shops: &[(Language, &str)]| {
            let sent = shops.iter().map(|(language, mode)| {
                let mut command = self.programs.command(*language, Program::Send);
                command.env("KAFKA", self.stack.kafka.bootstrap());
                command.args([mode, step, &shop(*language, mode), &time]);
                spawn_blocking(move || process::output(command))
            });
            let sent = try_join_all(sent).await?;
            sent.into_iter().try_for_each(|printed| printed.map(drop))
        };
        send("list-and-hold", &shops).await?;
        self.told(HELD * shops.len()).await?;
        send("buy", &shops).await?;
        self.told(SOLD * shops.len()).await?;
        send("list-and-hold", &LANGUAGES.map(|language| (language, MODES[0]))).await?;
        until("the checkouts are completed", PATIENCE, async || {
            let outcomes = self.outcomes_on(PAYMENTS_OUTCOMES).await?;
            let types = outcomes.iter().map(|outcome| &outcome["type"]);
            let completed = types
                .filter(|kind| *kind == "holdfast.outcome.checkout.completed.v1")
                .count();
            ensure!(completed == shops.len(), "{completed} are");
            Ok(())
        })
        .await?;
        self.clean().await?;
        let outcomes = self.told(SOLD * shops.len()).await?;
        for (language, mode) in shops {
            let seat = format!("{}/A1", shop(language, mode));
            let kinds = kinds(&outcomes, &seat)?;
            let expected = ["ticket.listed", "ticket.held", "reservation.refused", "ticket.sold"];
            ensure!(kinds == expected, "{seat}: {kinds:?}");
        }
        self.look_at_what_was_sent().await
    }

    /// Each shop's events are in its mode, and lie where Java's client would put them.
    async fn look_at_what_was_sent(&self) -> anyhow::Result<()> {
        for topic in [RESERVATIONS, PAYMENTS] {
            let records = self.stack.kafka.read(topic).await?;
            let records: Vec<&ReadRecord> = records.iter().filter(|record| is_of_a_recipe(record)).collect();
            ensure!(!records.is_empty(), "nothing on {topic}");
            for &record in &records {
                let key = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default());
                let has = |wanted: &str| record.headers.iter().any(|(name, _)| name == wanted);
                let is_binary = key.split('/').next().is_some_and(|shop| shop.ends_with(MODES[0]));
                ensure!(has("ce_id") == is_binary, "{topic}: {record:?}");
            }
            let compared = format!("recipes.{topic}");
            self.make(&compared, self.partitions(topic).await?).await?;
            let keys: Vec<Sent> = records.iter().map(|record| sent(record.key.clone(), None)).collect();
            let places = self.stack.kafka.send(&compared, &keys).await?;
            for (record, (partition, _)) in records.iter().zip(places) {
                ensure!(record.partition == partition, "Java sends to {partition}: {record:?}");
            }
        }
        Ok(())
    }

    /// What else happens to tickets, so that readers meet every kind of outcome.
    async fn change(&self) -> anyhow::Result<()> {
        let before = self.outcomes().await?.len();
        let terms = |amount: u32| json!({ "show": "kit", "price": { "amount": amount, "currency": "EUR" } });
        let sold = format!("{}/A1", shop(Language::Java, MODES[0]));
        let cheaper = json!({ "user": "kit/ann", "price": { "amount": 3_600, "currency": "EUR" } });
        let of_tickets = [
            event("list-1", "kit/A1", "ticket.listed.v1", terms(4_500)),
            event("withdraw-1", "kit/A1", "ticket.withdrawn.v1", json!({})),
            event("list-again-1", "kit/A1", "ticket.listed.v1", terms(3_900)),
            event("list-2", "kit/A2", "ticket.listed.v1", terms(4_500)),
            event(
                "hold-2",
                "kit/A2",
                "reservation.requested.v1",
                json!({ "user": "kit/ann", "hold_for": 1 }),
            ),
            event("list-3", "kit/A3", "ticket.listed.v1", terms(4_500)),
            event("hold-3", "kit/A3", "reservation.requested.v2", cheaper),
            event("list-4", "kit/A4", "ticket.listed.v1", terms(4_500)),
            event(
                "hold-4",
                "kit/A4",
                "reservation.requested.v1",
                json!({ "user": "kit/ann" }),
            ),
            event(
                "hold-5",
                "kit/none",
                "reservation.requested.v1",
                json!({ "user": "kit/ann" }),
            ),
            // It is sold, and stays its buyer's.
            event("withdraw-sold", &sold, "ticket.withdrawn.v1", json!({})),
        ];
        self.stack.kafka.send(RESERVATIONS, &of_tickets).await?;
        let back = shop(Language::Rust, MODES[0]);
        let refund = json!({ "amount": 4_500, "currency": "EUR" });
        let order = json!({ "checkout": format!("{back}/order-1"), "refund": refund });
        let returned = event("return", &format!("{back}/ann"), "order.returned.v1", order);
        self.stack.kafka.send(PAYMENTS, &[returned]).await?;
        // The second ticket's hold ends, the third one's price is told beside the hold, and a ticket is returned.
        let outcomes = self.told(before + of_tickets.len() + 3).await?;
        let held = outcomes.iter().find(|outcome| outcome["causationid"] == "hold-3");
        let hold = held.context("no hold")?["data"]["hold"].clone();
        let release = json!({ "user": "kit/ann", "hold": hold });
        let released = event("release-3", "kit/A3", "reservation.released.v1", release);
        self.stack.kafka.send(RESERVATIONS, &[released]).await?;
        self.told(before + of_tickets.len() + 4).await.map(drop)
    }

    /// From the live topic each reader makes the table of Postgres.
    async fn read(&self) -> anyhow::Result<()> {
        let readers = self.readers(RESERVATIONS_OUTCOMES)?;
        self.have(&readers, &self.seats().await?).await?;
        killed(readers)
    }

    /// Killed in the middle, and told some again, a reader still has that table. An outcome that is missing stops it.
    async fn read_a_copy(&self) -> anyhow::Result<()> {
        const COPY: &str = "recipes.copy";
        let (kafka, partitions) = (&self.stack.kafka, self.partitions(RESERVATIONS_OUTCOMES).await?);
        self.make(COPY, partitions).await?;
        let mut first = Vec::new();
        let mut rest = Vec::new();
        let records = kafka.read(RESERVATIONS_OUTCOMES).await?;
        for partition in 0..partitions {
            let copies = records.iter().filter(|record| record.partition == partition).map(copy);
            let copies: Vec<Sent> = copies.collect();
            let (earlier, later) = copies.split_at(copies.len() / 2);
            first.extend_from_slice(earlier);
            rest.extend_from_slice(later);
        }
        kafka.send(COPY, &first).await?;
        let readers = self.readers(COPY)?;
        let middle = i64::try_from(first.len())?;
        for reader in &readers {
            until(
                &format!("{:?} is in the middle", reader.language),
                PATIENCE,
                async || {
                    let read = Kept::load(&reader.file)?.read()?;
                    ensure!(read == middle, "read up to {read} of {middle}");
                    Ok(())
                },
            )
            .await
            .with_context(|| reader.process.last_words())?;
        }
        killed(readers)?;
        let mut missing: Value = parse(records.last().context("no outcomes")?)?;
        let last = missing["sequence"].as_u64().context("no sequence")?;
        let (seat, sequence) = (text(&missing, "subject")?, last + 2);
        missing["sequence"] = json!(sequence);
        let gap = Sent {
            value: Some(missing.to_string().into_bytes()),
            ..copy(records.last().context("no outcomes")?)
        };
        // Transactions that are aborted are nobody's outcomes.
        self.abort(COPY, &gap).await?;
        self.abort(COPY, &gap).await?;
        for again in [&first[first.len() / 2..], &rest[..], &first[..]] {
            kafka.send(COPY, again).await?;
        }
        let readers = self.readers(COPY)?;
        self.have(&readers, &self.seats().await?).await?;
        killed(readers)?;
        kafka.send(COPY, &[gap]).await?;
        let says = format!("{seat}: sequence {sequence} of generation 1 follows {last}: outcomes are missing");
        self.stop(self.readers(COPY)?, &says).await
    }

    /// A newer generation takes back what it does not know of. The same outcome with other content stops a reader.
    async fn read_what_was_put_back(&self) -> anyhow::Result<()> {
        const PUT_BACK: &str = "recipes.put-back";
        self.make(PUT_BACK, 1).await?;
        let outcome = |generation: u64, sequence: u64, kind: &str, data: Value| {
            let id = format!("{generation}-{kind}");
            let (kind, seat) = (format!("holdfast.outcome.ticket.{kind}.v1"), "kit/B1");
            let outcome = json!({ "id": id, "type": kind, "subject": seat, "sequence": sequence, "generation": generation,
                "data": data });
            sent(Some(seat.into()), Some(outcome.to_string().into_bytes()))
        };
        let terms = json!({ "show": "kit", "price": { "amount": 4_500, "currency": "EUR" } });
        let hold = json!({ "user": "kit/ann", "hold": "h-1", "until": "2030-01-02T03:14:05Z" });
        let sale = json!({ "user": "kit/ann", "checkout": "order-1" });
        let told = [
            outcome(1, 1, "listed", terms.clone()),
            outcome(1, 2, "changed", terms),
            outcome(1, 3, "held", hold.clone()),
            outcome(1, 4, "hold_lengthened", hold.clone()),
            outcome(1, 5, "sold", sale.clone()),
            outcome(1, 6, "returned", sale.clone()),
            outcome(2, 5, "expired", hold),
            outcome(1, 5, "sold", sale),
        ];
        self.stack.kafka.send(PUT_BACK, &told).await?;
        let readers = self.readers(PUT_BACK)?;
        for reader in &readers {
            until(&format!("{:?} goes back", reader.language), PATIENCE, async || {
                let kept = Kept::load(&reader.file)?;
                let row = kept.row("kit/B1")?;
                let is_back = row["generation"] == 2 && row["sequence"] == 5 && row["status"] == "available";
                ensure!(is_back && kept.read()? == i64::try_from(told.len())?, "{row}");
                Ok(())
            })
            .await
            .with_context(|| reader.process.last_words())?;
        }
        killed(readers)?;
        let other = outcome(2, 5, "withdrawn", json!({}));
        self.stack.kafka.send(PUT_BACK, &[other]).await?;
        let says = "kit/B1: sequence 5 of generation 2 came again with other content: 2-withdrawn, before 2-expired";
        self.stop(self.readers(PUT_BACK)?, says).await
    }

    /// A service of a stranger's own is told each outcome once: live, while it was away, and from a subscription made anew.
    async fn subscribe(&self) -> anyhow::Result<()> {
        let (port, restate) = (self.stack.ports.get("seats")?, &self.stack.restate);
        let start = || self.spawn("service", self.programs.service(port));
        let service = start()?;
        let address = json!({ "uri": format!("http://127.0.0.1:{port}") });
        until("the engine knows the service", PATIENCE, async || {
            self.admin("deployments", &address).await
        })
        .await
        .with_context(|| service.last_words())?;
        let subscription = json!({
            "source": format!("kafka://holdfast/{RESERVATIONS_OUTCOMES}"), "sink": "service://Seats/told",
            "options": { "auto.offset.reset": "earliest" },
        });
        let made = self.admin("subscriptions", &subscription).await?;
        self.is_told(|_| 0).await.with_context(|| service.last_words())?;
        service.kill()?;
        let terms = json!({ "show": "kit", "price": { "amount": 4_500, "currency": "EUR" } });
        let late = ["kit/C1", "kit/C2"].map(|seat| event(seat, seat, "ticket.listed.v1", terms.clone()));
        let before = self.outcomes().await?.len();
        self.stack.kafka.send(RESERVATIONS, &late).await?;
        self.told(before + late.len()).await?;
        let service = start()?;
        self.is_told(|_| 0).await.with_context(|| service.last_words())?;
        let url = format!("{}/subscriptions/{}", restate.admin(), text(&made, "id")?);
        restate.client().delete(url).send().await?.error_for_status()?;
        self.admin("subscriptions", &subscription).await?;
        self.is_told(|outcomes| outcomes)
            .await
            .with_context(|| service.last_words())?;
        service.kill()
    }

    /// Waits until the service knows of as many outcomes of each ticket as there are, and of as many repeats as this says.
    async fn is_told(&self, repeats: fn(i64) -> i64) -> anyhow::Result<()> {
        let seats = self.seats().await?;
        let expected = seats.iter().map(|(ticket, row)| {
            let outcomes = row["sequence"].as_i64().context("no sequence")?;
            Ok((ticket.clone(), (outcomes, repeats(outcomes))))
        });
        let expected: anyhow::Result<Vec<_>> = expected.collect();
        let expected = expected?;
        let query = "select service_key, value_utf8 from state where service_name = 'Seats' order by service_key";
        until("the service is told everything", PATIENCE, async || {
            let rows = self.stack.restate.sql(query).await?;
            let seen = rows.iter().map(|row| {
                let seen: Value = serde_json::from_str(&text(row, "value_utf8")?)?;
                let count = |what: &str| seen[what].as_i64().context("no count");
                anyhow::Ok((text(row, "service_key")?, (count("outcomes")?, count("repeats")?)))
            });
            let seen: anyhow::Result<Vec<_>> = seen.collect();
            let mut seen = seen?;
            seen.sort();
            ensure!(seen == expected, "{seen:?}");
            Ok(())
        })
        .await
    }

    async fn admin(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let restate = &self.stack.restate;
        let request = restate.client().post(format!("{}/{path}", restate.admin())).json(body);
        Ok(request.send().await?.error_for_status()?.json().await?)
    }

    /// Waits until each reader's table is this one.
    async fn have(&self, readers: &[Reader], seats: &Seats) -> anyhow::Result<()> {
        for reader in readers {
            until(&format!("{:?} has the table", reader.language), PATIENCE, async || {
                let kept = Kept::load(&reader.file)?.seats()?;
                ensure!(&kept == seats, "it has {kept:?}, Postgres {seats:?}");
                Ok(())
            })
            .await
            .with_context(|| reader.process.last_words())?;
        }
        Ok(())
    }

    /// Waits until each reader has ended in failure, with these words.
    async fn stop(&self, readers: Vec<Reader>, says: &str) -> anyhow::Result<()> {
        for Reader { language, process, .. } in readers {
            let ended = timeout(PATIENCE, process.wait()).await;
            let status = ended.map_err(|_| anyhow!("{language:?} reads on: {}", process.last_words()))??;
            let said = fs::read_to_string(process.log())?;
            ensure!(
                !status.success() && said.contains(says),
                "{language:?}: {status}: {said}"
            );
        }
        Ok(())
    }

    /// Starts each language's reader of a topic, from where its last one ended.
    fn readers(&self, topic: &str) -> anyhow::Result<Vec<Reader>> {
        let start = |language: Language| {
            let name = format!("read-{}-{topic}", language.name());
            let file = self.stack.folder().join(format!("{name}.json"));
            let mut command = self.programs.command(language, Program::Read);
            command.env("KAFKA", self.stack.kafka.bootstrap());
            command.arg(topic).arg(&file);
            let process = self.spawn(&name, command)?;
            Ok(Reader {
                language,
                process,
                file,
            })
        };
        LANGUAGES.into_iter().map(start).collect()
    }

    fn spawn(&self, name: &str, command: Command) -> anyhow::Result<Arc<Process>> {
        Process::spawn(Plan {
            name: name.to_owned(),
            command,
            folder: self.stack.folder().to_owned(),
            stop: Signal::SIGTERM,
            stop_within: PATIENCE,
        })
    }

    /// Waits until all tickets together have so many outcomes; more are an error.
    async fn told(&self, count: usize) -> anyhow::Result<Vec<Value>> {
        let outcomes = until(&format!("{count} outcomes"), PATIENCE, async || {
            let outcomes = self.outcomes().await?;
            ensure!(outcomes.len() >= count, "{} outcomes", outcomes.len());
            Ok(outcomes)
        })
        .await?;
        ensure!(outcomes.len() == count, "{} outcomes: {outcomes:?}", outcomes.len());
        Ok(outcomes)
    }

    async fn outcomes(&self) -> anyhow::Result<Vec<Value>> {
        self.outcomes_on(RESERVATIONS_OUTCOMES).await
    }

    async fn outcomes_on(&self, topic: &str) -> anyhow::Result<Vec<Value>> {
        let records = self.stack.kafka.read(topic).await?;
        records.iter().map(parse).collect()
    }

    async fn seats(&self) -> anyhow::Result<Seats> {
        let pool = self.stack.postgres.connect().await?;
        let seats = seats::in_postgres(&pool).await?;
        pool.close().await;
        Ok(seats)
    }

    /// Waits until every record is accounted for; then `verify` must find every promise kept.
    async fn clean(&self) -> anyhow::Result<()> {
        until("every record is accounted for", PATIENCE, async || {
            let verify = self.stack.holdfast("verify", "verify").provider(&self.provider);
            let verify = verify.arg("--json").output().await?;
            let report: Value = serde_json::from_slice(&verify.stdout)
                .with_context(|| String::from_utf8_lossy(&verify.stderr).into_owned())?;
            ensure!(verify.status.success() && report["pending"] == 0, "{report}");
            Ok(())
        })
        .await
    }

    async fn make(&self, topic: &str, partitions: i32) -> anyhow::Result<()> {
        self.stack.kafka.create_topic(topic, partitions, &[]).await
    }

    async fn partitions(&self, topic: &str) -> anyhow::Result<i32> {
        let consumer: BaseConsumer = self.stack.kafka.config().create()?;
        let topic = topic.to_owned();
        let counted = spawn_blocking(move || {
            let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE)?;
            let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
            anyhow::Ok(i32::try_from(partitions.count())?)
        });
        counted.await?
    }

    /// Sends a record in a transaction that is aborted.
    async fn abort(&self, topic: &str, record: &Sent) -> anyhow::Result<()> {
        let mut config = self.stack.kafka.config();
        let producer: BaseProducer = config.set("transactional.id", "recipes").create()?;
        let (topic, record) = (topic.to_owned(), record.clone());
        let aborted = spawn_blocking(move || {
            producer.init_transactions(PATIENCE)?;
            producer.begin_transaction()?;
            let mut base: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&topic);
            (base.key, base.payload, base.partition) =
                (record.key.as_deref(), record.value.as_deref(), record.partition);
            producer.send(base).map_err(|(error, _)| error)?;
            producer.flush(PATIENCE)?;
            anyhow::Ok(producer.abort_transaction(PATIENCE)?)
        });
        aborted.await?
    }
}

/// The name of the shop that a recipe plays.
fn shop(language: Language, mode: &str) -> String {
    format!("{}-{mode}", language.name())
}

/// An event of the kit's own, as a record without headers.
fn event(id: &str, subject: &str, kind: &str, data: Value) -> Sent {
    let event = json!({
        "specversion": "1.0",
        "id": id,
        "source": KIT,
        "type": format!("holdfast.{kind}"),
        "subject": subject,
        "time": timestamp(now()),
        "data": data,
    });
    sent(Some(subject.into()), Some(event.to_string().into_bytes()))
}

fn sent(key: Option<Vec<u8>>, value: Option<Vec<u8>>) -> Sent {
    Sent {
        key,
        value,
        ..Sent::default()
    }
}

fn copy(record: &ReadRecord) -> Sent {
    Sent {
        partition: Some(record.partition),
        ..sent(record.key.clone(), record.value.clone())
    }
}

fn parse(record: &ReadRecord) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(record.value.as_deref().context("no value")?)?)
}

/// Others send too: the payment provider by its webhooks.
fn is_of_a_recipe(record: &ReadRecord) -> bool {
    let source = b"https://shop.example/recipes/";
    let texts = record.headers.iter().map(|(_, value)| value).chain(&record.value);
    let mut parts = texts.flat_map(|text| text.windows(source.len()));
    parts.any(|part| part == source)
}

/// What was told of a ticket, in order: `ticket.held`.
fn kinds(outcomes: &[Value], seat: &str) -> anyhow::Result<Vec<String>> {
    let of_seat = outcomes.iter().filter(|outcome| outcome["subject"] == seat);
    of_seat
        .map(|outcome| {
            let kind = text(outcome, "type")?;
            let kind = kind.strip_prefix("holdfast.outcome.").context("no outcome")?;
            Ok(kind.rsplit_once('.').context("no version")?.0.to_owned())
        })
        .collect()
}

fn text(value: &Value, field: &str) -> anyhow::Result<String> {
    let text = value[field]
        .as_str()
        .with_context(|| format!("no {field} in {value}"))?;
    Ok(text.to_owned())
}

fn killed(readers: Vec<Reader>) -> anyhow::Result<()> {
    readers.iter().try_for_each(|reader| reader.process.kill())
}
