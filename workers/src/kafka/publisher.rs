//! A publisher of single records, each of which has a caller that waits for Kafka's acknowledgement.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

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
    producer: Mutex<Sender>,
}

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
            Ok(Ok(_)) => Ok(()),
            Ok(Err((error, _))) => Err(self.failed(topic, error)),
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
        asked.await?.map_err(|source| Error::Ask {
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

    /// A producer that is not broken for good: an idempotent one can be, and is then replaced.
    fn sender(&self) -> Result<Sender, Error> {
        let mut sender = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((code, reason)) = sender.client().fatal_error() {
            tracing::warn!(%code, reason, "the Kafka producer is broken: a new one takes its place");
            *sender = make(&self.settings, &self.remarks)?;
        }
        Ok(sender.clone())
    }
}

fn make(settings: &ClientConfig, remarks: &Remarks) -> Result<Sender, Error> {
    settings.create_with_context(remarks.clone()).map_err(Error::Producer)
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
