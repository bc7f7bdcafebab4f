//! A Kafka behind locks: logins over TLS, client certificates, and rights that are granted one by one.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use super::certs::{Authority, CertificateFiles};
use super::checkout;
use super::identity::base64url;
use super::ports::Ports;

/// The password of every user.
pub const PASSWORD: &str = "s3same-0pen";
/// The kit's own user, which may do everything.
pub const KIT: &str = "kit";
/// The users, named as their roles, who may do what they are granted.
pub const ROLES: &[&str] = &[
    "gate", "relay", "webhook", "register", "verify", "admin", "accept", "producer", "consumer", "books", "engine",
    "run",
];
/// The roles whose parts `holdfast run` has in one process.
const PARTS_OF_RUN: &[&str] = &["gate", "relay", "webhook", "register"];

/// Whether a Kafka asks who is there.
pub enum Security {
    Open,
    Locked(Box<Lock>),
}

impl Security {
    /// With its certificates in this folder.
    pub(super) fn locked(folder: PathBuf, ports: &Ports) -> anyhow::Result<Security> {
        let (mutual, expired) = (ports.get("kafka-mutual")?, ports.get("kafka-expired")?);
        Ok(Security::Locked(Box::new(Lock {
            authority: Authority::new("Holdfast's Kafka")?,
            folder,
            mutual,
            expired,
        })))
    }
}

/// The lock of one Kafka: its certificates, and the ports beside the one for logins.
pub struct Lock {
    pub authority: Authority,
    /// Here lie the certificates.
    folder: PathBuf,
    /// The port for those who show a certificate.
    pub mutual: u16,
    /// The port that shows a certificate whose time is over.
    pub expired: u16,
}

/// A right: the operation, the kind of resource, and its name, which stands for a beginning when it ends in `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    pub role: String,
    pub operation: String,
    pub kind: String,
    pub name: String,
}

impl Lock {
    /// The file with the authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// The certificate of a user.
    pub fn certificate(&self, user: &str) -> CertificateFiles {
        CertificateFiles {
            certificate: self.folder.join(format!("{user}.crt")),
            key: self.folder.join(format!("{user}.key")),
        }
    }

    /// The environment of a process that logs in as this user.
    pub fn login(&self, user: &str) -> Vec<(&'static str, String)> {
        vec![
            ("HOLDFAST_KAFKA_SECURITY_PROTOCOL", "SASL_SSL".to_owned()),
            ("HOLDFAST_KAFKA_CA", self.ca().display().to_string()),
            ("HOLDFAST_KAFKA_SASL_MECHANISM", "SCRAM-SHA-512".to_owned()),
            ("HOLDFAST_KAFKA_USERNAME", user.to_owned()),
            ("HOLDFAST_KAFKA_PASSWORD", PASSWORD.to_owned()),
        ]
    }

    /// A token of a user (JWT, RFC 7519) until then, in seconds since 1970. The broker believes tokens that nobody has signed.
    pub fn token(user: &str, until: i64) -> String {
        let part = |value: Value| base64url(value.to_string().as_bytes());
        let (head, claims) = (json!({ "alg": "none" }), json!({ "sub": user, "exp": until }));
        format!("{}.{}.", part(head), part(claims))
    }

    /// The client library's properties of this user's login.
    pub fn properties(&self, user: &str) -> [(&'static str, String); 5] {
        [
            ("security.protocol", "SASL_SSL".to_owned()),
            ("ssl.ca.location", self.ca().display().to_string()),
            ("sasl.mechanisms", "SCRAM-SHA-512".to_owned()),
            ("sasl.username", user.to_owned()),
            ("sasl.password", PASSWORD.to_owned()),
        ]
    }

    /// The settings of Kafka's own tools for the kit's own user.
    pub(super) fn admin_properties(&self) -> String {
        let ca = self.ca();
        format!(
            "security.protocol=SASL_SSL\nssl.truststore.type=PEM\nssl.truststore.location={}\nsasl.mechanism=SCRAM-SHA-512\n\
             sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required username=\"{KIT}\" password=\"{PASSWORD}\";\n",
            ca.display()
        )
    }

    /// Writes every certificate.
    pub(super) fn prepare(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.folder)?;
        fs::write(self.ca(), &self.authority.certificate)?;
        for user in ["broker", KIT].iter().chain(ROLES) {
            self.renew(user)?;
        }
        let expired = self.authority.sign_expired("gate", &["127.0.0.1"])?;
        expired.write(&self.folder, "expired")?;
        fs::write(
            self.folder.join("expired.pem"),
            format!("{}{}", expired.key, expired.certificate),
        )?;
        Ok(())
    }

    /// Writes a new certificate of this user; the file with its key comes back.
    pub(super) fn renew(&self, user: &str) -> anyhow::Result<PathBuf> {
        let certificate = self.authority.sign(user, &["127.0.0.1"])?;
        certificate.write(&self.folder, user)?;
        let file = self.folder.join(format!("{user}.pem"));
        fs::write(&file, format!("{}{}", certificate.key, certificate.certificate))?;
        Ok(file)
    }

    /// The arguments of the tool that formats the broker's folder.
    pub(super) fn format(&self) -> Vec<String> {
        let users = [KIT].into_iter().chain(ROLES.iter().copied());
        let scram = ["SCRAM-SHA-512", "SCRAM-SHA-256"];
        users
            .flat_map(|user| scram.map(|mechanism| format!("{mechanism}=[name={user},password={PASSWORD}]")))
            .flat_map(|user| ["--add-scram".to_owned(), user])
            .collect()
    }

    /// The broker's settings.
    pub(super) fn settings(&self, client: u16, controller: u16) -> String {
        let (mutual, expired, folder) = (self.mutual, self.expired, self.folder.display());
        let users: String = [KIT]
            .iter()
            .chain(ROLES)
            .map(|user| format!(" user_{user}=\"{PASSWORD}\""))
            .collect();
        format!(
            "listeners=CLIENT://127.0.0.1:{client},MUTUAL://127.0.0.1:{mutual},EXPIRED://127.0.0.1:{expired},CONTROLLER://127.0.0.1:{controller}\n\
             listener.security.protocol.map=CLIENT:SASL_SSL,MUTUAL:SSL,EXPIRED:SSL,CONTROLLER:SSL\n\
             inter.broker.listener.name=MUTUAL\n\
             ssl.keystore.type=PEM\nssl.keystore.location={folder}/broker.pem\n\
             ssl.truststore.type=PEM\nssl.truststore.location={folder}/ca.crt\n\
             listener.name.mutual.ssl.client.auth=required\nlistener.name.controller.ssl.client.auth=required\n\
             listener.name.expired.ssl.keystore.type=PEM\nlistener.name.expired.ssl.keystore.location={folder}/expired.pem\n\
             ssl.principal.mapping.rules=RULE:^.*CN=([^,]+).*$/$1/,DEFAULT\n\
             sasl.enabled.mechanisms=SCRAM-SHA-512,SCRAM-SHA-256,PLAIN,OAUTHBEARER\n\
             listener.name.client.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
             listener.name.client.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
             listener.name.client.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required{users};\n\
             listener.name.client.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"{KIT}\";\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             allow.everyone.if.no.acl.found=false\n\
             super.users=User:broker;User:{KIT}\n"
        )
    }

    /// Grants rights; returns once the broker has noted them.
    pub fn grant(&self, rights: &[Right]) -> anyhow::Result<()> {
        self.change(CREATE_ACLS, rights)
    }

    /// Takes rights away.
    pub fn withdraw(&self, rights: &[Right]) -> anyhow::Result<()> {
        self.change(DELETE_ACLS, rights)
    }

    /// Both requests name rights in the same form.
    fn change(&self, api: i16, rights: &[Right]) -> anyhow::Result<()> {
        let mut body = Vec::new();
        body.extend(i32::try_from(rights.len())?.to_be_bytes());
        for right in rights {
            let (pattern, name) = right.pattern();
            body.push(right.resource()?);
            string(&mut body, name);
            body.push(pattern);
            string(&mut body, &format!("User:{}", right.role));
            string(&mut body, "*");
            body.extend([right.operation()?, ALLOW]);
        }
        self.ask(api, &body)
    }

    /// Sends one request of Kafka's protocol about rights, over the port for certificates.
    fn ask(&self, api: i16, body: &[u8]) -> anyhow::Result<()> {
        let mut connection = self.connect()?;
        let mut request = Vec::new();
        request.extend(api.to_be_bytes());
        // Version 1, whose fields have fixed lengths; correlation 1; the client's name.
        request.extend(1_i16.to_be_bytes());
        request.extend(1_i32.to_be_bytes());
        string(&mut request, KIT);
        request.extend(body);
        connection.write_all(&i32::try_from(request.len())?.to_be_bytes())?;
        connection.write_all(&request)?;
        let mut length = [0; 4];
        connection.read_exact(&mut length)?;
        let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length))?];
        connection.read_exact(&mut answer)?;
        // After correlation and throttle time comes the count, then an error code for each.
        let first = answer.get(12..14).context("a short answer about rights")?;
        ensure!(first == [0, 0], "Kafka refuses to change rights: {answer:?}");
        Ok(())
    }

    fn connect(&self) -> anyhow::Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.certificate.as_bytes())?)?;
        let kit = self.certificate(KIT);
        let certificate = CertificateDer::from_pem_file(&kit.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&kit.key)?;
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        let server = ServerName::try_from("127.0.0.1")?;
        let client = ClientConnection::new(Arc::new(config), server)?;
        let socket = TcpStream::connect(("127.0.0.1", self.mutual))?;
        Ok(StreamOwned::new(client, socket))
    }
}

impl Right {
    fn pattern(&self) -> (u8, &str) {
        const LITERAL: u8 = 3;
        const PREFIXED: u8 = 4;
        match self.name.strip_suffix('*') {
            Some(beginning) => (PREFIXED, beginning),
            None => (LITERAL, &self.name),
        }
    }

    fn resource(&self) -> anyhow::Result<u8> {
        Ok(match self.kind.as_str() {
            "topic" => 2,
            "group" => 3,
            "cluster" => 4,
            "transactional-id" => 5,
            other => return Err(anyhow!("no such kind of resource: {other}")),
        })
    }

    fn operation(&self) -> anyhow::Result<u8> {
        Ok(match self.operation.as_str() {
            "READ" => 3,
            "WRITE" => 4,
            "CREATE" => 5,
            "DESCRIBE" => 8,
            "DESCRIBE_CONFIGS" => 10,
            other => return Err(anyhow!("no such operation: {other}")),
        })
    }
}

const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
const ALLOW: u8 = 3;

fn string(body: &mut Vec<u8>, text: &str) {
    // Names of the kit are short.
    body.extend((text.len() as i16).to_be_bytes());
    body.extend(text.as_bytes());
}

/// The rights that `deploy/kafka/rights` lists for a role; `run` has those of its parts.
pub fn rights(role: &str) -> anyhow::Result<Vec<Right>> {
    let file = checkout().join("deploy/kafka/rights");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut rights = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let [of, operation, kind, name] = words[..] else {
            return Err(anyhow!("{}: {line}", file.display()));
        };
        if of == role || (role == "run" && PARTS_OF_RUN.contains(&of)) {
            rights.push(Right {
                role: role.to_owned(),
                operation: operation.to_owned(),
                kind: kind.to_owned(),
                name: name.to_owned(),
            });
        }
    }
    ensure!(!rights.is_empty(), "{} has no role {role}", file.display());
    Ok(rights)
}
