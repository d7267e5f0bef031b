//! The rest of Kubernetes: claims are bound, pods start and end, deleted things go in the right order.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::members::{Agent, Volume};
use super::{World, api};

fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.clone())).collect()
}

fn volume_of(claim: &PersistentVolumeClaim) -> Option<String> {
    claim.spec.as_ref()?.volume_name.clone()
}

impl World {
    /// The claim of a member's first volume, when it is bound.
    pub fn volume_name(&self, member: &str) -> Option<String> {
        volume_of(self.objects.claim(member)?)
    }

    /// The volume of a member that has one.
    pub fn volume(&mut self, member: &str) -> &mut Volume {
        let name = self.volume_name(member).unwrap();
        self.volumes.get_mut(&name).unwrap()
    }

    pub(super) fn tick_kubernetes(&mut self) {
        let ending: Vec<_> = self.objects.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()).collect();
        for name in ending.into_iter().map(ResourceExt::name_any).collect::<Vec<_>>() {
            self.remove_pod(&name);
        }
        self.remove_claims();
        self.bind_claims();
        self.start_pods();
    }

    /// A pod is lost: its container ends, its volume stays.
    pub fn remove_pod(&mut self, name: &str) {
        self.objects.pods.retain(|pod| pod.name_any() != name);
        self.agents.remove(name);
        self.disrupted.remove(name);
    }

    /// A claim is deleted together with whatever its volume's policy says.
    pub fn remove_claim(&mut self, name: &str) {
        let claim = self.objects.claim(name).cloned();
        self.objects.claims.retain(|claim| claim.name_any() != name);
        let Some(volume) = claim.as_ref().and_then(volume_of) else { return };
        let policy = self
            .objects
            .volumes
            .get(&volume)
            .and_then(|volume| volume.spec.as_ref()?.persistent_volume_reclaim_policy.clone());
        if policy.as_deref() == Some("Delete") {
            self.objects.volumes.remove(&volume);
            self.volumes.remove(&volume);
        }
    }

    fn remove_claims(&mut self) {
        let used: Vec<_> = self.objects.pods.iter().flat_map(claims_of).collect();
        let ending = self.objects.claims.iter().filter(|claim| claim.metadata.deletion_timestamp.is_some());
        let names: Vec<_> = ending.map(ResourceExt::name_any).filter(|name| !used.contains(name)).collect();
        for name in names {
            self.remove_claim(&name);
        }
    }

    fn bind_claims(&mut self) {
        for index in 0..self.objects.claims.len() {
            let claim = &self.objects.claims[index];
            if volume_of(claim).is_some() {
                continue;
            }
            let name = format!("pv-{}", claim.uid().unwrap());
            let version = self.next().to_string();
            let meta = json!({"name": name, "uid": name, "resourceVersion": version});
            let volume: PersistentVolume =
                from(json!({"metadata": meta, "spec": {"persistentVolumeReclaimPolicy": "Delete"}}));
            self.objects.volumes.insert(name.clone(), volume);
            self.volumes.insert(name.clone(), Volume::default());
            let mut value = serde_json::to_value(&self.objects.claims[index]).unwrap();
            api::merge(&mut value, &json!({"spec": {"volumeName": name}, "metadata": {"resourceVersion": version}}));
            self.objects.claims[index] = from(value);
        }
    }

    fn start_pods(&mut self) {
        for index in 0..self.objects.pods.len() {
            let pod = &self.objects.pods[index];
            let name = pod.name_any();
            let secret = self.objects.secret.as_ref().and_then(|secret| secret.data.as_ref());
            let has_keys = secret.is_some_and(|data| data.contains_key(&format!("{name}.crt")));
            let has_claims = claims_of(pod).iter().all(|claim| self.objects.claim(claim).is_some());
            if self.unschedulable.contains(&name)
                || self.agents.contains_key(&name)
                || !has_keys
                || !has_claims
                || pod.metadata.deletion_timestamp.is_some()
            {
                continue;
            }
            let number = self.next();
            let address = format!("10.0.{}.{}", number / 250, number % 250);
            self.agents.insert(name, Agent::new(number, address.clone()));
            let mut value = serde_json::to_value(&self.objects.pods[index]).unwrap();
            let status = json!({"phase": "Running", "podIP": address});
            api::merge(&mut value, &json!({"status": status, "metadata": {"resourceVersion": number.to_string()}}));
            self.objects.pods[index] = from(value);
        }
    }
}

/// An object from JSON.
pub fn from<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}
