//! What the machine must have: the container runtime and the tools for networks and file systems.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use nix::unistd::geteuid;

use super::progress::step;
use super::run::{installed, run};

/// A program and the Debian package that has it.
const NEEDED: [(&str, &str); 9] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("mkfs.xfs", "xfsprogs"),
    ("ip", "iproute2"),
    ("sysctl", "procps"),
    ("nsenter", "util-linux"),
    ("losetup", "mount"),
    ("fsfreeze", "util-linux"),
];

/// Installs what is absent.
pub fn ensure() -> Result<()> {
    if !geteuid().is_root() {
        bail!(
            "the local cluster needs root for namespaces, mounts and control groups: run this as root, or use CLUSTER=current or CLUSTER=kind"
        );
    }
    let mut absent: Vec<&str> =
        NEEDED.iter().filter(|(program, _)| !installed(program)).map(|(_, package)| *package).collect();
    if network_plugins().is_err() {
        absent.push("containernetworking-plugins");
    }
    absent.sort_unstable();
    absent.dedup();
    if absent.is_empty() {
        return Ok(());
    }
    if !installed("apt-get") {
        bail!("these are absent and there is no apt-get: install {}", absent.join(", "));
    }
    step(&format!("install {}", absent.join(", ")), || {
        let install = |update: bool| -> Result<String> {
            if update {
                run("apt-get", ["update", "-qq"])?;
            }
            let options = ["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "--no-install-recommends"];
            run("env", options.iter().chain(&absent))
        };
        // The package lists of a fresh machine are old or empty.
        install(false).or_else(|_| install(true)).map(drop)
    })
}

/// The folder of the network plug-ins, which differs between distributions.
pub fn network_plugins() -> Result<PathBuf> {
    for folder in ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"] {
        if ["ptp", "host-local", "loopback"].iter().all(|plugin| Path::new(folder).join(plugin).is_file()) {
            return Ok(folder.into());
        }
    }
    bail!("the network plug-ins ptp, host-local and loopback are absent: install containernetworking-plugins")
}
