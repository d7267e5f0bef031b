//! The kubelets: start pods, report what the workload says, end pods.
//!
//! Invariant: a pod ends only after its workload was told to stop; a silent node's kubelet does nothing at all.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Cluster, Running, Started, Workload, claims, is_deleting, is_finished, is_ready, node_name, path, phase};
use crate::api_server::Refused;

/// Seconds that a pod tolerates a silent node when it says nothing else.
const TOLERATION_SECONDS: i64 = 300;

impl<W: Workload> Cluster<W> {
    pub(super) fn run_pods(&mut self) -> Result<(), Refused> {
        self.stop_removed();
        for pod in self.pods() {
            let node = node_name(&pod).to_owned();
            if node.is_empty() {
                continue;
            }
            if self.down.contains_key(&node) {
                self.suspect(&pod, &node)?;
            } else if is_deleting(&pod) {
                self.end(&pod)?;
            } else if !is_finished(&pod) {
                self.run(&pod)?;
            }
        }
        Ok(())
    }

    /// Pods whose object is gone or was replaced.
    fn stop_removed(&mut self) {
        let mut gone = vec![];
        for ((namespace, name), running) in &self.running {
            let present: Option<Pod> = self.server.get(namespace, name);
            if present.and_then(|pod| pod.uid()).as_ref() != Some(&running.uid) {
                gone.push((namespace.clone(), name.clone()));
            }
        }
        for (namespace, name) in gone {
            self.running.remove(&(namespace.clone(), name.clone()));
            self.workload.stopped(&namespace, &name);
        }
    }

    fn run(&mut self, pod: &Pod) -> Result<(), Refused> {
        let key = (pod.namespace().unwrap_or_default(), pod.name_any());
        if !self.running.contains_key(&key) {
            return match self.obstacle(pod) {
                Some((reason, message)) => self.report_waiting(pod, reason, &message),
                None => self.start(pod),
            };
        }
        if let Some(code) = self.workload.finished(pod) {
            self.running.remove(&key);
            self.workload.stopped(&key.0, &key.1);
            return self.report_finished(pod, code);
        }
        let ready = self.workload.ready(pod);
        if ready == is_ready(pod) { Ok(()) } else { self.report_running(pod, None, ready, restarts(pod)) }
    }

    /// What keeps the pod from starting.
    fn obstacle(&self, pod: &Pod) -> Option<(&'static str, String)> {
        let namespace = pod.namespace().unwrap_or_default();
        for (_, name) in claims(pod) {
            let claim: Option<PersistentVolumeClaim> = self.server.get(&namespace, &name);
            if claim.and_then(|claim| claim.status).and_then(|status| status.phase).as_deref() != Some("Bound") {
                return Some(("ContainerCreating", format!("claim {name} is not bound")));
            }
        }
        if let Some(missing) = self.missing_source(pod) {
            return Some(("ContainerCreating", format!("{missing} not found")));
        }
        let spec = pod.spec.as_ref()?;
        let images =
            spec.containers.iter().chain(spec.init_containers.iter().flatten()).filter_map(|one| one.image.as_ref());
        let bad = images.into_iter().find(|image| self.trouble.unpullable.contains(*image))?;
        Some(("ImagePullBackOff", format!("image {bad} cannot be pulled")))
    }

    fn missing_source(&self, pod: &Pod) -> Option<String> {
        let namespace = pod.namespace().unwrap_or_default();
        let spec = serde_json::to_value(&pod.spec).unwrap_or_default();
        let volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
        let projected =
            volumes.iter().flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
        for source in volumes.iter().chain(projected) {
            for (kind, field) in [("secret", "secretName"), ("secret", "name"), ("configMap", "name")] {
                let reference = &source[kind];
                let Some(name) = reference[field].as_str().filter(|_| reference["optional"] != true) else { continue };
                let Some(keys) = self.keys_of(kind, &namespace, name) else { return Some(format!("{kind} {name}")) };
                let items = reference["items"].as_array().into_iter().flatten();
                let missing = items.filter_map(|item| item["key"].as_str()).find(|key| !keys.contains(*key));
                if let Some(key) = missing {
                    return Some(format!("key {key} of {kind} {name}"));
                }
            }
        }
        None
    }

    fn keys_of(&self, kind: &str, namespace: &str, name: &str) -> Option<BTreeSet<String>> {
        if kind == "secret" {
            let secret: Secret = self.server.get(namespace, name)?;
            return Some(secret.data.into_iter().flat_map(BTreeMap::into_keys).collect());
        }
        let map: ConfigMap = self.server.get(namespace, name)?;
        Some(map.data.into_iter().flat_map(BTreeMap::into_keys).collect())
    }

    fn start(&mut self, pod: &Pod) -> Result<(), Refused> {
        self.addresses += 1;
        let address = self
            .workload
            .address(pod)
            .unwrap_or_else(|| format!("10.244.{}.{}", self.addresses / 250, self.addresses % 250 + 1));
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let running = Running { uid: pod.uid().unwrap_or_default(), node: node_name(pod).to_owned() };
        self.running.insert((namespace.clone(), name.clone()), running);
        let again = phase(pod) == "Running";
        self.report_running(pod, Some(&address), false, restarts(pod) + i64::from(again))?;
        self.tell_started(&namespace, &name);
        Ok(())
    }

    fn tell_started(&mut self, namespace: &str, name: &str) {
        let Some(pod) = self.server.get::<Pod>(namespace, name) else { return };
        let volume = |claim: &str| {
            let claim: PersistentVolumeClaim = self.server.get(namespace, claim)?;
            claim.spec?.volume_name
        };
        let volumes = claims(&pod).into_iter().filter_map(|(name, claim)| Some((name, volume(&claim)?))).collect();
        self.workload.started(&Started { pod, volumes });
    }

    pub(super) fn restart(&mut self, namespace: &str, name: &str) -> Result<(), Refused> {
        let Some(pod) = self.server.get::<Pod>(namespace, name) else { return Ok(()) };
        self.workload.stopped(namespace, name);
        self.report_running(&pod, None, false, restarts(&pod) + 1)?;
        self.tell_started(namespace, name);
        Ok(())
    }

    fn end(&mut self, pod: &Pod) -> Result<(), Refused> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let key = (namespace.clone(), name.clone());
        let has_ended = !self.running.contains_key(&key) || self.workload.stop(pod);
        if self.trouble.unstoppable.contains(&name) || !has_ended {
            return Ok(());
        }
        if self.running.remove(&key).is_some() {
            self.workload.stopped(&namespace, &name);
        }
        let options = json!({"gracePeriodSeconds": 0});
        self.delete(&path(&namespace, "pods", &name), &pod.uid().unwrap_or_default(), &options)
    }

    /// What the control plane does about a pod on a silent node.
    fn suspect(&mut self, pod: &Pod, node: &str) -> Result<(), Refused> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        if is_ready(pod) {
            let condition = json!({"type": "Ready", "status": "False", "reason": "NodeNotReady", "message": "",
                "lastTransitionTime": self.time()});
            self.set_condition(pod, &condition)?;
        }
        let tolerated = pod
            .spec
            .iter()
            .flat_map(|spec| spec.tolerations.iter().flatten())
            .filter(|toleration| toleration.key.as_deref() == Some("node.kubernetes.io/unreachable"))
            .map(|toleration| toleration.toleration_seconds)
            .next()
            .unwrap_or(Some(TOLERATION_SECONDS));
        let silent = self.down.get(node).map_or(0, |since| self.server.now().as_second() - since.as_second());
        let over = tolerated.is_some_and(|seconds| silent >= seconds);
        if over && !is_deleting(pod) {
            self.delete(&path(&namespace, "pods", &name), &pod.uid().unwrap_or_default(), &json!({}))?;
        }
        Ok(())
    }

    fn report_running(&self, pod: &Pod, address: Option<&str>, ready: bool, restarts: i64) -> Result<(), Refused> {
        let now = self.time();
        let status = pod.status.clone().unwrap_or_default();
        let address = address.map(str::to_owned).or(status.pod_ip).unwrap_or_default();
        let condition = |kind: &str, holds: bool| json!({"type": kind, "status": if holds { "True" } else { "False" }, "lastTransitionTime": now});
        let conditions = [("PodScheduled", true), ("Initialized", true), ("ContainersReady", ready), ("Ready", ready)];
        let conditions: Vec<Value> = conditions.map(|(kind, holds)| condition(kind, holds)).to_vec();
        let spec = pod.spec.clone().unwrap_or_default();
        let container = |name: &str, image: Option<&String>| {
            json!({"name": name, "image": image, "imageID": image_id(image), "ready": ready, "started": true,
                "restartCount": restarts, "state": {"running": {"startedAt": now}}})
        };
        let statuses: Vec<Value> = spec.containers.iter().map(|one| container(&one.name, one.image.as_ref())).collect();
        let initial: Vec<Value> = spec
            .init_containers
            .iter()
            .flatten()
            .map(|one| {
                json!({"name": one.name, "image": one.image, "imageID": image_id(one.image.as_ref()), "ready": true, "started": false,
                    "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}})
            })
            .collect();
        self.report(
            pod,
            &json!({
                "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "192.0.2.1", "startTime": now,
                "conditions": conditions, "containerStatuses": statuses, "initContainerStatuses": initial,
                "observedGeneration": pod.metadata.generation,
            }),
        )
    }

    fn report_waiting(&self, pod: &Pod, reason: &str, message: &str) -> Result<(), Refused> {
        let spec = pod.spec.clone().unwrap_or_default();
        let waiting = |name: &str, image: Option<&String>| {
            json!({"name": name, "image": image, "imageID": "", "ready": false, "started": false, "restartCount": 0,
                "state": {"waiting": {"reason": reason, "message": message}}})
        };
        let statuses: Vec<Value> = spec.containers.iter().map(|one| waiting(&one.name, one.image.as_ref())).collect();
        self.report(pod, &json!({"phase": "Pending", "containerStatuses": statuses}))
    }

    fn report_finished(&self, pod: &Pod, code: i32) -> Result<(), Refused> {
        let (phase, reason) = if code == 0 { ("Succeeded", "Completed") } else { ("Failed", "Error") };
        let spec = pod.spec.clone().unwrap_or_default();
        let ended = |name: &str, image: Option<&String>| {
            json!({"name": name, "image": image, "imageID": image_id(image), "ready": false, "started": false,
                "restartCount": 0, "state": {"terminated": {"exitCode": code, "reason": reason}}})
        };
        let statuses: Vec<Value> = spec.containers.iter().map(|one| ended(&one.name, one.image.as_ref())).collect();
        let ready = json!({"type": "Ready", "status": "False", "reason": "PodCompleted"});
        self.report(pod, &json!({"phase": phase, "containerStatuses": statuses, "conditions": [ready]}))
    }

    fn report(&self, pod: &Pod, status: &Value) -> Result<(), Refused> {
        let path = path(&pod.namespace().unwrap_or_default(), "pods", &pod.name_any());
        self.patch(&format!("{path}/status"), &json!({ "status": status }))
    }
}

fn restarts(pod: &Pod) -> i64 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| i64::from(status.restart_count)).max().unwrap_or_default()
}

/// A digest that depends on the image's name only.
fn image_id(image: Option<&String>) -> String {
    let image = image.cloned().unwrap_or_default();
    if image.contains('@') {
        return image;
    }
    let sum = image.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let name = match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name.to_owned(),
        _ => image,
    };
    format!("{name}@sha256:{sum:064x}")
}
