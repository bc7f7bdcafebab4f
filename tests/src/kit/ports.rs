//! Free ports below the range that the system hands out itself, kept over restarts.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, anyhow};

use super::process::lock;

const RANGE: Range<u16> = 20_000..32_000;

/// Ports by the name of their use, in a JSON file.
pub struct Ports {
    file: PathBuf,
    ports: Mutex<BTreeMap<String, u16>>,
}

impl Ports {
    /// Reads the ports of earlier runs, without those that another program has taken meanwhile.
    pub fn open(file: PathBuf) -> anyhow::Result<Ports> {
        let mut ports: BTreeMap<String, u16> = match fs::read(&file) {
            Ok(kept) => serde_json::from_slice(&kept).with_context(|| file.display().to_string())?,
            Err(_) => BTreeMap::new(),
        };
        ports.retain(|_, port| is_free(*port));
        Ok(Ports {
            file,
            ports: Mutex::new(ports),
        })
    }

    /// The port for this use: the same one each time.
    pub fn get(&self, name: &str) -> anyhow::Result<u16> {
        let mut ports = lock(&self.ports);
        if let Some(port) = ports.get(name) {
            return Ok(*port);
        }
        // Each checkout and stack begins elsewhere, so that two that start at once do not try the same ports.
        let mut hasher = DefaultHasher::new();
        self.file.hash(&mut hasher);
        let first = usize::try_from(hasher.finish() % RANGE.len() as u64)?;
        let port = (RANGE.cycle().skip(first).take(RANGE.len()))
            .find(|port| !ports.values().any(|taken| taken == port) && is_free(*port))
            .ok_or_else(|| anyhow!("no free port in {RANGE:?}"))?;
        ports.insert(String::from(name), port);
        fs::write(&self.file, serde_json::to_vec_pretty(&*ports)?)?;
        Ok(port)
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}
