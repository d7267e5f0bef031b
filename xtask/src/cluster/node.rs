//! A node: container runtime, kubelet, kube-proxy and the node's half of the storage driver, in the node's network namespace and
//! control group.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::certificates::Authority;
use super::cgroup::Hierarchies;
use super::control_plane::volumes;
use super::down::crash;
use super::images::PodImage;
use super::layout::{CONTROL_PLANE, DNS_SERVICE, Node, PODS};
use super::network;
use super::packages::network_plugins;
use super::process::{Daemon, Started};
use super::run::write;

/// The programs of one node.
#[derive(Debug)]
pub struct NodePrograms {
    node: Node,
    containerd: Daemon,
    kubelet: Daemon,
    proxy: Daemon,
    storage: Daemon,
}

impl NodePrograms {
    /// Writes the configuration and describes the programs.
    pub fn configure(node: &Node, authority: &Authority, image: &PodImage) -> Result<Self> {
        network_config(node)?;
        Ok(Self {
            node: node.clone(),
            containerd: containerd(node, image)?,
            kubelet: kubelet(node, authority)?,
            proxy: proxy(node, authority)?,
            storage: storage(node),
        })
    }

    /// Starts what does not run; containers that run go on. Says whether the kubelet was started.
    pub fn start(&self, hierarchies: &Hierarchies, image: &PodImage) -> Result<Started> {
        let (node, layout) = (&self.node, &self.node.layout);
        if hierarchies.members(&node.cgroup()).is_empty() {
            // It was off, however that came about.
            crash(node, hierarchies)?;
        }
        network::ensure_node(node)?;
        network::connect(node)?;
        hierarchies.create(&node.cgroup())?;
        self.containerd.ensure(layout, hierarchies)?;
        let answers = || super::images::ctr(node, &["version"]).is_ok();
        self.containerd.wait_for(layout, "an answer", Duration::from_secs(30), answers)?;
        image.ensure_on(node)?;
        self.proxy.ensure(layout, hierarchies)?;
        let started = self.kubelet.ensure(layout, hierarchies)?;
        self.storage.ensure(layout, hierarchies)?;
        Ok(started)
    }

    /// Every program, for the status.
    pub fn daemons(&self) -> [&Daemon; 4] {
        [&self.containerd, &self.kubelet, &self.proxy, &self.storage]
    }
}

fn daemon(node: &Node, name: &str, command: Vec<String>, configuration: String) -> Daemon {
    Daemon { owner: node.name.to_owned(), name: name.to_owned(), network: node.network(), command, configuration }
}

/// Every pod has a link of its own to the node, and no bridge: so all traffic passes the node's routing, where kube-proxy's rules are.
fn network_config(node: &Node) -> Result<()> {
    let directory = node.directory();
    let config = json!({
        "cniVersion": "0.4.0",
        "name": node.network(),
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": directory.join("addresses"),
                "ranges": [[{"subnet": node.pods()}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    write(&directory.join("network/10-backlot.conflist"), serde_json::to_string_pretty(&config)?)
}

fn containerd(node: &Node, image: &PodImage) -> Result<Daemon> {
    let directory = node.directory();
    let config = format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
  # So they go away with the node's folder.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "{runc}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{network}"
"#,
        root = directory.join("containerd").display(),
        state = directory.join("containerd-state").display(),
        runc = directory.join("runc").display(),
        socket = node.containerd_socket().display(),
        image = image.reference,
        plugins = network_plugins()?.display(),
        network = directory.join("network").display(),
    );
    let path = directory.join("containerd.toml");
    write(&path, &config)?;
    let command = vec!["containerd".to_owned(), "--config".to_owned(), path.display().to_string()];
    Ok(daemon(node, "containerd", command, config))
}

fn kubelet(node: &Node, authority: &Authority) -> Result<Daemon> {
    let directory = node.directory();
    let user = format!("system:node:{}", node.name);
    let kubeconfig = authority.kubeconfig(&user, "system:nodes", CONTROL_PLANE.into())?;
    let path = directory.join("kubelet.yaml");
    let config = kubelet_config(node, authority)?;
    write(&path, &config)?;
    let command = vec![
        node.layout.program("kubelet").display().to_string(),
        format!("--config={}", path.display()),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={}", node.name),
        format!("--node-ip={}", node.address()),
        format!("--node-labels=topology.kubernetes.io/zone={},topology.kubernetes.io/region=local", node.zone),
        format!("--root-dir={}", node.kubelet().display()),
        format!("--cert-dir={}", directory.join("kubelet-pki").display()),
    ];
    Ok(daemon(node, "kubelet", command, config))
}

fn kubelet_config(node: &Node, authority: &Authority) -> Result<String> {
    let directory = node.directory();
    let server = authority.kubelet_server(node.name, node.address().into())?;
    let names = directory.join("resolv.conf");
    write(&names, "")?;
    fs::create_dir_all(node.kubelet()).with_context(|| format!("create {}", node.kubelet().display()))?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address(),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": authority.files().certificate},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": server.certificate,
        "tlsPrivateKeyFile": server.key,
        "containerRuntimeEndpoint": format!("unix://{}", node.containerd_socket().display()),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", node.cgroup().display()),
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        // The process may lack the right to lower its score.
        "oomScoreAdj": 0,
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": names,
        "podLogsDir": directory.join("pod-logs"),
        "volumePluginDir": directory.join("volume-plugins"),
        "maxPods": 110,
        "serializeImagePulls": false,
        // A pod that runs learns of its grown volume at its next sync; by default that is a minute apart.
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "nodeStatusReportFrequency": "1m",
        "nodeLeaseDurationSeconds": 20,
        "makeIPTablesUtilChains": false,
        // All nodes share one disk and one memory, of which none knows what the others use: no node evicts, none deletes images.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    });
    Ok(serde_json::to_string_pretty(&config)?)
}

fn proxy(node: &Node, authority: &Authority) -> Result<Daemon> {
    let kubeconfig = authority.kubeconfig("system:kube-proxy", "system:node-proxier", CONTROL_PLANE.into())?;
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": kubeconfig},
        "hostnameOverride": node.name,
        "clusterCIDR": PODS,
        "oomScoreAdj": 0,
        // The limits are of the machine and not for us to change.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    });
    let path = node.directory().join("kube-proxy.yaml");
    let config = serde_json::to_string_pretty(&config)?;
    write(&path, &config)?;
    let program = node.layout.program("kube-proxy").display().to_string();
    Ok(daemon(node, "kube-proxy", vec![program, format!("--config={}", path.display())], config))
}

fn storage(node: &Node) -> Daemon {
    let kubelet = node.kubelet();
    let command = vec![
        node.layout.program("csi").display().to_string(),
        format!("-directory={}", volumes(&node.layout).display()),
        format!("-node={}", node.name),
        format!("-socket={}", kubelet.join("plugins/csi.sock").display()),
        format!("-registry={}", kubelet.join("plugins_registry").display()),
    ];
    daemon(node, "csi-node", command, String::new())
}
