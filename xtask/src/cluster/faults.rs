//! Faults on demand: a node that dies, a node that is cut off, and their return.

use std::time::Duration;

use anyhow::Result;

use super::cgroup::Hierarchies;
use super::control_plane::Options;
use super::down::crash;
use super::kubectl::Kubectl;
use super::layout::Node;
use super::network;
use super::progress::step;
use super::slots::running;
use super::up::{Leases, configure, hold, is_ready, wait_for};

/// Kills all processes of a node at once and cuts its network: a power cut. Its disks keep what was written.
pub fn kill_node(node: &Node) -> Result<()> {
    let _lock = hold(&node.layout)?;
    running(&node.layout)?;
    let hierarchies = Hierarchies::of_this_machine()?;
    step(&format!("kill {}", node.name), || {
        network::disconnect(node)?;
        crash(node, &hierarchies)
    })
}

/// Starts a killed node again and waits until Kubernetes sees it ready.
pub fn restore_node(node: &Node, options: Options) -> Result<()> {
    let _lock = hold(&node.layout)?;
    let slot = running(&node.layout)?;
    let before = Leases::read(&Kubectl::new(&node.layout))?;
    let cluster = configure(&node.layout, slot, options)?;
    step(&format!("start {}", node.name), || {
        let mut programs = cluster.nodes.iter().zip(node.layout.nodes()).filter(|(_, other)| other.name == node.name);
        programs.try_for_each(|(programs, _)| programs.start(&cluster.hierarchies, &cluster.image).map(drop))
    })?;
    wait_until_ready(node, &before)
}

/// Cuts a node off from all others; its processes go on.
pub fn partition(node: &Node) -> Result<()> {
    running(&node.layout)?;
    step(&format!("cut {} off", node.name), || network::disconnect(node))
}

/// Joins a node that was cut off.
pub fn heal(node: &Node) -> Result<()> {
    running(&node.layout)?;
    let before = Leases::read(&Kubectl::new(&node.layout))?;
    step(&format!("connect {}", node.name), || network::connect(node))?;
    wait_until_ready(node, &before)
}

fn wait_until_ready(node: &Node, before: &Leases) -> Result<()> {
    let kubectl = Kubectl::new(&node.layout);
    step(&format!("{} ready", node.name), || {
        wait_for(&format!("{} to be ready", node.name), Duration::from_mins(2), || {
            Ok(before.renewed(&kubectl, &[node.name])? && is_ready(&kubectl.json(&["get", "nodes"])?, node.name))
        })
    })
}
