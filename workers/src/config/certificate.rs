//! Settings: the certificate that a port shows.

use std::path::PathBuf;

use super::Checks;

/// The files of a certificate, in PEM.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// The chain, this server's own certificate first.
    pub certificate: PathBuf,
    pub private_key: PathBuf,
}

impl CertificateFiles {
    /// None without the settings.
    pub(super) fn of(certificate: Option<&PathBuf>, private_key: Option<&PathBuf>) -> Option<Self> {
        Some(Self {
            certificate: certificate?.clone(),
            private_key: private_key?.clone(),
        })
    }

    /// One is of no use without the other.
    pub(super) fn check(
        checks: &mut Checks,
        flag: &'static str,
        certificate: Option<&PathBuf>,
        private_key: Option<&PathBuf>,
    ) {
        checks.require(
            certificate.is_some() == private_key.is_some(),
            flag,
            "give certificate and private key together, or neither",
        );
    }
}
