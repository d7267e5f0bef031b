//! What clusters change on the machine outside of their own folders, and how it is put back when the last one goes.
//!
//! The kubelet insists on some kernel settings and on some folders in `/var`; they are shared by all clusters.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::layout::Node;
use super::run::write;

const REMEMBERED: &str = "/run/backlot/kernel.json";
/// What the kubelet writes when it starts.
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
/// The sockets of containers' shims.
const SHIMS: &str = "/run/containerd/s";
/// What network plug-ins remember of every pod.
const NETWORK_RESULTS: &str = "/var/lib/cni/results";
/// Links to the logs of all containers.
const LOG_LINKS: &str = "/var/log/containers";
const DEVICE_PLUGINS: &str = "/var/lib/kubelet/device-plugins";

/// Refuses a machine whose own kubelet would be disturbed.
pub fn check() -> Result<()> {
    let own = Path::new("/var/lib/kubelet/config.yaml");
    if own.exists() {
        bail!(
            "{} exists: this machine is a Kubernetes node itself, where the local cluster would disturb it: use CLUSTER=current",
            own.display()
        );
    }
    Ok(())
}

/// Remembers the kernel's settings before the first cluster changes them.
pub fn remember() -> Result<()> {
    let file = Path::new(REMEMBERED);
    if file.exists() {
        return Ok(());
    }
    let read = |name: &str| Some((name.to_owned(), fs::read_to_string(setting(name)).ok()?));
    let settings: BTreeMap<String, String> = SETTINGS.iter().filter_map(|name| read(name)).collect();
    write(file, serde_json::to_string_pretty(&settings)?)
}

/// Puts back what was before the first cluster.
pub fn restore() -> Result<()> {
    if let Ok(content) = fs::read(REMEMBERED) {
        let settings: BTreeMap<String, String> =
            serde_json::from_slice(&content).with_context(|| format!("read {REMEMBERED}"))?;
        for (name, value) in settings {
            fs::write(setting(&name), value).with_context(|| format!("restore {name}"))?;
        }
        fs::remove_file(REMEMBERED).with_context(|| format!("remove {REMEMBERED}"))?;
    }
    if Path::new(DEVICE_PLUGINS).exists() {
        fs::remove_dir_all(DEVICE_PLUGINS).with_context(|| format!("remove {DEVICE_PLUGINS}"))?;
    }
    for folder in [
        "/var/lib/kubelet",
        LOG_LINKS,
        NETWORK_RESULTS,
        "/var/lib/cni",
        "/run/containerd/runc",
        SHIMS,
        "/run/containerd",
    ] {
        // They stay where something else uses them.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

/// Removes what a node, whose processes are dead, left in the machine's folders.
pub fn forget(node: &Node) -> Result<()> {
    for path in left_by(node) {
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// Files in the machine's folders that belong to a node.
pub fn left_by(node: &Node) -> Vec<PathBuf> {
    let mut found = shim_sockets(&node.directory().join("containerd-state/io.containerd.runtime.v2.task/k8s.io"));
    let results = format!("{}-", node.network());
    found.extend(
        entries(Path::new(NETWORK_RESULTS))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&results))),
    );
    found.extend(
        entries(Path::new(LOG_LINKS))
            .filter(|path| fs::read_link(path).is_ok_and(|target| target.starts_with(node.directory()))),
    );
    found
}

/// containerd names its shims' sockets by a hash and notes each name beside the container.
fn shim_sockets(containers: &Path) -> Vec<PathBuf> {
    entries(containers)
        .filter_map(|container| fs::read_to_string(container.join("address")).ok())
        .filter_map(|address| address.trim().strip_prefix("unix://").map(PathBuf::from))
        .filter(|path| path.starts_with(SHIMS) && path.exists())
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path())
}

fn setting(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}
