//! Installs the programs that image building needs, where the machine lacks them.
//!
//! Invariant: a machine that has all the programs is not touched, and `apt-get` is not called on it.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::process;

/// A program, and the Debian package that brings it.
type Need = (&'static str, &'static str);

/// What building images needs. The files that podman looks for outside the search path (network programs) come with it.
pub const TO_BUILD: &[Need] = &[("podman", "podman"), ("runc", "runc"), ("mmdebstrap", "mmdebstrap")];

/// What running images needs besides. Both programs live outside the search path, so podman's presence is taken for theirs
/// once they were installed with it.
pub const WITH_PODMAN: &[&str] = &["netavark", "aardvark-dns"];

/// What loading images into a cluster's nodes needs.
pub const TO_LOAD: &[Need] = &[("ctr", "containerd")];

/// Installs the packages of those programs that are absent.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let mut packages: Vec<&str> =
        needs.iter().filter(|(program, _)| !process::exists(program)).map(|(_, package)| *package).collect();
    if packages.contains(&"podman") {
        packages.extend(WITH_PODMAN);
    }
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
    if install(&packages).is_err() {
        // Without package lists, or with lists older than the mirror, the first attempt fails.
        process::capture(apt().arg("update"))?;
        install(&packages).with_context(|| format!("cannot install {}", packages.join(" ")))?;
    }
    Ok(())
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
