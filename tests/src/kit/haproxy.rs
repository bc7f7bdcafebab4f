//! HAProxy before several servers of which any will do, or one alone: it asks each whether it will, and cuts the connections to one
//! that will no longer.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::ensure;
use nix::sys::signal::Signal;
use tokio::net::TcpStream;

use super::process;
use super::server::Kind;

pub struct HaProxy {
    /// With the libraries that it needs beside Debian's usual ones.
    pub(super) installed: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) fronts: Vec<Frontend>,
}

/// A port, and what is behind it.
pub(super) struct Frontend {
    pub(super) name: &'static str,
    pub(super) port: u16,
    /// The path at which a server that will serve says 200; absent where it is enough that it takes connections.
    pub(super) asks: Option<&'static str>,
    pub(super) servers: Vec<Behind>,
}

pub(super) struct Behind {
    /// `host:port`.
    pub(super) serves: String,
    /// The port of the same host at which it is asked.
    pub(super) asked: u16,
}

/// Two questions without the right answer, a second apart, take a server away; a single one brings it back.
const SETTINGS: &str = "\
global
    maxconn 4000
defaults
    mode tcp
    retries 2
    option redispatch
    timeout connect 1s
    timeout check 1s
    timeout client 1h
    timeout server 1h
    default-server check inter 1s fall 2 rise 1 on-marked-down shutdown-sessions
";

impl Kind for HaProxy {
    const NAME: &'static str = "haproxy";
    /// At once.
    const STOP: Signal = Signal::SIGTERM;

    fn prepare(&self) -> anyhow::Result<()> {
        let fronts: String = self.fronts.iter().map(Frontend::settings).collect();
        fs::write(self.settings(), format!("{SETTINGS}{fronts}"))?;
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = process::command(&self.installed.join("usr/sbin/haproxy"), None);
        command
            .arg("-db")
            .arg("-f")
            .arg(self.settings())
            .env("LD_LIBRARY_PATH", self.installed.join("usr/lib/x86_64-linux-gnu"));
        command
    }

    async fn answers(&self) -> anyhow::Result<()> {
        ensure!(!self.fronts.is_empty(), "nothing to listen at");
        for front in &self.fronts {
            TcpStream::connect(("127.0.0.1", front.port)).await?;
        }
        Ok(())
    }
}

impl HaProxy {
    fn settings(&self) -> PathBuf {
        self.folder.join("haproxy.cfg")
    }
}

impl Frontend {
    fn settings(&self) -> String {
        let Frontend { name, port, .. } = self;
        let asks = self
            .asks
            .map(|path| format!("    option httpchk GET {path}\n    http-check expect status 200\n"));
        let servers = self.servers.iter().enumerate();
        let servers = servers
            .map(|(number, Behind { serves, asked })| format!("    server {name}-{number} {serves} port {asked}\n"));
        let asks = asks.unwrap_or_default();
        format!(
            "listen {name}\n    bind 0.0.0.0:{port}\n{asks}{}",
            servers.collect::<String>()
        )
    }
}
