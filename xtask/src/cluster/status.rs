//! What of a cluster runs.

use anyhow::{Result, bail};

use super::cgroup::Hierarchies;
use super::control_plane::Options;
use super::kubectl::Kubectl;
use super::layout::{Layout, NODES};
use super::node::NodePrograms;
use super::slots::running;
use super::up::{configure, is_ready};

/// Prints every program and node; fails when one of them is not well.
pub fn status(layout: &Layout) -> Result<()> {
    let slot = running(layout)?;
    let cluster = configure(layout, slot, Options { fsync: false })?;
    let mut unwell = Vec::new();
    println!("cluster {}: https://{}:6443, {}", layout.name, slot.api_server(), layout.directory.display());
    let nodes = cluster.nodes.iter().flat_map(NodePrograms::daemons);
    for daemon in cluster.control_plane.daemons().into_iter().chain(nodes) {
        let state =
            daemon.pid(layout).map_or_else(|| "not running".to_owned(), |pid| format!("running, process {pid}"));
        println!("  {:<14} {:<24} {state}", daemon.owner, daemon.name);
        if !daemon.is_running(layout) {
            unwell.push(format!("{} of {}", daemon.name, daemon.owner));
        }
    }
    let processes = Hierarchies::of_this_machine()?.members(&layout.cgroup()).len();
    println!("  {processes} processes in all, containers included");
    let list = Kubectl::new(layout).json(&["get", "nodes", "--request-timeout=5s"])?;
    for (name, zone) in NODES {
        let ready = is_ready(&list, name);
        println!("  {name:<14} zone {zone:<19} {}", if ready { "ready" } else { "not ready" });
        if !ready {
            unwell.push(name.to_owned());
        }
    }
    if !unwell.is_empty() {
        bail!(
            "not well: {}; `cargo xtask cluster up --name {}` starts what is missing",
            unwell.join(", "),
            layout.name
        );
    }
    Ok(())
}
