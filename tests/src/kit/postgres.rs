//! PostgreSQL 18. It refuses to run as root, and then gets another user and a folder that this user can reach.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User, chown};
use sqlx::{Connection, PgConnection, PgPool};

use super::certs::{Authority, Certificate, CertificateFiles};
use super::server::{Kind, Server};
use super::stack::Stack;
use super::{checkout, fetch, process};

pub const DATABASE: &str = "holdfast";
/// The loyalty system's database, which has no table of the product.
pub const LOYALTY: &str = "loyalty";
const OWNER: &str = "postgres";
/// The data goes here when the other user cannot reach the checkout. Survives a reboot, unlike /tmp.
const ELSEWHERE: &str = "/var/tmp";

/// The roles of a locked server, by `deploy/postgres/roles.sql`; each has the password of [`password`], but [`VERIFY`] has none: it
/// needs a client certificate.
pub const APP: &str = "holdfast_app";
pub const VERIFY: &str = "holdfast_verify";
pub const ADMIN: &str = "holdfast_admin";
pub const BOOKS: &str = "holdfast_books";
pub const TABLES_OWNER: &str = "holdfast_owner";

pub struct Postgres {
    /// Installed files: `bin`, `lib`, `share`.
    files: PathBuf,
    data: PathBuf,
    user: Option<User>,
    port: u16,
    /// `None`: it believes everybody.
    locks: Option<Locks>,
}

/// The certificates of a server that takes nobody without TLS and a password or certificate.
struct Locks {
    authority: Authority,
    /// What clients need: the authority's certificate, and that of [`VERIFY`] with its key.
    root: PathBuf,
    client: CertificateFiles,
}

impl Kind for Postgres {
    const NAME: &'static str = "postgres";
    /// A fast shutdown: SIGTERM would wait for clients to leave.
    const STOP: Signal = Signal::SIGINT;

    fn prepare(&self) -> anyhow::Result<()> {
        if self.data.join("PG_VERSION").exists() {
            return Ok(());
        }
        let mut initdb = self.program("initdb");
        initdb.args([
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-instructions",
            // In the settings file, where a proof can change it.
            "--set=max_prepared_transactions=64",
            "-U",
            OWNER,
        ]);
        initdb.arg("-D").arg(&self.data);
        process::output(initdb)?;
        self.execute_alone(&[format!("create database {DATABASE}")])?;
        self.lock()
    }

    fn command(&self) -> Command {
        let mut command = self.program("postgres");
        command.arg("-D").arg(&self.data);
        for setting in [
            "listen_addresses=127.0.0.1",
            &format!("port={}", self.port),
            "unix_socket_directories=",
            "max_connections=100",
            "shared_buffers=256MB",
            "fsync=on",
            "synchronous_commit=on",
            "full_page_writes=on",
        ] {
            command.args(["-c", setting]);
        }
        if self.locks.is_some() {
            for setting in ["ssl=on", "ssl_ca_file=root.crt", "password_encryption=scram-sha-256"] {
                command.args(["-c", setting]);
            }
        }
        command
    }

    async fn answers(&self) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.url()).await?;
        sqlx::query("select 1").execute(&mut connection).await?;
        Ok(connection.close().await?)
    }
}

impl Postgres {
    /// `folder` is the stack's own. Another user and another place are used only where they must be.
    pub(super) fn new(installed: PathBuf, folder: &Path, port: u16) -> anyhow::Result<Postgres> {
        if !Uid::effective().is_root() {
            return Ok(Postgres {
                files: installed,
                data: folder.join("postgres"),
                user: None,
                port,
                locks: None,
            });
        }
        let user = User::from_name("nobody")?.ok_or_else(|| anyhow!("no user `nobody` to run PostgreSQL as"))?;
        let here = reaches(&user, folder)? && reaches(&user, &installed.join("bin"))?;
        let home = if here {
            folder.join("postgres-home")
        } else {
            elsewhere(folder)
        };
        let files = if here {
            installed
        } else {
            copied(&installed, &home, "files")?
        };
        fs::create_dir_all(&home)?;
        chown(&home, Some(user.uid), Some(user.gid))?;
        let record = serde_json::json!({ "user": user.name, "uid": user.uid.as_raw(), "home": home });
        fs::write(record_of(folder), serde_json::to_vec_pretty(&record)?)?;
        Ok(Postgres {
            files,
            data: home.join("data"),
            user: Some(user),
            port,
            locks: None,
        })
    }

    /// A locked server beside the stack's open one, in a folder of its own; without data.
    pub async fn start_locked(stack: &Stack) -> anyhow::Result<Server<Postgres>> {
        let (folder, port) = (
            stack.folder().join("locked-postgres"),
            stack.ports.get("locked-postgres")?,
        );
        let made_in = folder.clone();
        let kind = tokio::task::spawn_blocking(move || {
            fs::create_dir_all(&made_in)?;
            process::stop_leftovers(&made_in)?;
            Postgres::forget(&made_in)?;
            Postgres::locked(fetch::servers()?.postgres, &made_in, port)
        });
        let server = Server::new(kind.await??, folder);
        server.start().await?;
        server.make_loyalty().await?;
        Ok(server)
    }

    /// As [`Postgres::new`], but it takes nobody without TLS and a password or certificate.
    pub(super) fn locked(installed: PathBuf, folder: &Path, port: u16) -> anyhow::Result<Postgres> {
        let authority = Authority::new("Holdfast's PostgreSQL")?;
        let client = authority.sign(VERIFY, &[])?.write(&folder.join("client"), VERIFY)?;
        let root = folder.join("root.crt");
        fs::write(&root, &authority.certificate)?;
        let mut postgres = Postgres::new(installed, folder, port)?;
        postgres.locks = Some(Locks {
            authority,
            root,
            client,
        });
        Ok(postgres)
    }

    /// Removes what lies outside of the stack's folder.
    pub(super) fn forget(folder: &Path) -> anyhow::Result<()> {
        let home = elsewhere(folder);
        if home.exists() {
            fs::remove_dir_all(&home).with_context(|| home.display().to_string())?;
        }
        Ok(())
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        self.url_of(DATABASE)
    }

    /// Of the loyalty database.
    pub fn loyalty_url(&self) -> String {
        self.url_of(LOYALTY)
    }

    /// The same server, another database.
    pub fn url_of(&self, database: &str) -> String {
        self.url_as(OWNER, database)
    }

    /// The address for a role. Of a locked server: with all that it demands, and nothing believed but what its authority signed.
    pub fn url_as(&self, role: &str, database: &str) -> String {
        let port = self.port;
        let Some(Locks { root, client, .. }) = &self.locks else {
            return format!("postgres://{role}@127.0.0.1:{port}/{database}");
        };
        let secure = format!("sslmode=verify-full&sslrootcert={}", root.display());
        if role == VERIFY {
            let (certificate, key) = (client.certificate.display(), client.key.display());
            return format!(
                "postgres://{role}@127.0.0.1:{port}/{database}?{secure}&sslcert={certificate}&sslkey={key}"
            );
        }
        format!(
            "postgres://{role}:{}@127.0.0.1:{port}/{database}?{secure}",
            password(role)
        )
    }

    /// The authority that signed the locked server's certificate.
    pub fn authority(&self) -> anyhow::Result<&Authority> {
        Ok(&self.locks.as_ref().context("the server is open")?.authority)
    }

    /// A certificate that the locked server is taken for itself with.
    pub fn certificate(&self) -> anyhow::Result<Certificate> {
        self.authority()?.sign("localhost", &["localhost", "127.0.0.1"])
    }

    /// Has the server show this certificate from its next start or reload on.
    pub fn show(&self, certificate: &Certificate) -> anyhow::Result<()> {
        for (name, content, mode) in [
            ("server.crt", &certificate.certificate, 0o644),
            ("server.key", &certificate.key, 0o600),
        ] {
            self.write(name, content, mode)?;
        }
        Ok(())
    }

    pub async fn connect(&self) -> anyhow::Result<PgPool> {
        Ok(PgPool::connect(&self.url()).await?)
    }

    pub async fn connect_to_loyalty(&self) -> anyhow::Result<PgPool> {
        Ok(PgPool::connect(&self.loyalty_url()).await?)
    }

    /// Makes the loyalty database with its table, unless they are there.
    pub(super) async fn make_loyalty(&self) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.url()).await?;
        let there: bool = sqlx::query_scalar("select exists (select 1 from pg_database where datname = $1)")
            .bind(LOYALTY)
            .fetch_one(&mut connection)
            .await?;
        if !there {
            let create = sqlx::AssertSqlSafe(format!("create database {LOYALTY}"));
            sqlx::query(create).execute(&mut connection).await?;
        }
        connection.close().await?;
        let table = fetch::manifests().join("postgres/loyalty.sql");
        let table = fs::read_to_string(&table).with_context(|| table.display().to_string())?;
        let mut connection = PgConnection::connect(&self.loyalty_url()).await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(table))
            .execute(&mut connection)
            .await?;
        Ok(connection.close().await?)
    }

    /// Makes the database `name` afresh, a copy of `of` as it is now. `of` must have no connections.
    pub async fn copy_database(&self, of: &str, name: &str) -> anyhow::Result<PgPool> {
        let mut connection = PgConnection::connect(&self.url_of("postgres")).await?;
        // A session that a worker left when it was killed may take a moment to end, and nothing is copied beside it.
        sqlx::query("select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = $1")
            .bind(of)
            .execute(&mut connection)
            .await?;
        for statement in [
            format!(r#"drop database if exists "{name}" with (force)"#),
            format!(r#"create database "{name}" template "{of}""#),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(statement))
                .execute(&mut connection)
                .await?;
        }
        connection.close().await?;
        Ok(PgPool::connect(&self.url_of(name)).await?)
    }

    /// A copy of this server, which runs, for a standby at this port.
    pub(super) async fn copy_server(&self, port: u16) -> anyhow::Result<Postgres> {
        let data = self.data.with_file_name("standby");
        if data.exists() {
            fs::remove_dir_all(&data).with_context(|| data.display().to_string())?;
        }
        fs::create_dir_all(data.join("pg_wal"))?;
        let mut backup = PgConnection::connect(&self.url()).await?;
        sqlx::query("select pg_backup_start('standby', true)")
            .execute(&mut backup)
            .await?;
        for entry in fs::read_dir(&self.data)? {
            let entry = entry?;
            let name = entry.file_name();
            // The standby gets the log from this server.
            if name != "pg_wal" && !name.to_string_lossy().starts_with("postmaster.") {
                let mut copy = Command::new("cp");
                copy.arg("-a").arg(entry.path()).arg(&data);
                process::output(copy)?;
            }
        }
        let label: String = sqlx::query_scalar("select labelfile from pg_backup_stop(false)")
            .fetch_one(&mut backup)
            .await?;
        backup.close().await?;
        fs::write(data.join("backup_label"), label)?;
        fs::write(data.join("standby.signal"), "")?;
        let primary = format!("primary_conninfo = 'host=127.0.0.1 port={} user={OWNER}'\n", self.port);
        fs::write(data.join("postgresql.auto.conf"), primary)?;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700))?;
        let mut own = Command::new("chown");
        own.arg("-R")
            .arg(format!("--reference={}", self.data.display()))
            .arg(&data);
        process::output(own)?;
        Ok(Postgres {
            files: self.files.clone(),
            data,
            user: self.user.clone(),
            port,
            locks: None,
        })
    }

    /// The folder above the data, and the user whose it is.
    pub(super) fn home(&self) -> (&Path, Option<&User>) {
        (self.data.parent().unwrap_or(&self.data), self.user.as_ref())
    }

    /// A folder of programs, or a copy of it by this name where the server's user can reach it.
    pub(super) fn reachable(&self, installed: PathBuf, name: &str) -> anyhow::Result<PathBuf> {
        let (home, user) = self.home();
        match user {
            Some(user) if !reaches(user, &installed)? => copied(&installed, home, name),
            _ => Ok(installed),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The data folder. While the server is stopped it may be copied and put back with `cp -a`.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Makes the roles, and lets nobody in but them, by TLS.
    fn lock(&self) -> anyhow::Result<()> {
        let Some(locks) = &self.locks else {
            return Ok(());
        };
        self.write("root.crt", &locks.authority.certificate, 0o644)?;
        self.show(&self.certificate()?)?;
        self.admit_by(&[])?;
        let roles = checkout().join("deploy/postgres/roles.sql");
        let roles = fs::read_to_string(&roles).with_context(|| roles.display().to_string())?;
        let roles = [
            ("owner", TABLES_OWNER),
            ("app", APP),
            ("verify", VERIFY),
            ("admin", ADMIN),
            ("books", BOOKS),
        ]
        .iter()
        .fold(roles, |text, (variable, role)| {
            text.replace(&format!(":\"{variable}\""), role)
        });
        let roles = roles.lines().filter(|line| !line.is_empty() && !line.starts_with("--"));
        let passwords = [OWNER, TABLES_OWNER, APP, ADMIN, BOOKS];
        let passwords = passwords.map(|role| format!("alter role {role} password '{}'", password(role)));
        let owned = format!("alter database {DATABASE} owner to {TABLES_OWNER}");
        let statements: Vec<String> = roles.map(str::to_owned).chain(passwords).chain([owned]).collect();
        self.execute_alone(&statements)
    }

    /// From its next start or reload on, these roles need a certificate besides their password.
    pub fn admit_by(&self, certificate: &[&str]) -> anyhow::Result<()> {
        let both = certificate
            .iter()
            .map(|role| format!("hostssl all {role} 127.0.0.1/32 scram-sha-256 clientcert=verify-full\n"));
        let rules = format!(
            "hostssl all {VERIFY} 127.0.0.1/32 cert\n{}hostssl all all 127.0.0.1/32 scram-sha-256\n",
            both.collect::<String>()
        );
        self.write("pg_hba.conf", &rules, 0o600)
    }

    /// A file in the data folder, which the server's user owns.
    fn write(&self, name: &str, content: &str, mode: u32) -> anyhow::Result<()> {
        let path = self.data.join(name);
        fs::write(&path, content).with_context(|| path.display().to_string())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        if let Some(user) = &self.user {
            chown(&path, Some(user.uid), Some(user.gid))?;
        }
        Ok(())
    }

    /// Without a running server, one statement a line: the first start finds done what they do.
    fn execute_alone(&self, statements: &[String]) -> anyhow::Result<()> {
        let mut alone = self.program("postgres");
        alone.args(["--single", "-D"]).arg(&self.data).arg("postgres");
        let statement = self.data.with_extension("sql");
        fs::write(&statement, statements.join("\n") + "\n")?;
        let status = alone
            .stdin(fs::File::open(&statement)?)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        fs::remove_file(&statement)?;
        status
            .success()
            .then_some(())
            .ok_or_else(|| anyhow!("preparing the databases: {status}"))
    }

    fn program(&self, name: &str) -> Command {
        let mut command = process::command(&self.files.join("bin").join(name), self.user.as_ref());
        command
            .current_dir(self.data.parent().unwrap_or(&self.data))
            .env("LC_ALL", "C");
        command
    }
}

/// Of a role of a locked server.
pub fn password(role: &str) -> String {
    format!("{role}-sesame")
}

fn record_of(folder: &Path) -> PathBuf {
    folder.join("postgres-user.json")
}

/// One per stack and checkout.
fn elsewhere(folder: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    folder.hash(&mut hasher);
    Path::new(ELSEWHERE).join(format!("holdfast-postgres-{:016x}", hasher.finish()))
}

fn reaches(user: &User, folder: &Path) -> anyhow::Result<bool> {
    let mut test = process::command(Path::new("test"), Some(user));
    Ok(test
        .args(["-r"])
        .arg(folder)
        .args(["-a", "-x"])
        .arg(folder)
        .status()?
        .success())
}

/// Copied at each start, so that the version is the one of the manifest.
fn copied(installed: &Path, home: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let files = home.join(name);
    fs::create_dir_all(home)?;
    fs::set_permissions(home, fs::Permissions::from_mode(0o755))?;
    if files.exists() {
        fs::remove_dir_all(&files)?;
    }
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(installed).arg(&files);
    process::output(copy)?;
    Ok(files)
}
