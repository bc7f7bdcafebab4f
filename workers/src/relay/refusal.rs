//! Records that Kafka refuses for good, and which of a batch they are.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::kafka::FailedDelivery;
use crate::transience::{self, Fault};

/// Records of one batch that Kafka will never accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KafkaRefusal {
    pub code: RDKafkaErrorCode,
    pub culprits: Culprits,
}

/// The records of the batch that caused the refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Culprits {
    /// These places in the batch.
    Known(Vec<usize>),
    /// One of them at least: Kafka gives one answer for all records of a produce batch.
    Unknown,
}

impl KafkaRefusal {
    /// A record refused before it was sent.
    pub(super) fn of_one(place: usize, error: &KafkaError) -> Option<Self> {
        let code = error.rdkafka_error_code()?;
        (about_topic(code) || about_record(code)).then(|| Self {
            code,
            culprits: Culprits::Known(vec![place]),
        })
    }

    /// The refusal among failed deliveries, if there is one: the others then failed because of it.
    pub(super) fn among(failures: &[FailedDelivery]) -> Option<Self> {
        let topics = failures.iter().filter(|failure| about_topic(failure.code));
        let places: Vec<usize> = topics.clone().map(|failure| failure.record).collect();
        if let Some(first) = topics.clone().next() {
            return Some(Self {
                code: first.code,
                culprits: Culprits::Known(places),
            });
        }
        let record = failures.iter().find(|failure| about_record(failure.code))?;
        Some(Self {
            code: record.code,
            culprits: Culprits::Unknown,
        })
    }

    /// A transaction that failed because of its records.
    pub(super) fn of_transaction(error: &KafkaError) -> Option<Self> {
        let code = match error {
            KafkaError::Transaction(error) if error.txn_requires_abort() => error.code(),
            _ => return None,
        };
        (about_topic(code) || about_record(code)).then_some(Self {
            code,
            culprits: Culprits::Unknown,
        })
    }
}

/// True if Kafka would refuse any record to this topic.
fn about_topic(code: RDKafkaErrorCode) -> bool {
    transience::kafka(code) == Fault::Destination
}

/// True if Kafka would refuse this record, or another of its produce batch, again.
fn about_record(code: RDKafkaErrorCode) -> bool {
    transience::kafka(code) == Fault::Content
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(record: usize, code: RDKafkaErrorCode) -> FailedDelivery {
        FailedDelivery { record, code }
    }

    #[test]
    fn a_topic_that_is_refused_names_its_records() {
        let failures = [
            failure(1, RDKafkaErrorCode::UnknownTopic),
            failure(2, RDKafkaErrorCode::PurgeQueue),
            failure(3, RDKafkaErrorCode::UnknownTopic),
        ];
        let refusal = KafkaRefusal::among(&failures).unwrap();
        assert_eq!(refusal.culprits, Culprits::Known(vec![1, 3]));
    }

    #[test]
    fn a_record_that_is_refused_blames_all_that_travelled_with_it() {
        let failures = [1, 2].map(|record| failure(record, RDKafkaErrorCode::MessageSizeTooLarge));
        let refusal = KafkaRefusal::among(&failures).unwrap();
        assert_eq!(refusal.culprits, Culprits::Unknown);
    }

    #[test]
    fn a_broker_that_is_away_refuses_nothing() {
        let failures =
            [RDKafkaErrorCode::MessageTimedOut, RDKafkaErrorCode::PurgeInflight].map(|code| failure(0, code));
        assert_eq!(KafkaRefusal::among(&failures), None);
    }

    #[test]
    fn a_record_too_large_for_the_client_is_refused_alone() {
        let error = KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge);
        assert_eq!(
            KafkaRefusal::of_one(4, &error).unwrap().culprits,
            Culprits::Known(vec![4])
        );
        let error = KafkaError::MessageProduction(RDKafkaErrorCode::Fatal);
        assert_eq!(KafkaRefusal::of_one(4, &error), None);
    }
}
