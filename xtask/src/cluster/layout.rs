//! Where everything of a cluster is: its folder, its names in the kernel, its addresses.
//!
//! All of it derives from the cluster's name and from its slot, so that two clusters never share anything, and `down` finds what to
//! remove even when the folder of the cluster is damaged.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The nodes, and the zone of each.
pub const NODES: [(&str, &str); 3] = [("node-1", "a"), ("node-2", "b"), ("node-3", "c")];

/// The API server's address inside the cluster's own network.
pub const CONTROL_PLANE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The API server's Service.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The DNS Service.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Addresses of Services.
pub const SERVICES: &str = "10.96.0.0/16";
/// Addresses of pods: a /24 of it for each node.
pub const PODS: &str = "10.244.0.0/16";

/// The kernel refuses longer socket paths; this much of one is ours, the rest is the program's.
const LONGEST_FOLDER: usize = 60;

/// One cluster, whether it runs or not.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The cluster's name.
    pub name: String,
    /// The folder with all state of the cluster.
    pub directory: PathBuf,
}

impl Layout {
    /// Checks the name and derives the rest.
    pub fn new(name: &str) -> Result<Self> {
        // Names of nodes follow the cluster's name; with such a name, one cluster's node would be another cluster.
        if name.contains("-node-") {
            bail!("cluster name {name:?}: choose one without \"-node-\"");
        }
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty()
            || name.len() > 20
            || !name.chars().all(plain)
            || name.starts_with('-')
            || name.ends_with('-')
        {
            bail!("cluster name {name:?}: use 1 to 20 lower case letters, digits and inner dashes");
        }
        let directory = cache()?.join("clusters").join(name);
        let length = directory.as_os_str().len();
        if length > LONGEST_FOLDER {
            bail!(
                "{} has {length} characters, sockets in it allow {LONGEST_FOLDER}: set BACKLOT_CACHE to a shorter path or shorten the name",
                directory.display()
            );
        }
        Ok(Self { name: name.to_owned(), directory })
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// Links to every program that this cluster runs.
    pub fn programs(&self) -> PathBuf {
        self.directory.join("bin")
    }

    /// One program of the cluster.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// Keys and certificates.
    pub fn certificates(&self) -> PathBuf {
        self.directory.join("pki")
    }

    /// Output of the programs.
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// The network namespace of the control plane.
    pub fn network(&self) -> String {
        format!("backlot-{}", self.name)
    }

    /// The cluster's control group, below which each owner has one.
    pub fn cgroup(&self) -> PathBuf {
        Path::new("backlot").join(&self.name)
    }

    /// One node, by its name.
    pub fn node(&self, name: &str) -> Result<Node> {
        for (index, (node, zone)) in (1_u8..).zip(NODES) {
            if node == name {
                return Ok(Node { layout: self.clone(), name: node, zone, index });
            }
        }
        bail!("there is no node {name:?}: use node-1, node-2 or node-3");
    }

    /// All nodes.
    pub fn nodes(&self) -> Vec<Node> {
        (1_u8..).zip(NODES).map(|(index, (name, zone))| Node { layout: self.clone(), name, zone, index }).collect()
    }
}

/// One node of a cluster.
#[derive(Clone, Debug)]
pub struct Node {
    /// The cluster.
    pub layout: Layout,
    /// `node-1` and so on.
    pub name: &'static str,
    /// The value of the zone label.
    pub zone: &'static str,
    /// 1 and up.
    pub index: u8,
}

impl Node {
    /// The node's network namespace.
    pub fn network(&self) -> String {
        format!("{}-{}", self.layout.network(), self.name)
    }

    /// The node's folder.
    pub fn directory(&self) -> PathBuf {
        self.layout.directory.join(self.name)
    }

    /// The node's address.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, 10 + self.index)
    }

    /// The addresses of the node's pods.
    pub fn pods(&self) -> String {
        format!("10.244.{}.0/24", self.index)
    }

    /// The node's control group, which is also the root of its pods' groups.
    pub fn cgroup(&self) -> PathBuf {
        self.layout.cgroup().join(self.name)
    }

    /// The container runtime's socket.
    pub fn containerd_socket(&self) -> PathBuf {
        self.directory().join("containerd.sock")
    }

    /// The kubelet's folder: volumes of the pods are mounted below it.
    pub fn kubelet(&self) -> PathBuf {
        self.directory().join("kubelet")
    }
}

/// The one folder of everything that is built or run: `BACKLOT_CACHE`, else `~/.cache/backlot`.
pub fn cache() -> Result<PathBuf> {
    let chosen = match (std::env::var_os("BACKLOT_CACHE"), std::env::var_os("HOME")) {
        (Some(folder), _) if !folder.is_empty() => PathBuf::from(folder),
        (_, Some(home)) => Path::new(&home).join(".cache/backlot"),
        _ => bail!("neither BACKLOT_CACHE nor HOME is set: set one, so that the cache has a place"),
    };
    fs::create_dir_all(&chosen).with_context(|| format!("create {}", chosen.display()))?;
    fs::canonicalize(&chosen).with_context(|| format!("find {}", chosen.display()))
}

/// The checkout that this program was built from.
pub fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_its_folder_or_a_kernel_name_is_refused() {
        for name in ["", "../x", "a/b", "UPPER", "-a", "a-", "a_b", "a-name-of-more-than-20", "dev-node-1"] {
            assert!(Layout::new(name).is_err(), "{name:?} was accepted");
        }
    }

    #[test]
    fn an_unknown_node_is_refused_with_the_known_ones() {
        let layout = Layout { name: "x".into(), directory: "/x".into() };
        let message = layout.node("node-4").unwrap_err().to_string();
        assert!(message.contains("node-1"), "{message}");
    }
}
