//! The cluster's network: namespaces joined by a bridge, and no way out.
//!
//! The control plane's namespace holds the bridge; each node's namespace is tied to it by a veth pair. One more pair leads to the
//! machine, for kubectl. Nothing is forwarded over it, and no namespace has a default route, so nothing in the cluster can reach
//! beyond the cluster. Every function here can be repeated.

use std::path::Path;

use anyhow::Result;

use super::layout::{CONTROL_PLANE, Layout, Node, SERVICES};
use super::run::words;
use super::slots::Slot;

/// Makes the control plane's namespace and its pair towards the machine.
pub fn ensure_control_plane(layout: &Layout, slot: Slot) -> Result<()> {
    let network = layout.network();
    ensure_namespace(&network)?;
    if !link_exists(&network, "br0")? {
        words("ip", &format!("-n {network} link add br0 type bridge"))?;
    }
    words("ip", &format!("-n {network} address replace {CONTROL_PLANE}/24 dev br0"))?;
    words("ip", &format!("-n {network} link set br0 up"))?;
    let device = slot.device();
    if !link_exists(&network, "uplink")? {
        // Its other end may be left from a namespace that is gone.
        let _ = words("ip", &format!("link delete {device}"));
        words("ip", &format!("link add {device} type veth peer name uplink netns {network}"))?;
    }
    words("ip", &format!("-n {network} address replace {}/30 dev uplink", slot.api_server()))?;
    words("ip", &format!("-n {network} link set uplink up"))?;
    words("ip", &format!("address replace {}/30 dev {device}", slot.machine()))?;
    words("ip", &format!("link set {device} up"))?;
    set(&network, "net/ipv4/ip_forward", "0")
}

/// Makes a node's namespace and ties it to the bridge.
pub fn ensure_node(node: &Node) -> Result<()> {
    let (outer, inner) = (node.layout.network(), node.network());
    ensure_namespace(&inner)?;
    if !link_exists(&inner, "eth0")? {
        let _ = words("ip", &format!("-n {outer} link delete {}", node.name));
        words("ip", &format!("-n {outer} link add {} type veth peer name eth0 netns {inner}", node.name))?;
    }
    words("ip", &format!("-n {outer} link set {} master br0", node.name))?;
    words("ip", &format!("-n {inner} address replace {}/24 dev eth0", node.address()))?;
    set(&inner, "net/ipv4/ip_forward", "1")
}

/// Connects a node, or connects it again: a link that was down has lost its routes.
pub fn connect(node: &Node) -> Result<()> {
    let (outer, inner) = (node.layout.network(), node.network());
    words("ip", &format!("-n {outer} link set {} up", node.name))?;
    words("ip", &format!("-n {inner} link set eth0 up"))?;
    words("ip", &format!("-n {outer} route replace {} via {}", node.pods(), node.address()))?;
    // A program on the node may call a Service. The rules of kube-proxy choose where it really goes, but only after a route was found.
    words("ip", &format!("-n {inner} route replace {SERVICES} via {CONTROL_PLANE}"))?;
    for other in node.layout.nodes().iter().filter(|other| other.name != node.name) {
        words("ip", &format!("-n {inner} route replace {} via {}", other.pods(), other.address()))?;
    }
    Ok(())
}

/// Cuts a node off, without telling it.
pub fn disconnect(node: &Node) -> Result<()> {
    words("ip", &format!("-n {} link set {} down", node.layout.network(), node.name)).map(drop)
}

/// Removes all namespaces of the cluster, and with them the pairs.
pub fn remove(layout: &Layout, slot: Option<Slot>) -> Result<()> {
    let mut namespaces: Vec<String> = layout.nodes().iter().map(Node::network).collect();
    namespaces.push(layout.network());
    if let Some(slot) = slot
        && Path::new("/sys/class/net").join(slot.device()).exists()
    {
        words("ip", &format!("link delete {}", slot.device()))?;
    }
    for name in namespaces {
        if namespace_exists(&name) {
            words("ip", &format!("netns delete {name}"))?;
        }
    }
    Ok(())
}

/// The namespaces of the cluster that exist.
pub fn existing(layout: &Layout) -> Vec<String> {
    let mut names: Vec<String> = layout.nodes().iter().map(Node::network).collect();
    names.push(layout.network());
    names.retain(|name| namespace_exists(name));
    names
}

fn namespace_exists(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

fn ensure_namespace(name: &str) -> Result<()> {
    if namespace_exists(name) && words("ip", &format!("-n {name} link show lo")).is_err() {
        // After a crash of the machine, or of `ip netns add`, only the empty file is left.
        words("ip", &format!("netns delete {name}"))?;
    }
    if !namespace_exists(name) {
        words("ip", &format!("netns add {name}"))?;
    }
    words("ip", &format!("-n {name} link set lo up")).map(drop)
}

fn link_exists(network: &str, device: &str) -> Result<bool> {
    let links = words("ip", &format!("-n {network} -o link show"))?;
    Ok(links.lines().any(|line| {
        let name = line.split(": ").nth(1).unwrap_or_default();
        name.split('@').next() == Some(device)
    }))
}

/// Settings below /proc/sys/net belong to the namespace of who writes them.
fn set(network: &str, setting: &str, value: &str) -> Result<()> {
    words("nsenter", &format!("--net=/run/netns/{network} -- sysctl -q -w {setting}={value}")).map(drop)
}
