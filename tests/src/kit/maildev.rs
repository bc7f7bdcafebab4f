//! A mail server that delivers nothing and shows every mail on a web page.

use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::process;
use super::server::Kind;

pub struct Maildev {
    pub(super) script: PathBuf,
    pub(super) data: PathBuf,
    pub(super) smtp: u16,
    pub(super) web: u16,
    pub(super) client: reqwest::Client,
    /// `None`: it takes mails from everybody, and shows them to everybody.
    pub(super) lock: Option<MailLock>,
}

/// What a mail server behind TLS and a password is started with, and `user:password` for it and its page.
pub(super) struct MailLock {
    pub(super) arguments: Vec<String>,
    pub(super) login: String,
}

impl Kind for Maildev {
    const NAME: &'static str = "maildev";
    const STOP: Signal = Signal::SIGTERM;

    fn prepare(&self) -> anyhow::Result<()> {
        Ok(std::fs::create_dir_all(&self.data)?)
    }

    fn command(&self) -> Command {
        let mut command = process::command("node".as_ref(), None);
        command.arg(&self.script);
        command.args(["--ip", "127.0.0.1", "--smtp", &self.smtp.to_string()]);
        command.args(["--web-ip", "127.0.0.1", "--web", &self.web.to_string()]);
        command.arg("--mail-directory").arg(&self.data);
        command.args(self.lock.iter().flat_map(|lock| &lock.arguments));
        command
    }

    async fn answers(&self) -> anyhow::Result<()> {
        let health = format!("{}/api/healthz", self.web());
        self.client.get(health).send().await?.error_for_status()?;
        Ok(())
    }
}

impl Maildev {
    /// As the product's setting has it.
    pub fn smtp(&self) -> String {
        match &self.lock {
            Some(MailLock { login, .. }) => format!("smtps://{login}@localhost:{}", self.smtp),
            None => format!("smtp://127.0.0.1:{}", self.smtp),
        }
    }

    /// The page that shows the mails.
    pub fn web(&self) -> String {
        match &self.lock {
            Some(MailLock { login, .. }) => format!("https://{login}@127.0.0.1:{}", self.web),
            None => format!("http://127.0.0.1:{}", self.web),
        }
    }

    /// Every mail so far, as its API has them.
    pub async fn mails(&self) -> anyhow::Result<Vec<Value>> {
        let answer = self.client.get(format!("{}/api/email", self.web())).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }
}
