//! A new password without a restart: the file of an address is read again and again, and what it has goes for new sessions. Only
//! user and password may change so: another address would be another database.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use sqlx::PgPool;
use url::Url;

use super::session::options;
use crate::config;
use crate::transience::Fault;

/// The file that has the address of a pool's database.
pub struct AddressFile {
    path: PathBuf,
    pool: PgPool,
    config: config::Database,
    used: SecretString,
}

/// The result of a look at the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Same,
    /// New sessions use what is there now.
    Changed,
}

/// Why what the file has now is not used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} cannot be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} names another address, or none: only user and password may change while the process runs", path.display())]
    Elsewhere { path: PathBuf },
}

impl Error {
    pub fn fault(&self) -> Fault {
        Fault::Setting
    }
}

impl AddressFile {
    /// `used`: the address that the pool was made with.
    pub fn new(path: &Path, pool: PgPool, config: &config::Database, used: &SecretString) -> Self {
        Self {
            path: path.to_owned(),
            pool,
            config: config.clone(),
            used: used.clone(),
        }
    }

    /// # Errors
    /// The file cannot be read, or has another address; the pool goes on with the one that it has.
    pub async fn look(&mut self) -> Result<Look, Error> {
        let text = tokio::fs::read_to_string(&self.path).await;
        let text = text.map_err(|source| Error::Read {
            path: self.path.clone(),
            source,
        })?;
        let url = text.trim_end_matches(['\r', '\n']);
        let used = self.used.expose_secret();
        if url == used {
            return Ok(Look::Same);
        }
        let elsewhere = || Error::Elsewhere {
            path: self.path.clone(),
        };
        if place(url).is_none() || place(url) != place(used) {
            return Err(elsewhere());
        }
        let url = SecretString::from(url);
        let options = options(&url, &self.config).map_err(|_unreadable| elsewhere())?;
        self.pool.set_connect_options(options);
        self.used = url;
        Ok(Look::Changed)
    }
}

/// The address without user and password.
fn place(url: &str) -> Option<Url> {
    let mut url = Url::parse(url).ok()?;
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_user_and_password_may_change() {
        let used = place("postgres://a:b@db:5432/holdfast?sslmode=verify-full");
        assert_eq!(place("postgres://c:d%40@db:5432/holdfast?sslmode=verify-full"), used);
        for other in [
            "postgres://a:b@db:5432/holdfast",
            "postgres://a:b@db:5433/holdfast?sslmode=verify-full",
            "postgres://a:b@other:5432/holdfast?sslmode=verify-full",
            "",
        ] {
            assert_ne!(place(other), used, "{other}");
        }
    }
}
