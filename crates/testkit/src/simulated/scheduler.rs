//! The scheduler: gives pods a node.
//!
//! It keeps to volumes that are bound to nodes, node selectors, cordons, required anti-affinity and hard spread constraints,
//! and prefers nodes with the fewest pods of the same kind.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Cluster, Workload, claims, is_deleting, is_finished, node_name, path};
use crate::api_server::{Refused, label_selector_matches};

/// What a pod's claims demand.
enum Volumes {
    /// Any of these nodes' volumes; `None` = any node.
    Bound(Option<Vec<String>>),
    /// Claims that wait for a node.
    Waiting(Vec<String>, Option<Vec<String>>),
    /// A claim is absent or waits for something else.
    Missing,
}

impl<W: Workload> Cluster<W> {
    pub(super) fn schedule(&mut self) -> Result<(), Refused> {
        if self.trouble.scheduling {
            return Ok(());
        }
        for pod in self.pods() {
            if node_name(&pod).is_empty() && !is_deleting(&pod) {
                self.place(&pod)?;
            }
        }
        Ok(())
    }

    fn place(&mut self, pod: &Pod) -> Result<(), Refused> {
        let namespace = pod.namespace().unwrap_or_default();
        let (waiting, allowed) = match self.volumes_of(pod) {
            Volumes::Bound(allowed) => (vec![], allowed),
            Volumes::Waiting(waiting, allowed) => (waiting, allowed),
            Volumes::Missing => return self.report_unschedulable(pod),
        };
        let Some(node) = self.best_node(pod, allowed.as_deref()) else { return self.report_unschedulable(pod) };
        if waiting.is_empty() {
            let name = pod.name_any();
            let target = json!({"target": {"apiVersion": "v1", "kind": "Node", "name": node}});
            self.post(&format!("{}/binding", path(&namespace, "pods", &name)), &target)?;
            let now = self.time();
            let scheduled = json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": now});
            return self.set_condition(pod, &scheduled);
        }
        for claim in waiting {
            let annotations = json!({"volume.kubernetes.io/selected-node": node});
            let body = json!({"metadata": {"annotations": annotations}});
            self.patch(&path(&namespace, "persistentvolumeclaims", &claim), &body)?;
        }
        Ok(())
    }

    fn volumes_of(&self, pod: &Pod) -> Volumes {
        let namespace = pod.namespace().unwrap_or_default();
        let mut waiting = vec![];
        let mut allowed: Option<Vec<String>> = None;
        let mut narrow = |nodes: Vec<String>| {
            allowed = Some(match allowed.take() {
                Some(before) => before.into_iter().filter(|node| nodes.contains(node)).collect(),
                None => nodes,
            });
        };
        for (_, name) in claims(pod) {
            let Some(claim) = self.server.get::<PersistentVolumeClaim>(&namespace, &name) else {
                return Volumes::Missing;
            };
            let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
            let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
            if bound {
                let Some(volume) = self.server.get::<PersistentVolume>("", &volume) else { return Volumes::Missing };
                if let Some(nodes) = nodes_of(&volume) {
                    narrow(nodes);
                }
            } else if self.waits_for_a_node(&claim) {
                if let Some(node) = claim.annotations().get("volume.kubernetes.io/selected-node") {
                    narrow(vec![node.clone()]);
                } else {
                    waiting.push(name);
                }
            } else {
                return Volumes::Missing;
            }
        }
        let unbound = claims(pod).iter().any(|(_, name)| {
            let claim = self.server.get::<PersistentVolumeClaim>(&namespace, name);
            claim.and_then(|claim| claim.status).and_then(|status| status.phase).as_deref() != Some("Bound")
        });
        match (waiting.is_empty(), unbound) {
            (false, _) => Volumes::Waiting(waiting, allowed),
            // A node is chosen, the volume is being made.
            (true, true) => Volumes::Missing,
            (true, false) => Volumes::Bound(allowed),
        }
    }

    fn waits_for_a_node(&self, claim: &PersistentVolumeClaim) -> bool {
        let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()).unwrap_or_default();
        let class: Option<StorageClass> = self.server.get("", &class);
        class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
    }

    fn best_node(&self, pod: &Pod, allowed: Option<&[String]>) -> Option<String> {
        let nodes: Vec<Node> = self.server.list("");
        let others = self.pods().into_iter().filter(|other| !is_finished(other) && other.uid() != pod.uid());
        let placed: Vec<Pod> = others.filter_map(|other| self.with_assumed_node(other)).collect();
        let spread = Spread::of(pod, &nodes, &placed);
        nodes
            .iter()
            .filter(|node| allowed.is_none_or(|allowed| allowed.contains(&node.name_any())))
            .filter(|node| !self.down.contains_key(&node.name_any()))
            .filter(|node| node.spec.as_ref().and_then(|spec| spec.unschedulable) != Some(true))
            .filter(|node| selects(pod, node) && spread.permits(node))
            .min_by_key(|node| {
                let pods = placed.iter().filter(|other| node_name(other) == node.name_any()).count();
                (spread.alike_on(node), pods, node.name_any())
            })
            .map(ResourceExt::name_any)
    }

    /// The pod with its node, or the node that its claims wait on; `None` when neither is decided.
    fn with_assumed_node(&self, mut pod: Pod) -> Option<Pod> {
        if node_name(&pod).is_empty() {
            let namespace = pod.namespace().unwrap_or_default();
            let chosen = claims(&pod).into_iter().find_map(|(_, name)| {
                let claim: PersistentVolumeClaim = self.server.get(&namespace, &name)?;
                claim.annotations().get("volume.kubernetes.io/selected-node").cloned()
            })?;
            pod.spec.as_mut()?.node_name = Some(chosen);
        }
        Some(pod)
    }

    fn report_unschedulable(&self, pod: &Pod) -> Result<(), Refused> {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        if conditions.into_iter().any(|condition| condition.type_ == "PodScheduled" && condition.status == "False") {
            return Ok(());
        }
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "no node fits the pod", "lastTransitionTime": self.time(),
        });
        self.set_condition(pod, &condition)
    }

    /// Sets one condition of a pod and leaves the others.
    pub(super) fn set_condition(&self, pod: &Pod, condition: &Value) -> Result<(), Refused> {
        let Some(pod) = self.server.get::<Pod>(&pod.namespace().unwrap_or_default(), &pod.name_any()) else {
            return Ok(());
        };
        let present = serde_json::to_value(pod.status.clone().and_then(|status| status.conditions)).unwrap_or_default();
        let others = present.as_array().into_iter().flatten().filter(|other| other["type"] != condition["type"]);
        let conditions: Vec<Value> = others.chain([condition]).cloned().collect();
        let path = path(&pod.namespace().unwrap_or_default(), "pods", &pod.name_any());
        self.patch(&format!("{path}/status"), &json!({"status": {"conditions": conditions}}))
    }
}

/// The nodes that a volume is bound to; `None` = any.
fn nodes_of(volume: &PersistentVolume) -> Option<Vec<String>> {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let expressions = required.node_selector_terms.iter().flat_map(|term| term.match_expressions.iter().flatten());
    Some(
        expressions
            .filter(|expression| expression.key == "kubernetes.io/hostname")
            .flat_map(|expression| expression.values.clone().unwrap_or_default())
            .collect(),
    )
}

fn selects(pod: &Pod, node: &Node) -> bool {
    let selector = pod.spec.as_ref().and_then(|spec| spec.node_selector.clone()).unwrap_or_default();
    selector.iter().all(|(key, value)| node.labels().get(key) == Some(value))
}

/// What a pod says about its neighbours.
struct Spread {
    /// (topology key, pods alike by the value of that key, largest allowed difference; 0 = no neighbour at all).
    hard: Vec<(String, BTreeMap<String, usize>, usize)>,
    alike: BTreeMap<String, usize>,
}

impl Spread {
    fn of(pod: &Pod, nodes: &[Node], placed: &[Pod]) -> Self {
        let spec = serde_json::to_value(&pod.spec).unwrap_or_default();
        let affinity = &spec["affinity"]["podAntiAffinity"];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let required = list(&affinity["requiredDuringSchedulingIgnoredDuringExecution"]);
        let preferred = list(&affinity["preferredDuringSchedulingIgnoredDuringExecution"]);
        let constraints = list(&spec["topologySpreadConstraints"]);
        let here: Vec<&Pod> = placed.iter().filter(|other| other.namespace() == pod.namespace()).collect();
        let matching = |selector: &Value| -> Vec<&Pod> {
            let labels = |pod: &Pod| serde_json::to_value(pod.labels()).unwrap_or_default();
            here.iter().filter(|other| label_selector_matches(selector, &labels(other))).copied().collect()
        };
        let count = |key: &str, selector: &Value| {
            let values = nodes.iter().filter_map(|node| Some((node.labels().get(key)?.clone(), 0)));
            let mut counts: BTreeMap<String, usize> = values.collect();
            for other in matching(selector) {
                let node = nodes.iter().find(|node| node.name_any() == node_name(other));
                if let Some(value) = node.and_then(|node| node.labels().get(key)) {
                    *counts.entry(value.clone()).or_default() += 1;
                }
            }
            counts
        };
        let mut spread = Self { hard: vec![], alike: BTreeMap::new() };
        for term in &required {
            let key = term["topologyKey"].as_str().unwrap_or_default();
            spread.hard.push((key.to_owned(), count(key, &term["labelSelector"]), 0));
        }
        for term in constraints.iter().filter(|term| term["whenUnsatisfiable"] == "DoNotSchedule") {
            let key = term["topologyKey"].as_str().unwrap_or_default();
            let skew = term["maxSkew"].as_u64().and_then(|skew| usize::try_from(skew).ok()).unwrap_or(1);
            spread.hard.push((key.to_owned(), count(key, &term["labelSelector"]), skew));
        }
        let selectors = required.iter().chain(&constraints).map(|term| &term["labelSelector"]);
        let weighted = preferred.iter().map(|term| &term["podAffinityTerm"]["labelSelector"]);
        for selector in selectors.chain(weighted) {
            for other in matching(selector) {
                *spread.alike.entry(node_name(other).to_owned()).or_default() += 1;
            }
        }
        spread
    }

    fn permits(&self, node: &Node) -> bool {
        self.hard.iter().all(|(key, counts, skew)| {
            let Some(value) = node.labels().get(key) else { return *skew == 0 };
            let here = counts.get(value).copied().unwrap_or_default();
            let least = counts.values().min().copied().unwrap_or_default();
            if *skew == 0 { here == 0 } else { here + 1 - least <= *skew }
        })
    }

    fn alike_on(&self, node: &Node) -> usize {
        self.alike.get(&node.name_any()).copied().unwrap_or_default()
    }
}
