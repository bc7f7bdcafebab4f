//! A port's certificate, read again when its files change, so that a renewed one needs no restart.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::Protocol;
use crate::config::CertificateFiles;
use crate::error;

/// The reason why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} cannot be read: give a file in PEM that this process may read")]
    File {
        path: PathBuf,
        #[source]
        source: pem::Error,
    },
    #[error("{path} has no certificate: give the chain in PEM, this server's own certificate first")]
    Empty { path: PathBuf },
    #[error("{certificate} and {key} are no certificate and its private key")]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

pub(super) struct Certificate {
    files: CertificateFiles,
    protocol: Protocol,
    state: Mutex<State>,
}

struct State {
    /// The files as they were when they were last read.
    seen: [Option<Version>; 2],
    config: Arc<ServerConfig>,
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    changed: (i64, i64),
    bytes: u64,
}

impl Certificate {
    pub(super) fn read(files: CertificateFiles, protocol: Protocol) -> Result<Self, Error> {
        let seen = versions(&files);
        let config = config(&files, protocol)?;
        let state = Mutex::new(State { seen, config });
        Ok(Self { files, protocol, state })
    }

    /// For the next handshake. New files are taken once they fit each other; until then the old certificate is shown.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = versions(&self.files);
        if seen != state.seen {
            state.seen = seen;
            let path = self.files.certificate.display();
            match config(&self.files, self.protocol) {
                Ok(config) => {
                    tracing::info!("{path} is new: it is shown from now on");
                    state.config = config;
                }
                Err(error) => {
                    let error = error::chain(&error);
                    tracing::warn!(
                        error,
                        "the certificate has changed and cannot be used: the old one is shown"
                    );
                }
            }
        }
        TlsAcceptor::from(state.config.clone())
    }
}

fn versions(files: &CertificateFiles) -> [Option<Version>; 2] {
    [&files.certificate, &files.private_key].map(|path| version(path).ok())
}

fn version(path: &Path) -> io::Result<Version> {
    let metadata = fs::metadata(path)?;
    Ok(Version {
        device: metadata.dev(),
        inode: metadata.ino(),
        changed: (metadata.mtime(), metadata.mtime_nsec()),
        bytes: metadata.len(),
    })
}

fn config(files: &CertificateFiles, protocol: Protocol) -> Result<Arc<ServerConfig>, Error> {
    let CertificateFiles {
        certificate,
        private_key,
    } = files;
    let unread = |path: &PathBuf| {
        let path = path.clone();
        |source| Error::File { path, source }
    };
    let chain = CertificateDer::pem_file_iter(certificate).map_err(unread(certificate))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(unread(certificate))?;
    if chain.is_empty() {
        return Err(Error::Empty {
            path: certificate.clone(),
        });
    }
    let key = PrivateKeyDer::from_pem_file(private_key).map_err(unread(private_key))?;
    let unfit = |source| Error::Pair {
        certificate: certificate.clone(),
        key: private_key.clone(),
        source,
    };
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder
        .map_err(unfit)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unfit)?;
    config.alpn_protocols = vec![match protocol {
        Protocol::Http1 => b"http/1.1".to_vec(),
        Protocol::Http2 => b"h2".to_vec(),
    }];
    Ok(Arc::new(config))
}
