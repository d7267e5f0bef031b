//! Installs the programs that image building needs, where the machine lacks them.
//!
//! Invariant: a machine that has all the programs is not touched, and `apt-get` is not called on it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process;

/// A program, and the Debian package that brings it.
type Need = (&'static str, &'static str);

/// What building and running images needs.
pub const TO_BUILD: &[Need] = &[
    ("podman", "podman"),
    ("runc", "runc"),
    ("netavark", "netavark"),
    ("aardvark-dns", "aardvark-dns"),
    ("mmdebstrap", "mmdebstrap"),
];

/// What loading images into a cluster's nodes needs.
pub const TO_LOAD: &[Need] = &[("ctr", "containerd")];

/// Installs the packages of those programs that are absent.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let packages: Vec<&str> =
        needs.iter().filter(|(program, _)| !process::exists(program)).map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    if !process::exists("apt-get") {
        bail!(
            "this machine has no {}: install it, or build the folders with your own container engine",
            packages.join(", ")
        );
    }
    eprintln!("installing {}", packages.join(" "));
    let mut installed = install(&packages);
    // Without package lists, or with lists older than the mirror, the first attempt fails; and nothing waits for the lists' lock.
    for pause in [0, 10, 30] {
        if installed.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_secs(pause));
        installed = process::capture(apt().arg("update")).and_then(|_| install(&packages));
    }
    installed.with_context(|| format!("cannot install {}", packages.join(" ")))
}

fn install(packages: &[&str]) -> Result<()> {
    process::capture(apt().args(["install", "--yes", "--no-install-recommends"]).args(packages)).map(drop)
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    // Another installation on the machine holds the lock for a while: wait for it.
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=600", "-q"]);
    apt
}
