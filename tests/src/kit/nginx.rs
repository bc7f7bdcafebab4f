//! nginx before a server that speaks no TLS and asks nobody who they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use tokio::net::TcpStream;

use super::certs::CertificateFiles;
use super::server::Kind;
use super::{Server, fetch, process};

pub struct Nginx {
    binary: PathBuf,
    folder: PathBuf,
    /// The content of its block `http`, and where that listens.
    http: String,
    ports: Vec<u16>,
}

/// A port with TLS that passes on what has the token.
pub struct Site {
    pub port: u16,
    pub certificate: CertificateFiles,
    /// `http://host:port` or `http://unix:/a/socket`.
    pub upstream: String,
    /// `None`: the server behind it has locks of its own.
    pub token: Option<String>,
}

impl Nginx {
    /// Not started yet; its files and its log lie in `folder`.
    pub fn server(folder: &Path, sites: &[Site]) -> anyhow::Result<Server<Nginx>> {
        let http: String = sites.iter().map(Site::settings).collect();
        let ports = sites.iter().map(|site| site.port).collect();
        Self::with(folder, http, ports)
    }

    /// As [`Nginx::server`], with these settings, which listen at these ports of this machine.
    pub fn with(folder: &Path, http: String, ports: Vec<u16>) -> anyhow::Result<Server<Nginx>> {
        let nginx = Nginx {
            binary: fetch::nginx()?,
            folder: folder.join("nginx"),
            http,
            ports,
        };
        Ok(Server::new(nginx, folder.to_path_buf()))
    }

    fn settings(&self) -> String {
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: String = temporary
            .iter()
            .map(|name| format!("{name}_temp_path {name};\n"))
            .collect();
        let http = &self.http;
        format!(
            "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr;\nevents {{ }}\nhttp {{\naccess_log off;\n{temporary}{http}\n}}\n"
        )
    }
}

impl Site {
    fn settings(&self) -> String {
        let Site {
            port,
            certificate: CertificateFiles { certificate, key },
            upstream,
            token,
        } = self;
        let strangers = token.as_ref().map_or_else(String::new, |token| {
            format!("if ($http_authorization != \"Bearer {token}\") {{ return 401; }}\n")
        });
        format!(
            "server {{\nlisten 127.0.0.1:{port} ssl;\nssl_certificate {};\nssl_certificate_key {};\nlocation / {{\n\
             {strangers}proxy_http_version 1.1;\nproxy_pass {upstream};\n}}\n}}\n",
            certificate.display(),
            key.display(),
        )
    }
}

impl Kind for Nginx {
    const NAME: &'static str = "nginx";
    const STOP: Signal = Signal::SIGTERM;

    fn prepare(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.folder)?;
        fs::write(self.folder.join("nginx.conf"), self.settings())?;
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = process::command(&self.binary, None);
        command
            .arg("-p")
            .arg(&self.folder)
            .args(["-c", "nginx.conf", "-e", "stderr"]);
        command
    }

    async fn answers(&self) -> anyhow::Result<()> {
        for port in &self.ports {
            TcpStream::connect(("127.0.0.1", *port)).await?;
        }
        Ok(())
    }
}
