//! The doors of the locked stack, beside those of Kafka and PostgreSQL: nginx with TLS before what speaks none, certificates for what
//! does, and each party's name and secret.

use std::path::{Path, PathBuf};

use super::certs::{Authority, CertificateFiles};
use super::identity::Identity;
use super::maildev::MailLock;
use super::nginx::{Nginx, Site};
use super::ports::Ports;
use super::postgres::{ADMIN, APP, DATABASE, LOYALTY, TABLES_OWNER, VERIFY};
use super::restate::Door;
use super::{Kafka, Postgres, Server};

/// The name and password of the mail server.
const MAILER: (&str, &str) = ("holdfast", "mail-sesame");
/// What the engine's proxy demands.
pub const TOKEN: &str = "engine-sesame";

pub struct Doors {
    pub nginx: Server<Nginx>,
    /// How the engine is reached.
    pub(super) engine: Door,
    /// How the payment provider is reached.
    pub(super) provider: String,
    /// The certificate of everything that listens here; it speaks for this machine's names.
    pub(super) certificate: CertificateFiles,
    /// The authority that signed it.
    pub(super) trusted: PathBuf,
    /// By which `serve` knows the engine.
    identity: String,
}

impl Doors {
    /// `engine` is the folder with the sockets at which the engine listens, and `provider` the port of the payment provider.
    pub(super) fn new(
        folder: &Path,
        ports: &Ports,
        authority: &Authority,
        identity: &Identity,
        engine: &Path,
    ) -> anyhow::Result<Doors> {
        let certificates = folder.join("certificates");
        let certificate = authority
            .sign("holdfast", &["localhost", "127.0.0.1"])?
            .write(&certificates, "holdfast")?;
        let trusted = certificates.join("authority.crt");
        let site = |port: &str, upstream: String, token: Option<&str>| {
            anyhow::Ok(Site {
                port: ports.get(port)?,
                certificate: certificate.clone(),
                upstream,
                token: token.map(String::from),
            })
        };
        let socket = |name: &str| format!("http://unix:{}", engine.join(name).display());
        let provider = format!("http://127.0.0.1:{}", ports.get("provider")?);
        let sites = vec![
            site("restate-admin", socket("admin.sock"), Some(TOKEN))?,
            site("restate-ingress", socket("ingress.sock"), Some(TOKEN))?,
            // The provider asks for a key of its own.
            site("provider-tls", provider, None)?,
        ];
        let [admin, ingress, provider] =
            [0, 1, 2].map(|number: usize| format!("https://localhost:{}", sites[number].port));
        Ok(Doors {
            nginx: Nginx::server(folder, &sites)?,
            engine: Door::new(&admin, &ingress, TOKEN, authority)?,
            provider,
            certificate,
            trusted,
            identity: identity.public_key(),
        })
    }

    /// The mail server takes mails by TLS from who has the password, and shows them to nobody else.
    pub(super) fn mail_server(&self) -> MailLock {
        let (user, password) = MAILER;
        let (certificate, key) = (self.certificate.certificate.display(), self.certificate.key.display());
        let arguments = [
            "--incoming-secure",
            "--incoming-cert",
            &certificate.to_string(),
            "--incoming-key",
            &key.to_string(),
            "--incoming-user",
            user,
            "--incoming-pass",
            password,
            // The page that shows the mails.
            "--https",
            "--https-cert",
            &certificate.to_string(),
            "--https-key",
            &key.to_string(),
            "--web-user",
            user,
            "--web-pass",
            password,
        ];
        MailLock {
            arguments: arguments.map(String::from).to_vec(),
            login: format!("{user}:{password}"),
        }
    }

    /// The environment of a process of the product with this subcommand: where everything is, and who it is there.
    pub(super) fn environment(
        &self,
        subcommand: &str,
        kafka: &Kafka,
        postgres: &Postgres,
    ) -> anyhow::Result<Vec<(&'static str, String)>> {
        let user = match subcommand {
            "run" | "gate" | "relay" | "webhook" | "register" | "verify" | "admin" | "accept" => subcommand,
            // It asks Kafka for nothing, and would get nothing.
            _ => "nobody",
        };
        let role = match subcommand {
            "migrate" => TABLES_OWNER,
            "verify" => VERIFY,
            "admin" | "accept" => ADMIN,
            _ => APP,
        };
        let (certificate, key) = (&self.certificate.certificate, &self.certificate.key);
        let mut environment = kafka.lock()?.login(user);
        environment.extend([
            ("HOLDFAST_RESTATE_KAFKA_USERNAME", String::from("engine")),
            (
                "HOLDFAST_RESTATE_KAFKA_PASSWORD",
                String::from(super::kafka_lock::PASSWORD),
            ),
            ("HOLDFAST_DATABASE_URL", postgres.url_as(role, DATABASE)),
            // Only who has prepared a transaction there may end it.
            ("HOLDFAST_LOYALTY_URL", postgres.url_as(APP, LOYALTY)),
            ("SSL_CERT_FILE", self.trusted.display().to_string()),
            ("HOLDFAST_RESTATE_TOKEN", String::from(TOKEN)),
            ("HOLDFAST_IDENTITY_KEY", self.identity.clone()),
        ]);
        for listener in [
            ("HOLDFAST_SERVE_CERTIFICATE", "HOLDFAST_SERVE_PRIVATE_KEY"),
            ("HOLDFAST_WEBHOOK_CERTIFICATE", "HOLDFAST_WEBHOOK_PRIVATE_KEY"),
            ("HOLDFAST_HTTP_CERTIFICATE", "HOLDFAST_HTTP_PRIVATE_KEY"),
        ] {
            environment.push((listener.0, certificate.display().to_string()));
            environment.push((listener.1, key.display().to_string()));
        }
        Ok(environment)
    }
}
