//! Gives images to the nodes of a local cluster, so that a pod may name them by tag or by digest.
//!
//! How pinning works without a registry: for `NAME@sha256:…` the kubelet asks the node's containerd whether it knows an image under
//! exactly that name, and under `IfNotPresent` pulls only when it does not. An import by itself records the tag alone, so the
//! digest's name has to be recorded too: `ctr images import --base-name NAME --digests` does both, and the digest is the archive's
//! own, because the archive is in OCI format and its manifest is taken over unchanged. containerd's CRI plug-in sees both names
//! by the events of the import, without a restart.
//!
//! Invariant: after [`load`] every node knows the image under both names.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, anyhow, bail};

use super::build::{Built, build};
use super::store::Store;
use super::{packages, process};

/// Name space of containerd in which the kubelet's images live.
const NAMESPACE: &str = "k8s.io";

/// Builds the image `name` and imports it into every node of the local cluster `cluster`.
pub fn load(store: &Store, cluster: &str, name: &str) -> Result<Built> {
    let built = build(store, name)?;
    packages::ensure(packages::TO_LOAD)?;
    let sockets = sockets(store, cluster)?;
    std::thread::scope(|scope| {
        let imports: Vec<_> = sockets.iter().map(|socket| scope.spawn(|| import(socket, &built))).collect();
        imports.into_iter().try_for_each(|import| import.join().map_err(|_| anyhow!("an import panicked"))?)
    })?;
    eprintln!("{name}: on {} nodes of the cluster {cluster}", sockets.len());
    Ok(built)
}

/// Imports an image unless the node knows it.
fn import(socket: &PathBuf, built: &Built) -> Result<()> {
    if knows(socket, built)? {
        return Ok(());
    }
    let mut import = ctr(socket, &["images", "import", "--base-name", &built.repository(), "--digests"]);
    process::capture(import.arg(&built.archive))?;
    if !knows(socket, built)? {
        bail!("{} does not know {} after its import", socket.display(), built.pinned());
    }
    Ok(())
}

/// Whether the node knows the image under both names, with the digest of this build.
fn knows(socket: &PathBuf, built: &Built) -> Result<bool> {
    let names = process::capture(&mut ctr(socket, &["images", "list"]))?;
    let has = |name: &str| {
        names.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(name) && words.any(|word| word == built.digest)
        })
    };
    Ok(has(&built.reference) && has(&built.pinned()))
}

fn ctr(socket: &PathBuf, arguments: &[&str]) -> Command {
    let mut ctr = Command::new("ctr");
    ctr.arg("--address").arg(socket).args(["--namespace", NAMESPACE]).args(arguments);
    ctr
}

/// The sockets of the nodes' containerds: the cluster's folder has one folder a node.
fn sockets(store: &Store, cluster: &str) -> Result<Vec<PathBuf>> {
    let folder = store.cluster(cluster);
    let mut sockets: Vec<PathBuf> = fs::read_dir(&folder)
        .map(|entries| entries.flatten().map(|entry| entry.path().join("containerd.sock")).collect())
        .unwrap_or_default();
    sockets.retain(|socket| socket.exists());
    if sockets.is_empty() {
        bail!("no node of the cluster {cluster:?} under {}: cargo xtask cluster up", folder.display());
    }
    Ok(sockets)
}
