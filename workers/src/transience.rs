//! The meaning of errors for retries: one table for each client, by the codes of its server's answers. Every module that retries
//! asks here, and acts on the [`Fault`] in its own way. A code that no table names is [`Fault::Unknown`], never transient.

use rdkafka::error::RDKafkaErrorCode;
use rustls::AlertDescription;

/// The place of a fault, and so the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server is away, overloaded or starting, or the network to it is broken: nothing passes until that is mended.
    Server,
    /// This connection alone: the client drops it, and a retry passes on a new one.
    Session,
    /// A conflict with another writer: a retry may pass now.
    Rival,
    /// The destination, such as a topic: everything for it fails, and everything else passes.
    Destination,
    /// The content that was sent: a retry fails for good, and everything else passes.
    Content,
    /// A setting, a grant, a table: everything fails until an operator mends it.
    Setting,
    /// No table names the code.
    Unknown,
}

impl Fault {
    /// True if a later retry may pass without an operator.
    pub fn is_transient(self) -> bool {
        matches!(self, Fault::Server | Fault::Session | Fault::Rival)
    }
}

/// The fault of a SQLSTATE. Source: PostgreSQL, appendix A.
pub fn postgres(sqlstate: &str) -> Fault {
    match sqlstate {
        // Read-only: a session from before a failover. A closed or broken transaction, an idle one that was ended, a statement
        // or a type that is not as it was when the session prepared it.
        "25006" | "25P02" | "25P03" | "57P05" | "26000" | "0A000" => Fault::Session,
        // A lock that was not given in time; a row version that is gone.
        "55P03" | "55006" | "72000" => Fault::Rival,
        // The exception of a trigger: a rule that it guards forbids the row.
        "P0001" => Fault::Content,
        // The database was dropped. A statement that was ended for its time (57014) may be slow for ever.
        "57P04" => Fault::Setting,
        "57014" => Fault::Unknown,
        _ => match sqlstate.get(..2) {
            // Connection exceptions, insufficient resources, operator intervention, system errors.
            Some("08" | "53" | "57" | "58") => Fault::Server,
            // Serialization failures and deadlocks.
            Some("40") => Fault::Rival,
            // Data exceptions, violated constraints, limits of the program such as the longest index row.
            Some("22" | "23" | "54") => Fault::Content,
            // Authorization, unknown database or schema, access rules and missing tables, object states, configuration.
            Some("28" | "3D" | "3F" | "42" | "55" | "F0") => Fault::Setting,
            _ => Fault::Unknown,
        },
    }
}

/// The fault of the SQL client's error, by SQLSTATE if the server answered.
pub fn sql(error: &sqlx::Error) -> Fault {
    use sqlx::Error;
    match error {
        Error::Database(error) => error.code().map_or(Fault::Unknown, |code| postgres(&code)),
        Error::Io(error) => tls(error).unwrap_or(Fault::Server),
        Error::PoolTimedOut | Error::PoolClosed | Error::WorkerCrashed => Fault::Server,
        Error::Protocol(_) | Error::BeginFailed | Error::InvalidSavePointStatement => Fault::Session,
        Error::ColumnDecode { .. } | Error::Decode(_) | Error::Encode(_) | Error::RowNotFound => Fault::Content,
        Error::Configuration(_) | Error::Tls(_) | Error::TypeNotFound { .. } | Error::Migrate(_) => Fault::Setting,
        Error::ColumnNotFound(_) | Error::ColumnIndexOutOfBounds { .. } => Fault::Setting,
        _ => Fault::Unknown,
    }
}

/// The fault of a TLS handshake that failed, if that is what the error is about: a certificate that is not trusted, is for another name
/// or has expired, or what the peer says of ours.
pub fn tls(error: &std::io::Error) -> Option<Fault> {
    use AlertDescription::*;
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(_)
        | rustls::Error::NoCertificatesPresented
        | rustls::Error::PeerIncompatible(_) => Some(Fault::Setting),
        rustls::Error::AlertReceived(
            BadCertificate
            | UnsupportedCertificate
            | CertificateRevoked
            | CertificateExpired
            | CertificateUnknown
            | CertificateRequired
            | NoCertificate
            | UnknownCA
            | AccessDenied
            | HandshakeFailure
            | ProtocolVersion
            | InsufficientSecurity,
        ) => Some(Fault::Setting),
        _ => None,
    }
}

/// The fault of a code of Kafka or its client library. Source: Kafka, protocol error codes; librdkafka, `rd_kafka_resp_err_t`.
pub fn kafka(code: RDKafkaErrorCode) -> Fault {
    use RDKafkaErrorCode::*;
    match code {
        BrokerTransportFailure | AllBrokersDown | Resolve | BrokerNotAvailable | NetworkException | UnknownBroker => {
            Fault::Server
        }
        MessageTimedOut | OperationTimedOut | RequestTimedOut | TimedOutQueue | Retry | QueueFull | WaitCache => {
            Fault::Server
        }
        // A producer was dropped with the records in its queue.
        PurgeQueue | PurgeInflight => Fault::Server,
        LeaderNotAvailable
        | NotLeaderForPartition
        | ReplicaNotAvailable
        | PreferredLeaderNotAvailable
        | EligibleLeadersNotAvailable
        | FencedLeaderEpoch
        | UnknownLeaderEpoch
        | NotController
        | StaleControllerEpoch => Fault::Server,
        CoordinatorLoadInProgress | CoordinatorNotAvailable | NotCoordinator | WaitingForCoordinator => Fault::Server,
        // Kafka answers so as long as too few brokers are up.
        NotEnoughReplicas | NotEnoughReplicasAfterAppend | ISRInsufficient | InvalidReplicationFactor => Fault::Server,
        KafkaStorageError | ThrottlingQuotaExceeded | UnstableOffsetCommit | OffsetNotAvailable => Fault::Server,
        RebalanceInProgress | IllegalGeneration | UnknownMemberId | FencedInstanceId | FencedMemberEpoch
        | StaleMemberEpoch | MemberIdRequired => Fault::Rival,
        Fenced | ProducerFenced | InvalidProducerEpoch | ConcurrentTransactions | TransactionCoordinatorFenced => {
            Fault::Rival
        }
        UnknownTopic | UnknownTopicOrPartition | UnknownPartition | UnknownTopicId | InvalidTopic => Fault::Destination,
        MessageSizeTooLarge
        | MessageBatchTooLarge
        | InvalidMessage
        | InvalidMessageSize
        | InvalidRecord
        | InvalidTimestamp
        | PolicyViolation
        | OffsetMetadataTooLarge
        | InvalidCommitOffsetSize
        | UnsupportedForMessageFormat => Fault::Content,
        // A right that is given back lets everything go on: nothing is put aside for it.
        TopicAuthorizationFailed
        | ClusterAuthorizationFailed
        | GroupAuthorizationFailed
        | TransactionalIdAuthorizationFailed
        | SaslAuthenticationFailed
        | Authentication
        | SSL
        | SecurityDisabled
        | UnsupportedSASLMechanism
        | IllegalSASLState => Fault::Setting,
        UnsupportedVersion
        | UnsupportedFeature
        | UnsupportedCompressionType
        | NotImplemented
        | InvalidRequiredAcks
        | InvalidConfig
        | InvalidPartitions
        | InvalidReplicaAssignment
        | InvalidSessionTimeout
        | InvalidTransactionTimeout
        | InvalidGroupId
        | InconsistentGroupProtocol => Fault::Setting,
        _ => Fault::Unknown,
    }
}

/// The fault of a status of Restate's admin API. All requests are our own: a setting or a version has to mend a refusal.
pub fn restate_admin(status: u16) -> Fault {
    match status {
        408 | 425 | 429 | 500..=599 => Fault::Server,
        _ => Fault::Setting,
    }
}

/// The fault of a status of Restate's ingress. A service that is not found is one that is not registered yet.
pub fn restate_ingress(status: u16) -> Fault {
    match status {
        404 => Fault::Server,
        _ => restate_admin(status),
    }
}

/// The fault of a status of the payment provider, if its body does not say more.
pub fn provider(status: u16) -> Fault {
    match status {
        408 | 425 | 429 | 500..=599 => Fault::Server,
        // Another call with the same idempotency key is under way.
        409 => Fault::Rival,
        400 | 402 => Fault::Content,
        _ => Fault::Setting,
    }
}

/// The fault of a mail server's answer to a command, with subject and detail of its enhanced status code. Sources: RFC 5321, 4.2;
/// RFC 3463; RFC 7504. What Postfix has against our host, name or address, it says in its answer to the recipient; a mail must not
/// be given up for that.
pub fn smtp(command: &str, code: u16, status: Option<(u16, u16)>) -> Fault {
    match (command, code, status) {
        // Commands that the server does not know or expect, a host that takes no mail, credentials.
        (_, 500 | 502..=504 | 521 | 530..=539, _) => Fault::Setting,
        // Our own address; a server that is closed or set up wrongly; a quota; security and policy, such as a denied relay.
        (_, 500..=599, Some((1, 0 | 7 | 8) | (3, 2 | 5) | (4, 5) | (7, _))) => Fault::Setting,
        // "Transaction failed" alone names neither the mail nor the recipient.
        (_, 554, None) => Fault::Setting,
        ("RCPT" | "DATA" | "the mail", 500..=599, _) => Fault::Content,
        (_, 500..=599, _) => Fault::Setting,
        _ => Fault::Server,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlstate_has_its_meaning() {
        for (codes, fault) in [
            (&["08006", "53300", "57P01", "57P03", "58030"][..], Fault::Server),
            (&["25006", "26000", "25P03"], Fault::Session),
            (&["40001", "40P01", "55P03"], Fault::Rival),
            (&["22021", "23514", "54000", "P0001"], Fault::Content),
            (&["28P01", "3D000", "42501", "42P01", "57P04"], Fault::Setting),
            (&["57014", "P0002", "XX000", "", "ö"], Fault::Unknown),
        ] {
            for code in codes {
                assert_eq!(postgres(code), fault, "{code}");
            }
        }
    }

    #[test]
    fn what_cannot_be_decoded_is_no_server_that_is_away() {
        let decode = sqlx::Error::Decode("no JSON".into());
        let column = sqlx::Error::ColumnDecode {
            index: "reply".into(),
            source: "no JSON".into(),
        };
        assert_eq!([sql(&decode), sql(&column)], [Fault::Content; 2]);
        assert_eq!(sql(&sqlx::Error::PoolTimedOut), Fault::Server);
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_no_server_that_is_away() {
        let io = |error: rustls::Error| sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, error));
        let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let refused = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        assert_eq!([sql(&io(expired)), sql(&io(refused))], [Fault::Setting; 2]);
        assert_eq!(sql(&io(rustls::Error::DecryptError)), Fault::Server);
        assert_eq!(
            sql(&sqlx::Error::Io(std::io::ErrorKind::ConnectionRefused.into())),
            Fault::Server
        );
    }

    #[test]
    fn only_what_waiting_mends_is_transient() {
        for code in [
            RDKafkaErrorCode::MessageTimedOut,
            RDKafkaErrorCode::NotEnoughReplicas,
            RDKafkaErrorCode::RebalanceInProgress,
        ] {
            assert!(kafka(code).is_transient(), "{code:?}");
        }
        for code in [
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::MessageSizeTooLarge,
            RDKafkaErrorCode::SaslAuthenticationFailed,
            RDKafkaErrorCode::Fatal,
        ] {
            assert!(!kafka(code).is_transient(), "{code:?}");
        }
        assert!(restate_admin(503).is_transient() && !restate_admin(404).is_transient());
        assert!(restate_ingress(404).is_transient() && !restate_ingress(400).is_transient());
        assert!(provider(409).is_transient() && !provider(401).is_transient());
    }

    #[test]
    fn only_what_concerns_this_mail_or_address_is_its_content() {
        for (command, code, status) in [
            ("RCPT", 550, None),
            ("RCPT", 553, Some((1, 3))),
            ("DATA", 554, Some((6, 0))),
            ("the mail", 552, None),
        ] {
            assert_eq!(smtp(command, code, status), Fault::Content, "{code} to {command}");
        }
        for (command, code, status) in [
            ("AUTH", 535, None),
            ("MAIL", 553, None),
            ("RCPT", 530, None),
            ("RCPT", 550, Some((7, 1))),
            ("RCPT", 550, Some((1, 8))),
            ("the mail", 554, None),
        ] {
            assert_eq!(smtp(command, code, status), Fault::Setting, "{code} to {command}");
        }
        for (command, code) in [("RCPT", 450), ("the mail", 451), ("DATA", 421)] {
            assert_eq!(smtp(command, code, Some((7, 1))), Fault::Server, "{code} to {command}");
        }
    }
}
