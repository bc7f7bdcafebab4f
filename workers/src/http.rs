//! One HTTP exchange with the payment provider, the collector of traces or Prometheus: an answer in time, or the reason why there is
//! none. TLS trusts what the system trusts (its certificate store, or the file that `SSL_CERT_FILE` names).
//!
//! Each of them has an HTTP client of its own: TLS for all clients would make every client load the system's certificates,
//! and fail where there are none.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, Response};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;
use url::{Position, Url};

use crate::tls;

/// The longest answer that is read: a page of 100 payments has about 300 KiB.
const MOST_BYTES: usize = 16 << 20;

/// How long a connection is silent before the system asks whether the other side is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A pool of connections, and how long it waits for one answer.
pub struct Http {
    /// Of the server, for errors.
    address: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    patience: Duration,
}

/// The reason why there is no answer. The request may or may not have arrived.
#[derive(Debug, thiserror::Error)]
pub enum Silence {
    #[error("no answer from {address} within {patience:?}")]
    Late { address: String, patience: Duration },
    #[error("the exchange with {address} broke off{mend}")]
    Broken {
        address: String,
        /// What an operator has to do, if that is known.
        mend: &'static str,
        #[source]
        cause: BoxError,
    },
}

impl Http {
    /// A client for requests to `url` and paths below it.
    pub fn new(url: &Url, patience: Duration) -> Result<Self, BoxError> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions()?;
        // Without TLS a machine without certificates will do.
        let config = match url.scheme() {
            "https" => config.with_native_roots()?,
            _ => config.with_root_certificates(RootCertStore::empty()),
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_connect_timeout(Some(patience));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config.with_no_client_auth())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self {
            address: url[Position::BeforeHost..Position::BeforePath].to_owned(),
            client,
            patience,
        })
    }

    /// Sends the request and reads the whole answer.
    pub async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Silence> {
        let exchange = async {
            let (head, body) = self.client.request(request).await?.into_parts();
            let body = Limited::new(body, MOST_BYTES).collect().await?.to_bytes();
            Ok::<_, BoxError>(Response::from_parts(head, body))
        };
        let (address, patience) = (self.address.clone(), self.patience);
        match timeout(patience, exchange).await {
            Ok(answer) => answer.map_err(|cause| Silence::Broken {
                address,
                mend: mend(&*cause),
                cause,
            }),
            Err(_elapsed) => Err(Silence::Late { address, patience }),
        }
    }
}

fn mend(cause: &(dyn std::error::Error + 'static)) -> &'static str {
    match tls::mend(cause) {
        "" if is_no_http(cause) => ": what answers there speaks no HTTP; if it wants TLS, give https://",
        mend => mend,
    }
}

/// Whether something else than HTTP came back, such as an alert of TLS.
fn is_no_http(cause: &(dyn std::error::Error + 'static)) -> bool {
    match cause.downcast_ref::<hyper::Error>() {
        Some(error) => error.is_parse(),
        None => cause.source().is_some_and(is_no_http),
    }
}
