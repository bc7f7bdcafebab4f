//! A port with TLS before a server that has none.

use std::sync::Arc;

use anyhow::Context;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::certs::Certificate;

/// Dropping it closes the port.
pub struct TlsFront {
    pub port: u16,
    accepting: JoinHandle<()>,
}

impl TlsFront {
    /// Listens on a free port, shows this certificate, and passes on to `server` (`host:port`).
    pub async fn start(certificate: &Certificate, server: String) -> anyhow::Result<TlsFront> {
        let tls = acceptor(certificate)?;
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port for TLS")?;
        let port = listener.local_addr()?.port();
        let accepting = tokio::spawn(accept(listener, tls, server));
        Ok(TlsFront { port, accepting })
    }
}

/// Shows this certificate, and asks for none.
pub(super) fn acceptor(certificate: &Certificate) -> anyhow::Result<TlsAcceptor> {
    let chain = vec![CertificateDer::from_pem_slice(certificate.certificate.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, server: String) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, server) = (tls.clone(), server.clone());
        tokio::spawn(async move {
            // Who does not like the certificate hangs up; that is what it is there for.
            let mut client = tls.accept(stream).await?;
            let mut server = TcpStream::connect(server).await?;
            copy_bidirectional(&mut client, &mut server).await.map(drop)
        });
    }
}
