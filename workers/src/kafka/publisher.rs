//! A publisher of single records, each of which has a caller that waits for Kafka's acknowledgement.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::{Heard, Remarks, ThreadError, on_thread, producer};
use crate::config;
use crate::transience::{self, Fault};

/// Sends records to Kafka. Those of several callers share batches.
pub struct Publisher {
    settings: ClientConfig,
    remarks: Remarks,
    producer: Mutex<Made>,
}

/// A producer, when it was made, and whether Kafka left it without an answer since it last gave one.
struct Made {
    sender: Sender,
    at: Instant,
    is_unanswered: bool,
}

/// A producer without an answer is replaced so often. Kafka's client is known to forget every broker when it asks for them while Kafka
/// has none to name, as after all of them stood still, and never to ask again (librdkafka#5301).
const REPLACED_AFTER: Duration = Duration::from_secs(30);

type Sender = FutureProducer<Remarks>;

impl Publisher {
    /// `patience`: the longest wait for an acknowledgement. It sends nothing yet.
    ///
    /// # Errors
    /// [`Error::Producer`]
    pub fn new(config: &config::Kafka, patience: Duration) -> Result<Self, Error> {
        let mut settings = producer(config);
        settings.set("message.timeout.ms", patience.as_millis().to_string());
        let remarks = Remarks::new(config);
        let producer = Mutex::new(make(&settings, &remarks)?);
        Ok(Self {
            settings,
            remarks,
            producer,
        })
    }

    /// Returns once Kafka has the record, on as many replicas as the topic asks for.
    ///
    /// # Errors
    /// Kafka may or may not have the record: [`Error::Send`], [`Error::Producer`]. The caller may send it again.
    pub async fn take(&self, topic: &str, key: &str, value: &[u8], content_type: &str) -> Result<(), Error> {
        let content_type = Header {
            key: "content-type",
            value: Some(content_type),
        };
        let headers = OwnedHeaders::new().insert(content_type);
        let record = FutureRecord::to(topic).key(key).payload(value).headers(headers);
        let sent = self.sender()?.send_result(record).map_err(|(error, _)| error);
        let settled = match sent {
            Ok(settled) => settled.await,
            Err(error) => return Err(self.failed(topic, error)),
        };
        match settled {
            Ok(Ok(_)) => {
                self.note(None);
                Ok(())
            }
            Ok(Err((error, _))) => {
                self.note(Some(&error));
                Err(self.failed(topic, error))
            }
            // Its producer was broken, and dropped with the records in its queue.
            Err(_) => Err(self.failed(topic, KafkaError::MessageProduction(RDKafkaErrorCode::PurgeInflight))),
        }
    }

    /// Whether Kafka answers, and lets us see the topic. The wait is on a thread of its own.
    ///
    /// # Errors
    /// [`Error::Ask`], [`Error::Producer`]
    pub async fn answers(&self, topic: &'static str, patience: Duration) -> Result<(), Error> {
        let sender = self.sender()?;
        let asked = on_thread("webhook's kafka", move || {
            let metadata = sender.client().fetch_metadata(Some(topic), patience)?;
            let codes = metadata.topics().iter().filter_map(|topic| topic.error());
            let mut codes = codes.map(RDKafkaErrorCode::from);
            // A topic that is not there yet is sent to, and waited for.
            let denied = codes.find(|code| transience::kafka(*code) == Fault::Setting);
            denied.map_or(Ok(()), |code| Err(KafkaError::MetadataFetch(code)))
        });
        let answered = asked.await?;
        self.note(answered.as_ref().err());
        answered.map_err(|source| Error::Ask {
            topic: topic.to_owned(),
            heard: self.remarks.heard(),
            source,
        })
    }

    fn failed(&self, topic: &str, source: KafkaError) -> Error {
        Error::Send {
            topic: topic.to_owned(),
            heard: self.remarks.heard(),
            source,
        }
    }

    /// Notes whether Kafka answered: a refusal is an answer.
    fn note(&self, error: Option<&KafkaError>) {
        let code = error.and_then(KafkaError::rdkafka_error_code);
        self.made().is_unanswered = code.is_some_and(|code| transience::kafka(code).is_transient());
    }

    /// A producer that is not broken for good: an idempotent one can be, and is then replaced.
    fn sender(&self) -> Result<Sender, Error> {
        let mut made = self.made();
        if let Some((code, reason)) = made.sender.client().fatal_error() {
            tracing::warn!(%code, reason, "the Kafka producer is broken: a new one takes its place");
            *made = make(&self.settings, &self.remarks)?;
        } else if made.is_unanswered && made.at.elapsed() > REPLACED_AFTER {
            tracing::warn!("Kafka does not answer the producer: a new one takes its place");
            *made = make(&self.settings, &self.remarks)?;
        }
        Ok(made.sender.clone())
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.producer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make(settings: &ClientConfig, remarks: &Remarks) -> Result<Made, Error> {
    Ok(Made {
        sender: settings.create_with_context(remarks.clone()).map_err(Error::Producer)?,
        at: Instant::now(),
        is_unanswered: false,
    })
}

/// The reason why a record may not have arrived.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a Kafka producer cannot be made")]
    Producer(#[source] KafkaError),
    #[error("Kafka did not acknowledge a record for {topic}{heard}")]
    Send {
        topic: String,
        heard: Heard,
        source: KafkaError,
    },
    #[error("Kafka does not answer about {topic}{heard}")]
    Ask {
        topic: String,
        heard: Heard,
        source: KafkaError,
    },
    #[error(transparent)]
    Thread(#[from] ThreadError),
}
