//! The hosts of a cluster on one machine. For root each host is a network namespace of its own, with one wire to a bridge: the wire can
//! be cut. For others, and where the machine has none to give, all hosts are its loopback address, and none can be cut.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use nix::unistd::Uid;
use tracing::warn;

use super::process;

/// In which only the last number differs; the kit's own end is the first.
const SUBNET: [u8; 3] = [10, 213, 77];
const BRIDGE: &str = "holdfast0";
/// One network of these names at a time.
const LOCK: &str = "/run/holdfast-network.lock";

/// Dropping it removes the namespaces; what runs in one keeps it until it ends.
pub struct Network {
    pub hosts: Vec<Host>,
    /// The address at which hosts reach what listens on the kit's side.
    pub outside: Ipv4Addr,
    /// Held as long as the namespaces are there; absent without them.
    alone: Option<File>,
}

#[derive(Clone)]
pub struct Host {
    pub address: Ipv4Addr,
    /// Of its namespace and of the kit's end of its wire, which are named the same.
    name: Option<String>,
}

impl Network {
    pub fn open(hosts: u8) -> anyhow::Result<Network> {
        if !Uid::effective().is_root() {
            return Ok(Network::of_one(hosts));
        }
        let lock = File::create(LOCK).context(LOCK)?;
        lock.try_lock()
            .context("another cluster has its hosts on this machine")?;
        let network = Network {
            hosts: (1..=hosts).map(Host::of).collect(),
            outside: address(1),
            alone: Some(lock),
        };
        network.remove(); // what a kit that was killed has left
        match network.connect() {
            Ok(()) => Ok(network),
            Err(error) => {
                warn!("all hosts share one address, since this machine has no networks to give: {error:#}");
                Ok(Network::of_one(hosts))
            }
        }
    }

    fn of_one(hosts: u8) -> Network {
        let here = Host {
            address: Ipv4Addr::LOCALHOST,
            name: None,
        };
        Network {
            hosts: (0..hosts).map(|_| here.clone()).collect(),
            outside: Ipv4Addr::LOCALHOST,
            alone: None,
        }
    }

    fn connect(&self) -> anyhow::Result<()> {
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", self.outside), "dev", BRIDGE])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        self.hosts.iter().try_for_each(Host::connect)
    }

    /// Whether a host can be cut off.
    pub fn can_cut(&self) -> bool {
        self.alone.is_some()
    }

    fn remove(&self) {
        for name in self.hosts.iter().filter_map(|host| host.name.as_deref()) {
            // The wire first: with its namespace it would go some time later.
            remove("link", "/sys/class/net", name);
            remove("netns", "/run/netns", name);
        }
        remove("link", "/sys/class/net", BRIDGE);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if self.alone.is_some() {
            self.remove();
        }
    }
}

impl Host {
    fn of(number: u8) -> Host {
        Host {
            address: address(number + 1),
            name: Some(format!("holdfast-{number}")),
        }
    }

    fn connect(&self) -> anyhow::Result<()> {
        let Some(name) = &self.name else { return Ok(()) };
        ip(&["netns", "add", name])?;
        ip(&[
            "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name,
        ])?;
        ip(&["link", "set", name, "master", BRIDGE, "up"])?;
        ip(&[
            "-n",
            name,
            "addr",
            "add",
            &format!("{}/24", self.address),
            "dev",
            "eth0",
        ])?;
        ip(&["-n", name, "link", "set", "eth0", "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])
    }

    /// Silently drops all that goes to it or comes from it. What runs there goes on.
    pub fn cut(&self) -> anyhow::Result<()> {
        self.set_wire("down")
    }

    pub fn join(&self) -> anyhow::Result<()> {
        self.set_wire("up")
    }

    fn set_wire(&self, state: &str) -> anyhow::Result<()> {
        let name = self.name.as_deref().context("only root's hosts can be cut off")?;
        ip(&["link", "set", name, state])
    }

    /// The command as it is run on this host.
    pub fn run(&self, command: Command) -> Command {
        let Some(name) = &self.name else { return command };
        let mut there = Command::new("nsenter");
        there.arg(format!("--net=/run/netns/{name}")).arg("--");
        there.arg(command.get_program()).args(command.get_args());
        for (variable, value) in command.get_envs() {
            match value {
                Some(value) => there.env(variable, value),
                None => there.env_remove(variable),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            there.current_dir(folder);
        }
        there
    }
}

fn address(last: u8) -> Ipv4Addr {
    let [a, b, c] = SUBNET;
    Ipv4Addr::new(a, b, c, last)
}

/// Unless it is not there.
fn remove(kind: &str, folder: &str, name: &str) {
    if PathBuf::from(folder).join(name).exists()
        && let Err(error) = ip(&[kind, "delete", name])
    {
        warn!("{error:#}");
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments);
    process::output(command).map(drop)
}
