//! PgBouncer before a locked PostgreSQL, to which it speaks TLS: the pooler of this machine, or Debian's package, unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use nix::sys::signal::Signal;
use nix::unistd::{User, chown};
use tokio::net::TcpStream;

use super::postgres::{APP, Postgres, password};
use super::server::{Kind, Server};
use super::stack::Stack;
use super::{fetch, process};

pub struct PgBouncer {
    /// Settings, and where they lie: in a folder that its user can reach.
    settings: String,
    home: PathBuf,
    user: Option<User>,
    port: u16,
}

impl Kind for PgBouncer {
    const NAME: &'static str = "pgbouncer";
    /// At once.
    const STOP: Signal = Signal::SIGTERM;

    fn prepare(&self) -> anyhow::Result<()> {
        let users = format!("\"{APP}\" \"{}\"\n", password(APP));
        for (name, content) in [("pgbouncer.ini", &self.settings), ("pgbouncer-users.txt", &users)] {
            let path = self.home.join(name);
            fs::write(&path, content).with_context(|| path.display().to_string())?;
            if let Some(user) = &self.user {
                chown(&path, Some(user.uid), Some(user.gid))?;
            }
        }
        let folder = self.home.join("pgbouncer");
        if !folder.exists() {
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(fetch::pgbouncer()?).arg(&folder);
            process::output(copy)?;
        }
        Ok(())
    }

    fn command(&self) -> Command {
        let folder = self.home.join("pgbouncer");
        let mut command = process::command(&folder.join("usr/sbin/pgbouncer"), self.user.as_ref());
        command
            .arg(self.home.join("pgbouncer.ini"))
            .current_dir(&self.home)
            .env("LD_LIBRARY_PATH", folder.join("usr/lib/x86_64-linux-gnu"));
        command
    }

    async fn answers(&self) -> anyhow::Result<()> {
        Ok(TcpStream::connect(("127.0.0.1", self.port)).await.map(drop)?)
    }
}

impl PgBouncer {
    /// Its databases `session` and `transaction` are the server's one, pooled so. `settings` is added to its settings.
    pub async fn start(stack: &Stack, postgres: &Postgres, settings: &str) -> anyhow::Result<Server<PgBouncer>> {
        let port = stack.ports.get("pgbouncer")?;
        let (home, user) = postgres.home();
        let behind = format!("host=127.0.0.1 port={} dbname=holdfast", postgres.port());
        let pooler = PgBouncer {
            settings: format!(
                "[databases]\nsession = {behind} pool_mode=session\ntransaction = {behind} pool_mode=transaction\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\n\
                 auth_file = {}\nserver_tls_sslmode = verify-full\nserver_tls_ca_file = {}\n{settings}\n",
                home.join("pgbouncer-users.txt").display(),
                postgres.data().join("root.crt").display(),
            ),
            home: home.to_owned(),
            user: user.cloned(),
            port,
        };
        let server = Server::new(pooler, Path::new(stack.folder()).to_owned());
        server.start().await?;
        Ok(server)
    }

    /// One of its databases, for the app's role, which it knows alone.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{APP}:{}@127.0.0.1:{}/{database}", password(APP), self.port)
    }
}
