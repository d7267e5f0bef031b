//! A simulated cluster around the in-memory API server: scheduler, provisioner, kubelets and the controllers that act beside an
//! operator, each one step at a time.
//!
//! Invariant: deterministic. [`Cluster::step`] lets every controller look at every object once, in a fixed order; nothing
//! happens between steps. Failures are switched on by tests, never by chance.

mod budgets;
mod endpoints;
mod garbage;
mod kubelet;
mod namespaces;
mod scheduler;
mod storage;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::api_server::{ApiServer, Refused};

/// What runs in the cluster's pods. Every method has a default, so `()` is a workload that is always ready.
pub trait Workload: Send {
    /// The pod's containers start, for the first time or again.
    fn started(&mut self, _started: &Started) {}
    /// Whether the pod's readiness probe succeeds now.
    fn ready(&mut self, _pod: &Pod) -> bool {
        true
    }
    /// The exit code of a pod that runs to its end; asked at each step until it is there.
    fn finished(&mut self, _pod: &Pod) -> Option<i32> {
        None
    }
    /// The address of a pod that is about to start, for the first time; the cluster's own choice when there is none.
    fn address(&mut self, _pod: &Pod) -> Option<String> {
        None
    }
    /// Asks a pod that is being deleted to end; asked at each step until it has ended.
    fn stop(&mut self, _pod: &Pod) -> bool {
        true
    }
    /// The pod's containers have ended, or are to end now.
    fn stopped(&mut self, _namespace: &str, _pod: &str) {}
    /// A volume and everything on it is gone.
    fn volume_deleted(&mut self, _volume: &str) {}
    /// Time passes; whether anything changed by that.
    fn step(&mut self) -> bool {
        false
    }
}

impl Workload for () {}

/// A start of a pod's containers.
#[derive(Clone, Debug)]
pub struct Started {
    /// The pod with its address.
    pub pod: Pod,
    /// Names of the persistent volumes by the name of the pod's volume.
    pub volumes: BTreeMap<String, String>,
}

/// Failures of the cluster that tests switch on.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub struct Trouble {
    /// No volume is provisioned.
    pub provisioning: bool,
    /// No volume grows.
    pub resizing: bool,
    /// Images with these names cannot be pulled.
    pub unpullable: BTreeSet<String>,
    /// Pods with these names never end.
    pub unstoppable: BTreeSet<String>,
    /// No pod is scheduled.
    pub scheduling: bool,
    /// No endpoints are written.
    pub endpoints: bool,
}

/// A simulated cluster.
pub struct Cluster<W: Workload = ()> {
    server: ApiServer,
    workload: W,
    /// What goes wrong.
    pub trouble: Trouble,
    running: BTreeMap<(String, String), Running>,
    down: BTreeMap<String, Timestamp>,
    addresses: u32,
}

/// A pod whose containers run.
struct Running {
    uid: String,
    node: String,
}

/// The cluster did not come to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsettled {
    /// Steps taken.
    pub steps: u32,
}

impl std::fmt::Display for Unsettled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the simulated cluster still changes after {} steps", self.steps)
    }
}

impl std::error::Error for Unsettled {}

impl<W: Workload> Cluster<W> {
    /// A cluster of three nodes in three zones with the storage class `local`: node-bound, expandable, the default.
    pub fn new(server: &ApiServer, workload: W) -> Result<Self, Refused> {
        let mut cluster = Self {
            server: server.clone(),
            workload,
            trouble: Trouble::default(),
            running: BTreeMap::new(),
            down: BTreeMap::new(),
            addresses: 0,
        };
        for (name, zone) in [("node-1", "a"), ("node-2", "b"), ("node-3", "c")] {
            cluster.add_node(name, zone)?;
        }
        let class = json!({
            "metadata": {
                "name": "local",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "simulated.backlot.dev",
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Delete",
            "allowVolumeExpansion": true,
        });
        if server.get::<StorageClass>("", "local").is_none() {
            cluster.post("/apis/storage.k8s.io/v1/storageclasses", &class)?;
        }
        Ok(cluster)
    }

    /// Adds a ready node.
    pub fn add_node(&mut self, name: &str, zone: &str) -> Result<(), Refused> {
        let labels = json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone});
        self.post("/api/v1/nodes", &json!({"metadata": {"name": name, "labels": labels}}))?;
        self.report_node(name, "True")
    }

    /// The workload.
    pub fn workload(&mut self) -> &mut W {
        &mut self.workload
    }

    /// Lets every controller act once; whether anything was stored or moved.
    pub fn step(&mut self) -> Result<bool, Refused> {
        let before = self.server.revision();
        let moved = self.workload.step();
        self.collect_garbage()?;
        self.end_namespaces()?;
        self.bind_volumes()?;
        self.schedule()?;
        self.run_pods()?;
        self.release_volumes()?;
        self.write_endpoints()?;
        self.count_budgets()?;
        Ok(moved || self.server.revision() != before)
    }

    /// Steps until nothing changes any more.
    pub fn settle(&mut self) -> Result<u32, Box<dyn std::error::Error + Send + Sync>> {
        const LIMIT: u32 = 100;
        for steps in 0..LIMIT {
            if !self.step()? {
                return Ok(steps);
            }
        }
        Err(Box::new(Unsettled { steps: LIMIT }))
    }

    /// The node falls silent: its pods' processes are dead, their objects stay as they are. Pods get a deletion mark when they
    /// have been on it for longer than they tolerate by the server's clock.
    pub fn fail_node(&mut self, name: &str) -> Result<(), Refused> {
        self.down.insert(name.to_owned(), self.server.now());
        let dead: Vec<(String, String)> =
            self.running.iter().filter(|(_, pod)| pod.node == name).map(|(key, _)| key.clone()).collect();
        for (namespace, pod) in dead {
            self.running.remove(&(namespace.clone(), pod.clone()));
            self.workload.stopped(&namespace, &pod);
        }
        self.report_node(name, "Unknown")
    }

    /// The node is back; its pods start again at the next step, with new addresses.
    pub fn restore_node(&mut self, name: &str) -> Result<(), Refused> {
        self.down.remove(name);
        self.report_node(name, "True")
    }

    /// The node is gone for good; volumes that are bound to it can be mounted nowhere.
    pub fn lose_node(&mut self, name: &str) -> Result<(), Refused> {
        self.fail_node(name)?;
        self.server.delete::<Node>("", name, None)
    }

    /// The containers of a pod end and start again, in the same pod with the same address.
    pub fn restart_containers(&mut self, namespace: &str, pod: &str) -> Result<(), Refused> {
        self.restart(namespace, pod)
    }

    fn report_node(&self, name: &str, ready: &str) -> Result<(), Refused> {
        let now = self.time();
        let condition = json!({"type": "Ready", "status": ready, "reason": "Simulated", "message": "",
            "lastTransitionTime": now, "lastHeartbeatTime": now});
        let status = json!({"conditions": [condition], "addresses": [{"type": "Hostname", "address": name}]});
        self.patch(&format!("/api/v1/nodes/{name}/status"), &json!({"status": status}))
    }

    fn time(&self) -> String {
        self.server.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    fn post(&self, path: &str, body: &Value) -> Result<(), Refused> {
        self.send(http::Method::POST, path, "application/json", body)
    }

    fn patch(&self, path: &str, body: &Value) -> Result<(), Refused> {
        self.send(http::Method::PATCH, path, "application/merge-patch+json", body)
    }

    /// Deletes exactly the object that was seen.
    fn delete(&self, path: &str, uid: &str, options: &Value) -> Result<(), Refused> {
        let mut options = options.clone();
        options["preconditions"] = json!({"uid": uid});
        match self.send(http::Method::DELETE, path, "application/json", &options) {
            Err(refused) if refused.status == http::StatusCode::NOT_FOUND => Ok(()),
            other => other,
        }
    }

    fn send(&self, method: http::Method, path: &str, content_type: &str, body: &Value) -> Result<(), Refused> {
        let path = format!("{path}?fieldManager=simulated");
        let (status, body) = self.server.request(method, &path, content_type, body);
        if status.is_success() { Ok(()) } else { Err(Refused { status, body }) }
    }

    /// Pods that exist, oldest first within a namespace.
    fn pods(&self) -> Vec<Pod> {
        let mut pods: Vec<Pod> = self.server.list("");
        pods.sort_by_key(|pod| (pod.namespace(), pod.creation_timestamp().map(|time| time.0), pod.name_any()));
        pods
    }
}

fn is_deleting<K: kube::Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// The claims that a pod mounts: (name of the pod's volume, name of the claim).
fn claims(pod: &Pod) -> Vec<(String, String)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| {
            let claim = volume.persistent_volume_claim.as_ref()?;
            Some((volume.name.clone(), claim.claim_name.clone()))
        })
        .collect()
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

fn path(namespace: &str, plural: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{plural}/{name}")
}
