//! Bringing a cluster up: every step makes what is absent and leaves what is there, so it heals a cluster as it founds one.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::build;
use super::certificates::{ADMINISTRATORS, Authority};
use super::cgroup::Hierarchies;
use super::control_plane::{ControlPlane, OWNER, Options};
use super::images::PodImage;
use super::kubectl::Kubectl;
use super::layout::{Layout, NODES, checkout};
use super::machine;
use super::network;
use super::node::NodePrograms;
use super::packages;
use super::process::Started;
use super::progress::{note, seconds, step};
use super::run::write;
use super::slots::{Slot, exclusive_for_long};

/// A cluster whose configuration is written: what can be started and asked for its state.
#[derive(Debug)]
pub struct Configured {
    /// The control groups of this machine.
    pub hierarchies: Hierarchies,
    /// The image that the nodes need.
    pub image: PodImage,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// The nodes.
    pub nodes: Vec<NodePrograms>,
}

/// Starts the cluster, or whatever of it does not run.
pub fn up(layout: &Layout, options: Options) -> Result<()> {
    let started = Instant::now();
    println!("Cluster {} in {}", layout.name, layout.directory.display());
    machine::check()?;
    packages::ensure()?;
    let _lock = hold(layout)?;
    let slot = Slot::take(layout)?;
    build::ensure(layout)?;
    machine::remember()?;
    let cluster = configure(layout, slot, options)?;
    step("network namespaces", || network::ensure_control_plane(layout, slot))?;
    cluster.control_plane.start(layout, &cluster.hierarchies)?;
    let kubectl = Kubectl::new(layout);
    let before = Leases::read(&kubectl)?;
    let started_nodes = step("nodes: containerd, kubelet and kube-proxy", || {
        let mut started_nodes = Vec::new();
        for (programs, (name, _)) in cluster.nodes.iter().zip(NODES) {
            if programs.start(&cluster.hierarchies, &cluster.image)? == Started::Now {
                started_nodes.push(name);
            }
        }
        Ok(started_nodes)
    })?;
    step("DNS and StorageClasses", || apply_manifests(&kubectl))?;
    cluster.control_plane.start_addons(layout, &cluster.hierarchies)?;
    step("nodes ready", || {
        wait_for("nodes and their storage drivers", Duration::from_mins(2), || {
            Ok(before.renewed(&kubectl, &started_nodes)? && nodes_ready(&kubectl)?)
        })
    })?;
    note(&format!(
        "ready after {}; to use it:  eval \"$(cargo xtask cluster env --name {})\"",
        seconds(started.elapsed()),
        layout.name
    ));
    Ok(())
}

/// Lets one run at a time change the cluster.
pub fn hold(layout: &Layout) -> Result<fs::File> {
    // Beside the folder and not in it, since `down` removes the folder.
    exclusive_for_long(&layout.directory.with_extension("lock"))
}

/// Writes certificates and configuration.
pub fn configure(layout: &Layout, slot: Slot, options: Options) -> Result<Configured> {
    let hierarchies = Hierarchies::of_this_machine()?;
    hierarchies.create(&layout.cgroup().join(OWNER))?;
    let authority = Authority::open(layout)?;
    let context = format!("backlot-{}", layout.name);
    let kubeconfig =
        authority.kubeconfig_text("admin", "backlot:admin", ADMINISTRATORS, slot.api_server().into(), &context)?;
    write(&layout.kubeconfig(), kubeconfig)?;
    let image = PodImage::ensure(layout)?;
    let control_plane = ControlPlane::configure(layout, &authority, slot, options)?;
    let nodes =
        layout.nodes().iter().map(|node| NodePrograms::configure(node, &authority, &image)).collect::<Result<_>>()?;
    Ok(Configured { hierarchies, image, control_plane, nodes })
}

/// Waits for a condition that is named in the error.
pub fn wait_for(what: &str, timeout: Duration, ready: impl Fn() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    let mut last = None;
    while started.elapsed() < timeout {
        match ready() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    match last {
        Some(error) => Err(error).with_context(|| format!("waited {} s for {what}", timeout.as_secs())),
        None => bail!("waited {} s for {what}: look at `cargo xtask cluster status`", timeout.as_secs()),
    }
}

fn apply_manifests(kubectl: &Kubectl) -> Result<()> {
    let folder = checkout().join("dev/manifests");
    for file in ["dns.yaml", "storage.yaml"] {
        let path = folder.join(file);
        let manifest = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        kubectl.apply(&manifest).with_context(|| format!("apply {}", Path::new(file).display()))?;
    }
    Ok(())
}

fn nodes_ready(kubectl: &Kubectl) -> Result<bool> {
    let nodes = kubectl.json(&["get", "nodes"])?;
    let drivers = kubectl.json(&["get", "csinodes"])?;
    Ok(NODES.iter().all(|(name, _)| is_ready(&nodes, name) && has_driver(&drivers, name)))
}

/// When the kubelets were last heard of. A node that died and is back stays "ready" until somebody notices: only news since then counts.
#[derive(Debug)]
pub struct Leases(Value);

impl Leases {
    /// Reads the nodes' leases.
    pub fn read(kubectl: &Kubectl) -> Result<Self> {
        kubectl.json(&["get", "leases", "-n", "kube-node-lease"]).map(Self)
    }

    /// Whether all these nodes have been heard of since, or are new.
    pub fn renewed(&self, kubectl: &Kubectl, nodes: &[&str]) -> Result<bool> {
        let now = Self::read(kubectl)?;
        Ok(nodes.iter().all(|node| self.time(node).is_none() || now.time(node) != self.time(node)))
    }

    fn time(&self, node: &str) -> Option<&str> {
        item(&self.0, node)?["spec"]["renewTime"].as_str()
    }
}

/// Whether a list of nodes shows this one as ready.
pub fn is_ready(nodes: &Value, name: &str) -> bool {
    item(nodes, name).and_then(|node| node["status"]["conditions"].as_array()).is_some_and(|conditions| {
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
}

fn has_driver(csinodes: &Value, name: &str) -> bool {
    item(csinodes, name).and_then(|node| node["spec"]["drivers"].as_array()).is_some_and(|drivers| !drivers.is_empty())
}

fn item<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    list["items"].as_array()?.iter().find(|item| item["metadata"]["name"] == name)
}
