//! Faults on demand: a node that dies, a node that is cut off, and their return.

use std::time::Duration;

use anyhow::{Result, bail};

use super::control_plane::Options;
use super::down::crash;
use super::kubectl::Kubectl;
use super::layout::{Layout, Node};
use super::network;
use super::progress::step;
use super::slots::Slot;
use super::up::{configure, hold, is_ready, wait_for};

/// Kills all processes of a node at once and cuts its network: a power cut. Its disks keep what was written.
pub fn kill_node(node: &Node) -> Result<()> {
    let _lock = hold(&node.layout)?;
    let hierarchies = super::cgroup::Hierarchies::of_this_machine()?;
    step(&format!("kill {}", node.name), || {
        network::disconnect(node)?;
        crash(node, &hierarchies)
    })
}

/// Starts a killed node again and waits until Kubernetes sees it ready.
pub fn restore_node(node: &Node, options: Options) -> Result<()> {
    let _lock = hold(&node.layout)?;
    let Some(slot) = Slot::of(&node.layout) else {
        bail!("cluster {} does not run: start it with `up`", node.layout.name)
    };
    let cluster = configure(&node.layout, slot, options)?;
    step(&format!("start {}", node.name), || {
        let mut programs = cluster.nodes.iter().zip(node.layout.nodes()).filter(|(_, other)| other.name == node.name);
        programs.try_for_each(|(programs, _)| programs.start(&cluster.hierarchies, &cluster.image))
    })?;
    wait_until_ready(node)
}

/// Cuts a node off from all others; its processes go on.
pub fn partition(node: &Node) -> Result<()> {
    step(&format!("cut {} off", node.name), || network::disconnect(node))
}

/// Joins a node that was cut off.
pub fn heal(node: &Node) -> Result<()> {
    step(&format!("connect {}", node.name), || network::connect(node))?;
    wait_until_ready(node)
}

fn wait_until_ready(node: &Node) -> Result<()> {
    step(&format!("{} ready", node.name), || ready(&node.layout, node.name))
}

fn ready(layout: &Layout, name: &str) -> Result<()> {
    let kubectl = Kubectl::new(layout);
    wait_for(&format!("{name} to be ready"), Duration::from_mins(2), || {
        Ok(is_ready(&kubectl.json(&["get", "nodes"])?, name))
    })
}
