//! A certificate authority of the kit's own, and the certificates that it signs: made anew at each start, kept nowhere else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// Longer than any run.
const VALID: Duration = Duration::days(30);

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, in PEM.
    pub certificate: String,
}

/// A certificate and its key (PKCS #8), both in PEM.
pub struct Certificate {
    pub certificate: String,
    pub key: String,
}

/// The files of a [`Certificate`].
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(name: &str) -> anyhow::Result<Authority> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Authority {
            issuer: Issuer::new(params, key),
            certificate,
        })
    }

    /// For a server that answers to these names (or addresses) and speaks to its peers as `common_name`; and for a client of that
    /// name.
    pub fn sign(&self, common_name: &str, names: &[&str]) -> anyhow::Result<Certificate> {
        let now = now();
        self.sign_for(common_name, names, now - Duration::HOUR, now + VALID)
    }

    /// The beginning of an HTTP client that trusts this authority alone.
    pub fn client(&self) -> anyhow::Result<reqwest::ClientBuilder> {
        let trusted = reqwest::Certificate::from_pem(self.certificate.as_bytes())?;
        Ok(reqwest::Client::builder().tls_certs_only([trusted]))
    }

    /// As [`Authority::sign`], but its time is over.
    pub fn sign_expired(&self, common_name: &str, names: &[&str]) -> anyhow::Result<Certificate> {
        let now = now();
        self.sign_for(common_name, names, now - VALID, now - Duration::DAY)
    }

    fn sign_for(
        &self,
        common_name: &str,
        names: &[&str],
        from: OffsetDateTime,
        until: OffsetDateTime,
    ) -> anyhow::Result<Certificate> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.iter().map(|name| String::from(*name)).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (from, until);
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Certificate {
            certificate,
            key: key.serialize_pem(),
        })
    }
}

impl Certificate {
    /// As `<name>.crt` and `<name>.key`, which only the owner can read, in `folder`.
    pub fn write(&self, folder: &Path, name: &str) -> anyhow::Result<CertificateFiles> {
        fs::create_dir_all(folder)?;
        let files = CertificateFiles {
            certificate: folder.join(format!("{name}.crt")),
            key: folder.join(format!("{name}.key")),
        };
        fs::write(&files.certificate, &self.certificate)?;
        fs::write(&files.key, &self.key)?;
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600))?;
        Ok(files)
    }
}

#[expect(clippy::disallowed_methods, reason = "a certificate holds from now on")]
fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}
